//! All tests.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, bail};

use crate::consistency::{self, Options};
use crate::steps::{FEATURES, Steps, cargo, has_program, run, target_dir};

/// Two tests that prove a race or a leak only now and then.
const REPEATED: [(&str, &str); 2] = [
    (
        "concurrent_eviction_test",
        "test_concurrent_eviction_no_race",
    ),
    ("stampede_memory_test", "test_stampede_no_memory_leak"),
];
const REPETITIONS: usize = 100;

/// Runs everything.
pub(crate) fn all() -> anyhow::Result<()> {
    let mut steps = Steps::default();
    steps.run("tests of the workspace", || {
        if has_program("cargo-nextest") {
            run(cargo(&["nextest", "run", "--workspace"]).args(FEATURES))
        } else {
            println!("(cargo-nextest is not installed: using cargo test)");
            let mut tests = cargo(&["test", "--workspace", "--lib", "--bins", "--tests"]);
            run(tests.args(FEATURES))
        }
    })?;
    steps.run("examples in the documentation", || {
        run(cargo(&["test", "--workspace", "--doc"]).args(FEATURES))
    })?;
    steps.run("model of the version slots, every interleaving", || {
        // Not in release mode, which would take minutes to build to save half of one.
        let loom = target_dir().join("loom");
        run(cargo(&[
            "test",
            "-p",
            "heliosdb-cache",
            "--test",
            "loom_versions",
            "--test",
            "loom_cache",
        ])
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_TARGET_DIR", loom))
    })?;
    steps.run("histories of many clients while things go wrong", || {
        consistency::check(&Options::SHORT)
    })?;
    for (file, test) in REPEATED {
        steps.run(&format!("{test}, {REPETITIONS} times"), || {
            repeat(file, test)
        })?;
    }
    steps.summary();
    Ok(())
}

/// Runs one test of heliosdb-cache again and again, as many at a time as there are processors.
fn repeat(file: &str, test: &str) -> anyhow::Result<()> {
    let binary = test_binary(file)?;
    let next = AtomicUsize::new(1);
    let work = || -> anyhow::Result<()> {
        loop {
            let repetition = next.fetch_add(1, Ordering::Relaxed);
            if repetition > REPETITIONS {
                return Ok(());
            }
            run_once(&binary, test).with_context(|| format!("repetition {repetition} failed"))?;
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("it does not panic"))
    })?;
    println!("{REPETITIONS} of {REPETITIONS} passed");
    Ok(())
}

fn run_once(binary: &Path, test: &str) -> anyhow::Result<()> {
    let output = Command::new(binary).args(["--exact", test]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // A name that matches nothing passes too.
    if !output.status.success() || !text.contains("1 passed") {
        bail!("{text}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Builds a test of heliosdb-cache and finds its program.
fn test_binary(file: &str) -> anyhow::Result<PathBuf> {
    let mut build = cargo(&["test", "-p", "heliosdb-cache", "--test", file, "--no-run"]);
    let output = build
        .args(["--message-format", "json"])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("{file} does not build");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    executable(&text, file).with_context(|| format!("cargo did not say where it put {file}"))
}

/// Finds the program of a target in cargo's messages: one JSON object a line.
fn executable(messages: &str, target: &str) -> Option<PathBuf> {
    let name = format!("\"name\":\"{target}\"");
    let line = messages
        .lines()
        .find(|line| line.contains(&name) && line.contains("\"executable\":\""))?;
    let path = line.split("\"executable\":\"").nth(1)?.split('"').next()?;
    Some(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_is_not_there_has_not_passed() {
        let program = std::env::current_exe().expect("this one");
        let there = "tests_run::tests::the_program_is_found_among_cargos_messages";
        run_once(&program, there).expect("it passes");
        assert!(run_once(&program, "tests_run::tests::nothing").is_err());
    }

    #[test]
    fn the_program_is_found_among_cargos_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"other"},"executable":"/t/other-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"mine"},"executable":"/t/mine-2","fresh":true}"#,
        );
        assert_eq!(executable(messages, "mine"), Some("/t/mine-2".into()));
        assert_eq!(executable(messages, "absent"), None);
    }
}
