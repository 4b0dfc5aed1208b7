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
/// No honest first packet is longer.
const PACKET_MAX: usize = 10_000;
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
/// [`HeliosError::Protocol`] if no client that speaks protocol 3 would send it.
pub fn parse(input: &[u8]) -> Result<Option<(FirstPacket, usize)>> {
    let Some((head, _)) = input.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes(*head) as usize;
    if !(8..=PACKET_MAX).contains(&len) {
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

fn parse_startup(version: u32, body: &[u8]) -> Result<Startup> {
    let (major, asked_minor) = (version >> 16, (version & 0xffff) as u16);
    if major != 3 {
        return Err(invalid(&format!(
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
/// [`HeliosError::Protocol`] naming the option that is not of that form.
pub fn parse_options(options: &str) -> Result<Vec<(String, String)>> {
    let mut words = split_words(options).into_iter();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let assignment = if word == "-c" {
            words
                .next()
                .ok_or_else(|| invalid("option \"-c\" needs a name=value behind it"))?
        } else if let Some(rest) = word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            rest.to_owned()
        } else {
            return Err(invalid(&format!(
                "command-line option {word:?} is not supported: only -c name=value is"
            )));
        };
        let Some((name, value)) = assignment.split_once('=') else {
            return Err(invalid(&format!("option {assignment:?} needs a value")));
        };
        // On a command line, dashes in names stand for underscores.
        settings.push((name.replace('-', "_"), value.to_owned()));
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
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

fn invalid(message: &str) -> HeliosError {
    HeliosError::Protocol(message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::message;
    use super::*;
    use bytes::BytesMut;

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
    fn impossible_packets_are_refused_without_an_allocation_of_their_size() {
        for packet in [
            &[0, 0, 0, 7, 0, 3, 0, 0][..],
            &[0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0],
            &[0, 0, 0x27, 0x11, 0, 3, 0, 0],
            &[0, 0, 0, 8, 0, 2, 0, 0],
            &[0, 0, 0, 12, 4, 210, 22, 46, 0, 0, 0, 1],
        ] {
            assert!(parse(packet).is_err(), "{packet:?}");
        }
    }

    #[test]
    fn options_are_split_as_on_a_command_line() {
        let parsed = parse_options(r"-c a=1 -cb=2 --c-d=x\ y").expect("valid");
        let expected = [("a", "1"), ("b", "2"), ("c_d", "x y")];
        assert_eq!(
            parsed,
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        assert!(parse_options("-B 10").is_err());
        assert!(parse_options("-c").is_err());
    }
}
