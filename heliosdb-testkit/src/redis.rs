//! Ephemeral Redis servers.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tempfile::TempDir;

use crate::process::{free_port, signal, wait_or_kill, wait_until_ready};

/// A Redis server on a free port of 127.0.0.1, without persistence. It stops when it is dropped.
#[derive(Debug)]
pub struct RedisServer {
    child: Child,
    port: u16,
    settings: Vec<String>,
    folder: TempDir,
}

impl RedisServer {
    /// Starts a server.
    ///
    /// # Errors
    /// If `redis-server` is not installed or does not start.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(&[])
    }

    /// Starts a server with further settings, such as `["--requirepass", "secret"]`.
    ///
    /// # Errors
    /// If `redis-server` is not installed or does not start.
    pub fn start_with(settings: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("helios-redis-").tempdir()?;
        let port = free_port()?;
        let settings: Vec<_> = settings.iter().map(|&word| word.to_owned()).collect();
        let child = run(port, &settings, &folder)?;
        // From here on, it stops whatever happens.
        let mut server = Self {
            child,
            port,
            settings,
            folder,
        };
        server.wait()?;
        Ok(server)
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        let port = self.port;
        let ready = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        let log = self.folder.path().join("log");
        wait_until_ready(&mut self.child, "Redis", &log, ready)
    }

    /// The URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs `redis-cli` and returns what it prints.
    ///
    /// # Errors
    /// If it can't be run, or fails.
    pub fn cli(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string()]).args(words);
        let output = command.output().context("cannot run redis-cli")?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        anyhow::ensure!(output.status.success(), "redis-cli {words:?}: {text}");
        Ok(text)
    }

    /// Stops the process where it is: connections stay, and nothing is answered, until [`resume`](Self::resume).
    ///
    /// # Errors
    /// If it has ended.
    pub fn pause(&self) -> anyhow::Result<()> {
        signal(self.child.id(), "STOP")
    }

    /// Lets a paused server go on.
    ///
    /// # Errors
    /// If it has ended.
    pub fn resume(&self) -> anyhow::Result<()> {
        signal(self.child.id(), "CONT")
    }

    /// Kills the server. Its port stays free for [`restart`](Self::restart), as far as others let it.
    ///
    /// # Errors
    /// If it can't be waited for.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts a killed server again, empty, on its port.
    ///
    /// # Errors
    /// If it does not start.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.child = run(self.port, &self.settings, &self.folder)?;
        self.wait()
    }
}

fn run(port: u16, settings: &[String], folder: &TempDir) -> anyhow::Result<Child> {
    let mut command = Command::new("redis-server");
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no"])
        .args(settings)
        .arg("--logfile")
        .arg(folder.path().join("log"))
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
        .spawn()
        .context("cannot run redis-server: install the package `redis-server`")
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Once it has ended by itself, its number may be somebody else's.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = signal(self.child.id(), "CONT");
            let _ = signal(self.child.id(), "TERM");
            wait_or_kill(&mut self.child);
        }
    }
}

/// A Redis cluster of three primaries.
#[derive(Debug)]
pub struct RedisCluster {
    /// The nodes.
    nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts the nodes, and waits until all of the key space is served.
    ///
    /// # Errors
    /// If `redis-server` or `redis-cli` is not installed, or the cluster does not come together.
    pub fn start() -> anyhow::Result<Self> {
        let node = || {
            // The port of the cluster's own talk is 10 000 above by default, and may be taken.
            let bus = free_port()?.to_string();
            RedisServer::start_with(&[
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &bus,
                "--cluster-node-timeout",
                "1000",
            ])
        };
        let nodes = (0..3).map(|_| node()).collect::<anyhow::Result<Vec<_>>>()?;
        let mut words = vec!["--cluster".to_owned(), "create".to_owned()];
        words.extend(
            nodes
                .iter()
                .map(|node| format!("127.0.0.1:{}", node.port())),
        );
        words.push("--cluster-yes".to_owned());
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        nodes[0].cli(&words)?;
        let cluster = Self { nodes };
        cluster.wait()?;
        Ok(cluster)
    }

    fn wait(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        for node in &self.nodes {
            while !node.cli(&["cluster", "info"])?.contains("cluster_state:ok") {
                anyhow::ensure!(
                    Instant::now() < deadline,
                    "the cluster does not come together"
                );
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// The nodes, to be changed.
    pub fn nodes_mut(&mut self) -> &mut [RedisServer] {
        &mut self.nodes
    }
}
