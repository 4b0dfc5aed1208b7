//! The keys of PgBouncer's section `[pgbouncer]`: what becomes of each.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::auth::NOBODY;
use crate::config::{AuthType, Bound, Config, MinVersion, PoolMode, TlsMode};

use super::Draft;
use super::sections::{SYSTEM, parameter};

/// A key, and what becomes of it.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// PgBouncer's default.
    pub(super) default: &'static str,
    pub(super) fate: Fate,
}

pub(super) enum Fate {
    /// It has a counterpart.
    Maps {
        /// What helios calls it.
        to: &'static str,
        /// Takes the value over. What it returns is said to the reader: how helios differs.
        set: fn(&mut Draft, &str) -> Result<Option<&'static str>, String>,
        /// The value in force, as PgBouncer would print it.
        show: fn(&Config) -> String,
    },
    /// It has none, and nothing is lost: why.
    Ignored(&'static str),
    /// It has none, and who sets it to anything else than its default relies on what helios does not do: why.
    Refused(&'static str),
}

/// Longer than any process lives: PgBouncer's 0, where helios wants a time.
pub(super) const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

macro_rules! maps {
    ($name:literal, $default:literal, $to:literal, $set:expr, $show:expr) => {
        Key {
            name: $name,
            default: $default,
            fate: Fate::Maps {
                to: $to,
                set: $set,
                show: $show,
            },
        }
    };
}

macro_rules! ignored {
    ($name:literal, $default:literal, $why:literal) => {
        Key {
            name: $name,
            default: $default,
            fate: Fate::Ignored($why),
        }
    };
}

macro_rules! refused {
    ($name:literal, $default:literal, $why:literal) => {
        Key {
            name: $name,
            default: $default,
            fate: Fate::Refused($why),
        }
    };
}

/// What PgBouncer asks for a user's secret.
const AUTH_QUERY: &str = "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END FROM pg_authid WHERE rolname=$1 AND rolcanlogin";

/// All keys, by name.
pub(super) const KEYS: &[Key] = &[
    maps!(
        "admin_users",
        "",
        "auth.admin_users",
        |draft, value| {
            draft.config.auth.admin_users = names(value);
            Ok(None)
        },
        |config| config.auth.admin_users.join(",")
    ),
    ignored!(
        "application_name_add_host",
        "0",
        "SHOW CLIENTS has the address of each client"
    ),
    maps!(
        "auth_dbname",
        "",
        "auth.query_database",
        |draft, value| {
            if crate::admin::is_console(value) {
                return Err(reserved(value));
            }
            draft.config.auth.query_database = text(value);
            Ok(None)
        },
        |config| config.auth.query_database.clone().unwrap_or_default()
    ),
    maps!(
        "auth_file",
        "",
        "auth.file",
        |draft, value| {
            draft.config.auth.file = path(value);
            Ok(None)
        },
        |config| show_path(config.auth.file.as_ref())
    ),
    maps!(
        "auth_hba_file",
        "",
        "auth.hba_file",
        |draft, value| {
            draft.config.auth.hba_file = path(value);
            Ok(None)
        },
        |config| show_path(config.auth.hba_file.as_ref())
    ),
    maps!(
        "auth_ident_file",
        "",
        "auth.ident_file",
        |draft, value| {
            draft.config.auth.ident_file = path(value);
            Ok(None)
        },
        |config| show_path(config.auth.ident_file.as_ref())
    ),
    refused!("auth_ldap_options", "", "LDAP is not supported"),
    Key {
        name: "auth_query",
        default: AUTH_QUERY,
        fate: Fate::Maps {
            to: "auth.query",
            set: |draft, value| {
                draft.config.auth.query = text(value);
                Ok(None)
            },
            show: |config| {
                let query = config.auth.query.clone();
                query.unwrap_or_else(|| AUTH_QUERY.to_owned())
            },
        },
    },
    maps!("auth_type", "md5", "auth.type", auth_type, |config| {
        show_auth_type(config.auth.kind).to_owned()
    }),
    maps!(
        "auth_user",
        "",
        "auth.query_user",
        |draft, value| {
            draft.config.auth.query_user = Some(asker(value));
            Ok(None)
        },
        |config| {
            let user = config.auth.query_user.clone();
            user.filter(|user| user != NOBODY).unwrap_or_default()
        }
    ),
    ignored!(
        "autodb_idle_timeout",
        "3600",
        "unused pools are freed when room is needed"
    ),
    ignored!(
        "cancel_wait_timeout",
        "10",
        "a cancel request does not wait for a place in a pool"
    ),
    maps!(
        "client_idle_timeout",
        "0",
        "clients.idle_timeout",
        |draft, value| bound(&mut draft.config.clients.idle_timeout, value),
        |config| show_bound(config.clients.idle_timeout)
    ),
    maps!(
        "client_login_timeout",
        "60",
        "clients.login_timeout",
        |draft, value| or_never(&mut draft.config.clients.login_timeout, value),
        |config| show_or_never(config.clients.login_timeout)
    ),
    ignored!("client_tls13_ciphers", "", "rustls chooses among safe ones"),
    maps!(
        "client_tls_ca_file",
        "",
        "tls.ca",
        |draft, value| {
            draft.config.tls.ca = path(value);
            Ok(None)
        },
        |config| show_path(config.tls.ca.as_ref())
    ),
    maps!(
        "client_tls_cert_file",
        "",
        "tls.certificate",
        |draft, value| {
            draft.config.tls.certificate = path(value);
            Ok(None)
        },
        |config| show_path(config.tls.certificate.as_ref())
    ),
    ignored!(
        "client_tls_ciphers",
        "default",
        "rustls chooses among safe ones"
    ),
    ignored!(
        "client_tls_dheparams",
        "auto",
        "rustls has no finite-field Diffie-Hellman"
    ),
    ignored!(
        "client_tls_ecdhcurve",
        "auto",
        "rustls chooses among safe ones"
    ),
    maps!(
        "client_tls_key_file",
        "",
        "tls.key",
        |draft, value| {
            draft.config.tls.key = path(value);
            Ok(None)
        },
        |config| show_path(config.tls.key.as_ref())
    ),
    maps!(
        "client_tls_protocols",
        "secure",
        "tls.min_version",
        |draft, value| {
            draft.config.tls.min_version = if only_newest(value)? {
                MinVersion::Tls13
            } else {
                MinVersion::Tls12
            };
            Ok(older_remark(value))
        },
        |config| match config.tls.min_version {
            MinVersion::Tls12 => "secure",
            MinVersion::Tls13 => "tlsv1.3",
        }
        .to_owned()
    ),
    maps!(
        "client_tls_sslmode",
        "disable",
        "tls.mode",
        |draft, value| {
            draft.config.tls.mode = match value {
                "disable" => TlsMode::Disable,
                "allow" => TlsMode::Allow,
                "prefer" => TlsMode::Prefer,
                "require" => TlsMode::Require,
                "verify-ca" => TlsMode::VerifyCa,
                "verify-full" => TlsMode::VerifyFull,
                _ => return Err(sslmode_unknown(value)),
            };
            Ok(None)
        },
        |config| match config.tls.mode {
            TlsMode::Disable => "disable",
            TlsMode::Allow => "allow",
            TlsMode::Prefer => "prefer",
            TlsMode::Require => "require",
            TlsMode::VerifyCa => "verify-ca",
            TlsMode::VerifyFull => "verify-full",
        }
        .to_owned()
    ),
    ignored!(
        "conffile",
        "",
        "the file is the one that helios was started with"
    ),
    maps!(
        "default_pool_size",
        "20",
        "pool.size",
        |draft, value| count(&mut draft.config.pool.size, value),
        |config| config.pool.size.to_string()
    ),
    refused!(
        "disable_pqexec",
        "0",
        "the simple query protocol can't be switched off"
    ),
    ignored!(
        "dns_max_ttl",
        "15",
        "names are looked up by the system, for each connection"
    ),
    ignored!(
        "dns_nxdomain_ttl",
        "15",
        "names are looked up by the system, for each connection"
    ),
    ignored!(
        "dns_zone_check_period",
        "0",
        "names are looked up by the system, for each connection"
    ),
    maps!(
        "idle_transaction_timeout",
        "0",
        "clients.idle_transaction_timeout",
        |draft, value| bound(&mut draft.config.clients.idle_transaction_timeout, value),
        |config| show_bound(config.clients.idle_transaction_timeout)
    ),
    maps!(
        "ignore_startup_parameters",
        "",
        "clients.ignored_settings",
        |draft, value| {
            draft.config.clients.ignored_settings = names(value);
            Ok(None)
        },
        |config| config.clients.ignored_settings.join(", ")
    ),
    ignored!("job_name", "pgbouncer", "is for Windows"),
    maps!(
        "listen_addr",
        "",
        "listen",
        |draft, value| {
            value.clone_into(&mut draft.listen_addr);
            Ok(None)
        },
        |config| {
            let addresses: Vec<String> = config
                .listen
                .iter()
                .map(|address| address.ip().to_string())
                .collect();
            addresses.join(",")
        }
    ),
    ignored!("listen_backlog", "128", "it is 4096"),
    maps!(
        "listen_port",
        "6432",
        "listen",
        |draft, value| {
            draft.port = parsed(value, "a port")?;
            Ok(None)
        },
        |config| config
            .listen
            .first()
            .map_or(0, std::net::SocketAddr::port)
            .to_string()
    ),
    maps!(
        "log_connections",
        "1",
        "log.connections",
        |draft, value| switch(&mut draft.config.log.connections, value),
        |config| show_switch(config.log.connections)
    ),
    maps!(
        "log_disconnections",
        "1",
        "log.disconnections",
        |draft, value| switch(&mut draft.config.log.disconnections, value),
        |config| show_switch(config.log.disconnections)
    ),
    ignored!(
        "log_pooler_errors",
        "1",
        "errors told to clients are in the log, and counted in SHOW ERRORS"
    ),
    maps!(
        "log_stats",
        "1",
        "log.stats",
        |draft, value| switch(&mut draft.config.log.stats, value),
        |config| show_switch(config.log.stats)
    ),
    maps!(
        "logfile",
        "",
        "log.file",
        |draft, value| {
            draft.config.log.file = path(value);
            Ok(None)
        },
        |config| show_path(config.log.file.as_ref())
    ),
    maps!(
        "login_notify_message",
        "",
        "clients.login_notice",
        |draft, value| {
            value.clone_into(&mut draft.config.clients.login_notice);
            Ok(None)
        },
        |config| config.clients.login_notice.clone()
    ),
    maps!(
        "max_client_conn",
        "100",
        "clients.max",
        |draft, value| count(&mut draft.config.clients.max, value),
        |config| config.clients.max.to_string()
    ),
    maps!(
        "max_db_client_connections",
        "0",
        "clients.max_per_database",
        |draft, value| or_unlimited(&mut draft.config.clients.max_per_database, value),
        |config| show_count(config.clients.max_per_database)
    ),
    maps!(
        "max_db_connections",
        "0",
        "pool.max_per_database",
        |draft, value| or_unlimited(&mut draft.config.pool.max_per_database, value),
        |config| show_count(config.pool.max_per_database)
    ),
    ignored!(
        "max_packet_size",
        "2147483647",
        "messages may be as long as PostgreSQL allows"
    ),
    maps!(
        "max_prepared_statements",
        "200",
        "pool.max_prepared_statements",
        |draft, value| match parsed(value, "a number")? {
            0 => Ok(Some(
                "prepared statements always work here: 0 does not switch them off"
            )),
            max => {
                draft.config.pool.max_prepared_statements = max;
                Ok(None)
            }
        },
        |config| config.pool.max_prepared_statements.to_string()
    ),
    maps!(
        "max_user_client_connections",
        "0",
        "clients.max_per_user",
        |draft, value| or_unlimited(&mut draft.config.clients.max_per_user, value),
        |config| show_count(config.clients.max_per_user)
    ),
    maps!(
        "max_user_connections",
        "0",
        "pool.max_per_user",
        |draft, value| or_unlimited(&mut draft.config.pool.max_per_user, value),
        |config| show_count(config.pool.max_per_user)
    ),
    maps!(
        "min_pool_size",
        "0",
        "pool.min_idle",
        |draft, value| {
            draft.config.pool.min_idle = parsed(value, "a number")?;
            Ok((draft.config.pool.min_idle > 0)
                .then_some("it is the number of idle connections that are kept, not of all"))
        },
        |config| config.pool.min_idle.to_string()
    ),
    ignored!(
        "peer_id",
        "0",
        "cancel requests are not passed between processes: one process uses all processors"
    ),
    maps!(
        "pidfile",
        "",
        "pid_file",
        |draft, value| {
            draft.config.pid_file = path(value);
            Ok(None)
        },
        |config| show_path(config.pid_file.as_ref())
    ),
    ignored!(
        "pkt_buf",
        "4096",
        "buffers are as large as they have to be; idle clients have none"
    ),
    maps!(
        "pool_idle_timeout",
        "0",
        "pool.unused_timeout",
        |draft, value| bound(&mut draft.config.pool.unused_timeout, value),
        |config| show_bound(config.pool.unused_timeout)
    ),
    maps!(
        "pool_mode",
        "session",
        "pool.mode",
        |draft, value| {
            draft.config.pool.mode = mode(value)?;
            Ok(None)
        },
        |config| show_mode(config.pool.mode).to_owned()
    ),
    maps!(
        "query_timeout",
        "0",
        "clients.query_timeout",
        |draft, value| bound(&mut draft.config.clients.query_timeout, value),
        |config| show_bound(config.clients.query_timeout)
    ),
    maps!(
        "query_wait_notify",
        "5",
        "clients.wait_notice",
        |draft, value| bound(&mut draft.config.clients.wait_notice, value),
        |config| show_bound(config.clients.wait_notice)
    ),
    maps!(
        "query_wait_timeout",
        "120",
        "pool.acquire_timeout",
        |draft, value| {
            or_never(&mut draft.config.pool.acquire_timeout, value)?;
            Ok(Some(
                "the statement fails, with 53300; its connection stays",
            ))
        },
        |config| show_or_never(config.pool.acquire_timeout)
    ),
    maps!(
        "reserve_pool_size",
        "0",
        "pool.reserve_size",
        |draft, value| {
            draft.config.pool.reserve_size = parsed(value, "a number")?;
            Ok(None)
        },
        |config| config.pool.reserve_size.to_string()
    ),
    maps!(
        "reserve_pool_timeout",
        "5",
        "pool.reserve_timeout",
        |draft, value| or_never(&mut draft.config.pool.reserve_timeout, value),
        |config| show_or_never(config.pool.reserve_timeout)
    ),
    ignored!(
        "resolv_conf",
        "",
        "names are looked up by the system, for each connection"
    ),
    ignored!(
        "sbuf_loopcnt",
        "5",
        "clients share threads by the runtime's rules"
    ),
    ignored!("scram_iterations", "4096", "it is PostgreSQL's default"),
    maps!(
        "server_check_delay",
        "30",
        "pool.health_check_interval",
        |draft, value| {
            let delay = seconds(value)?;
            let whole = Duration::from_secs(delay.as_secs().max(1));
            draft.config.pool.health_check_interval = whole;
            Ok((whole != delay).then_some("it is in whole seconds, and at least one"))
        },
        |config| show_seconds(config.pool.health_check_interval)
    ),
    ignored!(
        "server_check_query",
        "<empty>",
        "idle connections are checked by an empty statement"
    ),
    maps!(
        "server_connect_timeout",
        "15",
        "upstream.connect_timeout",
        |draft, value| or_never(&mut draft.config.upstream.connect_timeout, value),
        |config| show_or_never(config.upstream.connect_timeout)
    ),
    maps!(
        "server_fast_close",
        "0",
        "pool.fast_close",
        |draft, value| switch(&mut draft.config.pool.fast_close, value),
        |config| show_switch(config.pool.fast_close)
    ),
    maps!(
        "server_idle_timeout",
        "600",
        "pool.idle_timeout",
        |draft, value| or_never(&mut draft.config.pool.idle_timeout, value),
        |config| show_or_never(config.pool.idle_timeout)
    ),
    maps!(
        "server_lifetime",
        "3600",
        "pool.max_lifetime",
        |draft, value| {
            let lifetime = seconds(value)?;
            draft.config.pool.max_lifetime = lifetime.max(Duration::from_millis(1));
            Ok(lifetime
                .is_zero()
                .then_some("a connection is closed when its client gives it back"))
        },
        |config| show_seconds(config.pool.max_lifetime)
    ),
    ignored!(
        "server_login_retry",
        "15",
        "a server that can't be reached is tried again after growing pauses of up to a few seconds"
    ),
    ignored!(
        "server_reset_query",
        "DISCARD ALL",
        "sessions leave nothing behind: what they changed is tracked, or DISCARD ALL is sent"
    ),
    ignored!(
        "server_reset_query_always",
        "0",
        "sessions leave nothing behind in any mode"
    ),
    ignored!(
        "server_round_robin",
        "0",
        "the connection that was used last is used first"
    ),
    ignored!("server_tls13_ciphers", "", "rustls chooses among safe ones"),
    maps!(
        "server_tls_ca_file",
        "",
        "databases.*.url",
        |draft, value| {
            draft.set_server_tls("sslrootcert", value);
            Ok(None)
        },
        |config| {
            let file = parameter(config, "sslrootcert");
            file.filter(|file| file != SYSTEM).unwrap_or_default()
        }
    ),
    maps!(
        "server_tls_cert_file",
        "",
        "databases.*.url",
        |draft, value| {
            draft.set_server_tls("sslcert", value);
            Ok(None)
        },
        |config| parameter(config, "sslcert").unwrap_or_default()
    ),
    ignored!(
        "server_tls_ciphers",
        "default",
        "rustls chooses among safe ones"
    ),
    maps!(
        "server_tls_key_file",
        "",
        "databases.*.url",
        |draft, value| {
            draft.set_server_tls("sslkey", value);
            Ok(None)
        },
        |config| parameter(config, "sslkey").unwrap_or_default()
    ),
    maps!(
        "server_tls_protocols",
        "secure",
        "databases.*.url",
        |draft, value| {
            let oldest = if only_newest(value)? { "TLSv1.3" } else { "" };
            draft.set_server_tls("ssl_min_protocol_version", oldest);
            Ok(older_remark(value))
        },
        |_| "secure".to_owned()
    ),
    maps!(
        "server_tls_sslmode",
        "prefer",
        "databases.*.url",
        |draft, value| {
            if !SSLMODES.contains(&value) {
                return Err(sslmode_unknown(value));
            }
            draft.set_server_tls("sslmode", value);
            Ok(None)
        },
        |config| parameter(config, "sslmode").unwrap_or_else(|| "prefer".to_owned())
    ),
    ignored!("service_name", "pgbouncer", "is for Windows"),
    maps!(
        "so_reuseport",
        "0",
        "reuse_port",
        |draft, value| {
            switch(&mut draft.config.reuse_port, value)?;
            Ok(draft.config.reuse_port.then_some(
                "one process uses all processors; a cancel request that reaches another one is lost",
            ))
        },
        |config| show_switch(config.reuse_port)
    ),
    maps!(
        "stats_period",
        "60",
        "stats_period",
        |draft, value| {
            let period = seconds(value)?;
            draft.config.stats_period = period.max(Duration::from_secs(1));
            Ok(None)
        },
        |config| show_seconds(config.stats_period)
    ),
    maps!(
        "stats_users",
        "",
        "auth.stats_users",
        |draft, value| {
            draft.config.auth.stats_users = names(value);
            Ok(None)
        },
        |config| config.auth.stats_users.join(",")
    ),
    ignored!("suspend_timeout", "10", "SUSPEND waits for nothing"),
    ignored!(
        "syslog",
        "0",
        "the log goes to standard error or a file; a service manager passes it on"
    ),
    ignored!(
        "syslog_facility",
        "daemon",
        "the log goes to standard error or a file; a service manager passes it on"
    ),
    ignored!(
        "syslog_ident",
        "pgbouncer",
        "the log goes to standard error or a file; a service manager passes it on"
    ),
    ignored!(
        "tcp_defer_accept",
        "1",
        "a client that sends nothing is dropped after clients.login_timeout"
    ),
    ignored!(
        "tcp_keepalive",
        "1",
        "it is on: after 60 s of silence, every 10 s"
    ),
    ignored!("tcp_keepcnt", "0", "it is the system's"),
    ignored!("tcp_keepidle", "0", "it is 60 s"),
    ignored!("tcp_keepintvl", "0", "it is 10 s"),
    ignored!("tcp_socket_buffer", "0", "it is the system's"),
    ignored!("tcp_user_timeout", "0", "it is the system's"),
    ignored!(
        "track_extra_parameters",
        "IntervalStyle",
        "every setting is tracked"
    ),
    maps!(
        "transaction_timeout",
        "0",
        "clients.transaction_timeout",
        |draft, value| bound(&mut draft.config.clients.transaction_timeout, value),
        |config| show_bound(config.clients.transaction_timeout)
    ),
    maps!(
        "unix_socket_dir",
        "/tmp",
        "unix_socket_dir",
        |draft, value| {
            if value.starts_with('@') {
                draft.config.unix_socket_dir = None;
                return Ok(Some(
                    "there are no sockets in the abstract namespace: name a folder",
                ));
            }
            draft.config.unix_socket_dir = path(value);
            Ok(None)
        },
        |config| show_path(config.unix_socket_dir.as_ref())
    ),
    ignored!(
        "unix_socket_group",
        "",
        "the socket's group is that of the process"
    ),
    maps!(
        "unix_socket_mode",
        "0777",
        "unix_socket_mode",
        |draft, value| {
            let mode = u32::from_str_radix(value.trim_start_matches("0o"), 8).ok();
            draft.config.unix_socket_mode = mode
                .filter(|mode| *mode <= 0o777)
                .ok_or_else(|| format!("{value:?} is not a mode such as 0770"))?;
            Ok(None)
        },
        |config| format!("{:04o}", config.unix_socket_mode)
    ),
    refused!(
        "user",
        "",
        "helios does not change its user: start it as the right one"
    ),
    maps!(
        "verbose",
        "0",
        "log.level",
        |draft, value| {
            let level = match parsed::<u32>(value, "a number")? {
                0 => "info",
                1 => "debug",
                _ => "trace",
            };
            level.clone_into(&mut draft.config.log.level);
            Ok(None)
        },
        |config| match &*config.log.level {
            "debug" => "1",
            "trace" => "2",
            _ => "0",
        }
        .to_owned()
    ),
];

fn auth_type(draft: &mut Draft, value: &str) -> Result<Option<&'static str>, String> {
    draft.config.auth.kind = match value {
        "any" => AuthType::Any,
        "cert" => AuthType::Cert,
        "hba" => AuthType::Hba,
        "ldap" | "pam" => return Err(format!("{value} is not supported")),
        "md5" => AuthType::Md5,
        "plain" => AuthType::Plain,
        "scram-sha-256" => AuthType::ScramSha256,
        "trust" => AuthType::Trust,
        _ => {
            return Err(format!(
                "{value:?} is none of any, cert, hba, ldap, md5, pam, plain, scram-sha-256, trust"
            ));
        }
    };
    Ok(None)
}

/// As whom the server is asked for users.
pub(super) fn asker(value: &str) -> String {
    text(value).unwrap_or_else(|| NOBODY.to_owned())
}

fn reserved(name: &str) -> String {
    format!("cannot use the reserved \"{name}\" database as an auth_dbname")
}

fn show_auth_type(kind: AuthType) -> &'static str {
    match kind {
        AuthType::Any => "any",
        AuthType::Cert => "cert",
        AuthType::Hba => "hba",
        AuthType::Md5 => "md5",
        AuthType::Plain => "plain",
        AuthType::ScramSha256 => "scram-sha-256",
        AuthType::Trust => "trust",
    }
}

const SSLMODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

fn sslmode_unknown(value: &str) -> String {
    format!("{value:?} is none of {}", SSLMODES.join(", "))
}

/// True where a list of protocols has nothing but TLS 1.3.
fn only_newest(value: &str) -> Result<bool, String> {
    let known = [
        "all", "default", "legacy", "secure", "tlsv1.0", "tlsv1.1", "tlsv1.2", "tlsv1.3",
    ];
    let mut listed = value.split([',', ':']).map(str::trim);
    let mut is_newest = true;
    listed.try_for_each(|name| {
        is_newest &= name == "tlsv1.3";
        if known.contains(&name) {
            Ok(())
        } else {
            Err(format!("{name:?} is none of {}", known.join(", ")))
        }
    })?;
    Ok(is_newest)
}

fn older_remark(value: &str) -> Option<&'static str> {
    let asks_for_older = ["all", "legacy", "tlsv1.0", "tlsv1.1"]
        .iter()
        .any(|old| value.contains(old));
    asks_for_older.then_some("TLS 1.2 is the oldest that is spoken")
}

/// A list with commas.
fn names(value: &str) -> Vec<String> {
    let names = value.split(',').map(str::trim);
    names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

type Set = Result<Option<&'static str>, String>;

pub(super) fn parsed<T: std::str::FromStr>(value: &str, what: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("{value:?} is not {what}"))
}

/// Bare numbers are seconds.
pub(super) fn seconds(value: &str) -> Result<Duration, String> {
    let seconds: f64 = parsed(value, "a number of seconds")?;
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| format!("{value:?} is not a number of seconds"))
}

pub(super) fn mode(value: &str) -> Result<PoolMode, String> {
    match value {
        "session" => Ok(PoolMode::Session),
        "statement" => Ok(PoolMode::Statement),
        "transaction" => Ok(PoolMode::Transaction),
        _ => Err(format!(
            "{value:?} is none of session, statement, transaction"
        )),
    }
}

/// 0 is no bound.
pub(super) fn bound_of(value: &str) -> Result<Bound, String> {
    let bound = seconds(value)?;
    Ok(if bound.is_zero() {
        Bound::Off
    } else {
        Bound::At(bound)
    })
}

fn bound(to: &mut Bound, value: &str) -> Set {
    *to = bound_of(value)?;
    Ok(None)
}

fn switch(to: &mut bool, value: &str) -> Set {
    *to = parsed::<u8>(value, "0 or 1")? != 0;
    Ok(None)
}

fn or_never(to: &mut Duration, value: &str) -> Set {
    let time = seconds(value)?;
    *to = if time.is_zero() { NEVER } else { time };
    Ok(None)
}

fn count(to: &mut usize, value: &str) -> Set {
    *to = parsed(value, "a number")?;
    Ok(None)
}

/// 0 is no limit.
fn or_unlimited(to: &mut Option<usize>, value: &str) -> Set {
    *to = Some(parsed(value, "a number")?).filter(|count| *count > 0);
    Ok(None)
}

fn path(value: &str) -> Option<PathBuf> {
    (!value.is_empty()).then(|| PathBuf::from(value))
}

fn show_path(path: Option<&PathBuf>) -> String {
    path.map(|path| path.display().to_string())
        .unwrap_or_default()
}

pub(super) fn show_seconds(time: Duration) -> String {
    let text = format!("{:.6}", time.as_secs_f64());
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}

fn show_or_never(time: Duration) -> String {
    if time == NEVER {
        return "0".to_owned();
    }
    show_seconds(time)
}

fn show_bound(bound: Bound) -> String {
    bound.get().map_or_else(|| "0".to_owned(), show_seconds)
}

fn show_count(count: Option<usize>) -> String {
    count.unwrap_or(0).to_string()
}

fn show_switch(is_on: bool) -> String {
    u8::from(is_on).to_string()
}

fn show_mode(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Session => "session",
        PoolMode::Statement => "statement",
        PoolMode::Transaction => "transaction",
    }
}
