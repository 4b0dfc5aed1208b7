//! `SET` and `SHOW CONFIG`: helios's keys, and PgBouncer's where there is a counterpart.

use std::sync::Arc;

use crate::config::pgbouncer;
use crate::error::{ClientError, ErrorKind};
use crate::gateway::Gateway;
use crate::reload;

use super::command::{Answer, admin_needed, invalid, refused, session_setting};
use super::table::{Table, row};

/// PgBouncer's keys first, under their names.
pub(super) fn config(gateway: &Gateway) -> Table {
    let config = gateway.config();
    let known = pgbouncer::rows(&config);
    let rows = known.into_iter().chain(config.rows()).map(|setting| {
        row![
            setting.name,
            setting.value,
            setting.default,
            if setting.reloadable { "yes" } else { "no" },
        ]
    });
    Table::new("key value default changeable", rows.collect())
}

/// `SET key = value`.
pub(super) fn set(
    gateway: &Arc<Gateway>,
    statement: &str,
    may_change: bool,
) -> Result<Answer, ClientError> {
    let (key, value) = assignment(statement).ok_or_else(|| invalid(statement))?;
    if session_setting(&key).is_some() {
        return Ok(Answer::Ignored("SET"));
    }
    if !may_change {
        return Err(admin_needed());
    }
    let before = gateway.config();
    let changed = pgbouncer::set(&before, &key, &value)
        .or_else(|| before.with(&key, &value))
        .ok_or_else(|| {
            refused("SET failed").hint(format!("There is no key {key:?}; SHOW CONFIG lists them."))
        })?
        .map_err(|why| refused("SET failed").hint(why))?;
    let needs_restart = before.reloadable_diff(&changed).needs_restart;
    drop(before);
    if !needs_restart.is_empty() {
        let hint = format!(
            "{} comes into force with a restart only.",
            needs_restart.join(", ")
        );
        return Err(refused("SET failed").hint(hint));
    }
    let is_of_tls = gateway.config().tls != changed.tls;
    let waits = reload::apply_one(gateway, &changed).map_err(|error| {
        ClientError::new(ErrorKind::Config, "F0000", "SET failed").hint(error.to_string())
    })?;
    let done = format!("SET {key}={value}");
    Ok(match waits.filter(|_| is_of_tls) {
        Some(why) => {
            let message = "TLS settings could not be applied, still using old configuration";
            let notice = ClientError::new(ErrorKind::Config, "F0000", message);
            Answer::DoneWith(done, notice.hint(format!("{why:#}")))
        }
        None => Answer::done(done),
    })
}

/// Key and value, out of their quotes.
fn assignment(statement: &str) -> Option<(String, String)> {
    let rest = statement.get(3..)?;
    let rest = rest.strip_prefix(char::is_whitespace)?.trim();
    let end = rest.find(|c: char| c == '=' || c.is_whitespace())?;
    let key = rest[..end].trim_matches('"').to_owned();
    let rest = rest[end..].trim_start();
    let value = match rest.strip_prefix('=') {
        Some(value) => value,
        None => rest
            .get(..2)
            .filter(|word| word.eq_ignore_ascii_case("to"))
            .and_then(|_| rest[2..].strip_prefix(char::is_whitespace))?,
    };
    let value = value.trim();
    let unquoted = match value.strip_prefix('\'') {
        Some(quoted) => quoted.strip_suffix('\'')?.replace("''", "'"),
        None => value.trim_matches('"').to_owned(),
    };
    Some((key, unquoted)).filter(|(key, _)| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_read_in_all_their_forms() {
        for (text, key, value) in [
            ("SET a = 1", "a", "1"),
            ("set a=1", "a", "1"),
            ("SET \"a\" TO 'it''s'", "a", "it's"),
            ("SET pool.mode = \"session\"", "pool.mode", "session"),
            ("SET a = ''", "a", ""),
        ] {
            let told = assignment(text).expect(text);
            assert_eq!((&*told.0, &*told.1), (key, value), "{text}");
        }
        for text in [
            "SET",
            "SET a",
            "SET a 1",
            "SET = 1",
            "SETa = 1",
            "SET a = 'x",
        ] {
            assert_eq!(assignment(text), None, "{text}");
        }
    }
}
