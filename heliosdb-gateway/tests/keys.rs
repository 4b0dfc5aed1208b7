//! Two questions that PostgreSQL answers differently never share an answer.
//!
//! A question is a session (user, startup packet, what was set since and how) and a request (text, protocol, parameter
//! types, values and formats, result formats, row limit). Questions are made in pairs that differ in one dimension; both
//! are asked through helios, more than once, so that the later answers may come from memory, and of the server itself.
//! Every answer must be the server's own, byte for byte, the OIDs and positions in it included. (Notices and reports of
//! settings are left out: they come beside an answer. And a setting of users that was ever set on a connection is empty
//! when it is reset, and no longer absent: nothing that a pool can do undoes that.)
//!
//! A run that fails prints its seed; `HELIOS_KEYS_SEED` repeats it, `HELIOS_KEYS_PAIRS` makes it longer.
//!
//! The test has been seen to fail with each of these broken:
//! * a setting left out of the key: `timezone` or `search_path` added to `is_harmless`;
//! * a text's comments left out of it, or its upper case (in `ReadUnit::key`);
//! * parameter types, or result formats, left out of it (in `ReadUnit::put_params`);
//! * a half of DateStyle forgotten (`Settings::changed_to`), the role kept behind SET SESSION AUTHORIZATION
//!   (`Settings::change`).

use std::collections::BTreeMap;

use crate::support::Stack;
use crate::support::raw::{Wire, message, query, sync};

const SCHEMA: &str = "
CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; GRANT bob TO alice;
CREATE SCHEMA a; CREATE SCHEMA b; CREATE SCHEMA alice; CREATE SCHEMA bob;
CREATE TABLE a.t (v text, n int); INSERT INTO a.t VALUES ('in a', 1), ('x--1', NULL);
CREATE TABLE b.t (v text, n int); INSERT INTO b.t VALUES ('in b', 2);
CREATE TABLE public.t (v text, n int); INSERT INTO public.t VALUES ('in public', 3), ('select', 4);
CREATE TABLE alice.own (v text); INSERT INTO alice.own VALUES ('of alice');
CREATE TABLE bob.own (v text); INSERT INTO bob.own VALUES ('of bob');
CREATE VIEW public.w AS SELECT v FROM a.t;
CREATE TABLE public.\"T\" (v text); INSERT INTO public.\"T\" VALUES ('upper');
CREATE TABLE moments (d date, at timestamptz, plain timestamp, i interval, f float8, r real, b bytea, m money);
INSERT INTO moments VALUES ('2024-02-03', '2024-02-03 23:30+00', '2024-07-08 12:00', '-1 year 2 days 03:04:05', 0.1, 1.1,
    '\\x00ff', 12.5);
CREATE TABLE accents (v text); INSERT INTO accents VALUES ('caf\u{e9}');
CREATE TABLE docs (v text); INSERT INTO docs VALUES ('the running foxes');
CREATE TABLE grouped (g int); INSERT INTO grouped SELECT (n * 7) % 11 FROM generate_series(1, 200) n;
CREATE TABLE secret (v text, who text); INSERT INTO secret VALUES ('for alice', 'alice'), ('for bob', 'bob');
ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON secret USING (who = current_user);
CREATE FUNCTION tenant() RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT coalesce(current_setting(''my.tenant'', true), '''')';
CREATE FUNCTION logged() RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT coalesce(current_setting(''log_of.app'', true), '''')';
GRANT ALL ON SCHEMA a, b, alice, bob TO PUBLIC;
GRANT SELECT ON moments, accents, docs, grouped, secret, w, public.t, public.\"T\" TO PUBLIC;
GRANT SELECT ON a.t TO alice; GRANT SELECT ON b.t TO bob;
GRANT SELECT ON alice.own TO alice; GRANT SELECT ON bob.own TO bob;
";

/// Settings that change answers, values that make a difference, and statements that show it.
const SETTINGS: &[(&str, &[&str], &[&str])] = &[
    (
        "search_path",
        &[
            "public",
            "a",
            "b",
            "a, b",
            "b, a",
            "pg_temp, b",
            "\"$user\", public",
            "nowhere",
        ],
        &[
            "SELECT v FROM t ORDER BY 1",
            "TABLE t",
            "SELECT * FROM own",
            "SELECT count(*) FROM t, w",
        ],
    ),
    (
        "role",
        &["alice", "bob", "postgres", "none"],
        &[
            "SELECT v FROM secret",
            "SELECT v FROM own",
            "SELECT v FROM a.t",
            "SELECT v FROM b.t",
            "SELECT current_user",
        ],
    ),
    (
        "session_authorization",
        &["alice", "bob", "postgres"],
        &[
            "SELECT v FROM secret",
            "SELECT v FROM own",
            "SELECT v FROM b.t",
            "SELECT session_user",
        ],
    ),
    (
        "TimeZone",
        &["UTC", "Asia/Tokyo", "America/New_York", "-7", "<+02>-02"],
        &[
            "SELECT at FROM moments",
            "SELECT date_trunc('day', at) FROM moments",
            "SELECT at::date FROM moments",
            "SELECT timestamptz '2024-07-01 12:00'",
            "SELECT plain::timestamptz FROM moments",
            "SELECT to_json(at) FROM moments",
        ],
    ),
    (
        "DateStyle",
        &[
            "ISO",
            "SQL",
            "German",
            "Postgres",
            "DMY",
            "MDY",
            "YMD",
            "SQL, DMY",
            "German, MDY",
            "ISO, YMD",
        ],
        &[
            "SELECT d FROM moments",
            "SELECT '01/02/03'::date",
            "SELECT at, plain FROM moments",
            "SELECT concat(d) FROM moments",
            "SELECT d FROM moments WHERE d > '02/01/03'",
        ],
    ),
    (
        "IntervalStyle",
        &["postgres", "sql_standard", "iso_8601", "postgres_verbose"],
        &[
            "SELECT i FROM moments",
            "SELECT interval '-1 2:03:04'",
            "SELECT i::text FROM moments",
        ],
    ),
    (
        "bytea_output",
        &["hex", "escape"],
        &[
            "SELECT b FROM moments",
            "SELECT format('%s', b) FROM moments",
        ],
    ),
    (
        "extra_float_digits",
        &["0", "1", "-5", "3"],
        &[
            "SELECT f, r FROM moments",
            "SELECT (f * 3)::text FROM moments",
            "SELECT json_build_array(r) FROM moments",
        ],
    ),
    (
        "xmlbinary",
        &["base64", "hex"],
        &[
            "SELECT xmlelement(name x, b) FROM moments",
            "SELECT xmlforest(b) FROM moments",
        ],
    ),
    (
        "xmloption",
        &["content", "document"],
        &[
            "SELECT '<a/><b/>'::xml",
            "SELECT xml_is_well_formed('<a/><b/>')",
        ],
    ),
    (
        "standard_conforming_strings",
        &["on", "off"],
        &[
            "SELECT 'a\\n', length('\\\\')",
            "SELECT v FROM t WHERE v = 'a\\\\b'",
        ],
    ),
    (
        "backslash_quote",
        &["on", "off", "safe_encoding"],
        &["SELECT E'it\\'s'"],
    ),
    (
        "quote_all_identifiers",
        &["on", "off"],
        &[
            "SELECT quote_ident(v) FROM t",
            "SELECT format('%I', v) FROM t",
        ],
    ),
    (
        "transform_null_equals",
        &["on", "off"],
        &["SELECT n = NULL FROM t", "SELECT v FROM t WHERE n = NULL"],
    ),
    (
        "array_nulls",
        &["on", "off"],
        &[
            "SELECT '{NULL,a}'::text[]",
            "SELECT ('{NULL}'::text[])[1] IS NULL",
        ],
    ),
    (
        "client_encoding",
        &["UTF8", "LATIN1", "WIN1252", "SQL_ASCII"],
        &[
            "SELECT v FROM accents",
            "SELECT length(v), v FROM accents",
            "SELECT 'caf\u{e9}'",
        ],
    ),
    (
        "lc_monetary",
        &["C", "C.UTF-8"],
        &["SELECT m FROM moments", "SELECT '$1,000.50'::money"],
    ),
    (
        "lc_messages",
        &["C", "C.UTF-8"],
        &["SELECT 1/n FROM t WHERE n > 100"],
    ),
    (
        "default_text_search_config",
        &[
            "pg_catalog.english",
            "pg_catalog.simple",
            "pg_catalog.german",
        ],
        &[
            "SELECT to_tsvector(v) FROM docs",
            "SELECT v FROM docs WHERE to_tsvector(v) @@ plainto_tsquery('run')",
        ],
    ),
    (
        "timezone_abbreviations",
        &["Default", "Australia", "India"],
        &[
            "SELECT timestamptz '2024-01-01 12:00 IST'",
            "SELECT timestamptz '2024-01-01 12:00 EST'",
        ],
    ),
    (
        "enable_hashagg",
        &["on", "off"],
        &[
            "SELECT g, count(*) FROM grouped GROUP BY g",
            "SELECT DISTINCT g FROM grouped",
        ],
    ),
    ("row_security", &["on", "off"], &["SELECT v FROM secret"]),
    (
        "my.tenant",
        &["one", "two", "it''s"],
        &[
            "SELECT tenant()",
            "SELECT coalesce(current_setting('my.tenant', true), '')",
            "SELECT v FROM t WHERE v <> tenant()",
        ],
    ),
    (
        "log_of.app",
        &["one", "two"],
        &[
            "SELECT logged()",
            "SELECT coalesce(current_setting('log_of.app', true), '')",
        ],
    ),
    (
        "application_name",
        &["one", "two"],
        &[
            "SELECT current_setting('application_name')",
            "SELECT v FROM t",
        ],
    ),
    (
        "work_mem",
        &["4MB", "64kB"],
        &[
            "SELECT current_setting('work_mem')",
            "SELECT DISTINCT g FROM grouped",
        ],
    ),
    (
        "default_transaction_isolation",
        &["serializable", "read committed"],
        &[
            "SELECT v FROM t",
            "SELECT current_setting('transaction_isolation')",
        ],
    ),
];

/// Texts that a careless normalisation takes for one another.
const TEXTS: &[&[&str]] = &[
    &[
        "SELECT 1 AS a, '2' AS b",
        "SELECT '2' AS a, 1 AS b",
        "SELECT 2 AS a, '1' AS b",
    ],
    &[
        "SELECT v FROM t WHERE n = 3 AND v = '4'",
        "SELECT v FROM t WHERE v = '3' AND n = 4",
        "SELECT v FROM t WHERE n = 4 AND v = 'select'",
    ],
    &[
        "SELECT 'x--1'",
        "SELECT 'x--2'",
        "SELECT 'x' --1",
        "SELECT 'x'",
    ],
    &[
        "SELECT '/*1*/'",
        "SELECT '/*2*/'",
        "SELECT ''",
        "SELECT /*1*/ ''",
    ],
    &[
        "SELECT v FROM \"T\"",
        "SELECT v FROM \"t\"",
        "SELECT v FROM T",
        "select v from t",
    ],
    &[
        "SELECT 1 AS \"A\"",
        "SELECT 1 AS \"a\"",
        "SELECT 1 AS A",
        "SELECT 1 AS  A",
    ],
    &[
        "SELECT $$a$$",
        "SELECT $$A$$",
        "SELECT $x$a$x$",
        "SELECT $a$$x$$a$",
    ],
    &[
        "SELECT 'a  b'",
        "SELECT 'a b'",
        "SELECT  'a b'",
        "SELECT 'a\tb'",
        "SELECT 'a\nb'",
    ],
    &[
        "SELECT 'select'",
        "SELECT 'SELECT'",
        "SELECT 'Select'",
        "SELECT\n'select'",
    ],
    &[
        "SELECT v FROM t WHERE v = 'select'",
        "SELECT v FROM t WHERE v = 'SELECT'",
        "SELECT v FROM t WHERE v = 'select '",
    ],
    &[
        "SELECT 1",
        "SELECT 1.0",
        "SELECT 1e0",
        "SELECT 01",
        "SELECT '1'",
        "SELECT -1",
        "SELECT - 1",
        "SELECT +1",
    ],
    &[
        "SELECT 12345678901",
        "SELECT 1234567890",
        "SELECT 12345678901.0",
    ],
    &[
        "SELECT E'a\\nb'",
        "SELECT 'a\\nb'",
        "SELECT E'a\\tb'",
        "SELECT U&'\\0061'",
    ],
    &[
        "SELECT v FROM t LIMIT 1",
        "SELECT v FROM t LIMIT 2",
        "SELECT v FROM t OFFSET 1",
        "SELECT v FROM t",
    ],
    &[
        "SELECT v FROM a.t",
        "SELECT v FROM b.t",
        "SELECT v FROM public.t",
        "SELECT \"v\" FROM public.\"t\"",
    ],
    &["SELECT 'a' 'b'", "SELECT 'a'\n'b'", "SELECT 'ab'"],
    &[
        "SELECT v FROM t ORDER BY v",
        "SELECT v FROM t ORDER BY v DESC",
        "SELECT v FROM t ORDER BY 1",
    ],
    &[
        "SELECT 1; ",
        "SELECT 1;",
        "SELECT 1;;",
        "SELECT 1; SELECT 1",
    ],
    &[
        "SELECT 'caf\u{e9}'",
        "SELECT 'cafe\u{301}'",
        "SELECT 'CAF\u{c9}'",
    ],
    &[
        "SELECT b'1'",
        "SELECT B'10'",
        "SELECT x'1'",
        "SELECT '1'::bit",
    ],
    &["VALUES (1, 'a')", "VALUES (1, 'A')", "VALUES ('1', 'a')"],
];

const INT4: u32 = 23;
const INT8: u32 = 20;
const TEXT: u32 = 25;
const DATE: u32 = 1082;
const NUMERIC: u32 = 1700;
const UNKNOWN: u32 = 0;

/// Statements with one parameter each.
const ONE_PARAMETER: [&str; 9] = [
    "SELECT $1",
    "SELECT $1::text",
    "SELECT $1, pg_typeof($1)",
    "SELECT v FROM t WHERE n = $1",
    "SELECT v FROM t WHERE v = $1 OR $1 IS NULL ORDER BY 1",
    "SELECT d FROM moments WHERE d = $1",
    "SELECT n, v FROM t ORDER BY v LIMIT $1",
    "SELECT concat($1, 'x')",
    "SELECT json_build_array($1)",
];

/// A parameter: its type, its format, its value.
type Parameter = (u32, u16, Option<&'static [u8]>);

const PARAMETERS: [Parameter; 16] = [
    (UNKNOWN, 0, Some(b"3")),
    (UNKNOWN, 0, Some(b"4")),
    (UNKNOWN, 0, Some(b"1234")),
    (UNKNOWN, 0, None),
    (UNKNOWN, 0, Some(b"")),
    (INT4, 0, Some(b"3")),
    (INT4, 0, Some(b"1234")),
    (INT4, 1, Some(b"\0\0\0\x03")),
    // As text these four bytes say something else.
    (INT4, 1, Some(b"1234")),
    (INT8, 0, Some(b"3")),
    (TEXT, 0, Some(b"1234")),
    (TEXT, 1, Some(b"1234")),
    (TEXT, 0, Some(b"select")),
    (NUMERIC, 0, Some(b"3")),
    (DATE, 0, Some(b"02/03/2024")),
    (DATE, 0, Some(b"2024-02-03")),
];

/// How a setting comes to be in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Startup,
    Options,
    Set,
    SetConfig,
    InTransaction,
    /// It is not: the transaction is rolled back.
    RolledBack,
    /// It was, for the time of a transaction.
    Local,
    Reset,
}

const WAYS: [Way; 8] = [
    Way::Startup,
    Way::Options,
    Way::Set,
    Way::SetConfig,
    Way::InTransaction,
    Way::RolledBack,
    Way::Local,
    Way::Reset,
];

#[derive(Clone, Debug, PartialEq)]
struct Question {
    user: &'static str,
    settings: Vec<(&'static str, &'static str, Way)>,
    text: String,
    form: Form,
}

#[derive(Clone, Debug, PartialEq)]
enum Form {
    Simple,
    Extended {
        parameter: Option<Parameter>,
        result_formats: Vec<u16>,
        describe: bool,
        rows_max: u32,
        is_named: bool,
    },
    /// Prepared and described only.
    Prepared {
        parameter_type: Option<u32>,
    },
}

/// A question without anything special about it.
fn plain(text: &str) -> Question {
    Question {
        user: "postgres",
        settings: vec![],
        text: text.to_owned(),
        form: Form::Simple,
    }
}

/// All pairs of neighbours, the last and the first too.
fn neighbours<T>(list: &[T]) -> impl Iterator<Item = (&T, &T)> {
    list.iter().zip(list.iter().cycle().skip(1))
}

/// The pairs that every run has: each difference that there is, by itself.
fn pairs_of_each_kind() -> Vec<(Dimension, Question, Question)> {
    let mut pairs = Vec::new();
    for (one, other) in TEXTS.iter().flat_map(|texts| neighbours(texts)) {
        pairs.push((Dimension::Text, plain(one), plain(other)));
    }
    for (name, values, texts) in SETTINGS {
        for (number, (one, other)) in neighbours(values).enumerate() {
            let question = |value| Question {
                settings: vec![(*name, value, Way::Set)],
                ..plain(texts[number % texts.len()])
            };
            pairs.push((Dimension::Setting(name), question(*one), question(*other)));
        }
    }
    // What was set before may decide what a value means: it does for a half of DateStyle, and for the role.
    let styles = SETTINGS.iter().find(|(name, ..)| *name == "DateStyle");
    let (name, values, texts) = styles.expect("it is there");
    for (one, other) in neighbours(values) {
        let text = texts[0];
        let chain = [(*name, *one, Way::Set), (*name, *other, Way::Set)];
        for way in [Way::Set, Way::Startup] {
            let mut before = chain;
            before[0].2 = way;
            let first = Question {
                settings: before.to_vec(),
                ..plain(text)
            };
            let second = Question {
                settings: chain[1..].to_vec(),
                ..plain(text)
            };
            pairs.push((Dimension::Order, first, second));
        }
    }
    let identities = [
        ("role", "bob", Way::Set),
        ("session_authorization", "alice", Way::Set),
    ];
    for text in [
        "SELECT v FROM secret",
        "SELECT v FROM own",
        "SELECT v FROM b.t",
    ] {
        let mut turned = identities;
        turned.reverse();
        let first = Question {
            settings: identities.to_vec(),
            ..plain(text)
        };
        let second = Question {
            settings: turned.to_vec(),
            ..plain(text)
        };
        pairs.push((Dimension::Order, first, second));
    }
    // The same bytes under another type or in another format, and other bytes.
    for (number, text) in ONE_PARAMETER.into_iter().enumerate() {
        let others = neighbours(&PARAMETERS).filter(|_| number < 2);
        for (one, other) in others.chain(alike(&PARAMETERS)) {
            let question = |parameter: &Parameter| Question {
                form: Form::Extended {
                    parameter: Some(*parameter),
                    result_formats: vec![],
                    describe: true,
                    rows_max: 0,
                    is_named: false,
                },
                ..plain(text)
            };
            pairs.push((Dimension::Parameter, question(one), question(other)));
        }
    }
    pairs
}

/// Pairs of parameters with the same value that are not the same.
fn alike(parameters: &[Parameter]) -> impl Iterator<Item = (&Parameter, &Parameter)> {
    parameters.iter().enumerate().filter_map(move |(at, one)| {
        let same = |other: &&Parameter| other.2 == one.2;
        Some((one, parameters[at + 1..].iter().find(same)?))
    })
}

/// What the questions of a pair differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Dimension {
    Form,
    Order,
    Parameter,
    ResultFormat,
    Setting(&'static str),
    Text,
    User,
    Way,
}

#[derive(Default, Debug)]
struct Tally {
    pairs: usize,
    different: usize,
}

struct Maker(fastrand::Rng);

impl Maker {
    fn of<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.0.usize(..from.len())]
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.0.usize(..n) == 0
    }

    fn setting(&mut self) -> (&'static str, &'static str, Way) {
        let (name, values, _) = *self.of(SETTINGS);
        (name, *self.of(values), self.way(name))
    }

    fn way(&mut self, name: &str) -> Way {
        loop {
            let way = *self.of(&WAYS);
            // The server itself reads the one before it knows who asks.
            if name != "session_authorization" || !matches!(way, Way::Startup | Way::Options) {
                return way;
            }
        }
    }

    fn form(&mut self) -> Form {
        match self.0.usize(..5) {
            0 | 1 => Form::Simple,
            2 => Form::Prepared {
                parameter_type: None,
            },
            _ => Form::Extended {
                parameter: None,
                result_formats: self.result_formats(),
                describe: !self.one_in(3),
                rows_max: if self.one_in(4) { 1 } else { 0 },
                is_named: self.one_in(3),
            },
        }
    }

    fn result_formats(&mut self) -> Vec<u16> {
        match self.0.usize(..4) {
            0 => vec![0],
            1 => vec![1],
            _ => vec![],
        }
    }

    fn text(&mut self) -> String {
        if self.one_in(3) {
            let (_, _, texts) = *self.of(SETTINGS);
            (*self.of(texts)).to_owned()
        } else {
            let texts = *self.of(TEXTS);
            (*self.of(texts)).to_owned()
        }
    }

    fn question(&mut self) -> Question {
        let mut settings = Vec::new();
        while self.one_in(2) && settings.len() < 4 {
            settings.push(self.setting());
        }
        Question {
            user: if self.one_in(4) { "alice" } else { "postgres" },
            settings,
            text: self.text(),
            form: self.form(),
        }
    }

    /// Two questions that differ in one dimension.
    fn pair(&mut self) -> (Dimension, Question, Question) {
        let mut one = self.question();
        let mut other = one.clone();
        // Settings are most of what there is to forget.
        let dimension = match self.0.usize(..20) {
            0 => self.users(&mut one, &mut other),
            1 | 2 => self.forms(&mut other),
            3..=5 => self.parameters(&mut one, &mut other),
            6 | 7 => self.formats(&mut one, &mut other),
            8..=10 => self.texts(&mut one, &mut other),
            11 => self.ways(&mut one, &mut other),
            _ => self.values(&mut one, &mut other),
        };
        (dimension, one, other)
    }

    fn users(&mut self, one: &mut Question, other: &mut Question) -> Dimension {
        let texts = [
            "SELECT v FROM secret",
            "SELECT v FROM own",
            "SELECT v FROM a.t",
        ];
        let text = *self.of(&texts);
        for (question, user) in [(one, "alice"), (other, "bob")] {
            question.user = user;
            text.clone_into(&mut question.text);
            question
                .settings
                .retain(|(name, ..)| *name != "session_authorization");
        }
        Dimension::User
    }

    fn forms(&mut self, other: &mut Question) -> Dimension {
        let before = other.form.clone();
        while other.form == before {
            other.form = self.form();
        }
        Dimension::Form
    }

    fn parameters(&mut self, one: &mut Question, other: &mut Question) -> Dimension {
        let text = *self.of(&ONE_PARAMETER);
        let describe = !self.one_in(3);
        let is_named = self.one_in(3);
        let alone = self.one_in(6);
        let first = *self.of(&PARAMETERS);
        let mut second = first;
        while second == first || (alone && second.0 == first.0) {
            second = *self.of(&PARAMETERS);
        }
        for (question, parameter) in [(one, first), (other, second)] {
            text.clone_into(&mut question.text);
            question.form = if alone {
                Form::Prepared {
                    parameter_type: Some(parameter.0),
                }
            } else {
                Form::Extended {
                    parameter: Some(parameter),
                    result_formats: vec![],
                    describe,
                    rows_max: 0,
                    is_named,
                }
            };
        }
        Dimension::Parameter
    }

    fn formats(&mut self, one: &mut Question, other: &mut Question) -> Dimension {
        const TWO_COLUMNS: [&str; 4] = [
            "SELECT n, v FROM t ORDER BY v",
            "SELECT d, at FROM moments",
            "SELECT f, b FROM moments",
            "SELECT 1, 2::int8",
        ];
        const FORMATS: [&[u16]; 6] = [&[], &[0], &[1], &[0, 1], &[1, 0], &[1, 1]];
        let text = *self.of(&TWO_COLUMNS);
        let describe = !self.one_in(3);
        let first = *self.of(&FORMATS);
        let mut second = first;
        while second == first {
            second = *self.of(&FORMATS);
        }
        for (question, formats) in [(one, first), (other, second)] {
            text.clone_into(&mut question.text);
            question.form = Form::Extended {
                parameter: None,
                result_formats: formats.to_vec(),
                describe,
                rows_max: 0,
                is_named: false,
            };
        }
        Dimension::ResultFormat
    }

    fn texts(&mut self, one: &mut Question, other: &mut Question) -> Dimension {
        let texts = *self.of(TEXTS);
        let first = self.0.usize(..texts.len());
        let second = (first + 1 + self.0.usize(..texts.len() - 1)) % texts.len();
        texts[first].clone_into(&mut one.text);
        texts[second].clone_into(&mut other.text);
        Dimension::Text
    }

    fn values(&mut self, one: &mut Question, other: &mut Question) -> Dimension {
        let (name, values, texts) = *self.of(SETTINGS);
        let text = *self.of(texts);
        let way = if self.one_in(3) {
            self.way(name)
        } else {
            Way::Set
        };
        let first = self.0.usize(..values.len());
        let second = (first + 1 + self.0.usize(..values.len() - 1)) % values.len();
        // What is set first may change what the second means, and what is set later may hide it.
        let at = self.0.usize(..=one.settings.len());
        for (question, value) in [(&mut *one, values[first]), (&mut *other, values[second])] {
            text.clone_into(&mut question.text);
            question.settings.insert(at, (name, value, way));
        }
        if self.one_in(4) {
            // Against the setting not being set at all.
            other.settings.remove(at);
        }
        Dimension::Setting(name)
    }

    fn ways(&mut self, one: &mut Question, other: &mut Question) -> Dimension {
        let (name, values, texts) = *self.of(SETTINGS);
        let (text, value) = (*self.of(texts), *self.of(values));
        let first = self.way(name);
        let mut second = first;
        while second == first {
            second = self.way(name);
        }
        for (question, way) in [(one, first), (other, second)] {
            text.clone_into(&mut question.text);
            question.settings.push((name, value, way));
        }
        Dimension::Way
    }
}

impl Question {
    /// A session of this question, if it is let in, and what it was told on the way.
    fn open(&self, port: u16) -> Option<(Wire, String)> {
        let mut startup = Vec::new();
        let mut options = String::new();
        for (name, value, way) in &self.settings {
            match way {
                Way::Startup => startup.push((*name, value.replace("''", "'"))),
                Way::Options => {
                    let value = value.replace("''", "'").replace(' ', "\\ ");
                    options += &format!("-c {name}={value} ");
                }
                _ => {}
            }
        }
        if !options.is_empty() {
            startup.push(("options", options));
        }
        let startup: Vec<(&str, &str)> = startup
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        let mut wire = Wire::login(port, self.user, "postgres", &startup).ok()?;
        let mut told = String::new();
        for (name, value, way) in &self.settings {
            let set = format!("SET {name} TO {}", set_value(name, value));
            let requests = match way {
                Way::Startup | Way::Options => vec![],
                Way::Set => vec![set],
                Way::SetConfig => vec![format!("SELECT set_config('{name}', '{value}', false)")],
                Way::InTransaction => vec!["BEGIN".to_owned(), set, "COMMIT".to_owned()],
                Way::RolledBack => vec!["BEGIN".to_owned(), set, "ROLLBACK".to_owned()],
                Way::Local => vec![
                    "BEGIN".to_owned(),
                    set.replace("SET ", "SET LOCAL "),
                    "COMMIT".to_owned(),
                ],
                Way::Reset => vec![set, format!("RESET {name}")],
            };
            for request in requests {
                told += &wire.query(&request);
            }
        }
        Some((wire, told))
    }

    fn ask(&self, wire: &mut Wire) -> Vec<Vec<u8>> {
        let messages = match &self.form {
            Form::Simple => vec![query(&self.text)],
            Form::Prepared { parameter_type } => {
                vec![
                    parse(b"", &self.text, *parameter_type),
                    message(b'D', b"S\0"),
                    sync(),
                ]
            }
            Form::Extended {
                parameter,
                result_formats,
                describe,
                rows_max,
                is_named,
            } => {
                let name: &[u8] = if *is_named { b"s" } else { b"" };
                let mut messages = vec![];
                if *is_named {
                    // So that it can be asked twice in one session.
                    messages.push(message(b'C', b"Ss\0"));
                    messages.push(sync());
                }
                messages.push(parse(name, &self.text, parameter.map(|(oid, ..)| oid)));
                messages.push(bind(name, *parameter, result_formats));
                if *describe {
                    messages.push(message(b'D', b"P\0"));
                }
                messages.push(message(
                    b'E',
                    &[b"\0", &rows_max.to_be_bytes()[..]].concat(),
                ));
                messages.push(sync());
                messages
            }
        };
        let is_named = matches!(self.form, Form::Extended { is_named: true, .. });
        wire.send(&messages);
        let mut answer = wire.messages();
        if is_named {
            answer = wire.messages();
        }
        answer.retain(|message| !matches!(message[0], b'S' | b'N'));
        answer
    }
}

/// A list stays a list.
fn set_value(name: &str, value: &str) -> String {
    if name == "search_path" {
        value.to_owned()
    } else {
        format!("'{value}'")
    }
}

fn parse(name: &[u8], text: &str, parameter_type: Option<u32>) -> Vec<u8> {
    let mut body = [name, b"\0", text.as_bytes(), b"\0"].concat();
    match parameter_type {
        Some(oid) => {
            body.extend([0, 1]);
            body.extend(oid.to_be_bytes());
        }
        None => body.extend([0, 0]),
    }
    message(b'P', &body)
}

fn bind(name: &[u8], parameter: Option<Parameter>, result_formats: &[u16]) -> Vec<u8> {
    let mut body = [b"\0", name, b"\0"].concat();
    match parameter {
        Some((_, format, value)) => {
            body.extend([0, 1]);
            body.extend(format.to_be_bytes());
            body.extend([0, 1]);
            match value {
                Some(value) => {
                    body.extend(u32::try_from(value.len()).expect("short").to_be_bytes());
                    body.extend(value);
                }
                None => body.extend((-1_i32).to_be_bytes()),
            }
        }
        None => body.extend([0, 0, 0, 0]),
    }
    body.extend(
        u16::try_from(result_formats.len())
            .expect("few")
            .to_be_bytes(),
    );
    for format in result_formats {
        body.extend(format.to_be_bytes());
    }
    message(b'B', &body)
}

fn shown(answer: &[Vec<u8>]) -> String {
    let lines: Vec<String> = answer
        .iter()
        .map(|message| message.escape_ascii().to_string())
        .collect();
    lines.join("\n    ")
}

fn number_of(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_that_differ_do_not_share_an_answer() {
    let stack = Stack::start_prepared("", SCHEMA);
    let seed = number_of("HELIOS_KEYS_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let pairs = number_of("HELIOS_KEYS_PAIRS").unwrap_or(PAIRS);
    println!("HELIOS_KEYS_SEED={seed}");
    let helios = stack.helios.port;
    let direct = stack.cluster.port();
    let run = move || {
        let mut maker = Maker(fastrand::Rng::with_seed(seed));
        let mut tallies: BTreeMap<Dimension, Tally> = BTreeMap::new();
        let fixed = pairs_of_each_kind();
        let made = (0..pairs).map(|_| maker.pair());
        for (number, (dimension, one, other)) in fixed.into_iter().chain(made).enumerate() {
            let expected = [&one, &other].map(|question| {
                let (mut wire, told) = question.open(direct)?;
                let answer = question.ask(&mut wire);
                Some((told, answer))
            });
            // The one, the other, and the one again with all in memory that got there.
            for at in [0, 1, 0] {
                let question = [&one, &other][at];
                let opened = question.open(helios);
                let (Some((told, answer)), Some((mut wire, got_told))) = (&expected[at], opened)
                else {
                    assert!(
                        expected[at].is_none(),
                        "seed {seed}, pair {number}: {question:?} is not let in"
                    );
                    continue;
                };
                assert_eq!(
                    &got_told, told,
                    "seed {seed}, pair {number}: {question:?} begins"
                );
                for _ in 0..2 {
                    let got = question.ask(&mut wire);
                    assert!(
                        got == *answer,
                        "seed {seed}, pair {number}, {dimension:?} differs:\n  {question:?}\n  gets\n    {}\n  instead of\n    {}\n  and the other is {:?}",
                        shown(&got),
                        shown(answer),
                        [&other, &one][at]
                    );
                }
            }
            let tally = tallies.entry(dimension).or_default();
            tally.pairs += 1;
            let answers = expected.map(|expected| expected.map(|(_, answer)| answer));
            tally.different += usize::from(answers[0] != answers[1]);
        }
        tallies
    };
    let tallies = tokio::task::spawn_blocking(run)
        .await
        .expect("no answer is wrong");
    let hits = stack.helios.cache_count("hits").await;
    // The run must have been one in which something could go wrong.
    let different: usize = tallies.values().map(|tally| tally.different).sum();
    let all: usize = tallies.values().map(|tally| tally.pairs).sum();
    println!("{all} pairs, {hits} hits, {tallies:?}");
    assert!(hits > all as u64, "{hits} hits of {all} pairs");
    assert!(
        different > all / 3,
        "{different} different answers of {all} pairs"
    );
}

const PAIRS: u64 = 150;
