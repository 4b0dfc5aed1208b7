//! Histories made by hand: each check refuses what it is there for, and takes what looks like it and is right.

use std::time::Duration;

use heliosdb_checker::checker::{Checker, Fate, Outcome, Promises, Read, Seen, Written};
use heliosdb_checker::history::{ClientId, Family, Key, Level, Origin, Tag, Time, What};
use heliosdb_checker::violation::Kind;

const KEY: Key = Key {
    family: Family::Group,
    number: 7,
};
const COMING: Key = Key {
    family: Family::Coming,
    number: 3,
};
const WHAT: What = What {
    statement: "by hand",
    form: "on paper",
};

/// A history in milliseconds.
struct History {
    checker: Checker,
}

fn at(ms: u64) -> Time {
    Time::from_nanos(ms * 1_000_000)
}

impl History {
    fn new() -> Self {
        Self::promising(Promises::default())
    }

    fn promising(promises: Promises) -> Self {
        Self {
            checker: Checker::new(promises),
        }
    }

    fn client(&mut self) -> ClientId {
        self.checker.join(Origin::Gateway, Level::Session)
    }

    fn begin(&mut self, client: ClientId, start: u64) -> Tag {
        self.checker
            .begin_write(client, Fate::Kept, None, at(start))
    }

    fn end(&mut self, tag: Tag, version: u64, start: u64, finish: u64, outcome: Outcome) {
        let write = Written {
            tag,
            what: WHAT,
            start: at(start),
            made: vec![(KEY, version)],
            outcome,
        };
        self.checker.end_write(&write, at(finish));
    }

    /// A write of one millisecond.
    fn write(&mut self, client: ClientId, version: u64, start: u64) -> Tag {
        let tag = self.begin(client, start);
        self.end(tag, version, start, start + 1, Outcome::Committed);
        tag
    }

    fn read_seen(
        &mut self,
        client: ClientId,
        start: u64,
        finish: u64,
        seen: Vec<Seen>,
        chain: Option<u16>,
    ) {
        let read = Read {
            client,
            what: WHAT,
            start: at(start),
            seen,
            chain,
        };
        self.checker.read(&read, at(finish));
    }

    fn read(&mut self, client: ClientId, version: u64, start: u64, finish: u64) {
        self.read_tags(client, version, &[], start, finish);
    }

    fn read_tags(
        &mut self,
        client: ClientId,
        version: u64,
        recent: &[Tag],
        start: u64,
        finish: u64,
    ) {
        let seen = Seen::Register {
            key: KEY,
            versions: vec![version],
            recent: recent.to_vec(),
        };
        self.read_seen(client, start, finish, vec![seen], None);
    }

    fn read_coming(&mut self, client: ClientId, version: Option<u64>, start: u64, finish: u64) {
        let seen = Seen::Presence {
            key: COMING,
            version,
            tag: None,
        };
        self.read_seen(client, start, finish, vec![seen], None);
    }

    fn come_or_go(&mut self, client: ClientId, version: u64, start: u64) {
        let tag = self
            .checker
            .begin_write(client, Fate::Kept, Some((COMING, version)), at(start));
        let write = Written {
            tag,
            what: WHAT,
            start: at(start),
            made: vec![(COMING, version)],
            outcome: Outcome::Committed,
        };
        self.checker.end_write(&write, at(start + 1));
    }

    #[track_caller]
    fn expect(&self, kinds: &[Kind]) {
        let found: Vec<Kind> = self
            .checker
            .violations()
            .iter()
            .map(|found| found.kind)
            .collect();
        assert_eq!(found, kinds, "{:#?}", self.checker.violations());
    }
}

#[test]
fn a_read_that_overlaps_a_write_may_see_it_or_not() {
    let mut history = History::new();
    let (writer, reader) = (history.client(), history.client());
    history.write(writer, 1, 10);
    let tag = history.begin(writer, 20);
    history.read(reader, 1, 15, 25);
    history.read(reader, 2, 22, 28);
    history.end(tag, 2, 20, 30, Outcome::Committed);
    // It began before the write was acknowledged and before anybody was told of it.
    history.read(reader, 1, 27, 40);
    history.expect(&[]);
}

#[test]
fn stale_read() {
    let mut history = History::new();
    let (writer, reader) = (history.client(), history.client());
    history.write(writer, 1, 10);
    history.write(writer, 2, 20);
    history.read(reader, 1, 22, 30);
    history.expect(&[Kind::StaleRead]);
    let evidence = &history.checker.violations()[0].evidence;
    assert!(
        evidence.contains("version 1 was read, and version 2 was known"),
        "{evidence}"
    );
    assert!(
        evidence.contains("[0.022000 .. 0.030000] saw version 1"),
        "{evidence}"
    );
    assert!(
        evidence.contains("[0.020000 .. 0.021000] made version 2"),
        "{evidence}"
    );
}

#[test]
fn what_one_reader_saw_the_next_must_see_though_the_write_goes_on() {
    let mut history = History::new();
    let (writer, one, other) = (history.client(), history.client(), history.client());
    history.write(writer, 1, 10);
    let tag = history.begin(writer, 20);
    history.read(one, 2, 21, 22);
    history.read(other, 1, 23, 24);
    history.end(tag, 2, 20, 30, Outcome::Committed);
    history.expect(&[Kind::StaleRead]);
}

#[test]
fn a_client_does_not_go_back() {
    let mut history = History::new();
    let (writer, reader) = (history.client(), history.client());
    history.write(writer, 1, 10);
    let tag = history.begin(writer, 20);
    history.read(reader, 2, 21, 22);
    history.read(reader, 1, 23, 24);
    history.end(tag, 2, 20, 30, Outcome::Committed);
    history.expect(&[Kind::MonotonicRead]);
}

#[test]
fn a_client_sees_what_it_wrote() {
    let mut history = History::new();
    let writer = history.client();
    history.write(writer, 1, 10);
    history.read(writer, 0, 20, 21);
    history.expect(&[Kind::ReadYourWrites]);
}

#[test]
fn a_write_of_unknown_outcome_binds_nobody_until_it_is_seen() {
    let mut history = History::new();
    let (writer, reader) = (history.client(), history.client());
    history.write(writer, 1, 10);
    let tag = history.begin(writer, 20);
    history.end(tag, 2, 20, 30, Outcome::Unknown);
    history.read(reader, 1, 40, 41);
    history.read(reader, 2, 50, 51);
    history.expect(&[]);
    history.read(reader, 1, 60, 61);
    history.expect(&[Kind::MonotonicRead]);
}

#[test]
fn the_version_of_a_write_of_unknown_outcome_may_become_anothers() {
    let mut history = History::new();
    let (writer, reader) = (history.client(), history.client());
    let lost = history.begin(writer, 20);
    history.end(lost, 1, 20, 30, Outcome::Unknown);
    let tag = history.write(reader, 1, 40);
    history.read_tags(reader, 1, &[tag], 50, 51);
    history.expect(&[]);
}

#[test]
fn a_lost_update_shows_as_two_makers_of_a_version() {
    let mut history = History::new();
    let (writer, reader) = (history.client(), history.client());
    let one = history.begin(writer, 10);
    let other = history.begin(reader, 10);
    history.read_tags(reader, 1, &[one], 12, 13);
    history.end(other, 1, 10, 20, Outcome::Committed);
    history.expect(&[Kind::Diverged]);
}

#[test]
fn an_update_that_was_visible_and_then_is_gone() {
    let mut history = History::new();
    let (writer, reader) = (history.client(), history.client());
    let one = history.write(writer, 1, 10);
    let two = history.write(writer, 2, 20);
    history.read_tags(reader, 2, &[one, two], 30, 31);
    let three = history.begin(reader, 40);
    // Version 2 names another maker than before.
    history.read_tags(reader, 3, &[one, three, three], 41, 42);
    history.expect(&[Kind::Diverged]);
}

#[test]
fn what_is_rolled_back_is_never_seen() {
    let mut history = History::new();
    let (writer, reader) = (history.client(), history.client());
    let tag = history.begin(writer, 10);
    history.read_tags(reader, 1, &[tag], 12, 13);
    history.expect(&[]);
    history.end(tag, 1, 10, 20, Outcome::Aborted);
    history.expect(&[Kind::AbortedRead]);
    history.read_tags(reader, 1, &[tag], 30, 31);
    history.expect(&[Kind::AbortedRead; 2]);
    let doomed = history
        .checker
        .begin_write(writer, Fate::Doomed, None, at(40));
    history.read_tags(reader, 2, &[tag, doomed], 41, 42);
    assert!(history.checker.violations().len() > 2);
}

#[test]
fn what_is_overwritten_in_its_transaction_is_never_the_last() {
    let mut history = History::new();
    let (writer, reader) = (history.client(), history.client());
    let first = history
        .checker
        .begin_write(writer, Fate::Overwritten, None, at(10));
    let second = history.begin(writer, 11);
    history.read_tags(reader, 2, &[first, second], 12, 13);
    history.expect(&[]);
    let third = history
        .checker
        .begin_write(writer, Fate::Overwritten, None, at(20));
    history.read_tags(reader, 3, &[second, third], 21, 22);
    history.expect(&[Kind::IntermediateRead]);
}

#[test]
fn what_nobody_wrote_is_not_read() {
    let mut history = History::new();
    let reader = history.client();
    history.read_tags(reader, 1, &[Tag::new(reader, 0)], 12, 13);
    history.expect(&[Kind::FromNowhere]);
}

#[test]
fn a_write_builds_on_what_was_known() {
    let mut history = History::new();
    let (one, other) = (history.client(), history.client());
    history.write(one, 1, 10);
    history.write(one, 2, 20);
    history.write(other, 2, 30);
    history.expect(&[Kind::WriteOrder, Kind::Diverged]);
}

#[test]
fn a_torn_group() {
    let mut history = History::new();
    let reader = history.client();
    let seen = Seen::Register {
        key: KEY,
        versions: vec![4, 4, 3],
        recent: Vec::new(),
    };
    history.read_seen(reader, 10, 11, vec![seen], None);
    history.expect(&[Kind::Torn]);
}

#[test]
fn a_long_fork() {
    let mut history = History::new();
    let reader = history.client();
    let answer = |versions: [u64; 2]| -> Vec<Seen> {
        let seen = |(number, version): (u32, &u64)| Seen::Register {
            key: Key {
                family: Family::Cell,
                number,
            },
            versions: vec![*version],
            recent: Vec::new(),
        };
        (0..).zip(&versions).map(seen).collect()
    };
    // All of them overlap: no read comes before another.
    history.read_seen(reader, 10, 20, answer([1, 1]), Some(0));
    history.read_seen(reader, 10, 21, answer([2, 1]), Some(0));
    history.read_seen(reader, 10, 22, answer([2, 2]), Some(0));
    history.read_seen(reader, 10, 23, answer([1, 1]), Some(0));
    history.expect(&[]);
    history.read_seen(reader, 10, 24, answer([1, 2]), Some(0));
    history.expect(&[Kind::LongFork]);
}

#[test]
fn an_answer_may_be_as_old_as_it_is_allowed_and_not_older() {
    let mut history = History::promising(Promises {
        max_lag: Duration::ZERO,
        max_age: Duration::from_millis(100),
    });
    let writer = history.client();
    let reader = history.checker.join(Origin::Gateway, Level::Bounded);
    history.write(writer, 1, 10);
    history.read(reader, 0, 110, 130);
    history.expect(&[]);
    history.read(reader, 0, 112, 140);
    history.expect(&[Kind::TooOld]);
}

#[test]
fn a_write_elsewhere_shows_after_the_lag_and_one_through_the_gateway_at_once() {
    let mut history = History::promising(Promises {
        max_lag: Duration::from_millis(100),
        max_age: Duration::ZERO,
    });
    let elsewhere = history.checker.join(Origin::Direct, Level::Server);
    let (writer, reader) = (history.client(), history.client());
    history.write(writer, 1, 10);
    history.write(elsewhere, 2, 20);
    history.read(reader, 1, 110, 111);
    // That it was seen does not bring the end of its time nearer.
    history.read(elsewhere, 2, 112, 113);
    history.expect(&[]);
    history.read(reader, 1, 122, 123);
    history.expect(&[Kind::TooOld]);
    history.read(reader, 0, 124, 125);
    assert_eq!(history.checker.violations().len(), 2);
    // A later write through the gateway holds the one elsewhere.
    history.write(writer, 3, 130);
    history.read(reader, 2, 132, 133);
    assert_eq!(history.checker.violations()[2].kind, Kind::StaleRead);
}

#[test]
fn level_strict_allows_no_lag() {
    let mut history = History::promising(Promises {
        max_lag: Duration::from_millis(100),
        max_age: Duration::ZERO,
    });
    let elsewhere = history.checker.join(Origin::Direct, Level::Server);
    let reader = history.checker.join(Origin::Gateway, Level::Strict);
    history.write(elsewhere, 1, 20);
    history.read(reader, 0, 22, 23);
    history.expect(&[Kind::StaleRead]);
}

#[test]
fn what_comes_and_goes() {
    let mut history = History::new();
    let (owner, reader) = (history.client(), history.client());
    history.read_coming(reader, None, 5, 6);
    history.come_or_go(owner, 1, 10);
    history.read_coming(reader, Some(1), 12, 13);
    history.come_or_go(owner, 2, 20);
    history.read_coming(reader, None, 22, 23);
    history.expect(&[]);
    history.read_coming(reader, Some(1), 24, 25);
    history.expect(&[Kind::StaleRead]);
    history.come_or_go(owner, 3, 30);
    history.read_coming(reader, None, 32, 33);
    history.expect(&[Kind::StaleRead; 2]);
    history.read_coming(reader, Some(5), 34, 35);
    assert_eq!(history.checker.violations()[2].kind, Kind::FromNowhere);
}

#[test]
fn an_absence_is_of_the_oldest_time_that_it_can_be() {
    let mut history = History::new();
    let (owner, reader) = (history.client(), history.client());
    history.come_or_go(owner, 1, 10);
    history.come_or_go(owner, 2, 20);
    // Under way at once: present or not.
    let tags: Vec<Tag> = [3, 4]
        .into_iter()
        .map(|version| {
            history
                .checker
                .begin_write(owner, Fate::Kept, Some((COMING, version)), at(30))
        })
        .collect();
    assert_eq!(tags.len(), 2);
    history.read_coming(reader, None, 31, 32);
    history.read_coming(reader, Some(3), 33, 34);
    history.read_coming(reader, None, 35, 36);
    history.expect(&[]);
    history.read_coming(reader, Some(3), 37, 38);
    history.expect(&[Kind::MonotonicRead]);
}

#[test]
fn a_row_of_the_log_stays() {
    let mut history = History::new();
    let reader = history.client();
    let key = Key {
        family: Family::Log,
        number: 9,
    };
    let tag = history.begin(reader, 1);
    let mut read = |version: Option<u64>, start| {
        let tag = version.map(|_| tag);
        let seen = Seen::Presence { key, version, tag };
        history.read_seen(reader, start, start + 1, vec![seen], None);
    };
    read(None, 10);
    read(Some(1), 20);
    read(None, 30);
    history.expect(&[Kind::MonotonicRead]);
}

#[test]
fn a_transaction_sees_its_own_writes() {
    let mut history = History::new();
    let writer = history.client();
    let tag = history.begin(writer, 10);
    history
        .checker
        .own_read(writer, WHAT, (KEY, 5, tag), Some((5, Some(tag))));
    history
        .checker
        .own_read(writer, WHAT, (KEY, 5, tag), Some((5, None)));
    history.expect(&[]);
    history
        .checker
        .own_read(writer, WHAT, (KEY, 5, tag), Some((4, None)));
    history.checker.own_read(writer, WHAT, (KEY, 5, tag), None);
    history.expect(&[Kind::TransactionRead; 2]);
}
