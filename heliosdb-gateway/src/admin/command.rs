//! What the console understands.

use std::sync::Arc;

use crate::error::{ClientError, ErrorKind};
use crate::gateway::Gateway;

use super::caches;
use super::tables::{self, Table};

/// What a command answers.
pub(super) enum Answer {
    Table(Table),
    Done(&'static str),
}

/// The commands, for the error message and for `SHOW HELP`.
pub(super) const COMMANDS: [(&str, &str); 18] = [
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
        "SHOW CLIENTS",
        "connected clients, what each is doing and what ties it to a server connection",
    ),
    (
        "SHOW CONFIG",
        "settings in force, and whether a reload changes them",
    ),
    (
        "SHOW DATABASES",
        "databases in use, and whether their catalog is loaded",
    ),
    (
        "SHOW ERRORS",
        "errors told to clients, by whose fault they were",
    ),
    ("SHOW HELP", "this list"),
    (
        "SHOW INVALIDATION",
        "how the writes of others reach the cache, for each database, and how far behind it is",
    ),
    ("SHOW POOLS", "server connections by user and database"),
    ("SHOW REFUSALS", "reads that were not cached, by reason"),
    ("SHOW SERVERS", "server connections, one by one"),
    (
        "SHOW STATEMENTS",
        "statements without their values: calls, times, hits, why not cached, connections that have them prepared",
    ),
    ("SHOW STATS", "statements, transactions and bytes"),
    ("SHOW VERSION", "version of helios"),
    ("FLUSH CACHE", "forget all cached answers"),
    (
        "CREATE CACHE [name] POLICY TTL <n> SECONDS [STALE <n> SECONDS] FROM <select>",
        "answer statements like this one from memory for so long, whatever is written",
    ),
    ("DROP CACHE <name>", "undo CREATE CACHE"),
];

/// Runs one command.
pub(super) fn run(gateway: &Arc<Gateway>, statement: &str) -> Result<Answer, ClientError> {
    let words: Vec<String> = statement
        .split_whitespace()
        .map(str::to_ascii_uppercase)
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let table = match words.as_slice() {
        ["SHOW", "ADVICE"] => tables::advice(gateway),
        ["SHOW", "CACHE"] => tables::cache(gateway),
        ["SHOW", "CACHES"] => tables::caches(gateway),
        ["SHOW", "CLIENTS"] => tables::clients(gateway),
        ["SHOW", "CONFIG"] => tables::config(gateway),
        ["SHOW", "DATABASES"] => tables::databases(gateway),
        ["SHOW", "ERRORS"] => tables::errors(gateway),
        ["SHOW", "HELP"] | ["HELP"] => tables::help(),
        ["SHOW", "INVALIDATION"] => tables::invalidation(gateway),
        ["SHOW", "POOLS"] => tables::pools(gateway),
        ["SHOW", "REFUSALS"] => tables::refusals(gateway),
        ["SHOW", "SERVERS"] => tables::servers(gateway),
        ["SHOW", "STATEMENTS"] => tables::statements(gateway),
        ["SHOW", "STATS"] => tables::stats(gateway),
        ["SHOW", "VERSION"] => tables::version(),
        ["FLUSH", "CACHE"] => {
            gateway.cache.clear();
            return Ok(Answer::Done("FLUSH CACHE"));
        }
        ["CREATE", "CACHE", ..] => {
            caches::create(gateway, statement)?;
            return Ok(Answer::Done("CREATE CACHE"));
        }
        ["DROP", "CACHE", _] => {
            caches::drop_named(gateway, statement)?;
            return Ok(Answer::Done("DROP CACHE"));
        }
        _ => {
            return Err(ClientError::new(
                ErrorKind::Client,
                "42601",
                format!("the admin console does not know {statement:?}"),
            )
            .hint(format!(
                "It knows: {}.",
                COMMANDS.map(|(name, _)| name).join(", ")
            )));
        }
    };
    Ok(Answer::Table(table))
}
