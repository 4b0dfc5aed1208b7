//! Online restart: no client is refused, open transactions end as they should, and two processes never answer from
//! memory at the same time. Unix-domain sockets, and what a killed process leaves behind.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use heliosdb_testkit::PostgresCluster;
use tokio_postgres::NoTls;

use crate::support::{Helios, Stack, connect, psql, text, until};

/// Ends the successor, whose process id is in the file.
struct Successor(PathBuf);

impl Drop for Successor {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(&self.0).unwrap_or_default();
        if !pid.trim().is_empty() {
            let _ = Command::new("kill").args(["-TERM", pid.trim()]).status();
        }
    }
}

fn start(cluster: &PostgresCluster, folder: &Path, more: &str) -> (Helios, Successor) {
    let pid_file = folder.join("pid");
    let config = format!(
        "pid_file = \"{}\"\ninvalidation = \"wire\"\n[upstream]\nurl = \"{}\"\n{more}",
        pid_file.display(),
        cluster.url("postgres", "postgres")
    );
    (Helios::start(&[], &config), Successor(pid_file))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_refuses_nobody_and_no_answer_is_stale() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let folder = tempfile::tempdir().expect("a folder");
    let (mut helios, _successor) = start(&cluster, folder.path(), "");
    let port = helios.port;
    let old = helios.client("postgres", "postgres").await;
    old.batch_execute("CREATE TABLE t (a int8); INSERT INTO t VALUES (0); CREATE TABLE u (a int)")
        .await
        .expect("made");
    let counted = "SELECT a::text FROM t";
    for _ in 0..3 {
        assert_eq!(text(&old, counted).await, "0");
    }

    // Clients that come and go all the time, and look whether what was acknowledged is there.
    let is_over = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let visits = (0..4).map(|_| {
        let (is_over, acknowledged) = (Arc::clone(&is_over), Arc::clone(&acknowledged));
        tokio::spawn(async move {
            let mut visits = 0;
            while !is_over.load(Ordering::Relaxed) {
                let config = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
                let (client, connection) = tokio_postgres::connect(&config, NoTls)
                    .await
                    .expect("let in");
                tokio::spawn(connection);
                let known = acknowledged.load(Ordering::SeqCst);
                let seen: u64 = text(&client, counted).await.parse().expect("a number");
                assert!(
                    seen >= known,
                    "{seen} was read when {known} was acknowledged"
                );
                visits += 1;
            }
            visits
        })
    });
    let visits: Vec<_> = visits.collect();
    let writer = {
        let (is_over, acknowledged) = (Arc::clone(&is_over), Arc::clone(&acknowledged));
        tokio::spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                // Each write over the process that happens to accept.
                let client = connect(port, "postgres", "postgres").await;
                client
                    .batch_execute("UPDATE t SET a = a + 1")
                    .await
                    .expect("written");
                acknowledged.fetch_add(1, Ordering::SeqCst);
            }
        })
    };

    // Clients that stay with the old process: one writes what those at the new one read, and reads what they write.
    let stayed = helios.client("postgres", "postgres").await;
    old.batch_execute("BEGIN; INSERT INTO u VALUES (0)")
        .await
        .expect("begun");
    let before = helios.pid();
    let told = psql(port, "helios", "RESTART;\n");
    assert!(
        told.contains("RESTART") && !told.contains("ERROR"),
        "{told}"
    );
    until("the successor wrote its id", || async {
        let pid = std::fs::read_to_string(folder.path().join("pid")).unwrap_or_default();
        !pid.trim().is_empty() && pid.trim() != before.to_string()
    })
    .await;
    let reached = acknowledged.load(Ordering::SeqCst);
    for round in 0..60 {
        if round % 3 == 2 {
            // What was read before this is in memory, if anything is.
            let last = acknowledged.load(Ordering::SeqCst);
            until("somebody writes", || async {
                acknowledged.load(Ordering::SeqCst) > last
            })
            .await;
        }
        let known = acknowledged.load(Ordering::SeqCst);
        let seen: u64 = text(&stayed, counted).await.parse().expect("a number");
        assert!(
            seen >= known,
            "{seen} was read when {known} was acknowledged"
        );
        if round % 3 == 0 {
            stayed
                .batch_execute("UPDATE t SET a = a + 1")
                .await
                .expect("written");
            acknowledged.fetch_add(1, Ordering::SeqCst);
        }
    }
    until("writes go on", || async {
        acknowledged.load(Ordering::SeqCst) > reached + 50
    })
    .await;
    drop(stayed);
    // So does the open transaction.
    old.batch_execute("INSERT INTO u VALUES (1); COMMIT")
        .await
        .expect("committed");
    assert_eq!(text(&old, "SELECT count(*)::text FROM u").await, "2");
    drop(old);
    assert!(
        helios.wait(Duration::from_secs(60)).is_some(),
        "the old process ends"
    );
    let reached = acknowledged.load(Ordering::SeqCst);
    until("writes go on", || async {
        acknowledged.load(Ordering::SeqCst) > reached + 20
    })
    .await;
    is_over.store(true, Ordering::Relaxed);
    writer.await.expect("no write failed");
    for visits in visits {
        assert!(visits.await.expect("nobody was refused") > 10);
    }
    // From here on the new one answers from memory.
    until("there are hits", || async {
        let client = connect(port, "postgres", "postgres").await;
        text(&client, counted).await;
        text(&client, counted).await;
        helios.cache_count("hits").await > 0
    })
    .await;
}

#[tokio::test]
async fn a_successor_that_cannot_start_changes_nothing() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let folder = tempfile::tempdir().expect("a folder");
    let (helios, _successor) = start(&cluster, folder.path(), "");
    let client = helios.client("postgres", "postgres").await;
    client
        .batch_execute("CREATE TABLE t (a text); INSERT INTO t VALUES ('x')")
        .await
        .expect("made");
    std::fs::write(helios.folder().join("helios.toml"), "nonsense = 1\n").expect("written");
    let told = psql(helios.port, "helios", "RESTART;\n");
    assert!(told.contains("the successor did not get ready"), "{told}");
    for _ in 0..4 {
        assert_eq!(text(&client, "SELECT a FROM t").await, "x");
    }
    assert!(helios.cache_count("hits").await >= 2);
    helios
        .client("postgres", "postgres")
        .await
        .batch_execute("SELECT 1")
        .await
        .expect("let in");
}

/// The file that helios was started from may be another one by now: here one that says that it is ready, and ends.
#[tokio::test]
async fn a_successor_that_dies_when_it_is_ready_leaves_all_as_it_was() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("helios");
    std::fs::copy(env!("CARGO_BIN_EXE_helios"), &program).expect("copied");
    let helios = Helios::start_from(
        &program,
        &["--upstream", &cluster.url("postgres", "postgres")],
    );
    let client = helios.client("postgres", "postgres").await;
    client
        .batch_execute("CREATE TABLE t (a text); INSERT INTO t VALUES ('x')")
        .await
        .expect("made");
    let newer = folder.path().join("newer");
    std::fs::write(&newer, "#!/bin/sh\nprintf R >&0\n").expect("written");
    std::fs::set_permissions(&newer, std::fs::Permissions::from_mode(0o755)).expect("set");
    std::fs::rename(&newer, &program).expect("replaced");

    let told = psql(helios.port, "helios", "RESTART;\n");
    assert!(told.contains("the successor did not go on"), "{told}");
    let before = helios.cache_count("hits").await;
    for _ in 0..4 {
        assert_eq!(text(&client, "SELECT a FROM t").await, "x");
    }
    assert!(
        helios.cache_count("hits").await > before,
        "it answers from memory again"
    );
    let later = helios.client("postgres", "postgres").await;
    later
        .batch_execute("UPDATE t SET a = 'y'")
        .await
        .expect("let in");
    assert_eq!(text(&client, "SELECT a FROM t").await, "y");
}

#[tokio::test]
async fn clients_that_do_not_leave_are_ended_between_transactions() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let folder = tempfile::tempdir().expect("a folder");
    let (mut helios, _successor) = start(
        &cluster,
        folder.path(),
        "[clients]\nhandover_timeout = \"50ms\"\n",
    );
    let idle = helios.client("postgres", "postgres").await;
    let busy = helios.client("postgres", "postgres").await;
    busy.batch_execute("BEGIN; CREATE TABLE t (a int)")
        .await
        .expect("begun");
    let told = psql(helios.port, "helios", "RESTART;\n");
    assert!(!told.contains("ERROR"), "{told}");
    until("the idle one is told to go", || async { idle.is_closed() }).await;
    busy.batch_execute("INSERT INTO t VALUES (1)")
        .await
        .expect("the open transaction goes on");
    busy.batch_execute("COMMIT").await.expect("committed");
    assert!(
        helios.wait(Duration::from_secs(60)).is_some(),
        "the old process ends"
    );
    let later = helios.client("postgres", "postgres").await;
    assert_eq!(text(&later, "SELECT count(*)::text FROM t").await, "1");
}

#[tokio::test]
async fn a_write_that_a_killed_process_began_is_waited_for() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let url = cluster.url("postgres", "postgres");
    let direct = connect(cluster.port(), "postgres", "postgres").await;
    direct
        .batch_execute("CREATE TABLE t (a text); INSERT INTO t VALUES ('old')")
        .await
        .expect("made");
    {
        let helios = Helios::start(&["--upstream", &url], "");
        let client = helios.client("postgres", "postgres").await;
        // In one statement: it commits though nobody waits for it.
        let write = "UPDATE t SET a = 'new' WHERE pg_sleep(3) IS NOT NULL";
        let writing = tokio::spawn(async move { client.batch_execute(write).await });
        until("the write runs", || async {
            let running = "SELECT count(*)::text FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'UPDATE%'";
            text(&direct, running).await == "1"
        })
        .await;
        helios.signal("KILL");
        assert!(writing.await.expect("no panic").is_err());
    }
    let helios = Helios::start(&["--upstream", &url], "invalidation = \"wire\"\n");
    let client = helios.client("postgres", "postgres").await;
    until("the write is seen", || async {
        text(&client, "SELECT a FROM t").await == "new"
    })
    .await;
    assert_eq!(text(&direct, "SELECT a FROM t").await, "new");
}

#[tokio::test]
async fn clients_come_over_a_unix_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = format!("unix_socket_dir = \"{}\"\n", folder.path().display());
    let mut stack = Stack::start_with(PostgresCluster::builder(), &config);
    let path = folder
        .path()
        .join(format!(".s.PGSQL.{}", stack.helios.port));
    let config = format!(
        "host={} port={} user=postgres dbname=postgres",
        folder.path().display(),
        stack.helios.port
    );
    let (client, connection) = tokio_postgres::connect(&config, NoTls)
        .await
        .expect("let in");
    tokio::spawn(connection);
    assert_eq!(text(&client, "SELECT 'x'").await, "x");
    let shown = psql(stack.helios.port, "helios", "SHOW CLIENTS;\n");
    assert!(shown.contains("unix"), "{shown}");
    stack.helios.signal("TERM");
    drop(client);
    assert!(stack.helios.wait(Duration::from_secs(20)).is_some());
    assert!(!path.exists());
}
