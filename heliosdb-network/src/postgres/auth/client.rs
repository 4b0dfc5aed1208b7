//! The client's side of authentication.

use bytes::BytesMut;
use postgres_protocol::authentication::{md5_hash, sasl};

use crate::error::{HeliosError, Result};

use super::frame::Reader;
use super::message;
use super::target::PgTarget;

/// A login in progress: what was asked is answered by the method that the server chose.
#[derive(Default)]
pub(crate) enum Login {
    /// No proof is owed by the server.
    #[default]
    Open,
    /// SCRAM is under way: the server has yet to prove that it knows the password too.
    Scram(Box<sasl::ScramSha256>),
}

impl Login {
    /// Works on the body of an Authentication message and appends the answer. True once the server is satisfied.
    pub(crate) fn answer(
        &mut self,
        body: &[u8],
        target: &PgTarget,
        out: &mut BytesMut,
    ) -> Result<bool> {
        let mut body = Reader::new(body);
        let method = body
            .u32()
            .ok_or_else(|| violation("truncated Authentication message"))?;
        match (method, &mut *self) {
            (OK, Self::Open) => return Ok(true),
            // Whoever can't finish SCRAM does not know the password: it is not the server that we mean.
            (OK, Self::Scram(_)) => {
                return Err(violation(
                    "the server broke off SCRAM authentication before its proof",
                ));
            }
            (CLEARTEXT_PASSWORD, _) => message::put_password_message(out, password(target)?),
            (MD5_PASSWORD, _) => {
                let salt = body
                    .rest()
                    .try_into()
                    .map_err(|_| violation("AuthenticationMD5Password without a salt"))?;
                let hash = md5_hash(target.user.as_bytes(), password(target)?.as_bytes(), salt);
                message::put_password_message(out, &hash);
            }
            (SASL, Self::Open) => *self = Self::begin_scram(body.rest(), target, out)?,
            (SASL_CONTINUE, Self::Scram(scram)) => {
                scram
                    .update(body.rest())
                    .map_err(|error| scram_failed(&error))?;
                message::put_sasl_response(out, scram.message());
            }
            (SASL_FINAL, Self::Scram(scram)) => {
                scram
                    .finish(body.rest())
                    .map_err(|error| scram_failed(&error))?;
                *self = Self::Open;
            }
            (SASL | SASL_CONTINUE | SASL_FINAL, _) => {
                return Err(violation("SASL authentication out of order"));
            }
            (method, _) => return Err(unsupported(method)),
        }
        Ok(false)
    }

    fn begin_scram(mechanisms: &[u8], target: &PgTarget, out: &mut BytesMut) -> Result<Self> {
        let mut offered = mechanisms.split(|byte| *byte == 0);
        if !offered.any(|name| name == sasl::SCRAM_SHA_256.as_bytes()) {
            return Err(HeliosError::Unsupported(format!(
                "the server offers none of the SASL mechanisms supported ({})",
                sasl::SCRAM_SHA_256
            )));
        }
        let scram = sasl::ScramSha256::new(
            password(target)?.as_bytes(),
            sasl::ChannelBinding::unsupported(),
        );
        message::put_sasl_initial_response(out, sasl::SCRAM_SHA_256, scram.message());
        Ok(Self::Scram(Box::new(scram)))
    }
}

// The methods, as the protocol numbers them.
const OK: u32 = 0;
const CLEARTEXT_PASSWORD: u32 = 3;
const MD5_PASSWORD: u32 = 5;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

fn password(target: &PgTarget) -> Result<&str> {
    target.password.as_deref().ok_or_else(|| {
        HeliosError::Unsupported(format!(
            "the server asks for a password for user {:?}, and none is configured",
            target.user
        ))
    })
}

fn unsupported(method: u32) -> HeliosError {
    let name = match method {
        2 => "Kerberos V5",
        6 => "SCM credentials",
        7 | 8 => "GSSAPI",
        9 => "SSPI",
        _ => "an unknown method",
    };
    HeliosError::Unsupported(format!(
        "the server asks for authentication by {name} ({method}); password, md5 and scram-sha-256 are supported"
    ))
}

fn scram_failed(error: &std::io::Error) -> HeliosError {
    HeliosError::Protocol(format!("SCRAM authentication failed: {error}"))
}

fn violation(what: &str) -> HeliosError {
    HeliosError::Protocol(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> PgTarget {
        PgTarget::from_url("postgres://u:p@h/d").expect("valid")
    }

    /// The answer to one Authentication message.
    fn answer(login: &mut Login, method: u32, data: &[u8]) -> Result<(bool, BytesMut)> {
        let mut out = BytesMut::new();
        let body = [&method.to_be_bytes(), data].concat();
        let done = login.answer(&body, &target(), &mut out)?;
        Ok((done, out))
    }

    #[test]
    fn passwords_go_as_they_are_asked_for() {
        let mut login = Login::default();
        let (done, clear) = answer(&mut login, CLEARTEXT_PASSWORD, b"").expect("answered");
        assert_eq!((done, &clear[..]), (false, &b"p\0\0\0\x06p\0"[..]));
        let (_, md5) = answer(&mut login, MD5_PASSWORD, b"salt").expect("answered");
        assert_eq!(
            &md5[..],
            b"p\0\0\0\x28md5c827f95590aef08f2d04ac5e8d94d9c3\0"
        );
        assert!(answer(&mut login, MD5_PASSWORD, b"sal").is_err());
        assert!(answer(&mut login, OK, b"").expect("answered").0);
    }

    #[test]
    fn a_server_that_skips_its_proof_is_not_believed() {
        let mut login = Login::default();
        let (_, first) = answer(&mut login, SASL, b"SCRAM-SHA-256\0\0").expect("answered");
        assert_eq!(&first[5..19], b"SCRAM-SHA-256\0");
        assert!(matches!(
            answer(&mut login, OK, b""),
            Err(HeliosError::Protocol(_))
        ));
        assert!(matches!(
            answer(&mut login, SASL, b"SCRAM-SHA-256\0\0"),
            Err(HeliosError::Protocol(_))
        ));
        assert!(matches!(
            answer(&mut login, SASL_FINAL, b"v=AAAA"),
            Err(HeliosError::Protocol(_))
        ));
    }

    #[test]
    fn a_server_with_a_nonce_of_its_own_or_endless_work_is_refused() {
        for challenge in [
            "r=theirs,s=c2FsdA==,i=4096",
            "i=99999999999999999999",
            "",
            "\u{0}",
        ] {
            let mut login = Login::default();
            answer(&mut login, SASL, b"SCRAM-SHA-256\0\0").expect("answered");
            let error = answer(&mut login, SASL_CONTINUE, challenge.as_bytes());
            assert!(
                matches!(error, Err(HeliosError::Protocol(_))),
                "{challenge}"
            );
        }
        // The client's nonce, with a count that would take minutes.
        let mut login = Login::default();
        let (_, first) = answer(&mut login, SASL, b"SCRAM-SHA-256\0\0").expect("answered");
        let at = first.windows(3).position(|window| window == b",r=");
        let nonce = &first[at.expect("a nonce") + 3..];
        let challenge = [b"r=", nonce, b"x,s=c2FsdA==,i=4000000000"].concat();
        assert!(matches!(
            answer(&mut login, SASL_CONTINUE, &challenge),
            Err(HeliosError::Protocol(_))
        ));
    }

    #[test]
    fn what_cannot_be_answered_is_named() {
        let error = |method, data: &[u8]| {
            answer(&mut Login::default(), method, data)
                .expect_err("not supported")
                .to_string()
        };
        assert!(error(7, b"").contains("GSSAPI"));
        assert!(error(9, b"").contains("SSPI"));
        assert!(error(77, b"").contains("77"));
        assert!(error(SASL, b"SCRAM-SHA-256-PLUS\0\0").contains("SCRAM-SHA-256"));
        let (mut nameless, mut out) = (target(), BytesMut::new());
        nameless.password = None;
        let error = Login::default().answer(&CLEARTEXT_PASSWORD.to_be_bytes(), &nameless, &mut out);
        assert!(
            error
                .expect_err("no password")
                .to_string()
                .contains("none is configured")
        );
    }
}
