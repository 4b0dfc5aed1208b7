//! Bounds on server connections that several pools share: of a database with all its users, and of a user in all databases.
//!
//! Each connection has a [`Place`] from before it is opened until its socket is gone. Who finds none waits in one line for
//! all pools; what the first in it can't have yet is kept for it, and both bounds of a pool are taken together or not at
//! all, so nobody waits for ever and no two wait for each other ([`book`]).
//!
//! A pool does not wait for what others leave idle: one of these is closed at once, and whatever becomes idle while somebody
//! waits is closed, too. Nobody is overlooked: who waits joins the line first and looks for idle connections then; who
//! leaves one idle looks at the line afterwards. A pool that has clients waiting itself gives up to one that has fewer
//! connections and has waited for longer.

mod book;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use book::{Book, MemberId, Ticket};

pub(crate) use book::Quota;

/// What all pools share.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// Why a lock: taken for each connection that is opened or closed, and for those that come back while somebody waits.
    /// No connection is closed and nobody is woken under it.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    book: Book,
    /// Those in the book's line, in no order. Who is not here any more was given a place.
    waiting: Vec<(Ticket, oneshot::Sender<()>)>,
    pools: Vec<(MemberId, Weak<dyn GivesUp>)>,
}

/// A pool that can close what it has idle.
pub(crate) trait GivesUp: std::fmt::Debug + Send + Sync {
    /// Closes one idle connection, if there is one, even one of those that are to be kept ready if `all`.
    fn give_up_one(&self, all: bool) -> bool;
}

/// A pool's membership. Each place has a share in it: it ends with the last of them.
#[derive(Debug)]
pub(crate) struct Member {
    places: Arc<Places>,
    id: MemberId,
    is_crowded: Arc<AtomicBool>,
}

/// The leave to have one connection.
#[derive(Debug)]
pub(crate) struct Place(Arc<Member>);

impl Places {
    pub(crate) fn join(self: &Arc<Self>, database: &str, user: &str) -> Arc<Member> {
        let is_crowded = Arc::new(AtomicBool::new(false));
        let quotas = [Quota::Database(database.into()), Quota::User(user.into())];
        let id = self.state.lock().book.join(quotas, Arc::clone(&is_crowded));
        Arc::new(Member {
            places: Arc::clone(self),
            id,
            is_crowded,
        })
    }

    /// Sets a bound. Of what is too many the idle connections are closed now, the others as they come back.
    pub(crate) fn set_max(&self, quota: &Quota, max: Option<usize>) {
        let mut state = self.state.lock();
        let (granted, surplus) = state.book.set_max(quota, max);
        let members = if surplus > 0 {
            state.book.members_of(quota)
        } else {
            Vec::new()
        };
        grant(state, &granted);
        for _ in 0..surplus {
            if !self.relieve(&members) {
                return;
            }
        }
    }

    /// Has one of these pools close an idle connection. False if none has one, or none is needed.
    fn relieve(&self, members: &[MemberId]) -> bool {
        let rivals: Vec<_> = {
            let state = self.state.lock();
            let known = |id: &MemberId| {
                let found = state.pools.iter().find(|(known, _)| known == id);
                found.and_then(|(_, pool)| Some((*id, pool.upgrade()?)))
            };
            members.iter().filter_map(known).collect()
        };
        for all in [false, true] {
            for (id, rival) in &rivals {
                if !self.state.lock().book.claim(*id, None, Instant::now()) {
                    continue;
                }
                if rival.give_up_one(all) {
                    return true;
                }
                self.state.lock().book.unclaim(*id);
            }
        }
        false
    }
}

/// Tells those who have got places, out of the lock.
fn grant(mut state: MutexGuard<'_, State>, granted: &[Ticket]) {
    if granted.is_empty() {
        return;
    }
    let waiting = &mut state.waiting;
    let served: Vec<_> = waiting
        .extract_if(.., |(ticket, _)| granted.contains(ticket))
        .collect();
    drop(state);
    for (_, sender) in served {
        // Who has gone meanwhile gives it back.
        let _ = sender.send(());
    }
}

impl Member {
    /// Says who closes idle connections for others.
    pub(crate) fn serve(&self, pool: Weak<dyn GivesUp>) {
        self.places.state.lock().pools.push((self.id, pool));
    }

    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    /// Takes a place if there is one.
    pub(crate) fn try_take(self: &Arc<Self>) -> Option<Place> {
        let is_taken = self.places.state.lock().book.try_take(self.id);
        is_taken.then(|| Place(Arc::clone(self)))
    }

    /// Waits for a place.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the line; a place that was on its way goes to the next.
    pub(crate) async fn take(self: &Arc<Self>) -> Place {
        let (sender, receiver) = oneshot::channel();
        let (request, rivals) = {
            let mut state = self.places.state.lock();
            if state.book.try_take(self.id) {
                return Place(Arc::clone(self));
            }
            let ticket = state.book.request(self.id, Instant::now());
            state.waiting.push((ticket, sender));
            let request = Request {
                member: self,
                ticket,
                is_done: false,
            };
            (request, state.book.rivals(self.id))
        };
        self.places.relieve(&rivals);
        // The sender goes only after it has sent.
        let _ = receiver.await;
        request.done()
    }

    pub(crate) fn is_crowded(&self) -> bool {
        self.is_crowded.load(Ordering::Acquire)
    }

    /// Whether a connection is to be given up for another pool, where somebody waits in this one since then, or nobody.
    pub(crate) fn claim(&self, waits_since: Option<Instant>) -> bool {
        let mut state = self.places.state.lock();
        state.book.claim(self.id, waits_since, Instant::now())
    }

    /// It was not given up after all.
    pub(crate) fn unclaim(&self) {
        self.places.state.lock().book.unclaim(self.id);
    }

    /// Which bounds are reached, and what they are.
    pub(crate) fn reached(&self) -> Vec<(Quota, usize)> {
        self.places.state.lock().book.reached(self.id)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.places.state.lock();
        state.pools.retain(|(id, _)| *id != self.id);
        state.book.part(self.id);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.0.places.state.lock();
        let granted = state.book.give_back(self.0.id);
        grant(state, &granted);
    }
}

/// A place in the line, or one that was granted and not taken yet.
struct Request<'a> {
    member: &'a Arc<Member>,
    ticket: Ticket,
    is_done: bool,
}

impl Request<'_> {
    fn done(mut self) -> Place {
        self.is_done = true;
        Place(Arc::clone(self.member))
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let mut state = self.member.places.state.lock();
        let waiting = state.waiting.len();
        state.waiting.retain(|(ticket, _)| *ticket != self.ticket);
        let granted = if state.waiting.len() < waiting {
            state.book.withdraw(self.ticket)
        } else {
            state.book.give_back(self.member.id)
        };
        grant(state, &granted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_storm_of_requests_that_are_given_up_at_random_loses_no_place() {
        const MAX: usize = 3;
        let places = Arc::<Places>::default();
        let used = Arc::new(AtomicUsize::new(0));
        let members: Vec<_> = ["a", "b", "c"]
            .iter()
            .flat_map(|user| ["x", "y"].map(|database| places.join(database, user)))
            .collect();
        for name in ["x", "y"] {
            places.set_max(&Quota::Database(name.into()), Some(MAX));
        }
        for name in ["a", "b", "c"] {
            places.set_max(&Quota::User(name.into()), Some(2));
        }
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..60 {
            let (member, used) = (Arc::clone(&members[n % 6]), Arc::clone(&used));
            tasks.spawn(async move {
                for round in 0..200 {
                    let place = if (n + round) % 3 == 0 {
                        let patience = std::time::Duration::from_micros(rand::random_range(0..200));
                        tokio::time::timeout(patience, member.take()).await.ok()
                    } else {
                        Some(member.take().await)
                    };
                    if let Some(place) = place {
                        let before = used.fetch_add(1, Ordering::SeqCst);
                        assert!(before < 2 * MAX, "too many");
                        tokio::task::yield_now().await;
                        used.fetch_sub(1, Ordering::SeqCst);
                        drop(place);
                    }
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("no panic");
        }
        // All can be had, and no more.
        let held: Vec<_> = [0, 1, 2, 3, 4, 5].map(|at| members[at].try_take()).into();
        assert!(held.iter().all(Option::is_some), "{held:?}");
        assert!(members[0].try_take().is_none());
        drop(held);
        drop(members);
        assert!(places.state.lock().book.is_empty());
    }
}
