//! The command line, and the tables that are printed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, ValueEnum};

use crate::checker::Promises;
use crate::faults::Faults;
use crate::run::{Mode, Plan, Refusal, Report};

/// Records what many clients of helios see while faults are injected, and checks it.
///
/// Starts a PostgreSQL server and helios. Exits with 1 if a promise was broken, and prints the operations that prove it.
#[derive(Debug, Parser)]
#[command(max_term_width = 100)]
struct Args {
    /// The program to check
    #[arg(long, value_name = "PATH")]
    helios: PathBuf,
    /// What helios is asked to promise; by default everything that it has
    #[arg(long, value_enum)]
    mode: Vec<Mode>,
    /// End after so many reads through helios
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    reads: u64,
    /// End after so many seconds, however many reads there were
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Of all choices of clients and faults; by default another each time
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Clients at the same time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(3..=60))]
    clients: u32,
    /// What goes wrong meanwhile
    #[arg(long, value_enum, default_value = "all")]
    faults: Faults,
    /// The longest that a write elsewhere may stay unseen
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    max_lag: Duration,
    /// The oldest that an answer may be at level `bounded`
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    max_age: Duration,
    /// Check the checker: helios, built with the feature `fault-switches`, without one protection after the other
    #[arg(long)]
    self_test: bool,
    /// Take one protection away, from a helios built with the feature `fault-switches`
    #[arg(long, value_name = "NAME", conflicts_with = "self_test")]
    remove: Option<String>,
}

/// Protections that a helios built with the feature `fault-switches` can do without, and the mode in which that shows.
const PROTECTIONS: &[(&str, Mode)] = &[
    ("pending-marks", Mode::Wire),
    ("bump-before-ack", Mode::Wire),
    ("versions-before-send", Mode::Wire),
    ("arrival-rule", Mode::Wire),
    ("doubt", Mode::Wire),
    ("atomic-bump", Mode::Wire),
    ("everything", Mode::Wire),
    ("row-any", Mode::Wire),
    ("row-new", Mode::Wire),
    ("repeatable-read", Mode::Wire),
    ("max-age", Mode::Bounded),
    ("tx-write-bypass", Mode::Bounded),
    ("gate", Mode::Replication),
    ("flush-on-reconnect", Mode::Replication),
    ("fence", Mode::Strict),
];

/// Does what the command line says.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let done = runtime
        .context("no runtime")
        .and_then(|runtime| runtime.block_on(args.run()));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("heliosdb-checker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Args {
    async fn run(&self) -> anyhow::Result<()> {
        if self.self_test {
            self.test_protections().await
        } else {
            self.check_modes().await
        }
    }

    fn plan(&self, mode: Mode) -> anyhow::Result<Plan> {
        Ok(Plan {
            helios: self
                .helios
                .canonicalize()
                .with_context(|| format!("no program {}", self.helios.display()))?,
            mode,
            reads: self.reads,
            time: self.seconds.map(Duration::from_secs),
            seed: self.seed.unwrap_or_else(|| fastrand::u64(..1_000_000)),
            clients: self.clients,
            faults: self.faults,
            promises: Promises {
                max_lag: self.max_lag,
                max_age: self.max_age,
            },
            removed: self.remove.clone(),
            violations: 10,
        })
    }

    async fn check_modes(&self) -> anyhow::Result<()> {
        let modes = if self.mode.is_empty() {
            Mode::value_variants()
        } else {
            &self.mode
        };
        let mut reports = Vec::new();
        for mode in modes {
            let plan = self.plan(*mode)?;
            eprintln!("mode {}, seed {}", mode.name(), plan.seed);
            match plan.run().await {
                Ok(report) => {
                    print_violations(&report);
                    reports.push(report);
                }
                Err(Refusal::Unavailable(why)) if self.mode.is_empty() => {
                    eprintln!("this helios has no mode {}: {}", mode.name(), why.trim());
                }
                Err(Refusal::Unavailable(why)) => {
                    bail!("this helios has no mode {}: {why}", mode.name())
                }
                Err(Refusal::Failed(error)) => return Err(error),
            }
        }
        print_reports(&reports);
        ensure!(!reports.is_empty(), "nothing was checked");
        let broken = reports
            .iter()
            .filter(|report| !report.violations.is_empty())
            .count();
        ensure!(broken == 0, "promises were broken");
        reports.iter().try_for_each(Report::check_worth)
    }

    /// Each protection is there for a reason: without it, something is found.
    async fn test_protections(&self) -> anyhow::Result<()> {
        let mut rows = Vec::new();
        let mut missed = Vec::new();
        let none = [("none", Mode::Wire)];
        for (name, mode) in none.iter().chain(PROTECTIONS) {
            let removed = (*name != "none").then(|| (*name).to_owned());
            let mut plan = self.plan(*mode)?;
            plan.violations = 1;
            let patience = if removed.is_some() { 180 } else { 20 };
            plan.time = Some(Duration::from_secs(self.seconds.unwrap_or(patience)));
            plan.removed = removed.clone();
            if *mode == Mode::Replication {
                plan.faults = Faults::Log;
            }
            eprintln!("without {name}, mode {}, seed {}", mode.name(), plan.seed);
            match plan.run().await {
                Ok(report) => {
                    let is_right = report.violations.is_empty() == removed.is_none();
                    if !is_right {
                        print_violations(&report);
                        missed.push(*name);
                    }
                    rows.push(protection_row(name, &report));
                }
                Err(Refusal::Unavailable(why)) => {
                    let why = why.lines().last().unwrap_or_default().to_owned();
                    eprintln!("not in this helios: {why}");
                }
                Err(Refusal::Failed(error)) => return Err(error),
            }
        }
        print_table(
            &[
                "removed", "mode", "found", "first", "reads", "writes", "seconds", "seed",
            ],
            &rows,
        );
        ensure!(
            rows.len() > 1,
            "this helios was built without the feature fault-switches"
        );
        ensure!(
            missed.is_empty(),
            "not as it must be: {}",
            missed.join(", ")
        );
        Ok(())
    }
}

fn protection_row(name: &str, report: &Report) -> Vec<String> {
    let first = report.violations.first();
    vec![
        name.to_owned(),
        report.plan.mode.name().to_owned(),
        if first.is_some() { "yes" } else { "no" }.to_owned(),
        first
            .map_or("", |violation| violation.kind.name())
            .to_owned(),
        report.counts.reads.to_string(),
        report.counts.committed.to_string(),
        format!("{:.1}", report.took.as_secs_f64()),
        report.plan.seed.to_string(),
    ]
}

fn print_violations(report: &Report) {
    for violation in &report.violations {
        eprintln!("{violation}");
    }
    if !report.violations.is_empty() {
        let plan = &report.plan;
        eprintln!(
            "(mode {}, seed {}, {} clients)",
            plan.mode.name(),
            plan.seed,
            plan.clients
        );
    }
}

fn print_reports(reports: &[Report]) {
    let rows: Vec<_> = reports
        .iter()
        .map(|report| {
            let counts = &report.counts;
            vec![
                report.plan.mode.name().to_owned(),
                counts.reads.to_string(),
                format!("{:.1} %", 100.0 * report.hit_share()),
                format!("{} + {}", counts.committed, counts.aborted),
                counts.unknown.to_string(),
                report.faults.total().to_string(),
                report.violations.len().to_string(),
                format!("{:.0}", report.took.as_secs_f64()),
                report.plan.seed.to_string(),
            ]
        })
        .collect();
    let head = [
        "mode",
        "reads checked",
        "from memory",
        "writes + rolled back",
        "unknown outcomes",
        "faults",
        "violations",
        "seconds",
        "seed",
    ];
    print_table(&head, &rows);
    for report in reports {
        eprintln!(
            "{}: {}; {} keys seen, {} reads of the server beside",
            report.plan.mode.name(),
            report.faults,
            report.counts.seen,
            report.counts.direct_reads
        );
    }
    if let Some(peak) = peak_memory() {
        eprintln!("peak memory of the checker: {peak}");
    }
}

/// As the kernel tells it.
fn peak_memory() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().to_owned())
}

/// A table in Markdown.
#[expect(clippy::print_stdout, reason = "the report is what the program is for")]
fn print_table(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(String::len);
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells
            .enumerate()
            .map(|(column, cell)| format!("{cell:<width$}", width = width(column)))
            .collect();
        println!("| {} |", cells.join(" | "));
    };
    line(&mut head.iter().copied());
    let dashes: Vec<String> = (0..head.len())
        .map(|column| "-".repeat(width(column)))
        .collect();
    line(&mut dashes.iter().map(String::as_str));
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}
