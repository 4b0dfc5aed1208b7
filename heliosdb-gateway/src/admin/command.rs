//! What the console understands.

use std::pin::Pin;
use std::sync::Arc;

use crate::config::names;
use crate::error::{ClientError, ErrorKind};
use crate::gateway::Gateway;

use super::table::{Table, row};
use super::{caches, control, listings, settings, sockets, tables, traffic};

/// What a command answers.
pub(super) enum Answer {
    Done(String),
    /// It is done, and the client has to know something about it.
    DoneWith(String, ClientError),
    /// Nothing was done, and the client is told so.
    Ignored(&'static str),
    /// All wait until RESUME, or until the client that asked for it leaves.
    Suspended,
    Table(Table),
    Wait(&'static str, Wait),
}

/// What a command waits for before it is done.
pub(super) type Wait = Pin<Box<dyn Future<Output = Result<(), ClientError>> + Send>>;

impl Answer {
    pub(super) fn done(tag: impl Into<String>) -> Self {
        Self::Done(tag.into())
    }

    pub(super) fn wait(
        tag: &'static str,
        wait: impl Future<Output = Result<(), ClientError>> + Send + 'static,
    ) -> Self {
        Self::Wait(tag, Box::pin(wait))
    }
}

/// The commands, for the error message and for `SHOW HELP`.
pub(super) const COMMANDS: [(&str, &str); 45] = [
    ("SHOW HELP", "this list"),
    ("SHOW VERSION", "version of helios"),
    (
        "SHOW CONFIG",
        "settings in force, and whether SET and a reload change them",
    ),
    (
        "SHOW DATABASES",
        "databases: where they lead, their limits, what holds them up",
    ),
    (
        "SHOW POOLS",
        "clients and server connections by user and database",
    ),
    (
        "SHOW CLIENTS",
        "connected clients, what each is doing and what ties it to a server connection",
    ),
    ("SHOW SERVERS", "server connections, one by one"),
    ("SHOW SOCKETS", "clients and server connections"),
    ("SHOW ACTIVE_SOCKETS", "those that have something under way"),
    ("SHOW USERS", "users: their limits, and what they have"),
    (
        "SHOW STATS",
        "what went through each database: totals and averages",
    ),
    ("SHOW STATS_TOTALS", "the totals alone"),
    ("SHOW STATS_AVERAGES", "the averages alone"),
    (
        "SHOW TOTALS",
        "those of all databases, and helios's own counts",
    ),
    ("SHOW LISTS", "how many there are of what"),
    ("SHOW MEM", "bounded memory, and how much of it is used"),
    ("SHOW STATE", "active, paused or suspended"),
    (
        "SHOW DNS_HOSTS",
        "nothing: names are looked up by the system",
    ),
    ("SHOW DNS_ZONES", "nothing"),
    ("SHOW PEERS", "nothing: there are none"),
    ("SHOW PEER_POOLS", "nothing"),
    (
        "SHOW ADVICE",
        "how large each pool should be, and why (every 10 seconds)",
    ),
    (
        "SHOW CACHE",
        "hits, misses, fills, memory of the result cache",
    ),
    ("SHOW CACHES", "what CREATE CACHE made"),
    (
        "SHOW ERRORS",
        "errors told to clients, by whose fault they were",
    ),
    (
        "SHOW INVALIDATION",
        "how the writes of others reach the cache, for each database, and how far behind it is",
    ),
    ("SHOW REFUSALS", "reads that were not cached, by reason"),
    (
        "SHOW STATEMENTS",
        "statements without their values: calls, times, hits, why not cached, connections that have them prepared",
    ),
    ("SET key = value", "change a setting until the next reload"),
    ("RELOAD", "read the configuration again"),
    (
        "RESTART",
        "have a new process take over, refusing no client",
    ),
    (
        "PAUSE [db]",
        "let requests wait, and close server connections as they become free; answers when none is left",
    ),
    ("RESUME [db]", "undo PAUSE, KILL and SUSPEND"),
    ("DISABLE db", "refuse new clients"),
    ("ENABLE db", "undo DISABLE"),
    (
        "RECONNECT [db]",
        "close server connections as they become free, and open new ones",
    ),
    (
        "WAIT_CLOSE [db]",
        "wait until RECONNECT has closed all it had to",
    ),
    (
        "KILL [db]",
        "end all clients and server connections, and pause",
    ),
    ("KILL_CLIENT id", "end one client"),
    ("SUSPEND", "let requests wait, and keep server connections"),
    ("SHUTDOWN", "end at once"),
    (
        "SHUTDOWN WAIT_FOR_CLIENTS | WAIT_FOR_SERVERS",
        "let nobody in, and end when the last client has left, or the last server connection is free",
    ),
    ("FLUSH CACHE", "forget all cached answers"),
    (
        "CREATE CACHE [name] POLICY TTL <n> SECONDS [STALE <n> SECONDS] FROM <select>",
        "answer statements like this one from memory for so long, whatever is written",
    ),
    ("DROP CACHE <name>", "undo CREATE CACHE"),
];

/// Runs one command. `may_change`: not only SHOW.
pub(super) fn run(
    gateway: &Arc<Gateway>,
    statement: &str,
    may_change: bool,
) -> Result<Answer, ClientError> {
    let words = words(statement).ok_or_else(|| invalid(statement))?;
    let upper: Vec<String> = words.iter().map(|word| word.to_ascii_uppercase()).collect();
    let upper: Vec<&str> = upper.iter().map(String::as_str).collect();
    match upper.as_slice() {
        // As old drivers of pgbouncer's console ask.
        ["SHOW" | "SELECT", what] => return show(gateway, what, may_change, statement),
        ["HELP"] => return show(gateway, "HELP", may_change, statement),
        ["SET", ..] => return settings::set(gateway, statement, may_change),
        _ if !may_change => {
            let is_known = COMMANDS
                .iter()
                .any(|(name, _)| name.split_whitespace().next() == upper.first().copied());
            return Err(if is_known {
                admin_needed()
            } else {
                invalid(statement)
            });
        }
        ["FLUSH", "CACHE"] => {
            gateway.cache.clear();
            return Ok(Answer::done("FLUSH CACHE"));
        }
        ["CREATE", "CACHE", ..] => {
            caches::create(gateway, statement)?;
            return Ok(Answer::done("CREATE CACHE"));
        }
        ["DROP", "CACHE", _] => {
            caches::drop_named(gateway, statement)?;
            return Ok(Answer::done("DROP CACHE"));
        }
        [_] | [_, _] => {}
        _ => return Err(invalid(statement)),
    }
    let argument = words.get(1).map(String::as_str);
    let done = upper
        .first()
        .and_then(|command| control::run(gateway, command, argument));
    done.unwrap_or_else(|| Err(invalid(statement)))
}

fn show(
    gateway: &Arc<Gateway>,
    what: &str,
    may_change: bool,
    statement: &str,
) -> Result<Answer, ClientError> {
    let table = match what {
        "ACTIVE_SOCKETS" => sockets::sockets(gateway, true),
        "ADVICE" => tables::advice(gateway),
        "CACHE" => tables::cache(gateway),
        "CACHES" => tables::caches(gateway),
        "CLIENTS" => sockets::clients(gateway),
        "CONFIG" => settings::config(gateway),
        "DATABASES" => listings::databases(gateway),
        "ERRORS" => tables::errors(gateway),
        "FDS" if !may_change => return Err(admin_needed()),
        "FDS" => {
            return Err(ClientError::new(
                ErrorKind::Client,
                "0A000",
                "helios hands no file descriptors out",
            )
            .hint("For an online restart, use RESTART."));
        }
        "HELP" => tables::help(),
        "INVALIDATION" => tables::invalidation(gateway),
        "LISTS" => listings::lists(gateway),
        "MEM" => listings::mem(gateway),
        "POOLS" => listings::pools(gateway),
        "REFUSALS" => tables::refusals(gateway),
        "SERVERS" => sockets::servers(gateway),
        "SOCKETS" => sockets::sockets(gateway, false),
        "STATE" => listings::state(gateway),
        "STATEMENTS" => tables::statements(gateway),
        "STATS" => traffic::stats(gateway),
        "STATS_AVERAGES" => traffic::stats_averages(gateway),
        "STATS_TOTALS" => traffic::stats_totals(gateway),
        "TOTALS" => traffic::totals(gateway),
        "USERS" => listings::users(gateway),
        "VERSION" => tables::version(),
        other => match (listings::none_of(other), session_setting(other)) {
            (Some(table), _) => table,
            (None, Some((name, value))) => Table::new(name, vec![row![value]]),
            (None, None) => return Err(invalid(statement)),
        },
    };
    Ok(Answer::Table(table))
}

/// What drivers ask a server for, and set, whatever they are connected to.
pub(super) fn session_setting(name: &str) -> Option<(&'static str, &'static str)> {
    let known = [
        ("client_encoding", "UTF8"),
        ("default_transaction_isolation", "read committed"),
        ("standard_conforming_strings", "on"),
        ("datestyle", "ISO"),
        ("timezone", "UTC"),
    ];
    known
        .into_iter()
        .find(|(known, _)| name.eq_ignore_ascii_case(known))
}

/// The words of a command. Those in double quotes may hold anything. `None` if a quote is not closed.
fn words(statement: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = statement.trim_start();
    while !rest.is_empty() {
        let mut word = String::new();
        if let Some(mut quoted) = rest.strip_prefix('"') {
            loop {
                let (text, behind) = quoted.split_once('"')?;
                word.push_str(text);
                match behind.strip_prefix('"') {
                    Some(more) => {
                        word.push('"');
                        quoted = more;
                    }
                    None => {
                        rest = behind;
                        break;
                    }
                }
            }
        } else {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            word.push_str(&rest[..end]);
            rest = &rest[end..];
        }
        words.push(word);
        rest = rest.trim_start();
    }
    Some(words)
}

/// The commands of a text: a semicolon in quotes is none that ends one.
pub(super) fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut from, mut quote) = (0, None);
    for (at, byte) in text.bytes().enumerate() {
        match (byte, quote) {
            (b'\'' | b'"', None) => quote = Some(byte),
            (_, Some(open)) if byte == open => quote = None,
            (b';', None) => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    let parts = parts.into_iter().map(str::trim);
    parts.filter(|part| !part.is_empty()).collect()
}

/// A command that can't be carried out, with the code that PgBouncer gives it.
pub(super) fn refused(message: impl Into<String>) -> ClientError {
    ClientError::new(ErrorKind::Client, "08P01", message)
}

pub(super) fn invalid(statement: &str) -> ClientError {
    refused(format!("invalid command '{statement}', use SHOW HELP;"))
}

pub(super) fn admin_needed() -> ClientError {
    ClientError::new(ErrorKind::Client, "42501", "admin access needed").hint(format!(
        "Add the user to {} in {}.",
        names::key("auth.admin_users"),
        names::place()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_quotes_hold_anything() {
        let told = |text: &str| words(text).map(|words| words.join("|"));
        assert_eq!(told("PAUSE  db ").as_deref(), Some("PAUSE|db"));
        assert_eq!(
            told("PAUSE \"my \"\"db\"\"; \"").as_deref(),
            Some("PAUSE|my \"db\"; ")
        );
        assert_eq!(told("PAUSE \"db"), None);
    }

    #[test]
    fn a_semicolon_in_quotes_ends_nothing() {
        let text = "SET a = 'x;''y'; PAUSE \";\" ;; SHOW HELP";
        assert_eq!(split(text), ["SET a = 'x;''y'", "PAUSE \";\"", "SHOW HELP"]);
        assert_eq!(split(" ; "), Vec::<&str>::new());
    }
}
