//! The store in this process's memory.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwap;

use crate::backend::shard::{Cause, Drawn, Dropped, Ranked, Shard, State, charge};
use crate::backend::{Inserted, Lookup, PackedAnswer, StorageBackend, Usage};
use crate::block::{Answer, Block};
use crate::clock::Clock;
use crate::config::CacheConfig;
use crate::error::Result;
use crate::eviction::{EvictionPolicy, Ranking, SAMPLE};
use crate::lifetime::Age;
use crate::order::{AnyOrder, Contest, Sampled};
use crate::sync::{AtomicUsize, Ordering, yield_now};
use crate::types::{CacheEntry, KeyRef, QueryKey};
use crate::version::DependenciesRef;

/// A sharded map with a byte bound that holds at every instant.
///
/// * An entry is charged the bytes of its query text, parameters and value, four for each table it depends on, and
///   [`ENTRY_OVERHEAD`](crate::ENTRY_OVERHEAD). The charge is reserved before the entry becomes visible, so the sum never
///   passes the capacity, not even for a moment.
/// * Each shard is one short lock over a table, an array and the eviction order. No operation holds two of them, each
///   is O(1), and no policy of a user's runs under a lock.
/// * Entries that may not be served any more leave when they are looked up, with every insertion (which looks at one
///   more entry of its shard, while there may be such: after two insertions for each entry of the shard, three while it
///   grows, all were looked at), and with [`sweep`](StorageBackend::sweep); they count towards the bound until then.
#[derive(Debug)]
pub struct InMemoryBackend {
    shards: Box<[Shard]>,
    /// Only ever lowered.
    capacity: AtomicUsize,
    used: AtomicUsize,
    /// The largest charge of one entry.
    largest: AtomicUsize,
    /// Where the next eviction begins that is not for an insertion.
    turn: AtomicUsize,
    /// What `setup` says, for every insertion to read.
    is_ranked_by_score: AtomicBool,
    setup: ArcSwap<Setup>,
}

/// What a manager's configuration says.
struct Setup {
    policy: Arc<dyn EvictionPolicy>,
    clock: Clock,
    refresh_ahead: f64,
    contest: Arc<Contest>,
}

/// Below this capacity one shard is enough.
const SHARD_BYTES_MIN: usize = if cfg!(loom) { 64 } else { 1 << 20 };
/// So that threads seldom meet on one.
const SHARDS_A_THREAD: usize = 4;
const SHARDS_MAX: usize = 256;
/// Places that a sweep looks at before it lets others have the lock.
const SWEEP_STEP: usize = 256;

impl InMemoryBackend {
    /// A store of at most `capacity` bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let shards = (capacity / SHARD_BYTES_MIN)
            .clamp(1, (threads * SHARDS_A_THREAD).min(SHARDS_MAX))
            .next_power_of_two();
        let config = CacheConfig::default();
        let setup = Setup::of(&config, shards);
        let backend = Self {
            shards: (0..shards).map(|_| Shard::new(setup.state())).collect(),
            capacity: AtomicUsize::new(capacity),
            used: AtomicUsize::new(0),
            largest: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
            is_ranked_by_score: AtomicBool::new(setup.is_ranked_by_score()),
            setup: ArcSwap::from_pointee(setup),
        };
        backend.set_shares(config.max_entry_share);
        backend
    }

    fn capacity(&self) -> usize {
        self.capacity.load(Ordering::Acquire)
    }

    fn set_shares(&self, max_entry_share: f64) {
        let capacity = self.capacity();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of the capacity; NaN becomes 0"
        )]
        let largest = (capacity as f64 * max_entry_share.clamp(0.0, 1.0)) as usize;
        self.largest.store(largest.min(capacity), Ordering::Release);
        for shard in &self.shards {
            shard.write().set_capacity(capacity / self.shards.len());
        }
    }

    fn shard_index(&self, hash: u64) -> usize {
        // The lower half chooses within the shard.
        let high = (hash >> 48) as usize;
        high & (self.shards.len() - 1)
    }

    fn shard(&self, hash: u64) -> &Shard {
        &self.shards[self.shard_index(hash)]
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

    /// Gives back what removed entries were charged. Returns how much that was.
    fn release(&self, removed: &[Block]) -> usize {
        let charge: usize = removed.iter().map(charge).sum();
        if charge > 0 {
            self.used.fetch_sub(charge, Ordering::AcqRel);
        }
        charge
    }

    /// Inserts by the shard's own order. `None` if only other shards have what can make room.
    fn insert_by_order(
        &self,
        answer: &PackedAnswer,
        is_current: &impl Fn(&Block) -> bool,
    ) -> Option<Inserted> {
        let charge = charge(&answer.block);
        let mut dropped = Dropped::new();
        let mut state = self.shard(answer.hash).write();
        if let Some(place) = state.find_same(answer.hash, &answer.block) {
            dropped.push(state.remove(place, Cause::Replaced));
        }
        state.sweep_one(answer.changes, is_current, &mut dropped);
        self.release(&dropped);
        let mut released = dropped.len();
        let inserted = if self.reserve(charge) {
            state.push(answer.hash, answer.block.clone());
            Some(Inserted::Stored)
        } else if state.len() == 0 {
            None
        } else {
            // The order is asked with the new entry in it, so that it can say that this is the one to leave. Nobody sees
            // it there: the lock is held until there is room for it or it has left.
            let new = state.push(answer.hash, answer.block.clone());
            loop {
                let evicted = state.evict();
                let Some((place, block)) = evicted else {
                    break None;
                };
                if place == new {
                    let was_last = state.len() == 0;
                    if was_last {
                        state.uncount_eviction();
                    }
                    break (!was_last).then_some(Inserted::NotAdmitted);
                }
                dropped.push(block);
                self.release(&dropped[released..]);
                released = dropped.len();
                if self.reserve(charge) {
                    break Some(Inserted::Stored);
                }
            }
        };
        drop(state);
        inserted
    }

    fn insert_by_score(&self, answer: &PackedAnswer, is_current: &impl Fn(&Block) -> bool) {
        let charge = charge(&answer.block);
        let index = self.shard_index(answer.hash);
        if !self.reserve(charge) {
            // What this entry takes the place of goes first, before any other has to.
            let mut dropped = Dropped::new();
            let mut state = self.shards[index].write();
            if let Some(place) = state.find_same(answer.hash, &answer.block) {
                dropped.push(state.remove(place, Cause::Replaced));
            }
            drop(state);
            self.release(&dropped);
            while !self.reserve(charge) {
                self.make_room(index, is_current);
            }
        }
        let mut dropped = Dropped::new();
        let mut state = self.shards[index].write();
        if let Some(place) = state.find_same(answer.hash, &answer.block) {
            dropped.push(state.remove(place, Cause::Replaced));
        }
        state.sweep_one(answer.changes, is_current, &mut dropped);
        state.push(answer.hash, answer.block.clone());
        drop(state);
        self.release(&dropped);
    }

    /// Evicts one entry, beginning to look in shard `first`.
    fn make_room(&self, first: usize, is_current: &impl Fn(&Block) -> bool) {
        if self.evict_one(first, is_current) == 0 {
            // Nothing is stored and yet there is no room: others hold reservations just now.
            yield_now();
        }
    }

    /// Evicts one entry, beginning to look in shard `first`. Returns its charge; 0 if there is nothing to evict.
    fn evict_one(&self, first: usize, is_current: &impl Fn(&Block) -> bool) -> usize {
        for n in 0..self.shards.len() {
            let shard = &self.shards[(first + n) & (self.shards.len() - 1)];
            let mut state = shard.write();
            let evicted = if state.is_ranked_by_score() {
                drop(state);
                self.evict_by_score(shard, is_current)
            } else {
                let evicted = state.evict();
                drop(state);
                evicted.map(|(_, block)| block)
            };
            if let Some(block) = evicted {
                return self.release(&[block]);
            }
        }
        0
    }

    fn evict_by_score(&self, shard: &Shard, is_current: &impl Fn(&Block) -> bool) -> Option<Block> {
        let setup = self.setup.load();
        let now = setup.clock.now();
        // Others may take what was drawn before it is removed: then draw again.
        loop {
            let drawn = shard.write().draw(SAMPLE);
            let scored = drawn.into_iter().map(|drawn| {
                let score = if is_current(&drawn.block) {
                    let score = setup.policy.calculate_score(&drawn.entry(now));
                    Some(score).filter(|score| !score.is_nan())
                } else {
                    None
                };
                (drawn, score.unwrap_or(f64::NEG_INFINITY))
            });
            let (lowest, _): (Drawn, f64) = scored.min_by(|a, b| a.1.total_cmp(&b.1))?;
            let removed = shard
                .write()
                .remove_exactly(lowest.place, &lowest.block, Cause::Evicted);
            if removed.is_some() {
                return removed;
            }
        }
    }
}

impl Setup {
    fn of(config: &CacheConfig, shards: usize) -> Self {
        Self {
            policy: config.policy(),
            clock: config.clock.clone(),
            refresh_ahead: config.refresh_ahead,
            contest: Arc::new(Contest::new(shards)),
        }
    }

    fn is_ranked_by_score(&self) -> bool {
        self.policy.ranking() == Ranking::Score
    }

    fn state(&self) -> State {
        let order = AnyOrder::of(self.policy.ranking(), &self.clock, &self.contest);
        let ranked = order.map_or_else(|| Ranked::ByScore(Sampled::default()), Ranked::ByOrder);
        State::new(ranked, self.clock.clone(), self.refresh_ahead)
    }
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup")
            .field("policy", &self.policy.name())
            .finish_non_exhaustive()
    }
}

impl StorageBackend for InMemoryBackend {
    async fn keys(&self) -> Result<Vec<QueryKey>> {
        let mut keys = Vec::new();
        for shard in &self.shards {
            let blocks: Vec<_> = shard.read().blocks().cloned().collect();
            keys.extend(blocks.iter().map(|block| block.key().to_key()));
        }
        Ok(keys)
    }

    async fn get(&self, key: &QueryKey) -> Result<Option<CacheEntry>> {
        let key = key.as_ref();
        let state = self.shard(key.hash_value()).write();
        let found = state.find(&key).map(|place| state.copy(place));
        let now = state.now();
        drop(state);
        Ok(found.map(|found| found.entry(now)))
    }

    async fn remove(&self, key: &QueryKey) -> Result<bool> {
        let key = key.as_ref();
        let mut state = self.shard(key.hash_value()).write();
        let removed = state
            .find(&key)
            .map(|place| state.remove(place, Cause::Removed));
        drop(state);
        Ok(removed.map(|block| self.release(&[block])).is_some())
    }

    /// The capacity is only ever lowered. What was stored under another policy is dropped.
    fn configure(&self, config: &CacheConfig) {
        self.capacity
            .fetch_min(config.max_size_bytes, Ordering::AcqRel);
        let setup = Setup::of(config, self.shards.len());
        let states: Vec<_> = self.shards.iter().map(|_| setup.state()).collect();
        self.is_ranked_by_score
            .store(setup.is_ranked_by_score(), Ordering::Relaxed);
        self.setup.store(Arc::new(setup));
        for (shard, state) in self.shards.iter().zip(states) {
            let before = shard.replace(state);
            let blocks: Vec<_> = before.blocks().cloned().collect();
            drop(before);
            self.release(&blocks);
        }
        self.set_shares(config.max_entry_share);
    }

    fn lookup(&self, key: &KeyRef<'_>, is_current: impl Fn(DependenciesRef<'_>) -> bool) -> Lookup {
        let hash = key.hash_value();
        let shard = self.shard(hash);
        let state = shard.read();
        let Some(place) = state.find(key) else {
            shard.miss(state, hash);
            return Lookup::Miss;
        };
        let block = state.block(place).clone();
        let now = state.now();
        let age = if is_current(block.dependencies()) {
            Some(state.age(&block, now))
        } else {
            None
        };
        let cost = block.cost_ms();
        match age {
            Some(Age::Fresh) => {
                block.touch(now.tick());
                shard.hit(state, place, cost);
                Lookup::Hit(block.into())
            }
            Some(Age::Early) => {
                block.touch(now.tick());
                shard.hit(state, place, cost);
                Lookup::Refresh(block.into())
            }
            Some(Age::Stale) => {
                block.touch(now.tick());
                shard.hit(state, place, cost);
                shard.write().count_stale_hit();
                Lookup::Refresh(block.into())
            }
            Some(Age::Fallback) => {
                shard.miss(state, hash);
                Lookup::Fallback(block.into())
            }
            Some(Age::Dead) | None => {
                drop(state);
                let cause = age.map_or(Cause::Invalidated, |_| Cause::Expired);
                let mut state = shard.write();
                let removed = state.remove_exactly(place, &block, cause);
                state.miss(hash);
                drop(state);
                self.release(removed.as_slice());
                Lookup::Stale
            }
        }
    }

    fn peek(
        &self,
        key: &KeyRef<'_>,
        is_current: impl Fn(DependenciesRef<'_>) -> bool,
    ) -> Option<Answer> {
        let state = self.shard(key.hash_value()).read();
        let block = state.block(state.find(key)?).clone();
        let age = state.age(&block, state.now());
        drop(state);
        let is_fit = age == Age::Fresh && is_current(block.dependencies());
        is_fit.then(|| block.into())
    }

    fn insert(
        &self,
        answer: PackedAnswer,
        is_current: impl Fn(DependenciesRef<'_>) -> bool,
    ) -> Inserted {
        if charge(&answer.block) > self.largest.load(Ordering::Acquire) {
            return Inserted::TooLarge;
        }
        let is_current = |block: &Block| is_current(block.dependencies());
        if self.is_ranked_by_score.load(Ordering::Relaxed) {
            self.insert_by_score(&answer, &is_current);
            return Inserted::Stored;
        }
        loop {
            if let Some(inserted) = self.insert_by_order(&answer, &is_current) {
                return inserted;
            }
            self.make_room(self.shard_index(answer.hash) + 1, &is_current);
        }
    }

    fn evict(
        &self,
        needed_bytes: usize,
        is_current: impl Fn(DependenciesRef<'_>) -> bool,
    ) -> usize {
        let is_current = |block: &Block| is_current(block.dependencies());
        let mut freed = 0;
        while freed < needed_bytes {
            // Beginning in another shard each time, so that no shard pays for all.
            let first = self.turn.fetch_add(1, Ordering::Relaxed);
            match self.evict_one(first, &is_current) {
                0 => break,
                charge => freed += charge,
            }
        }
        freed
    }

    fn sweep(&self, is_current: impl Fn(DependenciesRef<'_>) -> bool) -> usize {
        let is_current = |block: &Block| is_current(block.dependencies());
        let mut freed = 0;
        for shard in &self.shards {
            // From wherever the hand stands to the end, and a whole round from there.
            for _ in 0..2 {
                let mut goes_on = true;
                while goes_on {
                    let mut dropped = Dropped::new();
                    goes_on = shard.write().sweep(SWEEP_STEP, &is_current, &mut dropped);
                    freed += self.release(&dropped);
                }
            }
        }
        freed
    }

    fn answers(&self) -> Vec<PackedAnswer> {
        let mut answers = Vec::new();
        for shard in &self.shards {
            let blocks: Vec<_> = shard.read().blocks().cloned().collect();
            answers.extend(blocks.into_iter().map(PackedAnswer::of));
        }
        answers
    }

    fn clear(&self) {
        let setup = self.setup.load();
        for shard in &self.shards {
            let mut empty = setup.state();
            empty.set_capacity(self.capacity() / self.shards.len());
            let before = shard.replace(empty);
            let blocks: Vec<_> = before.blocks().cloned().collect();
            drop(before);
            self.release(&blocks);
        }
    }

    fn usage(&self) -> Usage {
        let mut usage = Usage {
            size_bytes: self.used.load(Ordering::Acquire),
            capacity_bytes: self.capacity(),
            ..Usage::default()
        };
        for shard in &self.shards {
            let (entries, counts) = shard.counts();
            usage.entries += entries;
            usage.counts.add(&counts);
        }
        usage
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::CacheManager;

    #[tokio::test]
    async fn a_hit_waits_for_no_other_hit_of_the_same_entry() {
        let backend = Arc::new(InMemoryBackend::new(1 << 20));
        let cache = CacheManager::new(Arc::clone(&backend), CacheConfig::default());
        let key = QueryKey::new("SELECT 1", &[], "");
        let stored = cache.put(key.clone(), "one", Vec::new(), 1.0).await;
        stored.expect("in memory");
        // Asked in the middle of the first look-up, while it holds its lock.
        let ask_beside = |_: DependenciesRef<'_>| {
            let (tell, told) = std::sync::mpsc::channel();
            let (backend, key) = (Arc::clone(&backend), key.clone());
            std::thread::spawn(move || {
                let found = backend.lookup(&key.as_ref(), |_| true);
                let _ = tell.send(matches!(found, Lookup::Hit(_)));
            });
            told.recv_timeout(Duration::from_secs(10)) == Ok(true)
        };
        assert!(matches!(
            backend.lookup(&key.as_ref(), ask_beside),
            Lookup::Hit(_)
        ));
    }
}
