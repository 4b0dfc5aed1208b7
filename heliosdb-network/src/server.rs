//! The answering end of HIDB: letting clients in ([`Door`]), and a server that answers pings ([`HidbServer`]).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsStream};

use crate::error::{HeliosError, Result};
use crate::postgres::message::{Report, put_error_response};
use crate::protocol::{self, Frame, Hello, HidbMessage, LOGIN_FRAME_MAX, Login};
use crate::scram::{ScramExchange, ScramSecret};
use crate::stream::WireStream;

/// How clients get in: encryption, and what they have to prove.
#[derive(Debug, Clone, Default)]
#[expect(clippy::exhaustive_structs, reason = "a door is what it asks for")]
pub struct Door {
    /// Whether a connection may or must be encrypted. Which it is shows in its first byte: there is no request for
    /// encryption that somebody in between could swallow.
    pub tls: Encryption,
    /// What clients have to prove.
    pub auth: Auth,
}

/// Whether connections are encrypted.
#[derive(Debug, Clone, Default)]
#[expect(clippy::exhaustive_enums, reason = "they may, must, or can't")]
pub enum Encryption {
    /// They can't be.
    #[default]
    Off,
    /// Those that begin so are.
    Allowed(Arc<ServerConfig>),
    /// All are; others are turned away.
    Required(Arc<ServerConfig>),
}

/// What clients have to prove.
#[derive(Debug, Clone, Default)]
#[expect(clippy::exhaustive_enums, reason = "they have to prove it or not")]
pub enum Auth {
    /// Nothing: everybody is who he says he is.
    #[default]
    Trust,
    /// That they know the password, by SCRAM-SHA-256.
    Scram(Arc<Secrets>),
}

/// The users and their secrets.
#[derive(Debug)]
pub struct Secrets {
    secrets: std::collections::HashMap<String, ScramSecret>,
    /// For users that there are none of.
    seed: [u8; 32],
}

impl Secrets {
    /// Those of these users.
    #[must_use]
    pub fn new(secrets: impl IntoIterator<Item = (String, ScramSecret)>) -> Self {
        let mut seed = [0; 32];
        rand::fill(&mut seed);
        Self {
            secrets: secrets.into_iter().collect(),
            seed,
        }
    }

    fn of(&self, user: &str) -> ScramSecret {
        let known = self.secrets.get(user).cloned();
        known.unwrap_or_else(|| ScramSecret::mock(user, &self.seed))
    }
}

/// A client that is who it says it is, and waits for a Welcome.
#[derive(Debug)]
#[non_exhaustive]
pub struct Guest {
    /// The connection.
    pub stream: WireStream,
    /// Received behind the login.
    pub input: BytesMut,
    /// Who it is and what it wants.
    pub login: Login,
    /// The number of the request that is to be answered with a Welcome or an error.
    pub request: u64,
}

impl Door {
    /// Greets a client and has it prove who it is. Pings are answered on the way. A client that is turned away is told
    /// why. Not bounded in time.
    ///
    /// # Errors
    /// [`HeliosError::Network`] and [`HeliosError::Io`] if it left, [`HeliosError::Protocol`] if it speaks something else,
    /// [`HeliosError::Unsupported`] if it was turned away.
    pub async fn admit(&self, stream: TcpStream) -> Result<Guest> {
        let stream = self.encrypt(stream).await?;
        let mut waiting = Waiting {
            stream,
            input: BytesMut::new(),
        };
        waiting.greet().await?;
        match waiting.log_in(&self.auth).await {
            Ok((request, login)) => Ok(Guest {
                stream: waiting.stream,
                input: waiting.input,
                login,
                request,
            }),
            Err(error) => {
                if let HeliosError::Protocol(what) = &error {
                    let goodbye = HidbMessage::Goodbye(what.clone());
                    let _ = waiting.send(0, goodbye).await;
                    let _ = waiting.stream.shutdown().await;
                }
                Err(error)
            }
        }
    }

    async fn encrypt(&self, stream: TcpStream) -> Result<WireStream> {
        let mut first = [0];
        let begun = stream.peek(&mut first).await;
        let is_tls = match begun.map_err(HeliosError::io("cannot read the greeting"))? {
            0 => return Err(left()),
            _ => first == [TLS_HANDSHAKE],
        };
        let config = match (&self.tls, is_tls) {
            (Encryption::Off | Encryption::Allowed(_), false) => {
                return Ok(WireStream::Tcp(stream));
            }
            (Encryption::Allowed(config) | Encryption::Required(config), true) => config,
            (Encryption::Off, true) => {
                return Err(HeliosError::Protocol(
                    "the client asks for TLS, and there is none here".to_owned(),
                ));
            }
            (Encryption::Required(_), false) => {
                let mut waiting = Waiting {
                    stream: WireStream::Tcp(stream),
                    input: BytesMut::new(),
                };
                waiting.greet().await?;
                let what = "connections have to be encrypted here";
                let _ = waiting.send(0, HidbMessage::Goodbye(what.to_owned())).await;
                let _ = waiting.stream.shutdown().await;
                return Err(HeliosError::Unsupported(what.to_owned()));
            }
        };
        let accepted = TlsAcceptor::from(Arc::clone(config)).accept(stream).await;
        let stream = accepted.map_err(HeliosError::io("cannot agree on TLS"))?;
        Ok(WireStream::Tls(Box::new(TlsStream::Server(stream))))
    }
}

/// The first byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;

/// A client that has not said who it is.
struct Waiting {
    stream: WireStream,
    input: BytesMut,
}

impl Waiting {
    async fn greet(&mut self) -> Result<()> {
        let mut hello = [0; Hello::LEN];
        let read = self.stream.read_exact(&mut hello).await;
        read.map_err(HeliosError::io("cannot read the greeting"))?;
        // A client of another version learns which ones are spoken here.
        let decoded = Hello::decode(hello);
        self.write(&Hello::OURS.encode()).await?;
        decoded.map(|_| ())
    }

    async fn log_in(&mut self, auth: &Auth) -> Result<(u64, Login)> {
        let (request, login) = loop {
            let Frame { request, message } = self.receive().await?;
            match message {
                HidbMessage::Ping => self.send(request, HidbMessage::Pong).await?,
                HidbMessage::Login(login) => break (request, login),
                HidbMessage::Goodbye(_) => return Err(left()),
                _ => return Err(unexpected("before the login")),
            }
        };
        if login.user.is_empty() {
            return self.refuse(request, "28000", "no user name").await;
        }
        let Auth::Scram(secrets) = auth else {
            return Ok((request, login));
        };
        if login.scram.is_empty() {
            let message = format!(
                "password authentication failed for user \"{}\": none was given",
                login.user
            );
            return self.refuse(request, "28P01", &message).await;
        }
        let secret = secrets.of(&login.user);
        let (exchange, first) = ScramExchange::begin(secret, &login.scram)?;
        self.send(request, HidbMessage::Sasl(first.into())).await?;
        let last = match self.receive().await? {
            Frame {
                message: HidbMessage::Sasl(last),
                request: answered,
            } if answered == request => last,
            _ => return Err(unexpected("during authentication")),
        };
        match exchange.finish(&last)? {
            Some(proven) => {
                self.send(request, HidbMessage::Sasl(proven.message.into()))
                    .await?;
                Ok((request, login))
            }
            None => {
                let message = format!("password authentication failed for user \"{}\"", login.user);
                self.refuse(request, "28P01", &message).await
            }
        }
    }

    async fn refuse<T>(&mut self, request: u64, sqlstate: &str, message: &str) -> Result<T> {
        let failed = HidbMessage::Failed(error_body("FATAL", sqlstate, message));
        let _ = self.send(request, failed).await;
        let _ = self.stream.shutdown().await;
        Err(HeliosError::Unsupported(message.to_owned()))
    }

    async fn receive(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = protocol::decode_within(&mut self.input, LOGIN_FRAME_MAX)? {
                return Ok(frame);
            }
            let read = self.stream.read_buf(&mut self.input).await;
            if read.map_err(HeliosError::io("cannot read from the peer"))? == 0 {
                return Err(left());
            }
        }
    }

    async fn send(&mut self, request: u64, message: HidbMessage) -> Result<()> {
        let mut out = BytesMut::new();
        protocol::encode(&Frame { request, message }, &mut out)?;
        self.write(&out).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let write = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        write
            .await
            .map_err(HeliosError::io("cannot write to the peer"))
    }
}

/// The body of an ErrorResponse, for [`HidbMessage::Failed`].
#[must_use]
pub fn error_body(severity: &str, sqlstate: &str, message: &str) -> Bytes {
    let mut out = BytesMut::new();
    put_error_response(
        &mut out,
        &Report {
            severity,
            sqlstate,
            message,
            detail: None,
            hint: None,
        },
    );
    // Behind the tag and the length.
    out.split_off(5).freeze()
}

fn left() -> HeliosError {
    HeliosError::Network("the peer closed the connection".to_owned())
}

fn unexpected(when: &str) -> HeliosError {
    HeliosError::Protocol(format!("an unexpected message {when}"))
}

/// A listening HIDB server that answers pings.
#[derive(Debug)]
pub struct HidbServer {
    listener: TcpListener,
}

const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

impl HidbServer {
    /// Listens on `addr`.
    ///
    /// # Errors
    /// [`HeliosError::Io`] if the address can't be had.
    pub async fn bind(addr: &str) -> Result<Self> {
        let listener = TcpListener::bind(addr)
            .await
            .map_err(HeliosError::io("cannot listen"))?;
        Ok(Self { listener })
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// [`HeliosError::Io`] if the system does not say.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        self.listener
            .local_addr()
            .map_err(HeliosError::io("cannot tell the address"))
    }

    /// Serves until dropped; the connections end with it.
    pub async fn serve(self) {
        let mut connections = JoinSet::new();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    connections.spawn(async move {
                        if let Err(error) = serve_connection(stream).await {
                            tracing::debug!(%error, "a HIDB connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a HIDB connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    }
}

async fn serve_connection(stream: TcpStream) -> Result<()> {
    let mut waiting = Waiting {
        stream: WireStream::Tcp(stream),
        input: BytesMut::new(),
    };
    match tokio::time::timeout(HELLO_TIMEOUT, waiting.greet()).await {
        Ok(greeted) => greeted?,
        Err(_) => return Err(HeliosError::Network("no greeting in time".to_owned())),
    }
    loop {
        let Frame { request, message } = waiting.receive().await?;
        match message {
            HidbMessage::Ping => waiting.send(request, HidbMessage::Pong).await?,
            HidbMessage::Goodbye(_) => return Ok(()),
            _ => {
                let what = "only pings are answered here".to_owned();
                waiting.send(0, HidbMessage::Goodbye(what)).await?;
                return Ok(());
            }
        }
    }
}
