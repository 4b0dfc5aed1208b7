//! The time that entries carry: read from a monotonic clock, shown as wall-clock time.
//!
//! The wall clock is read once in the life of the process. If it is set later, all times shown are off by the same
//! amount, and what is older stays older, which is all that eviction asks.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

static BEGAN: LazyLock<(Instant, DateTime<Utc>)> = LazyLock::new(|| (Instant::now(), Utc::now()));

/// Time since the first call of any function here.
pub(crate) fn elapsed() -> Duration {
    BEGAN.0.elapsed()
}

/// The date of a moment that [`elapsed`] gave.
pub(crate) fn date(elapsed: Duration) -> DateTime<Utc> {
    BEGAN.1 + elapsed
}

/// The date of now.
pub(crate) fn now() -> DateTime<Utc> {
    date(elapsed())
}
