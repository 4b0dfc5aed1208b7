//! What the client says, on its way to the server: statement names are translated, writes are marked before they
//! leave, and each message that will be answered is noted.

use std::sync::Arc;

use bytes::BufMut as _;

use crate::error::{ClientError, ErrorKind};
use crate::sql::Class;

use super::link::{Expect, put_frame};
use super::prepared::Prepared;
use super::unit::{is_same, message, split_bind, split_nul, split_parse};
use super::{End, Session};

const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";

impl Session {
    /// Sends whole messages on. The session has a server connection.
    pub(super) fn forward_all(&mut self, messages: &[u8]) -> Result<(), End> {
        let mut at = 0;
        while let Some((tag, _, len)) = message(&messages[at..]) {
            self.forward(tag, &messages[at..at + len])?;
            at += len;
        }
        self.class = None;
        Ok(())
    }

    /// Sends one message on. The session has a server connection.
    pub(super) fn forward(&mut self, tag: u8, message: &[u8]) -> Result<(), End> {
        let body = &message[5..];
        match tag {
            b'Q' => return self.forward_query(message),
            b'P' => return self.forward_parse(body),
            b'B' => return self.forward_bind(message),
            b'D' | b'C' => return self.forward_by_name(tag, message),
            b'E' => return self.forward_execute(message),
            _ => {}
        }
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        match tag {
            b'S' => {
                link.unit_open = false;
                if !link.copy_in {
                    link.expect(Expect::Sync);
                }
            }
            b'c' | b'f' => link.copy_in = false,
            b'd' | b'H' => {}
            b'F' => {
                // A function call by OID can do anything.
                let class = self.gateway.unknown_class();
                self.mark_writes(&class);
                self.count_query();
                let Some(link) = &mut self.link else {
                    return Ok(());
                };
                link.expect(Expect::Query(Some(class)));
                link.out.extend_from_slice(message);
                return Ok(());
            }
            _ => {
                return Err(End::Error(ClientError::protocol(format!(
                    "invalid frontend message type {tag}"
                ))));
            }
        }
        link.out.extend_from_slice(message);
        Ok(())
    }

    fn forward_query(&mut self, message: &[u8]) -> Result<(), End> {
        let text = message[5..]
            .strip_suffix(b"\0")
            .ok_or_else(|| malformed("Query"))?;
        let class = self.classify_now(text);
        self.mark_writes(&class);
        self.count_query();
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        // A simple query drops the unnamed statement.
        link.lease.statements.unnamed = None;
        link.expect(Expect::Query(Some(class)));
        link.out.extend_from_slice(message);
        Ok(())
    }

    fn forward_parse(&mut self, body: &[u8]) -> Result<(), End> {
        let Some((name, text, types)) = split_parse(body) else {
            return self.forward_foreign_parse(body);
        };
        let database = Arc::clone(&self.pool.database);
        if name.is_empty() {
            let statement = match self.statements.get(name) {
                Some(known) if is_same(known, text, types) => Arc::clone(known),
                _ => self.gateway.prepare(name, text, types, &database),
            };
            self.statements.insert(name, Arc::clone(&statement));
            if let Some(link) = &mut self.link {
                link.unit_open = true;
                link.parse_unnamed(&statement, false);
            }
            return Ok(());
        }
        let max = self.gateway.max_prepared_statements();
        if let Some(known) = self.statements.get(name).cloned() {
            // PostgreSQL's own answer, with its effect on a transaction: prepare the name that is taken once more.
            if let Some(link) = &mut self.link {
                link.unit_open = true;
                link.ensure_prepared(&known, &self.gateway.interner, max);
                put_frame(&mut link.out, b'P', |out| {
                    self.gateway.interner.put_server_name(known.id, out);
                    out.put_slice(b"SELECT 1\0\0\0");
                });
                link.expect(Expect::DuplicateParse { name: name.into() });
            }
            return Ok(());
        }
        let statement = self.gateway.prepare(name, text, types, &database);
        self.statements.insert(name, Arc::clone(&statement));
        if let Some(link) = &mut self.link {
            link.unit_open = true;
            if link.lease.statements.touch(statement.id) {
                link.expect(Expect::Inject {
                    bytes: PARSE_COMPLETE,
                    client_name: Some(name.into()),
                });
                link.inject_due(&mut self.out);
            } else {
                link.parse_named(&statement, Some(name.into()), &self.gateway.interner, max);
            }
        }
        Ok(())
    }

    /// A text that is not UTF-8: the server's to understand, under the client's own names. It can't be shared.
    fn forward_foreign_parse(&mut self, body: &[u8]) -> Result<(), End> {
        let (name, rest) = split_nul(body).ok_or_else(|| malformed("Parse"))?;
        split_nul(rest).ok_or_else(|| malformed("Parse"))?;
        if name.is_empty() {
            self.statements.remove(name);
        } else {
            self.pins.add(super::pins::Pin::Prepare);
        }
        if let Some(link) = &mut self.link {
            link.unit_open = true;
            link.lease.statements.unnamed = None;
            put_frame(&mut link.out, b'P', |out| out.put_slice(body));
            link.expect(Expect::ForeignParse);
        }
        Ok(())
    }

    fn forward_bind(&mut self, message: &[u8]) -> Result<(), End> {
        let (portal, name, rest) = split_bind(&message[5..]).ok_or_else(|| malformed("Bind"))?;
        let max = self.gateway.max_prepared_statements();
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        link.unit_open = true;
        match self.statements.get(name) {
            Some(statement) if name.is_empty() => {
                link.ensure_unnamed(statement);
                link.out.extend_from_slice(message);
            }
            Some(statement) => {
                link.ensure_prepared(statement, &self.gateway.interner, max);
                put_frame(&mut link.out, b'B', |out| {
                    out.put_slice(portal);
                    out.put_u8(0);
                    self.gateway.interner.put_server_name(statement.id, out);
                    out.put_slice(rest);
                });
            }
            // Prepared by SQL, or unknown: the server says which.
            None => link.out.extend_from_slice(message),
        }
        link.expect(Expect::Bind);
        match self.statements.get(name) {
            Some(statement) => {
                self.portals.insert(portal, Arc::clone(statement));
            }
            None => {
                self.portals.remove(portal);
            }
        }
        Ok(())
    }

    fn forward_execute(&mut self, message: &[u8]) -> Result<(), End> {
        let (portal, _) = split_nul(&message[5..]).ok_or_else(|| malformed("Execute"))?;
        let class = match self.portals.get(portal).cloned() {
            Some(statement) => self.classify_prepared_now(&statement),
            // A cursor of DECLARE, or something prepared by SQL.
            None => self.gateway.unknown_class(),
        };
        self.mark_writes(&class);
        self.count_query();
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        link.unit_open = true;
        link.expect(Expect::Execute(Some(class)));
        link.out.extend_from_slice(message);
        Ok(())
    }

    /// Describe and Close, of a statement or of a portal.
    fn forward_by_name(&mut self, tag: u8, message: &[u8]) -> Result<(), End> {
        let (kind, rest) = message[5..]
            .split_first()
            .ok_or_else(|| malformed("Describe"))?;
        let (name, _) = split_nul(rest).ok_or_else(|| malformed("Describe"))?;
        let max = self.gateway.max_prepared_statements();
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        link.unit_open = true;
        if tag == b'C' {
            if *kind == b'S' && !name.is_empty() && self.statements.remove(name).is_some() {
                // Others may use it under the server's name; it leaves the server when it is least recently used.
                link.expect(Expect::Inject {
                    bytes: CLOSE_COMPLETE,
                    client_name: None,
                });
                link.inject_due(&mut self.out);
                return Ok(());
            }
            if *kind == b'S' && name.is_empty() {
                self.statements.remove(name);
                link.lease.statements.unnamed = None;
            } else if *kind == b'P' {
                self.portals.remove(name);
            }
            link.out.extend_from_slice(message);
            link.expect(Expect::Close { evicted: None });
            return Ok(());
        }
        match self.statements.get(name).filter(|_| *kind == b'S') {
            Some(statement) if name.is_empty() => {
                link.ensure_unnamed(statement);
                link.out.extend_from_slice(message);
            }
            Some(statement) => {
                link.ensure_prepared(statement, &self.gateway.interner, max);
                put_frame(&mut link.out, b'D', |out| {
                    out.put_u8(b'S');
                    self.gateway.interner.put_server_name(statement.id, out);
                });
            }
            None => link.out.extend_from_slice(message),
        }
        link.expect(Expect::Describe);
        Ok(())
    }

    /// Marks what a statement may write, before it is sent.
    pub(super) fn mark_writes(&mut self, class: &Class) {
        crate::invalidate::wire::mark(
            &mut self.intent,
            class,
            &self.pool.database,
            self.gateway.cache.versions(),
        );
    }

    /// The class of a prepared statement, as far as it can be known without waiting.
    fn classify_prepared_now(&mut self, statement: &Prepared) -> Arc<Class> {
        let text = statement.text.as_bytes();
        if self.class.is_some() {
            return self.classify_now(text);
        }
        let Some(catalog) = self.pool.database.catalog_now() else {
            return self.classify_now(text);
        };
        let class =
            self.gateway
                .classify_prepared(statement, &catalog, &self.names, &mut self.text_buffer);
        self.unresolved.note(text, &class);
        class
    }

    /// The class of a statement, as far as it can be known without waiting.
    pub(super) fn classify_now(&mut self, text: &[u8]) -> Arc<Class> {
        if let Some(class) = self.class.take() {
            self.unresolved.note(text, &class);
            return class;
        }
        // In a transaction that has written to everything (DDL, for one) the catalog may be about to change.
        let catalog = self.pool.database.catalog_now();
        let class =
            self.gateway
                .classify(text, catalog.as_deref(), &self.names, &mut self.text_buffer);
        self.unresolved.note(text, &class);
        class
    }
}

fn malformed(what: &str) -> End {
    End::Error(
        ClientError::new(
            ErrorKind::Client,
            "08P01",
            format!("malformed {what} message"),
        )
        .fatal(),
    )
}
