//! A session may have to read the catalog over its own connection: the client never notices.

mod support;

use support::Stack;
use support::raw::{query, step, sync};

const TABLES: &str = "
    CREATE TABLE u (id int, v int); INSERT INTO u VALUES (1, 0);
    CREATE VIEW seen AS SELECT * FROM u";

#[test]
fn a_tiny_statement_timeout_is_for_the_clients_own_statements() {
    let stack = Stack::start_prepared("[pool]\nsize = 2\n", TABLES);
    let (mut client, mut other) = (stack.wire(), stack.wire());
    // What ties it to its server connection makes it read the catalog there.
    client.run("PREPARE tie AS SELECT 1");
    client.run("SET statement_timeout = '1ms'");
    for number in 0..5 {
        other.run("CREATE TABLE passing (); DROP TABLE passing");
        for request in [
            vec![query("SELECT 1, random() < 2")],
            vec![step("SELECT 1, random() < 2"), sync()],
        ] {
            let said = client.ask(&request);
            // A statement of its own may be late on a busy machine.
            let is_right = said.contains("D 1|t") || said.contains("E ERROR 57014");
            assert!(is_right && said.ends_with("Z I\n"), "{number}: {said}");
        }
    }
    while client.query("SET statement_timeout = 0").contains("57014") {}
    assert_eq!(client.value("SELECT v FROM u"), "0");
    client.run("INSERT INTO u VALUES (2, 0)");
    assert_eq!(stack.wire_direct().value("SELECT count(*) FROM u"), "2");
}

#[test]
fn a_lock_on_a_view_keeps_nobody_from_another_table() {
    let stack = Stack::start_prepared("[pool]\nsize = 4\n", TABLES);
    let (mut client, mut other) = (stack.wire(), stack.wire());
    client.run("PREPARE tie AS SELECT 1");
    other.run("SELECT 1");
    let mut locker = stack.wire_direct();
    // LOCK would lock the tables behind the view as well.
    locker.run("BEGIN; ALTER VIEW seen ALTER COLUMN v SET DEFAULT 1");
    other.run("CREATE TABLE passing ()");
    // The catalog can't be read now.
    for number in 0..2 {
        assert_eq!(client.value("SELECT 1, random() < 2"), "1|t", "{number}");
        assert_eq!(client.value("SELECT v FROM u"), "0", "{number}");
    }
    client.run("INSERT INTO u VALUES (2, 0)");
    locker.run("COMMIT");
    assert_eq!(client.value("SELECT count(*) FROM u"), "2");
    assert_eq!(stack.wire_direct().value("SELECT count(*) FROM u"), "2");
}
