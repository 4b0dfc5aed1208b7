//! The statements that are known to be DDL and nothing else.

use pg_query::NodeEnum;
use pg_query::protobuf::{Node, ObjectType};

/// The name of a statement that changes the schema, privileges or configuration; `None` for any other,
/// and for one that this classifier has never heard of.
pub(super) fn ddl_tag(statement: &NodeEnum) -> Option<&'static str> {
    if let Some(tag) = cluster_tag(statement) {
        return Some(tag);
    }
    let tag = match statement {
        NodeEnum::AlterCollationStmt(_)
        | NodeEnum::AlterDefaultPrivilegesStmt(_)
        | NodeEnum::AlterDomainStmt(_)
        | NodeEnum::AlterEnumStmt(_)
        | NodeEnum::AlterEventTrigStmt(_)
        | NodeEnum::AlterFdwStmt(_)
        | NodeEnum::AlterForeignServerStmt(_)
        | NodeEnum::AlterFunctionStmt(_)
        | NodeEnum::AlterObjectDependsStmt(_)
        | NodeEnum::AlterObjectSchemaStmt(_)
        | NodeEnum::AlterOpFamilyStmt(_)
        | NodeEnum::AlterOperatorStmt(_)
        | NodeEnum::AlterOwnerStmt(_)
        | NodeEnum::AlterPolicyStmt(_)
        | NodeEnum::AlterPublicationStmt(_)
        | NodeEnum::AlterSeqStmt(_)
        | NodeEnum::AlterStatsStmt(_)
        | NodeEnum::AlterSubscriptionStmt(_)
        | NodeEnum::AlterTableMoveAllStmt(_)
        | NodeEnum::AlterTableSpaceOptionsStmt(_)
        | NodeEnum::AlterTsconfigurationStmt(_)
        | NodeEnum::AlterTsdictionaryStmt(_)
        | NodeEnum::AlterTypeStmt(_)
        | NodeEnum::AlterUserMappingStmt(_)
        | NodeEnum::RenameStmt(_) => "ALTER",
        NodeEnum::AlterExtensionContentsStmt(_) | NodeEnum::AlterExtensionStmt(_) => {
            "ALTER EXTENSION"
        }
        NodeEnum::AlterTableStmt(_) => "ALTER TABLE",
        NodeEnum::CommentStmt(_) => "COMMENT",
        NodeEnum::CreateAmStmt(_)
        | NodeEnum::CreateCastStmt(_)
        | NodeEnum::CreateConversionStmt(_)
        | NodeEnum::CreateFdwStmt(_)
        | NodeEnum::CreateForeignServerStmt(_)
        | NodeEnum::CreateForeignTableStmt(_)
        | NodeEnum::CreateOpClassStmt(_)
        | NodeEnum::CreateOpFamilyStmt(_)
        | NodeEnum::CreatePlangStmt(_)
        | NodeEnum::CreatePolicyStmt(_)
        | NodeEnum::CreatePublicationStmt(_)
        | NodeEnum::CreateSchemaStmt(_)
        | NodeEnum::CreateStatsStmt(_)
        | NodeEnum::CreateSubscriptionStmt(_)
        | NodeEnum::CreateTableSpaceStmt(_)
        | NodeEnum::CreateTransformStmt(_)
        | NodeEnum::CreateTrigStmt(_)
        | NodeEnum::CreateUserMappingStmt(_)
        | NodeEnum::RuleStmt(_) => "CREATE",
        NodeEnum::CreateEventTrigStmt(_) => "CREATE EVENT TRIGGER",
        NodeEnum::CreateExtensionStmt(_) => "CREATE EXTENSION",
        NodeEnum::DropStmt(_)
        | NodeEnum::DropSubscriptionStmt(_)
        | NodeEnum::DropTableSpaceStmt(_)
        | NodeEnum::DropUserMappingStmt(_) => "DROP",
        NodeEnum::GrantStmt(_) => "GRANT",
        NodeEnum::ImportForeignSchemaStmt(_) => "IMPORT FOREIGN SCHEMA",
        NodeEnum::IndexStmt(_) => "CREATE INDEX",
        NodeEnum::SecLabelStmt(_) => "SECURITY LABEL",
        _ => return None,
    };
    Some(tag)
}

/// The name of a statement that changes what all databases of the server have in common: roles, who is a member of which,
/// what their sessions begin with, and which database a name stands for.
fn cluster_tag(statement: &NodeEnum) -> Option<&'static str> {
    let tag = match statement {
        NodeEnum::AlterDatabaseRefreshCollStmt(_)
        | NodeEnum::AlterDatabaseSetStmt(_)
        | NodeEnum::AlterDatabaseStmt(_) => "ALTER DATABASE",
        NodeEnum::AlterRoleSetStmt(_) | NodeEnum::AlterRoleStmt(_) => "ALTER ROLE",
        NodeEnum::AlterSystemStmt(_) => "ALTER SYSTEM",
        NodeEnum::CreateRoleStmt(_) => "CREATE ROLE",
        NodeEnum::CreatedbStmt(_) => "CREATE DATABASE",
        NodeEnum::DropOwnedStmt(_) => "DROP OWNED",
        NodeEnum::DropRoleStmt(_) => "DROP ROLE",
        NodeEnum::DropdbStmt(_) => "DROP DATABASE",
        NodeEnum::GrantRoleStmt(_) => "GRANT ROLE",
        NodeEnum::ReassignOwnedStmt(_) => "REASSIGN OWNED",
        NodeEnum::RenameStmt(rename) => match rename.rename_type() {
            ObjectType::ObjectDatabase => "ALTER DATABASE",
            ObjectType::ObjectRole => "ALTER ROLE",
            _ => return None,
        },
        _ => return None,
    };
    Some(tag)
}

/// The database that nobody else may be in while the server carries the statement out.
pub(super) fn vacates(statement: &NodeEnum) -> Option<String> {
    let option = |options: &[Node], name: &str| {
        let mut options = options.iter().filter_map(|option| match &option.node {
            Some(NodeEnum::DefElem(option)) => Some(option),
            _ => None,
        });
        options.find(|option| option.defname == name).cloned()
    };
    Some(match statement {
        NodeEnum::AlterDatabaseStmt(alter) => {
            option(&alter.options, "tablespace").map(|_| alter.dbname.clone())?
        }
        NodeEnum::CreatedbStmt(create) => match option(&create.options, "template") {
            None => TEMPLATE.to_owned(),
            Some(template) => match template.arg.and_then(|arg| arg.node) {
                Some(NodeEnum::String(name)) => name.sval,
                // DEFAULT.
                None => TEMPLATE.to_owned(),
                Some(_) => return None,
            },
        },
        NodeEnum::DropdbStmt(drop) => drop.dbname.clone(),
        NodeEnum::RenameStmt(rename) if rename.rename_type() == ObjectType::ObjectDatabase => {
            rename.subname.clone()
        }
        _ => return None,
    })
}

/// What a database is a copy of that is created without a word of it.
const TEMPLATE: &str = "template1";

/// Whether a statement that may change the schema may change that of other databases too, by its tag. A function with words
/// of DDL in it may do anything; a procedure is taken for one that does not, or each CALL would empty the cache for all.
pub(crate) fn concerns_all_databases(tag: &str) -> bool {
    let ends = |end: &str| tag.ends_with(end);
    ends(" DATABASE")
        || ends(" OWNED")
        || ends(" ROLE")
        || matches!(
            tag,
            "ALTER SYSTEM" | "COMMIT PREPARED" | "DO" | "SELECT" | "UNKNOWN"
        )
}

/// Whether a statement that may change the schema, by its tag, leaves a database without event triggers if it had none.
pub(crate) fn makes_no_event_trigger(tag: &str) -> bool {
    matches!(
        tag,
        "ALTER"
            | "ALTER TABLE"
            | "COMMENT"
            | "CREATE"
            | "CREATE DOMAIN"
            | "CREATE FUNCTION"
            | "CREATE INDEX"
            | "CREATE SEQUENCE"
            | "CREATE TABLE"
            | "CREATE TYPE"
            | "CREATE VIEW"
            | "DROP"
            | "GRANT"
            | "SECURITY LABEL"
    )
}
