//! The fields of an ErrorResponse or NoticeResponse.

use std::fmt;

use bytes::Bytes;

/// An error as a PostgreSQL server sends it.
///
/// Every field is optional on the wire, whatever the documentation says; an absent SQLSTATE reads as `XX000`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorFields {
    body: Bytes,
    fields: Vec<(u8, String)>,
}

impl ErrorFields {
    /// Parses the body of the message. What is malformed ends the list of fields.
    #[must_use]
    pub fn parse(body: Bytes) -> Self {
        let mut fields = Vec::new();
        let mut rest = &body[..];
        while let Some((&code, tail)) = rest.split_first() {
            if code == 0 {
                break;
            }
            let Some(end) = tail.iter().position(|byte| *byte == 0) else {
                break;
            };
            let (value, tail) = tail.split_at(end);
            fields.push((code, String::from_utf8_lossy(value).into_owned()));
            rest = tail.get(1..).unwrap_or_default();
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
        self.field(b'C').unwrap_or("XX000")
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

    fn field(&self, code: u8) -> Option<&str> {
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
    use super::*;

    #[test]
    fn fields_are_found_and_absent_ones_have_defaults() {
        let error = ErrorFields::parse(Bytes::from_static(b"SERROR\0C42601\0Msyntax error\0\0"));
        assert_eq!(
            (error.severity(), error.sqlstate(), error.message()),
            ("ERROR", "42601", "syntax error")
        );
        let empty = ErrorFields::parse(Bytes::from_static(b"\0"));
        assert_eq!(empty.sqlstate(), "XX000");
    }

    #[test]
    fn truncated_bodies_do_not_panic() {
        let whole = b"SFATAL\0C57P01\0Mbye\0Dwhy\0Hwhat\0\0";
        for end in 0..whole.len() {
            let _ = ErrorFields::parse(Bytes::copy_from_slice(&whole[..end])).to_string();
        }
    }
}
