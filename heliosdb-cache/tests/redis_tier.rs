//! The second tier in a real Redis: what it keeps, and that no fault of it is more than a miss.
#![cfg(not(loom))]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use heliosdb_cache::{
    CacheConfig, CacheManager, InMemoryBackend, Position, QueryKey, RedisBackend, RedisConfig,
    SecondTier as _, TieredBackend,
};
use heliosdb_testkit::{RedisCluster, RedisServer};

const LINEAGE: [u8; 16] = *b"a database's log";
/// Longer than anything here takes, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(20);

type Tiered = TieredBackend<InMemoryBackend, RedisBackend>;

/// A budget that is seldom exceeded by chance, and short pauses.
fn config(url: &str) -> RedisConfig {
    let mut config = RedisConfig::new(url);
    config.budget = Duration::from_millis(200);
    config.cooldown = Duration::from_millis(50);
    config
}

async fn connected(config: RedisConfig) -> RedisBackend {
    let redis = RedisBackend::new(config).expect("a valid configuration");
    is_back(&redis).await;
    redis
}

async fn is_back(redis: &RedisBackend) {
    let connected = tokio::time::timeout(PATIENCE, redis.connected());
    connected.await.expect("connected");
}

async fn flushed(redis: &RedisBackend) {
    let flushed = tokio::time::timeout(PATIENCE, redis.flush());
    flushed.await.expect("flushed");
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A node of which the cache knows as of which position it follows the log.
fn node(redis: RedisBackend, position: u64) -> (Arc<Tiered>, CacheManager<Tiered>) {
    let mut config = CacheConfig::default();
    config.sweep_interval = Duration::ZERO;
    let backend = Arc::new(TieredBackend::new(InMemoryBackend::new(1 << 20), redis));
    let node = CacheManager::new(Arc::clone(&backend), config);
    assert!(node.versions().follow(LINEAGE, Position(position)));
    node.versions().begin_fence().end(Position(position));
    (backend, node)
}

fn key(n: usize) -> QueryKey {
    QueryKey::new(&format!("SELECT {n}"), &["p"], "shop")
}

async fn ask(node: &CacheManager<Tiered>, key: &QueryKey, value: &str) -> String {
    let compute = async { Ok(Bytes::copy_from_slice(value.as_bytes())) };
    let answer = node.get_or_compute(key, &["t"], compute).await;
    String::from_utf8(answer.expect("computed").to_vec()).expect("text")
}

#[tokio::test]
async fn what_one_node_computed_another_is_served_until_it_knows_of_a_write() {
    let server = RedisServer::start().unwrap();
    let (one, first) = node(connected(config(&server.url())).await, 1);
    let (_, second) = node(connected(config(&server.url())).await, 1);
    assert_eq!(ask(&first, &key(0), "old").await, "old");
    flushed(one.second()).await;
    assert_eq!(ask(&second, &key(0), "not computed").await, "old");
    assert_eq!(second.stats().behind_hits, 1);

    // The second node reads of a write in the log. The first is behind, and goes on writing what it has.
    second
        .versions()
        .invalidate_at(&[second.table_slot("t")], Position(2));
    assert_eq!(ask(&first, &key(1), "as of 1").await, "as of 1");
    flushed(one.second()).await;
    assert_eq!(ask(&second, &key(0), "new").await, "new");
    assert_eq!(ask(&second, &key(1), "as of 2").await, "as of 2");
    assert_eq!(second.stats().behind_refused, 2);
}

#[tokio::test]
async fn values_are_kept_under_the_prefix_for_their_time() {
    let server = RedisServer::start().unwrap();
    let mut config = config(&server.url());
    config.prefix = "shop/".to_owned();
    config.entry_ttl = Duration::from_secs(100);
    let redis = connected(config).await;
    assert!(redis.store(&[0, 0xab], "value".into()));
    flushed(&redis).await;
    assert_eq!(
        redis.fetch(&[0, 0xab]).await.as_deref(),
        Some(&b"value"[..])
    );
    assert_eq!(redis.fetch(&[0, 0xac]).await, None);
    assert_eq!(server.cli(&["keys", "*"]).unwrap(), "shop/00ab");
    let left: u64 = server.cli(&["pttl", "shop/00ab"]).unwrap().parse().unwrap();
    assert!((50_000..=100_000).contains(&left), "{left} ms");
    redis.remove(&[0, 0xab]);
    flushed(&redis).await;
    assert_eq!(redis.fetch(&[0, 0xab]).await, None);
    let stats = redis.stats();
    assert_eq!((stats.answered, stats.written), (3, 2), "{stats:?}");
    assert_eq!((stats.pending, stats.lost), (0, 0), "{stats:?}");
}

#[tokio::test]
async fn nobody_waits_longer_than_the_budget_and_soon_not_at_all() {
    let server = RedisServer::start().unwrap();
    let mut config = config(&server.url());
    config.breaker_failures = 3;
    // So that the tier is not tried again within this test.
    config.cooldown = Duration::from_secs(600);
    let budget = config.budget;
    let redis = connected(config).await;
    server.pause().unwrap();
    for _ in 0..3 {
        let began = Instant::now();
        assert_eq!(redis.fetch(b"id").await, None);
        let took = began.elapsed();
        assert!(took >= budget && took < budget * 5, "{took:?}");
    }
    let stats = redis.stats();
    assert!(!stats.is_up && stats.late == 3, "{stats:?}");
    let began = Instant::now();
    for _ in 0..1000 {
        assert_eq!(redis.fetch(b"id").await, None);
        assert!(!redis.store(b"id", "value".into()));
    }
    assert!(began.elapsed() < budget, "{:?}", began.elapsed());
    assert_eq!(redis.stats().late, 3);
    server.resume().unwrap();
}

#[tokio::test]
async fn a_server_that_goes_on_is_used_again() {
    let server = RedisServer::start().unwrap();
    let redis = connected(config(&server.url())).await;
    assert!(redis.store(b"id", "value".into()));
    flushed(&redis).await;
    server.pause().unwrap();
    while redis.stats().is_up {
        assert_eq!(redis.fetch(b"id").await, None);
    }
    server.resume().unwrap();
    is_back(&redis).await;
    assert_eq!(redis.fetch(b"id").await.as_deref(), Some(&b"value"[..]));
    assert_eq!(redis.stats().outages, 1);
}

#[tokio::test]
async fn a_killed_server_is_found_out_at_once_and_its_successor_is_used() {
    let mut server = RedisServer::start().unwrap();
    let redis = connected(config(&server.url())).await;
    server.kill().unwrap();
    // The connection is closed: one failure is enough.
    let _ = redis.fetch(b"id").await;
    assert!(!redis.stats().is_up);
    server.restart().unwrap();
    is_back(&redis).await;
    assert!(redis.store(b"id", "value".into()));
    flushed(&redis).await;
    assert_eq!(redis.fetch(b"id").await.as_deref(), Some(&b"value"[..]));
}

#[tokio::test]
async fn a_cache_whose_tier_is_down_answers_and_one_that_comes_up_later_is_used() {
    let mut server = RedisServer::start().unwrap();
    server.kill().unwrap();
    let redis = RedisBackend::new(config(&server.url())).unwrap();
    let (backend, cache) = node(redis, 1);
    assert_eq!(ask(&cache, &key(0), "computed").await, "computed");
    assert_eq!(ask(&cache, &key(0), "again").await, "computed");
    until("the outage is counted", || {
        backend.second().stats().outages == 1
    })
    .await;
    server.restart().unwrap();
    is_back(backend.second()).await;
    assert_eq!(ask(&cache, &key(1), "written").await, "written");
    flushed(backend.second()).await;
    assert_eq!(backend.second().stats().written, 1);
}

#[tokio::test]
async fn writes_that_wait_are_bounded_by_number_and_by_bytes() {
    let server = RedisServer::start().unwrap();
    let mut by_number = config(&server.url());
    by_number.max_pending = 100;
    by_number.write_timeout = Duration::from_secs(600);
    let mut by_bytes = by_number.clone();
    by_bytes.max_pending = 10_000;
    by_bytes.max_pending_bytes = 100_000;
    by_bytes.max_value_bytes = 1000;
    for (config, expected) in [(by_number, 100), (by_bytes, 100)] {
        let redis = connected(config).await;
        server.pause().unwrap();
        let value = Bytes::from(vec![0; 1000]);
        let mut taken = 0;
        for n in 0..1000_u32 {
            taken += usize::from(redis.store(&n.to_le_bytes(), value.clone()));
            tokio::task::yield_now().await;
        }
        assert_eq!(taken, expected);
        let stats = redis.stats();
        assert_eq!((stats.pending, stats.refused), (100, 900), "{stats:?}");
        server.resume().unwrap();
        flushed(&redis).await;
        let stats = redis.stats();
        assert_eq!((stats.pending, stats.written), (0, 100), "{stats:?}");
        assert!(redis.store(b"id", value), "there is room again");
        assert!(
            !redis.store(b"id", Bytes::from(vec![0; 2 << 20])),
            "too large"
        );
    }
}

#[tokio::test]
async fn a_full_server_loses_writes_and_answers_reads() {
    let server = RedisServer::start().unwrap();
    let redis = connected(config(&server.url())).await;
    assert!(redis.store(b"id", "value".into()));
    flushed(&redis).await;
    server.cli(&["config", "set", "maxmemory", "1"]).unwrap();
    for n in 0..100_u8 {
        assert!(redis.store(&[n], "value".into()));
    }
    flushed(&redis).await;
    assert_eq!(redis.stats().lost, 100);
    assert_eq!(redis.fetch(b"id").await.as_deref(), Some(&b"value"[..]));
    assert_eq!(redis.stats().outages, 0);
}

#[tokio::test]
async fn a_server_that_became_a_replica_is_left() {
    let server = RedisServer::start().unwrap();
    let redis = connected(config(&server.url())).await;
    server.cli(&["replicaof", "127.0.0.1", "1"]).unwrap();
    assert!(redis.store(b"id", "value".into()));
    until("it is left", || redis.stats().outages > 0).await;
}

#[tokio::test]
async fn a_value_that_is_no_text_is_a_failure_and_not_an_answer() {
    let server = RedisServer::start().unwrap();
    let redis = connected(config(&server.url())).await;
    server.cli(&["rpush", "helios:6964", "x"]).unwrap();
    assert_eq!(redis.fetch(b"id").await, None);
    assert_eq!(redis.stats().failed, 1);
}

#[tokio::test]
async fn a_password_is_used_and_a_wrong_one_is_only_a_tier_that_is_down() {
    let server = RedisServer::start_with(&["--requirepass", "hunter2"]).unwrap();
    let url = |password: &str| format!("redis://:{password}@127.0.0.1:{}", server.port());
    let redis = connected(config(&url("hunter2"))).await;
    assert!(redis.store(b"id", "value".into()));
    flushed(&redis).await;
    assert_eq!(redis.fetch(b"id").await.as_deref(), Some(&b"value"[..]));
    let wrong = RedisBackend::new(config(&url("wrong"))).unwrap();
    until("it is found out", || wrong.stats().outages == 1).await;
    assert_eq!(wrong.fetch(b"id").await, None);
    assert!(!format!("{redis:?}").contains("hunter2"));
}

#[tokio::test]
async fn the_tasks_end_with_the_backend() {
    let server = RedisServer::start().unwrap();
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    let redis = connected(config(&server.url())).await;
    assert!(metrics.num_alive_tasks() >= before + 2);
    drop(redis);
    until("no task is left", || metrics.num_alive_tasks() == before).await;
    let clients = || server.cli(&["client", "list"]).unwrap().lines().count();
    until("only redis-cli is connected", || clients() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_reads_leave_nothing_and_mix_nothing_up() {
    let server = RedisServer::start().unwrap();
    let redis = Arc::new(connected(config(&server.url())).await);
    for n in 0..100_u8 {
        assert!(redis.store(&[n], vec![n; 1000].into()));
    }
    flushed(&redis).await;
    let tasks = (0..8_u64).map(|seed| {
        let redis = Arc::clone(&redis);
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            for _ in 0..2000 {
                let n = random.u8(0..100);
                let within = Duration::from_micros(random.u64(1..500));
                if let Ok(Some(value)) = tokio::time::timeout(within, redis.fetch(&[n])).await {
                    assert_eq!(value, vec![n; 1000]);
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(redis.fetch(&[7]).await.as_deref(), Some(&[7; 1000][..]));
    assert_eq!(redis.stats().outages, 0);
}

#[tokio::test]
async fn a_cluster_keeps_what_it_is_given_and_outlives_a_node() {
    let mut cluster = RedisCluster::start().unwrap();
    let urls: Vec<_> = cluster.nodes().iter().map(RedisServer::url).collect();
    let urls: Vec<_> = urls.iter().map(String::as_str).collect();
    let mut config = RedisConfig::cluster(&urls);
    config.budget = Duration::from_millis(200);
    config.cooldown = Duration::from_millis(50);
    let budget = config.budget;
    let redis = connected(config).await;
    for n in 0..100_u8 {
        assert!(redis.store(&[n], vec![n; 10].into()));
    }
    flushed(&redis).await;
    for n in 0..100_u8 {
        assert_eq!(redis.fetch(&[n]).await.as_deref(), Some(&[n; 10][..]));
    }
    let counts = cluster.nodes().iter().map(|node| node.cli(&["dbsize"]));
    let counts: Vec<usize> = counts
        .map(|count| count.unwrap().parse().unwrap())
        .collect();
    assert_eq!(counts.iter().sum::<usize>(), 100);
    assert!(counts.iter().all(|count| *count > 10), "{counts:?}");

    cluster.nodes_mut()[2].kill().unwrap();
    let mut found = 0;
    for n in 0..100_u8 {
        let began = Instant::now();
        if let Some(value) = redis.fetch(&[n]).await {
            assert_eq!(value, vec![n; 10]);
            found += 1;
        }
        assert!(began.elapsed() < budget * 5, "{:?}", began.elapsed());
    }
    assert!(found < 100, "the values of one node are gone");
}
