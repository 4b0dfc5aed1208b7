//! A second tier in Redis or Valkey: one server, or a cluster.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult,
    ServerErrorKind,
};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::backend::SecondTier;
use crate::error::{CacheError, Result};
use crate::stats::Counter;
use crate::sync::{CountU32, Ordering};

/// How a [`RedisBackend`] reaches its servers, and how much it may cost.
#[derive(Clone)]
#[non_exhaustive]
pub struct RedisConfig {
    /// `redis://[[user]:password@]host[:port][/database]`; without TLS. The first one is used, or of a cluster any
    /// that answers.
    pub urls: Vec<String>,
    /// The servers are nodes of a cluster. Default false.
    pub cluster: bool,
    /// What the names of the keys begin with. Default `helios:`.
    pub prefix: String,
    /// No request waits longer for the tier. Default 20 ms.
    pub budget: Duration,
    /// How long a connection may take to be made. Default 1 s.
    pub connect_timeout: Duration,
    /// How long a write may take; nobody waits for it. Default 1 s.
    pub write_timeout: Duration,
    /// The server may forget an answer after this time. Default 1 h.
    pub entry_ttl: Duration,
    /// Larger answers are kept in the first tier only, in bytes: others would wait behind them. Default 1 MiB.
    pub max_value_bytes: usize,
    /// Writes that have not been acknowledged; more are refused. Default 10 000.
    pub max_pending: usize,
    /// Bytes of these. Default 16 MiB.
    pub max_pending_bytes: usize,
    /// After so many failures in a row the tier is taken for down. Default 5.
    pub breaker_failures: u32,
    /// A tier that is down is tried again after this time; each time in vain doubles it, up to 32 times as long.
    /// Default 1 s.
    pub cooldown: Duration,
}

impl RedisConfig {
    /// One server.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self {
            urls: vec![url.to_owned()],
            cluster: false,
            prefix: "helios:".to_owned(),
            budget: Duration::from_millis(20),
            connect_timeout: Duration::from_secs(1),
            write_timeout: Duration::from_secs(1),
            entry_ttl: Duration::from_secs(3600),
            max_value_bytes: 1 << 20,
            max_pending: 10_000,
            max_pending_bytes: 16 << 20,
            breaker_failures: 5,
            cooldown: Duration::from_secs(1),
        }
    }

    /// A cluster, by some of its nodes.
    #[must_use]
    pub fn cluster(urls: &[&str]) -> Self {
        Self {
            urls: urls.iter().map(|&url| url.to_owned()).collect(),
            cluster: true,
            ..Self::new("")
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`CacheError::Config`] naming the first field that can't work.
    pub fn validate(&self) -> Result<()> {
        self.check().map(drop)
    }

    fn check(&self) -> Result<Target> {
        let error = |field, reason: &str| {
            let reason = reason.to_owned();
            Err(CacheError::Config { field, reason })
        };
        for (field, time) in [
            ("budget", self.budget),
            ("connect_timeout", self.connect_timeout),
            ("write_timeout", self.write_timeout),
            ("cooldown", self.cooldown),
        ] {
            if time.is_zero() {
                return error(field, "must be longer than zero");
            }
        }
        if self.entry_ttl < Duration::from_millis(1) {
            return error("entry_ttl", "must be at least 1 ms");
        }
        if self.breaker_failures == 0 {
            return error("breaker_failures", "must be at least 1");
        }
        if self.max_pending == 0 || u32::try_from(self.max_pending).is_err() {
            return error(
                "max_pending",
                "must be at least 1, and no astronomical number",
            );
        }
        if u32::try_from(self.max_pending_bytes).is_err() {
            return error("max_pending_bytes", "must be less than 4 GiB");
        }
        if self.max_value_bytes > self.max_pending_bytes {
            return error("max_value_bytes", "is larger than max_pending_bytes");
        }
        // What the client says of a URL may repeat it, with its password.
        let wrong = || {
            error(
                "urls",
                "has an address that is not like redis://user:password@host:6379/0",
            )
        };
        if self
            .urls
            .iter()
            .any(|url| Client::open(url.as_str()).is_err())
        {
            return wrong();
        }
        if self.cluster {
            let client = ClusterClientBuilder::new(self.urls.iter().map(String::as_str))
                .connection_timeout(self.connect_timeout)
                .response_timeout(self.write_timeout.max(self.budget))
                .retries(1)
                .build();
            return client.map(Target::Cluster).or_else(|_| wrong());
        }
        let Some(url) = self.urls.first() else {
            return error("urls", "is empty");
        };
        Client::open(url.as_str())
            .map(Target::Server)
            .or_else(|_| wrong())
    }
}

/// Without passwords.
impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            urls,
            cluster,
            prefix,
            budget,
            connect_timeout,
            write_timeout,
            entry_ttl,
            max_value_bytes,
            max_pending,
            max_pending_bytes,
            breaker_failures,
            cooldown,
        } = self;
        let urls: Vec<_> = urls.iter().map(|url| without_password(url)).collect();
        f.debug_struct("RedisConfig")
            .field("urls", &urls)
            .field("cluster", cluster)
            .field("prefix", prefix)
            .field("budget", budget)
            .field("connect_timeout", connect_timeout)
            .field("write_timeout", write_timeout)
            .field("entry_ttl", entry_ttl)
            .field("max_value_bytes", max_value_bytes)
            .field("max_pending", max_pending)
            .field("max_pending_bytes", max_pending_bytes)
            .field("breaker_failures", breaker_failures)
            .field("cooldown", cooldown)
            .finish()
    }
}

fn without_password(url: &str) -> String {
    let Some(mut url) = redis::parse_redis_url(url) else {
        return "not a URL".to_owned();
    };
    if url.password().is_some() {
        let _ = url.set_password(Some("***"));
    }
    url.to_string()
}

/// Who is connected to.
#[expect(clippy::large_enum_variant, reason = "one for each backend")]
enum Target {
    Cluster(ClusterClient),
    Server(Client),
}

/// A connection that requests share.
#[derive(Clone)]
enum Connection {
    Cluster(ClusterConnection),
    Server(MultiplexedConnection),
}

impl Target {
    async fn connect(&self, config: &RedisConfig) -> RedisResult<Connection> {
        let within = config.connect_timeout;
        let connect = async {
            match self {
                Self::Cluster(client) => {
                    client.get_async_connection().await.map(Connection::Cluster)
                }
                Self::Server(client) => {
                    let config = AsyncConnectionConfig::new()
                        .set_connection_timeout(Some(within))
                        .set_response_timeout(Some(config.write_timeout.max(config.budget)));
                    let connection = client.get_multiplexed_async_connection_with_config(&config);
                    connection.await.map(Connection::Server)
                }
            }
        };
        timeout(within, connect)
            .await
            .unwrap_or_else(|_| Err(late()))
    }
}

impl Connection {
    async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        match self {
            Self::Cluster(connection) => command.query_async(connection).await,
            Self::Server(connection) => command.query_async(connection).await,
        }
    }
}

fn late() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

/// What became of the requests to a [`RedisBackend`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisStats {
    /// The servers answer.
    pub is_up: bool,
    /// Times that they were found not to.
    pub outages: u64,
    /// Reads that were answered, with a value or with none.
    pub answered: u64,
    /// Reads that took longer than the budget.
    pub late: u64,
    /// Reads that failed.
    pub failed: u64,
    /// Writes that were acknowledged.
    pub written: u64,
    /// Writes that failed, or found the servers down.
    pub lost: u64,
    /// Writes that found no place in the queue, or were too large.
    pub refused: u64,
    /// Writes that wait to be acknowledged.
    pub pending: usize,
}

/// A [`SecondTier`] in Redis or Valkey.
///
/// It is never waited for longer than its budget, and not at all while it is down: a task tries to reach the servers then,
/// and requests go without. Writes are sent by another task, a bounded number at a time; those that find no place, or the
/// servers down, are not made up for. The tasks end with the backend.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use heliosdb_cache::{CacheConfig, CacheManager, InMemoryBackend, Position, RedisBackend, RedisConfig, TieredBackend};
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let redis = RedisBackend::new(RedisConfig::new("redis://127.0.0.1"))?;
/// let backend = TieredBackend::new(InMemoryBackend::new(256 << 20), redis);
/// let cache = CacheManager::new(Arc::new(backend), CacheConfig::default());
/// // Nodes share answers once they know a common log of changes, and how far each has read it.
/// cache.versions().follow(*b"database 1 / log", Position(0));
/// # Ok::<_, heliosdb_cache::CacheError>(()) })?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub struct RedisBackend {
    shared: Arc<Shared>,
    queue: mpsc::UnboundedSender<Write>,
    /// Places and bytes that writes may take.
    places: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    tasks: [AbortHandle; 2],
}

struct Shared {
    config: RedisConfig,
    /// `None` while the servers are down.
    link: ArcSwapOption<Link>,
    is_up: watch::Sender<bool>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    outages: Counter,
    answered: Counter,
    late: Counter,
    failed: Counter,
    written: Counter,
    lost: Counter,
    refused: Counter,
}

/// Connections, until one of them is found dead or too slow.
struct Link {
    reads: Connection,
    /// Another one, so that no read waits behind large writes.
    writes: Connection,
    breaker: Breaker,
}

/// Counts failures in a row, and opens for good: what comes next is another connection with a breaker of its own.
struct Breaker {
    failures: CountU32,
    failures_max: u32,
    opened: Notify,
}

impl Breaker {
    fn new(failures_max: u32) -> Self {
        Self {
            failures: CountU32::new(0),
            failures_max,
            opened: Notify::new(),
        }
    }

    fn is_open(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= self.failures_max
    }

    fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) > 0 {
            let reset = |failures| (failures < self.failures_max).then_some(0);
            let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
            let _ = self.failures.fetch_update(set, get, reset);
        }
    }

    fn failed(&self) {
        self.count(1);
    }

    fn open(&self) {
        self.count(self.failures_max);
    }

    fn count(&self, failures: u32) {
        let more = |before: u32| Some(before.saturating_add(failures));
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        let before = self.failures.fetch_update(set, get, more).unwrap_or(0);
        if before.saturating_add(failures) >= self.failures_max {
            // Stored for the one that waits, if it does not yet.
            self.opened.notify_one();
        }
    }
}

impl Link {
    async fn new(target: &Target, config: &RedisConfig) -> RedisResult<Self> {
        let mut reads = target.connect(config).await?;
        // One that answers, but not in time, would only be found out at the cost of requests.
        let ping = redis::cmd("PING");
        let answer = timeout(config.budget, reads.query::<()>(&ping)).await;
        answer.unwrap_or_else(|_| Err(late()))?;
        Ok(Self {
            reads,
            writes: target.connect(config).await?,
            breaker: Breaker::new(config.breaker_failures),
        })
    }

    fn failed(&self, error: &RedisError) {
        let is_dead = match self.reads {
            // Other nodes may answer, and the client looks for one that takes its place.
            Connection::Cluster(_) => false,
            Connection::Server(_) => {
                error.is_connection_dropped() || error.is_io_error() && !error.is_timeout()
            }
        };
        if is_dead {
            self.breaker.open();
        } else {
            self.breaker.failed();
        }
    }

    fn write_failed(&self, error: &RedisError) {
        match error.kind() {
            // A replica since a failover: its name may lead to the new primary.
            ErrorKind::Server(ServerErrorKind::ReadOnly) => self.breaker.open(),
            // Out of memory, say: reads go on.
            ErrorKind::Server(_) | ErrorKind::Extension => {}
            _ => self.failed(error),
        }
    }
}

struct Write {
    command: Cmd,
    /// Given back when the write is over, whatever comes of it.
    _place: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

impl RedisBackend {
    /// Begins to connect, and goes on trying: that the servers can't be reached is no error.
    ///
    /// # Errors
    /// [`CacheError::Config`] for a configuration that can't work, or outside of a Tokio runtime.
    pub fn new(config: RedisConfig) -> Result<Self> {
        let target = config.check()?;
        let Ok(runtime) = Handle::try_current() else {
            return Err(CacheError::Config {
                field: "redis",
                reason: "needs a Tokio runtime".to_owned(),
            });
        };
        let (queue, writes) = mpsc::unbounded_channel();
        let places = Arc::new(Semaphore::new(config.max_pending));
        let bytes = Arc::new(Semaphore::new(config.max_pending_bytes));
        let shared = Arc::new(Shared {
            config,
            link: ArcSwapOption::empty(),
            is_up: watch::Sender::new(false),
            counts: Counts::default(),
        });
        let tasks = [
            runtime.spawn(Arc::clone(&shared).keep_connected(target)),
            runtime.spawn(Arc::clone(&shared).write_all(writes)),
        ];
        Ok(Self {
            shared,
            queue,
            places,
            bytes,
            tasks: tasks.map(|task| task.abort_handle()),
        })
    }

    /// Waits until the servers answer.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no trace.
    pub async fn connected(&self) {
        let mut is_up = self.shared.is_up.subscribe();
        // It may be down, and nobody has said so yet. The sender lives as long as `self`.
        let is_connected = |is_up: &bool| *is_up && self.shared.link().is_some();
        let _ = is_up.wait_for(is_connected).await;
    }

    /// Waits until all writes before this call have been acknowledged or have failed: before a process ends, say. Writes
    /// that come meanwhile are refused.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no trace.
    pub async fn flush(&self) {
        let all = u32::try_from(self.shared.config.max_pending).unwrap_or(u32::MAX);
        let _ = self.places.acquire_many(all).await;
    }

    /// What became of the requests.
    #[must_use]
    pub fn stats(&self) -> RedisStats {
        let Counts {
            outages,
            answered,
            late,
            failed,
            written,
            lost,
            refused,
        } = &self.shared.counts;
        RedisStats {
            is_up: self.shared.link().is_some(),
            outages: outages.count(),
            answered: answered.count(),
            late: late.count(),
            failed: failed.count(),
            written: written.count(),
            lost: lost.count(),
            refused: refused.count(),
            pending: self.shared.config.max_pending - self.places.available_permits(),
        }
    }

    fn write(&self, command: Cmd, len: usize) -> bool {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(len);
        let (Ok(place), Ok(bytes)) = (place, bytes) else {
            self.shared.counts.refused.add(1);
            return false;
        };
        let write = Write {
            command,
            _place: place,
            _bytes: bytes,
        };
        self.queue.send(write).is_ok()
    }
}

impl SecondTier for RedisBackend {
    async fn fetch(&self, id: &[u8]) -> Option<Bytes> {
        let Shared { config, counts, .. } = &*self.shared;
        let link = self.shared.link()?;
        let mut get = redis::cmd("GET");
        get.arg(config.key(id));
        let mut connection = link.reads.clone();
        match timeout(config.budget, connection.query(&get)).await {
            Ok(Ok(value)) => {
                link.breaker.succeeded();
                counts.answered.add(1);
                value
            }
            Ok(Err(error)) => {
                link.failed(&error);
                counts.failed.add(1);
                None
            }
            Err(_) => {
                link.breaker.failed();
                counts.late.add(1);
                None
            }
        }
    }

    fn store(&self, id: &[u8], value: Bytes) -> bool {
        let config = &self.shared.config;
        if value.len() > config.max_value_bytes {
            self.shared.counts.refused.add(1);
            return false;
        }
        if self.shared.link().is_none() {
            self.shared.counts.lost.add(1);
            return false;
        }
        let ttl = u64::try_from(config.entry_ttl.as_millis()).unwrap_or(u64::MAX);
        let mut set = redis::cmd("SET");
        // The largest time that servers take.
        let ttl = ttl.min(1 << 50);
        set.arg(config.key(id)).arg(&value[..]).arg("PX").arg(ttl);
        self.write(set, value.len())
    }

    fn remove(&self, id: &[u8]) {
        let mut del = redis::cmd("DEL");
        del.arg(self.shared.config.key(id));
        self.write(del, 0);
    }
}

impl RedisConfig {
    fn key(&self, id: &[u8]) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut key = String::with_capacity(self.prefix.len() + 2 * id.len());
        key.push_str(&self.prefix);
        for byte in id {
            for digit in [byte >> 4, byte & 15] {
                key.push(DIGITS[usize::from(digit)].into());
            }
        }
        key
    }
}

/// Writes that are on their way at the same time.
const BATCH: usize = 64;
/// Times that the cooldown doubles.
const DOUBLINGS: u32 = 5;

impl Shared {
    fn link(&self) -> Option<Arc<Link>> {
        self.link.load_full().filter(|link| !link.breaker.is_open())
    }

    async fn keep_connected(self: Arc<Self>, target: Target) {
        let mut attempts = 0;
        let mut is_known_down = false;
        loop {
            match Link::new(&target, &self.config).await {
                Ok(link) => {
                    let link = Arc::new(link);
                    self.link.store(Some(Arc::clone(&link)));
                    self.is_up.send_replace(true);
                    if is_known_down {
                        tracing::info!("the second tier of the cache is back");
                    }
                    let began = Instant::now();
                    link.breaker.opened.notified().await;
                    self.link.store(None);
                    self.is_up.send_replace(false);
                    self.counts.outages.add(1);
                    tracing::warn!(
                        "the second tier of the cache is down or slow: going on without it"
                    );
                    is_known_down = true;
                    // One that fails as soon as it is back is tried less and less often.
                    if began.elapsed() > self.cooldown(attempts) {
                        attempts = 0;
                    }
                }
                Err(error) => {
                    // Once for an outage.
                    if !is_known_down {
                        self.counts.outages.add(1);
                        tracing::warn!(%error, "the second tier of the cache can't be reached");
                    }
                    is_known_down = true;
                }
            }
            sleep(self.cooldown(attempts).mul_f64(1.0 - fastrand::f64() / 4.0)).await;
            attempts += 1;
        }
    }

    fn cooldown(&self, attempts: u32) -> Duration {
        self.config
            .cooldown
            .saturating_mul(1 << attempts.min(DOUBLINGS))
    }

    async fn write_all(self: Arc<Self>, mut queue: mpsc::UnboundedReceiver<Write>) {
        let mut batch = Vec::with_capacity(BATCH);
        while queue.recv_many(&mut batch, BATCH).await > 0 {
            let Some(link) = self.link() else {
                self.counts.lost.add(batch.len() as u64);
                batch.clear();
                continue;
            };
            join_all(batch.drain(..).map(|write| self.write(&link, write))).await;
        }
    }

    async fn write(&self, link: &Link, write: Write) {
        let mut connection = link.writes.clone();
        let done = timeout(self.config.write_timeout, connection.query(&write.command)).await;
        match done.unwrap_or_else(|_| Err(late())) {
            Ok(()) => self.counts.written.add(1),
            Err(error) => {
                link.write_failed(&error);
                self.counts.lost.add(1);
            }
        }
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend")
            .field("config", &self.shared.config)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Drop for RedisBackend {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_opened(breaker: &Breaker) -> bool {
        let mut opened = std::pin::pin!(breaker.opened.notified());
        opened.as_mut().enable()
    }

    #[test]
    fn only_failures_in_a_row_open_the_breaker() {
        let breaker = Breaker::new(3);
        for _ in 0..10 {
            breaker.failed();
            breaker.failed();
            breaker.succeeded();
        }
        assert!(!breaker.is_open() && !is_opened(&breaker));
        for _ in 0..3 {
            breaker.failed();
        }
        assert!(breaker.is_open() && is_opened(&breaker));
    }

    #[test]
    fn an_answer_that_comes_late_does_not_close_it_again() {
        let breaker = Breaker::new(3);
        breaker.open();
        breaker.succeeded();
        assert!(breaker.is_open());
    }

    #[test]
    fn it_does_not_close_by_counting_too_far() {
        let breaker = Breaker::new(u32::MAX);
        breaker.open();
        breaker.open();
        assert!(breaker.is_open());
    }

    #[test]
    fn passwords_are_not_shown() {
        let config = RedisConfig::new("redis://app:hunter2@db.example:6379/3");
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("db.example"), "{shown}");
        let config = RedisConfig::new("redis://:hunter2@db.example:port");
        assert!(!format!("{config:?}").contains("hunter2"));
        let error = config.validate().expect_err("no port");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn what_can_t_work_is_named() {
        let check = |change: fn(&mut RedisConfig)| {
            let mut config = RedisConfig::new("redis://127.0.0.1");
            change(&mut config);
            match config.validate() {
                Err(CacheError::Config { field, .. }) => field,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(check(|config| config.urls.clear()), "urls");
        assert_eq!(check(|config| config.urls[0] = "http://x".into()), "urls");
        assert_eq!(check(|config| config.budget = Duration::ZERO), "budget");
        assert_eq!(
            check(|config| config.breaker_failures = 0),
            "breaker_failures"
        );
        assert_eq!(check(|config| config.max_pending = 0), "max_pending");
        assert_eq!(
            check(|config| config.max_pending_bytes = 5 << 30),
            "max_pending_bytes"
        );
        assert_eq!(
            check(|config| config.max_value_bytes = 1 << 30),
            "max_value_bytes"
        );
        RedisConfig::new("redis://127.0.0.1")
            .validate()
            .expect("the defaults");
        let error = RedisBackend::new(RedisConfig::new("redis://127.0.0.1"));
        assert!(error.is_err(), "outside of a runtime");
    }
}
