//! A second look at statements that ran while no catalog could say what they do.
//!
//! After DDL, and until its transaction ends, names can't be resolved: a statement that calls a function could have
//! changed any session state. The session then stays with its server connection; as soon as the new catalog can be
//! read, the statements are classified again, one by one, and most turn out to be harmless.

use std::sync::Arc;

use crate::sql::{Class, Effect, Statement, Unbounded, classify};

use super::Session;
use super::link::Link;
use super::pins::Pin;

/// Texts to be looked at again.
#[derive(Debug, Default)]
pub(super) struct Unresolved {
    texts: Vec<Box<str>>,
    bytes: usize,
    /// Code was created in the same breath: what a name means now is not what it meant then.
    hopeless: bool,
    tried: bool,
}

/// More than this is not kept: the session then stays as it is until DISCARD ALL.
const BYTES_MAX: usize = 1 << 20;

impl Unresolved {
    /// Keeps the text if its effects on the session are unknown for want of a catalog alone.
    pub(super) fn note(&mut self, text: &[u8], class: &Class) {
        let has_none = |statement: &Statement| statement.effects.is_empty();
        if self.is_empty() && (class.is_plain() || class.statements.iter().all(has_none)) {
            return;
        }
        let effects = || {
            class
                .statements
                .iter()
                .flat_map(|statement| &statement.effects)
        };
        if !self.is_empty()
            && class
                .statements
                .iter()
                .any(|statement| makes_code(statement.tag))
        {
            self.hopeless = true;
        }
        if !effects().any(may_become_known) {
            return;
        }
        self.tried = false;
        self.hopeless |= class
            .statements
            .iter()
            .any(|statement| makes_code(statement.tag));
        match std::str::from_utf8(text) {
            Ok(text) if self.bytes + text.len() <= BYTES_MAX => {
                self.bytes += text.len();
                self.texts.push(text.into());
            }
            _ => self.hopeless = true,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.texts.is_empty() && !self.hopeless
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Whether an effect is unknown for want of a catalog: with one, the function may be found and be harmless.
pub(super) fn may_become_known(effect: &Effect) -> bool {
    use Unbounded::{NoCatalog, UnknownFunction};
    matches!(
        effect,
        Effect::SettingsUnknown(NoCatalog | UnknownFunction(_))
    )
}

/// Whether statements of this kind can give a function's name another meaning.
fn makes_code(tag: &str) -> bool {
    [
        "FUNCTION",
        "PROCEDURE",
        "ROUTINE",
        "EXTENSION",
        "AGGREGATE",
        "OPERATOR",
        "CAST",
        "DO",
        "CALL",
    ]
    .iter()
    .any(|word| tag.split(' ').any(|part| part == *word))
}

impl Session {
    /// True where a second look is due and possible.
    pub(super) fn may_resolve(&self) -> bool {
        self.pins.has(Pin::Unresolved)
            && !self.unresolved.tried
            && self.status == b'I'
            && self
                .link
                .as_ref()
                .is_some_and(|link| link.is_quiet() && link.out.is_empty())
    }

    /// Takes the second look.
    pub(super) async fn resolve(&mut self) {
        self.unresolved.tried = true;
        let own = self.link.as_mut().map(|link| &mut **link.lease);
        let Some(loaded) = self.pool.catalog(own).await else {
            return;
        };
        let is_harmless = |text: &str| {
            let Ok(statements) = pg_query::split_with_parser(text) else {
                return false;
            };
            statements.iter().all(|statement| {
                let class = classify(statement, &loaded.catalog, &self.names);
                let effects = || {
                    class
                        .statements
                        .iter()
                        .flat_map(|statement| &statement.effects)
                };
                !effects().any(|effect| matches!(effect, Effect::SettingsUnknown(_)))
            })
        };
        let harmless =
            !self.unresolved.hopeless && self.unresolved.texts.iter().all(|text| is_harmless(text));
        self.unresolved.clear();
        self.pins.remove(Pin::Unresolved);
        if !harmless {
            self.pins.add(Pin::Unknown);
        }
        let info = Arc::clone(self.info());
        info.set_pins(self.pins.bits());
        if harmless && let Some(Link { lease, .. }) = &mut self.link {
            lease.dirty = self.pins.any();
        }
        self.release_if_free();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{NameScope, classify_without_catalog};

    fn noted(texts: &[&str]) -> Unresolved {
        let mut unresolved = Unresolved::default();
        let scope = NameScope {
            user: "u".to_owned(),
            search_path: vec!["public".to_owned()],
            standard_conforming_strings: true,
            client_encoding_utf8: true,
        };
        for text in texts {
            unresolved.note(text.as_bytes(), &classify_without_catalog(text, &scope));
        }
        unresolved
    }

    #[test]
    fn statements_without_calls_need_no_second_look() {
        assert!(noted(&["CREATE TABLE t (a int)", "INSERT INTO t VALUES (1)"]).is_empty());
    }

    #[test]
    fn a_call_is_looked_at_again_unless_code_was_made_beside_it() {
        let call = "INSERT INTO t SELECT f(1)";
        let unresolved = noted(&[call]);
        assert!(!unresolved.is_empty() && !unresolved.hopeless);
        let function = "CREATE OR REPLACE FUNCTION f(int) RETURNS int LANGUAGE sql AS 'SELECT 1'";
        assert!(noted(&[call, function]).hopeless);
        assert!(noted(&[&format!("{function}; {call}")]).hopeless);
    }
}
