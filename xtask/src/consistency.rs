//! The history checker, on a helios built for it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use clap::Args;

use crate::steps::{FEATURES, cargo, run, target_dir, workspace_root};

/// What to check.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A minute, on the programs that the tests run
    #[arg(long)]
    short: bool,
    /// Check the checker: take one protection of helios away after the other
    #[arg(long)]
    self_test: bool,
    /// Arguments for the checker, such as `--mode wire --seed 7`
    #[arg(last = true)]
    args: Vec<String>,
}

impl Options {
    /// What belongs to the tests.
    pub(crate) const SHORT: Self = Self {
        short: true,
        self_test: false,
        args: Vec::new(),
    };
}

pub(crate) fn check(options: &Options) -> anyhow::Result<()> {
    // Without its protections helios is not built in release mode. Slow as it is then, all races are there.
    let is_release = !options.short && !options.self_test;
    let (helios, checker) = if options.short && !options.self_test {
        build_as_tested()?
    } else {
        let helios = build(is_release, "heliosdb-gateway", options.self_test)?;
        (helios, build(is_release, "heliosdb-checker", false)?)
    };
    let mut command = Command::new(checker);
    command.arg("--helios").arg(helios);
    if options.self_test {
        command.arg("--self-test");
    } else if options.short {
        command.args(["--seconds", "12"]);
    }
    run(command.args(&options.args).current_dir(workspace_root()))
}

/// The programs that the tests run, which are there where these have been run.
fn build_as_tested() -> anyhow::Result<(PathBuf, PathBuf)> {
    run(cargo(&["build", "--workspace", "--tests"]).args(FEATURES))?;
    let built = |name: &str| target_dir().join("debug").join(name);
    Ok((built("helios"), built("heliosdb-checker")))
}

/// Builds a program and asks cargo where it put it.
pub(crate) fn build(
    is_release: bool,
    package: &str,
    has_switches: bool,
) -> anyhow::Result<PathBuf> {
    let mut command = cargo(&[
        "build",
        "-p",
        package,
        "--message-format",
        "json-render-diagnostics",
    ]);
    if package == "heliosdb-gateway" {
        command.args(["--bin", "helios", "--no-default-features"]);
    }
    if is_release {
        command.arg("--release");
    }
    if has_switches {
        command.args(["--features", "fault-switches"]);
    }
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "{package} does not build");
    let text = String::from_utf8_lossy(&output.stdout);
    let program = text.lines().rev().find_map(|line| {
        let path = line.split("\"executable\":\"").nth(1)?.split('"').next()?;
        Some(path.into())
    });
    let program: PathBuf =
        program.with_context(|| format!("cargo did not say where it put {package}"))?;
    if !has_switches {
        return Ok(program);
    }
    // To a place of its own: nobody should run it by mistake.
    let folder = target_dir().join("fault-switches");
    std::fs::create_dir_all(&folder)?;
    let own = folder.join("helios");
    std::fs::copy(&program, &own).context("cannot copy helios")?;
    std::fs::remove_file(&program).context("cannot remove helios")?;
    Ok(own)
}
