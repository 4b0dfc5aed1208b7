//! Which rule would have had the most hits lately, found out by trying all of them on a sample of the keys.

use hashbrown::HashTable;

use super::history::Sketch;
use super::segments::{Admission, Rule, Segments};

/// Each is the best of all for some kind of load: loops, fixed favourites, favourites that change, reuse at a distance,
/// favourites among scans, recency.
pub(super) const RULES: [Rule; 6] = [
    rule(0.0, Admission::Compared { margin: 2 }),
    rule(0.01, Admission::Compared { margin: 0 }),
    rule(0.1, Admission::Repeated { uses: 3 }),
    rule(0.3, Admission::Repeated { uses: 2 }),
    rule(1.0, Admission::Compared { margin: 0 }),
    rule(0.05, Admission::Reused),
];
/// In force until something is known.
pub(super) const FIRST_RULE: usize = 5;

const fn rule(window: f32, admission: Admission) -> Rule {
    Rule { window, admission }
}

/// A miniature of the cache for each rule, on one in 2^`shift` of the keys.
#[derive(Debug)]
pub(super) struct Duel {
    miniatures: [Miniature; RULES.len()],
    shift: u32,
    capacity: usize,
    /// Hits of each rule, of the cache itself, and requests: sums that fade.
    hits: [f32; RULES.len()],
    own_hits: f32,
    requests: f32,
    leader: usize,
}

/// Entries of a miniature, where the cache has that many: from this to twice as many.
const SAMPLE: usize = 256;
/// Requests after which a hit counts 1/e, for each entry of a miniature.
const HORIZON: f32 = 60.0;
const HORIZON_MIN: f32 = 200.0;
/// By which share of the hits, or of the misses if they are fewer, another rule must be better.
const MARGIN: f32 = 0.01;
const HITS_MIN: f32 = 2.0;
/// Which share of what changing the rule has lost until now must be gained by the next change. Without this, a load
/// that favours two rules in turn makes the cache change the rule when it has just become the wrong one.
const REGRET: f32 = 0.5;

impl Default for Duel {
    fn default() -> Self {
        Self {
            miniatures: std::array::from_fn(|at| Miniature::new(RULES[at])),
            shift: 0,
            capacity: 0,
            hits: [0.0; RULES.len()],
            own_hits: 0.0,
            requests: 0.0,
            leader: FIRST_RULE,
        }
    }
}

impl Duel {
    pub(super) fn resize(&mut self, capacity: usize) {
        let sample = capacity >> self.shift;
        if sample >= 4 * SAMPLE || self.shift > 0 && sample < SAMPLE * 3 / 4 {
            // What a miniature holds is of another sample: all begin anew, and so with the same chances.
            *self = Self {
                shift: (capacity / SAMPLE).max(1).ilog2(),
                leader: self.leader,
                ..Self::default()
            };
        }
        self.capacity = (capacity >> self.shift).max(1);
        for (miniature, rule) in self.miniatures.iter_mut().zip(RULES) {
            miniature.segments.resize(self.capacity, rule.window);
        }
    }

    pub(super) fn is_sampled(&self, hash: u32) -> bool {
        // The upper bits, which choose neither a ghost's tag nor a counter alone.
        u64::from(hash) << self.shift >> 32 == 0 || self.shift == 0
    }

    /// A look-up. Returns the rule in force from now on.
    pub(super) fn request(&mut self, hash: u32, is_hit: bool, age: Option<u32>, now: u32) -> usize {
        let keep = 1.0 - 1.0 / (HORIZON * self.capacity as f32).max(HORIZON_MIN);
        self.requests = self.requests * keep + 1.0;
        self.own_hits = self.own_hits * keep + f32::from(u8::from(is_hit));
        for (miniature, hits) in self.miniatures.iter_mut().zip(&mut self.hits) {
            *hits = *hits * keep + f32::from(u8::from(miniature.hit(hash, now)));
        }
        let _ = age;
        self.choose();
        self.leader
    }

    /// The entry that was looked up, and not found by the cache or by a miniature, has come.
    pub(super) fn insert(&mut self, hash: u32, age: Option<u32>, now: u32, sketch: &Sketch) {
        for miniature in &mut self.miniatures {
            miniature.insert(hash, age, now, sketch);
        }
    }

    pub(super) fn remove(&mut self, hash: u32) {
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
        let lost = (self.hits[best] - self.own_hits).max(0.0);
        if self.hits[best] - hits > MARGIN * fewer + REGRET * lost + HITS_MIN {
            self.leader = best;
        }
    }
}

#[derive(Debug)]
struct Miniature {
    segments: Segments,
    /// Places, by hash.
    table: HashTable<u16>,
    free: Vec<u16>,
    places: u16,
}

impl Miniature {
    fn new(rule: Rule) -> Self {
        let mut segments = Segments::default();
        segments.set_rule(rule);
        Self {
            segments,
            table: HashTable::new(),
            free: Vec::new(),
            places: 0,
        }
    }

    fn hit(&mut self, hash: u32, now: u32) -> bool {
        let place = self.place(hash);
        if let Some(place) = place {
            self.segments.hit(place, now);
        }
        place.is_some()
    }

    fn insert(&mut self, hash: u32, age: Option<u32>, now: u32, sketch: &Sketch) {
        if self.place(hash).is_some() {
            return;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.places += 1;
            self.places - 1
        });
        self.segments.insert(u32::from(place), hash, age, now);
        let segments = &self.segments;
        self.table.insert_unique(table_hash(hash), place, |&place| {
            table_hash(segments.hash(u32::from(place)))
        });
        while self.segments.len() > self.segments.capacity() {
            let Some(place) = self.segments.evict(now, sketch) else {
                return;
            };
            self.forget(place);
        }
    }

    fn remove(&mut self, hash: u32) {
        if let Some(place) = self.place(hash) {
            self.segments.remove(place);
            self.forget(place);
        }
    }

    /// The entry's links are gone, its hash is still there.
    fn forget(&mut self, place: u32) {
        let hash = table_hash(self.segments.hash(place));
        #[expect(clippy::cast_possible_truncation, reason = "it was made from 16 bits")]
        let place = place as u16;
        if let Ok(found) = self.table.find_entry(hash, |&other| other == place) {
            found.remove();
        }
        self.free.push(place);
    }

    fn place(&self, hash: u32) -> Option<u32> {
        let is_same = |&place: &u16| self.segments.hash(u32::from(place)) == hash;
        let place = self.table.find(table_hash(hash), is_same)?;
        Some(u32::from(*place))
    }
}

fn table_hash(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
