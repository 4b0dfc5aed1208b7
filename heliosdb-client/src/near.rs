//! The near cache: answers in the client's own memory, and what makes them good.
//!
//! It lives as long as one subscription does. The subscriber is called by the task that reads the connection, in order with
//! the answers that come on it, and nearly all answers for the cache do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use heliosdb_cache::{
    Answer, CacheConfig, CacheManager, Flight, HashedStr, InMemoryBackend, KeyRef, Position, SlotId,
};
use heliosdb_network::client::Push;
use heliosdb_network::protocol::{Invalidated, Near as Dependencies, Query};

/// Answers that one subscription keeps true.
pub(crate) struct Near {
    pub(crate) cache: CacheManager,
    /// Everything that had changed by this time was told: microseconds since `began`, 0 for never.
    proven_us: AtomicU64,
    /// The subscription has begun and not ended.
    is_live: AtomicBool,
    began: Instant,
    max_lag: Duration,
    scope: HashedStr,
}

impl Near {
    pub(crate) fn new(capacity: usize, max_lag: Duration) -> Arc<Self> {
        let mut config = CacheConfig::default();
        config.max_size_bytes = capacity;
        config.min_result_size = 0;
        config.max_result_size = usize::MAX;
        config.min_execution_time_ms = 0.0;
        Arc::new(Self {
            cache: CacheManager::new(Arc::new(InMemoryBackend::new(capacity)), config),
            proven_us: AtomicU64::new(0),
            is_live: AtomicBool::new(false),
            began: Instant::now(),
            max_lag,
            scope: HashedStr::new(""),
        })
    }

    /// What the gateway tells.
    pub(crate) fn on_push(&self, push: Push) {
        let versions = self.cache.versions();
        match push {
            Push::Began(position) => {
                versions.follow(LINEAGE, Position(position));
                self.is_live.store(true, Ordering::SeqCst);
            }
            Push::Invalidated(Invalidated { position, slots }) => {
                let slots: Vec<_> = slots.into_iter().map(|slot| self.slot(slot)).collect();
                versions.invalidate_at(&slots, Position(position));
                // Behind the changes: who sees the place sees them.
                versions.advance(Position(position));
            }
            // Nothing is known from now on.
            _ => self.is_live.store(false, Ordering::SeqCst),
        }
    }

    /// The slot that stands for one of the gateway's: several of those may share one here.
    fn slot(&self, number: u32) -> SlotId {
        let versions = self.cache.versions();
        let slot = versions.slot_at(number);
        slot.unwrap_or_else(|| versions.slot(number.into()))
    }

    /// The gateway has answered something that was asked at `asked`: what had changed by then was told.
    pub(crate) fn prove(&self, asked: Instant) {
        let proven = micros(asked.saturating_duration_since(self.began)).max(1);
        self.proven_us.fetch_max(proven, Ordering::SeqCst);
    }

    /// True while what is kept may be served to somebody who knows of changes up to `known`.
    pub(crate) fn is_good(&self, known: u64) -> bool {
        let proven = self.proven_us.load(Ordering::SeqCst);
        self.is_live.load(Ordering::SeqCst)
            && proven != 0
            && micros(self.began.elapsed()).saturating_sub(proven) <= micros(self.max_lag)
            && self.position() >= known
    }

    /// Everything up to this place in the feed was told.
    pub(crate) fn position(&self) -> u64 {
        self.cache.versions().applied().0
    }

    pub(crate) fn look_up(&self, query: &Query, params: &[u8]) -> Option<Answer> {
        self.cache.lookup(&self.key(query, params))
    }

    /// Keeps an answer, unless something that it depends on has changed since.
    pub(crate) fn keep(
        &self,
        query: &Query,
        params: &[u8],
        run: &[u8],
        dependencies: &Dependencies,
        took: Duration,
    ) {
        let slots: Vec<_> = dependencies
            .slots
            .iter()
            .map(|slot| self.slot(*slot))
            .collect();
        // The versions are read here, before it is asked whether the answer is good still: a change behind that
        // question makes the entry invalid.
        if let Flight::Leader(fill) = self.cache.join(&self.key(query, params), &slots)
            && self
                .cache
                .versions()
                .is_current_at(&slots, Position(dependencies.as_of))
        {
            fill.complete_with(run, took);
        }
    }

    fn key<'k>(&'k self, query: &'k Query, params: &'k [u8]) -> KeyRef<'k> {
        KeyRef::new(&query.text, params, &self.scope)
    }
}

/// A cache follows one feed in its life.
const LINEAGE: [u8; 16] = *b"heliosdb-client\0";

/// What distinguishes a question from others with the same text.
pub(crate) fn params(query: &Query) -> Vec<u8> {
    let types = u32::try_from(query.types.len()).unwrap_or(u32::MAX);
    [&types.to_le_bytes()[..], &query.types, &query.bind].concat()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query {
            text: text.to_owned(),
            ..Query::default()
        }
    }

    fn near() -> Arc<Near> {
        let near = Near::new(1 << 20, Duration::from_secs(60));
        near.on_push(Push::Began(10));
        near.prove(Instant::now());
        near
    }

    fn keep(near: &Near, text: &str, as_of: u64, slots: &[u32]) {
        let dependencies = Dependencies {
            as_of,
            slots: slots.to_vec(),
        };
        near.keep(&query(text), b"", b"answer", &dependencies, Duration::ZERO);
    }

    fn has(near: &Near, text: &str) -> bool {
        near.look_up(&query(text), b"").is_some()
    }

    fn tell(near: &Near, position: u64, slots: &[u32]) {
        near.on_push(Push::Invalidated(Invalidated {
            position,
            slots: slots.to_vec(),
        }));
    }

    #[test]
    fn an_answer_is_kept_until_one_of_its_slots_changes() {
        let near = near();
        keep(&near, "a", 10, &[1, 2]);
        keep(&near, "b", 10, &[3]);
        assert!(has(&near, "a") && has(&near, "b"));
        tell(&near, 11, &[2]);
        assert!(!has(&near, "a") && has(&near, "b"));
        // Slot 0 stands for all.
        tell(&near, 12, &[0]);
        assert!(!has(&near, "b"));
        keep(&near, "a", 12, &[1, 2]);
        assert!(has(&near, "a"));
    }

    #[test]
    fn an_answer_from_before_a_change_that_was_told_is_not_kept() {
        let near = near();
        tell(&near, 15, &[1]);
        keep(&near, "late", 14, &[1]);
        assert!(!has(&near, "late"));
        keep(&near, "other", 14, &[2]);
        assert!(has(&near, "other"));
        // From behind what was told so far: whether something came in between is not known.
        keep(&near, "early", 16, &[2]);
        assert!(!has(&near, "early"));
        // From before the subscription began.
        keep(&near, "old", 9, &[2]);
        assert!(!has(&near, "old"));
    }

    #[test]
    fn numbers_beyond_those_here_share_a_slot() {
        let near = near();
        keep(&near, "a", 10, &[u32::MAX]);
        assert!(has(&near, "a"));
        tell(&near, 11, &[u32::MAX]);
        assert!(!has(&near, "a"));
    }

    #[test]
    fn nothing_is_good_before_the_beginning_after_the_end_behind_the_known_or_beyond_the_lag() {
        let near = Near::new(1 << 20, Duration::from_secs(60));
        near.prove(Instant::now());
        assert!(!near.is_good(0), "not begun");
        near.on_push(Push::Began(10));
        assert!(near.is_good(10));
        assert!(!near.is_good(11), "something later is known");
        tell(&near, 11, &[5]);
        assert!(near.is_good(11));
        near.on_push(Push::Ended);
        assert!(!near.is_good(0), "ended");

        let near = Near::new(1 << 20, Duration::from_millis(50));
        near.on_push(Push::Began(10));
        assert!(!near.is_good(0), "not proven");
        let asked = Instant::now();
        std::thread::sleep(Duration::from_millis(60));
        near.prove(asked);
        assert!(!near.is_good(0), "proven for a time too long ago");
        near.prove(Instant::now());
        assert!(near.is_good(0));
    }
}
