//! Databases, pools and users, in PgBouncer's columns.

use std::collections::BTreeMap;
use std::sync::Arc;

use heliosdb_network::postgres::{Host, PgTarget, PlaceOrder};

use crate::clients::Activity;
use crate::config::PoolMode;
use crate::gateway::Gateway;
use crate::upstream::ServerPool;
use crate::upstream::control::Hold;

use super::is_console;
use super::table::{Table, row};

const DATABASES: &str = "name host port:i database force_user pool_size:i min_pool_size:i reserve_pool_size:i \
     server_lifetime:q pool_mode load_balance_hosts max_connections:i current_connections:i \
     max_client_connections:i current_client_connections:i paused:i disabled:i catalog";
const POOLS: &str = "database user cl_active:i cl_waiting:i cl_active_cancel_req:i cl_waiting_cancel_req:i \
     sv_active:i sv_active_cancel:i sv_being_canceled:i sv_idle:i sv_used:i sv_tested:i sv_login:i maxwait:i \
     maxwait_us:i pool_mode load_balance_hosts sv_closing:i pool_size:i cap:i acquired:q created:q timeouts:q \
     hinted:q affinity_hits:q";
const USERS: &str = "name pool_size reserve_pool_size pool_mode max_user_connections:i current_connections:i \
     max_user_client_connections:i current_client_connections:i";

pub(super) fn databases(gateway: &Gateway) -> Table {
    let routes = gateway.upstream.routes();
    let pools = gateway.upstream.pools();
    let clients = count_by(gateway.clients.list().iter().map(|client| &client.database));
    let is_held = gateway.upstream.hold() != Hold::None;
    let mut names: Vec<String> = routes
        .listed()
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    names.extend(pools.iter().map(|pool| pool.name.clone()));
    names.sort();
    names.dedup();
    let max_clients = gateway.config().clients.max_per_database;
    let row = |name: &String| {
        let shown = routes.shown(name)?;
        let of_database = pools.iter().filter(|pool| pool.name == *name);
        let connections: usize = of_database.clone().map(|pool| connections(pool)).sum();
        let asked = gateway.upstream.asked_for(name);
        let is_loaded = of_database
            .into_iter()
            .any(|pool| pool.database.catalog_now().is_some());
        let (host, port) = place(shown.target);
        Some(row![
            name,
            host,
            port,
            if shown.takes_name {
                name
            } else {
                &shown.target.database
            },
            shown.forces_user.then_some(&shown.target.user),
            shown.limits.size,
            shown.limits.min_idle,
            shown.limits.reserve_size,
            shown.limits.max_lifetime.as_secs(),
            shown.config.pool_mode.map(mode),
            host_list(shown.target),
            shown.limits.max_per_database.unwrap_or(0),
            connections,
            shown.config.max_clients.or(max_clients).unwrap_or(0),
            clients.get(name).copied().unwrap_or(0),
            is_held || asked.is_paused,
            asked.is_disabled,
            if is_loaded { "loaded" } else { "not loaded" },
        ])
    };
    let mut rows: Vec<_> = names
        .iter()
        .filter(|name| *name != "*")
        .filter_map(row)
        .collect();
    let consoles = clients
        .iter()
        .filter(|(name, _)| is_console(name))
        .map(|(_, count)| *count);
    rows.push(row![
        "pgbouncer",
        None::<u32>,
        gateway
            .config()
            .listen
            .first()
            .map_or(0, std::net::SocketAddr::port),
        "pgbouncer",
        "pgbouncer",
        2_u32,
        0_u32,
        0_u32,
        0_u32,
        "statement",
        None::<u32>,
        0_u32,
        0_u32,
        max_clients.unwrap_or(0),
        consoles.sum::<usize>(),
        false,
        false,
        "none",
    ]);
    Table::new(DATABASES, rows)
}

pub(super) fn pools(gateway: &Gateway) -> Table {
    let clients = gateway.clients.list();
    let row = |pool: &Arc<ServerPool>| {
        let metrics = pool.connections.metrics();
        let of_pool = clients.iter().filter(|client| {
            client.database == pool.name && (client.user == pool.user || pool.is_shared())
        });
        let (mut active, mut waiting, mut longest) = (0_u32, 0_u32, std::time::Duration::ZERO);
        for client in of_pool {
            if client.activity() == Activity::Waiting {
                waiting += 1;
                longest = longest.max(client.waits_for());
            } else {
                active += 1;
            }
        }
        row![
            &pool.name,
            &pool.user,
            active,
            waiting,
            0_u32,
            0_u32,
            metrics.active,
            0_u32,
            0_u32,
            metrics.idle,
            0_u32,
            0_u32,
            metrics.connecting,
            longest.as_secs(),
            longest.subsec_micros(),
            mode(pool.limits.load().mode),
            host_list(&pool.connections.connector().target),
            metrics.closing,
            metrics.max,
            metrics.cap,
            metrics.acquired,
            metrics.created,
            metrics.timeouts,
            metrics.hinted,
            metrics.affinity_hits,
        ]
    };
    Table::new(POOLS, gateway.upstream.pools().iter().map(row).collect())
}

pub(super) fn users(gateway: &Gateway) -> Table {
    let config = gateway.config();
    let clients = count_by(gateway.clients.list().iter().map(|client| &client.user));
    let mut servers = BTreeMap::<String, usize>::new();
    for pool in gateway.upstream.pools() {
        *servers.entry(pool.user.clone()).or_default() += connections(&pool);
    }
    let mut names: Vec<&String> = config.users.keys().collect();
    names.extend(clients.keys().chain(servers.keys()));
    names.sort();
    names.dedup();
    let row = |name: &String| {
        let own = config.users.get(name);
        // Text in PgBouncer, and empty where nothing is set.
        let text =
            |value: Option<usize>| value.map(|value| format!("{value:>9}")).unwrap_or_default();
        row![
            name,
            text(own.and_then(|own| own.pool_size)),
            text(own.and_then(|own| own.reserve_size)),
            own.and_then(|own| own.pool_mode).map(mode),
            own.and_then(|own| own.max_connections)
                .or(config.pool.max_per_user)
                .unwrap_or(0),
            servers.get(name).copied().unwrap_or(0),
            own.and_then(|own| own.max_clients)
                .or(config.clients.max_per_user)
                .unwrap_or(0),
            clients.get(name).copied().unwrap_or(0),
        ]
    };
    Table::new(USERS, names.into_iter().map(row).collect())
}

pub(super) fn lists(gateway: &Gateway) -> Table {
    let pools = gateway.upstream.pools();
    let databases = gateway.upstream.routes().listed().len() + 1;
    let users = users(gateway).len();
    let servers: usize = pools.iter().map(|pool| connections(pool)).sum();
    let rows = [
        ("databases", databases),
        ("users", users),
        ("peers", 0),
        ("pools", pools.len()),
        ("peer_pools", 0),
        ("free_clients", 0),
        ("used_clients", gateway.clients.len()),
        ("login_clients", 0),
        ("free_servers", 0),
        ("used_servers", servers),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ];
    let rows = rows.map(|(name, items)| row![name, items]);
    Table::new("list items:i", rows.to_vec())
}

pub(super) fn state(gateway: &Gateway) -> Table {
    let hold = gateway.upstream.hold();
    let rows = [
        ("active", Hold::None),
        ("paused", Hold::Paused),
        ("suspended", Hold::Suspended),
    ];
    let rows = rows.map(|(name, of)| row![name, if hold == of { "yes" } else { "no" }]);
    Table::new("key value", rows.to_vec())
}

/// What memory is bounded, and how much of it is used.
pub(super) fn mem(gateway: &Gateway) -> Table {
    let stats = gateway.cache.stats();
    let entry = stats.size_bytes.checked_div(stats.entries).unwrap_or(0);
    let free = stats.capacity_bytes.saturating_sub(stats.size_bytes);
    let free_entries = free.checked_div(entry.max(1)).unwrap_or(0);
    let cache = row![
        "cache",
        entry,
        stats.entries,
        free_entries,
        stats.capacity_bytes
    ];
    Table::new("name size:q used:q free:q memtotal:q", vec![cache])
}

/// What there is none of in helios has a table all the same, so that scripts go on.
pub(super) fn none_of(what: &str) -> Option<Table> {
    let columns = match what {
        "DNS_HOSTS" => "hostname ttl:q addrs",
        "DNS_ZONES" => "zonename serial:q count:i",
        "PEERS" => "peer_id:i host port:i pool_size:i",
        "PEER_POOLS" => {
            "peer_id:i cl_active_cancel_req:i cl_waiting_cancel_req:i sv_active_cancel:i sv_login:i"
        }
        _ => return None,
    };
    Some(Table::new(columns, Vec::new()))
}

fn connections(pool: &ServerPool) -> usize {
    let metrics = pool.connections.metrics();
    metrics.idle + metrics.active + metrics.connecting + metrics.closing
}

fn count_by<'n>(names: impl Iterator<Item = &'n String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name.clone()).or_default() += 1;
    }
    counts
}

/// The hosts, and the port of the first one.
fn place(target: &PgTarget) -> (Option<String>, u16) {
    let hosts = target.places.iter().map(|place| match &place.host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(folder) => folder.display().to_string(),
        _ => String::new(),
    });
    let hosts: Vec<String> = hosts.collect();
    let port = target.places.first().map_or(0, |place| place.port);
    ((!hosts.is_empty()).then(|| hosts.join(",")), port)
}

/// How one of several hosts is chosen.
fn host_list(target: &PgTarget) -> Option<&'static str> {
    (target.places.len() > 1).then_some(match target.order {
        PlaceOrder::Random => "random",
        PlaceOrder::RoundRobin => "round-robin",
        _ => "disable",
    })
}

fn mode(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Session => "session",
        PoolMode::Statement => "statement",
        PoolMode::Transaction => "transaction",
    }
}
