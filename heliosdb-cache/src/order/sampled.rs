//! Entries drawn at random, for policies that are known by their scores alone.

use super::lists::reserve_place;

/// The places in use, dense, so that each is drawn as likely as any other. 8 bytes a place.
#[derive(Debug)]
pub(crate) struct Sampled {
    places: Vec<u32>,
    /// Where a place stands in `places`.
    indices: Vec<u32>,
    random: u64,
}

impl Default for Sampled {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            indices: Vec::new(),
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }
}

impl Sampled {
    pub(crate) fn insert(&mut self, place: u32) {
        let index = u32::try_from(self.places.len()).expect("places are counted in u32");
        reserve_place(&mut self.indices, place, 0);
        self.indices[place as usize] = index;
        self.places.push(place);
    }

    pub(crate) fn remove(&mut self, place: u32) {
        let index = self.indices[place as usize];
        self.places.swap_remove(index as usize);
        // The last one now stands where the removed one did.
        if let Some(moved) = self.places.get(index as usize) {
            self.indices[*moved as usize] = index;
        }
    }

    /// Up to `n` places: all, if there are not more; else drawn at random, perhaps some twice.
    pub(crate) fn draw(&mut self, n: usize) -> impl Iterator<Item = u32> {
        let all = self.places.len() <= n;
        (0..n.min(self.places.len())).map(move |at| {
            let at = if all {
                at
            } else {
                next_random(&mut self.random, self.places.len())
            };
            self.places[at]
        })
    }
}

/// xorshift64*, by Marsaglia and Vigna: any entry must be about as likely to be drawn as any other, nothing more.
fn next_random(state: &mut u64, below: usize) -> usize {
    let wide = u128::from(next_word(state)) * below as u128;
    #[expect(clippy::cast_possible_truncation, reason = "less than `below`")]
    let place = (wide >> 64) as usize;
    place
}

/// The next of a sequence that began with any number but 0.
fn next_word(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_drawn_and_nothing_else() {
        let mut sampled = Sampled::default();
        for place in 0..100 {
            sampled.insert(place);
        }
        for place in (0..100).filter(|place| place % 3 > 0) {
            sampled.remove(place);
        }
        let mut seen = [0; 100];
        for _ in 0..1000 {
            for place in sampled.draw(8) {
                seen[place as usize] += 1;
            }
        }
        for (place, &times) in seen.iter().enumerate() {
            let expected = if place % 3 == 0 { 150..350 } else { 0..1 };
            assert!(expected.contains(&times), "{place} was drawn {times} times");
        }
        let few: Vec<_> = sampled.draw(100).collect();
        assert_eq!(few.len(), 34);
    }
}
