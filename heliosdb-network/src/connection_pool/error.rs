//! Why no connection could be acquired.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::HeliosError;

/// What an acquire was waiting for when its time was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AcquirePhase {
    /// For another to give a connection back.
    Wait,
    /// For a connection to be opened: none stands.
    Connect,
    /// For an idle connection to show that it works.
    Check,
    /// For the pool to be resumed.
    Suspended,
}

impl fmt::Display for AcquirePhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wait => "no connection became free",
            Self::Connect => "no connection was opened",
            Self::Check => "no idle connection proved to work",
            Self::Suspended => "the pool was not resumed",
        })
    }
}

/// Why no connection could be acquired.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// The pool is being drained.
    #[error("the pool is closed")]
    Closed,
    /// No connection lives, and the last attempt to open one failed.
    #[error("cannot connect: {0}")]
    Connect(#[source] Arc<HeliosError>),
    /// None became free in time.
    #[error(
        "{phase} within {waited:?}: {active} of {max} in use, {idle} idle, {connecting} being \
         opened, {waiting} waiting{}",
        last_connect_error.as_ref().map(|error| format!("; last attempt to connect: {error}")).unwrap_or_default()
    )]
    Timeout {
        /// What was waited for in the end.
        phase: AcquirePhase,
        /// How long was waited.
        waited: Duration,
        /// Connections allowed.
        max: usize,
        /// Connections in use.
        active: usize,
        /// Idle connections.
        idle: usize,
        /// Connections being opened.
        connecting: usize,
        /// Others that wait.
        waiting: usize,
        /// Why the last attempt to open a connection failed, if it did.
        last_connect_error: Option<Arc<HeliosError>>,
    },
}

impl AcquireError {
    /// The connection's own error, if there is one.
    #[must_use]
    pub fn cause(&self) -> Option<&HeliosError> {
        match self {
            Self::Closed => None,
            Self::Connect(error) => Some(error),
            Self::Timeout {
                last_connect_error, ..
            } => last_connect_error.as_deref(),
        }
    }

    /// True where waiting took too long.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }
}
