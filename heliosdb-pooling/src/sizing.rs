//! How many connections a load needs: pure functions.
//!
//! ```
//! use std::time::Duration;
//! use heliosdb_pooling::sizing::{Goal, Load, recommend};
//!
//! // 2000 acquires a second, each holding a connection for 4 ms, one in a hundred for 15 ms or more.
//! let load = Load::new(2000.0, Duration::from_millis(4), Duration::from_millis(15));
//! let advice = recommend(&load, &Goal::default()).expect("a load of finite numbers");
//! assert_eq!(advice.busy, 8.0);
//! assert_eq!(advice.size, 12);
//! assert!(advice.wait_p99 <= Duration::from_millis(5));
//! ```
//!
//! # The model
//! Acquires arrive at random and queue for connections in order of arrival. [Little's law](busy_connections) says how
//! many connections are busy on average, [Erlang's C formula](wait_probability) how often all of them are. Erlang's
//! formula assumes hold times that vary as an exponential distribution does; for others the waits, not their
//! probability, are multiplied by `(1 + cv²) / 2` (Lee and Longton), with the coefficient of variation `cv` of the
//! log-normal distribution that has the observed mean and 99th percentile.
//!
//! The model does not know that a database slows down under more connections: the hold times of a larger pool may be
//! longer. Take a step, observe, ask again.

use std::time::Duration;

/// A load on a pool, as observed.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Load {
    /// Acquires a second.
    pub arrivals_per_second: f64,
    /// Mean time for which a connection is held.
    pub hold_mean: Duration,
    /// 99 of 100 connections are not held for longer.
    pub hold_p99: Duration,
}

impl Load {
    /// A load of so many acquires a second, which hold a connection for so long.
    #[must_use]
    pub fn new(arrivals_per_second: f64, hold_mean: Duration, hold_p99: Duration) -> Self {
        Self {
            arrivals_per_second,
            hold_mean,
            hold_p99,
        }
    }
}

/// What a pool should achieve, within which bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Goal {
    /// 99 of 100 acquires wait no longer. Default 5 ms.
    pub wait_p99_max: Duration,
    /// Share of the time for which a connection is busy at most, between 0 and 1: the margin for bursts. Default 0.7.
    pub utilisation_max: f64,
    /// The smallest pool to advise. Default 1, at least 1.
    pub size_min: usize,
    /// The largest pool to advise, such as this pool's share of the server's `max_connections`. Default 100, at least
    /// `size_min`; never more than the 262 143 connections that PostgreSQL can have at all.
    pub size_max: usize,
}

impl Default for Goal {
    fn default() -> Self {
        Self {
            wait_p99_max: Duration::from_millis(5),
            utilisation_max: 0.7,
            size_min: 1,
            size_max: 100,
        }
    }
}

/// A size, and what is to be expected of it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Advice {
    /// Connections.
    pub size: usize,
    /// Of these, busy on average. More than `size` if the pool can't keep up.
    pub busy: f64,
    /// Share of acquires that wait, between 0 and 1.
    pub wait_share: f64,
    /// 99 of 100 acquires wait no longer. [`Duration::MAX`] if the pool can't keep up.
    pub wait_p99: Duration,
    /// Whether the goal is met. If not, the size is the largest allowed.
    pub meets_goal: bool,
}

/// The smallest pool that meets the goal; the largest allowed if none does.
///
/// `None` if the load or the goal is none that can be reasoned about: an arrival rate that is negative or not finite,
/// or a utilisation that isn't above 0 and at most 1.
#[must_use]
pub fn recommend(load: &Load, goal: &Goal) -> Option<Advice> {
    let is_rate = load.arrivals_per_second.is_finite() && load.arrivals_per_second >= 0.0;
    let is_share = goal.utilisation_max > 0.0 && goal.utilisation_max <= 1.0;
    if !(is_rate && is_share) {
        return None;
    }
    let size_min = goal.size_min.clamp(1, SERVER_CONNECTIONS_MAX);
    let size_max = goal.size_max.clamp(size_min, SERVER_CONNECTIONS_MAX);
    let mut pool = Erlang::new(busy_connections(load.arrivals_per_second, load.hold_mean));
    loop {
        pool.add_connection();
        let wait_p99 = wait_quantile(load, &pool, 0.99);
        let meets_goal =
            wait_p99 <= goal.wait_p99_max && pool.busy <= goal.utilisation_max * pool.size as f64;
        if pool.size >= size_min && (meets_goal || pool.size == size_max) {
            return Some(Advice {
                size: pool.size,
                busy: pool.busy,
                wait_share: pool.wait_probability(),
                wait_p99,
                meets_goal,
            });
        }
    }
}

/// `MAX_BACKENDS` of PostgreSQL.
const SERVER_CONNECTIONS_MAX: usize = 0x3_FFFF;

/// Connections busy on average, by Little's law.
#[must_use]
pub fn busy_connections(arrivals_per_second: f64, hold_mean: Duration) -> f64 {
    arrivals_per_second * hold_mean.as_secs_f64()
}

/// The probability that an acquire has to wait, for `busy` connections' worth of load on `size` connections: Erlang's
/// C formula. 1 if the pool can't keep up, which includes a load that is not a number. Takes time in proportion to
/// `size`.
#[must_use]
pub fn wait_probability(busy: f64, size: usize) -> f64 {
    let mut pool = Erlang::new(busy);
    while pool.size < size {
        pool.add_connection();
    }
    pool.wait_probability()
}

/// A pool that grows, and how often it would be found full if nobody waited: Erlang's B formula, by its recurrence.
struct Erlang {
    busy: f64,
    size: usize,
    full: f64,
}

impl Erlang {
    fn new(busy: f64) -> Self {
        Self {
            // Not `max`, which would make a NaN of it no load at all.
            busy: if busy < 0.0 { 0.0 } else { busy },
            size: 0,
            full: 1.0,
        }
    }

    fn add_connection(&mut self) {
        self.size += 1;
        let offered = self.busy * self.full;
        self.full = offered / (self.size as f64 + offered);
    }

    fn keeps_up(&self) -> bool {
        self.busy < self.size as f64
    }

    fn wait_probability(&self) -> f64 {
        if !self.keeps_up() {
            return 1.0;
        }
        let size = self.size as f64;
        size * self.full / (size - self.busy * (1.0 - self.full))
    }
}

/// How long an acquire waits at most, for this share of them.
fn wait_quantile(load: &Load, pool: &Erlang, share: f64) -> Duration {
    if !pool.keeps_up() {
        return Duration::MAX;
    }
    let waits = pool.wait_probability();
    if waits <= 1.0 - share {
        return Duration::ZERO;
    }
    // Those who wait at all wait for an exponential time: until one of the busy connections is free, once for each
    // who is in front of them.
    let idle = pool.size as f64 - pool.busy;
    let mean_of_waiters = load.hold_mean.as_secs_f64() / idle;
    let exponential = (waits / (1.0 - share)).ln() * mean_of_waiters;
    Duration::try_from_secs_f64(exponential * variability(load)).unwrap_or(Duration::MAX)
}

/// By how much hold times lengthen the waits beyond what they were if exponential: `(1 + cv²) / 2`, from 0.5 for equal
/// hold times to some hundred for the wildest.
fn variability(load: &Load) -> f64 {
    // The log-normal distribution with mean m and 99th percentile q has ln(q / m) = z s - s²/2, with z for 99 %.
    const Z: f64 = 2.326_347_874;
    let (mean, p99) = (load.hold_mean.as_secs_f64(), load.hold_p99.as_secs_f64());
    if p99 <= mean {
        return 0.5;
    }
    // Beyond z²/2 there is none: an even larger share of the time is in the last hundredth.
    let spread = Z - (Z * Z - 2.0 * (p99 / mean).ln()).max(0.0).sqrt();
    // cv² = exp(s²) - 1
    (spread * spread).exp() / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Hold times that vary as an exponential distribution does have their 99th percentile here.
    const EXPONENTIAL_P99: f64 = 4.605_170_186;

    #[test]
    fn erlang_c_agrees_with_the_tables() {
        // One server: the probability of waiting is the load.
        assert!((wait_probability(0.5, 1) - 0.5).abs() < 1e-12);
        // Two servers, one erlang: 1/3.
        assert!((wait_probability(1.0, 2) - 1.0 / 3.0).abs() < 1e-12);
        // Published tables.
        for (busy, size, expected) in [(8.0, 10, 0.409), (5.0, 8, 0.167), (90.0, 100, 0.217)] {
            let got = wait_probability(busy, size);
            assert!((got - expected).abs() < 0.001, "{busy} on {size}: {got}");
        }
        assert_eq!(wait_probability(3.0, 3), 1.0);
        assert_eq!(wait_probability(0.0, 3), 0.0);
        assert_eq!(wait_probability(-1.0, 3), 0.0);
        assert_eq!(wait_probability(f64::NAN, 3), 1.0);
    }

    #[test]
    fn the_recommended_size_is_the_smallest_that_will_do() {
        let load = Load::new(1000.0, ms(8), ms(30));
        let goal = Goal::default();
        let advice = recommend(&load, &goal).expect("a sound load");
        assert!(advice.meets_goal && advice.wait_p99 <= goal.wait_p99_max);
        let smaller = Goal {
            size_max: advice.size - 1,
            ..goal
        };
        let not_enough = recommend(&load, &smaller).expect("a sound load");
        assert!(!not_enough.meets_goal);
        assert_eq!(not_enough.size, advice.size - 1);
    }

    #[test]
    fn bounds_are_kept_and_an_overload_is_told() {
        let load = Load::new(1000.0, ms(8), ms(30));
        let goal = |size_min, size_max| Goal {
            size_min,
            size_max,
            ..Goal::default()
        };
        assert_eq!(recommend(&load, &goal(50, 100)).expect("sound").size, 50);
        let overloaded = recommend(&load, &goal(1, 4)).expect("sound");
        assert_eq!((overloaded.size, overloaded.wait_share), (4, 1.0));
        assert_eq!(overloaded.wait_p99, Duration::MAX);
        assert!(!overloaded.meets_goal);
        // No load is too large to be answered for, and no bound.
        let huge = Load::new(1e300, ms(8), ms(30));
        let advice = recommend(&huge, &goal(0, usize::MAX)).expect("sound");
        assert_eq!(advice.size, SERVER_CONNECTIONS_MAX);
        let idle = Load::new(0.0, ms(8), ms(30));
        assert_eq!(recommend(&idle, &goal(0, 0)).expect("sound").size, 1);
    }

    #[test]
    fn nonsense_gets_no_advice() {
        for rate in [f64::NAN, f64::INFINITY, -1.0] {
            let load = Load::new(rate, ms(1), ms(2));
            assert_eq!(recommend(&load, &Goal::default()), None);
        }
        for utilisation_max in [f64::NAN, 0.0, -0.5, 1.5] {
            let goal = Goal {
                utilisation_max,
                ..Goal::default()
            };
            assert_eq!(recommend(&Load::new(1.0, ms(1), ms(2)), &goal), None);
        }
    }

    #[test]
    fn one_server_waits_as_the_textbook_says() {
        // M/M/1 with 50 arrivals and 100 services a second: P(wait > t) = 0.5 exp(-50 t).
        let load = Load::new(50.0, ms(10), ms(10).mul_f64(EXPONENTIAL_P99));
        let mut pool = Erlang::new(0.5);
        pool.add_connection();
        let expected = 50.0_f64.ln() / 50.0 * variability(&load);
        let got = wait_quantile(&load, &pool, 0.99).as_secs_f64();
        assert!((got - expected).abs() < 1e-6, "{got} {expected}");
    }

    #[test]
    fn hold_times_that_vary_more_make_longer_waits() {
        let of = |p99| variability(&Load::new(1.0, ms(10), p99));
        assert_eq!(of(ms(10)), 0.5);
        assert_eq!(of(ms(5)), 0.5);
        let exponential = of(ms(10).mul_f64(EXPONENTIAL_P99));
        assert!((0.9..1.1).contains(&exponential), "{exponential}");
        assert!(of(ms(100)) > 2.0);
        assert!(of(Duration::MAX).is_finite());
    }
}
