//! One HIDB connection: many requests at a time, answered in the order in which they are done.
//!
//! A single task owns the socket. **Whatever an answer shows of writes, the client was told of before it**: the feed of
//! changes is written up to date ahead of every answer and every Pong.

mod answers;
mod requests;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use heliosdb_cache::{HashedStr, SlotId};
use heliosdb_network::postgres::Credential;
use heliosdb_network::postgres::auth::Granted;
use heliosdb_network::protocol::{
    self, AnswerSource, CacheUse, FRAME_MAX, Facts, HidbMessage, Invalidated, QueryRef, Welcome,
};
use heliosdb_network::server::Guest;
use heliosdb_network::{HeliosError, WireStream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use crate::clients::{Admitted, ClientInfo, ClientKind, Counters, Identity, Peer, Signal};
use crate::error::ClientError;
use crate::gateway::Gateway;
use crate::session::unit::ReadUnit;
use crate::session::{Entrance, admit, enter};

use super::lane::{self, Event, Lane, LaneId};

use answers::{body, near, put};
use requests::{Open, SessionState};

/// Requests that may be open on a connection.
const OPEN_MAX: u32 = 1024;
/// No more is read while this much waits to be written.
const HIGH_WATER: usize = 1 << 20;
/// Room for what is read at a time, at the least.
const READ_MIN: usize = 16 << 10;
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves a client that has proved who it is.
pub(super) async fn serve(gateway: &Arc<Gateway>, guest: Guest, address: SocketAddr) {
    let Guest {
        mut stream,
        input,
        login,
        request,
        ..
    } = guest;
    let database = if login.database.is_empty() {
        login.user.clone()
    } else {
        login.database
    };
    let application_name = login
        .settings
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("application_name"));
    let identity = Identity {
        kind: ClientKind::Hidb,
        user: login.user,
        database,
        application_name: application_name
            .map(|(_, value)| value.clone())
            .unwrap_or_default(),
        peer: Peer::Tcp(address),
        secret_len: 32,
    };
    match let_in(gateway, identity, login.settings).await {
        Ok((admitted, entrance)) => {
            let mut out = BytesMut::new();
            let welcome = HidbMessage::Welcome(Welcome {
                parameters: entrance.parameters.clone(),
                open_max: OPEN_MAX,
                frame_max: u32::try_from(FRAME_MAX).unwrap_or(u32::MAX),
                instance: gateway.instance.get(),
            });
            put(&mut out, request, welcome);
            let connection = Connection::new(gateway, admitted, entrance, input, out);
            connection.run(stream).await;
        }
        Err(error) => {
            gateway.stats.count_error(error.kind);
            tracing::info!(%address, sqlstate = %error.sqlstate, "HIDB login refused: {error}");
            let mut out = BytesMut::new();
            put(&mut out, request, HidbMessage::Failed(body(&error)));
            let farewell = async {
                stream.write_all(&out).await?;
                stream.shutdown().await
            };
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, farewell).await;
        }
    }
}

async fn let_in(
    gateway: &Gateway,
    identity: Identity,
    settings: Vec<(String, String)>,
) -> Result<(Admitted, Entrance), ClientError> {
    let admitted = admit(gateway, identity, None)?;
    let (info, access) = (&admitted.info, gateway.access.load_full());
    let kept = |user: &str| access.credential(user, Granted::default(), None);
    let learning = gateway
        .upstream
        .learn(&info.user, &info.database, Credential::None, kept);
    let _pool = learning?;
    let patience = gateway.config().clients.login_timeout;
    let entering = enter(gateway, &admitted, settings);
    match tokio::time::timeout(patience, entering).await {
        Ok(entrance) => Ok((admitted, entrance?)),
        Err(_) => Err(ClientError::connection_lost(&format!(
            "it did not answer a login within {patience:?}"
        ))),
    }
}

struct Connection {
    gateway: Arc<Gateway>,
    admitted: Admitted,
    entrance: Entrance,
    /// What sessions of this connection begin with, as part of cache keys.
    scope: HashedStr,
    input: BytesMut,
    out: BytesMut,
    open: HashMap<u64, Open>,
    /// What the payloads of those that are open take.
    open_bytes: usize,
    lanes: HashMap<LaneId, Lane>,
    /// Lanes without a name and without a request.
    idle: Vec<LaneId>,
    /// Requests that wait for such a lane.
    queue: VecDeque<u64>,
    sessions: HashMap<u32, SessionState>,
    last_lane: LaneId,
    /// Lanes without a name.
    unnamed: usize,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    /// The place in the feed up to which the client was told, if it wants to be.
    subscribed: Option<u64>,
    /// No new requests; the connection ends when those that are open have.
    is_ending: bool,
    changes: Vec<SlotId>,
    params: Vec<u8>,
}

/// Why a connection ends.
enum End {
    /// The client left.
    Gone,
    /// It is told.
    Told(String),
}

impl From<HeliosError> for End {
    fn from(error: HeliosError) -> Self {
        match error {
            HeliosError::Protocol(what) => Self::Told(what),
            _ => Self::Gone,
        }
    }
}

impl Connection {
    fn new(
        gateway: &Arc<Gateway>,
        admitted: Admitted,
        entrance: Entrance,
        input: BytesMut,
        out: BytesMut,
    ) -> Self {
        Self {
            gateway: Arc::clone(gateway),
            admitted,
            scope: entrance.scope(),
            entrance,
            input,
            out,
            open: HashMap::new(),
            open_bytes: 0,
            lanes: HashMap::new(),
            idle: Vec::new(),
            queue: VecDeque::new(),
            sessions: HashMap::new(),
            last_lane: 0,
            unnamed: 0,
            events: mpsc::channel(64),
            subscribed: None,
            is_ending: false,
            changes: Vec::new(),
            params: Vec::new(),
        }
    }

    async fn run(mut self, stream: WireStream) {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let end = self.serve(&mut reader, &mut writer).await;
        if let Err(End::Told(why)) = end {
            tracing::info!(
                client = self.admitted.info.id,
                "HIDB connection ends: {why}"
            );
            put(&mut self.out, 0, HidbMessage::Goodbye(why));
            let farewell = async {
                writer.write_all(&self.out).await?;
                writer.shutdown().await
            };
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, farewell).await;
        }
        // The lanes end with their senders: what only reads is stopped, what may write is done to its end.
    }

    async fn serve(
        &mut self,
        reader: &mut ReadHalf<WireStream>,
        writer: &mut WriteHalf<WireStream>,
    ) -> Result<(), End> {
        let gateway = Arc::clone(&self.gateway);
        let info = Arc::clone(&self.admitted.info);
        let mut is_flushed = true;
        loop {
            self.work_on_input()?;
            if self.is_ending && self.is_at_rest() && self.out.is_empty() && is_flushed {
                return Err(End::Told("the server is shutting down".to_owned()));
            }
            let has_room = self.out.len() < HIGH_WATER;
            // Room for many requests, so that those that come together are read together.
            self.input.reserve(READ_MIN);
            let feed = gateway.cache.versions().feed();
            let is_behind = self.subscribed.is_some() && has_room;
            let told = self.subscribed.unwrap_or_default();
            tokio::select! {
                read = reader.read_buf(&mut self.input), if has_room => match read {
                    Ok(0) | Err(_) => return Err(End::Gone),
                    Ok(read) => Counters::add(&info.counters.bytes_received, read as u64),
                },
                written = write_or_flush(writer, &mut self.out, &info),
                    if !self.out.is_empty() || !is_flushed =>
                {
                    is_flushed = written.map_err(|_| End::Gone)?;
                }
                event = self.events.1.recv(), if has_room => {
                    if let Some(event) = event {
                        self.on_event(event)?;
                    }
                }
                () = feed.changed(told), if is_behind => { self.tell_changes(); }
                asked = asked_to_leave(&info), if !self.is_ending => match asked {
                    Signal::Kill => return Err(End::Told("the server is shutting down".to_owned())),
                    _ => self.is_ending = true,
                },
            }
        }
    }

    /// Works on the frames that are whole.
    fn work_on_input(&mut self) -> Result<(), End> {
        let mut input = std::mem::take(&mut self.input);
        let worked = self.work_on(&mut input);
        self.input = input;
        worked
    }

    fn work_on(&mut self, input: &mut BytesMut) -> Result<(), End> {
        while self.out.len() < HIGH_WATER {
            let Some((request, payload, len)) = protocol::peek(input, FRAME_MAX)? else {
                break;
            };
            match QueryRef::decode(payload)? {
                Some(query) => {
                    if !self.answer_from_memory(request, &query)? {
                        let frame = input.split_to(len).freeze();
                        let payload = frame.slice(len - payload_len(&frame)..);
                        self.accept(request, payload)?;
                        continue;
                    }
                }
                None => self.on_message(request, &protocol::decode_message(payload)?)?,
            }
            input.advance(len);
        }
        Ok(())
    }

    fn on_message(&mut self, request: u64, message: &HidbMessage) -> Result<(), End> {
        match message {
            HidbMessage::Ping => {
                self.tell_changes();
                put(&mut self.out, request, HidbMessage::Pong);
            }
            HidbMessage::Pong => {}
            HidbMessage::Goodbye(_) => return Err(End::Gone),
            HidbMessage::Cancel => self.cancel(request),
            HidbMessage::CloseSession(session) => self.close_session(*session),
            HidbMessage::Subscribe => {
                let position = self.gateway.cache.versions().feed().position();
                let begun = *self.subscribed.get_or_insert(position);
                put(&mut self.out, request, HidbMessage::Subscribed(begun));
            }
            _ => {
                return Err(End::Told(
                    "a message that a client does not send".to_owned(),
                ));
            }
        }
        Ok(())
    }

    /// Answers a statement from memory. False if the answer is not there, or must not come from there.
    fn answer_from_memory(&mut self, request: u64, query: &QueryRef<'_>) -> Result<bool, End> {
        let may = query.session == 0
            && query.cache != CacheUse::Bypass
            && !self.is_ending
            && self.gateway.cache_enabled()
            && self.entrance.pool.caches()
            && self.entrance.pool.database.follower.gate.is_open();
        if !may {
            return Ok(false);
        }
        let as_of = self.gateway.cache.versions().feed().position();
        let answer = {
            let (types, bind) = lane::arguments(query);
            let unit = ReadUnit::described(query.text, types, bind);
            unit.put_params(&mut self.params);
            self.gateway
                .cache
                .lookup(&unit.key(&self.params, &self.scope))
        };
        let Some(answer) = answer else {
            return Ok(false);
        };
        let age = self.gateway.cache.age(&answer).as_millis();
        let age_ms = u32::try_from(age).unwrap_or(u32::MAX);
        if query.max_age_ms.is_some_and(|max| age_ms > max) {
            return Ok(false);
        }
        let info = &self.admitted.info;
        Counters::add(&info.counters.queries, 1);
        self.gateway.statements.of(query.text).record_hit();
        let facts = Facts {
            source: AnswerSource::Hit,
            age_ms,
            status: b'I',
            position: self.tell_changes(),
            near: query.near.then(|| near(&answer, as_of)),
        };
        self.put_answer(request, &answer, &facts);
        Ok(true)
    }

    /// Tells a client that wants to know what changed so far, and returns the place up to which that goes.
    fn tell_changes(&mut self) -> u64 {
        let feed = self.gateway.cache.versions().feed();
        let Some(told) = self.subscribed else {
            return feed.position();
        };
        if feed.position() == told {
            return told;
        }
        self.changes.clear();
        let (position, slots) = match feed.read(told, &mut self.changes) {
            Ok(position) => {
                self.changes.sort_unstable();
                self.changes.dedup();
                (
                    position,
                    self.changes.iter().map(|slot| slot.index()).collect(),
                )
            }
            // It lags too far behind to be told one by one: everything changed.
            Err(gap) => (gap.position, vec![0]),
        };
        self.subscribed = Some(position);
        let invalidated = Invalidated { position, slots };
        put(&mut self.out, 0, HidbMessage::Invalidated(invalidated));
        position
    }
}

fn payload_len(frame: &[u8]) -> usize {
    frame
        .first_chunk::<4>()
        .map_or(0, |len| u32::from_le_bytes(*len) as usize)
}

/// Writes some of what there is, or has what was written sent on. True if nothing is left in between.
async fn write_or_flush(
    writer: &mut WriteHalf<WireStream>,
    out: &mut BytesMut,
    info: &ClientInfo,
) -> std::io::Result<bool> {
    if out.is_empty() {
        return writer.flush().await.map(|()| true);
    }
    let written = writer.write_buf(out).await?;
    if written == 0 {
        return Err(std::io::ErrorKind::WriteZero.into());
    }
    Counters::add(&info.counters.bytes_sent, written as u64);
    Ok(false)
}

async fn asked_to_leave(info: &ClientInfo) -> Signal {
    std::future::poll_fn(|cx| {
        info.register(cx);
        if info.has_signal(Signal::Kill) {
            std::task::Poll::Ready(Signal::Kill)
        } else if info.has_signal(Signal::Drain) {
            std::task::Poll::Ready(Signal::Drain)
        } else {
            std::task::Poll::Pending
        }
    })
    .await
}
