//! The server's side of authentication.

use bytes::BytesMut;
use md5::{Digest as _, Md5};

use crate::error::{HeliosError, Result};
use crate::scram::{SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramExchange, ScramKeys, ScramSecret};

use super::super::frame::Reader;
use super::super::message;
use super::secret::{StoredSecret, equal};
use super::{CLEARTEXT_PASSWORD, MD5_PASSWORD, SASL, SASL_CONTINUE, SASL_FINAL, hex};

/// How a client proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there are no others with a secret")]
pub enum Proof {
    /// It sends the password as it is.
    Cleartext,
    /// It sends a hash of the password and a salt. Where a SCRAM secret is kept, SCRAM takes its place, as in PostgreSQL.
    Md5,
    /// SCRAM-SHA-256.
    Scram,
}

/// One client that is asked for a proof. Feed it the bodies of the client's messages of type `p`.
#[derive(Debug)]
pub struct Challenge {
    user: String,
    secret: Option<StoredSecret>,
    /// For a user that there is none of, or that has no secret of the kind.
    mock: ScramSecret,
    end_point: Option<Vec<u8>>,
    state: State,
}

#[derive(Debug)]
enum State {
    Cleartext,
    Md5([u8; 4]),
    Scram,
    ScramProof(Box<ScramExchange>),
    Over,
}

/// What a client's message led to.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "it goes on, or it is over")]
pub enum Step {
    /// Wrong, or there is no such user: nobody can tell which.
    Denied,
    /// The client is who it says it is.
    Granted(Box<Granted>),
    /// It has to send more.
    More,
}

/// What was learnt from a client that proved who it is: enough to be it elsewhere.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Granted {
    /// The keys of the secret, from a proof by SCRAM against a SCRAM secret.
    pub keys: Option<ScramKeys>,
    /// The password, where it was sent as it is.
    pub password: Option<PlainText>,
}

/// A password that does not print itself.
#[derive(Clone, PartialEq, Eq)]
pub struct PlainText(pub(super) String);

impl PlainText {
    /// The password.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for PlainText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// No honest message of a client that is not let in yet is longer, in bytes: its type and 64 KiB. PostgreSQL takes a byte
/// less, which is a password of 65,530; the next longer one is told to be wrong, and no violation of the protocol.
pub const PROOF_MESSAGE_MAX: usize = 1 + (64 << 10);

impl Challenge {
    /// Asks a client, and appends the question. `secret` is `None` for a user that there is none of: it goes as with any
    /// other. `seed` is this server's own, and secret. `end_point` offers channel binding.
    #[must_use]
    pub fn begin(
        proof: Proof,
        user: &str,
        secret: Option<StoredSecret>,
        seed: &[u8],
        end_point: Option<Vec<u8>>,
        out: &mut BytesMut,
    ) -> Self {
        let is_scram = matches!(secret, Some(StoredSecret::Scram(_)));
        let state = match proof {
            Proof::Cleartext => {
                put(out, CLEARTEXT_PASSWORD, b"");
                State::Cleartext
            }
            Proof::Md5 if !is_scram => {
                let mut salt = [0; 4];
                rand::fill(&mut salt);
                put(out, MD5_PASSWORD, &salt);
                State::Md5(salt)
            }
            Proof::Md5 | Proof::Scram => {
                let mut names = Vec::new();
                if end_point.is_some() {
                    names.extend(SCRAM_SHA_256_PLUS.as_bytes());
                    names.push(0);
                }
                names.extend(SCRAM_SHA_256.as_bytes());
                names.extend([0, 0]);
                put(out, SASL, &names);
                State::Scram
            }
        };
        Self {
            user: user.to_owned(),
            secret,
            mock: ScramSecret::mock(user, seed),
            end_point,
            state,
        }
    }

    /// Works on the body of a message of type `p`, and appends the answer, if there is one.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if it is none that belongs here; the client is not let in.
    pub fn answer(&mut self, body: &[u8], out: &mut BytesMut) -> Result<Step> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Cleartext => self.check_cleartext(body),
            State::Md5(salt) => self.check_md5(salt, body),
            State::Scram => self.begin_scram(body, out),
            State::ScramProof(exchange) => self.finish_scram(*exchange, body, out),
            State::Over => Err(violation("a password after the authentication was over")),
        }
    }

    fn check_cleartext(&self, body: &[u8]) -> Result<Step> {
        let password = password(body)?;
        let is_right = match &self.secret {
            Some(secret) => secret.has_password(&self.user, password),
            None => self.mock.has_password(password),
        };
        if password.is_empty() || !is_right {
            return Ok(Step::Denied);
        }
        Ok(granted(Granted {
            password: Some(PlainText(password.to_owned())),
            ..Granted::default()
        }))
    }

    fn check_md5(&self, salt: [u8; 4], body: &[u8]) -> Result<Step> {
        let answer = password(body)?;
        let hash = self
            .secret
            .as_ref()
            .and_then(|secret| secret.md5(&self.user));
        let is_known = hash.is_some();
        let hash = hash.unwrap_or_else(|| "md5".to_owned() + &"0".repeat(32));
        let digits = hash.strip_prefix("md5").unwrap_or_default();
        let digest = Md5::new()
            .chain_update(digits)
            .chain_update(salt)
            .finalize();
        let expected = format!("md5{}", hex(&digest));
        let is_right = equal(answer.as_bytes(), expected.as_bytes());
        let is_empty =
            matches!(&self.secret, Some(StoredSecret::Password(plain)) if plain.text().is_empty());
        Ok(if is_right && is_known && !is_empty {
            granted(Granted::default())
        } else {
            Step::Denied
        })
    }

    fn begin_scram(&mut self, body: &[u8], out: &mut BytesMut) -> Result<Step> {
        let mut reader = Reader::new(body);
        let mechanism = reader
            .cstr()
            .and_then(|name| std::str::from_utf8(name).ok());
        let first = reader.value().flatten();
        let (Some(mechanism), Some(first), Some(())) = (mechanism, first, reader.end()) else {
            return Err(violation("malformed SASLInitialResponse message"));
        };
        let known = self.secret.as_ref().and_then(StoredSecret::scram);
        let secret = known.unwrap_or_else(|| self.mock.clone());
        let end_point = self.end_point.as_deref();
        let (exchange, answer) = ScramExchange::begin_bound(secret, mechanism, first, end_point)?;
        put(out, SASL_CONTINUE, answer.as_bytes());
        self.state = State::ScramProof(Box::new(exchange));
        Ok(Step::More)
    }

    fn finish_scram(
        &self,
        exchange: ScramExchange,
        body: &[u8],
        out: &mut BytesMut,
    ) -> Result<Step> {
        let is_empty =
            matches!(&self.secret, Some(StoredSecret::Password(plain)) if plain.text().is_empty());
        let Some(proven) = exchange.finish(body)?.filter(|_| !is_empty) else {
            return Ok(Step::Denied);
        };
        put(out, SASL_FINAL, proven.message.as_bytes());
        // Those of a secret that was made here of a password open nothing elsewhere.
        let is_stored = matches!(self.secret, Some(StoredSecret::Scram(_)));
        Ok(granted(Granted {
            keys: is_stored.then_some(proven.keys),
            ..Granted::default()
        }))
    }
}

fn granted(granted: Granted) -> Step {
    Step::Granted(Box::new(granted))
}

/// The text of a PasswordMessage: everything up to its end, and nothing behind it.
fn password(body: &[u8]) -> Result<&str> {
    let mut reader = Reader::new(body);
    let text = reader
        .cstr()
        .and_then(|text| std::str::from_utf8(text).ok());
    match (text, reader.end()) {
        (Some(text), Some(())) => Ok(text),
        _ => Err(violation("invalid password packet size")),
    }
}

fn put(out: &mut BytesMut, method: u32, data: &[u8]) {
    message::put_authentication(out, method, data);
}

fn violation(what: &str) -> HeliosError {
    HeliosError::Protocol(what.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::frame;
    use super::super::super::target::{Credential, PgTarget};
    use super::super::Login;
    use super::*;

    /// What becomes of a client of ours at this end.
    fn log_in(
        proof: Proof,
        credential: Credential,
        secret: Option<StoredSecret>,
        end_point: Option<&[u8]>,
    ) -> Result<Option<Granted>> {
        let mut target = PgTarget::from_url("postgres://u@h/d").expect("valid");
        target.credential = credential;
        let mut login = Login::new(&target, end_point);
        let (mut asked, mut said) = (BytesMut::new(), BytesMut::new());
        let own = end_point.map(<[u8]>::to_vec);
        let mut challenge = Challenge::begin(proof, "u", secret, b"seed", own, &mut asked);
        loop {
            while let Some((b'R', body)) = frame::take(&mut asked, 4096)? {
                login.answer(&body, &mut said)?;
            }
            let (_, body) = frame::take(&mut said, 4096)?.expect("the client speaks");
            match challenge.answer(&body, &mut asked)? {
                Step::More => {}
                Step::Denied => return Ok(None),
                Step::Granted(granted) => {
                    while let Some((_, body)) = frame::take(&mut asked, 4096)? {
                        login.answer(&body, &mut said)?;
                    }
                    return Ok(Some(*granted));
                }
            }
        }
    }

    fn secrets() -> [StoredSecret; 3] {
        [
            StoredSecret::parse(&postgres_protocol::password::md5(b"geheim", "u")).expect("md5"),
            StoredSecret::password("geheim"),
            StoredSecret::Scram(ScramSecret::from_password("geheim")),
        ]
    }

    #[test]
    fn every_method_lets_in_who_knows_the_password_and_nobody_else() {
        for proof in [Proof::Cleartext, Proof::Md5, Proof::Scram] {
            for secret in secrets() {
                for end_point in [None, Some(&b"digest"[..])] {
                    let enters = |password: &str| {
                        let credential = Credential::Password(password.to_owned());
                        log_in(proof, credential, Some(secret.clone()), end_point)
                            .expect("in order")
                            .is_some()
                    };
                    // A hash is of no use for SCRAM.
                    let is_possible =
                        proof != Proof::Scram || !matches!(secret, StoredSecret::Md5(_));
                    assert_eq!(enters("geheim"), is_possible, "{proof:?} {secret:?}");
                    assert!(!enters("Geheim"), "{proof:?} {secret:?}");
                    assert!(!enters(""), "{proof:?} {secret:?}");
                }
            }
        }
    }

    #[test]
    fn the_longest_password_of_postgresql_fits_and_a_longer_one_is_wrong() {
        let longest = "a".repeat(65_530);
        let told = |password: &str| {
            let mut said = BytesMut::new();
            message::put_password_message(&mut said, password);
            let (_, body) = frame::take(&mut said, PROOF_MESSAGE_MAX)?.expect("all there");
            let secret = Some(StoredSecret::password(&longest));
            let mut out = BytesMut::new();
            let mut challenge =
                Challenge::begin(Proof::Cleartext, "u", secret, b"seed", None, &mut out);
            challenge.answer(&body, &mut out)
        };
        assert!(matches!(told(&longest), Ok(Step::Granted(_))));
        assert!(matches!(told(&format!("X{longest}")), Ok(Step::Denied)));
        assert!(told(&format!("XX{longest}")).is_err());
    }

    #[test]
    fn who_does_not_exist_or_has_an_empty_password_stays_out() {
        for proof in [Proof::Cleartext, Proof::Md5, Proof::Scram] {
            for (secret, password) in [(None, "geheim"), (None, ""), (Some(""), "")] {
                let secret = secret.map(StoredSecret::password);
                let credential = Credential::Password(password.to_owned());
                let entered = log_in(proof, credential, secret, None).expect("in order");
                assert!(entered.is_none(), "{proof:?}");
            }
        }
    }

    #[test]
    fn what_was_learnt_is_enough_for_the_server_behind() {
        let secret = StoredSecret::Scram(ScramSecret::from_password("geheim"));
        let password = || Credential::Password("geheim".to_owned());
        let scram = |credential| {
            log_in(Proof::Scram, credential, Some(secret.clone()), None).expect("in order")
        };
        let keys = scram(password()).and_then(|granted| granted.keys);
        let keys = Credential::Scram(Box::new(keys.expect("keys")));
        assert!(scram(keys).is_some());
        let clear = log_in(Proof::Cleartext, password(), Some(secret.clone()), None);
        let clear = clear.expect("in order").expect("let in");
        assert_eq!(clear.password.expect("sent").reveal(), "geheim");
    }

    #[test]
    fn messages_that_are_none_let_nobody_in() {
        let begin = |proof| {
            let mut out = BytesMut::new();
            let secret = Some(StoredSecret::password("p"));
            Challenge::begin(proof, "u", secret, b"seed", None, &mut out)
        };
        let mut out = BytesMut::new();
        for body in [&b""[..], b"p", b"p\0x", b"\xff\0"] {
            assert!(begin(Proof::Cleartext).answer(body, &mut out).is_err());
            assert!(begin(Proof::Md5).answer(body, &mut out).is_err());
        }
        // Lengths that lie, no data, a mechanism that was not offered, something behind the end.
        for body in [
            &b""[..],
            b"SCRAM-SHA-256\0",
            b"SCRAM-SHA-256\0\xff\xff\xff\xff",
            b"SCRAM-SHA-256\0\x7f\xff\xff\xffn,,n=,r=a",
            b"SCRAM-SHA-256\0\xff\xff\xff\xfen,,n=,r=a",
            b"SCRAM-SHA-256\0\0\0\0\x09n,,n=,r=a!",
            b"SCRAM-SHA-256-PLUS\0\0\0\0\x09n,,n=,r=a",
        ] {
            let answer = begin(Proof::Scram).answer(body, &mut out);
            assert!(answer.is_err(), "{}", body.escape_ascii());
        }
        let mut challenge = begin(Proof::Cleartext);
        assert!(matches!(
            challenge.answer(b"p\0", &mut out),
            Ok(Step::Granted(_))
        ));
        assert!(challenge.answer(b"p\0", &mut out).is_err(), "it is over");
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..3)) {
            for proof in [Proof::Cleartext, Proof::Md5, Proof::Scram] {
                let mut out = BytesMut::new();
                let mut challenge = Challenge::begin(proof, "u", None, b"seed", None, &mut out);
                for body in &bodies {
                    let answer = challenge.answer(body, &mut out);
                    prop_assert!(!matches!(answer, Ok(Step::Granted(_))));
                }
            }
        }
    }
}
