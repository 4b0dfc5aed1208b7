//! Connections beyond the pool's size, for those who have waited for long.

mod support;

use std::sync::Arc;

use heliosdb_network::AcquireError;
use heliosdb_network::connection_pool::ConnectionPoolConfig;
use support::{MS, Pool, SECOND, TestLease, World, acquire_many, settle, total};
use tokio::task::JoinHandle;
use tokio::time::sleep;

fn with_reserve(max: usize, reserve: usize) -> ConnectionPoolConfig {
    let mut config = support::config(max);
    config.reserve_size = reserve;
    config.reserve_timeout = 5 * SECOND;
    config
}

fn spawn_acquire(pool: &Arc<Pool>) -> JoinHandle<Result<TestLease, AcquireError>> {
    let pool = Arc::clone(pool);
    tokio::spawn(async move { pool.acquire().await })
}

async fn served(waiting: JoinHandle<Result<TestLease, AcquireError>>) -> TestLease {
    waiting.await.expect("no panic").expect("served")
}

#[tokio::test(start_paused = true)]
async fn who_has_waited_long_enough_gets_one_of_the_reserve_and_no_sooner() {
    let world = World::new();
    let pool = world.pool(with_reserve(2, 2));
    let _held = acquire_many(&pool, 2).await;
    let first = spawn_acquire(&pool);
    sleep(3 * SECOND).await;
    let second = spawn_acquire(&pool);
    sleep(2 * SECOND - MS).await;
    assert_eq!(world.counts().opened, 2);
    sleep(2 * MS).await;
    settle().await;
    assert!(first.is_finished() && !second.is_finished());
    // Each for itself: it does not matter that others were served meanwhile.
    sleep(3 * SECOND - 4 * MS).await;
    assert_eq!(world.counts().opened, 3);
    sleep(4 * MS).await;
    let _leases = [served(first).await, served(second).await];
    let third = spawn_acquire(&pool);
    sleep(10 * SECOND).await;
    assert_eq!(
        world.counts().sockets_max,
        4,
        "all of the reserve is in use"
    );
    assert!(!third.is_finished());
}

#[tokio::test(start_paused = true)]
async fn the_reserve_goes_when_nobody_waits_any_more() {
    let world = World::new();
    let pool = world.pool(with_reserve(1, 1));
    let mut held = acquire_many(&pool, 1).await;
    let waiting = spawn_acquire(&pool);
    sleep(6 * SECOND).await;
    let extra = served(waiting).await;
    // As long as somebody waits it is passed on.
    let waiting = spawn_acquire(&pool);
    settle().await;
    drop(extra);
    let extra = served(waiting).await;
    assert_eq!(world.counts().opened, 2);
    drop(extra);
    settle().await;
    assert_eq!(total(&pool.metrics()), 1);
    drop(held.pop());
    settle().await;
    assert_eq!((pool.metrics().idle, world.counts().sockets), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_reserve_can_be_given_to_those_who_wait_already_and_be_taken_away() {
    let world = World::new();
    let pool = world.pool(support::config(1));
    let held = acquire_many(&pool, 1).await;
    let waiting = spawn_acquire(&pool);
    sleep(7 * SECOND).await;
    pool.set_reserve(1, 8 * SECOND);
    sleep(SECOND - MS).await;
    assert!(!waiting.is_finished());
    sleep(2 * MS).await;
    settle().await;
    assert!(waiting.is_finished());
    let again = spawn_acquire(&pool);
    settle().await;
    pool.set_reserve(0, 8 * SECOND);
    drop(served(waiting).await);
    settle().await;
    assert!(!again.is_finished(), "it went, though somebody waits");
    assert_eq!(world.counts().sockets, 1);
    drop(held);
    drop(served(again).await);
}

#[tokio::test(start_paused = true)]
async fn where_all_are_in_use_the_error_counts_the_reserve() {
    let world = World::new();
    let pool = world.pool(with_reserve(1, 2));
    let mut held = acquire_many(&pool, 1).await;
    for _ in 0..2 {
        held.push(served(spawn_acquire(&pool)).await);
    }
    match served_or_not(&pool).await {
        Err(AcquireError::Timeout { max, active, .. }) => assert_eq!((max, active), (3, 3)),
        other => panic!("{other:?}"),
    }
}

async fn served_or_not(pool: &Arc<Pool>) -> Result<TestLease, AcquireError> {
    spawn_acquire(pool).await.expect("no panic")
}
