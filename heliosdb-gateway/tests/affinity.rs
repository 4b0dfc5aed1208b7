//! A client gets, of the idle server connections, one that has its statement prepared; and never waits for it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use heliosdb_testkit::PostgresCluster;
use tokio_postgres::{Client, SimpleQueryMessage, Statement};

use crate::support::Stack;

/// Four connections that keep a third of the statements each.
const CONNECTIONS: usize = 4;
const STATEMENTS: i32 = 24;

fn config(more: &str) -> String {
    format!(
        "[cache]\nenabled = false\n[pool]\nsize = {CONNECTIONS}\nmin_idle = {CONNECTIONS}\n\
         max_prepared_statements = 8\n{more}"
    )
}

async fn start(more: &str) -> Stack {
    let stack = Stack::start_with(PostgresCluster::builder(), &config(more));
    let client = stack.client().await;
    client.simple_query("SELECT 1").await.expect("ran");
    let began = Instant::now();
    while number(&pool(&stack).await, "sv_idle") < CONNECTIONS as u64 {
        assert!(began.elapsed() < Duration::from_secs(10), "all are opened");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stack
}

async fn rows(client: &Client, sql: &str) -> Vec<BTreeMap<String, String>> {
    let messages = client.simple_query(sql).await.expect("answered");
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.map(|row| {
        let columns = row.columns().iter().enumerate();
        columns
            .map(|(at, column)| {
                let value = row.get(at).unwrap_or_default().to_owned();
                (column.name().to_owned(), value)
            })
            .collect()
    })
    .collect()
}

async fn console(stack: &Stack, command: &str) -> Vec<BTreeMap<String, String>> {
    rows(&stack.helios.client("postgres", "helios").await, command).await
}

/// The only pool's row of `SHOW POOLS`.
async fn pool(stack: &Stack) -> BTreeMap<String, String> {
    console(stack, "SHOW POOLS").await.remove(0)
}

fn number(row: &BTreeMap<String, String>, column: &str) -> u64 {
    row[column].parse().expect("a number")
}

async fn prepare(client: &Client) -> Vec<Statement> {
    let mut statements = Vec::new();
    for n in 0..STATEMENTS {
        let sql = format!("SELECT $1::int4 + {n}, 'statement {n}'");
        statements.push(client.prepare(&sql).await.expect("prepared"));
    }
    statements
}

/// Executes all in turn, while another client takes connections and gives them back, so that another is the hottest.
async fn run_in_turn(client: &Client, other: &Client, statements: &[Statement], rounds: i32) {
    for round in 0..rounds {
        for (n, statement) in (0..).zip(statements) {
            if n % 3 == round % 3 {
                other.batch_execute("BEGIN").await.expect("begun");
            }
            let row = client.query_one(statement, &[&round]).await.expect("a row");
            assert_eq!(row.get::<_, i32>(0), round + n);
            if n % 3 == round % 3 {
                other.batch_execute("ROLLBACK").await.expect("ended");
            }
        }
    }
}

/// How many of the statements each server connection has, as the server says.
async fn prepared_on_each(stack: &Stack) -> Vec<usize> {
    let mut clients = Vec::new();
    let mut counts = Vec::new();
    for _ in 0..CONNECTIONS {
        // In transactions at the same time, each on a connection of its own.
        let client = stack.client().await;
        let counted = rows(
            &client,
            "BEGIN; SELECT count(*) AS n FROM pg_prepared_statements WHERE statement LIKE '%statement%'",
        )
        .await;
        counts.push(counted[0]["n"].parse().expect("a number"));
        clients.push(client);
    }
    // Who leaves in a transaction leaves a connection that has to be cleaned, of its statements, too.
    for client in clients {
        client.batch_execute("ROLLBACK").await.expect("ended");
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connections_are_one_cache_of_statements() {
    let stack = start("").await;
    let (client, other) = (stack.client().await, stack.client().await);
    let statements = prepare(&client).await;
    run_in_turn(&client, &other, &statements, 2).await;
    let misses = stack.helios.count("TOTALS", "prepared_misses").await;
    run_in_turn(&client, &other, &statements, 10).await;
    let hits = stack.helios.count("TOTALS", "prepared_hits").await;
    let more = stack.helios.count("TOTALS", "prepared_misses").await - misses;
    // Where the other client has the very connection, another learns the statement.
    let executions = 10 * u64::try_from(STATEMENTS).expect("a count");
    assert!(
        more <= executions / 10,
        "{more} of {executions} parsed anew"
    );
    assert!(hits >= executions * 9 / 10, "{hits}");
    let pool = pool(&stack).await;
    let (hinted, met) = (number(&pool, "hinted"), number(&pool, "affinity_hits"));
    assert!(
        hinted >= 12 * u64::try_from(STATEMENTS).expect("a count"),
        "{pool:?}"
    );
    assert!(met >= hits * 9 / 10 && met <= hinted, "{pool:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_statement_is_parsed_once_in_all_where_nothing_is_in_the_way() {
    let stack = start("").await;
    let client = stack.client().await;
    let statements = prepare(&client).await;
    for round in 0..5 {
        for statement in &statements {
            client.query_one(statement, &[&round]).await.expect("a row");
        }
    }
    assert_eq!(stack.helios.count("TOTALS", "prepared_misses").await, 0);
    let on_each = prepared_on_each(&stack).await;
    assert_eq!(
        on_each.iter().sum::<usize>(),
        statements.len(),
        "{on_each:?}"
    );
    assert!(on_each.iter().all(|n| *n <= 8), "{on_each:?}");
    // Another client that prepares the same is led to where it is.
    let second = stack.client().await;
    let same = prepare(&second).await;
    for statement in &same {
        second.query_one(statement, &[&1]).await.expect("a row");
    }
    assert_eq!(stack.helios.count("TOTALS", "prepared_misses").await, 0);
    let on_each = prepared_on_each(&stack).await;
    assert_eq!(
        on_each.iter().sum::<usize>(),
        statements.len(),
        "{on_each:?}"
    );
    let shown = console(&stack, "SHOW STATEMENTS").await;
    let of_ours = |row: &&BTreeMap<String, String>| row["statement"].contains("int4");
    let shown: Vec<_> = shown.iter().filter(of_ours).collect();
    // Without their values they are all the same.
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert_eq!(
        number(shown[0], "prepared_on"),
        u64::from(STATEMENTS.unsigned_abs())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_affinity_the_hottest_connection_is_taken() {
    let stack = start("affinity = false\n").await;
    let client = stack.client().await;
    let statements = prepare(&client).await;
    for statement in statements.iter().chain(&statements) {
        client.query_one(statement, &[&1]).await.expect("a row");
    }
    // In turn, each was given up before it is used again.
    let misses = stack.helios.count("TOTALS", "prepared_misses").await;
    assert_eq!(misses, 2 * u64::try_from(STATEMENTS).expect("a count"));
    assert_eq!(number(&pool(&stack).await, "hinted"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_connection_is_forgotten() {
    let stack = start("").await;
    let client = stack.client().await;
    let statement = client
        .prepare("SELECT $1::int4 + 1, 'closed'")
        .await
        .expect("prepared");
    client.query_one(&statement, &[&1]).await.expect("a row");
    let prepared_on = async || {
        let shown = console(&stack, "SHOW STATEMENTS").await;
        let ours = shown.iter().find(|row| row["statement"].contains("int4"));
        number(ours.expect("shown"), "prepared_on")
    };
    assert_eq!(prepared_on().await, 1);
    let direct = stack.direct().await;
    direct
        .simple_query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
        )
        .await
        .expect("ended");
    let left = "SELECT count(*) AS n FROM pg_stat_activity \
                WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let began = Instant::now();
    while rows(&direct, left).await[0]["n"] != "0" {
        assert!(began.elapsed() < Duration::from_secs(10), "all end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // All are seen to be dead by whoever gets them, and another is opened.
    client.query_one(&statement, &[&1]).await.expect("a row");
    assert_eq!(prepared_on().await, 1, "by the new one alone");
    let met = number(&pool(&stack).await, "affinity_hits");
    client.query_one(&statement, &[&1]).await.expect("a row");
    assert_eq!(number(&pool(&stack).await, "affinity_hits"), met + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_the_connection_that_has_the_statement() {
    let stack = start("acquire_timeout = \"2s\"\n").await;
    let (holder, client) = (stack.client().await, stack.client().await);
    let sql = "SELECT $1::int4 + 1, 'held'";
    let held = holder.prepare(sql).await.expect("prepared");
    let same = client.prepare(sql).await.expect("prepared");
    holder.batch_execute("BEGIN").await.expect("begun");
    holder.query_one(&held, &[&1]).await.expect("a row");
    // The statement is on the connection that the holder has now.
    let misses = stack.helios.count("TOTALS", "prepared_misses").await;
    let began = Instant::now();
    for _ in 0..10 {
        client.query_one(&same, &[&1]).await.expect("by another");
    }
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    assert!(stack.helios.count("TOTALS", "prepared_misses").await <= misses + 1);
    assert!(stack.helios.count("TOTALS", "wait_us").await < 1_000_000);
    holder.batch_execute("ROLLBACK").await.expect("ended");
}
