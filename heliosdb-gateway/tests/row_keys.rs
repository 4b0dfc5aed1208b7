//! What a key is taken for against what the server takes it for: whenever a value has a canonical form, it is how the
//! server prints the key of the row that the value is equal to, or that it is stored in. So no two statements about one
//! row come to different slots.
//!
//! Values are written in many ways, as literals and as parameters, and compared with and inserted into key columns of
//! all types that have rows of their own, and of some that must not.
//!
//! It has been seen to fail with each of these broken, in `sql/rows.rs`: the text of a `uuid` is taken as it is; the minus
//! of a literal is dropped; a declared type is not looked at; and in `sql/by_key.rs`: casts are looked through whatever
//! their type.

use std::collections::HashMap;

use heliosdb_gateway::sql::{
    Catalog, EncodedKey, NameScope, Parameters, Read, Rows, Values, Write, classify,
};
use heliosdb_testkit::PostgresCluster;

use crate::support::raw::{Parameter, Wire, bound_values, declared_types, extended, query};

const INT2: u32 = 21;
const INT4: u32 = 23;
const INT8: u32 = 20;
const FLOAT4: u32 = 700;
const FLOAT8: u32 = 701;
const TEXT: u32 = 25;
const NAME: u32 = 19;
const BPCHAR: u32 = 1042;
const VARCHAR: u32 = 1043;
const NUMERIC: u32 = 1700;
const UUID: u32 = 2950;

/// Type of the key column, whether its rows can be told apart, and the values of some rows.
const COLUMNS: [(&str, bool, &[&str]); 12] = [
    ("int2", true, &INTEGERS),
    ("int4", true, &INTEGERS),
    ("int8", true, &INTEGERS),
    ("uuid", true, &UUIDS),
    ("text", true, &TEXTS),
    ("varchar", true, &TEXTS),
    ("varchar(4)", true, &TEXTS),
    ("text COLLATE ignores_case", false, &["a", "5"]),
    ("numeric", false, &INTEGERS),
    ("char(4)", false, &["ab", "5"]),
    ("positive", false, &["5", "7"]),
    ("name", false, &["ab", "5"]),
];

const INTEGERS: [&str; 7] = ["0", "5", "-5", "7", "10", "100", "-32768"];
const UUIDS: [&str; 3] = [
    "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "00000000-0000-0000-0000-000000000005",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
];
const TEXTS: [&str; 9] = ["5", "05", " 5", "ab", "AB", "ab ", "", "a'b", "ä\\"];

struct Random(u64);

impl Random {
    #[expect(clippy::cast_possible_truncation, reason = "less than n")]
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A value that is, or looks like, or all but is the one given.
fn disguised(random: &mut Random, value: &str) -> String {
    match random.below(14) {
        0 => format!(" {value}"),
        1 => format!("{value} "),
        2 => format!("0{value}"),
        3 => format!("+{value}"),
        4 => format!("{value}.0"),
        5 => format!("{{{value}}}"),
        6 => value.to_uppercase(),
        7 => value.replace('-', ""),
        8 => format!("{value}e0"),
        9 => value.strip_prefix('-').unwrap_or(value).to_owned(),
        _ => value.to_owned(),
    }
}

/// An expression for the value, and its parameters.
fn expression(random: &mut Random, value: &str) -> (String, Vec<Parameter>) {
    let value = disguised(random, value);
    let literal = match random.below(9) {
        0 | 1 => value.clone(),
        2 => format!("- {value}"),
        3 => format!("E'{}'", value.replace('\\', "\\\\").replace('\'', "\\'")),
        4 => format!("$q${value}$q$"),
        _ => quoted(&value),
    };
    let parameter = parameter(random, &value);
    let cast = random.one(&[
        "int2",
        "int",
        "int8",
        "uuid",
        "text",
        "varchar",
        "varchar(2)",
        "char(3)",
        "numeric",
        "float8",
        "name",
        "pg_catalog.int4",
        "positive",
        "\"text\"",
    ]);
    match random.below(8) {
        0 => (format!("{literal}::{cast}"), Vec::new()),
        1 => (format!("CAST({literal} AS {cast})"), Vec::new()),
        2 => (format!("$1::{cast}"), vec![parameter]),
        3 | 4 => ("$1".to_owned(), vec![parameter]),
        _ => (literal, Vec::new()),
    }
}

fn parameter(random: &mut Random, value: &str) -> Parameter {
    let declared = random.one(&[
        0, 0, 0, INT2, INT4, INT8, FLOAT4, FLOAT8, NUMERIC, TEXT, VARCHAR, BPCHAR, NAME, UUID,
    ]);
    let number = value.parse::<i64>().ok();
    let hex = value.replace('-', "");
    let binary = match (random.below(2), declared, number) {
        (0, ..) => None,
        (_, INT2, Some(n)) => i16::try_from(n).ok().map(|n| n.to_be_bytes().to_vec()),
        (_, INT4 | 0, Some(n)) => i32::try_from(n).ok().map(|n| n.to_be_bytes().to_vec()),
        (_, INT8, Some(n)) => Some(n.to_be_bytes().to_vec()),
        (_, UUID | 0, _) if hex.len() == 32 => u128::from_str_radix(&hex, 16)
            .ok()
            .map(|n| n.to_be_bytes().to_vec()),
        (_, FLOAT8, _) => value
            .trim()
            .parse::<f64>()
            .ok()
            .map(|n| n.to_be_bytes().to_vec()),
        (_, TEXT | VARCHAR | BPCHAR | NAME, _) => Some(value.as_bytes().to_vec()),
        _ => None,
    };
    match binary {
        Some(bytes) => Parameter(declared, 1, bytes),
        None => Parameter(declared, 0, value.as_bytes().to_vec()),
    }
}

/// Asks for keys as the server prints them, so that no blank of them is lost.
const PRINTED: &str = "'x' || encode(convert_to(id::text, 'UTF8'), 'hex')";

/// The keys in an answer that was shown.
fn printed(shown: &str) -> Vec<String> {
    let hex = shown.lines().filter_map(|line| line.strip_prefix("D x"));
    hex.map(|hex| {
        let bytes = (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal"));
        String::from_utf8(bytes.collect()).expect("UTF-8")
    })
    .collect()
}

/// A key of one column as whoever follows the log would make it.
fn key(printed: &str) -> EncodedKey {
    let mut key = EncodedKey::default();
    key.push(printed);
    key
}

fn scope() -> NameScope {
    NameScope {
        user: "postgres".to_owned(),
        search_path: vec!["public".to_owned()],
        standard_conforming_strings: true,
        client_encoding_utf8: true,
    }
}

async fn catalog(cluster: &PostgresCluster) -> Catalog {
    let client = crate::support::connect(cluster.port(), "postgres", "postgres").await;
    let mut results: Vec<Vec<Vec<Option<String>>>> = Vec::new();
    for message in client.simple_query(Catalog::LOAD).await.expect("read") {
        match message {
            tokio_postgres::SimpleQueryMessage::RowDescription(_) => results.push(Vec::new()),
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                let cells = (0..row.len()).map(|at| row.get(at).map(str::to_owned));
                results.last_mut().expect("described").push(cells.collect());
            }
            _ => {}
        }
    }
    Catalog::from_results(1, results).expect("well-formed")
}

/// What a statement's key is taken for: nothing if it is not by key.
fn key_of(sql: &str, parameters: &[Parameter], catalog: &Catalog) -> Option<EncodedKey> {
    let class = classify(sql, catalog, &scope());
    let [statement] = class.statements.as_slice() else {
        panic!("one statement: {sql}");
    };
    let ((Read::Cacheable(relations), _) | (_, Write::Relations(relations))) =
        (&statement.read, &statement.write)
    else {
        return None;
    };
    let row = match &relations[0].rows {
        Rows::Found(row) => row,
        Rows::Keys(rows) => &rows[0],
        _ => return None,
    };
    let (types, bind) = (declared_types(parameters), bound_values(parameters));
    row.encode(&Values::bound(sql, Parameters::new(&types, &bind, true)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canonical_value_is_what_the_server_prints() {
    let cluster = PostgresCluster::start().expect("PostgreSQL starts");
    let mut wire = Wire::connect(cluster.port(), "postgres", &[]);
    wire.run("CREATE COLLATION ignores_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)");
    wire.run("CREATE DOMAIN positive AS int CHECK (VALUE > 0)");
    wire.run("SET standard_conforming_strings = on");
    for (at, (type_, _, values)) in COLUMNS.iter().enumerate() {
        wire.run(&format!("CREATE TABLE t{at} (id {type_} PRIMARY KEY)"));
        for value in *values {
            wire.run(&format!("INSERT INTO t{at} VALUES ({})", quoted(value)));
        }
    }
    let catalog = catalog(&cluster).await;
    let mut random = Random(7);
    let mut told: HashMap<&str, (usize, usize)> = HashMap::new();
    for _ in 0..6000 {
        let at = random.below(COLUMNS.len());
        let (type_, is_keyed, values) = COLUMNS[at];
        let value = random.one(values);
        let (expression, parameters) = expression(&mut random, value);
        let shown = format!("{type_}: {expression} {parameters:?}");

        let read = format!("SELECT id FROM t{at} WHERE id = {expression}");
        let write = format!("DELETE FROM t{at} WHERE {expression} = id");
        let taken = key_of(&read, &parameters, &catalog);
        assert_eq!(taken, key_of(&write, &parameters, &catalog), "{shown}");
        assert!(is_keyed || taken.is_none(), "{shown}");
        let counts = told.entry(type_).or_default();
        let ask = format!("SELECT {PRINTED} FROM t{at} WHERE id = {expression}");
        let found = printed(&wire.ask(&extended(&ask, "", &parameters)));
        if let Some(taken) = taken {
            for found in found {
                assert_eq!(taken, key(&found), "{shown} is equal to {found:?}");
                counts.0 += 1;
            }
        }

        // Where there is nothing yet.
        let insert = format!("INSERT INTO t{at} (id) VALUES ({expression})");
        let taken = key_of(&insert, &parameters, &catalog);
        assert!(is_keyed || taken.is_none(), "{shown}");
        if let Some(taken) = taken {
            wire.run("BEGIN");
            wire.run(&format!("DELETE FROM t{at}"));
            let stored = wire.ask(&extended(
                &format!("{insert} RETURNING {PRINTED}"),
                "",
                &parameters,
            ));
            for stored in printed(&stored) {
                assert_eq!(taken, key(&stored), "{shown} is stored as {stored:?}");
                counts.1 += 1;
            }
            wire.ask(&[query("ROLLBACK")]);
        }
    }
    for (type_, is_keyed, _) in COLUMNS {
        let (found, stored) = told[type_];
        assert!(
            !is_keyed || found > 20 && stored > 20,
            "{type_}: {found} found, {stored} stored"
        );
    }
}
