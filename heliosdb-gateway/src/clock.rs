//! Points in time that fit an atomic.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Microseconds since the process first asked; 0 for what was before.
pub(crate) fn stamp(at: Instant) -> u64 {
    let since_start = at.saturating_duration_since(*START);
    u64::try_from(since_start.as_micros()).unwrap_or(u64::MAX)
}

/// The time of a [`stamp`], by what the clock says now: it may have been set meanwhile.
pub(crate) fn time_of(stamp: u64) -> SystemTime {
    let ago = self::stamp(Instant::now()).saturating_sub(stamp);
    SystemTime::now() - Duration::from_micros(ago)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_a_time_to_the_microsecond() {
        // From when on it counts.
        let _ = stamp(Instant::now());
        let (before, now) = (SystemTime::now(), Instant::now());
        let (first, second) = (stamp(now), stamp(now + Duration::from_millis(1500)));
        assert_eq!(second - first, 1_500_000);
        let time = time_of(first);
        let apart = time
            .duration_since(before)
            .unwrap_or_else(|error| error.duration());
        assert!(apart < Duration::from_secs(1), "{apart:?}");
        assert_eq!(stamp(now - Duration::from_secs(3600)), 0);
    }
}
