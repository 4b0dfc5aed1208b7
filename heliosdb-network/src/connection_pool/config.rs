//! Configuration of a pool.

use std::time::Duration;

/// What an [`EnhancedConnectionPool`](super::EnhancedConnectionPool) goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionPoolConfig {
    /// Connections at the same time, those being opened and closed included. Default 10, at least 1.
    pub max_connections: usize,
    /// Idle connections kept ready. Default 0, at most `max_connections`.
    pub min_idle: usize,
    /// More connections, beyond `max_connections`, for those who have waited for `reserve_timeout`. They go when nobody waits
    /// any more. Default 0.
    pub reserve_size: usize,
    /// Default 5 s.
    pub reserve_timeout: Duration,
    /// How long an acquire waits. Default 30 s.
    pub acquire_timeout: Duration,
    /// Bound on opening one connection. Default 5 s.
    pub connect_timeout: Duration,
    /// How long an outage is waited out: while no connection lives and none can be opened for a reason that may pass,
    /// whoever acquires waits in the line, within `acquire_timeout`; from when the outage is older than this, all are
    /// told at once. Default 0: the first failure is told.
    pub outage_timeout: Duration,
    /// Connections opened at the same time. Default 4, at least 1.
    pub max_connecting: usize,
    /// Age at which a connection is closed, less up to a tenth by chance. Where there is room, another takes its place
    /// before: one after the other, at eight tenths of this age on the average, so that nobody waits for it and they don't
    /// all come at once. `None`: never. Default 30 min.
    pub max_lifetime: Option<Duration>,
    /// Idleness after which a connection beyond `min_idle` is closed. `None`: never. Default 10 min.
    pub idle_timeout: Option<Duration>,
    /// Seconds between two health checks of the idle connections. Default 30; 0 is an error.
    pub health_check_interval_secs: u64,
    /// Bound on one health check. Default 1 s. A reset gets at least 5 s.
    pub health_check_timeout: Duration,
    /// Bound on closing one; its socket is dropped then. Default 5 s.
    pub close_timeout: Duration,
    /// A connection that was idle for longer is health-checked before it is handed out. Default 30 s.
    pub validation_bypass: Duration,
    /// A connection that is on loan for longer is reported once, with the place where it was acquired. Default `None`:
    /// never; [`leases`](super::EnhancedConnectionPool::leases) shows all at any time.
    pub leak_threshold: Option<Duration>,
}

impl Default for ConnectionPoolConfig {
    fn default() -> Self {
        Self {
            max_connections: 10,
            min_idle: 0,
            reserve_size: 0,
            reserve_timeout: Duration::from_secs(5),
            acquire_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            outage_timeout: Duration::ZERO,
            max_connecting: 4,
            max_lifetime: Some(Duration::from_secs(30 * 60)),
            idle_timeout: Some(Duration::from_secs(10 * 60)),
            health_check_interval_secs: 30,
            health_check_timeout: Duration::from_secs(1),
            close_timeout: Duration::from_secs(5),
            validation_bypass: Duration::from_secs(30),
            leak_threshold: None,
        }
    }
}

/// A field that can't work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid pool configuration: {field} {reason}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// What is wrong with its value.
    pub reason: String,
}

impl ConnectionPoolConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first field that can't work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let error = |field, reason: &str| {
            Err(ConfigError {
                field,
                reason: reason.to_owned(),
            })
        };
        if self.max_connections == 0 {
            return error("max_connections", "must be at least 1");
        }
        if self.min_idle > self.max_connections {
            return error("min_idle", "must not be larger than max_connections");
        }
        if self.max_connecting == 0 {
            return error("max_connecting", "must be at least 1");
        }
        if self.health_check_interval_secs == 0 {
            return error("health_check_interval_secs", "must be at least 1");
        }
        for (field, duration) in [
            ("acquire_timeout", Some(self.acquire_timeout)),
            ("connect_timeout", Some(self.connect_timeout)),
            ("max_lifetime", self.max_lifetime),
            ("idle_timeout", self.idle_timeout),
            ("health_check_timeout", Some(self.health_check_timeout)),
        ] {
            if duration.is_some_and(|duration| duration.is_zero()) {
                return error(field, "must be longer than zero");
            }
        }
        Ok(())
    }

    /// The nearest configuration that can work.
    pub(super) fn clamped(mut self) -> Self {
        let default = Self::default();
        self.max_connections = self.max_connections.max(1);
        self.min_idle = self.min_idle.min(self.max_connections);
        self.max_connecting = self.max_connecting.max(1);
        self.health_check_interval_secs = self.health_check_interval_secs.max(1);
        let at_least = |value: &mut Duration, default: Duration| {
            if value.is_zero() {
                *value = default;
            }
        };
        at_least(&mut self.acquire_timeout, default.acquire_timeout);
        at_least(&mut self.connect_timeout, default.connect_timeout);
        at_least(&mut self.health_check_timeout, default.health_check_timeout);
        self.max_lifetime = self.max_lifetime.filter(|lifetime| !lifetime.is_zero());
        self.idle_timeout = self.idle_timeout.filter(|idle| !idle.is_zero());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_of_zero_is_an_error_and_clamping_mends_it() {
        let config = ConnectionPoolConfig {
            health_check_interval_secs: 0,
            max_connections: 0,
            ..ConnectionPoolConfig::default()
        };
        assert!(config.validate().is_err());
        config.clamped().validate().expect("clamped");
    }
}
