//! What readers call the keys of the configuration: as in a `helios.toml`, or as in the `pgbouncer.ini` that it was read
//! from.

use std::sync::atomic::{AtomicBool, Ordering};

use super::pgbouncer;

/// Whether the process serves a `pgbouncer.ini`. It serves one configuration.
static IS_PGBOUNCER: AtomicBool = AtomicBool::new(false);

/// The file that the reader knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Helios,
    PgBouncer,
}

impl Dialect {
    /// That of the process.
    pub(crate) fn current() -> Self {
        if IS_PGBOUNCER.load(Ordering::Relaxed) {
            Self::PgBouncer
        } else {
            Self::Helios
        }
    }

    /// From here on it is that of the process.
    pub(crate) fn speak(self) {
        IS_PGBOUNCER.store(self == Self::PgBouncer, Ordering::Relaxed);
    }

    /// What one of helios's keys is called in it. PgBouncer has no name for some.
    pub(crate) fn key(self, key: &str) -> String {
        let own = match self {
            Self::Helios => None,
            Self::PgBouncer => pgbouncer::name_of(key),
        };
        own.unwrap_or_else(|| format!("`{key}`"))
    }

    /// Where its keys stand.
    pub(crate) fn place(self) -> &'static str {
        match self {
            Self::Helios => "the configuration of helios",
            Self::PgBouncer => "pgbouncer.ini",
        }
    }
}

/// What the reader calls one of helios's keys.
pub(crate) fn key(key: &str) -> String {
    Dialect::current().key(key)
}

/// Where the reader finds it.
pub(crate) fn place() -> &'static str {
    Dialect::current().place()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_names_of_the_file_that_they_were_read_from() {
        for (key, name) in [
            ("clients.max", "`max_client_conn`"),
            ("clients.max_per_user", "`max_user_client_connections`"),
            ("clients.max_per_database", "`max_db_client_connections`"),
            ("clients.idle_timeout", "`client_idle_timeout`"),
            (
                "clients.idle_transaction_timeout",
                "`idle_transaction_timeout`",
            ),
            ("pool.size", "`default_pool_size`"),
            ("pool.acquire_timeout", "`query_wait_timeout`"),
            ("pool.max_per_user", "`max_user_connections`"),
            (
                "users.u.max_clients",
                "`max_user_client_connections` of u in [users]",
            ),
            (
                "users.u.idle_timeout",
                "`client_idle_timeout` of u in [users]",
            ),
            (
                "databases.a.b.max_clients",
                "`max_db_client_connections` of a.b in [databases]",
            ),
            (
                "databases.d.max_connections",
                "`max_db_connections` of d in [databases]",
            ),
            // PgBouncer has no such thing.
            ("clients.write_timeout", "`clients.write_timeout`"),
            ("users.u.write_timeout", "`users.u.write_timeout`"),
        ] {
            assert_eq!(Dialect::PgBouncer.key(key), name);
            assert_eq!(Dialect::Helios.key(key), format!("`{key}`"));
        }
    }
}
