//! Whole caches, as a service uses them: what each does for a look-up and for a put.

use std::hash::{Hash, Hasher};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use heliosdb_cache::{
    AdaptivePolicy, CacheConfig, CacheManager, CostAwarePolicy, EvictionPolicy, HashedStr,
    InMemoryBackend, KeyRef, LruPolicy, SlotId,
};

/// What all keys have in common: the statement, and the database.
pub(super) const QUERY: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = $1";
pub(super) const DATABASE: &str = "bench";

/// A cache of `value`s under numbers.
pub(super) trait Contestant: Send + Sync {
    fn get(&self, key: u64) -> bool;
    fn put(&self, key: u64, value: &[u8]);
    /// Entries that it holds.
    fn len(&self) -> usize;
}

/// Names as printed. The first is the measure of the others.
pub(super) const NAMES: [&str; 9] = [
    "quick_cache",
    "quick_cache, query keys",
    "heliosdb-cache",
    "heliosdb-cache, cost-aware",
    "heliosdb-cache, lru",
    "moka",
    "foyer, s3fifo",
    "foyer, lru",
    "dashmap, no bound",
];

/// The cache of this name, for `capacity` bytes in about `items` entries.
pub(super) fn build(name: &str, capacity: usize, items: usize) -> Option<Box<dyn Contestant>> {
    Some(match name {
        "dashmap, no bound" => Box::new(DashMap::default()),
        "foyer, lru" => foyer(capacity, foyer_memory::LruConfig::default().into()),
        "foyer, s3fifo" => foyer(capacity, foyer_memory::S3FifoConfig::default().into()),
        "heliosdb-cache" => Box::new(Helios::new(capacity, Arc::new(AdaptivePolicy))),
        "heliosdb-cache, cost-aware" => Box::new(Helios::new(capacity, Arc::new(CostAwarePolicy))),
        "heliosdb-cache, lru" => Box::new(Helios::new(capacity, Arc::new(LruPolicy))),
        "moka" => Box::new(Moka(
            moka::sync::Cache::builder()
                .max_capacity(capacity as u64)
                .weigher(|_, value: &Bytes| u32::try_from(weight(value)).unwrap_or(u32::MAX))
                .build(),
        )),
        "quick_cache" => Box::new(QuickCache(quick_cache::sync::Cache::with_weighter(
            items,
            capacity as u64,
            Weighter,
        ))),
        "quick_cache, query keys" => Box::new(QueryCache {
            cache: quick_cache::sync::Cache::with_weighter(items, capacity as u64, Weighter),
            query: QUERY.into(),
            database: DATABASE.into(),
        }),
        _ => return None,
    })
}

/// What peers, who don't know what they take themselves, are told that an entry takes.
fn weight(value: &Bytes) -> usize {
    value.len() + heliosdb_cache::ENTRY_OVERHEAD + size_of::<u64>()
}

pub(super) struct Helios {
    pub(super) cache: CacheManager,
    query: HashedStr,
    database: HashedStr,
    slots: [SlotId; 1],
}

impl Helios {
    pub(super) fn new(capacity: usize, policy: Arc<dyn EvictionPolicy>) -> Self {
        let mut config = CacheConfig::default();
        config.max_size_bytes = capacity;
        config.eviction_policy = policy;
        let cache = CacheManager::new(Arc::new(InMemoryBackend::new(capacity)), config);
        Self {
            query: HashedStr::new(QUERY),
            database: HashedStr::new(DATABASE),
            slots: [cache.table_slot("pgbench_accounts")],
            cache,
        }
    }
}

impl Contestant for Helios {
    fn get(&self, key: u64) -> bool {
        let params = key.to_le_bytes();
        let key = KeyRef::prepared(&self.query, &params, &self.database);
        black_box(self.cache.lookup(&key)).is_some()
    }

    fn put(&self, key: u64, value: &[u8]) {
        let params = key.to_le_bytes();
        let key = KeyRef::prepared(&self.query, &params, &self.database);
        self.cache
            .insert(&key, value, &self.slots, Duration::from_millis(1));
    }

    fn len(&self) -> usize {
        self.cache.stats().entries
    }
}

#[derive(Debug, Clone)]
struct Weighter;

impl<K> quick_cache::Weighter<K, Bytes> for Weighter {
    fn weight(&self, _key: &K, value: &Bytes) -> u64 {
        weight(value) as u64
    }
}

struct QuickCache(quick_cache::sync::Cache<u64, Bytes, Weighter>);

impl Contestant for QuickCache {
    fn get(&self, key: u64) -> bool {
        black_box(self.0.get(&key)).is_some()
    }

    fn put(&self, key: u64, value: &[u8]) {
        self.0.insert(key, Bytes::copy_from_slice(value));
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// What a key of a query cache has to hold: statement, database and parameters are compared in full.
#[derive(Debug, Clone)]
struct Question {
    query: Arc<str>,
    database: Arc<str>,
    params: Box<[u8]>,
}

struct Asked<'a>(&'a str, &'a str, &'a [u8]);

impl Hash for Question {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Asked(&self.query, &self.database, &self.params).hash(state);
    }
}

impl Hash for Asked<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.0, self.1, self.2).hash(state);
    }
}

impl PartialEq for Question {
    fn eq(&self, other: &Self) -> bool {
        Asked(&other.query, &other.database, &other.params).is(self)
    }
}

impl Eq for Question {}

impl Asked<'_> {
    fn is(&self, key: &Question) -> bool {
        *self.2 == *key.params && *self.0 == *key.query && *self.1 == *key.database
    }
}

impl quick_cache::Equivalent<Question> for Asked<'_> {
    fn equivalent(&self, key: &Question) -> bool {
        self.is(key)
    }
}

/// The same cache with such keys.
struct QueryCache {
    cache: quick_cache::sync::Cache<Question, Bytes, Weighter>,
    query: Arc<str>,
    database: Arc<str>,
}

impl Contestant for QueryCache {
    fn get(&self, key: u64) -> bool {
        let asked = Asked(&self.query, &self.database, &key.to_le_bytes());
        black_box(self.cache.get(&asked)).is_some()
    }

    fn put(&self, key: u64, value: &[u8]) {
        let question = Question {
            query: Arc::clone(&self.query),
            database: Arc::clone(&self.database),
            params: Box::new(key.to_le_bytes()),
        };
        self.cache.insert(question, Bytes::copy_from_slice(value));
    }

    fn len(&self) -> usize {
        self.cache.len()
    }
}

struct Moka(moka::sync::Cache<u64, Bytes>);

impl Contestant for Moka {
    fn get(&self, key: u64) -> bool {
        black_box(self.0.get(&key)).is_some()
    }

    fn put(&self, key: u64, value: &[u8]) {
        self.0.insert(key, Bytes::copy_from_slice(value));
    }

    fn len(&self) -> usize {
        self.0.run_pending_tasks();
        usize::try_from(self.0.entry_count()).unwrap_or(usize::MAX)
    }
}

struct Foyer(foyer_memory::Cache<u64, Bytes>);

fn foyer(capacity: usize, eviction: foyer_memory::EvictionConfig) -> Box<dyn Contestant> {
    let cache = foyer_memory::CacheBuilder::new(capacity)
        .with_shards(8)
        .with_eviction_config(eviction)
        .with_weighter(|_: &u64, value: &Bytes| weight(value))
        .build();
    Box::new(Foyer(cache))
}

impl Contestant for Foyer {
    fn get(&self, key: u64) -> bool {
        black_box(self.0.get(&key)).is_some()
    }

    fn put(&self, key: u64, value: &[u8]) {
        self.0.insert(key, Bytes::copy_from_slice(value));
    }

    fn len(&self) -> usize {
        // It counts bytes only.
        self.0.usage() / weight(&Bytes::from_static(&[0; 1024]))
    }
}

/// The ceiling: no order, no bound.
#[derive(Default)]
struct DashMap(dashmap::DashMap<u64, Bytes>);

impl Contestant for DashMap {
    fn get(&self, key: u64) -> bool {
        black_box(self.0.get(&key).map(|value| value.clone())).is_some()
    }

    fn put(&self, key: u64, value: &[u8]) {
        self.0.insert(key, Bytes::copy_from_slice(value));
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keep_what_they_are_given() {
        for name in NAMES {
            let cache = build(name, 16 << 20, 1000).expect(name);
            for key in 0..100 {
                cache.put(key, &[0; 1024]);
            }
            assert!((0..100).all(|key| cache.get(key)), "{name}");
            assert!(!cache.get(100), "{name}");
            assert!((90..=110).contains(&cache.len()), "{name}: {}", cache.len());
        }
    }

    #[test]
    fn all_but_the_ceiling_keep_their_bound() {
        for name in NAMES.into_iter().filter(|name| !name.contains("no bound")) {
            let cache = build(name, 4 << 20, 4000).expect(name);
            for key in 0..20_000 {
                cache.put(key, &[0; 1024]);
            }
            assert!(
                (1000..4100).contains(&cache.len()),
                "{name}: {}",
                cache.len()
            );
        }
    }
}
