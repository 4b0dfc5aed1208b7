//! Drivers that people use log in over TLS by each method, and in no other way than with the password.

use std::path::{Path, PathBuf};
use std::process::Command;

use heliosdb_testkit::PostgresCluster;
use heliosdb_testkit::certificates::Authority;

use crate::support::Helios;
use crate::visitor::file;

fn run(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{command:?} failed:\n{text}");
    text
}

/// A virtual environment with the drivers, made once and kept with what cargo builds.
fn python() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("logins");
    std::fs::create_dir_all(&folder).expect("a folder");
    // Several tests at a time are several processes.
    let lock = std::fs::File::create(folder.join("lock")).expect("a lock");
    lock.lock().expect("locked");
    let (python, ready) = (folder.join("venv/bin/python"), folder.join("ready"));
    if !ready.exists() {
        run(Command::new("python3")
            .args(["-m", "venv"])
            .arg(folder.join("venv")));
        run(Command::new(&python)
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args([
                "asyncpg==0.30.0",
                "pg8000==1.31.6",
                "psycopg[binary]==3.3.9",
                "psycopg2-binary==2.9.13",
            ]));
        std::fs::write(ready, "").expect("written");
    }
    python
}

#[test]
fn drivers_log_in_over_tls() {
    let authority = Authority::new("ours");
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = PostgresCluster::start().expect("PostgreSQL starts");
    let users = "CREATE USER bound; CREATE USER old";
    cluster.psql("postgres", users).expect("users");
    let signed = authority.sign(&["localhost"], None);
    let certificate = file(folder.path(), "server.pem", &signed.certificate);
    let key = file(folder.path(), "server.key", &signed.key);
    let md5 = cluster.psql("postgres", "SELECT 'md5' || md5('geheim' || 'old')");
    let text = format!(
        "\"bound\" \"geheim\"\n\"old\" \"{}\"\n",
        md5.expect("a hash")
    );
    let users = file(folder.path(), "users", &text);
    for (kind, user) in [("scram-sha-256", "bound"), ("md5", "old")] {
        let config = format!(
            "[tls]\nmode = \"require\"\ncertificate = \"{certificate}\"\nkey = \"{key}\"\n\
             [auth]\ntype = \"{kind}\"\nfile = \"{users}\"\n"
        );
        let url = cluster.url("postgres", "postgres");
        let helios = Helios::start(&["--upstream", &url], &config);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/login_drivers.py");
        let told = run(Command::new(python())
            .arg(script)
            .arg(helios.port.to_string())
            .arg(authority.root())
            .args([user, "geheim"])
            .env("HOME", folder.path()));
        for driver in ["psycopg2", "psycopg", "pg8000", "asyncpg"] {
            assert!(told.contains(&format!("logged in: {driver}\n")), "{told}");
        }
        if user == "bound" {
            for what in [
                "psycopg, bound",
                "psycopg2, bound",
                "psycopg, direct",
                "cancelled",
            ] {
                assert!(told.contains(what), "{what}: {told}");
            }
        }
    }
}
