//! Reading `helios.toml`, with errors that say where and what was meant.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize as _, Deserializer, de};

use super::{Bound, Config};

/// Why a configuration can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read {file}: {reason}")]
    File {
        /// Its name.
        file: String,
        /// The system's reason.
        reason: String,
    },
    /// The file holds something that can't be understood.
    #[error("{file}:{line}:{column}: {message}")]
    Syntax {
        /// Its name.
        file: String,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What is wrong, and what may have been meant.
        message: String,
    },
    /// A value that can't work.
    #[error("{key} = {value}: {reason}")]
    Value {
        /// The key, with its section.
        key: &'static str,
        /// Its value; a password is not shown.
        value: String,
        /// Why it can't work, and what to do.
        reason: String,
    },
}

impl Config {
    /// Reads a configuration file's text. `file` is its name, for the errors.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] with the place, and for an unknown key the nearest valid one.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let before = text.get(..at).unwrap_or_default();
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            ConfigError::Syntax {
                file: file.to_owned(),
                line: before.matches('\n').count() + 1,
                column: before[line_start..].chars().count() + 1,
                message: explain(error.message()),
            }
        })
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`ConfigError::File`] if it can't be read, [`ConfigError::Syntax`] if it can't be understood.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, &file),
            Err(error) => Err(ConfigError::File {
                file,
                reason: error.to_string(),
            }),
        }
    }
}

/// Reads an address, or `off`.
pub(crate) fn parse_http(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|_| format!("{text:?} is neither an address with a port nor \"off\""))
}

pub(super) fn http<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    parse_http(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    with_unit(deserializer, "a duration such as \"30s\"", |text| {
        humantime::parse_duration(text).ok()
    })
}

pub(super) fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    with_unit(deserializer, "a size such as \"256 MiB\"", |text| {
        text.parse().ok()
    })
}

pub(super) fn some_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

/// A duration, or `off`.
pub(super) fn bound<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bound, D::Error> {
    with_unit(
        deserializer,
        "a duration such as \"30s\", or \"off\"",
        |text| {
            if text.eq_ignore_ascii_case("off") {
                return Some(Bound::Off);
            }
            let bound = humantime::parse_duration(text).ok()?;
            (!bound.is_zero()).then_some(Bound::At(bound))
        },
    )
}

pub(super) fn some_bound<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Bound>, D::Error> {
    bound(deserializer).map(Some)
}

/// A number of at least 1, or `off`.
pub(super) fn some_count<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<usize>, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Count {
        Number(usize),
        Word(String),
    }
    match Count::deserialize(deserializer) {
        Ok(Count::Number(count)) if count > 0 => Ok(Some(count)),
        Ok(Count::Word(word)) if word.eq_ignore_ascii_case("off") => Ok(None),
        _ => Err(de::Error::custom(
            "expected a number of at least 1, or \"off\"",
        )),
    }
}

/// Permissions, in octal digits.
pub(super) fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    u32::from_str_radix(&text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| de::Error::custom(format_args!("{text:?} is not a mode such as \"0770\"")))
}

/// A string with a unit. Bare numbers are refused: 30 is not obviously seconds.
fn with_unit<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, D::Error> {
    struct Text(&'static str);

    impl de::Visitor<'_> for Text {
        type Value = String;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
    }

    let text = deserializer.deserialize_str(Text(expected))?;
    let is_bare = text.trim().parse::<f64>().is_ok();
    parse(&text)
        .filter(|_| !is_bare)
        .ok_or_else(|| de::Error::custom(format_args!("{text:?} is not {expected}")))
}

/// Turns the deserialiser's message about an unknown key or value into one that says what was meant. Other messages
/// pass unchanged.
fn explain(message: &str) -> String {
    // "unknown field `x`, expected one of `a`, `b`"
    let mut quoted = message.split('`').skip(1).step_by(2);
    let kind = if message.starts_with("unknown field") {
        "key"
    } else if message.starts_with("unknown variant") {
        "value"
    } else {
        return message.trim_end().to_owned();
    };
    let Some(unknown) = quoted.next() else {
        return message.trim_end().to_owned();
    };
    let valid: Vec<&str> = quoted.collect();
    let keys = known_keys();
    let section = match kind {
        "key" => section_of(&valid, &keys),
        _ => None,
    };
    let qualified = |key: &str| match section {
        Some(section) => format!("{section}.{key}"),
        None => key.to_owned(),
    };
    let mut text = format!("unknown {kind} `{}`", qualified(unknown));
    let elsewhere = keys
        .iter()
        .filter(|_| kind == "key")
        .find(|key| key.rsplit('.').next() == Some(unknown));
    let meant = match elsewhere {
        Some(key) => Some(key.clone()),
        None => nearest(unknown, &valid).map(qualified),
    };
    match meant {
        Some(meant) => {
            let _ = write!(text, "; did you mean `{meant}`?");
        }
        None => text.push('.'),
    }
    let _ = write!(text, " Valid here: {}", valid.join(", "));
    text
}

fn known_keys() -> Vec<String> {
    let rows = Config::default().rows();
    rows.into_iter().map(|row| row.name).collect()
}

/// The section whose keys these are; `None` for the keys outside of every section. The deserialiser names the keys it
/// expected, not the section it was in.
fn section_of<'k>(valid: &[&str], keys: &'k [String]) -> Option<&'k str> {
    keys.iter()
        .filter_map(|key| key.split_once('.'))
        .map(|(section, _)| section)
        .find(|section| {
            let mut of_section = keys
                .iter()
                .filter_map(|key| key.strip_prefix(section)?.strip_prefix('.'));
            of_section.clone().count() == valid.len() && of_section.all(|key| valid.contains(&key))
        })
}

fn nearest<'v>(unknown: &str, valid: &[&'v str]) -> Option<&'v str> {
    valid
        .iter()
        .map(|known| (strsim::jaro_winkler(unknown, known), *known))
        .filter(|(likeness, _)| *likeness > LIKENESS_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// Below it, a suggestion is more likely to mislead than to help.
const LIKENESS_MIN: f64 = 0.75;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Eviction, PoolMode};

    fn refused(text: &str) -> String {
        Config::parse(text, "helios.toml")
            .expect_err("must be refused")
            .to_string()
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place_and_the_nearest_valid_one() {
        let text = refused("[pool]\nsize = 5\nmin_idel = 1\n");
        assert!(
            text.starts_with(
                "helios.toml:3:1: unknown key `pool.min_idel`; did you mean `pool.min_idle`? Valid here: mode, size,"
            ),
            "{text}"
        );
        let text = refused("lisen = []\n");
        assert!(
            text.starts_with("helios.toml:1:1: unknown key `lisen`; did you mean `listen`?"),
            "{text}"
        );
    }

    #[test]
    fn a_key_of_another_section_is_recognised() {
        let text = refused("[pool]\nmax_in_flight = 5\n");
        assert!(
            text.contains("did you mean `cache.max_in_flight`?"),
            "{text}"
        );
    }

    #[test]
    fn a_key_like_no_other_gets_no_suggestion() {
        let text = refused("[pool]\nzzz = 1\n");
        assert!(!text.contains("did you mean"), "{text}");
        assert!(
            text.starts_with("helios.toml:2:1: unknown key `pool.zzz`. Valid here: mode, size,"),
            "{text}"
        );
    }

    #[test]
    fn an_unknown_value_is_refused_with_the_nearest_valid_one() {
        let text = refused("[pool]\nmode = \"transactoin\"\n");
        assert!(
            text.starts_with(
                "helios.toml:2:8: unknown value `transactoin`; did you mean `transaction`?"
            ),
            "{text}"
        );
    }

    #[test]
    fn columns_count_characters() {
        let text = refused("pool = { \"größe\" = 1, mod = 1 }\n");
        assert!(text.starts_with("helios.toml:1:10: "), "{text}");
        let text = refused("log = { level = \"ä\", zzz = 1 }\n");
        assert!(text.starts_with("helios.toml:1:22: "), "{text}");
    }

    #[test]
    fn values_are_read_with_units() {
        let text = "http = \"off\"\n[cache]\nsize = \"1 GiB\"\nmax_entry = \"10 kB\"\neviction = \"lfu\"\n\
                    [pool]\nacquire_timeout = \"250ms\"\nmode = \"session\"\n";
        let config = Config::parse(text, "f").expect("valid");
        assert_eq!(config.http, None);
        assert_eq!(config.cache.size, ByteSize::gib(1));
        assert_eq!(config.cache.max_entry, ByteSize::b(10_000));
        assert_eq!(config.cache.eviction, Eviction::Lfu);
        assert_eq!(config.pool.acquire_timeout, Duration::from_millis(250));
        assert_eq!(config.pool.mode, PoolMode::Session);
    }

    #[test]
    fn values_without_a_unit_are_refused() {
        for (text, expected) in [
            ("[pool]\nidle_timeout = 30\n", "a duration such as"),
            ("[pool]\nidle_timeout = \"30\"\n", "a duration such as"),
            (
                "[pool]\nidle_timeout = \"soon\"\n",
                "\"soon\" is not a duration such as",
            ),
            ("[cache]\nsize = 1000\n", "a size such as"),
            (
                "[cache]\nsize = \"1000\"\n",
                "\"1000\" is not a size such as",
            ),
            (
                "[cache]\nsize = \"1 XiB\"\n",
                "\"1 XiB\" is not a size such as",
            ),
            (
                "http = \"6480\"\n",
                "neither an address with a port nor \"off\"",
            ),
        ] {
            let error = refused(text);
            assert!(error.contains(expected), "{error}");
            let line = if text.starts_with('[') { 2 } else { 1 };
            assert!(
                error.starts_with(&format!("helios.toml:{line}:")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Config::from_file(Path::new("no/such/helios.toml")).expect_err("absent");
        assert!(
            error
                .to_string()
                .starts_with("cannot read no/such/helios.toml: "),
            "{error}"
        );
    }
}
