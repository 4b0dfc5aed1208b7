//! The orders of `heliosdb-cache`, each in a cache of one shard.

use std::collections::HashMap;

use heliosdb_cache::order::{AnyOrder, Order as _};

use super::simulation::Simulated;
use super::trace::mix;

/// Names as printed, the default first.
pub(super) const NAMES: [&str; 4] = ["adaptive", "cost-aware", "lfu", "lru"];

/// The order of this name, for `capacity`.
pub(super) fn build(name: &str, capacity: u64) -> Option<Box<dyn Simulated>> {
    let mut order = AnyOrder::by_name(name)?;
    order.set_capacity(usize::try_from(capacity).unwrap_or(usize::MAX));
    Some(Box::new(Shard {
        order,
        places: HashMap::new(),
        slab: Vec::new(),
        free: Vec::new(),
        used: 0,
        capacity,
    }))
}

struct Shard {
    order: AnyOrder,
    places: HashMap<u64, u32>,
    /// Key and weight, by place.
    slab: Vec<(u64, u32)>,
    free: Vec<u32>,
    used: u64,
    capacity: u64,
}

impl Simulated for Shard {
    fn get(&mut self, key: u64) -> bool {
        if let Some(&place) = self.places.get(&key) {
            self.order.hit(place);
            return true;
        }
        self.order.miss(mix(key));
        false
    }

    fn put(&mut self, key: u64, weight: u32, cost: f32) {
        if u64::from(weight) > self.capacity {
            return;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.slab.push((0, 0));
            u32::try_from(self.slab.len() - 1).expect("fewer than 2^32 places")
        });
        self.slab[place as usize] = (key, weight);
        self.places.insert(key, place);
        self.used += u64::from(weight);
        self.order.insert(place, mix(key), weight, cost);
        while self.used > self.capacity {
            let Some(place) = self.order.evict() else {
                break;
            };
            let (key, weight) = self.slab[place as usize];
            self.places.remove(&key);
            self.free.push(place);
            self.used -= u64::from(weight);
        }
    }
}
