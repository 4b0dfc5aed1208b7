//! Recognises, at the front of a client's bytes, the request that could be answered from the cache.

use std::sync::Arc;

use bytes::BytesMut;
use heliosdb_cache::{HashedStr, KeyRef};

use super::prepared::{Named, Prepared};
use crate::sql::{Parameters, Values};

/// What stands at the front of the client's bytes.
#[derive(Debug)]
pub(super) enum Front<'a> {
    /// More bytes are needed to tell.
    Incomplete,
    /// A request in one of the forms that a cached answer has.
    Read(ReadUnit<'a>),
    /// One statement run once, as in the extended protocol, with another one behind it in the same unit.
    First(ReadUnit<'a>),
    /// Something else.
    Other,
}

/// One of
/// * a simple query;
/// * one statement run once: Parse (optional), Bind, Describe (optional), Execute, Close of the portal (optional) and
///   Sync, all on the unnamed portal. With a row limit the rows behind it are lost at the Sync: the answer is as
///   complete as without;
/// * Parse, Describe of the statement (optional) and Sync.
#[derive(Debug)]
pub(crate) struct ReadUnit<'a> {
    pub(super) text: Text<'a>,
    pub(super) protocol: Protocol<'a>,
    /// Length of the whole request.
    pub(super) len: usize,
}

/// The statement's text: sent along, or known from before.
#[derive(Debug)]
pub(crate) enum Text<'a> {
    Inline(&'a str),
    Prepared(&'a Arc<Prepared>),
}

impl Text<'_> {
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Inline(text) => text,
            Self::Prepared(statement) => &statement.text,
        }
    }
}

/// How the request came, which decides the form of the reply.
#[derive(Debug)]
pub(crate) enum Protocol<'a> {
    Simple,
    Extended {
        /// The name and types of the Parse, if there was one.
        parse: Option<(&'a [u8], &'a [u8])>,
        /// Parameter formats and values, and result formats, as in the Bind.
        bind: &'a [u8],
        describe: bool,
        /// Rows at most, as in the Execute; 0 for all.
        rows_max: u32,
        close: bool,
    },
    /// The statement is prepared and perhaps described, not run.
    Prepare {
        name: &'a [u8],
        types: &'a [u8],
        describe: bool,
    },
}

impl<'a> ReadUnit<'a> {
    /// One statement run once, described, all on unnamed things: `types` as in Parse behind the text, `bind` as in Bind
    /// behind the statement's name.
    pub(crate) fn described(text: &'a str, types: &'a [u8], bind: &'a [u8]) -> Self {
        Self {
            text: Text::Inline(text),
            protocol: Protocol::Extended {
                parse: Some((b"", types)),
                bind,
                describe: true,
                rows_max: 0,
                close: false,
            },
            len: 0,
        }
    }
}

impl ReadUnit<'_> {
    /// Writes what distinguishes this request from others with the same text: the form of the reply, the parameter
    /// types, the row limit, the raw Bind.
    pub(crate) fn put_params(&self, out: &mut Vec<u8>) {
        out.clear();
        // The first byte tells which fields follow; the types begin with their count.
        match &self.protocol {
            Protocol::Simple => out.push(b'Q'),
            Protocol::Prepare {
                types, describe, ..
            } => {
                out.push(if *describe { b'S' } else { b'P' });
                out.extend_from_slice(types);
            }
            Protocol::Extended {
                bind,
                describe,
                rows_max,
                ..
            } => {
                if *rows_max == 0 {
                    out.push(if *describe { b'D' } else { b'B' });
                } else {
                    out.push(if *describe { b'd' } else { b'b' });
                    out.extend_from_slice(&rows_max.to_be_bytes());
                }
                out.extend_from_slice(self.types());
                out.extend_from_slice(bind);
            }
        }
    }

    /// The key of the answer. `params` is what [`put_params`](Self::put_params) wrote.
    pub(crate) fn key<'k>(&'k self, params: &'k [u8], scope: &'k HashedStr) -> KeyRef<'k> {
        match &self.text {
            Text::Inline(text) => KeyRef::new(text, params, scope),
            Text::Prepared(statement) => KeyRef::prepared(&statement.text, params, scope),
        }
    }

    /// True for a simple query.
    pub(super) fn is_simple(&self) -> bool {
        matches!(self.protocol, Protocol::Simple)
    }

    /// True if more rows than these could be asked for, as long as the portal lives.
    pub(super) fn has_row_limit(&self) -> bool {
        matches!(self.protocol, Protocol::Extended { rows_max, .. } if rows_max > 0)
    }

    /// True if only the statement's meaning is asked for, not its rows.
    pub(super) fn is_prepare(&self) -> bool {
        matches!(self.protocol, Protocol::Prepare { .. })
    }

    /// The name and types of the Parse, if there is one.
    pub(super) fn parse(&self) -> Option<(&[u8], &[u8])> {
        match &self.protocol {
            Protocol::Simple => None,
            Protocol::Extended { parse, .. } => *parse,
            Protocol::Prepare { name, types, .. } => Some((name, types)),
        }
    }

    /// The parameter type OIDs that the Parse declared, behind their count of two bytes.
    pub(super) fn types(&self) -> &[u8] {
        match (self.parse(), &self.text) {
            (Some((_, types)), _) => types,
            (None, Text::Prepared(statement)) => &statement.types,
            (None, Text::Inline(_)) => &[],
        }
    }

    /// The parameter types that the Parse declared; 0 where it left the choice to the server.
    pub(super) fn parameter_types(&self) -> impl Iterator<Item = u32> {
        let oids = self.types().get(2..).unwrap_or_default().as_chunks::<4>().0;
        oids.iter().map(|oid| u32::from_be_bytes(*oid))
    }

    /// Where the statement's values are, for a class that was found under the catalog of that epoch.
    pub(super) fn values(&self, epoch: u64) -> Values<'_> {
        let parsed_under_catalog = match &self.text {
            // With this request.
            Text::Inline(_) => true,
            Text::Prepared(statement) => {
                statement.epoch == epoch || matches!(self.parse(), Some((b"", _)))
            }
        };
        let text = self.text.as_str();
        match &self.protocol {
            Protocol::Extended { bind, .. } => Values::bound(
                text,
                Parameters::new(self.types(), bind, parsed_under_catalog),
            ),
            Protocol::Simple | Protocol::Prepare { .. } => Values::of_text(text),
        }
    }

    /// The raw Bind suffix, empty where nothing is bound.
    pub(super) fn bind(&self) -> &[u8] {
        match &self.protocol {
            Protocol::Extended { bind, .. } => bind,
            Protocol::Simple | Protocol::Prepare { .. } => &[],
        }
    }
}

/// Writes a reply that is known here with what belongs around it in the protocol at hand, up to a ReadyForQuery with
/// this transaction status if the request ends with it.
pub(super) fn put_reply(
    out: &mut BytesMut,
    protocol: &Protocol<'_>,
    reply: &[u8],
    ready: Option<u8>,
) {
    const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
    const BIND_COMPLETE: &[u8] = b"2\0\0\0\x04";
    const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";
    out.reserve(reply.len() + 24);
    match protocol {
        Protocol::Simple => out.extend_from_slice(reply),
        Protocol::Prepare { .. } => {
            out.extend_from_slice(PARSE_COMPLETE);
            out.extend_from_slice(reply);
        }
        Protocol::Extended { parse, close, .. } => {
            if parse.is_some() {
                out.extend_from_slice(PARSE_COMPLETE);
            }
            out.extend_from_slice(BIND_COMPLETE);
            out.extend_from_slice(reply);
            if *close {
                out.extend_from_slice(CLOSE_COMPLETE);
            }
        }
    }
    if let Some(status) = ready {
        out.extend_from_slice(&[b'Z', 0, 0, 0, 5, status]);
    }
}

/// A message at the front of `bytes`: tag, body, and the whole length.
pub(super) fn message(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (head, _) = bytes.split_first_chunk::<5>()?;
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize + 1;
    Some((head[0], bytes.get(5..len)?, len))
}

/// Looks at the front of `bytes`. `statements` are the session's prepared statements, `scope` its settings.
pub(super) fn recognise<'a>(
    bytes: &'a [u8],
    statements: &'a Named,
    scope: &HashedStr,
) -> Front<'a> {
    let Some((tag, body, len)) = message(bytes) else {
        return match bytes.first() {
            None | Some(b'Q' | b'P' | b'B' | b'D' | b'E' | b'C' | b'S') => Front::Incomplete,
            Some(_) => Front::Other,
        };
    };
    match tag {
        b'Q' => {
            let text = body
                .split_last()
                .filter(|(last, _)| **last == 0)
                .map(|(_, text)| std::str::from_utf8(text));
            match text {
                Some(Ok(text)) => Front::Read(ReadUnit {
                    text: Text::Inline(text),
                    protocol: Protocol::Simple,
                    len,
                }),
                _ => Front::Other,
            }
        }
        b'P' | b'B' => recognise_extended(bytes, statements, scope),
        _ => Front::Other,
    }
}

fn recognise_extended<'a>(bytes: &'a [u8], statements: &'a Named, scope: &HashedStr) -> Front<'a> {
    let mut at = 0;
    // A Flush changes nothing where the Sync is here already. Else the client may be waiting for what it has sent.
    let mut incomplete = Front::Incomplete;
    let mut next = || loop {
        let message = message(bytes.get(at..)?)?;
        at += message.2;
        if message.0 != b'H' {
            return Some(message);
        }
        incomplete = Front::Other;
    };
    let mut text = None;
    let mut parse = None;
    let mut current = next();
    if let Some((b'P', body, _)) = current {
        let Some((name, sql, types)) = split_parse(body) else {
            return Front::Other;
        };
        parse = Some((name, types));
        text = Some(match statements.get(name) {
            // The same once more, as drivers do that never name a statement: its hash and its class are known.
            Some(known) if is_same(known, sql, types, scope) => Text::Prepared(known),
            _ => Text::Inline(sql),
        });
        current = next();
        if !matches!(current, Some((b'B', ..))) {
            let describe = match current {
                Some((b'D', body, _)) => match body.split_first() {
                    Some((b'S', described)) if described.strip_suffix(b"\0") == Some(name) => {
                        current = next();
                        true
                    }
                    _ => return Front::Other,
                },
                _ => false,
            };
            return match current {
                Some((b'S', ..)) => Front::Read(ReadUnit {
                    text: Text::Inline(sql),
                    protocol: Protocol::Prepare {
                        name,
                        types,
                        describe,
                    },
                    len: at,
                }),
                Some(_) => Front::Other,
                None => incomplete,
            };
        }
    }
    let bind = match current {
        Some((b'B', body, _)) => {
            let Some((b"", statement, suffix)) = split_bind(body) else {
                return Front::Other;
            };
            match &parse {
                Some((name, _)) if *name == statement => {}
                // A Parse of one statement and a Bind of another.
                Some(_) => return Front::Other,
                None => match statements.get(statement) {
                    Some(statement) if statement.scope == *scope => {
                        text = Some(Text::Prepared(statement));
                    }
                    // Unknown, or parsed under other settings than those that the key speaks of.
                    _ => return Front::Other,
                },
            }
            suffix
        }
        Some(_) => return Front::Other,
        None => return incomplete,
    };
    let (mut describe, mut close) = (false, false);
    current = next();
    if let Some((b'D', body, _)) = current {
        if body != b"P\0" {
            return Front::Other;
        }
        describe = true;
        current = next();
    }
    let rows_max = match current {
        // The unnamed portal's empty name, and a limit; a negative one is none.
        Some((b'E', [0, limit @ ..], _)) => match limit.try_into().map(i32::from_be_bytes) {
            Ok(limit) => u32::try_from(limit).unwrap_or(0),
            Err(_) => return Front::Other,
        },
        Some(_) => return Front::Other,
        None => return incomplete,
    };
    current = next();
    if let Some((b'C', body, _)) = current {
        if body != b"P\0" {
            return Front::Other;
        }
        close = true;
        current = next();
    }
    let (Some((tag, _, len)), Some(text)) = (current, text) else {
        return incomplete;
    };
    let unit = |len| ReadUnit {
        text,
        protocol: Protocol::Extended {
            parse,
            bind,
            describe,
            rows_max,
            close,
        },
        len,
    };
    match tag {
        b'S' => Front::Read(unit(at)),
        b'P' | b'B' => Front::First(unit(at - len)),
        _ => Front::Other,
    }
}

/// The length of what belongs together at the front of `input`: a simple query, or all up to a Sync as far as it is
/// here.
pub(super) fn first_unit(input: &[u8]) -> usize {
    let mut at = 0;
    while let Some((tag, _, len)) = message(&input[at..]) {
        // A goodbye is not the server's.
        if tag == b'X' {
            break;
        }
        at += len;
        if matches!(tag, b'Q' | b'F' | b'S') {
            break;
        }
    }
    at
}

/// The name, text and types of a Parse. The types keep their count.
pub(super) fn split_parse(body: &[u8]) -> Option<(&[u8], &str, &[u8])> {
    let (name, rest) = split_nul(body)?;
    let (text, types) = split_nul(rest)?;
    Some((name, std::str::from_utf8(text).ok()?, types))
}

/// The portal and statement names of a Bind, and what follows them.
pub(super) fn split_bind(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (portal, rest) = split_nul(body)?;
    let (statement, rest) = split_nul(rest)?;
    Some((portal, statement, rest))
}

/// What stands before the first zero byte, and behind it.
pub(super) fn split_nul(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    // Most names are empty.
    if let Some((0, rest)) = bytes.split_first() {
        return Some((&[], rest));
    }
    let at = memchr::memchr(0, bytes)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// True if the statement is already what the client's name stands for: nothing to store.
pub(super) fn is_same(known: &Prepared, text: &str, types: &[u8], scope: &HashedStr) -> bool {
    *known.types == *types && *known.text == *text && known.scope == *scope
}

#[cfg(test)]
mod tests {
    use super::super::prepared::Interner;
    use super::*;

    fn put(out: &mut Vec<u8>, tag: u8, body: &[u8]) {
        out.push(tag);
        out.extend_from_slice(&u32::try_from(body.len() + 4).expect("small").to_be_bytes());
        out.extend_from_slice(body);
    }

    const BIND: &[u8] = b"\0\0\0\0\0\x01\0\0\0\x011\0\0";

    fn unit(messages: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (tag, body) in messages {
            put(&mut bytes, *tag, body);
        }
        bytes
    }

    fn scope() -> HashedStr {
        HashedStr::new("settings")
    }

    fn none() -> Named {
        Named::default()
    }

    #[test]
    fn usual_units_are_recognised_at_every_split() {
        let parse: &[u8] = b"\0SELECT $1\0\0\0";
        let units = [
            unit(&[(b'Q', b"SELECT 1\0")]),
            unit(&[
                (b'P', parse),
                (b'B', BIND),
                (b'D', b"P\0"),
                (b'E', b"\0\0\0\0\0"),
                (b'S', b""),
            ]),
            unit(&[
                (b'P', parse),
                (b'B', BIND),
                (b'E', b"\0\0\0\0\0"),
                (b'C', b"P\0"),
                (b'S', b""),
            ]),
            unit(&[
                (b'P', parse),
                (b'B', BIND),
                (b'E', b"\0\0\0\0\x01"),
                (b'S', b""),
            ]),
            unit(&[(b'P', parse), (b'S', b"")]),
            unit(&[(b'P', parse), (b'D', b"S\0"), (b'S', b"")]),
        ];
        for unit in units {
            for cut in 1..unit.len() {
                assert!(
                    matches!(
                        recognise(&unit[..cut], &none(), &scope()),
                        Front::Incomplete
                    ),
                    "cut at {cut}"
                );
            }
            let statements = none();
            let Front::Read(read) = recognise(&unit, &statements, &scope()) else {
                panic!("not recognised: {unit:?}")
            };
            assert_eq!(read.len, unit.len());
        }
    }

    #[test]
    fn prepared_statement_is_found_by_the_clients_name() {
        let mut statements = none();
        let bind: &[u8] = b"\0s1\0\0\0\0\0\0\0";
        let bytes = unit(&[(b'B', bind), (b'E', b"\0\0\0\0\0"), (b'S', b"")]);
        assert!(matches!(
            recognise(&bytes, &statements, &scope()),
            Front::Other
        ));
        statements.insert(
            b"s1",
            Interner::new().named("SELECT 1", &[0, 0], &scope(), 1),
        );
        let Front::Read(read) = recognise(&bytes, &statements, &scope()) else {
            panic!("not recognised")
        };
        assert_eq!(read.text.as_str(), "SELECT 1");
        let other = HashedStr::new("other settings");
        assert!(matches!(
            recognise(&bytes, &statements, &other),
            Front::Other
        ));
    }

    #[test]
    fn named_portals_two_executes_and_flushes_are_not_for_the_cache() {
        let parse: &[u8] = b"\0SELECT 1\0\0\0";
        let named: &[u8] = b"p\0\0\0\0\0\0\0\0";
        let execute: &[u8] = b"\0\0\0\0\0";
        for messages in [
            vec![
                (b'P', parse),
                (b'B', named),
                (b'E', b"p\0\0\0\0\0"),
                (b'S', b""),
            ],
            vec![
                (b'P', parse),
                (b'B', BIND),
                (b'E', execute),
                (b'B', BIND),
                (b'E', execute),
                (b'S', b""),
            ],
            vec![(b'P', parse), (b'B', BIND), (b'E', execute), (b'H', b"")],
            vec![(b'P', parse), (b'H', b"")],
            // Describes another statement than the one parsed.
            vec![(b'P', parse), (b'D', b"Sother\0"), (b'S', b"")],
        ] {
            assert!(
                matches!(
                    recognise(&unit(&messages), &none(), &scope()),
                    Front::Other | Front::First(_)
                ),
                "{messages:?}"
            );
        }
    }

    #[test]
    fn a_flush_in_front_of_the_sync_changes_nothing() {
        let parse: &[u8] = b"\0SELECT 1\0\0\0";
        let bind: &[u8] = b"\0\0\0\0\0\0\0\0";
        let flushed = unit(&[
            (b'P', parse),
            (b'H', b""),
            (b'B', bind),
            (b'E', b"\0\0\0\0\0"),
            (b'H', b""),
            (b'S', b""),
        ]);
        let whole = matches!(
            recognise(&flushed, &none(), &scope()),
            Front::Read(read) if read.len == flushed.len()
        );
        assert!(whole);
        // The client may be waiting for what comes of these.
        let until_flush = &flushed[..flushed.len() - 5];
        assert!(matches!(
            recognise(until_flush, &none(), &scope()),
            Front::Other
        ));
    }

    #[test]
    fn the_first_of_several_statements_ends_where_the_next_begins() {
        let parse: &[u8] = b"\0BEGIN\0\0\0";
        let bind: &[u8] = b"\0\0\0\0\0\0\0\0";
        let execute: &[u8] = b"\0\0\0\0\0";
        let first = [(b'P', parse), (b'B', bind), (b'E', execute)];
        let both = unit(&[&first[..], &first[..], &[(b'S', b"")]].concat());
        let statements = none();
        let Front::First(read) = recognise(&both, &statements, &scope()) else {
            panic!("not recognised")
        };
        assert_eq!(
            (read.text.as_str(), read.len),
            ("BEGIN", unit(&first).len())
        );
    }

    #[test]
    fn parameters_of_the_key_tell_protocols_types_and_values_apart() {
        let params = |messages: &[(u8, &[u8])]| {
            let bytes = unit(messages);
            let statements = none();
            let Front::Read(read) = recognise(&bytes, &statements, &scope()) else {
                panic!("not recognised")
            };
            let mut params = Vec::new();
            read.put_params(&mut params);
            params
        };
        let execute: &[u8] = b"\0\0\0\0\0";
        let limited: &[u8] = b"\0\0\0\0\x01";
        let plain: &[u8] = b"\0SELECT $1\0\0\0";
        let typed: &[u8] = b"\0SELECT $1\0\0\x01\0\0\0\x17";
        let one: &[u8] = b"\0\0\0\0\0\x01\0\0\0\x011\0\0";
        let two: &[u8] = b"\0\0\0\0\0\x01\0\0\0\x012\0\0";
        let all = [
            params(&[(b'Q', b"SELECT $1\0")]),
            params(&[(b'P', plain), (b'B', one), (b'E', execute), (b'S', b"")]),
            params(&[(b'P', plain), (b'B', two), (b'E', execute), (b'S', b"")]),
            params(&[(b'P', plain), (b'B', one), (b'E', limited), (b'S', b"")]),
            params(&[(b'P', plain), (b'S', b"")]),
            params(&[(b'P', plain), (b'D', b"S\0"), (b'S', b"")]),
            params(&[(b'P', typed), (b'S', b"")]),
            params(&[(b'P', typed), (b'B', one), (b'E', execute), (b'S', b"")]),
            params(&[
                (b'P', plain),
                (b'B', one),
                (b'D', b"P\0"),
                (b'E', execute),
                (b'S', b""),
            ]),
        ];
        for (i, a) in all.iter().enumerate() {
            for b in &all[..i] {
                assert_ne!(a, b);
            }
        }
    }
}
