//! Clients that take too long are ended with PostgreSQL's codes, and what they held goes on to others: the server
//! connection, clean, and what their writes kept from the cache.

use heliosdb_network::{HidbClient, HidbTarget};
use heliosdb_testkit::PostgresCluster;

use crate::support::raw::{Wire, bind, execute, flush, parse, query};
use crate::support::{Helios, Stack};

const IDLE: &str = "E FATAL 57P05 terminating connection due to idle-session timeout\nthe end\n";
const IDLE_IN_TRANSACTION: &str =
    "E FATAL 25P03 terminating connection due to idle-in-transaction timeout\nthe end\n";
const QUERY: &str = "E FATAL 57014 terminating connection due to query timeout\nthe end\n";
const TRANSACTION: &str =
    "E FATAL 25P04 terminating connection due to transaction timeout\nthe end\n";

fn start(config: &str) -> Stack {
    let cluster = PostgresCluster::builder();
    Stack::start_with(cluster, &format!("invalidation = \"wire\"\n{config}"))
}

const PID: &str = "SELECT pg_backend_pid()";

#[test]
fn who_asks_nothing_for_too_long_is_idle_and_who_waits_for_an_answer_is_not() {
    let stack = start("[clients]\nidle_timeout = \"300ms\"\n");
    let mut idle = stack.wire();
    let mut waits = stack.wire();
    // Three times the bound.
    waits.send(&[query("SELECT pg_sleep(1)")]);
    assert!(waits.replies(1).contains("SELECT 1"));
    assert_eq!(idle.rest(), IDLE);
    let mut begun = stack.wire();
    begun.run("BEGIN");
    waits.run("SELECT pg_sleep(0.6)");
    begun.run("COMMIT");
    assert_eq!(begun.rest(), IDLE);
    assert_eq!(waits.rest(), IDLE);
}

#[test]
fn the_console_and_the_clients_that_go_on_are_not_idle() {
    let stack = start("[clients]\nidle_timeout = \"400ms\"\n");
    let mut console = Wire::connect(stack.helios.port, "helios", &[]);
    let mut goes_on = stack.wire();
    goes_on.run("CREATE TABLE t AS SELECT 7 AS a");
    let mut times = stack.wire_direct();
    for _ in 0..12 {
        // From memory, most of them.
        assert_eq!(goes_on.value("SELECT a FROM t"), "7");
        times.run("SELECT pg_sleep(0.1)");
    }
    assert!(console.query("SHOW VERSION").ends_with("Z I\n"));
    assert_eq!(goes_on.rest(), IDLE);
}

#[test]
fn an_idle_transaction_is_rolled_back_and_its_connection_serves_the_next() {
    let stack = start("[pool]\nsize = 1\n[clients]\nidle_transaction_timeout = \"300ms\"\n");
    let mut first = stack.wire();
    first.run("CREATE TABLE t AS SELECT 1 AS a");
    let pid = first.value(PID);
    let mut cached = stack.wire();
    assert_eq!(cached.value("SELECT a FROM t"), "1");
    let mut deferred = stack.wire();
    deferred.run("BEGIN");
    first.run("BEGIN");
    first.run("SET LOCAL work_mem = '77MB'");
    first.run("UPDATE t SET a = 2");
    assert_eq!(first.rest(), IDLE_IN_TRANSACTION);
    assert_eq!(deferred.rest(), IDLE_IN_TRANSACTION);
    let mut next = stack.wire();
    assert_eq!(next.value(PID), pid);
    assert_eq!(next.value("SHOW work_mem"), "4MB");
    assert_eq!(next.value("SELECT a FROM t"), "1");
    assert_eq!(
        next.value("SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass"),
        "0"
    );
    is_cached_again(&stack);
}

/// Reads of `t` come from memory: no write is pending on it.
fn is_cached_again(stack: &Stack) {
    let hits = || hits(&stack.helios);
    let before = hits();
    let mut client = stack.wire();
    for _ in 0..3 {
        client.run("SELECT a FROM t");
    }
    assert!(hits() >= before + 2);
}

fn hits(helios: &Helios) -> u64 {
    let mut console = Wire::connect(helios.port, "helios", &[]);
    let shown = console.query("SHOW CACHE");
    let line = shown.lines().find(|line| line.starts_with("D hits|"));
    let count = line.and_then(|line| line.rsplit('|').next());
    count.expect(&shown).parse().expect("a number")
}

#[test]
fn a_statement_that_takes_too_long_is_cancelled_and_its_connection_serves_the_next() {
    let stack = start("[pool]\nsize = 1\n[clients]\nquery_timeout = \"400ms\"\n");
    let mut first = stack.wire();
    first.run("CREATE TABLE t AS SELECT 1 AS a");
    let pid = first.value(PID);
    // Many short ones in a row, together longer than the bound, are none that is too long.
    for _ in 0..5 {
        first.run("SELECT pg_sleep(0.1); SELECT 1");
    }
    first.send(&[query("UPDATE t SET a = 2 WHERE pg_sleep(600) IS NOT NULL")]);
    assert_eq!(first.rest(), QUERY);
    let mut next = stack.wire();
    assert_eq!(next.value(PID), pid);
    assert_eq!(next.value("SELECT a FROM t"), "1");
    is_cached_again(&stack);
}

#[test]
fn a_statement_in_the_extended_protocol_without_a_sync_is_one_too() {
    let stack = start("[pool]\nsize = 1\n[clients]\nquery_timeout = \"400ms\"\n");
    let mut first = stack.wire();
    let pid = first.value(PID);
    first.send(&[
        parse("", "SELECT pg_sleep(600)"),
        bind("", ""),
        execute("", 0),
        flush(),
    ]);
    assert!(first.rest().ends_with(QUERY));
    assert_eq!(stack.wire().value(PID), pid);
}

#[test]
fn who_waits_for_a_server_connection_has_no_statement_that_takes_long() {
    let stack = start("[pool]\nsize = 1\n[clients]\nquery_timeout = \"500ms\"\n");
    let mut holds = stack.wire();
    holds.run("BEGIN");
    holds.run("SELECT txid_current()");
    let mut waits = stack.wire();
    waits.send(&[query("SELECT 'served'")]);
    stack.wire_direct().run("SELECT pg_sleep(1.5)");
    holds.run("COMMIT");
    assert!(waits.replies(1).contains("D served"));
}

#[test]
fn a_transaction_that_takes_too_long_ends_whatever_it_does() {
    let stack = start("[pool]\nsize = 1\n[clients]\ntransaction_timeout = \"500ms\"\n");
    let mut first = stack.wire();
    first.run("CREATE TABLE t AS SELECT 1 AS a");
    let pid = first.value(PID);
    let mut busy = stack.wire();
    busy.run("BEGIN");
    busy.run("UPDATE t SET a = 2");
    // Told of while it waits for a connection that another transaction has.
    let mut waits = stack.wire();
    waits.send(&[query("BEGIN"), query("SELECT txid_current()")]);
    let mut told = String::new();
    for _ in 0..100 {
        busy.send(&[query("SELECT pg_sleep(0.05)")]);
        told = busy.rest_or("Z T");
        if told.ends_with("the end\n") {
            break;
        }
    }
    assert!(told.ends_with(TRANSACTION), "{told}");
    let waited = waits.rest();
    assert!(waited.ends_with(TRANSACTION), "{waited}");
    assert_eq!(first.value(PID), pid);
    assert_eq!(first.value("SELECT a FROM t"), "1");
    // A single statement is one, too.
    first.send(&[query("SELECT pg_sleep(600)")]);
    assert_eq!(first.rest(), TRANSACTION);
}

#[test]
fn transactions_in_a_row_are_not_one() {
    let stack =
        start("[clients]\ntransaction_timeout = \"500ms\"\nidle_transaction_timeout = \"10s\"\n");
    let mut client = stack.wire();
    for end in ["COMMIT", "ROLLBACK"].repeat(5) {
        client.run("BEGIN");
        client.run("SELECT pg_sleep(0.1)");
        client.run(end);
        // One that the server never heard of, and that failed here.
        client.run("BEGIN");
        client.run(end);
    }
    assert_eq!(client.value("SELECT 'there'"), "there");
}

#[test]
fn what_a_user_is_given_goes_over_what_all_are_and_a_reload_changes_it() {
    let config =
        "[clients]\nquery_timeout = \"200ms\"\n[users.postgres]\nquery_timeout = \"off\"\n";
    let stack = start(config);
    let mut client = stack.wire();
    client.run("SELECT pg_sleep(0.8)");
    let file = stack.helios.folder().join("helios.toml");
    let config = "invalidation = \"wire\"\n[clients]\nquery_timeout = \"200ms\"\n";
    std::fs::write(file, config).expect("written");
    stack.helios.signal("HUP");
    client.send(&[query("SELECT pg_sleep(600)")]);
    assert_eq!(client.rest(), QUERY);
}

#[test]
fn a_statement_on_behalf_of_hidb_is_bounded_and_its_client_goes_on() {
    let stack = start("[clients]\nquery_timeout = \"300ms\"\nidle_timeout = \"300ms\"\n");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let url = format!(
            "hidb://postgres@127.0.0.1:{}/postgres",
            stack.helios.hidb_port
        );
        let target = HidbTarget::from_url(&url).expect("a URL");
        let client = HidbClient::open(&target).await.expect("let in");
        let error = client
            .query("SELECT pg_sleep(600)")
            .await
            .expect_err("too long");
        assert!(error.to_string().contains("query timeout"), "{error}");
        // Three times as long as a client may be idle.
        let direct = stack.direct().await;
        direct
            .batch_execute("SELECT pg_sleep(1)")
            .await
            .expect("done");
        client.query("SELECT 1").await.expect("there");
    });
}
