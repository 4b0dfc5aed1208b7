//! The cache beside others.

mod contestants;
mod hit_ratio;
mod invalidation;
mod memory;
mod orders;
mod peers;
mod simulation;
mod stampede;
mod throughput;
mod trace;

use std::io::Write as _;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Hit ratios on recorded requests, for each order, each peer and the best that is possible
    ///
    /// One shard, one thread: get, then put on a miss. A capacity is a share of the sum of the sizes of a trace's distinct
    /// objects.
    HitRatio(hit_ratio::Args),
    /// What invalidating a table costs, with a thousand entries and with a million
    Invalidation,
    /// What an entry takes beside its key and its value
    Memory,
    /// Fill one cache, and print what it takes
    #[command(hide = true)]
    Resident(memory::ResidentArgs),
    /// Ten thousand tasks that ask for the same missing answer
    Stampede,
    /// CPU time of look-ups and puts, by turns with other caches
    Throughput(throughput::Args),
}

/// Without a verb: everything but the hit ratios, which need recorded requests.
pub(crate) fn run(verb: Option<Verb>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match verb {
        None => {
            throughput::run(&throughput::Args::default(), &mut out)?;
            writeln!(out)?;
            memory::run(&mut out)?;
            writeln!(out)?;
            invalidation::run(&mut out)?;
            writeln!(out)?;
            stampede::run(&mut out)
        }
        Some(Verb::HitRatio(args)) => {
            drop(out);
            hit_ratio::run(&args)
        }
        Some(Verb::Invalidation) => invalidation::run(&mut out),
        Some(Verb::Memory) => memory::run(&mut out),
        Some(Verb::Resident(args)) => {
            drop(out);
            memory::resident(&args)
        }
        Some(Verb::Stampede) => stampede::run(&mut out),
        Some(Verb::Throughput(args)) => throughput::run(&args, &mut out),
    }
}
