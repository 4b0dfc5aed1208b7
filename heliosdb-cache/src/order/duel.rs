//! Which rule would have had the most hits lately, found out by trying all of them on a sample of the keys.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use hashbrown::HashTable;
use parking_lot::Mutex;

use super::history::Sketch;
use super::ranking::{Arrival, Ranking, Rule};

/// Each is the best of all for some kind of load: loops, fixed favourites, favourites that change slowly or fast, recency,
/// reuse at a distance, entries that differ in value.
pub(super) const RULES: [Rule; 7] = [
    Rule::Compared {
        window: 0.0,
        margin: 2,
    },
    Rule::Compared {
        window: 0.01,
        margin: 0,
    },
    Rule::Repeated {
        window: 0.1,
        uses: 3,
    },
    Rule::Repeated {
        window: 0.3,
        uses: 2,
    },
    Rule::Recency,
    Rule::Reused { window: 0.05 },
    Rule::Valued,
];
/// In force until something is known.
pub(super) const FIRST_RULE: usize = 5;
/// The same, where entries differ in value.
pub(super) const VALUE_RULE: usize = 6;

/// The duel of all shards of a cache.
///
/// Why one lock: a request goes through all miniatures, and what comes of it is compared. Taken under a shard's lock,
/// by one request in 2^`shift` only.
#[derive(Debug)]
pub struct Contest {
    shards: usize,
    shift: AtomicU32,
    leader: AtomicUsize,
    duel: Mutex<Duel>,
}

impl Contest {
    /// For so many shards of the same size.
    #[must_use]
    pub fn new(shards: usize) -> Self {
        Self {
            shards: shards.max(1),
            shift: AtomicU32::new(0),
            leader: AtomicUsize::new(FIRST_RULE),
            duel: Mutex::default(),
        }
    }

    /// The rule in force.
    pub(super) fn leader(&self) -> usize {
        self.leader.load(Ordering::Relaxed)
    }

    /// Puts a rule in force until a better one is known.
    pub(super) fn prefer(&self, rule: usize) {
        self.duel.lock().leader = rule;
        self.leader.store(rule, Ordering::Relaxed);
    }

    pub(super) fn is_sampled(&self, hash: u32) -> bool {
        let shift = self.shift.load(Ordering::Relaxed);
        // The upper bits, which choose neither a ghost's tag nor a counter alone.
        u64::from(hash) << shift >> 32 == 0 || shift == 0
    }

    /// `entries` fit into a shard, of `bytes` together.
    pub(super) fn resize(&self, entries: usize, bytes: usize) {
        let mut duel = self.duel.lock();
        duel.resize(entries * self.shards, bytes * self.shards);
        self.shift.store(duel.shift, Ordering::Relaxed);
    }

    /// A look-up of a key that is sampled.
    pub(super) fn request(&self, hash: u32, is_hit: bool) {
        let leader = self.duel.lock().request(hash, is_hit);
        self.leader.store(leader, Ordering::Relaxed);
    }

    /// An entry that is sampled and was looked up is there now; it came just now unless `was_there`.
    pub(super) fn insert(&self, arrival: Arrival, was_there: bool) {
        let mut duel = self.duel.lock();
        duel.now = duel.now.wrapping_add(u32::from(!was_there));
        // A shard counts its own insertions, the duel those of the sample.
        let age = arrival.age.map(|age| {
            let age = (u64::from(age) * self.shards as u64) >> duel.shift;
            u32::try_from(age).unwrap_or(u32::MAX / 2)
        });
        let now = duel.now;
        duel.insert(Arrival {
            age,
            now,
            ..arrival
        });
    }

    pub(super) fn remove(&self, hash: u32) {
        self.duel.lock().remove(hash);
    }
}

/// A miniature of the cache for each rule, on one in 2^`shift` of the keys.
#[derive(Debug)]
struct Duel {
    miniatures: [Miniature; RULES.len()],
    /// How often the keys of the sample were asked for.
    sketch: Sketch,
    /// Insertions into the sample.
    now: u32,
    shift: u32,
    capacity: usize,
    bytes: usize,
    /// What each rule's hits, the cache's own, and all requests have cost to compute: sums that fade.
    hits: [f32; RULES.len()],
    own_hits: f32,
    requests: f32,
    mean_cost: f32,
    leader: usize,
    /// How often the leader has changed: fades too.
    changes: f32,
}

/// Entries of a miniature, where the cache has that many: from this to twice as many.
const SAMPLE: usize = 256;
/// Requests after which a hit counts 1/e, for each entry of a miniature.
const HORIZON: f32 = 60.0;
const HORIZON_MIN: f32 = 200.0;
/// How much better another rule must be: by so many hits, by this share of the entries, since a change costs hits in
/// proportion to them, and by this share of the hits, or of the misses if they are fewer.
const MARGIN_HITS: f32 = 2.0;
const MARGIN_ENTRIES: f32 = 0.05;
const MARGIN: f32 = 0.01;
/// And by this share of what the cache has missed for changing the rule. Without it, a load that favours two rules in
/// turn makes the cache change when the rule has just become the wrong one.
const REGRET: f32 = 0.5;
/// Changes, fading, from which on the regret counts in full: two.
const CHANGES: f32 = 0.5;

impl Default for Duel {
    fn default() -> Self {
        Self {
            miniatures: std::array::from_fn(|at| Miniature::new(RULES[at])),
            sketch: Sketch::default(),
            now: 0,
            shift: 0,
            capacity: 0,
            bytes: 0,
            mean_cost: 1.0,
            hits: [0.0; RULES.len()],
            own_hits: 0.0,
            changes: 0.0,
            requests: 0.0,
            leader: FIRST_RULE,
        }
    }
}

impl Duel {
    /// `entries` fit, of `bytes` together.
    fn resize(&mut self, entries: usize, bytes: usize) {
        let sample = entries >> self.shift;
        if sample >= 4 * SAMPLE || self.shift > 0 && sample < SAMPLE * 3 / 4 {
            // What a miniature holds is of another sample: all begin anew, and so with the same chances.
            *self = Self {
                shift: (entries / SAMPLE).max(1).ilog2(),
                leader: self.leader,
                ..Self::default()
            };
        }
        self.capacity = (entries >> self.shift).max(1);
        self.bytes = (bytes >> self.shift).max(1);
        self.sketch.set_capacity(self.capacity);
        self.sketch.grow(self.capacity);
        for miniature in &mut self.miniatures {
            if !miniature.is_full {
                miniature.ranking.resize(self.capacity);
            }
        }
    }

    /// A look-up. Returns the rule in force from now on.
    fn request(&mut self, hash: u32, is_hit: bool) -> usize {
        self.sketch.add(hash);
        let now = self.now;
        let keep = 1.0 - 1.0 / (HORIZON * self.capacity as f32).max(HORIZON_MIN);
        let found = self.miniatures.each_mut().map(|one| one.hit(hash, now));
        let known = found.iter().flatten().next().copied();
        let cost = known.unwrap_or(self.mean_cost);
        self.changes *= keep;
        self.requests = self.requests * keep + cost;
        self.own_hits = self.own_hits * keep + if is_hit { cost } else { 0.0 };
        for (hits, found) in self.hits.iter_mut().zip(found) {
            *hits = *hits * keep + found.map_or(0.0, |_| cost);
        }
        self.choose();
        self.leader
    }

    /// An entry that was looked up is there now.
    fn insert(&mut self, arrival: Arrival) {
        self.mean_cost +=
            (arrival.value.number() * arrival.weight.number() - self.mean_cost) / 64.0;
        for miniature in &mut self.miniatures {
            miniature.insert(arrival, self.bytes, &self.sketch);
        }
    }

    fn remove(&mut self, hash: u32) {
        for miniature in &mut self.miniatures {
            miniature.remove(hash);
        }
    }

    fn choose(&mut self) {
        let mut best = self.leader;
        for rule in 0..RULES.len() {
            if self.hits[rule] > self.hits[best] {
                best = rule;
            }
        }
        let hits = self.hits[self.leader];
        let fewer = hits.min(self.requests - hits).max(0.0);
        let missed = (self.hits[best] - self.own_hits).max(0.0);
        let regret = REGRET * missed * (CHANGES * self.changes).min(1.0);
        let entries = MARGIN_HITS + MARGIN_ENTRIES * self.capacity as f32;
        if self.hits[best] - hits > entries * self.mean_cost + MARGIN * fewer + regret {
            self.leader = best;
            self.changes += 1.0;
        }
    }
}

#[derive(Debug)]
struct Miniature {
    ranking: Ranking,
    /// Places, by hash.
    table: HashTable<u16>,
    free: Vec<u16>,
    places: usize,
    /// As many as the rounded weights say.
    bytes: f32,
    is_full: bool,
}

impl Miniature {
    fn new(rule: Rule) -> Self {
        Self {
            ranking: Ranking::new(rule),
            table: HashTable::new(),
            free: Vec::new(),
            places: 0,
            bytes: 0.0,
            is_full: false,
        }
    }

    /// Returns what the entry cost to compute, if it is there.
    fn hit(&mut self, hash: u32, now: u32) -> Option<f32> {
        let place = self.place(hash)?;
        self.ranking.hit(place, now);
        Some(self.ranking.value(place).number() * self.ranking.weight(place).number())
    }

    fn insert(&mut self, arrival: Arrival, capacity: usize, sketch: &Sketch) {
        let (weight, capacity) = (arrival.weight.number(), capacity as f32);
        if self.place(arrival.hash).is_some() || weight > capacity {
            return;
        }
        let Some(place) = self.free_place() else {
            return;
        };
        self.bytes += weight;
        self.ranking.insert(u32::from(place), arrival, sketch);
        let ranking = &self.ranking;
        self.table
            .insert_unique(table_hash(arrival.hash), place, |&place| {
                table_hash(ranking.hash(u32::from(place)))
            });
        while self.bytes > capacity {
            let Some(place) = self.ranking.evict(arrival.now, sketch) else {
                return;
            };
            self.forget(place);
            self.is_full = true;
            self.ranking.resize(self.ranking.len());
        }
    }

    fn remove(&mut self, hash: u32) {
        if let Some(place) = self.place(hash) {
            self.ranking.remove(place);
            self.forget(place);
        }
    }

    /// None if there are as many entries as 16 bits count, which takes a sample of very uneven weights.
    fn free_place(&mut self) -> Option<u16> {
        if let Some(place) = self.free.pop() {
            return Some(place);
        }
        let place = u16::try_from(self.places).ok()?;
        self.places += 1;
        Some(place)
    }

    /// The entry's links are gone, its hash is still there.
    fn forget(&mut self, place: u32) {
        let hash = table_hash(self.ranking.hash(place));
        self.bytes -= self.ranking.weight(place).number();
        #[expect(clippy::cast_possible_truncation, reason = "it was made from 16 bits")]
        let place = place as u16;
        if let Ok(found) = self.table.find_entry(hash, |&other| other == place) {
            found.remove();
        }
        self.free.push(place);
    }

    fn place(&self, hash: u32) -> Option<u32> {
        let is_same = |&place: &u16| self.ranking.hash(u32::from(place)) == hash;
        let place = self.table.find(table_hash(hash), is_same)?;
        Some(u32::from(*place))
    }
}

fn table_hash(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::ranking::Log;

    #[test]
    fn a_miniature_uses_its_places_again() {
        let sketch = Sketch::default();
        let mut miniature = Miniature::new(Rule::Recency);
        for now in 0..1000 {
            let arrival = Arrival {
                hash: now,
                weight: Log::of(1.0),
                value: Log::of(1.0),
                age: None,
                now,
            };
            miniature.insert(arrival, 10, &sketch);
        }
        assert_eq!(miniature.places, 11);
        assert!(miniature.hit(999, 1000).is_some() && miniature.hit(989, 1000).is_none());
    }

    #[test]
    fn what_was_removed_is_no_hit() {
        let mut duel = Duel::default();
        duel.resize(10, 10);
        let arrival = Arrival {
            hash: 7,
            weight: Log::of(1.0),
            value: Log::of(1.0),
            age: None,
            now: 1,
        };
        duel.insert(arrival);
        duel.request(7, true);
        assert!(duel.hits.iter().all(|&hits| hits == 1.0));
        duel.remove(7);
        duel.request(7, false);
        assert!(duel.hits.iter().all(|&hits| hits < 1.0));
    }
}
