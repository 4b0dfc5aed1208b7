//! A fair pool of connections of any protocol.
//!
//! Background work, all of it ending with the pool:
//! * one task a connection being opened, at most `max_connecting`;
//! * one task a connection being reset or closed;
//! * the expiration task: every `health_check_interval_secs`, closes what is too old or idle for too long, and refills
//!   to `min_idle`;
//! * the health-check task: at the same interval, checks the idle connections, each checked out like any other.

mod config;
mod connector;
mod error;
mod lease;
mod metrics;
mod state;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use crate::client::HidbConnector;
use crate::error::HeliosError;

use state::{Idle, State, now};

pub use config::{ConfigError, ConnectionPoolConfig};
pub use connector::{Connector, Disposition};
pub use error::AcquireError;
pub use lease::Lease;
pub use metrics::PoolMetrics;
pub use state::ConnectionMeta;

/// A pool of connections made by a [`Connector`].
///
/// * **Fair**: waiters are served in the order they came; a connection that becomes free is handed to the first of
///   them directly, so nobody who comes later can take it. Idle connections are used last in, first out.
/// * **Cancel-safe**: a connection handed to a waiter that has given up goes to the next one.
/// * **Bounded**: `idle + active + connecting + closing <= max_connections` at every instant.
/// * **Honest**: an acquire that fails says what the last attempt to connect ran into. While nothing lives and the
///   server was found unreachable just now, acquires fail at once.
pub struct EnhancedConnectionPool<C: Connector = HidbConnector> {
    connector: Arc<C>,
    config: ConnectionPoolConfig,
    /// Why this lock: all counts and queues change together. Under it values are moved, nothing else: no user code, no
    /// `Drop` of a connection, no wake, no log.
    state: Mutex<State<C::Connection, Waiter<C>>>,
    this: Weak<Self>,
    /// Wakes the background tasks for good when the pool goes.
    gone: Arc<Notify>,
    tasks_started: AtomicBool,
    /// Where the pool was first used: what has to be done when a lease ends outside of a runtime is done there.
    runtime: OnceLock<Handle>,
    /// Counted beside the lock, where a lease reaches its holder.
    acquired: AtomicU64,
    /// Told whenever the pool holds one connection less.
    shrunk: Notify,
}

type Waiter<C> = oneshot::Sender<Result<Lease<C>, AcquireError>>;

/// What a drain left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Connections still in use at the deadline. They are closed when they come back.
    pub still_active: usize,
}

impl EnhancedConnectionPool<HidbConnector> {
    /// A pool of HIDB connections to `addr`. Values in `config` that can't work are replaced by the nearest that can;
    /// [`try_new`](Self::try_new) refuses them.
    #[must_use]
    pub fn new(addr: String, config: ConnectionPoolConfig) -> Arc<Self> {
        if let Err(error) = config.validate() {
            tracing::warn!(%error, "using the nearest configuration that works");
        }
        Self::build(HidbConnector::new(addr), config.clamped())
    }

    /// A pool of HIDB connections to `addr`.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first field that can't work.
    pub fn try_new(addr: String, config: ConnectionPoolConfig) -> Result<Arc<Self>, ConfigError> {
        Self::with_connector(HidbConnector::new(addr), config)
    }
}

impl<C: Connector> EnhancedConnectionPool<C> {
    /// A pool of what `connector` makes. Nothing is opened before it is needed, or before the first task runs where
    /// `min_idle` asks for it.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first field that can't work.
    pub fn with_connector(
        connector: C,
        config: ConnectionPoolConfig,
    ) -> Result<Arc<Self>, ConfigError> {
        config.validate()?;
        Ok(Self::build(connector, config))
    }

    fn build(connector: C, config: ConnectionPoolConfig) -> Arc<Self> {
        let pool = Arc::new_cyclic(|this| Self {
            connector: Arc::new(connector),
            config,
            state: Mutex::new(State::new()),
            this: this.clone(),
            gone: Arc::new(Notify::new()),
            tasks_started: AtomicBool::new(false),
            runtime: OnceLock::new(),
            acquired: AtomicU64::new(0),
            shrunk: Notify::new(),
        });
        pool.start_tasks();
        pool
    }

    /// Outside of a runtime nothing can be spawned: then the first acquire does it.
    fn start_tasks(&self) {
        if self.tasks_started.load(Ordering::Acquire) {
            return;
        }
        if let Ok(runtime) = Handle::try_current()
            && !self.tasks_started.swap(true, Ordering::AcqRel)
        {
            let _ = self.runtime.set(runtime);
            self.start_expiration_task();
            self.start_health_check_task();
        }
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// [`AcquireError`].
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the queue; a connection already on its way goes to the next in line.
    pub async fn acquire(&self) -> Result<Lease<C>, AcquireError> {
        self.acquire_labelled(0).await
    }

    /// Waits for a connection, preferring among the idle ones one with this [label](Connector::label).
    ///
    /// # Errors
    /// [`AcquireError`].
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn acquire_labelled(&self, label: u64) -> Result<Lease<C>, AcquireError> {
        self.start_tasks();
        let began = now();
        let mut place = loop {
            let now = now();
            let (taken, queued, connects) = {
                let mut state = self.state.lock();
                if state.draining {
                    return Err(AcquireError::Closed);
                }
                match state.take_idle(label) {
                    Some(idle) => (Some(idle), None, 0),
                    None => {
                        let alive = state.active + state.connecting;
                        if let Some(error) = state.breaker.refusal(now).filter(|_| alive == 0) {
                            return Err(AcquireError::Connect(Arc::clone(error)));
                        }
                        let (waiter, place) = oneshot::channel();
                        state.waiters.push_back(waiter);
                        let connects = state.begin_connects(&self.config, now);
                        (None, Some(place), connects)
                    }
                }
            };
            self.spawn_connects(connects);
            if let Some(place) = queued {
                break Place {
                    pool: self,
                    place: Some(place),
                };
            }
            if let Some(idle) = taken {
                if let Some(lease) = self.validated(idle, self.patience(began)).await {
                    self.acquired.fetch_add(1, Ordering::Relaxed);
                    return Ok(lease);
                }
                if self.patience(began).is_zero() {
                    return Err(self.timed_out(began));
                }
            }
        };
        let Some(waiting) = place.place.as_mut() else {
            return Err(AcquireError::Closed);
        };
        match tokio::time::timeout(self.patience(began), waiting).await {
            Ok(Ok(handed)) => {
                place.place = None;
                self.acquired
                    .fetch_add(u64::from(handed.is_ok()), Ordering::Relaxed);
                handed
            }
            Ok(Err(_)) => Err(AcquireError::Closed),
            Err(_) => {
                drop(place);
                Err(self.timed_out(began))
            }
        }
    }

    /// How much longer an acquire that began then may take.
    fn patience(&self, began: Instant) -> Duration {
        let waited = now().saturating_duration_since(began);
        self.config.acquire_timeout.saturating_sub(waited)
    }

    /// Takes an idle connection if there is one that needs no check.
    #[must_use]
    pub fn try_acquire(&self, label: u64) -> Option<Lease<C>> {
        let now = now();
        loop {
            let idle = {
                let mut state = self.state.lock();
                if state.draining || !state.waiters.is_empty() {
                    return None;
                }
                state.take_idle(label)?
            };
            if idle.meta.unverified_for(now) >= self.config.validation_bypass {
                self.put_back(idle.connection, idle.meta);
                return None;
            }
            if let Some(lease) = self.alive(idle, now) {
                self.acquired.fetch_add(1, Ordering::Relaxed);
                return Some(lease);
            }
        }
    }

    /// What the pool holds and did.
    #[must_use]
    pub fn metrics(&self) -> PoolMetrics {
        let mut metrics = self.state.lock().metrics(&self.config);
        metrics.acquired = self.acquired.load(Ordering::Relaxed);
        metrics
    }

    /// What the pool goes by.
    #[must_use]
    pub fn config(&self) -> &ConnectionPoolConfig {
        &self.config
    }

    /// What makes the connections.
    #[must_use]
    pub fn connector(&self) -> &C {
        &self.connector
    }

    /// Closes every connection that stands now: idle ones at once, the others as they come back.
    pub fn evict_all(&self) {
        let expired = {
            let mut state = self.state.lock();
            state.generation += 1;
            state.take_expired(&self.config, now())
        };
        self.close_all(expired);
    }

    /// Lets nobody in any more, closes what is idle, and waits for the rest, at most until the deadline.
    ///
    /// # Cancel safety
    /// The pool stays closed.
    pub async fn drain(&self, deadline: Duration) -> DrainReport {
        let (waiters, expired) = {
            let mut state = self.state.lock();
            state.draining = true;
            (
                std::mem::take(&mut state.waiters),
                state.take_expired(&self.config, now()),
            )
        };
        for waiter in waiters {
            let _ = waiter.send(Err(AcquireError::Closed));
        }
        self.close_all(expired);
        let emptied = async {
            loop {
                let shrunk = self.shrunk.notified();
                if self.state.lock().total() == 0 {
                    return;
                }
                shrunk.await;
            }
        };
        let _ = tokio::time::timeout(deadline, emptied).await;
        DrainReport {
            still_active: self.state.lock().active,
        }
    }

    /// A connection fresh from the idle list, if it is still good. One that was idle for long is asked.
    async fn validated(&self, idle: Idle<C::Connection>, patience: Duration) -> Option<Lease<C>> {
        let now = now();
        let unverified_for = idle.meta.unverified_for(now);
        let lease = self.alive(idle, now)?;
        if unverified_for < self.config.validation_bypass {
            return Some(lease);
        }
        let timeout = self.config.health_check_timeout.min(patience);
        let mut suspect = Suspect(Some(lease));
        match tokio::time::timeout(timeout, suspect.check()).await {
            Ok(true) => suspect.cleared(),
            _ => None,
        }
    }

    /// A connection fresh from the idle list, if it is not too old and its socket shows nothing wrong.
    fn alive(&self, mut idle: Idle<C::Connection>, now: Instant) -> Option<Lease<C>> {
        let outdated = idle.meta.is_too_old(now);
        if outdated || !self.connector.is_alive(&mut idle.connection) {
            self.begin_close(if outdated {
                Why::Expired
            } else {
                Why::Unhealthy
            });
            self.spawn_close(idle.connection);
            return None;
        }
        Some(self.lease(idle.connection, idle.meta))
    }

    /// Hands a connection out. It counts as active already.
    fn lease(&self, connection: C::Connection, mut meta: ConnectionMeta) -> Lease<C> {
        meta.in_use = true;
        let pool = self
            .this
            .upgrade()
            .expect("whoever calls a method of the pool holds it");
        Lease::new(pool, connection, meta)
    }

    /// The end of a lease.
    fn release(&self, connection: C::Connection, mut meta: ConnectionMeta) {
        match self.connector.disposition(&connection) {
            Disposition::Clean => {
                meta.idle_since = now();
                meta.verified = meta.idle_since;
                self.put_back(connection, meta);
            }
            Disposition::Dirty => self.spawn_reset(connection, meta),
            Disposition::Broken => self.discard(connection),
        }
    }

    /// Gives a clean connection to the first waiter that is still there, or to the idle list, as idle as it is.
    fn put_back(&self, connection: C::Connection, mut meta: ConnectionMeta) {
        let label = self.connector.label(&connection);
        let now = now();
        let mut connection = Some(connection);
        while let Some(held) = connection.take() {
            let waiter = {
                let mut state = self.state.lock();
                if state.is_outdated(&meta, now) {
                    drop(state);
                    self.begin_close(if meta.is_too_old(now) {
                        Why::Expired
                    } else {
                        Why::Unwanted
                    });
                    self.spawn_close(held);
                    return;
                }
                match state.waiters.pop_front() {
                    Some(waiter) => waiter,
                    None => {
                        state.active -= 1;
                        meta.in_use = false;
                        state.put_idle(Idle {
                            connection: held,
                            meta,
                            label,
                        });
                        return;
                    }
                }
            };
            // A waiter that has given up sends the lease back; one that gives up later drops it, which releases it.
            if let Err(Ok(lease)) = waiter.send(Ok(self.lease(held, meta.clone()))) {
                let (returned, its_meta) = lease.into_parts();
                connection = Some(returned);
                meta = its_meta;
            }
        }
    }

    fn discard(&self, connection: C::Connection) {
        self.begin_close(Why::Unhealthy);
        self.spawn_close(connection);
    }

    /// An active connection becomes one that is being closed.
    fn begin_close(&self, why: Why) {
        let mut state = self.state.lock();
        state.active -= 1;
        state.closing += 1;
        match why {
            Why::Expired => state.counts.expired += 1,
            Why::Unhealthy => state.counts.unhealthy += 1,
            Why::Unwanted => {}
        }
    }

    fn close_all(&self, expired: Vec<Idle<C::Connection>>) {
        for idle in expired {
            self.spawn_close(idle.connection);
        }
    }

    /// Closes in the background. The connection counts until its socket is gone.
    fn spawn_close(&self, connection: C::Connection) {
        let connector = Arc::clone(&self.connector);
        let timeout = self.config.close_timeout;
        // One value, so that the socket goes before it is counted out even where the task never runs.
        let closing = (connection, Closing(self.this.clone()));
        self.spawn(async move {
            let (connection, _closing) = closing;
            let _ = tokio::time::timeout(timeout, connector.close(connection)).await;
        });
    }

    /// Where there is no runtime to run it, or only one that is shutting down, the future is dropped at once: whatever
    /// is spawned must count right then, too.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let runtime = Handle::try_current().ok();
        if let Some(runtime) = runtime.as_ref().or_else(|| self.runtime.get()) {
            runtime.spawn(task);
        }
    }

    /// Cleans in the background, then puts back.
    fn spawn_reset(&self, connection: C::Connection, meta: ConnectionMeta) {
        // A reset that is cut off, fails, or leaves it dirty would come back here for ever.
        let mut suspect = Suspect(Some(self.lease(connection, meta)));
        let timeout = self.config.health_check_timeout.max(RESET_TIMEOUT_MIN);
        self.state.lock().counts.resets += 1;
        self.spawn(async move {
            let reset = tokio::time::timeout(timeout, suspect.reset()).await;
            if matches!(reset, Ok(true)) {
                drop(suspect.cleared());
            }
        });
    }

    fn spawn_connects(&self, n: usize) {
        for _ in 0..n {
            let connecting = Connecting {
                pool: self.this.clone(),
                done: false,
            };
            let connector = Arc::clone(&self.connector);
            let timeout = self.config.connect_timeout;
            let gone = Arc::clone(&self.gone);
            self.spawn(async move {
                let ended = gone.notified();
                if connecting.pool.strong_count() == 0 {
                    return;
                }
                let connected = tokio::select! {
                    connected = tokio::time::timeout(timeout, connector.connect()) => connected,
                    () = ended => return,
                };
                connecting.finish(connected.unwrap_or_else(|_| {
                    let error = format!("not connected within {timeout:?}");
                    Err(HeliosError::Network(error))
                }));
            });
        }
    }

    fn on_connected(&self, connection: C::Connection) {
        let meta = {
            let mut state = self.state.lock();
            state.connecting -= 1;
            state.active += 1;
            state.breaker.close();
            state.counts.created += 1;
            let id = state.next_id;
            state.next_id += 1;
            let created = now();
            // Subtracted, never added: the configured lifetime is a promise to somebody's firewall.
            let lifetime = self
                .config
                .max_lifetime
                .map(|max| max - max.mul_f64(0.1 * rand::random::<f64>()));
            ConnectionMeta {
                id,
                created,
                in_use: true,
                expires: lifetime.and_then(|lifetime| created.checked_add(lifetime)),
                idle_since: created,
                verified: created,
                generation: state.generation,
            }
        };
        self.put_back(connection, meta);
        self.connect_if_needed();
    }

    fn on_connect_failed(&self, error: HeliosError) {
        let permanent = error.is_permanent();
        let error = Arc::new(error);
        let (waiters, retry_at) = {
            let mut state = self.state.lock();
            state.connecting -= 1;
            state.counts.connect_failures += 1;
            let retry_at = state
                .breaker
                .open(Arc::clone(&error), now(), rand::random());
            // With no other connection to wait for, waiting would only hide the reason.
            let hopeless = permanent || state.active + state.connecting == 0;
            let waiters = if hopeless {
                std::mem::take(&mut state.waiters)
            } else {
                Default::default()
            };
            (waiters, retry_at)
        };
        tracing::warn!(%error, waiters = waiters.len(), "cannot connect");
        for waiter in waiters {
            let _ = waiter.send(Err(AcquireError::Connect(Arc::clone(&error))));
        }
        self.shrunk.notify_waiters();
        // Also where nobody waits now: whoever comes before then can't connect and relies on this.
        let (this, gone) = (self.this.clone(), Arc::clone(&self.gone));
        self.spawn(async move {
            let until_then = retry_at.saturating_duration_since(now());
            if let Some(pool) = next_round(&this, &gone, until_then).await {
                pool.connect_if_needed();
            }
        });
    }

    fn connect_if_needed(&self) {
        let connects = self.state.lock().begin_connects(&self.config, now());
        self.spawn_connects(connects);
    }

    /// Forgets the waiters that have given up.
    fn forget_given_up(&self) {
        let mut given_up = Vec::new();
        {
            let mut state = self.state.lock();
            let mut at = 0;
            while at < state.waiters.len() {
                if state.waiters[at].is_closed() {
                    given_up.extend(state.waiters.remove(at));
                } else {
                    at += 1;
                }
            }
        }
        drop(given_up);
    }

    fn timed_out(&self, began: Instant) -> AcquireError {
        let mut state = self.state.lock();
        state.counts.timeouts += 1;
        AcquireError::Timeout {
            waited: now().saturating_duration_since(began),
            max: self.config.max_connections,
            active: state.active,
            idle: state.idle.len(),
            connecting: state.connecting,
            waiting: state.waiters.len(),
            last_connect_error: state.breaker.last_error.clone(),
        }
    }

    /// Closes what is too old or idle for too long, at each interval; refills to `min_idle`.
    fn start_expiration_task(&self) {
        let (this, gone, interval) = (self.this.clone(), Arc::clone(&self.gone), self.interval());
        tokio::spawn(async move {
            while let Some(pool) = next_round(&this, &gone, interval).await {
                let expired = pool.state.lock().take_expired(&pool.config, now());
                if !expired.is_empty() {
                    tracing::info!("Removed {} expired connections", expired.len());
                }
                pool.close_all(expired);
                pool.connect_if_needed();
            }
        });
    }

    /// Checks the idle connections at each interval, each of them checked out and several at a time.
    fn start_health_check_task(&self) {
        let (this, gone, interval) = (self.this.clone(), Arc::clone(&self.gone), self.interval());
        tokio::spawn(async move {
            while let Some(mut pool) = next_round(&this, &gone, interval).await {
                let round = now();
                loop {
                    let checks: Vec<_> =
                        pool.leases_to_check(round).into_iter().map(check).collect();
                    drop(pool);
                    if checks.is_empty() {
                        break;
                    }
                    for check in checks {
                        let _ = check.await;
                    }
                    match this.upgrade() {
                        Some(still_there) => pool = still_there,
                        None => return,
                    }
                }
            }
        });
    }

    /// Checks out some of the idle connections that nobody used since the last round, and leaves others to those who
    /// come meanwhile.
    fn leases_to_check(&self, round: Instant) -> Vec<Lease<C>> {
        let taken: Vec<_> = {
            let mut state = self.state.lock();
            let at_once = state.idle.len().div_ceil(2).min(CHECKS_MAX);
            let stale = |idle: &mut Idle<C::Connection>| {
                idle.meta.unverified_for(round).saturating_mul(2) >= self.interval()
            };
            let taken: Vec<_> = state.idle.extract_if(.., stale).take(at_once).collect();
            state.active += taken.len();
            state.checking += taken.len();
            taken
        };
        taken
            .into_iter()
            .map(|idle| self.lease(idle.connection, idle.meta))
            .collect()
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(self.config.health_check_interval_secs)
    }
}

/// Checks one connection in a task of its own, and puts it back as idle as it was.
fn check<C: Connector>(lease: Lease<C>) -> tokio::task::JoinHandle<()> {
    let checking = Checking(lease.pool_handle());
    tokio::spawn(async move {
        let (id, timeout) = (lease.meta().id, lease.pool().config.health_check_timeout);
        let mut suspect = Suspect(Some(lease));
        let checked = tokio::time::timeout(timeout, suspect.check()).await;
        drop(checking);
        if !matches!(checked, Ok(true)) {
            tracing::warn!(
                connection = id,
                "closing a connection that failed its health check"
            );
        } else if let Some(lease) = suspect.cleared() {
            let pool = lease.pool_handle();
            let (connection, mut meta) = lease.into_parts();
            meta.verified = now();
            pool.put_back(connection, meta);
        }
    })
}

/// A lease whose connection is being checked or reset: closed unless [cleared](Self::cleared), whatever becomes of the
/// future that does it.
struct Suspect<C: Connector>(Option<Lease<C>>);

impl<C: Connector> Suspect<C> {
    /// True if the peer is well and nothing is left to be done.
    async fn check(&mut self) -> bool {
        let Some(lease) = &mut self.0 else {
            return false;
        };
        let connector = lease.connector();
        connector.check(lease).await.is_ok() && connector.disposition(lease) == Disposition::Clean
    }

    /// True if the connection is as good as new.
    async fn reset(&mut self) -> bool {
        let Some(lease) = &mut self.0 else {
            return false;
        };
        let connector = lease.connector();
        connector.reset(lease).await.is_ok() && connector.disposition(lease) == Disposition::Clean
    }

    fn cleared(mut self) -> Option<Lease<C>> {
        self.0.take()
    }
}

impl<C: Connector> Drop for Suspect<C> {
    fn drop(&mut self) {
        if let Some(lease) = self.0.take() {
            lease.discard();
        }
    }
}

/// A health check under way; counted out again whatever becomes of it.
struct Checking<C: Connector>(Arc<EnhancedConnectionPool<C>>);

impl<C: Connector> Drop for Checking<C> {
    fn drop(&mut self) {
        self.0.state.lock().checking -= 1;
    }
}

/// Why a connection is closed, for the counts.
#[derive(Debug, Clone, Copy)]
enum Why {
    Expired,
    Unhealthy,
    /// The pool is drained, or its connections were evicted.
    Unwanted,
}

/// Waits for the next round of a background task. `None`: the pool is gone.
async fn next_round<C: Connector>(
    this: &Weak<EnhancedConnectionPool<C>>,
    gone: &Notify,
    interval: Duration,
) -> Option<Arc<EnhancedConnectionPool<C>>> {
    let ended = gone.notified();
    if this.strong_count() == 0 {
        return None;
    }
    tokio::select! {
        () = tokio::time::sleep(interval) => this.upgrade(),
        () = ended => None,
    }
}

const RESET_TIMEOUT_MIN: Duration = Duration::from_secs(5);
/// Health checks at the same time.
const CHECKS_MAX: usize = 16;

impl<C: Connector> Drop for EnhancedConnectionPool<C> {
    fn drop(&mut self) {
        self.gone.notify_waiters();
        let idle = std::mem::take(&mut self.state.get_mut().idle);
        for idle in idle {
            self.spawn_close(idle.connection);
        }
    }
}

impl<C: Connector> fmt::Debug for EnhancedConnectionPool<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnhancedConnectionPool")
            .field("metrics", &self.metrics())
            .finish_non_exhaustive()
    }
}

/// A waiter's place in the queue: given up when it goes.
struct Place<'a, C: Connector> {
    pool: &'a EnhancedConnectionPool<C>,
    place: Option<oneshot::Receiver<Result<Lease<C>, AcquireError>>>,
}

impl<C: Connector> Drop for Place<'_, C> {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            // A lease that is in it already releases itself.
            drop(place);
            self.pool.forget_given_up();
        }
    }
}

/// A connection being opened; counted out again whatever becomes of the task.
struct Connecting<C: Connector> {
    pool: Weak<EnhancedConnectionPool<C>>,
    done: bool,
}

impl<C: Connector> Connecting<C> {
    fn finish(mut self, connected: Result<C::Connection, HeliosError>) {
        self.done = true;
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        match connected {
            Ok(connection) => pool.on_connected(connection),
            Err(error) => pool.on_connect_failed(error),
        }
    }
}

impl<C: Connector> Drop for Connecting<C> {
    fn drop(&mut self) {
        if !self.done
            && let Some(pool) = self.pool.upgrade()
        {
            pool.on_connect_failed(HeliosError::Network(
                "the attempt to connect was aborted".to_owned(),
            ));
        }
    }
}

/// A connection being closed; counted out when its socket is gone.
struct Closing<C: Connector>(Weak<EnhancedConnectionPool<C>>);

impl<C: Connector> Drop for Closing<C> {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.state.lock().closing -= 1;
            pool.shrunk.notify_waiters();
            pool.connect_if_needed();
        }
    }
}
