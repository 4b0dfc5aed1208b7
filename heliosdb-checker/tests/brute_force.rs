//! On small histories the checker says what trying all orders says.

use heliosdb_checker::checker::{Checker, Fate, Outcome, Promises, Read, Seen, Written};
use heliosdb_checker::history::{Family, Key, Level, Origin, Tag, Time, What};
use proptest::prelude::*;

const WHAT: What = What {
    statement: "any",
    form: "any",
};
const REGISTER: Key = Key {
    family: Family::Cell,
    number: 0,
};
const COMING: Key = Key {
    family: Family::Coming,
    number: 0,
};

/// An operation on one key. Times are different from each other.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Operation {
    start: u64,
    finish: u64,
    act: Act,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// Of a register.
    Read(u64),
    /// Of what comes and goes.
    Look(Option<u64>),
    Write {
        version: u64,
        is_known: bool,
    },
}

/// Is there an order in which every operation takes effect between its start and its end, writes make one version after
/// the other, and reads see the latest?
fn has_order(operations: &[Operation]) -> bool {
    fn go(operations: &[Operation], done: &mut Vec<bool>, version: u64) -> bool {
        let is_open = |n: usize| !done[n];
        let must = |n: usize| {
            !matches!(
                operations[n].act,
                Act::Write {
                    is_known: false,
                    ..
                }
            )
        };
        if (0..operations.len()).all(|n| done[n] || !must(n)) {
            return true;
        }
        // The next one must have started before any other ended. What nobody heard the end of never ended.
        let first_end = (0..operations.len())
            .filter(|n| is_open(*n) && must(*n))
            .map(|n| operations[n].finish)
            .min()
            .unwrap_or(u64::MAX);
        for n in 0..operations.len() {
            if done[n] || operations[n].start > first_end {
                continue;
            }
            let next = match operations[n].act {
                Act::Read(seen) => (seen == version).then_some(version),
                Act::Look(Some(seen)) => (seen == version).then_some(version),
                Act::Look(None) => version.is_multiple_of(2).then_some(version),
                Act::Write { version: makes, .. } => (makes == version + 1).then_some(makes),
            };
            let Some(next) = next else { continue };
            done[n] = true;
            let found = go(operations, done, next);
            done[n] = false;
            if found {
                return true;
            }
        }
        false
    }
    go(operations, &mut vec![false; operations.len()], 0)
}

/// The checker's word.
fn is_accepted(operations: &[Operation], key: Key) -> bool {
    let mut checker = Checker::new(Promises::default());
    let client = checker.join(Origin::Gateway, Level::Session);
    let mut events: Vec<(u64, bool, usize)> = operations
        .iter()
        .enumerate()
        .flat_map(|(n, operation)| [(operation.start, true, n), (operation.finish, false, n)])
        .collect();
    events.sort_unstable();
    let at = Time::from_nanos;
    let mut tags = vec![None; operations.len()];
    // Versions come in the order of their making: the tag of version n is that of the write that makes it.
    let mut tag_of: std::collections::HashMap<u64, Tag> = std::collections::HashMap::new();
    for (time, is_start, n) in events {
        let operation = &operations[n];
        match (operation.act, is_start) {
            (Act::Write { version, .. }, true) => {
                let makes = (key == COMING).then_some((key, version));
                let tag = checker.begin_write(client, Fate::Kept, makes, at(time));
                tags[n] = Some(tag);
                tag_of.insert(version, tag);
            }
            (Act::Write { version, is_known }, false) => {
                checker.end_write(
                    &Written {
                        tag: tags[n].expect("begun"),
                        what: WHAT,
                        start: at(operation.start),
                        made: vec![(key, version)],
                        outcome: if is_known {
                            Outcome::Committed
                        } else {
                            Outcome::Unknown
                        },
                    },
                    at(time),
                );
            }
            (Act::Read(_) | Act::Look(_), true) => {}
            (Act::Read(version), false) => {
                // A version whose write has not begun has a tag that nobody knows yet.
                let unknown = Tag::new(client, 1000);
                let tag = tag_of.get(&version).copied().unwrap_or(unknown);
                let recent = if version == 0 { Vec::new() } else { vec![tag] };
                let seen = Seen::Register {
                    key,
                    versions: vec![version],
                    recent,
                };
                read(&mut checker, client, operation.start, time, seen);
            }
            (Act::Look(version), false) => {
                let seen = Seen::Presence {
                    key,
                    version,
                    tag: None,
                };
                read(&mut checker, client, operation.start, time, seen);
            }
        }
    }
    checker.violations().is_empty()
}

fn read(checker: &mut Checker, client: u32, start: u64, finish: u64, seen: Seen) {
    let read = Read {
        client,
        what: WHAT,
        start: Time::from_nanos(start),
        seen: vec![seen],
        chain: None,
    };
    checker.read(&read, Time::from_nanos(finish));
}

/// Writes of versions 1 to n by anybody, and reads, at any times.
fn registers() -> impl Strategy<Value = Vec<Operation>> {
    (0..4_usize, 1..5_usize)
        .prop_flat_map(|(writes, reads)| {
            let versions = prop::collection::vec(0..=writes as u64, reads);
            let known = prop::collection::vec(prop::bool::weighted(0.8), writes);
            let times = Just((0..2 * (writes + reads) as u64).collect::<Vec<_>>()).prop_shuffle();
            (versions, known, times)
        })
        .prop_map(|(versions, known, times)| {
            let writes = (1..)
                .zip(known)
                .map(|(version, is_known)| Act::Write { version, is_known });
            let reads = versions.into_iter().map(Act::Read);
            with_times(writes.chain(reads).collect(), &times)
        })
}

/// Writes one after the other, as by an owner, and looks at any times. Only the last write may be of unknown outcome: after
/// it the owner takes another row.
fn comings() -> impl Strategy<Value = Vec<Operation>> {
    (1..5_usize, 1..5_usize)
        .prop_flat_map(|(writes, looks)| {
            let seen =
                prop::collection::vec(prop::option::of(0..=(writes as u64).div_ceil(2)), looks);
            let times = Just((0..2 * (writes + looks) as u64).collect::<Vec<_>>()).prop_shuffle();
            (Just(writes), prop::bool::weighted(0.7), seen, times)
        })
        .prop_map(|(writes, is_known, seen, times)| {
            let (own, others) = times.split_at(2 * writes);
            let mut own = own.to_vec();
            own.sort_unstable();
            let acts = (1..=writes as u64).map(|version| Act::Write {
                version,
                is_known: is_known || version < writes as u64,
            });
            let mut operations = with_times(acts.collect(), &own);
            let looks = seen
                .into_iter()
                .map(|seen| Act::Look(seen.map(|n| 2 * n + 1)));
            operations.extend(with_times(looks.collect(), others));
            operations
        })
}

fn with_times(acts: Vec<Act>, times: &[u64]) -> Vec<Operation> {
    let pairs = times.chunks_exact(2);
    let operation = |(act, pair): (Act, &[u64])| Operation {
        start: pair[0].min(pair[1]) + 1,
        finish: pair[0].max(pair[1]) + 1,
        act,
    };
    acts.into_iter().zip(pairs).map(operation).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_register_is_accepted_if_and_only_if_it_has_an_order(operations in registers()) {
        prop_assert_eq!(is_accepted(&operations, REGISTER), has_order(&operations));
    }

    #[test]
    fn what_comes_and_goes_is_accepted_if_and_only_if_it_has_an_order(operations in comings()) {
        prop_assert_eq!(is_accepted(&operations, COMING), has_order(&operations));
    }
}
