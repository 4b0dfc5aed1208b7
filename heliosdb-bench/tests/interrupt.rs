//! Whatever a bench has started is gone after it was interrupted: processes and files.

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// The processes that were told of a folder or work in it, by their command lines.
fn processes_in(folder: &Path) -> Vec<String> {
    let name = folder.to_str().expect("UTF-8");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let line = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let works_in = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        // A folder that is gone still is the process's, with a remark after its name.
        if line.contains(name) || works_in.to_string_lossy().contains(name) {
            found.push(line.replace('\0', " "));
        }
    }
    found
}

/// A bench that is stopped if the test fails.
struct Bench(Child);

impl Bench {
    /// To the bench alone: a terminal would send it to its children, too.
    fn interrupt(&self) {
        let pid = i32::try_from(self.0.id())
            .ok()
            .and_then(Pid::from_raw)
            .expect("a pid");
        kill_process(pid, Signal::INT).expect("sent");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.interrupt();
            let _ = self.0.wait();
        }
    }
}

#[test]
fn nothing_is_left_after_sigint() {
    let folder = tempfile::tempdir().expect("a folder");
    // PostgreSQL runs as another user if this test runs as root.
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("permitted");
    let mut bench = Bench(
        Command::new(env!("CARGO_BIN_EXE_heliosdb-bench"))
            .args(["gateway", "--only", "direct,floor", "--seconds", "600"])
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts"),
    );
    let stderr = bench.0.stderr.take().expect("piped");
    let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
    // After the last of the servers comes the first load.
    assert!(lines.any(|line| line == "starting floor"));
    let has = |word: &str| {
        processes_in(folder.path())
            .iter()
            .any(|line| line.contains(word))
    };
    while !has("--protocol") {
        assert!(
            matches!(bench.0.try_wait(), Ok(None)),
            "ended by itself: {:?}",
            lines.next()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(
        has("postgres -D") && has("floor --listen"),
        "{:?}",
        processes_in(folder.path())
    );
    bench.interrupt();
    let status = bench.0.wait().expect("ends");
    assert_eq!(status.code(), Some(1));
    assert_eq!(lines.last().as_deref(), Some("heliosdb-bench: interrupted"));
    assert_eq!(processes_in(folder.path()), Vec::<String>::new());
    let files: Vec<_> = std::fs::read_dir(folder.path())
        .expect("readable")
        .flatten()
        .collect();
    assert!(files.is_empty(), "{files:?}");
}
