//! Names of databases: where they lead, whom clients are there, what a reload changes.

use std::time::Duration;

use heliosdb_testkit::PostgresCluster;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::support::{Helios, Stack, connect, text};

fn two_names_of_one_database(cluster: &PostgresCluster) -> String {
    format!(
        "[databases.one]\nurl = \"{}\"\n[databases.two]\nurl = \"postgres://localhost:{}/postgres\"\n",
        cluster.url("postgres", "postgres"),
        cluster.port()
    )
}

#[tokio::test]
async fn what_is_written_under_one_name_is_seen_under_the_other() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let helios = Helios::start(&[], &two_names_of_one_database(&cluster));
    let one = helios.client("postgres", "one").await;
    let two = helios.client("postgres", "two").await;
    one.batch_execute("CREATE TABLE t (a text); INSERT INTO t VALUES ('first')")
        .await
        .expect("made");
    for round in 0..10 {
        for client in [&one, &two, &one, &two] {
            let expected = if round == 0 {
                "first".to_owned()
            } else {
                format!("round {round}")
            };
            assert_eq!(text(client, "SELECT a FROM t").await, expected);
        }
        let writer = if round % 2 == 0 { &one } else { &two };
        let sql = format!("UPDATE t SET a = 'round {}'", round + 1);
        writer.batch_execute(&sql).await.expect("written");
    }
    assert!(helios.cache_count("hits").await >= 20);
}

#[tokio::test]
async fn a_url_with_a_user_makes_everybody_that_user() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let direct = connect(cluster.port(), "postgres", "postgres").await;
    for sql in [
        "CREATE ROLE app LOGIN",
        "CREATE ROLE owner LOGIN",
        "CREATE DATABASE shop OWNER owner",
    ] {
        direct.batch_execute(sql).await.expect(sql);
    }
    let config = format!(
        "[databases.forced]\nurl = \"{}\"\n[databases.shop]\nurl = \"postgres://127.0.0.1:{}\"\n",
        cluster.url("owner", "shop"),
        cluster.port()
    );
    let helios = Helios::start(&[], &config);
    let who = "SELECT session_user || '@' || current_database()";
    let forced = helios.client("app", "forced").await;
    assert_eq!(text(&forced, who).await, "owner@shop");
    let own = helios.client("app", "shop").await;
    assert_eq!(text(&own, who).await, "app@shop");
    let refused = tokio_postgres::connect(
        &format!(
            "host=127.0.0.1 port={} user=app dbname=nowhere",
            helios.port
        ),
        NoTls,
    )
    .await
    .err()
    .expect("no such name");
    assert_eq!(refused.code().map(|code| code.code()), Some("3D000"));
}

#[tokio::test]
async fn a_reload_leads_open_sessions_elsewhere_and_no_answer_comes_along() {
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
            "[databases.d]\nurl = \"{}\"\n",
            cluster.url("postgres", "postgres")
        )
    };
    let helios = Helios::start(&[], &config(&old));
    let client = helios.client("postgres", "d").await;
    for _ in 0..3 {
        assert_eq!(text(&client, "SELECT a FROM t").await, "old");
    }
    client
        .batch_execute("SET extra_float_digits TO 0")
        .await
        .expect("set");

    let file = helios.folder().join("helios.toml");
    std::fs::write(&file, config(&new)).expect("written");
    helios.signal("HUP");
    // The signal is handled when it is handled.
    let moved = tokio::time::timeout(Duration::from_secs(20), async {
        while text(&client, "SELECT a FROM t").await != "new" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    moved.await.expect("the reload was seen");
    for _ in 0..3 {
        assert_eq!(text(&client, "SELECT a FROM t").await, "new");
    }
    // What the session set goes with it.
    assert_eq!(text(&client, "SHOW extra_float_digits").await, "0");
    let later = helios.client("postgres", "d").await;
    assert_eq!(text(&later, "SELECT a FROM t").await, "new");
}

#[tokio::test]
async fn answers_of_a_database_that_is_not_cached_come_from_the_server() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let config = format!(
        "[databases.d]\nurl = \"{}\"\ncache = false\n",
        cluster.url("postgres", "postgres")
    );
    let helios = Helios::start(&[], &config);
    let client = helios.client("postgres", "d").await;
    client
        .batch_execute("CREATE TABLE t (a text); INSERT INTO t VALUES ('x')")
        .await
        .expect("made");
    for _ in 0..5 {
        assert_eq!(text(&client, "SELECT a FROM t").await, "x");
    }
    assert_eq!(helios.cache_count("hits").await, 0);
}

#[tokio::test]
async fn pools_are_as_large_as_their_database_says() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let config = format!(
        "[databases.d]\nurl = \"{}\"\npool_size = 1\nconnect_query = \"SET application_name = 'greeted'\"\n\
         [pool]\nacquire_timeout = \"100ms\"\n",
        cluster.url("postgres", "postgres")
    );
    let helios = Helios::start(&[], &config);
    let (one, two) = (
        helios.client("postgres", "d").await,
        helios.client("postgres", "d").await,
    );
    let direct = connect(cluster.port(), "postgres", "postgres").await;
    one.batch_execute("BEGIN; CREATE TABLE t ()")
        .await
        .expect("begun");
    let greeted = "SELECT count(*)::text FROM pg_stat_activity WHERE application_name = 'greeted'";
    assert_eq!(text(&direct, greeted).await, "1");
    let refused = two
        .batch_execute("CREATE TABLE u ()")
        .await
        .expect_err("the one connection is taken");
    assert_eq!(refused.code().map(|code| code.code()), Some("53300"));
    one.batch_execute("COMMIT").await.expect("committed");
    two.batch_execute("CREATE TABLE u ()")
        .await
        .expect("now it is free");
}

/// What the server does only while nobody else is in a database, and that database.
const ALONE: [(&str, &str); 5] = [
    ("template1", "CREATE DATABASE plain"),
    ("shop", "CREATE DATABASE copy TEMPLATE shop"),
    ("copy", "DROP DATABASE copy"),
    ("shop", "ALTER DATABASE shop RENAME TO old"),
    ("old", "DROP DATABASE IF EXISTS old"),
];

/// A client that came and left leaves nothing that keeps the server from it: neither a connection in the pool nor one that
/// listened.
#[tokio::test]
async fn a_database_that_its_clients_left_can_be_copied_renamed_and_dropped() {
    let stack = Stack::start();
    let owner = stack.client().await;
    let run = async |sql: &str| {
        let done = owner.batch_execute(sql).await;
        done.unwrap_or_else(|error| panic!("{sql}: {:?}", error.as_db_error()));
    };
    run("CREATE DATABASE shop").await;
    for (name, sql) in ALONE {
        let visitor = stack.helios.client("postgres", name).await;
        visitor.batch_execute("LISTEN news").await.expect("entered");
        assert_eq!(
            text(&visitor, "SELECT current_database()::text").await,
            name
        );
        drop(visitor);
        run(sql).await;
    }
}

/// As without a gateway.
#[tokio::test]
async fn a_database_with_a_client_in_it_is_not_dropped() {
    let stack = Stack::start();
    let owner = stack.client().await;
    owner
        .batch_execute("CREATE DATABASE shop")
        .await
        .expect("made");
    let visitor = stack.helios.client("postgres", "shop").await;
    assert_eq!(text(&visitor, "SELECT 'in'").await, "in");
    let error = owner.batch_execute("DROP DATABASE shop").await;
    let error = error.expect_err("somebody is in it");
    assert_eq!(error.code().map(SqlState::code), Some("55006"));
    assert_eq!(text(&visitor, "SELECT 'still in'").await, "still in");
}
