//! Servers start, serve, and are gone afterwards, processes and folders.

use heliosdb_testkit::{PostgresCluster, RedisServer};

fn is_running(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn two_clusters_at_once_and_nothing_left_of_them() {
    let one = PostgresCluster::builder()
        .setting("work_mem", "7MB")
        .start()
        .expect("one");
    let two = PostgresCluster::start().expect("two");
    assert_eq!(one.psql("postgres", "SHOW work_mem").expect("a row"), "7MB");
    assert_ne!(two.psql("postgres", "SHOW work_mem").expect("a row"), "7MB");
    let (pid, folder) = (one.pid().expect("runs"), one.socket_dir().to_owned());
    assert!(is_running(pid) && folder.exists());
    drop(one);
    assert!(!is_running(pid) && !folder.exists());
}

#[test]
fn a_cluster_comes_back_with_its_data() {
    let mut cluster = PostgresCluster::start().expect("starts");
    cluster
        .psql("postgres", "CREATE TABLE t AS SELECT 42 AS a")
        .expect("created");
    cluster.stop().expect("stops");
    assert!(cluster.psql("postgres", "SELECT 1").is_err());
    cluster.launch().expect("starts again");
    cluster.restart().expect("once more");
    assert_eq!(
        cluster.psql("postgres", "SELECT a FROM t").expect("a row"),
        "42"
    );
}

#[test]
fn a_cluster_can_ask_for_passwords_and_psql_still_works() {
    let cluster = PostgresCluster::builder()
        .hba("host all all 127.0.0.1/32 reject")
        .start()
        .expect("starts");
    assert_eq!(cluster.psql("postgres", "SELECT 1").expect("a row"), "1");
    assert!(cluster.psql("postgres", "SELECT 1/0").is_err());
}

#[test]
fn a_server_that_cannot_start_shows_its_log_and_leaves_nothing() {
    let error = PostgresCluster::builder()
        .setting("max_connections", "-1")
        .start()
        .expect_err("no such number")
        .to_string();
    assert!(error.contains("max_connections"), "{error}");
}

#[test]
fn a_redis_server_listens_and_is_gone_afterwards() {
    let redis = RedisServer::start().expect("starts");
    let port = redis.port();
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    drop(redis);
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}
