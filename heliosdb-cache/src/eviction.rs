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

    /// How the store finds the entry to evict for this policy. A policy that does not override this goes by its scores.
    fn ranking(&self) -> Ranking {
        Ranking::Score
    }
}

/// How the store finds the entry to evict. All but [`Score`](Self::Score) are O(1), ask for no scores, and may refuse
/// the entry that has just come.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Ranking {
    /// By the rule that has saved the most lately, of several that run on a sample of the keys: [`AdaptivePolicy`].
    Adaptive,
    /// The least time saved for each byte: [`CostAwarePolicy`].
    CostAware,
    /// The fewest uses: [`LfuPolicy`].
    Frequency,
    /// A weighted mean of recency and frequency: [`HybridPolicy`].
    Hybrid {
        /// Of recency, from 0 to 1.
        lru_weight: f64,
        /// Of frequency.
        lfu_weight: f64,
    },
    /// The longest time without use: [`LruPolicy`].
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

    fn ranking(&self) -> Ranking {
        Ranking::Recency
    }
}

/// Evicts what is used least often; among entries used as often, what was not used for longest. Counts halve after
/// every 16 uses an entry, so that old favourites leave. Its score, for stores that ask for it, halves with every
/// [`LFU_HALF_LIFE_SECONDS`] without use.
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

    fn ranking(&self) -> Ranking {
        Ranking::Frequency
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
        self.lru_weight * recency(age_seconds(entry))
            + self.lfu_weight * frequency(entry.metadata.access_count as f64)
    }

    fn name(&self) -> &str {
        "Hybrid LRU+LFU"
    }

    fn ranking(&self) -> Ranking {
        Ranking::Hybrid {
            lru_weight: self.lru_weight,
            lfu_weight: self.lfu_weight,
        }
    }
}

/// From 1 for what was just used to 0.
pub(crate) fn recency(age_seconds: f64) -> f64 {
    (-age_seconds / RECENCY_HALF_LIFE_SECONDS).exp2()
}

/// From 0 for what was never used to 1.
pub(crate) fn frequency(uses: f64) -> f64 {
    let doublings = uses.ln_1p();
    doublings / (1.0 + doublings)
}

/// Evicts by the rule that has saved the most time lately: the default.
///
/// Seven rules (recency, frequency with windows of several sizes, reuse distance, time saved for each byte) each run on a
/// small sample of the keys; the cache follows the one whose sample did best, weighing each hit by what computing the
/// answer takes. Where answers differ in cost or size it begins with time saved for each byte. `docs/benchmarks.md`
/// has its hit ratios on recorded loads beside those of other caches.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::exhaustive_structs, reason = "named as a value by its users")]
pub struct AdaptivePolicy;

impl EvictionPolicy for AdaptivePolicy {
    fn calculate_score(&self, entry: &CacheEntry) -> f64 {
        entry.metadata.eviction_priority()
    }

    fn name(&self) -> &str {
        "Adaptive"
    }

    fn ranking(&self) -> Ranking {
        Ranking::Adaptive
    }
}

/// Evicts what saves the least time for each byte: uses * execution time / size, with ageing (GreedyDual-Size-Frequency:
/// Cherkasova, HP Labs 1998; in O(1) by rounding as in CAMP: Ghandeharizadeh et al., Middleware 2014).
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::exhaustive_structs, reason = "named as a value by its users")]
pub struct CostAwarePolicy;

impl EvictionPolicy for CostAwarePolicy {
    fn calculate_score(&self, entry: &CacheEntry) -> f64 {
        entry.metadata.eviction_priority()
    }

    fn name(&self) -> &str {
        "Cost-aware"
    }

    fn ranking(&self) -> Ranking {
        Ranking::CostAware
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
    use bytes::Bytes;

    use super::*;
    use crate::block::{Block, Facts};
    use crate::clock::Clock;
    use crate::types::{EntryMetadata, QueryKey};
    use crate::version::Dependencies;

    fn block(key: &QueryKey) -> Block {
        let dependencies = Dependencies::default();
        let facts = Facts {
            dependencies: dependencies.as_ref(),
            times: None,
            cost_ms: 1.0,
            now: Clock::system().now(),
        };
        Block::new(&key.as_ref(), b"", facts)
    }

    fn entry(idle_ms: i64, access_count: u64) -> CacheEntry {
        let now = clock::now();
        let key = QueryKey::new("q", &[], "n");
        CacheEntry {
            data: Bytes::new().into(),
            block: block(&key),
            key,
            metadata: EntryMetadata {
                size_bytes: 1,
                created_at: now - chrono::Duration::seconds(7200),
                last_accessed: now - chrono::Duration::milliseconds(idle_ms),
                access_count,
                execution_time_ms: 1.0,
            },
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
