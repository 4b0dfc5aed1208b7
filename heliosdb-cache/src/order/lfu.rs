//! Least frequently used, with ageing.

use super::Order;
use super::lists::{Links, List, reserve_place};

/// What was used least often leaves first; among entries of the same number of uses, what was not used for longest. All
/// numbers of uses halve after `HALF_LIFE` uses an entry, so that favourites of the past leave. 9 bytes a place.
#[derive(Debug)]
pub struct Lfu {
    links: Links,
    /// Uses, by place.
    uses: Vec<u8>,
    /// By uses.
    lists: Box<[List; USES_MAX + 1]>,
    len: usize,
    /// Uses since the numbers were halved.
    since: usize,
}

/// Numbers of uses that are told apart.
const USES_MAX: usize = 63;
const HALF_LIFE: usize = 16;

impl Default for Lfu {
    fn default() -> Self {
        Self {
            links: Links::default(),
            uses: Vec::new(),
            lists: Box::new([List::default(); USES_MAX + 1]),
            len: 0,
            since: 0,
        }
    }
}

impl Order for Lfu {
    fn insert(&mut self, place: u32, _hash: u64, _weight: u32, _cost: f32) {
        reserve_place(&mut self.uses, place, 0);
        self.push(place, 1);
        self.len += 1;
        self.age();
    }

    fn hit(&mut self, place: u32) {
        self.unlink(place);
        let uses = self.uses[place as usize];
        self.push(place, uses.saturating_add(1));
        self.age();
    }

    fn miss(&mut self, _hash: u64) {}

    fn remove(&mut self, place: u32) {
        self.unlink(place);
        self.len -= 1;
    }

    fn evict(&mut self) -> Option<u32> {
        let list = self.lists.iter_mut().find(|list| list.len > 0)?;
        let place = list.pop_back(&mut self.links)?;
        self.len -= 1;
        Some(place)
    }

    fn set_capacity(&mut self, _bytes: usize) {}

    fn len(&self) -> usize {
        self.len
    }
}

impl Lfu {
    fn push(&mut self, place: u32, uses: u8) {
        let uses = usize::from(uses).min(USES_MAX);
        #[expect(clippy::cast_possible_truncation, reason = "at most USES_MAX")]
        let kept = uses as u8;
        self.uses[place as usize] = kept;
        self.lists[uses].push_front(&mut self.links, place);
    }

    fn unlink(&mut self, place: u32) {
        let uses = usize::from(self.uses[place as usize]);
        self.lists[uses].remove(&mut self.links, place);
    }

    /// Halves all numbers once in a while: one step for each entry, after many for each.
    fn age(&mut self) {
        self.since += 1;
        if self.since < HALF_LIFE * self.len.max(1) {
            return;
        }
        self.since = 0;
        for uses in 2..=USES_MAX {
            // From the oldest on, so that they keep their order; what is in the lower list was used less.
            let mut list = std::mem::take(&mut self.lists[uses]);
            while let Some(place) = list.pop_back(&mut self.links) {
                #[expect(clippy::cast_possible_truncation, reason = "at most USES_MAX")]
                self.push(place, (uses / 2) as u8);
            }
        }
    }
}
