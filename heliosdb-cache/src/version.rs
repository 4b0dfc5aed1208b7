//! Version slots: what makes an entry valid.
//!
//! A fixed array of version numbers, with a count of pending writers beside each. Whatever an answer depends on (a
//! table, a row) hashes into a slot. A fill reads the versions of its slots *before* it asks the database, and keeps
//! them in the entry; the entry may be served while all of them are unchanged and no writer is pending. Invalidating
//! is one atomic addition, whatever the number of entries, and two things that share a slot only invalidate each other
//! too often.
//!
//! So that answers can be shared between processes, or outlive one, slots also know *where* in the order of all changes
//! they were last changed, as far as that is known: see [`Position`].
//!
//! Why it is sound: a writer marks its slots before it sends the write and takes the mark away only after raising the
//! versions, before it is acknowledged. A fill whose query did not see the write read its versions either before they
//! were raised, and then its entry never validates again, or found the mark.

use std::fmt;
use std::sync::{Arc, OnceLock};

use smallvec::SmallVec;

use crate::fault;
use crate::feed::ChangeFeed;
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

/// What a fill observed, of which it may give a part up: see
/// [`join_provisionally`](crate::CacheManager::join_provisionally).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    all: Dependencies,
    /// The provisional slot, if it is none of the others, and its version.
    provisional: Option<(SlotId, u64)>,
}

impl Observation {
    /// With the provisional slot.
    #[must_use]
    pub fn all(&self) -> &Dependencies {
        &self.all
    }

    /// Without the provisional slot.
    #[must_use]
    pub fn firm(&self) -> Dependencies {
        let mut firm = self.all.clone();
        if let Some((slot, version)) = self.provisional {
            firm.slots.retain(|bytes| *bytes != slot.to_bytes());
            firm.sum = firm.sum.wrapping_sub(version);
        }
        firm
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

    /// Its number, less than two to the power of [`version_slot_bits`](crate::CacheConfig::version_slot_bits). Slot 0 is
    /// everybody's: a change of it changes all.
    #[must_use]
    pub fn index(self) -> u32 {
        self.0
    }

    fn to_bytes(self) -> SlotBytes {
        self.0.to_le_bytes()
    }
}

/// The array of versions.
pub struct VersionSlots {
    slots: Box<[Slot]>,
    invalidations: CountU64,
    positions: Positions,
    /// There once somebody asked for it.
    feed: OnceLock<ChangeFeed>,
}

struct Positions {
    /// Everything up to here is known. Counted by the cache itself until `followed` is set.
    applied: CountU64,
    followed: OnceLock<Lineage>,
    own: Lineage,
    /// How many fences began; the last of them that ended; and the furthest position that one ended with.
    fences: CountU64,
    fenced: CountU64,
    fence: CountU64,
}

/// Finds out where the changes lie that were told without a position: see [`VersionSlots::begin_fence`].
#[derive(Debug)]
#[must_use = "it ends with a position"]
pub struct Fence<'a> {
    versions: &'a VersionSlots,
    number: u64,
}

struct Slot {
    version: AtomicU64,
    pending: AtomicU32,
    /// Below [`UNPLACED`], the position of the last change. Above, the change's position is not known, and the rest is
    /// the number of the fence that will tell.
    changed: CountU64,
}

/// A place in the order of all changes to what the cache depends on: a database's log sequence number, for instance.
///
/// Without a source of its own, the cache counts its invalidations; then positions mean nothing to another process or
/// after a restart. With one ([`VersionSlots::follow`]), an answer computed elsewhere may be served if it is known to
/// hold everything that this process knows to have changed: computed at or after the last change of each slot, at a
/// position that this process has reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
#[expect(clippy::exhaustive_structs, reason = "it is a number")]
pub struct Position(pub u64);

/// Whose positions these are: two processes with the same lineage follow the same order of changes. A database's system
/// identifier and timeline, for instance.
pub type Lineage = [u8; 16];

const UNPLACED: u64 = 1 << 63;

impl VersionSlots {
    /// `2^bits` slots, at least two: 24 bytes each.
    #[must_use]
    pub fn new(bits: u8) -> Arc<Self> {
        let slots = (0..1_usize << bits.clamp(1, 24))
            .map(|_| Slot {
                version: AtomicU64::new(0),
                pending: AtomicU32::new(0),
                changed: CountU64::new(0),
            })
            .collect();
        Arc::new(Self {
            slots,
            invalidations: CountU64::new(0),
            feed: OnceLock::new(),
            positions: Positions {
                applied: CountU64::new(0),
                followed: OnceLock::new(),
                own: std::array::from_fn(|_| fastrand::u8(..)),
                fences: CountU64::new(0),
                fenced: CountU64::new(0),
                fence: CountU64::new(0),
            },
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

    /// The slot of that [number](SlotId::index), if there are so many.
    #[must_use]
    pub fn slot_at(&self, index: u32) -> Option<SlotId> {
        ((index as usize) < self.slots.len()).then_some(SlotId(index))
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
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
        self.observe_provisionally(slots, None)
            .map(|observation| observation.all)
    }

    /// As [`observe`](Self::observe), with one slot more, which the fill may turn out not to depend on. A write that is
    /// pending on that one alone is no reason to say `None`: with it the observation is not current before the write has
    /// ended, nor afterwards, unless the version was raised before it was read here; without it, it is as good as any.
    #[must_use]
    pub fn observe_provisionally(
        &self,
        slots: &[SlotId],
        provisional: Option<SlotId>,
    ) -> Option<Observation> {
        let mut seen: SmallVec<[SlotBytes; 4]> = SmallVec::with_capacity(slots.len() + 1);
        let mut sum = self.at(GLOBAL).version.load(Ordering::SeqCst);
        let mut read = |slot: SlotId| {
            let bytes = slot.to_bytes();
            if slot == GLOBAL || seen.contains(&bytes) {
                return None;
            }
            seen.push(bytes);
            let version = self.at(slot).version.load(Ordering::SeqCst);
            sum = sum.wrapping_add(version);
            Some((slot, version))
        };
        for slot in slots {
            read(*slot);
        }
        // One of the others, by a collision: then it can't be given up.
        let provisional = provisional.and_then(read);
        // After all versions: a writer that ends in between has raised a version that was read before.
        let is_quiet = |slot| self.at(slot).pending.load(Ordering::SeqCst) == 0;
        let firm = &seen[..seen.len() - usize::from(provisional.is_some())];
        let quiet = is_quiet(GLOBAL) && firm.iter().all(|slot| is_quiet(SlotId::from_bytes(*slot)));
        quiet.then_some(Observation {
            all: Dependencies { slots: seen, sum },
            provisional,
        })
    }

    /// True while nothing the dependencies name has changed, and nothing is about to.
    #[must_use]
    #[inline]
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
        let positions = &self.positions;
        let changed = if positions.followed.get().is_some() {
            UNPLACED | positions.fences.load(Ordering::SeqCst)
        } else {
            positions.applied.fetch_add(1, Ordering::SeqCst) + 1
        };
        self.raise(slots, changed);
    }

    /// As [`invalidate`](Self::invalidate), for changes at a known position.
    pub fn invalidate_at(&self, slots: &[SlotId], position: Position) {
        self.raise(slots, position.0.min(UNPLACED - 1));
    }

    fn raise(&self, slots: &[SlotId], changed: u64) {
        for slot in slots {
            let slot = self.at(*slot);
            // First, so that who sees the version sees this.
            self.last_change(slot);
            slot.changed.fetch_max(changed, Ordering::SeqCst);
            slot.version.fetch_add(1, Ordering::SeqCst);
        }
        self.note(slots);
        self.invalidations
            .fetch_add(slots.len() as u64, Ordering::Relaxed);
    }

    /// After what it is about, so that whoever reads the feed's position later finds the change made.
    fn note(&self, slots: &[SlotId]) {
        if let Some(feed) = self.feed.get() {
            feed.note(slots);
        }
    }

    /// The changes in their order. Noted from the first call on: make it before the slots are used.
    pub fn feed(&self) -> &ChangeFeed {
        self.feed.get_or_init(ChangeFeed::new)
    }

    /// From now on positions are those of `lineage`, which [`advance`](Self::advance) and
    /// [`invalidate_at`](Self::invalidate_at) tell. Once only: false if another lineage is followed already.
    pub fn follow(&self, lineage: Lineage, position: Position) -> bool {
        let positions = &self.positions;
        if *positions.followed.get_or_init(|| lineage) != lineage {
            return false;
        }
        // What was counted until now means nothing any more.
        for slot in &self.slots {
            slot.changed.store(UNPLACED, Ordering::SeqCst);
        }
        positions.applied.store(position.0, Ordering::SeqCst);
        true
    }

    /// Every change up to `position` has been told.
    pub fn advance(&self, position: Position) {
        self.positions
            .applied
            .fetch_max(position.0, Ordering::SeqCst);
    }

    /// To be called before the database is asked for its position, which ends the fence: every change that was told
    /// without a position until now lies at or before that.
    pub fn begin_fence(&self) -> Fence<'_> {
        Fence {
            number: self.positions.fences.fetch_add(1, Ordering::SeqCst) + 1,
            versions: self,
        }
    }

    /// The position up to which every change has been told.
    #[must_use]
    pub fn applied(&self) -> Position {
        Position(self.positions.applied.load(Ordering::SeqCst))
    }

    /// Whose positions these are.
    #[must_use]
    pub fn lineage(&self) -> Lineage {
        let positions = &self.positions;
        *positions.followed.get().unwrap_or(&positions.own)
    }

    /// May an answer that was computed when everything up to `position` was known be served here? True if it was
    /// computed no earlier than the last change of any of its slots, at a position that is known here, while no write is
    /// pending.
    #[must_use]
    pub fn is_current_at(&self, slots: &[SlotId], position: Position) -> bool {
        if position > self.applied() {
            return false;
        }
        std::iter::once(&GLOBAL).chain(slots).all(|slot| {
            let Some(slot) = self.slots.get(slot.0 as usize) else {
                return false;
            };
            // The mark first, as everywhere.
            slot.pending.load(Ordering::SeqCst) == 0
                && self
                    .last_change(slot)
                    .is_some_and(|changed| changed <= position)
        })
    }

    /// A position at or after the last change. `None` if none is known.
    fn last_change(&self, slot: &Slot) -> Option<Position> {
        let changed = slot.changed.load(Ordering::SeqCst);
        let placed = self.place(changed)?;
        if placed != changed {
            // Kept, so that later fences don't move it.
            let _ =
                slot.changed
                    .compare_exchange(changed, placed, Ordering::SeqCst, Ordering::SeqCst);
        }
        Some(Position(placed))
    }

    fn place(&self, changed: u64) -> Option<u64> {
        if changed < UNPLACED {
            return Some(changed);
        }
        let is_fenced = changed & !UNPLACED < self.positions.fenced.load(Ordering::SeqCst);
        is_fenced.then(|| self.positions.fence.load(Ordering::SeqCst))
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

impl Fence<'_> {
    /// What the database said.
    pub fn end(self, position: Position) {
        let positions = &self.versions.positions;
        // First, so that who sees the number sees a position that is far enough.
        positions.fence.fetch_max(position.0, Ordering::SeqCst);
        positions.fenced.fetch_max(self.number, Ordering::SeqCst);
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
        let marked = self.slots.len();
        for slot in slots {
            if !self.slots.contains(slot) {
                if !fault::is_removed("pending-marks") {
                    self.versions.slots[slot.0 as usize]
                        .pending
                        .fetch_add(1, Ordering::SeqCst);
                }
                self.slots.push(*slot);
            }
        }
        self.versions.note(&self.slots[marked..]);
    }

    /// How many slots it marks.
    #[must_use]
    pub fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// True if the slot is marked by this intent.
    #[must_use]
    pub fn contains(&self, slot: SlotId) -> bool {
        self.slots.contains(&slot)
    }

    fn unmark(&self, slots: &[SlotId]) {
        for slot in slots {
            self.versions.slots[slot.0 as usize]
                .pending
                .fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// The end of a write where one of its protections is taken away. False if none of them is.
    #[cfg(feature = "fault-switches")]
    fn end_unprotected(&self) -> bool {
        if fault::is_removed("pending-marks") {
            fault::pause("pending-marks");
            self.versions.invalidate(&self.slots);
        } else if fault::is_removed("bump-before-ack") {
            self.unmark(&self.slots);
            let (versions, slots) = (Arc::clone(&self.versions), self.slots.clone());
            std::thread::spawn(move || {
                fault::pause("bump-before-ack");
                versions.invalidate(&slots);
            });
        } else if fault::is_removed("atomic-bump") {
            self.unmark(&self.slots);
            for slot in &self.slots {
                self.versions.invalidate(&[*slot]);
                fault::pause("atomic-bump");
            }
        } else {
            return false;
        }
        true
    }

    /// The write is over, whatever became of it: the versions go up, then the marks go down. To be called before the
    /// writer is told.
    pub fn finish(self) {}

    /// Nothing was written, for certain: the marks go down, and the versions stay as they are.
    pub fn withdraw(mut self) {
        let slots = std::mem::take(&mut self.slots);
        self.unmark(&slots);
    }
}

impl Drop for WriteIntent {
    fn drop(&mut self) {
        #[cfg(feature = "fault-switches")]
        if self.end_unprotected() {
            return;
        }
        if self.slots.is_empty() {
            return;
        }
        // All versions before the first mark: a transaction over several slots becomes visible at once.
        self.versions.invalidate(&self.slots);
        self.unmark(&self.slots);
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
    fn a_write_that_is_withdrawn_ends_no_observation() {
        let versions = VersionSlots::new(8);
        let a = versions.slot(1);
        let seen = versions.observe(&[a]).expect("nothing pending");
        let (write, other) = (versions.begin_write(&[a]), versions.begin_write(&[a]));
        write.withdraw();
        assert!(!versions.is_current(&seen), "the other is pending");
        other.withdraw();
        assert!(versions.is_current(&seen));
        assert_eq!(versions.invalidations(), 0);
    }

    #[test]
    fn what_was_given_up_of_an_observation_ends_it_no_more() {
        let versions = VersionSlots::new(8);
        let (a, b) = (versions.slot(1), versions.slot(2));
        // Versions other than zero, which a wrong sum could not tell from none.
        versions.invalidate(&[a, b, b]);
        let observe = || versions.observe_provisionally(&[a], Some(b));
        let observed = observe().expect("nothing pending");
        let (all, firm) = (observed.all(), &observed.firm());
        assert!(versions.is_current(all) && versions.is_current(firm));
        assert!(all.as_ref().slots().eq([a, b]) && firm.as_ref().slots().eq([a]));
        let write = versions.begin_write(&[b]);
        assert!(!versions.is_current(all) && versions.is_current(firm));
        let meanwhile = observe().expect("pending on what may be given up");
        write.finish();
        for observed in [&observed, &meanwhile] {
            assert!(!versions.is_current(observed.all()));
            assert!(versions.is_current(&observed.firm()));
        }
        let write = versions.begin_write(&[a]);
        assert!(observe().is_none(), "pending on what may not");
        write.finish();
        assert!(!versions.is_current(firm));
    }

    #[test]
    fn a_provisional_slot_that_is_also_a_firm_one_is_kept() {
        let versions = VersionSlots::new(8);
        let a = versions.slot(1);
        for provisional in [None, Some(a), Some(GLOBAL)] {
            let observed = versions.observe_provisionally(&[a], provisional);
            let firm = observed.expect("nothing pending").firm();
            assert!(versions.is_current(&firm));
            versions.invalidate(&[a]);
            assert!(!versions.is_current(&firm));
        }
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
    fn an_answer_from_elsewhere_must_hold_all_that_is_known_to_have_changed() {
        let versions = VersionSlots::new(8);
        let (a, b) = (versions.slot(1), versions.slot(2));
        assert!(versions.follow([7; 16], Position(100)));
        assert!(!versions.follow([8; 16], Position(100)), "another lineage");
        let is_current = |slot, position| versions.is_current_at(&[slot], Position(position));
        assert!(!is_current(a, 100), "what happened before is not known");
        versions.begin_fence().end(Position(100));
        assert!(is_current(a, 100));
        assert!(!is_current(a, 99), "older than what may have happened");
        assert!(!is_current(a, 101), "from the future");
        versions.invalidate_at(&[a], Position(150));
        versions.advance(Position(200));
        assert!(!is_current(a, 149) && is_current(a, 150) && is_current(b, 120));
        // A change without a position, until a fence says where it lies at most.
        versions.invalidate(&[b]);
        assert!(!is_current(b, 200));
        versions.invalidate_at(&[b], Position(160));
        assert!(
            !is_current(b, 200),
            "an older change that was told later places nothing"
        );
        let fence = versions.begin_fence();
        versions.invalidate(&[a]);
        fence.end(Position(190));
        assert!(!is_current(b, 189) && is_current(b, 190));
        assert!(!is_current(a, 200), "told after the fence began");
        let write = versions.begin_write(&[a]);
        assert!(!is_current(a, 200), "pending");
        drop(write);
        assert!(!is_current(a, 200), "not placed");
        versions.invalidate_all();
        assert!(!is_current(b, 200));
    }

    #[test]
    fn a_cache_on_its_own_counts() {
        let versions = VersionSlots::new(8);
        let (a, b) = (versions.slot(1), versions.slot(2));
        let before = versions.applied();
        versions.invalidate(&[a]);
        assert!(!versions.is_current_at(&[a], before));
        assert!(versions.is_current_at(&[b], before));
        assert!(versions.is_current_at(&[a, b], versions.applied()));
        assert_ne!(versions.lineage(), VersionSlots::new(8).lineage());
    }

    #[test]
    fn no_hash_leads_to_the_global_slot() {
        let versions = VersionSlots::new(1);
        assert!((0..100).all(|hash| versions.slot(hash) != GLOBAL));
    }
}
