//! The tests of drivers, run directly and through helios.

mod server;
mod suites;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};

use crate::consistency::build;
use crate::packages::{self, Need};
use crate::pgbouncer_suite::verdict::{Kind, Outcome, fill_in};
use crate::pgbouncer_suite::{commit_of, first_line};
use crate::place::Place;
use crate::steps::workspace_root;

use server::{Server, Way};
use suites::Suite;

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A folder with checkouts of asyncpg, node-postgres, rust-postgres and sqlx, each under its name
    #[arg(long, value_name = "DIR", env = "HELIOS_DRIVER_SOURCES")]
    source: PathBuf,
    /// One suite alone; no table is written
    #[arg(long, value_enum, value_name = "SUITE")]
    only: Option<Suite>,
}

const NEEDS: &[Need] = &[
    Need::Libclang,
    Need::Openssl,
    Need::Pgbench,
    Need::Postgres,
    Need::PythonVenv,
];
const REASONS: &str = "docs/compatibility-drivers.toml";
const DOCUMENT: &str = "docs/compatibility-drivers.md";

/// What the reason begins with of a test whose result depends on how fast the machine is.
const SOMETIMES: &str = "sometimes: ";

/// By suite and test: why it passes directly and not through helios.
type Reasons = BTreeMap<String, BTreeMap<String, String>>;

/// What became of the tests of one suite.
struct Results {
    name: String,
    version: String,
    direct: BTreeMap<String, Kind>,
    helios: BTreeMap<String, Kind>,
}

pub(crate) fn all(options: &Options) -> anyhow::Result<()> {
    let suites = match options.only {
        Some(suite) => vec![suite],
        None => Suite::value_variants().to_vec(),
    };
    let source = options.source.canonicalize()?;
    for suite in &suites {
        suite.check_source(&source)?;
    }
    let reasons = std::fs::read_to_string(workspace_root().join(REASONS))?;
    let reasons: Reasons = toml::from_str(&reasons).with_context(|| format!("in {REASONS}"))?;
    packages::ensure(NEEDS)?;
    let place = Place::make("driver-suites")?;
    let program = build(false, "heliosdb-gateway", false)?;
    let mut table = format!(
        "{}.\n\n| suite | tests | pass directly | pass through helios |\n| --- | --- | --- | --- |\n",
        versions(&place)?
    );
    let (mut details, mut complaints) = (String::new(), Vec::new());
    for suite in suites {
        let results = run(suite, &place, &source, &program)?;
        let known = reasons.get(&results.name).cloned().unwrap_or_default();
        table.push_str(&results.row());
        details.push_str(&results.differences(&known));
        complaints.extend(results.complaints(&known));
    }
    println!("\n{table}{details}");
    if options.only.is_none() {
        let file = workspace_root().join(DOCUMENT);
        let document = std::fs::read_to_string(&file)?;
        let document = fill_in(&document, "driver-suites", &format!("{table}{details}"))?;
        std::fs::write(&file, document)?;
    }
    for complaint in &complaints {
        println!("xtask: WRONG: {complaint}");
    }
    ensure!(
        complaints.is_empty(),
        "{} of the tests are not as {REASONS} says",
        complaints.len()
    );
    Ok(())
}

fn run(suite: Suite, place: &Place, source: &Path, program: &Path) -> anyhow::Result<Results> {
    let name = suite.name();
    let folder = source.join(&name);
    let prepared = suite.prepare(place, &folder)?;
    let passed = |way: Way| -> anyhow::Result<BTreeMap<String, Kind>> {
        println!("\nxtask: {name}, {way:?}");
        let server = Server::start(place, program, way)?;
        let outcomes = suite.run(place, &folder, &prepared)?;
        drop(server);
        ensure!(!outcomes.is_empty(), "{name} ran no test");
        Ok(by_test(outcomes))
    };
    Ok(Results {
        version: format!("{}{}", suite.version(&folder), commit_of(&folder)),
        direct: passed(Way::Direct)?,
        helios: passed(Way::Helios)?,
        name,
    })
}

fn by_test(outcomes: Vec<Outcome>) -> BTreeMap<String, Kind> {
    let skipped = |outcome: &Outcome| outcome.kind != Kind::Skipped;
    let run = outcomes.into_iter().filter(skipped);
    run.map(|outcome| (outcome.test, outcome.kind)).collect()
}

fn versions(place: &Place) -> anyhow::Result<String> {
    let mut initdb = place.command(Path::new("initdb"));
    initdb.env("PATH", place.search_path()?).arg("--version");
    let version = first_line(&mut initdb).unwrap_or_default();
    Ok(version.replace("initdb (PostgreSQL)", "PostgreSQL"))
}

impl Results {
    fn row(&self) -> String {
        let passed = |of: &BTreeMap<String, Kind>| {
            let passed = of.values().filter(|kind| **kind == Kind::Passed);
            passed.count()
        };
        format!(
            "| {} {} | {} | {} | {} |\n",
            self.name,
            self.version,
            self.direct.len(),
            passed(&self.direct),
            passed(&self.helios)
        )
    }

    /// What does not come to the same, in order.
    fn different(&self) -> impl Iterator<Item = (&str, bool)> {
        let passes = |of: &BTreeMap<String, Kind>, test: &str| of.get(test) == Some(&Kind::Passed);
        let tests = self.direct.keys().chain(self.helios.keys());
        let tests: std::collections::BTreeSet<&str> = tests.map(String::as_str).collect();
        tests.into_iter().filter_map(move |test| {
            let through = passes(&self.helios, test);
            (passes(&self.direct, test) != through).then_some((test, through))
        })
    }

    fn differences(&self, known: &BTreeMap<String, String>) -> String {
        let mut text = String::new();
        for (test, passes) in self.different() {
            if text.is_empty() {
                let _ = write!(
                    text,
                    "\n### {}\n| test | why it differs |\n| --- | --- |\n",
                    self.name
                );
            }
            let how = if passes {
                "passes through helios alone: "
            } else {
                ""
            };
            let why = known.get(test).map_or("not explained yet", String::as_str);
            let _ = writeln!(text, "| `{test}` | {how}{} |", why.replace('|', "\\|"));
        }
        text
    }

    fn complaints(&self, known: &BTreeMap<String, String>) -> Vec<String> {
        let different: BTreeMap<&str, bool> = self.different().collect();
        let new = different
            .iter()
            .filter(|(test, passes)| !**passes && !known.contains_key(**test));
        let new = new.map(|(test, _)| format!("{}: {test} fails for no known reason", self.name));
        let gone = known.iter().filter(|(test, why)| {
            different.get(test.as_str()) != Some(&false) && !why.starts_with(SOMETIMES)
        });
        let gone =
            gone.map(|(test, _)| format!("{}: {test} is listed and does not differ", self.name));
        new.chain(gone).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_explained_or_complained_about() {
        let kinds = |passed: [bool; 4]| -> BTreeMap<String, Kind> {
            let kind = |passed| if passed { Kind::Passed } else { Kind::Failed };
            let tests = ["a", "b", "c", "d"].map(str::to_owned);
            tests.into_iter().zip(passed.map(kind)).collect()
        };
        let results = Results {
            name: "suite".to_owned(),
            version: "1".to_owned(),
            direct: kinds([true, true, false, true]),
            helios: kinds([true, false, true, false]),
        };
        assert_eq!(results.row(), "| suite 1 | 4 | 3 | 2 |\n");
        let known = [
            ("b", "because"),
            ("a", "it did once"),
            ("c", "sometimes: it is slow"),
        ];
        let known = known.map(|(test, why)| (test.to_owned(), why.to_owned()));
        let known = BTreeMap::from(known);
        let told = results.differences(&known);
        for line in [
            "| `b` | because |",
            "| `c` | passes through helios alone: sometimes: it is slow |",
            "| `d` | not explained yet |",
        ] {
            assert!(told.contains(line), "{told}");
        }
        assert_eq!(
            results.complaints(&known),
            [
                "suite: d fails for no known reason",
                "suite: a is listed and does not differ"
            ]
        );
    }

    #[test]
    fn the_reasons_can_be_read() {
        let reasons = std::fs::read_to_string(workspace_root().join(REASONS)).expect("there");
        let reasons: Reasons = toml::from_str(&reasons).expect("reasons");
        let names: Vec<String> = Suite::value_variants()
            .iter()
            .map(|suite| suite.name())
            .collect();
        for (suite, tests) in reasons {
            assert!(names.contains(&suite), "{suite}");
            assert!(tests.values().all(|why| !why.trim().is_empty()), "{suite}");
        }
        let document = std::fs::read_to_string(workspace_root().join(DOCUMENT)).expect("there");
        assert!(fill_in(&document, "driver-suites", "").is_ok());
    }
}
