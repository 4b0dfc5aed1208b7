//! What PgBouncer calls helios's keys.

use super::{Fate, KEYS};

/// PgBouncer's name of one of helios's keys, and where it stands if not in `[pgbouncer]`. `None` if PgBouncer has no such
/// key.
pub(crate) fn name_of(key: &str) -> Option<String> {
    let own = |section: &str| key.strip_prefix(section)?.rsplit_once('.');
    if let Some((name, field)) = own("databases.") {
        return of_database(field).map(|own| format!("`{own}` of {name} in [databases]"));
    }
    if let Some((name, field)) = own("users.") {
        return of_user(field).map(|own| format!("`{own}` of {name} in [users]"));
    }
    let known = KEYS
        .iter()
        .find(|known| matches!(known.fate, Fate::Maps { to, .. } if to == key));
    known.map(|known| format!("`{}`", known.name))
}

fn of_database(field: &str) -> Option<&'static str> {
    Some(match field {
        "max_clients" => "max_db_client_connections",
        "max_connections" => "max_db_connections",
        "pool_size" => "pool_size",
        _ => return None,
    })
}

fn of_user(field: &str) -> Option<&'static str> {
    Some(match field {
        "idle_timeout" => "client_idle_timeout",
        "idle_transaction_timeout" => "idle_transaction_timeout",
        "max_clients" => "max_user_client_connections",
        "max_connections" => "max_user_connections",
        "pool_size" => "pool_size",
        "query_timeout" => "query_timeout",
        "transaction_timeout" => "transaction_timeout",
        _ => return None,
    })
}
