//! A statement has one name, whether it was prepared by message or by PREPARE, and keeps it on every server connection;
//! errors are those of a server of one's own, up to the place in the text.

use crate::support::Stack;
use crate::support::raw::{
    Wire, bind, bind_with, close, describe, execute, message, parse, query, step, step_named, sync,
};

const ONE_CONNECTION: &str = "[pool]\nsize = 1\nacquire_timeout = \"2s\"\n";

const TABLES: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'one'), (2, 'two')";

/// Requests, each with the number of ReadyForQuery that it is answered by.
type Requests = Vec<(usize, Vec<Vec<u8>>)>;

fn queries<const N: usize>(texts: [&str; N]) -> Requests {
    texts.map(|text| (1, vec![query(text)])).into()
}

fn unit(messages: Vec<Vec<u8>>) -> Requests {
    vec![(1, [messages, vec![sync()]].concat())]
}

fn conversations() -> Vec<(&'static str, Requests)> {
    let by_message = || unit(vec![parse("s", "SELECT v FROM t WHERE id = $1")]);
    let by_statement = || queries(["PREPARE s (int) AS SELECT v FROM t WHERE id = $1"]);
    let bound = || {
        unit(vec![
            bind_with("", "s", &["2"]),
            describe('P', ""),
            execute("", 0),
        ])
    };
    vec![
        (
            "by message, then by statement",
            [
                by_message(),
                queries(["EXECUTE s(1)", "DEALLOCATE s", "EXECUTE s(1)"]),
            ]
            .concat(),
        ),
        (
            "by statement, then by message",
            [
                by_statement(),
                bound(),
                unit(vec![describe('S', "s")]),
                unit(vec![close('S', "s")]),
                queries(["EXECUTE s(1)"]),
                bound(),
            ]
            .concat(),
        ),
        (
            "names that are taken",
            [
                by_message(),
                by_statement(),
                unit(vec![parse("s", "SELECT 1")]),
                queries(["DEALLOCATE s"]),
                by_statement(),
                by_message(),
                by_statement(),
            ]
            .concat(),
        ),
        (
            "wrong parameters",
            [
                by_statement(),
                queries([
                    "EXECUTE s",
                    "EXECUTE s(1, 2)",
                    "EXECUTE s('x')",
                    "EXECUTE s(now())",
                    "EXECUTE s(nothing)",
                    "EXECUTE s((SELECT 1))",
                    "EXECUTE s(length('ab') + 0)",
                ]),
                unit(vec![bind("", "s"), execute("", 0)]),
            ]
            .concat(),
        ),
        (
            "a transaction that is rolled back",
            queries([
                "BEGIN",
                "PREPARE s AS SELECT 1",
                "ROLLBACK",
                "EXECUTE s",
                "BEGIN",
                "DEALLOCATE s",
                "ROLLBACK",
                "EXECUTE s",
            ]),
        ),
        (
            "several in one query",
            queries([
                "PREPARE s AS SELECT 1; EXECUTE s; DEALLOCATE s; PREPARE s AS SELECT 2; EXECUTE s",
                "EXECUTE s",
                "PREPARE a AS SELECT 3; PREPARE b AS SELECT 3; DEALLOCATE a; EXECUTE b; EXECUTE a",
                "EXECUTE b",
                "DEALLOCATE ALL; EXECUTE s",
                "PREPARE s AS SELECT 4; DISCARD PLANS; SELECT 1/0; PREPARE r AS SELECT 5",
                "EXECUTE s",
                "EXECUTE r",
                "DEALLOCATE s; SELECT 1/0",
                "EXECUTE s",
            ]),
        ),
        (
            "in a transaction that has failed",
            [
                by_message(),
                queries([
                    "BEGIN",
                    "SELECT 1/0",
                    "EXECUTE s(1)",
                    "DEALLOCATE s",
                    "DEALLOCATE ALL",
                    "PREPARE r AS SELECT 1",
                    "ROLLBACK; EXECUTE s(2); DEALLOCATE s; PREPARE s AS SELECT 9",
                    "EXECUTE s",
                    "EXECUTE r",
                ]),
            ]
            .concat(),
        ),
        (
            "DEALLOCATE ALL and DISCARD ALL in a pipeline",
            [
                by_message(),
                unit(vec![
                    step("DEALLOCATE ALL"),
                    parse("s", "SELECT 'new'"),
                    step_named("s"),
                    parse("r", "SELECT 'r'"),
                ]),
                unit(vec![step_named("r"), step_named("s")]),
                unit(vec![
                    step("DISCARD ALL"),
                    parse("s", "SELECT 'newer'"),
                    step_named("s"),
                ]),
                unit(vec![step_named("s"), step_named("r")]),
                unit(vec![step("SELECT 1/0"), step("DEALLOCATE ALL")]),
                unit(vec![step_named("s")]),
                unit(vec![step("DEALLOCATE ALL"), step("SELECT 1/0")]),
                unit(vec![step_named("s")]),
            ]
            .concat(),
        ),
        (
            "by statements of the extended protocol",
            [
                unit(vec![
                    step("PREPARE s AS SELECT 'x'"),
                    step("EXECUTE s"),
                    step_named("s"),
                    step("DEALLOCATE s"),
                    step("EXECUTE s"),
                ]),
                unit(vec![step("PREPARE s AS SELECT 'y'"), step("SELECT 1/0")]),
                unit(vec![step("EXECUTE s")]),
                unit(vec![step("SELECT 1/0"), step("DEALLOCATE s")]),
                unit(vec![parse("e", "EXECUTE s"), step_named("e")]),
                unit(vec![step("DEALLOCATE s"), step("PREPARE s AS SELECT 'z'")]),
                unit(vec![step_named("e"), describe('P', "")]),
            ]
            .concat(),
        ),
        (
            "within other statements",
            [
                by_message(),
                queries([
                    "EXPLAIN (COSTS OFF) EXECUTE s(1)",
                    "CREATE TEMP TABLE execute AS EXECUTE s(2)",
                    "SELECT * FROM execute",
                    "DISCARD ALL",
                ]),
            ]
            .concat(),
        ),
        (
            "names of any kind",
            queries([
                "PREPARE \"It's a \"\"name\"\"\" AS SELECT 'EXECUTE s', $$DEALLOCATE s$$",
                "EXECUTE \"It's a \"\"name\"\"\"",
                "PREPARE prepare AS SELECT 1",
                "EXECUTE Prepare",
                "DEALLOCATE prepare",
                "EXECUTE prepare",
            ]),
        ),
    ]
}

#[test]
fn names_are_those_of_a_server_of_ones_own() {
    let stack = Stack::start_prepared(ONE_CONNECTION, TABLES);
    let mut wrong = String::new();
    for (what, requests) in conversations() {
        // Another client uses the connection, and the names, in between.
        let mut other = stack.wire();
        other.run("PREPARE s AS SELECT 'of another'");
        let (mut direct, mut through) = (stack.wire_direct(), stack.wire());
        for (n, messages) in &requests {
            let expected = direct.asks(*n, messages);
            let got = through.asks(*n, messages);
            if got != expected {
                wrong += &format!("{what}:\n{got}instead of\n{expected}");
            }
            if !expected.ends_with("Z T\n")
                && !expected.ends_with("Z E\n")
                && !what.contains("within")
            {
                let said = other.query("EXECUTE s");
                assert!(
                    said.contains("D of another"),
                    "{what}, behind {expected}: {said}"
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// The fields of the errors that come, as far as they say something about the client's text.
fn told(client: &mut Wire, sql: &str) -> Vec<String> {
    client.send(&[query(sql)]);
    let errors = client
        .messages()
        .into_iter()
        .filter(|message| message[0] == b'E');
    errors
        .flat_map(|message| {
            message[5..]
                .split(|byte| *byte == 0)
                .filter(|field| {
                    matches!(field.first(), Some(b'S' | b'C' | b'M' | b'D' | b'H' | b'P'))
                })
                .map(|field| String::from_utf8_lossy(field).into_owned())
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn an_error_says_where_it_is_in_the_clients_own_text() {
    let stack = Stack::start_prepared(ONE_CONNECTION, TABLES);
    let (mut direct, mut through) = (stack.wire_direct(), stack.wire());
    for sql in [
        "PREPARE s (int) AS SELECT v FROM t WHERE id = $1",
        "PREPARE s AS SELECT nothing FROM t",
        "PREPARE a_rather_long_name_for_a_statement_that_is_not_that_long AS SELECT nothing",
        "EXECUTE s(nothing)",
        "EXECUTE s('x')",
        "/* ä */ EXECUTE s(1); EXECUTE s(nothing)",
        "EXECUTE s(1); EXECUTE s(1, 2)",
        "EXECUTE s(1); EXECUTE nobodys",
        "PREPARE s AS SELECT 1",
        "EXECUTE s(1); SELECT nothing",
        "EXECUTE s(1) garbage",
    ] {
        let expected = told(&mut direct, sql);
        assert_eq!(told(&mut through, sql), expected, "{sql}");
    }
}

#[test]
fn nobody_gets_at_a_statement_by_the_name_that_it_has_on_the_server() {
    let stack = Stack::start_prepared(ONE_CONNECTION, TABLES);
    let (mut one, mut two) = (stack.wire(), stack.wire());
    one.run("PREPARE s AS SELECT 'secret'");
    let name = two.value("SELECT name FROM pg_prepared_statements");
    for request in [
        vec![query(&format!("EXECUTE {name}"))],
        vec![query(&format!("DEALLOCATE {name}"))],
        vec![query(&format!("EXPLAIN EXECUTE {name}"))],
        vec![step(&format!("EXECUTE {name}")), sync()],
        vec![step(&format!("DEALLOCATE {name}")), sync()],
        vec![bind("", &name), execute("", 0), sync()],
        vec![describe('S', &name), sync()],
    ] {
        let said = two.ask(&request);
        assert!(said.contains("E ERROR 26000"), "{said}");
    }
    two.ask(&[close('S', &name), sync()]);
    assert_eq!(one.value("EXECUTE s"), "secret");
}

#[test]
fn what_is_executed_ties_as_if_it_were_run() {
    let stack = Stack::start_prepared(ONE_CONNECTION, TABLES);
    let (mut one, mut two) = (stack.wire(), stack.wire());
    let settings = message(
        b'P',
        b"s\0SELECT set_config('work_mem', '77MB', false)\0\0\0",
    );
    one.ask(&[settings, sync()]);
    one.run("EXECUTE s");
    // It has the connection to itself, or the setting does not stay on it.
    let said = two.query("SHOW work_mem");
    assert!(!said.contains("77MB"), "{said}");
    assert_eq!(one.value("SHOW work_mem"), "77MB");
}

#[test]
fn prepared_statements_take_no_more_memory_than_they_may() {
    let config = "[pool]\nsize = 1\nprepared_memory = \"1 MiB\"\n";
    let stack = Stack::start_prepared(config, TABLES);
    let text = |n: usize| format!("SELECT {n}, '{}'", "x".repeat(10_000));
    let full = "E ERROR 53200 the prepared statements of this client take too much memory";
    let mut client = stack.wire();
    let refused = (0..100)
        .map(|n| client.ask(&[parse(&format!("s{n}"), &text(n)), sync()]))
        .position(|said| said.contains(full))
        .expect("an eighth of the memory is enough for a dozen");
    assert!((5..15).contains(&refused), "{refused}");
    let said = client.query(&format!("PREPARE p AS {}", text(100)));
    assert_eq!(said, format!("{full}\nZ I\n"));
    client.query("BEGIN");
    let said = client.query(&format!("PREPARE p AS {}", text(100)));
    assert_eq!(said, format!("{full}\nZ E\n"));
    client.query("ROLLBACK");
    // What it has works, and what it gives up makes room.
    assert!(
        client
            .ask(&[step_named("s0"), sync()])
            .contains("C SELECT 1")
    );
    client.run("DEALLOCATE s0");
    client.run(&format!("PREPARE p AS {}", text(100)));
    assert!(client.query("EXECUTE p").contains("C SELECT 1"));
    // A name that is taken is said to be, however little room there is.
    let said = client.ask(&[parse("s1", &text(1)), sync()]);
    assert!(said.contains("42P05"), "{said}");
    // All clients together.
    let mut clients: Vec<Wire> = (0..12).map(|_| stack.wire()).collect();
    let mut said = String::new();
    for (n, client) in clients.iter_mut().enumerate() {
        for m in 0..10 {
            said += &client.ask(&[parse(&format!("s{m}"), &text(1000 * n + m)), sync()]);
        }
    }
    let all = "E ERROR 53200 the prepared statements of all clients take too much memory";
    assert!(said.contains(all), "{said}");
    // With those that leave their statements go.
    drop(clients);
    let mut late = stack.wire();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while late
        .ask(&[parse("late", &text(1)), sync()])
        .contains("53200")
    {
        assert!(std::time::Instant::now() < deadline, "they are kept");
    }
}
