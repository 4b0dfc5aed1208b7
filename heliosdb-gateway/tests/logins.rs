//! Who gets in, by which proof, and as whom to the server; PostgreSQL's own client is the judge.

use heliosdb_network::{HidbClient, HidbTarget};
use heliosdb_testkit::{PostgresBuilder, PostgresCluster};
use tempfile::TempDir;

use crate::support::{Helios, is_refused_as_no_replicator};
use crate::visitor::{file, psql, who};

/// A server that lets `app` in by SCRAM, `old` by md5 and `postgres` without, over TCP.
fn server() -> PostgresBuilder {
    PostgresCluster::builder()
        .hba("host all app 127.0.0.1/32 scram-sha-256")
        .hba("host all old 127.0.0.1/32 md5")
}

fn start(server: PostgresBuilder) -> PostgresCluster {
    let cluster = server.start().expect("PostgreSQL starts");
    let users = "CREATE USER app PASSWORD 'geheim'; CREATE USER other; \
                 SET password_encryption = md5; CREATE USER old PASSWORD 'alt'";
    cluster.psql("postgres", users).expect("users");
    cluster
}

fn secret(cluster: &PostgresCluster, user: &str) -> String {
    let question = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{user}'");
    cluster.psql("postgres", &question).expect("answered")
}

fn helios(cluster: &PostgresCluster, auth: &str) -> Helios {
    let url = cluster.url("postgres", "postgres");
    Helios::start(&["--upstream", &url], &format!("[auth]\n{auth}"))
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

#[test]
fn each_type_lets_in_who_knows_the_password_and_nobody_else() {
    let cluster = start(server());
    let folder = folder();
    let users = format!(
        "\"app\" \"geheim\"\n\"old\" \"{}\"\n\"empty\" \"\"\n\"other\" \"auch\"\n",
        secret(&cluster, "old")
    );
    let users = file(folder.path(), "users", &users);
    for kind in ["plain", "md5", "scram-sha-256"] {
        let helios = helios(&cluster, &format!("type = \"{kind}\"\nfile = \"{users}\""));
        let enters = |user: &str, password: &str| who(helios.port, user, password, "");
        assert_eq!(enters("app", "geheim"), Ok("app".to_owned()), "{kind}");
        assert_eq!(enters("other", "auch"), Ok("other".to_owned()), "{kind}");
        // A hash is of no use for SCRAM. Elsewhere it is as good to the server as the password.
        let old = enters("old", "alt");
        assert_eq!(old.is_ok(), kind != "scram-sha-256", "{kind}: {old:?}");
        for (user, password) in [
            ("app", "falsch"),
            ("app", ""),
            ("empty", ""),
            ("empty", "x"),
            ("nobody", "geheim"),
            ("postgres", "geheim"),
        ] {
            let refused = enters(user, password).expect_err("let in");
            let is_told = refused.contains("no password supplied")
                || refused.contains(&format!(
                    "password authentication failed for user \"{user}\""
                ));
            assert!(is_told, "{kind} {user}: {refused}");
        }
    }
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_are_told_apart_by_nothing() {
    let cluster = start(server());
    let folder = folder();
    let text = format!("\"app\" \"{}\"\n", secret(&cluster, "app"));
    let users = file(folder.path(), "users", &text);
    for kind in ["plain", "md5", "scram-sha-256"] {
        let helios = helios(&cluster, &format!("type = \"{kind}\"\nfile = \"{users}\""));
        let refused = async |user: &str| {
            let port = helios.port;
            let config = format!("host=127.0.0.1 port={port} user={user} password=x dbname=d");
            let refused = tokio_postgres::connect(&config, tokio_postgres::NoTls).await;
            let error = refused.err().expect("let in");
            let error = error.as_db_error().expect("told").clone();
            let message = error.message().replace(user, "somebody");
            (
                error.code().code().to_owned(),
                error.severity().to_owned(),
                message,
                error.hint().map(str::to_owned),
            )
        };
        let known = refused("app").await;
        assert_eq!(known.0, "28P01");
        // md5 asks a user with a SCRAM secret by SCRAM, as PostgreSQL does.
        assert_eq!(known, refused("nobody").await, "{kind}");
    }
}

#[test]
fn no_password_has_to_be_written_down() {
    let cluster = start(server());
    let folder = folder();
    let text = format!(
        "\"app\" \"{}\"\n\"old\" \"{}\"\n",
        secret(&cluster, "app"),
        secret(&cluster, "old")
    );
    let users = file(folder.path(), "users", &text);
    let helios = helios(&cluster, &format!("type = \"md5\"\nfile = \"{users}\""));
    // The server asks for SCRAM, too: with what the client has proved here it is proved there.
    assert_eq!(who(helios.port, "app", "geheim", ""), Ok("app".to_owned()));
    assert_eq!(who(helios.port, "old", "alt", ""), Ok("old".to_owned()));
    assert!(who(helios.port, "app", "falsch", "").is_err());
    // By whatever connection it is served.
    let told = psql(
        helios.port,
        "app",
        "geheim",
        "",
        "LISTEN news\nNOTIFY news, 'heard'\nSELECT 1",
    );
    assert!(told.expect("notified").contains("heard"));
    let replication = "dbname=postgres replication=database";
    let refused = psql(helios.port, "app", "geheim", replication, "IDENTIFY_SYSTEM");
    let refused = refused.expect_err("it may not");
    assert!(is_refused_as_no_replicator(&refused), "{refused}");
}

#[test]
fn a_trusted_client_is_to_the_server_what_the_file_says() {
    let cluster = start(server());
    let folder = folder();
    let users = file(folder.path(), "users", "\"app\" \"geheim\"\n");
    let with_file = helios(&cluster, &format!("type = \"trust\"\nfile = \"{users}\""));
    assert_eq!(who(with_file.port, "app", "", ""), Ok("app".to_owned()));
    let without = helios(&cluster, "type = \"trust\"");
    let refused = who(without.port, "app", "", "").expect_err("the server asks");
    assert!(refused.contains("none is known"), "{refused}");
}

#[tokio::test]
async fn a_user_that_a_database_names_without_a_password_has_that_of_the_file() {
    let cluster = start(server());
    let folder = folder();
    let old = secret(&cluster, "old");
    let text = format!("\"app\" \"geheim\"\n\"old\" \"{old}\"\n");
    let users = file(folder.path(), "users", &text);
    let port = cluster.port();
    let database = |name: &str, login: &str| {
        format!("{name}.url = \"postgres://{login}@127.0.0.1:{port}/postgres\"\n")
    };
    let config = format!(
        "[auth]\ntype = \"trust\"\nfile = \"{users}\"\n[databases]\n{}{}{}",
        database("scram", "app"),
        database("md5", "old"),
        database("own", "app:falsch"),
    );
    let url = cluster.url("postgres", "postgres");
    let helios = Helios::start(&["--upstream", &url], &config);
    // Whatever the client speaks.
    let hidb = format!("hidb://visitor@127.0.0.1:{}/scram", helios.hidb_port);
    let hidb = HidbTarget::from_url(&hidb).expect("a URL");
    let client = HidbClient::open(&hidb).await.expect("let in");
    let reply = client.query("SELECT session_user").await.expect("answered");
    assert_eq!(
        reply.row(0).expect("a row").text(0).expect("text"),
        Some("app")
    );
    let is = |database: &str| who(helios.port, "visitor", "", &format!("dbname={database}"));
    assert_eq!(is("scram"), Ok("app".to_owned()));
    assert_eq!(is("md5"), Ok("old".to_owned()));
    // What the database itself says goes over the file.
    let refused = is("own").expect_err("wrong");
    assert!(
        refused.contains("password authentication failed for user \"app\""),
        "{refused}"
    );
}

#[test]
fn the_longest_password_that_postgresql_takes_opens_helios_and_the_server() {
    let cluster = start(server().hba("host all long 127.0.0.1/32 password"));
    let password = "a".repeat(65_530);
    let user = format!("CREATE USER long PASSWORD '{password}'");
    cluster.psql("postgres", &user).expect("a user");
    let folder = folder();
    let users = file(
        folder.path(),
        "users",
        &format!("\"long\" \"{}\"\n", secret(&cluster, "long")),
    );
    let helios = helios(&cluster, &format!("type = \"plain\"\nfile = \"{users}\""));
    assert_eq!(
        who(helios.port, "long", &password, ""),
        Ok("long".to_owned())
    );
    let refused = who(helios.port, "long", &format!("X{password}"), "").expect_err("let in");
    assert!(
        refused.contains("password authentication failed for user \"long\""),
        "{refused}"
    );
}

#[test]
fn no_rule_keeps_who_runs_the_program_from_the_console() {
    let cluster = start(server());
    let folder = folder();
    let hba = file(folder.path(), "hba", "local all all reject\n");
    let config = format!(
        "unix_socket_dir = \"{}\"\n[auth]\ntype = \"hba\"\nhba_file = \"{hba}\"\n",
        folder.path().display()
    );
    let url = cluster.url("postgres", "postgres");
    let helios = Helios::start(&["--upstream", &url], &config);
    let socket = |database: &str| format!("dbname={database} host={}", folder.path().display());
    let ask =
        |user: &str, database: &str| psql(helios.port, user, "", &socket(database), "SHOW VERSION");
    let own = ask("pgbouncer", "pgbouncer");
    assert!(own.is_ok(), "{own:?}");
    for (user, database) in [("app", "pgbouncer"), ("pgbouncer", "postgres")] {
        let refused = ask(user, database).expect_err("let in");
        assert!(refused.contains("pg_hba.conf rejects"), "{refused}");
    }
    let refused = psql(
        helios.port,
        "pgbouncer",
        "",
        "dbname=pgbouncer",
        "SHOW VERSION",
    );
    assert!(refused.is_err(), "over the network anybody may say so");
}

#[test]
fn rules_say_what_is_asked_of_whom() {
    let cluster = start(PostgresCluster::builder());
    let folder = folder();
    file(folder.path(), "staff", "app, other");
    let hba = file(
        folder.path(),
        "hba",
        "local all other peer map=os\n\
         local all postgres peer\n\
         host all old 127.0.0.1/32 reject\n\
         host secret all all reject\n\
         host certs all all cert\n\
         hostssl all all all trust\n\
         host postgres @staff 127.0.0.0/8 scram-sha-256\n\
         host all postgres 127.0.0.1/32 trust\n",
    );
    let user = String::from_utf8(
        std::process::Command::new("id")
            .arg("-un")
            .output()
            .expect("id runs")
            .stdout,
    );
    let user = user.expect("text").trim().to_owned();
    let ident = file(folder.path(), "ident", &format!("os {user} other\n"));
    let users = file(
        folder.path(),
        "users",
        "\"app\" \"geheim\"\n\"other\" \"auch\"\n",
    );
    let config = format!(
        "unix_socket_dir = \"{}\"\n[auth]\ntype = \"hba\"\nfile = \"{users}\"\nhba_file = \"{hba}\"\nident_file = \"{ident}\"\n",
        folder.path().display()
    );
    let url = cluster.url("postgres", "postgres");
    let helios = Helios::start(&["--upstream", &url], &config);
    let enters = |user: &str, password: &str, more: &str| who(helios.port, user, password, more);
    assert_eq!(enters("app", "geheim", ""), Ok("app".to_owned()));
    assert_eq!(enters("postgres", "", ""), Ok("postgres".to_owned()));
    let socket = format!("host={}", folder.path().display());
    assert_eq!(enters("other", "", &socket), Ok("other".to_owned()));
    for (user, password, more, complaint) in [
        (
            "app",
            "falsch",
            "",
            "password authentication failed for user \"app\"",
        ),
        (
            "app",
            "geheim",
            "dbname=secret",
            "pg_hba.conf rejects connection for host \"127.0.0.1\", user \"app\", database \"secret\", no encryption",
        ),
        ("old", "alt", "", "pg_hba.conf rejects connection"),
        (
            "app",
            "geheim",
            "dbname=certs",
            "connection requires a valid client certificate",
        ),
        (
            "nobody",
            "x",
            "",
            "no pg_hba.conf entry for host \"127.0.0.1\", user \"nobody\", database \"postgres\", no encryption",
        ),
        (
            "postgres",
            "",
            &*socket,
            "Peer authentication failed for user \"postgres\"",
        ),
        (
            "app",
            "geheim",
            &socket,
            "no pg_hba.conf entry for host \"[local]\"",
        ),
    ] {
        let refused = enters(user, password, more).expect_err("let in");
        assert!(refused.contains(complaint), "{user} {more}: {refused}");
    }
}

#[test]
fn a_reload_changes_who_gets_in_and_a_broken_file_changes_nothing() {
    let cluster = start(server());
    let folder = folder();
    let users = file(folder.path(), "users", "\"app\" \"geheim\"\n");
    let helios = helios(
        &cluster,
        &format!("type = \"scram-sha-256\"\nfile = \"{users}\""),
    );
    let enters = |user: &str, password: &str| who(helios.port, user, password, "").is_ok();
    assert!(enters("app", "geheim") && !enters("other", "auch"));
    file(
        folder.path(),
        "users",
        "\"app\" \"geheim\"\n\"other\" \"auch\"\n",
    );
    helios.signal("HUP");
    while !enters("other", "auch") {}
    file(folder.path(), "users", "\"app\" \"geheim\"\nother auch\n");
    helios.signal("HUP");
    assert!(enters("other", "auch") && enters("app", "geheim"));
}

#[test]
fn the_console_is_for_administrators_and_lookers_on_only_look() {
    let cluster = start(server());
    let folder = folder();
    let text = "\"ada\" \"a\"\n\"sam\" \"s\"\n\"app\" \"geheim\"\n";
    let users = file(folder.path(), "users", text);
    let auth = format!(
        "type = \"scram-sha-256\"\nfile = \"{users}\"\nadmin_users = [\"ada\"]\nstats_users = [\"sam\"]"
    );
    let config = format!(
        "unix_socket_dir = \"{}\"\n[auth]\n{auth}",
        folder.path().display()
    );
    let url = cluster.url("postgres", "postgres");
    let helios = Helios::start(&["--upstream", &url], &config);
    for database in ["helios", "pgbouncer"] {
        let ask = |user: &str, password: &str, sql: &str| {
            psql(
                helios.port,
                user,
                password,
                &format!("dbname={database}"),
                sql,
            )
        };
        assert!(ask("ada", "a", "SHOW CLIENTS").is_ok());
        assert!(ask("ada", "a", "FLUSH CACHE").is_ok());
        assert!(ask("sam", "s", "show clients").is_ok());
        // What is not known yet is not for them either.
        for command in [
            "FLUSH CACHE",
            "RESTART",
            "restart ;",
            "KILL postgres",
            "KILL_CLIENT 1",
            "PAUSE",
            "SHUTDOWN",
            "DROP CACHE x",
            "SHOW VERSION; FLUSH CACHE",
        ] {
            let refused = ask("sam", "s", command).expect_err(command);
            assert!(
                refused.contains("admin access needed"),
                "{command}: {refused}"
            );
        }
        let refused = ask("app", "geheim", "SHOW VERSION").expect_err("let in");
        assert!(
            refused.contains("may not use the admin console"),
            "{refused}"
        );
        let refused = ask("ada", "falsch", "SHOW VERSION").expect_err("let in");
        assert!(
            refused.contains("password authentication failed"),
            "{refused}"
        );
        // Who runs the program may do everything to it anyway.
        let socket = format!("dbname={database} host={}", folder.path().display());
        let own = psql(helios.port, "pgbouncer", "", &socket, "SHOW VERSION");
        assert!(own.is_ok(), "{own:?}");
    }
    let socket = format!("host={}", folder.path().display());
    assert!(
        who(helios.port, "pgbouncer", "", &socket).is_err(),
        "not to databases"
    );
    assert!(
        psql(
            helios.port,
            "pgbouncer",
            "",
            "dbname=helios",
            "SHOW VERSION"
        )
        .is_err()
    );
}
