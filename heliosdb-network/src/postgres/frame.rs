//! Messages as they lie in a buffer: where one ends, and a cursor over what it holds.
//!
//! Nothing here reads a socket, copies a byte or trusts a length. A length is compared with the caller's bound before
//! anything is computed from it, so that no peer can make it overflow, and it is never a reason to allocate.
#![deny(clippy::indexing_slicing)]

use bytes::{Buf as _, Bytes, BytesMut};

use crate::error::{HeliosError, Result};

/// What every message but a client's first one begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// The message's type.
    pub tag: u8,
    /// The whole message's length in bytes: tag, length field and body.
    pub len: usize,
}

/// The longest message that PostgreSQL itself would accept, in bytes.
pub const LEN_MAX: usize = (1 << 30) - 1;

impl Header {
    /// The length of a header itself, in bytes.
    pub const LEN: usize = 5;
}

/// Reads the header at the front of `input`; `None` if there are fewer than five bytes.
///
/// # Errors
/// [`HeliosError::Protocol`] if the length can't be true, or is above `len_max` bytes for the whole message.
pub fn header(input: &[u8], len_max: usize) -> Result<Option<Header>> {
    let Some(&[tag, a, b, c, d]) = input.first_chunk() else {
        return Ok(None);
    };
    let counted = u32::from_be_bytes([a, b, c, d]);
    // The length on the wire counts itself and the body, but not the tag.
    match usize::try_from(counted) {
        Ok(counted) if counted >= 4 && counted < len_max => Ok(Some(Header {
            tag,
            len: counted + 1,
        })),
        _ => Err(HeliosError::Protocol(format!(
            "invalid length {counted} of a message of type {:?}",
            char::from(tag)
        ))),
    }
}

/// Looks at the message at the front of `input`: its header and its body, or `None` if it is not all there yet.
///
/// # Errors
/// As [`header`].
pub fn peek(input: &[u8], len_max: usize) -> Result<Option<(Header, &[u8])>> {
    let Some(header) = header(input, len_max)? else {
        return Ok(None);
    };
    Ok(input
        .get(Header::LEN..header.len)
        .map(|body| (header, body)))
}

/// Takes the message at the front of `input`: its tag and its body, or `None` if it is not all there yet.
///
/// # Errors
/// As [`header`].
pub fn take(input: &mut BytesMut, len_max: usize) -> Result<Option<(u8, Bytes)>> {
    let Some((Header { tag, len, .. }, _)) = peek(input, len_max)? else {
        return Ok(None);
    };
    let mut message = input.split_to(len);
    message.advance(Header::LEN);
    Ok(Some((tag, message.freeze())))
}

/// A cursor over the body of a message. Each method returns `None`, and consumes nothing, where the body is too short.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A cursor at the front of `body`.
    #[must_use]
    pub fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// The next byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    /// The next two bytes as an unsigned number.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next two bytes as a signed number.
    pub fn i16(&mut self) -> Option<i16> {
        self.array().map(i16::from_be_bytes)
    }

    /// The next four bytes as an unsigned number.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next four bytes as a signed number.
    pub fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_be_bytes)
    }

    /// The next eight bytes as an unsigned number.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// The next eight bytes as a signed number.
    pub fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_be_bytes)
    }

    /// The bytes before the next NUL, which is consumed with them.
    pub fn cstr(&mut self) -> Option<&'a [u8]> {
        let end = self.rest.iter().position(|byte| *byte == 0)?;
        let (text, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest.get(1..)?;
        Some(text)
    }

    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(bytes)
    }

    /// A value behind its length, where the outer `None` is a body too short, and the inner one NULL.
    pub fn value(&mut self) -> Option<Option<&'a [u8]>> {
        let mut ahead = *self;
        let value = match ahead.i32()? {
            -1 => None,
            // A negative length other than that of NULL is no length.
            len => Some(ahead.bytes(usize::try_from(len).ok()?)?),
        };
        *self = ahead;
        Some(value)
    }

    /// What has not been consumed yet.
    #[must_use]
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// `Some` if everything has been consumed: what lies behind the last field makes a message malformed.
    #[must_use]
    pub fn end(self) -> Option<()> {
        self.rest.is_empty().then_some(())
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*array)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_that_cannot_be_true_are_refused() {
        for counted in [
            0,
            3,
            1 << 30,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_fffb,
            u32::MAX,
        ] {
            let mut input = vec![b'Q'];
            input.extend(counted.to_be_bytes());
            assert!(header(&input, LEN_MAX).is_err(), "{counted}");
            // A bound that excludes nothing must not make the sum overflow.
            let unbounded = header(&input, usize::MAX);
            if let Ok(Some(header)) = unbounded {
                assert_eq!(header.len as u64, u64::from(counted) + 1);
            }
        }
    }

    #[test]
    fn the_bound_is_on_the_whole_message() {
        let message = b"Q\0\0\0\x06a\0";
        assert!(header(message, message.len()).is_ok());
        assert!(header(message, message.len() - 1).is_err());
    }

    #[test]
    fn a_value_is_null_empty_there_or_cut_off() {
        let value = |body: &[u8]| {
            let mut reader = Reader::new(body);
            reader
                .value()
                .map(|value| (value.map(<[u8]>::to_vec), reader.rest().len()))
        };
        assert_eq!(value(b"\xff\xff\xff\xff"), Some((None, 0)));
        assert_eq!(value(b"\0\0\0\0x"), Some((Some(vec![]), 1)));
        assert_eq!(value(b"\0\0\0\x02xyz"), Some((Some(b"xy".to_vec()), 1)));
        assert_eq!(value(b"\0\0\0\x02x"), None);
        assert_eq!(value(b"\xff\xff\xff\xfe"), None);
        assert_eq!(value(b"\x7f\xff\xff\xff"), None);
    }

    #[test]
    fn a_read_that_fails_consumes_nothing() {
        let mut reader = Reader::new(b"\0\0\0\x09ab");
        assert_eq!(reader.value(), None);
        assert_eq!(reader.bytes(7), None);
        assert_eq!(Reader::new(b"abc").cstr(), None);
        assert_eq!(reader.rest().len(), 6);
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_they_are_split(
            messages in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..8),
            chunk in 1..64_usize,
        ) {
            let mut wire = Vec::new();
            for (tag, body) in &messages {
                wire.push(*tag);
                wire.extend(u32::try_from(body.len() + 4).expect("short").to_be_bytes());
                wire.extend(body);
            }
            let (mut input, mut seen) = (BytesMut::new(), Vec::new());
            for part in wire.chunks(chunk) {
                input.extend_from_slice(part);
                while let Some((tag, body)) = take(&mut input, LEN_MAX).expect("valid") {
                    seen.push((tag, body.to_vec()));
                }
            }
            prop_assert_eq!(seen, messages);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn garbage_is_refused_or_incomplete_but_never_read_past_its_end(
            input in prop::collection::vec(any::<u8>(), 0..64),
            len_max in 0..80_usize,
        ) {
            if let Ok(Some((header, body))) = peek(&input, len_max) {
                prop_assert!(header.len <= len_max.min(input.len()));
                prop_assert_eq!(Some(body), input.get(Header::LEN..header.len));
            }
        }
    }
}
