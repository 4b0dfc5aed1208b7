//! Texts in which the client's names of prepared statements are the server connection's, and the way back.

use std::ops::Range;
use std::sync::Arc;

use crate::error::ClientError;

use super::prepared::{NOBODYS_NAME, Prepared};

/// A client's text as the server gets it.
#[derive(Debug)]
pub(crate) struct Translated {
    pub(super) text: String,
    pub(super) uses: Vec<Use>,
    /// Places of the gateway's own among the statements, the last first.
    pub(super) own: Vec<usize>,
    edits: Vec<Edit>,
    /// What the client is told in place of the error that this text is answered with.
    pub(super) refusal: Option<ClientError>,
}

/// What a statement of a text does to a prepared one.
#[derive(Debug, Clone)]
pub(super) struct Use {
    /// Which statement of the text.
    pub(super) place: usize,
    /// The client's name for the prepared one.
    pub(super) name: Box<[u8]>,
    pub(super) kind: UseKind,
    pub(super) statement: Arc<Prepared>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UseKind {
    Deallocate,
    Execute,
    Prepare,
    /// PREPARE under a name that is in use.
    PrepareTaken,
}

/// A name that was replaced. Places are counted in characters.
#[derive(Debug)]
struct Edit {
    /// Where it begins in the new text.
    at: usize,
    new_len: usize,
    old_len: usize,
}

impl UseKind {
    /// The server has to know the statement by then.
    pub(super) fn needs_it(self) -> bool {
        self != Self::Prepare
    }
}

impl Translated {
    /// A text that the server does not run, for one that is refused here: its transaction has to fail.
    pub(super) fn refused(refusal: ClientError) -> Self {
        Self {
            text: format!("DEALLOCATE {NOBODYS_NAME}"),
            uses: Vec::new(),
            own: Vec::new(),
            edits: Vec::new(),
            refusal: Some(refusal),
        }
    }

    /// What this statement of the text does to a prepared one.
    pub(super) fn use_at(&self, place: usize) -> Option<&Use> {
        self.uses.iter().find(|spoken| spoken.place == place)
    }

    /// The statement that this one of the text executes.
    pub(super) fn executed_at(&self, place: usize) -> Option<u64> {
        self.use_at(place)
            .filter(|spoken| spoken.kind == UseKind::Execute)
            .map(|spoken| spoken.statement.id)
    }

    /// The place in the client's text of a place in the text that was sent; both from 1, in characters.
    pub(super) fn position(&self, at: usize) -> usize {
        let mut shift = 0_isize;
        for edit in &self.edits {
            if at <= edit.at {
                break;
            }
            let grown = edit.new_len.cast_signed() - edit.old_len.cast_signed();
            if at <= edit.at + edit.new_len {
                return (edit.at + 1).saturating_add_signed(-shift);
            }
            shift += grown;
        }
        at.saturating_add_signed(-shift)
    }
}

/// A text that is being translated.
pub(super) struct Draft<'t> {
    text: &'t str,
    /// Up to here it is in the new one.
    from: usize,
    new: Translated,
}

impl<'t> Draft<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self {
            text,
            from: 0,
            new: Translated {
                text: String::with_capacity(text.len() + 64),
                uses: Vec::new(),
                own: Vec::new(),
                edits: Vec::new(),
                refusal: None,
            },
        }
    }

    /// What the statements do to prepared ones, as far as is known.
    pub(super) fn uses(&self) -> &[Use] {
        &self.new.uses
    }

    pub(super) fn note(&mut self, spoken: Use) {
        self.new.uses.push(spoken);
    }

    /// Puts something in the place of a part of the text.
    pub(super) fn replace(&mut self, at: Range<usize>, with: &str) -> Option<()> {
        self.new.text.push_str(self.text.get(self.from..at.start)?);
        self.new.edits.push(Edit {
            at: self.new.text.chars().count(),
            new_len: with.chars().count(),
            old_len: self.text.get(at.clone())?.chars().count(),
        });
        self.new.text.push_str(with);
        self.from = at.end;
        Some(())
    }

    /// Puts a statement of the gateway's own in front of the one in this place of the client's.
    pub(super) fn insert_own(&mut self, at: usize, place: usize, sql: &str) -> Option<()> {
        self.replace(at..at, sql)?;
        self.new.own.push(place + self.new.own.len());
        Some(())
    }

    pub(super) fn finish(mut self) -> Option<Translated> {
        self.new.text.push_str(self.text.get(self.from..)?);
        self.new.own.reverse();
        Some(self.new)
    }
}

/// Adds a field in which the gateway's names of statements are the client's.
pub(super) fn put_with_names<'n>(
    out: &mut Vec<u8>,
    field: &[u8],
    prefix: &[u8],
    client_name: &impl Fn(u64) -> Option<&'n [u8]>,
) {
    let mut rest = field;
    while let Some(at) = memchr::memmem::find(rest, prefix) {
        let number = &rest[at + prefix.len()..];
        let digits = number
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        let id = std::str::from_utf8(&number[..digits])
            .ok()
            .and_then(|digits| digits.parse().ok());
        out.extend_from_slice(&rest[..at]);
        match id.and_then(client_name) {
            Some(name) => out.extend_from_slice(name),
            None => out.extend_from_slice(&rest[at..at + prefix.len() + digits]),
        }
        rest = &number[digits..];
    }
    out.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_those_of_the_text_before() {
        let text = "ä; EXECUTE s(x); EXECUTE t(y)";
        let mut draft = Draft::new(text);
        let place = |what: &str| text.find(what).expect("there");
        for name in ["s(", "t("] {
            let at = place(name)..place(name) + 1;
            draft.replace(at, "a_longer_name").expect("within");
        }
        let translated = draft.finish().expect("whole");
        let chars =
            |text: &str, what: &str| text[..text.find(what).expect("there")].chars().count() + 1;
        for what in ["ä", "EXECUTE", "(x", "x)", "; E", "(y", "y)"] {
            let sent = chars(&translated.text, what);
            assert_eq!(translated.position(sent), chars(text, what), "{what}");
        }
        // Within a name that was replaced: where it begins.
        let within = chars(&translated.text, "longer");
        assert_eq!(translated.position(within), chars(text, "s(x"));
    }
}
