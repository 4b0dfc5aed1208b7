//! Names and forms that users of the crate rely on.

use std::sync::Arc;

use heliosdb_network::client::HidbConnector;
use heliosdb_network::connection_pool::{ConfigError, ConnectionMeta, Connector};
use heliosdb_network::server::HidbServer;
use heliosdb_network::{
    AcquireError, ConnectionPoolConfig, EnhancedConnectionPool, HeliosError, HidbClient,
    HidbMessage, Lease, PoolMetrics, Result,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

async fn serve() -> String {
    let server = HidbServer::bind("127.0.0.1:0").await.expect("a port");
    let addr = server.local_addr().expect("bound").to_string();
    tokio::spawn(server.serve());
    addr
}

#[tokio::test]
async fn a_pool_is_made_from_an_address_and_a_configuration() {
    let mut config = ConnectionPoolConfig::default();
    config.max_connections = 3;
    config.health_check_interval_secs = 30;
    let pool: Arc<EnhancedConnectionPool> =
        EnhancedConnectionPool::new(serve().await, config.clone());
    let acquired: Result<Lease<HidbConnector>, AcquireError> = pool.acquire().await;
    let lease = acquired.expect("opened");
    let meta: &ConnectionMeta = lease.meta();
    assert!(meta.in_use && !meta.is_expired(&config));
    let client: &HidbClient = &lease;
    assert!(client.health_check().await);
    drop(lease);
    let metrics: PoolMetrics = pool.metrics();
    assert_eq!((metrics.max, metrics.idle, metrics.active), (3, 1, 0));
    assert_eq!(pool.config(), &config);
}

#[test]
fn metrics_begin_at_zero() {
    let zero = PoolMetrics::default();
    assert_eq!(
        (zero.idle, zero.active, zero.acquired, zero.created),
        (0, 0, 0, 0)
    );
    let pool = EnhancedConnectionPool::new(String::new(), ConnectionPoolConfig::default());
    let mut metrics = pool.metrics();
    (metrics.max, metrics.cap) = (0, 0);
    assert_eq!(metrics, zero);
}

#[test]
fn messages_can_be_cloned_printed_and_serialized() {
    fn assert_message<T: std::fmt::Debug + Clone + Serialize + DeserializeOwned + Send>() {}
    assert_message::<HidbMessage>();
    for message in [HidbMessage::Ping, HidbMessage::Pong] {
        let bytes = postcard::to_stdvec(&message).expect("serialized");
        let read: HidbMessage = postcard::from_bytes(&bytes).expect("deserialized");
        assert_eq!(read, message.clone());
    }
    assert_eq!(
        format!("{:?} {:?}", HidbMessage::Ping, HidbMessage::Pong),
        "Ping Pong"
    );
}

#[tokio::test]
async fn a_client_sends_receives_and_checks() {
    let client: HidbClient = HidbClient::connect(&serve().await)
        .await
        .expect("connected");
    let healthy: bool = client.health_check().await;
    assert!(healthy);
    let pinged: Result<()> = client.send_ping_pong().await;
    pinged.expect("answered");
    let sent: Result<()> = client.send_message(HidbMessage::Ping).await;
    sent.expect("sent");
    let received: Result<HidbMessage> = client.receive_message().await;
    assert!(matches!(received, Ok(HidbMessage::Pong)));
}

#[tokio::test]
async fn a_peer_out_of_reach_is_a_network_error() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let addr = free.local_addr().expect("bound").to_string();
    drop(free);
    let error: HeliosError = HidbClient::connect(&addr)
        .await
        .expect_err("nobody listens");
    let HeliosError::Network(text) = &error else {
        panic!("{error:?}")
    };
    assert!(text.contains(&addr) && !error.is_permanent(), "{text}");
    let named = HeliosError::Network("Health check failed".to_owned());
    assert_eq!(named.to_string(), "Health check failed");
}

#[test]
fn what_cannot_work_is_an_error_that_names_the_field() {
    type Change = fn(&mut ConnectionPoolConfig);
    let wrong: [(&str, Change); 9] = [
        ("health_check_interval_secs", |config| {
            config.health_check_interval_secs = 0
        }),
        ("max_connections", |config| config.max_connections = 0),
        ("max_connecting", |config| config.max_connecting = 0),
        ("min_idle", |config| config.min_idle = 11),
        ("acquire_timeout", |config| {
            config.acquire_timeout = Default::default()
        }),
        ("connect_timeout", |config| {
            config.connect_timeout = Default::default()
        }),
        ("health_check_timeout", |config| {
            config.health_check_timeout = Default::default()
        }),
        ("max_lifetime", |config| {
            config.max_lifetime = Some(Default::default())
        }),
        ("idle_timeout", |config| {
            config.idle_timeout = Some(Default::default())
        }),
    ];
    for (field, change) in wrong {
        let mut config = ConnectionPoolConfig::default();
        change(&mut config);
        let refused: Result<_, ConfigError> =
            EnhancedConnectionPool::try_new("127.0.0.1:1".to_owned(), config);
        let error = refused.map(drop).expect_err(field);
        assert_eq!(error.field, field);
        assert!(error.to_string().contains(field), "{error}");
    }
    let config = ConnectionPoolConfig::default();
    assert!(EnhancedConnectionPool::try_new("127.0.0.1:1".to_owned(), config).is_ok());
}

#[tokio::test]
async fn without_a_way_to_say_so_it_is_replaced_by_what_can_work() {
    let mut config = ConnectionPoolConfig::default();
    config.max_connections = 0;
    config.max_connecting = 0;
    config.min_idle = 7;
    config.health_check_interval_secs = 0;
    config.acquire_timeout = std::time::Duration::ZERO;
    let pool = EnhancedConnectionPool::new(serve().await, config);
    assert_eq!(pool.config().health_check_interval_secs, 1);
    assert_eq!(pool.config().max_connections, 1);
    pool.config().validate().expect("can work");
    assert!(pool.acquire().await.expect("opened").health_check().await);
}

#[test]
fn everything_can_cross_threads() {
    fn assert_send_sync<T: Send + Sync>() {}
    fn assert_send<T: Send>(_: T) {}
    assert_send_sync::<EnhancedConnectionPool>();
    assert_send_sync::<HidbClient>();
    assert_send_sync::<HidbConnector>();
    assert_send_sync::<Lease<HidbConnector>>();
    assert_send_sync::<AcquireError>();
    assert_send_sync::<HeliosError>();
    fn futures<C: Connector<Connection: Sync>>(pool: &EnhancedConnectionPool<C>) {
        assert_send(pool.acquire());
        assert_send(pool.drain(std::time::Duration::ZERO));
    }
    futures(&EnhancedConnectionPool::new(
        String::new(),
        ConnectionPoolConfig::default(),
    ));
}
