//! `gateway`: every target under the same loads, in turn.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use heliosdb_testkit::{PostgresCluster, postgres_bin_dir};

use crate::cpu::{Memory, ProcessTable, machine_busy_ticks, seconds};
use crate::interrupt::Interrupt;
use crate::peers::{Peer, Site, Target};
use crate::pgbench::{Load, Outcome, Pgbench};
use crate::report::{Cell, Environment, Report, Round};
use crate::settings::POOL_SIZE;
use crate::workload::{Mode, Workload};

/// What is measured. The defaults take about a quarter of an hour.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Length of a run, in whole seconds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Runs of each target under each load; the report has their median and range
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Numbers of clients
    #[arg(long, value_delimiter = ',', default_value = "1,16,64",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: Vec<u32>,
    /// Protocol modes
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "simple,extended,prepared"
    )]
    modes: Vec<Mode>,
    /// Workloads
    #[arg(long, value_delimiter = ',', default_value = "point,hot100,heavy7")]
    workloads: Vec<Workload>,
    /// Only these targets [default: all]
    #[arg(long, value_delimiter = ',')]
    only: Vec<Target>,
    /// A built helios [default: it is built, with the profile dist and without the embedded PostgreSQL]
    #[arg(long, value_name = "PATH")]
    helios: Option<PathBuf>,
    /// Write every round's figures to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// One short round of each, with 4 clients: shows that everything runs, the figures mean nothing
    #[arg(long, conflicts_with_all = ["seconds", "rounds", "clients"])]
    smoke: bool,
}

impl Args {
    /// Resolves `--smoke`.
    fn effective(&self) -> Self {
        if !self.smoke {
            return self.clone();
        }
        Self {
            seconds: 1,
            rounds: 1,
            clients: vec![4],
            ..self.clone()
        }
    }

    /// The targets that were asked for and have something to do, in the order of the report.
    fn targets(&self) -> Vec<Target> {
        let wanted = |target: &Target| {
            (self.only.is_empty() || self.only.contains(target))
                && self
                    .workloads
                    .iter()
                    .any(|&workload| target.takes(workload))
        };
        Target::ALL.into_iter().filter(wanted).collect()
    }
}

/// Measures, and prints the report.
#[expect(clippy::print_stdout, reason = "the report is what the program is for")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let args = args.effective();
    let interrupt = Interrupt::watch()?;
    let targets = args.targets();
    ensure!(
        !targets.is_empty(),
        "none of the targets takes any of the workloads"
    );
    let pgbench = Pgbench::find(&postgres_bin_dir()?);
    let generator = pgbench.version()?;
    let helios = if targets.iter().copied().any(Target::is_helios) {
        Some(helios_or_built(args.helios.as_deref(), &interrupt)?)
    } else {
        None
    };
    // heavy7 has its own number of clients.
    let clients_max = args.clients.iter().copied().max().unwrap_or(1).max(4);
    eprintln!("starting PostgreSQL, with a million rows");
    let cluster = start_postgres(&pgbench, clients_max, &interrupt)?;
    let site = Site {
        cluster: &cluster,
        clients_max,
        helios: helios.as_deref(),
        users: None,
        counts_instructions: false,
        interrupt: &interrupt,
    };
    let (mut peers, mut absent) = (Vec::new(), Vec::new());
    for target in targets {
        eprintln!("starting {}", target.name());
        match Peer::start(target, &site)? {
            Some(peer) => peers.push(peer),
            None => absent.push(target),
        }
    }
    let mut bench = Bench {
        args: &args,
        cluster: &cluster,
        pgbench: &pgbench,
        interrupt: &interrupt,
        warm: HashSet::new(),
    };
    let cells = bench.all(&peers)?;
    let report = Report {
        environment: Environment::read(generator, &peers)?,
        absent,
        cells,
    };
    println!("{}", report.to_markdown());
    if let Some(file) = &args.json {
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let failures = report
        .cells
        .iter()
        .filter(|cell| cell.failure.is_some())
        .count();
    ensure!(
        failures == 0,
        "{failures} of {} measurements failed",
        report.cells.len()
    );
    Ok(())
}

/// A cluster whose table lies in its memory, with a connection for everybody.
pub(crate) fn start_postgres(
    pgbench: &Pgbench,
    clients_max: u32,
    interrupt: &Interrupt,
) -> anyhow::Result<PostgresCluster> {
    // The clients that come directly, pgpool-II's processes, the poolers' connections, and some for the superuser.
    let connections = clients_max + clients_max.max(100) + 4 * POOL_SIZE + 20;
    let cluster = PostgresCluster::builder()
        .setting("max_connections", &connections.to_string())
        .setting("shared_buffers", "512MB")
        // Its work would be put down to whoever is being measured.
        .setting("autovacuum", "off")
        .start()?;
    interrupt.check()?;
    pgbench.initialise(cluster.port(), interrupt)?;
    // Neither hint bits nor dirty pages are left for the first reader.
    cluster.psql("postgres", "VACUUM ANALYZE")?;
    cluster.psql("postgres", "CHECKPOINT")?;
    cluster.psql("postgres", "SELECT sum(abalance) FROM pgbench_accounts")?;
    interrupt.check()?;
    Ok(cluster)
}

/// The helios that is named, or one that is built now.
pub(crate) fn helios_or_built(
    path: Option<&Path>,
    interrupt: &Interrupt,
) -> anyhow::Result<PathBuf> {
    match path {
        // The program runs in another folder.
        Some(path) => path
            .canonicalize()
            .with_context(|| format!("no helios at {}", path.display())),
        None => build_helios(interrupt),
    }
}

/// Builds helios and asks cargo where it put it.
fn build_helios(interrupt: &Interrupt) -> anyhow::Result<PathBuf> {
    eprintln!("building helios with the profile dist");
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "build",
            "--profile",
            "dist",
            "-p",
            "heliosdb-gateway",
            "--bin",
            "helios",
            "--no-default-features",
        ])
        .args([
            "--message-format",
            "json-render-diagnostics",
            "--manifest-path",
        ])
        .arg(manifest)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    interrupt.check()?;
    ensure!(output.status.success(), "helios does not build");
    executable(&String::from_utf8_lossy(&output.stdout))
        .context("cargo did not say where it put helios")
}

/// The program named in cargo's messages: one JSON object a line, and only a binary has an `executable`.
fn executable(messages: &str) -> Option<PathBuf> {
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    messages
        .filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .next_back()
}

struct Bench<'a> {
    args: &'a Args,
    cluster: &'a PostgresCluster,
    pgbench: &'a Pgbench,
    interrupt: &'a Interrupt,
    /// What has been run before, so that its first measured round finds connections made and caches filled.
    warm: HashSet<(Target, Workload, Mode)>,
}

impl Bench<'_> {
    /// All loads, one after the other.
    fn all(&mut self, peers: &[Peer]) -> anyhow::Result<Vec<Cell>> {
        let mut cells = Vec::new();
        for &workload in &self.args.workloads {
            for (mode, clients) in workload.combinations(&self.args.modes, &self.args.clients) {
                let load = Load {
                    workload,
                    mode,
                    clients,
                    seconds: self.args.seconds,
                };
                cells.extend(self.compare(peers, load)?);
            }
        }
        Ok(cells)
    }

    /// One load on all targets in turn, round by round, so that what else the machine does meanwhile hits all of them.
    fn compare(&mut self, peers: &[Peer], load: Load) -> anyhow::Result<Vec<Cell>> {
        let takers: Vec<&Peer> = peers
            .iter()
            .filter(|peer| peer.target.takes(load.workload))
            .collect();
        let mut cells: Vec<Cell> = takers
            .iter()
            .map(|peer| Cell {
                unsupported: peer.unsupported(load.mode),
                ..Cell::new(peer.target, load)
            })
            .collect();
        for round in 1..=self.args.rounds {
            for (peer, cell) in takers.iter().zip(&mut cells) {
                if cell.unsupported.is_some() || cell.failure.is_some() {
                    continue;
                }
                let done = self
                    .warm_up(peer, load)
                    .and_then(|()| self.measure(peer, load));
                // Not a failure of the peer, and nothing to go on after.
                self.interrupt.check()?;
                let heading = format!(
                    "{:12} {} {} {:>3} clients, round {round}",
                    peer.target.name(),
                    load.workload.name(),
                    load.mode.name(),
                    load.clients
                );
                match done {
                    Ok((measured, latencies)) => {
                        eprintln!("{heading}: {:.0} tps", measured.tps);
                        cell.rounds.push(measured);
                        cell.latencies_us.extend(latencies);
                    }
                    Err(error) => {
                        eprintln!("{heading}: {error:#}");
                        cell.failure = Some(format!("{error:#}"));
                    }
                }
            }
        }
        Ok(cells)
    }

    fn warm_up(&mut self, peer: &Peer, load: Load) -> anyhow::Result<()> {
        if self.warm.insert((peer.target, load.workload, load.mode)) {
            self.pgbench.run(peer.port, load, self.interrupt)?;
        }
        Ok(())
    }

    /// One run, and what it cost.
    fn measure(&self, peer: &Peer, load: Load) -> anyhow::Result<(Round, Vec<u64>)> {
        let Some(postgres) = self.cluster.pid() else {
            bail!("PostgreSQL has ended")
        };
        let ourselves = std::process::id();
        let roots: Vec<u32> = peer.pid().into_iter().chain([postgres]).collect();
        let before = ProcessTable::read_at_rest(&roots)?;
        let (busy_before, began) = (machine_busy_ticks()?, Instant::now());
        let Outcome {
            transactions,
            tps,
            latencies_us,
        } = self.pgbench.run(peer.port, load, self.interrupt)?;
        let after = ProcessTable::read_at_rest(&roots)?;
        let (busy, elapsed) = (
            machine_busy_ticks()?.saturating_sub(busy_before),
            began.elapsed(),
        );
        let used = |root| seconds(after.ticks(root).saturating_sub(before.ticks(root)));
        let us_each = |root| used(root) * 1e6 / transactions as f64;
        // All that was started here descends from us; the rest of what the machine did is somebody else's.
        let other_cores = (seconds(busy) - used(ourselves)) / elapsed.as_secs_f64();
        let memory = peer
            .pid()
            .map(|pid| Memory::of(&after.tree(pid)))
            .transpose()?;
        let round = Round {
            transactions,
            tps,
            gateway_us: peer.pid().map(us_each),
            postgres_us: us_each(postgres),
            other_cores,
            memory,
        };
        Ok((round, latencies_us))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &[&str]) -> Args {
        Line::try_parse_from(["bench"].iter().chain(words))
            .expect("valid")
            .args
            .effective()
    }

    #[test]
    fn only_what_was_asked_for_and_has_something_to_do_is_started() {
        assert_eq!(args(&[]).targets(), Target::ALL);
        let some = args(&["--only", "floor,direct,pgbouncer", "--workloads", "hot100"]);
        assert_eq!(some.targets(), [Target::Direct, Target::Floor]);
    }

    #[test]
    fn smoke_is_one_short_round() {
        let smoke = args(&["--smoke"]);
        assert_eq!(
            (smoke.seconds, smoke.rounds, smoke.clients),
            (1, 1, vec![4])
        );
        assert!(Line::try_parse_from(["bench", "--smoke", "--rounds", "2"]).is_err());
    }

    #[test]
    fn the_program_is_found_in_cargos_messages() {
        let messages = "\
            {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"libc\"},\"executable\":null}\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"helios\"},\"executable\":\"/t/release/helios\"}\n\
            {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages), Some("/t/release/helios".into()));
        assert_eq!(executable("{\"reason\":\"build-finished\"}\n"), None);
    }
}
