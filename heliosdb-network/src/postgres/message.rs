//! Builders of messages: each appends one to a buffer.

use bytes::{BufMut, BytesMut};

/// Appends a message; its length is filled in behind the body.
pub fn put_frame(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let at = out.len();
    out.put_u32(0);
    body(out);
    fill_in_length(out, at);
}

/// Writes the length of what stands from `at` on, the length's own four bytes included.
fn fill_in_length(out: &mut BytesMut, at: usize) {
    let len = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

fn put_cstr(out: &mut BytesMut, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn count(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

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
            match value {
                Some(value) => {
                    out.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
                    out.put_slice(value);
                }
                None => out.put_i32(-1),
            }
        }
    });
}

/// CommandComplete.
pub fn put_command_complete(out: &mut BytesMut, tag: &str) {
    put_frame(out, b'C', |out| put_cstr(out, tag));
}

/// EmptyQueryResponse.
pub fn put_empty_query_response(out: &mut BytesMut) {
    out.put_slice(b"I\0\0\0\x04");
}

/// Query.
pub fn put_query(out: &mut BytesMut, sql: &str) {
    put_frame(out, b'Q', |out| put_cstr(out, sql));
}

/// Terminate.
pub fn put_terminate(out: &mut BytesMut) {
    out.put_slice(b"X\0\0\0\x04");
}

/// PasswordMessage, SASLInitialResponse or SASLResponse: what they hold depends on what was asked.
pub(crate) fn put_password(out: &mut BytesMut, body: &[u8]) {
    put_frame(out, b'p', |out| out.put_slice(body));
}

/// StartupMessage for protocol 3.0.
pub fn put_startup<'a>(out: &mut BytesMut, params: impl IntoIterator<Item = (&'a str, &'a str)>) {
    let at = out.len();
    out.put_u32(0);
    out.put_u32(3 << 16);
    for (name, value) in params {
        put_cstr(out, name);
        put_cstr(out, value);
    }
    out.put_u8(0);
    fill_in_length(out, at);
}

/// CancelRequest.
pub fn put_cancel_request(out: &mut BytesMut, pid: i32, secret: &[u8]) {
    let at = out.len();
    out.put_u32(0);
    out.put_u32(80_877_102);
    out.put_i32(pid);
    out.put_slice(secret);
    fill_in_length(out, at);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_count_themselves_and_not_the_tag() {
        let mut out = BytesMut::new();
        put_query(&mut out, "SELECT 1");
        assert_eq!(&out[..], b"Q\0\0\0\x0dSELECT 1\0");
        out.clear();
        put_cancel_request(&mut out, 7, &[1, 2, 3, 4]);
        assert_eq!(
            &out[..],
            &[0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 7, 1, 2, 3, 4]
        );
    }
}
