//! A request that is not in the cache: whether its answer is for the cache, and what it waits for before it is sent (a
//! catalog, another client's answer, a server connection, the session's settings).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Buf as _;
use heliosdb_cache::{Flight, Follower, KeyRef};
use heliosdb_network::connection_pool::{AcquireError, ConnectionHint};
use heliosdb_network::error::HeliosError;
use heliosdb_pooling::StatementHandle;

use crate::clients::{Activity, ClientInfo, Counters, Origin, Signal};
use crate::clock;
use crate::error::{ClientError, ErrorKind};
use crate::sql::{Class, Effect, Read, mentions_now};
use crate::upstream::ServerLease;
use crate::upstream::database::{LoadedCatalog, SlotsRead};

use super::client_messages::CLOSE_COMPLETE;
use super::io::{Step, shutting_down};
use super::link::Link;
use super::pins::Pin;
use super::prepared::Named;
use super::unit::{
    Front, ReadUnit, Text, first_unit, message, put_reply, recognise, split_bind, split_nul,
    split_parse,
};
use super::{Capture, End, Session};

/// How far a request has come that has to wait.
#[derive(Debug)]
pub(super) enum Decided {
    /// Nothing is known: a catalog has to be read first.
    No,
    /// It goes to the server; its answer is collected if `capture` is set.
    Ask,
    /// There is an answer in memory, for which it has to be known first what everybody has committed.
    Fence,
    /// It comes in a transaction with a LISTEN: what was sent until now is not for that.
    FencePending,
    /// Another client asked the same.
    Follow(Follower),
    /// It is LISTEN or UNLISTEN.
    Listen,
}

/// What to do about a read that is not in the cache.
pub(super) enum Decision {
    /// Ask the server, and collect the answer if there is a capture.
    Ask {
        /// The statement's class, as far as it came to be known.
        class: Option<Arc<Class>>,
        capture: Option<Capture>,
    },
    /// Another client asked the same: take its answer.
    Follow(Follower),
}

/// How often a follower joins again after its leader failed, before it asks the server itself.
const JOINS_MAX: usize = 2;

impl Session {
    /// Works on the request at the front of `input`, which has to wait.
    pub(super) async fn request(&mut self, decided: Decided) -> Result<(), End> {
        let mut input = std::mem::take(&mut self.input);
        let done = self.request_in(&input, decided).await?;
        input.advance(done);
        if !input.is_empty() {
            self.input = input;
            self.input_waits = true;
        }
        Ok(())
    }

    /// Returns how many bytes of `input` are dealt with.
    async fn request_in(&mut self, input: &[u8], mut decided: Decided) -> Result<usize, End> {
        self.info().clear_signal(Signal::Cancel);
        self.translation = None;
        // The answers that are ready do not wait for this one. What does not fit is sent later.
        if !self.out.is_empty()
            && let Ok(written) = self.stream.try_write(&self.out)
        {
            self.out.advance(written);
        }
        let mut joins = 0;
        loop {
            decided = match decided {
                Decided::Ask => break,
                Decided::No => {
                    let Some(catalog) = Box::pin(self.catalog()).await else {
                        return self.refuse(cancelled(self.info()), input, first_unit(input));
                    };
                    match self.try_cache(input, Some(catalog))? {
                        Some(Step::Request(decided)) => decided,
                        Some(Step::Done(len)) => return Ok(len),
                        Some(Step::Hold | Step::Incomplete | Step::Goodbye) | None => Decided::Ask,
                    }
                }
                Decided::FencePending => {
                    Box::pin(self.fence_pending(input)).await?;
                    return Ok(0);
                }
                Decided::Listen => match Box::pin(self.listen(input)).await? {
                    Some(len) => return Ok(len),
                    None => Decided::Ask,
                },
                Decided::Fence => {
                    let info = Arc::clone(self.info());
                    let database = Arc::clone(&self.pool.database);
                    info.set_activity(Activity::Waiting);
                    let passed = info
                        .or_cancelled(Box::pin(database.follower.fence(FENCE_TIMEOUT)))
                        .await;
                    info.set_activity(Activity::Idle);
                    match passed {
                        None => return self.refuse(cancelled(&info), input, first_unit(input)),
                        Some(false) => {
                            self.gateway.stats.count_bypass("fence");
                            Decided::Ask
                        }
                        Some(true) => {
                            self.is_fenced = true;
                            let step = self.try_cache(input, Some(database.catalog_now()));
                            self.is_fenced = false;
                            match step? {
                                Some(Step::Done(len)) => return Ok(len),
                                _ => Decided::Ask,
                            }
                        }
                    }
                }
                Decided::Follow(follower) => {
                    let info = Arc::clone(self.info());
                    info.set_activity(Activity::Waiting);
                    let waited = info.or_cancelled(Box::pin(follower.wait())).await;
                    info.set_activity(Activity::Idle);
                    match waited {
                        None => return self.refuse(cancelled(&info), input, first_unit(input)),
                        Some(Some(reply)) => match self.answer_with(input, &reply) {
                            Some(len) => return Ok(len),
                            None => Decided::Ask,
                        },
                        // The leader failed. Its place is free.
                        Some(None) if joins < JOINS_MAX => {
                            joins += 1;
                            Decided::No
                        }
                        Some(None) => {
                            self.gateway.stats.count_bypass("leader failed");
                            Decided::Ask
                        }
                    }
                }
            };
        }
        // What was found out before a wait may be out of date after it.
        self.class = None;
        if let Some(len) = self.answer_here(input) {
            return Ok(len);
        }
        let len = first_unit(input);
        if self.is_at_rest()
            && let Err(error) = self.link_up(input).await
        {
            self.capture = None;
            return self.refuse(error, input, len);
        }
        if !self.to_restore.is_empty() {
            Box::pin(self.restore_startup_settings()).await?;
        }
        if let Err(error) = self.prepare_needed(&input[..len]).await? {
            self.fail_query(&error);
            self.release_if_free();
            return Ok(len);
        }
        self.forward_all(&input[..len])?;
        Ok(len)
    }

    /// The catalog as it is now, if it can be had; `None` where the client gives up the wait for it.
    async fn catalog(&mut self) -> Option<Option<Arc<LoadedCatalog>>> {
        if let Some(link) = &mut self.link {
            // Cut short, it would leave replies behind.
            return Some(self.pool.catalog(Some(&mut **link.lease)).await);
        }
        let info = Arc::clone(self.info());
        info.set_activity(Activity::Waiting);
        let catalog = info.or_cancelled(self.pool.catalog(None)).await;
        info.set_activity(Activity::Idle);
        catalog
    }

    /// Answers the request at the front of `input` with another client's reply to the same.
    pub(super) fn answer_with(&mut self, input: &[u8], reply: &[u8]) -> Option<usize> {
        let Front::Read(unit) = recognise(input, &self.statements, &self.scope) else {
            return None;
        };
        put_reply(&mut self.out, &unit.protocol, reply, Some(self.status));
        if !unit.is_prepare() {
            self.count_query();
            let text = unit.text.as_str();
            self.gateway.statements.of(text).record_hit();
            self.info().set_origin(Origin::Memory { age_ms: 0 });
        }
        let (len, is_simple, is_run) = (unit.len, unit.is_simple(), !unit.is_prepare());
        if let Some((name, statement)) = self.statement_to_remember(&unit) {
            self.statements.insert(&name, statement);
        }
        if is_simple {
            self.statements.remove(b"");
        }
        if is_run {
            self.note_portal();
        }
        Some(len)
    }

    /// Whether a read that is not in the cache is for it, and who asks the server then. `scratch` is space to work in.
    pub(super) fn decide(
        &self,
        unit: &ReadUnit<'_>,
        key: &KeyRef<'_>,
        catalog: Option<&Arc<LoadedCatalog>>,
        scratch: &mut Vec<u8>,
    ) -> Decision {
        // Asking for a meaning is no call.
        let count = |count: &dyn Fn(&StatementHandle)| {
            if !unit.is_prepare() {
                count(&self.gateway.statements.of(unit.text.as_str()));
            }
        };
        let bypass = |reason, class| {
            self.gateway.stats.count_bypass(reason);
            count(&|statement| statement.record_refusal(reason));
            Decision::Ask {
                class,
                capture: None,
            }
        };
        let database = &self.pool.database;
        let gate = &database.follower.gate;
        if !gate.is_open() {
            self.gateway.upstream.follow(database);
            return bypass(gate.refusal(), None);
        }
        let Some(catalog) = catalog else {
            return bypass("catalog", None);
        };
        let mut read = SlotsRead::default();
        let known = match &unit.text {
            Text::Inline(text) => self
                .gateway
                .classify(text, Some(catalog), &self.names, scratch),
            Text::Prepared(statement) => {
                self.gateway
                    .classify_prepared(statement, catalog, &self.names, scratch)
            }
        };
        // What a statement means, without running it, is in the catalogs alone, unless it names what its session has.
        if unit.is_prepare() && means_what_the_session_has(&known) {
            return bypass("session_object", Some(known));
        }
        if !unit.is_prepare() {
            let Some(relations) = known.cacheable() else {
                return bypass(refusal_label(&known), Some(known));
            };
            // A type whose text form depends on the time of day, or on things that no key holds.
            let is_pure = |oid| catalog.catalog.is_pure_parameter_type(oid);
            if !unit.parameter_types().all(is_pure) {
                return bypass("parameter_type", Some(known));
            }
            // What a text parameter means is decided by the server: if it could be `now`, the answer grows old by
            // itself.
            if mentions_now(unit.bind()) {
                return bypass("now", Some(known));
            }
            if gate.is_replication()
                && let Some(why) = relations
                    .iter()
                    .find_map(|relation| catalog.uncovered(relation))
            {
                return bypass(why, Some(known));
            }
            let values = unit.values(catalog.catalog.epoch());
            read = database.slots_read(relations, &values);
        }
        // Of a Parse alone the class is not asked for again.
        let class = (!unit.is_prepare()).then_some(known);
        read.slots.extend([database.everything, database.schema]);
        let cache = &self.gateway.cache;
        match cache.join_provisionally(key, &read.slots, read.unless_found) {
            Flight::Leader(fill) => {
                // The versions that the fill goes by were read just now. If the catalog still stands, no DDL came
                // between the reading of the catalog and that, and the dependencies are the right ones.
                if !database.is_current(catalog) {
                    return bypass("schema change", None);
                }
                count(&StatementHandle::record_miss);
                Decision::Ask {
                    class,
                    capture: Some(Capture {
                        fill,
                        bound: None,
                        reply: Vec::new(),
                        has_rows: false,
                        reply_max: self.gateway.max_entry(),
                    }),
                }
            }
            Flight::Follower(follower) => Decision::Follow(follower),
            Flight::Uncached => bypass("write pending", class),
            Flight::Overload => bypass("overload", class),
        }
    }

    /// Gets a server connection for the request at the front of `input`, with this session's settings in force, if that
    /// needs no waiting.
    pub(super) fn link_now(&mut self, input: &[u8]) -> bool {
        let must_wait = self.pool.is_retired() || self.is_subscribed();
        if self.deferred.is_some() || self.link.is_none() && must_wait {
            return false;
        }
        if self.link.is_none() {
            let label = self.settings.effective().label();
            let hint = self.hint(input);
            let Some(lease) = self.pool.try_acquire(label, hint.as_ref()) else {
                return false;
            };
            self.take_up(lease);
        }
        let Some(link) = &mut self.link else {
            return false;
        };
        if !self.to_restore.is_empty() || !self.settings.adopt(&link.lease.applied) {
            return false;
        }
        self.info().set_activity(Activity::Active);
        true
    }

    /// Gets a server connection for the request at the front of `input`, with this session's settings in force.
    pub(super) async fn link_up(&mut self, input: &[u8]) -> Result<(), ClientError> {
        if self.link.is_none() {
            let hint = self.hint(input);
            let lease = self.acquire(hint.as_ref()).await?;
            self.take_up(lease);
            // It may be a while until it is used.
            self.linked_at = None;
            if self.is_subscribed() {
                self.note_own_process().await;
            }
        }
        self.info().set_activity(Activity::Active);
        let mut linked = self.apply_settings().await;
        if linked.is_ok() {
            linked = self.begin_on_server().await;
        }
        if linked.is_err() && !self.pins.any() {
            self.release(None);
        }
        linked
    }

    /// Which connections have the statement that the request at the front of `input` begins with. `None` if it begins
    /// with none that has a name: then one connection is as good as the other.
    fn hint(&self, input: &[u8]) -> Option<ConnectionHint> {
        if !self.gateway.affinity_enabled() {
            return None;
        }
        let (tag, body, _) = message(input)?;
        let name = match tag {
            b'B' => split_bind(body)?.1,
            b'D' => split_nul(body.strip_prefix(b"S")?)?.0,
            // Without a name.
            b'P' if body.first() == Some(&0) => return None,
            b'P' => {
                let (_, text, types) = split_parse(body)?;
                let database = &self.pool.database;
                let known = self
                    .gateway
                    .find_prepared(text, types, &self.parse_scope, database);
                // Nobody has it: where it is prepared first it should have room.
                return Some(known.map_or_else(ConnectionHint::default, |known| {
                    ConnectionHint::new(&known.affinity.preferred_connections())
                }));
            }
            _ => return None,
        };
        let statement = self.statements.get(name).filter(|_| !name.is_empty())?;
        Some(ConnectionHint::new(
            &statement.affinity.preferred_connections(),
        ))
    }

    fn take_up(&mut self, mut lease: ServerLease) {
        let connection = lease.meta().id;
        lease.statements.lent_as(connection);
        let is_changed = !Arc::ptr_eq(&lease.baseline, &self.baseline)
            && lease.baseline.fingerprint != self.baseline.fingerprint;
        if is_changed {
            // Somebody changed what sessions begin with: from here on this one is keyed by the new defaults, and an
            // answer asked for under the old ones is not kept.
            self.baseline = Arc::clone(&lease.baseline);
            self.settings_changed();
            self.capture = None;
            self.class = None;
        }
        lease.sequences.lend_to(self.info().id);
        let now = lease.meta().acquired;
        self.linked_at = Some(now);
        let now = clock::stamp(now);
        let info = self.info();
        info.note_request(now);
        Counters::add(&info.counters.assignments, 1);
        lease.info.lent_to(info.id, now);
        info.link(Arc::clone(&lease.key));
        self.link = Some(Link::new(lease));
    }

    /// The database's name leads elsewhere since a reload: so does this session's way.
    fn move_to_new_pool(&mut self) -> Result<(), ClientError> {
        if self.is_subscribed() {
            // What is sent there would not be heard, and nobody would say so.
            return Err(ClientError::new(
                ErrorKind::Config,
                "57P01",
                "terminating connection: the name of its database leads elsewhere since a reload, and it listens",
            )
            .fatal());
        }
        let info = self.info();
        self.pool = self.gateway.upstream.pool(&info.user, &info.database)?;
        self.settings_changed();
        self.capture = None;
        self.class = None;
        Ok(())
    }

    async fn acquire(&mut self, hint: Option<&ConnectionHint>) -> Result<ServerLease, ClientError> {
        if self.pool.is_retired() {
            self.move_to_new_pool()?;
        }
        let label = self.settings.effective().label();
        if let Some(lease) = self.pool.try_acquire(label, hint) {
            return Ok(lease);
        }
        let info = Arc::clone(self.info());
        info.set_activity(Activity::Waiting);
        let started = Instant::now();
        let pool = Arc::clone(&self.pool);
        let waiting = Box::pin(pool.acquire(label, hint));
        let acquired = info.or_cancelled(self.told_of_wait(waiting)).await;
        info.set_activity(Activity::Idle);
        Counters::add(
            &info.counters.wait_us,
            u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        );
        match acquired {
            None if info.has_signal(Signal::Leave) => Err(shutting_down()),
            None => Err(cancelled(&info)),
            Some(Ok(lease)) => Ok(lease),
            // The name leads elsewhere since the wait began: it goes on there.
            Some(Err(AcquireError::Closed)) if self.pool.is_retired() => {
                Box::pin(self.acquire(hint)).await
            }
            Some(Err(error)) => Err(self.pool.acquire_error(&error)),
        }
    }

    /// Waits for a server connection, and has the client told where that takes long.
    async fn told_of_wait<T>(&mut self, mut waiting: impl Future<Output = T> + Unpin) -> T {
        let patience = self.gateway.config().clients.wait_notice.get();
        // Who speaks another protocol has no notices.
        let Some(patience) = patience.filter(|_| !self.stream.is_pipe()) else {
            return waiting.await;
        };
        if let Ok(acquired) = tokio::time::timeout(patience, &mut waiting).await {
            return acquired;
        }
        // No answer is half sent: none is under way without a server connection.
        ClientError::new(ErrorKind::Config, "00000", WAIT_NOTICE).put_notice(&mut self.out);
        std::future::poll_fn(|cx| {
            // That the client has gone is found out where its answer is written.
            let _ = self.poll_write_client(cx);
            std::pin::Pin::new(&mut waiting).poll(cx)
        })
        .await
    }

    /// Brings the connection from the settings it has to the ones this session has.
    async fn apply_settings(&mut self) -> Result<(), ClientError> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        let lease = &mut link.lease;
        if self.settings.adopt(&lease.applied) {
            return Ok(());
        }
        let effective = Arc::clone(self.settings.effective());
        let sql = lease.applied.transition(&effective);
        if !sql.is_empty() {
            // Cut short, it leaves replies behind that nobody reads.
            lease.broken = true;
            match tokio::time::timeout(SETTINGS_TIMEOUT, lease.simple_query(&sql)).await {
                Ok(Ok(_)) => lease.broken = false,
                Ok(Err(HeliosError::Server(fields))) => {
                    lease.broken = false;
                    lease.dirty = true;
                    return Err(ClientError::from_server(&fields));
                }
                Ok(Err(error)) => return Err(ClientError::connection_lost(&error.to_string())),
                Err(_) => {
                    return Err(ClientError::connection_lost(
                        "it did not take the session's settings in time",
                    ));
                }
            }
        }
        lease.applied = effective;
        Ok(())
    }

    /// Gives settings that were reset in the transaction in progress the client's own defaults.
    async fn restore_startup_settings(&mut self) -> Result<(), End> {
        let names = std::mem::take(&mut self.to_restore);
        let statements: Vec<String> = names
            .iter()
            .filter_map(|name| self.settings.restoring(name, false))
            .collect();
        let sql = statements.join(";");
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        let lease = &mut link.lease;
        lease.broken = true;
        match tokio::time::timeout(SETTINGS_TIMEOUT, lease.simple_query(&sql)).await {
            Ok(Ok(_)) => lease.broken = false,
            Ok(Err(error)) => {
                return Err(End::Error(ClientError::connection_lost(&error.to_string())));
            }
            Err(_) => {
                return Err(End::Error(ClientError::connection_lost(
                    "it did not take the session's settings in time",
                )));
            }
        }
        Ok(())
    }

    /// Answers a request with an error, as a server in this state would, and returns what of the input that deals with.
    pub(super) fn refuse(
        &mut self,
        error: ClientError,
        input: &[u8],
        len: usize,
    ) -> Result<usize, End> {
        self.gateway.stats.count_error(error.kind);
        if error.fatal {
            return Err(End::Error(error));
        }
        if self.deferred.is_some() {
            // The server has not heard of the transaction that this ends.
            self.status = b'E';
        }
        error.put(&mut self.out);
        let ends_with_ready =
            matches!(input.first(), Some(b'Q' | b'F')) || ends_with_sync(input, len);
        if ends_with_ready {
            self.put_ready();
        } else {
            self.skip_to_sync = true;
        }
        Ok(len)
    }

    /// Answers the request at the front if it asks for what is known here alone.
    pub(super) fn answer_here(&mut self, input: &[u8]) -> Option<usize> {
        if self.is_ordinary(input) {
            return None;
        }
        self.answer_deallocate(input)
            .or_else(|| self.answer_show_level(input))
    }

    /// Close of named statements, up to a Sync, where no server connection is held: the names are known here alone, and what
    /// they stood for leaves each server connection when it is least recently used.
    pub(super) fn answer_close(&mut self, input: &[u8]) -> Option<usize> {
        if self.link.is_some() || input.first() != Some(&b'C') {
            return None;
        }
        let mut at = 0;
        while let (b'C', body, len) = message(&input[at..])? {
            let (name, _) = split_nul(body.strip_prefix(b"S")?)?;
            if name.is_empty() {
                return None;
            }
            at += len;
        }
        let (b'S', _, sync) = message(&input[at..])? else {
            return None;
        };
        let mut rest = &input[..at];
        while let Some((_, body, len)) = message(rest) {
            let (name, _) = split_nul(&body[1..])?;
            self.statements.remove(name);
            self.out.extend_from_slice(CLOSE_COMPLETE);
            rest = &rest[len..];
        }
        self.put_ready();
        Some(at + sync)
    }

    /// `DEALLOCATE` of a statement that the client prepared by protocol message: the name is known here alone.
    fn answer_deallocate(&mut self, input: &[u8]) -> Option<usize> {
        let (b'Q', body, len) = message(input)? else {
            return None;
        };
        let text = body.strip_suffix(b"\0")?;
        // Cheap enough to be asked of every statement: nothing else begins with these letters.
        if !text
            .trim_ascii_start()
            .get(..10)?
            .eq_ignore_ascii_case(b"deallocate")
        {
            return None;
        }
        let class = self.classify_now(text);
        let [statement] = class.statements.as_slice() else {
            return None;
        };
        let tag: &[u8] = match statement.effects.as_slice() {
            [Effect::Deallocate(Some(name))] => {
                self.statements.remove(name.as_bytes())?;
                b"C\0\0\0\x0fDEALLOCATE\0"
            }
            // Where the session prepared by SQL too, the server has to do its part.
            [Effect::Deallocate(None)] if !self.pins.has(Pin::Prepare) && self.link.is_none() => {
                self.statements.clear();
                b"C\0\0\0\x13DEALLOCATE ALL\0"
            }
            _ => return None,
        };
        self.count_query();
        self.out.extend_from_slice(tag);
        self.put_ready();
        Some(len)
    }
}

/// PgBouncer's words.
const WAIT_NOTICE: &str = "No server connection available in postgres backend, client being queued";

/// Why a class is not cacheable, as a metric label.
pub(super) fn refusal_label(class: &Class) -> &'static str {
    match class.statements.as_slice() {
        [] => "empty",
        [statement] => match &statement.read {
            Read::Refused(refusal) => refusal.label(),
            Read::Cacheable(_) => "side_effects",
        },
        _ => "several_statements",
    }
}

/// True for EXECUTE and FETCH, whose rows have the form of another statement, for all others that may name a prepared
/// statement, and for what could be one of these.
fn means_what_the_session_has(class: &Class) -> bool {
    let names_another = |tag: &str| {
        matches!(
            tag,
            "CREATE TABLE AS"
                | "DEALLOCATE"
                | "EXECUTE"
                | "EXPLAIN"
                | "FETCH"
                | "PREPARE"
                | "UNKNOWN"
        )
    };
    class
        .statements
        .iter()
        .any(|statement| names_another(statement.tag))
}

/// A Parse under a name that is in use: the server has to refuse it.
pub(super) fn is_taken(unit: &ReadUnit<'_>, statements: &Named) -> bool {
    unit.parse()
        .is_some_and(|(name, _)| !name.is_empty() && statements.contains(name))
}

fn ends_with_sync(input: &[u8], len: usize) -> bool {
    input[..len].ends_with(b"S\0\0\0\x04")
}

/// Why a wait was cut short.
pub(super) fn cancelled(info: &ClientInfo) -> ClientError {
    if let Some(timeout) = info.due_timeout() {
        return timeout.error();
    }
    ClientError::new(
        ErrorKind::Client,
        "57014",
        "canceling statement due to user request",
    )
}

/// A server that does not say in time how far it is is asked the question itself.
const FENCE_TIMEOUT: Duration = Duration::from_secs(2);
const SETTINGS_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_ends_with_its_sync_or_where_the_bytes_do() {
        let sync = b"S\0\0\0\x04";
        let query = b"Q\0\0\0\x06;\0";
        assert_eq!(first_unit(query), query.len());
        assert_eq!(first_unit(&[&sync[..], &query[..]].concat()), sync.len());
        let parse = b"P\0\0\0\x09\0;\0\0\0";
        assert_eq!(parse.len(), 10);
        assert_eq!(first_unit(&[&parse[..], &sync[..]].concat()), 15);
        assert_eq!(first_unit(parse), 10);
        assert!(ends_with_sync(&[&parse[..], &sync[..]].concat(), 15));
    }
}
