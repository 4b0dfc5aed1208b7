//! An ephemeral PostgreSQL cluster.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};
use tempfile::TempDir;

use crate::process::{
    free_port, hand_over, run_as, server_identity, signal, wait_or_kill, wait_until_ready,
};

/// The folder of the PostgreSQL server's programs: `HELIOS_PG_BIN`, the PATH, or where Debian and Red Hat put them.
///
/// # Errors
/// If there is none; the message names the package.
pub fn postgres_bin_dir() -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("HELIOS_PG_BIN") {
        return Ok(folder.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for parent in ["/usr/lib/postgresql", "/usr"] {
        let mut versions: Vec<PathBuf> = std::fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("bin"))
            .filter(|folder| folder.join("initdb").exists())
            .collect();
        versions.sort();
        // The newest first.
        folders.extend(versions.into_iter().rev());
    }
    folders
        .into_iter()
        // A folder on the PATH may hold links to some of the programs only.
        .filter_map(|folder| {
            folder
                .join("initdb")
                .canonicalize()
                .ok()?
                .parent()
                .map(Path::to_owned)
        })
        .find(|folder| {
            ["postgres", "psql"]
                .iter()
                .all(|name| folder.join(name).exists())
        })
        .context(
            "no PostgreSQL server found: install the package `postgresql`, or set HELIOS_PG_BIN",
        )
}

/// How a cluster is set up.
#[derive(Debug, Clone, Default)]
pub struct PostgresBuilder {
    settings: Vec<(String, String)>,
    hba: Vec<String>,
    files: Vec<(String, String)>,
}

/// A cluster of its own in a temporary folder, on a free port of 127.0.0.1 and on a Unix socket. Its superuser is
/// `postgres`. It stops, and its folder goes, when it is dropped.
#[derive(Debug)]
pub struct PostgresCluster {
    child: Option<Child>,
    bin: PathBuf,
    identity: Option<(u32, u32)>,
    port: u16,
    builder: PostgresBuilder,
    /// Last, so that it goes when the server has stopped.
    folder: TempDir,
}

impl PostgresBuilder {
    /// A setting for postgresql.conf.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A line of pg_hba.conf that goes before the default, which trusts everybody.
    #[must_use]
    pub fn hba(mut self, line: &str) -> Self {
        self.hba.push(line.to_owned());
        self
    }

    /// A file in the folder of its data, which nobody else can read: certificates and keys, `standby.signal`.
    #[must_use]
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.push((name.to_owned(), text.to_owned()));
        self
    }

    /// Initialises and starts the cluster.
    ///
    /// # Errors
    /// If PostgreSQL is not installed or does not start; the message holds its log.
    pub fn start(self) -> anyhow::Result<PostgresCluster> {
        let bin = postgres_bin_dir()?;
        let identity = server_identity()?;
        let folder = tempfile::Builder::new().prefix("helios-pg-").tempdir()?;
        hand_over(folder.path(), identity)?;
        let data = folder.path().join("data");
        make_data_folder(&bin, &data, identity)?;
        if !self.hba.is_empty() {
            let path = data.join("pg_hba.conf");
            let rest = std::fs::read_to_string(&path)?;
            std::fs::write(&path, format!("{}\n{rest}", self.hba.join("\n")))?;
        }
        for (name, text) in &self.files {
            let path = data.join(name);
            std::fs::write(&path, text)?;
            std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            hand_over(&path, identity)?;
        }
        PostgresCluster {
            child: None,
            bin,
            identity,
            port: free_port()?,
            builder: self,
            folder,
        }
        .launch_on_some_port()
    }
}

impl PostgresCluster {
    fn launch_on_some_port(mut self) -> anyhow::Result<Self> {
        // Between our look at a port and the server's, somebody else may take it.
        for _ in 0..3 {
            match self.launch() {
                Err(error) if error.to_string().contains("Address already in use") => {
                    self.port = free_port()?;
                }
                launched => return launched.map(|()| self),
            }
        }
        self.launch()?;
        Ok(self)
    }

    /// A standby of this cluster, which streams its log: a server of its own.
    ///
    /// # Errors
    /// If this one can't be copied, or the other does not start.
    pub fn standby(&self) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("helios-pg-").tempdir()?;
        hand_over(folder.path(), self.identity)?;
        let mut command = Command::new(self.bin.join("pg_basebackup"));
        command
            .args([
                "-h",
                "127.0.0.1",
                "-U",
                "postgres",
                "-c",
                "fast",
                "-R",
                "-D",
            ])
            .arg(folder.path().join("data"))
            .args(["-p", &self.port.to_string()])
            .current_dir(folder.path());
        run_as(&mut command, self.identity);
        let copied = command.output().context("cannot run pg_basebackup")?;
        if !copied.status.success() {
            bail!("{}", String::from_utf8_lossy(&copied.stderr));
        }
        Self {
            child: None,
            bin: self.bin.clone(),
            identity: self.identity,
            port: free_port()?,
            builder: self.builder.clone(),
            folder,
        }
        .launch_on_some_port()
    }
}

impl PostgresCluster {
    /// A cluster with default settings.
    ///
    /// # Errors
    /// As [`PostgresBuilder::start`].
    pub fn start() -> anyhow::Result<Self> {
        Self::builder().start()
    }

    /// A cluster to be set up.
    #[must_use]
    pub fn builder() -> PostgresBuilder {
        PostgresBuilder::default()
    }

    /// The TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the Unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of its data.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The URL for a user and a database.
    #[must_use]
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// The server's process, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Runs statements as the superuser and returns the rows, unaligned and without headers.
    ///
    /// # Errors
    /// If psql is missing or a statement fails.
    pub fn psql(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        let output = Command::new(self.bin.join("psql"))
            .args([
                "-X",
                "-q",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "postgres",
            ])
            // By the socket, so that a test can ask for passwords over TCP.
            .arg("-h")
            .arg(self.socket_dir())
            .args(["-p", &self.port.to_string(), "-d", database, "-c", sql])
            .stdin(Stdio::null())
            .output()
            .context("cannot run psql")?;
        if !output.status.success() {
            bail!("psql failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned())
    }

    /// Stops the server as a crash would: clients are cut off. Its data stays.
    ///
    /// # Errors
    /// If it can't be told to; it is gone nevertheless.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        // SIGQUIT is PostgreSQL's immediate shutdown.
        self.stop_by("QUIT")
    }

    /// Stops the server in order: transactions are rolled back, and clients are told.
    ///
    /// # Errors
    /// If it can't be told to; it is gone nevertheless.
    pub fn stop_fast(&mut self) -> anyhow::Result<()> {
        self.stop_by("INT")
    }

    fn stop_by(&mut self, name: &str) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        if matches!(child.try_wait(), Ok(Some(_))) {
            // It has ended by itself: its number may be somebody else's by now.
            return Ok(());
        }
        let told = signal(child.id(), name);
        if told.is_err() {
            let _ = child.kill();
        }
        wait_or_kill(&mut child);
        told
    }

    /// Stops the server and starts it again.
    ///
    /// # Errors
    /// As [`stop`](Self::stop) and [`launch`](Self::launch).
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.stop()?;
        self.launch()
    }

    /// Starts the server again on the same port and data.
    ///
    /// # Errors
    /// If it does not start.
    pub fn launch(&mut self) -> anyhow::Result<()> {
        let log = self.folder.path().join("log");
        let mut command = Command::new(self.bin.join("postgres"));
        command.arg("-D").arg(self.folder.path().join("data"));
        let (port, socket) = (
            self.port.to_string(),
            self.folder.path().display().to_string(),
        );
        for (name, value) in [
            ("port", port.as_str()),
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", &socket),
            // Nothing here outlives the machine.
            ("fsync", "off"),
            ("full_page_writes", "off"),
            // Its segments are small, so that there is less to copy. What follows from that is as it would be.
            ("max_wal_size", "1GB"),
            ("wal_buffers", "16MB"),
        ] {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        for (name, value) in &self.builder.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let file = File::options().create(true).append(true).open(&log)?;
        command
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        run_as(&mut command, self.identity);
        let mut child = command.spawn().context("cannot run postgres")?;
        let (pid_file, pid) = (self.data_dir().join("postmaster.pid"), child.id());
        let ready = || std::fs::read_to_string(&pid_file).is_ok_and(|text| is_ready(&text, pid));
        let started = wait_until_ready(&mut child, "PostgreSQL", &log, ready);
        self.child = Some(child);
        started
    }
}

impl Drop for PostgresCluster {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// Whether `postmaster.pid` says that this process takes connections: what `pg_ctl` waits for, and cheaper than to connect.
fn is_ready(pid_file: &str, pid: u32) -> bool {
    /// The eighth, in every version since 10.
    const STATUS: usize = 7;
    let lines: Vec<&str> = pid_file.lines().map(str::trim).collect();
    let is_its_own = lines.first().and_then(|line| line.parse().ok()) == Some(pid);
    is_its_own && matches!(lines.get(STATUS), Some(&("ready" | "standby")))
}

/// Makes the folder of a new cluster: a copy of the last one that was made, where there is one, which is faster.
fn make_data_folder(bin: &Path, data: &Path, identity: Option<(u32, u32)>) -> anyhow::Result<()> {
    let template = template_folder(bin);
    if let Some(template) = template.as_ref().filter(|template| template.exists()) {
        if copy(template, data).is_ok() {
            return Ok(());
        }
        // It may be another user's.
        let _ = std::fs::remove_dir_all(data);
    }
    let mut initdb = Command::new(bin.join("initdb"));
    initdb
        .args(["--no-sync", "--auth=trust", "--username=postgres"])
        .args(["--encoding=UTF8", "--locale=C", "--wal-segsize=1", "-D"])
        .arg(data)
        .current_dir("/")
        .stdin(Stdio::null());
    run_as(&mut initdb, identity);
    let output = initdb.output().context("cannot run initdb")?;
    if !output.status.success() {
        bail!(
            "initdb failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    if let Some(template) = template {
        // Without it, the next cluster takes longer: no reason to fail.
        let _ = keep(data, &template);
    }
    Ok(())
}

/// Keeps a copy for the next cluster: complete or not at all, since tests run at the same time.
fn keep(data: &Path, template: &Path) -> anyhow::Result<()> {
    let parent = template.parent().context("a root is no template")?;
    let draft = tempfile::Builder::new()
        .prefix("helios-draft-")
        .tempdir_in(parent)?;
    let folder = draft.path().join("data");
    copy(data, &folder)?;
    Ok(std::fs::rename(folder, template)?)
}

/// Where the copy for these programs is kept: beside the build that the test belongs to, so that `cargo clean` removes
/// it. `None` if there is no such place.
fn template_folder(bin: &Path) -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let deps = program.parent()?;
    if deps.file_name()? != "deps" {
        return None;
    }
    let version = Command::new(bin.join("postgres"))
        .arg("--version")
        .output()
        .ok()?;
    let version = String::from_utf8(version.stdout).ok()?;
    let version = version
        .trim()
        .replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    Some(deps.parent()?.join(format!("helios-{version}-small")))
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    // With owners and modes, which PostgreSQL checks.
    let output = Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .output()
        .context("cannot run cp")?;
    if !output.status.success() {
        bail!("cp failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_ready_when_its_own_file_says_so() {
        let file = |pid: u32, status: &str| {
            format!("{pid}\n/data\n1700000000\n5432\n/tmp\n127.0.0.1\n  1 2\n{status}\n")
        };
        assert!(is_ready(&file(7, "ready   "), 7));
        assert!(is_ready(&file(7, "standby "), 7));
        assert!(!is_ready(&file(7, "starting"), 7));
        // Of one that was killed.
        assert!(!is_ready(&file(8, "ready   "), 7));
        assert!(!is_ready("7\n/data\n", 7));
        assert!(!is_ready("", 7));
    }
}
