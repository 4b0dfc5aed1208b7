//! Where the name of a database leads, and under what limits: the configuration, worked out for a user and a database.
//! No I/O.

use std::collections::BTreeMap;
use std::time::Duration;

use heliosdb_network::error::{HeliosError, Result};
use heliosdb_network::postgres::{Credential, PgTarget};

use crate::config::names::{self, Dialect};
use crate::config::{Config, DatabaseConfig, PoolMode, names_database};
use crate::error::{ClientError, ErrorKind};

/// What the names that clients use stand for.
#[derive(Debug)]
pub(crate) struct Routes {
    by_name: BTreeMap<String, Route>,
    /// For every other name.
    fallback: Option<Route>,
    /// One user, one database, one connection: the server inside this process.
    embedded: bool,
    config: Config,
}

/// A server and database.
#[derive(Debug, Clone)]
struct Route {
    target: PgTarget,
    /// All clients are the target's user to the server; otherwise each is who it is, and the target's password is that
    /// of the target's user alone.
    forces_user: bool,
    /// The database has the name that the client uses.
    takes_name: bool,
    config: DatabaseConfig,
}

/// Where a client's user and database lead.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Destination {
    pub(crate) target: PgTarget,
    pub(crate) limits: PoolLimits,
    /// Whether answers may be cached.
    pub(crate) caches: bool,
    /// Whether the target is one that can follow the server's log: it was named with a user.
    pub(crate) can_follow: bool,
}

/// What is shown of a name.
#[derive(Debug)]
pub(crate) struct Shown<'r> {
    pub(crate) target: &'r PgTarget,
    pub(crate) forces_user: bool,
    pub(crate) takes_name: bool,
    pub(crate) config: &'r DatabaseConfig,
    pub(crate) limits: PoolLimits,
}

/// What a pool of server connections is held to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PoolLimits {
    pub(crate) mode: PoolMode,
    pub(crate) size: usize,
    pub(crate) min_idle: usize,
    pub(crate) reserve_size: usize,
    pub(crate) reserve_timeout: Duration,
    /// How long a client waits for a connection.
    pub(crate) acquire_timeout: Duration,
    pub(crate) max_lifetime: Duration,
    pub(crate) connect_query: Option<String>,
    /// All clients of the database are one user to the server.
    pub(crate) is_shared: bool,
    /// Server connections of all users of the database together.
    pub(crate) max_per_database: Option<usize>,
    /// Server connections of the user to all databases together.
    pub(crate) max_per_user: Option<usize>,
}

impl Routes {
    /// `main` is the server of `upstream.url`, or the embedded one.
    ///
    /// # Errors
    /// A URL that can't be used.
    pub(crate) fn new(main: Option<&PgTarget>, embedded: bool, config: &Config) -> Result<Self> {
        let fallback = main.map(|target| Route {
            target: target.clone(),
            forces_user: embedded,
            takes_name: !embedded,
            config: DatabaseConfig::default(),
        });
        let mut routes = Self {
            by_name: BTreeMap::new(),
            fallback,
            embedded,
            config: config.clone(),
        };
        for (name, database) in &config.databases {
            let route = routes.route(name, database)?;
            if name == ANY {
                routes.fallback = Some(route);
            } else {
                routes.by_name.insert(name.clone(), route);
            }
        }
        Ok(routes)
    }

    fn route(&self, name: &str, database: &DatabaseConfig) -> Result<Route> {
        let config = database.clone();
        let Some(url) = &database.url else {
            // The server of `upstream.url`: everybody is who they are.
            let main = self.fallback.clone();
            let route = main.ok_or_else(|| {
                HeliosError::Unsupported(format!(
                    "database {name} has no url, nor is there an upstream.url"
                ))
            })?;
            return Ok(Route { config, ..route });
        };
        let mut target = PgTarget::from_url(url)?;
        target.connect_timeout = self.config.upstream.connect_timeout;
        Ok(Route {
            target,
            forces_user: database.names_user(),
            takes_name: !names_database(url),
            config,
        })
    }

    /// Where a client of this name goes that asks for this database.
    ///
    /// # Errors
    /// Nothing is known under the database's name.
    pub(crate) fn destination(
        &self,
        user: &str,
        database: &str,
    ) -> std::result::Result<Destination, ClientError> {
        let route = self.by_name.get(database).or(self.fallback.as_ref());
        let route = route.ok_or_else(|| no_database(database))?;
        let mut target = route.target.clone();
        if !route.forces_user && target.user != user {
            user.clone_into(&mut target.user);
            // The password is another user's.
            target.credential = Credential::None;
        }
        if route.takes_name {
            database.clone_into(&mut target.database);
        }
        let names_user = route.forces_user || route.config.url.is_none();
        Ok(Destination {
            limits: self.limits(&target.user, route),
            caches: route.config.cache.unwrap_or(true),
            can_follow: !self.embedded && names_user,
            target,
        })
    }

    /// The target that the server is asked for its users with, for a database that a client wants: as the user of the
    /// URL.
    pub(crate) fn asking(&self, database: &str) -> Option<PgTarget> {
        (!self.embedded).then(|| self.following(database)).flatten()
    }

    /// The target that the server's log is followed with, for a database that a client of any name reached.
    pub(crate) fn following(&self, database: &str) -> Option<PgTarget> {
        let route = self.by_name.get(database).or(self.fallback.as_ref())?;
        let mut target = route.target.clone();
        if route.takes_name {
            database.clone_into(&mut target.database);
        }
        Some(target)
    }

    fn limits(&self, user: &str, route: &Route) -> PoolLimits {
        let database = &route.config;
        let pool = &self.config.pool;
        let user = self.config.users.get(user);
        let of_user =
            |value: &dyn Fn(&crate::config::UserConfig) -> Option<usize>| user.and_then(value);
        let size = of_user(&|user| user.pool_size)
            .or(database.pool_size)
            .unwrap_or(pool.size);
        PoolLimits {
            mode: user
                .and_then(|user| user.pool_mode)
                .or(database.pool_mode)
                .unwrap_or(pool.mode),
            size,
            min_idle: database.min_idle.unwrap_or(pool.min_idle).min(size),
            reserve_size: of_user(&|user| user.reserve_size)
                .or(database.reserve_size)
                .unwrap_or(pool.reserve_size),
            reserve_timeout: pool.reserve_timeout,
            acquire_timeout: user
                .and_then(|user| user.acquire_timeout)
                .or(database.acquire_timeout)
                .unwrap_or(pool.acquire_timeout),
            max_lifetime: database.max_lifetime.unwrap_or(pool.max_lifetime),
            connect_query: database.connect_query.clone(),
            is_shared: route.forces_user,
            max_per_database: database.max_connections.or(pool.max_per_database),
            max_per_user: of_user(&|user| user.max_connections).or(pool.max_per_user),
        }
    }

    /// The names of databases that keep connections ready for a user of their own.
    pub(crate) fn kept_ready(&self) -> Vec<String> {
        let is_kept = |route: &Route| {
            !self.embedded
                && route.forces_user
                && self.limits(&route.target.user, route).min_idle > 0
        };
        let kept = self.by_name.iter().filter(|(_, route)| is_kept(route));
        kept.map(|(name, _)| name.clone()).collect()
    }

    /// Whether a name leads somewhere only because every name does.
    pub(crate) fn is_automatic(&self, database: &str) -> bool {
        !self.embedded && !self.by_name.contains_key(database)
    }

    /// What the console shows of a name.
    pub(crate) fn shown(&self, database: &str) -> Option<Shown<'_>> {
        let route = self.by_name.get(database).or(self.fallback.as_ref())?;
        // The limits of a user that nothing is said about.
        Some(Shown {
            target: &route.target,
            forces_user: route.forces_user,
            takes_name: route.takes_name,
            config: &route.config,
            limits: self.limits(
                if route.forces_user {
                    &route.target.user
                } else {
                    ""
                },
                route,
            ),
        })
    }

    /// The names that lead somewhere, and where, for the console. The last one stands for all others, if there is one.
    pub(crate) fn listed(&self) -> Vec<(&str, &PgTarget)> {
        let named = self
            .by_name
            .iter()
            .map(|(name, route)| (&**name, &route.target));
        let fallback = self.fallback.iter().map(|route| (ANY, &route.target));
        named.chain(fallback).collect()
    }

    pub(crate) fn is_embedded(&self) -> bool {
        self.embedded
    }
}

/// Stands for every name that is not listed.
const ANY: &str = "*";

/// The server's addresses, as its part of the identity of a database.
pub(crate) fn server_of(target: &PgTarget) -> String {
    let places: Vec<String> = target.places.iter().map(ToString::to_string).collect();
    places.join(",")
}

fn no_database(name: &str) -> ClientError {
    let place = names::place();
    let hint = match Dialect::current() {
        Dialect::Helios => format!("Add it to `databases` in {place}."),
        Dialect::PgBouncer => {
            format!("There is no such database: {name}. Add it to [databases] in {place}.")
        }
    };
    ClientError::new(
        ErrorKind::Client,
        "3D000",
        format!("database \"{name}\" does not exist"),
    )
    .hint(hint)
    .known_as(format!("no such database: {name}"))
    .fatal()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(text: &str) -> Routes {
        let config = Config::parse(text, "f").expect("readable");
        config.validate().expect("valid");
        let main = config.upstream.url.as_deref();
        let main = main.map(|url| PgTarget::from_url(url).expect("valid"));
        Routes::new(main.as_ref(), false, &config).expect("valid")
    }

    fn leads(routes: &Routes, user: &str, database: &str) -> String {
        let destination = routes.destination(user, database).expect("known");
        let password = match &destination.target.credential {
            Credential::Password(password) => password.as_str(),
            _ => "",
        };
        format!("{} {password}", destination.target)
    }

    #[test]
    fn a_url_alone_leads_everybody_to_the_database_of_the_name() {
        let routes = routes("upstream.url = \"postgres://own:pw@h:1/d\"");
        assert_eq!(leads(&routes, "own", "x"), "own@h:1/x pw");
        assert_eq!(leads(&routes, "app", "d"), "app@h:1/d ");
        assert_eq!(
            routes.following("x").expect("known").to_string(),
            "own@h:1/x"
        );
    }

    #[test]
    fn names_lead_where_their_urls_say() {
        let text =
            "[databases]\na.url = \"postgres://h:1\"\nb.url = \"postgres://u:pw@h:1/real\"\n";
        let known = routes(text);
        assert_eq!(leads(&known, "app", "a"), "app@h:1/a ");
        assert_eq!(leads(&known, "app", "b"), "u@h:1/real pw");
        let error = known.destination("app", "c").expect_err("unknown");
        assert_eq!(error.sqlstate, "3D000");
        let text = format!("{text}\"*\".url = \"postgres://other:2\"\n");
        assert_eq!(leads(&routes(&text), "app", "c"), "app@other:2/c ");
    }

    #[test]
    fn a_user_goes_over_the_database_and_that_over_the_pool() {
        let routes = routes(
            "upstream.url = \"postgres://h\"\npool.size = 7\n[databases.d]\npool_size = 3\npool_mode = \"session\"\n\
             max_connections = 9\n[users.u]\npool_size = 2\npool_mode = \"statement\"\nmax_connections = 4\n",
        );
        let limits = |user, database| routes.destination(user, database).expect("known").limits;
        let told = |user, database| {
            let limits = limits(user, database);
            (
                limits.size,
                limits.mode,
                limits.max_per_database,
                limits.max_per_user,
            )
        };
        assert_eq!(told("x", "y"), (7, PoolMode::Transaction, None, None));
        assert_eq!(told("x", "d"), (3, PoolMode::Session, Some(9), None));
        assert_eq!(told("u", "d"), (2, PoolMode::Statement, Some(9), Some(4)));
    }
}
