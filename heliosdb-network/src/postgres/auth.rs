//! The client's side of authentication.

use bytes::{Buf as _, BytesMut};
use postgres_protocol::authentication::{md5_hash, sasl};

use crate::error::{HeliosError, Result};

use super::message;
use super::target::PgTarget;

/// A login in progress: what was asked is answered by the method that the server chose.
#[derive(Default)]
pub(crate) struct Login {
    scram: Option<sasl::ScramSha256>,
}

impl Login {
    /// Works on the body of an Authentication message and appends the answer. True once the server is satisfied.
    pub(crate) fn answer(
        &mut self,
        mut body: &[u8],
        target: &PgTarget,
        out: &mut BytesMut,
    ) -> Result<bool> {
        if body.len() < 4 {
            return Err(HeliosError::Protocol(
                "truncated Authentication message".to_owned(),
            ));
        }
        match body.get_u32() {
            0 => return Ok(true),
            3 => put_cstr(out, password(target)?.as_bytes()),
            5 => {
                let salt = body.first_chunk::<4>().ok_or_else(|| {
                    HeliosError::Protocol("AuthenticationMD5Password without a salt".to_owned())
                })?;
                let hash = md5_hash(target.user.as_bytes(), password(target)?.as_bytes(), *salt);
                put_cstr(out, hash.as_bytes());
            }
            10 => self.begin_scram(body, target, out)?,
            11 => {
                let scram = self.scram()?;
                scram.update(body).map_err(failed)?;
                message::put_password(out, scram.message());
            }
            12 => self.scram()?.finish(body).map_err(failed)?,
            method => {
                let name = match method {
                    2 => "Kerberos V5",
                    7..=9 => "GSSAPI or SSPI",
                    _ => "an unknown method",
                };
                return Err(HeliosError::Unsupported(format!(
                    "the server asks for authentication by {name} ({method}); password, md5 and scram-sha-256 are \
                     supported"
                )));
            }
        }
        Ok(false)
    }

    fn begin_scram(
        &mut self,
        mechanisms: &[u8],
        target: &PgTarget,
        out: &mut BytesMut,
    ) -> Result<()> {
        if !mechanisms
            .split(|byte| *byte == 0)
            .any(|name| name == sasl::SCRAM_SHA_256.as_bytes())
        {
            return Err(HeliosError::Unsupported(format!(
                "the server offers none of the SASL mechanisms supported ({})",
                sasl::SCRAM_SHA_256
            )));
        }
        let password = password(target)?.as_bytes();
        let scram = self.scram.insert(sasl::ScramSha256::new(
            password,
            sasl::ChannelBinding::unsupported(),
        ));
        let mut initial = Vec::new();
        initial.extend_from_slice(sasl::SCRAM_SHA_256.as_bytes());
        initial.push(0);
        initial.extend_from_slice(
            &u32::try_from(scram.message().len())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        initial.extend_from_slice(scram.message());
        message::put_password(out, &initial);
        Ok(())
    }

    fn scram(&mut self) -> Result<&mut sasl::ScramSha256> {
        self.scram
            .as_mut()
            .ok_or_else(|| HeliosError::Protocol("SASL goes on that was not begun".to_owned()))
    }
}

fn put_cstr(out: &mut BytesMut, secret: &[u8]) {
    let mut body = secret.to_vec();
    body.push(0);
    message::put_password(out, &body);
}

fn password(target: &PgTarget) -> Result<&str> {
    target.password.as_deref().ok_or_else(|| {
        HeliosError::Unsupported(format!(
            "the server asks for a password for user {:?}, and none is configured",
            target.user
        ))
    })
}

fn failed(error: std::io::Error) -> HeliosError {
    HeliosError::Io {
        context: "SCRAM authentication failed",
        source: error,
    }
}
