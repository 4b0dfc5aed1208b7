//! Why connections can't be opened, and when to try again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::HeliosError;

/// Remembers why connections can't be opened, and when to try again.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    pub(super) last_error: Option<Arc<HeliosError>>,
    pub(super) failures: u32,
    pub(super) retry_at: Option<Instant>,
    /// The first failure since a connection was opened last.
    since: Option<Instant>,
}

/// Full jitter over an exponential ceiling (Brooker, "Exponential backoff and jitter").
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// While an outage is waited out: everybody's wait is at most so much longer than the outage.
const BACKOFF_WAITED_MAX: Duration = Duration::from_millis(500);

impl Breaker {
    /// Notes a failure, and returns when to try again. `patience` is how long an outage is waited out.
    pub(super) fn open(
        &mut self,
        error: Arc<HeliosError>,
        patience: Duration,
        now: Instant,
        jitter: f64,
    ) -> Instant {
        self.since.get_or_insert(now);
        let max = if self.is_waited_out(patience, now) {
            BACKOFF_WAITED_MAX
        } else {
            BACKOFF_MAX
        };
        let ceiling = BACKOFF_MIN
            .saturating_mul(1 << self.failures.min(16))
            .min(max);
        let retry_at = now + BACKOFF_MIN + ceiling.mul_f64(jitter);
        self.failures = self.failures.saturating_add(1);
        self.last_error = Some(error);
        self.retry_at = Some(retry_at);
        retry_at
    }

    /// True while the outage is young enough to be waited out.
    pub(super) fn is_waited_out(&self, patience: Duration, now: Instant) -> bool {
        self.since
            .is_some_and(|since| now.saturating_duration_since(since) < patience)
    }

    /// The cached reason, while it is too early to try again.
    pub(super) fn refusal(&self, now: Instant) -> Option<&Arc<HeliosError>> {
        self.last_error
            .as_ref()
            .filter(|_| self.retry_at.is_some_and(|at| now < at))
    }
}
