//! What can go wrong on a connection, sorted by what the caller can do about it.

use std::io;

use crate::postgres::ErrorFields;

/// The crate's result.
pub type Result<T, E = HeliosError> = std::result::Result<T, E>;

/// An error of a connection or of its protocol.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeliosError {
    /// The peer can't be reached, went away, or did not answer in time: try again later.
    #[error("{0}")]
    Network(String),
    /// The socket failed.
    #[error("{context}")]
    Io {
        /// What was being done.
        context: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The peer sent something that its protocol does not allow: the connection is unusable.
    #[error("protocol violation: {0}")]
    Protocol(String),
    /// The PostgreSQL server refused with an ErrorResponse.
    #[error("{0}")]
    Server(Box<ErrorFields>),
    /// An answer is longer than this end takes, in bytes.
    #[error("the answer is longer than {limit} bytes")]
    TooLarge {
        /// As many bytes would do.
        limit: usize,
    },
    /// The peer asks for something this end can't do (an authentication method, a missing password).
    #[error("{0}")]
    Unsupported(String),
}

impl HeliosError {
    /// Wraps an I/O error with what was being done.
    pub fn io(context: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { context, source }
    }

    /// True where the server has as many connections as it takes, or as it takes of this role or to this database.
    #[must_use]
    pub fn is_too_many_connections(&self) -> bool {
        matches!(self, Self::Server(fields) if fields.sqlstate() == "53300")
    }

    /// True where trying again can't help until somebody changes a configuration:
    /// wrong password, unknown database, unknown role, unsupported authentication.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Server(fields) => {
                matches!(
                    fields.sqlstate(),
                    "28000" | "28P01" | "3D000" | "42501" | "22023" | "0A000"
                )
            }
            Self::Unsupported(_) | Self::Protocol(_) => true,
            Self::Network(_) | Self::Io { .. } | Self::TooLarge { .. } => false,
        }
    }
}
