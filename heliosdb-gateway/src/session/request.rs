//! A request that could not be answered on the spot: it waits for a catalog, for another client's answer or for a
//! server connection, and is then sent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use heliosdb_cache::{Flight, KeyRef, SlotId};
use heliosdb_network::error::HeliosError;
use smallvec::SmallVec;

use crate::clients::{Activity, Counters, Signal};
use crate::error::{ClientError, ErrorKind};
use crate::sql::{Class, Effect, Read, is_pure_parameter_type, mentions_now};
use crate::upstream::database::LoadedCatalog;

use super::link::Link;
use super::pins::Pin;
use super::unit::{Front, ReadUnit, Text, message, recognise};
use super::{Capture, End, Session};

/// What came of trying the cache.
enum Cached {
    /// Answered.
    Answered,
    /// Ask the server, and collect the answer if `capture` is set.
    Ask,
    /// Answered with an error.
    Failed(ClientError),
}

/// How often a follower joins again after its leader failed, before it asks the server itself.
const JOINS_MAX: usize = 2;

impl Session {
    /// Works on the request at the front of `input`.
    pub(super) async fn request(&mut self) -> Result<(), End> {
        let input = std::mem::take(&mut self.input).freeze();
        let done = self.request_in(&input).await?;
        let rest = &input[done..];
        if !rest.is_empty() {
            let mut input = BytesMut::with_capacity(rest.len());
            input.extend_from_slice(rest);
            self.input = input;
            self.input_waits = true;
        }
        Ok(())
    }

    /// Returns how many bytes of `input` are dealt with.
    async fn request_in(&mut self, input: &Bytes) -> Result<usize, End> {
        self.info().clear_signal(Signal::Cancel);
        let own = self.link.as_mut().map(|link| &mut *link.lease);
        let catalog = self.pool.catalog(own).await;
        if self.may_read_cache() {
            let statements = std::mem::take(&mut self.statements);
            let cached = match recognise(input, &statements) {
                Front::Read(unit) if !is_taken(&unit, &statements) => {
                    let len = unit.len;
                    Some((
                        self.try_cache(&unit, catalog.as_ref(), &statements).await,
                        len,
                    ))
                }
                _ => None,
            };
            // A Parse answered from the cache leaves its statement behind, as one answered by the server does.
            let remember = match (&cached, recognise(input, &statements)) {
                (Some((Cached::Answered, _)), Front::Read(unit)) => {
                    self.statement_to_remember(&unit, &statements)
                }
                _ => None,
            };
            self.statements = statements;
            self.statements.extend(remember);
            match cached {
                Some((Cached::Answered, len)) => return Ok(len),
                Some((Cached::Failed(error), len)) => return self.refuse(error, input, len),
                Some((Cached::Ask, _)) | None => {}
            }
        }
        if let Some(len) = self.answer_deallocate(input) {
            return Ok(len);
        }
        if let Err(error) = self.link_up().await {
            self.capture = None;
            let len = first_unit(input);
            return self.refuse(error, input, len);
        }
        let len = first_unit(input);
        let mut at = 0;
        while let Some((tag, _, len)) = message(&input[at..len]) {
            self.forward(tag, &input[at..at + len])?;
            at += len;
        }
        Ok(len)
    }

    /// Joins or begins a flight for a read that may be cached.
    async fn try_cache(
        &mut self,
        unit: &ReadUnit<'_>,
        catalog: Option<&Arc<LoadedCatalog>>,
        statements: &super::io::Statements,
    ) -> Cached {
        let Some(catalog) = catalog else {
            return self.bypass("catalog");
        };
        let class = self.gateway.classify(
            unit.text.as_str().as_bytes(),
            Some(catalog),
            &self.names,
            &mut self.text_buffer,
        );
        let Some(relations) = class.cacheable() else {
            return self.bypass(refusal_label(&class));
        };
        // A type whose text form depends on the time of day, or on things that no key holds.
        if !unit.parameter_types().all(is_pure_parameter_type) {
            return self.bypass("parameter_type");
        }
        // What a text parameter means is decided by the server: if it could be `now`, the answer grows old by itself.
        if mentions_now(unit.bind()) {
            return self.bypass("now");
        }
        let database = Arc::clone(&self.pool.database);
        let mut slots: SmallVec<[SlotId; 8]> =
            SmallVec::from_slice(&[database.everything, database.schema]);
        slots.extend(relations.iter().map(|relation| database.slot(relation.key)));
        unit.put_params(&mut self.key_buffer);
        for _ in 0..JOINS_MAX {
            let key_buffer = std::mem::take(&mut self.key_buffer);
            let key = match &unit.text {
                Text::Inline(text) => KeyRef::new(text, &key_buffer, &self.scope),
                Text::Prepared(statement) => {
                    KeyRef::prepared(&statement.text, &key_buffer, &self.scope)
                }
            };
            let gateway = Arc::clone(&self.gateway);
            let flight = gateway.cache.join(&key, &slots);
            self.key_buffer = key_buffer;
            match flight {
                Flight::Leader(fill) => {
                    // The versions that the fill goes by were read just now. If the catalog still stands, no DDL came
                    // between the reading of the catalog and that, and the dependencies are the right ones.
                    if database
                        .catalog_now()
                        .is_none_or(|now| !Arc::ptr_eq(&now, catalog))
                    {
                        return self.bypass("schema change");
                    }
                    self.capture = Some(Capture {
                        fill,
                        reply: BytesMut::new(),
                        started: Instant::now(),
                    });
                    return Cached::Ask;
                }
                Flight::Follower(follower) => {
                    let info = Arc::clone(self.info());
                    info.set_activity(Activity::Waiting);
                    let waited = info.or_cancelled(follower.wait()).await;
                    info.set_activity(Activity::Idle);
                    match waited {
                        None => return Cached::Failed(cancelled()),
                        Some(Some(reply)) => {
                            self.put_reply(unit, &reply);
                            self.count_query();
                            return Cached::Answered;
                        }
                        // The leader failed. Its place is free.
                        Some(None) => {
                            if self.serve_hit(unit, statements) {
                                return Cached::Answered;
                            }
                            unit.put_params(&mut self.key_buffer);
                        }
                    }
                }
                Flight::Uncached => return self.bypass("write pending"),
                Flight::Overload => return self.bypass("overload"),
            }
        }
        self.bypass("leader failed")
    }

    fn bypass(&self, reason: &'static str) -> Cached {
        self.gateway.stats.count_bypass(reason);
        Cached::Ask
    }

    /// Gets a server connection with this session's settings in force.
    async fn link_up(&mut self) -> Result<(), ClientError> {
        if self.link.is_none() {
            let lease = self.acquire().await?;
            if lease.baseline.fingerprint != self.baseline.fingerprint {
                // Somebody changed what sessions begin with: from here on this one is keyed by the new defaults, and
                // an answer asked for under the old ones is not kept.
                self.baseline = Arc::clone(&lease.baseline);
                self.settings_changed();
                self.capture = None;
            }
            lease.info.lent_to(self.info().id);
            self.info().link(Arc::clone(&lease.key));
            self.link = Some(Link::new(lease));
        }
        self.info().set_activity(Activity::Active);
        if let Err(error) = self.apply_settings().await {
            if !self.pins.any() {
                self.release();
            }
            return Err(error);
        }
        Ok(())
    }

    async fn acquire(&mut self) -> Result<crate::upstream::ServerLease, ClientError> {
        let label = self.settings.effective().label();
        if let Some(lease) = self.pool.try_acquire(label) {
            return Ok(lease);
        }
        let info = Arc::clone(self.info());
        info.set_activity(Activity::Waiting);
        let started = Instant::now();
        let acquired = info.or_cancelled(self.pool.acquire(label)).await;
        info.set_activity(Activity::Idle);
        Counters::add(
            &info.counters.wait_us,
            u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        );
        match acquired {
            None => Err(cancelled()),
            Some(Ok(lease)) => Ok(lease),
            Some(Err(error)) => Err(ClientError::from_acquire(&error)),
        }
    }

    /// Brings the connection from the settings it has to the ones this session has.
    async fn apply_settings(&mut self) -> Result<(), ClientError> {
        let effective = Arc::clone(self.settings.effective());
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        let lease = &mut link.lease;
        if Arc::ptr_eq(&lease.applied, &effective) {
            return Ok(());
        }
        let sql = lease.applied.transition(&effective);
        if !sql.is_empty() {
            // Cut short, it leaves replies behind that nobody reads.
            lease.broken = true;
            match tokio::time::timeout(SETTINGS_TIMEOUT, lease.pg.simple_query(&sql)).await {
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

    /// Answers a request with an error, as a server in this state would, and returns what of the input that deals with.
    fn refuse(&mut self, error: ClientError, input: &Bytes, len: usize) -> Result<usize, End> {
        self.gateway.stats.count_error(error.kind);
        if error.fatal {
            return Err(End::Error(error));
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

    /// `DEALLOCATE` of a statement that the client prepared by protocol message: the name is known here alone.
    fn answer_deallocate(&mut self, input: &Bytes) -> Option<usize> {
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

/// Why a class is not cacheable, as a metric label.
fn refusal_label(class: &Class) -> &'static str {
    match class.statements.as_slice() {
        [] => "empty",
        [statement] => match &statement.read {
            Read::Refused(refusal) => refusal.label(),
            Read::Cacheable(_) => "side_effects",
        },
        _ => "several_statements",
    }
}

/// A Parse under a name that is in use: the server has to refuse it.
fn is_taken(unit: &ReadUnit<'_>, statements: &super::io::Statements) -> bool {
    match &unit.protocol {
        super::unit::Protocol::Extended {
            parse: Some((name, _)),
            ..
        } => !name.is_empty() && statements.contains_key(*name),
        _ => false,
    }
}

/// The length of what belongs together at the front of `input`: a simple query, or all up to a Sync as far as it is
/// here.
fn first_unit(input: &[u8]) -> usize {
    let mut at = 0;
    while let Some((tag, _, len)) = message(&input[at..]) {
        at += len;
        if matches!(tag, b'Q' | b'F' | b'S') {
            break;
        }
    }
    at
}

fn ends_with_sync(input: &[u8], len: usize) -> bool {
    input[..len].ends_with(b"S\0\0\0\x04")
}

fn cancelled() -> ClientError {
    ClientError::new(
        ErrorKind::Client,
        "57014",
        "canceling statement due to user request",
    )
}

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
