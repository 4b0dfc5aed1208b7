//! What `currval()` and `lastval()` give belongs to the server session in which the sequence was used, and server
//! connections change hands. So a client gets a value of its own, or PostgreSQL's error that there is none: before it asks
//! on a connection where others may have left values, they are discarded.
//!
//! Where the client itself may have used a sequence on that connection in between, whose value there is can't be told.
//! It is taken for the client's, and from then on, for clients that ask for such values, what others left is discarded
//! before the first statement that could use a sequence.

use crate::sql::{Class, Effect, Statement};

use super::Session;

/// Whose values of sequences a server connection may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sequences {
    /// Who had the connection last; 0 for nobody since it was opened or discarded.
    client: u64,
    /// There are none of others.
    is_clean: bool,
    /// The client ran what may have used a sequence.
    may_have_own: bool,
}

/// A connection on which nobody has used a sequence.
impl Default for Sequences {
    fn default() -> Self {
        Self {
            client: 0,
            is_clean: true,
            may_have_own: false,
        }
    }
}

impl Sequences {
    /// The connection is lent to a client.
    pub(crate) fn lend_to(&mut self, client: u64) {
        if self.client != client {
            *self = Self {
                client,
                is_clean: self.client == 0,
                may_have_own: false,
            };
        }
    }

    /// All are discarded.
    pub(crate) fn discard(&mut self) {
        self.is_clean = true;
        self.may_have_own = false;
    }

    /// Statements are about to run. True if what others left has to be discarded before.
    fn run(&mut self, asks: bool, uses: bool) -> bool {
        let discards = asks && !self.is_clean && !self.may_have_own;
        self.is_clean |= discards;
        self.may_have_own |= uses;
        discards
    }
}

impl Session {
    /// Statements of this class are about to be sent: sees to it that they find no values of others.
    pub(super) fn guard_sequences(&mut self, class: &Class) {
        if class.is_plain() && !self.reads_sequences {
            // It may take a number from one, in a function, and asks for none.
            if let Some(link) = &mut self.link {
                link.lease.sequences.run(false, true);
            }
            return;
        }
        let reads = |statement: &Statement| statement.effects.contains(&Effect::ReadSequence);
        let asks = class.statements.iter().any(reads);
        self.reads_sequences |= asks;
        let uses = class.statements.iter().any(may_use_sequence);
        // What else there is in the text may insist on being the first of its transaction.
        let may_be_second = class.statements.iter().all(may_use_sequence);
        let asks = asks || self.reads_sequences && uses;
        let Some(link) = &mut self.link else { return };
        if self.status == b'E' || !may_be_second {
            link.lease.sequences.run(false, uses);
            return;
        }
        if link.lease.sequences.run(asks, uses) {
            link.run_within(std::iter::once("DISCARD SEQUENCES".to_owned()));
        }
    }
}

/// Whether a statement may take a number from a sequence, in a default or a function if not by its text.
fn may_use_sequence(statement: &Statement) -> bool {
    matches!(
        statement.tag,
        "COPY" | "DELETE" | "EXECUTE" | "INSERT" | "MERGE" | "SELECT" | "UPDATE"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_others_are_discarded_unless_there_may_be_own_ones() {
        let mut sequences = Sequences::default();
        sequences.lend_to(1);
        assert!(!sequences.run(true, true), "nobody used one before");
        sequences.lend_to(1);
        assert!(!sequences.run(true, true), "they are the client's own");
        sequences.lend_to(2);
        assert!(sequences.run(true, true), "they are another's");
        assert!(!sequences.run(true, true), "once");
        sequences.lend_to(1);
        assert!(!sequences.run(false, true));
        assert!(!sequences.run(true, true), "they may be the client's own");
        sequences.lend_to(2);
        sequences.discard();
        assert!(!sequences.run(true, true));
    }
}
