//! The checks: pure, without a clock, fed with operations in the order of their ends.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use crate::history::{ClientId, Family, Key, Level, Origin, Tag, Time, What, Witness};
use crate::register::Register;
use crate::violation::{Kind, Violation};

/// The bounds that helios promises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "plain values")]
pub struct Promises {
    /// After how long a write made elsewhere shows at level `session`. Zero where there are none.
    pub max_lag: Duration,
    /// How old an answer may be at level `bounded`.
    pub max_age: Duration,
}

/// What a client says about a write before it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a write does one of these")]
pub enum Fate {
    /// It will be rolled back.
    Doomed,
    /// It is to stay.
    Kept,
    /// The same transaction will write the same rows again.
    Overwritten,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there is no fourth")]
pub enum Outcome {
    /// The server said that it is not there.
    Aborted,
    /// The server said that it is there.
    Committed,
    /// Nobody said.
    Unknown,
}

/// A key as an answer shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the kinds of keys")]
pub enum Seen {
    /// Of a row that comes and goes.
    Presence {
        /// Which.
        key: Key,
        /// The version that the row names; `None` if there was no row.
        version: Option<u64>,
        /// Who made it, if the row says so.
        tag: Option<Tag>,
    },
    /// Of rows that are changed together.
    Register {
        /// Which.
        key: Key,
        /// The version, as often as the answer shows it.
        versions: Vec<u64>,
        /// The makers of the latest versions, that of the newest last, if the answer shows them.
        recent: Vec<Tag>,
    },
}

impl Seen {
    fn key(&self) -> Key {
        match self {
            Self::Presence { key, .. } | Self::Register { key, .. } => *key,
        }
    }
}

/// An answer.
#[derive(Debug, Clone)]
#[expect(clippy::exhaustive_structs, reason = "plain values")]
pub struct Read {
    /// Who asked.
    pub client: ClientId,
    /// What.
    pub what: What,
    /// Before the request was sent.
    pub start: Time,
    /// What the answer shows.
    pub seen: Vec<Seen>,
    /// The answer shows the same keys as all others of that number, in the same order.
    pub chain: Option<u16>,
}

/// A write that is over.
#[derive(Debug, Clone)]
#[expect(clippy::exhaustive_structs, reason = "plain values")]
pub struct Written {
    /// What it left in the rows. Names the client too.
    pub tag: Tag,
    /// How.
    pub what: What,
    /// Before the first request was sent.
    pub start: Time,
    /// The versions that it made, as far as the client was told of them.
    pub made: Vec<(Key, u64)>,
    /// What became of it.
    pub outcome: Outcome,
}

/// How much was checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Answers of helios.
    pub reads: u64,
    /// Answers of the server itself.
    pub direct_reads: u64,
    /// Keys that the answers showed.
    pub seen: u64,
    /// Writes that were acknowledged.
    pub committed: u64,
    /// Writes that were rolled back.
    pub aborted: u64,
    /// Writes whose outcome nobody told.
    pub unknown: u64,
    /// Answers that took longer than is remembered, and were not checked.
    pub too_slow: u64,
}

/// Checks a history as it is made.
///
/// Operations are told in the order of their ends: `now` never goes back.
#[derive(Debug)]
pub struct Checker {
    promises: Promises,
    clients: Vec<Client>,
    registers: HashMap<Key, Register>,
    chains: HashMap<u16, BTreeMap<u64, Snapshot>>,
    violations: Vec<Violation>,
    counts: Counts,
    swept: Time,
}

#[derive(Debug)]
struct Client {
    origin: Origin,
    level: Level,
    /// The latest, up to the one with the highest number.
    writes: VecDeque<Record>,
    begun: u32,
}

#[derive(Debug)]
struct Record {
    fate: Fate,
    start: Time,
    is_aborted: bool,
    /// Who saw it first.
    seen: Option<Box<(Key, Witness)>>,
}

/// The versions in one answer.
#[derive(Debug)]
struct Snapshot {
    versions: Arc<[u64]>,
    witness: Witness,
}

impl Checker {
    /// With nothing known.
    #[must_use]
    pub fn new(promises: Promises) -> Self {
        Self {
            promises,
            clients: Vec::new(),
            registers: HashMap::new(),
            chains: HashMap::new(),
            violations: Vec::new(),
            counts: Counts::default(),
            swept: Time::default(),
        }
    }

    /// A new client.
    ///
    /// # Panics
    /// If there are 2^32 already.
    pub fn join(&mut self, origin: Origin, level: Level) -> ClientId {
        let id = ClientId::try_from(self.clients.len()).expect("fewer clients than that");
        self.clients.push(Client {
            origin,
            level,
            writes: VecDeque::new(),
            begun: 0,
        });
        id
    }

    /// What was found so far.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// How much was checked so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// A client is about to write. `makes` are the versions that it will make where that is known in advance: the only
    /// client that writes a key knows.
    pub fn begin_write(
        &mut self,
        client: ClientId,
        fate: Fate,
        makes: Option<(Key, u64)>,
        now: Time,
    ) -> Tag {
        let horizon = self.horizon(now);
        let writer = &mut self.clients[client as usize];
        let tag = Tag::new(client, writer.begun);
        writer.begun += 1;
        writer.writes.push_back(Record {
            fate,
            start: now,
            is_aborted: false,
            seen: None,
        });
        while writer.writes.len() > RECORDS_MIN
            && writer
                .writes
                .front()
                .is_some_and(|record| record.start < horizon)
        {
            writer.writes.pop_front();
        }
        if let Some((key, version)) = makes {
            self.registers.entry(key).or_default().begin(version);
        }
        tag
    }

    /// A write is over.
    pub fn end_write(&mut self, write: &Written, now: Time) {
        let client = write.tag.client();
        match write.outcome {
            Outcome::Aborted => self.counts.aborted += 1,
            Outcome::Committed => self.counts.committed += 1,
            Outcome::Unknown => self.counts.unknown += 1,
        }
        if write.outcome == Outcome::Aborted {
            let seen = self.record(write.tag).and_then(|record| {
                record.is_aborted = true;
                record.seen.take()
            });
            if let Some(seen) = seen {
                let (key, witness) = *seen;
                let headline = format!("{key}: what {} wrote was seen and rolled back", write.tag);
                self.violate(Kind::AbortedRead, &headline, &[&witness]);
            }
            return;
        }
        let horizon = self.horizon(now);
        for (key, version) in &write.made {
            let witness = Witness {
                client,
                what: write.what,
                is_write: true,
                start: write.start,
                finish: now,
                version: *version,
            };
            let register = self.registers.entry(*key).or_default();
            register.touched = now;
            // The server locked the row after the write had begun: it saw all that was there by then.
            if let Some(known) = register.floor(write.start, write.start)
                && known.version >= *version
            {
                let known = *known;
                let headline = format!(
                    "{key}: version {} was known before the write of version {version} began",
                    known.version
                );
                self.violate(Kind::WriteOrder, &headline, &[&witness, &known]);
            }
            if write.outcome == Outcome::Committed {
                self.claim(*key, *version, write.tag, witness);
                let origin = self.clients[client as usize].origin;
                let register = self.registers.entry(*key).or_default();
                register.show(witness, origin, horizon);
            }
        }
    }

    /// An answer came.
    pub fn read(&mut self, read: &Read, now: Time) {
        self.sweep(now);
        self.count_read(read.client);
        let horizon = self.horizon(now);
        if read.start < horizon {
            self.counts.too_slow += 1;
            return;
        }
        let mut snapshot = Vec::with_capacity(read.seen.len());
        for seen in &read.seen {
            self.counts.seen += 1;
            let witness = |version| Witness {
                client: read.client,
                what: read.what,
                is_write: false,
                start: read.start,
                finish: now,
                version,
            };
            let key = seen.key();
            let version = match seen {
                Seen::Register {
                    versions, recent, ..
                } => {
                    let Some(newest) = versions.iter().copied().max() else {
                        continue;
                    };
                    let witness = witness(newest);
                    if versions.iter().any(|version| *version != newest) {
                        let headline = format!("{key}: one answer shows the versions {versions:?}");
                        self.violate(Kind::Torn, &headline, &[&witness]);
                    }
                    self.check_makers(key, newest, recent, witness);
                    newest
                }
                Seen::Presence { version, tag, .. } => {
                    if let (Some(version), Some(tag)) = (version, tag) {
                        self.check_makers(key, *version, &[*tag], witness(*version));
                    }
                    self.presence(key, *version, read)
                }
            };
            snapshot.push(version);
            self.check_floor(key, witness(version), read.client, horizon);
        }
        if let Some(chain) = read.chain {
            let witness = Witness {
                client: read.client,
                what: read.what,
                is_write: false,
                start: read.start,
                finish: now,
                version: snapshot.iter().sum(),
            };
            self.check_chain(chain, snapshot, witness, horizon);
        }
    }

    /// A transaction read a key after it wrote it. `seen` is what it saw of its own write: the version and the tag.
    pub fn own_read(
        &mut self,
        client: ClientId,
        what: What,
        expected: (Key, u64, Tag),
        seen: Option<(u64, Option<Tag>)>,
    ) {
        self.count_read(client);
        let (key, version, tag) = expected;
        let is_own =
            seen.is_some_and(|(seen, by)| seen == version && by.is_none_or(|by| by == tag));
        if !is_own {
            let seen = match seen {
                Some((version, Some(by))) => format!("version {version} of {by}"),
                Some((version, None)) => format!("version {version}"),
                None => "nothing".to_owned(),
            };
            let headline = format!(
                "{key}: client {client} had written version {version} ({tag}) in this transaction, and {what} shows {seen}"
            );
            self.violate(Kind::TransactionRead, &headline, &[]);
        }
    }

    /// Something that has one value for ever had another.
    pub fn constant_changed(
        &mut self,
        client: ClientId,
        what: What,
        kind: Kind,
        expected: &str,
        found: &str,
    ) {
        let headline = format!("client {client}, {what}: {found}, and not {expected}");
        self.violate(kind, &headline, &[]);
    }

    fn count_read(&mut self, client: ClientId) {
        match self.clients[client as usize].origin {
            Origin::Direct => self.counts.direct_reads += 1,
            Origin::Gateway => self.counts.reads += 1,
        }
    }

    /// An answer must show everything that was known when it was asked for, as far as its level says so.
    fn check_floor(&mut self, key: Key, witness: Witness, client: ClientId, horizon: Time) {
        let (gateway, direct) = self.delays(client);
        let register = self.registers.entry(key).or_default();
        register.touched = witness.finish;
        let floor = register
            .floor(witness.start.before(gateway), witness.start.before(direct))
            .copied();
        let maker = register.maker(witness.version);
        if let Some(known) = floor
            && known.version > witness.version
        {
            let known_maker = self
                .registers
                .get(&key)
                .and_then(|register| register.maker(known.version));
            let delay = match known_maker.map(|tag| self.origin(tag)) {
                Some(Origin::Direct) | None => direct,
                Some(Origin::Gateway) => gateway,
            };
            let kind = match (delay.is_zero(), known.client == client, known.is_write) {
                (false, ..) => Kind::TooOld,
                (true, true, true) => Kind::ReadYourWrites,
                (true, true, false) => Kind::MonotonicRead,
                (true, false, _) => Kind::StaleRead,
            };
            let by = if delay.is_zero() {
                String::new()
            } else {
                format!(
                    "; {} had passed, and {} are allowed",
                    humantime::format_duration(witness.start.since(known.finish)),
                    humantime::format_duration(delay)
                )
            };
            let headline = format!(
                "{key}: version {} was read, and version {} was known before the read began{by}",
                witness.version, known.version
            );
            self.violate(kind, &headline, &[&witness, &known]);
        }
        // Who made it is not known while its write is under way: the later bound, then.
        let origin = maker.map_or(Origin::Direct, |tag| self.origin(tag));
        if let Some(register) = self.registers.get_mut(&key) {
            register.show(witness, origin, horizon);
        }
    }

    /// The version that an answer shows of something that comes and goes. An absence is taken for the oldest that it can be:
    /// no other asks less of what follows.
    fn presence(&mut self, key: Key, version: Option<u64>, read: &Read) -> u64 {
        let (gateway, direct) = self.delays(read.client);
        let register = self.registers.entry(key).or_default();
        if key.family == Family::Log {
            register.begin(1);
        }
        let floor = register
            .floor(read.start.before(gateway), read.start.before(direct))
            .map_or(0, |known| known.version);
        let newest = version.unwrap_or_else(|| floor.next_multiple_of(2));
        if register.has_begun(newest) {
            return newest;
        }
        if version.is_none() {
            // It is there, and nobody has begun to delete it: older than what was known.
            return newest.saturating_sub(2);
        }
        let headline = format!(
            "{key}: client {} read version {newest} by {}, which nobody had begun to write",
            read.client, read.what
        );
        self.violate(Kind::FromNowhere, &headline, &[]);
        newest
    }

    /// `recent` are the makers of the versions up to `newest`.
    fn check_makers(&mut self, key: Key, newest: u64, recent: &[Tag], witness: Witness) {
        for (age, tag) in recent.iter().rev().enumerate() {
            let Some(version) = newest
                .checked_sub(age as u64)
                .filter(|version| *version > 0)
            else {
                let headline = format!("{key}: version {newest} names {} makers", recent.len());
                self.violate(Kind::Diverged, &headline, &[&witness]);
                return;
            };
            let known = self.registers.get(&key);
            if known.is_some_and(|known| known.maker(version) == Some(*tag)) && age > 0 {
                // Checked when it was claimed.
                continue;
            }
            self.check_tag(key, *tag, age == 0, witness);
            if known_or_new(self.registers.get(&key), version) {
                self.claim(key, version, *tag, witness);
            }
        }
    }

    /// What a row says that wrote it must have begun, and must not be on its way out.
    fn check_tag(&mut self, key: Key, tag: Tag, is_last: bool, witness: Witness) {
        let begun = self
            .clients
            .get(tag.client() as usize)
            .map_or(0, |client| client.begun);
        if tag.number() >= begun {
            let headline = format!("{key}: {tag} was read before it was written");
            self.violate(Kind::FromNowhere, &headline, &[&witness]);
            return;
        }
        let Some(record) = self.record(tag) else {
            return;
        };
        if record.seen.is_none() {
            record.seen = Some(Box::new((key, witness)));
        }
        let kind = match record.fate {
            _ if record.is_aborted => Kind::AbortedRead,
            Fate::Doomed => Kind::AbortedRead,
            Fate::Overwritten if is_last => Kind::IntermediateRead,
            Fate::Kept | Fate::Overwritten => return,
        };
        let headline = format!("{key}: {tag} was never to be seen");
        self.violate(kind, &headline, &[&witness]);
    }

    fn claim(&mut self, key: Key, version: u64, tag: Tag, witness: Witness) {
        let register = self.registers.entry(key).or_default();
        if let Some((other, known)) = register.claim(version, tag, witness) {
            let headline =
                format!("{key}: version {version} is of {tag} here and of {other} there");
            self.violate(Kind::Diverged, &headline, &[&witness, &known]);
        }
    }

    /// Answers over the same rows are states of one order: of any two, one holds all that the other holds.
    fn check_chain(&mut self, chain: u16, versions: Vec<u64>, witness: Witness, horizon: Time) {
        let total = witness.version;
        let snapshots = self.chains.entry(chain).or_default();
        let is_within = |older: &Snapshot, newer: &[u64]| {
            older.versions.len() == newer.len()
                && older
                    .versions
                    .iter()
                    .zip(newer)
                    .all(|(older, newer)| older <= newer)
        };
        let mut forked = None;
        if let Some((_, older)) = snapshots.range(..=total).next_back()
            && !is_within(older, &versions)
        {
            forked = Some(older.witness);
        }
        let snapshot = Snapshot {
            versions: versions.into(),
            witness,
        };
        if let Some((_, newer)) = snapshots.range(total + 1..).next()
            && !is_within(&snapshot, &newer.versions)
        {
            forked = Some(newer.witness);
        }
        snapshots.entry(total).or_insert(snapshot);
        while snapshots.len() > SNAPSHOTS_MIN
            && snapshots
                .first_key_value()
                .is_some_and(|(_, first)| first.witness.finish < horizon)
        {
            snapshots.pop_first();
        }
        if let Some(other) = forked {
            let headline =
                "of two answers over the same keys, each shows a write that the other lacks";
            self.violate(Kind::LongFork, headline, &[&witness, &other]);
        }
    }

    fn record(&mut self, tag: Tag) -> Option<&mut Record> {
        let client = self.clients.get_mut(tag.client() as usize)?;
        let newer = client.begun.checked_sub(tag.number())? as usize;
        let place = client.writes.len().checked_sub(newer)?;
        client.writes.get_mut(place)
    }

    /// After how long a version must show in a client's reads, by the origin of the write that made it.
    fn delays(&self, client: ClientId) -> (Duration, Duration) {
        match self.clients[client as usize].level {
            Level::Bounded => (self.promises.max_age, self.promises.max_age),
            Level::Session => (Duration::ZERO, self.promises.max_lag),
            Level::Server | Level::Strict => (Duration::ZERO, Duration::ZERO),
        }
    }

    fn origin(&self, tag: Tag) -> Origin {
        self.clients
            .get(tag.client() as usize)
            .map_or(Origin::Direct, |client| client.origin)
    }

    /// Operations that began before are not checked any more.
    fn horizon(&self, now: Time) -> Time {
        now.before(REMEMBERED + self.promises.max_lag.max(self.promises.max_age))
    }

    /// Forgets keys that nobody comes back to.
    fn sweep(&mut self, now: Time) {
        if now.since(self.swept) < SWEEP_INTERVAL {
            return;
        }
        self.swept = now;
        let horizon = self.horizon(now);
        self.registers.retain(|key, register| {
            matches!(key.family, Family::Cell | Family::Group) || register.touched >= horizon
        });
    }

    fn violate(&mut self, kind: Kind, headline: &str, witnesses: &[&Witness]) {
        if self.violations.len() >= VIOLATIONS_MAX {
            return;
        }
        let mut evidence = headline.to_owned();
        for witness in witnesses {
            let _ = write!(evidence, "\n    {witness}");
        }
        self.violations.push(Violation { kind, evidence });
    }
}

/// False where the version is older than what is remembered.
fn known_or_new(register: Option<&Register>, version: u64) -> bool {
    register.is_none_or(|register| register.remembers(version))
}

/// No operation takes so long.
const REMEMBERED: Duration = Duration::from_secs(60);
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// One broken promise breaks many reads.
const VIOLATIONS_MAX: usize = 100;
const RECORDS_MIN: usize = 64;
const SNAPSHOTS_MIN: usize = 64;
