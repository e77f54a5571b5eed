//! A sliding view of a WAL: frames are read in runs that grow while they are read in order, so that one small commit
//! costs one small read and a large transaction few large ones.

use std::fs::File;

use sqlite_format::PageSize;
use sqlite_format::wal::{FRAME_HEADER_SIZE, frame_offset, frame_size};

use crate::database::backing::read_full;

/// Longest run in bytes.
const LARGEST: usize = 256 << 10;

/// Frames `first..first + count` of a WAL.
#[derive(Debug, Default)]
pub(crate) struct Window {
    buf: Vec<u8>,
    first: u32,
    count: u32,
    run: u32,
}

impl Window {
    /// Forgets what was read: frames that are not committed may be overwritten at any time.
    pub(crate) fn clear(&mut self) {
        self.count = 0;
        self.run = 1;
    }

    /// Header and page of a frame; `None` beyond the end of the file. Reads on, up to frame `last`, if it is not in the
    /// window.
    pub(crate) fn frame(
        &mut self,
        file: &File,
        page_size: PageSize,
        number: u32,
        last: Option<u32>,
    ) -> std::io::Result<Option<&[u8]>> {
        if !self.holds(number) {
            self.refill(file, page_size, number, last)?;
        }
        Ok(self.get(page_size, number))
    }

    /// The page of a frame that may or may not be in the window, read into `spare` if it is not.
    pub(crate) fn page<'a>(
        &'a self,
        file: &File,
        page_size: PageSize,
        number: u32,
        spare: &'a mut [u8],
    ) -> std::io::Result<&'a [u8]> {
        if let Some(frame) = self.get(page_size, number) {
            return Ok(&frame[FRAME_HEADER_SIZE..]);
        }
        let read = read_full(
            file,
            spare,
            frame_offset(number, page_size) + FRAME_HEADER_SIZE as u64,
        )?;
        if read < spare.len() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(spare)
    }

    fn holds(&self, number: u32) -> bool {
        self.count > 0 && number >= self.first && number - self.first < self.count
    }

    fn get(&self, page_size: PageSize, number: u32) -> Option<&[u8]> {
        if !self.holds(number) {
            return None;
        }
        let size = frame_size(page_size);
        let at = (number - self.first) as usize * size;
        self.buf.get(at..at + size)
    }

    fn refill(
        &mut self,
        file: &File,
        page_size: PageSize,
        number: u32,
        last: Option<u32>,
    ) -> std::io::Result<()> {
        let size = frame_size(page_size);
        let most = (LARGEST / size).max(1) as u32;
        let wanted = match last {
            Some(last) => last.saturating_sub(number).saturating_add(1).min(most),
            None => self.run.clamp(1, most),
        };
        self.run = wanted.saturating_mul(2);
        self.buf.resize(wanted as usize * size, 0);
        let read = read_full(file, &mut self.buf, frame_offset(number, page_size))?;
        self.first = number;
        self.count = (read / size) as u32;
        Ok(())
    }
}
