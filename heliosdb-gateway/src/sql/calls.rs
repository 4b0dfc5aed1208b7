//! Functions, operators and types that a statement names: are they pure, and do they run code?

use pg_query::protobuf::{FuncCall, Node, TypeName};

use super::Effect;
use super::catalog::FunctionFacts;
use super::functions::{self, SessionEffect};
use super::reason::{FunctionRefusal, Refusal, Unbounded};
use super::time_casts::is_time_type;
use super::walk::{Walk, string};

impl<'a> Walk<'a> {
    pub(super) fn call(&mut self, call: &'a FuncCall) {
        let FuncCall {
            funcname,
            args,
            agg_order,
            agg_filter,
            over,
            agg_within_group: _,
            agg_star: _,
            agg_distinct: _,
            func_variadic: _,
            funcformat: _,
            location: _,
        } = call;
        self.calls += 1;
        self.list(args);
        self.list(agg_order);
        self.option(agg_filter.as_deref());
        if let Some(window) = over {
            self.window(window);
        }
        let mut parts = funcname.iter().rev().map(string);
        let Some(Some(name)) = parts.next() else {
            self.unsupported("this form of function name");
            return;
        };
        let qualifier = parts.next().flatten();
        self.times.converts_zones |= name == "timezone";
        self.times.time_of_day |= matches!(name, "make_time" | "time");
        self.function(qualifier, name, args.len());
        if let [arg] = args.as_slice() {
            self.functional_cast(qualifier, name, arg);
        }
    }

    /// A call of all functions that `name` may stand for.
    fn function(&mut self, qualifier: Option<&str>, name: &str, arguments: usize) {
        let Some(catalog) = self.catalog else {
            let builtin = qualifier.is_none_or(|schema| schema == "pg_catalog");
            if builtin && functions::assumed_builtin(name) {
                self.builtin_session_effect(name);
            } else {
                self.runs_code(Unbounded::UnknownFunction(name.into()));
            }
            return;
        };
        // Before PostgreSQL 14, EXTRACT was date_part under another name.
        let looked_up = if name == "extract" && catalog.functions_named(name).is_empty() {
            "date_part"
        } else {
            name
        };
        let mut known = false;
        for facts in catalog.functions_named(looked_up) {
            if self.scope.may_mean(qualifier, &facts.schema) {
                known = true;
                self.called(facts, looked_up, arguments);
            }
        }
        if !known {
            self.refuse(Refusal::UnknownFunction(name.into()));
            self.runs_code(Unbounded::UnknownFunction(name.into()));
        }
    }

    fn called(&mut self, facts: &FunctionFacts, name: &str, arguments: usize) {
        let refusal = |why| Refusal::Function {
            name: name.into(),
            why,
        };
        if facts.is_builtin() {
            if functions::runs_text(name) {
                self.refuse(refusal(FunctionRefusal::Volatile));
                self.runs_code(Unbounded::ServerFunction(name.into()));
            }
            if facts.builtin_volatile {
                self.refuse(refusal(FunctionRefusal::Volatile));
                if !functions::volatile_is_harmless(name) {
                    let reason = Unbounded::ServerFunction(name.into());
                    if functions::may_change_settings(name) {
                        self.runs_code(reason);
                    } else {
                        self.writes_anything(reason);
                    }
                }
            }
            if facts.builtin_stable && !functions::stable_is_allowed(name, arguments) {
                self.refuse(refusal(FunctionRefusal::Stable));
            }
            if functions::immutable_is_refused(name) {
                self.refuse(refusal(FunctionRefusal::Impure));
            }
            self.builtin_session_effect(name);
        }
        if let Some(why) = facts.refused {
            self.refuse(refusal(why));
        }
        if facts.code {
            self.runs_code(Unbounded::UserFunction(name.into()));
        }
        if facts.ddl {
            self.found.effects.push(Effect::Ddl);
        }
    }

    fn builtin_session_effect(&mut self, name: &str) {
        match functions::session_effect(name) {
            SessionEffect::None => {}
            SessionEffect::AdvisoryLock => self.found.effects.push(Effect::AdvisoryLock),
            SessionEffect::AdvisoryUnlockAll => self.found.effects.push(Effect::AdvisoryUnlockAll),
            SessionEffect::ReadSequence => self.found.effects.push(Effect::ReadSequence),
            SessionEffect::Unknown => {
                self.settings_unknown(&Unbounded::Setting(name.into()));
            }
        }
    }

    /// `name` after a dot: a column, or a function of the row if there is no such column.
    pub(super) fn row_function(&mut self, name: &str) {
        let Some(catalog) = self.catalog else {
            return;
        };
        for facts in catalog.functions_named(name) {
            if facts.row_argument && self.scope.may_mean(None, &facts.schema) {
                self.calls += 1;
                self.called(facts, name, 1);
            }
        }
    }

    /// `date(x)` is `x::date` if no function fits.
    fn functional_cast(&mut self, qualifier: Option<&str>, name: &str, arg: &'a Node) {
        let Some(catalog) = self.catalog else {
            return;
        };
        for facts in catalog.types_named(name) {
            if !self.scope.may_mean(qualifier, &facts.schema) {
                continue;
            }
            // Rows are not made from text by this notation.
            let user_type = !facts.is_builtin() && !facts.extension && facts.kind != 'c';
            if user_type || catalog.refuses_cast_to(facts.oid) {
                self.refuse(Refusal::Type(name.into()));
            }
            if is_time_type(facts, name) && !self.is_not_text(arg) {
                self.refuse(Refusal::TextToTime);
            }
        }
    }

    /// An operator by its bare name. Built-in ones are all allowed: none is volatile, and those
    /// that are STABLE depend on settings only.
    pub(super) fn operator(&mut self, name: &str) {
        let Some(catalog) = self.catalog else {
            return;
        };
        let facts = catalog.operators_named(name);
        if facts.refused {
            self.refuse(Refusal::Operator(name.into()));
        }
        if facts.code {
            self.runs_code(Unbounded::Operator(name.into()));
        }
    }

    /// The target of a cast. Gives whether its input reads dates or times.
    pub(super) fn cast(&mut self, target: &'a TypeName) -> bool {
        let Some(catalog) = self.catalog else {
            return false;
        };
        let mut parts = target.names.iter().rev().map(string);
        let (Some(Some(name)), qualifier) = (parts.next(), parts.next().flatten()) else {
            self.unsupported("this form of type name");
            return false;
        };
        if target.pct_type || target.setof {
            self.unsupported("this form of type name");
            return false;
        }
        let mut known = false;
        let mut is_time = false;
        for facts in catalog.types_named(name) {
            if !self.scope.may_mean(qualifier, &facts.schema) {
                continue;
            }
            known = true;
            is_time |= is_time_type(facts, name);
            self.times.time_of_day |= name == "time";
            let trusted = match facts.kind {
                'e' => true,
                'b' | 'r' | 'm' => facts.extension || facts.is_builtin(),
                _ => false,
            };
            let unstable = facts.is_builtin()
                && (name.starts_with("reg") || matches!(name, "aclitem" | "timetz"));
            if !trusted || unstable || catalog.refuses_cast_to(facts.oid) {
                self.refuse(Refusal::Type(name.into()));
            }
        }
        if !known {
            self.refuse(Refusal::Type(name.into()));
            // A domain made since the catalog was loaded may check its values with any function.
            self.runs_code(Unbounded::Unsupported("a type that is not known"));
        }
        is_time
    }
}
