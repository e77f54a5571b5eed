//! Which blocks of the table changed.

use std::ops::Range;

#[derive(Debug, Default)]
pub(super) struct Bitmap {
    words: Vec<u64>,
}

impl Bitmap {
    pub(super) fn set(&mut self, bit: usize) {
        let word = bit / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (bit % 64);
    }

    pub(super) fn set_range(&mut self, from: usize, to: usize) {
        (from..to).for_each(|bit| self.set(bit));
    }

    pub(super) fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Adds the bits of `other` and clears it.
    pub(super) fn take(&mut self, other: &mut Bitmap) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (mine, others) in self.words.iter_mut().zip(&mut other.words) {
            *mine |= std::mem::take(others);
        }
    }

    fn get(&self, bit: usize) -> bool {
        self.words
            .get(bit / 64)
            .is_some_and(|word| word & 1 << (bit % 64) != 0)
    }

    /// Ranges of set bits below `len`, ascending.
    pub(super) fn runs(&self, len: usize) -> impl Iterator<Item = Range<usize>> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let start = self.find(next, len, true)?;
            next = self.find(start, len, false).unwrap_or(len);
            Some(start..next)
        })
    }

    /// The first bit of that value from `from` on; empty words are skipped whole.
    fn find(&self, from: usize, len: usize, value: bool) -> Option<usize> {
        let mut bit = from;
        while bit < len {
            if self.get(bit) == value {
                return Some(bit);
            }
            let word = self.words.get(bit / 64).copied().unwrap_or(0);
            bit = if value && word == 0 {
                (bit / 64 + 1) * 64
            } else {
                bit + 1
            };
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_neighbours_and_stop_at_the_length() {
        let mut bits = Bitmap::default();
        [0, 1, 63, 64, 200, 201].into_iter().for_each(|bit| bits.set(bit));
        assert_eq!(bits.runs(201).collect::<Vec<_>>(), [0..2, 63..65, 200..201]);
        let mut all = Bitmap::default();
        all.take(&mut bits);
        assert_eq!(bits.runs(300).count(), 0);
        assert_eq!(all.runs(300).collect::<Vec<_>>(), [0..2, 63..65, 200..202]);
    }
}
