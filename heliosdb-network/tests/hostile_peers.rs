//! A peer that breaks the protocol, over real sockets: it is told why where that is possible, the other end has an error
//! that says what kind it is, and nothing more happens on that connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use heliosdb_network::client::Push;
use heliosdb_network::postgres::ErrorFields;
use heliosdb_network::protocol::{
    self, Answer, Facts, Frame, Hello, HidbMessage, Invalidated, LOGIN_FRAME_MAX, Login, Query,
    Welcome,
};
use heliosdb_network::scram::{ScramExchange, ScramSecret};
use heliosdb_network::server::{Auth, Door, Encryption, Secrets};
use heliosdb_network::{HeliosError, HidbClient, HidbTarget, Reply};
use rcgen::CertifiedKey;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);
const HELLO: [u8; Hello::LEN] = *b"HIDB\x01\x01";

fn frame(request: u64, message: HidbMessage) -> Vec<u8> {
    let mut wire = BytesMut::new();
    protocol::encode(&Frame { request, message }, &mut wire).expect("short");
    wire.to_vec()
}

/// A frame of request 0 with any payload, of which any length is said.
fn raw(len: usize, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(len).expect("a length");
    [&len.to_le_bytes()[..], &[0; 8], payload].concat()
}

fn payload(payload: &[u8]) -> Vec<u8> {
    raw(payload.len(), payload)
}

fn sasl(text: impl Into<Bytes>) -> HidbMessage {
    HidbMessage::Sasl(text.into())
}

fn login(scram: &'static [u8]) -> Vec<u8> {
    let login = Login {
        user: "ada".to_owned(),
        scram: Bytes::from_static(scram),
        ..Login::default()
    };
    frame(3, HidbMessage::Login(login))
}

/// An error's kind and what it says.
fn told(error: &HeliosError) -> (&'static str, String) {
    let kind = match error {
        HeliosError::Network(_) => "network",
        HeliosError::Io { .. } => "io",
        HeliosError::Protocol(_) => "protocol",
        HeliosError::Server(_) => "server",
        HeliosError::Unsupported(_) => "unsupported",
        _ => "other",
    };
    (kind, error.to_string())
}

/// What a door makes of a client that sends `bytes` and then nothing more, and what the client gets.
async fn knock(door: &Door, bytes: &[u8]) -> (Result<Login, HeliosError>, Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let client = async {
        let mut stream = TcpStream::connect(addr).await.expect("connected");
        stream.write_all(bytes).await.expect("sent");
        // Which the server may have done before.
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        // What was not read makes the system reset the connection instead of closing it.
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    let server = async {
        let (stream, _) = listener.accept().await.expect("connected");
        // Who is let in is left alone.
        door.admit(stream).await.map(|guest| guest.login)
    };
    let both = async { tokio::join!(server, client) };
    timeout(PATIENCE, both).await.expect("it ends")
}

/// The messages behind the server's greeting.
fn messages(answer: &[u8]) -> Vec<Frame> {
    let Some(frames) = answer.strip_prefix(&HELLO) else {
        assert!(answer.is_empty(), "{}", answer.escape_ascii());
        return Vec::new();
    };
    let mut input = BytesMut::from(frames);
    let read = std::iter::from_fn(|| protocol::decode(&mut input).expect("frames"));
    read.collect()
}

fn trusting() -> Door {
    Door {
        tls: Encryption::Off,
        auth: Auth::Trust,
    }
}

fn asking() -> Door {
    let secret = ScramSecret::from_password("pencil");
    Door {
        tls: Encryption::Off,
        auth: Auth::Scram(Arc::new(Secrets::new([("ada".to_owned(), secret)]))),
    }
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_before_its_login_is_told_and_turned_away() {
    let many = [&[3, 0, 0][..], &[0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0]].concat();
    let query = frame(1, HidbMessage::Query(Query::default()));
    let welcome = frame(1, HidbMessage::Welcome(Welcome::default()));
    let attempts: Vec<(Vec<u8>, &str, &str)> = vec![
        (raw(LOGIN_FRAME_MAX + 1, b""), "protocol", "too long"),
        (raw(u32::MAX as usize, b"x"), "protocol", "too long"),
        (raw(LOGIN_FRAME_MAX, b"x"), "network", "closed"),
        (raw(1, b""), "network", "closed"),
        (vec![0; 11], "network", "closed"),
        (payload(b""), "protocol", "cannot decode"),
        (payload(&[15]), "protocol", "cannot decode"),
        (payload(&[99, 1, 2]), "protocol", "cannot decode"),
        (
            payload(&[0x83, 0, 0, 0, 0, 0]),
            "protocol",
            "unknown number",
        ),
        (payload(&[0xff; 40]), "protocol", "unknown number"),
        (payload(&[0, 0]), "protocol", "longer than its message"),
        (payload(&[3, 1, 0xff, 0, 0, 0]), "protocol", "cannot decode"),
        (payload(&[3, 5, b'a']), "protocol", "cannot decode"),
        (payload(&many), "protocol", "cannot decode"),
        (query, "protocol", "before the login"),
        (welcome, "protocol", "before the login"),
        (frame(1, sasl("r=x")), "protocol", "before the login"),
        (
            frame(1, HidbMessage::Cancel),
            "protocol",
            "before the login",
        ),
        (
            frame(0, HidbMessage::Goodbye("bye".to_owned())),
            "network",
            "closed",
        ),
    ];
    let ping = frame(7, HidbMessage::Ping);
    let pong = Frame {
        request: 7,
        message: HidbMessage::Pong,
    };
    for door in [trusting(), asking()] {
        for (bytes, kind, what) in &attempts {
            // A ping in front is answered whatever comes behind it.
            let (admitted, answer) = knock(&door, &[&HELLO[..], &ping, bytes].concat()).await;
            let (was, said) = told(&admitted.expect_err(what));
            assert!(
                was == *kind && said.contains(what),
                "{was}: {said}, not {kind}: {what}"
            );
            let mut messages = messages(&answer).into_iter();
            assert_eq!(messages.next().as_ref(), Some(&pong), "{what}");
            let told = messages.next().map(|frame| frame.message);
            match told {
                Some(HidbMessage::Goodbye(why)) => {
                    assert_eq!(*kind, "protocol");
                    assert!(why.contains(what), "{why}, not {what}");
                }
                None => assert_eq!(*kind, "network"),
                Some(other) => panic!("{other:?}"),
            }
            assert_eq!(messages.next(), None);
        }
    }
    assert!(
        knock(&trusting(), &[&HELLO[..], &login(b"")].concat())
            .await
            .0
            .is_ok()
    );
}

#[tokio::test]
async fn who_speaks_something_else_is_told_what_is_spoken_here_and_nothing_more() {
    for (bytes, kind, hears) in [
        (&b""[..], "network", false),
        (b"HID", "io", false),
        (b"GET / HTTP/1.1\r\n\r\n", "protocol", true),
        (b"HIDB\x02\x09\x01\0\0\0", "protocol", true),
        (b"HIDB\0\0", "protocol", true),
        (b"\x16\x03\x01\x02\0\x01", "protocol", false),
    ] {
        let (admitted, answer) = knock(&trusting(), bytes).await;
        let (was, said) = told(&admitted.expect_err("a stranger"));
        assert_eq!(was, kind, "{}: {said}", bytes.escape_ascii());
        let expected = if hears { &HELLO[..] } else { b"" };
        assert_eq!(answer, expected, "{}", bytes.escape_ascii());
    }
}

#[tokio::test]
async fn a_client_that_does_not_prove_its_password_is_refused_and_one_that_breaks_the_exchange_is_told()
 {
    let proof = "A".repeat(43) + "=";
    let first = b"n,,n=,r=abc";
    let refused = |bytes: Vec<u8>, sqlstate: &'static str| (bytes, "unsupported", sqlstate);
    let nameless = frame(3, HidbMessage::Login(Login::default()));
    let attempts: Vec<(Vec<u8>, &str, &str)> = vec![
        refused(nameless, "28000"),
        refused(login(b""), "28P01"),
        (
            login(b"p=tls-unique,,n=,r=abc"),
            "protocol",
            "channel binding",
        ),
        (login(b"n,a=other,n=,r=abc"), "protocol", "authorization"),
        (login(b"n,,n=,r="), "protocol", "nonce"),
        (login(b"\xff"), "protocol", "UTF-8"),
        (login(first), "network", "closed"),
        (
            [login(first), frame(3, HidbMessage::Ping)].concat(),
            "protocol",
            "during authentication",
        ),
        (
            [login(first), login(first)].concat(),
            "protocol",
            "during authentication",
        ),
        (
            [login(first), frame(4, sasl("x"))].concat(),
            "protocol",
            "during authentication",
        ),
        (
            [login(first), frame(3, sasl("x"))].concat(),
            "protocol",
            "no proof",
        ),
        (
            [
                login(first),
                frame(3, sasl(format!("c=biws,r=abc,p={proof}"))),
            ]
            .concat(),
            "protocol",
            "nonce",
        ),
        (
            [login(first), raw(LOGIN_FRAME_MAX + 1, b"")].concat(),
            "protocol",
            "too long",
        ),
    ];
    let door = asking();
    for (bytes, kind, what) in attempts {
        let (admitted, answer) = knock(&door, &[&HELLO[..], &bytes].concat()).await;
        let (was, said) = told(&admitted.expect_err(what));
        assert_eq!(was, kind, "{what}: {said}");
        let last = messages(&answer)
            .pop()
            .map(|frame| (frame.request, frame.message));
        match last {
            Some((3, HidbMessage::Failed(body))) => {
                let fields = ErrorFields::parse(body);
                assert_eq!((fields.severity(), fields.sqlstate()), ("FATAL", what));
            }
            Some((0, HidbMessage::Goodbye(why))) => assert!(why.contains(what), "{why}"),
            Some((3, HidbMessage::Sasl(_))) => assert_eq!(kind, "network"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

/// A server's TLS with a certificate that nobody has to trust here.
fn encryption() -> Arc<ServerConfig> {
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key);
    Arc::new(config.expect("they belong together"))
}

#[tokio::test]
async fn where_encryption_is_spoken_garbage_is_no_handshake_and_nothing_gets_by_it() {
    let door = |tls| Door { tls, ..trusting() };
    let required = door(Encryption::Required(encryption()));
    let allowed = door(Encryption::Allowed(encryption()));
    // A record that says it is long, one of another kind, a handshake of nothing, and a greeting in the place of one.
    for bytes in [
        &b"\x16\x03\x01\xff\xff"[..],
        b"\x16\x03\x01\0\x05hello",
        b"\x16\x03\x01\0\0",
        b"\x16HIDB\x01\x01",
    ] {
        for door in [&required, &allowed] {
            let (admitted, answer) = knock(door, bytes).await;
            let (was, said) = told(&admitted.expect_err("no handshake"));
            assert_eq!(was, "io", "{}: {said}", bytes.escape_ascii());
            assert!(!answer.starts_with(b"HIDB"), "{}", answer.escape_ascii());
        }
    }
    let plain = [&HELLO[..], &login(b"")].concat();
    let (admitted, answer) = knock(&required, &plain).await;
    let (was, said) = told(&admitted.expect_err("not encrypted"));
    assert!(was == "unsupported" && said.contains("encrypted"), "{said}");
    let last = messages(&answer).pop().map(|frame| frame.message);
    assert!(matches!(last, Some(HidbMessage::Goodbye(why)) if why == said));
    assert!(knock(&allowed, &plain).await.0.is_ok());
}

/// A server that does with its first client what it is told to. It closes when that is done.
async fn server<F>(serve: impl FnOnce(Peer) -> F + Send + 'static) -> HidbTarget
where
    F: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("connected");
        let input = BytesMut::new();
        serve(Peer { stream, input }).await;
    });
    let mut target = HidbTarget::new("127.0.0.1", port, "ada", "shop");
    target.connect_timeout = PATIENCE;
    target
}

/// A server's end of a connection.
struct Peer {
    stream: TcpStream,
    input: BytesMut,
}

impl Peer {
    async fn greet(&mut self) {
        let mut hello = [0; Hello::LEN];
        self.stream.read_exact(&mut hello).await.expect("greeted");
        self.send(&HELLO).await;
    }

    async fn send(&mut self, bytes: &[u8]) {
        // The client may have gone already.
        let _ = self.stream.write_all(bytes).await;
    }

    async fn receive(&mut self) -> Frame {
        loop {
            if let Some(frame) = protocol::decode(&mut self.input).expect("a frame") {
                return frame;
            }
            let read = self.stream.read_buf(&mut self.input).await;
            assert_ne!(read.expect("still there"), 0, "the client left");
        }
    }

    /// Greets, and answers a login with these bytes.
    async fn meet_login(&mut self, bytes: &[u8]) -> Login {
        self.greet().await;
        let Frame { message, .. } = self.receive().await;
        self.send(bytes).await;
        match message {
            HidbMessage::Login(login) => login,
            other => panic!("{other:?}"),
        }
    }

    /// Reads until the client closes.
    async fn wait_for_the_end(mut self) {
        let _ = self.stream.read_to_end(&mut Vec::new()).await;
    }
}

fn welcome(open_max: u32, frame_max: u32) -> Vec<u8> {
    let welcome = Welcome {
        parameters: Vec::new(),
        open_max,
        frame_max,
        instance: 1,
    };
    frame(0, HidbMessage::Welcome(welcome))
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_during_the_login_lets_nobody_in() {
    let answer = Answer {
        run: Bytes::new(),
        facts: Facts::default(),
    };
    let goodbye = HidbMessage::Goodbye("not today".to_owned());
    let attempts: Vec<(Vec<u8>, &str, &str)> = vec![
        (raw(LOGIN_FRAME_MAX + 1, b""), "protocol", "too long"),
        (raw(u32::MAX as usize, b""), "protocol", "too long"),
        (raw(100, b"x"), "network", "closed"),
        (Vec::new(), "network", "closed"),
        (payload(b""), "protocol", "cannot decode"),
        (payload(&[15]), "protocol", "cannot decode"),
        (payload(&[0x85, 0, 0, 0, 0]), "protocol", "unknown number"),
        (
            payload(&[5, 0xff, 0xff, 0xff, 0xff, 0x0f]),
            "protocol",
            "cannot decode",
        ),
        (
            payload(&[5, 0, 0, 0, 0, 0]),
            "protocol",
            "longer than its message",
        ),
        (
            frame(0, HidbMessage::Answer(answer)),
            "protocol",
            "unexpected",
        ),
        (
            frame(0, HidbMessage::Query(Query::default())),
            "protocol",
            "unexpected",
        ),
        (
            frame(0, HidbMessage::Subscribed(1)),
            "protocol",
            "unexpected",
        ),
        (
            frame(0, sasl("r=x,s=c2FsdA==,i=4096")),
            "protocol",
            "not begun",
        ),
        (frame(0, goodbye), "unsupported", "not today"),
        (
            frame(0, HidbMessage::Failed(Bytes::from_static(b"\xff"))),
            "server",
            "XX000",
        ),
    ];
    for (bytes, kind, what) in attempts {
        let target = server(async move |mut peer| {
            peer.meet_login(&bytes).await;
        });
        let opened = timeout(PATIENCE, HidbClient::open(&target.await))
            .await
            .expect("in time");
        let (was, said) = told(&opened.expect_err(what));
        assert!(
            was == kind && said.contains(what),
            "{was}: {said}, not {kind}: {what}"
        );
    }
    for (greeting, kind) in [
        (&b"HID"[..], "io"),
        (b"HIDB\x02\x09", "protocol"),
        (b"220 ready\r\n", "protocol"),
    ] {
        let target = server(async move |mut peer| peer.send(greeting).await);
        let opened = timeout(PATIENCE, HidbClient::open(&target.await))
            .await
            .expect("in time");
        // One that closes at once may be found out by the write already.
        let (was, said) = told(&opened.expect_err("no HIDB"));
        assert!(was == kind || was == "io", "{said}");
    }
    let target = server(async |mut peer: Peer| {
        peer.greet().await;
        peer.wait_for_the_end().await;
    });
    let mut target = target.await;
    target.connect_timeout = Duration::from_millis(100);
    let (was, said) = told(&HidbClient::open(&target).await.expect_err("no answer"));
    assert!(was == "network" && said.contains("within"), "{said}");
}

/// Who does not know the password can't show that he does, and is not believed without that.
#[tokio::test]
async fn a_server_that_does_not_know_the_password_is_found_out() {
    let challenges: [fn(&str) -> String; 4] = [
        |_| "garbage".to_owned(),
        |_| "r=other,s=c2FsdA==,i=4096".to_owned(),
        |nonce| format!("r={nonce}x,s=?,i=4096"),
        |nonce| format!("r={nonce}x,s=c2FsdA==,i=4000000000"),
    ];
    for challenge in challenges {
        let target = server(async move |mut peer: Peer| {
            let login = peer.meet_login(b"").await;
            let first = String::from_utf8(login.scram.to_vec()).expect("text");
            let nonce = first.rsplit_once("r=").expect("a nonce").1;
            peer.send(&frame(0, sasl(challenge(nonce)))).await;
            peer.wait_for_the_end().await;
        });
        let (was, said) = told(&log_in(target.await).await.expect_err("no SCRAM"));
        assert!(was == "protocol" && said.contains("SCRAM"), "{said}");
    }
    let proofs = [
        (frame(0, sasl("v=AAAA")), "SCRAM"),
        (frame(0, sasl("e=other-error")), "SCRAM"),
        (welcome(1, 1 << 20), "unexpected"),
        (frame(0, HidbMessage::Pong), "unexpected"),
    ];
    for (bytes, what) in proofs {
        let target = server(async move |mut peer: Peer| {
            let login = peer.meet_login(b"").await;
            let secret = ScramSecret::from_password("another");
            let (_, challenge) = ScramExchange::begin(secret, &login.scram).expect("in order");
            peer.send(&frame(0, sasl(challenge))).await;
            assert!(matches!(peer.receive().await.message, HidbMessage::Sasl(_)));
            peer.send(&bytes).await;
            peer.wait_for_the_end().await;
        });
        let (was, said) = told(&log_in(target.await).await.expect_err("no proof"));
        assert!(was == "protocol" && said.contains(what), "{said}");
    }
}

async fn log_in(mut target: HidbTarget) -> Result<HidbClient, HeliosError> {
    target.password = Some("pencil".to_owned());
    timeout(PATIENCE, HidbClient::open(&target))
        .await
        .expect("in time")
}

/// What a client makes of a server that lets it in and answers its first question with these bytes.
async fn ask(
    answer: impl FnOnce(u64) -> Vec<u8> + Send + 'static,
) -> (HidbClient, Result<Reply, HeliosError>) {
    let target = server(async move |mut peer: Peer| {
        peer.meet_login(&welcome(u32::MAX, u32::MAX)).await;
        let Frame { request, .. } = peer.receive().await;
        let bytes = answer(request);
        peer.send(&bytes).await;
        // After half a frame it leaves. After a whole one it is the client that has to.
        if matches!(protocol::peek(&bytes, protocol::FRAME_MAX), Ok(None)) {
            let _ = peer.stream.shutdown().await;
        }
        peer.wait_for_the_end().await;
    });
    let client = HidbClient::open(&target.await).await.expect("let in");
    let reply = timeout(PATIENCE, client.query("select 1"))
        .await
        .expect("in time");
    (client, reply)
}

fn answer(run: &'static [u8]) -> HidbMessage {
    HidbMessage::Answer(Answer {
        run: Bytes::from_static(run),
        facts: Facts::default(),
    })
}

#[tokio::test]
async fn a_server_that_breaks_the_protocol_later_is_not_asked_again() {
    type Bytes2 = Box<dyn FnOnce(u64) -> Vec<u8> + Send>;
    let always = |bytes: Vec<u8>| -> Bytes2 { Box::new(move |_| bytes) };
    let with =
        |message: HidbMessage| -> Bytes2 { Box::new(move |request| frame(request, message)) };
    let elsewhere =
        |message: HidbMessage| -> Bytes2 { Box::new(move |request| frame(request + 1, message)) };
    let attempts: Vec<(Bytes2, &str, &str)> = vec![
        (
            always(raw(protocol::FRAME_MAX + 1, b"")),
            "protocol",
            "too long",
        ),
        (always(raw(u32::MAX as usize, b"")), "protocol", "too long"),
        (always(payload(&[15])), "protocol", "cannot decode"),
        (always(payload(&[0xff; 30])), "protocol", "unknown number"),
        (
            always(payload(&[1, 0])),
            "protocol",
            "longer than its message",
        ),
        (always(raw(100, &[8, 1])), "network", "closed"),
        (always(vec![0; 5]), "network", "closed"),
        (elsewhere(answer(b"")), "protocol", "nobody asked for"),
        (
            elsewhere(HidbMessage::Part(Bytes::new())),
            "protocol",
            "nobody asked for",
        ),
        (
            elsewhere(HidbMessage::Failed(Bytes::new())),
            "protocol",
            "nobody asked for",
        ),
        (elsewhere(HidbMessage::Pong), "protocol", "nobody asked for"),
        (with(HidbMessage::Pong), "protocol", "another kind"),
        (with(HidbMessage::Ping), "protocol", "nobody asked for"),
        (
            with(HidbMessage::Welcome(Welcome::default())),
            "protocol",
            "nobody asked for",
        ),
        (
            with(HidbMessage::Query(Query::default())),
            "protocol",
            "nobody asked for",
        ),
        (with(sasl("r=x")), "protocol", "nobody asked for"),
        (
            with(HidbMessage::Subscribed(1)),
            "protocol",
            "a subscription",
        ),
        (
            with(HidbMessage::Invalidated(Invalidated::default())),
            "protocol",
            "a subscription",
        ),
        (with(answer(b"D\0\0\0\x03")), "protocol", "invalid length"),
        (with(answer(b"D\0\0\0\x09")), "protocol", "invalid length"),
        (with(answer(b"C\0\0")), "protocol", "ends within"),
        (
            with(answer(b"T\0\0\0\x06\0\x01")),
            "protocol",
            "RowDescription",
        ),
        (
            with(HidbMessage::Goodbye("enough".to_owned())),
            "network",
            "enough",
        ),
    ];
    for (bytes, kind, what) in attempts {
        let (client, reply) = ask(bytes).await;
        let (was, said) = told(&reply.expect_err(what));
        assert!(
            was == kind && said.contains(what),
            "{was}: {said}, not {kind}: {what}"
        );
        let ended = async {
            while client.is_usable() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, ended).await.expect("unusable");
        let again = timeout(PATIENCE, client.query("select 2"))
            .await
            .expect("in time");
        assert!(matches!(again, Err(HeliosError::Network(_))), "{what}");
        assert!(client.subscribe(|_| {}).is_err(), "{what}");
        assert!(!client.health_check().await, "{what}");
    }
}

#[tokio::test]
async fn rows_that_are_none_are_errors_where_they_are_read() {
    let run = b"T\0\0\0\x1a\0\x01a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0\
                D\0\0\0\x06\xff\xffD\0\0\0\x0b\0\x01\0\0\0\x01\xffC\0\0\0\x08SAY\0";
    let (_client, reply) = ask(|request| frame(request, answer(run))).await;
    let reply = reply.expect("whole messages");
    assert_eq!((reply.len(), reply.tag()), (2, "SAY"));
    let first = reply.row(0).expect("two");
    assert!(matches!(first.values(), Err(HeliosError::Protocol(_))));
    let second = reply.row(1).expect("two");
    assert!(matches!(second.text("a"), Err(HeliosError::Protocol(_))));
    assert_eq!(second.values().expect("one"), [Some(&b"\xff"[..])]);
}

#[tokio::test]
async fn who_subscribed_is_told_that_the_server_broke_off() {
    let target = server(async |mut peer: Peer| {
        peer.meet_login(&welcome(8, 1 << 20)).await;
        let Frame { request, .. } = peer.receive().await;
        peer.send(&frame(request, HidbMessage::Subscribed(7))).await;
        peer.send(&payload(&[14, 0, 0xff, 0xff, 0xff, 0xff, 0x0f]))
            .await;
        peer.wait_for_the_end().await;
    });
    let client = HidbClient::open(&target.await).await.expect("let in");
    let ended = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&ended);
    client
        .subscribe(move |push| {
            if matches!(push, Push::Ended) {
                seen.store(true, Ordering::SeqCst);
            }
        })
        .expect("sent");
    let over = async {
        while !ended.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, over).await.expect("told");
    assert!(!client.is_usable());
}

/// A server that asks and does not read what is answered.
#[tokio::test]
async fn pings_that_nobody_hears_the_answers_of_end_the_connection() {
    let target = server(async |mut peer: Peer| {
        peer.meet_login(&welcome(8, 1 << 20)).await;
        let pings = frame(u64::MAX, HidbMessage::Ping).repeat(1000);
        while peer.stream.write_all(&pings).await.is_ok() {}
    });
    let client = HidbClient::open(&target.await).await.expect("let in");
    let ended = async {
        while client.is_usable() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(3 * PATIENCE, ended).await.expect("unusable");
    let (_, said) = told(&client.query("select 1").await.expect_err("unusable"));
    assert!(said.contains("pings"), "{said}");
}

#[tokio::test]
async fn a_client_sends_no_more_than_its_server_takes() {
    let target = server(async |mut peer: Peer| {
        peer.meet_login(&welcome(8, 100)).await;
        let Frame { request, message } = peer.receive().await;
        assert!(matches!(message, HidbMessage::Query(query) if query.text == "short"));
        peer.send(&frame(request, answer(b"C\0\0\0\x08SAY\0")))
            .await;
        peer.wait_for_the_end().await;
    });
    let client = HidbClient::open(&target.await).await.expect("let in");
    let (was, said) = told(&client.query("x".repeat(93)).await.expect_err("too long"));
    assert!(was == "protocol" && said.contains("101 bytes"), "{said}");
    assert_eq!(client.query("short").await.expect("answered").tag(), "SAY");
}
