//! The task that owns a connection: it writes what callers left for it and gives them what comes.
//!
//! It ends with its [`HidbClient`](super::HidbClient), or when the connection does.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};

use crate::error::{HeliosError, Result};
use crate::postgres::ErrorFields;
use crate::protocol::{self, Facts, Frame, HidbMessage, Invalidated};
use crate::stream::WireStream;

use super::reply::Reply;

/// Room for what is read at a time, at the least.
const READ_MIN: usize = 16 << 10;
/// Pongs that wait to be written. Others can't keep a caller's memory busy.
const PONGS_MAX: usize = 1 << 16;

/// What callers and the task share.
pub(super) struct Shared {
    /// Why a lock: callers leave requests from any thread. Only moves of values and encoding happen under it, and calls of
    /// the subscriber, who must not block.
    pub(super) state: Mutex<State>,
    /// There is something to be written.
    written: Notify,
    /// There is something unclaimed, or the connection has ended.
    pub(super) arrived: Notify,
    /// Longest payload that the server takes, in bytes.
    frame_max: usize,
}

#[derive(Default)]
pub(super) struct State {
    /// To be written.
    out: BytesMut,
    open: HashMap<u64, Open>,
    last_request: u64,
    /// Answers to [`Open::Raw`].
    pub(super) unclaimed: VecDeque<HidbMessage>,
    /// Raw messages sent less answers claimed. Anything but zero: what comes next belongs to an earlier holder.
    pub(super) unanswered: i64,
    /// Sessions that were begun and not closed.
    pub(super) sessions: HashSet<u32>,
    /// Pongs among `out`.
    pongs: usize,
    /// A check was given up: no new requests.
    is_broken: bool,
    ended: Option<Ended>,
    pub(super) subscriber: Option<Subscriber>,
}

/// What is told to who keeps answers.
#[derive(Debug)]
#[non_exhaustive]
pub enum Push {
    /// The subscription begins behind this place.
    Began(u64),
    /// Slots changed.
    Invalidated(Invalidated),
    /// The connection has ended: nothing more will come.
    Ended,
}

pub(super) type Subscriber = Box<dyn FnMut(Push) + Send>;

/// A request that has not been answered.
pub(super) enum Open {
    /// Nobody waits for it any more.
    Abandoned(Option<OwnedSemaphorePermit>),
    Ping(oneshot::Sender<Result<()>>),
    Query(Collecting),
    /// Sent by hand: the answer is for whoever receives next.
    Raw,
}

/// An answer that comes in pieces.
pub(super) struct Collecting {
    pub(super) parts: BytesMut,
    pub(super) answer_max: usize,
    pub(super) done: oneshot::Sender<Result<Reply>>,
    /// As many requests may be open as the server allows. Given back when the server is done with it, not before.
    pub(super) permit: OwnedSemaphorePermit,
}

/// Why a connection ended.
#[derive(Debug, Clone)]
enum Ended {
    Network(String),
    Protocol(String),
}

impl Ended {
    fn to_error(&self) -> HeliosError {
        match self {
            Self::Network(what) => HeliosError::Network(what.clone()),
            Self::Protocol(what) => HeliosError::Protocol(what.clone()),
        }
    }
}

impl From<HeliosError> for Ended {
    fn from(error: HeliosError) -> Self {
        match error {
            HeliosError::Protocol(what) => Self::Protocol(what),
            HeliosError::Io { context, source } => Self::Network(format!("{context}: {source}")),
            other => Self::Network(other.to_string()),
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Shared")
            .field("open", &state.open.len())
            .field("ended", &state.ended)
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(frame_max: usize) -> Arc<Self> {
        Arc::new(Self {
            frame_max,
            state: Mutex::default(),
            written: Notify::new(),
            arrived: Notify::new(),
        })
    }

    /// Leaves a request for the task, and returns its number.
    pub(super) fn send(&self, message: HidbMessage, open: Option<Open>) -> Result<u64> {
        let mut state = self.state.lock();
        if let Some(ended) = &state.ended {
            let (Ended::Network(what) | Ended::Protocol(what)) = ended;
            return Err(HeliosError::Network(format!(
                "the connection has ended: {what}"
            )));
        }
        if state.is_broken {
            return Err(HeliosError::Network(
                "the connection is unusable since an exchange on it failed".to_owned(),
            ));
        }
        let request = state.last_request + 1;
        let before = state.out.len();
        protocol::encode(&Frame { request, message }, &mut state.out)?;
        let len = state.out.len() - before - protocol::HEADER;
        if len > self.frame_max {
            state.out.truncate(before);
            let what = format!("a message of {len} bytes is longer than the server takes");
            return Err(HeliosError::Protocol(what));
        }
        state.last_request = request;
        if let Some(open) = open {
            if matches!(open, Open::Raw) {
                state.unanswered += 1;
            }
            state.open.insert(request, open);
        }
        drop(state);
        self.written.notify_one();
        Ok(request)
    }

    /// Nobody waits for the answer any more: the server is asked to stop.
    pub(super) fn abandon(&self, request: u64) {
        let mut state = self.state.lock();
        if state.abandon(request) {
            drop(state);
            self.written.notify_one();
        }
    }

    /// No new requests from now on.
    pub(super) fn set_broken(&self) {
        self.state.lock().is_broken = true;
    }

    /// False once no more requests are taken.
    pub(super) fn is_usable(&self) -> bool {
        let state = self.state.lock();
        !state.is_broken && state.ended.is_none()
    }

    /// The first answer that was asked for by hand.
    pub(super) fn claim(&self) -> Option<Result<HidbMessage>> {
        let mut state = self.state.lock();
        match state.unclaimed.pop_front() {
            Some(message) => {
                state.unanswered -= 1;
                Some(Ok(message))
            }
            None => state.ended.as_ref().map(|ended| Err(ended.to_error())),
        }
    }

    fn end(&self, ended: Ended) {
        let (open, subscriber) = {
            let mut state = self.state.lock();
            state.ended.get_or_insert(ended);
            state.out = BytesMut::new();
            (std::mem::take(&mut state.open), state.subscriber.take())
        };
        let error = || {
            let state = self.state.lock();
            let ended = state.ended.as_ref().map(Ended::to_error);
            ended.unwrap_or_else(|| HeliosError::Network("the connection has ended".to_owned()))
        };
        if let Some(mut subscriber) = subscriber {
            subscriber(Push::Ended);
        }
        for open in open.into_values() {
            match open {
                Open::Ping(done) => drop(done.send(Err(error()))),
                Open::Query(collecting) => drop(collecting.done.send(Err(error()))),
                Open::Abandoned(_) | Open::Raw => {}
            }
        }
        self.arrived.notify_waiters();
    }

    /// Works on all frames that are whole. True if something has to be written.
    fn on_bytes(&self, input: &mut BytesMut) -> Result<bool> {
        let mut state = self.state.lock();
        let mut has_news = false;
        loop {
            match protocol::decode(input) {
                Ok(Some(frame)) => {
                    let unclaimed = state.unclaimed.len();
                    state.on_frame(frame)?;
                    has_news |= state.unclaimed.len() != unclaimed;
                }
                Ok(None) => break,
                Err(error) => return Err(error),
            }
        }
        if has_news {
            self.arrived.notify_waiters();
        }
        Ok(!state.out.is_empty())
    }

    fn take_out(&self, writing: &mut BytesMut) {
        let mut state = self.state.lock();
        std::mem::swap(&mut state.out, writing);
        state.pongs = 0;
    }
}

impl State {
    fn abandon(&mut self, request: u64) -> bool {
        let Some(open) = self.open.get_mut(&request) else {
            return false;
        };
        let permit = match std::mem::replace(open, Open::Abandoned(None)) {
            Open::Query(Collecting { permit, .. }) => Some(permit),
            Open::Abandoned(permit) => permit,
            Open::Ping(_) | Open::Raw => None,
        };
        *open = Open::Abandoned(permit);
        let message = HidbMessage::Cancel;
        protocol::encode(&Frame { request, message }, &mut self.out).is_ok()
    }

    fn on_frame(&mut self, Frame { request, message }: Frame) -> Result<()> {
        match message {
            HidbMessage::Goodbye(why) => {
                return Err(HeliosError::Network(format!(
                    "the server ended the connection: {why}"
                )));
            }
            HidbMessage::Ping if !self.open.contains_key(&request) => {
                self.pongs += 1;
                if self.pongs > PONGS_MAX {
                    return Err(HeliosError::Protocol(
                        "more pings than pongs are read".to_owned(),
                    ));
                }
                let message = HidbMessage::Pong;
                return protocol::encode(&Frame { request, message }, &mut self.out);
            }
            HidbMessage::Subscribed(position) => self.push(Push::Began(position))?,
            HidbMessage::Invalidated(invalidated) => self.push(Push::Invalidated(invalidated))?,
            HidbMessage::Part(part) => self.on_part(request, part)?,
            HidbMessage::Pong | HidbMessage::Answer(_) | HidbMessage::Failed(_) => {
                self.on_end(request, message)?;
            }
            _ => return Err(unasked("a message")),
        }
        Ok(())
    }

    fn push(&mut self, push: Push) -> Result<()> {
        let subscriber = self.subscriber.as_mut();
        subscriber.ok_or_else(|| unasked("a subscription"))?(push);
        Ok(())
    }

    fn on_part(&mut self, request: u64, part: Bytes) -> Result<()> {
        match self.open.get_mut(&request) {
            Some(Open::Query(collecting)) => {
                if !collecting.has_room_for(&part) {
                    let limit = collecting.answer_max;
                    if let Some(Open::Query(Collecting { done, permit, .. })) =
                        self.open.remove(&request)
                    {
                        let _ = done.send(Err(HeliosError::TooLarge { limit }));
                        self.open.insert(request, Open::Abandoned(Some(permit)));
                        self.abandon(request);
                    }
                    return Ok(());
                }
                collecting.parts.extend_from_slice(&part);
            }
            Some(Open::Raw) => self.unclaimed.push_back(HidbMessage::Part(part)),
            Some(Open::Abandoned(_)) => {}
            Some(Open::Ping(_)) | None => return Err(unasked("a piece of an answer")),
        }
        Ok(())
    }

    fn on_end(&mut self, request: u64, message: HidbMessage) -> Result<()> {
        match (self.open.remove(&request), message) {
            (Some(Open::Raw), message) => self.unclaimed.push_back(message),
            (Some(Open::Abandoned(_)), _) => {}
            (Some(Open::Ping(done)), HidbMessage::Pong) => drop(done.send(Ok(()))),
            (Some(Open::Query(collecting)), HidbMessage::Answer(answer)) => {
                collecting.end(answer.run, answer.facts)?;
            }
            (Some(Open::Query(collecting)), HidbMessage::Failed(body)) => {
                let fields = Box::new(ErrorFields::parse(body));
                let _ = collecting.done.send(Err(HeliosError::Server(fields)));
            }
            (Some(open), _) => {
                // Whoever waits is told with the others.
                self.open.insert(request, open);
                return Err(unasked("an answer of another kind"));
            }
            (None, _) => return Err(unasked("an answer")),
        }
        Ok(())
    }
}

impl Collecting {
    fn has_room_for(&self, run: &Bytes) -> bool {
        self.parts.len() + run.len() <= self.answer_max
    }

    /// An error if the peer sent what is no answer.
    fn end(mut self, run: Bytes, facts: Facts) -> Result<()> {
        let reply = if !self.has_room_for(&run) {
            Err(HeliosError::TooLarge {
                limit: self.answer_max,
            })
        } else if self.parts.is_empty() {
            Reply::new(run, facts)
        } else {
            self.parts.extend_from_slice(&run);
            Reply::new(self.parts.freeze(), facts)
        };
        let violation = match &reply {
            Err(HeliosError::Protocol(what)) => Err(HeliosError::Protocol(what.clone())),
            _ => Ok(()),
        };
        let _ = self.done.send(reply);
        violation
    }
}

fn unasked(what: &str) -> HeliosError {
    HeliosError::Protocol(format!("{what} that nobody asked for"))
}

/// Serves the connection until it ends.
pub(super) async fn drive(shared: Arc<Shared>, stream: WireStream, mut input: BytesMut) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut writing = BytesMut::new();
    let mut is_flushed = true;
    let io = HeliosError::io;
    let end = loop {
        if writing.is_empty() {
            shared.take_out(&mut writing);
        }
        // Bytes that came with the login are worked on before the first read.
        match shared.on_bytes(&mut input) {
            Ok(true) => shared.written.notify_one(),
            Ok(false) => {}
            Err(error) => break error,
        }
        // Room for many answers, so that those that come together are read together.
        input.reserve(READ_MIN);
        tokio::select! {
            read = reader.read_buf(&mut input) => match read {
                Ok(0) => break HeliosError::Network("the peer closed the connection".to_owned()),
                Ok(_) => {}
                Err(error) => break io("cannot read from the peer")(error),
            },
            written = write_or_flush(&mut writer, &mut writing), if !writing.is_empty() || !is_flushed => {
                match written {
                    Ok(flushed) => is_flushed = flushed,
                    Err(error) => break io("cannot write to the peer")(error),
                }
            }
            () = shared.written.notified(), if writing.is_empty() => {}
        }
    };
    shared.end(end.into());
    let _ = writer.shutdown().await;
}

/// Writes some of what there is, or has what was written sent on. True if nothing is left in between.
async fn write_or_flush(
    writer: &mut (impl AsyncWrite + Unpin),
    writing: &mut BytesMut,
) -> std::io::Result<bool> {
    if writing.is_empty() {
        writer.flush().await.map(|()| true)
    } else if writer.write_buf(writing).await? == 0 {
        Err(std::io::ErrorKind::WriteZero.into())
    } else {
        Ok(false)
    }
}
