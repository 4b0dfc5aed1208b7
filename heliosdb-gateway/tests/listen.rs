//! LISTEN in transaction mode: a client that listens holds no server connection, and hears what it would hear directly.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::support::raw::{
    Wire, bind, close, describe, execute, message, parse, query, step, sync,
};
use crate::support::{Helios, Stack};

const ONE_CONNECTION: &str = "[pool]\nsize = 1\nacquire_timeout = \"5s\"\n";
const TWIN: &str = "twin";

/// A client that knows its own number.
struct Client {
    wire: Wire,
    pid: i32,
}

impl Client {
    fn of(stack: &Stack) -> Self {
        Self::connect(stack.helios.port, "postgres")
    }

    /// Of PostgreSQL itself, in the twin of the database.
    fn twin(stack: &Stack) -> Self {
        Self::connect(stack.cluster.port(), TWIN)
    }

    fn connect(port: u16, database: &str) -> Self {
        let (wire, pid) = Wire::connect_known(port, database);
        Self { wire, pid }
    }

    fn ask(&mut self, messages: &[Vec<u8>]) -> Vec<String> {
        self.wire.send(messages);
        let replies = self.wire.messages();
        replies.iter().map(|message| self.shown(message)).collect()
    }

    fn query(&mut self, sql: &str) -> Vec<String> {
        self.ask(&[query(sql)])
    }

    /// Runs what must not fail. What is heard meanwhile is nobody's business.
    fn run(&mut self, sql: &str) {
        let shown = self.query(sql);
        let failed = shown.iter().any(|line| line.starts_with('E'));
        assert!(!failed, "{sql}: {shown:?}");
    }

    /// The next thing that is said unasked.
    fn hear(&mut self) -> String {
        match self.wire.next_message() {
            Some(message) => self.shown(&message),
            None => "the end".to_owned(),
        }
    }

    fn shown(&self, message: &[u8]) -> String {
        let (tag, body) = (char::from(message[0]), &message[5..]);
        let field = |wanted: u8| {
            let mut fields = body.split(|byte| *byte == 0);
            let field = fields.find_map(|field| field.strip_prefix(&[wanted]));
            String::from_utf8_lossy(field.unwrap_or_default()).into_owned()
        };
        match tag {
            'A' => {
                let pid = i32::from_be_bytes(body[..4].try_into().expect("four"));
                let texts = String::from_utf8_lossy(&body[4..]).into_owned();
                let mut texts = texts.split('\0');
                let (channel, payload) = (texts.next(), texts.next());
                let own = if pid == self.pid { " own" } else { "" };
                format!(
                    "A {} {:?}{own}",
                    channel.unwrap_or_default(),
                    payload.unwrap_or_default()
                )
            }
            'E' | 'N' => format!("{tag} {} {} {}", field(b'S'), field(b'C'), field(b'M')),
            _ => format!("{tag} {}", body.escape_ascii()),
        }
    }
}

/// A column of one of the console's tables.
fn column(helios: &Helios, table: &str, name: &str) -> Vec<String> {
    let mut console = Wire::connect(helios.port, "helios", &[]);
    let shown = console.query(&format!("SHOW {table}"));
    let head = shown
        .lines()
        .find(|line| line.starts_with('T'))
        .expect("columns");
    let at = head[2..]
        .split('|')
        .position(|column| column.starts_with(&format!("{name} ")))
        .expect("a column of that name");
    shown
        .lines()
        .filter_map(|line| line.strip_prefix("D "))
        .filter_map(|line| line.split('|').nth(at).map(str::to_owned))
        .collect()
}

/// Waits until the listener's last statement begins so.
fn wait_for_listener(stack: &Stack, statement: &str) {
    let sql = "SELECT coalesce(max(query), 'none') FROM pg_stat_activity WHERE application_name = 'helios listener'";
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let last = stack.psql(sql);
        if last.trim().starts_with(statement) {
            return;
        }
        assert!(Instant::now() < deadline, "the listener is at {last}");
    }
}

#[test]
fn thousands_listen_over_a_pool_of_one() {
    const CLIENTS: usize = 2000;
    let stack = Stack::start_prepared(ONE_CONNECTION, "CREATE TABLE t (a int)");
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| Client::of(&stack)).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client
            .wire
            .send(&[query(&format!("LISTEN everybody; LISTEN c{i}"))]);
    }
    // Others go on meanwhile.
    let mut other = Client::of(&stack);
    for _ in 0..100 {
        other.run("INSERT INTO t VALUES (1)");
    }
    let listened = ["C LISTEN\\x00", "C LISTEN\\x00", "Z I"];
    for client in &mut clients {
        let replies: Vec<_> = client
            .wire
            .messages()
            .iter()
            .map(|m| client.shown(m))
            .collect();
        assert_eq!(replies, listened);
    }
    let pins: HashSet<_> = column(&stack.helios, "CLIENTS", "pinned_by")
        .into_iter()
        .collect();
    assert_eq!(pins, HashSet::from([String::new()]));
    let channels = column(&stack.helios, "CLIENTS", "channels");
    assert_eq!(channels.iter().filter(|n| *n == "2").count(), CLIENTS);
    let states = column(&stack.helios, "SERVERS", "state");
    assert_eq!(
        states.iter().filter(|state| *state == "listening").count(),
        1
    );
    assert_eq!(states.len(), 2, "{states:?}");

    other.run("NOTIFY everybody, 'first'; NOTIFY c7, 'one'");
    other.run("BEGIN; NOTIFY everybody, 'second'; COMMIT");
    for (i, client) in clients.iter_mut().enumerate() {
        let mut heard = vec![client.hear()];
        if i == 7 {
            heard.push(client.hear());
        }
        heard.push(client.hear());
        let mut expected = vec!["A everybody \"first\"", "A everybody \"second\""];
        if i == 7 {
            expected.insert(1, "A c7 \"one\"");
        }
        assert_eq!(heard, expected, "client {i}");
    }
    // A client that listens still shares the connection.
    for client in clients.iter_mut().take(50) {
        client.run("INSERT INTO t VALUES (2)");
    }
}

/// Runs a script with two clients through helios and two without: `L: sql` and `S: sql`. What `L` is told has to be the
/// same, in the same order, but for notifications, which may come at any time while it is idle.
fn compare(stack: &Stack, script: &[&str]) {
    let mut told = Vec::new();
    for connect in [Client::of, Client::twin] {
        let (mut listener, mut sender) = (connect(stack), connect(stack));
        let (mut replies, mut heard) = (Vec::new(), Vec::new());
        let is_heard = |line: &String| line.starts_with('A');
        // Asked of the server itself, past any cache: by then everything was told.
        let end = "L: SELECT pg_backend_pid() IS NULL";
        for line in script.iter().chain(&[end]) {
            let (who, sql) = line.split_at(3);
            let lines = match who {
                "L: " => listener.query(sql),
                "X: " => listener.ask(&crate::support::raw::extended(sql, "", &[])),
                _ => {
                    sender.run(sql);
                    continue;
                }
            };
            let is_in_transaction = lines.last().is_some_and(|line| line == "Z T");
            let now: Vec<_> = lines
                .iter()
                .filter(|line| is_heard(line))
                .cloned()
                .collect();
            assert!(
                !is_in_transaction || now.is_empty() || sql.starts_with("BEGIN"),
                "{line}: {lines:?}"
            );
            heard.extend(now);
            replies.push((
                *line,
                lines
                    .into_iter()
                    .filter(|line| !is_heard(line))
                    .collect::<Vec<_>>(),
            ));
        }
        told.push((replies, heard));
    }
    assert_eq!(told[0], told[1], "{script:#?}");
}

#[test]
fn a_listener_is_told_what_it_is_told_directly() {
    let setup = "CREATE TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED);
        CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN PERFORM pg_notify('rows', NEW.a::text); RETURN NULL; END$$;
        CREATE FUNCTION listen_to(name) RETURNS void LANGUAGE plpgsql AS
        $$BEGIN EXECUTE format('LISTEN %I', $1); END$$;
        CREATE TRIGGER tell AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION tell()";
    let stack = Stack::start_twice("[pool]\nsize = 2\n", setup);
    let long = "n".repeat(70);
    let long_quoted = format!("L: LISTEN \"{}Ü\"", "x".repeat(62));
    let (long_plain, long_notify) = (format!("L: LISTEN {long}"), format!("S: NOTIFY {long}"));
    let scripts: &[&[&str]] = &[
        &[
            "L: LISTEN a",
            "S: NOTIFY a",
            "S: NOTIFY a, 'x'",
            "S: NOTIFY b",
        ],
        &[
            "X: LISTEN a",
            "S: NOTIFY a, 'x'",
            "X: UNLISTEN a",
            "S: NOTIFY a, 'y'",
        ],
        &[
            "S: NOTIFY a, 'before'",
            "L: LISTEN a",
            "S: NOTIFY a, 'after'",
        ],
        &[
            "L: LISTEN Abc",
            "L: LISTEN \"A\"\"b\"",
            "S: NOTIFY abc",
            "S: NOTIFY \"Abc\"",
            "S: NOTIFY \"A\"\"b\"",
        ],
        &[
            &long_plain,
            &long_notify,
            &long_quoted,
            "L: SET client_min_messages TO warning",
            &long_quoted,
        ],
        // Duplicates, own ones, and those of a trigger.
        &[
            "L: LISTEN a",
            "L: LISTEN a",
            "L: NOTIFY a; NOTIFY a; NOTIFY a, 'x'; NOTIFY a",
        ],
        &[
            "L: LISTEN rows",
            "L: INSERT INTO t VALUES (1), (2)",
            "S: INSERT INTO t VALUES (3)",
            "L: DELETE FROM t",
        ],
        // Transactions.
        &[
            "L: BEGIN",
            "L: LISTEN a",
            "S: NOTIFY a, 'early'",
            "L: COMMIT",
            "S: NOTIFY a, 'late'",
        ],
        &[
            "L: BEGIN",
            "L: SELECT count(*) FROM t",
            "L: LISTEN a",
            "L: NOTIFY a, 'own'",
            "L: COMMIT",
        ],
        &[
            "L: BEGIN",
            "L: LISTEN a",
            "L: ROLLBACK",
            "S: NOTIFY a, 'none'",
            "L: LISTEN b",
            "S: NOTIFY b, 'some'",
        ],
        &[
            "L: LISTEN a",
            "L: BEGIN",
            "S: NOTIFY a, 'held back'",
            "L: SELECT 1",
            "L: INSERT INTO t VALUES (9)",
            "L: ROLLBACK",
        ],
        &[
            "L: LISTEN a",
            "L: BEGIN",
            "L: UNLISTEN a",
            "S: NOTIFY a, 'dropped'",
            "L: COMMIT",
            "S: NOTIFY a, 'gone'",
        ],
        &[
            "L: LISTEN a",
            "L: BEGIN",
            "L: UNLISTEN *",
            "L: ROLLBACK",
            "S: NOTIFY a, 'still'",
        ],
        &[
            "L: LISTEN a",
            "L: BEGIN",
            "L: UNLISTEN a",
            "L: LISTEN a",
            "S: NOTIFY a, 'kept'",
            "L: COMMIT",
        ],
        &[
            "L: BEGIN",
            "L: LISTEN a",
            "L: SAVEPOINT s",
            "L: LISTEN b",
            "L: ROLLBACK TO s",
            "L: LISTEN c",
            "L: COMMIT",
            "S: NOTIFY a",
            "S: NOTIFY b",
            "S: NOTIFY c",
        ],
        &[
            "L: BEGIN",
            "L: INSERT INTO t VALUES (5)",
            "L: SAVEPOINT s",
            "L: LISTEN b",
            "L: RELEASE s",
            "L: LISTEN c",
            "L: COMMIT AND CHAIN",
            "L: LISTEN d",
            "S: NOTIFY b",
            "L: ROLLBACK",
            "S: NOTIFY c",
            "S: NOTIFY d",
        ],
        &[
            "L: BEGIN",
            "L: SAVEPOINT s",
            "L: LISTEN b",
            "L: ROLLBACK TO s",
            "L: LISTEN c",
            "L: COMMIT",
            "S: NOTIFY b",
            "S: NOTIFY c",
        ],
        // What fails.
        &[
            "L: BEGIN",
            "L: SELECT 1/0",
            "L: LISTEN a",
            "X: LISTEN a",
            "L: UNLISTEN a",
            "L: ROLLBACK",
            "S: NOTIFY a",
        ],
        &[
            "L: BEGIN",
            "L: LISTEN a",
            "L: SELECT 1/0",
            "L: COMMIT",
            "S: NOTIFY a",
        ],
        &[
            "L: BEGIN",
            "L: LISTEN a",
            "L: SAVEPOINT s",
            "L: SELECT 1/0",
            "L: ROLLBACK TO s",
            "L: COMMIT",
            "S: NOTIFY a",
        ],
        &[
            "L: INSERT INTO t VALUES (7)",
            "L: BEGIN",
            "L: LISTEN a",
            "L: INSERT INTO t VALUES (7)",
            "L: COMMIT",
            "S: NOTIFY a",
        ],
        &[
            "L: LISTEN",
            "L: LISTEN \"\"",
            "L: LISTEN a, b",
            "L: LISTEN 1",
        ],
        &["X: LISTEN a; LISTEN b", "S: NOTIFY a"],
        &[
            "L: BEGIN",
            "L: LISTEN a",
            "L: PREPARE TRANSACTION 'x'",
            "S: NOTIFY a",
        ],
        &[
            "L: BEGIN",
            "L: INSERT INTO t VALUES (8)",
            "L: LISTEN a",
            "L: PREPARE TRANSACTION 'x'",
            "S: NOTIFY a",
        ],
        // Several in one text, alone and mixed.
        &[
            "L: LISTEN a; LISTEN b; UNLISTEN a",
            "S: NOTIFY a",
            "S: NOTIFY b",
        ],
        &[
            "L: LISTEN a; SELECT 1; LISTEN b",
            "S: NOTIFY a",
            "S: NOTIFY b",
            "L: LISTEN c",
            "S: NOTIFY c",
            "L: UNLISTEN a",
            "S: NOTIFY a",
        ],
        &[
            "L: LISTEN a",
            "L: SELECT 1; LISTEN a",
            "S: NOTIFY a, 'once'",
            "L: UNLISTEN a",
            "S: NOTIFY a, 'none'",
        ],
        &["L: LISTEN a; SELECT 1/0", "S: NOTIFY a"],
        &["L: DO $$BEGIN LISTEN a; END$$", "S: NOTIFY a"],
        &["L: SELECT listen_to('a')", "S: NOTIFY a", "S: SELECT 1"],
        &["L: /* app */ LISTEN a -- so", "S: NOTIFY a"],
        // The end of it.
        &[
            "L: LISTEN a",
            "L: LISTEN b",
            "L: UNLISTEN *",
            "S: NOTIFY a",
            "S: NOTIFY b",
            "L: UNLISTEN *",
        ],
        &[
            "L: LISTEN a",
            "L: DISCARD ALL",
            "S: NOTIFY a",
            "L: LISTEN b",
            "S: NOTIFY b",
        ],
    ];
    for script in scripts {
        compare(&stack, script);
    }
    assert!(
        column(&stack.helios, "SERVERS", "state").contains(&"listening".to_owned()),
        "nothing was listened to by the listener"
    );
}

#[test]
fn every_form_of_the_extended_protocol_is_answered_as_directly() {
    let stack = Stack::start_twice(ONE_CONNECTION, "");
    let limited = execute("", 5);
    let units: &[&[Vec<u8>]] = &[
        &[
            parse("", "LISTEN a"),
            bind("", ""),
            describe('P', ""),
            execute("", 0),
            sync(),
        ],
        &[parse("s", "LISTEN b"), describe('S', "s"), sync()],
        &[bind("", "s"), execute("", 0), sync()],
        &[
            bind("", "s"),
            describe('P', ""),
            limited,
            close('P', ""),
            sync(),
        ],
        &[
            parse("s", "LISTEN c"),
            bind("", "s"),
            execute("", 0),
            sync(),
        ],
        &[step("BEGIN"), step("LISTEN c"), sync()],
        &[bind("", "s"), execute("", 0), sync()],
        &[step("COMMIT"), sync()],
        &[
            parse("t", "UNLISTEN b"),
            bind("", "t"),
            execute("", 0),
            sync(),
        ],
        // Not in a form that is known: on the client's own connection from here on.
        &[step("LISTEN d"), step("LISTEN e"), sync()],
        &[
            parse("", "LISTEN f"),
            bind("portal", ""),
            execute("portal", 0),
            sync(),
        ],
    ];
    let mut told = Vec::new();
    for connect in [Client::of, Client::twin] {
        let mut client = connect(&stack);
        let replies: Vec<_> = units.iter().map(|unit| client.ask(unit)).collect();
        let heard = client.query("NOTIFY a; NOTIFY b; NOTIFY c; NOTIFY d; NOTIFY e; NOTIFY f");
        told.push((replies, heard.into_iter().collect::<HashSet<_>>()));
    }
    assert_eq!(told[0], told[1]);
}

#[test]
fn what_cannot_be_told_apart_keeps_its_connection() {
    let stack = Stack::start_prepared("[pool]\nsize = 2\n", "");
    let mut client = Client::of(&stack);
    client.run("LISTEN a; SELECT 1");
    assert!(column(&stack.helios, "CLIENTS", "pinned_by").contains(&"listen".to_owned()));
    client.run("UNLISTEN *");
    assert!(!column(&stack.helios, "CLIENTS", "pinned_by").contains(&"listen".to_owned()));
}

#[test]
fn in_session_mode_it_is_the_servers() {
    let stack = Stack::start_prepared("[pool]\nmode = \"session\"\nsize = 3\n", "");
    let (mut client, mut other) = (Client::of(&stack), Client::of(&stack));
    client.run("LISTEN a");
    other.run("NOTIFY a, 'x'");
    assert_eq!(client.hear(), "A a \"x\"");
    let states = column(&stack.helios, "SERVERS", "state");
    assert!(!states.contains(&"listening".to_owned()), "{states:?}");
}

#[test]
fn the_last_to_leave_ends_the_listening() {
    let stack = Stack::start_prepared(ONE_CONNECTION, "");
    let [mut first, mut second, mut third] = [(); 3].map(|()| Client::of(&stack));
    first.run("LISTEN a");
    second.run("LISTEN a");
    third.run("LISTEN b");
    first.run("UNLISTEN a");
    // The other still listens.
    third.run("NOTIFY a, 'x'");
    assert_eq!(second.hear(), "A a \"x\"");
    drop(second);
    wait_for_listener(&stack, "UNLISTEN \"a\"");
    third.run("DISCARD ALL");
    wait_for_listener(&stack, "UNLISTEN \"b\"");
    // Nobody on the pool's own connection hears anything, nor does it listen.
    assert_eq!(
        third.query("SELECT count(*) FROM pg_listening_channels()")[1],
        "D \\x00\\x01\\x00\\x00\\x00\\x010"
    );
}

const KILL: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'helios listener'";

#[test]
fn who_may_have_missed_something_is_told() {
    let stack = Stack::start_prepared("[pool]\nsize = 2\n", "CREATE TABLE t (a int)");
    let [mut idle, mut busy, mut deaf] = [(); 3].map(|()| Client::of(&stack));
    idle.run("LISTEN a");
    busy.run("LISTEN a");
    busy.run("BEGIN");
    busy.run("INSERT INTO t VALUES (1)");
    stack.psql(KILL);
    let lost = "E FATAL 57P01 the connection by which this session listens was lost: terminating connection due to \
                administrator command";
    assert_eq!(idle.hear(), lost);
    assert_eq!(idle.hear(), "the end");
    // A transaction goes on, and is acknowledged.
    busy.run("INSERT INTO t VALUES (2)");
    assert_eq!(busy.query("COMMIT"), ["C COMMIT\\x00", "Z I"]);
    assert_eq!(busy.hear(), lost);
    assert_eq!(busy.hear(), "the end");
    // Who does not listen notices nothing, and who comes again hears.
    assert_eq!(
        deaf.query("SELECT count(*) FROM t")[1],
        "D \\x00\\x01\\x00\\x00\\x00\\x012"
    );
    let mut again = Client::of(&stack);
    again.run("LISTEN a");
    deaf.run("NOTIFY a, 'x'");
    assert_eq!(again.hear(), "A a \"x\"");
}

#[test]
fn a_server_that_comes_back_is_listened_to_again() {
    let mut stack = Stack::start_prepared("[pool]\nsize = 1\nacquire_timeout = \"30s\"\n", "");
    let mut client = Client::of(&stack);
    client.run("LISTEN a");
    stack.cluster.stop_fast().expect("stopped");
    assert!(client.hear().starts_with("E FATAL 57P01"));
    // Asked for while there is no server: answered when there is one.
    let mut again = Client::of(&stack);
    again.wire.send(&[query("LISTEN a")]);
    stack.cluster.launch().expect("launched");
    let replies: Vec<_> = again
        .wire
        .messages()
        .iter()
        .map(|m| again.shown(m))
        .collect();
    assert_eq!(replies, ["C LISTEN\\x00", "Z I"]);
    stack.psql("NOTIFY a, 'x'");
    assert_eq!(again.hear(), "A a \"x\"");
}

#[test]
fn who_does_not_read_is_disconnected_and_others_hear() {
    let config = "[pool]\nsize = 2\n[clients]\nnotification_queue = \"16KiB\"\n";
    let stack = Stack::start_prepared(config, "");
    let [mut slow, mut quick, mut sender] = [(); 3].map(|()| Client::of(&stack));
    for client in [&mut slow, &mut quick] {
        client.run("LISTEN a");
    }
    slow.run("BEGIN");
    let payload = "x".repeat(7000);
    for i in 0..4 {
        sender.run(&format!("NOTIFY a, '{i}{payload}'"));
        assert!(quick.hear().starts_with(&format!("A a \"{i}x")));
    }
    assert_eq!(slow.query("COMMIT"), ["C COMMIT\\x00", "Z I"]);
    assert_eq!(
        slow.hear(),
        "E FATAL 53400 the client is too slow: more than 16384 bytes of notifications waited for it"
    );
    assert_eq!(slow.hear(), "the end");
}

#[test]
fn a_client_that_takes_nothing_is_disconnected() {
    let config = "[pool]\nsize = 1\n[clients]\nnotification_queue = \"64KiB\"\n";
    let stack = Stack::start_prepared(config, "");
    let [mut slow, mut sender] = [(); 2].map(|()| Client::of(&stack));
    slow.run("LISTEN a");
    // More than all sockets' buffers hold.
    let many = "DO $$BEGIN FOR i IN 1..200 LOOP PERFORM pg_notify('a', i || repeat('x', 7900)); END LOOP; END$$";
    let deadline = Instant::now() + Duration::from_secs(60);
    while column(&stack.helios, "CLIENTS", "channels").contains(&"1".to_owned()) {
        assert!(Instant::now() < deadline, "it is still there");
        sender.run(many);
    }
}

#[test]
fn a_cancelled_wait_leaves_no_listener() {
    let mut stack = Stack::start_prepared("[pool]\nsize = 1\nacquire_timeout = \"1s\"\n", "");
    let mut client = Client::of(&stack);
    client.run("SELECT 1");
    stack.cluster.stop_fast().expect("stopped");
    let answer = client.query("LISTEN a");
    assert!(
        answer[0].starts_with("E ERROR 08006 cannot reach the database server to listen"),
        "{answer:?}"
    );
    assert_eq!(answer[1], "Z I");
    stack.cluster.launch().expect("launched");
    stack.psql("NOTIFY a, 'not for it'");
    client.run("LISTEN b");
    stack.psql("NOTIFY b, 'x'");
    assert_eq!(client.hear(), "A b \"x\"");
}

#[test]
fn a_listen_that_fails_fails_its_transaction() {
    let stack = Stack::start_prepared(
        "[pool]\nsize = 1\nacquire_timeout = \"1s\"\n",
        "CREATE ROLE app LOGIN CONNECTION LIMIT 1; CREATE TABLE t (a int); GRANT ALL ON t TO app",
    );
    let mut client = Wire::login(stack.helios.port, "app", "postgres", &[]).expect("let in");
    client.run("BEGIN");
    client.run("INSERT INTO t VALUES (1)");
    // The pool's connection is the only one that the role may have.
    let answer = client.query("LISTEN a");
    assert!(answer.starts_with("E ERROR 53300"), "{answer}");
    assert!(answer.ends_with("Z E\n"), "{answer}");
    assert!(
        client
            .query("INSERT INTO t VALUES (2)")
            .starts_with("E ERROR 25P02")
    );
    assert!(client.query("COMMIT").starts_with("C ROLLBACK"));
    assert_eq!(client.value("SELECT count(*) FROM t"), "0");
}

#[test]
fn other_encodings_are_told_what_they_can_be_told() {
    let stack = Stack::start_prepared("[pool]\nsize = 2\n", "");
    let [mut client, mut sender] = [(); 2].map(|()| Client::of(&stack));
    client.run("LISTEN a");
    client.run("SET client_encoding TO 'LATIN1'");
    sender.run("NOTIFY a, 'plain'");
    assert_eq!(client.hear(), "A a \"plain\"");
    sender.run("NOTIFY a, 'größer'");
    assert!(client.hear().starts_with("E FATAL 22P05"));
    // One that begins so listens by itself.
    let mut foreign = stack.wire_with(&[("client_encoding", "LATIN1")]);
    foreign.run("LISTEN a");
    sender.run("NOTIFY a, 'größer'");
    assert_eq!(
        foreign.next_message().expect("heard")[9..],
        *b"a\0gr\xf6\xdfer\0"
    );
    foreign.send(&[message(b'X', b"")]);
}
