//! The admin console: the database `helios` on the same port, in PgBouncer's vocabulary where it has the word.

mod caches;
mod command;
mod tables;

use std::sync::Arc;

use bytes::{Buf as _, BytesMut};
use heliosdb_network::postgres::message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;

use crate::clients::{Admitted, Signal};
use crate::error::{ClientError, ErrorKind};
use crate::gateway::Gateway;
use crate::session::ClientStream;

use command::{Answer, run};

pub(crate) use tables::{cache_counts, traffic_counts};

/// True for the names of databases that lead here. The second one is what operators' scripts know.
pub(crate) fn is_console(database: &str) -> bool {
    matches!(database, "helios" | "pgbouncer")
}

/// A client of the console.
#[derive(Debug)]
pub(crate) struct Console {
    gateway: Arc<Gateway>,
    stream: ClientStream,
    admitted: Admitted,
}

/// A console command is short.
const MESSAGE_MAX: usize = 64 << 10;

impl Console {
    pub(crate) fn new(gateway: &Arc<Gateway>, stream: ClientStream, admitted: Admitted) -> Self {
        Self {
            gateway: Arc::clone(gateway),
            stream,
            admitted,
        }
    }

    /// Serves the client until it leaves or helios stops.
    pub(crate) async fn run(mut self) {
        if let Err(error) = self.serve().await {
            tracing::debug!(%error, "console client went away");
        }
    }

    async fn serve(&mut self) -> std::io::Result<()> {
        let mut input = BytesMut::new();
        let mut out = BytesMut::new();
        // After an error in the extended protocol everything up to the Sync is dropped.
        let mut skip_to_sync = false;
        loop {
            while let Some((tag, len)) = complete(&input) {
                if len > MESSAGE_MAX {
                    ClientError::protocol("a console command is not that long").put(&mut out);
                    return self.stream.write_all(&out).await;
                }
                let body = input.split_to(len).split_off(5);
                match tag {
                    b'X' => return Ok(()),
                    b'Q' if is_restart(&body) => self.restart(&mut out).await,
                    b'Q' => self.answer(&body, &mut out),
                    b'S' => {
                        skip_to_sync = false;
                        message::put_ready_for_query(&mut out, b'I');
                    }
                    _ if skip_to_sync => {}
                    _ => {
                        skip_to_sync = true;
                        ClientError::new(
                            ErrorKind::Client,
                            "0A000",
                            "the admin console speaks the simple query protocol only",
                        )
                        .hint("Use psql, or your driver's simple query mode.")
                        .put(&mut out);
                    }
                }
            }
            self.stream.write_all(&out).await?;
            out.clear();
            let stopping = self.admitted.info.has_signal(Signal::Drain);
            let read = async { self.stream.read_buf(&mut input).await };
            self.admitted.info.clear_signal(Signal::Cancel);
            match self.admitted.info.or_signalled(Signal::Drain, read).await {
                Some(read) if !stopping => {
                    if read? == 0 {
                        return Ok(());
                    }
                }
                _ => {
                    ClientError::new(ErrorKind::Config, "57P01", "helios is stopping")
                        .fatal()
                        .put(&mut out);
                    return self.stream.write_all(&out).await;
                }
            }
        }
    }

    /// Has a successor take over.
    async fn restart(&self, out: &mut BytesMut) {
        let (tell, told) = oneshot::channel();
        let _ = self.gateway.handovers.send(tell);
        match told.await {
            Ok(Ok(())) => message::put_command_complete(out, "RESTART"),
            Ok(Err(why)) => {
                ClientError::new(ErrorKind::Config, "55000", format!("not restarted: {why}"))
                    .put(out);
            }
            Err(_) => {
                ClientError::new(ErrorKind::Config, "57P01", "helios is stopping").put(out);
            }
        }
        message::put_ready_for_query(out, b'I');
    }

    fn answer(&self, body: &[u8], out: &mut BytesMut) {
        let text = String::from_utf8_lossy(body.strip_suffix(b"\0").unwrap_or(body));
        let mut empty = true;
        for statement in text
            .split(';')
            .map(str::trim)
            .filter(|statement| !statement.is_empty())
        {
            empty = false;
            match run(&self.gateway, statement) {
                Ok(Answer::Table(table)) => table.put(out),
                Ok(Answer::Done(tag)) => message::put_command_complete(out, tag),
                Err(error) => {
                    error.put(out);
                    break;
                }
            }
        }
        if empty {
            message::put_empty_query_response(out);
        }
        message::put_ready_for_query(out, b'I');
    }
}

fn is_restart(body: &[u8]) -> bool {
    let text = body.strip_suffix(b"\0").unwrap_or(body);
    let text = text.trim_ascii();
    let text = text.strip_suffix(b";").unwrap_or(text);
    text.trim_ascii_end().eq_ignore_ascii_case(b"restart")
}

/// What drivers expect to be told at login.
pub(crate) fn put_parameters(out: &mut BytesMut) {
    for (name, value) in [
        (
            "server_version",
            concat!(env!("CARGO_PKG_VERSION"), " (helios)"),
        ),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO"),
        ("TimeZone", "UTC"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
    ] {
        message::put_parameter_status(out, name, value);
    }
}

/// Tag and length of a whole message at the front, or of one that is too long.
fn complete(input: &BytesMut) -> Option<(u8, usize)> {
    let head = input.first_chunk::<5>()?;
    let len = (u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize).max(4) + 1;
    (input.remaining() >= len || len > MESSAGE_MAX).then_some((head[0], len))
}
