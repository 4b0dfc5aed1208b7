//! How a pool makes, checks and cleans a connection of some protocol.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::time::Instant;

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

/// Something that a pool does now and then, and that people look for in logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PoolEvent {
    /// A connection of the reserve is opened.
    Reserve,
    /// A connection is closed, so that another pool, or another use, has its place.
    GivenUp,
}

/// The leave to open one connection: kept with it for as long as it stands, where others count on that.
#[derive(Default)]
pub struct Admission(Option<Box<dyn Any + Send + Sync>>);

impl Admission {
    /// With something that is given up when it is dropped.
    #[must_use]
    pub fn holding(held: impl Any + Send + Sync) -> Self {
        Self(Some(Box::new(held)))
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Admission").field(&self.0.is_some()).finish()
    }
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

    /// Waits until one more connection may be opened, where others have a say in that: pools that share a bound. Dropped
    /// when nobody needs the connection any more.
    ///
    /// Where nobody waits for it (`is_waited_for` is false: it would only be kept ready), the answer comes at once, and is
    /// `None` if it may not be opened now. The pool does not count this as time for connecting.
    fn admit(&self, _is_waited_for: bool) -> impl Future<Output = Option<Admission>> + Send {
        std::future::ready(Some(Admission::default()))
    }

    /// As [`connect`](Self::connect). The admission is to be kept until the connection's socket is gone.
    fn connect_admitted(
        &self,
        _admission: Admission,
    ) -> impl Future<Output = Result<Self::Connection>> + Send {
        self.connect()
    }

    /// Whether others may have a claim to a place of this pool. Asked at each end of a lease: as cheap as it can be.
    fn is_crowded(&self) -> bool {
        false
    }

    /// Whether somebody else has a better claim to a place than this pool, where somebody waits since then, or nobody. The
    /// pool closes a connection if so, or says that it [could not](Self::unclaim). Must not block.
    fn claim(&self, _waits_since: Option<Instant>) -> bool {
        false
    }

    /// There was none to be closed after all.
    fn unclaim(&self) {}

    /// Told of what the pool does, for a log. Must not block.
    fn note(&self, _event: PoolEvent) {}

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
