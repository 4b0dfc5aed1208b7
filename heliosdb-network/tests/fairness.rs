//! Whoever comes first is served first.

mod support;

use std::sync::Arc;

use heliosdb_network::connection_pool::Disposition;
use parking_lot::Mutex;
use support::{Act, MS, Pool, SECOND, World, acquire_many, settle};
use tokio::task::{JoinHandle, JoinSet};

type Order = Arc<Mutex<Vec<usize>>>;

/// Queues a task that notes its number when it is served.
async fn queue(pool: &Arc<Pool>, order: &Order, number: usize) -> JoinHandle<()> {
    let (pool, order) = (Arc::clone(pool), Arc::clone(order));
    let before = pool.metrics().waiting;
    let waiting = Arc::clone(&pool);
    let task = tokio::spawn(async move {
        let _lease = pool.acquire().await.expect("a connection");
        order.lock().push(number);
        tokio::time::sleep(MS).await;
    });
    settle().await;
    assert_eq!(waiting.metrics().waiting, before + 1);
    task
}

#[tokio::test(start_paused = true)]
async fn waiters_are_served_in_the_order_they_came() {
    let pool = World::new().pool(support::config(2));
    let leases = acquire_many(&pool, 2).await;
    let order = Order::default();
    let mut tasks = Vec::new();
    for number in 0..20 {
        tasks.push(queue(&pool, &order, number).await);
    }
    drop(leases);
    for task in tasks {
        task.await.expect("served");
    }
    assert_eq!(*order.lock(), Vec::from_iter(0..20));
}

#[tokio::test(start_paused = true)]
async fn those_that_gave_up_leave_no_gap_and_change_no_order() {
    let pool = World::new().pool(support::config(1));
    let lease = pool.acquire().await.expect("a connection");
    let order = Order::default();
    let mut tasks = Vec::new();
    for number in 0..10 {
        tasks.push(queue(&pool, &order, number).await);
    }
    for task in tasks.iter().step_by(3) {
        task.abort();
    }
    settle().await;
    assert_eq!(pool.metrics().waiting, 6);
    drop(lease);
    for task in tasks {
        let _ = task.await;
    }
    assert_eq!(*order.lock(), [1, 2, 4, 5, 7, 8]);
}

#[tokio::test(start_paused = true)]
async fn order_holds_through_resets_and_replacements() {
    let world = World::new();
    world.plan(|plan| {
        plan.reset = Act::Slow(10 * MS);
        plan.connect = Act::Slow(10 * MS);
    });
    for disposition in [Disposition::Dirty, Disposition::Broken] {
        let pool = world.pool(support::config(1));
        let mut lease = pool.acquire().await.expect("a connection");
        let order = Order::default();
        let first = queue(&pool, &order, 1).await;
        lease.disposition = disposition;
        drop(lease);
        let second = queue(&pool, &order, 2).await;
        assert!(pool.try_acquire(0).is_none());
        first.await.expect("served");
        second.await.expect("served");
        assert_eq!(*order.lock(), [1, 2], "{disposition:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_overtakes_a_waiter_that_has_not_run_yet() {
    let pool = World::new().pool(support::config(1));
    let lease = pool.acquire().await.expect("a connection");
    let order = Order::default();
    let task = queue(&pool, &order, 1).await;
    // The waiter is woken, but this task goes on first.
    drop(lease);
    assert!(pool.try_acquire(0).is_none());
    let overtaking = pool.acquire().await.expect("a connection");
    assert_eq!(*order.lock(), [1]);
    drop(overtaking);
    task.await.expect("served");
}

#[tokio::test(start_paused = true)]
async fn a_greedy_task_gets_no_more_than_its_turn() {
    let pool = World::new().pool(support::config(1));
    let turns = Arc::new(Mutex::new([0_u32; 9]));
    let mut tasks = JoinSet::new();
    for task in 0..9 {
        let (pool, turns) = (Arc::clone(&pool), Arc::clone(&turns));
        tasks.spawn(async move {
            loop {
                let lease = pool.acquire().await.expect("a connection");
                turns.lock()[task] += 1;
                // The first one comes back without ever letting another task run.
                if task > 0 {
                    tokio::time::sleep(MS).await;
                }
                drop(lease);
            }
        });
    }
    tokio::time::sleep(SECOND).await;
    tasks.shutdown().await;
    let turns = *turns.lock();
    let (min, max) = (turns.iter().min(), turns.iter().max());
    assert!(
        turns[1] > 50 && max <= min.map(|min| min + 2).as_ref(),
        "{turns:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_hottest_idle_connection_comes_first_and_a_label_before_that() {
    let pool = World::new().pool(support::config(3));
    let mut leases = acquire_many(&pool, 3).await;
    for (label, lease) in (7..).zip(&mut leases) {
        lease.label = label;
    }
    for lease in leases {
        tokio::time::sleep(MS).await;
        drop(lease);
    }
    assert_eq!(pool.acquire().await.expect("idle").number, 3);
    assert_eq!(pool.acquire_labelled(7).await.expect("idle").number, 1);
    assert_eq!(pool.acquire().await.expect("idle").number, 1);
    assert_eq!(pool.metrics().label_hits, 1);
}
