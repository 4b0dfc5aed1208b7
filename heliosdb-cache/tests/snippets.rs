//! The interface as its users write it, policies and an eviction by hand included: what stands here is to compile.
#![cfg(not(loom))]

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use heliosdb_cache::{
    CacheConfig, CacheEntry, CacheError, CacheManager, ComputeGuard, EntryMetadata, EvictionPolicy,
    HybridPolicy, InMemoryBackend, LfuPolicy, LruPolicy, QueryKey, Result, StampedeProtection,
    StorageBackend,
};

/// Policies as a user would write them, on the public fields of an entry alone.
#[expect(unreachable_pub, reason = "as in a library of the user's")]
mod written_by_a_user {
    use chrono::Utc;
    use heliosdb_cache::{CacheEntry, EvictionPolicy};

    pub struct LruPolicy;

    impl EvictionPolicy for LruPolicy {
        fn calculate_score(&self, entry: &CacheEntry) -> f64 {
            let age = Utc::now()
                .signed_duration_since(entry.metadata.last_accessed)
                .num_seconds() as f64;
            -age // Older = lower score = evict first
        }

        fn name(&self) -> &str {
            "LRU"
        }
    }

    pub struct LfuPolicy;

    impl EvictionPolicy for LfuPolicy {
        fn calculate_score(&self, entry: &CacheEntry) -> f64 {
            -(entry.metadata.access_count as f64)
        }

        fn name(&self) -> &str {
            "LFU"
        }
    }

    pub struct HybridPolicy {
        lru_weight: f64,
        lfu_weight: f64,
    }

    impl HybridPolicy {
        pub fn new(lru_weight: f64, lfu_weight: f64) -> Self {
            assert!(
                (lru_weight + lfu_weight - 1.0).abs() < 0.01,
                "Weights must sum to 1.0"
            );
            Self {
                lru_weight,
                lfu_weight,
            }
        }

        pub fn default_balanced() -> Self {
            Self {
                lru_weight: 0.5,
                lfu_weight: 0.5,
            }
        }
    }

    impl EvictionPolicy for HybridPolicy {
        fn calculate_score(&self, entry: &CacheEntry) -> f64 {
            let lru_score = LruPolicy.calculate_score(entry);
            let lfu_score = LfuPolicy.calculate_score(entry);
            self.lru_weight * lru_score + self.lfu_weight * lfu_score
        }

        fn name(&self) -> &str {
            "Hybrid LRU+LFU"
        }
    }
}

fn config() -> CacheConfig {
    let mut config = CacheConfig::default();
    config.max_size_bytes = 1000;
    config.min_result_size = 0;
    config.min_execution_time_ms = 0.0;
    config.enable_ml_eviction = false;
    config.eviction_policy = Arc::new(LruPolicy);
    config
}

#[tokio::test]
async fn a_cache_is_filled_read_evicted_and_counted() {
    let backend = Arc::new(InMemoryBackend::new(1000));
    let manager = Arc::new(CacheManager::new(backend, config()));
    let key = QueryKey::new("SELECT 1", &[], "test");
    let data = vec![1_u8; 100];
    manager.put(key.clone(), data, vec![], 10.0).await.unwrap();
    let stats = manager.stats();
    let (size, evictions, hits, misses): (usize, u64, u64, u64) =
        (stats.size_bytes, stats.evictions, stats.hits, stats.misses);
    assert!(size >= 100, "{size}");
    assert_eq!((evictions, hits, misses), (0, 0, 0));
    assert_eq!(
        manager.get(&key).await.unwrap().as_deref(),
        Some(&[1_u8; 100][..])
    );
    assert_eq!(manager.stats().hits, 1);
    let needed_bytes: usize = 1;
    let evicted: Result<()> = manager.evict_entries(needed_bytes).await;
    evicted.unwrap();
    let stats = manager.stats();
    assert_eq!((stats.evictions, stats.size_bytes), (1, 0));
    assert!(manager.get(&key).await.unwrap().is_none());
    assert_eq!(manager.stats().misses, 1);
}

/// The eviction of every entry by score, written against the storage trait, as it could be for any store.
#[expect(
    clippy::unwrap_used,
    reason = "as the user writes it: no score here is NaN"
)]
async fn evict_by_hand<B: StorageBackend>(
    storage: &B,
    config: &CacheConfig,
    needed_bytes: usize,
) -> Result<()> {
    let keys = storage.keys().await?;
    let mut entries = Vec::new();
    for key in keys {
        if let Some(entry) = storage.get(&key).await? {
            entries.push(entry);
        }
    }
    let mut scored: Vec<_> = entries
        .into_iter()
        .map(|e| {
            let score = if config.enable_ml_eviction {
                e.metadata.eviction_priority()
            } else {
                let age = Utc::now()
                    .signed_duration_since(e.metadata.last_accessed)
                    .num_seconds() as f64;
                assert!(-age <= config.eviction_policy.calculate_score(&e) + 1.0);
                -age
            };
            (e, score)
        })
        .collect();
    scored.sort_by(|a, b| a.1.partial_cmp(&b.1).unwrap());
    let mut freed = 0;
    for (entry, _) in scored {
        if freed >= needed_bytes {
            break;
        }
        freed += entry.metadata.size_bytes;
        storage.remove(&entry.key).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_store_lists_shows_and_removes() {
    for enable_ml_eviction in [false, true] {
        let storage = Arc::new(InMemoryBackend::new(100_000));
        let mut config = config();
        config.max_size_bytes = 100_000;
        config.enable_ml_eviction = enable_ml_eviction;
        let manager = CacheManager::new(Arc::clone(&storage), config.clone());
        for i in 0..10 {
            let key = QueryKey::new(&format!("SELECT {i}"), &["7", ""], "test");
            manager
                .put(key, vec![0; 100], vec!["orders".to_string()], 10.0)
                .await
                .unwrap();
        }
        let keys: HashSet<QueryKey> = storage.keys().await.unwrap().into_iter().collect();
        assert_eq!(keys.len(), 10);
        let entry: CacheEntry = storage
            .get(keys.iter().next().expect("ten"))
            .await
            .unwrap()
            .expect("stored");
        let metadata: &EntryMetadata = &entry.metadata;
        assert!(keys.contains(&entry.key));
        assert!(metadata.size_bytes > 100);
        assert_eq!(metadata.access_count, 0);
        assert!(metadata.last_accessed <= Utc::now());
        assert!(metadata.eviction_priority() > 0.0);

        let before = manager.stats().size_bytes;
        evict_by_hand(&*storage, &config, before / 2).await.unwrap();
        let after = manager.stats();
        assert!(
            after.size_bytes <= before / 2,
            "{} of {before}",
            after.size_bytes
        );
        assert!(after.entries > 0);
        storage.remove(&entry.key).await.unwrap();
        assert!(storage.get(&entry.key).await.unwrap().is_none());
    }
}

#[test]
fn a_key_shows_its_query_and_compares_in_full() {
    fn shown(text: impl Display) -> String {
        format!("Stampede timeout for key: {text}, cleaning up")
    }
    let key = QueryKey::new("SELECT * FROM test", &[], "test");
    assert_eq!(
        shown(&key.query),
        "Stampede timeout for key: SELECT * FROM test, cleaning up"
    );
    assert_eq!(format!("{}", key.query), "SELECT * FROM test");
    assert_eq!(key, key.clone());
    assert_ne!(key, QueryKey::new("SELECT * FROM test", &[], "other"));
    assert_ne!(key, QueryKey::new("SELECT * FROM test", &["1"], "test"));
}

#[tokio::test]
async fn stampede_protection_has_guards_and_an_overload() {
    let protection = Arc::new(StampedeProtection::with_config(
        Duration::from_millis(50),
        1,
    ));
    let key = QueryKey::new("SELECT * FROM test", &[], "test");
    let acquired: Result<Option<ComputeGuard>> = protection.try_acquire(&key).await;
    let guard: ComputeGuard = acquired.unwrap().expect("the first computes");
    assert_eq!(protection.in_flight_count(), 1_usize);
    let other = QueryKey::new("SELECT 2", &[], "test");
    match protection.try_acquire(&other).await {
        Err(CacheError::Overload(text)) => assert_eq!(text, "Too many in-flight requests"),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        CacheError::Overload("Too many in-flight requests".to_string()).to_string(),
        "Too many in-flight requests"
    );
    drop(guard);
    assert_eq!(protection.in_flight_count(), 0);
}

#[test]
fn policies_have_names() {
    let policies: [(Arc<dyn EvictionPolicy>, &str); 4] = [
        (Arc::new(LruPolicy), "LRU"),
        (Arc::new(LfuPolicy), "LFU"),
        (Arc::new(HybridPolicy::new(0.3, 0.7)), "Hybrid LRU+LFU"),
        (Arc::new(HybridPolicy::default_balanced()), "Hybrid LRU+LFU"),
    ];
    for (policy, name) in policies {
        assert_eq!(policy.name(), name);
    }
    assert!(!CacheConfig::default().enable_ml_eviction);
}

#[test]
#[should_panic(expected = "Weights must sum to 1.0")]
fn weights_that_do_not_sum_to_one_panic() {
    let _ = HybridPolicy::new(0.5, 0.6);
}

#[tokio::test]
async fn policies_of_a_user_evict() {
    let policies: [Arc<dyn EvictionPolicy>; 4] = [
        Arc::new(written_by_a_user::LruPolicy),
        Arc::new(written_by_a_user::LfuPolicy),
        Arc::new(written_by_a_user::HybridPolicy::new(0.25, 0.75)),
        Arc::new(written_by_a_user::HybridPolicy::default_balanced()),
    ];
    for policy in policies {
        let mut config = config();
        config.eviction_policy = Arc::clone(&policy);
        let manager = CacheManager::new(Arc::new(InMemoryBackend::new(1000)), config);
        for i in 0..20 {
            let key = QueryKey::new(&format!("SELECT {i}"), &[], "test");
            manager.put(key, vec![0; 100], vec![], 10.0).await.unwrap();
        }
        let stats = manager.stats();
        assert!(
            stats.evictions > 0 && stats.size_bytes <= 1000,
            "{}: {stats:?}",
            policy.name()
        );
    }
}

#[test]
fn what_is_shared_between_threads_can_be() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<CacheManager>();
    shared::<CacheConfig>();
    shared::<InMemoryBackend>();
    shared::<StampedeProtection>();
    shared::<ComputeGuard>();
    shared::<QueryKey>();
    shared::<CacheEntry>();
    shared::<CacheError>();
}
