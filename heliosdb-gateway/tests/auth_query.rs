//! Users that no file has: the server is asked for their secrets, and by nothing that a client says.

mod support;
mod visitor;

use heliosdb_testkit::PostgresCluster;
use support::Helios;
use visitor::{psql, who};

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
