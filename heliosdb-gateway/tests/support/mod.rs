//! A running helios in front of a real PostgreSQL, for one test.

pub(crate) mod raw;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use heliosdb_testkit::{PostgresBuilder, PostgresCluster, free_port, postgres_bin_dir};
use tokio_postgres::{Client, NoTls};

/// A helios process, told to stop when dropped.
pub(crate) struct Helios {
    child: Child,
    pub(crate) port: u16,
    pub(crate) hidb_port: u16,
    folder: tempfile::TempDir,
}

/// A helios and the server behind it.
pub(crate) struct Stack {
    pub(crate) helios: Helios,
    pub(crate) cluster: PostgresCluster,
}

impl Stack {
    pub(crate) fn start() -> Self {
        Self::start_with(PostgresCluster::builder(), "")
    }

    /// `config` is the text of a helios.toml.
    pub(crate) fn start_with(cluster: PostgresBuilder, config: &str) -> Self {
        let cluster = cluster.start().expect("PostgreSQL starts");
        let helios = Helios::start(
            &["--upstream", &cluster.url("postgres", "postgres")],
            config,
        );
        Self { helios, cluster }
    }

    /// A client through helios.
    pub(crate) async fn client(&self) -> Client {
        self.helios.client("postgres", "postgres").await
    }

    /// A client of the server itself.
    pub(crate) async fn direct(&self) -> Client {
        connect(self.cluster.port(), "postgres", "postgres").await
    }
}

impl Helios {
    pub(crate) fn start(args: &[&str], config: &str) -> Self {
        Self::start_as(Command::new(env!("CARGO_BIN_EXE_helios")), args, config)
    }

    /// One that may open so many files.
    pub(crate) fn start_with_files(files: usize, args: &[&str], config: &str) -> Self {
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_helios")]);
        Self::start_as(command, args, config)
    }

    /// From another file than the one that was built.
    pub(crate) fn start_from(program: &Path, args: &[&str]) -> Self {
        Self::start_as(Command::new(program), args, "")
    }

    fn start_as(mut command: Command, args: &[&str], config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("helios.toml");
        let threads = if config.contains("threads") {
            ""
        } else {
            "threads = 2\n"
        };
        std::fs::write(&file, format!("{threads}{config}")).expect("written");
        let port = free_port().expect("a port");
        let hidb_port = free_port().expect("a port");
        let mut child = command
            .arg("serve")
            .args([
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--hidb",
                &format!("127.0.0.1:{hidb_port}"),
                "--http",
                "off",
                "--log",
                "warn",
                "--config",
            ])
            .arg(&file)
            .args(args)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("helios starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let listening = lines.find(|line| {
            line.as_ref()
                .is_ok_and(|line| line.contains("listening on"))
        });
        assert!(
            listening.is_some(),
            "helios did not start: {:?}",
            child.try_wait()
        );
        // Keeps reading, so that helios never blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            port,
            hidb_port,
            folder,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.pid().to_string()])
            .status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&mut self, patience: Duration) -> Option<std::process::ExitStatus> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("waitable") {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    pub(crate) async fn client(&self, user: &str, database: &str) -> Client {
        connect(self.port, user, database).await
    }

    /// A count of `SHOW CACHE`.
    pub(crate) async fn cache_count(&self, name: &str) -> u64 {
        self.count("CACHE", name).await
    }

    /// A count of one of the console's tables of names and values.
    pub(crate) async fn count(&self, table: &str, name: &str) -> u64 {
        let console = self.client("postgres", "helios").await;
        let rows = console
            .simple_query(&format!("SHOW {table}"))
            .await
            .expect("answered");
        rows.iter()
            .find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) if row.get("name") == Some(name) => {
                    row.get("value").and_then(|value| value.parse().ok())
                }
                _ => None,
            })
            .unwrap_or_else(|| panic!("no count {name}"))
    }

    /// Runs psql with input on stdin; returns stdout and stderr together.
    pub(crate) fn psql(&self, database: &str, input: &str) -> String {
        psql(self.port, database, input)
    }
}

impl Drop for Helios {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal("TERM");
            if self.wait(Duration::from_secs(10)).is_none() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}

pub(crate) async fn connect(port: u16, user: &str, database: &str) -> Client {
    let config = format!("host=127.0.0.1 port={port} user={user} dbname={database}");
    let (client, connection) = tokio_postgres::connect(&config, NoTls)
        .await
        .expect("connected");
    tokio::spawn(connection);
    client
}

/// Waits until something is so, for a minute at the most.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect(what);
}

/// The one value that a statement returns.
pub(crate) async fn text(client: &Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.expect(sql).get(0)
}

/// Whether a server told somebody that it may not replicate, in the words of before version 16 or of since.
pub(crate) fn is_refused_as_no_replicator(told: &str) -> bool {
    told.contains("must be superuser or replication role")
        || told.contains("permission denied to start WAL sender")
}

pub(crate) fn psql(port: u16, database: &str, input: &str) -> String {
    use std::io::Write as _;
    let mut child = Command::new(postgres_bin_dir().expect("installed").join("psql"))
        .args([
            "-X",
            "-a",
            "-h",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "-U",
            "postgres",
            "-d",
            database,
        ])
        .env("PGOPTIONS", "")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql runs");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(input.as_bytes())
        .expect("written");
    let output = child.wait_with_output().expect("ended");
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs pgbench and returns its report; panics with it unless pgbench succeeds.
pub(crate) fn pgbench(port: u16, args: &[&str]) -> String {
    let output = Command::new(postgres_bin_dir().expect("installed").join("pgbench"))
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "-U",
            "postgres",
            "-n",
        ])
        .args(args)
        .arg("postgres")
        .stdin(Stdio::null())
        .output()
        .expect("pgbench runs");
    let report = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success(),
        "pgbench {args:?} failed:\n{report}"
    );
    report
}
