//! Where one statement ends and the next begins, by PostgreSQL's own lexer.

use pg_query::protobuf::Token;

/// Takes the statements that are complete from the front of `input`, without what ends them.
pub(super) fn take_complete(input: &mut String) -> Vec<String> {
    let Some(end) = last_semicolon(input) else {
        return Vec::new();
    };
    let rest = input.split_off(end);
    let complete = std::mem::replace(input, rest);
    split(&complete)
}

/// All statements in a text, the last of which need not be ended.
pub(super) fn split(text: &str) -> Vec<String> {
    match pg_query::split_with_scanner(text) {
        Ok(statements) => statements
            .into_iter()
            .map(|statement| statement.trim().to_owned())
            .filter(|statement| !statement.is_empty())
            .collect(),
        // The server says better what is wrong with it.
        Err(_) => vec![text.trim().to_owned()],
    }
}

/// Behind the last semicolon that ends a statement. `None` if there is none, or if a quotation or comment is open.
fn last_semicolon(text: &str) -> Option<usize> {
    let tokens = pg_query::scan(text).ok()?.tokens;
    let is_comment =
        |token: i32| token == Token::SqlComment as i32 || token == Token::CComment as i32;
    let last = tokens.iter().rfind(|token| !is_comment(token.token))?;
    if last.token != Token::Ascii59 as i32 {
        return None;
    }
    usize::try_from(last.end).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(text: &str) -> (Vec<String>, String) {
        let mut input = text.to_owned();
        let statements = take_complete(&mut input);
        (statements, input)
    }

    #[test]
    fn statements_end_where_postgresql_ends_them() {
        let (statements, rest) = taken("select 1; select ';' as a;\n");
        assert_eq!(statements, ["select 1", "select ';' as a"]);
        assert_eq!(rest.trim(), "");
        for open in [
            "select 1",
            "select 'a;",
            "select $$a;",
            "select \"a;",
            "select /* ;",
            "",
            "-- a;",
        ] {
            let (statements, rest) = taken(open);
            assert!(
                statements.is_empty() && rest == open,
                "{open}: {statements:?}"
            );
        }
        let (statements, _) = taken("do $$begin null; end$$; -- done");
        assert_eq!(statements, ["do $$begin null; end$$"]);
        let (statements, _) = taken(";;");
        assert!(statements.is_empty());
        assert_eq!(split("select 1; select 2"), ["select 1", "select 2"]);
        assert_eq!(split("select 'open"), ["select 'open"]);
        assert!(
            ["", " \n", "-- nothing", ";"]
                .iter()
                .all(|text| split(text).is_empty())
        );
    }
}
