//! What the server is asked, apart from the stream: whether it can be followed, which tables it shows, and whether its
//! schema changed.

use std::collections::HashMap;
use std::fmt::Write as _;

use heliosdb_network::error::{HeliosError, Result};
use heliosdb_network::postgres::PgConnection;

use crate::config::{DdlChannel, ReplicationConfig};
use crate::sql::{Catalog, Relation, quote_literal};

/// What following a database depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// As in `server_version_num`.
    pub(crate) version: u32,
    pub(crate) wal_level: String,
    pub(crate) in_recovery: bool,
    pub(crate) role: String,
    pub(crate) may_replicate: bool,
    pub(crate) max_wal_senders: u32,
    pub(crate) max_slots: u32,
    pub(crate) slots_used: u32,
    pub(crate) wal_block: u64,
    pub(crate) publication: Published,
    /// The event trigger that tells of DDL is there.
    pub(crate) has_event_trigger: bool,
}

/// What the publication publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Published {
    /// There is no publication of that name.
    Absent,
    /// It leaves out one of insert, update, delete and truncate.
    Partly,
    /// All that happens to its tables.
    Wholly,
}

/// Something that keeps a database from being followed, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) what: String,
    /// SQL or a line of a configuration, for whoever administers the server.
    pub(crate) remedy: String,
}

/// The event trigger that `helios check` proposes.
pub(crate) const EVENT_TRIGGER: &str = "helios_ddl";
/// The prefix of what it emits.
pub(crate) const MESSAGE_PREFIX: &[u8] = b"helios";

/// The first version whose `pgoutput` passes messages on.
const VERSION_MIN: u32 = 140_000;

impl Facts {
    /// Asks for them.
    pub(crate) async fn ask(pg: &mut PgConnection, config: &ReplicationConfig) -> Result<Self> {
        let publication = quote_literal(&config.publication);
        let sql = format!(
            "SELECT pg_catalog.current_setting('server_version_num'), pg_catalog.current_setting('wal_level'), \
             pg_catalog.pg_is_in_recovery()::int, CURRENT_USER, \
             (SELECT (r.rolsuper OR r.rolreplication OR EXISTS (SELECT FROM pg_catalog.pg_roles g \
               WHERE g.rolname = 'rds_replication' AND pg_catalog.pg_has_role(g.oid, 'MEMBER')))::int \
               FROM pg_catalog.pg_roles r WHERE r.rolname = CURRENT_USER), \
             pg_catalog.current_setting('max_wal_senders'), pg_catalog.current_setting('max_replication_slots'), \
             (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots), \
             pg_catalog.current_setting('wal_block_size'), \
             (SELECT (pubinsert AND pubupdate AND pubdelete AND pubtruncate)::int \
               FROM pg_catalog.pg_publication WHERE pubname = {publication}), \
             (SELECT pg_catalog.count(*) FROM pg_catalog.pg_event_trigger \
               WHERE evtname = '{EVENT_TRIGGER}' AND evtevent = 'ddl_command_end' AND evtenabled IN ('O', 'A') \
               AND evttags IS NULL)"
        );
        let results = pg.simple_query(&sql).await?;
        let row = results
            .into_iter()
            .flat_map(|result| result.rows)
            .next()
            .unwrap_or_default();
        Self::from_row(&row).ok_or_else(|| {
            HeliosError::Protocol("the server did not say what it can do".to_owned())
        })
    }

    fn from_row(row: &[Option<String>]) -> Option<Self> {
        let text = |at: usize| row.get(at).and_then(Option::as_deref);
        let number = |at: usize| text(at)?.parse::<u32>().ok();
        Some(Self {
            version: number(0)?,
            wal_level: text(1)?.to_owned(),
            in_recovery: number(2)? != 0,
            role: text(3)?.to_owned(),
            may_replicate: number(4)? != 0,
            max_wal_senders: number(5)?,
            max_slots: number(6)?,
            slots_used: number(7)?,
            wal_block: number(8)?.into(),
            publication: match text(9) {
                None => Published::Absent,
                Some("1") => Published::Wholly,
                Some(_) => Published::Partly,
            },
            has_event_trigger: number(10)? != 0,
        })
    }

    /// Everything that keeps the database from being followed.
    pub(crate) fn missing(&self, config: &ReplicationConfig) -> Vec<Missing> {
        let mut missing = Vec::new();
        let mut lacks = |what: String, remedy: String| missing.push(Missing { what, remedy });
        let name = quote_name(&config.publication);
        if self.version < VERSION_MIN {
            lacks(
                "PostgreSQL is older than 14".to_owned(),
                "upgrade it".to_owned(),
            );
        }
        if self.in_recovery {
            lacks(
                "the server is a replica".to_owned(),
                "name the primary as upstream".to_owned(),
            );
        }
        if self.wal_level != "logical" {
            lacks(
                format!("wal_level is {}", self.wal_level),
                "ALTER SYSTEM SET wal_level = 'logical'; -- and restart the server".to_owned(),
            );
        }
        for (setting, value) in [
            ("max_wal_senders", self.max_wal_senders),
            ("max_replication_slots", self.max_slots),
        ] {
            if value == 0 {
                lacks(
                    format!("{setting} is 0"),
                    format!("ALTER SYSTEM SET {setting} = 10; -- and restart the server"),
                );
            }
        }
        if self.max_slots > 0 && self.slots_used >= self.max_slots {
            lacks(
                format!("all {} replication slots are in use", self.max_slots),
                "ALTER SYSTEM SET max_replication_slots = ...; -- and restart the server"
                    .to_owned(),
            );
        }
        if !self.may_replicate {
            let role = quote_name(&self.role);
            lacks(
                format!("role {role} has not the attribute REPLICATION"),
                format!("ALTER ROLE {role} REPLICATION;"),
            );
        }
        match self.publication {
            Published::Absent if !config.create_publication => lacks(
                format!("there is no publication {name}"),
                format!(
                    "CREATE PUBLICATION {name} FOR TABLE ...; -- tables with a replica identity, see below"
                ),
            ),
            Published::Partly => lacks(
                format!("publication {name} leaves something out"),
                format!(
                    "ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate');"
                ),
            ),
            Published::Absent | Published::Wholly => {}
        }
        if config.ddl == DdlChannel::EventTrigger && !self.has_event_trigger {
            lacks(
                format!("there is no event trigger {EVENT_TRIGGER}"),
                event_trigger_sql(),
            );
        }
        missing
    }
}

/// What installs the event trigger.
pub(crate) fn event_trigger_sql() -> String {
    format!(
        "CREATE FUNCTION {EVENT_TRIGGER}() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN \
         PERFORM pg_catalog.pg_logical_emit_message(true, 'helios', tg_tag); END $$; \
         CREATE EVENT TRIGGER {EVENT_TRIGGER} ON ddl_command_end EXECUTE FUNCTION {EVENT_TRIGGER}();"
    )
}

/// Names everything in a publication that is to be made: all tables with a replica identity, so that no UPDATE or DELETE
/// starts to fail.
pub(crate) fn publishable_sql() -> &'static str {
    "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c \
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' \
     AND (c.relreplident = 'f' \
       OR c.relreplident = 'd' AND EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary) \
       OR c.relreplident = 'i' AND EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisreplident)) \
     ORDER BY 1"
}

/// The tables whose changes the publication does not show in full, with the reason: oid, name, label.
pub(crate) fn uncovered_sql(publication: &str) -> String {
    let publication = quote_literal(publication);
    format!(
        "WITH listed AS MATERIALIZED (SELECT p.oid FROM pg_catalog.pg_publication_tables t \
           JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname \
           JOIN pg_catalog.pg_class p ON p.relnamespace = n.oid AND p.relname = t.tablename \
           WHERE t.pubname = {publication}), \
         filtered AS MATERIALIZED (SELECT r.prrelid FROM pg_catalog.pg_publication_rel r \
           JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
           WHERE p.pubname = {publication} AND (pg_catalog.to_jsonb(r) ->> 'prqual' IS NOT NULL \
             OR pg_catalog.to_jsonb(r) ->> 'prattrs' IS NOT NULL)), \
         judged AS (SELECT c.oid, n.nspname, c.relname, CASE \
           WHEN NOT EXISTS (SELECT FROM pg_catalog.pg_publication p WHERE p.pubname = {publication} \
             AND p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate) THEN 'p' \
           WHEN c.relpersistence <> 'p' THEN 'u' \
           WHEN NOT EXISTS (SELECT FROM listed WHERE oid = c.oid) AND NOT EXISTS \
             (SELECT FROM listed WHERE oid IN (SELECT pg_catalog.pg_partition_ancestors(c.oid))) THEN 'p' \
           WHEN EXISTS (SELECT FROM filtered WHERE prrelid = c.oid \
             OR prrelid IN (SELECT pg_catalog.pg_partition_ancestors(c.oid))) THEN 'f' \
           WHEN NOT (c.relreplident = 'f' \
             OR c.relreplident = 'd' AND EXISTS (SELECT FROM pg_catalog.pg_index i \
                  WHERE i.indrelid = c.oid AND i.indisprimary) \
             OR c.relreplident = 'i' AND EXISTS (SELECT FROM pg_catalog.pg_index i \
                  WHERE i.indrelid = c.oid AND i.indisreplident)) THEN 'i' \
           END AS why \
           FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
           WHERE c.relkind = 'r' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_') \
         SELECT oid, pg_catalog.format('%I.%I', nspname, relname), why FROM judged WHERE why IS NOT NULL ORDER BY 2"
    )
}

/// The trees whose changes the publication does not show in full.
#[derive(Debug, Default)]
pub(crate) struct Uncovered {
    why: HashMap<u32, &'static str>,
}

impl Uncovered {
    /// Asks for them.
    pub(crate) async fn ask(
        pg: &mut PgConnection,
        publication: &str,
        catalog: &Catalog,
    ) -> Result<Self> {
        let mut why = HashMap::new();
        let results = pg.simple_query(&uncovered_sql(publication)).await?;
        for row in results.iter().flat_map(|result| &result.rows) {
            let oid = row.first().and_then(|oid| oid.as_deref()?.parse().ok());
            let (Some(oid), Some(Some(letter))) = (oid, row.get(2)) else {
                return Err(HeliosError::Protocol(
                    "the server did not say what is published".to_owned(),
                ));
            };
            // One member is enough for its tree.
            why.insert(catalog.key_of(oid), uncovered_label(letter));
        }
        Ok(Self { why })
    }

    /// Why changes of it don't show in the replication stream, as a metric label. `None` if they do.
    pub(crate) fn why(&self, relation: &Relation) -> Option<&'static str> {
        match self.why.get(&relation.key) {
            Some(why) => Some(why),
            None => (!relation.decoded).then_some("not decoded"),
        }
    }
}

/// Why a table's changes don't show, as a metric label, by the letter of [`uncovered_sql`].
pub(crate) fn uncovered_label(letter: &str) -> &'static str {
    match letter {
        "f" => "publication filters",
        "i" => "no replica identity",
        "u" => "unlogged",
        _ => "not in the publication",
    }
}

/// Asks for the end of the log, and for what has been committed as others see it.
pub(super) const PROBE: &str =
    "SELECT pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.pg_current_snapshot()";

/// Takes a transaction id, above those of all transactions that have written until now. The message makes the commit write
/// the log to disk at once, so that the first proof need not wait for it.
pub(super) const XID: &str = "SELECT pg_catalog.pg_current_xact_id(), \
     pg_catalog.pg_logical_emit_message(true, 'helios_flush', '')";

/// Makes the server write its log to disk up to here, without a transaction id. What no commit follows stays in memory
/// for up to 15 seconds otherwise, and what is not on disk is not decoded.
pub(super) fn flush_sql(version: u32) -> &'static str {
    if version >= 170_000 {
        "SELECT pg_catalog.pg_logical_emit_message(false, 'helios_flush', '', true)"
    } else {
        "SELECT pg_catalog.pg_logical_emit_message(false, 'helios_flush', '')"
    }
}

/// A digest of the catalogs that decide what a statement means and who may run it: rows are told apart by the
/// transaction that wrote them. Temporary objects are left out.
///
/// With the event trigger only what it does not fire for is looked at: what all databases share, and the trigger itself.
pub(super) fn schema_digest_sql(version: u32, has_event_trigger: bool) -> String {
    const TEMPORARY: &str = "(SELECT oid FROM pg_catalog.pg_class WHERE relpersistence = 't')";
    const TEMPORARY_SCHEMAS: &str =
        "(SELECT oid FROM pg_catalog.pg_namespace WHERE nspname ~ '^pg_(toast_)?temp_')";
    let mut tables: Vec<(&str, String)> = Vec::new();
    for table in [
        "pg_auth_members",
        "pg_database",
        "pg_db_role_setting",
        "pg_event_trigger",
        "pg_publication",
        "pg_publication_rel",
    ] {
        tables.push((table, String::new()));
    }
    if version >= 150_000 {
        tables.push(("pg_publication_namespace", String::new()));
    }
    if !has_event_trigger {
        tables.push(("pg_class", "relpersistence <> 't'".to_owned()));
        tables.push(("pg_namespace", "nspname !~ '^pg_(toast_)?temp_'".to_owned()));
        tables.push((
            "pg_type",
            format!("typnamespace NOT IN {TEMPORARY_SCHEMAS}"),
        ));
        for (table, relation) in [
            ("pg_attrdef", "adrelid"),
            ("pg_attribute", "attrelid"),
            ("pg_constraint", "conrelid"),
            ("pg_index", "indrelid"),
            ("pg_inherits", "inhrelid"),
            ("pg_policy", "polrelid"),
            ("pg_rewrite", "ev_class"),
            ("pg_trigger", "tgrelid"),
        ] {
            tables.push((table, format!("{relation} NOT IN {TEMPORARY}")));
        }
        for table in [
            "pg_aggregate",
            "pg_cast",
            "pg_collation",
            "pg_enum",
            "pg_extension",
            "pg_operator",
            "pg_partitioned_table",
            "pg_proc",
            "pg_ts_config",
            "pg_ts_config_map",
            "pg_ts_dict",
        ] {
            tables.push((table, String::new()));
        }
    }
    let mut sql = String::from(
        "SELECT pg_catalog.md5(pg_catalog.string_agg(n || ' ' || h, ',' ORDER BY k)) FROM (\
         SELECT 0 AS k, pg_catalog.count(*) AS n, COALESCE(pg_catalog.sum(pg_catalog.hashtext(\
         rolname || rolsuper || rolinherit || rolbypassrls)), 0) AS h FROM pg_catalog.pg_roles",
    );
    for (at, (table, condition)) in tables.iter().enumerate() {
        let condition = if condition.is_empty() {
            "true"
        } else {
            condition
        };
        // Writing to a String can't fail.
        let _ = write!(
            sql,
            " UNION ALL SELECT {}, pg_catalog.count(*), \
             COALESCE(pg_catalog.sum(pg_catalog.hashint8(xmin::text::int8)), 0) \
             FROM pg_catalog.{table} WHERE {condition}",
            at + 1
        );
    }
    sql.push_str(") parts");
    sql
}

pub(crate) fn quote_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn able() -> Facts {
        Facts {
            version: 150_018,
            wal_level: "logical".to_owned(),
            in_recovery: false,
            role: "app".to_owned(),
            may_replicate: true,
            max_wal_senders: 10,
            max_slots: 10,
            slots_used: 0,
            wal_block: 8192,
            publication: Published::Wholly,
            has_event_trigger: false,
        }
    }

    #[test]
    fn each_thing_that_is_missing_is_named_with_its_remedy() {
        let config = ReplicationConfig::default();
        assert_eq!(able().missing(&config), []);
        let lacks = |change: fn(&mut Facts), what: &str, remedy: &str| {
            let mut facts = able();
            change(&mut facts);
            let missing = facts.missing(&config);
            assert_eq!(missing.len(), 1, "{missing:?}");
            assert!(missing[0].what.contains(what), "{missing:?}");
            assert!(missing[0].remedy.contains(remedy), "{missing:?}");
        };
        lacks(|facts| facts.version = 130_000, "older than 14", "upgrade");
        lacks(|facts| facts.in_recovery = true, "replica", "primary");
        lacks(
            |facts| facts.wal_level = "replica".to_owned(),
            "wal_level is replica",
            "wal_level = 'logical'",
        );
        lacks(
            |facts| facts.max_wal_senders = 0,
            "max_wal_senders",
            "max_wal_senders = 10",
        );
        lacks(
            |facts| facts.max_slots = 0,
            "max_replication_slots",
            "max_replication_slots = 10",
        );
        lacks(
            |facts| facts.slots_used = 10,
            "all 10 replication slots are in use",
            "max_replication_slots",
        );
        lacks(
            |facts| facts.may_replicate = false,
            "REPLICATION",
            "ALTER ROLE \"app\" REPLICATION",
        );
        lacks(
            |facts| facts.publication = Published::Absent,
            "no publication \"helios\"",
            "CREATE PUBLICATION \"helios\"",
        );
        lacks(
            |facts| facts.publication = Published::Partly,
            "leaves something out",
            "publish = 'insert, update, delete, truncate'",
        );
    }

    #[test]
    fn a_publication_that_may_be_made_is_not_missing() {
        let mut config = ReplicationConfig {
            create_publication: true,
            ..ReplicationConfig::default()
        };
        let mut facts = able();
        facts.publication = Published::Absent;
        assert_eq!(facts.missing(&config), []);
        config.ddl = DdlChannel::EventTrigger;
        assert_eq!(facts.missing(&config).len(), 1);
        facts.has_event_trigger = true;
        assert_eq!(facts.missing(&config), []);
    }
}
