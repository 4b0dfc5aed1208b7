//! `helios serve`: listens, lets clients in, reloads, and stops in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin;
use crate::clients::{ClientInfo, Peer, Signal};
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
                // Out of descriptors, mostly: the clients that are in go on, and some will leave.
                tracing::warn!(%error, "cannot accept a client");
                tokio::time::sleep(Duration::from_millis(50)).await;
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
