//! Real servers for tests, started for one test and gone with it.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let cluster = heliosdb_testkit::PostgresCluster::start()?;
//! assert_eq!(cluster.psql("postgres", "SELECT 1")?, "1");
//! # Ok(()) }
//! ```
#![forbid(unsafe_code)]

pub mod certificates;
mod postgres;
mod process;
mod redis;

pub use postgres::{PostgresBuilder, PostgresCluster, postgres_bin_dir};
pub use process::free_port;
pub use redis::{RedisCluster, RedisServer};
