//! A server that goes away: statements wait for it, within bounds, and no answer of before is given for one of after.

use std::time::{Duration, Instant};

use heliosdb_testkit::PostgresCluster;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::{Helios, Stack, connect, until};

/// By a simple query: nothing of it is under way once it is answered.
async fn text(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.expect(sql);
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    row.expect(sql)
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_wait_while_the_server_restarts() {
    let mut stack = Stack::start_with(PostgresCluster::builder(), "pool.size = 2\n");
    let clients: Vec<Client> = {
        let clients = (0..10).map(|_| stack.client());
        futures_util::future::join_all(clients).await
    };
    clients[0]
        .batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
        .await
        .expect("made");
    stack.cluster.stop().expect("stopped");
    let asked: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(at, client)| {
            tokio::spawn(async move {
                // What a transaction begins with, and what is by itself.
                let sql = if at % 2 == 0 {
                    "BEGIN; INSERT INTO t VALUES (2); COMMIT"
                } else {
                    "INSERT INTO t VALUES (2)"
                };
                client.batch_execute(sql).await
            })
        })
        .collect();
    // Long enough for the first attempts to have failed.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(asked.iter().all(|asked| !asked.is_finished()));
    stack.cluster.launch().expect("started");
    for asked in asked {
        asked.await.expect("no panic").expect("it was waited for");
    }
    let direct = stack.direct().await;
    assert_eq!(text(&direct, "SELECT count(*)::text FROM t").await, "11");
    let client = stack.client().await;
    assert_eq!(text(&client, "SELECT count(*)::text FROM t").await, "11");
}

#[tokio::test]
async fn an_outage_that_lasts_is_told_with_its_reason() {
    for (config, waits) in [
        ("upstream.outage_timeout = \"1s\"\n", true),
        ("upstream.outage_timeout = \"0s\"\n", false),
        // The bound on waiting for a connection holds, too.
        (
            "upstream.outage_timeout = \"1h\"\npool.acquire_timeout = \"1s\"\n",
            true,
        ),
    ] {
        let mut stack = Stack::start_with(PostgresCluster::builder(), config);
        let client = stack.client().await;
        client
            .batch_execute("CREATE TABLE t (a int)")
            .await
            .expect("made");
        stack.cluster.stop().expect("stopped");
        let began = Instant::now();
        let error = client
            .batch_execute("INSERT INTO t VALUES (1)")
            .await
            .expect_err("no server");
        let error = error.as_db_error().expect("the session goes on").clone();
        assert_eq!(error.code().code(), "08006", "{config}: {error}");
        assert!(
            error
                .message()
                .starts_with("cannot reach the database server"),
            "{error}"
        );
        assert_eq!(began.elapsed() >= Duration::from_secs(1), waits, "{config}");
        stack.cluster.launch().expect("started");
        let back = tokio::time::timeout(Duration::from_secs(30), async {
            while client
                .batch_execute("INSERT INTO t VALUES (1)")
                .await
                .is_err()
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        back.await.expect("the session is of use again");
    }
}

/// A primary, its standby, and a helios that goes to whichever may write.
#[tokio::test(flavor = "multi_thread")]
async fn statements_go_on_at_the_standby_that_took_over_and_nothing_lost_is_served() {
    let mut primary = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let at_primary = connect(primary.port(), "postgres", "postgres").await;
    at_primary
        .batch_execute("CREATE TABLE t (a text); INSERT INTO t VALUES ('kept'); CREATE TABLE u (a text); CREATE ROLE app LOGIN; GRANT ALL ON t, u TO app")
        .await
        .expect("made");
    let standby = primary.standby().expect("a standby");
    let at_standby = connect(standby.port(), "postgres", "postgres").await;
    let url = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=read-write",
        standby.port(),
        primary.port()
    );
    let helios = Helios::start(&["--upstream", &url], "invalidation = \"wire\"\n");
    let client = helios.client("postgres", "postgres").await;
    until("the standby has it", || async {
        let there = "SELECT count(*)::text FROM pg_class WHERE relname = 'u'";
        text(&at_standby, there).await == "1"
    })
    .await;

    // The standby hears of nothing from here on: what is committed now will be lost.
    at_standby
        .batch_execute("ALTER SYSTEM SET primary_conninfo = ''")
        .await
        .expect("set");
    at_standby
        .batch_execute("SELECT pg_reload_conf()")
        .await
        .expect("reloaded");
    until("it streams no more", || async {
        text(
            &at_primary,
            "SELECT count(*)::text FROM pg_stat_replication",
        )
        .await
            == "0"
    })
    .await;
    client
        .batch_execute("UPDATE t SET a = 'lost'")
        .await
        .expect("written");
    for _ in 0..3 {
        assert_eq!(text(&client, "SELECT a FROM t").await, "lost");
    }
    assert!(helios.cache_count("hits").await > 0);

    primary.stop().expect("stopped");
    let waiting = tokio::spawn(async move {
        let written = client.batch_execute("INSERT INTO u VALUES ('x')").await;
        (client, written)
    });
    at_standby
        .batch_execute("SELECT pg_promote()")
        .await
        .expect("promoted");
    let (client, written) = waiting.await.expect("no panic");
    written.expect("it was waited for");
    assert_eq!(text(&client, "SELECT a FROM t").await, "kept");
    // Nor has somebody a copy of it who comes by another pool.
    let other = helios.client("app", "postgres").await;
    for client in [&other, &client] {
        assert_eq!(text(client, "SELECT a FROM t").await, "kept");
    }
}

/// What another pool finds out is true for all pools of the server.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_comes_later_drops_what_another_has_from_the_server_before() {
    let mut primary = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let at_primary = connect(primary.port(), "postgres", "postgres").await;
    at_primary
        .batch_execute("CREATE TABLE t (a text); INSERT INTO t VALUES ('old'); CREATE ROLE app LOGIN; GRANT ALL ON t TO app")
        .await
        .expect("made");
    let standby = primary.standby().expect("a standby");
    let at_standby = connect(standby.port(), "postgres", "postgres").await;
    let url = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=primary",
        primary.port(),
        standby.port()
    );
    let helios = Helios::start(&["--upstream", &url], "invalidation = \"wire\"\n");
    let client = helios.client("postgres", "postgres").await;
    for _ in 0..3 {
        assert_eq!(text(&client, "SELECT a FROM t").await, "old");
    }
    primary.stop().expect("stopped");
    at_standby
        .batch_execute("SELECT pg_promote()")
        .await
        .expect("promoted");
    at_standby
        .batch_execute("UPDATE t SET a = 'new'")
        .await
        .expect("written, and helios does not see it");
    let other = helios.client("app", "postgres").await;
    assert_eq!(text(&other, "SELECT a FROM t").await, "new");
    assert_eq!(text(&client, "SELECT a FROM t").await, "new");
}

/// A standby's answers are the server's, each time.
#[tokio::test]
async fn nothing_of_a_standby_is_kept() {
    let primary = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let at_primary = connect(primary.port(), "postgres", "postgres").await;
    at_primary
        .batch_execute("CREATE TABLE t (a text); INSERT INTO t VALUES ('1')")
        .await
        .expect("made");
    let standby = primary.standby().expect("a standby");
    let config = format!(
        "invalidation = \"wire\"\n[databases.replica]\nurl = \"{}\"\n[databases.postgres]\nurl = \"{}\"\n",
        standby.url("postgres", "postgres"),
        primary.url("postgres", "postgres")
    );
    let helios = Helios::start(&[], &config);
    let (reader, writer) = (
        helios.client("postgres", "replica").await,
        helios.client("postgres", "postgres").await,
    );
    for n in 2..12 {
        writer
            .batch_execute(&format!("UPDATE t SET a = '{n}'"))
            .await
            .expect("written");
        until("it comes to the standby", || async {
            text(&reader, "SELECT a FROM t").await == n.to_string()
        })
        .await;
    }
    assert_eq!(helios.cache_count("fills").await, 0);
}
