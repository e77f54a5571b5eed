//! The pages of a record that change something.

use ltx::{Checksum, Decoder};
use sqlite_format::{PageSize, Pgno};

use crate::database::scan::{Holes, is_zero};
use crate::database::state::State;
use crate::error::Result;
use crate::log::{Record, RecordReader};
use crate::name::Side;

/// A page to be written.
pub(super) struct ChangedPage {
    pub(super) pgno: Pgno,
    pub(super) checksum: Checksum,
    pub(super) data: Vec<u8>,
    /// It holds zeros, and so does a hole of the main file, or its end, where it would be written.
    pub(super) is_there: bool,
}

/// Reads a record page by page.
pub(super) struct ChangedPages {
    decoder: Decoder<RecordReader>,
    page_size: PageSize,
    holes: Option<Holes>,
}

impl ChangedPages {
    pub(super) fn new(record: &Record) -> Result<ChangedPages> {
        let decoder = Decoder::new(record.reader())?;
        let page_size = decoder.header().page_size;
        Ok(ChangedPages {
            decoder,
            page_size,
            holes: None,
        })
    }

    pub(super) fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The next page whose content differs from what the table says; every page, if the table is for another page size
    /// or the files do not follow it.
    pub(super) fn next(&mut self, state: &mut State) -> Result<Option<ChangedPage>> {
        let known = state.table.page_size() == Some(self.page_size) && !state.health.is_diverged();
        let mut data = vec![0; self.page_size.bytes()];
        while let Some(pgno) = self.decoder.next_page(&mut data)? {
            let checksum = ltx::page_checksum(pgno, &data);
            let same = known
                && state.table.get(pgno) == Some(checksum)
                && !state.scratch.dirty().may_hold(pgno.get());
            if !same {
                let is_there = is_zero(&data) && self.is_hole(state, pgno)?;
                return Ok(Some(ChangedPage {
                    pgno,
                    checksum,
                    data,
                    is_there,
                }));
            }
        }
        Ok(None)
    }

    /// The pages behind this one are all that is written meanwhile, so what is known of holes ahead stays true.
    fn is_hole(&mut self, state: &mut State, pgno: Pgno) -> Result<bool> {
        let holes = match &mut self.holes {
            Some(holes) => holes,
            None => self.holes.insert(Holes::of(state.backing.get(Side::Database)?)),
        };
        Ok(holes.contain(pgno, self.page_size))
    }
}
