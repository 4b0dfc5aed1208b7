//! What the client says, on its way to the server: statement names are translated, writes are marked before they
//! leave, and each message that will be answered is noted.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::BufMut as _;
use heliosdb_cache::HashedStr;

use crate::clients::Counters;
use crate::error::{ClientError, ErrorKind};
use crate::gateway::epoch_of;
use crate::sql::skeleton::skeleton;
use crate::sql::{Class, Effect, Parameters, Statement, Values, Write};

use super::link::{Expect, Link, Undo, put_frame};
use super::pins::Pin;
use super::prepared::{Naming, Prepared};
use super::request::refusal_label;
use super::settings::Settings;
use super::unit::{is_same, message, split_bind, split_nul, split_parse};
use super::{End, Running, Session};

/// Of `pool.prepared_memory`, what all statements may take for one without a name to be prepared under one.
const SHARED_PART: usize = 2;

/// A statement on its way to the server.
enum Sent<'a> {
    /// With its values in it.
    Text(&'a str),
    Portal {
        statement: &'a Prepared,
        is_unnamed: bool,
    },
}

pub(super) const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";

impl Session {
    /// Sends whole messages on. The session has a server connection.
    pub(super) fn forward_all(&mut self, messages: &[u8]) -> Result<(), End> {
        self.keep_for_retry(messages);
        let mut at = 0;
        while let Some((tag, _, len)) = message(&messages[at..]) {
            self.forward(tag, &messages[at..at + len])?;
            at += len;
        }
        self.class = None;
        Ok(())
    }

    /// Sends one message on. The session has a server connection.
    pub(super) fn forward(&mut self, tag: u8, message: &[u8]) -> Result<(), End> {
        let body = &message[5..];
        if let Some(link) = &mut self.link {
            if link.skips_to_sync && tag != b'S' {
                return Ok(());
            }
            if link.is_copying_in() && !matches!(tag, b'c' | b'f') {
                // Data, or what the server ignores or refuses in the middle of data: none of it has a reply of its own.
                link.out.extend_from_slice(message);
                return Ok(());
            }
        }
        match tag {
            b'Q' => return self.forward_query(message),
            b'P' => return self.forward_parse(body),
            b'B' => return self.forward_bind(message),
            b'D' | b'C' => return self.forward_by_name(tag, message),
            b'E' => return self.forward_execute(message),
            _ => {}
        }
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        match tag {
            b'S' => {
                link.sync();
            }
            b'c' | b'f' => link.end_copy_in(),
            b'd' | b'H' => {}
            b'F' => {
                // A function call by OID can do anything.
                let class = self.gateway.unknown_class();
                self.mark_writes(&class, &Sent::Text(""));
                self.count_query();
                let Some(link) = &mut self.link else {
                    return Ok(());
                };
                link.expect_query(class, Vec::new(), None);
                link.out.extend_from_slice(message);
                return Ok(());
            }
            _ => {
                return Err(End::Error(ClientError::protocol(format!(
                    "invalid frontend message type {tag}"
                ))));
            }
        }
        link.out.extend_from_slice(message);
        Ok(())
    }

    fn forward_query(&mut self, message: &[u8]) -> Result<(), End> {
        let text = message[5..]
            .strip_suffix(b"\0")
            .ok_or_else(|| malformed("Query"))?;
        let (readable, mut class) = match std::str::from_utf8(text) {
            Ok(text) => (Cow::Borrowed(text), self.classify_text(text)),
            Err(_) => (String::from_utf8_lossy(text), self.classify_foreign(text)),
        };
        let translated = self.translate_query(text, &class);
        if let Some(translated) = &translated {
            class = self.with_executed(class, &translated.uses);
            self.make_room_for(&translated.uses);
        }
        self.guard_sequences(&class);
        self.mark_writes(&class, &Sent::Text(&readable));
        self.count_query();
        self.begin_statement(&readable, &class);
        // A simple query drops the unnamed statement.
        self.statements.remove(b"");
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        link.lease.statements.unnamed = None;
        self.unnamed_portal_is_here = false;
        let sent = translated
            .as_ref()
            .map_or(text, |translated| translated.text.as_bytes());
        let (restored, own) = with_restored(sent, &class, &self.settings).unzip();
        if restored.is_none() && translated.is_none() {
            link.out.extend_from_slice(message);
        } else {
            put_frame(&mut link.out, b'Q', |out| {
                out.put_slice(restored.as_ref().map_or(sent, |text| text.as_bytes()));
                out.put_u8(0);
            });
        }
        let own = own.or_else(|| translated.as_ref().map(|translated| translated.own.clone()));
        link.expect_query(class, own.unwrap_or_default(), translated.map(Box::new));
        Ok(())
    }

    /// A statement is on its way to the server.
    fn begin_statement(&mut self, text: &str, class: &Class) {
        let statement = self.gateway.statements.of_class(text, class);
        statement.record_execution();
        if self.caches() {
            // Nobody has asked whether it is for the cache.
            if self.status != b'I' && !self.sees_committed {
                let reason = class
                    .cacheable()
                    .map_or_else(|| refusal_label(class), |_| "transaction");
                statement.record_refusal(reason);
            } else if self.pins.taint().is_some() {
                statement.record_refusal("session_state");
            }
        }
        let now = self.linked_at.take().unwrap_or_else(Instant::now);
        self.asked_at.get_or_insert(now);
        self.begun_at.get_or_insert(now);
        self.running = match self.running {
            Running::Nothing => Running::One(statement, now),
            // How the time is divided among them is not known.
            Running::One(..) | Running::Several => Running::Several,
        };
    }

    fn forward_parse(&mut self, body: &[u8]) -> Result<(), End> {
        // If this one is refused, what was executed before it in the same unit was not.
        self.intends_unparsed = false;
        let Some((name, text, types)) = split_parse(body) else {
            return self.forward_foreign_parse(body);
        };
        let translated = self.translate_parse(text);
        let (text, sql_use) = match &translated {
            Some((text, sql_use)) => (&**text, Some(sql_use)),
            None => (text, None),
        };
        if let Some(sql_use) = sql_use {
            self.ensure_spoken_of(sql_use);
        }
        let database = Arc::clone(&self.pool.database);
        let scope = self.parse_scope();
        if name.is_empty() {
            let may_share = sql_use.is_none() && self.may_share_unnamed();
            let statement = self.unnamed(text, types, &scope, may_share);
            let undo = Undo {
                name: Box::default(),
                was: self.statements.remove(name),
            };
            self.statements.insert(name, Arc::clone(&statement));
            if let Some(sql_use) = sql_use {
                self.note_sql_use(&statement, sql_use.clone());
            }
            let max = self.gateway.max_prepared_statements();
            if let Some(link) = &mut self.link {
                link.unit_open = true;
                if statement.naming == Naming::Unnamed {
                    link.parse_unnamed(&statement, Some(undo));
                } else {
                    let names = &self.gateway.interner;
                    link.parse_shared(&statement, undo, names, max, &mut self.out);
                }
            }
            return Ok(());
        }
        let max = self.gateway.max_prepared_statements();
        if let Some(error) = self.refuses_to_prepare(name, text) {
            // PostgreSQL's own answer, with its effect on a transaction: a name that is taken for certain.
            if let Some(link) = &mut self.link {
                link.unit_open = true;
                link.parse_under_taken_name(text, types);
                link.expect(Expect::RefusedParse(Box::new(error)));
            }
            return Ok(());
        }
        let statement = self.gateway.prepare(name, text, types, &scope, &database);
        self.statements.insert(name, Arc::clone(&statement));
        Counters::add(&self.admitted.info.counters.parses, 1);
        if let Some(sql_use) = sql_use {
            self.note_sql_use(&statement, sql_use.clone());
        }
        let is_for_server = self.is_refused_in_failed(text);
        if let Some(link) = &mut self.link {
            link.unit_open = true;
            let undo = Undo {
                name: name.into(),
                was: None,
            };
            if is_for_server && let Some(known) = link.lease.statements.give_up(statement.id) {
                link.close_named(known, &self.gateway.interner);
            }
            let names = &self.gateway.interner;
            link.parse_shared(&statement, undo, names, max, &mut self.out);
        }
        Ok(())
    }

    /// What a Parse without a name stands for.
    fn unnamed(
        &mut self,
        text: &str,
        types: &[u8],
        scope: &HashedStr,
        may_share: bool,
    ) -> Arc<Prepared> {
        let database = &self.pool.database;
        let epoch = epoch_of(database);
        // Under another epoch the server may choose other types for the parameters.
        let is_known =
            |known: &&Arc<Prepared>| is_same(known, text, types, scope) && known.epoch == epoch;
        let known = self.statements.get(b"").filter(is_known);
        if let Some(known) = known
            && (known.naming == Naming::Unnamed) != may_share
            && !known.is_stale.load(Ordering::Relaxed)
        {
            return Arc::clone(known);
        }
        // A text without a skeleton may say `now`, which has its meaning where it is parsed.
        if may_share && skeleton(text, &mut self.text_buffer) {
            let memory = self.gateway.prepared_memory() / SHARED_PART;
            let interner = &self.gateway.interner;
            if let Some(shared) = interner.repeated(text, types, scope, epoch, memory) {
                return shared;
            }
        }
        match known {
            Some(known) if known.naming == Naming::Unnamed => Arc::clone(known),
            _ => self.gateway.prepare(b"", text, types, scope, database),
        }
    }

    /// Whether a Parse without a name may stand for a statement that the server prepared before: where its request can be
    /// repeated if the server finds that statement stale, and names mean what the catalog says.
    fn may_share_unnamed(&self) -> bool {
        let is_repeatable = |link: &Link| !link.retry.is_empty();
        self.gateway.prepares_unnamed()
            && self.link.as_ref().is_some_and(is_repeatable)
            && self.pins.taint().is_none()
            && !self.names_in_doubt
    }

    /// A text that is not UTF-8: the server's to understand, under the client's own names. It can't be shared.
    fn forward_foreign_parse(&mut self, body: &[u8]) -> Result<(), End> {
        let (name, rest) = split_nul(body).ok_or_else(|| malformed("Parse"))?;
        split_nul(rest).ok_or_else(|| malformed("Parse"))?;
        if name.is_empty() {
            self.statements.remove(name);
        } else {
            self.pins.add(Pin::Prepare);
        }
        if let Some(link) = &mut self.link {
            link.unit_open = true;
            link.lease.statements.unnamed = None;
            link.foreign_unnamed |= name.is_empty();
            put_frame(&mut link.out, b'P', |out| out.put_slice(body));
            link.expect(Expect::ForeignParse);
        }
        Ok(())
    }

    fn forward_bind(&mut self, message: &[u8]) -> Result<(), End> {
        let (portal, name, rest) = split_bind(&message[5..]).ok_or_else(|| malformed("Bind"))?;
        self.unnamed_portal_is_here &= !portal.is_empty();
        self.bring_up_to_date(name);
        self.bring_into_scope(name);
        let max = self.gateway.max_prepared_statements();
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        link.unit_open = true;
        match self.statements.get(name) {
            Some(statement) if statement.naming == Naming::Unnamed => {
                link.ensure_unnamed(statement);
                link.out.extend_from_slice(message);
            }
            Some(statement) => {
                let counters = &self.admitted.info.counters;
                let is_known = link.ensure_prepared(statement, &self.gateway.interner, max);
                let counter = if is_known {
                    &counters.prepared_hits
                } else {
                    &counters.prepared_misses
                };
                Counters::add(counter, 1);
                put_frame(&mut link.out, b'B', |out| {
                    out.put_slice(portal);
                    out.put_u8(0);
                    self.gateway.interner.put_server_name(statement.id, out);
                    out.put_slice(rest);
                });
            }
            // Prepared by SQL in a way that is not followed, or unknown: the server says which.
            None => {
                if name.is_empty() {
                    link.ensure_no_unnamed();
                }
                put_frame(&mut link.out, b'B', |out| {
                    out.put_slice(portal);
                    out.put_u8(0);
                    out.put_slice(self.gateway.interner.not_a_server_name(name));
                    out.put_u8(0);
                    out.put_slice(rest);
                });
            }
        }
        link.expect(Expect::Bind(
            self.statements.get(name).map(|known| known.id),
        ));
        match self.statements.get(name) {
            Some(statement) => {
                self.portals.insert(portal, Arc::clone(statement));
            }
            None => {
                self.portals.remove(portal);
            }
        }
        if portal.is_empty() {
            // What other encodings mean by these bytes is not worked out.
            if self.names.client_encoding_utf8 && !self.names_in_doubt {
                self.bound.remember(rest);
            } else {
                self.bound.forget();
            }
        }
        Ok(())
    }

    fn forward_execute(&mut self, message: &[u8]) -> Result<(), End> {
        let (portal, _) = split_nul(&message[5..]).ok_or_else(|| malformed("Execute"))?;
        let mut ahead = None;
        let class = match self.portals.get(portal).cloned() {
            Some(statement) => {
                let class = self.classify_prepared_now(&statement);
                let class = self.with_spoken_of(statement.id, class);
                ahead = self.note_ahead(&statement, &class);
                self.begin_statement(&statement.text, &class);
                let sent = Sent::Portal {
                    statement: &statement,
                    is_unnamed: portal.is_empty(),
                };
                self.mark_writes(&class, &sent);
                class
            }
            // A cursor of DECLARE, or something prepared by SQL.
            None => {
                let class = self.gateway.unknown_class();
                self.mark_writes(&class, &Sent::Text(""));
                class
            }
        };
        self.count_query();
        self.guard_sequences(&class);
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        link.unit_open = true;
        if portal.is_empty() && std::mem::take(&mut self.unnamed_portal_is_here) {
            link.ensure_no_unnamed_portal();
        }
        let restored: Vec<String> = class
            .statements
            .iter()
            .filter(|statement| !statement.effects.is_empty())
            .flat_map(|statement| resets(&statement.effects, &self.settings))
            .collect();
        link.expect(Expect::Execute {
            class: Some(class),
            ahead,
        });
        link.out.extend_from_slice(message);
        // What follows in the same unit finds the client's own defaults.
        link.run_within(restored.into_iter());
        Ok(())
    }

    /// Describe and Close, of a statement or of a portal.
    fn forward_by_name(&mut self, tag: u8, message: &[u8]) -> Result<(), End> {
        let (kind, rest) = message[5..]
            .split_first()
            .ok_or_else(|| malformed("Describe"))?;
        let (name, _) = split_nul(rest).ok_or_else(|| malformed("Describe"))?;
        if tag == b'D' && *kind == b'S' {
            self.ensure_spoken_of_by(name);
            self.bring_into_scope(name);
        }
        let max = self.gateway.max_prepared_statements();
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        link.unit_open = true;
        if tag == b'C' {
            if *kind == b'S'
                && !name.is_empty()
                && let Some(was) = self.statements.remove(name)
            {
                // Others may use it under the server's name; it leaves the server when it is least recently used.
                let undo = Undo {
                    name: name.into(),
                    was: Some(was),
                };
                link.expect(Expect::Inject {
                    bytes: CLOSE_COMPLETE,
                    undo: Some(undo),
                });
                link.inject_due(&mut self.out);
                return Ok(());
            }
            let mut undo = None;
            if *kind == b'S' && name.is_empty() {
                undo = self.statements.remove(name).map(|was| Undo {
                    name: Box::default(),
                    was: Some(was),
                });
                link.lease.statements.unnamed = None;
            } else if *kind == b'P' {
                self.portals.remove(name);
            }
            let name = match kind {
                b'S' => self.gateway.interner.not_a_server_name(name),
                _ => name,
            };
            put_frame(&mut link.out, b'C', |out| {
                out.put_u8(*kind);
                out.put_slice(name);
                out.put_u8(0);
            });
            link.expect(Expect::Close {
                evicted: None,
                undo,
            });
            return Ok(());
        }
        if *kind == b'P' && name.is_empty() && std::mem::take(&mut self.unnamed_portal_is_here) {
            link.ensure_no_unnamed_portal();
        }
        match self.statements.get(name).filter(|_| *kind == b'S') {
            Some(statement) if statement.naming == Naming::Unnamed => {
                link.ensure_unnamed(statement);
                link.out.extend_from_slice(message);
            }
            Some(statement) => {
                link.ensure_prepared(statement, &self.gateway.interner, max);
                put_frame(&mut link.out, b'D', |out| {
                    out.put_u8(b'S');
                    self.gateway.interner.put_server_name(statement.id, out);
                });
            }
            None => {
                if *kind == b'S' && name.is_empty() {
                    link.ensure_no_unnamed();
                }
                let name = match kind {
                    b'S' => self.gateway.interner.not_a_server_name(name),
                    _ => name,
                };
                put_frame(&mut link.out, b'D', |out| {
                    out.put_u8(*kind);
                    out.put_slice(name);
                    out.put_u8(0);
                });
            }
        }
        link.expect(Expect::Describe);
        Ok(())
    }

    /// Marks what a statement may write, before it is sent.
    fn mark_writes(&mut self, class: &Class, sent: &Sent<'_>) {
        self.note_sight(class);
        let reads =
            |statement: &Statement| statement.write == Write::None && statement.effects.is_empty();
        let only_reads = class.is_plain() || class.statements.iter().all(reads);
        if only_reads && !self.pins.has(Pin::Temp) {
            // It marks nothing.
            self.intends_unparsed = false;
            return;
        }
        let database = &self.pool.database;
        let values = match sent {
            Sent::Text(text) => Values::of_text(text),
            Sent::Portal {
                statement,
                is_unnamed,
            } => Values {
                text: &statement.text,
                parameters: self
                    .bound
                    .get()
                    .filter(|_| *is_unnamed)
                    .map(|bind| Parameters {
                        types: &statement.types,
                        bind,
                        parsed_under_catalog: database.epoch_now() == Some(statement.epoch),
                    }),
            },
        };
        self.intends_unparsed = self.intent.is_none() && !class.parsed;
        crate::invalidate::wire::mark(
            &mut self.intent,
            class,
            &values,
            database,
            self.gateway.cache.versions(),
        );
        for statement in &class.statements {
            if statement.effects.contains(&Effect::Temp) {
                self.pins.add(Pin::Temp);
            }
            if self.pins.has(Pin::Temp) {
                self.pins.note_temp(statement.tag);
            }
        }
        let effects = class
            .statements
            .iter()
            .flat_map(|statement| &statement.effects);
        for effect in effects {
            if let Effect::Vacate(name) = effect {
                self.vacate(name);
            }
            // What follows in the same unit is looked at before it is known what this one did.
            self.names_in_doubt |= match effect {
                Effect::DiscardAll
                | Effect::Reset(_)
                | Effect::ResetAll
                | Effect::Set { .. }
                | Effect::SettingsUnknown(_) => true,
                Effect::Commit { .. }
                | Effect::PrepareTransaction(_)
                | Effect::Rollback { .. }
                | Effect::RollbackTo(_) => self.settings.has_uncommitted(),
                _ => false,
            };
        }
    }

    /// True where what a statement writes can't be told by the catalog: names may mean something else in this session,
    /// or a temporary table with defaults, checks and triggers of its own is written to.
    fn writes_in_doubt(&self, class: &Class) -> bool {
        self.pins.hides_names()
            || self.pins.has(Pin::Temp)
                && class
                    .statements
                    .iter()
                    .any(|statement| statement.write != Write::None)
    }

    /// What a statement's meaning depends on besides its text, where it is parsed now.
    pub(super) fn parse_scope(&mut self) -> HashedStr {
        if !self.names_in_doubt {
            return self.parse_scope.clone();
        }
        // Nobody else's.
        let interner = &self.gateway.interner;
        self.doubtful_scope
            .get_or_insert_with(|| interner.unique_scope())
            .clone()
    }

    /// A statement that was parsed under other settings is another statement, though the client calls it the same. Where
    /// the connection has it as it was parsed, it keeps its meaning; elsewhere it is parsed anew.
    fn bring_into_scope(&mut self, name: &[u8]) {
        let Some(known) = self.statements.get(name) else {
            return;
        };
        let known = Arc::clone(known);
        let scope = self.parse_scope();
        if known.scope == scope {
            return;
        }
        let is_there = self.link.as_mut().is_some_and(|link| {
            let statements = &mut link.lease.statements;
            statements.unnamed == Some(known.id) || statements.touch(known.id)
        });
        if is_there {
            return;
        }
        let statement = if known.declared.is_some() {
            let epoch = epoch_of(&self.pool.database);
            self.gateway.interner.again(&known, &scope, epoch)
        } else {
            self.gateway
                .prepare(name, &known.text, &known.types, &scope, &self.pool.database)
        };
        if let Some(sql_use) = self.sql_uses.get(&known.id).cloned() {
            self.note_sql_use(&statement, sql_use);
        }
        self.statements.insert(name, statement);
    }

    /// The class of a statement that is executed by another.
    pub(super) fn classify_executed(&mut self, statement: &Prepared) -> Arc<Class> {
        let own = self.class.take();
        let class = self.classify_prepared_now(statement);
        self.class = own;
        class
    }

    /// The class of a prepared statement, as far as it can be known without waiting.
    fn classify_prepared_now(&mut self, statement: &Prepared) -> Arc<Class> {
        let text = &*statement.text;
        if self.class.is_some() || self.names_in_doubt {
            return self.classify_text(text);
        }
        let class = self.pool.database.with_catalog(|catalog| {
            let catalog = catalog?;
            let scratch = &mut self.text_buffer;
            let class = self
                .gateway
                .classify_prepared(statement, catalog, &self.names, scratch);
            Some(class)
        });
        let Some(class) = class else {
            return self.classify_text(text);
        };
        self.unresolved.note(text.as_bytes(), &class);
        if self.writes_in_doubt(&class) {
            return self.with_unknown_writes(text, &class);
        }
        class
    }

    /// The class of a statement, as far as it can be known without waiting.
    pub(super) fn classify_now(&mut self, text: &[u8]) -> Arc<Class> {
        match std::str::from_utf8(text) {
            Ok(text) => self.classify_text(text),
            Err(_) => self.classify_foreign(text),
        }
    }

    /// The class of a text in an encoding that is not understood here.
    fn classify_foreign(&mut self, text: &[u8]) -> Arc<Class> {
        let class = self.gateway.unknown_class();
        self.class = None;
        self.unresolved.note(text, &class);
        class
    }

    fn classify_text(&mut self, text: &str) -> Arc<Class> {
        if let Some(class) = self.class.take() {
            self.unresolved.note(text.as_bytes(), &class);
            return class;
        }
        // In a transaction that has written to everything (DDL, for one) the catalog may be about to change.
        let class = self.pool.database.with_catalog(|catalog| {
            let catalog = catalog.filter(|_| !self.names_in_doubt);
            self.gateway
                .classify(text, catalog, &self.names, &mut self.text_buffer)
        });
        self.unresolved.note(text.as_bytes(), &class);
        if !self.names_in_doubt && self.writes_in_doubt(&class) {
            return self.with_unknown_writes(text, &class);
        }
        class
    }

    /// The same class, but what it writes is known from its text alone.
    fn with_unknown_writes(&mut self, text: &str, class: &Arc<Class>) -> Arc<Class> {
        let blind = self
            .gateway
            .classify(text, None, &self.names, &mut self.text_buffer);
        if blind.statements.len() != class.statements.len() {
            return blind;
        }
        Arc::new(class.altered(|statements| {
            for (statement, blind) in statements.iter_mut().zip(&blind.statements) {
                if blind.write != Write::None {
                    statement.write = blind.write.clone();
                }
            }
        }))
    }
}

/// A text of several statements with others of our own behind those that reset settings, and the places of these, the last
/// first. `None` where none are needed: behind the last statement there is time.
fn with_restored(text: &[u8], class: &Class, settings: &Settings) -> Option<(String, Vec<usize>)> {
    let (_, firsts) = class.statements.split_last()?;
    if firsts
        .iter()
        .all(|statement| resets(&statement.effects, settings).is_empty())
    {
        return None;
    }
    let parts = pg_query::split_with_parser(std::str::from_utf8(text).ok()?).ok()?;
    if parts.len() != class.statements.len() {
        return None;
    }
    let (mut text, mut own, mut place) = (String::new(), Vec::new(), 0);
    for (part, statement) in parts.iter().zip(&class.statements) {
        text.push_str(part);
        // On a line of its own, in case the part ends with a comment.
        text.push_str("\n;");
        place += 1;
        for sql in resets(&statement.effects, settings) {
            text.push_str(&sql);
            text.push(';');
            own.push(place);
            place += 1;
        }
    }
    own.reverse();
    Some((text, own))
}

/// The statements that bring settings to what the startup packet asked for, after one that resets them to the server's
/// defaults.
fn resets(effects: &[Effect], settings: &Settings) -> Vec<String> {
    let mut restored = Vec::new();
    for effect in effects {
        match effect {
            Effect::Reset(name) => restored.extend(settings.restoring(name, false)),
            Effect::Set { name, value, local } if value.eq_ignore_ascii_case("default") => {
                restored.extend(settings.restoring(name, *local));
            }
            Effect::DiscardAll | Effect::ResetAll => {
                let names = settings.startup_names();
                restored.extend(names.filter_map(|name| settings.restoring(name, false)));
            }
            _ => {}
        }
    }
    restored
}

fn malformed(what: &str) -> End {
    End::Error(
        ClientError::new(
            ErrorKind::Client,
            "08P01",
            format!("malformed {what} message"),
        )
        .fatal(),
    )
}
