//! The server's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), as PostgreSQL speaks it. No I/O.
//!
//! The client's side, and the making of a secret from a password, are `postgres-protocol`'s. The libraries for this side
//! either panic on short messages or insist on user names that PostgreSQL's clients leave empty.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::error::{HeliosError, Result};

type Key = [u8; 32];

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

impl fmt::Debug for ScramSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramSecret").finish_non_exhaustive()
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
    #[expect(
        clippy::missing_panics_doc,
        reason = "what is made here always has the form that is read"
    )]
    pub fn from_password(password: &str) -> Self {
        let text = postgres_protocol::password::scram_sha_256(password.as_bytes());
        Self::parse(&text).expect("it has the form that PostgreSQL stores")
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
}

/// An exchange between the client's two messages.
#[derive(Debug)]
pub struct ScramExchange {
    secret: ScramSecret,
    /// `n,,` or `y,,`, as the client has to repeat it.
    gs2_header: String,
    nonce: String,
    /// What both ends sign, so far.
    signed: String,
}

impl ScramExchange {
    /// Works on the client's first message, and returns the answer to it.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if it is none that can be answered.
    pub fn begin(secret: ScramSecret, client_first: &[u8]) -> Result<(Self, String)> {
        let mut nonce = [0; 18];
        rand::fill(&mut nonce);
        Self::begin_with(secret, client_first, &BASE64.encode(nonce))
    }

    fn begin_with(
        secret: ScramSecret,
        client_first: &[u8],
        own_nonce: &str,
    ) -> Result<(Self, String)> {
        let text = std::str::from_utf8(client_first).map_err(|_| violation("it is not UTF-8"))?;
        let bare_at = text
            .match_indices(',')
            .nth(1)
            .map(|(at, _)| at + 1)
            .ok_or_else(|| violation("the first message is too short"))?;
        let (gs2_header, bare) = text.split_at(bare_at);
        match gs2_header {
            "n,," | "y,," => {}
            _ if gs2_header.starts_with("p=") => {
                return Err(violation("channel binding was not offered"));
            }
            _ => {
                return Err(violation(
                    "authorization identities are not supported, or the header is malformed",
                ));
            }
        }
        let mut attributes = bare.split(',');
        let user = attributes.next().and_then(|part| part.strip_prefix("n="));
        let nonce = attributes.next().and_then(|part| part.strip_prefix("r="));
        let (Some(_), Some(client_nonce)) = (user, nonce) else {
            return Err(violation("the first message lacks a name or a nonce"));
        };
        if client_nonce.is_empty() || !client_nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(violation("the nonce is malformed"));
        }
        let nonce = format!("{client_nonce}{own_nonce}");
        let server_first = format!(
            "r={nonce},s={},i={}",
            BASE64.encode(&secret.salt),
            secret.iterations
        );
        let exchange = Self {
            secret,
            gs2_header: gs2_header.to_owned(),
            nonce,
            signed: format!("{bare},{server_first}"),
        };
        Ok((exchange, server_first))
    }

    /// Works on the client's last message. If it proves that the client knows the password, returns the message that
    /// proves that this end knows the secret; `None` if the password is wrong.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if it does not belong to this exchange.
    pub fn finish(self, client_final: &[u8]) -> Result<Option<String>> {
        let text = std::str::from_utf8(client_final).map_err(|_| violation("it is not UTF-8"))?;
        let (without_proof, proof) = text
            .rsplit_once(",p=")
            .ok_or_else(|| violation("the last message has no proof"))?;
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|part| part.strip_prefix("c="));
        if binding != Some(&BASE64.encode(&self.gs2_header)) {
            return Err(violation(
                "the channel binding is not that of the beginning",
            ));
        }
        let nonce = attributes.next().and_then(|part| part.strip_prefix("r="));
        if nonce != Some(&self.nonce) {
            return Err(violation("the nonce is not that of this exchange"));
        }
        let proof = BASE64
            .decode(proof)
            .ok()
            .and_then(|proof| Key::try_from(proof).ok())
            .ok_or_else(|| violation("the proof is malformed"))?;
        let signed = [self.signed.as_bytes(), b",", without_proof.as_bytes()];
        let signature = hmac(&self.secret.stored_key, &signed);
        let client_key: Key = std::array::from_fn(|at| proof[at] ^ signature[at]);
        let is_right = Sha256::digest(client_key).ct_eq(&self.secret.stored_key[..]);
        if !bool::from(is_right) || self.secret.is_mock {
            return Ok(None);
        }
        let proof = hmac(&self.secret.server_key, &signed);
        Ok(Some(format!("v={}", BASE64.encode(proof))))
    }
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("keys of any length will do");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn violation(what: &str) -> HeliosError {
    HeliosError::Protocol(format!("SCRAM authentication: {what}"))
}

#[cfg(test)]
mod tests {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    use proptest::prelude::*;

    use super::*;

    /// What a client of `password` makes of a server that keeps `secret`.
    fn log_in(password: &str, secret: ScramSecret) -> Result<bool> {
        let mut client = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        let (exchange, first) = ScramExchange::begin(secret, client.message())?;
        client.update(first.as_bytes()).expect("understood");
        let Some(last) = exchange.finish(client.message())? else {
            return Ok(false);
        };
        client.finish(last.as_bytes()).expect("the server's proof");
        Ok(true)
    }

    #[test]
    fn the_right_password_is_let_in_and_no_other() {
        let secret = ScramSecret::from_password("pencil");
        assert!(log_in("pencil", secret.clone()).expect("in order"));
        assert!(!log_in("Pencil", secret.clone()).expect("in order"));
        assert!(!log_in("", secret).expect("in order"));
        assert!(!log_in("pencil", ScramSecret::mock("nobody", b"seed")).expect("in order"));
    }

    /// The exchange of RFC 7677, section 3.
    #[test]
    fn the_example_of_the_standard() {
        let salt = "W22ZaJ0SNY7soEsUEjb6gQ==";
        let salted = postgres_protocol_hi(b"pencil", &BASE64.decode(salt).expect("base64"));
        let client_key = hmac(&salted, &[b"Client Key"]);
        let stored = BASE64.encode(Sha256::digest(client_key));
        let server = BASE64.encode(hmac(&salted, &[b"Server Key"]));
        let text = format!("SCRAM-SHA-256$4096:{salt}${stored}:{server}");
        let secret = ScramSecret::parse(&text).expect("well formed");
        let (exchange, first) = ScramExchange::begin_with(
            secret,
            b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
            "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
        )
        .expect("in order");
        assert_eq!(
            first,
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let last = exchange
            .finish(
                b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                  p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            )
            .expect("in order");
        let proof = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(last.as_deref(), Some(proof));
    }

    /// PBKDF2 with 4096 rounds.
    fn postgres_protocol_hi(password: &[u8], salt: &[u8]) -> Key {
        let mut block = hmac(password, &[salt, &[0, 0, 0, 1]]);
        let mut key = block;
        for _ in 1..4096 {
            block = hmac(password, &[&block]);
            key = std::array::from_fn(|at| key[at] ^ block[at]);
        }
        key
    }

    #[test]
    fn a_user_that_does_not_exist_looks_like_one_that_does() {
        let first = |user, seed: &[u8]| {
            let secret = ScramSecret::mock(user, seed);
            ScramExchange::begin_with(secret, b"n,,n=,r=a", "b")
                .expect("in order")
                .1
        };
        assert_eq!(first("a", b"1"), first("a", b"1"));
        assert_ne!(first("a", b"1"), first("b", b"1"));
        assert_ne!(first("a", b"1"), first("a", b"2"));
        assert!(first("a", b"1").ends_with("i=4096"));
        // The key that the mock keeps is no way in: whoever guesses the seed is still refused.
        let secret = ScramSecret::mock("a", b"1");
        assert!(secret.is_mock);
    }

    #[test]
    fn what_does_not_belong_to_the_exchange_is_refused() {
        let begin = |first: &[u8]| {
            ScramExchange::begin_with(ScramSecret::from_password("p"), first, "server")
        };
        for first in [
            &b""[..],
            b"n",
            b"n,",
            b"n,,",
            b"n,,n=",
            b"n,,n=,r=",
            b"n,,r=x,n=",
            b"n,a=other,n=,r=x",
            b"p=tls-unique,,n=,r=x",
            b"x,,n=,r=x",
            b"n,,n=,r=\x01",
            b"n,,n=,r=\xff",
            b"n,,m=x,n=,r=x",
        ] {
            assert!(begin(first).is_err(), "{}", first.escape_ascii());
        }
        let proof = BASE64.encode([0; 32]);
        let finish = |last: String| {
            let (exchange, _) = begin(b"n,,n=,r=client").expect("in order");
            exchange.finish(last.as_bytes())
        };
        assert_eq!(
            finish(format!("c=biws,r=clientserver,p={proof}")).expect("in order"),
            None
        );
        for last in [
            String::new(),
            format!("c=biws,r=clientserver,p={proof}="),
            "c=biws,r=clientserver,p=AAAA".to_owned(),
            "c=biws,r=clientserver".to_owned(),
            format!("c=biws,r=other,p={proof}"),
            format!("c=eSws,r=clientserver,p={proof}"),
            format!("r=clientserver,c=biws,p={proof}"),
        ] {
            assert!(finish(last.clone()).is_err(), "{last}");
        }
    }

    #[test]
    fn a_secret_is_read_as_postgresql_stores_it() {
        let key = BASE64.encode([1; 32]);
        assert!(ScramSecret::parse(&format!("SCRAM-SHA-256$4096:c2FsdA==${key}:{key}")).is_ok());
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

    proptest! {
        #[test]
        fn no_message_makes_it_panic(first: Vec<u8>, last: Vec<u8>) {
            let secret = ScramSecret::mock("a", b"seed");
            let _ = ScramExchange::begin(secret.clone(), &first);
            let (exchange, _) = ScramExchange::begin(secret, b"n,,n=,r=x").expect("in order");
            prop_assert!(!matches!(exchange.finish(&last), Ok(Some(_))));
        }
    }
}
