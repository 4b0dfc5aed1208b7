//! The peers, one shard each, so that their order alone is compared.

use foyer_memory::{
    Cache, CacheBuilder, EvictionConfig, LfuConfig, LruConfig, S3FifoConfig, SieveConfig,
};

use super::simulation::Simulated;

/// Names as printed, in the order of the columns.
pub(super) const NAMES: [&str; 7] = [
    "moka",
    MOKA_LATE,
    "quick_cache",
    "foyer-s3fifo",
    "foyer-lfu",
    "foyer-lru",
    "foyer-sieve",
];

/// moka as it is used commonly: it applies what is put and read in batches, and holds more than its capacity until then.
const MOKA_LATE: &str = "moka-late";

/// Does a cache never hold more than its capacity?
pub(super) fn keeps_bound(name: &str) -> bool {
    name != MOKA_LATE
}

/// The peer of this name for `capacity`, made for about `items` entries.
pub(super) fn build(name: &str, capacity: u64, items: usize) -> Option<Box<dyn Simulated>> {
    let foyer = |eviction: EvictionConfig| -> Box<dyn Simulated> {
        let capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
        let cache = CacheBuilder::new(capacity)
            .with_shards(1)
            .with_eviction_config(eviction)
            .with_weighter(|_: &u64, weight: &u32| *weight as usize)
            .build();
        Box::new(Foyer(cache))
    };
    Some(match name {
        "foyer-lfu" => foyer(LfuConfig::default().into()),
        "foyer-lru" => foyer(LruConfig::default().into()),
        "foyer-s3fifo" => foyer(S3FifoConfig::default().into()),
        "foyer-sieve" => foyer(SieveConfig.into()),
        "moka" | MOKA_LATE => Box::new(Moka {
            cache: moka::sync::Cache::builder()
                .max_capacity(capacity)
                .weigher(|_, &weight: &u32| weight)
                .build(),
            is_late: name == MOKA_LATE,
        }),
        "quick_cache" => Box::new(QuickCache(quick_cache::sync::Cache::with_options(
            quick_cache::OptionsBuilder::new()
                .shards(1)
                .estimated_items_capacity(items)
                .weight_capacity(capacity)
                .build()
                .ok()?,
            Weighter,
            Default::default(),
            Default::default(),
        ))),
        _ => return None,
    })
}

struct Foyer(Cache<u64, u32>);

impl Simulated for Foyer {
    fn get(&mut self, key: u64) -> bool {
        self.0.get(&key).is_some()
    }

    fn put(&mut self, key: u64, weight: u32, _cost: f32) {
        self.0.insert(key, weight);
    }
}

struct Moka {
    cache: moka::sync::Cache<u64, u32>,
    is_late: bool,
}

impl Simulated for Moka {
    fn get(&mut self, key: u64) -> bool {
        self.cache.get(&key).is_some()
    }

    fn put(&mut self, key: u64, weight: u32, _cost: f32) {
        self.cache.insert(key, weight);
        if !self.is_late {
            self.cache.run_pending_tasks();
        }
    }
}

struct QuickCache(quick_cache::sync::Cache<u64, u32, Weighter>);

impl Simulated for QuickCache {
    fn get(&mut self, key: u64) -> bool {
        self.0.get(&key).is_some()
    }

    fn put(&mut self, key: u64, weight: u32, _cost: f32) {
        self.0.insert(key, weight);
    }
}

#[derive(Debug, Clone)]
struct Weighter;

impl quick_cache::Weighter<u64, u32> for Weighter {
    fn weight(&self, _key: &u64, value: &u32) -> u64 {
        u64::from(*value)
    }
}
