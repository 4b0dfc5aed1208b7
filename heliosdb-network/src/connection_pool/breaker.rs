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
}

/// Full jitter over an exponential ceiling (Brooker, "Exponential backoff and jitter").
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

impl Breaker {
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
}
