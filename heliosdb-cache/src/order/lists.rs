//! Doubly linked lists over the places of a slab: no allocation per entry, every operation O(1).

/// No place.
pub(super) const NONE: u32 = u32::MAX;

/// The links of all places. A place is in at most one list at a time.
#[derive(Debug, Default)]
pub(super) struct Links(Vec<Link>);

#[derive(Debug, Clone, Copy)]
struct Link {
    /// Towards the head.
    previous: u32,
    /// Towards the tail.
    next: u32,
}

/// One list, most recent at its head.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    pub(super) head: u32,
    pub(super) tail: u32,
    pub(super) len: usize,
}

impl Default for List {
    fn default() -> Self {
        Self {
            head: NONE,
            tail: NONE,
            len: 0,
        }
    }
}

impl List {
    pub(super) fn push_front(&mut self, links: &mut Links, place: u32) {
        let link = Link {
            previous: NONE,
            next: self.head,
        };
        links.set(place, link);
        match self.head {
            NONE => self.tail = place,
            head => links.0[head as usize].previous = place,
        }
        self.head = place;
        self.len += 1;
    }

    /// `place` must be in this list.
    pub(super) fn remove(&mut self, links: &mut Links, place: u32) {
        let Link { previous, next } = links.0[place as usize];
        match previous {
            NONE => self.head = next,
            previous => links.0[previous as usize].next = next,
        }
        match next {
            NONE => self.tail = previous,
            next => links.0[next as usize].previous = previous,
        }
        self.len -= 1;
    }

    pub(super) fn pop_back(&mut self, links: &mut Links) -> Option<u32> {
        let tail = self.tail;
        if tail == NONE {
            return None;
        }
        self.remove(links, tail);
        Some(tail)
    }
}

impl Links {
    fn set(&mut self, place: u32, link: Link) {
        let empty = Link {
            previous: NONE,
            next: NONE,
        };
        reserve_place(&mut self.0, place, empty);
        self.0[place as usize] = link;
    }
}

/// Makes a place in an array of all places. It grows by an eighth, which wastes less than doubling, and still copies
/// each place only a few times.
pub(crate) fn reserve_place<T: Clone>(places: &mut Vec<T>, place: u32, empty: T) {
    let needed = place as usize + 1;
    if needed > places.len() {
        if needed > places.capacity() {
            let growth = (places.len() / 8).max(16);
            places.reserve_exact(growth.max(needed - places.len()));
        }
        places.resize(needed, empty);
    }
}
