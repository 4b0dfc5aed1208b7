//! What is known of a connection besides itself.

use std::panic::Location;
use std::time::{Duration, Instant};

use super::ConnectionPoolConfig;

/// What is known of a connection besides itself.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectionMeta {
    /// Unique within the pool.
    pub id: u64,
    /// When it was opened.
    pub created: Instant,
    /// Handed out, or being checked or reset.
    pub in_use: bool,
    /// When it was set aside for whoever acquired it last (it may have been checked after that), or else opened.
    pub acquired: Instant,
    pub(super) expires: Option<Instant>,
    /// When it was last used.
    pub(super) idle_since: Instant,
    /// When it was last known to be good: the end of its last use or of its last check.
    pub(super) verified: Instant,
    pub(super) generation: u64,
    /// Its place among those that stand.
    pub(super) slot: usize,
}

impl ConnectionMeta {
    pub(super) fn is_too_old(&self, now: Instant) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }

    pub(super) fn is_too_idle(&self, config: &ConnectionPoolConfig, now: Instant) -> bool {
        config
            .idle_timeout
            .is_some_and(|timeout| now.saturating_duration_since(self.idle_since) >= timeout)
    }

    /// How long nothing was heard of the peer.
    pub(super) fn unverified_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.verified)
    }
}

/// A connection and what is known of it. It moves between hands all the time, and so is boxed.
pub(super) type Item<T> = Box<Idle<T>>;

#[derive(Debug)]
pub(super) struct Idle<T> {
    pub(super) connection: T,
    pub(super) meta: ConnectionMeta,
    pub(super) label: u64,
    /// It can keep one thing more without giving up another.
    pub(super) has_room: bool,
}

/// A connection on loan, for diagnosis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseInfo {
    /// [`ConnectionMeta::id`].
    pub connection: u64,
    /// How long it has been on loan.
    pub held: Duration,
    /// Where it was acquired.
    pub place: &'static Location<'static>,
}
