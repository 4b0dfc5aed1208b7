//! What statements have in common that differ only in their values.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use rapidhash::v3::rapidhash_v3;

/// Bytes of a statement's text that its fingerprint keeps. Beyond them only the hash of the whole tells statements
/// apart, so that a megabyte of SQL costs no more memory than a line.
pub const MAX_FINGERPRINT_BYTES: usize = 1024;

/// A statement's text without its literals and comments, its white space folded, its unquoted names in lower case.
///
/// A list of values behind `IN` counts as one value, whatever its length. Cheap to clone.
///
/// Good enough for statistics and affinity, where a mistake costs a little time. **Never a key of a cache**: two
/// statements with the same fingerprint have different answers.
#[derive(Clone)]
pub struct QueryFingerprint {
    /// Of the whole text, the part that is not kept included.
    hash: u64,
    text: Arc<str>,
}

impl QueryFingerprint {
    /// The fingerprint of a statement. Any text has one, also if it is no SQL.
    #[must_use]
    pub fn of(sql: &str) -> Self {
        let text = Lexer::new(sql).without_literals();
        let kept = text.floor_char_boundary(MAX_FINGERPRINT_BYTES);
        Self {
            hash: rapidhash_v3(text.as_bytes()),
            text: text[..kept].into(),
        }
    }

    /// The text without literals, cut off after [`MAX_FINGERPRINT_BYTES`].
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for QueryFingerprint {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.text == other.text
    }
}

impl Eq for QueryFingerprint {}

impl Hash for QueryFingerprint {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for QueryFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueryFingerprint({:?})", self.text)
    }
}

impl fmt::Display for QueryFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Knows as much of PostgreSQL's lexical rules as is needed to see where literals, comments and quoted names end, with
/// `standard_conforming_strings` on. What never ends, ends with the text.
struct Lexer<'s> {
    sql: &'s str,
    at: usize,
    out: String,
    /// White space or a comment was passed and is not in `out` yet.
    space: bool,
    /// Between the parentheses of `IN (`.
    in_list: bool,
}

impl<'s> Lexer<'s> {
    fn new(sql: &'s str) -> Self {
        Self {
            sql,
            at: 0,
            out: String::with_capacity(sql.len().min(4 * MAX_FINGERPRINT_BYTES)),
            space: false,
            in_list: false,
        }
    }

    fn without_literals(mut self) -> String {
        while let Some(byte) = self.peek(0) {
            match byte {
                b'-' if self.peek(1) == Some(b'-') => self.line_comment(),
                b'/' if self.peek(1) == Some(b'*') => self.block_comment(),
                b'\'' => self.string(false),
                b'"' => self.quoted_name(),
                b'$' => self.dollar(),
                b'0'..=b'9' => self.number(),
                b'.' if self.peek(1).is_some_and(|next| next.is_ascii_digit()) => self.number(),
                b'(' => {
                    self.in_list = self.last_word_is_in();
                    self.copy(1);
                }
                b')' => {
                    self.in_list = false;
                    self.copy(1);
                }
                _ if is_space(byte) => {
                    self.at += 1;
                    self.space = true;
                }
                _ if is_word_start(byte) => self.word(),
                _ => self.copy(1),
            }
        }
        let length = self.out.trim_end_matches([';', ' ']).len();
        self.out.truncate(length);
        self.out
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.sql.as_bytes().get(self.at + ahead).copied()
    }

    /// Length of the run of bytes from here that are all like this.
    fn run(&self, like: impl Fn(u8) -> bool) -> usize {
        let rest = &self.sql.as_bytes()[self.at..];
        rest.iter()
            .position(|byte| !like(*byte))
            .unwrap_or(rest.len())
    }

    /// Moves behind the next occurrence, or to the end.
    fn skip_past(&mut self, what: &str) {
        let rest = &self.sql[self.at..];
        self.at += rest.find(what).map_or(rest.len(), |at| at + what.len());
    }

    /// Takes over the white space that was passed, as one space.
    fn flush_space(&mut self) {
        if std::mem::take(&mut self.space) && !self.out.is_empty() {
            self.out.push(' ');
        }
    }

    fn copy(&mut self, length: usize) {
        self.flush_space();
        self.out.push_str(&self.sql[self.at..self.at + length]);
        self.at += length;
    }

    /// Stands for a literal. Another one in the same list adds nothing.
    fn literal(&mut self) {
        let listed = self.out.trim_end_matches([',', ' ']);
        if self.in_list && listed.len() < self.out.len() && listed.ends_with('?') {
            self.out.truncate(listed.len());
            self.space = false;
        } else {
            self.flush_space();
            self.out.push('?');
        }
    }

    fn last_word_is_in(&self) -> bool {
        let bytes = self.out.trim_end().as_bytes();
        bytes.ends_with(b"in")
            && bytes
                .len()
                .checked_sub(3)
                .is_none_or(|at| !is_word(bytes[at]))
    }

    fn line_comment(&mut self) {
        self.at += self.run(|byte| byte != b'\n' && byte != b'\r');
        self.space = true;
    }

    /// They nest.
    fn block_comment(&mut self) {
        let mut depth = 0_usize;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b'/'), Some(b'*')) => {
                    depth += 1;
                    self.at += 2;
                }
                (Some(b'*'), Some(b'/')) => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        break;
                    }
                }
                (Some(_), _) => self.at += 1,
                (None, _) => break,
            }
        }
        self.space = true;
    }

    /// From the opening quote. A doubled quote belongs to the string; so does one behind a backslash, if those escape.
    fn string(&mut self, backslash_escapes: bool) {
        self.at += 1;
        while let Some(byte) = self.peek(0) {
            match byte {
                b'\\' if backslash_escapes => self.at += 2,
                b'\'' if self.peek(1) == Some(b'\'') => self.at += 2,
                b'\'' => {
                    self.at += 1;
                    break;
                }
                _ => self.at += 1,
            }
        }
        // An escape at the very end, or of a character of several bytes.
        self.at = self.sql.ceil_char_boundary(self.at.min(self.sql.len()));
        self.literal();
    }

    fn quoted_name(&mut self) {
        let begin = self.at;
        loop {
            self.at += 1;
            self.skip_past("\"");
            if self.peek(0) != Some(b'"') {
                break;
            }
        }
        let length = self.at - begin;
        self.at = begin;
        self.copy(length);
    }

    /// A parameter, `$1`, or a string, `$tag$...$tag$`.
    fn dollar(&mut self) {
        let begin = self.at;
        self.at += 1;
        if self.peek(0).is_some_and(|next| next.is_ascii_digit()) {
            let length = 1 + self.run(|byte| byte.is_ascii_digit());
            self.at = begin;
            return self.copy(length);
        }
        let tag = self.run(|byte| is_word(byte) && byte != b'$');
        self.at += tag;
        if self.peek(0) == Some(b'$') {
            self.at += 1;
            let delimiter = &self.sql[begin..self.at];
            self.skip_past(delimiter);
            self.literal();
        } else {
            self.at = begin;
            self.copy(1);
        }
    }

    fn number(&mut self) {
        let is_hexadecimal =
            self.peek(0) == Some(b'0') && matches!(self.peek(1), Some(b'x' | b'X'));
        let mut previous = 0;
        while let Some(byte) = self.peek(0) {
            let is_sign = matches!(byte, b'+' | b'-')
                && matches!(previous, b'e' | b'E')
                && !is_hexadecimal
                && self.peek(1).is_some_and(|next| next.is_ascii_digit());
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_') || is_sign) {
                break;
            }
            previous = byte;
            self.at += 1;
        }
        self.literal();
    }

    /// A name or keyword, or the letter in front of a string that says what kind it is.
    fn word(&mut self) {
        let length = self.run(is_word);
        let word = &self.sql[self.at..self.at + length];
        let is_prefix_of_string = |prefixes: &[&str], quote: &str| {
            prefixes
                .iter()
                .any(|prefix| word.eq_ignore_ascii_case(prefix))
                && self.sql[self.at + length..].starts_with(quote)
        };
        if is_prefix_of_string(&["e", "b", "x", "n"], "'") {
            let escapes = word.eq_ignore_ascii_case("e");
            self.at += 1;
            self.string(escapes);
        } else if is_prefix_of_string(&["u"], "&'") {
            self.at += 2;
            self.string(false);
        } else {
            self.flush_space();
            self.out.push_str(&word.to_ascii_lowercase());
            self.at += length;
        }
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0b' | b'\x0c')
}

/// Bytes of characters beyond ASCII are letters to PostgreSQL, all of them.
fn is_word_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_word(byte: u8) -> bool {
    is_word_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(sql: &str) -> String {
        QueryFingerprint::of(sql).as_str().to_owned()
    }

    #[test]
    fn values_and_white_space_do_not_count() {
        for sql in [
            "SELECT  a1 FROM t\n WHERE b = 12.5 AND c = 'it''s' ",
            "select a1 from t where b = 7 and c = 'x';",
            "select a1 from t where b = .5e-10 and c = E'it\\'s'",
            "select a1 from t where b = 0xFFe and c = $$it's$$",
            "select a1 from t where b = 1_000 and c = $q$ $$ $ $q$ ; ",
            "select a1 from t where b = X'1f' and c = U&'\\0441'",
            "/* it's /* nested */ */ select a1 -- don't\nfrom t where b = 1e+5 and c = N'x'",
            "select a1 from t where b = 1 and c = E'\\",
        ] {
            assert_eq!(text(sql), "select a1 from t where b = ? and c = ?", "{sql}");
        }
    }

    #[test]
    fn names_parameters_and_operators_count() {
        for (one, other) in [
            ("SELECT a1", "SELECT a2"),
            ("SELECT \"A\"", "SELECT \"a\""),
            ("SELECT \"a\"\"b\"", "SELECT \"a\"\"c\""),
            ("SELECT $1", "SELECT $2"),
            ("SELECT a - 1", "SELECT a + 1"),
            ("SELECT f(1)", "SELECT f(1, 2)"),
            ("SELECT ж1", "SELECT ж2"),
        ] {
            assert_ne!(QueryFingerprint::of(one), QueryFingerprint::of(other));
        }
        // Not an exponent: a hexadecimal number, and something taken from it.
        assert_eq!(text("SELECT 0x1e-5"), "select ?-?");
        assert_eq!(text("SELECT a$1, $1, 1"), "select a$1, $1, ?");
    }

    #[test]
    fn lists_of_any_length_are_the_same() {
        for sql in ["a IN (1)", "a in (1, 2,3 , 'x')", "a IN\n(1,\n$$2$$)"] {
            assert_eq!(text(sql).replace("in (", "in("), "a in(?)", "{sql}");
        }
        assert_eq!(text("a IN (f(1, 2), 3)"), "a in (f(?, ?), ?)");
        assert_eq!(text("min (1, 2)"), "min (?, ?)");
        assert_eq!(text("VALUES (1, 2)"), "values (?, ?)");
    }

    #[test]
    fn long_texts_are_told_apart_but_not_kept() {
        let long = format!("SELECT {}", "a, ".repeat(10_000));
        let (one, other) = (format!("{long} b"), format!("{long} c"));
        let fingerprint = QueryFingerprint::of(&one);
        assert_eq!(fingerprint.as_str().len(), MAX_FINGERPRINT_BYTES);
        assert_eq!(fingerprint, QueryFingerprint::of(&one));
        assert_ne!(fingerprint, QueryFingerprint::of(&other));
    }

    fn literal() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>().prop_map(|value| format!("'{}'", value.replace('\'', "''"))),
            any::<String>().prop_map(|value| {
                format!("E'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
            }),
            any::<String>()
                .prop_filter("the delimiter", |value| !value.contains("$q"))
                .prop_map(|value| format!("$q${value}$q$")),
            any::<u64>().prop_map(|value| value.to_string()),
            (0.0..1e300_f64).prop_map(|value| format!("{value:e}")),
        ]
    }

    proptest! {
        #[test]
        fn no_value_shows(one in literal(), two in literal()) {
            prop_assert_eq!(
                text(&format!("INSERT INTO t(a, b) VALUES ({one}, {two})")),
                "insert into t(a, b) values (?, ?)"
            );
        }

        #[test]
        fn any_text_has_a_bounded_fingerprint(sql in r#"[-a-c$'"\\/*()?,;.0-9EeUuиn& \n]{0,80}|\PC{0,2000}"#) {
            let fingerprint = QueryFingerprint::of(&sql);
            prop_assert!(fingerprint.as_str().len() <= MAX_FINGERPRINT_BYTES);
            prop_assert_eq!(&fingerprint, &QueryFingerprint::of(&sql));
        }
    }
}
