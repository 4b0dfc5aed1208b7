//! How a pool makes, checks and cleans a connection of some protocol.

use std::future::Future;

use crate::error::Result;

/// What a connection is good for at the moment its lease ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a connector must decide between exactly these"
)]
pub enum Disposition {
    /// Can serve anybody: handed to the next waiter at once.
    Clean,
    /// Usable after [`Connector::reset`].
    Dirty,
    /// Must be closed.
    Broken,
}

/// Makes connections for an [`EnhancedConnectionPool`](super::EnhancedConnectionPool) and keeps them usable.
///
/// No method is called while the pool holds its lock, and the asynchronous ones only on a connection that
/// nobody else uses. Each call is bounded by a timeout of the pool's configuration; a connection whose
/// call is cut off by it is closed, never reused.
pub trait Connector: Send + Sync + 'static {
    /// The connection handed out.
    type Connection: Send + 'static;

    /// Opens and authenticates one connection.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection>> + Send;

    /// Asks the peer for a sign of life (Ping/Pong in HIDB, an empty query in PostgreSQL).
    fn check(&self, connection: &mut Self::Connection) -> impl Future<Output = Result<()>> + Send;

    /// Brings a dirty connection back to the state of a new one.
    fn reset(&self, connection: &mut Self::Connection) -> impl Future<Output = Result<()>> + Send;

    /// Says goodbye and closes. Runs in the background; errors have no reader.
    fn close(&self, connection: Self::Connection) -> impl Future<Output = ()> + Send;

    /// What the connection is good for now that its user has let it go. Must not block.
    fn disposition(&self, connection: &Self::Connection) -> Disposition;

    /// A look at the socket that must not block: false on end of file or on bytes nobody asked for.
    fn is_alive(&self, connection: &mut Self::Connection) -> bool;

    /// What distinguishes this connection from its siblings, such as the settings in force.
    /// An acquire that names a label prefers an idle connection that has it.
    fn label(&self, _connection: &Self::Connection) -> u64 {
        0
    }

    /// Whether this connection can keep one thing more of those that [hints](super::ConnectionHint) are about (prepared
    /// statements) without giving up another.
    fn has_room(&self, _connection: &Self::Connection) -> bool {
        true
    }
}
