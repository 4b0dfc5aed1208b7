//! Ctrl-C as a question to be asked, so that everything that was started is ended by its owner's `Drop`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use tokio::signal::unix::{SignalKind, signal};

/// Whether the user asked to stop, by SIGINT, SIGTERM or SIGHUP.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes the signals over from the system, whose own answer would be to end us and leave the children behind.
    pub(crate) fn watch() -> anyhow::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        // Before the thread starts, so that no signal falls between.
        let entered = runtime.enter();
        let mut hangup = signal(SignalKind::hangup())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        drop(entered);
        let flag = Arc::clone(&asked);
        let wait = async move {
            loop {
                tokio::select! {
                    _ = hangup.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                flag.store(true, Ordering::Relaxed);
            }
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || runtime.block_on(wait))
            .context("cannot start a thread")?;
        Ok(Self(asked))
    }

    /// An error if the user asked to stop.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.is_raised(), "interrupted");
        Ok(())
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
