//! One trace, one capacity, one cache: get, then put on a miss.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::trace::Trace;

/// A cache to feed a trace to.
pub(super) trait Simulated {
    fn get(&mut self, key: u64) -> bool;
    fn put(&mut self, key: u64, weight: u32, cost: f32);
}

/// Shares, from 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub(super) struct Ratios {
    /// Of the requests.
    pub(super) hits: f64,
    /// Of the bytes requested.
    pub(super) bytes: f64,
    /// Of what all requests would cost without a cache.
    pub(super) cost: f64,
}

pub(super) fn run(trace: &Trace, cache: &mut dyn Simulated) -> Ratios {
    let mut sums = Sums::default();
    for &object in &trace.requests {
        let (size, cost) = (trace.sizes[object as usize], trace.costs[object as usize]);
        let key = u64::from(object);
        let is_hit = cache.get(key);
        if !is_hit {
            cache.put(key, size, cost);
        }
        sums.add(is_hit, size, cost);
    }
    sums.ratios()
}

/// The most hits that any order can have that may also refuse an entry, for objects of size 1: the entry that is needed
/// last, or never again, leaves.
pub(super) fn belady(trace: &Trace, capacity: u64) -> f64 {
    let never = u32::MAX;
    let mut next_use = vec![never; trace.requests.len()];
    let mut seen = vec![never; trace.sizes.len()];
    for (at, &object) in trace.requests.iter().enumerate().rev() {
        next_use[at] = seen[object as usize];
        seen[object as usize] = u32::try_from(at).expect("fewer than 2^32 requests");
    }
    // By object: its next use if it is in the cache.
    let mut cached = vec![None::<u32>; trace.sizes.len()];
    let mut heap = BinaryHeap::new();
    let (mut entries, mut hits) = (0, 0_u64);
    for (&object, &next) in trace.requests.iter().zip(&next_use) {
        let was_cached = cached[object as usize].replace(next).is_some();
        hits += u64::from(was_cached);
        entries += u64::from(!was_cached);
        heap.push((next, Reverse(object)));
        while entries > capacity {
            let Some((next, Reverse(object))) = heap.pop() else {
                break;
            };
            // Else the heap's item is of an earlier use.
            if cached[object as usize] == Some(next) {
                cached[object as usize] = None;
                entries -= 1;
            }
        }
    }
    hits as f64 / trace.requests.len() as f64
}

#[derive(Default)]
struct Sums {
    hits: [f64; 3],
    all: [f64; 3],
}

impl Sums {
    fn add(&mut self, is_hit: bool, size: u32, cost: f32) {
        let values = [1.0, f64::from(size), f64::from(cost)];
        for ((hit, all), value) in self.hits.iter_mut().zip(&mut self.all).zip(values) {
            *all += value;
            if is_hit {
                *hit += value;
            }
        }
    }

    fn ratios(&self) -> Ratios {
        let share = |at: usize| self.hits[at] / self.all[at].max(f64::MIN_POSITIVE);
        Ratios {
            hits: share(0),
            bytes: share(1),
            cost: share(2),
        }
    }
}
