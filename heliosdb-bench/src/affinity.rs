//! `affinity`: does a statement find its own plan? Clients execute prepared statements by chance, ten times as many as a
//! server connection keeps, through a helios that chooses connections by their statements and through one that doesn't.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use heliosdb_testkit::{PostgresCluster, free_port, postgres_bin_dir};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::cpu::{ProcessTable, seconds};
use crate::gateway::{helios_or_built, start_postgres};
use crate::interrupt::Interrupt;
use crate::peers::serves;
use crate::pgbench::{Pgbench, Script, libpq_environment};
use crate::process::Running;
use crate::statistics::Spread;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Length of a run, in whole seconds. Each begins with clients that have prepared nothing
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Runs with affinity and without, by turns, of each load
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Numbers of clients
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,10",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: Vec<u32>,
    /// Server connections
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    connections: u32,
    /// Statements that each connection keeps; there are ten times as many (pgbench takes 128 in all)
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=12))]
    kept: u32,
    /// A built helios [default: it is built, with the profile dist and without the embedded PostgreSQL]
    #[arg(long, value_name = "PATH")]
    helios: Option<PathBuf>,
}

/// Which of the statements is executed next.
#[derive(Debug, Clone, Copy)]
enum Popularity {
    /// Each as often.
    Uniform,
    /// The second half as often as the first, the third a third as often, and so on.
    Zipf,
}

impl Popularity {
    fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
        }
    }

    fn weight(self, rank: u32) -> u32 {
        match self {
            Self::Uniform => 1,
            Self::Zipf => 10_000 / rank,
        }
    }
}

/// One row of three tables: little to do, and something to plan.
fn statement(n: u32) -> String {
    format!(
        "\\set aid random(1, 1000000)\n\
         SELECT a.abalance + {n} FROM pgbench_accounts a JOIN pgbench_branches b ON b.bid = a.bid \
         JOIN pgbench_tellers t ON t.tid = b.bid WHERE a.aid = :aid;\n"
    )
}

/// A helios and what it was told.
struct Gateway {
    affinity: bool,
    port: u16,
    running: Running,
    /// After the process, so that it goes when that has ended.
    _folder: TempDir,
}

#[derive(Debug, Clone, Copy)]
struct Round {
    /// Of a hundred executions.
    found: f64,
    tps: f64,
    gateway_us: f64,
    postgres_us: f64,
}

struct Bench<'a> {
    args: &'a Args,
    cluster: &'a PostgresCluster,
    pgbench: &'a Pgbench,
    interrupt: &'a Interrupt,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let interrupt = Interrupt::watch()?;
    let pgbench = Pgbench::find(&postgres_bin_dir()?);
    let helios = helios_or_built(args.helios.as_deref(), &interrupt)?;
    eprintln!("starting PostgreSQL, with a million rows");
    let cluster = start_postgres(&pgbench, 2 * args.connections, &interrupt)?;
    let bench = Bench {
        args,
        cluster: &cluster,
        pgbench: &pgbench,
        interrupt: &interrupt,
    };
    let gateways = [
        bench.start_helios(&helios, true)?,
        bench.start_helios(&helios, false)?,
    ];
    bench.all(&gateways, &mut std::io::stdout().lock())
}

impl Bench<'_> {
    fn start_helios(&self, program: &Path, affinity: bool) -> anyhow::Result<Gateway> {
        let folder = tempfile::Builder::new().prefix("helios-bench-").tempdir()?;
        let (port, file) = (free_port()?, folder.path().join("helios.toml"));
        let Args {
            connections, kept, ..
        } = self.args;
        let config = format!(
            "[cache]\nenabled = false\n[pool]\nsize = {connections}\nmin_idle = {connections}\n\
             max_prepared_statements = {kept}\naffinity = {affinity}\n"
        );
        std::fs::write(&file, config)?;
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HELIOS_") {
                command.env_remove(name);
            }
        }
        command.current_dir(folder.path());
        command.arg("serve").arg("--config").arg(file);
        command.args(["--listen", &format!("127.0.0.1:{port}")]);
        command.args(["--http", "off", "--hidb", "off", "--log", "warn"]);
        command.args(["--upstream", &self.cluster.url("postgres", "postgres")]);
        let log = folder.path().join("log");
        let mut running = Running::start("helios", &mut command, &log, Signal::TERM)?;
        let psql = postgres_bin_dir()?.join("psql");
        running.wait_until_ready(self.interrupt, || serves(&psql, port))?;
        Ok(Gateway {
            affinity,
            port,
            running,
            _folder: folder,
        })
    }

    fn all(&self, gateways: &[Gateway; 2], out: &mut impl Write) -> anyhow::Result<()> {
        let Args {
            rounds,
            seconds,
            connections,
            kept,
            ..
        } = self.args;
        writeln!(
            out,
            "## Affinity\n\n{connections} server connections that keep {kept} statements each, {} statements, executed by \
             chance; {rounds} rounds of {seconds} s by turns: median and range. CPU is user and system time.\n",
            10 * kept
        )?;
        writeln!(
            out,
            "| popularity | clients | affinity | found prepared, % | TPS | gateway CPU µs/query | postgres CPU µs/query |"
        )?;
        writeln!(out, "| --- | --: | --- | --: | --: | --: | --: |")?;
        for popularity in [Popularity::Uniform, Popularity::Zipf] {
            let folder = tempfile::Builder::new().prefix("helios-bench-").tempdir()?;
            let scripts: Vec<Script> = (1..=10 * kept)
                .map(|n| {
                    let file = folder.path().join(format!("{n}.sql"));
                    std::fs::write(&file, statement(n))?;
                    Ok(Script {
                        file,
                        weight: popularity.weight(n),
                    })
                })
                .collect::<anyhow::Result<_>>()?;
            for &clients in &self.args.clients {
                let mut measured = [Vec::new(), Vec::new()];
                // One round before the first: connections are made, and statements prepared.
                for round in 0..=*rounds {
                    for (gateway, rounds) in gateways.iter().zip(&mut measured) {
                        let of_round = self.measure(gateway, &scripts, clients)?;
                        eprintln!(
                            "{} {clients} clients, affinity {}, round {round}: {:.1} % found, {:.0} tps",
                            popularity.name(),
                            gateway.affinity,
                            of_round.found,
                            of_round.tps
                        );
                        if round > 0 {
                            rounds.push(of_round);
                        }
                    }
                }
                for (gateway, rounds) in gateways.iter().zip(&measured) {
                    let affinity = if gateway.affinity { "on" } else { "off" };
                    write!(out, "| {} | {clients} | {affinity} ", popularity.name())?;
                    put_figures(rounds, [1, 0, 1, 1], out)?;
                }
                // Round by round: what else the machine did hit both.
                let [on, off] = &measured;
                let ratio = |(on, off): (&Round, &Round)| Round {
                    found: on.found / off.found,
                    tps: on.tps / off.tps,
                    gateway_us: on.gateway_us / off.gateway_us,
                    postgres_us: on.postgres_us / off.postgres_us,
                };
                let ratios: Vec<Round> = on.iter().zip(off).map(ratio).collect();
                write!(out, "| {} | {clients} | on / off ", popularity.name())?;
                put_figures(&ratios, [2; 4], out)?;
                out.flush()?;
            }
        }
        Ok(())
    }

    fn measure(
        &self,
        gateway: &Gateway,
        scripts: &[Script],
        clients: u32,
    ) -> anyhow::Result<Round> {
        let Some(postgres) = self.cluster.pid() else {
            bail!("PostgreSQL has ended")
        };
        let helios = gateway.running.pid();
        let roots = [helios, postgres];
        let found_before = prepared(gateway.port)?;
        let before = ProcessTable::read_at_rest(&roots)?;
        let (transactions, tps) = self.pgbench.run_scripts(
            gateway.port,
            scripts,
            clients,
            self.args.seconds,
            self.interrupt,
        )?;
        let after = ProcessTable::read_at_rest(&roots)?;
        let found_after = prepared(gateway.port)?;
        let us_each = |root| {
            let used = after.ticks(root).saturating_sub(before.ticks(root));
            seconds(used) * 1e6 / transactions as f64
        };
        let [hits, misses] = [0, 1].map(|at| (found_after[at] - found_before[at]) as f64);
        ensure!(hits + misses > 0.0, "nothing was prepared");
        Ok(Round {
            found: 100.0 * hits / (hits + misses),
            tps,
            gateway_us: us_each(helios),
            postgres_us: us_each(postgres),
        })
    }
}

/// Appends the figures of some rounds, or of ratios between them, to a row that was begun.
fn put_figures(rounds: &[Round], digits: [usize; 4], out: &mut impl Write) -> anyhow::Result<()> {
    let figures: [fn(&Round) -> f64; 4] = [
        |round| round.found,
        |round| round.tps,
        |round| round.gateway_us,
        |round| round.postgres_us,
    ];
    for (figure, digits) in figures.into_iter().zip(digits) {
        let spread = Spread::of(rounds.iter().map(figure)).context("no round")?;
        write!(out, "| {spread:.digits$} ")?;
    }
    writeln!(out, "|")?;
    Ok(())
}

/// How many executions of helios have found their statement, and how many have not.
fn prepared(port: u16) -> anyhow::Result<[u64; 2]> {
    let mut command = Command::new(postgres_bin_dir()?.join("psql"));
    libpq_environment(&mut command);
    let output = command
        .args(["-X", "-q", "-A", "-t", "-h", "127.0.0.1", "-U", "postgres"])
        .args(["-p", &port.to_string(), "-d", "helios", "-c", "SHOW TOTALS"])
        .stdin(Stdio::null())
        .output()
        .context("cannot run psql")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let count = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('|'));
        line.and_then(|value| value.parse().ok())
            .with_context(|| format!("helios did not say {name}: {text}"))
    };
    Ok([count("prepared_hits")?, count("prepared_misses")?])
}
