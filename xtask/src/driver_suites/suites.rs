//! The suites: what they need, how they are run, and how what they say is read.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;

use crate::pgbouncer_suite::verdict::{Kind, Outcome};
use crate::place::Place;
use crate::steps::{run, show};

use super::server::PORT;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    Asyncpg,
    NodePostgres,
    RustPostgres,
    Sqlx,
}

/// The release that the tests of the checkout are run with: its extension modules need no building.
const PYTHON_PACKAGES: [&str; 4] = ["asyncpg==0.31.*", "distro==1.*", "pytest==9.*", "uvloop"];

/// What the tests of node-postgres need, without what checks its style and builds for other platforms.
const NODE_PACKAGES: &str = include_str!("package.json");

impl Suite {
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value().expect("none is hidden");
        value.get_name().to_owned()
    }

    /// An error unless the suite is in the folder.
    pub(crate) fn check_source(self, source: &Path) -> anyhow::Result<()> {
        let (owner, part) = match self {
            Self::Asyncpg => ("MagicStack", "tests/__init__.py"),
            Self::NodePostgres => ("brianc", "packages/pg/test/suite.js"),
            Self::RustPostgres => ("rust-postgres", "tokio-postgres/tests/test/main.rs"),
            Self::Sqlx => ("launchbadge", "tests/postgres/setup.sql"),
        };
        let name = self.name();
        ensure!(
            source.join(&name).join(part).is_file(),
            "there is no {name}/{part} in {}. Get it by `git clone https://github.com/{owner}/{name}`",
            source.display()
        );
        Ok(())
    }

    pub(crate) fn version(self, folder: &Path) -> String {
        let (file, before) = match self {
            Self::Asyncpg => return "0.31".to_owned(),
            Self::NodePostgres => ("packages/pg/package.json", "\"version\": \""),
            Self::RustPostgres => ("tokio-postgres/Cargo.toml", "version = \""),
            Self::Sqlx => ("Cargo.toml", "version = \""),
        };
        let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        let version = text
            .split_once(before)
            .and_then(|(_, rest)| rest.split('"').next());
        version.unwrap_or("of unknown version").to_owned()
    }

    /// Makes what the suite needs. Returns where its tests are, or what runs them.
    pub(crate) fn prepare(self, place: &Place, folder: &Path) -> anyhow::Result<PathBuf> {
        match self {
            Self::Asyncpg => {
                place.copy(folder, "asyncpg", &["tests"])?;
                place.write(
                    "plugins/helios_report.py",
                    include_str!("../pgbouncer_suite/report.py"),
                )?;
                place.python(&PYTHON_PACKAGES)
            }
            Self::NodePostgres => {
                let copy = place.copy(folder, "node-postgres", &["packages"])?;
                place.write("node-postgres/package.json", NODE_PACKAGES)?;
                let mut npm = place.command(Path::new("npm"));
                npm.current_dir(&copy)
                    .args(["install", "--omit=dev", "--omit=optional"]);
                run(npm.args(["--ignore-scripts", "--no-audit", "--no-fund"]))
                    .context("Node.js with npm is needed for node-postgres")?;
                for package in ["pg-protocol", "pg-query-stream"] {
                    let mut tsc = place.command(&copy.join("node_modules/.bin/tsc"));
                    run(tsc.current_dir(copy.join("packages").join(package)))?;
                }
                Ok(copy)
            }
            Self::RustPostgres | Self::Sqlx => {
                let target = place.path(&format!("target-{}", self.name()));
                std::fs::create_dir_all(target.join("offline"))?;
                Ok(target)
            }
        }
    }

    pub(crate) fn run(
        self,
        place: &Place,
        folder: &Path,
        prepared: &Path,
    ) -> anyhow::Result<Vec<Outcome>> {
        match self {
            Self::Asyncpg => asyncpg(place, prepared),
            Self::NodePostgres => node_postgres(place, prepared),
            Self::RustPostgres => {
                let extensions =
                    ["hstore", "citext", "ltree"].map(|name| format!("CREATE EXTENSION {name};"));
                psql(place, "postgres", &extensions.concat())?;
                let mut cargo = cargo(folder, prepared);
                cargo.args(["-p", "tokio-postgres", "-p", "postgres", "--all-features"]);
                libtest(place, cargo)
            }
            Self::Sqlx => sqlx(place, folder, prepared),
        }
    }
}

/// Points libpq's variables at the server.
fn point(command: &mut Command, database: &str) {
    command
        .env("PGHOST", "localhost")
        .env("PGPORT", PORT.to_string());
    command
        .env("PGUSER", "postgres")
        .env("PGDATABASE", database);
}

/// Runs what a suite expects to have been run.
fn psql(place: &Place, database: &str, sql: &str) -> anyhow::Result<()> {
    let mut psql = place.command(Path::new("psql"));
    point(&mut psql, database);
    psql.env("PATH", place.search_path()?)
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"]);
    run(psql.arg(place.write("suite.sql", sql)?))
}

fn asyncpg(place: &Place, python: &Path) -> anyhow::Result<Vec<Outcome>> {
    let report = place.path("report");
    let _ = std::fs::remove_file(&report);
    let mut pytest = place.command(python);
    point(&mut pytest, "postgres");
    pytest
        .args([
            "-m",
            "pytest",
            "-q",
            "-p",
            "helios_report",
            "-p",
            "no:cacheprovider",
            "tests",
        ])
        .current_dir(place.path("asyncpg"))
        .env("PATH", place.search_path()?)
        .env("PYTHONPATH", place.path("plugins"))
        .env("SUITE_REPORT", &report);
    let status = pytest.status().context("cannot run python")?;
    // 0: all passed; 1: some failed.
    ensure!(
        matches!(status.code(), Some(0 | 1)),
        "pytest could not run the tests ({status})"
    );
    Outcome::parse_all(&std::fs::read_to_string(&report)?)
}

fn node_postgres(place: &Place, copy: &Path) -> anyhow::Result<Vec<Outcome>> {
    let packages = copy.join("packages");
    let command = |program: &Path, package: &str| {
        let mut command = place.command(program);
        point(&mut command, "ci_db_test");
        command.current_dir(packages.join(package));
        command.envs([("PGPASSWORD", "postgres"), ("PGTESTNOSSL", "true")]);
        command.envs([
            ("SCRAM_TEST_PGUSER", "scram_test"),
            ("SCRAM_TEST_PGPASSWORD", "test4scram"),
        ]);
        command.env("SCRAM_TEST_PGUSER_UNICODE", "scram_unicode_test");
        command.env("SCRAM_TEST_PGPASSWORD_UNICODE", "IX-\u{2168}");
        command.env("TS_NODE_TRANSPILE_ONLY", "1");
        command
    };
    let mut outcomes = Vec::new();
    // A file is a program, and one test.
    for file in scripts(&packages.join("pg"), Path::new("test/integration"))? {
        let log = File::create(place.path("node.log"))?;
        let mut node = command(Path::new("timeout"), "pg");
        node.args(["100", "node"]).arg(&file).arg("postgres://");
        let status = node.stdout(log.try_clone()?).stderr(log).status()?;
        let kind = if status.success() {
            Kind::Passed
        } else {
            Kind::Failed
        };
        let name = format!("pg/{}", file.display());
        outcomes.push(Outcome {
            test: name,
            kind,
            detail: status.to_string(),
        });
    }
    let mocha = copy.join("node_modules/.bin/mocha");
    for (package, arguments) in [
        ("pg-pool", &[][..]),
        ("pg-cursor", &[]),
        (
            "pg-query-stream",
            &["-r", "ts-node/register", "test/**/*.ts"],
        ),
    ] {
        let mut tests = command(&mocha, package);
        let output = tests
            .args(["--exit", "--reporter", "tap"])
            .args(arguments)
            .output()?;
        let found = tap(package, &String::from_utf8_lossy(&output.stdout));
        ensure!(
            !found.is_empty(),
            "{package} ran no test: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        outcomes.extend(found);
    }
    Ok(outcomes)
}

/// The scripts with tests under a folder, as paths from `root`.
fn scripts(root: &Path, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            found.extend(scripts(root, &path)?);
        } else if path.to_string_lossy().ends_with("-tests.js") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn cargo(folder: &Path, target: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(folder).env("CARGO_TARGET_DIR", target);
    cargo.args(["test", "--locked", "--no-fail-fast"]);
    cargo
}

fn sqlx(place: &Place, folder: &Path, target: &Path) -> anyhow::Result<Vec<Outcome>> {
    // As who may read it, which the user of the suite may not.
    let setup = std::fs::read_to_string(folder.join("tests/postgres/setup.sql"))?;
    psql(place, "sqlx", &setup)?;
    let mut cargo = cargo(folder, target);
    cargo.args(["--no-default-features", "--features"]);
    cargo.arg("any,postgres,macros,migrate,_unstable-all-types,runtime-tokio,tls-none");
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml"))?;
    for test in manifest
        .lines()
        .filter_map(|line| line.strip_prefix("name = \""))
    {
        let test = test.trim_end_matches('"');
        if test.starts_with("postgres") || test.starts_with("any") {
            cargo.args(["--test", test]);
        }
    }
    cargo.env(
        "DATABASE_URL",
        format!("postgres://postgres:password@localhost:{PORT}/sqlx"),
    );
    cargo.env("SQLX_OFFLINE_DIR", target.join("offline"));
    libtest(place, cargo)
}

/// Runs tests of cargo and reads what they say.
fn libtest(place: &Place, mut cargo: Command) -> anyhow::Result<Vec<Outcome>> {
    println!("xtask: {}", show(&cargo));
    let path = place.path("cargo.log");
    let log = File::create(&path)?;
    let status = cargo.stdout(log.try_clone()?).stderr(log).status()?;
    let text = std::fs::read_to_string(&path)?;
    if text.contains("error: could not compile") {
        bail!("it does not compile ({status}): see {}", path.display());
    }
    Ok(libtest_outcomes(&text))
}

/// What became of each test, by the name of its program and its own.
fn libtest_outcomes(text: &str) -> Vec<Outcome> {
    let mut program = "";
    let mut outcomes = Vec::new();
    for line in text.lines() {
        if let Some(running) = line.trim_start().strip_prefix("Running ") {
            let file = running.rsplit('/').next().unwrap_or_default();
            program = file.rsplit_once('-').map_or(file, |(name, _)| name);
        }
        let Some((test, result)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        else {
            continue;
        };
        let kind = match result {
            "ok" => Kind::Passed,
            "FAILED" => Kind::Failed,
            _ => Kind::Skipped,
        };
        let test = format!("{program}::{test}");
        outcomes.push(Outcome {
            test,
            kind,
            detail: String::new(),
        });
    }
    outcomes
}

/// What became of each test, as the Test Anything Protocol says it.
fn tap(package: &str, text: &str) -> Vec<Outcome> {
    let outcome = |line: &str| {
        let (kind, rest) = match line.strip_prefix("not ok ") {
            Some(rest) => (Kind::Failed, rest),
            None => (Kind::Passed, line.strip_prefix("ok ")?),
        };
        let (_, title) = rest.split_once(' ')?;
        let kind = if title.contains("# SKIP") {
            Kind::Skipped
        } else {
            kind
        };
        let test = format!("{package}/{title}");
        Some(Outcome {
            test,
            kind,
            detail: String::new(),
        })
    };
    text.lines().filter_map(outcome).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(outcomes: &[Outcome]) -> Vec<(&str, Kind)> {
        outcomes
            .iter()
            .map(|outcome| (&*outcome.test, outcome.kind))
            .collect()
    }

    #[test]
    fn what_cargo_says_is_understood() {
        let text = "     Running unittests src/lib.rs (/t/debug/deps/postgres-0a1b)\n\nrunning 2 tests\ntest test::a ... ok\n\
                    test test::b ... FAILED\n     Running tests/test/main.rs (/t/debug/deps/any_pool-77)\ntest a ... ignored\n\
                    test result: FAILED. 1 passed\n";
        assert_eq!(
            shown(&libtest_outcomes(text)),
            [
                ("postgres::test::a", Kind::Passed),
                ("postgres::test::b", Kind::Failed),
                ("any_pool::a", Kind::Skipped)
            ]
        );
    }

    #[test]
    fn what_mocha_says_is_understood() {
        let text =
            "1..3\nok 1 a pool works\nnot ok 2 a pool ends\n  Error: no\nok 3 later # SKIP -\n";
        assert_eq!(
            shown(&tap("pg-pool", text)),
            [
                ("pg-pool/a pool works", Kind::Passed),
                ("pg-pool/a pool ends", Kind::Failed),
                ("pg-pool/later # SKIP -", Kind::Skipped)
            ]
        );
    }

    #[test]
    fn a_folder_without_the_suites_is_refused_and_how_to_get_them_is_said() {
        for suite in Suite::value_variants() {
            let error = suite.check_source(Path::new("/")).expect_err("not there");
            assert!(error.to_string().contains("git clone"), "{error}");
        }
    }
}
