//! PostgreSQL's own client, knocking at helios with a name and a password.

use std::path::Path;
use std::process::Command;

use heliosdb_testkit::postgres_bin_dir;

/// What psql says: its rows where it got in, or its complaint.
pub(crate) type Told = Result<String, String>;

/// Runs statements, a line each, as `user`. `more` goes into the connection string.
pub(crate) fn psql(port: u16, user: &str, password: &str, more: &str, sql: &str) -> Told {
    let has_database = more.contains("dbname=");
    let database = if has_database { "" } else { "dbname=postgres" };
    let host = if more.contains("host=") {
        ""
    } else {
        "host=localhost hostaddr=127.0.0.1"
    };
    let connection = format!("{host} port={port} user={user} {database} {more}");
    let output = Command::new(postgres_bin_dir().expect("installed").join("psql"))
        .args(["-X", "-w", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
        .args(sql.lines().flat_map(|line| ["-c", line]))
        .arg(&connection)
        .env("PGPASSWORD", password)
        .env("HOME", "/nonexistent")
        .output()
        .expect("psql runs");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr)
            .trim_end()
            .to_owned())
    }
}

/// Whom helios took the client for.
pub(crate) fn who(port: u16, user: &str, password: &str, more: &str) -> Told {
    psql(port, user, password, more, "SELECT session_user")
}

/// Writes a file into a folder and returns its path as it stands in a configuration.
pub(crate) fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}
