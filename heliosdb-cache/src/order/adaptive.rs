//! The default: the order among several that has had the most hits lately.

use super::Order;
use super::duel::{Duel, FIRST_RULE, RULES};
use super::history::{Ghosts, Sketch};
use super::segments::{Segments, short};

#[derive(Debug)]
pub struct Adaptive {
    segments: Segments,
    sketch: Sketch,
    ghosts: Ghosts,
    duel: Duel,
    rule: usize,
    /// Insertions until now.
    now: u32,
    bytes: usize,
    /// Of an entry, in bytes.
    mean_weight: f32,
    /// The number of entries that fit was seen, and need not be guessed from their weight.
    is_full: bool,
}

impl Default for Adaptive {
    fn default() -> Self {
        let mut segments = Segments::default();
        segments.set_rule(RULES[FIRST_RULE]);
        Self {
            segments,
            sketch: Sketch::default(),
            ghosts: Ghosts::default(),
            duel: Duel::default(),
            rule: FIRST_RULE,
            now: 0,
            bytes: 0,
            mean_weight: 0.0,
            is_full: false,
        }
    }
}

impl Order for Adaptive {
    fn insert(&mut self, place: u32, hash: u64, weight: u32, _cost: f32) {
        let hash = short(hash);
        self.now = self.now.wrapping_add(1);
        if !self.is_full {
            self.guess_capacity(weight);
        }
        let age = self.ghosts.age(hash, self.now);
        if age.is_some() {
            self.ghosts.remove(hash);
        }
        self.segments.insert(place, hash, age, self.now);
        if self.duel.is_sampled(hash) {
            self.duel.insert(hash, age, self.now, &self.sketch);
        }
    }

    fn hit(&mut self, place: u32) {
        let hash = self.segments.hash(place);
        let age = self.now.wrapping_sub(self.segments.used(place));
        self.sketch.add(hash);
        self.segments.hit(place, self.now);
        if self.duel.is_sampled(hash) {
            self.request(hash, true, Some(age));
            // A miniature that has not found the entry would have fetched it.
            self.duel.insert(hash, Some(age), self.now, &self.sketch);
        }
    }

    fn miss(&mut self, hash: u64) {
        let hash = short(hash);
        self.sketch.add(hash);
        if self.duel.is_sampled(hash) {
            let age = self.ghosts.age(hash, self.now);
            self.request(hash, false, age);
        }
    }

    fn remove(&mut self, place: u32) {
        let hash = self.segments.hash(place);
        self.segments.remove(place);
        if self.duel.is_sampled(hash) {
            self.duel.remove(hash);
        }
    }

    fn evict(&mut self) -> Option<u32> {
        let place = self.segments.evict(self.now, &self.sketch)?;
        let (hash, used) = (self.segments.hash(place), self.segments.used(place));
        self.ghosts.insert(hash, used, self.now);
        self.is_full = true;
        self.resize(self.segments.len());
        Some(place)
    }

    fn set_capacity(&mut self, bytes: usize) {
        self.bytes = bytes;
        self.is_full = false;
    }

    fn len(&self) -> usize {
        self.segments.len()
    }
}

impl Adaptive {
    fn request(&mut self, hash: u32, is_hit: bool, age: Option<u32>) {
        let rule = self.duel.request(hash, is_hit, age, self.now);
        if rule != self.rule {
            self.rule = rule;
            self.segments.set_rule(RULES[rule]);
        }
    }

    fn guess_capacity(&mut self, weight: u32) {
        /// The mean is of about so many entries.
        const ENTRIES: f32 = 64.0;
        let weight = weight.max(1) as f32;
        if self.mean_weight == 0.0 {
            self.mean_weight = weight;
        }
        self.mean_weight += (weight - self.mean_weight) / ENTRIES;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and saturates"
        )]
        self.resize((self.bytes as f32 / self.mean_weight) as usize);
    }

    /// `entries` fit.
    fn resize(&mut self, entries: usize) {
        let entries = entries.max(1);
        if entries != self.segments.capacity() {
            self.segments.resize(entries, RULES[self.rule].window);
            self.sketch.resize(entries);
            self.ghosts.resize(entries);
            self.duel.resize(entries);
        }
    }
}
