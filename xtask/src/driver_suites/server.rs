//! A new PostgreSQL, and helios in front of it or not. Clients find both in the same place.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::place::Place;
use crate::steps::run;

/// How clients come to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Direct,
    Helios,
}

/// Where clients go. rust-postgres has it in its tests.
pub(crate) const PORT: u16 = 5433;
/// Where the server is while helios is there.
const BEHIND: u16 = 5434;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Server<'a> {
    place: &'a Place,
    helios: Option<Child>,
}

impl<'a> Server<'a> {
    pub(crate) fn start(place: &'a Place, program: &Path, way: Way) -> anyhow::Result<Self> {
        for port in [PORT, BEHIND] {
            TcpListener::bind(("127.0.0.1", port))
                .with_context(|| format!("port {port} is needed for the suites"))?;
        }
        let port = if way == Way::Direct { PORT } else { BEHIND };
        let data = place.path("data");
        if data.exists() {
            std::fs::remove_dir_all(&data)?;
        }
        let mut initdb = place.command(Path::new("initdb"));
        initdb
            .env("PATH", place.search_path()?)
            .arg("-D")
            .arg(&data);
        run(initdb.args([
            "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale", "C.UTF-8", "-N",
        ]))?;
        certify(place)?;
        let settings = std::fs::read_to_string(data.join("postgresql.conf"))?;
        place.write("data/postgresql.conf", &format!("{settings}\n{SETTINGS}"))?;
        place.write(
            "data/pg_hba.conf",
            &format!("{RULES}local all all trust\nhost replication all all trust\n"),
        )?;
        let mut server = Self {
            place,
            helios: None,
        };
        let options = format!("-p {port} -k ''");
        let log = place.path("postgresql.log");
        let mut start = server.pg_ctl()?;
        run(start.args(["start", "-o", &options, "-l"]).arg(log))?;
        server.set_up(port)?;
        if way == Way::Helios {
            server.start_helios(program)?;
        }
        Ok(server)
    }

    fn pg_ctl(&self) -> anyhow::Result<std::process::Command> {
        let mut command = self.place.command(Path::new("pg_ctl"));
        command.env("PATH", self.place.search_path()?);
        command
            .args(["-s", "-w", "-D"])
            .arg(self.place.path("data"));
        Ok(command)
    }

    /// The users and databases that the suites expect.
    fn set_up(&self, port: u16) -> anyhow::Result<()> {
        let file = self.place.write("setup.sql", SET_UP)?;
        let mut psql = self.place.command(Path::new("psql"));
        psql.env("PATH", self.place.search_path()?);
        psql.args([
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
        ]);
        run(psql
            .args(["-p", &port.to_string(), "-d", "postgres", "-f"])
            .arg(file))
    }

    fn start_helios(&mut self, program: &Path) -> anyhow::Result<()> {
        let path = |name: &str| self.place.path(name).display().to_string();
        self.place.write("hba.conf", RULES)?;
        let config = format!(
            "listen = [\"127.0.0.1:{PORT}\"]\nhttp = \"off\"\n[hidb]\nlisten = []\n[upstream]\n\
             url = \"postgres://postgres@127.0.0.1:{BEHIND}/postgres\"\n[auth]\ntype = \"hba\"\nhba_file = \"{}\"\n\
             query_user = \"postgres\"\n[tls]\nmode = \"allow\"\ncertificate = \"{}\"\nkey = \"{}\"\n",
            path("hba.conf"),
            path("data/server.crt"),
            path("data/server.key"),
        );
        let config = self.place.write("helios.toml", &config)?;
        let log = File::create(self.place.path("helios.log"))?;
        let mut command = self.place.command(program);
        command.args(["serve", "--config"]).arg(config);
        command.stdout(log.try_clone()?).stderr(log);
        let mut helios = command.spawn().context("cannot start helios")?;
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], PORT))).is_err() {
            let ended = helios.try_wait()?;
            ensure!(
                ended.is_none() && Instant::now() < deadline,
                "helios did not start: see {}",
                path("helios.log")
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        self.helios = Some(helios);
        Ok(())
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if let Some(mut helios) = self.helios.take() {
            let _ = helios.kill();
            let _ = helios.wait();
        }
        let stopped = self
            .pg_ctl()
            .and_then(|mut stop| run(stop.args(["stop", "-m", "fast"])));
        if let Err(error) = stopped {
            eprintln!("xtask: PostgreSQL was not stopped: {error:#}");
        }
    }
}

/// A certificate for localhost, in the server's folder.
fn certify(place: &Place) -> anyhow::Result<()> {
    let mut openssl = place.command(Path::new("openssl"));
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "30",
        "-subj",
        "/CN=localhost",
    ]);
    openssl.args(["-addext", "subjectAltName=DNS:localhost", "-keyout"]);
    openssl
        .arg(place.path("data/server.key"))
        .arg("-out")
        .arg(place.path("data/server.crt"));
    openssl.stderr(std::process::Stdio::null());
    run(&mut openssl)
}

/// Who gets in how, to the server and to helios.
const RULES: &str = "\
host all pass_user all password
host all md5_user all md5
host all scram_user,scram_test,scram_unicode_test all scram-sha-256
hostssl all ssl_user all trust
host all ssl_user all reject
host all all all trust
";

const SETTINGS: &str = "\
listen_addresses = 'localhost'
ssl = on
ssl_cert_file = 'server.crt'
ssl_key_file = 'server.key'
wal_level = logical
max_connections = 200
max_prepared_transactions = 10
fsync = off
timezone = 'UTC'
";

const SET_UP: &str = "\
SET password_encryption TO 'md5';
CREATE ROLE pass_user PASSWORD 'password' LOGIN;
CREATE ROLE md5_user PASSWORD 'password' LOGIN;
SET password_encryption TO 'scram-sha-256';
CREATE ROLE scram_user PASSWORD 'password' LOGIN;
CREATE ROLE scram_test PASSWORD 'test4scram' LOGIN;
CREATE ROLE scram_unicode_test PASSWORD U&'IX-\\2168' LOGIN;
CREATE ROLE ssl_user LOGIN;
CREATE DATABASE ci_db_test;
CREATE DATABASE sqlx;
";
