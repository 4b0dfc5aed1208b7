//! Children that end with the value that holds them.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// A port of the loopback interface that nobody listens on at the moment, and that this process was not given before: whoever
/// asks for two gets two.
///
/// # Errors
/// If the system has none to give.
pub fn free_port() -> anyhow::Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    // Held until one is found, or the system might offer the same again and again.
    let mut known = Vec::new();
    loop {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free port")?;
        let port = listener.local_addr()?.port();
        if given.insert(port) {
            return Ok(port);
        }
        known.push(listener);
    }
}

/// The user and group that servers run as which refuse to run as root: `None` if we are not root.
pub(crate) fn server_identity() -> anyhow::Result<Option<(u32, u32)>> {
    if effective_user()? != 0 {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    for name in ["postgres", "nobody"] {
        let entry = passwd
            .lines()
            .find(|line| line.split(':').next() == Some(name));
        if let Some(entry) = entry {
            let mut fields = entry.split(':').skip(2);
            let (Some(Ok(user)), Some(Ok(group))) =
                (fields.next().map(str::parse), fields.next().map(str::parse))
            else {
                continue;
            };
            return Ok(Some((user, group)));
        }
    }
    bail!("running as root, and there is neither a user `postgres` nor `nobody` to run servers as")
}

/// The effective user, as the kernel tells it.
fn effective_user() -> anyhow::Result<u32> {
    let status =
        std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let ids = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .context("no Uid line")?;
    ids.split_whitespace()
        .nth(1)
        .context("no effective user id")?
        .parse()
        .context("not a number")
}

/// Makes a folder the server's own, and a command run as the server's user.
pub(crate) fn hand_over(folder: &Path, identity: Option<(u32, u32)>) -> anyhow::Result<()> {
    if let Some((user, group)) = identity {
        std::os::unix::fs::chown(folder, Some(user), Some(group))
            .with_context(|| format!("cannot give {} to the server's user", folder.display()))?;
    }
    Ok(())
}

pub(crate) fn run_as(command: &mut Command, identity: Option<(u32, u32)>) {
    if let Some((user, group)) = identity {
        command.uid(user).gid(group);
    }
}

/// Waits until `ready` is true, for a server that must not die meanwhile.
pub(crate) fn wait_until_ready(
    child: &mut Child,
    what: &str,
    log: &Path,
    mut ready: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if ready() {
            return Ok(());
        }
        let ended = child.try_wait()?;
        if ended.is_some() || Instant::now() > deadline {
            let log = std::fs::read_to_string(log).unwrap_or_default();
            bail!("{what} did not start (exit: {ended:?}); its log:\n{log}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits for a child that was told to end, then ends it by force.
pub(crate) fn wait_or_kill(child: &mut Child) {
    let deadline = Instant::now() + STOP_TIMEOUT;
    while Instant::now() < deadline {
        if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Sends a signal by name.
pub(crate) fn signal(pid: u32, name: &str) -> anyhow::Result<()> {
    let status = Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .status()?;
    anyhow::ensure!(status.success(), "kill -{name} {pid} failed");
    Ok(())
}

const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let ports: BTreeSet<u16> = (0..2000)
            .map(|_| free_port().expect("there are thousands"))
            .collect();
        assert_eq!(ports.len(), 2000);
    }
}
