//! Prepared statements as clients name them, and the one name that each distinct text has on every server connection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use bytes::{BufMut, BytesMut};
use heliosdb_cache::HashedStr;
use heliosdb_pooling::StatementAffinity;
use parking_lot::Mutex;

use crate::sql::{Class, NameScope};

/// A statement's text and parameter types, shared by all sessions that prepared the same.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Unique for the life of the process.
    pub(crate) id: u64,
    pub(crate) text: HashedStr,
    /// The parameter type OIDs of the Parse message, as on the wire: a count and the OIDs, big-endian.
    pub(crate) types: Box<[u8]>,
    /// The settings that it is parsed under: constants and names get their meaning then.
    pub(crate) scope: HashedStr,
    /// Of the catalog when the first client prepared it; 0 if there was none. Where the types are left open, the server
    /// chose them no later than under that one, or when a connection prepared it since.
    pub(crate) epoch: u64,
    /// What the text meant to the session that asked last.
    pub(crate) class: ArcSwapOption<KnownClass>,
    /// Which server connections have it. Shared with these, which may outlive the last client that uses it.
    pub(crate) affinity: Arc<StatementAffinity>,
}

/// A class, and what it was found under: it holds wherever these are the same.
#[derive(Debug)]
pub(crate) struct KnownClass {
    pub(crate) epoch: u64,
    pub(crate) names: Arc<NameScope>,
    pub(crate) class: Arc<Class>,
}

/// Gives equal statements the same [`Prepared`], so that a server connection prepares each only once.
///
/// Equal means: same text bytes, same parameter types, same settings, same schema epoch. The epoch is there because a server that
/// prepared a text before a table changed insists on the old result type ("cached plan must not change result type"),
/// which a client that prepares the text afterwards has no reason to meet.
#[derive(Debug)]
pub(crate) struct Interner {
    /// Why a lock: touched once per Parse of a named statement, never on the path of a hit. Nothing is called under it.
    map: Mutex<HashMap<Key, Weak<Prepared>>>,
    next_id: AtomicU64,
    /// Not guessable, so that no client names another's statement.
    prefix: String,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    text: HashedStr,
    types: Box<[u8]>,
    scope: HashedStr,
    epoch: u64,
}

impl Key {
    fn new(text: &str, types: &[u8], scope: &HashedStr, epoch: u64) -> Self {
        Self {
            text: HashedStr::new(text),
            types: types.into(),
            scope: scope.clone(),
            epoch,
        }
    }
}

/// The map is swept of dead entries when it has grown by this many.
const SWEEP_AT: usize = 4096;

impl Interner {
    pub(crate) fn new() -> Self {
        Self {
            map: Mutex::new(HashMap::new()),
            next_id: AtomicU64::new(1),
            prefix: format!("helios_{:016x}_", rand::random::<u64>()),
        }
    }

    /// The shared statement for a named Parse.
    pub(crate) fn named(
        &self,
        text: &str,
        types: &[u8],
        scope: &HashedStr,
        epoch: u64,
    ) -> Arc<Prepared> {
        let key = Key::new(text, types, scope, epoch);
        let mut map = self.map.lock();
        if let Some(known) = map.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        if map.len() >= SWEEP_AT && map.len() == map.capacity() {
            map.retain(|_, statement| statement.strong_count() > 0);
        }
        let fresh = self.unnamed(key.text.clone(), types, scope, epoch);
        map.insert(key, Arc::downgrade(&fresh));
        fresh
    }

    /// The shared statement for a named Parse, if some client has it.
    pub(crate) fn find(
        &self,
        text: &str,
        types: &[u8],
        scope: &HashedStr,
        epoch: u64,
    ) -> Option<Arc<Prepared>> {
        let key = Key::new(text, types, scope, epoch);
        self.map.lock().get(&key).and_then(Weak::upgrade)
    }

    /// All that some client has.
    pub(crate) fn all(&self) -> Vec<Arc<Prepared>> {
        let map = self.map.lock();
        map.values().filter_map(Weak::upgrade).collect()
    }

    /// A statement for an unnamed Parse: nothing to share, since the next one replaces it.
    pub(crate) fn unnamed(
        &self,
        text: HashedStr,
        types: &[u8],
        scope: &HashedStr,
        epoch: u64,
    ) -> Arc<Prepared> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Arc::new(Prepared {
            id,
            text,
            types: types.into(),
            scope: scope.clone(),
            epoch,
            class: ArcSwapOption::empty(),
            affinity: Arc::default(),
        })
    }

    /// A scope that nobody else has.
    pub(crate) fn unique_scope(&self) -> HashedStr {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        HashedStr::new(&format!("?{id}"))
    }

    /// The statement's name on server connections, zero-terminated for the wire.
    pub(crate) fn put_server_name(&self, id: u64, out: &mut BytesMut) {
        out.put_slice(self.prefix.as_bytes());
        out.put_slice(itoa::Buffer::new().format(id).as_bytes());
        out.put_u8(0);
    }
}

/// What a client's names of statements or portals stand for. The empty name, which most requests use, has a place of
/// its own.
#[derive(Debug, Default)]
pub(crate) struct Named {
    unnamed: Option<Arc<Prepared>>,
    named: HashMap<Box<[u8]>, Arc<Prepared>, rapidhash::fast::RandomState>,
}

impl Named {
    /// How many have a name.
    pub(crate) fn len(&self) -> usize {
        self.named.len()
    }

    pub(crate) fn get(&self, name: &[u8]) -> Option<&Arc<Prepared>> {
        if name.is_empty() {
            self.unnamed.as_ref()
        } else {
            self.named.get(name)
        }
    }

    pub(crate) fn contains(&self, name: &[u8]) -> bool {
        self.get(name).is_some()
    }

    pub(crate) fn insert(&mut self, name: &[u8], statement: Arc<Prepared>) {
        if name.is_empty() {
            self.unnamed = Some(statement);
        } else if let Some(known) = self.named.get_mut(name) {
            *known = statement;
        } else {
            self.named.insert(name.into(), statement);
        }
    }

    pub(crate) fn remove(&mut self, name: &[u8]) -> Option<Arc<Prepared>> {
        if name.is_empty() {
            self.unnamed.take()
        } else {
            self.named.remove(name)
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The statements that live on one server connection, the least recently used given up first. Each of them is told where it
/// is, until it is given up or the connection goes.
#[derive(Debug, Default)]
pub(crate) struct ServerStatements {
    /// What the pool calls the connection, as of the last time that it was lent.
    connection: u64,
    /// By statement id.
    named: HashMap<u64, OnServer, rapidhash::fast::RandomState>,
    /// What the connection's unnamed statement is, if known.
    pub(crate) unnamed: Option<u64>,
    tick: u64,
    /// As many as were allowed when one was prepared last; unknown before.
    max: Option<usize>,
}

/// A statement that a connection has.
#[derive(Debug)]
struct OnServer {
    /// The tick of its last use.
    used: u64,
    affinity: Arc<StatementAffinity>,
}

/// A statement that was given up for another.
#[derive(Debug)]
pub(crate) struct GivenUp {
    pub(crate) id: u64,
    affinity: Arc<StatementAffinity>,
}

impl ServerStatements {
    /// How many are prepared under a name.
    pub(crate) fn len(&self) -> usize {
        self.named.len()
    }

    /// Before anything else, what the pool calls the connection: it is the same for its whole life.
    pub(crate) fn lent_as(&mut self, connection: u64) {
        debug_assert!(self.named.is_empty() || self.connection == connection);
        self.connection = connection;
    }

    /// True if the statement is prepared here; counts as a use.
    pub(crate) fn touch(&mut self, id: u64) -> bool {
        self.tick += 1;
        let Some(known) = self.named.get_mut(&id) else {
            return false;
        };
        known.used = self.tick;
        known.affinity.record_execution(self.connection);
        true
    }

    /// Notes a statement as prepared that was not. Returns the one to close for it when there are more than `max`.
    pub(crate) fn insert(&mut self, statement: &Prepared, max: usize) -> Option<GivenUp> {
        self.max = Some(max);
        self.tick += 1;
        self.add(statement.id, self.tick, &statement.affinity);
        if self.named.len() <= max.max(1) {
            return None;
        }
        let oldest = self
            .named
            .iter()
            .filter(|(known, _)| **known != statement.id)
            .min_by_key(|(_, known)| known.used)
            .map(|(id, _)| *id)?;
        let affinity = self.remove(oldest)?;
        Some(GivenUp {
            id: oldest,
            affinity,
        })
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<Arc<StatementAffinity>> {
        let OnServer { affinity, .. } = self.named.remove(&id)?;
        affinity.forget_connection(self.connection);
        Some(affinity)
    }

    /// Notes a statement as prepared that was given up but not closed. May exceed the maximum by one for a while.
    pub(crate) fn restore(&mut self, statement: &GivenUp) {
        self.add(statement.id, 0, &statement.affinity);
    }

    /// After DEALLOCATE ALL or DISCARD ALL.
    pub(crate) fn clear(&mut self) {
        for (_, known) in self.named.drain() {
            known.affinity.forget_connection(self.connection);
        }
        self.unnamed = None;
    }

    /// True if it can have one more without giving up another.
    pub(crate) fn has_room(&self) -> bool {
        self.max.is_none_or(|max| self.named.len() < max)
    }

    fn add(&mut self, id: u64, used: u64, affinity: &Arc<StatementAffinity>) {
        let on_server = OnServer {
            used,
            affinity: Arc::clone(affinity),
        };
        if self.named.insert(id, on_server).is_none() {
            affinity.record_prepared(self.connection);
        } else {
            affinity.record_execution(self.connection);
        }
    }
}

/// A connection that is closed has nothing any more.
impl Drop for ServerStatements {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_statements_share_and_different_epochs_do_not() {
        let interner = Interner::new();
        let (scope, other) = (HashedStr::new("a"), HashedStr::new("b"));
        let id = |types: &[u8], scope, epoch| interner.named("SELECT $1", types, scope, epoch);
        let one = id(&[0, 0], &scope, 1);
        assert_eq!(one.id, id(&[0, 0], &scope, 1).id);
        assert_ne!(one.id, id(&[0, 1, 0, 0, 0, 23], &scope, 1).id);
        assert_ne!(one.id, id(&[0, 0], &other, 1).id);
        assert_ne!(one.id, id(&[0, 0], &scope, 2).id);
        assert_ne!(interner.unique_scope(), interner.unique_scope());
    }

    #[test]
    fn abandoned_statements_leave_the_interner() {
        let interner = Interner::new();
        let scope = HashedStr::new("a");
        for i in 0..10 * SWEEP_AT {
            drop(interner.named(&format!("SELECT {i}"), &[0, 0], &scope, 1));
        }
        assert!(
            interner.map.lock().len() <= 3 * SWEEP_AT,
            "{}",
            interner.map.lock().len()
        );
    }

    fn statement(interner: &Interner, text: &str) -> Arc<Prepared> {
        interner.named(text, &[0, 0], &HashedStr::new("a"), 1)
    }

    #[test]
    fn server_gives_up_the_least_recently_used() {
        let interner = Interner::new();
        let [one, two, three] = ["1", "2", "3"].map(|text| statement(&interner, text));
        let mut statements = ServerStatements::default();
        assert!(statements.insert(&one, 2).is_none());
        assert!(statements.insert(&two, 2).is_none());
        assert!(statements.touch(one.id));
        let given_up = statements.insert(&three, 2).expect("one too many");
        assert_eq!(given_up.id, two.id);
        assert!(!statements.touch(two.id));
        assert_eq!(statements.named.len(), 2);
    }

    #[test]
    fn a_statement_knows_which_connections_have_it() {
        let interner = Interner::new();
        let [one, two] = ["1", "2"].map(|text| statement(&interner, text));
        let on = |statement: &Prepared| statement.affinity.preferred_connections().to_vec();
        let mut connections = [7, 8].map(|id| {
            let mut statements = ServerStatements::default();
            statements.lent_as(id);
            statements
        });
        for statements in &mut connections {
            statements.insert(&one, 1);
        }
        assert_eq!(on(&one), [8, 7]);
        assert!(connections[0].touch(one.id));
        assert_eq!(on(&one), [7, 8]);
        // Given up for another, but not closed after all.
        let given_up = connections[0].insert(&two, 1).expect("one too many");
        assert_eq!((on(&one), on(&two)), (vec![8], vec![7]));
        connections[0].restore(&given_up);
        assert_eq!((on(&one), one.affinity.prepared_on()), (vec![7, 8], 2));
        connections[0].clear();
        assert_eq!((on(&one), on(&two)), (vec![8], vec![]));
        drop(connections);
        assert_eq!((on(&one), one.affinity.prepared_on()), (vec![], 0));
        assert!(
            interner
                .find("1", &[0, 0], &HashedStr::new("a"), 1)
                .is_some()
        );
        assert!(
            interner
                .find("3", &[0, 0], &HashedStr::new("a"), 1)
                .is_none()
        );
        assert_eq!(interner.all().len(), 2);
    }
}
