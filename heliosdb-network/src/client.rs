//! The asking end of HIDB.

mod driver;
mod reply;
mod statement;
mod target;

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};

use crate::connection_pool::{Connector, Disposition};
use crate::error::{HeliosError, Result};
use crate::postgres::ErrorFields;
use crate::protocol::{self, Frame, Hello, HidbMessage, LOGIN_FRAME_MAX, Login, Query, Welcome};
use crate::stream::WireStream;

use driver::{Collecting, Open, Shared};

pub use driver::Push;
pub use reply::{ColumnIndex, ColumnInfo, Reply, Row, Rows};
pub use statement::{Param, Statement};
pub use target::HidbTarget;

/// One HIDB connection, shared by any number of requests at a time.
///
/// A task of its own reads and writes; it ends with this.
#[derive(Debug)]
pub struct HidbClient {
    shared: Arc<Shared>,
    driver: JoinHandle<()>,
    welcome: Option<Welcome>,
    /// As many requests may be open as the server allows.
    open: Arc<Semaphore>,
    answer_max: usize,
}

impl Drop for HidbClient {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Bound on a health check.
const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(5);

impl HidbClient {
    /// Connects and exchanges greetings. Without a login there is nothing to ask but pings: see [`open`](Self::open).
    ///
    /// # Errors
    /// [`HeliosError::Network`] if the peer can't be reached, [`HeliosError::Protocol`] if it speaks something else.
    pub async fn connect(addr: &str) -> Result<Self> {
        let mut wire = Wire::greet(WireStream::Tcp(dial(addr).await?)).await?;
        let input = std::mem::take(&mut wire.input);
        Ok(Self::start(wire.stream, input, None, 0))
    }

    /// Connects, encrypts if the target says so, and logs in.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); [`HeliosError::Server`] if the login is refused; [`HeliosError::Network`] if it takes
    /// longer than [`HidbTarget::connect_timeout`].
    pub async fn open(target: &HidbTarget) -> Result<Self> {
        let opening = timeout(target.connect_timeout, Self::log_in(target));
        opening.await.unwrap_or_else(|_| {
            let patience = target.connect_timeout;
            Err(HeliosError::Network(format!(
                "{target} did not answer within {patience:?}"
            )))
        })
    }

    async fn log_in(target: &HidbTarget) -> Result<Self> {
        let host = &target.host;
        let addr = if host.contains(':') {
            format!("[{host}]:{}", target.port)
        } else {
            format!("{host}:{}", target.port)
        };
        let stream = dial(&addr).await?;
        let stream = match &target.tls {
            None => WireStream::Tcp(stream),
            Some(config) => {
                let name = ServerName::try_from(host.clone()).map_err(|_| {
                    HeliosError::Unsupported(format!("{host:?} is no name for a certificate"))
                })?;
                let connector = TlsConnector::from(Arc::clone(config));
                let agreed = connector.connect(name, stream).await;
                let stream = agreed.map_err(HeliosError::io("cannot agree on TLS"))?;
                WireStream::Tls(Box::new(TlsStream::Client(stream)))
            }
        };
        let mut wire = Wire::greet(stream).await?;
        let welcome = wire.log_in(target).await?;
        let input = std::mem::take(&mut wire.input);
        Ok(Self::start(
            wire.stream,
            input,
            Some(welcome),
            target.answer_max,
        ))
    }

    fn start(
        stream: WireStream,
        input: BytesMut,
        welcome: Option<Welcome>,
        answer_max: usize,
    ) -> Self {
        let frame_max = welcome.as_ref().map(|welcome| welcome.frame_max as usize);
        let shared = Shared::new(frame_max.unwrap_or(LOGIN_FRAME_MAX));
        let open = welcome
            .as_ref()
            .map_or(1, |welcome| welcome.open_max.max(1) as usize);
        Self {
            driver: tokio::spawn(driver::drive(Arc::clone(&shared), stream, input)),
            shared,
            welcome,
            open: Arc::new(Semaphore::new(open.min(Semaphore::MAX_PERMITS))),
            answer_max,
        }
    }

    /// What the server said at the login; `None` without one.
    #[must_use]
    pub fn welcome(&self) -> Option<&Welcome> {
        self.welcome.as_ref()
    }

    /// Asks a statement and waits for its answer.
    ///
    /// # Errors
    /// [`HeliosError::Server`] with PostgreSQL's error if the statement fails, [`HeliosError::Network`] if the connection
    /// ended before the answer, [`HeliosError::TooLarge`] if the answer is longer than [`HidbTarget::answer_max`],
    /// [`HeliosError::Protocol`] if the statement is longer than the server takes.
    ///
    /// # Cancel safety
    /// The server is asked to stop the statement; whether a write took effect is not known then. The connection goes on.
    pub async fn query(&self, statement: impl Into<Statement>) -> Result<Reply> {
        self.ask(statement.into().to_query()).await
    }

    /// As [`query`](Self::query), with the message as it is.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    ///
    /// # Cancel safety
    /// As [`query`](Self::query).
    pub async fn ask(&self, query: Query) -> Result<Reply> {
        if self.welcome.is_none() {
            return Err(HeliosError::Unsupported(
                "this connection has not logged in: open it with a user and a database".to_owned(),
            ));
        }
        let permit = Arc::clone(&self.open).acquire_owned().await;
        let permit =
            permit.map_err(|_| HeliosError::Network("the connection was closed".to_owned()))?;
        let (done, answered) = oneshot::channel();
        if query.session != 0 {
            self.shared.state.lock().sessions.insert(query.session);
        }
        let collecting = Open::Query(Collecting {
            parts: BytesMut::new(),
            answer_max: self.answer_max,
            done,
            permit,
        });
        let request = self
            .shared
            .send(HidbMessage::Query(query), Some(collecting))?;
        let mut asked = Asked {
            shared: &self.shared,
            request: Some(request),
        };
        let answer = answered.await;
        asked.request = None;
        answer.unwrap_or_else(|_| Err(HeliosError::Network("the connection was closed".to_owned())))
    }

    /// Closes a session: what it left open is rolled back. Its number may be used again.
    ///
    /// # Errors
    /// [`HeliosError::Network`] if the connection has ended.
    pub fn close_session(&self, session: u32) -> Result<()> {
        let is_open = self.shared.state.lock().sessions.remove(&session);
        if is_open {
            self.shared.send(HidbMessage::CloseSession(session), None)?;
        }
        Ok(())
    }

    /// Has `subscriber` told of all changes from now on, in order with the answers that come on this connection: what an
    /// answer shows of writes, the subscriber was told before. It is called by the task that reads, and must not block or
    /// ask anything of this client.
    ///
    /// # Errors
    /// [`HeliosError::Network`] if the connection has ended.
    pub fn subscribe(&self, subscriber: impl FnMut(Push) + Send + 'static) -> Result<()> {
        self.shared.state.lock().subscriber = Some(Box::new(subscriber));
        self.shared.send(HidbMessage::Subscribe, None).map(|_| ())
    }

    /// False once the connection takes no more requests.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.shared.is_usable()
    }

    /// Sends a message as a request of its own, whose answer [`receive_message`](Self::receive_message) returns.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if the message is too long, [`HeliosError::Network`] if the connection became unusable
    /// before.
    #[expect(clippy::unused_async, reason = "the name and form are promised")]
    pub async fn send_message(&self, message: HidbMessage) -> Result<()> {
        let is_answered = matches!(
            message,
            HidbMessage::Ping | HidbMessage::Query(_) | HidbMessage::Login(_)
        );
        self.shared
            .send(message, is_answered.then_some(Open::Raw))
            .map(|_| ())
    }

    /// Receives the next answer to what was sent by [`send_message`](Self::send_message).
    ///
    /// # Errors
    /// [`HeliosError::Network`] if the peer closed, [`HeliosError::Protocol`] if it sent what is no message. The
    /// connection is unusable then.
    ///
    /// # Cancel safety
    /// Nothing is lost: the next call goes on where this one stopped.
    pub async fn receive_message(&self) -> Result<HidbMessage> {
        loop {
            let mut arrived = std::pin::pin!(self.shared.arrived.notified());
            arrived.as_mut().enable();
            if let Some(claimed) = self.shared.claim() {
                return claimed;
            }
            arrived.await;
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
    /// [`HeliosError::Network`] if something else comes, or nothing more. The connection takes no more requests then.
    ///
    /// # Cancel safety
    /// Cut short, the connection takes no more requests: a peer that owes a pong is not well.
    pub async fn send_ping_pong(&self) -> Result<()> {
        let failed = || HeliosError::Network("Health check failed".to_owned());
        let (done, answered) = oneshot::channel();
        self.shared
            .send(HidbMessage::Ping, Some(Open::Ping(done)))
            .map_err(|_| failed())?;
        let mut pinged = Pinged {
            shared: &self.shared,
            is_answered: false,
        };
        match answered.await {
            Ok(Ok(())) => {
                pinged.is_answered = true;
                Ok(())
            }
            Ok(Err(_)) | Err(_) => Err(failed()),
        }
    }
}

/// A request that somebody waits for.
struct Asked<'a> {
    shared: &'a Shared,
    request: Option<u64>,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if let Some(request) = self.request {
            self.shared.abandon(request);
        }
    }
}

struct Pinged<'a> {
    shared: &'a Shared,
    is_answered: bool,
}

impl Drop for Pinged<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.shared.set_broken();
        }
    }
}

async fn dial(addr: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(addr)
        .await
        .map_err(|error| HeliosError::Network(format!("cannot connect to {addr}: {error}")))?;
    stream
        .set_nodelay(true)
        .map_err(HeliosError::io("cannot set TCP_NODELAY"))?;
    Ok(stream)
}

/// A connection before the login is over: one message at a time.
struct Wire {
    stream: WireStream,
    input: BytesMut,
}

impl Wire {
    async fn greet(mut stream: WireStream) -> Result<Self> {
        let greeting = async {
            stream.write_all(&Hello::OURS.encode()).await?;
            stream.flush().await
        };
        let greeted = greeting.await;
        greeted.map_err(HeliosError::io("cannot send the greeting"))?;
        let mut hello = [0; Hello::LEN];
        let read = stream.read_exact(&mut hello).await;
        read.map_err(HeliosError::io("cannot read the greeting"))?;
        Hello::decode(hello)?;
        Ok(Self {
            stream,
            input: BytesMut::new(),
        })
    }

    async fn log_in(&mut self, target: &HidbTarget) -> Result<Welcome> {
        let password = target.password.as_deref();
        let mut scram = password
            .map(|password| ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported()));
        let first = scram.as_ref().map(|scram| scram.message().to_vec());
        self.send(HidbMessage::Login(Login {
            user: target.user.clone(),
            database: target.database.clone(),
            settings: target.settings.clone(),
            scram: first.unwrap_or_default().into(),
        }))
        .await?;
        let wrong =
            |error: std::io::Error| HeliosError::Protocol(format!("SCRAM authentication: {error}"));
        let mut is_proven = false;
        let mut was_asked = false;
        loop {
            match self.receive().await? {
                // Who could not finish SCRAM does not know the password: it is not the server that is meant.
                HidbMessage::Welcome(_) if target.require_scram && !is_proven => {
                    return Err(HeliosError::Unsupported(
                        "the server did not ask for the password, and has proved nothing"
                            .to_owned(),
                    ));
                }
                HidbMessage::Welcome(welcome) if is_proven || !was_asked => return Ok(welcome),
                HidbMessage::Failed(body) => {
                    return Err(HeliosError::Server(Box::new(ErrorFields::parse(body))));
                }
                HidbMessage::Goodbye(why) => {
                    return Err(HeliosError::Unsupported(format!("the server said: {why}")));
                }
                HidbMessage::Sasl(message) if !is_proven => {
                    let scram = scram.as_mut().ok_or_else(|| {
                        HeliosError::Protocol("an answer to SCRAM that was not begun".to_owned())
                    })?;
                    if was_asked {
                        scram.finish(&message).map_err(wrong)?;
                        is_proven = true;
                    } else {
                        scram.update(&message).map_err(wrong)?;
                        was_asked = true;
                        let proof = scram.message().to_vec();
                        self.send(HidbMessage::Sasl(proof.into())).await?;
                    }
                }
                _ => {
                    return Err(HeliosError::Protocol(
                        "an unexpected message during the login".to_owned(),
                    ));
                }
            }
        }
    }

    async fn send(&mut self, message: HidbMessage) -> Result<()> {
        let mut out = BytesMut::new();
        protocol::encode(
            &Frame {
                request: 0,
                message,
            },
            &mut out,
        )?;
        let write = async {
            self.stream.write_all(&out).await?;
            self.stream.flush().await
        };
        write
            .await
            .map_err(HeliosError::io("cannot write to the peer"))
    }

    async fn receive(&mut self) -> Result<HidbMessage> {
        loop {
            if let Some(frame) = protocol::decode_within(&mut self.input, LOGIN_FRAME_MAX)? {
                return Ok(frame.message);
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
    /// Connections to `addr`: a `hidb://` URL ([`HidbTarget::from_url`]), or a host and a port, where nobody logs in.
    #[must_use]
    pub fn new(addr: String) -> Self {
        Self { addr }
    }
}

impl Connector for HidbConnector {
    type Connection = HidbClient;

    async fn connect(&self) -> Result<HidbClient> {
        if self.addr.contains("://") {
            HidbClient::open(&HidbTarget::from_url(&self.addr)?).await
        } else {
            HidbClient::connect(&self.addr).await
        }
    }

    async fn check(&self, connection: &mut HidbClient) -> Result<()> {
        connection.send_ping_pong().await
    }

    async fn reset(&self, connection: &mut HidbClient) -> Result<()> {
        let sessions: Vec<_> = connection
            .shared
            .state
            .lock()
            .sessions
            .iter()
            .copied()
            .collect();
        for session in sessions {
            connection.close_session(session)?;
        }
        connection.send_ping_pong().await
    }

    async fn close(&self, mut connection: HidbClient) {
        connection.driver.abort();
        let _ = (&mut connection.driver).await;
    }

    fn disposition(&self, connection: &HidbClient) -> Disposition {
        let state = connection.shared.state.lock();
        let is_owed = state.unanswered != 0 || state.subscriber.is_some();
        let has_sessions = !state.sessions.is_empty();
        drop(state);
        if is_owed || !connection.is_usable() {
            Disposition::Broken
        } else if has_sessions {
            Disposition::Dirty
        } else {
            Disposition::Clean
        }
    }

    fn is_alive(&self, connection: &mut HidbClient) -> bool {
        connection.is_usable() && connection.shared.state.lock().unclaimed.is_empty()
    }
}
