//! One database as the cache sees it: its slots, and the catalog that statements are classified against.

use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use heliosdb_cache::{Dependencies, SlotId, VersionSlots};
use heliosdb_network::postgres::{PgConnection, PgTarget};
use parking_lot::Mutex;
use rapidhash::fast::RapidHasher;
use smallvec::SmallVec;

use crate::fault::is_removed;
use crate::invalidate::replication::Follower;
use crate::invalidate::replication::server::Uncovered;
use crate::sql::{Catalog, EncodedKey, Relation, RowKey, Rows, Values};

/// A catalog, and the schema version it was read under: it may be believed while that version stands.
#[derive(Debug)]
pub(crate) struct LoadedCatalog {
    pub(crate) catalog: Catalog,
    read_under: Dependencies,
    /// What all databases depend on, as of the same moment, and [`Database::triggers_in_doubt`].
    read_among: Dependencies,
    triggers_in_doubt: u64,
    uncovered: Uncovered,
}

impl LoadedCatalog {
    /// Why changes of it don't show in the replication stream, as a metric label. `None` if they do.
    pub(crate) fn uncovered(&self, relation: &Relation) -> Option<&'static str> {
        self.uncovered.why(relation)
    }
}

/// A database of the upstream server.
#[derive(Debug)]
pub(crate) struct Database {
    /// What the server calls it.
    pub(crate) name: String,
    /// The server's address.
    pub(crate) server: String,
    /// Written to by statements whose effects can't be bounded.
    pub(crate) everything: SlotId,
    /// Written to by DDL.
    pub(crate) schema: SlotId,
    /// Whether rows have slots of their own.
    row_level: bool,
    /// How the writes of others become known.
    pub(crate) follower: Follower,
    /// What they would be published by.
    publication: Option<String>,
    /// Who can follow the server's log, if somebody can.
    pub(crate) followed_as: Option<PgTarget>,
    versions: Arc<VersionSlots>,
    catalog: ArcSwapOption<LoadedCatalog>,
    /// One load at a time; the others wait for its result.
    loading: tokio::sync::Mutex<()>,
    last_failure: Mutex<Option<Instant>>,
    /// How often something happened by which event triggers may have come to be.
    triggers_in_doubt: AtomicU64,
}

/// What an answer depends on.
#[derive(Debug, Default)]
pub(crate) struct SlotsRead {
    pub(crate) slots: SmallVec<[SlotId; 8]>,
    /// One more, unless the answer has a row: then the row that was asked for was there, and no row that is new changes
    /// that.
    pub(crate) unless_found: Option<SlotId>,
}

/// What happens to rows of a relation, as far as those who read rows by key are concerned.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change<'a> {
    /// Any of them may have changed, be gone, or be new.
    AnyRow,
    /// Rows came that were not there before. It is not known which.
    NewRows,
    /// The row with that key changed, is gone, or is new.
    Row(&'a EncodedKey),
}

/// No two catalogs of the process have the same epoch, whatever database they are of.
static NEXT_EPOCH: AtomicU64 = AtomicU64::new(1);

/// After a failed load nothing is cached for this long; then the next statement tries again.
const RETRY_LOAD_AFTER: Duration = Duration::from_secs(1);

impl Database {
    /// `publication` is what the follower follows as `followed_as`, if it is one that may.
    ///
    /// Slots go by the database's name alone: two addresses may well lead to the same server, and then what is written
    /// through one of them is read through the other.
    pub(crate) fn new(
        name: &str,
        server: &str,
        versions: &Arc<VersionSlots>,
        follower: Follower,
        publication: Option<String>,
        followed_as: Option<PgTarget>,
        row_level: bool,
    ) -> Self {
        Self {
            name: name.to_owned(),
            server: server.to_owned(),
            followed_as,
            follower,
            publication,
            everything: versions.slot(slot_hash(name, "everything", 0, b"")),
            schema: versions.slot(slot_hash(name, "schema", 0, b"")),
            row_level,
            versions: Arc::clone(versions),
            catalog: ArcSwapOption::empty(),
            loading: tokio::sync::Mutex::new(()),
            last_failure: Mutex::new(None),
            triggers_in_doubt: AtomicU64::new(0),
        }
    }

    pub(crate) fn versions(&self) -> &Arc<VersionSlots> {
        &self.versions
    }

    /// The slots that an answer depends on which was read from these relations.
    pub(crate) fn slots_read(&self, relations: &[Relation], values: &Values<'_>) -> SlotsRead {
        let mut read = SlotsRead::default();
        for relation in relations {
            let key = relation.key;
            let keys = match &relation.rows {
                Rows::Found(row) => std::slice::from_ref(row),
                Rows::Keys(rows) => rows,
                Rows::All | Rows::New(_) => &[],
            };
            let rows: Option<SmallVec<[EncodedKey; 1]>> =
                keys.iter().map(|row| row.encode(values)).collect();
            let rows = rows.filter(|rows| self.row_level && !rows.is_empty());
            let Some(rows) = rows else {
                read.slots.push(self.slot("relation", key, b""));
                continue;
            };
            read.slots.push(self.slot("any row", key, b""));
            read.slots
                .extend(rows.iter().map(|row| self.slot("row", key, row.as_bytes())));
            let new = self.slot("new row", key, b"");
            if matches!(relation.rows, Rows::Found(_)) {
                read.unless_found = Some(new);
            } else {
                read.slots.push(new);
            }
        }
        read
    }

    /// The slots that a write to these relations changes. No more than about `rows_max` of them are of single rows.
    pub(crate) fn slots_written(
        &self,
        relations: &[Relation],
        values: &Values<'_>,
        rows_max: usize,
        slots: &mut SmallVec<[SlotId; 4]>,
    ) {
        for relation in relations {
            let mut put = |change: Change<'_>| {
                slots.extend(self.slots_changed(relation.key, change));
            };
            let keys: &[RowKey] = match &relation.rows {
                Rows::All => {
                    put(Change::AnyRow);
                    continue;
                }
                Rows::Found(row) => std::slice::from_ref(row),
                Rows::Keys(rows) => rows,
                Rows::New(rows) => {
                    put(Change::NewRows);
                    rows
                }
            };
            for row in keys {
                let key = row.encode(values).filter(|_| keys.len() <= rows_max);
                put(match &key {
                    Some(key) => Change::Row(key),
                    None if row.inserts => Change::NewRows,
                    None => Change::AnyRow,
                });
            }
        }
    }

    /// The slots that a change of a relation's tree raises: that of the relation, for those who read it as a set, and one
    /// more for those who read rows of it by primary key.
    ///
    /// Who follows the server's log tells, for each change of a table that has [`Catalog::key_columns`],
    /// * of an INSERT, [`Change::Row`] with the new row's key;
    /// * of a DELETE, [`Change::Row`] with the old one's;
    /// * of an UPDATE, both (they are the same, and the old one is not sent, where the key was not changed);
    /// * of a TRUNCATE, and wherever a key is not known in full, [`Change::AnyRow`].
    ///
    /// The keys are made of the values in text format, in the order of the key's columns. Of other tables
    /// [`Change::AnyRow`] is told: nobody reads their rows by key.
    pub(crate) fn slots_changed(
        &self,
        relation: u32,
        change: Change<'_>,
    ) -> impl IntoIterator<Item = SlotId> + use<> {
        let set = self.slot("relation", relation, b"");
        let rows = match change {
            Change::AnyRow => self.slot("any row", relation, b""),
            Change::NewRows => self.slot("new row", relation, b""),
            Change::Row(key) => self.slot("row", relation, key.as_bytes()),
        };
        let is_removed = match change {
            Change::AnyRow => is_removed("row-any"),
            Change::NewRows => is_removed("row-new"),
            Change::Row(_) => false,
        };
        // Without row slots nobody depends on the second.
        std::iter::once(set).chain((self.row_level && !is_removed).then_some(rows))
    }

    fn slot(&self, kind: &str, relation: u32, key: &[u8]) -> SlotId {
        self.versions
            .slot(slot_hash(&self.name, kind, relation, key))
    }

    /// The catalog, if one is loaded and no DDL came since (or is under way).
    pub(crate) fn catalog_now(&self) -> Option<Arc<LoadedCatalog>> {
        self.catalog
            .load_full()
            .filter(|loaded| self.versions.is_current(&loaded.read_under))
    }

    /// Looks into [`catalog_now`](Self::catalog_now) without keeping it.
    pub(crate) fn with_catalog<R>(&self, look: impl FnOnce(Option<&LoadedCatalog>) -> R) -> R {
        let loaded = self.catalog.load();
        look(loaded.as_deref().filter(|loaded| self.is_current(loaded)))
    }

    /// The epoch of [`catalog_now`](Self::catalog_now).
    pub(crate) fn epoch_now(&self) -> Option<u64> {
        self.with_catalog(|loaded| loaded.map(|loaded| loaded.catalog.epoch()))
    }

    /// True if no DDL came since the catalog was read, and none is under way.
    pub(crate) fn is_current(&self, loaded: &LoadedCatalog) -> bool {
        self.versions.is_current(&loaded.read_under)
    }

    /// Event triggers may have come to be. To be called while the schema is marked as about to change, or after the change.
    pub(crate) fn doubt_event_triggers(&self) {
        self.triggers_in_doubt.fetch_add(1, Ordering::SeqCst);
    }

    /// True if the catalog that was read last had no event triggers, and nothing since can have made one. What else it said
    /// may be out of date.
    pub(crate) fn has_no_event_triggers(&self) -> bool {
        self.catalog.load().as_ref().is_some_and(|loaded| {
            !loaded.catalog.has_event_triggers()
                && self.versions.is_current(&loaded.read_among)
                && loaded.triggers_in_doubt == self.triggers_in_doubt.load(Ordering::SeqCst)
        })
    }

    /// True where a load is worth trying: none failed just now, and no DDL is under way.
    pub(crate) fn can_load(&self) -> bool {
        self.last_failure
            .lock()
            .is_none_or(|at| at.elapsed() >= RETRY_LOAD_AFTER)
            && self.versions.observe(&[self.schema]).is_some()
    }

    /// Excludes other loads; look at [`catalog_now`](Self::catalog_now) again once it is held.
    pub(crate) async fn lock_loading(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.loading.lock().await
    }

    /// Reads the catalog over a connection that is outside of a transaction.
    ///
    /// The schema version is read before the catalog: DDL that the load did not see raises it afterwards.
    pub(crate) async fn load(&self, connection: &mut PgConnection) -> Option<Arc<LoadedCatalog>> {
        // First: what is counted later was marked when it was counted, so that the versions show it.
        let triggers_in_doubt = self.triggers_in_doubt.load(Ordering::SeqCst);
        let read_among = self.versions.observe(&[])?;
        let read_under = self.versions.observe(&[self.schema])?;
        let started = Instant::now();
        let loaded = match connection.simple_query(Catalog::LOAD).await {
            Ok(results) => {
                let epoch = NEXT_EPOCH.fetch_add(1, Ordering::Relaxed);
                let rows = results
                    .into_iter()
                    .filter(|result| !result.columns.is_empty())
                    .map(|result| result.rows);
                match Catalog::from_results(epoch, rows.collect()) {
                    Ok(catalog) => self.load_uncovered(catalog, connection).await,
                    Err(error) => Err(error.to_string()),
                }
            }
            Err(error) => {
                // The transaction that the load began must not be the next client's.
                if connection.simple_query("ROLLBACK").await.is_err() {
                    connection.set_transaction_status(b'E');
                }
                Err(error.to_string())
            }
        };
        match loaded {
            Ok((catalog, uncovered)) => {
                tracing::debug!(database = self.name, elapsed = ?started.elapsed(), "catalog loaded");
                let loaded = Arc::new(LoadedCatalog {
                    catalog,
                    read_under,
                    read_among,
                    triggers_in_doubt,
                    uncovered,
                });
                self.catalog.store(Some(Arc::clone(&loaded)));
                *self.last_failure.lock() = None;
                Some(loaded)
            }
            Err(error) => {
                tracing::warn!(database = self.name, %error, "cannot read the catalog: nothing is cached until it can be");
                *self.last_failure.lock() = Some(Instant::now());
                None
            }
        }
    }
}

impl Database {
    /// Adds which tables' changes don't show in the replication stream.
    async fn load_uncovered(
        &self,
        catalog: Catalog,
        connection: &mut PgConnection,
    ) -> Result<(Catalog, Uncovered), String> {
        let uncovered = match &self.publication {
            Some(publication) => Uncovered::ask(connection, publication, &catalog)
                .await
                .map_err(|error| error.to_string())?,
            None => Uncovered::default(),
        };
        Ok((catalog, uncovered))
    }
}

fn slot_hash(database: &str, kind: &str, relation: u32, key: &[u8]) -> u64 {
    let mut hasher = RapidHasher::default_const();
    hasher.write(database.as_bytes());
    hasher.write_u8(0);
    hasher.write(kind.as_bytes());
    hasher.write_u32(relation);
    hasher.write(key);
    hasher.finish()
}
