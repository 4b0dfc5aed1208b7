//! Why no connection could be acquired.

use std::sync::Arc;
use std::time::Duration;

use crate::error::HeliosError;

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
        "no connection became free within {waited:?}: {active} of {max} in use, {idle} idle, {connecting} being \
         opened, {waiting} waiting{}",
        last_connect_error.as_ref().map(|error| format!("; last attempt to connect: {error}")).unwrap_or_default()
    )]
    Timeout {
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
