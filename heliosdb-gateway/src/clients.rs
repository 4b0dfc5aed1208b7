//! The connected clients: what the admin console lists, and the way a cancel request finds its session.

mod limits;
pub(crate) mod timeouts;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use heliosdb_network::postgres::{self, PgTarget};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock;
use crate::config::LogConfig;
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
    /// End as soon as no transaction is open and there is no server connection; wait for none.
    Leave = 8,
    /// End, if what took too long is still going on.
    Timeout = 16,
    /// End as soon as no transaction is open, if the server connection is to be closed.
    Renew = 32,
}

/// Where a client comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Tcp(SocketAddr),
    /// Over a Unix-domain socket, as the system's user of this id.
    Unix(Option<u32>),
}

impl Peer {
    /// Where it comes from; `None` for a Unix-domain socket.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip()),
            Self::Unix(_) => None,
        }
    }

    /// The name of the system's user at the other end of a Unix-domain socket, by the file that has the local ones.
    pub(crate) fn user_name(&self) -> Option<String> {
        let Self::Unix(Some(uid)) = self else {
            return None;
        };
        let uid = uid.to_string();
        let users = std::fs::read_to_string("/etc/passwd").ok()?;
        let mut entries = users.lines().map(|line| line.split(':'));
        entries.find_map(|mut fields| {
            let name = fields.next()?;
            (fields.nth(1)? == uid).then(|| name.to_owned())
        })
    }
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
pub(crate) enum ClientKind {
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
    pub(crate) kind: ClientKind,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) application_name: String,
    pub(crate) peer: Peer,
    pub(crate) connected_at: SystemTime,
    connected: Instant,
    /// The [`clock::stamp`] of the last request that went to a server.
    requested: AtomicU64,
    /// Microseconds from `connected` to the beginning of the wait under way.
    waiting_since_us: AtomicU64,
    /// Statements that the client has prepared, as of its last use of a server connection.
    pub(crate) prepared: AtomicU32,
    /// The process id that the client was told.
    pub(crate) pid: i32,
    secret: Bytes,
    pub(crate) counters: Counters,
    /// What it does counts from here on.
    pub(crate) is_let_in: AtomicBool,
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
    /// Has the session's task look at its signals.
    waker: Mutex<Option<Waker>>,
    /// The data of that waker, of which there is no other with the same as long as it is kept.
    wakes: AtomicPtr<()>,
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
    /// Statements that the client prepared under a name.
    pub(crate) parses: AtomicU64,
    /// Times that the session got a server connection.
    pub(crate) assignments: AtomicU64,
    /// Time that requests took on a server.
    pub(crate) query_us: AtomicU64,
    /// Time that transactions took on a server, from the first request to the end.
    pub(crate) transaction_us: AtomicU64,
    /// 1 once the client was let in.
    pub(crate) logins: AtomicU64,
}

impl Counters {
    /// Adds to a counter of which the caller is the only writer: no locked instruction.
    pub(crate) fn add(counter: &AtomicU64, value: u64) {
        counter.store(
            counter.load(Ordering::Relaxed).wrapping_add(value),
            Ordering::Relaxed,
        );
    }

    /// Adds a time to a counter of microseconds.
    pub(crate) fn add_time(counter: &AtomicU64, time: Duration) {
        Self::add(counter, u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    pub(crate) fn add_all(&self, other: &Self) {
        for (own, other) in [
            (&self.queries, &other.queries),
            (&self.transactions, &other.transactions),
            (&self.bytes_received, &other.bytes_received),
            (&self.bytes_sent, &other.bytes_sent),
            (&self.wait_us, &other.wait_us),
            (&self.prepared_hits, &other.prepared_hits),
            (&self.prepared_misses, &other.prepared_misses),
            (&self.parses, &other.parses),
            (&self.assignments, &other.assignments),
            (&self.query_us, &other.query_us),
            (&self.transaction_us, &other.transaction_us),
            (&self.logins, &other.logins),
        ] {
            own.fetch_add(other.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

impl ClientInfo {
    /// For how long it has been connected.
    pub(crate) fn age(&self) -> Duration {
        self.connected.elapsed()
    }

    /// Says that the client left of its own accord, where that is to be said.
    pub(crate) fn log_departure(&self, log: &LogConfig) {
        if log.disconnections {
            tracing::info!(
                client = self.id,
                "{}/{}@{} closing because: client close request (age={}s)",
                self.database,
                self.user,
                self.peer,
                self.age().as_secs()
            );
        }
    }

    /// Asks something of the session and wakes it.
    pub(crate) fn signal(&self, signal: Signal) {
        self.signals.fetch_or(signal as u8, Ordering::AcqRel);
        self.wake();
    }

    /// Has the session look around.
    pub(crate) fn wake(&self) {
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn has_signal(&self, signal: Signal) -> bool {
        self.signals.load(Ordering::Acquire) & signal as u8 != 0
    }

    /// Whether anything is asked of the session.
    pub(crate) fn has_signals(&self) -> bool {
        self.signals.load(Ordering::Acquire) != 0
    }

    pub(crate) fn clear_signal(&self, signal: Signal) {
        // Rarely set: the common case costs a load.
        if self.has_signal(signal) {
            self.signals.fetch_and(!(signal as u8), Ordering::AcqRel);
        }
    }

    /// Has the session's task woken by signals from now on. Look for one that came before behind this, not ahead of it.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        // Asked for each time that the session is polled, and nearly always the same.
        if self.wakes.load(Ordering::Relaxed) == cx.waker().data().cast_mut() {
            return;
        }
        let new = cx.waker().clone();
        let mut waker = self.waker.lock();
        self.wakes.store(new.data().cast_mut(), Ordering::Relaxed);
        let before = waker.replace(new);
        drop(waker);
        drop(before);
    }

    /// Runs a wait of the session, unless a cancel or a kill comes first.
    pub(crate) async fn or_cancelled<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        self.or_signalled(Signal::Cancel, wait).await
    }

    /// Runs a wait, unless the signal comes first, or one after which there is nothing to wait for.
    pub(crate) async fn or_signalled<T>(
        &self,
        signal: Signal,
        wait: impl Future<Output = T>,
    ) -> Option<T> {
        self.or_any_signal(&[signal], wait).await
    }

    /// As [`or_signalled`](Self::or_signalled), with several signals.
    pub(crate) async fn or_any_signal<T>(
        &self,
        signals: &[Signal],
        wait: impl Future<Output = T>,
    ) -> Option<T> {
        let mut wait = std::pin::pin!(wait);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = wait.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            self.register(cx);
            let also = [Signal::Kill, Signal::Leave];
            let asked = signals
                .iter()
                .chain(&also)
                .any(|signal| self.has_signal(*signal))
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
        if activity == Activity::Waiting {
            self.waiting_since_us
                .store(self.since_connected_us(), Ordering::Relaxed);
        }
        self.activity.store(activity as u8, Ordering::Relaxed);
    }

    pub(crate) fn activity(&self) -> Activity {
        match self.activity.load(Ordering::Relaxed) {
            1 => Activity::Active,
            2 => Activity::Waiting,
            _ => Activity::Idle,
        }
    }

    fn since_connected_us(&self) -> u64 {
        u64::try_from(self.connected.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// A request goes to a server. `now`: a [`clock::stamp`].
    pub(crate) fn note_request(&self, now: u64) {
        self.requested.store(now, Ordering::Relaxed);
    }

    /// When the last request went to a server, or the client connected.
    pub(crate) fn requested_at(&self) -> SystemTime {
        clock::time_of(self.requested.load(Ordering::Relaxed)).max(self.connected_at)
    }

    /// For how long it has been waiting, if it is.
    pub(crate) fn waits_for(&self) -> Duration {
        if self.activity() != Activity::Waiting {
            return Duration::ZERO;
        }
        let since = self.waiting_since_us.load(Ordering::Relaxed);
        Duration::from_micros(self.since_connected_us().saturating_sub(since))
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
    next_pid: AtomicI32,
    /// The counts of those that left, by database. Why a lock: taken at logout and by the console, under that of
    /// `clients`, so that nobody is counted twice or not at all.
    departed: Mutex<BTreeMap<String, Counters>>,
    /// Told whenever a client has left.
    left: Notify,
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
    pub(crate) kind: ClientKind,
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
        let connected = Instant::now();
        let info = Arc::new(ClientInfo {
            id: next_id(),
            kind: identity.kind,
            user: identity.user,
            database: identity.database,
            application_name: identity.application_name,
            peer: identity.peer,
            connected_at: SystemTime::now(),
            connected,
            requested: AtomicU64::new(clock::stamp(connected)),
            waiting_since_us: AtomicU64::new(0),
            prepared: AtomicU32::new(0),
            pid,
            secret: secret.into(),
            counters: Counters::default(),
            is_let_in: AtomicBool::new(false),
            activity: AtomicU8::new(Activity::Idle as u8),
            pins: AtomicU32::new(0),
            channels: AtomicU32::new(0),
            has_settings: AtomicBool::new(false),
            bypasses_cache: AtomicBool::new(false),
            max_age_ms: AtomicU32::new(u32::MAX),
            origin: AtomicU64::new(0),
            signals: AtomicU8::new(0),
            waker: Mutex::default(),
            wakes: AtomicPtr::default(),
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
        for of_database in self.by_database().values() {
            totals.add_all(of_database);
        }
        totals
    }

    /// The counts of all clients there are and were, by the names of their databases.
    pub(crate) fn by_database(&self) -> BTreeMap<String, Counters> {
        let mut counts = BTreeMap::<String, Counters>::new();
        let clients = self.clients.lock();
        for (database, departed) in &*self.departed.lock() {
            counts
                .entry(database.clone())
                .or_default()
                .add_all(departed);
        }
        for client in clients.by_pid.values() {
            if !counts.contains_key(&client.database) {
                counts.insert(client.database.clone(), Counters::default());
            }
            if let Some(of_database) = counts.get(&client.database) {
                of_database.add_all(&client.counters);
            }
        }
        counts
    }

    /// Waits until none of the clients is left that `is_meant`.
    pub(crate) async fn departed(&self, is_meant: impl Fn(&ClientInfo) -> bool) {
        loop {
            let left = self.left.notified();
            if !self
                .clients
                .lock()
                .by_pid
                .values()
                .any(|client| is_meant(client))
            {
                return;
            }
            left.await;
        }
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
        let registry = &self.registry;
        let mut clients = registry.clients.lock();
        clients.by_pid.remove(&self.info.pid);
        clients.counts.leave(&self.info);
        // Who was not let in may have named anything.
        if self.info.is_let_in.load(Ordering::Relaxed) {
            let mut departed = registry.departed.lock();
            if !departed.contains_key(&self.info.database) {
                departed.insert(self.info.database.clone(), Counters::default());
            }
            if let Some(of_database) = departed.get(&self.info.database) {
                of_database.add_all(&self.info.counters);
            }
        }
        drop(clients);
        registry.left.notify_waiters();
    }
}

/// The next number that clients and server connections are known by: no two have the same.
pub(crate) fn next_id() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
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
            kind: ClientKind::Client,
            user: "u".to_owned(),
            database: "d".to_owned(),
            application_name: String::new(),
            peer: Peer::Tcp(SocketAddr::from(([127, 0, 0, 1], 1))),
            secret_len: 4,
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn each_signal_wakes_whoever_polls_the_session() {
        let client = client();
        let info = &client.info;
        // Nobody polls it yet.
        info.signal(Signal::Cancel);
        let [first, second] = [(), ()].map(|()| Arc::new(Woken::default()));
        let counts = || [&first, &second].map(|woken| woken.0.load(Ordering::Relaxed));
        let (one, other) = (Waker::from(first.clone()), Waker::from(second.clone()));
        for round in 1..=3 {
            info.register(&Context::from_waker(&one));
            info.signal(Signal::Renew);
            assert_eq!(counts(), [round, 0]);
        }
        info.register(&Context::from_waker(&other));
        info.wake();
        info.wake();
        assert_eq!(counts(), [3, 2]);
        // And back again.
        info.register(&Context::from_waker(&one));
        info.wake();
        assert_eq!(counts(), [4, 2]);
    }

    #[test]
    fn the_limit_holds_and_a_departure_frees_a_place() {
        let registry = Arc::new(ClientRegistry::default());
        let limits = ClientLimits::up_to(1);
        let first = registry.admit(identity(), &limits).expect("one place");
        assert!(registry.admit(identity(), &limits).is_err());
        Counters::add(&first.info.counters.queries, 3);
        first.info.is_let_in.store(true, Ordering::Relaxed);
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
