//! Limits on clients: exact, under storms too, told with the key that sets them, and none for those who look after helios.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use heliosdb_testkit::PostgresCluster;

use crate::support::raw::{Wire, bind, execute, message, parse, query, sync};
use crate::support::{Helios, Stack};

/// The hint that a client is given that is not let in.
async fn refused(helios: &Helios, user: &str, database: &str) -> String {
    let config = format!(
        "host=127.0.0.1 port={} user={user} dbname={database}",
        helios.port
    );
    let Err(error) = tokio_postgres::connect(&config, NoTls).await else {
        panic!("{user} was let into {database}");
    };
    let error = error.as_db_error().unwrap_or_else(|| panic!("{error}"));
    assert_eq!(*error.code(), SqlState::TOO_MANY_CONNECTIONS, "{error}");
    assert_eq!(error.severity(), "FATAL");
    error.hint().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn each_limit_on_clients_is_told_by_its_key_and_a_reload_changes_it() {
    let stack = Stack::start_with(
        PostgresCluster::builder(),
        "[clients]\nmax = 5\nmax_per_user = 3\nmax_per_database = 3\n[users.one]\nmax_clients = 1\n\
         [databases.small]\nmax_clients = 1\n",
    );
    for sql in [
        "CREATE ROLE one LOGIN",
        "CREATE DATABASE small",
        "CREATE DATABASE other",
        "CREATE ROLE x LOGIN",
    ] {
        stack.cluster.psql("postgres", sql).expect(sql);
    }
    let helios = &stack.helios;
    let mut inside = vec![helios.client("one", "postgres").await];
    let hint = refused(helios, "one", "postgres").await;
    assert!(
        hint.contains("`users.one.max_clients`, which is 1"),
        "{hint}"
    );
    inside.push(helios.client("postgres", "small").await);
    let hint = refused(helios, "postgres", "small").await;
    assert!(hint.contains("`databases.small.max_clients`"), "{hint}");
    for _ in 0..2 {
        inside.push(helios.client("postgres", "postgres").await);
    }
    let hint = refused(helios, "x", "postgres").await;
    assert!(
        hint.contains("`clients.max_per_database`, which is 3"),
        "{hint}"
    );
    let hint = refused(helios, "postgres", "other").await;
    assert!(
        hint.contains("`clients.max_per_user`, which is 3"),
        "{hint}"
    );
    inside.push(helios.client("x", "other").await);
    let hint = refused(helios, "x", "other").await;
    assert!(hint.contains("`clients.max`, which is 5"), "{hint}");

    // Who looks after it gets in, and finds who is there.
    let console = helios.client("postgres", "helios").await;
    let shown = console.simple_query("SHOW CLIENTS").await.expect("shown");
    assert!(shown.len() >= inside.len());

    let file = helios.folder().join("helios.toml");
    std::fs::write(file, "[clients]\nmax = 6\n").expect("written");
    helios.signal("HUP");
    wait_until_configured(&console, "clients.max", "6").await;
    inside.push(helios.client("one", "postgres").await);
    let hint = refused(helios, "one", "postgres").await;
    assert!(hint.contains("`clients.max`, which is 6"), "{hint}");
}

#[test]
fn a_storm_of_logins_lets_in_as_many_as_may_be_and_all_of_them_once_there_is_room() {
    const ROOM: usize = 20;
    let config = format!("[clients]\nmax_per_user = {ROOM}\n");
    let stack = Stack::start_with(PostgresCluster::builder(), &config);
    let port = stack.helios.port;
    // Known from here on, so that no login waits for the server.
    drop(stack.wire());
    for _ in 0..3 {
        let (inside, outside): (Vec<_>, Vec<_>) = std::thread::scope(|scope| {
            let logins: Vec<_> = (0..4 * ROOM)
                .map(|_| scope.spawn(move || Wire::login(port, "postgres", "postgres", &[])))
                .collect();
            let done = logins.into_iter().map(|login| login.join().expect("ended"));
            done.partition(Result::is_ok)
        });
        for told in outside.iter().filter_map(|login| login.as_ref().err()) {
            assert_eq!(
                told,
                "E FATAL 53300 too many connections for user \"postgres\"\nthe end\n"
            );
        }
        assert_eq!(inside.len(), ROOM);
        drop(inside);
        wait_until_alone(&stack.helios);
    }
}

/// Helios goes by what its file says.
async fn wait_until_configured(console: &Client, key: &str, value: &str) {
    for _ in 0..10_000 {
        let rows = console.simple_query("SHOW CONFIG").await.expect("shown");
        let is_there = rows.iter().any(|row| {
            matches!(row, SimpleQueryMessage::Row(row) if row.get(0) == Some(key) && row.get(1) == Some(value))
        });
        if is_there {
            return;
        }
    }
    panic!("{key} is not {value}");
}

/// Helios has noticed that all clients left.
fn wait_until_alone(helios: &Helios) {
    let mut console = Wire::connect(helios.port, "helios", &[]);
    for _ in 0..10_000 {
        let shown = console.query("SHOW CLIENTS");
        if shown.lines().filter(|line| line.starts_with('D')).count() <= 1 {
            return;
        }
        std::thread::yield_now();
    }
    panic!("clients are left");
}

#[test]
fn in_statement_mode_no_statement_leaves_a_transaction_behind() {
    let stack = Stack::start_with(
        PostgresCluster::builder(),
        "[pool]\nsize = 1\nmode = \"statement\"\n",
    );
    let told = "E FATAL 0A000 transaction blocks not allowed in statement pooling mode\nthe end\n";
    let mut client = stack.wire();
    let pid = client.value("SELECT pg_backend_pid()");
    client.run("CREATE TABLE t AS SELECT 1 AS a");
    // One query of several statements is a transaction that ends with it, and so is one with its own BEGIN and COMMIT.
    client.run("UPDATE t SET a = a + 1; UPDATE t SET a = a + 1");
    client.run("BEGIN; UPDATE t SET a = a + 1; COMMIT");
    let extended = [
        parse("", "UPDATE t SET a = a + 1"),
        bind("", ""),
        execute("", 0),
        sync(),
    ];
    assert!(client.ask(&extended).ends_with("Z I\n"));
    assert_eq!(client.value("SELECT a FROM t"), "5");
    // What belongs to the session is kept as in transaction mode.
    client.run("SET work_mem = '5MB'");
    assert_eq!(client.value("SHOW work_mem"), "5MB");
    for begin in [
        "BEGIN",
        "START TRANSACTION",
        "UPDATE t SET a = 99; BEGIN; UPDATE t SET a = 100",
        "BEGIN READ WRITE",
        "BEGIN; SELECT no_such_column FROM t",
    ] {
        let mut client = stack.wire();
        client.send(&[query(begin)]);
        let shown = client.rest();
        assert!(shown.ends_with(told), "{begin}: {shown}");
        let mut next = stack.wire();
        assert_eq!(next.value("SELECT a FROM t"), "5", "{begin}");
        assert_eq!(next.value("SELECT pg_backend_pid()"), pid, "{begin}");
    }
    let mut client = stack.wire();
    client.send(&[parse("", "BEGIN"), bind("", ""), execute("", 0), sync()]);
    assert!(client.rest().ends_with(told));
}

#[test]
fn a_message_that_is_too_long_is_refused_before_it_is_held() {
    let config = "[clients]\nmax_message = \"100 KiB\"\n";
    let stack = Stack::start_with(PostgresCluster::builder(), config);
    let mut client = stack.wire();
    let long = "x".repeat(90 << 10);
    assert_eq!(
        client.value(&format!("SELECT length('{long}')")),
        (90 << 10).to_string()
    );
    // Its beginning alone.
    client.send(&[b"Q\0\x10\0\0SELECT".to_vec()]);
    let told = client.rest();
    assert_eq!(
        told,
        "E FATAL 54000 a message of 1048576 bytes is too long: helios takes 102400 at most\nthe end\n"
    );
    let mut client = stack.wire();
    client.send(&[b"Q\x7f\xff\xff\xffSELECT".to_vec()]);
    assert!(
        client
            .rest()
            .starts_with("E FATAL 08P01 invalid message length")
    );
    let mut client = stack.wire();
    client.send(&[query("COPY (SELECT 1) TO STDOUT"), message(b'd', b"1\n")]);
    assert!(client.replies(1).ends_with("Z I\n"));
}
