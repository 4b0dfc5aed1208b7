//! Where a text names statements that were prepared earlier, or prepares one: what has to be replaced where the server
//! knows these statements by other names.

use std::ops::Range;

use pg_query::protobuf::{DiscardMode, Token};
use pg_query::{NodeEnum, ParserOptions};

use super::names::NameScope;

/// A place in a text that has to do with the names of prepared statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    /// Which statement of the text it is in.
    pub(crate) place: usize,
    /// Where that statement begins.
    pub(crate) start: usize,
    pub(crate) kind: SpotKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SpotKind {
    /// All names are forgotten (`DEALLOCATE ALL`, `DISCARD ALL`).
    ForgetAll,
    /// A statement is named.
    Named {
        name: String,
        /// The name's bytes in the text, quotes included.
        at: Range<usize>,
        action: Action,
    },
}

/// What is done to the statement that is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Deallocate,
    Execute,
    /// `PREPARE`.
    Prepare {
        /// What stands behind the name: types, `AS` and the statement.
        declared: Range<usize>,
        /// The statement.
        statement: Range<usize>,
    },
}

/// A word, a parenthesis or the like, without comments.
struct Lexed {
    token: Token,
    at: Range<usize>,
}

/// The places in `sql`, in order. `None` if it can't be told where they are.
pub(crate) fn spots(sql: &str, scope: &NameScope) -> Option<Vec<Spot>> {
    let is_plain = scope.standard_conforming_strings || !sql.contains('\\');
    if !is_plain || !(scope.client_encoding_utf8 || sql.is_ascii()) {
        return None;
    }
    let parsed = pg_query::parse(sql, ParserOptions::DEFAULT).ok()?;
    let mut spots = Vec::new();
    let mut lexed = None;
    for (place, raw) in parsed.protobuf.stmts.iter().enumerate() {
        let node = raw.stmt.as_ref()?.node.as_ref()?;
        let name = match named(node) {
            Some(NodeEnum::PrepareStmt(prepare)) => &prepare.name,
            Some(NodeEnum::ExecuteStmt(execute)) => &execute.name,
            Some(NodeEnum::DeallocateStmt(deallocate)) => &deallocate.name,
            Some(NodeEnum::DiscardStmt(discard)) => match discard.target() {
                DiscardMode::DiscardAll | DiscardMode::Undefined => "",
                _ => continue,
            },
            _ => continue,
        };
        let start = usize::try_from(raw.stmt_location).ok()?;
        if name.is_empty() {
            let kind = SpotKind::ForgetAll;
            spots.push(Spot { place, start, kind });
            continue;
        }
        if lexed.is_none() {
            lexed = Some(lex(sql)?);
        }
        let end = match usize::try_from(raw.stmt_len).ok()? {
            0 => sql.len(),
            len => start + len,
        };
        let tokens: Vec<&Lexed> = lexed
            .iter()
            .flatten()
            .filter(|lexed| lexed.at.start >= start && lexed.at.end <= end)
            .collect();
        let (at, action) = place_of_name(node, &tokens, end)?;
        let name = name.to_owned();
        let kind = SpotKind::Named { name, at, action };
        spots.push(Spot { place, start, kind });
    }
    Some(spots)
}

/// The names that `sql` speaks of, for a check that what was replaced is what was meant.
pub(crate) fn names_spoken_of(sql: &str) -> Option<Vec<String>> {
    let parsed = pg_query::parse(sql, ParserOptions::DEFAULT).ok()?;
    let mut names = Vec::new();
    for raw in &parsed.protobuf.stmts {
        match named(raw.stmt.as_ref()?.node.as_ref()?) {
            Some(NodeEnum::PrepareStmt(prepare)) => names.push(prepare.name.clone()),
            Some(NodeEnum::ExecuteStmt(execute)) => names.push(execute.name.clone()),
            Some(NodeEnum::DeallocateStmt(deallocate)) if !deallocate.name.is_empty() => {
                names.push(deallocate.name.clone());
            }
            _ => {}
        }
    }
    Some(names)
}

/// The part of a statement that names another one: itself, or what EXPLAIN or CREATE TABLE AS has run.
fn named(node: &NodeEnum) -> Option<&NodeEnum> {
    match node {
        NodeEnum::PrepareStmt(_)
        | NodeEnum::ExecuteStmt(_)
        | NodeEnum::DeallocateStmt(_)
        | NodeEnum::DiscardStmt(_) => Some(node),
        NodeEnum::ExplainStmt(explain) => {
            let inner = explain.query.as_ref()?.node.as_ref()?;
            matches!(
                inner,
                NodeEnum::ExecuteStmt(_) | NodeEnum::CreateTableAsStmt(_)
            )
            .then(|| named(inner))?
        }
        NodeEnum::CreateTableAsStmt(create) => {
            let inner = create.query.as_ref()?.node.as_ref()?;
            matches!(inner, NodeEnum::ExecuteStmt(_)).then_some(inner)
        }
        _ => None,
    }
}

fn place_of_name(node: &NodeEnum, tokens: &[&Lexed], end: usize) -> Option<(Range<usize>, Action)> {
    let is = |at: usize, token: Token| tokens.get(at).is_some_and(|lexed| lexed.token == token);
    match node {
        NodeEnum::PrepareStmt(_) if is(0, Token::Prepare) => {
            let name = tokens.get(1)?.at.clone();
            let behind = at_depth_0(tokens).find(|at| *at >= 2 && is(*at, Token::As))?;
            let statement = tokens.get(behind + 1)?.at.start..end;
            let declared = name.end..end;
            let action = Action::Prepare {
                declared,
                statement,
            };
            Some((name, action))
        }
        NodeEnum::ExecuteStmt(_) if is(0, Token::Execute) => {
            Some((tokens.get(1)?.at.clone(), Action::Execute))
        }
        NodeEnum::DeallocateStmt(_) if is(0, Token::Deallocate) => {
            // PREPARE may be the name itself.
            let at = if is(1, Token::Prepare) && tokens.len() > 2 {
                2
            } else {
                1
            };
            Some((tokens.get(at)?.at.clone(), Action::Deallocate))
        }
        NodeEnum::CreateTableAsStmt(_) => name_behind_as(tokens),
        NodeEnum::ExplainStmt(explain) => {
            let inner = explain.query.as_ref()?.node.as_ref()?;
            if matches!(inner, NodeEnum::CreateTableAsStmt(_)) {
                return name_behind_as(tokens);
            }
            let execute = at_depth_0(tokens).find(|at| is(*at, Token::Execute))?;
            Some((tokens.get(execute + 1)?.at.clone(), Action::Execute))
        }
        _ => None,
    }
}

/// The name in `CREATE TABLE .. AS EXECUTE name`: a table may be called EXECUTE, too.
fn name_behind_as(tokens: &[&Lexed]) -> Option<(Range<usize>, Action)> {
    let is = |at: usize, token: Token| tokens.get(at).is_some_and(|lexed| lexed.token == token);
    let at = at_depth_0(tokens).find(|at| is(*at, Token::As) && is(at + 1, Token::Execute))?;
    Some((tokens.get(at + 2)?.at.clone(), Action::Execute))
}

/// The places of the tokens that stand in no parentheses.
fn at_depth_0<'t>(tokens: &'t [&Lexed]) -> impl Iterator<Item = usize> + 't {
    let mut depth = 0_usize;
    tokens.iter().enumerate().filter_map(move |(at, lexed)| {
        match lexed.token {
            Token::Ascii40 => depth += 1,
            Token::Ascii41 => depth = depth.saturating_sub(1),
            _ if depth == 0 => return Some(at),
            _ => {}
        }
        None
    })
}

fn lex(sql: &str) -> Option<Vec<Lexed>> {
    let scanned = pg_query::scan(sql).ok()?;
    let mut lexed = Vec::with_capacity(scanned.tokens.len());
    for token in &scanned.tokens {
        let at = usize::try_from(token.start).ok()?..usize::try_from(token.end).ok()?;
        sql.get(at.clone())?;
        let token = token.token();
        if !matches!(token, Token::SqlComment | Token::CComment) {
            lexed.push(Lexed { token, at });
        }
    }
    Some(lexed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(sql: &str) -> Vec<(usize, String, &str)> {
        let mut scope = NameScope::unknown();
        scope.client_encoding_utf8 = true;
        scope.standard_conforming_strings = true;
        spots(sql, &scope)
            .expect("parsed")
            .into_iter()
            .map(|spot| match spot.kind {
                SpotKind::ForgetAll => (spot.place, "all".to_owned(), ""),
                SpotKind::Named { name, at, .. } => (spot.place, name, &sql[at]),
            })
            .collect()
    }

    #[test]
    fn names_are_found_wherever_a_statement_is_named() {
        for (sql, expected) in [
            ("EXECUTE s(1)", vec![(0, "s", "s")]),
            (
                "/* x */ execute -- y\n \"S x\" (1)",
                vec![(0, "S x", "\"S x\"")],
            ),
            (
                "PREPARE Name (int, timestamp(3) with time zone) AS SELECT 1 AS execute",
                vec![(0, "name", "Name")],
            ),
            ("deallocate prepare", vec![(0, "prepare", "prepare")]),
            (
                "deallocate prepare prepare",
                vec![(0, "prepare", "prepare")],
            ),
            (
                "SELECT 1; DEALLOCATE PREPARE ALL; DISCARD ALL",
                vec![(1, "all", ""), (2, "all", "")],
            ),
            ("DISCARD PLANS", vec![]),
            ("EXPLAIN EXECUTE s", vec![(0, "s", "s")]),
            (
                "EXPLAIN (ANALYZE, COSTS off) EXECUTE execute (2)",
                vec![(0, "execute", "execute")],
            ),
            (
                "CREATE TEMP TABLE execute (a) AS EXECUTE s",
                vec![(0, "s", "s")],
            ),
            (
                "EXPLAIN CREATE TABLE execute AS EXECUTE s",
                vec![(0, "s", "s")],
            ),
            (
                "SELECT 'ä'; EXECUTE s; SELECT 'EXECUTE t'",
                vec![(1, "s", "s")],
            ),
            ("EXECUTE U&\"\\0061b\"", vec![(0, "ab", "U&\"\\0061b\"")]),
            ("SELECT 1", vec![]),
        ] {
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(place, name, text)| (place, name.to_owned(), text))
                .collect();
            assert_eq!(found(sql), expected, "{sql}");
        }
    }

    #[test]
    fn what_a_prepare_declares_stands_behind_its_name() {
        let sql = "SELECT 1; PREPARE s (text) AS SELECT $1 /* x */; SELECT 2";
        let mut scope = NameScope::unknown();
        scope.client_encoding_utf8 = true;
        scope.standard_conforming_strings = true;
        let spots = spots(sql, &scope).expect("parsed");
        let SpotKind::Named {
            action:
                Action::Prepare {
                    declared,
                    statement,
                },
            ..
        } = &spots[0].kind
        else {
            panic!("{spots:?}")
        };
        assert_eq!(&sql[declared.clone()], " (text) AS SELECT $1 /* x */");
        assert_eq!(&sql[statement.clone()], "SELECT $1 /* x */");
    }
}
