//! The SQL/JSON constructors and query functions of PostgreSQL 16 and later.
//!
//! None is cacheable: they can turn stored text into dates, and on older servers the same words are
//! calls of functions. But their parts are walked, so that using them does not count as a write.

use pg_query::NodeEnum;
use pg_query::protobuf::{JsonAggConstructor, JsonBehavior, JsonOutput, JsonValueExpr, TypeName};

use super::reason::Refusal;
use super::walk::Walk;

impl<'a> Walk<'a> {
    /// Walks `node` if it is of SQL/JSON. Gives whether it is.
    pub(super) fn sql_json(&mut self, node: &'a NodeEnum) -> bool {
        match node {
            NodeEnum::JsonArgument(argument) => self.json_value(argument.val.as_deref()),
            NodeEnum::JsonArrayAgg(json) => {
                self.json_value(json.arg.as_deref());
                self.json_aggregate(json.constructor.as_deref());
            }
            NodeEnum::JsonArrayConstructor(json) => {
                self.list(&json.exprs);
                self.json_output(json.output.as_ref());
            }
            NodeEnum::JsonArrayQueryConstructor(json) => {
                self.option(json.query.as_deref());
                self.json_output(json.output.as_ref());
            }
            NodeEnum::JsonFuncExpr(json) => {
                self.json_value(json.context_item.as_deref());
                self.option(json.pathspec.as_deref());
                self.list(&json.passing);
                self.json_output(json.output.as_ref());
                self.json_behavior(json.on_empty.as_deref());
                self.json_behavior(json.on_error.as_deref());
            }
            NodeEnum::JsonIsPredicate(json) => self.option(json.expr.as_deref()),
            NodeEnum::JsonKeyValue(pair) => {
                self.option(pair.key.as_deref());
                self.json_value(pair.value.as_deref());
            }
            NodeEnum::JsonObjectAgg(json) => {
                if let Some(pair) = &json.arg {
                    self.option(pair.key.as_deref());
                    self.json_value(pair.value.as_deref());
                }
                self.json_aggregate(json.constructor.as_deref());
            }
            NodeEnum::JsonObjectConstructor(json) => {
                self.list(&json.exprs);
                self.json_output(json.output.as_ref());
            }
            NodeEnum::JsonParseExpr(json) => {
                self.json_value(json.expr.as_deref());
                self.json_output(json.output.as_ref());
            }
            NodeEnum::JsonScalarExpr(json) => {
                self.option(json.expr.as_deref());
                self.json_output(json.output.as_ref());
            }
            NodeEnum::JsonSerializeExpr(json) => {
                self.json_value(json.expr.as_deref());
                self.json_output(json.output.as_ref());
            }
            NodeEnum::JsonTable(table) => {
                self.json_value(table.context_item.as_deref());
                self.list(&table.passing);
                self.list(&table.columns);
                self.json_behavior(table.on_error.as_deref());
            }
            NodeEnum::JsonTableColumn(column) => {
                self.json_type(column.type_name.as_ref());
                self.list(&column.columns);
                self.json_behavior(column.on_empty.as_deref());
                self.json_behavior(column.on_error.as_deref());
            }
            NodeEnum::JsonValueExpr(value) => self.json_value(Some(value)),
            _ => return false,
        }
        self.refuse(Refusal::Unsupported("an SQL/JSON expression"));
        true
    }

    fn json_value(&mut self, value: Option<&'a JsonValueExpr>) {
        if let Some(value) = value {
            self.option(value.raw_expr.as_deref());
        }
    }

    fn json_aggregate(&mut self, constructor: Option<&'a JsonAggConstructor>) {
        if let Some(constructor) = constructor {
            self.json_output(constructor.output.as_ref());
            self.option(constructor.agg_filter.as_deref());
            self.list(&constructor.agg_order);
            if let Some(window) = &constructor.over {
                self.window(window);
            }
        }
    }

    fn json_behavior(&mut self, behavior: Option<&'a JsonBehavior>) {
        if let Some(behavior) = behavior {
            self.option(behavior.expr.as_deref());
        }
    }

    fn json_output(&mut self, output: Option<&'a JsonOutput>) {
        self.json_type(output.and_then(|output| output.type_name.as_ref()));
    }

    /// RETURNING a domain runs its checks.
    fn json_type(&mut self, target: Option<&'a TypeName>) {
        if let Some(target) = target {
            self.cast(target);
        }
    }
}
