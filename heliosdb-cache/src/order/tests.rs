//! What every order must keep, and what tells them apart.

use proptest::prelude::*;

use super::{AnyOrder, Order};

const NAMES: [&str; 4] = ["adaptive", "cost-aware", "lfu", "lru"];

fn order(name: &str, capacity: usize) -> AnyOrder {
    let mut order = AnyOrder::by_name(name).unwrap();
    order.set_capacity(capacity);
    order
}

#[derive(Debug, Clone)]
enum Operation {
    /// By the number of a key: read if it is there, else inserted, and others evicted until there is room.
    Request(u16, u32, f32),
    Remove(u16),
    Evict,
    SetCapacity(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    let key = prop_oneof![0..40_u16, 0..1000_u16];
    prop_oneof![
        20 => (key.clone(), 1..50_u32, -1.0..1e6_f32).prop_map(|(key, weight, cost)| Operation::Request(key, weight, cost)),
        2 => key.prop_map(Operation::Remove),
        1 => Just(Operation::Evict),
        1 => (1..2000_usize).prop_map(Operation::SetCapacity),
    ]
}

/// A cache that checks that every entry leaves exactly once.
struct Checked {
    order: AnyOrder,
    /// Key and weight, by place.
    slab: Vec<Option<(u64, u32)>>,
    capacity: usize,
}

impl Checked {
    fn new(name: &str, capacity: usize) -> Self {
        Self {
            order: order(name, capacity),
            slab: Vec::new(),
            capacity,
        }
    }

    fn place(&self, key: u64) -> Option<u32> {
        let is_same = |entry: &Option<(u64, u32)>| entry.is_some_and(|(other, _)| other == key);
        let place = self.slab.iter().position(is_same)?;
        u32::try_from(place).ok()
    }

    fn request(&mut self, key: u64, weight: u32, cost: f32) -> bool {
        if let Some(place) = self.place(key) {
            self.order.hit(place);
            return true;
        }
        self.order.miss(hash(key));
        let place = self
            .slab
            .iter()
            .position(Option::is_none)
            .unwrap_or_else(|| {
                self.slab.push(None);
                self.slab.len() - 1
            });
        self.slab[place] = Some((key, weight));
        self.order
            .insert(u32::try_from(place).unwrap(), hash(key), weight, cost);
        while self.used() > self.capacity {
            assert!(self.evict(), "entries are there, and none can leave");
        }
        false
    }

    fn remove(&mut self, key: u64) {
        if let Some(place) = self.place(key) {
            self.order.remove(place);
            self.slab[place as usize] = None;
        }
    }

    fn evict(&mut self) -> bool {
        let Some(place) = self.order.evict() else {
            return false;
        };
        let left = self.slab[place as usize].take();
        assert!(left.is_some(), "place {place} left twice");
        true
    }

    fn used(&self) -> usize {
        let weights = self
            .slab
            .iter()
            .flatten()
            .map(|&(_, weight)| weight as usize);
        weights.sum()
    }

    fn check_len(&self) {
        assert_eq!(self.order.len(), self.slab.iter().flatten().count());
    }
}

fn hash(key: u64) -> u64 {
    (key + 1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(29)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

proptest! {
    #[test]
    fn every_entry_leaves_exactly_once(operations in proptest::collection::vec(operation(), 0..2000)) {
        for name in NAMES {
            let mut cache = Checked::new(name, 300);
            for operation in &operations {
                match *operation {
                    Operation::Request(key, weight, cost) => {
                        cache.request(u64::from(key), weight, cost);
                    }
                    Operation::Remove(key) => cache.remove(u64::from(key)),
                    Operation::Evict => {
                        cache.evict();
                    }
                    Operation::SetCapacity(bytes) => {
                        cache.capacity = bytes;
                        cache.order.set_capacity(bytes);
                    }
                }
                cache.check_len();
            }
            while cache.evict() {}
            cache.check_len();
            prop_assert_eq!(cache.used(), 0, "{} kept an entry back", name);
        }
    }
}

fn hits(name: &str, capacity: usize, requests: impl Iterator<Item = (u64, u32, f32)>) -> usize {
    let mut cache = Checked::new(name, capacity);
    requests
        .filter(|&(key, weight, cost)| cache.request(key, weight, cost))
        .count()
}

fn alike(keys: impl Iterator<Item = u64>) -> impl Iterator<Item = (u64, u32, f32)> {
    keys.map(|key| (key, 1, 0.0))
}

#[test]
fn lru_evicts_in_order_of_use() {
    let mut order = order("lru", 3);
    for place in 0..3 {
        order.insert(place, hash(u64::from(place)), 1, 0.0);
    }
    order.hit(0);
    let left: Vec<_> = std::iter::from_fn(|| order.evict()).collect();
    assert_eq!(left, [1, 2, 0]);
}

#[test]
fn lfu_evicts_by_uses_then_by_order_of_use() {
    let mut order = order("lfu", 4);
    for place in 0..4 {
        order.insert(place, hash(u64::from(place)), 1, 0.0);
    }
    for place in [0, 0, 3] {
        order.hit(place);
    }
    let left: Vec<_> = std::iter::from_fn(|| order.evict()).collect();
    assert_eq!(left, [1, 2, 3, 0]);
}

#[test]
fn lfu_forgets_favourites_of_the_past() {
    let mut cache = Checked::new("lfu", 4);
    for _ in 0..60 {
        cache.request(0, 1, 0.0);
    }
    for round in 0..200 {
        for key in [1, 1, 2, 2, 3, 3, 100 + round] {
            cache.request(key, 1, 0.0);
        }
    }
    assert_eq!(cache.place(0), None);
}

#[test]
fn cost_aware_keeps_what_saves_the_most_for_each_byte() {
    let mut order = order("cost-aware", 1000);
    for (place, weight, cost) in [
        (0, 100, 10.0),
        (1, 100, 90_000.0),
        (2, 10, 1000.0),
        (3, 100, 1000.0),
    ] {
        order.insert(place, hash(u64::from(place)), weight, cost);
    }
    let left: Vec<_> = std::iter::from_fn(|| order.evict()).collect();
    assert_eq!(left, [0, 3, 2, 1]);
}

#[test]
fn cost_aware_forgets_what_was_dear_once() {
    let mut cache = Checked::new("cost-aware", 10);
    cache.request(0, 1, 1000.0);
    for key in 1..5000 {
        cache.request(key, 1, 10.0);
    }
    assert_eq!(cache.place(0), None);
}

#[test]
fn uses_are_remembered_after_an_entry_has_left() {
    let mut order = order("cost-aware", 1000);
    order.insert(0, hash(0), 1, 1.0);
    for _ in 0..5 {
        order.hit(0);
    }
    order.remove(0);
    order.insert(0, hash(0), 1, 1.0);
    order.insert(1, hash(1), 1, 1.0);
    assert_eq!(order.evict(), Some(1));
}

/// Whether it came before or after it was seen that costs differ.
#[test]
fn adaptive_lets_the_cheap_go_first() {
    let mut order = order("adaptive", 6);
    for (place, cost) in [(0, 1.0), (1, 1.0), (2, 1e6), (3, 1e6), (4, 1.0), (5, 1.0)] {
        order.insert(place, hash(u64::from(place)), 1, cost);
    }
    let mut left: Vec<_> = std::iter::from_fn(|| order.evict()).collect();
    left[..4].sort_unstable();
    assert_eq!(left[..4], [0, 1, 4, 5]);
}

/// The miniatures have fewer places than keys come by.
#[test]
fn adaptive_stays_adaptive() {
    let of_new = 1000..71_000;
    let of_loop = (0..30_000).map(|request| request % 300);
    let hits = hits("adaptive", 200, alike(of_new.chain(of_loop)));
    assert!(hits > 20_000 * 9 / 10, "{hits} hits, 20000 are possible");
}

/// A loop over somewhat more than fits: nothing is hit by recency, nearly all that fits otherwise.
#[test]
fn adaptive_keeps_a_part_of_a_loop() {
    let requests = || alike((0..60_000).map(|request| request % 300));
    assert_eq!(hits("lru", 200, requests()), 0);
    let hits = hits("adaptive", 200, requests());
    assert!(hits > 60_000 * 6 / 10, "{hits} hits, 40000 are possible");
}

/// Each key is asked for three times, at a distance that recency bridges, and never again.
#[test]
fn adaptive_follows_what_is_new() {
    let requests = || alike((0..60_000).map(|request| (request / 90) * 30 + request % 30));
    let best = hits("lru", 50, requests());
    let hits = hits("adaptive", 50, requests());
    assert!(hits > best * 98 / 100, "{hits} hits, {best} by recency");
}

/// A loop, then new keys again and again, then another loop.
#[test]
fn adaptive_changes_its_mind() {
    let of_loop = |first: u64| (0..30_000).map(move |request| first + request % 300);
    let of_new = (0..30_000).map(|request| 1000 + (request / 90) * 30 + request % 30);
    let requests = of_loop(0).chain(of_new).chain(of_loop(400));
    let hits = hits("adaptive", 200, alike(requests));
    assert!(
        hits > 54_000 * 9 / 10,
        "{hits} hits, about 59000 are possible"
    );
}

/// What is worth little and asked for once floods the cache.
#[test]
fn adaptive_is_cost_aware_where_costs_differ() {
    let requests = (0..60_000_u64).map(|request| match request % 3 {
        0 => (request / 3 % 150, 1, 10_000.0),
        _ => (1000 + request, 1, 10.0),
    });
    let hits = hits("adaptive", 200, requests);
    assert!(hits > 19_000, "{hits} hits, 19850 are possible");
}

#[test]
fn an_order_of_one_place_works() {
    for name in NAMES {
        let requests = alike((0..1000).map(|request| request / 2));
        assert!(hits(name, 1, requests) > 0, "{name}");
    }
}
