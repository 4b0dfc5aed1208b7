//! The cache: look up, join or begin a computation, store.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use rapidhash::v3::rapidhash_v3;
use smallvec::SmallVec;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::backend::{
    ENTRY_OVERHEAD, InMemoryBackend, Inserted, Lookup, PackedAnswer, StorageBackend,
};
use crate::block::{Answer, Block, Facts};
use crate::clock::Moment;
use crate::config::CacheConfig;
use crate::curve::{Curve, CurvePoint};
use crate::doorkeeper::Doorkeeper;
use crate::error::Result;
use crate::flights::{Fill, Flight, Flights, Follower, Joined};
use crate::lifetime::{Lifetime, Times};
use crate::order::{AnyOrder, Contest, Lru};
use crate::record::{self, Record};
use crate::stats::{CacheStats, Counter, Rejections, StoreCounts};
use crate::sync::Ordering;
use crate::types::{KeyRef, QueryKey};
use crate::version::{DependenciesRef, Observation, Position, SlotId, VersionSlots};

/// A cache of query results. Cloning it is another handle to the same.
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

pub(crate) struct Shared<B> {
    storage: Arc<B>,
    pub(crate) config: CacheConfig,
    pub(crate) versions: Arc<VersionSlots>,
    pub(crate) flights: Flights,
    coalesced: Counter,
    fallbacks: Counter,
    fills: Counter,
    pub(crate) rejections: Rejected,
    behind: Behind,
    doorkeeper: Option<Doorkeeper>,
    curve: Option<Curve>,
    /// Some entry has a lifetime, and may end without a write.
    has_lifetimes: AtomicBool,
    sweeper: OnceLock<AbortHandle>,
}

/// [`Rejections`], while they are counted.
#[derive(Default)]
pub(crate) struct Rejected {
    too_small: Counter,
    too_large: Counter,
    too_cheap: Counter,
    seen_once: Counter,
    out_of_date: Counter,
    not_admitted: Counter,
    pub(crate) overtaken: Counter,
}

/// What came of the slower tier, while it is counted.
#[derive(Default)]
struct Behind {
    hits: Counter,
    misses: Counter,
    refused: Counter,
    unwritten: Counter,
}

/// What came of a [`put`](CacheManager::put).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PutOutcome {
    /// The entry is stored.
    Stored,
    /// Not stored: too small, too large, too cheap to compute, out of date, or not admitted by doorkeeper or eviction
    /// policy. [`CacheStats::rejected_by`] counts the causes.
    Rejected,
}

type Slots = SmallVec<[SlotId; 4]>;

impl<B: StorageBackend> CacheManager<B> {
    /// A cache over a store. Values in `config` that can't work are replaced by the nearest that can; check with
    /// [`CacheConfig::validate`] first where they come from outside.
    ///
    /// Made within a Tokio runtime, the cache has a task that sweeps out what may not be served any more
    /// ([`CacheConfig::sweep_interval`]); it ends with the cache.
    #[must_use]
    pub fn new(backend: Arc<B>, config: CacheConfig) -> Self {
        backend.configure(&config);
        let capacity = backend.usage().capacity_bytes.min(config.max_size_bytes);
        let shared = Arc::new(Shared {
            storage: backend,
            versions: VersionSlots::new(config.version_slot_bits),
            flights: Flights::default(),
            coalesced: Counter::default(),
            fallbacks: Counter::default(),
            fills: Counter::default(),
            rejections: Rejected::default(),
            behind: Behind::default(),
            doorkeeper: config.doorkeeper.then(|| Doorkeeper::new(capacity / 1024)),
            curve: config
                .estimate_curve
                .then(|| Shared::<B>::curve(&config, capacity)),
            has_lifetimes: AtomicBool::new(false),
            sweeper: OnceLock::new(),
            config,
        });
        shared.spawn_sweeper();
        Self { shared }
    }

    /// The version slots: writers mark them, entries are checked against them.
    #[must_use]
    pub fn versions(&self) -> &Arc<VersionSlots> {
        &self.shared.versions
    }

    /// Looks an answer up: one hash, one short lock, a comparison of the whole key, and a check that nothing the answer
    /// depends on has changed or is about to. Allocates nothing.
    ///
    /// An answer past its time to live is served while
    /// [`stale_while_revalidate`](Lifetime::stale_while_revalidate) lasts; use [`find`](Self::find) to learn of it.
    #[must_use]
    pub fn lookup(&self, key: &KeyRef<'_>) -> Option<Answer> {
        match self.find(key) {
            Lookup::Hit(answer) | Lookup::Refresh(answer) => Some(answer),
            Lookup::Fallback(_) | Lookup::Miss | Lookup::Stale => None,
        }
    }

    /// As [`lookup`](Self::lookup), and tells what else is to be done.
    #[must_use]
    pub fn find(&self, key: &KeyRef<'_>) -> Lookup {
        self.shared.find(key)
    }

    /// The answer that [`lookup`](Self::lookup) would return now, if its time is not nearly over. Not counted as a use, nor
    /// as a miss.
    #[must_use]
    pub fn peek(&self, key: &KeyRef<'_>) -> Option<Answer> {
        self.shared.storage.peek(key, self.shared.is_current())
    }

    /// Begins the computation of an answer that depends on `slots`, or joins the one under way.
    ///
    /// The versions of the slots are read here: the caller must not have asked the database before. A computation
    /// under way is joined only if it began under exactly these versions of exactly these slots. Otherwise its answer
    /// could be older than a write that this caller knows of, and a new one takes its place, as it does once the old
    /// one has taken longer than [`CacheConfig::flight_timeout`].
    #[must_use]
    pub fn join(&self, key: &KeyRef<'_>, slots: &[SlotId]) -> Flight<B> {
        self.join_provisionally(key, slots, None)
    }

    /// As [`join`](Self::join), for an answer that depends on one slot more unless it turns out not to: the leader may say
    /// so once it has the answer ([`Fill::without_provisional`]).
    ///
    /// That a row was found, for instance, shows that nobody who inserts others can change the answer; that none was
    /// found does not. A write that is pending on that slot alone does not keep the answer from being stored without it.
    #[must_use]
    pub fn join_provisionally(
        &self,
        key: &KeyRef<'_>,
        slots: &[SlotId],
        provisional: Option<SlotId>,
    ) -> Flight<B> {
        let Shared {
            flights,
            versions,
            config,
            ..
        } = &*self.shared;
        let observe = || versions.observe_provisionally(slots, provisional);
        match flights.join(
            key,
            versions,
            observe,
            config.max_in_flight,
            config.flight_timeout,
        ) {
            Joined::Leader(flight) => Flight::Leader(Fill::new(Arc::clone(&self.shared), flight)),
            Joined::Follower(flight) => {
                self.shared.coalesced.add(1);
                Flight::Follower(Follower::new(flight, config.flight_timeout))
            }
            Joined::Uncached => Flight::Uncached,
            Joined::Overload => Flight::Overload,
        }
    }

    /// Stores an answer that depends on `slots` and took `execution_time` to compute: [`put`](Self::put) without an owned
    /// key. Its versions are those of now, as there.
    pub fn insert(
        &self,
        key: &KeyRef<'_>,
        value: &[u8],
        slots: &[SlotId],
        execution_time: Duration,
    ) -> PutOutcome {
        let milliseconds = execution_time.as_secs_f64() * 1000.0;
        let lifetime = &self.shared.config.lifetime;
        self.shared.put(key, value, slots, milliseconds, lifetime)
    }

    /// How long ago an answer of this cache was computed, in steps of ten milliseconds.
    #[must_use]
    pub fn age(&self, answer: &Answer) -> Duration {
        answer.age(self.now()).unwrap_or_default()
    }

    /// Looks an answer up.
    ///
    /// # Errors
    /// None with a store in memory.
    #[expect(clippy::unused_async, reason = "other stores have to wait")]
    pub async fn get(&self, key: &QueryKey) -> Result<Option<Answer>> {
        Ok(self.lookup(&key.as_ref()))
    }

    /// Stores an answer that depends on `tables` and took `execution_time_ms` to compute.
    ///
    /// Its versions are those of now: use [`get_or_compute`](Self::get_or_compute), or [`join`](Self::join), where a
    /// write may come between the computation and this call.
    ///
    /// # Errors
    /// None with a store in memory; what is not admitted is not an error.
    pub async fn put(
        &self,
        key: QueryKey,
        data: impl Into<Bytes>,
        tables: Vec<String>,
        execution_time_ms: f64,
    ) -> Result<PutOutcome> {
        let lifetime = self.shared.config.lifetime;
        self.put_with(key, data, tables, execution_time_ms, lifetime)
            .await
    }

    /// As [`put`](Self::put), with a lifetime other than the configured one.
    ///
    /// # Errors
    /// None with a store in memory; what is not admitted is not an error.
    #[expect(clippy::unused_async, reason = "other stores have to wait")]
    pub async fn put_with(
        &self,
        key: QueryKey,
        data: impl Into<Bytes>,
        tables: Vec<String>,
        execution_time_ms: f64,
        lifetime: Lifetime,
    ) -> Result<PutOutcome> {
        let slots: Slots = tables.iter().map(|table| self.table_slot(table)).collect();
        let data = data.into();
        let key = key.as_ref();
        Ok(self
            .shared
            .put(&key, &data, &slots, execution_time_ms, &lifetime))
    }

    /// The answer from the cache, from another caller's computation, or from `compute`.
    ///
    /// One computation runs for a key at a time, and one more for each [`CacheConfig::flight_timeout`] that passes
    /// without an answer. While a write is pending on one of the tables, or too many computations are in flight, each
    /// caller computes for itself.
    ///
    /// If the answer's time is nearly over, or over and within
    /// [`stale_while_revalidate`](Lifetime::stale_while_revalidate), one caller computes it anew and the others are
    /// served what there is; [`get_or_refresh`](Self::get_or_refresh) lets nobody wait.
    ///
    /// # Errors
    /// That of `compute`, if there is no answer within [`stale_if_error`](Lifetime::stale_if_error). It is not shared: the
    /// callers that waited go on one after the other, each with its own.
    ///
    /// # Cancel safety
    /// Dropping the future drops `compute`, and one of those that wait for it takes its place.
    pub async fn get_or_compute(
        &self,
        key: &QueryKey,
        tables: &[&str],
        compute: impl Future<Output = Result<Bytes>>,
    ) -> Result<Answer> {
        let lifetime = self.shared.config.lifetime;
        self.get_or_compute_with(key, tables, lifetime, compute)
            .await
    }

    /// As [`get_or_compute`](Self::get_or_compute), with a lifetime other than the configured one.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Cancel safety
    /// As there.
    pub async fn get_or_compute_with(
        &self,
        key: &QueryKey,
        tables: &[&str],
        lifetime: Lifetime,
        compute: impl Future<Output = Result<Bytes>>,
    ) -> Result<Answer> {
        let found = self.find(&key.as_ref());
        let slots = self.table_slots(tables);
        self.go_on(found, key, &slots, lifetime, compute).await
    }

    /// As [`get_or_compute_with`](Self::get_or_compute_with); but where there is an answer to serve, it is computed anew
    /// in a task of its own, and nobody waits for that.
    ///
    /// # Errors
    /// As there. If the task fails, the answer there is goes on being served for its time.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    ///
    /// # Cancel safety
    /// As there; the task goes on.
    pub async fn get_or_refresh(
        &self,
        key: &QueryKey,
        tables: &[&str],
        lifetime: Lifetime,
        compute: impl Future<Output = Result<Bytes>> + Send + 'static,
    ) -> Result<Answer> {
        let slots = self.table_slots(tables);
        match self.find(&key.as_ref()) {
            Lookup::Refresh(answer) => {
                if let Flight::Leader(fill) = self.join(&key.as_ref(), &slots) {
                    let fill = fill.with_lifetime(lifetime);
                    tokio::spawn(async move {
                        let began = Instant::now();
                        match compute.await {
                            Ok(data) => fill.complete(data, began.elapsed()),
                            Err(error) => tracing::debug!(%error, "an answer was not refreshed"),
                        }
                    });
                }
                Ok(answer)
            }
            found => self.go_on(found, key, &slots, lifetime, compute).await,
        }
    }

    /// What is to be done after the first look-up.
    async fn go_on(
        &self,
        mut found: Lookup,
        key: &QueryKey,
        slots: &[SlotId],
        lifetime: Lifetime,
        compute: impl Future<Output = Result<Bytes>>,
    ) -> Result<Answer> {
        let mut has_failed = false;
        loop {
            match found {
                Lookup::Hit(answer) => return Ok(answer),
                // Another tried just now, and failed.
                Lookup::Fallback(answer) if has_failed => {
                    self.shared.fallbacks.add(1);
                    return Ok(answer);
                }
                Lookup::Fallback(_) | Lookup::Miss | Lookup::Refresh(_) | Lookup::Stale => {}
            }
            match (self.join(&key.as_ref(), slots), found) {
                (Flight::Leader(fill), found) => {
                    // A computation that ended between the look-up and the join was found by neither.
                    if !matches!(found, Lookup::Refresh(_))
                        && let Some(data) = self.find_again(&key.as_ref())
                    {
                        fill.found(data.clone());
                        return Ok(data);
                    }
                    if let Some(data) = fill.fetch().await {
                        return Ok(data);
                    }
                    let began = Instant::now();
                    return match compute.await {
                        Ok(data) => {
                            let fill = fill.with_lifetime(lifetime);
                            Ok(fill.publish(&data, began.elapsed()))
                        }
                        Err(error) => self.fall_back(&key.as_ref()).ok_or(error),
                    };
                }
                (_, Lookup::Refresh(answer)) => return Ok(answer),
                (Flight::Follower(follower), _) => {
                    if let Some(data) = follower.wait().await {
                        return Ok(data);
                    }
                    has_failed = true;
                }
                (Flight::Uncached | Flight::Overload, _) => {
                    return match compute.await {
                        Ok(data) => Ok(data.into()),
                        Err(error) => self.fall_back(&key.as_ref()).ok_or(error),
                    };
                }
            }
            found = self.find(&key.as_ref());
        }
    }

    /// What may be served after a failure. Looked up anew: something may have been written meanwhile.
    fn fall_back(&self, key: &KeyRef<'_>) -> Option<Answer> {
        let answer = match self.find(key) {
            Lookup::Fallback(answer) | Lookup::Hit(answer) | Lookup::Refresh(answer) => answer,
            Lookup::Miss | Lookup::Stale => return None,
        };
        self.shared.fallbacks.add(1);
        Some(answer)
    }

    /// Looks up once more for a request that was counted as a miss: an answer found now is another's that it shares.
    fn find_again(&self, key: &KeyRef<'_>) -> Option<Answer> {
        match self.find(key) {
            Lookup::Hit(data) => {
                self.shared.coalesced.add(1);
                Some(data)
            }
            _ => None,
        }
    }

    /// Removes an answer, from all tiers. True if the first had it.
    ///
    /// Another process may store it again in a tier that is shared; what must not be served any more is to be
    /// [invalidated](Self::invalidate_table).
    ///
    /// # Errors
    /// None with a store in memory.
    pub async fn remove(&self, key: &QueryKey) -> Result<bool> {
        let Shared {
            storage, versions, ..
        } = &*self.shared;
        if B::IS_TIERED {
            let id = record::identifier(&key.as_ref(), &versions.lineage(), versions.len());
            storage.remove_behind(&id);
        }
        storage.remove(key).await
    }

    /// Evicts the entries that the policy values least until `needed_bytes` have been freed, or nothing is left.
    ///
    /// Insertions do this by themselves.
    ///
    /// # Errors
    /// None with a store in memory.
    #[expect(clippy::unused_async, reason = "other stores have to wait")]
    pub async fn evict_entries(&self, needed_bytes: usize) -> Result<()> {
        let shared = &self.shared;
        shared.storage.evict(needed_bytes, shared.is_current());
        Ok(())
    }

    /// Removes the entries that may not be served any more: invalidated, or past their time. Returns how many bytes were
    /// freed. Looks at every entry, some hundred at a time under a lock.
    pub fn sweep(&self) -> usize {
        self.shared.sweep()
    }

    /// Invalidates all answers that depend on a table, in constant time.
    pub fn invalidate_table(&self, table: &str) {
        self.shared.versions.invalidate(&[self.table_slot(table)]);
    }

    /// Invalidates all answers, in constant time.
    pub fn invalidate_all(&self) {
        self.shared.versions.invalidate_all();
    }

    /// Forgets everything. Nothing that was there, or was being computed, is served afterwards.
    pub fn clear(&self) {
        self.shared.versions.invalidate_all();
        self.shared.storage.clear();
    }

    pub(crate) fn answers(&self) -> Vec<PackedAnswer> {
        self.shared.storage.answers()
    }

    pub(crate) fn now(&self) -> Moment {
        self.shared.config.clock.now()
    }

    /// Stores what was stored before. True if it is.
    pub(crate) fn restore(&self, answer: PackedAnswer) -> bool {
        self.shared.store(answer, None) == PutOutcome::Stored
    }

    /// What the cache did and holds.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.shared.stats()
    }

    /// Estimated hit ratios at a quarter of the capacity to eight times as much, so that it can be seen what more memory
    /// would bring. Empty if [`CacheConfig::estimate_curve`] is off.
    ///
    /// From miniature caches on a sample of the questions, with the cache's own eviction policy (for one that goes by
    /// scores, LRU). On recorded loads the error is mostly below 0.02; it is larger where few answers fit.
    #[must_use]
    pub fn curve(&self) -> Vec<CurvePoint> {
        let shared = &self.shared;
        let points = |curve: &Curve| curve.points(shared.lookups());
        shared.curve.as_ref().map(points).unwrap_or_default()
    }

    /// The slot that stands for a table's name.
    #[must_use]
    pub fn table_slot(&self, table: &str) -> SlotId {
        // The same in every process: entries may outlive one.
        self.shared.versions.slot(rapidhash_v3(table.as_bytes()))
    }

    fn table_slots(&self, tables: &[&str]) -> Slots {
        tables.iter().map(|table| self.table_slot(table)).collect()
    }
}

impl<B: StorageBackend> Clone for CacheManager<B> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
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
    fn find(&self, key: &KeyRef<'_>) -> Lookup {
        let found = self.storage.lookup(key, self.is_current());
        if let Some(curve) = &self.curve
            && curve.is_sampled(key.hash_value())
        {
            self.trace(curve, key.hash_value(), &found);
        }
        found
    }

    fn curve(config: &CacheConfig, capacity: usize) -> Curve {
        let order = || {
            let contest = Arc::new(Contest::new(1));
            AnyOrder::of(config.policy().ranking(), &config.clock, &contest)
                .unwrap_or_else(|| AnyOrder::Lru(Lru::default()))
        };
        Curve::new(capacity, order)
    }

    fn trace(&self, curve: &Curve, hash: u64, found: &Lookup) {
        if matches!(found, Lookup::Stale) {
            curve.invalidated(hash);
        }
        curve.request(hash);
        if let Lookup::Hit(answer) | Lookup::Refresh(answer) = found
            && let Some(block) = answer.block()
        {
            self.trace_answer(curve, hash, block);
        }
    }

    fn trace_answer(&self, curve: &Curve, hash: u64, block: &Block) {
        let weight = block.len() + ENTRY_OVERHEAD;
        curve.answer(hash, weight, block.cost_ms(), || self.lookups());
    }

    fn lookups(&self) -> u64 {
        let counts = self.storage.usage().counts;
        counts.hits + counts.misses
    }

    pub(crate) fn holds(&self, key: &KeyRef<'_>) -> bool {
        matches!(self.find(key), Lookup::Hit(_))
    }

    fn is_current(&self) -> impl Fn(DependenciesRef<'_>) -> bool {
        |dependencies: DependenciesRef<'_>| self.versions.is_current(dependencies)
    }

    fn put(
        &self,
        key: &KeyRef<'_>,
        value: &[u8],
        slots: &[SlotId],
        execution_time_ms: f64,
        lifetime: &Lifetime,
    ) -> PutOutcome {
        let position = self.versions.applied();
        let Some(observed) = self.versions.observe(slots) else {
            self.rejections.out_of_date.add(1);
            return PutOutcome::Rejected;
        };
        let answer = self.pack(key, value, observed.as_ref(), lifetime, execution_time_ms);
        self.store(answer, Some(position))
    }

    /// The answer as it is stored.
    pub(crate) fn pack(
        &self,
        key: &KeyRef<'_>,
        value: &[u8],
        observed: DependenciesRef<'_>,
        lifetime: &Lifetime,
        execution_time_ms: f64,
    ) -> PackedAnswer {
        let now = self.config.clock.now();
        let jitter = self.config.ttl_jitter;
        let jitter = if jitter > 0.0 {
            jitter.min(1.0) * fastrand::f64()
        } else {
            0.0
        };
        let facts = Facts {
            dependencies: observed,
            times: Times::new(lifetime, now, jitter),
            cost_ms: execution_time_ms,
            now,
        };
        PackedAnswer {
            block: Block::new(key, value, facts),
            hash: key.hash_value(),
            changes: 0,
        }
    }

    /// What the slower tier has, if it may be served.
    pub(crate) async fn fetch(
        &self,
        key: &KeyRef<'_>,
        observed: &Observation,
    ) -> Option<PackedAnswer> {
        let versions = &self.versions;
        let id = record::identifier(key, &versions.lineage(), versions.len());
        let Some(bytes) = self.storage.fetch_behind(&id).await else {
            self.behind.misses.add(1);
            return None;
        };
        let served = Record::from_bytes(&bytes)
            .filter(|record| record.matches(key))
            .and_then(|record| {
                let slots = record.slots(versions)?;
                // The caller says what the answer depends on; what was stored must not depend on less, but for what who
                // computed it could do without.
                let firm = observed.firm();
                let dependencies = [observed.all(), &firm]
                    .into_iter()
                    .find(|known| known.as_ref().slots().eq(slots.iter().copied()))?;
                if !versions.is_current_at(&slots, record.position()) {
                    return None;
                }
                record.to_block(dependencies.as_ref(), self.config.clock.now())
            });
        let Some(block) = served else {
            self.behind.refused.add(1);
            return None;
        };
        self.behind.hits.add(1);
        Some(PackedAnswer {
            block,
            hash: key.hash_value(),
            changes: 0,
        })
    }

    fn store_behind(&self, answer: &PackedAnswer, position: Position) {
        let versions = &self.versions;
        let key = answer.block.key();
        let id = record::identifier(&key, &versions.lineage(), versions.len());
        let now = self.config.clock.now();
        let record = Record::new(&answer.block, position, versions, now).to_bytes();
        if !self.storage.store_behind(&id, record.into()) {
            self.behind.unwritten.add(1);
        }
    }

    /// Stores an answer if it is worth it and still true; with the position as of which it is, also in the slower tier.
    pub(crate) fn store(&self, mut answer: PackedAnswer, position: Option<Position>) -> PutOutcome {
        let is_new = position.is_some();
        let Some(rejection) = self.rejection(&answer, is_new) else {
            if let Some(curve) = &self.curve
                && curve.is_sampled(answer.hash)
            {
                self.trace_answer(curve, answer.hash, &answer.block);
            }
            if B::IS_TIERED
                && let Some(position) = position
            {
                self.store_behind(&answer, position);
            }
            if answer.block.times().is_some() {
                self.has_lifetimes.store(true, Ordering::Relaxed);
            }
            answer.changes = self.versions.invalidations();
            let rejection = match self.storage.insert(answer, self.is_current()) {
                Inserted::Stored => {
                    self.fills.add(1);
                    return PutOutcome::Stored;
                }
                Inserted::NotAdmitted => &self.rejections.not_admitted,
                Inserted::TooLarge => &self.rejections.too_large,
            };
            rejection.add(1);
            return PutOutcome::Rejected;
        };
        rejection.add(1);
        PutOutcome::Rejected
    }

    /// Why the answer is not to be stored; `is_new` if it was computed just now.
    fn rejection(&self, answer: &PackedAnswer, is_new: bool) -> Option<&Counter> {
        let (config, rejections) = (&self.config, &self.rejections);
        let len = answer.block.value().len();
        let cost = f64::from(answer.block.cost_ms());
        if len < config.min_result_size {
            Some(&rejections.too_small)
        } else if len > config.max_result_size {
            Some(&rejections.too_large)
        // Written so that NaN, a time that nobody measured, is not admitted where a minimum is asked for.
        } else if !(config.min_execution_time_ms <= 0.0 || cost >= config.min_execution_time_ms) {
            Some(&rejections.too_cheap)
        } else if !self.versions.is_current(answer.block.dependencies()) {
            Some(&rejections.out_of_date)
        } else if let Some(doorkeeper) = &self.doorkeeper
            && is_new
            && !doorkeeper.admit(answer.hash)
        {
            Some(&rejections.seen_once)
        } else {
            None
        }
    }

    fn sweep(&self) -> usize {
        self.storage.sweep(self.is_current())
    }

    /// Sweeps now and then while there is something to sweep.
    fn spawn_sweeper(self: &Arc<Self>) {
        let interval = self.config.sweep_interval;
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if interval.is_zero() {
            return;
        }
        let shared = Arc::downgrade(self);
        let task = runtime.spawn(async move {
            let mut swept = 0;
            loop {
                tokio::time::sleep(interval).await;
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                let invalidations = shared.versions.invalidations();
                if invalidations != swept || shared.has_lifetimes.load(Ordering::Relaxed) {
                    swept = invalidations;
                    // A thread that may be busy for a while.
                    let _ = tokio::task::spawn_blocking(move || shared.sweep()).await;
                }
            }
        });
        let _ = self.sweeper.set(task.abort_handle());
    }

    fn stats(&self) -> CacheStats {
        let usage = self.storage.usage();
        let StoreCounts {
            hits,
            stale_hits,
            misses,
            saved_ms,
            evicted,
            expired,
            invalidated,
            removed,
            replaced,
        } = usage.counts;
        let Rejected {
            too_small,
            too_large,
            too_cheap,
            seen_once,
            out_of_date,
            not_admitted,
            overtaken,
        } = &self.rejections;
        let rejected_by = Rejections {
            too_small: too_small.count(),
            too_large: too_large.count(),
            too_cheap: too_cheap.count(),
            seen_once: seen_once.count(),
            out_of_date: out_of_date.count(),
            not_admitted: not_admitted.count(),
            overtaken: overtaken.count(),
        };
        CacheStats {
            hits,
            stale_hits,
            misses,
            coalesced: self.coalesced.count(),
            fallbacks: self.fallbacks.count(),
            time_saved: Duration::try_from_secs_f64(saved_ms / 1000.0).unwrap_or(Duration::MAX),
            fills: self.fills.count(),
            rejected: rejected_by.sum(),
            rejected_by,
            invalidated,
            expired,
            evictions: evicted,
            replaced,
            removed,
            entries: usage.entries,
            size_bytes: usage.size_bytes,
            capacity_bytes: usage.capacity_bytes,
            in_flight: self.flights.count(),
            behind_hits: self.behind.hits.count(),
            behind_misses: self.behind.misses.count(),
            behind_refused: self.behind.refused.count(),
            behind_unwritten: self.behind.unwritten.count(),
        }
    }
}

impl<B> Drop for Shared<B> {
    fn drop(&mut self) {
        if let Some(sweeper) = self.sweeper.get() {
            sweeper.abort();
        }
    }
}
