//! The admin console: PgBouncer's commands, its columns in its order, and what they do. `pause.rs` has those that hold
//! requests up.

use std::collections::BTreeMap;
use std::time::Duration;

use heliosdb_testkit::PostgresCluster;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::raw::{Wire, parse, sync, terminate};
use crate::support::{Helios, Stack, connect, until};

type Row = BTreeMap<String, String>;

async fn rows(console: &Client, command: &str) -> Vec<Row> {
    let messages = console.simple_query(command).await.expect(command);
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.map(|row| {
        let columns = row.columns().iter().enumerate();
        columns
            .map(|(at, column)| {
                let value = row.get(at).unwrap_or("NULL").to_owned();
                (column.name().to_owned(), value)
            })
            .collect()
    })
    .collect()
}

/// Names and types of the columns of an answer.
fn columns(console: &mut Wire, command: &str) -> Vec<(String, u32)> {
    console.send(&[crate::support::raw::query(command)]);
    let messages = console.messages();
    let description = messages
        .iter()
        .find(|message| message.first() == Some(&b'T'))
        .unwrap_or_else(|| panic!("{command} has no table"));
    let mut rest = &description[7..];
    let mut columns = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == 0).expect("ended");
        let name = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 1..];
        let oid = u32::from_be_bytes(rest[6..10].try_into().expect("there"));
        columns.push((name, oid));
        rest = &rest[18..];
    }
    columns
}

async fn code(client: &Client, command: &str) -> (String, String) {
    let error = client.simple_query(command).await.expect_err(command);
    let error = error.as_db_error().expect("the console's");
    (error.code().code().to_owned(), error.message().to_owned())
}

/// What scripts and exporters read: of PgBouncer 1.25, each with the letter of its type (s text, i int4, q int8, N numeric).
const COLUMNS: [(&str, &str, &str); 18] = [
    (
        "DATABASES",
        "ssissiiiissiiiiii",
        "name host port database force_user pool_size min_pool_size reserve_pool_size server_lifetime pool_mode \
         load_balance_hosts max_connections current_connections max_client_connections current_client_connections \
         paused disabled",
    ),
    (
        "POOLS",
        "ssiiiiiiiiiiiiiss",
        "database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active sv_active_cancel \
         sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode load_balance_hosts",
    ),
    ("CLIENTS", "ssssssisissiiississii", SOCKET),
    ("SERVERS", "ssssssisissiiississii", SOCKET),
    ("SOCKETS", "ssssssisissiiississii", SOCKET),
    ("ACTIVE_SOCKETS", "ssssssisissiiississii", SOCKET),
    (
        "USERS",
        "ssssiiii",
        "name pool_size reserve_pool_size pool_mode max_user_connections current_connections \
         max_user_client_connections current_client_connections",
    ),
    (
        "STATS",
        "sNNNNNNNNNNNNNNNNNNNNNNNN",
        "database total_server_assignment_count total_xact_count total_query_count total_received total_sent \
         total_xact_time total_query_time total_wait_time total_client_parse_count total_server_parse_count \
         total_bind_count total_client_login_count avg_server_assignment_count avg_xact_count avg_query_count avg_recv \
         avg_sent avg_xact_time avg_query_time avg_wait_time avg_client_parse_count avg_server_parse_count \
         avg_bind_count avg_client_login_count",
    ),
    (
        "STATS_TOTALS",
        "sNNNNNNNNNNNN",
        "database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time \
         wait_time client_parse_count server_parse_count bind_count client_login_count",
    ),
    (
        "STATS_AVERAGES",
        "sNNNNNNNNNNNN",
        "database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time \
         wait_time avg_client_parse_count avg_server_parse_count avg_bind_count avg_client_login_count",
    ),
    ("TOTALS", "sN", "name value"),
    ("LISTS", "si", "list items"),
    ("STATE", "ss", "key value"),
    ("CONFIG", "ssss", "key value default changeable"),
    ("DNS_HOSTS", "sqs", "hostname ttl addrs"),
    ("DNS_ZONES", "sqi", "zonename serial count"),
    ("PEERS", "isii", "peer_id host port pool_size"),
    (
        "PEER_POOLS",
        "iiiii",
        "peer_id cl_active_cancel_req cl_waiting_cancel_req sv_active_cancel sv_login",
    ),
];

const SOCKET: &str = "type user database replication state addr port local_addr local_port connect_time request_time \
     wait wait_us close_needed ptr link remote_pid tls application_name prepared_statements id";

#[tokio::test]
async fn tables_begin_with_the_columns_of_pgbouncer() {
    let stack = Stack::start();
    let client = stack.client().await;
    client.batch_execute("SELECT 1").await.expect("asked");
    for database in ["pgbouncer", "helios"] {
        let mut console = Wire::connect(stack.helios.port, database, &[]);
        for (table, types, names) in COLUMNS {
            let shown = columns(&mut console, &format!("SHOW {table}"));
            let expected = names.split_whitespace().zip(types.chars());
            for (at, (name, kind)) in expected.enumerate() {
                // Whether a number has four bytes or eight is one to scripts.
                let oids: &[u32] = match kind {
                    'i' | 'q' => &[23, 20],
                    'N' => &[1700],
                    _ => &[25],
                };
                assert_eq!(shown[at].0, name, "SHOW {table}, column {at}");
                assert!(
                    oids.contains(&shown[at].1),
                    "SHOW {table}.{name}: {}",
                    shown[at].1
                );
            }
        }
        for table in [
            "HELP",
            "VERSION",
            "MEM",
            "CACHE",
            "STATEMENTS",
            "ADVICE",
            "INVALIDATION",
        ] {
            assert!(
                !columns(&mut console, &format!("show {table};")).is_empty(),
                "{table}"
            );
        }
    }
}

#[tokio::test]
async fn clients_servers_and_pools_are_told_as_they_are() {
    let stack = Stack::start();
    let console = stack.helios.client("admin", "pgbouncer").await;
    let busy = stack.client().await;
    let idle = stack.client().await;
    idle.batch_execute("SELECT 1").await.expect("asked");
    busy.batch_execute("BEGIN; CREATE TABLE t ()")
        .await
        .expect("begun");
    let prepared = busy.prepare("SELECT $1::int4").await.expect("prepared");
    busy.query(&prepared, &[&1]).await.expect("run");

    let clients = rows(&console, "SHOW CLIENTS").await;
    assert_eq!(clients.len(), 3);
    let of = |database: &str, state: &str| {
        clients
            .iter()
            .find(|row| row["database"] == database && row["state"] == state)
            .unwrap_or_else(|| panic!("no {state} client of {database} in {clients:?}"))
    };
    let (active, _) = (of("postgres", "active"), of("postgres", "idle"));
    assert_eq!(of("pgbouncer", "active")["user"], "admin");
    assert_eq!((&*active["type"], &*active["addr"]), ("C", "127.0.0.1"));

    let servers = rows(&console, "SHOW SERVERS").await;
    let linked = servers
        .iter()
        .find(|row| row["state"] == "active")
        .expect("one is lent");
    assert_eq!(linked["ptr"], active["link"]);
    assert_eq!(linked["link"], active["ptr"]);
    let pid: i32 = busy
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .expect("pid")
        .get(0);
    assert_eq!(linked["remote_pid"], pid.to_string());
    assert_eq!(linked["port"], stack.cluster.port().to_string());
    // No two of all have the same id.
    let sockets = rows(&console, "SHOW SOCKETS").await;
    let mut ids: Vec<&str> = sockets.iter().map(|row| &*row["id"]).collect();
    assert_eq!(ids.len(), clients.len() + servers.len());
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), sockets.len());

    let pools = rows(&console, "SHOW POOLS").await;
    assert_eq!(pools.len(), 1);
    assert_eq!(
        (&*pools[0]["cl_active"], &*pools[0]["sv_active"]),
        ("2", "1")
    );
    assert_eq!(pools[0]["pool_mode"], "transaction");
    let lists = rows(&console, "SHOW LISTS").await;
    let count =
        |name: &str| lists.iter().find(|row| row["list"] == name).expect(name)["items"].clone();
    assert_eq!((&*count("used_clients"), &*count("pools")), ("3", "1"));
}

#[tokio::test]
async fn what_went_through_is_counted_by_database() {
    let stack = Stack::start();
    stack
        .direct()
        .await
        .batch_execute("CREATE DATABASE other")
        .await
        .expect("made");
    let (one, other) = (
        stack.client().await,
        stack.helios.client("postgres", "other").await,
    );
    for _ in 0..3 {
        one.batch_execute("SELECT pg_sleep(0.01)")
            .await
            .expect("slept");
    }
    one.batch_execute("BEGIN; CREATE TABLE t (); COMMIT")
        .await
        .expect("made");
    let prepared = other
        .prepare("SELECT $1::int4, now()")
        .await
        .expect("prepared");
    for n in 0..4 {
        other.query(&prepared, &[&n]).await.expect("run");
    }
    // Also those of clients that have left.
    drop(other);
    let console = stack.helios.client("postgres", "pgbouncer").await;
    until("the client has left", || async {
        rows(&console, "SHOW CLIENTS").await.len() == 2
    })
    .await;
    let stats = rows(&console, "SHOW STATS").await;
    let of = |database: &str, name: &str| -> u64 {
        let row = stats.iter().find(|row| row["database"] == database);
        row.expect(database)[name].parse().expect("a number")
    };
    assert_eq!(of("postgres", "total_client_login_count"), 1);
    assert_eq!(of("postgres", "total_query_count"), 4);
    assert_eq!(of("postgres", "total_xact_count"), 4);
    assert_eq!(of("postgres", "total_server_assignment_count"), 4);
    assert!(of("postgres", "total_query_time") >= 30_000, "{stats:?}");
    assert!(of("postgres", "total_xact_time") >= of("postgres", "total_query_time"));
    assert_eq!(of("other", "total_client_parse_count"), 1);
    assert_eq!(of("other", "total_bind_count"), 4);
    assert!(of("other", "total_received") > 0 && of("other", "total_sent") > 0);
    let totals = rows(&console, "SHOW TOTALS").await;
    let total =
        |name: &str| totals.iter().find(|row| row["name"] == name).expect(name)["value"].clone();
    let queries = of("postgres", "total_query_count") + of("other", "total_query_count");
    assert_eq!(total("total_query_count"), queries.to_string());
    assert_eq!(total("queries"), queries.to_string());
}

#[tokio::test]
async fn databases_and_users_are_told_with_their_limits() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let config = format!(
        "[databases.d]\nurl = \"{}\"\npool_size = 3\nreserve_size = 2\nmax_connections = 7\nmax_clients = 8\n\
         pool_mode = \"session\"\n[databases.e]\nurl = \"postgres://127.0.0.1:{}/postgres\"\n\
         [users.u]\npool_size = 5\n[users.v]\npool_mode = \"statement\"\n",
        cluster.url("postgres", "postgres"),
        cluster.port()
    );
    let helios = Helios::start(&[], &config);
    let console = helios.client("postgres", "pgbouncer").await;
    let client = helios.client("anybody", "d").await;
    client.batch_execute("SELECT 1").await.expect("asked");
    let databases = rows(&console, "SHOW DATABASES").await;
    let names: Vec<&str> = databases.iter().map(|row| &*row["name"]).collect();
    assert_eq!(names, ["d", "e", "pgbouncer"]);
    let expected = [
        ("database", "postgres"),
        ("force_user", "postgres"),
        ("pool_size", "3"),
        ("reserve_pool_size", "2"),
        ("pool_mode", "session"),
        ("max_connections", "7"),
        ("current_connections", "1"),
        ("max_client_connections", "8"),
        ("current_client_connections", "1"),
        ("paused", "0"),
        ("disabled", "0"),
    ];
    for (column, value) in expected {
        assert_eq!(databases[0][column], value, "{column}");
    }
    assert_eq!(
        (&*databases[1]["force_user"], &*databases[1]["pool_mode"]),
        ("NULL", "NULL")
    );
    let users = rows(&console, "SHOW USERS").await;
    let of = |name: &str| users.iter().find(|row| row["name"] == name).expect(name);
    assert_eq!(of("u")["pool_size"].trim(), "5");
    assert_eq!(
        (&*of("v")["pool_size"], &*of("v")["pool_mode"]),
        ("", "statement")
    );
    assert_eq!(of("anybody")["current_client_connections"], "1");
    assert_eq!(of("postgres")["current_connections"], "1");
}

#[tokio::test]
async fn a_disabled_database_lets_nobody_in() {
    let stack = Stack::start();
    let console = stack.helios.client("postgres", "pgbouncer").await;
    let client = stack.client().await;
    console
        .batch_execute("DISABLE postgres")
        .await
        .expect("disabled");
    assert_eq!(rows(&console, "SHOW DATABASES").await[0]["disabled"], "1");
    let config = format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres",
        stack.helios.port
    );
    let refused = tokio_postgres::connect(&config, tokio_postgres::NoTls)
        .await
        .err()
        .expect("refused");
    let refused = refused
        .as_db_error()
        .expect("helios's")
        .message()
        .to_owned();
    assert_eq!(refused, "database \"postgres\" is disabled");
    // Who is in stays in.
    client.batch_execute("SELECT 1").await.expect("asked");
    console
        .batch_execute("ENABLE postgres")
        .await
        .expect("enabled");
    stack
        .client()
        .await
        .batch_execute("SELECT 1")
        .await
        .expect("asked");
}

#[tokio::test]
async fn a_kill_ends_the_clients_that_are_meant() {
    let stack = Stack::start();
    let console = stack.helios.client("postgres", "pgbouncer").await;
    let (one, two) = (stack.client().await, stack.client().await);
    one.batch_execute("BEGIN; CREATE TABLE t ()")
        .await
        .expect("begun");
    let clients = rows(&console, "SHOW CLIENTS").await;
    let is_busy = |row: &&Row| row["database"] == "postgres" && row["state"] == "active";
    let busy = clients.iter().find(is_busy).expect("one").clone();
    console
        .batch_execute(&format!("KILL_CLIENT {}", busy["id"]))
        .await
        .expect("ended");
    assert_eq!(rows(&console, "SHOW CLIENTS").await.len(), 2);
    assert!(one.batch_execute("SELECT 1").await.is_err());
    two.batch_execute("SELECT 1")
        .await
        .expect("the other goes on");

    let left = rows(&console, "SHOW CLIENTS").await;
    let left = left
        .iter()
        .find(|row| row["database"] == "postgres")
        .expect("one");
    console
        .batch_execute(&format!("KILL_CLIENT {}", left["ptr"]))
        .await
        .expect("ended by its address");
    assert!(two.batch_execute("SELECT 1").await.is_err());
    for (argument, message) in [
        ("1000000", "client not found"),
        ("x", "invalid client pointer supplied"),
    ] {
        let told = code(&console, &format!("KILL_CLIENT {argument}")).await;
        assert_eq!(told, ("08P01".to_owned(), message.to_owned()));
    }

    let three = stack.client().await;
    three
        .batch_execute("BEGIN; CREATE TABLE t ()")
        .await
        .expect("begun");
    console.batch_execute("KILL").await.expect("killed");
    assert_eq!(rows(&console, "SHOW CLIENTS").await.len(), 1);
    assert!(three.batch_execute("COMMIT").await.is_err());
    assert_eq!(rows(&console, "SHOW DATABASES").await[0]["paused"], "1");
    console.batch_execute("RESUME").await.expect("resumed");
    stack
        .client()
        .await
        .batch_execute("CREATE TABLE t ()")
        .await
        .expect("it was rolled back");
}

#[tokio::test]
async fn a_reconnect_replaces_connections_as_they_become_free() {
    let stack = Stack::start();
    let console = stack.helios.client("postgres", "pgbouncer").await;
    let client = stack.client().await;
    let pid = async || -> i32 {
        let rows = client
            .query("SELECT pg_backend_pid(), random()", &[])
            .await
            .expect("asked");
        rows[0].get(0)
    };
    let first = pid().await;
    client
        .batch_execute("BEGIN; CREATE TABLE t ()")
        .await
        .expect("begun");
    console
        .batch_execute("RECONNECT postgres")
        .await
        .expect("begun");
    // The transaction has its connection to the end.
    assert_eq!(pid().await, first);
    let servers = rows(&console, "SHOW SERVERS").await;
    assert_eq!(servers[0]["close_needed"], "1");
    let waiting = stack.helios.client("postgres", "pgbouncer").await;
    let waited = tokio::spawn(async move { waiting.batch_execute("WAIT_CLOSE").await });
    // Others are served meanwhile, and the console answers.
    stack
        .client()
        .await
        .batch_execute("SELECT 1")
        .await
        .expect("asked");
    rows(&console, "SHOW STATE").await;
    assert!(!waited.is_finished());
    client.batch_execute("COMMIT").await.expect("committed");
    waited.await.expect("no panic").expect("closed");
    assert_ne!(pid().await, first);
    let servers = rows(&console, "SHOW SERVERS").await;
    assert!(
        servers.iter().all(|row| row["close_needed"] == "0"),
        "{servers:?}"
    );
}

#[tokio::test]
async fn with_fast_close_a_session_ends_with_the_transaction_after_which_its_connection_is_closed()
{
    let stack = Stack::start_with(
        PostgresCluster::builder(),
        "[pool]\nmode = \"session\"\nfast_close = true\n",
    );
    let console = stack.helios.client("postgres", "pgbouncer").await;
    let login = || Wire::login(stack.helios.port, "postgres", "postgres", &[]).expect("let in");
    let (mut idle, mut busy, mut without) = (login(), login(), login());
    let pid = idle.value("SELECT pg_backend_pid()");
    busy.query("BEGIN");
    busy.query("CREATE TABLE kept ()");
    console.batch_execute("RECONNECT").await.expect("begun");
    let told = "E FATAL 57P01 terminating connection because its server connection is to be closed\nthe end\n";
    assert_eq!(idle.rest(), told);
    // What was begun is brought to its end first.
    assert_eq!(busy.query("COMMIT"), "C COMMIT\nZ I\n");
    assert_eq!(busy.rest(), told);
    let direct = stack.direct().await;
    direct
        .query("SELECT FROM kept", &[])
        .await
        .expect("it is there");
    // Who had no connection gets a new one.
    let new = without.value("SELECT pg_backend_pid()");
    assert_ne!(new, pid);
    // Sessions that could have another connection at any time have no part in it.
    console
        .batch_execute("SET pool_mode = 'transaction'")
        .await
        .expect("set");
    let mut client = login();
    client.query("BEGIN");
    console.batch_execute("RECONNECT").await.expect("begun");
    client.query("COMMIT");
    assert_eq!(client.value("SELECT 'served'"), "served");
    assert_eq!(without.rest(), told);
}

#[tokio::test]
async fn settings_are_changed_until_the_next_reload() {
    let stack = Stack::start();
    let console = stack.helios.client("postgres", "pgbouncer").await;
    let value = async |key: &str| {
        let config = rows(&console, "SHOW CONFIG").await;
        config.iter().find(|row| row["key"] == key).expect(key)["value"].clone()
    };
    for (command, key, expected) in [
        ("SET default_pool_size = 3", "pool.size", "3"),
        ("set pool.size='4'", "default_pool_size", "4"),
        ("SET pool_mode TO statement;", "pool.mode", "statement"),
        ("SET \"pool.mode\" = 'session'", "pool_mode", "session"),
        ("SET query_timeout=2", "clients.query_timeout", "2s"),
        ("SET cache.enabled = false", "cache.enabled", "false"),
    ] {
        console.batch_execute(command).await.expect(command);
        assert_eq!(value(key).await, expected, "{command}");
    }
    for command in [
        "SET no_such_key = 1",
        "SET default_pool_size = many",
        "SET pool.size = 0",
        "SET listen_port = 1",
        "SET threads = 3",
    ] {
        assert_eq!(
            code(&console, command).await,
            ("08P01".to_owned(), "SET failed".to_owned())
        );
    }
    // What drivers set at the start of every connection.
    console
        .batch_execute("SET client_encoding = 'UTF8'")
        .await
        .expect("ignored");
    console.batch_execute("RELOAD").await.expect("reloaded");
    assert_eq!(
        (&*value("pool.size").await, &*value("pool.mode").await),
        ("20", "transaction")
    );
    std::fs::write(stack.helios.folder().join("helios.toml"), "pool = 1").expect("written");
    let (sqlstate, message) = code(&console, "RELOAD").await;
    assert_eq!(
        (&*sqlstate, &*message),
        ("F0000", "RELOAD failed, see logs for additional details")
    );
    assert_eq!(value("pool.size").await, "20");
}

#[tokio::test]
async fn what_is_not_understood_is_refused_and_the_console_goes_on() {
    let stack = Stack::start();
    let console = stack.helios.client("postgres", "pgbouncer").await;
    for command in [
        "NONSENSE",
        "SHOW NONSENSE",
        "PAUSE a b",
        "SHUTDOWN NOW",
        "SET",
        "SELECT 1",
    ] {
        let (sqlstate, message) = code(&console, command).await;
        assert_eq!(sqlstate, "08P01", "{command}");
        assert!(message.starts_with("invalid command '"), "{message}");
    }
    for (command, message) in [
        ("DISABLE", "a database is required"),
        ("PAUSE pgbouncer", "cannot pause admin db: pgbouncer"),
        ("RESUME", "pooler is not paused/suspended"),
        ("RESUME postgres", "database postgres is not paused"),
    ] {
        assert_eq!(
            code(&console, command).await,
            ("08P01".to_owned(), message.to_owned())
        );
    }
    assert_eq!(code(&console, "SHOW FDS").await.0, "0A000");
    let mut wire = Wire::connect(stack.helios.port, "pgbouncer", &[]);
    let refused = wire.ask(&[parse("", "SHOW STATE"), sync()]);
    assert!(
        refused.contains("extended query protocol not supported by admin console"),
        "{refused}"
    );
    assert!(!wire.query("SHOW STATE").contains("08P01"));
}

#[test]
fn who_has_left_is_not_listed() {
    let stack = Stack::start_prepared("threads = 1\n", "");
    for round in 0..200 {
        let mut console = Wire::connect(stack.helios.port, "pgbouncer", &[]);
        let shown = console.query("SHOW CLIENTS");
        let listed = shown.lines().filter(|line| line.starts_with("D ")).count();
        assert_eq!(listed, 1, "round {round}: {shown}");
        console.send(&[terminate()]);
    }
}

// The process is waited for in this thread.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_waits_for_what_it_is_told_to() {
    let mut stack = Stack::start();
    let console = stack.helios.client("postgres", "pgbouncer").await;
    let client = stack.client().await;
    console
        .batch_execute("SHUTDOWN WAIT_FOR_CLIENTS")
        .await
        .expect("begun");
    let port = stack.helios.port;
    until("nobody is let in", || async {
        tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_err()
    })
    .await;
    client
        .batch_execute("CREATE TABLE t ()")
        .await
        .expect("who is in goes on");
    assert_eq!(code(&console, "RESUME").await.1, "pooler is shutting down");
    drop(client);
    assert!(
        stack
            .helios
            .wait(Duration::from_secs(20))
            .is_some_and(|status| status.success())
    );

    let mut helios = Helios::start(
        &["--upstream", &stack.cluster.url("postgres", "postgres")],
        "",
    );
    let console = helios.client("postgres", "pgbouncer").await;
    let (busy, idle) = (
        helios.client("postgres", "postgres").await,
        helios.client("postgres", "postgres").await,
    );
    busy.batch_execute("BEGIN; CREATE TABLE u ()")
        .await
        .expect("begun");
    console
        .batch_execute("SHUTDOWN WAIT_FOR_SERVERS")
        .await
        .expect("begun");
    assert!(idle.batch_execute("SELECT 1").await.is_err());
    busy.batch_execute("INSERT INTO u DEFAULT VALUES; COMMIT")
        .await
        .expect("who is at it goes on");
    assert!(
        helios
            .wait(Duration::from_secs(20))
            .is_some_and(|status| status.success())
    );
    let direct = connect(stack.cluster.port(), "postgres", "postgres").await;
    direct
        .batch_execute("SELECT * FROM u")
        .await
        .expect("committed");

    let mut helios = Helios::start(
        &["--upstream", &stack.cluster.url("postgres", "postgres")],
        "",
    );
    let console = helios.client("postgres", "pgbouncer").await;
    let busy = helios.client("postgres", "postgres").await;
    busy.batch_execute("BEGIN; CREATE TABLE v ()")
        .await
        .expect("begun");
    let _ = console.batch_execute("SHUTDOWN").await;
    assert!(helios.wait(Duration::from_secs(20)).is_some());
    assert!(busy.batch_execute("COMMIT").await.is_err());
}
