//! A pool of connections to PostgreSQL.

use crate::connection_pool::{Connector, Disposition};
use crate::error::Result;

use super::{PgConnection, PgTarget, cancel};

/// Makes connections to a PostgreSQL server for an [`EnhancedConnectionPool`](crate::EnhancedConnectionPool).
///
/// A transaction that is still open when a lease ends is rolled back before anybody else gets the connection; one whose
/// answer was not read to its end is closed, and its statement cancelled. Settings, prepared statements and temporary objects stay with the connection,
/// unless [`with_discard_all`](Self::with_discard_all) says otherwise.
///
/// ```no_run
/// use heliosdb_network::postgres::{PgConnector, PgTarget};
/// use heliosdb_network::{ConnectionPoolConfig, EnhancedConnectionPool};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let target = PgTarget::from_url("postgres://app:password@127.0.0.1:5432/shop")?;
/// let pool = EnhancedConnectionPool::with_connector(PgConnector::new(target), ConnectionPoolConfig::default())?;
/// let mut connection = pool.acquire().await?;
/// let answers = connection.simple_query("SELECT count(*) FROM orders").await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct PgConnector {
    target: PgTarget,
    discards_all: bool,
}

impl PgConnector {
    /// Connections to where `target` points.
    #[must_use]
    pub fn new(target: PgTarget) -> Self {
        Self {
            target,
            discards_all: false,
        }
    }

    /// Has `DISCARD ALL` run after every lease, which costs a round trip each time: nothing of a session is left to the
    /// next.
    #[must_use]
    pub fn with_discard_all(self) -> Self {
        Self {
            discards_all: true,
            ..self
        }
    }
}

impl Connector for PgConnector {
    type Connection = PgConnection;

    async fn connect(&self) -> Result<PgConnection> {
        let mut connection = PgConnection::connect(&self.target).await?;
        // As after a reset.
        connection.is_used = false;
        Ok(connection)
    }

    async fn check(&self, connection: &mut PgConnection) -> Result<()> {
        let is_used = connection.is_used;
        connection.check().await?;
        connection.is_used = is_used;
        Ok(())
    }

    async fn reset(&self, connection: &mut PgConnection) -> Result<()> {
        if connection.transaction_status() != b'I' {
            connection.simple_query("ROLLBACK").await?;
        }
        if self.discards_all {
            connection.simple_query("DISCARD ALL").await?;
        }
        connection.is_used = false;
        Ok(())
    }

    async fn close(&self, connection: PgConnection) {
        if connection.owes() {
            // Nobody reads what the server is still working on.
            let (pid, secret) = (connection.backend_pid(), connection.backend_secret());
            if let Err(error) = cancel(&connection.target_here(&self.target), pid, &secret).await {
                tracing::debug!(%error, pid, "a statement that nobody waits for was not cancelled");
            }
        }
        connection.terminate().await;
    }

    fn disposition(&self, connection: &PgConnection) -> Disposition {
        if connection.owes() {
            Disposition::Broken
        } else if connection.transaction_status() != b'I' || self.discards_all && connection.is_used
        {
            Disposition::Dirty
        } else {
            Disposition::Clean
        }
    }

    fn is_alive(&self, connection: &mut PgConnection) -> bool {
        connection.is_alive()
    }
}
