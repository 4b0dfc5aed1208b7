//! The bodies of messages, taken apart. What is returned borrows from the body.
//!
//! A body that ends too early, or goes on behind its last field, is malformed: PostgreSQL itself refuses both, and a
//! tail that one side ignores and the other reads is how messages are smuggled.
#![deny(clippy::indexing_slicing)]

use crate::error::{HeliosError, Result};

use super::frame::Reader;
use super::message::Named;

/// A Parse message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Parse<'a> {
    /// The statement's name; empty for the unnamed one.
    pub name: &'a [u8],
    /// Its text, in the client's encoding.
    pub sql: &'a [u8],
    /// The parameters' types, four bytes each; [`Parse::types`] reads them.
    pub type_bytes: &'a [u8],
}

impl<'a> Parse<'a> {
    /// Takes the body apart.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if it is malformed.
    pub fn from_body(body: &'a [u8]) -> Result<Self> {
        whole(body, "Parse", |body| {
            Some(Self {
                name: body.cstr()?,
                sql: body.cstr()?,
                type_bytes: {
                    let n = usize::from(body.u16()?);
                    body.bytes(n * 4)?
                },
            })
        })
    }

    /// The parameters' types by OID; 0 where it is left to the server.
    pub fn types(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.type_bytes
            .as_chunks()
            .0
            .iter()
            .copied()
            .map(u32::from_be_bytes)
    }
}

/// A Bind message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bind<'a> {
    /// The portal's name; empty for the unnamed one.
    pub portal: &'a [u8],
    /// The statement's name; empty for the unnamed one.
    pub statement: &'a [u8],
    /// Formats, values and result formats, as they are: checked by nobody yet.
    pub rest: &'a [u8],
}

impl<'a> Bind<'a> {
    /// Takes the names off the body. The rest is the server's to check, or [`Arguments::from_bytes`]'s.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if it is malformed.
    pub fn from_body(body: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::new(body);
        match (reader.cstr(), reader.cstr()) {
            (Some(portal), Some(statement)) => Ok(Self {
                portal,
                statement,
                rest: reader.rest(),
            }),
            _ => Err(malformed("Bind")),
        }
    }
}

/// What a Bind message binds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Arguments<'a> {
    /// The values' formats, 0 for text and 1 for binary: none means text for all, one holds for all, else one each.
    pub formats: Vec<i16>,
    /// The values, `None` for NULL.
    pub values: Vec<Option<&'a [u8]>>,
    /// The formats asked for the result's columns, as above.
    pub result_formats: Vec<i16>,
}

impl<'a> Arguments<'a> {
    /// Takes the [rest](Bind::rest) of a Bind message apart.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if it is malformed.
    pub fn from_bytes(rest: &'a [u8]) -> Result<Self> {
        whole(rest, "Bind", |rest| {
            let formats = list(rest, Reader::i16)?;
            let values = list(rest, Reader::value)?;
            let result_formats = list(rest, Reader::i16)?;
            (formats.len() <= 1 || formats.len() == values.len()).then_some(Self {
                formats,
                values,
                result_formats,
            })
        })
    }
}

/// A Describe or a Close message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Target<'a> {
    /// What has that name.
    pub named: Named,
    /// The name; empty for the unnamed one.
    pub name: &'a [u8],
}

impl<'a> Target<'a> {
    /// Takes the body apart.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if it is malformed.
    pub fn from_body(body: &'a [u8]) -> Result<Self> {
        whole(body, "Describe or Close", |body| {
            Some(Self {
                named: Named::from_byte(body.u8()?)?,
                name: body.cstr()?,
            })
        })
    }
}

/// An Execute message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Execute<'a> {
    /// The portal's name; empty for the unnamed one.
    pub portal: &'a [u8],
    /// How many rows to return before the portal is suspended; all where it is not positive.
    pub max_rows: i32,
}

impl<'a> Execute<'a> {
    /// Takes the body apart.
    ///
    /// # Errors
    /// [`HeliosError::Protocol`] if it is malformed.
    pub fn from_body(body: &'a [u8]) -> Result<Self> {
        whole(body, "Execute", |body| {
            Some(Self {
                portal: body.cstr()?,
                max_rows: body.i32()?,
            })
        })
    }
}

/// A column in a RowDescription message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Column<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// The table it is a column of; 0 if it is none.
    pub table_oid: u32,
    /// Its number there; 0 if it is none.
    pub attribute: i16,
    /// Its type.
    pub type_oid: u32,
    /// The length of a value of that type in bytes; negative where it varies.
    pub type_len: i16,
    /// The type's modifier, -1 for none.
    pub type_modifier: i32,
    /// 0 for text, 1 for binary.
    pub format: i16,
}

/// Takes the body of a RowDescription message apart.
///
/// # Errors
/// [`HeliosError::Protocol`] if it is malformed.
pub fn row_description(body: &[u8]) -> Result<Vec<Column<'_>>> {
    whole(body, "RowDescription", |body| {
        list(body, |body| {
            Some(Column {
                name: body.cstr()?,
                table_oid: body.u32()?,
                attribute: body.i16()?,
                type_oid: body.u32()?,
                type_len: body.i16()?,
                type_modifier: body.i32()?,
                format: body.i16()?,
            })
        })
    })
}

/// Takes the body of a DataRow message apart: values in the columns' formats, `None` for NULL.
///
/// # Errors
/// [`HeliosError::Protocol`] if it is malformed.
pub fn data_row(body: &[u8]) -> Result<Vec<Option<&[u8]>>> {
    whole(body, "DataRow", |body| list(body, Reader::value))
}

/// The tag in the body of a CommandComplete message, `INSERT 0 1` for example.
///
/// # Errors
/// [`HeliosError::Protocol`] if it is malformed.
pub fn command_tag(body: &[u8]) -> Result<&[u8]> {
    whole(body, "CommandComplete", Reader::cstr)
}

/// The name and the value in the body of a ParameterStatus message.
///
/// # Errors
/// [`HeliosError::Protocol`] if it is malformed.
pub fn parameter_status(body: &[u8]) -> Result<(&[u8], &[u8])> {
    whole(body, "ParameterStatus", |body| {
        Some((body.cstr()?, body.cstr()?))
    })
}

/// The process id and the secret in the body of a BackendKeyData message.
///
/// # Errors
/// [`HeliosError::Protocol`] if it is malformed: a secret has 4 to 256 bytes.
pub fn backend_key_data(body: &[u8]) -> Result<(i32, &[u8])> {
    let mut reader = Reader::new(body);
    match (reader.i32(), reader.rest()) {
        (Some(pid), secret) if (4..=256).contains(&secret.len()) => Ok((pid, secret)),
        _ => Err(malformed("BackendKeyData")),
    }
}

/// The status in the body of a ReadyForQuery message: `I`, `T` or `E`.
///
/// # Errors
/// [`HeliosError::Protocol`] if it is malformed.
pub fn ready_for_query(body: &[u8]) -> Result<u8> {
    match body {
        &[status @ (b'I' | b'T' | b'E')] => Ok(status),
        _ => Err(malformed("ReadyForQuery")),
    }
}

/// Reads a body that has to be used up by it.
pub(super) fn whole<'a, T>(
    body: &'a [u8],
    message: &str,
    read: impl FnOnce(&mut Reader<'a>) -> Option<T>,
) -> Result<T> {
    let mut reader = Reader::new(body);
    read(&mut reader)
        .filter(|_| reader.end().is_some())
        .ok_or_else(|| malformed(message))
}

/// Reads a count and as many items. Memory is taken for items that are there, not for those that are promised.
fn list<'a, T>(
    body: &mut Reader<'a>,
    mut item: impl FnMut(&mut Reader<'a>) -> Option<T>,
) -> Option<Vec<T>> {
    let n = body.u16()?;
    (0..n).map(|_| item(body)).collect()
}

fn malformed(message: &str) -> HeliosError {
    HeliosError::Protocol(format!("malformed {message} message"))
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::super::frame::{self, LEN_MAX};
    use super::super::message;
    use super::*;

    /// The body of the message that `put` appends.
    fn body(put: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
        let mut out = BytesMut::new();
        put(&mut out);
        let (_, body) = frame::take(&mut out, LEN_MAX)
            .expect("valid")
            .expect("whole");
        assert!(out.is_empty(), "one message");
        body.to_vec()
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..12)
    }

    /// Any bytes that can stand in a string on the wire.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(1..=u8::MAX, 0..12)
    }

    fn values() -> impl Strategy<Value = Vec<Option<Vec<u8>>>> {
        prop::collection::vec(prop::option::of(bytes()), 0..6)
    }

    type Malformed = Result<(), HeliosError>;

    /// Every parser of a body that must be used up.
    const STRICT: &[fn(&[u8]) -> Malformed] = &[
        |body| Parse::from_body(body).map(drop),
        |body| Arguments::from_bytes(body).map(drop),
        |body| Target::from_body(body).map(drop),
        |body| Execute::from_body(body).map(drop),
        |body| row_description(body).map(drop),
        |body| data_row(body).map(drop),
        |body| command_tag(body).map(drop),
        |body| parameter_status(body).map(drop),
        |body| ready_for_query(body).map(drop),
    ];

    /// A body that each of [`STRICT`] accepts, in its order.
    fn examples() -> Vec<Vec<u8>> {
        let row = [Some(&b"1"[..]), None];
        let bind = body(|out| message::put_bind(out, "p", "s", &[0, 1], row.into_iter(), &[1]));
        vec![
            body(|out| message::put_parse(out, "s", "SELECT $1", &[23, 0])),
            Bind::from_body(&bind).expect("valid").rest.to_vec(),
            body(|out| message::put_describe(out, Named::Statement, "s")),
            body(|out| message::put_execute(out, "p", 3)),
            body(|out| message::put_row_description(out, &["a", "b"])),
            body(|out| message::put_data_row(out, row.into_iter())),
            body(|out| message::put_command_complete(out, "SELECT 1")),
            body(|out| message::put_parameter_status(out, "TimeZone", "UTC")),
            body(|out| message::put_ready_for_query(out, b'T')),
        ]
    }

    #[test]
    fn a_body_cut_anywhere_or_with_a_tail_is_malformed() {
        for (parse, body) in STRICT.iter().zip(examples()) {
            assert!(parse(&body).is_ok(), "{body:?}");
            for end in 0..body.len() {
                let (cut, _) = body.split_at(end);
                assert!(parse(cut).is_err(), "{cut:?}");
            }
            let mut long = body;
            long.push(0);
            assert!(parse(&long).is_err(), "{long:?}");
        }
    }

    #[test]
    fn impossible_fields_are_malformed() {
        assert!(Target::from_body(b"Xs\0").is_err());
        assert!(ready_for_query(b"X").is_err());
        assert!(Bind::from_body(b"portal\0statement").is_err());
        assert!(backend_key_data(&[0; 7]).is_err());
        assert!(backend_key_data(&[0; 261]).is_err());
        assert!(backend_key_data(&[0; 260]).is_ok());
        // Two formats for one value.
        let bind = body(|out| {
            message::put_bind(out, "", "", &[0, 0], [Some(&b"1"[..])].into_iter(), &[]);
        });
        assert!(Arguments::from_bytes(Bind::from_body(&bind).expect("named").rest).is_err());
    }

    proptest! {
        #[test]
        fn parse_comes_out_as_it_went_in(name in text(), sql in text(), types in prop::collection::vec(any::<u32>(), 0..5)) {
            let body = body(|out| message::put_parse(out, &name, &sql, &types));
            let parsed = Parse::from_body(&body).expect("valid");
            prop_assert_eq!((parsed.name, parsed.sql), (&name[..], &sql[..]));
            prop_assert_eq!(parsed.types().collect::<Vec<_>>(), types);
        }

        #[test]
        fn bind_comes_out_as_it_went_in(
            portal in text(),
            statement in text(),
            values in values(),
            format in prop::option::of(0..2_i16),
            result_formats in prop::collection::vec(0..2_i16, 0..4),
        ) {
            let formats = Vec::from_iter(format);
            let borrowed: Vec<_> = values.iter().map(Option::as_deref).collect();
            let body = body(|out| {
                message::put_bind(out, &portal, &statement, &formats, borrowed.iter().copied(), &result_formats);
            });
            let bind = Bind::from_body(&body).expect("valid");
            prop_assert_eq!((bind.portal, bind.statement), (&portal[..], &statement[..]));
            let arguments = Arguments::from_bytes(bind.rest).expect("valid");
            prop_assert_eq!(arguments, Arguments { formats, values: borrowed, result_formats });
        }

        #[test]
        fn rows_and_names_come_out_as_they_went_in(values in values(), name in text(), max_rows in any::<i32>()) {
            let borrowed: Vec<_> = values.iter().map(Option::as_deref).collect();
            let row = body(|out| message::put_data_row(out, borrowed.iter().copied()));
            prop_assert_eq!(data_row(&row).expect("valid"), borrowed);
            let execute = body(|out| message::put_execute(out, &name, max_rows));
            prop_assert_eq!(Execute::from_body(&execute).expect("valid"), Execute { portal: &name, max_rows });
            for named in [Named::Portal, Named::Statement] {
                let close = body(|out| message::put_close(out, named, &name));
                prop_assert_eq!(Target::from_body(&close).expect("valid"), Target { named, name: &name });
            }
        }

        #[test]
        fn garbage_is_malformed_but_never_a_panic(body in prop::collection::vec(any::<u8>(), 0..64)) {
            for parse in STRICT {
                let _ = parse(&body);
            }
            let _ = (Bind::from_body(&body), backend_key_data(&body));
        }
    }
}
