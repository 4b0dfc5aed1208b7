//! The faults that were found in another proxy with a query cache, by reading it. None may be found in this one.
//!
//! | fault | what was wrong | the test of ours |
//! | --- | --- | --- |
//! | 1 | values taken out of a text in an order of their own | `texts_that_normalise_to_the_same_are_told_apart` |
//! | 2, 3 | comments stripped inside of literals | the same |
//! | 4 | quoted names folded | the same |
//! | 5 | dollar quotes folded | the same |
//! | 6 | keys are hashes and compared as such | the same; the cache's own tests compare keys of one hash |
//! | 7 | settings, role and encoding not in the key | `settings_are_part_of_the_question`, and `keys.rs` |
//! | 8 | eleven words for what is volatile | `what_is_done_by_reading_is_done_each_time`, and `attacks.rs` |
//! | 9 | writes of the extended protocol not seen | `writes_of_the_extended_protocol_are_seen` |
//! | 10 | invalidated by the statement, not by its COMMIT | `what_is_read_before_a_commit_is_not_kept_beyond_it` |
//! | 11 | invalidated behind the reply | `a_writer_reads_what_it_wrote` |
//! | 12 | a cache of each connection that no write reaches | the same |
//! | 13 | tables found by pattern | `every_table_of_a_statement_is_seen` |
//! | 14 | writes found by first word | `every_kind_of_write_is_seen`, and `writes.rs` |
//! | 15 | an answer from before a write stored behind it | `a_fill_that_a_write_overtakes_is_not_kept` |
//! | 16 | a mode announced that is not in force | `the_mode_in_force_is_the_one_announced` |
//! | 17 | maps that only grow | `memory_does_not_grow_with_what_was_asked` |
//! | 18 | no protection against stampedes | `pooling.rs`: `a_thousand_clients_share_a_few_connections_and_one_computation` |
//! | 19 | a scan under an exclusive lock for each hit | `a_hit_waits_for_no_other_hit_of_the_same_entry` in `heliosdb-cache/src/backend/memory.rs` |
//! | 20 | cancel requests sent to the process of the login | `a_cancel_stops_no_other_client` |
//! | 21 | DISCARD ALL behind each transaction | `statements_stay_prepared_and_are_shared` |
//! | 22 | each client's statements prepared anew | the same |

use std::time::{Duration, Instant};

use tokio_postgres::SimpleQueryMessage;

use crate::support::Stack;
use crate::support::raw::{
    Wire, bind_with, copy_data, copy_done, execute, parse, query, step, sync,
};

const SCHEMA: &str = "CREATE TABLE t (a int, b text); INSERT INTO t VALUES (1, '2'), (2, '1'), (3, 'x--1'), (4, 'x--2');
    CREATE TABLE users (id int PRIMARY KEY, name text); INSERT INTO users VALUES (1, 'one'), (2, 'two');
    CREATE TABLE \"Orders\" (id int, user_id int REFERENCES users ON DELETE CASCADE);
    INSERT INTO \"Orders\" VALUES (10, 1), (20, 2);
    CREATE SCHEMA a; CREATE TABLE a.t (a int, b text); INSERT INTO a.t VALUES (5, 'in a');
    CREATE TABLE moments (at timestamptz, d date); INSERT INTO moments VALUES ('2024-02-03 23:30+00', '2024-02-03');
    CREATE ROLE reader; GRANT USAGE ON SCHEMA a TO reader; GRANT SELECT ON moments TO reader;
    CREATE VIEW named AS SELECT name FROM users; CREATE SEQUENCE ids;
    CREATE TABLE parent (n int); CREATE TABLE child () INHERITS (parent); INSERT INTO child VALUES (1);
    CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM users;
    CREATE FUNCTION rename() RETURNS void LANGUAGE sql AS 'UPDATE users SET name = name || ''.''';
    CREATE PROCEDURE renames() LANGUAGE sql AS 'UPDATE users SET name = name || '',''';";

/// What the server itself answers.
fn truth(stack: &Stack, sql: &str) -> String {
    stack.wire_direct().query(sql)
}

#[test]
fn texts_that_normalise_to_the_same_are_told_apart() {
    let stack = Stack::start_prepared("", SCHEMA);
    let mut client = stack.wire();
    let alike = [
        vec![
            "SELECT a FROM t WHERE a = 1 AND b = '2'",
            "SELECT a FROM t WHERE b = '1' AND a = 2",
            "SELECT a FROM t WHERE a = '2' AND b = '1'",
        ],
        vec![
            "SELECT a FROM t WHERE b = 'x--1'",
            "SELECT a FROM t WHERE b = 'x--2'",
        ],
        vec!["SELECT '/*1*/'", "SELECT '/*2*/'"],
        vec!["SELECT 1 AS \"A\"", "SELECT 1 AS \"a\""],
        vec!["SELECT $$a$$", "SELECT $$A$$"],
        vec![
            "SELECT a FROM t WHERE b like 'x;y'",
            "SELECT a FROM t WHERE b like 'x;%'",
        ],
    ];
    for texts in alike {
        for attempt in ["a miss", "a hit"] {
            for text in &texts {
                assert_eq!(client.query(text), truth(&stack, text), "{text}: {attempt}");
            }
        }
    }
}

#[test]
fn settings_are_part_of_the_question() {
    let stack = Stack::start_prepared("", SCHEMA);
    let asked = [
        "SELECT b FROM t ORDER BY 1",
        "SELECT at FROM moments",
        "SELECT d FROM moments",
    ];
    let settings = [
        "SELECT 1",
        "SET search_path = a",
        "SET TimeZone = 'Asia/Tokyo'",
        "SET DateStyle = 'German'",
        "SET ROLE reader",
        "SET client_encoding = 'LATIN1'",
    ];
    for round in 0..2 {
        for setting in settings {
            let (mut client, mut direct) = (stack.wire(), stack.wire_direct());
            client.run(setting);
            direct.run(setting);
            for sql in asked {
                assert_eq!(
                    client.query(sql),
                    direct.query(sql),
                    "{sql} under {setting}, round {round}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_by_reading_is_done_each_time() {
    let stack = Stack::start_prepared("", SCHEMA);
    let (mut one, mut other) = (stack.wire(), stack.wire());
    let lock = "SELECT pg_try_advisory_lock(1)";
    assert_eq!(one.value(lock), "t");
    assert_eq!(other.value(lock), "f");
    for sql in [
        "SELECT nextval('ids')",
        "SELECT statement_timestamp()",
        "SELECT txid_current()",
        "SELECT random()",
    ] {
        assert_ne!(one.value(sql), other.value(sql), "{sql}");
    }
    for sql in [
        "SELECT current_user",
        "SELECT pg_sleep(0)",
        "SELECT a FROM t FOR NO KEY UPDATE",
        "SELECT a FROM t FOR\nKEY SHARE",
        "SELECT rename()",
    ] {
        one.run(sql);
        one.run(sql);
    }
    assert_eq!(one.value("SELECT name FROM users WHERE id = 1"), "one..");
    assert_eq!(stack.helios.cache_count("hits").await, 0);
}

#[test]
fn writes_of_the_extended_protocol_are_seen() {
    let stack = Stack::start_prepared("", SCHEMA);
    let (mut reader, mut writer) = (stack.wire(), stack.wire());
    let read = "SELECT name FROM users WHERE id = 1";
    let update = "UPDATE users SET name = name || $1 WHERE id = 1";
    writer.ask(&[parse("s", update), sync()]);
    let unnamed = [
        parse("", update),
        bind_with("", "", &["!"]),
        execute("", 0),
        sync(),
    ];
    let named = [bind_with("", "s", &["?"]), execute("", 0), sync()];
    let in_portal = [bind_with("p", "s", &["+"]), execute("p", 0), sync()];
    for (messages, expected) in [
        (&unnamed[..], "one!"),
        (&named, "one!?"),
        (&in_portal, "one!?+"),
    ] {
        reader.run(read);
        reader.run(read);
        writer.ask(messages);
        assert_eq!(reader.value(read), expected);
    }
}

#[test]
fn what_is_read_before_a_commit_is_not_kept_beyond_it() {
    let stack = Stack::start_prepared("", SCHEMA);
    let (mut reader, mut writer) = (stack.wire(), stack.wire());
    let read = "SELECT name FROM users WHERE id = 1";
    writer.run("BEGIN");
    writer.run("UPDATE users SET name = 'changed' WHERE id = 1");
    for _ in 0..3 {
        assert_eq!(reader.value(read), "one");
    }
    writer.run("COMMIT");
    assert_eq!(reader.value(read), "changed");
    writer.run("BEGIN");
    writer.run("UPDATE users SET name = 'undone' WHERE id = 1");
    assert_eq!(reader.value(read), "changed");
    writer.run("ROLLBACK");
    assert_eq!(reader.value(read), "changed");
}

#[test]
fn a_writer_reads_what_it_wrote() {
    let stack = Stack::start_prepared("", SCHEMA);
    let mut clients: Vec<Wire> = (0..3).map(|_| stack.wire()).collect();
    let read = "SELECT name FROM users WHERE id = 1";
    for number in 0..200 {
        let writer = number % clients.len();
        let name = format!("name {number}");
        clients[writer].run(&format!("UPDATE users SET name = '{name}' WHERE id = 1"));
        for client in &mut clients {
            for _ in 0..2 {
                assert_eq!(client.value(read), name);
            }
        }
    }
}

#[test]
fn every_table_of_a_statement_is_seen() {
    let stack = Stack::start_prepared("", SCHEMA);
    let (mut reader, mut writer) = (stack.wire(), stack.wire());
    let reads = [
        "SELECT count(*) FROM t, users",
        "SELECT count(*) FROM users AS u, \"Orders\" o WHERE o.user_id = u.id",
        "SELECT count(*) FROM \"Orders\"",
        "SELECT count(*) FROM named",
        "SELECT count(*) FROM parent",
        "SELECT count(*) FROM a.t",
    ];
    let writes: [&[Vec<u8>]; 8] = [
        &[query("INSERT INTO users VALUES (3, 'three')")],
        &[query("INSERT INTO \"Orders\" VALUES (30, 3)")],
        &[query("DELETE FROM ONLY users WHERE id = 2")],
        &[
            query("COPY users FROM STDIN"),
            copy_data("5\tfive\n"),
            copy_done(),
        ],
        &[query("INSERT INTO child VALUES (2)")],
        &[query("INSERT INTO a.t SELECT * FROM public.t")],
        &[query("TRUNCATE t")],
        &[query("TRUNCATE users CASCADE")],
    ];
    for write in writes {
        for read in reads {
            reader.run(read);
            reader.run(read);
        }
        writer.ask(write);
        for read in reads {
            assert_eq!(reader.query(read), truth(&stack, read), "{read}");
        }
    }
}

#[test]
fn every_kind_of_write_is_seen() {
    let stack = Stack::start_prepared("", SCHEMA);
    let (mut reader, mut writer) = (stack.wire(), stack.wire());
    let reads = [
        "SELECT id, name FROM users ORDER BY id",
        "SELECT n FROM counted",
    ];
    for write in [
        "MERGE INTO users u USING t ON u.id = t.a WHEN MATCHED THEN UPDATE SET name = t.b WHEN NOT MATCHED THEN INSERT VALUES (t.a, t.b)",
        "CALL renames()",
        "DO 'BEGIN UPDATE users SET name = name || ''#''; END'",
        "WITH new AS (INSERT INTO users VALUES (9, 'nine') RETURNING id) SELECT id FROM new",
        "REFRESH MATERIALIZED VIEW counted",
        "BEGIN; LOCK users; DELETE FROM users WHERE id = 9; COMMIT",
        "EXPLAIN ANALYZE DELETE FROM users WHERE id = 4",
        "ALTER TABLE users ADD more int DEFAULT 7",
        "SELECT rename()",
    ] {
        for read in reads {
            reader.run(read);
            reader.run(read);
        }
        writer.run(write);
        for read in reads {
            assert_eq!(
                reader.query(read),
                truth(&stack, read),
                "{read} behind {write}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fill_that_a_write_overtakes_is_not_kept() {
    let stack = Stack::start_prepared("", SCHEMA);
    for number in 0..3 {
        // Reads `users` when it begins, and is busy for long behind that.
        let slow = format!(
            "SELECT max(u.name), count(*), {number} FROM users u, generate_series(1, 1000000)"
        );
        let mut filler = stack.wire();
        filler.send(&[query(&slow)]);
        let mut direct = stack.wire_direct();
        let begun = format!("SELECT count(*) FROM pg_stat_activity WHERE query = '{slow}'");
        let deadline = Instant::now() + Duration::from_secs(10);
        while direct.value(&begun) == "0" {
            assert!(Instant::now() < deadline, "it does not begin");
        }
        let mut writer = stack.wire();
        writer.run(&format!("UPDATE users SET name = 'z{number}'"));
        filler.replies(1);
        let expected = format!("z{number}|2000000|{number}");
        assert_eq!(stack.wire().value(&slow), expected);
        assert_eq!(stack.wire().value(&slow), expected);
    }
    assert!(stack.helios.cache_count("hits").await >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mode_in_force_is_the_one_announced() {
    let stack = Stack::start_prepared("", SCHEMA);
    let console = stack.helios.client("postgres", "helios").await;
    let rows = console.simple_query("SHOW CONFIG").await.expect("answered");
    let mode = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) if row.get("key") == Some("invalidation") => row.get("value"),
        _ => None,
    });
    let mode = mode.expect("the mode is shown");
    let mut client = stack.wire();
    let read = "SELECT name FROM users WHERE id = 1";
    client.run(read);
    client.run(read);
    // A write that helios does not see.
    stack.psql("UPDATE users SET name = 'elsewhere' WHERE id = 1");
    let deadline = Instant::now() + Duration::from_secs(3);
    let mut seen = client.value(read);
    while seen != "elsewhere" && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
        seen = client.value(read);
    }
    let follows = seen == "elsewhere";
    assert_eq!(follows, mode == "replication", "the mode is {mode}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_does_not_grow_with_what_was_asked() {
    let stack = Stack::start_prepared(
        "[cache]\nsize = \"1 MiB\"\nmax_entry = \"16 KiB\"\n",
        SCHEMA,
    );
    let mut client = stack.wire();
    for number in 0..6000 {
        client.run(&format!(
            "SELECT {number} AS n{}, repeat('x', 400) FROM t",
            number % 50
        ));
    }
    let size = stack.helios.cache_count("bytes").await;
    assert!(size <= 1 << 20, "{size} bytes");
    assert!(stack.helios.cache_count("evictions").await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_stops_no_other_client() {
    let stack = Stack::start_prepared("[pool]\nsize = 4\n", SCHEMA);
    // Connections change hands, so that nobody is on the one that served its login.
    let mut clients = Vec::new();
    for _ in 0..4 {
        let client = stack.client().await;
        client
            .batch_execute("BEGIN; SELECT 1")
            .await
            .expect("begun");
        clients.push(client);
    }
    for client in clients.iter().rev() {
        client.batch_execute("COMMIT").await.expect("ended");
    }
    let cancelled = clients.remove(0);
    for round in 0..3 {
        let long = format!("SELECT pg_sleep(30), {round}");
        let sleeping = async { cancelled.simple_query(&long).await };
        let cancelling = async {
            let direct = stack.direct().await;
            let asleep =
                format!("SELECT FROM pg_stat_activity WHERE query = '{long}' AND state = 'active'");
            while direct
                .query(&asleep, &[])
                .await
                .expect("answered")
                .is_empty()
            {}
            let token = cancelled.cancel_token();
            token
                .cancel_query(tokio_postgres::NoTls)
                .await
                .expect("sent");
        };
        let others = futures_util::future::join_all(
            clients
                .iter()
                .map(|client| client.simple_query("SELECT pg_sleep(0.5)")),
        );
        let (stopped, (), others) = tokio::join!(sleeping, cancelling, others);
        let error = stopped.expect_err("cancelled");
        assert_eq!(error.code().map(|code| code.code()), Some("57014"));
        for other in others {
            other.expect("not cancelled");
        }
    }
}

#[test]
fn statements_stay_prepared_and_are_shared() {
    let stack = Stack::start_prepared("[pool]\nsize = 1\n", SCHEMA);
    let volatile = "SELECT a, random() FROM t WHERE a = $1";
    let mut clients: Vec<Wire> = (0..10).map(|_| stack.wire()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let name = format!("client {number}");
        client.ask(&[parse(&name, volatile), sync()]);
        for _ in 0..3 {
            let told = client.ask(&[bind_with("", &name, &["1"]), execute("", 0), sync()]);
            assert!(!told.contains("E ERROR"), "{told}");
        }
        client.ask(&[step("SELECT 1"), sync()]);
    }
    let prepared = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%random()%'";
    assert_eq!(stack.wire().value(prepared), "1");
}
