//! Errors that a client sees: always a PostgreSQL ErrorResponse with the SQLSTATE a server would use.

use std::borrow::Cow;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use heliosdb_network::connection_pool::AcquireError;
use heliosdb_network::error::HeliosError;
use heliosdb_network::postgres::ErrorFields;

use crate::config::names::{self, Dialect};

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
    /// What PgBouncer calls it: what people look for in logs, and what programs behind a `pgbouncer.ini` are told.
    known_as: Option<Box<str>>,
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
            known_as: None,
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

    pub(crate) fn known_as(mut self, reason: impl Into<Box<str>>) -> Self {
        self.known_as = Some(reason.into());
        self
    }

    /// What the log says of a client that is closed with it, in the words that PgBouncer's users look for.
    pub(crate) fn closing(&self, age: Duration) -> String {
        let (message, age) = (&self.message, age.as_secs());
        match &self.known_as {
            Some(reason) if **reason != *self.message => {
                format!("closing because: {reason} (age={age}s): {message}")
            }
            _ => format!("closing because: {message} (age={age}s)"),
        }
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
            let (size, wait) = (names::key("pool.size"), names::key("pool.acquire_timeout"));
            let hint = format!(
                "All server connections are in use. Raise {size}, or {wait} to wait for longer, shorten transactions, \
                 or look at SHOW SERVERS in the `helios` database for clients that hold one."
            );
            return Self::new(ErrorKind::Backend, "53300", error.to_string())
                .hint(hint)
                .known_as("query_wait_timeout");
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
        self.put_as(b'E', severity, Dialect::current(), out);
    }

    /// Appends it as a NoticeResponse: what was asked for is done nevertheless.
    pub(crate) fn put_warning(&self, out: &mut BytesMut) {
        self.put_as(b'N', "WARNING", Dialect::Helios, out);
    }

    /// Appends it as a NoticeResponse of no weight.
    pub(crate) fn put_notice(&self, out: &mut BytesMut) {
        self.put_as(b'N', "NOTICE", Dialect::Helios, out);
    }

    /// Code, message and detail. Programs that were behind PgBouncer know what it says when it ends their connection, and
    /// its one code for that, which drivers count among the faults of connections; helios's own words are the detail.
    fn told(&self, dialect: Dialect) -> (&str, &str, Option<Cow<'_, str>>) {
        let own = self.detail.as_deref();
        match (dialect, self.known_as.as_deref()) {
            (Dialect::PgBouncer, Some(known_as)) => {
                let sqlstate = if self.fatal { "08P01" } else { &*self.sqlstate };
                let detail = match own {
                    _ if *known_as == *self.message => own.map(Cow::Borrowed),
                    None => Some(Cow::Borrowed(&*self.message)),
                    Some(own) => Some(Cow::Owned(format!("{}\n{own}", self.message))),
                };
                (sqlstate, known_as, detail)
            }
            _ => (&self.sqlstate, &self.message, own.map(Cow::Borrowed)),
        }
    }

    fn put_as(&self, tag: u8, severity: &str, dialect: Dialect, out: &mut BytesMut) {
        let (sqlstate, message, detail) = self.told(dialect);
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
        field(b'C', sqlstate);
        field(b'M', message);
        if let Some(detail) = &detail {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_has_the_words_that_people_look_for_and_helioss_own() {
        let error = ClientError::new(ErrorKind::Client, "3D000", "database \"d\" does not exist");
        let age = Duration::from_millis(2900);
        assert_eq!(
            error.closing(age),
            "closing because: database \"d\" does not exist (age=2s)"
        );
        assert_eq!(
            error.known_as("no such database: d").closing(age),
            "closing because: no such database: d (age=2s): database \"d\" does not exist"
        );
    }

    #[test]
    fn programs_behind_a_pgbouncer_ini_are_told_what_pgbouncer_says() {
        let error = ClientError::new(ErrorKind::Client, "25P03", "terminating connection")
            .known_as("idle transaction timeout");
        let own = ("25P03", "terminating connection", None);
        assert_eq!(error.told(Dialect::Helios), own);
        let detail = Some(Cow::Borrowed("terminating connection"));
        assert_eq!(
            error.told(Dialect::PgBouncer),
            ("25P03", "idle transaction timeout", detail.clone()),
            "who stays connected does not read that the connection failed"
        );
        let error = error.fatal();
        assert_eq!(
            error.told(Dialect::PgBouncer),
            ("08P01", "idle transaction timeout", detail)
        );
        let other = ClientError::new(ErrorKind::Client, "28P01", "no").fatal();
        assert_eq!(other.told(Dialect::PgBouncer), ("28P01", "no", None));
    }
}
