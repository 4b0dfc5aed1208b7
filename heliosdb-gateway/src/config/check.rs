//! Refusing what can't work, before anything starts.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;
use heliosdb_network::postgres::PgTarget;

use crate::admin;

use super::{Config, ConfigError, HidbAuth, HidbTls, Invalidation, show};

/// With less, programs that prepare what they use would not run.
const PREPARED_MEMORY_MIN: ByteSize = ByteSize::mib(1);

impl Config {
    /// Checks what reading a single value does not show.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the key, its value and the reason.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_addresses()?;
        self.validate_upstream()?;
        self.validate_databases()?;
        self.validate_users()?;
        self.validate_replication()?;
        self.validate_threads()?;
        longer_than_zero("stats_period", self.stats_period)?;
        self.validate_pool()?;
        self.validate_cache()?;
        self.validate_clients()?;
        self.auth.validate(&self.tls, &self.databases)?;
        self.tls.validate()?;
        self.validate_hidb()?;
        validate_level(&self.log.level)
    }

    fn validate_addresses(&self) -> Result<(), ConfigError> {
        if self.listen.is_empty() {
            return refuse("listen", "[]", "name at least one address");
        }
        self.auth
            .check_open(&self.listen, self.clients.allow_remote_trust)?;
        // Port 0 asks the system for any free port, so it can be asked for twice.
        for (at, address) in self.listen.iter().enumerate() {
            if address.port() != 0 && self.listen[..at].contains(address) {
                return refuse("listen", address, "is named twice");
            }
        }
        match self.http {
            Some(http) if http.port() != 0 && self.listen.contains(&http) => {
                refuse("http", http, "is also in `listen`")
            }
            _ => Ok(()),
        }
    }

    fn validate_upstream(&self) -> Result<(), ConfigError> {
        if let Some(url) = &self.upstream.url
            && let Err(error) = PgTarget::from_url(url)
        {
            return refuse("upstream.url", show::without_password(url), error);
        }
        longer_than_zero("upstream.connect_timeout", self.upstream.connect_timeout)
    }

    /// True if there is no server but the one inside this process.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        self.upstream.url.is_none() && self.databases.is_empty()
    }

    fn validate_databases(&self) -> Result<(), ConfigError> {
        for (name, database) in &self.databases {
            if admin::is_console(name) {
                return refuse("databases", name, "is the admin console's name");
            }
            match &database.url {
                Some(url) => {
                    if let Err(error) = PgTarget::from_url(url) {
                        let shown = format!("{name}: {}", show::without_password(url));
                        return refuse("databases.*.url", shown, error);
                    }
                }
                None if self.upstream.url.is_none() => {
                    let reason = "is needed where there is no upstream.url";
                    return refuse("databases.*.url", format!("{name}: none"), reason);
                }
                None => {}
            }
            let counts = [
                ("databases.*.pool_size", database.pool_size),
                ("databases.*.max_connections", database.max_connections),
                ("databases.*.max_clients", database.max_clients),
            ];
            for (key, count) in counts {
                at_least_one(key, count.unwrap_or(1))?;
            }
            let size = database.pool_size.unwrap_or(self.pool.size);
            if database.min_idle.is_some_and(|min_idle| min_idle > size) {
                let reason = format!("must not be larger than its pool_size, {size}");
                return refuse("databases.*.min_idle", name, reason);
            }
            let patience = database
                .acquire_timeout
                .unwrap_or(self.pool.acquire_timeout);
            longer_than_zero("databases.*.acquire_timeout", patience)?;
            let lifetime = database.max_lifetime.unwrap_or(self.pool.max_lifetime);
            longer_than_zero("databases.*.max_lifetime", lifetime)?;
        }
        Ok(())
    }

    fn validate_users(&self) -> Result<(), ConfigError> {
        for user in self.users.values() {
            for (key, count) in [
                ("users.*.pool_size", user.pool_size),
                ("users.*.max_connections", user.max_connections),
                ("users.*.max_clients", user.max_clients),
            ] {
                at_least_one(key, count.unwrap_or(1))?;
            }
            let patience = user.acquire_timeout.unwrap_or(self.pool.acquire_timeout);
            longer_than_zero("users.*.acquire_timeout", patience)?;
        }
        Ok(())
    }

    fn validate_replication(&self) -> Result<(), ConfigError> {
        let replication = &self.replication;
        if self.reuse_port && self.invalidation != Invalidation::Replication {
            let reason = "the writes of the other processes have to be seen: set invalidation = \"replication\"";
            return refuse("reuse_port", true, reason);
        }
        if self.invalidation == Invalidation::Replication && self.is_embedded() {
            let reason = "the embedded PostgreSQL has no replication: name a server by upstream.url, or leave it at auto";
            return refuse("invalidation", "replication", reason);
        }
        if replication.publication.is_empty() || replication.publication.contains('\0') {
            let shown = format!("{:?}", replication.publication);
            return refuse("replication.publication", shown, "is no name");
        }
        longer_than_zero("replication.ddl_poll", replication.ddl_poll)?;
        if replication.max_lag < LAG_MIN {
            let shown = humantime::format_duration(replication.max_lag);
            let reason = format!("must be at least {}", humantime::format_duration(LAG_MIN));
            return refuse("replication.max_lag", shown, reason);
        }
        let probe = replication.lag_probe;
        if probe < PROBE_MIN || probe > replication.max_lag / 4 {
            let reason = "must be at least 1ms and at most a quarter of replication.max_lag";
            return refuse(
                "replication.lag_probe",
                humantime::format_duration(probe),
                reason,
            );
        }
        Ok(())
    }

    fn validate_threads(&self) -> Result<(), ConfigError> {
        if self.threads > THREADS_MAX {
            let reason = format!("must be at most {THREADS_MAX}");
            return refuse("threads", self.threads, reason);
        }
        Ok(())
    }

    fn validate_pool(&self) -> Result<(), ConfigError> {
        let pool = &self.pool;
        at_least_one("pool.size", pool.size)?;
        at_least_one("pool.max_prepared_statements", pool.max_prepared_statements)?;
        if pool.prepared_memory < PREPARED_MEMORY_MIN {
            let reason = format!("must be at least {}", show::size(PREPARED_MEMORY_MIN));
            let value = show::size(pool.prepared_memory);
            return refuse("pool.prepared_memory", value, reason);
        }
        if pool.min_idle > pool.size {
            let reason = format!("must not be larger than pool.size, {}", pool.size);
            return refuse("pool.min_idle", pool.min_idle, reason);
        }
        longer_than_zero("pool.acquire_timeout", pool.acquire_timeout)?;
        longer_than_zero("pool.reserve_timeout", pool.reserve_timeout)?;
        longer_than_zero("pool.health_check_interval", pool.health_check_interval)?;
        longer_than_zero("pool.idle_timeout", pool.idle_timeout)?;
        longer_than_zero("pool.max_lifetime", pool.max_lifetime)?;
        if pool.health_check_interval.subsec_nanos() != 0 {
            let shown = humantime::format_duration(pool.health_check_interval);
            return refuse("pool.health_check_interval", shown, "must be whole seconds");
        }
        Ok(())
    }

    fn validate_cache(&self) -> Result<(), ConfigError> {
        let cache = &self.cache;
        at_least_one("cache.max_in_flight", cache.max_in_flight)?;
        longer_than_zero("cache.flight_timeout", cache.flight_timeout)?;
        if usize::try_from(cache.size.as_u64()).is_err() {
            let reason = "is more than this machine can address";
            return refuse("cache.size", show::size(cache.size), reason);
        }
        if cache.max_entry.as_u64() > cache.size.as_u64() / 2 {
            let reason = format!(
                "must not be larger than half of cache.size, {}",
                show::size(cache.size)
            );
            return refuse("cache.max_entry", show::size(cache.max_entry), reason);
        }
        Ok(())
    }

    fn validate_clients(&self) -> Result<(), ConfigError> {
        at_least_one("clients.max", self.clients.max)?;
        let message = self.clients.max_message;
        if !(MESSAGE_MIN..=1 << 30).contains(&message.as_u64()) {
            let reason = "must be at least 10 KB and at most 1 GiB";
            return refuse("clients.max_message", show::size(message), reason);
        }
        let queue = self.clients.notification_queue;
        if queue.as_u64() < NOTIFICATION_QUEUE_MIN || usize::try_from(queue.as_u64()).is_err() {
            let reason = "must be at least 16 KiB";
            return refuse("clients.notification_queue", show::size(queue), reason);
        }
        longer_than_zero("clients.login_timeout", self.clients.login_timeout)
    }
}

impl Config {
    fn validate_hidb(&self) -> Result<(), ConfigError> {
        let hidb = &self.hidb;
        let is_taken = |address: &SocketAddr| {
            address.port() != 0 && (self.listen.contains(address) || self.http == Some(*address))
        };
        for (at, address) in hidb.listen.iter().enumerate() {
            if is_taken(address) || address.port() != 0 && hidb.listen[..at].contains(address) {
                return refuse("hidb.listen", address, "is named twice");
            }
            let is_open = !address.ip().is_loopback() && hidb.auth == HidbAuth::Trust;
            if is_open && !self.clients.allow_remote_trust {
                let reason = "others can reach this address. Set hidb.auth = \"scram-sha-256\", listen on 127.0.0.1, or \
                              set clients.allow_remote_trust = true if the network keeps strangers out";
                return refuse("hidb.listen", address, reason);
            }
        }
        if hidb.auth == HidbAuth::ScramSha256 && hidb.auth_file.is_none() {
            return refuse("hidb.auth", "scram-sha-256", "needs hidb.auth_file");
        }
        if hidb.tls != HidbTls::Off {
            for (key, file) in [
                ("hidb.tls_certificate", &hidb.tls_certificate),
                ("hidb.tls_key", &hidb.tls_key),
            ] {
                if file.is_none() {
                    return refuse(key, "\"\"", "is needed by hidb.tls");
                }
            }
        }
        Ok(())
    }
}

/// As much as a startup packet may take.
const MESSAGE_MIN: u64 = 10_000;

/// More threads than any machine has processors are a mistake.
/// Room for two of the longest notifications.
const NOTIFICATION_QUEUE_MIN: u64 = 16 << 10;
const THREADS_MAX: usize = 1024;

/// A misspelt level would be taken for the name of a module, and nothing would be logged.
fn validate_level(level: &str) -> Result<(), ConfigError> {
    use tracing_subscriber::filter::{EnvFilter, LevelFilter};
    for directive in level.split(',').map(str::trim) {
        let is_bare = !directive.contains(['=', '[']);
        if directive.is_empty() || is_bare && directive.parse::<LevelFilter>().is_err() {
            let reason = format!(
                "{directive:?} is none of error, warn, info, debug, trace, off; for a module, write module=level"
            );
            return refuse("log.level", level, reason);
        }
    }
    match EnvFilter::try_new(level) {
        Ok(_) => Ok(()),
        Err(error) => refuse("log.level", level, error),
    }
}

fn refuse(key: &'static str, value: impl Display, reason: impl Display) -> Result<(), ConfigError> {
    Err(ConfigError::Value {
        key,
        value: value.to_string(),
        reason: reason.to_string(),
    })
}

fn at_least_one(key: &'static str, value: usize) -> Result<(), ConfigError> {
    if value == 0 {
        return refuse(key, 0, "must be at least 1");
    }
    Ok(())
}

fn longer_than_zero(key: &'static str, value: std::time::Duration) -> Result<(), ConfigError> {
    if value.is_zero() {
        return refuse(key, "0s", "must be longer than zero");
    }
    Ok(())
}

/// A shorter bound is not kept up on any server.
const LAG_MIN: Duration = Duration::from_millis(100);
const PROBE_MIN: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let config = Config::parse(text, "f").expect("readable");
        config.validate().expect_err(text).to_string()
    }

    #[test]
    fn the_defaults_can_work() {
        Config::default().validate().expect("valid");
    }

    #[test]
    fn listening_to_the_world_must_be_asked_for() {
        let open = "listen = [\"127.0.0.1:6432\", \"0.0.0.0:6432\"]\n";
        let error = refused(open);
        assert!(
            error.starts_with("listen = 0.0.0.0:6432: ") && error.contains("allow_remote_trust"),
            "{error}"
        );
        let asked = format!("{open}[clients]\nallow_remote_trust = true\n");
        let config = Config::parse(&asked, "f").expect("readable");
        config.validate().expect("asked for");
        assert!(refused("listen = [\"[::]:6432\"]").starts_with("listen = [::]:6432: "));
    }

    #[test]
    fn values_that_cannot_work_are_named_with_their_reason() {
        for (text, error) in [
            ("listen = []", "listen = []: name"),
            (
                "listen = [\"127.0.0.1:1\", \"127.0.0.1:1\"]",
                "listen = 127.0.0.1:1: is named twice",
            ),
            (
                "http = \"127.0.0.1:6432\"",
                "http = 127.0.0.1:6432: is also",
            ),
            (
                "upstream.connect_timeout = \"0s\"",
                "upstream.connect_timeout = 0s: ",
            ),
            ("upstream.url = \"\"", "upstream.url = ***: "),
            (
                "upstream.url = \"mysql://u:geheim@h/d\"",
                "upstream.url = mysql://u:***@h/d: ",
            ),
            (
                "invalidation = \"replication\"",
                "invalidation = replication: the embedded PostgreSQL has no replication",
            ),
            (
                "replication.publication = \"\"",
                "replication.publication = \"\": is no name",
            ),
            (
                "replication.max_lag = \"99ms\"",
                "replication.max_lag = 99ms: must be at least 100ms",
            ),
            (
                "replication.lag_probe = \"251ms\"",
                "replication.lag_probe = 251ms: must be at least 1ms and at most a quarter",
            ),
            (
                "replication.lag_probe = \"0s\"",
                "replication.lag_probe = 0s: must be at least 1ms",
            ),
            (
                "replication.ddl_poll = \"0s\"",
                "replication.ddl_poll = 0s: ",
            ),
            (
                "databases.helios.url = \"postgres://h\"",
                "databases = helios: is the admin console's name",
            ),
            (
                "databases.d.pool_size = 3",
                "databases.*.url = d: none: is needed",
            ),
            (
                "databases.d.url = \"postgres://u:geheim@h/d?x=1\"",
                "databases.*.url = d: postgres://u:***@h/d?x=1: ",
            ),
            (
                "databases.d = { url = \"postgres://h\", pool_size = 0 }",
                "databases.*.pool_size = 0: must be at least 1",
            ),
            (
                "databases.d = { url = \"postgres://h\", pool_size = 2, min_idle = 3 }",
                "databases.*.min_idle = d: must not be larger than its pool_size, 2",
            ),
            ("users.u.max_clients = 0", "users.*.max_clients = 0: "),
            ("threads = 2000", "threads = 2000: must be at most"),
            ("pool.size = 0", "pool.size = 0: must be at least 1"),
            (
                "pool.min_idle = 21",
                "pool.min_idle = 21: must not be larger than pool.size, 20",
            ),
            (
                "pool.acquire_timeout = \"0s\"",
                "pool.acquire_timeout = 0s: ",
            ),
            (
                "reuse_port = true",
                "reuse_port = true: the writes of the other processes have to be seen",
            ),
            (
                "reuse_port = true\ninvalidation = \"wire\"",
                "reuse_port = true: the writes of the other processes have to be seen",
            ),
            ("pool.max_lifetime = \"0s\"", "pool.max_lifetime = 0s: "),
            ("pool.idle_timeout = \"0s\"", "pool.idle_timeout = 0s: "),
            (
                "pool.health_check_interval = \"0s\"",
                "pool.health_check_interval = 0s: ",
            ),
            (
                "pool.health_check_interval = \"1500ms\"",
                "pool.health_check_interval = 1s 500ms: must be whole seconds",
            ),
            (
                "pool.prepared_memory = \"1 kB\"",
                "pool.prepared_memory = 1000 B: must be at least 1 MiB",
            ),
            (
                "pool.max_prepared_statements = 0",
                "pool.max_prepared_statements = 0: ",
            ),
            (
                "cache.max_entry = \"200 MiB\"",
                "cache.max_entry = 200 MiB: must not be larger than half of cache.size, 256 MiB",
            ),
            ("cache.max_in_flight = 0", "cache.max_in_flight = 0: "),
            (
                "cache.flight_timeout = \"0s\"",
                "cache.flight_timeout = 0s: ",
            ),
            ("clients.max = 0", "clients.max = 0: "),
            (
                "clients.max_message = \"2 GiB\"",
                "clients.max_message = 2 GiB: must be at least 10 KB and at most 1 GiB",
            ),
            (
                "clients.notification_queue = \"1 KiB\"",
                "clients.notification_queue = 1 KiB: ",
            ),
            (
                "clients.login_timeout = \"0s\"",
                "clients.login_timeout = 0s: ",
            ),
            (
                "log.level = \"inof\"",
                "log.level = inof: \"inof\" is none of",
            ),
            ("log.level = \"\"", "log.level = : "),
            ("log.level = \"info,a=b=c\"", "log.level = info,a=b=c: "),
        ] {
            let got = refused(text);
            assert!(got.starts_with(error), "{text}: {got}");
            assert!(!got.contains("geheim"), "{got}");
        }
    }

    #[test]
    fn filters_are_levels() {
        for level in [
            "off",
            "WARN",
            "info,heliosdb_network=debug",
            "heliosdb_gateway=trace",
        ] {
            validate_level(level).expect(level);
        }
    }
}
