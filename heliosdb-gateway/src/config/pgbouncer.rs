//! PgBouncer's configuration, read as if it were helios's own.
//!
//! [`read`] makes a configuration of an ini file, with PgBouncer's defaults, and notes on what became of each key.
//! Everything that PgBouncer knows is known here: it has a counterpart, or it is left out for a reason that is told, or it is
//! refused where leaving it out would be dangerous. What PgBouncer does not know is refused, as PgBouncer does.

mod ini;
mod keys;
mod names;
mod sections;

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::auth::NOBODY;
use super::{AuthType, Bound, Config, ConfigError, Invalidation, PoolMode, Row, show};

use ini::{Entry, Place};
use keys::{Fate, KEYS};

pub(crate) use names::name_of;

/// What became of something in an ini file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Note {
    /// File and line; none for a default that is not helios's.
    pub place: Option<String>,
    /// The key, or the name of the database or user with it.
    pub key: String,
    /// What became of it.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}: {}", self.key, self.text)
    }
}

/// What is known while an ini file is read.
#[derive(Debug)]
struct Draft {
    config: Config,
    listen_addr: String,
    port: u16,
    /// Parameters of every server's URL. An empty one is none.
    server_tls: Vec<(&'static str, String)>,
}

impl Draft {
    /// With PgBouncer's defaults.
    fn new() -> Self {
        let mut config = Config {
            http: None,
            unix_socket_dir: Some(PathBuf::from("/tmp")),
            // Who has PgBouncer in front of a server may well have writers that go past it, and was never asked: what they
            // write has to be seen, or nothing is kept.
            invalidation: Invalidation::Replication,
            ..Config::default()
        };
        config.hidb.listen.clear();
        config.upstream.connect_timeout = Duration::from_secs(15);
        config.pool.mode = PoolMode::Session;
        config.pool.acquire_timeout = Duration::from_secs(120);
        config.pool.max_prepared_statements = 200;
        config.auth.kind = AuthType::Md5;
        // For PgBouncer a user whom neither auth_file nor auth_query knows is none, whatever auth_type is.
        config.auth.known_users_only = true;
        // Without auth_user it asks nobody, whatever auth_query is.
        config.auth.query_user = Some(NOBODY.to_owned());
        config.clients.max = 100;
        config.clients.login_timeout = Duration::from_secs(60);
        config.log.connections = true;
        config.log.disconnections = true;
        config.log.stats = true;
        config.clients.wait_notice = Bound::At(Duration::from_secs(5));
        Self::of(config)
    }

    fn of(config: Config) -> Self {
        Self {
            config,
            listen_addr: String::new(),
            port: 6432,
            server_tls: Vec::new(),
        }
    }

    fn set_server_tls(&mut self, name: &'static str, value: &str) {
        self.server_tls.retain(|(known, _)| *known != name);
        self.server_tls.push((name, value.to_owned()));
    }
}

/// Reads PgBouncer's configuration file, and what it includes.
///
/// # Errors
/// [`ConfigError`] with the line, where a file can't be read or understood, or where something can't work here.
pub fn from_file(file: &Path) -> Result<(Config, Vec<Note>), ConfigError> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|error| ConfigError::File {
        file: name.clone(),
        reason: error.to_string(),
    })?;
    read(&text, &name, &mut |path| std::fs::read_to_string(path))
}

/// Reads the text of PgBouncer's configuration. `include` reads the files that it includes.
///
/// # Errors
/// [`ConfigError`] with the line.
pub fn read(
    text: &str,
    file: &str,
    include: &mut dyn FnMut(&Path) -> std::io::Result<String>,
) -> Result<(Config, Vec<Note>), ConfigError> {
    let entries = ini::entries(text, file, include)?;
    let mut reading = Reading {
        draft: Draft::new(),
        notes: Vec::new(),
    };
    // What databases mean depends on the rest, wherever it stands.
    let (general, named): (Vec<Entry>, Vec<Entry>) = entries
        .into_iter()
        .partition(|entry| entry.section == "pgbouncer");
    for entry in &general {
        reading.general(entry)?;
    }
    reading.listen(&general)?;
    reading.authenticate(&general);
    for entry in &named {
        reading.named(entry)?;
    }
    if reading.draft.config.databases.is_empty() {
        return Err(ConfigError::Value {
            key: "[databases]",
            value: "none".to_owned(),
            reason: "name at least one database, or * for all".to_owned(),
        });
    }
    reading.say_defaults(&general);
    Ok((reading.draft.config, reading.notes))
}

/// The keys of PgBouncer's that have a counterpart, with its value.
pub(crate) fn rows(config: &Config) -> Vec<Row> {
    let mapped = KEYS.iter().filter_map(|key| match key.fate {
        Fate::Maps { to, show, .. } => Some(Row {
            name: key.name.to_owned(),
            value: show(config),
            default: key.default.to_owned(),
            reloadable: show::is_reloadable(to),
        }),
        Fate::Ignored(_) | Fate::Refused(_) => None,
    });
    mapped.collect()
}

/// A configuration with another value of one of PgBouncer's keys. `None` if it has no such key.
pub(crate) fn set(config: &Config, key: &str, value: &str) -> Option<Result<Config, String>> {
    let known = KEYS.iter().find(|known| known.name == key)?;
    Some(match known.fate {
        Fate::Maps { to, .. } if to != URLS && !show::is_reloadable(to) => {
            Err(format!("{key} can't change while helios runs"))
        }
        Fate::Maps { set, .. } => {
            let mut draft = Draft::of(config.clone());
            set(&mut draft, value).and_then(|_| {
                for database in draft.config.databases.values_mut() {
                    if let Some(url) = &mut database.url {
                        *url = sections::with_server_tls(url, &draft.server_tls);
                    }
                }
                let valid = draft.config.validate();
                valid.map_err(|error| error.to_string())?;
                Ok(draft.config)
            })
        }
        // Accepted, as in a file.
        Fate::Ignored(_) => Ok(config.clone()),
        Fate::Refused(_) if value == known.default => Ok(config.clone()),
        Fate::Refused(why) => Err(why.to_owned()),
    })
}

/// What the keys for TLS towards servers are here: parameters of every database's URL.
const URLS: &str = "databases.*.url";

/// The text of a `helios.toml` that means the same as a configuration that was read here, with the notes as comments.
#[must_use]
pub fn to_toml(config: &Config, notes: &[Note]) -> String {
    let mut text = "# Made from PgBouncer's configuration by `helios migrate`.\n#\n".to_owned();
    for note in notes {
        let _ = writeln!(text, "# {}", note.to_string().replace('\n', " "));
    }
    text.push('\n');
    text.push_str(&config.to_toml());
    text
}

/// An ini file being read.
struct Reading {
    draft: Draft,
    notes: Vec<Note>,
}

impl Reading {
    fn note(&mut self, at: Option<&Place>, key: &str, text: impl Into<String>) {
        self.notes.push(Note {
            place: at.map(|at| format!("{}:{}", at.file, at.line)),
            key: key.to_owned(),
            text: text.into(),
        });
    }

    /// A line of `[pgbouncer]`.
    fn general(&mut self, entry: &Entry) -> Result<(), ConfigError> {
        let Some(key) = KEYS.iter().find(|key| key.name == entry.key) else {
            let names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
            return Err(entry.at.error(unknown("parameter", &entry.key, &names)));
        };
        let text = match key.fate {
            Fate::Maps { to, set, .. } => {
                let remark = set(&mut self.draft, &entry.value);
                let remark =
                    remark.map_err(|why| entry.at.error(format!("{}: {why}", key.name)))?;
                match remark {
                    Some(remark) => format!("is {to}; {remark}"),
                    None => format!("is {to}"),
                }
            }
            Fate::Ignored(why) => format!("left out: {why}"),
            Fate::Refused(_) if entry.value == key.default => {
                "left out: it is as by default".to_owned()
            }
            Fate::Refused(why) => {
                let message = format!("{} = {}: {why}", key.name, entry.value);
                return Err(entry.at.error(message));
            }
        };
        self.note(Some(&entry.at), key.name, text);
        Ok(())
    }

    /// A line of another section.
    fn named(&mut self, entry: &Entry) -> Result<(), ConfigError> {
        let at = &entry.at;
        let wrong = |why: String| at.error(format!("{}: {why}", entry.key));
        match &*entry.section {
            "databases" => {
                if crate::admin::is_console(&entry.key) {
                    return Err(wrong("is the admin console's name".to_owned()));
                }
                let read = sections::database(&self.draft, &entry.value);
                let (database, remarks) = read.map_err(wrong)?;
                let is_any = entry.key == "*";
                self.draft
                    .config
                    .databases
                    .insert(entry.key.clone(), database);
                self.remark(at, "databases", &entry.key, remarks);
                if is_any {
                    self.note(Some(at), "databases.*", "is every name that is not listed");
                }
            }
            "users" => {
                let user = sections::user(&entry.value).map_err(wrong)?;
                self.draft.config.users.insert(entry.key.clone(), user);
            }
            "peers" => {
                let why = "left out: cancel requests are not passed between processes; one process uses all processors";
                self.note(Some(at), &format!("peers.{}", entry.key), why);
            }
            // helios's own keys, as its file has them.
            "helios" => {
                let changed = self.draft.config.with(&entry.key, &entry.value);
                self.draft.config = changed
                    .ok_or_else(|| {
                        let rows = Config::default().rows();
                        let names: Vec<&str> = rows.iter().map(|row| &*row.name).collect();
                        at.error(unknown("key", &entry.key, &names))
                    })?
                    .map_err(wrong)?;
            }
            other => {
                let known = ["databases", "helios", "peers", "pgbouncer", "users"];
                return Err(at.error(unknown("section", other, &known)));
            }
        }
        Ok(())
    }

    fn remark(&mut self, at: &Place, section: &str, name: &str, remarks: sections::Remarks) {
        for (key, remark) in remarks {
            self.note(Some(at), &format!("{section}.{name}.{key}"), remark);
        }
    }

    /// `listen_addr` and `listen_port` together.
    fn listen(&mut self, general: &[Entry]) -> Result<(), ConfigError> {
        let port = self.draft.port;
        let at = last(general, "listen_addr").map(|entry| entry.at.clone());
        let mut addresses = Vec::new();
        let listed = self.draft.listen_addr.clone();
        for name in listed
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            let address = address_of(name).ok_or_else(|| {
                let message = format!("listen_addr: {name} is no address of this machine");
                at.as_ref().map_or_else(
                    || ConfigError::Value {
                        key: "listen_addr",
                        value: name.to_owned(),
                        reason: "is no address".to_owned(),
                    },
                    |at| at.error(message),
                )
            })?;
            let address = SocketAddr::new(address, port);
            if !addresses.contains(&address) {
                addresses.push(address);
            }
            if name == "*" {
                self.note(at.as_ref(), "listen_addr", "* is 0.0.0.0; for IPv6, add ::");
            }
        }
        if addresses.is_empty() {
            addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
            let text = "is not given: helios listens on 127.0.0.1 beside the Unix-domain socket";
            self.note(None, "listen_addr", text);
        }
        self.draft.config.listen = addresses;
        Ok(())
    }

    /// What the keys on authentication mean together.
    fn authenticate(&mut self, general: &[Entry]) {
        let config = &mut self.draft.config;
        // Who says so in PgBouncer's file means it, wherever the clients are.
        let trusts = matches!(
            config.auth.kind,
            AuthType::Any | AuthType::Hba | AuthType::Trust
        );
        config.clients.allow_remote_trust = trusts;
        let trusts_all = config.auth.kind == AuthType::Any;
        let nobody = config.auth.admin_users.is_empty() && config.auth.stats_users.is_empty();
        if last(general, "auth_type").is_none() {
            let text = "is not given: md5, PgBouncer's default";
            self.note(None, "auth_type", text);
        }
        if trusts_all && nobody {
            let text = "is not given: with this auth_type everybody may use the console";
            self.note(None, "admin_users", text);
        }
    }

    /// What PgBouncer does by default and helios does not, and the other way about.
    fn say_defaults(&mut self, general: &[Entry]) {
        if last(general, "pool_mode").is_none() {
            let text = "is not given: session, PgBouncer's default (helios's is transaction)";
            self.note(None, "pool_mode", text);
        }
        if self.draft.config.cache.enabled {
            let text = "is on: a repeated read is answered from memory, where the writes of others can be followed. A \
                        section [helios] with cache.enabled = false turns it off; with invalidation = wire it is on \
                        where they can't be followed, too, and does not see them";
            self.note(None, "cache.enabled", text);
        }
    }
}

/// The line that counts: the last one.
fn last<'e>(entries: &'e [Entry], key: &str) -> Option<&'e Entry> {
    entries.iter().rev().find(|entry| entry.key == key)
}

fn address_of(name: &str) -> Option<IpAddr> {
    match name {
        "*" => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        name => name.parse().ok().or_else(|| {
            let mut found = (name, 0).to_socket_addrs().ok()?;
            found.next().map(|address| address.ip())
        }),
    }
}

/// What is not known, with the nearest that is.
fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    match super::file::nearest(name, known) {
        Some(nearest) => format!("unknown {what} {name}; did you mean {nearest}?"),
        None => format!("unknown {what} {name}. Known are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests;
