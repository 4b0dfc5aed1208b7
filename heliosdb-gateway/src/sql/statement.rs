//! From a text to its [`Class`]: what each kind of statement means.

use pg_query::protobuf::{
    self, CopyStmt, CreateTableAsStmt, DeclareCursorStmt, DiscardMode, ExplainStmt, Node,
    ObjectType, RangeVar, RefreshMatViewStmt, SelectStmt, TransactionStmt, TransactionStmtKind,
    TruncateStmt, a_const,
};
use pg_query::{NodeEnum, ParserOptions};
use smallvec::{SmallVec, smallvec};

use super::by_key::Literals;
use super::catalog::{Catalog, RelationKind};
use super::ddl::{ddl_tag, vacates};
use super::names::{NameScope, is_temporary};
use super::reason::{Refusal, Unbounded};
use super::settings;
use super::walk::Walk;
use super::write::{Events, Written};
use super::{Class, Effect, Read, Statement, Write};

/// See [`super::classify`].
pub(super) fn classify(sql: &str, catalog: Option<&Catalog>, scope: &NameScope) -> Class {
    if !scope.client_encoding_utf8 && !sql.is_ascii() {
        return unreadable(Refusal::Encoding, Unbounded::Encoding);
    }
    let options = if scope.standard_conforming_strings {
        ParserOptions::DEFAULT
    } else {
        ParserOptions::DISABLE_STANDARD_CONFORMING_STRINGS
    };
    let Ok(parsed) = pg_query::parse(sql, options) else {
        return unreadable(Refusal::Unparsed, Unbounded::Unparsed);
    };
    // A server with a one-byte encoding folds the case of letters that we leave alone.
    let mut catalog = catalog.filter(|catalog| catalog.is_utf8() || sql.is_ascii());
    let several = parsed.protobuf.stmts.len() > 1;
    let literals = Literals::new(sql);
    let mut statements = SmallVec::new();
    for raw in &parsed.protobuf.stmts {
        let Some(node) = raw.stmt.as_deref() else {
            return unreadable(Refusal::Unparsed, Unbounded::Unparsed);
        };
        let mut statement = Statement::new(node, catalog, scope, &literals);
        if statement.effects.iter().any(changes_meaning) {
            catalog = None;
        }
        if several && matches!(statement.read, Read::Cacheable(_)) {
            statement.read = Read::Refused(Refusal::Several);
        }
        statements.push(statement);
    }
    Class::new(statements, true)
}

/// A text of which nothing is known.
fn unreadable(refusal: Refusal, reason: Unbounded) -> Class {
    let statement = Statement {
        tag: "UNKNOWN",
        read: Read::Refused(refusal),
        write: Write::Everything(reason.clone()),
        effects: smallvec![Effect::Ddl, Effect::SettingsUnknown(reason)],
    };
    Class::new(smallvec![statement], false)
}

/// Whether a name may mean something else to the statements that follow in the same text.
fn changes_meaning(effect: &Effect) -> bool {
    !matches!(
        effect,
        Effect::AdvisoryLock
            | Effect::AdvisoryUnlockAll
            | Effect::Begin(_)
            | Effect::Close(_)
            | Effect::CloseAll
            | Effect::Deallocate(_)
            | Effect::DiscardPlans
            | Effect::HoldCursor(_)
            | Effect::Listen(_)
            | Effect::Prepare(_)
            | Effect::ReadSequence
            | Effect::Release(_)
            | Effect::Savepoint(_)
            | Effect::SetTransaction(_)
            | Effect::Unlisten(_)
    )
}

impl Statement {
    fn new(
        node: &Node,
        catalog: Option<&Catalog>,
        scope: &NameScope,
        literals: &Literals<'_>,
    ) -> Self {
        let builder = Builder {
            catalog,
            scope,
            literals,
        };
        match &node.node {
            Some(node_enum) => builder.statement(node, node_enum),
            None => builder.unknown(),
        }
    }

    /// A statement that neither reads a table nor writes one.
    fn inert(tag: &'static str, effects: impl IntoIterator<Item = Effect>) -> Self {
        Self {
            tag,
            read: Read::Refused(Refusal::NotSelect(tag)),
            write: Write::None,
            effects: effects.into_iter().collect(),
        }
    }

    /// A statement that may change the schema.
    fn ddl(tag: &'static str) -> Self {
        Self {
            tag,
            read: Read::Refused(Refusal::NotSelect(tag)),
            write: Write::Everything(Unbounded::Ddl(tag)),
            effects: smallvec![Effect::Ddl],
        }
    }

    pub(super) fn weight(&self) -> usize {
        let relations = |relations: &[super::Relation]| {
            relations
                .iter()
                .map(|relation| {
                    size_of_val(relation) + relation.name.len() + relation.rows.weight()
                })
                .sum::<usize>()
        };
        let read = match &self.read {
            Read::Cacheable(list) => relations(list),
            Read::Refused(reason) => reason.weight(),
        };
        let write = match &self.write {
            Write::None => 0,
            Write::Relations(list) => relations(list),
            Write::Everything(reason) => reason.weight(),
        };
        size_of::<Self>() + read + write + self.effects.iter().map(effect_weight).sum::<usize>()
    }
}

fn effect_weight(effect: &Effect) -> usize {
    let heap = match effect {
        Effect::Close(text)
        | Effect::Deallocate(Some(text))
        | Effect::Execute(text)
        | Effect::HoldCursor(text)
        | Effect::Prepare(text)
        | Effect::PrepareTransaction(text)
        | Effect::Release(text)
        | Effect::Reset(text)
        | Effect::RollbackTo(text)
        | Effect::Savepoint(text)
        | Effect::Vacate(text) => text.len(),
        Effect::TwoPhaseEnd { gid, .. } => gid.len(),
        Effect::Set { name, value, .. } => name.len() + value.len(),
        Effect::SettingsUnknown(reason) => reason.weight(),
        _ => 0,
    };
    size_of::<Effect>() + heap
}

/// What all statements of one text are classified against.
struct Builder<'a> {
    catalog: Option<&'a Catalog>,
    scope: &'a NameScope,
    literals: &'a Literals<'a>,
}

impl<'a> Builder<'a> {
    fn walk(&self) -> Walk<'a> {
        let mut walk = Walk::new(self.catalog, self.scope);
        walk.literals = Some(self.literals);
        walk
    }

    fn statement(&self, node: &Node, statement: &NodeEnum) -> Statement {
        match statement {
            NodeEnum::SelectStmt(select) => self.select(select),
            NodeEnum::InsertStmt(_) => self.write("INSERT", node),
            NodeEnum::UpdateStmt(_) => self.write("UPDATE", node),
            NodeEnum::DeleteStmt(_) => self.write("DELETE", node),
            NodeEnum::MergeStmt(_) => self.write("MERGE", node),
            NodeEnum::CopyStmt(copy) => self.copy(copy),
            NodeEnum::TruncateStmt(truncate) => self.truncate(truncate),
            NodeEnum::ExplainStmt(explain) => self.explain(explain),
            NodeEnum::DeclareCursorStmt(declare) => self.declare(declare),
            NodeEnum::PrepareStmt(prepare) => self.prepare(prepare),
            NodeEnum::ExecuteStmt(execute) => self.execute(execute),
            NodeEnum::CreateTableAsStmt(create) => self.create_table_as(create),
            NodeEnum::RefreshMatViewStmt(refresh) => self.refresh(refresh),
            NodeEnum::CallStmt(_) => code("CALL"),
            NodeEnum::DoStmt(_) => code("DO"),
            _ => session(statement)
                .or_else(|| self.create(statement))
                .or_else(|| {
                    let mut ddl = self.ddl(ddl_tag(statement)?, false);
                    ddl.effects.extend(vacates(statement).map(Effect::Vacate));
                    Some(ddl)
                })
                .unwrap_or_else(|| self.unknown()),
        }
    }

    /// A statement of a kind that this classifier has never heard of.
    fn unknown(&self) -> Statement {
        let reason = Unbounded::Unsupported("a statement unknown to the classifier");
        let mut statement = self.ddl("UNKNOWN", false);
        statement.write = Write::Everything(reason.clone());
        statement.effects.push(Effect::SettingsUnknown(reason));
        statement
    }

    /// DDL proper, or the creation of something temporary.
    fn ddl(&self, tag: &'static str, temporary: bool) -> Statement {
        let mut statement = Statement::ddl(tag);
        if temporary {
            statement.effects.push(Effect::Temp);
        }
        if self
            .catalog
            .is_some_and(|catalog| catalog.has_event_triggers() && catalog.functions_set_settings())
        {
            statement
                .effects
                .push(Effect::SettingsUnknown(Unbounded::EventTrigger));
        }
        statement
    }

    /// Turns what a walk has found into a statement.
    fn finish(&self, tag: &'static str, walk: Walk<'_>) -> Statement {
        let (mut found, targets) = walk.finish();
        let (mut write, reached) = match self.catalog {
            Some(catalog) => targets.reach(catalog),
            None => (Write::None, SmallVec::new()),
        };
        if let Some(reason) = found.unbounded.take() {
            write = Write::Everything(reason);
        }
        let mut effects = std::mem::take(&mut found.effects);
        effects.extend(found.settings_unknown.take().map(Effect::SettingsUnknown));
        effects.extend(reached);
        // A SELECT may call the same function many times over.
        let mut distinct = SmallVec::new();
        for effect in effects {
            if !distinct.contains(&effect) {
                distinct.push(effect);
            }
        }
        let effects: SmallVec<[Effect; 1]> = distinct;
        let read = match (found.refusal.take(), self.catalog) {
            (Some(reason), _) => Read::Refused(reason),
            (None, None) => Read::Refused(Refusal::NoCatalog),
            (None, Some(_)) if write != Write::None || !effects.is_empty() => {
                Read::Refused(Refusal::Unsupported("a statement that may write"))
            }
            (None, Some(catalog)) => Read::Cacheable(found.publish(catalog)),
        };
        Statement {
            tag,
            read,
            write,
            effects,
        }
    }

    /// Finishes a statement that is not a SELECT, whatever its parts read.
    fn finish_refused(&self, tag: &'static str, mut walk: Walk<'_>) -> Statement {
        walk.found.refusal = Some(Refusal::NotSelect(tag));
        self.finish(tag, walk)
    }

    fn select(&self, select: &SelectStmt) -> Statement {
        if let Some(into) = &select.into_clause {
            let mut walk = self.walk();
            walk.select(select);
            return self.create_from_query("SELECT INTO", into.rel.as_ref(), walk);
        }
        if let Some(effects) = set_config_alone(select)
            && self.set_config_is_builtin()
        {
            return Statement {
                tag: "SELECT",
                read: Read::Refused(Refusal::Function {
                    name: "set_config".into(),
                    why: super::reason::FunctionRefusal::Volatile,
                }),
                write: Write::None,
                effects,
            };
        }
        let mut walk = self.walk();
        walk.select(select);
        self.finish("SELECT", walk)
    }

    fn set_config_is_builtin(&self) -> bool {
        self.catalog.is_none_or(|catalog| {
            catalog
                .functions_named("set_config")
                .iter()
                .all(|facts| facts.refused.is_none() && facts.is_builtin())
        })
    }

    fn write(&self, tag: &'static str, node: &Node) -> Statement {
        let mut walk = self.walk();
        walk.write_statement(node);
        self.finish_refused(tag, walk)
    }

    fn copy(&self, copy: &CopyStmt) -> Statement {
        let mut walk = self.walk();
        walk.option(copy.where_clause.as_deref());
        if copy.is_from {
            walk.target(copy.relation.as_ref(), Events::INSERT, Written::Copied);
        } else if let Some(relation) = &copy.relation {
            walk.read(relation);
        }
        if let Some(query) = copy.query.as_deref() {
            self.any_query(&mut walk, query);
        }
        self.finish_refused("COPY", walk)
    }

    /// A query that is part of another statement.
    fn any_query<'n>(&self, walk: &mut Walk<'n>, query: &'n Node) {
        match &query.node {
            Some(NodeEnum::SelectStmt(select)) => walk.select(select),
            _ => walk.write_statement(query),
        }
    }

    fn truncate(&self, truncate: &TruncateStmt) -> Statement {
        let mut walk = self.walk();
        let events = match truncate.behavior() {
            protobuf::DropBehavior::DropRestrict => Events::TRUNCATE,
            _ => Events::TRUNCATE_CASCADE,
        };
        for relation in &truncate.relations {
            match &relation.node {
                Some(NodeEnum::RangeVar(relation)) => {
                    walk.target(Some(relation), events, Written::Any);
                }
                _ => walk.unsupported("this form of TRUNCATE"),
            }
        }
        self.finish_refused("TRUNCATE", walk)
    }

    fn explain(&self, explain: &ExplainStmt) -> Statement {
        let Some(query) = explain.query.as_deref().filter(|_| analyzes(explain)) else {
            return Statement::inert("EXPLAIN", []);
        };
        let mut inner = Statement::new(query, self.catalog, self.scope, self.literals);
        inner.tag = "EXPLAIN";
        inner.read = Read::Refused(Refusal::NotSelect("EXPLAIN"));
        forget_constants(&mut inner.effects);
        inner
    }

    fn declare(&self, declare: &DeclareCursorStmt) -> Statement {
        /// `CURSOR_OPT_HOLD` of PostgreSQL's `parsenodes.h`.
        const HOLD: i32 = 0x20;
        let mut walk = self.walk();
        if let Some(query) = declare.query.as_deref() {
            self.any_query(&mut walk, query);
        }
        if declare.options & HOLD != 0 {
            walk.found
                .effects
                .push(Effect::HoldCursor(declare.portalname.clone()));
        }
        self.finish_refused("DECLARE CURSOR", walk)
    }

    fn prepare(&self, prepare: &protobuf::PrepareStmt) -> Statement {
        let effects = match prepare.query.as_deref() {
            Some(query) => {
                // What executing it may do to the session is charged to PREPARE already, so that
                // EXECUTE can't do anything to it that is not known.
                let mut effects =
                    Statement::new(query, self.catalog, self.scope, self.literals).effects;
                forget_constants(&mut effects);
                effects
            }
            None => SmallVec::new(),
        };
        let own = Effect::Prepare(prepare.name.clone());
        Statement::inert("PREPARE", std::iter::once(own).chain(effects))
    }

    fn execute(&self, execute: &protobuf::ExecuteStmt) -> Statement {
        let mut walk = self.walk();
        walk.list(&execute.params);
        walk.writes_anything(Unbounded::Execute(execute.name.as_str().into()));
        walk.found
            .effects
            .push(Effect::Execute(execute.name.clone()));
        self.finish_refused("EXECUTE", walk)
    }

    fn create_table_as(&self, create: &CreateTableAsStmt) -> Statement {
        let mut walk = self.walk();
        let mut effects = SmallVec::<[Effect; 1]>::new();
        match create.query.as_deref() {
            Some(query) if matches!(&query.node, Some(NodeEnum::ExecuteStmt(_))) => {
                let inner = Statement::new(query, self.catalog, self.scope, self.literals);
                effects.extend(inner.effects);
                walk.writes_anything(Unbounded::Execute("in CREATE TABLE AS".into()));
            }
            Some(query) => self.any_query(&mut walk, query),
            None => walk.unsupported("this form of CREATE TABLE AS"),
        }
        let relation = create.into.as_ref().and_then(|into| into.rel.as_ref());
        let tag = if create.objtype() == ObjectType::ObjectMatview {
            "CREATE MATERIALIZED VIEW"
        } else {
            "CREATE TABLE AS"
        };
        let mut statement = self.create_from_query(tag, relation, walk);
        statement.effects.extend(effects);
        statement
    }

    fn create_from_query(
        &self,
        tag: &'static str,
        relation: Option<&RangeVar>,
        walk: Walk<'_>,
    ) -> Statement {
        let mut statement = self.finish_refused(tag, walk);
        if relation.is_some_and(|relation| self.is_temporary(relation)) {
            statement.effects.push(Effect::Temp);
            self.fire_event_triggers(&mut statement);
        } else {
            let ddl = self.ddl(tag, self.scope.creates_temporary());
            statement.write = ddl.write;
            statement.effects.extend(ddl.effects);
        }
        statement
    }

    /// Whether a relation is created in the session's temporary schema for certain.
    fn is_temporary(&self, relation: &RangeVar) -> bool {
        relation.relpersistence == "t" || is_temporary(&relation.schemaname)
    }

    /// A command that is not DDL to other sessions still fires event triggers.
    fn fire_event_triggers(&self, statement: &mut Statement) {
        match self.catalog {
            Some(catalog) if catalog.has_event_triggers() => {
                statement.write = Write::Everything(Unbounded::EventTrigger);
                if catalog.functions_set_settings() {
                    statement
                        .effects
                        .push(Effect::SettingsUnknown(Unbounded::EventTrigger));
                }
            }
            None => statement.write = Write::Everything(Unbounded::NoCatalog),
            Some(_) => {}
        }
    }

    /// REFRESH MATERIALIZED VIEW changes contents and no schema, but runs the view's query.
    fn refresh(&self, refresh: &RefreshMatViewStmt) -> Statement {
        const TAG: &str = "REFRESH MATERIALIZED VIEW";
        let mut walk = self.walk();
        let Some(relation) = &refresh.relation else {
            return self.ddl(TAG, false);
        };
        let Some(catalog) = self.catalog else {
            walk.writes_anything(Unbounded::NoCatalog);
            return self.finish_refused(TAG, walk);
        };
        let ids = walk.meanings(catalog, relation);
        if ids.is_empty() {
            return self.ddl(TAG, false);
        }
        for &id in &ids {
            if catalog.relation(id).kind == RelationKind::MaterializedView {
                walk.expand(catalog, id);
            }
        }
        let mut statement = self.finish_refused(TAG, walk);
        if statement.write == Write::None {
            statement.write = Write::Relations(catalog.publish(ids));
        }
        self.fire_event_triggers(&mut statement);
        statement
    }

    /// CREATE statements that may make something temporary.
    fn create(&self, statement: &NodeEnum) -> Option<Statement> {
        let named = |names: &[Node]| matches!(names, [schema, _, ..] if is_temporary(text(schema)));
        let (tag, temporary) = match statement {
            NodeEnum::CreateStmt(create) => {
                let relation = create.relation.as_ref();
                (
                    "CREATE TABLE",
                    relation.is_some_and(|r| self.is_temporary(r)),
                )
            }
            NodeEnum::ViewStmt(create) => {
                let relation = create.view.as_ref();
                (
                    "CREATE VIEW",
                    relation.is_some_and(|r| self.is_temporary(r)),
                )
            }
            NodeEnum::CreateSeqStmt(create) => {
                let relation = create.sequence.as_ref();
                (
                    "CREATE SEQUENCE",
                    relation.is_some_and(|r| self.is_temporary(r)),
                )
            }
            NodeEnum::CreateFunctionStmt(create) => {
                return Some(self.ddl(
                    "CREATE FUNCTION",
                    named(&create.funcname) || self.scope.creates_temporary(),
                ));
            }
            NodeEnum::DefineStmt(create) => {
                return Some(self.ddl(
                    "CREATE",
                    named(&create.defnames) || self.scope.creates_temporary(),
                ));
            }
            NodeEnum::CreateDomainStmt(create) => {
                return Some(self.ddl(
                    "CREATE DOMAIN",
                    named(&create.domainname) || self.scope.creates_temporary(),
                ));
            }
            NodeEnum::CreateEnumStmt(create) => {
                return Some(self.ddl(
                    "CREATE TYPE",
                    named(&create.type_name) || self.scope.creates_temporary(),
                ));
            }
            NodeEnum::CreateRangeStmt(create) => {
                return Some(self.ddl(
                    "CREATE TYPE",
                    named(&create.type_name) || self.scope.creates_temporary(),
                ));
            }
            NodeEnum::CompositeTypeStmt(create) => {
                let relation = create.typevar.as_ref();
                let temporary = relation.is_some_and(|r| self.is_temporary(r));
                return Some(self.ddl("CREATE TYPE", temporary || self.scope.creates_temporary()));
            }
            _ => return None,
        };
        if !temporary {
            return Some(self.ddl(tag, self.scope.creates_temporary()));
        }
        // Nobody else sees it: the schema that others know stays as it is.
        let mut statement = Statement::inert(tag, [Effect::Temp]);
        self.fire_event_triggers(&mut statement);
        Some(statement)
    }
}

/// CALL and DO.
fn code(tag: &'static str) -> Statement {
    let reason = Unbounded::Code(tag);
    Statement {
        tag,
        read: Read::Refused(Refusal::NotSelect(tag)),
        write: Write::Everything(reason.clone()),
        // A procedure can change the schema, too, and the search path that later names go by.
        effects: smallvec![Effect::Ddl, Effect::SettingsUnknown(reason)],
    }
}

/// Statements that concern the session or transaction alone.
fn session(statement: &NodeEnum) -> Option<Statement> {
    let statement = match statement {
        NodeEnum::TransactionStmt(transaction) => self::transaction(transaction),
        NodeEnum::VariableSetStmt(set) => {
            let tag = match set.kind() {
                protobuf::VariableSetKind::VarReset | protobuf::VariableSetKind::VarResetAll => {
                    "RESET"
                }
                _ => "SET",
            };
            Statement::inert(tag, settings::effects(set))
        }
        NodeEnum::VariableShowStmt(_) => Statement::inert("SHOW", []),
        NodeEnum::DiscardStmt(discard) => {
            let effect = match discard.target() {
                DiscardMode::DiscardPlans => Some(Effect::DiscardPlans),
                DiscardMode::DiscardTemp => Some(Effect::DiscardTemp),
                DiscardMode::DiscardSequences => None,
                DiscardMode::DiscardAll | DiscardMode::Undefined => Some(Effect::DiscardAll),
            };
            Statement::inert("DISCARD", effect)
        }
        NodeEnum::DeallocateStmt(deallocate) => {
            let name = Some(deallocate.name.clone()).filter(|name| !name.is_empty());
            Statement::inert("DEALLOCATE", [Effect::Deallocate(name)])
        }
        NodeEnum::ListenStmt(listen) => {
            let channel = listen.conditionname.clone();
            Statement::inert("LISTEN", [Effect::Listen(channel)])
        }
        NodeEnum::UnlistenStmt(unlisten) => {
            let channel = Some(unlisten.conditionname.clone()).filter(|name| !name.is_empty());
            Statement::inert("UNLISTEN", [Effect::Unlisten(channel)])
        }
        NodeEnum::NotifyStmt(_) => Statement::inert("NOTIFY", []),
        NodeEnum::LoadStmt(_) => Statement::inert("LOAD", [Effect::Load]),
        NodeEnum::ClosePortalStmt(close) => {
            let effect = match close.portalname.as_str() {
                "" => Effect::CloseAll,
                name => Effect::Close(name.to_owned()),
            };
            Statement::inert("CLOSE", [effect])
        }
        // What a cursor's query may write was charged to its DECLARE, in the same transaction.
        NodeEnum::FetchStmt(_) => Statement::inert("FETCH", []),
        NodeEnum::LockStmt(_) => Statement::inert("LOCK TABLE", []),
        NodeEnum::ConstraintsSetStmt(_) => Statement::inert("SET CONSTRAINTS", []),
        NodeEnum::CheckPointStmt(_) => Statement::inert("CHECKPOINT", []),
        NodeEnum::VacuumStmt(vacuum) if vacuum.is_vacuumcmd => Statement::inert("VACUUM", []),
        NodeEnum::VacuumStmt(_) => Statement::inert("ANALYZE", []),
        NodeEnum::ClusterStmt(_) => Statement::inert("CLUSTER", []),
        NodeEnum::ReindexStmt(_) => Statement::inert("REINDEX", []),
        _ => return None,
    };
    Some(statement)
}

fn transaction(statement: &TransactionStmt) -> Statement {
    let name = || statement.savepoint_name.clone();
    let chain = statement.chain;
    let (tag, effect) = match statement.kind() {
        TransactionStmtKind::TransStmtBegin | TransactionStmtKind::TransStmtStart => {
            ("BEGIN", Effect::Begin(settings::modes(&statement.options)))
        }
        TransactionStmtKind::TransStmtCommit => ("COMMIT", Effect::Commit { chain }),
        TransactionStmtKind::TransStmtRollback => ("ROLLBACK", Effect::Rollback { chain }),
        TransactionStmtKind::TransStmtSavepoint => ("SAVEPOINT", Effect::Savepoint(name())),
        TransactionStmtKind::TransStmtRelease => ("RELEASE", Effect::Release(name())),
        TransactionStmtKind::TransStmtRollbackTo => ("ROLLBACK", Effect::RollbackTo(name())),
        TransactionStmtKind::TransStmtPrepare => (
            "PREPARE TRANSACTION",
            Effect::PrepareTransaction(statement.gid.clone()),
        ),
        TransactionStmtKind::TransStmtCommitPrepared => {
            let gid = statement.gid.clone();
            let mut statement = Statement::inert(
                "COMMIT PREPARED",
                [Effect::TwoPhaseEnd { gid, commit: true }],
            );
            statement.write = Write::Everything(Unbounded::TwoPhase);
            // It may have held DDL.
            statement.effects.push(Effect::Ddl);
            return statement;
        }
        TransactionStmtKind::TransStmtRollbackPrepared => {
            let gid = statement.gid.clone();
            (
                "ROLLBACK PREPARED",
                Effect::TwoPhaseEnd { gid, commit: false },
            )
        }
        TransactionStmtKind::Undefined => {
            let reason = Unbounded::Unsupported("this form of transaction control");
            let mut statement = Statement::ddl("UNKNOWN");
            statement.effects.push(Effect::SettingsUnknown(reason));
            return statement;
        }
    };
    Statement::inert(tag, [effect])
}

/// The effects of `SELECT set_config('name', 'value', true|false), ..` with constants only.
fn set_config_alone(select: &SelectStmt) -> Option<SmallVec<[Effect; 1]>> {
    let bare = SelectStmt {
        target_list: Vec::new(),
        ..select.clone()
    } == SelectStmt {
        limit_option: select.limit_option,
        op: select.op,
        ..SelectStmt::default()
    };
    if !bare || select.target_list.is_empty() {
        return None;
    }
    select
        .target_list
        .iter()
        .map(|target| match &target.node {
            Some(NodeEnum::ResTarget(target)) => set_config_call(target.val.as_deref()?),
            _ => None,
        })
        .collect()
}

fn set_config_call(node: &Node) -> Option<Effect> {
    let Some(NodeEnum::FuncCall(call)) = &node.node else {
        return None;
    };
    let named = match call.funcname.as_slice() {
        [name] => text(name) == "set_config",
        [schema, name] => text(schema) == "pg_catalog" && text(name) == "set_config",
        _ => false,
    };
    let plain = call.agg_order.is_empty()
        && call.agg_filter.is_none()
        && call.over.is_none()
        && !call.func_variadic
        && !call.agg_distinct;
    match call.args.as_slice() {
        [name, value, local] if named && plain => Some(settings::set_config(
            string_constant(name)?,
            string_constant(value)?,
            bool_constant(local)?,
        )),
        _ => None,
    }
}

fn string_constant(node: &Node) -> Option<&str> {
    match &node.node {
        Some(NodeEnum::AConst(constant)) => match &constant.val {
            Some(a_const::Val::Sval(text)) => Some(&text.sval),
            _ => None,
        },
        _ => None,
    }
}

fn bool_constant(node: &Node) -> Option<bool> {
    match &node.node {
        Some(NodeEnum::AConst(constant)) => match &constant.val {
            Some(a_const::Val::Boolval(value)) => Some(value.boolval),
            _ => None,
        },
        _ => None,
    }
}

/// The text of a name's part; empty for anything else, which is no schema's name.
fn text(node: &Node) -> &str {
    match &node.node {
        Some(NodeEnum::String(text)) => &text.sval,
        _ => "",
    }
}

/// For a statement that is run by another: its settings take effect, if at all, at a time or in a
/// way that is not worth following.
fn forget_constants(effects: &mut SmallVec<[Effect; 1]>) {
    for effect in effects {
        if let Effect::Set { name, .. } = effect {
            *effect = Effect::SettingsUnknown(Unbounded::Setting(name.as_str().into()));
        }
    }
}

/// Whether EXPLAIN executes the statement it explains.
fn analyzes(explain: &ExplainStmt) -> bool {
    explain.options.iter().any(|option| match &option.node {
        Some(NodeEnum::DefElem(option)) if option.defname == "analyze" => {
            match option.arg.as_ref().and_then(|arg| arg.node.as_ref()) {
                Some(NodeEnum::String(value)) => !matches!(
                    value.sval.to_ascii_lowercase().as_str(),
                    "off" | "false" | "0"
                ),
                Some(NodeEnum::Integer(value)) => value.ival != 0,
                _ => true,
            }
        }
        _ => false,
    })
}
