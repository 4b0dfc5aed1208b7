//! The database servers behind the gateway: their pools, one per (user, database), and their databases.

pub(crate) mod connection;
pub(crate) mod control;
pub(crate) mod database;
#[cfg(feature = "embedded")]
pub(crate) mod embedded;
mod places;
mod pool;
pub(crate) mod routes;
pub(crate) mod servers;
pub(crate) mod upkeep;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use heliosdb_cache::VersionSlots;
use heliosdb_network::connection_pool::{ConnectionPoolConfig, EnhancedConnectionPool};
use heliosdb_network::error::HeliosError;
use heliosdb_network::postgres::{Credential, PgTarget};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::advice::PoolAdvisor;
use crate::config::{Config, Invalidation, PoolAdvice, PoolMode, ReplicationConfig};
use crate::error::{ClientError, ErrorKind};
use crate::invalidate::replication::{self, Follower, Plan};
use crate::notifications::Listener;

pub(crate) use pool::{Parameters, ServerLease, ServerPool};

use connection::{Learnt, ServerConnector, ServerRun};
use control::Controls;
use database::Database;
use places::Places;
use routes::{Destination, PoolLimits, Routes, server_of};
use servers::ServerRegistry;

/// The servers behind the gateway.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// The server of `upstream.url`, or the embedded one.
    main: Option<PgTarget>,
    routes: ArcSwap<Routes>,
    /// Of pools whose limits are those of `[pool]`.
    pool_config: ArcSwap<ConnectionPoolConfig>,
    /// As it was at the start: bounds what is advised.
    advice: PoolAdvice,
    versions: Arc<VersionSlots>,
    /// Whether rows have slots of their own.
    row_level: bool,
    /// By the user at the server and the database's name for clients.
    /// Why a lock: a look-up per client login. Pools are made under it, but making one does no I/O.
    pools: Mutex<BTreeMap<(String, String), Arc<ServerPool>>>,
    /// What administrators hold up or refuse.
    controls: Controls,
    /// By server and name there.
    databases: Mutex<BTreeMap<(String, String), Arc<Database>>>,
    pub(crate) servers: Arc<ServerRegistry>,
    /// By server.
    runs: Mutex<BTreeMap<String, Arc<ServerRun>>>,
    /// What pools share that have a user or a database in common.
    places: Arc<Places>,
    invalidation: Invalidation,
    replication: ReplicationConfig,
    /// Why a lock: a task is added when a database is first used.
    followers: Mutex<JoinSet<()>>,
    stop: watch::Sender<bool>,
}

/// How many (user, database) pairs are kept. Each costs two idle tasks; a client can name any database it likes.
const POOLS_MAX: usize = 1000;

impl Upstream {
    /// `main` is the server of `upstream.url`, or the embedded one.
    ///
    /// # Errors
    /// A server's URL can't be used.
    pub(crate) fn new(
        main: Option<PgTarget>,
        embedded: bool,
        config: &Config,
        versions: &Arc<VersionSlots>,
    ) -> Result<Self, HeliosError> {
        let routes = Routes::new(main.as_ref(), embedded, config)?;
        Ok(Self {
            main,
            routes: ArcSwap::from_pointee(routes),
            pool_config: ArcSwap::from_pointee(pool_config(config, embedded)),
            advice: config.pool.advice,
            versions: Arc::clone(versions),
            row_level: config.cache.row_level,
            pools: Mutex::default(),
            controls: Controls::default(),
            databases: Mutex::default(),
            servers: Arc::default(),
            runs: Mutex::default(),
            places: Arc::default(),
            invalidation: config.invalidation,
            replication: config.replication.clone(),
            followers: Mutex::default(),
            stop: watch::Sender::new(false),
        })
    }

    /// Takes over what a reload changes: where names lead, and the limits of pools.
    ///
    /// # Errors
    /// A server's URL can't be used; nothing changes then.
    pub(crate) fn reload(&self, config: &Config) -> Result<(), HeliosError> {
        let routes = Routes::new(self.main.as_ref(), self.is_embedded(), config)?;
        let routes = Arc::new(routes);
        self.routes.store(Arc::clone(&routes));
        self.pool_config
            .store(Arc::new(pool_config(config, self.is_embedded())));
        let mut moved = Vec::new();
        let mut pools = self.pools.lock();
        let mut replaced = Vec::new();
        pools.retain(|_, pool| {
            // Where the server's user is not the client's, it is everybody's.
            let Ok(new) = routes.destination(&pool.user, &pool.name) else {
                self.retire(pool);
                moved.push(Arc::clone(pool));
                return false;
            };
            let stays = new.target == pool.connections.connector().target;
            let wanted = self.config_of(&new.limits);
            if stays && wanted == self.sized(pool.connections.config(), &new.limits) {
                pool.adopt(new);
                return true;
            }
            self.retire(pool);
            if !stays {
                moved.push(Arc::clone(pool));
            }
            replaced.push((new, Arc::clone(pool)));
            false
        });
        for (destination, old) in replaced {
            let learnt = Arc::clone(&old.connections.connector().learnt);
            let user = destination.target.user.clone();
            match self.new_pool(destination, &old.name, learnt) {
                Ok(pool) => {
                    let pool = self.put_up(pool);
                    pools.insert((user, old.name.clone()), pool);
                }
                Err(error) => tracing::warn!(%error, "a pool could not be replaced"),
            }
        }
        drop(pools);
        for pool in &moved {
            let why = match routes.destination(&pool.user, &pool.name) {
                Ok(_) => "database configuration changed",
                Err(_) => "database removed",
            };
            tracing::info!("{}/{} closing because: {why}", pool.name, pool.user);
        }
        if !moved.is_empty() {
            // What was asked of one server is no answer of another.
            self.versions.invalidate_all();
        }
        Ok(())
    }

    /// Lets a pool's sessions go elsewhere with their next statement.
    fn retire(&self, pool: &Arc<ServerPool>) {
        pool.is_retired.store(true, Ordering::Release);
        // It keeps nothing ready any more.
        let size = pool.connections.metrics().max;
        let _ = pool.connections.resize(size, 0);
        pool.connections.evict_all();
        if pool.is_held.load(Ordering::Acquire) {
            // Who waits there goes on waiting where the name leads now.
            let connections = Arc::clone(&pool.connections);
            tokio::spawn(async move { connections.drain(Duration::ZERO).await });
        }
        let name = &pool.name;
        self.servers.need_close(|database| database == name);
    }

    /// What a pool with these limits goes by.
    fn config_of(&self, limits: &PoolLimits) -> ConnectionPoolConfig {
        let mut config = self.sized(&self.pool_config.load(), limits);
        if !self.is_embedded() {
            config.acquire_timeout = limits.acquire_timeout;
            config.max_lifetime = Some(limits.max_lifetime);
        }
        config
    }

    /// The same, as large as the limits say.
    fn sized(&self, config: &ConnectionPoolConfig, limits: &PoolLimits) -> ConnectionPoolConfig {
        let mut config = config.clone();
        if !self.is_embedded() {
            config.max_connections = limits.size;
            config.min_idle = limits.min_idle;
            config.reserve_size = limits.reserve_size;
            config.reserve_timeout = limits.reserve_timeout;
        }
        config
    }

    /// Sees to it that the writes of others to the database become known, if they can.
    pub(crate) fn follow(&self, database: &Arc<Database>) {
        let Some(target) = &database.followed_as else {
            return;
        };
        if !database.follower.claim() {
            return;
        }
        let plan = Plan {
            target: target.clone(),
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
        database
            .follower
            .decided(self.pool_config.load().connect_timeout)
            .await;
    }

    fn new_database(&self, destination: &Destination, client_name: &str) -> Database {
        let routes = self.routes.load();
        let name = &destination.target.database;
        let mut followed_as = None;
        let (follower, publication) = if self.is_embedded() {
            let why = "the embedded PostgreSQL takes one connection, and has no writer but this";
            (Follower::wire(why), None)
        } else if self.invalidation == Invalidation::Wire {
            (Follower::wire("so configured"), None)
        } else if destination.can_follow {
            followed_as = routes.following(client_name);
            (Follower::new(), Some(self.replication.publication.clone()))
        } else {
            let why = "the database's url names no user that could follow the server's log";
            match self.invalidation {
                Invalidation::Replication => (Follower::unavailable(why), None),
                _ => (Follower::wire(why), None),
            }
        };
        Database::new(
            name,
            &server_of(&destination.target),
            &self.versions,
            follower,
            publication,
            followed_as,
            self.row_level,
        )
    }

    /// The server of `upstream.url`, the embedded one, or else that of the first database.
    pub(crate) fn main_target(&self) -> Option<PgTarget> {
        self.main.clone().or_else(|| {
            self.routes
                .load()
                .listed()
                .first()
                .map(|(_, target)| (*target).clone())
        })
    }

    /// Where the server is asked for the users of the console: it has none of its own. `None`: it is not said.
    pub(crate) fn asked_for_consoles(&self) -> Option<PgTarget> {
        self.main.clone().filter(|_| !self.is_embedded())
    }

    pub(crate) fn routes(&self) -> Arc<Routes> {
        self.routes.load_full()
    }

    /// True for the server inside this process.
    pub(crate) fn is_embedded(&self) -> bool {
        self.routes.load().is_embedded()
    }

    /// The pool for a client's user and database.
    pub(crate) fn pool(&self, user: &str, database: &str) -> Result<Arc<ServerPool>, ClientError> {
        let destination = self.routes.load().destination(user, database)?;
        // The embedded server has one connection, hence one database for everybody.
        let name = if self.is_embedded() {
            destination.target.database.clone()
        } else {
            database.to_owned()
        };
        let mut pools = self.pools.lock();
        let key = (destination.target.user.clone(), name);
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
        let pool = self.put_up(self.new_pool(destination, &key.1, Arc::default())?);
        let is_new = self.routes.load().is_automatic(&key.1)
            && pools.keys().all(|(_, known)| *known != key.1);
        pools.insert(key, Arc::clone(&pool));
        drop(pools);
        if is_new {
            tracing::info!("registered new auto-database: {}", pool.name);
        }
        Ok(pool)
    }

    /// Makes a pool known to those who hold it up and those who share with it.
    fn put_up(&self, pool: ServerPool) -> Arc<ServerPool> {
        let pool = Arc::new(pool);
        pool.hold(self.controls.hold_on(&pool.name));
        pool.share();
        pool
    }

    /// What a client has proved may be what its server connections need to log in. Where the database says who all its
    /// clients are, it is what `kept` has of that user. The pool that learnt it is returned: another one would not know it.
    ///
    /// # Errors
    /// As [`pool`](Self::pool).
    pub(crate) fn learn(
        &self,
        user: &str,
        database: &str,
        credential: Credential,
        kept: impl FnOnce(&str) -> Credential,
    ) -> Result<Arc<ServerPool>, ClientError> {
        let pool = self.pool(user, database)?;
        let credential = if pool.user == user {
            credential
        } else {
            kept(&pool.user)
        };
        if credential != Credential::None {
            pool.connections.connector().learn(credential);
        }
        Ok(pool)
    }

    /// `learnt` is what clients have proved themselves with.
    fn new_pool(
        &self,
        destination: Destination,
        name: &str,
        learnt: Arc<Learnt>,
    ) -> Result<ServerPool, ClientError> {
        let embedded = self.is_embedded();
        let database = self.database(&destination, name);
        let Destination {
            target,
            limits,
            caches,
            ..
        } = destination;
        let config = self.config_of(&limits);
        let listener = (!embedded).then(|| {
            let patience = config.acquire_timeout;
            let (learnt, servers) = (Arc::clone(&learnt), Arc::clone(&self.servers));
            Listener::new(target.clone(), learnt, patience, servers)
        });
        let advisor = PoolAdvisor::new(config.max_connections, config.min_idle, self.advice);
        let user = target.user.clone();
        let run = Arc::clone(self.runs.lock().entry(server_of(&target)).or_default());
        let connector = ServerConnector::new(
            target,
            learnt,
            name,
            limits.connect_query.clone(),
            (Arc::clone(&self.servers), self.places.join(name, &user)),
            run,
            Arc::clone(&self.versions),
        );
        let connections =
            EnhancedConnectionPool::with_connector(connector, config).map_err(|error| {
                ClientError::new(ErrorKind::Config, "F0000", error.to_string()).fatal()
            })?;
        Ok(ServerPool {
            user,
            name: name.to_owned(),
            database,
            connections,
            embedded,
            advisor,
            refuses_transactions: AtomicBool::new(limits.mode == PoolMode::Statement),
            limits: ArcSwap::from_pointee(limits),
            caches: AtomicBool::new(caches),
            allows_cache: AtomicBool::new(caches),
            is_held: AtomicBool::new(false),
            is_retired: AtomicBool::new(false),
            run: AtomicU64::new(0),
            listener,
            baseline: ArcSwapOption::empty(),
            defaults_are_old: AtomicBool::new(false),
            parameters: Mutex::default(),
        })
    }

    /// A gateway before this one has ended, perhaps with statements under way.
    pub(crate) fn doubt_strangers(&self) {
        for pool in self.pools() {
            pool.doubt_strangers();
        }
    }

    /// Forgets a pool that never had a connection (an unknown database, a wrong password).
    pub(crate) fn forget(&self, pool: &Arc<ServerPool>) {
        if pool.baseline.load().is_none() {
            self.pools
                .lock()
                .remove(&(pool.user.clone(), pool.name.clone()));
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

    fn database(&self, destination: &Destination, client_name: &str) -> Arc<Database> {
        let target = &destination.target;
        let mut databases = self.databases.lock();
        if databases.len() >= 2 * POOLS_MAX {
            databases.retain(|_, database| Arc::strong_count(database) > 1);
        }
        Arc::clone(
            databases
                .entry((server_of(target), target.database.clone()))
                .or_insert_with(|| Arc::new(self.new_database(destination, client_name))),
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

fn pool_config(config: &Config, embedded: bool) -> ConnectionPoolConfig {
    let mut pool = ConnectionPoolConfig::default();
    pool.max_connections = config.pool.size;
    pool.min_idle = config.pool.min_idle;
    pool.acquire_timeout = config.pool.acquire_timeout;
    pool.max_lifetime = Some(config.pool.max_lifetime);
    pool.idle_timeout = Some(config.pool.idle_timeout);
    pool.health_check_interval_secs = config.pool.health_check_interval.as_secs().max(1);
    pool.connect_timeout = config.upstream.connect_timeout;
    pool.outage_timeout = config.upstream.outage_timeout;
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
