//! Pools that are there before their clients, and pools that go because nobody needs them.

use std::time::Duration;

use heliosdb_testkit::PostgresCluster;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::{Helios, connect, until};

/// How many connections a user has to the server.
async fn connections(direct: &Client, user: &str) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1";
    direct.query_one(sql, &[&user]).await.expect(sql).get(0)
}

/// The databases that `SHOW POOLS` has.
async fn pools(console: &Client) -> Vec<String> {
    let shown = console.simple_query("SHOW POOLS").await.expect("shown");
    let names = shown.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get("database").map(str::to_owned),
        _ => None,
    });
    names.collect()
}

async fn server_with(roles: &[&str]) -> (PostgresCluster, Client) {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let direct = connect(cluster.port(), "postgres", "postgres").await;
    for role in roles {
        let sql = format!("CREATE ROLE {role} LOGIN");
        direct.batch_execute(&sql).await.expect("made");
    }
    (cluster, direct)
}

#[tokio::test]
async fn connections_of_a_databases_own_user_are_kept_ready_from_the_start() {
    let (cluster, direct) = server_with(&["app", "late", "idle"]).await;
    let port = cluster.port();
    let of = |name: &str, login: &str, ready: u32| {
        format!(
            "[databases.{name}]\nurl = \"postgres://{login}localhost:{port}/postgres\"\nmin_idle = {ready}\n"
        )
    };
    let config = [of("a", "app@", 3), of("b", "", 2), of("c", "idle@", 0)].concat();
    let helios = Helios::start(&[], &config);
    until("they are ready", || async {
        connections(&direct, "app").await == 3
    })
    .await;
    let console = helios.client("postgres", "helios").await;
    assert_eq!(pools(&console).await, ["a"], "the others wait for a client");

    // What a reload asks for is made as well.
    let file = helios.folder().join("helios.toml");
    std::fs::write(file, [config, of("d", "late@", 2)].concat()).expect("written");
    helios.signal("HUP");
    until("the new ones are ready", || async {
        connections(&direct, "late").await == 2
    })
    .await;
    assert_eq!(connections(&direct, "app").await, 3);
    assert_eq!(connections(&direct, "idle").await, 0);
}

#[tokio::test]
async fn a_pool_that_nobody_uses_goes_and_comes_back_with_its_next_client() {
    let (cluster, direct) = server_with(&["app"]).await;
    let port = cluster.port();
    let config = format!(
        "[pool]\nidle_timeout = \"100ms\"\nunused_timeout = \"100ms\"\n\
         [databases.a]\nurl = \"postgres://localhost:{port}/postgres\"\n\
         [databases.ready]\nurl = \"postgres://app@localhost:{port}/postgres\"\nmin_idle = 1\n"
    );
    let helios = Helios::start(&[], &config);
    let console = helios.client("postgres", "helios").await;
    for _ in 0..2 {
        let client = helios.client("postgres", "a").await;
        client.batch_execute("SELECT 1").await.expect("served");
        assert!(pools(&console).await.contains(&"a".to_owned()));
        // As long as it has a client it stays, without a connection, too.
        until("its connection is closed", || async {
            let shown = console.simple_query("SHOW SERVERS").await.expect("shown");
            !shown.iter().any(|message| match message {
                SimpleQueryMessage::Row(row) => row.get("database") == Some("a"),
                _ => false,
            })
        })
        .await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(pools(&console).await.contains(&"a".to_owned()));
        client.batch_execute("SELECT 1").await.expect("served");
        drop(client);
        until("it goes", || async { pools(&console).await == ["ready"] }).await;
    }
    assert_eq!(connections(&direct, "app").await, 1);
}
