//! Having a client prove who it is.

use bytes::BytesMut;
use heliosdb_network::postgres::auth::{Challenge, Granted, PROOF_MESSAGE_MAX, Proof, Step};
use heliosdb_network::postgres::{Credential, frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::access::{Access, Caller, Claim, Demand, Known, wrong_password};
use crate::admin;
use crate::error::ClientError;
use crate::upstream::Upstream;

use super::login::Refused;
use super::stream::ClientStream;

/// Asks a client for what it has to prove, and returns what it is to the server by that. What is in `out` is sent ahead of
/// the first question.
pub(super) async fn authenticate(
    access: &Access,
    upstream: &Upstream,
    caller: &Caller,
    claim: &Claim<'_>,
    (stream, input, out): (&mut ClientStream, &mut BytesMut, &mut BytesMut),
) -> Result<Credential, Refused> {
    let (user, database) = (claim.user, claim.database);
    // Before the rules: who runs the program must be able to take back one that keeps him out.
    if admin::is_console(database) && access.is_owner(caller, user) {
        return Ok(Credential::None);
    }
    let proof = match access.demand(caller, claim)? {
        Demand::Nothing(method) => {
            let kept = access.let_in(upstream, user, database, method).await?;
            return Ok(access.credential(user, Granted::default(), kept.as_ref()));
        }
        Demand::Proof(proof) => proof,
    };
    let kept = match access.known(upstream, user, database).await? {
        Known::User(secret) => secret,
        // Looks like one whose password is wrong.
        Known::Nobody => None,
    };
    let proof = match (&kept, proof) {
        (None, Proof::Md5) if access.mostly_scram(database) => Proof::Scram,
        _ => proof,
    };
    let end_point = caller.end_point.clone();
    let mut challenge = Challenge::begin(proof, user, kept.clone(), access.seed(), end_point, out);
    loop {
        stream.write_all(out).await?;
        stream.flush().await?;
        out.clear();
        let body = receive(stream, input).await?;
        let step = challenge.answer(&body, out);
        match step.map_err(|error| ClientError::protocol(error.to_string()))? {
            Step::More => {}
            Step::Granted(granted) => return Ok(access.credential(user, *granted, kept.as_ref())),
            Step::Denied => {
                access.doubt(user);
                return Err(wrong_password(user).into());
            }
        }
    }
}

/// The body of the client's next message, which has to be a proof.
async fn receive(stream: &mut ClientStream, input: &mut BytesMut) -> Result<bytes::Bytes, Refused> {
    loop {
        match frame::take(input, PROOF_MESSAGE_MAX) {
            Ok(Some((b'p', body))) => return Ok(body),
            // As psql leaves to ask its user for a password.
            Ok(Some((b'X', _))) => return Err(Refused::Silently),
            Ok(Some((tag, _))) => {
                let message = format!("expected password response, got message type {tag}");
                return Err(ClientError::protocol(message).into());
            }
            Ok(None) => {}
            Err(error) => return Err(ClientError::protocol(error.to_string()).into()),
        }
        if stream.read_buf(input).await? == 0 {
            return Err(Refused::Silently);
        }
    }
}
