//! Connections that are too old or too long idle go, and never under somebody's hands.

mod support;

use std::time::Duration;

use heliosdb_network::PoolMetrics;
use support::{Act, MS, Pool, SECOND, World, acquire_many, assert_counts_agree, settle};
use tokio::time::sleep;

async fn open(pool: &Pool, n: usize) {
    drop(acquire_many(pool, n).await);
}

fn idle_and_expired(metrics: PoolMetrics) -> (usize, u64) {
    (metrics.idle, metrics.expired)
}

#[tokio::test(start_paused = true)]
async fn expired_idle_connections_are_closed_and_refilled() {
    let world = World::new();
    let mut config = support::config(5);
    config.min_idle = 2;
    config.health_check_interval_secs = 10;
    config.max_lifetime = Some(60 * SECOND);
    let pool = world.pool(config);
    sleep(11 * SECOND).await;
    assert_eq!(idle_and_expired(pool.metrics()), (2, 0), "filled unasked");
    sleep(52 * SECOND).await;
    assert_eq!(idle_and_expired(pool.metrics()), (2, 2));
    let counts = world.counts();
    assert_eq!((counts.opened, counts.closed, counts.sockets), (4, 2, 2));
    assert_counts_agree(&pool, &world);
}

#[tokio::test(start_paused = true)]
async fn an_expired_connection_in_use_is_left_alone_until_it_comes_back() {
    let world = World::new();
    let mut config = support::config(1);
    config.health_check_interval_secs = 1;
    config.max_lifetime = Some(10 * SECOND);
    config.idle_timeout = Some(SECOND);
    let pool = world.pool(config);
    let lease = pool.acquire().await.expect("opened");
    assert!(!lease.meta().is_expired(pool.config()));
    sleep(100 * SECOND).await;
    assert!(lease.meta().in_use && lease.meta().is_expired(pool.config()));
    let counts = world.counts();
    assert_eq!((counts.closed, counts.sockets, counts.checks), (0, 1, 0));
    drop(lease);
    settle().await;
    assert_eq!((world.counts().closed, world.counts().sockets), (1, 0));
    assert_eq!(idle_and_expired(pool.metrics()), (0, 1));
    assert_eq!(pool.acquire().await.expect("opened").number, 2);
}

#[tokio::test(start_paused = true)]
async fn an_expired_connection_goes_to_no_waiter() {
    let world = World::new();
    let mut config = support::config(1);
    config.max_lifetime = Some(10 * SECOND);
    let pool = world.pool(config);
    let lease = pool.acquire().await.expect("opened");
    sleep(11 * SECOND).await;
    let (served, ()) = tokio::join!(pool.acquire(), async { drop(lease) });
    assert_eq!(served.expect("opened").number, 2);
    // Nor is one handed out that expired while idle, before the expiration task came by.
    sleep(11 * SECOND).await;
    assert_eq!(pool.acquire().await.expect("opened").number, 3);
    assert_counts_agree(&pool, &world);
}

#[tokio::test(start_paused = true)]
async fn lifetimes_end_up_to_a_tenth_early_and_never_late() {
    let world = World::new();
    let mut config = support::config(100);
    config.max_lifetime = Some(100 * SECOND);
    config.max_connecting = 100;
    let pool = world.pool(config);
    let leases = acquire_many(&pool, 100).await;
    let expired = || {
        let expired = |lease: &&support::TestLease| lease.meta().is_expired(pool.config());
        leases.iter().filter(expired).count()
    };
    sleep(90 * SECOND - MS).await;
    assert_eq!(expired(), 0);
    sleep(5 * SECOND).await;
    assert!((10..90).contains(&expired()), "spread, not at once");
    sleep(5 * SECOND + MS).await;
    assert_eq!(expired(), 100);
}

#[tokio::test(start_paused = true)]
async fn those_idle_for_too_long_are_closed_down_to_the_minimum() {
    let world = World::new();
    let mut config = support::config(4);
    config.min_idle = 1;
    config.health_check_interval_secs = 10;
    config.idle_timeout = Some(60 * SECOND);
    let pool = world.pool(config);
    open(&pool, 4).await;
    sleep(55 * SECOND).await;
    assert_eq!(idle_and_expired(pool.metrics()), (4, 0));
    assert!(world.counts().checks >= 16, "checked at each interval");
    // A check is no use: it must not keep a connection alive that nobody needs.
    sleep(20 * SECOND).await;
    assert_eq!(idle_and_expired(pool.metrics()), (1, 3));
    sleep(600 * SECOND).await;
    assert_eq!(idle_and_expired(pool.metrics()), (1, 3));
    assert_eq!(world.counts().opened, 4, "none is replaced in turn");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_needs_is_not_renewed_for_ever() {
    let world = World::new();
    let mut config = support::config(4);
    config.max_lifetime = Some(10 * SECOND);
    config.idle_timeout = Some(60 * SECOND);
    let pool = world.pool(config);
    open(&pool, 2).await;
    sleep(59 * SECOND).await;
    assert_eq!(pool.metrics().idle, 2);
    let opened = world.counts().opened;
    assert!(opened > 2, "renewed as long as they stand: {opened}");
    // One may have been on its way when they went.
    sleep(62 * SECOND).await;
    assert_eq!(pool.metrics().idle, 0);
    let opened = world.counts().opened;
    sleep(600 * SECOND).await;
    assert_eq!(world.counts().opened, opened);
}

#[tokio::test(start_paused = true)]
async fn those_idle_for_too_long_are_closed_in_time_however_rarely_they_are_checked() {
    let world = World::new();
    let mut config = support::config(4);
    config.health_check_interval_secs = 600;
    config.idle_timeout = Some(2 * SECOND);
    let pool = world.pool(config);
    // At any time of a round.
    for pause in [0, 100, 700, 1900, 2600] {
        sleep(pause * MS).await;
        open(&pool, 2).await;
        sleep(2 * SECOND - MS).await;
        assert_eq!(pool.metrics().idle, 2, "after {pause} ms");
        sleep(101 * MS).await;
        assert_eq!(pool.metrics().idle, 0, "after {pause} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_to_be_kept_ready_is_opened_at_once() {
    let world = World::new();
    let mut config = support::config(4);
    config.min_idle = 3;
    config.health_check_interval_secs = 600;
    let pool = world.pool(config);
    sleep(SECOND).await;
    assert_eq!(pool.metrics().idle, 3);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_used_now_and_then_stays() {
    let world = World::new();
    let mut config = support::config(4);
    config.health_check_interval_secs = 10;
    config.idle_timeout = Some(60 * SECOND);
    let pool = world.pool(config);
    open(&pool, 3).await;
    for _ in 0..10 {
        sleep(25 * SECOND).await;
        open(&pool, 1).await;
    }
    assert_eq!(idle_and_expired(pool.metrics()), (1, 2));
    assert_eq!(world.counts().opened, 3);
}

#[tokio::test(start_paused = true)]
async fn evicting_closes_idle_ones_at_once_and_others_as_they_come_back() {
    let world = World::new();
    let pool = world.pool(support::config(3));
    let mut leases = acquire_many(&pool, 3).await;
    let used = leases.pop().expect("three");
    drop(leases);
    pool.evict_all();
    settle().await;
    assert_eq!((world.counts().closed, world.counts().sockets), (2, 1));
    let new = pool.acquire().await.expect("opened");
    assert_eq!(new.number, 4);
    drop((used, new));
    settle().await;
    let counts = world.counts();
    assert_eq!((counts.closed, counts.sockets), (3, 1));
    assert_eq!(pool.acquire().await.expect("idle").number, 4);
    assert_eq!(pool.metrics().expired, 0, "none of them was too old");
    assert_counts_agree(&pool, &world);
}

#[tokio::test(start_paused = true)]
async fn one_that_was_idle_for_long_is_checked_before_it_is_handed_out() {
    let world = World::new();
    let mut config = support::config(2);
    config.validation_bypass = 10 * SECOND;
    let pool = world.pool(config);
    open(&pool, 1).await;
    open(&pool, 1).await;
    assert_eq!(world.counts().checks, 0, "fresh");
    sleep(11 * SECOND).await;
    // Not taking it must not make it look fresh.
    assert!(pool.try_acquire(0).is_none());
    assert!(pool.try_acquire(0).is_none());
    open(&pool, 1).await;
    assert_eq!((world.counts().checks, world.counts().opened), (1, 1));
    for act in [Act::Fail, Act::Hang] {
        sleep(11 * SECOND).await;
        world.plan(|plan| plan.check = act);
        let before = world.counts().opened;
        let replaced = pool.acquire().await.expect("opened");
        assert_eq!(replaced.number, before + 1, "{act:?}");
    }
    assert_eq!(pool.metrics().unhealthy, 2);
    assert_counts_agree(&pool, &world);
}

#[tokio::test(start_paused = true)]
async fn one_whose_socket_is_dead_is_replaced_without_a_check() {
    let world = World::new();
    let pool = world.pool(support::config(1));
    let mut lease = pool.acquire().await.expect("opened");
    lease.alive = false;
    drop(lease);
    assert!(pool.try_acquire(0).is_none());
    assert_eq!(pool.acquire().await.expect("opened").number, 2);
    assert_eq!(world.counts().checks, 0);
    assert_eq!(pool.metrics().unhealthy, 1);
}

#[tokio::test(start_paused = true)]
async fn durations_without_end_are_no_overflow() {
    let mut config = support::config(1);
    config.max_lifetime = Some(Duration::MAX);
    config.idle_timeout = Some(Duration::MAX);
    config.acquire_timeout = Duration::MAX;
    config.connect_timeout = Duration::MAX;
    config.health_check_timeout = Duration::MAX;
    config.close_timeout = Duration::MAX;
    config.validation_bypass = Duration::MAX;
    config.health_check_interval_secs = u64::MAX;
    let world = World::new();
    let pool = world.pool(config);
    open(&pool, 1).await;
    open(&pool, 1).await;
    pool.evict_all();
    settle().await;
    assert_eq!((world.counts().opened, world.counts().sockets), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_when_its_holder_says() {
    let world = World::new();
    let mut config = support::config(1);
    config.health_check_interval_secs = 1;
    config.idle_timeout = Some(10 * SECOND);
    let pool = world.pool(config);
    let lease = pool.acquire().await.expect("opened");
    let acquired = lease.meta().acquired;
    sleep(5 * SECOND).await;
    let then = tokio::time::Instant::now().into_std();
    assert_eq!(then - acquired, 5 * SECOND);
    sleep(7 * SECOND).await;
    lease.release_at(then);
    assert_eq!(pool.metrics().idle, 1);
    // Twelve seconds after it was said to be given back, five after it was.
    sleep(5 * SECOND).await;
    assert_eq!((pool.metrics().idle, world.counts().closed), (0, 1));
    let lease = pool.acquire().await.expect("opened");
    assert_eq!(lease.meta().acquired - acquired, 17 * SECOND);
}
