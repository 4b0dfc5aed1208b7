//! Replication connections: passed through to a walsender of the client's own, byte by byte.
//!
//! Such a connection can't be shared or cached, so each client gets one from the server for as long as it stays. One of logical
//! replication counts as a connection of its pool. (One of physical replication belongs to no database: it counts nowhere.)

use std::sync::Arc;

use bytes::BytesMut;
use heliosdb_network::connection_pool::{Connector as _, PoolEvent};
use heliosdb_network::error::HeliosError;
use heliosdb_network::postgres::startup::Startup;
use heliosdb_network::postgres::{PgConnection, PgTarget, message};
use tokio::io::AsyncWriteExt as _;

use crate::clients::{Activity, Admitted, Counters, ServerKey, Signal};
use crate::error::{ClientError, ErrorKind};
use crate::gateway::Gateway;
use crate::upstream::{Parameters, ServerLease, ServerPool};

use super::ClientStream;

/// What the startup packet's `replication` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replication {
    /// An ordinary session.
    No,
    /// A walsender that knows no database.
    Physical,
    /// A walsender of a database.
    Logical,
}

impl Replication {
    /// As it is asked for.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Physical => "yes",
            Self::Logical => "database",
        }
    }

    /// As PostgreSQL reads it.
    pub(super) fn asked(startup: &Startup) -> Result<Self, ClientError> {
        let Some(value) = startup.param("replication") else {
            return Ok(Self::No);
        };
        match &*value.to_ascii_lowercase() {
            "database" => Ok(Self::Logical),
            "true" | "on" | "yes" | "1" => Ok(Self::Physical),
            "false" | "off" | "no" | "0" => Ok(Self::No),
            _ => Err(ClientError::new(
                ErrorKind::Client,
                "22023",
                format!("invalid value for parameter \"replication\": \"{value}\""),
            )
            .hint("Valid values are: \"false\", 0, \"true\", 1, \"database\".")
            .fatal()),
        }
    }
}

/// A client and its walsender.
#[derive(Debug)]
pub(crate) struct Relay {
    admitted: Admitted,
    stream: ClientStream,
    /// Received and not yet passed on.
    input: BytesMut,
    walsender: Walsender,
}

/// The server's end of a replication connection.
#[derive(Debug)]
pub(super) struct Walsender {
    connection: Held,
}

#[derive(Debug)]
enum Held {
    /// In the place of one of its pool's connections.
    Pooled(Box<ServerLease>),
    Own(Box<PgConnection>),
}

impl Walsender {
    /// Logs in to the server as the client would, with what its startup packet asks for.
    ///
    /// # Errors
    /// The server's own, or that it can't be reached.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub(super) async fn open(
        gateway: &Gateway,
        admitted: &Admitted,
        startup: &Startup,
        kind: Replication,
    ) -> Result<Self, ClientError> {
        let info = &admitted.info;
        let pool = gateway.upstream.pool(&info.user, &info.database)?;
        let mut target = pool.connections.connector().login();
        let own = ["user", "database"];
        let asked = startup.params.iter();
        target
            .params
            .extend(asked.filter(|(name, _)| !own.contains(&&**name)).cloned());
        let connection = match kind {
            Replication::Logical => Held::Pooled(Box::new(in_place(&pool, &target).await?)),
            _ => Held::Own(Box::new(connect(&target).await?)),
        };
        let mut walsender = Self { connection };
        let pg = walsender.pg();
        let (pid, secret) = (pg.backend_pid(), pg.backend_secret());
        let here = pg.target_here(&target);
        info.link(Arc::new(ServerKey {
            target: here,
            pid,
            secret,
        }));
        info.set_activity(Activity::Active);
        Ok(walsender)
    }

    fn pg(&mut self) -> &mut PgConnection {
        match &mut self.connection {
            Held::Pooled(lease) => &mut lease.pg,
            Held::Own(pg) => pg,
        }
    }

    /// What the server reported at login.
    pub(super) fn parameters(&mut self) -> Parameters {
        self.pg().parameters().to_vec()
    }
}

async fn connect(target: &PgTarget) -> Result<PgConnection, ClientError> {
    PgConnection::connect(target)
        .await
        .map_err(|error| match error {
            HeliosError::Server(fields) => ClientError::from_server(&fields).fatal(),
            error => ClientError::new(
                ErrorKind::Backend,
                "08006",
                format!("cannot reach the database server: {error}"),
            )
            .fatal(),
        })
}

/// Puts a walsender in the place of a connection of the pool. It is closed when the client leaves.
async fn in_place(pool: &Arc<ServerPool>, target: &PgTarget) -> Result<ServerLease, ClientError> {
    let acquired = pool.acquire(0, None).await;
    let mut lease = acquired.map_err(|error| ClientError::from_acquire(&error).fatal())?;
    lease.broken = true;
    let walsender = connect(target).await?;
    let replaced = std::mem::replace(&mut lease.pg, walsender);
    // It stands in the place of one that others could have used.
    pool.connections.connector().note(PoolEvent::GivenUp);
    tokio::spawn(replaced.terminate());
    Ok(lease)
}

impl Relay {
    pub(super) fn new(
        admitted: Admitted,
        stream: ClientStream,
        input: BytesMut,
        walsender: Walsender,
    ) -> Self {
        Self {
            admitted,
            stream,
            input,
            walsender,
        }
    }

    /// Passes bytes on until one side ends, or helios does.
    pub(crate) async fn run(mut self) {
        let info = Arc::clone(&self.admitted.info);
        let ended = info.or_signalled(Signal::Drain, self.relay()).await;
        info.unlink();
        match ended {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!(client = info.id, %error, "replication ends"),
            None => {
                let mut out = BytesMut::new();
                ClientError::new(ErrorKind::Config, "57P01", "helios is stopping")
                    .fatal()
                    .put(&mut out);
                let _ = self.stream.write_all(&out).await;
                let _ = self.stream.flush().await;
            }
        }
    }

    async fn relay(&mut self) -> std::io::Result<()> {
        let (server, unread) = self.walsender.pg().parts();
        server.write_all(&self.input).await?;
        server.flush().await?;
        self.stream.write_all(unread).await?;
        self.stream.flush().await?;
        unread.clear();
        let passed = tokio::io::copy_bidirectional(&mut self.stream, server).await?;
        let counters = &self.admitted.info.counters;
        Counters::add(&counters.bytes_received, passed.0);
        Counters::add(&counters.bytes_sent, passed.1);
        Ok(())
    }
}

/// What a client that replicates is told at login, up to where the server is ready.
pub(super) fn put_greeting(out: &mut BytesMut, parameters: &Parameters) {
    message::put_authentication_ok(out);
    for (name, value) in parameters {
        message::put_parameter_status(out, name, value);
    }
}
