//! A session's hold on a server connection, and what is still to come back over it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use smallvec::{SmallVec, smallvec};

use crate::error::ClientError;
use crate::sql::Class;
use crate::upstream::ServerLease;
use crate::upstream::connection::BackendProcess;

use super::prepared::{GivenUp, Interner, Named, Prepared};
use super::translated::Translated;

/// A leased server connection with the replies it owes.
///
/// Every message sent to the server that will be answered stands in `expects`, in order. Replies that the client must
/// get but the server will not send (for a Parse that was not needed) stand there too, and leave when they are first.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) lease: ServerLease,
    pub(crate) expects: VecDeque<Expect>,
    /// Bytes not yet written to the server.
    pub(crate) out: BytesMut,
    /// What is left of a frame whose beginning has been passed on already.
    pub(crate) skip: usize,
    /// CopyInResponses since the last ReadyForQuery.
    copies_begun: u32,
    /// CopyDones and CopyFails sent since the last ReadyForQuery, perhaps before the server had asked for data.
    copies_ended: u32,
    /// How many of them were sent before the Sync that is owed.
    ended_before_sync: u32,
    /// The server reported an error in a unit whose Sync it has not been sent: it skips everything before it.
    pub(crate) skips_to_sync: bool,
    /// True from an extended-protocol message until its Sync: the server is in the middle of an implicit transaction.
    pub(crate) unit_open: bool,
    /// The unnamed statement is one that only the server understands, of this client.
    pub(crate) foreign_unnamed: bool,
    /// An ErrorResponse came since the last ReadyForQuery.
    pub(crate) unit_failed: bool,
    /// The server has said why it ends the session.
    pub(crate) told_fatal: bool,
    /// What was run since the last ReadyForQuery.
    completed: SmallVec<[Completed; 2]>,
    /// The request under way, as long as it could be made again; else empty.
    pub(crate) retry: Vec<u8>,
    /// It is made again when the server is ready.
    pub(crate) is_retrying: bool,
}

/// A text that was run, to its end or to where it failed.
#[derive(Debug)]
pub(crate) struct Completed {
    pub(crate) class: Arc<Class>,
    /// How many of its statements are complete; the next one is the one that failed, if one did.
    pub(crate) done: usize,
    /// The text that was sent in place of the client's, of a simple query.
    pub(crate) translated: Option<Box<Translated>>,
    /// Names of statements were dealt with when it was sent.
    pub(crate) is_ahead: bool,
}

impl Completed {
    pub(crate) fn whole(class: Arc<Class>) -> Self {
        let done = class.statements.len();
        Self {
            class,
            done,
            translated: None,
            is_ahead: true,
        }
    }
}

/// Room for what a [`Link`] holds: kept with the server connection, so that lending it allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct LinkBuffers {
    expects: VecDeque<Expect>,
    retry: Vec<u8>,
    out: BytesMut,
}

/// Larger buffers are not kept.
const BUFFER_KEPT_MAX: usize = 64 << 10;

/// A reply that is owed.
#[derive(Debug)]
pub(crate) enum Expect {
    /// BindComplete, of a statement.
    Bind(Option<u64>),
    /// CloseComplete; of no interest to the client where the gateway closed a statement to make room.
    Close {
        evicted: Option<GivenUp>,
        undo: Option<Undo>,
    },
    /// RowDescription or NoData, behind a ParameterDescription where a statement was described.
    Describe,
    /// The error for a Parse that is refused: under a name that the client has used already, for one.
    RefusedParse(Box<ClientError>),
    /// Rows up to CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute {
        class: Option<Arc<Class>>,
        /// What it does to the names of statements, noted in advance.
        ahead: Option<Box<Ahead>>,
    },
    /// ParseComplete for a statement that only the server understands.
    ForeignParse,
    /// Bytes for the client that the server does not send.
    Inject {
        bytes: &'static [u8],
        undo: Option<Undo>,
    },
    /// ParseComplete.
    Parse {
        statement: Arc<Prepared>,
        named: bool,
        undo: Option<Undo>,
        swallow: bool,
    },
    /// The end of a PREPARE of the gateway's own.
    OwnPrepare(Arc<Prepared>),
    /// The reply to a message of the gateway's own, by its tag.
    Own(u8),
    /// Everything up to ReadyForQuery.
    Query {
        class: Arc<Class>,
        /// Places of the gateway's own among the statements, the last first.
        own: Vec<usize>,
        /// How many statements are complete, the gateway's own included.
        place: usize,
        /// How many of the client's are complete.
        done: usize,
        /// The text that was sent in place of the client's.
        translated: Option<Box<Translated>>,
    },
    /// ReadyForQuery.
    Sync,
}

/// What one of the client's names of statements stood for before a message that the server may refuse or skip.
#[derive(Debug)]
pub(crate) struct Undo {
    pub(crate) name: Box<[u8]>,
    pub(crate) was: Option<Arc<Prepared>>,
}

/// What a PREPARE, DEALLOCATE or DISCARD ALL of the extended protocol does to the names of statements, the client's and
/// the server connection's. It counts from when it is sent, since what follows in the same unit is sent before it is answered.
#[derive(Debug)]
pub(crate) enum Ahead {
    Added {
        name: Box<[u8]>,
        statement: Arc<Prepared>,
    },
    Removed {
        undo: Undo,
        given_up: Option<GivenUp>,
    },
    RemovedAll {
        names: Named,
        given_up: Vec<GivenUp>,
    },
}

impl Link {
    pub(crate) fn new(mut lease: ServerLease) -> Self {
        lease.lent = true;
        let LinkBuffers {
            expects,
            retry,
            out,
        } = std::mem::take(&mut lease.link_buffers);
        Self {
            lease,
            expects,
            out,
            skip: 0,
            copies_begun: 0,
            copies_ended: 0,
            ended_before_sync: 0,
            skips_to_sync: false,
            unit_open: false,
            foreign_unnamed: false,
            unit_failed: false,
            told_fatal: false,
            completed: SmallVec::new(),
            retry,
            is_retrying: false,
        }
    }

    /// The server connection, which owes nothing any more.
    pub(crate) fn into_lease(self) -> ServerLease {
        let Self {
            mut lease,
            mut expects,
            mut retry,
            mut out,
            ..
        } = self;
        lease.lent = false;
        expects.clear();
        retry.clear();
        out.clear();
        if out.capacity() <= BUFFER_KEPT_MAX {
            lease.link_buffers = LinkBuffers {
                expects,
                retry,
                out,
            };
        }
        lease
    }

    /// The server's process at the other end.
    pub(crate) fn process(&self) -> BackendProcess {
        self.lease.process.clone()
    }

    /// True where nothing is owed and nothing is half sent.
    pub(crate) fn is_quiet(&self) -> bool {
        self.expects.is_empty() && !self.unit_open && self.skip == 0
    }

    /// True from a Query or Sync until its ReadyForQuery. What the client sends behind it waits until then, except the
    /// data of a COPY: what it means may depend on what is being done.
    pub(crate) fn awaits_ready(&self) -> bool {
        matches!(
            self.expects.back(),
            Some(Expect::Query { .. } | Expect::Sync)
        )
    }

    /// True while the server waits for the data of a COPY: it ignores Sync and Flush then.
    pub(crate) fn is_copying_in(&self) -> bool {
        self.copies_begun > self.copies_ended
    }

    /// The client ends a unit.
    pub(crate) fn sync(&mut self) {
        self.unit_open = false;
        self.skips_to_sync = false;
        self.ended_before_sync = self.copies_ended;
        self.expect(Expect::Sync);
    }

    /// The client ends the data of a COPY.
    pub(crate) fn end_copy_in(&mut self) {
        self.copies_ended += 1;
    }

    /// The server reported an error: it takes no more data.
    pub(crate) fn abort_copies_in(&mut self) {
        self.copies_ended = self.copies_begun;
    }

    /// The server is ready: nothing of the unit is left.
    pub(crate) fn end_unit(&mut self) {
        self.copies_begun = 0;
        self.copies_ended = 0;
        self.ended_before_sync = 0;
        self.skips_to_sync = false;
        self.unit_open = false;
    }

    /// Notes a message that the server will answer, or bytes to be injected at this place.
    pub(crate) fn expect(&mut self, expect: Expect) {
        self.expects.push_back(expect);
    }

    /// Notes a simple query, with the places of the gateway's own statements in it, the last first.
    pub(crate) fn expect_query(
        &mut self,
        class: Arc<Class>,
        own: Vec<usize>,
        translated: Option<Box<Translated>>,
    ) {
        self.expect(Expect::Query {
            class,
            own,
            place: 0,
            done: 0,
            translated,
        });
    }

    /// Notes a text that was run, unless it leaves nothing behind.
    pub(crate) fn note_completed(&mut self, completed: Completed) {
        if !completed.class.is_plain() || completed.translated.is_some() {
            self.completed.push(completed);
        }
    }

    /// What was noted since the last ReadyForQuery.
    pub(crate) fn take_completed(&mut self) -> SmallVec<[Completed; 2]> {
        std::mem::take(&mut self.completed)
    }

    /// Moves the injected replies that are now first to the client's buffer.
    pub(crate) fn inject_due(&mut self, client: &mut BytesMut) {
        while let Some(Expect::Inject { bytes, .. }) = self.expects.front() {
            client.extend_from_slice(bytes);
            self.expects.pop_front();
        }
    }

    /// After an error in the extended protocol the server skips to the next Sync, and so do the expectations; what
    /// was noted in advance about statements is taken back.
    /// Returns what the client's names stood for before, the latest change first.
    pub(crate) fn skip_to_sync(&mut self, sqlstate: &str) -> Vec<Undo> {
        let mut undone = Vec::new();
        if let Some(Expect::Execute { class, .. }) = self.expects.front_mut() {
            // It failed, but what is not transactional may have happened before.
            // Of a portal that there is not, nothing was run.
            let failed = class
                .take()
                .filter(|class| class.parsed || sqlstate != "34000");
            if let Some(class) = failed {
                self.note_completed(Completed {
                    done: 0,
                    ..Completed::whole(class)
                });
            }
        }
        if let Some(Expect::Parse {
            undo: Some(undo), ..
        }) = self.expects.front_mut()
            && undo.name.is_empty()
        {
            // The server gives the unnamed statement up before it looks at the new text.
            undo.was = None;
        }
        let is_sync = |expect: &Expect| matches!(expect, Expect::Sync);
        let sync = self.expects.iter().position(is_sync);
        self.skips_to_sync = sync.is_none();
        let skipped = self.expects.drain(..sync.unwrap_or(self.expects.len()));
        let skipped: Vec<Expect> = skipped.collect();
        // What was noted last is taken back first.
        for expect in skipped.into_iter().rev() {
            match expect {
                Expect::Parse {
                    statement,
                    named,
                    undo,
                    ..
                } => {
                    undone.extend(undo);
                    if named {
                        self.lease.statements.remove(statement.id);
                    } else {
                        self.lease.statements.unnamed = None;
                    }
                }
                Expect::OwnPrepare(statement) => {
                    self.lease.statements.remove(statement.id);
                }
                Expect::Execute {
                    ahead: Some(ahead), ..
                } => {
                    undone.extend(self.take_back(*ahead));
                }
                Expect::Inject { undo, .. } => undone.extend(undo),
                // Not closed after all: without this note a later Parse would find the name taken.
                Expect::Close { evicted, undo } => {
                    undone.extend(undo);
                    if let Some(statement) = evicted {
                        self.lease.statements.restore(&statement);
                    }
                }
                _ => {}
            }
        }
        undone
    }

    /// The server asks for the data of a COPY. A Sync that was sent before their end is read as part of them, and ignored.
    pub(crate) fn begin_copy_in(&mut self) {
        self.copies_begun += 1;
        if self.copies_begun > self.ended_before_sync
            && matches!(self.expects.back(), Some(Expect::Sync))
        {
            self.expects.pop_back();
            self.unit_open = true;
        }
    }

    /// Makes sure that the server will know a named statement when it reads what follows: sends a Parse of our own
    /// if it does not. True if it knew it.
    pub(crate) fn ensure_prepared(
        &mut self,
        statement: &Arc<Prepared>,
        names: &Interner,
        max: usize,
    ) -> bool {
        let is_known = self.lease.statements.touch(statement.id);
        if !is_known {
            self.parse_named(statement, None, names, max);
        }
        is_known
    }

    /// Notes a statement as prepared, and closes those used least recently if there are too many.
    pub(crate) fn make_room(&mut self, statement: &Arc<Prepared>, names: &Interner, max: usize) {
        for oldest in self.lease.statements.insert(statement, max) {
            self.close_named(oldest, names);
        }
    }

    /// Closes a statement that was given up.
    pub(crate) fn close_named(&mut self, given_up: GivenUp, names: &Interner) {
        put_frame(&mut self.out, b'C', |out| {
            out.put_u8(b'S');
            names.put_server_name(given_up.id, out);
        });
        self.expect(Expect::Close {
            evicted: Some(given_up),
            undo: None,
        });
    }

    /// What the client called a statement before it sent messages that are not answered yet.
    pub(crate) fn name_before(&self, id: u64) -> Option<&[u8]> {
        let of = |undo: &'_ Undo| undo.was.as_ref().is_some_and(|was| was.id == id);
        self.expects.iter().find_map(|expect| {
            let undo = match expect {
                Expect::Close { undo, .. }
                | Expect::Inject { undo, .. }
                | Expect::Parse { undo, .. } => undo.as_ref(),
                Expect::Execute { ahead, .. } => match ahead.as_deref() {
                    Some(Ahead::Removed { undo, .. }) => Some(undo),
                    Some(Ahead::RemovedAll { names, .. }) => return names.name_of(id),
                    _ => None,
                },
                _ => None,
            };
            undo.filter(|undo| of(undo)).map(|undo| &*undo.name)
        })
    }

    /// Takes back what was noted in advance about the names of statements on the connection. Returns what is to be taken
    /// back about the client's.
    fn take_back(&mut self, ahead: Ahead) -> SmallVec<[Undo; 1]> {
        let statements = &mut self.lease.statements;
        match ahead {
            Ahead::Added { name, statement } => {
                statements.remove(statement.id);
                smallvec![Undo { name, was: None }]
            }
            Ahead::Removed { undo, given_up } => {
                if let Some(given_up) = given_up {
                    statements.restore(&given_up);
                }
                smallvec![undo]
            }
            Ahead::RemovedAll { names, given_up } => {
                for given_up in &given_up {
                    statements.restore(given_up);
                }
                names
                    .names()
                    .map(|(name, was)| Undo {
                        name: name.into(),
                        was: Some(Arc::clone(was)),
                    })
                    .collect()
            }
        }
    }

    /// Prepares a named statement, closing the one used least recently if there are too many.
    pub(crate) fn parse_named(
        &mut self,
        statement: &Arc<Prepared>,
        undo: Option<Undo>,
        names: &Interner,
        max: usize,
    ) {
        self.make_room(statement, names, max);
        if let Some(declared) = &statement.declared {
            let sql = format!("PREPARE {}{declared}", names.server_name(statement.id));
            self.run_within(std::iter::once(sql));
            // In the place of its CommandComplete, behind which two things are closed.
            let at = self.expects.len() - 3;
            self.expects[at] = Expect::OwnPrepare(Arc::clone(statement));
            return;
        }
        put_parse(&mut self.out, statement, |out| {
            names.put_server_name(statement.id, out)
        });
        let swallow = undo.is_none();
        self.expect(Expect::Parse {
            statement: Arc::clone(statement),
            named: true,
            undo,
            swallow,
        });
    }

    /// Sends a Parse that the server refuses because of its name, if it doesn't refuse it because of its text.
    pub(crate) fn parse_under_taken_name(&mut self, text: &str, types: &[u8]) {
        put_frame(&mut self.out, b'C', |out| {
            out.put_u8(b'S');
            out.put_slice(OWN_NAME);
        });
        put_frame(&mut self.out, b'P', |out| {
            out.put_slice(OWN_NAME);
            out.put_slice(b"\0\0\0");
        });
        put_frame(&mut self.out, b'P', |out| {
            out.put_slice(OWN_NAME);
            out.put_slice(text.as_bytes());
            out.put_u8(0);
            out.put_slice(types);
        });
        self.expects.extend([b'3', b'1'].map(Expect::Own));
    }

    /// Runs statements of the gateway's own in the middle of the client's unit.
    pub(crate) fn run_within(&mut self, statements: impl Iterator<Item = String>) {
        for sql in statements {
            put_frame(&mut self.out, b'C', |out| {
                out.put_u8(b'S');
                out.put_slice(OWN_NAME);
            });
            put_frame(&mut self.out, b'P', |out| {
                out.put_slice(OWN_NAME);
                out.put_slice(sql.as_bytes());
                out.put_slice(b"\0\0\0");
            });
            put_frame(&mut self.out, b'B', |out| {
                out.put_slice(OWN_NAME);
                out.put_slice(OWN_NAME);
                out.put_slice(&[0; 6]);
            });
            put_frame(&mut self.out, b'E', |out| {
                out.put_slice(OWN_NAME);
                out.put_slice(&[0; 4]);
            });
            for kind in *b"PS" {
                put_frame(&mut self.out, b'C', |out| {
                    out.put_u8(kind);
                    out.put_slice(OWN_NAME);
                });
            }
            self.expects
                .extend([b'3', b'1', b'2', b'C', b'3', b'3'].map(Expect::Own));
        }
    }

    /// Makes sure that the server has no unnamed statement of another client's when it reads what follows.
    pub(crate) fn ensure_no_unnamed(&mut self) {
        if self.foreign_unnamed {
            return;
        }
        self.lease.statements.unnamed = None;
        put_frame(&mut self.out, b'C', |out| out.put_slice(b"S\0"));
        self.expect(Expect::Own(b'3'));
    }

    /// Makes sure that the server finds no unnamed portal when it reads what follows: the client's last one ran elsewhere.
    pub(crate) fn ensure_no_unnamed_portal(&mut self) {
        put_frame(&mut self.out, b'C', |out| out.put_slice(b"P\0"));
        self.expect(Expect::Own(b'3'));
    }

    /// Prepares a statement for a Parse of the client, unless the connection has it: then the client is told so at once.
    pub(crate) fn parse_shared(
        &mut self,
        statement: &Arc<Prepared>,
        undo: Undo,
        names: &Interner,
        max: usize,
        client: &mut BytesMut,
    ) {
        if self.lease.statements.touch(statement.id) {
            self.expect(Expect::Inject {
                bytes: PARSE_COMPLETE,
                undo: Some(undo),
            });
            self.inject_due(client);
        } else {
            self.parse_named(statement, Some(undo), names, max);
        }
    }

    /// Makes sure that the server's unnamed statement is this one when it reads what follows.
    pub(crate) fn ensure_unnamed(&mut self, statement: &Arc<Prepared>) {
        if self.lease.statements.unnamed != Some(statement.id) {
            self.parse_unnamed(statement, None);
        }
    }

    /// Prepares the unnamed statement.
    pub(crate) fn parse_unnamed(&mut self, statement: &Arc<Prepared>, undo: Option<Undo>) {
        self.foreign_unnamed = false;
        put_parse(&mut self.out, statement, |out| out.put_u8(0));
        self.expect(Expect::Parse {
            statement: Arc::clone(statement),
            named: false,
            swallow: undo.is_none(),
            undo,
        });
        self.lease.statements.unnamed = Some(statement.id);
    }
}

const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
/// A statement and portal that no client uses, zero-terminated.
const OWN_NAME: &[u8] = b"helios_own\0";

pub(crate) fn put_parse(
    out: &mut BytesMut,
    statement: &Prepared,
    name: impl FnOnce(&mut BytesMut),
) {
    put_frame(out, b'P', |out| {
        name(out);
        out.put_slice(statement.text.as_bytes());
        out.put_u8(0);
        out.put_slice(&statement.types);
    });
}

/// Appends a message; its length is filled in behind the body.
pub(crate) fn put_frame(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let at = out.len();
    out.put_u32(0);
    body(out);
    let len =
        u32::try_from(out.len() - at).expect("no message is larger than the ones it is made from");
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}
