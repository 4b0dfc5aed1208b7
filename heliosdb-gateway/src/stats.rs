//! Counts of what the gateway did, beside those that cache, pools and clients keep.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::error::ErrorKind;

/// Process-wide counts.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// Reads that went to the server without being considered for the cache, by reason.
    /// Why a lock: only requests that pay for a round trip to the server anyway come here.
    bypasses: Mutex<BTreeMap<&'static str, u64>>,
    errors: Mutex<BTreeMap<&'static str, u64>>,
    cancels: AtomicU64,
}

impl Stats {
    pub(crate) fn count_bypass(&self, reason: &'static str) {
        *self.bypasses.lock().entry(reason).or_default() += 1;
    }

    pub(crate) fn count_error(&self, kind: ErrorKind) {
        *self.errors.lock().entry(kind.label()).or_default() += 1;
    }

    pub(crate) fn count_cancel(&self) {
        self.cancels.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn bypasses(&self) -> BTreeMap<&'static str, u64> {
        self.bypasses.lock().clone()
    }

    pub(crate) fn errors(&self) -> BTreeMap<&'static str, u64> {
        self.errors.lock().clone()
    }

    pub(crate) fn cancels(&self) -> u64 {
        self.cancels.load(Ordering::Relaxed)
    }
}
