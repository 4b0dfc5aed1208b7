//! What a pool saw since somebody asked.

use std::time::{Duration, Instant};

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

/// What happened since somebody asked.
#[derive(Debug)]
pub(super) struct Observed {
    pub(super) since: Option<Instant>,
    pub(super) holds: u64,
    pub(super) held: Duration,
    /// By time, two ranges for each doubling of a microsecond.
    pub(super) by_time: [u32; HOLD_RANGES],
    pub(super) active_max: usize,
}

const HOLD_RANGES: usize = 80;

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
    pub(super) fn hold(&mut self, held: Duration) {
        self.holds += 1;
        self.held += held;
        self.by_time[range_of(held)] += 1;
    }

    pub(super) fn window(&self, made: Instant, now: Instant) -> PoolWindow {
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
