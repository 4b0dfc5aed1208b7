//! Clients that replicate through helios: PostgreSQL's own programs and subscribers.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use heliosdb_testkit::{PostgresCluster, postgres_bin_dir};

use crate::support::{Helios, Stack, connect, is_refused_as_no_replicator, psql, text, until};

fn logical() -> heliosdb_testkit::PostgresBuilder {
    PostgresCluster::builder().setting("wal_level", "logical")
}

/// One of PostgreSQL's programs, connected to helios.
fn program(name: &str, helios: &Helios, args: &[&str], folder: &Path) -> Child {
    let program = postgres_bin_dir().expect("installed").join(name);
    Command::new(program)
        .args([
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-p",
            &helios.port.to_string(),
        ])
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts")
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_follows_through_helios_and_gives_its_place_back() {
    let stack = Stack::start_with(logical(), "invalidation = \"wire\"\npool.size = 2\n");
    let subscriber = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let (publishing, subscribed) = (
        stack.client().await,
        connect(subscriber.port(), "postgres", "postgres").await,
    );
    for client in [&publishing, &subscribed] {
        client
            .batch_execute("CREATE TABLE t (a int PRIMARY KEY)")
            .await
            .expect("made");
    }
    publishing
        .batch_execute("INSERT INTO t VALUES (1)")
        .await
        .expect("written");
    publishing
        .batch_execute("CREATE PUBLICATION p FOR TABLE t")
        .await
        .expect("made");
    let subscribe = format!(
        "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port={} user=postgres dbname=postgres' PUBLICATION p",
        stack.helios.port
    );
    subscribed
        .batch_execute(&subscribe)
        .await
        .expect("subscribed");
    publishing
        .batch_execute("INSERT INTO t VALUES (2)")
        .await
        .expect("written");
    let counted = "SELECT count(*)::text FROM t";
    until("both rows come", || async {
        text(&subscribed, counted).await == "2"
    })
    .await;

    // One of the two places is the subscriber's.
    let (one, two) = (stack.client().await, stack.client().await);
    one.batch_execute("BEGIN; CREATE TABLE u (a int)")
        .await
        .expect("begun");
    let waiting = tokio::spawn(async move { two.batch_execute("CREATE TABLE v (a int)").await });
    let pools = || async { psql(stack.helios.port, "helios", "\\x on\nSHOW POOLS;\n") };
    until("the other one waits", || async {
        let shown = pools().await;
        shown
            .lines()
            .any(|line| line.starts_with("waiting") && line.ends_with("| 1"))
            || shown
                .lines()
                .any(|line| line.starts_with("cl_waiting") && line.ends_with("| 1"))
    })
    .await;
    subscribed
        .batch_execute("DROP SUBSCRIPTION s")
        .await
        .expect("dropped");
    waiting.await.expect("no panic").expect("the place is free");
    one.batch_execute("COMMIT").await.expect("committed");
    let direct = stack.direct().await;
    until("the walsender is gone", || async {
        text(&direct, "SELECT count(*)::text FROM pg_stat_replication").await == "0"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_and_the_log_are_received() {
    let stack = Stack::start_with(logical(), "invalidation = \"wire\"\n");
    let client = stack.client().await;
    client
        .batch_execute("CREATE TABLE t (a text)")
        .await
        .expect("made");
    client
        .query_one(
            "SELECT pg_create_logical_replication_slot('changes', 'test_decoding')::text",
            &[],
        )
        .await
        .expect("made");
    client
        .batch_execute("INSERT INTO t VALUES ('here')")
        .await
        .expect("written");
    let folder = tempfile::tempdir().expect("a folder");
    let args = [
        "-d", "postgres", "--slot", "changes", "--start", "-f", "out", "-F", "1",
    ];
    let _logical = Ended(program(
        "pg_recvlogical",
        &stack.helios,
        &args,
        folder.path(),
    ));
    until("the change comes", || async {
        let out = std::fs::read_to_string(folder.path().join("out")).unwrap_or_default();
        out.contains("a[text]:'here'")
    })
    .await;

    let wal = folder.path().join("wal");
    std::fs::create_dir(&wal).expect("made");
    let args = ["-D", "wal", "--no-loop"];
    let _physical = Ended(program(
        "pg_receivewal",
        &stack.helios,
        &args,
        folder.path(),
    ));
    until("the log comes", || async {
        std::fs::read_dir(&wal).is_ok_and(|files| files.count() > 0)
    })
    .await;
}

#[tokio::test]
async fn what_the_server_says_to_a_client_that_replicates_is_passed_on() {
    let stack = Stack::start_with(PostgresCluster::builder(), "invalidation = \"wire\"\n");
    let client = stack.client().await;
    client
        .batch_execute("CREATE ROLE plain LOGIN")
        .await
        .expect("made");
    let ask = |user: &str, replication: &str| {
        let place = format!(
            "host=127.0.0.1 port={} user={user} dbname=postgres replication={replication}",
            stack.helios.port
        );
        let psql = postgres_bin_dir().expect("installed").join("psql");
        let out = Command::new(psql)
            .args(["-X", "-A", "-t", "-c", "IDENTIFY_SYSTEM", &place])
            .output()
            .expect("psql runs");
        format!(
            "{}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        )
    };
    let told = ask("postgres", "database");
    assert!(told.trim_end().ends_with("|postgres"), "{told}");
    let told = ask("postgres", "true");
    assert_eq!(told.matches('|').count(), 3, "{told}");
    let told = ask("plain", "database");
    assert!(is_refused_as_no_replicator(&told), "{told}");
    let told = ask("postgres", "perhaps");
    assert!(
        told.contains("invalid value for parameter \"replication\": \"perhaps\""),
        "{told}"
    );
    let told = ask("postgres", "off");
    assert!(told.contains("syntax error"), "{told}");
}
