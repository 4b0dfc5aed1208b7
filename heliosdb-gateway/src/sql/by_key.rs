//! Finds the tables that a statement reads or writes by primary key.
//!
//! A table in FROM is read by key if a condition that every row of the result has to meet says what each column of its key
//! is equal to: conditions joined by AND at the top of WHERE, or of the ON of an inner join around the table. Then no
//! other row of the table can reach the result, whatever else is joined, and whatever else is asked of the rows.
//!
//! A name in such a condition is taken for a column of the table only if it can't be anything else, by the server's own
//! rules: it is qualified with what the table is called in this very FROM, or no two tables are merged there.

use std::cell::OnceCell;
use std::ops::Range;

use pg_query::NodeEnum;
use pg_query::protobuf::{
    AConst, AExprKind, BoolExprType, ColumnRef, InsertStmt, JoinExpr, JoinType, Node,
    OnConflictAction, OnConflictClause, OverridingKind, RangeVar, SelectStmt, SetOperation,
    TypeName, a_const,
};
use smallvec::SmallVec;

use super::Relation;
use super::catalog::{Catalog, KeyColumn, RelationId, RelationKind};
use super::rows::{KeyValue, Kind, RowKey, Rows, Source};
use super::skeleton;
use super::walk::{Findings, Walk, string};

/// More rows than these in one statement count as all, or as rows whose keys are not known.
pub(super) const KEYS_MAX: usize = 64;

/// The literals of the text that is classified.
#[derive(Debug)]
pub(super) struct Literals<'a> {
    sql: &'a str,
    /// Found when they are first asked for; `None` in it if the text has no skeleton, and its class is its own.
    places: OnceCell<Option<Vec<Range<usize>>>>,
}

impl<'a> Literals<'a> {
    pub(super) fn new(sql: &'a str) -> Self {
        Self {
            sql,
            places: OnceCell::new(),
        }
    }

    /// Where the value of a constant is to be read from, if it can be of that kind. Depends on nothing that texts of one
    /// skeleton differ in.
    fn source(&self, constant: &AConst, kind: Kind) -> Option<Source> {
        let is_string = match constant.val.as_ref()? {
            a_const::Val::Sval(_) => true,
            a_const::Val::Ival(_) | a_const::Val::Fval(_) => false,
            a_const::Val::Boolval(_) | a_const::Val::Bsval(_) => return None,
        };
        if !is_string && kind != Kind::Integer {
            return None;
        }
        let places = self.places.get_or_init(|| skeleton::literals(self.sql));
        let Some(places) = places else {
            return canonical(constant, kind).map(|text| Source::Constant(text.into()));
        };
        let at = usize::try_from(constant.location).ok()?;
        let from_here = self.sql.get(at..)?;
        // A minus belongs to the constant.
        let (negative, at) = match from_here.strip_prefix('-') {
            Some(rest) => (true, at + 1 + (rest.len() - rest.trim_ascii_start().len())),
            None => (false, at),
        };
        let nth = places.binary_search_by_key(&at, |place| place.start).ok()?;
        Some(Source::Literal {
            nth: u16::try_from(nth).ok()?,
            negative,
        })
    }
}

/// The canonical form of a constant as the grammar has read it.
fn canonical(constant: &AConst, kind: Kind) -> Option<String> {
    match constant.val.as_ref()? {
        a_const::Val::Sval(text) => kind.of_string(&text.sval),
        a_const::Val::Ival(number) => kind.of_string(&number.ival.to_string()),
        a_const::Val::Fval(number) => kind.of_string(&number.fval),
        a_const::Val::Boolval(_) | a_const::Val::Bsval(_) => None,
    }
}

/// One FROM: the tables that can be named in it, and what its rows have to meet.
#[derive(Default)]
struct Level<'a> {
    tables: Vec<&'a RangeVar>,
    /// A condition, and which of the tables it is about.
    conditions: Vec<(&'a Node, Range<usize>)>,
    /// Columns of two tables are one, by USING or NATURAL.
    merges: bool,
}

/// A column, and what it is equal to.
struct Equality<'a> {
    column: &'a ColumnRef,
    value: &'a Node,
    tables: Range<usize>,
}

impl<'a> Level<'a> {
    fn add(&mut self, item: &'a Node) {
        match &item.node {
            Some(NodeEnum::RangeVar(table)) => self.tables.push(table),
            Some(NodeEnum::JoinExpr(join)) => self.add_join(join),
            _ => {}
        }
    }

    fn add_join(&mut self, join: &'a JoinExpr) {
        self.merges |= join.is_natural || !join.using_clause.is_empty();
        // What a join is called hides what is in it.
        if join.alias.is_some() || join.join_using_alias.is_some() {
            self.merges = true;
            return;
        }
        let first = self.tables.len();
        for side in [&join.larg, &join.rarg].into_iter().flatten() {
            self.add(side);
        }
        if join.jointype() == JoinType::JoinInner
            && let Some(condition) = &join.quals
        {
            self.conditions.push((condition, first..self.tables.len()));
        }
    }

    fn equalities(&self) -> Vec<Equality<'a>> {
        let mut found = Vec::new();
        for (condition, tables) in &self.conditions {
            equalities(condition, tables, &mut found);
        }
        found
    }

    /// Whether a name stands for that column of the table at `at`.
    fn is_column(&self, name: &ColumnRef, at: usize, column: &str) -> bool {
        let table = self.tables[at];
        match name.fields.as_slice() {
            [field] => !self.merges && string(field) == Some(column),
            [qualifier, field] => {
                string(field) == Some(column) && string(qualifier) == Some(called(table))
            }
            _ => false,
        }
    }
}

/// What a table is called where it is used.
fn called(table: &RangeVar) -> &str {
    match &table.alias {
        Some(alias) => &alias.aliasname,
        None => &table.relname,
    }
}

fn equalities<'a>(condition: &'a Node, tables: &Range<usize>, found: &mut Vec<Equality<'a>>) {
    match &condition.node {
        Some(NodeEnum::BoolExpr(all)) if all.boolop() == BoolExprType::AndExpr => {
            for condition in &all.args {
                equalities(condition, tables, found);
            }
        }
        Some(NodeEnum::AExpr(comparison)) if comparison.kind() == AExprKind::AexprOp => {
            let is_equality = match comparison.name.as_slice() {
                [name] => string(name) == Some("="),
                [schema, name] => string(schema) == Some("pg_catalog") && string(name) == Some("="),
                _ => false,
            };
            let (Some(left), Some(right)) = (&comparison.lexpr, &comparison.rexpr) else {
                return;
            };
            if !is_equality {
                return;
            }
            for (column, value) in [(left, right), (right, left)] {
                if let Some(NodeEnum::ColumnRef(column)) = &column.node {
                    found.push(Equality {
                        column,
                        value,
                        tables: tables.clone(),
                    });
                }
            }
        }
        _ => {}
    }
}

impl<'a> Walk<'a> {
    /// Notes which tables of a FROM are read by key. `target` is the table that an UPDATE or DELETE is about, which its
    /// conditions can name as well.
    pub(super) fn note_keys(
        &mut self,
        target: Option<&'a RangeVar>,
        from: &'a [Node],
        condition: Option<&'a Node>,
    ) {
        let Some(catalog) = self.catalog else {
            return;
        };
        if self.literals.is_none() || !catalog.has_plain_equality() {
            return;
        }
        let mut level = Level::default();
        level.tables.extend(target);
        from.iter().for_each(|item| level.add(item));
        if let Some(condition) = condition {
            level.conditions.push((condition, 0..level.tables.len()));
        }
        let equalities = level.equalities();
        if equalities.is_empty() {
            return;
        }
        for (at, table) in level.tables.iter().enumerate() {
            let Some(id) = self.keyed_table(catalog, table) else {
                continue;
            };
            if table
                .alias
                .as_ref()
                .is_some_and(|alias| !alias.colnames.is_empty())
            {
                continue;
            }
            let columns = catalog.relation(id).primary_key();
            let values = columns.iter().map(|column| {
                equalities
                    .iter()
                    .filter(|equality| {
                        equality.tables.contains(&at)
                            && level.is_column(equality.column, at, &column.name)
                    })
                    .find_map(|equality| self.compared_with(column, equality.value))
            });
            if let Some(values) = values.collect::<Option<SmallVec<[KeyValue; 1]>>>() {
                self.keys.push((table, RowKey::new(values, false)));
            }
        }
    }

    /// The table that a name means, if it has rows with keys.
    fn keyed_table(&self, catalog: &Catalog, name: &RangeVar) -> Option<RelationId> {
        if self.is_with_query(name) {
            return None;
        }
        match self.meanings(catalog, name).as_slice() {
            [id] if is_keyed(catalog, *id) => Some(*id),
            _ => None,
        }
    }

    /// What was noted of a table in FROM.
    pub(super) fn key_of(&mut self, table: &'a RangeVar) -> Option<RowKey> {
        let at = self
            .keys
            .iter()
            .position(|(known, _)| std::ptr::eq(*known, table))?;
        Some(self.keys.swap_remove(at).1)
    }

    fn compared_with(&self, column: &KeyColumn, value: &'a Node) -> Option<KeyValue> {
        Some(KeyValue {
            kind: column.kind,
            source: self.source(column, value)?,
            chars_max: None,
        })
    }

    fn assigned(&self, column: &KeyColumn, value: &'a Node) -> Option<KeyValue> {
        Some(KeyValue {
            kind: column.kind,
            source: self.source(column, value)?,
            chars_max: column.chars_max,
        })
    }

    /// Where the value of a constant or parameter is to be read from.
    fn source(&self, column: &KeyColumn, value: &'a Node) -> Option<Source> {
        if column.kind == Kind::Text && !self.scope.client_encoding_utf8 {
            return None;
        }
        let (value, type_) = match value.node.as_ref()? {
            NodeEnum::TypeCast(cast) => {
                let type_ = self.plain_type(cast.type_name.as_ref()?)?;
                if Kind::of(type_) != Some(column.kind) {
                    return None;
                }
                (cast.arg.as_deref()?.node.as_ref()?, type_)
            }
            value => (value, column.type_),
        };
        match value {
            NodeEnum::AConst(constant) => self.literals?.source(constant, column.kind),
            NodeEnum::ParamRef(parameter) => Some(Source::Parameter {
                number: u16::try_from(parameter.number).ok()?,
                type_: Some(type_),
            }),
            _ => None,
        }
    }

    /// The identifier of a type that keys have, if that is what the name means for certain and nothing more is said.
    fn plain_type(&self, name: &TypeName) -> Option<u32> {
        let is_plain = name.typmods.is_empty()
            && name.array_bounds.is_empty()
            && !name.setof
            && !name.pct_type;
        if !is_plain {
            return None;
        }
        let (qualifier, bare) = match name.names.as_slice() {
            [name] => (None, string(name)?),
            [schema, name] => (Some(string(schema)?), string(name)?),
            _ => return None,
        };
        let mut meanings = self
            .catalog?
            .types_named(bare)
            .iter()
            .filter(|facts| self.scope.may_mean(qualifier, &facts.schema));
        let is_builtin = meanings.next()?.is_builtin() && meanings.next().is_none();
        is_builtin.then(|| Kind::type_named(bare)).flatten()
    }

    /// The rows that an INSERT writes to a table.
    pub(super) fn inserted_rows(
        &self,
        catalog: &Catalog,
        id: RelationId,
        statement: &'a InsertStmt,
    ) -> Rows {
        let columns = catalog.relation(id).primary_key();
        let upserts = statement.on_conflict_clause.as_deref().filter(|clause| {
            !matches!(
                clause.action(),
                OnConflictAction::OnconflictNone | OnConflictAction::OnconflictNothing
            )
        });
        let may_update = upserts.is_some();
        let unknown = || {
            if may_update {
                Rows::All
            } else {
                Rows::New(Box::default())
            }
        };
        if !is_keyed(catalog, id)
            || self.literals.is_none()
            || upserts.is_some_and(|clause| !updates_the_row_itself(clause, columns))
            || statement.r#override() == OverridingKind::OverridingUserValue
        {
            return unknown();
        }
        let Some(lists) = values_lists(statement) else {
            return unknown();
        };
        if lists.len() > KEYS_MAX {
            return unknown();
        }
        let Some(places) = columns
            .iter()
            .map(|column| place_of(column, statement))
            .collect::<Option<SmallVec<[usize; 2]>>>()
        else {
            return unknown();
        };
        let mut keys = Vec::with_capacity(lists.len());
        for list in lists {
            let Some(NodeEnum::List(list)) = &list.node else {
                return unknown();
            };
            let values = columns
                .iter()
                .zip(&places)
                .map(|(column, place)| self.assigned(column, list.items.get(*place)?));
            keys.extend(
                values
                    .collect::<Option<SmallVec<_>>>()
                    .map(|values| RowKey::new(values, !may_update)),
            );
        }
        match keys.len() == lists.len() {
            true => Rows::Keys(keys.into()),
            false if may_update => Rows::All,
            false => Rows::New(keys.into()),
        }
    }
}

impl Findings {
    /// What a read depends on.
    pub(super) fn publish(self, catalog: &Catalog) -> Box<[Relation]> {
        let tree = |id: RelationId| catalog.tree(catalog.relation(id).tree).key;
        let mut relations = catalog.publish(self.relations);
        for relation in &mut relations {
            if self.sets.iter().any(|&id| tree(id) == relation.key) {
                continue;
            }
            let of_it = self.rows.iter().filter(|(id, _)| tree(*id) == relation.key);
            let keys: Vec<RowKey> = of_it.map(|(_, key)| key.clone()).collect();
            relation.rows = match <[RowKey; 1]>::try_from(keys) {
                Ok([key]) if self.finds => Rows::Found(key),
                Ok(key) => Rows::Keys(key.into()),
                Err(keys) if keys.is_empty() || keys.len() > KEYS_MAX => Rows::All,
                Err(keys) => Rows::Keys(keys.into()),
            };
        }
        relations
    }
}

/// Whether rows of a table are told apart: it has a primary key of such types, and no other table's rows are its own.
pub(super) fn is_keyed(catalog: &Catalog, id: RelationId) -> bool {
    let facts = catalog.relation(id);
    let tree = catalog.tree(facts.tree);
    facts.kind == RelationKind::Table
        && !facts.primary_key().is_empty()
        && !tree.several
        && !tree.foreign
}

/// Where the rows of an INSERT give a column its value. `None` if they don't.
fn place_of(column: &KeyColumn, statement: &InsertStmt) -> Option<usize> {
    if statement.cols.is_empty() {
        return Some(column.place);
    }
    statement.cols.iter().position(|target| match &target.node {
        Some(NodeEnum::ResTarget(target)) => {
            *target.name == *column.name && target.indirection.is_empty()
        }
        _ => false,
    })
}

/// The rows of `INSERT .. VALUES`, where each value is assigned as it stands. With a clause more, VALUES is a query, and
/// its columns have types of their own.
fn values_lists(statement: &InsertStmt) -> Option<&[Node]> {
    let Some(NodeEnum::SelectStmt(query)) = &statement.select_stmt.as_ref()?.node else {
        return None;
    };
    let SelectStmt {
        values_lists,
        sort_clause,
        limit_offset,
        limit_count,
        locking_clause,
        with_clause,
        op,
        ..
    } = &**query;
    let is_plain = sort_clause.is_empty()
        && limit_offset.is_none()
        && limit_count.is_none()
        && locking_clause.is_empty()
        && with_clause.is_none()
        && matches!(
            SetOperation::try_from(*op),
            Ok(SetOperation::SetopNone | SetOperation::Undefined)
        );
    (is_plain && !values_lists.is_empty()).then_some(values_lists)
}

/// Whether ON CONFLICT DO UPDATE changes no other row than the one with the inserted key, and not its key.
fn updates_the_row_itself(clause: &OnConflictClause, key: &[KeyColumn]) -> bool {
    let Some(infer) = &clause.infer else {
        return false;
    };
    let names: Option<Vec<&str>> = infer
        .index_elems
        .iter()
        .map(|element| match &element.node {
            Some(NodeEnum::IndexElem(element))
                if element.expr.is_none()
                    && element.collation.is_empty()
                    && element.opclass.is_empty() =>
            {
                Some(&*element.name)
            }
            _ => None,
        })
        .collect();
    let is_primary_key = infer.where_clause.is_none()
        && infer.conname.is_empty()
        && names.is_some_and(|names| {
            names
                .iter()
                .all(|name| key.iter().any(|c| *c.name == **name))
                && key.iter().all(|c| names.contains(&&*c.name))
        });
    is_primary_key
        && !sets_any(&clause.target_list, |name| {
            key.iter().any(|c| *c.name == *name)
        })
}

/// Whether SET gives a value to one of those columns.
pub(super) fn sets_any(target_list: &[Node], mut is_one: impl FnMut(&str) -> bool) -> bool {
    target_list.iter().any(|target| match &target.node {
        Some(NodeEnum::ResTarget(target)) => is_one(&target.name),
        _ => true,
    })
}
