//! The list of server connections that `SHOW SERVERS` prints.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use parking_lot::Mutex;

/// What is shown of a server connection.
#[derive(Debug)]
pub(crate) struct ServerInfo {
    pub(crate) id: u64,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) backend_pid: i32,
    pub(crate) connected_at: SystemTime,
    /// The id of the client that has it, 0 while idle.
    client: AtomicU64,
    /// Times lent to a client.
    leases: AtomicU64,
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
    ) -> Self {
        Self {
            id,
            user: user.to_owned(),
            database: database.to_owned(),
            backend_pid,
            connected_at,
            client: AtomicU64::new(0),
            leases: AtomicU64::new(0),
            is_listener: false,
        }
    }

    /// Marks the connection by which a pool listens.
    pub(crate) fn listening(mut self) -> Self {
        self.is_listener = true;
        self
    }

    pub(crate) fn lent_to(&self, client: u64) {
        self.client.store(client, Ordering::Relaxed);
        self.leases.fetch_add(1, Ordering::Relaxed);
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
}

/// All live server connections of the process.
#[derive(Debug, Default)]
pub(crate) struct ServerRegistry {
    /// Why a lock: touched at connect and by the admin console only.
    servers: Mutex<BTreeMap<u64, Weak<ServerInfo>>>,
    next_key: AtomicU64,
}

impl ServerRegistry {
    pub(crate) fn register(&self, info: ServerInfo) -> Arc<ServerInfo> {
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
}
