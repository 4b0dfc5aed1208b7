//! One computation for each missing key: the low-level form, in which waiters are told to look again.
//!
//! [`CacheManager::join`](crate::CacheManager::join) is the form that hands the value over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::error::{CacheError, Result};
use crate::sync::Mutex;
use crate::types::QueryKey;

/// Lets one caller compute a key while the others wait.
#[derive(Debug)]
pub struct StampedeProtection {
    in_flight: InFlight,
    timeout: Duration,
    max_in_flight: usize,
}

/// The computations under way, shared with the guards.
///
/// Why one lock: finding a flight, checking the capacity and registering a flight must be one step. Nothing is awaited
/// or woken under it.
type InFlight = Arc<Mutex<HashMap<QueryKey, Arc<Flight>>>>;

/// A computation under way. Who it belongs to is told by pointer, never by key.
#[derive(Debug)]
struct Flight {
    /// Closed when the computation ends, however it ends: wakes all waiters at once.
    ended: Semaphore,
    /// From then on a waiter may take the key over. `None`: in no time that a clock can count to.
    takeover_at: Option<Instant>,
    /// The flight this one took the key over from: its waiters are still there, and this one's end is theirs too.
    before: Mutex<Option<Arc<Self>>>,
}

impl StampedeProtection {
    /// `timeout` is how long a waiter waits before it may take over; at most `max_in_flight` keys are computed at the
    /// same time.
    #[must_use]
    pub fn with_config(timeout: Duration, max_in_flight: usize) -> Self {
        Self {
            in_flight: InFlight::default(),
            timeout,
            max_in_flight,
        }
    }

    /// `Some(guard)`: compute, store the value, drop the guard. `None`: somebody else has just done so; look again.
    ///
    /// The first to come computes. If that takes longer than the timeout, one waiter takes over, and one more with
    /// each further timeout; all others go on waiting and wake when any of the owners ends.
    ///
    /// # Errors
    /// [`CacheError::Overload`] if as many keys are in flight as are allowed.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no trace.
    pub async fn try_acquire(&self, key: &QueryKey) -> Result<Option<ComputeGuard>> {
        let joined = {
            let mut in_flight = self.in_flight.lock();
            if let Some(flight) = in_flight.get(key) {
                Arc::clone(flight)
            } else {
                if in_flight.len() >= self.max_in_flight {
                    return Err(CacheError::overload());
                }
                let flight = self.begin(None);
                in_flight.insert(key.clone(), Arc::clone(&flight));
                return Ok(Some(self.guard(key, flight)));
            }
        };
        loop {
            // The semaphore never has a permit: acquiring ends only when it is closed.
            if tokio::time::timeout(self.timeout, joined.ended.acquire())
                .await
                .is_ok()
            {
                return Ok(None);
            }
            if let Some(guard) = self.take_over(key) {
                return Ok(Some(guard));
            }
        }
    }

    /// Keys being computed.
    #[must_use]
    pub fn in_flight_count(&self) -> usize {
        self.in_flight.lock().len()
    }

    /// Replaces the flight that is registered now, if it has had its time. The owner it belongs to is not disturbed.
    fn take_over(&self, key: &QueryKey) -> Option<ComputeGuard> {
        let mut in_flight = self.in_flight.lock();
        let registered = in_flight.get(key)?;
        if registered.takeover_at.is_none_or(|at| Instant::now() < at) {
            return None;
        }
        let flight = self.begin(Some(Arc::clone(registered)));
        in_flight.insert(key.clone(), Arc::clone(&flight));
        drop(in_flight);
        tracing::warn!(waited = ?self.timeout, "a computation takes longer than its waiters wait: one takes over");
        Some(self.guard(key, flight))
    }

    fn begin(&self, before: Option<Arc<Flight>>) -> Arc<Flight> {
        Arc::new(Flight {
            ended: Semaphore::new(0),
            takeover_at: Instant::now().checked_add(self.timeout),
            before: Mutex::new(before),
        })
    }

    fn guard(&self, key: &QueryKey, flight: Arc<Flight>) -> ComputeGuard {
        ComputeGuard {
            key: key.clone(),
            flight,
            in_flight: Arc::clone(&self.in_flight),
        }
    }
}

/// The right to compute a key. Dropping it, with the value stored or not, wakes the waiters.
#[derive(Debug)]
#[must_use = "dropping the guard ends the computation"]
pub struct ComputeGuard {
    key: QueryKey,
    flight: Arc<Flight>,
    in_flight: InFlight,
}

impl Drop for ComputeGuard {
    fn drop(&mut self) {
        {
            let mut in_flight = self.in_flight.lock();
            // Another may have taken over: what is registered then is not ours to remove.
            if in_flight
                .get(&self.key)
                .is_some_and(|registered| Arc::ptr_eq(registered, &self.flight))
            {
                in_flight.remove(&self.key);
            }
        }
        let mut ended = Some(Arc::clone(&self.flight));
        while let Some(flight) = ended {
            flight.ended.close();
            ended = flight.before.lock().take();
        }
    }
}
