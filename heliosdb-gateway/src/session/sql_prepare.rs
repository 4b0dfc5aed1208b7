//! PREPARE, EXECUTE and DEALLOCATE as statements.
//!
//! PostgreSQL has one set of names for what is prepared by message and by statement, and so has a session here. On server
//! connections each statement has a name of the gateway's own; so in a text that names one, the name is replaced (that
//! token alone), after it was made sure that the connection has it. Where an error says where in the text it is, the
//! place is counted back; where it has the gateway's name in it, the client's is put back.
//!
//! What can't be read goes to the server as it is, and a PREPARE in it ties the client to the connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::error::{ClientError, ErrorKind};
use crate::gateway::epoch_of;
use crate::sql::{Action, Class, Effect, SpotKind, Unbounded, names_spoken_of, spots};
use crate::upstream::connection::ServerConnection;

use super::link::{Ahead, Completed, Undo, put_frame, put_parse};
use super::prepared::{Interner, NOBODYS_NAME, Prepared, weight_of};
use super::unit::message;
use super::{End, Session};

/// A client's text as the server gets it.
#[derive(Debug)]
pub(crate) struct Translated {
    pub(super) text: String,
    pub(super) uses: Vec<Use>,
    /// Places of the gateway's own among the statements, the last first.
    pub(super) own: Vec<usize>,
    edits: Vec<Edit>,
    /// What the client is told in place of the error that this text is answered with.
    refusal: Option<ClientError>,
}

/// What a statement of a text does to a prepared one.
#[derive(Debug, Clone)]
pub(super) struct Use {
    /// Which statement of the text.
    pub(super) place: usize,
    /// The client's name for the prepared one.
    name: Box<[u8]>,
    kind: UseKind,
    statement: Arc<Prepared>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UseKind {
    Deallocate,
    Execute,
    Prepare,
    /// PREPARE under a name that is in use.
    PrepareTaken,
}

/// A name that was replaced. Places are counted in characters.
#[derive(Debug)]
struct Edit {
    /// Where it begins in the new text.
    at: usize,
    new_len: usize,
    old_len: usize,
}

/// The texts of the client's prepared statements that speak of others by name, by the id of what they became.
pub(super) type SqlUses = HashMap<u64, SqlUse, rapidhash::fast::RandomState>;

#[derive(Debug, Clone)]
pub(super) struct SqlUse {
    original: Arc<str>,
    /// The statement that is named, if the client has one of that name.
    spoken_of: Option<Use>,
}

/// One client may have this part of the memory for prepared statements.
const CLIENTS_PART: usize = 8;
/// Of these many only those are kept that the client can still run.
const SQL_USES_MAX: usize = 64;
/// How long the server may take to prepare what is about to be executed.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(60);
/// No reply to a Parse is longer.
const REPLY_MAX: usize = 1 << 20;

impl UseKind {
    /// The server has to know the statement by then.
    fn needs_it(self) -> bool {
        self != Self::Prepare
    }
}

impl Translated {
    /// What this statement of the text does to a prepared one.
    fn use_at(&self, place: usize) -> Option<&Use> {
        self.uses.iter().find(|spoken| spoken.place == place)
    }

    /// The statement that this one of the text executes.
    pub(super) fn executed_at(&self, place: usize) -> Option<u64> {
        self.use_at(place)
            .filter(|spoken| spoken.kind == UseKind::Execute)
            .map(|spoken| spoken.statement.id)
    }

    /// The place in the client's text of a place in the text that was sent; both from 1, in characters.
    fn position(&self, at: usize) -> usize {
        let mut shift = 0_isize;
        for edit in &self.edits {
            if at <= edit.at {
                break;
            }
            let grown = edit.new_len.cast_signed() - edit.old_len.cast_signed();
            if at <= edit.at + edit.new_len {
                return (edit.at + 1).saturating_add_signed(-shift);
            }
            shift += grown;
        }
        at.saturating_add_signed(-shift)
    }
}

impl Session {
    /// The text of a request with the client's names of statements replaced. `None` where there are none, or where they
    /// can't be found for certain.
    fn translate(&mut self, text: &str) -> Option<Translated> {
        let found = spots(text, &self.names).filter(|spots| !spots.is_empty())?;
        let scope = self.parse_scope();
        let epoch = epoch_of(&self.pool.database);
        let interner = &self.gateway.interner;
        let mut names = self.statements.clone();
        let mut uses: Vec<Use> = Vec::new();
        let (mut edits, mut new, mut from) = (Vec::new(), String::new(), 0);
        let mut own = Vec::new();
        for spot in found {
            let (name, at, action) = match spot.kind {
                SpotKind::ForgetAll => {
                    names.clear();
                    continue;
                }
                SpotKind::Named { name, at, action } => (name.into_bytes(), at, action),
            };
            let known = names.get(&name).cloned();
            let is_used = |id: u64| uses.iter().any(|spoken| spoken.statement.id == id);
            let (kind, statement) = match (action, known) {
                (Action::Execute, Some(known)) => (UseKind::Execute, known),
                (Action::Deallocate, Some(known)) => {
                    names.remove(&name);
                    // Where it has another name, too, it is to stay.
                    let known = if names.name_of(known.id).is_some() {
                        interner.apart(&known)
                    } else {
                        known
                    };
                    (UseKind::Deallocate, known)
                }
                (Action::Prepare { .. }, Some(known)) => (UseKind::PrepareTaken, known),
                (
                    Action::Prepare {
                        declared,
                        statement,
                    },
                    None,
                ) => {
                    let (declared, inner) = (text.get(declared)?, text.get(statement)?);
                    let mut fresh = interner.declared(inner, declared, &scope, epoch);
                    if is_used(fresh.id) || names.name_of(fresh.id).is_some() {
                        fresh = interner.apart(&fresh);
                    }
                    names.insert(&name, Arc::clone(&fresh));
                    (UseKind::Prepare, fresh)
                }
                // The server says that there is none, even where the name is one that it has for somebody.
                (_, None) if name.starts_with(interner.prefix().as_bytes()) => {
                    new.push_str(text.get(from..at.start)?);
                    new.push_str(NOBODYS_NAME);
                    from = at.end;
                    continue;
                }
                (_, None) => continue,
            };
            let server_name = interner.server_name(statement.id);
            if let Some(declared) = self.declared_within(&statement, kind, &uses) {
                // Behind the end of a transaction that has failed: only there it can be prepared.
                new.push_str(text.get(from..spot.start)?);
                let sql = format!(" PREPARE {server_name}{declared}\n;");
                edits.push(Edit {
                    at: new.chars().count(),
                    new_len: sql.chars().count(),
                    old_len: 0,
                });
                new.push_str(&sql);
                from = spot.start;
                own.push(spot.place + own.len());
            }
            new.push_str(text.get(from..at.start)?);
            edits.push(Edit {
                at: new.chars().count(),
                new_len: server_name.len(),
                old_len: text.get(at.clone())?.chars().count(),
            });
            new.push_str(&server_name);
            from = at.end;
            uses.push(Use {
                place: spot.place,
                name: name.into(),
                kind,
                statement,
            });
        }
        if from == 0 {
            // None of the names is in use.
            return Some(Translated {
                text: text.to_owned(),
                uses,
                own,
                edits,
                refusal: None,
            });
        }
        own.reverse();
        new.push_str(text.get(from..)?);
        // What the grammar makes of the new text is what was meant.
        let spoken_of = names_spoken_of(&new)?;
        let is_meant = uses.iter().all(|spoken| {
            spoken_of
                .iter()
                .any(|name| *name == interner.server_name(spoken.statement.id))
        });
        is_meant.then_some(Translated {
            text: new,
            uses,
            own,
            edits,
            refusal: None,
        })
    }

    /// Why the client can't prepare that text under that name, if so.
    pub(super) fn refuses_to_prepare(&self, name: &[u8], text: &str) -> Option<ClientError> {
        if self.statements.contains(name) {
            let name = String::from_utf8_lossy(name);
            let message = format!("prepared statement \"{name}\" already exists");
            return Some(ClientError::new(ErrorKind::Client, "42P05", message));
        }
        self.lacks_memory_for(name, text)
    }

    fn lacks_memory_for(&self, name: &[u8], text: &str) -> Option<ClientError> {
        let max = self.gateway.prepared_memory();
        let own = self.statements.bytes() + weight_of(name, text);
        let whose = if own > max / CLIENTS_PART {
            "this client"
        } else if self.gateway.interner.bytes() + own > max {
            "all clients"
        } else {
            return None;
        };
        let message = format!("the prepared statements of {whose} take too much memory");
        let hint = "Deallocate those that are not needed, or raise `pool.prepared_memory`, of which one client may \
                    have an eighth.";
        Some(ClientError::new(ErrorKind::Client, "53200", message).hint(hint))
    }

    /// What stands behind the name where a statement has to be prepared within a text that names it: the transaction has
    /// failed, and the connection does not have it.
    fn declared_within(&self, known: &Prepared, kind: UseKind, uses: &[Use]) -> Option<String> {
        let is_there = || {
            let link = self.link.as_ref();
            link.is_none_or(|link| link.lease.statements.has(known.id))
                || uses.iter().any(|before| before.statement.id == known.id)
        };
        if self.status != b'E' || !kind.needs_it() || is_there() {
            return None;
        }
        match &known.declared {
            Some(declared) => Some(declared.to_string()),
            // Types that are known by their numbers can't be written.
            None if known.types.len() <= 2 => Some(format!(" AS {}", &*known.text)),
            None => None,
        }
    }

    /// The text of a simple query of this class as the server is to get it.
    pub(super) fn translate_query(&mut self, text: &[u8], class: &Class) -> Option<Translated> {
        if !class.statements.iter().any(|one| may_name(one.tag)) {
            return None;
        }
        let mut translated = self
            .translate(std::str::from_utf8(text).ok()?)
            .filter(|translated| translated.text.as_bytes() != text)?;
        let is_new = |spoken: &&Use| spoken.kind == UseKind::Prepare;
        let refusal = translated
            .uses
            .iter()
            .filter(is_new)
            .find_map(|spoken| self.lacks_memory_for(&spoken.name, &spoken.statement.text));
        if refusal.is_some() {
            // The server has to fail, for its transaction.
            translated = Translated {
                text: format!("DEALLOCATE {NOBODYS_NAME}"),
                uses: Vec::new(),
                own: Vec::new(),
                edits: Vec::new(),
                refusal,
            };
        }
        Some(translated)
    }

    /// What a simple query executes, DEALLOCATEs or fails to PREPARE: the server has to know these first.
    fn needed_by(&mut self, input: &[u8]) -> Vec<Arc<Prepared>> {
        let text = match message(input) {
            Some((b'Q', body, _)) => body.strip_suffix(b"\0"),
            _ => None,
        };
        let Some(text) = text.filter(|text| !self.statements.has_no_names() && mentions(text))
        else {
            return Vec::new();
        };
        let translated = std::str::from_utf8(text)
            .ok()
            .and_then(|text| self.translate(text));
        let mut needed: Vec<Arc<Prepared>> = Vec::new();
        let mut made: Vec<u64> = Vec::new();
        for spoken in translated
            .into_iter()
            .flat_map(|translated| translated.uses)
        {
            let id = spoken.statement.id;
            if !spoken.kind.needs_it() {
                made.push(id);
            } else if !made.contains(&id) && needed.iter().all(|known| known.id != id) {
                needed.push(spoken.statement);
            }
        }
        needed
    }

    /// True if the simple query at the front speaks of statements that the connection does not have.
    pub(super) fn must_prepare(&mut self, input: &[u8]) -> bool {
        if self.status == b'E' {
            return false;
        }
        let needed = self.needed_by(input);
        let Some(link) = &mut self.link else {
            return !needed.is_empty();
        };
        let statements = &mut link.lease.statements;
        !needed
            .iter()
            .all(|statement| statements.touch(statement.id))
    }

    /// Prepares what the simple query at the front speaks of. The session has a connection, which owes nothing.
    /// `Err(bytes)`: the server refused, and these are its words.
    pub(super) async fn prepare_needed(&mut self, input: &[u8]) -> Result<Result<(), Bytes>, End> {
        if self.status == b'E' {
            return Ok(Ok(()));
        }
        let needed = self.needed_by(input);
        // None of them is given up for another.
        let max = self.gateway.max_prepared_statements().max(needed.len());
        for statement in needed {
            let Some(link) = &mut self.link else {
                return Ok(Ok(()));
            };
            let lease = &mut link.lease;
            if lease.statements.touch(statement.id) {
                continue;
            }
            // Cut short, it leaves replies behind that nobody reads.
            lease.broken = true;
            let preparing = prepare_on(lease, &statement, &self.gateway.interner, max);
            match tokio::time::timeout(PREPARE_TIMEOUT, preparing).await {
                Ok(Ok(())) => lease.broken = false,
                Ok(Err(Refused::ByServer(error))) => {
                    lease.broken = false;
                    return Ok(Err(error));
                }
                Ok(Err(Refused::Lost(cause))) => {
                    return Err(End::Error(ClientError::connection_lost(&cause)));
                }
                Err(_) => {
                    return Err(End::Error(ClientError::connection_lost(
                        "it did not prepare a statement in time",
                    )));
                }
            }
        }
        Ok(Ok(()))
    }

    /// A query can't run, since the server refuses to prepare what it executes: the client hears so in its place.
    pub(super) fn fail_query(&mut self, error: &[u8]) {
        self.put_error(error, None);
        let status = if self.status == b'I' { b'I' } else { b'E' };
        if let Some(link) = &mut self.link {
            link.lease.pg.set_transaction_status(status);
        }
        self.on_ready(status, &[], true);
        self.put_ready();
    }

    /// The class of a text with what the statements do to the session that it executes.
    pub(super) fn with_executed(&mut self, class: Arc<Class>, uses: &[Use]) -> Arc<Class> {
        let mut merged: Option<Class> = None;
        for spoken in uses.iter().filter(|spoken| spoken.kind == UseKind::Execute) {
            let executed = self.classify_executed(&spoken.statement);
            for effect in executed.statements.iter().flat_map(|one| &one.effects) {
                let effect = match effect {
                    Effect::Set { name, .. } => {
                        Effect::SettingsUnknown(Unbounded::Setting(name.as_str().into()))
                    }
                    effect => effect.clone(),
                };
                let merged = merged.get_or_insert_with(|| Class::clone(&class));
                if let Some(statement) = merged.statements.get_mut(spoken.place) {
                    statement.effects.push(effect);
                }
            }
        }
        merged.map_or(class, Arc::new)
    }

    /// Makes room on the connection for what a simple query prepares.
    pub(super) fn make_room_for(&mut self, uses: &[Use]) {
        let max = self.gateway.max_prepared_statements();
        let Some(link) = &mut self.link else { return };
        for spoken in uses.iter().filter(|spoken| spoken.kind == UseKind::Prepare) {
            if let Some(given_up) = link.lease.statements.give_up(spoken.statement.id) {
                // Somebody else prepared the same: it is prepared anew, as the client asked for.
                link.close_named(given_up, &self.gateway.interner);
            }
            link.make_room(&spoken.statement, &self.gateway.interner, max);
            // Not there yet.
            link.lease.statements.remove(spoken.statement.id);
        }
    }

    /// What a statement of a simple query did to the names of statements, once it is complete.
    /// True if it did something.
    pub(super) fn apply_use(&mut self, completed: &Completed, place: usize) -> bool {
        let used = completed.translated.as_ref();
        let Some(used) = used.and_then(|translated| translated.use_at(place)) else {
            return false;
        };
        let on_server = self.link.as_mut().map(|link| &mut link.lease.statements);
        match used.kind {
            UseKind::Prepare => {
                self.statements
                    .insert(&used.name, Arc::clone(&used.statement));
                if let Some(on_server) = on_server {
                    // Room was made for it before.
                    on_server.insert(&used.statement, usize::MAX);
                }
            }
            UseKind::Deallocate => {
                self.statements.remove(&used.name);
                if let Some(on_server) = on_server {
                    on_server.remove(used.statement.id);
                }
            }
            UseKind::Execute | UseKind::PrepareTaken => {
                // It may have been prepared in the same text.
                if let Some(on_server) = on_server.filter(|known| !known.has(used.statement.id)) {
                    on_server.insert(&used.statement, usize::MAX);
                }
            }
        }
        true
    }

    /// An error of the server with the client's names and places in it.
    pub(super) fn put_error(&mut self, message: &[u8], translated: Option<&Translated>) {
        if let Some(error) = translated.and_then(|translated| translated.refusal.as_ref())
            && memchr::memmem::find(message, NOBODYS_NAME.as_bytes()).is_some()
        {
            error.put(&mut self.out);
            return;
        }
        let prefix = self.gateway.interner.prefix().as_bytes();
        let has_name = memchr::memmem::find(message, prefix).is_some();
        if !has_name && translated.is_none() {
            self.out.extend_from_slice(message);
            return;
        }
        let client_name = |id: u64| {
            let uses = translated
                .into_iter()
                .flat_map(|translated| &translated.uses);
            let by_use = uses
                .chain(
                    self.sql_uses
                        .values()
                        .filter_map(|known| known.spoken_of.as_ref()),
                )
                .find(|spoken| spoken.statement.id == id)
                .map(|spoken| &*spoken.name);
            let link = self.link.as_ref();
            by_use
                .or_else(|| link.and_then(|link| link.name_before(id)))
                .or_else(|| self.statements.name_of(id))
        };
        let mut fields = Vec::new();
        for field in message
            .get(5..)
            .unwrap_or_default()
            .split(|byte| *byte == 0)
        {
            match field.split_first() {
                Some((b'P', at)) => {
                    let at = std::str::from_utf8(at)
                        .ok()
                        .and_then(|at| at.parse::<usize>().ok());
                    let position = |at| translated.map_or(at, |known| known.position(at));
                    match at.map(position) {
                        Some(at) => fields.extend_from_slice(format!("P{at}").as_bytes()),
                        None => fields.extend_from_slice(field),
                    }
                    fields.push(0);
                }
                Some(_) => {
                    put_with_names(&mut fields, field, prefix, &client_name);
                    fields.push(0);
                }
                None => {}
            }
        }
        put_frame(&mut self.out, b'E', |out| {
            out.put_slice(&fields);
            out.put_u8(0);
        });
    }

    /// The text of a Parse as the server is to get it, with what it speaks of.
    pub(super) fn translate_parse(&mut self, text: &str) -> Option<(String, SqlUse)> {
        if !mentions(text.as_bytes()) {
            return None;
        }
        let translated = self.translate(text)?;
        let spoken_of = translated.uses.into_iter().next();
        let known = SqlUse {
            original: text.into(),
            spoken_of,
        };
        Some((translated.text, known))
    }

    /// Notes that a statement of the client speaks of another by name.
    pub(super) fn note_sql_use(&mut self, statement: &Arc<Prepared>, known: SqlUse) {
        if self.sql_uses.len() >= SQL_USES_MAX {
            let (statements, portals) = (&self.statements, &self.portals);
            self.sql_uses.retain(|id, _| {
                let unnamed =
                    |names: &super::Named| names.get(b"").is_some_and(|one| one.id == *id);
                statements.name_of(*id).is_some()
                    || portals.name_of(*id).is_some()
                    || unnamed(statements)
                    || unnamed(portals)
            });
        }
        self.sql_uses.insert(statement.id, known);
    }

    /// Makes sure that the connection has the statement that this one speaks of, when it reads what follows.
    pub(super) fn ensure_spoken_of(&mut self, spoken_of: &SqlUse) {
        let Some(Use {
            kind, statement, ..
        }) = &spoken_of.spoken_of
        else {
            return;
        };
        let max = self.gateway.max_prepared_statements();
        if let Some(link) = &mut self.link
            && kind.needs_it()
        {
            link.ensure_prepared(statement, &self.gateway.interner, max);
        }
    }

    /// The same for a statement that is about to be described: it has the columns that it had when it was parsed.
    pub(super) fn ensure_spoken_of_by(&mut self, name: &[u8]) {
        let known = self.statements.get(name).map(|known| known.id);
        if let Some(known) = known.and_then(|id| self.sql_uses.get(&id).cloned()) {
            self.ensure_spoken_of(&known);
        }
    }

    /// A statement that speaks of others by name is about to be bound: what the names stand for may have
    /// changed since it was parsed, and is then what counts.
    pub(super) fn bring_up_to_date(&mut self, name: &[u8]) {
        let Some(known) = self.statements.get(name).cloned() else {
            return;
        };
        let Some(before) = self.sql_uses.get(&known.id).cloned() else {
            return;
        };
        let is_free = |name: &[u8]| !self.statements.contains(name);
        if let Some(used) = &before.spoken_of
            && used.kind == UseKind::Prepare
            && is_free(&used.name)
        {
            return;
        }
        let Some((text, now)) = self.translate_parse(&before.original) else {
            return;
        };
        if *text != *known.text {
            let scope = self.parse_scope();
            let database = Arc::clone(&self.pool.database);
            let fresh = self
                .gateway
                .prepare(name, &text, &known.types, &scope, &database);
            self.note_sql_use(&fresh, now.clone());
            self.statements.insert(name, fresh);
        }
        self.ensure_spoken_of(&now);
    }

    /// What an Execute of a statement does to the names of statements; noted in advance.
    pub(super) fn note_ahead(&mut self, statement: &Prepared, class: &Class) -> Option<Box<Ahead>> {
        let forgets_all = class.statements.iter().any(|one| {
            let effects = one.effects.as_slice();
            matches!(effects, [Effect::DiscardAll | Effect::Deallocate(None), ..])
        });
        let link = self.link.as_mut()?;
        if forgets_all {
            let ahead = Ahead::RemovedAll {
                names: self.statements.take_names(),
                given_up: link.lease.statements.give_up_all(),
            };
            return Some(Box::new(ahead));
        }
        let Use {
            name,
            kind,
            statement,
            ..
        } = self.sql_uses.get(&statement.id)?.spoken_of.clone()?;
        let max = self.gateway.max_prepared_statements();
        let interner = &self.gateway.interner;
        let ahead = match kind {
            UseKind::Prepare if !self.statements.contains(&name) => {
                if let Some(given_up) = link.lease.statements.give_up(statement.id) {
                    link.close_named(given_up, interner);
                }
                link.make_room(&statement, interner, max);
                self.statements.insert(&name, Arc::clone(&statement));
                Ahead::Added { name, statement }
            }
            UseKind::Deallocate => {
                link.ensure_prepared(&statement, interner, max);
                let was = self.statements.remove(&name);
                Ahead::Removed {
                    undo: Undo { name, was },
                    given_up: link.lease.statements.give_up(statement.id),
                }
            }
            UseKind::Execute | UseKind::Prepare | UseKind::PrepareTaken => {
                link.ensure_prepared(&statement, interner, max);
                return None;
            }
        };
        Some(Box::new(ahead))
    }

    /// The class of what a statement of the extended protocol executes is part of its own.
    pub(super) fn with_spoken_of(&mut self, id: u64, class: Arc<Class>) -> Arc<Class> {
        match self.sql_uses.get(&id).cloned() {
            Some(SqlUse {
                spoken_of: Some(spoken_of),
                ..
            }) => self.with_executed(class, &[spoken_of]),
            _ => class,
        }
    }
}

/// Whether a statement of this kind may name a prepared one.
fn may_name(tag: &str) -> bool {
    matches!(
        tag,
        "CREATE TABLE AS" | "DEALLOCATE" | "DISCARD" | "EXECUTE" | "EXPLAIN" | "PREPARE"
    )
}

/// Cheap enough to be asked of every text of a client that has prepared something: false for all that hold none of the
/// words by which statements are named.
fn mentions(text: &[u8]) -> bool {
    memchr::memchr2_iter(b'p', b'P', text).any(|at| {
        let word = |word: &[u8]| {
            text.get(at..at + word.len())
                .is_some_and(|part| part.eq_ignore_ascii_case(word))
        };
        word(b"prepare")
    }) || memchr::memchr2_iter(b'e', b'E', text).any(|at| {
        let word = |from: usize, word: &[u8]| {
            text.get(from..from + word.len())
                .is_some_and(|part| part.eq_ignore_ascii_case(word))
        };
        word(at, b"execute") || at >= 1 && word(at - 1, b"deallocate")
    })
}

/// Adds a field in which the gateway's names of statements are the client's.
fn put_with_names<'n>(
    out: &mut Vec<u8>,
    field: &[u8],
    prefix: &[u8],
    client_name: &impl Fn(u64) -> Option<&'n [u8]>,
) {
    let mut rest = field;
    while let Some(at) = memchr::memmem::find(rest, prefix) {
        let number = &rest[at + prefix.len()..];
        let digits = number
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        let id = std::str::from_utf8(&number[..digits])
            .ok()
            .and_then(|digits| digits.parse().ok());
        out.extend_from_slice(&rest[..at]);
        match id.and_then(client_name) {
            Some(name) => out.extend_from_slice(name),
            None => out.extend_from_slice(&rest[at..at + prefix.len() + digits]),
        }
        rest = &number[digits..];
    }
    out.extend_from_slice(rest);
}

/// Why a statement was not prepared.
enum Refused {
    /// The server's ErrorResponse.
    ByServer(Bytes),
    Lost(String),
}

/// Prepares a statement on a connection that owes nothing, in an exchange of its own.
async fn prepare_on(
    lease: &mut ServerConnection,
    statement: &Arc<Prepared>,
    names: &Interner,
    max: usize,
) -> Result<(), Refused> {
    let mut out = BytesMut::new();
    if let Some(oldest) = lease.statements.insert(statement, max) {
        put_frame(&mut out, b'C', |out| {
            out.put_u8(b'S');
            names.put_server_name(oldest.id, out);
        });
    }
    match &statement.declared {
        Some(declared) => {
            let sql = format!("PREPARE {}{declared}\0", names.server_name(statement.id));
            lease.statements.unnamed = None;
            put_frame(&mut out, b'Q', |out| out.put_slice(sql.as_bytes()));
        }
        None => {
            put_parse(&mut out, statement, |out| {
                names.put_server_name(statement.id, out);
            });
            put_frame(&mut out, b'S', |_| {});
        }
    }
    let lost = |error: std::io::Error| Refused::Lost(error.to_string());
    let (stream, buffer) = lease.pg.parts();
    stream.write_all(&out).await.map_err(lost)?;
    let mut refused = None;
    loop {
        let len = match buffer.first_chunk::<5>() {
            Some(head) => u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize + 1,
            None => 5,
        };
        if len > REPLY_MAX {
            return Err(Refused::Lost("a reply to a Parse is too long".to_owned()));
        }
        if buffer.len() < len.max(5) {
            if stream.read_buf(buffer).await.map_err(lost)? == 0 {
                return Err(Refused::Lost("it closed the connection".to_owned()));
            }
            continue;
        }
        let message = buffer.split_to(len).freeze();
        match message[0] {
            b'E' => refused = refused.or(Some(message)),
            b'Z' => break,
            _ => {}
        }
    }
    match refused {
        None => Ok(()),
        Some(error) => {
            lease.statements.remove(statement.id);
            Err(Refused::ByServer(error))
        }
    }
}
