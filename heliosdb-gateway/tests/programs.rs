//! Programs that people write: SQLAlchemy, Django and the drivers below them, in their default configuration, against
//! helios and against the server itself. What they print must be the same, and their reads must come from memory.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::support::Stack;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs")
}

fn shown(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

fn run(command: &mut Command, hint: &str) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?} does not run: {error}\n{hint}"));
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}\n{hint}",
        shown(&output)
    );
}

/// The Python of a virtual environment with what the programs need, made once and kept with what cargo builds.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let requirements = folder().join("requirements.txt");
        let wanted = std::fs::read_to_string(&requirements).expect("the requirements are there");
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("programs");
        std::fs::create_dir_all(&home).expect("a folder");
        // Several tests at a time are several processes.
        let lock = std::fs::File::create(home.join("lock")).expect("a lock");
        lock.lock().expect("locked");
        let (python, ready) = (home.join("venv/bin/python"), home.join("ready"));
        if std::fs::read_to_string(&ready).ok().as_ref() != Some(&wanted) {
            let _ = std::fs::remove_dir_all(home.join("venv"));
            run(
                Command::new("python3")
                    .args(["-m", "venv"])
                    .arg(home.join("venv")),
                "Python's venv is needed: `cargo xtask test` installs it (Debian: python3-venv)",
            );
            run(
                Command::new(&python)
                    .args([
                        "-m",
                        "pip",
                        "install",
                        "--quiet",
                        "--disable-pip-version-check",
                        "-r",
                    ])
                    .arg(&requirements),
                "The packages come from PyPI: is there a network?",
            );
            std::fs::write(ready, wanted).expect("written");
        }
        python
    })
}

fn program(name: &str, argument: &str, port: u16, database: &str) -> String {
    let mut command = Command::new(python());
    command
        .arg(folder().join(name))
        .arg(argument)
        .env("PGPORT", port.to_string())
        .env("PGDATABASE", database)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let output = command.output().expect("python runs");
    assert!(
        output.status.success(),
        "{name} {argument} on {database}:\n{}",
        shown(&output)
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// At least `hits_min` of the program's reads come from memory.
async fn compare(name: &str, argument: &str, hits_min: u64) {
    let stack = Stack::start_twice("", "SELECT 1");
    let expected = program(name, argument, stack.cluster.port(), "twin");
    let got = program(name, argument, stack.helios.port, "postgres");
    for (number, (got, expected)) in got.lines().zip(expected.lines()).enumerate() {
        assert_eq!(got, expected, "line {number} of {name} {argument}");
    }
    assert_eq!(got.lines().count(), expected.lines().count(), "{got}");
    let hits = stack.helios.cache_count("hits").await;
    let misses = stack.helios.cache_count("misses").await;
    assert!(
        hits >= hits_min,
        "{name} {argument}: {hits} hits, {misses} misses"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlalchemy_on_psycopg2() {
    compare("sqlalchemy_orm.py", "psycopg2", 50).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlalchemy_on_psycopg() {
    compare("sqlalchemy_orm.py", "psycopg", 50).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlalchemy_on_pg8000() {
    compare("sqlalchemy_orm.py", "pg8000", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn django_in_autocommit() {
    compare("django_site.py", "autocommit", 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn django_with_a_transaction_for_each_request() {
    compare("django_site.py", "atomic", 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psycopg() {
    compare("drivers_plain.py", "psycopg", 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psycopg2() {
    compare("drivers_plain.py", "psycopg2", 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pg8000() {
    compare("drivers_plain.py", "pg8000", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asyncpg() {
    compare("drivers_plain.py", "asyncpg", 10).await;
}
