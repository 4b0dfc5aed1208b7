//! Listening sockets: bound, or taken over from a predecessor or from the service manager.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use listenfd::ListenFd;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use crate::clients::Peer;
use crate::config::Config;
use crate::session::ClientStream;

/// A socket that clients come in by.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    /// With its path.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    pub(crate) async fn accept(&self) -> io::Result<(ClientStream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                Ok((ClientStream::Tcp(stream), Peer::Tcp(address)))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let user = stream.peer_cred().ok().map(|credentials| credentials.uid());
                Ok((ClientStream::Unix(stream), Peer::Unix(user)))
            }
        }
    }

    /// The same socket once more, for a successor.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
            Self::Unix(listener, _) => listener.as_fd().try_clone_to_owned(),
        }
    }
}

/// Sockets that were open when the program began.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    tcp: Vec<std::net::TcpListener>,
    unix: Vec<std::os::unix::net::UnixListener>,
}

impl Inherited {
    /// What was handed over, by the protocol of systemd's socket activation. To be called once, before there are other
    /// threads: it looks at the environment and takes what it finds there away.
    pub(crate) fn take() -> Self {
        let mut handed = ListenFd::from_env();
        let mut inherited = Self::default();
        for at in 0..handed.len() {
            if let Ok(Some(listener)) = handed.take_tcp_listener(at) {
                inherited.tcp.push(listener);
            } else if let Ok(Some(listener)) = handed.take_unix_listener(at) {
                inherited.unix.push(listener);
            }
        }
        let all = inherited.tcp.iter().map(AsFd::as_fd);
        for socket in all.chain(inherited.unix.iter().map(AsFd::as_fd)) {
            // A program that is started gets what it is given, and nothing else.
            let _ = rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::CLOEXEC);
        }
        inherited
    }

    fn tcp_at(&mut self, address: SocketAddr) -> Option<std::net::TcpListener> {
        let at = self
            .tcp
            .iter()
            .position(|listener| listener.local_addr().is_ok_and(|bound| bound == address))?;
        Some(self.tcp.swap_remove(at))
    }

    fn unix_at(&mut self, path: &Path) -> Option<std::os::unix::net::UnixListener> {
        let at = self.unix.iter().position(|listener| {
            let bound = listener.local_addr();
            bound.is_ok_and(|bound| bound.as_pathname() == Some(path))
        })?;
        Some(self.unix.swap_remove(at))
    }

    /// A TCP socket at the address: the one that was handed over, or a new one.
    pub(crate) fn tcp(&mut self, address: SocketAddr) -> anyhow::Result<TcpListener> {
        self.tcp_with(address, Sharing::Sole)
    }

    fn tcp_with(&mut self, address: SocketAddr, sharing: Sharing) -> anyhow::Result<TcpListener> {
        let listener = match self.tcp_at(address) {
            Some(listener) => taken_over(listener),
            None => bind(address, sharing),
        };
        listener.with_context(|| format!("cannot listen on {address}"))
    }

    /// The sockets for PostgreSQL clients. Those that were handed over and that no address in the configuration names
    /// are for these clients, too.
    pub(crate) fn postgres(&mut self, config: &Config) -> anyhow::Result<Vec<Listener>> {
        let mut listeners = Vec::new();
        let sharing = if config.reuse_port {
            Sharing::WithOthers
        } else {
            Sharing::Sole
        };
        for address in &config.listen {
            listeners.push(Listener::Tcp(self.tcp_with(*address, sharing)?));
        }
        if let (Some(folder), Some(first)) = (&config.unix_socket_dir, config.listen.first()) {
            let port = match listeners.first() {
                Some(Listener::Tcp(listener)) => listener.local_addr()?.port(),
                _ => first.port(),
            };
            let path = folder.join(format!(".s.PGSQL.{port}"));
            let listener = self
                .unix(&path, config.unix_socket_mode)
                .with_context(|| format!("cannot listen on {}", path.display()))?;
            listeners.push(Listener::Unix(listener, path));
        }
        Ok(listeners)
    }

    fn unix(&mut self, path: &Path, mode: u32) -> io::Result<UnixListener> {
        let listener = match self.unix_at(path) {
            Some(listener) => listener,
            None => {
                remove_stale(path)?;
                let listener = std::os::unix::net::UnixListener::bind(path)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
                listener
            }
        };
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    }

    /// Closes what nobody asked for, and says so.
    pub(crate) fn close_rest(self) {
        for listener in self.tcp {
            if let Ok(address) = listener.local_addr() {
                tracing::warn!(%address, "a socket that was handed over is not in the configuration: closed");
            }
        }
    }
}

fn taken_over(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Whose an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Sole,
    /// Other processes may listen there, too: the kernel deals out the clients.
    WithOthers,
}

fn bind(address: SocketAddr, sharing: Sharing) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(sharing == Sharing::WithOthers)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    // Login storms: the kernel queues what can't be accepted at once.
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

/// Removes a socket's file that nobody listens on any more.
fn remove_stale(path: &Path) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        Err(error) => Err(error),
    }
}
