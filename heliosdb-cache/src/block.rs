//! What the cache keeps of an answer: one allocation with a count of references, handed out without a copy.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use triomphe::ThinArc;

use crate::clock::{Moment, Tick};
use crate::lifetime::Times;
use crate::sync::{CountU32, Ordering};
use crate::types::{HashedStr, KeyRef};
use crate::version::{DependenciesRef, SlotId};

/// An answer with its key and all that is known of it. Cloning copies a pointer.
///
/// Behind the head lie, in this order: slots, [`Times`] if there are any, parameters, the text if it isn't shared, value.
#[derive(Clone)]
pub(crate) struct Block(ThinArc<Head, u8>);

struct Head {
    /// Of the versions of the slots.
    sum: u64,
    namespace: HashedStr,
    /// The text, where the key came with it in a form that can be shared.
    shared: Option<HashedStr>,
    created: Tick,
    /// A tick.
    accessed: CountU32,
    /// What computing it took, in milliseconds.
    cost_ms: f32,
    params_len: u32,
    /// 0 if it is shared.
    text_len: u32,
    slots: u16,
    has_times: bool,
}

/// Bytes of a block beside key, value and slots: the head, and the two words before it.
pub(crate) const BLOCK_OVERHEAD: usize = size_of::<Head>() + 2 * size_of::<usize>();

/// What is known of an answer besides itself and its key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) dependencies: DependenciesRef<'a>,
    pub(crate) times: Option<Times>,
    pub(crate) cost_ms: f64,
    pub(crate) now: Moment,
}

impl Block {
    pub(crate) fn new(key: &KeyRef<'_>, value: &[u8], facts: Facts<'_>) -> Self {
        /// Above this the buffer is not kept.
        const KEPT: usize = 64 << 10;
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let (slots, sum) = facts.dependencies.parts();
        let len = |len: usize| u32::try_from(len).expect("no text has four gigabytes");
        let shared = key.shared().cloned();
        let text = if shared.is_some() { "" } else { key.query() };
        let head = Head {
            sum,
            namespace: key.namespace().clone(),
            shared,
            created: facts.now.tick(),
            accessed: CountU32::new(facts.now.tick().0),
            cost_ms: narrow(facts.cost_ms),
            params_len: len(key.params().len()),
            text_len: len(text.len()),
            slots: u16::try_from(slots.len() / SLOT).expect("no query has so many tables"),
            has_times: facts.times.is_some(),
        };
        BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            buffer.extend_from_slice(slots);
            if let Some(times) = facts.times {
                buffer.extend_from_slice(&times.to_bytes());
            }
            buffer.extend_from_slice(key.params());
            buffer.extend_from_slice(text.as_bytes());
            buffer.extend_from_slice(value);
            let block = Self(ThinArc::from_header_and_slice(head, buffer));
            if buffer.capacity() > KEPT {
                *buffer = Vec::new();
            }
            block
        })
    }

    #[inline]
    pub(crate) fn dependencies(&self) -> DependenciesRef<'_> {
        let head = self.head();
        DependenciesRef::from_parts(&self.0.slice[..head.slots_len()], head.sum)
    }

    #[inline]
    pub(crate) fn times(&self) -> Option<Times> {
        let head = self.head();
        if !head.has_times {
            return None;
        }
        let bytes = self.0.slice[head.slots_len()..].first_chunk()?;
        Some(Times::from_bytes(bytes))
    }

    #[inline]
    pub(crate) fn matches(&self, key: &KeyRef<'_>) -> bool {
        let head = self.head();
        head.params_len as usize == key.params().len()
            && *key.params() == *self.params()
            && match (key.shared(), &head.shared) {
                // Most often the same allocation: then not a byte is compared.
                (Some(asked), Some(kept)) => asked == kept,
                _ => *key.query() == *self.text(),
            }
            && *key.namespace() == head.namespace
    }

    pub(crate) fn has_same_key(&self, other: &Self) -> bool {
        let (head, others) = (self.head(), other.head());
        self.params() == other.params()
            && match (&head.shared, &others.shared) {
                (Some(own), Some(others)) => own == others,
                _ => self.text() == other.text(),
            }
            && head.namespace == others.namespace
    }

    /// The key, hashed anew.
    pub(crate) fn key(&self) -> KeyRef<'_> {
        let head = self.head();
        match &head.shared {
            Some(text) => KeyRef::prepared(text, self.params(), &head.namespace),
            None => KeyRef::new(self.text(), self.params(), &head.namespace),
        }
    }

    pub(crate) fn value(&self) -> &[u8] {
        &self.0.slice[self.head().value_at()..]
    }

    /// Bytes of slots, key and value. A text that entries share counts with each.
    pub(crate) fn len(&self) -> usize {
        let shared = self.head().shared.as_ref().map_or(0, |text| text.len());
        self.0.slice.len() + shared
    }

    pub(crate) fn created(&self) -> Tick {
        self.head().created
    }

    #[inline]
    pub(crate) fn cost_ms(&self) -> f32 {
        self.head().cost_ms
    }

    pub(crate) fn accessed(&self) -> Tick {
        Tick(self.head().accessed.load(Ordering::Relaxed))
    }

    /// Notes the time of a use; writes nothing where that was noted already, so that readers of one answer don't take its
    /// memory from each other.
    #[inline]
    pub(crate) fn touch(&self, now: Tick) {
        if self.accessed() != now {
            self.head().accessed.store(now.0, Ordering::Relaxed);
        }
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self.head(), other.head())
    }

    fn head(&self) -> &Head {
        &self.0.header.header
    }

    fn params(&self) -> &[u8] {
        let at = self.head().params_at();
        &self.0.slice[at..at + self.head().params_len as usize]
    }

    fn text(&self) -> &str {
        let head = self.head();
        if let Some(text) = &head.shared {
            return text;
        }
        let at = head.text_at();
        let text = &self.0.slice[at..at + head.text_len as usize];
        std::str::from_utf8(text).expect("it was a str")
    }
}

/// Bytes of a slot's index.
const SLOT: usize = 4;

impl Head {
    fn slots_len(&self) -> usize {
        usize::from(self.slots) * SLOT
    }

    fn params_at(&self) -> usize {
        let times = if self.has_times { Times::BYTES } else { 0 };
        self.slots_len() + times
    }

    fn text_at(&self) -> usize {
        self.params_at() + self.params_len as usize
    }

    fn value_at(&self) -> usize {
        self.text_at() + self.text_len as usize
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("key", &self.key())
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// Seven digits of a time are more than its measurement has.
#[expect(
    clippy::cast_possible_truncation,
    reason = "what is too large becomes infinite, and compares as it should"
)]
fn narrow(milliseconds: f64) -> f32 {
    milliseconds as f32
}

/// The bytes of an answer, shared with the cache: cloning copies a pointer and raises a count.
///
/// It lives as long as it is held, whatever becomes of the entry. [`Bytes`] can be made of it at the cost of one small
/// allocation, and it of [`Bytes`] at none.
#[derive(Clone)]
pub struct Answer(Source);

#[derive(Clone)]
enum Source {
    Block(Block),
    Bytes(Bytes),
}

impl Answer {
    /// None if it is not of this cache.
    pub(crate) fn block(&self) -> Option<&Block> {
        match &self.0 {
            Source::Block(block) => Some(block),
            Source::Bytes(_) => None,
        }
    }
}

impl Answer {
    /// What it depends on; nothing if it is not of this cache.
    pub fn slots(&self) -> impl Iterator<Item = SlotId> {
        let slots = self.block().map(|block| block.dependencies().slots());
        slots.into_iter().flatten()
    }

    /// How long ago it was computed, by the cache's clock; `None` if it is not of this cache.
    pub(crate) fn age(&self, now: Moment) -> Option<Duration> {
        let created = self.block()?.created();
        Some(now.tick().since(created))
    }
}

impl From<Block> for Answer {
    fn from(block: Block) -> Self {
        Self(Source::Block(block))
    }
}

impl From<Bytes> for Answer {
    fn from(bytes: Bytes) -> Self {
        Self(Source::Bytes(bytes))
    }
}

impl From<Vec<u8>> for Answer {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<Answer> for Bytes {
    fn from(answer: Answer) -> Self {
        match answer.0 {
            Source::Block(_) => Self::from_owner(answer),
            Source::Bytes(bytes) => bytes,
        }
    }
}

impl Deref for Answer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Source::Block(block) => block.value(),
            Source::Bytes(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Answer {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

impl Eq for Answer {}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.escape_ascii())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::lifetime::Lifetime;
    use crate::version::VersionSlots;

    fn block(times: Option<Times>, is_shared: bool) -> Block {
        let versions = VersionSlots::new(8);
        let observed = versions
            .observe(&[versions.slot(1), versions.slot(2)])
            .expect("nothing pending");
        let namespace = HashedStr::new("db");
        let facts = Facts {
            dependencies: observed.as_ref(),
            times,
            cost_ms: 7.5,
            now: Moment(5000),
        };
        let text = HashedStr::new("SELECT 1");
        let key = if is_shared {
            KeyRef::prepared(&text, b"pp", &namespace)
        } else {
            KeyRef::new(&text, b"pp", &namespace)
        };
        let block = Block::new(&key, b"value", facts);
        assert_eq!(block.len(), block.head().params_at() + 2 + 8 + 5);
        assert_eq!(block.dependencies(), observed.as_ref());
        block
    }

    #[test]
    fn all_parts_come_back() {
        let times = Times::new(&Lifetime::of(Duration::from_secs(1)), Moment(5000), 0.0);
        for (times, is_shared) in [(None, false), (times, false), (None, true), (times, true)] {
            let block = block(times, is_shared);
            let namespace = HashedStr::new("db");
            let key = KeyRef::new("SELECT 1", b"pp", &namespace);
            assert!(block.matches(&key));
            assert!(block.matches(&KeyRef::prepared(
                &HashedStr::new("SELECT 1"),
                b"pp",
                &namespace
            )));
            assert_eq!(block.key().to_key(), key.to_key());
            assert_eq!(block.times(), times);
            assert_eq!(block.cost_ms(), 7.5);
            assert_eq!(block.created(), Moment(5000).tick());
            assert_eq!(Answer::from(block), "value");
        }
    }

    #[test]
    fn keys_that_differ_in_how_they_are_split_do_not_match() {
        let blocks = [block(None, false), block(None, true)];
        assert!(blocks[0].has_same_key(&blocks[1]));
        let (db, other) = (HashedStr::new("db"), HashedStr::new("other"));
        for (text, params, namespace) in [
            ("pSELECT 1", &b"p"[..], &db),
            ("SELECT 1", b"pp", &other),
            ("SELECT 2", b"pp", &db),
            ("SELECT 1", b"pq", &db),
        ] {
            for block in &blocks {
                assert!(!block.matches(&KeyRef::new(text, params, namespace)));
                let text = HashedStr::new(text);
                assert!(!block.matches(&KeyRef::prepared(&text, params, namespace)));
            }
        }
    }

    #[test]
    fn an_answer_and_its_bytes_are_the_same_memory() {
        let answer = Answer::from(block(None, false));
        let at = answer.as_ptr();
        let bytes = Bytes::from(answer);
        assert_eq!(bytes.as_ptr(), at);
        assert_eq!(Answer::from(bytes.clone()).as_ptr(), at);
        assert_eq!(format!("{:?}", Answer::from(bytes)), "b\"value\"");
    }
}
