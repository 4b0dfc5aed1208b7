//! Errors that a client sees: always a PostgreSQL ErrorResponse with the SQLSTATE a server would use.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};
use heliosdb_network::connection_pool::AcquireError;
use heliosdb_network::error::HeliosError;
use heliosdb_network::postgres::ErrorFields;

/// Who is to blame, as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ErrorKind {
    /// The server refused or went away.
    Backend,
    /// The client broke the protocol or a limit.
    Client,
    /// The configuration does not allow it.
    Config,
}

impl ErrorKind {
    /// The label under which the error is counted.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Backend => "backend",
            Self::Client => "client",
            Self::Config => "config",
        }
    }
}

/// An error in the form in which it goes to a client.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ClientError {
    /// Whose fault it is.
    pub(crate) kind: ErrorKind,
    /// True where the session ends with it (severity FATAL).
    pub(crate) fatal: bool,
    /// SQLSTATE, five characters.
    pub(crate) sqlstate: Cow<'static, str>,
    /// What happened.
    pub(crate) message: String,
    /// The numbers behind it.
    pub(crate) detail: Option<String>,
    /// What the reader can do.
    pub(crate) hint: Option<String>,
}

impl ClientError {
    pub(crate) fn new(kind: ErrorKind, sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            fatal: false,
            sqlstate: Cow::Borrowed(sqlstate),
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    pub(crate) fn fatal(mut self) -> Self {
        self.fatal = true;
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The client sent something that the protocol does not allow.
    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Client, "08P01", message).fatal()
    }

    /// The upstream connection was lost while the client's statement was on it.
    pub(crate) fn connection_lost(cause: &str) -> Self {
        Self::new(ErrorKind::Backend, "08006", format!("the connection to the database server was lost: {cause}"))
            .hint("Whether the last statement took effect is not known. Reconnect and check before repeating a write.")
            .fatal()
    }

    /// An error of the server, told to a client that did not cause it directly.
    pub(crate) fn from_server(fields: &ErrorFields) -> Self {
        let mut own = Self::new(ErrorKind::Backend, "XX000", fields.message());
        own.sqlstate = Cow::Owned(fields.sqlstate().to_owned());
        own.detail = fields.detail().map(str::to_owned);
        own.hint = fields.hint().map(str::to_owned);
        own
    }

    /// The error for a failed acquire: the server's own error where there is one.
    pub(crate) fn from_acquire(error: &AcquireError) -> Self {
        if let Some(HeliosError::Server(fields)) = error.cause() {
            return Self::from_server(fields);
        }
        if error.is_timeout() && error.cause().is_none() {
            return Self::new(ErrorKind::Backend, "53300", error.to_string()).hint(
                "All server connections are in use. Raise `pool.size`, shorten transactions, or look at SHOW SERVERS \
                 in the `helios` database for clients that hold one.",
            );
        }
        Self::new(
            ErrorKind::Backend,
            "08006",
            format!("cannot reach the database server: {error}"),
        )
    }

    /// Appends the ErrorResponse.
    pub(crate) fn put(&self, out: &mut BytesMut) {
        let severity = if self.fatal { "FATAL" } else { "ERROR" };
        self.put_as(b'E', severity, out);
    }

    /// Appends it as a NoticeResponse: what was asked for is done nevertheless.
    pub(crate) fn put_warning(&self, out: &mut BytesMut) {
        self.put_as(b'N', "WARNING", out);
    }

    /// Appends it as a NoticeResponse of no weight.
    pub(crate) fn put_notice(&self, out: &mut BytesMut) {
        self.put_as(b'N', "NOTICE", out);
    }

    fn put_as(&self, tag: u8, severity: &str, out: &mut BytesMut) {
        let start = out.len();
        out.put_u8(tag);
        out.put_u32(0);
        let mut field = |code: u8, text: &str| {
            out.put_u8(code);
            out.put_slice(text.as_bytes());
            out.put_u8(0);
        };
        field(b'S', severity);
        field(b'V', severity);
        field(b'C', &self.sqlstate);
        field(b'M', &self.message);
        if let Some(detail) = &self.detail {
            field(b'D', detail);
        }
        if let Some(hint) = &self.hint {
            field(b'H', hint);
        }
        out.put_u8(0);
        let len = u32::try_from(out.len() - start - 1).unwrap_or(u32::MAX);
        out[start + 1..start + 5].copy_from_slice(&len.to_be_bytes());
    }
}
