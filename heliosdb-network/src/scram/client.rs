//! The client's side.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use subtle::ConstantTimeEq as _;

use crate::error::{HeliosError, Result};

use super::{
    ITERATIONS_MAX, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramKeys, fresh_nonce, hmac, violation, xor,
};

/// What a client logs in with.
#[derive(Clone)]
#[non_exhaustive]
pub enum ScramProof {
    /// The keys of the secret that the server keeps.
    Keys(Box<ScramKeys>),
    /// The password.
    Password(String),
}

impl std::fmt::Debug for ScramProof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Keys(_) => "Keys",
            Self::Password(_) => "Password",
        })
    }
}

/// A login in progress. The server is believed only when [`finish`](Self::finish) says so.
#[derive(Debug)]
pub struct ScramClient {
    state: State,
    nonce: String,
    /// The header of the first message, and what the connection is bound to.
    gs2_header: &'static str,
    end_point: Vec<u8>,
}

#[derive(Debug)]
enum State {
    Begun(ScramProof),
    Proven {
        keys: Box<ScramKeys>,
        signed: String,
    },
    Over,
}

impl ScramClient {
    /// A login over a connection. `end_point` is the digest of the server's certificate, to be given where the server
    /// offers channel binding. `is_able` is true where channel binding could be done but is not offered: a server that
    /// did offer it then finds out that somebody took its offer away.
    #[must_use]
    pub fn new(proof: ScramProof, end_point: Option<Vec<u8>>, is_able: bool) -> Self {
        let gs2_header = match (&end_point, is_able) {
            (Some(_), _) => "p=tls-server-end-point,,",
            (None, true) => "y,,",
            (None, false) => "n,,",
        };
        Self {
            state: State::Begun(proof),
            nonce: fresh_nonce(),
            gs2_header,
            end_point: end_point.unwrap_or_default(),
        }
    }

    /// The mechanism to name to the server.
    #[must_use]
    pub fn mechanism(&self) -> &'static str {
        if self.gs2_header.starts_with('p') {
            SCRAM_SHA_256_PLUS
        } else {
            SCRAM_SHA_256
        }
    }

    /// The first message.
    #[must_use]
    pub fn first(&self) -> String {
        format!("{}n=,r={}", self.gs2_header, self.nonce)
    }

    /// Works on the server's first message, and returns the proof.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if it is no answer to ours, [`HeliosError::Unsupported`] where keys are at hand and the
    /// server keeps another secret.
    pub fn answer(&mut self, server_first: &[u8]) -> Result<String> {
        let State::Begun(proof) = std::mem::replace(&mut self.state, State::Over) else {
            return Err(violation("the messages are out of order"));
        };
        let text = std::str::from_utf8(server_first).map_err(|_| violation("it is not UTF-8"))?;
        let mut attributes = text.split(',');
        let mut attribute = |name| attributes.next().and_then(|part| part.strip_prefix(name));
        let (Some(nonce), Some(salt), Some(iterations)) =
            (attribute("r="), attribute("s="), attribute("i="))
        else {
            return Err(violation("the server's first message is malformed"));
        };
        let is_ours = nonce
            .strip_prefix(self.nonce.as_str())
            .is_some_and(|theirs| {
                !theirs.is_empty() && theirs.bytes().all(|byte| byte.is_ascii_graphic())
            });
        if !is_ours {
            return Err(violation("the nonce does not go on from ours"));
        }
        let salt = BASE64
            .decode(salt)
            .map_err(|_| violation("the salt is malformed"))?;
        let iterations = iterations
            .parse()
            .ok()
            .filter(|count| (1..=ITERATIONS_MAX).contains(count))
            .ok_or_else(|| violation("the count of rounds is none, or would take too long"))?;
        let keys = match proof {
            ScramProof::Password(password) => {
                Box::new(ScramKeys::from_password(&password, &salt, iterations))
            }
            ScramProof::Keys(keys)
                if keys.secret.salt == salt && keys.secret.iterations == iterations =>
            {
                keys
            }
            ScramProof::Keys(_) => {
                return Err(HeliosError::Unsupported(
                    "the server keeps another SCRAM secret for this user than the one whose keys are at hand"
                        .to_owned(),
                ));
            }
        };
        let binding = BASE64.encode([self.gs2_header.as_bytes(), &self.end_point].concat());
        let without_proof = format!("c={binding},r={nonce}");
        let signed = format!("n=,r={},{text},{without_proof}", self.nonce);
        let signature = hmac(&keys.secret.stored_key, &[signed.as_bytes()]);
        let proof = xor(&keys.client_key.0, &signature);
        self.state = State::Proven { keys, signed };
        Ok(format!("{without_proof},p={}", BASE64.encode(proof)))
    }

    /// Works on the server's last message. Only now has the server proved that it knows the secret, and the client is in.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if the server proves nothing.
    pub fn finish(&mut self, server_final: &[u8]) -> Result<()> {
        let State::Proven { keys, signed } = std::mem::replace(&mut self.state, State::Over) else {
            return Err(violation("the messages are out of order"));
        };
        if let Some(error) = server_final.strip_prefix(b"e=") {
            let error = String::from_utf8_lossy(error);
            return Err(violation(&format!("the server says {error:?}")));
        }
        let proof = server_final
            .strip_prefix(b"v=")
            .and_then(|proof| BASE64.decode(proof).ok())
            .ok_or_else(|| violation("the server's last message is malformed"))?;
        let expected = hmac(&keys.secret.server_key, &[signed.as_bytes()]);
        if !bool::from(expected[..].ct_eq(&proof)) {
            return Err(violation("the server does not know the password"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{ScramExchange, ScramSecret};
    use super::*;

    /// What becomes of a login, and the keys that the server's side got out of it.
    fn log_in(
        proof: ScramProof,
        secret: ScramSecret,
        ends: (Option<&[u8]>, Option<&[u8]>),
    ) -> Result<Option<ScramKeys>> {
        let (client_end, server_end) = ends;
        let mut client = ScramClient::new(proof, client_end.map(<[u8]>::to_vec), true);
        let first = client.first();
        let (exchange, answer) =
            ScramExchange::begin_bound(secret, client.mechanism(), first.as_bytes(), server_end)?;
        let last = client.answer(answer.as_bytes())?;
        let Some(proven) = exchange.finish(last.as_bytes())? else {
            return Ok(None);
        };
        client.finish(proven.message.as_bytes())?;
        Ok(Some(proven.keys))
    }

    #[test]
    fn the_keys_of_one_login_are_enough_for_the_next() {
        let secret = ScramSecret::from_password("pencil");
        let password = ScramProof::Password("pencil".to_owned());
        let keys = log_in(password, secret.clone(), (None, None)).expect("in order");
        let keys = Box::new(keys.expect("let in"));
        let again = ScramProof::Keys(keys);
        let bound = Some(&b"digest"[..]);
        for ends in [(None, None), (bound, bound)] {
            let entered = log_in(again.clone(), secret.clone(), ends).expect("in order");
            assert!(entered.is_some());
        }
        // The same password under another salt is another secret.
        let other = log_in(again, ScramSecret::from_password("pencil"), (None, None));
        assert!(matches!(other, Err(HeliosError::Unsupported(_))));
        let wrong = ScramProof::Password("pen".to_owned());
        assert!(
            log_in(wrong, secret, (bound, bound))
                .expect("in order")
                .is_none()
        );
    }

    #[test]
    fn who_is_in_between_cannot_take_the_binding_away_or_replace_it() {
        let secret = ScramSecret::from_password("p");
        let proof = ScramProof::Password("p".to_owned());
        let (ours, theirs) = (Some(&b"ours"[..]), Some(&b"theirs"[..]));
        assert!(log_in(proof.clone(), secret.clone(), (ours, theirs)).is_err());
        assert!(log_in(proof, secret, (None, ours)).is_err());
    }

    #[test]
    fn a_server_that_proves_nothing_is_not_believed() {
        let begun = || {
            let proof = ScramProof::Password("p".to_owned());
            let client = ScramClient::new(proof, None, false);
            let challenge = format!("r={}x,s=c2FsdA==,i=1", client.nonce);
            (client, challenge)
        };
        for last in [&b""[..], b"v=", b"v=AAAA", b"e=other-error", b"\xff"] {
            let (mut client, challenge) = begun();
            client.answer(challenge.as_bytes()).expect("in order");
            assert!(client.finish(last).is_err(), "{}", last.escape_ascii());
        }
        let (mut client, challenge) = begun();
        assert!(client.finish(b"v=AAAA").is_err());
        assert!(client.answer(challenge.as_bytes()).is_err(), "it is over");
        // A nonce without a part of the server's could be one of an earlier login.
        let (mut client, challenge) = begun();
        let replayed = challenge.replacen("x,s=", ",s=", 1);
        assert!(client.answer(replayed.as_bytes()).is_err());
        let (mut client, challenge) = begun();
        let endless = challenge.replacen("i=1", "i=100001", 1);
        assert!(client.answer(endless.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(first: Vec<u8>, tail in "[ -~]{0,40}", last: Vec<u8>) {
            let client = || ScramClient::new(ScramProof::Password("p".to_owned()), None, false);
            prop_assert!(client().answer(&first).is_err());
            let mut client = client();
            let challenge = format!("r={}{tail}", client.nonce);
            let _ = client.answer(challenge.as_bytes());
            prop_assert!(client.finish(&last).is_err());
        }
    }
}
