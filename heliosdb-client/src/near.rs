//! The near cache: answers in the client's own memory, and what makes them good.
//!
//! It lives as long as one subscription does. The subscriber is called by the task that reads the connection, in order with
//! the answers that come on it, and all answers for the cache do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use heliosdb_cache::{
    CacheConfig, CacheManager, Flight, HashedStr, InMemoryBackend, KeyRef, Position as Place,
    SlotId,
};
use heliosdb_network::client::{Push, Reply};
use heliosdb_network::protocol::{AnswerSource, Facts, Invalidated, Near as Dependencies, Query};
use heliosdb_network::{HeliosError, Result};

use crate::position::Position;

/// Answers that one subscription keeps true.
pub(crate) struct Near {
    pub(crate) cache: CacheManager,
    /// Whose subscription it is.
    instance: u64,
    /// The furthest place of that gateway's feed that the client knows of.
    known: AtomicU64,
    /// The client knows something of another gateway, and what that is compared with this one's feed can't be told.
    is_foreign: AtomicBool,
    /// Everything that had changed by this time was told: microseconds since `began`, 0 for never.
    proven_us: AtomicU64,
    /// The subscription has begun and not ended.
    is_live: AtomicBool,
    began: Instant,
    max_lag: Duration,
    scope: HashedStr,
}

/// In front of the bytes of an answer: how old it was when it came, in milliseconds.
const AGE_LEN: usize = size_of::<u32>();

impl Near {
    pub(crate) fn new(instance: u64, capacity: usize, max_lag: Duration) -> Arc<Self> {
        let mut config = CacheConfig::default();
        config.max_size_bytes = capacity;
        config.min_result_size = 0;
        config.max_result_size = usize::MAX;
        config.min_execution_time_ms = 0.0;
        Arc::new(Self {
            cache: CacheManager::new(Arc::new(InMemoryBackend::new(capacity)), config),
            instance,
            known: AtomicU64::new(0),
            is_foreign: AtomicBool::new(false),
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
            Push::Began(place) => {
                versions.follow(LINEAGE, Place(place));
                // Whatever changed before lies before this place.
                versions.begin_fence().end(Place(place));
                self.is_live.store(true, Ordering::SeqCst);
            }
            Push::Invalidated(Invalidated { position, slots }) => {
                let slots: Vec<_> = slots.into_iter().map(|slot| self.slot(slot)).collect();
                versions.invalidate_at(&slots, Place(position));
                // Behind the changes: who sees the place sees them.
                versions.advance(Place(position));
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

    /// The client has learnt something.
    pub(crate) fn learn(&self, position: Position) {
        if position.instance == self.instance {
            self.known.fetch_max(position.place, Ordering::SeqCst);
            if self.is_foreign.load(Ordering::Relaxed) {
                self.is_foreign.store(false, Ordering::SeqCst);
            }
        } else if position.instance != 0 {
            self.is_foreign.store(true, Ordering::SeqCst);
            // When this gateway has answered again, all that is kept shall be from then.
            let everything = self.slot(0);
            let versions = self.cache.versions();
            versions.invalidate_at(&[everything], versions.applied());
        }
    }

    /// The gateway has answered something that was asked at `asked`: what had changed by then was told.
    pub(crate) fn prove(&self, asked: Instant) {
        let proven = micros(asked.saturating_duration_since(self.began)).max(1);
        self.proven_us.fetch_max(proven, Ordering::SeqCst);
    }

    /// True while what is kept may be served.
    pub(crate) fn is_good(&self) -> bool {
        // First what is known, then how far the feed was told.
        let known = self.known.load(Ordering::SeqCst);
        let proven = self.proven_us.load(Ordering::SeqCst);
        self.is_live.load(Ordering::SeqCst)
            && !self.is_foreign.load(Ordering::SeqCst)
            && proven != 0
            && micros(self.began.elapsed()).saturating_sub(proven) <= micros(self.max_lag)
            && self.place() >= known
    }

    /// Everything up to this place in the feed was told.
    fn place(&self) -> u64 {
        self.cache.versions().applied().0
    }

    /// [`place`](Self::place), as others can compare it.
    pub(crate) fn position(&self) -> Position {
        Position {
            instance: self.instance,
            place: self.place(),
        }
    }

    /// An answer that is kept and good.
    pub(crate) fn answer(&self, query: &Query, params: &[u8]) -> Option<Result<Reply>> {
        if !self.is_good() {
            return None;
        }
        let place = self.place();
        let answer = self.cache.lookup(&self.key(query, params))?;
        let kept_for = self.cache.age(&answer).as_millis();
        let mut run = Bytes::from(answer);
        if run.len() < AGE_LEN {
            return Some(Err(HeliosError::Protocol("an answer is cut short".into())));
        }
        let age = u128::from(run.get_u32_le()) + kept_for;
        let facts = Facts {
            source: AnswerSource::Near,
            age_ms: u32::try_from(age).unwrap_or(u32::MAX),
            status: b'I',
            position: place,
            near: None,
        };
        Some(Reply::new(run, facts))
    }

    /// Keeps an answer that may be kept, unless something that it depends on has changed since.
    pub(crate) fn keep(&self, query: &Query, params: &[u8], reply: &Reply, took: Duration) {
        let Some(Dependencies { as_of, slots }) = &reply.facts().near else {
            return;
        };
        let slots: Vec<_> = slots.iter().map(|slot| self.slot(*slot)).collect();
        // The versions are read here, before it is asked whether the answer is good still: a change behind that
        // question makes the entry invalid.
        let flight = self.cache.join(&self.key(query, params), &slots);
        let is_current = || self.cache.versions().is_current_at(&slots, Place(*as_of));
        if let Flight::Leader(fill) = flight
            && is_current()
        {
            let age = reply.facts().age_ms.to_le_bytes();
            fill.complete_with(&[&age[..], reply.bytes()].concat(), took);
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

    const HERE: u64 = 1;

    fn query(text: &str) -> Query {
        Query {
            text: text.to_owned(),
            ..Query::default()
        }
    }

    fn at(instance: u64, place: u64) -> Position {
        Position { instance, place }
    }

    fn unproven(max_lag: Duration) -> Arc<Near> {
        Near::new(HERE, 1 << 20, max_lag)
    }

    fn near() -> Arc<Near> {
        let near = unproven(Duration::from_secs(60));
        near.on_push(Push::Began(10));
        near.prove(Instant::now());
        near
    }

    fn reply(as_of: u64, slots: &[u32]) -> Reply {
        let facts = Facts {
            age_ms: 7,
            near: Some(Dependencies {
                as_of,
                slots: slots.to_vec(),
            }),
            ..Facts::default()
        };
        let run = Bytes::from_static(b"C\0\0\0\x0dSELECT 0\0");
        Reply::new(run, facts).expect("whole")
    }

    fn keep(near: &Near, text: &str, as_of: u64, slots: &[u32]) {
        near.keep(&query(text), b"", &reply(as_of, slots), Duration::ZERO);
    }

    fn has(near: &Near, text: &str) -> bool {
        near.answer(&query(text), b"").is_some()
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
    fn what_is_kept_comes_back_with_its_age_and_place() {
        let near = near();
        keep(&near, "a", 10, &[1]);
        tell(&near, 11, &[2]);
        let answer = near.answer(&query("a"), b"").expect("kept").expect("whole");
        assert_eq!(answer.bytes(), reply(10, &[]).bytes());
        let facts = answer.facts();
        assert_eq!((facts.source, facts.position), (AnswerSource::Near, 11));
        assert!(facts.age_ms >= 7, "{facts:?}");
        assert!(near.answer(&query("a"), b"other").is_none());
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
        let near = unproven(Duration::from_secs(60));
        near.prove(Instant::now());
        assert!(!near.is_good(), "not begun");
        near.on_push(Push::Began(10));
        near.learn(at(HERE, 10));
        assert!(near.is_good());
        near.learn(at(HERE, 11));
        assert!(!near.is_good(), "something later is known");
        tell(&near, 11, &[5]);
        assert!(near.is_good());
        near.on_push(Push::Ended);
        assert!(!near.is_good(), "ended");

        let near = unproven(Duration::from_millis(50));
        near.on_push(Push::Began(10));
        assert!(!near.is_good(), "not proven");
        let asked = Instant::now();
        std::thread::sleep(Duration::from_millis(60));
        near.prove(asked);
        assert!(!near.is_good(), "proven for a time too long ago");
        near.prove(Instant::now());
        assert!(near.is_good());
    }

    #[test]
    fn what_another_gateway_told_empties_it_until_its_own_has_answered_again() {
        let near = near();
        keep(&near, "a", 10, &[1]);
        near.learn(Position::default());
        assert!(has(&near, "a"), "nothing was learnt");
        near.learn(at(2, 1));
        assert!(!near.is_good());
        near.learn(at(HERE, 10));
        assert!(near.is_good() && !has(&near, "a"));
        keep(&near, "a", 10, &[1]);
        assert!(has(&near, "a"));
    }
}
