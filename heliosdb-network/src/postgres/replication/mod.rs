//! Following a server's log: a walsender connection, logical decoding through a slot, and [`pgoutput`].
//!
//! The stream is handed out message by message with its keepalives, and nothing is answered unasked: whoever follows
//! decides what counts as applied, and when to ask where the server is.

mod connection;
pub mod pgoutput;

use std::fmt;
use std::str::FromStr;

pub use connection::{ReplicationConnection, ReplicationStream, StreamMessage, SystemId};

use crate::error::HeliosError;

/// A place in a server's write-ahead log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::exhaustive_structs, reason = "it is a number")]
pub struct Lsn(pub u64);

/// As PostgreSQL prints it: `16/B374D848`.
impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = HeliosError;

    fn from_str(text: &str) -> Result<Self, HeliosError> {
        let half = |digits: &str| {
            let is_hex = (1..=8).contains(&digits.len())
                && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_hex
                .then(|| u64::from_str_radix(digits, 16).ok())
                .flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self((half(high)? << 32) | half(low)?)))
            .ok_or_else(|| HeliosError::Protocol(format!("{text:?} is no place in a log")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_printed() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "0/15D6FB0"] {
            assert_eq!(text.parse::<Lsn>().expect("valid").to_string(), text);
        }
        for text in ["", "0", "/0", "0/", "1/2/3", "+1/2", "0/123456789", "g/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }
}
