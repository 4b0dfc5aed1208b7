//! A peer that is not well is found out and replaced, over real sockets, and nobody else has to wait for that.

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use heliosdb_network::connection_pool::Lease;
use heliosdb_network::protocol::{self, Frame, Hello};
use heliosdb_network::server::HidbServer;
use heliosdb_network::{
    ConnectionPoolConfig, EnhancedConnectionPool, HeliosError, HidbClient, HidbMessage,
};
use parking_lot::Mutex;
use support::{Act, MS, SECOND, World, acquire_many, assert_counts_agree};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

/// What a server does with a ping.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Answer {
    #[default]
    Pong,
    Never,
    Late(Duration),
    Garbage,
    HalfAFrame,
    /// The pong to something else.
    Another,
    /// A ping in return.
    Ping,
    Close,
}

const UNWELL: [Answer; 7] = [
    Answer::Never,
    Answer::Late(Duration::from_secs(8)),
    Answer::Garbage,
    Answer::HalfAFrame,
    Answer::Another,
    Answer::Ping,
    Answer::Close,
];

/// A server whose connections answer as they are told to, one by one.
#[derive(Debug, Default)]
struct Server {
    /// By connection, counted from 1 as they are accepted; those not named are well.
    answers: Mutex<HashMap<usize, Answer>>,
    accepted: AtomicUsize,
    pings: AtomicUsize,
}

impl Server {
    async fn start() -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound").to_string();
        let server = Arc::new(Self::default());
        let accepting = Arc::clone(&server);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = accepting.accepted.fetch_add(1, Ordering::SeqCst) + 1;
                let server = Arc::clone(&accepting);
                tokio::spawn(async move { server.serve(stream, number).await });
            }
        });
        (server, addr)
    }

    fn tell(&self, connection: usize, answer: Answer) {
        self.answers.lock().insert(connection, answer);
    }

    fn pings(&self) -> usize {
        self.pings.load(Ordering::SeqCst)
    }

    async fn serve(&self, mut stream: TcpStream, number: usize) -> Option<()> {
        let mut hello = [0; Hello::LEN];
        stream.read_exact(&mut hello).await.ok()?;
        stream.write_all(&Hello::OURS.encode()).await.ok()?;
        let mut input = BytesMut::new();
        loop {
            while let Some(Frame { request, .. }) = protocol::decode(&mut input).ok()? {
                self.pings.fetch_add(1, Ordering::SeqCst);
                let answer = self
                    .answers
                    .lock()
                    .get(&number)
                    .copied()
                    .unwrap_or_default();
                stream.write_all(&answer.bytes(request).await).await.ok()?;
                if matches!(answer, Answer::HalfAFrame | Answer::Close) {
                    return None;
                }
            }
            if stream.read_buf(&mut input).await.ok()? == 0 {
                return None;
            }
        }
    }
}

impl Answer {
    async fn bytes(self, request: u64) -> BytesMut {
        let (request, message) = match self {
            Self::Pong | Self::HalfAFrame => (request, HidbMessage::Pong),
            Self::Late(by) => {
                sleep(by).await;
                (request, HidbMessage::Pong)
            }
            Self::Another => (request.wrapping_sub(1), HidbMessage::Pong),
            Self::Ping => (request, HidbMessage::Ping),
            Self::Garbage => return BytesMut::from(&[0x5a; 64][..]),
            Self::Never | Self::Close => return BytesMut::new(),
        };
        let mut out = BytesMut::new();
        protocol::encode(&Frame { request, message }, &mut out).expect("short");
        if self == Self::HalfAFrame {
            out.truncate(7);
        }
        out
    }
}

fn config() -> ConnectionPoolConfig {
    let mut config = support::config(2);
    config.health_check_timeout = 300 * MS;
    config
}

async fn eventually(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            sleep(5 * MS).await;
        }
    };
    timeout(20 * SECOND, waiting).await.expect("in time");
}

#[tokio::test]
async fn a_peer_that_is_well_passes_every_check() {
    let server = HidbServer::bind("127.0.0.1:0").await.expect("a port");
    let addr = server.local_addr().expect("bound").to_string();
    let serving = tokio::spawn(server.serve());
    let client = HidbClient::connect(&addr).await.expect("connected");
    for _ in 0..3 {
        assert!(client.health_check().await);
    }
    client.send_message(HidbMessage::Ping).await.expect("sent");
    assert_eq!(
        client.receive_message().await.expect("answered"),
        HidbMessage::Pong
    );
    assert!(client.health_check().await);
    serving.abort();
    let _ = serving.await;
    eventually_fails(&client).await;
}

/// The server's end of a connection is closed soon after its task is.
async fn eventually_fails(client: &HidbClient) {
    let failing = async { while client.health_check().await {} };
    timeout(20 * SECOND, failing).await.expect("in time");
}

#[tokio::test]
async fn a_peer_that_is_unwell_fails_the_check_for_good() {
    let mut checks = tokio::task::JoinSet::new();
    for answer in UNWELL {
        checks.spawn(async move {
            let (server, addr) = Server::start().await;
            let client = HidbClient::connect(&addr).await.expect("connected");
            assert!(client.health_check().await);
            server.tell(1, answer);
            let began = Instant::now();
            assert!(!client.health_check().await, "{answer:?}");
            assert!(began.elapsed() < 7 * SECOND, "{answer:?}");
            // What comes now may be the answer to the check that failed.
            server.tell(1, Answer::Pong);
            assert!(!client.health_check().await, "{answer:?}");
            let sent = client.send_message(HidbMessage::Ping).await;
            assert!(matches!(sent, Err(HeliosError::Network(_))), "{answer:?}");
            assert!(!client.health_check().await, "{answer:?}");
        });
    }
    checks.join_all().await;
}

#[tokio::test]
async fn a_peer_that_never_greets_or_greets_wrongly_is_no_connection() {
    for greeting in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound").to_string();
        let serving = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(greeting).await.expect("sent");
                open.push(stream);
            }
        });
        let mut config = config();
        config.connect_timeout = 200 * MS;
        let pool = EnhancedConnectionPool::new(addr, config);
        let error = pool.acquire().await.map(drop).expect_err("no HIDB");
        let permanent = error.cause().is_some_and(HeliosError::is_permanent);
        assert_eq!(permanent, !greeting.is_empty(), "{error}");
        serving.abort();
    }
}

#[tokio::test]
async fn an_acquire_replaces_a_connection_that_fails_its_check() {
    for answer in UNWELL {
        let (server, addr) = Server::start().await;
        let mut config = config();
        config.validation_bypass = Duration::ZERO;
        let pool = EnhancedConnectionPool::new(addr, config);
        drop(pool.acquire().await.expect("opened"));
        drop(pool.acquire().await.expect("well"));
        assert_eq!((server.pings(), pool.metrics().created), (1, 1));
        server.tell(1, answer);
        let began = Instant::now();
        let replaced = pool.acquire().await.expect("opened");
        assert!(began.elapsed() < 3 * SECOND, "{answer:?}");
        assert!(replaced.health_check().await, "{answer:?}");
        let metrics = pool.metrics();
        assert_eq!((metrics.created, metrics.unhealthy), (2, 1), "{answer:?}");
    }
}

#[tokio::test]
async fn a_round_replaces_those_that_fail_and_keeps_the_others() {
    let (server, addr) = Server::start().await;
    let mut config = config();
    config.min_idle = 2;
    config.health_check_interval_secs = 1;
    let pool = EnhancedConnectionPool::new(addr, config);
    let leases = [pool.acquire().await, pool.acquire().await];
    drop(leases);
    server.tell(1, Answer::Never);
    eventually(|| pool.metrics().unhealthy == 1).await;
    eventually(|| pool.metrics().idle == 2).await;
    assert_eq!(pool.metrics().created, 3);
    server.tell(1, Answer::Pong);
    let pings = server.pings();
    eventually(|| server.pings() >= pings + 4).await;
    assert_eq!((pool.metrics().created, pool.metrics().unhealthy), (3, 1));
}

#[tokio::test]
async fn a_round_that_hangs_makes_no_acquire_wait_for_another_connection() {
    let (server, addr) = Server::start().await;
    let mut config = config();
    config.health_check_interval_secs = 1;
    config.health_check_timeout = 10 * SECOND;
    let pool = EnhancedConnectionPool::new(addr, config);
    let leases = [pool.acquire().await, pool.acquire().await];
    drop(leases);
    for connection in [1, 2] {
        server.tell(connection, Answer::Never);
    }
    eventually(|| server.pings() > 0).await;
    let began = Instant::now();
    let lease = pool.acquire().await.expect("the other one");
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    assert_eq!(pool.metrics().created, 2);
    drop(lease);
}

#[tokio::test]
async fn no_round_touches_a_connection_in_use() {
    let (server, addr) = Server::start().await;
    let mut config = config();
    config.health_check_interval_secs = 1;
    let pool = EnhancedConnectionPool::new(addr, config);
    let lease = pool.acquire().await.expect("opened");
    server.tell(1, Answer::Never);
    sleep(2500 * MS).await;
    assert_eq!(server.pings(), 0);
    server.tell(1, Answer::Pong);
    assert!(lease.health_check().await);
    drop(lease);
    eventually(|| server.pings() >= 2).await;
    assert_eq!(pool.metrics().created, 1);
}

#[tokio::test]
async fn a_connection_left_in_the_middle_of_an_exchange_goes_to_nobody() {
    type HidbLease = Lease<heliosdb_network::client::HidbConnector>;
    async fn leave(server: &Server, lease: &HidbLease, how: u8) {
        match how {
            // An answer that nobody waited for.
            0 => lease.send_message(HidbMessage::Ping).await.expect("sent"),
            // A check that was given up.
            1 => {
                server.tell(1, Answer::Never);
                assert!(timeout(50 * MS, lease.health_check()).await.is_err());
            }
            // An answer that was none.
            2 | 3 => {
                server.tell(
                    1,
                    [Answer::Garbage, Answer::HalfAFrame][usize::from(how - 2)],
                );
                lease.send_message(HidbMessage::Ping).await.expect("sent");
                lease.receive_message().await.expect_err("no message");
            }
            _ => unreachable!(),
        }
    }
    for how in 0..4 {
        let (server, addr) = Server::start().await;
        let mut config = config();
        config.max_connections = 1;
        let pool = EnhancedConnectionPool::new(addr, config);
        let lease = pool.acquire().await.expect("opened");
        leave(&server, &lease, how).await;
        // A waiter gets what comes back without a further look at it.
        let (next, ()) = tokio::join!(pool.acquire(), async { drop(lease) });
        assert!(next.expect("opened").health_check().await, "{how}");
        assert_eq!(pool.metrics().created, 2, "{how}");
    }
}

#[tokio::test]
async fn a_peer_that_closes_an_idle_connection_is_noticed_before_it_is_handed_out() {
    let (server, addr) = Server::start().await;
    let mut config = config();
    config.max_connections = 1;
    let pool = EnhancedConnectionPool::new(addr, config);
    let lease = pool.acquire().await.expect("opened");
    server.tell(1, Answer::Close);
    assert!(!lease.health_check().await);
    drop(lease);
    let replaced = pool.acquire().await.expect("opened");
    assert!(replaced.health_check().await);
}

#[tokio::test(start_paused = true)]
async fn a_round_reaches_every_idle_connection_once() {
    let world = World::new();
    let mut config = support::config(50);
    config.health_check_interval_secs = 10;
    config.max_connecting = 50;
    let pool = world.pool(config);
    drop(acquire_many(&pool, 50).await);
    sleep(5 * SECOND).await;
    assert_eq!(world.counts().checks, 0);
    for round in 1..=3 {
        sleep(10 * SECOND).await;
        assert_eq!(world.counts().checks, 50 * round);
    }
    assert_eq!(pool.metrics().idle, 50);
    assert_eq!(pool.metrics().acquired, 50, "checks are no acquires");
    world.plan(|plan| plan.check = Act::Fail);
    sleep(10 * SECOND).await;
    assert_eq!((pool.metrics().unhealthy, pool.metrics().idle), (50, 0));
    assert_counts_agree(&pool, &world);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_panics_costs_its_connection_only() {
    let world = World::new();
    let mut config = support::config(4);
    config.health_check_interval_secs = 10;
    let pool = world.pool(config);
    drop(acquire_many(&pool, 4).await);
    world.plan(|plan| plan.check = Act::Panic);
    sleep(15 * SECOND).await;
    assert_eq!((pool.metrics().idle, pool.metrics().unhealthy), (0, 4));
    world.plan(|plan| plan.check = Act::Work);
    drop(acquire_many(&pool, 4).await);
    sleep(10 * SECOND).await;
    assert_eq!(pool.metrics().idle, 4, "the rounds go on");
    assert_counts_agree(&pool, &world);
}
