//! What statements have in common that differ only in their values.

use std::fmt;
use std::sync::Arc;

/// A statement's text without its literals, and with its white space folded.
///
/// Good enough for statistics and affinity, where a mistake costs a little time. Never a key of a cache: two
/// statements with the same fingerprint have different answers.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct QueryFingerprint(Arc<str>);

impl QueryFingerprint {
    /// The fingerprint of a statement.
    #[must_use]
    pub fn of(sql: &str) -> Self {
        let mut text = String::with_capacity(sql.len());
        let mut chars = sql.chars().peekable();
        while let Some(c) = chars.next() {
            let in_word =
                text.ends_with(|last: char| last.is_alphanumeric() || matches!(last, '_' | '$'));
            match c {
                '\'' => {
                    // A doubled quote ends one literal and begins the next: the same to us.
                    chars.by_ref().find(|c| *c == '\'');
                    if !text.ends_with('?') {
                        text.push('?');
                    }
                }
                '"' => {
                    text.push('"');
                    text.extend(chars.by_ref().take_while(|c| *c != '"'));
                    text.push('"');
                }
                c if c.is_ascii_digit() && !in_word => {
                    while chars
                        .next_if(|c| c.is_alphanumeric() || *c == '.')
                        .is_some()
                    {}
                    text.push('?');
                }
                c if c.is_whitespace() => {
                    if !text.is_empty() && !text.ends_with(' ') {
                        text.push(' ');
                    }
                }
                c => text.extend(c.to_lowercase()),
            }
        }
        Self(text.trim_end().into())
    }

    /// The text without literals.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for QueryFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueryFingerprint({:?})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_white_space_do_not_count() {
        let one = QueryFingerprint::of("SELECT  a1 FROM t\n WHERE b = 12.5 AND c = 'it''s' ");
        assert_eq!(
            one,
            QueryFingerprint::of("select a1 from t where b = 7 and c = 'x'")
        );
        assert_eq!(one.as_str(), "select a1 from t where b = ? and c = ?");
    }

    #[test]
    fn names_count() {
        assert_ne!(
            QueryFingerprint::of("SELECT a1"),
            QueryFingerprint::of("SELECT a2")
        );
        assert_ne!(
            QueryFingerprint::of("SELECT \"A\""),
            QueryFingerprint::of("SELECT \"a\"")
        );
        assert_ne!(
            QueryFingerprint::of("SELECT $1"),
            QueryFingerprint::of("SELECT $2")
        );
    }
}
