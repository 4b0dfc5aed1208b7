//! Which connections an acquire would like best.

/// Connections of a pool by [`ConnectionMeta::id`](super::ConnectionMeta::id): those that have what the acquire is for, such
/// as a prepared statement. Small, and copied about.
///
/// A hint that names none says that none has it, and that the connection will have one thing more to keep: then one is
/// preferred that [has room](super::Connector::has_room).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionHint {
    ids: [u64; Self::LEN_MAX],
    len: usize,
}

impl ConnectionHint {
    /// Connections that a hint can name.
    pub const LEN_MAX: usize = 10;

    /// Of these; of the first of them, where there are too many.
    #[must_use]
    pub fn new(ids: &[u64]) -> Self {
        let len = ids.len().min(Self::LEN_MAX);
        let mut hint = Self {
            len,
            ..Self::default()
        };
        hint.ids[..len].copy_from_slice(&ids[..len]);
        hint
    }

    /// True if it names this connection.
    #[must_use]
    pub fn has(&self, id: u64) -> bool {
        self.ids[..self.len].contains(&id)
    }
}
