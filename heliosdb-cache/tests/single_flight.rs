//! One computation for each missing key, and what becomes of those who wait for it.
#![cfg(not(loom))]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use heliosdb_cache::{
    Answer, CacheConfig, CacheError, CacheManager, Fill, Flight, Follower, InMemoryBackend,
    QueryKey,
};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet, yield_now};
use tokio::time::Instant;

mod watchdog;

const TIMEOUT: Duration = Duration::from_millis(500);

fn cache_with(change: impl FnOnce(&mut CacheConfig)) -> Arc<CacheManager> {
    let mut config = CacheConfig::default();
    config.flight_timeout = TIMEOUT;
    change(&mut config);
    Arc::new(CacheManager::new(
        Arc::new(InMemoryBackend::new(1 << 20)),
        config,
    ))
}

fn cache() -> Arc<CacheManager> {
    cache_with(|_| {})
}

fn key(n: usize) -> QueryKey {
    QueryKey::new(
        "SELECT * FROM orders WHERE id = $1",
        &[&n.to_string()],
        "test",
    )
}

fn join(cache: &CacheManager, key: &QueryKey) -> Flight {
    cache.join(&key.as_ref(), &[cache.table_slot("orders")])
}

fn lead(cache: &CacheManager, key: &QueryKey) -> Fill {
    match join(cache, key) {
        Flight::Leader(fill) => fill,
        other => panic!("not the leader: {other:?}"),
    }
}

fn follow(cache: &CacheManager, key: &QueryKey) -> Follower {
    match join(cache, key) {
        Flight::Follower(follower) => follower,
        other => panic!("not a follower: {other:?}"),
    }
}

/// A follower that has begun to wait.
async fn wait(follower: Follower) -> JoinHandle<Option<Answer>> {
    let waiter = tokio::spawn(follower.wait());
    yield_now().await;
    assert!(!waiter.is_finished(), "it has to wait");
    waiter
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn followers_get_the_leader_s_value() {
    watchdog::in_paused_time(async {
        let (cache, key) = (cache(), key(1));
        let fill = lead(&cache, &key);
        let early = wait(follow(&cache, &key)).await;
        let late = follow(&cache, &key);
        assert_eq!(cache.stats().in_flight, 1);
        fill.complete("value".into(), MS);
        assert_eq!(
            early.await.expect("no panic here").as_deref(),
            Some(&b"value"[..])
        );
        assert_eq!(
            late.wait().await.as_deref(),
            Some(&b"value"[..]),
            "after the end, too"
        );
        assert_eq!(cache.lookup(&key.as_ref()).as_deref(), Some(&b"value"[..]));
        let stats = cache.stats();
        assert_eq!((stats.in_flight, stats.coalesced, stats.fills), (0, 2, 1));
    });
}

#[test]
fn followers_get_a_value_that_is_not_stored() {
    watchdog::in_paused_time(async {
        let (cache, key) = (cache_with(|config| config.min_result_size = 100), key(1));
        let fill = lead(&cache, &key);
        let follower = follow(&cache, &key);
        fill.complete("small".into(), MS);
        assert_eq!(follower.wait().await.as_deref(), Some(&b"small"[..]));
        assert_eq!(cache.lookup(&key.as_ref()), None);
    });
}

#[test]
fn other_keys_do_not_wait() {
    let cache = cache();
    let _first = lead(&cache, &key(1));
    let _second = lead(&cache, &key(2));
    assert_eq!(cache.stats().in_flight, 2);
}

/// However a leader gives up, its followers are told at once, and one of them leads next.
async fn one_leads_next(
    cache: &Arc<CacheManager>,
    key: &QueryKey,
    give_up: impl AsyncFnOnce(Fill),
) {
    let fill = lead(cache, key);
    let mut waiters = Vec::new();
    for _ in 0..10 {
        waiters.push(wait(follow(cache, key)).await);
    }
    let began = Instant::now();
    give_up(fill).await;
    let mut flights = Vec::new();
    for waiter in waiters {
        assert_eq!(waiter.await.expect("no panic here"), None);
        flights.push(join(cache, key));
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "told, not timed out");
    let leaders = flights
        .iter()
        .filter(|flight| matches!(flight, Flight::Leader(_)))
        .count();
    let followers = flights
        .iter()
        .filter(|flight| matches!(flight, Flight::Follower(_)))
        .count();
    assert_eq!((leaders, followers), (1, 9));
    assert_eq!(cache.stats().in_flight, 1);
    drop(flights);
    assert_eq!(cache.stats().in_flight, 0);
}

#[test]
fn one_leads_next_when_the_leader_drops_its_fill() {
    watchdog::in_paused_time(async {
        one_leads_next(&cache(), &key(1), async |fill| drop(fill)).await;
    });
}

#[test]
fn one_leads_next_when_the_leader_panics() {
    watchdog::in_paused_time(async {
        one_leads_next(&cache(), &key(1), async |fill| {
            let leader = tokio::spawn(async move {
                let _fill = fill;
                panic!("the computation panics, as the test wants it to");
            });
            assert!(leader.await.is_err());
        })
        .await;
    });
}

#[test]
fn one_leads_next_when_the_leader_is_cancelled() {
    watchdog::in_paused_time(async {
        one_leads_next(&cache(), &key(1), async |fill| {
            let leader = tokio::spawn(async move {
                let _fill = fill;
                std::future::pending::<()>().await;
            });
            yield_now().await;
            leader.abort();
            assert!(leader.await.is_err());
        })
        .await;
    });
}

#[test]
fn a_policy_that_panics_does_not_keep_the_followers_waiting() {
    struct Panics;
    impl heliosdb_cache::EvictionPolicy for Panics {
        fn calculate_score(&self, _: &heliosdb_cache::CacheEntry) -> f64 {
            panic!("the policy panics, as the test wants it to");
        }

        fn name(&self) -> &str {
            "Panics"
        }
    }
    watchdog::in_paused_time(async {
        let mut config = CacheConfig::default();
        config.eviction_policy = Arc::new(Panics);
        let cache = Arc::new(CacheManager::new(
            Arc::new(InMemoryBackend::new(2_000)),
            config,
        ));
        lead(&cache, &key(1)).complete(vec![0; 500].into(), MS);
        lead(&cache, &key(2)).complete(vec![0; 500].into(), MS);
        // No room is left: this one asks the policy.
        let fill = lead(&cache, &key(3));
        let waiter = wait(follow(&cache, &key(3))).await;
        let leader = tokio::spawn(async move { fill.complete(vec![3; 600].into(), MS) });
        assert!(leader.await.is_err(), "the panic is the leader's");
        assert_eq!(
            waiter.await.expect("no panic here"),
            Some(Answer::from(vec![3; 600]))
        );
        assert_eq!(cache.stats().in_flight, 0);
    });
}

#[test]
fn nobody_joins_a_computation_older_than_a_finished_write() {
    watchdog::in_paused_time(async {
        let (cache, key) = (cache(), key(1));
        let old = lead(&cache, &key);
        let before = wait(follow(&cache, &key)).await;
        let write = cache.versions().begin_write(&[cache.table_slot("orders")]);
        assert!(
            matches!(join(&cache, &key), Flight::Uncached),
            "a write is pending"
        );
        write.finish();

        let new = lead(&cache, &key);
        let after = wait(follow(&cache, &key)).await;
        old.complete("old".into(), MS);
        assert_eq!(
            before.await.expect("no panic here").as_deref(),
            Some(&b"old"[..]),
            "they came before the write"
        );
        assert!(
            !after.is_finished(),
            "the old value is not for those who came after the write"
        );
        assert_eq!(cache.lookup(&key.as_ref()), None, "nor is it stored");
        new.complete("new".into(), MS);
        assert_eq!(
            after.await.expect("no panic here").as_deref(),
            Some(&b"new"[..])
        );
        assert_eq!(cache.lookup(&key.as_ref()).as_deref(), Some(&b"new"[..]));
    });
}

#[test]
fn a_write_to_something_else_disturbs_no_computation() {
    let (cache, key) = (cache(), key(1));
    let fill = lead(&cache, &key);
    cache.invalidate_table("users");
    let _follower = follow(&cache, &key);
    fill.complete("value".into(), MS);
    assert!(cache.lookup(&key.as_ref()).is_some());
}

#[test]
fn the_late_leader_of_a_replaced_computation_does_not_remove_the_newer_one() {
    let (cache, key) = (cache(), key(1));
    for completes in [true, false] {
        let old = lead(&cache, &key);
        cache.invalidate_table("orders");
        let new = lead(&cache, &key);
        assert_eq!(
            cache.stats().in_flight,
            2,
            "the replaced one still computes"
        );
        if completes {
            old.complete("old".into(), MS);
        } else {
            drop(old);
        }
        assert_eq!(cache.stats().in_flight, 1, "the newer one's");
        let _follower = follow(&cache, &key);
        drop(new);
        assert_eq!(cache.stats().in_flight, 0);
    }
}

#[test]
fn more_computations_than_allowed_go_without_the_cache() {
    watchdog::in_paused_time(async {
        let cache = cache_with(|config| config.max_in_flight = 2);
        let first = lead(&cache, &key(1));
        let _second = lead(&cache, &key(2));
        assert!(matches!(join(&cache, &key(3)), Flight::Overload));
        let _follower = follow(&cache, &key(1));
        cache.invalidate_table("orders");
        assert!(
            matches!(join(&cache, &key(1)), Flight::Overload),
            "a computation out of date still computes"
        );
        let value = cache
            .get_or_compute(&key(3), &["orders"], async { Ok("3".into()) })
            .await;
        assert_eq!(value.as_deref(), Ok(&b"3"[..]));
        assert_eq!(cache.lookup(&key(3).as_ref()), None, "computed, not stored");
        drop(first);
        drop(lead(&cache, &key(3)));
    });
}

#[test]
fn what_is_being_computed_when_all_is_cleared_is_not_served_afterwards() {
    let (cache, key) = (cache(), key(1));
    let fill = lead(&cache, &key);
    cache.clear();
    fill.complete("old".into(), MS);
    assert_eq!(cache.lookup(&key.as_ref()), None);
    assert_eq!(cache.stats().rejected, 1);
    lead(&cache, &key).complete("new".into(), MS);
    assert!(
        cache.lookup(&key.as_ref()).is_some(),
        "and the cache works on"
    );
    cache.clear();
    let stats = cache.stats();
    assert_eq!((stats.entries, stats.size_bytes), (0, 0));
}

#[test]
fn a_thousand_tasks_compute_once() {
    watchdog::on_threads(async {
        for round in 0..50 {
            let (cache, key) = (
                cache_with(|config| config.flight_timeout = Duration::from_secs(60)),
                key(round),
            );
            let computed = Arc::new(AtomicUsize::new(0));
            let mut tasks = JoinSet::new();
            for _ in 0..1000 {
                let (cache, key, computed) =
                    (Arc::clone(&cache), key.clone(), Arc::clone(&computed));
                tasks.spawn(async move {
                    let value = cache.get_or_compute(&key, &["orders"], async {
                        computed.fetch_add(1, Ordering::AcqRel);
                        yield_now().await;
                        Ok("value".into())
                    });
                    assert_eq!(value.await.as_deref(), Ok(&b"value"[..]));
                });
            }
            while let Some(ended) = tasks.join_next().await {
                ended.expect("no task panics");
            }
            assert_eq!(computed.load(Ordering::Acquire), 1, "round {round}");
            assert_eq!(cache.stats().in_flight, 0);
        }
    });
}

/// The step between "not in the cache" and "nobody computes it" is where a computation that ends just then is missed.
#[test]
fn threads_that_come_as_a_computation_ends_do_not_compute_again() {
    const THREADS: usize = 4;
    watchdog::on_threads(async {
        let cache = cache_with(|config| config.flight_timeout = Duration::from_secs(60));
        let computed = Arc::new(AtomicUsize::new(0));
        let barrier = Arc::new(std::sync::Barrier::new(THREADS));
        let rounds = 5_000;
        let threads = (0..THREADS).map(|_| {
            let (cache, computed, barrier) = (
                Arc::clone(&cache),
                Arc::clone(&computed),
                Arc::clone(&barrier),
            );
            let handle = tokio::runtime::Handle::current();
            tokio::task::spawn_blocking(move || {
                for round in 0..rounds {
                    let key = key(round);
                    barrier.wait();
                    let value = handle.block_on(cache.get_or_compute(&key, &["orders"], async {
                        computed.fetch_add(1, Ordering::AcqRel);
                        Ok("value".into())
                    }));
                    assert_eq!(value.as_deref(), Ok(&b"value"[..]));
                }
            })
        });
        for thread in threads.collect::<Vec<_>>() {
            thread.await.expect("no thread panics");
        }
        assert_eq!(computed.load(Ordering::Acquire), rounds);
    });
}

#[test]
fn an_error_is_the_leader_s_alone() {
    watchdog::in_paused_time(async {
        let (cache, key) = (cache(), key(1));
        let begin = Arc::new(Notify::new());
        let leader = {
            let (cache, key, begin) = (Arc::clone(&cache), key.clone(), Arc::clone(&begin));
            tokio::spawn(async move {
                let compute = async {
                    begin.notified().await;
                    Err(CacheError::Compute("no".to_owned()))
                };
                cache.get_or_compute(&key, &["orders"], compute).await
            })
        };
        yield_now().await;
        let follower = {
            let (cache, key) = (Arc::clone(&cache), key.clone());
            tokio::spawn(async move {
                cache
                    .get_or_compute(&key, &["orders"], async { Ok("yes".into()) })
                    .await
            })
        };
        yield_now().await;
        assert_eq!(cache.stats().coalesced, 1);
        begin.notify_one();
        assert_eq!(
            leader.await.expect("no panic here"),
            Err(CacheError::Compute("no".to_owned()))
        );
        assert_eq!(
            follower.await.expect("no panic here").as_deref(),
            Ok(&b"yes"[..])
        );
        assert!(cache.lookup(&key.as_ref()).is_some());
    });
}

#[test]
fn a_leader_that_hangs_does_not_stop_its_followers_for_ever() {
    watchdog::in_paused_time(async {
        let (cache, key) = (cache(), key(1));
        let hung = lead(&cache, &key);
        let began = Instant::now();
        assert_eq!(follow(&cache, &key).wait().await, None);
        assert_eq!(began.elapsed().as_millis(), TIMEOUT.as_millis());
        let value = cache
            .get_or_compute(&key, &["orders"], async { Ok("value".into()) })
            .await;
        assert_eq!(value.as_deref(), Ok(&b"value"[..]));
        drop(hung);
        assert_eq!(cache.stats().in_flight, 0);
    });
}

#[test]
fn a_follower_that_is_cancelled_leaves_the_others_waiting() {
    watchdog::in_paused_time(async {
        let (cache, key) = (cache(), key(1));
        let fill = lead(&cache, &key);
        let (gone, stays) = (
            wait(follow(&cache, &key)).await,
            wait(follow(&cache, &key)).await,
        );
        gone.abort();
        assert!(gone.await.expect_err("cancelled").is_cancelled());
        fill.complete("value".into(), MS);
        assert!(stays.await.expect("no panic here").is_some());
    });
}

#[test]
fn dropping_the_caller_drops_its_computation_and_frees_the_key() {
    watchdog::in_paused_time(async {
        let (cache, key) = (cache(), key(1));
        let caller = {
            let (cache, key) = (Arc::clone(&cache), key.clone());
            tokio::spawn(async move {
                cache
                    .get_or_compute(&key, &["orders"], std::future::pending())
                    .await
            })
        };
        yield_now().await;
        let waiter = wait(follow(&cache, &key)).await;
        caller.abort();
        assert_eq!(waiter.await.expect("no panic here"), None);
        assert_eq!(cache.stats().in_flight, 0);
    });
}

#[test]
fn the_answer_of_a_computation_that_a_write_overtook_is_not_stored() {
    watchdog::in_paused_time(async {
        let (cache, key) = (cache(), key(1));
        let overtaken = {
            let (writer, key) = (Arc::clone(&cache), key.clone());
            async move {
                writer
                    .versions()
                    .begin_write(&[writer.table_slot("orders")])
                    .finish();
                let _ = key;
                Ok("old".into())
            }
        };
        let value = cache.get_or_compute(&key, &["orders"], overtaken).await;
        assert_eq!(value.as_deref(), Ok(&b"old"[..]));
        assert_eq!(cache.lookup(&key.as_ref()), None);
    });
}
