//! Fuzzing: needs a nightly compiler and cargo-fuzz, which nothing else here does.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::steps::{Steps, run, workspace_root};

/// Runs one target, or all of them, for so many seconds each.
pub(crate) fn all(seconds: u32, target: Option<&str>) -> anyhow::Result<()> {
    let targets = chosen(targets()?, target)?;
    ensure_tools()?;
    let mut steps = Steps::default();
    // The first time takes minutes.
    steps.run("build, with AddressSanitizer", || {
        run(nightly().args(["fuzz", "build"]).current_dir(folder()))
    })?;
    for target in &targets {
        steps.run(&format!("{target}, {seconds} s"), || fuzz(target, seconds))?;
    }
    steps.summary();
    Ok(())
}

fn folder() -> PathBuf {
    workspace_root().join("fuzz")
}

/// The names of the files that are targets.
fn targets() -> anyhow::Result<Vec<String>> {
    let files = folder().join("fuzz_targets");
    let mut targets = Vec::new();
    for file in files
        .read_dir()
        .with_context(|| format!("cannot read {}", files.display()))?
    {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            targets.extend(
                path.file_stem()
                    .map(|name| name.to_string_lossy().into_owned()),
            );
        }
    }
    targets.sort_unstable();
    Ok(targets)
}

fn chosen(targets: Vec<String>, target: Option<&str>) -> anyhow::Result<Vec<String>> {
    match target {
        Some(target) if targets.iter().any(|known| known == target) => Ok(vec![target.to_owned()]),
        Some(target) => bail!(
            "there is no target {target}: they are {}",
            targets.join(", ")
        ),
        None => Ok(targets),
    }
}

/// What is missing is the user's to install: a compiler is not fetched behind his back.
fn ensure_tools() -> anyhow::Result<()> {
    let mut missing = String::new();
    if !succeeds(nightly().arg("--version")) {
        missing += "\n  rustup toolchain install nightly --profile minimal";
    }
    if !succeeds(Command::new("cargo-fuzz").arg("--version")) {
        missing += "\n  cargo install cargo-fuzz --locked";
    }
    if !missing.is_empty() {
        bail!("fuzzing needs a nightly compiler and cargo-fuzz. What is missing:{missing}");
    }
    Ok(())
}

fn nightly() -> Command {
    let mut command = Command::new("cargo");
    // The compiler of this process's own cargo is not meant.
    command.env_remove("RUSTUP_TOOLCHAIN").arg("+nightly");
    command
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn fuzz(target: &str, seconds: u32) -> anyhow::Result<()> {
    // What is new goes elsewhere: the corpus that is kept is a small one, made so by hand.
    let found = folder().join("target/corpus").join(target);
    std::fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    let mut command = nightly();
    command
        .args(["fuzz", "run", target])
        .arg(&found)
        .arg(folder().join("corpus").join(target))
        .args([
            "--",
            &format!("-max_total_time={seconds}"),
            "-print_final_stats=1",
        ])
        .current_dir(folder());
    run(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_are_the_programs_of_the_package_and_each_has_a_corpus() {
        let manifest = std::fs::read_to_string(folder().join("Cargo.toml")).expect("there");
        let targets = targets().expect("there");
        assert_eq!(targets.len(), manifest.matches("[[bin]]").count());
        for target in &targets {
            assert!(
                manifest.contains(&format!("name = \"{target}\"")),
                "{target}"
            );
            assert!(folder().join("corpus").join(target).is_dir(), "{target}");
        }
    }

    #[test]
    fn one_target_is_chosen_by_its_name_or_all_are() {
        let targets = || vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(chosen(targets(), None).expect("all"), targets());
        assert_eq!(chosen(targets(), Some("b")).expect("one"), ["b"]);
        let error = chosen(targets(), Some("c")).expect_err("none").to_string();
        assert!(error.contains("a, b"), "{error}");
    }
}
