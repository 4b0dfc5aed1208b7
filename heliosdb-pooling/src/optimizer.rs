//! What was learnt from the statements that ran.

use std::collections::{BTreeMap, HashMap};

use parking_lot::RwLock;
use rapidhash::fast::RandomState;
use uuid::Uuid;

use crate::affinity::Connections;
use crate::fingerprint::QueryFingerprint;
use crate::latency::Latency;

/// Statements remembered by default.
pub const MAX_FINGERPRINTS: usize = 1024;

/// Learns which connections run which statements, and how long those take.
#[derive(Debug)]
pub struct PoolOptimizer {
    /// Why a lock: map and order change together; what happens under it is a few moves.
    affinity_map: RwLock<Learned>,
    max_fingerprints: usize,
}

#[derive(Debug, Default)]
struct Learned {
    statements: HashMap<QueryFingerprint, Statement, RandomState>,
    /// Statements by when they were last recorded, the oldest first.
    order: BTreeMap<u64, QueryFingerprint>,
    tick: u64,
}

#[derive(Debug, Default)]
struct Statement {
    connections: Connections,
    latency: Latency,
    /// Its place in the order.
    recorded: u64,
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
            affinity_map: RwLock::default(),
            max_fingerprints: max_fingerprints.max(1),
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
        let mut learned = self.affinity_map.write();
        let learned = &mut *learned;
        learned.tick += 1;
        let statement = learned.statements.entry(fingerprint.clone()).or_default();
        learned.order.remove(&statement.recorded);
        statement.recorded = learned.tick;
        statement.connections.touch(connection_id);
        statement.latency.record(execution_time_ms);
        learned.order.insert(learned.tick, fingerprint);
        if learned.statements.len() > self.max_fingerprints
            && let Some((_, oldest)) = learned.order.pop_first()
        {
            learned.statements.remove(&oldest);
        }
    }

    /// The connections that ran the statement, the most recent first.
    #[must_use]
    pub fn preferred_connections(&self, fingerprint: &QueryFingerprint) -> Vec<Uuid> {
        let learned = self.affinity_map.read();
        learned
            .statements
            .get(fingerprint)
            .map(|known| known.connections.as_slice().to_vec())
            .unwrap_or_default()
    }

    /// How long the statement takes, if it is remembered.
    #[must_use]
    pub fn latency(&self, fingerprint: &QueryFingerprint) -> Option<Latency> {
        self.affinity_map
            .read()
            .statements
            .get(fingerprint)
            .map(|known| known.latency)
    }

    /// Forgets a connection that was closed.
    pub fn forget_connection(&self, connection_id: Uuid) {
        for statement in self.affinity_map.write().statements.values_mut() {
            statement.connections.remove(connection_id);
        }
    }

    /// Statements remembered.
    #[must_use]
    pub fn fingerprint_count(&self) -> usize {
        self.affinity_map.read().statements.len()
    }
}
