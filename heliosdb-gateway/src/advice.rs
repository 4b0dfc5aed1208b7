//! How large each pool should be.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use heliosdb_network::connection_pool::PoolWindow;
use heliosdb_pooling::advisor::{Advisor, Recommendation, Window};
use heliosdb_pooling::sizing::Goal;
use parking_lot::Mutex;

use crate::config::PoolAdvice;
use crate::gateway::Gateway;
use crate::upstream::ServerPool;

/// A pool is looked at this often.
const INTERVAL: Duration = Duration::from_secs(10);
/// What is advised at the most, where nothing is followed. Sets no limit to what is configured.
const SIZE_MAX: usize = 100;

/// What is observed of a pool, and advised.
#[derive(Debug)]
pub(crate) struct PoolAdvisor {
    /// Executions in the window, and their times in microseconds.
    executions: AtomicU64,
    execution_us: AtomicU64,
    /// Why a lock: once in each window, and by the console.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    advisor: Advisor,
    last: Option<(PoolWindow, Recommendation)>,
}

impl PoolAdvisor {
    /// For a pool of this size.
    pub(crate) fn new(size: usize, min_idle: usize, advice: PoolAdvice) -> Self {
        let mut goal = Goal::default();
        goal.size_min = min_idle.max(1);
        goal.size_max = match advice {
            PoolAdvice::Auto => size,
            PoolAdvice::Advise | PoolAdvice::Off => size.max(SIZE_MAX),
        };
        Self {
            executions: AtomicU64::new(0),
            execution_us: AtomicU64::new(0),
            state: Mutex::new(State {
                advisor: Advisor::new(goal, size),
                last: None,
            }),
        }
    }

    /// The server took so long for a statement.
    pub(crate) fn record_execution(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.executions.fetch_add(1, Ordering::Relaxed);
        self.execution_us.fetch_add(us, Ordering::Relaxed);
    }

    /// What was advised last, and what it rests on.
    pub(crate) fn last(&self) -> Option<(PoolWindow, Recommendation)> {
        self.state.lock().last
    }

    /// Draws what there is from what the pool saw since the last time.
    fn observe(&self, seen: PoolWindow, size: usize) -> Option<Recommendation> {
        let executions = self.executions.swap(0, Ordering::Relaxed);
        let us = self.execution_us.swap(0, Ordering::Relaxed);
        let mut window = Window::of(seen.length);
        window.acquires = seen.releases;
        window.hold_mean = seen.hold_mean;
        window.hold_p99 = seen.hold_p99;
        window.latency = Duration::from_micros(us / executions.max(1));
        window.in_use_max = seen.active_max;
        let mut state = self.state.lock();
        state.advisor.set_size(size);
        let recommendation = state.advisor.observe(&window)?;
        state.last = Some((seen, recommendation));
        Some(recommendation)
    }
}

/// Looks at every pool now and then, as long as there is a gateway.
pub(crate) async fn run(gateway: Weak<Gateway>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(gateway) = gateway.upgrade() else {
            return;
        };
        look(&gateway);
    }
}

/// Looks at every pool once.
pub(crate) fn look(gateway: &Gateway) {
    let config = gateway.config();
    let advice = config.pool.advice;
    if advice == PoolAdvice::Off {
        return;
    }
    for pool in gateway.upstream.pools() {
        let seen = pool.connections.take_window();
        let size = pool.connections.metrics().max;
        if let Some(recommendation) = pool.advisor.observe(seen, size)
            && advice == PoolAdvice::Auto
            && !pool.embedded
        {
            let limits = pool.limits.load();
            follow(&pool, recommendation, limits.min_idle, limits.size);
        }
    }
}

fn follow(pool: &Arc<ServerPool>, to: Recommendation, min_idle: usize, size_max: usize) {
    let before = pool.connections.metrics().max;
    let size = to.size.clamp(min_idle.max(1), size_max);
    if size == before {
        return;
    }
    match pool.connections.resize(size, min_idle) {
        Ok(()) => tracing::info!(
            user = pool.user,
            database = pool.name,
            before,
            size,
            reason = %to.reason,
            "the pool's size was changed"
        ),
        Err(error) => tracing::warn!(%error, "the pool's size was not changed"),
    }
}
