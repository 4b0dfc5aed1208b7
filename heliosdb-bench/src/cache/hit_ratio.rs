//! One table: traces and capacities down, caches across.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::simulation::{Ratios, Simulated};
use super::trace::{Relation, Trace};
use super::{orders, peers, simulation, trace};

const SOURCES: &str = "\
Files it reads, by the beginning of their names:
  arc_*.zst             the ARC paper's, https://github.com/moka-rs/cache-trace
  lirs_*.gz             the LIRS paper's, https://github.com/ben-manes/caffeine (resources of its simulator)
  corda.gz              64-bit numbers, from the same
  request.xz            time, key and size in a line, from the same (AdaptSize)
  others (.xz, .gz)     32-bit numbers, from the same (cache2k, CloudPhysics)";

#[derive(Debug, clap::Args)]
#[command(after_help = SOURCES)]
pub(crate) struct Args {
    /// Folder with the traces
    #[arg(long, env = "HELIOS_TRACES", value_name = "FOLDER")]
    traces: Option<PathBuf>,
    /// Only these, by their files' names up to the first dot
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// In percent of what the distinct objects take together
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,5,20",
        value_name = "PERCENT"
    )]
    capacities: Vec<u8>,
    /// Draw sizes (100 B to 64 KiB) and costs (0.05 ms to 500 ms) for the objects, and show which share of the costs is
    /// saved
    #[arg(long)]
    costs: bool,
    /// A line of JSON for each cell, instead of the table
    #[arg(long)]
    json: bool,
}

/// A cell.
#[derive(Debug, Serialize)]
struct Result {
    trace: String,
    capacity_percent: u8,
    cache: &'static str,
    #[serde(flatten)]
    ratios: Ratios,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let folder = args.traces.as_deref().with_context(|| {
        format!("which folder has the traces? Use --traces or HELIOS_TRACES.\n{SOURCES}")
    })?;
    let mut paths = trace::list(folder)
        .with_context(|| format!("no traces in {}.\n{SOURCES}", folder.display()))?;
    paths.retain(|path| {
        args.only.is_empty() || args.only.iter().any(|name| name == trace::name(path))
    });
    ensure!(
        !paths.is_empty(),
        "none of the traces asked for is in {}.\n{SOURCES}",
        folder.display()
    );
    let mut out = std::io::stdout().lock();
    if !args.json {
        write_head(&mut out, args.costs)?;
    }
    for path in paths {
        let trace = trace::read(&path)?;
        if args.costs {
            for relation in [Relation::Independent, Relation::Correlated] {
                run_trace(&trace.with_costs(relation), args, &mut out)?;
            }
        } else {
            run_trace(&trace, args, &mut out)?;
        }
    }
    Ok(())
}

fn run_trace(trace: &Trace, args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    for &percent in &args.capacities {
        let share = |of: u64| (of * u64::from(percent) / 100).max(1);
        let capacity = share(trace.total_size());
        let items = usize::try_from(share(trace.sizes.len() as u64))?;
        let simulate = |cache: &'static str, built: Option<Box<dyn Simulated>>| {
            let mut built = built.context("a cache with a name has a builder")?;
            anyhow::Ok(Result {
                trace: trace.name.clone(),
                capacity_percent: percent,
                cache,
                ratios: simulation::run(trace, &mut *built),
            })
        };
        let mut results = Vec::new();
        for name in peers::NAMES {
            results.push(simulate(name, peers::build(name, capacity, items))?);
        }
        for name in orders::NAMES {
            results.push(simulate(name, orders::build(name, capacity))?);
        }
        if args.json {
            for result in results {
                writeln!(out, "{}", serde_json::to_string(&result)?)?;
            }
        } else {
            let best_possible = (!trace.is_weighted).then(|| simulation::belady(trace, capacity));
            write_row(out, &results, best_possible, args.costs)?;
        }
        out.flush()?;
    }
    Ok(())
}

fn write_head(out: &mut impl Write, costs: bool) -> std::io::Result<()> {
    let what = if costs { "Costs saved" } else { "Hits" };
    writeln!(
        out,
        "{what}, in percent. The last column is the default's lead over the best peer that keeps its bound."
    )?;
    write!(out, "{:<26}{:>5}", "trace", "size")?;
    for name in peers::NAMES.iter().chain(&orders::NAMES) {
        write!(out, "{name:>13}")?;
    }
    writeln!(out, "{:>13}{:>8}", "optimum", "lead")
}

fn write_row(
    out: &mut impl Write,
    results: &[Result],
    best_possible: Option<f64>,
    costs: bool,
) -> std::io::Result<()> {
    let ratio = |result: &Result| {
        100.0
            * if costs {
                result.ratios.cost
            } else {
                result.ratios.hits
            }
    };
    let Some(first) = results.first() else {
        return Ok(());
    };
    write!(out, "{:<26}{:>4}%", first.trace, first.capacity_percent)?;
    for result in results {
        write!(out, "{:>13.2}", ratio(result))?;
    }
    match best_possible {
        Some(hits) => write!(out, "{:>13.2}", 100.0 * hits)?,
        None => write!(out, "{:>13}", "-")?,
    }
    let peers = results
        .iter()
        .filter(|result| peers::keeps_bound(result.cache) && peers::NAMES.contains(&result.cache));
    let best_peer = peers.map(ratio).fold(0.0, f64::max);
    let ours = results
        .iter()
        .find(|result| result.cache == orders::NAMES[0]);
    writeln!(out, "{:>+8.2}", ours.map_or(0.0, ratio) - best_peer)
}
