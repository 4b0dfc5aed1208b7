//! The database server behind the gateway: its pools, one per (user, database), and its databases.

pub(crate) mod connection;
pub(crate) mod database;
#[cfg(feature = "embedded")]
pub(crate) mod embedded;
pub(crate) mod servers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use heliosdb_cache::{HashedStr, VersionSlots};
use heliosdb_network::connection_pool::{
    AcquireError, ConnectionHint, ConnectionPoolConfig, EnhancedConnectionPool, Lease,
};
use heliosdb_network::postgres::PgTarget;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::advice::PoolAdvisor;
use crate::config::{Config, Invalidation, PoolAdvice, ReplicationConfig};
use crate::error::{ClientError, ErrorKind};
use crate::invalidate::replication::{self, Follower, Plan};
use crate::session::settings::Effective;

use connection::{Baseline, ServerConnection, ServerConnector};
use database::{Database, LoadedCatalog};
use servers::ServerRegistry;

/// A server connection on loan.
pub(crate) type ServerLease = Lease<ServerConnector>;

/// The server behind the gateway.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// Where the URL points; other users and databases of the same server derive from it.
    target: PgTarget,
    /// One user, one database, one connection, no cancel: the server inside this process.
    embedded: bool,
    pool_config: ConnectionPoolConfig,
    /// As it was at the start: bounds what is advised.
    advice: PoolAdvice,
    versions: Arc<VersionSlots>,
    /// Whether rows have slots of their own.
    row_level: bool,
    /// Why a lock: a look-up per client login. Pools are made under it, but making one does no I/O.
    pools: Mutex<BTreeMap<(String, String), Arc<ServerPool>>>,
    databases: Mutex<BTreeMap<String, Arc<Database>>>,
    pub(crate) servers: Arc<ServerRegistry>,
    invalidation: Invalidation,
    replication: ReplicationConfig,
    /// Why a lock: a task is added when a database is first used.
    followers: Mutex<JoinSet<()>>,
    stop: watch::Sender<bool>,
}

/// The connections of one user to one database.
#[derive(Debug)]
pub(crate) struct ServerPool {
    pub(crate) user: String,
    pub(crate) database: Arc<Database>,
    pub(crate) connections: Arc<EnhancedConnectionPool<ServerConnector>>,
    pub(crate) embedded: bool,
    pub(crate) advisor: PoolAdvisor,
    /// What sessions of this pool begin with; known once the first connection stood.
    baseline: ArcSwapOption<Baseline>,
    /// `baseline` may not be true any more.
    defaults_are_old: AtomicBool,
    /// What the server reports to a client with these settings, so that a login needs no server connection.
    /// Why a lock: a look-up per login.
    parameters: Mutex<Vec<KnownParameters>>,
}

/// Startup settings seen before, the defaults they were applied to, and what the server made of them.
type KnownParameters = (Arc<Effective>, Arc<Baseline>, Parameters);

/// Names and values, as the server reports them.
pub(crate) type Parameters = Vec<(String, String)>;

/// How many different sets of startup settings are remembered in each pool.
const PARAMETERS_MAX: usize = 64;

/// How many (user, database) pairs are kept. Each costs two idle tasks; a client can name any database it likes.
const POOLS_MAX: usize = 1000;

impl Upstream {
    pub(crate) fn new(
        target: PgTarget,
        embedded: bool,
        config: &Config,
        versions: &Arc<VersionSlots>,
    ) -> Self {
        Self {
            target,
            embedded,
            pool_config: pool_config(config, embedded),
            advice: config.pool.advice,
            versions: Arc::clone(versions),
            row_level: config.cache.row_level,
            pools: Mutex::default(),
            databases: Mutex::default(),
            servers: Arc::default(),
            invalidation: config.invalidation,
            replication: config.replication.clone(),
            followers: Mutex::default(),
            stop: watch::Sender::new(false),
        }
    }

    /// Sees to it that the writes of others to the database become known, if they can.
    pub(crate) fn follow(&self, database: &Arc<Database>) {
        if !database.follower.claim() {
            return;
        }
        let mut target = self.target.clone();
        database.name.clone_into(&mut target.database);
        let plan = Plan {
            target,
            mode: self.invalidation,
            config: self.replication.clone(),
        };
        let task = replication::run(Arc::clone(database), plan, self.stop.subscribe());
        let mut followers = self.followers.lock();
        while followers.try_join_next().is_some() {}
        followers.spawn(task);
    }

    /// As [`follow`](Self::follow), and waits until it is known whether they can.
    pub(crate) async fn follow_decided(&self, database: &Arc<Database>) {
        self.follow(database);
        database.follower.decided(self.target.connect_timeout).await;
    }

    fn new_database(&self, name: &str) -> Database {
        let (follower, publication) = if self.embedded {
            let why = "the embedded PostgreSQL takes one connection, and has no writer but this";
            (Follower::wire(why), None)
        } else if self.invalidation == Invalidation::Wire {
            (Follower::wire("so configured"), None)
        } else {
            (Follower::new(), Some(self.replication.publication.clone()))
        };
        Database::new(name, &self.versions, follower, publication, self.row_level)
    }

    /// The user and database that the URL names.
    pub(crate) fn target(&self) -> &PgTarget {
        &self.target
    }

    /// True for the server inside this process.
    pub(crate) fn is_embedded(&self) -> bool {
        self.embedded
    }

    /// The pool for a client's user and database.
    pub(crate) fn pool(&self, user: &str, database: &str) -> Result<Arc<ServerPool>, ClientError> {
        // The embedded server has one connection, hence one user and one database for everybody.
        let (user, database) = if self.embedded {
            (&*self.target.user, &*self.target.database)
        } else {
            (user, database)
        };
        let mut pools = self.pools.lock();
        let key = (user.to_owned(), database.to_owned());
        if let Some(pool) = pools.get(&key) {
            return Ok(Arc::clone(pool));
        }
        if pools.len() >= POOLS_MAX {
            pools.retain(|_, pool| Arc::strong_count(pool) > 1);
            if pools.len() >= POOLS_MAX {
                return Err(ClientError::new(
                    ErrorKind::Config,
                    "53300",
                    format!("too many different users and databases in use ({POOLS_MAX})"),
                )
                .fatal());
            }
        }
        let mut target = self.target.clone();
        if target.user != user {
            // Only the URL's user has a password here; another one must be let in without (trust, peer, cert).
            target.password = None;
        }
        user.clone_into(&mut target.user);
        database.clone_into(&mut target.database);
        let connector = ServerConnector::new(
            target,
            Arc::clone(&self.servers),
            Arc::clone(&self.versions),
        );
        let connections =
            EnhancedConnectionPool::with_connector(connector, self.pool_config.clone()).map_err(
                |error| ClientError::new(ErrorKind::Config, "F0000", error.to_string()).fatal(),
            )?;
        let pool = Arc::new(ServerPool {
            user: user.to_owned(),
            database: self.database(database),
            connections,
            embedded: self.embedded,
            advisor: PoolAdvisor::new(
                self.pool_config.max_connections,
                self.pool_config.min_idle,
                self.advice,
            ),
            baseline: ArcSwapOption::empty(),
            defaults_are_old: AtomicBool::new(false),
            parameters: Mutex::default(),
        });
        pools.insert(key, Arc::clone(&pool));
        Ok(pool)
    }

    /// Forgets a pool that never had a connection (an unknown database, a wrong password).
    pub(crate) fn forget(&self, pool: &Arc<ServerPool>) {
        if pool.baseline.load().is_none() {
            self.pools
                .lock()
                .remove(&(pool.user.clone(), pool.database.name.clone()));
        }
    }

    /// All pools, in order of user and database.
    pub(crate) fn pools(&self) -> Vec<Arc<ServerPool>> {
        self.pools.lock().values().cloned().collect()
    }

    /// What sessions begin with may have changed: connections that began with what it was go as they come back.
    pub(crate) fn forget_defaults(&self) {
        for pool in self.pools() {
            pool.defaults_are_old.store(true, Ordering::Release);
            pool.connections.evict_all();
        }
    }

    /// All databases in use, by name.
    pub(crate) fn databases(&self) -> Vec<Arc<Database>> {
        self.databases.lock().values().cloned().collect()
    }

    fn database(&self, name: &str) -> Arc<Database> {
        let mut databases = self.databases.lock();
        if databases.len() >= 2 * POOLS_MAX {
            databases.retain(|_, database| Arc::strong_count(database) > 1);
        }
        Arc::clone(
            databases
                .entry(name.to_owned())
                .or_insert_with(|| Arc::new(self.new_database(name))),
        )
    }

    /// Waits for the clients' last statements, at most until the deadline, and closes all connections.
    pub(crate) async fn drain(&self, deadline: Duration) {
        self.stop.send_replace(true);
        let mut followers = std::mem::take(&mut *self.followers.lock());
        let ended = async { while followers.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(deadline, ended).await;
        let pools = self.pools();
        let drains = pools.iter().map(|pool| pool.connections.drain(deadline));
        futures_util::future::join_all(drains).await;
    }
}

impl ServerPool {
    /// Acquires a connection, preferring one that has the wanted settings in force, and then one that the hint names.
    pub(crate) async fn acquire(
        &self,
        label: u64,
        hint: Option<&ConnectionHint>,
    ) -> Result<ServerLease, AcquireError> {
        if let Some(lease) = self.try_acquire(label, hint) {
            return Ok(lease);
        }
        let acquired = match hint {
            Some(hint) => self.connections.acquire_hinted(label, *hint).await,
            None => self.connections.acquire_labelled(label).await,
        };
        let mut lease = acquired?;
        self.notice(&mut lease.baseline);
        Ok(lease)
    }

    /// What sessions begin with. Opens a connection to find out, if none stood before.
    pub(crate) async fn learn_baseline(&self) -> Result<Arc<Baseline>, AcquireError> {
        if let Some(baseline) = self.known_baseline() {
            return Ok(baseline);
        }
        Ok(Arc::clone(&self.acquire(0, None).await?.baseline))
    }

    /// What sessions begin with, as far as is known.
    pub(crate) fn known_baseline(&self) -> Option<Arc<Baseline>> {
        if self.defaults_are_old.load(Ordering::Acquire) {
            return None;
        }
        self.baseline.load_full()
    }

    /// Acquires a connection if one is idle.
    pub(crate) fn try_acquire(
        &self,
        label: u64,
        hint: Option<&ConnectionHint>,
    ) -> Option<ServerLease> {
        let acquired = match hint {
            Some(hint) => self.connections.try_acquire_hinted(label, hint),
            None => self.connections.try_acquire(label),
        };
        let mut lease = acquired?;
        self.notice(&mut lease.baseline);
        Some(lease)
    }

    /// What the server is known to report to a client with these settings.
    pub(crate) fn known_parameters(
        &self,
        settings: &Arc<Effective>,
    ) -> Option<(Arc<Baseline>, Parameters)> {
        let current = self.known_baseline()?;
        let known = self.parameters.lock();
        known
            .iter()
            .find(|(known, baseline, _)| known == settings && Arc::ptr_eq(baseline, &current))
            .map(|(_, baseline, parameters)| (Arc::clone(baseline), parameters.clone()))
    }

    /// Remembers what the server reports to a client with these settings.
    pub(crate) fn remember_parameters(
        &self,
        settings: &Arc<Effective>,
        baseline: &Arc<Baseline>,
        parameters: Vec<(String, String)>,
    ) {
        let Some(current) = self
            .baseline
            .load_full()
            .filter(|current| **current == **baseline)
        else {
            return;
        };
        let mut known = self.parameters.lock();
        known.retain(|(known, under, _)| known != settings && Arc::ptr_eq(under, &current));
        if known.len() >= PARAMETERS_MAX {
            known.remove(0);
        }
        known.push((Arc::clone(settings), current, parameters));
    }

    /// A connection that begins differently from its siblings means that somebody altered a role, the database or the
    /// server's configuration: the siblings are out of date and go as they come back.
    fn notice(&self, baseline: &mut Arc<Baseline>) {
        let known = self.baseline.load();
        match &*known {
            Some(known) if Arc::ptr_eq(known, baseline) => return,
            // Shared from here on: the next comparison is one of pointers.
            Some(known)
                if known.fingerprint == baseline.fingerprint
                    && known.search_path == baseline.search_path =>
            {
                *baseline = Arc::clone(known);
            }
            Some(_) => {
                tracing::info!(
                    user = self.user,
                    database = self.database.name,
                    "the server's default settings changed"
                );
                self.baseline.store(Some(Arc::clone(baseline)));
                self.connections.evict_all();
            }
            None => self.baseline.store(Some(Arc::clone(baseline))),
        }
        // A connection that is new.
        self.defaults_are_old.store(false, Ordering::Release);
    }

    /// The catalog as it is now; loads it where it is missing or out of date. `None`: nothing can be cached for now.
    ///
    /// `own` is the caller's connection where it holds one: with a single server connection, asking the pool for
    /// another would wait for ourselves.
    pub(crate) async fn catalog(
        &self,
        own: Option<&mut ServerConnection>,
    ) -> Option<Arc<LoadedCatalog>> {
        if let Some(loaded) = self.database.catalog_now() {
            return Some(loaded);
        }
        if !self.database.can_load() {
            return None;
        }
        match own {
            Some(own) => {
                own.statements.unnamed = None;
                self.database.load(&mut own.pg).await
            }
            None => {
                let _only_one = self.database.lock_loading().await;
                if let Some(loaded) = self.database.catalog_now() {
                    return Some(loaded);
                }
                let mut lease = self.acquire(0, None).await.ok()?;
                // A load that is cut short leaves unread replies behind.
                lease.broken = true;
                lease.statements.unnamed = None;
                let loaded = self.database.load(&mut lease.pg).await;
                lease.broken = loaded.is_none();
                loaded
            }
        }
    }

    /// The part of a cache key that says whose defaults a session has.
    pub(crate) fn key_prefix(&self, baseline: &Baseline) -> HashedStr {
        HashedStr::new(&format!(
            "{}\u{0}{}",
            self.database.name, baseline.fingerprint
        ))
    }
}

fn pool_config(config: &Config, embedded: bool) -> ConnectionPoolConfig {
    let mut pool = ConnectionPoolConfig::default();
    pool.max_connections = config.pool.size;
    pool.min_idle = config.pool.min_idle;
    pool.acquire_timeout = config.pool.acquire_timeout;
    pool.max_lifetime = Some(config.pool.max_lifetime);
    pool.idle_timeout = Some(config.pool.idle_timeout);
    pool.health_check_interval_secs = config.pool.health_check_interval.as_secs().max(1);
    pool.connect_timeout = config.upstream.connect_timeout;
    if embedded {
        // Its one connection is the database itself: reopening it costs a start, and nothing can cut it.
        pool.max_connections = 1;
        pool.min_idle = 0;
        pool.max_lifetime = None;
        pool.close_timeout = Duration::from_secs(600);
        pool.idle_timeout = None;
    }
    pool
}
