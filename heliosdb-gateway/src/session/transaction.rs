//! Transactions that the server has not heard of.
//!
//! Drivers open a transaction around every SELECT. So BEGIN is answered here, and told to the server ahead of the first
//! statement that needs it; a transaction whose reads all come from memory never takes a connection. Under READ
//! COMMITTED each statement sees what is committed when it begins, so a read that stands before the transaction's first
//! write is answered as it would be outside: [`Session::sees_committed`] says how long that holds.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use heliosdb_network::error::HeliosError;

use crate::clients::Counters;
use crate::config::names;
use crate::error::{ClientError, ErrorKind};
use crate::fault::is_removed;
use crate::sql::{
    Class, Effect, FunctionRefusal, Isolation, Read, Refusal, Statement, TransactionModes, Write,
    classify_without_catalog, value_items,
};

use super::io::{HIGH_WATER, Step};
use super::link::put_frame;
use super::request::is_taken;
use super::unit::{Front, Protocol, first_unit, message, put_reply, recognise};
use super::{End, Session};

/// A transaction block that the client has opened and the server has not been told of. It has failed if the session's
/// status is `E`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Deferred {
    /// BEGIN, as the server is told of it.
    begin: Cow<'static, str>,
    /// The level that was asked for, if one was.
    isolation: Option<Isolation>,
    /// Drivers nest blocks around reads, too.
    savepoints: Vec<Box<str>>,
}

/// A statement that begins or ends a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Control {
    /// `None` where the server should be the one to say what becomes of it.
    Begin(Option<Deferred>),
    Commit {
        chain: bool,
    },
    Rollback {
        chain: bool,
    },
    Savepoint(String),
    Release(String),
    RollbackTo(String),
}

impl Control {
    /// True for the only statements that a failed transaction takes.
    fn ends_failed(&self) -> bool {
        matches!(
            self,
            Self::Commit { .. } | Self::Rollback { .. } | Self::RollbackTo(_)
        )
    }
}

impl Deferred {
    /// `None` for modes that a server may refuse: a standby takes no READ WRITE and no SERIALIZABLE. DEFERRABLE means
    /// nothing without the latter.
    fn new(modes: TransactionModes) -> Option<Self> {
        let TransactionModes {
            isolation,
            read_only,
            deferrable,
        } = modes;
        if isolation == Some(Isolation::Serializable)
            || read_only == Some(false)
            || deferrable.is_some()
        {
            return None;
        }
        let level = match isolation {
            None | Some(Isolation::Serializable) => "",
            Some(Isolation::ReadUncommitted) => " ISOLATION LEVEL READ UNCOMMITTED",
            Some(Isolation::ReadCommitted) => " ISOLATION LEVEL READ COMMITTED",
            Some(Isolation::RepeatableRead) => " ISOLATION LEVEL REPEATABLE READ",
        };
        let read_only = if read_only == Some(true) {
            " READ ONLY"
        } else {
            ""
        };
        let begin = if level.is_empty() && read_only.is_empty() {
            Cow::Borrowed("BEGIN")
        } else {
            Cow::Owned(format!("BEGIN{level}{read_only}"))
        };
        Some(Self {
            begin,
            isolation,
            savepoints: Vec::new(),
        })
    }

    /// What the server is told.
    fn sql(&self) -> String {
        let mut sql = self.begin.clone().into_owned();
        for name in &self.savepoints {
            let _ = write!(sql, ";SAVEPOINT \"{}\"", name.replace('"', "\"\""));
        }
        sql
    }

    /// The same transaction, begun anew.
    fn chained(&self) -> Self {
        Self {
            savepoints: Vec::new(),
            ..self.clone()
        }
    }

    /// With one savepoint more, unless there are too many.
    fn with_savepoint(&self, name: &str) -> Option<Self> {
        let mut next = self.clone();
        next.savepoints.push(name.into());
        (next.savepoints.len() <= SAVEPOINTS_MAX).then_some(next)
    }

    /// As it was when the savepoint was made, with it or without. `None` if there is no such savepoint.
    fn back_to(&self, name: &str, with_it: bool) -> Option<Self> {
        let at = self.savepoints.iter().rposition(|known| **known == *name)?;
        let mut next = self.clone();
        next.savepoints.truncate(at + usize::from(with_it));
        Some(next)
    }
}

/// Beyond these the server keeps them.
const SAVEPOINTS_MAX: usize = 64;

/// Cheap enough to be asked of every statement: false for all that begin with another word than those of transaction
/// control.
pub(super) fn may_be_control(text: &str) -> bool {
    let text = text.trim_ascii_start().as_bytes();
    text.get(..3).is_some_and(|start| {
        [
            b"beg", b"sta", b"com", b"end", b"rol", b"abo", b"sav", b"rel",
        ]
        .iter()
        .any(|word| start.eq_ignore_ascii_case(*word))
    })
}

/// The texts that drivers send.
fn usual_control(text: &str) -> Option<Control> {
    let text = text.trim_ascii();
    let text = text.strip_suffix(';').unwrap_or(text);
    let is = |known: &[&str]| known.iter().any(|known| text.eq_ignore_ascii_case(known));
    if is(&["BEGIN", "BEGIN TRANSACTION", "START TRANSACTION"]) {
        Some(Control::Begin(Deferred::new(TransactionModes::default())))
    } else if is(&["COMMIT", "END", "COMMIT TRANSACTION"]) {
        Some(Control::Commit { chain: false })
    } else if is(&["ROLLBACK", "ABORT", "ROLLBACK TRANSACTION"]) {
        Some(Control::Rollback { chain: false })
    } else {
        None
    }
}

impl Session {
    /// Refuses a transaction that is open now that the server is ready: what it did is rolled back.
    pub(super) fn refuse_transaction(&mut self, status: u8) -> End {
        self.status = status;
        End::Error(
            ClientError::new(
                ErrorKind::Client,
                "0A000",
                "transaction blocks not allowed in statement pooling mode",
            )
            .hint(format!(
                "Send what belongs together as one query, or set `pool_mode` to \"transaction\" for this database or user \
                 in {}.",
                names::place()
            ))
            .known_as("transaction blocks not allowed in statement pooling mode")
            .fatal(),
        )
    }

    /// True outside of a transaction on the server.
    pub(super) fn is_at_rest(&self) -> bool {
        self.status == b'I' || self.deferred.is_some()
    }

    /// Answers the request at the front if it begins or ends a transaction that the server need not hear of. The session
    /// is at rest, and nothing has failed.
    pub(super) fn try_control(&mut self, bytes: &[u8]) -> Option<Step> {
        if let Some(step) = self.try_prepare_control(bytes) {
            return Some(step);
        }
        if self.deferred.is_none() && !self.gateway.defers_transactions() {
            return None;
        }
        let (unit, goes_on) = match recognise(bytes, &self.statements, &self.scope) {
            Front::Read(unit) if !unit.is_prepare() && !is_taken(&unit, &self.statements) => {
                (unit, false)
            }
            Front::First(unit) if !is_taken(&unit, &self.statements) => (unit, true),
            _ => return None,
        };
        let text = unit.text.as_str();
        let control = self.control(text)?;
        let is_end = matches!(control, Control::Commit { .. } | Control::Rollback { .. });
        let followed = self.listening.is_some().then(|| control.clone());
        let (tag, next): (&[u8], _) = match (control, &self.deferred) {
            // In statement mode it is the server's to begin one, and to be stopped.
            (Control::Begin(Some(begun)), None)
                if self.gateway.defers_transactions() && !self.pool.refuses_transactions() =>
            {
                (begin_tag(text), Some(begun))
            }
            // The end of a transaction with something behind it in the same unit: too rare to be followed.
            _ if goes_on => return None,
            (Control::Commit { chain }, Some(begun)) => (b"COMMIT", chain.then(|| begun.chained())),
            (Control::Rollback { chain }, Some(begun)) => {
                (b"ROLLBACK", chain.then(|| begun.chained()))
            }
            (Control::Savepoint(name), Some(begun)) => {
                (b"SAVEPOINT", Some(begun.with_savepoint(&name)?))
            }
            (Control::Release(name), Some(begun)) => {
                (b"RELEASE", Some(begun.back_to(&name, false)?))
            }
            (Control::RollbackTo(name), Some(begun)) => {
                (b"ROLLBACK", Some(begun.back_to(&name, true)?))
            }
            // A warning, or an error.
            _ => return None,
        };
        let status = status_in(next.as_ref());
        let mut reply = BytesMut::with_capacity(32);
        if matches!(unit.protocol, Protocol::Extended { describe: true, .. }) {
            put_frame(&mut reply, b'n', |_| {});
        }
        put_frame(&mut reply, b'C', |out| {
            out.put_slice(tag);
            out.put_u8(0);
        });
        put_reply(
            &mut self.out,
            &unit.protocol,
            &reply,
            (!goes_on).then_some(status),
        );
        self.gateway.statements.of(text).record_execution();
        let (len, is_simple) = (unit.len, unit.is_simple());
        if let Some((name, statement)) = self.statement_to_remember(&unit) {
            self.statements.insert(&name, statement);
        }
        if is_simple {
            self.statements.remove(b"");
        }
        self.count_query();
        if is_end {
            Counters::add(&self.info().counters.transactions, 1);
        }
        self.set_deferred(next);
        if let Some(control) = followed {
            self.follow_listening(&control);
        }
        Some(Step::Done(len))
    }

    /// Answers the request at the front if it prepares what begins or ends a transaction: that means the same on every
    /// server, takes no parameters and gives no rows. So a client that has but one thread for all its connections does
    /// not wait here for a server connection that another of them holds.
    fn try_prepare_control(&mut self, bytes: &[u8]) -> Option<Step> {
        let Front::Read(unit) = recognise(bytes, &self.statements, &self.scope) else {
            return None;
        };
        let Protocol::Prepare {
            types: b"\0\0",
            describe,
            ..
        } = unit.protocol
        else {
            return None;
        };
        let control = self.control(unit.text.as_str())?;
        if is_taken(&unit, &self.statements) || self.status == b'E' && !control.ends_failed() {
            return None;
        }
        let mut reply = BytesMut::with_capacity(16);
        if describe {
            put_frame(&mut reply, b't', |out| out.put_i16(0));
            put_frame(&mut reply, b'n', |_| {});
        }
        put_reply(&mut self.out, &unit.protocol, &reply, Some(self.status));
        let len = unit.len;
        if let Some((name, statement)) = self.statement_to_remember(&unit) {
            self.statements.insert(&name, statement);
        }
        Some(Step::Done(len))
    }

    /// What the session is about to listen to follows its transaction.
    fn follow_listening(&mut self, control: &Control) {
        match control {
            Control::Begin(_) => {}
            Control::Commit { .. } => self.commit_listening(),
            Control::Rollback { .. } => self.roll_back_listening(),
            Control::Savepoint(name) => self.change_interest(|interest| interest.savepoint(name)),
            Control::Release(name) => self.change_interest(|interest| interest.release(name)),
            Control::RollbackTo(name) => {
                self.change_interest(|interest| interest.roll_back_to(name));
            }
        }
    }

    /// A statement was answered here on the unnamed portal.
    pub(super) fn note_portal(&mut self) {
        if self.status == b'T' {
            self.unnamed_portal_is_here = true;
            self.portals.remove(b"");
        }
    }

    /// True if the transaction has failed, and the server refuses all texts but a few, of which this is none.
    pub(super) fn is_refused_in_failed(&self, text: &str) -> bool {
        self.status == b'E'
            && !self
                .control(text)
                .is_some_and(|control| control.ends_failed())
    }

    /// What the text begins or ends, if it does nothing else.
    fn control(&self, text: &str) -> Option<Control> {
        if !may_be_control(text) {
            return None;
        }
        if let Some(control) = usual_control(text) {
            return Some(control);
        }
        // The names of savepoints are without end: nothing is remembered of them.
        let class = if text.trim_ascii_start().starts_with(['s', 'S', 'r', 'R']) {
            Arc::new(classify_without_catalog(text, &self.names))
        } else {
            let catalog = self.pool.database.catalog_now();
            self.gateway
                .classify(text, catalog.as_deref(), &self.names, &mut Vec::new())
        };
        let [statement] = class.statements.as_slice() else {
            return None;
        };
        match statement.effects.as_slice() {
            [Effect::Begin(modes)] => Some(Control::Begin(Deferred::new(*modes))),
            [Effect::Commit { chain }] => Some(Control::Commit { chain: *chain }),
            [Effect::Rollback { chain }] => Some(Control::Rollback { chain: *chain }),
            [Effect::Savepoint(name)] => Some(Control::Savepoint(name.clone())),
            [Effect::Release(name)] => Some(Control::Release(name.clone())),
            [Effect::RollbackTo(name)] => Some(Control::RollbackTo(name.clone())),
            _ => None,
        }
    }

    /// Whether each statement of the transaction sees what is committed when it begins.
    fn is_read_committed(&self, begun: &Deferred) -> bool {
        if is_removed("repeatable-read") {
            return true;
        }
        match begun.isolation {
            Some(level) => matches!(level, Isolation::ReadUncommitted | Isolation::ReadCommitted),
            None => {
                let set = self
                    .settings
                    .get("default_transaction_isolation")
                    .map(value_items);
                let level = match &set {
                    // What can't be read is no level that we know.
                    Some(items) => items.as_deref().unwrap_or_default().first(),
                    None => Some(&self.baseline.default_isolation),
                };
                level.is_some_and(|level| {
                    level.eq_ignore_ascii_case("read committed")
                        || level.eq_ignore_ascii_case("read uncommitted")
                })
            }
        }
    }

    /// A transaction begins that the server does not hear of, or none is open.
    fn set_deferred(&mut self, deferred: Option<Deferred>) {
        self.status = status_in(deferred.as_ref());
        self.sees_committed = deferred
            .as_ref()
            .is_some_and(|begun| self.is_read_committed(begun));
        self.deferred = deferred;
    }

    /// Works on the request at the front of a transaction that has failed before the server heard of it: as the server
    /// would, everything but its end is refused.
    pub(super) fn step_failed(&mut self, bytes: &[u8]) -> Result<Step, End> {
        if let Some(step) = self.try_prepare_control(bytes) {
            return Ok(step);
        }
        let unit = match recognise(bytes, &self.statements, &self.scope) {
            Front::Read(unit) => Some(unit),
            Front::Incomplete if bytes.len() < HIGH_WATER => return Ok(Step::Incomplete),
            Front::Incomplete | Front::First(_) | Front::Other => None,
        };
        if let Some(unit) = unit.filter(|unit| !unit.is_prepare()) {
            let (len, text) = (unit.len, unit.text.as_str());
            let begun = self.deferred.as_ref();
            let control = self.control(text);
            let next = match &control {
                Some(Control::Commit { chain } | Control::Rollback { chain }) => {
                    Some(begun.filter(|_| *chain).map(Deferred::chained))
                }
                Some(Control::RollbackTo(name)) => {
                    begun.and_then(|begun| begun.back_to(name, true)).map(Some)
                }
                _ => None,
            };
            match next {
                Some(next) => {
                    let status = Some(status_in(next.as_ref()));
                    let reply = b"C\0\0\0\x0dROLLBACK\0";
                    put_reply(&mut self.out, &unit.protocol, reply, status);
                    self.count_query();
                    if next.is_none() {
                        Counters::add(&self.info().counters.transactions, 1);
                    }
                    self.set_deferred(next);
                    match control {
                        Some(Control::RollbackTo(name)) => {
                            self.change_interest(|interest| interest.roll_back_to(&name));
                        }
                        _ => self.roll_back_listening(),
                    }
                    return Ok(Step::Done(len));
                }
                _ if text.trim_ascii().is_empty() => {
                    let reply = b"I\0\0\0\x04";
                    put_reply(&mut self.out, &unit.protocol, reply, Some(b'E'));
                    return Ok(Step::Done(len));
                }
                _ => {}
            }
        }
        let Some((tag, _, len)) = message(bytes) else {
            return Ok(Step::Incomplete);
        };
        match tag {
            b'S' => {
                self.put_ready();
                Ok(Step::Done(len))
            }
            b'H' | b'c' | b'd' | b'f' => Ok(Step::Done(len)),
            _ => {
                let error = ClientError::new(
                    ErrorKind::Client,
                    "25P02",
                    "current transaction is aborted, commands ignored until end of transaction block",
                );
                let len = first_unit(bytes);
                self.refuse(error, bytes, len).map(Step::Done)
            }
        }
    }

    /// Tells the server that the transaction has begun. The session has a connection, outside of a transaction.
    pub(super) async fn begin_on_server(&mut self) -> Result<(), ClientError> {
        let (Some(begun), Some(link)) = (&self.deferred, &mut self.link) else {
            return Ok(());
        };
        let lease = &mut link.lease;
        // Cut short, it leaves a reply behind that nobody reads.
        lease.broken = true;
        match tokio::time::timeout(BEGIN_TIMEOUT, lease.simple_query(&begun.sql())).await {
            Ok(Ok(_)) => {
                lease.broken = false;
                self.deferred = None;
                Ok(())
            }
            Ok(Err(HeliosError::Server(fields))) => {
                lease.broken = false;
                lease.dirty = true;
                Err(ClientError::from_server(&fields))
            }
            Ok(Err(error)) => Err(ClientError::connection_lost(&error.to_string())),
            Err(_) => Err(ClientError::connection_lost(
                "it did not begin a transaction in time",
            )),
        }
    }

    /// Notes that statements are about to be sent: from the first one on that may change something, or lock it, the
    /// transaction sees more than what others have committed.
    pub(super) fn note_sight(&mut self, class: &Class) {
        self.sees_committed = self.sees_committed
            && (is_removed("tx-write-bypass") || class.statements.iter().all(leaves_sight_alone));
    }
}

/// Whether the statements behind this one, in its transaction, see what they would see without it, and rely on nothing
/// that it has locked.
fn leaves_sight_alone(statement: &Statement) -> bool {
    let is_harmless = |effect: &Effect| {
        matches!(
            effect,
            Effect::Deallocate(_)
                | Effect::Release(_)
                | Effect::RollbackTo(_)
                | Effect::Savepoint(_)
        )
    };
    let is_pure = match &statement.read {
        Read::Cacheable(_) => true,
        // It may take a lock.
        Read::Refused(
            Refusal::LockingClause
            | Refusal::NoCatalog
            | Refusal::Function {
                why: FunctionRefusal::User | FunctionRefusal::Volatile,
                ..
            },
        ) => false,
        Read::Refused(_) => matches!(
            statement.tag,
            "SELECT" | "SAVEPOINT" | "RELEASE" | "ROLLBACK" | "SHOW" | "DEALLOCATE"
        ),
    };
    is_pure && statement.write == Write::None && statement.effects.iter().all(is_harmless)
}

fn status_in(deferred: Option<&Deferred>) -> u8 {
    if deferred.is_some() { b'T' } else { b'I' }
}

/// The tag with which the server answers a statement that begins a transaction.
fn begin_tag(text: &str) -> &'static [u8] {
    if text.trim_ascii_start().starts_with(['s', 'S']) {
        b"START TRANSACTION"
    } else {
        b"BEGIN"
    }
}

const BEGIN_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::NameScope;

    #[test]
    fn modes_that_a_server_may_refuse_are_its_to_hear_of() {
        let begun = |sql: &str| {
            let class = classify_without_catalog(sql, &NameScope::unknown());
            match class.statements[0].effects.as_slice() {
                [Effect::Begin(modes)] => Deferred::new(*modes).map(|begun| begun.sql()),
                other => panic!("{sql}: {other:?}"),
            }
        };
        for (sql, sent) in [
            ("BEGIN", Some("BEGIN")),
            ("start transaction read only", Some("BEGIN READ ONLY")),
            (
                "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY",
                Some("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
            ),
            (
                "BEGIN ISOLATION LEVEL READ COMMITTED",
                Some("BEGIN ISOLATION LEVEL READ COMMITTED"),
            ),
            ("BEGIN READ WRITE", None),
            ("BEGIN ISOLATION LEVEL SERIALIZABLE", None),
            (
                "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE",
                None,
            ),
        ] {
            assert_eq!(begun(sql).as_deref(), sent, "{sql}");
        }
    }

    #[test]
    fn savepoints_are_told_with_the_begin() {
        let begun = Deferred::new(TransactionModes::default()).expect("plain");
        let nested = ["a", "b", "a", "o\"dd"]
            .iter()
            .fold(begun.clone(), |begun, name| {
                begun.with_savepoint(name).expect("few")
            });
        let sql = |begun: Option<Deferred>| begun.map(|begun| begun.sql());
        assert_eq!(
            nested.sql(),
            "BEGIN;SAVEPOINT \"a\";SAVEPOINT \"b\";SAVEPOINT \"a\";SAVEPOINT \"o\"\"dd\""
        );
        assert_eq!(
            sql(nested.back_to("a", true)).as_deref(),
            Some("BEGIN;SAVEPOINT \"a\";SAVEPOINT \"b\";SAVEPOINT \"a\"")
        );
        assert_eq!(
            sql(nested.back_to("b", false)).as_deref(),
            Some("BEGIN;SAVEPOINT \"a\"")
        );
        assert_eq!(nested.back_to("c", true), None);
        assert_eq!(nested.chained(), begun);
    }

    #[test]
    fn the_usual_texts_mean_what_the_grammar_says() {
        for sql in [
            "BEGIN",
            "begin;",
            " Begin Transaction ",
            "START TRANSACTION",
            "COMMIT",
            "end;",
            "commit transaction",
            "ROLLBACK",
            "abort",
            "rollback transaction;",
        ] {
            let class = classify_without_catalog(sql, &NameScope::unknown());
            let expected = match class.statements[0].effects.as_slice() {
                [Effect::Begin(modes)] => Control::Begin(Deferred::new(*modes)),
                [Effect::Commit { chain }] => Control::Commit { chain: *chain },
                [Effect::Rollback { chain }] => Control::Rollback { chain: *chain },
                other => panic!("{sql}: {other:?}"),
            };
            assert!(may_be_control(sql), "{sql}");
            assert_eq!(usual_control(sql), Some(expected), "{sql}");
        }
        for sql in [
            "BEGIN; SELECT 1",
            "COMMIT AND CHAIN",
            "ROLLBACK TO a",
            "COMMIT PREPARED 'a'",
        ] {
            assert_eq!(usual_control(sql), None, "{sql}");
        }
    }
}
