//! `cached plan must not change result type`: the client is spared it where it learns the columns with the rows, and gets
//! over it elsewhere.

use crate::support::Stack;
use crate::support::raw::{Wire, bind, describe, execute, parse, query, step_named, sync};

const TABLES: &str = "CREATE TABLE t (a int); INSERT INTO t VALUES (1)";
/// Never answered from memory.
const READ: &str = "SELECT t.*, random() < 2 AS always FROM t";
const STALE: &str = "E ERROR 0A000 cached plan must not change result type";

/// A stack of one connection, and a client that has prepared and run `s`; then the table gets a column.
fn altered(prepare: &[Vec<u8>]) -> (Stack, Wire) {
    let stack = Stack::start_prepared("[pool]\nsize = 1\n", TABLES);
    let mut client = stack.wire();
    client.ask(prepare);
    let before = client.ask(&described());
    assert!(before.contains("D 1|t"), "{before}");
    // By another way: nobody tells helios.
    stack.psql("ALTER TABLE t ADD COLUMN b int DEFAULT 2");
    (stack, client)
}

fn by_message() -> Vec<Vec<u8>> {
    vec![parse("s", READ), sync()]
}

fn by_statement() -> Vec<Vec<u8>> {
    vec![query(&format!("PREPARE s AS {READ}"))]
}

fn described() -> Vec<Vec<u8>> {
    vec![bind("", "s"), describe('P', ""), execute("", 0), sync()]
}

fn assert_new(said: &str) {
    assert!(
        said.contains("a of type 23|b of type 23|always of type 16"),
        "{said}"
    );
    assert!(
        said.contains("D 1|2|t") && said.ends_with("Z I\n"),
        "{said}"
    );
    assert!(!said.contains('E') || !said.contains(STALE), "{said}");
}

#[test]
fn a_request_that_asks_for_its_columns_gets_the_new_ones() {
    for prepare in [by_message(), by_statement()] {
        let (stack, mut client) = altered(&prepare);
        let said = client.ask(&described());
        assert_new(&said);
        assert!(said.starts_with("2\nT "), "{said}");
        // What was pipelined behind it is answered behind it.
        stack.psql("ALTER TABLE t DROP COLUMN b; ALTER TABLE t ADD COLUMN b int DEFAULT 2");
        let said = client.asks(2, &[described(), vec![query("SELECT 'behind'")]].concat());
        assert!(said.ends_with("D behind\nC SELECT 1\nZ I\n"), "{said}");
    }
}

#[test]
fn an_execute_statement_gets_the_new_columns() {
    for prepare in [by_message(), by_statement()] {
        let (_stack, mut client) = altered(&prepare);
        assert_new(&client.query("EXECUTE s"));
    }
}

#[test]
fn a_request_that_knows_its_columns_fails_once() {
    for prepare in [by_message(), by_statement()] {
        let (_stack, mut client) = altered(&prepare);
        let said = client.ask(&[step_named("s"), sync()]);
        assert!(said.starts_with(STALE), "{said}");
        assert_new(&client.ask(&described()));
        let said = client.ask(&[step_named("s"), sync()]);
        assert!(said.contains("D 1|2|t"), "{said}");
    }
}

#[test]
fn a_transaction_fails_once() {
    for prepare in [by_message(), by_statement()] {
        for request in [described(), vec![query("EXECUTE s")]] {
            let (_stack, mut client) = altered(&prepare);
            client.query("BEGIN");
            let said = client.ask(&request);
            assert!(said.starts_with(STALE) && said.ends_with("Z E\n"), "{said}");
            client.query("ROLLBACK");
            client.query("BEGIN");
            let said = client.ask(&request);
            assert!(
                said.contains("D 1|2|t") && said.ends_with("Z T\n"),
                "{said}"
            );
        }
    }
}

#[test]
fn what_has_done_something_already_is_not_repeated() {
    let (stack, mut client) = altered(&by_statement());
    stack.psql("CREATE TABLE log (a int)");
    let said = client.query("INSERT INTO log VALUES (1); EXECUTE s");
    assert!(said.contains(STALE), "{said}");
    assert_eq!(
        client.value("SELECT count(*) FROM log, random() r WHERE r < 2"),
        "0"
    );
    assert_new(&client.query("EXECUTE s"));
    stack.psql("ALTER TABLE t ADD COLUMN c int");
    let unit = [
        parse("", "INSERT INTO log VALUES (1)"),
        bind("", ""),
        execute("", 0),
        bind("", "s"),
        describe('P', ""),
        execute("", 0),
        sync(),
    ];
    let said = client.ask(&unit);
    assert!(said.contains(STALE), "{said}");
    assert_eq!(
        client.value("SELECT count(*) FROM log, random() r WHERE r < 2"),
        "0"
    );
}
