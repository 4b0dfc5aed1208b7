//! The bound on the cache's bytes, while many write to it at the same time.
#![cfg(not(loom))]

use heliosdb_cache::*;
use std::sync::Arc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

mod watchdog;

#[tokio::test]
#[expect(clippy::cast_possible_truncation, reason = "less than 100")]
async fn test_concurrent_eviction_no_race() {
    let backend = Arc::new(InMemoryBackend::new(1000));
    let mut config = CacheConfig::default();
    config.max_size_bytes = 1000;
    config.min_result_size = 0;
    config.min_execution_time_ms = 0.0;
    let manager = Arc::new(CacheManager::new(backend, config));
    // Spawn 100 concurrent tasks trying to fill cache
    let mut handles = vec![];
    for i in 0..100 {
        let mgr = manager.clone();
        let handle = tokio::spawn(async move {
            let key = QueryKey::new(&format!("SELECT {}", i), &[], "test");
            let data = vec![i as u8; 100];
            mgr.put(key, data, vec![], 10.0).await.unwrap();
        });
        handles.push(handle);
    }
    // Wait for all
    for h in handles {
        h.await.unwrap();
    }
    // Verify cache size is within bounds
    let stats = manager.stats();
    assert!(
        stats.size_bytes <= 1000,
        "Cache size exceeded limit: {}",
        stats.size_bytes
    );
    // Verify evictions happened
    assert!(stats.evictions > 0, "No evictions occurred");
}

/// A cache in a store of `capacity` bytes, and the store.
fn cache_of(capacity: usize) -> (Arc<InMemoryBackend>, Arc<CacheManager>) {
    let backend = Arc::new(InMemoryBackend::new(capacity));
    let mut config = CacheConfig::default();
    config.max_size_bytes = capacity;
    (
        Arc::clone(&backend),
        Arc::new(CacheManager::new(backend, config)),
    )
}

fn key(n: usize) -> QueryKey {
    QueryKey::new(&format!("SELECT {n}"), &[], "test")
}

/// What the entries say they are charged, added up one by one.
async fn sum_of_charges(backend: &InMemoryBackend) -> usize {
    let mut sum = 0;
    for key in backend.keys().await.expect("in memory") {
        sum += backend
            .get(&key)
            .await
            .expect("in memory")
            .map_or(0, |entry| entry.metadata.size_bytes);
    }
    sum
}

/// The largest size that anybody saw: a thread of its own that does nothing else, and each task after each step.
struct Peak {
    bytes: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Peak {
    fn watch(manager: &Arc<CacheManager>) -> Self {
        let bytes = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, asked, manager) = (Arc::clone(&bytes), Arc::clone(&stop), Arc::clone(manager));
        let thread = thread::spawn(move || {
            while !asked.load(Ordering::Acquire) {
                seen.fetch_max(manager.stats().size_bytes, Ordering::AcqRel);
                thread::yield_now();
            }
        });
        Self {
            bytes,
            stop,
            thread,
        }
    }

    fn end(self) -> usize {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the sampler");
        self.bytes.load(Ordering::Acquire)
    }
}

/// Puts values of sizes from none to more than is admitted, and looks them up, while others invalidate, evict, remove
/// and clear. Returns the peak.
async fn churn(
    backend: &Arc<InMemoryBackend>,
    manager: &Arc<CacheManager>,
    value_max: usize,
    rounds: usize,
) -> usize {
    let peak = Peak::watch(manager);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8_usize {
        let (backend, manager) = (Arc::clone(backend), Arc::clone(manager));
        let seen = Arc::clone(&peak.bytes);
        tasks.spawn(async move {
            for n in 0..rounds {
                // Multiplied by a prime, so that each task goes its own way through keys and sizes.
                let at = (n + 1) * (task * 2 + 1) * 7919;
                let key = key(at % 300);
                let table = format!("t{}", at % 5);
                manager
                    .put(key.clone(), vec![0; at % value_max], vec![table], 10.0)
                    .await
                    .expect("in memory");
                seen.fetch_max(manager.stats().size_bytes, Ordering::AcqRel);
                manager.get(&key).await.expect("in memory");
                match at % 97 {
                    0..5 => manager.invalidate_table("t1"),
                    5..8 => manager.evict_entries(value_max).await.expect("in memory"),
                    8..12 => drop(backend.remove(&key).await.expect("in memory")),
                    12 => manager.clear(),
                    _ => {}
                }
                if n % 8 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no task panics");
    }
    peak.end()
}

#[test]
fn a_small_cache_is_never_above_its_bound() {
    watchdog::on_threads(async {
        let (backend, manager) = cache_of(20_000);
        let peak = churn(&backend, &manager, 3_000, 4_000).await;
        assert!(peak <= 20_000, "{peak}");
        assert!(peak > 10_000, "never near the bound: {peak}");
        assert!(manager.stats().evictions > 0);
        assert_eq!(sum_of_charges(&backend).await, manager.stats().size_bytes);
    });
}

/// Room for a few entries of one size, which all threads want at the same time: whoever looks for room and takes it in
/// two steps takes what another has taken in between.
#[test]
fn the_last_free_place_is_taken_once() {
    const THREADS: usize = 4;
    watchdog::on_threads(async {
        let (backend, manager) = cache_of(4 * (ENTRY_OVERHEAD + 20));
        let barrier = Arc::new(Barrier::new(THREADS));
        let threads = (0..THREADS).map(|thread| {
            let (backend, manager) = (Arc::clone(&backend), Arc::clone(&manager));
            let barrier = Arc::clone(&barrier);
            let runtime = tokio::runtime::Handle::current();
            thread::spawn(move || {
                let keys: Vec<QueryKey> = (0..8).map(|n| key(thread * 8 + n)).collect();
                let mut peak = 0;
                barrier.wait();
                for n in 0..30_000 {
                    let put = manager.put(keys[n % 8].clone(), "value", vec![], 10.0);
                    runtime.block_on(put).expect("in memory");
                    peak = peak.max(backend.usage().size_bytes);
                }
                peak
            })
        });
        for thread in threads.collect::<Vec<_>>() {
            let peak = thread.join().expect("no thread panics");
            assert!(peak <= 4 * (ENTRY_OVERHEAD + 20), "{peak}");
        }
        assert_eq!(sum_of_charges(&backend).await, manager.stats().size_bytes);
    });
}

#[test]
fn a_cache_of_many_shards_is_never_above_its_bound() {
    watchdog::on_threads(async {
        let (backend, manager) = cache_of(4 << 20);
        let peak = churn(&backend, &manager, 60_000, 3_000).await;
        assert!(peak <= 4 << 20, "{peak}");
        assert!(peak > 2 << 20, "never near the bound: {peak}");
        assert!(manager.stats().evictions > 0);
        assert_eq!(sum_of_charges(&backend).await, manager.stats().size_bytes);
    });
}

#[test]
fn the_smaller_of_the_two_bounds_holds() {
    watchdog::on_threads(async {
        for (store, configured) in [(1 << 20, 5_000), (5_000, 1 << 20)] {
            let backend = Arc::new(InMemoryBackend::new(store));
            let mut config = CacheConfig::default();
            config.max_size_bytes = configured;
            let manager = Arc::new(CacheManager::new(Arc::clone(&backend), config));
            let peak = churn(&backend, &manager, 1_000, 500).await;
            assert!(
                peak <= 5_000,
                "{peak} with a store of {store} and a bound of {configured}"
            );
            assert!(peak > 2_500, "never near the bound: {peak}");
        }
    });
}

#[test]
fn replacing_one_key_at_the_same_time_leaves_one_charge() {
    watchdog::on_threads(async {
        let (backend, manager) = cache_of(100_000);
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..8 {
            let manager = Arc::clone(&manager);
            tasks.spawn(async move {
                for n in 0..1_000 {
                    manager
                        .put(key(1), vec![0; (n * task) % 400], vec![], 10.0)
                        .await
                        .expect("in memory");
                }
            });
        }
        tasks.join_all().await;
        let stats = manager.stats();
        assert_eq!(stats.entries, 1);
        assert_eq!(
            stats.evictions, 0,
            "replacing is not evicting, and there was room"
        );
        assert_eq!(stats.size_bytes, sum_of_charges(&backend).await);
        manager.clear();
        assert_eq!(manager.stats().size_bytes, 0);
    });
}

#[test]
fn evicting_frees_what_was_asked_for_and_not_much_more() {
    watchdog::on_threads(async {
        let (_, manager) = cache_of(1 << 20);
        for n in 0..100 {
            manager
                .put(key(n), vec![0; 1_000], vec![], 10.0)
                .await
                .expect("in memory");
        }
        let full = manager.stats().size_bytes;
        manager.evict_entries(10_000).await.expect("in memory");
        let freed = full - manager.stats().size_bytes;
        assert!((10_000..12_000).contains(&freed), "{freed}");
        manager.evict_entries(usize::MAX).await.expect("in memory");
        assert_eq!(
            manager.stats().size_bytes,
            0,
            "and ends when nothing is left"
        );
    });
}

#[test]
fn a_policy_may_use_the_cache_it_ranks_for() {
    use std::sync::OnceLock;

    struct Curious(Arc<OnceLock<Arc<CacheManager>>>);
    impl EvictionPolicy for Curious {
        fn calculate_score(&self, entry: &CacheEntry) -> f64 {
            let manager = self.0.get().expect("set before the first eviction");
            let _ = manager.lookup(&entry.key.as_ref());
            manager.stats().size_bytes as f64
        }

        fn name(&self) -> &str {
            "Curious"
        }
    }
    // A lock held while the policy runs would be taken twice here.
    watchdog::on_threads(async {
        let slot = Arc::new(OnceLock::new());
        let mut config = CacheConfig::default();
        config.eviction_policy = Arc::new(Curious(Arc::clone(&slot)));
        let manager = Arc::new(CacheManager::new(
            Arc::new(InMemoryBackend::new(3_000)),
            config,
        ));
        assert!(slot.set(Arc::clone(&manager)).is_ok());
        for n in 0..50 {
            manager
                .put(key(n), vec![0; 100], vec![], 10.0)
                .await
                .expect("in memory");
        }
        assert!(manager.stats().evictions > 0);
    });
}

#[test]
fn a_policy_without_an_opinion_evicts_all_the_same() {
    struct Nan;
    impl EvictionPolicy for Nan {
        fn calculate_score(&self, _: &CacheEntry) -> f64 {
            f64::NAN
        }

        fn name(&self) -> &str {
            "NaN"
        }
    }
    watchdog::on_threads(async {
        let mut config = CacheConfig::default();
        config.eviction_policy = Arc::new(Nan);
        let manager = CacheManager::new(Arc::new(InMemoryBackend::new(3_000)), config);
        for n in 0..50 {
            let stored = manager
                .put(key(n), vec![0; 100], vec![], 10.0)
                .await
                .expect("in memory");
            assert_eq!(stored, PutOutcome::Stored);
        }
        assert!(manager.stats().size_bytes <= 3_000);
    });
}

#[test]
fn a_value_that_can_not_fit_is_rejected_at_once() {
    watchdog::on_threads(async {
        for capacity in [0, 1, 100, 1_000] {
            let (_, manager) = cache_of(capacity);
            let stored = tokio::time::timeout(
                Duration::from_secs(10),
                manager.put(key(1), vec![0; 1_000], vec![], 10.0),
            );
            let stored = stored.await.expect("in time").expect("in memory");
            assert_eq!(stored, PutOutcome::Rejected);
            assert_eq!(manager.stats().size_bytes, 0);
        }
    });
}
