//! A map of bounded size that forgets what was used least recently, in constant time.

use std::collections::HashMap;
use std::hash::Hash;

use rapidhash::fast::RandomState;

/// A map in which using a key makes it the newest, and a new key beyond the capacity takes the place of the oldest.
#[derive(Debug)]
pub(crate) struct RecencyMap<K, V> {
    places: HashMap<K, usize, RandomState>,
    /// Linked from the newest to the oldest by their places. Never longer than the capacity, never shortened.
    nodes: Vec<Node<K, V>>,
    newest: usize,
    oldest: usize,
    capacity: usize,
}

#[derive(Debug)]
struct Node<K, V> {
    key: K,
    value: V,
    newer: usize,
    older: usize,
}

/// No place: the end of the list.
const NONE: usize = usize::MAX;

impl<K: Clone + Eq + Hash, V: Default> RecencyMap<K, V> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            places: HashMap::default(),
            nodes: Vec::new(),
            newest: NONE,
            oldest: NONE,
            capacity: capacity.max(1),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// Looks without using.
    pub(crate) fn peek(&self, key: &K) -> Option<&V> {
        self.places.get(key).map(|place| &self.nodes[*place].value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.nodes.iter().map(|node| (&node.key, &node.value))
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.nodes.iter_mut().map(|node| &mut node.value)
    }

    /// The key's value, which is the newest now; a default one if the key is new.
    pub(crate) fn touch(&mut self, key: K) -> &mut V {
        let place = match self.places.get(&key) {
            Some(place) => *place,
            None => self.place_for(key),
        };
        if place != self.newest {
            self.unlink(place);
            self.link_newest(place);
        }
        &mut self.nodes[place].value
    }

    /// A place for a new key: one that was not used so far, or that of the oldest.
    fn place_for(&mut self, key: K) -> usize {
        let place = if self.nodes.len() < self.capacity {
            self.nodes.push(Node {
                key: key.clone(),
                value: V::default(),
                newer: NONE,
                older: NONE,
            });
            let place = self.nodes.len() - 1;
            self.link_newest(place);
            place
        } else {
            let place = self.oldest;
            let node = &mut self.nodes[place];
            self.places.remove(&node.key);
            node.key = key.clone();
            node.value = V::default();
            place
        };
        self.places.insert(key, place);
        place
    }

    fn unlink(&mut self, place: usize) {
        let (newer, older) = (self.nodes[place].newer, self.nodes[place].older);
        match newer {
            NONE => self.newest = older,
            newer => self.nodes[newer].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.nodes[older].newer = newer,
        }
    }

    fn link_newest(&mut self, place: usize) {
        let second = std::mem::replace(&mut self.newest, place);
        self.nodes[place].newer = NONE;
        self.nodes[place].older = second;
        match second {
            NONE => self.oldest = place,
            second => self.nodes[second].newer = place,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_list_with_the_newest_in_front(
            capacity in 0_usize..5,
            keys in prop::collection::vec(0_u8..8, 0..200),
        ) {
            let mut map = RecencyMap::<u8, u32>::new(capacity);
            let mut model: Vec<(u8, u32)> = Vec::new();
            for key in keys {
                *map.touch(key) += 1;
                let at = model.iter().position(|(known, _)| *known == key);
                let uses = at.map_or(0, |at| model.remove(at).1);
                model.insert(0, (key, uses + 1));
                model.truncate(capacity.max(1));

                prop_assert_eq!(map.len(), model.len());
                prop_assert_eq!(map.nodes.len(), model.len());
                for key in 0..8 {
                    let expected = model.iter().find(|(known, _)| *known == key).map(|(_, uses)| uses);
                    prop_assert_eq!(map.peek(&key), expected);
                }
            }
        }
    }
}
