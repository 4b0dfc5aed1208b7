//! An ephemeral Redis server.

use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use tempfile::TempDir;

use crate::process::{free_port, signal, wait_or_kill, wait_until_ready};

/// A Redis server on a free port of 127.0.0.1, without persistence. It stops when it is dropped.
#[derive(Debug)]
pub struct RedisServer {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl RedisServer {
    /// Starts a server.
    ///
    /// # Errors
    /// If `redis-server` is not installed or does not start.
    pub fn start() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("helios-redis-").tempdir()?;
        let port = free_port()?;
        let log = folder.path().join("log");
        let child = Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .arg("--logfile")
            .arg(&log)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run redis-server: install the package `redis-server`")?;
        // From here on, it stops whatever happens.
        let mut server = Self {
            child,
            port,
            _folder: folder,
        };
        let ready = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        wait_until_ready(&mut server.child, "Redis", &log, ready)?;
        Ok(server)
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
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Once it has ended by itself, its number may be somebody else's.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = signal(self.child.id(), "TERM");
            wait_or_kill(&mut self.child);
        }
    }
}
