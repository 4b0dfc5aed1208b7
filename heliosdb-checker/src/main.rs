//! The program `heliosdb-checker`. See its `--help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    heliosdb_checker::main()
}
