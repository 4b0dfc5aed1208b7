//! The pools, all with ten connections that do nothing, and with what they do by default: limits of time included, and
//! checks of idle connections as far as they are free here.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use heliosdb_network::connection_pool::{Connector, Disposition};
use heliosdb_network::{ConnectionPoolConfig, EnhancedConnectionPool, Lease};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::CONNECTIONS;
use super::sqlx::{self, Dial, SqlxLease, SqlxPool};

/// A pool: dropping what it hands out gives it back.
pub(super) trait Contestant: Send + Sync + 'static {
    type Lease<'a>: Send;

    fn acquire(&self) -> impl Future<Output = Self::Lease<'_>> + Send;
}

/// Something to be done with each of them.
pub(super) trait Visitor {
    fn visit<C: Contestant>(&mut self, name: &'static str, pool: Arc<C>) -> anyhow::Result<()>;
}

/// The measure of all, for what has to be done at least: a semaphore before a list.
pub(super) const FLOOR: &str = "semaphore and list";
pub(super) const OURS: &str = "heliosdb-network";

pub(super) fn visit(visitor: &mut impl Visitor) -> anyhow::Result<()> {
    visitor.visit(FLOOR, Arc::new(Floor::new()))?;
    visitor.visit(OURS, ours()?)?;
    visitor.visit("deadpool", Arc::new(deadpool()?))?;
    visitor.visit("bb8", Arc::new(bb8()))?;
    visitor.visit("mobc", Arc::new(mobc()))?;
    let sqlx = sqlx::pool(Free, CONNECTIONS, Duration::from_secs(30));
    visitor.visit("sqlx", Arc::new(sqlx))
}

/// A connection that does nothing.
#[derive(Debug)]
pub(super) struct Nothing;

pub(super) struct Floor {
    permits: Semaphore,
    connections: Mutex<VecDeque<Nothing>>,
}

pub(super) struct FloorLease<'a> {
    pool: &'a Floor,
    connection: Option<Nothing>,
    /// Given back after the connection.
    _permit: SemaphorePermit<'a>,
}

impl Floor {
    fn new() -> Self {
        Self {
            permits: Semaphore::new(CONNECTIONS),
            connections: Mutex::new((0..CONNECTIONS).map(|_| Nothing).collect()),
        }
    }
}

impl Contestant for Floor {
    type Lease<'a> = FloorLease<'a>;

    async fn acquire(&self) -> FloorLease<'_> {
        let permit = self.permits.acquire().await.expect("never closed");
        FloorLease {
            pool: self,
            connection: self.connections.lock().pop_front(),
            _permit: permit,
        }
    }
}

impl Drop for FloorLease<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.connections.lock().push_back(connection);
        }
    }
}

pub(super) struct Ours;

impl Connector for Ours {
    type Connection = Nothing;

    async fn connect(&self) -> heliosdb_network::Result<Nothing> {
        Ok(Nothing)
    }

    async fn check(&self, _: &mut Nothing) -> heliosdb_network::Result<()> {
        Ok(())
    }

    async fn reset(&self, _: &mut Nothing) -> heliosdb_network::Result<()> {
        Ok(())
    }

    async fn close(&self, _: Nothing) {}

    fn disposition(&self, _: &Nothing) -> Disposition {
        Disposition::Clean
    }

    fn is_alive(&self, _: &mut Nothing) -> bool {
        true
    }
}

fn ours() -> anyhow::Result<Arc<EnhancedConnectionPool<Ours>>> {
    let mut config = ConnectionPoolConfig::default();
    config.max_connections = CONNECTIONS;
    config.leak_threshold = Some(Duration::from_secs(60));
    Ok(EnhancedConnectionPool::with_connector(Ours, config)?)
}

impl Contestant for EnhancedConnectionPool<Ours> {
    type Lease<'a> = Lease<Ours>;

    async fn acquire(&self) -> Lease<Ours> {
        Self::acquire(self).await.expect("nothing fails")
    }
}

pub(super) struct Manager;

impl deadpool::managed::Manager for Manager {
    type Type = Nothing;
    type Error = Infallible;

    async fn create(&self) -> Result<Nothing, Infallible> {
        Ok(Nothing)
    }

    async fn recycle(
        &self,
        _: &mut Nothing,
        _: &deadpool::managed::Metrics,
    ) -> deadpool::managed::RecycleResult<Infallible> {
        Ok(())
    }
}

fn deadpool() -> anyhow::Result<deadpool::managed::Pool<Manager>> {
    let pool = deadpool::managed::Pool::builder(Manager)
        .max_size(CONNECTIONS)
        .wait_timeout(Some(Duration::from_secs(30)))
        .runtime(deadpool::Runtime::Tokio1)
        .build()?;
    Ok(pool)
}

impl Contestant for deadpool::managed::Pool<Manager> {
    type Lease<'a> = deadpool::managed::Object<Manager>;

    async fn acquire(&self) -> deadpool::managed::Object<Manager> {
        self.get().await.expect("nothing fails")
    }
}

impl bb8::ManageConnection for Manager {
    type Connection = Nothing;
    type Error = Infallible;

    async fn connect(&self) -> Result<Nothing, Infallible> {
        Ok(Nothing)
    }

    async fn is_valid(&self, _: &mut Nothing) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, _: &mut Nothing) -> bool {
        false
    }
}

fn bb8() -> bb8::Pool<Manager> {
    let size = u32::try_from(CONNECTIONS).expect("a small number");
    bb8::Pool::builder().max_size(size).build_unchecked(Manager)
}

impl Contestant for bb8::Pool<Manager> {
    type Lease<'a> = bb8::PooledConnection<'a, Manager>;

    async fn acquire(&self) -> bb8::PooledConnection<'_, Manager> {
        self.get().await.expect("nothing fails")
    }
}

#[mobc::async_trait]
impl mobc::Manager for Manager {
    type Connection = Nothing;
    type Error = Infallible;

    async fn connect(&self) -> Result<Nothing, Infallible> {
        Ok(Nothing)
    }

    async fn check(&self, connection: Nothing) -> Result<Nothing, Infallible> {
        Ok(connection)
    }
}

fn mobc() -> mobc::Pool<Manager> {
    let size = u64::try_from(CONNECTIONS).expect("a small number");
    mobc::Pool::builder()
        .max_open(size)
        .max_idle(size)
        .build(Manager)
}

impl Contestant for mobc::Pool<Manager> {
    type Lease<'a> = mobc::Connection<Manager>;

    async fn acquire(&self) -> mobc::Connection<Manager> {
        self.get().await.expect("nothing fails")
    }
}

/// What costs nothing to dial.
#[derive(Debug, Clone)]
pub(super) struct Free;

impl Dial for Free {
    type Stream = Nothing;

    async fn dial(&self) -> std::io::Result<Nothing> {
        Ok(Nothing)
    }
}

impl Contestant for SqlxPool<Free> {
    type Lease<'a> = SqlxLease<Free>;

    async fn acquire(&self) -> SqlxLease<Free> {
        Self::acquire(self).await.expect("nothing fails")
    }
}
