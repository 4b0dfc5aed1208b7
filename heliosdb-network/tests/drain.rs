//! A drain lets nobody in, everybody in use finish, and itself end in time.

mod support;

use std::sync::Arc;

use heliosdb_network::AcquireError;
use heliosdb_network::connection_pool::DrainReport;
use support::{Act, Pool, SECOND, World, acquire_many, assert_counts_agree, settle, total};
use tokio::time::{Instant, sleep};

fn spawn_drain(pool: &Arc<Pool>, secs: u32) -> tokio::task::JoinHandle<DrainReport> {
    let pool = Arc::clone(pool);
    tokio::spawn(async move { pool.drain(secs * SECOND).await })
}

#[tokio::test(start_paused = true)]
async fn waiters_and_newcomers_are_told_that_the_pool_is_closed() {
    let world = World::new();
    let pool = world.pool(support::config(1));
    let lease = pool.acquire().await.expect("opened");
    let mut waiters = Vec::new();
    for _ in 0..3 {
        let pool = Arc::clone(&pool);
        waiters.push(tokio::spawn(async move { pool.acquire().await.map(drop) }));
    }
    settle().await;
    let drain = spawn_drain(&pool, 60);
    for waiter in waiters {
        let refused = waiter.await.expect("no panic");
        assert!(matches!(refused, Err(AcquireError::Closed)), "{refused:?}");
    }
    assert!(matches!(pool.acquire().await, Err(AcquireError::Closed)));
    assert!(pool.try_acquire(0).is_none());
    assert!(!drain.is_finished(), "one is still in use");
    drop(lease);
    assert_eq!(drain.await.expect("no panic").still_active, 0);
    assert_eq!((world.counts().closed, world.counts().sockets), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn those_in_use_finish_and_the_drain_ends_with_the_last() {
    let world = World::new();
    let mut config = support::config(5);
    config.min_idle = 2;
    let pool = world.pool(config);
    let mut leases = acquire_many(&pool, 4).await;
    drop(leases.pop());
    let began = Instant::now();
    for (after, lease) in (1..).zip(leases) {
        tokio::spawn(async move {
            sleep(after * SECOND).await;
            assert!(lease.alive);
            drop(lease);
        });
    }
    let report = pool.drain(60 * SECOND).await;
    assert_eq!((report.still_active, began.elapsed()), (0, 3 * SECOND));
    assert_eq!(total(&pool.metrics()), 0, "nor are idle ones refilled");
    assert_eq!(pool.metrics().expired, 0, "none of them was too old");
    assert_eq!(
        (world.counts().sockets, world.counts().closed),
        (0, world.counts().opened)
    );
}

#[tokio::test(start_paused = true)]
async fn the_deadline_holds_and_the_late_are_closed_when_they_come() {
    let world = World::new();
    let pool = world.pool(support::config(3));
    let leases = acquire_many(&pool, 2).await;
    let began = Instant::now();
    let report = pool.drain(5 * SECOND).await;
    assert_eq!((report.still_active, began.elapsed()), (2, 5 * SECOND));
    assert_eq!(world.counts().closed, 0, "never torn away");
    drop(leases);
    settle().await;
    assert_eq!((world.counts().closed, world.counts().sockets), (2, 0));
    assert_eq!(pool.drain(SECOND).await.still_active, 0);
    assert_counts_agree(&pool, &world);
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_connections_being_closed_and_opened_but_not_for_hanging_ones() {
    let world = World::new();
    world.plan(|plan| {
        plan.connect = Act::Slow(2 * SECOND);
        plan.close = Act::Slow(3 * SECOND);
    });
    let pool = world.pool(support::config(2));
    let waiter = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.acquire().await.map(drop) }
    });
    settle().await;
    let began = Instant::now();
    pool.drain(60 * SECOND).await;
    assert!(matches!(waiter.await, Ok(Err(AcquireError::Closed))));
    assert_eq!((began.elapsed(), world.counts().sockets), (5 * SECOND, 0));

    world.plan(|plan| {
        plan.connect = Act::Work;
        plan.close = Act::Hang;
    });
    let mut config = support::config(2);
    config.close_timeout = 4 * SECOND;
    let pool = world.pool(config);
    drop(acquire_many(&pool, 2).await);
    let began = Instant::now();
    pool.drain(60 * SECOND).await;
    assert_eq!((began.elapsed(), world.counts().sockets), (4 * SECOND, 0));
}

#[tokio::test(start_paused = true)]
async fn a_drain_given_up_leaves_the_pool_closed_and_two_can_wait_at_once() {
    let world = World::new();
    let pool = world.pool(support::config(1));
    let lease = pool.acquire().await.expect("opened");
    let given_up = spawn_drain(&pool, 60);
    settle().await;
    given_up.abort();
    settle().await;
    assert!(matches!(pool.acquire().await, Err(AcquireError::Closed)));
    let drains = [spawn_drain(&pool, 60), spawn_drain(&pool, 60)];
    settle().await;
    drop(lease);
    for drain in drains {
        assert_eq!(drain.await.expect("no panic").still_active, 0);
    }
    assert_eq!(world.counts().sockets, 0);
}

#[tokio::test(start_paused = true)]
async fn an_empty_pool_is_drained_at_once_and_one_that_cannot_connect_too() {
    let world = World::new();
    let pool = world.pool(support::config(1));
    let began = Instant::now();
    assert_eq!(pool.drain(60 * SECOND).await.still_active, 0);

    world.plan(|plan| plan.connect = Act::Fail);
    let mut config = support::config(2);
    config.min_idle = 2;
    let pool = world.pool(config);
    assert!(matches!(
        pool.acquire().await,
        Err(AcquireError::Connect(_))
    ));
    assert_eq!(pool.drain(60 * SECOND).await.still_active, 0);
    assert_eq!(began.elapsed(), std::time::Duration::ZERO);
    let attempts = world.counts().attempts;
    sleep(600 * SECOND).await;
    assert_eq!(world.counts().attempts, attempts, "no attempt after that");
}
