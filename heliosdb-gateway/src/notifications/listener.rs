//! The connection of a pool that listens for all of its clients, and the task that owns it.
//!
//! The task's loop takes what sessions ask for as it comes, sends LISTEN and UNLISTEN for channels that get their first
//! listener and lose their last, and one empty query for everything else that wants to know how far the server is. It
//! enters listeners and answers sessions when the server's answers come, and puts notifications into the inboxes of those
//! that are entered.
//!
//! Times: a connection attempt that failed is followed by a pause, from [`PAUSE_MIN`] doubling to [`PAUSE_MAX`], as long
//! as a client still waits for it; an answer that is not there after [`ANSWER_MAX`] means that the connection is lost; an
//! idle connection is asked for a sign of life each [`HEARTBEAT`]; one to which nobody listens is closed after
//! [`LINGER`](super::LINGER). The task ends with its pool.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::{Buf as _, BytesMut};
use heliosdb_network::error::HeliosError;
use heliosdb_network::postgres::{ErrorFields, PgConnection, PgTarget, frame, message};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::clients::next_id;
use crate::error::{ClientError, ErrorKind};
use crate::upstream::connection::Learnt;
use crate::upstream::servers::{ServerInfo, ServerRegistry};

use super::inbox::{Inbox, Notification};
use super::{LINGER, ListenError};

type Answer = oneshot::Sender<Result<(), ListenError>>;

/// What a session asks of the listener.
#[derive(Debug)]
pub(super) enum Command {
    Fence {
        done: Answer,
    },
    Leave {
        channels: Vec<Arc<str>>,
        id: u64,
    },
    Rest,
    Subscribe {
        channel: Arc<str>,
        inbox: Arc<Inbox>,
        done: Answer,
    },
}

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
const ANSWER_MAX: Duration = Duration::from_secs(15);
const HEARTBEAT: Duration = Duration::from_secs(30);
/// How many commands share a fence.
const BATCH_MAX: usize = 1024;
/// No command is taken while this much waits for the server.
const OUT_MAX: usize = 64 << 10;
const READ_MAX: usize = 16 << 10;
/// A payload is shorter than 8000 bytes.
const MESSAGE_MAX: usize = 1 << 20;

/// Serves a pool until it is gone.
pub(super) async fn run(
    target: PgTarget,
    learnt: Arc<Learnt>,
    patience: Duration,
    servers: Arc<ServerRegistry>,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let mut batch = Vec::new();
    while commands.recv_many(&mut batch, BATCH_MAX).await > 0 {
        // Nobody is entered: there is nothing to leave, and nothing to be ahead of.
        batch.retain(|command| matches!(command, Command::Subscribe { .. }));
        if batch.is_empty() {
            continue;
        }
        match connect(&learnt.login(&target), patience).await {
            Ok(pg) => {
                let _shown = servers.register(
                    ServerInfo::new(
                        next_id(),
                        &target.user,
                        &target.database,
                        pg.backend_pid(),
                        SystemTime::now(),
                        pg.place(),
                    )
                    .listening(),
                );
                Connection::new(pg).serve(&mut commands, &mut batch).await;
            }
            Err(error) => {
                tracing::warn!(
                    user = target.user,
                    database = target.database,
                    "no connection to listen by: {error}"
                );
                // Nor is there one for those who have asked in the meantime.
                while let Ok(command) = commands.try_recv() {
                    batch.push(command);
                }
                for command in batch.drain(..) {
                    command.answer(Err(ListenError::Unreachable(error.clone())));
                }
            }
        }
    }
}

impl Command {
    fn answer(self, with: Result<(), ListenError>) {
        match self {
            Self::Fence { done } | Self::Subscribe { done, .. } => {
                let _ = done.send(with);
            }
            Self::Leave { .. } | Self::Rest => {}
        }
    }
}

/// Tries until it succeeds, until the server says what no patience changes, or until who waits has lost it.
async fn connect(target: &PgTarget, patience: Duration) -> Result<PgConnection, ClientError> {
    let deadline = Instant::now() + patience;
    let mut pause = PAUSE_MIN;
    loop {
        let error = match PgConnection::connect(target).await {
            Ok(pg) => return Ok(pg),
            Err(error) => error,
        };
        let may_pass = match &error {
            // It starts, or has too many connections.
            HeliosError::Server(fields) => matches!(fields.sqlstate(), "57P03" | "53300"),
            _ => true,
        };
        if !may_pass || Instant::now() + pause > deadline {
            return Err(match error {
                HeliosError::Server(fields) => ClientError::from_server(&fields),
                error => ClientError::new(
                    ErrorKind::Backend,
                    "08006",
                    format!("cannot reach the database server to listen: {error}"),
                ),
            });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Who listens to a channel.
#[derive(Debug, Default)]
struct Channel {
    /// By the client's id.
    listeners: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    inbox: Arc<Inbox>,
    /// The server has answered: it hears from here on.
    is_entered: bool,
}

/// An answer that the server owes.
#[derive(Debug)]
struct Owed {
    /// The channel of a LISTEN.
    listens: Option<Arc<str>>,
    has_failed: bool,
    since: Instant,
    waiters: Vec<Waiter>,
}

/// Somebody who waits for it.
#[derive(Debug)]
enum Waiter {
    Fence(Answer),
    Listener {
        channel: Arc<str>,
        id: u64,
        done: Answer,
    },
}

#[derive(Debug)]
struct Connection {
    pg: PgConnection,
    out: BytesMut,
    owed: VecDeque<Owed>,
    channels: HashMap<Arc<str>, Channel>,
    /// Since when there has been nothing to do.
    idle_since: Instant,
    /// It is not to linger.
    is_resting: bool,
    /// What the server said when it ended the connection.
    last_words: Option<String>,
}

/// What a turn of the loop comes to.
enum Turn {
    /// The pool is gone.
    Abandoned,
    Commands,
    Lost(String),
    Read,
    Wait,
}

impl Connection {
    fn new(pg: PgConnection) -> Self {
        Self {
            pg,
            out: BytesMut::new(),
            owed: VecDeque::new(),
            channels: HashMap::new(),
            idle_since: Instant::now(),
            is_resting: false,
            last_words: None,
        }
    }

    /// Works until the connection is lost, or nobody needs it. `batch` is what has been asked for so far.
    async fn serve(
        mut self,
        commands: &mut mpsc::UnboundedReceiver<Command>,
        batch: &mut Vec<Command>,
    ) {
        let lost = loop {
            self.take(batch);
            let turn = tokio::time::timeout_at(
                self.deadline(),
                std::future::poll_fn(|cx| self.poll_turn(cx, commands, batch)),
            );
            let worked = match turn.await.unwrap_or(Turn::Wait) {
                Turn::Commands => Ok(()),
                Turn::Read => self.on_bytes(),
                Turn::Lost(cause) => Err(cause),
                Turn::Wait => match self.on_deadline() {
                    Ok(true) => Ok(()),
                    Ok(false) => return self.close(),
                    Err(cause) => Err(cause),
                },
                Turn::Abandoned => return self.close(),
            };
            if let Err(cause) = worked {
                break cause;
            }
        };
        self.lose(&lost);
    }

    /// Says goodbye; whether the server takes note is not waited for.
    fn close(self) {
        tokio::spawn(tokio::time::timeout(ANSWER_MAX, self.pg.terminate()));
    }

    /// When there will be something to do, whatever comes.
    fn deadline(&self) -> Instant {
        match self.owed.front() {
            Some(owed) => owed.since + ANSWER_MAX,
            None if self.channels.is_empty() && self.is_resting => self.idle_since,
            None if self.channels.is_empty() => self.idle_since + LINGER,
            None => self.idle_since + HEARTBEAT,
        }
    }

    /// False if the connection is of no more use.
    fn on_deadline(&mut self) -> Result<bool, String> {
        if self.owed.is_empty() {
            if self.channels.is_empty() {
                return Ok(false);
            }
            self.ask("", None);
            return Ok(true);
        }
        Err("the server does not answer".to_owned())
    }

    fn poll_turn(
        &mut self,
        cx: &mut Context<'_>,
        commands: &mut mpsc::UnboundedReceiver<Command>,
        batch: &mut Vec<Command>,
    ) -> Poll<Turn> {
        let (stream, buffer) = self.pg.parts();
        while !self.out.is_empty() {
            match Pin::new(&mut *stream).poll_write(cx, &self.out) {
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Turn::Lost("the server takes no more bytes".to_owned()));
                }
                // It may have said why, which can still be read.
                Poll::Ready(Err(_)) => self.out.clear(),
                Poll::Ready(Ok(written)) => self.out.advance(written),
                Poll::Pending => break,
            }
        }
        // Sessions wait for what they have asked: there is an end to it, and the server is read after that.
        if self.out.len() < OUT_MAX
            && let Poll::Ready(taken) = commands.poll_recv_many(cx, batch, BATCH_MAX)
        {
            return Poll::Ready(if taken == 0 {
                Turn::Abandoned
            } else {
                Turn::Commands
            });
        }
        let mut scratch = [0; READ_MAX];
        let mut read = ReadBuf::new(&mut scratch);
        match Pin::new(stream).poll_read(cx, &mut read) {
            Poll::Ready(Ok(())) if read.filled().is_empty() => {
                let cause = self.last_words.take();
                let cause = cause.unwrap_or_else(|| "the server closed it".to_owned());
                return Poll::Ready(Turn::Lost(cause));
            }
            Poll::Ready(Ok(())) => {
                buffer.extend_from_slice(read.filled());
                return Poll::Ready(Turn::Read);
            }
            Poll::Ready(Err(error)) => {
                let cause = self.last_words.take();
                return Poll::Ready(Turn::Lost(cause.unwrap_or_else(|| error.to_string())));
            }
            Poll::Pending => {}
        }
        Poll::Pending
    }

    /// Sends a statement of one's own.
    fn ask(&mut self, sql: &str, listens: Option<Arc<str>>) {
        message::put_query(&mut self.out, sql);
        self.owed.push_back(Owed {
            listens,
            has_failed: false,
            since: Instant::now(),
            waiters: Vec::new(),
        });
    }

    /// Takes up what sessions ask for. Whatever is sent for it is sent from here on, so the last answer to it is a fence
    /// for all.
    fn take(&mut self, batch: &mut Vec<Command>) {
        if batch.is_empty() {
            return;
        }
        let asked_before = self.owed.len();
        let mut waiters = Vec::new();
        let mut is_resting = false;
        for command in batch.drain(..) {
            match command {
                Command::Fence { done } => waiters.push(Waiter::Fence(done)),
                Command::Leave { channels, id } => {
                    for channel in channels {
                        self.leave(&channel, id);
                    }
                }
                Command::Rest => is_resting = true,
                Command::Subscribe {
                    channel,
                    inbox,
                    done,
                } => {
                    if !self.channels.contains_key(&channel) {
                        self.ask(
                            &format!("LISTEN {}", quoted(&channel)),
                            Some(Arc::clone(&channel)),
                        );
                    }
                    let id = inbox.id();
                    // The client may have listened to it before, and left.
                    inbox.retain(|heard| heard != channel.as_bytes());
                    let entry = Entry {
                        inbox,
                        is_entered: false,
                    };
                    let listeners = &mut self
                        .channels
                        .entry(Arc::clone(&channel))
                        .or_default()
                        .listeners;
                    listeners.insert(id, entry);
                    waiters.push(Waiter::Listener { channel, id, done });
                }
            }
        }
        self.is_resting = is_resting && waiters.is_empty();
        if waiters.is_empty() {
            return;
        }
        if self.owed.len() == asked_before {
            self.ask("", None);
        }
        if let Some(last) = self.owed.back_mut() {
            last.waiters = waiters;
        }
    }

    fn leave(&mut self, channel: &Arc<str>, id: u64) {
        let Some(known) = self.channels.get_mut(channel) else {
            return;
        };
        known.listeners.remove(&id);
        if known.listeners.is_empty() {
            self.channels.remove(channel);
            self.ask(&format!("UNLISTEN {}", quoted(channel)), None);
        }
    }

    /// Works on what has been read.
    fn on_bytes(&mut self) -> Result<(), String> {
        loop {
            let taken = frame::take(self.pg.parts().1, MESSAGE_MAX);
            let Some((tag, body)) = taken.map_err(|error| error.to_string())? else {
                return Ok(());
            };
            match tag {
                b'A' => {
                    let notification = Notification::parse(&body)
                        .ok_or_else(|| "the server broke the protocol".to_owned())?;
                    self.pass_on(&Arc::new(notification));
                }
                b'E' => self.on_error(&ErrorFields::parse(body)),
                b'Z' => self.on_ready()?,
                // Of an answer to one's own only its end counts; the others may come at any time.
                b'C' | b'I' | b'N' | b'S' => {}
                tag => return Err(format!("a message of type {:?} unasked", char::from(tag))),
            }
        }
    }

    fn pass_on(&self, notification: &Arc<Notification>) {
        let channel = std::str::from_utf8(notification.channel()).ok();
        let Some(channel) = channel.and_then(|channel| self.channels.get(channel)) else {
            return;
        };
        for entry in channel.listeners.values().filter(|entry| entry.is_entered) {
            entry.inbox.push(notification);
        }
    }

    fn on_error(&mut self, fields: &ErrorFields) {
        if matches!(fields.severity(), "FATAL" | "PANIC") {
            self.last_words = Some(fields.message().to_owned());
        } else if let Some(owed) = self.owed.front_mut() {
            tracing::warn!("the server refuses to listen: {fields}");
            owed.has_failed = true;
        }
    }

    fn on_ready(&mut self) -> Result<(), String> {
        let owed = self.owed.pop_front();
        let owed = owed.ok_or_else(|| "the server is ready unasked".to_owned())?;
        if owed.has_failed
            && let Some(channel) = owed.listens
        {
            // Nobody is entered yet.
            self.channels.remove(&channel);
        }
        for waiter in owed.waiters {
            let (done, with) = match waiter {
                Waiter::Fence(done) => (done, Ok(())),
                Waiter::Listener { channel, id, done } => {
                    let entry = self
                        .channels
                        .get_mut(&channel)
                        .and_then(|channel| channel.listeners.get_mut(&id));
                    let with = match entry {
                        Some(entry) => {
                            entry.is_entered = true;
                            Ok(())
                        }
                        // It has left again, or the server has refused.
                        None => Err(ListenError::Refused),
                    };
                    (done, with)
                }
            };
            let _ = done.send(with);
        }
        if self.owed.is_empty() {
            self.idle_since = Instant::now();
        }
        Ok(())
    }

    /// The connection is gone: those who were entered are told that they may miss something.
    fn lose(self, cause: &str) {
        let cause: Arc<str> = cause.into();
        let entries = self
            .channels
            .values()
            .flat_map(|channel| channel.listeners.values());
        let entered: Vec<_> = entries.filter(|entry| entry.is_entered).collect();
        if !entered.is_empty() {
            tracing::warn!(
                "a connection by which clients listen was lost, and their sessions end: {cause}"
            );
        }
        for entry in entered {
            entry.inbox.lose(&cause);
        }
        for waiter in self.owed.into_iter().flat_map(|owed| owed.waiters) {
            let (Waiter::Fence(done) | Waiter::Listener { done, .. }) = waiter;
            let _ = done.send(Err(ListenError::Lost));
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
