//! One client: from its startup packet to its end.
//!
//! A session is a single task that owns the client's socket and, while it needs one, a server connection. Hits are
//! served inside the poll that read the request, and misses are sent there too where a server connection is at hand
//! ([`io`]); what has to wait for something goes through [`request`]. From there it is message by message
//! ([`client_messages`], [`server_messages`]) until the server connection is free to go back to its pool.

mod authentication;
mod bound;
mod bounded;
mod client_messages;
mod effects;
mod io;
pub(crate) mod link;
mod listening;
mod login;
pub(crate) mod pins;
pub(crate) mod prepared;
mod request;
mod resolve;
pub(crate) mod sequences;
mod server_messages;
pub(crate) mod settings;
mod sql_prepare;
mod stale_plan;
mod stream;
mod transaction;
mod translated;
pub(crate) mod unit;
mod vacate;
mod walsender;

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::BytesMut;
use heliosdb_cache::{Fill, HashedStr, WriteIntent};
use heliosdb_pooling::StatementHandle;
use tokio::io::AsyncWriteExt as _;
use tokio::time::Sleep;

use crate::clients::{Activity, Admitted, ClientInfo, Counters};
use crate::error::ClientError;
use crate::gateway::Gateway;
use crate::invalidate::wire;
use crate::level::{AgeBound, Level};
use crate::sql::{Class, NameScope};
use crate::upstream::ServerPool;
use crate::upstream::connection::Baseline;

use bound::Bound;
use io::Event;
use link::Link;
use listening::Listening;
use pins::Pins;
use prepared::Named;
use resolve::Unresolved;
use settings::Settings;
use sql_prepare::SqlUses;
use transaction::Deferred;
use translated::Translated;

pub(crate) use login::{Entrance, Greeted, admit, enter, greet};
pub(crate) use stream::ClientStream;

/// One client's session.
#[derive(Debug)]
pub(crate) struct Session {
    gateway: Arc<Gateway>,
    stream: ClientStream,
    admitted: Admitted,
    pool: Arc<ServerPool>,
    baseline: Arc<Baseline>,
    /// The server connection, from the first statement that needs one until nothing ties the session to it.
    link: Option<Link>,
    /// Received and not yet worked on: usually empty, at most the beginning of a message.
    input: BytesMut,
    /// There is more in `input` than the beginning of a message: work on it as soon as there is room.
    input_waits: bool,
    /// What is in `input` waits until the server is ready.
    input_held: bool,
    /// Not yet written to the client.
    out: BytesMut,
    settings: Settings,
    /// What it asks of answers from memory, where a statement does not say otherwise.
    level: Level,
    /// Everything that anybody knew to be committed when the request under way came is known to the cache.
    is_fenced: bool,
    /// This session's part of every cache key.
    scope: HashedStr,
    /// What the meaning of names depends on, in the transaction in progress if there is one.
    names: Arc<NameScope>,
    /// What the meaning of a statement depends on that is parsed now: `scope` with the settings of the transaction in
    /// progress.
    parse_scope: HashedStr,
    /// A statement of the unit under way changes settings: what its names mean is known when the server is ready.
    names_in_doubt: bool,
    /// Stands for `parse_scope` while names are in doubt.
    doubtful_scope: Option<HashedStr>,
    /// Settings of the startup packet that were reset in the transaction in progress: the server went to its own
    /// defaults, and is told the client's before the next statement.
    to_restore: BTreeSet<Box<str>>,
    /// Prepared statements by the client's names.
    statements: Named,
    /// The client's own text of those that speak of others by name.
    sql_uses: SqlUses,
    /// The text of the query at the front of the input, and what it was translated to.
    translation: Option<Box<(Box<str>, Translated)>>,
    /// Which statement each portal runs.
    portals: Named,
    /// What the unnamed one of them was bound with.
    bound: Bound,
    /// Transaction status as of the last ReadyForQuery: `I`, `T` or `E`.
    status: u8,
    /// A transaction that the client has begun and the server has not heard of.
    deferred: Option<Deferred>,
    /// In a transaction: its reads see what is committed when they run, and nothing of its own.
    sees_committed: bool,
    /// In a transaction: the client's unnamed portal ran here, and whatever the server has under that name is older.
    unnamed_portal_is_here: bool,
    /// What ties the session to its server connection.
    pins: Pins,
    /// Marks the slots of what this session writes, from before the first write until the transaction's end is known.
    intent: Option<WriteIntent>,
    /// All that it marks is what a text might write that can't be parsed.
    intends_unparsed: bool,
    capture: Option<Capture>,
    running: Running,
    /// When it was given the server connection, if it has not been used since.
    linked_at: Option<Instant>,
    /// Since when the server has been at the unit under way, and at the transaction.
    asked_at: Option<Instant>,
    begun_at: Option<Instant>,
    /// When the server was ready last, if that was just now.
    ready_at: Option<Instant>,
    /// The class of the statement that is sent next, where the cache asked for it already.
    class: Option<Arc<Class>>,
    /// An error was answered here: everything up to the next Sync is dropped.
    skip_to_sync: bool,
    /// Empty, with room for the next reply that is collected.
    reply_buffer: Vec<u8>,
    /// Scratch for the parameter part of cache keys.
    key_buffer: Vec<u8>,
    /// Scratch for normalised statement text.
    text_buffer: Vec<u8>,
    /// Texts whose effects on the session are not known for want of a catalog.
    unresolved: Unresolved,
    /// A RESET was part of the transaction in progress.
    was_reset: bool,
    /// What it listens to without a server connection of its own.
    listening: Option<Box<Listening>>,
    /// The request at the front of `input` was made before, and is not made a third time.
    is_second_attempt: bool,
    /// It has asked for the last value of a sequence.
    reads_sequences: bool,
    /// The transaction in progress has changed what sessions begin with.
    alters_defaults: bool,
    /// The client sends no more: what it has asked for is done, then the session ends.
    is_ending: bool,
    /// How much longer the statement of a client is let run whose connection has ended.
    patience: Option<Pin<Box<Sleep>>>,
}

/// The reply that a leader of a flight collects on its way to the client.
#[derive(Debug)]
struct Capture {
    fill: Fill,
    /// The answer depends on time alone.
    bound: Option<AgeBound>,
    reply: Vec<u8>,
    /// There is a row in it.
    has_rows: bool,
    /// Longer replies are not collected, in bytes.
    reply_max: usize,
}

/// What the server is at, in the unit under way.
#[derive(Debug, Default)]
enum Running {
    #[default]
    Nothing,
    /// Since then.
    One(StatementHandle, Instant),
    Several,
}

/// Why a session ends.
#[derive(Debug)]
pub(crate) enum End {
    /// The client said goodbye or went away.
    Client,
    /// Told to the client, if it still listens.
    Error(ClientError),
}

impl From<ClientError> for End {
    fn from(error: ClientError) -> Self {
        Self::Error(error)
    }
}

impl Session {
    fn info(&self) -> &Arc<ClientInfo> {
        &self.admitted.info
    }

    /// Serves the client until it leaves or the session can't go on.
    ///
    /// In a box: the task of a client has room for the session once.
    pub(crate) async fn run(mut self: Box<Self>) {
        let end = self.serve().await;
        // One behind HIDB is a part of its connection.
        if !matches!(end, Err(End::Error(_))) && !self.stream.is_pipe() {
            self.info().log_departure(&self.gateway.config().log);
        }
        if let Err(End::Error(error)) = &end {
            self.gateway.stats.count_error(error.kind);
            let info = self.info();
            tracing::info!(
                client = info.id,
                sqlstate = %error.sqlstate,
                "{}/{}@{} {}",
                info.database,
                info.user,
                info.peer,
                error.closing(info.age())
            );
            // In the middle of a row it would be read as a part of it.
            if self.link.as_ref().is_none_or(|link| link.skip == 0) {
                error.put(&mut self.out);
            }
        }
        // First: whoever waits for the server connection does not wait for this client's goodbye.
        self.let_go();
        if matches!(end, Err(End::Error(_))) {
            // The client may be gone: whether it reads this is its affair.
            let farewell = async {
                self.stream.write_all(&self.out).await?;
                self.stream.shutdown().await
            };
            let _ = Box::pin(tokio::time::timeout(FAREWELL_TIMEOUT, farewell)).await;
        }
    }

    async fn serve(&mut self) -> Result<(), End> {
        loop {
            match self.next_event().await? {
                Event::Request(decided) => {
                    self.note_work();
                    self.request(decided).await?;
                }
                Event::Ready => {
                    self.note_work();
                    Box::pin(self.ready()).await?;
                }
                Event::Resolve => {
                    self.note_work();
                    // As all that is rare and takes room: an idle client has none for it.
                    Box::pin(self.resolve()).await;
                }
                Event::Closed => return Ok(()),
            }
        }
    }

    /// True where an answer may come from the cache: outside of a transaction or where it makes no difference, with
    /// nothing under way on the server, and with session state that the key describes in full.
    fn may_read_cache(&self) -> bool {
        (self.status == b'I' || self.status == b'T' && self.sees_committed)
            && self.pins.taint().is_none()
            && self.link.as_ref().is_none_or(Link::is_quiet)
            && self.caches()
            && !self.info().bypasses_cache()
    }

    /// Whether answers of this database may come from memory at all.
    fn caches(&self) -> bool {
        self.gateway.cache_enabled() && self.pool.caches()
    }

    /// Gives the server connection back, unless something ties the session to it.
    fn release_if_free(&mut self) {
        let now = self.ready_at.take();
        let Some(link) = &self.link else { return };
        let is_done = link.is_quiet() && link.out.is_empty() && !self.is_ready_due();
        if self.status == b'I' && is_done && !self.pins.any() {
            self.release(now);
        }
    }

    /// Gives the server connection back in the state that it is in. `now`: if the clock was read a moment ago.
    fn release(&mut self, now: Option<Instant>) {
        let Some(link) = self.link.take() else {
            return;
        };
        let mut lease = link.into_lease();
        // Back to a state with a name.
        lease.dirty |= !lease.applied.is_known();
        lease
            .info
            .prepared
            .store(lease.statements.len(), Ordering::Relaxed);
        lease.info.returned();
        let prepared = u32::try_from(self.statements.len()).unwrap_or(u32::MAX);
        let info = self.info();
        info.prepared.store(prepared, Ordering::Relaxed);
        info.set_activity(Activity::Idle);
        if info.unlink() {
            // A cancel request is on its way to this server process: the next client must not be hit by it.
            let info = Arc::clone(info);
            tokio::spawn(async move {
                info.cancel_delivered().await;
                drop(lease);
            });
        } else if let Some(now) = now {
            lease.release_at(now);
        }
    }

    /// The end of a session in any state: the connection is cleaned or closed, and no write is left unaccounted for.
    fn let_go(&mut self) {
        self.capture = None;
        let intent = self.intent.take();
        let Some(link) = &mut self.link else {
            // Without a connection no write can be open.
            drop(intent);
            return;
        };
        if link.is_quiet() && link.out.is_empty() && !link.lease.broken {
            // An open transaction dies in the pool's reset: it can no longer commit.
            link.lease.dirty |= self.status != b'I' || self.pins.any();
            drop(intent);
            self.release(None);
            return;
        }
        if let Some(link) = self.link.take() {
            self.info().unlink();
            link.lease.info.returned();
            let (pool, client) = (Arc::clone(&self.pool), Arc::clone(self.info()));
            tokio::spawn(wire::abandon(pool, client, link, intent));
        }
    }

    fn count_query(&self) {
        Counters::add(&self.info().counters.queries, 1);
    }
}

const FAREWELL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);
