//! The configuration: `helios.toml`, over it the environment, over that the flags.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Addresses for PostgreSQL clients. Default `127.0.0.1:6432`.
    pub listen: Vec<SocketAddr>,
    /// Address for `/metrics` and `/health`; absent: none. Default `127.0.0.1:6480`.
    #[serde(skip_serializing_if = "Option::is_none", with = "http")]
    pub http: Option<SocketAddr>,
    /// Folder of the embedded PostgreSQL's data. Default `./helios-data`.
    pub data: PathBuf,
    /// How writes reach the cache.
    pub invalidation: Invalidation,
    /// The server behind the gateway.
    pub upstream: UpstreamConfig,
    /// Server connections.
    pub pool: PoolConfig,
    /// Cached answers.
    pub cache: CacheSection,
    /// Client connections.
    pub clients: ClientsConfig,
    /// What is logged.
    pub log: LogConfig,
}

/// How writes reach the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Invalidation {
    /// All writes come through this gateway.
    Wire,
}

/// The server behind the gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct UpstreamConfig {
    /// `postgres://user:password@host:port/database`. Absent: the embedded PostgreSQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Bound on connecting and logging in. Default 5 s.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
}

/// When a client's server connection goes back to the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PoolMode {
    /// When the client leaves.
    Session,
    /// When its transaction ends.
    Transaction,
}

/// Server connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PoolConfig {
    /// When a client's server connection goes back to the pool. Default `transaction`.
    pub mode: PoolMode,
    /// Server connections for each user and database, at least 1. Default 20.
    pub size: usize,
    /// Idle ones kept ready. Default 0.
    pub min_idle: usize,
    /// How long a client waits for one. Default 30 s.
    #[serde(with = "humantime_serde")]
    pub acquire_timeout: Duration,
    /// Age at which one is replaced. Default 1 h.
    #[serde(with = "humantime_serde")]
    pub max_lifetime: Duration,
    /// Idleness after which one is closed. Default 10 min.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// Time between two health checks of the idle ones, in whole seconds. Default 30 s.
    #[serde(with = "humantime_serde")]
    pub health_check_interval: Duration,
    /// Prepared statements kept on each. Default 256, at least 1.
    pub max_prepared_statements: usize,
}

/// Who is evicted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Eviction {
    /// A mean of recency and frequency.
    Hybrid,
    /// Least frequently used.
    Lfu,
    /// Least recently used.
    Lru,
}

/// Cached answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct CacheSection {
    /// Whether answers are cached. Default true.
    pub enabled: bool,
    /// Bound on the memory of all answers. Default 256 MiB.
    pub size: ByteSize,
    /// Larger answers are not cached. Default 1 MiB.
    pub max_entry: ByteSize,
    /// Answers that came faster are not cached. Default 0.
    #[serde(with = "humantime_serde")]
    pub min_execution_time: Duration,
    /// Different statements being answered at the same time; beyond it they are not cached. Default 10 000.
    pub max_in_flight: usize,
    /// How long a client waits for another's answer before it asks the server itself. Default 10 s.
    #[serde(with = "humantime_serde")]
    pub flight_timeout: Duration,
    /// Who is evicted first. Default `lru`.
    pub eviction: Eviction,
}

/// Client connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ClientsConfig {
    /// Clients at the same time. Default 10 000.
    pub max: usize,
    /// Bound on a client's login. Default 10 s.
    #[serde(with = "humantime_serde")]
    pub login_timeout: Duration,
    /// How long a stop waits for open transactions. Default 30 s.
    #[serde(with = "humantime_serde")]
    pub shutdown_timeout: Duration,
    /// Clients are not authenticated by this version. Listening on an address that others can reach needs this.
    /// Default false.
    pub allow_remote_trust: bool,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,heliosdb_network=debug`. Default `info`.
    pub level: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 6432))],
            http: Some(SocketAddr::from(([127, 0, 0, 1], 6480))),
            data: PathBuf::from("./helios-data"),
            invalidation: Invalidation::Wire,
            upstream: UpstreamConfig::default(),
            pool: PoolConfig::default(),
            cache: CacheSection::default(),
            clients: ClientsConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            url: None,
            connect_timeout: Duration::from_secs(5),
        }
    }
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            mode: PoolMode::Transaction,
            size: 20,
            min_idle: 0,
            acquire_timeout: Duration::from_secs(30),
            max_lifetime: Duration::from_secs(3600),
            idle_timeout: Duration::from_secs(600),
            health_check_interval: Duration::from_secs(30),
            max_prepared_statements: 256,
        }
    }
}

impl Default for CacheSection {
    fn default() -> Self {
        Self {
            enabled: true,
            size: ByteSize::mib(256),
            max_entry: ByteSize::mib(1),
            min_execution_time: Duration::ZERO,
            max_in_flight: 10_000,
            flight_timeout: Duration::from_secs(10),
            eviction: Eviction::Lru,
        }
    }
}

impl Default for ClientsConfig {
    fn default() -> Self {
        Self {
            max: 10_000,
            login_timeout: Duration::from_secs(10),
            shutdown_timeout: Duration::from_secs(30),
            allow_remote_trust: false,
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
        }
    }
}

/// An address, or `"off"`.
mod http {
    use std::net::SocketAddr;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        address: &Option<SocketAddr>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match address {
            Some(address) => serializer.collect_str(address),
            None => serializer.serialize_str("off"),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SocketAddr>, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse_http(&text).map_err(serde::de::Error::custom)
    }
}

/// Reads an address, or `off`.
pub(crate) fn parse_http(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|_| format!("{text:?} is neither an address with a port nor \"off\""))
}

/// Why a configuration can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read {file}: {reason}")]
    File {
        /// Its name.
        file: String,
        /// The system's reason.
        reason: String,
    },
    /// The file holds something that can't be understood.
    #[error("{file}:{line}:{column}: {message}")]
    Syntax {
        /// Its name.
        file: String,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong, and what may have been meant.
        message: String,
    },
    /// A value that can't work.
    #[error("{key} = {value}: {reason}")]
    Value {
        /// The key, with its section.
        key: &'static str,
        /// Its value.
        value: String,
        /// Why it can't work, and what to do.
        reason: String,
    },
}

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
const RELOADABLE: [&str; 8] = [
    "cache.enabled",
    "cache.max_entry",
    "clients.allow_remote_trust",
    "clients.login_timeout",
    "clients.max",
    "clients.shutdown_timeout",
    "pool.max_prepared_statements",
    "pool.mode",
];

impl Config {
    /// Reads a configuration file's text. `file` is its name, for the errors.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] with the place, and for an unknown key the nearest valid one.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let before = text.get(..at).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let column = before.len() - before.rfind('\n').map_or(0, |newline| newline + 1) + 1;
            ConfigError::Syntax {
                file: file.to_owned(),
                line,
                column,
                message: with_nearest_key(error.message()),
            }
        })
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`ConfigError::File`] if it can't be read, [`ConfigError::Syntax`] if it can't be understood.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, &file),
            Err(error) => Err(ConfigError::File {
                file,
                reason: error.to_string(),
            }),
        }
    }

    /// Checks what a single value does not show.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |key, value: &dyn std::fmt::Display, reason: &str| {
            Err(ConfigError::Value {
                key,
                value: value.to_string(),
                reason: reason.to_owned(),
            })
        };
        if self.listen.is_empty() {
            return wrong("listen", &"[]", "name at least one address");
        }
        if let Some(open) = self
            .listen
            .iter()
            .find(|address| !address.ip().is_loopback())
            && !self.clients.allow_remote_trust
        {
            let reason = "others can reach this address, and clients are not authenticated by this version. Listen on \
                          127.0.0.1, or set clients.allow_remote_trust = true if the network keeps strangers out";
            return wrong("listen", open, reason);
        }
        if self.pool.size == 0 {
            return wrong("pool.size", &0, "must be at least 1");
        }
        if self.pool.min_idle > self.pool.size {
            return wrong(
                "pool.min_idle",
                &self.pool.min_idle,
                "must not be larger than pool.size",
            );
        }
        if self.pool.max_prepared_statements == 0 {
            return wrong("pool.max_prepared_statements", &0, "must be at least 1");
        }
        if self.cache.max_entry.as_u64() > self.cache.size.as_u64() / 2 {
            return wrong(
                "cache.max_entry",
                &self.cache.max_entry,
                "must not be larger than half of cache.size",
            );
        }
        if self.cache.max_in_flight == 0 {
            return wrong("cache.max_in_flight", &0, "must be at least 1");
        }
        if self.clients.max == 0 {
            return wrong("clients.max", &0, "must be at least 1");
        }
        for (key, duration) in [
            ("cache.flight_timeout", self.cache.flight_timeout),
            ("clients.login_timeout", self.clients.login_timeout),
            ("pool.acquire_timeout", self.pool.acquire_timeout),
            (
                "pool.health_check_interval",
                self.pool.health_check_interval,
            ),
            ("pool.idle_timeout", self.pool.idle_timeout),
            ("pool.max_lifetime", self.pool.max_lifetime),
            ("upstream.connect_timeout", self.upstream.connect_timeout),
        ] {
            if duration.is_zero() {
                return wrong(key, &"0s", "must be longer than zero");
            }
        }
        Ok(())
    }

    /// All keys with their values, defaults, and whether a reload changes them.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let values = flatten(&self.without_password());
        let defaults = flatten(&Self::default());
        let mut rows: Vec<Row> = values
            .into_iter()
            .map(|(name, value)| {
                let default = defaults
                    .iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| value.clone());
                let reloadable = RELOADABLE.contains(&name.as_str());
                Row {
                    name,
                    value,
                    default: default.unwrap_or_default(),
                    reloadable,
                }
            })
            .collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows
    }

    /// What changes with `new`, now and with a restart.
    #[must_use]
    pub fn reloadable_diff(&self, new: &Self) -> Diff {
        let (old, new) = (flatten(self), flatten(new));
        let mut diff = Diff::default();
        for name in old.iter().chain(&new).map(|(name, _)| name) {
            let value =
                |rows: &[(String, String)]| rows.iter().find(|(known, _)| known == name).cloned();
            let known = diff.applied.contains(name) || diff.needs_restart.contains(name);
            if value(&old) != value(&new) && !known {
                let list = if RELOADABLE.contains(&name.as_str()) {
                    &mut diff.applied
                } else {
                    &mut diff.needs_restart
                };
                list.push(name.clone());
            }
        }
        diff
    }

    /// This configuration with those values of `new` that a reload changes.
    #[must_use]
    pub(crate) fn reloaded(&self, new: &Self) -> Self {
        let mut merged = self.clone();
        merged.cache.enabled = new.cache.enabled;
        merged.cache.max_entry = new.cache.max_entry;
        merged.clients = new.clients.clone();
        merged.pool.max_prepared_statements = new.pool.max_prepared_statements;
        merged.pool.mode = new.pool.mode;
        merged
    }

    fn without_password(&self) -> Self {
        let mut shown = self.clone();
        if let Some(url) = &mut shown.upstream.url
            && let Ok(mut parsed) = url::Url::parse(url)
        {
            if parsed.password().is_some() {
                let _ = parsed.set_password(Some("***"));
            }
            if parsed.query_pairs().any(|(name, _)| name == "password") {
                parsed.set_query(None);
            }
            *url = parsed.to_string();
        }
        shown
    }
}

/// `section.key` and value, as they would stand in the file.
fn flatten(config: &Config) -> Vec<(String, String)> {
    let Ok(toml::Value::Table(table)) = toml::Value::try_from(config) else {
        return Vec::new();
    };
    let mut rows = Vec::new();
    for (name, value) in table {
        match value {
            toml::Value::Table(section) => {
                rows.extend(
                    section
                        .into_iter()
                        .map(|(key, value)| (format!("{name}.{key}"), plain(&value))),
                );
            }
            value => rows.push((name, plain(&value))),
        }
    }
    rows
}

fn plain(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Adds to an error about an unknown key the valid key that is most like it.
fn with_nearest_key(message: &str) -> String {
    let mut text = message.trim_end().to_owned();
    let mut quoted = message.split('`').skip(1).step_by(2);
    if !(message.starts_with("unknown field") || message.starts_with("unknown variant")) {
        return text;
    }
    let Some(unknown) = quoted.next() else {
        return text;
    };
    let nearest = quoted
        .map(|known| (strsim::jaro_winkler(unknown, known), known))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.7);
    if let Some((_, nearest)) = nearest {
        let _ = write!(text, "; did you mean `{nearest}`?");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_with_its_place_and_the_nearest_valid_one() {
        let error = Config::parse("[pool]\nsize = 5\nmin_idel = 1\n", "helios.toml")
            .expect_err("unknown key");
        let text = error.to_string();
        assert!(
            text.starts_with("helios.toml:3:1: unknown field `min_idel`"),
            "{text}"
        );
        assert!(text.ends_with("did you mean `min_idle`?"), "{text}");
    }

    #[test]
    fn values_are_read_with_units() {
        let text = "http = \"off\"\n[cache]\nsize = \"1 GiB\"\n[pool]\nacquire_timeout = \"250ms\"\nmode = \"session\"\n";
        let config = Config::parse(text, "f").expect("valid");
        assert_eq!(config.http, None);
        assert_eq!(config.cache.size, ByteSize::gib(1));
        assert_eq!(config.pool.acquire_timeout, Duration::from_millis(250));
        assert_eq!(config.pool.mode, PoolMode::Session);
    }

    #[test]
    fn listening_to_the_world_must_be_asked_for() {
        let mut config = Config::default();
        config.listen = vec!["0.0.0.0:6432".parse().expect("address")];
        assert!(
            config
                .validate()
                .expect_err("open")
                .to_string()
                .contains("allow_remote_trust")
        );
        config.clients.allow_remote_trust = true;
        config.validate().expect("asked for");
    }

    #[test]
    fn impossible_values_are_named() {
        let mut config = Config::default();
        config.pool.size = 0;
        assert!(
            config
                .validate()
                .expect_err("zero")
                .to_string()
                .starts_with("pool.size = 0")
        );
    }

    #[test]
    fn passwords_are_not_shown() {
        let mut config = Config::default();
        config.upstream.url = Some("postgres://u:geheim@h/d".to_owned());
        let rows = config.rows();
        assert!(rows.iter().all(|row| !row.value.contains("geheim")));
        assert!(
            rows.iter()
                .any(|row| row.name == "upstream.url" && row.value.contains("u:***@h"))
        );
    }

    #[test]
    fn a_reload_says_what_it_changes_and_what_it_does_not() {
        let old = Config::default();
        let mut new = old.clone();
        new.clients.max = 7;
        new.pool.size = 7;
        let diff = old.reloadable_diff(&new);
        assert_eq!(diff.applied, ["clients.max"]);
        assert_eq!(diff.needs_restart, ["pool.size"]);
        let merged = old.reloaded(&new);
        assert_eq!((merged.clients.max, merged.pool.size), (7, 20));
        assert!(
            merged.reloadable_diff(&new).applied.is_empty(),
            "all that is reloadable was taken over"
        );
    }

    #[test]
    fn the_example_file_holds_the_defaults() {
        let text = include_str!("../../helios.example.toml");
        assert_eq!(
            Config::parse(text, "helios.example.toml").expect("valid"),
            Config::default()
        );
        for row in Config::default().rows() {
            let key = row.name.rsplit('.').next().expect("a name");
            assert!(text.contains(key), "{key} is not documented");
        }
    }
}
