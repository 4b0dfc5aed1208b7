//! The client's end of a session: a socket, or a pipe within the process where the client speaks another protocol.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use heliosdb_network::tls::ClientTlsStream;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

#[derive(Debug)]
pub(crate) enum ClientStream {
    Tcp(TcpStream),
    /// What is written has to be flushed.
    Tls(Box<ClientTlsStream<TcpStream>>),
    Unix(UnixStream),
    Pipe(DuplexStream),
}

impl ClientStream {
    /// True for a client that speaks another protocol, and whose answers say where they came from.
    pub(super) fn is_pipe(&self) -> bool {
        matches!(self, Self::Pipe(_))
    }

    /// The version of TLS and the suite, as PgBouncer names them in its log; "no" without.
    pub(super) fn tls(&self) -> String {
        let Self::Tls(stream) = self else {
            return "no".to_owned();
        };
        let (_, connection) = stream.get_ref();
        let version = connection.protocol_version();
        let version = version.map_or_else(String::new, |version| format!("{version:?}"));
        let suite = connection.negotiated_cipher_suite();
        let suite = suite.map_or_else(String::new, |suite| format!("{:?}", suite.suite()));
        format!(
            "{}/{}",
            version.replace('_', "."),
            suite.replace("TLS13_", "TLS_")
        )
    }

    /// Takes the socket out, to encrypt it; `None` for anything but TCP. What stays swallows what is written to it.
    pub(super) fn take_tcp(&mut self) -> Option<TcpStream> {
        if !matches!(self, Self::Tcp(_)) {
            return None;
        }
        let (nowhere, _) = tokio::io::duplex(1);
        match std::mem::replace(self, Self::Pipe(nowhere)) {
            Self::Tcp(stream) => Some(stream),
            _ => None,
        }
    }

    /// True where something that was written waits for a flush. Never without TLS.
    pub(super) fn wants_flush(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.get_ref().1.wants_write())
    }

    /// Writes what can be written at once.
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Tls(stream) => {
                // What does not go out now goes when the session looks next.
                let mut nobody = Context::from_waker(Waker::noop());
                let written = Pin::new(&mut **stream).poll_write(&mut nobody, bytes);
                let _ = Pin::new(&mut **stream).poll_flush(&mut nobody);
                match written {
                    Poll::Ready(written) => written,
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            }
            Self::Unix(stream) => stream.try_write(bytes),
            Self::Pipe(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => match Pin::new(&mut **stream).poll_read(cx, buf) {
                // Who goes without a goodbye of TLS has gone, as without TLS.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    Poll::Ready(Ok(()))
                }
                read => read,
            },
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Pipe(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Pipe(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Pipe(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Pipe(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
