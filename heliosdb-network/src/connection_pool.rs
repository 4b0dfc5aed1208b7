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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::client::HidbConnector;
use crate::error::HeliosError;

use state::{Idle, State};

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
            shrunk: Notify::new(),
        });
        pool.start_tasks();
        pool
    }

    /// Outside of a runtime nothing can be spawned: then the first acquire does it.
    fn start_tasks(&self) {
        if tokio::runtime::Handle::try_current().is_ok()
            && !self.tasks_started.swap(true, Ordering::AcqRel)
        {
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
            let (taken, queued, connects) = {
                let mut state = self.state.lock();
                if state.draining {
                    return Err(AcquireError::Closed);
                }
                match state.take_idle(label) {
                    Some(idle) => (Some(idle), None, 0),
                    None => {
                        let alive = state.active + state.connecting;
                        if let Some(error) = state.breaker.refusal(began).filter(|_| alive == 0) {
                            return Err(AcquireError::Connect(Arc::clone(error)));
                        }
                        let (waiter, place) = oneshot::channel();
                        state.waiters.push_back(waiter);
                        let connects = state.begin_connects(&self.config, began);
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
            if let Some(idle) = taken
                && let Some(lease) = self.validated(idle).await
            {
                return Ok(lease);
            }
        };
        let Some(waiting) = place.place.as_mut() else {
            return Err(AcquireError::Closed);
        };
        match tokio::time::timeout(self.config.acquire_timeout, waiting).await {
            Ok(Ok(handed)) => {
                place.place = None;
                handed
            }
            Ok(Err(_)) => Err(AcquireError::Closed),
            Err(_) => {
                drop(place);
                Err(self.timed_out(began))
            }
        }
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
            let idle_for = now.saturating_duration_since(idle.meta.idle_since);
            if idle_for >= self.config.validation_bypass {
                self.put_back(idle.connection, idle.meta);
                return None;
            }
            if let Some(lease) = self.alive(idle, now) {
                return Some(lease);
            }
        }
    }

    /// What the pool holds and did.
    #[must_use]
    pub fn metrics(&self) -> PoolMetrics {
        self.state.lock().metrics(&self.config)
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
    async fn validated(&self, idle: Idle<C::Connection>) -> Option<Lease<C>> {
        let now = now();
        let idle_for = now.saturating_duration_since(idle.meta.idle_since);
        let mut lease = self.alive(idle, now)?;
        if idle_for < self.config.validation_bypass {
            return Some(lease);
        }
        let check = self.connector.check(&mut lease);
        match tokio::time::timeout(self.config.health_check_timeout, check).await {
            Ok(Ok(())) => Some(lease),
            _ => {
                self.state.lock().counts.unhealthy += 1;
                lease.discard();
                None
            }
        }
    }

    /// A connection fresh from the idle list, if it is not too old and its socket shows nothing wrong.
    fn alive(&self, mut idle: Idle<C::Connection>, now: Instant) -> Option<Lease<C>> {
        let outdated = idle.meta.is_too_old(now);
        if outdated || !self.connector.is_alive(&mut idle.connection) {
            self.begin_close(outdated);
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
    fn release(&self, connection: C::Connection, meta: ConnectionMeta) {
        match self.connector.disposition(&connection) {
            Disposition::Clean => self.put_back(connection, meta),
            Disposition::Dirty => self.spawn_reset(connection, meta),
            Disposition::Broken => self.discard(connection),
        }
    }

    /// Gives a clean connection to the first waiter that is still there, or to the idle list.
    fn put_back(&self, connection: C::Connection, mut meta: ConnectionMeta) {
        let label = self.connector.label(&connection);
        let now = now();
        let mut connection = Some(connection);
        while let Some(held) = connection.take() {
            let waiter = {
                let mut state = self.state.lock();
                if state.is_outdated(&meta, now) {
                    drop(state);
                    self.begin_close(true);
                    self.spawn_close(held);
                    return;
                }
                match state.waiters.pop_front() {
                    Some(waiter) => {
                        state.counts.acquired += 1;
                        waiter
                    }
                    None => {
                        state.active -= 1;
                        meta.in_use = false;
                        meta.idle_since = now;
                        state.idle.push(Idle {
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
        self.state.lock().counts.unhealthy += 1;
        self.begin_close(false);
        self.spawn_close(connection);
    }

    /// An active connection becomes one that is being closed.
    fn begin_close(&self, expired: bool) {
        let mut state = self.state.lock();
        state.active -= 1;
        state.closing += 1;
        state.counts.expired += u64::from(expired);
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
        let closing = Closing(self.this.clone());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            let _closing = closing;
            let _ = tokio::time::timeout(timeout, connector.close(connection)).await;
        });
    }

    /// Cleans in the background, then puts back.
    fn spawn_reset(&self, connection: C::Connection, meta: ConnectionMeta) {
        let connector = Arc::clone(&self.connector);
        let mut lease = self.lease(connection, meta);
        let timeout = self.config.health_check_timeout.max(RESET_TIMEOUT_MIN);
        self.state.lock().counts.resets += 1;
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            lease.discard();
            return;
        };
        runtime.spawn(async move {
            let reset = tokio::time::timeout(timeout, connector.reset(&mut lease)).await;
            // A reset that leaves it dirty would come back here for ever.
            if !matches!(reset, Ok(Ok(()))) || connector.disposition(&lease) != Disposition::Clean {
                lease.discard();
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
            tokio::spawn(async move {
                let connected = match tokio::time::timeout(timeout, connector.connect()).await {
                    Ok(connected) => connected,
                    Err(_) => Err(HeliosError::Network(format!(
                        "not connected within {timeout:?}"
                    ))),
                };
                connecting.finish(connected);
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
                .map(|max| max.mul_f64(1.0 - 0.1 * rand::random::<f64>()));
            ConnectionMeta {
                id,
                created,
                in_use: true,
                expires: lifetime.map(|lifetime| created + lifetime),
                idle_since: created,
                generation: state.generation,
            }
        };
        self.put_back(connection, meta);
        self.connect_if_needed();
    }

    fn on_connect_failed(&self, error: HeliosError) {
        let permanent = error.is_permanent();
        let error = Arc::new(error);
        let (waiters, retry_at, still_wanted) = {
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
            (
                waiters,
                retry_at,
                !state.waiters.is_empty() || self.config.min_idle > 0,
            )
        };
        tracing::warn!(%error, waiters = waiters.len(), "cannot connect");
        for waiter in waiters {
            let _ = waiter.send(Err(AcquireError::Connect(Arc::clone(&error))));
        }
        self.shrunk.notify_waiters();
        if still_wanted {
            let pool = self.this.clone();
            tokio::spawn(async move {
                tokio::time::sleep_until(retry_at.into()).await;
                if let Some(pool) = pool.upgrade() {
                    pool.connect_if_needed();
                }
            });
        }
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
            while let Some(pool) = next_round(&this, &gone, interval).await {
                let checks: Vec<_> = pool.leases_to_check().into_iter().map(check).collect();
                drop(pool);
                for check in checks {
                    let _ = check.await;
                }
            }
        });
    }

    /// Checks out the idle connections that nobody used since the last round.
    fn leases_to_check(&self) -> Vec<Lease<C>> {
        let now = now();
        let taken: Vec<_> = {
            let mut state = self.state.lock();
            let stale = |idle: &mut Idle<C::Connection>| {
                now.saturating_duration_since(idle.meta.idle_since) * 2 >= self.interval()
            };
            let taken: Vec<_> = state.idle.extract_if(.., stale).take(CHECKS_MAX).collect();
            state.active += taken.len();
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
fn check<C: Connector>(mut lease: Lease<C>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let connector = Arc::clone(&lease.pool().connector);
        let timeout = lease.pool().config.health_check_timeout;
        if !matches!(
            tokio::time::timeout(timeout, connector.check(&mut lease)).await,
            Ok(Ok(()))
        ) {
            tracing::warn!(
                connection = lease.meta().id,
                "closing a connection that failed its health check"
            );
            lease.discard();
        }
    })
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

/// The pool's clock: tokio's, which tests can drive.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
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
