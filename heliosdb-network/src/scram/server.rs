//! The server's side.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::error::Result;

use super::{
    ClientKey, Key, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramKeys, ScramSecret, fresh_nonce, hmac,
    violation, xor,
};

/// An exchange between the client's two messages.
#[derive(Debug)]
pub struct ScramExchange {
    secret: ScramSecret,
    /// What the client has to repeat: its header, and what it is bound to.
    binding: Vec<u8>,
    nonce: String,
    /// What both ends sign, so far.
    signed: String,
}

/// A client that knows the password.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Proven {
    /// The message that proves that this end knows the secret.
    pub message: String,
    /// What it takes to log in elsewhere as this client, where the same secret is kept.
    pub keys: ScramKeys,
}

impl ScramExchange {
    /// Works on the client's first message, and returns the answer to it. No channel binding is offered.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`](crate::HeliosError::Protocol) if it is none that can be answered.
    pub fn begin(secret: ScramSecret, client_first: &[u8]) -> Result<(Self, String)> {
        Self::begin_with(secret, SCRAM_SHA_256, client_first, None, &fresh_nonce())
    }

    /// As [`begin`](Self::begin), by the mechanism that the client chose. `end_point` is the digest of this end's
    /// certificate, where the connection is encrypted and the mechanism with channel binding was offered.
    ///
    /// # Errors
    /// As there; also where a client that can do channel binding believes that this end can't, though it was offered:
    /// somebody in between took the offer away.
    pub fn begin_bound(
        secret: ScramSecret,
        mechanism: &str,
        client_first: &[u8],
        end_point: Option<&[u8]>,
    ) -> Result<(Self, String)> {
        Self::begin_with(secret, mechanism, client_first, end_point, &fresh_nonce())
    }

    fn begin_with(
        secret: ScramSecret,
        mechanism: &str,
        client_first: &[u8],
        end_point: Option<&[u8]>,
        own_nonce: &str,
    ) -> Result<(Self, String)> {
        let text = std::str::from_utf8(client_first).map_err(|_| violation("it is not UTF-8"))?;
        let bare_at = text
            .match_indices(',')
            .nth(1)
            .map(|(at, _)| at + 1)
            .ok_or_else(|| violation("the first message is too short"))?;
        let (gs2_header, bare) = text.split_at(bare_at);
        let binding = expected_binding(mechanism, gs2_header, end_point)?;
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
            binding,
            nonce,
            signed: format!("{bare},{server_first}"),
        };
        Ok((exchange, server_first))
    }

    /// Works on the client's last message; `None` if the password is wrong.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`](crate::HeliosError::Protocol) if it does not belong to this exchange, or was made for
    /// another connection than this one.
    pub fn finish(self, client_final: &[u8]) -> Result<Option<Proven>> {
        let text = std::str::from_utf8(client_final).map_err(|_| violation("it is not UTF-8"))?;
        let (without_proof, proof) = text
            .rsplit_once(",p=")
            .ok_or_else(|| violation("the last message has no proof"))?;
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|part| part.strip_prefix("c="));
        if binding != Some(&BASE64.encode(&self.binding)) {
            return Err(violation(
                "the channel binding is not that of this connection",
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
        let client_key = ClientKey(xor(&proof, &signature));
        let server_proof = hmac(&self.secret.server_key, &signed);
        Ok(ScramKeys::new(client_key, self.secret).map(|keys| Proven {
            message: format!("v={}", BASE64.encode(server_proof)),
            keys,
        }))
    }
}

/// What the client's last message has to repeat of the header of its first.
fn expected_binding(mechanism: &str, header: &str, end_point: Option<&[u8]>) -> Result<Vec<u8>> {
    let is_plus = match mechanism {
        SCRAM_SHA_256 => false,
        SCRAM_SHA_256_PLUS if end_point.is_some() => true,
        _ => {
            return Err(violation(
                "the client chose a mechanism that was not offered",
            ));
        }
    };
    match (header, end_point) {
        ("n,,", _) | ("y,,", None) if !is_plus => Ok(header.into()),
        ("y,,", Some(_)) if !is_plus => Err(violation(
            "the client supports channel binding and thinks that it was not offered, but it was",
        )),
        ("p=tls-server-end-point,,", Some(end_point)) if is_plus => {
            Ok([header.as_bytes(), end_point].concat())
        }
        _ if is_plus && header.starts_with("p=") => Err(violation(
            "channel binding by anything but tls-server-end-point is not supported",
        )),
        _ if is_plus => Err(violation("the client chose channel binding and uses none")),
        _ if header.starts_with("p=") => Err(violation("channel binding was not offered")),
        _ => Err(violation(
            "authorization identities are not supported, or the header is malformed",
        )),
    }
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
        client
            .finish(last.message.as_bytes())
            .expect("the server's proof");
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
        let salt = BASE64.decode(salt).expect("base64");
        let secret = ScramKeys::from_password("pencil", &salt, 4096).secret;
        let (exchange, first) = ScramExchange::begin_with(
            secret,
            SCRAM_SHA_256,
            b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
            None,
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
        assert_eq!(last.map(|proven| proven.message).as_deref(), Some(proof));
    }

    #[test]
    fn a_user_that_does_not_exist_looks_like_one_that_does() {
        let first = |user, seed: &[u8]| {
            let secret = ScramSecret::mock(user, seed);
            ScramExchange::begin_with(secret, SCRAM_SHA_256, b"n,,n=,r=a", None, "b")
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
    fn a_binding_is_that_of_the_connection_or_the_offer_was_taken_away() {
        let begin = |mechanism, first: &[u8], end_point| {
            let secret = ScramSecret::mock("a", b"seed");
            ScramExchange::begin_with(secret, mechanism, first, end_point, "s")
        };
        let end_point = Some(&b"digest"[..]);
        let bound = b"p=tls-server-end-point,,n=,r=c";
        // Without encryption there is nothing to bind to.
        assert!(begin(SCRAM_SHA_256_PLUS, bound, None).is_err());
        assert!(begin(SCRAM_SHA_256, b"y,,n=,r=c", None).is_ok());
        assert!(begin(SCRAM_SHA_256, b"n,,n=,r=c", end_point).is_ok());
        // It was offered: a client that could and saw no offer was lied to.
        assert!(begin(SCRAM_SHA_256, b"y,,n=,r=c", end_point).is_err());
        assert!(begin(SCRAM_SHA_256, bound, end_point).is_err());
        for first in [
            &b"n,,n=,r=c"[..],
            b"y,,n=,r=c",
            b"p=tls-unique,,n=,r=c",
            b"p=tls-server-end-point,a=x,n=,r=c",
        ] {
            assert!(begin(SCRAM_SHA_256_PLUS, first, end_point).is_err());
        }
        assert!(begin("SCRAM-SHA-1", b"n,,n=,r=c", end_point).is_err());
        let proof = BASE64.encode([0; 32]);
        for (digest, is_ours) in [(&b"digest"[..], true), (b"other", false), (b"", false)] {
            let (exchange, _) = begin(SCRAM_SHA_256_PLUS, bound, end_point).expect("in order");
            let binding = [&b"p=tls-server-end-point,,"[..], digest].concat();
            let last = format!("c={},r=cs,p={proof}", BASE64.encode(binding));
            assert_eq!(exchange.finish(last.as_bytes()).is_ok(), is_ours);
        }
    }

    #[test]
    fn what_does_not_belong_to_the_exchange_is_refused() {
        let begin = |first: &[u8]| {
            ScramExchange::begin_with(
                ScramSecret::from_password("p"),
                SCRAM_SHA_256,
                first,
                None,
                "server",
            )
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
        let wrong = finish(format!("c=biws,r=clientserver,p={proof}"));
        assert!(wrong.expect("in order").is_none());
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
