//! The configuration of each peer: as alike as they can be made, and otherwise its defaults.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use heliosdb_testkit::free_port;

use crate::peers::Target;

pub(crate) fn helios_toml(target: Target, clients_max: u32) -> String {
    let cache = match target {
        Target::HeliosMiss => "size = \"1 MiB\"\nmax_entry = \"64 KiB\"\n",
        Target::HeliosPass | Target::HeliosTwo => "enabled = false\n",
        _ => "",
    };
    let clients = clients_max + SPARE_CLIENTS;
    let is_two = target == Target::HeliosTwo;
    let threads = match is_two {
        true => format!("threads = {WORKERS}\n"),
        false => String::new(),
    };
    format!(
        "{threads}[pool]\nsize = {POOL_SIZE}\nprepare_unnamed = {is_two}\n[clients]\nmax = {clients}\n[cache]\n{cache}"
    )
}

pub(crate) fn pgbouncer_ini(
    port: u16,
    upstream: u16,
    clients_max: u32,
    tracks_prepared: bool,
) -> String {
    let mut ini = format!(
        "[databases]\n\
         postgres = host=127.0.0.1 port={upstream} dbname=postgres user=postgres\n\
         [pgbouncer]\n\
         listen_addr = 127.0.0.1\n\
         listen_port = {port}\n\
         unix_socket_dir =\n\
         auth_type = any\n\
         pool_mode = transaction\n\
         default_pool_size = {POOL_SIZE}\n\
         max_client_conn = {}\n\
         log_connections = 0\n\
         log_disconnections = 0\n\
         log_stats = 0\n",
        clients_max + SPARE_CLIENTS
    );
    if tracks_prepared {
        ini.push_str("max_prepared_statements = 200\n");
    }
    ini
}

pub(crate) fn odyssey_conf(
    port: u16,
    upstream: u16,
    clients_max: u32,
    folder: &Path,
) -> anyhow::Result<String> {
    let folder = folder
        .to_str()
        .context("a temporary folder whose path is not UTF-8")?;
    let clients = clients_max + SPARE_CLIENTS;
    Ok(format!(
        "daemonize no\n\
         locks_dir \"{folder}\"\n\
         unix_socket_dir \"{folder}\"\n\
         unix_socket_mode \"0644\"\n\
         log_to_stdout yes\n\
         log_format \"%p %t %l %m\\n\"\n\
         log_config no\n\
         log_session no\n\
         log_stats no\n\
         workers {WORKERS}\n\
         client_max {clients}\n\
         listen {{\n host \"127.0.0.1\"\n port {port}\n tls \"disable\"\n}}\n\
         storage \"server\" {{\n type \"remote\"\n host \"127.0.0.1\"\n port {upstream}\n}}\n\
         database default {{\n user default {{\n authentication \"none\"\n storage \"server\"\n \
         pool \"transaction\"\n pool_size {POOL_SIZE}\n pool_discard no\n pool_reserve_prepared_statement yes\n }}\n}}\n"
    ))
}

pub(crate) fn pgcat_toml(port: u16, upstream: u16) -> String {
    format!(
        "[general]\n\
         host = \"127.0.0.1\"\n\
         port = {port}\n\
         worker_threads = {WORKERS}\n\
         admin_username = \"admin\"\n\
         admin_password = \"admin\"\n\
         [pools.postgres]\n\
         pool_mode = \"transaction\"\n\
         query_parser_enabled = false\n\
         prepared_statements_cache_size = 500\n\
         [pools.postgres.users.0]\n\
         username = \"postgres\"\n\
         password = \"postgres\"\n\
         auth_type = \"trust\"\n\
         pool_size = {POOL_SIZE}\n\
         [pools.postgres.shards.0]\n\
         servers = [[\"127.0.0.1\", {upstream}, \"primary\"]]\n\
         database = \"postgres\"\n"
    )
}

pub(crate) fn pgdog_toml(port: u16, upstream: u16) -> String {
    format!(
        "[general]\n\
         host = \"127.0.0.1\"\n\
         port = {port}\n\
         workers = {WORKERS}\n\
         default_pool_size = {POOL_SIZE}\n\
         pooler_mode = \"transaction\"\n\
         auth_type = \"trust\"\n\
         log_level = \"warn\"\n\
         [[databases]]\n\
         name = \"postgres\"\n\
         host = \"127.0.0.1\"\n\
         port = {upstream}\n\
         role = \"primary\"\n"
    )
}

pub(crate) const PGDOG_USERS: &str = "[[users]]\n\
    name = \"postgres\"\n\
    database = \"postgres\"\n\
    password = \"postgres\"\n";

/// Whether this version of PgBouncer has `max_prepared_statements`.
pub(crate) fn tracks_prepared(version: &str) -> bool {
    let mut numbers = version
        .trim_start_matches(|c: char| !c.is_ascii_digit())
        .split('.');
    let mut number = || numbers.next().and_then(|text| text.parse::<u32>().ok());
    (number(), number()) >= (Some(1), Some(21))
}

pub(crate) fn pgpool_conf(
    port: u16,
    upstream: u16,
    clients_max: u32,
    folder: &Path,
) -> anyhow::Result<String> {
    let folder = folder
        .to_str()
        .context("a temporary folder whose path is not UTF-8")?;
    let control_port = free_port()?;
    let mut conf = String::new();
    for (name, value) in [
        ("backend_clustering_mode", "'streaming_replication'"),
        ("backend_hostname0", "'127.0.0.1'"),
        ("backend_port0", &upstream.to_string()),
        ("backend_flag0", "'ALWAYS_PRIMARY|DISALLOW_TO_FAILOVER'"),
        ("listen_addresses", "'127.0.0.1'"),
        ("port", &port.to_string()),
        ("pcp_port", &control_port.to_string()),
        ("pcp_listen_addresses", "'127.0.0.1'"),
        ("socket_dir", &format!("'{folder}'")),
        ("pcp_socket_dir", &format!("'{folder}'")),
        ("pid_file_name", &format!("'{folder}/pgpool.pid'")),
        ("logdir", &format!("'{folder}'")),
        ("enable_pool_hba", "off"),
        ("pool_passwd", "''"),
        // One process serves one client.
        (
            "num_init_children",
            &clients_max
                .saturating_add(SPARE_CLIENTS)
                .max(80)
                .to_string(),
        ),
        ("listen_backlog_multiplier", "2"),
        ("max_pool", "1"),
        ("sr_check_period", "0"),
        ("health_check_period", "0"),
        ("memory_cache_enabled", "on"),
        ("memqcache_method", "'shmem'"),
        ("memqcache_total_size", "256MB"),
        ("memqcache_oiddir", &format!("'{folder}/oid'")),
    ] {
        writeln!(conf, "{name} = {value}")?;
    }
    Ok(conf)
}

/// The server connections of a pooler. The same for each.
pub(crate) const POOL_SIZE: u32 = 20;
/// The threads of a pooler that does not choose their number by itself.
const WORKERS: usize = 2;
/// For whoever asks whether the peer is ready, and for those that have not quite gone yet.
const SPARE_CLIENTS: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared_statements_came_with_pgbouncer_1_21() {
        for (version, has) in [
            ("PgBouncer 1.18.0", false),
            ("PgBouncer 1.9.0", false),
            ("PgBouncer 1.21.0", true),
            ("PgBouncer 2.0.0", true),
            ("PgBouncer", false),
        ] {
            assert_eq!(tracks_prepared(version), has, "{version}");
        }
    }
}
