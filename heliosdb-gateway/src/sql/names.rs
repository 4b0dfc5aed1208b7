//! What the meaning of a name depends on besides the catalog.

/// The part of a session's state that decides what a name in its statements stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(
    clippy::exhaustive_structs,
    reason = "the session builds it; a new field must be a compile error there"
)]
pub struct NameScope {
    /// Current role, which `"$user"` in the search path stands for.
    pub user: String,
    /// The entries of `search_path` as written, `$user` included, without quotes.
    pub search_path: Vec<String>,
    /// The setting of that name. While it is off, backslashes in plain literals are escapes.
    pub standard_conforming_strings: bool,
    /// Whether `client_encoding` is UTF8. If it is not, a text that is not plain ASCII counts as
    /// unreadable: the second byte of a character may look like a quote to one reader only.
    pub client_encoding_utf8: bool,
}

impl NameScope {
    /// The scope of a session of which nothing is known: no name outside of `pg_catalog` resolves.
    #[must_use]
    pub fn unknown() -> Self {
        Self::qualified()
    }

    /// The scope in which the server prints the queries of views: nothing but `pg_catalog` is found
    /// without its schema's name.
    pub(super) fn qualified() -> Self {
        Self {
            user: String::new(),
            search_path: Vec::new(),
            standard_conforming_strings: true,
            client_encoding_utf8: true,
        }
    }

    /// Whether an object of `schema` may be what a name stands for, given the schema written
    /// before the name.
    ///
    /// For a bare name this is any schema on the path and not only the first that has the name: the
    /// server passes over schemas that the role may not use, and for functions all overloads count.
    pub(super) fn may_mean(&self, qualifier: Option<&str>, schema: &str) -> bool {
        match qualifier {
            Some(qualifier) => qualifier == schema,
            None => {
                schema == "pg_catalog"
                    || self.search_path.iter().any(|entry| match entry.as_str() {
                        "$user" => schema == self.user,
                        entry => schema == entry,
                    })
            }
        }
    }

    /// Whether an unqualified CREATE could make a temporary object.
    pub(super) fn creates_temporary(&self) -> bool {
        self.search_path.iter().any(|entry| is_temporary(entry))
    }
}

/// Whether a schema's name means temporary objects of some session.
pub(super) fn is_temporary(schema: &str) -> bool {
    schema == "pg_temp" || schema.starts_with("pg_temp_") || schema.starts_with("pg_toast_temp_")
}

/// Splits a list of identifiers as PostgreSQL does for `search_path`: `"$user", Public` gives
/// `$user` and `public`. `None` if the list is malformed, which the server would reject.
#[must_use]
pub fn split_identifiers(list: &str) -> Option<Vec<String>> {
    let mut rest = list.trim_start_matches(is_space);
    let mut names = Vec::new();
    if rest.is_empty() {
        return Some(names);
    }
    loop {
        let name;
        if let Some(quoted) = rest.strip_prefix('"') {
            (name, rest) = quoted_identifier(quoted)?;
        } else {
            let end = rest
                .find(|c: char| c == ',' || is_space(c))
                .unwrap_or(rest.len());
            // The server folds other letters by its own encoding's rules, which we don't know.
            if end == 0 || !rest.is_ascii() {
                return None;
            }
            name = rest[..end].to_ascii_lowercase();
            rest = &rest[end..];
        }
        names.push(name);
        rest = rest.trim_start_matches(is_space);
        if rest.is_empty() {
            return Some(names);
        }
        rest = rest.strip_prefix(',')?.trim_start_matches(is_space);
    }
}

/// Reads up to the closing quote; gives the name and what follows it.
fn quoted_identifier(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"')?;
        name.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return Some((name, rest)),
        }
    }
}

/// What PostgreSQL's scanner calls white space.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}
