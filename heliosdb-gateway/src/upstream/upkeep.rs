//! Pools that are there before their clients, and pools that nobody needs any more.
//!
//! One loop: each [`PERIOD`] it makes the pools of databases that keep connections ready for a user of their own (a client
//! can't be waited for: whoever comes is that user to the server), and drops those that have had neither clients nor
//! server connections for `pool.unused_timeout`.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use heliosdb_network::postgres::Credential;
use heliosdb_network::postgres::auth::Granted;

use crate::gateway::Gateway;

use super::{ServerPool, Upstream};

const PERIOD: Duration = Duration::from_millis(250);

/// Since when pools have been unused, by user and database.
type Unused = BTreeMap<(String, String), Instant>;

/// Looks after the pools as long as there is a gateway.
pub(crate) async fn run(gateway: Weak<Gateway>) {
    let mut unused = Unused::new();
    loop {
        let Some(gateway) = gateway.upgrade() else {
            return;
        };
        let access = gateway.access.load_full();
        gateway
            .upstream
            .make_ready(|user| access.credential(user, Granted::default(), None));
        match gateway.config().pool.unused_timeout.get() {
            None => unused.clear(),
            Some(timeout) => gateway
                .upstream
                .drop_unused(&mut unused, timeout, Instant::now()),
        }
        drop(gateway);
        tokio::time::sleep(PERIOD).await;
    }
}

impl Upstream {
    /// Makes the pools that keep connections ready though they have no client yet. `kept` is what is known of a user's
    /// secret.
    fn make_ready(&self, kept: impl Fn(&str) -> Credential) {
        for name in self.routes.load().kept_ready() {
            if self.asked_for(&name).is_disabled || self.has_shared_pool(&name) {
                continue;
            }
            // Whoever asks: all clients of such a database are one user.
            if let Err(error) = self.learn("", &name, Credential::None, &kept) {
                tracing::warn!(database = name, "no connections are kept ready: {error}");
            }
        }
    }

    fn has_shared_pool(&self, database: &str) -> bool {
        let pools = self.pools.lock();
        pools.keys().any(|(_, name)| name == database)
    }

    /// Drops the pools that have been unused for so long.
    fn drop_unused(&self, unused: &mut Unused, timeout: Duration, now: Instant) {
        let mut dropped = Vec::new();
        let mut pools = self.pools.lock();
        unused.retain(|key, _| pools.contains_key(key));
        pools.retain(|key, pool| {
            if !pool.is_unused() {
                unused.remove(key);
                return true;
            }
            let since = *unused.entry(key.clone()).or_insert(now);
            let age = now.saturating_duration_since(since);
            if age < timeout {
                return true;
            }
            unused.remove(key);
            dropped.push((Arc::clone(pool), age));
            false
        });
        drop(pools);
        for (pool, age) in dropped {
            tracing::info!(
                "cleaning up idle pool for user {} on db {} because: pool idle timeout (age={}s)",
                pool.user,
                pool.name,
                age.as_secs()
            );
        }
    }
}

impl ServerPool {
    /// True if it has neither clients nor connections, nor is to have some. Asked under the lock of the pools, out of which
    /// clients take it.
    fn is_unused(self: &Arc<Self>) -> bool {
        let limits = self.limits.load();
        if limits.is_shared && limits.min_idle > 0 {
            return false;
        }
        let metrics = self.connections.metrics();
        let connections = metrics.idle + metrics.active + metrics.connecting + metrics.closing;
        Arc::strong_count(self) == 1 && connections == 0
    }
}
