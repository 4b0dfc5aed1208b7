//! `[databases.NAME]` and `[users.NAME]`: where a name leads, and what differs there.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use super::{PoolMode, file, show};

/// Databases by the names that clients use. `*` stands for every other name.
pub type Databases = BTreeMap<String, DatabaseConfig>;

/// Users by name.
pub type Users = BTreeMap<String, UserConfig>;

/// Where a database's name leads. What is absent is as in `[upstream]`, `[pool]` and `[clients]`.
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct DatabaseConfig {
    /// `postgres://host:port/database`. A user in it (`postgres://user:password@...`) is who all clients are to the
    /// server, with the password of `auth.file` if there is none in it; without one they are who they are. Without a
    /// database, the name is the server's, too. Absent: the server of `upstream.url`.
    pub url: Option<String>,
    /// When a client's server connection goes back to the pool.
    pub pool_mode: Option<PoolMode>,
    /// Server connections for each user. At least 1.
    pub pool_size: Option<usize>,
    /// Idle ones kept ready. At most `pool_size`.
    pub min_idle: Option<usize>,
    /// More server connections for each user, for clients that have waited `pool.reserve_timeout`.
    pub reserve_size: Option<usize>,
    /// Server connections of all users together. At least 1; absent: as `pool.max_per_database`.
    pub max_connections: Option<usize>,
    /// Clients at the same time. At least 1; absent: as `clients.max_per_database`.
    pub max_clients: Option<usize>,
    /// How long a client waits for a server connection.
    #[serde(deserialize_with = "file::some_duration")]
    pub acquire_timeout: Option<Duration>,
    /// Age at which a server connection is replaced.
    #[serde(deserialize_with = "file::some_duration")]
    pub max_lifetime: Option<Duration>,
    /// Statements that each new server connection begins with.
    pub connect_query: Option<String>,
    /// How the server is asked for the secret of a user of this database. Absent: as `auth.query`.
    pub auth_query: Option<String>,
    /// As whom the server is asked. `off`: it is not. Absent: as `auth.query_user`.
    pub auth_query_user: Option<String>,
    /// In which database, by the name that clients use. Absent: as `auth.query_database`.
    pub auth_query_database: Option<String>,
    /// Whether answers are cached. Default true, if `cache.enabled`.
    pub cache: Option<bool>,
}

/// What differs for a user. What is absent is as in `[pool]` and `[clients]`; what is there goes over what its
/// database says.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct UserConfig {
    /// When this user's server connections go back to the pool.
    pub pool_mode: Option<PoolMode>,
    /// Server connections to each database. At least 1.
    pub pool_size: Option<usize>,
    /// More of them, for clients that have waited `pool.reserve_timeout`.
    pub reserve_size: Option<usize>,
    /// Server connections to all databases together. At least 1; absent: as `pool.max_per_user`.
    pub max_connections: Option<usize>,
    /// Clients at the same time. At least 1; absent: as `clients.max_per_user`.
    pub max_clients: Option<usize>,
    /// How long a client waits for a server connection.
    #[serde(deserialize_with = "file::some_duration")]
    pub acquire_timeout: Option<Duration>,
    /// Bound on a statement.
    #[serde(deserialize_with = "file::some_bound")]
    pub query_timeout: Option<Bound>,
    /// Bound on a transaction.
    #[serde(deserialize_with = "file::some_bound")]
    pub transaction_timeout: Option<Bound>,
    /// How long a transaction may be idle.
    #[serde(deserialize_with = "file::some_bound")]
    pub idle_transaction_timeout: Option<Bound>,
    /// How long a client may be idle outside of transactions.
    #[serde(deserialize_with = "file::some_bound")]
    pub idle_timeout: Option<Bound>,
}

/// A bound on time, or none: `"off"` in the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bound {
    /// So long. Longer than zero.
    At(Duration),
    /// There is none.
    #[default]
    Off,
}

impl Bound {
    /// The bound, if there is one.
    #[must_use]
    pub fn get(self) -> Option<Duration> {
        match self {
            Self::At(bound) => Some(bound),
            Self::Off => None,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(bound) => humantime::format_duration(*bound).fmt(f),
            Self::Off => f.write_str("off"),
        }
    }
}

impl DatabaseConfig {
    /// True if `url` says who all clients are to the server.
    pub(crate) fn names_user(&self) -> bool {
        self.url.as_deref().is_some_and(names_user)
    }
}

/// True if a server's URL names a user.
fn names_user(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = place
        .split_once('/')
        .map_or(place, |(authority, _)| authority);
    let login = authority.rsplit_once('@').map_or("", |(login, _)| login);
    !login.split(':').next().unwrap_or_default().is_empty()
        || query.split('&').any(|part| part.starts_with("user="))
}

/// True if a server's URL names a database.
pub(crate) fn names_database(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    place
        .split_once('/')
        .is_some_and(|(_, database)| !database.is_empty())
        || query.split('&').any(|part| part.starts_with("dbname="))
}

impl fmt::Debug for DatabaseConfig {
    /// Without the password: configurations end up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.url.as_deref().map(show::without_password);
        f.debug_struct("DatabaseConfig")
            .field("url", &shown)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_and_what_a_url_names_is_told_apart() {
        for (url, user, database) in [
            ("postgres://h", false, false),
            ("postgres://h:1/", false, false),
            ("postgres://h/d", false, true),
            ("postgres://u@h", true, false),
            ("postgres://u:p@w@h1,h2/d?x=1", true, true),
            ("postgres://:p@h/d", false, true),
            ("postgres:///?host=/tmp&user=u", true, false),
            ("postgres:///?dbname=d", false, true),
        ] {
            assert_eq!(
                (names_user(url), names_database(url)),
                (user, database),
                "{url}"
            );
        }
    }
}
