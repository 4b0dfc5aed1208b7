//! Whether cached answers may be served, and what is shown of it.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use heliosdb_network::postgres::replication::Lsn;
use parking_lot::Mutex;

use crate::fault::is_removed;

/// How the writes of others reach the cache of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It is not known yet, or nobody asked for a long time.
    Undecided,
    /// They do not; the reason in words.
    Wire(String),
    /// They come over the server's replication stream.
    Replication,
    /// They should, and can't: nothing is cached; the reason in words.
    Unavailable(String),
}

/// Open while it is proved that nothing older than `max_lag` is missing.
///
/// The proof has an end in time, which is compared with the clock for each hit: no task has to run for it to close.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Nanoseconds of [`now`] up to which it is open. [`ALWAYS`] where nothing has to be proved.
    open_until: AtomicU64,
    /// Somebody looked: the proof is worth renewing.
    used: AtomicBool,
    /// Why a lock: written when something changes, read by the console.
    shown: Mutex<Shown>,
    pub(super) transactions: AtomicU64,
    pub(super) changes: AtomicU64,
    pub(super) connects: AtomicU64,
    pub(super) closings: AtomicU64,
    pub(super) schema_changes: AtomicU64,
}

#[derive(Debug)]
struct Shown {
    mode: Mode,
    state: &'static str,
    applied: Lsn,
    /// The last proof: everything from before then is known.
    proved_at: Option<Instant>,
}

/// What is shown of a gate.
#[derive(Debug, Clone)]
pub(crate) struct GateView {
    pub(crate) mode: Mode,
    pub(crate) state: &'static str,
    pub(crate) is_open: bool,
    /// Age of the last proof.
    pub(crate) lag: Option<Duration>,
    pub(crate) applied: Lsn,
    pub(crate) transactions: u64,
    pub(crate) changes: u64,
    pub(crate) connects: u64,
    pub(crate) closings: u64,
    pub(crate) schema_changes: u64,
}

const ALWAYS: u64 = u64::MAX;
const CLOSED: u64 = 0;

/// All times of gates count from here.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

fn nanoseconds(at: Instant) -> u64 {
    let since = at.saturating_duration_since(*BEGINNING).as_nanos();
    // Neither of the values that mean something else.
    u64::try_from(since)
        .unwrap_or(ALWAYS - 1)
        .clamp(1, ALWAYS - 1)
}

impl Gate {
    /// Closed until a mode is decided on.
    pub(super) fn undecided() -> Self {
        LazyLock::force(&BEGINNING);
        Self {
            open_until: AtomicU64::new(CLOSED),
            used: AtomicBool::new(true),
            shown: Mutex::new(Shown {
                mode: Mode::Undecided,
                state: "starting",
                applied: Lsn(0),
                proved_at: None,
            }),
            transactions: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            connects: AtomicU64::new(0),
            closings: AtomicU64::new(0),
            schema_changes: AtomicU64::new(0),
        }
    }

    /// May a cached answer be served, or one be stored, now?
    pub(crate) fn is_open(&self) -> bool {
        let until = self.open_until.load(Ordering::Acquire);
        if until == ALWAYS || is_removed("gate") {
            return true;
        }
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        until != CLOSED && nanoseconds(Instant::now()) <= until
    }

    /// Why it is closed, as a metric label.
    pub(crate) fn refusal(&self) -> &'static str {
        let shown = self.shown.lock();
        match shown.mode {
            Mode::Replication if shown.state == FOLLOWING => "replication lag",
            Mode::Replication => "replication down",
            Mode::Undecided | Mode::Wire(_) | Mode::Unavailable(_) => "replication unavailable",
        }
    }

    pub(super) fn mode(&self) -> Mode {
        self.shown.lock().mode.clone()
    }

    /// True if it is proved by the replication stream.
    pub(crate) fn is_replication(&self) -> bool {
        self.shown.lock().mode == Mode::Replication
    }

    /// Closes it, except for wire mode, where there is nothing to prove.
    pub(super) fn set_mode(&self, mode: Mode) {
        let until = if matches!(mode, Mode::Wire(_)) {
            ALWAYS
        } else {
            CLOSED
        };
        let mut shown = self.shown.lock();
        shown.state = match &mode {
            Mode::Undecided => "starting",
            Mode::Wire(_) => "wire",
            Mode::Replication => "connecting",
            Mode::Unavailable(_) => "unavailable",
        };
        shown.mode = mode;
        self.open_until.store(until, Ordering::Release);
    }

    pub(super) fn set_state(&self, state: &'static str) {
        self.shown.lock().state = state;
    }

    pub(super) fn set_applied(&self, applied: Lsn) {
        self.shown.lock().applied = applied;
    }

    /// Everything that was committed before `at` is known: it is open for `max_lag` from then on.
    pub(super) fn prove(&self, at: Instant, max_lag: Duration) {
        self.shown.lock().proved_at = Some(at);
        self.open_until
            .store(nanoseconds(at + max_lag), Ordering::Release);
    }

    pub(super) fn close(&self) {
        self.open_until.store(CLOSED, Ordering::Release);
    }

    /// True if somebody looked since the last call.
    pub(super) fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn view(&self) -> GateView {
        let until = self.open_until.load(Ordering::Acquire);
        let shown = self.shown.lock();
        GateView {
            mode: shown.mode.clone(),
            state: shown.state,
            is_open: until == ALWAYS || until != CLOSED && nanoseconds(Instant::now()) <= until,
            lag: shown.proved_at.map(|at| at.elapsed()),
            applied: shown.applied,
            transactions: self.transactions.load(Ordering::Relaxed),
            changes: self.changes.load(Ordering::Relaxed),
            connects: self.connects.load(Ordering::Relaxed),
            closings: self.closings.load(Ordering::Relaxed),
            schema_changes: self.schema_changes.load(Ordering::Relaxed),
        }
    }
}

/// The state in which changes arrive.
pub(super) const FOLLOWING: &str = "following";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_opens_it_for_as_long_as_it_holds_and_no_longer() {
        let gate = Gate::undecided();
        assert!(!gate.is_open());
        gate.set_mode(Mode::Replication);
        let now = Instant::now();
        gate.prove(now, Duration::from_secs(60));
        assert!(gate.is_open());
        // The same proof, seen later.
        std::thread::sleep(Duration::from_millis(2));
        gate.prove(now, Duration::from_millis(1));
        assert!(!gate.is_open());
        gate.prove(Instant::now(), Duration::from_secs(60));
        gate.close();
        assert!(!gate.is_open());
    }

    #[test]
    fn only_wire_mode_needs_no_proof() {
        let gate = Gate::undecided();
        gate.set_mode(Mode::Wire("because".to_owned()));
        assert!(gate.is_open());
        gate.set_mode(Mode::Unavailable("because".to_owned()));
        assert!(!gate.is_open());
    }
}
