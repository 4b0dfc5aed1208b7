//! Side-by-side runs of helios against its peers, on one machine, in one run, on the same data.
//!
//! A figure from another machine or another day proves little about a gateway, so every peer is started here, beside a
//! PostgreSQL of its own, and measured in turn: A B C, A B C. The figure to look at is the gateway's CPU time a query.
//! Unlike the rate it does not depend on how the load generator and PostgreSQL share the processors with the gateway.
#![forbid(unsafe_code)]

mod affinity;
mod cache;
mod clients;
mod cpu;
mod floor;
mod gateway;
mod hidb;
mod instructions;
mod interrupt;
mod outages;
mod peers;
mod pgbench;
mod pool;
mod process;
mod report;
mod rows;
mod settings;
mod staleness;
mod statistics;
mod workload;

/// The one that helios has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measure helios beside its peers.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask bench", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Compare helios that chooses server connections by their prepared statements with one that doesn't
    Affinity(affinity::Args),
    /// Compare the cache with others: without a command, everything that needs no recorded requests
    Cache {
        #[command(subcommand)]
        command: Option<cache::Verb>,
    },
    /// Compare helios with PgBouncer in what an idle client costs, and in how fast clients are let in
    Clients(clients::Args),
    /// Answer every query with the same bytes, until killed
    #[command(hide = true)]
    Floor {
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Compare helios with PgBouncer, pgpool-II, PostgreSQL itself, and the least that a server can cost
    Gateway(gateway::Args),
    /// Compare hits over HIDB with hits over PostgreSQL's protocol, on one connection, and with the client's own cache
    Hidb(hidb::Args),
    /// Count the instructions that helios and PgBouncer take for a query that is passed on. Needs valgrind
    Instructions(instructions::Args),
    /// Measure how long clients wait while helios is replaced online, and while the primary changes
    Outages(outages::Args),
    /// Compare the connection pool with others: without a command, all of it
    Pool {
        #[command(subcommand)]
        command: Option<pool::Verb>,
    },
    /// Compare hit ratios under writes: invalidation by row, by table, and pgpool-II's
    Rows(rows::Args),
    /// Measure how long answers lack writes that were made on the server itself
    Staleness(staleness::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Verb::Affinity(args) => affinity::run(&args),
        Verb::Cache { command } => cache::run(command),
        Verb::Clients(args) => clients::run(&args),
        Verb::Floor { listen } => floor::serve(listen),
        Verb::Gateway(args) => gateway::run(&args),
        Verb::Hidb(args) => hidb::run(&args),
        Verb::Instructions(args) => instructions::run(&args),
        Verb::Outages(args) => outages::run(&args),
        Verb::Pool { command } => pool::run(command),
        Verb::Rows(args) => rows::run(&args),
        Verb::Staleness(args) => staleness::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed stderr is no reason to panic: the exit code tells as well.
            let _ = writeln!(std::io::stderr(), "heliosdb-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
