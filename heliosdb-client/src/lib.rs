//! A client for the gateway `helios`, over HIDB: many requests share few connections, and repeated reads are answered from
//! a cache in the client's own memory (the *near cache*) that the gateway keeps true.
//!
//! ```no_run
//! use heliosdb_client::{Client, Statement};
//!
//! # async fn run() -> heliosdb_client::Result<()> {
//! let client = Client::connect("hidb://app@127.0.0.1:6433/shop").await?;
//! let reply = client.query(Statement::new("SELECT name, price FROM items WHERE id = $1").bind(7)).await?;
//! for row in reply.rows() {
//!     println!("{:?} costs {:?}", row.text("name")?, row.get::<f64>("price")?);
//! }
//! // Asked again, it is answered without a message, until somebody writes to `items` through the gateway.
//! # Ok(()) }
//! ```
//!
//! # What a read from the near cache is worth
//! 1. **It is never older than what this client was told.** Whatever this client learnt, from an answer, from the
//!    acknowledgement of a write, or from a [position](Client::position) that it was [given](Client::observe), no later read
//!    of it goes back behind. So it reads its own writes, and never sees an older state after a newer one.
//! 2. **It is at most [`NearConfig::max_lag`] old**: a write acknowledged to anybody longer ago than that is seen. The
//!    client proves it by its own clock: the gateway answers a ping behind all changes from before the ping. Without such a
//!    proof (connection lost, gateway or network stuck), reads go to the gateway.
//! 3. **It ends with the subscription**: when the connection that brings the changes is lost, the near cache is emptied.
//!
//! To read what another process has just written, have it hand over its position with its message:
//! ```no_run
//! # use heliosdb_client::Client;
//! # async fn run(writer: Client, reader: Client) -> heliosdb_client::Result<()> {
//! writer.query("UPDATE items SET price = 5 WHERE id = 7").await?;
//! let position = writer.position(); // goes along with the message to the other process
//! reader.observe(position);
//! reader.query("SELECT price FROM items WHERE id = 7").await?; // 5, wherever it comes from
//! # Ok(()) }
//! ```
//! Like the gateway's own answers, this holds for writes that go through the gateway. A position means something to clients
//! of the same gateway process, until it ends.
//!
//! # Limits
//! A key is a statement's text with its parameters, byte for byte. Answers are held in memory as a whole, at most
//! [`HidbTarget::answer_max`] bytes. Several misses of one question at the same time are as many requests; the gateway asks
//! the database once. Statements in a [`Session`] do not use the near cache.
#![forbid(unsafe_code)]

mod near;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use heliosdb_cache::CacheStats;
use heliosdb_network::HidbClient;
use heliosdb_network::protocol::{AnswerSource, CacheUse, Facts};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use near::Near;

pub use heliosdb_network::client::{ColumnInfo, Reply, Row};
pub use heliosdb_network::{HeliosError, HidbTarget, Param, Result, Statement};

/// How a [`Client`] works.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClientConfig {
    /// Connections that requests share, beside the one of the near cache. Default 2, at least 1.
    pub connections: usize,
    /// The near cache; `None`: there is none.
    pub near: Option<NearConfig>,
}

/// How the near cache works.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NearConfig {
    /// Bound on its memory, in bytes. Default 64 MiB.
    pub capacity: usize,
    /// How old an answer from it may be, compared with what others were told. Default 2 s, longer than zero. The gateway is
    /// pinged four times in that time.
    pub max_lag: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            connections: 2,
            near: Some(NearConfig::default()),
        }
    }
}

impl Default for NearConfig {
    fn default() -> Self {
        Self {
            capacity: 64 << 20,
            max_lag: Duration::from_secs(2),
        }
    }
}

/// A client of a gateway. Cloning gives another handle to the same.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    _follower: Option<Arc<Follower>>,
}

struct Shared {
    target: HidbTarget,
    connections: Vec<Place>,
    next: AtomicUsize,
    last_session: AtomicU32,
    /// Everything that this client was told of is among the changes up to this place.
    known: AtomicU64,
    followed: ArcSwapOption<Followed>,
    counts: Counts,
}

/// A connection, opened anew when it can no longer be used.
#[derive(Default)]
struct Place {
    current: ArcSwapOption<HidbClient>,
    /// One opens, the others wait for it.
    opening: Mutex<()>,
}

/// A subscription and the connection that it comes by.
struct Followed {
    near: Arc<Near>,
    client: HidbClient,
}

/// The task that keeps the subscription. It ends with the last handle.
struct Follower(JoinHandle<()>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Default)]
struct Counts {
    near_hits: AtomicU64,
    requests: AtomicU64,
    subscriptions: AtomicU64,
}

/// What a client has done.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct ClientStats {
    /// Answers from the near cache.
    pub near_hits: u64,
    /// Requests that were sent.
    pub requests: u64,
    /// Subscriptions that began.
    pub subscriptions: u64,
    /// True while the near cache can answer.
    pub is_near_live: bool,
    /// The near cache there is now; `None` without one.
    pub near: Option<CacheStats>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("target", &self.shared.target)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the gateway at a `hidb://` URL ([`HidbTarget::from_url`]), as by default.
    ///
    /// # Errors
    /// As [`HidbClient::open`]: the gateway can't be reached, or lets nobody in under that name.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::open(HidbTarget::from_url(url)?, ClientConfig::default()).await
    }

    /// A client of a gateway. The near cache begins when the subscription does, soon after.
    ///
    /// # Errors
    /// As [`HidbClient::open`]; [`HeliosError::Unsupported`] for a configuration that can't work.
    pub async fn open(target: HidbTarget, config: ClientConfig) -> Result<Self> {
        let ClientConfig { connections, near } = config;
        if connections == 0 {
            return Err(HeliosError::Unsupported(
                "connections = 0: must be at least 1".to_owned(),
            ));
        }
        if near.as_ref().is_some_and(|near| near.max_lag.is_zero()) {
            return Err(HeliosError::Unsupported(
                "max_lag = 0: must be longer than zero".to_owned(),
            ));
        }
        let shared = Arc::new(Shared {
            target,
            connections: std::iter::repeat_with(Place::default)
                .take(connections)
                .collect(),
            next: AtomicUsize::new(0),
            last_session: AtomicU32::new(0),
            known: AtomicU64::new(0),
            followed: ArcSwapOption::empty(),
            counts: Counts::default(),
        });
        // What can't work is found out now.
        shared.connection(0).await?;
        let follower = near.map(|near| {
            let following = tokio::spawn(follow(Arc::clone(&shared), near));
            Arc::new(Follower(following))
        });
        Ok(Self {
            shared,
            _follower: follower,
        })
    }

    /// Asks a statement: from the near cache, from the gateway's, or of the database.
    ///
    /// # Errors
    /// [`HeliosError::Server`] with PostgreSQL's error if the statement fails; [`HeliosError::Network`] if the gateway can't
    /// be reached or the connection was lost on the way: whether a write took effect is not known then.
    ///
    /// # Cancel safety
    /// The statement is stopped at the server; whether a write took effect is not known then.
    pub async fn query(&self, statement: impl Into<Statement>) -> Result<Reply> {
        let statement = statement.into();
        let shared = &self.shared;
        let mut query = statement.to_query();
        let is_for_near =
            query.session == 0 && query.cache == CacheUse::Default && query.max_age_ms.is_none();
        let followed = shared.followed.load();
        let Some(followed) = followed.as_ref().filter(|_| is_for_near) else {
            let connection = shared.any_connection().await?;
            return shared.note(connection.ask(query).await);
        };
        let near = &followed.near;
        let params = near::params(&query);
        // First what is known, then what is kept.
        if near.is_good(shared.known.load(Ordering::SeqCst))
            && let Some(answer) = near.look_up(&query, &params)
        {
            shared.counts.near_hits.fetch_add(1, Ordering::Relaxed);
            let facts = Facts {
                source: AnswerSource::Near,
                age_ms: u32::try_from(near.cache.age(&answer).as_millis()).unwrap_or(u32::MAX),
                status: b'I',
                position: near.position(),
                near: None,
            };
            return Reply::new(answer.into(), facts);
        }
        if !followed.client.is_usable() {
            let connection = shared.any_connection().await?;
            return shared.note(connection.ask(query).await);
        }
        // By the connection that the changes come by: what the answer depends on is known to be good then.
        query.near = true;
        let asked = Instant::now();
        let question = query.clone();
        let reply = shared.note(followed.client.ask(query).await)?;
        if let Some(dependencies) = &reply.facts().near {
            let took = asked.elapsed();
            near.keep(&question, &params, reply.bytes(), dependencies, took);
        }
        Ok(reply)
    }

    /// A session of its own, for what belongs together: a transaction, settings, temporary tables.
    ///
    /// # Errors
    /// [`HeliosError::Network`] if the gateway can't be reached.
    pub async fn session(&self) -> Result<Session> {
        let connection = self.shared.any_connection().await?;
        // Numbers are used again after four billion sessions: those that began then have ended.
        let number = loop {
            let number = self.shared.last_session.fetch_add(1, Ordering::Relaxed);
            if number.wrapping_add(1) != 0 {
                break number + 1;
            }
        };
        Ok(Session {
            shared: Arc::clone(&self.shared),
            connection,
            number,
        })
    }

    /// The place in the gateway's feed of changes up to which this client knows. Handed to another client of the same
    /// gateway, it is what that one must not go back behind.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.shared.known.load(Ordering::SeqCst)
    }

    /// No read from now on is older than what another client knew when it was at this [position](Self::position).
    pub fn observe(&self, position: u64) {
        self.shared.known.fetch_max(position, Ordering::SeqCst);
    }

    /// The place up to which the near cache was told of changes; `None` while there is none.
    #[must_use]
    pub fn near_position(&self) -> Option<u64> {
        let followed = self.shared.followed.load();
        followed.as_ref().map(|followed| followed.near.position())
    }

    /// What was done, and what the near cache holds.
    #[must_use]
    pub fn stats(&self) -> ClientStats {
        let shared = &self.shared;
        let followed = shared.followed.load();
        let near = followed.as_ref().map(|followed| &followed.near);
        ClientStats {
            near_hits: shared.counts.near_hits.load(Ordering::Relaxed),
            requests: shared.counts.requests.load(Ordering::Relaxed),
            subscriptions: shared.counts.subscriptions.load(Ordering::Relaxed),
            is_near_live: near.is_some_and(|near| near.is_good(self.position())),
            near: near.map(|near| near.cache.stats()),
        }
    }
}

impl Shared {
    async fn any_connection(&self) -> Result<Arc<HidbClient>> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.connection(next % self.connections.len()).await
    }

    async fn connection(&self, at: usize) -> Result<Arc<HidbClient>> {
        let place = &self.connections[at];
        let usable = || {
            let current = place.current.load_full();
            current.filter(|connection| connection.is_usable())
        };
        if let Some(connection) = usable() {
            return Ok(connection);
        }
        let _only_one = place.opening.lock().await;
        if let Some(connection) = usable() {
            return Ok(connection);
        }
        let opened = Arc::new(HidbClient::open(&self.target).await?);
        place.current.store(Some(Arc::clone(&opened)));
        Ok(opened)
    }

    /// Notes what an answer shows.
    fn note(&self, reply: Result<Reply>) -> Result<Reply> {
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        if let Ok(reply) = &reply {
            self.known
                .fetch_max(reply.facts().position, Ordering::SeqCst);
        }
        reply
    }
}

/// A session at the server, for what belongs together. Its statements run one after the other. When it is dropped, what it
/// left open is rolled back.
pub struct Session {
    shared: Arc<Shared>,
    connection: Arc<HidbClient>,
    number: u32,
}

impl Session {
    /// Asks a statement in this session.
    ///
    /// # Errors
    /// As [`Client::query`]. A session whose connection was lost is lost with it.
    ///
    /// # Cancel safety
    /// As [`Client::query`].
    pub async fn query(&self, statement: impl Into<Statement>) -> Result<Reply> {
        let statement = statement.into().in_session(self.number);
        self.shared.note(self.connection.query(statement).await)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A connection that has ended has no sessions.
        let _ = self.connection.close_session(self.number);
    }
}

/// Subscribes, proves again and again that the subscription is up to date, and begins anew when it is not.
async fn follow(shared: Arc<Shared>, config: NearConfig) {
    let mut pause = PAUSE_MIN;
    loop {
        let began = Instant::now();
        if let Err(error) = follow_once(&shared, &config).await {
            tracing::debug!(%error, "the near cache's subscription ended");
        }
        // Dropped, it takes all that it kept with it.
        shared.followed.store(None);
        // A new gateway counts its changes anew: what is known of the old one's says nothing of them.
        shared.known.store(0, Ordering::SeqCst);
        if began.elapsed() > PAUSE_MAX {
            pause = PAUSE_MIN;
        }
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Returns when the subscription can no longer be relied on.
async fn follow_once(shared: &Shared, config: &NearConfig) -> Result<()> {
    let client = HidbClient::open(&shared.target).await?;
    let near = Near::new(config.capacity, config.max_lag);
    let told = Arc::clone(&near);
    client.subscribe(move |push| told.on_push(push))?;
    let mut asked = Instant::now();
    ping(&client, config.max_lag).await?;
    near.prove(asked);
    shared.counts.subscriptions.fetch_add(1, Ordering::Relaxed);
    let followed = Arc::new(Followed { near, client });
    shared.followed.store(Some(Arc::clone(&followed)));
    loop {
        tokio::time::sleep(config.max_lag / 4).await;
        asked = Instant::now();
        ping(&followed.client, config.max_lag * 2).await?;
        followed.near.prove(asked);
    }
}

async fn ping(client: &HidbClient, patience: Duration) -> Result<()> {
    let pinged = tokio::time::timeout(patience, client.send_ping_pong()).await;
    pinged.unwrap_or_else(|_| {
        Err(HeliosError::Network(
            "the gateway owes a pong for too long".to_owned(),
        ))
    })
}
