//! A prepared statement means what it meant where it was prepared: clients with other settings neither get it nor its
//! answers.

use crate::support::Stack;
use crate::support::raw::{
    Wire, bind, bind_with, close, execute, parse, query, step, step_named, sync,
};

const ONE_CONNECTION: &str = "[pool]\nsize = 1\n";

const TABLES: &str = "
    CREATE TABLE u (id int, v int); INSERT INTO u VALUES (1, 0);
    CREATE SCHEMA a; CREATE TABLE a.t (x date);
    CREATE SCHEMA b; CREATE TABLE b.t (x timestamp);
    CREATE TABLE a.words (word text); INSERT INTO a.words VALUES ('of a');
    CREATE TABLE b.words (word text); INSERT INTO b.words VALUES ('of b')";

/// A setting with two values, and a statement whose text means something else under each. Most is decided when the
/// statement is parsed.
const MEANINGS: [(&str, [&str; 2], &str); 9] = [
    (
        "TimeZone",
        ["UTC", "Asia/Tokyo"],
        "SELECT extract(epoch FROM '2020-01-01 00:00'::timestamptz)::int",
    ),
    (
        "TimeZone",
        ["UTC", "Asia/Tokyo"],
        "SELECT v, '2020-01-01 00:00'::timestamptz = '2019-12-31 15:00+00' FROM u",
    ),
    (
        "DateStyle",
        ["ISO, MDY", "ISO, DMY"],
        "SELECT '02/03/2020'::date - '2020-01-01'::date",
    ),
    (
        "IntervalStyle",
        ["postgres", "sql_standard"],
        "SELECT extract(epoch FROM '-1 2:03:04'::interval)::int",
    ),
    (
        "standard_conforming_strings",
        ["off", "on"],
        "SELECT 'a\\\\b'",
    ),
    (
        "standard_conforming_strings",
        ["off", "on"],
        "SELECT v, length('a\\\\b') FROM u",
    ),
    (
        "transform_null_equals",
        ["off", "on"],
        "SELECT v = NULL FROM u",
    ),
    ("search_path", ["a", "b"], "SELECT word FROM words"),
    ("search_path", ["a", "b"], "SELECT * FROM t"),
];

#[test]
fn a_statement_is_not_shared_by_clients_to_whom_its_text_means_different_things() {
    let stack = Stack::start_prepared(ONE_CONNECTION, TABLES);
    let mut wrong = String::new();
    for (setting, values, sql) in MEANINGS {
        // Both by the startup packet and by SET, and with a name and without.
        for (name, by_set) in [("s", false), ("", false), ("s", true), ("", true)] {
            let connect = |through: bool, value: &str| {
                let startup = [(setting, value)];
                let startup = if by_set { &[][..] } else { &startup };
                let mut client = if through {
                    stack.wire_with(startup)
                } else {
                    stack.wire_direct_with(startup)
                };
                if by_set {
                    client.run(&format!("SELECT set_config('{setting}', '{value}', false)"));
                }
                client
            };
            let mut clients =
                values.map(|value| [false, true].map(|through| connect(through, value)));
            let prepare_run = [parse(name, sql), step_named(name), step_named(name), sync()];
            let run = [step_named(name), sync()];
            for (round, request) in [&prepare_run[..], &run, &run].iter().enumerate() {
                for (value, [direct, through]) in values.iter().zip(&mut clients) {
                    let expected = direct.ask(request);
                    let got = through.ask(request);
                    if got != expected {
                        wrong += &format!(
                            "{sql} with {setting} {value}, by SET: {by_set}, name {name:?}, round {round}:\n{got}instead of\n{expected}"
                        );
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_parameter_has_the_type_of_the_table_that_is_meant() {
    let stack = Stack::start_twice(ONE_CONNECTION, TABLES);
    for insert in [
        "INSERT INTO t VALUES ($1)",
        "INSERT INTO t VALUES ($1) RETURNING x",
    ] {
        // A statement is kept for others while somebody has it.
        let mut clients = Vec::new();
        for path in ["a", "b"] {
            let unit = [
                parse("s", insert),
                bind_with("", "s", &["2020-01-01 12:34:00"]),
                execute("", 0),
                sync(),
            ];
            let startup = [("search_path", path)];
            let expected = stack.wire_twin_with(&startup).ask(&unit);
            let mut client = stack.wire_with(&startup);
            assert_eq!(client.ask(&unit), expected, "{insert}, {path}");
            clients.push(client);
        }
        for table in ["a.t", "b.t"] {
            // The time of day is not lost on the way.
            let rows = format!("SELECT * FROM {table}");
            let (mut direct, mut twin) = (stack.wire_direct(), stack.wire_twin());
            assert_eq!(direct.query(&rows), twin.query(&rows), "{insert}");
        }
    }
}

#[test]
fn an_answer_of_a_statement_prepared_under_other_settings_is_not_kept_for_others() {
    let stack = Stack::start_prepared("[pool]\nsize = 2\n", TABLES);
    let mut wrong = String::new();
    for (setting, [old, new], sql) in MEANINGS {
        for cold in [false, true] {
            // Another text each time: nothing is kept of it yet.
            let sql = format!("{sql} -- {cold}");
            let startup = [(setting, old)];
            let mut early = stack.wire_with(&startup);
            if cold {
                early.ask(&[parse("s", &sql), sync()]);
            } else {
                early.ask(&[parse("s", &sql), step_named("s"), sync()]);
            }
            early.run(&format!("SELECT set_config('{setting}', '{new}', false)"));
            for _ in 0..2 {
                early.ask(&[step_named("s"), sync()]);
            }
            for value in [new, old] {
                let startup = [(setting, value)];
                let units = [
                    vec![step(&sql), sync()],
                    vec![query(&sql)],
                    vec![parse("s", &sql), step_named("s"), sync()],
                ];
                for unit in &units {
                    let expected = stack.wire_direct_with(&startup).ask(unit);
                    let got = stack.wire_with(&startup).ask(unit);
                    if got != expected {
                        wrong +=
                            &format!("{sql} with {setting} {value}:\n{got}instead of\n{expected}");
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_statement_keeps_its_meaning_when_its_own_client_changes_a_setting() {
    let stack = Stack::start_prepared(ONE_CONNECTION, TABLES);
    let mut wrong = String::new();
    for (setting, [old, new], sql) in MEANINGS {
        if setting == "search_path" && sql.starts_with("SELECT *") {
            // The server refuses a result of another type for ever; helios prepares the statement anew.
            continue;
        }
        let startup = [(setting, old)];
        let said =
            [stack.wire_direct_with(&startup), stack.wire_with(&startup)].map(|mut client| {
                let mut said = client.ask(&[parse("s", sql), sync()]);
                said += &client.ask(&[step_named("s"), sync()]);
                client.run(&format!("SELECT set_config('{setting}', '{new}', false)"));
                for _ in 0..2 {
                    said += &client.ask(&[step_named("s"), sync()]);
                }
                client.run(&format!("SELECT set_config('{setting}', '{old}', false)"));
                said + &client.ask(&[step_named("s"), sync()])
            });
        if said[0] != said[1] {
            wrong += &format!("{sql} with {setting}:\n{}instead of\n{}", said[1], said[0]);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Lets a client bind an UPDATE to the portal `p`, fail to give that name another meaning, and run it.
fn run_a_portal_after(stack: &Stack, failing: &[Vec<u8>]) {
    let mut reader = stack.wire();
    reader.run("SELECT v FROM u");
    let mut converse = |client: &mut Wire, through: bool| {
        let mut said = client.query("BEGIN");
        said += &client.ask(&[
            parse("w", "UPDATE u SET v = v + 1"),
            parse("r", "SELECT 1"),
            bind("p", "w"),
            sync(),
        ]);
        said += &client.query("SAVEPOINT s");
        said += &client.ask(failing);
        said += &client.query("ROLLBACK TO s");
        said += &client.ask(&[execute("p", 0), sync()]);
        if through {
            // What is not committed yet is read as it was, and not kept.
            reader.run("SELECT v FROM u");
        }
        said + &client.query("COMMIT")
    };
    let expected = converse(&mut stack.wire_twin(), false);
    assert!(expected.contains("C UPDATE 1"), "{expected}");
    assert_eq!(converse(&mut stack.wire(), true), expected);
    let read = reader.value("SELECT v FROM u");
    assert_eq!(read, stack.wire_direct().value("SELECT v FROM u"));
}

#[test]
fn a_portal_whose_name_is_bound_again_in_vain_still_writes_what_it_wrote() {
    let stack = Stack::start_twice("[pool]\nsize = 2\n", TABLES);
    run_a_portal_after(&stack, &[bind("p", "r"), sync()]);
    run_a_portal_after(&stack, &[bind("p", "none"), sync()]);
    run_a_portal_after(&stack, &[step("SELECT 1/0"), bind("p", "r"), sync()]);
    run_a_portal_after(&stack, &[step("SELECT 1/0"), close('P', "p"), sync()]);
    let reprepared = [
        step("SELECT 1/0"),
        close('P', "p"),
        close('S', "w"),
        parse("w", "SELECT 1"),
        bind("p", "w"),
        sync(),
    ];
    run_a_portal_after(&stack, &reprepared);
}

/// Lets clients of helios and of the twin prepare `s` by message, do this, and go on with that name.
fn deallocate(ways: &[(usize, Vec<Vec<u8>>)]) {
    let stack = Stack::start_twice(ONE_CONNECTION, TABLES);
    let prepare = [parse("s", "SELECT v, random() < 2 FROM u"), sync()];
    let run = [step_named("s"), sync()];
    // Somebody else's statement with the same text, and name, is not touched.
    let mut other = stack.wire();
    other.ask(&prepare);
    let expected_of_other = other.ask(&run);
    let mut wrong = String::new();
    for (n, messages) in ways {
        let said = [stack.wire_twin(), stack.wire()].map(|mut client| {
            let mut said = client.ask(&prepare) + &client.ask(&run);
            said += &client.asks(*n, messages);
            said += &client.ask(&run);
            // The name may be free again.
            said += &client.ask(&prepare);
            said + &client.ask(&run)
        });
        if said[0] != said[1] {
            wrong += &format!("{}instead of\n{}", said[1], said[0]);
        }
        assert_eq!(other.ask(&run), expected_of_other);
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn deallocate_in_a_transaction_forgets_a_statement_prepared_by_message() {
    deallocate(&[
        (3, ["BEGIN", "DEALLOCATE s", "ROLLBACK"].map(query).into()),
        (
            3,
            ["BEGIN", "DEALLOCATE PREPARE s", "COMMIT"]
                .map(query)
                .into(),
        ),
        (
            4,
            ["BEGIN", "SELECT 1", "DEALLOCATE s", "COMMIT"]
                .map(query)
                .into(),
        ),
        (
            4,
            ["BEGIN", "SELECT 1/0", "DEALLOCATE s", "ROLLBACK"]
                .map(query)
                .into(),
        ),
        (
            4,
            ["BEGIN", "DEALLOCATE none", "DEALLOCATE s", "ROLLBACK"]
                .map(query)
                .into(),
        ),
        (2, ["SELECT random() < 2", "DEALLOCATE s"].map(query).into()),
    ]);
}

/// The names are the client's alone: the server is not asked, nor missed.
#[test]
fn closing_statements_needs_no_server() {
    let mut stack = Stack::start_with(
        heliosdb_testkit::PostgresCluster::builder(),
        "upstream.outage_timeout = \"0s\"\n",
    );
    let mut client = stack.wire();
    for name in ["one", "two"] {
        client.ask(&[parse(name, "SELECT random() > 2"), sync()]);
    }
    let run = |name| [bind("", name), execute("", 0), sync()];
    assert!(client.ask(&run("one")).contains("SELECT 1"));
    stack.cluster.stop().expect("stopped");
    let closed = client.ask(&[close('S', "one"), close('S', "unknown"), sync()]);
    assert_eq!(closed.matches('3').count(), 2, "{closed}");
    assert!(!closed.contains("ERROR"), "{closed}");
    stack.cluster.launch().expect("started");
    let mut direct = stack.wire_direct();
    assert_eq!(client.ask(&run("one")), direct.ask(&run("one")));
    assert!(client.ask(&run("two")).contains("SELECT 1"));
}

#[test]
fn a_smaller_maximum_is_kept_to_from_the_next_statement_on() {
    let stack = Stack::start_prepared("[pool]\nsize = 1\nmax_prepared_statements = 5\n", "");
    let mut console = Wire::connect(stack.helios.port, "helios", &[]);
    let mut client = stack.wire();
    let mut prepare = |n: usize| {
        let name = format!("s{n}");
        let messages = [
            parse(&name, &format!("SELECT {n}")),
            step_named(&name),
            sync(),
        ];
        assert!(client.ask(&messages).contains("C SELECT 1"), "{n}");
        // As the server has it: each client looks with the one connection that there is.
        let count = client.value("SELECT count(*) FROM pg_prepared_statements");
        count.parse::<usize>().expect("a number")
    };
    for n in 1..=7 {
        assert_eq!(prepare(n), n.min(5));
    }
    console.run("SET pool.max_prepared_statements = 2");
    assert_eq!(prepare(8), 2);
    // Those that were given up are there for their client.
    assert_eq!(prepare(9), 2);
    let said = client.ask(&[step_named("s1"), sync()]);
    assert!(said.contains("C SELECT 1"), "{said}");
}
