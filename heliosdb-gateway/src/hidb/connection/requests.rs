//! Requests that have to be run: which lane they go to, in which order, and what becomes of them.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use heliosdb_network::protocol::{
    AnswerSource, CacheUse, FRAME_MAX, Facts, HidbMessage, Near, QueryRef,
};

use crate::clients::{ClientKind, Identity, Origin};
use crate::error::ClientError;
use crate::session::admit;
use crate::session::unit::ReadUnit;

use super::super::lane::{self, Event, Lane, LaneId, Outcome};
use super::answers::{body, near, put};
use super::{Connection, End, OPEN_MAX};

/// Requests that are open on a connection are at most so long together. More than one of the longest frames.
const OPEN_BYTES_MAX: usize = 4 * FRAME_MAX;
/// Sessions without a name that work for a connection at a time. As many statements of it can be at the server.
const LANES_MAX: usize = 32;
/// As many of them are kept while they have nothing to do.
const IDLE_MAX: usize = 4;
/// Named sessions on a connection.
const SESSIONS_MAX: usize = 256;
/// SQLSTATE of a request that wants its answer from memory or not at all.
const NOT_IN_MEMORY: &str = "ZC001";

/// A request that has not been answered.
pub(super) struct Open {
    /// The payload that asked for it, as long as it is needed.
    payload: Bytes,
    session: u32,
    lane: Option<LaneId>,
    /// The answer is to say what it depends on.
    is_near: bool,
    bypasses_cache: bool,
    max_age_ms: Option<u32>,
    /// A piece of the answer was sent.
    has_parts: bool,
}

/// A named session.
pub(super) struct SessionState {
    lane: LaneId,
    queue: VecDeque<u64>,
    /// The request that it is at.
    running: Option<u64>,
    /// The transaction status behind its last statement.
    status: u8,
    /// The client has closed it: it ends when what was asked before is done.
    is_closed: bool,
}

impl Connection {
    /// Takes a statement that has to be run.
    pub(super) fn accept(&mut self, request: u64, payload: Bytes) -> Result<(), End> {
        let Some(query) = QueryRef::decode(&payload)? else {
            return Ok(());
        };
        if self.open.contains_key(&request) {
            return Err(End::Told(format!("request {request} is open already")));
        }
        let refusal = if self.is_ending && !self.is_in_transaction(query.session) {
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
            is_near: query.near && session == 0,
            bypasses_cache: query.cache == CacheUse::Bypass,
            max_age_ms: query.max_age_ms,
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

    /// True if the session has something that it may bring to an end before the server stops.
    fn is_in_transaction(&self, session: u32) -> bool {
        let session = self.sessions.get(&session);
        session.is_some_and(|session| !session.is_closed && session.status != b'I')
    }

    /// True if nothing is open that is worth waiting for.
    pub(super) fn is_at_rest(&self) -> bool {
        let mut sessions = self.sessions.keys();
        self.open.is_empty() && !sessions.any(|session| self.is_in_transaction(*session))
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
            kind: ClientKind::Lane,
            user: info.user.clone(),
            database: info.database.clone(),
            application_name: info.application_name.clone(),
            peer: info.peer,
            secret_len: 32,
        };
        let admitted = admit(&self.gateway, identity, None)?;
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
            max_age_ms: open.max_age_ms,
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
            state.queue.push_back(request);
            if state.running.is_none() {
                self.go_on(session);
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
                    status: b'I',
                    is_closed: false,
                };
                self.sessions.insert(session, state);
                self.hand_over(request, lane);
            }
            Err(error) => self.refuse(request, &error),
        }
    }

    pub(super) fn close_session(&mut self, session: u32) {
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        state.is_closed = true;
        if state.running.is_none() {
            self.go_on(session);
        }
    }

    pub(super) fn cancel(&mut self, request: u64) {
        let Some(open) = self.open.get_mut(&request) else {
            return;
        };
        let lane = open.lane;
        match lane.and_then(|id| Some((id, self.lanes.get_mut(&id)?))) {
            Some((id, lane)) => {
                // Nothing else runs in this lane before it has arrived: it must not stop what comes next.
                lane.cancels += 1;
                let (info, events) = (Arc::clone(&lane.info), self.events.0.clone());
                tokio::spawn(async move {
                    info.cancel().await;
                    let _ = events.send(Event::CancelDelivered { lane: id }).await;
                });
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

    pub(super) fn on_event(&mut self, event: Event) -> Result<(), End> {
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
            Event::CancelDelivered { lane } => self.cancel_delivered(lane),
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

    /// The named session that a lane is for.
    fn session_of(&self, lane: LaneId) -> Option<u32> {
        let mut sessions = self.sessions.iter();
        let (session, _) = sessions.find(|(_, state)| state.lane == lane)?;
        Some(*session)
    }

    fn cancel_delivered(&mut self, lane: LaneId) {
        let Some(cancelled) = self.lanes.get_mut(&lane) else {
            return;
        };
        cancelled.cancels -= 1;
        if let Some(session) = self.session_of(lane)
            && let Some(state) = self.sessions.get(&session)
            && state.running.is_none()
        {
            self.go_on(session);
        }
    }

    /// A lane has done its request.
    fn take_back(&mut self, lane: LaneId, status: u8, is_as_new: bool, is_final: bool) {
        match self.session_of(lane) {
            Some(session) => {
                if is_final {
                    self.end_session(session);
                } else {
                    if let Some(state) = self.sessions.get_mut(&session) {
                        state.status = status;
                    }
                    self.go_on(session);
                }
            }
            None => {
                let is_kept = is_as_new && status == b'I' && !is_final;
                let is_wanted = self.idle.len() < IDLE_MAX || !self.queue.is_empty();
                let is_free = self.lanes.get(&lane).is_some_and(|lane| lane.cancels == 0);
                if is_kept && is_wanted && is_free {
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
    pub(super) fn renew_entrance(&mut self) {
        let known = self.entrance.pool.known_baseline();
        if let Some(known) =
            known.filter(|known| known.fingerprint != self.entrance.baseline.fingerprint)
        {
            self.entrance.baseline = known;
            self.scope = self.entrance.scope();
        }
    }

    /// Gives a session that is at nothing its next request, unless a cancel is on its way to it.
    fn go_on(&mut self, session: u32) {
        let Some(state) = self.sessions.get_mut(&session) else {
            return;
        };
        let lane = state.lane;
        state.running = None;
        if self.lanes.get(&lane).is_some_and(|lane| lane.cancels > 0) {
            return;
        }
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
        if let Some(session) = self.session_of(lane) {
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
}
