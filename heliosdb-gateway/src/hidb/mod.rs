//! HIDB, HeliosDB's native protocol, in front of the same cache and pools as PostgreSQL's.
//!
//! A connection ([`connection`]) serves many requests at a time. What is in memory is answered where it was read; anything
//! else goes to a *lane* ([`lane`]): a session like any PostgreSQL client's, at the other end of a pipe. So there is one
//! place where statements are classified, writes are marked and answers are stored.

mod connection;
mod lane;
mod users;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use heliosdb_network::server::{Auth, Door, Encryption, Secrets};
use heliosdb_network::tls;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::config::{HidbAuth, HidbConfig, HidbTls};
use crate::gateway::{Course, Gateway};
use crate::server::prepare_socket;

/// Reads what letting clients in takes: secrets, certificate and key.
pub(crate) fn door(config: &HidbConfig) -> anyhow::Result<Door> {
    let auth = match (config.auth, &config.auth_file) {
        (HidbAuth::Trust, _) => Auth::Trust,
        (HidbAuth::ScramSha256, file) => {
            let file = file.as_deref().context("hidb.auth needs hidb.auth_file")?;
            Auth::Scram(Arc::new(Secrets::new(users::read(file)?)))
        }
    };
    let encryption = || {
        let chain = config.tls_certificate.as_deref();
        let key = config.tls_key.as_deref();
        let chain = chain.context("hidb.tls needs hidb.tls_certificate")?;
        tls::server_config(chain, key.context("hidb.tls needs hidb.tls_key")?)
            .context("TLS for HIDB")
    };
    let tls = match config.tls {
        HidbTls::Off => Encryption::Off,
        HidbTls::Allow => Encryption::Allowed(encryption()?),
        HidbTls::Require => Encryption::Required(encryption()?),
    };
    Ok(Door { tls, auth })
}

/// Serves until the gateway's course changes. The connections are told to go by the same signals as other clients.
pub(crate) async fn serve(gateway: Arc<Gateway>, door: Door, listeners: Vec<TcpListener>) {
    let door = Arc::new(door);
    let accepting = listeners
        .into_iter()
        .map(|listener| accept(&gateway, &door, listener, gateway.accepting.subscribe()));
    futures_util::future::join_all(accepting).await;
}

async fn accept(
    gateway: &Arc<Gateway>,
    door: &Arc<Door>,
    listener: TcpListener,
    _accepting: watch::Receiver<()>,
) {
    let mut course = gateway.course.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = course.wait_for(|course| *course != Course::Serve) => return,
        };
        match accepted {
            Ok((stream, address)) => {
                let (gateway, door) = (Arc::clone(gateway), Arc::clone(door));
                tokio::spawn(async move { client(&gateway, &door, stream, address).await });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a HIDB client");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn client(gateway: &Arc<Gateway>, door: &Door, stream: TcpStream, address: SocketAddr) {
    if let Err(error) = prepare_socket(&stream) {
        tracing::debug!(%error, %address, "cannot set socket options");
    }
    let patience = gateway.config().clients.login_timeout;
    let guest = match tokio::time::timeout(patience, door.admit(stream)).await {
        Ok(Ok(guest)) => guest,
        Ok(Err(error)) => {
            tracing::info!(%address, "HIDB login refused: {error}");
            return;
        }
        Err(_) => {
            tracing::info!(%address, "HIDB login took longer than {patience:?}");
            return;
        }
    };
    connection::serve(gateway, guest, address).await;
}
