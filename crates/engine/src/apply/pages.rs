//! The pages of a record that change something.

use ltx::{Checksum, Decoder};
use sqlite_format::{PageSize, Pgno};

use crate::database::state::State;
use crate::error::Result;
use crate::log::{Record, RecordReader};

/// A page to be written.
pub(super) struct ChangedPage {
    pub(super) pgno: Pgno,
    pub(super) checksum: Checksum,
    pub(super) data: Vec<u8>,
}

/// Reads a record page by page.
pub(super) struct ChangedPages {
    decoder: Decoder<RecordReader>,
    page_size: PageSize,
}

impl ChangedPages {
    pub(super) fn new(record: &Record) -> Result<ChangedPages> {
        let decoder = Decoder::new(record.reader())?;
        let page_size = decoder.header().page_size;
        Ok(ChangedPages { decoder, page_size })
    }

    pub(super) fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The next page whose content differs from what the table says; every page, if the table is for another page size
    /// or the files do not follow it.
    pub(super) fn next(&mut self, state: &State) -> Result<Option<ChangedPage>> {
        let table = &state.table;
        let known = table.page_size() == Some(self.page_size) && state.quarantine.is_none();
        let mut data = vec![0; self.page_size.bytes()];
        while let Some(pgno) = self.decoder.next_page(&mut data)? {
            let checksum = ltx::page_checksum(pgno, &data);
            let same =
                known && table.get(pgno) == Some(checksum) && !state.scratch.dirty().may_hold(pgno.get());
            if !same {
                return Ok(Some(ChangedPage { pgno, checksum, data }));
            }
        }
        Ok(None)
    }
}
