//! The store in this process's memory.

use bytes::Bytes;
use hashbrown::HashTable;

use crate::backend::{Inserted, Lookup, PackedAnswer, StorageBackend, Usage};
use crate::clock::{self, Tick};
use crate::error::Result;
use crate::eviction::{EvictionPolicy, Order, SAMPLE};
use crate::stats::Counter;
use crate::sync::{AtomicUsize, Mutex, Ordering, yield_now};
use crate::types::{CacheEntry, EntryMetadata, KeyRef, Packed, QueryKey};
use crate::version::Dependencies;

/// A sharded map with a byte bound that holds at every instant.
///
/// * An entry is charged the bytes of its query text, parameters and value plus [`ENTRY_OVERHEAD`]. The charge is
///   reserved before the entry becomes visible, so the sum never passes the capacity, not even for a moment.
/// * Each shard is one short lock over a table and a dense array. No operation holds two of them, none scans or sorts
///   more than the [`SAMPLE`] entries drawn for an eviction, and no policy runs under a lock.
/// * Entries whose dependencies are out of date are evicted before all others when they are drawn, and leave when they
///   are looked up; they count towards the bound until then.
#[derive(Debug)]
pub struct InMemoryBackend {
    shards: Box<[Shard]>,
    /// Only ever lowered.
    capacity: AtomicUsize,
    used: AtomicUsize,
    evictions: Counter,
}

/// Bytes charged for an entry beside its key and value: its place in the array and in the table, and the count of
/// references to its bytes.
///
/// Not charged: what the allocator adds, the room that array and table keep for growth (at most as much again as this),
/// and the dependencies past the third, 4 bytes each.
pub const ENTRY_OVERHEAD: usize = size_of::<Stored>() + 8 + 32;

/// An entry may take at most the capacity divided by this.
const LARGEST_SHARE: usize = 2;
/// Below this capacity one shard is enough.
const SHARD_BYTES_MIN: usize = 1 << 20;
const SHARDS_MAX: usize = 64;

/// On a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(Mutex<State>);

/// Index into the array of entries.
type Place = u32;
/// No place.
const NOBODY: Place = Place::MAX;

/// Why one lock: table, array, list and the random state change together. Nothing but moves of values happens under it.
#[derive(Debug)]
struct State {
    /// Places in `entries`, by hash of the key.
    table: HashTable<u32>,
    /// Dense, so that any place drawn at random holds an entry.
    entries: Vec<Stored>,
    /// Ends of the list of all entries by last use; [`NOBODY`] if there are none.
    most_recent: Place,
    least_recent: Place,
    random: u64,
    next_id: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            table: HashTable::new(),
            entries: Vec::new(),
            most_recent: NOBODY,
            least_recent: NOBODY,
            random: 0,
            next_id: 0,
        }
    }
}

#[derive(Debug)]
struct Stored {
    packed: Packed<Bytes>,
    dependencies: Dependencies,
    /// Tells this entry from a later one under the same key.
    id: u64,
    created: Tick,
    accessed: Tick,
    access_count: u32,
    execution_time_ms: f32,
    /// Its neighbours in the list by last use.
    more_recent: Place,
    less_recent: Place,
}

impl InMemoryBackend {
    /// A store of at most `capacity` bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let shards = (capacity / SHARD_BYTES_MIN)
            .clamp(1, SHARDS_MAX)
            .next_power_of_two()
            .min(SHARDS_MAX);
        Self {
            shards: (0..shards).map(|_| Shard::default()).collect(),
            capacity: AtomicUsize::new(capacity),
            used: AtomicUsize::new(0),
            evictions: Counter::default(),
        }
    }

    fn capacity(&self) -> usize {
        self.capacity.load(Ordering::Acquire)
    }

    fn shard_index(&self, hash: u64) -> usize {
        // The low bits choose within the shard's table, the high ones the shard.
        let high = (hash >> 48) as usize;
        high & (self.shards.len() - 1)
    }

    /// Takes `charge` from the capacity if there is room for it.
    fn reserve(&self, charge: usize) -> bool {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
                used.checked_add(charge)
                    .filter(|used| *used <= self.capacity())
            })
            .is_ok()
    }

    /// Drops an entry and gives its charge back, in this order: what is not free yet is not counted as free.
    fn release(&self, removed: Stored) -> usize {
        let charge = removed.charge();
        drop(removed);
        self.used.fetch_sub(charge, Ordering::AcqRel);
        charge
    }

    fn remove_now(&self, key: &QueryKey) -> bool {
        let key = key.as_ref();
        let mut state = self.shards[self.shard_index(key.hash_value())].0.lock();
        let removed = state.find(&key).map(|at| state.remove_at(at));
        drop(state);
        removed.map(|removed| self.release(removed)).is_some()
    }

    fn reserve_by_evicting(
        &self,
        charge: usize,
        first: usize,
        policy: &dyn EvictionPolicy,
        is_current: &impl Fn(&Dependencies) -> bool,
    ) {
        while !self.reserve(charge) {
            if self.evict_one(first, policy, is_current) == 0 {
                // Nothing is stored and yet there is no room: others hold reservations just now.
                yield_now();
            }
        }
    }

    /// Evicts one entry, beginning to look in shard `first`. Returns its charge; 0 if there is nothing to evict.
    fn evict_one(
        &self,
        first: usize,
        policy: &dyn EvictionPolicy,
        is_current: &impl Fn(&Dependencies) -> bool,
    ) -> usize {
        for n in 0..self.shards.len() {
            let shard = &self.shards[(first + n) & (self.shards.len() - 1)];
            if policy.order() == Order::Recency {
                let removed = shard.0.lock().remove_least_recent();
                if let Some(removed) = removed {
                    self.evictions.add(1);
                    return self.release(removed);
                }
                continue;
            }
            // Others may take what was drawn before it is removed: then draw again.
            loop {
                let drawn = shard.0.lock().draw();
                let scored = drawn.into_iter().map(|(id, stored)| {
                    let entry = Self::snapshot(stored);
                    let score = if is_current(&entry.dependencies) {
                        Some(policy.calculate_score(&entry)).filter(|score| !score.is_nan())
                    } else {
                        None
                    };
                    (id, entry, score.unwrap_or(f64::NEG_INFINITY))
                });
                let Some((id, entry, _)) = scored.min_by(|a, b| a.2.total_cmp(&b.2)) else {
                    break;
                };
                let removed = shard.0.lock().remove_exactly(&entry.key, id);
                if let Some(removed) = removed {
                    self.evictions.add(1);
                    return self.release(removed);
                }
            }
        }
        0
    }

    fn snapshot(drawn: Drawn) -> CacheEntry {
        let Drawn {
            packed,
            dependencies,
            charge,
            created,
            accessed,
            access_count,
            execution_time_ms,
        } = drawn;
        CacheEntry {
            key: packed.to_key(),
            data: packed.data(),
            dependencies,
            metadata: EntryMetadata {
                size_bytes: charge,
                created_at: clock::date(created.elapsed()),
                last_accessed: clock::date(accessed.elapsed()),
                access_count: access_count.into(),
                execution_time_ms: execution_time_ms.into(),
            },
        }
    }
}

/// A copy of an entry, made under the lock from pointers and numbers.
struct Drawn {
    packed: Packed<Bytes>,
    dependencies: Dependencies,
    charge: usize,
    created: Tick,
    accessed: Tick,
    access_count: u32,
    execution_time_ms: f32,
}

impl Stored {
    fn charge(&self) -> usize {
        self.packed.len() + ENTRY_OVERHEAD
    }

    fn copy(&self) -> Drawn {
        Drawn {
            packed: self.packed.clone(),
            dependencies: self.dependencies.clone(),
            charge: self.charge(),
            created: self.created,
            accessed: self.accessed,
            access_count: self.access_count,
            execution_time_ms: self.execution_time_ms,
        }
    }
}

impl State {
    fn find(&self, key: &KeyRef<'_>) -> Option<usize> {
        let place = self.table.find(key.hash_value(), |place| {
            self.entries[*place as usize].packed.matches(key)
        });
        place.map(|place| *place as usize)
    }

    fn unlink(&mut self, at: usize) {
        let (more, less) = (self.entries[at].more_recent, self.entries[at].less_recent);
        match self.entries.get_mut(more as usize) {
            Some(more) => more.less_recent = less,
            None => self.most_recent = less,
        }
        match self.entries.get_mut(less as usize) {
            Some(less) => less.more_recent = more,
            None => self.least_recent = more,
        }
    }

    fn link_most_recent(&mut self, at: usize) {
        let place = Place::try_from(at).expect("places are counted in u32");
        let was = std::mem::replace(&mut self.most_recent, place);
        self.entries[at].more_recent = NOBODY;
        self.entries[at].less_recent = was;
        match self.entries.get_mut(was as usize) {
            Some(was) => was.more_recent = place,
            None => self.least_recent = place,
        }
    }

    fn remove_least_recent(&mut self) -> Option<Stored> {
        let at = self.least_recent as usize;
        (at < self.entries.len()).then(|| self.remove_at(at))
    }

    /// The entry with the same key.
    fn find_same(&self, packed: &Packed<Bytes>) -> Option<usize> {
        let place = self.table.find(packed.hash_value(), |place| {
            self.entries[*place as usize].packed.has_same_key(packed)
        });
        place.map(|place| *place as usize)
    }

    fn remove_at(&mut self, at: usize) -> Stored {
        self.unlink(at);
        let hash = self.entries[at].packed.hash_value();
        if let Ok(place) = self.table.find_entry(hash, |place| *place as usize == at) {
            place.remove();
        }
        let removed = self.entries.swap_remove(at);
        // The last entry now stands where the removed one did.
        if let Some(moved) = self.entries.get(at) {
            let was = self.entries.len();
            let hash = moved.packed.hash_value();
            let (more, less) = (moved.more_recent, moved.less_recent);
            let now = Place::try_from(at).expect("places are counted in u32");
            if let Some(place) = self.table.find_mut(hash, |place| *place as usize == was) {
                *place = now;
            }
            match self.entries.get_mut(more as usize) {
                Some(more) => more.less_recent = now,
                None => self.most_recent = now,
            }
            match self.entries.get_mut(less as usize) {
                Some(less) => less.more_recent = now,
                None => self.least_recent = now,
            }
        }
        removed
    }

    fn remove_exactly(&mut self, key: &QueryKey, id: u64) -> Option<Stored> {
        let at = self
            .find(&key.as_ref())
            .filter(|at| self.entries[*at].id == id)?;
        Some(self.remove_at(at))
    }

    fn push(&mut self, entry: Stored) {
        let at = u32::try_from(self.entries.len()).expect("places are counted in u32");
        let Self { table, entries, .. } = self;
        table.insert_unique(entry.packed.hash_value(), at, |place| {
            entries[*place as usize].packed.hash_value()
        });
        entries.push(entry);
        self.link_most_recent(at as usize);
    }

    /// Copies of up to [`SAMPLE`] entries: all, if there are not more; else drawn at random, perhaps some twice.
    fn draw(&mut self) -> Vec<(u64, Drawn)> {
        let n = self.entries.len();
        let pick = |at: usize| (self.entries[at].id, self.entries[at].copy());
        if n <= SAMPLE {
            return (0..n).map(pick).collect();
        }
        let mut places = [0; SAMPLE];
        for place in &mut places {
            *place = next_random(&mut self.random, n);
        }
        places.into_iter().map(pick).collect()
    }
}

/// Seven digits of a time are more than its measurement has.
#[expect(
    clippy::cast_possible_truncation,
    reason = "what is too large becomes infinite, and compares as it should"
)]
fn narrow(milliseconds: f64) -> f32 {
    milliseconds as f32
}

/// xorshift64*, by Marsaglia and Vigna: any entry must be about as likely to be drawn as any other, nothing more.
fn next_random(state: &mut u64, below: usize) -> usize {
    if *state == 0 {
        *state = 0x9e37_79b9_7f4a_7c15;
    }
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    let wide = u128::from(state.wrapping_mul(0x2545_f491_4f6c_dd1d)) * below as u128;
    #[expect(clippy::cast_possible_truncation, reason = "less than `below`")]
    let place = (wide >> 64) as usize;
    place
}

impl StorageBackend for InMemoryBackend {
    async fn keys(&self) -> Result<Vec<QueryKey>> {
        let mut keys = Vec::new();
        for shard in &self.shards {
            let state = shard.0.lock();
            keys.extend(state.entries.iter().map(|entry| entry.packed.to_key()));
        }
        Ok(keys)
    }

    async fn get(&self, key: &QueryKey) -> Result<Option<CacheEntry>> {
        let key = key.as_ref();
        let state = self.shards[self.shard_index(key.hash_value())].0.lock();
        let found = state.find(&key).map(|at| state.entries[at].copy());
        drop(state);
        Ok(found.map(Self::snapshot))
    }

    async fn remove(&self, key: &QueryKey) -> Result<bool> {
        Ok(self.remove_now(key))
    }

    fn lookup(&self, key: &KeyRef<'_>, is_current: impl Fn(&Dependencies) -> bool) -> Lookup {
        let mut state = self.shards[self.shard_index(key.hash_value())].0.lock();
        let Some(at) = state.find(key) else {
            return Lookup::Miss;
        };
        let entry = &mut state.entries[at];
        if is_current(&entry.dependencies) {
            entry.accessed = Tick::now();
            entry.access_count = entry.access_count.saturating_add(1);
            let data = entry.packed.data();
            if state.most_recent as usize != at {
                state.unlink(at);
                state.link_most_recent(at);
            }
            return Lookup::Hit(data);
        }
        let removed = state.remove_at(at);
        drop(state);
        self.release(removed);
        Lookup::Stale
    }

    fn insert(
        &self,
        entry: CacheEntry,
        policy: &dyn EvictionPolicy,
        is_current: impl Fn(&Dependencies) -> bool,
    ) -> Inserted {
        let key = Packed::key(&entry.key.as_ref());
        let answer = PackedAnswer {
            packed: Packed::entry(&key, &entry.data),
            dependencies: entry.dependencies,
            execution_time_ms: entry.metadata.execution_time_ms,
        };
        self.insert_packed(answer, policy, is_current)
    }

    fn insert_packed(
        &self,
        answer: PackedAnswer,
        policy: &dyn EvictionPolicy,
        is_current: impl Fn(&Dependencies) -> bool,
    ) -> Inserted {
        let PackedAnswer {
            packed,
            dependencies,
            execution_time_ms,
        } = answer;
        let charge = packed.len() + ENTRY_OVERHEAD;
        if charge > self.capacity() / LARGEST_SHARE {
            return Inserted::TooLarge;
        }
        let now = Tick::now();
        let hash = packed.hash_value();
        let index = self.shard_index(hash);
        if !self.reserve(charge) {
            // What this entry takes the place of goes first, before any other has to.
            let replaced = {
                let mut state = self.shards[index].0.lock();
                state.find_same(&packed).map(|at| state.remove_at(at))
            };
            if let Some(replaced) = replaced {
                self.release(replaced);
            }
            self.reserve_by_evicting(charge, index, policy, &is_current);
        }
        let mut state = self.shards[index].0.lock();
        let replaced = state.find_same(&packed).map(|at| state.remove_at(at));
        state.next_id += 1;
        let stored = Stored {
            packed,
            dependencies,
            id: state.next_id,
            created: now,
            accessed: now,
            access_count: 0,
            execution_time_ms: narrow(execution_time_ms),
            more_recent: NOBODY,
            less_recent: NOBODY,
        };
        state.push(stored);
        drop(state);
        if let Some(replaced) = replaced {
            self.release(replaced);
        }
        Inserted::Stored
    }

    fn evict(
        &self,
        needed_bytes: usize,
        policy: &dyn EvictionPolicy,
        is_current: impl Fn(&Dependencies) -> bool,
    ) -> usize {
        let mut freed = 0;
        while freed < needed_bytes {
            // Beginning in another shard each time, so that no shard pays for all.
            #[expect(clippy::cast_possible_truncation, reason = "any number will do")]
            let first = self.evictions.count() as usize;
            match self.evict_one(first, policy, &is_current) {
                0 => break,
                charge => freed += charge,
            }
        }
        freed
    }

    fn limit_capacity(&self, max_size_bytes: usize) {
        self.capacity.fetch_min(max_size_bytes, Ordering::AcqRel);
    }

    fn clear(&self) {
        for shard in &self.shards {
            let State { table, entries, .. } = {
                let mut state = shard.0.lock();
                let (random, next_id) = (state.random, state.next_id);
                std::mem::replace(
                    &mut *state,
                    State {
                        random,
                        next_id,
                        ..State::default()
                    },
                )
            };
            let charge: usize = entries.iter().map(Stored::charge).sum();
            drop((table, entries));
            self.used.fetch_sub(charge, Ordering::AcqRel);
        }
    }

    fn usage(&self) -> Usage {
        Usage {
            entries: self
                .shards
                .iter()
                .map(|shard| shard.0.lock().entries.len())
                .sum(),
            size_bytes: self.used.load(Ordering::Acquire),
            capacity_bytes: self.capacity(),
            evictions: self.evictions.count(),
        }
    }
}
