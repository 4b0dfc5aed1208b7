//! Prepared statements as clients name them, and the one name that each distinct text has on every server connection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use bytes::{BufMut, BytesMut};
use heliosdb_cache::HashedStr;
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
    /// What the text meant to the session that asked last.
    pub(crate) class: ArcSwapOption<KnownClass>,
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
        let key = Key {
            text: HashedStr::new(text),
            types: types.into(),
            scope: scope.clone(),
            epoch,
        };
        let mut map = self.map.lock();
        if let Some(known) = map.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        if map.len() >= SWEEP_AT && map.len() == map.capacity() {
            map.retain(|_, statement| statement.strong_count() > 0);
        }
        let fresh = self.unnamed(key.text.clone(), types, scope);
        map.insert(key, Arc::downgrade(&fresh));
        fresh
    }

    /// A statement for an unnamed Parse: nothing to share, since the next one replaces it.
    pub(crate) fn unnamed(
        &self,
        text: HashedStr,
        types: &[u8],
        scope: &HashedStr,
    ) -> Arc<Prepared> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Arc::new(Prepared {
            id,
            text,
            types: types.into(),
            scope: scope.clone(),
            class: ArcSwapOption::empty(),
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

/// The statements that live on one server connection, the least recently used given up first.
#[derive(Debug, Default)]
pub(crate) struct ServerStatements {
    /// Statement id to the tick of its last use.
    named: HashMap<u64, u64>,
    /// What the connection's unnamed statement is, if known.
    pub(crate) unnamed: Option<u64>,
    tick: u64,
}

impl ServerStatements {
    /// True if the statement is prepared here; counts as a use.
    pub(crate) fn touch(&mut self, id: u64) -> bool {
        self.tick += 1;
        let tick = self.tick;
        self.named.get_mut(&id).map(|used| *used = tick).is_some()
    }

    /// Notes a statement as prepared. Returns the one to close for it when there are more than `max`.
    pub(crate) fn insert(&mut self, id: u64, max: usize) -> Option<u64> {
        self.tick += 1;
        self.named.insert(id, self.tick);
        if self.named.len() <= max.max(1) {
            return None;
        }
        let oldest = self
            .named
            .iter()
            .filter(|(known, _)| **known != id)
            .min_by_key(|(_, used)| **used)
            .map(|(id, _)| *id)?;
        self.named.remove(&oldest);
        Some(oldest)
    }

    pub(crate) fn remove(&mut self, id: u64) {
        self.named.remove(&id);
    }

    /// Notes a statement as prepared that was given up but not closed. May exceed the maximum by one for a while.
    pub(crate) fn restore(&mut self, id: u64) {
        self.named.insert(id, 0);
    }

    /// After DEALLOCATE ALL or DISCARD ALL.
    pub(crate) fn clear(&mut self) {
        self.named.clear();
        self.unnamed = None;
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

    #[test]
    fn server_gives_up_the_least_recently_used() {
        let mut statements = ServerStatements::default();
        assert_eq!(statements.insert(1, 2), None);
        assert_eq!(statements.insert(2, 2), None);
        assert!(statements.touch(1));
        assert_eq!(statements.insert(3, 2), Some(2));
        assert!(!statements.touch(2));
        assert_eq!(statements.named.len(), 2);
    }
}
