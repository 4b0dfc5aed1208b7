//! A window for what is new and a main part for what has proved itself, under one of several rules for who stays.

use super::history::Sketch;
use super::lists::{Links, List, NONE};

/// A share for the window, and how an entry leaves it for the main part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rule {
    /// Of the entries, from 0 to 1. All of them is plain LRU.
    pub(super) window: f32,
    pub(super) admission: Admission,
}

/// When an entry at the window's end stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// If it was used more often than the entry it would replace, by more than `margin`.
    Compared { margin: u8 },
    /// If it was used this often.
    Repeated { uses: u8 },
    /// If it comes back sooner than the main part's oldest entry was used: it doesn't wait for the window's end.
    Reused,
}

/// The order under one rule, which may change at any time: the lists then move towards the new shares step by step.
#[derive(Debug, Default)]
pub(super) struct Segments {
    links: Links,
    entries: Vec<Entry>,
    lists: [List; 3],
    capacity: usize,
    window: usize,
    protected: usize,
    is_lru: bool,
    admission: Option<Admission>,
    /// Frequent candidates refused lately.
    refused: u8,
}

/// 8 bytes, beside the 8 of the links.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    used: u32,
    /// The hash's upper 30 bits, and the list.
    hash_and_list: u32,
}

const WINDOW: usize = 0;
/// Used once in the main part, or demoted from `PROTECTED`.
const PROBATION: usize = 1;
const PROTECTED: usize = 2;
/// Of the main part.
const PROTECTED_SHARE: f32 = 0.8;
/// Uses of a candidate that make it worth a try even where what it would replace was used as often.
const WARM: u8 = 6;
/// Bits of a hash that an entry keeps.
const HASH_MASK: u32 = !3;
/// How far the lists move towards their shares with each operation. More than one comes in with each, so 2 suffices.
const STEPS: usize = 2;

impl Segments {
    pub(super) fn set_rule(&mut self, rule: Rule) {
        self.admission = Some(rule.admission);
        self.is_lru = rule.window >= 1.0;
        self.resize(self.capacity, rule.window);
    }

    /// The number of entries that fit.
    pub(super) fn resize(&mut self, capacity: usize, window: f32) {
        let share = |of: usize, share: f32| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of a length"
            )]
            let share = (of as f32 * share) as usize;
            share
        };
        self.capacity = capacity;
        self.window = share(capacity, window).max(1);
        let main = capacity.saturating_sub(self.window);
        self.protected = share(main, PROTECTED_SHARE);
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn len(&self) -> usize {
        self.lists.iter().map(|list| list.len).sum()
    }

    pub(super) fn hash(&self, place: u32) -> u32 {
        self.entries[place as usize].hash_and_list & HASH_MASK
    }

    pub(super) fn used(&self, place: u32) -> u32 {
        self.entries[place as usize].used
    }

    /// `age`: how long ago the same entry was last used, if that is known.
    pub(super) fn insert(&mut self, place: u32, hash: u32, age: Option<u32>, now: u32) {
        let index = place as usize;
        if index >= self.entries.len() {
            self.entries.resize(index + 1, Entry::default());
        }
        self.entries[index] = Entry {
            used: now,
            hash_and_list: hash & HASH_MASK,
        };
        let to = match self.admission {
            Some(Admission::Reused) => {
                let main = self.lists[PROBATION].len + self.lists[PROTECTED].len;
                let has_room = self.len() < self.capacity && main + self.window < self.capacity;
                if has_room || age.is_some_and(|age| self.is_sooner(age, now)) {
                    PROBATION
                } else {
                    WINDOW
                }
            }
            _ => WINDOW,
        };
        self.push(to, place);
        self.rebalance();
    }

    pub(super) fn hit(&mut self, place: u32, now: u32) {
        let from = self.list_of(place);
        let to = match self.admission {
            _ if self.is_lru => WINDOW,
            Some(Admission::Reused) if from == WINDOW => {
                let age = now.wrapping_sub(self.used(place));
                if self.is_sooner(age, now) {
                    PROBATION
                } else {
                    WINDOW
                }
            }
            Some(Admission::Reused) => PROBATION,
            _ if from == WINDOW => WINDOW,
            _ => PROTECTED,
        };
        self.lists[from].remove(&mut self.links, place);
        self.push(to, place);
        self.entries[place as usize].used = now;
        self.rebalance();
    }

    pub(super) fn remove(&mut self, place: u32) {
        self.lists[self.list_of(place)].remove(&mut self.links, place);
    }

    pub(super) fn evict(&mut self, now: u32, sketch: &Sketch) -> Option<u32> {
        let place = self.choose(now, sketch)?;
        self.remove(place);
        Some(place)
    }

    fn choose(&mut self, now: u32, sketch: &Sketch) -> Option<u32> {
        let oldest = |order: [usize; 3]| {
            let tails = order.map(|list| self.lists[list].tail);
            tails.into_iter().find(|&tail| tail != NONE)
        };
        if self.admission == Some(Admission::Reused) {
            return oldest([WINDOW, PROBATION, PROTECTED]);
        }
        if self.is_lru {
            // What other rules put elsewhere leaves in its turn.
            let tails = self.lists.map(|list| list.tail);
            let tails = tails.into_iter().filter(|&tail| tail != NONE);
            return tails.max_by_key(|&tail| now.wrapping_sub(self.used(tail)));
        }
        if self.lists[WINDOW].len <= self.window {
            return oldest([PROBATION, PROTECTED, WINDOW]);
        }
        let victim = oldest([PROBATION, PROTECTED, WINDOW])?;
        let candidate = self.lists[WINDOW].tail;
        self.shift(WINDOW, PROBATION);
        if victim == candidate {
            return Some(candidate);
        }
        let (candidate_uses, victim_uses) = (sketch.count(self.hash(candidate)), sketch.count(self.hash(victim)));
        let is_admitted = match self.admission {
            Some(Admission::Repeated { uses: least }) => candidate_uses >= least,
            Some(Admission::Compared { margin }) => {
                candidate_uses > victim_uses + margin
                    || margin == 0 && candidate_uses >= WARM && self.is_turn()
            }
            _ => true,
        };
        Some(if is_admitted { victim } else { candidate })
    }

    /// Lets one in 128 in, so that favourites of the past that nobody asks for any more don't stay for ever.
    fn is_turn(&mut self) -> bool {
        self.refused = (self.refused + 1) % 128;
        self.refused == 0
    }

    /// Was an entry used sooner than the oldest of the main part?
    fn is_sooner(&self, age: u32, now: u32) -> bool {
        let tail = self.lists[PROBATION].tail;
        tail == NONE || age < now.wrapping_sub(self.used(tail))
    }

    fn rebalance(&mut self) {
        if self.admission == Some(Admission::Reused) {
            let main = self.capacity.saturating_sub(self.window).max(1);
            for _ in 0..STEPS {
                if self.lists[PROTECTED].len > 0 {
                    self.shift(PROTECTED, PROBATION);
                }
                if self.lists[PROBATION].len > main {
                    self.shift(PROBATION, WINDOW);
                }
            }
            return;
        }
        for _ in 0..STEPS {
            if self.lists[PROTECTED].len > self.protected {
                self.shift(PROTECTED, PROBATION);
            }
            // The last one beyond the share is a candidate: it moves when something has to leave.
            if self.lists[WINDOW].len > self.window + 1 {
                self.shift(WINDOW, PROBATION);
            }
        }
    }

    /// Moves the oldest of one list to the head of another.
    fn shift(&mut self, from: usize, to: usize) {
        if let Some(place) = self.lists[from].pop_back(&mut self.links) {
            self.push(to, place);
        }
    }

    fn push(&mut self, list: usize, place: u32) {
        let entry = &mut self.entries[place as usize];
        #[expect(clippy::cast_possible_truncation, reason = "at most 2")]
        let bits = list as u32;
        entry.hash_and_list = entry.hash_and_list & HASH_MASK | bits;
        self.lists[list].push_front(&mut self.links, place);
    }

    fn list_of(&self, place: u32) -> usize {
        (self.entries[place as usize].hash_and_list & !HASH_MASK) as usize
    }
}

/// What an order keeps of a hash.
pub(super) fn short(hash: u64) -> u32 {
    (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 & HASH_MASK
}
