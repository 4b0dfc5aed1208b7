//! What an order remembers of entries that are not there, or not there yet.

/// How often hashes were used lately: a count-min sketch of 4-bit counters that are halved from time to time.
///
/// Conservative: only the smallest counters of a hash grow, which keeps what collides apart for longer.
#[derive(Debug, Default)]
pub(super) struct Sketch {
    lines: Vec<Line>,
    additions: usize,
    period: usize,
}

/// 16 counters a word; what a processor fetches at once. All counters of a hash are in one line.
type Line = [u64; 8];

/// Counters halve after this many additions an entry.
const PERIOD: usize = 10;
/// So that a few entries have a memory that is worth something.
const PERIOD_MIN: usize = 1280;
const ROWS: usize = 4;
const COUNT_MAX: u8 = 15;

impl Sketch {
    /// `entries` fit.
    pub(super) fn set_capacity(&mut self, entries: usize) {
        self.period = (entries * PERIOD).max(PERIOD_MIN);
    }

    /// Makes room for what is needed beside `entries` entries, which are there.
    pub(super) fn grow(&mut self, entries: usize) {
        if entries <= self.lines.len() * LINE_ENTRIES && !self.lines.is_empty() {
            return;
        }
        let lines = (entries / LINE_ENTRIES).next_power_of_two().max(32);
        while self.lines.len() < lines {
            // An index gets one more bit at its upper end, so that each half begins with the counts there were.
            let half = self.lines.clone();
            self.lines.extend(half);
            if self.lines.is_empty() {
                self.lines = vec![[0; 8]; lines];
            }
        }
    }

    pub(super) fn add(&mut self, hash: u32) {
        let counters = Counters::of(hash);
        let Some(line) = self.line_mut(hash) else {
            return;
        };
        let counts = counters.read(line);
        let count = least(counts);
        if count == COUNT_MAX {
            return;
        }
        for ((word, shift), own) in counters.0.into_iter().zip(counts) {
            line[word] += u64::from(own == count) << shift;
        }
        self.additions += 1;
        if self.additions >= self.period {
            self.additions /= 2;
            for word in self.lines.as_flattened_mut() {
                *word = *word >> 1 & 0x7777_7777_7777_7777;
            }
        }
    }

    pub(super) fn count(&self, hash: u32) -> u8 {
        let line = self.lines.get(self.index(hash));
        line.map_or(0, |line| least(Counters::of(hash).read(line)))
    }

    fn line_mut(&mut self, hash: u32) -> Option<&mut Line> {
        let index = self.index(hash);
        self.lines.get_mut(index)
    }

    fn index(&self, hash: u32) -> usize {
        let mixed = u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 35) as usize & self.lines.len().wrapping_sub(1)
    }
}

/// Where the counters of a hash are within its line: word and bit. Each row has two words of it.
struct Counters([(usize, u32); ROWS]);

impl Counters {
    fn of(hash: u32) -> Self {
        let bits = u64::from(hash).wrapping_mul(0xd6e8_feb8_6659_fd93);
        Self(std::array::from_fn(|row| {
            let bits = bits >> (20 + 8 * row);
            // Less than 8, as the compiler sees.
            let word = (2 * row + (bits & 1) as usize) & 7;
            (word, (bits >> 1 & 15) as u32 * 4)
        }))
    }

    fn read(&self, line: &Line) -> [u8; ROWS] {
        #[expect(clippy::cast_possible_truncation, reason = "the lower bits")]
        let read = |(word, shift): (usize, u32)| (line[word] >> shift) as u8 & COUNT_MAX;
        self.0.map(read)
    }
}

fn least([a, b, c, d]: [u8; ROWS]) -> u8 {
    a.min(b).min(c.min(d))
}

/// Entries that one line of counters serves: 16 counters an entry.
const LINE_ENTRIES: usize = 8;

/// When entries that left were last used: sets of four, of which the oldest makes room.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    /// The upper half of a slot is a tag, the lower one a time. 0 is free.
    sets: Vec<[u32; 4]>,
    entries: usize,
    /// A time is kept without its lowest bits.
    shift: u32,
}

/// Ghosts for each entry.
const GHOSTS: usize = 2;

impl Ghosts {
    /// Makes room for what is needed beside `entries` entries. Forgets everything if that is much more or less than before.
    pub(super) fn resize(&mut self, entries: usize) {
        if entries > self.entries + self.entries / 2 || entries < self.entries / 2 {
            self.entries = entries;
            self.sets = vec![[0; 4]; (entries * GHOSTS).div_ceil(4)];
            // The age of any ghost is far below 2^16 units.
            self.shift = (entries / 256).max(1).ilog2();
        }
    }

    pub(super) fn insert(&mut self, hash: u32, used: u32, now: u32) {
        let (shift, Some((set, tag))) = (self.shift, self.set(hash)) else {
            return;
        };
        let now = now >> shift;
        let age = |slot: u32| match slot {
            0 => u32::MAX,
            slot => now.wrapping_sub(slot) & 0xffff,
        };
        let same = set.iter().position(|&slot| slot >> 16 == tag);
        let oldest = || (0..4).max_by_key(|&at| age(set[at]));
        if let Some(at) = same.or_else(oldest) {
            set[at] = tag << 16 | used >> shift & 0xffff;
        }
    }

    /// How long ago an entry was last used that left.
    pub(super) fn age(&mut self, hash: u32, now: u32) -> Option<u32> {
        let shift = self.shift;
        let (set, tag) = self.set(hash)?;
        let slot = set.iter().find(|&&slot| slot >> 16 == tag)?;
        Some(((now >> shift).wrapping_sub(*slot) & 0xffff) << shift)
    }

    pub(super) fn remove(&mut self, hash: u32) {
        if let Some((set, tag)) = self.set(hash) {
            for slot in set.iter_mut().filter(|slot| **slot >> 16 == tag) {
                *slot = 0;
            }
        }
    }

    fn set(&mut self, hash: u32) -> Option<(&mut [u32; 4], u32)> {
        let mixed = u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let index = ((mixed >> 32) * self.sets.len() as u64) >> 32;
        // Never 0, and of bits that don't choose the set.
        let tag = (mixed >> 16 & 0xffff) as u32 | 1;
        let set = self.sets.get_mut(index as usize)?;
        Some((set, tag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_grow_with_uses_and_halve() {
        let mut sketch = Sketch::default();
        sketch.set_capacity(100);
        sketch.grow(100);
        for _ in 0..8 {
            sketch.add(7);
        }
        assert_eq!((sketch.count(7), sketch.count(8)), (8, 0));
        sketch.set_capacity(10_000);
        sketch.grow(10_000);
        assert_eq!(sketch.count(7), 8, "growth forgets nothing");
        for hash in 0..100_000 {
            sketch.add(1000 + hash * 0x9e37);
        }
        let count = sketch.count(7);
        assert!((4..8).contains(&count), "{count}");
    }

    #[test]
    fn ghosts_know_their_age_until_younger_ones_need_the_room() {
        let mut ghosts = Ghosts::default();
        ghosts.resize(100);
        let hash = |key: u32| (key + 1).wrapping_mul(0x9e37_79b9);
        ghosts.insert(hash(1), 70, 75);
        assert_eq!(ghosts.age(hash(1), 100), Some(30));
        assert_eq!(ghosts.age(hash(2), 100), None);
        for key in 100..1100 {
            ghosts.insert(hash(key), key, key);
        }
        assert_eq!(ghosts.age(hash(1), 1100), None);
        assert_eq!(ghosts.age(hash(1099), 1100), Some(1));
        ghosts.remove(hash(1099));
        assert_eq!(ghosts.age(hash(1099), 1100), None);
    }

    #[test]
    fn the_oldest_ghost_of_a_set_makes_room() {
        let mut ghosts = Ghosts::default();
        ghosts.resize(2);
        for key in 0..5 {
            ghosts.insert(key, key, key);
        }
        let known = [0, 1, 2, 3, 4].map(|key| ghosts.age(key, 5).is_some());
        assert_eq!(known, [false, true, true, true, true]);
    }
}
