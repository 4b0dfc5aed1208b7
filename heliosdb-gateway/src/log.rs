//! Where the log goes: standard error, a file, or both.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::LogConfig;

/// The file, if there is one.
static LOG: OnceLock<LogFile> = OnceLock::new();

/// Changes what is logged. (The type behind it has no name that could be written.)
static LEVEL: OnceLock<Box<SetLevel>> = OnceLock::new();

type SetLevel = dyn Fn(&str) + Send + Sync;

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    /// Why a lock: lines must not be mixed, and the file is opened anew after a rotation.
    file: Mutex<File>,
}

/// Begins to log.
///
/// # Errors
/// The file can't be opened.
pub(crate) fn start(config: &LogConfig) -> io::Result<()> {
    if let Some(path) = &config.file {
        let file = Mutex::new(open(path)?);
        let path = path.clone();
        // The second one, if there ever is one, goes on with the first one's.
        let _ = LOG.set(LogFile { path, file });
    }
    let to_stderr = config.stderr;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(&config.level))
        .with_writer(Writers { to_stderr })
        .with_ansi(LOG.get().is_none() && io::stderr().is_terminal())
        .with_target(false)
        .with_filter_reloading();
    let handle = builder.reload_handle();
    if builder.try_init().is_ok() {
        let _ = LEVEL.set(Box::new(move |level| {
            // It fails where nothing is logged any more.
            let _ = handle.reload(filter(level));
        }));
    }
    Ok(())
}

/// Goes on with another level.
pub(crate) fn set_level(level: &str) {
    if let Some(set) = LEVEL.get() {
        set(level);
    }
}

fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Opens the file anew: it may have been moved away.
pub(crate) fn reopen() {
    let Some(log) = LOG.get() else { return };
    match open(&log.path) {
        Ok(file) => *log.file.lock() = file,
        Err(error) => {
            tracing::error!(%error, "cannot open {} anew: the one before is used", log.path.display());
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

struct Writers {
    to_stderr: bool,
}

/// Collects a line, so that it is written at once.
struct Line {
    to_stderr: bool,
    text: Vec<u8>,
}

impl<'w> MakeWriter<'w> for Writers {
    type Writer = Line;

    fn make_writer(&'w self) -> Line {
        Line {
            to_stderr: self.to_stderr,
            text: Vec::new(),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Nobody is left to be told where the log can't be written.
        if self.to_stderr {
            let _ = io::stderr().write_all(&self.text);
        }
        if let Some(log) = LOG.get() {
            let _ = log.file.lock().write_all(&self.text);
        }
    }
}
