//! HIDB end to end: what the PostgreSQL port answers, it answers too, many requests at a time.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use heliosdb_network::client::Push;
use heliosdb_network::protocol::{AnswerSource, CacheUse, Frame, Hello, HidbMessage, Login, Query};
use heliosdb_network::{HeliosError, HidbClient, HidbTarget, Reply, Statement, protocol};
use heliosdb_testkit::PostgresCluster;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{Stack, raw};

const SECOND: Duration = Duration::from_secs(1);

fn target(stack: &Stack) -> HidbTarget {
    let url = format!(
        "hidb://postgres@127.0.0.1:{}/postgres",
        stack.helios.hidb_port
    );
    HidbTarget::from_url(&url).expect("a URL")
}

async fn open(stack: &Stack) -> HidbClient {
    HidbClient::open(&target(stack)).await.expect("let in")
}

async fn ask(client: &HidbClient, text: &str) -> Reply {
    client.query(text).await.expect(text)
}

fn sqlstate(answer: Result<Reply, HeliosError>) -> String {
    match answer {
        Err(HeliosError::Server(fields)) => fields.sqlstate().to_owned(),
        other => panic!("{other:?}"),
    }
}

async fn setup(client: &HidbClient) {
    ask(client, "create table t (id int primary key, v text)").await;
    ask(
        client,
        "insert into t select n, 'v' || n from generate_series(1, 100) n",
    )
    .await;
}

#[tokio::test]
async fn a_read_is_asked_once_and_answered_from_memory_until_it_is_written() {
    let stack = Stack::start();
    let client = open(&stack).await;
    let told = &client.welcome().expect("logged in").parameters;
    let reported = told.iter().find(|(name, _)| name == "server_version");
    let version = ask(&client, "show server_version").await;
    let version = version.row(0).expect("a row").text(0).expect("there");
    assert_eq!(reported.map(|(_, value)| &**value), version);
    setup(&client).await;
    let read = || Statement::new("select v, id from t where id = $1").bind(7);
    let first = client.query(read()).await.expect("answered");
    assert_eq!(first.tag(), "SELECT 1");
    let row = first.row(0).expect("a row");
    assert_eq!(row.text("v").expect("there"), Some("v7"));
    assert_eq!(row.get::<i32>("id").expect("there"), Some(7));
    assert_eq!(first.facts().source, AnswerSource::Miss);
    let second = client.query(read()).await.expect("answered");
    assert_eq!(second.facts().source, AnswerSource::Hit);
    assert_eq!(first.bytes(), second.bytes());
    // A client of PostgreSQL's protocol writes.
    let writer = stack.client().await;
    writer
        .execute("update t set v = 'new' where id = 7", &[])
        .await
        .expect("written");
    let third = client.query(read()).await.expect("answered");
    assert_eq!(
        third.row(0).expect("a row").text(0).expect("there"),
        Some("new")
    );
    assert_eq!(third.facts().source, AnswerSource::Miss);
    // Other parameters are another question, and other types are too.
    let other = client
        .query(Statement::new(read().text()).bind(8))
        .await
        .expect("answered");
    assert_eq!(
        other.row(0).expect("a row").text(0).expect("there"),
        Some("v8")
    );
}

#[tokio::test]
async fn both_protocols_are_answered_from_the_same_memory() {
    let stack = Stack::start();
    let client = open(&stack).await;
    setup(&client).await;
    ask(&client, "select v from t where id = 1").await;
    // The same question in PostgreSQL's protocol.
    let before = stack.helios.cache_count("hits").await;
    let mut wire = stack.wire();
    let messages = [
        raw::parse("", "select v from t where id = 1"),
        raw::bind("", ""),
        raw::describe('P', ""),
        raw::execute("", 0),
        raw::message(b'S', b""),
    ];
    let reply = tokio::task::spawn_blocking(move || wire.ask(&messages));
    assert!(reply.await.expect("answered").contains("v1"));
    assert_eq!(stack.helios.cache_count("hits").await, before + 1);
}

#[tokio::test]
async fn values_of_every_form_come_and_go() {
    let stack = Stack::start();
    let client = open(&stack).await;
    let statement =
        Statement::new("select $1::int8 + 1, $2::text, $3::text is null, $4::bool, $5::float8")
            .bind(i64::MAX - 1)
            .bind("o'neil \u{1f980}")
            .bind(None::<&str>)
            .bind(true)
            .bind(0.5);
    let reply = client.query(statement).await.expect("answered");
    let row = reply.row(0).expect("a row");
    assert_eq!(row.get::<i64>(0).expect("there"), Some(i64::MAX));
    assert_eq!(row.text(1).expect("there"), Some("o'neil \u{1f980}"));
    assert_eq!(row.text(2).expect("there"), Some("t"));
    assert_eq!(row.text(3).expect("there"), Some("t"));
    assert_eq!(row.get::<f64>(4).expect("there"), Some(0.5));
    let bytes = Statement::new("select $1, 7::int4")
        .bind(&b"\0\xff"[..])
        .with_binary_results();
    let reply = client.query(bytes).await.expect("answered");
    let values = reply.row(0).expect("a row").values().expect("well formed");
    assert_eq!(values, [Some(&b"\0\xff"[..]), Some(&[0, 0, 0, 7][..])]);
    assert_eq!(reply.columns()[0].type_oid, 17);
    // Nothing to show, nothing to say.
    assert!(ask(&client, "").await.is_empty());
    assert_eq!(
        ask(&client, "create table none ()").await.tag(),
        "CREATE TABLE"
    );
}

#[tokio::test]
async fn errors_are_postgresqls_and_end_nothing_but_their_request() {
    let stack = Stack::start();
    let client = open(&stack).await;
    let zero = Statement::new("select 'a\0b'");
    let many = Statement::new("select $1::int").bind(1).bind(2);
    let (division, syntax, absent, several, zero, many, copy, begin) = tokio::join!(
        client.query("select 1 / 0"),
        client.query("selekt"),
        client.query("select * from absent"),
        client.query("select 1; select 2"),
        client.query(zero),
        client.query(many),
        client.query("copy (select 1) to stdout"),
        client.query("begin"),
    );
    let codes = [division, syntax, absent, several, zero, many, copy, begin].map(sqlstate);
    assert_eq!(
        codes,
        [
            "22012", "42601", "42P01", "42601", "22021", "08P01", "0A000", "25000"
        ]
    );
    ask(&client, "create table c (i int)").await;
    assert_eq!(sqlstate(client.query("copy c from stdin").await), "0A000");
    assert_eq!(
        ask(&client, "select count(*) from c")
            .await
            .row(0)
            .expect("a row")
            .text(0)
            .expect("there"),
        Some("0")
    );
    assert!(client.health_check().await);
    // What is left of all this at the server is no open transaction.
    let idle = ask(
        &client,
        "select count(*) from pg_stat_activity where state like 'idle in transaction%'",
    )
    .await;
    assert_eq!(
        idle.row(0).expect("a row").text(0).expect("there"),
        Some("0")
    );
}

#[tokio::test]
async fn a_slow_statement_holds_up_nobody_and_can_be_cancelled() {
    let stack = Stack::start();
    let client = Arc::new(open(&stack).await);
    let slow = tokio::spawn({
        let client = Arc::clone(&client);
        async move { client.query("select pg_sleep(600)").await }
    });
    let sleeping = "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'";
    let uncached = || Statement::new(sleeping).with_cache(CacheUse::Bypass);
    let count = async |wanted: &str| {
        let waiting = async {
            loop {
                let reply = client.query(uncached()).await.expect("answered");
                if reply.row(0).expect("a row").text(0).expect("there") == Some(wanted) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(20 * SECOND, waiting).await.expect("in time");
    };
    count("1").await;
    // Given up here, it is stopped there, and the connection goes on.
    slow.abort();
    count("0").await;
    assert!(client.is_usable() && client.health_check().await);
    // In a session it can be cancelled too, and the session goes on.
    let slow = timeout(
        SECOND,
        client.query(Statement::new("select pg_sleep(600)").in_session(5)),
    );
    assert!(slow.await.is_err());
    let next = timeout(
        20 * SECOND,
        client.query(Statement::new("select 1").in_session(5)),
    );
    next.await.expect("in time").expect("answered");
}

#[tokio::test]
async fn sessions_keep_what_is_theirs_and_lose_it_when_they_are_closed() {
    let stack = Stack::start();
    let client = open(&stack).await;
    setup(&client).await;
    let in_session = |session, text: &str| client.query(Statement::new(text).in_session(session));
    let status = |reply: Result<Reply, HeliosError>| reply.expect("answered").facts().status;
    assert_eq!(status(in_session(1, "begin").await), b'T');
    assert_eq!(
        status(in_session(1, "update t set v = 'mine' where id = 1").await),
        b'T'
    );
    let own = in_session(1, "select v from t where id = 1")
        .await
        .expect("answered");
    assert_eq!(
        own.row(0).expect("a row").text(0).expect("there"),
        Some("mine")
    );
    let others = ask(&client, "select v from t where id = 1").await;
    assert_eq!(
        others.row(0).expect("a row").text(0).expect("there"),
        Some("v1")
    );
    client.close_session(1).expect("told");
    // Its number is free again, and its transaction was rolled back.
    let again = timeout(20 * SECOND, async {
        loop {
            match in_session(1, "select v from t where id = 1").await {
                Ok(reply) => return reply,
                Err(HeliosError::Server(fields)) if fields.sqlstate() == "53400" => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    let again = again.await.expect("in time");
    assert_eq!(
        again.row(0).expect("a row").text(0).expect("there"),
        Some("v1")
    );
    // In order, though all are asked at once.
    let asked: Vec<_> = (0..50)
        .map(|n| {
            in_session(
                2,
                if n == 0 {
                    "create temp table own (n serial)"
                } else {
                    "insert into own default values returning n"
                },
            )
        })
        .collect();
    let replies = futures_util::future::join_all(asked).await;
    for (n, reply) in replies.into_iter().enumerate().skip(1) {
        let reply = reply.expect("answered");
        assert_eq!(
            reply
                .row(0)
                .expect("a row")
                .get::<usize>(0)
                .expect("a number"),
            Some(n)
        );
    }
    // Settings are the session's, and no request without one sees them.
    in_session(3, "set search_path = pg_catalog")
        .await
        .expect("set");
    assert_eq!(
        sqlstate(in_session(3, "select v from t where id = 1").await),
        "42P01"
    );
    ask(&client, "set search_path = pg_catalog").await;
    for _ in 0..5 {
        ask(&client, "select v from t where id = 2").await;
    }
}

#[tokio::test]
async fn a_thousand_requests_share_a_connection_and_keep_their_answers() {
    let stack = Stack::start();
    let client = open(&stack).await;
    setup(&client).await;
    let asked: Vec<_> = (0..1000)
        .map(|n| {
            let id = n % 100 + 1;
            let client = &client;
            async move {
                let statement = Statement::new("select id, v from t where id = $1").bind(id);
                let reply = client.query(statement).await.expect("answered");
                let row = reply.row(0).expect("a row");
                assert_eq!(row.get::<i32>(0).expect("there"), Some(id));
                assert_eq!(row.text(1).expect("there"), Some(&*format!("v{id}")));
            }
        })
        .collect();
    futures_util::future::join_all(asked).await;
    // The pool was not outgrown.
    let servers = stack.direct().await;
    let count = servers
        .query_one(
            "select count(*) from pg_stat_activity where backend_type = 'client backend'",
            &[],
        )
        .await
        .expect("counted");
    assert!(count.get::<_, i64>(0) <= 21, "{count:?}");
}

#[tokio::test]
async fn long_answers_come_in_pieces_and_are_bounded() {
    let stack = Stack::start();
    let client = open(&stack).await;
    let long = "select n, repeat('x', 1000) from generate_series(1, 5000) n";
    for _ in 0..2 {
        let reply = ask(&client, long).await;
        assert_eq!(reply.len(), 5000);
        let last = reply.row(4999).expect("a row");
        assert_eq!(last.get::<u32>(0).expect("there"), Some(5000));
    }
    // A single value of eight megabytes.
    let wide = ask(&client, "select repeat('x', 8 << 20)").await;
    assert_eq!(
        wide.row(0)
            .expect("a row")
            .text(0)
            .expect("there")
            .map(str::len),
        Some(8 << 20)
    );
    // One that no frame can hold.
    let too_wide = client.query("select repeat('x', 20 << 20)").await;
    assert_eq!(sqlstate(too_wide), "54000");
    let in_session = Statement::new("select repeat('x', 200 << 20)").in_session(1);
    assert_eq!(sqlstate(client.query(in_session).await), "54000");
    ask(&client, "select 1").await;
    let mut target = target(&stack);
    target.answer_max = 1 << 20;
    let bounded = HidbClient::open(&target).await.expect("let in");
    let error = bounded.query(long).await.expect_err("too long");
    assert!(
        matches!(error, HeliosError::TooLarge { limit } if limit == 1 << 20),
        "{error}"
    );
    ask(&bounded, "select 1").await;
}

#[tokio::test]
async fn cache_directives_are_followed() {
    let stack = Stack::start();
    let client = open(&stack).await;
    setup(&client).await;
    let read = || Statement::new("select v from t where id = 1");
    assert_eq!(
        sqlstate(client.query(read().with_cache(CacheUse::Only)).await),
        "ZC001"
    );
    let source = async |statement| {
        client
            .query(statement)
            .await
            .expect("answered")
            .facts()
            .source
    };
    assert_eq!(
        source(read().with_cache(CacheUse::Bypass)).await,
        AnswerSource::Server
    );
    assert_eq!(
        sqlstate(client.query(read().with_cache(CacheUse::Only)).await),
        "ZC001"
    );
    assert_eq!(source(read()).await, AnswerSource::Miss);
    assert_eq!(
        source(read().with_cache(CacheUse::Only)).await,
        AnswerSource::Hit
    );
    assert_eq!(
        source(read().with_cache(CacheUse::Bypass)).await,
        AnswerSource::Server
    );
    assert_eq!(
        source(read().with_max_age(600 * SECOND)).await,
        AnswerSource::Hit
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    let aged = client.query(read()).await.expect("answered");
    assert!(aged.facts().age_ms >= 30, "{:?}", aged.facts());
    // One that is too old is asked for anew, and the new one is kept.
    for session in [0, 2] {
        let asked = Instant::now();
        let young = read()
            .with_max_age(Duration::from_millis(20))
            .in_session(session);
        assert_eq!(source(young).await, AnswerSource::Miss);
        let fresh = client.query(read()).await.expect("answered");
        let facts = fresh.facts();
        assert_eq!(facts.source, AnswerSource::Hit);
        // Ages go in steps of ten milliseconds.
        assert!(
            u128::from(facts.age_ms) <= asked.elapsed().as_millis() + 20,
            "{facts:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A session is answered from the same memory, and not from memory where it asks for the server.
    let in_session = read().in_session(1);
    let aged = client.query(in_session.clone()).await.expect("answered");
    assert_eq!(aged.facts().source, AnswerSource::Hit);
    assert!(aged.facts().age_ms >= 30, "{:?}", aged.facts());
    let bypass = in_session.clone().with_cache(CacheUse::Bypass);
    assert_eq!(source(bypass).await, AnswerSource::Server);
    let write = Statement::new("update t set v = 'x' where id = 1").in_session(1);
    assert_eq!(source(write).await, AnswerSource::Server);
    assert_eq!(source(in_session.clone()).await, AnswerSource::Miss);
    assert_eq!(source(in_session).await, AnswerSource::Hit);
}

#[tokio::test]
async fn what_waits_on_a_connection_is_bounded() {
    let stack = Stack::start();
    let client = open(&stack).await;
    // Behind a slow statement, four more of 15 MiB may wait in its session, and no fifth.
    let long = |text: &str| {
        let padding = " ".repeat(15 << 20);
        Statement::new(format!("{text}{padding}")).in_session(1)
    };
    let slow = client.query(Statement::new("select pg_sleep(60)").in_session(1));
    let rest = async {
        let waiting = (0..4).map(|_| client.query(long("select 1")));
        let waiting = futures_util::future::join_all(waiting);
        let refused = async {
            // Frames are read in the order in which they are sent.
            tokio::task::yield_now().await;
            sqlstate(client.query(long("select 2")).await)
        };
        let mut waiting = std::pin::pin!(waiting);
        tokio::select! {
            refused = refused => assert_eq!(refused, "53400"),
            answers = &mut waiting => panic!("{answers:?}"),
        }
        // The connection serves others, and what waits is not lost.
        ask(&client, "select 3").await;
        let sleeping = "select pid from pg_stat_activity where query = 'select pg_sleep(60)' and state = 'active'";
        let pid = ask(&client, sleeping).await;
        let pid: i32 = pid
            .row(0)
            .expect("it sleeps")
            .get(0)
            .expect("a number")
            .expect("not null");
        ask(&client, &format!("select pg_cancel_backend({pid})")).await;
        for answer in waiting.await {
            answer.expect("answered");
        }
    };
    let (slow, ()) = tokio::join!(slow, rest);
    assert_eq!(sqlstate(slow), "57014");
}

#[tokio::test]
async fn changes_are_told_before_the_answers_that_show_them() {
    let stack = Stack::start();
    let client = Arc::new(open(&stack).await);
    setup(&client).await;
    let position = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&position);
    client
        .subscribe(move |push| match push {
            Push::Began(at) => told.store(at, Ordering::SeqCst),
            Push::Invalidated(invalidated) => {
                assert!(!invalidated.slots.is_empty());
                told.store(invalidated.position, Ordering::SeqCst);
            }
            _ => {}
        })
        .expect("asked");
    assert!(client.health_check().await);
    let began = position.load(Ordering::SeqCst);
    let write = ask(&client, "update t set v = 'x' where id = 1").await;
    // When the acknowledgement is here, so is what it changed.
    assert!(write.facts().position > began);
    assert!(position.load(Ordering::SeqCst) >= write.facts().position);
    // What others write is behind the next pong.
    let other = stack.client().await;
    let before = position.load(Ordering::SeqCst);
    other
        .execute("update t set v = 'y' where id = 1", &[])
        .await
        .expect("written");
    assert!(client.health_check().await);
    assert!(position.load(Ordering::SeqCst) > before);
}

#[tokio::test]
async fn logins_prove_the_password_and_the_server_proves_that_it_knows_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let users = folder.path().join("users.txt");
    std::fs::write(&users, "\"postgres\" \"sesame\"\n").expect("written");
    let config = format!(
        "[hidb]\nauth = \"scram-sha-256\"\nauth_file = \"{}\"\n",
        users.display()
    );
    let stack = Stack::start_with(PostgresCluster::builder(), &config);
    let log_in = async |user: &str, password: Option<&str>| {
        let mut target = target(&stack);
        user.clone_into(&mut target.user);
        target.password = password.map(str::to_owned);
        HidbClient::open(&target).await
    };
    let client = log_in("postgres", Some("sesame")).await.expect("let in");
    ask(&client, "select 1").await;
    // Who insists on the server's proof gets it here, and takes no server that gives none.
    let mut insisting = target(&stack);
    (insisting.password, insisting.require_scram) = (Some("sesame".to_owned()), true);
    HidbClient::open(&insisting).await.expect("proved");
    let trusting = Stack::start();
    insisting.port = trusting.helios.hidb_port;
    match HidbClient::open(&insisting).await {
        Err(HeliosError::Unsupported(why)) => assert!(why.contains("proved nothing"), "{why}"),
        other => panic!("{other:?}"),
    }
    for (user, password) in [
        ("postgres", Some("Sesame")),
        ("postgres", Some("")),
        ("postgres", None),
        ("nobody", Some("sesame")),
        ("nobody", None),
    ] {
        match log_in(user, password).await {
            Err(HeliosError::Server(fields)) => {
                assert_eq!(fields.sqlstate(), "28P01", "{user} {password:?}");
                assert!(fields.message().contains(user));
            }
            other => panic!("{user} {password:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn connections_are_encrypted_where_they_have_to_be() {
    let folder = tempfile::tempdir().expect("a folder");
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        let mut file = std::fs::File::create(&path).expect("made");
        file.write_all(text.as_bytes()).expect("written");
        path.display().to_string()
    };
    let chain = write("chain.pem", cert.pem());
    let key = write("key.pem", signing_key.serialize_pem());
    let config =
        format!("[hidb]\ntls = \"require\"\ntls_certificate = \"{chain}\"\ntls_key = \"{key}\"\n");
    let stack = Stack::start_with(PostgresCluster::builder(), &config);
    let port = stack.helios.hidb_port;
    let url = |host: &str| format!("hidb://postgres@{host}:{port}/postgres?tls_ca={chain}");
    let target = HidbTarget::from_url(&url("localhost")).expect("a URL");
    let client = HidbClient::open(&target).await.expect("let in");
    let long = ask(&client, "select repeat('x', 1 << 20)").await;
    assert_eq!(long.len(), 1);
    let many: Vec<_> = (0..200).map(|_| client.query("select 1")).collect();
    for reply in futures_util::future::join_all(many).await {
        reply.expect("answered");
    }
    // Under a name that the certificate is not for.
    let wrong = HidbTarget::from_url(&url("127.0.0.1")).expect("a URL");
    assert!(matches!(
        HidbClient::open(&wrong).await,
        Err(HeliosError::Io { .. })
    ));
    // Without.
    let plain = HidbTarget::from_url(&format!("hidb://postgres@localhost:{port}/postgres"));
    let refused = HidbClient::open(&plain.expect("a URL"))
        .await
        .expect_err("turned away");
    assert!(refused.to_string().contains("encrypted"), "{refused}");
}

/// What a client can do wrong, byte by byte. Helios says why it ends the connection, or just ends it, and goes on serving.
#[tokio::test]
async fn a_client_that_breaks_the_protocol_is_told_and_nobody_else_is_hurt() {
    let stack = Stack::start();
    let frame = |request, message| {
        let mut out = bytes::BytesMut::new();
        protocol::encode(&Frame { request, message }, &mut out).expect("short");
        out.to_vec()
    };
    let login = || {
        let login = Login {
            user: "postgres".to_owned(),
            ..Login::default()
        };
        [
            &Hello::OURS.encode()[..],
            &frame(0, HidbMessage::Login(login)),
        ]
        .concat()
    };
    let slow = Query {
        text: "select pg_sleep(0.2)".to_owned(),
        ..Query::default()
    };
    let slow = || frame(9, HidbMessage::Query(slow.clone()));
    let attempts: Vec<(&str, Vec<u8>, &str)> = vec![
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec(), ""),
        (
            "TLS where there is none",
            b"\x16\x03\x01\x02\0".to_vec(),
            "",
        ),
        ("another version", b"HIDB\x07\x09".to_vec(), ""),
        (
            "a long frame before the login",
            [&b"HIDB\x01\x01"[..], &(1_u32 << 20).to_le_bytes(), &[0; 8]].concat(),
            "too long",
        ),
        (
            "a statement before the login",
            [&b"HIDB\x01\x01"[..], &slow()].concat(),
            "before the login",
        ),
        (
            "no name",
            [
                &b"HIDB\x01\x01"[..],
                &frame(0, HidbMessage::Login(Login::default())),
            ]
            .concat(),
            "28000",
        ),
        (
            "a frame beyond the limit",
            [&login()[..], &[0xff; 12]].concat(),
            "too long",
        ),
        (
            "an unknown message",
            [&login()[..], &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 99]].concat(),
            "decode",
        ),
        (
            "something behind a message",
            [&login()[..], &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat(),
            "longer",
        ),
        (
            "a message of the server's",
            [&login()[..], &frame(0, HidbMessage::Subscribed(1))].concat(),
            "does not send",
        ),
        (
            "a number twice",
            [login(), slow(), slow()].concat(),
            "open already",
        ),
        (
            "a second login",
            [login(), login()[6..].to_vec()].concat(),
            "does not send",
        ),
    ];
    for (what, bytes, reason) in attempts {
        let mut stream = TcpStream::connect(("127.0.0.1", stack.helios.hidb_port))
            .await
            .expect("connected");
        let mut answer = Vec::new();
        let exchange = async {
            stream.write_all(&bytes).await?;
            stream.read_to_end(&mut answer).await
        };
        let _ = timeout(20 * SECOND, exchange).await.expect(what);
        let text = String::from_utf8_lossy(&answer);
        assert!(text.contains(reason), "{what}: {text}");
    }
    // Cut off anywhere, it is gone.
    let whole = [login(), slow()].concat();
    for cut in (0..whole.len()).step_by(3) {
        let mut stream = TcpStream::connect(("127.0.0.1", stack.helios.hidb_port))
            .await
            .expect("connected");
        stream.write_all(&whole[..cut]).await.expect("sent");
    }
    let client = open(&stack).await;
    ask(&client, "select 1").await;
}

#[tokio::test]
async fn a_stop_lets_what_is_open_end_and_takes_nothing_new() {
    let mut stack = Stack::start();
    let client = Arc::new(open(&stack).await);
    setup(&client).await;
    let write = tokio::spawn({
        let client = Arc::clone(&client);
        async move {
            client
                .query("update t set v = 'late' where id = 1 and pg_sleep(1) is not null")
                .await
        }
    });
    let in_session = |text: &str| Statement::new(text).in_session(7);
    client.query(in_session("begin")).await.expect("begun");
    let update = in_session("update t set v = 'open' where id = 2");
    client.query(update).await.expect("written");
    tokio::time::sleep(Duration::from_millis(300)).await;
    stack.helios.signal("TERM");
    let written = timeout(20 * SECOND, write)
        .await
        .expect("in time")
        .expect("no panic");
    assert_eq!(written.expect("acknowledged").tag(), "UPDATE 1");
    let refused = client.query("select 1").await.expect_err("stopping");
    let is_told = match &refused {
        HeliosError::Server(fields) => fields.sqlstate() == "57P01",
        error => error.to_string().contains("shutting down"),
    };
    assert!(is_told, "{refused}");
    // A transaction that is open can be ended, and is waited for.
    let more = in_session("update t set v = v || '!' where id = 2");
    client.query(more).await.expect("written");
    client.query(in_session("commit")).await.expect("committed");
    assert!(stack.helios.wait(20 * SECOND).expect("ended").success());
    let row = stack
        .direct()
        .await
        .query_one("select v from t where id = 1", &[])
        .await;
    assert_eq!(row.expect("read").get::<_, &str>(0), "late");
    let row = stack
        .direct()
        .await
        .query_one("select v from t where id = 2", &[])
        .await;
    assert_eq!(row.expect("read").get::<_, &str>(0), "open!");
}

/// A request that is given up is cancelled, and nothing else is, however close they follow each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_stops_no_other_request() {
    let stack = Stack::start();
    let client = open(&stack).await;
    let nap = |ms: u64, session| {
        let seconds = Duration::from_millis(ms).as_secs_f64();
        Statement::new(format!("select pg_sleep({seconds})")).in_session(session)
    };
    let patience = || Duration::from_micros(fastrand::u64(500..4000));
    for round in 0..100 {
        let _ = timeout(patience(), client.query(nap(1, 0))).await;
        let next = client.query(nap(3, 0)).await;
        assert!(next.is_ok(), "round {round}: {next:?}");
    }
    // In a transaction the server connection is the same for both. A statement that is stopped fails its transaction.
    let in_session = |text: &str| Statement::new(text).in_session(1);
    let (mut stopped, mut done) = (0, 0);
    for round in 0..200 {
        // Short ones end before they can be stopped, long ones are stopped; those in between are what this is about.
        let length = if round % 2 == 0 {
            1
        } else {
            fastrand::u64(1..40)
        };
        client.query(in_session("begin")).await.expect("begun");
        let _ = timeout(patience(), client.query(nap(length, 1))).await;
        match client.query(nap(3, 1)).await {
            Ok(_) => done += 1,
            Err(HeliosError::Server(fields)) if fields.sqlstate() == "25P02" => stopped += 1,
            Err(error) => panic!("round {round}: {error}"),
        }
        client.query(in_session("rollback")).await.expect("over");
    }
    assert!(stopped > 0 && done > 0, "{stopped} stopped, {done} done");
    // It does stop what it is meant for.
    let slow = Statement::new("select pg_sleep(60)").in_session(1);
    assert!(timeout(SECOND / 4, client.query(slow)).await.is_err());
    let next = client.query(Statement::new("select 1").in_session(1));
    timeout(10 * SECOND, next)
        .await
        .expect("it was stopped")
        .expect("answered");
}
