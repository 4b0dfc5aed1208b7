//! Doubly linked lists over the places of a slab: no allocation per entry, every operation O(1).

/// No place.
pub(super) const NONE: u32 = u32::MAX;

/// What has a link for each place. A place is in at most one list at a time.
pub(super) trait Linked {
    fn link(&mut self, place: u32) -> &mut Link;
}

/// The links of all places and nothing else.
#[derive(Debug, Default)]
pub(super) struct Links(Vec<Link>);

#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    /// Towards the head.
    previous: u32,
    /// Towards the tail.
    next: u32,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            previous: NONE,
            next: NONE,
        }
    }
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
    pub(super) fn push_front(&mut self, links: &mut impl Linked, place: u32) {
        *links.link(place) = Link {
            previous: NONE,
            next: self.head,
        };
        match self.head {
            NONE => self.tail = place,
            head => links.link(head).previous = place,
        }
        self.head = place;
        self.len += 1;
    }

    /// `place` must be in this list.
    pub(super) fn remove(&mut self, links: &mut impl Linked, place: u32) {
        let Link { previous, next } = *links.link(place);
        match previous {
            NONE => self.head = next,
            previous => links.link(previous).next = next,
        }
        match next {
            NONE => self.tail = previous,
            next => links.link(next).previous = previous,
        }
        self.len -= 1;
    }

    pub(super) fn pop_back(&mut self, links: &mut impl Linked) -> Option<u32> {
        let tail = self.tail;
        if tail == NONE {
            return None;
        }
        self.remove(links, tail);
        Some(tail)
    }
}

impl Linked for Links {
    fn link(&mut self, place: u32) -> &mut Link {
        reserve_place(&mut self.0, place, Link::default());
        &mut self.0[place as usize]
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
