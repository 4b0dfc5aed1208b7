//! An entry outside of this process: what a second tier or a file keeps of it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rapidhash::v3::{RapidSecrets, rapidhash_v3, rapidhash_v3_seeded};
use serde::{Deserialize, Serialize};

use crate::block::{Block, Facts};
use crate::clock::Moment;
use crate::lifetime::{Lifetime, Times};
use crate::types::{HashedStr, KeyRef};
use crate::version::{DependenciesRef, Lineage, Position, SlotId, VersionSlots};

/// An answer with all that another process has to know to serve it. Borrowed from a block, or from the bytes it was read
/// from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record<'a> {
    format: u8,
    /// The number of slots that the indices are of.
    slots_len: u32,
    slots: Vec<u32>,
    position: u64,
    cost_ms: f32,
    lifetime: Option<Remaining>,
    namespace: &'a str,
    text: &'a str,
    params: &'a [u8],
    value: &'a [u8],
}

/// Raised with each change of the fields.
const FORMAT: u8 = 1;

/// A [`Lifetime`] of which some has passed, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Remaining {
    /// By the wall clock, since 1970: clocks of different machines have nothing else in common.
    expires: Option<u64>,
    /// What was left when it was written: no clock that is set back makes it longer.
    at_most: u64,
    idle: Option<u32>,
    revalidate: u32,
    error: u32,
}

impl<'a> Record<'a> {
    pub(crate) fn new(
        block: &'a Block,
        position: Position,
        versions: &VersionSlots,
        now: Moment,
    ) -> Self {
        let key = block.key();
        Self {
            format: FORMAT,
            slots_len: u32::try_from(versions.len()).unwrap_or(u32::MAX),
            slots: block.dependencies().slots().map(SlotId::index).collect(),
            position: position.0,
            cost_ms: block.cost_ms(),
            lifetime: block.times().map(|times| Remaining::of(&times, now)),
            namespace: key.namespace(),
            text: key.query(),
            params: key.params(),
            value: block.value(),
        }
    }

    /// With a checksum at the end.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = postcard::to_stdvec(self).expect("it has a length, and no maps");
        let sum = rapidhash_v3(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// `None` if these are not the bytes of a record.
    pub(crate) fn from_bytes(bytes: &'a [u8]) -> Option<Self> {
        let (bytes, sum) = bytes.split_last_chunk()?;
        if u64::from_le_bytes(*sum) != rapidhash_v3(bytes) {
            return None;
        }
        let record: Self = postcard::from_bytes(bytes).ok()?;
        (record.format == FORMAT).then_some(record)
    }

    /// Is it the answer to this question? The identifier it was found under is a hash, and decides nothing.
    pub(crate) fn matches(&self, key: &KeyRef<'_>) -> bool {
        self.text == key.query()
            && *self.params == *key.params()
            && *self.namespace == **key.namespace()
    }

    /// What it depends on. `None` if the indices are of another array of slots.
    pub(crate) fn slots(&self, versions: &VersionSlots) -> Option<Vec<SlotId>> {
        if self.slots_len as usize != versions.len() {
            return None;
        }
        self.slots
            .iter()
            .map(|&slot| versions.slot_at(slot))
            .collect()
    }

    pub(crate) fn position(&self) -> Position {
        Position(self.position)
    }

    /// What is left of its life. `None` if nothing is.
    pub(crate) fn lifetime(&self) -> Option<Lifetime> {
        let Some(remaining) = self.lifetime else {
            return Some(Lifetime::default());
        };
        remaining.lifetime(unix_milliseconds())
    }

    /// The block that it was, with the dependencies that were observed before it was read. `None` if its time is over.
    pub(crate) fn to_block(&self, observed: DependenciesRef<'_>, now: Moment) -> Option<Block> {
        let namespace = HashedStr::new(self.namespace);
        let key = KeyRef::new(self.text, self.params, &namespace);
        let facts = Facts {
            dependencies: observed,
            times: Times::new(&self.lifetime()?, now, 0.0),
            cost_ms: f64::from(self.cost_ms),
            now,
        };
        Some(Block::new(&key, self.value, facts))
    }
}

impl Remaining {
    fn of(times: &Times, now: Moment) -> Self {
        let (left, idle, revalidate, error) = times.remaining(now);
        Self {
            expires: left.map(|left| unix_milliseconds().saturating_add(left)),
            at_most: left.unwrap_or(0),
            idle,
            revalidate,
            error,
        }
    }

    fn lifetime(self, now: u64) -> Option<Lifetime> {
        let ttl = match self.expires {
            Some(expires) => {
                let left = expires.saturating_sub(now).min(self.at_most);
                if left == 0 {
                    return None;
                }
                Some(Duration::from_millis(left))
            }
            None => None,
        };
        Some(Lifetime {
            ttl,
            idle: self.idle.map(|idle| Duration::from_millis(idle.into())),
            stale_while_revalidate: Duration::from_millis(self.revalidate.into()),
            stale_if_error: Duration::from_millis(self.error.into()),
        })
    }
}

/// Where a second tier keeps the answer to a question. Of another lineage or another array of slots it is another place.
pub(crate) fn identifier(key: &KeyRef<'_>, lineage: &Lineage, slots: usize) -> [u8; 16] {
    let mut bytes = Vec::with_capacity(key.params().len() + key.query().len() + 64);
    bytes.push(FORMAT);
    bytes.extend_from_slice(lineage);
    for part in [
        &slots.to_le_bytes()[..],
        key.namespace().as_bytes(),
        key.params(),
    ] {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part);
    }
    bytes.extend_from_slice(key.query().as_bytes());
    let mut identifier = [0; 16];
    for (half, seed) in identifier.chunks_exact_mut(8).zip([1, 2]) {
        let hash = rapidhash_v3_seeded(&bytes, &RapidSecrets::seed(seed));
        half.copy_from_slice(&hash.to_le_bytes());
    }
    identifier
}

fn unix_milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    crate::clock::milliseconds(since.unwrap_or_default())
}
