//! The near cache of `heliosdb-client`, with clients, a writer and faults: no read is older than what its client was told, nor
//! older than `max_lag`, and what is kept ends with the subscription.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use heliosdb_client::{
    AnswerSource, CacheUse, Client, ClientConfig, HeliosError, HidbTarget, Position, Statement,
};
use heliosdb_testkit::PostgresCluster;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::support::{Helios, Stack};

const SECOND: Duration = Duration::from_secs(1);

async fn open(port: u16, max_lag: Duration) -> Client {
    let target = HidbTarget::new("127.0.0.1", port, "postgres", "postgres");
    let mut config = ClientConfig::default();
    config.near.as_mut().expect("there by default").max_lag = max_lag;
    Client::open(target, config).await.expect("let in")
}

async fn live(client: &Client) {
    until("the near cache is live", || client.stats().is_near_live).await;
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + 30 * SECOND;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within 30 s");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn setup(client: &Client) {
    for text in [
        "create table t (id int primary key, v int8 not null)",
        "create table other (id int primary key)",
        "insert into t select n, 0 from generate_series(1, 8) n",
    ] {
        client.query(text).await.expect(text);
    }
}

fn read(id: i32) -> Statement {
    Statement::new("select v from t where id = $1").bind(id)
}

async fn value(client: &Client, id: i32) -> (i64, AnswerSource) {
    let reply = client.query(read(id)).await.expect("answered");
    let value = reply.row(0).expect("a row").get("v").expect("a number");
    (value.expect("not null"), reply.facts().source)
}

async fn write(client: &Client, id: i32, value: i64) {
    let update = Statement::new("update t set v = $2 where id = $1");
    let reply = client.query(update.bind(id).bind(value)).await;
    assert_eq!(reply.expect("written").tag(), "UPDATE 1");
}

#[tokio::test]
async fn a_repeated_read_takes_no_message_until_what_it_read_is_written() {
    let stack = Stack::start();
    let client = open(stack.helios.hidb_port, 10 * SECOND).await;
    setup(&client).await;
    live(&client).await;
    value(&client, 1).await;
    let sent = client.stats().requests;
    for _ in 0..100 {
        assert_eq!(value(&client, 1).await, (0, AnswerSource::Near));
    }
    let stats = client.stats();
    assert_eq!((stats.requests, stats.near_hits), (sent, 100));
    assert_eq!(stats.near.expect("there").entries, 1);
    // Another parameter, another type, another form of the results: other questions.
    assert_ne!(value(&client, 2).await.1, AnswerSource::Near);
    let binary = client.query(read(1).with_binary_results()).await;
    assert_ne!(binary.expect("answered").facts().source, AnswerSource::Near);

    // A write to something else leaves it, a write to it does not, whoever writes.
    client
        .query("insert into other values (1)")
        .await
        .expect("written");
    assert_eq!(value(&client, 1).await, (0, AnswerSource::Near));
    write(&client, 1, 5).await;
    assert_eq!(value(&client, 1).await.0, 5);
    assert_eq!(value(&client, 1).await, (5, AnswerSource::Near));
    let postgres = stack.client().await;
    postgres
        .execute("update t set v = 6 where id = 1", &[])
        .await
        .expect("written");
    until("the write was told", || {
        client.near_position().expect("live") != client.position()
    })
    .await;
    assert_eq!(value(&client, 1).await.0, 6);

    // What asks for something newer than memory gets it.
    value(&client, 1).await;
    for newer in [
        read(1).with_cache(CacheUse::Bypass),
        read(1).with_max_age(Duration::ZERO),
    ] {
        let reply = client.query(newer).await.expect("answered");
        assert_ne!(reply.facts().source, AnswerSource::Near);
    }
    // What is not cached by the gateway is not cached here.
    for _ in 0..3 {
        let reply = client.query("select random()").await.expect("answered");
        assert_eq!(reply.facts().source, AnswerSource::Server);
    }
}

#[tokio::test]
async fn a_session_is_a_place_of_its_own_and_what_it_commits_is_seen_at_once() {
    let stack = Stack::start();
    let client = open(stack.helios.hidb_port, 10 * SECOND).await;
    setup(&client).await;
    live(&client).await;
    for round in 1..=20 {
        value(&client, 1).await;
        let session = client.session().await.expect("a session");
        session.query("begin").await.expect("begun");
        let update = Statement::new("update t set v = $1 where id = 1").bind(round);
        session.query(update).await.expect("written");
        assert_eq!(value(&client, 1).await.0, round - 1, "not committed");
        session.query("commit").await.expect("committed");
        assert_eq!(value(&client, 1).await.0, round);
    }
    // One that is dropped in the middle leaves nothing behind.
    let session = client.session().await.expect("a session");
    session.query("begin").await.expect("begun");
    session
        .query("update t set v = -1 where id = 1")
        .await
        .expect("written");
    drop(session);
    write(&client, 1, 100).await;
    assert_eq!(value(&client, 1).await.0, 100);
}

/// A write can be seen at the server before it is acknowledged. Who has seen it does not go back behind it.
#[tokio::test]
async fn what_was_seen_at_the_server_is_not_unseen_in_memory() {
    let stack = Stack::start();
    let client = open(stack.helios.hidb_port, 10 * SECOND).await;
    setup(&client).await;
    live(&client).await;
    value(&client, 1).await;
    assert_eq!(value(&client, 1).await, (0, AnswerSource::Near));
    let postgres = stack.client().await;
    let write = "begin; update t set v = 7 where id = 1; commit; select pg_sleep(2)";
    let writing = tokio::spawn(async move { postgres.batch_execute(write).await });
    let at_the_server = read(1).with_cache(CacheUse::Bypass);
    loop {
        let reply = client.query(at_the_server.clone()).await.expect("answered");
        if reply.row(0).expect("a row").get("v").expect("a number") == Some(7) {
            break;
        }
    }
    assert!(
        !writing.is_finished(),
        "acknowledged too soon for this test"
    );
    for _ in 0..3 {
        assert_eq!(value(&client, 1).await.0, 7);
    }
    writing.await.expect("ran").expect("written");
    value(&client, 1).await;
    assert_eq!(value(&client, 1).await, (7, AnswerSource::Near));
}

/// What a writer says of a row: this value was acknowledged, at this time, and the writer knew so much.
#[derive(Clone, Copy)]
struct Told {
    value: i64,
    position: Position,
}

/// Rows 1 to 8 are written by one writer each in turn: values only grow. Readers check three things, as the crate's page
/// promises: no value older than one they have seen; none older than the writer's when they were handed its position; and
/// without it none older than what was acknowledged `max_lag` ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_older_than_what_its_client_was_told_nor_than_the_lag() {
    const MAX_LAG: Duration = Duration::from_millis(250);
    let stack = Stack::start();
    let port = stack.helios.hidb_port;
    let writer = open(port, SECOND).await;
    setup(&writer).await;
    let (tell, told) = watch::channel([None::<Told>; 9]);
    let stop = Arc::new(AtomicBool::new(false));
    let near_reads = Arc::new(AtomicU64::new(0));
    // When each value of row 1 was acknowledged, for the readers that are told nothing.
    let acknowledged = Arc::new(times::Times::default());

    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..4 {
        let client = open(port, MAX_LAG).await;
        let (told, stop) = (told.clone(), Arc::clone(&stop));
        let (near_reads, acknowledged) = (Arc::clone(&near_reads), Arc::clone(&acknowledged));
        readers.spawn(async move {
            let mut seen = [0; 9];
            let mut reads = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let id = fastrand::i32(1..=8);
                let at = usize::try_from(id).expect("small");
                // Every other reader is handed positions.
                let known = told.borrow()[at].filter(|_| reader % 2 == 0);
                if let Some(known) = known {
                    client.observe(known.position);
                }
                let floor = acknowledged.floor(at, Instant::now() - MAX_LAG);
                let (value, source) = value(&client, id).await;
                let floor = floor.max(known.map_or(0, |known| known.value)).max(seen[at]);
                assert!(
                    value >= floor,
                    "reader {reader} read {value} of row {id} from {source:?}, and {floor} was known"
                );
                seen[at] = value;
                reads += 1;
                if source == AnswerSource::Near {
                    near_reads.fetch_add(1, Ordering::Relaxed);
                }
                if reads.is_multiple_of(64) {
                    tokio::task::yield_now().await;
                }
            }
            reads
        });
    }
    let began = Instant::now();
    let mut next = 0;
    while began.elapsed() < 5 * SECOND {
        next += 1;
        let id = fastrand::i32(1..=8);
        if fastrand::bool() {
            write(&writer, id, next).await;
        } else {
            let session = writer.session().await.expect("a session");
            session.query("begin").await.expect("begun");
            let update = Statement::new("update t set v = $2 where id = $1").bind(id);
            session.query(update.bind(next)).await.expect("written");
            session.query("commit").await.expect("committed");
        }
        let at = usize::try_from(id).expect("small");
        acknowledged.note(at, next);
        let position = writer.position();
        tell.send_modify(|told| {
            told[at] = Some(Told {
                value: next,
                position,
            });
        });
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..20))).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut reads = 0;
    while let Some(read) = readers.join_next().await {
        reads += read.expect("nothing stale was read");
    }
    let near_reads = near_reads.load(Ordering::Relaxed);
    println!("{reads} reads, {near_reads} from near caches, {next} writes");
    assert!(
        next > 20 && near_reads > 1000,
        "{next} writes, {near_reads} of {reads} reads"
    );
}

/// When values were acknowledged.
mod times {
    use std::sync::Mutex;
    use std::time::Instant;

    #[derive(Default)]
    pub(super) struct Times(Mutex<[Vec<(Instant, i64)>; 9]>);

    impl Times {
        pub(super) fn note(&self, at: usize, value: i64) {
            let now = Instant::now();
            self.0.lock().expect("not poisoned")[at].push((now, value));
        }

        /// The newest value that was acknowledged before that time.
        pub(super) fn floor(&self, at: usize, before: Instant) -> i64 {
            let times = self.0.lock().expect("not poisoned");
            let newest = times[at].iter().rev().find(|(when, _)| *when < before);
            newest.map_or(0, |(_, value)| *value)
        }
    }
}

/// A relay in front of a gateway that can be cut, and that can swallow what is sent.
struct Relay {
    address: SocketAddr,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// All connections end, and new ones end at once.
    Cut,
    /// Nothing goes through, and nobody is told.
    Stuck,
    Through,
}

impl Relay {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (state, watching) = watch::channel(State::Through);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let watching = watching.clone();
                tokio::spawn(async move { relay(near, to, watching).await });
            }
        });
        Self { address, state }
    }

    fn set(&self, state: State) {
        self.state.send_replace(state);
    }
}

async fn relay(near: TcpStream, to: u16, mut state: watch::Receiver<State>) -> io::Result<()> {
    let far = TcpStream::connect(("127.0.0.1", to)).await?;
    let (mut buffer_near, mut buffer_far) = (vec![0; 8192], vec![0; 8192]);
    loop {
        let now = *state.borrow_and_update();
        match now {
            State::Cut => return Ok(()),
            State::Stuck => {
                if state.changed().await.is_err() {
                    return Ok(());
                }
            }
            State::Through => tokio::select! {
                _ = state.changed() => {}
                _ = near.readable() => if !forward(&near, &far, &mut buffer_near).await? { return Ok(()) },
                _ = far.readable() => if !forward(&far, &near, &mut buffer_far).await? { return Ok(()) },
            },
        }
    }
}

async fn forward(from: &TcpStream, to: &TcpStream, buffer: &mut [u8]) -> io::Result<bool> {
    let read = match from.try_read(buffer) {
        Ok(0) => return Ok(false),
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
        Err(error) => return Err(error),
    };
    let mut rest = &buffer[..read];
    while !rest.is_empty() {
        to.writable().await?;
        match to.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

#[tokio::test]
async fn a_lost_subscription_takes_with_it_what_was_kept() {
    let stack = Stack::start();
    let relay = Relay::start(stack.helios.hidb_port).await;
    let client = open(relay.address.port(), 60 * SECOND).await;
    setup(&client).await;
    live(&client).await;
    value(&client, 1).await;
    assert_eq!(value(&client, 1).await.1, AnswerSource::Near);
    relay.set(State::Cut);
    until("the loss was noticed", || !client.stats().is_near_live).await;
    match client.query(read(1)).await {
        Err(HeliosError::Network(_) | HeliosError::Io { .. }) => {}
        other => panic!("answered without a gateway: {other:?}"),
    }
    // Written while the client hears nothing.
    let postgres = stack.client().await;
    postgres
        .execute("update t set v = 9 where id = 1", &[])
        .await
        .expect("written");
    relay.set(State::Through);
    live(&client).await;
    let stats = client.stats();
    assert_eq!(stats.subscriptions, 2);
    assert_eq!(stats.near.expect("a new one").entries, 0);
    assert_eq!(value(&client, 1).await.0, 9);
    assert_eq!(value(&client, 1).await, (9, AnswerSource::Near));
}

#[tokio::test]
async fn a_subscription_that_is_stuck_is_believed_for_max_lag_and_no_longer() {
    const MAX_LAG: Duration = Duration::from_millis(400);
    let stack = Stack::start();
    let relay = Relay::start(stack.helios.hidb_port).await;
    let client = open(relay.address.port(), MAX_LAG).await;
    setup(&client).await;
    live(&client).await;
    value(&client, 1).await;
    assert_eq!(value(&client, 1).await.1, AnswerSource::Near);
    relay.set(State::Stuck);
    let postgres = stack.client().await;
    postgres
        .execute("update t set v = 9 where id = 1", &[])
        .await
        .expect("written");
    let written = Instant::now();
    loop {
        let asked = Instant::now();
        // The gateway is not reached: what is answered is from the near cache.
        match timeout(Duration::from_millis(20), client.query(read(1))).await {
            Ok(reply) => {
                assert_eq!(reply.expect("answered").facts().source, AnswerSource::Near);
                assert!(asked - written <= MAX_LAG, "{:?}", asked - written);
            }
            Err(_) if written.elapsed() > 2 * MAX_LAG => break,
            Err(_) => {}
        }
    }
    assert!(!client.stats().is_near_live);
    relay.set(State::Through);
    let reply = timeout(30 * SECOND, client.query(read(1)))
        .await
        .expect("in time");
    let now = match reply {
        Ok(reply) => reply.row(0).expect("a row").get("v").expect("a number"),
        // It went with the connection that was given up.
        Err(_) => Some(value(&client, 1).await.0),
    };
    assert_eq!(now, Some(9));
    live(&client).await;
}

/// Those who ask together fail together, and not one after the other.
#[tokio::test]
async fn a_gateway_that_does_not_answer_costs_everybody_one_timeout() {
    let stack = Stack::start();
    let relay = Relay::start(stack.helios.hidb_port).await;
    let mut target = HidbTarget::new("127.0.0.1", relay.address.port(), "postgres", "postgres");
    target.connect_timeout = SECOND;
    let mut config = ClientConfig::default();
    (config.near, config.connections) = (None, 1);
    let client = Client::open(target, config).await.expect("let in");
    relay.set(State::Cut);
    until("the connection is lost", || client.stats().connected == 0).await;
    relay.set(State::Stuck);
    let asking = (0..50).map(|_| client.query("select 1"));
    let answers = timeout(20 * SECOND, futures_util::future::join_all(asking)).await;
    for answer in answers.expect("one timeout, not fifty") {
        assert!(matches!(answer, Err(HeliosError::Network(_))), "{answer:?}");
    }
    relay.set(State::Through);
    client.query("select 1").await.expect("it is back");
}

#[tokio::test]
async fn another_gateway_on_the_same_address_is_told_apart() {
    let cluster = PostgresCluster::builder()
        .start()
        .expect("PostgreSQL starts");
    let url = cluster.url("postgres", "postgres");
    let (first, second) = (
        Helios::start(&["--upstream", &url], ""),
        Helios::start(&["--upstream", &url], ""),
    );
    let client = open(first.hidb_port, 10 * SECOND).await;
    let elsewhere = open(second.hidb_port, 10 * SECOND).await;
    setup(&client).await;
    live(&client).await;
    value(&client, 1).await;
    assert_eq!(value(&client, 1).await.1, AnswerSource::Near);
    // A place in the other one's feed can't be compared: nothing that is kept is good any more, and it goes on by and by.
    elsewhere.query("select 1").await.expect("answered");
    let foreign = elsewhere.position();
    assert_ne!(
        foreign.to_string().split('/').next(),
        client.position().to_string().split('/').next()
    );
    client.observe(foreign);
    assert_ne!(value(&client, 1).await.1, AnswerSource::Near);
    assert_eq!(value(&client, 1).await.1, AnswerSource::Near);
}

#[tokio::test]
async fn its_tasks_end_with_the_client_and_its_memory_is_bounded() {
    let stack = Stack::start();
    let target = HidbTarget::new("127.0.0.1", stack.helios.hidb_port, "postgres", "postgres");
    let mut config = ClientConfig::default();
    config.near.as_mut().expect("there").capacity = 64 << 10;
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    let client = Client::open(target.clone(), config).await.expect("let in");
    setup(&client).await;
    live(&client).await;
    for n in 0..200 {
        let wide =
            Statement::new("select repeat('x', 1000), id from t where id = $1 % 8 + 1 or $1 < 0");
        client.query(wide.bind(n)).await.expect("answered");
        let near = client.stats().near.expect("there");
        assert!(near.size_bytes <= 64 << 10, "{near:?}");
    }
    let near = client.stats().near.expect("there");
    assert!(near.entries > 5 && near.evictions > 50, "{near:?}");
    drop(client.clone());
    value(&client, 1).await;
    assert!(metrics.num_alive_tasks() > before);
    drop(client);
    until("the tasks ended", || metrics.num_alive_tasks() == before).await;

    // Without a near cache every read is a request, and what can't work is refused.
    let mut config = ClientConfig::default();
    config.near = None;
    let plain = Client::open(target.clone(), config.clone())
        .await
        .expect("let in");
    for _ in 0..3 {
        assert_ne!(value(&plain, 1).await.1, AnswerSource::Near);
    }
    assert_eq!(plain.stats().near, None);
    config.connections = 0;
    assert!(matches!(
        Client::open(target, config).await,
        Err(HeliosError::Unsupported(_))
    ));
}
