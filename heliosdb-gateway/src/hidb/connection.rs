//! One HIDB connection: many requests at a time, answered in the order in which they are done.
//!
//! A single task owns the socket. **Whatever an answer shows of writes, the client was told of before it**: the feed of
//! changes is written up to date ahead of every answer and every Pong.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use heliosdb_cache::{Answer, HashedStr, SlotId};
use heliosdb_network::protocol::{
    self, AnswerSource, CacheUse, FRAME_MAX, Facts, Frame, HidbMessage, Invalidated, Near,
    QueryRef, Welcome,
};
use heliosdb_network::server::{Guest, error_body};
use heliosdb_network::{HeliosError, WireStream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use crate::clients::{Admitted, ClientInfo, Counters, Identity, Origin, Signal};
use crate::error::ClientError;
use crate::gateway::Gateway;
use crate::session::unit::ReadUnit;
use crate::session::{Entrance, admit, enter};

use super::lane::{self, Event, Lane, LaneId, Outcome};

/// Requests that may be open on a connection.
const OPEN_MAX: u32 = 1024;
/// They are at most so long together. More than one of the longest frames.
const OPEN_BYTES_MAX: usize = 4 * FRAME_MAX;
/// Sessions without a name that work for a connection at a time. As many statements of it can be at the server.
const LANES_MAX: usize = 32;
/// As many of them are kept while they have nothing to do.
const IDLE_MAX: usize = 4;
/// Named sessions on a connection.
const SESSIONS_MAX: usize = 256;
/// No more is read while this much waits to be written.
const HIGH_WATER: usize = 1 << 20;
/// Answers from memory go in pieces of about this much, so that those behind them need not wait for all of a long one.
const PIECE: usize = 256 << 10;
/// SQLSTATE of a request that wants its answer from memory or not at all.
const NOT_IN_MEMORY: &str = "ZC001";
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
        user: login.user,
        database,
        application_name: application_name
            .map(|(_, value)| value.clone())
            .unwrap_or_default(),
        address,
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
    let admitted = admit(gateway, identity)?;
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

/// A request that has not been answered.
struct Open {
    /// The payload that asked for it.
    payload: Bytes,
    session: u32,
    lane: Option<LaneId>,
    /// It is not wanted any more.
    is_cancelled: bool,
    /// The answer is to say what it depends on.
    is_near: bool,
    bypasses_cache: bool,
    /// A piece of the answer was sent.
    has_parts: bool,
}

/// A named session.
struct SessionState {
    lane: LaneId,
    queue: VecDeque<u64>,
    /// The request that it is at.
    running: Option<u64>,
    /// The client has closed it: it ends when what was asked before is done.
    is_closed: bool,
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
            if self.is_ending && self.open.is_empty() && self.out.is_empty() && is_flushed {
                return Err(End::Told("the server is shutting down".to_owned()));
            }
            let has_room = self.out.len() < HIGH_WATER;
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
            && self.gateway.cache_enabled();
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

    /// Writes an answer, a long one in pieces.
    fn put_answer(&mut self, request: u64, run: &[u8], facts: &Facts) {
        let mut rest = run;
        while rest.len() > 2 * PIECE {
            let (piece, behind) = rest.split_at(piece_len(rest));
            if behind.is_empty() {
                break;
            }
            let part = HidbMessage::Part(Bytes::copy_from_slice(piece));
            if !self.put_or_fail(request, part) {
                return;
            }
            rest = behind;
        }
        let before = self.out.len();
        if protocol::encode_answer(request, rest, facts, &mut self.out).is_err() {
            self.out.truncate(before);
            self.fail_too_long(request);
        }
    }

    fn put_or_fail(&mut self, request: u64, message: HidbMessage) -> bool {
        let is_put = protocol::encode(&Frame { request, message }, &mut self.out).is_ok();
        if !is_put {
            self.fail_too_long(request);
        }
        is_put
    }

    fn fail_too_long(&mut self, request: u64) {
        let what = "a row is too long for HIDB: use the port for PostgreSQL clients";
        self.fail(request, "54000", what);
    }

    fn fail(&mut self, request: u64, sqlstate: &str, what: &str) {
        let failed = HidbMessage::Failed(error_body("ERROR", sqlstate, what));
        put(&mut self.out, request, failed);
    }

    /// Takes a statement that has to be run.
    fn accept(&mut self, request: u64, payload: Bytes) -> Result<(), End> {
        let Some(query) = QueryRef::decode(&payload)? else {
            return Ok(());
        };
        if self.open.contains_key(&request) {
            return Err(End::Told(format!("request {request} is open already")));
        }
        let refusal = if self.is_ending {
            Some(("57P01", "the server is shutting down"))
        } else if self.open.len() >= OPEN_MAX as usize {
            Some(("53400", "too many requests are open on this connection"))
        } else if self.open_bytes + payload.len() > OPEN_BYTES_MAX {
            Some((
                "53400",
                "the requests that are open on this connection are too long together",
            ))
        } else if query.text.contains('\0') {
            Some(("22021", "a statement can't hold a zero byte"))
        } else if query.cache == CacheUse::Only {
            Some((NOT_IN_MEMORY, "the answer is not in memory"))
        } else {
            None
        };
        if let Some((sqlstate, what)) = refusal {
            self.fail(request, sqlstate, what);
            return Ok(());
        }
        let session = query.session;
        let open = Open {
            session,
            lane: None,
            is_cancelled: false,
            is_near: query.near && session == 0,
            bypasses_cache: query.cache == CacheUse::Bypass || query.max_age_ms.is_some(),
            has_parts: false,
            payload,
        };
        self.open_bytes += open.payload.len();
        self.open.insert(request, open);
        if session == 0 {
            self.queue.push_back(request);
            self.assign();
        } else {
            self.ask_session(session, request);
        }
        Ok(())
    }

    /// Gives waiting requests to lanes.
    fn assign(&mut self) {
        while let Some(&request) = self.queue.front() {
            let lane = match self.idle.pop() {
                Some(lane) => lane,
                None if self.unnamed < LANES_MAX => match self.open_lane() {
                    Ok(lane) => {
                        self.unnamed += 1;
                        lane
                    }
                    // It waits for a lane that there is.
                    Err(_) if self.unnamed > 0 => return,
                    Err(error) => {
                        self.queue.pop_front();
                        self.refuse(request, &error);
                        continue;
                    }
                },
                None => return,
            };
            self.queue.pop_front();
            self.hand_over(request, lane);
        }
    }

    fn refuse(&mut self, request: u64, error: &ClientError) {
        self.gateway.stats.count_error(error.kind);
        self.close(request);
        put(&mut self.out, request, HidbMessage::Failed(body(error)));
    }

    fn open_lane(&mut self) -> Result<LaneId, ClientError> {
        let info = &self.admitted.info;
        let identity = Identity {
            user: info.user.clone(),
            database: info.database.clone(),
            application_name: info.application_name.clone(),
            address: info.address,
            secret_len: 32,
        };
        let admitted = admit(&self.gateway, identity)?;
        self.last_lane += 1;
        let id = self.last_lane;
        let events = self.events.0.clone();
        let lane = Lane::open(&self.gateway, admitted, &self.entrance, id, events);
        self.lanes.insert(id, lane);
        Ok(id)
    }

    fn hand_over(&mut self, request: u64, lane: LaneId) {
        let Some(open) = self.open.get_mut(&request) else {
            return;
        };
        open.lane = Some(lane);
        let mut bytes = BytesMut::new();
        if let Ok(Some(query)) = QueryRef::decode(&open.payload) {
            lane::put_request(&query, &mut bytes);
        }
        if !open.is_near {
            self.open_bytes -= std::mem::take(&mut open.payload).len();
        }
        let handed = lane::Request {
            id: request,
            bytes,
            bypasses_cache: open.bypasses_cache,
        };
        let sent = match self.lanes.get(&lane) {
            Some(lane) => lane.send(handed).is_ok(),
            None => false,
        };
        if !sent {
            self.close(request);
            self.fail(
                request,
                "57P01",
                "the session ended before its statement was run",
            );
        }
    }

    fn ask_session(&mut self, session: u32, request: u64) {
        if let Some(state) = self
            .sessions
            .get_mut(&session)
            .filter(|state| !state.is_closed)
        {
            if state.running.is_none() {
                state.running = Some(request);
                let lane = state.lane;
                self.hand_over(request, lane);
            } else {
                state.queue.push_back(request);
            }
            return;
        }
        if self.sessions.len() >= SESSIONS_MAX || self.sessions.contains_key(&session) {
            let what = if self.sessions.contains_key(&session) {
                "the session of that number is being closed"
            } else {
                "too many sessions are open on this connection"
            };
            self.close(request);
            self.fail(request, "53400", what);
            return;
        }
        match self.open_lane() {
            Ok(lane) => {
                let state = SessionState {
                    lane,
                    queue: VecDeque::new(),
                    running: Some(request),
                    is_closed: false,
                };
                self.sessions.insert(session, state);
                self.hand_over(request, lane);
            }
            Err(error) => self.refuse(request, &error),
        }
    }

    fn close_session(&mut self, session: u32) {
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        state.is_closed = true;
        if state.running.is_none() {
            let lane = state.lane;
            self.sessions.remove(&session);
            self.lanes.remove(&lane);
        }
    }

    fn cancel(&mut self, request: u64) {
        let Some(open) = self.open.get_mut(&request) else {
            return;
        };
        open.is_cancelled = true;
        match open.lane.and_then(|lane| self.lanes.get(&lane)) {
            Some(lane) => {
                let info = Arc::clone(&lane.info);
                tokio::spawn(async move { info.cancel().await });
            }
            None => {
                let session = open.session;
                self.close(request);
                self.queue.retain(|waiting| *waiting != request);
                if let Some(state) = self.sessions.get_mut(&session) {
                    state.queue.retain(|waiting| *waiting != request);
                }
                self.fail(request, "57014", "canceling statement due to user request");
            }
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Part { request, run } => {
                if let Some(open) = self.open.get_mut(&request) {
                    open.has_parts = true;
                    if !self.put_or_fail(request, HidbMessage::Part(run)) {
                        // Nothing more of it is wanted.
                        self.cancel(request);
                        self.close(request);
                    }
                }
            }
            Event::Ended {
                request,
                lane,
                outcome,
                origin,
                status,
                is_as_new,
            } => {
                let is_final = matches!(outcome, Outcome::Failed { is_final: true, .. });
                self.end_request(request, outcome, origin, status);
                self.take_back(lane, status, is_as_new, is_final);
            }
            Event::Gone { lane } => self.forget(lane),
        }
        Ok(())
    }

    /// The request is not open any more.
    fn close(&mut self, request: u64) -> Option<Open> {
        let open = self.open.remove(&request)?;
        self.open_bytes -= open.payload.len();
        Some(open)
    }

    fn end_request(&mut self, request: u64, outcome: Outcome, origin: Origin, status: u8) {
        let Some(open) = self.close(request) else {
            return;
        };
        match outcome {
            Outcome::Failed { body, .. } => {
                self.tell_changes();
                put(&mut self.out, request, HidbMessage::Failed(body));
            }
            // Its transaction is rolled back with its session: what it said is not true.
            Outcome::Answer(_) if open.session == 0 && status != b'I' => {
                self.tell_changes();
                let what = "a transaction needs a session: give its statements the same number other than 0";
                self.fail(request, "25000", what);
            }
            Outcome::Answer(run) => {
                let near = (open.is_near && !open.has_parts)
                    .then(|| self.kept(&open.payload, &run))
                    .flatten();
                let (source, age_ms) = match origin {
                    Origin::Memory { age_ms } => (AnswerSource::Hit, age_ms),
                    Origin::Offered => (AnswerSource::Miss, 0),
                    Origin::Server => (AnswerSource::Server, 0),
                };
                let facts = Facts {
                    source,
                    age_ms,
                    status,
                    position: self.tell_changes(),
                    near,
                };
                self.put_answer(request, &run, &facts);
            }
        }
    }

    /// What an answer depends on, if the same is in the cache now: then it is as good as that one.
    fn kept(&mut self, payload: &[u8], run: &[u8]) -> Option<Near> {
        let query = QueryRef::decode(payload).ok()??;
        let as_of = self.gateway.cache.versions().feed().position();
        let (types, bind) = lane::arguments(&query);
        let unit = ReadUnit::described(query.text, types, bind);
        unit.put_params(&mut self.params);
        let key = unit.key(&self.params, &self.scope);
        let kept = self
            .gateway
            .cache
            .peek(&key)
            .filter(|kept| **kept == *run)?;
        Some(near(&kept, as_of))
    }

    /// A lane has done its request.
    fn take_back(&mut self, lane: LaneId, status: u8, is_as_new: bool, is_final: bool) {
        let session = self
            .sessions
            .iter()
            .find(|(_, state)| state.lane == lane)
            .map(|(session, _)| *session);
        match session {
            Some(session) => {
                if is_final {
                    self.end_session(session);
                } else {
                    self.go_on(session);
                }
            }
            None => {
                let is_kept = is_as_new && status == b'I' && !is_final;
                let is_wanted = self.idle.len() < IDLE_MAX || !self.queue.is_empty();
                if is_kept && is_wanted && self.lanes.contains_key(&lane) {
                    self.idle.push(lane);
                } else {
                    self.remove_unnamed(lane);
                    self.renew_entrance();
                }
                self.assign();
            }
        }
    }

    /// New sessions begin with the server's defaults as they are now.
    fn renew_entrance(&mut self) {
        let known = self.entrance.pool.known_baseline();
        if let Some(known) =
            known.filter(|known| known.fingerprint != self.entrance.baseline.fingerprint)
        {
            self.entrance.baseline = known;
            self.scope = self.entrance.scope();
        }
    }

    fn go_on(&mut self, session: u32) {
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        let lane = state.lane;
        state.running = state.queue.pop_front();
        match state.running {
            Some(request) => self.hand_over(request, lane),
            None if state.is_closed => {
                self.sessions.remove(&session);
                self.lanes.remove(&lane);
            }
            None => {}
        }
    }

    /// A session that can't go on: what waits in it is not run.
    fn end_session(&mut self, session: u32) {
        let Some(state) = self.sessions.remove(&session) else {
            return;
        };
        self.lanes.remove(&state.lane);
        for request in state.queue {
            self.close(request);
            self.fail(
                request,
                "57P01",
                "the session ended before its statement was run",
            );
        }
    }

    fn forget(&mut self, lane: LaneId) {
        let session = self
            .sessions
            .iter()
            .find(|(_, state)| state.lane == lane)
            .map(|(session, _)| *session);
        if let Some(session) = session {
            self.end_session(session);
        } else {
            self.idle.retain(|idle| *idle != lane);
            self.remove_unnamed(lane);
            self.assign();
        }
    }

    fn remove_unnamed(&mut self, lane: LaneId) {
        self.unnamed -= usize::from(self.lanes.remove(&lane).is_some());
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

fn near(answer: &Answer, as_of: u64) -> Near {
    Near {
        as_of,
        slots: answer.slots().map(SlotId::index).collect(),
    }
}

/// Length of the whole messages that make up about [`PIECE`] bytes; all of `run` if there is only one.
fn piece_len(run: &[u8]) -> usize {
    let mut len = 0;
    while len < PIECE {
        let Some(head) = run[len..].first_chunk::<5>() else {
            return run.len();
        };
        len += u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize + 1;
        if len >= run.len() {
            return run.len();
        }
    }
    len
}

fn payload_len(frame: &[u8]) -> usize {
    frame
        .first_chunk::<4>()
        .map_or(0, |len| u32::from_le_bytes(*len) as usize)
}

fn put(out: &mut BytesMut, request: u64, message: HidbMessage) {
    // Nothing that is put here comes near the bound of a frame.
    let put = protocol::encode(&Frame { request, message }, out);
    debug_assert!(put.is_ok(), "{put:?}");
}

/// An error as HIDB carries it.
fn body(error: &ClientError) -> Bytes {
    let mut out = BytesMut::new();
    error.put(&mut out);
    out.split_off(5).freeze()
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
