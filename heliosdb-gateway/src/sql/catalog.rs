//! One database's catalog, as of one load.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use smallvec::SmallVec;
use thiserror::Error;

use super::by_key;
use super::functions::extension_is_harmless;
use super::reason::FunctionRefusal;
use super::rows::{Kind, Rows};
use super::walk::Findings;
use super::{Relation, is_pure_parameter_type};

/// What classification needs to know about one database: relations, views, functions and what runs
/// when a table is written. Pure data.
///
/// Reads see through inheritance and partitioning by *trees*: all tables that are connected by
/// inheritance, in any direction, form one.
#[derive(Debug)]
pub struct Catalog {
    epoch: u64,
    utf8: bool,
    event_triggers: bool,
    user_equality: bool,
    hidden_code: bool,
    implicit_cast_refused: bool,
    functions_set_settings: bool,
    relations: Vec<RelationFacts>,
    relations_by_oid: HashMap<u32, RelationId>,
    relations_by_name: HashMap<Box<str>, SmallVec<[RelationId; 1]>>,
    trees: Vec<TreeFacts>,
    functions: HashMap<Box<str>, Vec<FunctionFacts>>,
    operators: HashMap<Box<str>, OperatorFacts>,
    types: HashMap<Box<str>, Vec<TypeFacts>>,
    refused_cast_targets: HashSet<u32>,
    /// Types of extensions and enums: what a value's text means is in the type itself.
    pure_types: HashSet<u32>,
}

/// Why the rows of a load can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// A cell holds something else than the query promises.
    #[error("catalog query {result} gave an unexpected value in row {row}, column {column}")]
    Cell {
        /// Which result, from 0.
        result: usize,
        /// Which row, from 0.
        row: usize,
        /// Which column, from 0.
        column: usize,
    },
    /// Not the number of results that [`Catalog::LOAD`] gives.
    #[error("catalog load gave {found} results instead of {expected}")]
    Results {
        /// How many there should be.
        expected: usize,
        /// How many there were.
        found: usize,
    },
}

/// Index into the catalog's relations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RelationId(usize);

/// Index into the catalog's trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct TreeId(usize);

/// What a relation is, as far as reading goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RelationKind {
    Foreign,
    MaterializedView,
    Sequence,
    System,
    Table,
    View,
}

#[derive(Debug)]
pub(super) struct RelationFacts {
    oid: u32,
    pub(super) kind: RelationKind,
    pub(super) schema: Box<str>,
    pub(super) name: Box<str>,
    pub(super) tree: TreeId,
    pub(super) row_security: bool,
    pub(super) unstable_column: bool,
    /// It has a column of type `time`.
    pub(super) time_of_day: bool,
    /// A policy, default or check runs volatile user code.
    pub(super) code: bool,
    /// Empty if it has none whose values can be compared here.
    primary_key: Box<[KeyColumn]>,
    unlogged: bool,
    trigger: bool,
    trigger_ddl: bool,
    rule: bool,
    /// By name: true if the column is a date or time. Holds only names that are one somewhere.
    time_columns: HashMap<Box<str>, bool>,
    definition: Option<Box<str>>,
    /// What the view's query reads and calls; filled when the view is first used.
    findings: OnceLock<Findings>,
}

impl RelationFacts {
    pub(super) fn full_name(&self) -> Box<str> {
        format!("{}.{}", self.schema, self.name).into()
    }

    /// `Some(true)` if the column is a date or time here, `Some(false)` if it is something else
    /// here and a date or time elsewhere.
    pub(super) fn time_column(&self, name: &str) -> Option<bool> {
        self.time_columns.get(name).copied()
    }

    pub(super) fn primary_key(&self) -> &[KeyColumn] {
        &self.primary_key
    }

    pub(super) fn definition(&self) -> Option<&str> {
        self.definition.as_deref()
    }

    pub(super) fn findings(&self) -> &OnceLock<Findings> {
        &self.findings
    }
}

/// A column of a primary key.
#[derive(Debug)]
pub(super) struct KeyColumn {
    pub(super) name: Box<str>,
    pub(super) type_: u32,
    pub(super) kind: Kind,
    /// The `n` of `varchar(n)`.
    pub(super) chars_max: Option<u32>,
    /// Among the columns that an INSERT without a list of them gives values to, from 0.
    pub(super) place: usize,
}

/// What all members of an inheritance tree have in common, or what any member has.
#[derive(Debug)]
pub(super) struct TreeFacts {
    pub(super) key: u32,
    decoded: bool,
    pub(super) foreign: bool,
    pub(super) trigger: bool,
    /// A trigger's function has words of DDL in it.
    pub(super) trigger_ddl: bool,
    pub(super) rule: bool,
    pub(super) code: bool,
    /// It has more than one member, so that an UPDATE may move a row from one to another.
    pub(super) several: bool,
    /// The foreign keys that reference this tree.
    pub(super) cascades: Vec<Cascade>,
    /// The columns whose change some of these pass on.
    pub(super) passed_on: Vec<Box<str>>,
    /// One of them changes without being named.
    pub(super) passes_on_any: bool,
}

/// A foreign key, seen from the referenced tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cascade {
    pub(super) child: TreeId,
    /// DELETE here deletes there.
    pub(super) delete_deletes: bool,
    /// DELETE here updates there.
    pub(super) delete_updates: bool,
    /// UPDATE here updates there.
    pub(super) update_updates: bool,
}

/// All functions of one name in one schema.
#[derive(Clone, Debug, Default)]
pub(super) struct FunctionFacts {
    pub(super) schema: Box<str>,
    pub(super) builtin_immutable: bool,
    pub(super) builtin_stable: bool,
    pub(super) builtin_volatile: bool,
    /// What is wrong with the worst of those that are not built in.
    pub(super) refused: Option<FunctionRefusal>,
    /// One of them may change anything.
    pub(super) code: bool,
    /// One that may change anything has words of DDL in it.
    pub(super) ddl: bool,
    /// One of them can be written as a column of a row: `t.f` for `f(t)`.
    pub(super) row_argument: bool,
    /// One of them may give text.
    pub(super) text_result: bool,
}

impl FunctionFacts {
    pub(super) fn is_builtin(&self) -> bool {
        self.builtin_immutable || self.builtin_stable || self.builtin_volatile
    }
}

/// All operators of one name that are not built in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OperatorFacts {
    pub(super) refused: bool,
    pub(super) code: bool,
    /// One of them may give text.
    pub(super) text_result: bool,
}

#[derive(Debug)]
pub(super) struct TypeFacts {
    pub(super) oid: u32,
    pub(super) schema: Box<str>,
    pub(super) kind: char,
    pub(super) category: char,
    pub(super) extension: bool,
}

impl TypeFacts {
    pub(super) fn is_builtin(&self) -> bool {
        self.oid < FIRST_USER_OID && &*self.schema == "pg_catalog"
    }
}

/// Objects made after initdb have identifiers from here on.
const FIRST_USER_OID: u32 = 16384;

/// Result sets in [`Catalog::LOAD`].
const RESULTS: usize = 15;

type Results = [Vec<Vec<Option<String>>>];

impl Catalog {
    /// The statements that read the catalog, for one simple query with text results.
    ///
    /// They begin and end a read-only transaction of their own, so the connection must not be in
    /// one. They need no privilege beyond CONNECT.
    pub const LOAD: &str = include_str!("catalog.sql");

    /// Builds the catalog from what [`Self::LOAD`] returned: one element for each statement that
    /// gave a result set (an empty one too), each a list of rows, each a list of cells.
    ///
    /// `epoch` is whatever the caller counts schema changes by.
    ///
    /// # Errors
    /// If the results are not those of [`Self::LOAD`].
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the rows are of no use to anybody else, and consuming them leaves room to move them"
    )]
    pub fn from_results(
        epoch: u64,
        results: Vec<Vec<Vec<Option<String>>>>,
    ) -> Result<Self, CatalogError> {
        if results.len() != RESULTS {
            return Err(CatalogError::Results {
                expected: RESULTS,
                found: results.len(),
            });
        }
        let database = rows(&results, 0).next().ok_or(CatalogError::Cell {
            result: 0,
            row: 0,
            column: 0,
        })?;
        let mut catalog = Self {
            epoch,
            utf8: database.text(0)? == "UTF8",
            event_triggers: database.text(1)? != "0",
            user_equality: database.flag(2)?,
            hidden_code: false,
            implicit_cast_refused: false,
            functions_set_settings: false,
            relations: Vec::new(),
            relations_by_oid: HashMap::new(),
            relations_by_name: HashMap::new(),
            trees: Vec::new(),
            functions: HashMap::new(),
            operators: HashMap::new(),
            types: HashMap::new(),
            refused_cast_targets: HashSet::new(),
            pure_types: HashSet::new(),
        };
        let others = catalog.read_functions(&results)?;
        catalog.read_relations(&results)?;
        catalog.read_code(&results, &others)?;
        catalog.read_trees(&results)?;
        catalog.read_keys(&results)?;
        catalog.read_types(&results)?;
        Ok(catalog)
    }

    /// The epoch given to [`Self::from_results`].
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many relations it knows, system catalogs included.
    #[must_use]
    pub fn relation_count(&self) -> usize {
        self.relations.len()
    }

    /// The key ([`Relation::key`]) of the tree that the relation with this object identifier
    /// belongs to; the identifier itself if it is not known, for then nothing cached reads it.
    #[must_use]
    pub fn key_of(&self, oid: u32) -> u32 {
        self.relations_by_oid
            .get(&oid)
            .map_or(oid, |&id| self.tree(self.relation(id).tree).key)
    }

    /// The columns of the primary key by which rows of this relation are told apart, in the key's order; empty if they
    /// are not: then a change of a row is one of any row ([`Rows::All`]).
    pub fn key_columns(&self, oid: u32) -> impl Iterator<Item = &str> {
        let id = self.relations_by_oid.get(&oid).copied();
        id.filter(|&id| by_key::is_keyed(self, id))
            .into_iter()
            .flat_map(|id| self.relation(id).primary_key())
            .map(|column| &*column.name)
    }

    /// Whether `=` between values that keys have is the server's own.
    pub(super) fn has_plain_equality(&self) -> bool {
        !self.user_equality
    }

    /// As [`key_of`](Self::key_of), `None` for a relation that is not known.
    #[must_use]
    pub fn tree_key(&self, oid: u32) -> Option<u32> {
        let id = self.relations_by_oid.get(&oid)?;
        Some(self.tree(self.relation(*id).tree).key)
    }

    pub(super) fn is_utf8(&self) -> bool {
        self.utf8
    }

    pub(crate) fn has_event_triggers(&self) -> bool {
        self.event_triggers
    }

    /// Whether a cast or domain runs volatile user code, without a trace in a statement's text.
    pub(super) fn has_hidden_code(&self) -> bool {
        self.hidden_code
    }

    /// Whether an implicit cast runs a function whose reads are not known.
    pub(super) fn refuses_implicit_casts(&self) -> bool {
        self.implicit_cast_refused
    }

    /// Whether some function that a trigger could call changes settings of the session.
    pub(super) fn functions_set_settings(&self) -> bool {
        self.functions_set_settings
    }

    pub(super) fn relation(&self, id: RelationId) -> &RelationFacts {
        &self.relations[id.0]
    }

    pub(super) fn tree(&self, id: TreeId) -> &TreeFacts {
        &self.trees[id.0]
    }

    /// All relations of this name, in any schema.
    pub(super) fn relations_named(&self, name: &str) -> &[RelationId] {
        self.relations_by_name.get(name).map_or(&[], |ids| ids)
    }

    /// All functions of this name, one entry a schema.
    pub(super) fn functions_named(&self, name: &str) -> &[FunctionFacts] {
        self.functions.get(name).map_or(&[], |facts| facts)
    }

    /// The operators of this name that are not built in.
    pub(super) fn operators_named(&self, name: &str) -> OperatorFacts {
        self.operators.get(name).copied().unwrap_or_default()
    }

    /// All types of this name, in any schema.
    pub(super) fn types_named(&self, name: &str) -> &[TypeFacts] {
        self.types.get(name).map_or(&[], |facts| facts)
    }

    /// Whether the meaning of a parameter value of this type follows from the value and the settings. The input of a
    /// domain runs its checks, and what other types of users hold is not looked into.
    #[must_use]
    pub fn is_pure_parameter_type(&self, oid: u32) -> bool {
        if oid < FIRST_USER_OID {
            is_pure_parameter_type(oid)
        } else {
            self.pure_types.contains(&oid)
        }
    }

    /// Whether an explicit cast to this type may run a function whose reads are not known.
    pub(super) fn refuses_cast_to(&self, type_oid: u32) -> bool {
        self.refused_cast_targets.contains(&type_oid)
    }

    /// One [`Relation`] for each tree among `ids`, named after the first of its members there.
    pub(super) fn publish(&self, ids: impl IntoIterator<Item = RelationId>) -> Box<[Relation]> {
        let mut seen = HashSet::new();
        let mut relations: Vec<Relation> = ids
            .into_iter()
            .filter(|&id| seen.insert(self.relation(id).tree))
            .map(|id| {
                let facts = self.relation(id);
                let tree = self.tree(facts.tree);
                Relation {
                    key: tree.key,
                    name: facts.full_name(),
                    decoded: tree.decoded,
                    rows: Rows::All,
                }
            })
            .collect();
        relations.sort_by_key(|relation| relation.key);
        relations.into()
    }

    /// The relation that a tree's key is the identifier of.
    pub(super) fn root(&self, tree: TreeId) -> RelationId {
        self.relations_by_oid[&self.tree(tree).key]
    }

    /// Results 4 to 6. Gives the functions that are not built in, by identifier.
    fn read_functions(&mut self, results: &Results) -> Result<HashMap<u32, Other>, CatalogError> {
        for row in rows(results, 4) {
            self.functions
                .entry(row.text(0)?.into())
                .or_default()
                .push(FunctionFacts {
                    schema: "pg_catalog".into(),
                    builtin_immutable: row.flag(1)?,
                    builtin_stable: row.flag(2)?,
                    builtin_volatile: row.flag(3)?,
                    refused: None,
                    code: false,
                    ddl: false,
                    row_argument: row.flag(4)?,
                    text_result: row.flag(5)?,
                });
        }
        let mut others = HashMap::new();
        for row in rows(results, 5) {
            let other = Other::read(&row)?;
            self.functions_set_settings |= row.flag(8)?;
            others.insert(row.oid(0)?, other);
        }
        spread_code(&mut others);
        // An aggregate is declared IMMUTABLE and "internal" whatever it is made of.
        for row in rows(results, 6) {
            let Some(part) = others
                .get(&row.oid(1)?)
                .map(|part| (part.refused, part.code))
            else {
                continue;
            };
            if let Some(aggregate) = others.get_mut(&row.oid(0)?) {
                aggregate.refused = worse(aggregate.refused, part.0);
                aggregate.code |= part.1;
            }
        }
        for other in others.values() {
            let named = self.functions.entry(other.name.clone()).or_default();
            let at = named
                .iter()
                .position(|facts| facts.schema == other.schema)
                .unwrap_or_else(|| {
                    named.push(FunctionFacts {
                        schema: other.schema.clone(),
                        ..FunctionFacts::default()
                    });
                    named.len() - 1
                });
            let facts = &mut named[at];
            facts.refused = worse(facts.refused, other.refused);
            facts.code |= other.code;
            facts.ddl |= other.code && other.ddl;
            facts.row_argument |= other.row_argument;
            facts.text_result |= other.text_result;
        }
        Ok(others)
    }

    /// Results 1, 11 and 12. Trees are made later; each relation starts as its own.
    fn read_relations(&mut self, results: &Results) -> Result<(), CatalogError> {
        for row in rows(results, 1) {
            let id = RelationId(self.relations.len());
            let schema: Box<str> = row.text(1)?.into();
            let name: Box<str> = row.text(2)?.into();
            let kind = match (&*schema, row.text(3)?) {
                ("pg_catalog" | "information_schema", _) => RelationKind::System,
                (_, "r" | "p") => RelationKind::Table,
                (_, "v") => RelationKind::View,
                (_, "m") => RelationKind::MaterializedView,
                (_, "f") => RelationKind::Foreign,
                (_, "S") => RelationKind::Sequence,
                _ => return Err(row.error(3)),
            };
            let oid = row.oid(0)?;
            self.relations_by_oid.insert(oid, id);
            self.relations_by_name
                .entry(name.clone())
                .or_default()
                .push(id);
            self.relations.push(RelationFacts {
                oid,
                kind,
                schema,
                name,
                tree: TreeId(id.0),
                unlogged: row.text(4)? != "p",
                row_security: row.flag(5)?,
                trigger: row.flag(6)?,
                rule: row.flag(7)?,
                unstable_column: row.flag(8)?,
                trigger_ddl: row.flag(9)?,
                time_of_day: row.flag(10)?,
                code: false,
                time_columns: HashMap::new(),
                primary_key: Box::default(),
                definition: None,
                findings: OnceLock::new(),
            });
        }
        for row in rows(results, 11) {
            if let Some(&id) = self.relations_by_oid.get(&row.oid(0)?) {
                self.relations[id.0]
                    .time_columns
                    .insert(row.text(1)?.into(), row.flag(2)?);
            }
        }
        for row in rows(results, 12) {
            if let Some(&id) = self.relations_by_oid.get(&row.oid(0)?) {
                self.relations[id.0].definition = row.optional(1)?.map(Into::into);
            }
        }
        Ok(())
    }

    /// Results 7, 8 and 10: code that a statement runs without naming it.
    fn read_code(
        &mut self,
        results: &Results,
        others: &HashMap<u32, Other>,
    ) -> Result<(), CatalogError> {
        for row in rows(results, 7) {
            let facts = self.operators.entry(row.text(0)?.into()).or_default();
            facts.text_result |= row.flag(2)?;
            match others.get(&row.oid(1)?) {
                Some(function) => {
                    facts.refused |= function.refused.is_some();
                    facts.code |= function.code;
                }
                // A new name for a built-in function. It could be any, so it is not vouched for.
                None => facts.refused = true,
            }
        }
        for row in rows(results, 8) {
            let function = row.oid(1)?;
            let (refused, code) = match others.get(&function) {
                Some(function) => (function.refused.is_some(), function.code),
                None => (true, false),
            };
            self.hidden_code |= code;
            if refused {
                self.refused_cast_targets.insert(row.oid(0)?);
                self.implicit_cast_refused |= row.text(2)? == "i";
            }
        }
        for row in rows(results, 10) {
            let (relation, function) = (row.oid(0)?, row.oid(1)?);
            let code = function == 0 || others.get(&function).is_some_and(|other| other.code);
            if !code {
                continue;
            }
            match self.relations_by_oid.get(&relation) {
                Some(&id) => self.relations[id.0].code = true,
                None => self.hidden_code = true,
            }
        }
        Ok(())
    }

    /// Results 2 and 3: joins relations to trees, and trees by foreign keys.
    fn read_trees(&mut self, results: &Results) -> Result<(), CatalogError> {
        let mut parent: Vec<usize> = (0..self.relations.len()).collect();
        let mut has_parent = vec![false; self.relations.len()];
        for row in rows(results, 2) {
            // Indexes of partitioned tables are listed too, and are no relations here.
            if let (Some(&child), Some(&above)) = (
                self.relations_by_oid.get(&row.oid(0)?),
                self.relations_by_oid.get(&row.oid(1)?),
            ) {
                has_parent[child.0] = true;
                let (child, above) = (find(&mut parent, child.0), find(&mut parent, above.0));
                parent[child] = above;
            }
        }
        let mut tree_of_set = HashMap::new();
        for (at, &is_child) in has_parent.iter().enumerate() {
            let set = find(&mut parent, at);
            let tree = *tree_of_set.entry(set).or_insert_with(|| {
                self.trees.push(TreeFacts::default());
                TreeId(self.trees.len() - 1)
            });
            let facts = &mut self.relations[at];
            facts.tree = tree;
            let tree = &mut self.trees[tree.0];
            if !is_child && facts.oid < tree.key {
                tree.key = facts.oid;
            }
            tree.several |= is_child;
            tree.decoded &= !facts.unlogged && facts.kind == RelationKind::Table;
            tree.foreign |= facts.kind == RelationKind::Foreign;
            tree.trigger |= facts.trigger;
            tree.trigger_ddl |= facts.trigger_ddl;
            tree.rule |= facts.rule;
            tree.code |= facts.code;
        }
        for row in rows(results, 3) {
            let (Some(&above), Some(&child)) = (
                self.relations_by_oid.get(&row.oid(0)?),
                self.relations_by_oid.get(&row.oid(1)?),
            ) else {
                continue;
            };
            let on_delete = row.text(2)?;
            let cascade = Cascade {
                child: self.relations[child.0].tree,
                delete_deletes: on_delete == "c",
                delete_updates: matches!(on_delete, "n" | "d"),
                update_updates: matches!(row.text(3)?, "c" | "n" | "d"),
            };
            let above = self.relations[above.0].tree;
            self.trees[above.0].cascades.push(cascade);
        }
        Ok(())
    }

    /// Results 13 and 14.
    fn read_keys(&mut self, results: &Results) -> Result<(), CatalogError> {
        /// What the server adds to a length in `atttypmod`.
        const LENGTH_HEADER: u32 = 4;
        let mut keys: HashMap<RelationId, Option<Vec<KeyColumn>>> = HashMap::new();
        for row in rows(results, 13) {
            let type_ = row.oid(2)?;
            let kind = Kind::of(type_).filter(|kind| *kind != Kind::Text || self.utf8);
            let place = row.oid(4)? as usize;
            let modifier: i64 = row.text(3)?.parse().map_err(|_| row.error(3))?;
            let is_comparable = row.flag(5)?;
            let Some(&id) = self.relations_by_oid.get(&row.oid(0)?) else {
                continue;
            };
            let key = keys.entry(id).or_insert_with(|| Some(Vec::new()));
            match (kind.filter(|_| is_comparable), key.as_mut()) {
                (Some(kind), Some(columns)) => columns.push(KeyColumn {
                    name: row.text(1)?.into(),
                    type_,
                    kind,
                    chars_max: u32::try_from(modifier)
                        .ok()
                        .map(|length| length.saturating_sub(LENGTH_HEADER)),
                    place,
                }),
                _ => *key = None,
            }
        }
        for (id, columns) in keys {
            self.relations[id.0].primary_key = columns.unwrap_or_default().into();
        }
        for row in rows(results, 14) {
            if let Some(&id) = self.relations_by_oid.get(&row.oid(0)?) {
                let tree = &mut self.trees[self.relations[id.0].tree.0];
                tree.passed_on.push(row.text(1)?.into());
                tree.passes_on_any |= row.flag(2)?;
            }
        }
        Ok(())
    }

    /// Result 9.
    fn read_types(&mut self, results: &Results) -> Result<(), CatalogError> {
        for row in rows(results, 9) {
            let facts = TypeFacts {
                oid: row.oid(0)?,
                schema: row.text(1)?.into(),
                kind: row.letter(3)?,
                category: row.letter(4)?,
                extension: row.flag(5)?,
            };
            if facts.kind == 'e' || (facts.kind == 'b' && facts.extension) {
                self.pure_types.insert(facts.oid);
            }
            self.types
                .entry(row.text(2)?.into())
                .or_default()
                .push(facts);
        }
        Ok(())
    }
}

impl Default for TreeFacts {
    fn default() -> Self {
        Self {
            key: u32::MAX,
            decoded: true,
            foreign: false,
            trigger: false,
            trigger_ddl: false,
            rule: false,
            code: false,
            several: false,
            cascades: Vec::new(),
            passed_on: Vec::new(),
            passes_on_any: false,
        }
    }
}

/// A function that is not built in.
#[derive(Debug)]
struct Other {
    schema: Box<str>,
    name: Box<str>,
    refused: Option<FunctionRefusal>,
    code: bool,
    ddl: bool,
    row_argument: bool,
    text_result: bool,
    /// The names of functions in its source.
    calls: Vec<Box<str>>,
}

impl Other {
    fn read(row: &Row<'_>) -> Result<Self, CatalogError> {
        let name: Box<str> = row.text(2)?.into();
        let extension = row.optional(5)?;
        let immutable = row.text(3)? == "i";
        let volatile = row.text(3)? == "v";
        let compiled = row.flag(4)?;
        let refused = if volatile {
            Some(FunctionRefusal::Volatile)
        } else if immutable && compiled && extension.is_some() {
            None
        } else {
            Some(FunctionRefusal::User)
        };
        Ok(Self {
            schema: row.text(1)?.into(),
            refused,
            // The server keeps a STABLE or IMMUTABLE function from writing, but not from changing the
            // session, nor from calling one that writes.
            code: row.flag(8)?
                || (volatile
                    && !extension.is_some_and(|extension| extension_is_harmless(extension, &name))),
            calls: row
                .optional(10)?
                .unwrap_or_default()
                .split_ascii_whitespace()
                .map(Into::into)
                .collect(),
            row_argument: row.flag(6)?,
            text_result: row.flag(7)?,
            ddl: row.flag(9)?,
            name,
        })
    }
}

/// Who calls a function that may change anything may change anything.
fn spread_code(functions: &mut HashMap<u32, Other>) {
    let mut known = 0;
    loop {
        let (code, ddl): (HashSet<Box<str>>, HashSet<Box<str>>) = {
            let coded = || functions.values().filter(|function| function.code);
            let name = |function: &Other| function.name.clone();
            (
                coded().map(name).collect(),
                coded().filter(|function| function.ddl).map(name).collect(),
            )
        };
        if code.len() + ddl.len() == known {
            return;
        }
        known = code.len() + ddl.len();
        for function in functions.values_mut() {
            function.code |= function.calls.iter().any(|name| code.contains(name));
            function.ddl |= function.calls.iter().any(|name| ddl.contains(name));
        }
    }
}

fn worse(a: Option<FunctionRefusal>, b: Option<FunctionRefusal>) -> Option<FunctionRefusal> {
    match (a, b) {
        (Some(FunctionRefusal::Volatile), _) | (_, Some(FunctionRefusal::Volatile)) => {
            Some(FunctionRefusal::Volatile)
        }
        (a, b) => a.or(b),
    }
}

/// The representative of `at`'s set; halves paths on the way.
fn find(parent: &mut [usize], mut at: usize) -> usize {
    while parent[at] != at {
        parent[at] = parent[parent[at]];
        at = parent[at];
    }
    at
}

/// One row of one result.
struct Row<'a> {
    cells: &'a [Option<String>],
    result: usize,
    row: usize,
}

fn rows(results: &Results, result: usize) -> impl Iterator<Item = Row<'_>> {
    results[result]
        .iter()
        .enumerate()
        .map(move |(row, cells)| Row { cells, result, row })
}

impl<'a> Row<'a> {
    fn error(&self, column: usize) -> CatalogError {
        CatalogError::Cell {
            result: self.result,
            row: self.row,
            column,
        }
    }

    fn optional(&self, column: usize) -> Result<Option<&'a str>, CatalogError> {
        match self.cells.get(column) {
            Some(cell) => Ok(cell.as_deref()),
            None => Err(self.error(column)),
        }
    }

    fn text(&self, column: usize) -> Result<&'a str, CatalogError> {
        self.optional(column)?.ok_or_else(|| self.error(column))
    }

    fn oid(&self, column: usize) -> Result<u32, CatalogError> {
        self.text(column)?.parse().map_err(|_| self.error(column))
    }

    fn letter(&self, column: usize) -> Result<char, CatalogError> {
        self.text(column)?
            .chars()
            .next()
            .ok_or_else(|| self.error(column))
    }

    /// NULL is false: a property of something that is not there.
    fn flag(&self, column: usize) -> Result<bool, CatalogError> {
        match self.optional(column)? {
            Some("t") => Ok(true),
            Some("f") | None => Ok(false),
            Some(_) => Err(self.error(column)),
        }
    }
}
