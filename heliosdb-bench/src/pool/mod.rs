//! The connection pool beside others, over connections that cost nothing or can't be had: what is measured is the pool.

mod contestants;
mod fairness;
mod outage;
mod sqlx;
mod storm;
mod throughput;

use std::io::Write as _;

use anyhow::Context as _;
use clap::Subcommand;
use tokio::runtime::{Builder, Runtime};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// How evenly tasks are served that hold connections for a millisecond
    Fairness(fairness::Args),
    /// What an acquire comes to while the server is down, and how soon one succeeds when it is back
    Outage(outage::Args),
    /// Acquires that are given up at any point: is every connection still there afterwards?
    Storm(storm::Args),
    /// CPU time, rate and waiting of acquire and release, by turns with other pools
    Throughput(throughput::Args),
}

/// Connections of each pool.
const CONNECTIONS: usize = 10;

/// Without a verb: all of them.
pub(crate) fn run(verb: Option<Verb>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match verb {
        None => {
            throughput::run(&throughput::Args::default(), &mut out)?;
            writeln!(out)?;
            fairness::run(&fairness::Args::default(), &mut out)?;
            writeln!(out)?;
            storm::run(&storm::Args::default(), &mut out)?;
            writeln!(out)?;
            outage::run(&outage::Args::default(), &mut out)
        }
        Some(Verb::Fairness(args)) => fairness::run(&args, &mut out),
        Some(Verb::Outage(args)) => outage::run(&args, &mut out),
        Some(Verb::Storm(args)) => storm::run(&args, &mut out),
        Some(Verb::Throughput(args)) => throughput::run(&args, &mut out),
    }
}

fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")
}
