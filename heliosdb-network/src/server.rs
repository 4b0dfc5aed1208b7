//! The answering end of HIDB.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::error::{HeliosError, Result};
use crate::protocol::{self, Frame, Hello, HidbMessage};

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

async fn serve_connection(mut stream: TcpStream) -> Result<()> {
    let io = HeliosError::io;
    let mut hello = [0; Hello::LEN];
    match tokio::time::timeout(HELLO_TIMEOUT, stream.read_exact(&mut hello)).await {
        Ok(read) => read.map_err(io("cannot read the greeting"))?,
        Err(_) => return Err(HeliosError::Network("no greeting in time".to_owned())),
    };
    Hello::decode(hello)?;
    stream
        .write_all(&Hello::OURS.encode())
        .await
        .map_err(io("cannot send the greeting"))?;
    let (mut input, mut out) = (BytesMut::new(), BytesMut::new());
    loop {
        while let Some(Frame { request, message }) = protocol::decode(&mut input)? {
            match message {
                HidbMessage::Ping => protocol::encode(
                    &Frame {
                        request,
                        message: HidbMessage::Pong,
                    },
                    &mut out,
                )?,
                HidbMessage::Goodbye(_) => return Ok(()),
                HidbMessage::Pong => {
                    return Err(HeliosError::Protocol(
                        "a pong that nobody asked for".to_owned(),
                    ));
                }
            }
        }
        stream
            .write_all(&out)
            .await
            .map_err(io("cannot write to the peer"))?;
        out.clear();
        if stream
            .read_buf(&mut input)
            .await
            .map_err(io("cannot read from the peer"))?
            == 0
        {
            return Ok(());
        }
    }
}
