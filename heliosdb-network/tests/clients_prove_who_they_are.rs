//! The server's end of authentication and of TLS, with PostgreSQL's own client as the judge, and what was learnt there
//! used to log in to a real server.

mod front;

use std::process::Command;
use std::sync::Arc;

use front::{Door, Seen, serve};
use heliosdb_network::HeliosError;
use heliosdb_network::postgres::auth::{Proof, StoredSecret};
use heliosdb_network::postgres::{Credential, PgConnection, PgTarget};
use heliosdb_network::tls::{ClientCertificates, ServerTls, ServerTlsOptions, TlsVersion};
use heliosdb_testkit::certificates::Authority;
use heliosdb_testkit::{PostgresCluster, postgres_bin_dir};

/// What psql says in the end: whether it got in, and its complaint.
async fn psql(port: u16, password: &str, more: &str) -> (bool, String) {
    let connection =
        format!("host=localhost hostaddr=127.0.0.1 port={port} user=app dbname=d {more}");
    let mut command = Command::new(postgres_bin_dir().expect("installed").join("psql"));
    command
        .args(["-X", "-w", "-c", "SELECT", &connection])
        .env("PGPASSWORD", password)
        .env("HOME", "/nonexistent");
    let output = tokio::task::spawn_blocking(move || command.output().expect("psql runs"));
    let output = output.await.expect("no panic");
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), complaint)
}

fn secrets() -> [StoredSecret; 3] {
    let scram = postgres_protocol::password::scram_sha_256("geheim ü".as_bytes());
    let md5 = postgres_protocol::password::md5("geheim ü".as_bytes(), "app");
    [
        StoredSecret::password("geheim ü"),
        StoredSecret::parse(&md5).expect("a hash"),
        StoredSecret::parse(&scram).expect("a secret"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_gets_in_by_every_method_with_the_right_password_alone() {
    for proof in [Proof::Cleartext, Proof::Md5, Proof::Scram] {
        for secret in secrets() {
            let is_possible = proof != Proof::Scram || !matches!(secret, StoredSecret::Md5(_));
            let (port, _seen) = serve(Door {
                proof,
                secret: Some(secret.clone()),
                tls: None,
            })
            .await;
            let (is_in, complaint) = psql(port, "geheim ü", "sslmode=prefer").await;
            assert_eq!(is_in, is_possible, "{proof:?} {secret:?}: {complaint}");
            let (is_in, complaint) = psql(port, "geheim u", "sslmode=disable").await;
            assert!(
                !is_in && complaint.contains("authentication failed"),
                "{complaint}"
            );
        }
        let (port, _seen) = serve(Door {
            proof,
            secret: None,
            tls: None,
        })
        .await;
        let (is_in, complaint) = psql(port, "geheim ü", "").await;
        assert!(
            !is_in && complaint.contains("authentication failed"),
            "{complaint}"
        );
    }
}

fn options(authority: &Authority, names: &[&str]) -> ServerTlsOptions {
    let signed = authority.sign(names, None);
    let mut options = ServerTlsOptions::default();
    options.certificate = authority.file("server.pem", &signed.certificate);
    options.key = authority.file("server.key", &signed.key);
    options
}

async fn encrypted(
    options: &ServerTlsOptions,
) -> (
    u16,
    tokio::sync::mpsc::UnboundedReceiver<Seen>,
    Arc<ServerTls>,
) {
    let tls = Arc::new(ServerTls::new(options).expect("usable"));
    let [_, _, scram] = secrets();
    let door = Door {
        proof: Proof::Scram,
        secret: Some(scram),
        tls: Some(Arc::clone(&tls)),
    };
    let (port, seen) = serve(door).await;
    (port, seen, tls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_verifies_the_certificate_and_binds_its_login_to_it() {
    let authority = Authority::new("ours");
    let (port, mut seen, _tls) = encrypted(&options(&authority, &["localhost"])).await;
    let root = authority.root();
    for more in [
        "sslmode=require channel_binding=require".to_owned(),
        "sslmode=require channel_binding=disable".to_owned(),
        format!(
            "sslmode=verify-full sslrootcert={} channel_binding=require",
            root.display()
        ),
    ] {
        let (is_in, complaint) = psql(port, "geheim ü", &more).await;
        assert!(is_in, "{more}: {complaint}");
        let seen = seen.recv().await.expect("seen");
        assert!(seen.is_encrypted && seen.granted.expect("granted").keys.is_some());
    }
    let (is_in, _) = psql(port, "falsch", "sslmode=require channel_binding=require").await;
    assert!(!is_in);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_certificate_is_shown_from_the_next_connection_on() {
    let authority = Authority::new("ours");
    let (port, _seen, tls) = encrypted(&options(&authority, &["localhost"])).await;
    let root = authority.root();
    let verified = format!("sslmode=verify-full sslrootcert={}", root.display());
    let url = format!(
        "postgres://app:geheim%20%C3%BC@localhost:{port}/d?hostaddr=127.0.0.1&sslmode=require"
    );
    let target = PgTarget::from_url(&url).expect("a URL");
    let mut standing = PgConnection::connect(&target).await.expect("in");
    tls.reload(&options(&authority, &["elsewhere"]))
        .expect("usable");
    let (is_in, complaint) = psql(port, "geheim ü", &verified).await;
    assert!(
        !is_in && complaint.contains("does not match host name"),
        "{complaint}"
    );
    standing.check().await.expect("what stands is not touched");
    // What can't be used changes nothing.
    let mut broken = options(&authority, &["localhost"]);
    broken.key = authority.file("broken.key", "no key");
    assert!(tls.reload(&broken).is_err());
    let (is_in, _) = psql(port, "geheim ü", "sslmode=require channel_binding=require").await;
    assert!(is_in);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_clients_are_asked_for_and_read() {
    let authority = Authority::new("ours");
    let mut options = options(&authority, &["localhost"]);
    options.ca = Some(authority.root());
    let stranger = Authority::new("theirs");
    let show = |authority: &Authority| {
        let signed = authority.sign(&["app.example"], Some("app"));
        let certificate = authority.file("app.pem", &signed.certificate);
        let key = authority.file("app.key", &signed.key);
        // psql refuses a key that others can read.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&key, private).expect("private");
        format!(
            "sslmode=require sslcert={} sslkey={}",
            certificate.display(),
            key.display()
        )
    };
    let (ours, theirs, none) = (
        show(&authority),
        show(&stranger),
        "sslmode=require".to_owned(),
    );
    for (clients, shown, is_let_in) in [
        (ClientCertificates::Optional, &ours, true),
        (ClientCertificates::Optional, &none, true),
        (ClientCertificates::Optional, &theirs, false),
        (ClientCertificates::Required, &ours, true),
        (ClientCertificates::Required, &none, false),
        (ClientCertificates::Required, &theirs, false),
        (ClientCertificates::Ignored, &theirs, true),
    ] {
        options.clients = clients;
        let (port, mut seen, _tls) = encrypted(&options).await;
        let (is_in, complaint) = psql(port, "geheim ü", shown).await;
        assert_eq!(is_in, is_let_in, "{clients:?} {shown}: {complaint}");
        let certificate = seen.recv().await.expect("seen").certificate;
        let has_one = is_let_in && clients != ClientCertificates::Ignored && *shown == ours;
        assert_eq!(certificate.is_some(), has_one, "{clients:?} {shown}");
        if let Some(certificate) = certificate {
            assert_eq!(certificate.common_name.as_deref(), Some("app"));
            assert_eq!(certificate.distinguished_name, "CN=app");
            assert_eq!(certificate.dns_names, ["app.example"]);
        }
    }
}

#[tokio::test]
async fn a_connection_that_begins_with_tls_has_to_name_the_protocol() {
    let authority = Authority::new("ours");
    let mut options = options(&authority, &["localhost"]);
    options.min_version = TlsVersion::Tls13;
    let (port, mut seen, _tls) = encrypted(&options).await;
    let url = format!(
        "postgres://app:geheim%20%C3%BC@localhost:{port}/d?hostaddr=127.0.0.1&sslmode=verify-full\
         &sslrootcert={}&sslnegotiation=direct&channel_binding=require",
        authority.root().display()
    );
    let target = PgTarget::from_url(&url).expect("a URL");
    let connection = PgConnection::connect(&target).await.expect("in");
    assert!(connection.is_encrypted());
    assert!(seen.recv().await.expect("seen").is_direct);
    // Another protocol, or none, could be somebody else's connection that was led here.
    let config = target.tls.config().expect("usable");
    for (protocols, what) in [(vec![], "ALPN"), (vec![b"http/1.1".to_vec()], "TLS")] {
        let mut config = (*config).clone();
        config.alpn_protocols = protocols;
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .expect("there");
        let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
        let _ = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await;
        let error = seen.recv().await.expect("seen").error.expect("refused");
        assert!(error.contains(what), "{error}");
    }
}

#[tokio::test]
async fn what_a_client_proved_logs_in_to_the_server_without_the_password() {
    let cluster = PostgresCluster::builder()
        .hba("host all by_md5 127.0.0.1/32 md5")
        .hba("host all app 127.0.0.1/32 scram-sha-256")
        .start()
        .expect("PostgreSQL starts");
    let users = "CREATE USER app PASSWORD 'geheim'; SET password_encryption = md5; CREATE USER by_md5 PASSWORD 'geheim'";
    cluster.psql("postgres", users).expect("users");
    let secret = |user: &str| {
        let question = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{user}'");
        let text = cluster.psql("postgres", &question).expect("answered");
        (StoredSecret::parse(&text).expect("a secret"), text)
    };
    let door = Door {
        proof: Proof::Scram,
        secret: Some(secret("app").0),
        tls: None,
    };
    let (port, mut seen) = serve(door).await;
    let url = format!("postgres://app:geheim@127.0.0.1:{port}/d");
    PgConnection::connect(&PgTarget::from_url(&url).expect("a URL"))
        .await
        .expect("in");
    let granted = seen.recv().await.expect("seen").granted.expect("granted");

    let mut target = PgTarget::from_url(&cluster.url("app", "postgres")).expect("a URL");
    target.credential = Credential::Scram(Box::new(granted.keys.expect("keys")));
    PgConnection::connect(&target)
        .await
        .expect("in by the keys");
    // A new password has a new secret, which these keys do not open.
    cluster
        .psql("postgres", "ALTER USER app PASSWORD 'geheim'")
        .expect("altered");
    let error = PgConnection::connect(&target).await.expect_err("stale");
    assert!(matches!(error, HeliosError::Unsupported(_)), "{error:?}");

    let mut target = PgTarget::from_url(&cluster.url("by_md5", "postgres")).expect("a URL");
    target.credential = Credential::Md5(secret("by_md5").1);
    PgConnection::connect(&target)
        .await
        .expect("in by the hash");
}
