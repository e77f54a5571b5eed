//! The database header: the first 100 bytes of page 1.
//!
//! Capture reads it to learn page size, size and journal mode; the name space uses it to tell a database from
//! an ordinary file; import edits it so that open connections drop their caches.

use crate::bytes::{be_u32, put_be_u32};
use crate::page::{InvalidPageSize, PageSize};

/// The first 16 bytes of every SQLite database.
pub const HEADER_MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Length of the header.
pub const HEADER_SIZE: usize = 100;

const PAGE_SIZE: usize = 16;
const WRITE_VERSION: usize = 18;
const READ_VERSION: usize = 19;
const RESERVED: usize = 20;
const FRACTIONS: usize = 21;
const CHANGE_COUNTER: usize = 24;
const PAGE_COUNT: usize = 28;
const SCHEMA_COOKIE: usize = 40;
const VERSION_VALID_FOR: usize = 92;
const SQLITE_VERSION: usize = 96;

/// The only values SQLite accepts for the payload fractions.
const FRACTION_BYTES: [u8; 3] = [64, 32, 32];
/// The smallest usable page (page size minus reserved bytes) that SQLite accepts.
const MIN_USABLE: u32 = 480;

/// How transactions of the database are made atomic, as recorded in the database itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalMode {
    Rollback,
    Wal,
}

/// The fields of the header that replication cares about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseHeader {
    pub page_size: PageSize,
    pub write_version: u8,
    pub read_version: u8,
    /// Bytes at the end of every page that SQLite leaves to extensions.
    pub reserved: u8,
    pub change_counter: u32,
    /// Size in pages as stored; see [`DatabaseHeader::valid_page_count`].
    pub page_count: u32,
    pub schema_cookie: u32,
    pub version_valid_for: u32,
    /// `SQLITE_VERSION_NUMBER` of the last writer.
    pub sqlite_version: u32,
}

/// Why bytes are not a database header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("database header needs {HEADER_SIZE} bytes, got {0}")]
    Short(usize),
    #[error("not a SQLite database: wrong magic")]
    Magic,
    #[error("database header: {0}")]
    PageSize(#[from] InvalidPageSize),
    #[error("database header: payload fractions {0:?} are not 64, 32, 32")]
    Fractions([u8; 3]),
    #[error("database header: {reserved} reserved bytes leave too little of a page of {page_size}")]
    Reserved { reserved: u8, page_size: PageSize },
    #[error("database header: read version {0} is newer than any known SQLite")]
    ReadVersion(u8),
}

impl DatabaseHeader {
    /// Parses and validates the header at the start of `bytes`, as strictly as SQLite when it opens a file.
    pub fn parse(bytes: &[u8]) -> Result<DatabaseHeader, HeaderError> {
        if bytes.len() < HEADER_SIZE {
            return Err(HeaderError::Short(bytes.len()));
        }
        if !has_magic(bytes) {
            return Err(HeaderError::Magic);
        }
        let header = DatabaseHeader {
            page_size: PageSize::from_header_bytes([bytes[PAGE_SIZE], bytes[PAGE_SIZE + 1]])?,
            write_version: bytes[WRITE_VERSION],
            read_version: bytes[READ_VERSION],
            reserved: bytes[RESERVED],
            change_counter: be_u32(bytes, CHANGE_COUNTER),
            page_count: be_u32(bytes, PAGE_COUNT),
            schema_cookie: be_u32(bytes, SCHEMA_COOKIE),
            version_valid_for: be_u32(bytes, VERSION_VALID_FOR),
            sqlite_version: be_u32(bytes, SQLITE_VERSION),
        };
        let fractions = [bytes[FRACTIONS], bytes[FRACTIONS + 1], bytes[FRACTIONS + 2]];
        header.validate(fractions)?;
        Ok(header)
    }

    fn validate(&self, fractions: [u8; 3]) -> Result<(), HeaderError> {
        if fractions != FRACTION_BYTES {
            return Err(HeaderError::Fractions(fractions));
        }
        if self.page_size.get() - u32::from(self.reserved) < MIN_USABLE {
            return Err(HeaderError::Reserved {
                reserved: self.reserved,
                page_size: self.page_size,
            });
        }
        if self.read_version > 2 {
            return Err(HeaderError::ReadVersion(self.read_version));
        }
        Ok(())
    }

    /// SQLite decides by the read version alone; a write version of 2 with a read version of 1 is read-only,
    /// not WAL.
    pub fn journal_mode(&self) -> JournalMode {
        if self.read_version == 2 {
            JournalMode::Wal
        } else {
            JournalMode::Rollback
        }
    }

    /// The stored page count, unless an ancient SQLite wrote the file last: then only the file size is right.
    pub fn valid_page_count(&self) -> Option<u32> {
        let valid = self.page_count > 0 && self.change_counter == self.version_valid_for;
        valid.then_some(self.page_count)
    }
}

/// Whether `bytes` begin like a SQLite database.
pub fn has_magic(bytes: &[u8]) -> bool {
    bytes.starts_with(HEADER_MAGIC)
}

/// Sets the change counter, and with it the number that vouches for the page count. `page` is page 1 or its
/// header.
///
/// # Panics
/// When `page` is shorter than the header.
pub fn set_change_counter(page: &mut [u8], counter: u32) {
    put_be_u32(page, CHANGE_COUNTER, counter);
    put_be_u32(page, VERSION_VALID_FOR, counter);
}

/// Makes every connection that has the database open drop its page cache. Panics like [`set_change_counter`].
pub fn increment_change_counter(page: &mut [u8]) {
    let counter = be_u32(page, CHANGE_COUNTER).wrapping_add(1);
    set_change_counter(page, counter);
}

/// Makes open connections re-read the schema when it differs. Panics like [`set_change_counter`].
pub fn set_schema_cookie(page: &mut [u8], cookie: u32) {
    put_be_u32(page, SCHEMA_COOKIE, cookie);
}

/// Sets the page count. Panics like [`set_change_counter`].
pub fn set_page_count(page: &mut [u8], count: u32) {
    put_be_u32(page, PAGE_COUNT, count);
}

/// Sets both version bytes. Panics like [`set_change_counter`].
pub fn set_journal_mode(page: &mut [u8], mode: JournalMode) {
    let version = match mode {
        JournalMode::Rollback => 1,
        JournalMode::Wal => 2,
    };
    page[WRITE_VERSION] = version;
    page[READ_VERSION] = version;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Vec<u8> {
        let mut page = vec![0; 512];
        page[..16].copy_from_slice(HEADER_MAGIC);
        page[16..18].copy_from_slice(&[2, 0]);
        page[18..20].copy_from_slice(&[2, 2]);
        page[21..24].copy_from_slice(&FRACTION_BYTES);
        set_change_counter(&mut page, 7);
        set_page_count(&mut page, 3);
        set_schema_cookie(&mut page, 9);
        page
    }

    #[test]
    fn fields_are_read_from_their_offsets() {
        let header = DatabaseHeader::parse(&page()).unwrap();
        assert_eq!(header.page_size, PageSize::MIN);
        assert_eq!(header.journal_mode(), JournalMode::Wal);
        assert_eq!((header.change_counter, header.version_valid_for), (7, 7));
        assert_eq!((header.page_count, header.schema_cookie), (3, 9));
        assert_eq!(header.valid_page_count(), Some(3));
    }

    #[test]
    fn a_stale_or_zero_page_count_is_not_valid() {
        let mut page = page();
        put_be_u32(&mut page, CHANGE_COUNTER, 8);
        assert_eq!(DatabaseHeader::parse(&page).unwrap().valid_page_count(), None);
        set_change_counter(&mut page, 8);
        set_page_count(&mut page, 0);
        assert_eq!(DatabaseHeader::parse(&page).unwrap().valid_page_count(), None);
    }

    #[test]
    fn every_truncation_and_every_wrong_field_is_a_typed_error() {
        let good = page();
        for len in 0..HEADER_SIZE {
            assert_eq!(DatabaseHeader::parse(&good[..len]), Err(HeaderError::Short(len)));
        }
        let with = |offset: usize, value: u8| {
            let mut page = page();
            page[offset] = value;
            DatabaseHeader::parse(&page).unwrap_err()
        };
        assert_eq!(with(3, b'x'), HeaderError::Magic);
        assert_eq!(with(16, 3), HeaderError::PageSize(InvalidPageSize(768)));
        assert_eq!(with(22, 1), HeaderError::Fractions([64, 1, 32]));
        assert_eq!(
            with(20, 33),
            HeaderError::Reserved {
                reserved: 33,
                page_size: PageSize::MIN
            }
        );
        assert_eq!(with(19, 3), HeaderError::ReadVersion(3));
    }

    #[test]
    fn edits_change_what_they_name() {
        let mut page = page();
        increment_change_counter(&mut page);
        set_journal_mode(&mut page, JournalMode::Rollback);
        let header = DatabaseHeader::parse(&page).unwrap();
        assert_eq!((header.change_counter, header.version_valid_for), (8, 8));
        assert_eq!(header.journal_mode(), JournalMode::Rollback);
        set_change_counter(&mut page, u32::MAX);
        increment_change_counter(&mut page);
        assert_eq!(DatabaseHeader::parse(&page).unwrap().change_counter, 0);
    }
}
