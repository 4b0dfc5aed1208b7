//! `currval()` and `lastval()` give a client's own value or an error, never another client's value.

use crate::support::Stack;
use crate::support::raw::{step, sync};

const TABLES: &str = "CREATE TABLE t (id serial, v int); CREATE SEQUENCE other START 1000";
const NOT_YET: &str = "E ERROR 55000";

#[test]
fn the_value_of_another_client_is_never_given() {
    for asked in [
        "SELECT lastval()",
        "SELECT currval('other')",
        "SELECT lastval(), currval('other')",
    ] {
        let stack = Stack::start_prepared("[pool]\nsize = 1\n", TABLES);
        let (mut one, mut two) = (stack.wire(), stack.wire());
        one.run("SELECT nextval('other')");
        let said = two.query(asked);
        assert!(said.contains(NOT_YET), "{asked}: {said}");
        let said = two.ask(&[step(asked), sync()]);
        assert!(said.contains(NOT_YET), "{asked}: {said}");
        let said = two.query(&format!("BEGIN; {asked}"));
        assert!(said.contains(NOT_YET), "{asked}: {said}");
        two.query("ROLLBACK");
        // Neither is it after the client has used another sequence.
        one.run("SELECT nextval('other')");
        two.run("INSERT INTO t (v) VALUES (1)");
        let said = two.query("SELECT currval('other')");
        assert!(said.contains(NOT_YET), "{asked}: {said}");
        assert_eq!(two.value("SELECT lastval()"), "1");
    }
}

#[test]
fn a_client_gets_its_own_value_in_its_transaction_and_while_nobody_comes_between() {
    let stack = Stack::start_prepared("[pool]\nsize = 1\n", TABLES);
    let (mut one, mut two) = (stack.wire(), stack.wire());
    two.run("SELECT nextval('other')");
    one.run("BEGIN");
    one.run("INSERT INTO t (v) VALUES (1)");
    assert_eq!(one.value("SELECT currval('t_id_seq')"), "1");
    one.run("COMMIT");
    one.run("INSERT INTO t (v) VALUES (1)");
    assert_eq!(one.value("SELECT lastval()"), "2");
    two.run("SELECT 1");
    let said = one.query("SELECT lastval()");
    assert!(said.contains("\nD 2\n") || said.contains(NOT_YET), "{said}");
}

#[test]
fn a_value_that_is_left_on_another_connection_is_not_missed_for_a_wrong_one() {
    let stack = Stack::start_prepared("[pool]\nsize = 2\n", TABLES);
    let (mut one, mut two) = (stack.wire(), stack.wire());
    one.run("SELECT nextval('t_id_seq')");
    // It takes the connection that was used last.
    two.run("BEGIN");
    two.run("SELECT nextval('other')");
    let said = one.query("SELECT lastval()");
    assert!(said.contains(NOT_YET), "{said}");
    assert_eq!(two.value("SELECT lastval()"), "1000");
    two.run("COMMIT");
}
