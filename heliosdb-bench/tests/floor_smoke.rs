//! The floor passes for a PostgreSQL server, and what it sends has the size of what PostgreSQL sends.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use heliosdb_testkit::{PostgresCluster, free_port, postgres_bin_dir};

struct Floor {
    child: Child,
    port: u16,
}

impl Floor {
    fn start() -> Self {
        let port = free_port().expect("a port");
        let child = Command::new(env!("CARGO_BIN_EXE_heliosdb-bench"))
            .args(["floor", "--listen", &format!("127.0.0.1:{port}")])
            .stdin(Stdio::null())
            .spawn()
            .expect("starts");
        let floor = Self { child, port };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the floor does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        floor
    }

    fn client(&self, name: &str) -> Command {
        let mut command = Command::new(postgres_bin_dir().expect("PostgreSQL").join(name));
        command.args([
            "-h",
            "127.0.0.1",
            "-p",
            &self.port.to_string(),
            "-U",
            "postgres",
        ]);
        command
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn psql_gets_an_answer() {
    let floor = Floor::start();
    // Its default, `prefer`, asks for encryption first and must take a no.
    let mut psql = floor.client("psql");
    psql.args([
        "-X",
        "-c",
        "SELECT abalance FROM pgbench_accounts WHERE aid = 1",
        "postgres",
    ]);
    let output = psql.env("PGSSLMODE", "prefer").output().expect("psql");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(text, " abalance \n----------\n        0\n(1 row)\n\n");
}

#[test]
fn pgbench_runs_in_every_mode() {
    let floor = Floor::start();
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("script.sql");
    std::fs::write(
        &script,
        "SELECT abalance FROM pgbench_accounts WHERE aid = 1;\n",
    )
    .expect("written");
    for mode in ["simple", "extended", "prepared"] {
        let mut pgbench = floor.client("pgbench");
        pgbench
            .args(["-n", "-c", "3", "-j", "2", "-t", "100", "-M", mode, "-f"])
            .arg(&script)
            .arg("postgres");
        let output = pgbench.output().expect("pgbench");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{mode}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            text.contains("actually processed: 300/300"),
            "{mode}: {text}"
        );
    }
}

#[test]
fn answers_are_as_long_as_the_servers() {
    let cluster = PostgresCluster::start().expect("PostgreSQL");
    let rows = "CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int);
                INSERT INTO pgbench_accounts VALUES (1, 1, 0)";
    cluster.psql("postgres", rows).expect("created");
    let floor = Floor::start();
    let (mut real, mut fixed) = (Session::start(cluster.port()), Session::start(floor.port));
    let sql = b"SELECT abalance FROM pgbench_accounts WHERE aid = 1\0";
    let by_name = b"q\0SELECT abalance FROM pgbench_accounts WHERE aid = $1\0\0\0";
    let portal: &[(u8, &[u8])] = &[(b'D', b"P\0"), (b'E', b"\0\0\0\0\0"), (b'S', b"")];
    let unnamed: &[(u8, &[u8])] = &[
        (b'P', b"\0SELECT abalance FROM pgbench_accounts\0\0\0"),
        (b'B', b"\0\0\0\0\0\0\0\0"),
    ];
    let named: &[(u8, &[u8])] = &[(b'B', b"\0q\0\0\0\0\x01\0\0\0\x011\0\0")];
    for unit in [
        &[(b'Q', &sql[..])][..],
        &[unnamed, portal].concat(),
        &[(b'P', &by_name[..]), (b'S', b"")],
        &[(b'D', b"Sq\0"), (b'S', b"")],
        &[named, portal].concat(),
        &[(b'C', b"Sq\0"), (b'S', b"")],
    ] {
        assert_eq!(
            fixed.ask(unit),
            real.ask(unit),
            "the types and lengths of the answers to {unit:?}"
        );
    }
}

/// A connection that tells messages by type and length.
struct Session(TcpStream);

impl Session {
    fn start(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a timeout");
        let mut session = Self(stream);
        let body = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
        let length = u32::try_from(body.len() + 4).expect("short");
        session
            .0
            .write_all(&[&length.to_be_bytes()[..], body].concat())
            .expect("sent");
        session.answer();
        session
    }

    fn ask(&mut self, unit: &[(u8, &[u8])]) -> Vec<(char, u32)> {
        let mut bytes = Vec::new();
        for (kind, body) in unit {
            bytes.push(*kind);
            bytes.extend(u32::try_from(body.len() + 4).expect("short").to_be_bytes());
            bytes.extend_from_slice(body);
        }
        self.0.write_all(&bytes).expect("sent");
        self.answer()
    }

    /// All messages up to ReadyForQuery.
    fn answer(&mut self) -> Vec<(char, u32)> {
        let mut messages = Vec::new();
        while messages.last().is_none_or(|&(kind, _)| kind != 'Z') {
            let mut header = [0; 5];
            self.0.read_exact(&mut header).expect("a message");
            let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
            let mut body = vec![0; length as usize - 4];
            self.0.read_exact(&mut body).expect("a body");
            messages.push((char::from(header[0]), length));
        }
        messages
    }
}
