//! How many clients are let in: of all, of each user and of each database.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::config::{Config, names};
use crate::error::{ClientError, ErrorKind};

use super::{ClientInfo, ClientKind, Identity};

/// Clients of the console beside `clients.max`: who looks after a full gateway must get in, and is no way to fill it.
pub(super) const CONSOLES_MAX: usize = 100;

/// How many there may be of those whom a client is one of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientLimits {
    max: usize,
    /// With the key that says so.
    per_database: Option<(usize, String)>,
    per_user: Option<(usize, String)>,
}

impl ClientLimits {
    /// What the configuration says of a user's clients in a database.
    pub(crate) fn of(config: &Config, user: &str, database: &str) -> Self {
        let own_database = config.databases.get_key_value(database);
        let own_database = own_database.or_else(|| config.databases.get_key_value("*"));
        let of_database = own_database.and_then(|(name, own)| {
            let max = own.max_clients?;
            Some((max, format!("databases.{name}.max_clients")))
        });
        let of_user = config.users.get(user).and_then(|own| own.max_clients);
        let of_user = of_user.map(|max| (max, format!("users.{user}.max_clients")));
        let general =
            |max: Option<usize>, key: &str| max.map(|max| (max, format!("clients.{key}")));
        Self {
            max: config.clients.max,
            per_database: of_database
                .or_else(|| general(config.clients.max_per_database, "max_per_database")),
            per_user: of_user.or_else(|| general(config.clients.max_per_user, "max_per_user")),
        }
    }

    /// What it says of a user's clients of the console. An administrator is counted, and gets in.
    pub(crate) fn of_console(config: &Config, user: &str, is_administrator: bool) -> Self {
        if is_administrator {
            return Self::up_to(config.clients.max);
        }
        // The console is none of the databases that `*` stands for.
        let per_database = config.clients.max_per_database;
        Self {
            per_database: per_database.map(|max| (max, "clients.max_per_database".to_owned())),
            ..Self::of(config, user, "")
        }
    }

    /// With no limit but the one for all.
    pub(super) fn up_to(max: usize) -> Self {
        Self {
            max,
            per_database: None,
            per_user: None,
        }
    }
}

/// Who is in.
#[derive(Debug, Default)]
pub(super) struct Counts {
    clients: usize,
    consoles: usize,
    by_user: HashMap<String, usize>,
    by_database: HashMap<String, usize>,
}

impl Counts {
    /// Counts one in, unless that makes too many.
    pub(super) fn enter(
        &mut self,
        identity: &Identity,
        limits: &ClientLimits,
    ) -> Result<(), ClientError> {
        match identity.kind {
            ClientKind::Console if self.consoles >= CONSOLES_MAX => {
                let hint = format!(
                    "There are {CONSOLES_MAX} of them already: end some with KILL, or by leaving."
                );
                return Err(refused("sorry, too many clients of the console", hint));
            }
            ClientKind::Console => {
                self.check(identity, limits)?;
                self.consoles += 1;
                self.count_in(identity);
                return Ok(());
            }
            ClientKind::Client | ClientKind::Hidb | ClientKind::Lane => {}
        }
        if self.clients >= limits.max {
            let hint = raise("clients.max", limits.max);
            let error = refused("sorry, too many clients already", hint);
            return Err(error.known_as("no more connections allowed (max_client_conn)"));
        }
        // The client that a lane serves was counted when it came.
        if identity.kind == ClientKind::Lane {
            self.clients += 1;
            return Ok(());
        }
        self.check(identity, limits)?;
        self.clients += 1;
        self.count_in(identity);
        Ok(())
    }

    /// Refuses a client that would be one too many of its database or its user.
    fn check(&self, identity: &Identity, limits: &ClientLimits) -> Result<(), ClientError> {
        check(
            &self.by_database,
            counted_as(identity.kind, &identity.database),
            limits.per_database.as_ref(),
            ("database", "max_db_client_connections"),
        )?;
        check(
            &self.by_user,
            &identity.user,
            limits.per_user.as_ref(),
            ("user", "max_user_client_connections"),
        )
    }

    fn count_in(&mut self, identity: &Identity) {
        let database = counted_as(identity.kind, &identity.database).to_owned();
        *self.by_user.entry(identity.user.clone()).or_default() += 1;
        *self.by_database.entry(database).or_default() += 1;
    }

    /// Counts one out.
    pub(super) fn leave(&mut self, client: &ClientInfo) {
        match client.kind {
            ClientKind::Lane => {
                self.clients -= 1;
                return;
            }
            ClientKind::Console => self.consoles -= 1,
            ClientKind::Client | ClientKind::Hidb => self.clients -= 1,
        }
        count_out(&mut self.by_user, &client.user);
        let database = counted_as(client.kind, &client.database);
        count_out(&mut self.by_database, database);
    }
}

/// The console has several names.
fn counted_as(kind: ClientKind, database: &str) -> &str {
    match kind {
        ClientKind::Console => "helios",
        ClientKind::Client | ClientKind::Hidb | ClientKind::Lane => database,
    }
}

fn check(
    counts: &HashMap<String, usize>,
    name: &str,
    limit: Option<&(usize, String)>,
    (what, known_as): (&str, &str),
) -> Result<(), ClientError> {
    match limit {
        Some((max, key)) if counts.get(name).is_some_and(|count| count >= max) => {
            let message = format!("too many connections for {what} \"{name}\"");
            let known_as = format!("client connections exceeded ({known_as})");
            Err(refused(message, raise(key, *max)).known_as(known_as))
        }
        _ => Ok(()),
    }
}

/// Names without clients are not kept: a client can give itself any.
fn count_out(counts: &mut HashMap<String, usize>, name: &str) {
    if let Entry::Occupied(mut count) = counts.entry(name.to_owned()) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

fn raise(key: &str, max: usize) -> String {
    let (key, place) = (names::key(key), names::place());
    format!("Raise {key}, which is {max}, in {place}.")
}

fn refused(message: impl Into<String>, hint: String) -> ClientError {
    ClientError::new(ErrorKind::Config, "53300", message)
        .hint(hint)
        .fatal()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use super::*;
    use crate::clients::{Admitted, ClientRegistry, Peer};

    fn identity(kind: ClientKind, user: &str, database: &str) -> Identity {
        Identity {
            kind,
            user: user.to_owned(),
            database: database.to_owned(),
            application_name: String::new(),
            peer: Peer::Tcp(SocketAddr::from(([127, 0, 0, 1], 1))),
            secret_len: 4,
        }
    }

    fn config(text: &str) -> Config {
        Config::parse(text, "f").expect("readable")
    }

    fn admit(
        registry: &Arc<ClientRegistry>,
        config: &Config,
        (kind, user, database): (ClientKind, &str, &str),
    ) -> Result<Admitted, ClientError> {
        let limits = ClientLimits::of(config, user, database);
        registry.admit(identity(kind, user, database), &limits)
    }

    #[test]
    fn the_nearest_key_counts_and_the_hint_names_it() {
        let text = "upstream.url = \"postgres://h\"\n[clients]\nmax = 9\nmax_per_user = 2\nmax_per_database = 3\n\
                    [users.few]\nmax_clients = 1\n[databases.small]\nmax_clients = 1\n[databases.\"*\"]\nmax_clients = 4\n";
        let config = config(text);
        let told = |user, database| {
            let limits = ClientLimits::of(&config, user, database);
            [limits.per_user, limits.per_database].map(|limit| limit.expect("set"))
        };
        let limit = |max, key: &str| (max, key.to_owned());
        assert_eq!(
            told("few", "small"),
            [
                limit(1, "users.few.max_clients"),
                limit(1, "databases.small.max_clients")
            ]
        );
        assert_eq!(
            told("x", "y"),
            [
                limit(2, "clients.max_per_user"),
                limit(4, "databases.*.max_clients")
            ]
        );
    }

    #[test]
    fn each_limit_is_exact_and_who_was_refused_is_not_counted() {
        let config = config("[clients]\nmax = 4\nmax_per_user = 2\nmax_per_database = 3\n");
        let registry = Arc::new(ClientRegistry::default());
        let mut inside = Vec::new();
        let enter =
            |user, database| admit(&registry, &config, (ClientKind::Client, user, database));
        for (user, database) in [("a", "x"), ("a", "x"), ("b", "x")] {
            inside.push(enter(user, database).expect("room"));
        }
        for (user, database, key) in [
            ("a", "y", "clients.max_per_user"),
            ("c", "x", "clients.max_per_database"),
        ] {
            let error = enter(user, database).expect_err("full");
            assert_eq!(error.sqlstate, "53300");
            assert!(
                error.hint.as_ref().is_some_and(|hint| hint.contains(key)),
                "{error:?}"
            );
        }
        inside.push(enter("c", "y").expect("room"));
        let error = enter("d", "z").expect_err("full");
        assert!(
            error
                .hint
                .is_some_and(|hint| hint.contains("`clients.max`"))
        );
        // Who leaves makes room in all three.
        inside.clear();
        let counts = |registry: &ClientRegistry| {
            let clients = registry.clients.lock();
            let counts = &clients.counts;
            (
                counts.clients,
                counts.by_user.len(),
                counts.by_database.len(),
            )
        };
        assert_eq!(counts(&registry), (0, 0, 0));
    }

    #[test]
    fn the_console_is_open_where_the_gateway_is_full_and_lanes_are_of_the_user_that_they_serve() {
        let config = config("[clients]\nmax = 3\nmax_per_user = 1\n");
        let registry = Arc::new(ClientRegistry::default());
        let enter = |kind, user| admit(&registry, &config, (kind, user, "d"));
        let console = || {
            let limits = ClientLimits::of_console(&config, "u", true);
            registry.admit(identity(ClientKind::Console, "u", "helios"), &limits)
        };
        let hidb = enter(ClientKind::Hidb, "u").expect("room");
        assert!(enter(ClientKind::Client, "u").is_err());
        let lanes = [enter(ClientKind::Lane, "u"), enter(ClientKind::Lane, "u")]
            .map(|lane| lane.expect("room"));
        assert!(enter(ClientKind::Lane, "u").is_err(), "they take room");
        let consoles: Vec<_> = (0..CONSOLES_MAX)
            .map(|_| console().expect("room"))
            .collect();
        assert_eq!(console().expect_err("bounded").sqlstate, "53300");
        drop((consoles, lanes));
        assert!(enter(ClientKind::Client, "u").is_err());
        let others = [
            enter(ClientKind::Client, "v"),
            enter(ClientKind::Client, "w"),
        ];
        assert!(others.iter().all(Result::is_ok));
        drop((hidb, others));
        drop(enter(ClientKind::Client, "u").expect("room"));
        drop(console().expect("room"));
    }

    #[test]
    fn clients_of_the_console_count_and_its_administrators_get_in_nevertheless() {
        let text = "[clients]\nmax_per_user = 2\nmax_per_database = 3\n[users.few]\nmax_clients = 1\n\
                    [databases.\"*\"]\nurl = \"postgres://h\"\nmax_clients = 1\n";
        let config = config(text);
        let registry = Arc::new(ClientRegistry::default());
        let console = |user, database, is_administrator| {
            let limits = ClientLimits::of_console(&config, user, is_administrator);
            registry.admit(identity(ClientKind::Console, user, database), &limits)
        };
        let looks = |user| console(user, "pgbouncer", false);
        let few = looks("few").expect("room");
        assert!(looks("few").is_err(), "one of its user");
        let mut inside = vec![few];
        inside.push(looks("a").expect("the limit of * is not the console's"));
        inside.push(console("a", "helios", false).expect("room"));
        assert!(looks("b").is_err(), "three of the console under any name");
        for _ in 0..3 {
            inside.push(console("b", "helios", true).expect("an administrator"));
        }
        let error = admit(&registry, &config, (ClientKind::Client, "b", "d")).expect_err("full");
        assert!(error.message.contains("for user \"b\""), "{error}");
        inside.clear();
        drop(looks("b").expect("they have left"));
        drop(admit(&registry, &config, (ClientKind::Client, "b", "d")).expect("room"));
    }
}
