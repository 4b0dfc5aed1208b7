//! A login that is bound to its TLS connection is of no use to whoever is in between.

use std::sync::Arc;

use heliosdb_network::HeliosError;
use heliosdb_network::postgres::{PgConnection, PgTarget};
use heliosdb_network::tls::{ServerTls, ServerTlsOptions};
use heliosdb_testkit::PostgresCluster;
use heliosdb_testkit::certificates::Authority;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

fn cluster(authority: &Authority) -> PostgresCluster {
    let signed = authority.sign(&["localhost"], None);
    let cluster = PostgresCluster::builder()
        .file("server.crt", &signed.certificate)
        .file("server.key", &signed.key)
        .setting("ssl", "on")
        .hba("host all by_scram 127.0.0.1/32 scram-sha-256")
        .hba("host all by_md5 127.0.0.1/32 md5")
        .start()
        .expect("PostgreSQL starts");
    let users = "CREATE USER by_scram PASSWORD 'geheim'; SET password_encryption = md5; \
                 CREATE USER by_md5 PASSWORD 'geheim'";
    cluster.psql("postgres", users).expect("users");
    cluster
}

fn target(port: u16, user: &str, query: &str) -> PgTarget {
    let url = format!("postgres://{user}:geheim@127.0.0.1:{port}/postgres?{query}");
    PgTarget::from_url(&url).expect("a URL")
}

#[tokio::test]
async fn a_real_server_agrees_on_the_binding_and_nothing_else_will_do() {
    let authority = Authority::new("ours");
    let cluster = cluster(&authority);
    for mode in ["disable", "prefer", "require"] {
        let query = format!("sslmode=require&channel_binding={mode}");
        let target = target(cluster.port(), "by_scram", &query);
        PgConnection::connect(&target).await.expect(mode);
    }
    let unencrypted = target(cluster.port(), "by_scram", "sslmode=disable");
    PgConnection::connect(&unencrypted).await.expect("without");
    let query = "sslmode=require&channel_binding=require";
    for user in ["by_md5", "postgres"] {
        let error = PgConnection::connect(&target(cluster.port(), user, query)).await;
        let error = error.expect_err(user);
        assert!(matches!(error, HeliosError::Unsupported(_)), "{error:?}");
    }
}

/// Somebody in between, with a certificate of his own, who passes on everything else.
async fn in_between(to: u16) -> u16 {
    let theirs = Authority::new("theirs");
    let signed = theirs.sign(&["localhost"], None);
    let mut options = ServerTlsOptions::default();
    options.certificate = theirs.file("their.pem", &signed.certificate);
    options.key = theirs.file("their.key", &signed.key);
    let tls = ServerTls::new(&options).expect("usable");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut request = [0; 8];
            near.read_exact(&mut request).await.expect("asked");
            near.write_all(b"S").await.expect("answered");
            let Ok(mut near) = tls.accept(near, false).await else {
                continue;
            };
            let mut far = TcpStream::connect(("127.0.0.1", to)).await.expect("there");
            far.write_all(&request).await.expect("asked");
            far.read_exact(&mut request[..1]).await.expect("answered");
            let trusting = PgTarget::from_url("postgres://h/d?sslmode=require").expect("valid");
            let config = trusting.tls.config().expect("usable");
            let name = ServerName::try_from("localhost").expect("a name");
            let connector = tokio_rustls::TlsConnector::from(Arc::clone(&config));
            let mut far = connector.connect(name, far).await.expect("encrypted");
            let _ = copy_bidirectional(&mut near.stream, &mut far).await;
        }
    });
    port
}

#[tokio::test]
async fn whoever_is_in_between_cannot_pass_a_login_on() {
    let authority = Authority::new("ours");
    let cluster = cluster(&authority);
    let port = in_between(cluster.port()).await;
    for mode in ["prefer", "require"] {
        let query = format!("sslmode=require&channel_binding={mode}");
        let error = PgConnection::connect(&target(port, "by_scram", &query)).await;
        let error = error.expect_err("passed on");
        assert!(matches!(error, HeliosError::Server(_)), "{error:?}");
    }
    // It is the binding that keeps him out.
    let unbound = target(port, "by_scram", "sslmode=require&channel_binding=disable");
    PgConnection::connect(&unbound).await.expect("passed on");
}
