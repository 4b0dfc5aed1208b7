//! What a statement means to the gateway: may its answer be kept, what does it read, what does it
//! change, and what does it leave behind in its session.
//!
//! The text is parsed with PostgreSQL's own grammar and its names are resolved against a [`Catalog`]
//! read from the server. Everything here **fails closed**: a construct that is not known to be
//! harmless is not cacheable, and a write whose reach is not known counts as a write to everything.
//! Nothing in this module does I/O.
//!
//! One mistake is worse than all others, namely to call an answer cacheable and to miss a relation
//! that it depends on. So dependencies are always over-estimated, never guessed:
//! * an unqualified name stands for *every* relation of that name along the search path, because the
//!   server skips schemas that the role may not use, and we do not model privileges;
//! * a table stands for its whole inheritance or partition tree;
//! * a function name stands for all its overloads, because argument types are not inferred;
//! * a table that is read by its whole primary key stands for that row ([`Rows`]); however else it occurs, for all.

mod by_key;
mod calls;
mod catalog;
mod datetime;
mod ddl;
mod functions;
mod names;
mod reason;
mod rows;
mod settings;
mod spots;
mod sql_json;
mod statement;
mod time_casts;
mod walk;
mod write;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod row_tests;
#[cfg(test)]
mod tests;

pub mod explain;
pub mod memo;
pub mod skeleton;

pub use catalog::{Catalog, CatalogError};
pub use datetime::mentions_now;
pub(crate) use ddl::{concerns_all_databases, makes_no_event_trigger};
pub use names::{NameScope, split_identifiers};
pub use reason::{FunctionRefusal, Refusal, Unbounded};
pub use rows::{EncodedKey, Parameters, RowKey, Rows, Values};
pub use settings::{quote_literal, quote_setting_name, value_items};
pub(crate) use spots::{Action, SpotKind, names_spoken_of, spots};

use smallvec::SmallVec;

/// Classifies `sql`, which may hold several statements, against `catalog` as seen by `scope`.
#[must_use]
pub fn classify(sql: &str, catalog: &Catalog, scope: &NameScope) -> Class {
    statement::classify(sql, Some(catalog), scope)
}

/// Classifies `sql` when no catalog can be relied on: it is not loaded yet, or the transaction holds
/// DDL that is not committed.
///
/// Effects are known as far as the text alone shows them; nothing is cacheable, and whatever could
/// write counts as a write to everything.
#[must_use]
pub fn classify_without_catalog(sql: &str, scope: &NameScope) -> Class {
    statement::classify(sql, None, scope)
}

/// Whether the meaning of a parameter value of this type follows from the value and the settings.
///
/// Not so for the types that [`classify`] refuses as the target of a cast: `timetz`, whose zone may
/// stand for today's offset (nor for `time`, which turns into it unasked), and the `reg*` types and `aclitem`, which are names of what the catalogs
/// hold. A statement bound with a parameter declared as one of these, or as an array of one, must not
/// be answered from memory.
#[must_use]
pub fn is_pure_parameter_type(oid: u32) -> bool {
    !matches!(
        oid,
        24 | 1008 // regproc
            | 1033 | 1034 // aclitem
            | 1083 | 1183 // time
            | 1266 | 1270 // timetz
            | 2202 | 2207 // regprocedure
            | 2203 | 2208 // regoper
            | 2204 | 2209 // regoperator
            | 2205 | 2210 // regclass
            | 2206 | 2211 // regtype
            | 3734 | 3735 // regconfig
            | 3769 | 3770 // regdictionary
            | 4089 | 4090 // regnamespace
            | 4096 | 4097 // regrole
            | 4191 | 4192 // regcollation
    )
}

/// What a statement text means.
///
/// The default is that of a text whose statements were not run.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Class {
    /// One entry a statement, in order; none for an empty text.
    pub statements: SmallVec<[Statement; 1]>,
    /// Whether PostgreSQL's grammar accepts the text. If not, `statements` holds one entry that
    /// assumes the worst, because the server's grammar may be newer than ours.
    pub parsed: bool,
    /// A hash of what all texts have in common that a [`memo::ClassMemo`] gives this class; 0 where it is of no memo. Texts of
    /// one shape differ at the most in their literals.
    pub shape: u64,
    /// It is one statement that reads and does nothing else, and that names no prepared one: there is nothing to look for in it
    /// before it is sent, nor when it is done.
    is_plain: bool,
}

impl Class {
    fn new(statements: SmallVec<[Statement; 1]>, parsed: bool) -> Self {
        let is_plain = match statements.as_slice() {
            [one] => one.tag == "SELECT" && one.write == Write::None && one.effects.is_empty(),
            _ => false,
        };
        Self {
            statements,
            parsed,
            shape: 0,
            is_plain,
        }
    }

    /// See [`is_plain`](Self::is_plain).
    pub(crate) fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// The same, with other effects or writes.
    pub(crate) fn altered(&self, alter: impl FnOnce(&mut [Statement])) -> Self {
        let mut statements = self.statements.clone();
        alter(&mut statements);
        Self {
            shape: self.shape,
            ..Self::new(statements, self.parsed)
        }
    }

    /// The one statement of this text if its answer may be cached.
    #[must_use]
    pub fn cacheable(&self) -> Option<&[Relation]> {
        match self.statements.as_slice() {
            [statement] => match &statement.read {
                Read::Cacheable(relations)
                    if statement.write == Write::None && statement.effects.is_empty() =>
                {
                    Some(relations)
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// True if a catalog would say no more than the text does: it holds DDL alone, as long as there are no event triggers
    /// that run with it, or nothing that the grammar accepts.
    #[must_use]
    pub fn is_told_by_text(&self) -> bool {
        let is_told = |statement: &Statement| {
            let is_plain =
                |effect: &Effect| matches!(effect, Effect::Ddl | Effect::Temp | Effect::Vacate(_));
            matches!(statement.write, Write::Everything(Unbounded::Ddl(_)))
                && statement.effects.iter().all(is_plain)
        };
        !self.parsed || !self.statements.is_empty() && self.statements.iter().all(is_told)
    }

    /// An estimate of the heap and inline bytes this value holds, for byte-bounded maps.
    #[must_use]
    pub fn weight(&self) -> usize {
        size_of::<Self>() + self.statements.iter().map(Statement::weight).sum::<usize>()
    }
}

/// What one statement means.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Statement {
    /// The kind of statement in PostgreSQL's words (`SELECT`, `CREATE TABLE`), for statistics.
    pub tag: &'static str,
    /// Whether its answer may be kept, and what the answer depends on.
    pub read: Read,
    /// What it may change.
    pub write: Write,
    /// What it does to its session or transaction, in order.
    pub effects: SmallVec<[Effect; 1]>,
}

/// Whether an answer may be kept.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Read {
    /// It depends on nothing but the key (text, parameters, settings, role) and these relations.
    Cacheable(Box<[Relation]>),
    /// It must come from the server.
    Refused(Refusal),
}

/// What a statement may change.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Write {
    /// No relation that a cached answer can depend on.
    None,
    /// At most these relations, foreign-key actions included.
    Relations(Box<[Relation]>),
    /// Possibly anything.
    Everything(Unbounded),
}

/// A relation that an answer depends on or that a write touches.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Relation {
    /// Object identifier of the root of its inheritance or partition tree: one key for the whole
    /// tree, so that a write to a partition meets a read of its parent and the other way round.
    pub key: u32,
    /// `schema.name`, for people.
    pub name: Box<str>,
    /// Whether logical decoding shows every change to it. It does not for materialised views, and
    /// for trees with an unlogged member.
    pub decoded: bool,
    /// Which of its rows.
    pub rows: Rows,
}

/// Isolation level of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "the SQL standard knows these four and no others"
)]
pub enum Isolation {
    /// Runs as `READ COMMITTED` in PostgreSQL.
    ReadUncommitted,
    /// Each statement sees what was committed before it began.
    ReadCommitted,
    /// All statements see one snapshot.
    RepeatableRead,
    /// One snapshot, and as if transactions ran one after the other.
    Serializable,
}

/// Modes named by `BEGIN`, `START TRANSACTION` or `SET TRANSACTION`; `None` where not named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransactionModes {
    /// `ISOLATION LEVEL ..`
    pub isolation: Option<Isolation>,
    /// `READ ONLY` (true) or `READ WRITE` (false).
    pub read_only: Option<bool>,
    /// `DEFERRABLE` (true) or `NOT DEFERRABLE` (false).
    pub deferrable: Option<bool>,
}

/// What a statement does to its session or transaction.
///
/// Names are as the server knows them: folded to lower case unless quoted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effect {
    /// A session-level advisory lock may be held from here on.
    AdvisoryLock,
    /// All session-level advisory locks are released.
    AdvisoryUnlockAll,
    /// `BEGIN` or `START TRANSACTION`.
    Begin(TransactionModes),
    /// `CLOSE name`.
    Close(String),
    /// `CLOSE ALL`.
    CloseAll,
    /// `COMMIT` or `END`; with `chain` a new transaction begins at once.
    Commit {
        /// `AND CHAIN`.
        chain: bool,
    },
    /// The schema, its privileges or the server's configuration may change: drop what was learnt
    /// when it commits, and classify without a catalog until then.
    Ddl,
    /// `DEALLOCATE name`; `None` is `DEALLOCATE ALL`.
    Deallocate(Option<String>),
    /// `DISCARD ALL`.
    DiscardAll,
    /// `DISCARD PLANS`.
    DiscardPlans,
    /// `DISCARD TEMP`.
    DiscardTemp,
    /// `EXECUTE name`.
    Execute(String),
    /// `DECLARE name CURSOR WITH HOLD`.
    HoldCursor(String),
    /// `LISTEN channel`.
    Listen(String),
    /// `LOAD`: a library stays in the server process for good.
    Load,
    /// SQL-level `PREPARE name`. Effects that executing it could have are reported with it.
    Prepare(String),
    /// `PREPARE TRANSACTION 'gid'`.
    PrepareTransaction(String),
    /// `currval()` or `lastval()`: what it gives belongs to the server session in which the sequence was used.
    ReadSequence,
    /// `RELEASE [SAVEPOINT] name`.
    Release(String),
    /// `RESET name`.
    Reset(String),
    /// `RESET ALL`.
    ResetAll,
    /// `ROLLBACK` or `ABORT`; with `chain` a new transaction begins at once.
    Rollback {
        /// `AND CHAIN`.
        chain: bool,
    },
    /// `ROLLBACK TO [SAVEPOINT] name`.
    RollbackTo(String),
    /// `SAVEPOINT name`.
    Savepoint(String),
    /// A setting takes a value.
    Set {
        /// Name of the setting in lower case.
        name: String,
        /// `DEFAULT`, or a list of literals that means the same under every session setting:
        /// `SET <quote_setting_name(name)> TO <value>` repeats the effect.
        value: String,
        /// `SET LOCAL`: gone at the end of the transaction.
        local: bool,
    },
    /// `SET TRANSACTION` or a SET of one of the `transaction_*` settings: the current transaction
    /// only. The modes hold what was named with a constant.
    SetTransaction(TransactionModes),
    /// Session settings may have changed in a way that cannot be told from the text.
    SettingsUnknown(Unbounded),
    /// A temporary object may exist from here on.
    Temp,
    /// `COMMIT PREPARED 'gid'` or `ROLLBACK PREPARED 'gid'`.
    TwoPhaseEnd {
        /// The transaction's name.
        gid: String,
        /// Whether it commits.
        commit: bool,
    },
    /// `UNLISTEN channel`; `None` is `UNLISTEN *`.
    Unlisten(Option<String>),
    /// The server does it only while nobody else is in the database of this name.
    Vacate(String),
}
