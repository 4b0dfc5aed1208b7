//! The whole cache (store, flights and versions together) under every interleaving of a writer and readers: nobody is
//! given a value that the database had replaced before the question was asked, by a hit or by another's computation.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p heliosdb-cache --release --test loom_cache`, with a target directory
//! of its own.
//!
//! To see it fail, change one of these:
//! * In `src/version.rs`, `WriteIntent::extend`: mark no slot.
//! * There, `is_current`: always say yes, or ignore the marks.
//! * In `src/cache_manager.rs`, `join`: join whatever computation is registered, or ask only for equal versions, without
//!   `is_current`.
//! * There, `Fill::drop`: remove the flight by its key, whosever it is.
//! * In `src/backend/memory.rs`, `reserve`: load, compare, and store.
//! * There, `insert_by_order`: release what was evicted only after there is room.
#![cfg(loom)]

use std::future::Future as _;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use heliosdb_cache::{
    CacheConfig, CacheManager, ENTRY_OVERHEAD, Flight, Follower, HashedStr, InMemoryBackend, KeyRef,
};
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

struct World {
    cache: CacheManager,
    namespace: HashedStr,
    /// One value that only grows: a larger one is a newer one.
    database: AtomicUsize,
}

/// What a question came to.
enum Answer {
    Value(usize),
    /// To be had when the leader is done, with what the database held when the question was asked.
    Later(usize, Follower),
}

impl World {
    fn new() -> loom::sync::Arc<Self> {
        let mut config = CacheConfig::default();
        config.version_slot_bits = 1;
        // Its lock isn't modelled.
        config.estimate_curve = false;
        loom::sync::Arc::new(Self {
            cache: CacheManager::new(Arc::new(InMemoryBackend::new(10_000)), config),
            namespace: HashedStr::new("test"),
            database: AtomicUsize::new(0),
        })
    }

    fn key(&self) -> KeyRef<'_> {
        KeyRef::new("SELECT", b"", &self.namespace)
    }

    fn write(&self) {
        let intent = self
            .cache
            .versions()
            .begin_write(&[self.cache.table_slot("t")]);
        self.database.fetch_add(1, Ordering::AcqRel);
        intent.finish();
    }

    fn ask(&self) -> Answer {
        let before = self.database.load(Ordering::Acquire);
        if let Some(value) = self.cache.lookup(&self.key()) {
            let value = usize::from(value[0]);
            assert!(
                value >= before,
                "asked when it was {before}, was served {value}"
            );
            return Answer::Value(value);
        }
        match self.cache.join(&self.key(), &[self.cache.table_slot("t")]) {
            Flight::Leader(fill) => {
                let value = self.database.load(Ordering::Acquire);
                let bytes = vec![u8::try_from(value).expect("few writes")];
                fill.complete(bytes.into(), Duration::ZERO);
                Answer::Value(value)
            }
            Flight::Follower(follower) => Answer::Later(before, follower),
            Flight::Uncached | Flight::Overload => {
                Answer::Value(self.database.load(Ordering::Acquire))
            }
        }
    }
}

impl Answer {
    /// Checks what a follower was handed. To be called when all leaders are done, so that it need not wait.
    fn check(self) {
        if let Self::Later(before, follower) = self {
            let mut wait = pin!(follower.wait());
            let mut context = Context::from_waker(Waker::noop());
            let Poll::Ready(Some(value)) = wait.as_mut().poll(&mut context) else {
                panic!("the leader completed");
            };
            let value = usize::from(value[0]);
            assert!(
                value >= before,
                "asked when it was {before}, was handed {value}"
            );
        }
    }
}

/// Not every interleaving can be tried in reasonable time: all those in which a thread is interrupted at most twice
/// where it need not be.
fn bounded_model(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(model);
}

#[test]
fn no_answer_is_older_than_its_question() {
    bounded_model(|| {
        let world = World::new();
        let writer = thread::spawn({
            let world = world.clone();
            move || world.write()
        });
        let reader = thread::spawn({
            let world = world.clone();
            move || world.ask()
        });
        let first = world.ask();
        writer.join().expect("no panic");
        // Acknowledged: from here on nobody gets the old value.
        let last = world.ask();
        if let Answer::Value(value) = last {
            assert_eq!(value, 1);
        }
        let other = reader.join().expect("no panic");
        for answer in [first, last, other] {
            answer.check();
        }
        assert_eq!(world.cache.stats().in_flight, 0);
    });
}

#[test]
fn a_computation_that_was_replaced_leaves_its_successor_registered() {
    bounded_model(|| {
        let world = World::new();
        let slots = [world.cache.table_slot("t")];
        let Flight::Leader(old) = world.cache.join(&world.key(), &slots) else {
            panic!("nobody else computes");
        };
        world.cache.versions().invalidate(&slots);
        let ends = thread::spawn(move || drop(old));
        let Flight::Leader(new) = world.cache.join(&world.key(), &slots) else {
            panic!("what is registered is out of date");
        };
        ends.join().expect("no panic");
        let Flight::Follower(follower) = world.cache.join(&world.key(), &slots) else {
            panic!("the new computation is not registered");
        };
        new.complete(vec![7].into(), Duration::ZERO);
        Answer::Later(7, follower).check();
        assert_eq!(world.cache.stats().in_flight, 0);
    });
}

/// Bytes of a value.
const VALUE: usize = 99;

#[test]
fn the_byte_bound_holds_while_two_store() {
    // Most of these are in shards of their own: a shard's lock does not make up for what the count lacks.
    for [text, other] in [["SELECT", "VALUES"], ["TABLE a", "TABLE b"]] {
        let charge = text.len() + VALUE + ENTRY_OVERHEAD;
        bounded_model(move || {
            // Room for one of the two.
            let backend = Arc::new(InMemoryBackend::new(2 * charge - 1));
            let mut config = CacheConfig::default();
            config.version_slot_bits = 1;
            config.max_entry_share = 1.0;
            // Its lock isn't modelled.
            config.estimate_curve = false;
            let cache = loom::sync::Arc::new(CacheManager::new(backend, config));
            let store = |cache: &CacheManager, text: &str| {
                let namespace = HashedStr::new("test");
                let key = KeyRef::new(text, b"", &namespace);
                cache.insert(&key, &[0; VALUE], &[], Duration::ZERO);
                let stats = cache.stats();
                assert!(stats.size_bytes <= stats.capacity_bytes, "{stats:?}");
            };
            let thread = thread::spawn({
                let cache = cache.clone();
                move || store(&cache, other)
            });
            store(&cache, text);
            thread.join().expect("no panic");
            let stats = cache.stats();
            assert_eq!((stats.entries, stats.evictions), (1, 1), "{stats:?}");
            assert_eq!(stats.size_bytes, charge);
        });
    }
}
