//! Server connections: of a pool, of its reserve, and of a database or user in all pools together. Who waits is served, and
//! who waits in vain is told what for.

use heliosdb_testkit::PostgresCluster;

use crate::support::Stack;
use crate::support::raw::{Wire, query};

const DATABASE: &str = "shop";

/// A database with users of its own, so that nobody else's connections are counted.
fn start(config: &str) -> Stack {
    let cluster = PostgresCluster::builder();
    let config = format!("invalidation = \"wire\"\n{config}");
    let stack = Stack::start_with(cluster, &config);
    for sql in [
        "CREATE ROLE a LOGIN",
        "CREATE ROLE b LOGIN",
        "CREATE ROLE c LOGIN",
        "CREATE DATABASE shop",
        "CREATE DATABASE store",
    ] {
        stack.psql(sql);
    }
    stack
}

fn client(stack: &Stack, user: &str, database: &str) -> Wire {
    Wire::login(stack.helios.port, user, database, &[]).unwrap_or_else(|told| panic!("{told}"))
}

/// Holds a server connection until its transaction ends.
fn holding(stack: &Stack, user: &str, database: &str) -> Wire {
    let mut client = client(stack, user, database);
    client.run("BEGIN");
    client.run("SELECT txid_current()");
    client
}

/// Connections that the server has for helios where this is true.
fn server_connections(direct: &mut Wire, filter: &str) -> usize {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND {filter}"
    );
    direct.value(&sql).parse().expect("a number")
}

#[test]
fn users_share_the_connections_of_a_database_and_nobody_waits_for_what_is_idle() {
    let stack =
        start("[pool]\nmax_per_database = 2\nmax_per_user = 3\nacquire_timeout = \"20s\"\n");
    let mut direct = stack.wire_direct();
    let mut clients: Vec<_> = ["a", "b", "c"]
        .map(|user| client(&stack, user, DATABASE))
        .into();
    for _ in 0..3 {
        for client in &mut clients {
            client.run("SELECT pg_backend_pid()");
            assert!(server_connections(&mut direct, "datname = 'shop'") <= 2);
        }
    }
    // One who waits gets what comes back first, of whatever pool.
    let mut held = [
        holding(&stack, "a", DATABASE),
        holding(&stack, "b", DATABASE),
    ];
    clients[2].send(&[query("SELECT 'served'")]);
    held[1].run("COMMIT");
    assert!(clients[2].replies(1).contains("served"));
    held[0].run("COMMIT");
    assert!(server_connections(&mut direct, "datname = 'shop'") <= 2);
}

#[test]
fn a_user_shares_its_connections_among_its_databases() {
    let stack = start("[users.a]\nmax_connections = 1\n");
    let mut direct = stack.wire_direct();
    let mut shop = client(&stack, "a", "shop");
    let mut store = client(&stack, "a", "store");
    for _ in 0..3 {
        for client in [&mut shop, &mut store] {
            client.run("SELECT pg_backend_pid()");
            assert_eq!(server_connections(&mut direct, "usename = 'a'"), 1);
        }
    }
}

#[test]
fn who_waits_in_vain_is_told_which_bound_it_was_and_a_reload_raises_it() {
    let stack = start("[pool]\nmax_per_database = 1\nacquire_timeout = \"500ms\"\n");
    let mut waits = client(&stack, "b", DATABASE);
    waits.run("SELECT 1 AS known");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let told_in_full = runtime.block_on(stack.helios.client("b", DATABASE));
    let mut holds = holding(&stack, "a", DATABASE);
    let asked = told_in_full.simple_query("SELECT pg_backend_pid()");
    let error = runtime.block_on(asked).expect_err("none is free");
    let error = error.as_db_error().expect("told").clone();
    assert_eq!(error.code().code(), "53300");
    let (message, hint) = (error.message(), error.hint().unwrap_or_default());
    assert!(
        message.ends_with("all 1 of database \"shop\" are in use"),
        "{message}"
    );
    assert!(hint.contains("`pool.max_per_database`"), "{hint}");
    // The session goes on.
    assert!(
        waits
            .query("SELECT pg_backend_pid()")
            .contains("E ERROR 53300")
    );

    let file = stack.helios.folder().join("helios.toml");
    std::fs::write(
        file,
        "invalidation = \"wire\"\n[pool]\nmax_per_database = 2\n",
    )
    .expect("written");
    stack.helios.signal("HUP");
    // The bound on waiting takes a restart: ask until the other one is raised.
    while waits
        .query("SELECT pg_backend_pid()")
        .contains("E ERROR 53300")
    {}
    holds.run("COMMIT");
}

#[test]
fn a_pool_that_is_full_of_waiting_clients_gives_up_to_one_that_has_nothing() {
    let stack = start("[pool]\nsize = 4\nmax_per_database = 4\nacquire_timeout = \"60s\"\n");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Three times as many as there are connections, without a pause.
        for _ in 0..12 {
            let mut busy = client(&stack, "a", DATABASE);
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    busy.run("SELECT pg_sleep(0.01)");
                }
            });
        }
        let mut other = client(&stack, "b", DATABASE);
        for _ in 0..5 {
            other.run("SELECT pg_sleep(0.001)");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let mut direct = stack.wire_direct();
    assert!(server_connections(&mut direct, "datname = 'shop'") <= 4);
}

#[test]
fn the_reserve_serves_those_who_have_waited_and_goes() {
    let stack = start("[pool]\nsize = 1\nreserve_size = 1\nreserve_timeout = \"200ms\"\n");
    let mut direct = stack.wire_direct();
    let mut first = holding(&stack, "a", DATABASE);
    let mut second = holding(&stack, "a", DATABASE);
    assert_eq!(server_connections(&mut direct, "usename = 'a'"), 2);
    let mut third = client(&stack, "a", DATABASE);
    third.send(&[query("SELECT 'served'")]);
    second.run("COMMIT");
    assert!(third.replies(1).contains("served"));
    first.run("COMMIT");
    while server_connections(&mut direct, "usename = 'a'") > 1 {}
    first.run("SELECT pg_backend_pid()");
    assert_eq!(server_connections(&mut direct, "usename = 'a'"), 1);
}

#[test]
fn what_is_kept_ready_makes_room_for_who_waits_and_comes_back() {
    let stack =
        start("[pool]\nmin_idle = 1\nmax_per_database = 2\nhealth_check_interval = \"1s\"\n");
    let mut direct = stack.wire_direct();
    let mut users = ["a", "b", "c"].map(|user| client(&stack, user, DATABASE));
    for _ in 0..2 {
        for user in &mut users {
            user.run("SELECT pg_backend_pid()");
            assert!(server_connections(&mut direct, "datname = 'shop'") <= 2);
        }
    }
    drop(users);
    // Two of the three pools have one.
    while server_connections(&mut direct, "datname = 'shop'") != 2 {}
}
