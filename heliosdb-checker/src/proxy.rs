//! A proxy between helios and the server that cuts connections at bad moments.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::history::Origin;

/// How a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The server gets a request of which helios has seen the connection end long before.
    Late,
    /// The server did what it was asked, and its answer is lost.
    Reply,
    /// At once, for both.
    Request,
    /// Nothing moves for a while, and then goes on.
    Stall,
}

#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: u16,
    /// What befalls the next request that could be the end of a write.
    armed: Mutex<Option<Cut>>,
    done: AtomicU64,
    /// When the clients were asked to write nothing for a while.
    calm: Mutex<Option<Calm>>,
}

/// A time without writes, and at one place. When a request is late, or the log stands still, what was cached before is to
/// be asked for afterwards: a write would have it dropped.
#[derive(Debug, Clone, Copy)]
struct Calm {
    since: Instant,
    until: Instant,
    is_for_all: bool,
}

impl Proxy {
    /// Listens, and leads to the server on that port, until the process ends.
    pub(crate) async fn start(server: u16) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            server,
            armed: Mutex::new(None),
            done: AtomicU64::new(0),
            calm: Mutex::new(None),
        });
        let proxy = Self {
            port,
            shared: Arc::clone(&shared),
        };
        tokio::spawn(async move {
            while let Ok((gateway, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    // Whatever goes wrong ends both sides.
                    let _ = shared.carry(gateway).await;
                });
            }
        });
        Ok(proxy)
    }

    /// The next request that looks as if it ended a write is cut.
    pub(crate) fn arm(&self, cut: Cut) {
        *self.shared.armed.lock() = Some(cut);
    }

    /// Since when there has been calm; `None` if there is none.
    pub(crate) fn calm(&self) -> Option<Duration> {
        let calm = (*self.shared.calm.lock()).filter(|calm| Instant::now() < calm.until)?;
        Some(calm.since.elapsed())
    }

    /// Whether a client is to write nothing now.
    pub(crate) fn is_calm_for(&self, origin: Origin) -> bool {
        let calm = (*self.shared.calm.lock()).filter(|calm| Instant::now() < calm.until);
        calm.is_some_and(|calm| calm.is_for_all || origin == Origin::Gateway)
    }

    /// From now on there is calm for so long: for all, or for those that write through helios.
    pub(crate) fn calm_down(&self, lasts: Duration, is_for_all: bool) {
        self.shared.calm_down(lasts, is_for_all);
    }

    /// How many were cut.
    pub(crate) fn cuts(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }
}

impl Shared {
    async fn carry(&self, mut gateway: TcpStream) -> std::io::Result<()> {
        let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, self.server)).await?;
        gateway.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (mut up, mut down) = (vec![0; 16 << 10], vec![0; 16 << 10]);
        let mut has_written = false;
        loop {
            tokio::select! {
                read = gateway.read(&mut up) => {
                    let request = &up[..read?];
                    if request.is_empty() {
                        return Ok(());
                    }
                    match self.cut_for(request, &mut has_written) {
                        None => server.write_all(request).await?,
                        Some(Cut::Stall) => {
                            tokio::time::sleep(STALL).await;
                            server.write_all(request).await?;
                        }
                        Some(Cut::Request) => return Ok(()),
                        Some(Cut::Late) => {
                            drop(gateway);
                            if fastrand::bool() {
                                self.calm_down(CALM, true);
                            }
                            tokio::time::sleep(LATE).await;
                            server.write_all(request).await?;
                            // It is done before the end of the connection can be seen.
                            let _ = tokio::time::timeout(STALL, server.read(&mut down)).await;
                            return Ok(());
                        }
                        Some(Cut::Reply) => {
                            server.write_all(request).await?;
                            let _ = tokio::time::timeout(STALL, server.read(&mut down)).await;
                            return Ok(());
                        }
                    }
                }
                read = server.read(&mut down) => {
                    let reply = &down[..read?];
                    if reply.is_empty() {
                        return Ok(());
                    }
                    gateway.write_all(reply).await?;
                }
            }
        }
    }

    fn calm_down(&self, lasts: Duration, is_for_all: bool) {
        let now = Instant::now();
        let mut calm = self.calm.lock();
        let before = calm.filter(|calm| now < calm.until);
        *calm = Some(Calm {
            since: before.map_or(now, |calm| calm.since),
            until: now + lasts,
            is_for_all,
        });
    }

    fn cut_for(&self, request: &[u8], has_written: &mut bool) -> Option<Cut> {
        let mut armed = self.armed.lock();
        let is_end = ends_a_write(request, has_written);
        if armed.is_none() || !is_end {
            return None;
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        armed.take()
    }
}

/// A commit of what was written, or a write that is by itself a transaction. What was prepared before has no text, and is
/// not seen here.
fn ends_a_write(request: &[u8], has_written: &mut bool) -> bool {
    let has = |word: &[u8]| request.windows(word.len()).any(|part| part == word);
    let ends_block = has(b"COMMIT") || has(b"ROLLBACK");
    let is_write = has(b"UPDATE") || has(b"INSERT INTO") || has(b"DELETE FROM");
    let is_alone = has(b"UPDATE cells") || has(b"INSERT INTO") || has(b"WITH m AS");
    let is_end = has(b"COMMIT") && (*has_written || is_write) || is_alone;
    *has_written = !ends_block && (*has_written || is_write);
    is_end
}

const STALL: Duration = Duration::from_millis(150);
/// Longer than a request is late.
const CALM: Duration = Duration::from_millis(600);
const LATE: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_ends_a_write_where_something_was_written() {
        let mut has_written = false;
        let mut ends = |request: &str| ends_a_write(request.as_bytes(), &mut has_written);
        assert!(!ends("BEGIN"));
        assert!(!ends("SELECT v FROM cells"));
        assert!(!ends("COMMIT"));
        assert!(!ends("UPDATE rows_1 SET v = v + 1"));
        assert!(ends("COMMIT"));
        assert!(!ends("COMMIT"));
        assert!(!ends("UPDATE rows_1 SET v = v + 1"));
        assert!(!ends("ROLLBACK"));
        assert!(!ends("COMMIT"));
        assert!(ends("UPDATE cells SET v = v + 1"));
        assert!(ends("BEGIN; UPDATE rows_1 SET v = v + 1; COMMIT"));
    }
}
