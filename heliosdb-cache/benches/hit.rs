//! What a hit costs, beside what any keyed look-up costs.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use heliosdb_cache::{CacheConfig, CacheManager, HashedStr, InMemoryBackend, KeyRef};
use parking_lot::Mutex;

const QUERY: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = $1";
const ENTRIES: u32 = 10_000;

fn hit(c: &mut Criterion) {
    let cache = CacheManager::new(
        Arc::new(InMemoryBackend::new(64 << 20)),
        CacheConfig::default(),
    );
    let (query, namespace) = (HashedStr::new(QUERY), HashedStr::new("bench"));
    let slots = [cache.table_slot("pgbench_accounts")];
    let mut floor = HashMap::new();
    for i in 0..ENTRIES {
        let key = KeyRef::prepared(&query, &i.to_le_bytes(), &namespace).to_key();
        let value = Bytes::from(vec![0; 64]);
        floor.insert(key.clone(), value.clone());
        if let heliosdb_cache::Flight::Leader(fill) = cache.join(&key.as_ref(), &slots) {
            fill.complete(value, std::time::Duration::from_millis(1));
        }
    }
    assert_eq!(cache.stats().entries, ENTRIES as usize);

    let mut group = c.benchmark_group("hit");
    let mut i = 0_u32;
    let mut next = move || {
        i = (i + 7919) % ENTRIES;
        i.to_le_bytes()
    };
    group.bench_function("prepared", |b| {
        b.iter(|| {
            let params = next();
            let key = KeyRef::prepared(&query, &params, &namespace);
            assert!(black_box(cache.lookup(&key)).is_some());
        });
    });
    group.bench_function("inline text", |b| {
        b.iter(|| {
            let params = next();
            let key = KeyRef::new(black_box(QUERY), &params, &namespace);
            assert!(black_box(cache.lookup(&key)).is_some());
        });
    });
    // The floor: one lock, the standard map, no bound, no recency, no validity.
    let floor = Mutex::new(floor);
    group.bench_function("floor: Mutex<HashMap>, owned key", |b| {
        b.iter(|| {
            let params = next();
            let key = KeyRef::prepared(&query, &params, &namespace).to_key();
            assert!(black_box(floor.lock().get(&key).cloned()).is_some());
        });
    });
    group.finish();
}

criterion_group!(benches, hit);
criterion_main!(benches);
