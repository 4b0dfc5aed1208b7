//! What an operator does to a pool that is in use, and what he is told of it.

mod support;

use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use heliosdb_network::AcquireError;
use heliosdb_network::connection_pool::AcquirePhase;
use support::{Act, MS, Pool, SECOND, TestLease, World, acquire_many, assert_counts_agree, settle};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

fn spawn_acquire(pool: &Arc<Pool>) -> JoinHandle<Result<TestLease, AcquireError>> {
    let pool = Arc::clone(pool);
    tokio::spawn(async move { pool.acquire().await })
}

#[track_caller]
fn phase(acquired: Result<TestLease, AcquireError>) -> AcquirePhase {
    match acquired {
        Err(AcquireError::Timeout { phase, .. }) => phase,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn while_a_pool_is_suspended_everybody_waits_and_nothing_is_opened() {
    let world = World::new();
    let pool = world.pool(support::config(3));
    let mut leases = acquire_many(&pool, 2).await;
    drop(leases.pop());
    pool.suspend();
    assert!(pool.metrics().suspended);
    assert!(pool.try_acquire(0).is_none());
    let waiting: Vec<_> = (0..3).map(|_| spawn_acquire(&pool)).collect();
    settle().await;
    // What is in use comes back as ever, to nobody.
    drop(leases);
    settle().await;
    let metrics = pool.metrics();
    assert_eq!((metrics.idle, metrics.waiting, metrics.created), (2, 3, 2));
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    pool.resume();
    for waiting in waiting {
        drop(waiting.await.expect("no panic").expect("served"));
    }
    assert!(!pool.metrics().suspended);
    assert_counts_agree(&pool, &world);
}

#[tokio::test(start_paused = true)]
async fn those_who_were_waiting_are_served_in_their_order_after_a_suspension() {
    let pool = World::new().pool(support::config(1));
    drop(acquire_many(&pool, 1).await);
    pool.suspend();
    let first = spawn_acquire(&pool);
    settle().await;
    let second = spawn_acquire(&pool);
    settle().await;
    pool.resume();
    let lease = first.await.expect("no panic").expect("served");
    settle().await;
    assert!(!second.is_finished());
    drop(lease);
    drop(second.await.expect("no panic").expect("served"));
}

#[tokio::test(start_paused = true)]
async fn what_died_during_a_suspension_is_replaced() {
    let world = World::new();
    let mut config = support::config(1);
    config.validation_bypass = SECOND;
    let pool = world.pool(config);
    drop(acquire_many(&pool, 1).await);
    pool.suspend();
    let waiting = spawn_acquire(&pool);
    sleep(10 * SECOND).await;
    world.plan(|plan| plan.check = Act::Fail);
    pool.resume();
    let lease = waiting.await.expect("no panic").expect("served");
    assert_eq!(lease.number, 2);
    assert_eq!(pool.metrics().unhealthy, 1);
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_fails_names_what_it_waited_for() {
    let world = World::new();
    let mut config = support::config(1);
    config.acquire_timeout = 3 * SECOND;
    config.connect_timeout = 60 * SECOND;
    config.validation_bypass = 10 * SECOND;
    let pool = world.pool(config);

    let lease = pool.acquire().await.expect("opened");
    let error = pool.acquire().await.expect_err("in use");
    assert!(error.to_string().contains("1 of 1 in use"), "{error}");
    assert_eq!(phase(Err(error)), AcquirePhase::Wait);
    drop(lease);

    pool.suspend();
    assert_eq!(phase(pool.acquire().await), AcquirePhase::Suspended);
    pool.resume();

    sleep(20 * SECOND).await;
    world.plan(|plan| {
        plan.check = Act::Hang;
        plan.connect = Act::Hang;
    });
    let mut config = support::config(1);
    config.acquire_timeout = SECOND;
    config.health_check_timeout = 60 * SECOND;
    config.validation_bypass = Duration::ZERO;
    let checking = World::new();
    let other = checking.pool(config);
    drop(other.acquire().await.expect("opened"));
    checking.plan(|plan| plan.check = Act::Hang);
    assert_eq!(phase(other.acquire().await), AcquirePhase::Check);

    assert_eq!(phase(pool.acquire().await), AcquirePhase::Connect);
}

#[tokio::test(start_paused = true)]
async fn a_pool_grows_and_shrinks_while_it_is_used() {
    let world = World::new();
    let pool = world.pool(support::config(2));
    let mut leases = acquire_many(&pool, 2).await;
    let waiting = spawn_acquire(&pool);
    settle().await;
    assert!(!waiting.is_finished());
    pool.resize(4, 0).expect("valid");
    leases.push(waiting.await.expect("no panic").expect("opened"));
    leases.push(pool.acquire().await.expect("opened"));
    assert_eq!(pool.metrics().max, 4);

    // Three of the four are in use: the idle one goes at once, the others as they come back.
    drop(leases.pop());
    pool.resize(1, 0).expect("valid");
    settle().await;
    assert_eq!((world.counts().closed, world.counts().sockets), (1, 3));
    drop(leases);
    settle().await;
    assert_eq!(world.counts().sockets, 1);
    let metrics = pool.metrics();
    assert_eq!((metrics.idle, metrics.max, metrics.expired), (1, 1, 0));

    pool.resize(5, 3).expect("valid");
    settle().await;
    assert_eq!(pool.metrics().idle, 3, "refilled at once");
    assert!(pool.resize(0, 0).is_err() && pool.resize(1, 2).is_err());
    assert_eq!(pool.metrics().max, 5, "an error changes nothing");
}

#[tokio::test(start_paused = true)]
async fn who_holds_a_connection_and_for_how_long_can_be_seen() {
    let world = World::new();
    let mut config = support::config(3);
    config.health_check_interval_secs = 1;
    config.leak_threshold = Some(10 * SECOND);
    let pool = world.pool(config);
    let here = Location::caller();
    let leaked = pool.acquire().await.expect("opened");
    sleep(5 * SECOND).await;
    let other = pool.try_acquire(0);
    assert!(other.is_none() && pool.metrics().overdue == 0);
    let mut leases = pool.leases();
    let lease = leases.pop().expect("one is on loan");
    assert!(leases.is_empty());
    assert_eq!(
        (lease.connection, lease.held),
        (leaked.meta().id, 5 * SECOND)
    );
    assert_eq!(
        (lease.place.file(), lease.place.line()),
        (here.file(), here.line() + 1)
    );
    // One that waits first is on loan from when it was served, to the place where it asked.
    let others = acquire_many(&pool, 2).await;
    let waiting = spawn_acquire(&pool);
    settle().await;
    drop(others);
    let served = waiting.await.expect("no panic").expect("served");
    assert!(pool.leases().iter().any(|lease| lease.held.is_zero()
        && lease.connection == served.meta().id
        && lease.place.file() == here.file()));
    sleep(6 * SECOND).await;
    assert_eq!(pool.metrics().overdue, 1);
    drop((leaked, served));
    assert_eq!((pool.metrics().overdue, pool.leases().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_happened_in_a_window_is_told_once() {
    let pool = World::new().pool(support::config(3));
    for n in 0..100 {
        let leases = acquire_many(&pool, if n == 0 { 3 } else { 1 }).await;
        sleep(if n == 50 { SECOND } else { 4 * MS }).await;
        drop(leases);
    }
    let window = pool.take_window();
    assert_eq!((window.releases, window.active_max), (102, 3));
    assert_eq!(window.length, SECOND + 99 * 4 * MS);
    assert_eq!(window.hold_mean, (SECOND + 101 * 4 * MS) / 102);
    assert!((4 * MS..=6 * MS).contains(&window.hold_p99), "{window:?}");
    let lease = pool.acquire().await.expect("idle");
    sleep(SECOND).await;
    let window = pool.take_window();
    assert_eq!(
        (window.releases, window.active_max, window.length),
        (0, 1, SECOND)
    );
    let window = pool.take_window();
    assert_eq!((window.releases, window.active_max), (0, 1));
    drop(lease);
    assert_eq!(pool.take_window().hold_p99, Duration::from_micros(2 << 19));
}

#[tokio::test(start_paused = true)]
async fn a_successor_is_opened_before_a_connection_goes() {
    let world = World::new();
    // So slow that whoever had to wait for it would show.
    world.plan(|plan| plan.connect = Act::Slow(SECOND));
    let mut config = support::config(4);
    config.max_lifetime = Some(100 * SECOND);
    config.health_check_interval_secs = 5;
    let pool = world.pool(config);
    drop(pool.acquire().await.expect("opened"));
    for _ in 0..500 {
        let began = Instant::now();
        let lease = pool.acquire().await.expect("there");
        assert_eq!(began.elapsed(), Duration::ZERO, "{:?}", pool.metrics());
        sleep(SECOND).await;
        drop(lease);
    }
    let counts = world.counts();
    assert!((5..=8).contains(&counts.opened), "{counts:?}");
    assert!(counts.sockets <= 2, "{counts:?}");
    assert_counts_agree(&pool, &world);
}

/// The rate of new connections in any hundredth of the lifetime is at most twice its mean, though all were opened at the
/// same time.
#[tokio::test(start_paused = true)]
async fn connections_that_came_together_do_not_go_together() {
    const N: usize = 200;
    const LIFETIME: Duration = Duration::from_secs(1000);
    let world = World::new();
    let mut config = support::config(2 * N);
    config.max_lifetime = Some(LIFETIME);
    config.max_connecting = N;
    config.health_check_interval_secs = 10;
    let pool = world.pool(config);
    let _first = acquire_many(&pool, N).await;
    drop(_first);
    assert_eq!(world.counts().opened, N);
    let step = LIFETIME / 100;
    let mut before = N;
    let mut worst = 0;
    for _ in 0..400 {
        sleep(step).await;
        // Keeps them all in use now and then, so that none is idle for long.
        drop(acquire_many(&pool, N).await);
        let opened = world.counts().opened;
        worst = worst.max(opened - before);
        before = opened;
    }
    let mean = (before - N) as f64 / 400.0;
    assert!(
        mean > N as f64 / 100.0,
        "each lives less than the bound: {mean}"
    );
    assert!(
        worst as f64 <= 2.0 * mean,
        "{worst} in one step, {mean} in the mean"
    );
}

#[tokio::test(start_paused = true)]
async fn one_who_was_given_a_dead_connection_does_not_queue_up_again() {
    let world = World::new();
    let mut config = support::config(1);
    config.validation_bypass = SECOND;
    let pool = world.pool(config);
    drop(pool.acquire().await.expect("opened"));
    sleep(2 * SECOND).await;
    world.plan(|plan| {
        plan.check = Act::Slow(10 * MS);
        plan.connect = Act::Slow(10 * MS);
    });
    let first = spawn_acquire(&pool);
    settle().await;
    let second = spawn_acquire(&pool);
    settle().await;
    world.plan(|plan| plan.check = Act::Fail);
    // The check that is under way goes well: cut it off instead.
    world.plan(|plan| plan.check = Act::Hang);
    let lease = first.await.expect("no panic").expect("served");
    settle().await;
    assert!(!second.is_finished());
    drop(lease);
    drop(second.await.expect("no panic").expect("served"));
}
