//! What can go wrong, sorted by what the caller can do about it.

/// The crate's result.
pub type Result<T, E = CacheError> = std::result::Result<T, E>;

/// An error of the cache.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The computation that the caller asked for failed.
    #[error("computation failed: {0}")]
    Compute(String),
    /// A configuration that can't work: change the named field.
    #[error("invalid configuration: {field} {reason}")]
    Config {
        /// The field.
        field: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// As many computations are in flight as are allowed: run it without the cache, or try later.
    #[error("{0}")]
    Overload(String),
    /// A file of saved answers that can't be written or will not be loaded: go on without it.
    #[error("snapshot {path}: {reason}")]
    Snapshot {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

impl CacheError {
    pub(crate) fn overload() -> Self {
        Self::Overload("Too many in-flight requests".to_owned())
    }
}
