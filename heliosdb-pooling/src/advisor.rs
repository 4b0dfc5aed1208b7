//! From what is observed, window by window, to a size for the pool.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::sizing::{Advice, Goal, Load, recommend};

/// What is done with the advice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "these are all there can be")]
pub enum Mode {
    /// Nothing is observed.
    Off,
    /// It is shown to whoever asks.
    #[default]
    Advise,
    /// It is followed.
    Auto,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "advise" => Ok(Self::Advise),
            "auto" => Ok(Self::Auto),
            _ => Err(format!("{text:?} is not one of off, advise, auto")),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Advise => "advise",
            Self::Auto => "auto",
        })
    }
}

/// What a pool saw in some seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct Window {
    /// How long it was observed.
    pub length: Duration,
    /// Connections acquired.
    pub acquires: u64,
    /// Mean time for which one was held.
    pub hold_mean: Duration,
    /// 99 of 100 were not held for longer.
    pub hold_p99: Duration,
    /// Mean time that the server took for a statement, without any waiting before.
    pub latency: Duration,
    /// Connections in use at the same time, at the most.
    pub in_use_max: usize,
}

impl Window {
    /// A window of this length in which nothing happened.
    #[must_use]
    pub fn of(length: Duration) -> Self {
        Self {
            length,
            ..Self::default()
        }
    }
}

/// Why a size is advised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "these are all there can be")]
pub enum Reason {
    /// What the load needs, by Little's law and Erlang's formula.
    Load,
    /// The load could use more, but the server takes longer for each statement the more of them it runs.
    ServerSlows,
    /// The goal's bounds.
    Bounds,
    /// All connections are always in use, which says nothing of another size: one after the other is tried.
    Saturated,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Load => "what the load needs",
            Self::ServerSlows => "more would slow the server down",
            Self::Bounds => "the bounds",
            Self::Saturated => "all are in use: other sizes are tried",
        })
    }
}

/// What an [`Advisor`] says.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Recommendation {
    /// The size to go to now: a step towards `target`.
    pub size: usize,
    /// The size that everything points to.
    pub target: usize,
    /// What limits it.
    pub reason: Reason,
    /// What is to be expected of the load alone, if the server kept its pace.
    pub load: Advice,
}

/// Watches a pool and says how large it should be.
///
/// The smaller of two figures: what the load needs ([`recommend`]), and what the server bears, by a gradient on its own
/// latency (after Gradient2 of Netflix' concurrency-limits, with less tolerance: a pool can wait, a crowded server only
/// gets slower). As long as statements take no longer than they usually do, the limit grows by a tenth; otherwise it
/// falls in proportion. Where all connections are in use all the time neither says anything: then a smaller or larger size
/// is tried, and gone on with if it gets more done. The size moves by a tenth at most, and only after several windows have
/// pointed in the same direction.
///
/// ```
/// use std::time::Duration;
/// use heliosdb_pooling::advisor::{Advisor, Window};
/// use heliosdb_pooling::sizing::Goal;
///
/// let mut advisor = Advisor::new(Goal::default(), 10);
/// let mut window = Window::of(Duration::from_secs(10));
/// window.acquires = 20_000;
/// window.hold_mean = Duration::from_millis(4);
/// window.hold_p99 = Duration::from_millis(15);
/// window.latency = Duration::from_millis(3);
/// window.in_use_max = 10;
/// assert_eq!(advisor.observe(&window).expect("a load").size, 10, "one window proves little");
/// for _ in 0..20 {
///     advisor.observe(&window);
/// }
/// assert_eq!(advisor.observe(&window).expect("a load").size, 12, "what the load needs");
/// ```
#[derive(Debug, Clone)]
pub struct Advisor {
    goal: Goal,
    size: usize,
    /// What the server bears.
    limit: f64,
    /// The latency it usually has, in seconds.
    usual: Option<f64>,
    /// Windows in a row that pointed in this direction: positive for up.
    streak: i32,
    climb: Option<Climb>,
}

/// While all connections are always in use, figures of load and latency say nothing of another size: then sizes are tried,
/// and the one that gets more done is gone on with.
#[derive(Debug, Clone, Copy, Default)]
struct Climb {
    is_down: bool,
    /// Acquires a second at the size before, if there was one.
    before: Option<f64>,
    /// Sum of those at this size, and of how many windows.
    sum: f64,
    windows: u32,
}

/// Latencies up to so many times the usual one are no sign of trouble.
const TOLERANCE: f64 = 1.1;
/// The usual latency is the mean of about so many windows.
const USUAL_OF: f64 = 600.0;
/// By how much the limit grows where latencies are as usual, and at least by 1.
const GROWTH: f64 = 0.1;
/// Share of the way to a new limit that is gone with each window.
const SMOOTHING: f64 = 0.2;
/// Windows in a row before the size is changed.
const STREAK: i32 = 3;
/// A pool is saturated when this share of it is in use on the average.
const SATURATED: f64 = 0.95;
/// A size that gets less than this share of what another got is worse.
const LESS: f64 = 0.99;
/// Windows for which a size is seen before another is tried.
const CLIMB_WINDOWS: u32 = 2;
/// The size changes by this share at the most.
const STEP: f64 = 0.1;

impl Advisor {
    /// For a pool that has this size now.
    #[must_use]
    pub fn new(goal: Goal, size: usize) -> Self {
        Self {
            goal,
            size: size.max(1),
            limit: size.max(1) as f64,
            usual: None,
            streak: 0,
            climb: None,
        }
    }

    /// The size that the pool has, where that may not be what was advised. To be told before each window then.
    pub fn set_size(&mut self, size: usize) {
        self.size = size.max(1);
    }

    /// What a window says. `None` if nothing was acquired in it, or its figures make no sense.
    pub fn observe(&mut self, window: &Window) -> Option<Recommendation> {
        let seconds = window.length.as_secs_f64();
        if window.acquires == 0 || seconds <= 0.0 {
            return None;
        }
        let rate = window.acquires as f64 / seconds;
        let load = recommend(
            &Load::new(rate, window.hold_mean, window.hold_p99),
            &self.goal,
        )?;
        self.learn(window);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at least 1, and not beyond what is allowed"
        )]
        let limit = self.limit.round() as usize;
        let wanted = load.size.min(limit);
        let size_max = self.goal.size_max.max(self.goal.size_min);
        let target = wanted.clamp(self.goal.size_min.max(1), size_max.max(1));
        let reason = if target != wanted || load.size == size_max && limit >= size_max {
            Reason::Bounds
        } else if limit < load.size {
            Reason::ServerSlows
        } else {
            Reason::Load
        };
        let is_saturated =
            window.in_use_max >= self.size && load.busy > SATURATED * self.size as f64;
        if is_saturated {
            self.climb(rate);
            return Some(Recommendation {
                size: self.size,
                target: self.size,
                reason: Reason::Saturated,
                load,
            });
        }
        self.climb = None;
        self.step_to(target);
        Some(Recommendation {
            size: self.size,
            target,
            reason,
            load,
        })
    }

    /// Tries another size, once this one has been seen for some windows.
    fn climb(&mut self, rate: f64) {
        let climb = self.climb.get_or_insert_default();
        climb.sum += rate;
        climb.windows += 1;
        if climb.windows < CLIMB_WINDOWS {
            return;
        }
        let mean = climb.sum / f64::from(climb.windows);
        let is_worse = climb.before.is_some_and(|before| mean < LESS * before);
        let is_down = climb.is_down != is_worse;
        self.climb = Some(Climb {
            is_down,
            before: Some(mean),
            sum: 0.0,
            windows: 0,
        });
        let step = self.step();
        self.size = if is_down {
            self.size.saturating_sub(step)
        } else {
            self.size + step
        };
        let size_min = self.goal.size_min.max(1);
        self.size = self.size.clamp(size_min, self.goal.size_max.max(size_min));
        self.limit = self.size as f64;
    }

    fn step(&self) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a size"
        )]
        let step = (self.size as f64 * STEP) as usize;
        step.max(1)
    }

    /// What the server bears, in the light of this window.
    fn learn(&mut self, window: &Window) {
        let latency = window.latency.as_secs_f64();
        if latency <= 0.0 {
            return;
        }
        let usual = *self.usual.get_or_insert(latency);
        // Quickly down: what was learnt while the server was slow is no measure of it.
        let weight = if latency < usual { 0.2 } else { 1.0 / USUAL_OF };
        self.usual = Some(usual + (latency - usual) * weight);
        // A limit that nobody reaches says nothing of what lies beyond.
        let is_used = window.in_use_max as f64 >= self.limit / 2.0;
        let gradient = (TOLERANCE * usual / latency).clamp(0.5, 1.0);
        if is_used || gradient < 1.0 {
            let limit = self.limit * gradient + (GROWTH * self.limit).max(1.0);
            self.limit += (limit - self.limit) * SMOOTHING;
        }
        self.limit = self.limit.clamp(1.0, self.goal.size_max.max(1) as f64);
    }

    fn step_to(&mut self, target: usize) {
        let direction = match target.cmp(&self.size) {
            std::cmp::Ordering::Greater => 1,
            std::cmp::Ordering::Less => -1,
            std::cmp::Ordering::Equal => 0,
        };
        self.streak = if direction == self.streak.signum() {
            self.streak + direction
        } else {
            direction
        };
        if self.streak.abs() < STREAK {
            return;
        }
        let step = self.step();
        self.size = if direction > 0 {
            target.min(self.size + step)
        } else {
            target.max(self.size.saturating_sub(step).max(1))
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(acquires: u64, hold_ms: u64, latency_ms: u64, in_use_max: usize) -> Window {
        Window {
            length: Duration::from_secs(1),
            acquires,
            hold_mean: Duration::from_millis(hold_ms),
            hold_p99: Duration::from_millis(4 * hold_ms),
            latency: Duration::from_millis(latency_ms),
            in_use_max,
        }
    }

    #[test]
    fn one_odd_window_changes_nothing() {
        let mut advisor = Advisor::new(Goal::default(), 10);
        let steady = window(1000, 4, 4, 8);
        for _ in 0..20 {
            advisor.observe(&steady);
        }
        let before = advisor.observe(&steady).expect("a load").size;
        assert_eq!(
            advisor
                .observe(&window(9000, 8, 8, 10))
                .expect("a load")
                .size,
            before
        );
        for _ in 0..2 {
            assert_eq!(advisor.observe(&steady).expect("a load").size, before);
        }
    }

    #[test]
    fn it_moves_by_a_tenth_at_the_most_and_stays_within_its_bounds() {
        let goal = Goal {
            size_min: 5,
            size_max: 40,
            ..Goal::default()
        };
        let mut advisor = Advisor::new(goal, 20);
        let mut before = 20_usize;
        for n in 0..300 {
            let busy = if n < 150 {
                window(50_000, 10, 2, 40)
            } else {
                window(1, 1, 2, 1)
            };
            let size = advisor.observe(&busy).expect("a load").size;
            assert!((5..=40).contains(&size));
            assert!(
                size.abs_diff(before) <= (before / 10).max(1),
                "{before} {size}"
            );
            before = size;
            if n == 149 {
                assert_eq!(size, 40);
            }
        }
        assert_eq!(before, 5);
    }

    #[test]
    fn advice_that_nobody_follows_is_repeated_and_goes_no_further() {
        let mut advisor = Advisor::new(Goal::default(), 20);
        let mut last = None;
        for _ in 0..50 {
            advisor.set_size(20);
            last = advisor.observe(&window(1000, 4, 4, 6));
        }
        let last = last.expect("a load");
        // Six in use at times would be all of the pool that was advised, but not of the one there is.
        assert_eq!((last.size, last.reason), (18, Reason::Load), "{last:?}");
        assert!(last.target < 10, "{last:?}");
    }

    #[test]
    fn a_server_that_slows_down_is_not_given_more() {
        let mut advisor = Advisor::new(Goal::default(), 20);
        let mut before = 0;
        for _ in 0..30 {
            let advised = advisor.observe(&window(4000, 4, 4, 20));
            before = advised.expect("a load").size;
        }
        // The load seems to need more and more, for everything takes longer.
        let mut last = None;
        for _ in 0..8 {
            last = advisor.observe(&window(4000, 20, 20, 12));
        }
        let last = last.expect("a load");
        assert!(
            last.size < before && last.target < before,
            "{before} {last:?}"
        );
        assert_eq!(last.reason, Reason::ServerSlows);
        assert!(last.load.size > before);
    }

    #[test]
    fn nothing_and_nonsense_get_no_advice() {
        let mut advisor = Advisor::new(Goal::default(), 0);
        assert_eq!(advisor.observe(&window(0, 1, 1, 0)), None);
        assert_eq!(advisor.observe(&Window::of(Duration::ZERO)), None);
        let goal = Goal {
            utilisation_max: f64::NAN,
            ..Goal::default()
        };
        assert_eq!(Advisor::new(goal, 5).observe(&window(10, 1, 1, 1)), None);
        for mode in [Mode::Off, Mode::Advise, Mode::Auto] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("on".parse::<Mode>().is_err());
    }
}
