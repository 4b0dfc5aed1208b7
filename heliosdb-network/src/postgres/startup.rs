//! The first packet of a client, which has no tag: a request for encryption, a cancel request, or a startup message.

use bytes::Bytes;

use crate::error::{HeliosError, Result};

/// What a client can begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FirstPacket {
    /// CancelRequest.
    Cancel {
        /// The process id from the BackendKeyData.
        pid: i32,
        /// The key from there: 4 to 256 bytes.
        secret: Bytes,
    },
    /// GSSENCRequest.
    GssEnc,
    /// SSLRequest.
    Ssl,
    /// StartupMessage.
    Startup(Startup),
}

/// A StartupMessage of protocol 3.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Startup {
    /// The minor version spoken from here on: what the client asked for, or the newest known here if that is older.
    pub minor: u16,
    /// Names and values in the client's order.
    pub params: Vec<(String, String)>,
    asked_minor: u16,
}

/// What a NegotiateProtocolVersion message has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Negotiation {
    /// The newest minor version spoken here.
    pub minor: u16,
    /// Protocol options (`_pq_.*`) that are not understood.
    pub unrecognized: Vec<String>,
}

/// The newest minor version spoken here.
pub const NEWEST_MINOR: u16 = 2;
/// PostgreSQL's own limit: 10,000 bytes behind the length. No honest first packet is longer.
const PACKET_MAX: usize = 4 + 10_000;
const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;

impl Startup {
    /// A parameter's value; the last one where it is given twice, as in PostgreSQL.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params
            .iter()
            .rev()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// What the client has to be told where it asked for more than is spoken here.
    #[must_use]
    pub fn negotiation(&self) -> Option<Negotiation> {
        let unrecognized: Vec<String> = self
            .params
            .iter()
            .map(|(name, _)| name)
            .filter(|name| name.starts_with("_pq_."))
            .cloned()
            .collect();
        (self.asked_minor > NEWEST_MINOR || !unrecognized.is_empty()).then_some(Negotiation {
            minor: self.minor,
            unrecognized,
        })
    }
}

/// Parses the packet at the front of `input`. Returns it with its length, or `None` if it is not all there yet.
///
/// # Errors
/// [`HeliosError::Unsupported`] if it asks for another protocol than 3, [`HeliosError::Protocol`] if no client that
/// speaks protocol 3 would send it.
pub fn parse(input: &[u8]) -> Result<Option<(FirstPacket, usize)>> {
    let Some((head, _)) = input.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes(*head) as usize;
    if !is_length(len) {
        return Err(invalid("invalid length of startup packet"));
    }
    let Some(packet) = input.get(4..len) else {
        return Ok(None);
    };
    let (code, body) = packet
        .split_first_chunk::<4>()
        .ok_or_else(|| invalid("invalid length of startup packet"))?;
    let packet = match u32::from_be_bytes(*code) {
        CANCEL => {
            let (pid, secret) = body
                .split_first_chunk::<4>()
                .ok_or_else(|| invalid("invalid length of cancel request packet"))?;
            if !(4..=256).contains(&secret.len()) {
                return Err(invalid("invalid length of cancel key"));
            }
            FirstPacket::Cancel {
                pid: i32::from_be_bytes(*pid),
                secret: Bytes::copy_from_slice(secret),
            }
        }
        SSL if body.is_empty() => FirstPacket::Ssl,
        GSS if body.is_empty() => FirstPacket::GssEnc,
        version => FirstPacket::Startup(parse_startup(version, body)?),
    };
    Ok(Some((packet, len)))
}

/// False if the input does not begin as a first packet does: who sends it speaks something else, or nothing at all.
#[must_use]
pub fn begins_plausibly(input: &[u8]) -> bool {
    let len = input.first_chunk::<4>();
    len.is_none_or(|len| is_length(u32::from_be_bytes(*len) as usize))
}

fn is_length(len: usize) -> bool {
    (8..=PACKET_MAX).contains(&len)
}

fn parse_startup(version: u32, body: &[u8]) -> Result<Startup> {
    let (major, asked_minor) = (version >> 16, (version & 0xffff) as u16);
    if major != 3 {
        return Err(HeliosError::Unsupported(format!(
            "unsupported frontend protocol {major}.{asked_minor}: this server speaks 3.0 to 3.2"
        )));
    }
    let mut params = Vec::new();
    let mut rest = body;
    loop {
        let name;
        (name, rest) = split_cstr(rest)?;
        if name.is_empty() {
            if !rest.is_empty() {
                return Err(invalid(
                    "invalid startup packet layout: expected terminator as last byte",
                ));
            }
            break;
        }
        let value;
        (value, rest) = split_cstr(rest)?;
        params.push((name, value));
    }
    // There is no 3.1: PostgreSQL answers it as 3.0.
    let minor = match asked_minor {
        0 | 1 => 0,
        _ => NEWEST_MINOR,
    };
    Ok(Startup {
        minor,
        params,
        asked_minor,
    })
}

fn split_cstr(bytes: &[u8]) -> Result<(String, &[u8])> {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .ok_or_else(|| invalid("invalid startup packet layout: a string has no end"))?;
    let (text, rest) = bytes.split_at(end);
    let text = String::from_utf8(text.to_vec())
        .map_err(|_| invalid("a startup parameter is not valid UTF-8"))?;
    Ok((text, rest.get(1..).unwrap_or_default()))
}

/// The settings in an `options` parameter: `-c name=value`, `-cname=value`, `--name=value`, with backslash escapes.
///
/// # Errors
/// [`HeliosError::Unsupported`] naming the option that is not of that form.
pub fn parse_options(options: &str) -> Result<Vec<(String, String)>> {
    let mut words = split_words(options).into_iter();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let assignment = if word == "-c" {
            words
                .next()
                .ok_or_else(|| unsupported("option \"-c\" needs a name=value behind it"))?
        } else if let Some(rest) = word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            rest.to_owned()
        } else {
            return Err(unsupported(&format!(
                "command-line option {word:?} is not supported: only -c name=value is"
            )));
        };
        match assignment.split_once('=') {
            // On a command line, dashes in names stand for underscores.
            Some((name, value)) if !name.is_empty() => {
                settings.push((name.replace('-', "_"), value.to_owned()));
            }
            Some(_) => return Err(unsupported(&format!("option {assignment:?} needs a name"))),
            None => return Err(unsupported(&format!("option {assignment:?} needs a value"))),
        }
    }
    Ok(settings)
}

fn split_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.get_or_insert_default().extend(chars.next()),
            c if is_space(c) => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// As C's isspace, which includes the vertical tab.
fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

fn unsupported(message: &str) -> HeliosError {
    HeliosError::Unsupported(message.to_owned())
}

fn invalid(message: &str) -> HeliosError {
    HeliosError::Protocol(message.to_owned())
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::super::message;
    use super::*;

    fn startup(version: u32, params: &[(&str, &str)]) -> Vec<u8> {
        let mut out = BytesMut::new();
        message::put_startup(&mut out, params.iter().copied());
        out[4..8].copy_from_slice(&version.to_be_bytes());
        out.to_vec()
    }

    #[test]
    fn startup_is_parsed_at_every_split_and_truncation_never_panics() {
        let packet = startup(3 << 16, &[("user", "u"), ("database", "d"), ("user", "v")]);
        for end in 0..packet.len() {
            assert_eq!(parse(&packet[..end]).expect("incomplete, not wrong"), None);
        }
        let Some((FirstPacket::Startup(parsed), len)) = parse(&packet).expect("valid") else {
            panic!("not a startup")
        };
        assert_eq!(
            (parsed.param("user"), parsed.param("database"), len),
            (Some("v"), Some("d"), packet.len())
        );
        assert_eq!(parsed.negotiation(), None);
    }

    #[test]
    fn newer_minor_versions_and_unknown_options_are_negotiated() {
        let minor = |packet: &[u8]| match parse(packet).expect("valid") {
            Some((FirstPacket::Startup(startup), _)) => (startup.minor, startup.negotiation()),
            other => panic!("{other:?}"),
        };
        assert_eq!(minor(&startup(3 << 16 | 2, &[("user", "u")])), (2, None));
        let (spoken, negotiation) =
            minor(&startup(3 << 16 | 9999, &[("user", "u"), ("_pq_.x", "1")]));
        assert_eq!(spoken, 2);
        assert_eq!(
            negotiation,
            Some(Negotiation {
                minor: 2,
                unrecognized: vec!["_pq_.x".to_owned()]
            })
        );
    }

    #[test]
    fn impossible_packets_are_refused_as_soon_as_their_length_is_there() {
        for packet in [
            &[0, 0, 0, 7][..],
            &[0xff, 0xff, 0xff, 0xff],
            &[0x80, 0, 0, 8],
            &10_005_u32.to_be_bytes(),
            // Protocol 2.
            &[0, 0, 0, 8, 0, 2, 0, 0],
            // An SSLRequest with a body is none.
            &[0, 0, 0, 9, 4, 210, 22, 47, 0],
            // A string without an end, a list without one, and one with a tail.
            &[0, 0, 0, 9, 0, 3, 0, 0, b'u'],
            &[0, 0, 0, 12, 0, 3, 0, 0, b'u', 0, b'v', 0],
            &[0, 0, 0, 10, 0, 3, 0, 0, 0, 0],
        ] {
            assert!(parse(packet).is_err(), "{packet:?}");
        }
        assert_eq!(parse(&10_004_u32.to_be_bytes()).expect("possible"), None);
    }

    #[test]
    fn a_cancel_key_has_4_to_256_bytes() {
        for (len, valid) in [(0, false), (3, false), (4, true), (256, true), (257, false)] {
            let mut out = BytesMut::new();
            message::put_cancel_request(&mut out, -7, &vec![9; len]);
            match parse(&out) {
                Ok(Some((FirstPacket::Cancel { pid, secret }, used))) => {
                    assert!(valid && pid == -7 && secret.len() == len && used == out.len());
                }
                other => assert!(!valid && other.is_err(), "{len}: {other:?}"),
            }
        }
    }

    #[test]
    fn encryption_requests_leave_what_follows_in_the_buffer() {
        for (code, expected) in [(SSL, FirstPacket::Ssl), (GSS, FirstPacket::GssEnc)] {
            let mut input = vec![0, 0, 0, 8];
            input.extend(code.to_be_bytes());
            input.push(0x16);
            assert_eq!(parse(&input).expect("valid"), Some((expected, 8)));
        }
    }

    #[test]
    fn options_are_split_as_on_a_command_line() {
        let parsed = parse_options("-c a=1  -cb=2\t--c-d=x\\ y\\\\ -c e= -c f=g=h").expect("valid");
        let expected = [
            ("a", "1"),
            ("b", "2"),
            ("c_d", "x y\\"),
            ("e", ""),
            ("f", "g=h"),
        ];
        assert_eq!(
            parsed,
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        for wrong in ["-B 10", "-c", "-c a", "--", "-c =1", "a=1", "\\"] {
            assert!(parse_options(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_options(" \x0b").expect("nothing"), []);
    }

    proptest! {
        #[test]
        fn garbage_never_panics_and_is_never_read_past_its_end(input in prop::collection::vec(any::<u8>(), 0..48)) {
            for code in [None, Some(3 << 16), Some(CANCEL), Some(SSL)] {
                let mut packet = input.clone();
                // Made plausible, so that what lies behind the first checks is reached too.
                if let (Some(code), true) = (code, packet.len() >= 8) {
                    let len = u32::try_from(packet.len()).expect("short");
                    packet[..4].copy_from_slice(&len.to_be_bytes());
                    packet[4..8].copy_from_slice(&u32::to_be_bytes(code));
                }
                if let Ok(Some((_, len))) = parse(&packet) {
                    prop_assert!(len <= packet.len());
                }
            }
        }

        #[test]
        fn parameters_come_out_as_they_went_in(
            params in prop::collection::vec(("[^\\x00]{1,8}", "[^\\x00]{0,8}"), 0..6),
        ) {
            let borrowed: Vec<_> = params.iter().map(|(name, value)| (&**name, &**value)).collect();
            let packet = startup(3 << 16, &borrowed);
            match parse(&packet).expect("valid") {
                Some((FirstPacket::Startup(parsed), _)) => prop_assert_eq!(parsed.params, params),
                other => panic!("{other:?}"),
            }
        }

        #[test]
        fn any_options_are_settings_or_an_error(options in "[-c=a\\\\ é\t]{0,24}") {
            if let Ok(settings) = parse_options(&options) {
                prop_assert!(settings.iter().all(|(name, _)| !name.is_empty()));
            }
        }
    }
}
