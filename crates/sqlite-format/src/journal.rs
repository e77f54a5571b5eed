//! The rollback journal: what the pages of a transaction looked like before it.
//!
//! A journal is a sequence of segments. Each begins with a header at a multiple of the sector size, followed by
//! records of page number, original page and checksum. Capture looks at the header to tell a commit from a
//! rollback; the tools list and replay records. Rolling back is SQLite's own work.

use crate::bytes::{be_u32, put_be_u32};
use crate::page::{InvalidPageSize, PageSize, Pgno};

mod records;

pub use records::{Records, records};

/// The first 8 bytes of a segment that was synced.
pub const JOURNAL_MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// Length of the header's fields; the header occupies a whole sector.
pub const HEADER_SIZE: usize = 28;

/// The header of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalHeader {
    pub records: RecordCount,
    /// Seeds the record checksums, so that records of an earlier journal in the same blocks do not match.
    pub nonce: u32,
    /// Size of the database in pages before the transaction.
    pub initial_pages: u32,
    pub sector_size: u32,
    pub page_size: PageSize,
}

/// How many records a segment has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordCount {
    /// Synced: so many are on disk. 0 in the last segment of an unsynced journal means "not known".
    Exactly(u32),
    /// Written without syncs: as many as the file has room for.
    ToEndOfFile,
}

/// Why bytes are not a journal header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    #[error("journal header needs {HEADER_SIZE} bytes, got {0}")]
    ShortHeader(usize),
    #[error("journal header: wrong magic")]
    Magic,
    #[error("journal header: {0}")]
    PageSize(#[from] InvalidPageSize),
    #[error("journal header: invalid sector size {0}")]
    SectorSize(u32),
    #[error("journal record needs {expected} bytes, got {actual}")]
    ShortRecord { expected: usize, actual: usize },
    #[error("journal record: invalid page number {0}")]
    Page(u32),
    #[error("journal record of page {0}: wrong checksum")]
    Checksum(Pgno),
}

impl JournalHeader {
    pub fn parse(bytes: &[u8]) -> Result<JournalHeader, JournalError> {
        if bytes.len() < HEADER_SIZE {
            return Err(JournalError::ShortHeader(bytes.len()));
        }
        if !has_magic(bytes) {
            return Err(JournalError::Magic);
        }
        let sector_size = be_u32(bytes, 20);
        if !sector_size.is_power_of_two() || !(32..=65536).contains(&sector_size) {
            return Err(JournalError::SectorSize(sector_size));
        }
        Ok(JournalHeader {
            records: match be_u32(bytes, 8) {
                u32::MAX => RecordCount::ToEndOfFile,
                count => RecordCount::Exactly(count),
            },
            nonce: be_u32(bytes, 12),
            initial_pages: be_u32(bytes, 16),
            sector_size,
            page_size: PageSize::new(be_u32(bytes, 24))?,
        })
    }

    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[..8].copy_from_slice(&JOURNAL_MAGIC);
        let records = match self.records {
            RecordCount::Exactly(count) => count,
            RecordCount::ToEndOfFile => u32::MAX,
        };
        put_be_u32(&mut bytes, 8, records);
        put_be_u32(&mut bytes, 12, self.nonce);
        put_be_u32(&mut bytes, 16, self.initial_pages);
        put_be_u32(&mut bytes, 20, self.sector_size);
        put_be_u32(&mut bytes, 24, self.page_size.get());
        bytes
    }

    /// Length of one record: page number, page, checksum.
    pub fn record_size(&self) -> usize {
        self.page_size.bytes() + 8
    }

    /// Where the first segment that begins at `offset` or after it has its header.
    pub fn align(&self, offset: u64) -> u64 {
        offset.next_multiple_of(u64::from(self.sector_size))
    }

    /// Parses one record, which must be exactly [`JournalHeader::record_size`] bytes.
    pub fn parse_record<'a>(&self, bytes: &'a [u8]) -> Result<Record<'a>, JournalError> {
        let expected = self.record_size();
        if bytes.len() != expected {
            return Err(JournalError::ShortRecord {
                expected,
                actual: bytes.len(),
            });
        }
        let number = be_u32(bytes, 0);
        // The lock page announces the name of a super-journal, not a record.
        let pgno = Pgno::new(number).filter(|pgno| *pgno != self.page_size.lock_page());
        let pgno = pgno.ok_or(JournalError::Page(number))?;
        let page = &bytes[4..expected - 4];
        if record_checksum(self.nonce, page) != be_u32(bytes, expected - 4) {
            return Err(JournalError::Checksum(pgno));
        }
        Ok(Record { pgno, page })
    }
}

/// A page as it was before the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub pgno: Pgno,
    pub page: &'a [u8],
}

/// Whether `bytes` begin with the magic: the journal was synced, so its end is a commit and not a rollback.
pub fn has_magic(bytes: &[u8]) -> bool {
    bytes.starts_with(&JOURNAL_MAGIC)
}

/// SQLite's record checksum: every 200th byte, counted from the end of the page.
pub fn record_checksum(nonce: u32, page: &[u8]) -> u32 {
    let mut sum = nonce;
    let mut index = page.len().saturating_sub(200);
    while index > 0 {
        sum = sum.wrapping_add(u32::from(page[index]));
        index = index.saturating_sub(200);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> JournalHeader {
        JournalHeader {
            records: RecordCount::Exactly(2),
            nonce: 0xdead_beef,
            initial_pages: 9,
            sector_size: 512,
            page_size: PageSize::MIN,
        }
    }

    #[test]
    fn headers_round_trip_and_wrong_ones_are_typed_errors() {
        let unsynced = JournalHeader {
            records: RecordCount::ToEndOfFile,
            ..header()
        };
        for header in [header(), unsynced] {
            assert_eq!(JournalHeader::parse(&header.encode()), Ok(header));
        }
        for len in 0..HEADER_SIZE {
            assert_eq!(
                JournalHeader::parse(&header().encode()[..len]),
                Err(JournalError::ShortHeader(len))
            );
        }
        let with = |offset: usize, value: u32| {
            let mut bytes = header().encode();
            put_be_u32(&mut bytes, offset, value);
            JournalHeader::parse(&bytes).unwrap_err()
        };
        assert_eq!(with(4, 0), JournalError::Magic);
        assert_eq!(with(24, 1000), JournalError::PageSize(InvalidPageSize(1000)));
        for size in [0, 16, 33, 1 << 17] {
            assert_eq!(with(20, size), JournalError::SectorSize(size));
        }
    }

    #[test]
    fn a_record_is_believed_only_with_its_checksum() {
        let page: Vec<u8> = (0..512).map(|i| i as u8).collect();
        let mut bytes = 3u32.to_be_bytes().to_vec();
        bytes.extend(&page);
        bytes.extend(record_checksum(header().nonce, &page).to_be_bytes());
        let pgno = Pgno::new(3).unwrap();
        assert_eq!(header().parse_record(&bytes), Ok(Record { pgno, page: &page }));
        let other = JournalHeader { nonce: 1, ..header() };
        assert_eq!(other.parse_record(&bytes), Err(JournalError::Checksum(pgno)));
        let short = JournalError::ShortRecord {
            expected: 520,
            actual: 519,
        };
        assert_eq!(header().parse_record(&bytes[..519]), Err(short));
        bytes[3] = 0;
        assert_eq!(header().parse_record(&bytes), Err(JournalError::Page(0)));
    }

    #[test]
    fn the_checksum_adds_every_200th_byte_from_the_end() {
        let mut page = [0; 512];
        page[312] = 3;
        page[112] = 4;
        page[0] = 100;
        page[511] = 100;
        assert_eq!(record_checksum(u32::MAX, &page), 6);
        assert_eq!(record_checksum(5, &[]), 5);
    }
}
