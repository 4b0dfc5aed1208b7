//! What a pool knows, and how it changes: no I/O, no user code.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::HeliosError;

use super::config::ConnectionPoolConfig;
use super::metrics::PoolMetrics;

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
    pub(super) generation: u64,
}

impl ConnectionMeta {
    /// True once the connection is too old, or has been idle for too long.
    #[must_use]
    pub fn is_expired(&self, config: &ConnectionPoolConfig) -> bool {
        let now = now();
        self.is_too_old(now) || (!self.in_use && self.is_too_idle(config, now))
    }

    pub(super) fn is_too_old(&self, now: Instant) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }

    /// How long nothing was heard of the peer.
    pub(super) fn unverified_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.verified)
    }

    fn is_too_idle(&self, config: &ConnectionPoolConfig, now: Instant) -> bool {
        config
            .idle_timeout
            .is_some_and(|timeout| now.saturating_duration_since(self.idle_since) >= timeout)
    }
}

/// An idle connection.
#[derive(Debug)]
pub(super) struct Idle<T> {
    pub(super) connection: T,
    pub(super) meta: ConnectionMeta,
    pub(super) label: u64,
}

/// Everything that changes together. `W` is a waiter's end of the line.
///
/// Invariants: `idle` and `waiters` are not both occupied for longer than one step; and
/// `idle + active + connecting + closing <= max_connections`, where a connection that is being closed counts until its
/// socket is gone.
#[derive(Debug)]
pub(super) struct State<T, W> {
    /// The last one is the hottest: in the order of their last use.
    pub(super) idle: Vec<Idle<T>>,
    /// The first one waits longest.
    pub(super) waiters: VecDeque<W>,
    pub(super) active: usize,
    /// Those among the active that are idle but for a health check.
    pub(super) checking: usize,
    pub(super) connecting: usize,
    pub(super) closing: usize,
    pub(super) draining: bool,
    /// Connections of an older generation are closed as they come back.
    pub(super) generation: u64,
    pub(super) breaker: Breaker,
    pub(super) next_id: u64,
    pub(super) counts: PoolMetrics,
}

/// Remembers why connections can't be opened, and when to try again.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    pub(super) last_error: Option<Arc<HeliosError>>,
    failures: u32,
    retry_at: Option<Instant>,
}

impl Breaker {
    /// A connection stands.
    pub(super) fn close(&mut self) {
        *self = Self::default();
    }

    /// An attempt failed. `jitter` is between 0 and 1. Returns when to try again.
    pub(super) fn open(&mut self, error: Arc<HeliosError>, now: Instant, jitter: f64) -> Instant {
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
    pub(super) fn refusal(&self, now: Instant) -> Option<&Arc<HeliosError>> {
        self.last_error
            .as_ref()
            .filter(|_| self.retry_at.is_some_and(|at| now < at))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.failures == 0
    }
}

/// The pool's clock: tokio's, which tests can drive.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Full jitter over an exponential ceiling (Brooker, "Exponential backoff and jitter").
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How many idle connections, from the hot end, are looked at for a label.
const LABEL_SCAN: usize = 8;

impl<T, W> State<T, W> {
    pub(super) fn new() -> Self {
        Self {
            idle: Vec::new(),
            waiters: VecDeque::new(),
            active: 0,
            checking: 0,
            connecting: 0,
            closing: 0,
            draining: false,
            generation: 0,
            breaker: Breaker::default(),
            next_id: 1,
            counts: PoolMetrics::default(),
        }
    }

    /// Connections of any kind.
    pub(super) fn total(&self) -> usize {
        self.idle.len() + self.active + self.connecting + self.closing
    }

    /// Takes the hottest idle connection, preferring one with the label among the hottest few.
    pub(super) fn take_idle(&mut self, label: u64) -> Option<Idle<T>> {
        let hottest = self.idle.len().checked_sub(1)?;
        let labelled = (0..self.idle.len())
            .rev()
            .take(LABEL_SCAN)
            .find(|at| self.idle[*at].label == label);
        self.counts.label_hits += u64::from(labelled.is_some());
        self.active += 1;
        Some(self.idle.remove(labelled.unwrap_or(hottest)))
    }

    /// Puts a connection among the idle ones, by its last use.
    pub(super) fn put_idle(&mut self, idle: Idle<T>) {
        let at = self
            .idle
            .partition_point(|other| other.meta.idle_since <= idle.meta.idle_since);
        self.idle.insert(at, idle);
    }

    /// How many connections to open now; they count as being opened from here on.
    pub(super) fn begin_connects(&mut self, config: &ConnectionPoolConfig, now: Instant) -> usize {
        if self.draining || self.breaker.refusal(now).is_some() {
            return 0;
        }
        // While nothing is known to work, one attempt is enough to find out.
        let at_once = if self.breaker.is_closed() {
            config.max_connecting
        } else {
            1
        };
        let spare = config
            .min_idle
            .saturating_sub(self.idle.len() + self.checking);
        let wanted = (self.waiters.len() + spare).saturating_sub(self.connecting);
        let room = config.max_connections.saturating_sub(self.total());
        let n = wanted
            .min(room)
            .min(at_once.saturating_sub(self.connecting));
        self.connecting += n;
        n
    }

    /// Takes out what is too old, of an older generation, or idle for too long; the latter down to `min_idle`.
    /// They count as closing from here on.
    pub(super) fn take_expired(
        &mut self,
        config: &ConnectionPoolConfig,
        now: Instant,
    ) -> Vec<Idle<T>> {
        let mut kept = Vec::with_capacity(self.idle.len());
        let mut expired = Vec::new();
        let mut alive = self.idle.len() + self.checking;
        // The coldest first: it is they that go when there are too many.
        for idle in self.idle.drain(..) {
            let too_old = idle.meta.is_too_old(now);
            let unwanted = self.draining || idle.meta.generation != self.generation;
            let too_many = alive > config.min_idle && idle.meta.is_too_idle(config, now);
            if too_old || unwanted || too_many {
                alive -= 1;
                self.counts.expired += u64::from(too_old || !unwanted);
                expired.push(idle);
            } else {
                kept.push(idle);
            }
        }
        self.idle = kept;
        self.closing += expired.len();
        expired
    }

    /// True where a connection that came back must not be used again.
    pub(super) fn is_outdated(&self, meta: &ConnectionMeta, now: Instant) -> bool {
        self.draining || meta.generation != self.generation || meta.is_too_old(now)
    }

    pub(super) fn metrics(&self, config: &ConnectionPoolConfig) -> PoolMetrics {
        PoolMetrics {
            idle: self.idle.len(),
            active: self.active,
            connecting: self.connecting,
            closing: self.closing,
            waiting: self.waiters.len(),
            max: config.max_connections,
            ..self.counts
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(state: &mut State<u32, ()>, connection: u32, label: u64, now: Instant) {
        let meta = ConnectionMeta {
            id: u64::from(connection),
            created: now,
            in_use: false,
            expires: None,
            idle_since: now,
            verified: now,
            generation: state.generation,
        };
        state.idle.push(Idle {
            connection,
            meta,
            label,
        });
    }

    #[test]
    fn the_hottest_is_taken_unless_a_warm_one_has_the_label() {
        let now = Instant::now();
        let mut state = State::new();
        for (connection, label) in [(1, 7), (2, 8), (3, 9)] {
            idle(&mut state, connection, label, now);
        }
        assert_eq!(state.take_idle(7).map(|idle| idle.connection), Some(1));
        assert_eq!(state.take_idle(7).map(|idle| idle.connection), Some(3));
        assert_eq!((state.active, state.idle.len()), (2, 1));
    }

    #[test]
    fn closing_connections_leave_no_room_for_new_ones() {
        let now = Instant::now();
        let config = ConnectionPoolConfig {
            max_connections: 2,
            ..ConnectionPoolConfig::default()
        };
        let mut state: State<u32, ()> = State::new();
        state.waiters.extend([(), (), ()]);
        state.closing = 1;
        assert_eq!(state.begin_connects(&config, now), 1);
        assert_eq!(state.begin_connects(&config, now), 0);
        state.closing = 0;
        assert_eq!(state.begin_connects(&config, now), 1);
    }

    #[test]
    fn a_failing_server_is_tried_by_one_at_a_time_and_not_too_early() {
        let now = Instant::now();
        let config = ConnectionPoolConfig::default();
        let mut state: State<u32, ()> = State::new();
        state.waiters.extend([(), (), ()]);
        let error = Arc::new(HeliosError::Network("down".to_owned()));
        let retry_at = state.breaker.open(error, now, 1.0);
        assert_eq!(state.begin_connects(&config, now), 0);
        assert!(state.breaker.refusal(now).is_some());
        assert_eq!(state.begin_connects(&config, retry_at), 1);
        state.connecting = 0;
        state.breaker.close();
        assert_eq!(state.begin_connects(&config, now), 3);
    }

    #[test]
    fn idle_ones_are_closed_down_to_the_minimum_and_old_ones_below_it() {
        let now = Instant::now();
        let config = ConnectionPoolConfig {
            min_idle: 1,
            ..ConnectionPoolConfig::default()
        };
        let mut state = State::new();
        for connection in 1..=3 {
            idle(&mut state, connection, 0, now);
        }
        let later = now + Duration::from_secs(3600);
        assert_eq!(state.take_expired(&config, later).len(), 2);
        assert_eq!(state.idle[0].connection, 3, "the hottest stays");
        state.generation += 1;
        assert_eq!(state.take_expired(&config, later).len(), 1);
        assert_eq!(state.closing, 3);
    }
}
