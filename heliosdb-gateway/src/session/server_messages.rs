//! What the server says, on its way to the client.
//!
//! Replies are passed on in runs, without being parsed; rows are passed on before they are complete. Only messages that
//! change the state of the exchange are looked at.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use heliosdb_network::postgres::ErrorFields;

use crate::clients::{Counters, Origin};
use crate::error::{ClientError, ErrorKind};
use crate::sql::Class;

use super::link::{Completed, Expect, Link};
use super::{Capture, End, Running, Session};

/// Whether a message goes on to the client.
#[derive(Debug, PartialEq, Eq)]
enum Pass {
    Forward,
    Swallow,
}

/// A larger buffer is not kept for the next reply: an idle client keeps little.
const REPLY_KEPT_MAX: usize = 4 << 10;
/// A message other than rows is held until it is complete; none is honestly larger than this.
const MESSAGE_MAX: usize = 64 << 20;

impl Session {
    /// Works on what has been read from the server. Returns how many bytes are dealt with: behind them is the beginning of
    /// a message.
    pub(super) fn on_server_bytes(&mut self, bytes: &mut [u8]) -> Result<usize, End> {
        let mut at = 0;
        // What lies between `run` and `at` goes to the client as it is.
        let mut run = 0;
        while at < bytes.len() {
            let Some(link) = &mut self.link else { break };
            if link.skip > 0 {
                let part = link.skip.min(bytes.len() - at);
                capture(&mut self.capture, &bytes[at..at + part]);
                link.skip -= part;
                at += part;
                continue;
            }
            let Some((head, _)) = bytes[at..].split_first_chunk::<5>() else {
                break;
            };
            let tag = head[0];
            let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize + 1;
            let whole = bytes.len() - at >= len;
            if len < 5 || (!whole && len > MESSAGE_MAX && !matches!(tag, b'D' | b'd')) {
                return Err(
                    self.server_misbehaved(&format!("a message of type {tag} with length {len}"))
                );
            }
            if matches!(tag, b'D' | b'd') {
                let part = len.min(bytes.len() - at);
                if tag == b'D' {
                    capture(&mut self.capture, &bytes[at..at + part]);
                    if let Some(collecting) = &mut self.capture {
                        collecting.has_rows = true;
                    }
                } else {
                    self.capture = None;
                }
                link.skip = len - part;
                at += part;
                continue;
            }
            if !whole {
                break;
            }
            let message = &bytes[at..at + len];
            match tag {
                b'Z' => {
                    self.out.extend_from_slice(&bytes[run..at]);
                    at += len;
                    run = at;
                    self.on_ready_for_query(bytes[at - 1])?;
                }
                b'1' | b'2' | b'3' | b'C' | b'I' | b's' | b'T' | b'n' | b't' | b'G' => {
                    if matches!(tag, b'T' | b'C' | b's' | b't' | b'n') {
                        capture(&mut self.capture, message);
                    }
                    let pass = on_reply(link, tag, message);
                    if tag == b'G' {
                        self.input_waits |= std::mem::take(&mut self.input_held);
                    }
                    let end = if pass == Pass::Forward { at + len } else { at };
                    let due = matches!(link.expects.front(), Some(Expect::Inject { .. }));
                    if due || pass == Pass::Swallow {
                        self.out.extend_from_slice(&bytes[run..end]);
                        link.inject_due(&mut self.out);
                        run = at + len;
                    }
                    at += len;
                }
                b'E' => {
                    self.out.extend_from_slice(&bytes[run..at]);
                    at += len;
                    run = at;
                    let body = Bytes::copy_from_slice(&bytes[at - len..at]);
                    self.on_error(&body);
                }
                // The pool's listener tells of it.
                b'A' if self.hears(message) => {
                    self.out.extend_from_slice(&bytes[run..at]);
                    at += len;
                    run = at;
                }
                b'A' => {
                    let link = self.link.as_ref();
                    let own = link.map(|link| link.lease.process.pid.to_be_bytes());
                    let sender = bytes.get_mut(at + 5..at + 9);
                    if let Some(sender) =
                        sender.filter(|sender| own.is_some_and(|own| **sender == own))
                    {
                        // By the number that the client knows itself by.
                        sender.copy_from_slice(&self.admitted.info.pid.to_be_bytes());
                    }
                    self.capture = None;
                    at += len;
                }
                // Notices, notifications and changed parameters make an answer more than its rows.
                _ => {
                    self.capture = None;
                    at += len;
                }
            }
        }
        self.out.extend_from_slice(&bytes[run..at]);
        Ok(at)
    }

    /// Counts how long the request under way took, and the transaction if it has ended.
    fn note_times(&mut self, status: u8) {
        let now = Instant::now();
        self.ready_at = Some(now);
        // Most transactions are one request, and most requests one statement.
        let (mut known, mut took) = (now, Duration::ZERO);
        let mut since = |at: Instant| {
            if at != known {
                (known, took) = (at, now.duration_since(at));
            }
            took
        };
        if let Running::One(statement, begun) = std::mem::take(&mut self.running) {
            let took = since(begun);
            statement.record_time(took);
            self.pool.advisor.record_execution(took);
        }
        let counters = &self.admitted.info.counters;
        if let Some(asked) = self.asked_at.take() {
            Counters::add_time(&counters.query_us, since(asked));
        }
        if status == b'I'
            && let Some(begun) = self.begun_at.take()
        {
            Counters::add_time(&counters.transaction_us, since(begun));
        }
    }

    fn on_ready_for_query(&mut self, status: u8) -> Result<(), End> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        match link.expects.pop_front() {
            Some(Expect::Query {
                class,
                done,
                translated,
                ..
            }) => {
                link.note_completed(Completed {
                    class,
                    done,
                    translated,
                    is_ahead: false,
                });
            }
            Some(Expect::Sync) => {}
            other => {
                tracing::debug!(?other, "this was owed");
                return Err(self.server_misbehaved("it is ready before it has answered"));
            }
        }
        link.end_unit();
        self.intends_unparsed = false;
        self.admitted.info.pace.end_turn();
        let failed = std::mem::take(&mut link.unit_failed);
        let completed = link.take_completed();
        let is_standby = link.lease.is_standby;
        link.lease.pg.set_transaction_status(status);
        if status != b'I' && self.pool.refuses_transactions() {
            return Err(self.refuse_transaction(status));
        }
        self.note_times(status);
        if let Some(capture) = self.capture.take()
            && (status == b'I' || status == b'T' && self.sees_committed)
            && (capture.bound.is_some() || !is_standby)
            && !failed
        {
            let took = capture.fill.elapsed();
            let mut reply = capture.reply;
            let fill = match capture.bound {
                Some(bound) => capture.fill.with_lifetime(bound.lifetime(took)),
                None if capture.has_rows => capture.fill.without_provisional(),
                None => capture.fill,
            };
            fill.complete_with(&reply, took);
            self.admitted.info.set_origin(Origin::Offered);
            if reply.capacity() <= REPLY_KEPT_MAX {
                reply.clear();
                self.reply_buffer = reply;
            }
        }
        self.on_ready(status, &completed, failed);
        if self.repeat_request() {
            self.input_waits = true;
            return Ok(());
        }
        if !self.delays_ready() {
            self.put_ready();
        }
        // What came behind the request that was under way can be looked at.
        self.input_waits |= std::mem::take(&mut self.input_held);
        Ok(())
    }

    fn on_error(&mut self, message: &Bytes) {
        self.capture = None;
        let Some(link) = &mut self.link else { return };
        link.unit_failed = true;
        link.abort_copies_in();
        let fields = ErrorFields::parse(message.slice(5..));
        link.told_fatal |= matches!(fields.severity(), "FATAL" | "PANIC");
        let refused = match link.expects.front() {
            Some(Expect::RefusedParse(error)) if fields.sqlstate() == "42P05" => {
                Some(ClientError::clone(error))
            }
            _ => None,
        };
        if is_of_the_text(&fields) {
            self.forget_unparsed();
        }
        let is_retried = self.is_retried(fields.sqlstate());
        let Some(link) = &mut self.link else { return };
        match refused {
            _ if is_retried => {}
            Some(error) => {
                // In PgBouncer's words, for who looks for them.
                let name = error.message.split('"').nth(1).unwrap_or_default();
                tracing::info!(
                    client = self.admitted.info.id,
                    "prepared statement '{name}' was already prepared"
                );
                error.put(&mut self.out);
            }
            None => {
                let translated = match link.expects.front_mut() {
                    Some(Expect::Query { translated, .. }) => translated.take(),
                    _ => None,
                };
                self.put_error(message, translated.as_deref());
                if let Some(Link { expects, .. }) = &mut self.link
                    && let Some(Expect::Query {
                        translated: place, ..
                    }) = expects.front_mut()
                {
                    *place = translated;
                }
            }
        }
        let Some(link) = &mut self.link else { return };
        if matches!(link.expects.front(), Some(Expect::Query { .. })) {
            return;
        }
        for undo in link.skip_to_sync(fields.sqlstate()) {
            match undo.was {
                Some(was) => self.statements.insert(&undo.name, was),
                None => {
                    self.statements.remove(&undo.name);
                }
            }
        }
        // The Sync that ends it may be among what was held back.
        self.input_waits |= std::mem::take(&mut self.input_held);
        // Some of them may not be bound to what the last Bind said: what they run is not known.
        self.portals.clear();
        self.bound.forget();
    }

    /// The server can't parse the text under way either, and so has run nothing of it.
    fn forget_unparsed(&mut self) {
        let intends_unparsed = std::mem::take(&mut self.intends_unparsed);
        let Some(link) = &mut self.link else { return };
        match link.expects.front_mut() {
            Some(Expect::Query { class, done: 0, .. }) if !class.parsed => {
                *class = Arc::new(Class::default());
            }
            Some(Expect::Parse { .. }) => {}
            _ => return,
        }
        if intends_unparsed && let Some(intent) = self.intent.take() {
            intent.withdraw();
        }
    }

    /// The server broke the protocol: nothing more is believed of it.
    fn server_misbehaved(&mut self, what: &str) -> End {
        self.capture = None;
        if let Some(link) = &mut self.link {
            link.lease.broken = true;
        }
        tracing::error!("the server broke the protocol: {what}");
        End::Error(
            ClientError::new(
                ErrorKind::Backend,
                "08P01",
                format!("the database server broke the protocol: {what}"),
            )
            .fatal(),
        )
    }
}

/// Whether an error is the parser's, about the text that the client sent: not about one that a function made up, or that
/// stands in a function.
fn is_of_the_text(error: &ErrorFields) -> bool {
    let of_something_else = [b'W', b'p', b'q'];
    error.sqlstate() == "42601"
        && error.field(b'R') == Some("scanner_yyerror")
        && error.field(b'P').is_some()
        && of_something_else
            .iter()
            .all(|code| error.field(*code).is_none())
}

/// Strikes a reply off the list of what is owed.
fn on_reply(link: &mut Link, tag: u8, message: &[u8]) -> Pass {
    match (tag, link.expects.front_mut()) {
        // Within a simple query everything is part of its answer.
        (
            _,
            Some(Expect::Query {
                own, place, done, ..
            }),
        ) => {
            let mut pass = Pass::Forward;
            if tag == b'C' {
                link.retry.clear();
                if own.last() == Some(place) {
                    own.pop();
                    pass = Pass::Swallow;
                } else {
                    *done += 1;
                }
                *place += 1;
            } else if tag == b'G' {
                link.begin_copy_in();
            }
            pass
        }
        (b'1', Some(Expect::Parse { swallow, .. })) => {
            let pass = if *swallow {
                Pass::Swallow
            } else {
                Pass::Forward
            };
            link.expects.pop_front();
            pass
        }
        (b'3', Some(Expect::Close { evicted, .. })) => {
            let pass = if evicted.is_some() {
                Pass::Swallow
            } else {
                Pass::Forward
            };
            link.expects.pop_front();
            pass
        }
        (b'2', Some(Expect::Bind(_))) => {
            link.expects.pop_front();
            link.has_begun();
            Pass::Forward
        }
        (b'1', Some(Expect::ForeignParse)) | (b'T' | b'n', Some(Expect::Describe)) => {
            link.expects.pop_front();
            Pass::Forward
        }
        (_, Some(Expect::Own(own))) if *own == tag => {
            link.expects.pop_front();
            Pass::Swallow
        }
        (b'C', Some(Expect::OwnPrepare(_))) => {
            link.expects.pop_front();
            Pass::Swallow
        }
        (b'C' | b'I' | b's', Some(Expect::Execute { class, .. })) => {
            // A part of the rows is enough for what a statement does to its session.
            if let Some(class) = class.take() {
                link.note_completed(Completed::whole(class));
            }
            link.expects.pop_front();
            Pass::Forward
        }
        (b'G', _) => {
            link.begin_copy_in();
            Pass::Forward
        }
        _ => {
            tracing::debug!(
                "reply {:?} ({} bytes) was not the one expected",
                char::from(tag),
                message.len()
            );
            Pass::Forward
        }
    }
}

/// Adds to the reply that is being collected; gives the collecting up where it grows beyond what may be stored.
fn capture(capture: &mut Option<Capture>, bytes: &[u8]) {
    if let Some(collecting) = capture {
        if collecting.reply.len() + bytes.len() > collecting.reply_max {
            *capture = None;
        } else {
            collecting.reply.extend_from_slice(bytes);
        }
    }
}
