//! A connection on loan.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use super::meta::Item;
use super::{ConnectionMeta, Connector, EnhancedConnectionPool};

/// A connection that is the holder's until it drops it; then it goes to the next in line, after a reset if the
/// [`Connector`] calls it dirty, or is closed if it calls it broken.
pub struct Lease<C: Connector> {
    pool: Arc<EnhancedConnectionPool<C>>,
    /// Present until the lease ends.
    held: Option<Item<C::Connection>>,
}

impl<C: Connector> Lease<C> {
    pub(super) fn new(pool: Arc<EnhancedConnectionPool<C>>, held: Item<C::Connection>) -> Self {
        Self {
            pool,
            held: Some(held),
        }
    }

    /// Gives the connection back as of `now`, for who has just looked at the clock. Dropping the lease does the same, and
    /// looks itself; so does what is reset or closed first.
    pub fn release_at(mut self, now: Instant) {
        if let Some(held) = self.held.take() {
            self.pool.release(held, Some(now));
        }
    }

    /// Closes the connection instead of giving it back.
    pub fn discard(mut self) {
        if let Some(held) = self.held.take() {
            self.pool.discard(held);
        }
    }

    /// What is known of the connection.
    #[must_use]
    pub fn meta(&self) -> &ConnectionMeta {
        &self.held().meta
    }

    pub(super) fn pool(&self) -> &EnhancedConnectionPool<C> {
        &self.pool
    }

    pub(super) fn pool_handle(&self) -> Arc<EnhancedConnectionPool<C>> {
        Arc::clone(&self.pool)
    }

    pub(super) fn connector(&self) -> Arc<C> {
        Arc::clone(&self.pool.connector)
    }

    pub(super) fn into_held(mut self) -> Item<C::Connection> {
        self.held.take().expect("present until the lease ends")
    }

    fn held(&self) -> &Item<C::Connection> {
        self.held.as_ref().expect("present until the lease ends")
    }
}

impl<C: Connector> Deref for Lease<C> {
    type Target = C::Connection;

    fn deref(&self) -> &C::Connection {
        &self.held().connection
    }
}

impl<C: Connector> DerefMut for Lease<C> {
    fn deref_mut(&mut self) -> &mut C::Connection {
        &mut self
            .held
            .as_mut()
            .expect("present until the lease ends")
            .connection
    }
}

impl<C: Connector> Drop for Lease<C> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.pool.release(held, None);
        }
    }
}

impl<C: Connector> fmt::Debug for Lease<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("meta", &self.held.as_ref().map(|held| &held.meta))
            .finish_non_exhaustive()
    }
}
