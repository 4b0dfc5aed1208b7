//! The advice on sizes against a simulated pool: what the formulas say is what happens.

use std::time::Duration;

use heliosdb_pooling::sizing::{Goal, Load, recommend, wait_probability};

/// A small generator, so that every run of the test sees the same load.
struct Random(u64);

impl Random {
    /// Evenly from 0 to 1, 0 not included.
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }

    /// Log-normal with this mean and spread.
    fn log_normal(&mut self, mean: f64, spread: f64) -> f64 {
        let normal = (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        mean * (spread * normal - spread * spread / 2.0).exp()
    }
}

struct Simulated {
    wait_share: f64,
    wait_p99: f64,
}

/// Serves acquires in order of arrival and notes how long each waited.
fn simulate(
    size: usize,
    arrivals_per_second: f64,
    mut hold: impl FnMut(&mut Random) -> f64,
) -> Simulated {
    const ACQUIRES: usize = 300_000;
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut free_at = vec![0.0_f64; size];
    let mut now = 0.0;
    let mut waits: Vec<f64> = (0..ACQUIRES)
        .map(|_| {
            now += random.exponential(1.0 / arrivals_per_second);
            let first_free = free_at
                .iter_mut()
                .min_by(|a, b| a.total_cmp(b))
                .expect("a connection");
            let wait = (*first_free - now).max(0.0);
            *first_free = now + wait + hold(&mut random);
            wait
        })
        .collect();
    waits.sort_by(f64::total_cmp);
    let waited = waits.iter().filter(|wait| **wait > 0.0).count();
    Simulated {
        wait_share: waited as f64 / ACQUIRES as f64,
        wait_p99: waits[ACQUIRES / 100 * 99],
    }
}

fn assert_close(what: &str, got: f64, expected: f64, tolerance: f64) {
    let off = (got / expected - 1.0).abs();
    assert!(off < tolerance, "{what}: {got}, expected {expected}");
}

/// The advice for a load when exactly this size is allowed.
fn advice_for(size: usize, load: &Load) -> heliosdb_pooling::sizing::Advice {
    let mut goal = Goal::default();
    (goal.size_min, goal.size_max) = (size, size);
    recommend(load, &goal).expect("a sound load")
}

#[test]
fn exponential_hold_times_wait_as_erlang_says() {
    for (size, busy) in [(2, 1.5), (10, 8.0), (20, 18.0)] {
        let mean = 0.004;
        let simulated = simulate(size, busy / mean, |random| random.exponential(mean));
        let expected = wait_probability(busy, size);
        assert_close("share", simulated.wait_share, expected, 0.05);
        let load = Load::new(
            busy / mean,
            Duration::from_secs_f64(mean),
            Duration::from_secs_f64(mean * 100.0_f64.ln()),
        );
        let advice = advice_for(size, &load);
        assert_close(
            "p99",
            advice.wait_p99.as_secs_f64(),
            simulated.wait_p99,
            0.15,
        );
    }
}

#[test]
fn other_hold_times_wait_about_as_advised() {
    // From nearly equal hold times to such with a long tail.
    for spread in [0.1, 0.5, 1.0, 1.3] {
        let (size, busy, mean) = (10, 8.0, 0.004);
        let simulated = simulate(size, busy / mean, |random| random.log_normal(mean, spread));
        let p99 = mean * (2.326 * spread - spread * spread / 2.0).exp();
        let load = Load::new(
            busy / mean,
            Duration::from_secs_f64(mean),
            Duration::from_secs_f64(p99),
        );
        let advice = advice_for(size, &load);
        assert_close(
            "p99",
            advice.wait_p99.as_secs_f64(),
            simulated.wait_p99,
            0.35,
        );
    }
}
