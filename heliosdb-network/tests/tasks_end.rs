//! Nothing of a pool goes on after it, and it needs no runtime to be made or to end.

mod support;

use std::sync::Arc;
use std::time::Duration;

use heliosdb_network::connection_pool::Disposition;
use support::{Act, MS, SECOND, World, acquire_many, assert_counts_agree, settle};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::sleep;

/// Faked time, and nothing else running.
fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Asserts that only the test itself still knows the world: no connector, no connection, no task.
async fn assert_nothing_left(world: &Arc<World>) {
    settle().await;
    assert_eq!(tasks(), 0);
    assert_eq!(Arc::strong_count(world), 1);
    assert_eq!(world.counts().sockets, 0);
}

#[tokio::test(start_paused = true)]
async fn background_tasks_and_idle_connections_end_with_the_pool() {
    let world = World::new();
    let pool = world.pool(support::config(3));
    drop(acquire_many(&pool, 3).await);
    settle().await;
    assert_eq!(tasks(), 2, "expiration and health checks");
    assert!(Arc::strong_count(&world) > 1);
    drop(pool);
    assert_nothing_left(&world).await;
    assert_eq!(world.counts().closed, 3, "with a goodbye");
}

#[tokio::test(start_paused = true)]
async fn a_pool_dropped_before_its_tasks_ran_leaves_none() {
    let world = World::new();
    drop(world.pool(support::config(3)));
    assert_nothing_left(&world).await;
}

#[tokio::test(start_paused = true)]
async fn attempts_to_connect_end_with_the_pool() {
    let world = World::new();
    world.plan(|plan| plan.connect = Act::Hang);
    let pool = world.pool(support::config(3));
    let waiter = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.acquire().await.map(drop) }
    });
    settle().await;
    assert_eq!(world.counts().connecting, 1);
    waiter.abort();
    drop(pool);
    assert_nothing_left(&world).await;
}

#[tokio::test(start_paused = true)]
async fn so_does_the_waiting_for_another_attempt() {
    let world = World::new();
    world.plan(|plan| plan.connect = Act::Fail);
    let mut config = support::config(3);
    config.min_idle = 1;
    let pool = world.pool(config);
    assert!(pool.acquire().await.is_err());
    settle().await;
    assert!(tasks() > 2, "some wait to try again");
    drop(pool);
    assert_nothing_left(&world).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_outlives_the_last_handle_and_takes_the_pool_with_it() {
    let world = World::new();
    let pool = world.pool(support::config(1));
    let lease = pool.acquire().await.expect("opened");
    drop(pool);
    sleep(10_000 * SECOND).await;
    assert!(lease.alive && lease.meta().in_use);
    drop(lease);
    assert_nothing_left(&world).await;
}

#[tokio::test(start_paused = true)]
async fn so_does_a_reset_and_a_close_that_hang() {
    let world = World::new();
    world.plan(|plan| {
        plan.reset = Act::Hang;
        plan.close = Act::Hang;
    });
    let pool = world.pool(support::config(1));
    let mut lease = pool.acquire().await.expect("opened");
    lease.disposition = Disposition::Dirty;
    drop((lease, pool));
    settle().await;
    assert!(tasks() > 0);
    sleep(60 * SECOND).await;
    assert_nothing_left(&world).await;
}

#[test]
fn a_pool_made_outside_a_runtime_starts_with_its_first_use() {
    let world = World::new();
    let mut config = support::config(3);
    config.min_idle = 2;
    config.health_check_interval_secs = 1;
    let pool = world.pool(config);
    assert!(pool.try_acquire(0).is_none());
    let runtime = runtime();
    runtime.block_on(async {
        drop(pool.acquire().await.expect("opened"));
        sleep(2 * SECOND).await;
        assert!(pool.metrics().idle >= 2);
        assert!(world.counts().checks > 0, "the background tasks run");
        drop(pool);
        assert_nothing_left(&world).await;
    });
}

#[test]
fn leases_can_end_outside_a_runtime() {
    let world = World::new();
    let pool = world.pool(support::config(4));
    let runtime = runtime();
    let mut leases = runtime.block_on(acquire_many(&pool, 4));
    leases[0].disposition = Disposition::Broken;
    leases[1].disposition = Disposition::Dirty;
    leases.swap_remove(2).discard();
    drop(leases);
    runtime.block_on(async {
        settle().await;
        let metrics = pool.metrics();
        assert_eq!((metrics.active, metrics.closing), (0, 0), "{metrics:?}");
        assert_counts_agree(&pool, &world);
        assert_eq!(world.counts().closed, 2, "with a goodbye");
        drop(acquire_many(&pool, 4).await);
        assert_counts_agree(&pool, &world);
    });
}

#[test]
fn leases_can_end_after_their_runtime() {
    let world = World::new();
    let mut config = support::config(3);
    config.min_idle = 1;
    let pool = world.pool(config);
    let first = runtime();
    let mut leases = first.block_on(acquire_many(&pool, 3));
    drop(first);
    leases[0].disposition = Disposition::Broken;
    leases[1].disposition = Disposition::Dirty;
    // More waiting than there is room for: the one that goes must not be replaced by one that can't run.
    drop(leases);
    assert_counts_agree(&pool, &world);
    assert_eq!(pool.metrics().active + pool.metrics().closing, 0);
    runtime().block_on(async {
        // The breaker may still be open because of the attempts that were cut off.
        sleep(SECOND).await;
        drop(acquire_many(&pool, 3).await);
        assert_counts_agree(&pool, &world);
    });
}

#[test]
fn a_pool_and_its_leases_can_end_within_the_shutdown_of_their_runtime() {
    for threads in [0, 2] {
        for (reset, close) in [(Act::Work, Act::Work), (Act::Hang, Act::Hang)] {
            let world = World::new();
            world.plan(|plan| (plan.reset, plan.close) = (reset, close));
            let mut config = support::config(4);
            config.min_idle = 2;
            let pool = world.pool(config);
            let runtime = match threads {
                0 => runtime(),
                n => Builder::new_multi_thread()
                    .worker_threads(n)
                    .enable_time()
                    .build()
                    .expect("a runtime"),
            };
            runtime.block_on(async {
                for disposition in [Disposition::Clean, Disposition::Dirty, Disposition::Broken] {
                    let mut lease = pool.acquire().await.expect("opened");
                    lease.disposition = disposition;
                    tokio::spawn(async move {
                        sleep(Duration::from_secs(3600)).await;
                        drop(lease);
                    });
                }
                let mut lease = pool.acquire().await.expect("opened");
                lease.disposition = Disposition::Dirty;
                tokio::spawn({
                    let pool = Arc::clone(&pool);
                    async move { pool.acquire().await.map(drop) }
                });
                settle().await;
                drop(lease);
                settle().await;
            });
            runtime.shutdown_timeout(SECOND);
            assert_counts_agree(&pool, &world);
            assert_eq!(pool.metrics().active + pool.metrics().closing, 0);
            drop(pool);
            std::thread::sleep(MS);
            assert_eq!((world.counts().sockets, Arc::strong_count(&world)), (0, 1));
        }
    }
}

/// The task that looks after the times of those who wait ends with its runtime; those who wait in another do not wait for
/// ever.
#[test]
fn who_waits_in_another_runtime_times_out_all_the_same() {
    let world = World::new();
    let mut config = support::config(1);
    config.acquire_timeout = 2 * SECOND;
    let first = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .expect("a runtime");
    let (pool, lease) = first.block_on(async {
        let pool = world.pool(config);
        let lease = pool.acquire().await.expect("opened");
        (pool, lease)
    });
    let second = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .expect("a runtime");
    let waiting = second.spawn({
        let pool = Arc::clone(&pool);
        async move { pool.acquire().await.map(drop) }
    });
    while pool.metrics().waiting == 0 {
        std::thread::sleep(MS);
    }
    drop(first);
    let waited = second.block_on(async { tokio::time::timeout(20 * SECOND, waiting).await });
    let waited = waited.expect("not for ever").expect("no panic");
    assert!(waited.is_err_and(|error| error.is_timeout()));
    // And one who comes afterwards.
    let waited = second.block_on(pool.acquire());
    assert!(waited.is_err_and(|error| error.is_timeout()));
    assert_eq!(pool.metrics().waiting, 0);
    drop(lease);
}
