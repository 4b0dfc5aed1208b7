//! What a client may ask of answers from memory: none, none that is older than it says, or the usual ones.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use heliosdb_testkit::PostgresCluster;

use crate::support::raw::{Wire, bind_with, execute, first_row, parse, step, sync};
use crate::support::{Helios, Stack};

const TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 10), (2, 20);
    CREATE SEQUENCE s;
    CREATE ROLE app; GRANT SELECT ON t TO app";

const READ: &str = "SELECT v FROM t WHERE id = 1";

fn asks(wire: &mut Wire, level: &str) {
    wire.run(&format!("SET helios.cache TO '{level}'"));
}

/// Asks until the answer is this one; panics where it never is.
fn until(wire: &mut Wire, sql: &str, expected: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while wire.value(sql) != expected {
        assert!(Instant::now() < deadline, "{sql} is never {expected}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_bounded_answer_outlives_writes_and_no_other_session_sees_it() {
    let stack = Stack::start_prepared("", TABLES);
    let (mut bounded, mut usual) = (stack.wire(), stack.wire());
    asks(&mut bounded, "ttl=1h");
    for read in [
        READ,
        "SELECT sum(v) FROM t",
        "SELECT v FROM t WHERE id = 1 AND now() > '2020-01-01'",
    ] {
        usual.run("UPDATE t SET v = 10 WHERE id = 1");
        let old = bounded.value(read);
        usual.run("UPDATE t SET v = 11 WHERE id = 1");
        assert_eq!(bounded.value(read), old, "{read}");
        assert_ne!(usual.value(read), old, "{read}");
        assert_eq!(usual.value(read), stack.wire_direct().value(read), "{read}");
        // Another session with the same bound shares it, one with another does not.
        let mut other = stack.wire_with(&[("helios.cache", "ttl=1h")]);
        assert_eq!(other.value(read), old, "{read}");
        asks(&mut other, "ttl=2h");
        assert_ne!(other.value(read), old, "{read}");
    }
}

#[test]
fn no_answer_is_older_than_its_bound() {
    let stack = Stack::start_prepared("", TABLES);
    let (mut bounded, mut writer) = (stack.wire(), stack.wire_direct());
    asks(&mut bounded, "ttl=150ms");
    let mut hits = 0;
    for value in 100..140 {
        writer.run(&format!("UPDATE t SET v = {value} WHERE id = 1"));
        let written = Instant::now();
        loop {
            let asked = Instant::now();
            let got = bounded.value(READ);
            if got == value.to_string() {
                break;
            }
            hits += 1;
            // The store's clock ticks every 10 ms.
            let age = asked.duration_since(written);
            assert!(
                age <= Duration::from_millis(160),
                "{got} after {age:?}, not {value}"
            );
        }
    }
    assert!(hits > 0, "nothing came from memory");
}

#[test]
fn an_old_answer_is_served_while_it_is_computed_anew() {
    let stack = Stack::start_prepared("", TABLES);
    let (mut bounded, mut writer) = (stack.wire(), stack.wire());
    for setting in ["SELECT 1", "SET DateStyle TO 'German'"] {
        bounded.run(setting);
        asks(&mut bounded, "ttl=50ms, stale=1h");
        let read = "SELECT v, date '2020-02-03' FROM t WHERE id = 1";
        writer.run("UPDATE t SET v = 10 WHERE id = 1");
        let old = bounded.value(read);
        writer.run("UPDATE t SET v = 11 WHERE id = 1");
        std::thread::sleep(Duration::from_millis(120));
        assert_eq!(bounded.value(read), old, "nobody waits for the new one");
        until(&mut bounded, read, &old.replace("10|", "11|"));
        // By the extended protocol too.
        let unit = || {
            [
                parse("", "SELECT v + $1::int FROM t WHERE id = 1"),
                bind_with("", "", &["1000"]),
                execute("", 0),
                sync(),
            ]
        };
        let old = bounded.ask(&unit());
        writer.run("UPDATE t SET v = 12 WHERE id = 1");
        std::thread::sleep(Duration::from_millis(120));
        assert_eq!(bounded.ask(&unit()), old);
        let deadline = Instant::now() + Duration::from_secs(20);
        while first_row(&bounded.ask(&unit())).as_deref() != Some("1012") {
            assert!(Instant::now() < deadline, "never computed anew");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn what_does_something_is_done_each_time() {
    let stack = Stack::start_prepared("", TABLES);
    let mut bounded = stack.wire();
    asks(&mut bounded, "ttl=1h, stale=1h");
    for n in 1..=3 {
        assert_eq!(bounded.value("SELECT nextval('s')"), n.to_string());
        let write = "WITH w AS (UPDATE t SET v = v + 1 WHERE id = 2 RETURNING v) SELECT v FROM w";
        assert_eq!(bounded.value(write), (20 + n).to_string());
        assert_eq!(bounded.value("SELECT pg_try_advisory_lock(7)"), "t");
        bounded.run("SELECT v FROM t WHERE id = 1 FOR UPDATE");
    }
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    assert_eq!(stack.wire_direct().value(locks), "1");
    for _ in 0..3 {
        bounded.run("SELECT pg_advisory_unlock(7)");
    }
    assert_eq!(stack.wire_direct().value(locks), "0");
}

#[test]
fn a_bounded_answer_is_for_one_question_under_one_set_of_settings() {
    let stack = Stack::start_prepared("", TABLES);
    let mut bounded = stack.wire();
    asks(&mut bounded, "ttl=1h");
    let day = "SELECT date '2020-02-03', current_user FROM t LIMIT 1";
    assert_eq!(bounded.value(day), "2020-02-03|postgres");
    bounded.run("SET DateStyle TO 'German'");
    assert_eq!(bounded.value(day), "03.02.2020|postgres");
    bounded.run("SET ROLE app");
    assert_eq!(bounded.value(day), "03.02.2020|app");
    bounded.run("RESET ROLE; RESET DateStyle");
    assert_eq!(bounded.value(day), "2020-02-03|postgres");
    let mut ask = |value: &str| {
        let unit = [
            parse("", "SELECT v, now() FROM t WHERE id = $1"),
            bind_with("", "", &[value]),
            execute("", 0),
            sync(),
        ];
        bounded.ask(&unit)
    };
    let (one, two) = (ask("1"), ask("2"));
    assert_ne!(one, two);
    assert_eq!((ask("1"), ask("2")), (one, two));
}

#[test]
fn nothing_comes_from_memory_where_the_client_says_so() {
    let stack = Stack::start_prepared("", TABLES);
    let (mut usual, mut off) = (stack.wire(), stack.wire());
    usual.run(READ);
    usual.run(READ);
    asks(&mut off, "off");
    // Written past helios, which can't know of it: the difference shows who asks the server.
    stack.psql("UPDATE t SET v = 77 WHERE id = 1");
    assert_eq!(off.value(READ), "77");
    assert_eq!(usual.value(READ), "10");
    assert_eq!(usual.value(&format!("/*+ nocache */ {READ}")), "77");
    let unit = usual.ask(&[step(&format!("/*+ nocache */ {READ}")), sync()]);
    assert_eq!(first_row(&unit).as_deref(), Some("77"));
    assert_eq!(usual.value(READ), "10");
    asks(&mut off, "on");
    assert_eq!(off.value(READ), "10");
}

#[test]
fn a_hint_is_for_its_statement_alone() {
    let stack = Stack::start_prepared("", TABLES);
    let (mut client, mut writer) = (stack.wire(), stack.wire());
    let hinted = format!("/*+ cache(ttl=1h) */ {READ}");
    assert_eq!(client.value(&hinted), "10");
    writer.run("UPDATE t SET v = 11 WHERE id = 1");
    assert_eq!(client.value(&hinted), "10");
    assert_eq!(client.value(READ), "11");
    // It goes over the session's own.
    asks(&mut client, "ttl=1h");
    assert_eq!(client.value(READ), "11");
    writer.run("UPDATE t SET v = 12 WHERE id = 1");
    assert_eq!(client.value(READ), "11");
    assert_eq!(client.value(&format!("/*+ cache(session) */ {READ}")), "12");
    assert_eq!(
        client.value(&format!("/*+ cache(nonsense) */ {READ}")),
        "12"
    );
}

#[test]
fn the_level_follows_the_setting() {
    let stack = Stack::start_prepared("", TABLES);
    let (mut client, mut writer) = (stack.wire(), stack.wire());
    let mut value = 100;
    let mut is_bounded = |client: &mut Wire| {
        let before = client.value(READ);
        value += 1;
        writer.run(&format!("UPDATE t SET v = {value} WHERE id = 1"));
        client.value(READ) == before
    };
    assert!(!is_bounded(&mut client));
    client.run("BEGIN");
    asks(&mut client, "ttl=1h");
    client.run("ROLLBACK");
    assert!(!is_bounded(&mut client), "rolled back");
    client.run("BEGIN; SET LOCAL helios.cache TO 'ttl=1h'; COMMIT");
    assert!(!is_bounded(&mut client), "local");
    asks(&mut client, "ttl=1h");
    assert!(is_bounded(&mut client));
    client.run("BEGIN");
    assert!(is_bounded(&mut client), "in a transaction");
    client.run("COMMIT");
    client.run("RESET helios.cache");
    assert!(!is_bounded(&mut client), "reset");
    client.run("SELECT set_config('helios.cache', 'ttl=1h', false)");
    assert!(is_bounded(&mut client), "set_config");
    client.run("DISCARD ALL");
    assert!(!is_bounded(&mut client), "discarded");
    let mut client = stack.wire_with(&[("options", "-c helios.cache=ttl=1h")]);
    assert!(is_bounded(&mut client), "options");
    client.run("RESET ALL");
    assert!(is_bounded(&mut client), "reset to what it began with");
}

#[test]
fn a_level_that_there_is_not_switches_memory_off_and_is_told() {
    let stack = Stack::start_prepared("", TABLES);
    let mut client = stack.wire();
    client.run(READ);
    client.run(READ);
    let told = stack
        .helios
        .psql("postgres", "SET helios.cache TO 'fast';\n");
    assert!(
        told.contains("WARNING:  invalid value for helios.cache"),
        "{told}"
    );
    asks(&mut client, "fast");
    stack.psql("UPDATE t SET v = 77 WHERE id = 1");
    assert_eq!(client.value(READ), "77");
}

#[test]
fn an_administrator_gives_statements_a_bound() {
    let stack = Stack::start_prepared("", TABLES);
    let mut console = Wire::connect(stack.helios.port, "helios", &[]);
    let (mut client, mut writer) = (stack.wire(), stack.wire());
    let made = console.query(&format!("CREATE CACHE one POLICY TTL 1 HOUR FROM {READ}"));
    assert!(made.starts_with("C CREATE CACHE"), "{made}");
    assert_eq!(client.value(READ), "10");
    assert_eq!(client.value("SELECT v FROM t WHERE id = 2"), "20");
    writer.run("UPDATE t SET v = v + 1");
    // Whatever the values; other statements are not concerned.
    assert_eq!(client.value(READ), "10");
    assert_eq!(
        client.value("select v from t where id = 2"),
        "21",
        "another text"
    );
    assert_eq!(client.value("SELECT v FROM t WHERE id = 2"), "20");
    assert_eq!(client.value("SELECT v FROM t ORDER BY id LIMIT 1"), "11");
    // A client that asks for more gets it.
    assert_eq!(client.value(&format!("/*+ cache(session) */ {READ}")), "11");
    let shown = console.query("SHOW CACHES");
    assert!(shown.contains("D one|3600|0|"), "{shown}");
    for (wrong, sqlstate) in [
        (
            format!("CREATE CACHE one POLICY TTL 1 HOUR FROM {READ} LIMIT 1"),
            "42710",
        ),
        (
            format!("CREATE CACHE two POLICY TTL 1 HOUR FROM {READ}"),
            "42710",
        ),
        (
            "CREATE CACHE POLICY TTL 1 HOUR FROM DELETE FROM t".to_owned(),
            "42601",
        ),
        (format!("CREATE CACHE FROM {READ}"), "42601"),
        ("DROP CACHE three".to_owned(), "42704"),
    ] {
        let shown = console.query(&wrong);
        assert!(
            shown.contains(&format!("E ERROR {sqlstate}")),
            "{wrong}: {shown}"
        );
    }
    assert!(console.query("DROP CACHE one").starts_with("C DROP CACHE"));
    assert_eq!(client.value(READ), "11");
}

#[test]
fn one_client_asks_for_all_that_wait() {
    let stack = Stack::start_prepared("[pool]\nsize = 8\n", TABLES);
    let slow = "SELECT count(*), current_timestamp FROM t, generate_series(1, 3000000)";
    let answers: Vec<String> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let mut client = stack.wire_with(&[("helios.cache", "ttl=1h")]);
                scope.spawn(move || client.value(slow))
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("answered"))
            .collect()
    });
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );
}

/// A server whose log is followed, and tables in a publication.
fn following() -> Stack {
    let cluster = PostgresCluster::builder()
        .setting("wal_level", "logical")
        .start()
        .expect("PostgreSQL starts");
    let tables = format!("{TABLES}; CREATE PUBLICATION helios FOR TABLE t");
    cluster.psql("postgres", &tables).expect("made");
    let upstream = cluster.url("postgres", "postgres");
    let config = "invalidation = \"replication\"\n";
    let helios = Helios::start(&["--upstream", &upstream], config);
    Stack { helios, cluster }
}

fn hits(stack: &Stack) -> u64 {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(stack.helios.cache_count("hits"))
}

#[test]
fn a_strict_answer_holds_what_anybody_has_committed() {
    let stack = following();
    let mut strict = stack.wire_with(&[("helios.cache", "strict")]);
    let mut writer = stack.wire_direct();
    let deadline = Instant::now() + Duration::from_secs(20);
    while hits(&stack) == 0 {
        assert!(Instant::now() < deadline, "nothing is cached");
        strict.run(READ);
    }
    for value in 100..200 {
        writer.run(&format!("UPDATE t SET v = {value} WHERE id = 1"));
        assert_eq!(strict.value(READ), value.to_string());
        let unit = strict.ask(&[step(READ), sync()]);
        assert_eq!(first_row(&unit), Some(value.to_string()));
        strict.run(&format!("/*+ cache(session) */ {READ}"));
    }
    // What nobody has changed comes from memory.
    let before = hits(&stack);
    while hits(&stack) < before + 10 {
        assert!(Instant::now() < deadline, "nothing is cached");
        strict.run(READ);
    }
}

#[test]
fn many_that_ask_strictly_at_once_miss_no_commit() {
    let stack = following();
    let committed = AtomicI32::new(10);
    let answered = AtomicI32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            let mut strict = stack.wire_with(&[("helios.cache", "strict")]);
            let (committed, answered) = (&committed, &answered);
            scope.spawn(move || {
                while committed.load(Ordering::SeqCst) < 300 {
                    let floor = committed.load(Ordering::SeqCst);
                    let got: i32 = strict.value(READ).parse().expect("a number");
                    assert!(got >= floor, "{got} after {floor} was committed");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut writer = stack.wire_direct();
        for value in 11..=300 {
            writer.run(&format!("UPDATE t SET v = {value} WHERE id = 1"));
            committed.store(value, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(
                u64::try_from(value % 7).expect("small"),
            ));
        }
    });
    assert!(answered.load(Ordering::Relaxed) > 100);
    assert!(hits(&stack) > 0, "nothing came from memory");
}
