//! What a history consists of: who did what, when, and what was seen.

use std::fmt;
use std::time::Duration;

/// Nanoseconds since the run began, on one monotonic clock for all clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time(u64);

impl Time {
    /// So many nanoseconds after the beginning.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// So long before; the beginning at the earliest.
    #[must_use]
    pub fn before(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(by)))
    }

    /// The time since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl From<Duration> for Time {
    fn from(since_start: Duration) -> Self {
        Self(nanos(since_start))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:06}",
            self.0 / 1_000_000_000,
            self.0 / 1000 % 1_000_000
        )
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A client, by its place among all.
pub type ClientId = u32;

/// What a write leaves in the rows that it changes: no two writes leave the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(i64);

impl Tag {
    /// The write of that number of a client.
    #[must_use]
    pub fn new(client: ClientId, number: u32) -> Self {
        Self(i64::from(client) << 32 | i64::from(number))
    }

    /// As it was read from a row.
    #[must_use]
    pub fn from_row(value: i64) -> Self {
        Self(value)
    }

    /// As it is written to a row.
    #[must_use]
    pub fn to_row(self) -> i64 {
        self.0
    }

    pub(crate) fn client(self) -> ClientId {
        ClientId::try_from(self.0 >> 32).unwrap_or(ClientId::MAX)
    }

    pub(crate) fn number(self) -> u32 {
        u32::try_from(self.0 & 0xffff_ffff).unwrap_or(u32::MAX)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}#{}", self.client(), self.number())
    }
}

/// How a client reaches the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there are two ways")]
pub enum Origin {
    /// Not through helios.
    Direct,
    /// Through helios.
    Gateway,
}

/// What a client was promised about its reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "the levels of helios, and the server's own"
)]
pub enum Level {
    /// No answer is older than the maximal age.
    Bounded,
    /// Nobody answers but the server: what it shows is there.
    Server,
    /// Writes through helios show in every later read; writes elsewhere after the maximal lag.
    Session,
    /// Every acknowledged write shows in every later read.
    Strict,
}

/// What is read and written as one: a register whose versions only ever grow, or something that comes and goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(clippy::exhaustive_structs, reason = "plain values")]
pub struct Key {
    /// Of which kind it is.
    pub family: Family,
    /// Its number among those of its kind.
    pub number: u32,
}

/// Kinds of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(clippy::exhaustive_enums, reason = "the workload knows all of them")]
pub enum Family {
    /// A row by itself.
    Cell,
    /// A row that is inserted and deleted in turn, by one client: absent in even versions, present in odd ones.
    Coming,
    /// Rows of two tables that are changed together.
    Group,
    /// A row that is inserted under a key of the server's: absent in version 0, present in version 1.
    Log,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::Cell => "cell",
            Family::Coming => "coming",
            Family::Group => "group",
            Family::Log => "log",
        };
        write!(f, "{family} {}", self.number)
    }
}

/// How a statement was run and what it is, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "plain values")]
pub struct What {
    /// The statement.
    pub statement: &'static str,
    /// The protocol and the transaction around it.
    pub form: &'static str,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.statement, self.form)
    }
}

/// An operation that showed a version of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Witness {
    pub(crate) client: ClientId,
    pub(crate) what: What,
    pub(crate) is_write: bool,
    pub(crate) start: Time,
    pub(crate) finish: Time,
    pub(crate) version: u64,
}

impl fmt::Display for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "client {:<3} {} [{} .. {}] {} version {}: {}",
            self.client,
            if self.is_write { "write" } else { "read " },
            self.start,
            self.finish,
            if self.is_write { "made" } else { "saw" },
            self.version,
            self.what,
        )
    }
}
