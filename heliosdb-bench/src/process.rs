//! Processes that end with the value that holds them, with all their children.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::cpu::{Process, ProcessTable};
use crate::interrupt::Interrupt;

/// A running program. Dropping it tells it to end, then ends by force what is left of it and of its children.
#[derive(Debug)]
pub(crate) struct Running {
    name: &'static str,
    child: Child,
    /// What the program takes as "end now, without waiting for clients".
    stop: Signal,
    /// Its standard output and error.
    log: PathBuf,
}

impl Running {
    /// Starts a program.
    pub(crate) fn start(
        name: &'static str,
        command: &mut Command,
        log: &Path,
        stop: Signal,
    ) -> anyhow::Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        Ok(Self {
            name,
            child,
            stop,
            log: log.to_owned(),
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready` says so.
    pub(crate) fn wait_until_ready(
        &mut self,
        interrupt: &Interrupt,
        mut ready: impl FnMut() -> bool,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !ready() {
            interrupt.check()?;
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                bail!(
                    "{} did not start (exit: {ended:?}); its log:\n{}",
                    self.name,
                    self.log()
                );
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Waits until it ends by itself. If the user interrupts, or at the deadline, it is an error.
    pub(crate) fn wait(
        &mut self,
        interrupt: &Interrupt,
        deadline: Instant,
    ) -> anyhow::Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                // Ctrl-C in a terminal reaches the child as well: that it failed is then no news.
                interrupt.check()?;
                return Ok(status);
            }
            interrupt.check()?;
            if Instant::now() > deadline {
                bail!("{} hangs; its log:\n{}", self.name, self.log());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// What it wrote.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The children are looked up while their parent still is: those of a dead process belong to init.
        let family = ProcessTable::read()
            .map(|table| table.tree(self.child.id()))
            .unwrap_or_default();
        if matches!(self.child.try_wait(), Ok(None)) {
            send(self.child.id(), self.stop);
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
        }
        // A server that ends in order waits for its children first, so whoever is left will not end by itself.
        for process in family.iter().filter(|process| process.is_running()) {
            send(process.pid(), Signal::KILL);
        }
        while family.iter().any(Process::is_running) && Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
        }
        // Not yet waited for means that the process id still is ours, so this can't hit another's.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended meanwhile, which is what we want.
        let _ = kill_process(pid, signal);
    }
}

const POLL_INTERVAL: Duration = Duration::from_millis(10);
const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_program_takes_its_children_along() {
        let folder = tempfile::tempdir().expect("a folder");
        let interrupt = Interrupt::watch().expect("signals");
        // The shell ends at once when told to, and its children don't hear of it.
        let mut shell = Command::new("sh");
        shell.args(["-c", "sleep 1000 & sleep 1000 & echo ready; wait"]);
        let mut running =
            Running::start("sh", &mut shell, &folder.path().join("log"), Signal::TERM)
                .expect("starts");
        let log = folder.path().join("log");
        running
            .wait_until_ready(&interrupt, || {
                std::fs::read_to_string(&log).is_ok_and(|text| text == "ready\n")
            })
            .expect("ready");
        let family = ProcessTable::read().expect("/proc").tree(running.pid());
        assert_eq!(family.len(), 3);
        assert!(family.iter().all(Process::is_running));
        drop(running);
        assert!(!family.iter().any(Process::is_running));
    }

    #[test]
    fn a_program_that_fails_shows_its_log() {
        let folder = tempfile::tempdir().expect("a folder");
        let interrupt = Interrupt::watch().expect("signals");
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo no such luck >&2; exit 3"]);
        let mut running =
            Running::start("sh", &mut shell, &folder.path().join("log"), Signal::TERM)
                .expect("starts");
        let error = running
            .wait_until_ready(&interrupt, || false)
            .expect_err("it ended");
        assert!(error.to_string().contains("no such luck"), "{error}");
    }
}
