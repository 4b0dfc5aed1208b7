//! The file of users and their secrets, in PgBouncer's form: `"user" "secret"`, a line each.

use std::collections::HashMap;

use super::LineError;
use super::secret::StoredSecret;

/// Users and what is kept of their passwords.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserList {
    users: HashMap<String, StoredSecret>,
}

impl UserList {
    /// Reads the file's text. Lines that begin with `;` or `#` are comments, and so is what stands behind the secret. Where
    /// a user is named twice, the last line counts.
    ///
    /// # Errors
    /// [`LineError`] naming the line that is not of that form; a secret is not shown.
    pub fn parse(text: &str) -> Result<Self, LineError> {
        let mut users = HashMap::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            let number = at + 1;
            let (user, secret) = pair(line)
                .ok_or_else(|| LineError::new(number, "it is not \"user\" \"secret\""))?;
            let secret = StoredSecret::parse(&secret)
                .map_err(|error| LineError::new(number, error.to_string()))?;
            users.insert(user, secret);
        }
        Ok(Self { users })
    }

    /// What is kept of a user's password.
    #[must_use]
    pub fn get(&self, user: &str) -> Option<&StoredSecret> {
        self.users.get(user)
    }

    /// All users, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &StoredSecret)> {
        self.users.iter().map(|(user, secret)| (&**user, secret))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

/// Two quoted texts, in which a quote is doubled. What follows is a comment.
fn pair(line: &str) -> Option<(String, String)> {
    let (user, rest) = quoted(line)?;
    let (secret, _) = quoted(rest.trim_start())?;
    let is_usable = !user.is_empty() && !user.contains('\0') && !secret.contains('\0');
    is_usable.then_some((user, secret))
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut value = String::new();
    loop {
        let (part, behind) = rest.split_once('"')?;
        value.push_str(part);
        match behind.strip_prefix('"') {
            Some(behind) => {
                value.push('"');
                rest = behind;
            }
            None => return Some((value, behind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::scram::ScramSecret;

    use super::*;

    #[test]
    fn a_file_in_pgbouncers_form_is_read() {
        let scram = ScramSecret::from_password("p").to_text();
        let md5 = format!("md5{}", "0".repeat(32));
        let text = format!(
            "; comment\n# another\n\n\"app\" \"{scram}\"\n\"a\"\"b\" \"pass\"\"word\" and more\n  \"old\"\t\"{md5}\"\n\"app2\" \"\"\r\n"
        );
        let users = UserList::parse(&text).expect("well formed");
        assert_eq!(users.len(), 4);
        let get = |user| users.get(user).cloned();
        assert_eq!(get("app"), StoredSecret::parse(&scram).ok());
        assert_eq!(get("a\"b"), Some(StoredSecret::password("pass\"word")));
        assert_eq!(get("old"), Some(StoredSecret::Md5(md5)));
        assert_eq!(get("app2"), Some(StoredSecret::password("")));
        assert_eq!(get("other"), None);
    }

    #[test]
    fn a_line_that_is_none_is_named_without_its_secret() {
        for (text, line) in [
            ("\"a\" \"b\"\napp geheim", 2),
            ("\"a\"", 1),
            ("\"\" \"geheim\"", 1),
            ("\"a\" \"SCRAM-SHA-256$geheim\"", 1),
            ("\"a\" \"geheim", 1),
            ("\"a\" \"ge\0heim\"", 1),
        ] {
            let error = UserList::parse(text).expect_err(text);
            assert_eq!(error.line, line);
            assert!(!error.to_string().contains("geheim"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn users_come_out_as_they_went_in(pairs in prop::collection::vec(("[^\\x00\\r\\n]{1,8}", "[^\\x00\\r\\n]{0,8}"), 0..5)) {
            let quote = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
            let text: String = pairs
                .iter()
                .map(|(user, secret)| format!("{} {}\n", quote(user), quote(secret)))
                .collect();
            let users = UserList::parse(&text).expect("well formed");
            for (at, (user, secret)) in pairs.iter().enumerate() {
                if pairs[at + 1..].iter().all(|(later, _)| later != user) {
                    prop_assert_eq!(users.get(user), Some(&StoredSecret::password(secret)));
                }
            }
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(text: String) {
            let _ = UserList::parse(&text);
        }
    }
}
