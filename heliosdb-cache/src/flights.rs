//! One computation for each missing key, whose value the others are handed.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashTable;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::backend::{InMemoryBackend, StorageBackend};
use crate::block::Answer;
use crate::cache_manager::Shared;
use crate::fault;
use crate::lifetime::Lifetime;
use crate::sync::{AtomicUsize, Mutex, Ordering};
use crate::types::{KeyRef, PackedKey};
use crate::version::{Dependencies, Observation, Position, VersionSlots};

/// The computations under way, sharded by key.
#[derive(Default)]
pub(crate) struct Flights {
    shards: [FlightShard; FLIGHT_SHARDS],
    /// Computations that have not ended, those whose place another has taken included: the shards don't know these.
    count: AtomicUsize,
}

const FLIGHT_SHARDS: usize = 16;

/// Why a lock: finding, checking and replacing a flight must be one step. Nothing is awaited or woken under it.
#[derive(Default)]
#[repr(align(128))]
struct FlightShard(Mutex<HashTable<Arc<FlightState>>>);

pub(crate) struct FlightState {
    key: PackedKey,
    /// What the computation depends on, as of before it began.
    observed: Observation,
    /// What was known to have changed by then.
    position: Position,
    began: Instant,
    /// Set once: the value, or `None` if the leader gave up.
    outcome: OnceLock<Option<Answer>>,
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

/// What joining came to, before it is known who the leader belongs to.
pub(crate) enum Joined {
    Leader(Arc<FlightState>),
    Follower(Arc<FlightState>),
    Uncached,
    Overload,
}

impl Flights {
    /// `observe` is called under the lock, so that it can't be older than what a registered flight began under, and no
    /// older computation takes the place of a newer.
    pub(crate) fn join(
        &self,
        key: &KeyRef<'_>,
        versions: &VersionSlots,
        observe: impl FnOnce() -> Option<Observation>,
        max_in_flight: usize,
        timeout: Duration,
    ) -> Joined {
        let hash = key.hash_value();
        let mut shard = self.shard(hash).0.lock();
        let position = versions.applied();
        let Some(observed) = observe() else {
            return Joined::Uncached;
        };
        let registered = shard.find_mut(hash, |flight| flight.key.matches(key));
        // The same versions are not enough: if a write ended while they were being read, they were those of before it,
        // which is harmless to one who asks the database now, and not to one who takes an answer from before.
        if let Some(flight) = &registered
            && (fault::is_removed("arrival-rule")
                || (flight.observed == observed && versions.is_current(observed.all())))
            && flight.began.elapsed() < timeout
        {
            return Joined::Follower(Arc::clone(flight));
        }
        if !self.reserve(max_in_flight) {
            return Joined::Overload;
        }
        let flight = FlightState::new(key, observed, position);
        match registered {
            Some(outdated) => *outdated = Arc::clone(&flight),
            None => {
                shard.insert_unique(hash, Arc::clone(&flight), |flight| flight.key.hash_value());
            }
        }
        Joined::Leader(flight)
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// False if a later computation has taken the place of this one.
    fn is_registered(&self, flight: &Arc<FlightState>) -> bool {
        let hash = flight.key.hash_value();
        let shard = self.shard(hash).0.lock();
        shard
            .find(hash, |registered| Arc::ptr_eq(registered, flight))
            .is_some()
    }

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
    fn new(key: &KeyRef<'_>, observed: Observation, position: Position) -> Arc<Self> {
        Arc::new(Self {
            key: PackedKey::new(key),
            observed,
            position,
            began: Instant::now(),
            outcome: OnceLock::new(),
            ended: Notify::new(),
        })
    }

    /// Tells the followers. The first outcome counts; another changes nothing.
    fn end(&self, outcome: Option<Answer>) {
        let _ = self.outcome.set(outcome);
        self.ended.notify_waiters();
    }
}

/// The right and duty to compute an answer. Dropping it without [`complete`](Self::complete) is giving up: each
/// follower is told to look again.
#[must_use = "dropping it tells the followers that the computation failed"]
pub struct Fill<B: StorageBackend = InMemoryBackend> {
    shared: Arc<Shared<B>>,
    flight: Arc<FlightState>,
    lifetime: Lifetime,
    /// The answer depends on the provisional slot.
    is_provisional: bool,
}

impl<B: StorageBackend> Fill<B> {
    pub(crate) fn new(shared: Arc<Shared<B>>, flight: Arc<FlightState>) -> Self {
        let lifetime = shared.config.lifetime;
        Self {
            shared,
            flight,
            lifetime,
            is_provisional: true,
        }
    }

    /// Time since the computation began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.flight.began.elapsed()
    }

    /// Gives the answer a lifetime other than the configured one.
    pub fn with_lifetime(mut self, lifetime: Lifetime) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// The answer turned out not to depend on the [provisional slot](crate::CacheManager::join_provisionally): it is
    /// stored without it. Who has joined, or joins later, still did so under the version that the slot had.
    pub fn without_provisional(mut self) -> Self {
        self.is_provisional = false;
        self
    }

    fn dependencies(&self) -> Cow<'_, Dependencies> {
        let observed = &self.flight.observed;
        if self.is_provisional {
            Cow::Borrowed(observed.all())
        } else {
            Cow::Owned(observed.firm())
        }
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
        self.publish(value, execution_time);
    }

    pub(crate) fn publish(&self, value: &[u8], execution_time: Duration) -> Answer {
        let flight = &self.flight;
        let milliseconds = execution_time.as_secs_f64() * 1000.0;
        fault::pause("arrival-rule");
        let answer = self.shared.pack(
            &flight.key.as_ref(),
            value,
            self.observed().as_ref().as_ref(),
            &self.lifetime,
            milliseconds,
        );
        // The followers first: storing may evict, and a policy of the user's may be slow or panic. The flight stays
        // registered until the answer is stored, so that nobody in between computes it again.
        let value_of = Answer::from(answer.block.clone());
        flight.end(Some(value_of.clone()));
        if self.shared.flights.is_registered(flight) || !self.shared.holds(&flight.key.as_ref()) {
            self.shared.store(answer, Some(flight.position));
        } else {
            // A later computation has taken the place of this one, and was done first.
            self.shared.rejections.overtaken.add(1);
        }
        value_of
    }

    /// The versions that the answer goes by.
    #[cfg(not(feature = "fault-switches"))]
    fn observed(&self) -> Cow<'_, Dependencies> {
        self.dependencies()
    }

    /// Where the protection is taken away, versions that are too new.
    #[cfg(feature = "fault-switches")]
    fn observed(&self) -> Cow<'_, Dependencies> {
        fault::pause("versions-before-send");
        let observed = self.dependencies();
        let slots: Vec<_> = observed.as_ref().as_ref().slots().collect();
        let late = fault::is_removed("versions-before-send")
            .then(|| self.shared.versions.observe(&slots))
            .flatten();
        late.map_or(observed, Cow::Owned)
    }

    /// Looks for the answer in the [tier behind](crate::TieredBackend) before it is computed. If it is there and may be
    /// served, it is stored in the tier in front and handed to the followers: then the computation has ended.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no trace.
    pub async fn fetch(&self) -> Option<Answer> {
        if !B::IS_TIERED {
            return None;
        }
        let flight = &self.flight;
        let fetched = self
            .shared
            .fetch(&flight.key.as_ref(), &flight.observed)
            .await?;
        let answer = Answer::from(fetched.block.clone());
        flight.end(Some(answer.clone()));
        self.shared.store(fetched, None);
        Some(answer)
    }

    /// Ends the computation with an answer that is in the cache already.
    pub(crate) fn found(&self, answer: Answer) {
        self.flight.end(Some(answer));
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
    pub(crate) fn new(flight: Arc<FlightState>, timeout: Duration) -> Self {
        Self { flight, timeout }
    }

    /// The answer. `None` if the leader gave up or takes longer than the configured timeout: look up and join again.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no trace.
    pub async fn wait(self) -> Option<Answer> {
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
