//! Commits that are captured before clients can see them, and may be lost with their writer.
//!
//! A synced commit counts, but only its writer can publish it in the wal-index. If the writer is killed in between, nobody
//! was told that the commit succeeded, and the next writer overwrites its frames. Then the database goes back to what
//! clients know, with a transaction of its own, before anything else is captured.

use std::fs::File;

use sqlite_format::Pgno;
use sqlite_format::wal::{FRAME_HEADER_SIZE, FrameHeader, WalChecksum, WalHeader, WalPosition, frame_offset};
use sqlite_format::wal_index::IndexHeader;

use super::wal::Wal;
use crate::database::backing::read_full;
use crate::database::{Database, state::State};
use crate::error::{Error, Result};
use crate::kernel::Coherence;

impl Wal {
    /// Frames were captured before clients can know of them.
    pub(super) fn advance_unpublished(&mut self, frames: Vec<(Pgno, u32)>, end: WalPosition, commit: u32) {
        let published = self.published;
        let mut unpublished = std::mem::take(&mut self.unpublished);
        unpublished.push((end, commit));
        self.advance(frames, end, commit);
        self.published = published;
        self.unpublished = unpublished;
    }

    /// How many of the captured frames clients are known to know of.
    pub(crate) fn known_to_clients(&self) -> u32 {
        self.published.map_or(0, |(end, _)| end.frames)
    }

    /// Clients know of all captured transactions up to frame `last`, if one ends there (with that checksum).
    fn publish(&mut self, last: u32, checksum: Option<WalChecksum>) -> bool {
        let ends_there = |(end, _): &(WalPosition, u32)| {
            end.frames == last && checksum.is_none_or(|checksum| checksum == end.checksum)
        };
        if self.published.as_ref().is_some_and(ends_there) {
            return true;
        }
        let Some(found) = self.unpublished.iter().position(ends_there) else {
            return false;
        };
        self.published = self.unpublished.drain(..=found).next_back();
        true
    }

    /// Whether the file still has the last captured frame.
    fn has_last_frame(&self, file: &File) -> Result<bool> {
        let (Some(header), Some(at)) = (&self.header, self.at.filter(|at| at.frames > 0)) else {
            return Ok(true);
        };
        let mut bytes = [0; FRAME_HEADER_SIZE];
        let offset = frame_offset(at.frames, header.page_size);
        let read = read_full(file, &mut bytes, offset).map_err(Error::io("wal.read", "-wal"))?;
        let same = |frame: FrameHeader| frame.salt == header.salt && frame.checksum == at.checksum;
        Ok(FrameHeader::parse(&bytes[..read]).is_ok_and(same))
    }
}

impl Database {
    /// Finds out whether what was captured before it was published is still there. If it was lost with its writer, no
    /// client has ever seen it: the database goes back to what clients know.
    pub(super) fn check_published(
        &self,
        state: &mut State,
        file: &File,
        index: Option<&IndexHeader>,
    ) -> Result<()> {
        if state.wal.unpublished.is_empty() {
            return Ok(());
        }
        let same_generation = |header: &WalHeader| index.is_none_or(|index| index.salt == header.salt);
        let here = state.wal.header.as_ref().is_some_and(same_generation);
        let frames = state.wal.frames();
        let last = index.map_or(frames, |index| index.max_frame);
        let lost = if !here {
            true
        } else if last >= frames {
            !state.wal.has_last_frame(file)?
        } else {
            !state.wal.publish(last, index.map(|index| index.frame_checksum))
        };
        if lost {
            return self.take_back_unpublished(state, here.then_some(file));
        }
        if index.is_some() && last >= frames {
            state.wal.publish(frames, None);
        }
        Ok(())
    }

    /// The WAL is about to go, and every published frame with it to the main file.
    pub(crate) fn wal_goes(&self, state: &mut State) -> Result<()> {
        let passthrough = self.shared.kernel().coherence() == Coherence::Passthrough;
        match state.wal.unpublished.is_empty() || !passthrough {
            true => Ok(()),
            false => self.take_back_unpublished(state, None),
        }
    }

    /// Captured frames behind `intact` ones are about to be overwritten: their writer died before it published them.
    pub(crate) fn frames_go(&self, state: &mut State, file: &File, intact: u32) -> Result<()> {
        match state.wal.publish(intact, None) {
            true if state.wal.unpublished.is_empty() => Ok(()),
            true | false => self.take_back_unpublished(state, Some(file)),
        }
    }

    /// Goes back, with a transaction of its own, to what clients know; `None`: the whole WAL is gone.
    fn take_back_unpublished(&self, state: &mut State, file: Option<&File>) -> Result<()> {
        let published = state.wal.published.map_or(0, |(end, _)| end.frames);
        let lost: Vec<u32> = state
            .wal
            .order
            .split_off(state.wal.order.len().min(published as usize));
        tracing::warn!(db = %self.name, frames = lost.len(), "captured frames were lost with their writer");
        for page in lost {
            state.scratch.mark(page);
        }
        match file {
            Some(file) => self.map_wal(state, file, Some(published))?,
            None => state.wal.reset(),
        }
        self.compare_pages(state, 0)
    }
}
