//! Where entries are kept.

mod memory;

use bytes::Bytes;

use crate::clock;
use crate::error::Result;
use crate::eviction::EvictionPolicy;
use crate::types::{CacheEntry, EntryMetadata, KeyRef, Packed, QueryKey};
use crate::version::Dependencies;

pub use memory::{ENTRY_OVERHEAD, InMemoryBackend};

/// A store of entries.
///
/// The asynchronous methods are for maintenance and for people; the path of a hit is [`lookup`](Self::lookup), which
/// must not block.
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

    /// Looks an answer up and counts the use. An entry whose dependencies are out of date is removed.
    fn lookup(&self, key: &KeyRef<'_>, is_current: impl Fn(&Dependencies) -> bool) -> Lookup;

    /// Stores an entry in place of one with the same key, evicting others until there is room.
    fn insert(
        &self,
        entry: CacheEntry,
        policy: &dyn EvictionPolicy,
        is_current: impl Fn(&Dependencies) -> bool,
    ) -> Inserted;

    /// As [`insert`](Self::insert), for an answer that is packed with its key already. Stores that keep something else
    /// than that need not implement it.
    fn insert_packed(
        &self,
        answer: PackedAnswer,
        policy: &dyn EvictionPolicy,
        is_current: impl Fn(&Dependencies) -> bool,
    ) -> Inserted {
        self.insert(answer.into_entry(), policy, is_current)
    }

    /// Evicts until `needed_bytes` have been freed or nothing is left. Returns how many bytes were.
    fn evict(
        &self,
        needed_bytes: usize,
        policy: &dyn EvictionPolicy,
        is_current: impl Fn(&Dependencies) -> bool,
    ) -> usize;

    /// Lowers the capacity to `max_size_bytes` if it is larger. Called once by each manager, before it stores anything.
    fn limit_capacity(&self, max_size_bytes: usize);

    /// Removes everything.
    fn clear(&self);

    /// What is held.
    fn usage(&self) -> Usage;
}

/// An answer with its key in one allocation.
#[derive(Debug)]
pub struct PackedAnswer {
    pub(crate) packed: Packed<Bytes>,
    pub(crate) dependencies: Dependencies,
    pub(crate) execution_time_ms: f64,
}

impl PackedAnswer {
    /// The same as an entry that was stored just now.
    #[must_use]
    pub fn into_entry(self) -> CacheEntry {
        let now = clock::now();
        CacheEntry {
            key: self.packed.to_key(),
            data: self.packed.data(),
            metadata: EntryMetadata {
                size_bytes: 0,
                created_at: now,
                last_accessed: now,
                access_count: 0,
                execution_time_ms: self.execution_time_ms,
            },
            dependencies: self.dependencies,
        }
    }
}

/// What came of a look-up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a look-up ends in one of these three ways"
)]
pub enum Lookup {
    /// The answer.
    Hit(Bytes),
    /// Nothing under that key.
    Miss,
    /// There was an answer that is out of date.
    Stale,
}

/// What came of an insertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "an insertion ends in one of these two ways"
)]
pub enum Inserted {
    /// The entry is stored.
    Stored,
    /// It would take more than its share of the capacity.
    TooLarge,
}

/// What a store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Entries.
    pub entries: usize,
    /// Bytes charged for them.
    pub size_bytes: usize,
    /// Bound on `size_bytes`.
    pub capacity_bytes: usize,
    /// Entries removed to make room so far.
    pub evictions: u64,
}
