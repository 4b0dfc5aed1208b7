//! In which order the entries of one shard leave.

mod adaptive;
mod duel;
mod history;
mod hybrid;
mod lfu;
mod lists;
mod lru;
mod ranking;
mod sampled;

pub use adaptive::Adaptive;
pub use duel::Contest;
pub use hybrid::Hybrid;
pub use lfu::Lfu;
pub(crate) use lists::reserve_place;
pub use lru::Lru;
pub(crate) use sampled::Sampled;

use std::sync::Arc;

use crate::clock::Clock;
use crate::eviction::Ranking;

/// In which order the entries of one shard leave.
///
/// Every operation is O(1), amortised. A place is the index of an entry in the shard's slab: stable until the entry
/// leaves, reused afterwards.
#[expect(clippy::len_without_is_empty, reason = "nobody asks")]
pub trait Order: Send + std::fmt::Debug {
    /// An entry came. `hash` is of its key (well mixed), `weight` its charge in bytes, `cost` what computing it took, in
    /// microseconds; 0 if that is not known.
    fn insert(&mut self, place: u32, hash: u64, weight: u32, cost: f32);
    /// An entry was read.
    fn hit(&mut self, place: u32);
    /// A look-up found nothing under this hash. Called before the insertion that may follow.
    fn miss(&mut self, hash: u64);
    /// An entry left for another reason than `evict`: invalidated, replaced, expired.
    fn remove(&mut self, place: u32);
    /// Takes the entry that is to leave next out of the order and returns its place: `None` if there is none. It may be
    /// the one that was just inserted, which is then not admitted.
    fn evict(&mut self) -> Option<u32>;
    /// The bytes that the entries of this shard may take together. A hint, which may change.
    fn set_capacity(&mut self, bytes: usize);
    /// The number of entries.
    fn len(&self) -> usize;
}

/// One of the built-in orders.
#[derive(Debug)]
#[non_exhaustive]
pub enum AnyOrder {
    Adaptive(Box<Adaptive>),
    CostAware(Box<Adaptive>),
    Hybrid(Box<Hybrid>),
    Lfu(Lfu),
    Lru(Lru),
}

impl AnyOrder {
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "adaptive" => Self::Adaptive(Box::default()),
            "cost-aware" => Self::CostAware(Box::new(Adaptive::cost_aware())),
            "hybrid" => Self::Hybrid(Box::new(Hybrid::new(0.5, 0.5, Clock::default()))),
            "lfu" => Self::Lfu(Lfu::default()),
            "lru" => Self::Lru(Lru::default()),
            _ => return None,
        })
    }

    /// The order of one shard of those that share a `contest`. `None` for a policy that goes by its scores.
    pub(crate) fn of(ranking: Ranking, clock: &Clock, contest: &Arc<Contest>) -> Option<Self> {
        Some(match ranking {
            Ranking::Adaptive => Self::Adaptive(Box::new(Adaptive::new(Arc::clone(contest)))),
            Ranking::CostAware => Self::CostAware(Box::new(Adaptive::cost_aware())),
            Ranking::Frequency => Self::Lfu(Lfu::default()),
            Ranking::Hybrid {
                lru_weight,
                lfu_weight,
            } => Self::Hybrid(Box::new(Hybrid::new(lru_weight, lfu_weight, clock.clone()))),
            Ranking::Recency => Self::Lru(Lru::default()),
            Ranking::Score => return None,
        })
    }
}

macro_rules! each {
    ($order:expr, $inner:ident => $body:expr) => {
        match $order {
            AnyOrder::Adaptive($inner) => $body,
            AnyOrder::CostAware($inner) => $body,
            AnyOrder::Hybrid($inner) => $body,
            AnyOrder::Lfu($inner) => $body,
            AnyOrder::Lru($inner) => $body,
        }
    };
}

impl Order for AnyOrder {
    fn insert(&mut self, place: u32, hash: u64, weight: u32, cost: f32) {
        each!(self, order => order.insert(place, hash, weight, cost));
    }

    fn hit(&mut self, place: u32) {
        each!(self, order => order.hit(place));
    }

    fn miss(&mut self, hash: u64) {
        each!(self, order => order.miss(hash));
    }

    fn remove(&mut self, place: u32) {
        each!(self, order => order.remove(place));
    }

    fn evict(&mut self) -> Option<u32> {
        each!(self, order => order.evict())
    }

    fn set_capacity(&mut self, bytes: usize) {
        each!(self, order => order.set_capacity(bytes));
    }

    fn len(&self) -> usize {
        each!(self, order => order.len())
    }
}

#[cfg(test)]
mod tests;
