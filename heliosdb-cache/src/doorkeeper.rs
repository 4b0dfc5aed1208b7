//! Was a question asked before, lately?

use crate::sync::{AtomicUsize, CountU64, Ordering};

/// Two Bloom filters: what is new is marked in the younger; when that is full, the older is cleared and takes its place.
/// A question is remembered for one to two times as many others as were expected.
///
/// No locks. Two threads may change generations at the same time, or mark while one is cleared: then some questions are
/// forgotten early, and their answers are stored one question later.
#[derive(Debug)]
pub(crate) struct Doorkeeper {
    generations: [Box<[CountU64]>; 2],
    /// Marks until now. Which generation is the younger follows from it.
    marks: AtomicUsize,
    expected: usize,
}

/// With 4 marks in 8 bits a question, 2.4 % of the questions are taken for others; less while a generation is young.
const BITS: usize = 8;
const MARKS: u32 = 4;

impl Doorkeeper {
    /// Remembers about so many questions, at two bytes each.
    pub(crate) fn new(expected: usize) -> Self {
        let expected = expected.clamp(64, 1 << 28);
        let words = (expected * BITS / 64).next_power_of_two();
        let generation = || (0..words).map(|_| CountU64::new(0)).collect();
        Self {
            generations: [generation(), generation()],
            marks: AtomicUsize::new(0),
            expected,
        }
    }

    /// True if the question was asked before; it was, from now on.
    pub(crate) fn admit(&self, hash: u64) -> bool {
        let marks = self.marks.load(Ordering::Relaxed);
        let young = marks / self.expected % 2;
        if self.is_marked(young, hash) {
            return true;
        }
        let was_known = self.is_marked(1 - young, hash);
        for (word, bit) in self.bits(hash) {
            self.generations[young][word].fetch_or(bit, Ordering::Relaxed);
        }
        let marks = self.marks.fetch_add(1, Ordering::Relaxed) + 1;
        if marks.is_multiple_of(self.expected) {
            // The older one is the younger from now on.
            for word in &self.generations[1 - young] {
                word.store(0, Ordering::Relaxed);
            }
        }
        was_known
    }

    fn is_marked(&self, generation: usize, hash: u64) -> bool {
        let generation = &self.generations[generation];
        self.bits(hash)
            .all(|(word, bit)| generation[word].load(Ordering::Relaxed) & bit != 0)
    }

    /// Words and bits, the places being those of double hashing (Kirsch, Mitzenmacher, "Less Hashing, Same
    /// Performance", ESA 2006).
    fn bits(&self, hash: u64) -> impl Iterator<Item = (usize, u64)> + use<> {
        let mask = self.generations[0].len() - 1;
        let step = hash.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..MARKS).map(move |mark| {
            let at = hash
                .wrapping_add(step.wrapping_mul(mark.into()))
                .rotate_left(17);
            let word = (at >> 6) as usize & mask;
            (word, 1 << (at & 63))
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn hash(n: u64) -> u64 {
        let mixed = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }

    #[test]
    fn the_second_time_is_known_and_the_first_is_not() {
        let doorkeeper = Doorkeeper::new(10_000);
        let mistaken = (0..10_000).filter(|n| doorkeeper.admit(hash(*n))).count();
        assert!(mistaken < 250, "{mistaken} of 10000 were taken for others");
        assert!((0..10_000).all(|n| doorkeeper.admit(hash(n))), "known");
    }

    #[test]
    fn what_was_asked_long_ago_is_forgotten() {
        let doorkeeper = Doorkeeper::new(1000);
        for n in 0..100 {
            doorkeeper.admit(hash(n));
        }
        for n in 10_000..13_000 {
            doorkeeper.admit(hash(n));
        }
        let known = (0..100).filter(|n| doorkeeper.admit(hash(*n))).count();
        assert!(known < 15, "{known} of 100");
    }

    #[test]
    fn what_was_asked_in_the_generation_before_is_known() {
        let doorkeeper = Doorkeeper::new(1000);
        for n in 0..1500 {
            doorkeeper.admit(hash(n));
        }
        // Those of the older one are marked anew, which makes it older still.
        let known = (700..1500).filter(|n| doorkeeper.admit(hash(*n))).count();
        assert_eq!(known, 800);
    }

    #[test]
    fn threads_may_use_it_at_the_same_time() {
        let doorkeeper = Doorkeeper::new(1 << 16);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let doorkeeper = &doorkeeper;
                scope.spawn(move || {
                    for n in 0..10_000 {
                        doorkeeper.admit(hash(thread * 10_000 + n));
                    }
                });
            }
        });
        assert!((0..40_000).all(|n| doorkeeper.admit(hash(n))));
    }
}
