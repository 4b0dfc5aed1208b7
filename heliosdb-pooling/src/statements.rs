//! What became of each statement.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::fingerprint::QueryFingerprint;
use crate::latency::{Latency, Times};

/// Counts of one statement, shared with whoever runs it.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    refused: AtomicU64,
    executed: AtomicU64,
    /// Why it was refused last.
    refusal: Mutex<Option<&'static str>>,
    pub(crate) times: Mutex<Times>,
    /// The optimizer has forgotten the statement: what is counted here is not shown any more.
    is_forgotten: AtomicBool,
}

/// A statement that is counted, to be kept where it runs often: recording takes no lock but for times and refusals.
#[derive(Debug, Clone)]
pub struct StatementHandle(Arc<Counts>);

/// What is known of a statement.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StatementStats {
    /// The statement.
    pub fingerprint: QueryFingerprint,
    /// Times that it was answered from a cache.
    pub hits: u64,
    /// Times that it might have been, and was executed.
    pub misses: u64,
    /// Times that it was not considered.
    pub refused: u64,
    /// Why it was not considered the last time.
    pub refusal: Option<&'static str>,
    /// Times that it was sent to the server.
    pub executed: u64,
    /// Those executions whose time is known: of several statements in one go it is not.
    pub latency: Latency,
}

impl StatementStats {
    /// Times that it was asked for: executed, or answered from a cache.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.hits + self.executed
    }

    /// All its executions together whose time is known, in milliseconds.
    #[must_use]
    pub fn total_ms(&self) -> f64 {
        self.latency.mean_ms * self.latency.count as f64
    }
}

impl StatementHandle {
    pub(crate) fn new(counts: &Arc<Counts>) -> Self {
        Self(Arc::clone(counts))
    }

    /// It was answered from a cache.
    pub fn record_hit(&self) {
        self.0.hits.fetch_add(1, Ordering::Relaxed);
    }

    /// It might have been answered from a cache, and was not there.
    pub fn record_miss(&self) {
        self.0.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// It is not for a cache, or was not this time.
    pub fn record_refusal(&self, reason: &'static str) {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
        *self.0.refusal.lock() = Some(reason);
    }

    /// It is sent to the server.
    pub fn record_execution(&self) {
        self.0.executed.fetch_add(1, Ordering::Relaxed);
    }

    /// It was executed, and took so long.
    pub fn record_time(&self, took: Duration) {
        if !self.is_forgotten() {
            self.0.times.lock().record(took.as_secs_f64() * 1000.0);
        }
    }

    /// The statement made room for others: what is recorded here is not shown any more. Ask for a new handle.
    #[must_use]
    pub fn is_forgotten(&self) -> bool {
        self.0.is_forgotten.load(Ordering::Relaxed)
    }
}

impl Counts {
    pub(crate) fn stats(&self, fingerprint: QueryFingerprint) -> StatementStats {
        StatementStats {
            fingerprint,
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            executed: self.executed.load(Ordering::Relaxed),
            refusal: *self.refusal.lock(),
            latency: self.times.lock().summary(),
        }
    }

    /// Gives up all but a few bytes, for handles may be kept for long.
    pub(crate) fn forget(&self) {
        self.is_forgotten.store(true, Ordering::Relaxed);
        *self.times.lock() = Times::default();
    }
}
