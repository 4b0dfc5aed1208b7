//! What a client asks.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::protocol::{CacheUse, Query};

/// A statement with its parameters, and how its answer may come about.
///
/// ```
/// use heliosdb_network::Statement;
///
/// let statement = Statement::new("SELECT name FROM users WHERE id = $1 AND deleted_at IS NULL").bind(7);
/// let write = Statement::new("UPDATE users SET name = $1 WHERE id = $2").bind("Ada").bind(7);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statement {
    text: String,
    params: Vec<Param>,
    has_binary_results: bool,
    session: u32,
    cache: CacheUse,
    max_age: Option<Duration>,
}

/// A parameter's value. Its type is the server's choice unless an OID is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "as PostgreSQL's Bind has it")]
pub struct Param {
    /// The type's OID; 0 for the server's choice.
    pub oid: u32,
    /// Whether `value` is in the type's binary form.
    pub is_binary: bool,
    /// `None` is NULL.
    pub value: Option<Bytes>,
}

impl Statement {
    /// A statement without parameters.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ..Self::default()
        }
    }

    /// Gives the next parameter its value.
    #[must_use]
    pub fn bind(mut self, value: impl Into<Param>) -> Self {
        self.params.push(value.into());
        self
    }

    /// Asks for values in their types' binary forms instead of text.
    #[must_use]
    pub fn with_binary_results(mut self) -> Self {
        self.has_binary_results = true;
        self
    }

    /// Runs it in the session of that number, behind what was asked there before. A session begins with its first
    /// statement, and lasts until it is closed: transactions, `SET`, temporary tables. 0 is none.
    #[must_use]
    pub fn in_session(mut self, session: u32) -> Self {
        self.session = session;
        self
    }

    /// Says whether the answer may come from memory.
    #[must_use]
    pub fn with_cache(mut self, cache: CacheUse) -> Self {
        self.cache = cache;
        self
    }

    /// Takes no answer from memory that was computed longer ago, whether or not anything changed since.
    #[must_use]
    pub fn with_max_age(mut self, max_age: Duration) -> Self {
        self.max_age = Some(max_age);
        self
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The session that it runs in.
    #[must_use]
    pub fn session(&self) -> u32 {
        self.session
    }

    /// Whether the answer may come from memory.
    #[must_use]
    pub fn cache(&self) -> CacheUse {
        self.cache
    }

    /// How old an answer from memory may be.
    #[must_use]
    pub fn max_age(&self) -> Option<Duration> {
        self.max_age
    }

    /// The message that asks for it.
    #[must_use]
    pub fn to_query(&self) -> Query {
        let max_age = |age: Duration| u32::try_from(age.as_millis()).unwrap_or(u32::MAX);
        Query {
            session: self.session,
            cache: self.cache,
            max_age_ms: self.max_age.map(max_age),
            near: false,
            text: self.text.clone(),
            types: self.types(),
            bind: self.arguments(),
        }
    }

    fn types(&self) -> Bytes {
        if self.params.iter().all(|param| param.oid == 0) {
            return Bytes::new();
        }
        let mut out = BytesMut::with_capacity(2 + 4 * self.params.len());
        out.put_u16(self.count());
        for param in &self.params {
            out.put_u32(param.oid);
        }
        out.freeze()
    }

    fn arguments(&self) -> Bytes {
        if self.params.is_empty() && !self.has_binary_results {
            return Bytes::new();
        }
        let mut out = BytesMut::new();
        if self.params.iter().any(|param| param.is_binary) {
            out.put_u16(self.count());
            for param in &self.params {
                out.put_u16(param.is_binary.into());
            }
        } else {
            out.put_u16(0);
        }
        out.put_u16(self.count());
        for param in &self.params {
            match &param.value {
                Some(value) => {
                    // What is longer does not fit into a frame either, and is refused with it.
                    out.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
                    out.put_slice(value);
                }
                None => out.put_i32(-1),
            }
        }
        if self.has_binary_results {
            out.put_slice(&[0, 1, 0, 1]);
        } else {
            out.put_u16(0);
        }
        out.freeze()
    }

    /// More than PostgreSQL allows is left for it to refuse.
    fn count(&self) -> u16 {
        u16::try_from(self.params.len()).unwrap_or(u16::MAX)
    }
}

impl From<&str> for Statement {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Statement {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl Param {
    fn text(text: impl Into<Bytes>) -> Self {
        Self {
            value: Some(text.into()),
            ..Self::default()
        }
    }
}

macro_rules! from_display {
    ($($type:ty)*) => {$(
        impl From<$type> for Param {
            fn from(value: $type) -> Self {
                Self::text(value.to_string())
            }
        }
    )*};
}

from_display!(i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 bool);

impl From<&str> for Param {
    fn from(value: &str) -> Self {
        Self::text(value.to_owned())
    }
}

impl From<String> for Param {
    fn from(value: String) -> Self {
        Self::text(value)
    }
}

/// As `bytea`.
impl From<&[u8]> for Param {
    fn from(value: &[u8]) -> Self {
        const BYTEA: u32 = 17;
        Self {
            oid: BYTEA,
            is_binary: true,
            value: Some(Bytes::copy_from_slice(value)),
        }
    }
}

/// `None` is NULL.
impl<T: Into<Self>> From<Option<T>> for Param {
    fn from(value: Option<T>) -> Self {
        value.map(Into::into).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::parse::Arguments;

    #[test]
    fn parameters_are_written_as_a_bind_has_them() {
        let plain = Statement::new("x").to_query();
        assert!(plain.types.is_empty() && plain.bind.is_empty());
        let query = Statement::new("x")
            .bind(7)
            .bind(None::<i32>)
            .bind("a")
            .to_query();
        assert!(query.types.is_empty());
        assert_eq!(
            &query.bind[..],
            b"\0\0\0\x03\0\0\0\x017\xff\xff\xff\xff\0\0\0\x01a\0\0"
        );
        let binary = Statement::new("x").bind(true).bind(&b"\0"[..]);
        let query = binary.with_binary_results().to_query();
        assert_eq!(&query.types[..], b"\0\x02\0\0\0\0\0\0\0\x11");
        assert!(Arguments::from_bytes(&query.bind).is_ok());
        assert_eq!(
            &query.bind[..],
            b"\0\x02\0\0\0\x01\0\x02\0\0\0\x04true\0\0\0\x01\0\0\x01\0\x01"
        );
    }
}
