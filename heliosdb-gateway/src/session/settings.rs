//! What a session has set, in layers, and how a server connection is brought to it.
//!
//! The order of precedence is transaction over session over startup packet. A server connection remembers which
//! settings are in force on it; lending it to a client sends the difference, usually nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use heliosdb_cache::HashedStr;
use rapidhash::fast::RapidHasher;

use std::hash::{Hash, Hasher};

use crate::level;
use crate::sql::{quote_literal, quote_setting_name, split_identifiers, value_items};

/// Name (lower case) to right-hand side, ready for `SET name TO value`.
pub(crate) type SettingMap = BTreeMap<Box<str>, Box<str>>;

/// A settings vector in force, shared by the session and the server connections that have it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Effective {
    map: SettingMap,
    label: u64,
    /// False for a server connection whose settings nobody knows.
    is_known: bool,
}

impl Effective {
    pub(crate) fn new(map: SettingMap) -> Arc<Self> {
        let label = if map.is_empty() {
            0
        } else {
            let mut hasher = RapidHasher::default_const();
            map.hash(&mut hasher);
            hasher.finish()
        };
        Arc::new(Self {
            map,
            label,
            is_known: true,
        })
    }

    /// The settings of a server connection on which something was reset.
    pub(crate) fn unknown() -> Arc<Self> {
        Arc::new(Self {
            map: SettingMap::new(),
            label: u64::MAX,
            is_known: false,
        })
    }

    pub(crate) fn is_known(&self) -> bool {
        self.is_known
    }

    /// Equal vectors have equal labels; different ones may, by chance: a label chooses, it never proves.
    pub(crate) fn label(&self) -> u64 {
        self.label
    }

    /// The statements that turn a connection which has `self` into one which has `target`; empty if nothing differs.
    pub(crate) fn transition(&self, target: &Self) -> String {
        let mut sql = String::new();
        if !self.is_known {
            sql.push_str("RESET SESSION AUTHORIZATION;RESET ROLE;RESET ALL;");
        }
        // Identity first back to the login role, so that the rest is set with its rights; last to the wanted one.
        let identity = |name: &str| name == "role" || name == SESSION_AUTHORIZATION;
        let identity_differs = ["session_authorization", "role"]
            .iter()
            .any(|name| self.map.get(*name) != target.map.get(*name));
        if identity_differs {
            for name in ["role", "session_authorization"] {
                if self.map.contains_key(name) {
                    let _ = write!(sql, "RESET {name};");
                }
            }
        }
        for name in self
            .map
            .keys()
            .filter(|name| !identity(name) && !target.map.contains_key(*name))
        {
            let _ = write!(sql, "RESET {};", quote_setting_name(name));
        }
        for (name, value) in &target.map {
            if !identity(name) && self.map.get(name) != Some(value) {
                if &**name == DATE_STYLE && self.map.contains_key(name) {
                    // A value may leave one half open: it is then the server's default.
                    sql.push_str("RESET datestyle;");
                }
                let _ = write!(sql, "SET {} TO {value};", quote_setting_name(name));
            }
        }
        if identity_differs {
            for name in ["session_authorization", "role"] {
                if let Some(value) = target.map.get(name) {
                    let _ = write!(sql, "SET {name} TO {value};");
                }
            }
        }
        sql
    }
}

/// The layers of one session.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    startup: SettingMap,
    session: SettingMap,
    changes: Changes,
    /// The changes at each savepoint of the transaction in progress.
    savepoints: Vec<(Box<str>, Changes)>,
    effective: Arc<Effective>,
}

/// Changes of the transaction in progress; `None` as a value is a RESET.
#[derive(Debug, Clone, Default)]
struct Changes {
    /// They last if the transaction does.
    session: BTreeMap<Box<str>, Option<Box<str>>>,
    /// They end with the transaction.
    local: BTreeMap<Box<str>, Option<Box<str>>>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.session.is_empty() && self.local.is_empty()
    }
}

impl Settings {
    /// A session that begins with what its startup packet asked for (raw values).
    pub(crate) fn new(startup: impl IntoIterator<Item = (String, String)>) -> Self {
        let startup: SettingMap = startup
            .into_iter()
            .map(|(name, value)| {
                (
                    name.to_ascii_lowercase().into(),
                    render_startup(&name, &value).into(),
                )
            })
            .collect();
        let effective = Effective::new(startup.clone());
        Self {
            startup,
            session: SettingMap::new(),
            changes: Changes::default(),
            savepoints: Vec::new(),
            effective,
        }
    }

    /// What is in force outside of a transaction.
    pub(crate) fn effective(&self) -> &Arc<Effective> {
        &self.effective
    }

    /// True if these are what the session has in force, and shares them then: the next comparison is one of pointers.
    pub(crate) fn adopt(&mut self, applied: &Arc<Effective>) -> bool {
        if Arc::ptr_eq(&self.effective, applied) {
            return true;
        }
        if self.effective != *applied {
            return false;
        }
        self.effective = Arc::clone(applied);
        true
    }

    /// The value in force, as it stands behind `SET name TO`.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let changed = self
            .changes
            .local
            .get(name)
            .or_else(|| self.changes.session.get(name));
        match changed {
            Some(Some(value)) => Some(value),
            Some(None) => self.startup.get(name).map(|value| &**value),
            None => self.effective.map.get(name).map(|value| &**value),
        }
    }

    /// The name, if the startup packet asked for a value of that setting.
    pub(crate) fn startup_name(&self, name: &str) -> Option<&str> {
        self.startup.get_key_value(name).map(|(name, _)| &**name)
    }

    /// The names of the settings that the startup packet asked for.
    pub(crate) fn startup_names(&self) -> impl Iterator<Item = &str> {
        self.startup.keys().map(|name| &**name)
    }

    /// The statement that gives a setting back the value that the startup packet asked for, if it did.
    pub(crate) fn restoring(&self, name: &str, local: bool) -> Option<String> {
        let value = self.startup.get(name)?;
        let scope = if local { "LOCAL " } else { "" };
        Some(format!(
            "SET {scope}{} TO {value}",
            quote_setting_name(name)
        ))
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        let value = self.changed_to(name, value);
        self.change(name, value, false);
    }

    pub(crate) fn set_local(&mut self, name: &str, value: &str) {
        let value = self.changed_to(name, value);
        self.change(name, value, true);
    }

    pub(crate) fn reset(&mut self, name: &str) {
        self.change(name, None, false);
    }

    fn change(&mut self, name: &str, value: Option<Box<str>>, local: bool) {
        if name == SESSION_AUTHORIZATION {
            // PostgreSQL sets the role to none with it, and for as long.
            let role = value.is_some().then(|| "'none'".into());
            self.change("role", role, local);
        }
        if local {
            self.changes.local.insert(name.into(), value);
        } else {
            self.changes.local.remove(name);
            self.changes.session.insert(name.into(), value);
        }
    }

    /// What a SET makes of a setting; `None` is a RESET.
    fn changed_to(&self, name: &str, value: &str) -> Option<Box<str>> {
        if value.eq_ignore_ascii_case("default") {
            return None;
        }
        if name != DATE_STYLE {
            return Some(value.into());
        }
        Some(DateStyle::read(value).or(self.get(DATE_STYLE)).into())
    }

    pub(crate) fn savepoint(&mut self, name: &str) {
        // Beyond what anybody nests; without this note a rollback to it is not understood, which is safe.
        if self.savepoints.len() < SAVEPOINTS_MAX {
            self.savepoints.push((name.into(), self.changes.clone()));
        }
    }

    /// RELEASE: it and those made behind it are forgotten.
    pub(crate) fn release(&mut self, name: &str) {
        if let Some(at) = self.find_savepoint(name) {
            self.savepoints.truncate(at);
        }
    }

    /// ROLLBACK TO: true if the savepoint is known.
    pub(crate) fn roll_back_to(&mut self, name: &str) -> bool {
        let Some(at) = self.find_savepoint(name) else {
            return false;
        };
        self.savepoints.truncate(at + 1);
        self.changes = self.savepoints[at].1.clone();
        true
    }

    fn find_savepoint(&self, name: &str) -> Option<usize> {
        self.savepoints
            .iter()
            .rposition(|(known, _)| **known == *name)
    }

    pub(crate) fn reset_all(&mut self) {
        // RESET ALL leaves the role and the session's authorization alone, as PostgreSQL does.
        let kept = |name: &str| name == "role" || name == "session_authorization";
        let names: Vec<Box<str>> = self
            .session
            .keys()
            .filter(|name| !kept(name))
            .cloned()
            .collect();
        self.changes.session.retain(|name, _| kept(name));
        self.changes.local.retain(|name, _| kept(name));
        for name in names {
            self.changes.session.insert(name, None);
        }
    }

    /// DISCARD ALL: what RESET ALL does, and the identity too.
    pub(crate) fn discard_all(&mut self) {
        self.roll_back();
        if !self.session.is_empty() {
            self.session.clear();
            self.effective = Effective::new(self.startup.clone());
        }
    }

    /// True while the transaction in progress has changed something.
    pub(crate) fn has_uncommitted(&self) -> bool {
        !self.changes.is_empty()
    }

    /// The transaction's changes stay. True if the effective settings changed.
    pub(crate) fn commit(&mut self) -> bool {
        if self.savepoints.is_empty() && self.changes.is_empty() {
            // As after most transactions.
            return false;
        }
        self.savepoints.clear();
        self.changes.local.clear();
        if self.changes.session.is_empty() {
            return false;
        }
        for (name, value) in std::mem::take(&mut self.changes.session) {
            match value {
                Some(value) => {
                    self.session.insert(name, value);
                }
                None => {
                    self.session.remove(&name);
                }
            }
        }
        let mut map = self.startup.clone();
        map.extend(
            self.session
                .iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        let changed = map != self.effective.map;
        if changed {
            self.effective = Effective::new(map);
        }
        changed
    }

    /// The transaction's changes are gone.
    pub(crate) fn roll_back(&mut self) {
        self.savepoints.clear();
        self.changes = Changes::default();
    }

    /// The part of a cache key that this session contributes: database, login role and every setting that is not
    /// proven harmless. Lengths are written before contents, so that no two vectors render alike.
    pub(crate) fn scope(&self, database: &str, user: &str) -> HashedStr {
        HashedStr::new(&self.render_scope(database, user))
    }

    /// The same with the changes of the transaction in progress. Never equal to a [`scope`](Self::scope).
    pub(crate) fn parse_scope(&self, database: &str, user: &str) -> HashedStr {
        let mut text = self.render_scope(database, user);
        for (layer, changes) in [("+", &self.changes.session), ("!", &self.changes.local)] {
            for (name, value) in changes {
                let value = value.as_deref().unwrap_or_default();
                let _ = write!(text, "{layer}{}:{name}{}:{value}", name.len(), value.len());
            }
        }
        HashedStr::new(&text)
    }

    fn render_scope(&self, database: &str, user: &str) -> String {
        let mut text = String::with_capacity(64);
        let mut part = |value: &str| {
            let _ = write!(text, "{}:{value}", value.len());
        };
        part(database);
        part(user);
        for (name, value) in self
            .effective
            .map
            .iter()
            .filter(|(name, _)| !is_harmless(name))
        {
            part(name);
            part(value);
        }
        text
    }
}

/// The one setting whose value may say half of it and leave the other half as it is: `DMY` is not the same behind `SQL`
/// as behind `ISO`.
#[derive(Default)]
struct DateStyle {
    style: Option<String>,
    order: Option<String>,
    /// It says both halves, or something that we do not understand.
    whole: Option<String>,
}

impl DateStyle {
    /// `value` as it stands behind `SET datestyle TO`.
    fn read(value: &str) -> Self {
        let mut read = Self::default();
        let items = value_items(value).unwrap_or_default();
        for word in items.iter().flat_map(|item| item.split(',')) {
            let word = word.trim().to_ascii_uppercase();
            let starts = |with: &str| word.starts_with(with);
            if matches!(&*word, "ISO" | "SQL" | "GERMAN") || starts("POSTGRES") {
                if word == "GERMAN" {
                    read.order.get_or_insert_with(|| "DMY".to_owned());
                }
                read.style = Some(word);
            } else if matches!(&*word, "YMD" | "DMY" | "MDY" | "US")
                || starts("EURO")
                || starts("NONEURO")
            {
                read.order = Some(word);
            } else if !word.is_empty() {
                // DEFAULT stands for what the server begins with, whatever was in force.
                read.whole = Some(value.to_owned());
            }
        }
        read
    }

    /// The value with what it leaves open taken from the one before it.
    fn or(self, before: Option<&str>) -> String {
        if let Some(whole) = self.whole {
            return whole;
        }
        let before = before.map(Self::read).unwrap_or_default();
        let halves = [self.style.or(before.style), self.order.or(before.order)];
        let known: Vec<&str> = halves.iter().flatten().map(String::as_str).collect();
        quote_literal(&known.join(", "))
    }
}

const DATE_STYLE: &str = "datestyle";
const SESSION_AUTHORIZATION: &str = "session_authorization";
const SAVEPOINTS_MAX: usize = 256;

/// Settings which cannot change the bytes of a cacheable answer: who the client says it is, when it gives up, and
/// what the server logs or tells beside the result (answers that came with a notice are never stored).
fn is_harmless(name: &str) -> bool {
    matches!(
        name,
        "application_name"
            | level::SETTING
            | "statement_timeout"
            | "lock_timeout"
            | "transaction_timeout"
            | "idle_in_transaction_session_timeout"
            | "idle_session_timeout"
            | "client_min_messages"
            | "client_connection_check_interval"
            | "deadlock_timeout"
            | "tcp_keepalives_count"
            | "tcp_keepalives_idle"
            | "tcp_keepalives_interval"
            | "tcp_user_timeout"
            | "synchronous_commit"
            | "commit_delay"
            | "commit_siblings"
    ) || (name.starts_with("log_") && !name.contains('.'))
}

/// A startup packet's value as it stands behind `SET name TO`. A list setting's value is split as the server does,
/// since a quoted list would be one name.
fn render_startup(name: &str, value: &str) -> String {
    let is_list = matches!(
        name.to_ascii_lowercase().as_str(),
        "search_path"
            | "temp_tablespaces"
            | "session_preload_libraries"
            | "local_preload_libraries"
    );
    if !is_list {
        return quote_literal(value);
    }
    match split_identifiers(value) {
        Some(items) if !items.is_empty() => items
            .iter()
            .map(|item| quote_literal(item))
            .collect::<Vec<_>>()
            .join(", "),
        // Empty, or malformed: the server says so when it is set.
        _ => quote_literal(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        Settings::new(
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        )
    }

    #[test]
    fn rolled_back_set_leaves_no_trace() {
        let mut session = settings(&[]);
        session.set("work_mem", "'1MB'");
        assert_eq!(session.get("work_mem"), Some("'1MB'"));
        session.roll_back();
        assert_eq!(session.get("work_mem"), None);
        assert!(!session.commit());
    }

    #[test]
    fn reset_returns_to_the_startup_value() {
        let mut session = settings(&[("TimeZone", "UTC")]);
        session.set("timezone", "'CET'");
        session.commit();
        assert_eq!(session.get("timezone"), Some("'CET'"));
        session.reset("timezone");
        session.commit();
        assert_eq!(session.get("timezone"), Some("'UTC'"));
    }

    #[test]
    fn half_a_date_style_keeps_the_other_half() {
        let after = |values: &[&str]| {
            let mut session = settings(&[]);
            for value in values {
                session.set("datestyle", value);
                session.commit();
            }
            session.get("datestyle").map(str::to_owned)
        };
        for (values, expected) in [
            (&["'SQL'", "'dmy'"][..], "'SQL, DMY'"),
            (&["'dmy'"], "'DMY'"),
            (&["'German'"], "'GERMAN, DMY'"),
            (&["'German'", "'ISO'"], "'ISO, DMY'"),
            (&["'German', 'MDY'"], "'GERMAN, MDY'"),
            (&["'sql, european'", "'postgres'"], "'POSTGRES, EUROPEAN'"),
            (&["'SQL'", "'default'"], "'default'"),
            (&["'SQL'", "DEFAULT", "'YMD'"], "'YMD'"),
        ] {
            assert_eq!(after(values).as_deref(), Some(expected), "{values:?}");
        }
        let style = |value: &str| settings(&[("DateStyle", value)]).effective().clone();
        // What a value leaves open is the server's default, whatever was in force.
        assert_eq!(
            style("SQL").transition(&style("DMY")),
            "RESET datestyle;SET \"datestyle\" TO 'DMY';"
        );
    }

    #[test]
    fn session_authorization_takes_the_role_with_it() {
        let mut session = settings(&[]);
        session.set("role", "'app'");
        session.commit();
        session.set("session_authorization", "'other'");
        assert_eq!(session.get("role"), Some("'none'"));
        session.roll_back();
        assert_eq!(session.get("role"), Some("'app'"));
        session.reset("session_authorization");
        session.commit();
        assert_eq!(session.get("role"), None);
    }

    #[test]
    fn only_settings_of_the_server_are_harmless_by_their_prefix() {
        assert!(is_harmless("log_statement"));
        assert!(!is_harmless("log_of.app"));
    }

    #[test]
    fn reset_all_keeps_the_role() {
        let mut session = settings(&[]);
        session.set("role", "'app'");
        session.set("datestyle", "'ISO'");
        session.commit();
        session.reset_all();
        session.commit();
        assert_eq!(session.get("role"), Some("'app'"));
        assert_eq!(session.get("datestyle"), None);
    }

    #[test]
    fn transition_sends_only_the_difference_and_the_role_last() {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(n, v)| ((*n).into(), (*v).into()))
                .collect::<SettingMap>()
        };
        let from = Effective::new(map(&[("a", "1"), ("b", "2"), ("role", "'x'")]));
        let to = Effective::new(map(&[("b", "3"), ("c", "4"), ("role", "'y'")]));
        assert_eq!(
            from.transition(&to),
            "RESET role;RESET \"a\";SET \"b\" TO 3;SET \"c\" TO 4;SET role TO 'y';"
        );
        assert_eq!(from.transition(&from), "");
    }

    #[test]
    fn scopes_differ_where_settings_do_and_not_for_harmless_ones() {
        let plain = settings(&[]).scope("db", "u");
        assert_ne!(plain, settings(&[("TimeZone", "UTC")]).scope("db", "u"));
        assert_eq!(
            plain,
            settings(&[("application_name", "psql")]).scope("db", "u")
        );
        assert_ne!(
            settings(&[]).scope("a", "bc"),
            settings(&[]).scope("ab", "c")
        );
    }

    #[test]
    fn startup_search_path_is_a_list_of_folded_names() {
        let session = settings(&[("search_path", "App, \"Odd, Name\" , public")]);
        assert_eq!(
            session.get("search_path"),
            Some("'app', 'Odd, Name', 'public'")
        );
    }
}
