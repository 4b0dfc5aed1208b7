//! What one client listens to, and what the transaction in progress would change of it. No I/O.

use std::collections::BTreeSet;
use std::sync::Arc;

/// A change that takes effect with the transaction that it is part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Listen(Arc<str>),
    Unlisten(Arc<str>),
    UnlistenAll,
    /// Not a change, but a place to go back to.
    Savepoint(Box<str>),
}

/// One client's channels.
///
/// Savepoints are noted only behind the first change: to go back to one that is not known is to go back behind all
/// changes.
#[derive(Debug, Default)]
pub(crate) struct Interest {
    committed: BTreeSet<Arc<str>>,
    pending: Vec<Step>,
    /// Those that are listened to for this client: what it has committed, and what it may commit.
    subscribed: BTreeSet<Arc<str>>,
}

impl Interest {
    /// True if the client is told of what is sent to the channel.
    pub(crate) fn hears(&self, channel: &[u8]) -> bool {
        std::str::from_utf8(channel).is_ok_and(|channel| self.committed.contains(channel))
    }

    /// How many channels the client listens to.
    pub(crate) fn len(&self) -> usize {
        self.committed.len()
    }

    /// How many changes and savepoints wait for a commit.
    pub(crate) fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// How many channels are listened to for this client.
    pub(crate) fn channels(&self) -> usize {
        self.subscribed.len()
    }

    /// True if any is.
    pub(crate) fn is_subscribed(&self) -> bool {
        !self.subscribed.is_empty()
    }

    /// Those of the steps' channels that are not listened to for this client yet, each once. From here on they count as
    /// such.
    pub(crate) fn subscribe(&mut self, steps: &[Step]) -> Vec<Arc<str>> {
        let mut new = Vec::new();
        for step in steps {
            if let Step::Listen(channel) = step
                && self.subscribed.insert(Arc::clone(channel))
            {
                new.push(Arc::clone(channel));
            }
        }
        new
    }

    /// Adds changes to the transaction in progress.
    pub(crate) fn act(&mut self, steps: impl IntoIterator<Item = Step>) {
        self.pending.extend(steps);
    }

    pub(crate) fn savepoint(&mut self, name: &str) {
        if !self.pending.is_empty() {
            self.pending.push(Step::Savepoint(name.into()));
        }
    }

    /// Forgets a savepoint and those behind it; their changes stay.
    pub(crate) fn release(&mut self, name: &str) {
        let at = self.find(name).unwrap_or(0);
        let mut place = 0;
        self.pending.retain(|step| {
            place += 1;
            place <= at || !matches!(step, Step::Savepoint(_))
        });
    }

    /// Takes back what came behind a savepoint, which stays.
    pub(crate) fn roll_back_to(&mut self, name: &str) {
        self.pending
            .truncate(self.find(name).map_or(0, |at| at + 1));
    }

    pub(crate) fn roll_back(&mut self) {
        self.pending.clear();
    }

    pub(crate) fn commit(&mut self) {
        for step in self.pending.drain(..) {
            match step {
                Step::Listen(channel) => {
                    self.committed.insert(channel);
                }
                Step::Unlisten(channel) => {
                    self.committed.remove(&channel);
                }
                Step::UnlistenAll => self.committed.clear(),
                Step::Savepoint(_) => {}
            }
        }
    }

    /// The end of the session, or of all that it listens to.
    pub(crate) fn clear(&mut self) {
        self.committed.clear();
        self.pending.clear();
    }

    /// Those that nobody needs to listen to for this client any more.
    pub(crate) fn unsubscribe(&mut self) -> Vec<Arc<str>> {
        if self.pending.is_empty() && self.subscribed.len() == self.committed.len() {
            return Vec::new();
        }
        let Self {
            committed,
            pending,
            subscribed,
        } = self;
        let mut gone = Vec::new();
        subscribed.retain(|channel| {
            let stays = committed.contains(channel)
                || pending
                    .iter()
                    .any(|step| matches!(step, Step::Listen(pending) if pending == channel));
            if !stays {
                gone.push(Arc::clone(channel));
            }
            stays
        });
        gone
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.pending
            .iter()
            .rposition(|step| matches!(step, Step::Savepoint(known) if **known == *name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `+c` listens, `-c` stops, `-*` stops all, `sN` is a savepoint, `rN` releases it, `bN` goes back to it, `C` commits,
    /// `R` rolls back.
    fn after(script: &str) -> String {
        let mut interest = Interest::default();
        for word in script.split_whitespace() {
            let (what, name) = word.split_at(1);
            match (what, name) {
                ("+", name) => {
                    let steps = [Step::Listen(name.into())];
                    interest.subscribe(&steps);
                    interest.act(steps);
                }
                ("-", "*") => interest.act([Step::UnlistenAll]),
                ("-", name) => interest.act([Step::Unlisten(name.into())]),
                ("s", name) => interest.savepoint(name),
                ("r", name) => interest.release(name),
                ("b", name) => interest.roll_back_to(name),
                ("C", _) => interest.commit(),
                ("R", _) => interest.roll_back(),
                other => panic!("{other:?}"),
            }
            interest.unsubscribe();
        }
        assert!(interest.committed.is_subset(&interest.subscribed));
        if interest.pending.is_empty() {
            assert_eq!(interest.committed, interest.subscribed, "{script}");
        }
        interest
            .committed
            .iter()
            .map(|channel| &**channel)
            .collect()
    }

    #[test]
    fn changes_take_effect_as_in_postgresql() {
        for (script, channels) in [
            ("+a", ""),
            ("+a C", "a"),
            ("+a R", ""),
            ("+a C +b -a C", "b"),
            ("+a C -a R", "a"),
            ("+a C -a +a C", "a"),
            ("+a +b C -* +c C", "c"),
            ("+a s1 +b b1 +c C", "ac"),
            ("+a s1 +b r1 +c C", "abc"),
            // Older than the first change.
            ("s1 +a b1 +b C", "b"),
            ("s1 +a s2 +b b2 b1 C", ""),
            ("s1 +a s1 +b r1 b1 C", ""),
            ("s0 +a s1 +b s2 r0 b9 C", ""),
            ("+a s1 +b s1 +c b1 C", "ab"),
            ("+a s1 +b s1 +c b1 r1 b1 C", "a"),
            ("+a s1 b1 +b b1 C", "a"),
        ] {
            assert_eq!(after(script), channels, "{script}");
        }
    }

    #[test]
    fn what_nobody_needs_is_named_once() {
        let mut interest = Interest::default();
        let steps = [Step::Listen("a".into()), Step::Listen("a".into())];
        assert_eq!(interest.subscribe(&steps).len(), 1);
        assert!(interest.subscribe(&steps).is_empty());
        interest.act(steps);
        interest.roll_back();
        assert_eq!(interest.unsubscribe(), [Arc::<str>::from("a")]);
        assert!(interest.unsubscribe().is_empty());
        assert!(!interest.is_subscribed());
    }
}
