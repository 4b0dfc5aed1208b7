//! What a client gets.

use std::ops::Range;
use std::str::FromStr;
use std::sync::OnceLock;

use bytes::Bytes;

use crate::error::{HeliosError, Result};
use crate::postgres::frame;
use crate::postgres::parse;
use crate::protocol::Facts;

/// The answer to a statement: rows, the command's tag, and what is known of it.
///
/// It is the server's messages as they came. What is asked for is found when it is asked for.
#[derive(Debug, Clone)]
pub struct Reply {
    run: Bytes,
    /// Where the body of the RowDescription lies in `run`; nowhere without one.
    description: Range<usize>,
    /// Read when they are asked for.
    columns: OnceLock<Vec<ColumnInfo>>,
    /// Where the first row's message begins.
    first_row: usize,
    rows: usize,
    tag: Range<usize>,
    facts: Facts,
}

/// A column of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ColumnInfo {
    /// Its name.
    pub name: String,
    /// The OID of its type.
    pub type_oid: u32,
}

impl Reply {
    /// Reads whole PostgreSQL messages.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if they are none.
    pub fn new(run: Bytes, facts: Facts) -> Result<Self> {
        let (mut description, mut tag) = (0..0, 0..0);
        let (mut first_row, mut rows) = (run.len(), 0);
        let mut at = 0;
        while at < run.len() {
            let Some((header, body)) = frame::peek(&run[at..], run.len())? else {
                return Err(HeliosError::Protocol(
                    "an answer ends within a message".to_owned(),
                ));
            };
            let end = at + header.len;
            let inside = end - body.len()..end;
            match header.tag {
                b'T' => {
                    parse::row_description(body)?;
                    description = inside;
                }
                b'D' => {
                    first_row = first_row.min(at);
                    rows += 1;
                }
                b'C' => {
                    parse::command_tag(body)?;
                    tag = inside.start..inside.end - 1;
                }
                // Notices, no data, an empty statement: nothing to read.
                _ => {}
            }
            at = end;
        }
        Ok(Self {
            run,
            description,
            columns: OnceLock::new(),
            first_row,
            rows,
            tag,
            facts,
        })
    }

    /// The columns; none if the statement returns no rows.
    #[must_use]
    pub fn columns(&self) -> &[ColumnInfo] {
        self.columns.get_or_init(|| {
            let body = &self.run[self.description.clone()];
            let info = |column: &parse::Column<'_>| ColumnInfo {
                name: String::from_utf8_lossy(column.name).into_owned(),
                type_oid: column.type_oid,
            };
            // It was read without an error before.
            let read = parse::row_description(body).unwrap_or_default();
            read.iter().map(info).collect()
        })
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// True without rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The rows in their order.
    #[must_use]
    pub fn rows(&self) -> Rows<'_> {
        Rows {
            reply: self,
            rest: &self.run[self.first_row..],
            left: self.rows,
        }
    }

    /// The row of that number, from 0: found by going through those before it.
    #[must_use]
    pub fn row(&self, number: usize) -> Option<Row<'_>> {
        self.rows().nth(number)
    }

    /// What was done: `SELECT 3`, `UPDATE 1`, ...
    #[must_use]
    pub fn tag(&self) -> &str {
        std::str::from_utf8(&self.run[self.tag.clone()]).unwrap_or_default()
    }

    /// What is known of the answer.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The server's messages.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.run
    }
}

/// The rows of a [`Reply`].
#[derive(Debug, Clone)]
pub struct Rows<'a> {
    reply: &'a Reply,
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Rows<'a> {
    type Item = Row<'a>;

    fn next(&mut self) -> Option<Row<'a>> {
        while self.left > 0 {
            let (header, body) = frame::peek(self.rest, frame::LEN_MAX).ok()??;
            self.rest = &self.rest[header.len..];
            if header.tag == b'D' {
                self.left -= 1;
                return Some(Row {
                    reply: self.reply,
                    body,
                });
            }
        }
        None
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Rows<'_> {}

/// A row of a [`Reply`].
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    reply: &'a Reply,
    body: &'a [u8],
}

impl<'a> Row<'a> {
    /// The values in the form they were asked for; `None` is NULL.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if the row is malformed.
    pub fn values(&self) -> Result<Vec<Option<&'a [u8]>>> {
        parse::data_row(self.body)
    }

    /// The value of a column, as text; `None` is NULL.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if there is no such column, or its value is not UTF-8.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a name or a number, written where it is asked for"
    )]
    pub fn text(&self, column: impl ColumnIndex) -> Result<Option<&'a str>> {
        let number = column.number(self.reply.columns())?;
        let values = self.values()?;
        let value = values
            .get(number)
            .copied()
            .ok_or_else(|| missing(&number))?;
        let text = value.map(std::str::from_utf8).transpose();
        text.map_err(|_| HeliosError::Protocol(format!("column {number} is not UTF-8")))
    }

    /// The value of a column, read from its text; `None` is NULL.
    ///
    /// # Errors
    /// As [`text`](Self::text), and if the value is no `T`.
    pub fn get<T: FromStr>(&self, column: impl ColumnIndex) -> Result<Option<T>> {
        let read = |text: &str| {
            text.parse().map_err(|_| {
                let wanted = std::any::type_name::<T>();
                HeliosError::Protocol(format!("{text:?} is no {wanted}"))
            })
        };
        self.text(column)?.map(read).transpose()
    }
}

/// A column's name, or its number from 0.
pub trait ColumnIndex {
    /// Its number among these.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if it is none of them.
    fn number(&self, columns: &[ColumnInfo]) -> Result<usize>;
}

impl ColumnIndex for usize {
    fn number(&self, columns: &[ColumnInfo]) -> Result<usize> {
        let is_there = *self < columns.len();
        is_there.then_some(*self).ok_or_else(|| missing(self))
    }
}

impl ColumnIndex for &str {
    fn number(&self, columns: &[ColumnInfo]) -> Result<usize> {
        let found = columns.iter().position(|column| column.name == *self);
        found.ok_or_else(|| missing(self))
    }
}

fn missing(column: &dyn std::fmt::Debug) -> HeliosError {
    HeliosError::Protocol(format!("there is no column {column:?} in this answer"))
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::postgres::message;

    #[test]
    fn rows_are_read_by_name_and_number() {
        let mut run = BytesMut::new();
        message::put_row_description(&mut run, &["id", "name"]);
        message::put_data_row(&mut run, [Some(&b"7"[..]), Some(b"Ada")].into_iter());
        message::put_data_row(&mut run, [Some(&b"8"[..]), None].into_iter());
        message::put_command_complete(&mut run, "SELECT 2");
        let reply = Reply::new(run.clone().freeze(), Facts::default()).expect("whole");
        assert_eq!((reply.len(), reply.tag()), (2, "SELECT 2"));
        let first = reply.row(0).expect("two rows");
        assert_eq!(first.get::<i64>("id").expect("a number"), Some(7));
        assert_eq!(first.text(1).expect("text"), Some("Ada"));
        assert!(first.get::<i64>("name").is_err());
        assert!(first.text("absent").is_err() && first.text(2).is_err());
        let second = reply.rows().nth(1).expect("two rows");
        assert_eq!(second.get::<String>("name").expect("NULL"), None);
        // Cut anywhere, it is an error or a shorter answer, never a panic.
        for cut in 0..run.len() {
            let _ = Reply::new(run.clone().freeze().slice(..cut), Facts::default());
        }
    }
}
