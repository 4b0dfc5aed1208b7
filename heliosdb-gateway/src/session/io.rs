//! Moving bytes between client, cache and server without waiting for more than readiness.
//!
//! Requests are read into a buffer that belongs to the thread, not to the session: an idle client holds no buffer at
//! all, and a request that is answered from the cache is never copied.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf as _;
use heliosdb_cache::Answer;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use crate::clients::timeouts::{Phase, Timeout};
use crate::clients::{Activity, Counters, Origin, Signal};
use crate::config::names;
use crate::error::{ClientError, ErrorKind};
use crate::level::Level;
use crate::notifications::may_ask;
use crate::sql::{Class, classify_without_catalog};
use crate::upstream::database::LoadedCatalog;

use super::link::Link;
use super::prepared::Prepared;
use super::request::{Decided, Decision, is_taken, refusal_label};
use super::transaction::may_be_control;
use super::unit::{
    Front, ReadUnit, first_unit, is_same, message, put_reply, recognise, split_bind, split_nul,
};
use super::{End, Session};

/// What [`Session::next_event`] stops for.
#[derive(Debug)]
pub(super) enum Event {
    /// The client left.
    Closed,
    /// A request that has to wait for something stands at the front of `input`.
    Request(Decided),
    /// ReadyForQuery waits for the notifications that come before it.
    Ready,
    /// Statements that were not understood can be looked at again.
    Resolve,
}

/// What becomes of the bytes at the front of a buffer.
pub(super) enum Step {
    /// They have to wait until the server is ready.
    Hold,
    /// More are needed.
    Incomplete,
    /// That many have been dealt with.
    Done(usize),
    /// They have to wait for something.
    Request(Decided),
    /// The client said goodbye.
    Goodbye,
}

/// One read takes at most this much; so does one read from the server.
const READ_MAX: usize = 64 << 10;
/// Larger buffers are not kept for the next request.
const KEPT_MAX: usize = 4 << 10;
/// No more is read from one side while this much waits for the other.
pub(super) const HIGH_WATER: usize = 256 << 10;
/// How long a read goes on for a client whose connection has ended without a Terminate.
const PATIENCE_WITH_THE_GONE: Duration = Duration::from_secs(1);
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
        // From when it has been asked for bytes in vain: it wakes the session when there are some.
        let mut client_is_silent = false;
        loop {
            self.poll_write_client(cx)?;
            if self.listening.is_some() && self.poll_listening(cx)? {
                return Poll::Ready(Ok(Event::Ready));
            }
            self.poll_write_server(cx)?;
            if self.input_waits && self.has_room() {
                self.input_waits = false;
                if let Some(event) = self.work_on_input()? {
                    return Poll::Ready(Ok(event));
                }
                continue;
            }
            self.check_signals()?;
            if self.is_ending && (self.has_ended() || self.poll_given_up(cx)) {
                return Poll::Ready(Ok(Event::Closed));
            }
            if self.may_resolve() {
                return Poll::Ready(Ok(Event::Resolve));
            }
            let mut progress = false;
            if self.link.is_some() && self.out.len() < HIGH_WATER {
                progress |= self.poll_read_server(cx)?;
            }
            let may_read = self.has_room() && !self.is_ending && !self.has_enough_input();
            if may_read && !client_is_silent {
                match self.poll_read_client(cx)? {
                    Poll::Ready(Some(event)) => return Poll::Ready(Ok(event)),
                    Poll::Ready(None) => progress = true,
                    Poll::Pending => client_is_silent = true,
                }
            }
            if !progress {
                self.shed();
                self.check_time()?;
                return Poll::Pending;
            }
        }
    }

    /// Gives up what a large request has left behind.
    fn shed(&mut self) {
        for buffer in [&mut self.key_buffer, &mut self.text_buffer] {
            if buffer.capacity() > KEPT_MAX {
                *buffer = Vec::new();
            }
        }
    }

    /// Leaves word of what the session is at, and looks whether that takes too long.
    fn check_time(&self) -> Result<(), End> {
        let is_busy = self.link.as_ref().is_some_and(|link| !link.is_quiet());
        let is_stuck = self.link.is_some() && !self.out.is_empty();
        let phase = Phase::default()
            .with(Phase::BUSY, is_busy)
            .with(Phase::IN_TRANSACTION, self.status != b'I')
            .with(Phase::STUCK, is_stuck);
        let info = self.info();
        info.pace.set(phase);
        match info.due_timeout() {
            None => Ok(()),
            // It would not read what it is told.
            Some(Timeout::Write) => {
                tracing::info!(client = info.id, "session ends: the client reads nothing");
                Err(End::Client)
            }
            Some(timeout) => Err(End::Error(timeout.error())),
        }
    }

    /// Leaves word that the session waits for something that is not the client's affair.
    pub(super) fn note_work(&self) {
        let phase = Phase::AT_WORK.with(Phase::IN_TRANSACTION, self.status != b'I');
        self.info().pace.set(phase);
    }

    /// Tells a client that listens what there is. True if it waits for more ahead of its ReadyForQuery.
    fn poll_listening(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.is_ready_due() {
            return Ok(true);
        }
        while self.out.len() < HIGH_WATER && self.hear()? {
            self.poll_write_client(cx)?;
        }
        Ok(false)
    }

    fn has_room(&self) -> bool {
        self.out.len() < HIGH_WATER
            && self
                .link
                .as_ref()
                .is_none_or(|link| link.out.len() < HIGH_WATER)
    }

    /// Requests that have to wait for the one under way are read ahead, up to a bound.
    fn has_enough_input(&self) -> bool {
        self.input_held && self.input.len() >= HIGH_WATER
    }

    /// True where nothing is left to be done for a client that sends no more.
    fn has_ended(&self) -> bool {
        let is_served = self
            .link
            .as_ref()
            .is_none_or(|link| !link.awaits_ready() || link.is_copying_in());
        is_served && self.out.is_empty() && !self.input_waits && !self.is_ready_due()
    }

    /// True where a client that said no goodbye has most likely gone, and what it waited for can be stopped: a read. What
    /// may write is done to its end, as PostgreSQL would.
    fn poll_given_up(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(patience) = &mut self.patience else {
            return false;
        };
        let is_over = patience.as_mut().poll(cx).is_ready();
        is_over && self.intent.is_none() && self.status == b'I'
    }

    fn check_signals(&self) -> Result<(), End> {
        let info = self.info();
        if !info.has_signals() {
            return Ok(());
        }
        let is_leaving =
            info.has_signal(Signal::Drain) || info.has_signal(Signal::Leave) && self.link.is_none();
        if info.has_signal(Signal::Kill) || is_leaving && self.is_between_transactions() {
            return Err(End::Error(shutting_down()));
        }
        if info.has_signal(Signal::Renew) && self.is_between_transactions() {
            info.clear_signal(Signal::Renew);
            let link = self.link.as_ref();
            if link.is_some_and(|link| link.lease.info.close_needed()) {
                return Err(End::Error(connection_outdated()));
            }
        }
        Ok(())
    }

    fn is_between_transactions(&self) -> bool {
        self.status == b'I'
            && self.out.is_empty()
            && self.input.is_empty()
            && !self.is_ready_due()
            && self
                .link
                .as_ref()
                .is_none_or(|link| link.is_quiet() && link.out.is_empty())
    }

    pub(super) fn poll_write_client(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
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
        if self.stream.wants_flush()
            && let Poll::Ready(Err(_)) = Pin::new(&mut self.stream).poll_flush(cx)
        {
            return Err(End::Client);
        }
        // An idle client keeps little.
        if self.out.capacity() > KEPT_MAX {
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
        self.poll_flush_server(cx)
    }

    /// Under TLS, what was written may wait for the socket in buffers of its own.
    fn poll_flush_server(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        let (stream, _) = link.lease.pg.parts();
        if !stream.wants_flush() {
            return Ok(());
        }
        match Pin::new(stream).poll_flush(cx) {
            Poll::Ready(Err(error)) => self.server_lost(&error.to_string()),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// Reads once from the server and passes it on. True if there was something.
    fn poll_read_server(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        SCRATCH.with_borrow_mut(|scratch| {
            let Some(link) = &mut self.link else {
                return Ok(false);
            };
            let (stream, buffer) = link.lease.pg.parts();
            let mut read = ReadBuf::new(scratch);
            let bytes = match Pin::new(stream).poll_read(cx, &mut read) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Err(error)) => {
                    return self.server_lost(&error.to_string()).map(|()| false);
                }
                Poll::Ready(Ok(())) => read.filled_mut(),
            };
            if bytes.is_empty() {
                return self.server_lost("it closed the connection").map(|()| false);
            }
            if buffer.is_empty() {
                let done = self.on_server_bytes(bytes)?;
                self.keep_server_bytes(&bytes[done..]);
            } else {
                // The beginning of a message came before.
                let mut begun = std::mem::take(buffer);
                begun.extend_from_slice(bytes);
                let done = self.on_server_bytes(&mut begun)?;
                self.keep_server_bytes(&begun[done..]);
            }
            self.release_if_free();
            Ok(true)
        })
    }

    /// Keeps the beginning of a message until the rest of it comes.
    fn keep_server_bytes(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match &mut self.link {
            Some(link) => link.lease.pg.parts().1.extend_from_slice(bytes),
            // Bytes behind the ReadyForQuery that freed the connection belong to nobody.
            None => tracing::warn!(
                "the server sent {} bytes that nobody asked for",
                bytes.len()
            ),
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
                // It may still listen for what it has asked for.
                self.is_ending = true;
                self.patience = Some(Box::pin(tokio::time::sleep(PATIENCE_WITH_THE_GONE)));
                return Ok(Poll::Ready(None));
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
                Step::Hold => {
                    self.input_held = true;
                    break;
                }
                Step::Incomplete => {
                    check_lengths(&bytes[done..], self.gateway.max_message())?;
                    break;
                }
                Step::Request(decided) => return Ok((done, Some(Event::Request(decided)))),
                Step::Goodbye => {
                    self.is_ending = true;
                    return Ok((bytes.len(), None));
                }
            }
        }
        Ok((done, None))
    }

    fn step(&mut self, bytes: &[u8]) -> Result<Step, End> {
        self.translation = None;
        if let Some(b'X') = bytes.first() {
            return Ok(Step::Goodbye);
        }
        if self.skip_to_sync {
            return self.skip_message(bytes);
        }
        let is_quiet = self.link.as_ref().is_none_or(Link::is_quiet);
        if is_quiet && self.listening.is_some() && self.needs_fence(bytes) {
            return Ok(Step::Request(Decided::FencePending));
        }
        if is_quiet && self.is_at_rest() {
            return self.step_at_rest(bytes);
        }
        let Some((tag, _, len)) = message(bytes) else {
            return Ok(Step::Incomplete);
        };
        if is_quiet && self.status == b'T' {
            if !self.to_restore.is_empty() {
                return Ok(Step::Request(Decided::Ask));
            }
            if let Some(len) = self.answer_here(bytes) {
                return Ok(Step::Done(len));
            }
            if let Some(step) = self.try_listen(bytes) {
                return Ok(step);
            }
            if let Some(step) = self.try_cache(bytes, None)? {
                return Ok(step);
            }
        }
        // One unit at a time: what a statement means, and whether its answer may come from memory, depends on what
        // those before it did. The data of a COPY belong to the unit.
        let must_wait = self.link.as_ref().is_some_and(|link| {
            link.awaits_ready() && !link.is_copying_in() && !matches!(tag, b'c' | b'd' | b'f')
        });
        if must_wait {
            return Ok(Step::Hold);
        }
        if is_quiet && tag == b'Q' && self.must_prepare(&bytes[..len]) {
            return Ok(Step::Request(Decided::Ask));
        }
        self.forward(tag, &bytes[..len])?;
        Ok(Step::Done(len))
    }

    /// A request begins, and nothing is under way.
    fn step_at_rest(&mut self, bytes: &[u8]) -> Result<Step, End> {
        if self.status == b'E' {
            return self.step_failed(bytes);
        }
        if let Some(step) = self.try_cache(bytes, None)? {
            return Ok(step);
        }
        if self.is_ordinary(bytes) {
            return self.first_message(bytes, true);
        }
        if let Some(len) = self.answer_close(bytes) {
            return Ok(Step::Done(len));
        }
        if let Some(step) = self.try_control(bytes) {
            return Ok(step);
        }
        if let Some(step) = self.try_listen(bytes) {
            return Ok(step);
        }
        self.first_message(bytes, false)
    }

    /// True where the text at the front begins as those do that are of no interest but for what they read and write:
    /// nothing that deals with transactions, names, channels or settings does.
    pub(super) fn is_ordinary(&self, bytes: &[u8]) -> bool {
        let Some((tag, body, _)) = message(bytes) else {
            return false;
        };
        let text = match tag {
            b'Q' => Some(body),
            b'P' => split_nul(body).map(|(_, text)| text),
            b'B' => split_bind(body)
                .and_then(|(_, name, _)| self.statements.get(name))
                .map(|known| known.text.as_bytes()),
            _ => None,
        };
        let Some([one, two, three, ..]) = text.map(<[u8]>::trim_ascii_start) else {
            return false;
        };
        // As lower-case letters, if that is what they are.
        matches!(
            &[one | 0x20, two | 0x20, three | 0x20],
            b"sel" | b"ins" | b"upd" | b"del" | b"wit" | b"val"
        )
    }

    pub(super) fn age_ms(&self, reply: &Answer) -> u32 {
        let age = self.gateway.cache.age(reply).as_millis();
        u32::try_from(age).unwrap_or(u32::MAX)
    }

    /// Answers the request at the front from the cache, or decides what is to be done about it. `None` if it is not
    /// for the cache. Without a catalog given, the one that is loaded counts, and where there is none the request has to
    /// wait.
    pub(super) fn try_cache(
        &mut self,
        bytes: &[u8],
        catalog: Option<Option<Arc<LoadedCatalog>>>,
    ) -> Result<Option<Step>, End> {
        if !self.may_read_cache() {
            return Ok(None);
        }
        let unit = match recognise(bytes, &self.statements, &self.scope) {
            // The name must be free, or the server has to say that it is not.
            Front::Read(unit) if !is_taken(&unit, &self.statements) => unit,
            // Beyond that size nothing is collected for a look-up.
            Front::Incomplete if bytes.len() < HIGH_WATER => return Ok(Some(Step::Incomplete)),
            _ => return Ok(None),
        };
        let text = unit.text.as_str();
        if may_be_control(text) || may_ask(text) || (self.status == b'T' && unit.has_row_limit()) {
            // In a transaction, rows behind a limit can still be asked for.
            return Ok(None);
        }
        let mut is_strict = false;
        match self.level_of(unit.text.as_str()) {
            Level::Session => {}
            Level::Strict
                if self.is_fenced
                    || crate::fault::is_removed("fence")
                    || !self.pool.database.follower.gate.is_replication() => {}
            // Who has a server connection keeps nobody waiting for it.
            Level::Strict if !self.is_at_rest() => return Ok(None),
            Level::Strict => is_strict = true,
            // What a statement means is no question of age.
            Level::Off | Level::Bounded(_) if unit.is_prepare() => {}
            Level::Off => {
                self.gateway.stats.count_bypass("asked for");
                let statement = self.gateway.statements.of(unit.text.as_str());
                statement.record_refusal("asked for");
                return Ok(None);
            }
            Level::Bounded(bound) => return self.try_bounded(bytes, bound, catalog.is_none()),
        }
        let len = unit.len;
        unit.put_params(&mut self.key_buffer);
        let key = unit.key(&self.key_buffer, &self.scope);
        let is_open = self.pool.database.follower.gate.is_open();
        let cache = &self.gateway.cache;
        if is_strict && is_open && cache.peek(&key).is_some() {
            return Ok(Some(Step::Request(Decided::Fence)));
        }
        let reply = if is_open { cache.lookup(&key) } else { None };
        // One that is too old for this client is asked for anew, and takes the old one's place.
        let is_young = |reply: &Answer| {
            !self.stream.is_pipe() || self.age_ms(reply) <= self.info().max_age_ms()
        };
        if let Some(reply) = reply.filter(is_young) {
            put_reply(&mut self.out, &unit.protocol, &reply, Some(self.status));
            let is_simple = unit.is_simple();
            let is_run = !unit.is_prepare();
            if !unit.is_prepare() {
                self.count_query();
                let text = unit.text.as_str();
                self.gateway.statements.of(text).record_hit();
                if self.stream.is_pipe() {
                    let age_ms = self.age_ms(&reply);
                    self.info().set_origin(Origin::Memory { age_ms });
                }
            }
            if let Some((name, statement)) = self.statement_to_remember(&unit) {
                self.statements.insert(&name, statement);
            }
            if is_simple {
                // As by any simple query.
                self.statements.remove(b"");
            }
            if is_run {
                self.note_portal();
            }
            return Ok(Some(Step::Done(len)));
        }
        let may_wait = catalog.is_none();
        let database = &self.pool.database;
        let catalog = catalog.unwrap_or_else(|| database.catalog_now());
        if may_wait && catalog.is_none() && database.can_load() && self.is_at_rest() {
            let Some(class) = self.class_of_text(unit.text.as_str()) else {
                return Ok(Some(Step::Request(Decided::No)));
            };
            if !unit.is_prepare() {
                let refusal = refusal_label(&class);
                self.gateway.stats.count_bypass(refusal);
                let statement = self.gateway.statements.of(unit.text.as_str());
                statement.record_refusal(refusal);
                self.class = Some(class);
            }
            return self.ask_now(bytes, len).map(Some);
        }
        let mut scratch = std::mem::take(&mut self.text_buffer);
        let decision = self.decide(&unit, &key, catalog.as_ref(), &mut scratch);
        self.text_buffer = scratch;
        match decision {
            Decision::Ask { class, mut capture } => {
                if let Some(capture) = &mut capture {
                    capture.reply = std::mem::take(&mut self.reply_buffer);
                }
                self.capture = capture;
                self.class = class;
            }
            // It may lack what somebody else has committed since the flight began.
            Decision::Follow(_) if is_strict || self.is_fenced => {
                self.gateway.stats.count_bypass("strict")
            }
            Decision::Follow(follower) if self.is_at_rest() => {
                return Ok(Some(Step::Request(Decided::Follow(follower))));
            }
            // Who has a server connection keeps nobody waiting for it.
            Decision::Follow(_) => self.gateway.stats.count_bypass("asked in a transaction"),
        }
        if may_wait {
            self.ask_now(bytes, len).map(Some)
        } else {
            Ok(Some(Step::Request(Decided::Ask)))
        }
    }

    /// The class of a text while there is no catalog, if one would say no more. A catalog that is read for DDL would be out
    /// of date with it, and a thousand statements of it would read a thousand.
    fn class_of_text(&self, text: &str) -> Option<Arc<Class>> {
        let class = classify_without_catalog(text, &self.names);
        let is_certain = class.is_told_by_text()
            && (!class.parsed || self.pool.database.has_no_event_triggers());
        is_certain.then(|| Arc::new(class))
    }

    /// A request that is not for the cache. `is_ordinary`: nothing that is [ordinary](Self::is_ordinary) is answered here.
    fn first_message(&mut self, bytes: &[u8], is_ordinary: bool) -> Result<Step, End> {
        let Some((tag, _, len)) = message(bytes) else {
            return Ok(Step::Incomplete);
        };
        match tag {
            // PostgreSQL ignores what is left of a COPY that it has given up.
            b'c' | b'd' | b'f' => Ok(Step::Done(len)),
            // A Sync alone: nothing was begun, and the answer is known.
            b'S' => {
                self.put_ready();
                Ok(Step::Done(len))
            }
            b'H' => Ok(Step::Done(len)),
            b'Q' | b'F' | b'P' | b'B' | b'D' | b'E' | b'C' => {
                let database = &self.pool.database;
                if database.epoch_now().is_none() && database.can_load() {
                    let class = match recognise(bytes, &self.statements, &self.scope) {
                        Front::Read(unit) if !unit.is_prepare() => {
                            self.class_of_text(unit.text.as_str())
                        }
                        _ => None,
                    };
                    if class.is_none() {
                        return Ok(Step::Request(Decided::No));
                    }
                    self.class = class;
                }
                let len = first_unit(bytes);
                if is_ordinary {
                    self.send_now(bytes, len)
                } else {
                    self.ask_now(bytes, len)
                }
            }
            _ => Err(End::Error(ClientError::protocol(format!(
                "invalid frontend message type {tag}"
            )))),
        }
    }

    /// Answers a request or sends it to the server, if a connection is at hand that has this session's settings.
    pub(super) fn ask_now(&mut self, bytes: &[u8], len: usize) -> Result<Step, End> {
        if let Some(len) = self.answer_here(bytes) {
            self.info().clear_signal(Signal::Cancel);
            return Ok(Step::Done(len));
        }
        self.send_now(bytes, len)
    }

    fn send_now(&mut self, bytes: &[u8], len: usize) -> Result<Step, End> {
        self.info().clear_signal(Signal::Cancel);
        if !self.link_now(bytes) {
            return Ok(Step::Request(Decided::Ask));
        }
        if self.must_prepare(&bytes[..len]) {
            return Ok(Step::Request(Decided::Ask));
        }
        self.forward_all(&bytes[..len])?;
        Ok(Step::Done(len))
    }

    /// After an error that was answered here: nothing counts until the Sync.
    fn skip_message(&mut self, bytes: &[u8]) -> Result<Step, End> {
        let Some((tag, _, len)) = message(bytes) else {
            return Ok(Step::Incomplete);
        };
        if tag == b'S' {
            self.skip_to_sync = false;
            if self.link.as_ref().is_some_and(|link| !link.is_quiet()) {
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

    /// The statement that a Parse answered here has to leave behind, unless it is there already.
    pub(super) fn statement_to_remember(
        &self,
        unit: &ReadUnit<'_>,
    ) -> Option<(Box<[u8]>, Arc<Prepared>)> {
        let (name, types) = unit.parse()?;
        let text = unit.text.as_str();
        if self
            .statements
            .get(name)
            .is_some_and(|known| is_same(known, text, types, &self.scope))
        {
            return None;
        }
        Some((
            name.into(),
            self.gateway
                .prepare(name, text, types, &self.scope, &self.pool.database),
        ))
    }

    /// The server connection is gone: the client hears it, and a write that was under way stays in doubt.
    fn server_lost(&mut self, cause: &str) -> Result<(), End> {
        self.capture = None;
        self.put_ready_due();
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
                Arc::clone(&self.pool),
                link.process(),
                intent,
            ));
        }
        drop(link);
        Err(error)
    }
}

/// Checks the lengths that messages claim to have, as far as they have arrived.
fn check_lengths(bytes: &[u8], max: usize) -> Result<(), End> {
    let mut rest = bytes;
    while let Some(head) = rest.first_chunk::<5>() {
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if !(4..=FRAME_MAX).contains(&len) {
            return Err(End::Error(ClientError::protocol(format!(
                "invalid message length {len} in a message of type {}",
                head[0]
            ))));
        }
        if len > max {
            let message =
                format!("a message of {len} bytes is too long: helios takes {max} at most");
            return Err(End::Error(
                ClientError::new(ErrorKind::Client, "54000", message)
                    .hint(format!(
                        "Raise {} in {}.",
                        names::key("clients.max_message"),
                        names::place()
                    ))
                    .fatal(),
            ));
        }
        rest = rest.get(len + 1..).unwrap_or_default();
    }
    Ok(())
}

pub(super) fn shutting_down() -> ClientError {
    ClientError::new(
        ErrorKind::Config,
        "57P01",
        "terminating connection due to administrator command",
    )
    .known_as("server shutting down")
    .fatal()
}

fn connection_outdated() -> ClientError {
    ClientError::new(
        ErrorKind::Config,
        "57P01",
        "terminating connection because its server connection is to be closed",
    )
    .known_as("database configuration changed")
    .fatal()
}
