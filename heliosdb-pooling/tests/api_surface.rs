//! The public names, used the way a pool uses them. That it compiles is half of the test.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use heliosdb_pooling::sizing::{Goal, Load, recommend};
use heliosdb_pooling::{
    Latency, MAX_AFFINITY_CONNECTIONS, MAX_FINGERPRINTS, PoolOptimizer, QueryFingerprint,
};
use uuid::Uuid;

const LIMIT: usize = MAX_AFFINITY_CONNECTIONS;

/// The affinity map as one would write it by hand with the public names: its types must fit.
#[derive(Default)]
struct ByHand {
    affinity_map: HashMap<QueryFingerprint, Vec<Uuid>>,
    execution_time_ms: f64,
}

impl ByHand {
    fn record_query_execution(
        &mut self,
        connection_id: Uuid,
        fingerprint: QueryFingerprint,
        execution_time_ms: f64,
    ) {
        self.affinity_map
            .entry(fingerprint)
            .and_modify(|connections| {
                connections.push(connection_id);
                if connections.len() > MAX_AFFINITY_CONNECTIONS {
                    connections.remove(0);
                }
            })
            .or_insert_with(|| vec![connection_id]);
        self.execution_time_ms += execution_time_ms;
    }
}

#[test]
fn the_optimizer_takes_what_a_map_by_hand_takes_and_agrees_with_it_on_distinct_connections() {
    let optimizer = Arc::new(PoolOptimizer::new());
    let mut by_hand = ByHand::default();
    let fingerprint = QueryFingerprint::of("SELECT 1");
    for _ in 0..LIMIT + 5 {
        let connection_id = Uuid::new_v4();
        optimizer.record_query_execution(connection_id, fingerprint.clone(), 10.0);
        by_hand.record_query_execution(connection_id, fingerprint.clone(), 10.0);
    }
    let preferred: Vec<Uuid> = optimizer.preferred_connections(&fingerprint);
    let mut expected = by_hand.affinity_map[&fingerprint].clone();
    expected.reverse();
    assert_eq!(preferred, expected);
    assert_eq!(preferred.len(), 10);
    let latency: Latency = optimizer.latency(&fingerprint).expect("recorded");
    assert_eq!(by_hand.execution_time_ms, latency.mean_ms * 15.0);
}

#[test]
fn types_cross_threads_and_are_shown() {
    fn shareable<T: Send + Sync + std::fmt::Debug + 'static>() {}
    shareable::<PoolOptimizer>();
    shareable::<QueryFingerprint>();
    shareable::<Latency>();
    assert_eq!(MAX_FINGERPRINTS, 1024);
    let fingerprint = QueryFingerprint::of("SELECT 'secret'");
    assert_eq!(format!("{fingerprint}"), "select ?");
    assert_eq!(format!("{fingerprint:?}"), "QueryFingerprint(\"select ?\")");
}

#[test]
fn a_pool_is_sized_from_what_was_observed() {
    let load = Load::new(2000.0, Duration::from_millis(4), Duration::from_millis(15));
    let advice = recommend(&load, &Goal::default()).expect("a sound load");
    assert!(
        advice.meets_goal && (9..=20).contains(&advice.size),
        "{advice:?}"
    );
}
