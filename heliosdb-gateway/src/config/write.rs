//! A configuration as the text of a `helios.toml`, and with single values changed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::{Bound, Config, DatabaseConfig, PoolMode, UserConfig};

impl Config {
    /// The text of a file that means the same: what is as by default is left out.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut root = String::new();
        let mut sections = BTreeMap::<&str, String>::new();
        for (name, text) in self.assignments() {
            let (section, key) = name.split_once('.').unwrap_or(("", name));
            let to = match section {
                "" => &mut root,
                section => sections.entry(section).or_default(),
            };
            let _ = writeln!(to, "{key} = {text}");
        }
        for (section, lines) in sections {
            let _ = write!(root, "\n[{section}]\n{lines}");
        }
        for (name, database) in &self.databases {
            let _ = write!(root, "\n[databases.{}]\n", quoted(name));
            for (key, text) in of_database(database) {
                let _ = writeln!(root, "{key} = {text}");
            }
        }
        for (name, user) in &self.users {
            let _ = write!(root, "\n[users.{}]\n", quoted(name));
            for (key, text) in of_user(user) {
                let _ = writeln!(root, "{key} = {text}");
            }
        }
        root
    }

    /// This configuration with another value of one key, written as in a file or without the quotes. `None` if there is no
    /// such key.
    pub(crate) fn with(&self, key: &str, value: &str) -> Option<Result<Self, String>> {
        let is_known = self.values().iter().any(|(name, _)| *name == key);
        if !is_known || matches!(key, "databases" | "users") {
            return None;
        }
        let mut first_error = None;
        for form in [value.to_owned(), quoted(value)] {
            match parse_one(key, &form) {
                Ok(_) => return Some(self.rebuilt(key, &form)),
                Err(error) => first_error.get_or_insert(error),
            };
        }
        Some(Err(first_error.unwrap_or_default()))
    }

    fn rebuilt(&self, key: &str, form: &str) -> Result<Self, String> {
        let mut text = format!("{key} = {form}\n");
        for (name, form) in self.assignments() {
            if name != key {
                let _ = writeln!(text, "{name} = {form}");
            }
        }
        let mut rebuilt = Self::parse(&text, "").map_err(|error| error.to_string())?;
        rebuilt.databases.clone_from(&self.databases);
        rebuilt.users.clone_from(&self.users);
        rebuilt.validate().map_err(|error| error.to_string())?;
        Ok(rebuilt)
    }

    /// The keys that are not as by default, but databases and users, with their values as a file has them.
    fn assignments(&self) -> Vec<(&'static str, String)> {
        let defaults = Self::default().values();
        let changed = self.values().into_iter().zip(defaults);
        changed
            .filter(|((name, value), (_, default))| {
                value != default && !matches!(*name, "databases" | "users")
            })
            .map(|((name, value), _)| (name, form_of(name, &value)))
            .collect()
    }
}

/// How a file has this value: the form that is read back as the same.
fn form_of(name: &'static str, value: &str) -> String {
    let items: Vec<String> = value
        .split(", ")
        .filter(|item| !item.is_empty())
        .map(quoted)
        .collect();
    let list = format!("[{}]", items.join(", "));
    let forms = [value.to_owned(), quoted(value), list];
    let same = forms.iter().find(|form| {
        parse_one(name, form).is_ok_and(|config| {
            let values = config.values();
            values
                .iter()
                .any(|(known, read)| *known == name && read == value)
        })
    });
    same.cloned().unwrap_or_else(|| quoted(value))
}

fn parse_one(key: &str, form: &str) -> Result<Config, String> {
    if form.contains(['\n', '\r']) || form.trim().is_empty() {
        return Err("there is no value".to_owned());
    }
    Config::parse(&format!("{key} = {form}"), "").map_err(|error| match error {
        super::ConfigError::Syntax { message, .. } => message,
        error => error.to_string(),
    })
}

/// Destructured in full, so that a new key can't be forgotten here.
fn of_database(database: &DatabaseConfig) -> Vec<(&'static str, String)> {
    let DatabaseConfig {
        url,
        pool_mode,
        pool_size,
        min_idle,
        reserve_size,
        max_connections,
        max_clients,
        acquire_timeout,
        max_lifetime,
        connect_query,
        auth_query,
        auth_query_user,
        auth_query_database,
        cache,
    } = database;
    let lines = [
        ("url", url.as_deref().map(quoted)),
        ("pool_mode", pool_mode.map(mode)),
        ("pool_size", pool_size.map(number)),
        ("min_idle", min_idle.map(number)),
        ("reserve_size", reserve_size.map(number)),
        ("max_connections", max_connections.map(number)),
        ("max_clients", max_clients.map(number)),
        ("acquire_timeout", acquire_timeout.map(duration)),
        ("max_lifetime", max_lifetime.map(duration)),
        ("connect_query", connect_query.as_deref().map(quoted)),
        ("auth_query", auth_query.as_deref().map(quoted)),
        ("auth_query_user", auth_query_user.as_deref().map(quoted)),
        (
            "auth_query_database",
            auth_query_database.as_deref().map(quoted),
        ),
        ("cache", cache.map(|cache| cache.to_string())),
    ];
    present(lines)
}

fn of_user(user: &UserConfig) -> Vec<(&'static str, String)> {
    let UserConfig {
        pool_mode,
        pool_size,
        reserve_size,
        max_connections,
        max_clients,
        acquire_timeout,
        query_timeout,
        transaction_timeout,
        idle_transaction_timeout,
        idle_timeout,
    } = user;
    let lines = [
        ("pool_mode", pool_mode.map(mode)),
        ("pool_size", pool_size.map(number)),
        ("reserve_size", reserve_size.map(number)),
        ("max_connections", max_connections.map(number)),
        ("max_clients", max_clients.map(number)),
        ("acquire_timeout", acquire_timeout.map(duration)),
        ("query_timeout", query_timeout.map(bound)),
        ("transaction_timeout", transaction_timeout.map(bound)),
        (
            "idle_transaction_timeout",
            idle_transaction_timeout.map(bound),
        ),
        ("idle_timeout", idle_timeout.map(bound)),
    ];
    present(lines)
}

fn present<const N: usize>(
    lines: [(&'static str, Option<String>); N],
) -> Vec<(&'static str, String)> {
    let lines = lines.into_iter();
    lines.filter_map(|(key, text)| Some((key, text?))).collect()
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn number(number: usize) -> String {
    number.to_string()
}

fn mode(mode: PoolMode) -> String {
    quoted(match mode {
        PoolMode::Session => "session",
        PoolMode::Statement => "statement",
        PoolMode::Transaction => "transaction",
    })
}

fn duration(duration: Duration) -> String {
    quoted(&humantime::format_duration(duration).to_string())
}

fn bound(bound: Bound) -> String {
    quoted(&bound.to_string())
}
