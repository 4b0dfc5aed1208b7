//! What `helios explain` prints: the class of a text in words.

use std::fmt::{self, Display, Write as _};

use super::{Class, Effect, NameScope, Read, Relation, Rows, Statement, Write};

/// Explains `class`, the class of `sql` as seen by `scope`.
#[must_use]
pub fn explain(sql: &str, class: &Class, scope: &NameScope) -> String {
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = write!(text, "{}", Explanation { sql, class, scope });
    text
}

struct Explanation<'a> {
    sql: &'a str,
    class: &'a Class,
    scope: &'a NameScope,
}

impl Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "statement:    {}", self.sql.trim())?;
        writeln!(f, "role:         {}", self.scope.user)?;
        writeln!(f, "search_path:  {}", self.scope.search_path.join(", "))?;
        if !self.class.parsed {
            writeln!(f, "parsed:       no; the worst is assumed")?;
        }
        match self.class.statements.len() {
            0 => writeln!(f, "an empty text"),
            1 => self
                .class
                .statements
                .iter()
                .try_for_each(|one| statement(f, one)),
            _ => self
                .class
                .statements
                .iter()
                .enumerate()
                .try_for_each(|(at, one)| {
                    writeln!(f, "-- {}", at + 1)?;
                    statement(f, one)
                }),
        }
    }
}

fn statement(f: &mut fmt::Formatter<'_>, statement: &Statement) -> fmt::Result {
    writeln!(f, "kind:         {}", statement.tag)?;
    match &statement.read {
        Read::Cacheable(on) if on.is_empty() => {
            writeln!(f, "cacheable:    yes, for good: it depends on no table")?;
        }
        Read::Cacheable(on) => {
            writeln!(f, "cacheable:    yes")?;
            writeln!(f, "depends on:   {}", parts(on))?;
        }
        Read::Refused(why) => writeln!(f, "cacheable:    no: {why} [{}]", why.label())?,
    }
    match &statement.write {
        Write::None => writeln!(f, "writes:       nothing that is cached")?,
        Write::Relations(to) => writeln!(f, "writes:       {}", parts(to))?,
        Write::Everything(why) => {
            writeln!(f, "writes:       perhaps anything: {why} [{}]", why.label())?;
        }
    }
    statement
        .effects
        .iter()
        .try_for_each(|effect| writeln!(f, "effect:       {}", describe(effect)))
}

/// The relations, or what is touched of them.
fn parts(relations: &[Relation]) -> String {
    let parts: Vec<String> = relations
        .iter()
        .map(|Relation { name, rows, .. }| match rows {
            Rows::All => name.to_string(),
            Rows::Found(_) => format!("row of {name} by primary key"),
            Rows::Keys(keys) if keys.len() == 1 => format!("row of {name} by primary key"),
            Rows::Keys(keys) => format!("{} rows of {name} by primary key", keys.len()),
            Rows::New(_) => format!("new rows of {name}"),
        })
        .collect();
    parts.join(", ")
}

fn describe(effect: &Effect) -> String {
    match effect {
        Effect::AdvisoryLock => "takes a session-level advisory lock".to_owned(),
        Effect::AdvisoryUnlockAll => "releases all session-level advisory locks".to_owned(),
        Effect::Begin(_) => "begins a transaction".to_owned(),
        Effect::Close(name) => format!("closes cursor {name}"),
        Effect::CloseAll => "closes all cursors".to_owned(),
        Effect::Commit { .. } => "ends the transaction".to_owned(),
        Effect::Ddl => "may change the schema: what was learnt is dropped".to_owned(),
        Effect::Deallocate(Some(name)) => format!("forgets prepared statement {name}"),
        Effect::Deallocate(None) => "forgets all prepared statements".to_owned(),
        Effect::DiscardAll => "resets the session".to_owned(),
        Effect::DiscardPlans => "drops plans".to_owned(),
        Effect::DiscardTemp => "drops temporary tables".to_owned(),
        Effect::Execute(name) => format!("runs prepared statement {name}"),
        Effect::HoldCursor(name) => format!("leaves cursor {name} open beyond its transaction"),
        Effect::Listen(channel) => format!("subscribes to notifications of {channel}"),
        Effect::Load => "loads a library into the server process".to_owned(),
        Effect::Prepare(name) => format!("prepares statement {name}"),
        Effect::PrepareTransaction(gid) => format!("prepares transaction {gid}"),
        Effect::ReadSequence => "asks for the last value of a sequence".to_owned(),
        Effect::Release(name) => format!("releases savepoint {name}"),
        Effect::Reset(name) => format!("resets {name}"),
        Effect::ResetAll => "resets all settings".to_owned(),
        Effect::Rollback { .. } => "rolls the transaction back".to_owned(),
        Effect::RollbackTo(name) => format!("rolls back to savepoint {name}"),
        Effect::Savepoint(name) => format!("sets savepoint {name}"),
        Effect::Set { name, value, local } => {
            let until = if *local {
                " until the transaction ends"
            } else {
                ""
            };
            format!("sets {name} to {value}{until}")
        }
        Effect::SetTransaction(_) => "sets the mode of this transaction".to_owned(),
        Effect::SettingsUnknown(why) => {
            format!(
                "may change settings unseen: {why} [{}]; the session keeps its connection",
                why.label()
            )
        }
        Effect::Temp => "creates something temporary; the session keeps its connection".to_owned(),
        Effect::TwoPhaseEnd { gid, commit } => {
            format!(
                "{} prepared transaction {gid}",
                if *commit { "commits" } else { "rolls back" }
            )
        }
        Effect::Unlisten(Some(channel)) => format!("unsubscribes from notifications of {channel}"),
        Effect::Unlisten(None) => "unsubscribes from all notifications".to_owned(),
        Effect::Vacate(name) => format!("needs database {name} for itself"),
    }
}
