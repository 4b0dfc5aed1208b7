//! What went through, by database: totals and averages, in PgBouncer's columns.

use crate::gateway::Gateway;
use crate::traffic::Totals;

use super::table::{Cell, IntoCell as _, Table, row};
use super::tables::helios_counts;

const STATS: &str = "database total_server_assignment_count:N total_xact_count:N total_query_count:N total_received:N \
     total_sent:N total_xact_time:N total_query_time:N total_wait_time:N total_client_parse_count:N \
     total_server_parse_count:N total_bind_count:N total_client_login_count:N avg_server_assignment_count:N \
     avg_xact_count:N avg_query_count:N avg_recv:N avg_sent:N avg_xact_time:N avg_query_time:N avg_wait_time:N \
     avg_client_parse_count:N avg_server_parse_count:N avg_bind_count:N avg_client_login_count:N";
const STATS_TOTALS: &str = "database server_assignment_count:N xact_count:N query_count:N bytes_received:N \
     bytes_sent:N xact_time:N query_time:N wait_time:N client_parse_count:N server_parse_count:N bind_count:N \
     client_login_count:N";
const STATS_AVERAGES: &str = "database server_assignment_count:N xact_count:N query_count:N bytes_received:N \
     bytes_sent:N xact_time:N query_time:N wait_time:N avg_client_parse_count:N avg_server_parse_count:N \
     avg_bind_count:N avg_client_login_count:N";
/// The counts' names in `SHOW TOTALS`, behind `total_` and `avg_`.
const NAMES: [&str; 12] = [
    "server_assignment_count",
    "xact_count",
    "query_count",
    "client_bytes",
    "server_bytes",
    "xact_time",
    "query_time",
    "wait_time",
    "ps_client_parse_count",
    "ps_server_parse_count",
    "ps_bind_count",
    "client_login_count",
];

pub(super) fn stats(gateway: &Gateway) -> Table {
    by_database(gateway, STATS, |row, totals, averages| {
        row.extend(cells(totals).chain(cells(averages)));
    })
}

pub(super) fn stats_totals(gateway: &Gateway) -> Table {
    by_database(gateway, STATS_TOTALS, |row, totals, _| {
        row.extend(cells(totals));
    })
}

pub(super) fn stats_averages(gateway: &Gateway) -> Table {
    by_database(gateway, STATS_AVERAGES, |row, _, averages| {
        row.extend(cells(averages));
    })
}

/// PgBouncer's names, then helios's own counts.
pub(super) fn totals(gateway: &Gateway) -> Table {
    let (totals, averages) = gateway.traffic.rates_of_all(gateway);
    let named = |prefix: &'static str, counts: Totals| {
        NAMES
            .into_iter()
            .zip(counts.0)
            .map(move |(name, count)| row![format!("{prefix}_{name}"), count])
    };
    let rows = named("total", totals).chain(named("avg", averages));
    let own = helios_counts(gateway);
    let own = own.into_iter().map(|(name, count)| row![name, count]);
    Table::new("name value:N", rows.chain(own).collect())
}

fn by_database(
    gateway: &Gateway,
    columns: &'static str,
    fill: impl Fn(&mut Vec<Cell>, &Totals, &Totals),
) -> Table {
    let rates = gateway.traffic.rates(gateway);
    let rows = rates.into_iter().map(|(name, totals, averages)| {
        let mut row = row![name];
        fill(&mut row, &totals, &averages);
        row
    });
    Table::new(columns, rows.collect())
}

fn cells(counts: &Totals) -> impl Iterator<Item = Cell> + use<> {
    counts.0.into_iter().map(|count| count.into_cell())
}
