//! PREPARE, EXECUTE and DEALLOCATE as statements.
//!
//! PostgreSQL has one set of names for what is prepared by message and by statement, and so has a session here. On server
//! connections each statement has a name of the gateway's own; so in a text that names one, the name is replaced (that
//! token alone), after it was made sure that the connection has it. Where an error says where in the text it is, the
//! place is counted back; where it has the gateway's name in it, the client's is put back.
//!
//! What can't be read goes to the server as it is, and a PREPARE in it ties the client to the connection.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use heliosdb_cache::HashedStr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::error::{ClientError, ErrorKind};
use crate::gateway::epoch_of;
use crate::sql::{Action, Class, Effect, SpotKind, Unbounded, names_spoken_of, spots};
use crate::upstream::connection::ServerConnection;

use super::link::{Ahead, Completed, Undo, put_frame, put_parse};
use super::prepared::{Interner, NOBODYS_NAME, Named, Prepared, weight_of};
use super::translated::{Draft, Translated, Use, UseKind, put_with_names};
use super::unit::message;
use super::{End, Session};

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

impl Session {
    /// The text of a request with the client's names of statements replaced, or as it is where none of them is in use.
    /// `None` where it names none, or where the names can't be found for certain.
    fn translate(&mut self, text: &str) -> Option<Translated> {
        let found = spots(text, &self.names).filter(|spots| !spots.is_empty())?;
        let scope = self.parse_scope();
        let mut names = Cow::Borrowed(&self.statements);
        let interner = &self.gateway.interner;
        let mut draft = Draft::new(text);
        for spot in found {
            let SpotKind::Named { name, at, action } = spot.kind else {
                names.to_mut().take_names();
                continue;
            };
            let name = name.into_bytes();
            let Some((kind, statement)) =
                self.meaning(text, &name, &action, &scope, &mut names, draft.uses())
            else {
                if name.starts_with(interner.prefix().as_bytes()) {
                    // The server says that there is none, though it has it for somebody.
                    draft.replace(at, NOBODYS_NAME)?;
                }
                continue;
            };
            let server_name = interner.server_name(statement.id);
            if let Some(declared) = self.declared_within(&statement, kind, draft.uses()) {
                // Behind the end of a transaction that has failed: only there it can be prepared.
                let sql = format!(" PREPARE {server_name}{declared}\n;");
                draft.insert_own(spot.start, spot.place, &sql)?;
            }
            draft.replace(at, &server_name)?;
            draft.note(Use {
                place: spot.place,
                name: name.into(),
                kind,
                statement,
            });
        }
        let translated = draft.finish()?;
        if translated.text == text {
            return Some(translated);
        }
        // What the grammar makes of the new text is what was meant.
        let spoken_of = names_spoken_of(&translated.text)?;
        let is_meant = translated.uses.iter().all(|spoken| {
            let server_name = interner.server_name(spoken.statement.id);
            spoken_of.contains(&server_name)
        });
        is_meant.then_some(translated)
    }

    /// What a statement that names a prepared one does, and to which. `None` where there is none of that name. `names` are
    /// those of the client at that place of the text, `uses` what stands before it.
    fn meaning(
        &self,
        text: &str,
        name: &[u8],
        action: &Action,
        scope: &HashedStr,
        names: &mut Cow<'_, Named>,
        uses: &[Use],
    ) -> Option<(UseKind, Arc<Prepared>)> {
        let interner = &self.gateway.interner;
        let known = names.get(name).cloned();
        match (action, known) {
            (Action::Execute, known) => Some((UseKind::Execute, known?)),
            (Action::Deallocate, known) => {
                let known = known?;
                names.to_mut().remove(name);
                // Where it has another name, too, it is to stay.
                let is_kept = names.name_of(known.id).is_some();
                let known = if is_kept {
                    interner.apart(&known)
                } else {
                    known
                };
                Some((UseKind::Deallocate, known))
            }
            (Action::Prepare { .. }, Some(known)) => Some((UseKind::PrepareTaken, known)),
            (
                Action::Prepare {
                    declared,
                    statement,
                },
                None,
            ) => {
                let epoch = epoch_of(&self.pool.database);
                let (declared, inner) = (text.get(declared.clone())?, text.get(statement.clone())?);
                let mut fresh = interner.declared(inner, declared, scope, epoch);
                let is_used = uses.iter().any(|before| before.statement.id == fresh.id);
                if is_used || names.name_of(fresh.id).is_some() {
                    fresh = interner.apart(&fresh);
                }
                names.to_mut().insert(name, Arc::clone(&fresh));
                Some((UseKind::Prepare, fresh))
            }
        }
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
        let known = self.translation.take();
        if class.is_plain() || !class.statements.iter().any(|one| may_name(one.tag)) {
            return None;
        }
        let translated = match known {
            // A moment ago it was asked what the server has to know for it.
            Some(known) if known.0.as_bytes() == text => known.1,
            _ => self.translate(std::str::from_utf8(text).ok()?)?,
        };
        if translated.text.as_bytes() == text {
            return None;
        }
        let is_new = |spoken: &&Use| spoken.kind == UseKind::Prepare;
        let refusal = translated
            .uses
            .iter()
            .filter(is_new)
            .find_map(|spoken| self.lacks_memory_for(&spoken.name, &spoken.statement.text));
        Some(refusal.map_or(translated, Translated::refused))
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
        self.translation = std::str::from_utf8(text)
            .ok()
            .and_then(|text| Some(Box::new((text.into(), self.translate(text)?))));
        let uses = self.translation.iter().flat_map(|known| &known.1.uses);
        let mut needed: Vec<Arc<Prepared>> = Vec::new();
        let mut made: Vec<u64> = Vec::new();
        for spoken in uses {
            let id = spoken.statement.id;
            if !spoken.kind.needs_it() {
                made.push(id);
            } else if !made.contains(&id) && needed.iter().all(|known| known.id != id) {
                needed.push(Arc::clone(&spoken.statement));
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
        let mut added: Vec<(usize, Effect)> = Vec::new();
        for spoken in uses.iter().filter(|spoken| spoken.kind == UseKind::Execute) {
            let executed = self.classify_executed(&spoken.statement);
            for effect in executed.statements.iter().flat_map(|one| &one.effects) {
                let effect = match effect {
                    Effect::Set { name, .. } => {
                        Effect::SettingsUnknown(Unbounded::Setting(name.as_str().into()))
                    }
                    effect => effect.clone(),
                };
                added.push((spoken.place, effect));
            }
        }
        if added.is_empty() {
            return class;
        }
        Arc::new(class.altered(|statements| {
            for (place, effect) in added {
                if let Some(statement) = statements.get_mut(place) {
                    statement.effects.push(effect);
                }
            }
        }))
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
        // One statement: it begins with its own word (CREATE, DEALLOCATE, EXECUTE, EXPLAIN, PREPARE), or with a comment.
        let first = text.trim_ascii_start().bytes().next()?;
        if !b"cdep-/".contains(&first.to_ascii_lowercase()) || !mentions(text.as_bytes()) {
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
    for oldest in lease.statements.insert(statement, max) {
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
