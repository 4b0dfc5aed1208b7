//! The admin console: the databases `helios` and `pgbouncer` on the same port, in PgBouncer's vocabulary and columns where
//! it has the word. helios's own columns stand behind PgBouncer's.

mod caches;
mod command;
mod control;
mod listings;
mod settings;
mod sockets;
mod table;
mod tables;
mod traffic;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use heliosdb_network::postgres::message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::access::Role;
use crate::clients::{Admitted, Signal};
use crate::error::{ClientError, ErrorKind};
use crate::gateway::Gateway;
use crate::session::ClientStream;
use crate::upstream::control::Hold;

use command::{Answer, Wait, run};

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
    /// It said SUSPEND.
    has_suspended: bool,
    role: Role,
}

/// A console command is short.
const MESSAGE_MAX: usize = 64 << 10;
/// How long a command waits for what came before it to be known.
const MOMENT: Duration = Duration::from_millis(1);

impl Console {
    pub(crate) fn new(
        gateway: &Arc<Gateway>,
        stream: ClientStream,
        admitted: Admitted,
        role: Role,
    ) -> Self {
        Self {
            gateway: Arc::clone(gateway),
            stream,
            admitted,
            has_suspended: false,
            role,
        }
    }

    /// Serves the client until it leaves or helios stops.
    pub(crate) async fn run(mut self) {
        if let Err(error) = self.serve().await {
            tracing::debug!(%error, "console client went away");
        }
        let log = &self.gateway.config().log;
        self.admitted.info.log_departure(log);
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
                    return self.send(&out).await;
                }
                let body = input.split_to(len).split_off(5);
                match tag {
                    b'X' => return Ok(()),
                    b'Q' => {
                        if self.answer(&body, &mut input, &mut out).await? == Next::Leave {
                            return self.send(&out).await;
                        }
                    }
                    b'S' => {
                        skip_to_sync = false;
                        message::put_ready_for_query(&mut out, b'I');
                    }
                    _ if skip_to_sync => {}
                    _ => {
                        skip_to_sync = true;
                        ClientError::new(
                            ErrorKind::Client,
                            "08P01",
                            "extended query protocol not supported by admin console",
                        )
                        .hint("Use psql, or your driver's simple query mode.")
                        .put(&mut out);
                    }
                }
            }
            self.send(&out).await?;
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
                    stopped().fatal().put(&mut out);
                    return self.send(&out).await;
                }
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Whether this client may do more than look.
    fn may_change(&self) -> bool {
        self.role == Role::Admin
    }

    /// Answers the commands of one message. `input` is what came behind it.
    async fn answer(
        &mut self,
        body: &[u8],
        input: &mut BytesMut,
        out: &mut BytesMut,
    ) -> std::io::Result<Next> {
        // What came before this is known when it is answered: who has left is not listed any more. That is certain with one
        // thread; another has the moment to find it out.
        tokio::time::sleep(MOMENT).await;
        let text = String::from_utf8_lossy(body.strip_suffix(b"\0").unwrap_or(body));
        let commands = command::split(&text);
        if commands.is_empty() {
            message::put_empty_query_response(out);
        }
        for statement in commands {
            let done = match run(&self.gateway, statement, self.may_change()) {
                Ok(Answer::Table(table)) => {
                    table.put(out);
                    Ok(())
                }
                Ok(Answer::Done(tag)) => {
                    message::put_command_complete(out, &tag);
                    Ok(())
                }
                Ok(Answer::DoneWith(tag, notice)) => {
                    notice.put_notice(out);
                    message::put_command_complete(out, &tag);
                    Ok(())
                }
                Ok(Answer::Ignored(tag)) => {
                    let notice = ClientError::new(ErrorKind::Client, "00000", "SET ignored");
                    notice.put_warning(out);
                    message::put_command_complete(out, tag);
                    Ok(())
                }
                Ok(Answer::Suspended) => {
                    self.has_suspended = true;
                    message::put_command_complete(out, "SUSPEND");
                    Ok(())
                }
                Ok(Answer::Wait(tag, wait)) => {
                    // What is known already does not wait.
                    self.send(out).await?;
                    out.clear();
                    match self.wait(wait, input).await {
                        Waited::Done(Ok(())) => {
                            message::put_command_complete(out, tag);
                            Ok(())
                        }
                        Waited::Done(Err(error)) => Err(error),
                        Waited::Gone => return Ok(Next::Leave),
                        Waited::Stopped => {
                            stopped().fatal().put(out);
                            return Ok(Next::Leave);
                        }
                    }
                }
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                error.put(out);
                break;
            }
        }
        message::put_ready_for_query(out, b'I');
        Ok(Next::GoOn)
    }

    /// Waits for what a command waits for, unless the client cancels it or leaves. What was begun stays begun.
    async fn wait(&mut self, wait: Wait, input: &mut BytesMut) -> Waited {
        let info = Arc::clone(&self.admitted.info);
        let stream = &mut self.stream;
        // More than that is not read ahead: the client may go on sending when there is an answer.
        let reading = async {
            while input.len() <= MESSAGE_MAX {
                match stream.read_buf(input).await {
                    Ok(0) | Err(_) => return Waited::Gone,
                    Ok(_) => {}
                }
            }
            std::future::pending().await
        };
        let either = async {
            tokio::select! {
                biased;
                done = wait => Waited::Done(done),
                gone = reading => gone,
            }
        };
        let waited = info
            .or_any_signal(&[Signal::Cancel, Signal::Drain], either)
            .await;
        match waited {
            Some(waited) => waited,
            None if info.has_signal(Signal::Drain) || info.has_signal(Signal::Kill) => {
                Waited::Stopped
            }
            None => {
                info.clear_signal(Signal::Cancel);
                Waited::Done(Err(ClientError::new(
                    ErrorKind::Client,
                    "57014",
                    "canceling statement due to user request",
                )
                .hint(
                    "What the command has begun stays as it is: RESUME undoes a PAUSE.",
                )))
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Nobody else knows that there is something to resume.
        if self.has_suspended && self.gateway.upstream.hold() == Hold::Suspended {
            tracing::info!("the administrator who suspended has left: resumed");
            let _ = self.gateway.upstream.resume(None);
        }
    }
}

/// What becomes of a client of the console.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    GoOn,
    Leave,
}

enum Waited {
    Done(Result<(), ClientError>),
    /// The client has left.
    Gone,
    /// helios stops.
    Stopped,
}

fn stopped() -> ClientError {
    ClientError::new(ErrorKind::Config, "57P01", "helios is stopping")
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
