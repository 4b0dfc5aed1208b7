//! From a target to a connection: which place, encrypted or not, and whether it is the server that is meant.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::error::{HeliosError, Result};
use crate::tls::{POSTGRESQL_ALPN, SslMode, SslNegotiation};

use super::connection::PgConnection;
use super::stream::{Stream, is_without_address};
use super::target::{Host, PgTarget, Place, SessionAttrs};

/// SSLRequest.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Whether one attempt is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Never,
    IfOffered,
    Always,
}

impl PgConnection {
    /// Connects and logs in, within the target's timeout. Where the target has several places they are tried one after the
    /// other, the one where the last connection stood first, until one is the server that is meant.
    ///
    /// # Errors
    /// [`HeliosError::Network`] or [`HeliosError::Io`] if the server can't be reached, [`HeliosError::Server`] if it
    /// refuses, [`HeliosError::Unsupported`] if it wants an authentication that can't be given, or encryption is not as
    /// it has to be. Of several places, the error says what each one said; a wrong password at one of them ends the
    /// search, since it would be wrong at the others.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket.
    pub async fn connect(target: &PgTarget) -> Result<Self> {
        if let ([place], SessionAttrs::Any) = (&*target.places, target.session_attrs) {
            let connecting = at_place(target, place);
            return match timeout(target.connect_timeout, connecting).await {
                Ok(connected) => connected,
                Err(_) => {
                    log_timeout(target, place, target.connect_timeout);
                    Err(too_late(target, target.connect_timeout))
                }
            };
        }
        find(target).await
    }

    /// What is wrong with the server, if it is not the one that is meant.
    async fn unlike(&mut self, attrs: SessionAttrs) -> Result<Option<&'static str>> {
        Ok(match attrs {
            SessionAttrs::Any | SessionAttrs::PreferStandby => None,
            SessionAttrs::Primary if self.learn_standby().await? => Some("it is a standby"),
            SessionAttrs::Standby if !self.learn_standby().await? => Some("it is no standby"),
            SessionAttrs::ReadWrite if self.is_read_only().await? => {
                Some("its sessions are read-only")
            }
            SessionAttrs::ReadOnly if !self.is_read_only().await? => {
                Some("its sessions are not read-only")
            }
            _ => None,
        })
    }

    async fn learn_standby(&mut self) -> Result<bool> {
        if let Some(is_standby) = self.is_standby() {
            return Ok(is_standby);
        }
        let is_standby = self.ask("SELECT pg_catalog.pg_is_in_recovery()").await? == "t";
        self.asked_standby = Some(is_standby);
        Ok(is_standby)
    }

    async fn is_read_only(&mut self) -> Result<bool> {
        match self.parameter("default_transaction_read_only") {
            Some(value) => Ok(value == "on" || self.is_standby() == Some(true)),
            None => Ok(self.ask("SHOW transaction_read_only").await? == "on"),
        }
    }

    async fn ask(&mut self, question: &str) -> Result<String> {
        let results = self.simple_query(question).await?;
        // It was no use of the connection by anybody.
        self.is_used = false;
        let answer = results.into_iter().flat_map(|result| result.rows).next();
        answer
            .and_then(|row| row.into_iter().next().flatten())
            .ok_or_else(|| HeliosError::Protocol(format!("no answer to {question:?}")))
    }
}

/// Tries the places one after the other.
async fn find(target: &PgTarget) -> Result<PgConnection> {
    let passes: &[SessionAttrs] = match target.session_attrs {
        SessionAttrs::PreferStandby => &[SessionAttrs::Standby, SessionAttrs::Any],
        attrs => &[attrs],
    };
    let order = target.next_order();
    let deadline = Instant::now() + target.connect_timeout;
    let mut attempts_left = u32::try_from(passes.len() * order.len()).unwrap_or(u32::MAX);
    let mut said = Vec::new();
    for attrs in passes {
        for at in order.iter().copied() {
            let Some(place) = target.places.get(at) else {
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / attempts_left.max(1);
            attempts_left = attempts_left.saturating_sub(1);
            let attempt = async {
                let mut connection = at_place(target, place).await?;
                match connection.unlike(*attrs).await? {
                    None => Ok(connection),
                    Some(why) => {
                        connection.terminate().await;
                        Err(HeliosError::Network(why.to_owned()))
                    }
                }
            };
            let error = match timeout(share, attempt).await {
                Ok(Ok(connection)) => {
                    target.note_good(at);
                    return Ok(connection);
                }
                Ok(Err(error)) => error,
                Err(_) => {
                    log_timeout(target, place, share);
                    HeliosError::Network(format!("no connection within {share:?}"))
                }
            };
            let is_final = error.is_permanent() && !is_elsewhere_different(&error);
            said.push((place, error));
            if is_final {
                return Err(all_said(target, said));
            }
        }
    }
    Err(all_said(target, said))
}

/// True for an error that another server need not give: it is about this one's place or encryption.
fn is_elsewhere_different(error: &HeliosError) -> bool {
    matches!(
        error,
        HeliosError::Unsupported(_) | HeliosError::Protocol(_)
    )
}

/// One error for what all the places said. One that callers tell apart is kept as it is.
fn all_said(target: &PgTarget, mut said: Vec<(&Place, HeliosError)>) -> HeliosError {
    let telling = said.iter().position(|(_, error)| {
        error.is_too_many_connections() || error.is_permanent() && !is_elsewhere_different(error)
    });
    if said.len() == 1 || telling.is_some() {
        return said.swap_remove(telling.unwrap_or(0)).1;
    }
    let mut text = format!("no server of {target} can be used");
    for (at, (place, error)) in said.iter().enumerate() {
        let mark = if at == 0 { ':' } else { ';' };
        let _ = write!(text, "{mark} {place}: {}", with_source(error));
    }
    HeliosError::Network(text)
}

fn with_source(error: &HeliosError) -> String {
    use std::error::Error as _;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Connects to one place and logs in, encrypted or not as the target's mode has it.
async fn at_place(target: &PgTarget, place: &Place) -> Result<PgConnection> {
    let (first, second) = ways(target, place);
    let error = match attempt(target, place, first).await {
        Err(error) if second.is_some() && may_go_the_other_way(&error) => error,
        done => return done,
    };
    match second {
        Some(second) => {
            let other = attempt(target, place, second).await;
            // That the other way is closed too says less than the first refusal.
            other.map_err(|other| match other {
                HeliosError::Unsupported(_) => error,
                other => other,
            })
        }
        None => Err(error),
    }
}

fn ways(target: &PgTarget, place: &Place) -> (Encryption, Option<Encryption>) {
    match target.tls.mode {
        _ if matches!(place.host, Host::Unix(_)) => (Encryption::Never, None),
        SslMode::Disable => (Encryption::Never, None),
        SslMode::Allow => (Encryption::Never, Some(Encryption::Always)),
        SslMode::Prefer => (Encryption::IfOffered, Some(Encryption::Never)),
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (Encryption::Always, None),
    }
}

/// True where the server may let us in with encryption if without it did not, or the other way round.
fn may_go_the_other_way(error: &HeliosError) -> bool {
    match error {
        HeliosError::Server(fields) => fields.sqlstate() == "28000",
        HeliosError::Io { context, .. } => *context == NO_TLS,
        _ => false,
    }
}

const NO_TLS: &str = "cannot agree on TLS with the server";

async fn attempt(target: &PgTarget, place: &Place, way: Encryption) -> Result<PgConnection> {
    let (stream, opened) = open(target, place, way).await?;
    let connected = PgConnection::log_in(stream, opened, target).await;
    if let Err(HeliosError::Server(fields)) = &connected {
        tracing::info!(
            "{}/{}@{place} server login failed: {} {}",
            target.database,
            target.user,
            fields.severity(),
            fields.message()
        );
    }
    connected
}

fn log_timeout(target: &PgTarget, place: &Place, within: Duration) {
    tracing::info!(
        "{}/{}@{place} closing because: connect timeout (age={}s)",
        target.database,
        target.user,
        within.as_secs()
    );
}

/// In the words that PgBouncer's users look for.
fn log_unreachable(target: &PgTarget, place: &Place, began: Instant, error: &io::Error) {
    let why = if is_without_address(error) {
        "server DNS lookup failed"
    } else {
        "connect failed"
    };
    tracing::info!(
        "{}/{}@{place} closing because: {why} (age={}s): {error}",
        target.database,
        target.user,
        began.elapsed().as_secs()
    );
}

/// In the words that users of OpenSSL look for.
fn log_no_tls(target: &PgTarget, place: &Place, began: Instant, error: &io::Error) {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    let is_unverified = matches!(cause, Some(rustls::Error::InvalidCertificate(_)));
    let why = if is_unverified {
        "server TLS handshake failed, certificate verify failed"
    } else {
        "server TLS handshake failed"
    };
    tracing::info!(
        "{}/{}@{place} closing because: {why} (age={}s): {error}",
        target.database,
        target.user,
        began.elapsed().as_secs()
    );
}

/// A stream to the target's first place, encrypted as its mode has it, for a request without a login.
pub(super) async fn stream(target: &PgTarget) -> Result<Stream> {
    let place = target.places.first();
    let place = place.ok_or_else(|| HeliosError::Unsupported("there is no server".to_owned()))?;
    let (way, _) = ways(target, place);
    Ok(open(target, place, way).await?.0)
}

async fn open(target: &PgTarget, place: &Place, way: Encryption) -> Result<(Stream, Place)> {
    let began = Instant::now();
    let (mut stream, address) = Stream::connect(place).await.map_err(|error| {
        log_unreachable(target, place, began, &error);
        HeliosError::Network(format!("cannot connect to {target}: {error}"))
    })?;
    let mut place = place.clone();
    place.address = address;
    if way == Encryption::Never {
        return Ok((stream, place));
    }
    // Before the server is asked: files that can't be used are no reason to go without.
    let config = target.tls.config()?;
    let is_direct = target.tls.negotiation == SslNegotiation::Direct;
    if !is_direct && !is_offered(&mut stream).await? {
        if way == Encryption::IfOffered {
            return Ok((stream, place));
        }
        return Err(HeliosError::Unsupported(format!(
            "the server at {place} does not support TLS, and sslmode asks for it"
        )));
    }
    let name = server_name(target, &place)?;
    let stream = stream.encrypt(config, name).await.map_err(|error| {
        log_no_tls(target, &place, began, &error);
        HeliosError::io(NO_TLS)(error)
    })?;
    if is_direct && stream.peer().1 != Some(POSTGRESQL_ALPN) {
        return Err(HeliosError::Protocol(
            "the server did not agree on the protocol \"postgresql\" (ALPN)".to_owned(),
        ));
    }
    Ok((stream, place))
}

/// Asks for encryption. The answer is one byte, and not one more is read: what somebody in between sends behind it is
/// taken for TLS, and fails (CVE-2021-23222).
async fn is_offered(stream: &mut Stream) -> Result<bool> {
    let mut answer = [0];
    let ask = async {
        stream.write_all(&SSL_REQUEST).await?;
        stream.read_exact(&mut answer).await
    };
    let asked = ask.await;
    asked.map_err(HeliosError::io("no answer to the request for TLS"))?;
    match answer {
        [b'S'] => Ok(true),
        [b'N'] => Ok(false),
        // Not encrypted, hence from anybody: what it says is not shown to anybody (CVE-2024-10977).
        [b'E'] => Err(HeliosError::Network(
            "the server answered the request for TLS with an error".to_owned(),
        )),
        [other] => Err(HeliosError::Protocol(format!(
            "{:?} in answer to the request for TLS",
            char::from(other)
        ))),
    }
}

fn server_name(target: &PgTarget, place: &Place) -> Result<ServerName<'static>> {
    let Host::Tcp(host) = &place.host else {
        return Err(HeliosError::Unsupported(
            "a Unix-domain socket is not encrypted".to_owned(),
        ));
    };
    match ServerName::try_from(host.clone()) {
        Ok(name) => Ok(name),
        // Nobody looks at the name.
        Err(_) if target.tls.mode < SslMode::VerifyFull => {
            let address = place.address.map(|address| address.ip());
            Ok(ServerName::IpAddress(
                address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)).into(),
            ))
        }
        Err(_) => Err(HeliosError::Unsupported(format!(
            "{host:?} is no name that a certificate can be of"
        ))),
    }
}

fn too_late(target: &PgTarget, within: Duration) -> HeliosError {
    HeliosError::Network(format!("no connection to {target} within {within:?}"))
}
