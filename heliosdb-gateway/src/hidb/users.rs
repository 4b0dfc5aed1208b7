//! The file of users and their secrets, in PgBouncer's form: `"user" "secret"`, a line each.

use std::path::Path;

use anyhow::{Context as _, bail};
use heliosdb_network::scram::ScramSecret;

/// Reads a file. Plain passwords are turned into secrets, so that nothing in memory is enough to log in with.
pub(super) fn read(file: &Path) -> anyhow::Result<Vec<(String, ScramSecret)>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    parse(&text).with_context(|| format!("in {}", file.display()))
}

fn parse(text: &str) -> anyhow::Result<Vec<(String, ScramSecret)>> {
    let mut users = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with([';', '#']) {
            continue;
        }
        let number = number + 1;
        let (user, secret) =
            pair(line).with_context(|| format!("line {number} is not \"user\" \"secret\""))?;
        let secret = if secret.starts_with("SCRAM-SHA-256$") {
            ScramSecret::parse(&secret).with_context(|| format!("line {number}"))?
        } else if is_md5(&secret) {
            bail!(
                "line {number} has an md5 secret: nothing but a password or a SCRAM secret will do"
            );
        } else {
            ScramSecret::from_password(&secret)
        };
        users.push((user, secret));
    }
    Ok(users)
}

fn is_md5(secret: &str) -> bool {
    let digits = secret.strip_prefix("md5");
    digits.is_some_and(|digits| {
        digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Two quoted texts, in which a quote is doubled. What follows is a comment.
fn pair(line: &str) -> Option<(String, String)> {
    let (user, rest) = quoted(line)?;
    let (secret, _) = quoted(rest.trim_start())?;
    (!user.is_empty()).then_some((user, secret))
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
    use super::*;

    #[test]
    fn a_file_in_pgbouncers_form_is_read() {
        let secret = "SCRAM-SHA-256$4096:c2FsdA==$AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=:\
                      AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
        let text =
            format!("; comment\n\n\"app\" \"{secret}\"\n\"a\"\"b\" \"pass\"\"word\" and more\n");
        let users = parse(&text).expect("well formed");
        assert_eq!(users[0].0, "app");
        assert!(users[0].1 == ScramSecret::parse(secret).expect("well formed"));
        assert_eq!(users[1].0, "a\"b");
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        for (text, what) in [
            ("\"a\" \"b\"\napp secret", "line 2"),
            ("\"a\"", "line 1"),
            ("\"\" \"b\"", "line 1"),
            ("\"a\" \"SCRAM-SHA-256$x\"", "line 1"),
            ("\"a\" \"md50123456789abcdef0123456789abcdef\"", "md5"),
            ("\"a\" \"b", "line 1"),
        ] {
            let error = format!("{:#}", parse(text).expect_err(text));
            assert!(error.contains(what), "{error}");
        }
    }
}
