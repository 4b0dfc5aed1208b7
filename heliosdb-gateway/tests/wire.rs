//! Requests in forms that drivers send and libraries hide, byte by byte: a row limit, a Parse alone, pipelines.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::support::Stack;

/// A connection that sends what it is told to and returns what comes.
struct Wire(TcpStream);

impl Wire {
    fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("set");
        let mut wire = Self(stream);
        let params = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
        let len = u32::try_from(params.len() + 4).expect("small");
        wire.send(&[&len.to_be_bytes()[..], params].concat());
        wire.replies(1);
        wire
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("sent");
    }

    fn message(&mut self) -> Vec<u8> {
        let mut message = vec![0; 5];
        self.0.read_exact(&mut message).expect("a message's head");
        let len = u32::from_be_bytes([message[1], message[2], message[3], message[4]]) as usize;
        message.resize(len + 1, 0);
        self.0.read_exact(&mut message[5..]).expect("its body");
        message
    }

    /// All messages up to and including the `n`th ReadyForQuery.
    fn replies(&mut self, n: usize) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        let mut ready = 0;
        while ready < n {
            let message = self.message();
            ready += usize::from(message[0] == b'Z');
            messages.push(message);
        }
        messages
    }

    fn ask(&mut self, unit: &[u8]) -> Vec<Vec<u8>> {
        self.send(unit);
        self.replies(1)
    }

    fn query(&mut self, sql: &str) -> Vec<Vec<u8>> {
        self.ask(&message(b'Q', &[sql.as_bytes(), b"\0"].concat()))
    }
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).expect("small");
    [&[tag][..], &len.to_be_bytes(), body].concat()
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(
        b'P',
        &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"].concat(),
    )
}

fn describe_statement(name: &str) -> Vec<u8> {
    message(b'D', &[b"S", name.as_bytes(), b"\0"].concat())
}

/// Binds a statement without parameters to the unnamed portal and runs it.
fn bind_execute(name: &str, rows_max: i32) -> Vec<u8> {
    let bind = message(b'B', &[b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"].concat());
    let execute = message(b'E', &[&b"\0"[..], &rows_max.to_be_bytes()].concat());
    [bind, execute].concat()
}

fn sync() -> Vec<u8> {
    message(b'S', b"")
}

fn shown(messages: &[Vec<u8>]) -> String {
    messages
        .iter()
        .map(|message| {
            format!(
                "{} {}\n",
                char::from(message[0]),
                message[5..].escape_ascii()
            )
        })
        .collect()
}

const THINGS: &str =
    "CREATE TABLE things AS SELECT g AS id, 'thing ' || g AS name FROM generate_series(1, 5) g";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_limit_is_part_of_the_question() {
    let stack = Stack::start();
    let mut direct = Wire::connect(stack.cluster.port());
    let mut through = Wire::connect(stack.helios.port);
    through.query(THINGS);
    let hits = stack.helios.cache_count("hits").await;
    for round in 0..2 {
        for rows_max in [0, 1, 2, 5, 6, -1] {
            let unit = [
                parse("", "SELECT name FROM things ORDER BY id"),
                bind_execute("", rows_max),
                sync(),
            ]
            .concat();
            let (expected, got) = (direct.ask(&unit), through.ask(&unit));
            assert_eq!(shown(&got), shown(&expected), "{rows_max} in round {round}");
        }
    }
    let hits = stack.helios.cache_count("hits").await - hits;
    assert_eq!(hits, 7, "the second round, and -1, which means 0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parse_alone_is_answered_from_memory_until_the_schema_changes() {
    let stack = Stack::start();
    let mut direct = Wire::connect(stack.cluster.port());
    let mut through = Wire::connect(stack.helios.port);
    through.query(THINGS);
    let select = "SELECT * FROM things WHERE id > 3 ORDER BY id";
    let insert = "INSERT INTO things VALUES (6, 'six') RETURNING *";
    let units = [
        [parse("s", select), describe_statement("s"), sync()].concat(),
        [parse("i", insert), describe_statement("i"), sync()].concat(),
        [parse("u", select), sync()].concat(),
    ];
    for unit in &units {
        assert_eq!(shown(&through.ask(unit)), shown(&direct.ask(unit)));
    }
    let hits = stack.helios.cache_count("hits").await;
    let mut other = Wire::connect(stack.helios.port);
    let mut other_direct = Wire::connect(stack.cluster.port());
    for unit in &units {
        assert_eq!(shown(&other.ask(unit)), shown(&other_direct.ask(unit)));
    }
    assert_eq!(stack.helios.cache_count("hits").await - hits, 3);
    // The statements are there, though the server never heard of them from this client.
    let run = [bind_execute("s", 0), sync()].concat();
    assert_eq!(shown(&other.ask(&run)), shown(&other_direct.ask(&run)));
    let run = [bind_execute("i", 0), sync()].concat();
    assert!(shown(&other.ask(&run)).contains("INSERT 0 1"));
    let run = [bind_execute("s", 0), sync()].concat();
    assert!(shown(&other.ask(&run)).contains("six"));
    // A name that is taken is refused.
    let refused = shown(&other.ask(&units[0]));
    assert!(
        refused.contains("C42P05") && refused.contains("already exists"),
        "{refused}"
    );
    // A statement that fails is asked for again each time.
    let wrong = [parse("w", "SELECT nothing FROM things"), sync()].concat();
    for _ in 0..2 {
        assert_eq!(shown(&other.ask(&wrong)), shown(&other_direct.ask(&wrong)));
    }
    through.query("ALTER TABLE things ADD COLUMN extra int");
    let mut later = Wire::connect(stack.helios.port);
    let mut later_direct = Wire::connect(stack.cluster.port());
    for unit in &units {
        assert_eq!(shown(&later.ask(unit)), shown(&later_direct.ask(unit)));
    }
}

#[test]
fn a_statement_without_a_name_is_its_clients_alone() {
    let stack = Stack::start_with(
        heliosdb_testkit::PostgresCluster::builder(),
        "[pool]\nsize = 1\n",
    );
    let mut one = Wire::connect(stack.helios.port);
    let secret = [
        parse("", "SELECT 'secret', random() < 2"),
        bind_execute("", 0),
        sync(),
    ]
    .concat();
    assert!(shown(&one.ask(&secret)).contains("secret"));
    let mut two = Wire::connect(stack.helios.port);
    let mut direct = Wire::connect(stack.cluster.port());
    for unit in [
        [bind_execute("", 0), sync()].concat(),
        [describe_statement(""), sync()].concat(),
    ] {
        assert_eq!(shown(&two.ask(&unit)), shown(&direct.ask(&unit)));
    }
    // Its own client still has it.
    let again = [bind_execute("", 0), sync()].concat();
    assert!(shown(&one.ask(&again)).contains("secret"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelines_are_answered_in_order_wherever_they_are_cut() {
    let stack = Stack::start();
    let mut direct = Wire::connect(stack.cluster.port());
    Wire::connect(stack.helios.port).query(THINGS);
    let read = |n: i32| {
        [
            parse("", &format!("SELECT name FROM things WHERE id = {n}")),
            bind_execute("", 0),
            sync(),
        ]
        .concat()
    };
    let pipeline = [
        read(1),
        message(b'Q', b"SELECT count(*) FROM things\0"),
        read(2),
        [
            parse("", "SELECT 1/0"),
            bind_execute("", 0),
            bind_execute("", 0),
            sync(),
        ]
        .concat(),
        read(1),
        message(b'Q', b"BEGIN; SELECT 2\0"),
        read(3),
        message(b'Q', b"COMMIT\0"),
        read(3),
        sync(),
    ]
    .concat();
    direct.send(&pipeline);
    let expected = shown(&direct.replies(10));
    for cut in (1..pipeline.len()).step_by(7) {
        let mut through = Wire::connect(stack.helios.port);
        through.send(&pipeline[..cut]);
        if cut % 2 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        through.send(&pipeline[cut..]);
        assert_eq!(shown(&through.replies(10)), expected, "cut at {cut}");
    }
}
