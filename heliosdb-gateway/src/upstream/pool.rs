//! The connections of one user to one database.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::{ArcSwap, ArcSwapOption};
use heliosdb_cache::HashedStr;
use heliosdb_network::connection_pool::{
    AcquireError, ConnectionHint, Connector as _, EnhancedConnectionPool, Lease, PoolEvent,
};
use parking_lot::Mutex;

use crate::advice::PoolAdvisor;
use crate::config::PoolMode;
use crate::config::names;
use crate::error::ClientError;
use crate::invalidate::wire;
use crate::notifications::Listener;
use crate::session::settings::Effective;

use super::connection::{Baseline, ServerConnection, ServerConnector};
use super::database::{Database, LoadedCatalog};
use super::places::{GivesUp, Quota};
use super::routes::{Destination, PoolLimits};

/// A server connection on loan.
pub(crate) type ServerLease = Lease<ServerConnector>;

/// The connections of one user to one database.
#[derive(Debug)]
pub(crate) struct ServerPool {
    /// Who its sessions are to the server.
    pub(crate) user: String,
    /// What clients call the database.
    pub(crate) name: String,
    pub(crate) database: Arc<Database>,
    pub(crate) connections: Arc<EnhancedConnectionPool<ServerConnector>>,
    pub(crate) embedded: bool,
    pub(crate) advisor: PoolAdvisor,
    pub(crate) limits: ArcSwap<PoolLimits>,
    /// As in `limits`: asked for each statement of a transaction.
    pub(super) refuses_transactions: AtomicBool,
    /// Answers may be cached: so configured, and the last connection was to a primary.
    pub(super) caches: AtomicBool,
    pub(super) allows_cache: AtomicBool,
    /// An administrator has everybody wait: nothing is answered from memory either.
    pub(super) is_held: AtomicBool,
    /// Its name leads elsewhere by now: sessions move there with their next statement.
    pub(super) is_retired: AtomicBool,
    /// Which run of the server the last connection was to; zero before the first.
    pub(super) run: AtomicU64,
    /// Listens for its clients. `None` where the server takes no other connection.
    pub(crate) listener: Option<Listener>,
    /// What sessions of this pool begin with; known once the first connection stood.
    pub(super) baseline: ArcSwapOption<Baseline>,
    /// `baseline` may not be true any more.
    pub(super) defaults_are_old: AtomicBool,
    /// What the server reports to a client with these settings, so that a login needs no server connection.
    /// Why a lock: a look-up per login.
    pub(super) parameters: Mutex<Vec<KnownParameters>>,
}

/// Startup settings seen before, the defaults they were applied to, and what the server made of them.
type KnownParameters = (Arc<Effective>, Arc<Baseline>, Parameters);

/// Names and values, as the server reports them.
pub(crate) type Parameters = Vec<(String, String)>;

/// How many different sets of startup settings are remembered in each pool.
const PARAMETERS_MAX: usize = 64;

impl ServerPool {
    /// True where all clients of the database share it, whoever they are.
    pub(crate) fn is_shared(&self) -> bool {
        self.limits.load().is_shared
    }

    /// What a reload says of it.
    pub(super) fn adopt(&self, destination: Destination) {
        let Destination { limits, caches, .. } = destination;
        self.allows_cache.store(caches, Ordering::Relaxed);
        if !caches {
            self.caches.store(false, Ordering::Relaxed);
        }
        let refuses = limits.mode == PoolMode::Statement;
        self.refuses_transactions.store(refuses, Ordering::Relaxed);
        let before = self.limits.swap(Arc::new(limits.clone()));
        let is_resized = (before.size, before.min_idle) != (limits.size, limits.min_idle);
        if is_resized
            && !self.embedded
            && let Err(error) = self.connections.resize(limits.size, limits.min_idle)
        {
            tracing::warn!(%error, "the pool's size was not changed");
        }
        if !self.embedded {
            let (size, timeout) = (limits.reserve_size, limits.reserve_timeout);
            self.connections.set_reserve(size, timeout);
            self.bound();
        }
    }

    /// Takes its part in what is shared with other pools.
    pub(super) fn share(self: &Arc<Self>) {
        if self.embedded {
            return;
        }
        let this: Weak<Self> = Arc::downgrade(self);
        self.connections.connector().member.serve(this);
        self.bound();
    }

    /// Sets the bounds that it shares with others.
    fn bound(&self) {
        let (limits, [database, user]) = (self.limits.load(), self.quotas());
        let places = self.connections.connector().member.places();
        places.set_max(&database, limits.max_per_database);
        places.set_max(&user, limits.max_per_user);
    }

    fn quotas(&self) -> [Quota; 2] {
        [
            Quota::Database(self.name.as_str().into()),
            Quota::User(self.user.as_str().into()),
        ]
    }

    /// What a client is told that could not get a connection.
    pub(crate) fn acquire_error(&self, error: &AcquireError) -> ClientError {
        let mut told = ClientError::from_acquire(error);
        let reached = self.connections.connector().member.reached();
        let AcquireError::Timeout {
            active,
            max,
            waited,
            ..
        } = error
        else {
            return told;
        };
        // Where all of its own are in use, others would be of no help.
        let Some((quota, all)) = reached.first().filter(|_| active < max) else {
            return told;
        };
        let (whose, keys) = match quota {
            Quota::Database(name) => (
                format!("database \"{name}\""),
                [
                    "pool.max_per_database".to_owned(),
                    format!("databases.{name}.max_connections"),
                ],
            ),
            Quota::User(name) => (
                format!("user \"{name}\""),
                [
                    "pool.max_per_user".to_owned(),
                    format!("users.{name}.max_connections"),
                ],
            ),
        };
        let message =
            format!("no server connection within {waited:?}: all {all} of {whose} are in use");
        told.detail = Some(std::mem::replace(&mut told.message, message));
        let [general, own] = keys.map(|key| names::key(&key));
        let place = names::place();
        told.hint(format!(
            "Raise {general} or {own} in {place}, or shorten transactions."
        ))
    }

    /// Whether a connection is lent for one statement, and a transaction of several is refused.
    pub(crate) fn refuses_transactions(&self) -> bool {
        self.refuses_transactions.load(Ordering::Relaxed)
    }

    /// Whether answers may be cached.
    pub(crate) fn caches(&self) -> bool {
        self.caches.load(Ordering::Relaxed) && !self.is_held.load(Ordering::Acquire)
    }

    /// True where the database's name leads elsewhere by now.
    pub(crate) fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Acquire)
    }

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
        self.notice(&mut lease);
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
        self.notice(&mut lease);
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
    fn notice(&self, lease: &mut ServerConnection) {
        // A standby shows what was committed later than the versions say that it was.
        let caches = !lease.is_standby && self.allows_cache.load(Ordering::Relaxed);
        if caches != self.caches.load(Ordering::Relaxed) {
            self.caches.store(caches, Ordering::Relaxed);
        }
        if lease.run != self.run.load(Ordering::Relaxed)
            && self.run.swap(lease.run, Ordering::Relaxed) != 0
        {
            // The others are to a server that is gone, or not the primary any more.
            self.connections.evict_all();
        }
        let baseline = &mut lease.baseline;
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
                    database = self.name,
                    "the server's default settings changed"
                );
                self.baseline.store(Some(Arc::clone(baseline)));
                self.connections.evict_all();
            }
            None => {
                self.baseline.store(Some(Arc::clone(baseline)));
                if lease.has_strangers && !self.embedded {
                    self.doubt_strangers();
                }
            }
        }
        // A connection that is new.
        self.defaults_are_old.store(false, Ordering::Release);
    }

    /// Statements are running that a gateway before this one may have begun: nothing is cached until they have ended.
    pub(super) fn doubt_strangers(&self) {
        let database = &self.database;
        let intent = database.versions().begin_write(&[database.everything]);
        let connections = Arc::clone(&self.connections);
        tokio::spawn(wire::settle_strangers(connections, intent));
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
            "{}\u{0}{}\u{0}{}",
            self.database.name, self.database.server, baseline.fingerprint
        ))
    }
}

impl GivesUp for ServerPool {
    fn give_up_one(&self, all: bool) -> bool {
        let keep = if all { 0 } else { self.limits.load().min_idle };
        let is_given_up = self.connections.evict_idle(1, keep) > 0;
        if is_given_up {
            self.connections.connector().note(PoolEvent::GivenUp);
        }
        is_given_up
    }
}
