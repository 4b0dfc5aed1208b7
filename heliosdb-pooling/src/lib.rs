//! The optimizer: which connections know which statements, how long statements take, and how large a pool should be.
//!
//! It observes and advises; it knows no socket and makes no decision by itself.
//!
//! ```
//! use heliosdb_pooling::{PoolOptimizer, QueryFingerprint};
//! use uuid::Uuid;
//!
//! let optimizer = PoolOptimizer::new();
//! let connection = Uuid::new_v4();
//! let fingerprint = QueryFingerprint::of("SELECT * FROM users WHERE id = 7");
//! optimizer.record_query_execution(connection, fingerprint.clone(), 1.5);
//!
//! // The same statement with another value is the same fingerprint.
//! let again = QueryFingerprint::of("SELECT * FROM users WHERE id = 8");
//! assert_eq!(optimizer.preferred_connections(&again), [connection]);
//! optimizer.forget_connection(connection);
//! assert!(optimizer.preferred_connections(&again).is_empty());
//! ```
//!
//! # Guarantees
//! Memory is bounded in both dimensions: at most [`MAX_FINGERPRINTS`] statements (configurable), the least recently
//! recorded forgotten first, with at most [`MAX_AFFINITY_CONNECTIONS`] distinct connections each. A connection that was
//! forgotten is not advised again.
#![forbid(unsafe_code)]

mod affinity;
mod fingerprint;
mod latency;
mod optimizer;
pub mod sizing;

pub use affinity::MAX_AFFINITY_CONNECTIONS;
pub use fingerprint::QueryFingerprint;
pub use latency::Latency;
pub use optimizer::{MAX_FINGERPRINTS, PoolOptimizer};
