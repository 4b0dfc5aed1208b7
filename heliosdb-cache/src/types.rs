//! Keys and entries.

use std::fmt;
use std::hash::{BuildHasher as _, Hash, Hasher};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use chrono::{DateTime, Utc};
use rapidhash::fast::RandomState;

use crate::block::{Answer, Block};
use crate::clock;
use crate::version::DependenciesRef;

/// An immutable shared string that carries its hash. Cloning copies a pointer.
#[derive(Clone)]
pub struct HashedStr(Arc<Hashed>);

struct Hashed {
    hash: u64,
    text: Box<str>,
}

impl HashedStr {
    /// Copies `text` and hashes it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Arc::new(Hashed {
            hash: hash_of(text.as_bytes()),
            text: text.into(),
        }))
    }
}

impl Deref for HashedStr {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0.text
    }
}

impl PartialEq for HashedStr {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || (self.0.hash == other.0.hash && self.0.text == other.0.text)
    }
}

impl Eq for HashedStr {}

impl Hash for HashedStr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

impl fmt::Debug for HashedStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for HashedStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// What was asked: a query's text, its parameters, and the namespace (a database, a role, settings) it was asked in.
///
/// Two keys are equal only if all three are, byte for byte: a hash finds a candidate and never decides.
#[derive(Clone, PartialEq, Eq)]
pub struct QueryKey {
    /// The query's text.
    pub query: HashedStr,
    params: Arc<[u8]>,
    namespace: HashedStr,
    hash: u64,
}

impl QueryKey {
    /// A key for a query with its parameters in a namespace, usually the name of a database.
    #[must_use]
    pub fn new(query: &str, params: &[&str], namespace: &str) -> Self {
        // Lengths before contents, so that no two lists of parameters read alike.
        let mut encoded = Vec::new();
        for param in params {
            encoded.extend_from_slice(&(param.len() as u64).to_le_bytes());
            encoded.extend_from_slice(param.as_bytes());
        }
        KeyRef::new(query, &encoded, &HashedStr::new(namespace)).to_key()
    }

    /// The parameters, encoded.
    #[must_use]
    pub fn params(&self) -> &[u8] {
        &self.params
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The same key, borrowed.
    #[must_use]
    pub fn as_ref(&self) -> KeyRef<'_> {
        KeyRef {
            query: &self.query,
            shared: Some(&self.query),
            params: &self.params,
            namespace: &self.namespace,
            hash: self.hash,
        }
    }
}

impl Hash for QueryKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for QueryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryKey")
            .field("query", &self.query)
            .field("params", &self.params)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

/// A [`QueryKey`] made of borrowed parts: looking up allocates nothing.
#[derive(Debug, Clone, Copy)]
pub struct KeyRef<'a> {
    query: &'a str,
    /// The text as it can be shared, where the caller has it in that form.
    shared: Option<&'a HashedStr>,
    params: &'a [u8],
    namespace: &'a HashedStr,
    hash: u64,
}

impl<'a> KeyRef<'a> {
    /// A key whose text is hashed now.
    #[must_use]
    pub fn new(query: &'a str, params: &'a [u8], namespace: &'a HashedStr) -> Self {
        let hash = combine(hash_of(query.as_bytes()), params, namespace);
        Self {
            query,
            shared: None,
            params,
            namespace,
            hash,
        }
    }

    /// A key whose text was hashed before.
    #[must_use]
    #[inline]
    pub fn prepared(query: &'a HashedStr, params: &'a [u8], namespace: &'a HashedStr) -> Self {
        let hash = combine(query.0.hash, params, namespace);
        Self {
            query,
            shared: Some(query),
            params,
            namespace,
            hash,
        }
    }

    /// The owned key.
    #[must_use]
    pub fn to_key(&self) -> QueryKey {
        QueryKey {
            query: self
                .shared
                .cloned()
                .unwrap_or_else(|| HashedStr::new(self.query)),
            params: self.params.into(),
            namespace: self.namespace.clone(),
            hash: self.hash,
        }
    }

    pub(crate) fn hash_value(&self) -> u64 {
        self.hash
    }

    pub(crate) fn query(&self) -> &'a str {
        self.query
    }

    pub(crate) fn shared(&self) -> Option<&'a HashedStr> {
        self.shared
    }

    pub(crate) fn params(&self) -> &'a [u8] {
        self.params
    }

    pub(crate) fn namespace(&self) -> &'a HashedStr {
        self.namespace
    }

    /// Bytes of the query's text and the parameters. A text that several keys share counts with each.
    pub(crate) fn weight(&self) -> usize {
        self.query.len() + self.params.len()
    }
}

/// A key of its own: its bytes in one allocation.
#[derive(Debug, Clone)]
pub(crate) struct PackedKey {
    /// Parameters, then text.
    bytes: Box<[u8]>,
    params_len: usize,
    /// The text in its shared form, if the key came with it; it is in `bytes` all the same.
    shared: Option<HashedStr>,
    namespace: HashedStr,
    hash: u64,
}

impl PackedKey {
    pub(crate) fn new(key: &KeyRef<'_>) -> Self {
        let mut bytes = Vec::with_capacity(key.weight());
        bytes.extend_from_slice(key.params);
        bytes.extend_from_slice(key.query.as_bytes());
        Self {
            bytes: bytes.into(),
            params_len: key.params.len(),
            shared: key.shared.cloned(),
            namespace: key.namespace.clone(),
            hash: key.hash,
        }
    }

    pub(crate) fn hash_value(&self) -> u64 {
        self.hash
    }

    pub(crate) fn as_ref(&self) -> KeyRef<'_> {
        let (params, text) = self.bytes.split_at(self.params_len);
        KeyRef {
            query: std::str::from_utf8(text).expect("it was a str"),
            shared: self.shared.as_ref(),
            params,
            namespace: &self.namespace,
            hash: self.hash,
        }
    }

    pub(crate) fn matches(&self, key: &KeyRef<'_>) -> bool {
        let (params, text) = self.bytes.split_at(self.params_len);
        self.hash == key.hash
            && *key.params == *params
            && *key.namespace == self.namespace
            && match (key.shared, &self.shared) {
                // Most often the same allocation: then not a byte is compared.
                (Some(asked), Some(kept)) => asked == kept,
                _ => key.query.as_bytes() == text,
            }
    }
}

/// Seeded anew in each process: keys come from clients, who must not be able to choose collisions.
fn hash_of(bytes: &[u8]) -> u64 {
    static SEED: OnceLock<RandomState> = OnceLock::new();
    SEED.get_or_init(RandomState::default).hash_one(bytes)
}

#[inline]
fn combine(query: u64, params: &[u8], namespace: &HashedStr) -> u64 {
    let mut hash = query ^ namespace.0.hash.rotate_left(21);
    if !params.is_empty() {
        hash ^= hash_of(params).rotate_left(42);
    }
    // Spreads what the rotations left in place over all bits: both ends of the hash are used, for shard and bucket.
    let wide = u128::from(hash) * 0x9e37_79b9_7f4a_7c15;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the two halves are folded together"
    )]
    let folded = (wide >> 64) as u64 ^ wide as u64;
    folded
}

/// What is known of an entry besides its value.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EntryMetadata {
    /// What the entry is charged: key, value and bookkeeping, in bytes.
    pub size_bytes: usize,
    /// When it was stored. Taken from a monotonic clock that was set by the wall clock once: setting the wall clock
    /// later moves no entry before another.
    pub created_at: DateTime<Utc>,
    /// When it was last stored or read, by the same clock.
    pub last_accessed: DateTime<Utc>,
    /// Reads so far.
    pub access_count: u64,
    /// What computing it took, in milliseconds.
    pub execution_time_ms: f64,
}

impl EntryMetadata {
    /// How much keeping the entry is worth: expected milliseconds of work saved each second, per KiB.
    ///
    /// Its rate of use is estimated as reads (and the one that stored it) over its life, and halves with each
    /// [`PRIORITY_HALF_LIFE`] of idleness. Lower is evicted sooner, as with
    /// [`EvictionPolicy`](crate::EvictionPolicy) scores.
    #[must_use]
    pub fn eviction_priority(&self) -> f64 {
        let now = clock::now();
        let seconds = |since: DateTime<Utc>| (now - since).as_seconds_f64().max(0.0);
        let rate = (self.access_count as f64 + 1.0) / (seconds(self.created_at) + 1.0);
        let decay = (-seconds(self.last_accessed) / PRIORITY_HALF_LIFE.as_secs_f64()).exp2();
        let cost = if self.execution_time_ms.is_finite() {
            self.execution_time_ms.max(0.001)
        } else {
            0.001
        };
        cost * rate * decay / (self.size_bytes.max(1) as f64 / 1024.0)
    }
}

/// Idleness that halves [`EntryMetadata::eviction_priority`].
pub const PRIORITY_HALF_LIFE: std::time::Duration = std::time::Duration::from_secs(600);

/// A cached answer with its key.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CacheEntry {
    /// What was asked.
    pub key: QueryKey,
    /// The answer. Cloning shares it.
    pub data: Answer,
    /// What is known of it.
    pub metadata: EntryMetadata,
    pub(crate) block: Block,
}

impl CacheEntry {
    /// What the answer depends on, as of before it was computed: what a store checks before it serves the entry.
    #[must_use]
    pub fn dependencies(&self) -> DependenciesRef<'_> {
        self.block.dependencies()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borrowed_and_owned_keys_agree() {
        let namespace = HashedStr::new("db");
        let text = HashedStr::new("SELECT 1");
        let inline = KeyRef::new("SELECT 1", b"p", &namespace);
        let prepared = KeyRef::prepared(&text, b"p", &namespace);
        assert_eq!(inline.hash_value(), prepared.hash_value());
        assert!(PackedKey::new(&inline).matches(&prepared));
        assert!(PackedKey::new(&prepared).matches(&inline));
        assert_eq!(PackedKey::new(&inline).as_ref().to_key(), inline.to_key());
        assert_eq!(inline.to_key(), prepared.to_key());
    }

    #[test]
    fn keys_differ_in_every_part() {
        let keys = [
            QueryKey::new("a", &[], "n"),
            QueryKey::new("b", &[], "n"),
            QueryKey::new("a", &[""], "n"),
            QueryKey::new("a", &["x", "y"], "n"),
            QueryKey::new("a", &["xy"], "n"),
            QueryKey::new("a", &[], "m"),
        ];
        for (i, a) in keys.iter().enumerate() {
            for b in &keys[..i] {
                assert_ne!(a, b);
                assert!(!PackedKey::new(&a.as_ref()).matches(&b.as_ref()));
            }
        }
    }

    #[test]
    fn priority_prefers_dear_small_and_hot() {
        let now = clock::now();
        let base = EntryMetadata {
            size_bytes: 1000,
            created_at: now - chrono::Duration::seconds(60),
            last_accessed: now,
            access_count: 10,
            execution_time_ms: 5.0,
        };
        let better = [
            EntryMetadata {
                execution_time_ms: 50.0,
                ..base
            },
            EntryMetadata {
                size_bytes: 100,
                ..base
            },
            EntryMetadata {
                access_count: 1000,
                ..base
            },
        ];
        for better in better {
            assert!(better.eviction_priority() > base.eviction_priority());
        }
        let idle = EntryMetadata {
            last_accessed: now - chrono::Duration::seconds(50),
            ..base
        };
        assert!(idle.eviction_priority() < base.eviction_priority());
        assert!(
            EntryMetadata {
                execution_time_ms: f64::NAN,
                ..base
            }
            .eviction_priority()
            .is_finite()
        );
    }
}
