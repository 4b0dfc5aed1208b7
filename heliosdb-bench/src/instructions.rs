//! `instructions`: how many instructions a statement that is passed on takes, outside of the kernel, and how many misses of a
//! small instruction cache. Unlike processor time the figures are nearly the same in each run, whatever else the machine does;
//! but they say nothing of how fast it is.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use heliosdb_testkit::postgres_bin_dir;

use crate::gateway::{helios_or_built, start_postgres};
use crate::interrupt::Interrupt;
use crate::peers::{Peer, Site, Target};
use crate::pgbench::{Load, Pgbench};
use crate::workload::{Mode, Workload};

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Protocol modes
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "simple,extended,prepared"
    )]
    modes: Vec<Mode>,
    /// Numbers of clients
    #[arg(long, value_delimiter = ',', default_value = "1",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: Vec<u32>,
    /// Only these targets
    #[arg(long, value_delimiter = ',', default_value = "helios-pass,pgbouncer")]
    only: Vec<Target>,
    /// A built helios [default: it is built, with the profile dist and without the embedded PostgreSQL]
    #[arg(long, value_name = "PATH")]
    helios: Option<PathBuf>,
}

/// What a start and the first statements take is the difference to a run that does little more.
const SECONDS: [u32; 2] = [1, 5];

/// Measures, and prints the report.
#[expect(clippy::print_stdout, reason = "the report is what the program is for")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let interrupt = Interrupt::watch()?;
    let helios = helios_or_built(args.helios.as_deref(), &interrupt)?;
    let pgbench = Pgbench::find(&postgres_bin_dir()?);
    let clients_max = args.clients.iter().copied().max().unwrap_or(1);
    let cluster = start_postgres(&pgbench, clients_max, &interrupt)?;
    let site = Site {
        cluster: &cluster,
        clients_max,
        helios: Some(&helios),
        users: None,
        counts_instructions: true,
        interrupt: &interrupt,
    };
    println!("| peer | mode | clients | instructions for each query | misses of 32 KiB for them |");
    println!("| --- | --- | --: | --: | --: |");
    for &mode in &args.modes {
        for &clients in &args.clients {
            for &target in &args.only {
                let load = Load {
                    workload: Workload::Point,
                    mode,
                    clients,
                    seconds: 0,
                };
                let each = instructions(target, load, &site, &pgbench)?;
                let (target, mode) = (target.name(), mode.name());
                println!("| {target} | {mode} | {clients} | {each} |");
            }
        }
    }
    Ok(())
}

/// Of a peer under a load, in the form of the report.
fn instructions(
    target: Target,
    load: Load,
    site: &Site<'_>,
    pgbench: &Pgbench,
) -> anyhow::Result<String> {
    let mut counted = Vec::new();
    for seconds in SECONDS {
        let Some(peer) = Peer::start(target, site).context("is valgrind installed?")? else {
            bail!("{} is not installed", target.name());
        };
        if let Some(why) = peer.unsupported(load.mode) {
            return Ok(format!("{why} | -"));
        }
        let load = Load { seconds, ..load };
        let outcome = pgbench.run(peer.port, load, site.interrupt)?;
        counted.push((peer.into_executed()?, outcome.transactions));
    }
    let [(few, at_first), (many, in_all)] = &counted[..] else {
        bail!("there were not two runs");
    };
    let queries = in_all.saturating_sub(*at_first);
    ensure!(
        queries > 0 && many.instructions > few.instructions,
        "the longer run did less than the short one"
    );
    let instructions = (many.instructions - few.instructions) / queries;
    let misses = many.misses.saturating_sub(few.misses) / queries;
    Ok(format!("{instructions} | {misses}"))
}
