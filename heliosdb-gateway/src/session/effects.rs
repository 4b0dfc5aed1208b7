//! What completed statements did to the session, applied when the server reports the end of their unit.

use std::sync::Arc;

use crate::clients::Counters;
use crate::notifications::{Interest, Step as Change};
use crate::sql::{Effect, NameScope, split_identifiers, value_items};

use super::Session;
use super::bounded::asked_level;
use super::link::{Completed, Link};
use super::pins::Pin;
use super::resolve::may_become_known;
use super::settings::{Effective, Settings};
use crate::upstream::connection::Baseline;

impl Session {
    /// The server is ready again. `failed`: an error came since it last was.
    pub(super) fn on_ready(&mut self, status: u8, completed: &[Completed], failed: bool) {
        let was_failed = self.status == b'E';
        let had_layers = self.settings.has_uncommitted();
        for completed in completed {
            self.apply_completed(completed, was_failed, failed);
        }
        self.names_in_doubt = false;
        self.doubtful_scope = None;
        self.status = status;
        if status != b'I' {
            // What failed may have taken locks.
            self.sees_committed &= !failed;
            if had_layers || self.settings.has_uncommitted() {
                self.names_changed();
            }
            return;
        }
        if !self.to_restore.is_empty() && (failed || !self.pins.has(Pin::Unknown)) {
            // Everything is set again before the next statement, or nothing was reset.
            self.to_restore.clear();
        }
        if std::mem::take(&mut self.alters_defaults) {
            // Sessions that begin from here on begin with the new ones.
            self.gateway.upstream.forget_defaults();
        }
        self.sees_committed = false;
        self.unnamed_portal_is_here = false;
        let has_layers = had_layers || self.settings.has_uncommitted();
        if failed {
            self.settings.roll_back();
            self.roll_back_listening();
        } else {
            self.commit_settings();
            self.commit_listening();
        }
        if has_layers {
            self.names_changed();
        }
        // The version goes up and the mark goes down before the client hears that its transaction has ended.
        if let Some(intent) = self.intent.take() {
            intent.finish();
        }
        Counters::add(&self.info().counters.transactions, 1);
        let pins = self.pins.bits();
        self.info().set_pins(pins);
        if self.link.as_ref().is_none_or(Link::is_quiet) {
            // The end of the transaction closed them.
            self.portals.clear();
            self.bound.forget();
        }
        if let Some(link) = &mut self.link {
            // A RESET took the server to its own default, not to what the startup packet asked for, if it was not rolled
            // back: all is set again before the next statement.
            let was_reset = std::mem::take(&mut self.was_reset);
            let effective = self.settings.effective();
            if was_reset && !self.pins.has(Pin::Unknown) {
                link.lease.applied = Effective::unknown();
            } else if !Arc::ptr_eq(&link.lease.applied, effective) {
                link.lease.applied = Arc::clone(effective);
            }
            link.lease.dirty |= self.pins.any();
        }
    }

    fn apply_completed(&mut self, completed: &Completed, was_failed: bool, failed: bool) {
        let statements = &completed.class.statements;
        let all = statements.len();
        let done = if failed { all.min(completed.done) } else { all };
        for (place, statement) in statements.iter().enumerate() {
            let is_done = place < done;
            let names_are_known = if is_done {
                self.apply_use(completed, place)
            } else {
                completed.translated.is_some()
            };
            self.alters_defaults |= is_done && alters_defaults(statement.tag);
            for effect in &statement.effects {
                match effect {
                    // Nobody's but the gateway's name, or dealt with.
                    Effect::Prepare(_) if names_are_known => {}
                    Effect::Prepare(name) if name.starts_with(self.gateway.interner.prefix()) => {}
                    // It was dealt with when it was sent.
                    Effect::Deallocate(None) if completed.is_ahead && is_done => {
                        self.pins.remove(Pin::Prepare);
                    }
                    Effect::DiscardAll if completed.is_ahead && is_done => {
                        self.discard_all_but_names();
                    }
                    effect => self.apply(effect, was_failed, !is_done),
                }
            }
            if !is_done {
                if let Some(link) = &mut self.link
                    && let Some(translated) = &completed.translated
                {
                    // What was prepared for it may be there, or not.
                    link.lease.dirty |= !translated.own.is_empty();
                }
                // Behind the one that failed nothing was run.
                break;
            }
        }
    }

    fn apply(&mut self, effect: &Effect, was_failed: bool, failed: bool) {
        match effect {
            // What failed changed no settings, but what is not transactional may have happened before the error: ties are
            // kept, and ties are not loosened.
            Effect::AdvisoryLock => self.pins.add(Pin::AdvisoryLock),
            Effect::HoldCursor(name) => self.pins.hold(name),
            Effect::Listen(_) if failed => {}
            Effect::Listen(_) => self.pins.add(Pin::Listen),
            Effect::Prepare(_) => self.pins.add(Pin::Prepare),
            Effect::Temp => self.pins.add(Pin::Temp),
            effect if may_become_known(effect) && !self.unresolved.is_empty() => {
                self.pins.add(Pin::Unresolved);
            }
            Effect::Load | Effect::SettingsUnknown(_) => self.pins.add(Pin::Unknown),
            Effect::DiscardAll if failed => self.pins.add(Pin::Unknown),
            _ if failed => {}
            Effect::AdvisoryUnlockAll => self.pins.remove(Pin::AdvisoryLock),
            Effect::Close(name) => self.pins.close(name),
            Effect::CloseAll => self.pins.remove(Pin::HoldCursor),
            Effect::Unlisten(channel) => {
                // In a transaction it may be rolled back.
                if channel.is_none() && self.status == b'I' {
                    self.pins.remove(Pin::Listen);
                }
                let change = channel.as_deref().map_or(Change::UnlistenAll, |channel| {
                    Change::Unlisten(channel.into())
                });
                self.change_interest(|interest| interest.act([change]));
            }
            Effect::DiscardTemp => self.pins.remove(Pin::Temp),
            Effect::DiscardAll => self.discard_all(),
            Effect::Deallocate(None) => {
                self.pins.remove(Pin::Prepare);
                self.statements.take_names();
                if let Some(link) = &mut self.link {
                    link.lease.statements.clear();
                }
            }
            Effect::Set { name, value, local } => {
                if value.eq_ignore_ascii_case("default") {
                    self.was_reset = true;
                    self.to_restore
                        .extend(self.settings.startup_name(name).map(Box::from));
                } else {
                    self.to_restore.remove(name.as_str());
                }
                if *local {
                    self.settings.set_local(name, value);
                } else {
                    self.settings.set(name, value);
                }
            }
            Effect::Reset(name) => {
                self.was_reset = true;
                self.to_restore
                    .extend(self.settings.startup_name(name).map(Box::from));
                self.settings.reset(name);
            }
            Effect::ResetAll => {
                self.was_reset = true;
                self.to_restore
                    .extend(self.settings.startup_names().map(Box::from));
                self.settings.reset_all();
            }
            Effect::Savepoint(name) => {
                self.settings.savepoint(name);
                self.change_interest(|interest| interest.savepoint(name));
            }
            Effect::Release(name) => {
                self.settings.release(name);
                self.change_interest(|interest| interest.release(name));
            }
            Effect::Commit { .. } | Effect::PrepareTransaction(_) if !was_failed => {
                self.commit_settings();
                self.commit_listening();
            }
            Effect::Commit { .. } | Effect::PrepareTransaction(_) | Effect::Rollback { .. } => {
                self.to_restore.clear();
                self.settings.roll_back();
                self.roll_back_listening();
            }
            Effect::RollbackTo(name) => {
                self.to_restore.clear();
                self.change_interest(|interest| interest.roll_back_to(name));
                if !self.settings.roll_back_to(name) && self.settings.has_uncommitted() {
                    self.pins.add(Pin::Unknown);
                }
            }
            _ => {}
        }
    }

    fn commit_settings(&mut self) {
        if self.settings.commit() {
            self.settings_changed();
        }
    }

    fn discard_all(&mut self) {
        self.discard_all_but_names();
        self.statements.take_names();
        if let Some(link) = &mut self.link {
            link.lease.statements.clear();
        }
    }

    fn discard_all_but_names(&mut self) {
        self.was_reset = true;
        self.settings.discard_all();
        self.settings_changed();
        self.pins.discard_all();
        self.change_interest(Interest::clear);
        self.unresolved.clear();
        if let Some(link) = &mut self.link {
            link.lease.sequences.discard();
            link.lease.dirty = false;
        }
    }

    /// Recomputes what follows from the settings.
    pub(super) fn settings_changed(&mut self) {
        self.info().note_settings();
        self.level = asked_level(&self.settings, &mut self.out);
        self.scope = self
            .settings
            .scope(&self.pool.key_prefix(&self.baseline), &self.pool.user);
        self.names_changed();
    }

    /// Recomputes what names and constants mean, in the transaction in progress if there is one.
    fn names_changed(&mut self) {
        self.names = name_scope(&self.settings, &self.baseline, &self.pool.user);
        self.parse_scope = if self.settings.has_uncommitted() {
            self.settings
                .parse_scope(&self.pool.key_prefix(&self.baseline), &self.pool.user)
        } else {
            self.scope.clone()
        };
    }
}

/// Whether a statement of this kind may change what sessions begin with.
fn alters_defaults(tag: &str) -> bool {
    matches!(
        tag,
        "ALTER DATABASE" | "ALTER ROLE" | "ALTER SYSTEM" | "COMMIT PREPARED"
    )
}

/// What the meaning of names depends on, in a session with these settings.
pub(super) fn name_scope(settings: &Settings, baseline: &Baseline, user: &str) -> Arc<NameScope> {
    let literal = |name: &str| {
        settings
            .get(name)
            .and_then(value_items)
            .map(|items| items.join(", "))
    };
    let role = literal("role")
        .filter(|role| role != "none")
        .or_else(|| literal("session_authorization"));
    let search_path = match settings.get("search_path") {
        Some(value) => value_items(value),
        None => split_identifiers(&baseline.search_path),
    };
    let reported =
        |name: &str| literal(name).or_else(|| baseline.parameter(name).map(str::to_owned));
    let is_on = |value: String| {
        matches!(
            value.to_ascii_lowercase().as_str(),
            "on" | "true" | "yes" | "1"
        )
    };
    let is_utf8 = |value: String| {
        matches!(
            value.to_ascii_lowercase().replace(['-', '_'], "").as_str(),
            "utf8" | "unicode"
        )
    };
    Arc::new(NameScope {
        user: role.unwrap_or_else(|| user.to_owned()),
        // A path that can't be read leads nowhere: no name resolves, nothing is cached.
        search_path: search_path.unwrap_or_default(),
        standard_conforming_strings: reported("standard_conforming_strings").is_some_and(is_on),
        client_encoding_utf8: reported("client_encoding").is_some_and(is_utf8),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline() -> Baseline {
        Baseline {
            search_path: "\"$user\", public".to_owned(),
            default_isolation: "read committed".to_owned(),
            fingerprint: String::new(),
            parameters: vec![
                ("client_encoding".to_owned(), "UTF8".to_owned()),
                ("standard_conforming_strings".to_owned(), "on".to_owned()),
            ],
        }
    }

    #[test]
    fn names_follow_the_settings() {
        let mut settings = Settings::new([]);
        let scope = name_scope(&settings, &baseline(), "login");
        assert_eq!(scope.user, "login");
        assert_eq!(scope.search_path, ["$user", "public"]);
        assert!(scope.standard_conforming_strings && scope.client_encoding_utf8);

        settings.set("search_path", "'a, b', 'it''s'");
        settings.set("role", "'app'");
        settings.set("client_encoding", "'LATIN1'");
        settings.set("standard_conforming_strings", "'off'");
        settings.commit();
        let scope = name_scope(&settings, &baseline(), "login");
        assert_eq!(scope.user, "app");
        assert_eq!(scope.search_path, ["a, b", "it's"]);
        assert!(!scope.standard_conforming_strings && !scope.client_encoding_utf8);
    }
}
