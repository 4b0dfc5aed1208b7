//! What was learnt from the statements that ran.

use std::sync::Arc;

use parking_lot::RwLock;
use uuid::Uuid;

use crate::affinity::Connections;
use crate::fingerprint::QueryFingerprint;
use crate::latency::Latency;
use crate::recency::RecencyMap;
use crate::statements::{Counts, StatementHandle, StatementStats};

/// Statements remembered by default.
pub const MAX_FINGERPRINTS: usize = 1024;

/// Learns which connections run which statements, and how long those take.
#[derive(Debug)]
pub struct PoolOptimizer {
    /// Why a lock: a statement, its place in the order and its times change together. What happens under it takes
    /// constant time, [`forget_connection`](Self::forget_connection) apart.
    affinity_map: RwLock<RecencyMap<QueryFingerprint, Statement>>,
}

#[derive(Debug, Default)]
struct Statement {
    connections: Connections,
    counts: Arc<Counts>,
}

impl Drop for Statement {
    fn drop(&mut self) {
        self.counts.forget();
    }
}

impl Default for PoolOptimizer {
    fn default() -> Self {
        Self::new()
    }
}

impl PoolOptimizer {
    /// Remembers up to [`MAX_FINGERPRINTS`] statements.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(MAX_FINGERPRINTS)
    }

    /// Remembers up to `max_fingerprints` statements, at least one.
    #[must_use]
    pub fn with_capacity(max_fingerprints: usize) -> Self {
        Self {
            affinity_map: RwLock::new(RecencyMap::new(max_fingerprints)),
        }
    }

    /// Notes that a connection ran a statement. A time that is none (NaN, infinite, negative) is left out of the
    /// statistics.
    pub fn record_query_execution(
        &self,
        connection_id: Uuid,
        fingerprint: QueryFingerprint,
        execution_time_ms: f64,
    ) {
        let mut affinity = self.affinity_map.write();
        let statement = affinity.touch(fingerprint);
        statement.connections.touch(connection_id);
        statement.counts.times.lock().record(execution_time_ms);
    }

    /// The connections that ran the statement, the most recent first. Asking does not count as a use.
    ///
    /// Advice, not an order: choose among the idle ones, and never let a client wait for one of these while another
    /// is free.
    #[must_use]
    pub fn preferred_connections(&self, fingerprint: &QueryFingerprint) -> Vec<Uuid> {
        let affinity = self.affinity_map.read();
        affinity
            .peek(fingerprint)
            .map(|statement| statement.connections.as_slice().to_vec())
            .unwrap_or_default()
    }

    /// Of some idle connections, the one that ran the statement last. `None` if none of them did: then any is as good.
    #[must_use]
    pub fn best_connection(&self, fingerprint: &QueryFingerprint, idle: &[Uuid]) -> Option<Uuid> {
        let affinity = self.affinity_map.read();
        let known = affinity.peek(fingerprint)?.connections.as_slice();
        known
            .iter()
            .find(|connection| idle.contains(connection))
            .copied()
    }

    /// How long the statement takes, if it is remembered.
    #[must_use]
    pub fn latency(&self, fingerprint: &QueryFingerprint) -> Option<Latency> {
        let affinity = self.affinity_map.read();
        affinity
            .peek(fingerprint)
            .map(|statement| statement.counts.times.lock().summary())
    }

    /// Where to count what becomes of a statement, which is remembered from here on.
    #[must_use]
    pub fn statement(&self, fingerprint: QueryFingerprint) -> StatementHandle {
        StatementHandle::new(&self.affinity_map.write().touch(fingerprint).counts)
    }

    /// All statements remembered, those first that took the most time in all.
    #[must_use]
    pub fn statements(&self) -> Vec<StatementStats> {
        let mut statements: Vec<_> = self
            .affinity_map
            .read()
            .iter()
            .map(|(fingerprint, statement)| statement.counts.stats(fingerprint.clone()))
            .collect();
        statements.sort_by(|a, b| b.total_ms().total_cmp(&a.total_ms()));
        statements
    }

    /// Forgets a connection that was closed. Looks at every statement: connections close seldom, and an index for them
    /// would make every recording dearer.
    pub fn forget_connection(&self, connection_id: Uuid) {
        for statement in self.affinity_map.write().values_mut() {
            statement.connections.remove(connection_id);
        }
    }

    /// Statements remembered.
    #[must_use]
    pub fn fingerprint_count(&self) -> usize {
        self.affinity_map.read().len()
    }
}
