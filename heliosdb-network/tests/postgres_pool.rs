//! A pool of connections to a real PostgreSQL, which is killed and comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use heliosdb_network::connection_pool::AcquireError;
use heliosdb_network::postgres::{PgConnection, PgConnector, PgTarget};
use heliosdb_network::{ConnectionPoolConfig, EnhancedConnectionPool, HeliosError};
use heliosdb_testkit::PostgresCluster;

type Pool = EnhancedConnectionPool<PgConnector>;

fn pool(cluster: &PostgresCluster, change: impl FnOnce(&mut ConnectionPoolConfig)) -> Arc<Pool> {
    let target = PgTarget::from_url(&cluster.url("postgres", "postgres")).expect("a URL");
    with_connector(PgConnector::new(target), change)
}

fn with_connector(
    connector: PgConnector,
    change: impl FnOnce(&mut ConnectionPoolConfig),
) -> Arc<Pool> {
    let mut config = ConnectionPoolConfig::default();
    config.max_connections = 4;
    change(&mut config);
    Pool::with_connector(connector, config).expect("valid")
}

async fn value(connection: &mut PgConnection, sql: &str) -> String {
    let answers = connection.simple_query(sql).await.expect("answered");
    let row = answers.last().and_then(|answer| answer.rows.first());
    row.and_then(|row| row[0].clone()).expect("a value")
}

#[tokio::test]
async fn what_one_leaves_behind_is_not_there_for_the_next() {
    let cluster = PostgresCluster::start().expect("PostgreSQL starts");
    let pool = pool(&cluster, |config| config.max_connections = 1);
    let mut lease = pool.acquire().await.expect("connected");
    let pid = lease.backend_pid();
    for sql in [
        "CREATE TABLE t (a int)",
        "BEGIN",
        "INSERT INTO t VALUES (1)",
    ] {
        lease.simple_query(sql).await.expect("done");
    }
    drop(lease);
    let mut lease = pool.acquire().await.expect("rolled back");
    assert_eq!(lease.backend_pid(), pid, "the same connection");
    assert_eq!(value(&mut lease, "SELECT count(*) FROM t").await, "0");
    // Left in the middle of an answer: closed, with what it was doing.
    let slow = lease.simple_query("SELECT pg_sleep(60)");
    let cut = tokio::time::timeout(Duration::from_millis(100), slow).await;
    assert!(cut.is_err());
    let began = Instant::now();
    drop(lease);
    let mut lease = pool.acquire().await.expect("another");
    assert_ne!(lease.backend_pid(), pid);
    // Its place is free when its socket is gone, which took no longer than a cancel request.
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_eq!(value(&mut lease, "SELECT 1").await, "1");
    assert_eq!(pool.metrics().resets, 1);
}

#[tokio::test]
async fn with_discard_all_settings_go_too() {
    let cluster = PostgresCluster::start().expect("PostgreSQL starts");
    let target = PgTarget::from_url(&cluster.url("postgres", "postgres")).expect("a URL");
    for discards in [false, true] {
        let connector = PgConnector::new(target.clone());
        let connector = if discards {
            connector.with_discard_all()
        } else {
            connector
        };
        let pool = with_connector(connector, |config| config.max_connections = 1);
        let mut lease = pool.acquire().await.expect("connected");
        let sql = "SET application_name = 'mine'";
        lease.simple_query(sql).await.expect("set");
        drop(lease);
        let mut lease = pool.acquire().await.expect("there");
        let name = value(&mut lease, "SHOW application_name").await;
        assert_eq!(name == "mine", !discards, "{name}");
        drop(lease);
        // Unused, it needs no cleaning.
        drop(pool.acquire().await.expect("there"));
        assert_eq!(pool.metrics().resets, 2 * u64::from(discards));
    }
}

#[tokio::test]
async fn a_server_that_is_killed_is_named_at_once_and_found_again_soon() {
    let mut cluster = PostgresCluster::start().expect("PostgreSQL starts");
    let pool = pool(&cluster, |config| config.min_idle = 1);
    let mut held = pool.acquire().await.expect("connected");
    drop(pool.acquire().await.expect("connected"));
    cluster.stop().expect("killed");
    assert!(held.simple_query("SELECT 1").await.is_err());
    drop(held);

    // Idle ones are seen to be dead; opening another fails, with the reason, and not by waiting.
    let error = loop {
        match pool.acquire().await {
            // The end of its socket had not been heard of yet.
            Ok(mut lease) => assert!(lease.simple_query("SELECT 1").await.is_err()),
            Err(error) => break error,
        }
    };
    let cause = error.cause().map(ToString::to_string).unwrap_or_default();
    assert!(cause.contains("refused"), "{error}");
    let began = Instant::now();
    let again = pool.acquire().await.map(drop).expect_err("still down");
    assert!(matches!(again, AcquireError::Connect(_)), "{again}");
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "not by waiting for it"
    );
    let metrics = pool.metrics();
    assert_eq!((metrics.idle, metrics.active), (0, 0), "{metrics:?}");

    cluster.launch().expect("starts again");
    let began = Instant::now();
    let mut lease = loop {
        match pool.acquire().await {
            Ok(lease) => break lease,
            Err(AcquireError::Connect(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
        assert!(began.elapsed() < Duration::from_secs(20), "found again");
    };
    assert_eq!(value(&mut lease, "SELECT 1").await, "1");
}

#[tokio::test]
async fn a_wrong_password_or_database_is_told_and_not_waited_out() {
    let cluster = PostgresCluster::start().expect("PostgreSQL starts");
    let target = PgTarget::from_url(&cluster.url("postgres", "nowhere")).expect("a URL");
    let pool = with_connector(PgConnector::new(target), |_| {});
    let began = Instant::now();
    let error = pool
        .acquire()
        .await
        .map(drop)
        .expect_err("no such database");
    assert!(began.elapsed() < Duration::from_secs(10));
    let Some(HeliosError::Server(fields)) = error.cause() else {
        panic!("{error}");
    };
    assert_eq!(fields.sqlstate(), "3D000");
}
