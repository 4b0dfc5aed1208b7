//! `helios serve`: listens, lets clients in, reloads, and stops in order.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin;
use crate::clients::{ClientInfo, Peer, Signal};
use crate::config::{Config, names};
use crate::error::{ClientError, ErrorKind};
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
    let mut course = gateway.course.subscribe();
    let _ = course.wait_for(|course| *course != Course::Serve).await;
    wait_for_departures(&gateway).await;
    while accepting.join_next().await.is_some() {}
    drain(&gateway).await;
}

/// `_accepting` is held as long as clients are let in.
async fn accept(gateway: Arc<Gateway>, listener: Listener, _accepting: watch::Receiver<()>) {
    let mut course = gateway.course.subscribe();
    let mut spare = Spare::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = course.wait_for(|course| is_over(*course, &listener)) => {
                if let Listener::Unix(_, path) = &listener
                    && gateway.course.borrow().is_stop()
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
                spare.note(&error);
                if !spare.turn_away(&listener).await {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Whether nobody is let in here any more.
fn is_over(course: Course, listener: &Listener) -> bool {
    match course {
        Course::Serve => false,
        // Administrators may have a look.
        Course::AwaitClients | Course::AwaitServers => matches!(listener, Listener::Tcp(_)),
        Course::HandOver | Course::Stop | Course::Quit => true,
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
    async fn turn_away(&mut self, listener: &Listener) -> bool {
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
            .hint(format!(
                "Raise the limit on open files (`ulimit -n`), or lower {} in {}.",
                names::key("clients.max"),
                names::place()
            ));
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
async fn tell(mut stream: ClientStream, error: ClientError) -> std::io::Result<()> {
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

async fn client(gateway: &Arc<Gateway>, stream: ClientStream, peer: Peer) {
    if let ClientStream::Tcp(stream) = &stream
        && let Err(error) = prepare_socket(stream)
    {
        tracing::debug!(%error, %peer, "cannot set socket options");
    }
    let Some(login) = gateway.clients.begin_login(gateway.config().clients.max) else {
        let error = ClientError::new(
            ErrorKind::Config,
            "53300",
            "sorry, too many clients are logging in",
        )
        .hint(format!(
            "Try again, lower {}, or raise {} in {}.",
            names::key("clients.login_timeout"),
            names::key("clients.max"),
            names::place()
        ));
        gateway.stats.count_error(error.kind);
        let _ = tokio::time::timeout(TOLD_WITHIN, tell(stream, error.fatal())).await;
        return;
    };
    // In a box of its own: a login takes more room than a session, and is over soon.
    let greeted = Box::pin(session::greet(gateway, stream, peer)).await;
    drop(login);
    match greeted {
        Some(Greeted::Session(session)) => session.run().await,
        Some(Greeted::Console(console)) => Box::pin(console.run()).await,
        Some(Greeted::Replication(relay)) => Box::pin(relay.run()).await,
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

/// The clients that are in may go on, and leave as they like: after a handover for a while.
async fn wait_for_departures(gateway: &Arc<Gateway>) {
    let mut course = gateway.course.subscribe();
    let now = *course.borrow();
    match now {
        Course::HandOver => wait_for_handed_over(gateway).await,
        Course::AwaitClients | Course::AwaitServers => {
            tracing::info!(
                clients = gateway.clients.len(),
                "waiting for clients to leave"
            );
            let departed = async {
                if now == Course::AwaitServers {
                    wait_for_servers(gateway).await;
                } else {
                    gateway.clients.departed(is_served).await;
                }
            };
            tokio::select! {
                () = departed => {}
                _ = course.wait_for(|course| *course != now) => {}
            }
            // They may come one after the other.
            let then = *gateway.course.borrow();
            if then.is_awaiting() && then != now {
                return Box::pin(wait_for_departures(gateway)).await;
            }
        }
        Course::Serve | Course::Stop | Course::Quit => {}
    }
    gateway.course.send_if_modified(|course| {
        let is_new = !course.is_stop() && *course != Course::HandOver;
        if is_new {
            *course = Course::Stop;
        }
        is_new
    });
}

/// True for a client of a database.
fn is_served(client: &ClientInfo) -> bool {
    !admin::is_console(&client.database)
}

/// Closes server connections as they come back, and ends the clients that have none.
async fn wait_for_servers(gateway: &Arc<Gateway>) {
    // It may be paused already: that is as good.
    let _ = gateway.upstream.pause(None);
    let leave = async {
        loop {
            // Also those that were logging in when the others were told.
            for client in gateway.clients.list() {
                if is_served(&client) && !client.has_signal(Signal::Leave) {
                    client.signal(Signal::Leave);
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = leave => {}
        () = gateway.upstream.let_go(None) => {}
    }
}

async fn wait_for_handed_over(gateway: &Arc<Gateway>) {
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
        _ = course.wait_for(|course| course.is_stop()) => {}
    }
}

/// Lets every client end its transaction, then cuts off the rest at the deadline.
async fn drain(gateway: &Arc<Gateway>) {
    let patience = match *gateway.course.borrow() {
        Course::Quit => Duration::ZERO,
        _ => gateway.config().clients.shutdown_timeout,
    };
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

    fn size_of_future<F>(_: impl Fn(&'static Arc<Gateway>, ClientStream, Peer) -> F) -> usize {
        size_of::<F>()
    }

    /// An idle client costs both: what is rare has boxes of its own.
    #[test]
    fn the_task_of_a_client_is_small_and_so_is_its_session() {
        let task = size_of_future(client);
        assert!(task <= 2048, "{task} bytes");
        let session = size_of::<session::Session>();
        assert!(session <= 1280, "{session} bytes");
    }
}
