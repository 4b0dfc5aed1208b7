//! Users that no file has: the server is asked for their secrets, and by nothing that a client says.

use heliosdb_testkit::PostgresCluster;

use crate::support::Helios;
use crate::visitor::{psql, who};

fn start() -> PostgresCluster {
    let cluster = PostgresCluster::builder()
        .hba("host all app 127.0.0.1/32 scram-sha-256")
        .hba("host all old 127.0.0.1/32 md5")
        .start()
        .expect("PostgreSQL starts");
    let users = "CREATE USER app PASSWORD 'geheim'; CREATE USER expired PASSWORD 'geheim' VALID UNTIL '2020-01-01'; \
                 CREATE USER current PASSWORD 'geheim' VALID UNTIL '2999-01-01'; \
                 CREATE ROLE group_role PASSWORD 'geheim'; CREATE USER bare; CREATE USER asker; \
                 SET password_encryption = md5; CREATE USER old PASSWORD 'alt'";
    cluster.psql("postgres", users).expect("users");
    cluster
}

fn helios(cluster: &PostgresCluster, auth: &str) -> Helios {
    let url = cluster.url("postgres", "postgres");
    Helios::start(&["--upstream", &url], &format!("[auth]\n{auth}"))
}

#[test]
fn the_servers_users_get_in_with_their_passwords_there() {
    let cluster = start();
    let helios = helios(&cluster, "type = \"md5\"\nquery_user = \"postgres\"");
    let enters = |user: &str, password: &str| who(helios.port, user, password, "");
    assert_eq!(enters("app", "geheim"), Ok("app".to_owned()));
    assert_eq!(enters("current", "geheim"), Ok("current".to_owned()));
    assert_eq!(enters("old", "alt"), Ok("old".to_owned()));
    for (user, password) in [
        ("app", "falsch"),
        ("expired", "geheim"),
        ("group_role", "geheim"),
        ("bare", "geheim"),
        ("nobody", "geheim"),
        ("nobody' OR 1=1 --", "geheim"),
    ] {
        let user = user.replace('\'', "\\'");
        let refused = who(helios.port, &format!("'{user}'"), password, "").expect_err("let in");
        assert!(
            refused.contains("password authentication failed for user"),
            "{refused}"
        );
    }
    let refused = who(helios.port, "app", "geheim", "dbname=nowhere").expect_err("let in");
    assert!(
        refused.contains("password authentication failed"),
        "{refused}"
    );
}

#[test]
fn a_password_that_was_changed_counts_after_one_failure() {
    let cluster = start();
    let helios = helios(
        &cluster,
        "type = \"scram-sha-256\"\nquery_user = \"postgres\"",
    );
    let enters = |password: &str| who(helios.port, "current", password, "");
    assert!(enters("geheim").is_ok());
    cluster
        .psql("postgres", "ALTER USER current PASSWORD 'neu'")
        .expect("altered");
    assert!(
        enters("neu").is_err(),
        "what was heard a moment ago is gone by"
    );
    assert!(enters("neu").is_ok());
    assert!(enters("geheim").is_err());
    assert!(enters("neu").is_ok());
    cluster
        .psql("postgres", "ALTER USER current VALID UNTIL '2020-01-01'")
        .expect("altered");
    assert!(enters("falsch").is_err());
    assert!(enters("neu").is_err(), "it is not valid any more");
}

#[test]
fn nothing_that_a_client_says_is_a_part_of_the_question() {
    let cluster = start();
    // An administrator's function, and one that the client would like to see in its place (CVE-2025-12819).
    let scram = "SELECT rolpassword FROM pg_authid WHERE rolname = 'bait'";
    let setup = "CREATE USER bait PASSWORD 'evil'; CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC; \
                 CREATE FUNCTION public.lookup(who text, OUT u text, OUT p text) LANGUAGE sql SECURITY DEFINER AS \
                 $$SELECT rolname, rolpassword FROM pg_authid WHERE rolname = who$$";
    cluster.psql("postgres", setup).expect("set up");
    let secret = cluster.psql("postgres", scram).expect("answered");
    let bait = format!(
        "CREATE FUNCTION evil.lookup(who text, OUT u text, OUT p text) LANGUAGE sql AS $$SELECT who, '{secret}'$$"
    );
    cluster.psql("postgres", &bait).expect("set up");
    let auth =
        "type = \"scram-sha-256\"\nquery_user = \"asker\"\nquery = \"SELECT u, p FROM lookup($1)\"";
    let helios = helios(&cluster, auth);
    let options = "options='-c search_path=evil,public -c session_replication_role=replica'";
    for more in [options, "options='-csearch_path=evil'"] {
        let refused = who(helios.port, "current", "evil", more).expect_err("let in");
        assert!(
            refused.contains("password authentication failed"),
            "{refused}"
        );
    }
    let honest = psql(
        helios.port,
        "current",
        "geheim",
        "options='-c search_path=evil,public'",
        "SHOW search_path",
    );
    assert_eq!(honest, Ok("evil, public".to_owned()));
}

#[test]
fn clients_that_come_together_are_one_question() {
    let cluster = start();
    let counting = "CREATE SEQUENCE asked; GRANT USAGE ON asked TO asker; \
                    CREATE FUNCTION lookup(who text, OUT u text, OUT p text) LANGUAGE sql SECURITY DEFINER AS \
                    $$SELECT rolname, rolpassword FROM pg_authid, nextval('asked') WHERE rolname = who$$";
    cluster.psql("postgres", counting).expect("set up");
    let auth = "type = \"scram-sha-256\"\nquery_user = \"asker\"\nquery = \"SELECT u, p FROM public.lookup($1)\"";
    let helios = helios(&cluster, auth);
    let port = helios.port;
    let clients: Vec<_> = (0..8)
        .map(|_| std::thread::spawn(move || who(port, "current", "geheim", "")))
        .collect();
    for client in clients {
        assert!(client.join().expect("no panic").is_ok());
    }
    let asked = cluster
        .psql("postgres", "SELECT last_value FROM asked")
        .expect("answered");
    assert_eq!(asked, "1");
}

#[test]
fn a_server_that_cannot_be_asked_lets_nobody_in() {
    let mut cluster = start();
    let helios = helios(
        &cluster,
        "type = \"scram-sha-256\"\nquery_user = \"postgres\"",
    );
    cluster.stop().expect("stopped");
    for (user, password) in [("app", "geheim"), ("nobody", "x")] {
        let refused = who(helios.port, user, password, "").expect_err("let in");
        assert!(refused.contains("users cannot be looked up"), "{refused}");
    }
    cluster.launch().expect("started");
    while who(helios.port, "app", "geheim", "").is_err() {}
}

/// A helios with databases and without `upstream.url`, which logs into a file.
fn with_databases(auth: &str, databases: &str) -> Helios {
    Helios::start(
        &[],
        &format!("log.file = \"log\"\n[auth]\n{auth}\n{databases}"),
    )
}

fn log_of(helios: &Helios) -> String {
    std::fs::read_to_string(helios.folder().join("log")).expect("there")
}

#[test]
fn databases_ask_for_their_users_in_their_own_ways() {
    let cluster = start();
    let lookup = "CREATE FUNCTION lookup(who text, OUT u text, OUT p text) LANGUAGE sql AS $$SELECT who, 'of-the-query'$$";
    cluster.psql("postgres", lookup).expect("set up");
    let url = format!("postgres://127.0.0.1:{}/postgres", cluster.port());
    // In the first, nobody is asked; that of all could not be of use.
    let databases = format!(
        "[databases.nobody]\nurl = \"{url}\"\n\
         [databases.catalog]\nurl = \"{url}\"\nauth_query_user = \"postgres\"\nauth_query = \"SELECT rolname, rolpassword \
         FROM pg_authid WHERE rolname = $1\"\n\
         [databases.function]\nurl = \"{url}\"\nauth_query_user = \"asker\"\nauth_query = \"SELECT u, p FROM lookup($1)\"\n\
         [databases.elsewhere]\nurl = \"{url}\"\nauth_query_user = \"asker\"\nauth_query_database = \"function\"\n\
         auth_query = \"SELECT u, p FROM lookup($1)\"\n"
    );
    let auth = "type = \"scram-sha-256\"\nquery = \"SELECT 1\"\nquery_user = \"off\"";
    let helios = with_databases(auth, &databases);
    for (database, password) in [
        ("catalog", "geheim"),
        ("function", "of-the-query"),
        ("elsewhere", "of-the-query"),
    ] {
        for tried in ["geheim", "of-the-query"] {
            let told = who(helios.port, "current", tried, &format!("dbname={database}"));
            assert_eq!(told.is_ok(), tried == password, "{database}: {told:?}");
        }
    }
    let refused = who(helios.port, "current", "geheim", "dbname=nobody").expect_err("let in");
    assert!(
        refused.contains("password authentication failed"),
        "{refused}"
    );
    let log = log_of(&helios);
    assert!(log.contains("`auth.query` has no $1"), "{log}");
}

#[test]
fn what_one_server_says_of_a_user_is_nothing_to_another() {
    let clusters = [start(), start()];
    let names = ["first", "second"];
    for (cluster, password) in clusters.iter().zip(names) {
        let user = format!("CREATE USER twin PASSWORD '{password}'");
        cluster.psql("postgres", &user).expect("made");
    }
    let databases = clusters.iter().zip(names).map(|(cluster, name)| {
        let port = cluster.port();
        format!("[databases.{name}]\nurl = \"postgres://127.0.0.1:{port}/postgres\"\n")
    });
    let databases: String = databases.collect();
    let helios = with_databases("type = \"plain\"\nquery_user = \"postgres\"", &databases);
    let enters = |database: &str, password: &str| {
        who(helios.port, "twin", password, &format!("dbname={database}")).is_ok()
    };
    assert!(enters("first", "first"));
    assert!(!enters("second", "first"), "that is the other's password");
    assert!(enters("first", "first") && enters("second", "second"));
}

#[test]
fn a_wrong_configuration_is_told_to_everybody_and_the_log_says_what_is_wrong() {
    let cluster = start();
    let url = format!("postgres://127.0.0.1:{}/postgres", cluster.port());
    let of = |name: &str, key: &str| format!("[databases.{name}]\nurl = \"{url}\"\n{key}\n");
    let databases = [
        of(
            "absent",
            "auth_query = \"SELECT a, b FROM absent_table WHERE a = $1\"",
        ),
        of("deaf", "auth_query = \"SELECT 'x', 'y'\""),
        of("narrow", "auth_query = \"SELECT $1::text\""),
        of("astray", "auth_query_database = \"unknown\""),
        of("console", "auth_query_database = \"helios\""),
        of("held", "auth_query_database = \"on_leave\""),
        of("on_leave", ""),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    let users = crate::visitor::file(folder.path(), "users", "\"postgres\" \"chief\"\n");
    let auth = format!(
        "type = \"scram-sha-256\"\nfile = \"{users}\"\nquery_user = \"postgres\"\nadmin_users = [\"postgres\"]"
    );
    let helios = with_databases(&auth, &databases.concat());
    let refused = |user: &str, database: &str| {
        who(helios.port, user, "geheim", &format!("dbname={database}")).expect_err("let in")
    };
    for (database, logged) in [
        ("absent", "relation \"absent_table\" does not exist"),
        ("deaf", "bind message supplies 1 parameters"),
        ("narrow", "the query has to return a name and a secret"),
        (
            "astray",
            "authentication database \"unknown\" is not configured",
        ),
        (
            "console",
            "cannot use the reserved \"helios\" database as an auth_dbname",
        ),
        // There is no database of upstream.url, where the console's users would be asked for.
        (
            "pgbouncer",
            "cannot use the reserved \"pgbouncer\" database as an auth_dbname",
        ),
    ] {
        for user in ["current", "nobody"] {
            let told = refused(user, database);
            let expected = "users cannot be looked up: the configuration is wrong";
            assert!(told.contains(expected), "{database}: {told}");
        }
        let log = log_of(&helios);
        assert!(log.contains(logged), "{database}: {log}");
    }
    let console = |command: &str| psql(helios.port, "postgres", "chief", "dbname=helios", command);
    console("DISABLE on_leave").expect("disabled");
    for user in ["current", "nobody"] {
        let told = refused(user, "held");
        let expected = "authentication database \"on_leave\" is disabled";
        assert!(told.contains(expected), "{told}");
    }
    console("ENABLE on_leave").expect("enabled");
    assert!(who(helios.port, "current", "geheim", "dbname=held").is_ok());
}

#[test]
fn known_users_are_those_of_the_file_and_of_the_server() {
    let cluster = start();
    let folder = tempfile::tempdir().expect("a folder");
    let file = crate::visitor::file(folder.path(), "users", "\"asker\" \"\"\n");
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", cluster.port());
    // All are one user to the server: it is helios that knows them or not.
    let databases = format!(
        "[databases.asked]\nurl = \"{url}\"\nauth_query_user = \"postgres\"\n[databases.unasked]\nurl = \"{url}\"\n"
    );
    let auth = format!("type = \"trust\"\nfile = \"{file}\"\nadmin_users = [\"asker\"]\n");
    let careful = with_databases(&format!("{auth}known_users_only = true"), &databases);
    let open = with_databases(&auth, &databases);
    for (user, database, is_known) in [
        ("asker", "unasked", true),
        ("asker", "asked", true),
        ("bare", "asked", true),
        ("bare", "unasked", false),
        ("nobody", "asked", false),
        ("nobody", "unasked", false),
    ] {
        let more = format!("dbname={database}");
        let told = who(careful.port, user, "", &more);
        assert_eq!(told.is_ok(), is_known, "{user}, {database}: {told:?}");
        if let Err(told) = told {
            let expected = format!("\"trust\" authentication failed for user \"{user}\"");
            assert!(
                told.contains(&expected) && told.contains("no such user"),
                "{told}"
            );
        }
        let told = who(open.port, user, "", &more);
        assert!(told.is_ok(), "{user}, {database}: {told:?}");
    }
}

#[test]
fn the_console_is_nobodys_where_only_known_users_are_let_in() {
    let cluster = start();
    let url = cluster.url("postgres", "postgres");
    let of = |known: bool| {
        let config = format!("auth.known_users_only = {known}\nauth.query_user = \"postgres\"");
        let helios = Helios::start(&["--upstream", &url], &config);
        psql(helios.port, "bare", "", "dbname=helios", "SHOW VERSION")
    };
    assert!(of(false).is_ok());
    let told = of(true).expect_err("let in");
    assert!(told.contains("may not use the admin console"), "{told}");
}
