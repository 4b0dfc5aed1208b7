//! The time that entries carry: read from a monotonic clock, shown as wall-clock time.
//!
//! The wall clock is read once in the life of the process. If it is set later, all times shown are off by the same
//! amount, and what is older stays older.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

static BEGAN: LazyLock<(Instant, DateTime<Utc>)> = LazyLock::new(|| (Instant::now(), Utc::now()));

/// The date of now.
pub(crate) fn now() -> DateTime<Utc> {
    BEGAN.1 + BEGAN.0.elapsed()
}

/// A monotonic clock: the system's, or one that a test drives.
///
/// The system's is read with a resolution of a few milliseconds, which costs as many nanoseconds.
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// # use heliosdb_cache::{CacheConfig, CacheManager, Clock, InMemoryBackend, Lifetime, QueryKey};
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let clock = Clock::manual();
/// let mut config = CacheConfig::default();
/// config.clock = clock.clone();
/// config.lifetime = Lifetime::of(Duration::from_secs(60));
/// let cache = CacheManager::new(Arc::new(InMemoryBackend::new(1 << 20)), config);
/// let key = QueryKey::new("SELECT 1", &[], "db");
/// cache.put(key.clone(), "1", vec![], 1.0).await?;
/// clock.advance(Duration::from_secs(61));
/// assert_eq!(cache.get(&key).await?, None);
/// # Ok::<_, Box<dyn std::error::Error>>(()) })?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Clock(Source);

#[derive(Debug, Clone, Default)]
enum Source {
    #[default]
    System,
    /// Milliseconds.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The system's monotonic clock: the default.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands still until it is [advanced](Self::advance). Its clones show the same time.
    #[must_use]
    pub fn manual() -> Self {
        // Not 0, so that there is a past.
        Self(Source::Manual(Arc::new(AtomicU64::new(1_000_000))))
    }

    /// Moves a manual clock on, by whole milliseconds. The system's clock takes no notice.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(now) = &self.0 {
            now.fetch_add(milliseconds(by), Ordering::AcqRel);
        }
    }

    #[inline]
    pub(crate) fn now(&self) -> Moment {
        match &self.0 {
            Source::System => Moment(system_milliseconds()),
            Source::Manual(now) => Moment(now.load(Ordering::Acquire)),
        }
    }
}

/// Milliseconds by a [`Clock`], from no particular beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(pub(crate) u64);

impl Moment {
    pub(crate) const NEVER: Self = Self(u64::MAX);

    pub(crate) fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(milliseconds(by)))
    }

    #[expect(clippy::cast_possible_truncation, reason = "it wraps")]
    pub(crate) fn tick(self) -> Tick {
        Tick((self.0 / TICK_MS) as u32)
    }

    /// The wall-clock date of a tick in the past of this moment, which is now.
    pub(crate) fn date(self, tick: Tick) -> DateTime<Utc> {
        now() - self.tick().since(tick)
    }
}

/// A moment in hundredths of a second: four bytes that wrap after 497 days. Only differences below half of that mean
/// anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tick(pub(crate) u32);

const TICK_MS: u64 = 10;

impl Tick {
    pub(crate) fn since(self, earlier: Self) -> Duration {
        let ticks = self.0.wrapping_sub(earlier.0);
        // A tick of the future, seen by a thread whose now is a little older.
        let ticks = if ticks > u32::MAX / 2 { 0 } else { ticks };
        Duration::from_millis(u64::from(ticks) * TICK_MS)
    }
}

pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(all(target_os = "linux", not(loom)))]
fn system_milliseconds() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    // Since the machine was started: neither is negative.
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

#[cfg(not(all(target_os = "linux", not(loom))))]
fn system_milliseconds() -> u64 {
    milliseconds(BEGAN.0.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_of_a_manual_clock_show_the_same_time() {
        let clock = Clock::manual();
        let other = clock.clone();
        let before = other.now();
        clock.advance(Duration::from_millis(1500));
        assert_eq!(other.now(), before.after(Duration::from_millis(1500)));
        assert_eq!(
            clock.now().tick().since(before.tick()),
            Duration::from_millis(1500)
        );
    }

    #[test]
    fn the_system_clock_goes_on() {
        let clock = Clock::system();
        let before = clock.now();
        while clock.now() == before {
            std::thread::yield_now();
        }
        assert!(clock.now() > before);
    }

    #[test]
    fn ticks_wrap_and_never_lie_in_the_future() {
        let (early, late) = (Tick(u32::MAX - 4), Tick(5));
        assert_eq!(late.since(early), Duration::from_millis(100));
        assert_eq!(early.since(late), Duration::ZERO);
    }
}
