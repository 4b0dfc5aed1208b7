//! Settings and locks stay with the client that made them, however the request ended that made them; what is reset goes
//! back to what the client began with.

use crate::support::Stack;
use crate::support::raw::{Wire, bind, execute, parse, query, step, sync};

const ONE_CONNECTION: &str = "[pool]\nsize = 1\nacquire_timeout = \"1s\"\n";

const SCHEMAS: &str = "CREATE SCHEMA a; CREATE SCHEMA b";

/// What a client can tell of its settings, outside of a transaction or in one.
const SHOWN: [&str; 4] = ["TimeZone", "search_path", "work_mem", "application_name"];

/// What clients were told, each answer with what it is an answer to.
type Told = Vec<(String, String)>;

fn settings(whose: &str, client: &mut Wire) -> Told {
    SHOWN
        .map(|name| {
            let value = client.value(&format!("SHOW {name}"));
            (format!("{whose} {name}"), value)
        })
        .into()
}

/// Startup packets: without settings, and with them.
const STARTUPS: [&[(&str, &str)]; 2] = [
    &[],
    &[
        ("TimeZone", "Asia/Tokyo"),
        ("search_path", "b, public"),
        ("application_name", "begun"),
    ],
];

/// Requests, each with the number of ReadyForQuery that it is answered by.
type Requests = Vec<(usize, Vec<Vec<u8>>)>;

fn queries<const N: usize>(texts: [&str; N]) -> Requests {
    texts.map(|text| (1, vec![query(text)])).into()
}

fn pipeline<const N: usize>(texts: [&str; N]) -> Requests {
    vec![(N, texts.map(query).into())]
}

/// One unit of the extended protocol.
fn unit<const N: usize>(texts: [&str; N]) -> Requests {
    let mut messages: Vec<_> = texts.map(step).into();
    messages.push(sync());
    vec![(1, messages)]
}

/// One unit of the extended protocol that asks for one row only of the last statement: whether there are more is left
/// open, and the statement is never complete.
fn suspended(text: &str) -> Requests {
    vec![(
        1,
        vec![parse("", text), bind("", ""), execute("", 1), sync()],
    )]
}

/// Lets a client of helios and one of the server do the same, and compares what they get and what is then in force:
/// for them, for another client of helios with the same startup packet, and for one without. Where settings are hard to
/// follow, which is where the name of the way holds one of these words, the client may keep the only server connection
/// to itself instead.
fn compare(ways: &[(&str, Requests)], hard: &[&str]) {
    let stack = Stack::start_prepared(ONE_CONNECTION, SCHEMAS);
    let mut wrong = String::new();
    for startup in STARTUPS {
        for (way, requests) in ways {
            let mut expected = Told::new();
            let mut got = Told::new();
            let mut client = stack.wire_with(startup);
            let mut direct = stack.wire_direct_with(startup);
            for (number, (n, messages)) in (1..).zip(requests) {
                let request = format!("request {number}");
                expected.push((request.clone(), direct.asks(*n, messages)));
                got.push((request, client.asks(*n, messages)));
            }
            // The others may get the connection in the state that the client left it in, or have to wait.
            let is_tied = hard.iter().any(|word| way.contains(word))
                && stack.wire().query("SHOW TimeZone").contains("53300");
            if !is_tied {
                let others = [("another's", &[][..]), ("a like one's", startup)];
                for (whose, startup) in others {
                    let mut direct = stack.wire_direct_with(startup);
                    expected.extend(settings(whose, &mut direct));
                    got.extend(settings(whose, &mut stack.wire_with(startup)));
                }
            }
            for whose in ["its", "its later"] {
                expected.extend(settings(whose, &mut direct));
                got.extend(settings(whose, &mut client));
            }
            for ((what, got), (_, expected)) in got.iter().zip(&expected) {
                if got != expected {
                    let began = startup.len();
                    wrong += &format!(
                        "{way}, {began} settings in the startup packet, {what}: {got:?} instead of {expected:?}\n"
                    );
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn what_is_reset_goes_back_to_what_the_client_began_with() {
    const AWAY: [&str; 3] = [
        "SET TimeZone = 'Europe/Rome'",
        "SET search_path = a",
        "SET work_mem = '7MB'",
    ];
    let away = || queries(AWAY);
    let mut ways: Vec<(&str, Requests)> = vec![
        ("nothing", queries(["SELECT 1"])),
        (
            "RESET of another",
            queries(["SET work_mem = '7MB'", "RESET work_mem"]),
        ),
        (
            "RESET ALL of nothing",
            queries(["RESET ALL", "SHOW TimeZone", "SHOW search_path"]),
        ),
    ];
    let back: Vec<(&str, Requests)> = vec![
        ("RESET", queries(["RESET TimeZone", "RESET search_path"])),
        ("RESET ALL", queries(["RESET ALL", "SHOW TimeZone"])),
        (
            "SET TO DEFAULT",
            queries(["SET TimeZone TO DEFAULT", "SET search_path TO DEFAULT"]),
        ),
        ("SET TIME ZONE DEFAULT", queries(["SET TIME ZONE DEFAULT"])),
        ("SET TIME ZONE LOCAL", queries(["SET TIME ZONE LOCAL"])),
        ("DISCARD ALL", queries(["DISCARD ALL", "SHOW TimeZone"])),
        (
            "RESET, pipelined",
            pipeline(["RESET search_path", "SHOW search_path", "SHOW TimeZone"]),
        ),
        (
            "DISCARD ALL, pipelined",
            pipeline(["DISCARD ALL", "SHOW search_path", "SHOW TimeZone"]),
        ),
        (
            "RESET ALL in one query",
            queries(["RESET ALL; SHOW search_path; SHOW TimeZone"]),
        ),
        (
            "RESET in one unit",
            unit(["RESET search_path", "SHOW search_path", "SHOW TimeZone"]),
        ),
        (
            "RESET in a transaction",
            queries([
                "BEGIN",
                "RESET search_path",
                "RESET TimeZone",
                "SHOW search_path",
                "SHOW TimeZone",
                "COMMIT",
            ]),
        ),
        (
            "RESET ALL in a transaction that is rolled back",
            queries([
                "BEGIN",
                "RESET ALL",
                "SHOW search_path",
                "ROLLBACK",
                "SHOW search_path",
            ]),
        ),
        (
            "SET LOCAL TO DEFAULT",
            queries([
                "BEGIN",
                "SET LOCAL search_path TO DEFAULT",
                "SHOW search_path",
                "COMMIT",
            ]),
        ),
        (
            "RESET behind a savepoint that is gone back to",
            queries([
                "BEGIN",
                "SAVEPOINT s",
                "RESET ALL",
                "SHOW search_path",
                "ROLLBACK TO s",
                "SHOW search_path",
                "COMMIT",
            ]),
        ),
        (
            "RESET and SET in a transaction",
            queries([
                "BEGIN",
                "RESET ALL",
                "SET work_mem = '8MB'",
                "SHOW TimeZone",
                "COMMIT",
            ]),
        ),
        (
            "RESET ALL in a unit that fails",
            unit(["RESET ALL", "SELECT 1/0"]),
        ),
        (
            "RESET ALL and COMMIT in a query that fails",
            queries(["BEGIN; RESET ALL; COMMIT; SELECT 1/0"]),
        ),
    ];
    for (way, requests) in back {
        ways.push((way, [away(), requests].concat()));
    }
    compare(&ways, &["savepoint", "fails"]);
}

#[test]
fn what_a_request_set_before_it_failed_is_what_the_server_says() {
    const SET: &str = "SET TimeZone = 'Europe/Rome'";
    let set_config = "SELECT set_config('TimeZone', 'Europe/Rome', false)";
    let ways: Vec<(&str, Requests)> = vec![
        (
            "a transaction that ended before, in one query",
            queries([&format!("BEGIN; {SET}; COMMIT; SELECT 1/0")]),
        ),
        (
            "a transaction that ended before, in one unit",
            unit(["BEGIN", SET, "COMMIT", "SELECT 1/0"]),
        ),
        (
            "a transaction that ended before, and another that is open",
            queries([
                &format!("BEGIN; {SET}; COMMIT; BEGIN; SET work_mem = '8MB'; SELECT 1/0"),
                "ROLLBACK",
            ]),
        ),
        (
            "the end of a transaction that began before",
            queries(["BEGIN", SET, "COMMIT; SELECT 1/0"]),
        ),
        (
            "the end of a transaction that began before, in a unit",
            [queries(["BEGIN", SET]), unit(["COMMIT", "SELECT 1/0"])].concat(),
        ),
        (
            "a chained transaction",
            queries([
                "BEGIN",
                &format!("{SET}; COMMIT AND CHAIN; SELECT 1/0"),
                "ROLLBACK",
            ]),
        ),
        (
            "a transaction that was rolled back before",
            queries([&format!("BEGIN; {SET}; ROLLBACK; SELECT 1/0")]),
        ),
        (
            "a savepoint behind it",
            queries([
                "BEGIN",
                &format!("{SET}; SAVEPOINT s; SELECT 1/0"),
                "ROLLBACK TO s",
                "COMMIT",
            ]),
        ),
        (
            "a savepoint behind it, in a unit",
            [
                queries(["BEGIN"]),
                unit([SET, "SAVEPOINT s", "SELECT 1/0"]),
                queries(["ROLLBACK TO s", "COMMIT"]),
            ]
            .concat(),
        ),
        (
            "a savepoint in front of it",
            queries([
                "BEGIN",
                &format!("SAVEPOINT s; {SET}; SELECT 1/0"),
                "ROLLBACK TO s",
                "COMMIT",
            ]),
        ),
        (
            "a savepoint that was released",
            queries([
                "BEGIN",
                "SAVEPOINT s",
                SET,
                "SAVEPOINT r",
                "SELECT 1/0",
                "ROLLBACK TO r; RELEASE s",
                "COMMIT",
            ]),
        ),
        (
            "nothing else, in a query",
            queries([&format!("{SET}; SELECT 1/0")]),
        ),
        ("nothing else, in a unit", unit([SET, "SELECT 1/0"])),
        (
            "set_config and a transaction that ended before",
            unit(["BEGIN", set_config, "COMMIT", "SELECT 1/0"]),
        ),
        (
            "set_config in a unit that fails",
            unit([set_config, "SELECT 1/0"]),
        ),
        (
            "set_config in a statement that fails",
            unit(["SELECT set_config('TimeZone', 'Europe/Rome', false), 1 / (random() > 2)::int"]),
        ),
        (
            "set_config in a query that fails behind it",
            queries([&format!("BEGIN; {set_config}; COMMIT; SELECT 1/0")]),
        ),
        ("set_config with a row limit", suspended(set_config)),
        (
            "set_config with a row limit, and more rows",
            suspended(
                "SELECT set_config('TimeZone', 'Europe/Rome', false) FROM generate_series(1, 3)",
            ),
        ),
        (
            "set_config with a row limit in a transaction",
            [
                queries(["BEGIN"]),
                suspended(set_config),
                queries(["COMMIT"]),
            ]
            .concat(),
        ),
        (
            "set_config with a row limit in a transaction that is rolled back",
            [
                queries(["BEGIN"]),
                suspended(set_config),
                queries(["ROLLBACK"]),
            ]
            .concat(),
        ),
    ];
    // All of them are hard.
    compare(&ways, &[""]);
}

/// Whether a client of the server itself gets an advisory lock at once; it gives it back.
fn is_free(direct: &mut Wire, lock: u32) -> bool {
    let sql = format!("SELECT pg_try_advisory_lock({lock}) AND pg_advisory_unlock({lock})");
    direct.value(&sql) == "t"
}

#[test]
fn a_lock_taken_by_a_request_that_fails_or_stops_early_is_held_until_its_client_leaves() {
    let stack = Stack::start_prepared("[pool]\nsize = 2\n", SCHEMAS);
    let mut direct = stack.wire_direct();
    direct.run("SET lock_timeout = '10s'");
    let take = |lock: u32| format!("SELECT pg_advisory_lock({lock})");
    // The lock is taken when its row is made; the next row fails.
    let fails = |lock: u32| {
        format!("SELECT pg_advisory_lock({lock}), 1 / (2 - g) FROM generate_series(1, 2) g")
    };
    let ways: Vec<(&str, Requests)> = vec![
        ("a row limit", suspended(&take(1))),
        ("a row limit and more rows", suspended(&fails(2))),
        ("a statement that fails", unit([&fails(3)])),
        ("a unit that fails", unit([&take(4), "SELECT 1/0"])),
        (
            "a query that fails",
            queries([&format!("{}; SELECT 1/0", take(5))]),
        ),
        (
            "a transaction that is rolled back",
            queries(["BEGIN", &take(6), "ROLLBACK"]),
        ),
        (
            "a row limit in a transaction that is rolled back",
            [
                queries(["BEGIN"]),
                suspended(&take(7)),
                queries(["ROLLBACK"]),
            ]
            .concat(),
        ),
        (
            "the right to it, which a failed unit does not give back",
            [
                queries([&take(8)]),
                queries(["BEGIN", "SELECT pg_advisory_lock(8)", "ROLLBACK"]),
                queries(["SELECT pg_advisory_unlock(8)"]),
            ]
            .concat(),
        ),
    ];
    let mut wrong = Vec::new();
    for (lock, (way, requests)) in (1..).zip(ways) {
        let mut client = stack.wire();
        for (n, messages) in requests {
            client.asks(n, &messages);
        }
        if is_free(&mut direct, lock) {
            wrong.push(format!("{way}: it is free though its client is there"));
        }
        // Another client could have been given the connection that holds the lock.
        for _ in 0..2 {
            let taken = stack
                .wire()
                .value(&format!("SELECT pg_try_advisory_lock({lock})"));
            if taken == "t" {
                wrong.push(format!("{way}: another client has it too"));
            }
        }
        let unlocked = client.value(&format!("SELECT pg_advisory_unlock({lock})"));
        if unlocked != "t" {
            wrong.push(format!("{way}: its client can't give it back"));
        }
        client.query(&take(lock));
        drop(client);
        // Waits until the server knows that the client is gone.
        let freed = direct.query(&take(lock));
        if freed.contains("E ERROR") {
            wrong.push(format!("{way}: it is held after its client left"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_one_client_does_to_its_session_is_not_seen_by_another() {
    const CHARACTERISTICS: &str =
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY";
    let roles = "CREATE ROLE worker; CREATE TEMP TABLE x ()";
    // Each with what another client would see of it.
    let seen = [
        "SHOW default_transaction_isolation",
        "SHOW default_transaction_read_only",
        "SELECT current_user || session_user",
        "SHOW work_mem",
        "SELECT coalesce(current_setting('app.tenant', true), '')",
        "SELECT count(*)::text FROM pg_class WHERE relname = 'scratch'",
    ];
    let stack = Stack::start_prepared(ONE_CONNECTION, roles);
    let expected = seen.map(|sql| stack.wire_direct().value(sql));
    for sql in [
        CHARACTERISTICS,
        "SET ROLE worker",
        "SET SESSION AUTHORIZATION worker",
        "SELECT set_config('work_mem', '9MB', false)",
        "SELECT set_config('app.tenant', 'mine', false)",
        "SELECT max(set_config('work_mem', '9MB', g < 0)) FROM generate_series(1, 2) g",
        "SELECT (SELECT set_config('work_mem', '9MB', false))",
        "SELECT 1 WHERE set_config('work_mem', '9MB', false) IS NOT NULL",
        "WITH w AS (SELECT set_config('work_mem', '9MB', false) AS s) SELECT count(s) FROM w",
        "SELECT CASE WHEN true THEN set_config('work_mem', '9MB', false) END",
        "SELECT set_config('work' || '_mem', '9MB', false)",
        "DO $$ BEGIN PERFORM set_config('work_mem', '9MB', false); END $$",
        "DO $$ BEGIN EXECUTE 'PREPARE p AS SELECT 1'; SET work_mem = '9MB'; END $$",
        "SET LOCAL work_mem = '9MB'",
        "BEGIN; SET LOCAL work_mem = '9MB'; COMMIT",
        "CREATE TEMP TABLE scratch ()",
        "SELECT setseed(0.5)",
    ] {
        let mut one = stack.wire();
        let said = one.query(sql);
        assert!(!said.contains("E ERROR"), "{sql}: {said}");
        for (sql_seen, expected) in seen.iter().zip(&expected) {
            let said = stack.wire().query(sql_seen);
            let row = format!("D {expected}");
            // Who ties the only connection is not seen either.
            let is_tied = said.contains("53300");
            assert!(
                is_tied || said.lines().any(|line| line == row.trim_end()),
                "{sql}, {sql_seen}: {said}"
            );
            if is_tied {
                break;
            }
        }
        one.run("DISCARD ALL");
        for (sql_seen, expected) in seen.iter().zip(&expected) {
            assert_eq!(one.value(sql_seen), *expected, "{sql}, {sql_seen}");
            assert_eq!(stack.wire().value(sql_seen), *expected, "{sql}, {sql_seen}");
        }
    }
}

#[test]
fn the_level_can_be_shown_before_it_is_set() {
    let stack = Stack::start_prepared(ONE_CONNECTION, SCHEMAS);
    let mut client = stack.wire();
    let shown = "T helios.cache of type 25\nD session\nC SHOW\nZ I\n";
    assert_eq!(client.query("SHOW helios.cache"), shown);
    assert_eq!(client.query(" show  HELIOS.cache; "), shown);
    assert_eq!(
        client.ask(&[step("SHOW helios.cache"), sync()]),
        "1\n2\nD session\nC SHOW\nZ I\n"
    );
    client.run("BEGIN");
    assert_eq!(client.value("SHOW helios.cache"), "session");
    client.run("SELECT random()");
    assert_eq!(client.value("SHOW helios.cache"), "session");
    client.run("COMMIT");
    client.run("SET helios.cache TO 'strict'");
    assert_eq!(client.value("SHOW helios.cache"), "strict");
    client.run("RESET helios.cache");
    assert_eq!(client.value("SHOW helios.cache"), "session");
    assert_eq!(stack.wire().value("SHOW helios.cache"), "session");
}
