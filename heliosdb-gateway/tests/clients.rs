//! Programs that people use work through helios, and get what they get from the server itself.

use crate::support::{Stack, pgbench, psql};

/// What a session can do without the answers depending on where it runs.
const SCRIPT: &str = r"
\set ON_ERROR_STOP off
CREATE TABLE things (id int PRIMARY KEY, name text, price numeric(8,2), at timestamptz);
INSERT INTO things SELECT i, 'thing ' || i, i * 1.5, timestamptz '2024-01-01 UTC' + i * interval '1 day' FROM generate_series(1, 50) i;
SELECT * FROM things WHERE id = 7;
SELECT * FROM things WHERE id = 7;
SELECT count(*), sum(price) FROM things;
UPDATE things SET name = 'changed' WHERE id = 7;
SELECT * FROM things WHERE id = 7;
BEGIN; DELETE FROM things WHERE id > 10; SELECT count(*) FROM things; ROLLBACK;
SELECT count(*) FROM things;
SELECT no_such_column FROM things;
SELECT 1/0;
SELECT 1; SELECT 2; SELECT 'three';
;
SET TimeZone = 'America/New_York';
SELECT at FROM things WHERE id = 1;
SET TimeZone = 'UTC';
SELECT at FROM things WHERE id = 1;
RESET TimeZone;
CREATE SCHEMA other; CREATE TABLE other.things (id int, name text); INSERT INTO other.things VALUES (7, 'from the other schema');
SET search_path = other; SELECT name FROM things WHERE id = 7;
SET search_path = public; SELECT name FROM things WHERE id = 7;
RESET search_path;
COPY things (id, name) FROM STDIN;
101	copied in
102	copied too
\.
COPY (SELECT id, name FROM things WHERE id > 100 ORDER BY id) TO STDOUT;
SELECT count(*) FROM things;
PREPARE by_id AS SELECT name FROM things WHERE id = $1; EXECUTE by_id(7); DEALLOCATE by_id;
CREATE TEMP TABLE scratch AS SELECT 1 AS one; SELECT * FROM scratch;
DO $$ BEGIN UPDATE things SET name = 'by a block' WHERE id = 8; END $$;
SELECT name FROM things WHERE id = 8;
LISTEN news; NOTIFY news, 'hello';
DISCARD ALL;
SELECT name FROM things WHERE id = 9;
ALTER TABLE things ADD COLUMN extra int DEFAULT 5;
SELECT * FROM things WHERE id = 9;
DROP TABLE things CASCADE; DROP SCHEMA other CASCADE;
";

/// Process ids differ from connection to connection.
fn without_pids(text: &str) -> String {
    text.lines()
        .map(|line| line.split(" from server process").next().unwrap_or(line))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn psql_prints_what_it_prints_without_helios() {
    let stack = Stack::start();
    let direct = without_pids(&psql(stack.cluster.port(), "postgres", SCRIPT));
    assert!(
        direct.contains("from the other schema") && direct.contains("division by zero"),
        "{direct}"
    );
    for round in 0..2 {
        let through = without_pids(&stack.helios.psql("postgres", SCRIPT));
        assert_eq!(through, direct, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pgbench_runs_in_every_mode_and_balances() {
    let stack = Stack::start();
    let port = stack.helios.port;
    pgbench(port, &["-i", "-s", "1"]);
    for mode in ["simple", "extended", "prepared"] {
        for kind in [&["-S"][..], &[]] {
            let args = [kind, &["-M", mode, "-c", "8", "-j", "2", "-t", "200"]].concat();
            let report = pgbench(port, &args);
            assert!(
                report.contains("number of failed transactions: 0"),
                "{report}"
            );
        }
    }
    assert!(
        stack.helios.cache_count("fills").await > 100,
        "reads were cached"
    );
    // TPC-B's own invariant: what the tellers, branches and accounts gained is what the history says.
    let direct = stack.direct().await;
    let row = direct
        .query_one(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
             (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history), \
             (SELECT count(*) FROM pgbench_history)",
            &[],
        )
        .await
        .expect("sums");
    let sums: Vec<i64> = (0..5).map(|column| row.get(column)).collect();
    assert!(sums[..4].iter().all(|sum| *sum == sums[0]), "{sums:?}");
    assert_eq!(sums[4], 3 * 8 * 200);
    // And the cached answer is the server's.
    let through = stack.client().await;
    for _ in 0..2 {
        let row = through
            .query_one("SELECT sum(abalance) FROM pgbench_accounts", &[])
            .await
            .expect("a sum");
        assert_eq!(row.get::<_, i64>(0), sums[0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokio_postgres_gets_equal_rows_on_miss_and_hit() {
    let stack = Stack::start();
    let (direct, through) = (stack.direct().await, stack.client().await);
    through
        .batch_execute(
            "CREATE TABLE kinds (id int PRIMARY KEY, n numeric, t timestamptz, b bytea, j jsonb, a int[], f float8, u uuid);
             INSERT INTO kinds SELECT i, i / 3.0, '2024-02-29 12:00 UTC', decode(md5(i::text), 'hex'), \
             jsonb_build_object('i', i), ARRAY[i, i+1], i / 7.0, md5(i::text)::uuid FROM generate_series(1, 20) i",
        )
        .await
        .expect("made");
    let before = stack.helios.cache_count("hits").await;
    for id in 1..=20_i32 {
        let sql = "SELECT id, n::text, t::text, b, j::text, a, f, u::text FROM kinds WHERE id = $1";
        let expected = format!(
            "{:?}",
            values(&direct.query_one(sql, &[&id]).await.expect("a row"))
        );
        for _ in 0..2 {
            let got = format!(
                "{:?}",
                values(&through.query_one(sql, &[&id]).await.expect("a row"))
            );
            assert_eq!(got, expected);
        }
    }
    eprintln!(
        "{}",
        stack
            .helios
            .psql("helios", "SHOW CACHE; SHOW REFUSALS; SHOW POOLS;")
    );
    assert!(stack.helios.cache_count("hits").await >= before + 20);
}

type Values = (i32, String, String, Vec<u8>, String, Vec<i32>, f64, String);

fn values(row: &tokio_postgres::Row) -> Values {
    (
        row.get(0),
        row.get(1),
        row.get(2),
        row.get(3),
        row.get(4),
        row.get(5),
        row.get(6),
        row.get(7),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_in_and_out_by_the_extended_protocol() {
    use bytes::Bytes;
    use futures_util::{SinkExt as _, TryStreamExt as _};

    let stack = Stack::start();
    let client = stack.client().await;
    client
        .batch_execute("CREATE TABLE lines (n int, text text)")
        .await
        .expect("made");
    assert_eq!(
        client
            .query("SELECT * FROM lines", &[])
            .await
            .expect("rows")
            .len(),
        0
    );
    let sink = client
        .copy_in::<_, Bytes>("COPY lines FROM STDIN")
        .await
        .expect("copying");
    tokio::pin!(sink);
    for n in 0..5000 {
        sink.send(Bytes::from(format!("{n}\tline {n}\n")))
            .await
            .expect("sent");
    }
    assert_eq!(sink.finish().await.expect("copied"), 5000);
    assert_eq!(
        client
            .query("SELECT * FROM lines", &[])
            .await
            .expect("rows")
            .len(),
        5000
    );
    let stream = client
        .copy_out("COPY lines TO STDOUT")
        .await
        .expect("copying");
    let chunks: Vec<Bytes> = stream.try_collect().await.expect("copied");
    assert_eq!(
        chunks.iter().map(Bytes::len).sum::<usize>(),
        (0..5000)
            .map(|n| format!("{n}\tline {n}\n").len())
            .sum::<usize>()
    );
    // An error in the middle leaves the session usable.
    let sink = client
        .copy_in::<_, Bytes>("COPY lines FROM STDIN")
        .await
        .expect("copying");
    tokio::pin!(sink);
    let _ = sink.send(Bytes::from("not a number\tx\n")).await;
    assert!(sink.finish().await.is_err());
    assert_eq!(client.query("SELECT 1", &[]).await.expect("a row").len(), 1);
}
