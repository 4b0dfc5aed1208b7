//! Which of the idle connections an acquire gets that says what it is for, and that nobody waits for it.

mod support;

use std::sync::Arc;
use std::time::Duration;

use heliosdb_network::connection_pool::ConnectionHint;
use support::{Act, Pool, SECOND, TestLease, World, acquire_many, settle};
use tokio::time::{Instant, advance};

/// A pool of idle connections, made in turn as it is said: the label, and whether there is room. The last is the hottest.
async fn pool_of(kinds: &[(u64, bool)]) -> (Arc<Pool>, Vec<u64>) {
    let pool = World::new().pool(support::config(kinds.len()));
    let mut leases = acquire_many(&pool, kinds.len()).await;
    let ids = leases.iter().map(|lease| lease.meta().id).collect();
    for (lease, (label, has_room)) in leases.iter_mut().zip(kinds) {
        (lease.label, lease.has_room) = (*label, *has_room);
    }
    for lease in leases {
        drop(lease);
        advance(SECOND / 1000).await;
    }
    (pool, ids)
}

/// What is chosen, by either way of asking, which must agree; it is as hot as before afterwards.
async fn chosen(pool: &Arc<Pool>, label: u64, hint: &[u64]) -> u64 {
    let hint = ConnectionHint::new(hint);
    let id = |lease: &TestLease| lease.meta().id;
    let order = pool.metrics().idle;
    let lease = pool
        .try_acquire_hinted(label, &hint)
        .expect("some are idle");
    let at_once = id(&lease);
    // Nothing else can be chosen than what was before: the order is restored by using all, the hottest last.
    let rest = acquire_many(pool, order - 1).await;
    let mut all: Vec<_> = rest.into_iter().chain([lease]).collect();
    all.sort_by_key(id);
    for lease in all {
        drop(lease);
        advance(SECOND / 1000).await;
    }
    let lease = pool
        .acquire_hinted(label, hint)
        .await
        .expect("some are idle");
    assert_eq!(id(&lease), at_once);
    let rest = acquire_many(pool, order - 1).await;
    let mut all: Vec<_> = rest.into_iter().chain([lease]).collect();
    all.sort_by_key(id);
    for lease in all {
        drop(lease);
        advance(SECOND / 1000).await;
    }
    at_once
}

#[tokio::test(start_paused = true)]
async fn the_label_goes_before_the_hint_and_both_before_heat() {
    let kinds = [(7, true), (0, true), (7, true), (0, true)];
    let (pool, ids) = pool_of(&kinds).await;
    assert_eq!(chosen(&pool, 7, &[ids[0]]).await, ids[0], "label and hint");
    assert_eq!(chosen(&pool, 7, &[ids[3]]).await, ids[2], "label only");
    assert_eq!(chosen(&pool, 9, &[ids[1]]).await, ids[1], "hint only");
    assert_eq!(chosen(&pool, 9, &[99]).await, ids[3], "the hottest");
    assert_eq!(
        chosen(&pool, 0, &ids).await,
        ids[3],
        "the hottest of those named"
    );
    let metrics = pool.metrics();
    assert_eq!((metrics.hinted, metrics.affinity_hits), (10, 6));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_has_goes_where_there_is_room_or_else_to_the_coldest() {
    let (pool, ids) = pool_of(&[(0, false), (0, true), (0, true), (0, false)]).await;
    assert_eq!(chosen(&pool, 0, &[]).await, ids[2], "the hottest with room");
    assert_eq!(
        chosen(&pool, 0, &[ids[3]]).await,
        ids[3],
        "who has it needs none"
    );
    let (pool, ids) = pool_of(&[(0, false), (7, false), (7, false), (0, false)]).await;
    assert_eq!(chosen(&pool, 0, &[]).await, ids[0], "the coldest");
    assert_eq!(
        chosen(&pool, 7, &[ids[0]]).await,
        ids[1],
        "of those with the label"
    );
    assert_eq!(chosen(&pool, 9, &[]).await, ids[0]);
    // Another label costs a round trip once; what is given up for want of room is missed again and again.
    let (pool, ids) = pool_of(&[(0, true), (0, false), (7, false)]).await;
    assert_eq!(chosen(&pool, 7, &[ids[1]]).await, ids[0], "room");
    assert_eq!(
        chosen(&pool, 9, &[ids[1]]).await,
        ids[1],
        "the hint, as all cost that"
    );
    assert_eq!(chosen(&pool, 9, &[]).await, ids[0], "room");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_the_connection_that_is_hinted_at() {
    let (pool, ids) = pool_of(&[(0, true), (0, true)]).await;
    let hint = ConnectionHint::new(&[ids[0]]);
    let busy = pool.try_acquire_hinted(0, &hint).expect("idle");
    assert_eq!(busy.meta().id, ids[0]);
    let began = Instant::now();
    let other = pool.acquire_hinted(0, hint).await.expect("the other");
    assert_eq!((other.meta().id, began.elapsed()), (ids[1], Duration::ZERO));
    // Who waits takes what comes first.
    let waiting = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.acquire_hinted(0, hint).await }
    });
    settle().await;
    drop(other);
    let given = waiting.await.expect("no panic").expect("served");
    assert_eq!(given.meta().id, ids[1]);
    let metrics = pool.metrics();
    assert_eq!((metrics.hinted, metrics.affinity_hits), (3, 1));
}

/// One that nobody has heard of for long is asked before it is handed out: that is a wait.
#[tokio::test(start_paused = true)]
async fn one_that_needs_a_check_first_is_not_preferred() {
    let world = World::new();
    let mut config = support::config(2);
    config.validation_bypass = 10 * SECOND;
    let pool = world.pool(config);
    let mut leases = acquire_many(&pool, 2).await;
    let (hot, cold) = (leases.pop().expect("two"), leases.pop().expect("two"));
    let hint = ConnectionHint::new(&[cold.meta().id]);
    let hot_id = hot.meta().id;
    drop(cold);
    advance(10 * SECOND).await;
    drop(hot);
    world.plan(|plan| plan.check = Act::Hang);
    let lease = pool.try_acquire_hinted(0, &hint).expect("idle");
    assert_eq!(lease.meta().id, hot_id);
    drop(lease);
    let lease = pool.acquire_hinted(0, hint).await.expect("idle");
    assert_eq!((lease.meta().id, world.counts().checks), (hot_id, 0));
    drop(lease);
    // Where all of them do, one is checked.
    world.plan(|plan| plan.check = Act::Work);
    advance(10 * SECOND).await;
    assert!(pool.try_acquire_hinted(0, &hint).is_none());
    drop(pool.acquire_hinted(0, hint).await.expect("checked"));
    assert_eq!(world.counts().checks, 1);
}

#[test]
fn a_hint_names_ten_at_the_most() {
    let ids: Vec<u64> = (1..=12).collect();
    let hint = ConnectionHint::new(&ids);
    let named = (0..20).filter(|id| hint.has(*id));
    assert_eq!(named.collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
    // A free place names nobody.
    assert!(!ConnectionHint::default().has(0));
}
