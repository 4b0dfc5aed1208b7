//! Logging in to a real server by every method supported, and being refused by it.

use std::time::Duration;

use heliosdb_network::HeliosError;
use heliosdb_network::postgres::{PgConnection, PgTarget};
use heliosdb_testkit::PostgresCluster;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

/// Users named after the method that they log in by; each has the password `geheim ü`.
fn cluster() -> PostgresCluster {
    let cluster = PostgresCluster::builder()
        .hba("host all by_password 127.0.0.1/32 password")
        .hba("host all by_md5 127.0.0.1/32 md5")
        .hba("host all by_scram 127.0.0.1/32 scram-sha-256")
        .hba("host all nobody 127.0.0.1/32 reject")
        .start()
        .expect("PostgreSQL starts");
    let users = "CREATE USER by_password PASSWORD 'geheim ü'; CREATE USER by_scram PASSWORD 'geheim ü'; \
                 CREATE USER nobody; SET password_encryption = md5; CREATE USER by_md5 PASSWORD 'geheim ü'";
    cluster.psql("postgres", users).expect("users");
    cluster
}

fn target(cluster: &PostgresCluster, user: &str, password: Option<&str>) -> PgTarget {
    let mut target = PgTarget::from_url(&cluster.url(user, "postgres")).expect("a URL");
    target.credential = password.map(str::to_owned).into();
    target
}

async fn refusal(target: &PgTarget) -> HeliosError {
    PgConnection::connect(target).await.expect_err("refused")
}

#[tokio::test]
async fn every_method_supported_logs_in() {
    let cluster = cluster();
    for user in ["by_password", "by_md5", "by_scram", "postgres"] {
        let target = target(&cluster, user, Some("geheim ü"));
        let mut connection = PgConnection::connect(&target).await.expect(user);
        let answer = connection
            .simple_query("SELECT current_user, pg_backend_pid()")
            .await
            .expect(user);
        let expected = [
            Some(user.to_owned()),
            Some(connection.backend_pid().to_string()),
        ];
        assert_eq!(answer[0].rows, [expected]);
        assert_eq!(connection.backend_secret().len(), 4);
        connection.terminate().await;
    }
    let socket = format!(
        "postgres:///postgres?host={}&port={}",
        cluster.socket_dir().display(),
        cluster.port()
    );
    let target = PgTarget::from_url(&socket).expect("a URL");
    let mut connection = PgConnection::connect(&target).await.expect("by the socket");
    let answer = connection
        .simple_query("SELECT inet_client_addr()")
        .await
        .expect("answered");
    assert_eq!(answer[0].rows, [[None]]);
}

#[tokio::test]
async fn a_refusal_is_the_servers_own_and_permanent() {
    let cluster = cluster();
    let mut elsewhere = target(&cluster, "postgres", None);
    elsewhere.database = "no_such_database".to_owned();
    for (target, sqlstate) in [
        (target(&cluster, "by_password", Some("wrong")), "28P01"),
        (target(&cluster, "by_md5", Some("wrong")), "28P01"),
        (target(&cluster, "by_scram", Some("wrong")), "28P01"),
        (target(&cluster, "nobody", None), "28000"),
        (target(&cluster, "no_such_role", None), "28000"),
        (elsewhere, "3D000"),
    ] {
        let error = refusal(&target).await;
        let HeliosError::Server(fields) = &error else {
            panic!("{target}: {error:?}")
        };
        assert_eq!(fields.sqlstate(), sqlstate, "{target}: {fields}");
        assert_eq!(fields.severity(), "FATAL");
        assert!(error.is_permanent());
    }
    for user in ["by_password", "by_md5", "by_scram"] {
        let error = refusal(&target(&cluster, user, None)).await;
        assert!(matches!(error, HeliosError::Unsupported(_)), "{error:?}");
        assert!(error.is_permanent());
    }
}

#[tokio::test]
async fn what_the_target_adds_reaches_the_server() {
    let cluster = PostgresCluster::start().expect("PostgreSQL starts");
    let url = cluster.url("postgres", "postgres")
        + "?application_name=a%20b&options=-c%20search_path%3D%22x%5C%20y%22";
    let mut target = PgTarget::from_url(&url).expect("a URL");
    target.params.push(("work_mem".into(), "7MB".into()));
    let mut connection = PgConnection::connect(&target).await.expect("connected");
    assert_eq!(connection.parameter("Application_Name"), Some("a b"));
    let settings = "SELECT current_setting('search_path'), current_setting('work_mem')";
    let answer = connection.simple_query(settings).await.expect("answered");
    assert_eq!(
        answer[0].rows,
        [["\"x y\"", "7MB"].map(|value| Some(value.to_owned()))]
    );
}

/// Connects to a server that says `reply` and hangs on.
async fn connect_to_impostor(reply: &'static [u8]) -> HeliosError {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut target = PgTarget::from_url(&format!(
        "postgres://u:p@127.0.0.1:{port}/d?sslmode=disable"
    ))
    .expect("a URL");
    target.connect_timeout = Duration::from_millis(500);
    let impostor = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        stream.write_all(reply).await.expect("written");
        // Held open: only the client may end this.
        std::future::pending::<()>().await;
    });
    let error = refusal(&target).await;
    impostor.abort();
    error
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up_on() {
    let error = connect_to_impostor(b"").await;
    assert!(matches!(error, HeliosError::Network(_)), "{error:?}");
    assert!(error.to_string().contains("500ms"), "{error}");
    assert!(!error.is_permanent());
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_is_not_waited_for() {
    for reply in [
        // A session before anybody asked who we are.
        &b"Z\0\0\0\x05I"[..],
        b"K\0\0\0\x0c\0\0\0\x01\0\0\0\x02",
        // Lengths that can't be true, and one that only a server which has let us in may claim.
        b"R\0\0\0\x03",
        b"R\xff\xff\xff\xff",
        b"E\0\x10\0\0",
        // Let in, and then a row, a key that is none, a status that is none.
        b"R\0\0\0\x08\0\0\0\0D\0\0\0\x06\0\0",
        b"R\0\0\0\x08\0\0\0\0K\0\0\0\x06\0\0",
        b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05X",
        b"R\0\0\0\x08\0\0\0\0S\0\0\0\x06ab",
        // SCRAM, begun and not finished.
        b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0R\0\0\0\x08\0\0\0\0",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ] {
        let error = connect_to_impostor(reply).await;
        let reply = reply.escape_ascii();
        assert!(
            matches!(error, HeliosError::Protocol(_)),
            "{reply}: {error:?}"
        );
    }
}

#[tokio::test]
async fn an_error_without_an_sqlstate_is_still_an_error() {
    let error = connect_to_impostor(b"E\0\0\0\x0aMoops\0").await;
    let HeliosError::Server(fields) = error else {
        panic!("{error:?}")
    };
    assert_eq!((fields.sqlstate(), fields.message()), ("XX000", "oops"));
}
