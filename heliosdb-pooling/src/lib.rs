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
//! Two statements with one fingerprint are two statements to a server that prepared them. Who knows them apart keeps a
//! [`StatementAffinity`] with each, which costs no look-up; `tests/affinity_simulation.rs` shows what it brings.
//!
//! How large the pool should be is [`sizing`]'s part for a load that is known, and [`advisor`]'s for one that changes.
//!
//! # Guarantees
//! * **Bounded** in both dimensions: at most [`MAX_FINGERPRINTS`] statements (configurable), the least recently recorded
//!   forgotten first, with at most [`MAX_AFFINITY_CONNECTIONS`] distinct connections each. A statement takes no more
//!   than [`MAX_FINGERPRINT_BYTES`] for its text and about 8 KiB for the rest, mostly the sketches of its times: 9 MiB in all
//!   by default, where all are used often and take very different times. A [`StatementAffinity`] takes 112 bytes and lives
//!   as long as its statement.
//! * **Fresh**: a connection that was forgotten is not advised again, unless it is recorded again.
//! * **Constant time** for recording and asking.
//!
//! # Limits
//! A fingerprint is for statistics: the cache compares statements in full. Advice must never go before fairness: it is
//! a choice among idle connections, not a reason to wait for one. So it can't help where all connections are always in use.
#![forbid(unsafe_code)]

pub mod advisor;
mod affinity;
mod fingerprint;
mod latency;
mod optimizer;
mod recency;
pub mod sizing;
mod statements;

pub use affinity::{MAX_AFFINITY_CONNECTIONS, PreferredConnections, StatementAffinity};
pub use fingerprint::{MAX_FINGERPRINT_BYTES, QueryFingerprint};
pub use latency::Latency;
pub use optimizer::{MAX_FINGERPRINTS, PoolOptimizer};
pub use statements::{StatementHandle, StatementStats};
