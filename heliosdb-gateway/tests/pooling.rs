//! Many clients on few connections: nobody sees another's state, nobody loses its own.

use std::time::Duration;

use heliosdb_testkit::PostgresCluster;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;

use crate::support::Stack;
use crate::support::raw::{query, step, sync};

const ONE_CONNECTION: &str = "[pool]\nsize = 1\nacquire_timeout = \"2s\"\n";

async fn value(client: &tokio_postgres::Client, sql: &str) -> String {
    let messages = client
        .simple_query(sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    messages.iter().find_map(row).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_follow_the_client_and_never_reach_another() {
    let stack = Stack::start_with(PostgresCluster::builder(), ONE_CONNECTION);
    let (one, two) = (stack.client().await, stack.client().await);
    let default = value(&two, "SHOW work_mem").await;
    one.batch_execute("SET work_mem = '7MB'")
        .await
        .expect("set");
    one.batch_execute("SET search_path = pg_catalog, public")
        .await
        .expect("set");
    for _ in 0..3 {
        assert_eq!(value(&two, "SHOW work_mem").await, default);
        assert_eq!(value(&one, "SHOW work_mem").await, "7MB");
        assert_eq!(value(&one, "SHOW search_path").await, "pg_catalog, public");
    }
    // Rolled back, it is gone; local, it ends with the transaction; reset, it is the default again.
    one.batch_execute("BEGIN; SET work_mem = '8MB'; ROLLBACK")
        .await
        .expect("ran");
    assert_eq!(value(&one, "SHOW work_mem").await, "7MB");
    one.batch_execute("BEGIN; SET LOCAL work_mem = '9MB'; COMMIT")
        .await
        .expect("ran");
    assert_eq!(value(&one, "SHOW work_mem").await, "7MB");
    assert_eq!(value(&two, "SHOW work_mem").await, default);
    one.batch_execute("RESET work_mem").await.expect("reset");
    assert_eq!(value(&one, "SHOW work_mem").await, default);
    one.batch_execute("SELECT set_config('app.tenant', 'blue', false)")
        .await
        .expect("set");
    assert_eq!(
        value(&two, "SELECT current_setting('app.tenant', true)").await,
        ""
    );
    assert_eq!(
        value(&one, "SELECT current_setting('app.tenant', true)").await,
        "blue"
    );
    one.batch_execute("DISCARD ALL").await.expect("discarded");
    assert_eq!(
        value(&one, "SELECT current_setting('app.tenant', true)").await,
        ""
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_do_not_leak_and_do_not_share_answers() {
    let stack = Stack::start_with(PostgresCluster::builder(), ONE_CONNECTION);
    let (one, two) = (stack.client().await, stack.client().await);
    one.batch_execute("CREATE ROLE limited; CREATE TABLE secret (a int)")
        .await
        .expect("made");
    one.batch_execute("INSERT INTO secret VALUES (42)")
        .await
        .expect("inserted");
    assert_eq!(value(&two, "SELECT a FROM secret").await, "42");
    assert_eq!(value(&two, "SELECT a FROM secret").await, "42");
    one.batch_execute("SET ROLE limited").await.expect("set");
    for _ in 0..2 {
        let refused = one
            .simple_query("SELECT a FROM secret")
            .await
            .expect_err("no right to read it");
        assert_eq!(refused.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
        assert_eq!(value(&two, "SELECT current_user").await, "postgres");
        assert_eq!(value(&two, "SELECT a FROM secret").await, "42");
    }
    one.batch_execute("RESET ROLE").await.expect("reset");
    assert_eq!(value(&one, "SELECT a FROM secret").await, "42");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_statements_work_on_any_connection() {
    let stack = Stack::start_with(
        PostgresCluster::builder(),
        "[pool]\nsize = 2\nmax_prepared_statements = 3\n",
    );
    stack
        .cluster
        .psql(
            "postgres",
            "CREATE TABLE t AS SELECT i AS a, i * 2 AS b FROM generate_series(1, 9) i",
        )
        .expect("made");
    let clients = [
        stack.client().await,
        stack.client().await,
        stack.client().await,
    ];
    let mut statements = Vec::new();
    for client in &clients {
        for n in 0..5 {
            let sql = format!("SELECT b + {n} FROM t WHERE a = $1");
            statements.push((client, n, client.prepare(&sql).await.expect("prepared")));
        }
    }
    for a in 1..=9 {
        for (client, n, statement) in &statements {
            let b: i32 = client
                .query_one(statement, &[&a])
                .await
                .expect("a row")
                .get(0);
            assert_eq!(b, a * 2 + n);
        }
    }
    // A name that is taken, and one that is not there.
    let client = &clients[0];
    client
        .batch_execute("PREPARE mine AS SELECT 1")
        .await
        .expect("prepared");
    let taken = client
        .batch_execute("PREPARE mine AS SELECT 2")
        .await
        .expect_err("taken");
    assert_eq!(taken.code(), Some(&SqlState::DUPLICATE_PSTATEMENT));
    assert_eq!(value(client, "EXECUTE mine").await, "1");
    let absent = clients[1]
        .batch_execute("EXECUTE mine")
        .await
        .expect_err("another's");
    assert_eq!(absent.code(), Some(&SqlState::UNDEFINED_PSTATEMENT));
    client
        .batch_execute("DISCARD ALL")
        .await
        .expect("discarded");
    let gone = client
        .batch_execute("EXECUTE mine")
        .await
        .expect_err("discarded");
    assert_eq!(gone.code(), Some(&SqlState::UNDEFINED_PSTATEMENT));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_moved_pins_and_unpins() {
    let stack = Stack::start_with(PostgresCluster::builder(), ONE_CONNECTION);
    let (one, two) = (stack.client().await, stack.client().await);
    let ties = [
        ("CREATE TEMP TABLE scratch (a int)", "DISCARD ALL"),
        ("LISTEN news; SELECT 1", "UNLISTEN *"),
        (
            "SELECT pg_advisory_lock(7)",
            "SELECT pg_advisory_unlock_all()",
        ),
        (
            "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT",
            "CLOSE ALL",
        ),
        (
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1; DECLARE d CURSOR WITH HOLD FOR SELECT 1; CLOSE c",
            "CLOSE d",
        ),
    ];
    for (tie, untie) in ties {
        one.simple_query(tie).await.expect("tied");
        let busy = two
            .simple_query("SELECT random()")
            .await
            .expect_err("the only connection is tied to another");
        assert_eq!(
            busy.code(),
            Some(&SqlState::TOO_MANY_CONNECTIONS),
            "{tie}: {busy:?}"
        );
        one.simple_query(untie).await.expect("untied");
        two.simple_query("SELECT random()")
            .await
            .unwrap_or_else(|error| panic!("after {untie}: {error:?}"));
    }
    // A client that leaves takes its state with it.
    one.simple_query("CREATE TEMP TABLE scratch (a int)")
        .await
        .expect("tied");
    one.simple_query("SET application_name = 'left'")
        .await
        .expect("set");
    drop(one);
    assert_eq!(
        value(&two, "SELECT to_regclass('pg_temp.scratch')").await,
        ""
    );
    assert_eq!(value(&two, "SHOW application_name").await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_in_a_transaction_leaves_nothing() {
    let stack = Stack::start_with(PostgresCluster::builder(), ONE_CONNECTION);
    let (one, two) = (stack.client().await, stack.client().await);
    one.batch_execute("CREATE TABLE t (a int)")
        .await
        .expect("made");
    assert_eq!(value(&two, "SELECT count(*) FROM t").await, "0");
    one.batch_execute("BEGIN; INSERT INTO t VALUES (1)")
        .await
        .expect("inserted");
    drop(one);
    assert_eq!(value(&two, "SELECT count(*) FROM t").await, "0");
    two.batch_execute("INSERT INTO t VALUES (2)")
        .await
        .expect("no lock is left");
    // And one that leaves in the middle of a statement.
    let config = format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres",
        stack.helios.port
    );
    let (three, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls)
        .await
        .expect("connected");
    let connection = tokio::spawn(connection);
    let sleeping = three.batch_execute("SELECT pg_sleep(30)");
    let _ = tokio::time::timeout(Duration::from_millis(200), sleeping).await;
    connection.abort();
    assert_eq!(value(&two, "SELECT count(*) FROM t").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_reaches_the_statement_of_the_client_that_asked() {
    let stack = Stack::start();
    let (one, two) = (stack.client().await, stack.client().await);
    let token = one.cancel_token();
    let sleeper =
        tokio::spawn(async move { (one.batch_execute("SELECT pg_sleep(30)").await, one) });
    let other = tokio::spawn(async move { two.batch_execute("SELECT pg_sleep(1.5)").await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    token
        .cancel_query(tokio_postgres::NoTls)
        .await
        .expect("delivered");
    let (cancelled, one) = tokio::time::timeout(Duration::from_secs(5), sleeper)
        .await
        .expect("in time")
        .expect("ran");
    assert_eq!(
        cancelled.expect_err("cancelled").code(),
        Some(&SqlState::QUERY_CANCELED)
    );
    other
        .await
        .expect("ran")
        .expect("the other was not cancelled");
    one.batch_execute("SELECT 1")
        .await
        .expect("the session goes on");
    // A cancel of a client that runs nothing hits nobody. It is delivered when helios has counted it: until then it
    // could still meet the next statement, with PostgreSQL itself as well.
    token
        .cancel_query(tokio_postgres::NoTls)
        .await
        .expect("delivered");
    while stack.helios.count("TOTALS", "cancel_requests").await < 2 {
        tokio::task::yield_now().await;
    }
    one.batch_execute("SELECT pg_sleep(0.1)")
        .await
        .expect("not cancelled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_server_gives_a_clear_error_and_comes_back() {
    let mut stack = Stack::start();
    let client = stack.client().await;
    client
        .batch_execute("CREATE TABLE t AS SELECT 1 AS a")
        .await
        .expect("made");
    stack.cluster.stop().expect("stopped");
    let lost = client
        .simple_query("INSERT INTO t VALUES (2)")
        .await
        .expect_err("no server");
    let code = lost
        .code()
        .map(|code| code.code().to_owned())
        .unwrap_or_default();
    assert!(
        code.starts_with("08") || code.starts_with("57P"),
        "{lost:?}"
    );
    let refused = tokio_postgres::connect(
        &format!(
            "host=127.0.0.1 port={} user=postgres dbname=other",
            stack.helios.port
        ),
        tokio_postgres::NoTls,
    )
    .await;
    assert!(refused.is_err());
    stack.cluster.launch().expect("started");
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let client = stack.client().await;
        match client.simple_query("SELECT a FROM t").await {
            Ok(_) => break,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_the_login_are_the_servers_own() {
    let stack = Stack::start();
    let connect = async |params: &str| {
        let config = format!("host=127.0.0.1 port={} {params}", stack.helios.port);
        tokio_postgres::connect(&config, tokio_postgres::NoTls)
            .await
            .map(|_| ())
            .expect_err("refused")
    };
    let error = connect("user=postgres dbname=no_such_database").await;
    assert_eq!(
        error.code(),
        Some(&SqlState::INVALID_CATALOG_NAME),
        "{error:?}"
    );
    let error = connect("user=no_such_role dbname=postgres").await;
    assert!(
        error
            .code()
            .is_some_and(|code| code.code().starts_with("28")),
        "{error:?}"
    );
    let error = connect("user=postgres dbname=postgres options='-c no_such_setting=1'").await;
    assert_eq!(error.code(), Some(&SqlState::UNDEFINED_OBJECT), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_share_a_few_connections_and_one_computation() {
    let stack = Stack::start_with(PostgresCluster::builder(), "[pool]\nsize = 4\n");
    stack
        .cluster
        .psql(
            "postgres",
            "CREATE TABLE big AS SELECT i FROM generate_series(1, 300000) i",
        )
        .expect("made");
    let mut clients = Vec::new();
    for _ in 0..300 {
        clients.push(stack.client().await);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for client in clients {
        tasks.spawn(async move {
            value(&client, "SELECT count(*), sum(i), avg(i * 1.5) FROM big").await
        });
    }
    while let Some(answer) = tasks.join_next().await {
        assert_eq!(answer.expect("ran"), "300000");
    }
    let backends = stack
        .cluster
        .psql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")
        .expect("a count");
    assert!(
        backends.parse::<u32>().expect("a number") <= 4,
        "{backends}"
    );
    assert_eq!(stack.helios.cache_count("fills").await, 1);
    let shared =
        stack.helios.cache_count("coalesced").await + stack.helios.cache_count("hits").await;
    assert_eq!(shared, 299);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_no_grammar_accepts_ties_nobody_and_ends_no_answer() {
    let stack = Stack::start_prepared(
        ONE_CONNECTION,
        "CREATE TABLE u (v int); INSERT INTO u VALUES (1)",
    );
    let (mut client, mut other) = (stack.wire(), stack.wire());
    assert_eq!(client.value("SELECT sum(v) FROM u"), "1");
    let count = async |name| stack.helios.cache_count(name).await;
    let (ended, hits) = (count("invalidations").await, count("hits").await);
    for request in [
        vec![query("invalid sql")],
        vec![query("DELETE FROM u; invalid sql")],
        vec![step("invalid sql"), sync()],
    ] {
        let said = client.ask(&request);
        assert!(said.contains("E ERROR 42601"), "{said}");
        assert_eq!(other.value("SELECT random() < 2"), "t");
        assert_eq!(client.value("SELECT sum(v) FROM u"), "1");
    }
    assert_eq!(count("invalidations").await, ended);
    assert_eq!(count("hits").await, hits + 3);
    // What was done before it counts.
    client.run("BEGIN");
    client.run("INSERT INTO u VALUES (2)");
    client.query("invalid sql");
    client.run("ROLLBACK");
    assert!(count("invalidations").await > ended);
    let insert = "INSERT INTO u VALUES (3)";
    client.asks(2, &[step(insert), sync(), step("invalid sql"), sync()]);
    assert_eq!(client.value("SELECT sum(v) FROM u"), "4");
}
