//! From figures to tables.

use std::fmt::{self, Write as _};
use std::time::SystemTime;

use anyhow::Context as _;
use serde::Serialize;

use crate::cpu::Memory;
use crate::peers::{Peer, Target};
use crate::pgbench::Load;
use crate::statistics::{Spread, percentile};
use crate::workload::{Mode, Workload};

/// One run of one load on one target.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Round {
    pub(crate) transactions: u64,
    pub(crate) tps: f64,
    /// CPU time a query, in microseconds, of the gateway's processes; none if there is no gateway.
    pub(crate) gateway_us: Option<f64>,
    /// The same of PostgreSQL's processes.
    pub(crate) postgres_us: f64,
    /// Processors that were kept busy by what has nothing to do with the run: above 0.2 or so, mistrust the rate.
    pub(crate) other_cores: f64,
    /// Of the gateway, right after the run.
    pub(crate) memory: Option<Memory>,
}

/// One load on one target.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cell {
    pub(crate) target: Target,
    pub(crate) workload: Workload,
    pub(crate) mode: Mode,
    pub(crate) clients: u32,
    pub(crate) rounds: Vec<Round>,
    /// A sample, over all rounds.
    #[serde(skip)]
    pub(crate) latencies_us: Vec<u64>,
    /// Why the target can't be measured under this load.
    pub(crate) unsupported: Option<&'static str>,
    /// What went wrong. The rounds before it don't count.
    pub(crate) failure: Option<String>,
}

/// Where and with what it was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Environment {
    date: String,
    command: String,
    cpus: usize,
    cpu_model: String,
    kernel: String,
    /// Of what took part: name, version.
    versions: Vec<(String, String)>,
}

/// All that is to be told.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    pub(crate) environment: Environment,
    /// What is not installed.
    pub(crate) absent: Vec<Target>,
    pub(crate) cells: Vec<Cell>,
}

impl Cell {
    pub(crate) fn new(target: Target, load: Load) -> Self {
        Self {
            target,
            workload: load.workload,
            mode: load.mode,
            clients: load.clients,
            rounds: Vec::new(),
            latencies_us: Vec::new(),
            unsupported: None,
            failure: None,
        }
    }

    /// The rounds, if all of them came off.
    fn results(&self) -> &[Round] {
        if self.failure.is_some() {
            &[]
        } else {
            &self.rounds
        }
    }

    fn has_load_of(&self, other: &Self) -> bool {
        (self.workload, self.mode, self.clients) == (other.workload, other.mode, other.clients)
    }
}

impl Environment {
    pub(crate) fn read(generator: String, peers: &[Peer]) -> anyhow::Result<Self> {
        let mut versions = vec![("load generator".to_owned(), generator)];
        versions.extend(
            peers
                .iter()
                .map(|peer| (peer.target.name().to_owned(), peer.version.clone())),
        );
        Self::with_versions(versions)
    }

    /// The machine and the command, with the names and versions of what was measured.
    pub(crate) fn with_versions(versions: Vec<(String, String)>) -> anyhow::Result<Self> {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
        let model = model
            .and_then(|line| line.split_once(": "))
            .map_or("unknown", |(_, name)| name);
        let kernel =
            std::fs::read_to_string("/proc/sys/kernel/osrelease").context("no kernel release")?;
        let words: Vec<String> = std::env::args().skip(1).collect();
        Ok(Self {
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            command: format!("cargo xtask bench {}", words.join(" ")),
            cpus: std::thread::available_parallelism()?.get(),
            cpu_model: model.to_owned(),
            kernel: kernel.trim().to_owned(),
            versions,
        })
    }

    pub(crate) fn write(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "\n## Environment\n")?;
        writeln!(
            out,
            "- {}, {} CPUs, Linux {}",
            self.cpu_model, self.cpus, self.kernel
        )?;
        writeln!(out, "- {}", self.date)?;
        writeln!(out, "- `{}`", self.command)?;
        for (name, version) in &self.versions {
            writeln!(out, "- {name}: {version}")?;
        }
        Ok(())
    }
}

impl Report {
    pub(crate) fn to_markdown(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("a String takes everything");
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        self.write_results(out)?;
        self.write_ratios(out)?;
        self.write_gaps(out)?;
        self.environment.write(out)
    }

    fn write_results(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "## Results\n")?;
        writeln!(
            out,
            "Medians of the rounds, with their range; latencies over all rounds. CPU is user and system time.\n"
        )?;
        writeln!(
            out,
            "| target | workload | mode | clients | TPS | p50 µs | p99 µs | gateway CPU µs/query \
             | postgres CPU µs/query | RSS MiB | PSS MiB | other load, cores |"
        )?;
        writeln!(
            out,
            "| --- | --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |"
        )?;
        for cell in &self.cells {
            let rounds = cell.results();
            let Some(tps) = Spread::of(rounds.iter().map(|round| round.tps)) else {
                continue;
            };
            let percentile = |percent| show(percentile(&cell.latencies_us, percent));
            let gateway = Spread::of(rounds.iter().filter_map(|round| round.gateway_us));
            let postgres = Spread::of(rounds.iter().map(|round| round.postgres_us));
            let memory = rounds.last().and_then(|round| round.memory);
            writeln!(
                out,
                "| {} | {} | {} | {} | {tps:.0} | {} | {} | {} | {} | {} | {} | {} |",
                cell.target.name(),
                cell.workload.name(),
                cell.mode.name(),
                cell.clients,
                percentile(50),
                percentile(99),
                show(gateway.map(|spread| format!("{spread:.2}"))),
                show(postgres.map(|spread| format!("{spread:.2}"))),
                show(memory.map(|memory| memory.rss_kib >> 10)),
                show(memory.map(|memory| memory.pss_kib >> 10)),
                show(
                    Spread::of(rounds.iter().map(|round| round.other_cores))
                        .map(|s| format!("{:.2}", s.median))
                ),
            )?;
        }
        Ok(())
    }

    fn write_ratios(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "\n## Ratios\n")?;
        writeln!(out, "Round by round, then the median and the range.\n")?;
        writeln!(
            out,
            "| ratio | workload | mode | clients | gateway CPU | TPS |"
        )?;
        writeln!(out, "| --- | --- | --- | --: | --: | --: |")?;
        for (above, below) in PAIRS {
            for cell in self.cells.iter().filter(|cell| cell.target == above) {
                let of_below = |other: &&Cell| other.target == below && other.has_load_of(cell);
                let Some(other) = self.cells.iter().find(of_below) else {
                    continue;
                };
                let Some(tps) = ratio(cell, other, |round| Some(round.tps)) else {
                    continue;
                };
                writeln!(
                    out,
                    "| {} / {} | {} | {} | {} | {} | {tps:.2} |",
                    above.name(),
                    below.name(),
                    cell.workload.name(),
                    cell.mode.name(),
                    cell.clients,
                    show(
                        ratio(cell, other, |round| round.gateway_us)
                            .map(|spread| format!("{spread:.2}"))
                    ),
                )?;
            }
        }
        Ok(())
    }

    fn write_gaps(&self, out: &mut String) -> fmt::Result {
        let reason = |cell: &Cell| {
            Some((
                cell.clone(),
                cell.failure
                    .clone()
                    .or_else(|| cell.unsupported.map(str::to_owned))?,
            ))
        };
        let gaps: Vec<(Cell, String)> = self.cells.iter().filter_map(reason).collect();
        if gaps.is_empty() && self.absent.is_empty() {
            return Ok(());
        }
        writeln!(out, "\n## Not measured\n")?;
        for target in &self.absent {
            writeln!(out, "- {}: not installed", target.name())?;
        }
        for (cell, reason) in gaps {
            let (target, workload, mode) =
                (cell.target.name(), cell.workload.name(), cell.mode.name());
            // A message of several lines would end the list.
            let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
            writeln!(
                out,
                "- {target}, {workload}, {mode}, {} clients: {reason}",
                cell.clients
            )?;
        }
        Ok(())
    }
}

/// What is set against what, if both were measured under the same load.
const PAIRS: [(Target, Target); 12] = [
    (Target::HeliosHit, Target::Floor),
    (Target::HeliosPass, Target::Pgbouncer),
    (Target::HeliosPass, Target::Odyssey),
    (Target::HeliosPass, Target::Pgcat),
    (Target::HeliosPass, Target::Pgdog),
    (Target::HeliosTwo, Target::Pgbouncer),
    (Target::HeliosTwo, Target::Odyssey),
    (Target::HeliosTwo, Target::Pgcat),
    (Target::HeliosTwo, Target::Pgdog),
    (Target::HeliosMiss, Target::Pgbouncer),
    (Target::HeliosHit, Target::Pgpool),
    (Target::HeliosHit, Target::Direct),
];

/// The ratio within each round: the two ran next to each other, so most of what disturbed one disturbed both.
fn ratio(above: &Cell, below: &Cell, figure: impl Fn(&Round) -> Option<f64>) -> Option<Spread> {
    let pairs = above.results().iter().zip(below.results());
    let ratios = pairs.filter_map(|(above, below)| Some(figure(above)? / figure(below)?));
    // A heavy query's gateway time may be less than a tick.
    Spread::of(ratios.filter(|ratio| ratio.is_finite()))
}

fn show(figure: Option<impl ToString>) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| figure.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(target: Target, figures: &[(f64, f64)]) -> Cell {
        let load = Load {
            workload: Workload::Hot100,
            mode: Mode::Simple,
            clients: 16,
            seconds: 1,
        };
        let round = |&(tps, gateway_us): &(f64, f64)| Round {
            transactions: 1,
            tps,
            gateway_us: (target != Target::Direct).then_some(gateway_us),
            postgres_us: 0.5,
            other_cores: 0.0,
            memory: None,
        };
        Cell {
            rounds: figures.iter().map(round).collect(),
            latencies_us: vec![3, 1, 2],
            ..Cell::new(target, load)
        }
    }

    fn report(cells: Vec<Cell>) -> String {
        let environment = Environment {
            date: "2026-01-01T00:00:00Z".to_owned(),
            command: "cargo xtask bench gateway".to_owned(),
            cpus: 2,
            cpu_model: "a processor".to_owned(),
            kernel: "6".to_owned(),
            versions: Vec::new(),
        };
        Report {
            environment,
            absent: vec![Target::Pgpool],
            cells,
        }
        .to_markdown()
    }

    #[test]
    fn ratios_pair_the_rounds() {
        // Round by round helios costs twice the floor; the ratio of the two medians would be 4 / 1.
        let hit = cell(Target::HeliosHit, &[(10.0, 2.0), (30.0, 4.0), (10.0, 20.0)]);
        let floor = cell(Target::Floor, &[(20.0, 1.0), (20.0, 1.0), (20.0, 10.0)]);
        let found = ratio(&hit, &floor, |round| round.gateway_us).expect("a ratio");
        assert_eq!(
            found,
            Spread {
                median: 2.0,
                min: 2.0,
                max: 4.0
            }
        );
        let text = report(vec![hit, floor]);
        assert!(text.contains("| helios-hit / floor | hot100 | simple | 16 | 2.00 (2.00-4.00) | 0.50 (0.50-1.50) |"), "{text}");
    }

    #[test]
    fn without_a_gateway_there_is_no_gateway_cost() {
        let text = report(vec![
            cell(Target::HeliosHit, &[(10.0, 2.0)]),
            cell(Target::Direct, &[(5.0, 0.0)]),
        ]);
        assert!(
            text.contains(
                "| direct | hot100 | simple | 16 | 5 (5-5) | 2 | 3 | - | 0.50 (0.50-0.50) |"
            ),
            "{text}"
        );
        assert!(
            text.contains("| helios-hit / direct | hot100 | simple | 16 | - | 2.00 (2.00-2.00) |"),
            "{text}"
        );
    }

    #[test]
    fn what_failed_is_named_and_not_in_the_tables() {
        let mut failed = cell(Target::HeliosHit, &[(10.0, 2.0)]);
        failed.failure = Some("it\nbroke".to_owned());
        let text = report(vec![failed, cell(Target::Floor, &[(20.0, 1.0)])]);
        assert!(!text.contains("| helios-hit"), "{text}");
        assert!(
            text.contains("- helios-hit, hot100, simple, 16 clients: it broke\n"),
            "{text}"
        );
        assert!(text.contains("- pgpool: not installed\n"), "{text}");
    }
}
