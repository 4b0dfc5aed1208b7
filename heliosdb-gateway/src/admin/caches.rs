//! `CREATE CACHE` and `DROP CACHE`.

use std::time::Duration;

use pg_query::ParserOptions;

use crate::error::{ClientError, ErrorKind};
use crate::gateway::Gateway;
use crate::level::AgeBound;
use crate::policies::PolicyError;

const SYNTAX: &str = "CREATE CACHE [name] POLICY TTL <n> SECONDS [STALE <n> SECONDS] FROM <select>";

/// What `CREATE CACHE` asks for.
#[derive(Debug, PartialEq, Eq)]
struct Request<'s> {
    name: Option<&'s str>,
    bound: AgeBound,
    select: &'s str,
}

pub(super) fn create(gateway: &Gateway, statement: &str) -> Result<(), ClientError> {
    let Request {
        name,
        bound,
        select,
    } = parse(statement)?;
    let is_select = pg_query::parse(select, ParserOptions::DEFAULT).is_ok_and(|parsed| {
        matches!(
            parsed.protobuf.stmts.as_slice(),
            [only] if matches!(
                only.stmt.as_ref().and_then(|node| node.node.as_ref()),
                Some(pg_query::NodeEnum::SelectStmt(_))
            )
        )
    });
    if !is_select {
        return Err(syntax("behind FROM there must be one SELECT"));
    }
    let made = gateway
        .policies
        .create(name.map(str::to_owned), select, bound);
    made.map(drop).map_err(|error| {
        let sqlstate = match &error {
            PolicyError::NameTaken(_) | PolicyError::StatementTaken(_) => "42710",
            PolicyError::TooLong | PolicyError::TooMany => "54000",
        };
        ClientError::new(ErrorKind::Client, sqlstate, error.to_string())
            .hint("SHOW CACHES lists them; DROP CACHE <name> undoes one.")
    })
}

pub(super) fn drop_named(gateway: &Gateway, statement: &str) -> Result<(), ClientError> {
    let name = statement.split_whitespace().nth(2).unwrap_or_default();
    if gateway.policies.drop_named(name) {
        return Ok(());
    }
    Err(ClientError::new(
        ErrorKind::Client,
        "42704",
        format!("cache \"{name}\" does not exist"),
    ))
}

fn parse(statement: &str) -> Result<Request<'_>, ClientError> {
    let mut rest = statement;
    let mut word = || {
        let text = rest.trim_start();
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        let (word, behind) = text.split_at(end);
        rest = behind;
        word
    };
    let is = |word: &str, known: &str| word.eq_ignore_ascii_case(known);
    let (_create, _cache) = (word(), word());
    let mut next = word();
    let mut name = None;
    if !is(next, "POLICY") && !is(next, "FROM") {
        name = Some(next);
        next = word();
    }
    if !is(next, "POLICY") || !is(word(), "TTL") {
        return Err(syntax("POLICY TTL is missing: how old may an answer be?"));
    }
    let ttl = seconds(word(), word())?;
    let mut stale = Duration::ZERO;
    next = word();
    if is(next, "STALE") {
        stale = seconds(word(), word())?;
        next = word();
    }
    if !is(next, "FROM") {
        return Err(syntax("FROM is missing"));
    }
    let bound =
        AgeBound::new(ttl, stale).ok_or_else(|| syntax("TTL goes from 1 second to 49 days"))?;
    Ok(Request {
        name,
        bound,
        select: rest.trim(),
    })
}

fn seconds(number: &str, unit: &str) -> Result<Duration, ClientError> {
    let unit = match unit.to_ascii_uppercase().as_str() {
        "SECOND" | "SECONDS" => 1,
        "MINUTE" | "MINUTES" => 60,
        "HOUR" | "HOURS" => 3600,
        _ => return Err(syntax("a time is a number and SECONDS, MINUTES or HOURS")),
    };
    number
        .parse::<u32>()
        .map(|number| Duration::from_secs(u64::from(number) * unit))
        .map_err(|_| syntax("a time is a number and SECONDS, MINUTES or HOURS"))
}

fn syntax(what: &str) -> ClientError {
    ClientError::new(ErrorKind::Client, "42601", what).hint(format!("The syntax is {SYNTAX}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_syntax_is_read() {
        let bound = |ttl, stale| {
            AgeBound::new(Duration::from_secs(ttl), Duration::from_secs(stale)).expect("in range")
        };
        let named = parse("create cache top policy ttl 30 seconds from\n SELECT 1  FROM t");
        assert_eq!(
            named.ok(),
            Some(Request {
                name: Some("top"),
                bound: bound(30, 0),
                select: "SELECT 1  FROM t",
            })
        );
        let unnamed = parse("CREATE CACHE POLICY TTL 1 MINUTE STALE 1 HOUR FROM TABLE t");
        assert_eq!(
            unnamed.map(|request| (request.name, request.bound)).ok(),
            Some((None, bound(60, 3600)))
        );
        for wrong in [
            "CREATE CACHE",
            "CREATE CACHE FROM SELECT 1",
            "CREATE CACHE POLICY TTL x SECONDS FROM SELECT 1",
            "CREATE CACHE POLICY TTL 1 PARSEC FROM SELECT 1",
            "CREATE CACHE POLICY TTL 0 SECONDS FROM SELECT 1",
            "CREATE CACHE POLICY TTL 5 SECONDS SELECT 1",
        ] {
            let error = parse(wrong).expect_err(wrong);
            assert_eq!(error.sqlstate, "42601", "{wrong}");
        }
    }
}
