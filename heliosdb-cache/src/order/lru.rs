//! Least recently used.

use super::Order;
use super::lists::{Links, List};

/// What was not read for longest leaves first. 8 bytes a place.
#[derive(Debug, Default)]
pub struct Lru {
    links: Links,
    list: List,
}

impl Order for Lru {
    fn insert(&mut self, place: u32, _hash: u64, _weight: u32, _cost: f32) {
        self.list.push_front(&mut self.links, place);
    }

    fn hit(&mut self, place: u32) {
        self.list.remove(&mut self.links, place);
        self.list.push_front(&mut self.links, place);
    }

    fn miss(&mut self, _hash: u64) {}

    fn remove(&mut self, place: u32) {
        self.list.remove(&mut self.links, place);
    }

    fn evict(&mut self) -> Option<u32> {
        self.list.pop_back(&mut self.links)
    }

    fn set_capacity(&mut self, _bytes: usize) {}

    fn len(&self) -> usize {
        self.list.len
    }
}
