//! What ties a session to its server connection, and what makes its state unknowable.

use std::fmt;

/// State that lives on one server connection and can't be moved to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Pin {
    /// A session-level advisory lock.
    AdvisoryLock = 1,
    /// A cursor WITH HOLD.
    HoldCursor = 2,
    /// LISTEN.
    Listen = 4,
    /// A statement prepared by SQL.
    Prepare = 8,
    /// The pool's mode: one connection for the session's life.
    SessionMode = 16,
    /// Temporary objects.
    Temp = 32,
    /// Something that could have changed any session state.
    Unknown = 64,
    /// Statements that ran while no catalog could say what they do: looked at again as soon as one can.
    Unresolved = 128,
}

const NAMES: [(Pin, &str); 8] = [
    (Pin::AdvisoryLock, "advisory lock"),
    (Pin::HoldCursor, "cursor with hold"),
    (Pin::Listen, "listen"),
    (Pin::Prepare, "prepared by SQL"),
    (Pin::SessionMode, "session mode"),
    (Pin::Temp, "temporary objects"),
    (Pin::Unknown, "unknown session state"),
    (Pin::Unresolved, "statements not classified yet"),
];

/// A set of [`Pin`]s, and why the cache must not be used, if so.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    bits: u32,
    /// Temporary objects other than tables exist: to read one may run any code.
    has_temp_code: bool,
    /// The cursors WITH HOLD.
    held: Vec<Box<str>>,
    taint: Option<&'static str>,
}

impl Pins {
    pub(crate) fn any(&self) -> bool {
        self.bits != 0
    }

    pub(crate) fn bits(&self) -> u32 {
        self.bits
    }

    pub(crate) fn has(&self, pin: Pin) -> bool {
        self.bits & pin as u32 != 0
    }

    /// Ties the session to its connection. Temporary objects and unknown state also taint it: names and settings no
    /// longer mean what the key says.
    pub(crate) fn add(&mut self, pin: Pin) {
        self.bits |= pin as u32;
        match pin {
            Pin::Temp => self.taint = Some("the session has temporary objects"),
            Pin::Unknown | Pin::Unresolved => {
                self.taint = Some("the session's state cannot be known")
            }
            _ => {}
        }
    }

    /// A cursor WITH HOLD is open, or may be.
    pub(crate) fn hold(&mut self, cursor: &str) {
        self.add(Pin::HoldCursor);
        if !self.held.iter().any(|held| **held == *cursor) {
            self.held.push(cursor.into());
        }
    }

    /// A cursor is closed: with the last one WITH HOLD what it tied is free.
    pub(crate) fn close(&mut self, cursor: &str) {
        self.held.retain(|held| **held != *cursor);
        if self.held.is_empty() {
            self.remove(Pin::HoldCursor);
        }
    }

    /// Notes a statement of a session that has temporary objects, or makes one now: a temporary view, a trigger on a
    /// temporary table.
    pub(crate) fn note_temp(&mut self, tag: &str) {
        let is_plain = matches!(tag, "CREATE TABLE" | "CREATE TABLE AS" | "CREATE SEQUENCE");
        self.has_temp_code |= tag.starts_with("CREATE") && !is_plain;
    }

    /// True where a relation's name may stand for something else than the catalog says.
    pub(crate) fn hides_names(&self) -> bool {
        self.has(Pin::Unknown) || self.has(Pin::Unresolved) || self.has_temp_code
    }

    /// `DISCARD TEMP` and the like can't show that nothing of the kind is left where the state is unknown.
    pub(crate) fn remove(&mut self, pin: Pin) {
        self.bits &= !(pin as u32);
        match pin {
            Pin::HoldCursor => self.held.clear(),
            Pin::Temp => self.has_temp_code = false,
            _ => {}
        }
        if ![Pin::Temp, Pin::Unknown, Pin::Unresolved]
            .into_iter()
            .any(|pin| self.has(pin))
        {
            self.taint = None;
        }
    }

    /// `DISCARD ALL`: everything goes but the pool's mode.
    pub(crate) fn discard_all(&mut self) {
        self.bits &= Pin::SessionMode as u32;
        self.held.clear();
        self.has_temp_code = false;
        self.taint = None;
    }

    /// Why the cache must not be used by this session, if so.
    pub(crate) fn taint(&self) -> Option<&'static str> {
        self.taint
    }
}

/// The names of the pins in `bits`, for the console.
pub(crate) struct PinNames(pub(crate) u32);

impl fmt::Display for PinNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (_, name) in NAMES.iter().filter(|(pin, _)| self.0 & *pin as u32 != 0) {
            write!(f, "{separator}{name}")?;
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_state_survives_all_but_discard_all() {
        let mut pins = Pins::default();
        pins.add(Pin::Unknown);
        pins.add(Pin::Temp);
        pins.remove(Pin::Temp);
        assert!(pins.any());
        assert!(pins.taint().is_some());
        pins.discard_all();
        assert!(!pins.any());
        assert!(pins.taint().is_none());
    }

    #[test]
    fn the_last_cursor_to_be_closed_unties() {
        let mut pins = Pins::default();
        for cursor in ["a", "b", "a"] {
            pins.hold(cursor);
        }
        for (cursor, tied) in [("a", true), ("other", true), ("b", false)] {
            pins.close(cursor);
            assert_eq!(pins.has(Pin::HoldCursor), tied, "{cursor}");
        }
    }

    #[test]
    fn session_mode_outlives_discard_all() {
        let mut pins = Pins::default();
        pins.add(Pin::SessionMode);
        pins.discard_all();
        assert!(pins.has(Pin::SessionMode));
        assert_eq!(PinNames(pins.bits()).to_string(), "session mode");
    }
}
