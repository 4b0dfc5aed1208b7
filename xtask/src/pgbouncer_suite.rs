//! PgBouncer's own tests, run against helios.

pub(crate) mod verdict;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use crate::consistency::build;
use crate::packages::{self, Need};
use crate::place::Place;
use crate::steps::{show, workspace_root};

use verdict::{Outcome, Reasons, Verdict, fill_in};

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A folder with PgBouncer's source
    #[arg(long, value_name = "DIR", env = "HELIOS_PGBOUNCER_SOURCE")]
    source: Option<PathBuf>,
    /// Run the tests on this program instead of helios, such as PgBouncer itself; no table is written
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Tests that run at a time: most of them wait most of the time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    at_once: u32,
    /// Arguments for pytest, such as `-k cancel`; no table is written
    #[arg(last = true)]
    pytest: Vec<String>,
}

const NEEDS: &[Need] = &[
    Need::Libclang,
    Need::Openssl,
    Need::Pgbench,
    Need::Postgres,
    Need::PythonVenv,
    Need::Socat,
];

/// What the suite imports. psycopg brings a libpq of its own, so that what the tests see does not hang on the system's.
const PACKAGES: [&str; 6] = [
    "filelock",
    "psycopg[binary]==3.3.*",
    "pytest==9.*",
    "pytest-asyncio==1.*",
    "pytest-timeout==2.*",
    "pytest-xdist==3.*",
];

/// If more than these fail unforeseen, it is not by chance.
const AGAIN_MAX: usize = 40;

pub(crate) fn all(options: &Options) -> anyhow::Result<()> {
    let source = checked_source(options.source.as_deref())?;
    let reasons = workspace_root().join("docs/compatibility.toml");
    let reasons = std::fs::read_to_string(&reasons)
        .map_err(Into::into)
        .and_then(|text| Reasons::parse(&text))
        .with_context(|| format!("cannot use {}", reasons.display()))?;
    packages::ensure(NEEDS)?;
    let suite = Suite::prepare(options, &source)?;
    let outcomes = suite.outcomes(options, &reasons)?;
    let is_whole = options.pytest.is_empty();
    let verdict = Verdict::new(&outcomes, &reasons, is_whole);
    let (passed, not_applicable, failed) = verdict.counts();
    println!("\nxtask: {passed} passed, {not_applicable} not applicable, {failed} failed");
    if options.program.is_some() {
        for outcome in outcomes.iter().filter(|outcome| outcome.is_failure()) {
            println!("xtask: {} failed", outcome.test);
        }
        return Ok(());
    }
    if is_whole {
        let head = format!(
            "{passed} passed, {not_applicable} not applicable, {failed} failed; {}.\n",
            suite.versions(&source)?
        );
        write_table(&format!("{head}{}", verdict.table()))?;
    }
    for complaint in &verdict.complaints {
        println!("xtask: WRONG: {complaint}");
    }
    ensure!(
        verdict.complaints.is_empty(),
        "{} of the tests are not as docs/compatibility.toml says",
        verdict.complaints.len()
    );
    Ok(())
}

/// The folder, if it is what it should be.
fn checked_source(source: Option<&Path>) -> anyhow::Result<PathBuf> {
    const HOW: &str = "Get it by `git clone https://github.com/pgbouncer/pgbouncer` (1.25 or newer; it is not built) and name the \
                       folder by --source or in HELIOS_PGBOUNCER_SOURCE";
    let Some(source) = source else {
        bail!("PgBouncer's source is needed, for its tests. {HOW}");
    };
    for part in ["include/bouncer.h", "pyproject.toml", "test/conftest.py"] {
        ensure!(
            source.join(part).is_file(),
            "{} is not PgBouncer's source: there is no {part}. {HOW}",
            source.display()
        );
    }
    Ok(source.canonicalize()?)
}

/// The suite, ready to be run.
#[derive(Debug)]
struct Suite {
    place: Place,
    copy: PathBuf,
    program: PathBuf,
    python: PathBuf,
}

impl Suite {
    fn prepare(options: &Options, source: &Path) -> anyhow::Result<Self> {
        let program = match &options.program {
            Some(program) => program.canonicalize()?,
            None => build(false, "heliosdb-gateway", false)?,
        };
        let place = Place::make("pgbouncer-suite")?;
        let copy = place.copy(source, "source", &["include", "pyproject.toml", "test"])?;
        // The tests ask how PgBouncer was built, and give up if it was not.
        let how = "tls_support = yes\nldap_support = no\n";
        std::fs::write(copy.join("config.mak"), how)?;
        let python = place.python(&PACKAGES)?;
        let openssl = packages::folder_of("openssl").context("openssl is not there")?;
        place.write(
            "bin/openssl",
            &include_str!("pgbouncer_suite/openssl.sh")
                .replace("@OPENSSL@", &in_quotes(&openssl.join("openssl"))),
        )?;
        place.write(
            "plugins/helios_report.py",
            include_str!("pgbouncer_suite/report.py"),
        )?;
        let program = match options.program {
            Some(_) => program,
            None => place.write(
                "helios-as-pgbouncer",
                &include_str!("pgbouncer_suite/helios.sh")
                    .replace("@HELIOS@", &in_quotes(&program)),
            )?,
        };
        // A test would only say that nobody listens.
        let output = place.command(&program).arg("--version").output();
        let runs = output.as_ref().is_ok_and(|output| output.status.success());
        ensure!(
            runs,
            "the user of the suite can't run {} --version ({output:?})",
            program.display()
        );
        Ok(Self {
            place,
            copy,
            program,
            python,
        })
    }

    /// Runs the tests; those that fail for no known reason once more, each by itself.
    fn outcomes(&self, options: &Options, reasons: &Reasons) -> anyhow::Result<Vec<Outcome>> {
        let mut first = self.pytest()?;
        first
            .args(["-n", &options.at_once.to_string()])
            .args(&options.pytest);
        let mut outcomes = self.run(&mut first)?;
        let again: Vec<&str> = outcomes
            .iter()
            .filter(|outcome| outcome.is_surprise(reasons))
            .map(|outcome| outcome.test.as_str())
            .collect();
        if again.is_empty() || again.len() > AGAIN_MAX {
            return Ok(outcomes);
        }
        println!(
            "\nxtask: {} failed for no known reason, perhaps for want of time: once more, one after the other",
            again.len()
        );
        let mut second = self.pytest()?;
        second.args(&again);
        let better = self.run(&mut second)?;
        for outcome in &mut outcomes {
            if let Some(found) = better.iter().find(|found| found.test == outcome.test) {
                outcome.clone_from(found);
            }
        }
        Ok(outcomes)
    }

    fn pytest(&self) -> anyhow::Result<Command> {
        let mut command = self.place.command(&self.python);
        command
            .args(["-m", "pytest", "-q", "-p", "helios_report"])
            // The other forms of a traceback parse the tests' source, and some Pythons 3.11 crash at that.
            .args(["--tb", "native"])
            .args(["-p", "no:cacheprovider"])
            // Without it pytest-asyncio warns, and the suite makes warnings errors.
            .args(["-o", "asyncio_default_fixture_loop_scope=function"])
            .current_dir(&self.copy)
            .env("BOUNCER_EXE", &self.program)
            .env("PATH", self.place.search_path()?)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONPATH", self.place.path("plugins"))
            .env("SUITE_REPORT", self.place.path("report"));
        if std::net::TcpListener::bind("[::1]:0").is_ok() {
            command.env("HAVE_IPV6_LOCALHOST", "1");
        }
        Ok(command)
    }

    /// Runs pytest to its end. That tests failed is no error.
    fn run(&self, command: &mut Command) -> anyhow::Result<Vec<Outcome>> {
        let report = self.place.path("report");
        let _ = std::fs::remove_file(&report);
        // There the paths are short: one of a Unix socket has 107 bytes at most.
        let folder = std::env::temp_dir().join(format!("pgb-{}", std::process::id()));
        command.arg("--basetemp").arg(&folder);
        println!("xtask: {}", show(command));
        let status = command.status().context("cannot run python")?;
        let _ = std::fs::remove_dir_all(&folder);
        // 0: all passed; 1: some failed.
        ensure!(
            matches!(status.code(), Some(0 | 1)),
            "pytest could not run the tests ({status})"
        );
        let text = std::fs::read_to_string(&report).context("pytest left no report")?;
        Outcome::parse_all(&text)
    }

    /// What was run with what.
    fn versions(&self, source: &Path) -> anyhow::Result<String> {
        let configure = std::fs::read_to_string(source.join("configure.ac")).unwrap_or_default();
        let pgbouncer = version_of(&configure);
        let commit = commit_of(source);
        let mut postgres = self.place.command(Path::new("initdb"));
        postgres
            .env("PATH", self.place.search_path()?)
            .arg("--version");
        let mut driver = self.place.command(&self.python);
        driver.args([
            "-c",
            "import psycopg; print('psycopg', psycopg.__version__, 'with libpq', psycopg.pq.version() // 10000)",
        ]);
        Ok(format!(
            "PgBouncer {}{commit}, {}, {}",
            pgbouncer.unwrap_or("of unknown version"),
            first_line(&mut postgres)
                .unwrap_or_default()
                .replace("initdb (PostgreSQL)", "PostgreSQL"),
            first_line(&mut driver).unwrap_or_default()
        ))
    }
}

/// The first line that a command prints, if it succeeds.
pub(crate) fn first_line(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next().filter(|_| output.status.success());
    line.map(str::to_owned)
}

/// The commit of a checkout, in brackets; nothing of what is none.
pub(crate) fn commit_of(source: &Path) -> String {
    let mut commit = Command::new("git");
    commit.arg("-C").arg(source);
    commit.args(["rev-parse", "--short", "HEAD"]);
    // A folder inside of another repository would tell that one's.
    let is_checkout = source.join(".git").exists();
    let commit = is_checkout.then(|| first_line(&mut commit)).flatten();
    commit.map_or_else(String::new, |commit| format!(" ({commit})"))
}

/// The path, for a shell script that has quotes around it.
fn in_quotes(path: &Path) -> String {
    path.to_string_lossy().replace('\'', "'\\''")
}

/// The version in a text for autoconf: the second argument, on the first's line or not.
fn version_of(configure: &str) -> Option<&str> {
    let (_, arguments) = configure.split_once("AC_INIT(")?;
    arguments.split('[').nth(2)?.split(']').next()
}

fn write_table(table: &str) -> anyhow::Result<()> {
    let file = workspace_root().join("docs/compatibility.md");
    let document = std::fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}", file.display()))?;
    let document = fill_in(&document, "pgbouncer-suite", table)
        .with_context(|| format!("cannot fill in {}", file.display()))?;
    std::fs::write(&file, document)?;
    println!("xtask: the table is in {}", file.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found() {
        let text = "dnl\nAC_INIT([PgBouncer],\n        [1.25.2],\n        [https://there], [])\n";
        assert_eq!(version_of(text), Some("1.25.2"));
        assert_eq!(version_of("AC_INIT([PgBouncer])"), None);
        assert_eq!(version_of(""), None);
    }

    #[test]
    fn a_quote_in_a_path_is_no_end() {
        let path = Path::new("/it's/here");
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("printf %s '{}'", in_quotes(path))]);
        let output = shell.output().expect("a shell");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "/it's/here");
    }

    #[test]
    fn what_is_not_the_source_is_refused_and_how_to_get_it_is_said() {
        for source in [None, Some(workspace_root())] {
            let error = checked_source(source).expect_err("not PgBouncer's source");
            assert!(error.to_string().contains("git clone"), "{error}");
        }
    }
}
