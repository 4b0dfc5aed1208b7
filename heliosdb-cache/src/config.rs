//! Configuration of a cache.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{CacheError, Result};
use crate::eviction::{EvictionPolicy, LruPolicy, PriorityPolicy};

/// What a [`CacheManager`](crate::CacheManager) goes by.
///
/// ```
/// # use heliosdb_cache::CacheConfig;
/// let mut config = CacheConfig::default();
/// config.max_size_bytes = 16 << 20;
/// config.validate()?;
/// # Ok::<_, heliosdb_cache::CacheError>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct CacheConfig {
    /// Bound on the memory of all entries, in bytes; it holds at every instant. A backend with a smaller capacity of
    /// its own lowers it. Default 256 MiB; 0 stores nothing.
    pub max_size_bytes: usize,
    /// Smaller answers are not stored, in bytes. Default 0.
    pub min_result_size: usize,
    /// Larger answers are not stored, in bytes. Default 16 MiB; an entry never takes more than half of the cache.
    pub max_result_size: usize,
    /// Answers that took less time to compute are not stored, in milliseconds. Default 0.
    pub min_execution_time_ms: f64,
    /// Evict by [`EntryMetadata::eviction_priority`](crate::EntryMetadata::eviction_priority) (cost, size, frequency
    /// and recency) instead of by `eviction_policy`. Default false.
    pub enable_ml_eviction: bool,
    /// Who goes first when room is needed. Default LRU.
    pub eviction_policy: Arc<dyn EvictionPolicy>,
    /// Computations in flight at the same time; more are told to do without the cache. Default 10 000.
    pub max_in_flight: usize,
    /// How long a follower waits for its leader before it computes for itself. Default 10 s.
    pub flight_timeout: Duration,
    /// Number of version slots, as a power of two: `16 << version_slot_bits` bytes. Default 16.
    pub version_slot_bits: u8,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            max_size_bytes: 256 << 20,
            min_result_size: 0,
            max_result_size: 16 << 20,
            min_execution_time_ms: 0.0,
            enable_ml_eviction: false,
            eviction_policy: Arc::new(LruPolicy),
            max_in_flight: 10_000,
            flight_timeout: Duration::from_secs(10),
            version_slot_bits: 16,
        }
    }
}

impl CacheConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`CacheError::Config`] naming the first field that can't work.
    pub fn validate(&self) -> Result<()> {
        let error = |field, reason: &str| {
            Err(CacheError::Config {
                field,
                reason: reason.to_owned(),
            })
        };
        if self.min_result_size > self.max_result_size {
            return error("min_result_size", "is larger than max_result_size");
        }
        if !self.min_execution_time_ms.is_finite() || self.min_execution_time_ms < 0.0 {
            return error("min_execution_time_ms", "must be finite and not negative");
        }
        if self.max_in_flight == 0 {
            return error("max_in_flight", "must be at least 1");
        }
        if self.flight_timeout.is_zero() {
            return error("flight_timeout", "must be longer than zero");
        }
        if !(1..=24).contains(&self.version_slot_bits) {
            return error("version_slot_bits", "must be in 1..=24");
        }
        Ok(())
    }

    pub(crate) fn policy(&self) -> Arc<dyn EvictionPolicy> {
        if self.enable_ml_eviction {
            Arc::new(PriorityPolicy)
        } else {
            Arc::clone(&self.eviction_policy)
        }
    }
}

impl fmt::Debug for CacheConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            max_size_bytes,
            min_result_size,
            max_result_size,
            min_execution_time_ms,
            enable_ml_eviction,
            eviction_policy,
            max_in_flight,
            flight_timeout,
            version_slot_bits,
        } = self;
        f.debug_struct("CacheConfig")
            .field("max_size_bytes", max_size_bytes)
            .field("min_result_size", min_result_size)
            .field("max_result_size", max_result_size)
            .field("min_execution_time_ms", min_execution_time_ms)
            .field("enable_ml_eviction", enable_ml_eviction)
            .field("eviction_policy", &eviction_policy.name())
            .field("max_in_flight", max_in_flight)
            .field("flight_timeout", flight_timeout)
            .field("version_slot_bits", version_slot_bits)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_impossible_values_are_named() {
        CacheConfig::default().validate().expect("defaults");
        let config = CacheConfig {
            min_execution_time_ms: f64::NAN,
            ..CacheConfig::default()
        };
        let error = config.validate().expect_err("NaN");
        assert!(
            error.to_string().contains("min_execution_time_ms"),
            "{error}"
        );
    }
}
