//! What a pool knows, and who gets which connection.
//!
//! One short lock, and under it values are moved and nothing else: no I/O, no user code, no `Drop` of a connection, no
//! wake, no log. A connection that becomes free is put into the place of the first waiter, who finds it there when it is
//! polled; so nobody who comes later can take it, and a waiter that leaves gives it to the next.

use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use slab::Slab;

use super::sync::Mutex;
use super::{AcquireError, AcquirePhase, ConnectionPoolConfig, HeliosError, PoolMetrics};

/// What is known of a connection besides itself.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConnectionMeta {
    /// Unique within the pool.
    pub id: u64,
    /// When it was opened.
    pub created: Instant,
    /// Handed out, or being checked or reset.
    pub in_use: bool,
    pub(super) expires: Option<Instant>,
    /// When it was last used.
    pub(super) idle_since: Instant,
    /// When it was last known to be good: the end of its last use or of its last check.
    pub(super) verified: Instant,
    generation: u64,
    /// Its place among those that stand.
    slot: usize,
}

impl ConnectionMeta {
    pub(super) fn is_too_old(&self, now: Instant) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }

    pub(super) fn is_too_idle(&self, config: &ConnectionPoolConfig, now: Instant) -> bool {
        config
            .idle_timeout
            .is_some_and(|timeout| now.saturating_duration_since(self.idle_since) >= timeout)
    }

    /// How long nothing was heard of the peer.
    pub(super) fn unverified_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.verified)
    }
}

/// A connection and what is known of it. It moves between hands all the time, and so is boxed.
pub(super) type Item<T> = Box<Idle<T>>;

#[derive(Debug)]
pub(super) struct Idle<T> {
    pub(super) connection: T,
    pub(super) meta: ConnectionMeta,
    pub(super) label: u64,
}

/// A connection on loan, for diagnosis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseInfo {
    /// [`ConnectionMeta::id`].
    pub connection: u64,
    /// How long it has been on loan.
    pub held: Duration,
    /// Where it was acquired.
    pub place: &'static Location<'static>,
}

/// What an acquire asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub(super) label: u64,
    pub(super) place: &'static Location<'static>,
    /// It had its turn, and was given a connection that turned out to be dead.
    pub(super) is_first: bool,
}

/// What it is told.
#[derive(Debug)]
pub(super) enum Answer<T> {
    /// This one: it counts as active.
    Taken(Item<T>),
    /// To wait.
    Wait {
        ticket: Ticket,
        /// The waker is known: nothing is to be looked at before it is woken.
        is_registered: bool,
        /// So many connections are to be opened.
        connects: usize,
        /// Nobody looks after the times of those who wait.
        is_unwatched: bool,
    },
    Refused(AcquireError),
}

/// A place in the line. To be given back by [`Exchange::leave`] if [`Exchange::poll`] has not brought anything yet.
#[derive(Debug)]
pub(super) struct Ticket(usize);

/// Why a connection is closed, for the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Expired,
    Unhealthy,
    /// The pool is drained or made smaller, or its connections were evicted.
    Unwanted,
}

/// The state of a pool of `T`.
#[derive(Debug)]
pub(super) struct Exchange<T> {
    state: Mutex<State<T>>,
    /// Somebody waited when it was looked last: who asks now will probably wait, too. A guess, read without the lock.
    is_crowded: AtomicBool,
}

/// Everything that changes together.
///
/// Invariants: unless suspended, there are no idle connections while somebody waits; and
/// `idle + active + connecting + closing <= max`, where a connection that is being closed counts until its socket is
/// gone, but for the time after `max` was lowered.
#[derive(Debug)]
struct State<T> {
    /// The last one is the hottest: in the order of their last use.
    idle: Vec<Item<T>>,
    line: Line<T>,
    /// Those idle and active.
    standing: Slab<Standing>,
    active: usize,
    /// Those among the active that are idle but for a health check.
    checking: usize,
    connecting: usize,
    closing: usize,
    max: usize,
    min_idle: usize,
    max_lifetime: Option<Duration>,
    /// When a connection last took another's place.
    renewed: Option<Instant>,
    /// The connection that is the next to be replaced, and when: planned anew with each that comes or goes.
    renewal: Option<(usize, Instant)>,
    draining: bool,
    suspended: bool,
    /// Somebody calls `expire` when the time of the first who waits is over.
    is_watched: bool,
    /// Connections of an older generation are closed as they come back.
    generation: u64,
    breaker: Breaker,
    next_id: u64,
    counts: PoolMetrics,
    observed: Observed,
}

/// What happened since somebody asked.
#[derive(Debug)]
struct Observed {
    since: Option<Instant>,
    holds: u64,
    held: Duration,
    /// By time, two ranges for each doubling of a microsecond.
    by_time: [u32; HOLD_RANGES],
    active_max: usize,
}

const HOLD_RANGES: usize = 80;

/// What a pool saw between two questions: see [`EnhancedConnectionPool::take_window`](super::EnhancedConnectionPool::take_window).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolWindow {
    /// From the last question to this.
    pub length: Duration,
    /// Connections that came back.
    pub releases: u64,
    /// Mean time for which one was held.
    pub hold_mean: Duration,
    /// 99 of 100 were not held for longer; too long by half at most.
    pub hold_p99: Duration,
    /// Connections in use at the same time, at the most.
    pub active_max: usize,
}

/// A connection that is idle or active.
#[derive(Debug)]
struct Standing {
    id: u64,
    created: Instant,
    /// Another has taken its place: it is closed as it comes back.
    retired: bool,
    held: Option<Held>,
}

/// Who has it.
#[derive(Debug)]
struct Held {
    since: Instant,
    place: &'static Location<'static>,
    is_reported: bool,
}

/// Those who wait: a list in the order they came, and those who were served and have not looked yet.
#[derive(Debug)]
struct Line<T> {
    places: Slab<Waiting<T>>,
    head: usize,
    tail: usize,
    len: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    previous: usize,
    next: usize,
    place: &'static Location<'static>,
    /// Those who come later have later ones, as the same time is given to all.
    deadline: Option<Instant>,
    served: Served<T>,
}

#[derive(Debug)]
enum Served<T> {
    NotYet(Option<Waker>),
    With(Result<Item<T>, AcquireError>),
}

const NOBODY: usize = usize::MAX;

/// Remembers why connections can't be opened, and when to try again.
#[derive(Debug, Default)]
struct Breaker {
    last_error: Option<Arc<HeliosError>>,
    failures: u32,
    retry_at: Option<Instant>,
}

/// Full jitter over an exponential ceiling (Brooker, "Exponential backoff and jitter").
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How many idle connections, from the hot end, are looked at for a label.
const LABEL_SCAN: usize = 8;
/// Connections take each other's place one after the other, so that they don't all reconnect together, and nobody waits
/// for it: with n of them, the oldest one's successor is opened after so much of the lifetime, divided by n. So each lives
/// for this share of it, however they came.
const PACE: f64 = 0.8;
/// And is not renewed before this share, where they came together, nor after that one.
const RENEWED_FROM: f64 = 0.1;
const RENEWED_UNTIL: f64 = 0.9;

impl<T> Exchange<T> {
    pub(super) fn new(config: &ConnectionPoolConfig) -> Self {
        Self {
            state: Mutex::new(State {
                idle: Vec::new(),
                line: Line::default(),
                standing: Slab::new(),
                active: 0,
                checking: 0,
                connecting: 0,
                closing: 0,
                max: config.max_connections,
                min_idle: config.min_idle,
                max_lifetime: config.max_lifetime,
                renewed: None,
                renewal: None,
                draining: false,
                suspended: false,
                is_watched: false,
                generation: 0,
                breaker: Breaker::default(),
                next_id: 1,
                counts: PoolMetrics::default(),
                observed: Observed::default(),
            }),
            is_crowded: AtomicBool::new(false),
        }
    }

    /// Takes the hottest idle connection, preferring one with the label among the hottest few, or a place in the line.
    pub(super) fn ask(
        &self,
        wish: Wish,
        config: &ConnectionPoolConfig,
        began: Instant,
        now: Instant,
        waker: &Waker,
    ) -> Answer<T> {
        // Not under the lock. Where the guess is wrong, the first poll brings it.
        let waker = self
            .is_crowded
            .load(Ordering::Relaxed)
            .then(|| waker.clone());
        let mut state = self.state.lock();
        if state.draining {
            return Answer::Refused(AcquireError::Closed);
        }
        if !state.suspended {
            if let Some(mut idle) = state.take_idle(wish.label) {
                state.hold(&mut idle.meta, now, wish.place);
                state.counts.acquired += 1;
                if waker.is_some() {
                    self.is_crowded.store(false, Ordering::Relaxed);
                }
                return Answer::Taken(idle);
            }
            let alive = state.active + state.connecting;
            if let Some(error) = state.breaker.refusal(now).filter(|_| alive == 0) {
                return Answer::Refused(AcquireError::Connect(Arc::clone(error)));
            }
        }
        if waker.is_none() {
            self.is_crowded.store(true, Ordering::Relaxed);
        }
        let is_registered = waker.is_some();
        let deadline = began.checked_add(config.acquire_timeout);
        Answer::Wait {
            ticket: state.line.join(wish, deadline, waker),
            is_registered,
            connects: state.begin_connects(config, now),
            is_unwatched: !std::mem::replace(&mut state.is_watched, true),
        }
    }

    /// Tells those whose time is over, and returns when the next one's will be. `None` if nobody waits: then the line is
    /// not watched any more.
    pub(super) fn expire(&self, config: &ConnectionPoolConfig, now: Instant) -> Option<Instant> {
        let mut wakers = Vec::new();
        let mut state = self.state.lock();
        let next = loop {
            let Some(at) = state.line.first() else {
                state.is_watched = false;
                break None;
            };
            let deadline = state.line.places[at].deadline;
            match deadline {
                Some(deadline) if deadline <= now => {
                    let over = now.saturating_duration_since(deadline);
                    let error = state.timed_out(config.acquire_timeout + over, false);
                    wakers.push(state.line.serve(at, Err(error)));
                }
                // Of one without end; it is looked at again when the next round comes.
                None => break now.checked_add(config.health_check_timeout),
                deadline => break deadline,
            }
        };
        drop(state);
        wakers.into_iter().for_each(wake);
        next
    }

    /// Nobody calls [`expire`](Self::expire) any more: wakes all who wait, so that they look after themselves.
    pub(super) fn unwatch(&self) {
        let mut state = self.state.lock();
        state.is_watched = false;
        let wakers = state.line.take_wakers();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Takes an idle connection, if it was heard of lately: else `None`, and it stays.
    pub(super) fn take(
        &self,
        label: u64,
        place: &'static Location<'static>,
        now: Instant,
        bypass: Duration,
    ) -> Option<Item<T>> {
        let mut state = self.state.lock();
        if state.draining || state.suspended {
            return None;
        }
        let at = state.choose_idle(label)?;
        if state.idle[at].meta.unverified_for(now) >= bypass {
            return None;
        }
        let mut idle = state.take_idle(label)?;
        state.hold(&mut idle.meta, now, place);
        state.counts.acquired += 1;
        Some(idle)
    }

    /// What a place in the line was served with: then the place is gone.
    pub(super) fn poll(
        &self,
        ticket: &Ticket,
        waker: &Waker,
    ) -> Option<Result<Item<T>, AcquireError>> {
        let waker = waker.clone();
        let mut state = self.state.lock();
        let waiting = &mut state.line.places[ticket.0];
        if let Served::NotYet(known) = &mut waiting.served {
            let before = known.replace(waker);
            drop(state);
            drop(before);
            return None;
        }
        let Waiting {
            served: Served::With(served),
            ..
        } = state.line.places.remove(ticket.0)
        else {
            unreachable!("it was served");
        };
        state.counts.acquired += u64::from(served.is_ok());
        Some(served)
    }

    /// Gives a place in the line up, and returns the connection that was in it already.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the place is gone afterwards"
    )]
    pub(super) fn leave(&self, ticket: Ticket) -> Option<Item<T>> {
        let mut state = self.state.lock();
        let left = state.line.leave(&ticket);
        drop(state);
        match left {
            Served::With(Ok(idle)) => Some(idle),
            Served::With(Err(_)) | Served::NotYet(_) => None,
        }
    }

    /// Gives an active connection to the first who waits, or puts it among the idle ones by its last use. Returned if it
    /// is to be closed: then it counts as closing.
    pub(super) fn put_back(&self, mut idle: Item<T>, now: Instant) -> Option<T> {
        let mut state = self.state.lock();
        state.note_hold(idle.meta.slot, now);
        if let Some(why) = state.is_unwanted(&idle.meta, now) {
            if state.must_make_room(idle.meta.slot, now) {
                state.renewed = Some(now);
            }
            // Which plans anew.
            state.begin_close(&idle.meta, why);
            return Some(idle.connection);
        }
        if !state.suspended
            && let Some(at) = state.line.first()
        {
            let place = state.line.places[at].place;
            state.hold(&mut idle.meta, now, place);
            let waker = state.line.serve(at, Ok(idle));
            drop(state);
            wake(waker);
            return None;
        }
        state.active -= 1;
        idle.meta.in_use = false;
        state.put_idle(idle);
        None
    }

    /// An active connection becomes one that is being closed.
    pub(super) fn begin_close(&self, meta: &ConnectionMeta, why: Why) {
        self.state.lock().begin_close(meta, why);
    }

    /// The socket of one that was being closed is gone.
    pub(super) fn closed(&self) {
        self.state.lock().closing -= 1;
    }

    /// How many connections to open now; they count as being opened from here on.
    pub(super) fn begin_connects(&self, config: &ConnectionPoolConfig, now: Instant) -> usize {
        self.state.lock().begin_connects(config, now)
    }

    /// One of them stands: it counts as active. The idle connection whose place it takes, if there is one, counts as
    /// closing.
    pub(super) fn connected(
        &self,
        connection: T,
        label: u64,
        config: &ConnectionPoolConfig,
        now: Instant,
        jitter: f64,
    ) -> (Item<T>, Option<Item<T>>) {
        let mut state = self.state.lock();
        state.connecting -= 1;
        state.active += 1;
        state.breaker = Breaker::default();
        state.counts.created += 1;
        let id = state.next_id;
        state.next_id += 1;
        let predecessor = state.retire_one(now);
        // Subtracted, never added: the configured lifetime is a promise to somebody's firewall.
        let expires = config
            .max_lifetime
            .and_then(|max| now.checked_add(max - max.mul_f64(0.1 * jitter)));
        let slot = state.standing.insert(Standing {
            id,
            created: now,
            retired: false,
            held: None,
        });
        state.plan_renewal();
        let meta = ConnectionMeta {
            id,
            created: now,
            in_use: true,
            expires,
            idle_since: now,
            verified: now,
            generation: state.generation,
            slot,
        };
        let new = Box::new(Idle {
            connection,
            meta,
            label,
        });
        (new, predecessor)
    }

    /// An attempt failed. With no other connection to wait for, waiting would only hide the reason: then everybody who
    /// waits hears of it. Returns when to try again, and how many heard. `jitter` is between 0 and 1.
    pub(super) fn connect_failed(
        &self,
        error: &Arc<HeliosError>,
        now: Instant,
        jitter: f64,
    ) -> (Instant, usize) {
        let mut state = self.state.lock();
        state.connecting -= 1;
        state.counts.connect_failures += 1;
        let retry_at = state.breaker.open(Arc::clone(error), now, jitter);
        let hopeless = error.is_permanent() || state.active + state.connecting == 0;
        let wakers = if hopeless {
            let refused = || Err(AcquireError::Connect(Arc::clone(error)));
            state.line.serve_all(refused)
        } else {
            Vec::new()
        };
        drop(state);
        let n = wakers.len();
        wakers.into_iter().for_each(wake);
        (retry_at, n)
    }

    /// Takes out what is not to be used any more: too old, of an older generation, too many, with no room for its
    /// successor, or idle for too long; the last down to `min_idle`. They count as closing.
    pub(super) fn take_expired(&self, config: &ConnectionPoolConfig, now: Instant) -> Vec<Item<T>> {
        self.state.lock().take_expired(config, now)
    }

    /// Takes out up to half of the idle connections, at most `n`, that nothing was heard of since `before`. They count
    /// as active, and as being checked until [`checked`](Self::checked).
    pub(super) fn take_to_check(&self, n: usize, silent: Duration, now: Instant) -> Vec<Item<T>> {
        let mut state = self.state.lock();
        let at_once = state.idle.len().div_ceil(2).min(n);
        let is_silent = |idle: &mut Item<T>| idle.meta.unverified_for(now) >= silent;
        let taken: Vec<_> = state.idle.extract_if(.., is_silent).take(at_once).collect();
        state.active += taken.len();
        state.checking += taken.len();
        taken
    }

    pub(super) fn checked(&self) {
        self.state.lock().checking -= 1;
    }

    pub(super) fn count_reset(&self) {
        self.state.lock().counts.resets += 1;
    }

    /// A connection that was acquired turned out to be dead.
    pub(super) fn uncount_acquired(&self) {
        self.state.lock().counts.acquired -= 1;
    }

    /// Counts an acquire that waited in vain, and says why.
    pub(super) fn timed_out(&self, waited: Duration, is_check: bool) -> AcquireError {
        self.state.lock().timed_out(waited, is_check)
    }

    /// Whatever stands now is closed, as it comes back if not at once.
    pub(super) fn evict_all(&self, config: &ConnectionPoolConfig, now: Instant) -> Vec<Item<T>> {
        let mut state = self.state.lock();
        state.generation += 1;
        state.take_expired(config, now)
    }

    /// Lets nobody in any more, and sends those who wait away.
    pub(super) fn drain(&self, config: &ConnectionPoolConfig, now: Instant) -> Vec<Item<T>> {
        let mut state = self.state.lock();
        state.draining = true;
        let wakers = state.line.serve_all(|| Err(AcquireError::Closed));
        let expired = state.take_expired(config, now);
        drop(state);
        wakers.into_iter().for_each(wake);
        expired
    }

    /// Lets everybody wait, until [`resume`](Self::resume).
    pub(super) fn suspend(&self) {
        self.state.lock().suspended = true;
    }

    /// Serves those who waited meanwhile with what is idle. Returns what is to be closed.
    pub(super) fn resume(&self, now: Instant) -> Vec<T> {
        let mut state = self.state.lock();
        state.suspended = false;
        let (mut wakers, mut unwanted) = (Vec::new(), Vec::new());
        while let Some(at) = state.line.first()
            && let Some(mut idle) = state.take_idle(0)
        {
            if let Some(why) = state.is_unwanted(&idle.meta, now) {
                state.begin_close(&idle.meta, why);
                unwanted.push(idle.connection);
                continue;
            }
            let place = state.line.places[at].place;
            state.hold(&mut idle.meta, now, place);
            wakers.push(state.line.serve(at, Ok(idle)));
        }
        drop(state);
        wakers.into_iter().for_each(wake);
        unwanted
    }

    /// Sets the bounds. What is too many is returned, as far as it is idle; the rest is closed as it comes back.
    pub(super) fn resize(
        &self,
        max: usize,
        min_idle: usize,
        config: &ConnectionPoolConfig,
        now: Instant,
    ) -> Vec<Item<T>> {
        let mut state = self.state.lock();
        (state.max, state.min_idle) = (max, min_idle);
        state.take_expired(config, now)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().total() == 0
    }

    pub(super) fn active(&self) -> usize {
        self.state.lock().active
    }

    /// When the next connection is to be renewed.
    pub(super) fn next_renewal(&self) -> Option<Instant> {
        let state = self.state.lock();
        state.renewal.map(|(_, at)| at)
    }

    /// What was observed since the last time, or since the pool was made, which is `made` ago.
    pub(super) fn take_window(&self, made: Instant, now: Instant) -> PoolWindow {
        let mut state = self.state.lock();
        let active = state.active;
        let observed = std::mem::take(&mut state.observed);
        state.observed.since = Some(now);
        state.observed.active_max = active;
        drop(state);
        observed.window(made, now)
    }

    /// What is on loan.
    pub(super) fn leases(&self, now: Instant) -> Vec<LeaseInfo> {
        let state = self.state.lock();
        let held = |standing: &Standing| standing.lease(now);
        state
            .standing
            .iter()
            .filter_map(|(_, one)| held(one))
            .collect()
    }

    /// What has been on loan for longer than `threshold` and was not reported yet.
    pub(super) fn overdue(&self, threshold: Duration, now: Instant) -> Vec<LeaseInfo> {
        let mut state = self.state.lock();
        let mut overdue = Vec::new();
        for (_, standing) in &mut state.standing {
            let lease = standing.lease(now);
            let lease = lease.filter(|lease| lease.held >= threshold);
            if let (Some(lease), Some(held)) = (lease, &mut standing.held)
                && !held.is_reported
            {
                held.is_reported = true;
                overdue.push(lease);
            }
        }
        overdue
    }

    pub(super) fn metrics(&self, config: &ConnectionPoolConfig, now: Instant) -> PoolMetrics {
        let state = self.state.lock();
        let mut metrics = state.counts;
        metrics.idle = state.idle.len();
        metrics.active = state.active;
        metrics.connecting = state.connecting;
        metrics.closing = state.closing;
        metrics.waiting = state.line.len;
        metrics.max = state.max;
        metrics.suspended = state.suspended;
        if let Some(threshold) = config.leak_threshold {
            let leases = state.standing.iter();
            let leases = leases.filter_map(|(_, standing)| standing.lease(now));
            metrics.overdue = leases.filter(|lease| lease.held >= threshold).count();
        }
        metrics
    }

    /// The idle connections of a pool that goes.
    pub(super) fn take_idle(&mut self) -> Vec<Item<T>> {
        std::mem::take(&mut self.state.lock().idle)
    }
}

impl<T> State<T> {
    fn timed_out(&mut self, waited: Duration, is_check: bool) -> AcquireError {
        self.counts.timeouts += 1;
        let phase = if self.suspended {
            AcquirePhase::Suspended
        } else if is_check {
            AcquirePhase::Check
        } else if self.connecting > 0 && self.active == 0 {
            AcquirePhase::Connect
        } else {
            AcquirePhase::Wait
        };
        AcquireError::Timeout {
            phase,
            waited,
            max: self.max,
            active: self.active,
            idle: self.idle.len(),
            connecting: self.connecting,
            waiting: self.line.len,
            last_connect_error: self.breaker.last_error.clone(),
        }
    }

    /// Connections of any kind.
    fn total(&self) -> usize {
        self.idle.len() + self.active + self.connecting + self.closing
    }

    fn choose_idle(&self, label: u64) -> Option<usize> {
        let hottest = self.idle.len().checked_sub(1)?;
        let labelled = (0..self.idle.len())
            .rev()
            .take(LABEL_SCAN)
            .find(|at| self.idle[*at].label == label);
        Some(labelled.unwrap_or(hottest))
    }

    fn take_idle(&mut self, label: u64) -> Option<Item<T>> {
        let at = self.choose_idle(label)?;
        let idle = self.idle.remove(at);
        self.counts.label_hits += u64::from(idle.label == label);
        self.active += 1;
        Some(idle)
    }

    /// Puts a connection among the idle ones, by its last use.
    fn put_idle(&mut self, idle: Item<T>) {
        let since = idle.meta.idle_since;
        if self
            .idle
            .last()
            .is_none_or(|last| last.meta.idle_since <= since)
        {
            self.idle.push(idle);
            return;
        }
        let at = self
            .idle
            .partition_point(|other| other.meta.idle_since <= since);
        self.idle.insert(at, idle);
    }

    /// Notes for how long a connection was held that comes back.
    fn note_hold(&mut self, slot: usize, now: Instant) {
        if let Some(held) = self.standing[slot].held.take() {
            self.observed
                .hold(now.saturating_duration_since(held.since));
        }
    }

    /// Notes who has a connection.
    fn hold(&mut self, meta: &mut ConnectionMeta, now: Instant, place: &'static Location<'static>) {
        meta.in_use = true;
        self.observed.active_max = self.observed.active_max.max(self.active);
        self.standing[meta.slot].held = Some(Held {
            since: now,
            place,
            is_reported: false,
        });
    }

    fn begin_close(&mut self, meta: &ConnectionMeta, why: Why) {
        self.active -= 1;
        self.count_closing(meta.slot, why);
    }

    fn count_closing(&mut self, slot: usize, why: Why) {
        self.standing.remove(slot);
        self.plan_renewal();
        self.closing += 1;
        match why {
            Why::Expired => self.counts.expired += 1,
            Why::Unhealthy => self.counts.unhealthy += 1,
            Why::Unwanted => {}
        }
    }

    /// Why a connection must not be used again.
    fn is_unwanted(&self, meta: &ConnectionMeta, now: Instant) -> Option<Why> {
        let is_unwanted = self.draining
            || meta.generation != self.generation
            || self.total() - self.closing > self.max;
        let is_expired = || {
            meta.is_too_old(now)
                || self.standing[meta.slot].retired
                || self.must_make_room(meta.slot, now)
        };
        match is_unwanted {
            true => Some(Why::Unwanted),
            false => is_expired().then_some(Why::Expired),
        }
    }

    fn plan_renewal(&mut self) {
        self.renewal = self.next_renewal();
    }

    fn next_renewal(&self) -> Option<(usize, Instant)> {
        let lifetime = self.max_lifetime?;
        let standing = || self.standing.iter().filter(|(_, one)| !one.retired);
        let (slot, oldest) = standing().min_by_key(|(_, one)| (one.created, one.id))?;
        let after = |since: Instant, share: f64| since.checked_add(lifetime.mul_f64(share));
        let pace = PACE / standing().count() as f64;
        let paced = after(self.renewed.unwrap_or(oldest.created), pace)?;
        let paced = paced.max(after(oldest.created, RENEWED_FROM)?);
        Some((slot, paced.min(after(oldest.created, RENEWED_UNTIL)?)))
    }

    /// The connection that is to be replaced now.
    fn due(&self, now: Instant) -> Option<usize> {
        let (slot, at) = self.renewal?;
        (now >= at).then_some(slot)
    }

    /// Is a connection to be replaced, and there is no room for its successor?
    fn must_make_room(&self, slot: usize, now: Instant) -> bool {
        self.total() >= self.max && self.due(now) == Some(slot)
    }

    fn begin_connects(&mut self, config: &ConnectionPoolConfig, now: Instant) -> usize {
        if self.draining || self.suspended || self.breaker.refusal(now).is_some() {
            return 0;
        }
        // While nothing is known to work, one attempt is enough to find out.
        let at_once = if self.breaker.failures == 0 {
            config.max_connecting
        } else {
            1
        };
        let spare = self
            .min_idle
            .saturating_sub(self.idle.len() + self.checking);
        let to_renew = usize::from(self.due(now).is_some());
        let wanted = (self.line.len + spare + to_renew).saturating_sub(self.connecting);
        let room = self.max.saturating_sub(self.total());
        let n = wanted
            .min(room)
            .min(at_once.saturating_sub(self.connecting));
        self.connecting += n;
        n
    }

    /// Retires the connection that is due. Returned if it is idle.
    fn retire_one(&mut self, now: Instant) -> Option<Item<T>> {
        let slot = self.due(now)?;
        self.renewed = Some(now);
        self.standing[slot].retired = true;
        self.plan_renewal();
        let at = self.idle.iter().position(|idle| idle.meta.slot == slot)?;
        let idle = self.idle.remove(at);
        self.count_closing(slot, Why::Expired);
        Some(idle)
    }

    fn take_expired(&mut self, config: &ConnectionPoolConfig, now: Instant) -> Vec<Item<T>> {
        let mut kept = Vec::with_capacity(self.idle.len());
        let mut expired = Vec::new();
        let mut alive = self.idle.len() + self.checking;
        let mut standing = self.total() - self.closing;
        // Where there is room, its successor comes first.
        let due = self.due(now).filter(|_| self.total() >= self.max);
        // The coldest first: it is they that go when there are too many.
        for idle in std::mem::take(&mut self.idle) {
            let unwanted =
                self.draining || idle.meta.generation != self.generation || standing > self.max;
            let is_due = due == Some(idle.meta.slot);
            if is_due {
                self.renewed = Some(now);
            }
            let too_old = idle.meta.is_too_old(now) || is_due;
            let too_many = alive > self.min_idle && idle.meta.is_too_idle(config, now);
            if too_old || unwanted || too_many {
                alive -= 1;
                standing -= 1;
                let why = if unwanted {
                    Why::Unwanted
                } else {
                    Why::Expired
                };
                self.count_closing(idle.meta.slot, why);
                expired.push(idle);
            } else {
                kept.push(idle);
            }
        }
        self.idle = kept;
        expired
    }
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            since: None,
            holds: 0,
            held: Duration::ZERO,
            by_time: [0; HOLD_RANGES],
            active_max: 0,
        }
    }
}

impl Observed {
    fn hold(&mut self, held: Duration) {
        self.holds += 1;
        self.held += held;
        self.by_time[range_of(held)] += 1;
    }

    fn window(&self, made: Instant, now: Instant) -> PoolWindow {
        let since = self.since.unwrap_or(made);
        let mean = self.held.as_nanos() / u128::from(self.holds.max(1));
        PoolWindow {
            length: now.saturating_duration_since(since),
            releases: self.holds,
            hold_mean: Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX)),
            hold_p99: self.quantile(0.99),
            active_max: self.active_max,
        }
    }

    /// The upper end of the range in which the quantile is.
    fn quantile(&self, share: f64) -> Duration {
        let rank = (self.holds as f64 * share).ceil();
        let mut seen = 0.0;
        for (at, n) in self.by_time.iter().enumerate() {
            seen += f64::from(*n);
            if self.holds > 0 && seen >= rank {
                return range_end(at);
            }
        }
        Duration::ZERO
    }
}

/// The range of a time: its doubling of a microsecond, and the half of that.
fn range_of(time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    let doubling = micros.ilog2();
    let is_upper = doubling > 0 && micros >> (doubling - 1) & 1 == 1;
    (2 * doubling as usize + usize::from(is_upper)).min(HOLD_RANGES - 1)
}

fn range_end(range: usize) -> Duration {
    let begin = 1_u64 << (range / 2);
    Duration::from_micros(if range.is_multiple_of(2) {
        begin + begin / 2
    } else {
        2 * begin
    })
}

impl Standing {
    fn lease(&self, now: Instant) -> Option<LeaseInfo> {
        let held = self.held.as_ref()?;
        Some(LeaseInfo {
            connection: self.id,
            held: now.saturating_duration_since(held.since),
            place: held.place,
        })
    }
}

impl<T> Line<T> {
    fn first(&self) -> Option<usize> {
        (self.head != NOBODY).then_some(self.head)
    }

    fn join(&mut self, wish: Wish, deadline: Option<Instant>, waker: Option<Waker>) -> Ticket {
        let (previous, next) = if wish.is_first {
            (NOBODY, self.head)
        } else {
            (self.tail, NOBODY)
        };
        let at = self.places.insert(Waiting {
            previous,
            next,
            place: wish.place,
            deadline,
            served: Served::NotYet(waker),
        });
        *self.next_of(previous) = at;
        *self.previous_of(next) = at;
        self.len += 1;
        Ticket(at)
    }

    /// What is in a place that is given up.
    fn leave(&mut self, ticket: &Ticket) -> Served<T> {
        if matches!(self.places[ticket.0].served, Served::NotYet(_)) {
            self.unlink(ticket.0);
        }
        self.places.remove(ticket.0).served
    }

    fn serve(&mut self, at: usize, with: Result<Item<T>, AcquireError>) -> Option<Waker> {
        self.unlink(at);
        match std::mem::replace(&mut self.places[at].served, Served::With(with)) {
            Served::NotYet(waker) => waker,
            Served::With(_) => unreachable!("who was served is not in the line"),
        }
    }

    fn serve_all(
        &mut self,
        with: impl Fn() -> Result<Item<T>, AcquireError>,
    ) -> Vec<Option<Waker>> {
        let mut wakers = Vec::with_capacity(self.len);
        while let Some(at) = self.first() {
            wakers.push(self.serve(at, with()));
        }
        wakers
    }

    /// Of all who wait.
    fn take_wakers(&mut self) -> Vec<Waker> {
        let wakers = self
            .places
            .iter_mut()
            .filter_map(|(_, place)| match &mut place.served {
                Served::NotYet(waker) => waker.take(),
                Served::With(_) => None,
            });
        wakers.collect()
    }

    fn unlink(&mut self, at: usize) {
        let Waiting { previous, next, .. } = self.places[at];
        *self.next_of(previous) = next;
        *self.previous_of(next) = previous;
        self.len -= 1;
    }

    fn next_of(&mut self, at: usize) -> &mut usize {
        match at {
            NOBODY => &mut self.head,
            at => &mut self.places[at].next,
        }
    }

    fn previous_of(&mut self, at: usize) -> &mut usize {
        match at {
            NOBODY => &mut self.tail,
            at => &mut self.places[at].previous,
        }
    }
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self {
            places: Slab::new(),
            head: NOBODY,
            tail: NOBODY,
            len: 0,
        }
    }
}

impl Breaker {
    fn open(&mut self, error: Arc<HeliosError>, now: Instant, jitter: f64) -> Instant {
        let ceiling = BACKOFF_MIN
            .saturating_mul(1 << self.failures.min(16))
            .min(BACKOFF_MAX);
        let retry_at = now + BACKOFF_MIN + ceiling.mul_f64(jitter);
        self.failures = self.failures.saturating_add(1);
        self.last_error = Some(error);
        self.retry_at = Some(retry_at);
        retry_at
    }

    /// The cached reason, while it is too early to try again.
    fn refusal(&self, now: Instant) -> Option<&Arc<HeliosError>> {
        self.last_error
            .as_ref()
            .filter(|_| self.retry_at.is_some_and(|at| now < at))
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
