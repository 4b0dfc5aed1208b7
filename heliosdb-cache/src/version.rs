//! Version slots: what makes an entry valid.
//!
//! A fixed array of version numbers, with a count of pending writers beside each. Whatever an answer depends on (a
//! table, a row) hashes into a slot. A fill reads the versions of its slots *before* it asks the database, and keeps
//! them in the entry; the entry may be served while all of them are unchanged and no writer is pending. Invalidating
//! is one atomic addition, whatever the number of entries, and two things that share a slot only invalidate each other
//! too often.
//!
//! Why it is sound: a writer marks its slots before it sends the write and takes the mark away only after raising the
//! versions, before it is acknowledged. A fill whose query did not see the write read its versions either before they
//! were raised, and then its entry never validates again, or found the mark.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::sync::{AtomicU32, AtomicU64, CountU64, Ordering};

/// The index of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(u32);

/// What everything in the cache depends on.
const GLOBAL: SlotId = SlotId(0);

/// Slots and the versions they had when they were read.
///
/// Of the versions only the sum is kept. Each of them only ever grows, so a later sum is the same if and only if every
/// one of them is (short of 2^64 writes).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dependencies {
    /// Without the one that everything depends on.
    slots: SmallVec<[SlotBytes; 4]>,
    sum: u64,
}

/// A slot's index as it lies among the bytes of an entry.
type SlotBytes = [u8; size_of::<SlotId>()];

/// [`Dependencies`], borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DependenciesRef<'a> {
    slots: &'a [SlotBytes],
    sum: u64,
}

impl Dependencies {
    /// The same, borrowed.
    #[must_use]
    pub fn as_ref(&self) -> DependenciesRef<'_> {
        DependenciesRef {
            slots: &self.slots,
            sum: self.sum,
        }
    }
}

impl<'a> From<&'a Dependencies> for DependenciesRef<'a> {
    fn from(dependencies: &'a Dependencies) -> Self {
        dependencies.as_ref()
    }
}

impl<'a> DependenciesRef<'a> {
    /// The slots, without the one that everything depends on.
    pub fn slots(self) -> impl Iterator<Item = SlotId> + 'a {
        self.slots.iter().map(|slot| SlotId::from_bytes(*slot))
    }

    /// The owned form.
    #[must_use]
    pub fn to_owned(self) -> Dependencies {
        Dependencies {
            slots: self.slots.into(),
            sum: self.sum,
        }
    }

    pub(crate) fn parts(self) -> (&'a [u8], u64) {
        (self.slots.as_flattened(), self.sum)
    }

    /// Of what [`parts`](Self::parts) gave.
    pub(crate) fn from_parts(slots: &'a [u8], sum: u64) -> Self {
        Self {
            slots: slots.as_chunks().0,
            sum,
        }
    }
}

impl SlotId {
    fn from_bytes(bytes: SlotBytes) -> Self {
        Self(u32::from_le_bytes(bytes))
    }

    fn to_bytes(self) -> SlotBytes {
        self.0.to_le_bytes()
    }
}

/// The array of versions.
pub struct VersionSlots {
    slots: Box<[Slot]>,
    invalidations: CountU64,
}

struct Slot {
    version: AtomicU64,
    pending: AtomicU32,
}

impl VersionSlots {
    /// `2^bits` slots, at least two: 16 bytes each.
    #[must_use]
    pub fn new(bits: u8) -> Arc<Self> {
        let slots = (0..1_usize << bits.clamp(1, 24))
            .map(|_| Slot {
                version: AtomicU64::new(0),
                pending: AtomicU32::new(0),
            })
            .collect();
        Arc::new(Self {
            slots,
            invalidations: CountU64::new(0),
        })
    }

    /// The slot for a hash of whatever can be depended on.
    #[must_use]
    pub fn slot(&self, hash: u64) -> SlotId {
        // Slot 0 is everybody's.
        let n = self.slots.len() as u64 - 1;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "less than the number of slots, which fits"
        )]
        let index = (hash % n) as u32 + 1;
        SlotId(index)
    }

    /// Marks a write on its slots, before it is sent. The mark goes with the returned intent.
    #[must_use]
    pub fn begin_write(self: &Arc<Self>, slots: &[SlotId]) -> WriteIntent {
        let mut intent = WriteIntent {
            versions: Arc::clone(self),
            slots: SmallVec::new(),
        };
        intent.extend(slots);
        intent
    }

    /// Reads the versions of the slots for a fill that is about to begin. `None` while a write is pending on one of
    /// them: what the database would answer can't be dated.
    #[must_use]
    pub fn observe(&self, slots: &[SlotId]) -> Option<Dependencies> {
        let mut seen: SmallVec<[SlotBytes; 4]> = SmallVec::with_capacity(slots.len());
        let mut sum = self.at(GLOBAL).version.load(Ordering::SeqCst);
        for slot in slots {
            let bytes = slot.to_bytes();
            if *slot != GLOBAL && !seen.contains(&bytes) {
                seen.push(bytes);
                sum = sum.wrapping_add(self.at(*slot).version.load(Ordering::SeqCst));
            }
        }
        // After all versions: a writer that ends in between has raised a version that was read before.
        let is_quiet = |slot| self.at(slot).pending.load(Ordering::SeqCst) == 0;
        let quiet = is_quiet(GLOBAL) && seen.iter().all(|slot| is_quiet(SlotId::from_bytes(*slot)));
        quiet.then_some(Dependencies { slots: seen, sum })
    }

    /// True while nothing the dependencies name has changed, and nothing is about to.
    #[must_use]
    pub fn is_current<'a>(&self, dependencies: impl Into<DependenciesRef<'a>>) -> bool {
        let DependenciesRef {
            slots,
            sum: expected,
        } = dependencies.into();
        let mut sum = 0_u64;
        let slots = slots.iter().map(|slot| SlotId::from_bytes(*slot));
        for slot in std::iter::once(GLOBAL).chain(slots) {
            let slot = self.at(slot);
            // The mark first: a writer raises the version before it takes the mark away.
            if slot.pending.load(Ordering::SeqCst) != 0 {
                return false;
            }
            sum = sum.wrapping_add(slot.version.load(Ordering::SeqCst));
        }
        sum == expected
    }

    fn at(&self, slot: SlotId) -> &Slot {
        &self.slots[slot.0 as usize]
    }

    /// Raises the versions of the slots, for changes that are complete when they become known.
    pub fn invalidate(&self, slots: &[SlotId]) {
        for slot in slots {
            self.slots[slot.0 as usize]
                .version
                .fetch_add(1, Ordering::SeqCst);
        }
        self.invalidations
            .fetch_add(slots.len() as u64, Ordering::Relaxed);
    }

    /// Invalidates everything.
    pub fn invalidate_all(&self) {
        self.invalidate(&[GLOBAL]);
    }

    /// How often a slot's version was raised.
    #[must_use]
    pub fn invalidations(&self) -> u64 {
        self.invalidations.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for VersionSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VersionSlots")
            .field("slots", &self.slots.len())
            .finish_non_exhaustive()
    }
}

/// The marks of a write in progress. Dropping it is the same as [`finish`](Self::finish): an intent that is lost
/// invalidates too much, never too little.
pub struct WriteIntent {
    versions: Arc<VersionSlots>,
    slots: SmallVec<[SlotId; 4]>,
}

impl WriteIntent {
    /// Marks more slots, before the statement that writes them is sent.
    pub fn extend(&mut self, slots: &[SlotId]) {
        for slot in slots {
            if !self.slots.contains(slot) {
                self.versions.slots[slot.0 as usize]
                    .pending
                    .fetch_add(1, Ordering::SeqCst);
                self.slots.push(*slot);
            }
        }
    }

    /// True if the slot is marked by this intent.
    #[must_use]
    pub fn contains(&self, slot: SlotId) -> bool {
        self.slots.contains(&slot)
    }

    /// The write is over, whatever became of it: the versions go up, then the marks go down. To be called before the
    /// writer is told.
    pub fn finish(self) {}
}

impl Drop for WriteIntent {
    fn drop(&mut self) {
        // All versions before the first mark: a transaction over several slots becomes visible at once.
        self.versions.invalidate(&self.slots);
        for slot in &self.slots {
            self.versions.slots[slot.0 as usize]
                .pending
                .fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl fmt::Debug for WriteIntent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteIntent")
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_observation_ends_with_a_write_to_one_of_its_slots() {
        let versions = VersionSlots::new(8);
        let (a, b) = (versions.slot(1), versions.slot(2));
        let on_a = versions.observe(&[a]).expect("nothing pending");
        let on_b = versions.observe(&[b]).expect("nothing pending");
        let write = versions.begin_write(&[a]);
        assert!(!versions.is_current(&on_a), "pending");
        assert!(versions.observe(&[a]).is_none());
        assert!(versions.is_current(&on_b));
        write.finish();
        assert!(!versions.is_current(&on_a), "raised");
        assert!(versions.observe(&[a]).is_some());
        assert_eq!(versions.invalidations(), 1);
    }

    #[test]
    fn a_slot_marked_twice_by_one_intent_is_freed() {
        let versions = VersionSlots::new(4);
        let slot = versions.slot(3);
        let mut write = versions.begin_write(&[slot, slot]);
        write.extend(&[slot]);
        drop(write);
        assert!(versions.observe(&[slot]).is_some());
    }

    #[test]
    fn everything_depends_on_the_global_slot() {
        let versions = VersionSlots::new(4);
        let nothing = versions.observe(&[]).expect("nothing pending");
        versions.invalidate_all();
        assert!(!versions.is_current(&nothing));
    }

    #[test]
    fn no_hash_leads_to_the_global_slot() {
        let versions = VersionSlots::new(1);
        assert!((0..100).all(|hash| versions.slot(hash) != GLOBAL));
    }
}
