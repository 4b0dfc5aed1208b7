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

use super::breaker::Breaker;
use super::hint::ConnectionHint;
use super::line::{Served, Ticket, Waiting, wake};
use super::meta::{ConnectionMeta, Idle, Item, LeaseInfo};
use super::state::{Standing, State, Why};
use super::sync::Mutex;
use super::window::PoolWindow;
use super::{AcquireError, ConnectionPoolConfig, HeliosError, PoolMetrics};

/// What an acquire asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub(super) label: u64,
    pub(super) hint: Option<ConnectionHint>,
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

/// A connection that was opened.
#[derive(Debug)]
pub(super) struct Connected<T> {
    pub(super) new: Item<T>,
    /// Whose place it takes.
    pub(super) predecessor: Option<Item<T>>,
    /// When one more may be tried, where that was not known before.
    pub(super) retry_at: Option<Instant>,
}

/// The state of a pool of `T`.
#[derive(Debug)]
pub(super) struct Exchange<T> {
    state: Mutex<State<T>>,
    /// Somebody waited when it was looked last: who asks now will probably wait, too. A guess, read without the lock.
    is_crowded: AtomicBool,
}

impl<T> Exchange<T> {
    pub(super) fn new(config: &ConnectionPoolConfig) -> Self {
        Self {
            state: Mutex::new(State::new(config)),
            is_crowded: AtomicBool::new(false),
        }
    }

    /// Takes the idle connection that suits best, or a place in the line.
    pub(super) fn ask(
        &self,
        wish: &Wish,
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
            let hint = wish.hint.as_ref();
            // Where all need a check, it is the hottest's turn.
            let hinted = hint.and_then(|hint| {
                state.choose_hinted(wish.label, hint, now, config.validation_bypass)
            });
            let chosen = hinted.or_else(|| state.choose_idle(wish.label));
            if let Some(at) = chosen {
                let mut idle = state.take_idle_at(at, wish.label, hint);
                state.hold(&mut idle.meta, now, wish.place);
                state.counts.acquired += 1;
                if waker.is_some() {
                    self.is_crowded.store(false, Ordering::Relaxed);
                }
                return Answer::Taken(idle);
            }
            let alive = state.active + state.connecting;
            let breaker = &state.breaker;
            let is_told = |error: &&Arc<HeliosError>| {
                let may_pass =
                    !error.is_permanent() && breaker.is_waited_out(config.outage_timeout, now);
                alive == 0 && !may_pass
            };
            if let Some(error) = breaker.refusal(now).filter(is_told) {
                return Answer::Refused(AcquireError::Connect(Arc::clone(error)));
            }
        }
        if waker.is_none() {
            self.is_crowded.store(true, Ordering::Relaxed);
        }
        let is_registered = waker.is_some();
        let deadline = began.checked_add(config.acquire_timeout);
        Answer::Wait {
            ticket: state.line.join(wish, began, deadline, waker),
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
        let next = next.map(|next| state.next_overdue(now).map_or(next, |at| at.min(next)));
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
        hint: Option<&ConnectionHint>,
        place: &'static Location<'static>,
        now: Instant,
        bypass: Duration,
    ) -> Option<Item<T>> {
        let mut state = self.state.lock();
        if state.draining || state.suspended {
            return None;
        }
        let at = match hint {
            Some(hint) => state.choose_hinted(label, hint, now, bypass)?,
            None => {
                let at = state.choose_idle(label)?;
                let is_known = state.idle[at].meta.unverified_for(now) < bypass;
                is_known.then_some(at)?
            }
        };
        let mut idle = state.take_idle_at(at, label, hint);
        state.hold(&mut idle.meta, now, place);
        state.counts.acquired += 1;
        Some(idle)
    }

    /// What a place in the line was served with: then the place is gone. A hint is only counted: who waits takes what comes.
    pub(super) fn poll(
        &self,
        ticket: &Ticket,
        hint: Option<&ConnectionHint>,
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
        if let Ok(idle) = &served {
            state.counts.acquired += 1;
            state.count_hint(idle, hint);
        }
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
        state.last_used = state.last_used.max(Some(idle.meta.idle_since));
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

    /// How many there are beyond what the pool has without its reserve.
    pub(super) fn beyond_max(&self) -> usize {
        let state = self.state.lock();
        if state.reserve_size == 0 {
            return 0;
        }
        state.total().saturating_sub(state.max)
    }

    /// Whether one of them is for somebody who waits: then it may wait, too, until it is [admitted](Self::admitted).
    pub(super) fn is_urgent(&self) -> bool {
        self.state.lock().is_urgent()
    }

    /// It may be tried. Counted out, and false, if nobody needs it any more.
    pub(super) fn admitted(&self, is_urgent: bool) -> bool {
        let mut state = self.state.lock();
        if is_urgent && state.give_up_connect(true) {
            return false;
        }
        state.urgent -= usize::from(is_urgent);
        true
    }

    /// Counts one of them out that waits to be admitted, if nobody waits for it any more.
    pub(super) fn give_up_connect(&self, is_urgent: bool) -> bool {
        self.state.lock().give_up_connect(is_urgent)
    }

    /// Counts one of them out that may not be tried. True if somebody waits.
    pub(super) fn connect_refused(&self, is_urgent: bool) -> bool {
        let mut state = self.state.lock();
        state.connecting -= 1;
        state.urgent -= usize::from(is_urgent);
        state.line.len > 0
    }

    /// Since when the first in the line waits.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        self.state.lock().line.since().next()
    }

    pub(super) fn has_idle(&self) -> bool {
        !self.state.lock().idle.is_empty()
    }

    /// Takes out up to `n` of the idle connections, the coldest first, but for `keep`. They count as closing.
    pub(super) fn evict_idle(&self, n: usize, keep: usize) -> Vec<Item<T>> {
        self.state.lock().take_coldest(n, keep)
    }

    /// Sets the reserve. What is too many goes as it comes back.
    pub(super) fn set_reserve(&self, size: usize, timeout: Duration) {
        let mut state = self.state.lock();
        (state.reserve_size, state.reserve_timeout) = (size, timeout);
    }

    /// One of them stands: it counts as active. The idle connection whose place it takes, if there is one, counts as
    /// closing. Where the server had too many, another may be tried then.
    pub(super) fn connected(
        &self,
        connection: T,
        (label, has_room): (u64, bool),
        config: &ConnectionPoolConfig,
        now: Instant,
        jitter: f64,
    ) -> Connected<T> {
        let mut state = self.state.lock();
        state.connecting -= 1;
        state.active += 1;
        state.breaker = Breaker::default();
        let (alive, max) = (state.alive(), state.max);
        let retry_at = state.cap.stands(alive, max, now);
        state.counts.created += 1;
        let id = state.next_id;
        state.next_id += 1;
        let predecessor = state.retire_one(now);
        // One for nobody is as idle as the pool: what nobody needs does not live for ever because it is renewed.
        let idle_since = match state.last_used {
            Some(last_used) if state.line.len == 0 => last_used,
            _ => now,
        };
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
            acquired: now,
            idle_since,
            verified: now,
            generation: state.generation,
            slot,
        };
        let new = Box::new(Idle {
            connection,
            meta,
            label,
            has_room,
        });
        Connected {
            new,
            predecessor,
            retry_at,
        }
    }

    /// An attempt failed. With no other connection to wait for, waiting would only hide the reason: then everybody who
    /// waits hears of it, unless the outage is to be waited out. Where the server has too many connections, no more are tried than those that stand, for a while.
    /// Returns when to try again, and how many heard. `jitter` is between 0 and 1.
    pub(super) fn connect_failed(
        &self,
        error: &Arc<HeliosError>,
        config: &ConnectionPoolConfig,
        now: Instant,
        jitter: f64,
    ) -> (Instant, usize) {
        let mut state = self.state.lock();
        state.connecting -= 1;
        state.counts.connect_failures += 1;
        let patience = config.outage_timeout;
        let mut retry_at = state.breaker.open(Arc::clone(error), patience, now, jitter);
        if error.is_too_many_connections() {
            let alive = state.alive();
            let grows_at = state.cap.refused(alive, now);
            if state.is_full() {
                retry_at = retry_at.max(grows_at);
            }
        }
        let is_outage = state.active + state.connecting == 0;
        let hopeless =
            error.is_permanent() || is_outage && !state.breaker.is_waited_out(patience, now);
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
    pub(super) fn uncount_acquired(&self, id: u64, hint: Option<&ConnectionHint>) {
        let mut state = self.state.lock();
        state.counts.acquired -= 1;
        if let Some(hint) = hint {
            state.counts.hinted -= 1;
            state.counts.affinity_hits -= u64::from(hint.has(id));
        }
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

    /// Lets everybody wait, and holds no connection, until [`resume`](Self::resume). What is idle is returned.
    pub(super) fn suspend_and_empty(
        &self,
        config: &ConnectionPoolConfig,
        now: Instant,
    ) -> Vec<Item<T>> {
        let mut state = self.state.lock();
        state.suspended = true;
        state.is_emptied = true;
        state.generation += 1;
        state.take_expired(config, now)
    }

    /// Serves those who waited meanwhile with what is idle. Returns what is to be closed.
    pub(super) fn resume(&self, now: Instant) -> Vec<T> {
        let mut state = self.state.lock();
        state.suspended = false;
        state.is_emptied = false;
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

    /// When the next of those that are idle has been so for too long.
    pub(super) fn next_idle_end(&self, config: &ConnectionPoolConfig) -> Option<Instant> {
        self.state.lock().next_idle_end(config)
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
        metrics.cap = state.cap.bound(state.max);
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
