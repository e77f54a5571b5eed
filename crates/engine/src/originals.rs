//! What the pages of a transaction that is under way looked like before it, from its rollback journal.
//!
//! The journal may be growing, or belong to a client that died. Nothing read from it is true by itself: the caller
//! compares each page with the checksum table.

use std::fs::File;

use sqlite_format::Pgno;
use sqlite_format::journal::{HEADER_SIZE, JournalHeader, RecordCount};

use crate::database::backing::read_full;
use crate::error::{Error, Result};

/// Calls `page` for every record of the journal, as far as SQLite would roll it back.
pub(crate) fn for_each(journal: &File, mut page: impl FnMut(Pgno, &[u8]) -> Result<()>) -> Result<()> {
    let mut offset = 0;
    let mut bytes = Vec::new();
    while let Some(header) = read_header(journal, offset)? {
        offset += u64::from(header.sector_size);
        bytes.resize(header.record_size(), 0);
        let count = match header.records {
            RecordCount::Exactly(count) => count,
            RecordCount::ToEndOfFile => u32::MAX,
        };
        for _ in 0..count {
            let filled = read(journal, &mut bytes, offset)?;
            let Ok(record) = header.parse_record(&bytes[..filled]) else {
                return Ok(());
            };
            page(record.pgno, record.page)?;
            offset += bytes.len() as u64;
        }
        offset = header.align(offset);
    }
    Ok(())
}

fn read_header(journal: &File, offset: u64) -> Result<Option<JournalHeader>> {
    let mut bytes = [0; HEADER_SIZE];
    let filled = read(journal, &mut bytes, offset)?;
    Ok(JournalHeader::parse(&bytes[..filled]).ok())
}

fn read(journal: &File, bytes: &mut [u8], offset: u64) -> Result<usize> {
    read_full(journal, bytes, offset).map_err(Error::io("journal.read", "-journal"))
}
