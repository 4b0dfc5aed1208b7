//! Everything of a pool that changes together, and the moves of it.

use std::panic::Location;
use std::time::{Duration, Instant};

use slab::Slab;

use super::breaker::Breaker;
use super::cap::Cap;
use super::hint::ConnectionHint;
use super::line::Line;
use super::meta::{ConnectionMeta, Idle, Item, LeaseInfo};
use super::window::Observed;
use super::{AcquireError, AcquirePhase, ConnectionPoolConfig, PoolMetrics};

/// Everything that changes together.
///
/// Invariants: unless suspended, there are no idle connections while somebody waits; and
/// `idle + active + connecting + closing <= max`, where a connection that is being closed counts until its socket is
/// gone, but for the time after `max` was lowered, and for the reserve: up to `reserve_size` more while somebody waits.
#[derive(Debug)]
pub(super) struct State<T> {
    /// The last one is the hottest: in the order of their last use.
    pub(super) idle: Vec<Item<T>>,
    pub(super) line: Line<T>,
    /// Those idle and active.
    pub(super) standing: Slab<Standing>,
    pub(super) active: usize,
    /// Those among the active that are idle but for a health check.
    pub(super) checking: usize,
    pub(super) connecting: usize,
    /// Those among them that wait to be admitted, for somebody who waits for them.
    pub(super) urgent: usize,
    pub(super) closing: usize,
    pub(super) max: usize,
    /// Bounds what is opened; what stands is not closed for it.
    pub(super) cap: Cap,
    pub(super) min_idle: usize,
    pub(super) reserve_size: usize,
    pub(super) reserve_timeout: Duration,
    pub(super) max_lifetime: Option<Duration>,
    /// When a connection last took another's place.
    pub(super) renewed: Option<Instant>,
    /// The end of the last use of any of them.
    pub(super) last_used: Option<Instant>,
    /// The connection that is the next to be replaced, and when: planned anew with each that comes or goes.
    pub(super) renewal: Option<(usize, Instant)>,
    pub(super) draining: bool,
    pub(super) suspended: bool,
    /// While suspended: what comes back, or is opened still, is closed.
    pub(super) is_emptied: bool,
    /// Somebody calls `expire` when the time of the first who waits is over.
    pub(super) is_watched: bool,
    /// Connections of an older generation are closed as they come back.
    pub(super) generation: u64,
    pub(super) breaker: Breaker,
    pub(super) next_id: u64,
    pub(super) counts: PoolMetrics,
    pub(super) observed: Observed,
}

/// Why a connection is closed, for the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Expired,
    Unhealthy,
    /// The pool is drained or made smaller, or its connections were evicted.
    Unwanted,
}

/// A connection that is idle or active.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) id: u64,
    pub(super) created: Instant,
    /// Another has taken its place: it is closed as it comes back.
    pub(super) retired: bool,
    pub(super) held: Option<Held>,
}

/// Idle connections that an acquire with a hint may get, but for those with both the label and a place in the hint. Of those
/// with room or a place in the hint the hottest, of the others the coldest.
#[derive(Debug, Default)]
struct Found {
    label_and_room: Option<usize>,
    label: Option<usize>,
    named: Option<usize>,
    room: Option<usize>,
    other: Option<usize>,
}

/// Who has it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) since: Instant,
    pub(super) place: &'static Location<'static>,
    pub(super) is_reported: bool,
}

/// How many idle connections, from the hot end, are looked at for a label.
const LABEL_SCAN: usize = 8;
/// How many are looked at where there is a hint: a statement is somewhere, and finding it saves the server much more than
/// the look costs.
const HINT_SCAN: usize = 64;
/// Connections take each other's place one after the other, so that they don't all reconnect together, and nobody waits
/// for it: with n of them, the oldest one's successor is opened after so much of the lifetime, divided by n. So each lives
/// for this share of it, however they came.
const PACE: f64 = 0.8;
/// And is not renewed before this share, where they came together, nor after that one.
const RENEWED_FROM: f64 = 0.1;
const RENEWED_UNTIL: f64 = 0.9;

impl<T> State<T> {
    pub(super) fn new(config: &ConnectionPoolConfig) -> Self {
        Self {
            idle: Vec::new(),
            line: Line::default(),
            standing: Slab::new(),
            active: 0,
            checking: 0,
            connecting: 0,
            urgent: 0,
            closing: 0,
            max: config.max_connections,
            cap: Cap::default(),
            min_idle: config.min_idle,
            reserve_size: config.reserve_size,
            reserve_timeout: config.reserve_timeout,
            max_lifetime: config.max_lifetime,
            renewed: None,
            last_used: None,
            renewal: None,
            draining: false,
            suspended: false,
            is_emptied: false,
            is_watched: false,
            generation: 0,
            breaker: Breaker::default(),
            next_id: 1,
            counts: PoolMetrics::default(),
            observed: Observed::default(),
        }
    }

    pub(super) fn timed_out(&mut self, waited: Duration, is_check: bool) -> AcquireError {
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
            max: self.cap.bound(self.max + self.reserve_size),
            active: self.active,
            idle: self.idle.len(),
            connecting: self.connecting,
            waiting: self.line.len,
            last_connect_error: self.breaker.last_error.clone(),
        }
    }

    /// Connections that the server has let in.
    pub(super) fn alive(&self) -> usize {
        self.idle.len() + self.active
    }

    /// Connections of any kind.
    pub(super) fn total(&self) -> usize {
        self.idle.len() + self.active + self.connecting + self.closing
    }

    /// The hottest, or one with the label among the hottest few.
    pub(super) fn choose_idle(&self, label: u64) -> Option<usize> {
        let hottest = self.idle.len().checked_sub(1)?;
        let labelled = (0..self.idle.len())
            .rev()
            .take(LABEL_SCAN)
            .find(|at| self.idle[*at].label == label);
        Some(labelled.unwrap_or(hottest))
    }

    /// The one of those that need no check first that suits an acquire with a hint. `None` where all of them need one.
    ///
    /// The label goes first, because another costs the client a round trip, and what the hint is about is only work for the
    /// server. But as long as another connection has room, it is worth that round trip, once, not to give anything up: so
    /// all connections come to be used where what has to be kept does not fit on a few. Where none has room, the coldest
    /// gives up what it has, for that is the oldest.
    pub(super) fn choose_hinted(
        &self,
        label: u64,
        hint: &ConnectionHint,
        now: Instant,
        bypass: Duration,
    ) -> Option<usize> {
        let mut found = Found::default();
        for (at, idle) in self.idle.iter().enumerate().rev().take(HINT_SCAN) {
            if idle.meta.unverified_for(now) >= bypass {
                continue;
            }
            let is_named = hint.has(idle.meta.id);
            match (idle.label == label, is_named, idle.has_room) {
                (true, true, _) => return Some(at),
                (true, false, true) => found.label_and_room.get_or_insert(at),
                (true, false, false) => found.label.insert(at),
                (false, true, _) => found.named.get_or_insert(at),
                (false, false, true) => found.room.get_or_insert(at),
                (false, false, false) => found.other.insert(at),
            };
        }
        found.best()
    }

    pub(super) fn take_idle(&mut self, label: u64) -> Option<Item<T>> {
        let at = self.choose_idle(label)?;
        Some(self.take_idle_at(at, label, None))
    }

    /// Takes a connection that was chosen.
    pub(super) fn take_idle_at(
        &mut self,
        at: usize,
        label: u64,
        hint: Option<&ConnectionHint>,
    ) -> Item<T> {
        let idle = self.idle.remove(at);
        self.counts.label_hits += u64::from(idle.label == label);
        self.count_hint(&idle, hint);
        self.active += 1;
        idle
    }

    /// Counts whether an acquire got what it hinted at.
    pub(super) fn count_hint(&mut self, idle: &Idle<T>, hint: Option<&ConnectionHint>) {
        if let Some(hint) = hint {
            self.counts.hinted += 1;
            self.counts.affinity_hits += u64::from(hint.has(idle.meta.id));
        }
    }

    /// Puts a connection among the idle ones, by its last use.
    pub(super) fn put_idle(&mut self, idle: Item<T>) {
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
    pub(super) fn note_hold(&mut self, slot: usize, now: Instant) {
        if let Some(held) = self.standing[slot].held.take() {
            self.observed
                .hold(now.saturating_duration_since(held.since));
        }
    }

    /// Notes who has a connection.
    pub(super) fn hold(
        &mut self,
        meta: &mut ConnectionMeta,
        now: Instant,
        place: &'static Location<'static>,
    ) {
        meta.in_use = true;
        meta.acquired = now;
        self.observed.active_max = self.observed.active_max.max(self.active);
        self.standing[meta.slot].held = Some(Held {
            since: now,
            place,
            is_reported: false,
        });
    }

    pub(super) fn begin_close(&mut self, meta: &ConnectionMeta, why: Why) {
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
    pub(super) fn is_unwanted(&self, meta: &ConnectionMeta, now: Instant) -> Option<Why> {
        let is_unwanted = self.draining
            || self.is_emptied
            || meta.generation != self.generation
            || self.total() - self.closing > self.max + self.reserve_in_use();
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

    pub(super) fn plan_renewal(&mut self) {
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

    pub(super) fn next_idle_end(&self, config: &ConnectionPoolConfig) -> Option<Instant> {
        let timeout = config.idle_timeout?;
        // Those that are being checked are idle as well, and are looked at again when they come back.
        let has_spare = self.idle.len() + self.checking > self.min_idle;
        let since = self.idle.iter().map(|idle| idle.meta.idle_since).min();
        since.filter(|_| has_spare)?.checked_add(timeout)
    }

    /// The connection that is to be replaced now.
    fn due(&self, now: Instant) -> Option<usize> {
        let (slot, at) = self.renewal?;
        (now >= at).then_some(slot)
    }

    /// No more may be opened.
    pub(super) fn is_full(&self) -> bool {
        self.total() >= self.cap.bound(self.max)
    }

    /// Is a connection to be replaced, and there is no room for its successor?
    pub(super) fn must_make_room(&self, slot: usize, now: Instant) -> bool {
        self.is_full() && self.due(now) == Some(slot)
    }

    /// Beyond `max` nothing is kept that nobody waits for.
    fn reserve_in_use(&self) -> usize {
        if self.line.len > 0 {
            self.reserve_size
        } else {
            0
        }
    }

    /// How many may be opened now: as many as there is room for, and where there is none, of the reserve, for those who have
    /// waited long enough.
    fn room(&self, now: Instant) -> usize {
        let bound = self.cap.bound_now(self.max, now);
        let room = bound.saturating_sub(self.total());
        if room > 0 || self.reserve_size == 0 {
            return room;
        }
        let bound = self.cap.bound_now(self.max + self.reserve_size, now);
        let room = bound.saturating_sub(self.total());
        let is_overdue =
            |since: &Instant| now.saturating_duration_since(*since) >= self.reserve_timeout;
        let overdue = self.line.since().take_while(is_overdue);
        let overdue = overdue.take(self.connecting + room).count();
        room.min(overdue.saturating_sub(self.connecting))
    }

    /// When somebody who waits may have waited long enough for the reserve.
    pub(super) fn next_overdue(&self, now: Instant) -> Option<Instant> {
        if self.reserve_size == 0 || self.line.len == 0 {
            return None;
        }
        let after = |since: Instant| since.checked_add(self.reserve_timeout);
        let next = self.line.since().filter_map(after).find(|at| *at > now);
        // Who comes from now on is found a reserve timeout from now at the latest, and waited for exactly from then on.
        next.or_else(|| after(now))
    }

    /// As many as this are to be opened, those under way included.
    fn wanted(&self, config: &ConnectionPoolConfig, now: Instant) -> usize {
        let spare = self
            .min_idle
            .saturating_sub(self.idle.len() + self.checking);
        let renewed = self.due(now).is_some() && self.is_needed(config, now);
        self.line.len + spare + usize::from(renewed)
    }

    /// Whether the connections are used, or are to be kept though they aren't: what is closed for its idleness anyway has no
    /// successor.
    fn is_needed(&self, config: &ConnectionPoolConfig, now: Instant) -> bool {
        let is_over = |(timeout, last_used): (Duration, Instant)| {
            now.saturating_duration_since(last_used) >= timeout
        };
        let is_unused = config.idle_timeout.zip(self.last_used).is_some_and(is_over);
        !is_unused || self.active > 0 || self.alive() <= self.min_idle
    }

    /// Whether an attempt that begins is one for somebody who waits. It counts as such until it is
    /// [admitted](Self::admitted) or given up.
    pub(super) fn is_urgent(&mut self) -> bool {
        let is_urgent = self.urgent < self.line.len;
        self.urgent += usize::from(is_urgent);
        is_urgent
    }

    /// Counts an attempt out that waits to be admitted and that nobody waits for any more. False if somebody does.
    pub(super) fn give_up_connect(&mut self, is_urgent: bool) -> bool {
        let is_needed = is_urgent && !self.draining && self.urgent <= self.line.len;
        if !is_needed {
            self.urgent -= usize::from(is_urgent);
            self.connecting -= 1;
        }
        !is_needed
    }

    pub(super) fn begin_connects(&mut self, config: &ConnectionPoolConfig, now: Instant) -> usize {
        if self.draining || self.suspended || self.breaker.refusal(now).is_some() {
            return 0;
        }
        // While nothing is known to work, one attempt is enough to find out.
        let at_once = if self.breaker.failures == 0 {
            config.max_connecting
        } else {
            1
        };
        let wanted = self.wanted(config, now).saturating_sub(self.connecting);
        let room = self.room(now);
        let n = wanted
            .min(room)
            .min(at_once.saturating_sub(self.connecting));
        self.connecting += n;
        n
    }

    /// Retires the connection that is due. Returned if it is idle.
    pub(super) fn retire_one(&mut self, now: Instant) -> Option<Item<T>> {
        let slot = self.due(now)?;
        self.renewed = Some(now);
        self.standing[slot].retired = true;
        self.plan_renewal();
        let at = self.idle.iter().position(|idle| idle.meta.slot == slot)?;
        let idle = self.idle.remove(at);
        self.count_closing(slot, Why::Expired);
        Some(idle)
    }

    /// Takes out up to `n` of the idle connections, the coldest first, but for the hottest `keep`.
    pub(super) fn take_coldest(&mut self, n: usize, keep: usize) -> Vec<Item<T>> {
        let n = self.idle.len().saturating_sub(keep).min(n);
        let taken: Vec<_> = self.idle.drain(..n).collect();
        for idle in &taken {
            self.count_closing(idle.meta.slot, Why::Unwanted);
        }
        taken
    }

    pub(super) fn take_expired(
        &mut self,
        config: &ConnectionPoolConfig,
        now: Instant,
    ) -> Vec<Item<T>> {
        let mut kept = Vec::with_capacity(self.idle.len());
        let mut expired = Vec::new();
        let mut alive = self.idle.len() + self.checking;
        let mut standing = self.total() - self.closing;
        // Where there is room, its successor comes first.
        let due = self.due(now).filter(|_| self.is_full());
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

impl Found {
    fn best(&self) -> Option<usize> {
        let without_label = if self.label.is_some() {
            self.room.or(self.label)
        } else {
            self.named.or(self.room).or(self.other)
        };
        self.label_and_room.or(without_label)
    }
}

impl Standing {
    pub(super) fn lease(&self, now: Instant) -> Option<LeaseInfo> {
        let held = self.held.as_ref()?;
        Some(LeaseInfo {
            connection: self.id,
            held: now.saturating_duration_since(held.since),
            place: held.place,
        })
    }
}
