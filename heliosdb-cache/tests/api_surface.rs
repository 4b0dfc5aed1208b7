//! The public names, used the way an embedding service uses them. That it compiles is half of the test.
#![cfg(not(loom))]

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use heliosdb_cache::*;

/// A policy as a user would write one.
struct SmallestLast;

impl EvictionPolicy for SmallestLast {
    fn calculate_score(&self, entry: &CacheEntry) -> f64 {
        -(entry.metadata.size_bytes as f64)
    }
    fn name(&self) -> &str {
        "smallest last"
    }
}

/// One that is made of the fields that the built-in policies go by.
struct ByHand {
    lru_weight: f64,
}

impl EvictionPolicy for ByHand {
    fn calculate_score(&self, entry: &CacheEntry) -> f64 {
        let age = Utc::now()
            .signed_duration_since(entry.metadata.last_accessed)
            .num_seconds() as f64;
        self.lru_weight * -age + entry.metadata.access_count as f64
    }
    fn name(&self) -> &str {
        "by hand"
    }
}

fn assert_shareable<T: Send + Sync + 'static>() {}
fn assert_movable<T: Send + 'static>() {}

#[test]
fn types_cross_threads() {
    assert_shareable::<CacheManager>();
    assert_shareable::<CacheConfig>();
    assert_shareable::<QueryKey>();
    assert_shareable::<StampedeProtection>();
    assert_shareable::<VersionSlots>();
    assert_movable::<ComputeGuard>();
    assert_movable::<Fill>();
    assert_movable::<Flight>();
    assert_movable::<Follower>();
    assert_movable::<WriteIntent>();
}

#[test]
fn keys_are_shown_cloned_compared_and_hashed() {
    let key = QueryKey::new(&format!("SELECT {}", 1), &[], "test");
    assert_eq!(
        format!("timeout for key: {}", key.query),
        "timeout for key: SELECT 1"
    );
    let set = std::collections::HashSet::from([key.clone()]);
    assert!(set.contains(&key));
    assert!(!set.contains(&QueryKey::new("SELECT 1", &["x"], "test")));
    assert_eq!(HashedStr::new("SELECT 1"), key.query);
    assert_eq!((key.params(), key.namespace()), (&b""[..], "test"));
}

#[test]
fn built_in_policies_have_their_names() {
    let names: [(&dyn EvictionPolicy, &str); 4] = [
        (&LruPolicy, "LRU"),
        (&LfuPolicy, "LFU"),
        (&HybridPolicy::new(0.3, 0.7), "Hybrid LRU+LFU"),
        (&HybridPolicy::default_balanced(), "Hybrid LRU+LFU"),
    ];
    for (policy, name) in names {
        assert_eq!(policy.name(), name);
    }
    assert!(HybridPolicy::try_new(0.5, 0.6).is_err());
    assert_eq!(CacheConfig::default().eviction_policy.name(), "Adaptive");
}

#[test]
#[should_panic(expected = "Weights must sum to 1.0")]
fn weights_that_do_not_sum_to_one_are_refused() {
    let _ = HybridPolicy::new(0.5, 0.6);
}

#[tokio::test]
async fn every_policy_can_be_configured() {
    let policies: [(Arc<dyn EvictionPolicy>, bool); 6] = [
        (Arc::new(LruPolicy), false),
        (Arc::new(LfuPolicy), false),
        (Arc::new(HybridPolicy::default_balanced()), false),
        (Arc::new(SmallestLast), false),
        (Arc::new(ByHand { lru_weight: 0.5 }), false),
        (Arc::new(LruPolicy), true),
    ];
    for (policy, ml) in policies {
        let mut config = CacheConfig::default();
        config.max_size_bytes = 2000;
        config.min_result_size = 0;
        config.min_execution_time_ms = 0.0;
        config.enable_ml_eviction = ml;
        config.eviction_policy = policy;
        config.validate().unwrap();
        let manager = CacheManager::new(Arc::new(InMemoryBackend::new(1 << 20)), config);
        for i in 0..50 {
            let key = QueryKey::new(&format!("SELECT {i}"), &[], "test");
            manager.put(key, vec![0; 100], vec![], 10.0).await.unwrap();
        }
        let stats = manager.stats();
        assert!(
            stats.size_bytes <= 2000 && stats.evictions > 0 && stats.entries > 0,
            "{stats:?}"
        );
        manager.evict_entries(500).await.unwrap();
        assert!(manager.stats().size_bytes + 500 <= stats.size_bytes);
    }
}

#[tokio::test]
async fn a_user_policy_decides() {
    let mut config = CacheConfig::default();
    config.eviction_policy = Arc::new(SmallestLast);
    let manager = CacheManager::new(Arc::new(InMemoryBackend::new(3500)), config);
    let key = |i: usize| QueryKey::new(&format!("SELECT {i}"), &[], "test");
    manager
        .put(key(1), vec![0; 1500], vec![], 1.0)
        .await
        .unwrap();
    for i in 2..8 {
        manager
            .put(key(i), vec![0; 200], vec![], 1.0)
            .await
            .unwrap();
    }
    assert!(
        manager.get(&key(1)).await.unwrap().is_none(),
        "the largest goes first"
    );
    assert!(manager.get(&key(2)).await.unwrap().is_some());
}

#[tokio::test]
async fn the_store_can_be_walked() {
    let backend = Arc::new(InMemoryBackend::new(1 << 20));
    let manager = CacheManager::new(backend.clone(), CacheConfig::default());
    for i in 0..3 {
        let key = QueryKey::new(&format!("SELECT {i}"), &[], "test");
        manager.put(key, "x", vec![], 7.0).await.unwrap();
    }
    let before = Utc::now();
    let mut freed = 0;
    for key in backend.keys().await.unwrap() {
        if let Some(entry) = backend.get(&key).await.unwrap() {
            assert_eq!(entry.key, key);
            assert_eq!(entry.data, "x");
            assert_eq!(entry.metadata.access_count, 0, "looking is not using");
            assert!((entry.metadata.execution_time_ms - 7.0).abs() < f64::EPSILON);
            assert!(entry.metadata.eviction_priority() > 0.0);
            let age = before.signed_duration_since(entry.metadata.last_accessed);
            assert!(age.num_seconds().abs() < 5, "{age}");
            assert!(manager.versions().is_current(entry.dependencies()));
            freed += entry.metadata.size_bytes;
        }
        assert!(backend.remove(&key).await.unwrap());
        assert!(!backend.remove(&key).await.unwrap());
    }
    assert_eq!(freed, 3 * (8 + 1 + ENTRY_OVERHEAD));
    assert_eq!(manager.stats().size_bytes, 0);
}

#[tokio::test]
async fn what_is_not_admitted_is_not_an_error() {
    let mut config = CacheConfig::default();
    config.min_result_size = 10;
    config.max_result_size = 1000;
    config.min_execution_time_ms = 5.0;
    let manager = CacheManager::new(Arc::new(InMemoryBackend::new(2000)), config);
    let put = |data: usize, time| {
        let key = QueryKey::new("SELECT 1", &[], "test");
        manager.put(key, vec![0; data], vec![], time)
    };
    assert_eq!(
        put(9, 10.0).await.unwrap(),
        PutOutcome::Rejected,
        "too small"
    );
    assert_eq!(
        put(1001, 10.0).await.unwrap(),
        PutOutcome::Rejected,
        "too large"
    );
    assert_eq!(
        put(900, 10.0).await.unwrap(),
        PutOutcome::Rejected,
        "half of the cache"
    );
    assert_eq!(
        put(100, 4.9).await.unwrap(),
        PutOutcome::Rejected,
        "too cheap"
    );
    assert_eq!(
        put(100, f64::NAN).await.unwrap(),
        PutOutcome::Rejected,
        "not measured"
    );
    let write = manager.versions().begin_write(&[manager.table_slot("t")]);
    let key = QueryKey::new("SELECT 1", &[], "test");
    let put_now = manager.put(key.clone(), vec![0; 100], vec!["t".to_string()], 10.0);
    assert_eq!(
        put_now.await.unwrap(),
        PutOutcome::Rejected,
        "a write is pending"
    );
    drop(write);
    assert_eq!(manager.stats().rejected, 6);
    assert_eq!(put(100, 5.0).await.unwrap(), PutOutcome::Stored);
    assert_eq!(manager.stats().fills, 1);
}

#[tokio::test]
async fn one_caller_computes_and_the_flight_is_over_when_the_guard_is_dropped() {
    let protection = StampedeProtection::with_config(Duration::from_millis(50), 1000);
    let key = QueryKey::new("SELECT * FROM test", &[], "test");
    let guard: Option<ComputeGuard> = protection.try_acquire(&key).await.unwrap();
    assert!(guard.is_some());
    assert_eq!(protection.in_flight_count(), 1);
    drop(guard);
    assert_eq!(protection.in_flight_count(), 0);
    let full = StampedeProtection::with_config(Duration::from_millis(50), 0);
    let Err(CacheError::Overload(why)) = full.try_acquire(&key).await else {
        panic!("not refused");
    };
    assert_eq!(why, "Too many in-flight requests");
}

#[test]
fn a_configuration_that_cannot_work_is_named() {
    type Breaks = fn(&mut CacheConfig);
    let cases: [(&str, Breaks); 5] = [
        ("min_result_size", |config| {
            config.min_result_size = usize::MAX
        }),
        ("min_execution_time_ms", |config| {
            config.min_execution_time_ms = -1.0
        }),
        ("max_in_flight", |config| config.max_in_flight = 0),
        ("flight_timeout", |config| {
            config.flight_timeout = Duration::ZERO
        }),
        ("version_slot_bits", |config| config.version_slot_bits = 40),
    ];
    for (field, break_it) in cases {
        let mut config = CacheConfig::default();
        break_it(&mut config);
        let error = config.validate().unwrap_err();
        assert!(
            matches!(error, CacheError::Config { field: named, .. } if named == field),
            "{error}"
        );
        // And a manager over it comes up all the same.
        let manager = CacheManager::new(Arc::new(InMemoryBackend::new(1000)), config);
        assert_eq!(manager.stats().entries, 0);
    }
}

/// A store of somebody else's: everything it needs is public.
#[derive(Default)]
struct TinyBackend(parking_lot::Mutex<Vec<CacheEntry>>);

impl StorageBackend for TinyBackend {
    async fn keys(&self) -> Result<Vec<QueryKey>> {
        Ok(self
            .0
            .lock()
            .iter()
            .map(|entry| entry.key.clone())
            .collect())
    }

    async fn get(&self, key: &QueryKey) -> Result<Option<CacheEntry>> {
        Ok(self
            .0
            .lock()
            .iter()
            .find(|entry| entry.key == *key)
            .cloned())
    }

    async fn remove(&self, key: &QueryKey) -> Result<bool> {
        let mut entries = self.0.lock();
        let before = entries.len();
        entries.retain(|entry| entry.key != *key);
        Ok(entries.len() < before)
    }

    fn lookup(&self, key: &KeyRef<'_>, is_current: impl Fn(DependenciesRef<'_>) -> bool) -> Lookup {
        let key = key.to_key();
        match self.0.lock().iter().find(|entry| entry.key == key) {
            Some(entry) if is_current(entry.dependencies()) => Lookup::Hit(entry.data.clone()),
            Some(_) => Lookup::Stale,
            None => Lookup::Miss,
        }
    }

    fn insert(
        &self,
        answer: PackedAnswer,
        _is_current: impl Fn(DependenciesRef<'_>) -> bool,
    ) -> Inserted {
        let entry = answer.into_entry();
        let mut entries = self.0.lock();
        entries.retain(|other| other.key != entry.key);
        entries.push(entry);
        Inserted::Stored
    }

    fn evict(
        &self,
        _needed_bytes: usize,
        _is_current: impl Fn(DependenciesRef<'_>) -> bool,
    ) -> usize {
        0
    }

    fn configure(&self, _config: &CacheConfig) {}

    fn clear(&self) {
        self.0.lock().clear();
    }

    fn usage(&self) -> Usage {
        Usage::default()
    }
}

#[tokio::test]
async fn a_store_can_be_written_by_a_user() {
    let manager = CacheManager::new(Arc::new(TinyBackend::default()), CacheConfig::default());
    let key = QueryKey::new("SELECT 1", &[], "test");
    manager
        .put(key.clone(), "1", vec!["t".to_string()], 1.0)
        .await
        .unwrap();
    assert_eq!(manager.get(&key).await.unwrap().unwrap(), "1");
    manager.invalidate_table("t");
    assert_eq!(manager.get(&key).await.unwrap(), None);
}
