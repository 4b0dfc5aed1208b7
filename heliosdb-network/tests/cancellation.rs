//! An acquire that is given up at any point costs nobody a connection.

mod support;

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use heliosdb_network::connection_pool::Disposition;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use support::{Act, MS, Pool, SECOND, TestLease, World, acquire_many, assert_counts_agree, settle};
use tokio::sync::oneshot;
use tokio::task::{JoinSet, yield_now};

const CONNECTIONS: usize = 4;
const TASKS: u64 = 64;
const ROUNDS: usize = 50;

/// Something a storm can rage over.
trait Storm: Send + Sync + 'static {
    type Held: Send;
    fn acquire(&self) -> impl Future<Output = Self::Held> + Send;
    fn release(&self, held: Self::Held, rng: &mut StdRng);
}

impl Storm for Pool {
    type Held = TestLease;

    async fn acquire(&self) -> TestLease {
        Self::acquire(self).await.expect("the server works")
    }

    fn release(&self, mut held: TestLease, rng: &mut StdRng) {
        held.disposition = match rng.random_range(0..10) {
            0 => Disposition::Broken,
            1 => Disposition::Dirty,
            _ => Disposition::Clean,
        };
    }
}

/// Hands numbers to waiters without asking whether they still wait: what a pool must not do.
#[derive(Default)]
struct Leaky {
    free: Mutex<Vec<usize>>,
    waiters: Mutex<VecDeque<oneshot::Sender<usize>>>,
}

impl Storm for Leaky {
    type Held = usize;

    async fn acquire(&self) -> usize {
        let free = self.free.lock().pop();
        if let Some(free) = free {
            return free;
        }
        let (waiter, place) = oneshot::channel();
        self.waiters.lock().push_back(waiter);
        place.await.expect("never dropped")
    }

    fn release(&self, held: usize, _rng: &mut StdRng) {
        match self.waiters.lock().pop_front() {
            Some(waiter) => drop(waiter.send(held)),
            None => self.free.lock().push(held),
        }
    }
}

/// Polls so often, then drops the future.
async fn poll_at_most<F: Future>(future: F, polls: u32) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..polls {
        if let Poll::Ready(output) =
            poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
        {
            return Some(output);
        }
        yield_now().await;
    }
    None
}

async fn rage<S: Storm>(over: &Arc<S>, rounds: usize) {
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let over = Arc::clone(over);
        tasks.spawn(async move {
            let mut rng = StdRng::seed_from_u64(task);
            let mut acquired = 0;
            for _ in 0..rounds {
                let polls = rng.random_range(0..40);
                if let Some(held) = poll_at_most(over.acquire(), polls).await {
                    acquired += 1;
                    for _ in 0..rng.random_range(0..4) {
                        yield_now().await;
                    }
                    over.release(held, &mut rng);
                }
            }
            acquired
        });
    }
    let acquired: usize = tasks.join_all().await.into_iter().sum();
    let tried = rounds * usize::try_from(TASKS).expect("a small number");
    assert!(
        (1..tried).contains(&acquired),
        "the storm must both get and give up, got {acquired} of {tried}"
    );
}

async fn all_are_obtainable_after_a_storm(world: Arc<World>, rounds: usize) {
    let pool = world.pool(support::config(CONNECTIONS));
    rage(&pool, rounds).await;
    let leases = tokio::time::timeout(60 * SECOND, acquire_many(&pool, CONNECTIONS)).await;
    let leases = leases.expect("no connection was lost");
    assert!(pool.try_acquire(0).is_none());
    let metrics = pool.metrics();
    assert_eq!((metrics.waiting, metrics.active), (0, CONNECTIONS));
    drop(leases);
    assert_counts_agree(&pool, &world);
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_given_up_acquires_loses_no_connection() {
    all_are_obtainable_after_a_storm(World::new(), ROUNDS).await;
}

#[tokio::test(start_paused = true)]
async fn nor_where_connecting_resetting_and_closing_take_their_time() {
    let world = World::new();
    world.plan(|plan| {
        plan.reset = Act::Slow(MS);
        plan.close = Act::Slow(MS);
    });
    all_are_obtainable_after_a_storm(world, ROUNDS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nor_on_several_threads() {
    // Only here can a waiter give up at the very moment it is handed something: rare, so try often.
    all_are_obtainable_after_a_storm(World::new(), 20 * ROUNDS).await;
}

/// Without this, a storm too mild to lose anything would prove nothing.
#[tokio::test(start_paused = true)]
async fn the_same_storm_empties_a_leaky_pool() {
    let leaky = Arc::new(Leaky::default());
    leaky.free.lock().extend(0..CONNECTIONS);
    rage(&leaky, ROUNDS).await;
    assert!(leaky.free.lock().len() < CONNECTIONS);
}

#[tokio::test(start_paused = true)]
async fn a_connection_handed_to_a_waiter_that_gives_up_goes_to_the_next() {
    let world = World::new();
    let pool = world.pool(support::config(1));
    let lease = pool.acquire().await.expect("a connection");
    let mut first = Box::pin(pool.acquire());
    let mut second = Box::pin(pool.acquire());
    for waiter in [&mut first, &mut second] {
        assert!(poll_at_most(waiter, 1).await.is_none());
    }
    // Handed to the first, which never looks.
    drop(lease);
    assert_eq!(pool.metrics().waiting, 1);
    drop(first);
    let lease = poll_at_most(&mut second, 1).await.expect("handed on");
    assert_eq!(lease.expect("a connection").number, 1);
    assert_counts_agree(&pool, &world);
}

#[tokio::test(start_paused = true)]
async fn only_connections_that_reach_somebody_count_as_acquired() {
    let world = World::new();
    let mut config = support::config(1);
    config.validation_bypass = SECOND;
    let pool = world.pool(config);
    let lease = pool.acquire().await.expect("opened");
    assert_eq!(pool.metrics().acquired, 1);
    let mut waiter = Box::pin(pool.acquire());
    assert!(poll_at_most(&mut waiter, 1).await.is_none());
    drop(lease);
    drop(waiter);
    assert_eq!(pool.metrics().acquired, 1, "nobody got it");
    drop(pool.try_acquire(0).expect("idle"));
    drop(pool.acquire().await.expect("idle"));
    assert_eq!(pool.metrics().acquired, 3);
    tokio::time::sleep(2 * SECOND).await;
    world.plan(|plan| plan.check = Act::Fail);
    assert!(pool.try_acquire(0).is_none(), "it needs a check");
    assert_eq!(pool.acquire().await.expect("opened").number, 2);
    let metrics = pool.metrics();
    assert_eq!((metrics.acquired, metrics.unhealthy), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_check_was_cut_short_is_not_used_again() {
    let world = World::new();
    let mut config = support::config(1);
    config.validation_bypass = SECOND;
    let pool = world.pool(config);
    drop(pool.acquire().await.expect("opened"));
    tokio::time::sleep(2 * SECOND).await;
    world.plan(|plan| plan.check = Act::Hang);
    assert!(poll_at_most(pool.acquire(), 3).await.is_none());
    settle().await;
    assert_eq!(pool.acquire().await.expect("opened").number, 2);
    assert_counts_agree(&pool, &world);
}
