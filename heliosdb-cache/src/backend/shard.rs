//! One shard of the store in memory.

use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::backend::uses::{Use, Uses};
use crate::block::{BLOCK_OVERHEAD, Block};
use crate::clock::{Clock, Moment};
use crate::lifetime::{self, Age};
use crate::order::{AnyOrder, Order, Sampled, reserve_place};
use crate::stats::StoreCounts;
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::types::{CacheEntry, EntryMetadata, KeyRef};

/// Bytes charged for an entry beside its key, its value, and four for each table that it depends on: the head of its
/// block, its slot, its place in the table, and what the eviction order keeps of it.
///
/// Not charged: what the allocator adds, the room that the arrays keep for growth (an eighth), and the orders' memory of
/// what is not there, which is bounded by the number of entries.
pub const ENTRY_OVERHEAD: usize = BLOCK_OVERHEAD + size_of::<Slot>() + PLACE_BYTES + ORDER_BYTES;

/// A place and a byte of control, in a table that is three quarters full.
const PLACE_BYTES: usize = 7;
/// Of the default order.
const ORDER_BYTES: usize = 31;

/// On cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Shard {
    state: RwLock<State>,
    /// Look-ups since the state was last locked for a change.
    uses: Uses,
}

/// Why one lock: table, slots and order change together. Look-ups share it, and only note what they used; the order
/// learns of that before the next change. No policy of a user's runs under it.
#[derive(Debug)]
pub(super) struct State {
    /// Places in `slots`, by hash of the key.
    table: HashTable<u32>,
    /// A place stays an entry's until it leaves.
    slots: Vec<Slot>,
    /// The first of the places that are free; each knows the next.
    free: u32,
    order: Ranked,
    /// The place that the sweep looks at next.
    hand: u32,
    /// What had changed when the round of the hand began, and how many places there were; and what had changed when the
    /// last whole round began: see `sweep_one`.
    round: u64,
    round_end: u32,
    swept: u64,
    /// Some entry's time may end.
    has_times: bool,
    clock: Clock,
    /// The weight of refreshing ahead; 0 for not at all.
    refresh_ahead: f64,
    counts: StoreCounts,
}

#[derive(Debug)]
pub(super) enum Ranked {
    ByOrder(AnyOrder),
    ByScore(Sampled),
}

/// An entry, or nothing.
#[derive(Debug, Clone)]
struct Slot {
    block: Option<Block>,
    /// Half of the key's hash; of a free slot, the next one.
    hash: u32,
    uses: u32,
}

const NOWHERE: u32 = u32::MAX;

/// Why an entry leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Evicted,
    Expired,
    Invalidated,
    Removed,
    Replaced,
}

/// Blocks to drop after the lock is released.
pub(super) type Dropped = SmallVec<[Block; 2]>;

/// An entry as a policy is shown it, made under the lock from pointers and numbers.
pub(super) struct Drawn {
    pub(super) block: Block,
    pub(super) place: u32,
    uses: u32,
}

impl Shard {
    pub(super) fn new(state: State) -> Self {
        Self {
            state: RwLock::new(state),
            uses: Uses::default(),
        }
    }

    #[inline]
    pub(super) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }

    /// For a change, which the order makes knowing of all uses until now.
    pub(super) fn write(&self) -> RwLockWriteGuard<'_, State> {
        let mut state = self.state.write();
        state.learn(&self.uses);
        state
    }

    /// Notes that the entry at a place was used, for what it cost to compute.
    #[inline]
    pub(super) fn hit(&self, state: RwLockReadGuard<'_, State>, place: u32, cost_ms: f32) {
        let is_full = self.uses.push(Use::Hit { place, cost_ms });
        drop(state);
        self.relieve(is_full);
    }

    /// Notes that a look-up was not answered.
    #[inline]
    pub(super) fn miss(&self, state: RwLockReadGuard<'_, State>, hash: u64) {
        let is_full = self.uses.push(Use::Miss { half: half(hash) });
        drop(state);
        self.relieve(is_full);
    }

    /// Lets the order learn of the uses, if nobody is in the way; what is used meanwhile only counts.
    fn relieve(&self, is_full: bool) {
        if is_full && let Some(mut state) = self.state.try_write() {
            state.learn(&self.uses);
        }
    }

    pub(super) fn counts(&self) -> (usize, StoreCounts) {
        let state = self.write();
        (state.len(), state.counts)
    }

    /// Empties the shard.
    pub(super) fn replace(&self, by: State) -> State {
        let mut state = self.write();
        let mut before = std::mem::replace(&mut *state, by);
        state.counts = std::mem::take(&mut before.counts);
        before
    }
}

impl State {
    pub(super) fn new(order: Ranked, clock: Clock, refresh_ahead: f64) -> Self {
        Self {
            table: HashTable::new(),
            slots: Vec::new(),
            free: NOWHERE,
            order,
            hand: 0,
            round: 0,
            round_end: 0,
            swept: 0,
            has_times: false,
            clock,
            refresh_ahead,
            counts: StoreCounts::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    #[inline]
    pub(super) fn now(&self) -> Moment {
        self.clock.now()
    }

    pub(super) fn is_ranked_by_score(&self) -> bool {
        matches!(self.order, Ranked::ByScore(_))
    }

    pub(super) fn set_capacity(&mut self, bytes: usize) {
        if let Ranked::ByOrder(order) = &mut self.order {
            order.set_capacity(bytes);
        }
    }

    #[inline]
    pub(super) fn find(&self, key: &KeyRef<'_>) -> Option<u32> {
        let half = half(key.hash_value());
        let is_same = |place: &u32| {
            let slot = &self.slots[*place as usize];
            slot.hash == half && slot.block.as_ref().is_some_and(|block| block.matches(key))
        };
        self.table.find(spread(half), is_same).copied()
    }

    /// The entry with the same key.
    pub(super) fn find_same(&self, hash: u64, other: &Block) -> Option<u32> {
        let half = half(hash);
        let is_same = |place: &u32| {
            let slot = &self.slots[*place as usize];
            slot.hash == half
                && slot
                    .block
                    .as_ref()
                    .is_some_and(|block| block.has_same_key(other))
        };
        self.table.find(spread(half), is_same).copied()
    }

    #[inline]
    pub(super) fn block(&self, place: u32) -> &Block {
        let block = self.slots[place as usize].block.as_ref();
        block.expect("the table and the orders have no free places")
    }

    /// How old the entry is.
    #[inline]
    pub(super) fn age(&self, block: &Block, now: Moment) -> Age {
        let Some(times) = block.times() else {
            return Age::Fresh;
        };
        let beta = self.refresh_ahead;
        let early = if beta > 0.0 {
            // Never 0.
            lifetime::early(block.cost_ms().into(), beta, 1.0 - fastrand::f64())
        } else {
            0.0
        };
        times.age(now, block.accessed(), early)
    }

    /// Tells the order what was used.
    fn learn(&mut self, uses: &Uses) {
        let Self {
            slots,
            order,
            counts,
            ..
        } = self;
        let taken = uses.take(|one| match (one, &mut *order) {
            (Use::Hit { place, .. }, order) => {
                let slot = &mut slots[place as usize];
                slot.uses = slot.uses.saturating_add(1);
                if let Ranked::ByOrder(order) = order {
                    order.hit(place);
                }
            }
            (Use::Miss { half }, Ranked::ByOrder(order)) => order.miss(spread(half)),
            (Use::Miss { .. }, Ranked::ByScore(_)) => {}
        });
        counts.hits += taken.hits;
        counts.misses += taken.misses;
        counts.saved_ms += taken.saved_ms;
    }

    /// Counts a hit on what was past its time.
    pub(super) fn count_stale_hit(&mut self) {
        self.counts.stale_hits += 1;
    }

    /// Counts a look-up that was not answered.
    pub(super) fn miss(&mut self, hash: u64) {
        self.counts.misses += 1;
        if let Ranked::ByOrder(order) = &mut self.order {
            order.miss(spread(half(hash)));
        }
    }

    /// Takes back the count of an eviction that was none.
    pub(super) fn uncount_eviction(&mut self) {
        self.counts.evicted -= 1;
    }

    /// Puts an entry in a free place, where it can be found from now on.
    pub(super) fn push(&mut self, hash: u64, block: Block) -> u32 {
        let half = half(hash);
        let place = match self.free {
            NOWHERE => {
                let place = u32::try_from(self.slots.len()).expect("places are counted in u32");
                let empty = Slot {
                    block: None,
                    hash: NOWHERE,
                    uses: 0,
                };
                reserve_place(&mut self.slots, place, empty);
                place
            }
            place => {
                self.free = self.slots[place as usize].hash;
                place
            }
        };
        let (charge, cost_ms) = (charge(&block), block.cost_ms());
        self.has_times |= block.times().is_some();
        self.slots[place as usize] = Slot {
            block: Some(block),
            hash: half,
            uses: 0,
        };
        let Self { table, slots, .. } = self;
        table.insert_unique(spread(half), place, |place| {
            spread(slots[*place as usize].hash)
        });
        match &mut self.order {
            Ranked::ByOrder(order) => {
                let weight = u32::try_from(charge).unwrap_or(u32::MAX);
                order.insert(place, spread(half), weight, cost_ms * 1000.0);
            }
            Ranked::ByScore(sampled) => sampled.insert(place),
        }
        place
    }

    /// Takes the entry out that is to leave next: `None` if there is none, or scores decide.
    pub(super) fn evict(&mut self) -> Option<(u32, Block)> {
        let Ranked::ByOrder(order) = &mut self.order else {
            return None;
        };
        let place = order.evict()?;
        self.counts.evicted += 1;
        Some((place, self.take(place)))
    }

    pub(super) fn remove(&mut self, place: u32, cause: Cause) -> Block {
        match &mut self.order {
            Ranked::ByOrder(order) => order.remove(place),
            Ranked::ByScore(sampled) => sampled.remove(place),
        }
        let count = match cause {
            Cause::Evicted => &mut self.counts.evicted,
            Cause::Expired => &mut self.counts.expired,
            Cause::Invalidated => &mut self.counts.invalidated,
            Cause::Removed => &mut self.counts.removed,
            Cause::Replaced => &mut self.counts.replaced,
        };
        *count += 1;
        self.take(place)
    }

    /// As [`remove`](Self::remove), if the place still holds this very block.
    pub(super) fn remove_exactly(
        &mut self,
        place: u32,
        block: &Block,
        cause: Cause,
    ) -> Option<Block> {
        let slot = self.slots.get(place as usize)?;
        slot.block.as_ref().filter(|other| other.is(block))?;
        Some(self.remove(place, cause))
    }

    /// Looks at one place, if an entry may have become invalid since all were looked at: `changes` counts what was
    /// invalidated until now.
    pub(super) fn sweep_one(
        &mut self,
        changes: u64,
        is_current: &impl Fn(&Block) -> bool,
        dropped: &mut Dropped,
    ) {
        if changes <= self.swept && !self.has_times {
            return;
        }
        if self.hand == 0 {
            self.round = changes;
            // What comes later is of later, and the hand would not catch up with it.
            self.round_end = u32::try_from(self.slots.len()).expect("places are counted in u32");
        }
        if !self.sweep(1, is_current, dropped) || self.hand >= self.round_end {
            self.hand = 0;
            self.swept = self.round;
        }
    }

    /// Looks at up to `n` places and removes the entries that may not be served any more. False at the end of a round.
    pub(super) fn sweep(
        &mut self,
        n: usize,
        is_current: &impl Fn(&Block) -> bool,
        dropped: &mut Dropped,
    ) -> bool {
        let now = self.now();
        for _ in 0..n {
            let place = self.hand;
            let Some(slot) = self.slots.get(place as usize) else {
                self.hand = 0;
                return false;
            };
            self.hand += 1;
            let Some(block) = &slot.block else {
                continue;
            };
            if !is_current(block) {
                dropped.push(self.remove(place, Cause::Invalidated));
            } else if self.age(block, now) == Age::Dead {
                dropped.push(self.remove(place, Cause::Expired));
            }
        }
        true
    }

    /// Copies of up to `n` entries drawn at random.
    pub(super) fn draw(&mut self, n: usize) -> Vec<Drawn> {
        let Ranked::ByScore(sampled) = &mut self.order else {
            return Vec::new();
        };
        let places: SmallVec<[u32; 16]> = sampled.draw(n).collect();
        places.iter().map(|place| self.copy(*place)).collect()
    }

    pub(super) fn copy(&self, place: u32) -> Drawn {
        Drawn {
            block: self.block(place).clone(),
            place,
            uses: self.slots[place as usize].uses,
        }
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.slots.iter().filter_map(|slot| slot.block.as_ref())
    }

    /// Out of the table and the slots; the order must have forgotten it.
    fn take(&mut self, place: u32) -> Block {
        let slot = &mut self.slots[place as usize];
        let hash = spread(slot.hash);
        let block = slot.block.take().expect("the orders have no free places");
        slot.hash = std::mem::replace(&mut self.free, place);
        if let Ok(found) = self.table.find_entry(hash, |other| *other == place) {
            found.remove();
        }
        block
    }
}

impl Drawn {
    pub(super) fn entry(&self, now: Moment) -> CacheEntry {
        let Self { block, uses, .. } = self;
        CacheEntry {
            key: block.key().to_key(),
            data: block.clone().into(),
            metadata: EntryMetadata {
                size_bytes: charge(block),
                created_at: now.date(block.created()),
                last_accessed: now.date(block.accessed()),
                access_count: (*uses).into(),
                execution_time_ms: block.cost_ms().into(),
            },
            block: block.clone(),
        }
    }
}

/// What an entry counts against the capacity.
pub(super) fn charge(block: &Block) -> usize {
    block.len() + ENTRY_OVERHEAD
}

/// What is kept of a hash: bits that do not choose the shard.
fn half(hash: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    let half = hash as u32;
    half
}

/// A table takes its bucket from the lower bits and a tag from the upper ones.
fn spread(half: u32) -> u64 {
    u64::from(half).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
