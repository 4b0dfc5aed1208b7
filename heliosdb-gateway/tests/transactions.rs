//! A transaction is the same to its client whether the server hears of it or not, and its reads may come from memory only
//! where nobody can tell.

use std::time::{Duration, Instant};

use crate::support::raw::{
    Wire, bind, describe, execute, first_row, flush, parse, query, step, step_named, sync,
};
use crate::support::{Helios, Stack};

const TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 10), (2, 20), (3, 30);
    CREATE TABLE u (id int PRIMARY KEY, v int); INSERT INTO u VALUES (1, 100)";

const READ: &str = "SELECT v FROM t WHERE id = 1";

/// Requests, each with the number of ReadyForQuery that it is answered by.
type Requests = Vec<(usize, Vec<Vec<u8>>)>;

fn queries(texts: &[&str]) -> Requests {
    texts.iter().map(|text| (1, vec![query(text)])).collect()
}

/// Each text as one unit of the extended protocol, described.
fn units(texts: &[&str]) -> Requests {
    texts
        .iter()
        .map(|text| {
            let messages = [
                parse("", text),
                bind("", ""),
                describe('P', ""),
                execute("", 0),
                sync(),
            ];
            (1, messages.into())
        })
        .collect()
}

fn conversations() -> Vec<(&'static str, Requests)> {
    let texts: [(&str, &[&str]); 26] = [
        ("a read", &["BEGIN", READ, "COMMIT"]),
        ("nothing", &["BEGIN", "COMMIT", READ]),
        ("rolled back", &["BEGIN", READ, READ, "ROLLBACK", READ]),
        ("words", &["start transaction", READ, "END"]),
        ("more words", &["begin work;", READ, "abort work ;"]),
        (
            "modes",
            &[
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
                READ,
                "UPDATE t SET v = 1",
                "ROLLBACK",
            ],
        ),
        (
            "a mode that shows",
            &[
                "BEGIN READ ONLY",
                "SHOW transaction_read_only",
                "SHOW transaction_isolation",
                "COMMIT",
            ],
        ),
        (
            "the server's own modes",
            &[
                "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE",
                "SHOW transaction_isolation",
                READ,
                "COMMIT",
            ],
        ),
        ("begun twice", &["BEGIN", "BEGIN", READ, "COMMIT", READ]),
        (
            "ended twice",
            &["BEGIN", "COMMIT", "COMMIT", "ROLLBACK", READ],
        ),
        (
            "chained",
            &[
                "BEGIN",
                "COMMIT AND CHAIN",
                READ,
                "ROLLBACK AND CHAIN",
                "SHOW transaction_isolation",
                "COMMIT",
                READ,
            ],
        ),
        (
            "a write and a read of it",
            &[
                "BEGIN",
                READ,
                "UPDATE t SET v = v + 1 WHERE id = 1",
                READ,
                "COMMIT",
                READ,
            ],
        ),
        (
            "a write that is taken back",
            &[
                "BEGIN",
                "UPDATE t SET v = v + 1 WHERE id = 1",
                READ,
                "ROLLBACK",
                READ,
            ],
        ),
        (
            "an error",
            &["BEGIN", READ, "SELECT 1/0", READ, "COMMIT", READ],
        ),
        (
            "savepoints that hold nothing",
            &[
                "BEGIN",
                "SAVEPOINT a",
                READ,
                "RELEASE a",
                "SAVEPOINT \"B b\"",
                "ROLLBACK TO \"B b\"",
                READ,
                "COMMIT",
            ],
        ),
        (
            "savepoints that the server has to know",
            &[
                "BEGIN",
                "SAVEPOINT a",
                "SAVEPOINT b",
                READ,
                "UPDATE t SET v = 7 WHERE id = 1",
                "ROLLBACK TO b",
                READ,
                "RELEASE a",
                "COMMIT",
                READ,
            ],
        ),
        (
            "a savepoint that there is not",
            &[
                "BEGIN",
                "SAVEPOINT a",
                "RELEASE b",
                READ,
                "ROLLBACK TO a",
                READ,
                "COMMIT",
            ],
        ),
        (
            "a savepoint that was released",
            &[
                "BEGIN",
                "SAVEPOINT a",
                "RELEASE a",
                "ROLLBACK TO a",
                "ROLLBACK",
            ],
        ),
        (
            "an error behind a savepoint",
            &[
                "BEGIN",
                "SAVEPOINT a",
                "SELECT 1/0",
                "ROLLBACK TO a",
                READ,
                "COMMIT",
            ],
        ),
        (
            "a text that is not SQL",
            &["BEGIN", "SELEC", READ, "ROLLBACK", READ],
        ),
        ("empty statements", &["BEGIN", "", ";", "COMMIT"]),
        ("all at once", &["BEGIN; SELECT v FROM t; COMMIT", READ]),
        (
            "half of it at once",
            &[
                "BEGIN; SELECT v FROM t",
                READ,
                "UPDATE t SET v = 5",
                READ,
                "COMMIT",
                READ,
            ],
        ),
        (
            "a local setting",
            &[
                "BEGIN",
                "SET LOCAL search_path TO nowhere",
                READ,
                "ROLLBACK",
                READ,
            ],
        ),
        (
            "a setting",
            &[
                "BEGIN",
                READ,
                "SET DateStyle TO 'SQL, DMY'",
                "SELECT date '2020-02-03', v FROM t",
                "COMMIT",
                "SELECT date '2020-02-03', v FROM t",
                "RESET DateStyle",
            ],
        ),
        (
            "a lock",
            &[
                "BEGIN",
                "SELECT v FROM t WHERE id = 1 FOR UPDATE",
                READ,
                "LOCK TABLE t",
                READ,
                "COMMIT",
            ],
        ),
    ];
    let mut all = Vec::new();
    for (name, texts) in texts {
        all.push((name, queries(texts)));
        // Several statements in one text are no prepared statement.
        if !texts.iter().any(|text| text.contains("; ")) {
            all.push((name, units(texts)));
        }
    }
    all.extend(in_one_unit());
    all.extend(prepared_by_name());
    all
}

/// Statements of transaction control, each prepared in a unit of its own.
fn prepared_by_name() -> Vec<(&'static str, Requests)> {
    let prepare = |name: &str, text: &str| (1, vec![parse(name, text), sync()]);
    let prepare_described =
        |name: &str, text: &str| (1, vec![parse(name, text), describe('S', name), sync()]);
    let run = |name: &str| (1, vec![step_named(name), sync()]);
    let run_described = |name: &str| {
        let messages = [bind("", name), describe('P', ""), execute("", 0), sync()];
        (1, messages.into())
    };
    vec![
        (
            "control prepared ahead",
            vec![
                prepare("b", "BEGIN"),
                prepare_described("c", "COMMIT;"),
                prepare("r", "ROLLBACK"),
                run("b"),
                (1, vec![step(READ), sync()]),
                run_described("c"),
                run("b"),
                (1, vec![query("UPDATE t SET v = v + 1")]),
                run("r"),
                run("r"),
            ],
        ),
        (
            "control prepared in the transaction",
            vec![
                prepare_described("b", "BEGIN"),
                run("b"),
                prepare_described("s", "SAVEPOINT a"),
                run("s"),
                prepare("c", "ROLLBACK TO a"),
                run("c"),
                prepare("c", "COMMIT"),
                run("c"),
                prepare("e", "ROLLBACK"),
                run("e"),
                (1, vec![query("SELEC")]),
            ],
        ),
        (
            "control prepared in a transaction that failed",
            vec![
                prepare("b", "BEGIN"),
                prepare("g", READ),
                run("b"),
                (1, vec![query("SELEC")]),
                prepare("d", "BEGIN"),
                prepare("f", READ),
                prepare("n", ";"),
                run("n"),
                prepare("e", "ROLLBACK"),
                run("d"),
                run("e"),
                run("d"),
                run("g"),
            ],
        ),
        (
            "control under a name that is taken, and unnamed",
            vec![
                prepare("b", "BEGIN"),
                prepare("b", "COMMIT"),
                run("b"),
                prepare("", "COMMIT"),
                run_described(""),
                prepare("x", "BEGIN ISOLATION LEVEL"),
                run("x"),
            ],
        ),
    ]
}

/// What drivers send together.
fn in_one_unit() -> Vec<(&'static str, Requests)> {
    let described = |text: &str| {
        [
            parse("", text),
            bind("", ""),
            describe('P', ""),
            execute("", 0),
        ]
        .concat()
    };
    let prepare = (1, vec![parse("b", "BEGIN"), parse("s", READ), sync()]);
    let last = || (1, vec![query(READ)]);
    vec![
        (
            "the first statement in the unit of its BEGIN",
            vec![
                (1, vec![step("BEGIN"), described(READ), sync()]),
                (1, vec![described(READ), sync()]),
                (1, vec![step("COMMIT"), sync()]),
                last(),
            ],
        ),
        (
            "the same prepared",
            vec![
                prepare.clone(),
                (1, vec![step_named("b"), step_named("s"), sync()]),
                (1, vec![step_named("s"), sync()]),
                (1, vec![step("COMMIT"), sync()]),
                last(),
            ],
        ),
        (
            "a write in the unit of its BEGIN, and an error behind it",
            vec![
                (
                    1,
                    vec![
                        step("BEGIN"),
                        step("UPDATE t SET v = 8 WHERE id = 1"),
                        step("SELECT 1/0"),
                        sync(),
                    ],
                ),
                (1, vec![query("ROLLBACK")]),
                last(),
            ],
        ),
        (
            "everything in one unit",
            vec![
                (1, vec![step("BEGIN"), step(READ), step("COMMIT"), sync()]),
                last(),
            ],
        ),
        (
            "a BEGIN described, and flushed, and run",
            vec![
                (
                    1,
                    vec![
                        parse("", "BEGIN"),
                        flush(),
                        bind("", ""),
                        describe('P', ""),
                        flush(),
                        execute("", 0),
                        flush(),
                        sync(),
                    ],
                ),
                (1, vec![step(READ), flush(), sync()]),
                (1, vec![query("COMMIT")]),
                last(),
            ],
        ),
        (
            "pipelined queries",
            vec![
                (4, ["BEGIN", READ, READ, "COMMIT"].map(query).into()),
                last(),
            ],
        ),
        (
            "rows asked for a few at a time",
            vec![
                (1, vec![query("SELECT id FROM t ORDER BY id")]),
                (1, vec![query("BEGIN")]),
                (
                    1,
                    vec![
                        parse("", "SELECT id FROM t ORDER BY id"),
                        bind("", ""),
                        execute("", 1),
                        sync(),
                    ],
                ),
                (1, vec![execute("", 1), sync()]),
                (1, vec![execute("", 5), sync()]),
                (1, vec![query("COMMIT")]),
            ],
        ),
        (
            "a portal that is named",
            vec![
                (1, vec![query("BEGIN")]),
                (
                    1,
                    vec![
                        parse("", "SELECT id FROM t ORDER BY id"),
                        bind("p", ""),
                        execute("p", 1),
                        sync(),
                    ],
                ),
                (1, vec![step(READ), sync()]),
                (1, vec![execute("p", 1), sync()]),
                (1, vec![query("COMMIT")]),
            ],
        ),
        (
            "a COMMIT that runs a statement of the name",
            vec![
                prepare,
                (1, vec![step_named("b"), sync()]),
                (1, vec![step_named("s"), sync()]),
                (1, vec![parse("s", "SELECT 2"), sync()]),
                (1, vec![step_named("s"), sync()]),
                (1, vec![query("ROLLBACK")]),
                (1, vec![step_named("s"), sync()]),
            ],
        ),
    ]
}

fn converse(wire: &mut Wire, requests: &Requests) -> String {
    let mut shown = String::new();
    for (n, messages) in requests {
        shown += &wire.asks(*n, messages);
    }
    shown
}

/// Every conversation three times, so that all that can come from memory does.
fn is_as_direct(config: &str) {
    let stack = Stack::start_twice(config, TABLES);
    let mut wrong = String::new();
    for (number, (name, requests)) in (1..).zip(conversations()) {
        for round in 1..=3 {
            // The names that it prepares are its own.
            let (mut through, mut direct) = (stack.wire(), stack.wire_twin());
            let (got, expected) = (
                converse(&mut through, &requests),
                converse(&mut direct, &requests),
            );
            if got != expected {
                wrong +=
                    &format!("{number}, {name}, round {round}:\n{got}--- direct:\n{expected}\n");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_transaction_is_answered_as_by_the_server() {
    is_as_direct("");
}

#[test]
fn every_transaction_is_answered_as_by_the_server_without_the_cache() {
    is_as_direct("[cache]\nenabled = false\n");
}

#[test]
fn every_transaction_is_answered_as_by_the_server_that_hears_of_all() {
    is_as_direct("cache_in_transactions = \"never\"\n");
}

#[test]
fn every_transaction_is_answered_as_by_the_server_on_a_connection_of_its_own() {
    is_as_direct("[pool]\nmode = \"session\"\n");
}

/// One server connection, which a transaction that has written holds.
fn with_a_holder() -> (Stack, Wire) {
    let stack = Stack::start_prepared("[pool]\nsize = 1\nacquire_timeout = \"1s\"\n", TABLES);
    let mut reader = stack.wire();
    for _ in 0..2 {
        reader.run(READ);
        reader.ask(&[step(READ), sync()]);
    }
    let mut holder = stack.wire();
    holder.run("BEGIN");
    holder.run("UPDATE u SET v = v + 1");
    (stack, holder)
}

#[test]
fn a_transaction_of_hits_takes_no_connection() {
    let (stack, _holder) = with_a_holder();
    let mut client = stack.wire();
    for control in [
        ["BEGIN", "COMMIT"],
        ["start transaction read only", "rollback;"],
    ] {
        client.run(control[0]);
        assert_eq!(client.value(READ), "10");
        client.run("SAVEPOINT a");
        let unit = client.ask(&[step(READ), sync()]);
        assert!(unit.contains("D 10") && unit.ends_with("Z T\n"), "{unit}");
        client.run("RELEASE a");
        assert!(client.query(control[1]).ends_with("Z I\n"));
    }
    let shown = client.ask(&[step("BEGIN"), step(READ), sync()]);
    assert!(
        shown.contains("C BEGIN") && shown.contains("D 10"),
        "{shown}"
    );
}

#[test]
fn preparing_the_control_of_transactions_takes_no_connection() {
    let (stack, _holder) = with_a_holder();
    let mut client = stack.wire();
    let prepared = client.ask(&[parse("b", "BEGIN;"), sync()]);
    assert_eq!(prepared, "1\nZ I\n");
    let described = client.ask(&[parse("c", "end"), describe('S', "c"), sync()]);
    assert!(!described.contains('E'), "{described}");
    client.ask(&[step_named("b"), sync()]);
    assert_eq!(client.value(READ), "10");
    let ended = client.ask(&[step_named("c"), sync()]);
    assert!(ended.contains("C COMMIT"), "{ended}");
}

#[test]
fn a_transaction_that_gets_no_connection_fails_and_can_be_ended() {
    let (stack, mut holder) = with_a_holder();
    let mut client = stack.wire();
    let write = "UPDATE t SET v = 99 WHERE id = 1";
    client.run("BEGIN");
    client.run("SAVEPOINT a");
    let shown = client.query(write);
    assert!(shown.contains("E ERROR 53300"), "{shown}");
    assert!(shown.ends_with("Z E\n"), "{shown}");
    for request in [query(READ), query(write), [step(write), sync()].concat()] {
        let shown = client.ask(&[request]);
        assert!(shown.contains("E ERROR 25P02"), "{shown}");
        assert!(shown.ends_with("Z E\n"), "{shown}");
    }
    assert_eq!(client.query("ROLLBACK TO a"), "C ROLLBACK\nZ T\n");
    assert_eq!(client.value(READ), "10");
    assert!(client.query(write).ends_with("Z E\n"));
    assert_eq!(client.query("COMMIT"), "C ROLLBACK\nZ I\n");
    holder.run("COMMIT");
    assert_eq!(client.value(READ), "10");
    // Nothing of it is left to the next transaction.
    client.run("BEGIN");
    client.run(write);
    client.run("COMMIT");
    assert_eq!(stack.wire_direct().value(READ), "99");
}

#[test]
fn a_client_that_cancels_its_wait_has_failed() {
    let stack = Stack::start_prepared("[pool]\nsize = 1\nacquire_timeout = \"1min\"\n", TABLES);
    block_on(async {
        // Its settings are looked at by the server, when it comes.
        let client = stack.client().await;
        client.batch_execute(READ).await.expect("kept");
        let mut holder = stack.wire();
        holder.run("BEGIN");
        holder.run("UPDATE u SET v = v + 1");
        let cancel = client.cancel_token();
        client.batch_execute("BEGIN").await.expect("begun");
        let write = client.batch_execute("UPDATE t SET v = 99 WHERE id = 1");
        let give_up = async {
            // It waits for the one connection until then.
            tokio::time::sleep(Duration::from_millis(200)).await;
            cancel
                .cancel_query(tokio_postgres::NoTls)
                .await
                .expect("sent");
        };
        let code = |error: tokio_postgres::Error| error.code().map(|code| code.code().to_owned());
        let (written, ()) = tokio::join!(write, give_up);
        assert_eq!(written.map_err(code), Err(Some("57014".to_owned())));
        let read = client.batch_execute(READ).await;
        assert_eq!(read.map_err(code), Err(Some("25P02".to_owned())));
        client.batch_execute("ROLLBACK").await.expect("ended");
        client.batch_execute(READ).await.expect("from memory");
    });
}

async fn hits(helios: &Helios) -> u64 {
    helios.cache_count("hits").await
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

#[test]
fn reads_before_the_first_write_are_hits_and_fill_the_cache() {
    let stack = Stack::start_prepared("", TABLES);
    let (mut one, mut two) = (stack.wire(), stack.wire());
    one.run("BEGIN");
    // Asks the server, which begins the transaction there.
    one.run(READ);
    one.run("SELECT v FROM u");
    let before = block_on(hits(&stack.helios));
    one.run(READ);
    one.run("SELECT v FROM u");
    two.run(READ);
    one.run("COMMIT");
    assert_eq!(block_on(hits(&stack.helios)), before + 3);
}

#[test]
fn a_read_behind_a_write_is_neither_taken_from_memory_nor_kept() {
    let stack = Stack::start_prepared("", TABLES);
    let (mut writer, mut reader) = (stack.wire(), stack.wire());
    for write in [
        "UPDATE t SET v = v + 1 WHERE id = 1",
        "DELETE FROM t WHERE id = 3",
        "INSERT INTO u VALUES (2, 200)",
        "DO $$ BEGIN UPDATE t SET v = v + 1; END $$",
        "WITH w AS (UPDATE t SET v = v + 1 RETURNING 1) SELECT count(*) FROM w",
    ] {
        let reads = [READ, "SELECT sum(v) FROM t", "SELECT sum(v) FROM u"];
        let committed: Vec<String> = reads.map(|read| reader.value(read)).into();
        writer.run("BEGIN");
        writer.run(READ);
        writer.run(write);
        for (read, committed) in reads.iter().zip(&committed) {
            let own = writer.value(read);
            assert_eq!(reader.value(read), *committed, "{write}, then {read}");
            assert_eq!(writer.value(read), own, "{write}, then {read}");
        }
        let own = reads.map(|read| writer.value(read));
        assert_ne!(own[..], committed[..], "{write} changes something");
        writer.run("ROLLBACK");
        for (read, committed) in reads.iter().zip(&committed) {
            assert_eq!(
                writer.value(read),
                *committed,
                "{write}, taken back, {read}"
            );
        }
    }
}

#[test]
fn each_statement_sees_what_others_have_committed() {
    let stack = Stack::start_prepared("", TABLES);
    let (mut reader, mut writer) = (stack.wire(), stack.wire());
    for begin in ["BEGIN", "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY"] {
        // Once before the server has heard of the transaction, and once after.
        for first in ["SELECT 1", "SELECT pg_backend_pid()"] {
            reader.run(begin);
            reader.run(first);
            let before: i32 = reader.value(READ).parse().expect("a number");
            writer.run("UPDATE t SET v = v + 1 WHERE id = 1");
            assert_eq!(
                reader.value(READ),
                (before + 1).to_string(),
                "{begin}, {first}"
            );
            reader.run("COMMIT");
        }
    }
}

/// The same read twice with a write of another client's between.
fn read_around_a_write(stack: &Stack, reader: &mut Wire, begin: &str) -> [String; 2] {
    let mut writer = stack.wire();
    // Known to the cache, before and after.
    writer.run(READ);
    reader.run(begin);
    let before = reader.value(READ);
    writer.run("UPDATE t SET v = v + 1 WHERE id = 1");
    writer.run(READ);
    let after = reader.value(READ);
    reader.run("COMMIT");
    [before, after]
}

#[test]
fn one_snapshot_stays_one() {
    let stack = Stack::start_prepared("", TABLES);
    let level = "default_transaction_isolation";
    for (startup, setting, begin) in [
        (None, None, "BEGIN ISOLATION LEVEL REPEATABLE READ"),
        (None, None, "BEGIN ISOLATION LEVEL SERIALIZABLE"),
        (None, Some("repeatable read"), "BEGIN"),
        (None, Some("serializable"), "BEGIN READ ONLY"),
        (Some("repeatable read"), None, "BEGIN"),
    ] {
        let startup: Vec<_> = startup.map(|value| (level, value)).into_iter().collect();
        let mut reader = stack.wire_with(&startup);
        if let Some(setting) = setting {
            reader.run(&format!("SET {level} TO '{setting}'"));
        }
        let [before, after] = read_around_a_write(&stack, &mut reader, begin);
        assert_eq!(before, after, "{startup:?} {setting:?} {begin}");
    }
    // One that is set in the transaction.
    let mut reader = stack.wire();
    reader.run(READ);
    reader.run("BEGIN");
    reader.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ");
    let [before, after] = read_around_a_write(&stack, &mut reader, "SELECT 1");
    assert_eq!(before, after);
    // One that the server's own defaults ask for.
    stack.psql("ALTER ROLE postgres SET default_transaction_isolation TO 'repeatable read'");
    let stack = {
        let Stack { helios, cluster } = stack;
        drop(helios);
        let upstream = cluster.url("postgres", "postgres");
        Stack {
            helios: Helios::start(&["--upstream", &upstream], ""),
            cluster,
        }
    };
    let [before, after] = read_around_a_write(&stack, &mut stack.wire(), "BEGIN");
    assert_eq!(before, after);
}

#[test]
fn a_lock_ends_what_memory_may_answer() {
    let stack = Stack::start_prepared("", TABLES);
    let mut client = stack.wire();
    client.run(READ);
    client.run(READ);
    for lock in [
        "SELECT v FROM t WHERE id = 2 FOR UPDATE",
        "LOCK TABLE u IN SHARE MODE",
        "SELECT pg_advisory_xact_lock(5)",
        "DECLARE c CURSOR FOR SELECT v FROM t FOR UPDATE",
    ] {
        client.run("BEGIN");
        client.run(lock);
        let before = block_on(hits(&stack.helios));
        client.run(READ);
        assert_eq!(block_on(hits(&stack.helios)), before, "{lock}");
        client.run("ROLLBACK");
        client.run(READ);
        assert_eq!(block_on(hits(&stack.helios)), before + 1, "{lock}");
    }
}

#[test]
fn what_memory_answers_in_a_transaction_leaves_no_portal_of_an_earlier_statement() {
    let stack = Stack::start_prepared("", TABLES);
    let mut client = stack.wire();
    client.ask(&[step(READ), sync()]);
    client.run("BEGIN");
    // Two of three rows are left in the portal without a name.
    client.ask(&[
        parse("", "SELECT id FROM t"),
        bind("", ""),
        execute("", 1),
        sync(),
    ]);
    let hit = client.ask(&[step(READ), sync()]);
    assert_eq!(first_row(&hit).as_deref(), Some("10"));
    let shown = client.ask(&[execute("", 1), sync()]);
    assert!(first_row(&shown).is_none(), "{shown}");
    client.run("ROLLBACK");
}

#[test]
fn the_server_does_not_hear_of_a_transaction_that_does_not_need_it() {
    let open = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'";
    for (config, expected) in [("", "0"), ("cache_in_transactions = \"never\"\n", "1")] {
        let stack = Stack::start_prepared(config, TABLES);
        let mut client = stack.wire();
        client.run(READ);
        client.run("BEGIN");
        client.run(READ);
        let mut direct = stack.wire_direct();
        let deadline = Instant::now() + Duration::from_secs(10);
        while direct.value(open) != expected {
            assert!(Instant::now() < deadline, "{config}");
        }
        client.run("COMMIT");
    }
}

#[test]
fn a_reload_changes_what_the_next_transaction_does() {
    let stack = Stack::start_prepared("", TABLES);
    let mut client = stack.wire();
    client.run("BEGIN");
    let file = stack.helios.folder().join("helios.toml");
    std::fs::write(&file, "cache_in_transactions = \"never\"\n").expect("written");
    stack.helios.signal("HUP");
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut console = Wire::connect(stack.helios.port, "helios", &[]);
    while !console
        .query("SHOW CONFIG")
        .contains("cache_in_transactions|never")
    {
        assert!(Instant::now() < deadline, "not reloaded");
    }
    // The one that is open goes on as it began.
    client.run(READ);
    client.run("COMMIT");
    client.run("BEGIN");
    let open = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'";
    assert_eq!(stack.wire_direct().value(open), "1");
    client.run("COMMIT");
}
