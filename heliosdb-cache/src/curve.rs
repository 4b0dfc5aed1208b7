//! What more or less memory would bring: the estimated hit ratio at other sizes.
//!
//! Miniature caches of several sizes, each with the cache's own eviction order, see the requests for a sample of the keys
//! (Waldspurger, Saemundsson, Ahmad, Park, "Cache Modeling and Optimization using Miniature Simulations", USENIX ATC
//! 2017; keys are sampled by their hash, as in SHARDS, FAST 2015). A cache of an R-th of the size on an R-th of the keys
//! has about the hit ratio of the whole. What the sample has more or less requests than an R-th is put down to keys that
//! are asked for all the time, and are hits at every size (SHARDS-adj).

use hashbrown::HashTable;

use crate::order::{AnyOrder, Order};
use crate::sync::{CountMutex, CountU32, Ordering};

/// A point of the curve.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct CurvePoint {
    /// The size of the cache, in bytes.
    pub capacity_bytes: usize,
    /// Hits by look-ups, from 0 to 1.
    pub hit_ratio: f64,
    /// What hits save of what computing all answers would take, from 0 to 1.
    pub cost_ratio: f64,
    /// Look-ups that this rests on: of the sample, and lately ([`CURVE_HALF_LIFE`]).
    pub requests: f64,
}

/// Look-ups of the sample after which one counts half.
pub const CURVE_HALF_LIFE: f64 = 200_000.0;

/// Sizes, by that of the cache.
const SIZES: [f64; 6] = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0];
/// Entries in the largest miniature: above, the sample is halved.
const ENTRIES_MAX: usize = 4096;

/// Takes about 100 bytes for each of at most 8000 entries in all miniatures.
#[derive(Debug)]
pub(crate) struct Curve {
    /// One in 2^`shift` of the keys is in the sample.
    shift: CountU32,
    /// Why one lock: a request goes through all miniatures. Taken by requests of the sample only.
    state: CountMutex<State>,
}

#[derive(Debug)]
struct State {
    capacity: usize,
    shift: u32,
    miniatures: [Miniature; SIZES.len()],
    /// Of all look-ups of the sample, fading.
    requests: f64,
    cost: f64,
    /// Look-ups of the sample since it was last made smaller, and all look-ups until then.
    sampled: u64,
    before: u64,
    /// Of the answers of the sample lately, for those whose cost is not known.
    mean_cost: f64,
}

#[derive(Debug)]
struct Miniature {
    order: AnyOrder,
    /// Places, by hash.
    table: HashTable<u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    used: usize,
    capacity: usize,
    hits: f64,
    saved: f64,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    hash: u64,
    weight: u32,
    cost: f32,
}

impl Curve {
    /// Of a cache of `capacity` bytes; `order` makes an order of its policy.
    pub(crate) fn new(capacity: usize, order: impl Fn() -> AnyOrder) -> Self {
        // As if an answer took a KiB. If it takes less, the sample is made smaller later; if more, it is a small one.
        let shift = (capacity / 1024 * 8 / ENTRIES_MAX).max(1).ilog2();
        let miniature = |size| Miniature::new(order(), scaled(capacity, size, shift));
        Self {
            shift: CountU32::new(shift),
            state: CountMutex::new(State {
                capacity,
                shift,
                miniatures: SIZES.map(miniature),
                requests: 0.0,
                cost: 0.0,
                sampled: 0,
                before: 0,
                mean_cost: 0.0,
            }),
        }
    }

    /// Are requests for this key wanted? All that a request costs that isn't in the sample.
    pub(crate) fn is_sampled(&self, hash: u64) -> bool {
        is_sampled(hash, self.shift.load(Ordering::Relaxed))
    }

    /// A look-up of a key of the sample. Its answer may be there in a miniature when the cache itself does not have it.
    pub(crate) fn request(&self, hash: u64) {
        let mut state = self.state.lock();
        let keep = (-1.0 / CURVE_HALF_LIFE).exp2();
        let mut cost = None;
        for miniature in &mut state.miniatures {
            miniature.hits *= keep;
            miniature.saved *= keep;
            if let Some(found) = miniature.request(hash) {
                miniature.hits += 1.0;
                miniature.saved += f64::from(found);
                cost = Some(found);
            }
        }
        let cost = cost.map_or(state.mean_cost, f64::from);
        state.sampled += 1;
        state.requests = state.requests * keep + 1.0;
        state.cost = state.cost * keep + cost;
    }

    /// The answer to a question of the sample, `weight` bytes that took `cost` milliseconds: found in the cache, or computed
    /// just now. It comes into the miniatures that don't have it. `total` counts all look-ups until now, and is seldom asked.
    pub(crate) fn answer(&self, hash: u64, weight: usize, cost: f32, total: impl Fn() -> u64) {
        let cost = if cost.is_finite() { cost.max(0.0) } else { 0.0 };
        let weight = u32::try_from(weight).unwrap_or(u32::MAX);
        let mut state = self.state.lock();
        state.mean_cost += (f64::from(cost) - state.mean_cost) / 256.0;
        for miniature in &mut state.miniatures {
            miniature.insert(Slot { hash, weight, cost });
        }
        while state
            .miniatures
            .iter()
            .any(|one| one.table.len() > ENTRIES_MAX)
        {
            state.halve();
            state.before = total();
        }
        self.shift.store(state.shift, Ordering::Relaxed);
    }

    /// The answer to a question of the sample may not be served any more.
    pub(crate) fn invalidated(&self, hash: u64) {
        for miniature in &mut self.state.lock().miniatures {
            miniature.remove(hash);
        }
    }

    /// `total` counts all look-ups until now.
    pub(crate) fn points(&self, total: u64) -> Vec<CurvePoint> {
        let state = self.state.lock();
        let expected = (total.saturating_sub(state.before) >> state.shift) as f64;
        let excess = if state.sampled == 0 {
            0.0
        } else {
            expected / state.sampled as f64 - 1.0
        };
        let ratio = |hits: f64, all: f64| {
            let missing = all * excess;
            ((hits + missing) / (all + missing).max(f64::MIN_POSITIVE)).clamp(0.0, 1.0)
        };
        let points = SIZES.iter().zip(&state.miniatures);
        let points = points.map(|(size, miniature)| CurvePoint {
            capacity_bytes: scaled(state.capacity, *size, 0),
            hit_ratio: ratio(miniature.hits, state.requests),
            cost_ratio: ratio(miniature.saved, state.cost),
            requests: state.requests,
        });
        points.collect()
    }
}

impl State {
    /// Goes on with half of the sample.
    fn halve(&mut self) {
        self.shift += 1;
        (self.requests, self.cost, self.sampled) = (0.0, 0.0, 0);
        for (miniature, size) in self.miniatures.iter_mut().zip(SIZES) {
            (miniature.hits, miniature.saved) = (0.0, 0.0);
            miniature.set_capacity(scaled(self.capacity, size, self.shift));
            let out = miniature.slots.iter().filter(|slot| slot.weight > 0);
            let out: Vec<_> = out
                .map(|slot| slot.hash)
                .filter(|hash| !is_sampled(*hash, self.shift))
                .collect();
            for hash in out {
                miniature.remove(hash);
            }
        }
    }
}

impl Miniature {
    fn new(mut order: AnyOrder, capacity: usize) -> Self {
        order.set_capacity(capacity);
        Self {
            order,
            table: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            used: 0,
            capacity,
            hits: 0.0,
            saved: 0.0,
        }
    }

    fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
        self.order.set_capacity(capacity);
    }

    /// What computing the answer took, if it is there.
    fn request(&mut self, hash: u64) -> Option<f32> {
        match self.find(hash) {
            Some(place) => {
                self.order.hit(place);
                Some(self.slots[place as usize].cost)
            }
            None => {
                self.order.miss(hash);
                None
            }
        }
    }

    fn insert(&mut self, slot: Slot) {
        let slot = Slot {
            weight: slot.weight.max(1),
            ..slot
        };
        if slot.weight as usize > self.capacity || self.find(slot.hash).is_some() {
            return;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.slots.push(slot);
            u32::try_from(self.slots.len() - 1).expect("a few thousand")
        });
        self.slots[place as usize] = slot;
        let slots = &self.slots;
        self.table
            .insert_unique(slot.hash, place, |place| slots[*place as usize].hash);
        self.used += slot.weight as usize;
        self.order
            .insert(place, slot.hash, slot.weight, slot.cost * 1000.0);
        while self.used > self.capacity {
            let Some(place) = self.order.evict() else {
                return;
            };
            self.forget(place);
        }
    }

    fn remove(&mut self, hash: u64) {
        if let Some(place) = self.find(hash) {
            self.order.remove(place);
            self.forget(place);
        }
    }

    fn forget(&mut self, place: u32) {
        let slot = &mut self.slots[place as usize];
        self.used -= slot.weight as usize;
        slot.weight = 0;
        let found = self.table.find_entry(slot.hash, |other| *other == place);
        if let Ok(found) = found {
            found.remove();
        }
        self.free.push(place);
    }

    fn find(&self, hash: u64) -> Option<u32> {
        let is_same = |place: &u32| self.slots[*place as usize].hash == hash;
        self.table.find(hash, is_same).copied()
    }
}

/// By bits that are mixed anew: neither tables nor orders go by them.
fn is_sampled(hash: u64, shift: u32) -> bool {
    shift == 0 || (hash ^ hash >> 31).wrapping_mul(0xd6e8_feb8_6659_fd93) >> (64 - shift) == 0
}

fn scaled(capacity: usize, size: f64, shift: u32) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates"
    )]
    let scaled = (capacity as f64 * size) as usize;
    scaled >> shift
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const WEIGHT: usize = 1000;
    const KEYS: u64 = 200_000;

    fn hash(n: u64) -> u64 {
        let mixed = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 32)
    }

    fn order(name: &str) -> AnyOrder {
        AnyOrder::by_name(name).expect("a name")
    }

    /// Favourites (about as often as 1 / rank), and a loop that none but large caches hold.
    fn requests() -> Vec<u64> {
        let mut random = 88_172_645_463_325_252_u64;
        #[expect(clippy::cast_possible_truncation, reason = "the floor")]
        let requests = (0..600_000).map(|at: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let fraction = (random >> 11) as f64 / (1_u64 << 53) as f64;
            if at.is_multiple_of(4) {
                KEYS + at / 4 % 60_000
            } else {
                ((KEYS as f64).powf(fraction) as u64) % KEYS
            }
        });
        requests.map(hash).collect()
    }

    #[test]
    fn the_curve_is_near_what_caches_of_these_sizes_have() {
        let capacity = 20_000 * WEIGHT;
        for name in ["lru", "adaptive"] {
            let curve = Curve::new(capacity, || order(name));
            let mut full: Vec<_> = SIZES
                .iter()
                .map(|size| (Miniature::new(order(name), scaled(capacity, *size, 0)), 0))
                .collect();
            let requests = requests();
            let mut since = 0;
            for (at, &hash) in requests.iter().enumerate() {
                for (cache, hits) in &mut full {
                    *hits += u32::from(cache.request(hash).is_some());
                    cache.insert(Slot {
                        hash,
                        weight: 1000,
                        cost: 1.0,
                    });
                }
                if curve.is_sampled(hash) {
                    curve.request(hash);
                    curve.answer(hash, WEIGHT, 1.0, || at as u64 + 1);
                }
                // Both of the time since the sample has its size.
                let before = curve.state.lock().before;
                if before != since {
                    since = before;
                    full.iter_mut().for_each(|(_, hits)| *hits = 0);
                }
            }
            let mut errors = Vec::new();
            for ((_, hits), point) in full.iter().zip(curve.points(requests.len() as u64)) {
                let truth = f64::from(*hits) / (requests.len() as u64 - since) as f64;
                errors.push((point.hit_ratio - truth).abs());
                assert!((point.hit_ratio - point.cost_ratio).abs() < 0.05);
            }
            let worst = errors.iter().copied().fold(0.0, f64::max);
            assert!(worst < 0.04, "{name}: {errors:.3?}");
            assert!(curve.state.lock().shift > 2, "it is a sample");
            let entries = curve
                .state
                .lock()
                .miniatures
                .each_ref()
                .map(|one| one.table.len());
            assert!(entries.iter().all(|len| *len <= ENTRIES_MAX), "{entries:?}");
        }
    }

    #[test]
    fn what_is_invalidated_is_a_miss_at_every_size() {
        let curve = Curve::new(100 * WEIGHT, || order("lru"));
        for _ in 0..100 {
            curve.request(hash(1));
            curve.answer(hash(1), WEIGHT, 1.0, || 0);
            curve.invalidated(hash(1));
        }
        assert!(curve.points(100).iter().all(|point| point.hit_ratio == 0.0));
    }

    #[test]
    fn it_forgets() {
        let curve = Curve::new(100 * WEIGHT, || order("lru"));
        curve.answer(hash(1), WEIGHT, 1.0, || 0);
        for _ in 0..10_000 {
            curve.request(hash(1));
        }
        assert!(curve.points(10_000)[2].hit_ratio > 0.99);
        for n in 0..1_000_000 {
            curve.request(hash(n + 2));
        }
        assert!(curve.points(1_010_000)[2].hit_ratio < 0.05);
    }
}
