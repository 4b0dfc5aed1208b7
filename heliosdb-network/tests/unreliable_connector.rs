//! A server that fails is reported as such, spared, and found again.

mod support;

use std::sync::Arc;
use std::time::Duration;

use heliosdb_network::connection_pool::Disposition;
use heliosdb_network::{AcquireError, HeliosError};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use support::{Act, MS, Pool, SECOND, World, acquire_many, assert_counts_agree, settle, total};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

type Acquired = Result<(), AcquireError>;

fn spawn_acquires(pool: &Arc<Pool>, n: usize) -> Vec<JoinHandle<Acquired>> {
    let acquire = |_| {
        let pool = Arc::clone(pool);
        tokio::spawn(async move { pool.acquire().await.map(drop) })
    };
    (0..n).map(acquire).collect()
}

#[track_caller]
fn assert_fails_with(acquired: &Acquired, cause: &str) {
    let Err(error) = acquired else {
        panic!("acquired")
    };
    let found = error.cause().map(ToString::to_string);
    assert_eq!(found.as_deref(), Some(cause), "{error}");
    assert!(error.to_string().contains(cause), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_fails_every_waiter_at_once_with_its_cause() {
    let world = World::new();
    let pool = world.pool(support::config(2));
    // Even with a connection that could still come back to them.
    let lease = pool.acquire().await.expect("opened");
    world.plan(|plan| plan.connect = Act::Refuse);
    let began = Instant::now();
    for waiter in spawn_acquires(&pool, 5) {
        let acquired = waiter.await.expect("no panic");
        assert_fails_with(&acquired, "not for you");
        assert!(matches!(acquired, Err(AcquireError::Connect(_))));
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(pool.metrics().waiting, 0);
    drop(lease);
    assert_eq!(pool.acquire().await.expect("still there").number, 1);
}

#[tokio::test(start_paused = true)]
async fn with_nothing_alive_a_transient_error_fails_fast_and_spares_the_server() {
    let world = World::new();
    world.plan(|plan| plan.connect = Act::Fail);
    let pool = world.pool(support::config(4));
    let began = Instant::now();
    let first = spawn_acquires(&pool, 4);
    for waiter in first {
        assert_fails_with(&waiter.await.expect("no panic"), "out of order");
    }
    let attempts = world.counts().attempts;
    assert!(attempts <= 4);
    for _ in 0..100 {
        assert_fails_with(&pool.acquire().await.map(drop), "out of order");
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(
        world.counts().attempts,
        attempts,
        "refused without an attempt"
    );
    assert_eq!(pool.metrics().connect_failures, attempts as u64);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_waited_out_and_then_all_are_served_in_order() {
    let world = World::new();
    world.plan(|plan| plan.connect = Act::Fail);
    let mut config = support::config(1);
    config.outage_timeout = 10 * SECOND;
    let pool = world.pool(config);
    let began = Instant::now();
    let first = spawn_acquires(&pool, 2);
    sleep(3 * SECOND).await;
    // Also those who come in the middle of it.
    let later = spawn_acquires(&pool, 2);
    settle().await;
    assert_eq!(pool.metrics().waiting, 4);
    world.plan(|plan| plan.connect = Act::Work);
    for waiter in first.into_iter().chain(later) {
        waiter.await.expect("no panic").expect("served");
    }
    // As soon as the server is back, give or take the pause between two attempts.
    assert!(
        began.elapsed() < 3 * SECOND + 600 * MS,
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_lasts_is_told_to_all_and_from_then_on_at_once() {
    let world = World::new();
    world.plan(|plan| plan.connect = Act::Fail);
    let mut config = support::config(2);
    config.outage_timeout = 2 * SECOND;
    let pool = world.pool(config);
    let began = Instant::now();
    for waiter in spawn_acquires(&pool, 3) {
        assert_fails_with(&waiter.await.expect("no panic"), "out of order");
    }
    let waited = began.elapsed();
    assert!(
        waited >= 2 * SECOND && waited < 2 * SECOND + 600 * MS,
        "{waited:?}"
    );
    let began = Instant::now();
    assert_fails_with(&pool.acquire().await.map(drop), "out of order");
    assert_eq!(began.elapsed(), Duration::ZERO);
    // What can't pass is not waited out.
    world.plan(|plan| plan.connect = Act::Refuse);
    let mut config = support::config(2);
    config.outage_timeout = 2 * SECOND;
    let began = Instant::now();
    assert_fails_with(&world.pool(config).acquire().await.map(drop), "not for you");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn attempts_grow_rarer_while_the_server_is_down() {
    let world = World::new();
    world.plan(|plan| plan.connect = Act::Fail);
    let pool = world.pool(support::config(4));
    for _ in 0..600_000 / 50 {
        assert!(pool.acquire().await.is_err());
        sleep(50 * MS).await;
    }
    // Ten minutes: every 5 s at most, every 2.5 s on average.
    let attempts = world.counts().attempts;
    assert!((100..500).contains(&attempts), "{attempts}");
    world.plan(|plan| plan.connect = Act::Work);
    sleep(6 * SECOND).await;
    assert!(pool.acquire().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn half_open_one_attempt_at_a_time_and_then_all() {
    let world = World::new();
    world.plan(|plan| plan.connect = Act::Fail);
    let pool = world.pool(support::config(8));
    assert!(pool.acquire().await.is_err());
    sleep(SECOND).await;
    world.plan(|plan| plan.connect = Act::Slow(SECOND));
    let waiters = spawn_acquires(&pool, 8);
    settle().await;
    assert_eq!(pool.metrics().connecting, 1, "one finds out");
    sleep(SECOND + MS).await;
    assert_eq!(pool.metrics().connecting, 4, "the others follow");
    for waiter in waiters {
        waiter.await.expect("no panic").expect("opened");
    }
    assert_counts_agree(&pool, &world);
}

#[tokio::test(start_paused = true)]
async fn with_one_alive_waiters_wait_for_it_and_the_server_is_tried_again() {
    let world = World::new();
    let pool = world.pool(support::config(2));
    let lease = pool.acquire().await.expect("opened");
    world.plan(|plan| plan.connect = Act::Hang);
    let given_up = spawn_acquires(&pool, 1);
    settle().await;
    assert_eq!(pool.metrics().waiting, 1, "the living one may come back");
    given_up[0].abort();
    sleep(pool.config().connect_timeout + MS).await;
    assert_eq!(pool.metrics().connect_failures, 1);
    // This one comes when the attempt failed and nobody waited: somebody must think of it when it is time to try again.
    let late = spawn_acquires(&pool, 1);
    settle().await;
    assert_eq!((pool.metrics().waiting, pool.metrics().connecting), (1, 0));
    world.plan(|plan| plan.connect = Act::Work);
    let began = Instant::now();
    for waiter in late {
        waiter.await.expect("no panic").expect("opened");
    }
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    drop(lease);
    assert_counts_agree(&pool, &world);
}

#[tokio::test(start_paused = true)]
async fn one_that_comes_when_all_timers_have_run_is_served_too() {
    let world = World::new();
    let pool = world.pool(support::config(2));
    let _lease = pool.acquire().await.expect("opened");
    world.plan(|plan| plan.connect = Act::Fail);
    let given_up = spawn_acquires(&pool, 1);
    settle().await;
    given_up[0].abort();
    sleep(60 * SECOND).await;
    world.plan(|plan| plan.connect = Act::Work);
    let began = Instant::now();
    assert!(pool.acquire().await.is_ok());
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn idle_ones_are_refilled_when_the_server_is_back_though_nobody_asks() {
    let world = World::new();
    world.plan(|plan| plan.connect = Act::Fail);
    let mut config = support::config(4);
    config.min_idle = 3;
    let pool = world.pool(config);
    assert!(pool.acquire().await.is_err());
    sleep(60 * SECOND).await;
    assert!(
        (10..60).contains(&world.counts().attempts),
        "{:?}",
        world.counts()
    );
    world.plan(|plan| plan.connect = Act::Work);
    sleep(6 * SECOND).await;
    assert_eq!(pool.metrics().idle, 3);
    assert_counts_agree(&pool, &world);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_names_the_counts_and_the_last_cause() {
    let world = World::new();
    let mut config = support::config(2);
    config.acquire_timeout = 3 * SECOND;
    let pool = world.pool(config);
    let _leases = acquire_many(&pool, 1).await;
    world.plan(|plan| plan.connect = Act::Fail);
    let waiters = spawn_acquires(&pool, 2);
    settle().await;
    let began = Instant::now();
    let error = pool.acquire().await.map(drop).expect_err("nothing free");
    assert_eq!(began.elapsed(), 3 * SECOND);
    let AcquireError::Timeout {
        waited,
        max,
        active,
        idle,
        ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!((*waited, *max, *active, *idle), (3 * SECOND, 2, 1, 0));
    let text = error.to_string();
    assert!(text.contains("within 3s: 1 of 2 in use, 0 idle"), "{text}");
    assert!(
        text.ends_with("last attempt to connect: out of order"),
        "{text}"
    );
    assert!(error.is_timeout() && matches!(error.cause(), Some(HeliosError::Network(_))));
    for waiter in waiters {
        assert!(
            waiter
                .await
                .expect("no panic")
                .is_err_and(|error| error.is_timeout())
        );
    }
    let metrics = pool.metrics();
    assert_eq!((metrics.timeouts, metrics.waiting), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn an_acquire_takes_no_longer_than_its_timeout_however_many_checks_hang() {
    let world = World::new();
    let mut config = support::config(10);
    config.acquire_timeout = 2500 * MS;
    config.validation_bypass = SECOND;
    let pool = world.pool(config);
    drop(acquire_many(&pool, 10).await);
    sleep(2 * SECOND).await;
    world.plan(|plan| plan.check = Act::Hang);
    let began = Instant::now();
    let error = pool.acquire().await.map(drop).expect_err("all hang");
    assert!(error.is_timeout(), "{error}");
    assert_eq!(began.elapsed(), 2500 * MS);
    settle().await;
    assert_counts_agree(&pool, &world);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_attempt_ends_and_a_panicking_one_is_a_failed_one() {
    for (act, after) in [(Act::Hang, 5 * SECOND), (Act::Panic, Duration::ZERO)] {
        let world = World::new();
        world.plan(|plan| plan.connect = act);
        let pool = world.pool(support::config(1));
        let began = Instant::now();
        let error = pool.acquire().await.map(drop).expect_err("no connection");
        assert!(matches!(error, AcquireError::Connect(_)), "{error}");
        assert_eq!(began.elapsed(), after);
        assert_counts_agree(&pool, &world);
        world.plan(|plan| plan.connect = Act::Work);
        sleep(SECOND).await;
        assert!(pool.acquire().await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_that_fails_hangs_or_panics_costs_the_connection_and_nothing_else() {
    for act in [Act::Fail, Act::Hang, Act::Panic] {
        let world = World::new();
        world.plan(|plan| plan.reset = act);
        let pool = world.pool(support::config(1));
        let mut lease = pool.acquire().await.expect("opened");
        lease.disposition = Disposition::Dirty;
        drop(lease);
        assert_eq!(pool.acquire().await.expect("opened").number, 2, "{act:?}");
        let metrics = pool.metrics();
        assert_eq!((metrics.resets, metrics.unhealthy), (1, 1), "{act:?}");
        assert_counts_agree(&pool, &world);
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_attempts_at_once_than_allowed() {
    let world = World::new();
    world.plan(|plan| plan.connect = Act::Slow(SECOND));
    let mut config = support::config(20);
    config.max_connecting = 3;
    let pool = world.pool(config);
    let waiters = spawn_acquires(&pool, 50);
    settle().await;
    assert_eq!(pool.metrics().connecting, 3);
    for waiter in waiters {
        waiter.await.expect("no panic").expect("opened");
    }
    assert_eq!(world.counts().connecting_max, 3);
    assert_counts_agree(&pool, &world);
}

/// One user of a server that changes its mind all the time.
async fn use_at_random(pool: Arc<Pool>, world: Arc<World>, mut rng: StdRng) {
    let act = |rng: &mut StdRng| match rng.random_range(0..12) {
        0 => Act::Fail,
        1 => Act::Hang,
        2..8 => Act::Slow(rng.random_range(1..300) * MS),
        _ => Act::Work,
    };
    for _ in 0..20 {
        world.plan(|plan| match rng.random_range(0..4) {
            0 => plan.connect = act(&mut rng),
            1 => plan.check = act(&mut rng),
            2 => plan.reset = act(&mut rng),
            _ => plan.close = act(&mut rng),
        });
        let patience = rng.random_range(1..2000) * MS;
        if let Ok(Ok(mut lease)) = tokio::time::timeout(patience, pool.acquire()).await {
            sleep(rng.random_range(0..200) * MS).await;
            lease.alive = rng.random_ratio(9, 10);
            lease.disposition = match rng.random_range(0..6) {
                0 => Disposition::Broken,
                1 => Disposition::Dirty,
                _ => Disposition::Clean,
            };
        }
        let metrics = pool.metrics();
        assert!(total(&metrics) <= metrics.max, "{metrics:?}");
        assert!(
            metrics.connecting <= pool.config().max_connecting,
            "{metrics:?}"
        );
        match rng.random_range(0..60) {
            0 => pool.evict_all(),
            1..4 => sleep(5 * SECOND).await,
            _ => {}
        }
    }
}

async fn survive(max: usize, min_idle: usize, max_connecting: usize, random: u64) {
    let world = World::new();
    let mut config = support::config(max);
    config.min_idle = min_idle.min(max);
    config.max_connecting = max_connecting;
    config.max_lifetime = Some(20 * SECOND);
    config.idle_timeout = Some(3 * SECOND);
    config.health_check_interval_secs = 2;
    config.validation_bypass = SECOND;
    let pool = world.pool(config);
    let mut users = JoinSet::new();
    for user in 0..24 {
        let rng = StdRng::seed_from_u64(random.wrapping_add(user));
        users.spawn(use_at_random(Arc::clone(&pool), Arc::clone(&world), rng));
    }
    users.join_all().await;
    let counts = world.counts();
    assert!(counts.connecting_max <= max_connecting, "{counts:?}");
    // Everything works again: so must the pool, with every connection it may have.
    world.plan(|plan| *plan = support::Plan::default());
    sleep(30 * SECOND).await;
    assert_counts_agree(&pool, &world);
    let leases = tokio::time::timeout(60 * SECOND, acquire_many(&pool, max)).await;
    assert_eq!(leases.expect("none was lost").len(), max);
    pool.drain(60 * SECOND).await;
    assert_counts_agree(&pool, &world);
    assert_eq!(total(&pool.metrics()), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bounds_hold_under_any_load_and_nothing_is_lost(
        max in 1..8_usize,
        min_idle in 0..4_usize,
        max_connecting in 1..5_usize,
        random: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(survive(max, min_idle, max_connecting, random));
    }
}
