//! What `helios check` says about following the server.

use std::io::Write;

use heliosdb_network::postgres::{PgConnection, PgTarget};

use crate::config::{Config, Invalidation};

use crate::sql::{Catalog, Relation};

use super::server::{self, Facts, Missing, Published, Uncovered, event_trigger_sql, quote_name};
use super::try_walsender;

/// Tables that are named one by one, at most.
const NAMED_MAX: usize = 50;

/// Says whether the database can be followed, what is missing and what grants it, and which tables are not cached.
pub(crate) async fn replication(
    pg: &mut PgConnection,
    target: &PgTarget,
    config: &Config,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let settings = &config.replication;
    let facts = Facts::ask(pg, settings).await?;
    let mut missing = facts.missing(settings);
    if missing.is_empty()
        && let Some(what) = try_walsender(target).await
    {
        missing.push(Missing {
            what,
            remedy: "name the server itself as upstream, not a pooler before it; see pg_hba.conf"
                .to_owned(),
        });
    }
    let mode = match (config.invalidation, missing.is_empty()) {
        (Invalidation::Wire, _) => "wire, as configured",
        (Invalidation::Auto, false) => "wire: the server can't be followed",
        (Invalidation::Replication, false) => {
            "none: nothing is cached, the server can't be followed"
        }
        (Invalidation::Auto | Invalidation::Replication, true) => "replication",
    };
    writeln!(out, "invalidation:  {mode}")?;
    for missing in &missing {
        writeln!(out, "  missing:     {}", missing.what)?;
        writeln!(out, "               {}", missing.remedy)?;
    }
    writeln!(
        out,
        "  slots:       {} of {} in use (max_replication_slots); each database takes one, and a walsender (max_wal_senders = {})",
        facts.slots_used, facts.max_slots, facts.max_wal_senders
    )?;
    let ddl = if facts.has_event_trigger {
        "by the event trigger, roles and settings by a look at the catalogs"
    } else {
        "by a look at the catalogs; to be told at once, a superuser installs"
    };
    writeln!(
        out,
        "  DDL:         {ddl} (every {})",
        humantime::format_duration(settings.ddl_poll)
    )?;
    if !facts.has_event_trigger {
        writeln!(out, "               {}", event_trigger_sql())?;
    }
    publication(pg, config, &facts, out).await
}

/// Which of the relations that a statement reads keep its answer out of memory, where the server is followed.
pub(crate) async fn uncovered(
    pg: &mut PgConnection,
    config: &Config,
    catalog: &Catalog,
    relations: &[Relation],
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let settings = &config.replication;
    if config.invalidation == Invalidation::Wire
        || !Facts::ask(pg, settings).await?.missing(settings).is_empty()
    {
        return Ok(());
    }
    let uncovered = Uncovered::ask(pg, &settings.publication, catalog).await?;
    for relation in relations {
        if let Some(why) = uncovered.why(relation) {
            writeln!(out, "replication:  not cached: {}: {why}", relation.name)?;
        }
    }
    Ok(())
}

async fn publication(
    pg: &mut PgConnection,
    config: &Config,
    facts: &Facts,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let publication = &config.replication.publication;
    let name = quote_name(publication);
    if facts.publication == Published::Absent {
        let tables: Vec<String> = pg
            .simple_query(server::publishable_sql())
            .await?
            .into_iter()
            .flat_map(|result| result.rows)
            .flatten()
            .flatten()
            .collect();
        writeln!(out, "  publication: {name} does not exist")?;
        if !tables.is_empty() {
            let tables = tables.join(", ");
            writeln!(
                out,
                "               CREATE PUBLICATION {name} FOR TABLE {tables};"
            )?;
        }
        return Ok(());
    }
    let results = pg.simple_query(&server::uncovered_sql(publication)).await?;
    let rows: Vec<&Vec<Option<String>>> = results.iter().flat_map(|result| &result.rows).collect();
    writeln!(
        out,
        "  publication: {name}; {} tables are not cached because of it",
        rows.len()
    )?;
    for row in rows.iter().take(NAMED_MAX) {
        let cell = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
        let (table, letter) = (cell(1), cell(2));
        let remedy = match letter {
            "i" => format!(
                "its UPDATEs and DELETEs fail while it is published: ALTER TABLE {table} REPLICA IDENTITY FULL; or add a primary key"
            ),
            "f" => {
                "a row filter or a column list hides changes: publish the table whole".to_owned()
            }
            "u" => "nothing of it is in the log".to_owned(),
            _ => format!(
                "ALTER PUBLICATION {name} ADD TABLE {table}; -- once it has a primary key or REPLICA IDENTITY FULL"
            ),
        };
        writeln!(
            out,
            "               {table}: {}; {remedy}",
            server::uncovered_label(letter)
        )?;
    }
    if rows.len() > NAMED_MAX {
        writeln!(out, "               and {} more", rows.len() - NAMED_MAX)?;
    }
    Ok(())
}
