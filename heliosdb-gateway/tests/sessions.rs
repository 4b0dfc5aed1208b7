//! What a client is told does not depend on who shares its server connections: clients do things at random, in turns, on
//! fewer connections than they are, and each of them is told what a client alone with a server of its own is told.
//!
//! `HELIOS_ROUNDS` is the number of conversations (for each size of the pool), `HELIOS_SEED` what they are drawn from. A
//! conversation that goes wrong is cut down to what makes it go wrong.

use std::env;
use std::fmt::{Debug, Display};
use std::str::FromStr;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::support::Stack;
use crate::support::raw::{Wire, bind, close, describe, execute, parse, query, step, sync};

const TABLES: &str = "
    CREATE ROLE worker; CREATE ROLE guest;
    CREATE SCHEMA a; CREATE TABLE a.words (word text); INSERT INTO a.words VALUES ('of a');
    CREATE SCHEMA b; CREATE TABLE b.words (word text); INSERT INTO b.words VALUES ('of b');
    GRANT USAGE ON SCHEMA a, b TO worker, guest; GRANT SELECT ON a.words TO worker, guest; GRANT SELECT ON b.words TO guest;
    CREATE SEQUENCE numbers; GRANT ALL ON SEQUENCE numbers TO worker, guest";

/// Settings, and who one is.
const SETTINGS: &[&str] = &[
    "SET work_mem = '5MB'",
    "SET work_mem = '6MB'",
    "SET LOCAL work_mem = '7MB'",
    "SET work_mem TO DEFAULT",
    "RESET work_mem",
    "SET TimeZone = 'Asia/Tokyo'",
    "SET LOCAL TIME ZONE 'Europe/Rome'",
    "SET search_path = a",
    "SET search_path = b",
    "SET LOCAL search_path = b, a",
    "RESET search_path",
    "SET DateStyle = 'German'",
    "SET datestyle = 'YMD'",
    "SELECT set_config('work_mem', '9MB', false)",
    "SELECT set_config('search_path', 'a, b', true)",
    "SELECT set_config('work_mem', '8MB', false) FROM words",
    "SET ROLE worker",
    "SET ROLE guest",
    "SET LOCAL ROLE worker",
    "SET ROLE NONE",
    "RESET ROLE",
    "SET SESSION AUTHORIZATION guest",
    "RESET SESSION AUTHORIZATION",
    "RESET ALL",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
    "SET default_transaction_isolation = 'repeatable read'",
    "SET nonsense = 1",
];

/// What can be told of them.
const LOOKS: &[&str] = &[
    "SELECT current_user, session_user, current_setting('work_mem'), current_setting('TimeZone')",
    "SELECT current_setting('search_path'), current_setting('datestyle')",
    "SHOW work_mem",
    "SHOW search_path",
    "SHOW transaction_read_only",
    "SHOW transaction_isolation",
    "SELECT '2020-02-03 00:00+00'::timestamptz",
    "SELECT word FROM words",
    "SELECT 1",
    "SELECT * FROM scratch",
    "SELECT nextval('public.numbers') > 0",
];

const TRANSACTIONS: &[&str] = &[
    "BEGIN",
    "BEGIN",
    "BEGIN READ ONLY",
    "COMMIT",
    "COMMIT",
    "ROLLBACK",
    "COMMIT AND CHAIN",
    "SAVEPOINT s",
    "SAVEPOINT r",
    "ROLLBACK TO s",
    "ROLLBACK TO r",
    "RELEASE s",
    "SELECT 1/0",
    "SELEC 1",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
];

/// Statements that are prepared by statement, and what is done with them.
const PREPARED: &[&str] = &[
    "PREPARE p AS SELECT 1, current_user",
    "PREPARE p (int) AS SELECT $1 + 1 AS sum",
    "PREPARE q AS SELECT word FROM words",
    "PREPARE q (text) AS SELECT $1, current_setting('work_mem')",
    "PREPARE p AS SELECT nothing",
    "PREPARE \"Q q\" AS SELECT 1, current_user",
    "EXECUTE p",
    "EXECUTE p(1)",
    "EXECUTE p(2 + 3)",
    "EXECUTE p('x')",
    "EXECUTE p (current_setting('work_mem')::int)",
    "EXECUTE q",
    "EXECUTE q('five')",
    "EXECUTE \"Q q\"",
    "EXECUTE none",
    "EXPLAIN (COSTS OFF) EXECUTE p",
    "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) EXECUTE q",
    "CREATE TEMP TABLE scratch AS EXECUTE p",
    "DEALLOCATE p",
    "DEALLOCATE PREPARE q",
    "DEALLOCATE none",
    "DEALLOCATE ALL",
];

const OBJECTS: &[&str] = &[
    "CREATE TEMP TABLE scratch (a int)",
    "INSERT INTO scratch VALUES (1)",
    "DROP TABLE scratch",
    "DISCARD TEMP",
    "DISCARD PLANS",
    "DISCARD SEQUENCES",
    "DISCARD ALL",
    "DISCARD ALL",
    "DECLARE c CURSOR FOR SELECT g FROM generate_series(1, 3) g",
    "DECLARE c CURSOR WITH HOLD FOR SELECT g FROM generate_series(1, 3) g",
    "FETCH c",
    "CLOSE c",
];

const PLAIN: &[&str] = &["SELECT 1, current_user", "SELECT word FROM words"];

/// A part of a unit of the extended protocol.
#[derive(Clone, Debug)]
enum Part {
    Step(&'static str),
    Parse(&'static str, &'static str),
    Run(&'static str),
    Describe(&'static str),
    Close(&'static str),
}

/// What is answered by one ReadyForQuery.
#[derive(Clone, Debug)]
enum Unit {
    Query(Vec<&'static str>),
    Extended(Vec<Part>),
}

/// What a client sends in one go.
#[derive(Clone, Debug)]
struct Turn {
    client: usize,
    units: Vec<Unit>,
}

const CLIENTS: usize = 4;

impl Unit {
    fn messages(&self) -> Vec<Vec<u8>> {
        match self {
            Self::Query(statements) => vec![query(&statements.join("; "))],
            Self::Extended(parts) => {
                let messages = parts.iter().map(|part| match part {
                    Part::Step(sql) => step(sql),
                    Part::Parse(name, sql) => parse(name, sql),
                    Part::Run(name) => [bind("", name), describe('P', ""), execute("", 0)].concat(),
                    Part::Describe(name) => describe('S', name),
                    Part::Close(name) => close('S', name),
                });
                messages.chain([sync()]).collect()
            }
        }
    }
}

fn statement() -> impl Strategy<Value = &'static str> + Clone {
    prop_oneof![
        3 => select(SETTINGS),
        3 => select(LOOKS),
        2 => select(TRANSACTIONS),
        3 => select(PREPARED),
        1 => select(OBJECTS),
    ]
}

fn part() -> impl Strategy<Value = Part> {
    let name = || select(&["p", "q", "n"][..]);
    // PostgreSQL 15 dies of a statement that executes itself: what executes others has a name of its own.
    let parsed = prop_oneof![
        2 => (select(&["p", "q"][..]), prop_oneof![select(LOOKS), select(PLAIN)]),
        1 => (Just("n"), select(PREPARED)),
    ];
    prop_oneof![
        4 => statement().prop_map(Part::Step),
        2 => parsed.prop_map(|(name, sql)| Part::Parse(name, sql)),
        3 => name().prop_map(Part::Run),
        1 => select(&["p", "q"][..]).prop_map(Part::Describe),
        1 => name().prop_map(Part::Close),
    ]
}

fn unit() -> impl Strategy<Value = Unit> {
    prop_oneof![
        3 => statement().prop_map(|one| Unit::Query(vec![one])),
        1 => proptest::collection::vec(statement(), 2..4).prop_map(Unit::Query),
        3 => proptest::collection::vec(part(), 1..4).prop_map(|mut parts| {
            // A second one would find the first one's settings restored, and be refused.
            let mut is_first = true;
            parts.retain(|part| {
                !matches!(part, Part::Step("DISCARD ALL")) || std::mem::take(&mut is_first)
            });
            Unit::Extended(parts)
        }),
    ]
}

/// Something set or prepared, and taken back or not; then a look.
fn story() -> impl Strategy<Value = Vec<Unit>> {
    let texts = prop_oneof![
        (select(SETTINGS), select(&["ROLLBACK", "COMMIT"][..]))
            .prop_map(|(set, end)| vec!["ROLLBACK", "BEGIN", set, end]),
        (
            select(SETTINGS),
            select(&["ROLLBACK TO s", "RELEASE s"][..])
        )
            .prop_map(|(set, end)| vec![
                "ROLLBACK",
                "BEGIN",
                "SAVEPOINT s",
                set,
                end,
                "COMMIT"
            ]),
        select(PREPARED).prop_map(|last| vec![
            "ROLLBACK",
            "PREPARE p AS SELECT 1, current_user",
            "SELECT 1; DEALLOCATE p",
            last
        ]),
    ];
    (texts, select(LOOKS)).prop_map(|(texts, look)| {
        let texts = texts.into_iter().chain([look]);
        texts.map(|sql| Unit::Query(vec![sql])).collect()
    })
}

fn turn() -> impl Strategy<Value = Turn> {
    let units = prop_oneof![
        4 => unit().prop_map(|one| vec![one]),
        1 => proptest::collection::vec(unit(), 2..4),
        1 => story(),
    ];
    (0..CLIENTS, units).prop_map(|(client, units)| Turn { client, units })
}

/// A client of helios, and one of the server itself that does the same.
struct Pair {
    id: String,
    through: Wire,
    direct: Wire,
}

/// The rows of one of the console's tables.
fn rows(console: &mut Wire, table: &str) -> Vec<Vec<String>> {
    console
        .query(&format!("SHOW {table}"))
        .lines()
        .filter_map(|line| line.strip_prefix("D "))
        .map(|line| line.split('|').map(str::to_owned).collect())
        .collect()
}

/// Columns of SHOW CLIENTS and SHOW SERVERS.
const PTR: usize = 14;
const LINK: usize = 15;
const APPLICATION_NAME: usize = 18;
const ID: usize = 20;

fn pairs(stack: &Stack, console: &mut Wire) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = (0..CLIENTS)
        .map(|n| {
            let name = format!("client {n}");
            let mut startup = vec![("application_name", &*name)];
            if n % 2 == 1 {
                startup.push(("search_path", "b, public"));
            }
            Pair {
                id: String::new(),
                through: stack.wire_with(&startup),
                direct: stack.wire_direct_with(&startup),
            }
        })
        .collect();
    // Those of the conversation before may still be on their way out: the ids of later clients are larger.
    let mut clients = rows(console, "CLIENTS");
    clients.sort_by_key(|row| row[ID].parse::<u64>().expect("an id"));
    for (n, pair) in pairs.iter_mut().enumerate() {
        let name = format!("client {n}");
        let row = clients
            .iter()
            .rev()
            .find(|row| row[APPLICATION_NAME] == name);
        pair.id.clone_from(&row.expect("a client")[PTR]);
    }
    pairs
}

/// An answer as far as it has to be the same. In a transaction that has failed a statement can't be prepared on another
/// connection: a Bind with the wrong parameters fails for the one reason or the other.
fn comparable(said: &str) -> String {
    let lines: Vec<&str> = said.lines().collect();
    let line = |(at, line): (usize, &&str)| {
        let is_wrong_bind = line.starts_with("E ERROR 08P01 bind message supplies")
            && lines.get(at + 1) == Some(&"Z E");
        if is_wrong_bind {
            "E ERROR 25P02 current transaction is aborted, commands ignored until end of transaction block\n"
                .to_owned()
        } else {
            format!("{line}\n")
        }
    };
    lines.iter().enumerate().map(line).collect()
}

fn converse(stack: &Stack, size: usize, turns: &[Turn]) -> Result<(), TestCaseError> {
    let mut console = Wire::connect(stack.helios.port, "helios", &[]);
    let mut pairs = pairs(stack, &mut console);
    let mut said = String::new();
    for turn in turns {
        let holders: Vec<String> = rows(&mut console, "SERVERS")
            .into_iter()
            .filter_map(|row| row.get(LINK).filter(|id| !id.is_empty()).cloned())
            .collect();
        let is_holder = |pair: &Pair| holders.contains(&pair.id);
        let held = pairs.iter().filter(|pair| is_holder(pair)).count();
        let mut client = turn.client;
        if held == size && !is_holder(&pairs[client]) {
            // It would have to wait for one that has a connection to itself.
            client = pairs.iter().position(is_holder).expect("one of them");
        }
        let pair = &mut pairs[client];
        let messages: Vec<_> = turn.units.iter().flat_map(Unit::messages).collect();
        let expected = comparable(&pair.direct.asks(turn.units.len(), &messages));
        let got = comparable(&pair.through.asks(turn.units.len(), &messages));
        said += &format!("client {client}: {:?}\n", turn.units);
        prop_assert!(got == expected, "{}\n{}instead of\n{}", said, got, expected);
    }
    Ok(())
}

fn from_env<T: FromStr + Display>(name: &str, default: T) -> T
where
    T::Err: Debug,
{
    env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

fn run(size: usize, pool: &str) {
    let rounds = from_env("HELIOS_ROUNDS", 16_u32);
    let seed = from_env("HELIOS_SEED", 1_u64);
    let stack = Stack::start_prepared(&format!("[pool]\nsize = {size}\n{pool}"), TABLES);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    let config = Config {
        cases: rounds,
        failure_persistence: None,
        max_shrink_iters: 400,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let turns = proptest::collection::vec(turn(), 1..60);
    let outcome =
        TestRunner::new_with_rng(config, rng).run(&turns, |turns| converse(&stack, size, &turns));
    match outcome {
        Ok(()) => {}
        // The reason tells the whole conversation.
        Err(TestError::Fail(reason, _)) => panic!("size {size}, HELIOS_SEED={seed}:\n{reason}"),
        Err(error) => panic!("size {size}, HELIOS_SEED={seed}: {error}"),
    }
}

#[test]
fn clients_on_one_connection_are_told_what_each_would_be_told_alone() {
    run(1, "");
}

#[test]
fn clients_on_two_connections_are_told_what_each_would_be_told_alone() {
    run(2, "");
}

#[test]
fn clients_on_three_connections_are_told_what_each_would_be_told_alone() {
    run(3, "");
}

#[test]
fn clients_that_share_unnamed_statements_are_told_what_each_would_be_told_alone() {
    run(1, "prepare_unnamed = true\n");
}
