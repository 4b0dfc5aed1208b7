//! The advisor beside every fixed size, in a simulated pool before a simulated server that slows down when it has more to
//! do than processors.

use std::collections::VecDeque;
use std::time::Duration;

use heliosdb_pooling::advisor::{Advisor, Window};
use heliosdb_pooling::sizing::Goal;

/// Processors of the server.
const PROCESSORS: f64 = 8.0;
/// What a statement takes on an idle server, in milliseconds, on the average.
const WORK_MS: f64 = 5.0;
const STEP_MS: f64 = 0.25;
const WINDOW_MS: f64 = 2000.0;

struct Simulation {
    random: u64,
    now_ms: f64,
    next_arrival_ms: f64,
    waiting: VecDeque<f64>,
    running: Vec<Running>,
}

struct Running {
    arrived_ms: f64,
    started_ms: f64,
    work_left_ms: f64,
}

/// What a window brought.
struct Seen {
    window: Window,
    /// Mean time from arrival to end, and how many ended.
    response_ms: f64,
    ended: usize,
}

impl Simulation {
    fn new() -> Self {
        Self {
            random: 0x9e37_79b9_7f4a_7c15,
            now_ms: 0.0,
            next_arrival_ms: 0.0,
            waiting: VecDeque::new(),
            running: Vec::new(),
        }
    }

    /// Exponentially distributed, by xorshift.
    fn exponential(&mut self, mean: f64) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let uniform = (self.random >> 11) as f64 / (1_u64 << 53) as f64;
        -mean * (1.0 - uniform).ln()
    }

    fn run(&mut self, size: usize, arrivals_per_second: f64) -> Seen {
        let end_ms = self.now_ms + WINDOW_MS;
        let (mut holds, mut responses) = (Vec::new(), 0.0);
        let mut in_use_max = 0;
        while self.now_ms < end_ms {
            while self.next_arrival_ms <= self.now_ms {
                self.waiting.push_back(self.next_arrival_ms);
                self.next_arrival_ms += self.exponential(1000.0 / arrivals_per_second);
            }
            while self.running.len() < size
                && let Some(arrived_ms) = self.waiting.pop_front()
            {
                let work_left_ms = self.exponential(WORK_MS);
                self.running.push(Running {
                    arrived_ms,
                    started_ms: self.now_ms,
                    work_left_ms,
                });
            }
            let busy = self.running.len() as f64;
            in_use_max = in_use_max.max(self.running.len());
            // Beyond its processors it also gets less done in all: caches, locks, switching.
            let crowd = (busy / PROCESSORS).max(1.0);
            let pace = 1.0 / crowd.powf(1.3);
            self.now_ms += STEP_MS;
            let now_ms = self.now_ms;
            self.running.retain_mut(|running| {
                running.work_left_ms -= STEP_MS * pace;
                let has_ended = running.work_left_ms <= 0.0;
                if has_ended {
                    holds.push(now_ms - running.started_ms);
                    responses += now_ms - running.arrived_ms;
                }
                !has_ended
            });
        }
        holds.sort_by(f64::total_cmp);
        let ended = holds.len();
        let mean = holds.iter().sum::<f64>() / ended.max(1) as f64;
        let p99 = holds.get(ended * 99 / 100).copied().unwrap_or_default();
        let duration = |ms: f64| Duration::from_secs_f64(ms / 1000.0);
        let mut window = Window::of(duration(WINDOW_MS));
        window.acquires = u64::try_from(ended).expect("a small number");
        window.hold_mean = duration(mean);
        window.hold_p99 = duration(p99);
        window.latency = duration(mean);
        window.in_use_max = in_use_max;
        Seen {
            window,
            response_ms: responses / ended.max(1) as f64,
            ended,
        }
    }
}

/// The mean response time once everything has settled.
fn fixed(size: usize, arrivals_per_second: f64) -> f64 {
    let mut simulation = Simulation::new();
    let windows = (0..40).map(|_| simulation.run(size, arrivals_per_second));
    mean_response(windows.skip(10))
}

fn mean_response(windows: impl Iterator<Item = Seen>) -> f64 {
    let sums = windows.fold((0.0, 0), |(sum, n), seen| {
        (sum + seen.response_ms * seen.ended as f64, n + seen.ended)
    });
    sums.0 / sums.1 as f64
}

/// The same with advice that is followed, and the size after sixty windows.
fn advised(seed: usize, arrivals_per_second: f64) -> (f64, usize) {
    let mut simulation = Simulation::new();
    let mut advisor = Advisor::new(Goal::default(), seed);
    let (mut size, mut after_sixty) = (seed, seed);
    let mut settled = Vec::new();
    for n in 0..130 {
        let seen = simulation.run(size, arrivals_per_second);
        if let Some(advice) = advisor.observe(&seen.window) {
            size = advice.size;
        }
        if n == 60 {
            after_sixty = size;
        }
        // By then also the backlog of a bad beginning is worked off.
        if n >= 100 {
            settled.push(seen);
        }
    }
    (mean_response(settled.into_iter()), after_sixty)
}

/// Whatever the size it begins with; among them one at which the server gets less done than is asked of it.
#[test]
fn advice_leads_near_the_best_of_all_sizes_and_soon() {
    // Light, half, and three quarters of what the server can do.
    for arrivals in [200.0, 800.0, 1200.0] {
        let sizes = [2, 4, 6, 8, 10, 12, 16, 24, 32, 64];
        let best = sizes
            .into_iter()
            .map(|size| fixed(size, arrivals))
            .fold(f64::INFINITY, f64::min);
        for seed in [4, 10, 40] {
            let (response, after_sixty) = advised(seed, arrivals);
            println!(
                "{arrivals}/s from {seed}: {after_sixty} connections, {response:.2} ms, best {best:.2}"
            );
            assert!(
                response <= 1.25 * best,
                "{arrivals}/s from {seed}: {response:.2} ms, best {best:.2} ms"
            );
            assert!(
                after_sixty <= 16,
                "{arrivals}/s from {seed}: {after_sixty} connections"
            );
        }
    }
}
