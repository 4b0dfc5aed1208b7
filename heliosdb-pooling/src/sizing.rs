//! How many connections a load needs: pure functions.

/// What is known of a load on a pool.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "three numbers, all of them needed"
)]
pub struct Load {
    /// Acquires a second.
    pub arrivals_per_second: f64,
    /// Mean time for which a connection is held, in seconds.
    pub hold_mean_seconds: f64,
    /// Share of acquires that may have to wait, between 0 and 1.
    pub wait_share_max: f64,
}

/// Connections busy on average, by Little's law.
#[must_use]
pub fn busy_connections(load: &Load) -> f64 {
    (load.arrivals_per_second * load.hold_mean_seconds).max(0.0)
}

/// The probability that an acquire has to wait, for `busy` connections' worth of load on `size` connections: Erlang's
/// C formula, by the recurrence of his B formula.
#[must_use]
pub fn wait_probability(busy: f64, size: usize) -> f64 {
    if busy <= 0.0 {
        return 0.0;
    }
    if busy >= size as f64 {
        return 1.0;
    }
    let mut blocked = 1.0;
    for n in 1..=size {
        blocked = busy * blocked / (n as f64 + busy * blocked);
    }
    let size = size as f64;
    size * blocked / (size - busy * (1.0 - blocked))
}

/// The smallest pool in which no more than the allowed share of acquires waits, from 1 to `max`. `None` if the load is
/// no load that can be reasoned about: not finite, or negative.
#[must_use]
pub fn recommended_size(load: &Load, max: usize) -> Option<usize> {
    let busy = busy_connections(load);
    let sound = load.arrivals_per_second >= 0.0
        && load.hold_mean_seconds >= 0.0
        && busy.is_finite()
        && (0.0..=1.0).contains(&load.wait_share_max);
    if !sound {
        return None;
    }
    (1..=max.max(1))
        .find(|size| wait_probability(busy, *size) <= load.wait_share_max)
        .or(Some(max.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erlang_c_agrees_with_the_tables() {
        // One server: the probability of waiting is the load.
        assert!((wait_probability(0.5, 1) - 0.5).abs() < 1e-12);
        // Two servers, one erlang: 1/3.
        assert!((wait_probability(1.0, 2) - 1.0 / 3.0).abs() < 1e-12);
        // Ten servers, eight erlangs: 0.409 in the published tables.
        assert!((wait_probability(8.0, 10) - 0.409).abs() < 0.001);
        assert_eq!(wait_probability(3.0, 3), 1.0);
        assert_eq!(wait_probability(0.0, 3), 0.0);
    }

    #[test]
    fn the_recommended_size_is_the_smallest_that_will_do() {
        let load = Load {
            arrivals_per_second: 1000.0,
            hold_mean_seconds: 0.008,
            wait_share_max: 0.05,
        };
        let size = recommended_size(&load, 100).expect("a sound load");
        assert!(wait_probability(8.0, size) <= 0.05);
        assert!(wait_probability(8.0, size - 1) > 0.05);
        assert_eq!(recommended_size(&load, 4), Some(4));
        assert_eq!(
            recommended_size(
                &Load {
                    arrivals_per_second: f64::NAN,
                    ..load
                },
                4
            ),
            None
        );
    }
}
