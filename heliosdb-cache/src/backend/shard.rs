//! One shard of the store in memory: what is under its lock.

use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::block::{BLOCK_OVERHEAD, Block};
use crate::clock::{Clock, Moment, Tick};
use crate::lifetime::{self, Age};
use crate::order::{AnyOrder, Order, Sampled, next_word, reserve_place};
use crate::stats::StoreCounts;
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

/// Why one lock: table, slots and order change together. Nothing but moves of values happens under it, and no policy
/// of a user's runs.
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
    clock: Clock,
    /// The weight of refreshing ahead; 0 for not at all.
    refresh_ahead: f64,
    random: u64,
    pub(super) counts: StoreCounts,
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
    accessed: Tick,
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
    accessed: Tick,
}

impl State {
    pub(super) fn new(order: Ranked, clock: Clock, refresh_ahead: f64) -> Self {
        Self {
            table: HashTable::new(),
            slots: Vec::new(),
            free: NOWHERE,
            order,
            hand: 0,
            clock,
            refresh_ahead,
            random: 0x9e37_79b9_7f4a_7c15,
            counts: StoreCounts::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

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

    pub(super) fn block(&self, place: u32) -> &Block {
        let block = self.slots[place as usize].block.as_ref();
        block.expect("the table and the orders have no free places")
    }

    pub(super) fn age(&mut self, place: u32, now: Moment) -> Age {
        let Slot { accessed, .. } = self.slots[place as usize];
        let block = self.block(place);
        let Some(times) = block.times() else {
            return Age::Fresh;
        };
        if self.refresh_ahead == 0.0 {
            return times.age(now, accessed, 0.0);
        }
        let (cost, beta) = (f64::from(block.cost_ms()), self.refresh_ahead);
        // From the 53 bits that fit, and never 0.
        let random = ((next_word(&mut self.random) >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        times.age(now, accessed, lifetime::early(cost, beta, random))
    }

    /// Counts a use.
    pub(super) fn hit(&mut self, place: u32, now: Moment) {
        let slot = &mut self.slots[place as usize];
        slot.accessed = now.tick();
        if let Some(block) = &slot.block {
            block.count_use();
            self.counts.saved_ms += f64::from(block.cost_ms().max(0.0));
        }
        self.counts.hits += 1;
        if let Ranked::ByOrder(order) = &mut self.order {
            order.hit(place);
        }
    }

    /// Counts a look-up that was not answered.
    pub(super) fn miss(&mut self, hash: u64) {
        self.counts.misses += 1;
        if let Ranked::ByOrder(order) = &mut self.order {
            order.miss(spread(half(hash)));
        }
    }

    /// Puts an entry in a free place, where it can be found from now on.
    pub(super) fn push(&mut self, hash: u64, block: Block, now: Moment) -> u32 {
        let half = half(hash);
        let place = match self.free {
            NOWHERE => {
                let place = u32::try_from(self.slots.len()).expect("places are counted in u32");
                let empty = Slot {
                    block: None,
                    hash: NOWHERE,
                    accessed: now.tick(),
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
        self.slots[place as usize] = Slot {
            block: Some(block),
            hash: half,
            accessed: now.tick(),
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
    pub(super) fn remove_exactly(&mut self, drawn: &Drawn) -> Option<Block> {
        let slot = &self.slots[drawn.place as usize];
        slot.block.as_ref().filter(|block| block.is(&drawn.block))?;
        Some(self.remove(drawn.place, Cause::Evicted))
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
            } else if self.age(place, now) == Age::Dead {
                dropped.push(self.remove(place, Cause::Expired));
            }
        }
        true
    }

    /// Copies of up to `n` entries drawn at random.
    pub(super) fn draw(&mut self, n: usize) -> Vec<Drawn> {
        let Self { order, slots, .. } = self;
        let Ranked::ByScore(sampled) = order else {
            return Vec::new();
        };
        let drawn = sampled.draw(n).filter_map(|place| {
            let slot = &slots[place as usize];
            let block = slot.block.clone()?;
            Some(Drawn {
                block,
                place,
                accessed: slot.accessed,
            })
        });
        drawn.collect()
    }

    pub(super) fn copy(&self, place: u32) -> Drawn {
        Drawn {
            block: self.block(place).clone(),
            place,
            accessed: self.slots[place as usize].accessed,
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
        let Self {
            block, accessed, ..
        } = self;
        CacheEntry {
            key: block.key().to_key(),
            data: block.clone().into(),
            metadata: EntryMetadata {
                size_bytes: charge(block),
                created_at: now.date(block.created()),
                last_accessed: now.date(*accessed),
                access_count: block.uses().into(),
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
