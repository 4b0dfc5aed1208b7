//! A connector without a network that does what it is told to and counts what is done to it.

#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test uses a part of it"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use heliosdb_network::connection_pool::{Admission, Connector, Disposition};
use heliosdb_network::{
    ConnectionPoolConfig, EnhancedConnectionPool, HeliosError, Lease, PoolMetrics, Result,
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

pub(crate) type Pool = EnhancedConnectionPool<TestConnector>;
pub(crate) type TestLease = Lease<TestConnector>;

/// What the server does when it is asked for something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Act {
    #[default]
    Work,
    Slow(Duration),
    Hang,
    /// An error that time may heal.
    Fail,
    /// An error that only a changed configuration heals.
    Refuse,
    Panic,
}

/// What the server does for each kind of request.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Plan {
    pub(crate) connect: Act,
    pub(crate) check: Act,
    pub(crate) reset: Act,
    pub(crate) close: Act,
}

/// What was done to the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Attempts to connect.
    pub(crate) attempts: usize,
    pub(crate) opened: usize,
    /// Connections whose `close` was called.
    pub(crate) closed: usize,
    pub(crate) checks: usize,
    pub(crate) resets: usize,
    /// Attempts under way, and the most there ever were.
    pub(crate) connecting: usize,
    pub(crate) connecting_max: usize,
    /// Sockets, from the beginning of the attempt to the drop of the connection, and the most there ever were.
    pub(crate) sockets: usize,
    pub(crate) sockets_max: usize,
}

/// The server's side of all connections. Only the connector and its connections share it with the test.
#[derive(Debug, Default)]
pub(crate) struct World {
    plan: Mutex<Plan>,
    counts: Mutex<Counts>,
    /// Shared with others, if set: one for each connection.
    places: Mutex<Option<Arc<Semaphore>>>,
    /// Somebody else wants one.
    is_claimed: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct TestConnector(Arc<World>);

#[derive(Debug)]
pub(crate) struct TestConnection {
    /// Unique within the world, counted from 1.
    pub(crate) number: usize,
    pub(crate) disposition: Disposition,
    pub(crate) alive: bool,
    pub(crate) label: u64,
    pub(crate) has_room: bool,
    admission: Admission,
    socket: Socket,
}

#[derive(Debug)]
struct Socket(Arc<World>);

struct Attempt(Arc<World>);

impl World {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn plan(&self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.plan.lock());
    }

    /// Lets no more connections stand than there are places.
    pub(crate) fn share(&self, places: &Arc<Semaphore>) {
        *self.places.lock() = Some(Arc::clone(places));
    }

    pub(crate) fn claim(&self, is_claimed: bool) {
        self.is_claimed.store(is_claimed, Ordering::SeqCst);
    }

    pub(crate) fn counts(&self) -> Counts {
        *self.counts.lock()
    }

    /// A pool of connections to this world.
    pub(crate) fn pool(self: &Arc<Self>, config: ConnectionPoolConfig) -> Arc<Pool> {
        Pool::with_connector(TestConnector(Arc::clone(self)), config).expect("a valid config")
    }
}

impl Act {
    async fn perform(self) -> Result<()> {
        match self {
            Self::Work => {}
            Self::Slow(duration) => tokio::time::sleep(duration).await,
            Self::Hang => std::future::pending().await,
            Self::Fail => return Err(HeliosError::Network("out of order".to_owned())),
            Self::Refuse => return Err(HeliosError::Unsupported("not for you".to_owned())),
            Self::Panic => panic!("the connector panics as it was told to"),
        }
        Ok(())
    }
}

impl Connector for TestConnector {
    type Connection = TestConnection;

    async fn connect(&self) -> Result<TestConnection> {
        let socket = Socket::open(&self.0);
        let attempt = Attempt::begin(&self.0);
        let act = self.0.plan.lock().connect;
        act.perform().await?;
        drop(attempt);
        let number = {
            let mut counts = self.0.counts.lock();
            counts.opened += 1;
            counts.opened
        };
        Ok(TestConnection {
            number,
            disposition: Disposition::Clean,
            alive: true,
            label: 0,
            has_room: true,
            admission: Admission::default(),
            socket,
        })
    }

    async fn admit(&self, is_waited_for: bool) -> Option<Admission> {
        let Some(places) = self.0.places.lock().clone() else {
            return Some(Admission::default());
        };
        let place = if is_waited_for {
            places.acquire_owned().await.ok()?
        } else {
            places.try_acquire_owned().ok()?
        };
        Some(Admission::holding(place))
    }

    async fn connect_admitted(&self, admission: Admission) -> Result<TestConnection> {
        let connection = self.connect().await?;
        Ok(TestConnection {
            admission,
            ..connection
        })
    }

    fn is_crowded(&self) -> bool {
        let is_full = |places: &Arc<Semaphore>| places.available_permits() == 0;
        self.0.is_claimed.load(Ordering::SeqCst)
            || self.0.places.lock().as_ref().is_some_and(is_full)
    }

    fn claim(&self, _waits_since: Option<Instant>) -> bool {
        self.0.is_claimed.load(Ordering::SeqCst)
    }

    async fn check(&self, _connection: &mut TestConnection) -> Result<()> {
        self.0.counts.lock().checks += 1;
        let act = self.0.plan.lock().check;
        act.perform().await
    }

    async fn reset(&self, connection: &mut TestConnection) -> Result<()> {
        self.0.counts.lock().resets += 1;
        let act = self.0.plan.lock().reset;
        act.perform().await?;
        connection.disposition = Disposition::Clean;
        Ok(())
    }

    async fn close(&self, connection: TestConnection) {
        self.0.counts.lock().closed += 1;
        let act = self.0.plan.lock().close;
        let _ = act.perform().await;
        drop(connection);
    }

    fn disposition(&self, connection: &TestConnection) -> Disposition {
        connection.disposition
    }

    fn is_alive(&self, connection: &mut TestConnection) -> bool {
        connection.alive
    }

    fn label(&self, connection: &TestConnection) -> u64 {
        connection.label
    }

    fn has_room(&self, connection: &TestConnection) -> bool {
        connection.has_room
    }
}

impl Socket {
    fn open(world: &Arc<World>) -> Self {
        let mut counts = world.counts.lock();
        counts.sockets += 1;
        counts.sockets_max = counts.sockets_max.max(counts.sockets);
        Self(Arc::clone(world))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.0.counts.lock().sockets -= 1;
    }
}

impl Attempt {
    fn begin(world: &Arc<World>) -> Self {
        let mut counts = world.counts.lock();
        counts.attempts += 1;
        counts.connecting += 1;
        counts.connecting_max = counts.connecting_max.max(counts.connecting);
        Self(Arc::clone(world))
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.0.counts.lock().connecting -= 1;
    }
}

/// At most `max` connections that never grow old and are checked once an hour.
pub(crate) fn config(max: usize) -> ConnectionPoolConfig {
    let mut config = ConnectionPoolConfig::default();
    config.max_connections = max;
    config.max_lifetime = None;
    config.idle_timeout = None;
    config.health_check_interval_secs = 3600;
    config.validation_bypass = SECOND * 3600;
    config
}

/// Lets every task run until it waits for time or for another; faked time stands still meanwhile.
pub(crate) async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// Acquires `n` connections and holds them all.
pub(crate) async fn acquire_many(pool: &Pool, n: usize) -> Vec<TestLease> {
    let mut leases = Vec::with_capacity(n);
    for _ in 0..n {
        leases.push(pool.acquire().await.expect("a connection"));
    }
    leases
}

/// Asserts that the pool's counts are those of the world, and within their bound.
#[track_caller]
pub(crate) fn assert_counts_agree(pool: &Pool, world: &World) {
    let (metrics, counts) = (pool.metrics(), world.counts());
    assert_eq!(total(&metrics), counts.sockets, "{metrics:?} {counts:?}");
    assert!(counts.sockets_max <= metrics.max, "{metrics:?} {counts:?}");
}

pub(crate) fn total(metrics: &PoolMetrics) -> usize {
    metrics.idle + metrics.active + metrics.connecting + metrics.closing
}

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MS: Duration = Duration::from_millis(1);
