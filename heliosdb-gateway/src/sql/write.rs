//! What a write touches: its targets, and everything that the server changes on its account.

use std::collections::HashMap;
use std::ops::{BitOr, BitOrAssign};

use pg_query::NodeEnum;
use pg_query::protobuf::{
    DeleteStmt, InferClause, InsertStmt, MergeStmt, Node, RangeVar, ReturningClause, UpdateStmt,
};
use smallvec::SmallVec;

use super::by_key::{KEYS_MAX, sets_any};
use super::catalog::{Catalog, RelationId, RelationKind, TreeId};
use super::reason::Unbounded;
use super::rows::{RowKey, Rows};
use super::walk::{Walk, written};
use super::{Effect, Write};

/// What happens to rows of a relation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Events(u8);

impl Events {
    pub(super) const INSERT: Self = Self(1);
    pub(super) const UPDATE: Self = Self(2);
    pub(super) const DELETE: Self = Self(4);
    pub(super) const TRUNCATE: Self = Self(8);
    pub(super) const TRUNCATE_CASCADE: Self = Self(8 | 16);
    const NONE: Self = Self(0);

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Events {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Events {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

/// The relations a statement names as targets, through views too.
#[derive(Debug, Default)]
pub(super) struct Targets(Vec<Target>);

#[derive(Debug)]
struct Target {
    id: RelationId,
    events: Events,
    rows: Rows,
    /// Nothing of it changes that a foreign key would pass on.
    keeps_referenced: bool,
}

/// Which statement writes to a target, as far as its rows can be told from it.
#[derive(Clone, Copy)]
pub(super) enum Written<'a> {
    /// It does not say which rows.
    Any,
    /// Rows that come from elsewhere.
    Copied,
    Deleted,
    Inserted(&'a InsertStmt),
    Updated(&'a UpdateStmt),
}

/// Rows of one tree that are written, of all targets.
#[derive(Debug, Default)]
struct RowsWritten {
    all: bool,
    new: bool,
    keys: Vec<RowKey>,
}

impl RowsWritten {
    fn add(&mut self, rows: &Rows) {
        match rows {
            Rows::All => self.all = true,
            Rows::Found(key) => self.keys.push(key.clone()),
            Rows::Keys(keys) => self.keys.extend_from_slice(keys),
            Rows::New(keys) => {
                self.new = true;
                self.keys.extend_from_slice(keys);
            }
        }
    }

    fn into_rows(mut self) -> Rows {
        if self.keys.len() > KEYS_MAX {
            // Who inserts rows changes none that were there.
            self.new = true;
            self.keys.retain(|key| !key.inserts);
            self.all |= self.keys.len() > KEYS_MAX;
        }
        match (self.all, self.new) {
            (true, _) => Rows::All,
            (false, true) => Rows::New(self.keys.into()),
            (false, false) => Rows::Keys(self.keys.into()),
        }
    }
}

impl Targets {
    /// Looks again at parameters, once it is known how often each occurs.
    pub(super) fn settle_parameters(&mut self, is_lone: impl Fn(i32) -> bool) {
        for target in &mut self.0 {
            if let Rows::Keys(keys) | Rows::New(keys) = &mut target.rows {
                keys.iter_mut()
                    .for_each(|key| key.settle_parameters(&is_lone));
            }
        }
    }

    /// What a write to these targets may change, and what it may do to session and schema.
    pub(super) fn reach(&self, catalog: &Catalog) -> (Write, SmallVec<[Effect; 1]>) {
        let mut reached: HashMap<TreeId, Events> = HashMap::new();
        let mut rows: HashMap<u32, RowsWritten> = HashMap::new();
        let mut todo: Vec<(TreeId, Events, &Rows, bool)> = self
            .0
            .iter()
            .map(|target| {
                let tree = catalog.relation(target.id).tree;
                (tree, target.events, &target.rows, target.keeps_referenced)
            })
            .collect();
        let mut names: Vec<RelationId> = self.0.iter().map(|target| target.id).collect();
        while let Some((tree_id, events, written, keeps_referenced)) = todo.pop() {
            let tree = catalog.tree(tree_id);
            let name = || catalog.relation(catalog.root(tree_id)).full_name();
            if tree.code {
                return anything(Unbounded::TableCode(name()), true);
            }
            if tree.rule {
                return anything(Unbounded::Rule(name()), true);
            }
            if tree.trigger {
                let (write, mut effects) =
                    anything(Unbounded::Trigger(name()), catalog.functions_set_settings());
                if tree.trigger_ddl {
                    effects.push(Effect::Ddl);
                }
                return (write, effects);
            }
            if tree.foreign {
                return anything(Unbounded::ForeignTable(name()), false);
            }
            // Whatever is known of it already: a tree may be reached in several ways.
            rows.entry(tree.key).or_default().add(written);
            let mut events = events;
            let keeps_referenced = keeps_referenced && !tree.several;
            if tree.several && events.contains(Events::UPDATE) {
                // To move a row to another partition is to delete and insert it.
                events |= Events::DELETE;
            }
            if keeps_referenced {
                events = events.without(Events::UPDATE);
            }
            let known = reached.entry(tree_id).or_insert(Events::NONE);
            if known.contains(events) {
                continue;
            }
            *known |= events;
            names.push(catalog.root(tree_id));
            for cascade in &tree.cascades {
                let mut child = Events::NONE;
                if events.contains(Events::DELETE) {
                    if cascade.delete_deletes {
                        child |= Events::DELETE;
                    }
                    if cascade.delete_updates {
                        child |= Events::UPDATE;
                    }
                }
                if events.contains(Events::UPDATE) && cascade.update_updates {
                    child |= Events::UPDATE;
                }
                if events.contains(Events::TRUNCATE_CASCADE) {
                    child |= Events::TRUNCATE_CASCADE;
                }
                if child != Events::NONE {
                    todo.push((cascade.child, child, &Rows::All, false));
                }
            }
        }
        let write = if names.is_empty() {
            Write::None
        } else {
            let mut relations = catalog.publish(names);
            for relation in &mut relations {
                if let Some(written) = rows.remove(&relation.key) {
                    relation.rows = written.into_rows();
                }
            }
            Write::Relations(relations)
        };
        (write, SmallVec::new())
    }
}

/// A write without a bound, by code that may also change settings or not.
fn anything(reason: Unbounded, settings: bool) -> (Write, SmallVec<[Effect; 1]>) {
    let effects = settings
        .then(|| Effect::SettingsUnknown(reason.clone()))
        .into_iter()
        .collect();
    (Write::Everything(reason), effects)
}

impl<'a> Walk<'a> {
    /// INSERT, UPDATE, DELETE or MERGE, at the top level or inside WITH.
    pub(super) fn write_statement(&mut self, node: &'a Node) {
        match &node.node {
            Some(NodeEnum::InsertStmt(statement)) => self.insert(statement),
            Some(NodeEnum::UpdateStmt(statement)) => self.update(statement),
            Some(NodeEnum::DeleteStmt(statement)) => self.delete(statement),
            Some(NodeEnum::MergeStmt(statement)) => self.merge(statement),
            _ => self.unsupported("this form of data modification"),
        }
    }

    /// A relation whose rows change.
    pub(super) fn target(
        &mut self,
        relation: Option<&'a RangeVar>,
        events: Events,
        written_by: Written<'a>,
    ) {
        let Some(relation) = relation else {
            self.unsupported("a write without a target");
            return;
        };
        let Some(catalog) = self.catalog else {
            self.writes_anything(Unbounded::NoCatalog);
            return;
        };
        let ids = self.meanings(catalog, relation);
        if ids.is_empty() {
            self.writes_anything(Unbounded::UnknownRelation(written(relation)));
        }
        let key = self.key_of(relation);
        for &id in &ids {
            match (ids.as_slice(), catalog.relation(id).kind) {
                ([_], RelationKind::Table) => {
                    let target = self.rows_written(catalog, id, events, written_by, key.clone());
                    self.targets.0.push(target);
                }
                _ => self.target_relation(catalog, id, events),
            }
        }
    }

    /// What a statement does to the one table that its target is. `key` is the row that its conditions are about.
    fn rows_written(
        &self,
        catalog: &Catalog,
        id: RelationId,
        events: Events,
        written_by: Written<'a>,
        key: Option<RowKey>,
    ) -> Target {
        let tree = catalog.tree(catalog.relation(id).tree);
        let the_row = |key: Option<RowKey>| key.map_or(Rows::All, |key| Rows::Keys([key].into()));
        let sets = match written_by {
            Written::Inserted(statement) => match &statement.on_conflict_clause {
                Some(clause) => clause.target_list.as_slice(),
                None => &[],
            },
            Written::Updated(statement) => &statement.target_list,
            Written::Any | Written::Copied | Written::Deleted => &[],
        };
        let key_columns = catalog.relation(id).primary_key();
        let rows = match written_by {
            Written::Any => Rows::All,
            Written::Copied => Rows::New(Box::default()),
            Written::Deleted => the_row(key),
            Written::Inserted(statement) => self.inserted_rows(catalog, id, statement),
            Written::Updated(_)
                if sets_any(sets, |name| {
                    key_columns.iter().any(|column| *column.name == *name)
                }) =>
            {
                Rows::All
            }
            Written::Updated(_) => the_row(key),
        };
        let names_its_columns = matches!(written_by, Written::Inserted(_) | Written::Updated(_));
        let passes_on = |name: &str| tree.passed_on.iter().any(|column| **column == *name);
        Target {
            id,
            events,
            rows,
            keeps_referenced: names_its_columns
                && !tree.passes_on_any
                && !sets_any(sets, passes_on),
        }
    }

    fn target_relation(&mut self, catalog: &'a Catalog, id: RelationId, events: Events) {
        let facts = catalog.relation(id);
        match facts.kind {
            RelationKind::Table => self.targets.0.push(Target {
                id,
                events,
                rows: Rows::All,
                keeps_referenced: false,
            }),
            RelationKind::Foreign => {
                self.writes_anything(Unbounded::ForeignTable(facts.full_name()));
            }
            RelationKind::System => {
                self.writes_anything(Unbounded::SystemCatalog(facts.full_name()));
                self.found.effects.push(Effect::Ddl);
            }
            RelationKind::View => self.target_view(catalog, id, events),
            RelationKind::MaterializedView | RelationKind::Sequence => {
                self.writes_anything(Unbounded::UnknownRelation(facts.full_name()));
            }
        }
    }

    /// A view passes writes on to its base table, or to triggers and rules. Which of the tables in
    /// its query is the base one is not worked out: all of them are.
    fn target_view(&mut self, catalog: &'a Catalog, id: RelationId, events: Events) {
        let (relations, views) = (self.found.relations.len(), self.found.views.len());
        let known: Vec<RelationId> = std::mem::take(&mut self.found.relations);
        self.expand(catalog, id);
        let bases = std::mem::replace(&mut self.found.relations, known);
        debug_assert_eq!(self.found.relations.len(), relations);
        let expanded: Vec<RelationId> = self.found.views[views..].to_vec();
        for view in expanded {
            let tree = catalog.tree(catalog.relation(view).tree);
            let name = catalog.relation(view).full_name();
            if tree.trigger {
                let reason = Unbounded::Trigger(name);
                if catalog.functions_set_settings() {
                    self.settings_unknown(&reason);
                }
                if tree.trigger_ddl {
                    self.found.effects.push(Effect::Ddl);
                }
                self.writes_anything(reason);
            } else if tree.rule {
                self.runs_code(Unbounded::Rule(name));
            }
        }
        for base in bases {
            self.target_relation(catalog, base, events);
        }
    }

    fn insert(&mut self, statement: &'a InsertStmt) {
        let InsertStmt {
            relation,
            cols,
            select_stmt,
            on_conflict_clause,
            returning_clause,
            with_clause,
            r#override: _,
        } = statement;
        let scope = self.with(with_clause.as_ref());
        let mut events = Events::INSERT;
        self.list(cols);
        self.option(select_stmt.as_deref());
        if let Some(conflict) = on_conflict_clause {
            events |= Events::UPDATE;
            if let Some(infer) = &conflict.infer {
                self.infer(infer);
            }
            self.list(&conflict.target_list);
            self.option(conflict.where_clause.as_deref());
        }
        self.returning(returning_clause.as_ref());
        self.target(relation.as_ref(), events, Written::Inserted(statement));
        self.leave_with(scope);
    }

    fn infer(&mut self, infer: &'a InferClause) {
        for element in &infer.index_elems {
            match &element.node {
                Some(NodeEnum::IndexElem(element)) => self.option(element.expr.as_deref()),
                _ => self.unsupported("this form of ON CONFLICT"),
            }
        }
        self.option(infer.where_clause.as_deref());
    }

    fn update(&mut self, statement: &'a UpdateStmt) {
        let UpdateStmt {
            relation,
            target_list,
            where_clause,
            from_clause,
            returning_clause,
            with_clause,
        } = statement;
        let scope = self.with(with_clause.as_ref());
        self.note_keys(relation.as_ref(), from_clause, where_clause.as_deref());
        self.list(from_clause);
        self.list(target_list);
        self.option(where_clause.as_deref());
        self.returning(returning_clause.as_ref());
        self.target(
            relation.as_ref(),
            Events::UPDATE,
            Written::Updated(statement),
        );
        self.leave_with(scope);
    }

    fn delete(&mut self, statement: &'a DeleteStmt) {
        let DeleteStmt {
            relation,
            using_clause,
            where_clause,
            returning_clause,
            with_clause,
        } = statement;
        let scope = self.with(with_clause.as_ref());
        self.note_keys(relation.as_ref(), using_clause, where_clause.as_deref());
        self.list(using_clause);
        self.option(where_clause.as_deref());
        self.returning(returning_clause.as_ref());
        self.target(relation.as_ref(), Events::DELETE, Written::Deleted);
        self.leave_with(scope);
    }

    fn merge(&mut self, statement: &'a MergeStmt) {
        let MergeStmt {
            relation,
            source_relation,
            join_condition,
            merge_when_clauses,
            returning_clause,
            with_clause,
        } = statement;
        let scope = self.with(with_clause.as_ref());
        self.option(source_relation.as_deref());
        self.option(join_condition.as_deref());
        for clause in merge_when_clauses {
            match &clause.node {
                Some(NodeEnum::MergeWhenClause(clause)) => {
                    self.option(clause.condition.as_deref());
                    self.list(&clause.target_list);
                    self.list(&clause.values);
                }
                _ => self.unsupported("this form of MERGE"),
            }
        }
        self.returning(returning_clause.as_ref());
        self.target(
            relation.as_ref(),
            Events::INSERT | Events::UPDATE | Events::DELETE,
            Written::Any,
        );
        self.leave_with(scope);
    }

    fn returning(&mut self, clause: Option<&'a ReturningClause>) {
        if let Some(clause) = clause {
            self.list(&clause.exprs);
        }
    }
}
