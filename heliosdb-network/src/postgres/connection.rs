//! A connection to a server.

use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::error::{HeliosError, Result};
use crate::tls::{self, SslMode};

use super::auth::Login;
use super::error_fields::ErrorFields;
use super::stream::Stream;
use super::target::{PgTarget, Place};
use super::{connect, frame, message, parse};

/// An authenticated connection to a PostgreSQL server.
///
/// It offers simple queries for its own needs. A gateway that relays messages works on its [`parts`](Self::parts)
/// and reports the transaction status back.
#[derive(Debug)]
pub struct PgConnection {
    stream: Stream,
    /// Where it went, with the address.
    place: Place,
    /// Whether the server is a standby, where it had to be asked.
    pub(super) asked_standby: Option<bool>,
    buffer: BytesMut,
    backend_pid: i32,
    backend_secret: Bytes,
    parameters: Vec<(String, String)>,
    transaction_status: u8,
    /// True while an answer is owed: where its reading is cut short, what comes next would be taken for another's.
    owed: bool,
    /// Something was run since this was last set to false.
    pub(super) is_used: bool,
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
/// Nor one of a server that has not let us in yet.
const LOGIN_MESSAGE_MAX: usize = 64 << 10;
/// How far the buffer grows ahead of what is known to come.
const READ_AHEAD: usize = 64 << 10;

impl PgConnection {
    /// Logs in over a stream that stands.
    pub(super) async fn log_in(stream: Stream, place: Place, target: &PgTarget) -> Result<Self> {
        let mut connection = Self {
            stream,
            place,
            asked_standby: None,
            buffer: BytesMut::with_capacity(1024),
            backend_pid: 0,
            backend_secret: Bytes::new(),
            parameters: Vec::new(),
            transaction_status: b'I',
            owed: false,
            is_used: false,
        };
        let mut out = BytesMut::new();
        let who = [("user", &target.user), ("database", &target.database)];
        let params = target.params.iter().map(|(name, value)| (&**name, value));
        message::put_startup(
            &mut out,
            who.into_iter()
                .chain(params)
                .map(|(name, value)| (name, value.as_str())),
        );
        connection.send(&out).await?;
        connection.authenticate(target).await?;
        loop {
            let (tag, body) = connection.receive(MESSAGE_MAX).await?;
            match tag {
                b'K' => {
                    let (pid, secret) = parse::backend_key_data(&body)?;
                    connection.backend_pid = pid;
                    connection.backend_secret = body.slice_ref(secret);
                }
                b'E' => return Err(refused(body)),
                b'Z' => return Ok(connection),
                b'N' | b'S' => {}
                tag => return Err(unexpected(tag, "a login")),
            }
        }
    }

    /// Until the server has let us in, it may say nothing but what belongs to that.
    async fn authenticate(&mut self, target: &PgTarget) -> Result<()> {
        let end_point = self.stream.peer().0.and_then(tls::end_point);
        let mut login = Login::new(target, end_point.as_deref());
        let mut out = BytesMut::new();
        loop {
            let (tag, body) = self.receive(LOGIN_MESSAGE_MAX).await?;
            match tag {
                b'R' => {
                    if login.answer(&body, &mut out)? {
                        return Ok(());
                    }
                    self.send(&out).await?;
                    out.clear();
                }
                b'E' => return Err(refused(body)),
                // There is nothing to negotiate: 3.0 is the oldest minor version, and no options were sent.
                b'N' | b'v' => {}
                tag => return Err(unexpected(tag, "an authentication")),
            }
        }
    }

    /// The socket and the bytes read from it that nobody has consumed yet.
    pub fn parts(&mut self) -> (&mut Stream, &mut BytesMut) {
        (&mut self.stream, &mut self.buffer)
    }

    /// Where it stands, with the address if it is a network's.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// This end's address, of a network's connection.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.stream.local_addr()
    }

    /// True under TLS.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.stream.is_encrypted()
    }

    /// Whether the server is a standby; `None` where it does not say so of itself (before PostgreSQL 14) and was not
    /// asked. It says so again when that changes, which whoever relays its messages sees.
    #[must_use]
    pub fn is_standby(&self) -> Option<bool> {
        match self.parameter("in_hot_standby") {
            Some(value) => Some(value == "on"),
            None => self.asked_standby,
        }
    }

    /// The target of this very server, and no other: for a [`cancel`], which goes encrypted where this went encrypted.
    #[must_use]
    pub fn target_here(&self, target: &PgTarget) -> PgTarget {
        let mode = if self.is_encrypted() {
            target.tls.mode.max(SslMode::Require)
        } else {
            SslMode::Disable
        };
        target.at(self.place.clone(), mode)
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

    /// One of these, by its name in any case.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
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

    /// Runs one or several statements and collects their answers as text, all in memory: for questions of one's own, not
    /// for relaying.
    ///
    /// # Errors
    /// [`HeliosError::Server`] with the first error, and [`HeliosError::Unsupported`] for a text with a NUL byte, which
    /// is not sent: the connection is usable afterwards. Anything else means that it is not.
    ///
    /// # Cancel safety
    /// Not cancel-safe: an answer half read makes the connection unusable, and [`is_alive`](Self::is_alive) says so.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<QueryResult>> {
        if sql.contains('\0') {
            return Err(HeliosError::Unsupported(
                "a statement can't hold a NUL byte".to_owned(),
            ));
        }
        let mut out = BytesMut::new();
        message::put_query(&mut out, sql);
        self.run(&out).await
    }

    /// Runs one statement with parameters, which are sent apart from it: nothing in them can become a part of it. Their
    /// types are those that the server makes of their places, their values in text form.
    ///
    /// # Errors
    /// As [`simple_query`](Self::simple_query).
    ///
    /// # Cancel safety
    /// Not cancel-safe, as there.
    pub async fn query(&mut self, sql: &str, params: &[Option<&str>]) -> Result<QueryResult> {
        let is_text = |text: &str| !text.contains('\0');
        if !is_text(sql) || !params.iter().flatten().all(|value| is_text(value)) {
            return Err(HeliosError::Unsupported(
                "a statement can't hold a NUL byte".to_owned(),
            ));
        }
        let mut out = BytesMut::new();
        message::put_parse(&mut out, "", sql, &[]);
        let values = params.iter().map(|value| value.map(str::as_bytes));
        message::put_bind(&mut out, "", "", &[], values, &[]);
        message::put_describe(&mut out, message::Named::Portal, "");
        message::put_execute(&mut out, "", 0);
        message::put_sync(&mut out);
        let results = self.run(&out).await?;
        Ok(results.into_iter().next().unwrap_or_default())
    }

    /// Sends a request and collects its answer.
    async fn run(&mut self, request: &[u8]) -> Result<Vec<QueryResult>> {
        self.owed = true;
        self.is_used = true;
        self.send(request).await?;
        let mut results = Vec::new();
        let mut current = QueryResult::default();
        let mut error: Option<ErrorFields> = None;
        loop {
            let (tag, body) = match (self.receive(MESSAGE_MAX).await, &error) {
                (Ok(message), _) => message,
                // It said why before it hung up.
                (Err(_), Some(reason)) => {
                    return Err(HeliosError::Network(format!(
                        "the server ended the connection: {reason}"
                    )));
                }
                (Err(lost), None) => return Err(lost),
            };
            match tag {
                b'T' => {
                    let columns = parse::row_description(&body)?;
                    current.columns = columns.iter().map(|column| text(column.name)).collect();
                }
                b'D' => {
                    let row = parse::data_row(&body)?;
                    current
                        .rows
                        .push(row.into_iter().map(|value| value.map(text)).collect());
                }
                b'C' => {
                    current.tag = text(parse::command_tag(&body)?);
                    results.push(std::mem::take(&mut current));
                }
                b'E' => error = error.or_else(|| Some(ErrorFields::parse(body))),
                // Nobody here has anything to copy in; the server then ends the statement with an error.
                b'G' => self.send(b"f\0\0\0\x05\0").await?,
                b'Z' => break,
                // An empty query, what a COPY to the client sends, what says that there are no rows or that a part of a
                // request is done, and what may come at any time.
                b'I' | b'H' | b'd' | b'c' | b'n' | b'1' | b'2' | b'N' | b'S' | b'A' => {}
                tag => return Err(unexpected(tag, "the answer to a query")),
            }
        }
        self.owed = false;
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

    /// True if an answer was not read to its end, and the connection is of no more use.
    pub(super) fn owes(&self) -> bool {
        self.owed || !self.buffer.is_empty()
    }

    /// A look at the socket without waiting: false if the server closed it or sent something unasked, as far as the
    /// runtime has heard of it, or if an answer is still owed. A connection found not alive is to be dropped: the look
    /// may have consumed a byte.
    pub fn is_alive(&mut self) -> bool {
        if self.owes() {
            return false;
        }
        let mut byte = [0];
        matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Says goodbye, and waits until the server has closed: what it was still sending is read and thrown away, so that
    /// it never finds the connection reset.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket. There is no other bound on the wait.
    pub async fn terminate(mut self) {
        let goodbye = self.send(message::TERMINATE).await;
        if goodbye.is_ok() && self.stream.shutdown().await.is_ok() {
            let mut rest = vec![0; 16 << 10];
            while self.stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
        }
    }

    /// Sends a command that a walsender answers with a stream in both directions, and waits until that begins.
    pub(super) async fn start_copy_both(&mut self, command: &str) -> Result<()> {
        self.owed = true;
        self.is_used = true;
        let mut out = BytesMut::new();
        message::put_query(&mut out, command);
        self.send(&out).await?;
        loop {
            let (tag, body) = self.receive(MESSAGE_MAX).await?;
            match tag {
                b'W' => return Ok(()),
                b'E' => return Err(refused(body)),
                b'N' | b'S' => {}
                tag => return Err(unexpected(tag, "the start of a replication stream")),
            }
        }
    }

    /// The next CopyData's body. Cancel-safe: what was read stays in the buffer.
    pub(super) async fn receive_copy_data(&mut self, len_max: usize) -> Result<Bytes> {
        loop {
            if let Some(body) = self.buffered_copy_data(len_max)? {
                return Ok(body);
            }
            self.read(READ_AHEAD).await?;
        }
    }

    /// As [`receive_copy_data`](Self::receive_copy_data), `None` if it has not been read yet.
    pub(super) fn buffered_copy_data(&mut self, len_max: usize) -> Result<Option<Bytes>> {
        while let Some((tag, body)) = frame::take(&mut self.buffer, len_max)? {
            match tag {
                b'd' => return Ok(Some(body)),
                b'E' => return Err(refused(body)),
                b'N' | b'S' => {}
                b'c' => {
                    return Err(HeliosError::Network(
                        "the server ended the replication stream".to_owned(),
                    ));
                }
                tag => return Err(unexpected(tag, "a replication stream")),
            }
        }
        Ok(None)
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let write = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        write
            .await
            .map_err(HeliosError::io("cannot write to the server"))
    }

    /// The next message. ParameterStatus and ReadyForQuery are noted on the way.
    async fn receive(&mut self, len_max: usize) -> Result<(u8, Bytes)> {
        loop {
            if let Some((tag, body)) = frame::take(&mut self.buffer, len_max)? {
                match tag {
                    b'S' => self.note_parameter(&body)?,
                    b'Z' => self.transaction_status = parse::ready_for_query(&body)?,
                    _ => {}
                }
                return Ok((tag, body));
            }
            // A long message gets room as it comes: a length alone is no reason to take memory.
            let room = self.buffer.len().clamp(1024, READ_AHEAD);
            self.read(room).await?;
        }
    }

    /// Reads what there is, with room for so many bytes.
    async fn read(&mut self, room: usize) -> Result<()> {
        self.buffer.reserve(room);
        let read = self.stream.read_buf(&mut self.buffer).await;
        if read.map_err(HeliosError::io("cannot read from the server"))? == 0 {
            return Err(HeliosError::Network(
                "the server closed the connection".to_owned(),
            ));
        }
        Ok(())
    }

    fn note_parameter(&mut self, body: &[u8]) -> Result<()> {
        let (name, value) = parse::parameter_status(body)?;
        let (name, value) = (text(name), text(value));
        match self.parameters.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.parameters.push((name, value)),
        }
        Ok(())
    }
}

/// Asks a server to cancel what a process of it is doing, and waits until it has taken note, within the target's timeout.
/// The request goes to the target's first place: see [`PgConnection::target_here`].
///
/// It has taken note when it closes the connection: the signal is sent by then. Whoever lends the process to somebody
/// else before that lets the cancel hit them.
///
/// # Errors
/// [`HeliosError::Network`] or [`HeliosError::Io`] if it can't be reached, or does not close in time.
///
/// # Cancel safety
/// Dropping the future does not take back a request that is sent.
pub async fn cancel(target: &PgTarget, pid: i32, secret: &[u8]) -> Result<()> {
    let request = async {
        let mut stream = connect::stream(target).await?;
        let mut out = BytesMut::new();
        message::put_cancel_request(&mut out, pid, secret);
        let deliver = async {
            stream.write_all(&out).await?;
            stream.flush().await?;
            // The server closes without an answer once the signal is sent.
            let mut rest = [0; 16];
            while stream.read(&mut rest).await? > 0 {}
            io::Result::Ok(())
        };
        let delivered = deliver.await;
        delivered.map_err(HeliosError::io("cannot deliver a cancel request"))
    };
    match timeout(target.connect_timeout, request).await {
        Ok(done) => done,
        Err(_) => Err(HeliosError::Network(format!(
            "no answer from {target} to a cancel request"
        ))),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn refused(body: Bytes) -> HeliosError {
    HeliosError::Server(Box::new(ErrorFields::parse(body)))
}

fn unexpected(tag: u8, during: &str) -> HeliosError {
    HeliosError::Protocol(format!(
        "a message of type {:?} during {during}",
        char::from(tag)
    ))
}
