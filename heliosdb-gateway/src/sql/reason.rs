//! Why an answer is not kept, and why a write has no bound: in words for a database administrator
//! and as short stable labels for metrics.

use std::fmt;

/// Why the answer to a statement must come from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// A column of a type whose text depends on more than the value.
    ColumnType(Box<str>),
    /// INSERT, UPDATE, DELETE or MERGE inside WITH.
    DataModifyingWith,
    /// A text that is neither ASCII nor in an encoding we can read.
    Encoding,
    /// A foreign table, or a tree with one in it.
    ForeignTable(Box<str>),
    /// A function whose result can depend on more than the key and the tables.
    Function {
        /// As written, less its arguments.
        name: Box<str>,
        /// What is wrong with it.
        why: FunctionRefusal,
    },
    /// FOR UPDATE and its weaker forms.
    LockingClause,
    /// The catalog is not loaded, or this transaction or text has changed it.
    NoCatalog,
    /// Not a SELECT, VALUES or TABLE statement.
    NotSelect(&'static str),
    /// An operator that somebody has (re)defined with a function we can't vouch for.
    Operator(Box<str>),
    /// Row-level security: the answer depends on policies.
    RowSecurity(Box<str>),
    /// SELECT INTO.
    SelectInto,
    /// A sequence read as a table.
    Sequence(Box<str>),
    /// More than one statement in the text.
    Several,
    /// A system catalog or a view over one.
    SystemCatalog(Box<str>),
    /// A system column that changes without a write: where a row lies, who locks it.
    SystemColumn(&'static str),
    /// TABLESAMPLE.
    TableSample,
    /// A relation of `pg_temp`.
    Temporary(Box<str>),
    /// Text that is not a constant becomes a date or time; it could say `now`.
    TextToTime,
    /// A literal says `now`, `today`, `tomorrow` or `yesterday`.
    TimeWord(&'static str),
    /// A cast to a type whose input depends on more than the text.
    Type(Box<str>),
    /// Nothing by this name is a function that the session can see.
    UnknownFunction(Box<str>),
    /// Nothing by this name is a relation that the session can see.
    UnknownRelation(Box<str>),
    /// The grammar rejects the text.
    Unparsed,
    /// A construct this classifier does not vouch for.
    Unsupported(&'static str),
    /// The database has casts of its own that run code we can't vouch for.
    UserCast,
    /// `CURRENT_DATE`, `CURRENT_USER` and their like.
    ValueFunction(&'static str),
    /// A view whose own query is refused.
    View {
        /// The view.
        name: Box<str>,
        /// Why its query is refused.
        reason: Box<Self>,
    },
}

/// What is wrong with a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FunctionRefusal {
    /// IMMUTABLE by its catalog entry, but its result follows from the server's state.
    Impure,
    /// A built-in that is STABLE and not on the checked list.
    Stable,
    /// Not built in, and not an IMMUTABLE function in C of an extension.
    User,
    /// VOLATILE.
    Volatile,
}

impl Refusal {
    /// A short name that never changes, for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::ColumnType(_) => "column_type",
            Self::DataModifyingWith => "data_modifying_with",
            Self::Encoding => "encoding",
            Self::ForeignTable(_) => "foreign_table",
            Self::Function { .. } => "function",
            Self::LockingClause => "locking_clause",
            Self::NoCatalog => "no_catalog",
            Self::NotSelect(_) => "not_select",
            Self::Operator(_) => "operator",
            Self::RowSecurity(_) => "row_security",
            Self::SelectInto => "select_into",
            Self::Sequence(_) => "sequence",
            Self::Several => "several_statements",
            Self::SystemCatalog(_) => "system_catalog",
            Self::SystemColumn(_) => "system_column",
            Self::TableSample => "tablesample",
            Self::Temporary(_) => "temporary",
            Self::TextToTime => "text_to_time",
            Self::TimeWord(_) => "time_word",
            Self::Type(_) => "type",
            Self::UnknownFunction(_) => "unknown_function",
            Self::UnknownRelation(_) => "unknown_relation",
            Self::Unparsed => "unparsed",
            Self::Unsupported(_) => "unsupported",
            Self::UserCast => "user_cast",
            Self::ValueFunction(_) => "value_function",
            Self::View { reason, .. } => reason.label(),
        }
    }

    /// Bytes held on the heap.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::ColumnType(name)
            | Self::ForeignTable(name)
            | Self::Function { name, .. }
            | Self::Operator(name)
            | Self::RowSecurity(name)
            | Self::Sequence(name)
            | Self::SystemCatalog(name)
            | Self::Temporary(name)
            | Self::Type(name)
            | Self::UnknownFunction(name)
            | Self::UnknownRelation(name) => name.len(),
            Self::View { name, reason } => name.len() + size_of::<Self>() + reason.weight(),
            _ => 0,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ColumnType(name) => write!(
                f,
                "table {name} has a column of a reg* type, aclitem or timetz, whose text depends on more than its value"
            ),
            Self::DataModifyingWith => f.write_str("data-modifying WITH"),
            Self::Encoding => f.write_str("text is not ASCII and client_encoding is not UTF8"),
            Self::ForeignTable(name) => write!(f, "{name} is, or contains, a foreign table"),
            Self::Function { name, why } => match why {
                FunctionRefusal::Impure => write!(
                    f,
                    "function {name}() is declared IMMUTABLE but reads the server's state"
                ),
                FunctionRefusal::Stable => {
                    write!(f, "function {name}() is STABLE and not on the checked list")
                }
                FunctionRefusal::User => write!(
                    f,
                    "function {name}() is user-defined: what it reads is not known"
                ),
                FunctionRefusal::Volatile => write!(f, "function {name}() is VOLATILE"),
            },
            Self::LockingClause => f.write_str("locking clause"),
            Self::NoCatalog => f.write_str(
                "the schema is not loaded, or changed earlier in this transaction or text",
            ),
            Self::NotSelect(tag) => write!(f, "{tag} is not a SELECT, VALUES or TABLE statement"),
            Self::Operator(name) => write!(
                f,
                "operator {name} has a user-defined variant: what it reads is not known"
            ),
            Self::RowSecurity(name) => write!(f, "table {name} has row-level security"),
            Self::SelectInto => f.write_str("SELECT INTO creates a table"),
            Self::Sequence(name) => write!(f, "{name} is a sequence"),
            Self::Several => f.write_str("several statements in one text"),
            Self::SystemCatalog(name) => write!(f, "{name} is a system catalog"),
            Self::SystemColumn(name) => write!(f, "{name} changes without a write"),
            Self::TableSample => f.write_str("TABLESAMPLE"),
            Self::Temporary(name) => write!(f, "{name} is temporary"),
            Self::TextToTime => f.write_str(
                "text that is not a constant is turned into a date or time, and could say 'now'",
            ),
            Self::TimeWord(word) => write!(f, "a literal says '{word}'"),
            Self::Type(name) => write!(
                f,
                "type {name} is user-defined or unknown, or its input depends on more than the text"
            ),
            Self::UnknownFunction(name) => write!(f, "function {name}() is not known"),
            Self::UnknownRelation(name) => write!(f, "relation {name} is not known"),
            Self::Unparsed => f.write_str("the statement could not be parsed"),
            Self::Unsupported(what) => write!(f, "{what} is not supported"),
            Self::UserCast => {
                f.write_str("the database has an implicit cast that runs user-defined code")
            }
            Self::ValueFunction(name) => write!(f, "{name} depends on time or session"),
            Self::View { name, reason } => write!(f, "view {name}: {reason}"),
        }
    }
}

/// Why a statement may write to, or change, more than its text shows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unbounded {
    /// CALL or DO.
    Code(&'static str),
    /// Schema or configuration change.
    Ddl(&'static str),
    /// A text that is neither ASCII nor in an encoding we can read.
    Encoding,
    /// The database has event triggers, which run with this command.
    EventTrigger,
    /// EXECUTE of a statement prepared with SQL.
    Execute(Box<str>),
    /// A foreign table: the change happens elsewhere, perhaps in this very database.
    ForeignTable(Box<str>),
    /// A cast or domain of this database runs volatile user code.
    HiddenCode,
    /// The catalog is not loaded, or this transaction or text has changed it.
    NoCatalog,
    /// A volatile operator.
    Operator(Box<str>),
    /// A rule rewrites writes to this relation.
    Rule(Box<str>),
    /// A built-in function that runs SQL given as text, or otherwise reaches everything.
    ServerFunction(Box<str>),
    /// `set_config` other than alone, at the top level and with constants; or a SET of a form that
    /// can't be repeated.
    Setting(Box<str>),
    /// A system catalog is written to directly.
    SystemCatalog(Box<str>),
    /// A column default, check or policy of this table calls a volatile user function.
    TableCode(Box<str>),
    /// A user trigger fires on this table.
    Trigger(Box<str>),
    /// A transaction prepared earlier, perhaps elsewhere, is committed.
    TwoPhase,
    /// Nothing by this name is a function that the session can see.
    UnknownFunction(Box<str>),
    /// Nothing by this name is a relation (or one that can be written) that the session can see.
    UnknownRelation(Box<str>),
    /// The grammar rejects the text.
    Unparsed,
    /// A construct this classifier does not know.
    Unsupported(&'static str),
    /// A volatile function that is not built in.
    UserFunction(Box<str>),
}

impl Unbounded {
    /// A short name that never changes, for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Code(_) => "code",
            Self::Ddl(_) => "ddl",
            Self::Encoding => "encoding",
            Self::EventTrigger => "event_trigger",
            Self::Execute(_) => "execute",
            Self::ForeignTable(_) => "foreign_table",
            Self::HiddenCode => "hidden_code",
            Self::NoCatalog => "no_catalog",
            Self::Operator(_) => "operator",
            Self::Rule(_) => "rule",
            Self::ServerFunction(_) => "server_function",
            Self::Setting(_) => "setting",
            Self::SystemCatalog(_) => "system_catalog",
            Self::TableCode(_) => "table_code",
            Self::Trigger(_) => "trigger",
            Self::TwoPhase => "two_phase",
            Self::UnknownFunction(_) => "unknown_function",
            Self::UnknownRelation(_) => "unknown_relation",
            Self::Unparsed => "unparsed",
            Self::Unsupported(_) => "unsupported",
            Self::UserFunction(_) => "user_function",
        }
    }

    /// Bytes held on the heap.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Execute(name)
            | Self::ForeignTable(name)
            | Self::Operator(name)
            | Self::Rule(name)
            | Self::ServerFunction(name)
            | Self::Setting(name)
            | Self::SystemCatalog(name)
            | Self::TableCode(name)
            | Self::Trigger(name)
            | Self::UnknownFunction(name)
            | Self::UnknownRelation(name)
            | Self::UserFunction(name) => name.len(),
            _ => 0,
        }
    }
}

impl fmt::Display for Unbounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(tag) => write!(f, "{tag} runs code"),
            Self::Ddl(tag) => write!(f, "{tag} may change the schema or the configuration"),
            Self::Encoding => f.write_str("text is not ASCII and client_encoding is not UTF8"),
            Self::EventTrigger => f.write_str("the database has event triggers"),
            Self::Execute(name) => write!(f, "EXECUTE {name} runs a statement prepared earlier"),
            Self::ForeignTable(name) => write!(f, "{name} is, or contains, a foreign table"),
            Self::HiddenCode => f.write_str(
                "a cast or domain of this database runs a volatile user-defined function",
            ),
            Self::NoCatalog => f.write_str(
                "the schema is not loaded, or changed earlier in this transaction or text",
            ),
            Self::Operator(name) => write!(f, "operator {name} runs user-defined code"),
            Self::Rule(name) => write!(f, "{name} has a rule that rewrites writes"),
            Self::ServerFunction(name) => write!(f, "function {name}() can reach any table"),
            Self::Setting(name) => write!(f, "the new value of {name} can't be told from the text"),
            Self::SystemCatalog(name) => write!(f, "{name} is a system catalog"),
            Self::TableCode(name) => write!(
                f,
                "a default, check or policy of {name} calls a volatile user-defined function"
            ),
            Self::Trigger(name) => write!(f, "{name} has triggers"),
            Self::TwoPhase => f.write_str("a transaction prepared earlier commits"),
            Self::UnknownFunction(name) => write!(f, "function {name}() is not known"),
            Self::UnknownRelation(name) => write!(f, "relation {name} is not known"),
            Self::Unparsed => f.write_str("the statement could not be parsed"),
            Self::Unsupported(what) => write!(f, "{what} is not supported"),
            Self::UserFunction(name) => {
                write!(f, "function {name}() is VOLATILE and user-defined")
            }
        }
    }
}
