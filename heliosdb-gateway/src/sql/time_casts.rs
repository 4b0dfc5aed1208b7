//! Text that becomes a date or time at run time.
//!
//! `note::date` reads what is stored in `note`, and a stored `now` means another moment at each
//! reading. Such casts are refused unless their argument is certainly something else than text. There
//! is no type inference here, only what the common cases need: columns are looked up by name, and an
//! alias that may stand for text spoils the name for the whole statement.

use std::collections::HashSet;

use pg_query::NodeEnum;
use pg_query::protobuf::{FuncCall, Node, TypeName};

use super::catalog::{Catalog, FunctionFacts, RelationId, TypeFacts};
use super::walk::{Walk, string};

/// Casts to date and time types whose argument may be text, to be decided when all is seen.
#[derive(Default)]
pub(super) struct TimeCasts<'a> {
    /// Columns cast to a date or time.
    columns: Vec<&'a str>,
    /// Names given to something that may be text.
    text_names: HashSet<&'a str>,
    /// A function in FROM gives columns whose names and types are not known.
    pub(super) unknown_columns: bool,
    /// AT TIME ZONE is used.
    pub(super) converts_zones: bool,
    /// Something may be of type `time`, which AT TIME ZONE takes for a `timetz`: the offset of a zone
    /// is then that of today.
    pub(super) time_of_day: bool,
}

impl TimeCasts<'_> {
    /// Whether all columns cast are dates or times in those of `relations` that have them.
    pub(super) fn all_are_times(&self, catalog: &Catalog, relations: &[RelationId]) -> bool {
        self.columns.iter().all(|name| {
            let mut facts = relations
                .iter()
                .filter_map(|&id| catalog.relation(id).time_column(name))
                .peekable();
            !self.unknown_columns
                && !self.text_names.contains(name)
                && facts.peek().is_some()
                && facts.all(|is_time| is_time)
        })
    }
}

impl<'a> Walk<'a> {
    /// Whether an expression certainly isn't text that is only known at run time.
    ///
    /// Constants are checked where they stand, and parameters by whoever binds them. Columns are
    /// taken on trust here and looked up at the end.
    pub(super) fn is_not_text(&mut self, node: &'a Node) -> bool {
        let Some(node) = &node.node else {
            return false;
        };
        match node {
            NodeEnum::AConst(_) | NodeEnum::ParamRef(_) => true,
            NodeEnum::ColumnRef(column) => match column.fields.last().and_then(string) {
                Some(name) => {
                    self.times.columns.push(name);
                    true
                }
                None => false,
            },
            NodeEnum::TypeCast(cast) => cast
                .type_name
                .as_ref()
                .is_some_and(|name| self.is_not_text_type(name)),
            NodeEnum::FuncCall(call) => self.gives_no_text(call),
            NodeEnum::AExpr(expression) => {
                let name = expression.name.last().and_then(string).unwrap_or_default();
                let arithmetic = matches!(name, "+" | "-" | "*" | "/" | "%");
                arithmetic
                    && self
                        .catalog
                        .is_some_and(|catalog| !catalog.operators_named(name).text_result)
            }
            NodeEnum::CaseExpr(case) => {
                let results = case.args.iter().map(|when| match &when.node {
                    Some(NodeEnum::CaseWhen(when)) => when.result.as_deref(),
                    _ => None,
                });
                let results: Vec<_> = results.collect();
                results
                    .into_iter()
                    .all(|result| result.is_some_and(|result| self.is_not_text(result)))
                    && case
                        .defresult
                        .as_deref()
                        .is_none_or(|result| self.is_not_text(result))
            }
            NodeEnum::CoalesceExpr(expression) => {
                expression.args.iter().all(|arg| self.is_not_text(arg))
            }
            NodeEnum::MinMaxExpr(expression) => {
                expression.args.iter().all(|arg| self.is_not_text(arg))
            }
            NodeEnum::SubLink(link) => {
                let query = link.subselect.as_ref().and_then(|node| node.node.as_ref());
                let Some(NodeEnum::SelectStmt(query)) = query else {
                    return false;
                };
                match query.target_list.as_slice() {
                    [target] => match &target.node {
                        Some(NodeEnum::ResTarget(target)) => target
                            .val
                            .as_deref()
                            .is_some_and(|value| self.is_not_text(value)),
                        _ => false,
                    },
                    _ => false,
                }
            }
            _ => false,
        }
    }

    fn is_not_text_type(&self, target: &TypeName) -> bool {
        let mut parts = target.names.iter().rev().map(string);
        let (Some(Some(name)), qualifier, Some(catalog)) =
            (parts.next(), parts.next().flatten(), self.catalog)
        else {
            return false;
        };
        let mut visible = catalog
            .types_named(name)
            .iter()
            .filter(|facts| self.scope.may_mean(qualifier, &facts.schema))
            .peekable();
        visible.peek().is_some()
            && visible.all(|facts| !matches!(facts.category, 'S' | 'X' | 'P' | 'A'))
    }

    fn gives_no_text(&mut self, call: &'a FuncCall) -> bool {
        /// Give a value of their (first) argument's type.
        const PASS_ON: [&str; 8] = [
            "any_value",
            "first_value",
            "lag",
            "last_value",
            "lead",
            "max",
            "min",
            "nth_value",
        ];
        let mut parts = call.funcname.iter().rev().map(string);
        let (Some(Some(name)), qualifier, Some(catalog)) =
            (parts.next(), parts.next().flatten(), self.catalog)
        else {
            return false;
        };
        let scope = self.scope;
        let visible = || {
            catalog
                .functions_named(name)
                .iter()
                .filter(|facts| scope.may_mean(qualifier, &facts.schema))
        };
        if PASS_ON.contains(&name) && visible().all(FunctionFacts::is_builtin) {
            return match call.args.as_slice() {
                [arg, ..] => self.is_not_text(arg),
                [] => false,
            };
        }
        visible().next().is_some() && visible().all(|facts| !facts.text_result)
    }

    /// An alias for a column whose type is not known.
    pub(super) fn names_text(&mut self, name: &'a Node) {
        if let Some(name) = string(name) {
            self.times.text_names.insert(name);
        }
    }

    /// The name under which an output column can be used further out.
    pub(super) fn output_name(&mut self, alias: &'a str, value: Option<&'a Node>) {
        let Some(value) = value else {
            return;
        };
        let own_name = match &value.node {
            Some(NodeEnum::ColumnRef(column)) => column.fields.last().and_then(string),
            Some(NodeEnum::FuncCall(call)) => call.funcname.last().and_then(string),
            _ => None,
        };
        let name = if alias.is_empty() {
            own_name
        } else {
            Some(alias)
        };
        let Some(name) = name else {
            return;
        };
        let column = matches!(value.node, Some(NodeEnum::ColumnRef(_)));
        // Asking about the type of a column notes the column for the check at the end, which would
        // refuse statements that cast nothing.
        let kept = if column {
            own_name == Some(name)
        } else {
            let noted = self.times.columns.len();
            let kept = self.is_not_text(value) && self.times.columns.len() == noted;
            self.times.columns.truncate(noted);
            kept
        };
        if !kept {
            self.times.text_names.insert(name);
        }
    }
}

/// Whether a type's input function reads dates and times.
pub(super) fn is_time_type(facts: &TypeFacts, name: &str) -> bool {
    match facts.kind {
        // Ranges of an extension or of users may be over anything.
        'r' | 'm' => {
            !facts.is_builtin()
                || matches!(
                    name,
                    "datemultirange"
                        | "daterange"
                        | "tsmultirange"
                        | "tsrange"
                        | "tstzmultirange"
                        | "tstzrange"
                )
        }
        _ => facts.category == 'D',
    }
}
