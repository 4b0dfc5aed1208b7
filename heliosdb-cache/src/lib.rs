//! A cache of query results: bounded by bytes at every instant, invalidated by version slots, computed once for each
//! missing key.
//!
//! ```
//! use std::sync::Arc;
//! use heliosdb_cache::{CacheConfig, CacheManager, InMemoryBackend, QueryKey};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let cache = CacheManager::new(Arc::new(InMemoryBackend::new(64 << 20)), CacheConfig::default());
//! let key = QueryKey::new("SELECT count(*) FROM orders", &[], "shop");
//! cache.put(key.clone(), "42", vec!["orders".to_owned()], 12.5).await?;
//! assert_eq!(cache.get(&key).await?.as_deref(), Some(&b"42"[..]));
//!
//! // A write marks what it changes before it is sent, and ends before it is acknowledged.
//! let write = cache.versions().begin_write(&[cache.table_slot("orders")]);
//! assert_eq!(cache.get(&key).await?, None);
//! write.finish();
//! # Ok::<_, heliosdb_cache::CacheError>(()) })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! # Guarantees
//! * **Never stale**: an entry is served only while the versions of everything it depends on are those read before it
//!   was computed, and no writer is pending on them. Invalidation is one atomic addition, whatever the number of
//!   entries ([`version`]).
//! * **Never stampeding**: one computation for a key; the others get its value. A caller joins only a computation that
//!   began under versions still current when it arrived ([`CacheManager::join`]).
//! * **Bounded**: `size_bytes <= max_size_bytes` holds at every instant under any concurrency. An entry is charged its
//!   query text, parameters, value and [`ENTRY_OVERHEAD`]; a namespace is shared and not charged.
//! * **No lock is held** while a policy runs, while anything is awaited, or while a waiter is woken.
//!
//! # Limits
//! One process, memory only. Entries do not expire by time. Keys are compared in full: queries that differ in a space
//! are two entries.
#![forbid(unsafe_code)]

mod backend;
mod block;
mod cache_manager;
mod clock;
mod config;
mod curve;
mod doorkeeper;
mod error;
mod eviction;
mod flights;
mod lifetime;
#[doc(hidden)]
pub mod order;
mod record;
mod snapshot;
mod stampede_protection;
mod stats;
mod sync;
mod types;
pub mod version;

pub use backend::{
    ENTRY_OVERHEAD, InMemoryBackend, Inserted, Lookup, PackedAnswer, SecondTier, StorageBackend,
    TieredBackend, Usage,
};
#[cfg(feature = "redis")]
pub use backend::{RedisBackend, RedisConfig, RedisStats};
pub use block::Answer;
pub use cache_manager::{CacheManager, PutOutcome};
pub use clock::Clock;
pub use config::CacheConfig;
pub use curve::{CURVE_HALF_LIFE, CurvePoint};
pub use error::{CacheError, Result};
pub use eviction::{
    AdaptivePolicy, CostAwarePolicy, EvictionPolicy, HybridPolicy, LFU_HALF_LIFE_SECONDS,
    LfuPolicy, LruPolicy, Ranking, SAMPLE,
};
pub use flights::{Fill, Flight, Follower};
pub use lifetime::Lifetime;
pub use stampede_protection::{ComputeGuard, StampedeProtection};
pub use stats::{CacheStats, Rejections, StoreCounts};
pub use types::{CacheEntry, EntryMetadata, HashedStr, KeyRef, PRIORITY_HALF_LIFE, QueryKey};
pub use version::{
    Dependencies, DependenciesRef, Fence, Lineage, Position, SlotId, VersionSlots, WriteIntent,
};
