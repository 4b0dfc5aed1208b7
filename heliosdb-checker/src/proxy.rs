//! A proxy between helios and the server that cuts connections at bad moments.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

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
        loop {
            tokio::select! {
                read = gateway.read(&mut up) => {
                    let request = &up[..read?];
                    if request.is_empty() {
                        return Ok(());
                    }
                    match self.cut_for(request) {
                        None => server.write_all(request).await?,
                        Some(Cut::Stall) => {
                            tokio::time::sleep(STALL).await;
                            server.write_all(request).await?;
                        }
                        Some(Cut::Request) => return Ok(()),
                        Some(Cut::Late) => {
                            drop(gateway);
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

    fn cut_for(&self, request: &[u8]) -> Option<Cut> {
        let mut armed = self.armed.lock();
        if armed.is_none() || !ends_a_write(request) {
            return None;
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        armed.take()
    }
}

/// A commit, or a write with its text.
fn ends_a_write(request: &[u8]) -> bool {
    let has = |word: &[u8]| request.windows(word.len()).any(|part| part == word);
    has(b"COMMIT") || has(b"UPDATE cells") || has(b"comings") && !has(b"SELECT")
}

const STALL: Duration = Duration::from_millis(150);
const LATE: Duration = Duration::from_millis(250);
