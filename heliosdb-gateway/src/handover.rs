//! Online restart: a successor takes over the listening sockets, and no client is refused.
//!
//! On the console's RESTART the program starts itself anew (the file that it was started from, which may be a newer one by
//! now) with the same arguments and its listening sockets. The two speak over the successor's standard input:
//!
//! 1. The successor reads its configuration, reaches the server, and says that it is ready. If it does not, it ends, and
//!    all stays as it was.
//! 2. The predecessor stops using its cache and says so. The successor answers that it goes on from there. If it does not, it
//!    is ended, and the predecessor goes on as before, with an empty cache.
//! 3. The predecessor stops accepting, and the successor accepts. What connects in between waits in the sockets' queues, which
//!    are the same for both. The predecessor goes on with the clients that it has, up to `clients.handover_timeout`, then ends
//!    them between transactions.
//! 4. The predecessor ends, and its end of the socket closes. The successor begins to use its cache.
//!
//! **At no time do two processes answer from memory**: what is written through one of them the other would not see.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use command_fds::{CommandFdExt as _, FdMapping};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::gateway::{Course, Gateway};

/// Tells the successor what its standard input is.
const VARIABLE: &str = "HELIOS_HANDOVER";
/// By the protocol of systemd's socket activation, the first socket that is handed over.
const FIRST_FD: i32 = 3;
/// A successor that is not ready by then is given up.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const READY: u8 = b'R';
const GO: u8 = b'G';
const GOING: u8 = b'A';
/// It has nothing more to do than to answer.
const GOING_TIMEOUT: Duration = Duration::from_secs(10);

/// The process whose sockets were handed to this one.
#[derive(Debug)]
pub(crate) struct Predecessor {
    stream: UnixStream,
}

impl Predecessor {
    /// The one that started this process, if one did.
    pub(crate) fn find() -> Option<Self> {
        std::env::var_os(VARIABLE)?;
        let socket = io::stdin().as_fd().try_clone_to_owned().ok()?;
        Some(Self {
            stream: UnixStream::from(socket),
        })
    }

    /// Says that everything is ready, and waits until the predecessor answers nobody from memory any more. Until it has
    /// ended, the cache is not used.
    pub(crate) async fn take_over(mut self, gateway: &Arc<Gateway>) -> io::Result<()> {
        gateway.pause_cache(true);
        let stream = tokio::task::spawn_blocking(move || {
            self.stream.write_all(&[READY])?;
            let mut answer = [0];
            // If it is gone it answers nobody either.
            if self.stream.read(&mut answer)? > 0 {
                self.stream.write_all(&[GOING])?;
            }
            Ok::<_, io::Error>(self.stream)
        });
        let stream = stream.await.map_err(io::Error::other)??;
        stream.set_nonblocking(true)?;
        let mut stream = tokio::net::UnixStream::from_std(stream)?;
        let gateway = Arc::downgrade(gateway);
        tokio::spawn(async move {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            let Some(gateway) = gateway.upgrade() else {
                return;
            };
            gateway.upstream.doubt_strangers();
            gateway.pause_cache(false);
            tracing::info!("the predecessor has ended: answers are cached from here on");
        });
        Ok(())
    }
}

/// Starts a successor with these sockets, and returns once it accepts clients and this process does not.
///
/// # Errors
/// There is no successor, and nothing has changed.
pub(crate) async fn hand_over(gateway: &Arc<Gateway>, sockets: Vec<OwnedFd>) -> anyhow::Result<()> {
    if gateway.upstream.is_embedded() {
        bail!("the embedded PostgreSQL can't be handed over: it lives in this process");
    }
    let (own, theirs) = UnixStream::pair().context("cannot make a socket")?;
    let mut child = successor(sockets, theirs)?;
    let pid = child.id();
    tracing::info!(pid, "handing over");
    own.set_nonblocking(true)?;
    let mut own = tokio::net::UnixStream::from_std(own)?;
    let mut answer = [0];
    let told = tokio::time::timeout(READY_TIMEOUT, own.read_exact(&mut answer)).await;
    if !matches!(told, Ok(Ok(_))) || answer != [READY] {
        let _ = child.kill();
        let status = tokio::task::spawn_blocking(move || child.wait()).await;
        bail!("the successor did not get ready: {status:?}");
    }
    // In this order: from when it accepts, what is written there is not seen here.
    gateway.pause_cache(true);
    let going = async {
        own.write_all(&[GO]).await?;
        own.read_exact(&mut answer).await
    };
    let told = tokio::time::timeout(GOING_TIMEOUT, going).await;
    if !matches!(told, Ok(Ok(_))) || answer != [GOING] {
        let _ = child.kill();
        let status = tokio::task::spawn_blocking(move || child.wait()).await;
        // It may have let somebody in.
        gateway.upstream.doubt_strangers();
        gateway.cache.versions().invalidate_all();
        gateway.pause_cache(false);
        bail!("the successor did not go on: {status:?}");
    }
    gateway.course.send_replace(Course::HandOver);
    gateway.accepting.closed().await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::MainPid(pid)]);
    // Open until this process ends: that is how the successor hears of it.
    let _ = gateway.successor.set(own);
    // Should it end first, it is not left behind as a zombie.
    std::thread::spawn(move || child.wait());
    Ok(())
}

fn successor(sockets: Vec<OwnedFd>, theirs: UnixStream) -> anyhow::Result<std::process::Child> {
    let mut arguments = std::env::args_os();
    let program = program(arguments.next())?;
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .env("LISTEN_FDS", sockets.len().to_string())
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDNAMES")
        .env(VARIABLE, "1")
        .stdin(Stdio::from(OwnedFd::from(theirs)));
    let mappings = sockets.into_iter().zip(FIRST_FD..);
    command
        .fd_mappings(
            mappings
                .map(|(parent_fd, child_fd)| FdMapping {
                    parent_fd,
                    child_fd,
                })
                .collect(),
        )
        .context("cannot hand the sockets over")?;
    command
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

/// The file that this program was started from. A newer one may be in its place.
fn program(first_argument: Option<OsString>) -> anyhow::Result<PathBuf> {
    if let Some(name) = first_argument.map(PathBuf::from)
        && name.components().count() > 1
        && name.exists()
    {
        return Ok(name);
    }
    let running = std::env::current_exe().context("cannot find this program's file")?;
    // What the system says of a file that was replaced.
    let text = running.to_string_lossy();
    Ok(match text.strip_suffix(" (deleted)") {
        Some(replaced) => PathBuf::from(replaced),
        None => running,
    })
}
