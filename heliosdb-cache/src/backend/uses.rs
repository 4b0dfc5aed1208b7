//! What look-ups used, noted by many at a time, for one to take.

use std::sync::atomic::AtomicUsize;

use crate::sync::{CountU64, Ordering};

/// Short lists that readers append to while they share a lock, and that who has the lock alone takes. Threads take turns
/// on them, so that two that read the same shard seldom write to the same memory.
///
/// If a list is full, uses are counted and not kept: that happens only while nobody gets the lock alone, and then what was
/// kept is sample enough.
#[derive(Debug, Default)]
pub(super) struct Uses([List; LISTS]);

const LISTS: usize = 4;

#[derive(Debug)]
#[repr(align(128))]
struct List {
    /// Hits in the lower half, misses in the upper; together the next free slot.
    counts: CountU64,
    /// The place of a hit, or half the hash of a miss, in the lower half; in the upper what was saved, or [`MISS`].
    slots: [CountU64; LEN],
}

const LEN: usize = 15;
/// Of a number that is none: no cost has these bits.
const MISS: u64 = u32::MAX as u64;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Use {
    /// In milliseconds.
    Hit {
        place: u32,
        cost_ms: f32,
    },
    Miss {
        half: u32,
    },
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Taken {
    pub(super) hits: u64,
    pub(super) misses: u64,
    /// By all hits; what those saved that were not kept is estimated by the others.
    pub(super) saved_ms: f64,
}

impl Default for List {
    fn default() -> Self {
        Self {
            counts: CountU64::new(0),
            slots: std::array::from_fn(|_| CountU64::new(0)),
        }
    }
}

impl Uses {
    /// To be called while the lock is shared. True if it is time for somebody to take them.
    #[inline]
    pub(super) fn push(&self, one: Use) -> bool {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static LIST: usize = THREADS.fetch_add(1, Ordering::Relaxed) % LISTS;
        }
        self.0[LIST.with(|list| *list)].push(one)
    }

    /// To be called by who has the lock alone.
    pub(super) fn take(&self, mut each: impl FnMut(Use)) -> Taken {
        let mut sum = Taken::default();
        for list in &self.0 {
            let taken = list.take(&mut each);
            sum.hits += taken.hits;
            sum.misses += taken.misses;
            sum.saved_ms += taken.saved_ms;
        }
        sum
    }
}

impl List {
    #[inline]
    fn push(&self, one: Use) -> bool {
        let (count, packed) = match one {
            Use::Hit { place, cost_ms } => {
                let cost = cost_ms.max(0.0).to_bits();
                (1, u64::from(place) | u64::from(cost) << 32)
            }
            Use::Miss { half } => (1 << 32, u64::from(half) | MISS << 32),
        };
        let before = self.counts.fetch_add(count, Ordering::Relaxed);
        let at = halves(before);
        let at = u64::from(at.0) + u64::from(at.1);
        if let Some(slot) = usize::try_from(at).ok().and_then(|at| self.slots.get(at)) {
            slot.store(packed, Ordering::Relaxed);
        }
        // And again after as many that were not kept.
        at % LEN as u64 == LEN as u64 - 1
    }

    fn take(&self, each: &mut impl FnMut(Use)) -> Taken {
        let counts = self.counts.load(Ordering::Relaxed);
        if counts == 0 {
            return Taken::default();
        }
        self.counts.store(0, Ordering::Relaxed);
        let (hits, misses) = halves(counts);
        let (mut kept, mut saved_ms) = (0_u32, 0.0);
        let len = (hits as usize + misses as usize).min(LEN);
        for slot in &self.slots[..len] {
            let (low, high) = halves(slot.load(Ordering::Relaxed));
            if u64::from(high) == MISS {
                each(Use::Miss { half: low });
            } else {
                let cost_ms = f32::from_bits(high);
                kept += 1;
                saved_ms += f64::from(cost_ms);
                each(Use::Hit {
                    place: low,
                    cost_ms,
                });
            }
        }
        Taken {
            hits: hits.into(),
            misses: misses.into(),
            saved_ms: saved_ms * f64::from(hits) / f64::from(kept.max(1)),
        }
    }
}

/// The lower and the upper.
fn halves(word: u64) -> (u32, u32) {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    let low = word as u32;
    let high = (word >> 32) as u32;
    (low, high)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn taken(uses: &Uses) -> (Vec<Use>, Taken) {
        let mut all = Vec::new();
        let taken = uses.take(|one| all.push(one));
        (all, taken)
    }

    #[test]
    fn all_are_taken_in_their_order_and_once() {
        let uses = Uses::default();
        let some = [
            Use::Hit {
                place: 7,
                cost_ms: 2.5,
            },
            Use::Miss { half: u32::MAX },
            Use::Hit {
                place: 0,
                cost_ms: f32::INFINITY,
            },
        ];
        for one in some {
            assert!(!uses.push(one));
        }
        let (all, counted) = taken(&uses);
        assert_eq!(all, some);
        assert_eq!((counted.hits, counted.misses), (2, 1));
        assert_eq!(taken(&uses), (vec![], Taken::default()));
    }

    #[test]
    fn what_is_not_kept_is_counted_and_what_it_saved_estimated() {
        let uses = Uses::default();
        let mut full = 0;
        for place in 0..1000 {
            full += u32::from(uses.push(Use::Hit {
                place,
                cost_ms: 2.0,
            }));
        }
        assert_eq!(full, 66, "somebody is asked now and then");
        let (all, counted) = taken(&uses);
        assert_eq!(all.len(), LEN);
        assert_eq!((counted.hits, counted.saved_ms), (1000, 2000.0));
    }

    #[test]
    fn a_cost_that_is_no_number_is_no_miss() {
        let uses = Uses::default();
        uses.push(Use::Hit {
            place: 1,
            cost_ms: f32::from_bits(u32::MAX),
        });
        assert!(matches!(taken(&uses).0[..], [Use::Hit { place: 1, .. }]));
    }
}
