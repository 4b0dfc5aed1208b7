//! LISTEN without a server connection of one's own: each pool has one connection that listens for all of its clients.
//!
//! * `statement.rs` reads LISTEN and UNLISTEN as the server would;
//! * `interest.rs` is what one client listens to, with what its transaction would change of it;
//! * `inbox.rs` holds what a client has not been told yet;
//! * `listener.rs` is the task that owns the connection. `session/listening.rs` has the session's part.
//!
//! A listener belongs to a pool, not to a database, because it needs a login: of most users only their own pool can
//! connect, and the connection counts against the limits of the user who listens. It is made with the first LISTEN, is no
//! part of the pool's size, and goes when nobody has listened for [`LINGER`].
//!
//! **No notification is lost** that is committed after a client was told that it listens. The listener is sent the client's
//! wish; its LISTEN, or an empty query where the channel is listened to already, goes to the server after that; the client
//! is entered as a listener when the answer to it is read, and told only then. The server sends a notification to the
//! listening process's client in the order of commits, and never ahead of its answer to a LISTEN that was committed before
//! the notification. So what is committed after the client was told comes behind that answer, when the client is entered.
//! All this is done by one task, in the order in which the server's bytes arrive: there is no state between *asked for* and
//! *entered* in which a notification could pass the client by.
//!
//! **Nothing is heard from before**: an answer to a query that was sent after a commit comes behind the notifications of
//! that commit, since the server tells a process of them before it tells the committing client, and a process passes them
//! on before it is ready again. Such a query is a *fence*. A transaction of a client that listens ends with one, so that its
//! own notifications and all earlier ones are heard ahead of its ReadyForQuery; and with a LISTEN to be committed, each
//! request goes behind a fence, since what came before its COMMIT is not for it.
//!
//! When the connection is lost, nobody can know what was missed, so the sessions that listened end once they are between
//! transactions, with an error that says so: a client of PostgreSQL learns it in the same way.

mod inbox;
mod interest;
mod listener;
mod statement;

use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use heliosdb_network::postgres::PgTarget;
use tokio::sync::{mpsc, oneshot};

use crate::error::ClientError;
use crate::upstream::connection::Learnt;
use crate::upstream::servers::ServerRegistry;

use listener::Command;

pub(crate) use inbox::Inbox;
pub(crate) use interest::{Interest, Step};
pub(crate) use statement::{Asked, may_ask, read};

/// How long a connection to which nobody listens is kept.
pub(crate) const LINGER: Duration = Duration::from_secs(10);

/// The way to a pool's listener. The task begins with its first use and ends with this.
#[derive(Debug)]
pub(crate) struct Listener {
    target: PgTarget,
    learnt: Arc<Learnt>,
    patience: Duration,
    servers: Arc<ServerRegistry>,
    /// Unbounded, but a session waits for the answer to what it asks before it asks again, and takes back only what it has
    /// asked for.
    commands: OnceLock<mpsc::UnboundedSender<Command>>,
}

/// Why nobody listens for a client.
#[derive(Debug, Clone)]
pub(crate) enum ListenError {
    /// The server refuses to listen to this channel: its own answer to the client would say the same.
    Refused,
    /// The connection was lost before it was known whether it listens.
    Lost,
    /// There is none.
    Unreachable(ClientError),
}

impl Listener {
    /// `patience` is how long a client waits for a connection.
    pub(crate) fn new(
        mut target: PgTarget,
        learnt: Arc<Learnt>,
        patience: Duration,
        servers: Arc<ServerRegistry>,
    ) -> Self {
        target
            .params
            .retain(|(name, _)| !matches!(&**name, "application_name" | "client_encoding"));
        for (name, value) in [
            ("application_name", "helios listener"),
            ("client_encoding", "UTF8"),
        ] {
            target.params.push((name.to_owned(), value.to_owned()));
        }
        Self {
            target,
            learnt,
            patience,
            servers,
            commands: OnceLock::new(),
        }
    }

    fn send(&self, command: Command) {
        let commands = self.commands.get_or_init(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(listener::run(
                self.target.clone(),
                Arc::clone(&self.learnt),
                self.patience,
                Arc::clone(&self.servers),
                receiver,
            ));
            sender
        });
        // Where the task has died, the answer's sender is dropped with the command.
        let _ = commands.send(command);
    }

    /// Has a client hear what is sent to these channels from now on. It hears nothing of them once
    /// [`leave`](Self::leave) took it back, which it has to where this is not waited for.
    pub(crate) async fn subscribe(
        &self,
        inbox: &Arc<Inbox>,
        channels: &[Arc<str>],
    ) -> Result<(), ListenError> {
        let answers: Vec<_> = channels
            .iter()
            .map(|channel| {
                let (done, answer) = oneshot::channel();
                self.send(Command::Subscribe {
                    channel: Arc::clone(channel),
                    inbox: Arc::clone(inbox),
                    done,
                });
                answer
            })
            .collect();
        for answer in answers {
            answer.await.unwrap_or(Err(ListenError::Lost))?;
        }
        Ok(())
    }

    /// The client hears these no more.
    pub(crate) fn leave(&self, inbox: &Arc<Inbox>, channels: Vec<Arc<str>>) {
        if !channels.is_empty() {
            self.send(Command::Leave {
                channels,
                id: inbox.id(),
            });
        }
    }

    /// Closes the connection if nobody listens.
    pub(crate) fn rest(&self) {
        if let Some(commands) = self.commands.get() {
            let _ = commands.send(Command::Rest);
        }
    }

    /// Waits until every notification is in its inboxes that was committed before this was called.
    pub(crate) async fn fence(&self) -> Result<(), ListenError> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Fence { done });
        answer.await.unwrap_or(Err(ListenError::Lost))
    }
}
