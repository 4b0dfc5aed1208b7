//! The messages of `pgoutput`, protocol 1: what PostgreSQL's own logical decoding says of committed transactions.
//!
//! A transaction comes whole, between [`Begin`] and [`Commit`], when it has been committed; what was rolled back does
//! not come. A table is described by a [`Relation`] before its first change, and again after its definition changed.
//!
//! Rows are not decoded: a [`Tuple`] borrows its columns' texts from the message. Nothing here allocates, except for the
//! columns of a [`Relation`], one for each that is there.
#![deny(clippy::indexing_slicing)]

use crate::error::{HeliosError, Result};

use super::super::frame::Reader;
use super::super::parse::whole;
use super::Lsn;

/// A message of the output plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message<'a> {
    /// A transaction begins.
    Begin(Begin),
    /// The transaction ends.
    Commit(Commit),
    /// A row is gone.
    Delete(Delete<'a>),
    /// A row is new.
    Insert(Insert<'a>),
    /// What somebody emitted with `pg_logical_emit_message`.
    Logical(Logical<'a>),
    /// The transaction came from another server.
    Origin(Origin<'a>),
    /// A table that the messages behind it are about.
    Relation(Relation<'a>),
    /// All rows of tables are gone.
    Truncate(Truncate<'a>),
    /// A type that is not built in, used by the relation behind it.
    Type(Type<'a>),
    /// A row has changed.
    Update(Update<'a>),
}

/// A transaction begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Begin {
    /// Where its commit record begins.
    pub final_lsn: Lsn,
    /// When it was committed, in microseconds since 2000.
    pub committed_at: i64,
    /// Its id, without the epoch.
    pub xid: u32,
}

/// The transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Commit {
    /// Where its commit record begins.
    pub commit_lsn: Lsn,
    /// Where its commit record ends: all transactions that were committed up to here have been sent.
    pub end_lsn: Lsn,
    /// When it was committed, in microseconds since 2000.
    pub committed_at: i64,
}

/// The transaction came from another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Origin<'a> {
    /// Where it was committed there.
    pub commit_lsn: Lsn,
    /// The name of the origin.
    pub name: &'a [u8],
}

/// A table that the messages behind it are about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Relation<'a> {
    /// Its OID.
    pub oid: u32,
    /// Its schema; empty for `pg_catalog`.
    pub schema: &'a [u8],
    /// Its name.
    pub name: &'a [u8],
    /// What identifies an old row: `d` the primary key, `i` an index, `f` all columns, `n` nothing.
    pub replica_identity: u8,
    /// Its columns, in the order of those of a [`Tuple`].
    pub columns: Vec<Column<'a>>,
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Column<'a> {
    /// True if it is part of what identifies an old row.
    pub is_key: bool,
    /// Its name.
    pub name: &'a [u8],
    /// The OID of its type.
    pub type_oid: u32,
    /// The type's modifier, -1 for none.
    pub type_modifier: i32,
}

/// A type that is not built in, used by the relation behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Type<'a> {
    /// Its OID.
    pub oid: u32,
    /// Its schema; empty for `pg_catalog`.
    pub schema: &'a [u8],
    /// Its name.
    pub name: &'a [u8],
}

/// A row is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Insert<'a> {
    /// The OID of its table.
    pub relation: u32,
    /// The row.
    pub new: Tuple<'a>,
}

/// A row has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Update<'a> {
    /// The OID of its table.
    pub relation: u32,
    /// What the row was, where its identity changed or all of it is the identity.
    pub old: Option<Old<'a>>,
    /// What it is now.
    pub new: Tuple<'a>,
}

/// A row is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delete<'a> {
    /// The OID of its table.
    pub relation: u32,
    /// What it was.
    pub old: Old<'a>,
}

/// What a row was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the protocol knows these two")]
pub enum Old<'a> {
    /// Its identity; all other columns are sent as null.
    Key(Tuple<'a>),
    /// All of it.
    Row(Tuple<'a>),
}

impl<'a> Old<'a> {
    /// The columns, those that are not sent as null.
    #[must_use]
    pub fn tuple(self) -> Tuple<'a> {
        match self {
            Self::Key(tuple) | Self::Row(tuple) => tuple,
        }
    }
}

/// All rows of tables are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Truncate<'a> {
    /// True for `TRUNCATE .. CASCADE`; the tables that it reached are listed too.
    pub cascade: bool,
    /// True for `TRUNCATE .. RESTART IDENTITY`.
    pub restart_identity: bool,
    oids: &'a [u8],
}

impl Truncate<'_> {
    /// The OIDs of the tables.
    pub fn relations(&self) -> impl ExactSizeIterator<Item = u32> {
        self.oids
            .as_chunks()
            .0
            .iter()
            .copied()
            .map(u32::from_be_bytes)
    }
}

/// What somebody emitted with `pg_logical_emit_message`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Logical<'a> {
    /// True if it belongs to the transaction that it stands in; otherwise it stands anywhere, even inside of another.
    pub is_transactional: bool,
    /// Where it lies in the log.
    pub lsn: Lsn,
    /// Who it is for.
    pub prefix: &'a [u8],
    /// What it says.
    pub content: &'a [u8],
}

/// The columns of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    len: u16,
    bytes: &'a [u8],
}

/// A column of a [`Tuple`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value<'a> {
    /// In the type's binary format, where that was asked for.
    Binary(&'a [u8]),
    /// NULL, or not part of the identity.
    Null,
    /// In the type's text format.
    Text(&'a [u8]),
    /// A long value that the change left alone: it is not sent.
    Unchanged,
}

impl<'a> Tuple<'a> {
    /// How many columns it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.into()
    }

    /// True if it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its columns, in the order of the relation's.
    pub fn values(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut reader = Reader::new(self.bytes);
        // They were all read once, when the message was.
        (0..self.len).map_while(move |_| value(&mut reader))
    }

    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        let len = reader.u16()?;
        let begin = reader.rest();
        for _ in 0..len {
            value(reader)?;
        }
        let bytes = begin.get(..begin.len() - reader.rest().len())?;
        Some(Self { len, bytes })
    }
}

fn value<'a>(reader: &mut Reader<'a>) -> Option<Value<'a>> {
    Some(match reader.u8()? {
        b'n' => Value::Null,
        b'u' => Value::Unchanged,
        b't' => Value::Text(reader.value()??),
        b'b' => Value::Binary(reader.value()??),
        _ => return None,
    })
}

impl<'a> Message<'a> {
    /// Takes a message apart.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if it is malformed, or of a type that protocol 1 does not have.
    pub fn decode(data: &'a [u8]) -> Result<Self> {
        let Some((tag, body)) = data.split_first() else {
            return Err(HeliosError::Protocol(
                "an empty pgoutput message".to_owned(),
            ));
        };
        match tag {
            b'B' => whole(body, "Begin", begin).map(Self::Begin),
            b'C' => whole(body, "Commit", commit).map(Self::Commit),
            b'D' => whole(body, "Delete", delete).map(Self::Delete),
            b'I' => whole(body, "Insert", insert).map(Self::Insert),
            b'M' => whole(body, "Message", logical).map(Self::Logical),
            b'O' => whole(body, "Origin", origin).map(Self::Origin),
            b'R' => whole(body, "Relation", relation).map(Self::Relation),
            b'T' => whole(body, "Truncate", truncate).map(Self::Truncate),
            b'U' => whole(body, "Update", update).map(Self::Update),
            b'Y' => whole(body, "Type", type_of).map(Self::Type),
            tag => Err(HeliosError::Protocol(format!(
                "a pgoutput message of unknown type {:?}",
                char::from(*tag)
            ))),
        }
    }
}

fn lsn(body: &mut Reader<'_>) -> Option<Lsn> {
    Some(Lsn(body.u64()?))
}

fn begin(body: &mut Reader<'_>) -> Option<Begin> {
    Some(Begin {
        final_lsn: lsn(body)?,
        committed_at: body.i64()?,
        xid: body.u32()?,
    })
}

fn commit(body: &mut Reader<'_>) -> Option<Commit> {
    // Flags, of which none is defined.
    if body.u8()? != 0 {
        return None;
    }
    Some(Commit {
        commit_lsn: lsn(body)?,
        end_lsn: lsn(body)?,
        committed_at: body.i64()?,
    })
}

fn origin<'a>(body: &mut Reader<'a>) -> Option<Origin<'a>> {
    Some(Origin {
        commit_lsn: lsn(body)?,
        name: body.cstr()?,
    })
}

fn relation<'a>(body: &mut Reader<'a>) -> Option<Relation<'a>> {
    Some(Relation {
        oid: body.u32()?,
        schema: body.cstr()?,
        name: body.cstr()?,
        replica_identity: body.u8()?,
        columns: {
            let n = body.u16()?;
            (0..n).map(|_| column(body)).collect::<Option<_>>()?
        },
    })
}

fn column<'a>(body: &mut Reader<'a>) -> Option<Column<'a>> {
    Some(Column {
        is_key: match body.u8()? {
            0 => false,
            1 => true,
            _ => return None,
        },
        name: body.cstr()?,
        type_oid: body.u32()?,
        type_modifier: body.i32()?,
    })
}

fn type_of<'a>(body: &mut Reader<'a>) -> Option<Type<'a>> {
    Some(Type {
        oid: body.u32()?,
        schema: body.cstr()?,
        name: body.cstr()?,
    })
}

fn insert<'a>(body: &mut Reader<'a>) -> Option<Insert<'a>> {
    Some(Insert {
        relation: body.u32()?,
        new: new(body)?,
    })
}

fn update<'a>(body: &mut Reader<'a>) -> Option<Update<'a>> {
    let relation = body.u32()?;
    let mut ahead = *body;
    let old = match ahead.u8()? {
        b'N' => None,
        tag => {
            let old = old(tag, &mut ahead)?;
            *body = ahead;
            Some(old)
        }
    };
    Some(Update {
        relation,
        old,
        new: new(body)?,
    })
}

fn delete<'a>(body: &mut Reader<'a>) -> Option<Delete<'a>> {
    Some(Delete {
        relation: body.u32()?,
        old: {
            let tag = body.u8()?;
            old(tag, body)?
        },
    })
}

fn new<'a>(body: &mut Reader<'a>) -> Option<Tuple<'a>> {
    match body.u8()? {
        b'N' => Tuple::read(body),
        _ => None,
    }
}

fn old<'a>(tag: u8, body: &mut Reader<'a>) -> Option<Old<'a>> {
    match tag {
        b'K' => Tuple::read(body).map(Old::Key),
        b'O' => Tuple::read(body).map(Old::Row),
        _ => None,
    }
}

fn truncate<'a>(body: &mut Reader<'a>) -> Option<Truncate<'a>> {
    let n = usize::try_from(body.u32()?).ok()?;
    let flags = body.u8()?;
    // Compared with what is there before it is multiplied.
    let oids = (n <= body.rest().len()).then(|| body.bytes(n * 4))??;
    (flags < 4).then_some(Truncate {
        cascade: flags & 1 != 0,
        restart_identity: flags & 2 != 0,
        oids,
    })
}

fn logical<'a>(body: &mut Reader<'a>) -> Option<Logical<'a>> {
    Some(Logical {
        is_transactional: match body.u8()? {
            0 => false,
            1 => true,
            _ => return None,
        },
        lsn: lsn(body)?,
        prefix: body.cstr()?,
        content: body.value()??,
    })
}

#[cfg(test)]
mod tests {
    use bytes::BufMut as _;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Cell {
        Null,
        Text(Vec<u8>),
        Unchanged,
    }

    fn put_tuple(out: &mut Vec<u8>, tag: u8, cells: &[Cell]) {
        out.put_u8(tag);
        out.put_u16(u16::try_from(cells.len()).expect("few"));
        for cell in cells {
            match cell {
                Cell::Null => out.put_u8(b'n'),
                Cell::Unchanged => out.put_u8(b'u'),
                Cell::Text(text) => {
                    out.put_u8(b't');
                    out.put_u32(u32::try_from(text.len()).expect("short"));
                    out.put_slice(text);
                }
            }
        }
    }

    fn is_same(tuple: Tuple<'_>, cells: &[Cell]) -> bool {
        let expected = cells.iter().map(|cell| match cell {
            Cell::Null => Value::Null,
            Cell::Text(text) => Value::Text(text),
            Cell::Unchanged => Value::Unchanged,
        });
        tuple.len() == cells.len() && tuple.values().eq(expected)
    }

    fn cells() -> impl Strategy<Value = Vec<Cell>> {
        let cell = prop_oneof![
            Just(Cell::Null),
            Just(Cell::Unchanged),
            prop::collection::vec(any::<u8>(), 0..9).prop_map(Cell::Text),
        ];
        prop::collection::vec(cell, 0..6)
    }

    /// One of each, as a server of version 15 writes them.
    const RECORDED: &[&[u8]] = &[
        b"B\0\0\0\0\x01\x9f\x0a\x10\0\x02\xd5\xe1\xb0\x0c\x01\x20\0\0\x02\xe3",
        b"C\0\0\0\0\0\x01\x9f\x0a\x10\0\0\0\0\x01\x9f\x0a\x40\0\x02\xd5\xe1\xb0\x0c\x01\x20",
        b"R\0\0\x40\x01public\0t\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0v\0\0\0\0\x19\xff\xff\xff\xff",
        b"I\0\0\x40\x01N\0\x02t\0\0\0\x011t\0\0\0\x01a",
        b"U\0\0\x40\x01N\0\x02t\0\0\0\x011u",
        b"U\0\0\x40\x01K\0\x02t\0\0\0\x011nN\0\x02t\0\0\0\x012n",
        b"D\0\0\x40\x01O\0\x02t\0\0\0\x012n",
        b"T\0\0\0\x02\x03\0\0\x40\x01\0\0\x40\x05",
        b"M\x01\0\0\0\0\x01\x9f\x0a\x10helios\0\0\0\0\x02hi",
        b"O\0\0\0\0\x01\x9f\x0a\x10far\0",
        b"Y\0\0\x40\x09public\0mood\0",
    ];

    #[test]
    fn a_message_cut_anywhere_or_with_a_tail_is_malformed() {
        for message in RECORDED {
            assert!(Message::decode(message).is_ok(), "{message:?}");
            for end in 0..message.len() {
                let (cut, _) = message.split_at(end);
                assert!(Message::decode(cut).is_err(), "{cut:?}");
            }
            let long = [message, &b"\0"[..]].concat();
            assert!(Message::decode(&long).is_err(), "{long:?}");
        }
    }

    #[test]
    fn what_each_message_says_is_read() {
        let decode =
            |at: usize| Message::decode(RECORDED.get(at).expect("recorded")).expect("valid");
        assert!(matches!(decode(0), Message::Begin(Begin { xid: 739, .. })));
        assert!(matches!(
            decode(1),
            Message::Commit(Commit { commit_lsn, end_lsn, .. }) if end_lsn.0 - commit_lsn.0 == 0x30
        ));
        let Message::Relation(relation) = decode(2) else {
            panic!("a relation")
        };
        assert_eq!(
            (relation.oid, relation.schema, relation.name),
            (16385, &b"public"[..], &b"t"[..])
        );
        let keys: Vec<_> = relation
            .columns
            .iter()
            .map(|column| (column.name, column.is_key))
            .collect();
        assert_eq!(keys, [(&b"id"[..], true), (b"v", false)]);
        assert!(matches!(
            decode(4),
            Message::Update(Update { old: None, .. })
        ));
        assert!(matches!(
            decode(5),
            Message::Update(Update {
                old: Some(Old::Key(_)),
                ..
            })
        ));
        assert!(matches!(
            decode(6),
            Message::Delete(Delete {
                old: Old::Row(_),
                ..
            })
        ));
        let Message::Truncate(truncate) = decode(7) else {
            panic!("a truncate")
        };
        assert!(truncate.cascade && truncate.restart_identity);
        assert_eq!(truncate.relations().collect::<Vec<_>>(), [16385, 16389]);
        assert!(matches!(
            decode(8),
            Message::Logical(Logical {
                is_transactional: true,
                prefix: b"helios",
                content: b"hi",
                ..
            })
        ));
    }

    #[test]
    fn what_the_protocol_does_not_have_is_refused() {
        // Streamed and prepared transactions are of later protocols, which nobody asked for.
        for tag in [b'S', b'E', b'c', b'A', b'b', b'P', b'K', b'r', b'p', 0] {
            assert!(Message::decode(&[tag, 0, 0, 0, 0]).is_err());
        }
        // A count that no memory could hold is not believed.
        assert!(Message::decode(b"T\xff\xff\xff\xff\0").is_err());
        assert!(Message::decode(b"I\0\0\0\x01N\xff\xffn").is_err());
        assert!(Message::decode(b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xff").is_err());
    }

    proptest! {
        #[test]
        fn changes_come_out_as_they_went_in(relation: u32, old in cells(), new in cells(), whole_row: bool) {
            let tag = if whole_row { b'O' } else { b'K' };
            let mut insert = vec![b'I'];
            insert.put_u32(relation);
            put_tuple(&mut insert, b'N', &new);
            let Message::Insert(read) = Message::decode(&insert).expect("valid") else { panic!("an insert") };
            prop_assert!(read.relation == relation && is_same(read.new, &new));

            let mut update = vec![b'U'];
            update.put_u32(relation);
            put_tuple(&mut update, tag, &old);
            put_tuple(&mut update, b'N', &new);
            let Message::Update(read) = Message::decode(&update).expect("valid") else { panic!("an update") };
            prop_assert!(read.relation == relation && is_same(read.new, &new));
            let was = read.old.expect("there");
            prop_assert!(is_same(was.tuple(), &old) && matches!(was, Old::Row(_)) == whole_row);

            let mut delete = vec![b'D'];
            delete.put_u32(relation);
            put_tuple(&mut delete, tag, &old);
            let Message::Delete(read) = Message::decode(&delete).expect("valid") else { panic!("a delete") };
            prop_assert!(read.relation == relation && is_same(read.old.tuple(), &old));
        }

        #[test]
        fn garbage_is_malformed_but_never_a_panic(
            tag in prop::sample::select(&b"BCDIMORTUYSKx"[..]),
            body in prop::collection::vec(prop_oneof![Just(0), Just(b'N'), Just(b't'), any::<u8>()], 0..64),
        ) {
            let data = [&[tag][..], &body].concat();
            match Message::decode(&data) {
                Ok(Message::Insert(insert)) => prop_assert_eq!(insert.new.values().count(), insert.new.len()),
                Ok(Message::Truncate(truncate)) => prop_assert!(truncate.relations().len() * 4 < data.len()),
                Ok(_) | Err(_) => {}
            }
        }
    }
}
