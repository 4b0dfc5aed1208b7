//! `currval()` and `lastval()` give a client's own value or an error, never another client's value; and what sessions
//! begin with is known to those that begin after it was altered.

mod support;

use support::Stack;
use support::raw::{Wire, step, sync};

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

fn shown(client: &mut Wire) -> String {
    client.value("SHOW work_mem")
}

#[test]
fn sessions_begin_with_what_was_altered_through_helios() {
    let stack = Stack::start_prepared("[pool]\nsize = 2\n", TABLES);
    let mut open = stack.wire();
    open.run("SET lock_timeout = '7s'");
    assert_eq!(shown(&mut open), "4MB");
    let mut admin = stack.wire();
    admin.run("BEGIN");
    admin.run("ALTER ROLE postgres SET work_mem = '9MB'");
    assert_eq!(shown(&mut stack.wire()), "4MB", "it is not committed");
    admin.run("ROLLBACK");
    assert_eq!(shown(&mut stack.wire()), "4MB", "it was rolled back");
    for (sql, expected) in [
        ("ALTER ROLE postgres SET work_mem = '5MB'", "5MB"),
        ("ALTER ROLE postgres RESET work_mem", "4MB"),
        ("ALTER DATABASE postgres SET work_mem = '6MB'", "6MB"),
        (
            "ALTER ROLE postgres IN DATABASE postgres SET work_mem = '7MB'",
            "7MB",
        ),
    ] {
        admin.run(sql);
        assert_eq!(shown(&mut stack.wire()), expected, "{sql}");
        assert_eq!(shown(&mut stack.wire_direct()), expected, "{sql}");
    }
    // What a client has set itself is what it had set.
    assert_eq!(open.value("SHOW lock_timeout"), "7s");
}

#[test]
fn what_is_reported_at_the_beginning_of_a_session_is_what_was_altered() {
    let stack = Stack::start_prepared("", TABLES);
    let mut admin = stack.wire();
    admin.run("ALTER ROLE postgres SET TimeZone = 'Asia/Tokyo'");
    assert_eq!(stack.wire().value("SHOW TimeZone"), "Asia/Tokyo");
    admin.run("ALTER ROLE postgres SET TimeZone = 'Europe/Rome'");
    assert_eq!(stack.wire().value("SHOW TimeZone"), "Europe/Rome");
}
