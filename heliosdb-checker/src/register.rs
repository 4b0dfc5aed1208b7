//! One key: which versions were known when, and which write made each of them.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::collections::btree_map::Entry;

use crate::history::{Origin, Tag, Time, Witness};

/// Versions of a register in the order in which they came to be known.
#[derive(Debug, Default)]
pub(crate) struct Register {
    /// By the origin of the write that made the version.
    direct: Front,
    gateway: Front,
    /// Who made the latest versions, and who saw or made them first.
    makers: BTreeMap<u64, (Tag, Witness)>,
    /// The latest version whose making has begun, where it is known before it is made.
    begun: Option<u64>,
    pub(crate) touched: Time,
}

impl Register {
    /// The newest version that must show in a read which began at `start`, with what proves it.
    pub(crate) fn floor(&self, gateway: Time, direct: Time) -> Option<&Witness> {
        let (gateway, direct) = (self.gateway.at(gateway), self.direct.at(direct));
        match (gateway, direct) {
            (Some(a), Some(b)) if b.version > a.version => Some(b),
            (None, direct) => direct,
            (gateway, _) => gateway,
        }
    }

    /// A finished operation shows that a version is there. Operations come in the order of their ends.
    pub(crate) fn show(&mut self, witness: Witness, maker: Origin, horizon: Time) {
        let front = match maker {
            Origin::Direct => &mut self.direct,
            Origin::Gateway => &mut self.gateway,
        };
        front.show(witness, horizon);
    }

    /// Notes who made a version. Another that is known to have made the same is returned.
    pub(crate) fn claim(
        &mut self,
        version: u64,
        tag: Tag,
        witness: Witness,
    ) -> Option<(Tag, Witness)> {
        match self.makers.entry(version) {
            Entry::Occupied(known) => (known.get().0 != tag).then(|| *known.get()),
            Entry::Vacant(place) => {
                place.insert((tag, witness));
                while self.makers.len() > MAKERS_MAX {
                    self.makers.pop_first();
                }
                None
            }
        }
    }

    /// Who made a version, if it is known.
    pub(crate) fn maker(&self, version: u64) -> Option<Tag> {
        self.makers.get(&version).map(|(tag, _)| *tag)
    }

    /// True if versions so old are still remembered.
    pub(crate) fn remembers(&self, version: u64) -> bool {
        self.makers.len() < MAKERS_MAX
            || self
                .makers
                .first_key_value()
                .is_some_and(|(first, _)| version >= *first)
    }

    pub(crate) fn begin(&mut self, version: u64) {
        self.begun = self.begun.max(Some(version));
    }

    pub(crate) fn has_begun(&self, version: u64) -> bool {
        self.begun.is_none_or(|begun| version <= begun)
    }
}

/// The versions that were newest when they were first shown: both `finish` and `version` grow.
#[derive(Debug, Default)]
struct Front(VecDeque<Witness>);

impl Front {
    /// The newest version shown by an operation that ended before `time`.
    fn at(&self, time: Time) -> Option<&Witness> {
        let count = self.0.partition_point(|witness| witness.finish < time);
        count.checked_sub(1).and_then(|last| self.0.get(last))
    }

    fn show(&mut self, witness: Witness, horizon: Time) {
        if self
            .0
            .back()
            .is_some_and(|last| last.version >= witness.version)
        {
            return;
        }
        self.0.push_back(witness);
        // Nobody asks any more what was known so long ago.
        while self.0.get(1).is_some_and(|second| second.finish < horizon) {
            self.0.pop_front();
        }
    }
}

/// More than the versions that rows name.
const MAKERS_MAX: usize = 256;
