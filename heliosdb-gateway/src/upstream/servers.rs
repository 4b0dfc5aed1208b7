//! The list of server connections that `SHOW SERVERS` prints.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime};

use heliosdb_network::postgres::{Host, Place};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clients::Counters;
use crate::clock;

/// What is shown of a server connection.
#[derive(Debug)]
pub(crate) struct ServerInfo {
    pub(crate) id: u64,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) backend_pid: i32,
    pub(crate) connected_at: SystemTime,
    pub(crate) host: Host,
    pub(crate) port: u16,
    /// The id of the client that has it, 0 while idle.
    client: AtomicU64,
    /// Times lent to a client.
    leases: AtomicU64,
    /// The [`clock::stamp`] of when it was last lent.
    lent: AtomicU64,
    /// Statements that are prepared there, as of when it was last given back.
    pub(crate) prepared: AtomicUsize,
    /// It is closed when its client gives it back.
    close_needed: AtomicBool,
    closed: Arc<Notify>,
    /// It listens for the clients of its pool, and is not lent.
    pub(crate) is_listener: bool,
}

impl ServerInfo {
    pub(crate) fn new(
        id: u64,
        user: &str,
        database: &str,
        backend_pid: i32,
        connected_at: SystemTime,
        place: &Place,
    ) -> Self {
        Self {
            id,
            user: user.to_owned(),
            database: database.to_owned(),
            backend_pid,
            connected_at,
            host: place.host.clone(),
            port: place.port,
            client: AtomicU64::new(0),
            leases: AtomicU64::new(0),
            lent: AtomicU64::new(clock::stamp(Instant::now())),
            prepared: AtomicUsize::new(0),
            close_needed: AtomicBool::new(false),
            closed: Arc::default(),
            is_listener: false,
        }
    }

    /// Marks the connection by which a pool listens.
    pub(crate) fn listening(mut self) -> Self {
        self.is_listener = true;
        self
    }

    /// `now`: a [`clock::stamp`].
    pub(crate) fn lent_to(&self, client: u64, now: u64) {
        self.client.store(client, Ordering::Relaxed);
        // Whoever has the connection is the only writer.
        Counters::add(&self.leases, 1);
        self.lent.store(now, Ordering::Relaxed);
    }

    pub(crate) fn returned(&self) {
        self.client.store(0, Ordering::Relaxed);
    }

    pub(crate) fn client(&self) -> Option<u64> {
        Some(self.client.load(Ordering::Relaxed)).filter(|id| *id != 0)
    }

    pub(crate) fn leases(&self) -> u64 {
        self.leases.load(Ordering::Relaxed)
    }

    /// When it was last lent, or made.
    pub(crate) fn lent_at(&self) -> SystemTime {
        clock::time_of(self.lent.load(Ordering::Relaxed))
    }

    pub(crate) fn close_needed(&self) -> bool {
        self.close_needed.load(Ordering::Relaxed)
    }
}

impl Drop for ServerInfo {
    fn drop(&mut self) {
        self.closed.notify_waiters();
    }
}

/// All live server connections of the process.
#[derive(Debug, Default)]
pub(crate) struct ServerRegistry {
    /// Why a lock: touched at connect and by the admin console only.
    servers: Mutex<BTreeMap<u64, Weak<ServerInfo>>>,
    next_key: AtomicU64,
    /// Told whenever a connection is gone.
    closed: Arc<Notify>,
}

impl ServerRegistry {
    pub(crate) fn register(&self, mut info: ServerInfo) -> Arc<ServerInfo> {
        info.closed = Arc::clone(&self.closed);
        let info = Arc::new(info);
        let mut servers = self.servers.lock();
        servers.retain(|_, server| server.strong_count() > 0);
        servers.insert(
            self.next_key.fetch_add(1, Ordering::Relaxed),
            Arc::downgrade(&info),
        );
        info
    }

    pub(crate) fn live(&self) -> Vec<Arc<ServerInfo>> {
        self.servers
            .lock()
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// All that stand to the databases meant are closed as they come back.
    pub(crate) fn need_close(&self, is_meant: impl Fn(&str) -> bool) {
        for server in self.live() {
            if is_meant(&server.database) {
                server.close_needed.store(true, Ordering::Relaxed);
            }
        }
    }

    /// The clients that have one which is to be closed.
    pub(crate) fn holders_of_outdated(&self) -> BTreeSet<u64> {
        let live = self.live().into_iter();
        live.filter(|server| server.close_needed())
            .filter_map(|server| server.client())
            .collect()
    }

    /// Waits until none of those is left.
    pub(crate) async fn outdated_closed(&self, is_meant: impl Fn(&str) -> bool) {
        loop {
            let closed = self.closed.notified();
            let is_left = self
                .live()
                .iter()
                .any(|server| server.close_needed() && is_meant(&server.database));
            if !is_left {
                return;
            }
            closed.await;
        }
    }
}
