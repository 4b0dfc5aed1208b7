//! What is asked, and how.

use clap::ValueEnum;
use serde::Serialize;

/// Which queries are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Workload {
    /// An aggregate over a million rows, in seven texts: what a dashboard asks.
    Heavy7,
    /// Point reads of a hundred rows: all of them fit in any cache.
    Hot100,
    /// Point reads spread over a million rows.
    Point,
}

impl Workload {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Heavy7 => "heavy7",
            Self::Hot100 => "hot100",
            Self::Point => "point",
        }
    }

    /// The pgbench script of one transaction, which is one query.
    pub(crate) fn script(self) -> &'static str {
        match self {
            // No max(): pgpool-II takes it for a function of the time of day, for one of that name is, and would not
            // cache the query.
            Self::Heavy7 => {
                "\\set n random(1, 7)\n\
                 SELECT count(*), sum(abalance), avg(aid % :n) FROM pgbench_accounts;\n"
            }
            Self::Hot100 => {
                "\\set aid random(1, 100)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n"
            }
            Self::Point => {
                "\\set aid random(1, 1000000)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n"
            }
        }
    }

    /// The fraction of transactions whose latency is logged. Logging all of the quick ones would cost the load
    /// generator, and so the rate, more than the tail of the distribution is worth.
    pub(crate) fn sampling_rate(self) -> &'static str {
        match self {
            Self::Heavy7 => "1",
            Self::Hot100 | Self::Point => "0.05",
        }
    }

    /// The modes and numbers of clients to run it with, of those that were asked for. A heavy query's cost is not in
    /// the protocol, so one combination tells everything.
    pub(crate) fn combinations(self, modes: &[Mode], clients: &[u32]) -> Vec<(Mode, u32)> {
        match self {
            Self::Heavy7 => vec![(Mode::Simple, 4)],
            Self::Hot100 | Self::Point => {
                let pair = |mode: &Mode| {
                    clients
                        .iter()
                        .map(|&count| (*mode, count))
                        .collect::<Vec<_>>()
                };
                modes.iter().flat_map(pair).collect()
            }
        }
    }
}

/// How a query is sent: the values of pgbench's `--protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Parse, Bind, Describe, Execute and Sync for each query.
    Extended,
    /// Parse once a connection, then Bind, Describe, Execute and Sync.
    Prepared,
    /// One Query message.
    Simple,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Extended => "extended",
            Self::Prepared => "prepared",
            Self::Simple => "simple",
        }
    }
}
