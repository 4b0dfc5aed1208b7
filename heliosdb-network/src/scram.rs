//! SCRAM-SHA-256 (RFC 5802, RFC 7677), with and without channel binding, as PostgreSQL speaks it. No I/O.
//!
//! [`ScramExchange`] is the server's side, [`ScramClient`] the client's. Both are here because none of the libraries lets
//! go of the keys: a gateway learns the [`ClientKey`] from a client's proof, and logs in to the server with it where it has
//! never seen the password. The libraries for the server's side also panic on short messages, or insist on user names that
//! PostgreSQL's clients leave empty. The primitives are libraries'.

mod client;
mod server;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::error::{HeliosError, Result};

pub use client::{ScramClient, ScramProof};
pub use server::{Proven, ScramExchange};

type Key = [u8; 32];

/// The mechanism without channel binding.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
/// The mechanism with it.
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// The longest work that a peer can ask for: its count of rounds comes before it has proved anything (CVE-2026-42198).
/// PostgreSQL's default is 4096.
const ITERATIONS_MAX: u32 = 100_000;

/// What a server keeps of a password: enough to check it, not enough to log in with.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramSecret {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: Key,
    server_key: Key,
    /// Nobody knows its password.
    is_mock: bool,
}

/// What a client proves that it knows: it is as good as the password, for servers that keep the same secret.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientKey(Key);

/// Enough to log in with to a server that keeps a certain secret, without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKeys {
    client_key: ClientKey,
    secret: ScramSecret,
}

impl fmt::Debug for ScramSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramSecret").finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientKey").finish_non_exhaustive()
    }
}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramKeys").finish_non_exhaustive()
    }
}

impl ScramSecret {
    /// Reads `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`, as in `pg_authid.rolpassword`.
    ///
    /// # Errors
    /// [`HeliosError::Unsupported`] if it is something else.
    pub fn parse(text: &str) -> Result<Self> {
        let read = || {
            let rest = text.strip_prefix("SCRAM-SHA-256$")?;
            let (cost, keys) = rest.split_once('$')?;
            let (iterations, salt) = cost.split_once(':')?;
            let (stored, server) = keys.split_once(':')?;
            let key = |text| Key::try_from(BASE64.decode(text).ok()?).ok();
            Some(Self {
                iterations: iterations.parse().ok().filter(|count| *count > 0)?,
                salt: BASE64.decode(salt).ok()?,
                stored_key: key(stored)?,
                server_key: key(server)?,
                is_mock: false,
            })
        };
        read().ok_or_else(|| {
            HeliosError::Unsupported("a secret is not of the form SCRAM-SHA-256$...".to_owned())
        })
    }

    /// A secret for a password, under a salt of its own.
    #[must_use]
    pub fn from_password(password: &str) -> Self {
        let mut salt = [0; 16];
        rand::fill(&mut salt);
        // Not by `postgres_protocol`: that hashes a long password anew in each round, which takes seconds.
        ScramKeys::from_password(password, &salt, 4096).secret
    }

    /// For a user that there is none of: the exchange goes as with any other and ends as with a wrong password, so that
    /// nobody learns which users there are. The same user gets the same salt each time; `seed` is the server's, and secret.
    #[must_use]
    pub fn mock(user: &str, seed: &[u8]) -> Self {
        let salt = hmac(seed, &[user.as_bytes()]);
        Self {
            iterations: 4096,
            salt: salt[..16].to_vec(),
            stored_key: salt,
            server_key: salt,
            is_mock: true,
        }
    }

    /// The form in which PostgreSQL stores it.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!(
            "SCRAM-SHA-256${}:{}${}:{}",
            self.iterations,
            BASE64.encode(&self.salt),
            BASE64.encode(self.stored_key),
            BASE64.encode(self.server_key)
        )
    }

    /// True for the password that it was made from. Takes as long for any other: thousands of rounds.
    #[must_use]
    pub fn has_password(&self, password: &str) -> bool {
        if self.iterations > ITERATIONS_MAX {
            return false;
        }
        let keys = ScramKeys::from_password(password, &self.salt, self.iterations);
        let is_right = keys.secret.stored_key.ct_eq(&self.stored_key);
        bool::from(is_right) && !self.is_mock
    }
}

impl ScramKeys {
    /// A key together with the secret that it opens; `None` if it does not.
    #[must_use]
    pub fn new(client_key: ClientKey, secret: ScramSecret) -> Option<Self> {
        let is_right = Sha256::digest(client_key.0).ct_eq(&secret.stored_key[..]);
        (bool::from(is_right) && !secret.is_mock).then_some(Self { client_key, secret })
    }

    /// The secret that it opens.
    #[must_use]
    pub fn secret(&self) -> &ScramSecret {
        &self.secret
    }

    fn from_password(password: &str, salt: &[u8], iterations: u32) -> Self {
        // A password that is not for text processing is taken as it is, as in PostgreSQL.
        let prepared = stringprep::saslprep(password).unwrap_or_else(|_| password.into());
        let salted: Key =
            pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(prepared.as_bytes(), salt, iterations);
        let client_key = hmac(&salted, &[b"Client Key"]);
        Self {
            client_key: ClientKey(client_key),
            secret: ScramSecret {
                iterations,
                salt: salt.to_vec(),
                stored_key: Sha256::digest(client_key).into(),
                server_key: hmac(&salted, &[b"Server Key"]),
                is_mock: false,
            },
        }
    }
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("keys of any length will do");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn xor(a: &Key, b: &Key) -> Key {
    std::array::from_fn(|at| a[at] ^ b[at])
}

fn fresh_nonce() -> String {
    let mut nonce = [0; 18];
    rand::fill(&mut nonce);
    BASE64.encode(nonce)
}

fn violation(what: &str) -> HeliosError {
    HeliosError::Protocol(format!("SCRAM authentication: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_as_postgresql_stores_it() {
        let key = BASE64.encode([1; 32]);
        let text = format!("SCRAM-SHA-256$4096:c2FsdA==${key}:{key}");
        assert_eq!(ScramSecret::parse(&text).expect("valid").to_text(), text);
        for text in [
            "",
            "md5abc",
            "SCRAM-SHA-256$",
            "SCRAM-SHA-256$4096:c2FsdA==$AAAA:AAAA",
            &format!("SCRAM-SHA-256$0:c2FsdA==${key}:{key}"),
            &format!("SCRAM-SHA-256$x:c2FsdA==${key}:{key}"),
            &format!("SCRAM-SHA-256$4096:?${key}:{key}"),
        ] {
            assert!(ScramSecret::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_password_is_known_by_its_secret() {
        // The two spellings of an umlaut are one password.
        let secret = ScramSecret::from_password("gr\u{fc}n");
        assert!(secret.has_password("gr\u{fc}n"));
        assert!(secret.has_password("gru\u{308}n"));
        assert!(!secret.has_password("grun"));
        assert!(!ScramSecret::mock("u", b"seed").has_password(""));
    }

    #[test]
    fn a_key_opens_its_own_secret_and_no_other() {
        let keys = ScramKeys::from_password("pencil", b"salt", 2);
        let key = keys.client_key.clone();
        assert!(ScramKeys::new(key.clone(), keys.secret.clone()).is_some());
        assert!(ScramKeys::new(key, ScramSecret::from_password("pencil")).is_none());
        let mut mock = keys.secret;
        mock.is_mock = true;
        assert!(ScramKeys::new(keys.client_key, mock).is_none());
    }
}
