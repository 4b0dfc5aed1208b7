//! The load generator: PostgreSQL's own `pgbench`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::interrupt::Interrupt;
use crate::process::Running;
use crate::workload::{Mode, Workload};

/// An installed pgbench.
#[derive(Debug)]
pub(crate) struct Pgbench {
    program: PathBuf,
}

/// One run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) workload: Workload,
    pub(crate) mode: Mode,
    pub(crate) clients: u32,
    /// pgbench counts whole seconds.
    pub(crate) seconds: u32,
}

/// One of several, drawn by weight.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) file: PathBuf,
    pub(crate) weight: u32,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) transactions: u64,
    /// Transactions a second, without the time in which the clients connected.
    pub(crate) tps: f64,
    /// Of a sample of the transactions.
    pub(crate) latencies_us: Vec<u64>,
}

impl Pgbench {
    /// Looks for pgbench among the server's programs, then on the PATH.
    pub(crate) fn find(bin: &Path) -> Self {
        let beside = bin.join("pgbench");
        Self {
            program: if beside.exists() {
                beside
            } else {
                "pgbench".into()
            },
        }
    }

    /// Fills the database with a million rows of `pgbench_accounts`.
    pub(crate) fn initialise(&self, port: u16, interrupt: &Interrupt) -> anyhow::Result<()> {
        let folder = tempfile::Builder::new().prefix("helios-bench-").tempdir()?;
        let mut command = self.command(port);
        command.args(["--initialize", "--quiet", "--scale=10", "postgres"]);
        let mut running = Running::start(
            "pgbench",
            &mut command,
            &folder.path().join("output"),
            Signal::TERM,
        )?;
        let status = running.wait(interrupt, Instant::now() + INITIALISE_TIMEOUT)?;
        ensure!(
            status.success(),
            "pgbench --initialize failed:\n{}",
            running.log()
        );
        Ok(())
    }

    /// Puts a load on the server at a port.
    pub(crate) fn run(
        &self,
        port: u16,
        load: Load,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Outcome> {
        let folder = tempfile::Builder::new().prefix("helios-bench-").tempdir()?;
        let script = folder.path().join("script.sql");
        std::fs::write(&script, load.workload.script())?;
        let mut command = self.command(port);
        command
            .args(["--no-vacuum", "--jobs=2", "--protocol", load.mode.name()])
            .args([
                "--client",
                &load.clients.to_string(),
                "--time",
                &load.seconds.to_string(),
            ])
            .arg("--file")
            .arg(&script)
            .args([
                "--log",
                "--sampling-rate",
                load.workload.sampling_rate(),
                "--log-prefix",
            ])
            .arg(folder.path().join(LOG_PREFIX))
            .arg("postgres");
        let mut running = Running::start(
            "pgbench",
            &mut command,
            &folder.path().join("output"),
            Signal::TERM,
        )?;
        let deadline = Instant::now() + Duration::from_secs(load.seconds.into()) + GRACE;
        let status = running.wait(interrupt, deadline)?;
        let text = running.log();
        // Also if only one of its clients was cut off: the others' figures would look fine.
        ensure!(
            status.success(),
            "pgbench failed ({status}): {}",
            complaint(&text)
        );
        let (transactions, tps) = parse_summary(&text)?;
        Ok(Outcome {
            transactions,
            tps,
            latencies_us: read_latencies(&folder)?,
        })
    }

    /// Puts a load on the server at a port whose transactions are drawn from scripts, as prepared statements. Returns their
    /// number and rate.
    pub(crate) fn run_scripts(
        &self,
        port: u16,
        scripts: &[Script],
        clients: u32,
        seconds: u32,
        interrupt: &Interrupt,
    ) -> anyhow::Result<(u64, f64)> {
        let text = self.run_mix(port, scripts, Mode::Prepared, clients, seconds, interrupt)?;
        parse_summary(&text)
    }

    /// The same in any mode. Returns how many transactions each script was, in their order, and the rate of all.
    pub(crate) fn run_each(
        &self,
        port: u16,
        scripts: &[Script],
        mode: Mode,
        clients: u32,
        seconds: u32,
        interrupt: &Interrupt,
    ) -> anyhow::Result<(Vec<u64>, f64)> {
        let text = self.run_mix(port, scripts, mode, clients, seconds, interrupt)?;
        let (all, tps) = parse_summary(&text)?;
        let each = match scripts {
            // Then pgbench does not tell them apart.
            [_] => vec![all],
            _ => parse_scripts(&text)?,
        };
        ensure!(
            each.len() == scripts.len(),
            "pgbench told of {} scripts",
            each.len()
        );
        Ok((each, tps))
    }

    fn run_mix(
        &self,
        port: u16,
        scripts: &[Script],
        mode: Mode,
        clients: u32,
        seconds: u32,
        interrupt: &Interrupt,
    ) -> anyhow::Result<String> {
        let folder = tempfile::Builder::new().prefix("helios-bench-").tempdir()?;
        let mut command = self.command(port);
        command
            .args(["--no-vacuum", "--jobs=2", "--protocol", mode.name()])
            .args(["--client", &clients.to_string()])
            .args(["--time", &seconds.to_string()]);
        for Script { file, weight } in scripts {
            command
                .arg("--file")
                .arg(format!("{}@{weight}", file.display()));
        }
        command.arg("postgres");
        let log = folder.path().join("output");
        let mut running = Running::start("pgbench", &mut command, &log, Signal::TERM)?;
        let deadline = Instant::now() + Duration::from_secs(seconds.into()) + GRACE;
        let status = running.wait(interrupt, deadline)?;
        let text = running.log();
        ensure!(
            status.success(),
            "pgbench failed ({status}): {}",
            complaint(&text)
        );
        Ok(text)
    }

    /// What `--version` says.
    pub(crate) fn version(&self) -> anyhow::Result<String> {
        let output = Command::new(&self.program).arg("--version").output();
        let output = output
            .context("cannot run pgbench: install it (Debian: package `postgresql-contrib`)")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn command(&self, port: u16) -> Command {
        let mut command = Command::new(&self.program);
        libpq_environment(&mut command);
        command.args([
            "--host=127.0.0.1",
            "--username=postgres",
            "--port",
            &port.to_string(),
        ]);
        command
    }
}

/// Makes a program that uses libpq deaf to the user's settings, and keeps it from offering each server an encryption
/// that none of them has here: an unneeded round trip for each connection.
pub(crate) fn libpq_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.envs([
        ("PGSSLMODE", "disable"),
        ("PGGSSENCMODE", "disable"),
        ("PGCONNECT_TIMEOUT", "10"),
    ]);
}

/// The transactions that were processed, and their rate.
fn parse_summary(text: &str) -> anyhow::Result<(u64, f64)> {
    let after = |label: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(label))
            .map(str::trim)
    };
    let transactions =
        after("number of transactions actually processed:").context("no transaction count")?;
    let tps = after("tps =")
        .and_then(|rest| rest.split(' ').next())
        .context("no rate")?;
    let failed = after("number of failed transactions:").and_then(|rest| rest.split(' ').next());
    // pgbench before 15 doesn't tell: there a failed statement ends the client, and so the run.
    if failed.is_some_and(|count| count != "0") {
        bail!("{} transactions failed", failed.unwrap_or_default());
    }
    let transactions = transactions.parse().context("no transaction count")?;
    ensure!(transactions > 0, "no transaction was processed");
    Ok((transactions, tps.parse().context("no rate")?))
}

/// The transactions of each of several scripts, in lines of the form ` - 41000 transactions (90.0% of total, ..)`.
fn parse_scripts(text: &str) -> anyhow::Result<Vec<u64>> {
    text.lines()
        .filter_map(|line| {
            let (count, rest) = line.strip_prefix(" - ")?.split_once(' ')?;
            rest.starts_with("transactions (").then_some(count)
        })
        .map(|count| count.parse().context("no transaction count"))
        .collect()
}

/// The lines that tell what went wrong; one for each of 64 clients would be too many.
fn complaint(text: &str) -> String {
    let lines = text
        .lines()
        .filter(|line| line.contains("error:") || line.contains("ERROR:"));
    let lines: Vec<&str> = lines.take(2).collect();
    if lines.is_empty() {
        text.trim().to_owned()
    } else {
        lines.join("; ")
    }
}

/// Reads the logs, of which each of pgbench's threads has written one.
fn read_latencies(folder: &TempDir) -> anyhow::Result<Vec<u64>> {
    let mut latencies = Vec::new();
    for entry in std::fs::read_dir(folder.path())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(LOG_PREFIX) {
            parse_log(&std::fs::read_to_string(entry.path())?, &mut latencies)?;
        }
    }
    Ok(latencies)
}

/// Reads lines of the form `client transaction latency script seconds microseconds`.
fn parse_log(text: &str, latencies: &mut Vec<u64>) -> anyhow::Result<()> {
    for line in text.lines() {
        let field = line
            .split(' ')
            .nth(2)
            .with_context(|| format!("line of pgbench's log: {line}"))?;
        latencies.push(
            field
                .parse()
                .with_context(|| format!("line of pgbench's log: {line}"))?,
        );
    }
    Ok(())
}

const LOG_PREFIX: &str = "latencies";
const INITIALISE_TIMEOUT: Duration = Duration::from_secs(300);
/// For connecting, and for the statements that run at the end of the time.
const GRACE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = "\
transaction type: script.sql
scaling factor: 1
query mode: simple
number of clients: 16
number of threads: 2
maximum number of tries: 1
duration: 1 s
number of transactions actually processed: 41000
number of failed transactions: 0 (0.000%)
latency average = 0.390 ms
initial connection time = 12.345 ms
tps = 41026.017523 (without initial connection time)
";

    #[test]
    fn the_summary_is_read() {
        assert_eq!(
            parse_summary(SUMMARY).expect("valid"),
            (41000, 41_026.017_523)
        );
    }

    #[test]
    fn a_run_with_failures_is_no_result() {
        let failed = SUMMARY.replace("failed transactions: 0 ", "failed transactions: 3 ");
        let error = parse_summary(&failed)
            .expect_err("three failed")
            .to_string();
        assert_eq!(error, "3 transactions failed");
        assert!(parse_summary(&SUMMARY.replace("processed: 41000", "processed: 0")).is_err());
    }

    #[test]
    fn scripts_are_told_apart() {
        let text = "\
SQL script 1: read.sql
 - weight: 99 (targets 99.0% of total)
 - 41000 transactions (98.9% of total, tps = 41026.017523)
 - number of failed transactions: 0 (0.000%)
SQL script 2: write.sql
 - weight: 1 (targets 1.0% of total)
 - 456 transactions (1.1% of total, tps = 456.3)
";
        assert_eq!(parse_scripts(text).expect("valid"), [41000, 456]);
    }

    #[test]
    fn latencies_are_the_third_field() {
        let mut latencies = Vec::new();
        let log = "3 17 420 0 1700000000 123456\n0 18 77 0 1700000000 123999\n";
        parse_log(log, &mut latencies).expect("valid");
        assert_eq!(latencies, [420, 77]);
        assert!(parse_log("3 17 skipped 0 1 2\n", &mut latencies).is_err());
    }
}
