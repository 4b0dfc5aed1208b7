//! The most time saved for each byte.

use super::Order;
use super::history::Sketch;
use super::lists::{Links, List, NONE};
use super::segments::short;

/// Ranks an entry by L + uses * cost / weight, where L is the rank of what was evicted last: an entry that nobody asks
/// for any more is overtaken by what comes later (GreedyDual-Size-Frequency).
///
/// The second term is rounded to a power of two, and entries of one power share a list. The oldest of a list ranks
/// lowest in it, so that the lowest of all is the tail of one of few lists (CAMP): no heap, nothing sorted.
#[derive(Debug)]
pub struct CostAware {
    links: Links,
    entries: Vec<Entry>,
    classes: Box<[List; CLASSES]>,
    /// A bit for each class that is not empty.
    occupied: u128,
    /// L.
    floor: f64,
    sketch: Sketch,
    len: usize,
    /// Of the entries with a known cost, in microseconds.
    mean_cost: f32,
}

/// 16 bytes, beside the 8 of the links.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// L when the entry was last used.
    floor: f64,
    hash: u32,
    /// The logarithm of cost by weight, in steps of `FINE`.
    density: i16,
    uses: u8,
    class: u8,
}

/// As many as bits of `occupied`.
const CLASSES: usize = 128;
/// The class of a value of 1.
const CLASS_OF_ONE: f32 = 56.0;
/// Classes for each doubling of a value.
const STEPS: f32 = 2.0;
const FINE: f32 = 64.0;
const USES_MAX: u8 = 250;

impl Default for CostAware {
    fn default() -> Self {
        Self {
            links: Links::default(),
            entries: Vec::new(),
            classes: Box::new([List::default(); CLASSES]),
            occupied: 0,
            floor: 0.0,
            sketch: Sketch::default(),
            len: 0,
            mean_cost: 0.0,
        }
    }
}

impl Order for CostAware {
    fn insert(&mut self, place: u32, hash: u64, weight: u32, cost: f32) {
        let index = place as usize;
        if index >= self.entries.len() {
            self.entries.resize(index + 1, Entry::default());
            self.sketch.resize(self.entries.len());
        }
        self.entries[index] = Entry {
            floor: 0.0,
            hash: short(hash),
            density: (FINE * (self.known_cost(cost) / weight.max(1) as f32).log2()) as i16,
            uses: self.sketch.count(short(hash)).max(1),
            class: 0,
        };
        self.len += 1;
        self.push(place);
    }

    fn hit(&mut self, place: u32) {
        self.unlink(place);
        let entry = &mut self.entries[place as usize];
        entry.uses = (entry.uses + 1).min(USES_MAX);
        self.sketch.add(entry.hash);
        self.push(place);
    }

    fn miss(&mut self, hash: u64) {
        self.sketch.add(short(hash));
    }

    fn remove(&mut self, place: u32) {
        self.unlink(place);
        self.len -= 1;
    }

    fn evict(&mut self) -> Option<u32> {
        let mut lowest: Option<(f64, u32)> = None;
        let mut left = self.occupied;
        while left != 0 {
            let class = left.trailing_zeros() as u8;
            left &= left - 1;
            let place = self.classes[usize::from(class)].tail;
            let rank = self.entries[place as usize].floor + value(class);
            if lowest.is_none_or(|(least, _)| rank < least) {
                lowest = Some((rank, place));
            }
        }
        let (rank, place) = lowest?;
        self.floor = rank;
        self.remove(place);
        Some(place)
    }

    fn set_capacity(&mut self, _bytes: usize) {}

    fn len(&self) -> usize {
        self.len
    }
}

impl CostAware {
    fn push(&mut self, place: u32) {
        let entry = &mut self.entries[place as usize];
        let log2 = f32::from(entry.density) / FINE + f32::from(entry.uses).log2();
        entry.class = (log2 * STEPS + CLASS_OF_ONE).clamp(0.0, (CLASSES - 1) as f32) as u8;
        entry.floor = self.floor;
        self.classes[usize::from(entry.class)].push_front(&mut self.links, place);
        self.occupied |= 1 << entry.class;
    }

    fn unlink(&mut self, place: u32) {
        let class = self.entries[place as usize].class;
        let list = &mut self.classes[usize::from(class)];
        list.remove(&mut self.links, place);
        if list.head == NONE {
            self.occupied &= !(1 << class);
        }
    }

    /// `cost`, or the mean of the others if it is not known.
    fn known_cost(&mut self, cost: f32) -> f32 {
        /// The mean is of about so many entries.
        const ENTRIES: f32 = 256.0;
        let is_known = cost.is_finite() && cost > 0.0;
        match (is_known, self.mean_cost > 0.0) {
            (true, true) => self.mean_cost += (cost - self.mean_cost) / ENTRIES,
            (true, false) => self.mean_cost = cost,
            (false, true) => return self.mean_cost,
            (false, false) => return 1.0,
        }
        cost
    }
}

/// What all entries of a class count for.
fn value(class: u8) -> f64 {
    f64::from((f32::from(class) - CLASS_OF_ONE) / STEPS).exp2()
}
