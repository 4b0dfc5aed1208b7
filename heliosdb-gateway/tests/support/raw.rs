//! Clients that send bytes as they are told to and show what comes back, through helios and past it.

use std::io::{Error, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use heliosdb_testkit::PostgresCluster;

use super::{Helios, Stack};

/// A copy of the database behind helios that only PostgreSQL itself serves: what is written there never makes an
/// answer of helios wrong.
const TWIN: &str = "twin";

impl Stack {
    /// A stack whose database was made by `sql` before helios came.
    pub(crate) fn start_prepared(config: &str, sql: &str) -> Self {
        Self::start_behind(config, &[sql])
    }

    /// The same with a twin of the database.
    pub(crate) fn start_twice(config: &str, sql: &str) -> Self {
        let twin = format!("CREATE DATABASE {TWIN} TEMPLATE postgres");
        Self::start_behind(config, &[sql, &twin])
    }

    fn start_behind(config: &str, setup: &[&str]) -> Self {
        let cluster = PostgresCluster::start().expect("PostgreSQL starts");
        for sql in setup {
            cluster.psql("postgres", sql).expect("made");
        }
        let upstream = cluster.url("postgres", "postgres");
        let helios = Helios::start(&["--upstream", &upstream], config);
        Self { helios, cluster }
    }

    /// Runs statements past helios, in the database behind it.
    pub(crate) fn psql(&self, sql: &str) -> String {
        self.cluster
            .psql("postgres", sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// A client of helios.
    pub(crate) fn wire(&self) -> Wire {
        self.wire_with(&[])
    }

    /// A client of helios whose startup packet sets something.
    pub(crate) fn wire_with(&self, startup: &[(&str, &str)]) -> Wire {
        Wire::connect(self.helios.port, "postgres", startup)
    }

    /// A client of PostgreSQL itself, in the database behind helios.
    pub(crate) fn wire_direct(&self) -> Wire {
        self.wire_direct_with(&[])
    }

    /// A client of PostgreSQL itself, in the database behind helios, whose startup packet sets something.
    pub(crate) fn wire_direct_with(&self, startup: &[(&str, &str)]) -> Wire {
        Wire::connect(self.cluster.port(), "postgres", startup)
    }

    /// A client of PostgreSQL itself in the twin of the database behind helios.
    pub(crate) fn wire_twin(&self) -> Wire {
        self.wire_twin_with(&[])
    }

    /// A client of PostgreSQL itself in the twin of the database behind helios, whose startup packet sets something.
    pub(crate) fn wire_twin_with(&self, startup: &[(&str, &str)]) -> Wire {
        Wire::connect(self.cluster.port(), TWIN, startup)
    }
}

/// A connection that sends what it is told to and shows what comes, one line for each message.
pub(crate) struct Wire(TcpStream);

/// What is later than this does not come.
const PATIENCE: Duration = Duration::from_secs(15);

impl Wire {
    pub(crate) fn connect(port: u16, database: &str, startup: &[(&str, &str)]) -> Self {
        let mut wire = Self::greet(port, "postgres", database, startup);
        wire.replies(1);
        wire
    }

    /// The connection of a client that was let in, or what it was told instead.
    pub(crate) fn login(
        port: u16,
        user: &str,
        database: &str,
        startup: &[(&str, &str)],
    ) -> Result<Self, String> {
        let mut wire = Self::greet(port, user, database, startup);
        let told = wire.rest_or("Z I");
        if told.ends_with("Z I\n") {
            Ok(wire)
        } else {
            Err(told)
        }
    }

    /// All messages to a client that logs in and is let in.
    pub(crate) fn welcome(port: u16, user: &str, database: &str) -> Vec<Vec<u8>> {
        Self::greet(port, user, database, &[]).messages()
    }

    /// A client and the number that it was told of itself.
    pub(crate) fn connect_known(port: u16, database: &str) -> (Self, i32) {
        let mut wire = Self::greet(port, "postgres", database, &[]);
        let pid = wire.messages().iter().find_map(|message| {
            let number = message.get(5..9)?.try_into().ok()?;
            (message[0] == b'K').then(|| i32::from_be_bytes(number))
        });
        (wire, pid.expect("told"))
    }

    fn greet(port: u16, user: &str, database: &str, startup: &[(&str, &str)]) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.set_nodelay(true).expect("set");
        let mut wire = Self(stream);
        let mut packet = vec![0, 3, 0, 0];
        for (name, value) in [("user", user), ("database", database)]
            .iter()
            .chain(startup)
        {
            packet.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
        }
        packet.push(0);
        let len = u32::try_from(packet.len() + 4).expect("small");
        wire.send(&[len.to_be_bytes().to_vec(), packet]);
        wire
    }

    pub(crate) fn send(&mut self, messages: &[Vec<u8>]) {
        self.0.write_all(&messages.concat()).expect("sent");
    }

    /// Nothing more will be sent, but what comes is read.
    pub(crate) fn half_close(&mut self) {
        self.0.shutdown(Shutdown::Write).expect("shut down");
    }

    fn try_message(&mut self) -> Result<Vec<u8>, Error> {
        let mut message = vec![0; 5];
        self.0.read_exact(&mut message)?;
        let len = u32::from_be_bytes([message[1], message[2], message[3], message[4]]) as usize;
        message.resize(len + 1, 0);
        self.0.read_exact(&mut message[5..])?;
        Ok(message)
    }

    /// Adds what comes to `shown`, up to a message with this tag. Panics with it where nothing more comes.
    fn read_until(&mut self, tag: u8, shown: &mut String) {
        loop {
            match self.try_message() {
                Ok(message) => {
                    show(&message, shown);
                    if message[0] == tag {
                        return;
                    }
                }
                Err(error) => panic!("waits for {:?}: {error}, after\n{shown}", char::from(tag)),
            }
        }
    }

    /// All messages up to and including the next one with this tag.
    pub(crate) fn until(&mut self, tag: u8) -> String {
        let mut shown = String::new();
        self.read_until(tag, &mut shown);
        shown
    }

    /// All messages up to and including the `n`th ReadyForQuery.
    pub(crate) fn replies(&mut self, n: usize) -> String {
        let mut shown = String::new();
        for _ in 0..n {
            self.read_until(b'Z', &mut shown);
        }
        shown
    }

    /// All messages up to and including the next ReadyForQuery, as they came.
    pub(crate) fn messages(&mut self) -> Vec<Vec<u8>> {
        let mut messages: Vec<Vec<u8>> = Vec::new();
        while messages.last().is_none_or(|message| message[0] != b'Z') {
            messages.push(self.try_message().expect("a message"));
        }
        messages
    }

    /// The next message, as it came. `None` where the connection has ended.
    pub(crate) fn next_message(&mut self) -> Option<Vec<u8>> {
        match self.try_message() {
            Ok(message) => Some(message),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => None,
            Err(error) => panic!("waits for a message: {error}"),
        }
    }

    /// All messages up to the end of the connection. Panics where it does not end.
    pub(crate) fn rest(&mut self) -> String {
        self.rest_or("no such line")
    }

    /// All messages up to the end of the connection, or to the one that is shown as this line.
    pub(crate) fn rest_or(&mut self, last: &str) -> String {
        let mut shown = String::new();
        while shown.lines().next_back() != Some(last) {
            match self.try_message() {
                Ok(message) => show(&message, &mut shown),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                    ) =>
                {
                    shown.push_str("the end\n");
                    break;
                }
                Err(error) => panic!("waits for the end: {error}, after\n{shown}"),
            }
        }
        shown
    }

    /// Sends messages that are answered by one ReadyForQuery.
    pub(crate) fn ask(&mut self, messages: &[Vec<u8>]) -> String {
        self.asks(1, messages)
    }

    /// Sends messages that are answered by `n` ReadyForQuery.
    pub(crate) fn asks(&mut self, n: usize, messages: &[Vec<u8>]) -> String {
        self.send(messages);
        self.replies(n)
    }

    pub(crate) fn query(&mut self, sql: &str) -> String {
        self.ask(&[query(sql)])
    }

    /// Runs what must not fail.
    pub(crate) fn run(&mut self, sql: &str) {
        let shown = self.query(sql);
        assert!(!shown.contains("E ERROR"), "{sql}: {shown}");
    }

    /// The first field of the first row.
    pub(crate) fn value(&mut self, sql: &str) -> String {
        let shown = self.query(sql);
        first_row(&shown).unwrap_or_else(|| panic!("{sql} gives no row: {shown}"))
    }
}

/// The first row of an answer that was shown.
pub(crate) fn first_row(shown: &str) -> Option<String> {
    shown
        .lines()
        .find_map(|line| line.strip_prefix('D'))
        .map(|fields| fields.trim_start().to_owned())
}

pub(crate) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).expect("small");
    [&[tag][..], &len.to_be_bytes(), body].concat()
}

pub(crate) fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &[sql.as_bytes(), b"\0"].concat())
}

pub(crate) fn parse(name: &str, sql: &str) -> Vec<u8> {
    let parts = [name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"];
    message(b'P', &parts.concat())
}

/// Binds a statement without parameters.
pub(crate) fn bind(portal: &str, statement: &str) -> Vec<u8> {
    bind_with(portal, statement, &[])
}

/// Binds a statement with parameters in text form.
pub(crate) fn bind_with(portal: &str, statement: &str, values: &[&str]) -> Vec<u8> {
    let mut body = [portal.as_bytes(), b"\0", statement.as_bytes(), b"\0\0\0"].concat();
    body.extend(u16::try_from(values.len()).expect("few").to_be_bytes());
    for value in values {
        body.extend(u32::try_from(value.len()).expect("short").to_be_bytes());
        body.extend(value.as_bytes());
    }
    body.extend([0, 0]);
    message(b'B', &body)
}

/// A parameter: its declared type (0: none), its format, its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Parameter(pub(crate) u32, pub(crate) u16, pub(crate) Vec<u8>);

/// One statement run once by the extended protocol, through a portal of that name.
pub(crate) fn extended(sql: &str, portal: &str, parameters: &[Parameter]) -> Vec<Vec<u8>> {
    let types = declared_types(parameters);
    vec![
        message(b'P', &[b"\0", sql.as_bytes(), b"\0", &types].concat()),
        message(
            b'B',
            &[portal.as_bytes(), b"\0\0", &bound_values(parameters)].concat(),
        ),
        execute(portal, 0),
        sync(),
    ]
}

/// The end of a Parse message.
pub(crate) fn declared_types(parameters: &[Parameter]) -> Vec<u8> {
    let mut bytes = count(parameters.len()).to_vec();
    bytes.extend(
        parameters
            .iter()
            .flat_map(|Parameter(type_, ..)| type_.to_be_bytes()),
    );
    bytes
}

/// The end of a Bind message.
pub(crate) fn bound_values(parameters: &[Parameter]) -> Vec<u8> {
    let mut bytes = count(parameters.len()).to_vec();
    for Parameter(_, format, _) in parameters {
        bytes.extend(format.to_be_bytes());
    }
    bytes.extend(count(parameters.len()));
    for Parameter(_, _, value) in parameters {
        bytes.extend(u32::try_from(value.len()).expect("short").to_be_bytes());
        bytes.extend(value);
    }
    bytes.extend(count(0));
    bytes
}

fn count(n: usize) -> [u8; 2] {
    u16::try_from(n).expect("few").to_be_bytes()
}

/// Runs a portal; 0 rows at most are all of them.
pub(crate) fn execute(portal: &str, rows_max: i32) -> Vec<u8> {
    let parts = [portal.as_bytes(), b"\0", &rows_max.to_be_bytes()];
    message(b'E', &parts.concat())
}

pub(crate) fn describe(kind: char, name: &str) -> Vec<u8> {
    message(b'D', format!("{kind}{name}\0").as_bytes())
}

pub(crate) fn close(kind: char, name: &str) -> Vec<u8> {
    message(b'C', format!("{kind}{name}\0").as_bytes())
}

/// Prepares a statement without a name and runs it, up to the Sync that is still to come.
pub(crate) fn step(sql: &str) -> Vec<u8> {
    [parse("", sql), bind("", ""), execute("", 0)].concat()
}

/// Runs a prepared statement, up to the Sync that is still to come.
pub(crate) fn step_named(name: &str) -> Vec<u8> {
    [bind("", name), execute("", 0)].concat()
}

pub(crate) fn flush() -> Vec<u8> {
    message(b'H', b"")
}

pub(crate) fn sync() -> Vec<u8> {
    message(b'S', b"")
}

pub(crate) fn terminate() -> Vec<u8> {
    message(b'X', b"")
}

pub(crate) fn copy_data(lines: &str) -> Vec<u8> {
    message(b'd', lines.as_bytes())
}

pub(crate) fn copy_done() -> Vec<u8> {
    message(b'c', b"")
}

/// Adds the line for a message. What a server tells beside its answers is left out: it may come at any time.
fn show(message: &[u8], shown: &mut String) {
    let (tag, body) = (message[0], &message[5..]);
    let text = match tag {
        b'S' | b'N' | b'K' => return,
        b'D' => row(body).join("|"),
        // Severity, SQLSTATE and the message: where in its source the server found the error is its own affair.
        b'E' => [b'S', b'C', b'M']
            .map(|wanted| field(body, wanted))
            .join(" "),
        b'T' => columns(body).join("|"),
        b'C' | b'Z' => String::from_utf8_lossy(body.strip_suffix(b"\0").unwrap_or(body)).into(),
        _ => body.escape_ascii().to_string(),
    };
    let line = format!("{} {text}", char::from(tag));
    shown.push_str(line.trim_end());
    shown.push('\n');
}

fn row(body: &[u8]) -> Vec<String> {
    let mut rest = &body[2..];
    let mut values = Vec::new();
    while let Some((head, tail)) = rest.split_first_chunk::<4>() {
        let len = usize::try_from(i32::from_be_bytes(*head));
        values.push(match len {
            Ok(len) => String::from_utf8_lossy(&tail[..len]).into(),
            Err(_) => "NULL".to_owned(),
        });
        rest = &tail[len.unwrap_or(0)..];
    }
    values
}

/// The name and type of each column. Which table it is of is left out: a twin's has another number.
fn columns(body: &[u8]) -> Vec<String> {
    let mut rest = &body[2..];
    let mut columns = Vec::new();
    while let Some(len) = rest.iter().position(|byte| *byte == 0) {
        let (name, tail) = rest.split_at(len);
        let (fixed, after) = tail[1..].split_at(18);
        let oid = u32::from_be_bytes([fixed[6], fixed[7], fixed[8], fixed[9]]);
        columns.push(format!("{} of type {oid}", String::from_utf8_lossy(name)));
        rest = after;
    }
    columns
}

fn field(body: &[u8], wanted: u8) -> String {
    body.split(|byte| *byte == 0)
        .find_map(|field| field.strip_prefix(&[wanted]))
        .map(|text| String::from_utf8_lossy(text).into())
        .unwrap_or_default()
}
