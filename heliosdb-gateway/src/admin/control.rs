//! Commands that change what the gateway does: PAUSE and its like.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::clients::{ClientInfo, Signal};
use crate::error::{ClientError, ErrorKind};
use crate::gateway::{Course, Gateway};
use crate::reload;
use crate::upstream::control::{ControlError, Hold};

use super::command::{Answer, invalid, refused};
use super::{is_console, sockets};

/// A client that was told to go has so long before KILL answers all the same.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

impl From<ControlError> for ClientError {
    fn from(error: ControlError) -> Self {
        refused(error.to_string())
    }
}

/// Runs one of these commands. `None` if it is none of them.
pub(super) fn run(
    gateway: &Arc<Gateway>,
    command: &str,
    argument: Option<&str>,
) -> Option<Result<Answer, ClientError>> {
    Some(match command {
        "DISABLE" | "ENABLE" => set_disabled(gateway, command, argument),
        "KILL" => kill(gateway, argument),
        "KILL_CLIENT" => kill_client(gateway, argument.unwrap_or_default()),
        "PAUSE" => pause(gateway, argument),
        "RECONNECT" => reconnect(gateway, argument),
        "RELOAD" if argument.is_none() => reload(gateway),
        "RESTART" if argument.is_none() => Ok(restart(gateway)),
        "RESUME" => resume(gateway, argument),
        "SHUTDOWN" => shutdown(gateway, argument),
        "SUSPEND" if argument.is_none() => suspend(gateway),
        "WAIT_CLOSE" => wait_close(gateway, argument),
        _ => return None,
    })
}

fn pause(gateway: &Arc<Gateway>, database: Option<&str>) -> Result<Answer, ClientError> {
    not_console("pause", database)?;
    gateway.upstream.pause(database)?;
    tracing::info!(database, "paused");
    let (gateway, database) = (Arc::clone(gateway), database.map(str::to_owned));
    Ok(Answer::wait("PAUSE", async move {
        gateway.upstream.let_go(database).await;
        Ok(())
    }))
}

fn suspend(gateway: &Arc<Gateway>) -> Result<Answer, ClientError> {
    gateway.upstream.suspend()?;
    tracing::info!("suspended");
    Ok(Answer::Suspended)
}

fn resume(gateway: &Arc<Gateway>, database: Option<&str>) -> Result<Answer, ClientError> {
    if *gateway.course.borrow() != Course::Serve {
        return Err(refused("pooler is shutting down"));
    }
    gateway.upstream.resume(database)?;
    tracing::info!(database, "resumed");
    Ok(Answer::done("RESUME"))
}

fn set_disabled(
    gateway: &Arc<Gateway>,
    command: &str,
    database: Option<&str>,
) -> Result<Answer, ClientError> {
    let database = database.ok_or_else(|| refused("a database is required"))?;
    let verb = command.to_ascii_lowercase();
    not_console(&verb, Some(database))?;
    gateway
        .upstream
        .set_disabled(database, command == "DISABLE")?;
    tracing::info!(database, "{verb}d");
    Ok(Answer::done(command))
}

fn reconnect(gateway: &Arc<Gateway>, database: Option<&str>) -> Result<Answer, ClientError> {
    not_console("reconnect", database)?;
    gateway.upstream.reconnect(database)?;
    gateway.close_fast();
    tracing::info!(database, "server connections are replaced");
    Ok(Answer::done("RECONNECT"))
}

fn wait_close(gateway: &Arc<Gateway>, database: Option<&str>) -> Result<Answer, ClientError> {
    not_console("wait in", database)?;
    if let Some(name) = database {
        gateway.upstream.known(name)?;
    }
    let (gateway, database) = (Arc::clone(gateway), database.map(str::to_owned));
    Ok(Answer::wait("WAIT_CLOSE", async move {
        gateway.upstream.outdated_closed(database).await;
        Ok(())
    }))
}

fn kill(gateway: &Arc<Gateway>, database: Option<&str>) -> Result<Answer, ClientError> {
    not_console("kill", database)?;
    if gateway.upstream.hold() != Hold::None {
        return Err(ControlError::AlreadyHeld.into());
    }
    let names = match database {
        Some(name) => vec![name.to_owned()],
        None => gateway.upstream.names_in_use(),
    };
    for name in &names {
        gateway.upstream.pause(Some(name))?;
    }
    tracing::info!(?names, "killed");
    let database = database.map(str::to_owned);
    Ok(end(gateway, "KILL", move |client| {
        !is_console(&client.database)
            && database
                .as_ref()
                .is_none_or(|name| client.database == *name)
    }))
}

fn kill_client(gateway: &Arc<Gateway>, name: &str) -> Result<Answer, ClientError> {
    if name.is_empty()
        || !name
            .strip_prefix("0x")
            .unwrap_or(name)
            .chars()
            .all(|c| c.is_ascii_hexdigit())
    {
        return Err(refused("invalid client pointer supplied"));
    }
    let client = sockets::find(gateway, name).ok_or_else(|| refused("client not found"))?;
    tracing::info!(client = client.id, "ended by an administrator");
    let id = client.id;
    Ok(end(gateway, "KILL_CLIENT", move |client| client.id == id))
}

/// Ends the clients that `is_meant`, and answers when they are gone.
fn end(
    gateway: &Arc<Gateway>,
    tag: &'static str,
    is_meant: impl Fn(&ClientInfo) -> bool + Send + 'static,
) -> Answer {
    for client in gateway.clients.list() {
        if is_meant(&client) {
            client.signal(Signal::Kill);
        }
    }
    let gateway = Arc::clone(gateway);
    Answer::wait(tag, async move {
        let departed = gateway.clients.departed(is_meant);
        let _ = tokio::time::timeout(KILL_PATIENCE, departed).await;
        Ok(())
    })
}

fn reload(gateway: &Arc<Gateway>) -> Result<Answer, ClientError> {
    reload::reload(gateway).map_err(|error| {
        ClientError::new(
            ErrorKind::Config,
            "F0000",
            "RELOAD failed, see logs for additional details",
        )
        .hint(error.to_string())
    })?;
    Ok(Answer::done("RELOAD"))
}

/// Has a successor take over.
fn restart(gateway: &Arc<Gateway>) -> Answer {
    let (tell, told) = oneshot::channel();
    let _ = gateway.handovers.send(tell);
    Answer::wait("RESTART", async move {
        match told.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => Err(ClientError::new(
                ErrorKind::Config,
                "55000",
                format!("not restarted: {why}"),
            )),
            Err(_) => Err(ClientError::new(
                ErrorKind::Config,
                "57P01",
                "helios is stopping",
            )),
        }
    })
}

fn shutdown(gateway: &Arc<Gateway>, how: Option<&str>) -> Result<Answer, ClientError> {
    let course = match how.map(str::to_ascii_uppercase).as_deref() {
        None => Course::Quit,
        Some("WAIT_FOR_CLIENTS") => Course::AwaitClients,
        Some("WAIT_FOR_SERVERS") => Course::AwaitServers,
        Some(other) => return Err(invalid(&format!("SHUTDOWN {other}"))),
    };
    tracing::info!(?course, "told to stop");
    gateway.steer_to(course);
    Ok(Answer::done("SHUTDOWN"))
}

fn not_console(verb: &str, database: Option<&str>) -> Result<(), ClientError> {
    match database {
        Some(name) if is_console(name) => Err(refused(format!("cannot {verb} admin db: {name}"))),
        _ => Ok(()),
    }
}
