//! The cache: look up, join or begin a computation, store.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashTable;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::backend::{InMemoryBackend, Inserted, Lookup, PackedAnswer, StorageBackend};
use crate::config::CacheConfig;
use crate::error::Result;
use crate::eviction::EvictionPolicy;
use crate::stats::{CacheStats, Counter, StripedCounter};
use crate::sync::{AtomicUsize, Mutex, Ordering};
use crate::types::{HashedStr, KeyRef, Packed, QueryKey};
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
    hits: StripedCounter,
    misses: StripedCounter,
    coalesced: Counter,
    fills: Counter,
    rejected: Counter,
    invalidated: Counter,
}

/// The computations under way, sharded by key.
#[derive(Default)]
struct Flights {
    shards: [FlightShard; FLIGHT_SHARDS],
    /// Computations that have not ended, those whose place another has taken included: the shards don't know these.
    count: AtomicUsize,
}

const FLIGHT_SHARDS: usize = 16;

/// Why a lock: finding, checking and replacing a flight must be one step. Nothing is awaited or woken under it.
#[derive(Default)]
#[repr(align(128))]
struct FlightShard(Mutex<HashTable<Arc<FlightState>>>);

struct FlightState {
    key: Packed<Box<[u8]>>,
    /// What the computation depends on, as of before it began.
    observed: Dependencies,
    began: Instant,
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
        backend.limit_capacity(config.max_size_bytes);
        let versions = VersionSlots::new(config.version_slot_bits);
        Self {
            shared: Arc::new(Shared {
                storage: backend,
                config,
                policy,
                versions,
                flights: Flights::default(),
                hits: StripedCounter::default(),
                misses: StripedCounter::default(),
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
                shared.hits.add_one(key.hash_value());
                Some(data)
            }
            Lookup::Miss => {
                shared.misses.add_one(key.hash_value());
                None
            }
            Lookup::Stale => {
                shared.misses.add_one(key.hash_value());
                shared.invalidated.add(1);
                None
            }
        }
    }

    /// Begins the computation of an answer that depends on `slots`, or joins the one under way.
    ///
    /// The versions of the slots are read here: the caller must not have asked the database before. A computation
    /// under way is joined only if it began under exactly these versions of exactly these slots. Otherwise its answer
    /// could be older than a write that this caller knows of, and a new one takes its place, as it does once the old
    /// one has taken longer than [`CacheConfig::flight_timeout`].
    #[must_use]
    pub fn join(&self, key: &KeyRef<'_>, slots: &[SlotId]) -> Flight<B> {
        let shared = &self.shared;
        let flights = &shared.flights;
        let hash = key.hash_value();
        let mut shard = flights.shard(hash).0.lock();
        // Read under the lock: otherwise this could be older than what the registered flight began under, and an
        // older computation would take the place of a newer.
        let Some(observed) = shared.versions.observe(slots) else {
            return Flight::Uncached;
        };
        let registered = shard.find_mut(hash, |flight| flight.key.matches(key));
        // The same versions are not enough: if a write ended while they were being read, they were those of before it,
        // which is harmless to one who asks the database now, and not to one who takes an answer from before.
        if let Some(flight) = &registered
            && flight.observed == observed
            && shared.versions.is_current(&observed)
            && flight.began.elapsed() < shared.config.flight_timeout
        {
            let follower = Follower {
                flight: Arc::clone(flight),
                timeout: shared.config.flight_timeout,
            };
            drop(shard);
            shared.coalesced.add(1);
            return Flight::Follower(follower);
        }
        if !flights.reserve(shared.config.max_in_flight) {
            return Flight::Overload;
        }
        let flight = FlightState::new(key, observed);
        match registered {
            Some(outdated) => *outdated = Arc::clone(&flight),
            None => {
                shard.insert_unique(hash, Arc::clone(&flight), |flight| flight.key.hash_value());
            }
        }
        drop(shard);
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
        let slots: SmallVec<[SlotId; 4]> =
            tables.iter().map(|table| self.table_slot(table)).collect();
        let Some(observed) = shared.versions.observe(&slots) else {
            shared.rejected.add(1);
            return Ok(PutOutcome::Rejected);
        };
        let data = data.into();
        let packed = Packed::entry(&Packed::key(&key.as_ref()), &data);
        Ok(shared.store(packed, data.len(), observed, execution_time_ms))
    }

    /// The answer from the cache, from another caller's computation, or from `compute`.
    ///
    /// One computation runs for a key at a time, and one more for each [`CacheConfig::flight_timeout`] that passes
    /// without an answer. While a write is pending on one of the tables, or too many computations are in flight, each
    /// caller computes for itself.
    ///
    /// # Errors
    /// That of `compute`. It is not shared: the callers that waited go on one after the other, each with its own.
    ///
    /// # Cancel safety
    /// Dropping the future drops `compute`, and one of those that wait for it takes its place.
    pub async fn get_or_compute(
        &self,
        key: &QueryKey,
        tables: &[&str],
        compute: impl Future<Output = Result<Bytes>>,
    ) -> Result<Bytes> {
        let slots: SmallVec<[SlotId; 4]> =
            tables.iter().map(|table| self.table_slot(table)).collect();
        loop {
            if let Some(data) = self.lookup(&key.as_ref()) {
                return Ok(data);
            }
            match self.join(&key.as_ref(), &slots) {
                Flight::Leader(fill) => {
                    // A computation that ended between the look-up and the join was found by neither.
                    if let Some(data) = self.find_again(&key.as_ref()) {
                        fill.flight.end(Some(data.clone()));
                        return Ok(data);
                    }
                    let began = Instant::now();
                    let data = compute.await?;
                    fill.complete(data.clone(), began.elapsed());
                    return Ok(data);
                }
                Flight::Follower(follower) => {
                    if let Some(data) = follower.wait().await {
                        return Ok(data);
                    }
                }
                Flight::Uncached | Flight::Overload => return compute.await,
            }
        }
    }

    /// Looks up once more for a request that was counted as a miss: an answer found now is another's that it shares.
    fn find_again(&self, key: &KeyRef<'_>) -> Option<Bytes> {
        let shared = &*self.shared;
        let found = shared
            .storage
            .lookup(key, |dependencies| shared.versions.is_current(dependencies));
        match found {
            Lookup::Hit(data) => {
                shared.coalesced.add(1);
                Some(data)
            }
            Lookup::Miss | Lookup::Stale => None,
        }
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
            hits: shared.hits.count(),
            misses: shared.misses.count(),
            coalesced: shared.coalesced.count(),
            fills: shared.fills.count(),
            rejected: shared.rejected.count(),
            invalidated: shared.invalidated.count(),
            evictions: usage.evictions,
            entries: usage.entries,
            size_bytes: usage.size_bytes,
            capacity_bytes: usage.capacity_bytes,
            in_flight: shared.flights.count.load(Ordering::Acquire),
        }
    }

    /// The slot that stands for a table's name.
    #[must_use]
    pub fn table_slot(&self, table: &str) -> SlotId {
        self.shared
            .versions
            .slot(HashedStr::new(table).hash_value())
    }
}

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
        packed: Packed<Bytes>,
        data_len: usize,
        observed: Dependencies,
        execution_time_ms: f64,
    ) -> PutOutcome {
        let config = &self.config;
        let admitted = (config.min_result_size..=config.max_result_size).contains(&data_len)
            // Written so that NaN, a time that nobody measured, is not admitted where a minimum is asked for.
            && (config.min_execution_time_ms <= 0.0 || execution_time_ms >= config.min_execution_time_ms)
            && self.versions.is_current(&observed);
        if !admitted {
            self.rejected.add(1);
            return PutOutcome::Rejected;
        }
        let answer = PackedAnswer {
            packed,
            dependencies: observed,
            execution_time_ms,
        };
        let is_current = |dependencies: &Dependencies| self.versions.is_current(dependencies);
        match self
            .storage
            .insert_packed(answer, &*self.policy, is_current)
        {
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
        let high = (hash >> 48) as usize;
        &self.shards[high % FLIGHT_SHARDS]
    }

    fn reserve(&self, max: usize) -> bool {
        self.count
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |count| {
                (count < max).then_some(count + 1)
            })
            .is_ok()
    }

    /// Removes the flight if it is the one registered.
    fn remove(&self, flight: &Arc<FlightState>) {
        let hash = flight.key.hash_value();
        let mut shard = self.shard(hash).0.lock();
        if let Ok(entry) = shard.find_entry(hash, |registered| Arc::ptr_eq(registered, flight)) {
            entry.remove();
        }
    }
}

impl FlightState {
    /// Tells the followers. The first outcome counts; another changes nothing.
    fn end(&self, outcome: Option<Bytes>) {
        let _ = self.outcome.set(outcome);
        self.ended.notify_waiters();
    }

    fn new(key: &KeyRef<'_>, observed: Dependencies) -> Arc<Self> {
        Arc::new(Self {
            key: Packed::key(key),
            observed,
            began: Instant::now(),
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
    /// Time since the computation began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.flight.began.elapsed()
    }

    /// Stores the answer, if it is worth it and still true, and hands it to the followers in any case.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers have the answer in this form; `complete_with` takes it borrowed"
    )]
    pub fn complete(self, value: Bytes, execution_time: Duration) {
        self.complete_with(&value, execution_time);
    }

    /// As [`complete`](Self::complete), with an answer that is copied.
    pub fn complete_with(self, value: &[u8], execution_time: Duration) {
        let flight = &self.flight;
        let packed = Packed::entry(&flight.key, value);
        // The followers first: storing may evict, and a policy of the user's may be slow or panic. The flight stays
        // registered until the answer is stored, so that nobody in between computes it again.
        flight.end(Some(packed.data()));
        let milliseconds = execution_time.as_secs_f64() * 1000.0;
        self.shared
            .store(packed, value.len(), flight.observed.clone(), milliseconds);
    }
}

impl<B: StorageBackend> Drop for Fill<B> {
    fn drop(&mut self) {
        let flights = &self.shared.flights;
        flights.remove(&self.flight);
        flights.count.fetch_sub(1, Ordering::AcqRel);
        self.flight.end(None);
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
        if let Some(outcome) = flight.outcome.get() {
            return outcome.clone();
        }
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
