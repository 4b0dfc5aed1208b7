//! PgBouncer's configuration file in place of helios's: what is served, reloaded, migrated and signalled.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use heliosdb_testkit::certificates::Authority;
use heliosdb_testkit::{PostgresCluster, free_port};
use tokio_postgres::{Client, NoTls};

use crate::support::raw::{Wire, query};
use crate::support::{connect, text, until};

/// A helios that was started with an ini file.
struct Bouncer {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Bouncer {
    async fn start(ini: impl Fn(u16, &Path) -> String) -> Self {
        Self::start_at(free_port().expect("a port"), ini).await
    }

    async fn start_at(port: u16, ini: impl Fn(u16, &Path) -> String) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pgbouncer.ini");
        std::fs::write(&file, ini(port, folder.path())).expect("written");
        std::fs::write(
            folder.path().join("users"),
            "\"postgres\" \"secret\"\n\"idler\" \"\"\n",
        )
        .expect("written");
        let child = Command::new(env!("CARGO_BIN_EXE_helios"))
            .args(["serve", "--quiet", "--pgbouncer-ini"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("helios starts");
        let bouncer = Self {
            child,
            port,
            folder,
        };
        until("it listens", || async {
            tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .is_ok()
        })
        .await;
        bouncer
    }

    async fn client(&self, database: &str) -> Client {
        connect(self.port, "postgres", database).await
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.child.id().to_string()])
            .status();
        assert!(status.expect("kill runs").success());
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("waitable").is_some()
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The notices and errors of a command of the console.
fn command(bouncer: &Bouncer, command: &str) -> String {
    crate::support::psql(bouncer.port, "pgbouncer", command)
}

/// A value of the console's `SHOW CONFIG`.
async fn setting(console: &Client, key: &str) -> String {
    let shown = console.simple_query("SHOW CONFIG").await.expect("shown");
    shown
        .iter()
        .find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) if row.get("key") == Some(key) => {
                row.get("value").map(str::to_owned)
            }
            _ => None,
        })
        .unwrap_or_else(|| panic!("no {key}"))
}

fn ini(cluster: &PostgresCluster, port: u16, folder: &Path, more: &str) -> String {
    let (folder, server) = (folder.display(), cluster.port());
    format!(
        ";; as packages have it\n[databases]\nd = host=127.0.0.1 port={server} dbname=postgres user=postgres\n\
         * = host=127.0.0.1 port={server}\n\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir = {folder}\nlogfile = {folder}/log\npidfile = {folder}/pid\nauth_type = trust\n\
         auth_file = {folder}/users\nadmin_users = postgres\nserver_reset_query = DISCARD ALL\n{more}"
    )
}

#[tokio::test]
async fn what_goes_past_helios_is_seen_on_a_server_whose_log_cannot_be_followed() {
    let cluster = PostgresCluster::builder()
        .setting("wal_level", "replica")
        .start()
        .expect("PostgreSQL starts");
    let table = "CREATE TABLE t (v text); INSERT INTO t VALUES ('0')";
    cluster.psql("postgres", table).expect("made");
    let bouncer = Bouncer::start(|port, folder| ini(&cluster, port, folder, "")).await;
    let client = bouncer.client("d").await;
    for round in 1..=3 {
        for _ in 0..3 {
            text(&client, "SELECT v FROM t").await;
        }
        let write = format!("UPDATE t SET v = '{round}'");
        cluster.psql("postgres", &write).expect("written");
        assert_eq!(text(&client, "SELECT v FROM t").await, round.to_string());
    }
    // That it is tried again and again costs the server next to nothing.
    let sessions = "SELECT sessions::text FROM pg_stat_database WHERE datname = 'postgres'";
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = text(&client, sessions).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(text(&client, sessions).await, before);
}

#[tokio::test]
async fn an_ini_is_served_with_the_defaults_of_pgbouncer() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let bouncer = Bouncer::start(|port, folder| ini(&cluster, port, folder, "")).await;
    let folder = bouncer.folder.path();
    let (named, any) = (bouncer.client("d").await, bouncer.client("postgres").await);
    for client in [&named, &any] {
        assert_eq!(
            text(client, "SELECT current_database()::text").await,
            "postgres"
        );
    }
    let socket = format!(
        "host={} port={} user=postgres dbname=d",
        folder.display(),
        bouncer.port
    );
    let (over_socket, connection) = tokio_postgres::connect(&socket, NoTls)
        .await
        .expect("let in");
    tokio::spawn(connection);
    assert_eq!(text(&over_socket, "SELECT 'x'").await, "x");
    // A client has its server connection to its end.
    let pid = "SELECT pg_backend_pid()::text";
    assert_ne!(text(&named, pid).await, text(&over_socket, pid).await);
    let console = bouncer.client("pgbouncer").await;
    for (key, value) in [
        ("pool_mode", "session"),
        ("max_client_conn", "100"),
        ("pool.size", "20"),
    ] {
        assert_eq!(setting(&console, key).await, value, "{key}");
    }
    let written = std::fs::read_to_string(folder.join("pid")).expect("there");
    assert_eq!(written.trim(), bouncer.child.id().to_string());
    let log = std::fs::read_to_string(folder.join("log")).expect("there");
    assert!(log.contains("server_reset_query: left out: "), "{log}");
}

#[tokio::test]
async fn a_reload_reads_the_ini_again_and_the_log_is_opened_anew() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let bouncer = Bouncer::start(|port, folder| {
        ini(
            &cluster,
            port,
            folder,
            "default_pool_size = 3\npool_mode = transaction\n",
        )
    })
    .await;
    let folder = bouncer.folder.path();
    let file = folder.join("pgbouncer.ini");
    let console = bouncer.client("pgbouncer").await;
    assert_eq!(setting(&console, "default_pool_size").await, "3");
    // What is not there any more is as by default.
    std::fs::write(
        &file,
        ini(&cluster, bouncer.port, folder, "pool_mode = statement\n"),
    )
    .expect("written");
    std::fs::rename(folder.join("log"), folder.join("log.1")).expect("moved");
    bouncer.signal("HUP");
    until("the reload is seen", || async {
        setting(&console, "pool_mode").await == "statement"
    })
    .await;
    assert_eq!(setting(&console, "default_pool_size").await, "20");
    until("the log is there", || async { folder.join("log").exists() }).await;

    std::fs::write(
        &file,
        ini(&cluster, bouncer.port, folder, "pool_mod = session\n"),
    )
    .expect("written");
    let refused = console
        .batch_execute("RELOAD")
        .await
        .expect_err("unknown key");
    assert_eq!(refused.code().map(|code| code.code()), Some("F0000"));
    assert_eq!(setting(&console, "pool_mode").await, "statement");
    let log = std::fs::read_to_string(folder.join("log")).expect("there");
    assert!(
        log.contains("unknown parameter pool_mod; did you mean pool_mode?"),
        "{log}"
    );
}

#[tokio::test]
async fn signals_mean_what_they_mean_to_pgbouncer() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let more = "pool_mode = transaction\n";
    let mut bouncer = Bouncer::start(|port, folder| ini(&cluster, port, folder, more)).await;
    let client = bouncer.client("d").await;
    bouncer.signal("USR1");
    let console = bouncer.client("pgbouncer").await;
    until("it is paused", || async {
        let shown = console.simple_query("SHOW STATE").await.expect("shown");
        shown.iter().any(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                (row.get("key"), row.get("value")) == (Some("paused"), Some("yes"))
            }
            _ => false,
        })
    })
    .await;
    let waiting = tokio::spawn(async move { (text(&client, "SELECT 'x'").await, client) });
    bouncer.signal("USR2");
    let (answer, client) = waiting.await.expect("no panic");
    assert_eq!(answer, "x");

    // Who is in goes on, for as long as it likes.
    bouncer.signal("TERM");
    let port = bouncer.port;
    until("nobody is let in", || async {
        tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_err()
    })
    .await;
    assert_eq!(text(&client, "SELECT 'y'").await, "y");
    assert!(!bouncer.has_ended());
    bouncer.signal("TERM");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !bouncer.has_ended() {
        assert!(Instant::now() < deadline, "the second one does not wait");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_migrated_file_says_what_became_of_each_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("pgbouncer.ini");
    let migrate = |text: &str| {
        std::fs::write(&file, text).expect("written");
        Command::new(env!("CARGO_BIN_EXE_helios"))
            .arg("migrate")
            .arg(&file)
            .output()
            .expect("run")
    };
    let text = "[databases]\nshop = host=db user=app password=secret\n[pgbouncer]\nauth_type = trust\n\
                pkt_buf = 8192\nmax_client_conn = 500\n";
    let done = migrate(text);
    let toml = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{toml}");
    for part in [
        "pgbouncer.ini:5: pkt_buf: left out: ",
        "pgbouncer.ini:6: max_client_conn: is clients.max\n",
        "\n[clients]\n",
        "max = 500\n",
        "[databases.\"shop\"]\nurl = \"postgres://app:secret@db\"\n",
    ] {
        assert!(toml.contains(part), "{part}: {toml}");
    }
    let done = migrate(&text.replace("pkt_buf", "pkt_buff"));
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(2), "{told}");
    assert!(
        told.contains("pgbouncer.ini:5:1: unknown parameter pkt_buff; did you mean pkt_buf?"),
        "{told}"
    );
}

async fn refused(port: u16, user: &str, database: &str) -> tokio_postgres::error::DbError {
    let config = format!("host=127.0.0.1 port={port} user={user} dbname={database}");
    let refused = tokio_postgres::connect(&config, NoTls).await;
    let error = refused.err().expect("not let in");
    error.as_db_error().expect("told").clone()
}

impl Bouncer {
    async fn logs(&self, part: &str) {
        let log = || std::fs::read_to_string(self.folder.path().join("log")).expect("there");
        until(part, || async { log().contains(part) }).await;
    }
}

#[tokio::test]
async fn errors_name_the_keys_of_the_ini_and_the_log_has_the_words_that_people_look_for() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let dead = free_port().expect("a port");
    let server = cluster.port();
    let more = format!(
        "max_db_client_connections = 2\nreserve_pool_timeout = 0.01\n[users]\nidler = client_idle_timeout=1\n\
         app = max_user_connections=1\n[databases]\ndead = host=127.0.0.1 port={dead} user=postgres\n\
         nameless = host=name.invalid user=postgres\n\
         few = host=127.0.0.1 port={server} dbname=postgres user=postgres pool_size=1 reserve_pool_size=1\n\
         one = host=127.0.0.1 port={server} dbname=postgres user=app pool_mode=transaction\n\
         two = host=127.0.0.1 port={server} dbname=postgres user=app pool_mode=transaction\n"
    );
    let bouncer = Bouncer::start(|port, folder| ini(&cluster, port, folder, &more)).await;
    let port = bouncer.port;

    let first = bouncer.client("d").await;
    let made = format!("d/postgres@127.0.0.1:{server} new connection to server (from 127.0.0.1:");
    bouncer.logs(&made).await;
    let second = connect(port, "idler", "d").await;
    let error = refused(port, "postgres", "d").await;
    let hint = error.hint().unwrap_or_default();
    assert_eq!(
        hint,
        "Raise `max_db_client_connections`, which is 2, in pgbouncer.ini."
    );
    // Programs are told what they were told by PgBouncer, and the rest besides.
    let told = (
        error.code().code(),
        error.message(),
        error.detail().unwrap_or_default(),
    );
    assert_eq!(
        told,
        (
            "08P01",
            "client connections exceeded (max_db_client_connections)",
            "too many connections for database \"d\""
        )
    );
    bouncer
        .logs("closing because: client connections exceeded (max_db_client_connections) (age=0s): too many")
        .await;
    bouncer
        .logs("closing because: client_idle_timeout (age=")
        .await;
    first
        .batch_execute("CREATE ROLE app LOGIN")
        .await
        .expect("made");
    drop((first, second));

    assert_eq!(
        refused(port, "postgres", "lost").await.code().code(),
        "3D000"
    );
    bouncer.logs("registered new auto-database: lost").await;
    bouncer
        .logs("server login failed: FATAL database \"lost\" does not exist")
        .await;
    bouncer
        .logs("closing because: database \"lost\" does not exist (age=")
        .await;

    // Who wants these waits.
    let waiting = ["dead", "nameless"]
        .map(|database| tokio::spawn(async move { connect(port, "postgres", database).await }));
    bouncer
        .logs(&format!(
            "postgres@127.0.0.1:{dead} closing because: connect failed (age=0s)"
        ))
        .await;
    bouncer
        .logs("postgres@name.invalid:5432 closing because: server DNS lookup failed (age=")
        .await;
    waiting.iter().for_each(tokio::task::JoinHandle::abort);

    let both = [bouncer.client("few").await, bouncer.client("few").await];
    for client in &both {
        text(client, "SELECT pg_backend_pid()::text").await;
    }
    bouncer
        .logs("few/postgres taking connection from reserve_pool")
        .await;
    let both = [bouncer.client("one").await, bouncer.client("two").await];
    for client in &both {
        client
            .batch_execute("SELECT pg_backend_pid()")
            .await
            .expect("served");
    }
    bouncer.logs("one/app closing because: evicted").await;
}

#[tokio::test]
async fn a_name_that_the_ini_does_not_have_is_no_such_database() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let start = |port, folder: &Path| ini(&cluster, port, folder, "").replace("\n* = ", "\n;* = ");
    let bouncer = Bouncer::start(start).await;
    let error = refused(bouncer.port, "postgres", "lost").await;
    let hint = error.hint().unwrap_or_default();
    assert!(
        hint.contains("no such database: lost") && hint.contains("pgbouncer.ini"),
        "{hint}"
    );
    bouncer
        .logs("closing because: no such database: lost (age=0s)")
        .await;
}

#[tokio::test]
async fn who_is_in_neither_auth_file_nor_auth_query_is_nobody_even_under_trust() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    cluster
        .psql("postgres", "CREATE USER asked; CREATE USER unasked")
        .expect("made");
    let server = cluster.port();
    let more = format!(
        "[databases]\nq = host=127.0.0.1 port={server} dbname=postgres user=postgres auth_user=postgres \
         auth_query='SELECT usename, passwd FROM pg_shadow WHERE usename=$1 AND NOT usename LIKE ''un%'' '\n\
         lost = host=127.0.0.1 port={server} dbname=postgres auth_user=postgres auth_dbname=pgbouncer\n"
    );
    let start = |port, folder: &Path| ini(&cluster, port, folder, &more);
    let bouncer = Bouncer::start(start).await;
    let port = bouncer.port;
    connect(port, "asked", "q").await;
    connect(port, "idler", "q").await;
    for (user, database, code, logged) in [
        (
            "asked",
            "d",
            "28000",
            "\"trust\" authentication failed for user \"asked\" (age=",
        ),
        (
            "asked",
            "pgbouncer",
            "28000",
            "\"trust\" authentication failed",
        ),
        (
            "unasked",
            "q",
            "08P01",
            "no such user (age=0s): \"trust\" authentication failed",
        ),
        ("asked", "lost", "08P01", "bouncer config error (age="),
    ] {
        let error = refused(port, user, database).await;
        assert_eq!(error.code().code(), code, "{error:?}");
        bouncer.logs(&format!("closing because: {logged}")).await;
    }
    let console = bouncer.client("pgbouncer").await;
    console
        .batch_execute("SET auth_type = 'any'")
        .await
        .expect("set");
    connect(port, "asked", "d").await;
    let reserved = "auth_dbname = pgbouncer\n";
    let folder = bouncer.folder.path();
    std::fs::write(
        folder.join("pgbouncer.ini"),
        ini(&cluster, port, folder, reserved),
    )
    .expect("written");
    console.batch_execute("RELOAD").await.expect_err("reserved");
    bouncer
        .logs("auth_dbname: cannot use the reserved \"pgbouncer\" database as an auth_dbname")
        .await;
}

#[tokio::test]
async fn auth_query_counts_from_when_there_is_an_auth_user() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let more = "auth_query = SELECT 'app', 'of-the-query' WHERE $1 = 'app'\n";
    let start = |port, folder: &Path| ini(&cluster, port, folder, more);
    let bouncer = Bouncer::start(start).await;
    let console = bouncer.client("pgbouncer").await;
    let port = bouncer.port;
    let set = async |assignment: &str| {
        let done = console.batch_execute(&format!("SET {assignment}")).await;
        done.expect("set");
    };
    refused(port, "app", "d").await;
    // A configuration that was changed in one place is the same in all others.
    set("pool.size = 7").await;
    refused(port, "app", "d").await;
    assert_eq!(setting(&console, "auth_user").await, "");
    set("auth_user = 'postgres'").await;
    connect(port, "app", "d").await;
    set("auth_user = ''").await;
    refused(port, "app", "d").await;
}

#[tokio::test]
async fn what_is_logged_changes_while_it_runs() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let bouncer = Bouncer::start(|port, folder| ini(&cluster, port, folder, "")).await;
    let console = bouncer.client("pgbouncer").await;
    let set = async |assignment: &str| {
        let done = console.batch_execute(&format!("SET {assignment}")).await;
        done.expect("set");
        let log = std::fs::read_to_string(bouncer.folder.path().join("log"));
        log.expect("there")
            .matches("configuration reloaded")
            .count()
    };
    for (level, shown) in [("1", "debug"), ("2", "trace"), ("0", "info")] {
        set(&format!("verbose = {level}")).await;
        assert_eq!(setting(&console, "verbose").await, level);
        assert_eq!(setting(&console, "log.level").await, shown);
    }
    let before = set("default_pool_size = 8").await;
    assert_eq!(set("log.level = 'warn'").await, before);
    assert_eq!(set("default_pool_size = 9").await, before);
    assert_eq!(set("verbose = 0").await, before + 1);
    assert_eq!(set("default_pool_size = 8").await, before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_for_tls_are_set_one_after_the_other() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let more = "server_tls_sslmode = disable\n";
    let bouncer = Bouncer::start(|port, folder| ini(&cluster, port, folder, more)).await;
    let [old, new] = ["old", "new"].map(Authority::new);
    let set =
        |key: &str, value: &str| command(&bouncer, &format!("SET client_tls_{key} = '{value}'"));
    let is_in_force = |authority: &Authority| {
        let root = authority.root();
        let more = format!(
            "dbname=d sslmode=verify-full sslrootcert={}",
            root.display()
        );
        crate::visitor::who(bouncer.port, "postgres", "", &more).is_ok()
    };
    let waits = "NOTICE:  TLS settings could not be applied, still using old configuration";
    let is_plain = |told: &str| !told.contains("NOTICE") && !told.contains("ERROR");
    for (authority, is_second) in [(&old, false), (&new, true)] {
        let signed = authority.sign(&["localhost"], None);
        let key = authority.file("server.key", &signed.key);
        let certificate = authority.file("server.pem", &signed.certificate);
        let told = set("key_file", &key.display().to_string());
        assert_eq!(told.contains(waits), is_second, "{told}");
        if is_second {
            assert!(is_in_force(&old));
            // What has nothing to do with it is changed without a word.
            let told = command(&bouncer, "SET default_pool_size = 9");
            assert!(is_plain(&told), "{told}");
            assert!(is_in_force(&old));
        }
        for (key, value) in [
            ("cert_file", certificate.display().to_string()),
            ("sslmode", "require".to_owned()),
        ] {
            let told = set(key, &value);
            assert!(is_plain(&told), "{told}");
        }
        assert!(is_in_force(authority));
    }
    assert!(!is_in_force(&old));
    bouncer.logs("ERROR TLS setup failed: ").await;
}

#[tokio::test]
async fn no_server_connection_stands_that_nobody_has_asked_for() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let bouncer = Bouncer::start(|port, folder| ini(&cluster, port, folder, "")).await;
    let others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let stand = || cluster.psql("postgres", others).expect("counted");
    until("the one that looked at the server is gone", || async {
        stand() == "0"
    })
    .await;
    let _client = bouncer.client("d").await;
    assert_eq!(stand(), "1");
}

#[tokio::test]
async fn what_a_server_has_to_prove_is_set_one_after_the_other() {
    let [ours, others] = ["ours", "others"].map(Authority::new);
    let signed = ours.sign(&["localhost"], None);
    let cluster = PostgresCluster::builder()
        .file("server.crt", &signed.certificate)
        .file("server.key", &signed.key)
        .setting("ssl", "on")
        .start()
        .expect("PostgreSQL starts");
    let server = cluster.port();
    let more = format!("[databases]\nsafe = host=localhost port={server} dbname=postgres\n");
    let bouncer = Bouncer::start(|port, folder| ini(&cluster, port, folder, &more)).await;
    let console = bouncer.client("pgbouncer").await;
    let set = async |assignment: &str| {
        let done = console.batch_execute(&format!("SET {assignment}")).await;
        done.expect("set");
    };
    set("server_tls_sslmode = 'verify-full'").await;
    let root = |authority: &Authority| authority.root().display().to_string();
    set(&format!("server_tls_ca_file = '{}'", root(&others))).await;
    let port = bouncer.port;
    let waiting = tokio::spawn(async move { connect(port, "postgres", "safe").await });
    bouncer
        .logs("closing because: server TLS handshake failed, certificate verify failed (age=")
        .await;
    waiting.abort();
    set(&format!("server_tls_ca_file = '{}'", root(&ours))).await;
    let client = bouncer.client("safe").await;
    let encrypted = "SELECT ssl::text FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(text(&client, encrypted).await, "true");
}

#[tokio::test]
async fn what_ends_a_client_is_said_in_pgbouncers_words_and_with_its_code() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let more = "[users]\npostgres = pool_mode=transaction idle_transaction_timeout=1\n";
    let bouncer = Bouncer::start(|port, folder| ini(&cluster, port, folder, more)).await;
    let mut wire = Wire::connect(bouncer.port, "d", &[]);
    wire.ask(&[query("BEGIN; SELECT 1")]);
    let heard = wire.rest();
    let told = "E FATAL 08P01 idle transaction timeout\n";
    assert!(heard.contains(told), "{heard}");

    let more = "pool_mode = statement\n";
    let bouncer = Bouncer::start(|port, folder| ini(&cluster, port, folder, more)).await;
    let client = bouncer.client("d").await;
    let error = client.batch_execute("BEGIN").await.expect_err("refused");
    let error = error.as_db_error().expect("told");
    assert_eq!(
        (error.code().code(), error.message()),
        (
            "08P01",
            "transaction blocks not allowed in statement pooling mode"
        )
    );
}

#[tokio::test]
async fn the_log_has_a_line_for_who_comes_and_who_goes_and_for_what_went_through() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let more = "stats_period = 1\n";
    let bouncer = Bouncer::start(|port, folder| ini(&cluster, port, folder, more)).await;
    let client = bouncer.client("d").await;
    bouncer
        .logs(" login attempt: db=d user=postgres tls=no replication=no")
        .await;
    drop(client);
    bouncer
        .logs(" closing because: client close request (age=")
        .await;
    bouncer.logs("INFO stats: 0 xacts/s, ").await;

    let more = "log_connections = 0\nlog_disconnections = 0\nlog_stats = 0\nstats_period = 1\n";
    let bouncer = Bouncer::start(|port, folder| ini(&cluster, port, folder, more)).await;
    drop(bouncer.client("d").await);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let log = std::fs::read_to_string(bouncer.folder.path().join("log")).expect("a log");
    for part in ["login attempt", "client close request", "INFO stats: "] {
        assert!(!log.contains(part), "{part}: {log}");
    }
}

#[tokio::test]
async fn startup_parameters_that_are_to_be_ignored_are_left_out() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let more = "ignore_startup_parameters = extra_float_digits, Nonsense,options\n";
    let bouncer = Bouncer::start(|port, folder| ini(&cluster, port, folder, more)).await;
    let config = format!(
        "host=127.0.0.1 port={} user=postgres dbname=d options='-c extra_float_digits=3 -c nonsense=1 -c work_mem=1MB'",
        bouncer.port
    );
    let (client, connection) = tokio_postgres::connect(&config, NoTls)
        .await
        .expect("let in");
    tokio::spawn(connection);
    assert_eq!(text(&client, "SHOW extra_float_digits").await, "1");
    assert_eq!(text(&client, "SHOW work_mem").await, "1MB");
    let unreadable = config.replace("-c nonsense=1", "-d");
    tokio_postgres::connect(&unreadable, NoTls)
        .await
        .map(|_| ())
        .expect("let in");

    let bouncer = Bouncer::start(|port, folder| ini(&cluster, port, folder, "")).await;
    let port = bouncer.port.to_string();
    for (config, code) in [(config, "42704"), (unreadable, "22023")] {
        let parts: Vec<&str> = config.split(' ').collect();
        let named = format!("port={port}");
        let config = config.replace(parts[1], &named);
        let error = tokio_postgres::connect(&config, NoTls).await.map(|_| ());
        let error = error.expect_err("refused");
        assert_eq!(error.code().expect("told").code(), code, "{error}");
    }
}

#[tokio::test]
async fn connections_that_are_opened_at_once_are_not_taken_for_somebody_elses() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    // All lead to one database as one user: each connection sees what the others ask as they are opened.
    let names: Vec<_> = (0..30).map(|number| format!("d{number}")).collect();
    let bouncer = Bouncer::start(|port, folder| {
        let server = cluster.port();
        let lines = names.iter().map(|name| {
            format!("{name} = host=127.0.0.1 port={server} dbname=postgres user=postgres\n")
        });
        let databases = format!("[databases]\n{}", lines.collect::<String>());
        ini(&cluster, port, folder, "").replace("[databases]\n", &databases)
    })
    .await;
    let logins = names.iter().map(|name| bouncer.client(name));
    futures_util::future::join_all(logins).await;
    let log = std::fs::read_to_string(bouncer.folder.path().join("log")).expect("there is one");
    let opened = log.matches("new connection to server").count();
    assert!(opened >= names.len(), "{log}");
    // Who follows the database may be at a query of its own just then.
    let doubts = log.matches("from before this process").count();
    assert!(doubts <= 1, "{log}");
}

#[tokio::test]
async fn several_processes_share_a_port_and_one_of_them_can_leave() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let shared =
        |port, folder: &Path| ini(&cluster, port, folder, "so_reuseport = 1\npeer_id = 1\n");
    let mut first = Bouncer::start(shared).await;
    let port = first.port;
    let mut second = Bouncer::start_at(port, shared).await;
    let socket = second.folder.path().join(format!(".s.PGSQL.{port}"));
    until("the second listens", || async {
        tokio::net::UnixStream::connect(&socket).await.is_ok()
    })
    .await;
    first.signal("QUIT");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !first.has_ended() {
        assert!(Instant::now() < deadline, "the first has ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..5 {
        let client = connect(port, "postgres", "d").await;
        assert_eq!(text(&client, "SELECT 'there'").await, "there");
    }
    assert!(!second.has_ended());
}
