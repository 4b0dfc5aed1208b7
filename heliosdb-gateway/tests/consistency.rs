//! No cached answer is older than the last acknowledged write, whoever wrote it, while server processes die.
//!
//! Writers move money between rows and count each row's changes; readers ask for the sum of all balances and for
//! single rows, by the simple and by the extended protocol, so that most answers come from the cache. Checked is:
//! * every sum is the sum at the start: a cached answer is one snapshot;
//! * no row is read in an older version than was acknowledged to *any* client before the read began, nor in an older
//!   one than the reader has seen: read-your-writes and monotonic reads across all clients;
//! * both under `pg_terminate_backend` of random server processes, in the middle of transactions and of commits.
//!
//! The checker has been seen to fail with each of these broken:
//! * the write intent: make `invalidate::wire::mark` return at once;
//! * the version check: make `VersionSlots::is_current` return true.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::{Stack, connect};

const ROWS: i32 = 200;
const BALANCE: i64 = 1000;
const WRITERS: u64 = 4;
const READERS: u64 = 6;
const RUN: Duration = Duration::from_secs(6);

struct World {
    port: u16,
    /// The newest version of each row that a client was told of.
    acknowledged: Vec<AtomicI64>,
    stop: AtomicBool,
    reads: AtomicU64,
    writes: AtomicU64,
    errors: AtomicU64,
}

impl World {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn acknowledge(&self, row: i32, version: i64) {
        self.acknowledged[row as usize].fetch_max(version, Ordering::SeqCst);
    }

    fn acknowledged(&self, row: i32) -> i64 {
        self.acknowledged[row as usize].load(Ordering::SeqCst)
    }
}

/// splitmix64: each task has a sequence of its own, the same in every run.
struct Random(u64);

impl Random {
    #[expect(clippy::cast_possible_truncation, reason = "less than n")]
    fn below(&mut self, n: i32) -> i32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as i32
    }
}

/// A client that lost its server connection connects again.
async fn reconnect(world: &World) -> Client {
    loop {
        let config = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres",
            world.port
        );
        if let Ok((client, connection)) =
            tokio_postgres::connect(&config, tokio_postgres::NoTls).await
        {
            tokio::spawn(connection);
            return client;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn write_for_ever(world: Arc<World>, seed: u64) {
    let mut random = Random(seed);
    let mut client = reconnect(&world).await;
    while !world.is_over() {
        let (from, to) = (random.below(ROWS), random.below(ROWS));
        // Without pauses a write would always be pending, and nothing would ever be cached.
        tokio::time::sleep(Duration::from_millis(random.below(30) as u64)).await;
        if from == to {
            continue;
        }
        match transfer(&mut client, &world, from, to, random.below(3)).await {
            Ok(()) => world.writes.fetch_add(1, Ordering::Relaxed),
            Err(_) => {
                // The outcome is not known: nothing is acknowledged.
                client = reconnect(&world).await;
                world.errors.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

async fn transfer(
    client: &mut Client,
    world: &World,
    from: i32,
    to: i32,
    how: i32,
) -> Result<(), tokio_postgres::Error> {
    let versions: Vec<(i32, i64)> = match how {
        // One statement, by itself a transaction.
        0 => {
            let sql = "UPDATE accounts SET v = v + 1, balance = balance + CASE id WHEN $1 THEN -7 ELSE 7 END \
                       WHERE id IN ($1, $2) RETURNING id, v";
            let rows = client.query(sql, &[&from, &to]).await?;
            rows.iter().map(|row| (row.get(0), row.get(1))).collect()
        }
        // A block, by the extended protocol, rolled back now and then.
        1 => {
            let transaction = client.transaction().await?;
            let sql = "UPDATE accounts SET v = v + 1, balance = balance + $2 WHERE id = $1 RETURNING id, v";
            let (first, second) = (from.min(to), from.max(to));
            let mut versions = Vec::new();
            for (row, sum) in [(first, -3_i64), (second, 3)] {
                let row = transaction.query_one(sql, &[&row, &sum]).await?;
                versions.push((row.get(0), row.get(1)));
            }
            if from % 5 == 0 {
                transaction.rollback().await?;
                return Ok(());
            }
            transaction.commit().await?;
            versions
        }
        // Several statements in one simple query.
        _ => {
            let (first, second) = (from.min(to), from.max(to));
            let sql = format!(
                "BEGIN; UPDATE accounts SET v = v + 1, balance = balance - 1 WHERE id = {first} RETURNING id, v; \
                 UPDATE accounts SET v = v + 1, balance = balance + 1 WHERE id = {second} RETURNING id, v; COMMIT"
            );
            let messages = client.simple_query(&sql).await?;
            let row = |message: &SimpleQueryMessage| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((row.get(0)?.parse().ok()?, row.get(1)?.parse().ok()?))
                }
                _ => None,
            };
            messages.iter().filter_map(row).collect()
        }
    };
    for (row, version) in versions {
        world.acknowledge(row, version);
    }
    Ok(())
}

async fn read_for_ever(world: Arc<World>, seed: u64) {
    let mut random = Random(seed);
    let mut client = reconnect(&world).await;
    let mut seen = vec![0_i64; ROWS as usize];
    while !world.is_over() {
        // Few enough to be read again before the next write.
        let row = random.below(ROWS / 20);
        let read = match random.below(4) {
            0 => sum_is_whole(&client, random.below(2) == 0).await,
            1 => {
                let floor = world.acknowledged(row).max(seen[row as usize]);
                one_row_simple(&client, row)
                    .await
                    .map(|version| check(row, version, floor, &mut seen))
            }
            _ => {
                let floor = world.acknowledged(row).max(seen[row as usize]);
                one_row_extended(&client, row)
                    .await
                    .map(|version| check(row, version, floor, &mut seen))
            }
        };
        match read {
            Ok(()) => world.reads.fetch_add(1, Ordering::Relaxed),
            Err(_) => {
                client = reconnect(&world).await;
                world.errors.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

fn check(row: i32, version: i64, floor: i64, seen: &mut [i64]) {
    assert!(
        version >= floor,
        "row {row} was read in version {version}, and version {floor} was known before"
    );
    seen[row as usize] = version;
}

async fn sum_is_whole(client: &Client, simple: bool) -> Result<(), tokio_postgres::Error> {
    const SQL: &str = "SELECT sum(balance)::int8 FROM accounts";
    let sum: i64 = if simple {
        let messages = client.simple_query(SQL).await?;
        let row = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        };
        messages.iter().find_map(row).expect("a sum")
    } else {
        client.query_one(SQL, &[]).await?.get(0)
    };
    assert_eq!(sum, i64::from(ROWS) * BALANCE, "money was made or lost");
    Ok(())
}

async fn one_row_simple(client: &Client, row: i32) -> Result<i64, tokio_postgres::Error> {
    let messages = client
        .simple_query(&format!("SELECT v FROM accounts WHERE id = {row}"))
        .await?;
    let version = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    Ok(version.expect("a version"))
}

async fn one_row_extended(client: &Client, row: i32) -> Result<i64, tokio_postgres::Error> {
    Ok(client
        .query_one("SELECT v FROM accounts WHERE id = $1", &[&row])
        .await?
        .get(0))
}

/// Ends a random server process of the gateway's every so often.
async fn kill_for_ever(world: Arc<World>, server: u16) {
    let client = connect(server, "postgres", "postgres").await;
    while !world.is_over() {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1";
        client
            .batch_execute(sql)
            .await
            .expect("the killer's own connection lives");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_reads_the_past_while_backends_die() {
    let stack = Stack::start();
    stack
        .direct()
        .await
        .batch_execute(&format!(
            "CREATE TABLE accounts (id int PRIMARY KEY, balance int8 NOT NULL, v int8 NOT NULL);
             INSERT INTO accounts SELECT i, {BALANCE}, 0 FROM generate_series(0, {ROWS} - 1) i"
        ))
        .await
        .expect("made");
    let world = Arc::new(World {
        port: stack.helios.port,
        acknowledged: (0..ROWS).map(|_| AtomicI64::new(0)).collect(),
        stop: AtomicBool::new(false),
        reads: AtomicU64::new(0),
        writes: AtomicU64::new(0),
        errors: AtomicU64::new(0),
    });
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..WRITERS {
        tasks.spawn(write_for_ever(Arc::clone(&world), n));
    }
    for n in 0..READERS {
        tasks.spawn(read_for_ever(Arc::clone(&world), 1000 + n));
    }
    tasks.spawn(kill_for_ever(Arc::clone(&world), stack.cluster.port()));
    let end = Instant::now() + RUN;
    while Instant::now() < end {
        tokio::select! {
            ended = tasks.join_next() => ended.expect("tasks run").expect("no task panics"),
            () = tokio::time::sleep_until(end.into()) => {}
        }
    }
    world.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no task panics");
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (reads, writes, errors) = (
        count(&world.reads),
        count(&world.writes),
        count(&world.errors),
    );
    let hits = stack.helios.cache_count("hits").await;
    println!("{reads} reads, {writes} writes, {errors} lost connections, {hits} hits");
    // The run must have been one in which something could go wrong.
    assert!(
        reads > 500 && writes > 100 && errors > 5 && hits > 50,
        "{reads} {writes} {errors} {hits}"
    );
}

/// Without a writer in between, the second of two equal reads is a hit; a write by one client shows in the next read
/// of every other, however it was written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_shows_in_the_next_read_of_every_client() {
    let stack = Stack::start();
    let (writer, reader) = (stack.client().await, stack.client().await);
    writer
        .batch_execute(
            "CREATE TABLE parent (id int PRIMARY KEY, n int);
             CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE);
             CREATE TABLE parts (id int, n int) PARTITION BY RANGE (id);
             CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100);
             CREATE VIEW doubled AS SELECT id, n * 2 AS n FROM parent;
             CREATE FUNCTION bump() RETURNS void LANGUAGE sql AS 'UPDATE parent SET n = n + 1';
             CREATE TABLE audited (id int);
             CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN UPDATE parent SET n = n + 1000; RETURN NEW; END';
             CREATE TRIGGER audit AFTER INSERT ON audited FOR EACH ROW EXECUTE FUNCTION audit();",
        )
        .await
        .expect("made");
    let writes = [
        "INSERT INTO parent VALUES (1, 1), (2, 2)",
        "INSERT INTO child VALUES (10, 1), (20, 2)",
        "UPDATE parent SET n = n + 1 WHERE id = 1",
        "BEGIN; UPDATE parent SET n = n + 1; SAVEPOINT s; DELETE FROM parts; ROLLBACK TO s; COMMIT",
        "BEGIN; UPDATE parent SET n = 0; ROLLBACK",
        "DELETE FROM parent WHERE id = 1",
        "INSERT INTO parts_low VALUES (5, 5)",
        "UPDATE parts SET n = 6 WHERE id = 5",
        "UPDATE doubled SET id = 3 WHERE id = 2",
        "SELECT bump()",
        "DO $$ BEGIN UPDATE parent SET n = n + 10; END $$",
        "INSERT INTO audited VALUES (1)",
        "WITH gone AS (DELETE FROM parts RETURNING *) INSERT INTO parent SELECT id + 100, n FROM gone",
        "PREPARE TRANSACTION 'x'",
        "TRUNCATE parent CASCADE",
        "COPY (SELECT 1) TO STDOUT",
        "INSERT INTO parent SELECT i, i FROM generate_series(1, 5) i",
        "ALTER TABLE parent ADD COLUMN extra text DEFAULT 'x'",
        "CREATE OR REPLACE VIEW doubled AS SELECT id, n * 3 AS n FROM parent",
        "ALTER TABLE parent RENAME COLUMN extra TO more",
    ];
    let reads = [
        "SELECT * FROM parent ORDER BY id",
        "SELECT count(*), sum(n) FROM parent",
        "SELECT * FROM child ORDER BY id",
        "SELECT * FROM parts ORDER BY id",
        "SELECT * FROM parts_low ORDER BY id",
        "SELECT * FROM doubled ORDER BY id",
        "SELECT p.id FROM parent p JOIN child c ON c.parent = p.id ORDER BY 1",
        "WITH parent AS (SELECT * FROM parts) SELECT * FROM parent ORDER BY id",
    ];
    let direct = stack.direct().await;
    for write in writes {
        // Some of them are refused by the server: that is a write too.
        let _ = writer.simple_query(write).await;
        for read in reads {
            let expected = text(&direct, read).await;
            for attempt in ["miss", "hit"] {
                assert_eq!(
                    text(&reader, read).await,
                    expected,
                    "{attempt}: {read} after {write}"
                );
                assert_eq!(
                    text(&writer, read).await,
                    expected,
                    "{attempt}: {read} after {write}"
                );
            }
        }
    }
    assert!(stack.helios.cache_count("hits").await > 100);
}

async fn text(client: &Client, sql: &str) -> String {
    format!(
        "{:?}",
        client
            .simple_query(sql)
            .await
            .map_err(|error| error.code().cloned())
    )
}

/// After a crash of one process the server begins anew, and what was acknowledged may be gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_takes_is_not_served_from_memory() {
    let stack = Stack::start();
    let direct = stack.direct().await;
    let made = "CREATE UNLOGGED TABLE u (a int); INSERT INTO u SELECT generate_series(1, 10)";
    direct.batch_execute(made).await.expect("made");
    let read = "SELECT count(*) FROM u";
    let client = stack.client().await;
    let before = text(&client, read).await;
    assert_eq!(text(&client, read).await, before);
    let hits = stack.helios.cache_count("hits").await;
    assert!(hits > 0);
    let row = direct.query_one("SELECT pg_backend_pid()", &[]).await;
    let pid: i32 = row.expect("answered").get(0);
    let killed = std::process::Command::new("kill")
        .args(["-KILL", &pid.to_string()])
        .status();
    assert!(killed.expect("kill runs").success());
    // A statement that needs the server finds the new one.
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        assert!(
            std::time::Instant::now() < deadline,
            "the server does not come back"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
        let config = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres",
            stack.helios.port
        );
        let Ok((client, connection)) =
            tokio_postgres::connect(&config, tokio_postgres::NoTls).await
        else {
            continue;
        };
        tokio::spawn(connection);
        if client.simple_query("SELECT pg_backend_pid()").await.is_ok() {
            break;
        }
    }
    let expected = text(&stack.direct().await, read).await;
    assert_ne!(expected, before);
    assert_eq!(text(&stack.client().await, read).await, expected);
}
