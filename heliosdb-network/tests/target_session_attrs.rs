//! Of several servers the one that is meant is found, and what goes there later goes to that one.

use heliosdb_network::HeliosError;
use heliosdb_network::postgres::{PgConnection, PgTarget, cancel};
use heliosdb_testkit::{PostgresCluster, free_port};

struct Servers {
    primary: PostgresCluster,
    standby: PostgresCluster,
    read_only: PostgresCluster,
}

impl Servers {
    fn start() -> Self {
        // In recovery, with nobody to follow.
        let standby = PostgresCluster::builder().file("standby.signal", "");
        let read_only = PostgresCluster::builder().setting("default_transaction_read_only", "on");
        Self {
            primary: PostgresCluster::start().expect("PostgreSQL starts"),
            standby: standby.start().expect("PostgreSQL starts"),
            read_only: read_only.start().expect("PostgreSQL starts"),
        }
    }

    /// Where the letters lead: primary, standby, read-only, and a port where nobody is.
    fn target(&self, letters: &str, query: &str) -> PgTarget {
        let places: Vec<String> = letters
            .chars()
            .map(|letter| format!("127.0.0.1:{}", self.port(letter)))
            .collect();
        let url = format!("postgres://postgres@{}/postgres?{query}", places.join(","));
        PgTarget::from_url(&url).expect("a URL")
    }

    fn port(&self, letter: char) -> u16 {
        match letter {
            'p' => self.primary.port(),
            's' => self.standby.port(),
            'r' => self.read_only.port(),
            _ => free_port().expect("a port"),
        }
    }
}

#[tokio::test]
async fn the_server_that_is_meant_is_found() {
    let servers = Servers::start();
    for (letters, attrs, expected) in [
        ("sp", "any", 's'),
        ("xp", "any", 'p'),
        ("sp", "primary", 'p'),
        ("srp", "read-write", 'p'),
        ("srp", "primary", 'r'),
        ("prs", "standby", 's'),
        ("prs", "read-only", 'r'),
        ("ps", "read-only", 's'),
        ("pxs", "prefer-standby", 's'),
        ("xp", "prefer-standby", 'p'),
        ("s", "standby", 's'),
    ] {
        let target = servers.target(letters, &format!("target_session_attrs={attrs}"));
        let connection = PgConnection::connect(&target).await;
        let connection = connection.unwrap_or_else(|error| panic!("{letters} {attrs}: {error}"));
        let place = connection.place();
        assert_eq!(place.port, servers.port(expected), "{letters} {attrs}");
        assert_eq!(
            place.address.map(|address| address.port()),
            Some(place.port)
        );
        assert_eq!(connection.is_standby(), Some(expected == 's'));
    }
}

#[tokio::test]
async fn where_none_is_meant_each_says_why() {
    let servers = Servers::start();
    let target = servers.target("sxr", "target_session_attrs=read-write");
    let error = PgConnection::connect(&target).await.expect_err("none");
    let HeliosError::Network(text) = &error else {
        panic!("{error:?}")
    };
    let (standby, read_only) = (servers.port('s'), servers.port('r'));
    assert!(
        text.contains(&format!("127.0.0.1:{standby}: its sessions are read-only")),
        "{text}"
    );
    assert!(text.contains("Connection refused"), "{text}");
    assert!(
        text.contains(&format!(
            "127.0.0.1:{read_only}: its sessions are read-only"
        )),
        "{text}"
    );
    assert!(!error.is_permanent(), "a standby can be promoted");
    // A wrong database is as wrong at the others.
    let mut elsewhere = servers.target("ps", "");
    elsewhere.database = "nowhere".to_owned();
    let error = PgConnection::connect(&elsewhere)
        .await
        .expect_err("nowhere");
    assert!(matches!(error, HeliosError::Server(fields) if fields.sqlstate() == "3D000"));
}

#[tokio::test]
async fn the_search_begins_where_the_last_one_ended() {
    let mut servers = Servers::start();
    let target = servers.target("sp", "target_session_attrs=primary");
    PgConnection::connect(&target).await.expect("the primary");
    // Nobody has to ask the standby again.
    servers.standby.stop().expect("stopped");
    let connected = PgConnection::connect(&target).await.expect("the primary");
    assert_eq!(connected.place().port, servers.primary.port());
    // Where it is no primary any more, the other is found.
    servers.primary.stop().expect("stopped");
    PgConnection::connect(&target).await.expect_err("none");
    let folder = servers.standby.data_dir();
    std::fs::remove_file(folder.join("standby.signal")).expect("removed");
    servers.standby.launch().expect("started as a primary");
    let connected = PgConnection::connect(&target)
        .await
        .expect("the new primary");
    assert_eq!(connected.place().port, servers.standby.port());
}

#[tokio::test]
async fn a_cancel_goes_to_the_server_that_was_found() {
    let servers = Servers::start();
    let target = servers.target("sp", "target_session_attrs=primary");
    let mut connection = PgConnection::connect(&target).await.expect("the primary");
    let here = connection.target_here(&target);
    let (pid, secret) = (connection.backend_pid(), connection.backend_secret());
    let sleeping =
        tokio::spawn(async move { connection.simple_query("SELECT pg_sleep(600)").await });
    let sleepers = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    while servers
        .primary
        .psql("postgres", sleepers)
        .expect("answered")
        != "1"
    {
        tokio::task::yield_now().await;
    }
    cancel(&here, pid, &secret).await.expect("delivered");
    let ended = sleeping.await.expect("no panic").expect_err("cancelled");
    assert!(matches!(ended, HeliosError::Server(fields) if fields.sqlstate() == "57014"));
}

#[tokio::test]
async fn a_place_that_swallows_packets_does_not_keep_us_from_the_others() {
    let servers = Servers::start();
    // It is accepted by the system, and nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().map(|address| (silent, address.port()));
    let (_listener, port) = silent.expect("an address");
    let url = format!(
        "postgres://postgres@127.0.0.1:{port},127.0.0.1:{}/postgres?connect_timeout=4",
        servers.primary.port()
    );
    let target = PgTarget::from_url(&url).expect("a URL");
    let connected = PgConnection::connect(&target).await.expect("the other");
    assert_eq!(connected.place().port, servers.primary.port());
}
