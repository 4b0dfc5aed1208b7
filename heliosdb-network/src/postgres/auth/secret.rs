//! What is kept of a user's password.

use std::fmt;
use std::sync::{Arc, OnceLock};

use subtle::ConstantTimeEq as _;

use crate::error::Result;
use crate::scram::ScramSecret;

/// What is kept of a user's password, in the form in which it was written down.
#[derive(Clone)]
#[non_exhaustive]
pub enum StoredSecret {
    /// `md5` and 32 hexadecimal digits: the hash of password and user.
    Md5(String),
    /// The password itself.
    Password(PlainPassword),
    /// A SCRAM secret.
    Scram(ScramSecret),
}

/// A password, and the SCRAM secret that is made of it when it is first asked for: that takes thousands of rounds.
#[derive(Clone)]
pub struct PlainPassword {
    text: String,
    secret: Arc<OnceLock<ScramSecret>>,
}

impl StoredSecret {
    /// Reads what `pg_authid.rolpassword` or a file of users holds. What has no known form is the password itself.
    ///
    /// # Errors
    /// [`HeliosError::Unsupported`](crate::HeliosError::Unsupported) if it begins like a SCRAM secret and is none.
    pub fn parse(text: &str) -> Result<Self> {
        if text.starts_with("SCRAM-SHA-256$") {
            return ScramSecret::parse(text).map(Self::Scram);
        }
        let digits = text.strip_prefix("md5").unwrap_or_default();
        if digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Self::Md5(format!("md5{}", digits.to_ascii_lowercase())));
        }
        Ok(Self::password(text))
    }

    /// A password.
    #[must_use]
    pub fn password(text: &str) -> Self {
        Self::Password(PlainPassword {
            text: text.to_owned(),
            secret: Arc::default(),
        })
    }

    /// What SCRAM is done against; `None` where the secret is of another kind.
    #[must_use]
    pub fn scram(&self) -> Option<ScramSecret> {
        match self {
            Self::Md5(_) => None,
            Self::Password(password) => Some(password.scram().clone()),
            Self::Scram(secret) => Some(secret.clone()),
        }
    }

    /// The hash that md5 authentication is done against; `None` where the secret is of another kind.
    pub(super) fn md5(&self, user: &str) -> Option<String> {
        match self {
            Self::Md5(hash) => Some(hash.clone()),
            Self::Password(password) => Some(md5_of(password.text(), user)),
            Self::Scram(_) => None,
        }
    }

    /// True for the password that it was made from.
    pub(super) fn has_password(&self, user: &str, password: &str) -> bool {
        match self {
            Self::Md5(hash) => equal(hash.as_bytes(), md5_of(password, user).as_bytes()),
            // By the secret, though the text is at hand: it takes as long as for the others.
            Self::Password(plain) => plain.scram().has_password(password),
            Self::Scram(secret) => secret.has_password(password),
        }
    }
}

impl PlainPassword {
    /// The password.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    fn scram(&self) -> &ScramSecret {
        self.secret
            .get_or_init(|| ScramSecret::from_password(&self.text))
    }
}

/// As they were written down: the secret that is made of a password has a salt of chance.
impl PartialEq for StoredSecret {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Md5(own), Self::Md5(other)) => equal(own.as_bytes(), other.as_bytes()),
            (Self::Password(own), Self::Password(other)) => {
                equal(own.text.as_bytes(), other.text.as_bytes())
            }
            (Self::Scram(own), Self::Scram(other)) => own == other,
            _ => false,
        }
    }
}

impl Eq for StoredSecret {}

/// What kind it is, and nothing else.
impl fmt::Debug for StoredSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Md5(_) => "Md5",
            Self::Password(_) => "Password",
            Self::Scram(_) => "Scram",
        })
    }
}

impl fmt::Debug for PlainPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainPassword").finish_non_exhaustive()
    }
}

fn md5_of(password: &str, user: &str) -> String {
    postgres_protocol::password::md5(password.as_bytes(), user)
}

/// In a time that does not depend on where they differ.
pub(super) fn equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_told_apart_by_their_form() {
        let kind = |text: &str| format!("{:?}", StoredSecret::parse(text).expect(text));
        assert_eq!(kind("md50123456789abcdef0123456789ABCDEF"), "Md5");
        assert_eq!(kind("md50123456789abcdef"), "Password");
        assert_eq!(kind(""), "Password");
        let scram = ScramSecret::from_password("p").to_text();
        assert_eq!(kind(&scram), "Scram");
        assert!(StoredSecret::parse("SCRAM-SHA-256$x").is_err());
    }

    #[test]
    fn each_kind_knows_its_password_and_shows_none() {
        for secret in [
            postgres_protocol::password::md5(b"geheim", "u"),
            "geheim".to_owned(),
            ScramSecret::from_password("geheim").to_text(),
        ] {
            let stored = StoredSecret::parse(&secret).expect("valid");
            assert!(stored.has_password("u", "geheim"), "{secret}");
            assert!(!stored.has_password("u", "Geheim"), "{secret}");
            assert!(!format!("{stored:?}").contains("geheim"));
        }
    }
}
