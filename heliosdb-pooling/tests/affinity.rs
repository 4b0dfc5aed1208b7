//! The affinity map is bounded in both dimensions, keeps distinct connections by recency, and forgets.

use std::time::Duration;

use heliosdb_pooling::{MAX_AFFINITY_CONNECTIONS, PoolOptimizer, QueryFingerprint};
use proptest::prelude::*;
use uuid::Uuid;

fn fingerprint(n: usize) -> QueryFingerprint {
    QueryFingerprint::of(&format!("SELECT * FROM t{n}"))
}

#[test]
fn a_busy_connection_does_not_push_out_the_others() {
    let optimizer = PoolOptimizer::new();
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    optimizer.record_query_execution(b, fingerprint(1), 1.0);
    for _ in 0..100 {
        optimizer.record_query_execution(a, fingerprint(1), 1.0);
    }
    assert_eq!(optimizer.preferred_connections(&fingerprint(1)), [a, b]);
}

#[test]
fn ad_hoc_statements_do_not_grow_the_map() {
    let optimizer = PoolOptimizer::with_capacity(50);
    let connection = Uuid::new_v4();
    for n in 0..10_000 {
        optimizer.record_query_execution(connection, fingerprint(n), 1.0);
    }
    assert_eq!(optimizer.fingerprint_count(), 50);
    assert!(optimizer.preferred_connections(&fingerprint(0)).is_empty());
    assert_eq!(
        optimizer.preferred_connections(&fingerprint(9_999)),
        [connection]
    );
}

#[test]
fn a_closed_connection_is_not_advised() {
    let optimizer = PoolOptimizer::new();
    let (open, closed) = (Uuid::new_v4(), Uuid::new_v4());
    optimizer.record_query_execution(open, fingerprint(1), 1.0);
    optimizer.record_query_execution(closed, fingerprint(1), 1.0);
    optimizer.forget_connection(closed);
    assert_eq!(optimizer.preferred_connections(&fingerprint(1)), [open]);
}

#[test]
fn the_best_of_the_idle_ones_is_the_one_that_ran_the_statement_last() {
    let optimizer = PoolOptimizer::new();
    let [a, b, c] = [(); 3].map(|()| Uuid::new_v4());
    for connection in [a, b, c] {
        optimizer.record_query_execution(connection, fingerprint(1), 1.0);
    }
    let best = |idle: &[Uuid]| optimizer.best_connection(&fingerprint(1), idle);
    assert_eq!(best(&[a, b]), Some(b));
    assert_eq!(best(&[a]), Some(a));
    assert_eq!(best(&[Uuid::new_v4()]), None);
    assert_eq!(best(&[]), None);
    assert_eq!(optimizer.best_connection(&fingerprint(2), &[a]), None);
}

#[test]
fn times_are_summarised_and_nonsense_is_left_out() {
    let optimizer = PoolOptimizer::new();
    for ms in [1.0, f64::NAN, 3.0] {
        optimizer.record_query_execution(Uuid::new_v4(), fingerprint(1), ms);
    }
    let latency = optimizer.latency(&fingerprint(1)).expect("recorded");
    assert_eq!((latency.count, latency.mean_ms), (2, 2.0));
}

#[test]
fn what_becomes_of_statements_is_counted_until_they_make_room() {
    let optimizer = PoolOptimizer::with_capacity(2);
    let (first, second) = (
        optimizer.statement(fingerprint(1)),
        optimizer.statement(fingerprint(2)),
    );
    first.record_miss();
    first.record_execution();
    first.record_time(Duration::from_millis(4));
    first.record_hit();
    first.record_hit();
    second.record_refusal("volatile");
    second.record_execution();
    second.record_time(Duration::from_millis(90));
    // Another handle counts in the same place.
    optimizer.statement(fingerprint(1)).record_hit();
    let statements = optimizer.statements();
    let [slow, fast] = &*statements else {
        panic!("{statements:?}");
    };
    assert_eq!(
        (slow.calls(), slow.refused, slow.refusal),
        (1, 1, Some("volatile"))
    );
    assert_eq!((fast.calls(), fast.hits, fast.misses), (4, 3, 1));
    assert!((fast.total_ms() - 4.0).abs() < 0.01, "{fast:?}");

    let third = optimizer.statement(fingerprint(3));
    assert!(second.is_forgotten() && !first.is_forgotten() && !third.is_forgotten());
    let again = optimizer.statement(fingerprint(2));
    again.record_hit();
    assert!(first.is_forgotten());
    let known: Vec<_> = optimizer
        .statements()
        .iter()
        .map(|known| known.hits)
        .collect();
    assert_eq!(known.iter().sum::<u64>(), 1, "counted from the start");
}

proptest! {
    #[test]
    fn bounds_and_recency_hold_for_any_history(
        history in prop::collection::vec((0_usize..20, 0_u128..30, any::<bool>()), 0..300),
    ) {
        let optimizer = PoolOptimizer::with_capacity(8);
        let mut model: Vec<(usize, Vec<Uuid>)> = Vec::new();
        for (statement, connection, forget) in history {
            let connection = Uuid::from_u128(connection);
            if forget {
                optimizer.forget_connection(connection);
                for (_, connections) in &mut model {
                    connections.retain(|known| *known != connection);
                }
                continue;
            }
            optimizer.record_query_execution(connection, fingerprint(statement), 1.0);
            let at = model.iter().position(|(known, _)| *known == statement);
            let mut entry = at.map_or((statement, Vec::new()), |at| model.remove(at));
            entry.1.retain(|known| *known != connection);
            entry.1.insert(0, connection);
            entry.1.truncate(MAX_AFFINITY_CONNECTIONS);
            model.insert(0, entry);
            model.truncate(8);
        }
        prop_assert_eq!(optimizer.fingerprint_count(), model.len());
        for (statement, connections) in model {
            prop_assert_eq!(optimizer.preferred_connections(&fingerprint(statement)), connections);
        }
    }
}
