//! The form of PgBouncer's configuration files: sections, assignments, comments and includes. What the keys mean is told
//! elsewhere.

use std::io;
use std::path::Path;

use crate::config::ConfigError;

/// Reads a file that another one includes.
pub(super) type Include<'r> = &'r mut dyn FnMut(&Path) -> io::Result<String>;

/// An assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) section: String,
    pub(super) key: String,
    pub(super) value: String,
    pub(super) at: Place,
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: String,
    pub(super) line: usize,
}

impl Place {
    pub(super) fn error(&self, message: impl Into<String>) -> ConfigError {
        ConfigError::Syntax {
            file: self.file.clone(),
            line: self.line,
            column: 1,
            message: message.into(),
        }
    }
}

/// Includes in includes: deeper, a file is most likely its own.
const DEPTH_MAX: usize = 10;

/// All assignments in order.
pub(super) fn entries(
    text: &str,
    file: &str,
    include: Include<'_>,
) -> Result<Vec<Entry>, ConfigError> {
    let mut entries = Vec::new();
    let mut section = String::new();
    read(text, file, include, 0, &mut section, &mut entries)?;
    Ok(entries)
}

fn read(
    text: &str,
    file: &str,
    include: Include<'_>,
    depth: usize,
    section: &mut String,
    entries: &mut Vec<Entry>,
) -> Result<(), ConfigError> {
    for (line, number) in text.lines().zip(1..) {
        let at = Place {
            file: file.to_owned(),
            line: number,
        };
        let line = line.trim();
        if line.is_empty() || line.starts_with([';', '#']) {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            let name = rest.strip_suffix(']');
            let name = name.ok_or_else(|| at.error("a section's name ends with ]"))?;
            name.trim().clone_into(section);
            continue;
        }
        if let Some(rest) = line.strip_prefix('%') {
            let name = rest
                .strip_prefix("include")
                .filter(|name| name.starts_with(char::is_whitespace));
            let name = name.map(str::trim).filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| at.error("behind % there is only `include FILE`"))?;
            if depth == DEPTH_MAX {
                return Err(at.error(format!("{name} is included {DEPTH_MAX} files deep")));
            }
            let included = include(Path::new(name))
                .map_err(|error| at.error(format!("cannot read {name}: {error}")))?;
            read(&included, name, include, depth + 1, section, entries)?;
            continue;
        }
        let (key, value) = assignment(line)
            .ok_or_else(|| at.error(format!("{line:?} is no assignment `key = value`")))?;
        if section.is_empty() {
            return Err(at.error("an assignment stands in a section, such as [pgbouncer]"));
        }
        entries.push(Entry {
            section: section.clone(),
            key,
            value,
            at,
        });
    }
    Ok(())
}

/// A name, which may be quoted as in SQL, and everything behind the `=`.
fn assignment(line: &str) -> Option<(String, String)> {
    let (key, rest) = match line.strip_prefix('"') {
        Some(quoted) => {
            let (name, len) = unquote(quoted, '"')?;
            (name, &quoted[len..])
        }
        None => {
            let end = line.find(|c: char| c == '=' || c.is_whitespace())?;
            (line[..end].to_owned(), &line[end..])
        }
    };
    let value = rest.trim_start().strip_prefix('=')?;
    (!key.is_empty()).then(|| (key, value.trim().to_owned()))
}

/// What stands up to the quote that ends it, and the length with that quote. Two quotes stand for one.
fn unquote(text: &str, quote: char) -> Option<(String, usize)> {
    let mut unquoted = String::new();
    let mut rest = text;
    loop {
        let (before, behind) = rest.split_once(quote)?;
        unquoted.push_str(before);
        match behind.strip_prefix(quote) {
            Some(more) => {
                unquoted.push(quote);
                rest = more;
            }
            None => return Some((unquoted, text.len() - behind.len())),
        }
    }
}

/// The `key=value` pairs of a connection string. A value in single quotes may hold anything; there may be blanks around
/// `=`.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, behind) = rest
            .split_once('=')
            .ok_or_else(|| format!("{rest:?} is no `key=value`"))?;
        let key = key.trim_end();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(format!("{key:?} is no key"));
        }
        let behind = behind.trim_start();
        let value;
        (value, rest) = match behind.strip_prefix('\'') {
            Some(quoted) => {
                let (value, len) = unquote(quoted, '\'')
                    .ok_or_else(|| format!("the quote behind {key}= is not closed"))?;
                (value, &quoted[len..])
            }
            None => {
                let end = behind.find(char::is_whitespace).unwrap_or(behind.len());
                (behind[..end].to_owned(), &behind[end..])
            }
        };
        if !rest.is_empty() && !rest.starts_with(char::is_whitespace) {
            return Err(format!("there must be a blank behind the value of {key}"));
        }
        rest = rest.trim_start();
        pairs.push((key.to_owned(), value));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(name: &Path) -> io::Result<String> {
        Err(io::Error::other(name.display().to_string()))
    }

    #[test]
    fn lines_are_sections_assignments_or_comments() {
        let text = "; comment\n [databases] \n\"my \"\"db\"\"\" = host=x\n  b=\n# comment\n[pgbouncer]\nkey = a ; b \n";
        let entries = entries(text, "f", &mut none).expect("readable");
        let told: Vec<_> = entries
            .iter()
            .map(|entry| (&*entry.section, &*entry.key, &*entry.value, entry.at.line))
            .collect();
        assert_eq!(
            told,
            [
                ("databases", "my \"db\"", "host=x", 3),
                ("databases", "b", "", 4),
                ("pgbouncer", "key", "a ; b", 7),
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, error) in [
            ("[x", "f:1:1: a section's"),
            ("\na = 1", "f:2:1: an assignment stands in a section"),
            ("[x]\nrubbish", "f:2:1: \"rubbish\" is no assignment"),
            ("[x]\n\"a = 1", "f:2:1: "),
            ("%inclode x", "f:1:1: behind %"),
            ("%included x", "f:1:1: behind %"),
            ("%include y", "f:1:1: cannot read y: y"),
        ] {
            let told = entries(text, "f", &mut none).expect_err(text).to_string();
            assert!(told.starts_with(error), "{text}: {told}");
        }
    }

    #[test]
    fn included_lines_stand_where_they_are_included() {
        let mut include = |name: &Path| match name.to_str() {
            Some("more.ini") => Ok("a = 2\n[other]\nb = 3".to_owned()),
            _ => Ok("%include self".to_owned()),
        };
        let told = entries("[x]\n%include more.ini\nc = 4", "f", &mut include).expect("readable");
        let told: Vec<_> = told
            .iter()
            .map(|entry| {
                format!(
                    "{}.{} {}:{}",
                    entry.section, entry.key, entry.at.file, entry.at.line
                )
            })
            .collect();
        assert_eq!(
            told,
            ["x.a more.ini:1", "other.b more.ini:3", "other.c f:3"]
        );
        let error = entries("%include self", "f", &mut include).expect_err("endless");
        assert!(error.to_string().contains("10 files deep"), "{error}");
    }

    #[test]
    fn pairs_are_quoted_as_in_pgbouncer() {
        let told = |text| {
            pairs(text).map(|pairs| {
                let pairs: Vec<_> = pairs
                    .iter()
                    .map(|(key, value)| format!("{key}:{value}"))
                    .collect();
                pairs.join("|")
            })
        };
        assert_eq!(told("").as_deref(), Ok(""));
        assert_eq!(
            told("a=1  b = 'it''s x' c=").as_deref(),
            Ok("a:1|b:it's x|c:")
        );
        for text in ["a", "a='x", "=1", "a b=1", "a='x'b=1"] {
            assert!(told(text).is_err(), "{text}");
        }
    }
}
