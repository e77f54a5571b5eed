//! Checksums of pages of zeros, without feeding the zeros.
//!
//! A CRC is affine: flipping a bit of the input flips the same bits of the result, whatever the other bits are. Of a page of
//! zeros only the number differs, so its checksum is that of number 0 with the contribution of each byte of the number added.
//! Capture and apply use it for the holes of sparse databases, which have millions of such pages.

use sqlite_format::{PageSize, Pgno};

use crate::checksum::{Checksum, Crc64};

/// Contributions of the four bytes of a page number to the checksum of a page of zeros of one size.
#[derive(Debug)]
pub struct ZeroPages {
    bytes: Box<[[u64; 256]; 4]>,
}

impl ZeroPages {
    pub fn new(page_size: PageSize) -> ZeroPages {
        let page = vec![0; page_size.bytes()];
        let of = |number: u32| {
            let mut crc = Crc64::new();
            crc.update(&number.to_be_bytes());
            crc.update(&page);
            crc.checksum().get()
        };
        let zero = of(0);
        let mut bytes = Box::new([[0; 256]; 4]);
        for (at, table) in bytes.iter_mut().enumerate() {
            let bits: [u64; 8] = std::array::from_fn(|bit| of(1 << (8 * at + bit)) ^ zero);
            for value in 1..256_usize {
                let lowest = value.trailing_zeros() as usize;
                table[value] = table[value & (value - 1)] ^ bits[lowest];
            }
        }
        for entry in &mut bytes[0] {
            *entry ^= zero;
        }
        ZeroPages { bytes }
    }

    /// The same as [`crate::page_checksum`] of a page of zeros.
    pub fn checksum(&self, pgno: Pgno) -> Checksum {
        let number = pgno.get().to_le_bytes();
        let parts = self.bytes.iter().zip(number);
        Checksum(Checksum::FLAG | parts.fold(0, |sum, (table, byte)| sum ^ table[usize::from(byte)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page_checksum;

    #[test]
    fn the_checksum_is_that_of_a_page_of_zeros() {
        for size in [512, 1024, 4096, 65536] {
            let size = PageSize::new(size).unwrap();
            let zeros = ZeroPages::new(size);
            let page = vec![0; size.bytes()];
            let numbers =
                (1..600).chain((0..32).flat_map(|bit| [1 << bit, !(1 << bit), (1 << bit) | 0x5a5a]));
            for pgno in numbers.chain([u32::MAX]).filter_map(Pgno::new) {
                assert_eq!(zeros.checksum(pgno), page_checksum(pgno, &page), "page {pgno}");
            }
        }
    }
}
