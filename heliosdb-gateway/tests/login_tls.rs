//! Encrypted clients and encrypted servers: who insists on it gets it, and everything works as without.

use std::time::Duration;

use heliosdb_network::postgres::{PgConnection, PgTarget};
use heliosdb_testkit::PostgresCluster;
use heliosdb_testkit::certificates::Authority;
use tempfile::TempDir;

use crate::support::Helios;
use crate::visitor::{file, psql, who};

/// A helios with a certificate for localhost, in front of a server that trusts everybody.
struct Stack {
    authority: Authority,
    cluster: PostgresCluster,
    helios: Helios,
    folder: TempDir,
}

impl Stack {
    fn start(mode: &str, more: &str) -> Self {
        let authority = Authority::new("ours");
        let folder = tempfile::tempdir().expect("a folder");
        let cluster = PostgresCluster::start().expect("PostgreSQL starts");
        cluster
            .psql("postgres", "CREATE USER app; CREATE USER other")
            .expect("users");
        write(&authority, &folder, &["localhost"]);
        let users = file(folder.path(), "users", "\"app\" \"geheim\"\n");
        let path = folder.path().display();
        let config = format!(
            "[tls]\nmode = \"{mode}\"\ncertificate = \"{path}/server.pem\"\nkey = \"{path}/server.key\"\n{}",
            more.replace("USERS", &users)
                .replace("ROOT", &authority.root().display().to_string())
        );
        let url = cluster.url("postgres", "postgres");
        let helios = Helios::start(&["--upstream", &url], &config);
        Self {
            authority,
            cluster,
            helios,
            folder,
        }
    }

    fn who(&self, user: &str, password: &str, more: &str) -> Result<String, String> {
        who(self.helios.port, user, password, more)
    }

    fn verified(&self) -> String {
        format!(
            "sslmode=verify-full sslrootcert={}",
            self.authority.root().display()
        )
    }
}

fn write(authority: &Authority, folder: &TempDir, names: &[&str]) {
    let signed = authority.sign(names, None);
    file(folder.path(), "server.pem", &signed.certificate);
    file(folder.path(), "server.key", &signed.key);
}

#[test]
fn each_mode_takes_and_refuses_what_pgbouncers_does() {
    for (mode, plain, encrypted) in [
        ("disable", true, false),
        ("allow", true, true),
        ("prefer", true, true),
        ("require", false, true),
    ] {
        let stack = Stack::start(mode, "");
        let told = stack.who("app", "", "sslmode=disable");
        assert_eq!(told.is_ok(), plain, "{mode}: {told:?}");
        if !plain {
            assert!(
                told.expect_err("refused")
                    .contains("SSL connection is required")
            );
        }
        let told = stack.who("app", "", "sslmode=require");
        assert_eq!(told.is_ok(), encrypted, "{mode}: {told:?}");
        let told = stack.who("app", "", "sslmode=prefer");
        assert_eq!(told, Ok("app".to_owned()), "{mode}");
        if encrypted {
            assert_eq!(
                stack.who("app", "", &stack.verified()),
                Ok("app".to_owned())
            );
        }
    }
}

#[test]
fn a_login_is_bound_to_the_connection_that_it_comes_by() {
    let stack = Stack::start(
        "allow",
        "[auth]\ntype = \"scram-sha-256\"\nfile = \"USERS\"",
    );
    let bound = format!("{} channel_binding=require", stack.verified());
    assert_eq!(stack.who("app", "geheim", &bound), Ok("app".to_owned()));
    assert!(stack.who("app", "falsch", &bound).is_err());
    let unbound = "sslmode=disable channel_binding=require";
    assert!(stack.who("app", "geheim", unbound).is_err());
    assert_eq!(
        stack.who("app", "geheim", "sslmode=disable"),
        Ok("app".to_owned())
    );
}

#[test]
fn a_certificate_is_a_proof_for_the_user_of_its_name() {
    let auth = "ca = \"ROOT\"\n[auth]\ntype = \"cert\"";
    let stack = Stack::start("verify-full", auth);
    let stranger = Authority::new("theirs");
    let show = |authority: &Authority, name: &str| {
        let signed = authority.sign(&[], Some(name));
        let certificate = authority.file(&format!("{name}.pem"), &signed.certificate);
        let key = authority.file(&format!("{name}.key"), &signed.key);
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&key, private).expect("private");
        format!(
            "sslmode=require sslcert={} sslkey={}",
            certificate.display(),
            key.display()
        )
    };
    let app = show(&stack.authority, "app");
    assert_eq!(stack.who("app", "", &app), Ok("app".to_owned()));
    let refused = stack.who("other", "", &app).expect_err("let in");
    assert!(
        refused.contains("certificate authentication failed for user \"other\""),
        "{refused}"
    );
    for more in [
        &show(&stranger, "app"),
        "sslmode=require",
        "sslmode=disable",
    ] {
        assert!(stack.who("app", "", more).is_err(), "{more}");
    }
}

#[test]
fn much_goes_both_ways_and_comes_out_as_it_went_in() {
    let stack = Stack::start("require", "");
    let port = stack.helios.port;
    let run = |sql: &str| psql(port, "postgres", "", "sslmode=require", sql).expect(sql);
    run(
        "CREATE TABLE t AS SELECT g, repeat(md5(g::text), 30) AS x FROM generate_series(1, 20000) g",
    );
    let all = "SELECT string_agg(x, '' ORDER BY g) FROM t";
    let (through, direct) = (
        run(all),
        stack.cluster.psql("postgres", all).expect("answered"),
    );
    assert_eq!(through.len(), 20_000 * 32 * 30);
    assert!(through == direct, "nothing may change on the way");
    // Rows in, in messages of their own.
    let rows = file(stack.folder.path(), "rows", &run("COPY t TO STDOUT"));
    run("TRUNCATE t");
    run(&format!("\\copy t FROM '{rows}'"));
    assert!(run(all) == direct);
    // From memory, too.
    assert!(run(all) == direct);
}

#[test]
fn a_new_certificate_is_shown_after_a_reload() {
    let stack = Stack::start("require", "");
    assert!(stack.who("app", "", &stack.verified()).is_ok());
    write(&stack.authority, &stack.folder, &["elsewhere"]);
    stack.helios.signal("HUP");
    let complaint = loop {
        if let Err(complaint) = stack.who("app", "", &stack.verified()) {
            break complaint;
        }
    };
    assert!(
        complaint.contains("does not match host name"),
        "{complaint}"
    );
    // What can't be used leaves things as they are.
    file(stack.folder.path(), "server.key", "no key");
    stack.helios.signal("HUP");
    assert!(stack.who("app", "", "sslmode=require").is_ok());
}

#[tokio::test]
async fn a_connection_may_begin_with_tls_where_it_is_allowed() {
    let stack = Stack::start(
        "require",
        "[auth]\ntype = \"scram-sha-256\"\nfile = \"USERS\"",
    );
    let url = |helios: &Helios| {
        format!(
            "postgres://app:geheim@localhost:{}/postgres?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={}\
             &sslnegotiation=direct&channel_binding=require",
            helios.port,
            stack.authority.root().display()
        )
    };
    let target = PgTarget::from_url(&url(&stack.helios)).expect("a URL");
    let mut connection = PgConnection::connect(&target).await.expect("in");
    let who = connection
        .simple_query("SELECT session_user")
        .await
        .expect("answered");
    assert_eq!(who[0].rows[0][0].as_deref(), Some("app"));
    let without = Stack::start("require", "direct = false");
    let target = PgTarget::from_url(&url(&without.helios)).expect("a URL");
    assert!(PgConnection::connect(&target).await.is_err());
}

/// A server that lets nobody in without TLS, and a helios that verifies it.
fn encrypted_server() -> (PostgresCluster, Helios, Authority) {
    let authority = Authority::new("theirs");
    let signed = authority.sign(&["localhost"], None);
    let cluster = PostgresCluster::builder()
        .file("server.crt", &signed.certificate)
        .file("server.key", &signed.key)
        .setting("ssl", "on")
        .hba("hostnossl all all all reject")
        .start()
        .expect("PostgreSQL starts");
    let url = format!(
        "postgres://postgres@localhost:{}/postgres?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={}",
        cluster.port(),
        authority.root().display()
    );
    let helios = Helios::start(&["--upstream", &url], "");
    (cluster, helios, authority)
}

#[tokio::test]
async fn what_waits_in_the_encryption_is_sent_without_being_asked_for() {
    let (_cluster, helios, _authority) = encrypted_server();
    let client = helios.client("postgres", "postgres").await;
    // Longer than the socket takes at once: the last of it goes when there is room again, and nothing else is to be sent.
    for len in [3_000_000, 10_000_000, 30_000_000] {
        let text = "x".repeat(len);
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&text];
        let asked = client.query_one("SELECT length($1::text)", &values);
        let answered = tokio::time::timeout(Duration::from_secs(60), asked).await;
        let row = answered.expect("it was never sent").expect("answered");
        assert_eq!(row.get::<_, i32>(0), i32::try_from(len).expect("short"));
    }
}

#[test]
fn the_server_is_reached_encrypted_and_cancelled_encrypted() {
    let (cluster, helios, _authority) = encrypted_server();
    let ask = |sql: &str| psql(helios.port, "postgres", "", "", sql);
    let question = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(ask(question), Ok("t".to_owned()));
    let much = "SELECT repeat('x', 30000000)";
    assert_eq!(ask(much).map(|text| text.len()), Ok(30_000_000));
    // psql sends a cancel request when it is interrupted.
    let mut sleeper = std::process::Command::new(
        heliosdb_testkit::postgres_bin_dir()
            .expect("installed")
            .join("psql"),
    )
    .args([
        "-X",
        "-h",
        "127.0.0.1",
        "-p",
        &helios.port.to_string(),
        "-U",
        "postgres",
        "-c",
    ])
    .args(["SELECT pg_sleep(30)", "postgres"])
    .stderr(std::process::Stdio::piped())
    .spawn()
    .expect("psql runs");
    let sleepers = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    while cluster.psql("postgres", sleepers).expect("answered") != "1" {}
    let interrupted = std::process::Command::new("kill")
        .args(["-INT", &sleeper.id().to_string()])
        .status();
    assert!(interrupted.expect("kill runs").success());
    let ended = sleeper.wait().expect("ended");
    assert!(!ended.success());
    while cluster.psql("postgres", sleepers).expect("answered") != "0" {}
}
