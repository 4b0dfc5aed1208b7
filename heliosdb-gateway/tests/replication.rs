//! Writes made on the server itself are seen within the proved bound, and nothing is served where nothing is proved.

use std::time::{Duration, Instant};

use heliosdb_client::{AnswerSource, ClientConfig, HidbTarget};
use heliosdb_testkit::{PostgresBuilder, PostgresCluster};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::{Stack, connect};

/// The bound under test.
const MAX_LAG: Duration = Duration::from_millis(1000);
const PATIENCE: Duration = Duration::from_secs(60);
const CONFIG: &str = "invalidation = \"replication\"\n[replication]\nddl_poll = \"200ms\"\n";
/// Without a look at the catalogs, which shows some of what the stream shows too.
const STREAM_ALONE: &str = "invalidation = \"replication\"\n[replication]\nddl_poll = \"1h\"\n";

fn logical() -> PostgresBuilder {
    PostgresCluster::builder().setting("wal_level", "logical")
}

/// A server with a table, and helios in front of it that follows.
async fn following(schema: &str) -> Stack {
    following_with(logical(), schema, CONFIG).await
}

async fn following_with(cluster: PostgresBuilder, schema: &str, config: &str) -> Stack {
    let cluster = cluster.start().expect("PostgreSQL starts");
    cluster.psql("postgres", schema).expect("schema");
    let helios = crate::support::Helios::start(
        &["--upstream", &cluster.url("postgres", "postgres")],
        config,
    );
    let stack = Stack { helios, cluster };
    until_gate(&stack, "open").await;
    stack
}

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL); INSERT INTO t SELECT n, 0 FROM generate_series(1, 100) n; \
     CREATE PUBLICATION helios FOR TABLE t";

async fn ask(client: &Client, sql: &str) -> String {
    let rows = client.simple_query(sql).await.expect(sql);
    rows.iter()
        .find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
            _ => None,
        })
        .unwrap_or_else(|| "no row".to_owned())
}

/// A column of the first row of SHOW INVALIDATION.
async fn shown(stack: &Stack, column: &str) -> String {
    let console = stack.helios.client("postgres", "helios").await;
    let rows = console
        .simple_query("SHOW INVALIDATION")
        .await
        .expect("answered");
    rows.iter()
        .find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(column).unwrap_or_default().to_owned()),
            _ => None,
        })
        .unwrap_or_default()
}

async fn until_gate(stack: &Stack, state: &str) {
    let deadline = Instant::now() + PATIENCE;
    let mut poke = None;
    while shown(stack, "gate").await != state {
        assert!(
            Instant::now() < deadline,
            "the gate is not {state}: {} {}",
            shown(stack, "mode").await,
            shown(stack, "state").await
        );
        // Somebody has to use the database.
        if poke.is_none() {
            poke = Some(stack.client().await);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Asks until the answer has come from memory, which it does while nothing is written.
async fn cached(stack: &Stack, client: &Client, sql: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = stack.helios.cache_count("hits").await;
        let answer = ask(client, sql).await;
        if stack.helios.cache_count("hits").await > before {
            return answer;
        }
        assert!(Instant::now() < deadline, "{sql} is never cached");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn is_ever_cached(stack: &Stack, client: &Client, sql: &str) -> bool {
    let before = stack.helios.cache_count("hits").await;
    for _ in 0..20 {
        ask(client, sql).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stack.helios.cache_count("hits").await > before
}

/// Reads until the new answer has come, and then goes on for a while. No request made `MAX_LAG` after `written` or
/// later may get another answer, and the new answer must come.
async fn fresh_within_bound(client: &Client, sql: &str, written: Instant, expected: &str) {
    let deadline = written + PATIENCE;
    let mut seen_at = None;
    loop {
        let asked = Instant::now();
        let answer = ask(client, sql).await;
        if answer == expected {
            let seen_at = *seen_at.get_or_insert(asked);
            if asked > seen_at + Duration::from_millis(300) && asked > written + MAX_LAG {
                return;
            }
        } else {
            assert!(
                asked < written + MAX_LAG,
                "{sql}: {answer} instead of {expected}, asked {:?} after the write",
                asked - written
            );
        }
        assert!(asked < deadline, "{sql} is never {expected}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The walsender's process.
fn walsender(stack: &Stack) -> String {
    stack
        .cluster
        .psql("postgres", "SELECT active_pid FROM pg_replication_slots")
        .expect("asked")
}

fn signal(pid: &str, name: &str) {
    let status = std::process::Command::new("kill")
        .args([&format!("-{name}"), pid])
        .status();
    assert!(status.expect("kill runs").success());
}

#[tokio::test]
async fn a_direct_write_is_seen_within_the_bound() {
    let stack = following(TABLE).await;
    let (reader, writer) = (stack.client().await, stack.direct().await);
    let sql = "SELECT v FROM t WHERE id = 7";
    for n in 1..=5 {
        cached(&stack, &reader, sql).await;
        writer
            .execute("UPDATE t SET v = $1 WHERE id = 7", &[&n])
            .await
            .expect("written");
        fresh_within_bound(&reader, sql, Instant::now(), &n.to_string()).await;
    }
    // Without a commit of its own the gate stays open.
    until_gate(&stack, "open").await;
}

#[tokio::test]
async fn deletes_truncates_cascades_partitions_and_copies_are_seen() {
    let stack = following_with(
        logical(),
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT n, n FROM generate_series(1, 9) n; \
         CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t ON DELETE CASCADE); \
         INSERT INTO child SELECT n, n FROM generate_series(1, 9) n; \
         CREATE TABLE p (id int PRIMARY KEY, v int) PARTITION BY RANGE (id); \
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); \
         CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200); \
         INSERT INTO p SELECT n, n FROM generate_series(1, 150) n; \
         CREATE TABLE f (v int); ALTER TABLE f REPLICA IDENTITY FULL; INSERT INTO f VALUES (1); \
         CREATE PUBLICATION helios FOR ALL TABLES",
        STREAM_ALONE,
    )
    .await;
    let (reader, writer) = (stack.client().await, stack.direct().await);
    for (read, write, expected) in [
        (
            "SELECT count(*) FROM child",
            "DELETE FROM t WHERE id = 1",
            "8",
        ),
        (
            "SELECT count(*) FROM p",
            "DELETE FROM p2 WHERE id = 150",
            "149",
        ),
        (
            "SELECT v FROM p WHERE id = 1",
            "UPDATE p SET v = 77 WHERE id = 1",
            "77",
        ),
        (
            "SELECT count(*) FROM p1",
            "UPDATE p SET id = 199 WHERE id = 2",
            "98",
        ),
        ("SELECT sum(v) FROM f", "UPDATE f SET v = 5", "5"),
        ("SELECT count(*) FROM p2", "TRUNCATE p", "0"),
        ("SELECT count(*) FROM child", "TRUNCATE t CASCADE", "0"),
    ] {
        cached(&stack, &reader, read).await;
        writer.batch_execute(write).await.expect(write);
        fresh_within_bound(&reader, read, Instant::now(), expected).await;
    }
}

#[tokio::test]
async fn a_long_transaction_is_seen_when_it_commits_and_does_not_close_the_gate() {
    // Long enough for any machine to keep it up.
    let max_lag = 3 * MAX_LAG;
    let config = format!("{CONFIG}max_lag = \"{}ms\"\n", max_lag.as_millis());
    let stack = following_with(logical(), TABLE, &config).await;
    let (reader, writer) = (stack.client().await, stack.direct().await);
    let sql = "SELECT sum(v) FROM t";
    writer
        .batch_execute("BEGIN; UPDATE t SET v = 1 WHERE id = 1")
        .await
        .expect("written");
    // What it wrote is in the server's memory, and no commit comes to write it to disk: the proof must come all the
    // same.
    let closings = shown(&stack, "closings").await;
    let until = Instant::now() + 2 * max_lag;
    while Instant::now() < until {
        assert_eq!(cached(&stack, &reader, sql).await, "0");
    }
    assert_eq!(shown(&stack, "closings").await, closings, "the gate closed");
    writer
        .batch_execute("UPDATE t SET v = 1 WHERE id = 2; COMMIT")
        .await
        .expect("written");
    fresh_within_bound(&reader, sql, Instant::now() + 2 * MAX_LAG, "2").await;
    // What is rolled back changes nothing.
    writer
        .batch_execute("BEGIN; UPDATE t SET v = 9; ROLLBACK")
        .await
        .expect("written");
    assert_eq!(cached(&stack, &reader, sql).await, "2");
}

/// The server decodes a commit before others can see it. An answer that was computed in between must not outlive that.
#[tokio::test]
async fn a_commit_that_is_decoded_before_it_is_visible_leaves_no_old_answer() {
    // With a standby that does not exist, a commit is on disk, and decoded, and waits.
    let cluster = logical()
        .setting("synchronous_standby_names", "nobody")
        .setting("synchronous_commit", "local");
    let stack = following_with(cluster, TABLE, CONFIG).await;
    let (reader, writer) = (stack.client().await, stack.direct().await);
    let sql = "SELECT v FROM t WHERE id = 3";
    cached(&stack, &reader, sql).await;
    writer
        .batch_execute("SET synchronous_commit = on")
        .await
        .expect("set");
    let transactions = shown(&stack, "transactions").await;
    let writing = tokio::spawn(async move {
        writer
            .batch_execute("UPDATE t SET v = 4 WHERE id = 3")
            .await
    });
    let deadline = Instant::now() + PATIENCE;
    while shown(&stack, "transactions").await == transactions {
        assert!(Instant::now() < deadline, "the commit is not decoded");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Decoded, and not visible: the old answer is the right one, for now.
    for _ in 0..20 {
        assert_eq!(ask(&reader, sql).await, "0");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!writing.is_finished());
    let give_up =
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    assert_eq!(stack.cluster.psql("postgres", give_up).expect("asked"), "t");
    writing.await.expect("joined").expect("written");
    fresh_within_bound(&reader, sql, Instant::now(), "4").await;
}

/// With `synchronous_commit = off` a commit is acknowledged and visible before it is on disk, and decoded only then.
#[tokio::test]
async fn a_commit_that_is_acknowledged_before_it_is_on_disk_closes_the_gate() {
    // Longer than the bound.
    let cluster = logical().setting("wal_writer_delay", "10s");
    let stack = following_with(cluster, TABLE, CONFIG).await;
    let (reader, writer) = (stack.client().await, stack.direct().await);
    writer
        .batch_execute("SET synchronous_commit = off")
        .await
        .expect("set");
    let sql = "SELECT v FROM t WHERE id = 7";
    for n in 1..=2 {
        cached(&stack, &reader, sql).await;
        writer
            .execute("UPDATE t SET v = $1 WHERE id = 7", &[&n])
            .await
            .expect("written");
        fresh_within_bound(&reader, sql, Instant::now(), &n.to_string()).await;
        // Another commit takes it along.
        stack
            .cluster
            .psql("postgres", "CREATE TABLE IF NOT EXISTS other ()")
            .expect("committed");
        stack
            .cluster
            .psql("postgres", "DROP TABLE other")
            .expect("committed");
    }
}

#[tokio::test]
async fn a_walsender_that_is_killed_leaves_no_old_answer() {
    let stack = following(TABLE).await;
    let (reader, writer) = (stack.client().await, stack.direct().await);
    let sql = "SELECT v FROM t WHERE id = 7";
    for n in 1..=3 {
        cached(&stack, &reader, sql).await;
        let pid = walsender(&stack);
        writer
            .batch_execute(&format!(
                "SELECT pg_terminate_backend({pid}); UPDATE t SET v = {n} WHERE id = 7"
            ))
            .await
            .expect("written");
        fresh_within_bound(&reader, sql, Instant::now(), &n.to_string()).await;
        // It comes back by itself.
        cached(&stack, &reader, sql).await;
    }
    assert!(
        shown(&stack, "connects")
            .await
            .parse::<u32>()
            .expect("a number")
            >= 4
    );
}

#[tokio::test]
async fn what_happens_while_the_stream_is_down_is_not_missed() {
    let stack = following(TABLE).await;
    let (reader, writer) = (stack.client().await, stack.direct().await);
    let sql = "SELECT v FROM t WHERE id = 7";
    cached(&stack, &reader, sql).await;
    // No slot can be had for a while.
    stack
        .cluster
        .psql("postgres", "ALTER ROLE postgres NOREPLICATION")
        .expect("altered");
    let pid = walsender(&stack);
    let connects = shown(&stack, "connects").await;
    writer
        .batch_execute(&format!("SELECT pg_terminate_backend({pid})"))
        .await
        .expect("killed");
    writer
        .batch_execute("UPDATE t SET v = 5 WHERE id = 7")
        .await
        .expect("written");
    fresh_within_bound(&reader, sql, Instant::now(), "5").await;
    let deadline = Instant::now() + PATIENCE;
    while shown(&stack, "connects").await == connects || shown(&stack, "gate").await != "open" {
        assert!(Instant::now() < deadline, "it does not follow again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(cached(&stack, &reader, sql).await, "5");
}

#[tokio::test]
async fn a_walsender_that_is_stopped_closes_the_gate() {
    let stack = following(TABLE).await;
    let (reader, writer) = (stack.client().await, stack.direct().await);
    let sql = "SELECT v FROM t WHERE id = 7";
    cached(&stack, &reader, sql).await;
    let pid = walsender(&stack);
    signal(&pid, "STOP");
    writer
        .batch_execute("UPDATE t SET v = 6 WHERE id = 7")
        .await
        .expect("written");
    fresh_within_bound(&reader, sql, Instant::now(), "6").await;
    assert_eq!(shown(&stack, "gate").await, "closed");
    assert!(!is_ever_cached(&stack, &reader, sql).await);
    let refusals = stack.helios.psql("helios", "SHOW REFUSALS;");
    assert!(refusals.contains("replication lag"), "{refusals}");
    signal(&pid, "CONT");
    until_gate(&stack, "open").await;
    assert_eq!(cached(&stack, &reader, sql).await, "6");
}

/// Near caches go by what the gateway tells them, and it has nothing to tell while the stream stands still: so it tells
/// them that everything may have changed.
#[tokio::test]
async fn near_caches_are_told_of_direct_writes_and_of_a_gate_that_closes() {
    const NEAR_LAG: Duration = Duration::from_millis(500);
    let stack = following(TABLE).await;
    let writer = stack.direct().await;
    let target = HidbTarget::new("127.0.0.1", stack.helios.hidb_port, "postgres", "postgres");
    let mut config = ClientConfig::default();
    config.near.as_mut().expect("there by default").max_lag = NEAR_LAG;
    let near = heliosdb_client::Client::open(target, config)
        .await
        .expect("let in");
    let ask = async || {
        let reply = near.query("SELECT v FROM t WHERE id = 7").await;
        let reply = reply.expect("answered");
        let value: Option<i32> = reply.row(0).expect("a row").get("v").expect("a number");
        (value.expect("not null"), reply.facts().source)
    };
    let kept = async || {
        let deadline = Instant::now() + PATIENCE;
        while ask().await.1 != AnswerSource::Near {
            assert!(Instant::now() < deadline, "never kept");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let seen = async |expected: i32, written: Instant| {
        loop {
            let asked = Instant::now();
            if ask().await.0 == expected {
                return;
            }
            // Not a proof as sharp as the gateway's own: its task has to run.
            let bound = written + MAX_LAG + NEAR_LAG + Duration::from_secs(2);
            assert!(asked < bound, "{expected} is not seen");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    kept().await;
    writer
        .batch_execute("UPDATE t SET v = 1 WHERE id = 7")
        .await
        .expect("written");
    seen(1, Instant::now()).await;
    kept().await;
    let pid = walsender(&stack);
    signal(&pid, "STOP");
    writer
        .batch_execute("UPDATE t SET v = 2 WHERE id = 7")
        .await
        .expect("written");
    seen(2, Instant::now()).await;
    signal(&pid, "CONT");
}

#[tokio::test]
async fn a_million_rows_in_one_transaction_take_no_memory() {
    let stack = following(
        "CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL); CREATE TABLE small (id int PRIMARY KEY, v int); \
         INSERT INTO small VALUES (1, 1); CREATE PUBLICATION helios FOR TABLE t, small",
    )
    .await;
    let (reader, writer) = (stack.client().await, stack.direct().await);
    let memory = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", stack.helios.pid()));
        let status = status.expect("readable");
        let line = status.lines().find(|line| line.starts_with("VmRSS"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.and_then(|kib| kib.parse().ok()).expect("a number")
    };
    let before = memory();
    writer
        .batch_execute("INSERT INTO t SELECT n, 0 FROM generate_series(1, 500000) n")
        .await
        .expect("written");
    let sql = "SELECT sum(v) FROM t WHERE id < 10";
    cached(&stack, &reader, sql).await;
    writer
        .batch_execute("UPDATE t SET v = 1; UPDATE small SET v = 2")
        .await
        .expect("written");
    fresh_within_bound(&reader, sql, Instant::now(), "9").await;
    assert_eq!(cached(&stack, &reader, "SELECT v FROM small").await, "2");
    let grown = memory().saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB more");
    let changes: u64 = shown(&stack, "changes").await.parse().expect("a number");
    assert!(changes >= 1_000_000, "{changes}");
}

#[tokio::test]
async fn ddl_of_others_is_seen_within_its_bound() {
    let stack = following(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1); CREATE VIEW w AS SELECT v FROM t; \
         CREATE TABLE u (id int PRIMARY KEY, v int); INSERT INTO u VALUES (1, 10); CREATE ROLE app LOGIN; \
         GRANT SELECT ON t TO app; CREATE PUBLICATION helios FOR TABLE t, u",
    )
    .await;
    let (reader, writer) = (stack.client().await, stack.direct().await);
    for (read, ddl, expected) in [
        (
            "SELECT * FROM w",
            "CREATE OR REPLACE VIEW w AS SELECT v + 1 AS v FROM u",
            "11",
        ),
        (
            "SELECT v FROM t",
            "ALTER TABLE t ALTER v TYPE text USING v || 'x'",
            "1x",
        ),
        (
            "SELECT v FROM t WHERE id = 1",
            "ALTER TABLE t RENAME TO away; ALTER TABLE u RENAME TO t",
            "10",
        ),
    ] {
        cached(&stack, &reader, read).await;
        writer.batch_execute(ddl).await.expect(ddl);
        fresh_within_bound(&reader, read, Instant::now(), expected).await;
    }
    // The new meaning is followed too.
    cached(&stack, &reader, "SELECT v FROM t").await;
    writer
        .batch_execute("UPDATE t SET v = 20")
        .await
        .expect("written");
    fresh_within_bound(&reader, "SELECT v FROM t", Instant::now(), "20").await;
    // What somebody may no longer read is not answered from memory either.
    let app = stack.helios.client("app", "postgres").await;
    writer
        .batch_execute("GRANT SELECT ON t TO app")
        .await
        .expect("granted");
    cached(&stack, &app, "SELECT v FROM t").await;
    writer
        .batch_execute("REVOKE SELECT ON t FROM app")
        .await
        .expect("revoked");
    let revoked = Instant::now();
    let refused_at = loop {
        let asked = Instant::now();
        match app.simple_query("SELECT v FROM t").await {
            Err(_) => break asked,
            Ok(_) => assert!(asked < revoked + MAX_LAG, "still answered"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert!(refused_at < revoked + MAX_LAG);
}

#[tokio::test]
async fn a_table_that_nobody_knew_counts_as_everything() {
    let stack = following_with(
        logical(),
        "CREATE TABLE p (id int PRIMARY KEY, v int) PARTITION BY RANGE (id); \
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); \
         CREATE PUBLICATION helios FOR ALL TABLES",
        STREAM_ALONE,
    )
    .await;
    let (reader, writer) = (stack.client().await, stack.direct().await);
    let sql = "SELECT count(*) FROM p";
    cached(&stack, &reader, sql).await;
    writer
        .batch_execute(
            "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200); INSERT INTO p VALUES (150, 1)",
        )
        .await
        .expect("written");
    fresh_within_bound(&reader, sql, Instant::now(), "1").await;
    // From here on it is known.
    cached(&stack, &reader, sql).await;
    writer
        .batch_execute("INSERT INTO p VALUES (151, 1)")
        .await
        .expect("written");
    fresh_within_bound(&reader, sql, Instant::now(), "2").await;
}

#[tokio::test]
async fn an_event_trigger_tells_of_ddl_without_a_look() {
    let stack = following_with(
        logical(),
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1); CREATE VIEW w AS SELECT v FROM t; \
         CREATE FUNCTION helios_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN \
         PERFORM pg_logical_emit_message(true, 'helios', tg_tag); END $$; \
         CREATE EVENT TRIGGER helios_ddl ON ddl_command_end EXECUTE FUNCTION helios_ddl(); \
         CREATE PUBLICATION helios FOR TABLE t",
        "invalidation = \"replication\"\n[replication]\nddl = \"event-trigger\"\nddl_poll = \"1h\"\n",
    )
    .await;
    let (reader, writer) = (stack.client().await, stack.direct().await);
    cached(&stack, &reader, "SELECT * FROM w").await;
    writer
        .batch_execute("CREATE OR REPLACE VIEW w AS SELECT v + 1 AS v FROM t")
        .await
        .expect("replaced");
    fresh_within_bound(&reader, "SELECT * FROM w", Instant::now(), "2").await;
}

#[tokio::test]
async fn what_the_stream_does_not_show_is_not_cached() {
    let stack = following(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1); \
         CREATE TABLE outside (id int PRIMARY KEY); CREATE TABLE bare (id int); CREATE UNLOGGED TABLE fast (id int PRIMARY KEY); \
         CREATE TABLE filtered (id int PRIMARY KEY); CREATE MATERIALIZED VIEW m AS SELECT * FROM t; \
         CREATE VIEW w AS SELECT t.id FROM t JOIN outside USING (id); \
         CREATE TABLE mixed (id int PRIMARY KEY) PARTITION BY RANGE (id); \
         CREATE TABLE mixed1 PARTITION OF mixed FOR VALUES FROM (0) TO (10); \
         CREATE TABLE mixed2 PARTITION OF mixed FOR VALUES FROM (10) TO (20); \
         CREATE PUBLICATION helios FOR TABLE t, bare, mixed1, filtered WHERE (id > 5)",
    )
    .await;
    let (reader, writer) = (stack.client().await, stack.direct().await);
    cached(&stack, &reader, "SELECT v FROM t").await;
    for sql in [
        "SELECT count(*) FROM outside",
        "SELECT count(*) FROM bare",
        "SELECT count(*) FROM fast",
        "SELECT count(*) FROM filtered",
        "SELECT count(*) FROM m",
        "SELECT count(*) FROM w",
        "SELECT count(*) FROM mixed",
        "SELECT count(*) FROM t, outside",
    ] {
        assert!(!is_ever_cached(&stack, &reader, sql).await, "{sql}");
    }
    let refusals = stack.helios.psql("helios", "SHOW REFUSALS;");
    for reason in [
        "not in the publication",
        "no replica identity",
        "unlogged",
        "publication filters",
        "not decoded",
    ] {
        assert!(refusals.contains(reason), "{reason}: {refusals}");
    }
    // Where that changes, it is noticed.
    writer
        .batch_execute(
            "ALTER PUBLICATION helios ADD TABLE outside; ALTER PUBLICATION helios DROP TABLE t",
        )
        .await
        .expect("altered");
    assert_eq!(
        cached(&stack, &reader, "SELECT count(*) FROM outside").await,
        "0"
    );
    assert!(!is_ever_cached(&stack, &reader, "SELECT v FROM t").await);
}

#[tokio::test]
async fn a_transaction_open_since_before_the_slot_is_not_missed() {
    let cluster = logical().start().expect("PostgreSQL starts");
    cluster.psql("postgres", TABLE).expect("schema");
    let writer = connect(cluster.port(), "postgres", "postgres").await;
    writer
        .batch_execute("BEGIN; UPDATE t SET v = 8 WHERE id = 7")
        .await
        .expect("written");
    let helios = crate::support::Helios::start(
        &["--upstream", &cluster.url("postgres", "postgres")],
        CONFIG,
    );
    let stack = Stack { helios, cluster };
    let reader = stack.client().await;
    let sql = "SELECT v FROM t WHERE id = 7";
    assert_eq!(ask(&reader, sql).await, "0");
    // The slot waits for it; until then nothing is cached.
    assert!(!is_ever_cached(&stack, &reader, sql).await);
    assert_eq!(
        shown(&stack, "state").await,
        "waiting for open transactions"
    );
    writer.batch_execute("COMMIT").await.expect("committed");
    fresh_within_bound(&reader, sql, Instant::now(), "8").await;
    assert_eq!(cached(&stack, &reader, sql).await, "8");
}

#[tokio::test]
async fn auto_follows_where_the_server_allows_it_and_says_why_where_not() {
    let cluster = logical().start().expect("PostgreSQL starts");
    cluster
        .psql("postgres", "CREATE TABLE t (id int PRIMARY KEY, v int)")
        .expect("schema");
    let helios =
        crate::support::Helios::start(&["--upstream", &cluster.url("postgres", "postgres")], "");
    let stack = Stack { helios, cluster };
    assert_eq!(shown(&stack, "mode").await, "wire");
    assert_eq!(
        shown(&stack, "why").await,
        "there is no publication \"helios\""
    );
    assert_eq!(shown(&stack, "gate").await, "open");
    let check = check(&stack, "");
    for line in [
        "invalidation:  wire",
        "CREATE PUBLICATION \"helios\" FOR TABLE public.t;",
    ] {
        assert!(check.contains(line), "{check}");
    }
    // Each database for itself.
    stack
        .cluster
        .psql("postgres", "CREATE DATABASE other")
        .expect("created");
    stack.cluster.psql("other", TABLE).expect("schema");
    let reader = stack.helios.client("postgres", "other").await;
    cached(&stack, &reader, "SELECT v FROM t WHERE id = 7").await;
    let console = stack.helios.psql("helios", "SHOW INVALIDATION;");
    assert!(
        console
            .lines()
            .any(|line| line.contains("other") && line.contains("replication")),
        "{console}"
    );
    let writer = connect(stack.cluster.port(), "postgres", "other").await;
    writer
        .batch_execute("UPDATE t SET v = 3 WHERE id = 7")
        .await
        .expect("written");
    fresh_within_bound(&reader, "SELECT v FROM t WHERE id = 7", Instant::now(), "3").await;
}

/// As behind a pooler that knows no replication connections.
#[tokio::test]
async fn auto_goes_by_wire_where_a_walsender_is_refused() {
    let cluster = logical()
        .setting("max_wal_senders", "1")
        .start()
        .expect("PostgreSQL starts");
    cluster.psql("postgres", TABLE).expect("schema");
    let url = cluster.url("postgres", "postgres");
    let first = crate::support::Helios::start(&["--upstream", &url], "");
    let stack = Stack {
        helios: first,
        cluster,
    };
    until_gate(&stack, "open").await;
    assert_eq!(shown(&stack, "mode").await, "replication");
    let second = crate::support::Helios::start(&["--upstream", &url], "");
    let Stack {
        helios: first,
        cluster,
    } = stack;
    let stack = Stack {
        helios: second,
        cluster,
    };
    assert_eq!(shown(&stack, "mode").await, "wire");
    let why = shown(&stack, "why").await;
    assert!(why.contains("a replication connection is refused"), "{why}");
    let check = check(&stack, "");
    assert!(
        check.contains("a replication connection is refused"),
        "{check}"
    );
    drop(first);
}

#[tokio::test]
async fn replication_that_is_not_possible_caches_nothing() {
    let stack = Stack::start_with(PostgresCluster::builder(), CONFIG);
    stack
        .cluster
        .psql("postgres", "CREATE TABLE t (id int PRIMARY KEY, v int)")
        .expect("schema");
    let reader = stack.client().await;
    assert!(!is_ever_cached(&stack, &reader, "SELECT count(*) FROM t").await);
    assert_eq!(shown(&stack, "mode").await, "unavailable");
    let why = shown(&stack, "why").await;
    assert!(
        why.contains("wal_level is replica") && why.contains("no publication"),
        "{why}"
    );
    let check = check(&stack, CONFIG);
    assert!(
        check.contains("ALTER SYSTEM SET wal_level = 'logical'"),
        "{check}"
    );
}

#[tokio::test]
async fn nothing_is_left_behind_on_the_server() {
    let cluster = logical().start().expect("PostgreSQL starts");
    cluster
        .psql("postgres", "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (7, 1); CREATE TABLE bare (id int)")
        .expect("schema");
    let config = format!("{CONFIG}create_publication = true\n");
    let helios = crate::support::Helios::start(
        &["--upstream", &cluster.url("postgres", "postgres")],
        &config,
    );
    let mut stack = Stack { helios, cluster };
    until_gate(&stack, "open").await;
    let reader = stack.client().await;
    cached(&stack, &reader, "SELECT v FROM t").await;
    let left = "SELECT count(*) FROM pg_replication_slots UNION ALL SELECT count(*) FROM pg_publication_tables";
    assert_eq!(stack.cluster.psql("postgres", left).expect("asked"), "1\n1");
    // Its tables are those whose UPDATEs it does not break.
    stack
        .cluster
        .psql(
            "postgres",
            "INSERT INTO bare VALUES (1); UPDATE bare SET id = 2",
        )
        .expect("updated");
    drop(reader);
    stack.helios.signal("TERM");
    assert!(
        stack
            .helios
            .wait(PATIENCE)
            .is_some_and(|status| status.success())
    );
    let deadline = Instant::now() + PATIENCE;
    while stack.cluster.psql("postgres", left).expect("asked") != "0\n0" {
        assert!(Instant::now() < deadline, "something is left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What `helios check` prints.
fn check(stack: &Stack, config: &str) -> String {
    let file = stack.helios.folder().join("check.toml");
    std::fs::write(&file, config).expect("written");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_helios"))
        .args([
            "check",
            "--upstream",
            &stack.cluster.url("postgres", "postgres"),
            "--config",
        ])
        .arg(file)
        .output()
        .expect("helios runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_known_by_its_key_whatever_the_role_calls_its_letters() {
    let schema = "CREATE TABLE names (name text PRIMARY KEY, v int NOT NULL); INSERT INTO names VALUES ('\u{e9}', 0), ('e', 0); \
                  ALTER ROLE postgres SET client_encoding TO 'LATIN1'; CREATE PUBLICATION helios FOR TABLE names";
    let stack = following(schema).await;
    let (client, direct) = (stack.client().await, stack.direct().await);
    let read = "SELECT v FROM names WHERE name = '\u{e9}'";
    for value in 1..4 {
        cached(&stack, &client, read).await;
        let write = format!("UPDATE names SET v = {value} WHERE name = '\u{e9}'");
        direct.batch_execute(&write).await.expect("written");
        let written = Instant::now();
        fresh_within_bound(&client, read, written, &value.to_string()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_by_key_outlives_what_others_do_to_other_rows() {
    let stack = following(TABLE).await;
    let (client, direct) = (stack.client().await, stack.direct().await);
    let read = "SELECT v FROM t WHERE id = 7";
    cached(&stack, &client, read).await;
    let before = stack.helios.cache_count("hits").await;
    for value in 1..=50 {
        let write = format!("UPDATE t SET v = {value} WHERE id = 8");
        direct.batch_execute(&write).await.expect("written");
        assert_eq!(ask(&client, read).await, "0");
    }
    // All are known by now, and none was about that row.
    cached(&stack, &client, "SELECT v FROM t WHERE id = 8").await;
    let misses = 50 - (stack.helios.cache_count("hits").await - before).min(50);
    assert!(misses < 10, "{misses} of 50 were asked of the server");
    // Its own change, and its new key, end it.
    for write in [
        "UPDATE t SET v = 70 WHERE id = 7",
        "UPDATE t SET id = 700 WHERE id = 7",
    ] {
        cached(&stack, &client, read).await;
        direct.batch_execute(write).await.expect("written");
        let expected = ask(&direct, read).await;
        fresh_within_bound(&client, read, Instant::now(), &expected).await;
    }
}

/// Where a database is followed, the server has a slot of it and so does not drop it. Nobody follows it any more once its
/// clients have left and somebody wants to drop it.
#[tokio::test]
async fn a_database_that_is_followed_can_be_dropped_once_its_clients_have_left() {
    let config = format!("{CONFIG}create_publication = true\n");
    let stack = following_with(logical(), "SELECT", &config).await;
    let owner = stack.client().await;
    owner
        .batch_execute("CREATE DATABASE shop")
        .await
        .expect("made");
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = 'shop' AND active";
    let visitor = stack.helios.client("postgres", "shop").await;
    visitor
        .batch_execute("CREATE TABLE t ()")
        .await
        .expect("in");
    let deadline = Instant::now() + PATIENCE;
    while stack.cluster.psql("postgres", slots).expect("answered") != "1" {
        assert!(Instant::now() < deadline, "it is not followed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop(visitor);
    // The first time may be told of the slot, which is about to go.
    while let Err(error) = owner.batch_execute("DROP DATABASE shop").await {
        assert!(Instant::now() < deadline, "{:?}", error.as_db_error());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(
        stack.cluster.psql("postgres", slots).expect("answered"),
        "0"
    );
}
