//! The order in which slots changed: what somebody who keeps answers of this cache elsewhere has to hear of.

use std::collections::VecDeque;
use std::fmt;

use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::version::SlotId;

/// Every change of a slot, numbered from 1 in the order in which they were noted; the newest of them can be read.
///
/// A slot is noted when a writer marks it, and again when its version is raised: each time *after* the mark, or the
/// version, can be seen. So with a place read from [`position`](Self::position) *before* an answer was found to be valid,
/// the answer may be kept elsewhere until the feed shows one of its slots behind that place: whatever makes it invalid is
/// noted there, and before the writer is acknowledged.
pub struct ChangeFeed {
    /// Why a lock: changes are noted in one order. Nothing but a move of numbers happens under it.
    recent: Mutex<VecDeque<SlotId>>,
    /// The number of the newest change.
    position: AtomicU64,
    #[cfg(not(loom))]
    news: tokio::sync::Notify,
}

/// Changes that can be read. Who lags further behind has to give up everything that it keeps.
pub const FEED_LEN: usize = 1 << 16;

/// Some of the changes asked for are no longer known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the changes asked for are no longer known")]
#[expect(clippy::exhaustive_structs, reason = "there is nothing to say of it")]
pub struct Gap {
    /// Where the feed is now.
    pub position: u64,
}

impl ChangeFeed {
    pub(crate) fn new() -> Self {
        Self {
            recent: Mutex::new(VecDeque::new()),
            position: AtomicU64::new(0),
            #[cfg(not(loom))]
            news: tokio::sync::Notify::new(),
        }
    }

    pub(crate) fn note(&self, slots: &[SlotId]) {
        if slots.is_empty() {
            return;
        }
        {
            let mut recent = self.recent.lock();
            let excess = (recent.len() + slots.len()).saturating_sub(FEED_LEN);
            let known = recent.len();
            recent.drain(..excess.min(known));
            recent.extend(slots);
            // Under the lock, so that numbers and changes agree.
            self.position
                .fetch_add(slots.len() as u64, Ordering::SeqCst);
        }
        #[cfg(not(loom))]
        self.news.notify_waiters();
    }

    /// The number of the newest change.
    #[inline]
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::SeqCst)
    }

    /// Appends the slots that changed behind `after` to `into`, and returns the place up to which they go.
    ///
    /// # Errors
    /// [`Gap`] if some of them are no longer known.
    pub fn read(&self, after: u64, into: &mut Vec<SlotId>) -> Result<u64, Gap> {
        let recent = self.recent.lock();
        let position = self.position();
        let missing = position.saturating_sub(after);
        let skipped = usize::try_from(missing)
            .ok()
            .and_then(|missing| recent.len().checked_sub(missing))
            .ok_or(Gap { position })?;
        into.extend(recent.range(skipped..));
        Ok(position)
    }

    /// Returns once there is a change behind `after`.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    #[cfg(not(loom))]
    pub async fn changed(&self, after: u64) {
        loop {
            let news = self.news.notified();
            if self.position() > after {
                return;
            }
            news.await;
        }
    }
}

impl fmt::Debug for ChangeFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChangeFeed")
            .field("position", &self.position())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::version::VersionSlots;

    #[tokio::test]
    async fn marks_and_ends_are_noted_in_order() {
        let versions = VersionSlots::new(8);
        let feed = versions.feed();
        let (a, b) = (versions.slot(1), versions.slot(2));
        let begin = feed.position();
        let write = versions.begin_write(&[a]);
        feed.changed(begin).await;
        let mut changes = Vec::new();
        let marked = feed.read(begin, &mut changes).expect("known");
        assert_eq!((&changes[..], marked), (&[a][..], begin + 1));
        versions.invalidate(&[b]);
        write.finish();
        let end = feed.read(marked, &mut changes).expect("known");
        assert_eq!((&changes[..], end), (&[a, b, a][..], begin + 3));
        assert_eq!(feed.read(end, &mut changes), Ok(end));
    }

    #[test]
    fn who_lags_behind_the_feed_is_told() {
        let versions = VersionSlots::new(8);
        let (feed, slot) = (versions.feed(), versions.slot(1));
        for _ in 0..=FEED_LEN {
            versions.invalidate(&[slot]);
        }
        let position = feed.position();
        assert_eq!(feed.read(0, &mut Vec::new()), Err(Gap { position }));
        let mut changes = Vec::new();
        assert_eq!(feed.read(1, &mut changes), Ok(position));
        assert_eq!(changes.len(), FEED_LEN);
    }
}
