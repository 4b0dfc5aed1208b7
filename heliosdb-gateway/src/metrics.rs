//! Prometheus text at `/metrics`, liveness at `/health`.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::admin::{cache_counts, traffic_counts};
use crate::gateway::{Course, Gateway};
use crate::invalidate::replication::Mode;

/// Serves until the gateway's course changes.
pub(crate) async fn serve(gateway: Arc<Gateway>, listener: TcpListener) {
    let accepting = gateway.accepting.subscribe();
    let mut course = gateway.course.subscribe();
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(async || "ok\n"))
        .with_state(gateway);
    let stopped = async move {
        let _ = course.wait_for(|course| *course != Course::Serve).await;
        drop(accepting);
    };
    if let Err(error) = axum::serve(listener, routes)
        .with_graceful_shutdown(stopped)
        .await
    {
        tracing::error!(%error, "the metrics server failed");
    }
}

async fn metrics(State(gateway): State<Arc<Gateway>>) -> impl IntoResponse {
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4")],
        render(&gateway),
    )
}

fn render(gateway: &Gateway) -> String {
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
        let _ = writeln!(
            text,
            "# HELP helios_{name} {help}\n# TYPE helios_{name} {kind}"
        );
        for (labels, value) in samples {
            let _ = writeln!(text, "helios_{name}{labels} {value}");
        }
    };
    let plain = |value: u64| [(String::new(), value)];
    for (name, value) in cache_counts(gateway) {
        match name {
            "entries" | "bytes" | "capacity_bytes" | "in_flight" => {
                metric(
                    &format!("cache_{name}"),
                    "gauge",
                    "Result cache, see SHOW CACHE.",
                    &plain(value),
                );
            }
            _ => metric(
                &format!("cache_{name}_total"),
                "counter",
                "Result cache, see SHOW CACHE.",
                &plain(value),
            ),
        }
    }
    for (name, value) in traffic_counts(gateway) {
        metric(
            &format!("{name}_total"),
            "counter",
            "Traffic, see SHOW STATS.",
            &plain(value),
        );
    }
    metric(
        "clients",
        "gauge",
        "Connected clients.",
        &plain(gateway.clients.len() as u64),
    );
    let labelled = |label: &str, counts: std::collections::BTreeMap<&'static str, u64>| -> Vec<_> {
        counts
            .into_iter()
            .map(|(value, n)| (format!("{{{label}=\"{value}\"}}"), n))
            .collect()
    };
    metric(
        "cache_refusals_total",
        "counter",
        "Reads that were not cached, by reason.",
        &labelled("reason", gateway.stats.bypasses()),
    );
    metric(
        "errors_total",
        "counter",
        "Errors told to clients, by whose fault they were.",
        &labelled("kind", gateway.stats.errors()),
    );
    let mut connections = Vec::new();
    let mut waiting = Vec::new();
    let (mut caps, mut hinted, mut met) = (Vec::new(), Vec::new(), Vec::new());
    for pool in gateway.upstream.pools() {
        let metrics = pool.connections.metrics();
        let labels = format!(
            "database=\"{}\",user=\"{}\"",
            escape(&pool.name),
            escape(&pool.user)
        );
        for (state, n) in [
            ("active", metrics.active),
            ("idle", metrics.idle),
            ("connecting", metrics.connecting),
            ("closing", metrics.closing),
        ] {
            connections.push((format!("{{{labels},state=\"{state}\"}}"), n as u64));
        }
        let labels = format!("{{{labels}}}");
        waiting.push((labels.clone(), metrics.waiting as u64));
        caps.push((labels.clone(), metrics.cap as u64));
        hinted.push((labels.clone(), metrics.hinted));
        met.push((labels, metrics.affinity_hits));
    }
    let (mut open, mut lag) = (Vec::new(), Vec::new());
    let mut followed: [Vec<_>; 5] = Default::default();
    for database in gateway.upstream.databases() {
        let view = database.follower.gate.view();
        let labels = format!("{{database=\"{}\"}}", escape(&database.name));
        open.push((labels.clone(), u64::from(view.is_open)));
        if view.mode != Mode::Replication {
            continue;
        }
        let age = view.lag.map(|lag| lag.as_millis());
        let age = age.and_then(|age| u64::try_from(age).ok());
        lag.push((labels.clone(), age.unwrap_or(u64::MAX)));
        for (samples, count) in followed.iter_mut().zip([
            view.transactions,
            view.changes,
            view.schema_changes,
            view.connects,
            view.closings,
        ]) {
            samples.push((labels.clone(), count));
        }
    }
    metric(
        "invalidation_open",
        "gauge",
        "Whether cached answers may be served, see SHOW INVALIDATION.",
        &open,
    );
    metric(
        "replication_lag_ms",
        "gauge",
        "Everything committed longer ago is known to the cache.",
        &lag,
    );
    for (name, samples) in [
        "transactions",
        "changes",
        "schema_changes",
        "connects",
        "closings",
    ]
    .iter()
    .zip(&followed)
    {
        metric(
            &format!("replication_{name}_total"),
            "counter",
            "Replication stream, see SHOW INVALIDATION.",
            samples,
        );
    }
    metric(
        "pool_connections",
        "gauge",
        "Server connections, by state.",
        &connections,
    );
    metric(
        "pool_waiting_clients",
        "gauge",
        "Clients that wait for a server connection.",
        &waiting,
    );
    metric(
        "pool_cap",
        "gauge",
        "Server connections that may be open: fewer than configured after the server refused one.",
        &caps,
    );
    metric(
        "pool_hinted_total",
        "counter",
        "Acquires for a statement that has a name.",
        &hinted,
    );
    metric(
        "pool_affinity_hits_total",
        "counter",
        "Those that were given a connection that has the statement prepared.",
        &met,
    );
    text
}

/// A label's value, which a client may have chosen.
fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
