//! The program under test, as a process.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use heliosdb_testkit::free_port;
use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// A running helios. It is told to stop when this is dropped.
#[derive(Debug)]
pub(crate) struct Helios {
    child: Child,
    pub(crate) port: u16,
    /// Configuration and log.
    folder: tempfile::TempDir,
}

impl Helios {
    /// Starts it in front of `upstream`; `config` is added to its configuration, and `removed` is the protection that is
    /// taken away.
    pub(crate) async fn start(
        program: &Path,
        upstream: u16,
        invalidation: &str,
        config: &str,
        removed: Option<&str>,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("helios-check-").tempdir()?;
        let port = free_port()?;
        let file = folder.path().join("helios.toml");
        let text = format!(
            "listen = [\"127.0.0.1:{port}\"]\nhttp = \"off\"\nthreads = 4\ninvalidation = \"{invalidation}\"\n{config}\n\
             [upstream]\nurl = \"postgres://postgres@127.0.0.1:{upstream}/postgres\"\n\
             [pool]\nsize = 12\n[hidb]\nlisten = []\n[log]\nlevel = \"warn\"\n"
        );
        std::fs::write(&file, text)?;
        let log = File::create(folder.path().join("log"))?;
        let mut command = Command::new(program);
        command
            .arg("serve")
            .arg("--config")
            .arg(&file)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(removed) = removed {
            command.env("HELIOS_REMOVE_PROTECTION", removed);
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let mut helios = Self {
            child,
            port,
            folder,
        };
        helios.wait_until_ready().await?;
        Ok(helios)
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.log().contains("listening on") {
            if let Some(status) = self.child.try_wait()? {
                bail!("helios ended ({status}); its log:\n{}", self.log());
            }
            if Instant::now() > deadline {
                bail!("helios does not listen; its log:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// That it runs yet.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("helios ended ({status}); its log:\n{}", self.log()),
            None => Ok(()),
        }
    }

    /// How many answers came from memory.
    pub(crate) async fn hits(&self) -> anyhow::Result<u64> {
        let messages = self.ask_console("SHOW CACHE").await?;
        let hits = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) if row.get("name") == Some("hits") => row.get("value"),
            _ => None,
        });
        Ok(hits.context("the console names no hits")?.parse()?)
    }

    pub(crate) async fn ask_console(
        &self,
        command: &str,
    ) -> anyhow::Result<Vec<SimpleQueryMessage>> {
        let config = format!(
            "host=127.0.0.1 port={} user=postgres dbname=helios connect_timeout=10",
            self.port
        );
        let (client, connection) = tokio_postgres::connect(&config, NoTls).await?;
        let connection = tokio::spawn(connection);
        let answer = client.simple_query(command).await;
        connection.abort();
        Ok(answer?)
    }
}

impl Drop for Helios {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            if let Ok(pid) = i32::try_from(self.child.id())
                && let Some(pid) = Pid::from_raw(pid)
            {
                // SIGINT would wait for transactions that nobody ends.
                let _ = kill_process(pid, Signal::KILL);
            }
            let _ = self.child.wait();
        }
    }
}

const START_TIMEOUT: Duration = Duration::from_secs(30);
