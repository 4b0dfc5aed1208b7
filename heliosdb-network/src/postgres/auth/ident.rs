//! Which users somebody may be, in the form of `pg_ident.conf`.

use regex::Regex;

use super::LineError;
use super::hba::tokens::{self, Token};

/// The maps of a file. Each line is `map system-name user`: who is `system-name` outside may be `user` here.
#[derive(Debug, Clone, Default)]
pub struct IdentMap {
    lines: Vec<Line>,
}

#[derive(Debug, Clone)]
struct Line {
    map: String,
    system: System,
    user: User,
}

#[derive(Debug, Clone)]
enum System {
    Exact(String),
    Pattern(Regex),
}

#[derive(Debug, Clone)]
enum User {
    All,
    /// `\1` stands for the pattern's first group.
    Exact(String),
    Pattern(Regex),
}

impl IdentMap {
    /// Reads the file's text. A system name that begins with a slash is a regular expression; its first group may stand
    /// as `\1` in the user.
    ///
    /// # Errors
    /// [`LineError`] naming the line that can't be used, and why.
    pub fn parse(text: &str) -> Result<Self, LineError> {
        let mut lines = Vec::new();
        for (number, fields) in tokens::lines(text)? {
            let mut words = Vec::new();
            for mut field in fields {
                match (field.pop(), field.pop()) {
                    (Some(word), None) => words.push(word),
                    _ => return Err(LineError::new(number, "a list of names is not allowed")),
                }
            }
            let Ok([map, system, user]) = <[Token; 3]>::try_from(words) else {
                return Err(LineError::new(number, "it is not: map system-name user"));
            };
            lines.push(Line {
                map: map.text,
                system: system_name(&system, number)?,
                user: user_name(user, number)?,
            });
        }
        Ok(Self { lines })
    }

    /// True if `system_name` may be `user`, by the map of that name. Without a map the names must be the same.
    #[must_use]
    pub fn allows(&self, map: Option<&str>, system_name: &str, user: &str) -> bool {
        let Some(map) = map else {
            return system_name == user;
        };
        self.lines
            .iter()
            .filter(|line| line.map == map)
            .any(|line| line.allows(system_name, user))
    }
}

impl Line {
    fn allows(&self, system_name: &str, user: &str) -> bool {
        let group = match &self.system {
            System::Exact(name) if name == system_name => None,
            System::Exact(_) => return false,
            System::Pattern(pattern) => match pattern.captures(system_name) {
                Some(captures) => captures.get(1).map(|group| group.as_str()),
                None => return false,
            },
        };
        match (&self.user, group) {
            (User::All, _) => true,
            (User::Pattern(pattern), _) => pattern.is_match(user),
            (User::Exact(name), Some(group)) => name.replacen("\\1", group, 1) == user,
            (User::Exact(name), None) => name == user,
        }
    }
}

fn system_name(token: &Token, line: usize) -> Result<System, LineError> {
    match token.text.strip_prefix('/') {
        Some(pattern) => regex(pattern, line).map(System::Pattern),
        None => Ok(System::Exact(token.text.clone())),
    }
}

fn user_name(token: Token, line: usize) -> Result<User, LineError> {
    match token.text.as_str() {
        "all" if !token.is_quoted => Ok(User::All),
        text if text.starts_with('+') && !token.is_quoted => Err(LineError::new(
            line,
            format!("the members of a role are not known here ({text})"),
        )),
        text if text.starts_with('/') && !token.is_quoted => {
            regex(&text[1..], line).map(User::Pattern)
        }
        _ => Ok(User::Exact(token.text)),
    }
}

fn regex(pattern: &str, line: usize) -> Result<Regex, LineError> {
    Regex::new(pattern).map_err(|error| {
        LineError::new(
            line,
            format!("{pattern:?} is no regular expression: {error}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_may_be_whom() {
        let map = IdentMap::parse(
            "# certificates\n\
             certs ada.example ada\n\
             certs /^(.*)@example\\.com$ \\1\n\
             certs \"CN=carl lee,O=x\" carl\n\
             certs root all\n\
             os root postgres\n",
        )
        .expect("valid");
        let certs = |system, user| map.allows(Some("certs"), system, user);
        assert!(certs("ada.example", "ada"));
        assert!(!certs("ada.example", "bob"));
        assert!(certs("bob@example.com", "bob"));
        assert!(!certs("bob@example.com", "ada"));
        assert!(!certs("bob@example.com.evil", "bob"));
        assert!(certs("CN=carl lee,O=x", "carl"));
        assert!(certs("root", "anybody"));
        assert!(!map.allows(Some("os"), "root", "anybody"));
        assert!(!map.allows(Some("none"), "ada", "ada"));
        assert!(map.allows(None, "ada", "ada"));
        assert!(!map.allows(None, "ada.example", "ada"));
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        for (line, what) in [
            ("certs ada", "map system-name user"),
            ("certs ada ada more", "map system-name user"),
            ("certs ada,bob ada", "list"),
            ("certs /( ada", "regular expression"),
            ("certs ada +admins", "members"),
        ] {
            let error = IdentMap::parse(&format!("\n{line}")).expect_err(line);
            assert!(error.line == 2 && error.message.contains(what), "{error}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_a_map_or_an_error(text: String, system: String, user: String) {
            if let Ok(map) = IdentMap::parse(&text) {
                let _ = map.allows(Some("m"), &system, &user);
            }
        }
    }
}
