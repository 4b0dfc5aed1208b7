//! How long a statement takes.

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
    /// Half of the times are no longer, in milliseconds. Like `p99_ms`, rounded up by an eighth at most, no finer than a
    /// microsecond, and of the last few thousand times.
    pub p50_ms: f64,
    /// 99 of 100 times are no longer, in milliseconds.
    pub p99_ms: f64,
    /// The longest ever, in milliseconds.
    pub max_ms: f64,
}

/// A running summary of times, of constant size.
#[derive(Debug)]
pub(crate) struct Times {
    count: u64,
    mean_ms: f64,
    recent_ms: f64,
    max_ms: f64,
    /// How many times fell into each range; see [`bucket`]. On the heap, so that statements are small to move.
    buckets: Box<[u16; BUCKETS]>,
    /// Sum of `buckets`.
    in_buckets: u16,
}

const RECENT_WEIGHT: f64 = 0.1;
/// Lower end of the first bucket, about a microsecond.
const SHORTEST_MS: f64 = 1.0 / 1024.0;
/// Each doubling is divided into eight: an error of at most an eighth.
const PER_DOUBLING_BITS: u32 = 3;
/// 32 doublings of a microsecond: 70 minutes. What takes longer falls into the last bucket.
const BUCKETS: usize = 32 << PER_DOUBLING_BITS;
/// With so many in the buckets, each is halved: old times lose their weight, and no bucket can overflow.
const HALVED_AT: u16 = 8192;

impl Default for Times {
    fn default() -> Self {
        Self {
            count: 0,
            mean_ms: 0.0,
            recent_ms: 0.0,
            max_ms: 0.0,
            buckets: Box::new([0; BUCKETS]),
            in_buckets: 0,
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
        if self.in_buckets == HALVED_AT {
            self.buckets.iter_mut().for_each(|count| *count /= 2);
            self.in_buckets = self.buckets.iter().sum();
        }
        self.buckets[bucket(ms)] += 1;
        self.in_buckets += 1;
    }

    pub(crate) fn summary(&self) -> Latency {
        Latency {
            count: self.count,
            mean_ms: self.mean_ms,
            recent_ms: self.recent_ms,
            p50_ms: self.quantile(0.5),
            p99_ms: self.quantile(0.99),
            max_ms: self.max_ms,
        }
    }

    /// The upper end of the bucket in which the quantile is, or the longest time if that is less.
    fn quantile(&self, share: f64) -> f64 {
        let rank = (f64::from(self.in_buckets) * share).ceil().max(1.0);
        let mut seen = 0.0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += f64::from(*count);
            if seen >= rank && at + 1 < BUCKETS {
                return upper_end(at).min(self.max_ms);
            }
        }
        self.max_ms
    }
}

/// The bucket of a time: its binary exponent and the first bits behind its leading one, which is what a float's bits
/// begin with.
fn bucket(ms: f64) -> usize {
    let scaled = (ms / SHORTEST_MS).max(1.0);
    let from_one =
        (scaled.to_bits() - 1.0_f64.to_bits()) >> (f64::MANTISSA_DIGITS - 1 - PER_DOUBLING_BITS);
    usize::try_from(from_one).map_or(BUCKETS - 1, |at| at.min(BUCKETS - 1))
}

fn upper_end(bucket: usize) -> f64 {
    let bits = (bucket as u64 + 1) << (f64::MANTISSA_DIGITS - 1 - PER_DOUBLING_BITS);
    SHORTEST_MS * f64::from_bits(1.0_f64.to_bits() + bits)
}

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
        assert!(extreme.mean_ms.is_finite() && extreme.p99_ms == f64::MAX);
    }

    #[test]
    fn quantiles_follow_a_change() {
        let slow_then_fast =
            std::iter::repeat_n(100.0, 20_000).chain(std::iter::repeat_n(1.0, 100_000));
        let latency = of(slow_then_fast);
        assert!(latency.p99_ms < 1.2, "{latency:?}");
        assert_eq!(latency.max_ms, 100.0);
    }

    #[test]
    fn the_tail_shows() {
        let latency = of((0..1000).map(|n| if n % 50 == 0 { 80.0 } else { 1.0 }));
        assert!((1.0..1.2).contains(&latency.p50_ms), "{latency:?}");
        assert_eq!(latency.p99_ms, 80.0);
    }

    proptest! {
        #[test]
        fn quantiles_are_within_an_eighth(
            mut times in prop::collection::vec((-12.0..20.0_f64).prop_map(f64::exp2), 1..1000),
        ) {
            let latency = of(times.iter().copied());
            times.sort_by(f64::total_cmp);
            for (share, got) in [(0.5, latency.p50_ms), (0.99, latency.p99_ms)] {
                let rank = (times.len() as f64 * share).ceil();
                let exact = *times.iter().enumerate().find(|(at, _)| *at as f64 + 1.0 >= rank).expect("a rank").1;
                let at_most = exact.max(SHORTEST_MS) * 1.125 + 1e-9;
                prop_assert!(exact <= got && got <= at_most, "{} {} {}", share, exact, got);
            }
        }
    }
}
