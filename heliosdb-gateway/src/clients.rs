//! The connected clients: what the admin console lists, and the way a cancel request finds its session.

mod limits;
pub(crate) mod timeouts;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use heliosdb_network::postgres::{self, PgTarget};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::ClientError;

pub(crate) use limits::ClientLimits;

use limits::Counts;
use timeouts::{Pace, Timeout};

/// What somebody outside of the session asks of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Stop waiting for a connection or for another client's answer.
    Cancel = 1,
    /// End as soon as no transaction is open.
    Drain = 2,
    /// End now.
    Kill = 4,
    /// End, if what took too long is still going on.
    Timeout = 8,
}

/// Where a client comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Tcp(SocketAddr),
    /// Over a Unix-domain socket, as the system's user of this id.
    Unix(Option<u32>),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(_) => f.write_str("unix"),
        }
    }
}

/// What a session is doing, for `SHOW CLIENTS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    /// Waiting for the client.
    Idle,
    /// Has a server connection.
    Active,
    /// Waiting for a server connection or for another client's answer.
    Waiting,
}

/// Where an answer came from, for clients that are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// From memory, where it was for so long.
    Memory { age_ms: u32 },
    /// From the server, and it may be in memory from now on.
    Offered,
    /// From the server.
    Server,
}

/// What somebody is who has a place in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A client of PostgreSQL's protocol.
    Client,
    /// Looks after helios: it gets in where clients don't, and is not hurried.
    Console,
    /// A client of HIDB, whose statements are run by lanes.
    Hidb,
    /// A session that serves a client of HIDB.
    Lane,
}

/// One client.
#[derive(Debug)]
pub(crate) struct ClientInfo {
    pub(crate) id: u64,
    pub(crate) role: Role,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) application_name: String,
    pub(crate) peer: Peer,
    pub(crate) connected_at: SystemTime,
    /// The process id that the client was told.
    pub(crate) pid: i32,
    secret: Bytes,
    pub(crate) counters: Counters,
    activity: AtomicU8,
    pins: AtomicU32,
    /// How many channels it listens to by the pool's listener.
    channels: AtomicU32,
    /// Settings are no longer those of the beginning.
    has_settings: AtomicBool,
    /// The next statement is not for the cache.
    bypasses_cache: AtomicBool,
    /// The next statement takes no answer from memory that is older; `u32::MAX` is any.
    max_age_ms: AtomicU32,
    /// An [`Origin`]: what it is below, its age above.
    origin: AtomicU64,
    signals: AtomicU8,
    waker: AtomicWaker,
    /// What the session is at, for who looks whether it takes too long.
    pub(crate) pace: Pace,
    /// Where a cancel request goes while the session has a server connection.
    /// Why a lock: the connection must not be lent to the next client while a cancel is on its way to it.
    server: Mutex<CancelTarget>,
    cancelled: Notify,
}

#[derive(Debug, Default)]
struct CancelTarget {
    server: Option<Arc<ServerKey>>,
    under_way: usize,
}

/// What a cancel request to the server needs.
#[derive(Debug)]
pub(crate) struct ServerKey {
    /// The very server that the connection went to, and the way it went.
    pub(crate) target: PgTarget,
    pub(crate) pid: i32,
    pub(crate) secret: Bytes,
}

/// Written by the session's task alone, read by the console.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Statements, counted once each however they were answered.
    pub(crate) queries: AtomicU64,
    /// Transactions that ended, here or on a server connection.
    pub(crate) transactions: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) bytes_sent: AtomicU64,
    /// Time spent waiting for a server connection.
    pub(crate) wait_us: AtomicU64,
    /// Uses of a named statement that the server connection had prepared.
    pub(crate) prepared_hits: AtomicU64,
    /// Those for which it had to be prepared first.
    pub(crate) prepared_misses: AtomicU64,
}

impl Counters {
    /// Adds to a counter of which the caller is the only writer: no locked instruction.
    pub(crate) fn add(counter: &AtomicU64, value: u64) {
        counter.store(
            counter.load(Ordering::Relaxed).wrapping_add(value),
            Ordering::Relaxed,
        );
    }

    fn add_all(&self, other: &Self) {
        for (own, other) in [
            (&self.queries, &other.queries),
            (&self.transactions, &other.transactions),
            (&self.bytes_received, &other.bytes_received),
            (&self.bytes_sent, &other.bytes_sent),
            (&self.wait_us, &other.wait_us),
            (&self.prepared_hits, &other.prepared_hits),
            (&self.prepared_misses, &other.prepared_misses),
        ] {
            own.fetch_add(other.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

impl ClientInfo {
    /// Asks something of the session and wakes it.
    pub(crate) fn signal(&self, signal: Signal) {
        self.signals.fetch_or(signal as u8, Ordering::AcqRel);
        self.waker.wake();
    }

    /// Has the session look around.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    pub(crate) fn has_signal(&self, signal: Signal) -> bool {
        self.signals.load(Ordering::Acquire) & signal as u8 != 0
    }

    pub(crate) fn clear_signal(&self, signal: Signal) {
        // Rarely set: the common case costs a load.
        if self.has_signal(signal) {
            self.signals.fetch_and(!(signal as u8), Ordering::AcqRel);
        }
    }

    /// Has the session's task woken by the next signal.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    /// Runs a wait of the session, unless a cancel or a kill comes first.
    pub(crate) async fn or_cancelled<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        self.or_signalled(Signal::Cancel, wait).await
    }

    /// Runs a wait, unless the signal or a kill comes first.
    pub(crate) async fn or_signalled<T>(
        &self,
        signal: Signal,
        wait: impl Future<Output = T>,
    ) -> Option<T> {
        let mut wait = std::pin::pin!(wait);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = wait.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            self.register(cx);
            let asked = self.has_signal(signal)
                || self.has_signal(Signal::Kill)
                || self.due_timeout().is_some();
            if asked {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        })
        .await
    }

    /// Why the session is to end, if what took too long is still going on.
    pub(crate) fn due_timeout(&self) -> Option<Timeout> {
        // Rarely set: the common case costs a load.
        if !self.has_signal(Signal::Timeout) {
            return None;
        }
        let due = self.pace.due(&self.counters);
        if due.is_none() {
            self.clear_signal(Signal::Timeout);
        }
        due
    }

    pub(crate) fn set_activity(&self, activity: Activity) {
        self.activity.store(activity as u8, Ordering::Relaxed);
    }

    pub(crate) fn activity(&self) -> Activity {
        match self.activity.load(Ordering::Relaxed) {
            1 => Activity::Active,
            2 => Activity::Waiting,
            _ => Activity::Idle,
        }
    }

    pub(crate) fn set_pins(&self, pins: u32) {
        self.pins.store(pins, Ordering::Relaxed);
    }

    pub(crate) fn pins(&self) -> u32 {
        self.pins.load(Ordering::Relaxed)
    }

    pub(crate) fn set_channels(&self, channels: usize) {
        let channels = u32::try_from(channels).unwrap_or(u32::MAX);
        self.channels.store(channels, Ordering::Relaxed);
    }

    pub(crate) fn channels(&self) -> u32 {
        self.channels.load(Ordering::Relaxed)
    }

    /// The session's settings changed.
    pub(crate) fn note_settings(&self) {
        self.has_settings.store(true, Ordering::Relaxed);
    }

    /// True if the session is in the state it began in, between transactions.
    pub(crate) fn is_as_begun(&self, pins: u32) -> bool {
        self.pins() == pins && !self.has_settings.load(Ordering::Relaxed)
    }

    pub(crate) fn set_bypasses_cache(&self, bypasses: bool) {
        self.bypasses_cache.store(bypasses, Ordering::Relaxed);
    }

    pub(crate) fn bypasses_cache(&self) -> bool {
        self.bypasses_cache.load(Ordering::Relaxed)
    }

    pub(crate) fn set_max_age(&self, max_age_ms: Option<u32>) {
        let max_age_ms = max_age_ms.unwrap_or(u32::MAX);
        self.max_age_ms.store(max_age_ms, Ordering::Relaxed);
    }

    pub(crate) fn max_age_ms(&self) -> u32 {
        self.max_age_ms.load(Ordering::Relaxed)
    }

    /// Notes where the answer under way comes from.
    pub(crate) fn set_origin(&self, origin: Origin) {
        let packed = match origin {
            Origin::Server => 0,
            Origin::Offered => 1,
            Origin::Memory { age_ms } => u64::from(age_ms) << 32 | 2,
        };
        self.origin.store(packed, Ordering::Relaxed);
    }

    /// Where the last answer came from.
    pub(crate) fn origin(&self) -> Origin {
        let packed = self.origin.load(Ordering::Relaxed);
        match packed & 3 {
            0 => Origin::Server,
            1 => Origin::Offered,
            _ => Origin::Memory {
                age_ms: u32::try_from(packed >> 32).unwrap_or(u32::MAX),
            },
        }
    }

    /// From now on a cancel request goes to this server process.
    pub(crate) fn link(&self, key: Arc<ServerKey>) {
        self.server.lock().server = Some(key);
    }

    /// From now on a cancel request goes nowhere. True if one is still on its way: the connection must not be lent
    /// before [`cancel_delivered`](Self::cancel_delivered).
    pub(crate) fn unlink(&self) -> bool {
        let mut target = self.server.lock();
        target.server = None;
        target.under_way > 0
    }

    /// Waits until no cancel request is on its way.
    pub(crate) async fn cancel_delivered(&self) {
        loop {
            let delivered = self.cancelled.notified();
            if self.server.lock().under_way == 0 {
                return;
            }
            delivered.await;
        }
    }

    /// Cancels what the session is doing: a wait here, or the statement on the server.
    pub(crate) async fn cancel(&self) {
        self.signal(Signal::Cancel);
        let Some(key) = ({
            let mut target = self.server.lock();
            let key = target.server.clone();
            target.under_way += usize::from(key.is_some());
            key
        }) else {
            return;
        };
        let _delivered = Delivered(self);
        let request = postgres::cancel(&key.target, key.pid, &key.secret);
        match tokio::time::timeout(CANCEL_TIMEOUT, request).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a cancel request did not reach the server"),
            Err(_) => tracing::warn!("a cancel request did not reach the server in time"),
        }
    }
}

struct Delivered<'a>(&'a ClientInfo);

impl Drop for Delivered<'_> {
    fn drop(&mut self) {
        self.0.server.lock().under_way -= 1;
        self.0.cancelled.notify_waiters();
    }
}

/// Clients get numbers that no process of a server has: where notifications name the one that sent them, and a client looks
/// for those that are not its own, the two must not be mistaken for each other. Linux has at most four million processes.
const PID_MIN: i32 = 1 << 22;
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// All clients of the process.
#[derive(Debug, Default)]
pub(crate) struct ClientRegistry {
    /// Why a lock: touched at login, logout, cancel and by the console.
    clients: Mutex<Clients>,
    /// Connections that are not let in yet.
    logins: AtomicUsize,
    next_id: AtomicU64,
    next_pid: AtomicI32,
    /// The counts of those that left.
    pub(crate) departed: Counters,
    pub(crate) connected_total: AtomicU64,
}

#[derive(Debug, Default)]
struct Clients {
    /// By the process id that the client was told.
    by_pid: BTreeMap<i32, Arc<ClientInfo>>,
    counts: Counts,
}

/// Who a client says it is, at login.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) role: Role,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) application_name: String,
    pub(crate) peer: Peer,
    /// Length of the cancel key: 4 in protocol 3.0, 32 from 3.2.
    pub(crate) secret_len: usize,
}

impl ClientRegistry {
    /// Counts a connection whose client has not said who it is, unless there are more than could be let in.
    pub(crate) fn begin_login(self: &Arc<Self>, max: usize) -> Option<Login> {
        // Counted out where it is too many, too.
        let login = Login(Arc::clone(self));
        let logins = self.logins.fetch_add(1, Ordering::Relaxed);
        (logins < max + limits::CONSOLES_MAX).then_some(login)
    }

    /// Admits a client, unless there are too many already. It leaves when the returned guard goes.
    ///
    /// # Errors
    /// One more would be too many, by the limit that it names.
    pub(crate) fn admit(
        self: &Arc<Self>,
        identity: Identity,
        limits: &ClientLimits,
    ) -> Result<Admitted, ClientError> {
        let mut secret = vec![0; identity.secret_len];
        rand::fill(&mut secret[..]);
        let mut clients = self.clients.lock();
        clients.counts.enter(&identity, limits)?;
        let pid = loop {
            let next = self.next_pid.fetch_add(1, Ordering::Relaxed);
            let pid = PID_MIN + (next & i32::MAX) % (i32::MAX - PID_MIN);
            if !clients.by_pid.contains_key(&pid) {
                break pid;
            }
        };
        let info = Arc::new(ClientInfo {
            id: self.next_id.fetch_add(1, Ordering::Relaxed) + 1,
            role: identity.role,
            user: identity.user,
            database: identity.database,
            application_name: identity.application_name,
            peer: identity.peer,
            connected_at: SystemTime::now(),
            pid,
            secret: secret.into(),
            counters: Counters::default(),
            activity: AtomicU8::new(Activity::Idle as u8),
            pins: AtomicU32::new(0),
            channels: AtomicU32::new(0),
            has_settings: AtomicBool::new(false),
            bypasses_cache: AtomicBool::new(false),
            max_age_ms: AtomicU32::new(u32::MAX),
            origin: AtomicU64::new(0),
            signals: AtomicU8::new(0),
            waker: AtomicWaker::new(),
            pace: Pace::default(),
            server: Mutex::default(),
            cancelled: Notify::new(),
        });
        clients.by_pid.insert(pid, Arc::clone(&info));
        self.connected_total.fetch_add(1, Ordering::Relaxed);
        Ok(Admitted {
            registry: Arc::clone(self),
            info,
        })
    }

    /// Carries out a cancel request. A wrong key is ignored, as PostgreSQL does.
    pub(crate) async fn cancel(&self, pid: i32, secret: &[u8]) {
        let client = self.clients.lock().by_pid.get(&pid).cloned();
        if let Some(client) = client.filter(|client| equal_in_constant_time(&client.secret, secret))
        {
            client.cancel().await;
        }
    }

    pub(crate) fn signal_all(&self, signal: Signal) {
        for client in self.list() {
            client.signal(signal);
        }
    }

    pub(crate) fn list(&self) -> Vec<Arc<ClientInfo>> {
        self.clients.lock().by_pid.values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.clients.lock().by_pid.len()
    }

    /// The counts of all clients there are and were.
    pub(crate) fn totals(&self) -> Counters {
        let totals = Counters::default();
        totals.add_all(&self.departed);
        for client in self.list() {
            totals.add_all(&client.counters);
        }
        totals
    }
}

/// A connection that is not let in yet.
#[derive(Debug)]
pub(crate) struct Login(Arc<ClientRegistry>);

impl Drop for Login {
    fn drop(&mut self) {
        self.0.logins.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client's place in the registry.
#[derive(Debug)]
pub(crate) struct Admitted {
    registry: Arc<ClientRegistry>,
    pub(crate) info: Arc<ClientInfo>,
}

impl Admitted {
    pub(crate) fn secret(&self) -> &[u8] {
        &self.info.secret
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut clients = self.registry.clients.lock();
        clients.by_pid.remove(&self.info.pid);
        clients.counts.leave(&self.info);
        drop(clients);
        self.registry.departed.add_all(&self.info.counters);
    }
}

fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .fold(0, |differences, (a, b)| differences | (a ^ b))
            == 0
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The only client of a gateway.
    pub(crate) fn client() -> Admitted {
        let registry = Arc::new(ClientRegistry::default());
        registry
            .admit(identity(), &ClientLimits::up_to(1))
            .expect("one place")
    }

    fn identity() -> Identity {
        Identity {
            role: Role::Client,
            user: "u".to_owned(),
            database: "d".to_owned(),
            application_name: String::new(),
            peer: Peer::Tcp(SocketAddr::from(([127, 0, 0, 1], 1))),
            secret_len: 4,
        }
    }

    #[test]
    fn the_limit_holds_and_a_departure_frees_a_place() {
        let registry = Arc::new(ClientRegistry::default());
        let limits = ClientLimits::up_to(1);
        let first = registry.admit(identity(), &limits).expect("one place");
        assert!(registry.admit(identity(), &limits).is_err());
        Counters::add(&first.info.counters.queries, 3);
        drop(first);
        assert_eq!(registry.totals().queries.load(Ordering::Relaxed), 3);
        assert!(registry.admit(identity(), &limits).is_ok());
    }

    #[tokio::test]
    async fn cancel_needs_the_right_key() {
        let registry = Arc::new(ClientRegistry::default());
        let limits = ClientLimits::up_to(1);
        let client = registry.admit(identity(), &limits).expect("one place");
        let mut wrong = client.secret().to_vec();
        wrong[0] ^= 1;
        registry.cancel(client.info.pid, &wrong).await;
        assert!(!client.info.has_signal(Signal::Cancel));
        registry.cancel(client.info.pid, client.secret()).await;
        assert!(client.info.has_signal(Signal::Cancel));
    }
}
