//! Printing a configuration, and what a reload changes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;

use super::{
    CacheInTransactions, CacheSection, ClientsConfig, Config, DdlChannel, Eviction, HidbAuth,
    HidbConfig, HidbTls, Invalidation, LogConfig, PoolAdvice, PoolConfig, PoolMode,
    ReplicationConfig, UpstreamConfig,
};

/// What a reload changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Diff {
    /// Keys whose new value is in force.
    pub applied: Vec<String>,
    /// Keys whose new value comes into force with a restart.
    pub needs_restart: Vec<String>,
}

/// A line of `SHOW CONFIG`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Row {
    /// The key, with its section.
    pub name: String,
    /// The value in force; a password is not shown.
    pub value: String,
    /// The default.
    pub default: String,
    /// Whether a reload changes it.
    pub reloadable: bool,
}

/// Keys that a SIGHUP changes; `pool.mode` for the sessions that begin afterwards.
const RELOADABLE: [&str; 63] = [
    "auth.admin_users",
    "auth.file",
    "auth.hba_file",
    "auth.ident_file",
    "auth.known_users_only",
    "auth.query",
    "auth.query_database",
    "auth.query_user",
    "auth.stats_users",
    "auth.type",
    "cache.enabled",
    "cache.max_entry",
    "cache_in_transactions",
    "clients.allow_remote_trust",
    "clients.handover_timeout",
    "clients.idle_timeout",
    "clients.idle_transaction_timeout",
    "clients.ignored_settings",
    "clients.login_notice",
    "clients.login_timeout",
    "clients.max",
    "clients.max_message",
    "clients.max_per_database",
    "clients.max_per_user",
    "clients.notification_queue",
    "clients.query_timeout",
    "clients.shutdown_timeout",
    "clients.transaction_timeout",
    "clients.wait_notice",
    "clients.write_timeout",
    "databases",
    "log.connections",
    "log.disconnections",
    "log.level",
    "log.stats",
    "pool.acquire_timeout",
    "pool.advice",
    "pool.affinity",
    "pool.fast_close",
    "pool.health_check_interval",
    "pool.idle_timeout",
    "pool.max_lifetime",
    "pool.max_per_database",
    "pool.max_per_user",
    "pool.max_prepared_statements",
    "pool.min_idle",
    "pool.mode",
    "pool.prepare_unnamed",
    "pool.prepared_memory",
    "pool.reserve_size",
    "pool.reserve_timeout",
    "pool.size",
    "pool.unused_timeout",
    "stats_period",
    "tls.ca",
    "tls.certificate",
    "tls.direct",
    "tls.key",
    "tls.min_version",
    "tls.mode",
    "upstream.connect_timeout",
    "upstream.outage_timeout",
    "users",
];

impl Config {
    /// All keys with their values, defaults, and whether a reload changes them. By name.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let mut shown = self.clone();
        shown.upstream.url = shown.upstream.url.as_deref().map(without_password);
        let mut rows: Vec<Row> = shown
            .values()
            .into_iter()
            .zip(Self::default().values())
            .map(|((name, value), (_, default))| Row {
                name: name.to_owned(),
                value,
                default,
                reloadable: RELOADABLE.contains(&name),
            })
            .collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows
    }

    /// What changes with `new`, now and with a restart.
    #[must_use]
    pub fn reloadable_diff(&self, new: &Self) -> Diff {
        let mut diff = Diff::default();
        diff.applied
            .extend(changed_names("databases", &self.databases, &new.databases));
        diff.applied
            .extend(changed_names("users", &self.users, &new.users));
        for ((name, old), (_, new)) in self.values().into_iter().zip(new.values()) {
            if old == new || matches!(name, "databases" | "users") {
                continue;
            }
            let list = if RELOADABLE.contains(&name) {
                &mut diff.applied
            } else {
                &mut diff.needs_restart
            };
            list.push(name.to_owned());
        }
        diff
    }

    /// This configuration with those values of `new` that a reload changes.
    #[must_use]
    pub(crate) fn reloaded(&self, new: &Self) -> Self {
        let mut merged = self.clone();
        merged.auth = new.auth.clone();
        merged.tls = new.tls.clone();
        merged.log.level.clone_from(&new.log.level);
        merged.log.connections = new.log.connections;
        merged.log.disconnections = new.log.disconnections;
        merged.log.stats = new.log.stats;
        merged.cache_in_transactions = new.cache_in_transactions;
        merged.cache.enabled = new.cache.enabled;
        merged.cache.max_entry = new.cache.max_entry;
        merged.clients = new.clients.clone();
        merged.databases = new.databases.clone();
        merged.users = new.users.clone();
        merged.stats_period = new.stats_period;
        merged.pool.advice = new.pool.advice;
        merged.pool.affinity = new.pool.affinity;
        merged.pool.max_prepared_statements = new.pool.max_prepared_statements;
        merged.pool.max_per_database = new.pool.max_per_database;
        merged.pool.max_per_user = new.pool.max_per_user;
        merged.pool.min_idle = new.pool.min_idle;
        merged.pool.mode = new.pool.mode;
        merged.pool.prepare_unnamed = new.pool.prepare_unnamed;
        merged.pool.prepared_memory = new.pool.prepared_memory;
        merged.pool.acquire_timeout = new.pool.acquire_timeout;
        merged.pool.max_lifetime = new.pool.max_lifetime;
        merged.pool.idle_timeout = new.pool.idle_timeout;
        merged.pool.fast_close = new.pool.fast_close;
        merged.pool.unused_timeout = new.pool.unused_timeout;
        merged.pool.health_check_interval = new.pool.health_check_interval;
        merged.upstream.connect_timeout = new.upstream.connect_timeout;
        merged.upstream.outage_timeout = new.upstream.outage_timeout;
        merged.pool.reserve_size = new.pool.reserve_size;
        merged.pool.reserve_timeout = new.pool.reserve_timeout;
        merged.pool.size = new.pool.size;
        merged
    }

    /// Every key with its value as the file would hold it, always in the same order. Destructured in full, so that a
    /// new key can't be forgotten here.
    pub(super) fn values(&self) -> Vec<(&'static str, String)> {
        let Self {
            listen,
            reuse_port,
            unix_socket_dir,
            unix_socket_mode,
            pid_file,
            http,
            data,
            stats_period,
            threads,
            invalidation,
            cache_in_transactions,
            replication,
            upstream,
            databases,
            users,
            pool,
            cache,
            clients,
            auth: client_auth,
            tls: client_tls,
            hidb,
            log,
        } = self;
        let ReplicationConfig {
            publication,
            create_publication,
            max_lag,
            lag_probe,
            ddl,
            ddl_poll,
        } = replication;
        let UpstreamConfig {
            url,
            connect_timeout,
            outage_timeout,
        } = upstream;
        let PoolConfig {
            mode,
            size: pool_size,
            min_idle,
            reserve_size,
            reserve_timeout,
            max_per_database,
            max_per_user,
            acquire_timeout,
            max_lifetime,
            idle_timeout,
            unused_timeout,
            fast_close,
            health_check_interval,
            max_prepared_statements,
            prepared_memory,
            prepare_unnamed,
            affinity,
            advice,
        } = pool;
        let CacheSection {
            enabled,
            size: cache_size,
            max_entry,
            min_execution_time,
            max_in_flight,
            flight_timeout,
            eviction,
            row_level,
        } = cache;
        let ClientsConfig {
            max,
            max_per_database: max_clients_per_database,
            max_per_user: max_clients_per_user,
            query_timeout,
            transaction_timeout,
            idle_transaction_timeout,
            idle_timeout: client_idle_timeout,
            write_timeout,
            max_message,
            login_timeout,
            login_notice,
            ignored_settings,
            wait_notice,
            handover_timeout,
            shutdown_timeout,
            notification_queue,
            allow_remote_trust,
        } = clients;
        let HidbConfig {
            listen: hidb_listen,
            auth,
            auth_file,
            tls,
            tls_certificate,
            tls_key,
        } = hidb;
        let LogConfig {
            level,
            file: log_file,
            stderr,
            connections,
            disconnections,
            stats,
        } = log;
        let mut values = client_auth.values();
        values.extend(client_tls.values());
        values.extend([
            ("listen", addresses(listen)),
            ("reuse_port", reuse_port.to_string()),
            ("unix_socket_dir", path(unix_socket_dir.as_deref())),
            ("unix_socket_mode", format!("{unix_socket_mode:04o}")),
            ("pid_file", path(pid_file.as_deref())),
            ("stats_period", duration(*stats_period)),
            ("threads", threads.to_string()),
            (
                "http",
                http.map_or_else(|| "off".to_owned(), |address| address.to_string()),
            ),
            ("data", data.display().to_string()),
            (
                "invalidation",
                match invalidation {
                    Invalidation::Auto => "auto".to_owned(),
                    Invalidation::Replication => "replication".to_owned(),
                    Invalidation::Wire => "wire".to_owned(),
                },
            ),
            (
                "cache_in_transactions",
                match cache_in_transactions {
                    CacheInTransactions::Never => "never".to_owned(),
                    CacheInTransactions::ReadCommitted => "read-committed".to_owned(),
                },
            ),
            ("replication.publication", publication.clone()),
            (
                "replication.create_publication",
                create_publication.to_string(),
            ),
            ("replication.max_lag", duration(*max_lag)),
            ("replication.lag_probe", duration(*lag_probe)),
            (
                "replication.ddl",
                match ddl {
                    DdlChannel::Auto => "auto".to_owned(),
                    DdlChannel::EventTrigger => "event-trigger".to_owned(),
                    DdlChannel::Poll => "poll".to_owned(),
                },
            ),
            ("replication.ddl_poll", duration(*ddl_poll)),
            ("upstream.url", url.clone().unwrap_or_default()),
            ("upstream.connect_timeout", duration(*connect_timeout)),
            ("upstream.outage_timeout", duration(*outage_timeout)),
            ("databases", names(databases)),
            ("users", names(users)),
            (
                "pool.mode",
                match mode {
                    PoolMode::Session => "session".to_owned(),
                    PoolMode::Statement => "statement".to_owned(),
                    PoolMode::Transaction => "transaction".to_owned(),
                },
            ),
            ("pool.size", pool_size.to_string()),
            ("pool.min_idle", min_idle.to_string()),
            ("pool.reserve_size", reserve_size.to_string()),
            ("pool.reserve_timeout", duration(*reserve_timeout)),
            ("pool.max_per_database", count(*max_per_database)),
            ("pool.max_per_user", count(*max_per_user)),
            ("pool.acquire_timeout", duration(*acquire_timeout)),
            ("pool.max_lifetime", duration(*max_lifetime)),
            ("pool.idle_timeout", duration(*idle_timeout)),
            ("pool.unused_timeout", unused_timeout.to_string()),
            ("pool.fast_close", fast_close.to_string()),
            (
                "pool.health_check_interval",
                duration(*health_check_interval),
            ),
            (
                "pool.max_prepared_statements",
                max_prepared_statements.to_string(),
            ),
            ("pool.prepared_memory", size(*prepared_memory)),
            ("pool.prepare_unnamed", prepare_unnamed.to_string()),
            ("pool.affinity", affinity.to_string()),
            (
                "pool.advice",
                match advice {
                    PoolAdvice::Off => "off".to_owned(),
                    PoolAdvice::Advise => "advise".to_owned(),
                    PoolAdvice::Auto => "auto".to_owned(),
                },
            ),
            ("cache.enabled", enabled.to_string()),
            ("cache.size", size(*cache_size)),
            ("cache.max_entry", size(*max_entry)),
            ("cache.min_execution_time", duration(*min_execution_time)),
            ("cache.max_in_flight", max_in_flight.to_string()),
            ("cache.flight_timeout", duration(*flight_timeout)),
            (
                "cache.eviction",
                match eviction {
                    Eviction::Adaptive => "adaptive".to_owned(),
                    Eviction::CostAware => "cost-aware".to_owned(),
                    Eviction::Hybrid => "hybrid".to_owned(),
                    Eviction::Lfu => "lfu".to_owned(),
                    Eviction::Lru => "lru".to_owned(),
                },
            ),
            ("cache.row_level", row_level.to_string()),
            ("clients.max", max.to_string()),
            ("clients.max_per_database", count(*max_clients_per_database)),
            ("clients.max_per_user", count(*max_clients_per_user)),
            ("clients.query_timeout", query_timeout.to_string()),
            (
                "clients.transaction_timeout",
                transaction_timeout.to_string(),
            ),
            (
                "clients.idle_transaction_timeout",
                idle_transaction_timeout.to_string(),
            ),
            ("clients.idle_timeout", client_idle_timeout.to_string()),
            ("clients.write_timeout", write_timeout.to_string()),
            ("clients.max_message", size(*max_message)),
            ("clients.login_timeout", duration(*login_timeout)),
            ("clients.login_notice", login_notice.clone()),
            ("clients.ignored_settings", ignored_settings.join(", ")),
            ("clients.wait_notice", wait_notice.to_string()),
            ("clients.handover_timeout", duration(*handover_timeout)),
            ("clients.shutdown_timeout", duration(*shutdown_timeout)),
            ("clients.notification_queue", size(*notification_queue)),
            ("clients.allow_remote_trust", allow_remote_trust.to_string()),
            ("hidb.listen", addresses(hidb_listen)),
            (
                "hidb.auth",
                match auth {
                    HidbAuth::ScramSha256 => "scram-sha-256".to_owned(),
                    HidbAuth::Trust => "trust".to_owned(),
                },
            ),
            ("hidb.auth_file", path(auth_file.as_deref())),
            (
                "hidb.tls",
                match tls {
                    HidbTls::Allow => "allow".to_owned(),
                    HidbTls::Off => "off".to_owned(),
                    HidbTls::Require => "require".to_owned(),
                },
            ),
            ("hidb.tls_certificate", path(tls_certificate.as_deref())),
            ("hidb.tls_key", path(tls_key.as_deref())),
            ("log.level", level.clone()),
            ("log.file", path(log_file.as_deref())),
            ("log.stderr", stderr.to_string()),
            ("log.connections", connections.to_string()),
            ("log.disconnections", disconnections.to_string()),
            ("log.stats", stats.to_string()),
        ]);
        values
    }
}

/// Whether a reload changes the key.
pub(super) fn is_reloadable(key: &str) -> bool {
    RELOADABLE.contains(&key)
}

fn addresses(addresses: &[SocketAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// The entries of a section that are new, gone or different.
fn changed_names<T: PartialEq>(
    section: &str,
    old: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
) -> Vec<String> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name))
        .map(|name| format!("{section}.{name}"))
        .collect()
}

/// The names of databases or users.
fn names<T>(named: &BTreeMap<String, T>) -> String {
    let names: Vec<&str> = named.keys().map(String::as_str).collect();
    names.join(", ")
}

fn count(count: Option<usize>) -> String {
    count.map_or_else(|| "off".to_owned(), |count| count.to_string())
}

fn path(path: Option<&Path>) -> String {
    path.map(|path| path.display().to_string())
        .unwrap_or_default()
}

fn duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// A size in the largest unit that says it exactly. `ByteSize`'s own text is rounded: two sizes could look the same.
pub(super) fn size(size: ByteSize) -> String {
    let bytes = size.as_u64();
    let (unit, name) = [(30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .map(|(shift, name)| (1 << shift, name))
        .find(|(unit, _)| bytes != 0 && bytes.is_multiple_of(*unit))
        .unwrap_or((1, "B"));
    format!("{} {name}", bytes / unit)
}

/// A server's URL with `***` for its password. What can't be read as a URL isn't shown at all: nobody knows where in
/// it a password is.
pub(super) fn without_password(url: &str) -> String {
    let Ok(mut parsed) = url::Url::parse(url) else {
        return "***".to_owned();
    };
    // A URL without a host can't have its password replaced.
    if parsed.password().is_some() && parsed.set_password(Some("***")).is_err() {
        return "***".to_owned();
    }
    if parsed
        .query_pairs()
        .any(|(name, _)| name.contains("password"))
    {
        let masked: Vec<(String, String)> = parsed
            .query_pairs()
            .map(|(name, value)| {
                let value = if name.contains("password") {
                    "***".into()
                } else {
                    value
                };
                (name.into_owned(), value.into_owned())
            })
            .collect();
        parsed.query_pairs_mut().clear().extend_pairs(masked);
    }
    parsed.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DatabaseConfig, UserConfig};

    /// A valid file in which no key has its default.
    const ALL_CHANGED: &str = r#"
listen = ["127.0.0.1:1", "[::1]:2"]
reuse_port = true
unix_socket_dir = "/run/helios"
unix_socket_mode = "0700"
pid_file = "/run/helios.pid"
http = "off"
data = "/elsewhere"
stats_period = "61s"
threads = 3
invalidation = "wire"
cache_in_transactions = "never"
upstream = { url = "postgres://a@b/c", connect_timeout = "6s", outage_timeout = "9s" }
log = { level = "debug", file = "/var/log/helios.log", stderr = false, connections = true, disconnections = true, stats = true }
[replication]
publication = "changes"
create_publication = true
max_lag = "2s"
lag_probe = "60ms"
ddl = "poll"
ddl_poll = "3s"
[pool]
mode = "session"
size = 21
min_idle = 1
reserve_size = 2
reserve_timeout = "6s"
max_per_database = 30
max_per_user = 31
acquire_timeout = "31s"
max_lifetime = "90m"
idle_timeout = "11m"
unused_timeout = "12m"
fast_close = true
health_check_interval = "31s"
max_prepared_statements = 257
prepared_memory = "9 MiB"
prepare_unnamed = true
affinity = false
advice = "auto"
[cache]
enabled = false
size = "257 MiB"
max_entry = "1000001 B"
min_execution_time = "1500us"
max_in_flight = 10001
flight_timeout = "11s"
eviction = "hybrid"
row_level = false
[clients]
max = 10001
max_per_database = 40
max_per_user = 41
query_timeout = "1m"
transaction_timeout = "2m"
idle_transaction_timeout = "3m"
idle_timeout = "4m"
write_timeout = "5m"
max_message = "1 MiB"
login_timeout = "11s"
login_notice = "hello"
ignored_settings = ["extra_float_digits", "options"]
wait_notice = "7s"
handover_timeout = "32s"
shutdown_timeout = "31s"
notification_queue = "2 MiB"
allow_remote_trust = true
[auth]
type = "hba"
file = "/etc/users"
hba_file = "/etc/hba"
ident_file = "/etc/ident"
query = "SELECT a, b FROM c WHERE a = $1"
query_user = "asker"
query_database = "asked"
known_users_only = true
admin_users = ["ada"]
stats_users = ["bob", "carl"]
[tls]
mode = "verify-full"
certificate = "/etc/chain.pem"
key = "/etc/key.pem"
ca = "/etc/ca.pem"
min_version = "1.3"
direct = false
[hidb]
listen = ["127.0.0.1:3"]
auth = "scram-sha-256"
auth_file = "/etc/users"
tls = "require"
tls_certificate = "/etc/chain.pem"
tls_key = "/etc/key.pem"
"#;

    fn all_changed() -> Config {
        let config = Config::parse(ALL_CHANGED, "f").expect("valid");
        for row in config.rows() {
            if !matches!(&*row.name, "databases" | "users") {
                assert!(row.value != row.default, "{} has its default", row.name);
            }
        }
        config
    }

    #[test]
    fn values_are_shown_as_the_file_holds_them() {
        for config in [Config::default(), all_changed()] {
            let mut file = String::new();
            let mut rows = config.rows();
            rows.sort_by_key(|row| row.name.contains('.'));
            for Row { name, value, .. } in rows {
                let is_number = value.parse::<u64>().is_ok() && name != "unix_socket_mode";
                let is_bare = is_number || value.parse::<bool>().is_ok();
                let line = match name.as_str() {
                    _ if value.is_empty() => continue,
                    "listen"
                    | "hidb.listen"
                    | "auth.admin_users"
                    | "auth.stats_users"
                    | "clients.ignored_settings" => {
                        format!("{name} = [\"{}\"]\n", value.replace(", ", "\", \""))
                    }
                    _ if is_bare => format!("{name} = {value}\n"),
                    _ => format!("{name} = \"{value}\"\n"),
                };
                file.push_str(&line);
            }
            assert_eq!(Config::parse(&file, "f"), Ok(config), "{file}");
        }
    }

    #[test]
    fn a_reload_changes_the_reloadable_keys_and_no_other() {
        let (old, mut new) = (Config::default(), all_changed());
        new.databases
            .insert("d".to_owned(), DatabaseConfig::default());
        new.users.insert("u".to_owned(), UserConfig::default());
        let diff = old.reloadable_diff(&new);
        let mut applied = diff.applied.clone();
        for name in &mut applied {
            if matches!(&**name, "databases.d" | "users.u") {
                name.truncate(name.len() - 2);
            }
        }
        applied.sort();
        assert_eq!(applied, RELOADABLE);
        let merged = old.reloaded(&new);
        assert_eq!(
            merged.reloadable_diff(&new).needs_restart,
            diff.needs_restart
        );
        assert!(merged.reloadable_diff(&new).applied.is_empty());
        assert!(old.reloadable_diff(&merged).needs_restart.is_empty());
        assert_eq!(old.reloadable_diff(&old), Diff::default());
    }

    #[test]
    fn a_change_of_a_few_bytes_is_a_change() {
        let mut new = Config::default();
        new.cache.size = ByteSize::b(new.cache.size.as_u64() + 1);
        let diff = Config::default().reloadable_diff(&new);
        assert_eq!(diff.needs_restart, ["cache.size"]);
        for (bytes, shown) in [
            (0, "0 B"),
            (1000, "1000 B"),
            (1 << 10, "1 KiB"),
            (3 << 29, "1536 MiB"),
            (2 << 40, "2048 GiB"),
        ] {
            assert_eq!(size(ByteSize::b(bytes)), shown);
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        for (url, shown) in [
            ("postgres://u:geheim@h/d", "postgres://u:***@h/d"),
            (
                "postgres://u@h/d?password=geheim&port=1",
                "postgres://u@h/d?password=***&port=1",
            ),
            ("host=h password=geheim", "***"),
            ("postgres://u:geheim@h:99999/d", "***"),
            ("postgres://u@h/d?port=1", "postgres://u@h/d?port=1"),
        ] {
            let mut config = Config::default();
            config.upstream.url = Some(url.to_owned());
            let row = config
                .rows()
                .into_iter()
                .find(|row| row.name == "upstream.url")
                .expect("always shown");
            assert_eq!(row.value, shown);
            assert!(!format!("{config:?}").contains("geheim"));
        }
    }

    #[test]
    fn the_example_entries_are_valid() {
        let text = include_str!("../../../helios.example.toml");
        let mut entries = String::new();
        for example in text.split("\n# [").skip(1) {
            let example = example.split("\n\n").next().unwrap_or_default();
            let lines = example.lines().map(|line| line.trim_start_matches("# "));
            for line in lines.enumerate().filter_map(|(at, line)| match at {
                0 => Some(format!("[{line}")),
                _ => line.contains(" = ").then(|| line.to_owned()),
            }) {
                entries.push_str(&line);
                entries.push('\n');
            }
        }
        let config = Config::parse(&entries, "examples").expect(&entries);
        config.validate().expect(&entries);
        assert_eq!((config.databases.len(), config.users.len()), (1, 1));
    }

    #[test]
    fn the_example_file_documents_every_key_with_its_default() {
        let text = include_str!("../../../helios.example.toml");
        assert_eq!(
            Config::parse(text, "helios.example.toml"),
            Ok(Config::default())
        );
        let mut section = String::new();
        let mut comment = String::new();
        let mut documented = Vec::new();
        let mut is_example = false;
        for line in text.lines() {
            if line.is_empty() {
                comment.clear();
                is_example = false;
            } else if let Some(name) = line.strip_prefix("# [") {
                // An entry of a section in which users choose the names.
                let (name, _) = name.split_once('.').expect("a section and a name");
                documented.push((name.to_owned(), comment.contains("(reload)")));
                is_example = true;
            } else if is_example {
            } else if let Some(name) = line.strip_prefix('[') {
                section = name.replace(']', ".");
            } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ")
                && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            {
                let marked = comment.contains("(reload)");
                documented.push((format!("{section}{key}"), marked));
                assert!(!comment.is_empty(), "{section}{key} has no comment");
                comment.clear();
            } else {
                comment.push_str(line);
            }
        }
        documented.sort();
        let keys: Vec<(String, bool)> = Config::default()
            .rows()
            .into_iter()
            .map(|row| (row.name, row.reloadable))
            .collect();
        assert_eq!(documented, keys);
    }
}
