//! What a connection to a real server answers, and how it notices that it is of no more use.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use heliosdb_network::HeliosError;
use heliosdb_network::postgres::{self, Host, PgConnection, PgTarget};
use heliosdb_testkit::PostgresCluster;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::TcpListener;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

fn cluster() -> (PostgresCluster, PgTarget) {
    let cluster = PostgresCluster::start().expect("PostgreSQL starts");
    let target = PgTarget::from_url(&cluster.url("postgres", "postgres")).expect("a URL");
    (cluster, target)
}

async fn connect(target: &PgTarget) -> PgConnection {
    PgConnection::connect(target).await.expect("connected")
}

fn row(values: &[Option<&str>]) -> Vec<Option<String>> {
    values
        .iter()
        .map(|value| value.map(str::to_owned))
        .collect()
}

#[tokio::test]
async fn simple_queries_are_answered_in_full() {
    let (_cluster, target) = cluster();
    let mut connection = connect(&target).await;
    let sql = "SELECT 1 AS a, NULL AS b, '' AS c; CREATE TABLE t (x text); ; INSERT INTO t VALUES ('é'), ('y'); TABLE t";
    let answers = connection.simple_query(sql).await.expect("answered");
    let tags: Vec<_> = answers.iter().map(|answer| answer.tag.as_str()).collect();
    assert_eq!(tags, ["SELECT 1", "CREATE TABLE", "INSERT 0 2", "SELECT 2"]);
    assert_eq!(answers[0].columns, ["a", "b", "c"]);
    assert_eq!(answers[0].rows, [row(&[Some("1"), None, Some("")])]);
    assert!(answers[1].columns.is_empty() && answers[1].rows.is_empty());
    assert_eq!(answers[3].rows, [row(&[Some("é")]), row(&[Some("y")])]);
    assert_eq!(connection.simple_query("").await.expect("nothing"), []);
    connection.check().await.expect("alive");
    assert!(connection.is_alive());
}

#[tokio::test]
async fn an_answer_longer_than_any_buffer_arrives_whole() {
    let (_cluster, target) = cluster();
    let mut connection = connect(&target).await;
    let sql = "SELECT repeat('x', 5000000 + n) FROM generate_series(1, 2) AS n";
    let answers = connection.simple_query(sql).await.expect("answered");
    let lens: Vec<_> = answers[0]
        .rows
        .iter()
        .map(|row| row[0].as_ref().map(String::len))
        .collect();
    assert_eq!(lens, [Some(5_000_001), Some(5_000_002)]);
}

#[tokio::test]
async fn after_an_error_the_connection_goes_on() {
    let (_cluster, target) = cluster();
    let mut connection = connect(&target).await;
    for sql in [
        "SELECT 1; SELECT 1/0; SELECT 2",
        "CREATE TEMP TABLE c (x int); COPY c FROM STDIN",
        "BEGIN; SELECT nonsense",
    ] {
        // Bounded, since a server that waits for rows to copy says nothing.
        let answer = timeout(PATIENCE, connection.simple_query(sql))
            .await
            .expect("in time");
        let error = answer.expect_err("fails");
        assert!(matches!(error, HeliosError::Server(_)), "{error:?}");
    }
    assert_eq!(connection.transaction_status(), b'E');
    connection.simple_query("ROLLBACK").await.expect("over");
    assert_eq!(connection.transaction_status(), b'I');
    // What would be cut at the NUL is not sent at all.
    let error = connection.simple_query("SELECT 1\0; oops").await;
    assert!(matches!(error, Err(HeliosError::Unsupported(_))));
    let answers = connection.simple_query("SELECT 3").await.expect("answered");
    assert_eq!(answers[0].rows, [row(&[Some("3")])]);
    assert!(connection.is_alive());
}

#[tokio::test]
async fn what_the_server_says_unasked_is_noted_or_passed_over() {
    let (_cluster, target) = cluster();
    let mut connection = connect(&target).await;
    assert!(connection.parameter("server_version").is_some());
    let sql = "LISTEN a; NOTIFY a; DO $$BEGIN RAISE WARNING 'w'; END$$; SET application_name = 'n'; \
               COPY (SELECT 1) TO STDOUT; SELECT 5";
    let answers = connection.simple_query(sql).await.expect("answered");
    let last = answers.last().expect("the last one");
    assert_eq!(last.rows, [row(&[Some("5")])]);
    assert_eq!(connection.parameter("application_name"), Some("n"));
    let reported = connection.parameters().iter();
    assert_eq!(
        reported
            .filter(|(name, _)| name == "application_name")
            .count(),
        1
    );
}

#[tokio::test]
async fn a_cancel_request_ends_the_running_statement() {
    let (_cluster, target) = cluster();
    let mut connection = connect(&target).await;
    let (pid, secret) = (connection.backend_pid(), connection.backend_secret());
    let sleep = connection.simple_query("SELECT pg_sleep(60)");
    let cancel = async {
        let mut other = connect(&target).await;
        let running =
            format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'PgSleep'");
        while other.simple_query(&running).await.expect("answered")[0]
            .rows
            .is_empty()
        {}
        // With another's key, nothing happens.
        postgres::cancel(&target, pid, &[0; 4])
            .await
            .expect("delivered");
        other
            .simple_query("SELECT pg_sleep(0.1)")
            .await
            .expect("slept");
        let still = other.simple_query(&running).await.expect("answered");
        assert_eq!(still[0].rows.len(), 1);
        postgres::cancel(&target, pid, &secret)
            .await
            .expect("delivered");
    };
    let both = async { tokio::join!(sleep, cancel) };
    let (slept, ()) = timeout(PATIENCE, both).await.expect("cancelled");
    let Err(HeliosError::Server(fields)) = slept else {
        panic!("{slept:?}")
    };
    assert_eq!(fields.sqlstate(), "57014");
    connection.check().await.expect("usable");
}

#[tokio::test]
async fn a_connection_whose_backend_is_gone_is_not_alive() {
    let (cluster, target) = cluster();
    let mut connection = connect(&target).await;
    assert!(connection.is_alive());
    let kill = format!("SELECT pg_terminate_backend({})", connection.backend_pid());
    assert_eq!(cluster.psql("postgres", &kill).expect("killed"), "t");
    let news = connection.parts().0.ready(Interest::READABLE);
    timeout(PATIENCE, news)
        .await
        .expect("in time")
        .expect("a runtime");
    assert!(!connection.is_alive());
}

#[tokio::test]
async fn a_connection_with_something_unread_is_not_alive() {
    let (cluster, target) = cluster();
    let mut connection = connect(&target).await;
    connection.simple_query("LISTEN a").await.expect("listens");
    assert!(connection.is_alive());
    cluster.psql("postgres", "NOTIFY a").expect("notified");
    let news = connection.parts().0.ready(Interest::READABLE);
    timeout(PATIENCE, news)
        .await
        .expect("in time")
        .expect("a runtime");
    assert!(!connection.is_alive());
}

#[tokio::test]
async fn a_connection_whose_answer_was_not_awaited_is_not_alive() {
    let (_cluster, target) = cluster();
    let mut connection = connect(&target).await;
    let cut_short = timeout(
        Duration::from_millis(50),
        connection.simple_query("SELECT pg_sleep(60)"),
    );
    assert!(cut_short.await.is_err());
    // Nothing has come yet that the socket could show.
    assert!(!connection.is_alive());
}

#[tokio::test]
async fn a_server_that_ends_the_connection_is_quoted() {
    let (_cluster, target) = cluster();
    let mut connection = connect(&target).await;
    let error = connection
        .simple_query("SELECT pg_terminate_backend(pg_backend_pid())")
        .await
        .expect_err("ended");
    assert!(matches!(error, HeliosError::Network(_)), "{error:?}");
    assert!(error.to_string().contains("57P01"), "{error}");
    assert!(!error.is_permanent() && !connection.is_alive());
}

#[tokio::test]
async fn a_goodbye_ends_the_servers_process() {
    let (cluster, target) = cluster();
    let connection = connect(&target).await;
    let there = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = {}",
        connection.backend_pid()
    );
    assert_eq!(cluster.psql("postgres", &there).expect("a row"), "1");
    connection.terminate().await;
    assert_eq!(cluster.psql("postgres", &there).expect("a row"), "0");
}

/// A listener that is no server, and the target to reach it by.
async fn impostor() -> (TcpListener, PgTarget) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let host = Host::Tcp("127.0.0.1".to_owned());
    (listener, PgTarget::new(host, port, "u", "d"))
}

#[tokio::test]
async fn a_goodbye_lets_a_slow_server_finish() {
    let (listener, target) = impostor().await;
    let finished = AtomicBool::new(false);
    let server = async {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let welcome = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
        stream.write_all(welcome).await.expect("written");
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.expect("all of it");
        assert!(said.ends_with(b"X\0\0\0\x04"));
        // More than the sockets hold: a client that does not read on would be seen.
        stream
            .write_all(&vec![0; 16 << 20])
            .await
            .expect("no reset");
        finished.store(true, Relaxed);
    };
    let client = async {
        connect(&target).await.terminate().await;
        assert!(finished.load(Relaxed));
    };
    let both = async { tokio::join!(server, client) };
    timeout(PATIENCE, both).await.expect("in time");
}

#[tokio::test]
async fn a_cancel_request_is_delivered_when_the_server_has_closed() {
    let (listener, mut target) = impostor().await;
    let taken_note = AtomicBool::new(false);
    let server = async {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let mut request = [0; 16];
        stream.read_exact(&mut request).await.expect("a request");
        tokio::time::sleep(Duration::from_millis(50)).await;
        taken_note.store(true, Relaxed);
    };
    let client = async {
        let delivered = postgres::cancel(&target, 1, &[2; 4]).await;
        assert!(delivered.is_ok() && taken_note.load(Relaxed));
    };
    tokio::join!(server, client);
    // The next one is connected, and never served.
    target.connect_timeout = Duration::from_millis(50);
    let error = postgres::cancel(&target, 1, &[2; 4]).await;
    assert!(matches!(error, Err(HeliosError::Network(_))), "{error:?}");
}

#[tokio::test]
async fn a_server_that_is_down_is_a_network_error_and_comes_back() {
    let (mut cluster, target) = cluster();
    let mut connection = connect(&target).await;
    cluster.stop().expect("stopped");
    assert!(connection.check().await.is_err());
    let error = PgConnection::connect(&target).await.expect_err("down");
    assert!(matches!(error, HeliosError::Network(_)), "{error:?}");
    assert!(!error.is_permanent());
    cluster.launch().expect("started");
    connect(&target).await.check().await.expect("up");
}
