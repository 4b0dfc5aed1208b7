//! PostgreSQL with a table, and helios before it, listening for both protocols.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use heliosdb_network::HidbTarget;
use heliosdb_testkit::{PostgresCluster, free_port, postgres_bin_dir};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use crate::gateway::helios_or_built;
use crate::interrupt::Interrupt;
use crate::peers::{serves, version, without_helios_variables};
use crate::process::Running;
use crate::report::Environment;

/// What is asked. In this order it ends: helios first.
pub(super) struct Site {
    helios: Running,
    port: u16,
    hidb_port: u16,
    version: String,
    _folder: TempDir,
    cluster: PostgresCluster,
}

const TABLE: &str = "\
CREATE TABLE items (id int PRIMARY KEY, name text NOT NULL, price int NOT NULL);
INSERT INTO items SELECT n, 'item number ' || n, n * 7 % 1000 FROM generate_series(1, 1000) n;
ANALYZE items";

impl Site {
    pub(super) fn start(helios: Option<&Path>, interrupt: &Interrupt) -> anyhow::Result<Self> {
        let program = helios_or_built(helios, interrupt)?;
        eprintln!("starting PostgreSQL and helios");
        let cluster = PostgresCluster::builder()
            .setting("autovacuum", "off")
            .start()?;
        cluster.psql("postgres", TABLE)?;
        interrupt.check()?;
        let (port, hidb_port) = (free_port()?, free_port()?);
        let folder = tempfile::Builder::new().prefix("helios-bench-").tempdir()?;
        let config = folder.path().join("helios.toml");
        std::fs::write(&config, "")?;
        let mut command = Command::new(&program);
        without_helios_variables(&mut command);
        command.current_dir(folder.path());
        command.arg("serve").arg("--config").arg(config);
        command.args(["--listen", &format!("127.0.0.1:{port}")]);
        command.args(["--hidb", &format!("127.0.0.1:{hidb_port}")]);
        command.args(["--http", "off", "--log", "warn"]);
        command.args(["--upstream", &cluster.url("postgres", "postgres")]);
        let log = folder.path().join("log");
        let mut helios = Running::start("helios", &mut command, &log, Signal::TERM)?;
        let psql = postgres_bin_dir()?.join("psql");
        helios.wait_until_ready(interrupt, || serves(&psql, port))?;
        Ok(Self {
            helios,
            port,
            hidb_port,
            version: version(&program)?,
            _folder: folder,
            cluster,
        })
    }

    pub(super) fn helios_pid(&self) -> u32 {
        self.helios.pid()
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn hidb_target(&self) -> HidbTarget {
        HidbTarget::new("127.0.0.1", self.hidb_port, "postgres", "postgres")
    }

    /// What PostgreSQL itself answers.
    pub(super) fn psql(&self, sql: &str) -> anyhow::Result<String> {
        self.cluster.psql("postgres", sql)
    }

    /// Connects to helios in PostgreSQL's protocol.
    pub(super) async fn connect(&self, database: &str) -> anyhow::Result<tokio_postgres::Client> {
        let url = format!("postgres://postgres@127.0.0.1:{}/{database}", self.port);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
        // It ends with its client.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Hits so far, by the console.
    pub(super) fn hits(&self, runtime: &Runtime) -> anyhow::Result<u64> {
        runtime.block_on(async {
            let console = self.connect("helios").await?;
            let rows = console.simple_query("SHOW CACHE").await?;
            let hits = rows.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) if row.get("name") == Some("hits") => {
                    row.get("value")?.parse().ok()
                }
                _ => None,
            });
            hits.context("SHOW CACHE has no hits")
        })
    }

    pub(super) fn environment(&self) -> anyhow::Result<Environment> {
        let postgres = self.psql("SHOW server_version")?;
        Environment::with_versions(vec![
            ("gateway".to_owned(), self.version.clone()),
            ("server".to_owned(), format!("PostgreSQL {postgres}")),
        ])
    }
}
