//! `staleness`: how long an answer from memory lacks a write that was made on the server itself.
//!
//! A writer on a direct connection counts a row up and notes when each write was acknowledged. A reader asks for the
//! row through helios, one question after the other. A write's staleness is the time from its acknowledgement to the
//! last question that was answered without it; where no question was, it is 0.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use heliosdb_testkit::{PostgresCluster, free_port, postgres_bin_dir};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::gateway::helios_or_built;
use crate::interrupt::Interrupt;
use crate::peers::{serves, version, without_helios_variables};
use crate::process::Running;
use crate::report::Environment;
use crate::statistics::percentile;

/// What is measured. The defaults take about a minute.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Writes a second
    #[arg(long, value_delimiter = ',', default_value = "5,50,200")]
    writes: Vec<u32>,
    /// How long each rate
    #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// A built helios [default: it is built, with the profile dist and without the embedded PostgreSQL]
    #[arg(long, value_name = "PATH")]
    helios: Option<PathBuf>,
}

const TABLE: &str = "\
CREATE TABLE stamps (id int PRIMARY KEY, n bigint NOT NULL);
INSERT INTO stamps SELECT n, 0 FROM generate_series(1, 1000) n;
CREATE PUBLICATION helios FOR TABLE stamps";
const CONFIG: &str = "invalidation = \"replication\"\n";
const READ: &str = "SELECT n FROM stamps WHERE id = 1";
const PATIENCE: Duration = Duration::from_secs(30);

/// In this order it ends: helios first.
struct Site {
    _helios: Running,
    port: u16,
    version: String,
    _folder: TempDir,
    cluster: PostgresCluster,
}

/// What came of one rate of writes.
struct Turn {
    /// Of each write, in microseconds.
    staleness_us: Vec<u64>,
    reads: u64,
    hits: u64,
}

/// Measures, and prints the report.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(!args.writes.contains(&0), "no writes");
    let interrupt = Interrupt::watch()?;
    let site = Site::start(args.helios.as_deref(), &interrupt)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "## Staleness\n\nWrites on a direct connection, reads through helios, which follows the server's replication stream. \
         Time from a write's acknowledgement to the last question that was answered without it.\n"
    )?;
    writeln!(
        out,
        "| writes/s | writes | reads | % hits | % seen at once | p50 ms | p99 ms | max ms |"
    )?;
    writeln!(out, "| --: | --: | --: | --: | --: | --: | --: | --: |")?;
    for &rate in &args.writes {
        interrupt.check()?;
        eprintln!("{rate} writes a second");
        let turn = runtime.block_on(site.measure(rate, args.time))?;
        turn.write(rate, &mut out)?;
    }
    let mut environment = String::new();
    site.environment()?.write(&mut environment)?;
    write!(out, "{environment}")?;
    Ok(())
}

impl Turn {
    fn write(&self, rate: u32, out: &mut impl Write) -> anyhow::Result<()> {
        let all = &self.staleness_us;
        let at_once = all.iter().filter(|us| **us == 0).count();
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole.max(1) as f64;
        let ms = |us: Option<u64>| us.map(|us| us as f64 / 1000.0).context("no write");
        writeln!(
            out,
            "| {rate} | {} | {} | {:.1} | {:.1} | {:.2} | {:.2} | {:.2} |",
            all.len(),
            self.reads,
            percent(self.hits, self.reads),
            percent(at_once as u64, all.len() as u64),
            ms(percentile(all, 50))?,
            ms(percentile(all, 99))?,
            ms(all.iter().max().copied())?,
        )?;
        Ok(())
    }
}

impl Site {
    fn start(helios: Option<&Path>, interrupt: &Interrupt) -> anyhow::Result<Self> {
        let program = helios_or_built(helios, interrupt)?;
        eprintln!("starting PostgreSQL and helios");
        let cluster = PostgresCluster::builder()
            .setting("wal_level", "logical")
            .start()?;
        cluster.psql("postgres", TABLE)?;
        interrupt.check()?;
        let port = free_port()?;
        let folder = tempfile::Builder::new().prefix("helios-bench-").tempdir()?;
        let config = folder.path().join("helios.toml");
        std::fs::write(&config, CONFIG)?;
        let mut command = Command::new(&program);
        without_helios_variables(&mut command);
        command.current_dir(folder.path());
        command.arg("serve").arg("--config").arg(config);
        command.args(["--listen", &format!("127.0.0.1:{port}")]);
        command.args(["--hidb", "127.0.0.1:0"]);
        command.args(["--http", "off", "--log", "warn"]);
        command.args(["--upstream", &cluster.url("postgres", "postgres")]);
        let log = folder.path().join("log");
        let mut helios = Running::start("helios", &mut command, &log, Signal::TERM)?;
        let psql = postgres_bin_dir()?.join("psql");
        helios.wait_until_ready(interrupt, || serves(&psql, port))?;
        Ok(Self {
            _helios: helios,
            port,
            version: version(&program)?,
            _folder: folder,
            cluster,
        })
    }

    async fn measure(&self, rate: u32, time: Duration) -> anyhow::Result<Turn> {
        let writer = connect(self.cluster.port(), "postgres").await?;
        let reader = connect(self.port, "postgres").await?;
        let console = connect(self.port, "helios").await?;
        let begun = Instant::now();
        let mut hits = count(&console).await?;
        // Until it is answered from memory, nothing is measured.
        loop {
            let first: usize = ask(&reader, READ).await?.parse()?;
            let _ = first;
            let now = count(&console).await?;
            if now > hits {
                hits = now;
                break;
            }
            ensure!(begun.elapsed() < PATIENCE, "the read is never cached");
        }
        let base: usize = ask(&reader, READ).await?.parse()?;
        let stop = AtomicBool::new(false);
        let writing = async {
            let written = write(&writer, rate, time).await;
            stop.store(true, Ordering::Relaxed);
            written
        };
        let (written, read) = tokio::join!(writing, read(&reader, &stop));
        let (acknowledged, read) = (written?, read?);
        Ok(Turn {
            staleness_us: staleness(base, &acknowledged, &read)?,
            reads: read.len() as u64,
            hits: count(&console).await?.saturating_sub(hits),
        })
    }

    fn environment(&self) -> anyhow::Result<Environment> {
        let postgres = self.cluster.psql("postgres", "SHOW server_version")?;
        Environment::with_versions(vec![
            ("gateway".to_owned(), self.version.clone()),
            ("server".to_owned(), format!("PostgreSQL {postgres}")),
        ])
    }
}

/// When each write was acknowledged, in order.
async fn write(client: &Client, rate: u32, time: Duration) -> anyhow::Result<Vec<Instant>> {
    let pause = Duration::from_secs(1) / rate;
    let begun = Instant::now();
    let mut acknowledged = Vec::new();
    while begun.elapsed() < time {
        // Not in step with anything that helios does.
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
        client
            .simple_query("UPDATE stamps SET n = n + 1 WHERE id = 1")
            .await?;
        acknowledged.push(Instant::now());
    }
    Ok(acknowledged)
}

/// When each question was asked, and what was answered.
async fn read(client: &Client, stop: &AtomicBool) -> anyhow::Result<Vec<(Instant, usize)>> {
    let mut answers = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        answers.push((asked, ask(client, READ).await?.parse()?));
    }
    Ok(answers)
}

/// How long each write was missing from an answer to a question that was asked after its acknowledgement. `base` is
/// what was counted before the first.
fn staleness(
    base: usize,
    acknowledged: &[Instant],
    answers: &[(Instant, usize)],
) -> anyhow::Result<Vec<u64>> {
    let mut stale = vec![Duration::ZERO; acknowledged.len()];
    for (asked, answer) in answers {
        let Some(seen) = answer.checked_sub(base) else {
            bail!("the past was answered: {answer} after {base}");
        };
        let missed = acknowledged.iter().zip(&mut stale).skip(seen);
        for (at, stale) in missed.take_while(|(at, _)| *at <= asked) {
            *stale = (*stale).max(*asked - *at);
        }
    }
    let micros = |time: &Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    Ok(stale.iter().map(micros).collect())
}

async fn connect(port: u16, database: &str) -> anyhow::Result<Client> {
    let url = format!("postgres://postgres@127.0.0.1:{port}/{database}");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    // It ends with its client.
    tokio::spawn(connection);
    Ok(client)
}

async fn ask(client: &Client, sql: &str) -> anyhow::Result<String> {
    let rows = client.simple_query(sql).await?;
    rows.iter()
        .find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .context("no row")
}

/// Hits so far, by the console.
async fn count(console: &Client) -> anyhow::Result<u64> {
    let rows = console.simple_query("SHOW CACHE").await?;
    let hits = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) if row.get("name") == Some("hits") => {
            row.get("value")?.parse().ok()
        }
        _ => None,
    });
    hits.context("SHOW CACHE has no hits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_stale_until_the_last_answer_without_it() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let acknowledged = [at(10), at(20), at(30)];
        let answers = [
            // Asked before the write was acknowledged: both answers are right.
            (at(9), 100),
            (at(9), 101),
            (at(12), 100),
            (at(15), 100),
            (at(21), 101),
            (at(22), 102),
            // A later answer may be older where it comes another way.
            (at(24), 101),
            (at(31), 103),
        ];
        let stale = staleness(100, &acknowledged, &answers).expect("valid");
        assert_eq!(stale, [5000, 4000, 0]);
        assert!(staleness(100, &acknowledged, &[(at(40), 99)]).is_err());
    }
}
