//! Lines, fields and items of PostgreSQL's files of rules.

use super::super::LineError;

/// An item of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Token {
    pub(in super::super) text: String,
    /// In quotes, a word has no special meaning.
    pub(in super::super) is_quoted: bool,
}

/// Items that are separated by commas.
pub(in super::super) type Field = Vec<Token>;

/// The lines that hold something, with their numbers from 1. A backslash at its end joins a line with the next.
pub(in super::super) fn lines(text: &str) -> Result<Vec<(usize, Vec<Field>)>, LineError> {
    let mut lines = Vec::new();
    let mut joined = String::new();
    let mut first = 1;
    for (at, line) in text.lines().enumerate() {
        if joined.is_empty() {
            first = at + 1;
        }
        if let Some(part) = line.strip_suffix('\\') {
            joined.push_str(part);
            // So that the next one counts as a part of it.
            joined.push(' ');
            continue;
        }
        joined.push_str(line);
        let fields = fields(&joined).map_err(|message| LineError::new(first, message))?;
        joined.clear();
        if !fields.is_empty() {
            lines.push((first, fields));
        }
    }
    if !joined.is_empty() {
        let fields = fields(&joined).map_err(|message| LineError::new(first, message))?;
        lines.extend((!fields.is_empty()).then_some((first, fields)));
    }
    Ok(lines)
}

fn fields(line: &str) -> Result<Vec<Field>, &'static str> {
    let mut fields: Vec<Field> = Vec::new();
    let mut chars = line.chars().peekable();
    // A comma joins what stands on both its sides.
    let mut is_joined = false;
    loop {
        match chars.peek() {
            None | Some('#') => return Ok(fields),
            Some(',') => {
                chars.next();
                is_joined = true;
            }
            Some(c) if c.is_whitespace() => {
                chars.next();
            }
            Some(_) => {
                let token = token(&mut chars)?;
                match fields.last_mut() {
                    Some(field) if is_joined => field.push(token),
                    _ => fields.push(vec![token]),
                }
                is_joined = false;
            }
        }
    }
}

fn token(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Token, &'static str> {
    let mut text = String::new();
    let is_quoted = chars.peek() == Some(&'"');
    let mut in_quotes = false;
    while let Some(c) = chars.peek().copied() {
        if !in_quotes && (c.is_whitespace() || matches!(c, ',' | '#')) {
            break;
        }
        chars.next();
        if c != '"' {
            text.push(c);
        } else if in_quotes && chars.peek() == Some(&'"') {
            chars.next();
            text.push('"');
        } else {
            in_quotes = !in_quotes;
        }
    }
    if in_quotes {
        return Err("a quote is not closed");
    }
    Ok(Token { text, is_quoted })
}
