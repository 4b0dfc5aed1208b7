//! The client: connections that requests share, and what it knows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use heliosdb_cache::CacheStats;
use heliosdb_network::client::Reply;
use heliosdb_network::protocol::{CacheUse, Query};
use heliosdb_network::{HeliosError, HidbClient, HidbTarget, Result, Statement};
use parking_lot::Mutex;

use crate::follow::Follower;
use crate::near::{self, Near};
use crate::position::Position;

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

pub(crate) struct Shared {
    pub(crate) target: HidbTarget,
    connections: Vec<Place>,
    next: AtomicUsize,
    last_session: AtomicU32,
    /// Everything that this client was told of is among the changes up to there. Why a lock: whoever learns something from
    /// an answer and whoever begins a near cache must not miss each other.
    known: Mutex<Position>,
    followed: ArcSwapOption<Followed>,
    pub(crate) counts: Counts,
}

/// A connection, opened anew when it can no longer be used.
#[derive(Default)]
struct Place {
    current: ArcSwapOption<HidbClient>,
    /// One opens, the others wait for it. When it failed last, and why: who has waited for that does not try it again.
    opening: tokio::sync::Mutex<Option<(Instant, String)>>,
}

impl Place {
    fn usable(&self) -> Option<Arc<HidbClient>> {
        let current = self.current.load_full();
        current.filter(|connection| connection.is_usable())
    }
}

/// A subscription and the connection that it comes by.
pub(crate) struct Followed {
    pub(crate) near: Arc<Near>,
    pub(crate) client: HidbClient,
}

#[derive(Default)]
pub(crate) struct Counts {
    near_hits: AtomicU64,
    requests: AtomicU64,
    pub(crate) subscriptions: AtomicU64,
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
    /// Connections that stand, without that of the near cache.
    pub connected: usize,
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
            known: Mutex::default(),
            followed: ArcSwapOption::empty(),
            counts: Counts::default(),
        });
        // What can't work is found out now.
        shared.connection(0).await?;
        let follower = near.map(|near| Arc::new(Follower::start(Arc::clone(&shared), near)));
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
            return shared.ask_any(query).await;
        };
        let near = &followed.near;
        let params = near::params(&query);
        if let Some(answer) = near.answer(&query, &params) {
            shared.counts.near_hits.fetch_add(1, Ordering::Relaxed);
            return answer;
        }
        if !followed.client.is_usable() {
            return shared.ask_any(query).await;
        }
        let followed = Arc::clone(followed);
        // By the connection that the changes come by: what the answer depends on is known to be good then.
        query.near = true;
        let asked = Instant::now();
        let reply = shared.ask(&followed.client, query.clone()).await?;
        followed.near.keep(&query, &params, &reply, asked.elapsed());
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

    /// What this client knows. Handed to another client of the same gateway, it is what that one must not go back behind.
    #[must_use]
    pub fn position(&self) -> Position {
        *self.shared.known.lock()
    }

    /// No read from now on is older than what another client knew when it was at this [position](Self::position).
    pub fn observe(&self, position: Position) {
        self.shared.learn(position);
    }

    /// What the near cache was told of; `None` while there is none.
    #[must_use]
    pub fn near_position(&self) -> Option<Position> {
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
            connected: shared
                .connections
                .iter()
                .filter(|place| place.usable().is_some())
                .count(),
            is_near_live: near.is_some_and(|near| near.is_good()),
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
        if let Some(connection) = place.usable() {
            return Ok(connection);
        }
        let began = Instant::now();
        let mut failure = place.opening.lock().await;
        if let Some(connection) = place.usable() {
            return Ok(connection);
        }
        if let Some((_, why)) = failure.as_ref().filter(|(when, _)| *when >= began) {
            return Err(HeliosError::Network(why.clone()));
        }
        let opened = HidbClient::open(&self.target).await.inspect_err(|error| {
            *failure = Some((Instant::now(), error.to_string()));
        })?;
        let opened = Arc::new(opened);
        place.current.store(Some(Arc::clone(&opened)));
        Ok(opened)
    }

    async fn ask_any(&self, query: Query) -> Result<Reply> {
        let connection = self.any_connection().await?;
        self.ask(&connection, query).await
    }

    /// Asks, and learns what the answer shows.
    async fn ask(&self, connection: &HidbClient, query: Query) -> Result<Reply> {
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        let reply = connection.ask(query).await?;
        self.learn(Position {
            instance: instance(connection),
            place: reply.facts().position,
        });
        Ok(reply)
    }

    fn learn(&self, position: Position) {
        {
            let mut known = self.known.lock();
            if position.instance == known.instance {
                known.place = known.place.max(position.place);
            } else if position.instance != 0 {
                *known = position;
            }
        }
        // Behind the lock: a near cache that is not seen here sees there what was learnt.
        if let Some(followed) = &*self.followed.load() {
            followed.near.learn(position);
        }
    }

    /// Begins or ends a near cache.
    pub(crate) fn follow(&self, followed: Option<Arc<Followed>>) {
        self.followed.store(followed.clone());
        let known = *self.known.lock();
        if let Some(followed) = followed {
            followed.near.learn(known);
        }
    }
}

/// Which run of which gateway this connection leads to.
pub(crate) fn instance(connection: &HidbClient) -> u64 {
    connection.welcome().map_or(0, |welcome| welcome.instance)
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
        let query = statement.into().in_session(self.number).to_query();
        self.shared.ask(&self.connection, query).await
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
