//! The connections that ran a statement last.

use uuid::Uuid;

/// Connections remembered for each statement.
pub const MAX_AFFINITY_CONNECTIONS: usize = 10;

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
