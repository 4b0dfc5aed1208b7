//! Builders of messages: each appends one to a buffer.
//!
//! Names and texts may be in any encoding, so they are bytes. On this wire a string ends at its first NUL: what stands
//! behind one is left out, since it would pass for fields of its own. What does not fit the wire's counts and lengths
//! (65,535 columns, 2 GiB) gets a length that every peer refuses; there is no way to send it.

use bytes::{BufMut, BytesMut};

/// BindComplete.
pub const BIND_COMPLETE: &[u8] = b"2\0\0\0\x04";
/// CloseComplete.
pub const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";
/// EmptyQueryResponse.
pub const EMPTY_QUERY_RESPONSE: &[u8] = b"I\0\0\0\x04";
/// Flush.
pub const FLUSH: &[u8] = b"H\0\0\0\x04";
/// NoData.
pub const NO_DATA: &[u8] = b"n\0\0\0\x04";
/// ParseComplete.
pub const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
/// PortalSuspended.
pub const PORTAL_SUSPENDED: &[u8] = b"s\0\0\0\x04";
/// Sync.
pub const SYNC: &[u8] = b"S\0\0\0\x04";
/// Terminate.
pub const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// What the name in a Describe or Close belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the protocol knows these two")]
pub enum Named {
    /// A portal.
    Portal,
    /// A prepared statement.
    Statement,
}

impl Named {
    /// The byte that stands for it.
    #[must_use]
    pub fn as_byte(self) -> u8 {
        match self {
            Self::Portal => b'P',
            Self::Statement => b'S',
        }
    }

    /// What a byte stands for.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'P' => Some(Self::Portal),
            b'S' => Some(Self::Statement),
            _ => None,
        }
    }
}

/// What an ErrorResponse or a NoticeResponse says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "made to be written out in place")]
pub struct Report<'a> {
    /// `ERROR`, `FATAL`, `PANIC`, or a notice's `WARNING`, `NOTICE`, `DEBUG`, `INFO`, `LOG`.
    pub severity: &'a str,
    /// Five characters.
    pub sqlstate: &'a str,
    /// What happened.
    pub message: &'a str,
    /// More of it.
    pub detail: Option<&'a str>,
    /// What the reader can do.
    pub hint: Option<&'a str>,
}

/// Appends a message; its length is filled in behind the body.
pub fn put_frame(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    put_counted(out, body);
}

/// Appends a length and what it counts, itself included.
fn put_counted(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let at = out.len();
    out.put_i32(0);
    body(out);
    let len = length(out.len() - at);
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

fn put_cstr(out: &mut BytesMut, text: impl AsRef<[u8]>) {
    let text = text.as_ref();
    let end = text.iter().position(|byte| *byte == 0);
    out.put_slice(&text[..end.unwrap_or(text.len())]);
    out.put_u8(0);
}

fn put_value(out: &mut BytesMut, value: Option<&[u8]>) {
    match value {
        Some(value) => {
            out.put_i32(length(value.len()));
            out.put_slice(value);
        }
        None => out.put_i32(-1),
    }
}

/// A length as it goes on the wire, where what is too long has one that no peer accepts.
fn length(len: usize) -> i32 {
    i32::try_from(len).unwrap_or(i32::MIN)
}

fn count(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

// What a server sends.

/// AuthenticationOk.
pub fn put_authentication_ok(out: &mut BytesMut) {
    out.put_slice(b"R\0\0\0\x08\0\0\0\0");
}

/// ParameterStatus.
pub fn put_parameter_status(out: &mut BytesMut, name: &str, value: &str) {
    put_frame(out, b'S', |out| {
        put_cstr(out, name);
        put_cstr(out, value);
    });
}

/// BackendKeyData. The secret has 4 bytes in protocol 3.0, up to 256 from 3.2 on.
pub fn put_backend_key_data(out: &mut BytesMut, pid: i32, secret: &[u8]) {
    put_frame(out, b'K', |out| {
        out.put_i32(pid);
        out.put_slice(secret);
    });
}

/// ReadyForQuery with `I`, `T` or `E`.
pub fn put_ready_for_query(out: &mut BytesMut, status: u8) {
    out.put_slice(&[b'Z', 0, 0, 0, 5, status]);
}

/// NegotiateProtocolVersion: the newest minor version spoken here, and the protocol options not understood.
pub fn put_negotiate_protocol_version(out: &mut BytesMut, minor: u16, unrecognized: &[String]) {
    put_frame(out, b'v', |out| {
        out.put_u32(3 << 16 | u32::from(minor));
        out.put_u32(u32::from(count(unrecognized.len())));
        for option in unrecognized {
            put_cstr(out, option);
        }
    });
}

/// ErrorResponse.
pub fn put_error_response(out: &mut BytesMut, report: &Report<'_>) {
    put_frame(out, b'E', |out| put_report(out, report));
}

/// NoticeResponse.
pub fn put_notice_response(out: &mut BytesMut, report: &Report<'_>) {
    put_frame(out, b'N', |out| put_report(out, report));
}

fn put_report(out: &mut BytesMut, report: &Report<'_>) {
    let fields = [
        (b'S', Some(report.severity)),
        // The severity once more, for those who want it untranslated.
        (b'V', Some(report.severity)),
        (b'C', Some(report.sqlstate)),
        (b'M', Some(report.message)),
        (b'D', report.detail),
        (b'H', report.hint),
    ];
    for (code, text) in fields {
        if let Some(text) = text {
            out.put_u8(code);
            put_cstr(out, text);
        }
    }
    out.put_u8(0);
}

/// RowDescription of columns of type `text`.
pub fn put_row_description(out: &mut BytesMut, columns: &[&str]) {
    const TEXT: u32 = 25;
    put_frame(out, b'T', |out| {
        out.put_u16(count(columns.len()));
        for column in columns {
            put_cstr(out, column);
            out.put_u32(0);
            out.put_u16(0);
            out.put_u32(TEXT);
            out.put_i16(-1);
            out.put_i32(-1);
            out.put_u16(0);
        }
    });
}

/// DataRow.
pub fn put_data_row<'a>(
    out: &mut BytesMut,
    values: impl ExactSizeIterator<Item = Option<&'a [u8]>>,
) {
    put_frame(out, b'D', |out| {
        out.put_u16(count(values.len()));
        for value in values {
            put_value(out, value);
        }
    });
}

/// CommandComplete.
pub fn put_command_complete(out: &mut BytesMut, tag: &str) {
    put_frame(out, b'C', |out| put_cstr(out, tag));
}

/// EmptyQueryResponse.
pub fn put_empty_query_response(out: &mut BytesMut) {
    out.put_slice(EMPTY_QUERY_RESPONSE);
}

// What a client sends.

/// StartupMessage for protocol 3.0. Parameters with an empty name, which would end the list, are left out.
pub fn put_startup<'a>(out: &mut BytesMut, params: impl IntoIterator<Item = (&'a str, &'a str)>) {
    put_counted(out, |out| {
        out.put_u32(3 << 16);
        for (name, value) in params {
            if !name.is_empty() && !name.starts_with('\0') {
                put_cstr(out, name);
                put_cstr(out, value);
            }
        }
        out.put_u8(0);
    });
}

/// CancelRequest.
pub fn put_cancel_request(out: &mut BytesMut, pid: i32, secret: &[u8]) {
    put_counted(out, |out| {
        out.put_u32(80_877_102);
        out.put_i32(pid);
        out.put_slice(secret);
    });
}

/// PasswordMessage, with a password or its MD5 hash.
pub fn put_password_message(out: &mut BytesMut, password: &str) {
    put_frame(out, b'p', |out| put_cstr(out, password));
}

/// An Authentication message of any kind.
pub(crate) fn put_authentication(out: &mut BytesMut, method: u32, data: &[u8]) {
    put_frame(out, b'R', |out| {
        out.put_u32(method);
        out.put_slice(data);
    });
}

/// SASLInitialResponse.
pub(crate) fn put_sasl_initial_response(out: &mut BytesMut, mechanism: &str, data: &[u8]) {
    put_frame(out, b'p', |out| {
        put_cstr(out, mechanism);
        put_value(out, Some(data));
    });
}

/// SASLResponse.
pub(crate) fn put_sasl_response(out: &mut BytesMut, data: &[u8]) {
    put_frame(out, b'p', |out| out.put_slice(data));
}

/// Query.
pub fn put_query(out: &mut BytesMut, sql: &str) {
    put_frame(out, b'Q', |out| put_cstr(out, sql));
}

/// Parse. A type of 0 leaves a parameter's type to the server.
pub fn put_parse(out: &mut BytesMut, name: impl AsRef<[u8]>, sql: impl AsRef<[u8]>, types: &[u32]) {
    put_frame(out, b'P', |out| {
        put_cstr(out, name);
        put_cstr(out, sql);
        out.put_u16(count(types.len()));
        for oid in types {
            out.put_u32(*oid);
        }
    });
}

/// Bind. Formats are 0 for text and 1 for binary: none means text for all, one holds for all, else one each.
pub fn put_bind<'a>(
    out: &mut BytesMut,
    portal: impl AsRef<[u8]>,
    statement: impl AsRef<[u8]>,
    formats: &[i16],
    values: impl ExactSizeIterator<Item = Option<&'a [u8]>>,
    result_formats: &[i16],
) {
    let put_formats = |out: &mut BytesMut, formats: &[i16]| {
        out.put_u16(count(formats.len()));
        for format in formats {
            out.put_i16(*format);
        }
    };
    put_frame(out, b'B', |out| {
        put_cstr(out, portal);
        put_cstr(out, statement);
        put_formats(out, formats);
        out.put_u16(count(values.len()));
        for value in values {
            put_value(out, value);
        }
        put_formats(out, result_formats);
    });
}

/// Describe.
pub fn put_describe(out: &mut BytesMut, named: Named, name: impl AsRef<[u8]>) {
    put_frame(out, b'D', |out| {
        out.put_u8(named.as_byte());
        put_cstr(out, name);
    });
}

/// Close.
pub fn put_close(out: &mut BytesMut, named: Named, name: impl AsRef<[u8]>) {
    put_frame(out, b'C', |out| {
        out.put_u8(named.as_byte());
        put_cstr(out, name);
    });
}

/// Execute. A `max_rows` of 0 asks for all.
pub fn put_execute(out: &mut BytesMut, portal: impl AsRef<[u8]>, max_rows: i32) {
    put_frame(out, b'E', |out| {
        put_cstr(out, portal);
        out.put_i32(max_rows);
    });
}

/// Sync.
pub fn put_sync(out: &mut BytesMut) {
    out.put_slice(SYNC);
}

/// Flush.
pub fn put_flush(out: &mut BytesMut) {
    out.put_slice(FLUSH);
}

/// A standby's status, as CopyData: everything before `applied` is written, flushed and applied. The clock is left out,
/// since the server only shows it.
pub fn put_standby_status(out: &mut BytesMut, applied: u64, request_reply: bool) {
    put_frame(out, b'd', |out| {
        out.put_u8(b'r');
        out.put_u64(applied);
        out.put_u64(applied);
        out.put_u64(applied);
        out.put_i64(0);
        out.put_u8(request_reply.into());
    });
}

/// Terminate.
pub fn put_terminate(out: &mut BytesMut) {
    out.put_slice(TERMINATE);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(put: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
        let mut out = BytesMut::new();
        put(&mut out);
        out.to_vec()
    }

    #[test]
    fn lengths_count_themselves_and_not_the_tag() {
        let query = built(|out| put_query(out, "SELECT 1"));
        assert_eq!(query, b"Q\0\0\0\x0dSELECT 1\0");
        let cancel = built(|out| put_cancel_request(out, 7, &[1, 2, 3, 4]));
        assert_eq!(
            cancel,
            [0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 7, 1, 2, 3, 4]
        );
    }

    #[test]
    fn a_nul_in_a_text_adds_no_field() {
        let startup =
            built(|out| put_startup(out, [("user", "u\0options\0-c role=x"), ("\0", "")]));
        assert_eq!(startup, b"\0\0\0\x10\0\x03\0\0user\0u\0\0");
    }

    #[test]
    fn frontend_messages_have_the_bytes_of_the_protocol() {
        assert_eq!(
            built(|out| put_parse(out, "s", "SELECT $1", &[23])),
            b"P\0\0\0\x16s\0SELECT $1\0\0\x01\0\0\0\x17"
        );
        let values = [Some(&b"42"[..]), None];
        assert_eq!(
            built(|out| put_bind(out, "p", "s", &[], values.into_iter(), &[1])),
            b"B\0\0\0\x1ap\0s\0\0\0\0\x02\0\0\0\x0242\xff\xff\xff\xff\0\x01\0\x01"
        );
        assert_eq!(
            built(|out| put_describe(out, Named::Portal, "p")),
            b"D\0\0\0\x07Pp\0"
        );
        assert_eq!(
            built(|out| put_close(out, Named::Statement, "s")),
            b"C\0\0\0\x07Ss\0"
        );
        assert_eq!(
            built(|out| put_execute(out, "", 9)),
            b"E\0\0\0\x09\0\0\0\0\x09"
        );
        assert_eq!(
            built(|out| put_password_message(out, "geheim")),
            b"p\0\0\0\x0bgeheim\0"
        );
    }
}
