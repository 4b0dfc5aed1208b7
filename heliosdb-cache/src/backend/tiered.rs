//! A fast store with a large, slow, shared one behind it.

use bytes::Bytes;

use crate::backend::{InMemoryBackend, Inserted, Lookup, PackedAnswer, StorageBackend, Usage};
use crate::block::Answer;
use crate::config::CacheConfig;
use crate::error::Result;
use crate::types::{CacheEntry, KeyRef, QueryKey};
use crate::version::DependenciesRef;

/// A store that keeps bytes under identifiers, may be slow or down, and may be shared with other processes: it is trusted
/// with nothing but keeping what it says it keeps.
///
/// What it holds is checked when it is read: format, question, lineage, and that nothing that the answer depends on has
/// changed since ([`VersionSlots::is_current_at`](crate::VersionSlots::is_current_at)).
pub trait SecondTier: Send + Sync + 'static {
    /// What was stored under an identifier. `None` if there is nothing, or it can't be had in time.
    ///
    /// # Cancel safety
    /// Dropping the future must leave no trace.
    fn fetch(&self, id: &[u8]) -> impl Future<Output = Option<Bytes>> + Send;

    /// Stores a value some time later. False if there is no room for it in the queue. Must not block.
    fn store(&self, id: &[u8], value: Bytes) -> bool;

    /// Removes a value some time later.
    fn remove(&self, id: &[u8]);
}

/// Two tiers: look-ups are answered from the first; who computes an answer asks the second before, and writes it there
/// afterwards without waiting.
///
/// An answer that was found in the second tier is promoted to the first. Evictions and statistics of entries are those of
/// the first tier.
#[derive(Debug)]
pub struct TieredBackend<F, S> {
    first: F,
    second: S,
}

impl<S: SecondTier> TieredBackend<InMemoryBackend, S> {
    /// `second` behind `first`.
    #[must_use]
    pub fn new(first: InMemoryBackend, second: S) -> Self {
        Self { first, second }
    }
}

impl<F, S> TieredBackend<F, S> {
    /// The fast tier.
    pub fn first(&self) -> &F {
        &self.first
    }

    /// The slow tier.
    pub fn second(&self) -> &S {
        &self.second
    }
}

impl<F: StorageBackend, S: SecondTier> StorageBackend for TieredBackend<F, S> {
    const IS_TIERED: bool = true;

    async fn keys(&self) -> Result<Vec<QueryKey>> {
        self.first.keys().await
    }

    async fn get(&self, key: &QueryKey) -> Result<Option<CacheEntry>> {
        self.first.get(key).await
    }

    async fn remove(&self, key: &QueryKey) -> Result<bool> {
        self.first.remove(key).await
    }

    fn configure(&self, config: &CacheConfig) {
        self.first.configure(config);
    }

    fn lookup(&self, key: &KeyRef<'_>, is_current: impl Fn(DependenciesRef<'_>) -> bool) -> Lookup {
        self.first.lookup(key, is_current)
    }

    fn peek(
        &self,
        key: &KeyRef<'_>,
        is_current: impl Fn(DependenciesRef<'_>) -> bool,
    ) -> Option<Answer> {
        self.first.peek(key, is_current)
    }

    fn insert(
        &self,
        answer: PackedAnswer,
        is_current: impl Fn(DependenciesRef<'_>) -> bool,
    ) -> Inserted {
        self.first.insert(answer, is_current)
    }

    fn evict(
        &self,
        needed_bytes: usize,
        is_current: impl Fn(DependenciesRef<'_>) -> bool,
    ) -> usize {
        self.first.evict(needed_bytes, is_current)
    }

    fn sweep(&self, is_current: impl Fn(DependenciesRef<'_>) -> bool) -> usize {
        self.first.sweep(is_current)
    }

    fn answers(&self) -> Vec<PackedAnswer> {
        self.first.answers()
    }

    fn clear(&self) {
        self.first.clear();
    }

    fn usage(&self) -> Usage {
        self.first.usage()
    }

    async fn fetch_behind(&self, id: &[u8]) -> Option<Bytes> {
        self.second.fetch(id).await
    }

    fn store_behind(&self, id: &[u8], record: Bytes) -> bool {
        self.second.store(id, record)
    }

    fn remove_behind(&self, id: &[u8]) {
        self.second.remove(id);
    }
}
