//! What clients are told without having asked: at their login, and while they wait for a server connection.

use heliosdb_testkit::PostgresCluster;

use crate::support::Stack;
use crate::support::raw::{Wire, query};

/// Whether a message is a NOTICE of that text.
fn says(message: &[u8], text: &str) -> bool {
    let body = String::from_utf8_lossy(message);
    message[0] == b'N' && body.contains("SNOTICE\0") && body.contains(&format!("M{text}\0"))
}

#[test]
fn who_waits_for_a_server_connection_is_told_so_once_each_time() {
    let stack = Stack::start_with(
        PostgresCluster::builder(),
        "[clients]\nwait_notice = \"50ms\"\n[pool]\nsize = 1\n",
    );
    let (mut holder, mut waiter) = (stack.wire(), stack.wire());
    let ask = || query("SELECT pg_backend_pid() > 0");
    for _ in 0..2 {
        holder.run("BEGIN");
        holder.run("SELECT pg_backend_pid()");
        waiter.send(&[ask()]);
        let told = waiter.next_message().expect("told");
        let text = "No server connection available in postgres backend, client being queued";
        assert!(says(&told, text), "{told:?}");
        holder.run("COMMIT");
        let answer: Vec<u8> = waiter.messages().iter().map(|message| message[0]).collect();
        assert_eq!(answer, b"TDCZ");
    }
    // Who gets a connection at once hears nothing.
    waiter.send(&[ask()]);
    let answer: Vec<u8> = waiter.messages().iter().map(|message| message[0]).collect();
    assert_eq!(answer, b"TDCZ");
}

#[test]
fn a_notice_at_login_comes_ahead_of_the_first_ready_for_query() {
    let stack = Stack::start_with(
        PostgresCluster::builder(),
        "[clients]\nlogin_notice = \"you are on helios\"\n",
    );
    let welcome = |database| Wire::welcome(stack.helios.port, "postgres", database);
    let told = welcome("postgres");
    let notices = told
        .iter()
        .filter(|message| says(message, "you are on helios"));
    assert_eq!(notices.count(), 1, "{told:?}");
    let told = welcome("helios");
    assert!(
        told.iter().all(|message| message[0] != b'N'),
        "the console is no database"
    );
}
