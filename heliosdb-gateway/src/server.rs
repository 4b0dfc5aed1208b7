//! `helios serve`: listens, lets clients in, reloads, and stops in order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::clients::Signal;
use crate::gateway::Gateway;
use crate::session::{self, Greeted};

/// Listening sockets. Bound before the server starts, so that an address in use is found out at once.
#[derive(Debug)]
pub(crate) struct Listeners {
    listeners: Vec<TcpListener>,
}

impl Listeners {
    pub(crate) fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Self> {
        let listeners = addresses
            .iter()
            .map(|address| bind(*address).with_context(|| format!("cannot listen on {address}")))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { listeners })
    }

    pub(crate) fn into_inner(self) -> Vec<TcpListener> {
        self.listeners
    }

    /// The addresses in use, with the port chosen by the system where 0 was asked for.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners
            .iter()
            .filter_map(|listener| listener.local_addr().ok())
            .collect()
    }
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    // Login storms: the kernel queues what can't be accepted at once.
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

/// Serves until `stop` changes, then lets the clients finish their transactions.
pub(crate) async fn serve(
    gateway: Arc<Gateway>,
    listeners: Listeners,
    stop: watch::Receiver<bool>,
) {
    let mut accepting = JoinSet::new();
    for listener in listeners.listeners {
        accepting.spawn(accept(Arc::clone(&gateway), listener, stop.clone()));
    }
    while accepting.join_next().await.is_some() {}
    drain(&gateway).await;
}

async fn accept(gateway: Arc<Gateway>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, address)) => {
                let gateway = Arc::clone(&gateway);
                tokio::spawn(async move { client(&gateway, stream, address).await });
            }
            Err(error) => {
                // Out of descriptors, mostly: the clients that are in go on, and some will leave.
                tracing::warn!(%error, "cannot accept a client");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn client(gateway: &Arc<Gateway>, stream: TcpStream, address: SocketAddr) {
    if let Err(error) = prepare_socket(&stream) {
        tracing::debug!(%error, %address, "cannot set socket options");
    }
    match session::greet(gateway, stream, address).await {
        Some(Greeted::Session(session)) => session.run().await,
        Some(Greeted::Console(console)) => console.run().await,
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
