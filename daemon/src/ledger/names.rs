//! Numbers of the virtual files: the kernel may have one of them open, and its number must go on meaning the same file.

use std::sync::atomic::Ordering;

use super::{Ledger, NAME_SLOTS, NAME_WORDS, NAMES, NAMES_USED, WORD};

impl Ledger {
    /// Notes the next virtual file, before the kernel is told of it; `false`: no room.
    pub(crate) fn add_name(&self, kind: u8, name: &str) -> bool {
        let index = self.get(NAMES_USED) as usize;
        if index >= NAME_SLOTS || name.len() > (NAME_WORDS - 2) * WORD {
            return false;
        }
        let first = NAMES + index * NAME_WORDS;
        self.put(first, u64::from(kind));
        self.put(first + 1, name.len() as u64);
        for (i, bytes) in name.as_bytes().chunks(WORD).enumerate() {
            let mut word = [0; WORD];
            word[..bytes.len()].copy_from_slice(bytes);
            self.put(first + 2 + i, u64::from_ne_bytes(word));
        }
        self.word(NAMES_USED).store(index as u64 + 1, Ordering::Release);
        true
    }

    /// All virtual files, in the order of their numbers.
    pub(crate) fn names(&self) -> Vec<(u8, String)> {
        let used = (self.get(NAMES_USED) as usize).min(NAME_SLOTS);
        (0..used)
            .map(|index| {
                let first = NAMES + index * NAME_WORDS;
                let length = (self.get(first + 1) as usize).min((NAME_WORDS - 2) * WORD);
                let words = (0..length.div_ceil(WORD)).map(|i| self.get(first + 2 + i).to_ne_bytes());
                let mut bytes: Vec<u8> = words.flatten().collect();
                bytes.truncate(length);
                (
                    self.get(first) as u8,
                    String::from_utf8_lossy(&bytes).into_owned(),
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::again;
    use super::*;

    #[test]
    fn the_next_process_finds_the_names_in_their_order() {
        let ledger = Ledger::create().unwrap();
        let long = "ä".repeat(512);
        assert!(ledger.add_name(1, "") && ledger.add_name(2, "dir/a.db") && ledger.add_name(3, &long));
        assert!(!ledger.add_name(1, &"x".repeat(1025)));
        let expected = [(1, String::new()), (2, "dir/a.db".to_owned()), (3, long)];
        assert_eq!(again(&ledger).names(), expected);
    }
}
