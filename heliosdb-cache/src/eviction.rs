//! Eviction policies: which of several entries should go first.

use crate::clock;
use crate::error::{CacheError, Result};
use crate::types::CacheEntry;

/// Ranks entries for eviction.
///
/// The store never ranks all of them: it draws [`SAMPLE`] entries at random and evicts the one with the lowest score,
/// as Redis does. With 8 drawn, the evicted entry is among the lowest 31 % of all with probability 0.95, and among the
/// lowest 9 % half of the time.
pub trait EvictionPolicy: Send + Sync {
    /// Calculates the score of an entry: lower is evicted sooner. NaN counts as lowest.
    fn calculate_score(&self, entry: &CacheEntry) -> f64;

    /// The policy's name, as shown in statistics.
    fn name(&self) -> &str;

    /// The order that the store keeps its entries in for this policy. A policy that does not override this goes by its
    /// scores.
    fn order(&self) -> Order {
        Order::Score
    }
}

/// How the store finds the entry to evict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// The entry used least recently, exactly, without asking for scores.
    Recency,
    /// The lowest score of [`SAMPLE`] entries drawn at random.
    Score,
}

/// Entries drawn for one eviction.
pub const SAMPLE: usize = 8;

/// Evicts what was not used for longest.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::exhaustive_structs, reason = "named as a value by its users")]
pub struct LruPolicy;

impl EvictionPolicy for LruPolicy {
    fn calculate_score(&self, entry: &CacheEntry) -> f64 {
        -age_seconds(entry)
    }

    fn name(&self) -> &str {
        "LRU"
    }

    fn order(&self) -> Order {
        Order::Recency
    }
}

/// Evicts what is used least often. A count halves with every [`LFU_HALF_LIFE_SECONDS`] without use, so that old
/// favourites leave.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::exhaustive_structs, reason = "named as a value by its users")]
pub struct LfuPolicy;

/// Idleness that halves a count, for [`LfuPolicy`].
pub const LFU_HALF_LIFE_SECONDS: f64 = 3600.0;

impl EvictionPolicy for LfuPolicy {
    fn calculate_score(&self, entry: &CacheEntry) -> f64 {
        entry.metadata.access_count as f64 * (-age_seconds(entry) / LFU_HALF_LIFE_SECONDS).exp2()
    }

    fn name(&self) -> &str {
        "LFU"
    }
}

/// A weighted mean of recency and frequency, each brought to the range from 0 to 1 before they are added.
#[derive(Debug, Clone, Copy)]
pub struct HybridPolicy {
    lru_weight: f64,
    lfu_weight: f64,
}

/// Idleness that halves the recency part of [`HybridPolicy`].
const RECENCY_HALF_LIFE_SECONDS: f64 = 600.0;

impl HybridPolicy {
    /// A policy with these weights.
    ///
    /// # Panics
    /// If the weights do not sum to 1 (within 0.01), or one is negative, which would evict the entries most worth
    /// keeping; [`try_new`](Self::try_new) returns an error instead.
    #[must_use]
    pub fn new(lru_weight: f64, lfu_weight: f64) -> Self {
        assert!(
            (lru_weight + lfu_weight - 1.0).abs() < 0.01,
            "Weights must sum to 1.0"
        );
        assert!(
            lru_weight >= 0.0 && lfu_weight >= 0.0,
            "Weights must not be negative"
        );
        Self {
            lru_weight,
            lfu_weight,
        }
    }

    /// A policy with these weights: neither negative, together 1 (within 0.01).
    ///
    /// # Errors
    /// [`CacheError::Config`] if they are not.
    pub fn try_new(lru_weight: f64, lfu_weight: f64) -> Result<Self> {
        // False for NaN.
        let weights = lru_weight >= 0.0 && lfu_weight >= 0.0;
        if weights && (lru_weight + lfu_weight - 1.0).abs() < 0.01 {
            return Ok(Self {
                lru_weight,
                lfu_weight,
            });
        }
        Err(CacheError::Config {
            field: "eviction_policy",
            reason: format!(
                "has weights {lru_weight} and {lfu_weight}: neither may be negative, and they must sum to 1"
            ),
        })
    }

    /// Recency and frequency count the same.
    #[must_use]
    pub fn default_balanced() -> Self {
        Self {
            lru_weight: 0.5,
            lfu_weight: 0.5,
        }
    }
}

impl EvictionPolicy for HybridPolicy {
    fn calculate_score(&self, entry: &CacheEntry) -> f64 {
        let recency = (-age_seconds(entry) / RECENCY_HALF_LIFE_SECONDS).exp2();
        let doublings = (entry.metadata.access_count as f64).ln_1p();
        let frequency = doublings / (1.0 + doublings);
        self.lru_weight * recency + self.lfu_weight * frequency
    }

    fn name(&self) -> &str {
        "Hybrid LRU+LFU"
    }
}

/// Ranks by [`EntryMetadata::eviction_priority`](crate::EntryMetadata::eviction_priority): what
/// `CacheConfig::enable_ml_eviction` turns on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PriorityPolicy;

impl EvictionPolicy for PriorityPolicy {
    fn calculate_score(&self, entry: &CacheEntry) -> f64 {
        entry.metadata.eviction_priority()
    }

    fn name(&self) -> &str {
        "Learned priority"
    }
}

/// Seconds since the last use, fractions included.
fn age_seconds(entry: &CacheEntry) -> f64 {
    (clock::now() - entry.metadata.last_accessed)
        .as_seconds_f64()
        .max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{EntryMetadata, QueryKey};
    use crate::version::Dependencies;

    fn entry(idle_ms: i64, access_count: u64) -> CacheEntry {
        let now = clock::now();
        CacheEntry {
            key: QueryKey::new("q", &[], "n"),
            data: bytes::Bytes::new(),
            metadata: EntryMetadata {
                size_bytes: 1,
                created_at: now - chrono::Duration::seconds(7200),
                last_accessed: now - chrono::Duration::milliseconds(idle_ms),
                access_count,
                execution_time_ms: 1.0,
            },
            dependencies: Dependencies::default(),
        }
    }

    #[test]
    fn lru_orders_within_a_second() {
        assert!(
            LruPolicy.calculate_score(&entry(900, 1)) < LruPolicy.calculate_score(&entry(100, 1))
        );
    }

    #[test]
    fn lfu_evicts_the_least_used_not_the_most() {
        assert!(
            LfuPolicy.calculate_score(&entry(0, 1)) < LfuPolicy.calculate_score(&entry(0, 1000))
        );
    }

    #[test]
    fn lfu_forgets_old_favourites() {
        let ten_hours = 36_000_000;
        assert!(
            LfuPolicy.calculate_score(&entry(ten_hours, 1000))
                < LfuPolicy.calculate_score(&entry(0, 10))
        );
    }

    #[test]
    fn hybrid_keeps_the_hot_entry_whatever_the_units() {
        let policy = HybridPolicy::default_balanced();
        let (hot, cold) = (entry(1000, 1000), entry(900_000, 1));
        assert!(policy.calculate_score(&cold) < policy.calculate_score(&hot));
        let score = policy.calculate_score(&entry(0, u64::MAX));
        assert!((0.0..=1.0).contains(&score), "{score}");
    }

    #[test]
    #[should_panic(expected = "Weights must not be negative")]
    fn a_negative_weight_is_refused_by_new_too() {
        let _ = HybridPolicy::new(-3.0, 4.0);
    }

    #[test]
    fn impossible_weights_are_an_error() {
        for (lru, lfu) in [
            (-3.0, 4.0),
            (f64::NAN, 1.0),
            (0.5, 0.6),
            (f64::INFINITY, f64::NEG_INFINITY),
        ] {
            assert!(HybridPolicy::try_new(lru, lfu).is_err(), "{lru} {lfu}");
        }
        assert!(HybridPolicy::try_new(0.3, 0.7).is_ok());
    }
}
