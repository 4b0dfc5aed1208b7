//! A walk over one statement that finds what it reads, writes and calls.
//!
//! One walk serves both questions, and both fail closed: a construct that is not known refuses the
//! read *and* counts as a write to everything, since it may hide a function call. Structures that
//! matter are taken apart in full, so that a field which a later grammar adds is a compile error
//! here and not an oversight.

use std::collections::HashMap;

use pg_query::NodeEnum;
use pg_query::protobuf::{
    CommonTableExpr, JoinExpr, Node, RangeFunction, RangeVar, SelectStmt, WindowDef, WithClause,
    a_const,
};
use smallvec::SmallVec;

use super::Effect;
use super::by_key::Literals;
use super::catalog::{Catalog, RelationId, RelationKind};
use super::datetime::time_word;
use super::names::{NameScope, is_temporary};
use super::reason::{FunctionRefusal, Refusal, Unbounded};
use super::rows::RowKey;
use super::time_casts::TimeCasts;
use super::write::Targets;

/// What a walk has found.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    /// The first reason why the answer may not be kept.
    pub(super) refusal: Option<Refusal>,
    /// Tables and materialised views read, also if they are a reason to refuse.
    pub(super) relations: Vec<RelationId>,
    /// Those of them that are read other than by key.
    pub(super) sets: Vec<RelationId>,
    /// Rows that are read by key.
    pub(super) rows: Vec<(RelationId, RowKey)>,
    /// An answer without rows says that a row was not found, and one with rows that it was.
    pub(super) finds: bool,
    /// Views expanded on the way, at any depth.
    pub(super) views: Vec<RelationId>,
    /// The first reason why the statement may change anything.
    pub(super) unbounded: Option<Unbounded>,
    /// The first reason why settings may have changed.
    pub(super) settings_unknown: Option<Unbounded>,
    /// Advisory locks.
    pub(super) effects: SmallVec<[Effect; 1]>,
}

/// A walk in progress.
pub(super) struct Walk<'a> {
    pub(super) catalog: Option<&'a Catalog>,
    pub(super) scope: &'a NameScope,
    pub(super) found: Findings,
    pub(super) targets: Targets,
    /// Names of WITH queries in sight, innermost last.
    ctes: Vec<&'a str>,
    /// Relations named in the text itself, as opposed to in the query of a view.
    named: Vec<RelationId>,
    pub(super) times: TimeCasts<'a>,
    /// The literals of the text; `None` in the query of a view, where nothing is read by key.
    pub(super) literals: Option<&'a Literals<'a>>,
    /// Tables in FROM that are read by key, until the walk comes to them.
    pub(super) keys: Vec<(&'a RangeVar, RowKey)>,
    /// How often each parameter occurs.
    parameters: HashMap<i32, usize>,
    /// SELECTs in the statement, and calls of functions, some of which may be aggregates.
    selects: usize,
    pub(super) calls: usize,
    /// Views being expanded, outermost first.
    open_views: Vec<RelationId>,
}

/// Where a row lies changes when its table is rewritten, who has locked it with every lock. (`xmin` changes with writes
/// only, and `tableoid` never.)
const SYSTEM_COLUMNS: [&str; 4] = ["cmax", "cmin", "ctid", "xmax"];

/// Views may be nested this deep; the server's own stack would bear more.
const VIEW_DEPTH_MAX: usize = 32;

impl<'a> Walk<'a> {
    pub(super) fn new(catalog: Option<&'a Catalog>, scope: &'a NameScope) -> Self {
        let mut walk = Self {
            catalog,
            scope,
            found: Findings::default(),
            targets: Targets::default(),
            ctes: Vec::new(),
            named: Vec::new(),
            times: TimeCasts::default(),
            literals: None,
            keys: Vec::new(),
            parameters: HashMap::new(),
            selects: 0,
            calls: 0,
            open_views: Vec::new(),
        };
        match catalog {
            None => walk.refuse(Refusal::NoCatalog),
            Some(catalog) => {
                if catalog.refuses_implicit_casts() {
                    walk.refuse(Refusal::UserCast);
                }
                if catalog.has_hidden_code() {
                    walk.runs_code(Unbounded::HiddenCode);
                }
            }
        }
        walk
    }

    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.found.refusal.get_or_insert(refusal);
    }

    /// The statement may change anything, but not the session's settings.
    pub(super) fn writes_anything(&mut self, reason: Unbounded) {
        self.found.unbounded.get_or_insert(reason);
    }

    /// Session settings may change in a way that is not known.
    pub(super) fn settings_unknown(&mut self, reason: &Unbounded) {
        self.found
            .settings_unknown
            .get_or_insert_with(|| reason.clone());
    }

    /// The statement may run any code.
    pub(super) fn runs_code(&mut self, reason: Unbounded) {
        self.settings_unknown(&reason);
        self.writes_anything(reason);
    }

    /// A construct we don't know.
    pub(super) fn unsupported(&mut self, what: &'static str) {
        self.refuse(Refusal::Unsupported(what));
        self.runs_code(Unbounded::Unsupported(what));
    }

    /// Decides what needed the whole statement to be seen.
    pub(super) fn finish(mut self) -> (Findings, Targets) {
        if let Some(catalog) = self.catalog
            && !self.times.all_are_times(catalog, &self.named)
        {
            self.refuse(Refusal::TextToTime);
        }
        if self.times.converts_zones && self.times.time_of_day {
            self.refuse(Refusal::Function {
                name: "timezone".into(),
                why: FunctionRefusal::Stable,
            });
        }
        let is_lone = |number| self.parameters.get(&number) == Some(&1);
        for (_, key) in &mut self.found.rows {
            key.settle_parameters(is_lone);
        }
        self.targets.settle_parameters(is_lone);
        self.found.finds &= self.selects == 1 && self.calls == 0;
        (self.found, self.targets)
    }

    /// A SELECT, VALUES or TABLE, or one arm of a set operation.
    pub(super) fn select(&mut self, statement: &'a SelectStmt) {
        let SelectStmt {
            distinct_clause,
            into_clause,
            target_list,
            from_clause,
            where_clause,
            group_clause,
            group_distinct: _,
            having_clause,
            window_clause,
            values_lists,
            sort_clause,
            limit_offset,
            limit_count,
            limit_option: _,
            locking_clause,
            with_clause,
            op: _,
            all: _,
            larg,
            rarg,
        } = statement;
        self.selects += 1;
        self.found.finds = matches!(
            from_clause.as_slice(),
            [Node {
                node: Some(NodeEnum::RangeVar(_))
            }]
        ) && group_clause.is_empty()
            && having_clause.is_none()
            && window_clause.is_empty();
        let scope = self.with(with_clause.as_ref());
        self.note_keys(None, from_clause, where_clause.as_deref());
        if into_clause.is_some() {
            self.refuse(Refusal::SelectInto);
        }
        if !locking_clause.is_empty() {
            self.refuse(Refusal::LockingClause);
        }
        // Names are collected before they are used in a cast; the order of the rest is free.
        self.list(from_clause);
        self.list(target_list);
        self.list(distinct_clause);
        self.option(where_clause.as_deref());
        self.list(group_clause);
        self.option(having_clause.as_deref());
        self.list(window_clause);
        self.list(values_lists);
        self.list(sort_clause);
        self.option(limit_offset.as_deref());
        self.option(limit_count.as_deref());
        // DISTINCT, GROUP BY, ORDER BY, USING and set operations compare without naming an operator.
        for operator in ["=", "<", ">"] {
            self.operator(operator);
        }
        for arm in [larg, rarg].into_iter().flatten() {
            self.select(arm);
        }
        self.ctes.truncate(scope);
    }

    /// Brings the queries of a WITH clause into sight. Gives what to truncate `ctes` to at the end
    /// of the statement that the clause belongs to.
    pub(super) fn with(&mut self, clause: Option<&'a WithClause>) -> usize {
        let outer = self.ctes.len();
        let Some(clause) = clause else {
            return outer;
        };
        let queries: Vec<&'a CommonTableExpr> = clause
            .ctes
            .iter()
            .filter_map(|node| match &node.node {
                Some(NodeEnum::CommonTableExpr(query)) => Some(&**query),
                _ => None,
            })
            .collect();
        if queries.len() != clause.ctes.len() {
            self.unsupported("this form of WITH");
        }
        if clause.recursive {
            // Under RECURSIVE each query sees itself and all its siblings.
            self.ctes
                .extend(queries.iter().map(|query| &*query.ctename));
        }
        for query in queries {
            if let Some(node) = &query.ctequery {
                self.with_query(node);
            }
            for column in &query.aliascolnames {
                self.names_text(column);
            }
            if let Some(cycle) = &query.cycle_clause {
                self.option(cycle.cycle_mark_value.as_deref());
                self.option(cycle.cycle_mark_default.as_deref());
            }
            if !clause.recursive {
                // Otherwise a query sees only those before it.
                self.ctes.push(&query.ctename);
            }
        }
        outer
    }

    /// Undoes what [`Self::with`] brought into sight.
    pub(super) fn leave_with(&mut self, scope: usize) {
        self.ctes.truncate(scope);
    }

    fn with_query(&mut self, node: &'a Node) {
        match &node.node {
            Some(NodeEnum::SelectStmt(query)) => self.select(query),
            Some(
                NodeEnum::InsertStmt(_)
                | NodeEnum::UpdateStmt(_)
                | NodeEnum::DeleteStmt(_)
                | NodeEnum::MergeStmt(_),
            ) => {
                self.refuse(Refusal::DataModifyingWith);
                self.write_statement(node);
            }
            _ => self.unsupported("this statement in WITH"),
        }
    }

    pub(super) fn list(&mut self, nodes: &'a [Node]) {
        for node in nodes {
            self.node(node);
        }
    }

    pub(super) fn option(&mut self, node: Option<&'a Node>) {
        if let Some(node) = node {
            self.node(node);
        }
    }

    /// An expression, a FROM item or a list of these.
    pub(super) fn node(&mut self, node: &'a Node) {
        let Some(node) = &node.node else {
            return;
        };
        match node {
            NodeEnum::AConst(constant) => {
                if let Some(a_const::Val::Sval(text)) = &constant.val
                    && let Some(word) = time_word(&text.sval)
                {
                    self.refuse(Refusal::TimeWord(word));
                }
            }
            NodeEnum::ColumnRef(column) => {
                if let Some(name) = column.fields.last().and_then(string)
                    && let Some(column) = SYSTEM_COLUMNS.into_iter().find(|known| *known == name)
                {
                    self.refuse(Refusal::SystemColumn(column));
                }
                // `t.f` is `f(t)` if there is no such column.
                if let [_, .., last] = column.fields.as_slice()
                    && let Some(name) = string(last)
                {
                    self.row_function(name);
                }
            }
            NodeEnum::AExpr(expression) => {
                if let Some(name) = expression.name.last().and_then(string) {
                    match name {
                        "BETWEEN"
                        | "NOT BETWEEN"
                        | "BETWEEN SYMMETRIC"
                        | "NOT BETWEEN SYMMETRIC" => {
                            self.operator(">=");
                            self.operator("<=");
                        }
                        name => self.operator(name),
                    }
                }
                self.option(expression.lexpr.as_deref());
                self.option(expression.rexpr.as_deref());
            }
            NodeEnum::FuncCall(call) => self.call(call),
            NodeEnum::TypeCast(cast) => {
                self.option(cast.arg.as_deref());
                let is_time = cast.type_name.as_ref().is_some_and(|name| self.cast(name));
                if is_time && !cast.arg.as_deref().is_some_and(|arg| self.is_not_text(arg)) {
                    self.refuse(Refusal::TextToTime);
                }
            }
            NodeEnum::SubLink(link) => {
                self.option(link.testexpr.as_deref());
                if let Some(name) = link.oper_name.last().and_then(string) {
                    self.operator(name);
                }
                self.option(link.subselect.as_deref());
            }
            NodeEnum::SelectStmt(query) => self.select(query),
            NodeEnum::RangeVar(relation) => self.read(relation),
            NodeEnum::ResTarget(target) => {
                self.option(target.val.as_deref());
                self.indirection(&target.indirection);
                self.output_name(&target.name, target.val.as_deref());
            }
            NodeEnum::AIndirection(step) => {
                self.option(step.arg.as_deref());
                self.indirection(&step.indirection);
            }
            NodeEnum::JoinExpr(join) => self.join(join),
            NodeEnum::RangeSubselect(range) => {
                self.option(range.subquery.as_deref());
                if let Some(alias) = &range.alias {
                    alias.colnames.iter().for_each(|name| self.names_text(name));
                }
            }
            NodeEnum::RangeFunction(range) => self.range_function(range),
            _ => self.operand(node),
        }
    }

    /// Nodes that do nothing but hold others.
    fn operand(&mut self, node: &'a NodeEnum) {
        match node {
            NodeEnum::AStar(_)
            | NodeEnum::BitString(_)
            | NodeEnum::Boolean(_)
            | NodeEnum::CurrentOfExpr(_)
            | NodeEnum::Float(_)
            | NodeEnum::Integer(_)
            | NodeEnum::MergeSupportFunc(_)
            | NodeEnum::SetToDefault(_)
            | NodeEnum::String(_) => {}
            NodeEnum::ParamRef(parameter) => {
                *self.parameters.entry(parameter.number).or_default() += 1;
            }
            NodeEnum::AArrayExpr(array) => self.list(&array.elements),
            NodeEnum::BoolExpr(expression) => self.list(&expression.args),
            NodeEnum::BooleanTest(test) => self.option(test.arg.as_deref()),
            NodeEnum::CaseExpr(case) => {
                self.option(case.arg.as_deref());
                self.list(&case.args);
                self.option(case.defresult.as_deref());
            }
            NodeEnum::CaseWhen(when) => {
                self.option(when.expr.as_deref());
                self.option(when.result.as_deref());
            }
            NodeEnum::CoalesceExpr(expression) => self.list(&expression.args),
            NodeEnum::CollateClause(clause) => self.option(clause.arg.as_deref()),
            NodeEnum::GroupingFunc(grouping) => self.list(&grouping.args),
            NodeEnum::GroupingSet(set) => self.list(&set.content),
            NodeEnum::List(list) => self.list(&list.items),
            NodeEnum::MinMaxExpr(expression) => self.list(&expression.args),
            NodeEnum::MultiAssignRef(assign) => self.option(assign.source.as_deref()),
            NodeEnum::NamedArgExpr(argument) => self.option(argument.arg.as_deref()),
            NodeEnum::NullTest(test) => self.option(test.arg.as_deref()),
            NodeEnum::RowExpr(row) => self.list(&row.args),
            NodeEnum::SortBy(sort) => {
                self.option(sort.node.as_deref());
                if let Some(name) = sort.use_op.last().and_then(string) {
                    self.operator(name);
                }
            }
            NodeEnum::SqlvalueFunction(_) => {
                self.refuse(Refusal::ValueFunction(
                    "CURRENT_DATE, CURRENT_TIMESTAMP, CURRENT_USER or the like",
                ));
            }
            NodeEnum::WindowDef(window) => self.window(window),
            _ => self.refused_operand(node),
        }
    }

    /// Nodes that refuse the read but whose parts are known, so that they are no write by themselves.
    fn refused_operand(&mut self, node: &'a NodeEnum) {
        match node {
            NodeEnum::RangeTableSample(sample) => {
                self.refuse(Refusal::TableSample);
                self.option(sample.relation.as_deref());
                // An extension's sampling method is C code that reads the table.
                self.list(&sample.args);
                self.option(sample.repeatable.as_deref());
            }
            NodeEnum::RangeTableFunc(table) => {
                self.refuse(Refusal::Unsupported("XMLTABLE"));
                self.option(table.docexpr.as_deref());
                self.option(table.rowexpr.as_deref());
                self.list(&table.namespaces);
                self.list(&table.columns);
            }
            NodeEnum::RangeTableFuncCol(column) => {
                self.option(column.colexpr.as_deref());
                self.option(column.coldefexpr.as_deref());
            }
            NodeEnum::XmlExpr(xml) => {
                self.refuse(Refusal::Unsupported("an SQL/XML expression"));
                self.list(&xml.named_args);
                self.list(&xml.args);
            }
            NodeEnum::XmlSerialize(xml) => {
                self.refuse(Refusal::Unsupported("XMLSERIALIZE"));
                self.option(xml.expr.as_deref());
            }
            other if self.sql_json(other) => {}
            _ => self.unsupported("a construct unknown to the classifier"),
        }
    }

    fn join(&mut self, join: &'a JoinExpr) {
        self.option(join.larg.as_deref());
        self.option(join.rarg.as_deref());
        self.option(join.quals.as_deref());
        if let Some(alias) = &join.alias {
            alias.colnames.iter().for_each(|name| self.names_text(name));
        }
    }

    pub(super) fn window(&mut self, window: &'a WindowDef) {
        self.list(&window.partition_clause);
        self.list(&window.order_clause);
        self.option(window.start_offset.as_deref());
        self.option(window.end_offset.as_deref());
    }

    fn range_function(&mut self, range: &'a RangeFunction) {
        // Each item is a list of the call and its column definitions.
        self.list_of_calls(&range.functions);
        for column in &range.coldeflist {
            self.column_definition(column);
        }
        self.times.unknown_columns = true;
    }

    fn list_of_calls(&mut self, functions: &'a [Node]) {
        for item in functions {
            let Some(NodeEnum::List(item)) = &item.node else {
                self.unsupported("this form of function in FROM");
                continue;
            };
            for part in &item.items {
                match &part.node {
                    Some(NodeEnum::List(columns)) => columns
                        .items
                        .iter()
                        .for_each(|column| self.column_definition(column)),
                    _ => self.node(part),
                }
            }
        }
    }

    /// A column of the row type that a call in FROM is told to have.
    fn column_definition(&mut self, node: &'a Node) {
        match &node.node {
            Some(NodeEnum::ColumnDef(column)) => {
                if let Some(name) = &column.type_name
                    && self.cast(name)
                {
                    self.refuse(Refusal::TextToTime);
                }
            }
            _ => self.unsupported("this form of column definition"),
        }
    }

    fn indirection(&mut self, steps: &'a [Node]) {
        for step in steps {
            match &step.node {
                Some(NodeEnum::String(name)) => self.row_function(&name.sval),
                Some(NodeEnum::AIndices(indices)) => {
                    self.option(indices.lidx.as_deref());
                    self.option(indices.uidx.as_deref());
                }
                Some(NodeEnum::AStar(_)) => {}
                _ => self.unsupported("this form of subscript"),
            }
        }
    }

    /// A relation read by name.
    pub(super) fn read(&mut self, relation: &'a RangeVar) {
        if let Some(alias) = &relation.alias {
            alias.colnames.iter().for_each(|name| self.names_text(name));
        }
        let key = self.key_of(relation);
        if self.is_with_query(relation) {
            return;
        }
        let Some(catalog) = self.catalog else {
            self.writes_anything(Unbounded::NoCatalog);
            return;
        };
        let ids = self.meanings(catalog, relation);
        if ids.is_empty() {
            let name = written(relation);
            self.refuse(if is_temporary(&relation.schemaname) {
                Refusal::Temporary(name.clone())
            } else {
                Refusal::UnknownRelation(name.clone())
            });
            // It may be a view made since the catalog was loaded, and views call functions.
            self.writes_anything(Unbounded::UnknownRelation(name));
        }
        for id in ids {
            self.named.push(id);
            self.times.time_of_day |= catalog.relation(id).time_of_day;
            self.read_relation(catalog, id);
            match &key {
                Some(key) => self.found.rows.push((id, key.clone())),
                None => self.found.sets.push(id),
            }
        }
    }

    /// Whether a name in FROM is that of a WITH query in sight.
    pub(super) fn is_with_query(&self, relation: &RangeVar) -> bool {
        relation.schemaname.is_empty() && self.ctes.contains(&relation.relname.as_str())
    }

    /// All relations that a name may stand for.
    pub(super) fn meanings(
        &self,
        catalog: &Catalog,
        relation: &RangeVar,
    ) -> SmallVec<[RelationId; 2]> {
        let qualifier = Some(relation.schemaname.as_str()).filter(|schema| !schema.is_empty());
        catalog
            .relations_named(&relation.relname)
            .iter()
            .copied()
            .filter(|&id| self.scope.may_mean(qualifier, &catalog.relation(id).schema))
            .collect()
    }

    fn read_relation(&mut self, catalog: &'a Catalog, id: RelationId) {
        let facts = catalog.relation(id);
        match facts.kind {
            RelationKind::System => self.refuse(Refusal::SystemCatalog(facts.full_name())),
            RelationKind::Sequence => self.refuse(Refusal::Sequence(facts.full_name())),
            RelationKind::View => {
                self.expand(catalog, id);
                return;
            }
            RelationKind::Foreign | RelationKind::MaterializedView | RelationKind::Table => {}
        }
        if catalog.tree(facts.tree).foreign {
            self.refuse(Refusal::ForeignTable(facts.full_name()));
        }
        if facts.row_security {
            self.refuse(Refusal::RowSecurity(facts.full_name()));
            if facts.code {
                self.runs_code(Unbounded::TableCode(facts.full_name()));
            }
        }
        if facts.unstable_column {
            self.refuse(Refusal::ColumnType(facts.full_name()));
        }
        if !self.found.relations.contains(&id) {
            self.found.relations.push(id);
        }
    }

    /// Adds what a view's query reads and calls.
    pub(super) fn expand(&mut self, catalog: &'a Catalog, id: RelationId) {
        let facts = catalog.relation(id);
        let too_deep = self.open_views.len() >= VIEW_DEPTH_MAX || self.open_views.contains(&id);
        if too_deep {
            self.unsupported("a view nested too deeply");
            return;
        }
        let findings = match facts.findings().get() {
            Some(findings) => findings.clone(),
            None => {
                self.open_views.push(id);
                let findings = view_findings(catalog, facts.definition(), &mut self.open_views);
                self.open_views.pop();
                facts.findings().get_or_init(|| findings).clone()
            }
        };
        if facts.unstable_column {
            self.refuse(Refusal::ColumnType(facts.full_name()));
        }
        if let Some(reason) = findings.refusal {
            self.refuse(Refusal::View {
                name: facts.full_name(),
                reason: Box::new(reason),
            });
        }
        for relation in findings.relations {
            if !self.found.relations.contains(&relation) {
                self.found.relations.push(relation);
            }
            self.found.sets.push(relation);
        }
        self.found.views.push(id);
        self.found.views.extend(findings.views);
        if let Some(reason) = findings.unbounded {
            self.writes_anything(reason);
        }
        if let Some(reason) = findings.settings_unknown {
            self.settings_unknown(&reason);
        }
        self.found.effects.extend(findings.effects);
    }
}

/// What a view's query reads and calls.
fn view_findings(
    catalog: &Catalog,
    definition: Option<&str>,
    open_views: &mut Vec<RelationId>,
) -> Findings {
    let scope = NameScope::qualified();
    let parsed = definition.and_then(|text| pg_query::parse(text, 0).ok());
    let mut walk = Walk::new(Some(catalog), &scope);
    walk.open_views = std::mem::take(open_views);
    let query = parsed
        .as_ref()
        .and_then(|parsed| match parsed.protobuf.stmts.as_slice() {
            [one] => one.stmt.as_ref()?.node.as_ref(),
            _ => None,
        });
    match query {
        Some(NodeEnum::SelectStmt(query)) => walk.select(query),
        _ => walk.unsupported("the query of this view"),
    }
    *open_views = std::mem::take(&mut walk.open_views);
    walk.finish().0
}

/// The string that a node of a name's parts is.
pub(super) fn string(node: &Node) -> Option<&str> {
    match &node.node {
        Some(NodeEnum::String(text)) => Some(&text.sval),
        _ => None,
    }
}

/// A relation's name as it stands in the text.
pub(super) fn written(relation: &RangeVar) -> Box<str> {
    if relation.schemaname.is_empty() {
        relation.relname.as_str().into()
    } else {
        format!("{}.{}", relation.schemaname, relation.relname).into()
    }
}
