//! A pool of connections to a real PostgreSQL, which is killed and comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use heliosdb_network::connection_pool::AcquireError;
use heliosdb_network::postgres::{PgConnection, PgConnector, PgTarget};
use heliosdb_network::{ConnectionPoolConfig, EnhancedConnectionPool, HeliosError, PoolMetrics};
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

#[tokio::test]
async fn a_full_server_is_asked_for_no_more_than_it_gives_until_it_has_room_again() {
    let cluster = PostgresCluster::builder()
        .setting("max_connections", "6")
        .setting("superuser_reserved_connections", "0");
    let cluster = cluster.start().expect("PostgreSQL starts");
    let others = pool(&cluster, |config| config.max_connections = 3);
    let mut held_by_others = Vec::new();
    for _ in 0..3 {
        held_by_others.push(others.acquire().await.expect("connected"));
    }
    let pool = pool(&cluster, |config| config.max_connections = 6);
    let acquires: Vec<_> = (0..6)
        .map(|_| {
            let pool = Arc::clone(&pool);
            tokio::spawn(async move { pool.acquire().await })
        })
        .collect();
    // As many as there is room for, and nobody else fails: they wait for these.
    let until = async |is_reached: &dyn Fn(PoolMetrics) -> bool| {
        let began = Instant::now();
        while !is_reached(pool.metrics()) {
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "{:?}",
                pool.metrics()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    until(&|metrics| metrics.active == 3 && metrics.cap == 3 && metrics.connecting == 0).await;
    let refused = pool.metrics().connect_failures;
    assert!((1..=4).contains(&refused), "{:?}", pool.metrics());
    let (mut leases, mut waiting) = (Vec::new(), Vec::new());
    for acquire in acquires {
        if acquire.is_finished() {
            leases.push(acquire.await.expect("no panic").expect("connected"));
        } else {
            waiting.push(acquire);
        }
    }
    assert_eq!((leases.len(), waiting.len()), (3, 3));
    // One that comes back is given to one of them, without another attempt to connect.
    drop(leases.pop());
    until(&|metrics| metrics.waiting == 2).await;
    // It tries again now and then, one at a time, and not in vain once there is room.
    until(&|metrics| metrics.connect_failures > refused).await;
    assert_eq!((pool.metrics().cap, pool.metrics().active), (3, 3));
    drop(held_by_others);
    drop(others);
    until(&|metrics| metrics.waiting == 0).await;
    for acquire in waiting {
        leases.push(acquire.await.expect("no panic").expect("nobody failed"));
    }
    let metrics = pool.metrics();
    assert_eq!((metrics.active, metrics.cap, metrics.max), (5, 5, 6));
    // Lifted, where as many stand as are configured.
    leases.push(pool.acquire().await.expect("connected"));
    let metrics = pool.metrics();
    assert_eq!((metrics.active, metrics.cap), (6, 6));
}
