//! How many computations there may be for a key, who may share one, and what a hit costs. What becomes of leaders and
//! followers one by one is tested in `single_flight`.
#![cfg(not(loom))]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use heliosdb_cache::{
    Answer, CacheConfig, CacheError, CacheManager, Fill, Flight, Follower, HashedStr,
    InMemoryBackend, KeyRef, QueryKey, SlotId,
};

const CHEAP: Duration = Duration::from_millis(1);

fn cache_with(change: impl FnOnce(&mut CacheConfig)) -> Arc<CacheManager> {
    let mut config = CacheConfig::default();
    change(&mut config);
    Arc::new(CacheManager::new(
        Arc::new(InMemoryBackend::new(1 << 20)),
        config,
    ))
}

fn cache() -> Arc<CacheManager> {
    cache_with(|_| ())
}

fn key() -> QueryKey {
    QueryKey::new("SELECT * FROM t", &[], "test")
}

fn table(cache: &CacheManager) -> [SlotId; 1] {
    [cache.table_slot("t")]
}

fn leader(cache: &CacheManager) -> Fill {
    match cache.join(&key().as_ref(), &table(cache)) {
        Flight::Leader(fill) => fill,
        other => panic!("{other:?}"),
    }
}

fn follower(cache: &CacheManager) -> Follower {
    match cache.join(&key().as_ref(), &table(cache)) {
        Flight::Follower(follower) => follower,
        other => panic!("{other:?}"),
    }
}

fn lookup(cache: &CacheManager) -> Option<Answer> {
    cache.lookup(&key().as_ref())
}

#[tokio::test]
async fn an_outdated_leader_that_ends_last_does_not_replace_the_newer_answer() {
    let cache = cache();
    let old = leader(&cache);
    cache.invalidate_table("t");
    leader(&cache).complete("new".into(), CHEAP);
    old.complete("old".into(), CHEAP);
    assert_eq!(lookup(&cache).unwrap(), "new");
}

#[test]
fn a_caller_that_depends_on_more_does_not_join() {
    let cache = cache();
    let _narrow = leader(&cache);
    let more = [cache.table_slot("t"), cache.table_slot("u")];
    assert!(matches!(
        cache.join(&key().as_ref(), &more),
        Flight::Leader(_)
    ));
}

#[tokio::test]
async fn after_clear_nothing_of_before_is_served() {
    let cache = cache();
    leader(&cache).complete("old".into(), CHEAP);
    let other = QueryKey::new("SELECT 2", &[], "test");
    let Flight::Leader(fill) = cache.join(&other.as_ref(), &[]) else {
        panic!("leads");
    };
    cache.clear();
    assert_eq!(lookup(&cache), None);
    assert_eq!(cache.stats().size_bytes, 0);
    assert!(
        matches!(cache.join(&other.as_ref(), &[]), Flight::Leader(_)),
        "joined what was before"
    );
    fill.complete("old".into(), CHEAP);
    assert_eq!(cache.get(&other).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_hangs_is_replaced_once_for_each_timeout() {
    let cache = cache_with(|config| config.flight_timeout = Duration::from_secs(1));
    let hung = leader(&cache);
    assert_eq!(follower(&cache).wait().await, None, "bounded");
    let second = leader(&cache);
    let waits = follower(&cache);
    drop(hung);
    assert_eq!(cache.stats().in_flight, 1);
    let waits_too = follower(&cache);
    second.complete("v".into(), CHEAP);
    assert_eq!(waits.wait().await.unwrap(), "v");
    assert_eq!(waits_too.wait().await.unwrap(), "v");
}

#[test]
fn computations_are_bounded_those_that_were_replaced_included() {
    let cache = cache_with(|config| config.max_in_flight = 2);
    let first = leader(&cache);
    cache.invalidate_table("t");
    let second = leader(&cache);
    cache.invalidate_table("t");
    assert!(matches!(
        cache.join(&key().as_ref(), &table(&cache)),
        Flight::Overload
    ));
    drop(first);
    let third = leader(&cache);
    assert_eq!(cache.stats().in_flight, 2);
    drop((second, third));
    assert_eq!(cache.stats().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn an_error_is_its_callers_own_and_the_next_in_line_computes_alone() {
    let cache = cache();
    let computing = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..20)
        .map(|i| {
            let (cache, computing) = (cache.clone(), computing.clone());
            tokio::spawn(async move {
                let compute = async {
                    assert_eq!(computing.fetch_add(1, Ordering::AcqRel), 0, "two at a time");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    computing.fetch_sub(1, Ordering::AcqRel);
                    if i < 10 {
                        return Err(CacheError::Compute(i.to_string()));
                    }
                    Ok(Bytes::from_static(b"v"))
                };
                cache.get_or_compute(&key(), &["t"], compute).await
            })
        })
        .collect();
    for (i, caller) in callers.into_iter().enumerate() {
        match caller.await.unwrap() {
            Ok(value) => assert_eq!(value, "v"),
            Err(error) => {
                assert!(i < 10);
                assert_eq!(error, CacheError::Compute(i.to_string()), "somebody else's");
            }
        }
    }
    assert_eq!(cache.stats().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn callers_of_a_computation_that_hangs_are_not_all_let_loose() {
    let cache = cache_with(|config| config.flight_timeout = Duration::from_secs(1));
    let computations = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let (cache, computations) = (cache.clone(), computations.clone());
            tokio::spawn(async move {
                let compute = async {
                    computations.fetch_add(1, Ordering::AcqRel);
                    tokio::time::sleep(Duration::from_millis(4500)).await;
                    Ok(Bytes::from_static(b"v"))
                };
                cache.get_or_compute(&key(), &["t"], compute).await
            })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap(), "v");
    }
    // At 0, 1, 2, 3 and 4 s.
    let computations = computations.load(Ordering::Acquire);
    assert!((2..=5).contains(&computations), "{computations}");
}

/// Storm: callers that are dropped at any point, writers, and computations that fail. Whoever gets a value gets one
/// that was true while it asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_caller_gets_a_value_older_than_its_question() {
    let cache = cache();
    let database = Arc::new(AtomicUsize::new(0));
    let writer = tokio::spawn({
        let (cache, database) = (cache.clone(), database.clone());
        async move {
            for _ in 0..300 {
                let intent = cache.versions().begin_write(&table(&cache));
                tokio::task::yield_now().await;
                database.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                intent.finish();
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        }
    });
    let readers: Vec<_> = (0..8)
        .map(|reader| {
            let (cache, database) = (cache.clone(), database.clone());
            tokio::spawn(async move {
                let mut answered = 0;
                for round in 0..2000 {
                    let before = database.load(Ordering::SeqCst);
                    let compute = async {
                        let value = database.load(Ordering::SeqCst);
                        tokio::task::yield_now().await;
                        if round % 17 == reader {
                            return Err(CacheError::Compute(String::new()));
                        }
                        Ok(Bytes::from(value.to_string()))
                    };
                    let key = key();
                    let ask = cache.get_or_compute(&key, &["t"], compute);
                    let patience = Duration::from_micros((round % 40) * 50 + 1);
                    if let Ok(Ok(value)) = tokio::time::timeout(patience, ask).await {
                        let value: usize = std::str::from_utf8(&value).unwrap().parse().unwrap();
                        let after = database.load(Ordering::SeqCst);
                        assert!(
                            (before..=after).contains(&value),
                            "{before}..={after}: {value}"
                        );
                        answered += 1;
                    }
                }
                answered
            })
        })
        .collect();
    let mut answered = 0;
    for reader in readers {
        answered += reader.await.unwrap();
    }
    writer.await.unwrap();
    assert!(answered > 1000, "{answered}");
    let stats = cache.stats();
    assert_eq!(stats.in_flight, 0, "{stats:?}");
    assert!(
        stats.hits > 0 && stats.coalesced > 0 && stats.invalidated > 0,
        "{stats:?}"
    );
    let last = cache
        .get_or_compute(&key(), &["t"], async { Ok("300".into()) })
        .await
        .unwrap();
    assert_eq!(last, "300");
}

#[test]
fn a_hit_allocates_nothing() {
    let cache = cache();
    let (text, namespace) = (HashedStr::new("SELECT $1"), HashedStr::new("test"));
    let slots: Vec<_> = ["a", "b", "c", "d", "e", "f"]
        .map(|name| cache.table_slot(name))
        .into();
    let key = KeyRef::prepared(&text, b"7", &namespace);
    let Flight::Leader(fill) = cache.join(&key, &slots) else {
        panic!("leads");
    };
    fill.complete("v".into(), CHEAP);
    let counted = allocation_counter::measure(|| {
        for _ in 0..100 {
            assert!(
                cache
                    .lookup(&KeyRef::prepared(&text, b"7", &namespace))
                    .is_some()
            );
            assert!(
                cache
                    .lookup(&KeyRef::new("SELECT $1", b"7", &namespace))
                    .is_some()
            );
            assert!(
                cache
                    .lookup(&KeyRef::new("SELECT $1", b"8", &namespace))
                    .is_none()
            );
        }
    });
    assert_eq!(counted.count_total, 0);
}
