//! Remembered classifications.

use std::hash::Hasher;
use std::sync::Arc;

use hashbrown::HashTable;
use parking_lot::Mutex;
use rapidhash::fast::RapidHasher;

use super::skeleton::skeleton;
use super::{Catalog, Class, NameScope, classify};

/// A bounded map from a text (or its [`skeleton`]), the scope of its names and a catalog's epoch to
/// the class of the text.
///
/// Keys are compared in full. A hit takes one lock of one shard, and allocates nothing.
#[derive(Debug)]
pub struct ClassMemo {
    shards: Box<[Mutex<Shard>]>,
    shard_bytes_max: usize,
}

/// The entries whose hash leads to one lock.
///
/// The lock is held for a look-up or an insertion only: parsing happens outside of it, at the price
/// that two sessions may classify the same text at the same time.
#[derive(Debug, Default)]
struct Shard {
    entries: HashTable<Entry>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    epoch: u64,
    scope: Arc<NameScope>,
    text: Box<[u8]>,
    /// Whether `text` is a skeleton. A text may hold the very bytes that placeholders are.
    is_skeleton: bool,
    class: Arc<Class>,
}

impl Entry {
    fn weight(&self) -> usize {
        // The scope is shared with the sessions that have it; the table keeps some slots free.
        size_of::<Self>() * 2 + self.text.len() + self.class.weight()
    }
}

const SHARDS: usize = 16;

/// A text whose entry would take more than this part of its shard is classified each time.
const ENTRY_PART_MAX: usize = 8;

impl ClassMemo {
    /// A memo that holds about `capacity` bytes at most.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shard_bytes_max: capacity / SHARDS,
        }
    }

    /// The class of `sql`: remembered, or found out and remembered.
    pub fn classify(
        &self,
        sql: &str,
        catalog: &Catalog,
        scope: &Arc<NameScope>,
        scratch: &mut Vec<u8>,
    ) -> Arc<Class> {
        if let Some(class) = self.get(sql, catalog.epoch(), scope, scratch) {
            return class;
        }
        let mut class = classify(sql, catalog, scope);
        class.shape = hash(shape(sql, scratch).0, catalog.epoch(), scope);
        let class = Arc::new(class);
        self.insert(sql, catalog.epoch(), scope, Arc::clone(&class), scratch);
        class
    }

    /// The remembered class of `sql` under a catalog's epoch. `scratch` is space to work in.
    pub fn get(
        &self,
        sql: &str,
        epoch: u64,
        scope: &Arc<NameScope>,
        scratch: &mut Vec<u8>,
    ) -> Option<Arc<Class>> {
        let (text, is_skeleton) = shape(sql, scratch);
        let hash = hash(text, epoch, scope);
        let shard = self.shard(hash).lock();
        shard
            .entries
            .find(hash, |entry| entry.is(text, is_skeleton, epoch, scope))
            .map(|entry| Arc::clone(&entry.class))
    }

    /// Remembers `class` as that of `sql`.
    pub fn insert(
        &self,
        sql: &str,
        epoch: u64,
        scope: &Arc<NameScope>,
        class: Arc<Class>,
        scratch: &mut Vec<u8>,
    ) {
        let (text, is_skeleton) = shape(sql, scratch);
        let hash = hash(text, epoch, scope);
        let entry = Entry {
            hash,
            epoch,
            scope: Arc::clone(scope),
            text: text.into(),
            is_skeleton,
            class,
        };
        let weight = entry.weight();
        if weight > self.shard_bytes_max / ENTRY_PART_MAX {
            return;
        }
        // What is evicted is dropped after the lock is released.
        let mut evicted = HashTable::new();
        {
            let mut shard = self.shard(hash).lock();
            if shard
                .entries
                .find(hash, |known| {
                    known.is(&entry.text, is_skeleton, epoch, scope)
                })
                .is_some()
            {
                return;
            }
            if shard.bytes + weight > self.shard_bytes_max {
                // Texts of earlier epochs are never asked for again. If all are of this one, more
                // shapes are in use than fit, and any choice would be as good as this.
                let mut kept = 0;
                shard.entries.retain(|known| {
                    let keep = known.epoch >= epoch;
                    kept += if keep { known.weight() } else { 0 };
                    keep
                });
                shard.bytes = kept;
                if kept + weight > self.shard_bytes_max {
                    evicted = std::mem::take(&mut shard.entries);
                    shard.bytes = 0;
                }
            }
            shard.bytes += weight;
            shard.entries.insert_unique(hash, entry, |known| known.hash);
        }
        drop(evicted);
    }

    /// How many classes are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.lock().entries.len())
            .sum()
    }

    /// Whether nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, hash: u64) -> &Mutex<Shard> {
        // The table uses the other end of the hash.
        &self.shards[usize::try_from(hash >> 60).unwrap_or_default() % SHARDS]
    }
}

impl Entry {
    fn is(&self, text: &[u8], is_skeleton: bool, epoch: u64, scope: &Arc<NameScope>) -> bool {
        self.epoch == epoch
            && self.is_skeleton == is_skeleton
            && *self.text == *text
            && (Arc::ptr_eq(&self.scope, scope) || self.scope == *scope)
    }
}

/// What stands for `sql` in a key, and whether it is a skeleton.
fn shape<'a>(sql: &'a str, scratch: &'a mut Vec<u8>) -> (&'a [u8], bool) {
    if skeleton(sql, scratch) {
        (scratch, true)
    } else {
        (sql.as_bytes(), false)
    }
}

fn hash(text: &[u8], epoch: u64, scope: &NameScope) -> u64 {
    let mut hasher = RapidHasher::default_const();
    hasher.write(text);
    hasher.write_u64(epoch);
    for name in std::iter::once(&scope.user).chain(&scope.search_path) {
        hasher.write(name.as_bytes());
        hasher.write_usize(name.len());
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(path: &str) -> Arc<NameScope> {
        Arc::new(NameScope {
            user: "alice".to_owned(),
            search_path: vec![path.to_owned()],
            standard_conforming_strings: true,
            client_encoding_utf8: true,
        })
    }

    fn class(parsed: bool) -> Arc<Class> {
        Arc::new(Class {
            parsed,
            ..Class::default()
        })
    }

    #[test]
    fn one_class_serves_all_texts_of_a_shape_and_no_others() {
        let memo = ClassMemo::new(1 << 20);
        let (public, same, other) = (scope("public"), scope("public"), scope("other"));
        let lax = Arc::new(NameScope {
            standard_conforming_strings: false,
            ..NameScope::clone(&public)
        });
        let scratch = &mut Vec::new();
        memo.insert(
            "SELECT a FROM t WHERE b = 1",
            7,
            &public,
            class(true),
            scratch,
        );
        let mut get = |sql, epoch, scope| memo.get(sql, epoch, scope, scratch).is_some();
        assert!(get("SELECT a FROM t WHERE b = 42", 7, &public));
        assert!(get("SELECT a FROM t WHERE b = 42", 7, &same));
        assert!(!get("SELECT a FROM t WHERE b = '1'", 7, &public));
        assert!(!get("SELECT a FROM u WHERE b = 1", 7, &public));
        assert!(!get("SELECT a FROM t WHERE b = 1", 8, &public));
        assert!(!get("SELECT a FROM t WHERE b = 1", 7, &other));
        assert!(!get("SELECT a FROM t WHERE b = 1", 7, &lax));
    }

    #[test]
    fn a_text_that_spells_out_a_skeleton_is_not_taken_for_it() {
        let memo = ClassMemo::new(1 << 20);
        let public = scope("public");
        let scratch = &mut Vec::new();
        memo.insert("SELECT 1", 7, &public, class(true), scratch);
        assert_eq!(
            memo.get("SELECT \u{1}", 7, &public, scratch)
                .map(|c| c.parsed),
            None
        );
    }

    #[test]
    fn bytes_stay_within_the_bound_and_stale_epochs_go_first() {
        let memo = ClassMemo::new(SHARDS * 16 * 1024);
        let public = scope("public");
        let scratch = &mut Vec::new();
        for epoch in 0..3 {
            for n in 0..2000 {
                let sql = format!("SELECT a{n} FROM t");
                memo.insert(&sql, epoch, &public, class(true), scratch);
                let shard = memo.shards[n % SHARDS].lock();
                let weight: usize = shard.entries.iter().map(Entry::weight).sum();
                assert_eq!(shard.bytes, weight);
                assert!(weight <= memo.shard_bytes_max);
            }
        }
        assert!(!memo.is_empty());
        let long = format!("SELECT '{}'", "x\\".repeat(16 * 1024));
        memo.insert(&long, 3, &public, class(true), scratch);
        assert!(memo.get(&long, 3, &public, scratch).is_none());
    }
}
