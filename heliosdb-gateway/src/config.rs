//! The configuration: `helios.toml`, over it the environment, over that the flags.
//!
//! The types and their defaults are here; `file` reads them, `check` refuses what can't work, `show` prints them and
//! says what a reload changes. `helios.example.toml` explains every key to the user.

mod auth;
mod check;
mod databases;
mod file;
pub(crate) mod names;
pub mod pgbouncer;
mod show;
mod write;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;

pub(crate) use auth::{Asking, asks_for_user};
pub use auth::{AuthConfig, AuthType, MinVersion, TlsConfig, TlsMode};
pub(crate) use databases::names_database;
pub use databases::{Bound, DatabaseConfig, Databases, UserConfig, Users};
pub use file::ConfigError;
pub(crate) use file::parse_http;
pub use show::{Diff, Row};

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Addresses for PostgreSQL clients. Default `127.0.0.1:6432`.
    pub listen: Vec<SocketAddr>,
    /// Whether other processes may listen on the same addresses, each with a share of the clients. A cancel request that
    /// reaches another process than its client's is lost, and each process has a cache of its own: `invalidation` has to be
    /// `replication`, by which each sees the writes of the others. Default: false.
    pub reuse_port: bool,
    /// Folder of a Unix-domain socket for PostgreSQL clients, named after the port of the first address. Default: none.
    pub unix_socket_dir: Option<PathBuf>,
    /// Its permissions. Default `"0777"`.
    #[serde(deserialize_with = "file::mode")]
    pub unix_socket_mode: u32,
    /// File that holds the process id while the program runs. Default: none.
    pub pid_file: Option<PathBuf>,
    /// Address for `/metrics` and `/health`; `"off"` in the file is `None`: there is none. Default `127.0.0.1:6480`.
    #[serde(deserialize_with = "file::http")]
    pub http: Option<SocketAddr>,
    /// Folder of the embedded PostgreSQL's data. Default `./helios-data`.
    pub data: PathBuf,
    /// How often the averages of the console are taken anew. Default 60 s, longer than zero.
    #[serde(deserialize_with = "file::duration")]
    pub stats_period: Duration,
    /// Threads that serve clients. Default 0: half of the processors, at least one. More than needed cost more than they
    /// bring: waking a thread for one request takes longer than the request.
    pub threads: usize,
    /// How writes reach the cache. Default `auto`.
    pub invalidation: Invalidation,
    /// What is answered from memory inside of transactions. Default `read-committed`.
    pub cache_in_transactions: CacheInTransactions,
    /// The server's replication stream, where writes of others are seen.
    pub replication: ReplicationConfig,
    /// The server behind the gateway.
    pub upstream: UpstreamConfig,
    /// Databases by the names that clients use, where these are not the names of `upstream`'s.
    pub databases: Databases,
    /// Users by name, where something differs for them.
    pub users: Users,
    /// Server connections.
    pub pool: PoolConfig,
    /// Cached answers.
    pub cache: CacheSection,
    /// Client connections.
    pub clients: ClientsConfig,
    /// What clients have to prove.
    pub auth: AuthConfig,
    /// Encryption of their connections.
    pub tls: TlsConfig,
    /// HIDB, HeliosDB's native protocol.
    pub hidb: HidbConfig,
    /// What is logged.
    pub log: LogConfig,
}

/// How writes reach the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Invalidation {
    /// By `replication` where the server allows it, else by `wire`.
    Auto,
    /// The writes of others come over the server's replication stream. Where it can't be followed, nothing is cached.
    Replication,
    /// All writes come through this gateway.
    Wire,
}

/// What is answered from memory inside of transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CacheInTransactions {
    /// Nothing; BEGIN goes to the server at once.
    Never,
    /// Under READ COMMITTED, what stands before the transaction's first write. BEGIN goes to the server with the first
    /// statement that needs it.
    ReadCommitted,
}

impl CacheInTransactions {
    pub(crate) fn defers(self) -> bool {
        self == Self::ReadCommitted
    }
}

/// How DDL of others becomes known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DdlChannel {
    /// By the event trigger where it is installed, else by polling.
    Auto,
    /// By the event trigger `helios_ddl`; without it the server can't be followed.
    EventTrigger,
    /// By polling alone.
    Poll,
}

/// The server's replication stream.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ReplicationConfig {
    /// The publication that is followed. Reads of tables that it leaves out are not cached. Default `helios`.
    pub publication: String,
    /// Whether it is made at the start where it is missing, for all tables with a replica identity, and dropped at a
    /// clean stop. Default false.
    pub create_publication: bool,
    /// No cached answer lacks what was committed so long before it was asked for; beyond it reads go to the server.
    /// Default 1 s, at least 100 ms.
    #[serde(deserialize_with = "file::duration")]
    pub max_lag: Duration,
    /// How often the server is asked for a proof while the cache is used. Default 50 ms, at least 1 ms and at most a
    /// quarter of `max_lag`.
    #[serde(deserialize_with = "file::duration")]
    pub lag_probe: Duration,
    /// How DDL of others becomes known. Default `auto`.
    pub ddl: DdlChannel,
    /// How often the catalogs are looked at. Default 1 s, longer than zero.
    #[serde(deserialize_with = "file::duration")]
    pub ddl_poll: Duration,
}

/// The server behind the gateway.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct UpstreamConfig {
    /// `postgres://user:password@host:port/database`. Absent: the embedded PostgreSQL.
    pub url: Option<String>,
    /// Bound on connecting and logging in, for each connection. Default 5 s, longer than zero.
    #[serde(deserialize_with = "file::duration")]
    pub connect_timeout: Duration,
    /// How long an outage of a server is waited out: statements wait for the server to come back, or for another to take
    /// its place, within `pool.acquire_timeout`. From when the outage is older, they fail at once. Default 10 s; zero: they
    /// fail at once from the beginning.
    #[serde(deserialize_with = "file::duration")]
    pub outage_timeout: Duration,
}

/// When a client's server connection goes back to the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PoolMode {
    /// When the client leaves.
    Session,
    /// When its statement ends. Transactions of several statements are refused.
    Statement,
    /// When its transaction ends.
    Transaction,
}

/// What is done with the advice on a pool's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PoolAdvice {
    /// None is given.
    Off,
    /// `SHOW ADVICE` has it.
    Advise,
    /// It is followed, between `min_idle` and `size`.
    Auto,
}

/// Server connections.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PoolConfig {
    /// When a client's server connection goes back to the pool. Default `transaction`.
    pub mode: PoolMode,
    /// Server connections for each user and database. Default 20, at least 1; the embedded PostgreSQL has one.
    pub size: usize,
    /// Idle ones kept ready. Default 0, at most `size`.
    pub min_idle: usize,
    /// More server connections for each user and database, for clients that have waited `reserve_timeout`. Default 0.
    pub reserve_size: usize,
    /// How long a client waits before the reserve is used. Default 5 s, longer than zero.
    #[serde(deserialize_with = "file::duration")]
    pub reserve_timeout: Duration,
    /// Server connections of all users of a database together. Default: no such bound.
    #[serde(deserialize_with = "file::some_count")]
    pub max_per_database: Option<usize>,
    /// Server connections of a user to all databases together. Default: no such bound.
    #[serde(deserialize_with = "file::some_count")]
    pub max_per_user: Option<usize>,
    /// How long a client waits for one. Default 30 s, longer than zero.
    #[serde(deserialize_with = "file::duration")]
    pub acquire_timeout: Duration,
    /// Age at which one is replaced, less up to a tenth by chance. Default 1 h, longer than zero.
    #[serde(deserialize_with = "file::duration")]
    pub max_lifetime: Duration,
    /// Idleness after which one beyond `min_idle` is closed. Default 10 min, longer than zero.
    #[serde(deserialize_with = "file::duration")]
    pub idle_timeout: Duration,
    /// How long a user's pool for a database is kept that has neither clients nor server connections. Default `off`: for
    /// ever.
    #[serde(deserialize_with = "file::bound")]
    pub unused_timeout: Bound,
    /// Whether a session in session mode whose server connection is to be closed (RECONNECT, another server) ends with its
    /// transaction. Default false: the connection is closed when the session ends.
    pub fast_close: bool,
    /// Time between two health checks of the idle ones, in whole seconds. Default 30 s, at least 1 s.
    #[serde(deserialize_with = "file::duration")]
    pub health_check_interval: Duration,
    /// Prepared statements kept on each; the server pays for their plans. Default 256, at least 1.
    pub max_prepared_statements: usize,
    /// Bound on the memory of all statements that clients have prepared under names: texts, each counted once, and the
    /// names that clients have for them. One client may have an eighth of it. Default 256 MiB, at least 1 MiB.
    #[serde(deserialize_with = "file::size")]
    pub prepared_memory: ByteSize,
    /// Whether the server prepares an unnamed statement that comes again and again only once on each of them, under a
    /// name. The plan is then chosen as for a named one. Default false.
    pub prepare_unnamed: bool,
    /// Whether a client gets, of the idle ones, one that has its statement prepared. Default true.
    pub affinity: bool,
    /// What is done with the advice on `size`. Default `advise`.
    pub advice: PoolAdvice,
}

/// Who is evicted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Eviction {
    /// What saved the least lately, by the rule that did best on a sample of the statements.
    Adaptive,
    /// The least time saved for each byte.
    CostAware,
    /// A mean of recency and frequency.
    Hybrid,
    /// Least frequently used.
    Lfu,
    /// Least recently used.
    Lru,
}

/// Cached answers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct CacheSection {
    /// Whether answers are cached. Default true.
    pub enabled: bool,
    /// Bound on the memory of all answers. Default 256 MiB.
    #[serde(deserialize_with = "file::size")]
    pub size: ByteSize,
    /// Larger answers are not cached. Default 1 MiB, at most half of `size`.
    #[serde(deserialize_with = "file::size")]
    pub max_entry: ByteSize,
    /// Answers that came faster are not cached. Default 0: all are.
    #[serde(deserialize_with = "file::duration")]
    pub min_execution_time: Duration,
    /// Different statements being answered for the cache at the same time; beyond it they are answered uncached.
    /// Default 10 000, at least 1.
    pub max_in_flight: usize,
    /// How long a client waits for another's answer before it asks the server itself. Default 10 s,
    /// longer than zero.
    #[serde(deserialize_with = "file::duration")]
    pub flight_timeout: Duration,
    /// Who is evicted first. Default `adaptive`.
    pub eviction: Eviction,
    /// Whether a read by primary key depends on its row, and not on the whole table. Default true.
    pub row_level: bool,
}

/// Client connections.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ClientsConfig {
    /// Clients at the same time; the next one is refused. Default 10 000, at least 1.
    pub max: usize,
    /// Clients of one database at the same time. Default: no such bound.
    #[serde(deserialize_with = "file::some_count")]
    pub max_per_database: Option<usize>,
    /// Clients of one user at the same time. Default: no such bound.
    #[serde(deserialize_with = "file::some_count")]
    pub max_per_user: Option<usize>,
    /// Bound on a statement, from when the server has it. The client's connection is ended and the statement cancelled.
    /// Default `off`.
    #[serde(deserialize_with = "file::bound")]
    pub query_timeout: Bound,
    /// Bound on a transaction, from its BEGIN or only statement. The client's connection is ended and the transaction rolled
    /// back. Default `off`.
    #[serde(deserialize_with = "file::bound")]
    pub transaction_timeout: Bound,
    /// How long a transaction may be idle. Default `off`.
    #[serde(deserialize_with = "file::bound")]
    pub idle_transaction_timeout: Bound,
    /// How long a client may be idle outside of transactions. Default `off`.
    #[serde(deserialize_with = "file::bound")]
    pub idle_timeout: Bound,
    /// How long a client may take nothing of what a server connection has for it. Default `off`.
    #[serde(deserialize_with = "file::bound")]
    pub write_timeout: Bound,
    /// Longer messages of a client are refused; shorter ones are held in memory until they are complete. Default 1 GiB, as
    /// PostgreSQL's own, and no more than that; at least 10 KB.
    #[serde(deserialize_with = "file::size")]
    pub max_message: ByteSize,
    /// Bound on a client's login. Default 10 s, longer than zero.
    #[serde(deserialize_with = "file::duration")]
    pub login_timeout: Duration,
    /// Told to clients as they are let in. Default: nothing.
    pub login_notice: String,
    /// Settings in a client's startup packet that are left out, by name; with `options` among them also options of another
    /// form than `-c name=value`. Default: none.
    pub ignored_settings: Vec<String>,
    /// How long a client waits for a server connection before it is told so, once for each wait. Default `off`: it is not.
    #[serde(deserialize_with = "file::bound")]
    pub wait_notice: Bound,
    /// How long clients may go on with a process that has handed over to its successor. Default 30 s.
    #[serde(deserialize_with = "file::duration")]
    pub handover_timeout: Duration,
    /// How long a stop waits for open transactions. Default 30 s; zero does not wait.
    #[serde(deserialize_with = "file::duration")]
    pub shutdown_timeout: Duration,
    /// Notifications that wait for a client that listens without a server connection of its own; beyond it the client is
    /// disconnected. For those that begin to listen later. Default 1 MiB, at least 16 KiB.
    #[serde(deserialize_with = "file::size")]
    pub notification_queue: ByteSize,
    /// Whether clients from elsewhere than this machine may be trusted without a proof. Default false.
    pub allow_remote_trust: bool,
}

/// What HIDB clients have to prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum HidbAuth {
    /// That they know the password of a user in `auth_file`.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// Nothing.
    Trust,
}

/// Whether HIDB connections are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum HidbTls {
    /// Those that begin so.
    Allow,
    /// None can be.
    Off,
    /// All; others are turned away.
    Require,
}

/// HIDB, HeliosDB's native protocol.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct HidbConfig {
    /// Addresses; none: nobody is served. Default `127.0.0.1:6433`.
    pub listen: Vec<SocketAddr>,
    /// What clients have to prove. Default `trust`.
    pub auth: HidbAuth,
    /// Users and their secrets, a line each: `"user" "SCRAM-SHA-256$..."` or `"user" "password"`. Needed by `auth`.
    pub auth_file: Option<PathBuf>,
    /// Whether connections are encrypted. Default `off`.
    pub tls: HidbTls,
    /// PEM file with the certificate and those that it rests on. Needed by `tls`.
    pub tls_certificate: Option<PathBuf>,
    /// PEM file with its private key. Needed by `tls`.
    pub tls_key: Option<PathBuf>,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,heliosdb_network=debug`. Default `info`.
    pub level: String,
    /// A file that the log is added to; opened anew by a reload. Default: none.
    pub file: Option<PathBuf>,
    /// Whether the log goes to standard error. Default true.
    pub stderr: bool,
    /// A line for each client that is let in, at level `info`. Default false.
    pub connections: bool,
    /// A line for each client that leaves. Those that are ended have one anyway. Default false.
    pub disconnections: bool,
    /// A line with the averages of all databases, once a `stats_period`. Default false.
    pub stats: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 6432))],
            reuse_port: false,
            unix_socket_dir: None,
            unix_socket_mode: 0o777,
            pid_file: None,
            http: Some(SocketAddr::from(([127, 0, 0, 1], 6480))),
            stats_period: Duration::from_secs(60),
            threads: 0,
            data: PathBuf::from("./helios-data"),
            invalidation: Invalidation::Auto,
            cache_in_transactions: CacheInTransactions::ReadCommitted,
            replication: ReplicationConfig::default(),
            upstream: UpstreamConfig::default(),
            databases: Databases::new(),
            users: Users::new(),
            pool: PoolConfig::default(),
            cache: CacheSection::default(),
            clients: ClientsConfig::default(),
            auth: AuthConfig::default(),
            tls: TlsConfig::default(),
            hidb: HidbConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for ReplicationConfig {
    fn default() -> Self {
        Self {
            publication: "helios".to_owned(),
            create_publication: false,
            max_lag: Duration::from_secs(1),
            lag_probe: Duration::from_millis(50),
            ddl: DdlChannel::Auto,
            ddl_poll: Duration::from_secs(1),
        }
    }
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            url: None,
            connect_timeout: Duration::from_secs(5),
            outage_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            mode: PoolMode::Transaction,
            size: 20,
            min_idle: 0,
            reserve_size: 0,
            reserve_timeout: Duration::from_secs(5),
            max_per_database: None,
            max_per_user: None,
            acquire_timeout: Duration::from_secs(30),
            max_lifetime: Duration::from_secs(3600),
            idle_timeout: Duration::from_secs(600),
            unused_timeout: Bound::Off,
            fast_close: false,
            health_check_interval: Duration::from_secs(30),
            max_prepared_statements: 256,
            prepared_memory: ByteSize::mib(256),
            prepare_unnamed: false,
            affinity: true,
            advice: PoolAdvice::Advise,
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
            eviction: Eviction::Adaptive,
            row_level: true,
        }
    }
}

impl Default for ClientsConfig {
    fn default() -> Self {
        Self {
            max: 10_000,
            max_per_database: None,
            max_per_user: None,
            query_timeout: Bound::Off,
            transaction_timeout: Bound::Off,
            idle_transaction_timeout: Bound::Off,
            idle_timeout: Bound::Off,
            write_timeout: Bound::Off,
            max_message: ByteSize::gib(1),
            login_timeout: Duration::from_secs(10),
            login_notice: String::new(),
            ignored_settings: Vec::new(),
            wait_notice: Bound::Off,
            handover_timeout: Duration::from_secs(30),
            shutdown_timeout: Duration::from_secs(30),
            notification_queue: ByteSize::mib(1),
            allow_remote_trust: false,
        }
    }
}

impl Default for HidbConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 6433))],
            auth: HidbAuth::Trust,
            auth_file: None,
            tls: HidbTls::Off,
            tls_certificate: None,
            tls_key: None,
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            file: None,
            stderr: true,
            connections: false,
            disconnections: false,
            stats: false,
        }
    }
}

impl LogConfig {
    /// Of a program that people look at.
    pub(crate) fn quiet() -> Self {
        Self {
            level: "warn".to_owned(),
            ..Self::default()
        }
    }
}

impl fmt::Debug for UpstreamConfig {
    /// Without the password: configurations end up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamConfig")
            .field("url", &self.url.as_deref().map(show::without_password))
            .field("connect_timeout", &self.connect_timeout)
            .field("outage_timeout", &self.outage_timeout)
            .finish()
    }
}
