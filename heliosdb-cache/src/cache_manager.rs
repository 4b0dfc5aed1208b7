//! The cache: look up, join or begin a computation, store.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use hashbrown::HashTable;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::backend::{InMemoryBackend, Inserted, Lookup, StorageBackend};
use crate::config::CacheConfig;
use crate::error::Result;
use crate::eviction::EvictionPolicy;
use crate::stats::{CacheStats, Counter};
use crate::types::{CacheEntry, EntryMetadata, HashedStr, KeyRef, QueryKey};
use crate::version::{Dependencies, SlotId, VersionSlots};

/// A cache of query results.
///
/// ```
/// # use std::sync::Arc;
/// # use heliosdb_cache::{CacheConfig, CacheManager, InMemoryBackend, QueryKey};
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let cache = CacheManager::new(Arc::new(InMemoryBackend::new(64 << 20)), CacheConfig::default());
/// let key = QueryKey::new("SELECT name FROM users WHERE id = $1", &["7"], "shop");
/// let answer = cache.get_or_compute(&key, &["users"], async { Ok("Ada".into()) }).await?;
/// assert_eq!(answer, "Ada");
/// cache.invalidate_table("users");
/// assert_eq!(cache.get(&key).await?, None);
/// # Ok::<_, Box<dyn std::error::Error>>(()) })?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub struct CacheManager<B: StorageBackend = InMemoryBackend> {
    shared: Arc<Shared<B>>,
}

struct Shared<B> {
    storage: Arc<B>,
    config: CacheConfig,
    policy: Arc<dyn EvictionPolicy>,
    versions: Arc<VersionSlots>,
    flights: Flights,
    hits: Counter,
    misses: Counter,
    coalesced: Counter,
    fills: Counter,
    rejected: Counter,
    invalidated: Counter,
}

/// The computations under way, sharded by key.
#[derive(Default)]
struct Flights {
    shards: [FlightShard; FLIGHT_SHARDS],
    /// Counted apart from the shards, so that the bound on all is exact.
    count: crate::sync::AtomicUsize,
}

const FLIGHT_SHARDS: usize = 16;

/// Why a lock: finding, checking and replacing a flight must be one step. Nothing is awaited or woken under it.
#[derive(Default)]
#[repr(align(128))]
struct FlightShard(Mutex<HashTable<Arc<FlightState>>>);

struct FlightState {
    key: QueryKey,
    /// What the computation depends on, as of before it began.
    observed: Dependencies,
    /// Set once: the value, or `None` if the leader gave up.
    outcome: OnceLock<Option<Bytes>>,
    ended: Notify,
}

/// What a request that found no answer is to do.
#[derive(Debug)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a request does one of these four things"
)]
pub enum Flight<B: StorageBackend = InMemoryBackend> {
    /// Compute, and [`complete`](Fill::complete) with the answer.
    Leader(Fill<B>),
    /// Another computes: [`wait`](Follower::wait) for it.
    Follower(Follower),
    /// Compute without storing: a write is pending on something that the answer depends on.
    Uncached,
    /// Compute without storing: as many computations are in flight as are allowed.
    Overload,
}

/// What came of a [`put`](CacheManager::put).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PutOutcome {
    /// The entry is stored.
    Stored,
    /// Too small, too large, too cheap to compute, or out of date: not stored.
    Rejected,
}

impl<B: StorageBackend> CacheManager<B> {
    /// A cache over a store. Values in `config` that can't work are replaced by the nearest that can; check with
    /// [`CacheConfig::validate`] first where they come from outside.
    #[must_use]
    pub fn new(backend: Arc<B>, config: CacheConfig) -> Self {
        let policy = config.policy();
        let versions = VersionSlots::new(config.version_slot_bits);
        Self {
            shared: Arc::new(Shared {
                storage: backend,
                config,
                policy,
                versions,
                flights: Flights::default(),
                hits: Counter::default(),
                misses: Counter::default(),
                coalesced: Counter::default(),
                fills: Counter::default(),
                rejected: Counter::default(),
                invalidated: Counter::default(),
            }),
        }
    }

    /// The version slots: writers mark them, entries are checked against them.
    #[must_use]
    pub fn versions(&self) -> &Arc<VersionSlots> {
        &self.shared.versions
    }

    /// Looks an answer up: one hash, one short lock, a comparison of the whole key, and a check that nothing the answer
    /// depends on has changed or is about to. Allocates nothing.
    #[must_use]
    pub fn lookup(&self, key: &KeyRef<'_>) -> Option<Bytes> {
        let shared = &*self.shared;
        match shared
            .storage
            .lookup(key, |dependencies| shared.versions.is_current(dependencies))
        {
            Lookup::Hit(data) => {
                shared.hits.add(1);
                Some(data)
            }
            Lookup::Miss => {
                shared.misses.add(1);
                None
            }
            Lookup::Stale => {
                shared.misses.add(1);
                shared.invalidated.add(1);
                None
            }
        }
    }

    /// Begins the computation of an answer that depends on `slots`, or joins the one under way.
    ///
    /// The versions of the slots are read here: the caller must not have asked the database before. A computation
    /// under way is joined only if it began under versions that still stand; otherwise its answer could be older than
    /// a write that this caller knows of, and a new one is begun in its place.
    #[must_use]
    pub fn join(&self, key: &KeyRef<'_>, slots: &[SlotId]) -> Flight<B> {
        let shared = &self.shared;
        let Some(observed) = shared.versions.observe(slots) else {
            return Flight::Uncached;
        };
        let flights = &shared.flights;
        let hash = key.hash_value();
        let mut shard = flights.shard(hash).0.lock();
        match shard.find_mut(hash, |flight| key.matches(&flight.key)) {
            Some(flight) if shared.versions.is_current(&flight.observed) => {
                let follower = Follower {
                    flight: Arc::clone(flight),
                    timeout: shared.config.flight_timeout,
                };
                drop(shard);
                shared.coalesced.add(1);
                return Flight::Follower(follower);
            }
            Some(outdated) => {
                let flight = FlightState::new(key, observed);
                *outdated = Arc::clone(&flight);
                return Flight::Leader(Fill {
                    shared: Arc::clone(shared),
                    flight,
                });
            }
            None => {}
        }
        if !flights.reserve(shared.config.max_in_flight) {
            return Flight::Overload;
        }
        let flight = FlightState::new(key, observed);
        shard.insert_unique(hash, Arc::clone(&flight), |flight| flight.key.hash_value());
        Flight::Leader(Fill {
            shared: Arc::clone(shared),
            flight,
        })
    }

    /// Looks an answer up.
    ///
    /// # Errors
    /// None with a store in memory.
    #[expect(clippy::unused_async, reason = "other stores have to wait")]
    pub async fn get(&self, key: &QueryKey) -> Result<Option<Bytes>> {
        Ok(self.lookup(&key.as_ref()))
    }

    /// Stores an answer that depends on `tables` and took `execution_time_ms` to compute.
    ///
    /// Its versions are those of now: use [`get_or_compute`](Self::get_or_compute), or [`join`](Self::join), where a
    /// write may come between the computation and this call.
    ///
    /// # Errors
    /// None with a store in memory; what is not admitted is not an error.
    #[expect(clippy::unused_async, reason = "other stores have to wait")]
    pub async fn put(
        &self,
        key: QueryKey,
        data: impl Into<Bytes>,
        tables: Vec<String>,
        execution_time_ms: f64,
    ) -> Result<PutOutcome> {
        let shared = &self.shared;
        let Some(observed) = shared.versions.observe(&self.slots(&tables)) else {
            return Ok(PutOutcome::Rejected);
        };
        Ok(shared.store(key, data.into(), observed, execution_time_ms))
    }

    /// The answer from the cache, from another caller's computation, or from `compute`, of which one runs for a key
    /// at a time.
    ///
    /// # Errors
    /// That of `compute`. It is not shared: the next in line computes for itself.
    ///
    /// # Cancel safety
    /// Dropping the future drops `compute`; whoever waits for it computes for itself.
    pub async fn get_or_compute(
        &self,
        key: &QueryKey,
        tables: &[&str],
        compute: impl Future<Output = Result<Bytes>>,
    ) -> Result<Bytes> {
        let slots: Vec<SlotId> = tables.iter().map(|table| self.table_slot(table)).collect();
        for _ in 0..JOINS_MAX {
            if let Some(data) = self.lookup(&key.as_ref()) {
                return Ok(data);
            }
            match self.join(&key.as_ref(), &slots) {
                Flight::Leader(fill) => {
                    let began = std::time::Instant::now();
                    let data = compute.await?;
                    fill.complete(data.clone(), began.elapsed());
                    return Ok(data);
                }
                Flight::Follower(follower) => {
                    if let Some(data) = follower.wait().await {
                        return Ok(data);
                    }
                }
                Flight::Uncached | Flight::Overload => break,
            }
        }
        compute.await
    }

    /// Evicts the entries with the lowest scores until `needed_bytes` have been freed, or nothing is left.
    ///
    /// Insertions do this by themselves.
    ///
    /// # Errors
    /// None with a store in memory.
    #[expect(clippy::unused_async, reason = "other stores have to wait")]
    pub async fn evict_entries(&self, needed_bytes: usize) -> Result<()> {
        let shared = &self.shared;
        shared
            .storage
            .evict(needed_bytes, &*shared.policy, |dependencies| {
                shared.versions.is_current(dependencies)
            });
        Ok(())
    }

    /// Invalidates all answers that depend on a table, in constant time.
    pub fn invalidate_table(&self, table: &str) {
        self.shared.versions.invalidate(&[self.table_slot(table)]);
    }

    /// Forgets everything. Nothing that was there, or was being computed, is served afterwards.
    pub fn clear(&self) {
        self.shared.versions.invalidate_all();
        self.shared.storage.clear();
    }

    /// What the cache did and holds.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let shared = &self.shared;
        let usage = shared.storage.usage();
        CacheStats {
            hits: shared.hits.get(),
            misses: shared.misses.get(),
            coalesced: shared.coalesced.get(),
            fills: shared.fills.get(),
            rejected: shared.rejected.get(),
            invalidated: shared.invalidated.get(),
            evictions: usage.evictions,
            entries: usage.entries,
            size_bytes: usage.size_bytes,
            capacity_bytes: usage.capacity_bytes,
            in_flight: shared.flights.count.load(crate::sync::Ordering::Acquire),
        }
    }

    fn slots(&self, tables: &[String]) -> Vec<SlotId> {
        tables.iter().map(|table| self.table_slot(table)).collect()
    }

    /// The slot that stands for a table's name.
    #[must_use]
    pub fn table_slot(&self, table: &str) -> SlotId {
        self.shared
            .versions
            .slot(HashedStr::new(table).hash_value())
    }
}

/// How often a caller joins again after its leader gave up, before it computes without the cache.
const JOINS_MAX: usize = 3;

impl<B: StorageBackend> fmt::Debug for CacheManager<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheManager")
            .field("config", &self.shared.config)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl<B: StorageBackend> Shared<B> {
    /// Stores an answer if it is worth it and still true.
    fn store(
        &self,
        key: QueryKey,
        data: Bytes,
        observed: Dependencies,
        execution_time_ms: f64,
    ) -> PutOutcome {
        let config = &self.config;
        let admitted = (config.min_result_size..=config.max_result_size).contains(&data.len())
            // Written so that NaN, a time that nobody measured, is not admitted where a minimum is asked for.
            && (config.min_execution_time_ms <= 0.0 || execution_time_ms >= config.min_execution_time_ms)
            && self.versions.is_current(&observed);
        if !admitted {
            self.rejected.add(1);
            return PutOutcome::Rejected;
        }
        let now = Utc::now();
        let metadata = EntryMetadata {
            size_bytes: 0,
            created_at: now,
            last_accessed: now,
            access_count: 0,
            execution_time_ms,
        };
        let entry = CacheEntry {
            key,
            data,
            metadata,
            dependencies: observed,
        };
        let is_current = |dependencies: &Dependencies| self.versions.is_current(dependencies);
        match self.storage.insert(entry, &*self.policy, is_current) {
            Inserted::Stored => {
                self.fills.add(1);
                PutOutcome::Stored
            }
            Inserted::TooLarge => {
                self.rejected.add(1);
                PutOutcome::Rejected
            }
        }
    }
}

impl Flights {
    fn shard(&self, hash: u64) -> &FlightShard {
        #[expect(clippy::cast_possible_truncation, reason = "16 bits")]
        let high = (hash >> 48) as usize;
        &self.shards[high % FLIGHT_SHARDS]
    }

    fn reserve(&self, max: usize) -> bool {
        use crate::sync::Ordering::{AcqRel, Relaxed};
        self.count
            .fetch_update(AcqRel, Relaxed, |count| (count < max).then_some(count + 1))
            .is_ok()
    }

    /// Removes the flight if it is the one registered.
    fn remove(&self, flight: &Arc<FlightState>) {
        let hash = flight.key.hash_value();
        let removed = {
            let mut shard = self.shard(hash).0.lock();
            shard
                .find_entry(hash, |registered| Arc::ptr_eq(registered, flight))
                .ok()
                .map(|entry| entry.remove().0)
        };
        if removed.is_some() {
            self.count.fetch_sub(1, crate::sync::Ordering::AcqRel);
        }
    }
}

impl FlightState {
    fn new(key: &KeyRef<'_>, observed: Dependencies) -> Arc<Self> {
        Arc::new(Self {
            key: key.to_key(),
            observed,
            outcome: OnceLock::new(),
            ended: Notify::new(),
        })
    }
}

/// The right and duty to compute an answer. Dropping it without [`complete`](Self::complete) is giving up: each
/// follower is told to look again.
#[must_use = "dropping it tells the followers that the computation failed"]
pub struct Fill<B: StorageBackend = InMemoryBackend> {
    shared: Arc<Shared<B>>,
    flight: Arc<FlightState>,
}

impl<B: StorageBackend> Fill<B> {
    /// Stores the answer, if it is worth it and still true, and hands it to the followers in any case.
    pub fn complete(self, value: Bytes, execution_time: Duration) {
        let flight = &self.flight;
        let milliseconds = execution_time.as_secs_f64() * 1000.0;
        // A policy of the user's may panic; the followers must not wait for it.
        let stored = std::panic::catch_unwind(AssertUnwindSafe(|| {
            self.shared.store(
                flight.key.clone(),
                value.clone(),
                flight.observed.clone(),
                milliseconds,
            );
        }));
        let _ = flight.outcome.set(Some(value));
        drop(self);
        if let Err(panic) = stored {
            std::panic::resume_unwind(panic);
        }
    }
}

impl<B: StorageBackend> Drop for Fill<B> {
    fn drop(&mut self) {
        self.shared.flights.remove(&self.flight);
        let _ = self.flight.outcome.set(None);
        self.flight.ended.notify_waiters();
    }
}

impl<B: StorageBackend> fmt::Debug for Fill<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fill")
            .field("key", &self.flight.key)
            .finish_non_exhaustive()
    }
}

/// A place in the queue for another's answer.
#[must_use = "it does nothing unless waited on"]
pub struct Follower {
    flight: Arc<FlightState>,
    timeout: Duration,
}

impl Follower {
    /// The answer. `None` if the leader gave up or takes longer than the configured timeout: look up and join again.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no trace.
    pub async fn wait(self) -> Option<Bytes> {
        let flight = &*self.flight;
        let ended = async {
            loop {
                // Registered before the outcome is looked at, so that no end is missed in between.
                let ended = flight.ended.notified();
                if let Some(outcome) = flight.outcome.get() {
                    return outcome.clone();
                }
                ended.await;
            }
        };
        tokio::time::timeout(self.timeout, ended)
            .await
            .ok()
            .flatten()
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("key", &self.flight.key)
            .finish_non_exhaustive()
    }
}
