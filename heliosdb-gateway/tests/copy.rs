//! COPY in pipelines: whatever is sent in front of it, behind it and into it, the answers are PostgreSQL's, and each
//! goes to the client that asked.

use crate::support::Stack;
use crate::support::raw::{
    bind, copy_data, copy_done, execute, first_row, flush, message, parse, query, step, sync,
};

const TABLES: &str = "
    CREATE TABLE words (word text); CREATE TABLE numbers (n int);
    CREATE TABLE u (id int, v int); INSERT INTO u VALUES (1, 0)";

fn copy_fail() -> Vec<u8> {
    message(b'f', b"no more\0")
}

/// What a client sends, and how many ReadyForQuery answer it.
fn exchanges() -> Vec<(&'static str, usize, Vec<Vec<u8>>)> {
    let words = || step("COPY words FROM STDIN");
    let line = || copy_data("one\n");
    vec![
        (
            "a unit with its data",
            1,
            vec![words(), line(), copy_done(), sync()],
        ),
        (
            "a Sync too many",
            2,
            vec![words(), line(), copy_done(), sync(), sync()],
        ),
        (
            "a Sync in front of the data, which is ignored",
            1,
            vec![words(), sync(), line(), copy_done(), sync()],
        ),
        (
            "Syncs and a Flush in the middle of the data, which are ignored",
            1,
            vec![
                words(),
                line(),
                sync(),
                line(),
                flush(),
                sync(),
                copy_done(),
                sync(),
            ],
        ),
        (
            "a copy that the client gives up",
            1,
            vec![words(), line(), copy_fail(), sync()],
        ),
        (
            "a copy between other statements of a unit",
            1,
            vec![
                step("SELECT 1"),
                words(),
                line(),
                copy_done(),
                step("SELECT 2"),
                sync(),
            ],
        ),
        (
            "two copies in one unit",
            1,
            vec![
                words(),
                line(),
                copy_done(),
                words(),
                line(),
                copy_done(),
                sync(),
            ],
        ),
        (
            "two units",
            2,
            vec![
                words(),
                line(),
                copy_done(),
                sync(),
                words(),
                line(),
                copy_done(),
                sync(),
            ],
        ),
        (
            "data that is refused",
            1,
            vec![
                step("COPY numbers FROM STDIN"),
                line(),
                copy_done(),
                step("SELECT 3"),
                sync(),
            ],
        ),
        (
            "a unit behind data that is refused",
            2,
            vec![
                step("COPY numbers FROM STDIN"),
                line(),
                copy_done(),
                sync(),
                step("SELECT 4"),
                sync(),
            ],
        ),
        (
            "a copy into nothing",
            1,
            vec![step("COPY nowhere FROM STDIN"), line(), copy_done(), sync()],
        ),
        (
            "a query with its data",
            1,
            vec![query("COPY words FROM STDIN"), line(), copy_done()],
        ),
        (
            "a query with its data and another",
            2,
            vec![
                query("COPY words FROM STDIN"),
                line(),
                copy_done(),
                query("SELECT 5"),
            ],
        ),
        (
            "two copies in one query",
            1,
            vec![
                query("COPY words FROM STDIN; SELECT 6; COPY words FROM STDIN"),
                line(),
                copy_done(),
                line(),
                copy_done(),
            ],
        ),
        (
            "a copy out",
            2,
            vec![
                step("COPY (SELECT 'out') TO STDOUT"),
                sync(),
                query("COPY (SELECT 'out') TO STDOUT"),
            ],
        ),
        (
            "a transaction around a unit with its data",
            3,
            vec![
                query("BEGIN"),
                words(),
                line(),
                copy_done(),
                sync(),
                query("COMMIT"),
            ],
        ),
    ]
}

/// A request other than the data in the middle of a COPY.
fn interruptions() -> [Vec<Vec<u8>>; 4] {
    [
        vec![query("COPY words FROM STDIN"), query("SELECT 1")],
        vec![
            query("COPY words FROM STDIN"),
            copy_data("one\n"),
            query("SELECT 1"),
            copy_data("two\n"),
            copy_done(),
        ],
        vec![step("COPY words FROM STDIN"), query("SELECT 1"), sync()],
        vec![
            step("COPY words FROM STDIN"),
            parse("", "SELECT 1"),
            bind("", ""),
            execute("", 0),
            sync(),
        ],
    ]
}

#[test]
fn copies_in_pipelines_are_answered_as_by_the_server_itself() {
    let stack = Stack::start_twice("[pool]\nsize = 1\n", TABLES);
    let mut twin = stack.wire_twin();
    let mut wrong = Vec::new();
    for (name, n, exchange) in exchanges() {
        let expected = twin.asks(n, &exchange);
        // Another client's turn follows on the same server connection.
        let mut client = stack.wire();
        let mut other = stack.wire();
        let got = client.asks(n, &exchange);
        if got != expected {
            wrong.push(format!("{name}:\n{got}instead of\n{expected}"));
        }
        for number in ["7", "8"] {
            let count = "SELECT count(*) FROM words WHERE random() < 2";
            assert_eq!(
                client.value(&format!("SELECT {number}, random() < 2")),
                format!("{number}|t")
            );
            assert_eq!(other.value(count), twin.value(count), "{name}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for exchange in interruptions() {
        // Whether the server goes on after that is its affair.
        let whole = [exchange, vec![query("SELECT 'last'")]].concat();
        let said = [stack.wire_twin(), stack.wire()].map(|mut client| {
            client.send(&whole);
            client.rest_or("D last")
        });
        assert_eq!(said[1], said[0]);
        let mut other = stack.wire();
        assert_eq!(other.value("SELECT 'other', random() < 2"), "other|t");
    }
}

#[test]
fn what_follows_a_copy_in_a_pipeline_is_answered_to_the_client_that_asked() {
    let stack = Stack::start_twice("[pool]\nsize = 1\n", TABLES);
    let mut twin = stack.wire_twin();
    for (name, n, exchange) in exchanges() {
        let slow = query("SELECT pg_sleep(0.1), 'for one'");
        let whole = [exchange, vec![slow]].concat();
        let (mut one, mut two) = (stack.wire(), stack.wire());
        let expected = twin.asks(n + 1, &whole);
        one.send(&whole);
        let mut got = one.replies(1);
        // The server connection is not free yet: the slow query is on it.
        let answer = two.query("SELECT 'for two', random() < 2");
        assert_eq!(first_row(&answer).as_deref(), Some("for two|t"), "{name}");
        got += &one.replies(n);
        assert_eq!(got, expected, "{name}");
    }
}

#[test]
fn a_write_behind_a_copy_in_a_pipeline_leaves_no_stale_read() {
    let stack = Stack::start_prepared("[pool]\nsize = 4\n", TABLES);
    let (mut reader, mut direct) = (stack.wire(), stack.wire_direct());
    let mut expected = 0;
    for syncs in 1..=2 {
        assert_eq!(reader.value("SELECT v FROM u"), expected.to_string());
        let mut writer = stack.wire();
        let copy = [
            step("COPY words FROM STDIN"),
            copy_data("one\n"),
            copy_done(),
        ];
        let write = query("UPDATE u SET v = v + 5 FROM (SELECT pg_sleep(0.3)) s");
        writer.send(&[copy.concat(), sync().repeat(syncs), write]);
        writer.replies(syncs);
        // While the write is under way the old row may be read, but not kept.
        let read = reader.query("SELECT v FROM u");
        let row = first_row(&read);
        assert!(
            row == Some(expected.to_string()) || row == Some((expected + 5).to_string()),
            "{read}"
        );
        writer.replies(1);
        expected += 5;
        assert_eq!(direct.value("SELECT v FROM u"), expected.to_string());
        assert_eq!(
            reader.value("SELECT v FROM u"),
            expected.to_string(),
            "{syncs}"
        );
    }
}

#[test]
fn a_client_that_leaves_in_a_copy_leaves_the_connection_to_others() {
    let stack = Stack::start_prepared("[pool]\nsize = 1\n", TABLES);
    let pid = "SELECT pg_backend_pid(), random() < 2";
    for syncs in 0..=2 {
        let before = stack.wire().value(pid);
        let mut leaver = stack.wire();
        leaver.send(&[
            step("COPY words FROM STDIN"),
            sync().repeat(syncs),
            copy_data("one\n"),
            flush(),
        ]);
        // CopyInResponse.
        leaver.until(b'G');
        drop(leaver);
        let mut other = stack.wire();
        assert_eq!(other.value(pid), before, "{syncs}");
        assert_eq!(other.value("SELECT count(*) FROM words"), "0");
    }
}

/// The Sync that a COPY would have swallowed comes to be read after all where the COPY is cancelled before it reads: the
/// server answers once more than the client could tell.
#[test]
fn a_copy_that_is_cancelled_before_it_reads_leaves_the_connection_to_others() {
    let slow = "
        CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep(20); RETURN NULL; END';
        CREATE TRIGGER first BEFORE INSERT ON words FOR EACH STATEMENT EXECUTE FUNCTION dawdle()";
    let stack = Stack::start_prepared("[pool]\nsize = 1\n", &format!("{TABLES}; {slow}"));
    let pid = "SELECT pg_backend_pid(), random() < 2";
    for syncs in 0..=2 {
        let before = stack.wire().value(pid);
        let mut leaver = stack.wire();
        leaver.send(&[step("COPY words FROM STDIN"), sync().repeat(syncs), flush()]);
        // CopyInResponse.
        leaver.until(b'G');
        drop(leaver);
        let mut other = stack.wire();
        assert_eq!(other.value(pid), before, "{syncs}");
        assert_eq!(other.value("SELECT count(*) FROM words"), "0");
    }
}
