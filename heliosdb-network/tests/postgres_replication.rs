//! The stream of a real server: what comes, in which order, and what is left of it afterwards.

use std::time::{Duration, Instant};

use heliosdb_network::HeliosError;
use heliosdb_network::postgres::PgTarget;
use heliosdb_network::postgres::replication::pgoutput::{Message, Old, Tuple, Value};
use heliosdb_network::postgres::replication::{
    Lsn, ReplicationConnection, ReplicationStream, StreamMessage,
};
use heliosdb_testkit::PostgresCluster;

const PATIENCE: Duration = Duration::from_secs(20);

fn start() -> PostgresCluster {
    let cluster = PostgresCluster::builder()
        .setting("wal_level", "logical")
        .start()
        .expect("PostgreSQL starts");
    cluster
        .psql(
            "postgres",
            "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE quiet (id int); CREATE TABLE \"f\" (id int, v text); \
             ALTER TABLE f REPLICA IDENTITY FULL; CREATE PUBLICATION \"a \"\"b\"\", 'c\" FOR TABLE t, f",
        )
        .expect("schema");
    cluster
}

fn target(cluster: &PostgresCluster, user: &str) -> PgTarget {
    PgTarget::from_url(&cluster.url(user, "postgres")).expect("valid")
}

async fn follow(cluster: &PostgresCluster) -> (Lsn, ReplicationStream) {
    let mut connection = ReplicationConnection::connect(&target(cluster, "postgres"))
        .await
        .expect("connected");
    let begin = connection
        .create_temporary_slot("of_a_test")
        .await
        .expect("a slot");
    let stream = connection
        .start("of_a_test", &["a \"b\", 'c"])
        .await
        .expect("started");
    (begin, stream)
}

/// What is committed until now, a line each; ends when a keepalive says that it is all.
async fn lines_up_to_now(cluster: &PostgresCluster, stream: &mut ReplicationStream) -> Vec<String> {
    let end: Lsn = cluster
        .psql("postgres", "SELECT pg_current_wal_flush_lsn()")
        .expect("asked")
        .parse()
        .expect("a place");
    let mut lines = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "not decoded: {lines:?}");
        stream.report(Lsn(0), true).await.expect("reported");
        loop {
            match stream.receive().await.expect("a message") {
                StreamMessage::Data(data) => {
                    lines.push(line(&Message::decode(&data).expect("valid")));
                }
                StreamMessage::Keepalive { decoded, .. } if decoded >= end => return lines,
                StreamMessage::Keepalive { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn line(message: &Message<'_>) -> String {
    let row = |tuple: &Tuple<'_>| -> String {
        let cells: Vec<String> = tuple
            .values()
            .map(|value| match value {
                Value::Null => "null".to_owned(),
                Value::Text(text) if text.len() > 100 => "long".to_owned(),
                Value::Text(text) => String::from_utf8_lossy(text).into_owned(),
                Value::Unchanged => "unchanged".to_owned(),
                other => format!("{other:?}"),
            })
            .collect();
        cells.join(" ")
    };
    let old = |old: &Old<'_>| match old {
        Old::Key(tuple) => format!("key {}", row(tuple)),
        Old::Row(tuple) => format!("row {}", row(tuple)),
    };
    match message {
        Message::Begin(_) => "begin".to_owned(),
        Message::Commit(commit) => {
            assert!(commit.commit_lsn < commit.end_lsn);
            "commit".to_owned()
        }
        Message::Relation(relation) => format!(
            "relation {} {} {}",
            String::from_utf8_lossy(relation.name),
            char::from(relation.replica_identity),
            relation
                .columns
                .iter()
                .filter(|column| column.is_key)
                .count()
        ),
        Message::Insert(insert) => format!("insert {}", row(&insert.new)),
        Message::Update(update) => {
            let was = update.old.as_ref().map(|was| format!("{} -> ", old(was)));
            format!("update {}{}", was.unwrap_or_default(), row(&update.new))
        }
        Message::Delete(delete) => format!("delete {}", old(&delete.old)),
        Message::Truncate(truncate) => format!("truncate {}", truncate.relations().len()),
        Message::Logical(message) => format!(
            "message {} {}",
            String::from_utf8_lossy(message.prefix),
            message.is_transactional
        ),
        other => format!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_committed_comes_in_order_and_nothing_else() {
    let cluster = start();
    let (begin, mut stream) = follow(&cluster).await;
    assert!(begin > Lsn(0));
    for sql in [
        "INSERT INTO t VALUES (1, 'a'), (2, NULL)",
        "ALTER TABLE t ALTER v SET STORAGE EXTERNAL; UPDATE t SET v = repeat('x', 10000) WHERE id = 2",
        "UPDATE t SET id = 4 WHERE id = 2",
        "BEGIN; INSERT INTO t VALUES (9, 'x'); ROLLBACK",
        "INSERT INTO quiet VALUES (1)",
        "UPDATE t SET id = 3 WHERE id = 1",
        "DELETE FROM t WHERE id = 3",
        "INSERT INTO f VALUES (1, 'w'); UPDATE f SET v = 'x'",
        "DELETE FROM f",
        "SELECT pg_logical_emit_message(true, 'in', 'x'), pg_logical_emit_message(false, 'out', 'x')",
        "TRUNCATE t, f",
    ] {
        cluster.psql("postgres", sql).expect(sql);
    }
    let lines = lines_up_to_now(&cluster, &mut stream).await;
    let changes: Vec<&str> = lines
        .iter()
        .map(String::as_str)
        .filter(|line| !line.starts_with("relation"))
        .collect();
    assert_eq!(
        changes,
        [
            "begin",
            "insert 1 a",
            "insert 2 null",
            "commit",
            "begin",
            "update 2 long",
            "commit",
            "begin",
            "update key 2 null -> 4 unchanged",
            "commit",
            "begin",
            "update key 1 null -> 3 a",
            "commit",
            "begin",
            "delete key 3 null",
            "commit",
            "begin",
            "insert 1 w",
            "update row 1 w -> 1 x",
            "commit",
            "begin",
            "delete row 1 x",
            "commit",
            "message out false",
            "begin",
            "message in true",
            "commit",
            "begin",
            "truncate 2",
            "commit",
        ],
        "{lines:?}"
    );
    assert!(lines.contains(&"relation t d 1".to_owned()), "{lines:?}");
    assert!(lines.contains(&"relation f f 2".to_owned()), "{lines:?}");
    // What is not told is told no second time.
    assert_eq!(lines_up_to_now(&cluster, &mut stream).await, [""; 0]);
}

#[tokio::test]
async fn the_slot_goes_with_the_connection() {
    let cluster = start();
    let (_, stream) = follow(&cluster).await;
    let slots = "SELECT count(*) FROM pg_replication_slots";
    assert_eq!(cluster.psql("postgres", slots).expect("asked"), "1");
    stream.terminate().await;
    assert_eq!(cluster.psql("postgres", slots).expect("asked"), "0");
}

#[tokio::test]
async fn a_stream_that_the_server_ends_says_why() {
    let cluster = start();
    let (_, mut stream) = follow(&cluster).await;
    cluster
        .psql(
            "postgres",
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots",
        )
        .expect("ended");
    let error = loop {
        match stream.receive().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(
        matches!(&error, HeliosError::Server(fields) if fields.sqlstate() == "57P01"),
        "{error}"
    );
}

#[tokio::test]
async fn who_may_not_replicate_is_told() {
    let cluster = start();
    cluster
        .psql("postgres", "CREATE ROLE app LOGIN")
        .expect("created");
    let error = ReplicationConnection::connect(&target(&cluster, "app"))
        .await
        .expect_err("must be refused");
    assert!(
        matches!(&error, HeliosError::Server(fields) if fields.sqlstate() == "42501"),
        "{error}"
    );
    let mut connection = ReplicationConnection::connect(&target(&cluster, "postgres"))
        .await
        .expect("connected");
    let system = connection.identify_system().await.expect("answered");
    assert!(system.system_id > 0 && system.timeline == 1 && system.flushed > Lsn(0));
}
