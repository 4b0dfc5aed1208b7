//! Prepared statements as clients name them, and the one name that each distinct text has on every server connection.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use bytes::{BufMut, BytesMut};
use heliosdb_cache::HashedStr;
use heliosdb_pooling::StatementAffinity;
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::sql::{Class, NameScope};

/// A statement's text and parameter types, shared by all sessions that prepared the same.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Unique for the life of the process.
    pub(crate) id: u64,
    pub(crate) text: HashedStr,
    /// The parameter type OIDs of the Parse message, as on the wire: a count and the OIDs, big-endian.
    pub(crate) types: Box<[u8]>,
    /// What stands behind the name in the PREPARE that made it: types, `AS`, and `text`. `None` where it came by a Parse.
    pub(crate) declared: Option<Box<str>>,
    /// The settings that it is parsed under: constants and names get their meaning then.
    pub(crate) scope: HashedStr,
    /// Of the catalog when the first client prepared it; 0 if there was none. Where the types are left open, the server
    /// chose them no later than under that one, or when a connection prepared it since.
    pub(crate) epoch: u64,
    /// How server connections call it.
    pub(crate) naming: Naming,
    /// The server refused to run it as it was prepared: who sends it again without a name gets another one.
    pub(crate) is_stale: AtomicBool,
    /// What the text meant to the session that asked last.
    pub(crate) class: ArcSwapOption<KnownClass>,
    /// Counts its bytes for as long as anybody has it.
    #[expect(dead_code, reason = "it is there to be dropped")]
    held: Held,
    /// Which server connections have it. Shared with these, which may outlive the last client that uses it.
    pub(crate) affinity: Arc<StatementAffinity>,
}

/// How server connections call a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// Not at all: it is there until the next one comes.
    Unnamed,
    /// By its own name.
    Named,
    /// By its own name, and each connection that has it keeps it in memory: nobody may have it between two clients that
    /// send the same without a name.
    Kept,
}

/// A class, and what it was found under: it holds wherever these are the same.
#[derive(Debug)]
pub(crate) struct KnownClass {
    pub(crate) epoch: u64,
    pub(crate) names: Arc<NameScope>,
    pub(crate) class: Arc<Class>,
}

/// Bytes that count for as long as this lives.
#[derive(Debug)]
struct Held {
    bytes: usize,
    of: Arc<AtomicUsize>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
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
    /// The hashes of texts that came without a name, each in the place that it gives: what stands there was seen before.
    seen: Box<[AtomicU64; SEEN]>,
    next_id: AtomicU64,
    /// Bytes of all statements that anybody has.
    bytes: Arc<AtomicUsize>,
    /// Not guessable, so that no client names another's statement.
    prefix: String,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    text: HashedStr,
    types: Box<[u8]>,
    declared: Option<Box<str>>,
    scope: HashedStr,
    epoch: u64,
}

impl Key {
    fn new(text: &str, types: &[u8], scope: &HashedStr, epoch: u64) -> Self {
        Self {
            text: HashedStr::new(text),
            types: types.into(),
            declared: None,
            scope: scope.clone(),
            epoch,
        }
    }
}

/// What no statement is called, by a client or on a server connection.
pub(super) const NOBODYS_NAME: &str = "helios_nobodys";
/// As in a Parse without types.
const NO_TYPES: &[u8] = &[0, 0];

/// Texts without a name that are remembered by their hashes. A power of two.
const SEEN: usize = 4096;
/// The map is swept of dead entries when it has grown by this many.
const SWEEP_AT: usize = 4096;

impl Interner {
    pub(crate) fn new() -> Self {
        Self {
            map: Mutex::new(HashMap::new()),
            seen: Box::new([const { AtomicU64::new(0) }; SEEN]),
            next_id: AtomicU64::new(1),
            bytes: Arc::default(),
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
        self.shared(Key::new(text, types, scope, epoch), Naming::Named)
    }

    /// The shared statement for a Parse without a name, if it came before and may take that many bytes of memory.
    pub(crate) fn repeated(
        &self,
        text: &str,
        types: &[u8],
        scope: &HashedStr,
        epoch: u64,
        memory: usize,
    ) -> Option<Arc<Prepared>> {
        let key = Key::new(text, types, scope, epoch);
        let hash = {
            let map = self.map.lock();
            if let Some(known) = map.get(&key).and_then(Weak::upgrade) {
                return Some(known);
            }
            map.hasher().hash_one(&key)
        };
        #[expect(clippy::cast_possible_truncation, reason = "it is one of the places")]
        let place = hash as usize % SEEN;
        let came_before = self.seen[place].swap(hash, Ordering::Relaxed) == hash;
        if !came_before || self.bytes() + weight_of_shared(text, types) > memory {
            return None;
        }
        Some(self.shared(key, Naming::Kept))
    }

    /// The shared statement of a PREPARE with this behind its name.
    pub(crate) fn declared(
        &self,
        text: &str,
        declared: &str,
        scope: &HashedStr,
        epoch: u64,
    ) -> Arc<Prepared> {
        let mut key = Key::new(text, NO_TYPES, scope, epoch);
        key.declared = Some(declared.into());
        self.shared(key, Naming::Named)
    }

    /// The same statement under other settings or another epoch.
    pub(crate) fn again(&self, known: &Prepared, scope: &HashedStr, epoch: u64) -> Arc<Prepared> {
        let mut key = Key::new(&known.text, &known.types, scope, epoch);
        key.declared.clone_from(&known.declared);
        self.shared(key, known.naming)
    }

    /// The same statement under a name that nobody else uses.
    pub(crate) fn apart(&self, known: &Prepared) -> Arc<Prepared> {
        Arc::new(Prepared {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            text: known.text.clone(),
            types: known.types.clone(),
            declared: known.declared.clone(),
            scope: known.scope.clone(),
            epoch: known.epoch,
            held: self.hold(&known.text, &known.types),
            naming: known.naming,
            is_stale: AtomicBool::new(false),
            class: ArcSwapOption::empty(),
            affinity: Arc::default(),
        })
    }

    /// As [`apart`](Self::apart), and whoever prepares the same from here on gets this one; or the one that somebody else
    /// got in this way.
    pub(crate) fn anew(&self, known: &Prepared) -> Arc<Prepared> {
        let fresh = self.apart(known);
        if known.naming == Naming::Unnamed {
            return fresh;
        }
        let mut key = Key::new(&known.text, &known.types, &known.scope, known.epoch);
        key.declared.clone_from(&known.declared);
        let mut map = self.map.lock();
        let there = map.get(&key).and_then(Weak::upgrade);
        if let Some(newer) = there.filter(|there| there.id > known.id) {
            return newer;
        }
        map.insert(key, Arc::downgrade(&fresh));
        fresh
    }

    fn shared(&self, key: Key, naming: Naming) -> Arc<Prepared> {
        let mut map = self.map.lock();
        if let Some(known) = map.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        if map.len() >= SWEEP_AT && map.len() == map.capacity() {
            map.retain(|_, statement| statement.strong_count() > 0);
        }
        let fresh = Arc::new(Prepared {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            text: key.text.clone(),
            types: key.types.clone(),
            declared: key.declared.clone(),
            scope: key.scope.clone(),
            epoch: key.epoch,
            held: self.hold(&key.text, &key.types),
            naming,
            is_stale: AtomicBool::new(false),
            class: ArcSwapOption::empty(),
            affinity: Arc::default(),
        });
        map.insert(key, Arc::downgrade(&fresh));
        fresh
    }

    /// From here on, who sends the same without a name gets another one.
    pub(crate) fn forget(&self, known: &Prepared) {
        known.is_stale.store(true, Ordering::Relaxed);
        let key = Key::new(&known.text, &known.types, &known.scope, known.epoch);
        let mut map = self.map.lock();
        let there = map.get(&key).and_then(Weak::upgrade);
        if there.is_some_and(|there| there.id == known.id) {
            map.remove(&key);
        }
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
            held: self.hold(&text, types),
            text,
            types: types.into(),
            declared: None,
            scope: scope.clone(),
            epoch,
            naming: Naming::Unnamed,
            is_stale: AtomicBool::new(false),
            class: ArcSwapOption::empty(),
            affinity: Arc::default(),
        })
    }

    /// Bytes of all statements that anybody has.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn hold(&self, text: &str, types: &[u8]) -> Held {
        let bytes = weight_of_shared(text, types);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Held {
            bytes,
            of: Arc::clone(&self.bytes),
        }
    }

    /// A scope that nobody else has.
    pub(crate) fn unique_scope(&self) -> HashedStr {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        HashedStr::new(&format!("?{id}"))
    }

    /// The statement's name on server connections.
    pub(crate) fn server_name(&self, id: u64) -> String {
        format!("{}{id}", self.prefix)
    }

    /// What the names of all statements on server connections begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A name that the client has for no statement: never one that a server connection has for somebody's.
    pub(crate) fn not_a_server_name<'n>(&self, name: &'n [u8]) -> &'n [u8] {
        if name.starts_with(self.prefix.as_bytes()) {
            NOBODYS_NAME.as_bytes()
        } else {
            name
        }
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
#[derive(Debug, Default, Clone)]
pub(crate) struct Named {
    unnamed: Option<Arc<Prepared>>,
    named: HashMap<Box<[u8]>, Arc<Prepared>, rapidhash::fast::RandomState>,
    /// Of the names and what they stand for.
    bytes: usize,
}

/// Bytes that a name takes with what it stands for.
pub(crate) fn weight_of(name: &[u8], text: &str) -> usize {
    NAME_WEIGHT + name.len() + text.len()
}

/// Bytes that a statement takes for all who have it: its text and types are in the map's key, too.
fn weight_of_shared(text: &str, types: &[u8]) -> usize {
    size_of::<Prepared>() + 2 * (text.len() + types.len())
}

/// What a name takes besides its bytes.
const NAME_WEIGHT: usize = 128;

impl Named {
    /// Of those that have names, with what they stand for.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many have a name.
    pub(crate) fn len(&self) -> usize {
        self.named.len()
    }

    #[inline]
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
            self.bytes += statement.text.len();
            self.bytes -= known.text.len();
            *known = statement;
        } else {
            self.bytes += weight_of(name, &statement.text);
            self.named.insert(name.into(), statement);
        }
    }

    pub(crate) fn remove(&mut self, name: &[u8]) -> Option<Arc<Prepared>> {
        if name.is_empty() {
            self.unnamed.take()
        } else {
            let was = self.named.remove(name)?;
            self.bytes -= weight_of(name, &was.text);
            Some(was)
        }
    }

    pub(crate) fn clear(&mut self) {
        if self.named.capacity() == 0 {
            // As after most transactions: there is no map to give up.
            self.unnamed = None;
        } else {
            *self = Self::default();
        }
    }

    /// Takes those that have names, as DEALLOCATE ALL does.
    pub(crate) fn take_names(&mut self) -> Self {
        let unnamed = self.unnamed.take();
        let named = std::mem::take(self);
        self.unnamed = unnamed;
        named
    }

    /// True if none has a name.
    pub(crate) fn has_no_names(&self) -> bool {
        self.named.is_empty()
    }

    /// The names, and what they stand for.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&[u8], &Arc<Prepared>)> {
        self.named.iter().map(|(name, known)| (&**name, known))
    }

    /// The names of a statement, the empty one if that is its.
    pub(crate) fn names_of(&self, id: u64) -> impl Iterator<Item = &[u8]> {
        let unnamed = self.unnamed.iter().filter(move |known| known.id == id);
        let named = self.names().filter(move |(_, known)| known.id == id);
        unnamed.map(|_| &b""[..]).chain(named.map(|(name, _)| name))
    }

    /// The first name found for a statement.
    pub(crate) fn name_of(&self, id: u64) -> Option<&[u8]> {
        self.names()
            .find_map(|(name, known)| (known.id == id).then_some(name))
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
    /// Of those that nobody else may have, so that who sends the same finds it.
    kept: Option<Arc<Prepared>>,
}

/// A statement that was given up for another.
#[derive(Debug)]
pub(crate) struct GivenUp {
    pub(crate) id: u64,
    affinity: Arc<StatementAffinity>,
    /// Of those that nobody else may have, so that who sends the same finds it.
    kept: Option<Arc<Prepared>>,
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

    /// Notes a statement as prepared that was not. Returns those to close for it where there are more than `max`: several
    /// after a reload that made it smaller.
    pub(crate) fn insert(
        &mut self,
        statement: &Arc<Prepared>,
        max: usize,
    ) -> SmallVec<[GivenUp; 1]> {
        self.max = Some(max);
        self.tick += 1;
        let on_server = OnServer {
            used: self.tick,
            affinity: Arc::clone(&statement.affinity),
            kept: (statement.naming == Naming::Kept).then(|| Arc::clone(statement)),
        };
        self.add(statement.id, on_server);
        let mut given_up = SmallVec::new();
        while self.named.len() > max.max(1) {
            // Never the new one: it was used last.
            let oldest = self.named.iter().min_by_key(|(_, known)| known.used);
            let Some(oldest) = oldest.map(|(id, _)| *id) else {
                break;
            };
            given_up.extend(self.give_up(oldest));
        }
        given_up
    }

    pub(crate) fn remove(&mut self, id: u64) {
        self.give_up(id);
    }

    pub(crate) fn has(&self, id: u64) -> bool {
        self.named.contains_key(&id)
    }

    /// Gives a statement up that is about to be closed.
    pub(crate) fn give_up(&mut self, id: u64) -> Option<GivenUp> {
        let OnServer { affinity, kept, .. } = self.named.remove(&id)?;
        affinity.forget_connection(self.connection);
        Some(GivenUp { id, affinity, kept })
    }

    /// Gives up all of them, as DEALLOCATE ALL is about to do.
    pub(crate) fn give_up_all(&mut self) -> Vec<GivenUp> {
        let ids: Vec<u64> = self.named.keys().copied().collect();
        ids.into_iter().filter_map(|id| self.give_up(id)).collect()
    }

    /// Notes a statement as prepared that was given up but not closed. May exceed the maximum by one for a while.
    pub(crate) fn restore(&mut self, statement: &GivenUp) {
        let on_server = OnServer {
            used: 0,
            affinity: Arc::clone(&statement.affinity),
            kept: statement.kept.clone(),
        };
        self.add(statement.id, on_server);
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

    fn add(&mut self, id: u64, on_server: OnServer) {
        let affinity = Arc::clone(&on_server.affinity);
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
        assert!(statements.insert(&one, 2).is_empty());
        assert!(statements.insert(&two, 2).is_empty());
        assert!(statements.touch(one.id));
        let given_up = statements.insert(&three, 2);
        let ids = |given_up: &[GivenUp]| given_up.iter().map(|one| one.id).collect::<Vec<_>>();
        assert_eq!(ids(&given_up), [two.id]);
        assert!(!statements.touch(two.id));
        assert_eq!(statements.named.len(), 2);
        // A smaller maximum is kept to from the next one on.
        let given_up = statements.insert(&two, 1);
        assert_eq!(ids(&given_up), [one.id, three.id]);
        assert_eq!(statements.named.len(), 1);
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
        let given_up = connections[0].insert(&two, 1).pop().expect("one too many");
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
