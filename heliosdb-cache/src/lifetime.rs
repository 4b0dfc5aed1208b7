//! How long an answer may be served, apart from what writes say.

use std::time::Duration;

use crate::clock::{Moment, Tick};

/// How long an answer may be served, if nothing that it depends on is written. Without limit by default: answers are
/// invalidated by writes.
///
/// However long a lifetime is, no answer is served past an invalidation, neither fresh nor stale.
///
/// ```
/// # use std::time::Duration;
/// # use heliosdb_cache::Lifetime;
/// let minute = Duration::from_secs(60);
/// let mut lifetime = Lifetime::of(10 * minute);
/// lifetime.idle = Some(minute);
/// lifetime.stale_while_revalidate = minute;
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lifetime {
    /// How long the answer is fresh. Default `None`: for ever. The smallest unit is a millisecond.
    pub ttl: Option<Duration>,
    /// An answer that was not asked for this long is dropped, to 10 ms; at most 49 days. Default `None`.
    pub idle: Option<Duration>,
    /// After its time, the answer is served for so long to all but the caller who computes it anew. At most 49 days.
    /// Default zero.
    pub stale_while_revalidate: Duration,
    /// After its time, the answer is served for so long where computing it anew fails. At most 49 days. Default zero.
    pub stale_if_error: Duration,
}

impl Lifetime {
    /// Fresh for so long, and then gone.
    #[must_use]
    pub fn of(ttl: Duration) -> Self {
        Self {
            ttl: Some(ttl),
            ..Self::default()
        }
    }
}

/// The times of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) fresh_until: Moment,
    /// In milliseconds, as are the others; 0 is without limit.
    idle: u32,
    revalidate: u32,
    error: u32,
}

/// What may be done with an entry that no write has touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Age {
    /// Serve it.
    Fresh,
    /// Serve it, and have it computed anew, for it will soon be stale.
    Early,
    /// Serve it to all but the one who computes it anew.
    Stale,
    /// Serve it to one whose computation failed.
    Fallback,
    /// Nothing.
    Dead,
}

impl Times {
    pub(crate) const BYTES: usize = 20;

    /// `None` for an entry without limits. `jitter`, from 0 to 1, is the share by which the time to live is cut short.
    pub(crate) fn new(lifetime: &Lifetime, now: Moment, jitter: f64) -> Option<Self> {
        let Lifetime {
            ttl,
            idle,
            stale_while_revalidate,
            stale_if_error,
        } = *lifetime;
        if ttl.is_none() && idle.is_none() {
            return None;
        }
        let short = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        Some(Self {
            fresh_until: ttl.map_or(Moment::NEVER, |ttl| now.after(ttl.mul_f64(1.0 - jitter))),
            idle: idle.map_or(0, |idle| short(idle).max(1)),
            revalidate: short(stale_while_revalidate),
            error: short(stale_if_error),
        })
    }

    /// `early` is how many milliseconds before its time the entry is to be computed anew.
    pub(crate) fn age(&self, now: Moment, accessed: Tick, early: f64) -> Age {
        let idle = now.tick().since(accessed);
        if self.idle > 0 && idle.as_millis() > u128::from(self.idle) {
            return Age::Dead;
        }
        let Moment(until) = self.fresh_until;
        if now.0 < until {
            return if now.0 as f64 + early >= until as f64 {
                Age::Early
            } else {
                Age::Fresh
            };
        }
        let late = now.0 - until;
        if late < u64::from(self.revalidate) {
            Age::Stale
        } else if late < u64::from(self.error) {
            Age::Fallback
        } else {
            Age::Dead
        }
    }

    /// Milliseconds that are left, and the other three.
    pub(crate) fn remaining(&self, now: Moment) -> (Option<u64>, Option<u32>, u32, u32) {
        let Self {
            fresh_until,
            idle,
            revalidate,
            error,
        } = *self;
        let left = (fresh_until != Moment::NEVER).then(|| fresh_until.0.saturating_sub(now.0));
        (left, Some(idle).filter(|idle| *idle > 0), revalidate, error)
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.fresh_until.0.to_le_bytes());
        for (at, number) in [(8, self.idle), (12, self.revalidate), (16, self.error)] {
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let number = |at: usize| {
            let mut number = [0; 4];
            number.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(number)
        };
        Self {
            fresh_until: Moment(u64::from(number(4)) << 32 | u64::from(number(0))),
            idle: number(8),
            revalidate: number(12),
            error: number(16),
        }
    }
}

/// How long before its end a lifetime is refreshed, in milliseconds: `cost * beta * -ln(random)`, which makes an early
/// computation likelier the longer it takes and the nearer the end is (XFetch: Vattani, Chierichetti, Lowenstein,
/// "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015). `random` is uniform in (0, 1].
pub(crate) fn early(cost_ms: f64, beta: f64, random: f64) -> f64 {
    if beta > 0.0 && cost_ms > 0.0 {
        cost_ms * beta * -random.ln()
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn times(lifetime: Lifetime) -> Times {
        Times::new(&lifetime, Moment(1000), 0.0).expect("limited")
    }

    #[test]
    fn an_entry_is_fresh_then_stale_then_a_fallback_then_dead() {
        let times = times(Lifetime {
            stale_while_revalidate: SECOND,
            stale_if_error: 3 * SECOND,
            ..Lifetime::of(10 * SECOND)
        });
        let ages = [1000, 10_999, 11_000, 11_999, 12_000, 13_999, 14_000]
            .map(|now| times.age(Moment(now), Moment(now).tick(), 0.0));
        assert_eq!(
            ages,
            [
                Age::Fresh,
                Age::Fresh,
                Age::Stale,
                Age::Stale,
                Age::Fallback,
                Age::Fallback,
                Age::Dead
            ]
        );
        assert_eq!(Times::from_bytes(&times.to_bytes()), times);
    }

    #[test]
    fn idleness_ends_what_time_does_not() {
        let times = times(Lifetime {
            idle: Some(SECOND),
            ..Lifetime::default()
        });
        let age = |idle: u64| times.age(Moment(900_000), Moment(900_000 - idle).tick(), 0.0);
        assert_eq!((age(1000), age(1010)), (Age::Fresh, Age::Dead));
    }

    #[test]
    fn jitter_only_shortens_and_what_has_no_limit_takes_no_room() {
        let lifetime = Lifetime::of(10 * SECOND);
        let until =
            |jitter| Times::new(&lifetime, Moment(0), jitter).map(|times| times.fresh_until);
        assert_eq!(until(0.0), Some(Moment(10_000)));
        assert_eq!(until(0.25), Some(Moment(7500)));
        assert_eq!(Times::new(&Lifetime::default(), Moment(0), 0.5), None);
    }

    #[test]
    fn the_mean_of_early_is_cost_times_beta() {
        let n = 10_000;
        let sum: f64 = (1..=n)
            .map(|i| early(20.0, 1.5, f64::from(i) / f64::from(n)))
            .sum();
        let mean = sum / f64::from(n);
        assert!((mean - 30.0).abs() < 0.1, "{mean}");
        assert_eq!(early(f64::NAN, 1.0, 0.5), 0.0);
        assert_eq!(early(10.0, 0.0, 0.5), 0.0);
    }
}
