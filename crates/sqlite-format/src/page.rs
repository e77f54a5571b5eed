//! Page numbers and page sizes. Both exist only with valid values.

use std::fmt;
use std::num::NonZeroU32;

use crate::locks::PENDING_BYTE;

/// A page number. The first page of a database is 1, there is no page 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pgno(NonZeroU32);

impl Pgno {
    /// Page 1, which begins with the database header.
    pub const FIRST: Pgno = Pgno(NonZeroU32::MIN);

    /// `None` for 0.
    pub const fn new(number: u32) -> Option<Pgno> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Pgno(number)),
            None => None,
        }
    }

    /// The page that byte `offset` of a database file belongs to; `None` beyond the last page number.
    pub fn containing(offset: u64, page_size: PageSize) -> Option<Pgno> {
        let number = (offset / u64::from(page_size.get())).checked_add(1)?;
        u32::try_from(number).ok().and_then(Pgno::new)
    }

    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// The page after this one; `None` after the last page number.
    pub fn next(self) -> Option<Pgno> {
        self.0.checked_add(1).map(Pgno)
    }

    /// Where the page begins in the database file.
    pub const fn offset(self, page_size: PageSize) -> u64 {
        (self.get() as u64 - 1) * page_size.get() as u64
    }

    /// Pages 1..=`count` in order.
    pub fn up_to(count: u32) -> impl DoubleEndedIterator<Item = Pgno> + Clone {
        (1..=count).filter_map(Pgno::new)
    }
}

impl fmt::Display for Pgno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Pgno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pgno({})", self.0)
    }
}

impl From<Pgno> for u32 {
    fn from(pgno: Pgno) -> u32 {
        pgno.get()
    }
}

/// A page size SQLite accepts: a power of two from 512 to 65536.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u32);

/// A number that is not a page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid page size {0}")]
pub struct InvalidPageSize(pub u32);

impl PageSize {
    pub const MIN: PageSize = PageSize(512);
    /// What SQLite gives a new database unless told otherwise.
    pub const DEFAULT: PageSize = PageSize(4096);
    pub const MAX: PageSize = PageSize(65536);

    pub const fn new(bytes: u32) -> Result<PageSize, InvalidPageSize> {
        if bytes.is_power_of_two() && bytes >= Self::MIN.0 && bytes <= Self::MAX.0 {
            Ok(PageSize(bytes))
        } else {
            Err(InvalidPageSize(bytes))
        }
    }

    /// Decodes the two bytes at offset 16 of the database header, where 1 stands for 65536.
    pub fn from_header_bytes(bytes: [u8; 2]) -> Result<PageSize, InvalidPageSize> {
        match u16::from_be_bytes(bytes) {
            1 => Ok(Self::MAX),
            size => Self::new(u32::from(size)),
        }
    }

    /// The inverse of [`PageSize::from_header_bytes`].
    pub fn to_header_bytes(self) -> [u8; 2] {
        self.to_u16().to_be_bytes()
    }

    /// The 16-bit form shared by the database header and the wal-index: 1 stands for 65536.
    pub(crate) const fn to_u16(self) -> u16 {
        if self.0 == Self::MAX.0 { 1 } else { self.0 as u16 }
    }

    pub const fn get(self) -> u32 {
        self.0
    }

    /// The size as a length of byte slices.
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// The page that contains the lock bytes. It holds no content and is never replicated.
    pub const fn lock_page(self) -> Pgno {
        match Pgno::new((PENDING_BYTE / self.0 as u64) as u32 + 1) {
            Some(pgno) => pgno,
            None => unreachable!(),
        }
    }

    /// How many bytes a database file of `pages` pages has.
    pub const fn file_size(self, pages: u32) -> u64 {
        self.0 as u64 * pages as u64
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageSize({})", self.0)
    }
}

impl TryFrom<u32> for PageSize {
    type Error = InvalidPageSize;

    fn try_from(bytes: u32) -> Result<PageSize, InvalidPageSize> {
        Self::new(bytes)
    }
}

impl From<PageSize> for u32 {
    fn from(size: PageSize) -> u32 {
        size.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_in_range_are_page_sizes() {
        let valid: Vec<u32> = (0..=200_000).filter(|n| PageSize::new(*n).is_ok()).collect();
        assert_eq!(valid, [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]);
        assert_eq!(PageSize::new(0), Err(InvalidPageSize(0)));
        assert_eq!(PageSize::new(1 << 31), Err(InvalidPageSize(1 << 31)));
    }

    #[test]
    fn lock_pages_are_those_of_the_reference() {
        let expected = [
            (512, 2_097_153),
            (1024, 1_048_577),
            (2048, 524_289),
            (4096, 262_145),
            (8192, 131_073),
            (16384, 65_537),
            (32768, 32_769),
            (65536, 16_385),
        ];
        for (size, page) in expected {
            let size = PageSize::new(size).unwrap();
            assert_eq!(size.lock_page().get(), page);
            assert_eq!(Pgno::containing(PENDING_BYTE, size), Some(size.lock_page()));
        }
    }

    #[test]
    fn header_bytes_round_trip_and_one_means_65536() {
        assert_eq!(PageSize::from_header_bytes([0, 1]), Ok(PageSize::MAX));
        for shift in 9..=16 {
            let size = PageSize::new(1 << shift).unwrap();
            assert_eq!(PageSize::from_header_bytes(size.to_header_bytes()), Ok(size));
        }
        assert!(PageSize::from_header_bytes([0, 0]).is_err());
    }

    #[test]
    fn offsets_and_pages_are_inverse_and_bounded() {
        let last = Pgno::new(u32::MAX).unwrap();
        let offset = last.offset(PageSize::MAX);
        assert_eq!(Pgno::containing(offset, PageSize::MAX), Some(last));
        assert_eq!(Pgno::containing(offset + 65536, PageSize::MAX), None);
        assert_eq!(Pgno::containing(u64::MAX, PageSize::MIN), None);
        assert_eq!(last.next(), None);
        assert_eq!(Pgno::FIRST.offset(PageSize::DEFAULT), 0);
    }
}
