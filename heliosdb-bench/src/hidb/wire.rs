//! The least that a client can do: bytes that were made before are written, and answers counted as they come, by one
//! thread that blocks.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::{BufMut as _, BytesMut};
use heliosdb_network::protocol::{self, Answer, FRAME_MAX, Frame, Hello, HidbMessage, Login};
use heliosdb_network::{HidbTarget, Statement};

use super::Answered;
use super::ways::{Shape, Way};

/// How requests and answers look in a protocol.
pub(super) trait Protocol {
    /// Appends a request.
    fn put(&mut self, shape: Shape, out: &mut Vec<u8>);

    /// The rows in an answer that is whole, as psql prints them.
    fn rows(&self, answer: &[u8]) -> anyhow::Result<String>;

    /// Goes through what has come, and says how much of it need not be seen again and how many answers ended in it.
    fn scan(&mut self, shape: Shape, input: &[u8]) -> anyhow::Result<(usize, usize)>;
}

/// A connection with one protocol.
pub(super) struct Pipe<P> {
    stream: TcpStream,
    protocol: P,
    input: Vec<u8>,
    filled: usize,
    output: Vec<u8>,
}

/// An answer that is later than this does not come.
const PATIENCE: Duration = Duration::from_secs(10);

impl<P: Protocol> Pipe<P> {
    fn new(stream: TcpStream, protocol: P) -> Self {
        Self {
            stream,
            protocol,
            input: vec![0; 256 << 10],
            filled: 0,
            output: Vec::new(),
        }
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let read = self
            .stream
            .read(&mut self.input[self.filled..])
            .context("cannot read from helios")?;
        ensure!(read > 0, "helios closed the connection");
        self.filled += read;
        Ok(())
    }

    fn drop_front(&mut self, used: usize) {
        self.input.copy_within(used..self.filled, 0);
        self.filled -= used;
    }

    fn write(&mut self) -> anyhow::Result<()> {
        self.stream
            .write_all(&self.output)
            .context("cannot write to helios")?;
        self.output.clear();
        Ok(())
    }
}

impl<P: Protocol> Way for Pipe<P> {
    fn rows(&mut self, shape: Shape) -> anyhow::Result<String> {
        self.protocol.put(shape, &mut self.output);
        self.write()?;
        let mut answer = Vec::new();
        loop {
            self.read()?;
            let (used, answers) = self.protocol.scan(shape, &self.input[..self.filled])?;
            answer.extend_from_slice(&self.input[..used]);
            self.drop_front(used);
            if answers > 0 {
                return self.protocol.rows(&answer);
            }
        }
    }

    fn drive(
        &mut self,
        shape: Shape,
        in_flight: usize,
        time: Duration,
    ) -> anyhow::Result<Answered> {
        let began = Instant::now();
        let (mut open, mut requests) = (in_flight, 0);
        for _ in 0..in_flight {
            self.protocol.put(shape, &mut self.output);
        }
        while open > 0 {
            self.write()?;
            self.read()?;
            let (used, answers) = self.protocol.scan(shape, &self.input[..self.filled])?;
            self.drop_front(used);
            requests += answers as u64;
            if began.elapsed() < time {
                for _ in 0..answers {
                    self.protocol.put(shape, &mut self.output);
                }
            } else {
                open -= answers;
            }
        }
        Ok(Answered {
            requests,
            elapsed: began.elapsed(),
        })
    }
}

/// How PostgreSQL is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Bind, Execute, Sync.
    Prepared,
    /// Query.
    Simple,
    /// Parse, Bind, Describe, Execute, Sync.
    Unprepared,
}

/// PostgreSQL's protocol.
pub(super) struct Postgres {
    requests: [Vec<u8>; 2],
    /// Of the answer that has begun.
    rows: usize,
}

impl Pipe<Postgres> {
    pub(super) fn connect(port: u16, mode: Mode) -> anyhow::Result<Self> {
        let mut stream = dial(port)?;
        let parameters = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
        stream.write_all(&with_length(parameters))?;
        let requests = Shape::ALL.map(|shape| request(mode, shape));
        let mut pipe = Self::new(stream, Postgres { requests, rows: 0 });
        pipe.until_ready()?;
        if mode == Mode::Prepared {
            for shape in Shape::ALL {
                let name = name(shape);
                let parse = [name, b"\0", shape.sql().as_bytes(), b"\0\0\0"].concat();
                pipe.output.extend(message(b'P', &parse));
                pipe.output.extend(message(b'S', b""));
                pipe.write()?;
                pipe.until_ready()?;
            }
        }
        Ok(pipe)
    }

    /// Reads on until ReadyForQuery.
    fn until_ready(&mut self) -> anyhow::Result<()> {
        loop {
            self.read()?;
            let (mut used, mut is_ready) = (0, false);
            while let Some((kind, body)) = next_message(&self.input[used..self.filled])? {
                ensure!(
                    kind != b'E',
                    "helios says: {}",
                    String::from_utf8_lossy(body)
                );
                is_ready = kind == b'Z';
                used += body.len() + 5;
            }
            self.drop_front(used);
            if is_ready {
                return Ok(());
            }
        }
    }
}

impl Protocol for Postgres {
    fn put(&mut self, shape: Shape, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.requests[shape as usize]);
    }

    fn rows(&self, answer: &[u8]) -> anyhow::Result<String> {
        text_rows(answer)
    }

    fn scan(&mut self, shape: Shape, input: &[u8]) -> anyhow::Result<(usize, usize)> {
        let (mut used, mut answers) = (0, 0);
        while let Some((kind, body)) = next_message(&input[used..])? {
            match kind {
                b'D' => self.rows += 1,
                b'E' => bail!("helios says: {}", String::from_utf8_lossy(body)),
                b'Z' => {
                    ensure!(self.rows == shape.rows(), "{} rows", self.rows);
                    self.rows = 0;
                    answers += 1;
                }
                _ => {}
            }
            used += body.len() + 5;
        }
        Ok((used, answers))
    }
}

/// The name of a shape's prepared statement.
fn name(shape: Shape) -> &'static [u8] {
    match shape {
        Shape::One => b"one",
        Shape::Hundred => b"hundred",
    }
}

fn request(mode: Mode, shape: Shape) -> Vec<u8> {
    let sql = shape.sql().as_bytes();
    let bind = |statement: &[u8]| [b"\0", statement, b"\0\0\0\0\0\0\0"].concat();
    let (execute, sync) = (message(b'E', b"\0\0\0\0\0"), message(b'S', b""));
    match mode {
        Mode::Prepared => [message(b'B', &bind(name(shape))), execute, sync].concat(),
        Mode::Simple => message(b'Q', &[sql, b"\0"].concat()),
        Mode::Unprepared => [
            message(b'P', &[b"\0", sql, b"\0\0\0"].concat()),
            message(b'B', &bind(b"")),
            message(b'D', b"P\0"),
            execute,
            sync,
        ]
        .concat(),
    }
}

/// HIDB.
pub(super) struct Hidb {
    /// Frames whose number is to be filled in.
    requests: [Vec<u8>; 2],
    last_request: u64,
}

/// The number of the variant `Answer` on the wire.
const ANSWER: u8 = 8;

impl Pipe<Hidb> {
    pub(super) fn log_in(target: &HidbTarget) -> anyhow::Result<Self> {
        let mut stream = dial(target.port)?;
        stream.write_all(&Hello::OURS.encode())?;
        let mut hello = [0; Hello::LEN];
        stream.read_exact(&mut hello)?;
        Hello::decode(hello)?;
        stream.write_all(&frame(HidbMessage::Login(Login {
            user: target.user.clone(),
            database: target.database.clone(),
            ..Login::default()
        }))?)?;
        let ask = |shape: Shape| frame(HidbMessage::Query(Statement::new(shape.sql()).to_query()));
        let [one, hundred] = Shape::ALL.map(ask);
        let protocol = Hidb {
            requests: [one?, hundred?],
            last_request: 0,
        };
        let mut pipe = Self::new(stream, protocol);
        loop {
            pipe.read()?;
            if let Some((_, payload, len)) = protocol::peek(&pipe.input[..pipe.filled], FRAME_MAX)?
            {
                let message = protocol::decode_message(payload)?;
                ensure!(matches!(message, HidbMessage::Welcome(_)), "{message:?}");
                pipe.drop_front(len);
                return Ok(pipe);
            }
        }
    }
}

impl Protocol for Hidb {
    fn put(&mut self, shape: Shape, out: &mut Vec<u8>) {
        self.last_request += 1;
        let at = out.len();
        out.extend_from_slice(&self.requests[shape as usize]);
        out[at + 4..at + 12].copy_from_slice(&self.last_request.to_le_bytes());
    }

    fn rows(&self, answer: &[u8]) -> anyhow::Result<String> {
        let (_, payload, _) = protocol::peek(answer, FRAME_MAX)?.context("no answer")?;
        match protocol::decode_message(payload)? {
            HidbMessage::Answer(Answer { run, .. }) => text_rows(&run),
            other => bail!("{other:?}"),
        }
    }

    fn scan(&mut self, shape: Shape, input: &[u8]) -> anyhow::Result<(usize, usize)> {
        let (mut used, mut answers) = (0, 0);
        while let Some((_, payload, len)) = protocol::peek(&input[used..], FRAME_MAX)? {
            if payload.first() != Some(&ANSWER) {
                bail!("{:?}", protocol::decode_message(payload)?);
            }
            // No row is shorter.
            ensure!(payload.len() > 20 * shape.rows(), "a short answer");
            used += len;
            answers += 1;
        }
        Ok((used, answers))
    }
}

fn frame(message: HidbMessage) -> anyhow::Result<Vec<u8>> {
    let mut out = BytesMut::new();
    let request = 0;
    protocol::encode(&Frame { request, message }, &mut out)?;
    Ok(out.to_vec())
}

fn dial(port: u16) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).context("cannot connect to helios")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &with_length(body)].concat()
}

fn with_length(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + body.len());
    out.put_u32(u32::try_from(4 + body.len()).expect("short"));
    out.extend_from_slice(body);
    out
}

/// The first message in some bytes, if all of it is there: its type and body.
fn next_message(input: &[u8]) -> anyhow::Result<Option<(u8, &[u8])>> {
    let Some((head, rest)) = input.split_first_chunk::<5>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let length = length
        .checked_sub(4)
        .context("a length that leaves out itself")?;
    Ok(rest.get(..length).map(|body| (head[0], body)))
}

/// The rows in PostgreSQL's messages, in text form, as psql prints them unaligned.
fn text_rows(mut messages: &[u8]) -> anyhow::Result<String> {
    let mut lines = Vec::new();
    while let Some((kind, body)) = next_message(messages)? {
        if kind == b'D' {
            lines.push(text_row(body).context("a row that is cut off")?);
        }
        messages = &messages[body.len() + 5..];
    }
    Ok(lines.join("\n"))
}

fn text_row(body: &[u8]) -> Option<String> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut fields = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let (field, behind) = behind.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        fields.push(String::from_utf8_lossy(field));
        rest = behind;
    }
    Some(fields.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_printed_as_psql_does() {
        let row = message(b'D', b"\0\x02\0\0\0\x017\0\0\0\x02ab");
        let answer = [row.clone(), row, message(b'C', b"SELECT 2\0")].concat();
        assert_eq!(text_rows(&answer).expect("valid"), "7|ab\n7|ab");
        assert!(text_rows(&message(b'D', b"\0\x02\0\0\0\x097")).is_err());
    }

    #[test]
    fn answers_are_counted_wherever_the_input_is_cut() {
        let row = message(b'D', b"\0\x01\0\0\0\x017");
        let one = [row, message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat();
        let input = [one.clone(), one].concat();
        for cut in 0..=input.len() {
            let mut protocol = Postgres {
                requests: Default::default(),
                rows: 0,
            };
            let (used, first) = protocol.scan(Shape::One, &input[..cut]).expect("valid");
            let (rest, second) = protocol.scan(Shape::One, &input[used..]).expect("valid");
            assert_eq!(
                (used + rest, first + second),
                (input.len(), 2),
                "cut at {cut}"
            );
        }
    }
}
