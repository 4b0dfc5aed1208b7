//! Clients that leave, lines that break and messages that are none: what was asked for before is done, nobody else pays
//! for it, and no write is forgotten.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use heliosdb_testkit::PostgresCluster;

use crate::support::raw::{
    Wire, bind, copy_data, copy_done, execute, first_row, flush, parse, query, step, sync,
    terminate,
};
use crate::support::{Helios, Stack};

const ONE_CONNECTION: &str = "[pool]\nsize = 1\nacquire_timeout = \"5s\"\n";

const TABLES: &str = "CREATE TABLE u (id int, v int); INSERT INTO u VALUES (1, 0)";

const PROCESS: &str = "SELECT pg_backend_pid(), random() < 2";

/// Asks until the server has an answer with a row.
fn until_there(direct: &mut Wire, sql: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(row) = first_row(&direct.query(sql)) {
            return row;
        }
        assert!(Instant::now() < deadline, "never: {sql}");
    }
}

#[test]
fn a_client_that_leaves_in_a_statement_leaves_the_connection_to_others() {
    let stack = Stack::start_prepared(ONE_CONNECTION, TABLES);
    let mut direct = stack.wire_direct();
    let before = stack.wire().value(PROCESS);
    let slow = "SELECT pg_sleep(30)";
    for request in [
        vec![query(slow)],
        vec![step(slow), sync()],
        vec![step(slow)],
    ] {
        let mut leaver = stack.wire();
        leaver.send(&request);
        leaver.send(&[flush()]);
        until_there(
            &mut direct,
            "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'",
        );
        drop(leaver);
        assert_eq!(stack.wire().value(PROCESS), before);
    }
}

#[test]
fn answers_at_hand_are_sent_while_a_later_request_waits_for_a_connection() {
    let stack = Stack::start_prepared(ONE_CONNECTION, TABLES);
    let mut holder = stack.wire();
    let mut client = stack.wire();
    let answer = client.query("SELECT v FROM u");
    let at_hand = [
        vec![query("SELECT v FROM u")],
        vec![sync()],
        vec![query("SELECT v FROM u"), sync(), query("SELECT v FROM u")],
    ];
    for requests in at_hand {
        holder.run("BEGIN; SELECT random()");
        let n = requests.len();
        client.send(&requests);
        client.send(&[query("SELECT 'waited', random() < 2")]);
        let said = client.replies(n);
        assert!(said == "Z I\n" || said.starts_with(&answer), "{said}");
        // At once and in the same packet too.
        holder.run("COMMIT");
        assert!(client.replies(1).contains("D waited|t"));
        holder.run("BEGIN; SELECT random()");
        let whole = [requests, vec![query("SELECT 'waited', random() < 2")]].concat();
        client.send(&whole);
        assert_eq!(client.replies(n), said);
        holder.run("COMMIT");
        assert!(client.replies(1).contains("D waited|t"));
    }
}

#[test]
fn what_was_asked_for_before_a_goodbye_is_done_and_answered() {
    let stack = Stack::start_twice("[pool]\nsize = 2\n", TABLES);
    let insert = "INSERT INTO u SELECT 2, 0 FROM (SELECT pg_sleep(0.2)) s";
    let requests: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("nothing", vec![]),
        ("a read from the cache", vec![query("SELECT 1")]),
        ("a read", vec![query("SELECT 2, random() > 2")]),
        ("a write", vec![query(insert)]),
        ("a unit that writes", vec![step(insert), sync()]),
        (
            "a pipeline",
            vec![
                query("SELECT 1"),
                step(insert),
                sync(),
                query(insert),
                query("SELECT 1"),
            ],
        ),
        (
            "a transaction",
            ["BEGIN", insert, "COMMIT"].map(query).into(),
        ),
        (
            "a transaction that is left open",
            ["BEGIN", "INSERT INTO u VALUES (3, 0)"].map(query).into(),
        ),
        ("a unit without its Sync", vec![step(insert)]),
        ("an error", vec![query("SELECT 1/0"), query(insert)]),
        (
            "a copy",
            vec![
                query("COPY u FROM STDIN"),
                copy_data("4\t0\n"),
                copy_done(),
                query(insert),
            ],
        ),
    ];
    stack.wire().run("SELECT 1");
    let mut wrong = String::new();
    for (name, request) in &requests {
        for says_goodbye in [true, false] {
            let said = [stack.wire_twin(), stack.wire()].map(|mut client| {
                if says_goodbye {
                    client.send(&[request.concat(), terminate()]);
                } else {
                    client.send(request);
                    client.half_close();
                }
                client.rest()
            });
            // When both connections can be had, nothing of what was asked for is under way any more.
            let mut holders = [stack.wire(), stack.wire()];
            for holder in &mut holders {
                holder.run("BEGIN; SELECT random()");
            }
            let counts = [stack.wire_twin(), stack.wire_direct()]
                .map(|mut direct| direct.value("SELECT count(*) FROM u"));
            if said[0] != said[1] || counts[0] != counts[1] {
                wrong += &format!(
                    "{name}, Terminate: {says_goodbye}: {} rows and\n{}instead of {} rows and\n{}",
                    counts[1], said[1], counts[0], said[0]
                );
                // The next one begins with what is right.
                stack.psql("TRUNCATE u");
                stack.wire_twin().run("TRUNCATE u");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_unit_whose_client_left_before_its_sync_is_not_committed() {
    let stack = Stack::start_prepared(ONE_CONNECTION, TABLES);
    let unit = [step("INSERT INTO u VALUES (6, 0)"), flush()];
    for farewell in [vec![], vec![terminate()]] {
        let mut leaver = stack.wire();
        leaver.send(&unit);
        leaver.until(b'C');
        leaver.send(&farewell);
        drop(leaver);
        // The connection is free when that client's affairs are over.
        assert_eq!(stack.wire().value("SELECT count(*) FROM u"), "1");
    }
    let mut leaver = stack.wire();
    leaver.send(&[
        step("COPY u FROM STDIN"),
        copy_data("7\t0\n"),
        flush(),
        copy_done(),
        flush(),
    ]);
    leaver.until(b'C');
    drop(leaver);
    assert_eq!(stack.wire().value("SELECT count(*) FROM u"), "1");
}

#[test]
fn a_length_that_cannot_be_is_refused_at_once() {
    let stack = Stack::start_prepared(ONE_CONNECTION, TABLES);
    let before: [(&str, Vec<Vec<u8>>); 8] = [
        ("nothing", vec![]),
        ("a Parse", vec![parse("", "SELECT 1")]),
        (
            "the most of a unit",
            vec![parse("", "SELECT 1"), bind("", ""), execute("", 0)],
        ),
        (
            "a statement and its Parse",
            vec![step("SELECT 1"), parse("", "SELECT 2")],
        ),
        ("a Sync", vec![sync()]),
        ("a Parse that fails", vec![parse("", "SELEC 1")]),
        ("a transaction", vec![query("BEGIN; SELECT random()")]),
        ("a slow statement", vec![query("SELECT pg_sleep(0.1)")]),
    ];
    let lengths: [u32; 4] = [0, 3, 0x7fff_ffff, 0xffff_ffff];
    for (name, messages) in &before {
        for len in lengths {
            for tag in [b'B', b'Q', b'S'] {
                let bad = [&[tag][..], &len.to_be_bytes()].concat();
                let whole = [messages.concat(), bad].concat();
                for mut client in [stack.wire_direct(), stack.wire()] {
                    let started = Instant::now();
                    client.send(std::slice::from_ref(&whole));
                    let said = client.rest();
                    assert!(
                        started.elapsed() < Duration::from_secs(5),
                        "{name}, {len}: {said}"
                    );
                }
            }
        }
        // The server connection is not lost with it.
        assert!(
            stack
                .wire()
                .value("SELECT 'other', random() < 2")
                .contains("other")
        );
    }
}

/// A way to the server on which single lines can be cut: helios sees its end, the server does not.
struct Lines {
    port: u16,
    lines: Arc<Mutex<Vec<Line>>>,
}

struct Line {
    /// The port by which the server knows it.
    port: u16,
    near: TcpStream,
    far: TcpStream,
    is_cut: Arc<AtomicBool>,
}

impl Lines {
    fn to(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (Ok(near), Ok(far)) = (near, TcpStream::connect(("127.0.0.1", server))) else {
                    return;
                };
                let line = Line {
                    port: far.local_addr().expect("an address").port(),
                    near,
                    far,
                    is_cut: Arc::new(AtomicBool::new(false)),
                };
                line.carry();
                kept.lock().expect("not poisoned").push(line);
            }
        });
        Self { port, lines }
    }

    fn with(&self, port: u16, act: impl FnOnce(&Line)) {
        let lines = self.lines.lock().expect("not poisoned");
        act(lines.iter().find(|line| line.port == port).expect("a line"));
    }

    /// Helios is told that this line has ended.
    fn cut(&self, port: u16) {
        self.with(port, |line| {
            line.is_cut.store(true, Ordering::SeqCst);
            line.near.shutdown(Shutdown::Both).expect("shut down");
        });
    }

    /// The server is told, too.
    fn end(&self, port: u16) {
        self.with(port, |line| {
            line.far.shutdown(Shutdown::Both).expect("shut down");
        });
    }
}

impl Line {
    fn carry(&self) {
        let ends = || {
            let near = self.near.try_clone().expect("another handle");
            let far = self.far.try_clone().expect("another handle");
            (near, far, Arc::clone(&self.is_cut))
        };
        for (from_near, (near, far, is_cut)) in [(true, ends()), (false, ends())] {
            let (mut from, mut to) = if from_near { (near, far) } else { (far, near) };
            std::thread::spawn(move || {
                let mut buffer = [0; 16 << 10];
                while let Ok(len @ 1..) = from.read(&mut buffer) {
                    if to.write_all(&buffer[..len]).is_err() {
                        break;
                    }
                }
                if !is_cut.load(Ordering::SeqCst) {
                    let _ = to.shutdown(Shutdown::Both);
                }
            });
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_in_doubt_is_settled_when_its_process_is_gone_whatever_the_time_zone() {
    let cluster = PostgresCluster::start().expect("PostgreSQL starts");
    cluster.psql("postgres", TABLES).expect("made");
    let lines = Lines::to(cluster.port());
    let upstream = format!("postgres://postgres@127.0.0.1:{}/postgres", lines.port);
    let helios = Helios::start(&["--upstream", &upstream], "[pool]\nsize = 2\n");
    let stack = Stack { helios, cluster };
    const READ: &str = "SELECT v FROM u";
    let (mut direct, mut locker) = (stack.wire_direct(), stack.wire_direct());
    let mut writer = stack.wire();
    let mut reader = stack.wire_with(&[("TimeZone", "Asia/Tokyo")]);
    // Of the two connections one has the settings of the writer, and the other one those of the reader.
    writer.run("BEGIN; SELECT random()");
    assert_eq!(reader.value(READ), "0");
    writer.run("COMMIT");
    locker.run("SELECT pg_advisory_lock(9)");
    writer.send(&[query(
        "UPDATE u SET v = 77 FROM (SELECT pg_advisory_xact_lock(9)) s",
    )]);
    let port = until_there(
        &mut direct,
        "SELECT client_port FROM pg_stat_activity WHERE wait_event = 'advisory'",
    );
    let port = port.parse().expect("a port");
    lines.cut(port);
    assert!(writer.rest().contains("E FATAL"));
    // The write is under way, and nothing that is read is kept.
    for _ in 0..20 {
        assert_eq!(reader.value(READ), "0");
        reader.run("SELECT pg_sleep(0.02)");
    }
    // Whoever asks for the lock now gets it when the write is committed.
    locker.run("SELECT pg_advisory_unlock(9)");
    locker.run("SELECT pg_advisory_lock(9)");
    assert_eq!(direct.value(READ), "77");
    assert_eq!(reader.value(READ), "77");
    // Once the process is gone, the doubt is over.
    lines.end(port);
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let hits = stack.helios.cache_count("hits").await;
        for _ in 0..2 {
            assert_eq!(reader.value(READ), "77");
        }
        if stack.helios.cache_count("hits").await > hits {
            break;
        }
        assert!(Instant::now() < deadline, "nothing is kept any more");
    }
}
