//! Where an error falls in a unit of messages decides what the rest of it means, and each write of a pipeline counts by
//! itself.

use std::time::{Duration, Instant};

use crate::support::Stack;
use crate::support::raw::{
    Wire, bind, close, describe, execute, flush, parse, query, step, step_named, sync,
};

const TABLES: &str = "
    CREATE TABLE t (id int, v int); INSERT INTO t VALUES (1, 0);
    CREATE TABLE u (id int, v int); INSERT INTO u VALUES (1, 0)";

/// Requests, each with the number of ReadyForQuery that it is answered by.
type Requests = Vec<(usize, Vec<Vec<u8>>)>;

/// What a client does with an error in it. `s` and `t` are statements that it prepares.
fn conversations() -> Vec<(&'static str, Requests)> {
    let fails = || step("SELECT 1/0");
    let prepare = || (1, vec![parse("s", "SELECT v, 5 FROM t"), sync()]);
    let run = || (1, vec![step_named("s"), step_named("s"), sync()]);
    let last = || (1, vec![query("SELECT 'last' FROM t")]);
    vec![
        (
            "a query behind a Parse that fails",
            vec![
                (1, vec![parse("", "SELEC 1"), query("SELECT 7"), sync()]),
                last(),
            ],
        ),
        (
            "queries behind an Execute that fails",
            vec![
                (
                    1,
                    vec![fails(), query("SELECT 7"), query("SELECT 8"), sync()],
                ),
                last(),
            ],
        ),
        (
            "a write behind a Bind that fails",
            vec![
                (
                    1,
                    vec![bind("", "none"), query("UPDATE t SET v = 9"), sync()],
                ),
                last(),
                (1, vec![query("SELECT v FROM t")]),
            ],
        ),
        (
            "a whole statement behind one that fails, with a Flush between",
            vec![
                (1, vec![fails(), flush(), step("SELECT 2"), sync()]),
                last(),
            ],
        ),
        (
            "an error in the second of three units",
            vec![
                (
                    3,
                    vec![
                        step("SELECT 1"),
                        sync(),
                        fails(),
                        step("SELECT 2"),
                        sync(),
                        step("SELECT 3"),
                        sync(),
                    ],
                ),
                last(),
            ],
        ),
        (
            "an error in a transaction of a unit",
            vec![
                (1, vec![step("BEGIN"), fails(), step("COMMIT"), sync()]),
                (2, vec![step("SELECT 1"), sync(), query("ROLLBACK")]),
                last(),
            ],
        ),
        (
            "a portal and a statement that are not there",
            vec![
                (1, vec![execute("none", 0), step("SELECT 1"), sync()]),
                (1, vec![describe('S', "none"), query("SELECT 7"), sync()]),
                (1, vec![describe('P', "none"), describe('P', ""), sync()]),
                last(),
            ],
        ),
        (
            "a statement without a name behind an error",
            vec![
                (1, vec![parse("", "SELECT 'old'"), sync()]),
                (1, vec![bind("", "none"), parse("", "SELECT 'new'"), sync()]),
                (1, vec![bind("", ""), execute("", 0), sync()]),
                last(),
            ],
        ),
        (
            "a statement without a name that is refused",
            vec![
                (1, vec![parse("", "SELECT 'old'"), sync()]),
                (1, vec![parse("", "SELEC 'new'"), sync()]),
                (1, vec![bind("", ""), execute("", 0), sync()]),
                last(),
            ],
        ),
        (
            "a statement without a name that is closed behind an error",
            vec![
                (1, vec![parse("", "SELECT 'old'"), sync()]),
                (1, vec![bind("", "none"), close('S', ""), sync()]),
                (1, vec![bind("", ""), execute("", 0), sync()]),
                last(),
            ],
        ),
        (
            "a statement that is closed behind an error",
            vec![
                prepare(),
                (1, vec![fails(), close('S', "s"), sync()]),
                run(),
                last(),
            ],
        ),
        (
            "a statement that is closed and prepared again behind an error",
            vec![
                prepare(),
                (
                    1,
                    vec![fails(), close('S', "s"), parse("s", "SELECT 6"), sync()],
                ),
                run(),
                last(),
            ],
        ),
        (
            "a statement that is prepared behind an error",
            vec![
                (1, vec![fails(), parse("s", "SELECT 6"), sync()]),
                run(),
                prepare(),
                run(),
                last(),
            ],
        ),
        (
            "a statement that is prepared in front of an error",
            vec![
                (1, vec![parse("s", "SELECT 6"), fails(), sync()]),
                run(),
                last(),
            ],
        ),
        (
            "a statement that is run behind an error, and again behind the Sync",
            vec![
                prepare(),
                (
                    2,
                    vec![fails(), step_named("s"), sync(), step_named("s"), sync()],
                ),
                run(),
                last(),
            ],
        ),
        (
            "a name that is taken behind an error",
            vec![
                prepare(),
                (1, vec![fails(), parse("s", "SELECT 6"), sync()]),
                (1, vec![parse("s", "SELECT 6"), sync()]),
                run(),
                last(),
            ],
        ),
        (
            "DEALLOCATE ALL in a query that fails",
            vec![
                prepare(),
                (1, vec![query("DEALLOCATE ALL; SELECT 1/0")]),
                run(),
                prepare(),
                run(),
                last(),
            ],
        ),
        (
            "DEALLOCATE ALL in a unit that fails",
            vec![
                prepare(),
                (1, vec![step("DEALLOCATE ALL"), fails(), sync()]),
                run(),
                prepare(),
                run(),
                last(),
            ],
        ),
        (
            "DEALLOCATE ALL behind an error",
            vec![
                prepare(),
                (1, vec![query("SELECT 1/0; DEALLOCATE ALL")]),
                (1, vec![fails(), step("DEALLOCATE ALL"), sync()]),
                run(),
                last(),
            ],
        ),
        (
            "DEALLOCATE ALL in a transaction that is rolled back",
            vec![
                prepare(),
                (3, ["BEGIN", "DEALLOCATE ALL", "ROLLBACK"].map(query).into()),
                run(),
                last(),
            ],
        ),
        (
            "DEALLOCATE ALL with a Parse right behind it",
            vec![
                (2, vec![query("DEALLOCATE ALL"), prepare().1.concat()]),
                run(),
                (2, vec![query("DISCARD ALL"), prepare().1.concat()]),
                run(),
                last(),
            ],
        ),
    ]
}

/// Lets clients of helios and of the twin say the same. Where that does not tie the client, others have their turn in
/// between.
fn compare(stack: &Stack, mut between: impl FnMut(&str)) {
    let mut wrong = String::new();
    for (name, requests) in conversations() {
        let (mut client, mut twin) = (stack.wire(), stack.wire_twin());
        for (number, (n, messages)) in (1..).zip(&requests) {
            let expected = twin.asks(*n, messages);
            let got = client.asks(*n, messages);
            if got != expected {
                wrong += &format!("{name}, request {number}:\n{got}instead of\n{expected}");
                // From here on the two may count differently.
                break;
            }
            if got.ends_with("Z I\n") {
                between(name);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn behind_an_error_all_is_skipped_up_to_the_sync_and_nothing_beyond() {
    let stack = Stack::start_twice("[pool]\nsize = 1\n", TABLES);
    compare(&stack, |_| ());
    compare(&stack, |name| {
        let mut other = stack.wire();
        let row = other.value("SELECT 'other', random() < 2");
        assert_eq!(row, "other|t", "{name}");
    });
}

#[test]
fn an_error_leaves_the_statements_as_they_are_on_every_connection() {
    for kept in ["", "max_prepared_statements = 1\n"] {
        let stack = Stack::start_twice(&format!("[pool]\nsize = 2\n{kept}"), TABLES);
        // One of two connections is always taken, and each request finds the other one free.
        let mut holder = stack.wire();
        let mut next = stack.wire();
        holder.run("BEGIN; SELECT random()");
        compare(&stack, |_| {
            next.run("BEGIN; SELECT random()");
            holder.run("COMMIT");
            std::mem::swap(&mut holder, &mut next);
        });
    }
}

#[test]
fn messages_that_come_after_the_error_was_told_are_skipped_too() {
    let stack = Stack::start_twice("[pool]\nsize = 1\n", TABLES);
    let late = [
        vec![sync()],
        vec![step("SELECT 2"), sync()],
        vec![flush(), step("SELECT 2"), flush(), sync()],
        vec![query("SELECT 2"), sync()],
        vec![query("UPDATE t SET v = 9"), sync()],
        vec![parse("s", "SELECT 3"), close('S', "s"), sync()],
        vec![close('S', "kept"), sync()],
        vec![parse("kept", "SELECT 4"), sync()],
    ];
    let mut wrong = String::new();
    for (number, late) in (1..).zip(&late) {
        for first in [step("SELECT 1/0"), parse("", "SELEC 1")] {
            let said = [stack.wire_twin(), stack.wire()].map(|mut client| {
                let mut said = client.ask(&[parse("kept", "SELECT 'kept' FROM t"), sync()]);
                client.send(&[first.clone(), flush()]);
                said += &client.until(b'E');
                said += &client.ask(late);
                said += &client.ask(&[step_named("kept"), sync()]);
                said += &client.ask(&[step_named("s"), sync()]);
                said + &client.query("SELECT v FROM t")
            });
            if said[0] != said[1] {
                wrong += &format!("{number}:\n{}instead of\n{}", said[1], said[0]);
            }
            let mut other = stack.wire();
            assert_eq!(other.value("SELECT 'other', random() < 2"), "other|t");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn what_one_client_deallocates_in_vain_stays_prepared_for_others() {
    let stack = Stack::start_prepared("[pool]\nsize = 1\n", TABLES);
    let mut one = stack.wire();
    let prepared = parse("s", "SELECT v, 5, random() < 2 FROM t");
    let expected = one.ask(&[prepared, step_named("s"), sync()]);
    let expected = expected.trim_start_matches("1\n");
    assert!(expected.contains("D 0|5|t"), "{expected}");
    let units: [Requests; 7] = [
        vec![(1, vec![query("DEALLOCATE ALL; SELECT 1/0")])],
        vec![(1, vec![step("DEALLOCATE ALL"), step("SELECT 1/0"), sync()])],
        vec![(1, vec![step("DEALLOCATE ALL"), step("SELECT 1"), sync()])],
        vec![(3, ["BEGIN", "DEALLOCATE ALL", "ROLLBACK"].map(query).into())],
        vec![(1, vec![query("BEGIN; DEALLOCATE ALL; ROLLBACK")])],
        vec![(2, ["DEALLOCATE ALL", "SELECT 1/0"].map(query).into())],
        vec![(2, ["DISCARD ALL", "SELECT 1/0"].map(query).into())],
    ];
    let mut wrong = String::new();
    for (number, unit) in (1..).zip(&units) {
        let mut two = stack.wire();
        for (n, messages) in unit {
            two.asks(*n, messages);
        }
        // Nothing else may reach the connection before the statement is asked for.
        let got = one.ask(&[step_named("s"), sync()]);
        if got != expected {
            wrong += &format!("{number}: {got}");
        }
        let got = one.ask(&[step_named("s"), sync()]);
        if got != expected {
            wrong += &format!("{number} once more: {got}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Lets a client send all of this at once while another reads `t` after each answer.
fn read_beside(requests: &[Vec<u8>]) {
    let stack = Stack::start_prepared("[pool]\nsize = 4\n", TABLES);
    let (mut writer, mut reader) = (stack.wire(), stack.wire());
    reader.run("SELECT v FROM t");
    writer.send(requests);
    for _ in requests {
        writer.replies(1);
        // Now, or after the next write is under way.
        reader.run("SELECT v FROM t");
        reader.run("SELECT v FROM t");
    }
    let expected = stack.wire_direct().value("SELECT v FROM t");
    assert_eq!(reader.value("SELECT v FROM t"), expected);
}

const SLOW: &str = "UPDATE t SET v = v + 1 FROM (SELECT pg_sleep(0.3)) s";

#[test]
fn every_write_of_a_pipeline_of_queries_is_seen() {
    read_beside(&[
        query("UPDATE t SET v = v + 1"),
        query(SLOW),
        query("UPDATE u SET v = v + 1"),
        query(SLOW),
    ]);
}

#[test]
fn every_write_of_a_pipeline_of_units_is_seen() {
    let unit = |sql: &str| [step(sql), sync()].concat();
    read_beside(&[
        unit("UPDATE t SET v = v + 1"),
        unit(SLOW),
        unit("UPDATE u SET v = v + 1"),
        unit(SLOW),
    ]);
}

#[test]
fn every_write_of_a_pipeline_with_an_error_in_it_is_seen() {
    read_beside(&[
        query("UPDATE t SET v = v + 1; SELECT 1/0"),
        query(SLOW),
        [step("SELECT 1/0"), step("UPDATE u SET v = v + 1"), sync()].concat(),
        [step(SLOW), sync()].concat(),
    ]);
}

#[test]
fn every_transaction_of_a_pipeline_is_seen() {
    let texts = [
        "BEGIN",
        "UPDATE t SET v = v + 1",
        "COMMIT",
        "BEGIN",
        SLOW,
        "COMMIT",
    ];
    read_beside(&texts.map(query));
}

/// A function that can't be stopped: it writes when it gets a lock, or is told not to wait for it any longer.
const STUBBORN: &str = "
    CREATE FUNCTION stubborn() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        LOCK TABLE t IN ROW EXCLUSIVE MODE;
        BEGIN PERFORM pg_advisory_xact_lock(9); EXCEPTION WHEN query_canceled THEN NULL; END;
        UPDATE t SET v = 77;
    END $$";

fn wait_until_it_waits(direct: &mut Wire) {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'";
    let deadline = Instant::now() + Duration::from_secs(10);
    while direct.value(waiting) == "0" {
        assert!(Instant::now() < deadline, "nothing waits");
    }
}

#[test]
fn the_last_write_of_a_pipeline_is_seen_though_its_client_left() {
    let stack = Stack::start_prepared("[pool]\nsize = 4\n", &format!("{TABLES};{STUBBORN}"));
    let (mut writer, mut reader) = (stack.wire(), stack.wire());
    let mut direct = stack.wire_direct();
    direct.run("SELECT pg_advisory_lock(9)");
    writer.send(&[query("UPDATE u SET v = 1"), query("SELECT stubborn()")]);
    writer.replies(1);
    wait_until_it_waits(&mut direct);
    assert_eq!(reader.value("SELECT v FROM t"), "0");
    drop(writer);
    direct.run("SELECT pg_advisory_unlock(9)");
    // The table can be locked when the write is committed.
    direct.run("BEGIN; LOCK TABLE t IN EXCLUSIVE MODE; COMMIT");
    assert_eq!(direct.value("SELECT v FROM t"), "77");
    assert_eq!(reader.value("SELECT v FROM t"), "77");
}
