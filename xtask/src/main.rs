//! Build, run and test Helios: `cargo xtask --help`.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a tool for a terminal")]

mod packages;
mod steps;
mod tests_run;

use std::process::{Command, ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use packages::Need;
use steps::{cargo, run, workspace_root};

/// Build, run and test Helios. Each command first installs, by the system's package manager, what it needs and lacks,
/// and says so before it does.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build helios in release mode and start `helios serve`, on the embedded PostgreSQL unless told otherwise
    Run {
        /// Arguments for `helios serve`, e.g. `-- --upstream postgres://user@host/database`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Run every test: unit, integration against real servers, documentation, model checks, repetitions
    Test,
    /// What a change must pass: formatting, lints, documentation, tests
    Ci,
    /// Measure helios beside its peers, e.g. `cargo xtask bench gateway --help`
    Bench {
        /// Arguments for the bench
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Task::Bench { args } => bench(&args),
        Task::Ci => ci(),
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
const BENCH_NEEDS: &[Need] = &[
    Need::Libclang,
    Need::Postgres,
    Need::Pgbench,
    Need::Pgbouncer,
    Need::Pgpool,
];

/// Builds, then becomes helios, so that signals reach it.
fn serve(args: &[String]) -> anyhow::Result<()> {
    packages::ensure(&[Need::Libclang])?;
    println!("xtask: building helios in release mode (the first time takes several minutes)");
    run(&mut cargo(&[
        "build",
        "--release",
        "-p",
        "heliosdb-gateway",
        "--bin",
        "helios",
    ]))?;
    let mut helios = Command::new(steps::target_dir().join("release/helios"));
    helios.arg("serve").args(args);
    replace_process(&mut helios)
}

#[cfg(unix)]
fn replace_process(command: &mut Command) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt as _;
    Err(command.exec()).context("cannot start helios")
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
        run(&mut cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))
    })?;
    steps.run("documentation", || {
        run(cargo(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    steps.run("tests", tests_run::all)?;
    steps.summary();
    Ok(())
}

fn bench(args: &[String]) -> anyhow::Result<()> {
    packages::ensure(BENCH_NEEDS)?;
    let mut command = cargo(&["run", "--release", "-p", "heliosdb-bench", "--"]);
    run(command.args(args).current_dir(workspace_root()))
}
