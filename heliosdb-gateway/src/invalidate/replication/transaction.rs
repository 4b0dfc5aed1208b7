//! A transaction on its way in: what it touched, in bounded memory.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use heliosdb_cache::SlotId;
use heliosdb_network::postgres::replication::pgoutput::{self, Old, Tuple, Value};
use smallvec::SmallVec;

use crate::sql::{Catalog, EncodedKey};
use crate::upstream::database::{Change, Database, LoadedCatalog};

/// More slots are not collected: the tables as a whole count as changed then.
const SLOTS_MAX: usize = 10_000;
/// Nor are more tables: everything counts as changed then.
const TABLES_MAX: usize = 10_000;
/// Tables that are known by description. A server with more of them in one stream is followed anew.
const DESCRIBED_MAX: usize = 200_000;

/// The tables of the stream, as it describes them.
#[derive(Debug, Default)]
pub(super) struct Tables {
    by_oid: HashMap<u32, Table>,
}

/// A table, as the stream describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) oid: u32,
    schema: Box<[u8]>,
    name: Box<[u8]>,
    replica_identity: u8,
    pub(super) columns: Box<[TableColumn]>,
}

/// A column, at its place in a tuple.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableColumn {
    pub(super) name: Box<[u8]>,
    /// It is part of what identifies an old row.
    pub(super) is_key: bool,
    type_oid: u32,
    type_modifier: i32,
}

/// A change of a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowChange<'a> {
    pub(super) table: &'a Table,
    /// What the row was, where the stream says it.
    pub(super) old: Option<Old<'a>>,
    /// What it is, unless it is gone.
    pub(super) new: Option<Tuple<'a>>,
}

/// A transaction that has not come to its commit.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) xid: u32,
    pub(super) changes: u64,
    /// What its changes were looked up in.
    catalog: Option<Arc<LoadedCatalog>>,
    slots: HashSet<SlotId>,
    tables: HashSet<u32>,
    /// The last table and its key: changes of one come in a row.
    last: Option<(u32, u32)>,
    is_coarse: bool,
    pub(super) everything: bool,
    pub(super) schema: bool,
}

impl Table {
    /// A row's values of these columns. `None` if one of them is not told.
    fn key_of(&self, columns: &[&str], row: Tuple<'_>) -> Option<EncodedKey> {
        let mut key = EncodedKey::default();
        for name in columns {
            let place = self
                .columns
                .iter()
                .position(|column| *column.name == *name.as_bytes())?;
            match row.values().nth(place)? {
                Value::Text(text) => key.push(std::str::from_utf8(text).ok()?),
                _ => return None,
            }
        }
        Some(key)
    }
}

impl Tables {
    /// Takes a description. True if the table was another one before.
    pub(super) fn describe(&mut self, relation: &pgoutput::Relation<'_>) -> Result<bool, String> {
        if self.by_oid.len() >= DESCRIBED_MAX {
            return Err("the stream describes too many tables".to_owned());
        }
        let table = Table {
            oid: relation.oid,
            schema: relation.schema.into(),
            name: relation.name.into(),
            replica_identity: relation.replica_identity,
            columns: relation
                .columns
                .iter()
                .map(|column| TableColumn {
                    name: column.name.into(),
                    is_key: column.is_key,
                    type_oid: column.type_oid,
                    type_modifier: column.type_modifier,
                })
                .collect(),
        };
        let before = self.by_oid.insert(relation.oid, table);
        let now = self.by_oid.get(&relation.oid);
        Ok(before.is_some_and(|before| Some(&before) != now))
    }

    /// The table of a change, which the stream has to have described.
    pub(super) fn get(&self, oid: u32) -> Result<&Table, String> {
        self.by_oid
            .get(&oid)
            .ok_or_else(|| format!("a change of table {oid}, which the stream did not describe"))
    }
}

impl Transaction {
    pub(super) fn begin(xid: u32, database: &Database) -> Self {
        Self {
            xid,
            changes: 0,
            catalog: database.catalog_now(),
            slots: HashSet::new(),
            tables: HashSet::new(),
            last: None,
            is_coarse: false,
            everything: false,
            schema: false,
        }
    }

    /// Counts a row's change in.
    pub(super) fn change(&mut self, change: RowChange<'_>, database: &Database) {
        self.changes += 1;
        let Some(key) = self.touch(change.table.oid) else {
            return;
        };
        if !self.is_coarse {
            let catalog = self.catalog.as_ref().map(|loaded| &loaded.catalog);
            slots_of(change, key, catalog, database, &mut self.slots);
            self.is_coarse = self.slots.len() > SLOTS_MAX;
        }
        if self.is_coarse {
            self.slots.clear();
        }
    }

    /// Counts in that all rows of a table are gone.
    pub(super) fn truncate(&mut self, oid: u32, database: &Database) {
        self.changes += 1;
        if let Some(key) = self.touch(oid) {
            self.slots
                .extend(database.slots_changed(key, Change::AnyRow));
        }
    }

    /// The key of a table's tree. `None` where everything counts as changed.
    fn touch(&mut self, oid: u32) -> Option<u32> {
        if self.everything {
            return None;
        }
        if let Some((last, key)) = self.last
            && last == oid
        {
            return Some(key);
        }
        // Without a current catalog nothing is cached that could tell its slots.
        let Some(catalog) = &self.catalog else {
            self.everything = true;
            return None;
        };
        let Some(key) = catalog.catalog.tree_key(oid) else {
            // Somebody made it since.
            (self.everything, self.schema) = (true, true);
            return None;
        };
        self.tables.insert(key);
        if self.tables.len() > TABLES_MAX {
            self.everything = true;
            return None;
        }
        self.last = Some((oid, key));
        Some(key)
    }

    /// True if what was looked up may be out of date by now.
    pub(super) fn is_outdated(&self, database: &Database) -> bool {
        let then = self.catalog.as_ref().map(|loaded| loaded.catalog.epoch());
        let now = database.catalog_now().map(|loaded| loaded.catalog.epoch());
        then != now
    }

    /// The slots of all that it changed.
    pub(super) fn slots(&self, database: &Database) -> Vec<SlotId> {
        let mut slots = Vec::new();
        if self.schema {
            database.doubt_event_triggers();
            slots.push(database.schema);
        }
        if self.everything || self.changes > 0 && self.is_outdated(database) {
            slots.push(database.everything);
        } else if self.is_coarse {
            let any_row = |key: &u32| database.slots_changed(*key, Change::AnyRow);
            slots.extend(self.tables.iter().flat_map(any_row));
        } else {
            slots.extend(&self.slots);
        }
        slots
    }
}

/// The slots that a change of a row of the tree `key` is to raise.
fn slots_of(
    change: RowChange<'_>,
    key: u32,
    catalog: Option<&Catalog>,
    database: &Database,
    slots: &mut HashSet<SlotId>,
) {
    let RowChange { table, old, new } = change;
    let columns: SmallVec<[&str; 4]> = catalog
        .into_iter()
        .flat_map(|catalog| catalog.key_columns(table.oid))
        .collect();
    // Under another identity an UPDATE of the primary key does not say what the key was.
    let is_told = matches!(table.replica_identity, b'd' | b'f');
    for row in [old.map(Old::tuple), new].into_iter().flatten() {
        let row = (is_told && !columns.is_empty())
            .then(|| table.key_of(&columns, row))
            .flatten();
        let change = row.as_ref().map_or(Change::AnyRow, Change::Row);
        slots.extend(database.slots_changed(key, change));
    }
}
