//! Counts.

use std::time::Duration;

use crate::sync::{CountU64, Ordering};

/// What a cache did and holds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct CacheStats {
    /// Look-ups answered, `stale_hits` included.
    pub hits: u64,
    /// Of these, with answers past their time to live, while they were computed anew.
    pub stale_hits: u64,
    /// Look-ups not answered.
    pub misses: u64,
    /// Requests that joined the computation of another.
    pub coalesced: u64,
    /// Requests whose computation failed and that were given an answer past its time to live.
    pub fallbacks: u64,
    /// What the answers served took to compute, in sum, when they were.
    pub time_saved: Duration,
    /// Answers stored.
    pub fills: u64,
    /// Answers not stored, for the causes in `rejected_by`, or because the eviction policy holds on to others.
    pub rejected: u64,
    /// Why answers were not stored.
    pub rejected_by: Rejections,
    /// Entries found out of date, and removed.
    pub invalidated: u64,
    /// Entries whose time was over, removed.
    pub expired: u64,
    /// Entries removed to make room, those included that were refused when they came.
    pub evictions: u64,
    /// Entries replaced by newer answers.
    pub replaced: u64,
    /// Entries removed by their key.
    pub removed: u64,
    /// Entries held, those out of date that nobody asked for since included.
    pub entries: usize,
    /// Bytes charged for them.
    pub size_bytes: usize,
    /// Bound on `size_bytes`.
    pub capacity_bytes: usize,
    /// Computations under way.
    pub in_flight: usize,
    /// Answers found in the tier behind, and promoted.
    pub behind_hits: u64,
    /// Answers that the tier behind did not have, or not in time.
    pub behind_misses: u64,
    /// Answers of the tier behind that may not be served: out of date, from a position that is not known yet, damaged.
    pub behind_refused: u64,
    /// Answers that the tier behind did not take.
    pub behind_unwritten: u64,
}

impl CacheStats {
    /// Hits by look-ups, from 0 to 1; 0 before the first.
    #[must_use]
    pub fn hit_ratio(&self) -> f64 {
        self.hits as f64 / ((self.hits + self.misses) as f64).max(1.0)
    }
}

/// Why answers were not stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rejections {
    /// Smaller than [`min_result_size`](crate::CacheConfig::min_result_size).
    pub too_small: u64,
    /// Larger than [`max_result_size`](crate::CacheConfig::max_result_size) or than its share of the cache.
    pub too_large: u64,
    /// Cheaper than [`min_execution_time_ms`](crate::CacheConfig::min_execution_time_ms).
    pub too_cheap: u64,
    /// Asked for once ([`doorkeeper`](crate::CacheConfig::doorkeeper)).
    pub seen_once: u64,
    /// Something they depend on was written meanwhile.
    pub out_of_date: u64,
    /// Worth less than all others, in the eyes of the eviction policy.
    pub not_admitted: u64,
    /// Overtaken: a later computation of the same answer had begun.
    pub overtaken: u64,
}

impl Rejections {
    pub(crate) fn sum(&self) -> u64 {
        let Self {
            too_small,
            too_large,
            too_cheap,
            seen_once,
            out_of_date,
            not_admitted,
            overtaken,
        } = self;
        too_small + too_large + too_cheap + seen_once + out_of_date + not_admitted + overtaken
    }
}

/// What came of a store's look-ups, and why its entries left.
///
/// Counted by each shard under its lock: no look-up writes to memory that another core has to wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct StoreCounts {
    /// Look-ups answered, `stale_hits` included.
    pub hits: u64,
    /// Look-ups answered past the time to live.
    pub stale_hits: u64,
    /// Look-ups not answered.
    pub misses: u64,
    /// What the answers served took to compute, in milliseconds.
    pub saved_ms: f64,
    /// Entries removed to make room, or refused when they came.
    pub evicted: u64,
    /// Entries whose time was over.
    pub expired: u64,
    /// Entries whose dependencies were written.
    pub invalidated: u64,
    /// Entries removed by their key.
    pub removed: u64,
    /// Entries replaced by newer ones.
    pub replaced: u64,
}

impl StoreCounts {
    pub(crate) fn add(&mut self, other: &Self) {
        let Self {
            hits,
            stale_hits,
            misses,
            saved_ms,
            evicted,
            expired,
            invalidated,
            removed,
            replaced,
        } = other;
        self.hits += hits;
        self.stale_hits += stale_hits;
        self.misses += misses;
        self.saved_ms += saved_ms;
        self.evicted += evicted;
        self.expired += expired;
        self.invalidated += invalidated;
        self.removed += removed;
        self.replaced += replaced;
    }
}

/// One count, on a cache line of its own: neighbours would slow each other down.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counter(CountU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
