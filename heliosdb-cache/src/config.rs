//! Configuration of a cache.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::error::{CacheError, Result};
use crate::eviction::{AdaptivePolicy, EvictionPolicy, PriorityPolicy};
use crate::lifetime::Lifetime;

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
    /// Larger answers are not stored, in bytes. Default 16 MiB.
    pub max_result_size: usize,
    /// The largest share of the cache that one entry may take, above 0 and at most 1. Default 0.5.
    pub max_entry_share: f64,
    /// Answers that took less time to compute are not stored, in milliseconds. Default 0.
    pub min_execution_time_ms: f64,
    /// Store an answer only when it is asked for the second time, lately: for loads in which most questions are asked
    /// once, and answers are large. Takes about two bytes for each KiB of the cache. Default false.
    pub doorkeeper: bool,
    /// How long answers may be served, where a caller does not say. Default: until something they depend on is written.
    pub lifetime: Lifetime,
    /// The share, from 0 to 1, by which each time to live is cut short at random, so that answers stored together do not
    /// expire together. Default 0.
    pub ttl_jitter: f64,
    /// How eagerly answers are computed anew before their time is over: beta of XFetch, with 1 the usual and more the
    /// earlier. Default 0, not at all.
    pub refresh_ahead: f64,
    /// Where a Tokio runtime is running when the cache is made, a task of it removes what may not be served any more this
    /// often; elsewhere, call [`sweep`](crate::CacheManager::sweep). Default 10 s; zero for never.
    pub sweep_interval: Duration,
    /// Keep what [`curve`](crate::CacheManager::curve) shows: about 2 MiB, and some nanoseconds a look-up. Default true.
    pub estimate_curve: bool,
    /// What tells the time. Default the system's monotonic clock.
    pub clock: Clock,
    /// Evict by [`EntryMetadata::eviction_priority`](crate::EntryMetadata::eviction_priority) (cost, size, frequency
    /// and recency) instead of by `eviction_policy`. Default false.
    pub enable_ml_eviction: bool,
    /// Who goes first when room is needed. Default [`AdaptivePolicy`].
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
            max_entry_share: 0.5,
            min_execution_time_ms: 0.0,
            doorkeeper: false,
            lifetime: Lifetime::default(),
            ttl_jitter: 0.0,
            refresh_ahead: 0.0,
            sweep_interval: Duration::from_secs(10),
            estimate_curve: true,
            clock: Clock::system(),
            enable_ml_eviction: false,
            eviction_policy: Arc::new(AdaptivePolicy),
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
        // Each written so that NaN is refused.
        if !(self.max_entry_share > 0.0 && self.max_entry_share <= 1.0) {
            return error("max_entry_share", "must be above 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&self.ttl_jitter) {
            return error("ttl_jitter", "must be from 0 to 1");
        }
        if !(0.0..=1000.0).contains(&self.refresh_ahead) {
            return error("refresh_ahead", "must be from 0 to 1000");
        }
        if self.lifetime.ttl.is_some_and(|ttl| ttl.is_zero()) {
            return error("lifetime", "has a time to live of zero");
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
            max_entry_share,
            min_execution_time_ms,
            doorkeeper,
            lifetime,
            ttl_jitter,
            refresh_ahead,
            sweep_interval,
            estimate_curve,
            clock,
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
            .field("max_entry_share", max_entry_share)
            .field("min_execution_time_ms", min_execution_time_ms)
            .field("doorkeeper", doorkeeper)
            .field("lifetime", lifetime)
            .field("ttl_jitter", ttl_jitter)
            .field("refresh_ahead", refresh_ahead)
            .field("sweep_interval", sweep_interval)
            .field("estimate_curve", estimate_curve)
            .field("clock", clock)
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
