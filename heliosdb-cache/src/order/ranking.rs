//! The entries of a cache in the order that one of several rules gives them. The rule may change at any time.

use super::history::Sketch;
use super::lists::{Link, Linked, List, NONE, reserve_place};

/// Which entry leaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rule {
    /// What was not used for longest.
    Recency,
    /// What is new waits in a window of this share of the entries. At its end it stays if uses * value exceeds that of
    /// the entry it would replace, which counts `margin` uses more (W-TinyLFU).
    Compared { window: f32, margin: u8 },
    /// The same window; at its end an entry stays if it was used this often (2Q, with uses for ghosts).
    Repeated { window: f32, uses: u8 },
    /// Leaves the window for the main part as soon as it is used again after a shorter time than the main part's oldest
    /// entry was not used for (LIRS).
    Reused { window: f32 },
    /// What has the lowest L + uses * value, L being that of what left last (GreedyDual-Size-Frequency). The second term
    /// is rounded to a power of two; entries of one power share a list, and the lowest of all is the tail of one of a
    /// fixed number of lists (CAMP): no heap, nothing sorted.
    Valued,
}

impl Rule {
    fn window(self) -> f32 {
        match self {
            Self::Compared { window, .. }
            | Self::Repeated { window, .. }
            | Self::Reused { window } => window,
            Self::Recency | Self::Valued => 1.0,
        }
    }
}

/// What an order is told of an entry that comes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    pub(super) hash: u32,
    /// In bytes.
    pub(super) weight: Log,
    /// Cost by weight, in microseconds a byte.
    pub(super) value: Log,
    /// How long ago the same entry was last used, if that is known.
    pub(super) age: Option<u32>,
    pub(super) now: u32,
}

#[derive(Debug)]
pub(super) struct Ranking {
    rule: Rule,
    entries: Entries,
    lists: Box<[List; LISTS]>,
    /// A bit for each list that is not empty.
    occupied: u64,
    len: usize,
    /// The number of entries that fit, in all and in the parts.
    capacity: usize,
    window: usize,
    protected: usize,
    /// L.
    floor: f32,
    /// Since L was lowered.
    evictions: usize,
    /// Frequent candidates refused lately.
    refused: u8,
}

#[derive(Debug, Default)]
struct Entries(Vec<Entry>);

/// 24 bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    link: Link,
    hash: u32,
    used: u32,
    /// L when the entry was last used.
    floor: f32,
    weight: Log,
    value: Log,
    uses: u8,
    list: u8,
}

/// An entry stays where it is in its list until so many insertions, by number of entries, have passed since it was moved.
const STILL: usize = 32;
const LISTS: usize = 64;
const WINDOW: u8 = 0;
/// Used once in the main part, or demoted from `PROTECTED`.
const PROBATION: u8 = 1;
const PROTECTED: u8 = 2;
/// The first list of [`Rule::Valued`].
const CLASSES: u8 = 3;
/// The class of a value of 1.
const CLASS_OF_ONE: f32 = 30.0;
/// Of the main part.
const PROTECTED_SHARE: f32 = 0.8;
/// How far entries move towards the lists they belong to with each operation. More than one comes in with none, so 2
/// suffice.
const STEPS: usize = 2;
/// Uses of a candidate that make it worth a try even where what it would replace was used as often.
const WARM: u8 = 6;
/// After so many evictions an entry, L is subtracted from everything, so that it doesn't swallow what is added to it.
const LOWERED_EVERY: usize = 4;

impl Ranking {
    pub(super) fn new(rule: Rule) -> Self {
        Self {
            rule,
            entries: Entries::default(),
            lists: Box::new([List::default(); LISTS]),
            occupied: 0,
            len: 0,
            capacity: 0,
            window: 0,
            protected: 0,
            floor: 0.0,
            evictions: 0,
            refused: 0,
        }
    }

    pub(super) fn set_rule(&mut self, rule: Rule) {
        self.rule = rule;
        self.resize(self.capacity);
    }

    /// `capacity` entries fit.
    pub(super) fn resize(&mut self, capacity: usize) {
        self.capacity = capacity;
        self.window = share(capacity, self.rule.window()).max(1);
        self.protected = share(capacity.saturating_sub(self.window), PROTECTED_SHARE);
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn hash(&self, place: u32) -> u32 {
        self.entries.0[place as usize].hash
    }

    pub(super) fn used(&self, place: u32) -> u32 {
        self.entries.0[place as usize].used
    }

    pub(super) fn weight(&self, place: u32) -> Log {
        self.entries.0[place as usize].weight
    }

    pub(super) fn value(&self, place: u32) -> Log {
        self.entries.0[place as usize].value
    }

    pub(super) fn insert(&mut self, place: u32, arrival: Arrival, sketch: &Sketch) {
        let Arrival {
            hash,
            weight,
            value,
            age,
            now,
        } = arrival;
        reserve_place(&mut self.entries.0, place, Entry::default());
        self.entries.0[place as usize] = Entry {
            hash,
            used: now,
            weight,
            value,
            uses: sketch.count(hash).max(1),
            ..Entry::default()
        };
        let to = match self.rule {
            Rule::Reused { .. } => {
                let main = self.list(PROBATION).len + self.list(PROTECTED).len;
                let has_room = self.len < self.capacity && main + self.window < self.capacity;
                if has_room || age.is_some_and(|age| self.is_sooner(age, now)) {
                    PROBATION
                } else {
                    WINDOW
                }
            }
            Rule::Valued => self.class(place),
            _ => WINDOW,
        };
        self.push(to, place);
        self.rebalance();
    }

    /// False if the entry is where it was, for it was used just now.
    pub(super) fn hit(&mut self, place: u32, now: u32) -> bool {
        let entry = &mut self.entries.0[place as usize];
        let (from, age) = (entry.list, now.wrapping_sub(entry.used));
        entry.uses = entry.uses.saturating_add(1);
        let to = match self.rule {
            Rule::Recency => WINDOW,
            Rule::Valued => self.class(place),
            Rule::Reused { .. } if from != WINDOW || self.is_sooner(age, now) => PROBATION,
            Rule::Compared { .. } | Rule::Repeated { .. } if from != WINDOW => PROTECTED,
            _ => WINDOW,
        };
        // Most hits are of what was moved to the head just now, and need not touch its neighbours.
        if to == from && (age as usize) < self.len / STILL {
            return false;
        }
        self.remove(place);
        self.entries.0[place as usize].used = now;
        self.push(to, place);
        self.rebalance();
        true
    }

    pub(super) fn remove(&mut self, place: u32) {
        let list = self.entries.0[place as usize].list;
        self.lists[usize::from(list)].remove(&mut self.entries, place);
        if self.list(list).head == NONE {
            self.occupied &= !(1 << list);
        }
        self.len -= 1;
    }

    pub(super) fn evict(&mut self, now: u32, sketch: &Sketch) -> Option<u32> {
        let place = self.choose(now, sketch)?;
        self.remove(place);
        Some(place)
    }

    fn choose(&mut self, now: u32, sketch: &Sketch) -> Option<u32> {
        let admission = match self.rule {
            Rule::Valued => return self.choose_by_value(),
            // What other rules put elsewhere leaves in its turn.
            Rule::Recency => {
                return self
                    .tails()
                    .max_by_key(|&tail| now.wrapping_sub(self.used(tail)));
            }
            Rule::Reused { .. } => return self.tails().next(),
            admission if self.list(WINDOW).len > self.window => admission,
            _ => return self.tails_of_main().next().or_else(|| self.tails().next()),
        };
        let candidate = self.list(WINDOW).tail;
        let victim = self.tails_of_main().next();
        self.shift(WINDOW, PROBATION);
        let Some(victim) = victim else {
            return Some(candidate);
        };
        let [uses, others] = [candidate, victim].map(|place| sketch.count(self.hash(place)));
        let is_admitted = match admission {
            Rule::Repeated { uses: least, .. } => uses >= least,
            Rule::Compared { margin, .. } => {
                let worth = |place, uses: u8| f32::from(uses) * self.value(place).number();
                worth(candidate, uses) > worth(victim, others + margin)
                    || margin == 0 && uses >= WARM && self.is_turn()
            }
            _ => true,
        };
        Some(if is_admitted { victim } else { candidate })
    }

    fn choose_by_value(&mut self) -> Option<u32> {
        let (rank, place) = self
            .lowest()
            .or_else(|| Some((self.floor, self.tails().next()?)))?;
        self.floor = rank;
        self.evictions += 1;
        if self.evictions > LOWERED_EVERY * self.len {
            self.evictions = 0;
            for entry in &mut self.entries.0 {
                entry.floor -= rank;
            }
            self.floor = 0.0;
        }
        Some(place)
    }

    /// The entry with the lowest rank among those in classes.
    fn lowest(&self) -> Option<(f32, u32)> {
        let mut lowest: Option<(f32, u32)> = None;
        let mut left = self.occupied >> CLASSES << CLASSES;
        while left != 0 {
            let class = first(left);
            left &= left - 1;
            let place = self.list(class).tail;
            let class = f32::from(class) - CLASS_OF_ONE;
            let rank = self.entries.0[place as usize].floor + class.exp2();
            if lowest.is_none_or(|(least, _)| rank < least) {
                lowest = Some((rank, place));
            }
        }
        lowest
    }

    /// The oldest entries of all lists, those of the window first.
    fn tails(&self) -> impl Iterator<Item = u32> {
        let mut left = self.occupied;
        std::iter::from_fn(move || {
            let list = first(left);
            left &= left.wrapping_sub(1);
            (usize::from(list) < LISTS).then(|| self.list(list).tail)
        })
    }

    fn tails_of_main(&self) -> impl Iterator<Item = u32> {
        let has_window = usize::from(self.list(WINDOW).head != NONE);
        self.tails().skip(has_window)
    }

    /// Lets one in 128 in, so that favourites of the past that nobody asks for any more don't stay for ever.
    fn is_turn(&mut self) -> bool {
        self.refused = (self.refused + 1) % 128;
        self.refused == 0
    }

    /// Was an entry used sooner than the oldest of the main part?
    fn is_sooner(&self, age: u32, now: u32) -> bool {
        let tail = self.list(PROBATION).tail;
        tail == NONE || age < now.wrapping_sub(self.used(tail))
    }

    /// Moves entries towards the lists they belong to.
    fn rebalance(&mut self) {
        for _ in 0..STEPS {
            if self.rule == Rule::Valued {
                let others = first(self.occupied);
                if others < CLASSES {
                    let place = self.list(others).tail;
                    self.shift(others, self.class(place));
                }
                continue;
            }
            if let Some((_, place)) = self.lowest() {
                self.remove(place);
                self.push(PROBATION, place);
            }
            match self.rule {
                Rule::Reused { .. } => {
                    let main = self.capacity.saturating_sub(self.window).max(1);
                    self.shift(PROTECTED, PROBATION);
                    if self.list(PROBATION).len > main {
                        self.shift(PROBATION, WINDOW);
                    }
                }
                Rule::Compared { .. } | Rule::Repeated { .. } => {
                    if self.list(PROTECTED).len > self.protected {
                        self.shift(PROTECTED, PROBATION);
                    }
                    // The last one beyond the share is a candidate: it moves when something has to leave.
                    if self.list(WINDOW).len > self.window + 1 {
                        self.shift(WINDOW, PROBATION);
                    }
                }
                _ => {}
            }
        }
    }

    /// Moves the oldest of one list to the head of another.
    fn shift(&mut self, from: u8, to: u8) {
        let place = self.list(from).tail;
        if place != NONE {
            self.remove(place);
            self.push(to, place);
        }
    }

    fn push(&mut self, list: u8, place: u32) {
        let entry = &mut self.entries.0[place as usize];
        entry.list = list;
        entry.floor = self.floor;
        self.lists[usize::from(list)].push_front(&mut self.entries, place);
        self.occupied |= 1 << list;
        self.len += 1;
    }

    fn list(&self, list: u8) -> &List {
        &self.lists[usize::from(list)]
    }

    /// The list for an entry's uses and value.
    fn class(&self, place: u32) -> u8 {
        let Entry { value, uses, .. } = self.entries.0[place as usize];
        let log2 = value.log2() + f32::from(uses).log2();
        let class = (log2 + CLASS_OF_ONE).clamp(f32::from(CLASSES), (LISTS - 1) as f32);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between two list numbers"
        )]
        let class = class as u8;
        class
    }
}

impl Linked for Entries {
    fn link(&mut self, place: u32) -> &mut Link {
        &mut self.0[place as usize].link
    }
}

/// The number of the lowest bit that is set, or 64.
fn first(lists: u64) -> u8 {
    #[expect(clippy::cast_possible_truncation, reason = "at most 64")]
    let first = lists.trailing_zeros() as u8;
    first
}

fn share(of: usize, share: f32) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a length"
    )]
    let share = (of as f32 * share) as usize;
    share
}

/// A positive number, to a quarter of an octave: from 2^-32 to 2^31.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Log(i8);

impl Log {
    pub(super) fn of(number: f32) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "saturates")]
        let log = (4.0 * number.log2()).round() as i8;
        Self(log)
    }

    pub(super) fn number(self) -> f32 {
        self.log2().exp2()
    }

    pub(super) fn octaves_above(self, other: Self) -> f32 {
        self.log2() - other.log2()
    }

    fn log2(self) -> f32 {
        f32::from(self.0) / 4.0
    }
}

/// What an order keeps of a hash.
pub(super) fn short(hash: u64) -> u32 {
    (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(age: Option<u32>, now: u32) -> Arrival {
        Arrival {
            hash: now,
            weight: Log::of(1.0),
            value: Log::of(1.0),
            age,
            now,
        }
    }

    #[test]
    fn what_comes_back_soon_outlives_what_is_new() {
        let sketch = Sketch::default();
        for (age, is_kept) in [(5, true), (50, false)] {
            let mut ranking = Ranking::new(Rule::Reused { window: 0.3 });
            ranking.resize(10);
            for place in 0..10 {
                ranking.insert(place, arrival(None, place), &sketch);
            }
            ranking.insert(10, arrival(Some(age), 10), &sketch);
            let left: Vec<_> = (0..4).map(|_| ranking.evict(11, &sketch)).collect();
            assert_eq!(
                !left.contains(&Some(10)),
                is_kept,
                "age {age}: {left:?} left"
            );
        }
    }

    /// What was used in the past was so at a lower L, however often L was lowered since.
    #[test]
    fn l_stays_small_and_comparable() {
        let sketch = Sketch::default();
        let mut ranking = Ranking::new(Rule::Valued);
        let mut free: Vec<_> = (0..20).collect();
        for now in 0..100_000 {
            let place = free.pop().unwrap();
            ranking.insert(place, arrival(None, now), &sketch);
            if free.is_empty() {
                free.extend(ranking.evict(now, &sketch));
            }
            let floors = || ranking.entries.0.iter().map(|entry| entry.floor);
            assert!(floors().all(|floor| floor <= ranking.floor), "at {now}");
            assert!(ranking.floor < 100.0);
        }
    }

    #[test]
    fn a_logarithm_is_near() {
        for number in [1e-6_f32, 0.3, 1.0, 77.0, 1e9] {
            let error = (Log::of(number).number() / number).log2();
            assert!(error.abs() <= 0.126, "{number}: {error}");
        }
        assert_eq!(Log::of(f32::MAX).log2(), 31.75);
    }
}
