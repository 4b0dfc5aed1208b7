//! How writes reach the cache.

pub(crate) mod replication;
pub(crate) mod wire;
