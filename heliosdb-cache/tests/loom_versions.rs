//! Version slots under every interleaving of their atomic operations: what a write replaced is served to nobody who
//! can know of the write, be it that it was acknowledged or that its effect was seen in the database.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p heliosdb-cache --release --test loom_versions`, with a target
//! directory of its own.
//!
//! To see models fail, change one of these:
//! * In `src/version.rs`, `Drop for WriteIntent`: move the call of `invalidate` behind the loop that takes the marks
//!   away.
//! * There, `is_current`: remove the line that looks at `pending`, or look at the version first.
//! * There, `WriteIntent::extend`: note the slots before they are marked, or not at all.
//! * There, `Observation::firm`: give up another slot than the provisional one, or leave its version in the sum.
//! * Here, `World::fill`: swap the two lines, so that the versions are read after the database.
#![cfg(loom)]

use heliosdb_cache::{Dependencies, SlotId, VersionSlots};
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// A database of one value that only grows, so that a larger one is a newer one, and a cache of one entry.
struct World {
    versions: std::sync::Arc<VersionSlots>,
    slot: SlotId,
    database: AtomicU64,
    /// The newest value whose writer was told that it is done.
    acknowledged: AtomicU64,
    entry: Mutex<Option<(u64, Dependencies)>>,
}

impl World {
    fn new() -> Arc<Self> {
        let versions = VersionSlots::new(1);
        Arc::new(Self {
            slot: versions.slot(0),
            versions,
            database: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            entry: Mutex::new(None),
        })
    }

    /// As a client's write goes through the cache.
    fn write(&self, value: u64) {
        let intent = self.versions.begin_write(&[self.slot]);
        self.database.fetch_max(value, Ordering::AcqRel);
        intent.finish();
        self.acknowledged.fetch_max(value, Ordering::AcqRel);
    }

    /// As a miss goes through the cache.
    fn fill(&self) {
        let observed = self.versions.observe(&[self.slot]);
        let value = self.database.load(Ordering::Acquire);
        if let Some(observed) = observed {
            *self.entry.lock().expect("no panic") = Some((value, observed));
        }
    }

    /// What the cache serves.
    fn look_up(&self) -> Option<u64> {
        let entry = self.entry.lock().expect("no panic");
        entry
            .as_ref()
            .filter(|(_, observed)| self.versions.is_current(observed))
            .map(|(value, _)| *value)
    }

    fn assert_not_older_than(&self, known: u64) {
        if let Some(served) = self.look_up() {
            assert!(served >= known, "served {served}, and {known} was known");
        }
    }
}

/// A model of which not every interleaving can be tried in reasonable time: all those in which a thread is interrupted
/// at most twice where it need not be.
fn bounded_model(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(model);
}

/// Runs a part of a model on a thread of its own.
fn spawn(world: &Arc<World>, part: impl FnOnce(&World) + 'static) -> thread::JoinHandle<()> {
    let world = Arc::clone(world);
    thread::spawn(move || part(&world))
}

#[test]
fn after_the_acknowledgement_nobody_is_served_what_was_replaced() {
    loom::model(|| {
        let world = World::new();
        let writer = spawn(&world, |world| world.write(1));
        let filler = spawn(&world, World::fill);
        let known = world.acknowledged.load(Ordering::Acquire);
        world.assert_not_older_than(known);
        writer.join().expect("no panic");
        filler.join().expect("no panic");
        world.assert_not_older_than(1);
    });
}

#[test]
fn who_saw_the_new_value_in_the_database_is_not_served_the_old_one() {
    loom::model(|| {
        let world = World::new();
        world.fill();
        let writer = spawn(&world, |world| world.write(1));
        let seen = world.database.load(Ordering::Acquire);
        world.assert_not_older_than(seen);
        writer.join().expect("no panic");
    });
}

#[test]
fn who_was_served_the_new_value_is_not_served_the_old_one_that_a_late_fill_stores() {
    bounded_model(|| {
        let world = World::new();
        let writer = spawn(&world, |world| world.write(1));
        let filler = spawn(&world, World::fill);
        // Its own fill, then whatever the other fill put in its place.
        world.fill();
        let seen = world.look_up().unwrap_or(0);
        world.assert_not_older_than(seen);
        writer.join().expect("no panic");
        filler.join().expect("no panic");
    });
}

#[test]
fn the_end_of_one_write_does_not_hide_that_another_is_pending() {
    bounded_model(|| {
        let world = World::new();
        world.fill();
        let first = spawn(&world, |world| world.write(1));
        let second = spawn(&world, |world| world.write(2));
        let seen = world.database.load(Ordering::Acquire);
        world.assert_not_older_than(seen);
        first.join().expect("no panic");
        second.join().expect("no panic");
        world.assert_not_older_than(2);
    });
}

#[test]
fn a_write_to_two_slots_shows_in_both_or_in_none() {
    loom::model(|| {
        let versions = VersionSlots::new(2);
        let slots = [versions.slot(0), versions.slot(1)];
        assert_ne!(slots[0], slots[1]);
        let database = Arc::new(AtomicU64::new(0));
        let old = slots.map(|slot| versions.observe(&[slot]).expect("nothing is pending"));
        let writer = {
            let (versions, database) = (std::sync::Arc::clone(&versions), Arc::clone(&database));
            thread::spawn(move || {
                let intent = versions.begin_write(&slots);
                database.store(1, Ordering::Release);
                intent.finish();
            })
        };
        // Whoever can fill one table with the new value is not served the old value of the other.
        let filled = versions
            .observe(&slots[..1])
            .filter(|_| database.load(Ordering::Acquire) == 1);
        if filled.is_some() {
            assert!(!versions.is_current(&old[1]));
            assert!(!versions.is_current(&old[0]));
        }
        writer.join().expect("no panic");
        assert!(!versions.is_current(&old[0]) && !versions.is_current(&old[1]));
    });
}

/// A row read: found, it depends on the row alone; not found, on the rows to come too. One writer changes the row, another
/// puts a row there that was not known by its key.
#[test]
fn who_gave_a_slot_up_is_still_told_of_the_others() {
    bounded_model(|| {
        let versions = VersionSlots::new(2);
        let (row, to_come) = (versions.slot(0), versions.slot(1));
        assert_ne!(row, to_come);
        let database = Arc::new(AtomicU64::new(1));
        let writer = |slot: SlotId, value: u64| {
            let (versions, database) = (std::sync::Arc::clone(&versions), Arc::clone(&database));
            thread::spawn(move || {
                let intent = versions.begin_write(&[slot]);
                if value > 0 {
                    database.store(value, Ordering::Release);
                }
                intent.finish();
            })
        };
        let insert = writer(to_come, 0);
        let update = writer(row, 2);
        let observed = versions.observe_provisionally(&[row], Some(to_come));
        let found = database.load(Ordering::Acquire);
        let kept = observed.map(|observed| observed.firm());
        insert.join().expect("no panic");
        update.join().expect("no panic");
        if let Some(kept) = kept
            && versions.is_current(&kept)
        {
            assert_eq!(found, 2, "the row was changed");
        }
    });
}

/// A fill that began while a write was pending on what it may give up, and did not give it up.
#[test]
fn what_was_observed_while_a_write_was_pending_is_not_served_after_it() {
    bounded_model(|| {
        let world = World::new();
        let writer = spawn(&world, |world| world.write(1));
        let filler = spawn(&world, |world| {
            let observed = world
                .versions
                .observe_provisionally(&[], Some(world.slot))
                .expect("nothing firm is pending");
            let value = world.database.load(Ordering::Acquire);
            *world.entry.lock().expect("no panic") = Some((value, observed.all().clone()));
        });
        let known = world.acknowledged.load(Ordering::Acquire);
        world.assert_not_older_than(known);
        writer.join().expect("no panic");
        filler.join().expect("no panic");
        world.assert_not_older_than(1);
    });
}

#[test]
fn what_began_before_everything_was_invalidated_is_not_served_afterwards() {
    loom::model(|| {
        let world = World::new();
        let clearer = spawn(&world, |world| {
            world.database.store(1, Ordering::Release);
            world.versions.invalidate_all();
            world.acknowledged.store(1, Ordering::Release);
        });
        let filler = spawn(&world, World::fill);
        let known = world.acknowledged.load(Ordering::Acquire);
        world.assert_not_older_than(known);
        clearer.join().expect("no panic");
        filler.join().expect("no panic");
        world.assert_not_older_than(1);
    });
}

/// An answer kept elsewhere with the feed's position from before it was found valid.
#[test]
fn an_answer_kept_elsewhere_is_named_by_the_feed_before_the_writer_is_acknowledged() {
    loom::model(|| {
        let world = World::new();
        world.versions.feed();
        world.fill();
        let writer = spawn(&world, |world| world.write(1));
        let as_of = world.versions.feed().position();
        let kept = world.look_up();
        // What else this client can know: a value that it saw in the database.
        let seen = world.database.load(Ordering::Acquire);
        let known = world.acknowledged.load(Ordering::Acquire).max(seen);
        if kept.is_some_and(|kept| kept < known) {
            assert!(is_named_behind(&world, as_of));
        }
        writer.join().expect("no panic");
        if kept == Some(0) {
            assert!(is_named_behind(&world, as_of));
        }
    });
}

fn is_named_behind(world: &World, as_of: u64) -> bool {
    let mut changes = Vec::new();
    let read = world.versions.feed().read(as_of, &mut changes);
    read.is_err() || changes.contains(&world.slot)
}
