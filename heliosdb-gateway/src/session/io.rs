//! Moving bytes between client, cache and server without waiting for more than readiness.
//!
//! Requests are read into a buffer that belongs to the thread, not to the session: an idle client holds no buffer at
//! all, and a request that is answered from the cache is never copied.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Buf as _;
use heliosdb_cache::KeyRef;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use crate::clients::{Activity, Counters, Signal};
use crate::error::{ClientError, ErrorKind};

use super::unit::{Front, Protocol, ReadUnit, Text, is_same, recognise};
use super::{End, Session};

/// What [`Session::next_event`] stops for.
#[derive(Debug)]
pub(super) enum Event {
    /// The client left.
    Closed,
    /// A request that may have to wait for something stands at the front of `input`.
    Request,
    /// Statements that were not understood can be looked at again.
    Resolve,
}

/// What becomes of the bytes at the front of a buffer.
enum Step {
    /// More are needed.
    Incomplete,
    /// That many have been dealt with.
    Done(usize),
    /// They need the slow path.
    Request,
    /// The client said goodbye.
    Goodbye,
}

/// One read takes at most this much; so does one read from the server.
const READ_MAX: usize = 64 << 10;
/// No more is read from one side while this much waits for the other.
pub(super) const HIGH_WATER: usize = 256 << 10;
/// A partial message is collected up to here before the server is told of its beginning.
const FRAME_MAX: usize = (1 << 30) - 1;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_MAX]);
}

impl Session {
    /// Serves hits and relays between client and server until something else has to be done.
    pub(super) async fn next_event(&mut self) -> Result<Event, End> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, End>> {
        self.admitted.info.register(cx);
        loop {
            self.poll_write_client(cx)?;
            self.poll_write_server(cx)?;
            if self.input_waits && self.has_room() {
                self.input_waits = false;
                if let Some(event) = self.work_on_input()? {
                    return Poll::Ready(Ok(event));
                }
                continue;
            }
            self.check_signals()?;
            if self.may_resolve() {
                return Poll::Ready(Ok(Event::Resolve));
            }
            let mut progress = false;
            if self.link.is_some() && self.out.len() < HIGH_WATER {
                progress |= self.poll_read_server(cx)?;
            }
            if self.has_room() {
                match self.poll_read_client(cx)? {
                    Poll::Ready(Some(event)) => return Poll::Ready(Ok(event)),
                    Poll::Ready(None) => progress = true,
                    Poll::Pending => {}
                }
            }
            if !progress {
                return Poll::Pending;
            }
        }
    }

    fn has_room(&self) -> bool {
        self.out.len() < HIGH_WATER
            && self
                .link
                .as_ref()
                .is_none_or(|link| link.out.len() < HIGH_WATER)
    }

    fn check_signals(&self) -> Result<(), End> {
        let info = self.info();
        if info.has_signal(Signal::Kill)
            || (info.has_signal(Signal::Drain) && self.is_between_transactions())
        {
            return Err(End::Error(shutting_down()));
        }
        Ok(())
    }

    fn is_between_transactions(&self) -> bool {
        self.status == b'I'
            && self.out.is_empty()
            && self.input.is_empty()
            && self
                .link
                .as_ref()
                .is_none_or(|link| link.is_quiet() && link.out.is_empty())
    }

    fn poll_write_client(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        while !self.out.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.out) {
                Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => return Err(End::Client),
                Poll::Ready(Ok(written)) => {
                    Counters::add(&self.admitted.info.counters.bytes_sent, written as u64);
                    self.out.advance(written);
                }
                Poll::Pending => return Ok(()),
            }
        }
        // An idle client keeps no buffer.
        if self.out.capacity() > READ_MAX {
            self.out = bytes::BytesMut::new();
        }
        Ok(())
    }

    fn poll_write_server(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        while !link.out.is_empty() {
            let (stream, _) = link.lease.pg.parts();
            match Pin::new(stream).poll_write(cx, &link.out) {
                Poll::Ready(Ok(0)) => return self.server_lost("it accepts no more bytes"),
                Poll::Ready(Err(error)) => {
                    // Its last words (an error that says why it ends the session) may still be there to be read.
                    let cause = error.to_string();
                    link.out.clear();
                    while self.link.is_some() && self.poll_read_server(cx)? {}
                    return if self.link.is_some() {
                        self.server_lost(&cause)
                    } else {
                        Ok(())
                    };
                }
                Poll::Ready(Ok(written)) => link.out.advance(written),
                Poll::Pending => return Ok(()),
            }
        }
        Ok(())
    }

    /// Reads once from the server and passes it on. True if there was something.
    fn poll_read_server(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let Some(link) = &mut self.link else {
            return Ok(false);
        };
        let (stream, buffer) = link.lease.pg.parts();
        let read = SCRATCH.with_borrow_mut(|scratch| {
            let mut read = ReadBuf::new(scratch);
            match Pin::new(stream).poll_read(cx, &mut read) {
                Poll::Pending => None,
                Poll::Ready(Err(error)) => Some(Err(error)),
                Poll::Ready(Ok(())) => {
                    buffer.extend_from_slice(read.filled());
                    Some(Ok(read.filled().len()))
                }
            }
        });
        match read {
            None => Ok(false),
            Some(Ok(0)) => self.server_lost("it closed the connection").map(|()| false),
            Some(Err(error)) => self.server_lost(&error.to_string()).map(|()| false),
            Some(Ok(_)) => self.on_server_bytes().map(|()| true),
        }
    }

    /// Reads once from the client and works on it. Ready(None): there was something, and it is dealt with.
    fn poll_read_client(&mut self, cx: &mut Context<'_>) -> Result<Poll<Option<Event>>, End> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut read = ReadBuf::new(scratch);
            match Pin::new(&mut self.stream).poll_read(cx, &mut read) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Err(_)) => return Ok(Poll::Ready(Some(Event::Closed))),
                Poll::Ready(Ok(())) => {}
            }
            let bytes = read.filled();
            if bytes.is_empty() {
                return Ok(Poll::Ready(Some(Event::Closed)));
            }
            Counters::add(
                &self.admitted.info.counters.bytes_received,
                bytes.len() as u64,
            );
            if !self.input.is_empty() {
                self.input.extend_from_slice(bytes);
                return self.work_on_input().map(Poll::Ready);
            }
            let (done, event) = self.work_on(bytes)?;
            self.input.extend_from_slice(&bytes[done..]);
            Ok(Poll::Ready(event))
        })
    }

    fn work_on_input(&mut self) -> Result<Option<Event>, End> {
        let mut input = std::mem::take(&mut self.input);
        let worked = self.work_on(&input);
        if let Ok((done, _)) = worked {
            input.advance(done);
        }
        if !input.is_empty() {
            self.input = input;
        }
        worked.map(|(_, event)| event)
    }

    /// Works on messages from the client as far as possible without waiting. Returns how many bytes are dealt with.
    fn work_on(&mut self, bytes: &[u8]) -> Result<(usize, Option<Event>), End> {
        let mut done = 0;
        while done < bytes.len() {
            if !self.has_room() {
                self.input_waits = true;
                break;
            }
            match self.step(&bytes[done..])? {
                Step::Done(len) => done += len,
                Step::Incomplete => {
                    check_length(&bytes[done..])?;
                    break;
                }
                Step::Request => return Ok((done, Some(Event::Request))),
                Step::Goodbye => return Ok((bytes.len(), Some(Event::Closed))),
            }
        }
        Ok((done, None))
    }

    fn step(&mut self, bytes: &[u8]) -> Result<Step, End> {
        if let Some(b'X') = bytes.first() {
            return Ok(Step::Goodbye);
        }
        if self.skip_to_sync {
            return self.skip_message(bytes);
        }
        let quiet = self.link.as_ref().is_none_or(super::link::Link::is_quiet);
        if quiet && self.status == b'I' {
            return self.step_at_rest(bytes);
        }
        // The server is at work for us, or in our transaction: all goes there in order.
        match super::unit::message(bytes) {
            None => Ok(Step::Incomplete),
            Some((tag, _, len)) => {
                self.forward(tag, &bytes[..len])?;
                Ok(Step::Done(len))
            }
        }
    }

    /// A request begins, and nothing is under way.
    fn step_at_rest(&mut self, bytes: &[u8]) -> Result<Step, End> {
        if self.may_read_cache() {
            let statements = std::mem::take(&mut self.statements);
            let front = recognise(bytes, &statements);
            let served = match &front {
                Front::Read(unit) => self.serve_hit(unit, &statements).then_some(unit.len),
                _ => None,
            };
            let remember = match &front {
                Front::Read(unit) if served.is_some() => {
                    self.statement_to_remember(unit, &statements)
                }
                _ => None,
            };
            let outcome = match (&front, served) {
                (_, Some(len)) => Step::Done(len),
                (Front::Incomplete, None) => Step::Incomplete,
                (Front::Read(_) | Front::Other, None) => self.first_message(bytes)?,
            };
            self.statements = statements;
            if let Some((name, statement)) = remember {
                self.statements.insert(name, statement);
            }
            return Ok(outcome);
        }
        self.first_message(bytes)
    }

    /// Whether the slow path can begin on what has arrived.
    fn first_message(&mut self, bytes: &[u8]) -> Result<Step, End> {
        let Some((tag, _, len)) = super::unit::message(bytes) else {
            return Ok(Step::Incomplete);
        };
        match tag {
            // PostgreSQL ignores what is left of a COPY that it has given up.
            b'c' | b'd' | b'f' => Ok(Step::Done(len)),
            // A Sync alone: nothing was begun, and the answer is known.
            b'S' => {
                self.out.extend_from_slice(b"Z\0\0\0\x05I");
                Ok(Step::Done(len))
            }
            b'H' => Ok(Step::Done(len)),
            b'Q' | b'F' => Ok(Step::Request),
            b'P' | b'B' | b'D' | b'E' | b'C' => Ok(Step::Request),
            _ => Err(End::Error(ClientError::protocol(format!(
                "invalid frontend message type {tag}"
            )))),
        }
    }

    /// After an error that was answered here: nothing counts until the Sync.
    fn skip_message(&mut self, bytes: &[u8]) -> Result<Step, End> {
        let Some((tag, _, len)) = super::unit::message(bytes) else {
            return Ok(Step::Incomplete);
        };
        if tag == b'S' {
            self.skip_to_sync = false;
            if self
                .link
                .as_ref()
                .is_some_and(|link| link.unit_open || !link.expects.is_empty())
            {
                self.forward(tag, &bytes[..len])?;
            } else {
                self.put_ready();
            }
        }
        Ok(Step::Done(len))
    }

    pub(super) fn put_ready(&mut self) {
        self.out.extend_from_slice(&[b'Z', 0, 0, 0, 5, self.status]);
    }

    /// Answers from the cache if it can.
    pub(super) fn serve_hit(&mut self, unit: &ReadUnit<'_>, statements: &Statements) -> bool {
        if let Protocol::Extended {
            parse: Some((name, _)),
            ..
        } = &unit.protocol
        {
            // The name must be free, or the server has to say that it is not.
            if !name.is_empty() && statements.contains_key(*name) {
                return false;
            }
        }
        unit.put_params(&mut self.key_buffer);
        let key = match &unit.text {
            Text::Inline(text) => KeyRef::new(text, &self.key_buffer, &self.scope),
            Text::Prepared(statement) => {
                KeyRef::prepared(&statement.text, &self.key_buffer, &self.scope)
            }
        };
        let Some(reply) = self.gateway.cache.lookup(&key) else {
            return false;
        };
        self.put_reply(unit, &reply);
        self.count_query();
        true
    }

    /// Writes a cached reply with what belongs around it in the protocol at hand.
    pub(super) fn put_reply(&mut self, unit: &ReadUnit<'_>, reply: &[u8]) {
        const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
        const BIND_COMPLETE: &[u8] = b"2\0\0\0\x04";
        const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";
        self.out.reserve(reply.len() + 24);
        match &unit.protocol {
            Protocol::Simple => self.out.extend_from_slice(reply),
            Protocol::Extended { parse, close, .. } => {
                if parse.is_some() {
                    self.out.extend_from_slice(PARSE_COMPLETE);
                }
                self.out.extend_from_slice(BIND_COMPLETE);
                self.out.extend_from_slice(reply);
                if *close {
                    self.out.extend_from_slice(CLOSE_COMPLETE);
                }
            }
        }
        self.put_ready();
    }

    /// The statement that a Parse answered here has to leave behind, unless it is there already.
    pub(super) fn statement_to_remember(
        &self,
        unit: &ReadUnit<'_>,
        statements: &Statements,
    ) -> Option<Remember> {
        let Protocol::Extended {
            parse: Some((name, types)),
            ..
        } = &unit.protocol
        else {
            return None;
        };
        let text = unit.text.as_str();
        if statements
            .get(*name)
            .is_some_and(|known| is_same(known, text, types))
        {
            return None;
        }
        Some((
            (*name).into(),
            self.gateway.prepare(name, text, types, &self.pool.database),
        ))
    }

    /// The server connection is gone: the client hears it, and a write that was under way stays in doubt.
    fn server_lost(&mut self, cause: &str) -> Result<(), End> {
        self.capture = None;
        let Some(mut link) = self.link.take() else {
            return Ok(());
        };
        link.lease.broken = true;
        link.lease.info.returned();
        self.info().unlink();
        self.info().set_activity(Activity::Idle);
        let error = if link.told_fatal {
            // The server's own words went to the client already.
            End::Client
        } else {
            End::Error(ClientError::connection_lost(cause))
        };
        if let Some(intent) = self.intent.take() {
            tokio::spawn(crate::invalidate::wire::settle(
                std::sync::Arc::clone(&self.pool),
                link.process(),
                intent,
            ));
        }
        drop(link);
        Err(error)
    }
}

/// The session's prepared statements.
pub(super) type Statements = std::collections::HashMap<
    Box<[u8]>,
    std::sync::Arc<super::prepared::Prepared>,
    rapidhash::fast::RandomState,
>;
type Remember = (Box<[u8]>, std::sync::Arc<super::prepared::Prepared>);

fn check_length(bytes: &[u8]) -> Result<(), End> {
    let Some(head) = bytes.first_chunk::<5>() else {
        return Ok(());
    };
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if (4..=FRAME_MAX).contains(&len) {
        return Ok(());
    }
    Err(End::Error(ClientError::protocol(format!(
        "invalid message length {len} in a message of type {}",
        head[0]
    ))))
}

fn shutting_down() -> ClientError {
    ClientError::new(
        ErrorKind::Config,
        "57P01",
        "terminating connection due to administrator command",
    )
    .fatal()
}
