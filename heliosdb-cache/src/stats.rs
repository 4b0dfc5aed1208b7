//! Counts.

use crate::sync::{CountU64, Ordering};

/// What a cache did and holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// Look-ups answered.
    pub hits: u64,
    /// Look-ups not answered.
    pub misses: u64,
    /// Requests that joined the computation of another.
    pub coalesced: u64,
    /// Answers stored.
    pub fills: u64,
    /// Answers not stored: too small, too large, too cheap, or out of date by the time they came.
    pub rejected: u64,
    /// Entries found out of date by a look-up, and removed.
    pub invalidated: u64,
    /// Entries removed to make room.
    pub evictions: u64,
    /// Entries held, those out of date that nobody asked for since included.
    pub entries: usize,
    /// Bytes charged for them.
    pub size_bytes: usize,
    /// Bound on `size_bytes`.
    pub capacity_bytes: usize,
    /// Computations under way.
    pub in_flight: usize,
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

/// A count that every look-up raises. Striped by the key's hash, so that cores meet on a line of it only where they
/// meet on an entry's shard too.
#[derive(Debug, Default)]
pub(crate) struct StripedCounter([Counter; STRIPES]);

const STRIPES: usize = 16;

impl StripedCounter {
    pub(crate) fn add_one(&self, hash: u64) {
        let high = (hash >> 48) as usize;
        self.0[high % STRIPES].add(1);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(Counter::count).sum()
    }
}
