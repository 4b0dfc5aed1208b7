//! A statement's text less its literals: what can share one classification.
//!
//! Applications that write values into their SQL send texts without end that differ in nothing but
//! these values. Classification depends on a literal only if it says `now` or names a setting, so
//! texts with equal skeletons have equal classes (there is a property test for that), and the hot
//! path parses each *shape* once. Answers are never shared this way: their key is the exact text.

use std::ops::Range;

use super::datetime::mentions_now;

/// Stands for an integer that fits the grammar's integer constants.
const INTEGER: u8 = 1;
/// Stands for any other number.
const NUMBER: u8 = 2;
/// Stands for a plain string.
const STRING: u8 = 3;

/// Statements with a skeleton, by their first word.
const STARTS: [&[u8]; 7] = [
    b"SELECT", b"INSERT", b"UPDATE", b"DELETE", b"VALUES", b"WITH", b"TABLE",
];

/// Writes the skeleton of `sql` to `out`, which is cleared first.
///
/// Gives false if the text has none and must stand for itself: it starts with another word, or holds
/// comments, a literal with a prefix, backslashes, dollar quotes, one of the words for the current
/// moment, several statements, or anything else out of the ordinary. `out` is of no use then.
///
/// The skeleton is the same whatever `standard_conforming_strings` says, since strings with a
/// backslash have none.
pub fn skeleton(sql: &str, out: &mut Vec<u8>) -> bool {
    scan(sql, out, |_| {})
}

/// Where the literals of `sql` stand, in the order of the text. `None` if it has no skeleton.
pub(super) fn literals(sql: &str) -> Option<Vec<Range<usize>>> {
    let mut found = Vec::new();
    scan(sql, &mut Vec::new(), |place| found.push(place)).then_some(found)
}

/// Writes the skeleton, and tells of each literal that it leaves out.
fn scan(sql: &str, out: &mut Vec<u8>, mut literal: impl FnMut(Range<usize>)) -> bool {
    out.clear();
    out.reserve(sql.len());
    let bytes = sql.as_bytes();
    let Some(start) = bytes.iter().position(|&b| !is_space(b)) else {
        return false;
    };
    if !STARTS.iter().any(|word| {
        bytes[start..]
            .get(..word.len())
            .is_some_and(|first| first.eq_ignore_ascii_case(word))
    }) {
        return false;
    }
    let mut at = start;
    // What lies between `run` and `at` is taken over as it is.
    let mut run = start;
    let mut after_string = false;
    while let Some(&byte) = bytes.get(at) {
        let rest = &bytes[at..];
        let (length, kind) = match KINDS[usize::from(byte)] {
            Kind::Space => {
                // Two strings with a line break between them are one.
                at += 1;
                continue;
            }
            Kind::Other => (1, None),
            Kind::Word => match word(rest) {
                Some(length) => (length, None),
                None => return false,
            },
            Kind::Digit => match number(rest) {
                Some((length, kind)) => (length, Some(kind)),
                None => return false,
            },
            Kind::Dot if !rest.get(1).is_some_and(u8::is_ascii_digit) => (1, None),
            Kind::Dot => match number(rest) {
                // In `t.1` the dot would belong to the name: no such thing is valid SQL.
                Some((length, kind)) if at == 0 || !is_word(bytes[at - 1]) => (length, Some(kind)),
                _ => return false,
            },
            Kind::Quote => match string(rest) {
                Some(length) if !after_string => (length, Some(STRING)),
                _ => return false,
            },
            Kind::DoubleQuote => match memchr::memchr(b'"', &rest[1..]) {
                Some(inside) if &rest[1..=inside] != b"set_config" => (inside + 2, None),
                _ => return false,
            },
            Kind::Dollar => match rest[1..].iter().take_while(|b| b.is_ascii_digit()).count() {
                0 => return false,
                digits if rest.get(1 + digits).is_some_and(|&b| is_word(b)) => return false,
                digits => (1 + digits, None),
            },
            Kind::Comment if rest.get(1) == Some(if byte == b'-' { &b'-' } else { &b'*' }) => {
                return false;
            }
            Kind::Comment => (1, None),
            Kind::Semicolon => {
                out.extend_from_slice(&bytes[run..at]);
                return rest[1..].iter().all(|&b| is_space(b));
            }
            Kind::Refused => return false,
        };
        if let Some(kind) = kind {
            out.extend_from_slice(&bytes[run..at]);
            out.push(kind);
            literal(at..at + length);
            run = at + length;
        }
        at += length;
        after_string = kind == Some(STRING);
    }
    out.extend_from_slice(&bytes[run..]);
    true
}

/// What a byte is where no word, number or string goes on.
#[derive(Clone, Copy)]
enum Kind {
    Comment,
    Digit,
    Dollar,
    Dot,
    DoubleQuote,
    Other,
    Quote,
    Refused,
    Semicolon,
    Space,
    Word,
}

const KINDS: [Kind; 256] = {
    let mut kinds = [Kind::Other; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "it is less than 256")]
        let kind = match byte as u8 {
            b'A'..=b'Z' | b'a'..=b'z' | b'_' | 0x80.. => Kind::Word,
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => Kind::Space,
            b'0'..=b'9' => Kind::Digit,
            b'.' => Kind::Dot,
            b'\'' => Kind::Quote,
            b'"' => Kind::DoubleQuote,
            b'$' => Kind::Dollar,
            b'-' | b'/' => Kind::Comment,
            b';' => Kind::Semicolon,
            0..=0x1f | 0x7f | b'\\' => Kind::Refused,
            _ => Kind::Other,
        };
        kinds[byte] = kind;
        byte += 1;
    }
    kinds
};

/// Which bytes continue a name or a key word.
const IN_WORD: [bool; 256] = {
    let mut in_word = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "it is less than 256")]
        let one = byte as u8;
        in_word[byte] = one.is_ascii_alphanumeric() || matches!(one, b'_' | b'$' | 0x80..);
        byte += 1;
    }
    in_word
};

/// Length of the key word or name at the start of `rest`; `None` if the classification of what
/// follows depends on literals, or if it is the prefix of one.
fn word(rest: &[u8]) -> Option<usize> {
    let length = rest.iter().take_while(|&&b| is_word(b)).count();
    match rest.get(length) {
        // E'..', B'..', X'..', N'..', and any type name written before a string without a space.
        Some(b'\'') => return None,
        // U&'..' and U&".."
        Some(b'&') if length == 1 => return None,
        _ => {}
    }
    match length {
        // The grammar rejects FLOAT(54): whether such a text parses depends on the number.
        5 if rest[..5].eq_ignore_ascii_case(b"float") => None,
        10 if rest[..10].eq_ignore_ascii_case(b"set_config") => None,
        _ => Some(length),
    }
}

/// Length and placeholder of the number at the start of `rest`.
fn number(rest: &[u8]) -> Option<(usize, u8)> {
    let digits = |from: usize| {
        rest[from..]
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .count()
    };
    let integer = digits(0);
    let mut length = integer;
    // The grammar tells integers that fit 32 bits from all other numbers. Ten digits may or may not.
    let mut kind = if integer < 10 { INTEGER } else { NUMBER };
    if integer == 10 {
        return None;
    }
    if rest.get(length) == Some(&b'.') {
        length += 1 + digits(length + 1);
        kind = NUMBER;
    }
    if matches!(rest.get(length), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(rest.get(length + 1), Some(b'+' | b'-')));
        match digits(length + 1 + sign) {
            0 => return None,
            exponent => length += 1 + sign + exponent,
        }
        kind = NUMBER;
    }
    match rest.get(length) {
        // 1from, 0x1F, 1_000, 1..2: not a plain number.
        Some(&b) if is_word(b) || b == b'.' => None,
        _ => Some((length, kind)),
    }
}

/// Length of the plain string at the start of `rest`; `None` if it must stand for itself.
fn string(rest: &[u8]) -> Option<usize> {
    let mut end = 1;
    loop {
        end += memchr::memchr2(b'\'', b'\\', &rest[end..])?;
        if rest[end] == b'\\' {
            return None;
        }
        end += 1;
        if rest.get(end) != Some(&b'\'') {
            break;
        }
        end += 1;
    }
    (!mentions_now(&rest[1..end - 1])).then_some(end)
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// Whether a byte continues a name or a key word.
fn is_word(byte: u8) -> bool {
    IN_WORD[usize::from(byte)]
}

#[cfg(test)]
mod tests {
    use heliosdb_pooling::QueryFingerprint;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::sql::fixture::{catalog, scope};
    use crate::sql::{Catalog, classify};

    fn of(sql: &str) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        skeleton(sql, &mut out).then_some(out)
    }

    #[test]
    fn literals_of_a_kind_are_alike_and_kinds_differ() {
        let base = of("SELECT * FROM t WHERE a = 1 AND b = 'x'").expect("plain");
        assert_eq!(
            of("SELECT * FROM t WHERE a = 234 AND b = 'it''s; -- 5'"),
            Some(base.clone())
        );
        assert_ne!(
            of("SELECT * FROM t WHERE a = 1.5 AND b = 'x'"),
            Some(base.clone())
        );
        assert_ne!(
            of("SELECT * FROM t WHERE a = 'x' AND b = 1"),
            Some(base.clone())
        );
        assert_ne!(
            of("SELECT * FROM t WHERE a = 12345678901 AND b = 'x'"),
            Some(base.clone())
        );
        assert_ne!(
            of("SELECT * FROM t WHERE a = $1 AND b = 'x'"),
            Some(base.clone())
        );
        assert_ne!(
            of("SELECT * FROM t WHERE a = -1 AND b = 'x'"),
            Some(base.clone())
        );
        assert_ne!(
            of("SELECT * FROM \"t\" WHERE a = 1 AND b = 'x'"),
            Some(base)
        );
    }

    #[test]
    fn forms_of_a_number_are_recognised() {
        let number = of("SELECT 1.5");
        for text in [
            "SELECT 2.",
            "SELECT .5",
            "SELECT 1e5",
            "SELECT 1.5E-3",
            "SELECT 12345678901",
        ] {
            assert_eq!(of(text), number, "{text}");
        }
        assert_eq!(of("SELECT 1::int"), of("SELECT 27::int"));
        assert_eq!(of("SELECT a1, a[2] FROM t2"), of("SELECT a1, a[3] FROM t2"));
        assert_ne!(of("SELECT a1 FROM t"), of("SELECT a2 FROM t"));
        assert_ne!(of("SELECT $1"), of("SELECT $2"));
    }

    #[test]
    fn whatever_is_unusual_stands_for_itself() {
        for text in [
            "",
            "  ",
            "BEGIN",
            "SET a = 1",
            "SELECT E'a'",
            "SELECT e'a'",
            "SELECT b'1'",
            "SELECT x'1'",
            "SELECT U&'a'",
            "SELECT U&\"a\"",
            "SELECT date'2026-01-01'",
            "SELECT 'a\\b'",
            "SELECT $$a$$",
            "SELECT $q$a$q$",
            "SELECT 1 -- x",
            "SELECT /* x */ 1",
            "SELECT 1; SELECT 2",
            "SELECT 'now'",
            "SELECT 'Today'::date",
            "SELECT 'to'\n'day'",
            "SELECT set_config('a', 'b', false)",
            "SELECT SET_CONFIG('a', 'b', false)",
            "SELECT \"set_config\"('a', 'b', false)",
            "SELECT 1from t",
            "SELECT 0x1F",
            "SELECT 1_000",
            "SELECT 1..2",
            "SELECT 1e",
            "SELECT 'open",
            "SELECT \"open",
            "SELECT 1\u{0}",
            "SELECT $1a",
            "SELECT 1::float(24)",
            "SELECT 2147483647",
            "SELECT \u{1}",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn literals_are_found_where_they_stand() {
        let of = |sql: &'static str| -> Option<Vec<&'static str>> {
            Some(
                literals(sql)?
                    .into_iter()
                    .map(|place| &sql[place])
                    .collect(),
            )
        };
        assert_eq!(
            of("SELECT a1, 'it''s' FROM t WHERE b=-12 AND c = .5 OR d = 12345678901 ;"),
            Some(vec!["'it''s'", "12", ".5", "12345678901"])
        );
        assert_eq!(of("SELECT $1, 'a\\b'"), None);
    }

    #[test]
    fn a_trailing_semicolon_changes_nothing() {
        assert_eq!(of("SELECT 1; \n"), of("SELECT 1"));
    }
    /// A part of a statement: something fixed, or a literal in two versions.
    #[derive(Clone, Debug)]
    enum Part {
        Fixed(&'static str),
        Literal(String, String),
    }

    const WORDS: &[&str] = &[
        "SELECT",
        "select",
        "WITH x AS (SELECT",
        "INSERT INTO users VALUES (",
        "DELETE FROM orders WHERE",
        "UPDATE users SET a =",
        "VALUES (",
        "(",
        ")",
        ",",
        "*",
        "FROM",
        "WHERE",
        "users",
        "\"Orders\"",
        "events",
        "at",
        "note",
        "a1",
        "=",
        "-",
        "+",
        "::int",
        "::date",
        "::text",
        "::varchar(",
        "::float(",
        "timestamp(",
        "interval",
        "date",
        "IN (",
        "LIMIT",
        "OFFSET",
        "ORDER BY",
        "GROUP BY",
        "lower(",
        "date(",
        "pg_advisory_lock(",
        "user_volatile(",
        "set_config(",
        "to_char(",
        "age(",
        "nextval(",
        "E",
        "x",
        "U&",
        "$1",
        "$",
        ".",
        ";",
        "--",
        "/*",
        "*/",
        "\"",
        "'",
        "now",
        "INTO",
        "FOR UPDATE",
        "AND",
        "BETWEEN",
        "CASE WHEN",
        "THEN",
        "ELSE",
        "END",
        "ARRAY[",
        "]",
        "COLLATE \"C\"",
        "UNION",
        "JSON_OBJECT(",
        ":",
        "AS",
        "TABLESAMPLE system (",
        "UESCAPE",
        "\n",
        " ",
        "int",
        "\u{e9}",
        "OVERLAPS",
        "EXTRACT(",
        "POSITION(",
        "SUBSTRING(",
        "CAST(",
    ];

    const TEMPLATES: &[&str] = &[
        "SELECT * FROM users WHERE id = {} AND name = {}",
        "SELECT {}::date, date({}), at::date FROM events WHERE at > {}",
        "SELECT lower({}), user_volatile({}), age({}) FROM orders LIMIT {} OFFSET {}",
        "INSERT INTO users VALUES ({}, {}), ({}, {}) ON CONFLICT (id) DO UPDATE SET name = {}",
        "UPDATE orders SET a = {} WHERE id IN ({}, -{}, {})",
        "DELETE FROM users WHERE name LIKE {} AND id BETWEEN {} AND {}",
        "WITH users AS (VALUES ({})) SELECT CASE WHEN id = {} THEN {} ELSE {} END FROM users, orders",
        "SELECT coalesce(at, {})::date, {}::varchar({}), {}::timestamp({}), {}::float({}) FROM events",
        "SELECT set_config({}, {}, false)",
        "SELECT interval {} day, timestamp {}, (ARRAY[{}, {}])[{}], {} COLLATE \"C\"",
        "SELECT extract({} FROM at), substring({} FROM {} FOR {}), pg_advisory_lock({}) FROM events",
        "SELECT E{}, U&{} UESCAPE {}, B{}, {} {}, {}\n{}",
        "SELECT * FROM users TABLESAMPLE system ({}) REPEATABLE ({})",
        "SELECT JSON_OBJECT({}: {}), xmlroot({}, version {}), {} IS JSON",
        "SELECT {}, timestamp({}) {}, interval({}) {}, {}::bit({}), {}::numeric({}, {})",
    ];

    fn literal() -> impl Strategy<Value = String> {
        prop_oneof![
            "[0-9]{1,12}",
            "[0-9]{0,3}\\.[0-9]{0,3}",
            "[0-9]{1,3}(\\.[0-9]{1,2})?[eE][+-]?[0-9]{1,3}",
            "'([a-z0-9 ;$\"-]|'')*'",
            select(vec![
                "'now'",
                "' Today'",
                "'x now y'",
                "'to'\n'day'",
                "'users'",
                "'a\\b'",
                "''",
                "'''now'''",
                "0x1F",
                "1_000",
                "9999999999",
                "2147483648",
                "54",
                "24",
                "1from",
                "1..2",
                "'search_path'",
                "''''''",
                "'/*'",
                "'--'",
            ])
            .prop_map(str::to_owned),
        ]
    }

    fn parts() -> impl Strategy<Value = Vec<Part>> {
        let part = prop_oneof![
            5 => select(WORDS).prop_map(Part::Fixed),
            3 => (literal(), literal()).prop_map(|(a, b)| Part::Literal(a, b)),
        ];
        proptest::collection::vec(part, 0..14)
    }

    fn check(a: &str, b: &str) -> Result<(), TestCaseError> {
        if let (Some(one), Some(other)) = (of(a), of(b))
            && one == other
        {
            let fingerprints = [a, b].map(QueryFingerprint::of);
            prop_assert_eq!(&fingerprints[0], &fingerprints[1], "{} and {}", a, b);
            for conforming in [true, false] {
                let mut scope = scope(&["public"]);
                scope.standard_conforming_strings = conforming;
                CATALOG.with(|catalog| {
                    let classes = (classify(a, catalog, &scope), classify(b, catalog, &scope));
                    prop_assert_eq!(&classes.0, &classes.1, "{} and {}", a, b);
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    thread_local! {
        static CATALOG: Catalog = catalog();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn equal_skeletons_mean_equal_classes(
            start in select(&WORDS[..7]),
            parts in parts(),
            spaced in any::<bool>(),
        ) {
            let (mut a, mut b) = (start.to_owned(), start.to_owned());
            for part in &parts {
                let (one, other) = match part {
                    Part::Fixed(text) => (*text, *text),
                    Part::Literal(one, other) => (one.as_str(), other.as_str()),
                };
                for (sql, text) in [(&mut a, one), (&mut b, other)] {
                    if spaced {
                        sql.push(' ');
                    }
                    sql.push_str(text);
                }
            }
            check(&a, &b)?;
        }

        #[test]
        fn equal_skeletons_of_valid_statements_mean_equal_classes(
            template in select(TEMPLATES),
            literals in proptest::collection::vec((literal(), literal()), 10),
            differs in proptest::collection::vec(any::<bool>(), 10),
        ) {
            let fill = |second: bool| {
                let mut sql = String::new();
                for (at, piece) in template.split("{}").enumerate() {
                    if at > 0 {
                        let (one, other) = &literals[at - 1];
                        sql.push_str(if second && differs[at - 1] { other } else { one });
                    }
                    sql.push_str(piece);
                }
                sql
            };
            check(&fill(false), &fill(true))?;
        }

        #[test]
        fn no_text_makes_the_lexer_panic(sql in ".{0,60}") {
            of(&format!("SELECT {sql}"));
        }
    }
}
