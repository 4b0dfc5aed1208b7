//! Pools that share a bound on their connections: each waits for its turn, gives up what it does not need, and what it is
//! asked for.

mod support;

use std::sync::Arc;

use support::{MS, Pool, SECOND, World, acquire_many, assert_counts_agree, settle};
use tokio::sync::Semaphore;
use tokio::time::sleep;

/// Two pools, and so many places for both.
fn two_pools(places: usize) -> (Arc<Semaphore>, [Arc<World>; 2], [Arc<Pool>; 2]) {
    let places = Arc::new(Semaphore::new(places));
    let worlds = [World::new(), World::new()];
    let pools = [0, 1].map(|at| {
        let world: &Arc<World> = &worlds[at];
        world.share(&places);
        world.pool(support::config(4))
    });
    (places, worlds, pools)
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_place_is_not_connecting_for_too_long() {
    let (_places, worlds, [one, other]) = two_pools(1);
    let held = acquire_many(&one, 1).await;
    let waiting = tokio::spawn(async move { other.acquire().await });
    // Five times the time for connecting.
    sleep(25 * SECOND).await;
    assert!(!waiting.is_finished());
    assert_eq!(worlds[1].counts().attempts, 0);
    drop(held);
    settle().await;
    // It is idle, and keeps its place until it is evicted.
    assert_eq!(one.evict_idle(1, 0), 1);
    waiting.await.expect("no panic").expect("served");
}

#[tokio::test(start_paused = true)]
async fn a_place_that_nobody_waits_for_any_more_goes_to_others() {
    let (places, worlds, [one, other]) = two_pools(1);
    let held = acquire_many(&one, 1).await;
    let waiting = {
        let other = Arc::clone(&other);
        tokio::spawn(async move { other.acquire().await.map(drop) })
    };
    settle().await;
    assert_eq!(other.metrics().connecting, 1);
    waiting.abort();
    settle().await;
    assert_eq!(
        other.metrics().connecting,
        0,
        "it left the line for places, too"
    );
    // Those whose time is over leave it as well.
    assert!(other.acquire().await.is_err());
    settle().await;
    assert_eq!(other.metrics().connecting, 0);
    drop(held);
    settle().await;
    one.evict_idle(1, 0);
    settle().await;
    assert_eq!(
        (places.available_permits(), worlds[1].counts().attempts),
        (1, 0)
    );
    drop(other.acquire().await.expect("served"));
}

#[tokio::test(start_paused = true)]
async fn connections_that_are_only_kept_ready_wait_for_no_place() {
    let places = Arc::new(Semaphore::new(1));
    let world = World::new();
    world.share(&places);
    let mut config = support::config(3);
    config.min_idle = 2;
    let pool = world.pool(config);
    sleep(SECOND).await;
    let lease = pool.acquire().await.expect("there is a place");
    settle().await;
    let metrics = pool.metrics();
    assert_eq!((metrics.connecting, metrics.active), (0, 1));
    // Who waits does.
    let waiting = {
        let pool = Arc::clone(&pool);
        tokio::spawn(async move { pool.acquire().await.map(drop) })
    };
    settle().await;
    places.add_permits(1);
    waiting.await.expect("no panic").expect("served");
    drop(lease);
    settle().await;
    assert_counts_agree(&pool, &world);
}

#[tokio::test(start_paused = true)]
async fn what_others_have_a_better_claim_to_is_closed_when_it_comes_back() {
    let world = World::new();
    let pool = world.pool(support::config(2));
    let leases = acquire_many(&pool, 2).await;
    world.claim(true);
    drop(leases);
    settle().await;
    assert_eq!((world.counts().closed, pool.metrics().idle), (2, 0));
    world.claim(false);
    drop(pool.acquire().await.expect("opened anew"));
    settle().await;
    assert_eq!(pool.metrics().idle, 1);
}

#[tokio::test(start_paused = true)]
async fn the_coldest_are_evicted_and_so_many_are_kept() {
    let world = World::new();
    let pool = world.pool(support::config(4));
    for lease in acquire_many(&pool, 4).await {
        drop(lease);
        sleep(MS).await;
    }
    assert_eq!(pool.evict_idle(1, 3), 1);
    assert_eq!(pool.evict_idle(5, 3), 0);
    settle().await;
    let kept: Vec<_> = acquire_many(&pool, 3).await;
    let mut numbers: Vec<_> = kept.iter().map(|lease| lease.number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3, 4]);
    drop(kept);
    settle().await;
    assert_eq!(pool.evict_idle(9, 0), 3);
    settle().await;
    assert_counts_agree(&pool, &world);
    assert_eq!(world.counts().sockets, 0);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_waits_for_a_place_can_be_drained_and_dropped() {
    let (places, _worlds, [one, other]) = two_pools(1);
    let held = acquire_many(&one, 1).await;
    let waiting = {
        let other = Arc::clone(&other);
        tokio::spawn(async move { other.acquire().await.map(drop) })
    };
    settle().await;
    assert_eq!(other.drain(SECOND).await.still_active, 0);
    assert!(waiting.await.expect("no panic").is_err());
    assert_eq!(other.metrics().connecting, 0);
    let weak = Arc::downgrade(&other);
    drop(other);
    settle().await;
    assert!(weak.upgrade().is_none());
    drop(held);
    one.evict_idle(1, 0);
    settle().await;
    assert_eq!(places.available_permits(), 1);
}
