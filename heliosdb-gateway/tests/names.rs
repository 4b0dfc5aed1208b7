//! What a name means when a statement runs decides which answers it makes stale, and which table a read is of.

use crate::support::Stack;
use crate::support::raw::{bind, execute, parse, query, step, step_named, sync};

const POOL: &str = "[pool]\nsize = 4\n";

/// The same table in three schemas, each with a row that says which it is.
const TABLES: &str = "
    CREATE TABLE t (id int, v int); INSERT INTO t VALUES (1, 1000);
    CREATE SCHEMA a; CREATE TABLE a.t (id int, v int); INSERT INTO a.t VALUES (1, 2000);
    CREATE SCHEMA b; CREATE TABLE b.t (id int, v int); INSERT INTO b.t VALUES (1, 3000);
    CREATE TABLE u (id int, v int); INSERT INTO u VALUES (1, 0);
    CREATE ROLE b; GRANT USAGE ON SCHEMA b TO b; GRANT ALL ON b.t TO b; GRANT ALL ON t TO b";

/// Requests that a client sends one after another, each with the number of ReadyForQuery that it is answered by.
type Requests = Vec<(usize, Vec<u8>)>;

fn queries<const N: usize>(texts: [&str; N]) -> Requests {
    texts.map(|text| (1, query(text))).into()
}

/// All at once.
fn pipeline<const N: usize>(texts: [&str; N]) -> Requests {
    vec![(N, texts.map(query).concat())]
}

/// One unit of the extended protocol.
fn unit<const N: usize>(texts: [&str; N]) -> Requests {
    vec![(1, [texts.map(step).concat(), sync()].concat())]
}

const WRITE: &str = "UPDATE t SET v = v + 10";

/// Ways to come to write `b.t`, by the name of `t`, from a startup packet that leads elsewhere.
fn ways_to_write() -> Vec<(&'static str, Requests)> {
    vec![
        (
            "SET LOCAL in a transaction",
            queries(["BEGIN", "SET LOCAL search_path = b", WRITE, "COMMIT"]),
        ),
        (
            "SET in a transaction",
            queries(["BEGIN", "SET search_path = b", WRITE, "COMMIT"]),
        ),
        (
            "set_config in a transaction",
            queries([
                "BEGIN",
                "SELECT set_config('search_path', 'b', true)",
                WRITE,
                "COMMIT",
            ]),
        ),
        (
            "SET and SET LOCAL in a transaction",
            queries([
                "BEGIN",
                "SET search_path = a",
                "SET LOCAL search_path = b",
                WRITE,
                "COMMIT",
            ]),
        ),
        (
            "a role in a transaction, which the path follows",
            queries([
                "SET search_path = \"$user\", public",
                "BEGIN",
                "SET LOCAL ROLE b",
                WRITE,
                "COMMIT",
            ]),
        ),
        (
            "a savepoint that is gone back to",
            queries([
                "SET search_path = b",
                "BEGIN",
                "SAVEPOINT s",
                "SET search_path = a",
                "ROLLBACK TO s",
                WRITE,
                "COMMIT",
            ]),
        ),
        (
            "a chained transaction, in which what was local is over",
            queries([
                "SET search_path = b",
                "BEGIN",
                "SET LOCAL search_path = a",
                "COMMIT AND CHAIN",
                WRITE,
                "COMMIT",
            ]),
        ),
        (
            "SET in a transaction that is rolled back, and the write right behind it",
            [
                queries(["SET search_path = b", "BEGIN", "SET search_path = a"]),
                pipeline(["ROLLBACK", WRITE]),
            ]
            .concat(),
        ),
        ("SET, pipelined", pipeline(["SET search_path = b", WRITE])),
        (
            "set_config, pipelined",
            pipeline(["SELECT set_config('search_path', 'b', false)", WRITE]),
        ),
        (
            "a SET that fails, pipelined",
            [
                queries(["SET search_path = b"]),
                pipeline(["SET search_path = a; SELECT 1/0", WRITE]),
            ]
            .concat(),
        ),
        (
            "a transaction in a pipeline",
            pipeline(["BEGIN", "SET LOCAL search_path = b", WRITE, "COMMIT"]),
        ),
        (
            "SET in the same query",
            queries([&format!("SET search_path = b; {WRITE}")]),
        ),
        (
            "a transaction in one query",
            queries([&format!(
                "BEGIN; SET LOCAL search_path = b; {WRITE}; COMMIT"
            )]),
        ),
        ("SET in the same unit", unit(["SET search_path = b", WRITE])),
        (
            "SET LOCAL in a unit's transaction",
            unit(["BEGIN", "SET LOCAL search_path = b", WRITE, "COMMIT"]),
        ),
        (
            "set_config in the same unit",
            unit(["SELECT set_config('search_path', 'b', true)", WRITE]),
        ),
        (
            "a statement prepared under another path",
            [
                vec![(1, [parse("w", WRITE), sync()].concat())],
                queries(["BEGIN", "SET LOCAL search_path = b"]),
                vec![(1, [step_named("w"), sync()].concat())],
                queries(["COMMIT"]),
            ]
            .concat(),
        ),
    ]
}

/// Ways to come back to `b`, where the startup packet led to.
fn ways_back() -> Vec<(&'static str, Requests)> {
    let away = || queries(["SET search_path = a"]);
    vec![
        (
            "RESET in a transaction",
            [
                away(),
                queries(["BEGIN", "RESET search_path", WRITE, "COMMIT"]),
            ]
            .concat(),
        ),
        (
            "RESET ALL in the same query",
            [away(), queries([&format!("RESET ALL; {WRITE}")])].concat(),
        ),
        (
            "DISCARD ALL, pipelined",
            [away(), pipeline(["DISCARD ALL", WRITE])].concat(),
        ),
        (
            "SET TO DEFAULT in the same unit",
            [away(), unit(["SET search_path TO DEFAULT", WRITE])].concat(),
        ),
        (
            "RESET ALL in a transaction that is rolled back",
            queries(["BEGIN", "RESET ALL", "ROLLBACK", WRITE]),
        ),
    ]
}

/// Lets a client write `b.t` in each of these ways while another reads it; returns what went wrong.
fn write_and_read(startup: &[(&str, &str)], ways: Vec<(&str, Requests)>) -> Vec<String> {
    let stack = Stack::start_prepared(POOL, TABLES);
    let mut reader = stack.wire();
    let mut direct = stack.wire_direct();
    let mut wrong = Vec::new();
    for (way, requests) in ways {
        let before: i32 = direct.value("SELECT v FROM b.t").parse().expect("a number");
        // Now it is in the cache.
        assert_eq!(reader.value("SELECT v FROM b.t"), before.to_string());
        let mut writer = stack.wire_with(startup);
        let mut said = String::new();
        for (n, request) in requests {
            said += &writer.asks(n, &[request]);
        }
        let written = direct.value("SELECT v FROM b.t");
        if written != (before + 10).to_string() {
            wrong.push(format!("{way}: another table was written, by\n{said}"));
        }
        let got = reader.value("SELECT v FROM b.t");
        if got != written {
            wrong.push(format!("{way}: {got} instead of {written}"));
            // The next one begins with what is right.
            reader.run("UPDATE b.t SET v = v");
        }
    }
    wrong
}

#[test]
fn a_write_after_a_change_of_search_path_leaves_no_stale_read() {
    let wrong = write_and_read(&[], ways_to_write());
    assert!(wrong.is_empty(), "wrong after\n{}", wrong.join("\n"));
}

#[test]
fn a_write_after_a_reset_goes_where_the_startup_packet_led() {
    let wrong = write_and_read(&[("search_path", "b")], ways_back());
    assert!(wrong.is_empty(), "wrong after\n{}", wrong.join("\n"));
}

#[test]
fn a_read_after_a_change_of_search_path_is_of_the_table_that_is_meant() {
    const READ: &str = "SELECT v FROM t";
    let stack = Stack::start_prepared(POOL, TABLES);
    let ways: Vec<(&str, Requests)> = vec![
        ("pipelined", pipeline(["SET search_path = b", READ, READ])),
        (
            "in one query",
            queries([&format!("SET search_path = b; {READ}"), READ]),
        ),
        (
            "in one unit",
            [unit(["SET search_path = b", READ]), queries([READ])].concat(),
        ),
        (
            "in a transaction",
            [
                queries(["BEGIN", "SET LOCAL search_path = b", READ]),
                pipeline(["COMMIT", READ]),
                queries([READ]),
            ]
            .concat(),
        ),
        (
            "in a transaction that is rolled back",
            [
                pipeline(["BEGIN", "SET search_path = b", READ, "ROLLBACK", READ]),
                queries([READ]),
            ]
            .concat(),
        ),
        (
            "by a statement prepared before",
            [
                vec![(1, [parse("r", READ), sync()].concat())],
                vec![(
                    2,
                    [
                        query("SET search_path = b"),
                        bind("", "r"),
                        execute("", 0),
                        sync(),
                    ]
                    .concat(),
                )],
                vec![(1, [step_named("r"), sync()].concat())],
            ]
            .concat(),
        ),
        (
            "after a RESET in the same unit",
            [
                queries(["SET search_path = b", READ]),
                unit(["RESET search_path", READ]),
                queries([READ]),
            ]
            .concat(),
        ),
        (
            "after a RESET in a transaction",
            [
                queries(["SET search_path = b", "BEGIN"]),
                pipeline(["RESET ALL", READ, "COMMIT", READ]),
                queries([READ]),
            ]
            .concat(),
        ),
        (
            "after DISCARD ALL, pipelined",
            [
                queries(["SET search_path = b", READ]),
                pipeline(["DISCARD ALL", READ]),
            ]
            .concat(),
        ),
    ];
    // Whoever asks first fills the cache: both those who follow a path and those who do not must find their own there.
    let mut wrong = Vec::new();
    for startup in [&[][..], &[("search_path", "a")]] {
        for (way, requests) in &ways {
            let mut client = stack.wire_with(startup);
            let mut direct = stack.wire_direct_with(startup);
            for (n, request) in requests {
                let expected = direct.asks(*n, std::slice::from_ref(request));
                let got = client.asks(*n, std::slice::from_ref(request));
                if got != expected {
                    wrong.push(format!("{way}, {startup:?}: {got} instead of {expected}"));
                }
            }
            assert_eq!(stack.wire().value(READ), "1000", "after {way}");
            for (path, expected) in [("a", "2000"), ("b", "3000")] {
                let mut other = stack.wire_with(&[("search_path", path)]);
                assert_eq!(other.value(READ), expected, "after {way}");
            }
        }
    }
    assert!(wrong.is_empty(), "wrong\n{}", wrong.join("\n"));
}

#[test]
fn a_write_through_a_temporary_view_leaves_no_stale_read() {
    let stack = Stack::start_prepared(POOL, TABLES);
    let mut reader = stack.wire();
    assert_eq!(reader.value("SELECT v FROM u"), "0");
    let mut writer = stack.wire();
    // From here on `t` is not the table of that name, to this client.
    writer.run("CREATE TEMP VIEW t AS SELECT * FROM public.u");
    writer.run("SELECT 1");
    assert_eq!(reader.value("SELECT v FROM u"), "0");
    writer.run("UPDATE t SET v = v + 5");
    assert_eq!(stack.wire_direct().value("SELECT v FROM u"), "5");
    assert_eq!(reader.value("SELECT v FROM u"), "5");
    assert_eq!(writer.value("SELECT v FROM t"), "5");
    assert_eq!(reader.value("SELECT v FROM t"), "1000");
}

#[test]
fn a_write_by_the_trigger_of_a_temporary_table_leaves_no_stale_read() {
    let function = "CREATE FUNCTION count_up() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN UPDATE public.u SET v = v + 7; RETURN NEW; END $$";
    let stack = Stack::start_prepared(POOL, &format!("{TABLES}; {function}"));
    let mut reader = stack.wire();
    let mut direct = stack.wire_direct();
    for (table, expected) in [("t", "7"), ("only_temporary", "14")] {
        let mut writer = stack.wire();
        writer.run(&format!("CREATE TEMP TABLE {table} (id int, v int)"));
        writer.run(&format!(
            "CREATE TRIGGER counting BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION count_up()"
        ));
        writer.run("SELECT 1");
        assert_eq!(
            reader.value("SELECT v FROM u"),
            direct.value("SELECT v FROM u")
        );
        writer.run(&format!("INSERT INTO {table} VALUES (1, 1)"));
        assert_eq!(direct.value("SELECT v FROM u"), expected);
        assert_eq!(reader.value("SELECT v FROM u"), expected, "{table}");
    }
}
