//! A connection to a server.

use std::io;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::error::{HeliosError, Result};

use super::auth::Login;
use super::error_fields::ErrorFields;
use super::message;
use super::stream::Stream;
use super::target::PgTarget;

/// An authenticated connection to a PostgreSQL server.
///
/// It offers simple queries for its own needs. A gateway that relays messages works on its [`parts`](Self::parts)
/// and reports the transaction status back.
#[derive(Debug)]
pub struct PgConnection {
    stream: Stream,
    buffer: BytesMut,
    backend_pid: i32,
    backend_secret: Bytes,
    parameters: Vec<(String, String)>,
    transaction_status: u8,
}

/// The answer to one statement of a simple query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueryResult {
    /// Column names; none for a statement without rows.
    pub columns: Vec<String>,
    /// Values in text form, `None` for NULL.
    pub rows: Vec<Vec<Option<String>>>,
    /// The command tag.
    pub tag: String,
}

/// No single message of an answer that is read here is honestly longer.
const MESSAGE_MAX: usize = 256 << 20;

impl PgConnection {
    /// Connects and logs in, within the target's timeout.
    ///
    /// # Errors
    /// [`HeliosError::Network`] or [`HeliosError::Io`] if the server can't be reached, [`HeliosError::Server`] if it
    /// refuses, [`HeliosError::Unsupported`] if it wants an authentication that can't be given.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket.
    pub async fn connect(target: &PgTarget) -> Result<Self> {
        match tokio::time::timeout(target.connect_timeout, Self::log_in(target)).await {
            Ok(connected) => connected,
            Err(_) => Err(HeliosError::Network(format!(
                "no connection to {target} within {:?}",
                target.connect_timeout
            ))),
        }
    }

    async fn log_in(target: &PgTarget) -> Result<Self> {
        let stream = Stream::connect(target).await.map_err(|error| {
            HeliosError::Network(format!("cannot connect to {target}: {error}"))
        })?;
        let mut connection = Self {
            stream,
            buffer: BytesMut::with_capacity(1024),
            backend_pid: 0,
            backend_secret: Bytes::new(),
            parameters: Vec::new(),
            transaction_status: b'I',
        };
        let mut out = BytesMut::new();
        message::put_startup(
            &mut out,
            [
                ("user", target.user.as_str()),
                ("database", target.database.as_str()),
            ],
        );
        connection.send(&out).await?;
        let mut login = Login::default();
        loop {
            let (tag, body) = connection.receive().await?;
            match tag {
                b'R' => {
                    out.clear();
                    login.answer(&body, target, &mut out)?;
                    if !out.is_empty() {
                        connection.send(&out).await?;
                    }
                }
                b'K' => {
                    let (pid, secret) = body.split_first_chunk::<4>().ok_or_else(|| {
                        HeliosError::Protocol("truncated BackendKeyData".to_owned())
                    })?;
                    connection.backend_pid = i32::from_be_bytes(*pid);
                    connection.backend_secret = Bytes::copy_from_slice(secret);
                }
                b'E' => return Err(HeliosError::Server(Box::new(ErrorFields::parse(body)))),
                b'Z' => return Ok(connection),
                _ => {}
            }
        }
    }

    /// The socket and the bytes read from it that nobody has consumed yet.
    pub fn parts(&mut self) -> (&mut Stream, &mut BytesMut) {
        (&mut self.stream, &mut self.buffer)
    }

    /// The server process, as a cancel request names it.
    #[must_use]
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// The key of a cancel request.
    #[must_use]
    pub fn backend_secret(&self) -> Bytes {
        self.backend_secret.clone()
    }

    /// What the server reported of its settings, in the order of first report.
    #[must_use]
    pub fn parameters(&self) -> &[(String, String)] {
        &self.parameters
    }

    /// `I`, `T` or `E`, as of the last ReadyForQuery that was seen or reported.
    #[must_use]
    pub fn transaction_status(&self) -> u8 {
        self.transaction_status
    }

    /// Reports a ReadyForQuery that was relayed.
    pub fn set_transaction_status(&mut self, status: u8) {
        self.transaction_status = status;
    }

    /// Runs one or several statements and collects their answers as text.
    ///
    /// # Errors
    /// [`HeliosError::Server`] with the first error; the connection is usable afterwards. Anything else means that it
    /// is not.
    ///
    /// # Cancel safety
    /// Not cancel-safe: an answer half read makes the connection unusable.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<QueryResult>> {
        let mut out = BytesMut::new();
        message::put_query(&mut out, sql);
        self.send(&out).await?;
        let mut results = Vec::new();
        let mut current = QueryResult::default();
        let mut error = None;
        loop {
            let (tag, body) = self.receive().await?;
            match tag {
                b'T' => {
                    current.columns =
                        column_names(&body).ok_or_else(|| truncated("RowDescription"))?
                }
                b'D' => current
                    .rows
                    .push(text_row(&body).ok_or_else(|| truncated("DataRow"))?),
                b'C' => {
                    let tag = body.strip_suffix(b"\0").unwrap_or(&body);
                    current.tag = String::from_utf8_lossy(tag).into_owned();
                    results.push(std::mem::take(&mut current));
                }
                b'E' => error = error.or(Some(ErrorFields::parse(body))),
                // Nobody here has anything to copy in; the server then ends the statement with an error.
                b'G' => self.send(b"f\0\0\0\x05\0").await?,
                b'Z' => break,
                _ => {}
            }
        }
        match error {
            Some(error) => Err(HeliosError::Server(Box::new(error))),
            None => Ok(results),
        }
    }

    /// Asks for a sign of life: an empty query, there and back.
    ///
    /// # Errors
    /// As [`simple_query`](Self::simple_query).
    ///
    /// # Cancel safety
    /// Not cancel-safe, as there.
    pub async fn check(&mut self) -> Result<()> {
        self.simple_query("").await.map(|_| ())
    }

    /// A look at the socket without waiting: false if the server closed it or sent something unasked.
    pub fn is_alive(&mut self) -> bool {
        if !self.buffer.is_empty() {
            return false;
        }
        let mut byte = [0];
        matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Says goodbye, and waits until the server has closed: what it was still sending is read and thrown away, so that
    /// it never finds the connection reset.
    pub async fn terminate(mut self) {
        let mut out = BytesMut::new();
        message::put_terminate(&mut out);
        if self.send(&out).await.is_ok() && self.stream.shutdown().await.is_ok() {
            let mut rest = vec![0; 16 << 10];
            while self.stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream
            .write_all(bytes)
            .await
            .map_err(HeliosError::io("cannot write to the server"))
    }

    /// The next message. ParameterStatus and ReadyForQuery are noted on the way.
    async fn receive(&mut self) -> Result<(u8, Bytes)> {
        loop {
            if let Some(head) = self.buffer.first_chunk::<5>() {
                let tag = head[0];
                let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                if !(4..=MESSAGE_MAX).contains(&len) {
                    return Err(HeliosError::Protocol(format!(
                        "a message of type {tag} has length {len}"
                    )));
                }
                if self.buffer.len() > len {
                    let mut message = self.buffer.split_to(len + 1).freeze();
                    message.advance(5);
                    match (tag, &message[..]) {
                        (b'S', body) => self.note_parameter(body),
                        (b'Z', [status]) => self.transaction_status = *status,
                        _ => {}
                    }
                    return Ok((tag, message));
                }
                self.buffer.reserve(len + 1 - self.buffer.len());
            }
            let read = self.stream.read_buf(&mut self.buffer).await;
            if read.map_err(HeliosError::io("cannot read from the server"))? == 0 {
                return Err(HeliosError::Network(
                    "the server closed the connection".to_owned(),
                ));
            }
        }
    }

    fn note_parameter(&mut self, body: &[u8]) {
        let mut parts = body.split(|byte| *byte == 0);
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else {
            return;
        };
        let (name, value) = (
            String::from_utf8_lossy(name),
            String::from_utf8_lossy(value).into_owned(),
        );
        match self.parameters.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.parameters.push((name.into_owned(), value)),
        }
    }
}

/// Asks a server to cancel what a process of it is doing, and waits until it has taken note.
///
/// # Errors
/// [`HeliosError::Network`] or [`HeliosError::Io`] if it can't be reached.
pub async fn cancel(target: &PgTarget, pid: i32, secret: &[u8]) -> Result<()> {
    let request = async {
        let mut stream = Stream::connect(target).await?;
        let mut out = BytesMut::new();
        message::put_cancel_request(&mut out, pid, secret);
        stream.write_all(&out).await?;
        // The server closes without an answer once the signal is sent.
        let mut rest = [0; 16];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    match tokio::time::timeout(target.connect_timeout, request).await {
        Ok(done) => done.map_err(HeliosError::io("cannot deliver a cancel request")),
        Err(_) => Err(HeliosError::Network(format!(
            "no answer from {target} to a cancel request"
        ))),
    }
}

fn column_names(body: &[u8]) -> Option<Vec<String>> {
    let (n, mut rest) = body.split_first_chunk::<2>()?;
    let mut names = Vec::new();
    for _ in 0..u16::from_be_bytes(*n) {
        let end = rest.iter().position(|byte| *byte == 0)?;
        names.push(String::from_utf8_lossy(rest.get(..end)?).into_owned());
        rest = rest.get(end + 19..)?;
    }
    Some(names)
}

fn text_row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let (n, mut rest) = body.split_first_chunk::<2>()?;
    let mut values = Vec::new();
    for _ in 0..u16::from_be_bytes(*n) {
        let (len, tail) = rest.split_first_chunk::<4>()?;
        let len = i32::from_be_bytes(*len);
        if let Ok(len) = usize::try_from(len) {
            values.push(Some(String::from_utf8_lossy(tail.get(..len)?).into_owned()));
            rest = tail.get(len..)?;
        } else {
            values.push(None);
            rest = tail;
        }
    }
    Some(values)
}

fn truncated(what: &str) -> HeliosError {
    HeliosError::Protocol(format!("truncated {what}"))
}
