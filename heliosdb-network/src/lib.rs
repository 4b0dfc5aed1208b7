//! Connections: a fair, crash-proof pool for any protocol ([`connection_pool`]), HeliosDB's native protocol HIDB
//! ([`protocol`], [`client`], [`server`]), and PostgreSQL's, version 3 ([`postgres`]).
//!
//! ```no_run
//! use heliosdb_network::{ConnectionPoolConfig, EnhancedConnectionPool};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = EnhancedConnectionPool::new("127.0.0.1:6433".to_owned(), ConnectionPoolConfig::default());
//! let connection = pool.acquire().await?;
//! assert!(connection.health_check().await);
//! drop(connection); // back to the pool
//! # Ok(()) }
//! ```
//!
//! # Guarantees
//! * **Fairness**: waiters are served in order, by direct hand-off.
//! * **Cancellation**: every future can be dropped at any point without losing a connection; methods that leave a
//!   connection unusable when cut short say so.
//! * **Bounds**: a pool never holds more sockets than configured, those being opened and closed included; a frame's
//!   length is checked before memory is allocated for it.
#![forbid(unsafe_code)]

pub mod client;
pub mod connection_pool;
pub mod error;
pub mod postgres;
pub mod protocol;
pub mod scram;
pub mod server;
mod stream;
pub mod tls;

pub use client::{HidbClient, HidbTarget, Param, Reply, Statement};
pub use connection_pool::{
    AcquireError, ConnectionPoolConfig, EnhancedConnectionPool, Lease, PoolMetrics,
};
pub use error::{HeliosError, Result};
pub use protocol::HidbMessage;
pub use stream::WireStream;
