//! The program `helios`. See `helios --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    heliosdb_gateway::run(std::env::args_os())
}
