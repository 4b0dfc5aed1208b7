//! Who has which places and who waits for one: the rules, without a lock, a clock or a task.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use slab::Slab;

/// Whose connections are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Quota {
    /// Those of all users to what clients call so.
    Database(Arc<str>),
    /// Those of a user at the server to all databases.
    User(Arc<str>),
}

/// A pool.
pub(super) type MemberId = usize;
/// A request's place in the line: later ones have larger numbers.
pub(super) type Ticket = u64;

/// A pool whose own clients wait gives a connection up for another that has waited for longer, but not for one that came
/// just now: each move costs a connection closed and one opened.
pub(super) const ROTATION: Duration = Duration::from_millis(100);

/// Invariants: no quota has more in use than it may, but for the time after it was lowered; and nobody waits for a place
/// that is free and not kept for one who came before.
#[derive(Debug, Default)]
pub(super) struct Book {
    quotas: HashMap<Quota, Account>,
    members: Slab<Member>,
    /// In the order they came.
    line: VecDeque<Waiting>,
    next_ticket: Ticket,
}

#[derive(Debug)]
struct Account {
    /// `usize::MAX`: no bound.
    max: usize,
    used: usize,
    /// Of those in use, the ones that are being given up for others.
    leaving: usize,
    members: usize,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) quotas: [Quota; 2],
    holding: usize,
    leaving: usize,
    /// Somebody waits for a place of one of its quotas, or there are too many: read without the lock.
    is_crowded: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    member: MemberId,
    since: Instant,
}

impl Book {
    pub(super) fn join(&mut self, quotas: [Quota; 2], is_crowded: Arc<AtomicBool>) -> MemberId {
        for quota in &quotas {
            let account = self.quotas.entry(quota.clone()).or_insert(Account {
                max: usize::MAX,
                used: 0,
                leaving: 0,
                members: 0,
            });
            account.members += 1;
        }
        let member = self.members.insert(Member {
            quotas,
            holding: 0,
            leaving: 0,
            is_crowded,
        });
        self.note_crowds();
        member
    }

    /// A pool goes, which has no connection and no request any more.
    pub(super) fn part(&mut self, member: MemberId) {
        let member = self.members.remove(member);
        for quota in member.quotas {
            if let Some(account) = self.quotas.get_mut(&quota) {
                account.members -= 1;
                if account.members == 0 {
                    self.quotas.remove(&quota);
                }
            }
        }
    }

    /// Sets a bound. Returns who has got a place by it, and how many are in use beyond it.
    pub(super) fn set_max(&mut self, quota: &Quota, max: Option<usize>) -> (Vec<Ticket>, usize) {
        let mut surplus = 0;
        if let Some(account) = self.quotas.get_mut(quota) {
            account.max = max.unwrap_or(usize::MAX);
            surplus = (account.used - account.leaving).saturating_sub(account.max);
        }
        (self.settle(), surplus)
    }

    /// Takes a place if there is one that is kept for nobody.
    pub(super) fn try_take(&mut self, member: MemberId) -> bool {
        let is_free = self.is_free(member, |book, quota| {
            let kept = book.line.iter();
            kept.filter(|waiting| book.members[waiting.member].quotas.contains(quota))
                .count()
        });
        if is_free {
            self.take(member);
        }
        is_free
    }

    /// Joins the line.
    pub(super) fn request(&mut self, member: MemberId, now: Instant) -> Ticket {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.line.push_back(Waiting {
            ticket,
            member,
            since: now,
        });
        self.note_crowds();
        ticket
    }

    /// Leaves the line, if it is in it still. Returns who has got a place by that.
    pub(super) fn withdraw(&mut self, ticket: Ticket) -> Vec<Ticket> {
        self.line.retain(|waiting| waiting.ticket != ticket);
        self.settle()
    }

    /// A connection is gone. Returns who gets its place.
    pub(super) fn give_back(&mut self, member: MemberId) -> Vec<Ticket> {
        let was_leaving = self.members[member].leaving > 0;
        let one = &mut self.members[member];
        one.holding -= 1;
        one.leaving -= usize::from(was_leaving);
        for quota in one.quotas.clone() {
            if let Some(account) = self.quotas.get_mut(&quota) {
                account.used -= 1;
                account.leaving -= usize::from(was_leaving);
            }
        }
        self.settle()
    }

    /// Whether a connection of this pool, where somebody waits since then or nobody, is to be given up for another. It
    /// counts as leaving then.
    pub(super) fn claim(
        &mut self,
        member: MemberId,
        waits_since: Option<Instant>,
        now: Instant,
    ) -> bool {
        let one = &self.members[member];
        let is_claimed = one.holding > one.leaving
            && one.quotas.iter().any(|quota| {
                let account = &self.quotas[quota];
                account.used - account.leaving > account.max
                    || self.has_claim(member, quota, waits_since, now)
            });
        if is_claimed {
            self.leave(member, true);
        }
        is_claimed
    }

    /// It was not given up after all.
    pub(super) fn unclaim(&mut self, member: MemberId) {
        if self.members[member].leaving > 0 {
            self.leave(member, false);
        }
    }

    fn leave(&mut self, member: MemberId, is_leaving: bool) {
        let change = |count: &mut usize| {
            if is_leaving {
                *count += 1;
            } else {
                *count -= 1;
            }
        };
        let one = &mut self.members[member];
        change(&mut one.leaving);
        for quota in one.quotas.clone() {
            if let Some(account) = self.quotas.get_mut(&quota) {
                change(&mut account.leaving);
            }
        }
    }

    /// Whether another pool waits for a place of this quota that none is on its way for, with a better claim to it.
    fn has_claim(
        &self,
        member: MemberId,
        quota: &Quota,
        waits_since: Option<Instant>,
        now: Instant,
    ) -> bool {
        let account = &self.quotas[quota];
        if account.used < account.max {
            return false;
        }
        let waiting = self
            .line
            .iter()
            .filter(|waiting| self.members[waiting.member].quotas.contains(quota));
        let mut unserved = waiting.skip(account.leaving);
        unserved.any(|waiting| {
            waiting.member != member
                && waits_since.is_none_or(|since| {
                    let one = &self.members[member];
                    waiting.since < since
                        && now.saturating_duration_since(waiting.since) >= ROTATION
                        && one.holding - one.leaving > self.members[waiting.member].holding
                })
        })
    }

    /// Those who could give one up for this pool, the richest first.
    pub(super) fn rivals(&self, member: MemberId) -> Vec<MemberId> {
        let full = |quota: &&Quota| self.quotas[*quota].used >= self.quotas[*quota].max;
        let full: Vec<_> = self.members[member].quotas.iter().filter(full).collect();
        let shares = |other: &Member| full.iter().any(|quota| other.quotas.contains(quota));
        let mut rivals: Vec<_> = self
            .members
            .iter()
            .filter(|(id, other)| *id != member && other.holding > other.leaving && shares(other))
            .map(|(id, other)| (other.holding, id))
            .collect();
        rivals.sort_unstable_by(|a, b| b.cmp(a));
        rivals.into_iter().map(|(_, id)| id).collect()
    }

    /// Those that a bound is about.
    pub(super) fn members_of(&self, quota: &Quota) -> Vec<MemberId> {
        let all = self.members.iter();
        all.filter(|(_, member)| member.quotas.contains(quota))
            .map(|(id, _)| id)
            .collect()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.quotas.is_empty() && self.members.is_empty() && self.line.is_empty()
    }

    /// Which of a pool's bounds are reached, and what they are.
    pub(super) fn reached(&self, member: MemberId) -> Vec<(Quota, usize)> {
        let quotas = self.members[member].quotas.iter();
        quotas
            .filter_map(|quota| {
                let account = &self.quotas[quota];
                (account.used >= account.max).then(|| (quota.clone(), account.max))
            })
            .collect()
    }

    /// Gives what is free to those who wait, in their order; what the first can't have yet is kept for it.
    fn settle(&mut self) -> Vec<Ticket> {
        let mut granted = Vec::new();
        let mut kept: HashMap<Quota, usize> = HashMap::new();
        for waiting in std::mem::take(&mut self.line) {
            let is_free = self.is_free(waiting.member, |_, quota| {
                kept.get(quota).copied().unwrap_or(0)
            });
            if is_free {
                self.take(waiting.member);
                granted.push(waiting.ticket);
                continue;
            }
            for quota in &self.members[waiting.member].quotas {
                *kept.entry(quota.clone()).or_default() += 1;
            }
            self.line.push_back(waiting);
        }
        self.note_crowds();
        granted
    }

    fn is_free(&self, member: MemberId, kept: impl Fn(&Self, &Quota) -> usize) -> bool {
        self.members[member].quotas.iter().all(|quota| {
            let account = &self.quotas[quota];
            account.max.saturating_sub(account.used) > kept(self, quota)
        })
    }

    fn take(&mut self, member: MemberId) {
        let member = &mut self.members[member];
        member.holding += 1;
        for quota in &member.quotas {
            if let Some(account) = self.quotas.get_mut(quota) {
                account.used += 1;
            }
        }
    }

    fn note_crowds(&self) {
        for (_, member) in &self.members {
            let is_crowded = member.quotas.iter().any(|quota| {
                let account = &self.quotas[quota];
                let is_wanted = || {
                    let mut waiting = self.line.iter();
                    waiting.any(|waiting| self.members[waiting.member].quotas.contains(quota))
                };
                account.used > account.max || account.used == account.max && is_wanted()
            });
            member.is_crowded.store(is_crowded, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const USERS: [&str; 3] = ["a", "b", "c"];
    const DATABASES: [&str; 2] = ["x", "y"];

    struct World {
        book: Book,
        now: Instant,
        /// In the order they came, by ticket.
        waiting: Vec<(Ticket, MemberId)>,
        holding: Vec<usize>,
        max: HashMap<Quota, usize>,
        crowded: Vec<Arc<AtomicBool>>,
    }

    /// What may happen, to a member or a quota.
    #[derive(Debug, Clone)]
    enum Move {
        TryTake(usize),
        Request(usize),
        Withdraw(usize),
        GiveBack(usize),
        SetMax(usize, usize),
    }

    impl World {
        fn new() -> Self {
            let mut world = Self {
                book: Book::default(),
                now: Instant::now(),
                waiting: Vec::new(),
                holding: Vec::new(),
                max: HashMap::new(),
                crowded: Vec::new(),
            };
            for user in USERS {
                for database in DATABASES {
                    let is_crowded = Arc::new(AtomicBool::new(false));
                    world.crowded.push(Arc::clone(&is_crowded));
                    let quotas = [Quota::Database(database.into()), Quota::User(user.into())];
                    assert_eq!(world.book.join(quotas, is_crowded), world.holding.len());
                    world.holding.push(0);
                }
            }
            for (n, quota) in Self::quotas().into_iter().enumerate() {
                world.set_max(quota, 2 + n % 2);
            }
            world
        }

        fn quotas() -> Vec<Quota> {
            let users = USERS.map(|name| Quota::User(name.into()));
            let databases = DATABASES.map(|name| Quota::Database(name.into()));
            users.into_iter().chain(databases).collect()
        }

        fn set_max(&mut self, quota: Quota, max: usize) {
            let (granted, _) = self.book.set_max(&quota, Some(max));
            self.max.insert(quota, max);
            self.granted(&granted);
        }

        fn granted(&mut self, granted: &[Ticket]) {
            for ticket in granted {
                let at = self.waiting.iter().position(|(known, _)| known == ticket);
                let (_, member) = self.waiting.remove(at.expect("it waited"));
                self.holding[member] += 1;
            }
        }

        fn make(&mut self, a_move: &Move) {
            self.now += Duration::from_millis(30);
            match *a_move {
                Move::TryTake(member) => {
                    if self.book.try_take(member) {
                        self.holding[member] += 1;
                    }
                }
                Move::Request(member) => {
                    // As pools do: a place that is free is taken at once.
                    if self.book.try_take(member) {
                        self.holding[member] += 1;
                    } else {
                        let ticket = self.book.request(member, self.now);
                        self.waiting.push((ticket, member));
                    }
                }
                Move::Withdraw(at) => {
                    if !self.waiting.is_empty() {
                        let (ticket, _) = self.waiting.remove(at % self.waiting.len());
                        let granted = self.book.withdraw(ticket);
                        self.granted(&granted);
                    }
                }
                Move::GiveBack(member) => {
                    if self.holding[member] > 0 {
                        self.holding[member] -= 1;
                        let granted = self.book.give_back(member);
                        self.granted(&granted);
                    }
                }
                Move::SetMax(quota, max) => {
                    let quota = Self::quotas()[quota % 5].clone();
                    self.set_max(quota, max);
                }
            }
        }

        fn used(&self, quota: &Quota) -> usize {
            let members = self.book.members.iter();
            members
                .filter(|(_, member)| member.quotas.contains(quota))
                .map(|(id, _)| self.holding[id])
                .sum()
        }

        /// Nobody waits for what is free and kept for nobody before them.
        fn check(&self) {
            let mut free: HashMap<Quota, isize> = HashMap::new();
            for quota in Self::quotas() {
                let used = self.used(&quota);
                assert_eq!(self.book.quotas[&quota].used, used);
                let max = self.max[&quota];
                free.insert(quota, max as isize - used as isize);
            }
            for (ticket, member) in &self.waiting {
                let quotas = &self.book.members[*member].quotas;
                let is_free = quotas.iter().all(|quota| free[quota] > 0);
                assert!(!is_free, "{ticket} waits for what is free");
                for quota in quotas {
                    *free.get_mut(quota).expect("known") -= 1;
                }
                let is_full = |quota: &Quota| self.used(quota) >= self.max[quota];
                for (id, other) in &self.book.members {
                    let shares = |quota: &&Quota| is_full(quota) && quotas.contains(quota);
                    if other.quotas.iter().find(shares).is_some() {
                        assert!(self.crowded[id].load(Ordering::Relaxed), "{id} is not told");
                    }
                }
            }
        }
    }

    fn a_move() -> impl Strategy<Value = Move> {
        prop_oneof![
            1 => (0..6usize).prop_map(Move::TryTake),
            4 => (0..6usize).prop_map(Move::Request),
            1 => any::<usize>().prop_map(Move::Withdraw),
            4 => (0..6usize).prop_map(Move::GiveBack),
            1 => (0..5usize, 1..4usize).prop_map(|(quota, max)| Move::SetMax(quota, max)),
        ]
    }

    proptest! {
        #[test]
        fn no_bound_is_passed_and_nobody_waits_for_what_is_free(
            moves in prop::collection::vec(a_move(), 1..80)
        ) {
            let mut world = World::new();
            for one in &moves {
                let before: Vec<_> = World::quotas().iter().map(|quota| world.used(quota)).collect();
                world.make(one);
                for (quota, before) in World::quotas().iter().zip(before) {
                    let used = world.used(quota);
                    prop_assert!(used <= world.max[quota].max(before), "{quota:?}");
                }
                world.check();
            }
            // All are served in the end, whatever happened before.
            let mut rounds = 0;
            while !world.waiting.is_empty() {
                rounds += 1;
                prop_assert!(rounds < 1000, "{:?} wait for ever", world.waiting);
                let holds = (0..6).find(|member| world.holding[*member] > 0);
                world.make(&Move::GiveBack(holds.expect("somebody holds what they wait for")));
                world.check();
            }
        }

        #[test]
        fn who_is_full_of_claims_gives_up_no_more_than_are_waited_for(
            wants in 1..6usize, returns in 1..6usize
        ) {
            let mut world = World::new();
            for quota in World::quotas() {
                world.set_max(quota, 100);
            }
            world.set_max(Quota::Database("x".into()), 5);
            for _ in 0..5 {
                world.make(&Move::Request(0));
            }
            for _ in 0..wants {
                world.make(&Move::Request(2));
            }
            let claimed = (0..returns).filter(|_| world.book.claim(0, None, world.now)).count();
            prop_assert_eq!(claimed, wants.min(returns).min(5));
            for _ in 0..claimed {
                world.make(&Move::GiveBack(0));
            }
            prop_assert_eq!(world.holding[2], claimed);
            prop_assert_eq!(world.book.quotas[&Quota::Database("x".into())].leaving, 0);
        }
    }

    #[test]
    fn what_the_first_cannot_have_yet_is_kept_for_it() {
        let mut world = World::new();
        world.set_max(Quota::Database("x".into()), 1);
        world.set_max(Quota::Database("y".into()), 9);
        world.set_max(Quota::User("a".into()), 1);
        world.make(&Move::Request(2));
        // It waits for x, and keeps the only place of its user.
        world.make(&Move::Request(0));
        world.make(&Move::Request(1));
        world.set_max(Quota::Database("y".into()), 8);
        assert_eq!(world.holding[..3], [0, 0, 1]);
        world.make(&Move::GiveBack(2));
        assert_eq!(world.holding[..3], [1, 0, 0]);
    }

    #[test]
    fn a_rich_pool_gives_up_for_a_poor_one_that_has_waited_longer() {
        let mut world = World::new();
        world.set_max(Quota::Database("x".into()), 3);
        world.set_max(Quota::User("a".into()), 9);
        for _ in 0..3 {
            world.make(&Move::Request(0));
        }
        let early = world.now;
        world.make(&Move::Request(2));
        let later = world.now + Duration::from_millis(1);
        let claim = |world: &mut World, since, now| {
            let is_claimed = world.book.claim(0, since, now);
            if is_claimed {
                world.book.unclaim(0);
            }
            is_claimed
        };
        let soon = later + Duration::from_millis(50);
        let then = later + ROTATION;
        assert!(
            !claim(&mut world, Some(later), soon),
            "not for one that just came"
        );
        assert!(claim(&mut world, Some(later), then));
        assert!(
            !claim(&mut world, Some(early), then),
            "its own have waited longer"
        );
        assert!(claim(&mut world, None, soon), "nobody of its own waits");
        // Two each: who waits is not poorer.
        world.make(&Move::GiveBack(0));
        world.make(&Move::Request(2));
        world.make(&Move::GiveBack(0));
        assert_eq!((world.holding[0], world.holding[2]), (1, 2));
        world.make(&Move::Request(2));
        let later = world.now + ROTATION;
        assert!(!claim(&mut world, Some(later), later + ROTATION));
    }
}
