//! The PostgreSQL inside this process.
//!
//! It serves one connection at a time on a socket of its own. The gateway in front of it is what makes it a server.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use heliosdb_network::postgres::{Host, PgTarget};
use pglite_oxide::PgliteServer;
use tempfile::TempDir;

/// A running embedded server. Stops when dropped; close its connections first.
#[derive(Debug)]
pub(crate) struct EmbeddedServer {
    _server: PgliteServer,
    /// Of the socket. A Unix socket, because over TCP the server's small writes would wait for acknowledgements.
    socket: TempDir,
}

/// Part of the socket's name.
const PORT: u16 = 5432;

impl EmbeddedServer {
    /// Starts on the data in `folder`, which is made on first use. Blocks for the time of a PostgreSQL start.
    pub(crate) fn start(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create the data folder {}", folder.display()))?;
        let socket = tempfile::Builder::new()
            .prefix("helios-")
            .tempdir()
            .context("cannot create a folder for the embedded PostgreSQL's socket")?;
        let server = PgliteServer::builder()
            .path(folder)
            .unix(socket.path().join(format!(".s.PGSQL.{PORT}")))
            .start()
            .with_context(|| {
                format!(
                    "cannot start the embedded PostgreSQL on {}",
                    folder.display()
                )
            })?;
        Ok(Self {
            _server: server,
            socket,
        })
    }

    /// Where the gateway's one connection goes.
    pub(crate) fn target(&self, connect_timeout: Duration) -> PgTarget {
        PgTarget::new(
            Host::Unix(self.socket.path().to_owned()),
            PORT,
            "postgres",
            "postgres",
        )
        // The first start on a new folder prepares it before it answers.
        .with_connect_timeout(connect_timeout.max(Duration::from_secs(60)))
    }
}
