//! The program `helios`. See `helios --help`.

use std::process::ExitCode;

// Answers are allocated on one thread and freed on another, in all sizes: the system's allocator takes twice as long
// and keeps more of what is freed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    heliosdb_gateway::run(std::env::args_os())
}
