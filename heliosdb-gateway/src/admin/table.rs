//! Tables as the console prints them.

use bytes::{BufMut as _, BytesMut};
use heliosdb_network::postgres::message;

/// Rows under named columns.
pub(super) struct Table {
    columns: Vec<(&'static str, Kind)>,
    rows: Vec<Vec<Cell>>,
}

/// The type that a column is said to have. Scripts read numbers as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Int4,
    Int8,
    Numeric,
    Text,
}

/// A value in its text form; `None` is NULL.
pub(super) type Cell = Option<String>;

/// What can stand in a cell.
pub(super) trait IntoCell {
    fn into_cell(self) -> Cell;
}

impl Table {
    /// `columns` are names with blanks between them, each with a type behind a colon unless it is text: `i` int4, `q` int8,
    /// `N` numeric.
    pub(super) fn new(columns: &'static str, rows: Vec<Vec<Cell>>) -> Self {
        let columns: Vec<_> = columns
            .split_ascii_whitespace()
            .map(|column| match column.split_once(':') {
                Some((name, "i")) => (name, Kind::Int4),
                Some((name, "q")) => (name, Kind::Int8),
                Some((name, _)) => (name, Kind::Numeric),
                None => (column, Kind::Text),
            })
            .collect();
        debug_assert!(rows.iter().all(|row| row.len() == columns.len()));
        Self { columns, rows }
    }

    /// Columns of text.
    pub(super) fn text(columns: &[&'static str], rows: Vec<Vec<String>>) -> Self {
        let rows = rows.into_iter();
        Self {
            columns: columns.iter().map(|name| (*name, Kind::Text)).collect(),
            rows: rows
                .map(|row| row.into_iter().map(Some).collect())
                .collect(),
        }
    }

    /// How many rows there are.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Appends it as the answer to a query.
    pub(super) fn put(&self, out: &mut BytesMut) {
        let count = u16::try_from(self.columns.len()).unwrap_or(u16::MAX);
        message::put_frame(out, b'T', |out| {
            out.put_u16(count);
            for (name, kind) in &self.columns {
                out.put_slice(name.as_bytes());
                out.put_u8(0);
                out.put_u32(0);
                out.put_u16(0);
                out.put_u32(kind.oid());
                out.put_i16(kind.size());
                out.put_i32(-1);
                out.put_u16(0);
            }
        });
        for row in &self.rows {
            let values = row.iter().map(|value| value.as_deref().map(str::as_bytes));
            message::put_data_row(out, values);
        }
        message::put_command_complete(out, "SHOW");
    }
}

impl Kind {
    fn oid(self) -> u32 {
        match self {
            Self::Int4 => 23,
            Self::Int8 => 20,
            Self::Numeric => 1700,
            Self::Text => 25,
        }
    }

    fn size(self) -> i16 {
        match self {
            Self::Int4 => 4,
            Self::Int8 => 8,
            Self::Numeric | Self::Text => -1,
        }
    }
}

macro_rules! into_cell {
    ($($kind:ty),*) => {
        $(impl IntoCell for $kind {
            fn into_cell(self) -> Cell {
                Some(self.to_string())
            }
        })*
    };
}

into_cell!(&str, &String, i32, u16, u32, u64, u128, usize);

impl IntoCell for String {
    fn into_cell(self) -> Cell {
        Some(self)
    }
}

/// 1 or 0.
impl IntoCell for bool {
    fn into_cell(self) -> Cell {
        u32::from(self).into_cell()
    }
}

impl<T: IntoCell> IntoCell for Option<T> {
    fn into_cell(self) -> Cell {
        self.and_then(IntoCell::into_cell)
    }
}

/// A row of cells.
macro_rules! row {
    ($($value:expr),* $(,)?) => {
        vec![$($crate::admin::table::IntoCell::into_cell($value)),*]
    };
}

pub(super) use row;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_the_types_that_are_named() {
        let table = Table::new("a b:i c:q d:N", vec![row!["x", 1_u32, None::<u64>, true]]);
        let kinds: Vec<_> = table.columns.iter().map(|(_, kind)| kind.oid()).collect();
        assert_eq!(kinds, [25, 23, 20, 1700]);
        let mut out = BytesMut::new();
        table.put(&mut out);
        let row = b"D\0\0\0\x19\0\x04\0\0\0\x01x\0\0\0\x011\xff\xff\xff\xff\0\0\0\x011";
        assert!(out.windows(row.len()).any(|window| window == row));
    }
}
