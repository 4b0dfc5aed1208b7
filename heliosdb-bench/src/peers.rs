//! The servers that are compared, each on a free port, with its files in a temporary folder.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use heliosdb_testkit::{PostgresCluster, free_port, postgres_bin_dir};
use rustix::process::Signal;
use serde::Serialize;
use tempfile::TempDir;

use crate::interrupt::Interrupt;
use crate::pgbench::libpq_environment;
use crate::process::Running;
use crate::settings::{
    PGDOG_USERS, helios_toml, odyssey_conf, pgbouncer_ini, pgcat_toml, pgdog_toml, pgpool_conf,
    tracks_prepared,
};
use crate::workload::{Mode, Workload};

/// What a load is put on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Target {
    /// PostgreSQL itself.
    Direct,
    /// A server that answers every query with the same bytes.
    Floor,
    /// helios, asked for what it has in its cache.
    HeliosHit,
    /// helios, with a cache so small that nearly every read misses it, is fetched, stored, and evicts another.
    HeliosMiss,
    /// helios without a cache.
    HeliosPass,
    /// The same as the poolers beside it are set up: with two threads, and with `pool.prepare_unnamed`, as Odyssey and PgCat do
    /// it always.
    HeliosTwo,
    /// Odyssey, pooling by transaction.
    Odyssey,
    /// PgBouncer, pooling by transaction.
    Pgbouncer,
    /// PgCat, pooling by transaction.
    Pgcat,
    /// PgDog, pooling by transaction.
    Pgdog,
    /// pgpool-II with its query cache in shared memory.
    Pgpool,
}

impl Target {
    /// In the order of the report.
    pub(crate) const ALL: [Self; 11] = [
        Self::Direct,
        Self::Pgbouncer,
        Self::Odyssey,
        Self::Pgcat,
        Self::Pgdog,
        Self::HeliosPass,
        Self::HeliosTwo,
        Self::HeliosMiss,
        Self::Pgpool,
        Self::HeliosHit,
        Self::Floor,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Floor => "floor",
            Self::HeliosHit => "helios-hit",
            Self::HeliosMiss => "helios-miss",
            Self::HeliosPass => "helios-pass",
            Self::HeliosTwo => "helios-two",
            Self::Odyssey => "odyssey",
            Self::Pgbouncer => "pgbouncer",
            Self::Pgcat => "pgcat",
            Self::Pgdog => "pgdog",
            Self::Pgpool => "pgpool",
        }
    }

    pub(crate) fn is_helios(self) -> bool {
        matches!(
            self,
            Self::HeliosHit | Self::HeliosMiss | Self::HeliosPass | Self::HeliosTwo
        )
    }

    /// Whether a workload tells anything about a target. A cache is not asked for what it can't hold, a pooler not
    /// for what it would pass on just the same.
    pub(crate) fn takes(self, workload: Workload) -> bool {
        match self {
            Self::Direct => true,
            Self::Floor => workload == Workload::Hot100,
            Self::HeliosHit | Self::Pgpool => workload != Workload::Point,
            Self::HeliosMiss
            | Self::HeliosPass
            | Self::HeliosTwo
            | Self::Odyssey
            | Self::Pgbouncer
            | Self::Pgcat
            | Self::Pgdog => workload == Workload::Point,
        }
    }
}

/// Of all users, where one is asked for.
pub(crate) const PASSWORD: &str = "postgres";

/// What is needed to start a peer.
#[derive(Debug)]
pub(crate) struct Site<'a> {
    pub(crate) cluster: &'a PostgresCluster,
    /// The most clients that will connect at the same time.
    pub(crate) clients_max: u32,
    /// The program helios, if it is to be measured.
    pub(crate) helios: Option<&'a Path>,
    /// What a file of users holds, where they have to prove by SCRAM who they are. Of helios and PgBouncer alone.
    pub(crate) users: Option<&'a str>,
    /// They run under valgrind, which counts what they do: many times slower.
    pub(crate) counts_instructions: bool,
    pub(crate) interrupt: &'a Interrupt,
}

/// A running peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) target: Target,
    pub(crate) port: u16,
    pub(crate) version: String,
    /// `None` for PostgreSQL itself, whose processes are counted apart.
    running: Option<Running>,
    /// After the process, so that it goes when that has ended.
    folder: Option<TempDir>,
}

impl Peer {
    /// Starts a target, or says `None` if it is not installed.
    pub(crate) fn start(target: Target, site: &Site<'_>) -> anyhow::Result<Option<Self>> {
        if target == Target::Direct {
            let version = site.cluster.psql("postgres", "SHOW server_version")?;
            let version = format!("PostgreSQL {version}");
            let port = site.cluster.port();
            return Ok(Some(Self {
                target,
                port,
                version,
                running: None,
                folder: None,
            }));
        }
        let Some(program) = program(target, site)? else {
            return Ok(None);
        };
        let folder = tempfile::Builder::new().prefix("helios-bench-").tempdir()?;
        let port = free_port()?;
        let version = match target {
            // It is the yardstick: what the compiler leaves in it would make everybody else look good.
            Target::Floor if cfg!(debug_assertions) => {
                "fixed bytes, UNOPTIMISED: don't compare".to_owned()
            }
            Target::Floor => "fixed bytes".to_owned(),
            _ => version(&program)?,
        };
        let mut command = if site.counts_instructions {
            let mut valgrind = Command::new("valgrind");
            valgrind.args(["--tool=callgrind", "--callgrind-out-file=callgrind.%p"]);
            valgrind.args(["--cache-sim=yes", "--I1=32768,8,64"]);
            valgrind.arg(program);
            valgrind
        } else {
            Command::new(program)
        };
        without_helios_variables(&mut command);
        command.current_dir(folder.path());
        configure(target, site, &mut command, port, &version, folder.path())?;
        // pgpool-II alone takes SIGTERM as "when the last client has gone".
        let stop = if target == Target::Pgpool {
            Signal::INT
        } else {
            Signal::TERM
        };
        let log = folder.path().join("log");
        let mut running = Running::start(target.name(), &mut command, &log, stop)?;
        let psql = postgres_bin_dir()?.join("psql");
        running.wait_until_ready(site.interrupt, || serves(&psql, port))?;
        Ok(Some(Self {
            target,
            port,
            version,
            running: Some(running),
            folder: Some(folder),
        }))
    }

    /// The first of its processes.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Running::pid)
    }

    /// Ends it. Returns what all its processes have executed, if that was counted.
    pub(crate) fn into_executed(mut self) -> anyhow::Result<Executed> {
        drop(self.running.take());
        let folder = self.folder.as_ref().context("it has no folder")?;
        let mut sum = Executed::default();
        for file in std::fs::read_dir(folder)? {
            let file = file?;
            if file.file_name().to_string_lossy().starts_with("callgrind.") {
                let executed = Executed::parse(&std::fs::read_to_string(file.path())?)?;
                sum.instructions += executed.instructions;
                sum.misses += executed.misses;
            }
        }
        Ok(sum)
    }

    /// Why a protocol mode can't be measured with it.
    pub(crate) fn unsupported(&self, mode: Mode) -> Option<&'static str> {
        let lacks = self.target == Target::Pgbouncer && mode == Mode::Prepared;
        (lacks && !tracks_prepared(&self.version))
            .then_some("n/a: PgBouncer before 1.21 has no prepared statements in transaction mode")
    }
}

/// What a program has executed outside of the kernel.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Executed {
    pub(crate) instructions: u64,
    /// Of an instruction cache of 32 KiB, eight ways, lines of 64 bytes.
    pub(crate) misses: u64,
}

impl Executed {
    /// Reads the sums in a file of callgrind's: in the order of `events:`, and as many as are not all zeros at the end.
    fn parse(profile: &str) -> anyhow::Result<Self> {
        let line = |label: &str| profile.lines().find_map(|line| line.strip_prefix(label));
        let events = line("events:").context("callgrind named no events")?;
        let totals =
            line("totals:").context("callgrind wrote no totals: did the program end by itself?")?;
        let sum = |event: &str| -> anyhow::Result<u64> {
            let at = events.split_whitespace().position(|known| known == event);
            let at = at.with_context(|| format!("callgrind did not count {event}"))?;
            let sum = totals.split_whitespace().nth(at).unwrap_or("0");
            sum.parse()
                .with_context(|| format!("callgrind counted {sum} of {event}"))
        };
        Ok(Self {
            instructions: sum("Ir")?,
            misses: sum("I1mr")?,
        })
    }
}

/// What helios is to do is said here, not by the user's environment.
pub(crate) fn without_helios_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HELIOS_") {
            command.env_remove(name);
        }
    }
}

/// Whether a statement is answered.
pub(crate) fn serves(psql: &Path, port: u16) -> bool {
    let mut command = Command::new(psql);
    libpq_environment(&mut command);
    command
        .args([
            "-X",
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "-U",
            "postgres",
            "-d",
            "postgres",
        ])
        .args(["-c", "SELECT 1"])
        .env("PGPASSWORD", PASSWORD)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The program of a target, if it is installed.
fn program(target: Target, site: &Site<'_>) -> anyhow::Result<Option<PathBuf>> {
    Ok(match target {
        Target::Direct => None,
        Target::Floor => Some(std::env::current_exe().context("where am I?")?),
        Target::HeliosHit | Target::HeliosMiss | Target::HeliosPass | Target::HeliosTwo => {
            site.helios.map(Path::to_owned)
        }
        Target::Odyssey | Target::Pgbouncer | Target::Pgcat | Target::Pgdog | Target::Pgpool => {
            installed(target.name())
        }
    })
}

/// Looks where servers are, which isn't on every user's PATH.
fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(more)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

pub(crate) fn version(program: &Path) -> anyhow::Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    // pgpool-II tells it on standard error.
    let text = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    Ok(String::from_utf8_lossy(&text)
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned())
}

/// Writes the target's configuration, and adds its arguments.
fn configure(
    target: Target,
    site: &Site<'_>,
    command: &mut Command,
    port: u16,
    version: &str,
    folder: &Path,
) -> anyhow::Result<()> {
    let write = |name: &str, text: &str| -> anyhow::Result<PathBuf> {
        let file = folder.join(name);
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    };
    let upstream = site.cluster.port();
    match target {
        Target::Direct => bail!("PostgreSQL is not started here"),
        Target::Floor => {
            command.args(["floor", "--listen", &format!("127.0.0.1:{port}")]);
        }
        Target::HeliosHit | Target::HeliosMiss | Target::HeliosPass | Target::HeliosTwo => {
            let mut toml = helios_toml(target, site.clients_max);
            if let Some(users) = site.users {
                let users = write("users.txt", users)?;
                toml.push_str(&format!(
                    "[auth]\ntype = \"scram-sha-256\"\nfile = {users:?}\n"
                ));
            }
            let file = write("helios.toml", &toml)?;
            command.arg("serve").arg("--config").arg(file);
            command.args([
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--http",
                "off",
                "--hidb",
                "off",
                "--log",
                "warn",
            ]);
            command.args(["--upstream", &site.cluster.url("postgres", "postgres")]);
        }
        Target::Pgbouncer => {
            let mut ini = pgbouncer_ini(port, upstream, site.clients_max, tracks_prepared(version));
            if let Some(users) = site.users {
                let users = write("users.txt", users)?;
                ini = ini.replace("auth_type = any\n", "auth_type = scram-sha-256\n");
                ini.push_str(&format!("auth_file = {}\n", users.display()));
            }
            command.arg(write("pgbouncer.ini", &ini)?);
            run_as_owner_of(site.cluster.socket_dir(), command, &[folder])?;
        }
        Target::Odyssey => {
            let conf = odyssey_conf(port, upstream, site.clients_max, folder)?;
            command.arg(write("odyssey.conf", &conf)?);
            run_as_owner_of(site.cluster.socket_dir(), command, &[folder])?;
        }
        Target::Pgcat => {
            let toml = pgcat_toml(port, upstream);
            command.args(["--log-level", "warn"]);
            command.arg(write("pgcat.toml", &toml)?);
        }
        Target::Pgdog => {
            let toml = pgdog_toml(port, upstream);
            command.arg("--config").arg(write("pgdog.toml", &toml)?);
            command
                .arg("--users")
                .arg(write("users.toml", PGDOG_USERS)?);
        }
        Target::Pgpool => {
            let file = write(
                "pgpool.conf",
                &pgpool_conf(port, upstream, site.clients_max, folder)?,
            )?;
            let oid = folder.join("oid");
            std::fs::create_dir(&oid)?;
            // In the foreground, without regard to what it wrote about the server in an earlier run.
            command.args(["-n", "-D", "-f"]).arg(file);
            run_as_owner_of(site.cluster.socket_dir(), command, &[folder, &oid])?;
        }
    }
    Ok(())
}

/// Runs a command as the user that PostgreSQL runs as, who is never root: the peers refuse root too.
fn run_as_owner_of(
    postgres_folder: &Path,
    command: &mut Command,
    own_folders: &[&Path],
) -> anyhow::Result<()> {
    let owner = std::fs::metadata(postgres_folder)?;
    for folder in own_folders {
        std::os::unix::fs::chown(folder, Some(owner.uid()), Some(owner.gid()))?;
    }
    command.uid(owner.uid()).gid(owner.gid());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_workload_has_targets_and_each_target_a_workload() {
        for &workload in Workload::value_variants() {
            assert!(
                Target::ALL
                    .iter()
                    .filter(|target| target.takes(workload))
                    .count()
                    > 1
            );
        }
        for target in Target::value_variants() {
            assert!(Target::ALL.contains(target), "{target:?}");
            assert!(
                Workload::value_variants()
                    .iter()
                    .any(|&workload| target.takes(workload)),
                "{target:?}"
            );
        }
    }

    #[test]
    fn the_sums_of_callgrind_are_found_by_name() {
        let profile = "version: 1\nevents: Ir Dr Dw I1mr\nfn=(1)\n1 2 3\ntotals: 70 5 6 8\n";
        let executed = Executed {
            instructions: 70,
            misses: 8,
        };
        assert_eq!(Executed::parse(profile).expect("whole"), executed);
        let cut_off = profile.replace("totals", "total");
        assert!(Executed::parse(&cut_off).is_err());
        assert!(Executed::parse(&profile.replace("I1mr", "I1")).is_err());
    }

    #[test]
    fn the_names_are_those_of_the_command_line() {
        for target in Target::value_variants() {
            let value = target.to_possible_value().expect("not hidden");
            assert_eq!(value.get_name(), target.name());
        }
        for mode in Mode::value_variants() {
            assert_eq!(
                mode.to_possible_value().expect("not hidden").get_name(),
                mode.name()
            );
        }
        for workload in Workload::value_variants() {
            assert_eq!(
                workload.to_possible_value().expect("not hidden").get_name(),
                workload.name()
            );
        }
    }
}
