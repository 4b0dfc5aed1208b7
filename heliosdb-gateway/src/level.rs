//! What a client asks of answers from memory, and how it says so: `SET helios.cache`, a hint in front of a statement, or
//! `CREATE CACHE` on the console. `docs/consistency.md` says what each level promises.

use std::str::FromStr;
use std::time::Duration;

use heliosdb_cache::Lifetime;

use crate::fault::is_removed;

/// The setting that holds a session's level.
pub(crate) const SETTING: &str = "helios.cache";

/// What it is called where nobody has set it.
pub(crate) const NAME_OF_DEFAULT: &str = "session";

/// What a client asks of answers from memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Level {
    /// None.
    Off,
    /// They hold every write that this gateway has acknowledged.
    #[default]
    Session,
    /// They hold every write that was acknowledged by anybody before they were asked for.
    Strict,
    /// They may be so old, whatever has been written.
    Bounded(AgeBound),
}

/// How old an answer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AgeBound {
    /// In milliseconds.
    ttl: u32,
    /// So much older while it is being computed anew, in milliseconds.
    stale: u32,
}

/// Why a text names no level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LevelError {
    #[error("{0:?} is none of on, off, session, strict, ttl=<duration>, stale=<duration>")]
    Unknown(String),
    #[error("{0:?} is no duration from 1ms to 49 days, such as 30s or 5min")]
    Duration(String),
    #[error("stale=<duration> needs a ttl=<duration>")]
    StaleWithoutTtl,
    #[error("more than one level is named")]
    Several,
}

impl AgeBound {
    pub(crate) fn new(ttl: Duration, stale: Duration) -> Option<Self> {
        let ms = |duration: Duration| u32::try_from(duration.as_millis()).ok();
        let (ttl, stale) = (ms(ttl)?, ms(stale)?);
        (ttl > 0).then_some(Self { ttl, stale })
    }

    pub(crate) fn ttl(self) -> Duration {
        Duration::from_millis(self.ttl.into())
    }

    pub(crate) fn stale(self) -> Duration {
        Duration::from_millis(self.stale.into())
    }

    /// For an answer whose computation began so long ago: it is as old as that.
    pub(crate) fn lifetime(self, elapsed: Duration) -> Lifetime {
        let mut lifetime = Lifetime::of(self.ttl().saturating_sub(elapsed));
        if is_removed("max-age") {
            lifetime = Lifetime::of(self.ttl() * 10);
        }
        lifetime.stale_while_revalidate = self.stale();
        lifetime
    }

    /// What tells the answers kept under this bound from those under others, and from those without one.
    pub(crate) fn key_prefix(self) -> [u8; 9] {
        let mut prefix = [b'T'; 9];
        prefix[1..5].copy_from_slice(&self.ttl.to_be_bytes());
        prefix[5..].copy_from_slice(&self.stale.to_be_bytes());
        prefix
    }
}

impl FromStr for Level {
    type Err = LevelError;

    /// Words separated by commas: `on` (or `session`), `off`, `strict`; or `ttl=<duration>` with or without
    /// `stale=<duration>`.
    fn from_str(text: &str) -> Result<Self, LevelError> {
        let mut named = Vec::new();
        let (mut ttl, mut stale) = (None, None);
        for word in text.split(',') {
            let word = word.trim();
            let lower = word.to_ascii_lowercase();
            match lower.split_once('=') {
                Some((name, value)) if matches!(name.trim_end(), "ttl" | "stale") => {
                    let duration = humantime::parse_duration(value.trim())
                        .ok()
                        .filter(|duration| AgeBound::new(*duration, Duration::ZERO).is_some())
                        .ok_or_else(|| LevelError::Duration(value.trim().to_owned()))?;
                    let place = if name.trim_end() == "ttl" {
                        &mut ttl
                    } else {
                        &mut stale
                    };
                    if place.replace(duration).is_some() {
                        return Err(LevelError::Several);
                    }
                }
                _ => named.push(match lower.as_str() {
                    "on" | "session" | "default" => Self::Session,
                    "off" => Self::Off,
                    "strict" => Self::Strict,
                    _ => return Err(LevelError::Unknown(word.to_owned())),
                }),
            }
        }
        match (named.as_slice(), ttl, stale) {
            ([level], None, None) => Ok(*level),
            ([], Some(ttl), stale) => AgeBound::new(ttl, stale.unwrap_or_default())
                .map(Self::Bounded)
                .ok_or_else(|| LevelError::Duration(text.trim().to_owned())),
            ([], None, Some(_)) => Err(LevelError::StaleWithoutTtl),
            _ => Err(LevelError::Several),
        }
    }
}

/// The level that a hint in front of the statement asks for: `/*+ cache(ttl=30s) */`, `/*+ nocache */`. What can't be
/// understood asks for nothing from memory. `None` without a hint for the cache.
pub(crate) fn hinted(text: &str) -> Option<Level> {
    let text = text.trim_ascii_start();
    // Cheap enough to be asked of every statement.
    if !text.as_bytes().starts_with(b"/*+") {
        return None;
    }
    let (hint, _) = text[3..].split_once("*/")?;
    let hint = hint.trim();
    if hint.eq_ignore_ascii_case("nocache") {
        return Some(Level::Off);
    }
    // Others may have hints of their own in it.
    let lower = hint.to_ascii_lowercase();
    let arguments = lower
        .match_indices("cache")
        .filter(|(at, _)| !lower[..*at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
        .find_map(|(at, word)| lower[at + word.len()..].trim_start().strip_prefix('('))?;
    let level = arguments
        .split_once(')')
        .and_then(|(arguments, _)| arguments.parse().ok());
    Some(level.unwrap_or(Level::Off))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounded(ttl: u64, stale: u64) -> Level {
        let bound = AgeBound::new(Duration::from_millis(ttl), Duration::from_millis(stale));
        Level::Bounded(bound.expect("in range"))
    }

    #[test]
    fn levels_are_read() {
        for (text, level) in [
            ("on", Level::Session),
            (" Session ", Level::Session),
            ("OFF", Level::Off),
            ("strict", Level::Strict),
            ("ttl=30s", bounded(30_000, 0)),
            ("stale = 5min, TTL = 250ms", bounded(250, 300_000)),
        ] {
            assert_eq!(text.parse(), Ok(level), "{text}");
        }
        for (text, error) in [
            ("", LevelError::Unknown(String::new())),
            ("fast", LevelError::Unknown("fast".to_owned())),
            ("ttl=30", LevelError::Duration("30".to_owned())),
            ("ttl=0s", LevelError::Duration("0s".to_owned())),
            ("ttl=60days", LevelError::Duration("60days".to_owned())),
            ("stale=1s", LevelError::StaleWithoutTtl),
            ("ttl=1s,ttl=2s", LevelError::Several),
            ("strict,ttl=1s", LevelError::Several),
            ("on,off", LevelError::Several),
        ] {
            assert_eq!(text.parse::<Level>(), Err(error), "{text}");
        }
    }

    #[test]
    fn hints_stand_in_front() {
        for (text, level) in [
            ("SELECT 1", None),
            ("/* cache(off) */ SELECT 1", None),
            ("SELECT 1 /*+ nocache */", None),
            ("/*+ SeqScan(t) */ SELECT 1", None),
            ("/*+ querycache(off) */ SELECT 1", None),
            ("/*+ nocache */ SELECT 1", Some(Level::Off)),
            (" /*+cache(strict)*/SELECT 1", Some(Level::Strict)),
            (
                "/*+ SeqScan(t) Cache (ttl=1s, stale=2s) */ SELECT 1",
                Some(bounded(1000, 2000)),
            ),
            ("/*+ cache(ttl=soon) */ SELECT 1", Some(Level::Off)),
            ("/*+ cache(ttl=1s */ SELECT 1", Some(Level::Off)),
        ] {
            assert_eq!(hinted(text), level, "{text}");
        }
    }

    #[test]
    fn an_answer_is_as_old_as_its_computation() {
        let Level::Bounded(bound) = bounded(1000, 500) else {
            unreachable!()
        };
        let lifetime = bound.lifetime(Duration::from_millis(300));
        assert_eq!(lifetime.ttl, Some(Duration::from_millis(700)));
        assert_eq!(lifetime.stale_while_revalidate, Duration::from_millis(500));
        let late = bound.lifetime(Duration::from_secs(2));
        assert_eq!(late.ttl, Some(Duration::ZERO));
    }
}
