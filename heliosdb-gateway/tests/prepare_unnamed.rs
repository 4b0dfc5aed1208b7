//! `pool.prepare_unnamed`: a text that comes again and again without a name is prepared once on each server connection,
//! and its clients are told nothing else than by a server that parses it each time.

use crate::support::Stack;
use crate::support::raw::{Wire, bind, bind_with, describe, execute, parse, query, sync};

const CONFIG: &str = "[pool]\nsize = 1\nprepare_unnamed = true\n[cache]\nenabled = false\n";
const TABLES: &str = "CREATE TABLE t (a int, b text); INSERT INTO t VALUES (1, 'one'), (2, 'two')";
const READ: &str = "SELECT * FROM t WHERE a = $1";
/// Of the statements that the connection has, how often each was planned: once for each time that it was run.
const PREPARED: &str = "
    SELECT coalesce(string_agg(generic_plans + custom_plans || ' x ' || statement, '; '), 'none')
    FROM pg_prepared_statements";

/// A text without a name, parsed and run once.
fn unnamed(text: &str, values: &[&str]) -> Vec<Vec<u8>> {
    vec![
        parse("", text),
        bind_with("", "", values),
        describe('P', ""),
        execute("", 0),
        sync(),
    ]
}

/// Asks both the same, which have to say the same.
fn assert_same(through: &mut Wire, direct: &mut Wire, messages: &[Vec<u8>]) -> String {
    let told = through.ask(messages);
    assert_eq!(told, direct.ask(messages));
    told
}

fn stack() -> (Stack, Wire, Wire) {
    let stack = Stack::start_prepared(CONFIG, TABLES);
    let (through, direct) = (stack.wire(), stack.wire_direct());
    (stack, through, direct)
}

#[test]
fn a_text_is_prepared_from_the_second_time_on() {
    let (stack, mut one, mut direct) = stack();
    for value in ["1", "2", "3", "2"] {
        assert_same(&mut one, &mut direct, &unnamed(READ, &[value]));
    }
    // The first time it came as what it is, and so it does where it is not whole.
    let prepared = format!("3 x {READ}");
    assert_eq!(one.value(PREPARED), prepared);
    let described = [parse("", READ), describe('S', ""), sync()];
    assert_same(&mut one, &mut direct, &described);
    assert_same(
        &mut one,
        &mut direct,
        &[bind_with("", "", &["1"]), execute("", 0), sync()],
    );
    assert_eq!(one.value(PREPARED), prepared);
    // Another client's is the same, though nobody has it in between.
    one.ask(&unnamed("SELECT random() < 2", &[]));
    drop(one);
    let mut other = stack.wire();
    assert_same(&mut other, &mut direct, &unnamed(READ, &["1"]));
    assert_eq!(other.value(PREPARED), format!("4 x {READ}"));
}

#[test]
fn by_default_each_is_parsed_anew() {
    let stack = Stack::start_prepared("[pool]\nsize = 1\n[cache]\nenabled = false\n", TABLES);
    let mut client = stack.wire();
    for _ in 0..3 {
        assert!(client.ask(&unnamed(READ, &["1"])).contains("D 1|one"));
    }
    assert_eq!(client.value(PREPARED), "none");
}

/// It is there until the client's next one, and goes with a simple query.
#[test]
fn the_unnamed_statement_lives_as_long_as_it_would() {
    let (_stack, mut through, mut direct) = stack();
    let run = [bind_with("", "", &["2"]), execute("", 0), sync()];
    for _ in 0..3 {
        assert_same(&mut through, &mut direct, &unnamed(READ, &["1"]));
        let told = assert_same(&mut through, &mut direct, &run);
        assert!(told.contains("D 2|two"), "{told}");
    }
    let describe = [describe('S', ""), sync()];
    assert_same(&mut through, &mut direct, &describe);
    assert_same(&mut through, &mut direct, &[query("SELECT random() < 2")]);
    let told = assert_same(&mut through, &mut direct, &run);
    assert!(told.contains("26000"), "{told}");
    let told = assert_same(&mut through, &mut direct, &describe);
    assert!(told.contains("26000"), "{told}");
}

/// Nobody tells helios of what is done to the table.
#[test]
fn a_text_means_what_it_means_when_it_is_sent() {
    for (change, value, expected) in [
        ("ALTER TABLE t ADD COLUMN c int DEFAULT 7", "1", "D 1|one|7"),
        ("ALTER TABLE t ALTER a TYPE text", "x' or 1", "C SELECT 0"),
        ("ALTER TABLE t DROP COLUMN b", "1", "D 1\n"),
        ("DROP TABLE t; CREATE TABLE t (a bigint)", "1", "C SELECT 0"),
        ("DROP TABLE t", "1", "42P01"),
        ("SELECT 1", "one", "22P02"),
        ("SELECT 1", "99999999999", "22003"),
    ] {
        let (stack, mut through, mut direct) = stack();
        for _ in 0..3 {
            assert_same(&mut through, &mut direct, &unnamed(READ, &["1"]));
        }
        stack.psql(change);
        for _ in 0..3 {
            let (told, known) = (
                through.ask(&unnamed(READ, &[value])),
                direct.ask(&unnamed(READ, &[value])),
            );
            assert!(told.contains(expected), "{change}: {told}");
            // Where the text is refused, it may be said to have been parsed.
            let told = told.strip_prefix("1\n").filter(|_| known.starts_with('E'));
            assert_eq!(told.unwrap_or(&known), known, "{change}");
        }
        if expected.starts_with("22") {
            // The value was at fault, not the statement.
            through.ask(&unnamed(READ, &["1"]));
            assert_eq!(through.value(PREPARED), format!("3 x {READ}"), "{change}");
        }
    }
}

#[test]
fn what_must_not_be_repeated_is_parsed_where_it_runs() {
    let (stack, mut through, mut direct) = stack();
    for _ in 0..3 {
        assert_same(&mut through, &mut direct, &unnamed(READ, &["1"]));
    }
    // In a transaction, and in one unit with something that was done before.
    through.query("BEGIN");
    stack.psql("ALTER TABLE t ADD COLUMN c int DEFAULT 7");
    let told = through.ask(&unnamed(READ, &["1"]));
    assert!(told.contains("D 1|one|7"), "{told}");
    through.query("COMMIT");
    stack.psql("ALTER TABLE t ADD COLUMN d int DEFAULT 8");
    let mut unit = vec![parse("", "UPDATE t SET b = 'three'"), bind("", "")];
    unit.push(execute("", 0));
    unit.extend(unnamed(READ, &["1"]));
    let told = through.ask(&unit);
    assert!(told.contains("D 1|three|7|8"), "{told}");
}

#[test]
fn what_depends_on_when_it_is_parsed_is_not_prepared() {
    let (_stack, mut through, _) = stack();
    let texts = [
        "SELECT 'now'::timestamptz(6) AS at",
        "SELECT 'NO'\n'W'::timestamptz AS at",
        "SELECT E'n\\157w'::timestamptz AS at",
    ];
    for text in texts {
        let mut last = String::new();
        for _ in 0..4 {
            let told = through.ask(&unnamed(text, &[]));
            let at = told.lines().find(|line| line.starts_with('D'));
            let at = at.unwrap_or_else(|| panic!("{told}")).to_owned();
            assert_ne!(at, last, "{text}");
            last = at;
        }
    }
    assert_eq!(through.value(PREPARED), "none");
}

#[test]
fn a_temporary_table_comes_before_the_table_that_was_meant() {
    let (_stack, mut through, mut direct) = stack();
    through.run("CREATE TEMP TABLE other (a int)");
    direct.run("CREATE TEMP TABLE other (a int)");
    through.run("DROP TABLE other");
    for _ in 0..3 {
        assert_same(&mut through, &mut direct, &unnamed(READ, &["1"]));
    }
    for client in [&mut through, &mut direct] {
        client.run("CREATE TEMP TABLE t (a int); INSERT INTO t VALUES (1)");
    }
    let told = assert_same(&mut through, &mut direct, &unnamed(READ, &["1"]));
    assert!(told.contains("D 1\n"), "{told}");
}

#[test]
fn as_many_are_kept_as_may_be_and_no_more() {
    let config = CONFIG.replace("size = 1", "size = 1\nmax_prepared_statements = 3");
    let stack = Stack::start_prepared(&config, TABLES);
    let (mut through, mut direct) = (stack.wire(), stack.wire_direct());
    for _ in 0..3 {
        for n in 0..5 {
            let text = format!("SELECT {n} + a FROM t ORDER BY a");
            assert_same(&mut through, &mut direct, &unnamed(&text, &[]));
            assert_same(&mut through, &mut direct, &unnamed(&text, &[]));
        }
    }
    let kept = "SELECT count(*) FROM pg_prepared_statements";
    assert_eq!(through.value(kept), "3");
}

#[test]
fn it_changes_with_a_reload() {
    let stack = Stack::start_prepared(
        &CONFIG.replace("prepare_unnamed = true", "prepare_unnamed = false"),
        TABLES,
    );
    let mut console = Wire::connect(stack.helios.port, "helios", &[]);
    let mut client = stack.wire();
    for (value, prepared) in [
        ("false", "none".to_owned()),
        ("true", format!("3 x {READ}")),
        // What is there stays until it is the least recently used, and is not used.
        ("false", format!("3 x {READ}")),
    ] {
        console.run(&format!("SET pool.prepare_unnamed = {value}"));
        for _ in 0..4 {
            assert!(client.ask(&unnamed(READ, &["1"])).contains("D 1|one"));
        }
        assert_eq!(client.value(PREPARED), prepared, "{value}");
    }
}

/// Clients that give statements names are not refused them because of others that don't.
#[test]
fn it_takes_half_of_the_memory_for_statements_at_the_most() {
    let config = CONFIG.replace("size = 1", "size = 1\nprepared_memory = \"1 MiB\"");
    let stack = Stack::start_prepared(&config, TABLES);
    let mut client = stack.wire();
    let long = |n: usize| format!("SELECT {n} + a, '{}' FROM t", "x".repeat(15_000));
    for n in 0..40 {
        for _ in 0..2 {
            assert!(client.ask(&unnamed(&long(n), &[])).contains("C SELECT 2"));
        }
    }
    let kept = client.value("SELECT sum(2 * length(statement)) FROM pg_prepared_statements");
    let kept: usize = kept.parse().expect("a number");
    assert!((256 << 10..512 << 10).contains(&kept), "{kept}");
    for n in 0..2 {
        let told = client.ask(&[parse(&format!("s{n}"), &long(n)), sync()]);
        assert_eq!(told, "1\nZ I\n");
    }
}
