//! How long a statement takes.

/// A running summary of execution times.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct Latency {
    /// Executions recorded.
    pub count: u64,
    /// Mean of all of them, in milliseconds.
    pub mean_ms: f64,
    /// Mean that forgets: each new time counts for a tenth. In milliseconds.
    pub recent_ms: f64,
    /// The longest, in milliseconds.
    pub max_ms: f64,
}

const RECENT_WEIGHT: f64 = 0.1;

impl Latency {
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_does_not_poison_the_means() {
        let mut latency = Latency::default();
        for ms in [2.0, f64::NAN, -1.0, f64::INFINITY, 4.0] {
            latency.record(ms);
        }
        assert_eq!(
            (latency.count, latency.mean_ms, latency.max_ms),
            (2, 3.0, 4.0)
        );
        assert!((latency.recent_ms - 2.2).abs() < 1e-9);
    }
}
