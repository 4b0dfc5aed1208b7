//! Build, run and test Helios: `cargo xtask --help`.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a tool for a terminal")]

mod consistency;
mod driver_suites;
mod fuzz;
mod libclang;
mod packages;
mod pgbouncer_suite;
mod place;
mod steps;
mod tests_run;

use std::process::{Command, ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use packages::Need;
use steps::{FEATURES, cargo, run, workspace_root};

/// Build, run and test Helios.
///
/// What a command needs from the system and lacks (libclang, a PostgreSQL server, ...) it installs first, by apt-get, dnf,
/// pacman, zypper, apk or brew. It says what and why before it does. Where it may not, it prints the command to type.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask run                                          helios on its embedded PostgreSQL
  cargo xtask run --upstream postgres://app@db:5432/shop   helios in front of a server
  cargo xtask ci                                           before a change is handed in
  cargo xtask check-consistency --short                    a minute of the history checker
  cargo xtask fuzz --seconds 600 hidb_frames               ten minutes of one fuzz target
  cargo xtask pgbouncer-suite --source ../pgbouncer        PgBouncer's own tests
  cargo xtask driver-suites --source ../drivers            the tests of four drivers
  cargo xtask bench gateway --clients 1,16                 helios beside PgBouncer and pgpool-II";

#[derive(Debug, Subcommand)]
enum Task {
    /// Build helios in release mode and start `helios serve`
    ///
    /// On the embedded PostgreSQL unless told otherwise. Needs libclang, for the SQL parser. The first build takes
    /// several minutes. Signals reach helios: Ctrl-C stops it.
    Run {
        /// Arguments for `helios serve`, such as `--upstream postgres://user@host/database`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run every test
    ///
    /// Unit tests, integration tests against servers that they start themselves (by cargo-nextest if it is installed),
    /// examples in the documentation, a model check of the version slots, and 100 repetitions of the tests that find a
    /// race or a leak only now and then.
    Test,
    /// What a change must pass: formatting, lints, documentation, all tests
    ///
    /// Licences, advisories and spelling too, if cargo-deny and typos are installed.
    Ci,
    /// Check what many clients see while server processes die and connections are cut
    ///
    /// A million reads in every mode that helios has, checked against what was acknowledged before: linearizable, or as old as
    /// the mode allows. See docs/consistency-checker.md.
    CheckConsistency(consistency::Options),
    /// Run the tests of asyncpg, node-postgres, rust-postgres and sqlx through helios
    ///
    /// Each suite is run on a new PostgreSQL and once more through helios in front of one. What came of it is written to
    /// docs/compatibility-drivers.md; why a test that passes directly does not pass through helios is listed in
    /// docs/compatibility-drivers.toml. One that is not listed makes the command fail, and one that is listed and passes.
    DriverSuites(driver_suites::Options),
    /// Fuzz what strangers send to helios: frames of HIDB, logins, PostgreSQL's messages
    ///
    /// Needs a nightly compiler and cargo-fuzz, and says how to get them. What was found before is checked by `test`
    /// without either. An input that makes a target fail is left in fuzz/artifacts. See fuzz/README.md.
    Fuzz {
        /// Time for each target
        #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
        seconds: u32,
        /// The target; all of them if none is named
        target: Option<String>,
    },
    /// Run PgBouncer's own tests against helios
    ///
    /// With a wrapper that takes PgBouncer's command line, as a user that is not root. What becomes of each test is written
    /// to docs/compatibility.md; why one does not pass is listed in docs/compatibility.toml. A test that fails unlisted, and one
    /// that is listed and passes, makes the command fail.
    PgbouncerSuite(pgbouncer_suite::Options),
    /// Measure helios beside its peers
    ///
    /// A peer that is not installed and can't be installed is left out.
    Bench {
        /// Arguments for the bench, such as `gateway --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Task::Bench { args } => bench(&args),
        Task::CheckConsistency(options) => {
            packages::ensure(CHECK_NEEDS).and_then(|()| consistency::check(&options))
        }
        Task::Ci => ci(),
        Task::DriverSuites(options) => driver_suites::all(&options),
        Task::Fuzz { seconds, target } => fuzz::all(seconds, target.as_deref()),
        Task::PgbouncerSuite(options) => pgbouncer_suite::all(&options),
        Task::Run { args } => serve(&args),
        Task::Test => packages::ensure(TEST_NEEDS).and_then(|()| tests_run::all()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

const TEST_NEEDS: &[Need] = &[
    Need::Libclang,
    Need::Postgres,
    Need::Pgbench,
    Need::Redis,
    Need::PythonVenv,
];
const CHECK_NEEDS: &[Need] = &[Need::Libclang, Need::Postgres];
const BENCH_NEEDS: &[Need] = &[Need::Libclang, Need::Postgres, Need::Pgbench];
const PEERS: &[Need] = &[Need::Pgbouncer, Need::Pgpool];

/// Becomes `cargo run`, which becomes helios, so that signals reach it.
fn serve(args: &[String]) -> anyhow::Result<()> {
    packages::ensure(&[Need::Libclang])?;
    println!("xtask: building helios in release mode (the first time takes several minutes)");
    let mut command = cargo(&[
        "run",
        "--release",
        "-p",
        "heliosdb-gateway",
        "--bin",
        "helios",
    ]);
    replace_process(command.args(["--", "serve"]).args(args))
}

#[cfg(unix)]
fn replace_process(command: &mut Command) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt as _;
    Err(command.exec()).context("cannot start cargo")
}

#[cfg(not(unix))]
fn replace_process(command: &mut Command) -> anyhow::Result<()> {
    run(command)
}

fn ci() -> anyhow::Result<()> {
    packages::ensure(TEST_NEEDS)?;
    let mut steps = steps::Steps::default();
    steps.run("formatting", || {
        run(&mut cargo(&["fmt", "--all", "--check"]))
    })?;
    steps.run("lints", || {
        let mut clippy = cargo(&["clippy", "--workspace", "--all-targets"]);
        run(clippy.args(FEATURES).args(["--", "-D", "warnings"]))
    })?;
    steps.run("documentation", || {
        let mut doc = cargo(&["doc", "--workspace", "--no-deps"]);
        run(doc.args(FEATURES).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    if steps::has_program("cargo-deny") {
        steps.run("licences, advisories, sources", || {
            run(Command::new("cargo")
                .args(["deny", "check"])
                .current_dir(workspace_root()))
        })?;
    }
    if steps::has_program("typos") {
        steps.run("spelling", || {
            run(Command::new("typos").current_dir(workspace_root()))
        })?;
    }
    // Last, so that the test runner's own summary is near the end.
    steps.run("tests", tests_run::all)?;
    steps.summary();
    Ok(())
}

fn bench(args: &[String]) -> anyhow::Result<()> {
    packages::ensure(BENCH_NEEDS)?;
    packages::offer(PEERS);
    let mut command = cargo(&["run", "--release", "-p", "heliosdb-bench", "--"]);
    run(command.args(args).current_dir(workspace_root()))
}
