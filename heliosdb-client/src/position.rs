//! How much of what was written somebody knows.

use std::fmt;
use std::str::FromStr;

use heliosdb_network::HeliosError;

/// A place in the feed of changes of one run of a gateway: everything up to there is known to whoever has it.
///
/// It is small and means the same in every process that talks to the same gateway, so it can go along with a message from
/// one to the other, in its text form: `3f9c0a771b5d2e84/1042`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// Which run of which gateway. 0: none, nothing is known.
    pub(crate) instance: u64,
    pub(crate) place: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}/{}", self.instance, self.place)
    }
}

impl FromStr for Position {
    type Err = HeliosError;

    fn from_str(text: &str) -> Result<Self, HeliosError> {
        let read = || {
            let (instance, place) = text.split_once('/')?;
            let instance = u64::from_str_radix(instance, 16).ok()?;
            let place = place.parse().ok()?;
            Some(Self { instance, place })
        };
        read().ok_or_else(|| HeliosError::Protocol(format!("{text:?} is no position")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_text_says_all_of_it() {
        for (instance, place) in [(0, 0), (1, 2), (u64::MAX, u64::MAX)] {
            let position = Position { instance, place };
            let read: Position = position.to_string().parse().expect("its own text");
            assert_eq!(read, position);
        }
        for text in ["", "/", "12", "x/1", "1/x", "1/-1", "1/2/3"] {
            assert!(text.parse::<Position>().is_err(), "{text}");
        }
    }
}
