//! The records of a whole journal, in the order and as far as SQLite would roll them back.

use super::{JournalError, JournalHeader, Record, RecordCount, has_magic};
use crate::bytes::be_u32;

/// The records of `journal`, the bytes of the file. Where a page occurs more than once, the first record is the page before
/// the transaction. The end is where SQLite stops: at the end of the last synced segment, or at the first record that does not
/// have its checksum.
pub fn records(journal: &[u8]) -> Result<Records<'_>, JournalError> {
    let header = JournalHeader::parse(journal)?;
    let mut records = Records {
        journal,
        header,
        offset: 0,
        left: 0,
    };
    records.next_segment();
    Ok(records)
}

/// See [`records`].
#[derive(Clone, Debug)]
pub struct Records<'a> {
    journal: &'a [u8],
    /// Of the current segment.
    header: JournalHeader,
    offset: usize,
    left: usize,
}

impl Records<'_> {
    /// The header of the segment that the last record came from.
    pub fn header(&self) -> &JournalHeader {
        &self.header
    }

    /// Moves to the first record of the segment that begins at or after `offset`.
    fn next_segment(&mut self) -> Option<()> {
        let sector = self.header.sector_size as usize;
        let start = self.offset.next_multiple_of(sector);
        let bytes = self.journal.get(start..).filter(|bytes| bytes.len() >= sector)?;
        if !has_magic(bytes) || bytes.len() < super::HEADER_SIZE {
            return None;
        }
        // Sector and page size are those of the first segment.
        self.header.nonce = be_u32(bytes, 12);
        self.header.initial_pages = be_u32(bytes, 16);
        self.offset = start + sector;
        let room = (self.journal.len() - self.offset) / self.header.record_size();
        (self.header.records, self.left) = match be_u32(bytes, 8) {
            u32::MAX => (RecordCount::ToEndOfFile, room),
            count => (RecordCount::Exactly(count), room.min(count as usize)),
        };
        Some(())
    }

    fn stop(&mut self) {
        self.left = 0;
        self.offset = self.journal.len();
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        while self.left == 0 {
            self.next_segment()?;
        }
        let end = self.offset + self.header.record_size();
        let record = self
            .journal
            .get(self.offset..end)
            .map(|bytes| self.header.parse_record(bytes));
        let Some(Ok(record)) = record else {
            self.stop();
            return None;
        };
        self.offset = end;
        self.left -= 1;
        Some(record)
    }
}
