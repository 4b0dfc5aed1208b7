//! How long a statement takes.

use std::fmt;

use sketches_ddsketch::{Config, DDSketch};

/// What is known of a statement's execution times.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct Latency {
    /// Executions recorded.
    pub count: u64,
    /// Mean of all of them, in milliseconds.
    pub mean_ms: f64,
    /// Mean that forgets: each new time counts for a tenth. In milliseconds.
    pub recent_ms: f64,
    /// Half of the times are no longer, in milliseconds. Like the other quantiles right to 3 %, no finer than a
    /// microsecond, and of the first few thousand times, or a sample of a few thousand of the last.
    pub p50_ms: f64,
    /// 95 of 100 times are no longer, in milliseconds.
    pub p95_ms: f64,
    /// 99 of 100 times are no longer, in milliseconds.
    pub p99_ms: f64,
    /// The longest ever, in milliseconds.
    pub max_ms: f64,
}

/// A running summary of times, of bounded size: some KiB.
#[derive(Debug, Default)]
pub(crate) struct Times {
    count: u64,
    mean_ms: f64,
    recent_ms: f64,
    max_ms: f64,
    /// On the heap, and not before there is something to say, so that statements are small to move.
    windows: Option<Box<Windows>>,
}

/// The times of this window, and of the one before (DDSketch: Masson et al., VLDB 2019).
struct Windows {
    own: DDSketch,
    previous: DDSketch,
}

const RECENT_WEIGHT: f64 = 0.1;
const SHORTEST_MS: f64 = 1.0 / 1024.0;
/// Relative error of a quantile.
const ERROR: f64 = 0.03;
/// Enough for a microsecond to an hour; beyond it the shortest times are taken for longer than they are.
const BINS_MAX: u32 = 512;
/// Times in a window.
const WINDOW: usize = 4096;
/// Beyond the first window, one of so many times is in a sample. A prime, so that no statement that is slow at each other
/// call is taken for a slow one.
const SAMPLED: u64 = 7;

impl fmt::Debug for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Windows")
            .field("own", &self.own.count())
            .field("previous", &self.previous.count())
            .finish()
    }
}

impl Default for Windows {
    fn default() -> Self {
        let sketch = || DDSketch::new(Config::new(ERROR, BINS_MAX, SHORTEST_MS));
        Self {
            own: sketch(),
            previous: sketch(),
        }
    }
}

impl Times {
    /// Adds a time. What is not a time (NaN, infinite, negative) is not recorded.
    pub(crate) fn record(&mut self, ms: f64) {
        if !ms.is_finite() || ms < 0.0 {
            return;
        }
        self.count += 1;
        self.mean_ms += (ms - self.mean_ms) / self.count as f64;
        self.recent_ms = if self.count == 1 {
            ms
        } else {
            self.recent_ms + RECENT_WEIGHT * (ms - self.recent_ms)
        };
        self.max_ms = self.max_ms.max(ms);
        // The mean takes each, the quantiles a sample once there are many: to sort a time in costs more than all the rest.
        if self.count > WINDOW as u64 && !self.count.is_multiple_of(SAMPLED) {
            return;
        }
        let windows = self.windows.get_or_insert_default();
        if windows.own.count() >= WINDOW {
            let windows_before = std::mem::take(&mut **windows);
            windows.previous = windows_before.own;
        }
        windows.own.add(ms.clamp(SHORTEST_MS, LONGEST_MS));
    }

    pub(crate) fn summary(&self) -> Latency {
        let [p50_ms, p95_ms, p99_ms] = self.quantiles([0.5, 0.95, 0.99]);
        Latency {
            count: self.count,
            mean_ms: self.mean_ms,
            recent_ms: self.recent_ms,
            p50_ms,
            p95_ms,
            p99_ms,
            max_ms: self.max_ms,
        }
    }

    fn quantiles<const N: usize>(&self, shares: [f64; N]) -> [f64; N] {
        let Some(windows) = &self.windows else {
            return [0.0; N];
        };
        let mut both = windows.own.clone();
        if both.merge(&windows.previous).is_err() {
            // Of sketches of different precision only.
            return [self.max_ms; N];
        }
        shares.map(|share| {
            let quantile = both.quantile(share).ok().flatten();
            quantile.unwrap_or(self.max_ms).min(self.max_ms)
        })
    }
}

/// What takes longer counts as this: eleven days.
const LONGEST_MS: f64 = 1e9;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(times: impl IntoIterator<Item = f64>) -> Latency {
        let mut summary = Times::default();
        times.into_iter().for_each(|ms| summary.record(ms));
        summary.summary()
    }

    #[test]
    fn nonsense_does_not_poison_the_summary() {
        let latency = of([2.0, f64::NAN, -1.0, f64::INFINITY, f64::NEG_INFINITY, 4.0]);
        assert_eq!(
            (latency.count, latency.mean_ms, latency.max_ms),
            (2, 3.0, 4.0)
        );
        assert!((latency.recent_ms - 2.2).abs() < 1e-9);
        assert_eq!(of([f64::NAN]), Latency::default());
        let extreme = of([f64::MAX, 0.0, f64::MIN_POSITIVE, f64::MAX]);
        assert!(extreme.mean_ms.is_finite() && extreme.p99_ms >= 0.9 * LONGEST_MS);
    }

    #[test]
    fn quantiles_follow_a_change() {
        let slow_then_fast =
            std::iter::repeat_n(100.0, 20_000).chain(std::iter::repeat_n(1.0, 100_000));
        let latency = of(slow_then_fast);
        assert!(latency.p99_ms < 1.1, "{latency:?}");
        assert_eq!(latency.max_ms, 100.0);
    }

    #[test]
    fn the_tail_shows() {
        let latency = of((0..1000).map(|n| match n % 50 {
            0 => 80.0,
            1..4 => 10.0,
            _ => 1.0,
        }));
        let is = |got: f64, expected: f64| (got / expected - 1.0).abs() < 0.04;
        assert!(is(latency.p50_ms, 1.0), "{latency:?}");
        assert!(is(latency.p95_ms, 10.0), "{latency:?}");
        assert!(is(latency.p99_ms, 80.0), "{latency:?}");
    }

    proptest! {
        #[test]
        fn quantiles_are_right_to_three_percent(
            mut times in prop::collection::vec((-9.0..20.0_f64).prop_map(f64::exp2), 1..1000),
        ) {
            let latency = of(times.iter().copied());
            times.sort_by(f64::total_cmp);
            for (share, got) in [(0.5, latency.p50_ms), (0.95, latency.p95_ms), (0.99, latency.p99_ms)] {
                // Ranks are counted from either end: the neighbours are as right.
                let rank = share * (times.len() - 1) as f64;
                let at = |at: usize| times[at.min(times.len() - 1)];
                let below = (0..times.len()).rev().find(|at| *at as f64 <= rank).expect("a rank");
                let (low, high) = (at(below), at(below + 1));
                let is_right = low * 0.969 <= got && got <= high * 1.031;
                prop_assert!(is_right, "{} {}..{} {}", share, low, high, got);
            }
        }
    }
}
