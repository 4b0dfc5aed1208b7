//! `cached plan must not change result type`: a table was altered, and the server insists on the columns that a prepared
//! statement had before.
//!
//! A client that sent the text without a name has nothing to do with what was before (`pool.prepare_unnamed`): whatever
//! the server has against the statement that stood for it, the request is repeated as it came.
//!
//! Whether the client may be given other columns depends on what it knows of them. Where the request asks for them
//! itself (by a Describe of the portal, or by being a simple query), it is repeated with a statement that is prepared
//! anew, once, if it stands alone outside of a transaction: then nothing of it was done, and nothing was said. In all other
//! cases the client gets the error, as from the server, and the next attempt works.

use std::sync::Arc;

use super::Session;
use super::link::{Expect, Link};
use super::prepared::Naming;
use super::unit::{message, split_bind};
use crate::gateway::epoch_of;

/// The error, as the server calls it. It has other causes, too, which a second attempt does not remove.
const SQLSTATE: &str = "0A000";
/// The class of errors that have nothing to do with the statement: it is cancelled, the server shuts down.
const INTERVENTION: &str = "57";
/// The class of errors about a parameter's value.
const BAD_VALUE: &str = "22";
/// Larger requests are not kept for a second attempt.
const REQUEST_MAX: usize = 16 << 10;

impl Session {
    /// Keeps a request that may be repeated, until the server has begun to answer it.
    pub(super) fn keep_for_retry(&mut self, request: &[u8]) {
        let may_retry = self.status == b'I' && !std::mem::take(&mut self.is_second_attempt);
        let Some(link) = &mut self.link else { return };
        link.retry.clear();
        if may_retry
            && request.len() <= REQUEST_MAX
            && match request.first() {
                Some(b'P') => self.gateway.prepares_unnamed() && parses_and_runs(request),
                _ => asks_for_its_columns(request),
            }
        {
            link.retry.extend_from_slice(request);
        }
    }

    /// The server reported an error. True if it is not for the client, since the request is about to be repeated.
    pub(super) fn is_retried(&mut self, sqlstate: &str) -> bool {
        let Some(link) = &mut self.link else {
            return false;
        };
        if link.retry.first() == Some(&b'P') {
            return self.is_retried_unnamed(sqlstate);
        }
        if sqlstate != SQLSTATE {
            link.retry.clear();
            return false;
        }
        let (stale, is_alone) = match link.expects.front() {
            Some(Expect::Bind(id)) => (*id, true),
            Some(Expect::Query {
                translated: Some(translated),
                class,
                done,
                ..
            }) => (translated.executed_at(*done), class.statements.len() == 1),
            _ => (None, false),
        };
        let Some(stale) = stale else {
            link.retry.clear();
            return false;
        };
        link.is_retrying = is_alone && !link.retry.is_empty();
        let is_retrying = link.is_retrying;
        self.prepare_anew(stale);
        is_retrying
    }

    /// The same, where the request begins with a Parse without a name, and an earlier Parse of that text stood for it.
    /// What the server says to the Bind may have to do with that, and nothing was run: the client's own is made up for.
    fn is_retried_unnamed(&mut self, sqlstate: &str) -> bool {
        let Some(link) = &mut self.link else {
            return false;
        };
        let shared = match link.expects.front() {
            Some(Expect::Bind(id)) if !sqlstate.starts_with(INTERVENTION) => self
                .statements
                .get(b"")
                .filter(|known| known.naming != Naming::Unnamed && Some(known.id) == *id),
            _ => None,
        };
        let (Some(shared), Some((_, _, parse))) = (shared, message(&link.retry)) else {
            link.retry.clear();
            return false;
        };
        link.retry.drain(..parse);
        link.is_retrying = true;
        let interner = &self.gateway.interner;
        if !sqlstate.starts_with(BAD_VALUE) {
            interner.forget(shared);
        }
        let epoch = epoch_of(&self.pool.database);
        let own = interner.unnamed(shared.text.clone(), &shared.types, &shared.scope, epoch);
        self.statements.insert(b"", own);
        true
    }

    /// The server is ready. True if a request is now to be repeated, which then stands at the front of the input.
    pub(super) fn repeat_request(&mut self) -> bool {
        let Some(link) = &mut self.link else {
            return false;
        };
        let request = std::mem::take(&mut link.retry);
        if !std::mem::take(&mut link.is_retrying) {
            link.retry = request;
            link.retry.clear();
            return false;
        }
        let behind = std::mem::take(&mut self.input);
        self.input.extend_from_slice(&request);
        self.input.extend_from_slice(&behind);
        self.is_second_attempt = true;
        true
    }

    /// What the client calls this statement is prepared anew where it is used next.
    fn prepare_anew(&mut self, id: u64) {
        let names: Vec<Box<[u8]>> = self.statements.names_of(id).map(Box::from).collect();
        let mut fresh = None;
        for name in names {
            if let Some(known) = self.statements.get(&name) {
                let interner = &self.gateway.interner;
                let fresh = fresh.get_or_insert_with(|| interner.anew(known));
                let fresh = Arc::clone(fresh);
                self.statements.insert(&name, fresh);
            }
        }
    }
}

/// Whether a request is a simple query that may be an EXECUTE, or one statement run once that was prepared before, with a Describe of its portal.
fn asks_for_its_columns(request: &[u8]) -> bool {
    let Some((tag, body, mut at)) = message(request) else {
        return false;
    };
    if tag == b'Q' {
        return matches!(body.trim_ascii_start().first(), Some(b'e' | b'E'));
    }
    let Some((portal, name, _)) = split_bind(body).filter(|_| tag == b'B') else {
        return false;
    };
    let mut is_described = false;
    while let Some((tag, body, len)) = message(&request[at..]) {
        at += len;
        match tag {
            b'D' if body
                .strip_prefix(b"P")
                .and_then(|body| body.strip_suffix(b"\0"))
                == Some(portal) =>
            {
                is_described = true;
            }
            b'E' | b'H' => {}
            b'S' => return is_described && at == request.len() && !name.is_empty(),
            _ => return false,
        }
    }
    false
}

/// Whether a request is one statement without a name, parsed and run once.
fn parses_and_runs(request: &[u8]) -> bool {
    let Some((b'P', body, parse)) = message(request) else {
        return false;
    };
    let mut at = parse;
    let mut next = || {
        let (tag, body, len) = message(&request[at..])?;
        at += len;
        Some((tag, body))
    };
    if !body.starts_with(b"\0") {
        return false;
    }
    let is_bind = |(tag, body): (u8, &[u8])| tag == b'B' && body.starts_with(b"\0\0");
    if !next().is_some_and(is_bind) {
        return false;
    }
    let mut is_run = false;
    loop {
        match next() {
            Some((b'D' | b'C', [b'P', ..])) => {}
            Some((b'E', _)) if !is_run => is_run = true,
            Some((b'S', _)) => return is_run && at == request.len(),
            _ => return false,
        }
    }
}

impl Link {
    /// The server has begun to answer: what was asked can't be repeated.
    pub(crate) fn has_begun(&mut self) {
        self.retry.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(messages: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (tag, body) in messages {
            bytes.push(*tag);
            let len = u32::try_from(body.len() + 4).expect("small");
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend_from_slice(body);
        }
        bytes
    }

    #[test]
    fn what_describes_the_portal_it_runs_asks_for_its_columns() {
        type Message<'m> = (u8, &'m [u8]);
        let bind: Message<'_> = (b'B', b"p\0s\0\0\0\0\0\0\0");
        let execute: Message<'_> = (b'E', b"p\0\0\0\0\0");
        let sync: Message<'_> = (b'S', b"");
        for (messages, expected) in [
            (vec![bind, (b'D', b"Pp\0"), execute, sync], true),
            (vec![bind, execute, sync], false),
            (vec![bind, (b'D', b"Pq\0"), execute, sync], false),
            (vec![bind, (b'D', b"Ss\0"), execute, sync], false),
            (vec![bind, (b'D', b"Pp\0"), execute], false),
            (
                vec![bind, (b'D', b"Pp\0"), execute, bind, execute, sync],
                false,
            ),
            (vec![(b'P', b"s\0SELECT 1\0\0\0"), bind, sync], false),
            (vec![(b'Q', b" execute s\0")], true),
            (vec![(b'Q', b"SELECT 1\0")], false),
        ] {
            let request = request(&messages);
            assert_eq!(asks_for_its_columns(&request), expected, "{messages:?}");
        }
    }

    #[test]
    fn one_statement_without_a_name_is_parsed_and_run() {
        type Message<'m> = (u8, &'m [u8]);
        let parse: Message<'_> = (b'P', b"\0SELECT 1\0\0\0");
        let bind: Message<'_> = (b'B', b"\0\0\0\0\0\0\0\0");
        let describe: Message<'_> = (b'D', b"P\0");
        let execute: Message<'_> = (b'E', b"\0\0\0\0\0");
        let sync: Message<'_> = (b'S', b"");
        for (messages, expected) in [
            (vec![parse, bind, describe, execute, sync], true),
            (vec![parse, bind, execute, (b'C', b"P\0"), sync], true),
            (vec![parse, bind, execute], false),
            (vec![parse, bind, sync], false),
            (vec![parse, (b'D', b"S\0"), bind, execute, sync], false),
            (vec![parse, bind, execute, execute, sync], false),
            (
                vec![parse, bind, execute, parse, bind, execute, sync],
                false,
            ),
            (
                vec![(b'P', b"s\0SELECT 1\0\0\0"), bind, execute, sync],
                false,
            ),
            (
                vec![parse, (b'B', b"\0s\0\0\0\0\0\0\0"), execute, sync],
                false,
            ),
            (vec![parse, bind, execute, sync, sync], false),
            (vec![bind, execute, sync], false),
        ] {
            let request = request(&messages);
            assert_eq!(parses_and_runs(&request), expected, "{messages:?}");
        }
    }
}
