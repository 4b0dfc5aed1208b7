//! Those who wait for a connection.

use std::panic::Location;
use std::task::Waker;
use std::time::Instant;

use slab::Slab;

use super::AcquireError;
use super::exchange::Wish;
use super::meta::Item;

/// Those who wait: a list in the order they came, and those who were served and have not looked yet.
#[derive(Debug)]
pub(super) struct Line<T> {
    pub(super) places: Slab<Waiting<T>>,
    pub(super) head: usize,
    pub(super) tail: usize,
    pub(super) len: usize,
}

#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) previous: usize,
    pub(super) next: usize,
    pub(super) place: &'static Location<'static>,
    /// When it came for the first time.
    pub(super) since: Instant,
    /// Those who come later have later ones, as the same time is given to all.
    pub(super) deadline: Option<Instant>,
    pub(super) served: Served<T>,
}

#[derive(Debug)]
pub(super) enum Served<T> {
    NotYet(Option<Waker>),
    With(Result<Item<T>, AcquireError>),
}

/// A place in the line. To be given back by [`Exchange::leave`](super::exchange::Exchange::leave) if [`poll`](super::exchange::Exchange::poll) has not brought anything yet.
#[derive(Debug)]
pub(super) struct Ticket(pub(super) usize);

const NOBODY: usize = usize::MAX;

impl<T> Line<T> {
    pub(super) fn first(&self) -> Option<usize> {
        (self.head != NOBODY).then_some(self.head)
    }

    pub(super) fn join(
        &mut self,
        wish: &Wish,
        since: Instant,
        deadline: Option<Instant>,
        waker: Option<Waker>,
    ) -> Ticket {
        let (previous, next) = if wish.is_first {
            (NOBODY, self.head)
        } else {
            (self.tail, NOBODY)
        };
        let at = self.places.insert(Waiting {
            previous,
            next,
            place: wish.place,
            since,
            deadline,
            served: Served::NotYet(waker),
        });
        *self.next_of(previous) = at;
        *self.previous_of(next) = at;
        self.len += 1;
        Ticket(at)
    }

    /// Since when those in the line wait, in its order.
    pub(super) fn since(&self) -> impl Iterator<Item = Instant> {
        let mut at = self.head;
        std::iter::from_fn(move || {
            let waiting = self.places.get(at)?;
            at = waiting.next;
            Some(waiting.since)
        })
    }

    /// What is in a place that is given up.
    pub(super) fn leave(&mut self, ticket: &Ticket) -> Served<T> {
        if matches!(self.places[ticket.0].served, Served::NotYet(_)) {
            self.unlink(ticket.0);
        }
        self.places.remove(ticket.0).served
    }

    pub(super) fn serve(
        &mut self,
        at: usize,
        with: Result<Item<T>, AcquireError>,
    ) -> Option<Waker> {
        self.unlink(at);
        match std::mem::replace(&mut self.places[at].served, Served::With(with)) {
            Served::NotYet(waker) => waker,
            Served::With(_) => unreachable!("who was served is not in the line"),
        }
    }

    pub(super) fn serve_all(
        &mut self,
        with: impl Fn() -> Result<Item<T>, AcquireError>,
    ) -> Vec<Option<Waker>> {
        let mut wakers = Vec::with_capacity(self.len);
        while let Some(at) = self.first() {
            wakers.push(self.serve(at, with()));
        }
        wakers
    }

    /// Of all who wait.
    pub(super) fn take_wakers(&mut self) -> Vec<Waker> {
        let wakers = self
            .places
            .iter_mut()
            .filter_map(|(_, place)| match &mut place.served {
                Served::NotYet(waker) => waker.take(),
                Served::With(_) => None,
            });
        wakers.collect()
    }

    fn unlink(&mut self, at: usize) {
        let Waiting { previous, next, .. } = self.places[at];
        *self.next_of(previous) = next;
        *self.previous_of(next) = previous;
        self.len -= 1;
    }

    fn next_of(&mut self, at: usize) -> &mut usize {
        match at {
            NOBODY => &mut self.head,
            at => &mut self.places[at].next,
        }
    }

    fn previous_of(&mut self, at: usize) -> &mut usize {
        match at {
            NOBODY => &mut self.tail,
            at => &mut self.places[at].previous,
        }
    }
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self {
            places: Slab::new(),
            head: NOBODY,
            tail: NOBODY,
            len: 0,
        }
    }
}

pub(super) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
