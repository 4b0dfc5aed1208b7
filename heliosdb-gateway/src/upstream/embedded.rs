//! The PostgreSQL inside this process.
//!
//! It serves one connection at a time on a socket of its own. The gateway in front of it is what makes it a server.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use heliosdb_network::postgres::PgTarget;
use pglite_oxide::PgliteServer;

/// A running embedded server. Stops when dropped; close its connections first.
#[derive(Debug)]
pub(crate) struct EmbeddedServer {
    server: PgliteServer,
}

impl EmbeddedServer {
    /// Starts on the data in `folder`, which is made on first use. Blocks for the time of a PostgreSQL start.
    pub(crate) fn start(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create the data folder {}", folder.display()))?;
        let server = PgliteServer::builder()
            .path(folder)
            .start()
            .with_context(|| {
                format!(
                    "cannot start the embedded PostgreSQL on {}",
                    folder.display()
                )
            })?;
        Ok(Self { server })
    }

    /// Where the gateway's one connection goes.
    pub(crate) fn target(&self, connect_timeout: Duration) -> anyhow::Result<PgTarget> {
        let mut target = PgTarget::from_url(&self.server.database_url())?;
        // The first start of a new folder initialises it before it answers.
        target.connect_timeout = connect_timeout.max(Duration::from_secs(60));
        Ok(target)
    }
}
