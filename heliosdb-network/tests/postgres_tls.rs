//! TLS to a real server: each sslmode does what libpq's does, and nothing less.

use std::path::Path;
use std::time::Duration;

use heliosdb_network::HeliosError;
use heliosdb_network::postgres::replication::ReplicationConnection;
use heliosdb_network::postgres::{PgConnection, PgTarget, cancel};
use heliosdb_testkit::certificates::{Authority, Signed, self_signed};
use heliosdb_testkit::{PostgresBuilder, PostgresCluster};
use tokio::io::{AsyncReadExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

fn server(signed: &Signed) -> PostgresBuilder {
    PostgresCluster::builder()
        .file("server.crt", &signed.certificate)
        .file("server.key", &signed.key)
        .setting("ssl", "on")
        .hba("hostnossl all tls_only 127.0.0.1/32 reject")
        .hba("hostssl all plain_only 127.0.0.1/32 reject")
}

fn start(signed: &Signed) -> PostgresCluster {
    let cluster = server(signed).start().expect("PostgreSQL starts");
    let users = "CREATE USER tls_only REPLICATION; CREATE USER plain_only";
    cluster.psql("postgres", users).expect("users");
    cluster
}

/// A target by the name of a host, whatever is behind the name.
fn target(port: u16, host: &str, user: &str, query: &str) -> PgTarget {
    let url = format!("postgres://{user}@{host}:{port}/postgres?hostaddr=127.0.0.1&{query}");
    PgTarget::from_url(&url).expect("a URL")
}

/// Whether the server says that the connection is encrypted, or why there is none.
async fn connect(target: &PgTarget) -> Result<bool, HeliosError> {
    let mut connection = PgConnection::connect(target).await?;
    let question = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let answer = connection.simple_query(question).await.expect("answered");
    let is_encrypted = answer[0].rows[0][0].as_deref() == Some("t");
    assert_eq!(connection.is_encrypted(), is_encrypted);
    assert!(connection.is_alive());
    connection.terminate().await;
    Ok(is_encrypted)
}

fn trusting(root: &Path, mode: &str) -> String {
    format!("sslmode={mode}&sslrootcert={}", root.display())
}

#[tokio::test]
async fn each_mode_encrypts_or_not_as_the_server_has_it() {
    let authority = Authority::new("ours");
    let cluster = start(&authority.sign(&["localhost"], None));
    for (mode, user, expected) in [
        ("disable", "postgres", Some(false)),
        ("disable", "tls_only", None),
        ("allow", "postgres", Some(false)),
        ("allow", "tls_only", Some(true)),
        ("prefer", "postgres", Some(true)),
        ("prefer", "plain_only", Some(false)),
        ("require", "tls_only", Some(true)),
        ("require", "plain_only", None),
    ] {
        let query = format!("sslmode={mode}");
        let connected = connect(&target(cluster.port(), "localhost", user, &query)).await;
        match (connected, expected) {
            (Ok(is_encrypted), Some(expected)) => {
                assert_eq!(is_encrypted, expected, "{mode} {user}")
            }
            (Err(HeliosError::Server(fields)), None) => assert_eq!(fields.sqlstate(), "28000"),
            other => panic!("{mode} {user}: {other:?}"),
        }
    }
    // Sockets are not encrypted, whatever is asked for.
    let socket = cluster.socket_dir().display();
    let url = format!(
        "postgres:///postgres?host={socket}&port={}&sslmode=require",
        cluster.port()
    );
    let target = PgTarget::from_url(&url).expect("a URL");
    assert!(!connect(&target).await.expect("by the socket"));
}

#[tokio::test]
async fn a_server_without_tls_is_used_without_or_not_at_all() {
    let cluster = PostgresCluster::start().expect("PostgreSQL starts");
    let authority = Authority::new("ours");
    let at = |query: &str| target(cluster.port(), "localhost", "postgres", query);
    for mode in ["disable", "allow", "prefer"] {
        assert!(!connect(&at(&format!("sslmode={mode}"))).await.expect(mode));
    }
    for query in [
        "sslmode=require",
        &trusting(&authority.root(), "verify-full"),
    ] {
        let error = connect(&at(query)).await.expect_err(query);
        assert!(matches!(error, HeliosError::Unsupported(_)), "{error:?}");
    }
}

#[tokio::test]
async fn verification_goes_as_far_as_the_mode_says() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let cluster = start(&ours.sign(&["db.example"], Some("elsewhere")));
    let (ours, theirs) = (ours.root(), theirs.root());
    for (root, mode, host, is_good) in [
        (&ours, "verify-ca", "elsewhere", true),
        (&ours, "verify-full", "db.example", true),
        (&ours, "verify-full", "DB.example", true),
        // The common name counts only where there are no alternative names.
        (&ours, "verify-full", "elsewhere", false),
        (&ours, "verify-full", "127.0.0.1", false),
        (&theirs, "verify-ca", "db.example", false),
        (&theirs, "verify-full", "db.example", false),
        // A root that is named is gone by, as in libpq.
        (&theirs, "require", "db.example", false),
        (&ours, "require", "elsewhere", true),
    ] {
        let target = target(cluster.port(), host, "postgres", &trusting(root, mode));
        let connected = connect(&target).await;
        match connected {
            Ok(is_encrypted) => assert!(is_good && is_encrypted, "{mode} {host}"),
            Err(HeliosError::Io { .. }) => assert!(!is_good, "{mode} {host}"),
            Err(other) => panic!("{mode} {host}: {other:?}"),
        }
    }
    let system = "sslrootcert=system";
    let error = connect(&target(cluster.port(), "db.example", "postgres", system)).await;
    assert!(error.is_err(), "nobody whom the system trusts signed it");
}

#[tokio::test]
async fn addresses_common_names_and_certificates_that_are_trusted_themselves_count() {
    let authority = Authority::new("ours");
    let root = trusting(&authority.root(), "verify-full");
    let cluster = start(&authority.sign(&["127.0.0.1"], None));
    let at = target(cluster.port(), "127.0.0.1", "postgres", &root);
    assert!(connect(&at).await.expect("by its address"));
    let at = target(cluster.port(), "localhost", "postgres", &root);
    assert!(connect(&at).await.is_err());

    let cluster = start(&authority.sign(&[], Some("db.example")));
    let at = target(cluster.port(), "db.example", "postgres", &root);
    assert!(connect(&at).await.expect("by its common name"));

    let own = self_signed(&["db.example"], None);
    let cluster = start(&own);
    let own = trusting(&authority.file("own.pem", &own.certificate), "verify-full");
    let at = |host| target(cluster.port(), host, "postgres", &own);
    assert!(connect(&at("db.example")).await.expect("by itself"));
    assert!(connect(&at("other.example")).await.is_err());
}

#[tokio::test]
async fn a_certificate_of_ours_is_shown_where_it_is_asked_for() {
    let authority = Authority::new("ours");
    let cluster = server(&authority.sign(&["localhost"], None))
        .file("root.crt", authority.pem())
        .setting("ssl_ca_file", "root.crt")
        .hba("hostssl all app 127.0.0.1/32 cert")
        .start()
        .expect("PostgreSQL starts");
    cluster.psql("postgres", "CREATE USER app").expect("a user");
    let query = |name: &str| {
        let signed = authority.sign(&[], Some(name));
        let certificate = authority.file(&format!("{name}.pem"), &signed.certificate);
        let key = authority.file(&format!("{name}.key"), &signed.key);
        format!(
            "sslmode=require&sslcert={}&sslkey={}",
            certificate.display(),
            key.display()
        )
    };
    let app = |query: &str| target(cluster.port(), "localhost", "app", query);
    let ours = app(&query("app"));
    assert!(connect(&ours).await.expect("by its certificate"));
    for query in ["sslmode=require", &query("other")] {
        let error = connect(&app(query)).await.expect_err(query);
        assert!(matches!(error, HeliosError::Server(_)), "{error:?}");
    }
    // A certificate that was replaced is used from the next connection on.
    let other = authority.sign(&[], Some("other"));
    authority.file("app.pem", &other.certificate);
    authority.file("app.key", &other.key);
    assert!(connect(&ours).await.is_err());
    let gone = app("sslmode=require&sslcert=/no/such.pem&sslkey=/no/such.key");
    let error = connect(&gone).await.expect_err("no file");
    assert!(error.to_string().contains("/no/such.pem"), "{error}");
}

#[tokio::test]
async fn replication_and_cancel_requests_are_encrypted_too() {
    let authority = Authority::new("ours");
    let cluster = start(&authority.sign(&["localhost"], None));
    // A wire that shows whether what goes over it begins with a request for encryption.
    let (port, mut began) = tapped(cluster.port()).await;
    let query = trusting(&authority.root(), "verify-full");
    let walsender = target(
        port,
        "localhost",
        "tls_only",
        &format!("{query}&dbname=postgres"),
    );
    let mut connection = ReplicationConnection::connect(&walsender)
        .await
        .expect("a walsender");
    connection.identify_system().await.expect("identified");
    assert!(began.recv().await.expect("seen"));

    let target = target(port, "localhost", "postgres", &query);
    let mut connection = PgConnection::connect(&target).await.expect("connected");
    assert!(began.recv().await.expect("seen"));
    let (pid, secret) = (connection.backend_pid(), connection.backend_secret());
    let here = connection.target_here(&target);
    let sleeping =
        tokio::spawn(async move { connection.simple_query("SELECT pg_sleep(30)").await });
    loop {
        let sleepers = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        if cluster.psql("postgres", sleepers).expect("answered") == "1" {
            break;
        }
        tokio::task::yield_now().await;
    }
    cancel(&here, pid, &secret).await.expect("delivered");
    let ended = sleeping.await.expect("no panic").expect_err("cancelled");
    assert!(matches!(ended, HeliosError::Server(fields) if fields.sqlstate() == "57014"));
    assert!(
        began.recv().await.expect("seen"),
        "the cancel went in the clear"
    );
}

/// A port that leads to another, and for each connection whether it began with a request for TLS.
async fn tapped(to: u16) -> (u16, tokio::sync::mpsc::UnboundedReceiver<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut first = [0; 8];
                near.readable().await.expect("readable");
                while near.peek(&mut first).await.expect("peeked") < 8 {}
                let _ = sender.send(first == [0, 0, 0, 8, 4, 210, 22, 47]);
                let mut far = TcpStream::connect(("127.0.0.1", to))
                    .await
                    .expect("connected");
                let _ = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (port, receiver)
}

#[tokio::test]
async fn what_somebody_sends_ahead_of_the_encryption_is_not_read_as_the_servers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut request = [0; 8];
            near.read_exact(&mut request).await.expect("read");
            // Agreed, and let in, in one packet.
            let lie = b"SR\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
            tokio::io::AsyncWriteExt::write_all(&mut near, lie)
                .await
                .expect("written");
            let _ = near.read(&mut request).await;
        }
    });
    let mut target = target(port, "localhost", "postgres", "sslmode=require");
    target.connect_timeout = Duration::from_secs(5);
    let error = PgConnection::connect(&target).await.expect_err("a lie");
    assert!(matches!(error, HeliosError::Io { .. }), "{error:?}");
}
