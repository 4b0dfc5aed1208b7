//! A fair pool of connections of any protocol.
//!
//! Background work, all of it ending with the pool:
//! * one task a connection being opened, at most `max_connecting`;
//! * one task a connection being reset or closed;
//! * the expiration task: every `health_check_interval_secs`, closes what is too old or idle for too long, and refills
//!   to `min_idle`;
//! * the health-check task: at the same interval, checks the idle connections, each checked out like any other.

mod background;
mod breaker;
mod cap;
mod config;
mod connector;
mod error;
mod exchange;
mod hint;
mod lease;
mod line;
mod meta;
mod metrics;
mod state;
mod sync;
mod window;

use std::fmt;
use std::future::poll_fn;
use std::panic::Location;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::client::HidbConnector;
use crate::error::HeliosError;

use background::{Suspect, next_round};
use exchange::{Answer, Connected, Exchange, Wish};
use line::Ticket;
use meta::{Idle, Item};
use state::Why;

pub use config::{ConfigError, ConnectionPoolConfig};
pub use connector::{Admission, Connector, Disposition, PoolEvent};
pub use error::{AcquireError, AcquirePhase};
pub use hint::ConnectionHint;
pub use lease::Lease;
pub use meta::{ConnectionMeta, LeaseInfo};
pub use metrics::PoolMetrics;
pub use window::PoolWindow;

/// A pool of connections made by a [`Connector`].
///
/// * **Fair**: waiters are served in the order they came; a connection that becomes free is handed to the first of
///   them directly, so nobody who comes later can take it. Idle connections are used last in, first out.
/// * **Cancel-safe**: a connection handed to a waiter that has given up goes to the next one.
/// * **Bounded**: `idle + active + connecting + closing <= max_connections` at every instant, and up to `reserve_size` more
///   while somebody waits who has waited for long.
/// * **Honest**: an acquire that fails says what the last attempt to connect ran into. While nothing lives and the
///   server was found unreachable just now, acquires fail at once.
/// * **Modest**: where the server has too many connections already, the pool makes do with those it has, and tries one more
///   now and then ([`PoolMetrics::cap`]).
pub struct EnhancedConnectionPool<C: Connector = HidbConnector> {
    connector: Arc<C>,
    config: ConnectionPoolConfig,
    exchange: Exchange<C::Connection>,
    this: Weak<Self>,
    /// Wakes the background tasks for good when the pool goes.
    gone: Arc<Notify>,
    tasks_started: AtomicBool,
    /// Where the pool was first used: what has to be done when a lease ends outside of a runtime is done there.
    runtime: OnceLock<Handle>,
    /// Told whenever the pool holds one connection less.
    shrunk: Notify,
    /// Told when an attempt to connect may have become unneeded that waits to be admitted.
    unneeded: Arc<Notify>,
    /// Told when somebody waits whose time nobody watches.
    waited_for: Arc<Notify>,
    /// The expiration task runs, and looks after the times of those who wait. It ends with its runtime.
    is_watching: AtomicBool,
    made: Instant,
}

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
            exchange: Exchange::new(&config),
            config,
            this: this.clone(),
            gone: Arc::new(Notify::new()),
            tasks_started: AtomicBool::new(false),
            runtime: OnceLock::new(),
            shrunk: Notify::new(),
            unneeded: Arc::new(Notify::new()),
            waited_for: Arc::new(Notify::new()),
            is_watching: AtomicBool::new(false),
            made: now(),
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
    #[track_caller]
    pub fn acquire(&self) -> impl Future<Output = Result<Lease<C>, AcquireError>> + Send {
        self.acquire_labelled(0)
    }

    /// Waits for a connection, preferring among the idle ones one with this [label](Connector::label).
    ///
    /// # Errors
    /// [`AcquireError`].
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    #[track_caller]
    pub fn acquire_labelled(
        &self,
        label: u64,
    ) -> impl Future<Output = Result<Lease<C>, AcquireError>> + Send {
        self.acquire_for(Wish {
            label,
            hint: None,
            place: Location::caller(),
            is_first: false,
        })
    }

    /// Waits for a connection, preferring among the idle ones one with this [label](Connector::label), and then one that
    /// the hint names. Nobody waits longer for the sake of a hint.
    ///
    /// # Errors
    /// [`AcquireError`].
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    #[track_caller]
    pub fn acquire_hinted(
        &self,
        label: u64,
        hint: ConnectionHint,
    ) -> impl Future<Output = Result<Lease<C>, AcquireError>> + Send {
        self.acquire_for(Wish {
            label,
            hint: Some(hint),
            place: Location::caller(),
            is_first: false,
        })
    }

    async fn acquire_for(&self, mut wish: Wish) -> Result<Lease<C>, AcquireError> {
        self.start_tasks();
        let began = now();
        let mut now = began;
        loop {
            let asked = poll_fn(|context| {
                let exchange = &self.exchange;
                Poll::Ready(exchange.ask(&wish, &self.config, began, now, context.waker()))
            });
            let idle = match asked.await {
                Answer::Taken(idle) => idle,
                Answer::Refused(error) => return Err(error),
                Answer::Wait {
                    ticket,
                    is_registered,
                    connects,
                    is_unwatched,
                } => {
                    let mut place = Place {
                        pool: self,
                        ticket: Some(ticket),
                        hint: wish.hint,
                        is_registered,
                    };
                    self.spawn_connects(connects);
                    if is_unwatched {
                        self.waited_for.notify_one();
                    }
                    // A task looks after the times of those who wait; it takes the place of a timer for each. But one who
                    // comes back to the head of the line has less time left than that task knows of.
                    let mut served = None;
                    if !wish.is_first {
                        served = place.served_while_watched().await;
                    }
                    let served = match served {
                        Some(served) => served,
                        None => {
                            let patience = self.patience(began);
                            match tokio::time::timeout(patience, place.served()).await {
                                Ok(served) => served,
                                Err(_) => {
                                    drop(place);
                                    return Err(self.timed_out(began, false));
                                }
                            }
                        }
                    };
                    now = self::now();
                    served?
                }
            };
            let id = idle.meta.id;
            if let Some(lease) = self.validated(idle, began, now).await {
                return Ok(lease);
            }
            self.exchange.uncount_acquired(id, wish.hint.as_ref());
            if self.patience(began).is_zero() {
                return Err(self.timed_out(began, true));
            }
            wish.is_first = true;
            now = self::now();
        }
    }

    /// How much longer an acquire that began then may take.
    fn patience(&self, began: Instant) -> Duration {
        let waited = now().saturating_duration_since(began);
        self.config.acquire_timeout.saturating_sub(waited)
    }

    fn timed_out(&self, began: Instant, is_check: bool) -> AcquireError {
        let waited = now().saturating_duration_since(began);
        self.exchange.timed_out(waited, is_check)
    }

    /// Takes an idle connection if there is one that needs no check.
    #[must_use]
    #[track_caller]
    pub fn try_acquire(&self, label: u64) -> Option<Lease<C>> {
        self.try_acquire_for(label, None, Location::caller())
    }

    /// Takes an idle connection if there is one that needs no check, preferring as
    /// [`acquire_hinted`](Self::acquire_hinted) does.
    #[must_use]
    #[track_caller]
    pub fn try_acquire_hinted(&self, label: u64, hint: &ConnectionHint) -> Option<Lease<C>> {
        self.try_acquire_for(label, Some(hint), Location::caller())
    }

    fn try_acquire_for(
        &self,
        label: u64,
        hint: Option<&ConnectionHint>,
        place: &'static Location<'static>,
    ) -> Option<Lease<C>> {
        let (now, bypass) = (now(), self.config.validation_bypass);
        loop {
            let idle = self.exchange.take(label, hint, place, now, bypass)?;
            let id = idle.meta.id;
            if let Some(lease) = self.alive(idle, now) {
                return Some(lease);
            }
            self.exchange.uncount_acquired(id, hint);
        }
    }

    /// What the pool holds and did.
    #[must_use]
    pub fn metrics(&self) -> PoolMetrics {
        self.exchange.metrics(&self.config, now())
    }

    /// What is on loan: for how long, and where it was acquired.
    #[must_use]
    pub fn leases(&self) -> Vec<LeaseInfo> {
        self.exchange.leases(now())
    }

    /// What the pool saw since the last call, or since it was made: one caller's, at its own interval.
    #[must_use]
    pub fn take_window(&self) -> PoolWindow {
        self.exchange.take_window(self.made, now())
    }

    /// What the pool goes by, as it was made: see [`resize`](Self::resize).
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
        self.close_all(self.exchange.evict_all(&self.config, now()));
    }

    /// Closes up to `n` of the idle connections, those that were used the longest ago first, but leaves `keep` of them.
    /// Returns how many. Nobody waits while there are idle ones, so nobody is kept waiting by this but who comes next.
    pub fn evict_idle(&self, n: usize, keep: usize) -> usize {
        let evicted = self.exchange.evict_idle(n, keep);
        let n = evicted.len();
        self.close_all(evicted);
        n
    }

    /// Sets `reserve_size` and `reserve_timeout`. Connections that are too many then are closed as they come back.
    pub fn set_reserve(&self, size: usize, timeout: Duration) {
        self.exchange.set_reserve(size, timeout);
        self.connect_if_needed();
        // When to look next has to be worked out anew.
        self.waited_for.notify_one();
    }

    /// Lets everybody wait who comes, up to the acquire timeout, until [`resume`](Self::resume): while the server
    /// restarts or another takes its place. Connections on loan come back as always; none is opened.
    pub fn suspend(&self) {
        self.exchange.suspend();
    }

    /// As [`suspend`](Self::suspend), and closes every connection: idle ones at once, the others as they come back or
    /// come to stand. [`emptied`](Self::emptied) says when none is left.
    pub fn suspend_and_empty(&self) {
        self.close_all(self.exchange.suspend_and_empty(&self.config, now()));
    }

    /// Ends what [`suspend`](Self::suspend) or [`suspend_and_empty`](Self::suspend_and_empty) began.
    pub fn resume(&self) {
        for connection in self.exchange.resume(now()) {
            self.spawn_close(connection);
        }
        self.connect_if_needed();
    }

    /// Sets `max_connections` and `min_idle`. If there are too many connections, idle ones are closed at once, the others
    /// as they come back.
    ///
    /// # Errors
    /// [`ConfigError`] if the two can't work together; then nothing changes.
    pub fn resize(&self, max_connections: usize, min_idle: usize) -> Result<(), ConfigError> {
        let config = ConnectionPoolConfig {
            max_connections,
            min_idle,
            ..self.config.clone()
        };
        config.validate()?;
        let unwanted = self
            .exchange
            .resize(max_connections, min_idle, &self.config, now());
        self.close_all(unwanted);
        self.connect_if_needed();
        Ok(())
    }

    /// Lets nobody in any more, closes what is idle, and waits for the rest, at most until the deadline.
    ///
    /// # Cancel safety
    /// The pool stays closed.
    pub async fn drain(&self, deadline: Duration) -> DrainReport {
        self.close_all(self.exchange.drain(&self.config, now()));
        self.unneeded.notify_waiters();
        let _ = tokio::time::timeout(deadline, self.emptied()).await;
        DrainReport {
            still_active: self.exchange.active(),
        }
    }

    /// Waits until the pool holds no connection: none idle, on loan, being opened or being closed. Of use after
    /// [`suspend_and_empty`](Self::suspend_and_empty), since otherwise the next acquire opens one.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn emptied(&self) {
        loop {
            let shrunk = self.shrunk.notified();
            if self.exchange.is_empty() {
                return;
            }
            shrunk.await;
        }
    }

    /// A connection for an acquire that began then, if it is still good. One that was idle for long is asked, but not one
    /// that another has used or opened meanwhile.
    async fn validated(
        &self,
        idle: Item<C::Connection>,
        began: Instant,
        now: Instant,
    ) -> Option<Lease<C>> {
        let is_known = idle.meta.verified > began
            || idle.meta.unverified_for(now) < self.config.validation_bypass;
        let lease = self.alive(idle, now)?;
        if is_known {
            return Some(lease);
        }
        let patience = self.patience(began);
        let timeout = self.config.health_check_timeout.min(patience);
        let mut suspect = Suspect(Some(lease));
        match tokio::time::timeout(timeout, suspect.check()).await {
            Ok(true) => suspect.cleared(),
            _ => None,
        }
    }

    /// A connection fresh from the idle list, if it is not too old and its socket shows nothing wrong.
    fn alive(&self, mut idle: Item<C::Connection>, now: Instant) -> Option<Lease<C>> {
        let outdated = idle.meta.is_too_old(now);
        if outdated || !self.connector.is_alive(&mut idle.connection) {
            let why = if outdated {
                Why::Expired
            } else {
                Why::Unhealthy
            };
            self.exchange.begin_close(&idle.meta, why);
            self.spawn_close(idle.connection);
            return None;
        }
        Some(self.lease(idle))
    }

    /// Hands a connection out. It counts as active already.
    fn lease(&self, held: Item<C::Connection>) -> Lease<C> {
        let pool = self
            .this
            .upgrade()
            .expect("whoever calls a method of the pool holds it");
        Lease::new(pool, held)
    }

    /// The end of a lease.
    fn release(&self, mut held: Item<C::Connection>, at: Option<Instant>) {
        match self.connector.disposition(&held.connection) {
            Disposition::Clean => {
                let now = at.unwrap_or_else(now);
                held.meta.idle_since = now;
                held.meta.verified = now;
                self.put_back(held, now);
            }
            Disposition::Dirty => self.spawn_reset(held),
            Disposition::Broken => self.discard(held),
        }
    }

    /// Gives a clean connection to the first who waits, or puts it among the idle ones, as idle as it is.
    fn put_back(&self, mut held: Item<C::Connection>, now: Instant) {
        held.label = self.connector.label(&held.connection);
        held.has_room = self.connector.has_room(&held.connection);
        if self.connector.is_crowded() && self.connector.claim(self.exchange.waits_since()) {
            self.connector.note(PoolEvent::GivenUp);
            self.exchange.begin_close(&held.meta, Why::Unwanted);
            self.spawn_close(held.connection);
            return;
        }
        self.pass_on(held, now);
    }

    fn pass_on(&self, held: Item<C::Connection>, now: Instant) {
        if let Some(unwanted) = self.exchange.put_back(held, now) {
            self.spawn_close(unwanted);
        }
        // In this order: who claims a place after this look finds the connection among the idle ones.
        if !self.connector.is_crowded() {
            return;
        }
        // Of this pool, too, somebody may wait for a place who was served just now.
        self.unneeded.notify_waiters();
        if self.exchange.has_idle() && self.connector.claim(None) {
            if self.evict_idle(1, 0) == 0 {
                self.connector.unclaim();
            } else {
                self.connector.note(PoolEvent::GivenUp);
            }
        }
    }

    #[expect(clippy::boxed_local, reason = "it comes in a box")]
    fn discard(&self, held: Item<C::Connection>) {
        self.exchange.begin_close(&held.meta, Why::Unhealthy);
        self.spawn_close(held.connection);
    }

    fn close_all(&self, idle: impl IntoIterator<Item = Box<Idle<C::Connection>>>) {
        for idle in idle {
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
    fn spawn_reset(&self, held: Item<C::Connection>) {
        // A reset that is cut off, fails, or leaves it dirty would come back here for ever.
        let mut suspect = Suspect(Some(self.lease(held)));
        let timeout = self.config.health_check_timeout.max(RESET_TIMEOUT_MIN);
        self.exchange.count_reset();
        self.spawn(async move {
            let reset = tokio::time::timeout(timeout, suspect.reset()).await;
            if matches!(reset, Ok(true)) {
                drop(suspect.cleared());
            }
        });
    }

    fn spawn_connects(&self, n: usize) {
        for _ in 0..n.min(self.exchange.beyond_max()) {
            self.connector.note(PoolEvent::Reserve);
        }
        for _ in 0..n {
            let connecting = Connecting {
                pool: self.this.clone(),
                unneeded: Arc::clone(&self.unneeded),
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
                let attempt = async {
                    let admission = connecting.admission(&connector).await?;
                    let connect = connector.connect_admitted(admission);
                    Some(tokio::time::timeout(timeout, connect).await)
                };
                let connected = tokio::select! {
                    connected = attempt => connected,
                    () = ended => return,
                };
                match connected {
                    Some(connected) => connecting.finish(connected.unwrap_or_else(|_| {
                        let age = timeout.as_secs();
                        tracing::info!("closing because: connect timeout (age={age}s)");
                        let error = format!("not connected within {timeout:?}");
                        Err(HeliosError::Network(error))
                    })),
                    None => connecting.counted_out(),
                }
            });
        }
    }

    fn on_connected(&self, connection: C::Connection) {
        let connector = &self.connector;
        let traits = (
            connector.label(&connection),
            connector.has_room(&connection),
        );
        let now = now();
        let Connected {
            new,
            predecessor,
            retry_at,
        } = self
            .exchange
            .connected(connection, traits, &self.config, now, rand::random());
        self.close_all(predecessor);
        self.pass_on(new, now);
        self.connect_if_needed();
        if let Some(at) = retry_at {
            self.spawn_retry(at);
        }
    }

    fn on_connect_failed(&self, error: HeliosError) {
        let error = Arc::new(error);
        let (retry_at, waiters) =
            self.exchange
                .connect_failed(&error, &self.config, now(), rand::random());
        tracing::warn!(%error, waiters, "cannot connect");
        self.shrunk.notify_waiters();
        // Also where nobody waits now: whoever comes before then can't connect and relies on this.
        self.spawn_retry(retry_at);
    }

    /// Opens what is needed then.
    fn spawn_retry(&self, at: Instant) {
        let (this, gone) = (self.this.clone(), Arc::clone(&self.gone));
        self.spawn(async move {
            let until_then = at.saturating_duration_since(now());
            if let Some(pool) = next_round(&this, &gone, until_then).await {
                pool.connect_if_needed();
            }
        });
    }

    fn connect_if_needed(&self) {
        let connects = self.exchange.begin_connects(&self.config, now());
        if connects > 0 {
            self.spawn_connects(connects);
        }
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(self.config.health_check_interval_secs)
    }
}

/// The pool's clock: tokio's, which tests can drive.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl ConnectionMeta {
    /// True once the connection is too old, or has been idle for too long.
    #[must_use]
    pub fn is_expired(&self, config: &ConnectionPoolConfig) -> bool {
        let now = now();
        self.is_too_old(now) || (!self.in_use && self.is_too_idle(config, now))
    }
}

const RESET_TIMEOUT_MIN: Duration = Duration::from_secs(5);

impl<C: Connector> Drop for EnhancedConnectionPool<C> {
    fn drop(&mut self) {
        self.gone.notify_waiters();
        let idle = self.exchange.take_idle();
        self.close_all(idle);
    }
}

impl<C: Connector> fmt::Debug for EnhancedConnectionPool<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnhancedConnectionPool")
            .field("metrics", &self.metrics())
            .finish_non_exhaustive()
    }
}

/// A place in the line: given up when it goes.
struct Place<'a, C: Connector> {
    pool: &'a EnhancedConnectionPool<C>,
    ticket: Option<Ticket>,
    hint: Option<ConnectionHint>,
    /// This very poll has left its waker there.
    is_registered: bool,
}

impl<C: Connector> Place<'_, C> {
    /// `None` once nobody looks after its time any more.
    async fn served_while_watched(&mut self) -> Option<Result<Item<C::Connection>, AcquireError>> {
        let pool = self.pool;
        let mut served = pin!(self.served());
        poll_fn(|context| match served.as_mut().poll(context) {
            Poll::Ready(served) => Poll::Ready(Some(served)),
            // In this order: who is woken at the end finds the place as it was, with its waker.
            Poll::Pending if !pool.is_watching.load(Ordering::Acquire) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    async fn served(&mut self) -> Result<Item<C::Connection>, AcquireError> {
        poll_fn(|context| {
            if std::mem::take(&mut self.is_registered) {
                return Poll::Pending;
            }
            let Some(ticket) = &self.ticket else {
                return Poll::Ready(Err(AcquireError::Closed));
            };
            let hint = self.hint.as_ref();
            match self.pool.exchange.poll(ticket, hint, context.waker()) {
                Some(served) => {
                    self.ticket = None;
                    Poll::Ready(served)
                }
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl<C: Connector> Drop for Place<'_, C> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            match self.pool.exchange.leave(ticket) {
                Some(idle) => self.pool.pass_on(idle, now()),
                None => self.pool.unneeded.notify_waiters(),
            }
        }
    }
}

/// A connection being opened; counted out again whatever becomes of the task.
struct Connecting<C: Connector> {
    pool: Weak<EnhancedConnectionPool<C>>,
    unneeded: Arc<Notify>,
    done: bool,
}

impl<C: Connector> Connecting<C> {
    /// Waits until the attempt may be made. `None` if it may not, or nobody needs it any more: it is counted out then.
    async fn admission(&self, connector: &C) -> Option<Admission> {
        // Before anything is looked at: no word that comes from here on is missed.
        let mut unneeded = pin!(self.unneeded.notified());
        // Whoever waits for an admission holds no pool up that goes.
        let is_urgent = self.pool.upgrade()?.exchange.is_urgent();
        let mut admitted = pin!(connector.admit(is_urgent));
        let admission = loop {
            tokio::select! {
                biased;
                admission = &mut admitted => break admission,
                () = &mut unneeded => {
                    unneeded.set(self.unneeded.notified());
                    let pool = self.pool.upgrade()?;
                    if pool.exchange.give_up_connect(is_urgent) {
                        pool.shrunk.notify_waiters();
                        return None;
                    }
                }
            }
        };
        let pool = self.pool.upgrade()?;
        if admission.is_none() {
            let is_waited_for = pool.exchange.connect_refused(is_urgent);
            pool.shrunk.notify_waiters();
            if is_waited_for {
                pool.connect_if_needed();
            }
        } else if !pool.exchange.admitted(is_urgent) {
            pool.shrunk.notify_waiters();
            return None;
        }
        admission
    }

    fn counted_out(mut self) {
        self.done = true;
    }

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
            pool.exchange.closed();
            pool.shrunk.notify_waiters();
            pool.connect_if_needed();
        }
    }
}
