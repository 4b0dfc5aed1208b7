//! What is stored, what is refused, and what is counted.
#![cfg(not(loom))]

use std::sync::Arc;
use std::time::Duration;

use heliosdb_cache::{
    CacheConfig, CacheManager, CostAwarePolicy, HashedStr, InMemoryBackend, KeyRef, LruPolicy,
    PutOutcome, QueryKey, SlotId,
};

fn cache(bytes: usize, configure: impl FnOnce(&mut CacheConfig)) -> CacheManager {
    let mut config = CacheConfig::default();
    config.sweep_interval = Duration::ZERO;
    configure(&mut config);
    config.validate().expect("a valid configuration");
    CacheManager::new(Arc::new(InMemoryBackend::new(bytes)), config)
}

fn insert(cache: &CacheManager, n: u32, len: usize, cost_ms: u64) -> PutOutcome {
    let namespace = HashedStr::new("db");
    let params = n.to_le_bytes();
    let key = KeyRef::new("SELECT $1", &params, &namespace);
    let slots: &[SlotId] = &[];
    cache.insert(&key, &vec![0; len], slots, Duration::from_millis(cost_ms))
}

fn is_hit(cache: &CacheManager, n: u32) -> bool {
    let namespace = HashedStr::new("db");
    let params = n.to_le_bytes();
    cache
        .lookup(&KeyRef::new("SELECT $1", &params, &namespace))
        .is_some()
}

#[test]
fn an_answer_comes_in_when_it_is_asked_for_the_second_time() {
    let cache = cache(1 << 20, |config| config.doorkeeper = true);
    assert_eq!(insert(&cache, 1, 100, 1), PutOutcome::Rejected);
    assert_eq!(cache.stats().rejected_by.seen_once, 1);
    assert_eq!(insert(&cache, 1, 100, 1), PutOutcome::Stored);
    assert!(is_hit(&cache, 1));
}

#[test]
fn no_entry_takes_more_than_its_share() {
    let cache = cache(100_000, |config| config.max_entry_share = 0.1);
    assert_eq!(insert(&cache, 1, 9000, 1), PutOutcome::Stored);
    assert_eq!(insert(&cache, 2, 10_000, 1), PutOutcome::Rejected);
    assert_eq!(cache.stats().rejected_by.too_large, 1);
    assert_eq!(cache.stats().rejected, 1);
}

#[test]
fn each_cause_is_counted_on_its_own() {
    let cache = cache(1 << 20, |config| {
        config.min_result_size = 10;
        config.max_result_size = 1000;
        config.min_execution_time_ms = 5.0;
    });
    insert(&cache, 1, 9, 10);
    insert(&cache, 1, 1001, 10);
    insert(&cache, 1, 100, 4);
    insert(&cache, 1, 100, 10);
    insert(&cache, 1, 100, 10);
    for n in 0..3 {
        is_hit(&cache, n);
    }
    let stats = cache.stats();
    let by = stats.rejected_by;
    assert_eq!((by.too_small, by.too_large, by.too_cheap), (1, 1, 1));
    assert_eq!((stats.rejected, stats.fills, stats.replaced), (3, 2, 1));
    assert_eq!((stats.hits, stats.misses), (1, 2));
    assert_eq!(stats.time_saved, Duration::from_millis(10));
    assert!((stats.hit_ratio() - 1.0 / 3.0).abs() < 1e-9);
}

#[test]
fn the_least_recently_used_leaves_exactly() {
    let cache = cache(100_000, |config| {
        config.eviction_policy = Arc::new(LruPolicy)
    });
    let room = (0..).find(|n| {
        insert(&cache, *n, 1000, 1);
        cache.stats().evictions > 0
    });
    let room = room.unwrap();
    assert!(!is_hit(&cache, 0), "the first one");
    assert!(is_hit(&cache, 1), "used again");
    for n in 1000..1000 + room - 1 {
        insert(&cache, n, 1000, 1);
    }
    assert!(is_hit(&cache, 1));
    assert!(!is_hit(&cache, 2));
    assert_eq!(cache.stats().evictions, u64::from(room));
}

/// Of answers asked for equally often, those that save more time for each byte stay.
#[test]
fn the_dear_and_small_outlive_the_cheap_and_large() {
    let cache = cache(1 << 20, |config| {
        config.eviction_policy = Arc::new(CostAwarePolicy);
    });
    for round in 0..4 {
        for n in 0..4000_u32 {
            let (len, cost) = if n % 2 == 0 { (200, 100) } else { (2000, 1) };
            if !is_hit(&cache, n) {
                insert(&cache, n, len, cost);
            }
        }
        let (dear, cheap): (Vec<u32>, _) = (0..4000).partition(|n| n % 2 == 0);
        let hits = |all: &[u32]| all.iter().filter(|n| is_hit(&cache, **n)).count();
        if round == 3 {
            assert_eq!(hits(&dear), 2000);
            assert!(hits(&cheap) < 400);
        }
    }
}

/// A cache of a tenth of the keys, asked for in turn, is too small for LRU; twice ten times it is not.
#[test]
fn the_curve_shows_what_more_memory_would_bring() {
    let capacity = 4 << 20;
    let cache = cache(capacity, |config| {
        config.eviction_policy = Arc::new(LruPolicy)
    });
    let keys = 10_000;
    for _ in 0..10 {
        for n in 0..keys {
            if !is_hit(&cache, n) {
                insert(&cache, n, 1000, 1);
            }
        }
    }
    let points = cache.curve();
    let sizes: Vec<_> = points.iter().map(|point| point.capacity_bytes).collect();
    assert_eq!(sizes, [1, 2, 4, 8, 16, 32].map(|mib| mib << 20));
    assert!(cache.stats().hit_ratio() < 0.01);
    assert!(
        points[..3].iter().all(|point| point.hit_ratio < 0.05),
        "{points:?}"
    );
    assert!(
        points[4..].iter().all(|point| point.hit_ratio > 0.85),
        "{points:?}"
    );
    let off = self::cache(capacity, |config| config.estimate_curve = false);
    assert!(off.curve().is_empty());
}

#[tokio::test]
async fn what_is_replaced_gives_its_room_back() {
    let cache = cache(1 << 20, |_| {});
    for size in [10, 1000, 0, 500] {
        let key = QueryKey::new("SELECT 1", &[], "db");
        cache.put(key, vec![1; size], vec![], 1.0).await.unwrap();
    }
    let stats = cache.stats();
    assert_eq!((stats.entries, stats.replaced), (1, 3));
    assert!(
        (500..700).contains(&stats.size_bytes),
        "{}",
        stats.size_bytes
    );
}
