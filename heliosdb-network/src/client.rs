//! The asking end of HIDB.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::connection_pool::{Connector, Disposition};
use crate::error::{HeliosError, Result};
use crate::protocol::{self, Frame, Hello, HidbMessage};

/// One HIDB connection.
#[derive(Debug)]
pub struct HidbClient {
    /// Why an asynchronous lock: one exchange at a time owns the wire across its awaits.
    wire: Mutex<Wire>,
    next_request: AtomicU64,
    /// An exchange was cut short or went wrong: what comes next could be the answer to it.
    broken: AtomicBool,
    /// Messages sent less messages received. Anything but zero: what comes next belongs to an earlier holder.
    unanswered: AtomicI64,
}

#[derive(Debug)]
struct Wire {
    stream: TcpStream,
    /// Kept across cancelled reads, so that no byte is lost.
    input: BytesMut,
}

/// Bound on a health check.
const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(5);

impl HidbClient {
    /// Connects and exchanges greetings.
    ///
    /// # Errors
    /// [`HeliosError::Network`] if the peer can't be reached, [`HeliosError::Protocol`] if it speaks something else.
    pub async fn connect(addr: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(addr)
            .await
            .map_err(|error| HeliosError::Network(format!("cannot connect to {addr}: {error}")))?;
        stream
            .set_nodelay(true)
            .map_err(HeliosError::io("cannot set TCP_NODELAY"))?;
        stream
            .write_all(&Hello::OURS.encode())
            .await
            .map_err(HeliosError::io("cannot send the greeting"))?;
        let mut hello = [0; Hello::LEN];
        stream
            .read_exact(&mut hello)
            .await
            .map_err(HeliosError::io("cannot read the greeting"))?;
        Hello::decode(hello)?;
        Ok(Self {
            wire: Mutex::new(Wire {
                stream,
                input: BytesMut::new(),
            }),
            next_request: AtomicU64::new(1),
            broken: AtomicBool::new(false),
            unanswered: AtomicI64::new(0),
        })
    }

    /// Sends a message as a request of its own.
    ///
    /// # Errors
    /// [`HeliosError::Io`] if the socket fails, [`HeliosError::Protocol`] if the message is too long,
    /// [`HeliosError::Network`] if the connection became unusable before.
    ///
    /// # Cancel safety
    /// A message half sent makes the connection unusable, and it says so from then on.
    pub async fn send_message(&self, message: HidbMessage) -> Result<()> {
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let mut out = BytesMut::new();
        protocol::encode(&Frame { request, message }, &mut out)?;
        let mut wire = self.wire.lock().await;
        if self.broken.swap(true, Ordering::AcqRel) {
            return Err(HeliosError::Network(
                "the connection is unusable since an exchange on it failed".to_owned(),
            ));
        }
        wire.send(&out).await?;
        self.unanswered.fetch_add(1, Ordering::AcqRel);
        self.broken.store(false, Ordering::Release);
        Ok(())
    }

    /// Receives the next message, whatever it answers.
    ///
    /// # Errors
    /// [`HeliosError::Network`] if the peer closed, [`HeliosError::Protocol`] if it sent what is no message. The
    /// connection is unusable then.
    ///
    /// # Cancel safety
    /// Nothing is lost: the next call goes on where this one stopped.
    pub async fn receive_message(&self) -> Result<HidbMessage> {
        let mut wire = self.wire.lock().await;
        match wire.receive().await {
            Ok(frame) => {
                self.unanswered.fetch_sub(1, Ordering::AcqRel);
                Ok(frame.message)
            }
            Err(error) => {
                self.broken.store(true, Ordering::Release);
                Err(error)
            }
        }
    }

    /// True if the peer answers a ping within five seconds.
    pub async fn health_check(&self) -> bool {
        matches!(
            timeout(HEALTH_CHECK_TIMEOUT, self.send_ping_pong()).await,
            Ok(Ok(()))
        )
    }

    /// Sends a ping and waits for the pong that belongs to it.
    ///
    /// # Errors
    /// [`HeliosError::Network`] if the next message is anything else. The connection is unusable then: what comes is
    /// the answer to something that nobody waits for any more.
    ///
    /// # Cancel safety
    /// Cut short, it leaves a pong on its way that a later ping must not take for its own: the connection is unusable.
    pub async fn send_ping_pong(&self) -> Result<()> {
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let message = HidbMessage::Ping;
        let mut out = BytesMut::new();
        protocol::encode(&Frame { request, message }, &mut out)?;
        let mut wire = self.wire.lock().await;
        if self.broken.swap(true, Ordering::AcqRel) {
            return Err(HeliosError::Network("Health check failed".to_owned()));
        }
        wire.send(&out).await?;
        match wire.receive().await {
            Ok(Frame {
                request: answered,
                message: HidbMessage::Pong,
            }) if answered == request => {
                self.broken.store(false, Ordering::Release);
                Ok(())
            }
            _ => Err(HeliosError::Network("Health check failed".to_owned())),
        }
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire) || self.unanswered.load(Ordering::Acquire) != 0
    }
}

impl Wire {
    async fn send(&mut self, out: &[u8]) -> Result<()> {
        let sent = self.stream.write_all(out).await;
        sent.map_err(HeliosError::io("cannot write to the peer"))
    }

    async fn receive(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = protocol::decode(&mut self.input)? {
                return Ok(frame);
            }
            let read = self.stream.read_buf(&mut self.input).await;
            if read.map_err(HeliosError::io("cannot read from the peer"))? == 0 {
                return Err(HeliosError::Network(
                    "the peer closed the connection".to_owned(),
                ));
            }
        }
    }
}

/// Makes HIDB connections for a pool.
#[derive(Debug, Clone)]
pub struct HidbConnector {
    addr: String,
}

impl HidbConnector {
    /// Connections to `addr`, a host and a port.
    #[must_use]
    pub fn new(addr: String) -> Self {
        Self { addr }
    }
}

impl Connector for HidbConnector {
    type Connection = HidbClient;

    async fn connect(&self) -> Result<HidbClient> {
        HidbClient::connect(&self.addr).await
    }

    async fn check(&self, connection: &mut HidbClient) -> Result<()> {
        connection.send_ping_pong().await
    }

    async fn reset(&self, connection: &mut HidbClient) -> Result<()> {
        // There is no session state yet.
        connection.send_ping_pong().await
    }

    async fn close(&self, mut connection: HidbClient) {
        let _ = connection.wire.get_mut().stream.shutdown().await;
    }

    fn disposition(&self, connection: &HidbClient) -> Disposition {
        if connection.is_broken() {
            Disposition::Broken
        } else {
            Disposition::Clean
        }
    }

    fn is_alive(&self, connection: &mut HidbClient) -> bool {
        let wire = connection.wire.get_mut();
        let mut byte = [0];
        let quiet = matches!(
            wire.stream.try_read(&mut byte),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock
        );
        quiet && wire.input.is_empty() && !*connection.broken.get_mut()
    }
}
