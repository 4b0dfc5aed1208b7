//! A server's front made of this crate's parts: it lets clients in as it is told to, and answers every query with nothing.

#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test uses a part of it"
)]

use std::sync::Arc;

use bytes::{Buf as _, BytesMut};
use heliosdb_network::postgres::auth::{
    Challenge, Granted, PROOF_MESSAGE_MAX, Proof, Step, StoredSecret,
};
use heliosdb_network::postgres::startup::{self, FirstPacket};
use heliosdb_network::postgres::{frame, message};
use heliosdb_network::tls::{CertificateIdentity, ServerTls, TLS_HANDSHAKE};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{self, UnboundedReceiver};

/// How clients get in.
pub(crate) struct Door {
    pub(crate) proof: Proof,
    pub(crate) secret: Option<StoredSecret>,
    pub(crate) tls: Option<Arc<ServerTls>>,
}

/// A client that got in, or that did not.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) granted: Option<Granted>,
    pub(crate) certificate: Option<CertificateIdentity>,
    pub(crate) is_encrypted: bool,
    pub(crate) is_direct: bool,
    pub(crate) error: Option<String>,
}

/// Serves on a port of its own until the runtime ends.
pub(crate) async fn serve(door: Door) -> (u16, UnboundedReceiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (seen, receiver) = mpsc::unbounded_channel();
    let door = Arc::new(door);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (door, seen) = (Arc::clone(&door), seen.clone());
            tokio::spawn(async move {
                let mut facts = Seen {
                    granted: None,
                    certificate: None,
                    is_encrypted: false,
                    is_direct: false,
                    error: None,
                };
                if let Err(error) = client(&door, stream, &mut facts, &seen).await {
                    facts.error = Some(error.to_string());
                    let _ = seen.send(facts);
                }
            });
        }
    });
    (port, receiver)
}

type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn client(
    door: &Door,
    mut stream: TcpStream,
    facts: &mut Seen,
    seen: &mpsc::UnboundedSender<Seen>,
) -> Outcome {
    let mut first = [0];
    stream.peek(&mut first).await?;
    facts.is_direct = first == [TLS_HANDSHAKE];
    if !facts.is_direct {
        let mut input = BytesMut::new();
        let packet = first_packet(&mut stream, &mut input).await?;
        if packet != FirstPacket::Ssl {
            return session(door, stream, input, Some(packet), None, facts, seen).await;
        }
        if door.tls.is_none() {
            stream.write_all(b"N").await?;
            return session(door, stream, input, None, None, facts, seen).await;
        }
        stream.write_all(b"S").await?;
    }
    let tls = door.tls.as_ref().ok_or("there is no TLS here")?;
    let accepted = tls.accept(stream, facts.is_direct).await?;
    facts.is_encrypted = true;
    facts.certificate = accepted.client;
    let end_point = accepted.end_point;
    session(
        door,
        accepted.stream,
        BytesMut::new(),
        None,
        end_point,
        facts,
        seen,
    )
    .await
}

async fn session<S: AsyncRead + AsyncWrite + Unpin>(
    door: &Door,
    mut stream: S,
    mut input: BytesMut,
    first: Option<FirstPacket>,
    end_point: Option<Vec<u8>>,
    facts: &mut Seen,
    seen: &mpsc::UnboundedSender<Seen>,
) -> Outcome {
    let packet = match first {
        Some(packet) => packet,
        None => first_packet(&mut stream, &mut input).await?,
    };
    let FirstPacket::Startup(startup) = packet else {
        return Err("no startup".into());
    };
    let user = startup.param("user").ok_or("no user")?.to_owned();
    let mut out = BytesMut::new();
    let mut challenge = Challenge::begin(
        door.proof,
        &user,
        door.secret.clone(),
        b"seed",
        end_point,
        &mut out,
    );
    loop {
        stream.write_all(&out).await?;
        stream.flush().await?;
        out.clear();
        let (tag, body) = receive(&mut stream, &mut input).await?;
        if tag != b'p' {
            return Err("no proof".into());
        }
        match challenge.answer(&body, &mut out)? {
            Step::More => {}
            Step::Granted(granted) => {
                facts.granted = Some(*granted);
                break;
            }
            Step::Denied => {
                let report = message::Report {
                    severity: "FATAL",
                    sqlstate: "28P01",
                    message: "password authentication failed",
                    detail: None,
                    hint: None,
                };
                message::put_error_response(&mut out, &report);
                stream.write_all(&out).await?;
                stream.shutdown().await?;
                return Err("denied".into());
            }
        }
    }
    message::put_authentication_ok(&mut out);
    message::put_parameter_status(&mut out, "server_version", "15.0");
    message::put_parameter_status(&mut out, "client_encoding", "UTF8");
    message::put_backend_key_data(&mut out, 1, &[0; 4]);
    message::put_ready_for_query(&mut out, b'I');
    let known = Seen {
        granted: facts.granted.take(),
        certificate: facts.certificate.take(),
        error: None,
        ..*facts
    };
    let _ = seen.send(known);
    loop {
        stream.write_all(&out).await?;
        stream.flush().await?;
        out.clear();
        match receive(&mut stream, &mut input).await {
            Ok((b'Q', _)) => {
                message::put_command_complete(&mut out, "SELECT 0");
                message::put_ready_for_query(&mut out, b'I');
            }
            _ => {
                stream.shutdown().await?;
                return Ok(());
            }
        }
    }
}

async fn first_packet(
    stream: &mut (impl AsyncRead + Unpin),
    input: &mut BytesMut,
) -> Result<FirstPacket, Box<dyn std::error::Error + Send + Sync>> {
    loop {
        if let Some((packet, len)) = startup::parse(input)? {
            input.advance(len);
            return Ok(packet);
        }
        if stream.read_buf(input).await? == 0 {
            return Err("left".into());
        }
    }
}

async fn receive(
    stream: &mut (impl AsyncRead + Unpin),
    input: &mut BytesMut,
) -> Result<(u8, bytes::Bytes), Box<dyn std::error::Error + Send + Sync>> {
    loop {
        if let Some(message) = frame::take(input, PROOF_MESSAGE_MAX)? {
            return Ok(message);
        }
        if stream.read_buf(input).await? == 0 {
            return Err("left".into());
        }
    }
}
