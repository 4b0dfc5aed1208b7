//! A cache of query results: bounded by bytes at every instant, invalidated by version slots, computed once for each
//! missing answer. It knows no SQL and opens no socket (but for the `redis` feature).
//!
//! # Begin here
//! ```
//! use std::sync::Arc;
//! use heliosdb_cache::{CacheConfig, CacheError, CacheManager, InMemoryBackend, QueryKey};
//!
//! # async fn query(_: &str) -> Result<String, std::io::Error> { Ok("42".into()) }
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let cache = CacheManager::new(Arc::new(InMemoryBackend::new(64 << 20)), CacheConfig::default());
//!
//! // Statement, parameters, and what else decides the answer: database, role, settings.
//! let key = QueryKey::new("SELECT count(*) FROM orders WHERE shop = $1", &["7"], "sales/alice");
//! let answer = cache
//!     .get_or_compute(&key, &["orders"], async {
//!         let rows = query("SELECT count(*) FROM orders WHERE shop = 7").await;
//!         rows.map(Into::into).map_err(|error| CacheError::Compute(error.to_string()))
//!     })
//!     .await?;
//! assert_eq!(answer, "42");
//!
//! // From memory: the closure is not called.
//! let again = cache.get_or_compute(&key, &["orders"], async { unreachable!() }).await?;
//! assert_eq!(again, answer);
//! # Ok::<_, CacheError>(()) })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//! A hundred tasks that ask this at the same time cause one computation. If it fails, panics or is dropped, the next of
//! them computes. [`CacheManager`] is cheap to clone; all clones are the same cache.
//!
//! # When something is written
//! Mark what a statement writes before it is sent, and take the mark away before its success is reported. Then no reader
//! who learned of the write is given an answer from before it, and no answer that was computed meanwhile is kept.
//! ```
//! # use std::sync::Arc;
//! # use heliosdb_cache::{CacheConfig, CacheManager, InMemoryBackend, QueryKey};
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! # let cache = CacheManager::new(Arc::new(InMemoryBackend::new(64 << 20)), CacheConfig::default());
//! # let key = QueryKey::new("SELECT 1", &[], "sales");
//! cache.put(key.clone(), "42", vec!["orders".to_owned()], 12.5).await?;
//!
//! let write = cache.versions().begin_write(&[cache.table_slot("orders")]);
//! // UPDATE orders ... COMMIT
//! assert_eq!(cache.get(&key).await?, None, "while it is under way");
//! write.finish();
//! assert_eq!(cache.get(&key).await?, None, "and afterwards");
//! # Ok::<_, heliosdb_cache::CacheError>(()) })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//! For writes that are only heard of afterwards there are [`invalidate_table`](CacheManager::invalidate_table) and
//! [`invalidate_all`](CacheManager::invalidate_all); for rows, [`VersionSlots::slot`] makes a slot of any hash, and
//! [`join`](CacheManager::join) takes slots in place of names. All of them are one atomic addition, whatever the number of
//! entries. [`version`] says why this is sound.
//!
//! # Time
//! Without a word from you an answer lives until it is invalidated or evicted. A [`Lifetime`] limits that: time to live,
//! idle time, serving stale while it is computed anew, serving stale where that fails. It can be set for all
//! ([`CacheConfig::lifetime`]) or for each, and computing can begin before the time is over
//! ([`CacheConfig::refresh_ahead`]: XFetch, Vattani et al., VLDB 2015).
//! ```
//! # use std::sync::Arc;
//! use std::time::Duration;
//! # use heliosdb_cache::{CacheConfig, CacheError, CacheManager, InMemoryBackend, QueryKey};
//! use heliosdb_cache::{Clock, Lifetime};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let mut config = CacheConfig::default();
//! config.clock = Clock::manual(); // for the test that this is; leave it out
//! config.ttl_jitter = 0.1;
//! let clock = config.clock.clone();
//! let cache = CacheManager::new(Arc::new(InMemoryBackend::new(64 << 20)), config);
//!
//! let mut lifetime = Lifetime::of(Duration::from_secs(60));
//! lifetime.stale_if_error = Duration::from_secs(600);
//! # let key = QueryKey::new("SELECT 1", &[], "sales");
//! let compute = async { Ok("42".into()) };
//! cache.get_or_compute_with(&key, &["orders"], lifetime, compute).await?;
//!
//! clock.advance(Duration::from_secs(90));
//! let fail = async { Err(CacheError::Compute("the database is down".into())) };
//! assert_eq!(cache.get_or_compute_with(&key, &["orders"], lifetime, fail).await?, "42");
//! # Ok::<_, CacheError>(()) })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! # What stays when memory is short
//! [`CacheConfig::eviction_policy`]: the default [`AdaptivePolicy`] needs no tuning; [`CostAwarePolicy`] keeps what saves
//! the most time for each byte; [`LruPolicy`], [`LfuPolicy`] and [`HybridPolicy`] are what their names say. All are O(1). A
//! policy of your own is a function from an entry to a score:
//! ```
//! # use std::sync::Arc;
//! use heliosdb_cache::{CacheConfig, CacheEntry, EvictionPolicy};
//!
//! struct DearestStay;
//!
//! impl EvictionPolicy for DearestStay {
//!     fn calculate_score(&self, entry: &CacheEntry) -> f64 {
//!         entry.metadata.execution_time_ms
//!     }
//!     fn name(&self) -> &str {
//!         "dearest stay"
//!     }
//! }
//!
//! let mut config = CacheConfig::default();
//! config.eviction_policy = Arc::new(DearestStay);
//! ```
//! What need not come in: [`min_result_size`](CacheConfig::min_result_size),
//! [`max_result_size`](CacheConfig::max_result_size), [`max_entry_share`](CacheConfig::max_entry_share),
//! [`min_execution_time_ms`](CacheConfig::min_execution_time_ms), and a [`doorkeeper`](CacheConfig::doorkeeper) for what
//! is asked for once.
//!
//! # How much memory?
//! [`stats`](CacheManager::stats) has counts by cause; [`curve`](CacheManager::curve) estimates the hit ratio at a quarter
//! of the memory to eight times as much (miniature caches on a sample of the keys: Waldspurger et al., USENIX ATC 2017).
//! ```
//! # use std::sync::Arc;
//! # use heliosdb_cache::{CacheConfig, CacheManager, InMemoryBackend};
//! # let cache = CacheManager::new(Arc::new(InMemoryBackend::new(64 << 20)), CacheConfig::default());
//! for point in cache.curve() {
//!     println!("{:>5} MiB: {:.1} %", point.capacity_bytes >> 20, 100.0 * point.hit_ratio);
//! }
//! ```
//!
//! # After a restart, and between processes
//! [`save`](CacheManager::save) and [`load`](CacheManager::load) keep answers in a checksummed file. With the feature
//! `redis`, `TieredBackend<InMemoryBackend, RedisBackend>` puts a Redis or Valkey behind the memory, one server or a
//! cluster; a question never waits for it longer than its budget. In both cases an answer is served only if it is known to
//! hold everything that this process knows to have changed ([`Position`]): a process that lags behind is refused, not
//! believed.
//! ```
//! # use std::sync::Arc;
//! # use heliosdb_cache::{CacheConfig, CacheManager, InMemoryBackend, QueryKey};
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! # let open = || CacheManager::new(Arc::new(InMemoryBackend::new(64 << 20)), CacheConfig::default());
//! # let key = QueryKey::new("SELECT 1", &[], "sales");
//! # let folder = std::env::temp_dir().join(format!("heliosdb-cache-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! # let file = folder.join("cache");
//! # let cache = open();
//! # cache.put(key.clone(), "42", vec!["orders".to_owned()], 12.5).await?;
//! // Your word that the database is as it was: its identifier and log position, for instance.
//! let lineage = *b"db 71, at 16/B37";
//! cache.save(&file, &lineage)?;
//!
//! let restarted = open();
//! assert_eq!(restarted.load(&file, &lineage)?, 1);
//! assert_eq!(restarted.get(&key).await?.as_deref(), Some(&b"42"[..]));
//! assert!(open().load(&file, b"db 71, at 16/C00").is_err());
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<_, Box<dyn std::error::Error>>(()) })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! # Closer to the metal
//! A service that has a key's parts at hand looks up without an allocation, and drives a computation itself:
//! ```
//! # use std::sync::Arc;
//! # use std::time::Duration;
//! # use heliosdb_cache::{CacheConfig, CacheManager, InMemoryBackend};
//! use heliosdb_cache::{Flight, HashedStr, KeyRef};
//!
//! # let cache = CacheManager::new(Arc::new(InMemoryBackend::new(64 << 20)), CacheConfig::default());
//! // Once for a statement and once for a session.
//! let (text, session) = (HashedStr::new("SELECT * FROM t WHERE id = $1"), HashedStr::new("db/role"));
//! let slots = [cache.table_slot("t")];
//!
//! let id = 7_u64.to_be_bytes();
//! let key = KeyRef::prepared(&text, &id, &session);
//! if cache.lookup(&key).is_none() {
//!     match cache.join(&key, &slots) {
//!         // Ask the database, then complete. Dropped instead, the followers are told to ask themselves.
//!         Flight::Leader(fill) => fill.complete("a row".into(), Duration::from_millis(3)),
//!         // follower.wait().await
//!         Flight::Follower(follower) => drop(follower),
//!         // Ask the database; the answer is for this caller alone.
//!         Flight::Uncached | Flight::Overload => {}
//!     }
//! }
//! assert_eq!(cache.lookup(&key).as_deref(), Some(&b"a row"[..]));
//! ```
//! [`StampedeProtection`] is single flight by itself, without a cache.
//!
//! # Guarantees
//! * **Never stale**: an entry is served only while the versions of everything it depends on are those read before it
//!   was computed, and no writer is pending on them.
//! * **Never stampeding**: one computation for a key; the others get its value. A caller joins only a computation that
//!   began under versions still current when it arrived.
//! * **Bounded**: `size_bytes <= max_size_bytes` holds at every instant under any concurrency. An entry is charged its
//!   query text, parameters, value, four bytes a dependency and [`ENTRY_OVERHEAD`]. A namespace is shared and not charged.
//! * **Exact**: keys are compared in full. Two that differ in a space are two entries; two that share a hash are too.
//! * **A hit** takes one look-up and allocates nothing; an [`Answer`] shares the entry's memory and outlives it.
//! * **Dead entries go**: what was invalidated or is past its time leaves when it is found, when room is needed, or with
//!   the next sweep ([`CacheConfig::sweep_interval`], 10 s).
//! * **No lock is held** while a score is computed, while anything is awaited, or while a waiter is woken.
//!
//! # Limits
//! Values are bytes. What the allocator adds, and what eviction remembers of entries that left, are not charged (bounded
//! by the number of entries). Redis is reached without TLS. A computation within
//! [`get_or_compute`](CacheManager::get_or_compute) that has taken longer than
//! [`flight_timeout`](CacheConfig::flight_timeout) is not stopped, but no longer waited for. One slot stands for many
//! tables if there are many: they invalidate each other too often, never too rarely.
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
#[doc(hidden)]
pub mod fault;
mod feed;
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
pub use feed::{ChangeFeed, FEED_LEN, Gap};
pub use flights::{Fill, Flight, Follower};
pub use lifetime::Lifetime;
pub use stampede_protection::{ComputeGuard, StampedeProtection};
pub use stats::{CacheStats, Rejections, StoreCounts};
pub use types::{CacheEntry, EntryMetadata, HashedStr, KeyRef, PRIORITY_HALF_LIFE, QueryKey};
pub use version::{
    Dependencies, DependenciesRef, Fence, Lineage, Observation, Position, SlotId, VersionSlots,
    WriteIntent,
};
