//! The client's side of authentication.

use bytes::BytesMut;
use md5::{Digest as _, Md5};
use postgres_protocol::authentication::md5_hash;

use crate::error::{HeliosError, Result};
use crate::scram::{SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramClient, ScramProof};
use crate::tls::ChannelBindingMode;

use super::super::frame::Reader;
use super::super::message;
use super::super::target::{Credential, PgTarget};
use super::{CLEARTEXT_PASSWORD, MD5_PASSWORD, OK, SASL, SASL_CONTINUE, SASL_FINAL, hex};

/// A login in progress: what was asked is answered by the method that the server chose.
#[derive(Debug)]
pub(crate) struct Login<'a> {
    target: &'a PgTarget,
    /// The digest of the server's certificate, where the connection is encrypted and it has one.
    end_point: Option<&'a [u8]>,
    scram: Option<Box<ScramClient>>,
    /// By SCRAM with channel binding, to the end.
    is_bound: bool,
}

impl<'a> Login<'a> {
    pub(crate) fn new(target: &'a PgTarget, end_point: Option<&'a [u8]>) -> Self {
        Self {
            target,
            end_point,
            scram: None,
            is_bound: false,
        }
    }

    /// Works on the body of an Authentication message and appends the answer. True once the server is satisfied.
    pub(crate) fn answer(&mut self, body: &[u8], out: &mut BytesMut) -> Result<bool> {
        let mut body = Reader::new(body);
        let method = body
            .u32()
            .ok_or_else(|| violation("truncated Authentication message"))?;
        if !matches!(method, SASL | SASL_CONTINUE | SASL_FINAL) {
            self.check_binding()?;
        }
        match (method, &mut self.scram) {
            (OK, None) => return Ok(true),
            // Whoever can't finish SCRAM does not know the password: it is not the server that we mean.
            (OK, Some(_)) => {
                return Err(violation(
                    "the server broke off SCRAM authentication before its proof",
                ));
            }
            (CLEARTEXT_PASSWORD, _) => match &self.target.credential {
                Credential::Password(password) => message::put_password_message(out, password),
                _ => return Err(self.no_proof("a password")),
            },
            (MD5_PASSWORD, _) => {
                let salt = body
                    .rest()
                    .try_into()
                    .map_err(|_| violation("AuthenticationMD5Password without a salt"))?;
                message::put_password_message(out, &self.md5(salt)?);
            }
            (SASL, None) => self.begin_scram(body.rest(), out)?,
            (SASL_CONTINUE, Some(scram)) => {
                let proof = scram.answer(body.rest())?;
                message::put_sasl_response(out, proof.as_bytes());
            }
            (SASL_FINAL, Some(scram)) => {
                scram.finish(body.rest())?;
                self.is_bound = scram.mechanism() == SCRAM_SHA_256_PLUS;
                self.scram = None;
            }
            (SASL | SASL_CONTINUE | SASL_FINAL, _) => {
                return Err(violation("SASL authentication out of order"));
            }
            (method, _) => return Err(unsupported(method)),
        }
        Ok(false)
    }

    /// Where channel binding is required, nothing else is a login.
    fn check_binding(&self) -> Result<()> {
        if self.target.channel_binding == ChannelBindingMode::Require && !self.is_bound {
            return Err(HeliosError::Unsupported(
                "channel_binding=require, and the server does not log us in by SCRAM-SHA-256-PLUS"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    fn md5(&self, salt: [u8; 4]) -> Result<String> {
        match &self.target.credential {
            Credential::Password(password) => Ok(md5_hash(
                self.target.user.as_bytes(),
                password.as_bytes(),
                salt,
            )),
            Credential::Md5(hash) => {
                let digits = hash.strip_prefix("md5").unwrap_or(hash);
                let digest = Md5::new()
                    .chain_update(digits)
                    .chain_update(salt)
                    .finalize();
                Ok(format!("md5{}", hex(&digest)))
            }
            _ => Err(self.no_proof("a password by md5")),
        }
    }

    fn begin_scram(&mut self, mechanisms: &[u8], out: &mut BytesMut) -> Result<()> {
        let offers = |name: &str| {
            let mut offered = mechanisms.split(|byte| *byte == 0);
            offered.any(|offered| offered == name.as_bytes())
        };
        let mode = self.target.channel_binding;
        let is_able = self.end_point.is_some() && mode != ChannelBindingMode::Disable;
        let binds = is_able && offers(SCRAM_SHA_256_PLUS);
        if !binds {
            if mode == ChannelBindingMode::Require {
                return self.check_binding();
            }
            if !offers(SCRAM_SHA_256) {
                return Err(HeliosError::Unsupported(format!(
                    "the server offers none of the SASL mechanisms supported ({SCRAM_SHA_256})"
                )));
            }
        }
        let proof = match &self.target.credential {
            Credential::Password(password) => ScramProof::Password(password.clone()),
            Credential::Scram(keys) => ScramProof::Keys(keys.clone()),
            _ => return Err(self.no_proof("a password by SCRAM")),
        };
        let end_point = self.end_point.filter(|_| binds).map(<[u8]>::to_vec);
        let scram = ScramClient::new(proof, end_point, is_able);
        message::put_sasl_initial_response(out, scram.mechanism(), scram.first().as_bytes());
        self.scram = Some(Box::new(scram));
        Ok(())
    }

    fn no_proof(&self, asked: &str) -> HeliosError {
        let has = match self.target.credential {
            // A SCRAM secret in a file is none: whoever has it can check a password, and not know it.
            Credential::None => "none is known",
            Credential::Md5(_) => "an md5 hash is of no use for that",
            Credential::Password(_) => "a password is of no use for that",
            Credential::Scram(_) => "the keys of a SCRAM secret are of no use for that",
        };
        HeliosError::Unsupported(format!(
            "wrong password type: the server asks for {asked} for user {:?}, and {has}",
            self.target.user
        ))
    }
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
    fn answer(login: &mut Login<'_>, method: u32, data: &[u8]) -> Result<(bool, BytesMut)> {
        let mut out = BytesMut::new();
        let body = [&method.to_be_bytes(), data].concat();
        let done = login.answer(&body, &mut out)?;
        Ok((done, out))
    }

    #[test]
    fn passwords_go_as_they_are_asked_for() {
        let target = target();
        let mut login = Login::new(&target, None);
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
        let target = target();
        let mut login = Login::new(&target, None);
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
            let target = target();
            let mut login = Login::new(&target, None);
            answer(&mut login, SASL, b"SCRAM-SHA-256\0\0").expect("answered");
            let error = answer(&mut login, SASL_CONTINUE, challenge.as_bytes());
            assert!(
                matches!(error, Err(HeliosError::Protocol(_))),
                "{challenge}"
            );
        }
        // The client's nonce, with a count that would take minutes.
        let target = target();
        let mut login = Login::new(&target, None);
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
        let target = target();
        let error = |method, data: &[u8]| {
            answer(&mut Login::new(&target, None), method, data)
                .expect_err("not supported")
                .to_string()
        };
        assert!(error(7, b"").contains("GSSAPI"));
        assert!(error(9, b"").contains("SSPI"));
        assert!(error(77, b"").contains("77"));
        assert!(error(SASL, b"SCRAM-SHA-256-PLUS\0\0").contains("SCRAM-SHA-256"));
        let mut nameless = target.clone();
        nameless.credential = Credential::None;
        let error = answer(&mut Login::new(&nameless, None), CLEARTEXT_PASSWORD, b"");
        let error = error.expect_err("no password").to_string();
        assert!(error.contains("none is known"), "{error}");
    }

    #[test]
    fn a_hash_is_as_good_as_the_password_for_md5_and_for_nothing_else() {
        let mut target = target();
        // Of the password "p" and the user "u".
        let hash = postgres_protocol::password::md5(b"p", "u");
        target.credential = Credential::Md5(hash);
        let (_, md5) = answer(&mut Login::new(&target, None), MD5_PASSWORD, b"salt").expect("ok");
        assert_eq!(
            &md5[..],
            b"p\0\0\0\x28md5c827f95590aef08f2d04ac5e8d94d9c3\0"
        );
        for (method, data) in [(CLEARTEXT_PASSWORD, &b""[..]), (SASL, b"SCRAM-SHA-256\0\0")] {
            let error = answer(&mut Login::new(&target, None), method, data);
            assert!(matches!(error, Err(HeliosError::Unsupported(_))));
        }
    }

    #[test]
    fn the_header_says_whether_binding_was_possible() {
        let mut target = target();
        let both = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
        let plain = b"SCRAM-SHA-256\0\0";
        let end_point = Some(&b"digest"[..]);
        let mut begin = |mode, offered: &[u8], end_point| {
            target.channel_binding = mode;
            let (_, out) = answer(&mut Login::new(&target, end_point), SASL, offered)?;
            // Behind the mechanism's name and the length.
            let out = out[5..].to_vec();
            let name_len = out.iter().position(|byte| *byte == 0).expect("a name");
            Ok::<_, HeliosError>((name_len, out[name_len + 5]))
        };
        let (short, long) = (SCRAM_SHA_256.len(), SCRAM_SHA_256_PLUS.len());
        use ChannelBindingMode::{Disable, Prefer, Require};
        for (mode, offered, end_point, expected) in [
            (Prefer, &both[..], end_point, (long, b'p')),
            (Prefer, plain, end_point, (short, b'y')),
            (Prefer, both, None, (short, b'n')),
            (Disable, both, end_point, (short, b'n')),
            (Require, both, end_point, (long, b'p')),
        ] {
            assert_eq!(begin(mode, offered, end_point).expect("begun"), expected);
        }
        assert!(begin(Require, plain, end_point).is_err());
        assert!(begin(Require, both, None).is_err());
        for method in [OK, CLEARTEXT_PASSWORD, MD5_PASSWORD] {
            let asked = answer(&mut Login::new(&target, end_point), method, b"salt");
            assert!(
                matches!(asked, Err(HeliosError::Unsupported(_))),
                "{method}"
            );
        }
    }
}
