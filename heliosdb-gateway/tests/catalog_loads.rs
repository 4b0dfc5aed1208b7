//! A session may have to read the catalog over its own connection: the client never notices.

use heliosdb_testkit::PostgresCluster;

use crate::support::raw::{query, step, sync};
use crate::support::{Helios, Stack};

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

/// A helios in front of a server that counts what it is asked, and how much of that it compiles.
fn counted() -> Stack {
    let cluster = PostgresCluster::builder()
        .setting("shared_preload_libraries", "pg_stat_statements")
        .setting("jit_above_cost", "0")
        .start()
        .expect("PostgreSQL starts");
    let set_up =
        "CREATE EXTENSION pg_stat_statements; CREATE TABLE u (v int); INSERT INTO u VALUES (1)";
    cluster.psql("postgres", set_up).expect("set up");
    let url = cluster.url("postgres", "postgres");
    let helios = Helios::start(&["--upstream", &url], "");
    Stack { helios, cluster }
}

/// What the server counted of the statement that reads the relations.
fn of_loads(stack: &Stack, what: &str) -> u64 {
    let question = format!(
        "SELECT coalesce(sum({what}), 0) FROM pg_stat_statements \
         WHERE query LIKE '%LEFT JOIN columns%' AND query NOT LIKE '%pg_stat_statements%'"
    );
    let counted = stack.wire_direct().value(&question);
    counted.parse().expect("a number")
}

#[test]
fn ddl_after_ddl_has_no_catalog_read_in_between() {
    let stack = counted();
    let mut client = stack.wire();
    assert_eq!(client.value("SELECT v FROM u"), "1");
    let before = of_loads(&stack, "calls");
    assert!(before > 0, "the catalog was read");
    for number in 0..5 {
        client.run(&format!("CREATE TABLE child_{number} () INHERITS (u)"));
        client.ask(&[step(&format!("CREATE INDEX ON child_{number} (v)")), sync()]);
    }
    assert_eq!(of_loads(&stack, "calls"), before);
    assert_eq!(client.value("SELECT v FROM u"), "1");
    client.run("INSERT INTO child_3 VALUES (2)");
    assert_eq!(client.value("SELECT sum(v) FROM u"), "3");
    assert_eq!(of_loads(&stack, "calls"), before + 1);
}

#[test]
fn what_no_grammar_accepts_has_no_catalog_read() {
    let stack = counted();
    let mut client = stack.wire();
    assert_eq!(client.value("SELECT v FROM u"), "1");
    let before = of_loads(&stack, "calls");
    for _ in 0..5 {
        for request in [
            vec![query("invalid sql")],
            vec![step("invalid sql"), sync()],
        ] {
            let said = client.ask(&request);
            assert!(said.contains("E ERROR 42601"), "{said}");
        }
    }
    assert_eq!(of_loads(&stack, "calls"), before);
    assert_eq!(client.value("SELECT v FROM u"), "1");
}

#[test]
fn no_part_of_the_catalog_query_is_compiled() {
    let stack = counted();
    assert_eq!(stack.wire().value("SELECT v FROM u"), "1");
    let mut direct = stack.wire_direct();
    let counts = "SELECT count(*) FROM pg_attribute \
                  WHERE attrelid = 'pg_stat_statements'::regclass AND attname = 'jit_functions'";
    // Before PostgreSQL 15 nobody counts it.
    assert_eq!(of_loads(&stack, "calls"), 1);
    if direct.value(counts) == "1" {
        assert_eq!(of_loads(&stack, "jit_functions"), 0);
    }
}

#[test]
fn an_event_trigger_that_is_new_is_known_to_the_ddl_after_it() {
    let stack = Stack::start_prepared("[pool]\nsize = 2\n", TABLES);
    let (mut client, mut other) = (stack.wire(), stack.wire());
    assert_eq!(client.value("SELECT v FROM u"), "0");
    client.run("CREATE TABLE before ()");
    client.run(
        "CREATE FUNCTION sets() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN \
         PERFORM set_config('work_mem', '7MB', false); END $$",
    );
    client.run("CREATE EVENT TRIGGER sets ON ddl_command_end EXECUTE FUNCTION sets()");
    client.run("CREATE TABLE after ()");
    // What the trigger set is this client's alone.
    assert_eq!(other.value("SHOW work_mem"), "4MB");
    assert_eq!(client.value("SHOW work_mem"), "7MB");
}
