//! A weighted mean of recency and frequency.

use super::Order;
use super::lists::{Links, List, reserve_place};
use crate::clock::{Clock, Tick};
use crate::eviction::{frequency, recency};

/// What has the lowest weighted mean of recency and frequency leaves first. 16 bytes a place.
///
/// Entries used about as often (within a factor of 1.42) share a list in the order of their last use; the lowest mean of
/// all is at the tail of one of a fixed number of lists.
#[derive(Debug)]
pub struct Hybrid {
    clock: Clock,
    lru_weight: f64,
    lfu_weight: f64,
    links: Links,
    entries: Vec<Entry>,
    lists: Box<[List; LISTS]>,
    len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    used: Tick,
    uses: u16,
}

const LISTS: usize = 32;

impl Hybrid {
    pub(crate) fn new(lru_weight: f64, lfu_weight: f64, clock: Clock) -> Self {
        Self {
            clock,
            lru_weight,
            lfu_weight,
            links: Links::default(),
            entries: Vec::new(),
            lists: Box::new([List::default(); LISTS]),
            len: 0,
        }
    }

    fn push(&mut self, place: u32, uses: u16) {
        self.entries[place as usize] = Entry {
            used: self.clock.now().tick(),
            uses,
        };
        self.lists[list(uses)].push_front(&mut self.links, place);
        self.len += 1;
    }

    fn unlink(&mut self, place: u32) -> u16 {
        let uses = self.entries[place as usize].uses;
        self.lists[list(uses)].remove(&mut self.links, place);
        self.len -= 1;
        uses
    }
}

/// Two for each doubling of uses.
fn list(uses: u16) -> usize {
    let doublings = f32::from(uses.max(1)).log2() * 2.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 0 to 31"
    )]
    let list = doublings as usize;
    list.min(LISTS - 1)
}

impl Order for Hybrid {
    fn insert(&mut self, place: u32, _hash: u64, _weight: u32, _cost: f32) {
        let first = Entry {
            used: self.clock.now().tick(),
            uses: 0,
        };
        reserve_place(&mut self.entries, place, first);
        self.push(place, 1);
    }

    fn hit(&mut self, place: u32) {
        let uses = self.unlink(place);
        self.push(place, uses.saturating_add(1));
    }

    fn miss(&mut self, _hash: u64) {}

    fn remove(&mut self, place: u32) {
        self.unlink(place);
    }

    fn evict(&mut self) -> Option<u32> {
        let now = self.clock.now().tick();
        let mean = |place: u32| {
            let Entry { used, uses } = self.entries[place as usize];
            let age = now.since(used).as_secs_f64();
            self.lru_weight * recency(age) + self.lfu_weight * frequency(f64::from(uses - 1))
        };
        let tails = self.lists.iter().filter(|list| list.len > 0);
        let place = tails
            .map(|list| list.tail)
            .min_by(|a, b| mean(*a).total_cmp(&mean(*b)))?;
        self.unlink(place);
        Some(place)
    }

    fn set_capacity(&mut self, _bytes: usize) {}

    fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn either_weight_decides_alone() {
        for (lru, lfu, expected) in [(1.0, 0.0, 0), (0.0, 1.0, 1)] {
            let clock = Clock::manual();
            let mut order = Hybrid::new(lru, lfu, clock.clone());
            order.insert(0, 0, 1, 1.0);
            for _ in 0..10 {
                order.hit(0);
            }
            clock.advance(Duration::from_secs(60));
            order.insert(1, 1, 1, 1.0);
            assert_eq!(order.evict(), Some(expected), "weights {lru} and {lfu}");
            assert_eq!(order.len(), 1);
        }
    }

    #[test]
    fn an_old_favourite_leaves_in_the_end() {
        let clock = Clock::manual();
        let mut order = Hybrid::new(0.5, 0.5, clock.clone());
        order.insert(0, 0, 1, 1.0);
        for _ in 0..100 {
            order.hit(0);
        }
        order.insert(1, 1, 1, 1.0);
        clock.advance(Duration::from_secs(7200));
        order.insert(2, 2, 1, 1.0);
        order.hit(2);
        assert_eq!([order.evict(), order.evict()], [Some(1), Some(0)]);
    }
}
