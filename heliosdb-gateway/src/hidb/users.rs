//! The file of users and their secrets, for HIDB.

use std::path::Path;

use anyhow::Context as _;
use heliosdb_network::postgres::auth::UserList;
use heliosdb_network::scram::ScramSecret;

/// Reads a file. Plain passwords are turned into secrets, so that nothing in memory is enough to log in with.
pub(super) fn read(file: &Path) -> anyhow::Result<Vec<(String, ScramSecret)>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let users = UserList::parse(&text).with_context(|| format!("in {}", file.display()))?;
    secrets(&users).with_context(|| format!("in {}", file.display()))
}

fn secrets(users: &UserList) -> anyhow::Result<Vec<(String, ScramSecret)>> {
    users
        .iter()
        .map(|(user, secret)| {
            let secret = secret.scram().with_context(|| {
                format!(
                    "user {user:?} has an md5 secret: nothing but a password or a SCRAM secret will do"
                )
            })?;
            Ok((user.to_owned(), secret))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_become_secrets_and_hashes_are_of_no_use() {
        let scram = ScramSecret::from_password("p").to_text();
        let users = UserList::parse(&format!("\"a\" \"{scram}\"\n\"b\" \"pass\"\n"));
        let mut secrets = secrets(&users.expect("well formed")).expect("usable");
        secrets.sort_by(|a, b| a.0.cmp(&b.0));
        assert!(secrets[0].1 == ScramSecret::parse(&scram).expect("well formed"));
        assert!(secrets[1].1.has_password("pass"));
        let users = UserList::parse("\"a\" \"md50123456789abcdef0123456789abcdef\"");
        let error = super::secrets(&users.expect("well formed")).expect_err("md5");
        assert!(error.to_string().contains("md5"), "{error}");
    }
}
