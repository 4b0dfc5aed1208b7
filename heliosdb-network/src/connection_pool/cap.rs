//! How many connections the server lets the pool have.

use std::time::{Duration, Instant};

/// A bound below the configured one, from the moment when the server refuses a connection because it has too many. It grows
/// again one by one, each time that one more was let in, and sinks when one more is refused.
#[derive(Debug, Default)]
pub(super) struct Cap(Option<Limit>);

#[derive(Debug)]
struct Limit {
    connections: usize,
    /// For how long nothing more is tried after a refusal.
    backoff: Duration,
    /// When one more may be tried.
    grows_at: Instant,
}

/// The server is full, or nearly: whoever tries more often takes the places that others need.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

impl Cap {
    /// As many connections may stand, where so many are configured.
    pub(super) fn bound(&self, max: usize) -> usize {
        self.0
            .as_ref()
            .map_or(max, |limit| limit.connections.min(max))
    }

    /// As many may stand or be tried.
    pub(super) fn bound_now(&self, max: usize, now: Instant) -> usize {
        let may_grow = self.0.as_ref().is_some_and(|limit| now >= limit.grows_at);
        (self.bound(max) + usize::from(may_grow)).min(max)
    }

    /// The server has too many connections, and so many of them are ours. Returns when to try one more.
    pub(super) fn refused(&mut self, standing: usize, now: Instant) -> Instant {
        let backoff = match &self.0 {
            // One more than it was known to let in.
            Some(limit) if now >= limit.grows_at => (2 * limit.backoff).min(BACKOFF_MAX),
            // Of several that were tried at the same time, or one that took the place of another.
            Some(limit) => limit.backoff,
            None => BACKOFF_MIN,
        };
        let grows_at = now + backoff;
        self.0 = Some(Limit {
            // With none, it could never be found out that there is room again.
            connections: standing.max(1),
            backoff,
            grows_at,
        });
        grows_at
    }

    /// One more stands, which makes so many. Returns when to try the next, if this one was a trial.
    pub(super) fn stands(&mut self, standing: usize, max: usize, now: Instant) -> Option<Instant> {
        let limit = self.0.as_mut()?;
        if standing <= limit.connections {
            return None;
        }
        if standing >= max {
            self.0 = None;
            return None;
        }
        limit.connections = standing;
        limit.backoff = BACKOFF_MIN;
        limit.grows_at = now + BACKOFF_MIN;
        Some(limit.grows_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 8;

    #[test]
    fn it_is_what_stood_when_one_was_refused_and_grows_one_by_one() {
        let (mut cap, start) = (Cap::default(), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        assert_eq!(cap.bound_now(MAX, start), MAX);
        assert_eq!(cap.stands(3, MAX, start), None);
        assert_eq!(cap.refused(3, start), after(1000));
        assert_eq!(cap.bound_now(MAX, after(999)), 3);
        assert_eq!(cap.bound_now(MAX, after(1000)), 4, "one more");
        assert_eq!(cap.bound(MAX), 3, "as long as it is not let in");
        assert_eq!(cap.stands(4, MAX, after(1100)), Some(after(2100)));
        assert_eq!(cap.bound_now(MAX, after(2099)), 4);
        for standing in 5..MAX {
            let now = start + Duration::from_secs(10 * standing as u64);
            assert_eq!(cap.bound_now(MAX, now), standing);
            assert!(cap.stands(standing, MAX, now).is_some());
        }
        assert_eq!(cap.stands(MAX, MAX, after(100_000)), None);
        assert_eq!(cap.bound_now(MAX, after(100_000)), MAX, "lifted");
    }

    #[test]
    fn who_is_refused_again_waits_longer_and_who_is_let_in_does_not() {
        let (mut cap, mut now) = (Cap::default(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..9 {
            let grows_at = cap.refused(2, now);
            waits.push(grows_at.duration_since(now).as_secs());
            now = grows_at;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert!(cap.stands(3, MAX, now).is_some());
        let grows_at = cap.refused(3, now + Duration::from_secs(1));
        assert_eq!(grows_at.duration_since(now).as_secs(), 1 + 2);
    }

    #[test]
    fn of_those_tried_together_the_ones_let_in_count_and_the_refused_count_once() {
        let (mut cap, now) = (Cap::default(), Instant::now());
        for _ in 0..3 {
            let grows_at = cap.refused(0, now);
            assert_eq!(grows_at.duration_since(now), BACKOFF_MIN);
        }
        assert_eq!(cap.bound(MAX), 1, "never none");
        cap.stands(1, MAX, now);
        cap.stands(2, MAX, now);
        assert_eq!(cap.bound(MAX), 2);
        // One was lost, and another had its place already.
        cap.refused(1, now);
        assert_eq!(cap.bound(MAX), 1);
        assert_eq!(cap.bound(0), 0, "what is configured holds");
    }
}
