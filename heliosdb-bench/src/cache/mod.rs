//! The cache's orders beside other caches, on recorded requests.

mod hit_ratio;
mod orders;
mod peers;
mod simulation;
mod trace;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Hit ratios on recorded requests, for each order, each peer and the best that is possible
    ///
    /// One shard, one thread: get, then put on a miss. A capacity is a share of the sum of the sizes of a trace's distinct
    /// objects.
    HitRatio(hit_ratio::Args),
}

pub(crate) fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::HitRatio(args) => hit_ratio::run(&args),
    }
}
