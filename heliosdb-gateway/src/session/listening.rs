//! A session that listens by its pool's listener instead of its own server connection.
//!
//! LISTEN and UNLISTEN are answered here where they stand alone, and the server never hears of them on the client's
//! connection. As there, they take effect with their transaction; and what is sent to the client's channels is told to
//! it while it is idle, or ahead of the ReadyForQuery that ends its transaction.
//! [`notifications`](crate::notifications) says why nothing is lost. Texts that mix them with other statements, and
//! requests of other forms, go to the server and pin the session.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use heliosdb_network::error::HeliosError;

use crate::clients::{Activity, ClientInfo, Counters, Signal};
use crate::error::{ClientError, ErrorKind};
use crate::notifications::{Asked, Inbox, Interest, ListenError, Step as Change, may_ask, read};
use crate::sql::{Effect, classify_without_catalog, value_items};
use crate::upstream::ServerPool;

use super::io::{HIGH_WATER, Step};
use super::link::{Link, put_frame};
use super::pins::Pin;
use super::request::{Decided, cancelled, is_taken};
use super::transaction::may_be_control;
use super::unit::{Front, Protocol, put_reply, recognise};
use super::{End, Session};

/// What a session listens to by its pool's listener.
#[derive(Debug)]
pub(super) struct Listening {
    pool: Arc<ServerPool>,
    inbox: Arc<Inbox>,
    interest: Interest,
    /// The transaction has ended, and ReadyForQuery waits for what was sent until then.
    ready_due: bool,
    /// What came up to now is known not to be for the channels that the transaction would add.
    is_fenced: bool,
    /// The server's process that the session has, and from which place in the inbox on what it sends is the session's own.
    own: Option<(i32, u64)>,
}

/// So many channels of one client.
const CHANNELS_MAX: usize = 10_000;
/// So many changes in one transaction.
const CHANGES_MAX: usize = 10_000;
/// How often it is tried anew when the listener's connection is lost meanwhile.
const TRIES_MAX: usize = 3;
const OWN_QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Fails, and tells the reader of the server's log why.
const FAIL: &str = "DO $$BEGIN RAISE 'a LISTEN in this transaction failed in the gateway'; END$$";

impl Listening {
    fn new(pool: Arc<ServerPool>, client: Arc<ClientInfo>, bytes_max: usize) -> Box<Self> {
        Box::new(Self {
            pool,
            inbox: Inbox::new(client, bytes_max),
            interest: Interest::default(),
            ready_due: false,
            is_fenced: false,
            own: None,
        })
    }

    /// Leaves what nobody needs any more.
    fn unsubscribe(&mut self) {
        let gone = self.interest.unsubscribe();
        if let Some(listener) = &self.pool.listener {
            listener.leave(&self.inbox, gone);
        }
    }

    /// Waits until everything is in the inbox that was committed before. False if that can't be known.
    async fn fence(&self, client: &ClientInfo) -> bool {
        let is_told = self.interest.is_subscribed() && !self.inbox.has_ended();
        let Some(listener) = self.pool.listener.as_ref().filter(|_| is_told) else {
            return false;
        };
        let fenced = client.or_signalled(Signal::Kill, listener.fence()).await;
        matches!(fenced, Some(Ok(())))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.interest.clear();
        self.unsubscribe();
    }
}

impl Session {
    /// True if the session hears by its pool's listener, or may with the end of its transaction.
    pub(super) fn is_subscribed(&self) -> bool {
        self.listening
            .as_ref()
            .is_some_and(|listening| listening.interest.is_subscribed())
    }

    /// True if the client is told of the channel by the pool's listener.
    pub(super) fn hears(&self, notification: &[u8]) -> bool {
        self.listening.as_ref().is_some_and(|listening| {
            let channel = notification.get(9..).unwrap_or_default();
            let len = memchr::memchr(0, channel).unwrap_or(0);
            listening.interest.hears(&channel[..len])
        })
    }

    /// The request at the front asks to listen or not to listen, and nothing else.
    pub(super) fn try_listen(&self, bytes: &[u8]) -> Option<Step> {
        self.asked(bytes)
            .is_some()
            .then_some(Step::Request(Decided::Listen))
    }

    fn asked(&self, bytes: &[u8]) -> Option<(Asked, usize)> {
        if is_other_query(bytes) {
            return None;
        }
        // Where the session's own connection listens, or may listen, that goes on.
        let listens_itself = [Pin::Listen, Pin::SessionMode, Pin::Unknown, Pin::Unresolved];
        if self.pool.listener.is_none()
            || self.stream.is_pipe()
            || listens_itself.into_iter().any(|pin| self.pins.has(pin))
        {
            return None;
        }
        let Front::Read(unit) = recognise(bytes, &self.statements, &self.scope) else {
            return None;
        };
        let text = unit.text.as_str();
        if !may_ask(text) || unit.is_prepare() || is_taken(&unit, &self.statements) {
            return None;
        }
        let is_utf8 = self.baseline.parameter("server_encoding") == Some("UTF8");
        let asked = read(text, &self.names, is_utf8)?;
        // More is an error in the extended protocol.
        (unit.is_simple() || asked.steps.len() == 1).then_some((asked, unit.len))
    }

    /// Does what the request at the front of `input` asks for. `None` if the server has to answer it.
    pub(super) async fn listen(&mut self, input: &[u8]) -> Result<Option<usize>, End> {
        let Some((asked, len)) = self.asked(input) else {
            return Ok(None);
        };
        let subscribed = self.subscribe(&asked.steps).await;
        if subscribed.is_err()
            && let Some(listening) = &mut self.listening
        {
            listening.unsubscribe();
        }
        match subscribed {
            Ok(()) => {}
            Err(None) => return Ok(None),
            Err(Some(error)) => {
                self.fail_transaction(FAIL).await?;
                return self.refuse(error, input, len).map(Some);
            }
        }
        if let Some(listening) = &mut self.listening {
            listening.interest.act(asked.steps.iter().cloned());
            if let Some(link) = &self.link {
                // Nothing that was sent over this connection by others can still come.
                let here = (link.process().pid, listening.inbox.next_place());
                listening.own.get_or_insert(here);
            }
        }
        if self.status == b'I' {
            self.commit_listening();
        }
        self.answer_listen(input, &asked)?;
        Ok(Some(len))
    }

    /// Has the session hear what is sent to channels that it does not listen to yet. `Err(None)`: the server refuses.
    async fn subscribe(&mut self, steps: &[Change]) -> Result<(), Option<ClientError>> {
        let listens = steps.iter().any(|step| matches!(step, Change::Listen(_)));
        if self.listening.is_none() && !listens {
            return Ok(());
        }
        let info = Arc::clone(self.info());
        let queue = self.gateway.config().clients.notification_queue.as_u64();
        let listening = self.listening.get_or_insert_with(|| {
            let bytes_max = usize::try_from(queue).unwrap_or(usize::MAX);
            Listening::new(Arc::clone(&self.pool), Arc::clone(&info), bytes_max)
        });
        let new = listening.interest.subscribe(steps);
        if listening.interest.channels() > CHANNELS_MAX
            || listening.interest.pending_len() + steps.len() > CHANGES_MAX
        {
            return Err(Some(too_many()));
        }
        let Some(listener) = self.pool.listener.as_ref().filter(|_| !new.is_empty()) else {
            return Ok(());
        };
        info.set_activity(Activity::Waiting);
        let mut tries = 1;
        let subscribed = loop {
            let waited = info.or_cancelled(listener.subscribe(&listening.inbox, &new));
            match waited.await {
                Some(Err(ListenError::Lost))
                    if tries < TRIES_MAX && !listening.inbox.has_ended() =>
                {
                    tries += 1;
                }
                other => break other,
            }
        };
        info.set_activity(if self.link.is_some() {
            Activity::Active
        } else {
            Activity::Idle
        });
        match subscribed {
            Some(Ok(())) => Ok(()),
            Some(Err(ListenError::Refused)) => Err(None),
            Some(Err(ListenError::Unreachable(error))) => Err(Some(error)),
            Some(Err(ListenError::Lost)) => Err(Some(ClientError::new(
                ErrorKind::Backend,
                "08006",
                "the connection by which sessions listen was lost",
            ))),
            None => Err(Some(cancelled(&info))),
        }
    }

    fn answer_listen(&mut self, input: &[u8], asked: &Asked) -> Result<(), End> {
        let Front::Read(unit) = recognise(input, &self.statements, &self.scope) else {
            return Ok(());
        };
        let is_parsed = unit.is_simple() || unit.parse().is_some();
        if let Some(notice) = asked
            .notice
            .as_ref()
            .filter(|_| is_parsed && self.wants_notices())
        {
            ClientError::new(ErrorKind::Client, "42622", notice.as_str()).put_notice(&mut self.out);
        }
        let mut reply = BytesMut::with_capacity(32);
        if matches!(unit.protocol, Protocol::Extended { describe: true, .. }) {
            put_frame(&mut reply, b'n', |_| {});
        }
        for step in &asked.steps {
            put_frame(&mut reply, b'C', |out| {
                out.put_slice(Asked::tag(step).as_bytes());
                out.put_u8(0);
            });
        }
        put_reply(&mut self.out, &unit.protocol, &reply, None);
        self.gateway
            .statements
            .of(unit.text.as_str())
            .record_execution();
        let is_simple = unit.is_simple();
        if let Some((name, statement)) = self.statement_to_remember(&unit) {
            self.statements.insert(&name, statement);
        }
        if is_simple {
            self.statements.remove(b"");
        }
        self.note_portal();
        self.count_query();
        if self.status == b'I' {
            Counters::add(&self.info().counters.transactions, 1);
        }
        let heard = self.hear();
        self.put_ready();
        heard.map(|_| ())
    }

    /// Whether the client asked for messages of that weight.
    fn wants_notices(&self) -> bool {
        let level = self.settings.get("client_min_messages").map(value_items);
        let level = level.map(|items| items.and_then(|items| items.first().cloned()));
        !matches!(
            level
                .flatten()
                .as_deref()
                .map(str::to_ascii_lowercase)
                .as_deref(),
            Some("warning" | "error" | "fatal" | "panic")
        )
    }

    /// Makes the server's transaction fail, if there is one.
    async fn fail_transaction(&mut self, sql: &str) -> Result<(), End> {
        if self.status != b'T' || self.deferred.is_some() {
            return Ok(());
        }
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        let lease = &mut link.lease;
        // Cut short, it leaves a reply behind that nobody reads.
        lease.broken = true;
        match tokio::time::timeout(OWN_QUERY_TIMEOUT, lease.simple_query(sql)).await {
            Ok(Ok(_)) => lease.broken = false,
            Ok(Err(HeliosError::Server(_))) => {
                lease.broken = false;
                self.on_ready(b'E', &[], true);
            }
            Ok(Err(error)) => {
                return Err(End::Error(ClientError::connection_lost(&error.to_string())));
            }
            Err(_) => {
                let cause = "it did not answer the gateway in time";
                return Err(End::Error(ClientError::connection_lost(cause)));
            }
        }
        Ok(())
    }

    /// Tells the client what waits for it, if it is idle. True if something did.
    pub(super) fn hear(&mut self) -> Result<bool, End> {
        let Some(listening) = &self.listening else {
            return Ok(false);
        };
        let is_idle = self.status == b'I'
            && !self.skip_to_sync
            && !listening.ready_due
            && self.link.as_ref().is_none_or(Link::is_quiet);
        if !is_idle {
            return Ok(false);
        }
        let is_utf8 = self.names.client_encoding_utf8;
        let interest = &listening.interest;
        let heard = listening
            .inbox
            .deliver(&mut self.out, HIGH_WATER, is_utf8, |channel| {
                interest.hears(channel)
            });
        Ok(heard?)
    }

    /// The server has ended a transaction. True if ReadyForQuery has to wait for what was sent until then.
    pub(super) fn delays_ready(&mut self) -> bool {
        match &mut self.listening {
            Some(listening) if self.status == b'I' && listening.interest.is_subscribed() => {
                listening.ready_due = true;
                true
            }
            _ => false,
        }
    }

    pub(super) fn is_ready_due(&self) -> bool {
        self.listening
            .as_ref()
            .is_some_and(|listening| listening.ready_due)
    }

    /// ReadyForQuery goes out if it was held back.
    pub(super) fn put_ready_due(&mut self) {
        if let Some(listening) = &mut self.listening
            && std::mem::take(&mut listening.ready_due)
        {
            self.put_ready();
        }
    }

    /// Tells the client what was sent up to the end of its transaction, and then that the server is ready.
    pub(super) async fn ready(&mut self) -> Result<(), End> {
        let client = Arc::clone(self.info());
        if let Some(listening) = &mut self.listening
            && listening.fence(&client).await
        {
            let next = listening.inbox.next_place();
            if let (Some(link), Some((pid, since))) = (&self.link, &mut listening.own)
                && link.process().pid == *pid
            {
                listening.inbox.claim(*pid, *since);
                *since = next;
            }
        }
        if let Some(listening) = &mut self.listening {
            listening.ready_due = false;
        }
        let heard = self.hear();
        self.put_ready();
        self.release_if_free();
        heard.map(|_| ())
    }

    /// A server connection was taken up: from here on, what its process sends is the session's own. What was sent until
    /// then is told to the client if it is idle.
    pub(super) async fn note_own_process(&mut self) {
        let client = Arc::clone(self.info());
        let (Some(listening), Some(link)) = (&mut self.listening, &self.link) else {
            return;
        };
        listening.own = None;
        if listening.fence(&client).await {
            listening.own = Some((link.process().pid, listening.inbox.next_place()));
        }
        // Where that ends the session, it says so again when this request is done.
        let _ = self.hear();
    }

    /// True if what was sent until now has to be told from what is sent later before the request at the front is worked
    /// on. In a transaction with changes of what the session listens to, that is what was sent before they are committed.
    /// Outside of one it is what the client would have heard before it began one, or ceased to listen; who asks for a
    /// server connection waits there.
    pub(super) fn needs_fence(&mut self, bytes: &[u8]) -> bool {
        let Some(listening) = &mut self.listening else {
            return false;
        };
        let is_needed = match self.status {
            b'T' => listening.interest.pending_len() > 0,
            b'I' if !listening.interest.is_subscribed() => false,
            b'I' if self.link.is_some() => true,
            b'I' => match recognise(bytes, &self.statements, &self.scope) {
                Front::Read(unit) | Front::First(unit) => {
                    let text = unit.text.as_str();
                    may_be_control(text) || may_ask(text)
                }
                Front::Incomplete | Front::Other => false,
            },
            _ => false,
        };
        is_needed && !std::mem::take(&mut listening.is_fenced)
    }

    /// Tells the client what was sent up to now; in a transaction, that is not for the channels that it would add. `input`
    /// comes next.
    pub(super) async fn fence_pending(&mut self, input: &[u8]) -> Result<(), End> {
        if self.prepares_transaction(input) {
            // Refused by the server, as soon as it hears of a LISTEN.
            if self.deferred.is_some() && self.link_up(input).await.is_err() {
                // As it will be told once more.
                self.put_fenced();
                return Ok(());
            }
            self.fail_transaction("LISTEN helios").await?;
        }
        let client = Arc::clone(self.info());
        if let Some(listening) = &self.listening
            && listening.fence(&client).await
        {
            let interest = &listening.interest;
            listening.inbox.retain(|channel| interest.hears(channel));
        }
        self.put_fenced();
        self.hear().map(|_| ())
    }

    fn put_fenced(&mut self) {
        if let Some(listening) = &mut self.listening {
            listening.is_fenced = true;
        }
    }

    /// The request at the front is PREPARE TRANSACTION.
    fn prepares_transaction(&self, input: &[u8]) -> bool {
        let (Front::Read(unit) | Front::First(unit)) =
            recognise(input, &self.statements, &self.scope)
        else {
            return false;
        };
        let text = unit.text.as_str();
        let start = text.trim_ascii_start().as_bytes().get(..7);
        start.is_some_and(|start| start.eq_ignore_ascii_case(b"prepare"))
            && classify_without_catalog(text, &self.names)
                .statements
                .iter()
                .flat_map(|statement| &statement.effects)
                .any(|effect| matches!(effect, Effect::PrepareTransaction(_)))
    }

    /// Something happened to the changes that wait for a commit.
    pub(super) fn change_interest(&mut self, change: impl FnOnce(&mut Interest)) {
        let Some(listening) = &mut self.listening else {
            return;
        };
        change(&mut listening.interest);
        listening.unsubscribe();
        let channels = listening.interest.len();
        let is_needed = listening.interest.is_subscribed() || listening.interest.pending_len() > 0;
        if !is_needed {
            self.listening = None;
        }
        self.info().set_channels(channels);
    }

    pub(super) fn commit_listening(&mut self) {
        self.change_interest(Interest::commit);
    }

    pub(super) fn roll_back_listening(&mut self) {
        self.change_interest(Interest::roll_back);
    }
}

/// A simple query that begins with another letter: most of them.
fn is_other_query(bytes: &[u8]) -> bool {
    let [b'Q', _, _, _, _, text @ ..] = bytes else {
        return false;
    };
    let first = text.trim_ascii_start().first();
    !matches!(first, Some(b'l' | b'L' | b'u' | b'U' | b'/' | b'-'))
}

fn too_many() -> ClientError {
    ClientError::new(
        ErrorKind::Client,
        "53400",
        format!(
            "a client can listen to {CHANNELS_MAX} channels, and change so many in a transaction"
        ),
    )
    .hint("Use fewer channels and tell what is meant by the payload, or more connections.")
}
