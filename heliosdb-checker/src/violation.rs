//! What a history must not show.

use std::fmt;

/// A promise that was broken, with the operations that prove it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// Which promise.
    pub kind: Kind,
    /// What happened, and the operations concerned, a line each.
    pub evidence: String,
}

/// Promises that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// A read saw what was rolled back.
    AbortedRead,
    /// Two writes made the same version: one that was seen or acknowledged is gone.
    Diverged,
    /// A read saw what nobody wrote yet.
    FromNowhere,
    /// A read saw what its transaction overwrote before it committed.
    IntermediateRead,
    /// Two answers over the same rows are no states of one order: each holds a write that the other lacks.
    LongFork,
    /// A client saw something older than what it had seen before.
    MonotonicRead,
    /// A client did not see what it wrote.
    ReadYourWrites,
    /// Two reads in one snapshot differ.
    SnapshotMoved,
    /// An answer was older than what was known, to anyone, before it was asked for.
    StaleRead,
    /// A sum that no transaction changes was another.
    SumChanged,
    /// An answer was older than its level allows.
    TooOld,
    /// Rows that are only changed together differ within one answer.
    Torn,
    /// A transaction did not see its own writes.
    TransactionRead,
    /// A write did not build on what was known before it began.
    WriteOrder,
}

impl Kind {
    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AbortedRead => "aborted read",
            Self::Diverged => "diverged",
            Self::FromNowhere => "from nowhere",
            Self::IntermediateRead => "intermediate read",
            Self::LongFork => "long fork",
            Self::MonotonicRead => "monotonic reads",
            Self::ReadYourWrites => "read your writes",
            Self::SnapshotMoved => "snapshot moved",
            Self::StaleRead => "stale read",
            Self::SumChanged => "sum changed",
            Self::TooOld => "too old",
            Self::Torn => "torn answer",
            Self::TransactionRead => "own writes in a transaction",
            Self::WriteOrder => "write order",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.evidence)
    }
}
