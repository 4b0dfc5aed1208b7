//! Where entries are kept.

mod memory;
#[cfg(feature = "redis")]
mod redis;
mod shard;
mod tiered;
mod uses;

use bytes::Bytes;

use crate::block::{Answer, BLOCK_OVERHEAD, Block};
use crate::clock;
use crate::config::CacheConfig;
use crate::error::Result;
use crate::stats::StoreCounts;
use crate::types::{CacheEntry, EntryMetadata, KeyRef, QueryKey};
use crate::version::DependenciesRef;

pub use memory::InMemoryBackend;
#[cfg(feature = "redis")]
pub use redis::{RedisBackend, RedisConfig, RedisStats};
pub use shard::ENTRY_OVERHEAD;
pub use tiered::{SecondTier, TieredBackend};

/// A store of entries.
///
/// The asynchronous methods are for maintenance and for people; the path of a hit is [`lookup`](Self::lookup), which
/// must not block. `is_current` tells whether what an entry depends on is unchanged; it may be called under a lock.
pub trait StorageBackend: Send + Sync + 'static {
    /// The keys of all entries, in no order, as of no single moment.
    ///
    /// # Errors
    /// Those of the store.
    fn keys(&self) -> impl Future<Output = Result<Vec<QueryKey>>> + Send;

    /// A copy of an entry. Does not count as a use.
    ///
    /// # Errors
    /// Those of the store.
    fn get(&self, key: &QueryKey) -> impl Future<Output = Result<Option<CacheEntry>>> + Send;

    /// Removes an entry. True if there was one.
    ///
    /// # Errors
    /// Those of the store.
    fn remove(&self, key: &QueryKey) -> impl Future<Output = Result<bool>> + Send;

    /// Takes over what concerns a store: capacity, eviction policy, clock. Called once by each manager, before it stores
    /// anything.
    fn configure(&self, config: &CacheConfig);

    /// Looks an answer up and counts the use. An entry that may not be served any more is removed.
    fn lookup(&self, key: &KeyRef<'_>, is_current: impl Fn(DependenciesRef<'_>) -> bool) -> Lookup;

    /// The answer that [`lookup`](Self::lookup) would serve, without anything being counted or removed. By default none.
    fn peek(
        &self,
        key: &KeyRef<'_>,
        is_current: impl Fn(DependenciesRef<'_>) -> bool,
    ) -> Option<Answer> {
        let _ = (key, is_current);
        None
    }

    /// Stores an answer in place of one with the same key, evicting others until there is room.
    fn insert(
        &self,
        answer: PackedAnswer,
        is_current: impl Fn(DependenciesRef<'_>) -> bool,
    ) -> Inserted;

    /// Evicts until `needed_bytes` have been freed or nothing is left. Returns how many bytes were.
    fn evict(&self, needed_bytes: usize, is_current: impl Fn(DependenciesRef<'_>) -> bool)
    -> usize;

    /// Removes the entries that may not be served any more. Returns how many bytes were freed.
    fn sweep(&self, is_current: impl Fn(DependenciesRef<'_>) -> bool) -> usize {
        let _ = is_current;
        0
    }

    /// All entries, in no order, as of no single moment. By default none: then none can be saved to a file.
    fn answers(&self) -> Vec<PackedAnswer> {
        Vec::new()
    }

    /// Removes everything.
    fn clear(&self);

    /// What is held, and what came of the look-ups.
    fn usage(&self) -> Usage;

    /// True if there is a slower tier behind this one, which the following three speak to.
    const IS_TIERED: bool = false;

    /// What the slower tier has under an identifier.
    fn fetch_behind(&self, id: &[u8]) -> impl Future<Output = Option<Bytes>> + Send {
        let _ = id;
        std::future::ready(None)
    }

    /// Stores something in the slower tier, some time later. False if it refused.
    fn store_behind(&self, id: &[u8], record: Bytes) -> bool {
        let _ = (id, record);
        false
    }

    /// Removes something from the slower tier, some time later.
    fn remove_behind(&self, id: &[u8]) {
        let _ = id;
    }
}

/// An answer with its key and what is known of it, in one allocation.
#[derive(Debug, Clone)]
pub struct PackedAnswer {
    pub(crate) block: Block,
    pub(crate) hash: u64,
    /// How much had been invalidated when it was stored.
    pub(crate) changes: u64,
}

impl PackedAnswer {
    pub(crate) fn of(block: Block) -> Self {
        let hash = block.key().hash_value();
        Self {
            block,
            hash,
            changes: 0,
        }
    }

    /// The same as an entry that was stored just now.
    #[must_use]
    pub fn into_entry(self) -> CacheEntry {
        let now = clock::now();
        let Self { block, .. } = self;
        CacheEntry {
            key: block.key().to_key(),
            data: block.clone().into(),
            metadata: EntryMetadata {
                size_bytes: block.len() + BLOCK_OVERHEAD,
                created_at: now,
                last_accessed: now,
                access_count: 0,
                execution_time_ms: block.cost_ms().into(),
            },
            block,
        }
    }
}

/// What came of a look-up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lookup {
    /// The answer, to be served if computing it anew fails, and only then: its time is over.
    Fallback(Answer),
    /// The answer.
    Hit(Answer),
    /// Nothing under that key.
    Miss,
    /// The answer, and somebody should compute it anew: its time is nearly over, or it is within
    /// [`stale_while_revalidate`](crate::Lifetime::stale_while_revalidate).
    Refresh(Answer),
    /// There was an answer that is out of date.
    Stale,
}

/// What came of an insertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inserted {
    /// The policy holds on to everything else rather than to this.
    NotAdmitted,
    /// The entry is stored.
    Stored,
    /// It would take more than its share of the capacity.
    TooLarge,
}

/// What a store holds, and did.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct Usage {
    /// Entries.
    pub entries: usize,
    /// Bytes charged for them.
    pub size_bytes: usize,
    /// Bound on `size_bytes`.
    pub capacity_bytes: usize,
    /// What came of look-ups, and why entries left.
    pub counts: StoreCounts,
}
