//! `helios serve`: listens, lets clients in, reloads, and stops in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::clients::{Peer, Signal};
use crate::gateway::{Course, Gateway};
use crate::listen::Listener;
use crate::session::{self, ClientStream, Greeted};

/// Serves until the gateway's course changes, then lets the clients finish their transactions.
pub(crate) async fn serve(gateway: Arc<Gateway>, listeners: Vec<Listener>) {
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(
            Arc::clone(&gateway),
            listener,
            gateway.accepting.subscribe(),
        ));
    }
    while accepting.join_next().await.is_some() {}
    wait_for_departures(&gateway).await;
    drain(&gateway).await;
}

/// `_accepting` is held as long as clients are let in.
async fn accept(gateway: Arc<Gateway>, listener: Listener, _accepting: watch::Receiver<()>) {
    let mut course = gateway.course.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = course.wait_for(|course| *course != Course::Serve) => {
                if let Listener::Unix(_, path) = &listener
                    && *gateway.course.borrow() == Course::Stop
                {
                    let _ = std::fs::remove_file(path);
                }
                return;
            }
        };
        match accepted {
            Ok((stream, peer)) => {
                let gateway = Arc::clone(&gateway);
                tokio::spawn(async move { client(&gateway, stream, peer).await });
            }
            Err(error) => {
                // Out of descriptors, mostly: the clients that are in go on, and some will leave.
                tracing::warn!(%error, "cannot accept a client");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn client(gateway: &Arc<Gateway>, stream: ClientStream, peer: Peer) {
    if let ClientStream::Tcp(stream) = &stream
        && let Err(error) = prepare_socket(stream)
    {
        tracing::debug!(%error, %peer, "cannot set socket options");
    }
    match session::greet(gateway, stream, peer).await {
        Some(Greeted::Session(session)) => session.run().await,
        Some(Greeted::Console(console)) => console.run().await,
        Some(Greeted::Replication(relay)) => relay.run().await,
        None => {}
    }
}

pub(crate) fn prepare_socket(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(10));
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// After a handover the clients that are in may go on for a while, and leave as they like.
async fn wait_for_departures(gateway: &Arc<Gateway>) {
    if *gateway.course.borrow() != Course::HandOver {
        return;
    }
    let patience = gateway.config().clients.handover_timeout;
    tracing::info!(
        clients = gateway.clients.len(),
        "handed over: waiting for clients to leave, at most {patience:?}"
    );
    let mut course = gateway.course.subscribe();
    let departed = async {
        while gateway.clients.len() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = departed => {}
        () = tokio::time::sleep(patience) => {}
        _ = course.wait_for(|course| *course == Course::Stop) => {}
    }
}

/// Lets every client end its transaction, then cuts off the rest at the deadline.
async fn drain(gateway: &Arc<Gateway>) {
    let patience = gateway.config().clients.shutdown_timeout;
    let deadline = Instant::now() + patience;
    tracing::info!(
        clients = gateway.clients.len(),
        "stopping: waiting for open transactions, at most {patience:?}"
    );
    gateway.clients.signal_all(Signal::Drain);
    while gateway.clients.len() > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
        // Clients that were logging in when the signal went out.
        gateway.clients.signal_all(Signal::Drain);
    }
    let left = gateway.clients.len();
    if left > 0 {
        tracing::warn!(clients = left, "cutting off clients with open transactions");
        gateway.clients.signal_all(Signal::Kill);
        let grace = Instant::now() + KILL_GRACE;
        while gateway.clients.len() > 0 && Instant::now() < grace {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    gateway
        .upstream
        .drain(
            deadline
                .saturating_duration_since(Instant::now())
                .max(KILL_GRACE),
        )
        .await;
    tracing::info!("stopped");
}

const KILL_GRACE: Duration = Duration::from_secs(3);
