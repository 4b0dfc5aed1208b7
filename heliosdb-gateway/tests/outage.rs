//! A server that goes away: statements wait for it, within bounds, and no answer of before is given for one of after.

mod support;

use std::time::{Duration, Instant};

use heliosdb_testkit::PostgresCluster;
use support::Stack;
use tokio_postgres::Client;

async fn text(client: &Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.expect(sql).get(0)
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
