//! PAUSE, SUSPEND and RESUME: requests wait and none fails, nothing of a paused database is answered from memory, and
//! answers of the server before are gone after it.

use std::time::Duration;

use heliosdb_testkit::PostgresCluster;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::{Helios, Stack, connect, text, until};

/// A column of the console's row that has this value in another column.
async fn shown(console: &Client, table: &str, with: (&str, &str), column: &str) -> Vec<String> {
    let messages = console
        .simple_query(&format!("SHOW {table}"))
        .await
        .expect("shown");
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) if row.get(with.0) == Some(with.1) => Some(row),
        _ => None,
    });
    rows.map(|row| row.get(column).unwrap_or_default().to_owned())
        .collect()
}

/// A client of `postgres` waits.
async fn until_waiting(console: &Client) {
    until("a client waits", || async {
        let states = shown(console, "CLIENTS", ("database", "postgres"), "state").await;
        states.iter().any(|state| state == "waiting")
    })
    .await;
}

async fn sessions(direct: &Client) -> String {
    let sql = "SELECT count(*)::text FROM pg_stat_activity WHERE backend_type = 'client backend' \
               AND pid <> pg_backend_pid()";
    text(direct, sql).await
}

#[tokio::test]
async fn a_paused_database_has_no_connection_and_requests_wait() {
    let stack = Stack::start();
    let console = stack.helios.client("postgres", "pgbouncer").await;
    let direct = stack.direct().await;
    let (client, reader) = (stack.client().await, stack.client().await);
    client
        .batch_execute("CREATE TABLE t (a text); INSERT INTO t VALUES ('x')")
        .await
        .expect("made");
    for _ in 0..3 {
        assert_eq!(text(&reader, "SELECT count(*)::text FROM t").await, "1");
    }
    let hits = stack.helios.cache_count("hits").await;
    console
        .batch_execute("PAUSE postgres")
        .await
        .expect("paused");
    assert_eq!(sessions(&direct).await, "0");
    assert_eq!(
        shown(&console, "DATABASES", ("name", "postgres"), "paused").await,
        ["1"]
    );

    // A write, and a read that was in memory.
    let write = tokio::spawn(async move {
        client
            .batch_execute("INSERT INTO t VALUES ('y')")
            .await
            .expect("written");
    });
    let read = tokio::spawn(async move { text(&reader, "SELECT count(*)::text FROM t").await });
    until("both wait", || async {
        let states = shown(&console, "CLIENTS", ("database", "postgres"), "state").await;
        states.iter().all(|state| state == "waiting")
    })
    .await;
    assert_eq!(sessions(&direct).await, "0");
    assert_eq!(stack.helios.cache_count("hits").await, hits);
    console
        .batch_execute("RESUME postgres")
        .await
        .expect("resumed");
    write.await.expect("no panic");
    read.await.expect("no panic");
    assert_eq!(
        shown(&console, "DATABASES", ("name", "postgres"), "paused").await,
        ["0"]
    );
}

#[tokio::test]
async fn a_hit_waits_as_everything_else() {
    let stack = Stack::start();
    let console = stack.helios.client("postgres", "pgbouncer").await;
    let client = stack.client().await;
    client
        .batch_execute("CREATE TABLE t (a text); INSERT INTO t VALUES ('before')")
        .await
        .expect("made");
    let statement = client.prepare("SELECT a FROM t").await.expect("prepared");
    let read = async |client: &Client| -> String {
        let row = client.query_one(&statement, &[]).await;
        row.expect("a row").get(0)
    };
    read(&client).await;
    let hits = stack.helios.cache_count("hits").await;
    assert_eq!(read(&client).await, "before");
    assert_eq!(stack.helios.cache_count("hits").await, hits + 1);
    console.batch_execute("PAUSE").await.expect("paused");
    // What happens to the server meanwhile goes by nobody here.
    let direct = stack.direct().await;
    direct
        .batch_execute("UPDATE t SET a = 'after'")
        .await
        .expect("changed");
    let statement = statement.clone();
    let waiting = tokio::spawn(async move {
        let row = client.query_one(&statement, &[]).await;
        row.expect("a row").get::<_, String>(0)
    });
    until_waiting(&console).await;
    console.batch_execute("RESUME").await.expect("resumed");
    assert_eq!(waiting.await.expect("no panic"), "after");
}

#[tokio::test]
async fn answers_from_before_a_pause_are_gone_after_it() {
    let stack = Stack::start_with(PostgresCluster::builder(), "invalidation = \"wire\"\n");
    let console = stack.helios.client("postgres", "pgbouncer").await;
    let client = stack.client().await;
    client
        .batch_execute("CREATE TABLE t (a text); INSERT INTO t VALUES ('before')")
        .await
        .expect("made");
    for _ in 0..3 {
        assert_eq!(text(&client, "SELECT a FROM t").await, "before");
    }
    for command in ["PAUSE", "PAUSE postgres", "SUSPEND"] {
        console.batch_execute(command).await.expect(command);
        let direct = stack.direct().await;
        let sql = format!("UPDATE t SET a = '{command}'");
        direct.batch_execute(&sql).await.expect("changed");
        let resume = command
            .replace("PAUSE", "RESUME")
            .replace("SUSPEND", "RESUME");
        console.batch_execute(&resume).await.expect("resumed");
        for _ in 0..3 {
            assert_eq!(text(&client, "SELECT a FROM t").await, command);
        }
    }
}

#[tokio::test]
async fn a_pause_waits_for_transactions_and_for_sessions_in_session_mode() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let url = cluster.url("postgres", "postgres");
    let config = format!(
        "[databases.t]\nurl = \"{url}\"\n[databases.s]\nurl = \"{url}\"\npool_mode = \"session\"\n"
    );
    let helios = Helios::start(&[], &config);
    let console = helios.client("postgres", "pgbouncer").await;
    let transaction = helios.client("postgres", "t").await;
    transaction
        .batch_execute("BEGIN; CREATE TABLE a ()")
        .await
        .expect("begun");
    let session = helios.client("postgres", "s").await;
    session.batch_execute("SELECT 1").await.expect("asked");
    for (name, holder) in [("t", &transaction), ("s", &session)] {
        let waiting = helios.client("postgres", "pgbouncer").await;
        let command = format!("PAUSE {name}");
        let paused = tokio::spawn(async move { waiting.batch_execute(&command).await });
        until("it is paused", || async {
            shown(&console, "DATABASES", ("name", name), "paused").await == ["1"]
        })
        .await;
        // Who has a connection goes on.
        holder.batch_execute("SELECT 2").await.expect("asked");
        assert!(!paused.is_finished());
        if name == "t" {
            holder.batch_execute("COMMIT").await.expect("committed");
            paused.await.expect("no panic").expect("paused");
        } else {
            paused.abort();
        }
    }
    drop(session);
    // Once more: what was begun by somebody who left is still in force.
    until("no connection is left", || async {
        shown(&console, "POOLS", ("database", "s"), "sv_active").await == ["0"]
            && shown(&console, "POOLS", ("database", "s"), "sv_closing").await == ["0"]
    })
    .await;
    assert_eq!(
        shown(&console, "DATABASES", ("name", "s"), "paused").await,
        ["1"]
    );
    console.batch_execute("RESUME").await.expect("all of them");
    let session = helios.client("postgres", "s").await;
    session.batch_execute("SELECT 1").await.expect("asked");
}

#[tokio::test]
async fn a_wait_of_the_console_can_be_cancelled() {
    let stack = Stack::start();
    let console = stack.helios.client("postgres", "pgbouncer").await;
    let client = stack.client().await;
    client
        .batch_execute("BEGIN; CREATE TABLE t ()")
        .await
        .expect("begun");
    let waiting = stack.helios.client("postgres", "pgbouncer").await;
    let cancel = waiting.cancel_token();
    let paused = tokio::spawn(async move { (waiting.batch_execute("PAUSE").await, waiting) });
    until("it is paused", || async {
        shown(&console, "STATE", ("key", "paused"), "value").await == ["yes"]
    })
    .await;
    cancel
        .cancel_query(tokio_postgres::NoTls)
        .await
        .expect("sent");
    let (cancelled, waiting) = paused.await.expect("no panic");
    let cancelled = cancelled.expect_err("cancelled");
    assert_eq!(cancelled.code().map(|code| code.code()), Some("57014"));
    // The console goes on, and the pause with it.
    assert_eq!(
        shown(&waiting, "STATE", ("key", "paused"), "value").await,
        ["yes"]
    );
    waiting.batch_execute("RESUME").await.expect("resumed");
    client.batch_execute("COMMIT").await.expect("committed");
}

#[tokio::test]
async fn a_client_that_waits_for_a_paused_database_can_cancel() {
    let stack = Stack::start();
    let console = stack.helios.client("postgres", "pgbouncer").await;
    let client = stack.client().await;
    console.batch_execute("PAUSE").await.expect("paused");
    let cancel = client.cancel_token();
    let waiting = tokio::spawn(async move { (client.batch_execute("SELECT 1").await, client) });
    until_waiting(&console).await;
    cancel
        .cancel_query(tokio_postgres::NoTls)
        .await
        .expect("sent");
    let (cancelled, client) = waiting.await.expect("no panic");
    let cancelled = cancelled.expect_err("cancelled");
    assert_eq!(cancelled.code().map(|code| code.code()), Some("57014"));
    console.batch_execute("RESUME").await.expect("resumed");
    client.batch_execute("SELECT 1").await.expect("asked");
}

#[tokio::test]
async fn a_suspension_ends_with_the_administrator_who_asked_for_it() {
    let stack = Stack::start();
    let console = stack.helios.client("postgres", "pgbouncer").await;
    let client = stack.client().await;
    client
        .batch_execute("CREATE TABLE t ()")
        .await
        .expect("made");
    let suspender = stack.helios.client("postgres", "pgbouncer").await;
    suspender.batch_execute("SUSPEND").await.expect("suspended");
    assert_eq!(
        shown(&console, "STATE", ("key", "suspended"), "value").await,
        ["yes"]
    );
    let refused = console
        .batch_execute("PAUSE")
        .await
        .expect_err("held up already");
    assert!(
        refused
            .as_db_error()
            .is_some_and(|error| error.message() == "already suspended/paused")
    );
    let waiting = tokio::spawn(async move { client.batch_execute("DROP TABLE t").await });
    until_waiting(&console).await;
    drop(suspender);
    waiting
        .await
        .expect("no panic")
        .expect("it ended by itself");
    assert_eq!(
        shown(&console, "STATE", ("key", "active"), "value").await,
        ["yes"]
    );
}

#[tokio::test]
async fn another_server_takes_the_place_of_the_one_that_was_paused() {
    let (old, new) = (
        PostgresCluster::builder()
            .start()
            .expect("PostgreSQL starts"),
        PostgresCluster::builder()
            .start()
            .expect("PostgreSQL starts"),
    );
    for (cluster, name) in [(&old, "old"), (&new, "new")] {
        let direct = connect(cluster.port(), "postgres", "postgres").await;
        let sql = format!("CREATE TABLE t (a text); INSERT INTO t VALUES ('{name}')");
        direct.batch_execute(&sql).await.expect("made");
    }
    let config = |cluster: &PostgresCluster| {
        format!(
            "[databases.d]\nurl = \"{}\"\n[pool]\nacquire_timeout = \"10m\"\n",
            cluster.url("postgres", "postgres")
        )
    };
    let helios = Helios::start(&[], &config(&old));
    let console = helios.client("postgres", "pgbouncer").await;
    let client = helios.client("postgres", "d").await;
    for _ in 0..3 {
        assert_eq!(text(&client, "SELECT a FROM t").await, "old");
    }
    console.batch_execute("PAUSE d").await.expect("paused");
    let read = |client: Client| tokio::spawn(async move { text(&client, "SELECT a FROM t").await });
    let until_waiting = async |n: usize| {
        until("they wait", || async {
            let states = shown(&console, "CLIENTS", ("database", "d"), "state").await;
            states.iter().filter(|state| *state == "waiting").count() == n
        })
        .await;
    };
    // One that waits before the name leads elsewhere, and one that comes after that.
    let early = read(client);
    until_waiting(1).await;
    let client = helios.client("postgres", "d").await;
    std::fs::write(helios.folder().join("helios.toml"), config(&new)).expect("written");
    console.batch_execute("RELOAD").await.expect("reloaded");
    let late = read(client);
    until_waiting(2).await;
    console.batch_execute("RESUME d").await.expect("resumed");
    for waiting in [early, late] {
        // Their patience is longer.
        let answer = tokio::time::timeout(Duration::from_secs(60), waiting).await;
        assert_eq!(answer.expect("served").expect("no panic"), "new");
    }
}
