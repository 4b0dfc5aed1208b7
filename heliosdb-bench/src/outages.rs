//! `outages`: how long clients wait while helios is replaced by a new process (`RESTART`), and while the primary of its server
//! changes. Some clients come and go, some stay; each asks all the time, and the longest wait for an answer counts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use heliosdb_testkit::{PostgresCluster, free_port, postgres_bin_dir};
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

use crate::gateway::helios_or_built;
use crate::interrupt::Interrupt;
use crate::peers::{serves, without_helios_variables};
use crate::process::Running;
use crate::statistics::Spread;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Clients of each kind
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    clients: u32,
    /// Restarts and failovers; the report has their median and range
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// A built helios [default: it is built, with the profile dist and without the embedded PostgreSQL]
    #[arg(long, value_name = "PATH")]
    helios: Option<PathBuf>,
}

/// What clients of one kind met with.
#[derive(Debug, Default)]
struct Met {
    longest_ms: Vec<f64>,
    failures: u64,
}

/// One round: those that come and go, those that stay, and for how long the server itself took no writes.
#[derive(Debug)]
struct Round {
    coming: (Duration, u64),
    staying: (Duration, u64),
    server: Option<Duration>,
}

/// Measures, and prints the report.
#[expect(clippy::print_stdout, reason = "the report is what the program is for")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let interrupt = Interrupt::watch()?;
    let helios = helios_or_built(args.helios.as_deref(), &interrupt)?;
    let runtime = tokio::runtime::Runtime::new()?;
    println!("| what | clients | longest wait, ms | failed | the server took no writes, ms |");
    println!("| --- | --- | --: | --: | --: |");
    for failover in [false, true] {
        let (mut coming, mut staying, mut server) = (Met::default(), Met::default(), Vec::new());
        for _ in 0..args.rounds {
            interrupt.check()?;
            let round = if failover {
                fail_over(args, &helios, &interrupt, &runtime)?
            } else {
                restart(args, &helios, &interrupt, &runtime)?
            };
            for (met, (longest, failures)) in
                [(&mut coming, round.coming), (&mut staying, round.staying)]
            {
                met.longest_ms.push(longest.as_secs_f64() * 1e3);
                met.failures += failures;
            }
            server.extend(round.server.map(|down| down.as_secs_f64() * 1e3));
        }
        let what = if failover { "failover" } else { "restart" };
        let down = Spread::of(server.into_iter())
            .map_or_else(|| "-".to_owned(), |down| format!("{down:.0}"));
        for (kind, met) in [("come and go", coming), ("stay", staying)] {
            let longest = Spread::of(met.longest_ms.into_iter()).context("there were no rounds")?;
            println!(
                "| {what} | {kind} | {longest:.1} | {} | {down} |",
                met.failures
            );
        }
    }
    Ok(())
}

/// helios, and the process that takes its place.
struct Replaced {
    pid_file: PathBuf,
    port: u16,
    // Ended after its successor.
    _running: Running,
    _folder: tempfile::TempDir,
}

impl Drop for Replaced {
    fn drop(&mut self) {
        if let Some(pid) = pid_in(&self.pid_file) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

impl Replaced {
    fn start(helios: &Path, upstream: &str, interrupt: &Interrupt) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("helios-bench-").tempdir()?;
        let port = free_port()?;
        let pid_file = folder.path().join("pid");
        let config = folder.path().join("helios.toml");
        let text = format!(
            "pid_file = {pid_file:?}\ninvalidation = \"wire\"\nhttp = \"off\"\n\
             [hidb]\nlisten = []\n[log]\nlevel = \"warn\"\n[upstream]\nurl = {upstream:?}\n"
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new(helios);
        without_helios_variables(&mut command);
        command
            .args([
                "serve",
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--config",
            ])
            .arg(&config);
        let log = folder.path().join("log");
        let mut running = Running::start("helios", &mut command, &log, Signal::INT)?;
        let psql = postgres_bin_dir()?.join("psql");
        running.wait_until_ready(interrupt, || serves(&psql, port))?;
        Ok(Self {
            pid_file,
            port,
            _running: running,
            _folder: folder,
        })
    }
}

fn pid_in(file: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(file).ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}

fn restart(
    args: &Args,
    helios: &Path,
    interrupt: &Interrupt,
    runtime: &tokio::runtime::Runtime,
) -> anyhow::Result<Round> {
    let cluster = PostgresCluster::builder().start()?;
    cluster.psql("postgres", "CREATE TABLE t (a int)")?;
    let helios = Replaced::start(helios, &cluster.url("postgres", "postgres"), interrupt)?;
    let before = pid_in(&helios.pid_file);
    let [coming, staying] = runtime.block_on(disturb(args, helios.port, async {
        let console = connect(helios.port, "helios").await?;
        console.batch_execute("RESTART").await?;
        until(|| pid_in(&helios.pid_file).is_some_and(|pid| Some(pid) != before)).await
    }))?;
    Ok(Round {
        coming,
        staying,
        server: None,
    })
}

fn fail_over(
    args: &Args,
    helios: &Path,
    interrupt: &Interrupt,
    runtime: &tokio::runtime::Runtime,
) -> anyhow::Result<Round> {
    let mut primary = PostgresCluster::builder().start()?;
    primary.psql("postgres", "CREATE TABLE t (a int)")?;
    let standby = primary.standby()?;
    let upstream = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=read-write",
        primary.port(),
        standby.port()
    );
    let helios = Replaced::start(helios, &upstream, interrupt)?;
    let mut down = Duration::ZERO;
    let [coming, staying] = runtime.block_on(disturb(args, helios.port, async {
        let at_standby = connect(standby.port(), "postgres").await?;
        let began = Instant::now();
        tokio::task::block_in_place(|| primary.stop())?;
        at_standby.batch_execute("SELECT pg_promote()").await?;
        while at_standby
            .batch_execute("INSERT INTO t VALUES (0)")
            .await
            .is_err()
        {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        down = began.elapsed();
        Ok(())
    }))?;
    Ok(Round {
        coming,
        staying,
        server: Some(down),
    })
}

/// Has clients ask all the time, from a while before the disturbance to a while after it. Returns the longest wait, and how
/// many requests failed, of those that come and go and of those that stay.
async fn disturb(
    args: &Args,
    port: u16,
    disturbance: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<[(Duration, u64); 2]> {
    let is_over = Arc::new(AtomicBool::new(false));
    let mut asking = [JoinSet::new(), JoinSet::new()];
    for (asking, stays) in asking.iter_mut().zip([false, true]) {
        for _ in 0..args.clients {
            asking.spawn(ask(port, stays, Arc::clone(&is_over)));
        }
    }
    tokio::time::sleep(CALM).await;
    disturbance.await?;
    tokio::time::sleep(CALM).await;
    is_over.store(true, Ordering::Relaxed);
    let mut met = [(Duration::ZERO, 0), (Duration::ZERO, 0)];
    for (asking, met) in asking.into_iter().zip(&mut met) {
        for (longest, failures, answers) in asking.join_all().await {
            ensure!(answers > 0, "a client was never answered");
            met.0 = met.0.max(longest);
            met.1 += failures;
        }
    }
    Ok(met)
}

/// Writes again and again, each time as a new client unless it stays. Returns the longest time between two answers, and how
/// many requests failed and succeeded.
async fn ask(port: u16, stays: bool, is_over: Arc<AtomicBool>) -> (Duration, u64, u64) {
    let (mut longest, mut failures, mut answers) = (Duration::ZERO, 0, 0);
    let mut last = Instant::now();
    let mut client: Option<Client> = None;
    while !is_over.load(Ordering::Relaxed) {
        let asked = async {
            let kept = match client.take() {
                Some(kept) => kept,
                None => connect(port, "postgres").await?,
            };
            kept.batch_execute("INSERT INTO t VALUES (1)").await?;
            anyhow::Ok(kept)
        };
        match asked.await {
            Ok(kept) => {
                answers += 1;
                client = stays.then_some(kept);
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            Err(_) => {
                failures += 1;
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
    }
    (longest, failures, answers)
}

async fn connect(port: u16, database: &str) -> anyhow::Result<Client> {
    let config = format!("host=127.0.0.1 port={port} user=postgres dbname={database}");
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn until(mut is_so: impl FnMut() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() > deadline {
            bail!("the successor did not take over");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// What is measured before and after: shows what a wait is without a disturbance.
const CALM: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(60);
