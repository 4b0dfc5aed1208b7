//! Clients that ask for much and read little: they cost a bounded amount of memory, keep nobody else waiting, and can be
//! bounded in time.

use std::time::Duration;

use heliosdb_testkit::PostgresCluster;

use crate::support::raw::{Wire, query};
use crate::support::{Helios, Stack};

/// A gigabyte.
const MUCH: &str = "SELECT repeat('x', 1 << 20) FROM generate_series(1, 1024)";

/// Resident memory, in KiB, without what is mapped from files: how much of the program is there is the system's affair.
fn resident(helios: &Helios) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", helios.pid())).expect("read");
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let value = line.and_then(|line| line.split_whitespace().nth(1));
    value.expect("a size").parse().expect("a number")
}

/// The server has no more room to write to helios.
fn wait_until_stuck(direct: &mut Wire, n: usize) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientWrite'";
    // It has none for a moment, too, where helios is busy with others.
    let mut looks = 0;
    while looks < 20 {
        let all_wait = direct.value(sql) == n.to_string();
        looks = if all_wait { looks + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_client_that_reads_nothing_costs_a_bounded_amount_of_memory_and_stops_nobody() {
    // What the allocator keeps for a second thread is no client's.
    let config = "threads = 1\n[pool]\nsize = 20\n";
    let stack = Stack::start_with(PostgresCluster::builder(), config);
    let mut direct = stack.wire_direct();
    let mut other = stack.wire();
    other.run("SELECT 1 AS known");
    let mut stuck = Vec::new();
    let mut sizes = Vec::new();
    for n in [4, 16] {
        stuck.resize_with(n, || {
            let mut client = stack.wire();
            client.send(&[query(MUCH)]);
            client
        });
        wait_until_stuck(&mut direct, n);
        sizes.push(resident(&stack.helios));
    }
    // Beyond what the first ones made the allocator keep.
    let each = sizes[1].saturating_sub(sizes[0]) / 12;
    // Which the system gives out by two megabytes.
    assert!(each < 2048, "{each} KiB for each");
    for _ in 0..20 {
        assert_eq!(other.value("SELECT 'served'"), "served");
    }
    // The rest is there for who begins to read.
    let rows = stuck[0]
        .messages()
        .iter()
        .filter(|message| message[0] == b'D')
        .count();
    assert_eq!(rows, 1024);
}

#[test]
fn who_reads_nothing_for_too_long_gives_the_server_connection_to_the_next() {
    let config = "[pool]\nsize = 1\n[clients]\nwrite_timeout = \"500ms\"\n";
    let stack = Stack::start_with(PostgresCluster::builder(), config);
    let mut first = stack.wire();
    let pid = first.value("SELECT pg_backend_pid()");
    let mut stuck = stack.wire();
    stuck.send(&[query(MUCH)]);
    // It has the server connection: who comes next is behind it.
    stuck.until(b'T');
    let mut next = stack.wire();
    assert_eq!(next.value("SELECT pg_backend_pid()"), pid);
    // What it was sent ends in the middle of a row, and with nothing that could be taken for one.
    let shown = stuck.rest();
    let (rows, end) = shown.split_once("the end\n").expect("cut off");
    assert!(end.is_empty() && rows.lines().count() < 1024);
    assert!(!rows.contains("FATAL"));
    // Who waits for nothing can take as long as it likes, and so can who reads slowly.
    let mut slow = stack.wire();
    slow.send(&[query(
        "SELECT repeat('x', 1000), pg_sleep(0.02) FROM generate_series(1, 50)",
    )]);
    assert!(slow.replies(1).ends_with("Z I\n"));
    assert_eq!(first.value("SELECT 'there'"), "there");
}

#[test]
fn a_statement_that_takes_too_long_ends_where_its_client_reads_nothing() {
    let config = "[pool]\nsize = 1\n[clients]\nquery_timeout = \"500ms\"\n";
    let stack = Stack::start_with(PostgresCluster::builder(), config);
    let pid = stack.wire().value("SELECT pg_backend_pid()");
    let mut stuck = stack.wire();
    stuck.send(&[query(MUCH)]);
    // It has the server connection: who comes next is behind it.
    stuck.until(b'T');
    assert_eq!(stack.wire().value("SELECT pg_backend_pid()"), pid);
    let shown = stuck.rest();
    assert!(shown.ends_with("the end\n"));
}
