//! What the unnamed portal was bound with, for the statements whose rows are told by their parameters.

/// The end of a Bind message: formats and values. Portals with names are not remembered: what is run through one counts
/// as a write to any row.
#[derive(Debug, Default)]
pub(super) struct Bound {
    bind: Vec<u8>,
    is_known: bool,
}

/// A longer one is not remembered, in bytes.
const BIND_MAX: usize = 64 << 10;
/// A longer buffer is not kept for the next one.
const KEPT_MAX: usize = 4 << 10;

impl Bound {
    pub(super) fn remember(&mut self, bind: &[u8]) {
        self.forget();
        if bind.len() <= BIND_MAX {
            self.bind.extend_from_slice(bind);
            self.is_known = true;
        }
    }

    pub(super) fn forget(&mut self) {
        self.is_known = false;
        if self.bind.capacity() > KEPT_MAX {
            self.bind = Vec::new();
        } else {
            self.bind.clear();
        }
    }

    pub(super) fn get(&self) -> Option<&[u8]> {
        self.is_known.then_some(&*self.bind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bind_counts_and_an_endless_one_is_not_remembered() {
        let mut bound = Bound::default();
        assert_eq!(bound.get(), None);
        bound.remember(b"one");
        bound.remember(b"two");
        assert_eq!(bound.get(), Some(&b"two"[..]));
        bound.remember(&vec![0; BIND_MAX + 1]);
        assert_eq!(bound.get(), None);
        bound.remember(&vec![0; BIND_MAX]);
        assert!(bound.get().is_some());
        bound.forget();
        assert_eq!((bound.get(), bound.bind.capacity()), (None, 0));
    }
}
