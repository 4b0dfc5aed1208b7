//! Which connections have a statement.

use std::ops::Deref;

use parking_lot::Mutex;
use uuid::Uuid;

/// Connections remembered for each statement.
pub const MAX_AFFINITY_CONNECTIONS: usize = 10;

/// Which connections of one pool have a statement prepared: to be kept with the statement, and told by whoever keeps the
/// list of what is prepared on a connection.
///
/// ```
/// use heliosdb_pooling::StatementAffinity;
///
/// let affinity = StatementAffinity::default();
/// affinity.record_prepared(7);
/// affinity.record_prepared(8);
/// affinity.record_execution(7);
/// assert_eq!(*affinity.preferred_connections(), [7, 8]);
/// affinity.forget_connection(7);
/// assert_eq!(*affinity.preferred_connections(), [8]);
/// ```
///
/// A statement that few connections have is on the list of all of them. Where many have it, the list holds those that ran
/// it last, which are also those that a pool hands out next.
#[derive(Debug, Default)]
pub struct StatementAffinity {
    /// Why a lock: the list is moved by each execution. What happens under it moves at most ten numbers.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    connections: PreferredConnections,
    /// How many have it: the list may be too short for all.
    prepared_on: usize,
}

/// At most [`MAX_AFFINITY_CONNECTIONS`] connections, the most recent first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PreferredConnections {
    ids: [u64; MAX_AFFINITY_CONNECTIONS],
    len: usize,
}

impl StatementAffinity {
    /// A connection has prepared the statement that did not have it before.
    pub fn record_prepared(&self, connection_id: u64) {
        let mut known = self.known.lock();
        known.prepared_on += 1;
        known.connections.touch(connection_id);
    }

    /// A connection that has the statement runs it.
    pub fn record_execution(&self, connection_id: u64) {
        self.known.lock().connections.touch(connection_id);
    }

    /// A connection that had the statement gave it up, or was closed.
    pub fn forget_connection(&self, connection_id: u64) {
        let mut known = self.known.lock();
        known.prepared_on = known.prepared_on.saturating_sub(1);
        known.connections.remove(connection_id);
    }

    /// Those that have it and ran it last. Advice, not an order: choose among the idle ones, and never let a client wait
    /// for one of these while another is free.
    #[must_use]
    pub fn preferred_connections(&self) -> PreferredConnections {
        self.known.lock().connections
    }

    /// How many connections have it.
    #[must_use]
    pub fn prepared_on(&self) -> usize {
        self.known.lock().prepared_on
    }
}

impl PreferredConnections {
    fn touch(&mut self, connection: u64) {
        let at = match self.iter().position(|known| *known == connection) {
            Some(at) => at,
            None if self.len < MAX_AFFINITY_CONNECTIONS => {
                self.len += 1;
                self.len - 1
            }
            None => self.len - 1,
        };
        self.ids.copy_within(..at, 1);
        self.ids[0] = connection;
    }

    fn remove(&mut self, connection: u64) {
        if let Some(at) = self.iter().position(|known| *known == connection) {
            self.ids.copy_within(at + 1..self.len, at);
            self.len -= 1;
            // So that equal lists are equal.
            self.ids[self.len] = 0;
        }
    }
}

impl Deref for PreferredConnections {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        &self.ids[..self.len]
    }
}

/// Distinct connections, the most recent first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connections(Vec<Uuid>);

impl Connections {
    /// Moves the connection to the front; the oldest leaves when there are too many.
    pub(crate) fn touch(&mut self, connection: Uuid) {
        match self.0.iter().position(|known| *known == connection) {
            Some(at) => self.0[..=at].rotate_right(1),
            None => {
                self.0.truncate(MAX_AFFINITY_CONNECTIONS - 1);
                self.0.insert(0, connection);
            }
        }
    }

    pub(crate) fn remove(&mut self, connection: Uuid) {
        self.0.retain(|known| *known != connection);
    }

    pub(crate) fn as_slice(&self) -> &[Uuid] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_list_has_the_last_ten_and_the_count_has_all(
            history in prop::collection::vec((1_u64..16, any::<bool>()), 0..200),
        ) {
            let affinity = StatementAffinity::default();
            let mut model: Vec<u64> = Vec::new();
            let mut prepared = std::collections::BTreeSet::new();
            for (connection, gives_up) in history {
                if gives_up {
                    if prepared.remove(&connection) {
                        affinity.forget_connection(connection);
                        model.retain(|known| *known != connection);
                    }
                    continue;
                }
                if prepared.insert(connection) {
                    affinity.record_prepared(connection);
                } else {
                    affinity.record_execution(connection);
                }
                model.retain(|known| *known != connection);
                model.insert(0, connection);
                model.truncate(MAX_AFFINITY_CONNECTIONS);
            }
            prop_assert_eq!(&*affinity.preferred_connections(), &*model);
            prop_assert_eq!(affinity.prepared_on(), prepared.len());
        }
    }
}
