//! Time: what is fresh, stale, a fallback or gone, by a clock that the tests drive.
#![cfg(not(loom))]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use heliosdb_cache::{
    CacheConfig, CacheError, CacheManager, Clock, InMemoryBackend, Lifetime, Lookup, QueryKey,
};

const SECOND: Duration = Duration::from_secs(1);

struct Subject {
    cache: CacheManager,
    clock: Clock,
    computations: AtomicUsize,
}

fn subject(configure: impl FnOnce(&mut CacheConfig)) -> Subject {
    let clock = Clock::manual();
    let mut config = CacheConfig::default();
    config.clock = clock.clone();
    config.sweep_interval = Duration::ZERO;
    configure(&mut config);
    config.validate().expect("a valid configuration");
    Subject {
        cache: CacheManager::new(Arc::new(InMemoryBackend::new(1 << 20)), config),
        clock,
        computations: AtomicUsize::new(0),
    }
}

fn lifetime(ttl: u32, revalidate: u32, error: u32) -> Lifetime {
    let mut lifetime = Lifetime::of(ttl * SECOND);
    lifetime.stale_while_revalidate = revalidate * SECOND;
    lifetime.stale_if_error = error * SECOND;
    lifetime
}

fn key(n: usize) -> QueryKey {
    QueryKey::new(&format!("SELECT {n}"), &[], "test")
}

impl Subject {
    /// Each computation has another result.
    async fn ask(&self) -> Result<String, CacheError> {
        let compute = async {
            let n = self.computations.fetch_add(1, Ordering::AcqRel);
            Ok(Bytes::from(format!("v{n}")))
        };
        let answer = self.cache.get_or_compute(&key(0), &["t"], compute).await?;
        Ok(String::from_utf8(answer.to_vec()).expect("text"))
    }

    async fn fail(&self) -> Result<String, CacheError> {
        let compute = async { Err(CacheError::Compute("down".to_owned())) };
        let answer = self.cache.get_or_compute(&key(0), &["t"], compute).await?;
        Ok(String::from_utf8(answer.to_vec()).expect("text"))
    }
}

#[tokio::test]
async fn an_answer_is_computed_anew_when_its_time_is_over() {
    let subject = subject(|config| config.lifetime = Lifetime::of(10 * SECOND));
    assert_eq!(subject.ask().await.unwrap(), "v0");
    subject.clock.advance(Duration::from_millis(9999));
    assert_eq!(subject.ask().await.unwrap(), "v0");
    subject.clock.advance(Duration::from_millis(1));
    assert_eq!(subject.ask().await.unwrap(), "v1");
    assert_eq!(subject.cache.stats().expired, 1);
}

#[tokio::test]
async fn each_entry_has_its_own_time() {
    let subject = subject(|_| {});
    for (n, lifetime) in [
        Lifetime::of(SECOND),
        Lifetime::of(3 * SECOND),
        Lifetime::default(),
    ]
    .into_iter()
    .enumerate()
    {
        let put = subject.cache.put_with(key(n), "x", vec![], 1.0, lifetime);
        put.await.unwrap();
    }
    let alive = async || {
        let mut alive = Vec::new();
        for n in 0..3 {
            alive.push(subject.cache.get(&key(n)).await.unwrap().is_some());
        }
        subject.clock.advance(2 * SECOND);
        alive
    };
    assert_eq!(alive().await, [true, true, true]);
    assert_eq!(alive().await, [false, true, true]);
    assert_eq!(alive().await, [false, false, true]);
}

#[tokio::test]
async fn what_nobody_asks_for_is_dropped_and_what_is_asked_for_stays() {
    let mut idle = Lifetime::default();
    idle.idle = Some(10 * SECOND);
    let subject = subject(|config| config.lifetime = idle);
    for n in 0..2 {
        let put = subject.cache.put(key(n), "x", vec![], 1.0);
        put.await.unwrap();
    }
    for _ in 0..5 {
        subject.clock.advance(4 * SECOND);
        assert!(subject.cache.get(&key(0)).await.unwrap().is_some());
    }
    assert_eq!(subject.cache.get(&key(1)).await.unwrap(), None);
}

#[tokio::test]
async fn memory_comes_back_without_a_read() {
    let subject = subject(|config| config.lifetime = Lifetime::of(SECOND));
    for n in 0..1000 {
        let put = subject.cache.put(key(n), vec![0; 100], vec![], 1.0);
        put.await.unwrap();
    }
    subject.clock.advance(2 * SECOND);
    assert_eq!(subject.cache.stats().entries, 1000);
    assert!(subject.cache.sweep() > 100_000);
    let stats = subject.cache.stats();
    assert_eq!(
        (stats.entries, stats.size_bytes, stats.expired),
        (0, 0, 1000)
    );
}

/// Three insertions for each entry look at all of them, whoever calls for no sweep.
#[tokio::test]
async fn insertions_reclaim_what_is_dead() {
    let subject = subject(|_| {});
    let put = async |numbers: std::ops::Range<usize>, table: &str| {
        for n in numbers {
            let tables = vec![table.to_owned()];
            let put = subject.cache.put(key(n), "x", tables, 1.0);
            put.await.unwrap();
        }
    };
    put(0..500, "old").await;
    subject.cache.invalidate_table("old");
    put(500..1002, "t").await;
    let stats = subject.cache.stats();
    assert_eq!((stats.entries, stats.invalidated), (502, 500));

    // Once more, in the middle of a round that has passed half of them.
    put(1002..1502, "old").await;
    subject.cache.invalidate_table("u");
    put(1502..2254, "t").await;
    subject.cache.invalidate_table("old");
    let entries = subject.cache.stats().entries;
    put(2254..2254 + 3 * entries, "t").await;
    assert_eq!(subject.cache.stats().invalidated, 1000);
}

#[tokio::test(start_paused = true)]
async fn a_task_sweeps_and_ends_with_the_cache() {
    let before = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    let subject = subject(|config| {
        config.sweep_interval = SECOND;
        config.lifetime = Lifetime::of(SECOND);
    });
    subject.cache.put(key(0), "x", vec![], 1.0).await.unwrap();
    subject.clock.advance(2 * SECOND);
    while subject.cache.stats().entries > 0 {
        tokio::time::sleep(SECOND).await;
    }
    drop(subject);
    tokio::time::timeout(100 * SECOND, async {
        while tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
            > before
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the task has ended");
}

#[tokio::test]
async fn while_one_computes_anew_the_others_are_served() {
    let subject = subject(|config| config.lifetime = lifetime(10, 60, 0));
    subject.ask().await.unwrap();
    subject.clock.advance(20 * SECOND);
    let key = key(0);
    let (started, has_started) = tokio::sync::oneshot::channel();
    let (go_on, may_go_on) = tokio::sync::oneshot::channel();
    let refresh = subject.cache.get_or_compute(&key, &["t"], async {
        started.send(()).unwrap();
        may_go_on.await.unwrap();
        Ok("new".into())
    });
    let others = async {
        has_started.await.unwrap();
        for _ in 0..3 {
            assert_eq!(subject.ask().await.unwrap(), "v0");
        }
        go_on.send(()).unwrap();
    };
    let (refreshed, ()) = tokio::join!(refresh, others);
    assert_eq!(refreshed.unwrap(), "new");
    assert_eq!(subject.ask().await.unwrap(), "new");
    assert_eq!(subject.cache.stats().stale_hits, 4);
    assert_eq!(subject.computations.load(Ordering::Acquire), 1);
}

#[tokio::test]
async fn in_the_background_nobody_waits() {
    let subject = subject(|config| config.lifetime = lifetime(10, 60, 0));
    subject.ask().await.unwrap();
    subject.clock.advance(20 * SECOND);
    let lifetime = lifetime(10, 60, 0);
    let key = key(0);
    let (go_on, may_go_on) = tokio::sync::oneshot::channel::<()>();
    let compute = async {
        may_go_on.await.unwrap();
        Ok("new".into())
    };
    let served = subject
        .cache
        .get_or_refresh(&key, &["t"], lifetime, compute);
    assert_eq!(served.await.unwrap(), "v0");
    let never = async { panic!("a second computation") };
    let served = subject.cache.get_or_refresh(&key, &["t"], lifetime, never);
    assert_eq!(served.await.unwrap(), "v0");
    go_on.send(()).unwrap();
    while subject.cache.stats().in_flight > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(subject.ask().await.unwrap(), "new");
}

#[tokio::test]
async fn a_failure_is_covered_for_a_while_by_what_there_was() {
    let subject = subject(|config| config.lifetime = lifetime(10, 0, 60));
    subject.ask().await.unwrap();
    subject.clock.advance(30 * SECOND);
    let lookup = subject.cache.find(&key(0).as_ref());
    assert!(matches!(lookup, Lookup::Fallback(_)), "{lookup:?}");
    assert_eq!(subject.cache.get(&key(0)).await.unwrap(), None);
    assert_eq!(subject.fail().await.unwrap(), "v0");
    assert_eq!(subject.cache.stats().fallbacks, 1);
    subject.clock.advance(60 * SECOND);
    assert!(subject.fail().await.is_err());
}

/// When the database is down, callers do not queue up to find out one after the other.
#[tokio::test]
async fn those_who_waited_for_a_failure_share_the_fallback() {
    let subject = Arc::new(subject(|config| config.lifetime = lifetime(10, 0, 60)));
    subject.ask().await.unwrap();
    subject.clock.advance(30 * SECOND);
    let failures = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let (subject, failures) = (subject.clone(), failures.clone());
            tokio::spawn(async move {
                let compute = async {
                    failures.fetch_add(1, Ordering::AcqRel);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Err(CacheError::Compute("down".to_owned()))
                };
                subject.cache.get_or_compute(&key(0), &["t"], compute).await
            })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap(), "v0");
    }
    assert_eq!(failures.load(Ordering::Acquire), 1);
}

#[tokio::test]
async fn nothing_is_served_past_an_invalidation_however_stale_it_may_be() {
    let subject = subject(|config| config.lifetime = lifetime(10, 600, 600));
    subject.ask().await.unwrap();
    subject.clock.advance(20 * SECOND);
    subject.cache.invalidate_table("t");
    assert!(subject.fail().await.is_err(), "not by error");
    assert_eq!(subject.ask().await.unwrap(), "v1", "not while revalidating");
    // Nor if the write comes while the computation fails.
    subject.clock.advance(20 * SECOND);
    let compute = async {
        subject.cache.invalidate_table("t");
        Err(CacheError::Compute("down".to_owned()))
    };
    let answer = subject.cache.get_or_compute(&key(0), &["t"], compute).await;
    assert!(answer.is_err(), "{answer:?}");
}

/// Near its end an answer is computed anew by one caller in so many, the likelier the longer that takes.
#[tokio::test]
async fn refreshing_ahead_begins_early_for_what_is_dear() {
    let refreshes = |cost_ms: f64| async move {
        let subject = subject(|config| {
            config.lifetime = Lifetime::of(100 * SECOND);
            config.refresh_ahead = 1.0;
        });
        let mut refreshes = 0;
        for n in 0..300 {
            let put = subject.cache.put(key(n), "x", vec![], cost_ms);
            put.await.unwrap();
        }
        // 5 s before the end.
        subject.clock.advance(95 * SECOND);
        for n in 0..300 {
            let found = subject.cache.find(&key(n).as_ref());
            refreshes += usize::from(matches!(found, Lookup::Refresh(_)));
        }
        refreshes
    };
    // P(cost * -ln(random) >= 5 s) = exp(-5 s / cost): 0.37 for 5 s, and 7 in 10^218 for 10 ms.
    let dear = refreshes(5000.0).await;
    assert!((60..165).contains(&dear), "{dear} of 300");
    assert_eq!(refreshes(10.0).await, 0);
}

#[tokio::test]
async fn jitter_spreads_what_was_stored_together() {
    let subject = subject(|config| {
        config.lifetime = Lifetime::of(100 * SECOND);
        config.ttl_jitter = 0.5;
    });
    for n in 0..200 {
        let put = subject.cache.put(key(n), "x", vec![], 1.0);
        put.await.unwrap();
    }
    let alive = async |seconds| {
        subject.clock.advance(seconds * SECOND);
        let mut alive = 0;
        for n in 0..200 {
            alive += usize::from(subject.cache.get(&key(n)).await.unwrap().is_some());
        }
        alive
    };
    assert_eq!(alive(50).await, 200, "none lives for less than half");
    let after_75 = alive(25).await;
    assert!((60..140).contains(&after_75), "{after_75} of 200");
    assert_eq!(alive(25).await, 0, "none lives longer");
}
