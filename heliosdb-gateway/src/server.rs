//! `helios serve`: listens, lets clients in, reloads, and stops in order.

use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::BytesMut;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::clients::Signal;
use crate::config::Config;
use crate::error::{ClientError, ErrorKind};
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
    let mut spare = Spare::new();
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
                spare.note(&error);
                if !spare.turn_away(&listener).await {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// A descriptor that is kept for when there are no others: with it a client can be let in to be told so. Otherwise it would
/// wait in the kernel's queue, and the listener would be woken for it for ever.
struct Spare {
    descriptor: Option<File>,
    noted: Option<Instant>,
}

impl Spare {
    fn new() -> Self {
        Self {
            descriptor: File::open("/dev/null").ok(),
            noted: None,
        }
    }

    fn note(&mut self, error: &std::io::Error) {
        // Once a second is enough to read.
        let is_old = |noted: Instant| noted.elapsed() >= Duration::from_secs(1);
        if self.noted.is_none_or(is_old) {
            self.noted = Some(Instant::now());
            tracing::warn!(%error, "cannot accept a client: raise `ulimit -n`, or lower `clients.max`");
        }
    }

    /// Tells one client that there is no room, if it can be let in at all.
    async fn turn_away(&mut self, listener: &TcpListener) -> bool {
        if self.descriptor.take().is_none() {
            self.descriptor = File::open("/dev/null").ok();
            return false;
        }
        let accepted = tokio::time::timeout(PAUSE, listener.accept()).await;
        let is_in = if let Ok(Ok((stream, _))) = accepted {
            let error = ClientError::new(
                ErrorKind::Config,
                "53300",
                "sorry, too many clients: helios has no file descriptors left",
            )
            .hint("Raise the limit on open files (`ulimit -n`), or lower `clients.max` in the configuration of helios.");
            let _ = tokio::time::timeout(TOLD_WITHIN, tell(stream, error.fatal())).await;
            true
        } else {
            false
        };
        self.descriptor = File::open("/dev/null").ok();
        is_in
    }
}

/// Answers a client's first packet with an error.
async fn tell(mut stream: TcpStream, error: ClientError) -> std::io::Result<()> {
    let mut packet = [0; 1024];
    // What is not read would make the kernel cut the connection off before the client has read its answer.
    if stream.read(&mut packet).await? > 0 {
        let mut out = BytesMut::new();
        error.put(&mut out);
        stream.write_all(&out).await?;
        stream.shutdown().await?;
        while stream.read(&mut packet).await? > 0 {}
    }
    Ok(())
}

const PAUSE: Duration = Duration::from_millis(50);
const TOLD_WITHIN: Duration = Duration::from_millis(200);

async fn client(gateway: &Arc<Gateway>, stream: TcpStream, address: SocketAddr) {
    if let Err(error) = prepare_socket(&stream) {
        tracing::debug!(%error, %address, "cannot set socket options");
    }
    let Some(login) = gateway.clients.begin_login(gateway.config().clients.max) else {
        let error = ClientError::new(
            ErrorKind::Config,
            "53300",
            "sorry, too many clients are logging in",
        )
        .hint("Try again, lower `clients.login_timeout`, or raise `clients.max` in the configuration of helios.");
        gateway.stats.count_error(error.kind);
        let _ = tokio::time::timeout(TOLD_WITHIN, tell(stream, error.fatal())).await;
        return;
    };
    // In a box of its own: a login takes more room than a session, and is over soon.
    let greeted = Box::pin(session::greet(gateway, stream, address)).await;
    drop(login);
    match greeted {
        Some(Greeted::Session(session)) => session.run().await,
        Some(Greeted::Console(console)) => Box::pin(console.run()).await,
        None => {}
    }
}

/// As many files as the system allows are opened, and it is said where that may be too few.
pub(crate) fn raise_file_limit(config: &Config) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum {
        let wanted = rustix::process::Rlimit {
            current: limit.maximum,
            ..limit
        };
        match setrlimit(Resource::Nofile, wanted) {
            Ok(()) => limit = wanted,
            Err(error) => tracing::warn!(%error, "cannot raise the limit on open files"),
        }
    }
    let needed = config.clients.max + config.pool.size + config.pool.reserve_size + FILES_OTHER;
    if let Some(limit) = limit.current.filter(|limit| *limit < needed as u64) {
        tracing::warn!(
            limit,
            needed,
            "fewer files can be opened than `clients.max` and a pool of `pool.size` need: raise `ulimit -n`, or lower them"
        );
    }
}

/// Listeners, the log, connections that read catalogs and follow the server's log.
const FILES_OTHER: usize = 64;

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

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<F>(_: impl Fn(&'static Arc<Gateway>, TcpStream, SocketAddr) -> F) -> usize {
        size_of::<F>()
    }

    /// An idle client costs both: what is rare has boxes of its own.
    #[test]
    fn the_task_of_a_client_is_small_and_so_is_its_session() {
        let task = size_of_future(client);
        assert!(task <= 2048, "{task} bytes");
        let session = size_of::<session::Session>();
        assert!(session <= 1152, "{session} bytes");
    }
}
