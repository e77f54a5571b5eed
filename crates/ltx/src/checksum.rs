//! CRC-64 and the rolling checksum of a database.
//!
//! Every page contributes the CRC of its number and content; a database is the XOR of its pages without the lock page. So a
//! transaction changes the checksum by the old and new contribution of the pages it changed, whatever the size of the
//! database.

use std::fmt;
use std::str::FromStr;

use crc_fast::{CrcAlgorithm, Digest};
use sqlite_format::Pgno;

use crate::error::ParseError;
use crate::txid::parse_hex;

/// A page or rolling checksum. Bit 63 is always set in one that is present; 0 means "none".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checksum(pub u64);

impl Checksum {
    /// Marks a checksum as present.
    pub const FLAG: u64 = 1 << 63;
    /// No checksum: before the first transaction, and in the header of a snapshot.
    pub const NONE: Checksum = Checksum(0);
    /// The checksum of a database without pages.
    pub const EMPTY_DATABASE: Checksum = Checksum(Self::FLAG);

    /// Whether bit 63 is set.
    pub const fn is_present(self) -> bool {
        self.0 & Self::FLAG != 0
    }

    /// Adds a page to a rolling checksum, or takes it out again.
    #[must_use]
    pub const fn xor(self, page: Checksum) -> Checksum {
        Checksum(Self::FLAG | (self.0 ^ page.0))
    }

    /// Replaces the contribution of a page.
    #[must_use]
    pub const fn replace(self, old: Checksum, new: Checksum) -> Checksum {
        self.xor(old).xor(new)
    }

    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Checksum {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Checksum, ParseError> {
        parse_hex(text.as_bytes())
            .map(Checksum)
            .ok_or_else(|| ParseError::Checksum(text.to_owned()))
    }
}

/// What a page contributes to the rolling checksum.
pub fn page_checksum(pgno: Pgno, page: &[u8]) -> Checksum {
    let mut crc = Crc64::new();
    crc.update(&pgno.get().to_be_bytes());
    crc.update(page);
    crc.checksum()
}

/// CRC-64/GO-ISO: what Go calls `crc64.ISO`.
#[derive(Clone)]
pub(crate) struct Crc64(Digest);

impl Crc64 {
    pub(crate) fn new() -> Crc64 {
        Crc64(Digest::new(CrcAlgorithm::Crc64GoIso))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn checksum(&self) -> Checksum {
        Checksum(Checksum::FLAG | self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: crc::Crc<u64> = crc::Crc::<u64>::new(&crc::CRC_64_GO_ISO);

    fn crc64(bytes: &[u8]) -> u64 {
        let mut crc = Crc64::new();
        crc.update(bytes);
        crc.0.finalize()
    }

    fn page(number: u32, content: &[u8]) -> Checksum {
        page_checksum(Pgno::new(number).unwrap(), content)
    }

    #[test]
    fn vector_set_a() {
        assert_eq!(crc64(b""), 0);
        assert_eq!(crc64(b"a"), 0x3420_0000_0000_0000);
        assert_eq!(crc64(b"123456789"), 0xb909_56c7_75a4_1001);
        assert_eq!(page(1, &[0; 512]).to_string(), "efb1f44fecd99000");
        assert_eq!(page(2, &[0; 512]).to_string(), "ef63e89fecd99000");
        assert_eq!(page(1, &[0; 4096]).to_string(), "d9328f592d9e733d");
        let counting: Vec<u8> = (0..512).map(|i| i as u8).collect();
        assert_eq!(page(1, &counting).to_string(), "c6f13286cb62cc9f");
        assert_eq!(page(2, &[1; 512]).to_string(), "e436b67102377eee");
        let database = Checksum::EMPTY_DATABASE
            .xor(page(1, &[0; 512]))
            .xor(page(2, &[0; 512]));
        assert_eq!(database.to_string(), "80d21cd000000000");
    }

    #[test]
    fn the_fast_crc_agrees_with_an_independent_one_for_every_length_and_split() {
        let bytes: Vec<u8> = (0..5000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        for len in (0..600).chain([1023, 1024, 4095, 4096, 4100, 4999]) {
            assert_eq!(
                crc64(&bytes[..len]),
                REFERENCE.checksum(&bytes[..len]),
                "length {len}"
            );
        }
        for split in 0..300 {
            let mut crc = Crc64::new();
            crc.update(&bytes[..split]);
            crc.update(&bytes[split..]);
            assert_eq!(crc.0.finalize(), REFERENCE.checksum(&bytes), "split {split}");
        }
    }

    #[test]
    fn a_page_taken_out_leaves_the_rest() {
        let (a, b, c) = (page(1, &[1; 512]), page(2, &[2; 512]), page(2, &[3; 512]));
        let both = Checksum::EMPTY_DATABASE.xor(a).xor(b);
        assert_eq!(both.xor(b), a);
        assert_eq!(both.replace(b, c), Checksum::EMPTY_DATABASE.xor(a).xor(c));
        assert_eq!(both.xor(a).xor(b), Checksum::EMPTY_DATABASE);
    }
}
