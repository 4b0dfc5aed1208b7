//! HIDB: HeliosDB's native protocol, version 1. So far it says hello and answers pings.
//!
//! Both ends begin with a fixed greeting ([`Hello`]), then exchange frames, all numbers little-endian:
//! ```text
//! u32 len        bytes of the payload, at most FRAME_MAX; checked before anything is allocated
//! u64 request    chosen by the asking end and echoed in the answer
//! payload        a HidbMessage in postcard encoding
//! ```

use bytes::{Buf as _, BufMut as _, BytesMut};
use serde::{Deserialize, Serialize};

use crate::error::{HeliosError, Result};

/// A message.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[non_exhaustive]
pub enum HidbMessage {
    /// Are you there?
    Ping,
    /// I am.
    Pong,
    /// The other end can't go on with this connection, and why.
    Goodbye(String),
}

/// A message with the number of the request it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a frame is a number and a message"
)]
pub struct Frame {
    /// Chosen by the asking end, echoed by the answering one.
    pub request: u64,
    /// The message.
    pub message: HidbMessage,
}

/// The versions an end speaks, and the one byte sequence that never changes: magic, oldest and newest version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the greeting never changes")]
pub struct Hello {
    /// Oldest version spoken.
    pub oldest: u8,
    /// Newest version spoken.
    pub newest: u8,
}

impl Hello {
    /// What this crate speaks.
    pub const OURS: Self = Self {
        oldest: 1,
        newest: 1,
    };
    /// Length of a greeting, in bytes.
    pub const LEN: usize = 6;

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LEN] {
        [b'H', b'I', b'D', b'B', self.oldest, self.newest]
    }

    /// Reads a greeting.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if it is none, or if no version is spoken by both ends.
    pub fn decode(bytes: [u8; Self::LEN]) -> Result<Self> {
        let [b'H', b'I', b'D', b'B', oldest, newest] = bytes else {
            return Err(HeliosError::Protocol(
                "the peer does not speak HIDB".to_owned(),
            ));
        };
        if oldest > Self::OURS.newest || newest < Self::OURS.oldest {
            let message = format!("the peer speaks HIDB {oldest} to {newest}, this end speaks 1");
            return Err(HeliosError::Protocol(message));
        }
        Ok(Self { oldest, newest })
    }
}

/// Longest payload, in bytes.
pub const FRAME_MAX: usize = 16 << 20;
const HEADER: usize = 12;

/// Appends a frame.
///
/// # Errors
/// [`HeliosError::Protocol`] if the message is longer than [`FRAME_MAX`].
pub fn encode(frame: &Frame, out: &mut BytesMut) -> Result<()> {
    let payload = postcard::to_stdvec(&frame.message)
        .map_err(|error| HeliosError::Protocol(format!("cannot encode a message: {error}")))?;
    let len = u32::try_from(payload.len())
        .ok()
        .filter(|_| payload.len() <= FRAME_MAX);
    let len = len.ok_or_else(|| {
        HeliosError::Protocol(format!("a message of {} bytes is too long", payload.len()))
    })?;
    out.reserve(HEADER + payload.len());
    out.put_u32_le(len);
    out.put_u64_le(frame.request);
    out.put_slice(&payload);
    Ok(())
}

/// Takes a frame from the front of `input`, or nothing until one is complete. What was read is never lost: the caller
/// may stop at any byte and go on later.
///
/// # Errors
/// [`HeliosError::Protocol`] if what stands there is no frame; the connection is unusable then.
pub fn decode(input: &mut BytesMut) -> Result<Option<Frame>> {
    let Some(head) = input.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let mut head = &head[..];
    let len = head.get_u32_le() as usize;
    let request = head.get_u64_le();
    if len > FRAME_MAX {
        return Err(HeliosError::Protocol(format!(
            "a frame of {len} bytes is too long"
        )));
    }
    if input.len() < HEADER + len {
        return Ok(None);
    }
    let frame = input.split_to(HEADER + len);
    let payload = frame.get(HEADER..).unwrap_or_default();
    match postcard::take_from_bytes(payload) {
        Ok((message, [])) => Ok(Some(Frame { request, message })),
        Ok(_) => Err(HeliosError::Protocol(
            "a frame is longer than its message".to_owned(),
        )),
        Err(error) => Err(HeliosError::Protocol(format!(
            "cannot decode a message: {error}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message() -> impl Strategy<Value = HidbMessage> {
        prop_oneof![
            Just(HidbMessage::Ping),
            Just(HidbMessage::Pong),
            ".*".prop_map(HidbMessage::Goodbye)
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_every_split(request: u64, message in message()) {
            let frame = Frame { request, message };
            let mut wire = BytesMut::new();
            encode(&frame, &mut wire).expect("short");
            for cut in 0..wire.len() {
                let mut input = BytesMut::from(&wire[..cut]);
                prop_assert_eq!(decode(&mut input).expect("a beginning is no error"), None);
                input.extend_from_slice(&wire[cut..]);
                prop_assert_eq!(decode(&mut input).expect("whole"), Some(frame.clone()));
                prop_assert!(input.is_empty());
            }
        }

        #[test]
        fn garbage_is_an_error_or_a_beginning_never_a_panic(bytes: Vec<u8>) {
            let mut input = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode(&mut input) {}
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_it_is_waited_for() {
        let mut input = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0][..]);
        assert!(decode(&mut input).is_err());
    }

    #[test]
    fn strangers_and_foreign_versions_are_told_apart_from_friends() {
        assert!(Hello::decode(*b"HIDB\x01\x05").is_ok());
        assert!(Hello::decode(*b"HIDB\x02\x05").is_err());
        assert!(Hello::decode(*b"HTTP/1").is_err());
    }
}
