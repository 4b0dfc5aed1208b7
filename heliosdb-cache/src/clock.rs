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

/// A moment in hundredths of a second since the first call of any function here: four bytes last for 497 days, and a clock
/// that stands still then only makes all entries equally old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tick(u32);

const TICKS_PER_SECOND: u64 = 100;

impl Tick {
    pub(crate) fn now() -> Self {
        let elapsed = elapsed();
        let ticks = elapsed.as_secs() * TICKS_PER_SECOND
            + u64::from(elapsed.subsec_millis()) * TICKS_PER_SECOND / 1000;
        Self(u32::try_from(ticks).unwrap_or(u32::MAX))
    }

    pub(crate) fn elapsed(self) -> Duration {
        Duration::from_millis(u64::from(self.0) * 1000 / TICKS_PER_SECOND)
    }
}

/// The date of a moment that [`elapsed`] gave.
pub(crate) fn date(elapsed: Duration) -> DateTime<Utc> {
    BEGAN.1 + elapsed
}

/// The date of now.
pub(crate) fn now() -> DateTime<Utc> {
    date(elapsed())
}
