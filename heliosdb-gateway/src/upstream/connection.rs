//! A server connection as the gateway lends it out: the wire plus what is known of its session state.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use heliosdb_cache::VersionSlots;
use heliosdb_network::connection_pool::{Admission, Connector, Disposition, PoolEvent};
use heliosdb_network::error::{HeliosError, Result};
use heliosdb_network::postgres::{Credential, PgConnection, PgTarget, QueryResult};
use parking_lot::Mutex;

use crate::invalidate::wire::{LOOKING_AROUND, strangers};
use crate::session::link::LinkBuffers;
use crate::session::prepared::ServerStatements;
use crate::session::sequences::Sequences;
use crate::session::settings::{Effective, SettingMap};

use crate::clients::{ServerKey, next_id};

use super::places::Member;
use super::servers::{ServerInfo, ServerRegistry};

/// What a new session on the server begins with, before any client asked for anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Baseline {
    /// `search_path` as the server prints it.
    pub(crate) search_path: String,
    /// `default_transaction_isolation` as the server prints it.
    pub(crate) default_isolation: String,
    /// A digest of every setting that a client could set: part of each cache key, since `ALTER ROLE ... SET` changes
    /// answers without any client saying so.
    pub(crate) fingerprint: String,
    /// What the server reports of itself at login, in its order.
    pub(crate) parameters: Vec<(String, String)>,
}

impl Baseline {
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| &**value)
    }
}

/// A server process, told apart from a later one with the same id by the time it began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackendProcess {
    pub(crate) pid: i32,
    /// Seconds since 1970, as the server prints them; absent where the server does not say.
    pub(crate) started: Option<String>,
}

/// One connection to the server.
#[derive(Debug)]
pub(crate) struct ServerConnection {
    pub(crate) pg: PgConnection,
    pub(crate) baseline: Arc<Baseline>,
    /// The server is a standby, which shows commits later than its primary reports them.
    pub(crate) is_standby: bool,
    /// Which run of which server it is to.
    pub(crate) run: u64,
    /// Other sessions of the same user were running statements when it was opened.
    pub(crate) has_strangers: bool,
    /// The settings in force on it beyond the baseline.
    pub(crate) applied: Arc<Effective>,
    pub(crate) statements: ServerStatements,
    /// True once something happened that only `DISCARD ALL` undoes.
    pub(crate) dirty: bool,
    /// True after a fault, and while an exchange that must not be cut short is under way: it can't be lent again.
    pub(crate) broken: bool,
    /// True while a session has it: should the session's task die, nobody knows what is outstanding.
    pub(crate) lent: bool,
    /// What a cancel request for it needs.
    pub(crate) key: Arc<ServerKey>,
    /// The server's process behind it.
    pub(crate) process: BackendProcess,
    pub(crate) info: Arc<ServerInfo>,
    /// Whose values of sequences it has.
    pub(crate) sequences: Sequences,
    /// Empty, with capacity.
    pub(crate) link_buffers: LinkBuffers,
    /// Its place among those that several pools share.
    admission: Admission,
}

/// Opens, checks and cleans the connections of one pool (one user on one database).
#[derive(Debug)]
pub(crate) struct ServerConnector {
    pub(crate) target: PgTarget,
    /// What clients call the database.
    name: String,
    /// What each connection begins with.
    connect_query: Option<String>,
    registry: Arc<ServerRegistry>,
    /// What it shares with other pools.
    pub(crate) member: Arc<Member>,
    no_settings: Arc<Effective>,
    versions: Arc<VersionSlots>,
    pub(super) learnt: Arc<Learnt>,
    run: Arc<ServerRun>,
}

impl ServerConnection {
    /// Runs statements of the gateway's own. A simple query makes the server forget the unnamed statement.
    pub(crate) async fn simple_query(&mut self, sql: &str) -> Result<Vec<QueryResult>> {
        self.statements.unnamed = None;
        self.pg.simple_query(sql).await
    }
}

impl ServerConnector {
    pub(crate) fn new(
        target: PgTarget,
        learnt: Arc<Learnt>,
        name: &str,
        connect_query: Option<String>,
        (registry, member): (Arc<ServerRegistry>, Arc<Member>),
        run: Arc<ServerRun>,
        versions: Arc<VersionSlots>,
    ) -> Self {
        Self {
            run,
            name: name.to_owned(),
            connect_query,
            versions,
            learnt,
            target,
            registry,
            member,
            no_settings: Effective::new(SettingMap::new()),
        }
    }
}

impl ServerConnector {
    /// From now on connections log in with that, unless the target has something of its own.
    pub(crate) fn learn(&self, credential: Credential) {
        self.learnt.learn(credential);
    }

    /// The target, with what its user proves itself with.
    pub(crate) fn login(&self) -> PgTarget {
        self.learnt.login(&self.target)
    }

    fn log_new(&self, pg: &PgConnection) {
        let place = pg.place();
        let place = place
            .address
            .map_or_else(|| place.to_string(), |address| address.to_string());
        let here = pg
            .local_addr()
            .map_or_else(|| "unix".to_owned(), |address| address.to_string());
        tracing::info!(
            "{}/{}@{place} new connection to server (from {here})",
            self.name,
            self.target.user
        );
    }
}

/// What a client proved itself with: what a target has none of, the server may ask for. Shared by all that logs in as
/// the user of a pool.
#[derive(Debug, Default)]
pub(crate) struct Learnt(ArcSwap<Credential>);

impl Learnt {
    fn learn(&self, credential: Credential) {
        if **self.0.load() != credential {
            self.0.store(Arc::new(credential));
        }
    }

    /// A target, with what its user proves itself with.
    pub(crate) fn login(&self, target: &PgTarget) -> PgTarget {
        let mut target = target.clone();
        if target.credential == Credential::None {
            target.credential.clone_from(&self.0.load());
        }
        target
    }
}

/// Which run of a server the answers in memory are from. Shared by all pools of the server's address.
#[derive(Debug, Default)]
pub(crate) struct ServerRun {
    /// Why a lock: taken once a connection.
    last: Mutex<LastRun>,
}

#[derive(Debug, Default)]
struct LastRun {
    /// Counts the changes; the first run is 1.
    number: u64,
    /// When the server was started.
    started: String,
    /// Since when it has been running without a crash, as far as anybody was told: not every role is.
    running_since: Option<String>,
}

impl ServerRun {
    /// Notes what a new connection was told, and returns the number of the run that it is to.
    ///
    /// A crash takes from tables what was acknowledged: all of unlogged ones, and the last commits with
    /// `synchronous_commit = off`. A standby that became the primary may lack the last commits of the one before. Then
    /// nothing in memory is true any more.
    fn note(&self, started: &str, running_since: Option<&str>, versions: &VersionSlots) -> u64 {
        let mut last = self.last.lock();
        let is_crashed = running_since
            .zip(last.running_since.as_deref())
            .is_some_and(|(now, before)| now != before);
        let is_same = last.started == started && !is_crashed;
        if let Some(since) = running_since.filter(|_| !is_same || last.running_since.is_none()) {
            last.running_since = Some(since.to_owned());
        } else if !is_same {
            last.running_since = None;
        }
        if !is_same {
            started.clone_into(&mut last.started);
            last.number += 1;
        }
        if !is_same && last.number > 1 {
            tracing::info!(
                "the server was started anew or another took its place: all cached answers are dropped"
            );
            versions.invalidate_all();
        }
        last.number
    }
}

/// Everything that a client may set, except what [`settings`](crate::session::settings) holds harmless, and what
/// `ALTER ROLE` and `ALTER DATABASE` set: a setting of a library that is not loaded yet is not shown by the server.
const BASELINE: &str = "SELECT pg_catalog.current_setting('search_path'), \
     pg_catalog.current_setting('default_transaction_isolation'), \
     pg_catalog.md5(pg_catalog.string_agg(name || '=' || coalesce(setting, ''), ',' ORDER BY name, setting)), \
     (SELECT extract(epoch FROM backend_start) FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()), \
     extract(epoch FROM pg_catalog.pg_postmaster_start_time()), \
     (SELECT max(extract(epoch FROM backend_start)) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'checkpointer'), \
     pg_catalog.pg_is_in_recovery(), \
     (SELECT count(*) > 0 STRANGERS) \
     FROM (SELECT name, setting FROM pg_catalog.pg_settings \
     WHERE context IN ('user', 'superuser') AND name !~ '^(log_|tcp_)' \
     AND name NOT IN ('application_name', 'client_min_messages') UNION ALL \
     SELECT pg_catalog.format('%s in %s', setrole, setdatabase), pg_catalog.array_to_string(setconfig, ',') \
     FROM pg_catalog.pg_db_role_setting WHERE setrole IN (0, (SELECT oid FROM pg_catalog.pg_roles \
     WHERE rolname = session_user)) AND setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database \
     WHERE datname = pg_catalog.current_database()))) settings";

impl Connector for ServerConnector {
    // Boxed: it changes hands twice in each transaction.
    type Connection = Box<ServerConnection>;

    async fn connect(&self) -> Result<Box<ServerConnection>> {
        let mut pg = PgConnection::connect(&self.login()).await?;
        self.log_new(&pg);
        if let Some(sql) = &self.connect_query {
            pg.simple_query(sql).await?;
        }
        let parameters = pg.parameters().to_vec();
        let question = LOOKING_AROUND.clone() + &BASELINE.replace("STRANGERS", &strangers());
        let results = pg.simple_query(&question).await?;
        let mut row = results
            .into_iter()
            .flat_map(|result| result.rows)
            .next()
            .unwrap_or_default()
            .into_iter();
        let (
            Some(Some(search_path)),
            Some(Some(default_isolation)),
            Some(Some(fingerprint)),
            Some(started),
            Some(Some(server_started)),
            Some(running_since),
            Some(Some(is_standby)),
            Some(Some(has_strangers)),
        ) = (
            row.next(),
            row.next(),
            row.next(),
            row.next(),
            row.next(),
            row.next(),
            row.next(),
            row.next(),
        )
        else {
            return Err(HeliosError::Protocol(
                "the server did not report its settings".to_owned(),
            ));
        };
        let run = self
            .run
            .note(&server_started, running_since.as_deref(), &self.versions);
        let id = next_id();
        let (pid, secret) = (pg.backend_pid(), pg.backend_secret());
        let here = pg.target_here(&self.target);
        let info = self.registry.register(ServerInfo::new(
            id,
            &self.target.user,
            &self.name,
            pid,
            SystemTime::now(),
            pg.place(),
        ));
        Ok(Box::new(ServerConnection {
            pg,
            baseline: Arc::new(Baseline {
                search_path,
                default_isolation,
                fingerprint,
                parameters,
            }),
            is_standby: is_standby == "t",
            run,
            has_strangers: has_strangers == "t",
            applied: Arc::clone(&self.no_settings),
            statements: ServerStatements::default(),
            dirty: false,
            broken: false,
            lent: false,
            key: Arc::new(ServerKey {
                target: here,
                pid,
                secret,
            }),
            process: BackendProcess { pid, started },
            info,
            sequences: Sequences::default(),
            link_buffers: LinkBuffers::default(),
            admission: Admission::default(),
        }))
    }

    async fn admit(&self, is_waited_for: bool) -> Option<Admission> {
        let place = if is_waited_for {
            self.member.take().await
        } else {
            self.member.try_take()?
        };
        Some(Admission::holding(place))
    }

    async fn connect_admitted(&self, admission: Admission) -> Result<Box<ServerConnection>> {
        let mut connection = self.connect().await?;
        connection.admission = admission;
        Ok(connection)
    }

    fn is_crowded(&self) -> bool {
        self.member.is_crowded()
    }

    fn claim(&self, waits_since: Option<Instant>) -> bool {
        self.member.claim(waits_since)
    }

    fn unclaim(&self) {
        self.member.unclaim();
    }

    fn note(&self, event: PoolEvent) {
        let what = match event {
            PoolEvent::Reserve => "taking connection from reserve_pool",
            PoolEvent::GivenUp => "closing because: evicted",
            _ => return,
        };
        tracing::info!("{}/{} {what}", self.name, self.target.user);
    }

    async fn check(&self, connection: &mut Box<ServerConnection>) -> Result<()> {
        connection.statements.unnamed = None;
        connection.pg.check().await
    }

    async fn reset(&self, connection: &mut Box<ServerConnection>) -> Result<()> {
        if connection.pg.transaction_status() != b'I' {
            connection.pg.simple_query("ROLLBACK").await?;
        }
        connection.pg.simple_query("DISCARD ALL").await?;
        if let Some(sql) = &self.connect_query {
            connection.pg.simple_query(sql).await?;
        }
        connection.applied = Arc::clone(&self.no_settings);
        connection.statements.clear();
        connection.sequences = Sequences::default();
        connection.dirty = false;
        Ok(())
    }

    async fn close(&self, mut connection: Box<ServerConnection>) {
        // Nobody is to look for it from here on, however long the goodbye takes.
        connection.statements.clear();
        connection.pg.terminate().await;
    }

    fn disposition(&self, connection: &Box<ServerConnection>) -> Disposition {
        if connection.broken || connection.lent {
            Disposition::Broken
        } else if connection.dirty || connection.pg.transaction_status() != b'I' {
            Disposition::Dirty
        } else {
            Disposition::Clean
        }
    }

    fn is_alive(&self, connection: &mut Box<ServerConnection>) -> bool {
        connection.pg.is_alive()
    }

    fn label(&self, connection: &Box<ServerConnection>) -> u64 {
        connection.applied.label()
    }

    fn has_room(&self, connection: &Box<ServerConnection>) -> bool {
        connection.statements.has_room()
    }
}
