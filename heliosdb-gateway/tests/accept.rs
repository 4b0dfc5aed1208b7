//! Clients that are not in yet: more than there are descriptors for, slow ones, and those who send nonsense. None of them
//! keeps others out for long, and each that speaks the protocol is told why it is refused.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use heliosdb_testkit::PostgresCluster;

use crate::support::raw::Wire;
use crate::support::{Helios, Stack};

fn connect(helios: &Helios) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", helios.port)).expect("connected");
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("set");
    stream
}

/// What comes until helios ends the connection.
fn told(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("ended in order");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn without_descriptors_clients_are_told_so_and_with_some_they_are_let_in_again() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let upstream = cluster.url("postgres", "postgres");
    let helios =
        Helios::start_with_files(64, &["--upstream", &upstream], "invalidation = \"wire\"\n");
    let mut inside = Vec::new();
    let refused = loop {
        match Wire::login(helios.port, "postgres", "postgres", &[]) {
            Ok(client) => inside.push(client),
            Err(told) => break told,
        }
        assert!(inside.len() < 64);
    };
    assert_eq!(
        refused,
        "E FATAL 53300 sorry, too many clients: helios has no file descriptors left\nthe end\n"
    );
    for _ in 0..3 {
        let again = Wire::login(helios.port, "postgres", "postgres", &[]);
        assert!(again.is_err_and(|told| told.starts_with("E FATAL 53300")));
    }
    // Those that are in go on.
    for client in &mut inside {
        assert_eq!(client.value("SELECT 'there'"), "there");
    }
    drop(inside.split_off(10));
    let let_in = (0..100).find_map(|_| Wire::login(helios.port, "postgres", "postgres", &[]).ok());
    assert!(let_in.is_some());
}

#[test]
fn who_takes_too_long_over_a_login_is_sent_away_and_keeps_nobody_waiting() {
    let config = "[clients]\nmax = 20\nlogin_timeout = \"700ms\"\n";
    let stack = Stack::start_with(PostgresCluster::builder(), config);
    let mut slow: Vec<_> = (0..60).map(|_| connect(&stack.helios)).collect();
    for (n, stream) in slow.iter_mut().enumerate() {
        // Nothing, a part of the length, or of the packet.
        stream
            .write_all(&[0, 0, 0, 80, 0, 3, 0, 0, b'u'][..n % 10])
            .expect("sent");
    }
    assert_eq!(stack.wire().value("SELECT 'served'"), "served");
    for stream in slow {
        let told = told(stream);
        assert!(told.contains("C08000\0Mlogin took longer than"), "{told}");
    }
}

#[test]
fn no_more_connections_are_kept_that_say_nothing_than_clients_could_be_let_in() {
    let config = "[clients]\nmax = 1\nlogin_timeout = \"5s\"\n";
    let stack = Stack::start_with(PostgresCluster::builder(), config);
    // One, and as many of the console.
    let silent: Vec<_> = (0..101).map(|_| connect(&stack.helios)).collect();
    let refused = loop {
        // Those before may still be on their way in.
        match Wire::login(stack.helios.port, "postgres", "postgres", &[]) {
            Ok(client) => drop(client),
            Err(told) if told.contains("already") => {}
            Err(told) => break told,
        }
    };
    assert_eq!(
        refused,
        "E FATAL 53300 sorry, too many clients are logging in\nthe end\n"
    );
    drop(silent);
    while Wire::login(stack.helios.port, "postgres", "postgres", &[]).is_err() {}
}

#[test]
fn who_begins_with_a_length_that_no_startup_packet_has_is_left_without_a_word() {
    let stack = Stack::start();
    for head in [
        // One byte more than PostgreSQL takes.
        [0, 0, 0x27, 0x15, 0, 3, 0, 0],
        [0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0],
        [0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0],
        [0, 0, 0, 3, 0, 3, 0, 0],
        *b"GET / HT",
    ] {
        let mut stream = connect(&stack.helios);
        stream.write_all(&head).expect("sent");
        // As PostgreSQL does; the log has the reason.
        assert_eq!(told(stream), "", "{head:?}");
    }
    // What is longer by nothing is waited for.
    let mut longest = connect(&stack.helios);
    longest
        .write_all(&[0, 0, 0x27, 0x14, 0, 3, 0, 0])
        .expect("sent");
    assert_eq!(stack.wire().value("SELECT 'served'"), "served");
    longest
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("set");
    assert!(
        longest
            .read(&mut [0])
            .is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
    );
}
