//! Runs a test on a runtime of its own and fails it if it does not end in time.
//!
//! The clock is another thread's: a future that never ends, a thread that spins and a lock taken twice are all noticed.

#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test file uses some of it"
)]

use std::panic::resume_unwind;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// Far more than any of these tests takes, on a machine that is busy with others.
const LIMIT: Duration = Duration::from_secs(60);

/// On several threads, in real time.
pub(crate) fn on_threads(test: impl Future<Output = ()> + Send + 'static) {
    let runtime = Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build();
    watch(runtime.expect("a runtime"), test);
}

/// On one thread, in time that passes only while all tasks wait for it.
pub(crate) fn in_paused_time(test: impl Future<Output = ()> + Send + 'static) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build();
    watch(runtime.expect("a runtime"), test);
}

fn watch(runtime: Runtime, test: impl Future<Output = ()> + Send + 'static) {
    let (done, ended) = channel();
    let thread = thread::spawn(move || {
        runtime.block_on(test);
        // Told before the runtime goes: that waits for nobody either.
        let _ = done.send(());
        runtime.shutdown_background();
    });
    match ended.recv_timeout(LIMIT) {
        Err(RecvTimeoutError::Timeout) => panic!("the test hangs"),
        // The sender is gone without a word if the test panicked.
        Ok(()) | Err(RecvTimeoutError::Disconnected) => {
            if let Err(panic) = thread.join() {
                resume_unwind(panic);
            }
        }
    }
}
