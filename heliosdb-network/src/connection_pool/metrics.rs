//! Counts of a pool.

/// What a pool holds and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolMetrics {
    /// Connections ready to be handed out.
    pub idle: usize,
    /// Connections handed out, or being checked or reset.
    pub active: usize,
    /// Connections being opened.
    pub connecting: usize,
    /// Connections being closed.
    pub closing: usize,
    /// Callers that wait.
    pub waiting: usize,
    /// Bound on the connections.
    pub max: usize,
    /// As many are opened: less than `max` after the server refused one because it had too many (SQLSTATE 53300). It grows
    /// again one by one.
    pub cap: usize,
    /// Everybody has to wait: see [`suspend`](super::EnhancedConnectionPool::suspend).
    pub suspended: bool,
    /// Connections on loan for longer than `leak_threshold`.
    pub overdue: usize,
    /// Connections handed out so far.
    pub acquired: u64,
    /// Connections opened so far.
    pub created: u64,
    /// Attempts to open one that failed.
    pub connect_failures: u64,
    /// Connections closed because they were too old or idle for too long.
    pub expired: u64,
    /// Connections closed because they were broken or failed a check.
    pub unhealthy: u64,
    /// Connections cleaned before they were used again.
    pub resets: u64,
    /// Acquires that timed out.
    pub timeouts: u64,
    /// Acquires that found an idle connection with the label they asked for.
    pub label_hits: u64,
    /// Connections handed out with a [hint](super::ConnectionHint) so far.
    pub hinted: u64,
    /// Those of them that the hint named.
    pub affinity_hits: u64,
}
