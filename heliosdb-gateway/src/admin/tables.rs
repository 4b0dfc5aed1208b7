//! The console's tables.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use heliosdb_network::postgres::message;
use heliosdb_pooling::{QueryFingerprint, StatementStats};

use crate::clients::{Activity, ClientInfo, Peer};
use crate::gateway::Gateway;
use crate::invalidate::replication::Mode;
use crate::session::pins::PinNames;
use crate::upstream::ServerPool;
use crate::upstream::database::Database;

use super::command::COMMANDS;

/// Rows of text under named columns.
pub(super) struct Table {
    columns: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Appends it as the answer to a query.
    pub(super) fn put(&self, out: &mut BytesMut) {
        message::put_row_description(out, self.columns);
        for row in &self.rows {
            message::put_data_row(out, row.iter().map(|value| Some(value.as_bytes())));
        }
        message::put_command_complete(out, "SHOW");
    }
}

/// Name and value of each count of the cache, also the source of its metrics.
pub(crate) fn cache_counts(gateway: &Gateway) -> [(&'static str, u64); 14] {
    let stats = gateway.cache.stats();
    [
        ("hits", stats.hits),
        ("misses", stats.misses),
        ("coalesced", stats.coalesced),
        ("fills", stats.fills),
        ("bypasses", gateway.stats.bypasses().values().sum()),
        ("rejected", stats.rejected),
        ("invalidations", gateway.cache.versions().invalidations()),
        ("evictions", stats.evictions),
        ("outdated", stats.invalidated),
        ("entries", stats.entries as u64),
        ("bytes", stats.size_bytes as u64),
        ("capacity_bytes", stats.capacity_bytes as u64),
        ("in_flight", stats.in_flight as u64),
        (
            "saved_ms",
            u64::try_from(stats.time_saved.as_millis()).unwrap_or(u64::MAX),
        ),
    ]
}

pub(super) fn cache(gateway: &Gateway) -> Table {
    let rows = cache_counts(gateway).map(|(name, value)| vec![name.to_owned(), value.to_string()]);
    Table {
        columns: &["name", "value"],
        rows: rows.to_vec(),
    }
}

pub(super) fn caches(gateway: &Gateway) -> Table {
    let rows = gateway
        .policies
        .list()
        .iter()
        .map(|policy| {
            vec![
                policy.name.clone(),
                policy.bound.ttl().as_secs().to_string(),
                policy.bound.stale().as_secs().to_string(),
                policy.uses.load(Ordering::Relaxed).to_string(),
                policy.fingerprint.to_string(),
            ]
        })
        .collect();
    Table {
        columns: &["name", "ttl", "stale", "uses", "statement"],
        rows,
    }
}

pub(super) fn refusals(gateway: &Gateway) -> Table {
    let rows = gateway
        .stats
        .bypasses()
        .iter()
        .map(|(reason, n)| vec![(*reason).to_owned(), n.to_string()])
        .collect();
    Table {
        columns: &["reason", "reads"],
        rows,
    }
}

pub(super) fn invalidation(gateway: &Gateway) -> Table {
    let row = |database: &Arc<Database>| {
        let view = database.follower.gate.view();
        let (mode, why) = match view.mode {
            Mode::Undecided => ("undecided", String::new()),
            Mode::Wire(why) => ("wire", why),
            Mode::Replication => ("replication", String::new()),
            Mode::Unavailable(why) => ("unavailable", why),
        };
        vec![
            database.name.clone(),
            mode.to_owned(),
            view.state.to_owned(),
            why,
            if view.is_open { "open" } else { "closed" }.to_owned(),
            view.lag
                .map(|lag| lag.as_millis().to_string())
                .unwrap_or_default(),
            view.applied.to_string(),
            view.transactions.to_string(),
            view.changes.to_string(),
            view.schema_changes.to_string(),
            view.connects.to_string(),
            view.closings.to_string(),
        ]
    };
    Table {
        columns: &[
            "database",
            "mode",
            "state",
            "why",
            "gate",
            "lag_ms",
            "applied_lsn",
            "transactions",
            "changes",
            "schema_changes",
            "connects",
            "closings",
        ],
        rows: gateway.upstream.databases().iter().map(row).collect(),
    }
}

pub(super) fn statements(gateway: &Gateway) -> Table {
    let prepared_on = prepared_on(gateway);
    let row = |statement: StatementStats| {
        let connections = prepared_on.get(&statement.fingerprint).copied();
        let latency = statement.latency;
        let ms = |ms: f64| format!("{ms:.3}");
        vec![
            statement.fingerprint.to_string(),
            statement.calls().to_string(),
            ms(statement.total_ms()),
            ms(latency.mean_ms),
            ms(latency.p50_ms),
            ms(latency.p95_ms),
            ms(latency.p99_ms),
            statement.hits.to_string(),
            statement.misses.to_string(),
            statement.refused.to_string(),
            statement.refusal.unwrap_or_default().to_owned(),
            connections.unwrap_or(0).to_string(),
        ]
    };
    Table {
        columns: &[
            "statement",
            "calls",
            "total_ms",
            "mean_ms",
            "p50_ms",
            "p95_ms",
            "p99_ms",
            "hits",
            "misses",
            "not_cached",
            "why_not",
            "prepared_on",
        ],
        rows: gateway.statements.list().into_iter().map(row).collect(),
    }
}

/// How many server connections have each statement prepared that some client has prepared under a name. Texts that differ
/// in their values count apart, as they do for the server.
fn prepared_on(gateway: &Gateway) -> HashMap<QueryFingerprint, usize> {
    let mut connections = HashMap::new();
    for statement in gateway.interner.all() {
        let n = statement.affinity.prepared_on();
        if n > 0 {
            *connections
                .entry(QueryFingerprint::of(&statement.text))
                .or_default() += n;
        }
    }
    connections
}

pub(super) fn advice(gateway: &Gateway) -> Table {
    let ms = |time: Duration| format!("{:.3}", time.as_secs_f64() * 1000.0);
    let row = |pool: &Arc<ServerPool>| {
        let mut row = vec![
            pool.user.clone(),
            pool.name.clone(),
            pool.connections.metrics().max.to_string(),
        ];
        let Some((seen, advised)) = pool.advisor.last() else {
            row.resize(ADVICE_COLUMNS.len(), String::new());
            return row;
        };
        let rate = seen.releases as f64 / seen.length.as_secs_f64().max(f64::MIN_POSITIVE);
        row.extend([
            advised.size.to_string(),
            advised.target.to_string(),
            advised.reason.to_string(),
            format!("{rate:.1}"),
            ms(seen.hold_mean),
            ms(seen.hold_p99),
            seen.active_max.to_string(),
            format!("{:.2}", advised.load.busy),
            ms(advised.load.wait_p99),
        ]);
        row
    };
    Table {
        columns: &ADVICE_COLUMNS,
        rows: gateway.upstream.pools().iter().map(row).collect(),
    }
}

/// What a pool has, what it should have next and in the end, and why: the load of the last window with use, and the waits
/// that the advised size would lead to.
const ADVICE_COLUMNS: [&str; 12] = [
    "user",
    "database",
    "size",
    "advised",
    "target",
    "reason",
    "acquires_per_s",
    "hold_mean_ms",
    "hold_p99_ms",
    "in_use_max",
    "busy",
    "wait_p99_ms",
];

pub(super) fn errors(gateway: &Gateway) -> Table {
    let rows = gateway
        .stats
        .errors()
        .iter()
        .map(|(kind, n)| vec![(*kind).to_owned(), n.to_string()])
        .collect();
    Table {
        columns: &["kind", "errors"],
        rows,
    }
}

pub(super) fn clients(gateway: &Gateway) -> Table {
    let row = |client: Arc<ClientInfo>| {
        let (host, port) = match client.peer {
            Peer::Tcp(address) => (address.ip().to_string(), address.port()),
            Peer::Unix(_) => ("unix".to_owned(), 0),
        };
        vec![
            client.id.to_string(),
            client.user.clone(),
            client.database.clone(),
            state(client.activity()).to_owned(),
            host,
            port.to_string(),
            client.application_name.clone(),
            client.counters.queries.load(Ordering::Relaxed).to_string(),
            PinNames(client.pins()).to_string(),
            client.channels().to_string(),
            timestamp(client.connected_at),
        ]
    };
    Table {
        columns: &[
            "id",
            "user",
            "database",
            "state",
            "addr",
            "port",
            "application_name",
            "queries",
            "pinned_by",
            "channels",
            "connect_time",
        ],
        rows: gateway.clients.list().into_iter().map(row).collect(),
    }
}

fn state(activity: Activity) -> &'static str {
    match activity {
        Activity::Idle => "idle",
        Activity::Active => "active",
        Activity::Waiting => "waiting",
    }
}

pub(super) fn pools(gateway: &Gateway) -> Table {
    let rows = gateway
        .upstream
        .pools()
        .iter()
        .map(|pool| {
            let metrics = pool.connections.metrics();
            vec![
                pool.name.clone(),
                pool.user.clone(),
                metrics.active.to_string(),
                metrics.idle.to_string(),
                metrics.connecting.to_string(),
                metrics.closing.to_string(),
                metrics.waiting.to_string(),
                metrics.max.to_string(),
                metrics.cap.to_string(),
                metrics.acquired.to_string(),
                metrics.created.to_string(),
                metrics.timeouts.to_string(),
                metrics.hinted.to_string(),
                metrics.affinity_hits.to_string(),
                format!("{:?}", pool.limits.load().mode).to_ascii_lowercase(),
            ]
        })
        .collect();
    Table {
        columns: &[
            "database",
            "user",
            "sv_active",
            "sv_idle",
            "sv_login",
            "sv_closing",
            "cl_waiting",
            "pool_size",
            "cap",
            "acquired",
            "created",
            "timeouts",
            "hinted",
            "affinity_hits",
            "pool_mode",
        ],
        rows,
    }
}

pub(super) fn servers(gateway: &Gateway) -> Table {
    let rows = gateway
        .upstream
        .servers
        .live()
        .iter()
        .map(|server| {
            let client = server.client();
            vec![
                server.id.to_string(),
                server.user.clone(),
                server.database.clone(),
                match client {
                    _ if server.is_listener => "listening",
                    Some(_) => "active",
                    None => "idle",
                }
                .to_owned(),
                server.backend_pid.to_string(),
                client.map(|id| id.to_string()).unwrap_or_default(),
                server.leases().to_string(),
                timestamp(server.connected_at),
            ]
        })
        .collect();
    Table {
        columns: &[
            "id",
            "user",
            "database",
            "state",
            "remote_pid",
            "client_id",
            "leases",
            "connect_time",
        ],
        rows,
    }
}

pub(super) fn databases(gateway: &Gateway) -> Table {
    let rows = gateway
        .upstream
        .databases()
        .iter()
        .map(|database| {
            let catalog = if database.catalog_now().is_some() {
                "loaded"
            } else {
                "not loaded"
            };
            vec![database.name.clone(), catalog.to_owned()]
        })
        .collect();
    Table {
        columns: &["name", "catalog"],
        rows,
    }
}

/// Name and value of each count of traffic, also the source of its metrics.
pub(crate) fn traffic_counts(gateway: &Gateway) -> [(&'static str, u64); 9] {
    let totals = gateway.clients.totals();
    [
        ("queries", totals.queries.load(Ordering::Relaxed)),
        ("transactions", totals.transactions.load(Ordering::Relaxed)),
        (
            "bytes_received",
            totals.bytes_received.load(Ordering::Relaxed),
        ),
        ("bytes_sent", totals.bytes_sent.load(Ordering::Relaxed)),
        ("wait_us", totals.wait_us.load(Ordering::Relaxed)),
        (
            "prepared_hits",
            totals.prepared_hits.load(Ordering::Relaxed),
        ),
        (
            "prepared_misses",
            totals.prepared_misses.load(Ordering::Relaxed),
        ),
        (
            "clients_admitted",
            gateway.clients.connected_total.load(Ordering::Relaxed),
        ),
        ("cancel_requests", gateway.stats.cancels()),
    ]
}

pub(super) fn stats(gateway: &Gateway) -> Table {
    let mut rows: Vec<_> = traffic_counts(gateway)
        .iter()
        .map(|(name, value)| vec![(*name).to_owned(), value.to_string()])
        .collect();
    rows.push(vec![
        "clients".to_owned(),
        gateway.clients.len().to_string(),
    ]);
    rows.push(vec![
        "uptime_seconds".to_owned(),
        gateway.started.elapsed().as_secs().to_string(),
    ]);
    rows.push(vec!["started_at".to_owned(), timestamp(gateway.started_at)]);
    Table {
        columns: &["name", "value"],
        rows,
    }
}

pub(super) fn config(gateway: &Gateway) -> Table {
    let rows = gateway
        .config()
        .rows()
        .into_iter()
        .map(|row| {
            vec![
                row.name,
                row.value,
                row.default,
                if row.reloadable { "yes" } else { "no" }.to_owned(),
            ]
        })
        .collect();
    Table {
        columns: &["key", "value", "default", "changeable"],
        rows,
    }
}

pub(super) fn version() -> Table {
    Table {
        columns: &["version"],
        rows: vec![vec![format!("helios {}", env!("CARGO_PKG_VERSION"))]],
    }
}

pub(super) fn help() -> Table {
    let rows = COMMANDS
        .iter()
        .map(|(name, what)| vec![(*name).to_owned(), (*what).to_owned()])
        .collect();
    Table {
        columns: &["command", "shows"],
        rows,
    }
}

/// Seconds since 1970 would be exact and unreadable.
fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
