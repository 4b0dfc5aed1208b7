//! `[databases]` and `[users]`: lines of connection parameters.

use url::form_urlencoded::byte_serialize;

use crate::config::{Config, DatabaseConfig, UserConfig};

use super::keys::{NEVER, asker, bound_of, mode, parsed, seconds};
use super::{Draft, ini};

/// What is said of a line beside what became of it.
pub(super) type Remarks = Vec<(String, &'static str)>;

/// Parameters of a database.
const DATABASE: [&str; 25] = [
    "application_name",
    "auth_dbname",
    "auth_query",
    "auth_user",
    "client_encoding",
    "connect_query",
    "datestyle",
    "dbname",
    "host",
    "load_balance_hosts",
    "max_db_client_connections",
    "max_db_connections",
    "min_pool_size",
    "password",
    "pool_mode",
    "pool_size",
    "port",
    "query_wait_timeout",
    "reserve_pool",
    "reserve_pool_size",
    "server_lifetime",
    "timezone",
    "user",
    "pool_idle_timeout",
    "sslmode",
];

/// Parameters of a user.
const USER: [&str; 10] = [
    "client_idle_timeout",
    "idle_transaction_timeout",
    "max_user_client_connections",
    "max_user_connections",
    "pool_mode",
    "pool_size",
    "query_timeout",
    "query_wait_timeout",
    "reserve_pool_size",
    "transaction_timeout",
];

/// Where a database is.
#[derive(Debug, Default)]
struct Address {
    hosts: Vec<String>,
    port: Option<u16>,
    user: String,
    password: Option<String>,
    dbname: String,
    /// What each session begins with.
    settings: Vec<(&'static str, String)>,
    application_name: Option<String>,
    /// Of several hosts the first that answers is taken.
    in_order: bool,
}

/// Reads the connection string of a database.
pub(super) fn database(draft: &Draft, text: &str) -> Result<(DatabaseConfig, Remarks), String> {
    let (mut config, mut address, mut remarks) =
        (DatabaseConfig::default(), Address::default(), Vec::new());
    for (key, value) in ini::pairs(text)? {
        let known = DATABASE.iter().find(|known| **known == key);
        let Some(known) = known else {
            return Err(super::unknown("connection parameter", &key, &DATABASE));
        };
        let done = set_database(&mut config, &mut address, known, value);
        if let Some(remark) = done.map_err(|why| format!("{key}: {why}"))? {
            remarks.push((key, remark));
        }
    }
    config.url = Some(address.url(draft));
    if address.hosts.len() > 1 {
        let remark = if address.in_order {
            "the first host that answers is taken"
        } else {
            "connections go to the hosts by turns, and one that does not answer is passed over"
        };
        remarks.push(("host".to_owned(), remark));
    }
    Ok((config, remarks))
}

fn set_database(
    config: &mut DatabaseConfig,
    address: &mut Address,
    key: &'static str,
    value: String,
) -> Result<Option<&'static str>, String> {
    match key {
        "application_name" => address.application_name = Some(value),
        "auth_dbname" => config.auth_query_database = Some(value),
        "auth_query" => config.auth_query = Some(value),
        "auth_user" => config.auth_query_user = Some(asker(&value)),
        "client_encoding" | "datestyle" | "timezone" => address.settings.push((key, value)),
        "connect_query" => config.connect_query = Some(value),
        "dbname" => address.dbname = value,
        "host" => {
            let hosts = value.split(',').map(str::trim);
            address.hosts = hosts
                .filter(|host| !host.is_empty())
                .map(str::to_owned)
                .collect();
        }
        "load_balance_hosts" if matches!(&*value, "disable" | "round-robin") => {
            address.in_order = value == "disable";
        }
        "load_balance_hosts" => return Err(format!("{value:?} is none of disable, round-robin")),
        "max_db_client_connections" => config.max_clients = limit(&value)?,
        "max_db_connections" => config.max_connections = limit(&value)?,
        "min_pool_size" => config.min_idle = unless_inherited(&value)?,
        "password" => address.password = Some(value),
        "pool_mode" => config.pool_mode = Some(mode(&value)?),
        "pool_size" => config.pool_size = unless_inherited(&value)?,
        "port" => address.port = Some(parsed(&value, "a port")?),
        "query_wait_timeout" => config.acquire_timeout = Some(patience(&value)?),
        "reserve_pool" | "reserve_pool_size" => config.reserve_size = unless_inherited(&value)?,
        "server_lifetime" => {
            let lifetime = seconds(&value)?;
            config.max_lifetime = Some(lifetime.max(std::time::Duration::from_millis(1)));
        }
        "user" => address.user = value,
        // Not PgBouncer's: what people try.
        "sslmode" => return Err("PgBouncer has server_tls_sslmode for all databases".to_owned()),
        _ => return Err("PgBouncer has it for all databases, in [pgbouncer]".to_owned()),
    }
    Ok(None)
}

/// Reads the settings of a user.
pub(super) fn user(text: &str) -> Result<UserConfig, String> {
    let mut config = UserConfig::default();
    for (key, value) in ini::pairs(text)? {
        let done = match &*key {
            "client_idle_timeout" => bound_of(&value).map(|at| config.idle_timeout = Some(at)),
            "idle_transaction_timeout" => {
                bound_of(&value).map(|at| config.idle_transaction_timeout = Some(at))
            }
            "max_user_client_connections" => limit(&value).map(|max| config.max_clients = max),
            "max_user_connections" => limit(&value).map(|max| config.max_connections = max),
            "pool_mode" => mode(&value).map(|mode| config.pool_mode = Some(mode)),
            "pool_size" => unless_inherited(&value).map(|size| config.pool_size = size),
            "query_timeout" => bound_of(&value).map(|at| config.query_timeout = Some(at)),
            "query_wait_timeout" => {
                patience(&value).map(|patience| config.acquire_timeout = Some(patience))
            }
            "reserve_pool_size" => unless_inherited(&value).map(|size| config.reserve_size = size),
            "transaction_timeout" => {
                bound_of(&value).map(|at| config.transaction_timeout = Some(at))
            }
            _ => return Err(super::unknown("user parameter", &key, &USER)),
        };
        done.map_err(|why| format!("{key}: {why}"))?;
    }
    Ok(config)
}

/// 0 is no limit.
fn limit(value: &str) -> Result<Option<usize>, String> {
    Ok(unless_inherited(value)?.filter(|max| *max > 0))
}

/// -1 is as if nothing were said.
fn unless_inherited(value: &str) -> Result<Option<usize>, String> {
    if value == "-1" {
        return Ok(None);
    }
    parsed(value, "a number").map(Some)
}

impl Address {
    /// What helios calls it. A name that is absent is the client's.
    fn url(&self, draft: &Draft) -> String {
        let mut url = "postgres://".to_owned();
        if !self.user.is_empty() {
            url.push_str(&escaped(&self.user));
            if let Some(password) = &self.password {
                url.push(':');
                url.push_str(&escaped(password));
            }
            url.push('@');
        }
        let mut query = Vec::new();
        let folder = match self.hosts.as_slice() {
            // PgBouncer looks where its own socket is.
            [] => {
                let own = draft.config.unix_socket_dir.as_ref();
                Some(own.map_or_else(|| "/tmp".to_owned(), |folder| folder.display().to_string()))
            }
            [host] if host.starts_with('/') => Some(host.clone()),
            hosts => {
                let hosts: Vec<String> = hosts.iter().map(|host| self.authority(host)).collect();
                url.push_str(&hosts.join(","));
                None
            }
        };
        if let Some(folder) = folder {
            query.push(format!("host={}", escaped(&folder)));
            query.extend(self.port.map(|port| format!("port={port}")));
        }
        if !self.dbname.is_empty() || !query.is_empty() {
            url.push('/');
            url.push_str(&escaped(&self.dbname));
        }
        if self.hosts.len() > 1 && !self.in_order {
            query.push("load_balance_hosts=round-robin".to_owned());
        }
        if let Some(name) = &self.application_name {
            query.push(format!("application_name={}", escaped(name)));
        }
        if !self.settings.is_empty() {
            let settings = self.settings.iter().map(|(name, value)| {
                format!(
                    "-c {name}={}",
                    value.replace('\\', "\\\\").replace(' ', "\\ ")
                )
            });
            let options: Vec<String> = settings.collect();
            query.push(format!("options={}", escaped(&options.join(" "))));
        }
        if !query.is_empty() {
            url.push('?');
            url.push_str(&query.join("&"));
        }
        with_server_tls(&url, &draft.server_tls)
    }

    fn authority(&self, host: &str) -> String {
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            escaped(host)
        };
        match self.port {
            Some(port) => format!("{host}:{port}"),
            None => host,
        }
    }
}

/// Those whom the operating system trusts, in the place of a file.
pub(super) const SYSTEM: &str = "system";

/// A server's URL with other parameters for TLS. An empty one is none.
pub(super) fn with_server_tls(url: &str, changes: &[(&'static str, String)]) -> String {
    let mut url = url.to_owned();
    for (name, value) in changes {
        url = with_parameter(&url, name, value);
    }
    let is_full = parameter_of(&url, "sslmode").is_some_and(|mode| mode == "verify-full");
    match parameter_of(&url, "sslrootcert") {
        // As with PgBouncer, where no file is named.
        None if is_full => with_parameter(&url, "sslrootcert", SYSTEM),
        // Anybody can have a certificate that the system trusts: the name is what counts.
        Some(root) if root == SYSTEM && !is_full => with_parameter(&url, "sslrootcert", ""),
        _ => url,
    }
}

/// A server's URL with a parameter in the place of the one of that name, or behind the others.
fn with_parameter(url: &str, name: &str, value: &str) -> String {
    let (place, query) = url.split_once('?').unwrap_or((url, ""));
    let is_other = |part: &&str| !part.is_empty() && part.split('=').next() != Some(name);
    let mut parts: Vec<String> = query
        .split('&')
        .filter(is_other)
        .map(str::to_owned)
        .collect();
    if !value.is_empty() {
        parts.push(format!("{name}={}", escaped(value)));
    }
    if parts.is_empty() {
        return place.to_owned();
    }
    format!("{place}?{}", parts.join("&"))
}

/// A parameter of the servers' URLs, as it was written: the first database's, since it is the same for all.
pub(super) fn parameter(config: &Config, name: &str) -> Option<String> {
    let url = config
        .databases
        .values()
        .find_map(|database| database.url.as_ref())?;
    parameter_of(url, name)
}

fn parameter_of(url: &str, name: &str) -> Option<String> {
    let (_, query) = url.split_once('?')?;
    let mut parts = url::form_urlencoded::parse(query.as_bytes());
    let (_, value) = parts.find(|(known, _)| known == name)?;
    Some(value.into_owned())
}

/// How long a client waits for a server connection: 0 is for as long as it likes.
fn patience(value: &str) -> Result<std::time::Duration, String> {
    let patience = seconds(value)?;
    Ok(if patience.is_zero() { NEVER } else { patience })
}

/// A part of a URL that means this text.
fn escaped(text: &str) -> String {
    let escaped: String = byte_serialize(text.as_bytes()).collect();
    escaped.replace('+', "%20")
}
