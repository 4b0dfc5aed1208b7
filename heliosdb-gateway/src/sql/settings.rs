//! SET in a form that means the same on any connection.

use pg_query::NodeEnum;
use pg_query::protobuf::{self, Node, VariableSetKind, VariableSetStmt, a_const};

use super::names::split_identifiers;
use super::reason::Unbounded;
use super::{Effect, Isolation, TransactionModes};

/// `text` as a string literal that every server reads the same way, whatever its settings.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 3);
    // In E'' backslashes are escapes under every setting; without backslashes plain '' will do.
    if text.contains('\\') {
        quoted.push('E');
    }
    quoted.push('\'');
    for c in text.chars() {
        if c == '\'' || c == '\\' {
            quoted.push(c);
        }
        quoted.push(c);
    }
    quoted.push('\'');
    quoted
}

/// The name of a setting as it can stand after SET or RESET: `"my"."setting"`.
#[must_use]
pub fn quote_setting_name(name: &str) -> String {
    let parts: Vec<String> = name
        .split('.')
        .map(|part| format!("\"{}\"", part.replace('"', "\"\"")))
        .collect();
    parts.join(".")
}

/// The items of a value made by this module (see [`Effect::Set`]), without quotes; `None` for
/// `DEFAULT` and for anything not made here.
#[must_use]
pub fn value_items(value: &str) -> Option<Vec<String>> {
    let mut items = Vec::new();
    let mut rest = value;
    loop {
        if let Some(quoted) = rest.strip_prefix("E'").or_else(|| rest.strip_prefix('\'')) {
            let escapes = rest.starts_with('E');
            let mut item = String::new();
            let mut chars = quoted.char_indices();
            loop {
                let (at, c) = chars.next()?;
                let doubled = quoted[at + c.len_utf8()..].starts_with(c);
                match c {
                    '\'' if !doubled => {
                        rest = &quoted[at + 1..];
                        break;
                    }
                    '\'' => {
                        chars.next();
                    }
                    '\\' if escapes => {
                        chars.next();
                    }
                    _ => {}
                }
                item.push(c);
            }
            items.push(item);
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let number = &rest[..end];
            if number.is_empty() || number == "DEFAULT" {
                return None;
            }
            items.push(number.to_owned());
            rest = &rest[end..];
        }
        if rest.is_empty() {
            return Some(items);
        }
        rest = rest.strip_prefix(", ")?;
    }
}

/// The effects of a SET or RESET statement.
pub(super) fn effects(statement: &VariableSetStmt) -> Vec<Effect> {
    let name = statement.name.to_ascii_lowercase();
    let local = statement.is_local;
    match statement.kind() {
        VariableSetKind::VarResetAll => vec![Effect::ResetAll],
        VariableSetKind::VarSetMulti => multi(&name, &statement.args, local),
        _ if !is_setting_name(&name) => vec![unknown(&name)],
        VariableSetKind::VarReset => match transaction_modes(&name, None) {
            Some(modes) => vec![Effect::SetTransaction(modes)],
            None => vec![Effect::Reset(name)],
        },
        VariableSetKind::VarSetDefault => match transaction_modes(&name, None) {
            Some(modes) => vec![Effect::SetTransaction(modes)],
            None => vec![Effect::Set {
                name,
                value: "DEFAULT".to_owned(),
                local,
            }],
        },
        VariableSetKind::VarSetValue => match items(&statement.args) {
            Some(items) => {
                if let Some(modes) = transaction_modes(&name, items.first().map(|item| &*item.text))
                {
                    return vec![Effect::SetTransaction(modes)];
                }
                let value: Vec<String> = items.iter().map(Item::render).collect();
                vec![Effect::Set {
                    name,
                    value: value.join(", "),
                    local,
                }]
            }
            None => vec![unknown(&name)],
        },
        VariableSetKind::VarSetCurrent | VariableSetKind::Undefined => vec![unknown(&name)],
    }
}

/// The effect of `set_config(name, value, is_local)` with constants.
pub(super) fn set_config(name: &str, value: &str, local: bool) -> Effect {
    let name = name.to_ascii_lowercase();
    if !is_setting_name(&name) {
        return unknown(&name);
    }
    if let Some(modes) = transaction_modes(&name, Some(value)) {
        return Effect::SetTransaction(modes);
    }
    let value = match name.as_str() {
        // SET quotes each item of these lists, while set_config takes the list as one text.
        "search_path" | "temp_tablespaces" => match split_identifiers(value) {
            Some(items) if !items.is_empty() => items
                .iter()
                .map(|item| quote_literal(item))
                .collect::<Vec<_>>()
                .join(", "),
            Some(_) => "''".to_owned(),
            None => return unknown(&name),
        },
        "local_preload_libraries"
        | "session_preload_libraries"
        | "shared_preload_libraries"
        | "unix_socket_directories" => return unknown(&name),
        _ => quote_literal(value),
    };
    Effect::Set { name, value, local }
}

/// Transaction modes from the options of BEGIN, START TRANSACTION or SET TRANSACTION.
pub(super) fn modes(options: &[Node]) -> TransactionModes {
    let mut modes = TransactionModes::default();
    for option in options {
        let Some(NodeEnum::DefElem(option)) = &option.node else {
            continue;
        };
        let text = option
            .arg
            .as_deref()
            .and_then(constant)
            .map(|item| item.text);
        if let Some(named) = transaction_modes(&option.defname, text.as_deref()) {
            modes.isolation = named.isolation.or(modes.isolation);
            modes.read_only = named.read_only.or(modes.read_only);
            modes.deferrable = named.deferrable.or(modes.deferrable);
        }
    }
    modes
}

/// SET TRANSACTION and SET SESSION CHARACTERISTICS.
fn multi(name: &str, args: &[Node], local: bool) -> Vec<Effect> {
    match name {
        "transaction" => vec![Effect::SetTransaction(modes(args))],
        "transaction snapshot" => vec![Effect::SetTransaction(TransactionModes::default())],
        "session characteristics" => {
            let modes = modes(args);
            let set = |name: &str, value: &str| Effect::Set {
                name: name.to_owned(),
                value: quote_literal(value),
                local,
            };
            let switch = |on: bool| if on { "on" } else { "off" };
            let mut effects = Vec::new();
            if let Some(isolation) = modes.isolation {
                let level = match isolation {
                    Isolation::ReadUncommitted => "read uncommitted",
                    Isolation::ReadCommitted => "read committed",
                    Isolation::RepeatableRead => "repeatable read",
                    Isolation::Serializable => "serializable",
                };
                effects.push(set("default_transaction_isolation", level));
            }
            if let Some(on) = modes.read_only {
                effects.push(set("default_transaction_read_only", switch(on)));
            }
            if let Some(on) = modes.deferrable {
                effects.push(set("default_transaction_deferrable", switch(on)));
            }
            effects
        }
        _ => vec![unknown(name)],
    }
}

/// The modes that a `transaction_*` setting stands for; `None` if `name` is none of these.
fn transaction_modes(name: &str, value: Option<&str>) -> Option<TransactionModes> {
    let mut modes = TransactionModes::default();
    let value = value.map(str::to_ascii_lowercase);
    let value = value.as_deref();
    match name {
        "transaction_isolation" => {
            modes.isolation = match value {
                Some("read uncommitted") => Some(Isolation::ReadUncommitted),
                Some("read committed") => Some(Isolation::ReadCommitted),
                Some("repeatable read") => Some(Isolation::RepeatableRead),
                // A level we can't read is taken for the one under which least may be assumed.
                _ => Some(Isolation::Serializable),
            };
        }
        "transaction_read_only" => modes.read_only = value.and_then(switch),
        "transaction_deferrable" => modes.deferrable = value.and_then(switch),
        _ => return None,
    }
    Some(modes)
}

fn switch(value: &str) -> Option<bool> {
    match value {
        "1" | "on" | "true" | "yes" | "t" | "y" => Some(true),
        "0" | "off" | "false" | "no" | "f" | "n" => Some(false),
        _ => None,
    }
}

/// One argument of SET.
struct Item {
    text: String,
    number: bool,
}

impl Item {
    fn render(&self) -> String {
        if self.number {
            self.text.clone()
        } else {
            quote_literal(&self.text)
        }
    }
}

fn items(args: &[Node]) -> Option<Vec<Item>> {
    if args.is_empty() {
        return None;
    }
    args.iter().map(constant).collect()
}

/// The constant that `node` is; `None` for NULL and whatever is not a plain constant.
fn constant(node: &Node) -> Option<Item> {
    let Some(NodeEnum::AConst(constant)) = &node.node else {
        return None;
    };
    let item = |text: String, number| Some(Item { text, number });
    match constant.val.as_ref()? {
        a_const::Val::Ival(protobuf::Integer { ival }) => item(ival.to_string(), true),
        a_const::Val::Fval(protobuf::Float { fval }) => item(fval.clone(), true),
        a_const::Val::Boolval(protobuf::Boolean { boolval }) => {
            item(if *boolval { "true" } else { "false" }.to_owned(), false)
        }
        a_const::Val::Sval(protobuf::String { sval }) => item(sval.clone(), false),
        a_const::Val::Bsval(_) => None,
    }
}

/// Names that the server itself accepts for a setting. Anything else is not repeated, so that a
/// name can't carry SQL to another connection.
fn is_setting_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'$'))
        && name.split('.').all(|part| !part.is_empty())
}

fn unknown(name: &str) -> Effect {
    Effect::SettingsUnknown(Unbounded::Setting(name.into()))
}
