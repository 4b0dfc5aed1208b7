//! The history as clients tell it: the one clock, and the one order of ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::checker::{Checker, Counts, Fate, Outcome, Promises, Read, Written};
use crate::history::{ClientId, Key, Level, Origin, Tag, Time, What};
use crate::violation::{Kind, Violation};

/// A [`Checker`] for clients that run at the same time.
#[derive(Debug)]
pub(crate) struct Recorder {
    began: Instant,
    /// Why a lock: the end of an operation is stamped and checked in one step, so that ends are checked in their order. What
    /// a stamp is late by makes the check weaker, never wrong. Nothing is awaited under it.
    checker: Mutex<Checker>,
    stop: AtomicBool,
    reads_max: u64,
    violations_max: usize,
}

impl Recorder {
    /// Asks the clients to stop after so many reads or violations.
    pub(crate) fn new(promises: Promises, reads_max: u64, violations_max: usize) -> Self {
        Self {
            began: Instant::now(),
            checker: Mutex::new(Checker::new(promises)),
            stop: AtomicBool::new(false),
            reads_max,
            violations_max,
        }
    }

    pub(crate) fn join(&self, origin: Origin, level: Level) -> ClientId {
        self.checker.lock().join(origin, level)
    }

    /// To be asked before a request is sent.
    pub(crate) fn now(&self) -> Time {
        self.began.elapsed().into()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(crate) fn begin_write(
        &self,
        client: ClientId,
        fate: Fate,
        makes: Option<(Key, u64)>,
    ) -> Tag {
        let mut checker = self.checker.lock();
        let now = self.now();
        checker.begin_write(client, fate, makes, now)
    }

    pub(crate) fn end_write(&self, write: &Written) {
        self.with(|checker, now| checker.end_write(write, now));
    }

    pub(crate) fn abort(&self, tag: Tag, what: What) {
        self.end_write(&Written {
            tag,
            what,
            start: Time::default(),
            made: Vec::new(),
            outcome: Outcome::Aborted,
        });
    }

    pub(crate) fn read(&self, read: &Read) {
        self.with(|checker, now| checker.read(read, now));
    }

    pub(crate) fn own_read(
        &self,
        client: ClientId,
        what: What,
        expected: (Key, u64, Tag),
        seen: Option<(u64, Option<Tag>)>,
    ) {
        self.with(|checker, _| checker.own_read(client, what, expected, seen));
    }

    pub(crate) fn constant_changed(
        &self,
        client: ClientId,
        what: What,
        kind: Kind,
        expected: &str,
        found: &str,
    ) {
        self.with(|checker, _| checker.constant_changed(client, what, kind, expected, found));
    }

    fn with(&self, check: impl FnOnce(&mut Checker, Time)) {
        let mut checker = self.checker.lock();
        let now = self.now();
        check(&mut checker, now);
        if checker.counts().reads >= self.reads_max
            || checker.violations().len() >= self.violations_max
        {
            self.stop();
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.checker.lock().counts()
    }

    pub(crate) fn violations(&self) -> Vec<Violation> {
        self.checker.lock().violations().to_vec()
    }
}
