//! `StampedeProtection`: one owner, no flight that outlives its owners, and no waiter that is forgotten.
#![cfg(not(loom))]

use heliosdb_cache::*;
use std::sync::Arc;
use std::time::Duration;

use std::pin::{Pin, pin};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

mod watchdog;

// Kept as it was given.
#[rustfmt::skip]
#[tokio::test]
async fn test_stampede_no_memory_leak() {
    let protection = Arc::new(StampedeProtection::with_config(
        Duration::from_millis(50), // Short timeout
        1000,
    ));
    let key = QueryKey::new("SELECT * FROM test", &[], "test");
    // Trigger many timeouts
    for _ in 0..100 {
        let prot = protection.clone();
        let k = key.clone();
        tokio::spawn(async move {
            // First acquire - will timeout
            let _guard = prot.try_acquire(&k).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            // Guard dropped here
        });
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Verify in_flight map is clean
    assert_eq!(
        protection.in_flight_count(),
        0,
        "Memory leak: in_flight not cleaned"
    );
}

const TIMEOUT: Duration = Duration::from_millis(100);

fn protection() -> Arc<StampedeProtection> {
    Arc::new(StampedeProtection::with_config(TIMEOUT, 1000))
}

fn key(n: usize) -> QueryKey {
    QueryKey::new(&format!("SELECT {n}"), &[], "test")
}

/// Asks a future once how it stands.
fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// A caller that owns the key at once.
async fn own(protection: &StampedeProtection, key: &QueryKey) -> ComputeGuard {
    let mut acquiring = pin!(protection.try_acquire(key));
    match poll_once(acquiring.as_mut()) {
        Poll::Ready(Ok(Some(guard))) => guard,
        other => panic!("not the owner: {other:?}"),
    }
}

/// A caller that has begun to wait.
async fn wait(
    protection: &Arc<StampedeProtection>,
    key: &QueryKey,
) -> tokio::task::JoinHandle<Option<ComputeGuard>> {
    let (protection, key) = (Arc::clone(protection), key.clone());
    let waiter = tokio::spawn(async move { protection.try_acquire(&key).await.expect("room") });
    tokio::task::yield_now().await;
    assert!(!waiter.is_finished(), "it has to wait");
    waiter
}

/// A barrier whose callers leave within nanoseconds of each other, as those of a barrier that sleeps do not.
fn meet(arrived: &AtomicUsize, expected: usize) {
    arrived.fetch_add(1, Ordering::AcqRel);
    let mut spins = 0_u32;
    while arrived.load(Ordering::Acquire) < expected {
        spins += 1;
        // The other may be without a core.
        if spins.is_multiple_of(1000) {
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

#[test]
fn one_of_all_that_come_at_the_same_time_owns_the_key() {
    const CALLERS: usize = 2;
    const ROUNDS: usize = 20_000;
    watchdog::on_threads(async {
        let protection = Arc::new(StampedeProtection::with_config(
            Duration::from_secs(3600),
            1000,
        ));
        let arrived = Arc::new(AtomicUsize::new(0));
        let callers = (0..CALLERS).map(|_| {
            let (protection, arrived) = (Arc::clone(&protection), Arc::clone(&arrived));
            tokio::task::spawn_blocking(move || {
                let (mut owned, mut forgotten) = (0, 0);
                for round in 0..ROUNDS {
                    let key = key(round);
                    let mut acquiring = pin!(protection.try_acquire(&key));
                    meet(&arrived, (round * 3 + 1) * CALLERS);
                    let first = poll_once(acquiring.as_mut());
                    owned += usize::from(matches!(first, Poll::Ready(Ok(Some(_)))));
                    meet(&arrived, (round * 3 + 2) * CALLERS);
                    let waits = first.is_pending();
                    drop(first);
                    meet(&arrived, (round * 3 + 3) * CALLERS);
                    if waits {
                        let second = poll_once(acquiring.as_mut());
                        forgotten += usize::from(!matches!(second, Poll::Ready(Ok(None))));
                    }
                }
                (owned, forgotten)
            })
        });
        let mut owners = 0;
        for caller in callers.collect::<Vec<_>>() {
            let (owned, forgotten) = caller.await.expect("no caller panics");
            assert_eq!(forgotten, 0, "who waited is told of the end");
            owners += owned;
        }
        assert_eq!(owners, ROUNDS, "one in each round");
        assert_eq!(protection.in_flight_count(), 0);
    });
}

#[test]
fn a_panic_of_the_owner_wakes_the_waiters() {
    watchdog::in_paused_time(async {
        let (protection, key) = (protection(), key(1));
        let guard = own(&protection, &key).await;
        let waiters = [wait(&protection, &key).await, wait(&protection, &key).await];
        let began = Instant::now();
        let owner = tokio::spawn(async move {
            let _guard = guard;
            panic!("the computation panics, as the test wants it to");
        });
        assert!(owner.await.is_err());
        for waiter in waiters {
            assert!(waiter.await.expect("no panic here").is_none());
        }
        assert_eq!(began.elapsed(), Duration::ZERO, "woken, not timed out");
        assert_eq!(protection.in_flight_count(), 0);
        drop(own(&protection, &key).await);
    });
}

#[test]
fn an_owner_that_is_cancelled_wakes_the_waiters() {
    watchdog::in_paused_time(async {
        let (protection, key) = (protection(), key(1));
        let guard = own(&protection, &key).await;
        let waiter = wait(&protection, &key).await;
        let began = Instant::now();
        let owner = tokio::spawn(async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        owner.abort();
        assert!(waiter.await.expect("no panic here").is_none());
        assert_eq!(began.elapsed(), Duration::ZERO, "woken, not timed out");
        assert_eq!(protection.in_flight_count(), 0);
    });
}

#[test]
fn a_waiter_that_is_cancelled_leaves_no_trace() {
    watchdog::in_paused_time(async {
        let (protection, key) = (protection(), key(1));
        let guard = own(&protection, &key).await;
        let (gone, stays) = (wait(&protection, &key).await, wait(&protection, &key).await);
        gone.abort();
        assert!(gone.await.expect_err("cancelled").is_cancelled());
        assert_eq!(protection.in_flight_count(), 1, "the owner's");
        assert!(!stays.is_finished());
        drop(guard);
        assert!(stays.await.expect("no panic here").is_none());
        assert_eq!(protection.in_flight_count(), 0);
    });
}

#[test]
fn a_waiter_cancelled_just_as_it_takes_over_frees_the_key() {
    watchdog::in_paused_time(async {
        let (protection, key) = (protection(), key(1));
        let _hung = own(&protection, &key).await;
        let waiter = wait(&protection, &key).await;
        sleep(TIMEOUT * 2).await;
        // It owns the key by now, and its result, the guard, is dropped unread.
        assert!(waiter.is_finished());
        drop(waiter);
        tokio::task::yield_now().await;
        assert_eq!(protection.in_flight_count(), 0);
    });
}

#[test]
fn the_old_owner_does_not_remove_its_successor() {
    watchdog::in_paused_time(async {
        let (protection, key) = (protection(), key(1));
        let old = own(&protection, &key).await;
        let successor = wait(&protection, &key).await.await.expect("no panic here");
        let successor = successor.expect("the timeout is over: it takes over");
        assert_eq!(protection.in_flight_count(), 1);

        drop(old);
        assert_eq!(protection.in_flight_count(), 1, "the successor's");
        let newcomer = wait(&protection, &key).await;
        drop(successor);
        assert!(newcomer.await.expect("no panic here").is_none());
        assert_eq!(protection.in_flight_count(), 0);
    });
}

#[test]
fn the_successor_s_end_leaves_nothing_for_the_old_owner_to_remove() {
    watchdog::in_paused_time(async {
        let (protection, key) = (protection(), key(1));
        let old = own(&protection, &key).await;
        let successor = wait(&protection, &key).await.await.expect("no panic here");
        drop(successor.expect("it takes over"));
        assert_eq!(protection.in_flight_count(), 0);

        let third = own(&protection, &key).await;
        drop(old);
        assert_eq!(protection.in_flight_count(), 1, "the third's");
        drop(third);
        assert_eq!(protection.in_flight_count(), 0);
    });
}

#[test]
fn one_waiter_takes_over_and_the_others_wake_with_whichever_owner_ends_first() {
    for old_ends_first in [true, false] {
        watchdog::in_paused_time(async move {
            let (protection, key) = (protection(), key(1));
            let old = own(&protection, &key).await;
            let mut waiters = JoinSet::new();
            for _ in 0..10 {
                let (protection, key) = (Arc::clone(&protection), key.clone());
                waiters.spawn(async move { protection.try_acquire(&key).await.expect("room") });
            }
            let successor = waiters
                .join_next()
                .await
                .expect("ten")
                .expect("no panic here");
            let successor = successor.expect("it takes over");
            tokio::task::yield_now().await;
            assert!(
                waiters.try_join_next().is_none(),
                "one takes over, the others wait"
            );

            let began = Instant::now();
            let stays = if old_ends_first {
                drop(old);
                successor
            } else {
                drop(successor);
                old
            };
            while let Some(waiter) = waiters.join_next().await {
                assert!(waiter.expect("no panic here").is_none());
            }
            assert_eq!(began.elapsed(), Duration::ZERO, "woken, not timed out");
            drop(stays);
            assert_eq!(protection.in_flight_count(), 0);
        });
    }
}

#[test]
fn computations_are_at_most_one_and_one_for_each_timeout() {
    watchdog::in_paused_time(async {
        let (protection, key) = (protection(), key(1));
        let computations = Arc::new(AtomicUsize::new(0));
        let began = Instant::now();
        let mut callers = JoinSet::new();
        for n in 0..200 {
            let (protection, key, computations) = (
                Arc::clone(&protection),
                key.clone(),
                Arc::clone(&computations),
            );
            callers.spawn(async move {
                // They come spread over three timeouts, so that theirs end at different times.
                sleep(TIMEOUT * 3 * n / 200).await;
                let guard = protection.try_acquire(&key).await.expect("room");
                if guard.is_some() {
                    computations.fetch_add(1, Ordering::AcqRel);
                    sleep(TIMEOUT * 20).await;
                }
            });
        }
        for _ in 0..20 {
            sleep(TIMEOUT / 2 + Duration::from_millis(1)).await;
            let timeouts = began.elapsed().as_millis() / TIMEOUT.as_millis();
            let computations = computations.load(Ordering::Acquire) as u128;
            assert!(
                computations <= 1 + timeouts,
                "{computations} after {timeouts} timeouts"
            );
            // A waiter's own timeout may end just before its turn: then it takes over one later.
            assert!(
                computations * 2 + 1 >= timeouts,
                "{computations} after {timeouts} timeouts: nobody takes over"
            );
        }
        callers.join_all().await;
        assert_eq!(protection.in_flight_count(), 0);
    });
}

#[test]
fn more_keys_than_allowed_are_refused_and_known_keys_are_not() {
    watchdog::in_paused_time(async {
        let protection = Arc::new(StampedeProtection::with_config(TIMEOUT, 2));
        let first = own(&protection, &key(1)).await;
        let _second = own(&protection, &key(2)).await;
        let refused = protection.try_acquire(&key(3)).await.expect_err("full");
        assert_eq!(
            refused,
            CacheError::Overload("Too many in-flight requests".to_string())
        );
        let waiter = wait(&protection, &key(1)).await;
        drop(first);
        assert!(waiter.await.expect("no panic here").is_none());
        drop(own(&protection, &key(3)).await);
    });
}

#[test]
fn the_bound_on_keys_is_exact_when_all_come_at_the_same_time() {
    const CALLERS: usize = 4;
    watchdog::on_threads(async {
        let protection = Arc::new(StampedeProtection::with_config(
            Duration::from_secs(3600),
            3,
        ));
        let barrier = Arc::new(Barrier::new(CALLERS));
        let callers = (0..CALLERS).map(|n| {
            let (protection, barrier) = (Arc::clone(&protection), Arc::clone(&barrier));
            tokio::task::spawn_blocking(move || {
                for round in 0..2_000 {
                    let key = key(round * CALLERS + n);
                    let mut acquiring = pin!(protection.try_acquire(&key));
                    barrier.wait();
                    let first = poll_once(acquiring.as_mut());
                    barrier.wait();
                    assert_eq!(protection.in_flight_count(), 3, "no more, and no fewer");
                    barrier.wait();
                    drop(first);
                    barrier.wait();
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.expect("no caller panics");
        }
    });
}

#[test]
fn nothing_is_left_after_timeouts_cancellations_and_panics_in_any_order() {
    watchdog::on_threads(async {
        let protection = Arc::new(StampedeProtection::with_config(
            Duration::from_millis(2),
            1000,
        ));
        for round in 0..20_u64 {
            let mut callers = JoinSet::new();
            let mut handles = Vec::new();
            for n in 0..100_u64 {
                let protection = Arc::clone(&protection);
                handles.push(callers.spawn(async move {
                    let key = key(usize::from(n % 3 == 0));
                    sleep(Duration::from_millis(n % 5)).await;
                    let guard = protection.try_acquire(&key).await.expect("room");
                    sleep(Duration::from_millis((n * 7 + round) % 9)).await;
                    assert!(guard.is_none() || n % 4 != 0, "as the test wants it to");
                }));
            }
            sleep(Duration::from_millis(3)).await;
            for handle in handles.iter().step_by(5) {
                handle.abort();
            }
            while callers.join_next().await.is_some() {}
            assert_eq!(protection.in_flight_count(), 0, "round {round}");
        }
    });
}
