//! The fields of an ErrorResponse or NoticeResponse.

use std::fmt;

use bytes::Bytes;

use super::frame::Reader;

/// An error as a PostgreSQL server sends it.
///
/// Every field is optional on the wire, whatever the documentation says. An SQLSTATE that is absent, or is none, reads as
/// `XX000`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorFields {
    body: Bytes,
    fields: Vec<(u8, String)>,
}

impl ErrorFields {
    /// Parses the body of the message. What is malformed ends the list of fields. Of fields with the same code the first
    /// one counts.
    #[must_use]
    pub fn parse(body: Bytes) -> Self {
        let mut fields = Vec::new();
        let mut reader = Reader::new(&body);
        // Millions of empty fields would take many times the memory of the body.
        let mut is_known = [false; 256];
        while let Some(code) = reader.u8().filter(|code| *code != 0) {
            let Some(value) = reader.cstr() else { break };
            if !std::mem::replace(&mut is_known[usize::from(code)], true) {
                fields.push((code, String::from_utf8_lossy(value).into_owned()));
            }
        }
        Self { body, fields }
    }

    /// The body as it came, to be passed on unchanged.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// `ERROR`, `FATAL`, `PANIC` or a notice's severity, not translated where the server says so.
    #[must_use]
    pub fn severity(&self) -> &str {
        self.field(b'V')
            .or_else(|| self.field(b'S'))
            .unwrap_or("ERROR")
    }

    /// The SQLSTATE, five characters.
    #[must_use]
    pub fn sqlstate(&self) -> &str {
        self.field(b'C')
            .filter(|code| code.len() == 5 && code.bytes().all(|byte| byte.is_ascii_alphanumeric()))
            .unwrap_or("XX000")
    }

    /// The primary message.
    #[must_use]
    pub fn message(&self) -> &str {
        self.field(b'M')
            .unwrap_or("the server reported an error without a message")
    }

    /// The detail, if there is one.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.field(b'D')
    }

    /// The hint, if there is one.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.field(b'H')
    }

    /// Any field, by the byte that the protocol gives it.
    #[must_use]
    pub fn field(&self, code: u8) -> Option<&str> {
        self.fields
            .iter()
            .find(|(known, _)| *known == code)
            .map(|(_, value)| value.as_str())
    }
}

impl fmt::Display for ErrorFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message(), self.sqlstate())
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::super::frame::{self, LEN_MAX};
    use super::super::message::{self, Report};
    use super::*;

    #[test]
    fn a_report_comes_out_as_it_went_in() {
        let report = Report {
            severity: "FATAL",
            sqlstate: "57P01",
            message: "bye",
            detail: None,
            hint: Some("come back"),
        };
        let mut out = BytesMut::new();
        message::put_error_response(&mut out, &report);
        let (tag, body) = frame::take(&mut out, LEN_MAX)
            .expect("valid")
            .expect("whole");
        let error = ErrorFields::parse(body.clone());
        let read = Report {
            severity: error.severity(),
            sqlstate: error.sqlstate(),
            message: error.message(),
            detail: error.detail(),
            hint: error.hint(),
        };
        assert_eq!((tag, read), (b'E', report));
        assert_eq!(error.body(), &body);
        assert_eq!(error.to_string(), "bye (57P01)");
    }

    #[test]
    fn without_an_sqlstate_it_is_an_internal_error() {
        for body in [
            "",
            "\0",
            "Mno code\0\0",
            "C\0\0",
            "C42\0\0",
            "Cab\u{7f}\u{7}e\0\0",
        ] {
            let error = ErrorFields::parse(Bytes::copy_from_slice(body.as_bytes()));
            assert_eq!(error.sqlstate(), "XX000", "{body:?}");
            assert_eq!(error.severity(), "ERROR");
        }
    }

    #[test]
    fn of_fields_with_the_same_code_the_first_one_counts() {
        let error = ErrorFields::parse(Bytes::from(b"C42601\0Mone\0Mtwo\0C57014\0".repeat(9)));
        assert_eq!((error.sqlstate(), error.message()), ("42601", "one"));
        assert_eq!(error.fields.len(), 2);
    }

    #[test]
    fn a_body_cut_anywhere_keeps_the_fields_before_the_cut() {
        let whole = b"SFATAL\0C57P01\0Mbye\0Dwhy\0Hwhat\0\0";
        for end in 0..whole.len() {
            let error = ErrorFields::parse(Bytes::copy_from_slice(&whole[..end]));
            assert_eq!(error.sqlstate() == "57P01", end >= 14, "{end}");
            assert_eq!(error.hint().is_some(), end >= 30, "{end}");
        }
    }
}
