//! `rows`: what is left of a cache under writes? Clients read accounts by primary key and, in between, run the transactions
//! of TPC-B on the same accounts: through a helios that invalidates by row, through one that invalidates by table, and
//! through pgpool-II if it is installed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use heliosdb_testkit::{PostgresCluster, free_port, postgres_bin_dir};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::gateway::{helios_or_built, start_postgres};
use crate::interrupt::Interrupt;
use crate::peers::{Peer, Site, Target, serves, without_helios_variables};
use crate::pgbench::{Pgbench, Script, libpq_environment};
use crate::process::Running;
use crate::settings::POOL_SIZE;
use crate::statistics::Spread;
use crate::workload::Mode;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Length of a run, in whole seconds. One as long goes before it and is not counted
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Runs of each load, each through a gateway that was started for it
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Clients
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: u32,
    /// Accounts that are read and written, each as often
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    accounts: u32,
    /// Transactions of a hundred that write
    #[arg(long, value_delimiter = ',', default_value = "0,1,10,50",
          value_parser = clap::value_parser!(u32).range(0..=99))]
    writes: Vec<u32>,
    /// How statements are sent
    #[arg(long, value_delimiter = ',', default_value = "simple,prepared")]
    modes: Vec<Mode>,
    /// A built helios [default: it is built, with the profile dist and without the embedded PostgreSQL]
    #[arg(long, value_name = "PATH")]
    helios: Option<PathBuf>,
}

/// What stands between the clients and PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ByRow,
    ByTable,
    Pgpool,
}

impl Way {
    const ALL: [Self; 3] = [Self::ByRow, Self::ByTable, Self::Pgpool];

    fn name(self) -> &'static str {
        match self {
            Self::ByRow => "by row",
            Self::ByTable => "by table",
            Self::Pgpool => "pgpool-II",
        }
    }
}

/// A gateway, while it is measured.
enum Gateway {
    Helios {
        port: u16,
        _running: Running,
        /// After the process, so that it goes when that has ended.
        _folder: TempDir,
    },
    Pgpool(Peer),
}

#[derive(Debug, Clone, Copy)]
struct Round {
    /// Of a hundred reads.
    hits: f64,
    tps: f64,
}

struct Bench<'a> {
    args: &'a Args,
    cluster: &'a PostgresCluster,
    helios: &'a Path,
    pgbench: &'a Pgbench,
    interrupt: &'a Interrupt,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let interrupt = Interrupt::watch()?;
    let pgbench = Pgbench::find(&postgres_bin_dir()?);
    let helios = helios_or_built(args.helios.as_deref(), &interrupt)?;
    eprintln!("starting PostgreSQL, with a million rows");
    let cluster = start_postgres(&pgbench, args.clients, &interrupt)?;
    let bench = Bench {
        args,
        cluster: &cluster,
        helios: &helios,
        pgbench: &pgbench,
        interrupt: &interrupt,
    };
    bench.all(&mut std::io::stdout().lock())
}

/// Reads an account; the transaction of TPC-B on one, as pgbench has it, on the accounts that are read.
fn scripts(folder: &Path, accounts: u32, writes: u32) -> anyhow::Result<Vec<Script>> {
    let draw = format!("\\set aid random(1, {accounts})\n");
    let read = format!("{draw}SELECT bid, abalance FROM pgbench_accounts WHERE aid = :aid;\n");
    let write = format!(
        "{draw}\\set bid random(1, 10)\n\\set tid random(1, 100)\n\\set delta random(-5000, 5000)\n\
         BEGIN;\n\
         UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;\n\
         SELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n\
         UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;\n\
         UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;\n\
         INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) \
         VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);\n\
         END;\n"
    );
    let mut scripts = Vec::new();
    for (name, text, weight) in [("read", read, 100 - writes), ("write", write, writes)] {
        if weight > 0 {
            let file = folder.join(format!("{name}.sql"));
            std::fs::write(&file, text)?;
            scripts.push(Script { file, weight });
        }
    }
    Ok(scripts)
}

impl Bench<'_> {
    fn all(&self, out: &mut impl Write) -> anyhow::Result<()> {
        let Args {
            seconds,
            rounds,
            clients,
            accounts,
            ..
        } = self.args;
        writeln!(
            out,
            "## Hits under writes\n\n{clients} clients read {accounts} accounts by primary key, drawn evenly, and run TPC-B \
             transactions on the same accounts; {rounds} rounds of {seconds} s, each after as long a warm-up: median and \
             range.\n"
        )?;
        writeln!(
            out,
            "| mode | writes, % | invalidation | hits, % of reads | TPS |"
        )?;
        writeln!(out, "| --- | --: | --- | --: | --: |")?;
        for &mode in &self.args.modes {
            for &writes in &self.args.writes {
                let folder = tempfile::Builder::new().prefix("helios-bench-").tempdir()?;
                let scripts = scripts(folder.path(), *accounts, writes)?;
                let mut measured = [const { Vec::new() }; Way::ALL.len()];
                for round in 1..=*rounds {
                    for (way, rounds) in Way::ALL.into_iter().zip(&mut measured) {
                        let Some(of_round) = self.measure(way, &scripts, mode)? else {
                            continue;
                        };
                        eprintln!(
                            "{} {writes} % writes, {}, round {round}: {:.1} % hits, {:.0} tps",
                            mode.name(),
                            way.name(),
                            of_round.hits,
                            of_round.tps
                        );
                        rounds.push(of_round);
                    }
                }
                for (way, rounds) in Way::ALL.into_iter().zip(&measured) {
                    let spread = |figure: fn(&Round) -> f64| Spread::of(rounds.iter().map(figure));
                    let (Some(hits), Some(tps)) =
                        (spread(|round| round.hits), spread(|round| round.tps))
                    else {
                        continue;
                    };
                    writeln!(
                        out,
                        "| {} | {writes} | {} | {hits:.1} | {tps:.0} |",
                        mode.name(),
                        way.name()
                    )?;
                }
                out.flush()?;
            }
        }
        Ok(())
    }

    /// `None` if it is not installed.
    fn measure(&self, way: Way, scripts: &[Script], mode: Mode) -> anyhow::Result<Option<Round>> {
        let Some(gateway) = self.start(way)? else {
            return Ok(None);
        };
        let Args {
            clients, seconds, ..
        } = *self.args;
        let run = || {
            let port = gateway.port();
            self.pgbench
                .run_each(port, scripts, mode, clients, seconds, self.interrupt)
        };
        run()?;
        let before = gateway.hits()?;
        let (each, tps) = run()?;
        let hits = gateway.hits()? - before;
        let reads = each.first().copied().unwrap_or(0);
        ensure!(reads > 0, "nothing was read");
        Ok(Some(Round {
            hits: 100.0 * hits as f64 / reads as f64,
            tps,
        }))
    }

    /// With an empty cache.
    fn start(&self, way: Way) -> anyhow::Result<Option<Gateway>> {
        let row_level = match way {
            Way::ByRow => true,
            Way::ByTable => false,
            Way::Pgpool => {
                let site = Site {
                    users: None,
                    counts_instructions: false,
                    cluster: self.cluster,
                    clients_max: self.args.clients,
                    helios: None,
                    interrupt: self.interrupt,
                };
                return Ok(Peer::start(Target::Pgpool, &site)?.map(Gateway::Pgpool));
            }
        };
        let folder = tempfile::Builder::new().prefix("helios-bench-").tempdir()?;
        let (port, file) = (free_port()?, folder.path().join("helios.toml"));
        let config = format!("[cache]\nrow_level = {row_level}\n[pool]\nsize = {POOL_SIZE}\n");
        std::fs::write(&file, config)?;
        let mut command = Command::new(self.helios);
        without_helios_variables(&mut command);
        command.current_dir(folder.path());
        command.arg("serve").arg("--config").arg(file);
        command.args(["--listen", &format!("127.0.0.1:{port}")]);
        command.args(["--http", "off", "--hidb", "off", "--log", "warn"]);
        command.args(["--upstream", &self.cluster.url("postgres", "postgres")]);
        let log = folder.path().join("log");
        let mut running = Running::start("helios", &mut command, &log, Signal::TERM)?;
        let psql = postgres_bin_dir()?.join("psql");
        running.wait_until_ready(self.interrupt, || serves(&psql, port))?;
        Ok(Some(Gateway::Helios {
            port,
            _running: running,
            _folder: folder,
        }))
    }
}

impl Gateway {
    fn port(&self) -> u16 {
        match self {
            Self::Helios { port, .. } => *port,
            Self::Pgpool(peer) => peer.port,
        }
    }

    /// How many reads were answered from memory since it started.
    fn hits(&self) -> anyhow::Result<u64> {
        let (database, question, name) = match self {
            Self::Helios { .. } => ("helios", "SHOW CACHE", "hits"),
            Self::Pgpool(_) => ("postgres", "SHOW pool_cache", "num_cache_hits"),
        };
        let mut command = Command::new(postgres_bin_dir()?.join("psql"));
        libpq_environment(&mut command);
        let output = command
            .args([
                "-X",
                "-q",
                "-A",
                "-t",
                "-x",
                "-h",
                "127.0.0.1",
                "-U",
                "postgres",
            ])
            .args([
                "-p",
                &self.port().to_string(),
                "-d",
                database,
                "-c",
                question,
            ])
            .stdin(Stdio::null())
            .output()
            .context("cannot run psql")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let hits = match self {
            // A record for each count.
            Self::Helios { .. } => text
                .lines()
                .skip_while(|line| *line != format!("name|{name}"))
                .find_map(|line| line.strip_prefix("value|")),
            Self::Pgpool(_) => text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('|')),
        };
        hits.and_then(|hits| hits.parse().ok())
            .with_context(|| format!("{question} did not say {name}: {text}"))
    }
}
