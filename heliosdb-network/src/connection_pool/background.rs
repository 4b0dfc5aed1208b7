//! What a pool does unasked. Every task holds a weak pointer to it, and ends with it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::meta::Item;
use super::{Connector, Disposition, EnhancedConnectionPool, Lease, now};

/// Health checks at the same time.
const CHECKS_MAX: usize = 16;

impl<C: Connector> EnhancedConnectionPool<C> {
    /// Closes what is too old or idle for too long, opens successors, refills to `min_idle`, and reports what has been on
    /// loan for too long.
    pub(super) fn start_expiration_task(&self) {
        let (this, gone) = (self.this.clone(), Arc::clone(&self.gone));
        // What is to be kept ready is opened at once.
        let first = match self.config.min_idle {
            0 => self.until_next_round(),
            _ => Duration::ZERO,
        };
        let waited_for = Arc::clone(&self.waited_for);
        self.is_watching.store(true, Ordering::Release);
        // Not in the task alone: it may be dropped before it runs.
        let watch = Watch(this.clone());
        tokio::spawn(async move {
            let _watch = watch;
            let mut round_at = now().checked_add(first);
            let mut wake_at = round_at;
            while let Some(pool) = wait(&this, &gone, &waited_for, wake_at).await {
                let now = now();
                let expires_at = pool.exchange.expire(&pool.config, now);
                // For those who have waited long enough for the reserve; and what was begun for others may be given up.
                pool.connect_if_needed();
                pool.unneeded.notify_waiters();
                if round_at.is_none_or(|at| now < at) {
                    wake_at = expires_at.into_iter().chain(round_at).min();
                    continue;
                }
                let expired = pool.exchange.take_expired(&pool.config, now);
                if !expired.is_empty() {
                    tracing::info!("Removed {} expired connections", expired.len());
                }
                pool.close_all(expired);
                pool.connect_if_needed();
                pool.report_overdue();
                round_at = now.checked_add(pool.until_next_round());
                wake_at = expires_at.into_iter().chain(round_at).min();
            }
        });
    }

    /// What becomes idle in the meantime is not idle for too long before that.
    fn until_next_round(&self) -> Duration {
        /// Where a renewal is overdue, for want of room or of a server.
        const LEAST: Duration = Duration::from_millis(100);
        let until = |at: Instant| at.saturating_duration_since(now()).max(LEAST);
        let renewal = self.exchange.next_renewal().map(until);
        let idle_end = self.exchange.next_idle_end(&self.config).map(until);
        let idle_timeout = self.config.idle_timeout.map(|timeout| timeout.max(LEAST));
        let sooner = [renewal, idle_end, idle_timeout].into_iter().flatten();
        sooner.fold(self.interval(), Duration::min)
    }

    fn report_overdue(&self) {
        let Some(threshold) = self.config.leak_threshold else {
            return;
        };
        for lease in self.exchange.overdue(threshold, now()) {
            tracing::warn!(
                connection = lease.connection,
                acquired_at = %lease.place,
                held = ?lease.held,
                "a connection has been on loan for long: is it leaked?"
            );
        }
    }

    /// Checks the idle connections at each interval, each of them checked out and several at a time.
    pub(super) fn start_health_check_task(&self) {
        let (this, gone, interval) = (self.this.clone(), Arc::clone(&self.gone), self.interval());
        tokio::spawn(async move {
            while let Some(mut pool) = next_round(&this, &gone, interval).await {
                let round = now();
                loop {
                    // Those that nobody used since the last round; others are left to those who come meanwhile.
                    let idle = pool
                        .exchange
                        .take_to_check(CHECKS_MAX, pool.interval() / 2, round);
                    let checks: Vec<_> = idle.into_iter().map(|idle| pool.check(idle)).collect();
                    drop(pool);
                    if checks.is_empty() {
                        break;
                    }
                    for check in checks {
                        let _ = check.await;
                    }
                    match this.upgrade() {
                        Some(still_there) => pool = still_there,
                        None => return,
                    }
                }
            }
        });
    }

    /// Checks one connection in a task of its own, and puts it back as idle as it was.
    fn check(&self, idle: Item<C::Connection>) -> JoinHandle<()> {
        let lease = self.lease(idle);
        let checking = Checking(lease.pool_handle());
        tokio::spawn(async move {
            let (id, timeout) = (lease.meta().id, lease.pool().config.health_check_timeout);
            let mut suspect = Suspect(Some(lease));
            let checked = tokio::time::timeout(timeout, suspect.check()).await;
            drop(checking);
            if !matches!(checked, Ok(true)) {
                tracing::warn!(
                    connection = id,
                    "closing a connection that failed its health check"
                );
            } else if let Some(lease) = suspect.cleared() {
                let pool = lease.pool_handle();
                let mut held = lease.into_held();
                held.meta.verified = now();
                pool.put_back(held, now());
            }
        })
    }
}

/// The expiration task, which watches over those who wait until it ends with its runtime.
struct Watch<C: Connector>(Weak<EnhancedConnectionPool<C>>);

impl<C: Connector> Drop for Watch<C> {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.is_watching.store(false, Ordering::Release);
            pool.exchange.unwatch();
        }
    }
}

/// A lease whose connection is being checked or reset: closed unless [cleared](Self::cleared), whatever becomes of the
/// future that does it.
pub(super) struct Suspect<C: Connector>(pub(super) Option<Lease<C>>);

impl<C: Connector> Suspect<C> {
    /// True if the peer is well and nothing is left to be done.
    pub(super) async fn check(&mut self) -> bool {
        let Some(lease) = &mut self.0 else {
            return false;
        };
        let connector = lease.connector();
        connector.check(lease).await.is_ok() && connector.disposition(lease) == Disposition::Clean
    }

    /// True if the connection is as good as new.
    pub(super) async fn reset(&mut self) -> bool {
        let Some(lease) = &mut self.0 else {
            return false;
        };
        let connector = lease.connector();
        connector.reset(lease).await.is_ok() && connector.disposition(lease) == Disposition::Clean
    }

    pub(super) fn cleared(mut self) -> Option<Lease<C>> {
        self.0.take()
    }
}

impl<C: Connector> Drop for Suspect<C> {
    fn drop(&mut self) {
        if let Some(lease) = self.0.take() {
            lease.discard();
        }
    }
}

/// A health check under way; counted out again whatever becomes of it.
struct Checking<C: Connector>(Arc<EnhancedConnectionPool<C>>);

impl<C: Connector> Drop for Checking<C> {
    fn drop(&mut self) {
        self.0.exchange.checked();
    }
}

/// Waits for the next round of a background task. `None`: the pool is gone.
pub(super) async fn next_round<C: Connector>(
    this: &Weak<EnhancedConnectionPool<C>>,
    gone: &Notify,
    interval: Duration,
) -> Option<Arc<EnhancedConnectionPool<C>>> {
    let ended = gone.notified();
    if this.strong_count() == 0 {
        return None;
    }
    tokio::select! {
        () = tokio::time::sleep(interval) => this.upgrade(),
        () = ended => None,
    }
}

/// Waits until then, or until somebody waits whose time nobody watches. `None`: the pool is gone.
async fn wait<C: Connector>(
    this: &Weak<EnhancedConnectionPool<C>>,
    gone: &Notify,
    waited_for: &Notify,
    until: Option<Instant>,
) -> Option<Arc<EnhancedConnectionPool<C>>> {
    let ended = gone.notified();
    if this.strong_count() == 0 {
        return None;
    }
    let until = async {
        match until {
            Some(until) => tokio::time::sleep_until(until.into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = until => this.upgrade(),
        () = waited_for.notified() => this.upgrade(),
        () = ended => None,
    }
}
