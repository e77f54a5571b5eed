//! The WAL that a start finds: frames that the log lacks are captured, then the content goes to the main file and the WAL
//! out of the mount, which also keeps clients that still hold it open on a dead mount from being heard.
//!
//! Which frames the log lacks is told by what was noted in memory that survives the process; by the log, which names the
//! frames of each captured record, where that memory is gone; by nothing at all on a replica, whose log is ahead of its
//! WAL.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use ltx::{Decoder, Txid, WalRange};
use sqlite_format::wal::{FRAME_HEADER_SIZE, WalHeader};
use sqlite_format::{PageSize, Pgno};

use super::open::{aside_of, joined};
use super::repair::Touched;
use super::resume_wal::last_frame;
use super::scratch::{Dirty, Left};
use super::state::State;
use super::{Database, aside};
use crate::capture::wal::{Until, Wal, read_header};
use crate::error::{Error, Result};
use crate::log::{Origin, RecordInfo};
use crate::name::{DbName, Side};
use crate::shared::Shared;
use crate::writers::seal::seal;

impl Database {
    /// Captures what the WAL holds beyond the log, then moves its content to the main file and removes it. Adds pages that
    /// have to come from the log.
    pub(super) fn recover_wal(
        &self,
        state: &mut State,
        left: &Left,
        tail: &RecordInfo,
        touched: &mut Touched,
    ) -> Result<()> {
        let Some(file) = state.backing.get(Side::Wal)? else {
            return Ok(());
        };
        if let Some(header) = read_header(&file)? {
            let captures = match self.wal_start(state, &header, left, tail)? {
                Start::After(frames) if self.map_logged(state, &file, &header, frames, left)? => {
                    self.capture_wal(state, Until::Chain)?;
                    true
                }
                // All valid frames are in the log, and it may be ahead of them: what differs is written from it.
                Start::After(_) => {
                    self.map_wal(state, &file, None)?;
                    false
                }
                Start::Behind => {
                    self.archive_strays(state, &file, &header, left)?;
                    self.map_wal(state, &file, None)?;
                    false
                }
            };
            let place = state.backing.place(Side::Wal)?;
            let reopened = state.aside.take(&file, place.path(), &self.home)?;
            if reopened && captures {
                self.capture_wal(state, Until::Chain)?;
            }
            state.backing.forget(Side::Wal);
            let wal = std::mem::take(&mut state.wal);
            self.copy_pages(state, &wal, &file, touched)?;
            self.cut_file(state)?;
        } else {
            state.backing.forget(Side::Wal);
            let place = state.backing.place(Side::Wal)?;
            aside::remove(&file, place.path())
                .map_err(Error::io("wal.remove", state.backing.path(Side::Wal)))?;
        }
        state.wal = Wal::default();
        Ok(())
    }

    /// What earlier starts took out of the mount and nobody synced: a kill may have come before the main file had it
    /// all, or the power went.
    pub(super) fn copy_aside(&self, state: &mut State, touched: &mut Touched) -> Result<()> {
        if state.aside.is_empty() {
            return Ok(());
        }
        for file in state.aside.files()? {
            let Some(header) = read_header(&file)? else {
                continue;
            };
            let mut wal = Wal::default();
            wal.begin(header);
            wal.map(&file, None)?;
            self.copy_pages(state, &wal, &file, touched)?;
        }
        Ok(())
    }

    /// Which frames are not in the log.
    fn wal_start(&self, state: &State, header: &WalHeader, left: &Left, tail: &RecordInfo) -> Result<Start> {
        let cursor = left.cursor.filter(|cursor| cursor.salt == header.salt);
        let known = cursor.map_or(0, |cursor| cursor.at.frames);
        let Some(files_at) = left.files_at else {
            if tail.meta.origin != Origin::Captured {
                return Ok(Start::Behind);
            }
            let range = self.wal_range(tail.max)?;
            let range = range.filter(|range| range.salt == header.salt);
            return Ok(Start::After(
                range.map_or(0, |range| last_frame(&range, header.page_size)),
            ));
        };
        let mut frames = known;
        let mut next = files_at.txid;
        // The process died after these were appended to the log, and before that was noted.
        while next < state.pos.txid {
            next = next.next().unwrap_or(Txid::MAX);
            let captured = self
                .log
                .find(next)?
                .is_some_and(|record| record.info.meta.origin == Origin::Captured);
            if !captured {
                return Ok(Start::Behind);
            }
            if let Some(range) = self.wal_range(next)?.filter(|range| range.salt == header.salt) {
                frames = last_frame(&range, header.page_size);
            }
        }
        Ok(Start::After(frames))
    }

    /// Where in a WAL a transaction was captured.
    fn wal_range(&self, txid: Txid) -> Result<Option<WalRange>> {
        match self.log.find(txid)? {
            Some(record) => Ok(Decoder::new(record.reader())?.header().wal),
            None => Ok(None),
        }
    }

    /// Enters the first frames, which are in the log. `false` if the WAL does not have them all: after a power loss it
    /// may lack what nobody synced.
    fn map_logged(
        &self,
        state: &mut State,
        file: &File,
        header: &WalHeader,
        frames: u32,
        left: &Left,
    ) -> Result<bool> {
        state.wal.begin(header.clone());
        if left.same_boot {
            state.wal.map(file, Some(frames))?;
            Ok(state.wal.frames() == frames)
        } else {
            state.wal.map_chain(file, frames)
        }
    }

    /// Notes which pages the committed frames hold: all up to `limit`, or all that the chain proves.
    pub(crate) fn map_wal(&self, state: &mut State, file: &File, limit: Option<u32>) -> Result<()> {
        state.wal.reset();
        if let Some(header) = read_header(file)? {
            state.wal.begin(header);
            state.wal.map(file, limit)?;
        }
        Ok(())
    }

    /// Copies to the main file the pages that it lacks: those of the WAL that are what the last transaction made them. Adds those that are
    /// not: the frame of a client that no longer followed the log hides what the WAL had of the page, which may be in none of the log's last
    /// records.
    ///
    /// The log becomes durable while they are looked for, and before one is written: what it lacked could not be derived from the main
    /// file.
    fn copy_pages(&self, state: &mut State, wal: &Wal, wal_file: &File, touched: &mut Touched) -> Result<()> {
        let Some(page_size) = state.page_size() else {
            return Ok(self.log.sync()?);
        };
        let mut hidden = BTreeSet::new();
        let frames = std::thread::scope(|scope| {
            let syncing = aside_of(scope, || Ok(self.log.sync()?));
            let frames = lacking(state, wal, wal_file, page_size, &mut hidden);
            joined(syncing?)?;
            frames
        })?;
        let mut page = vec![0; page_size.bytes()];
        for (pgno, frame) in frames {
            read_page(state, wal_file, frame, &mut page)?;
            // Where the WAL cannot be sealed, a client of the dead mount may have begun to overwrite it.
            if !state.is_current(pgno, &page) {
                hidden.insert(pgno.get());
                continue;
            }
            let file = state.backing.get_or_create(Side::Database)?;
            file.write_all_at(&page, pgno.offset(page_size))
                .map_err(Error::io("database.write", state.backing.path(Side::Database)))?;
        }
        touched.extend(&Dirty::Pages(hidden));
        Ok(())
    }

    /// In WAL mode the main file has no pages beyond the end.
    fn cut_file(&self, state: &mut State) -> Result<()> {
        let Some(page_size) = state.page_size() else {
            return Ok(());
        };
        let file = state.backing.get_or_create(Side::Database)?;
        file.set_len(page_size.file_size(state.commit))
            .map_err(Error::io("database.truncate", state.backing.path(Side::Database)))
    }
}

/// Frames of pages that the main file lacks, in the order of the pages. Adds those whose frame is not what the last transaction left.
fn lacking(
    state: &mut State,
    wal: &Wal,
    wal_file: &File,
    page_size: PageSize,
    hidden: &mut BTreeSet<u32>,
) -> Result<Vec<(Pgno, u64)>> {
    if wal
        .header
        .as_ref()
        .is_none_or(|header| header.page_size != page_size)
    {
        return Ok(Vec::new());
    }
    let mut pages: Vec<u32> = wal.held_pages().filter(|page| *page <= state.commit).collect();
    pages.sort_unstable();
    let (mut new, mut old) = (vec![0; page_size.bytes()], vec![0; page_size.bytes()]);
    let mut lacking = Vec::new();
    for pgno in pages.into_iter().filter_map(Pgno::new) {
        let Some(frame) = wal.frame_of(pgno) else {
            continue;
        };
        read_page(state, wal_file, frame, &mut new)?;
        if !state.is_current(pgno, &new) {
            hidden.insert(pgno.get());
            continue;
        }
        state
            .backing
            .read_padded(Side::Database, &mut old, pgno.offset(page_size))?;
        if old != new {
            lacking.push((pgno, frame));
        }
    }
    Ok(lacking)
}

/// The page of the frame at this offset.
fn read_page(state: &State, wal_file: &File, frame: u64, page: &mut [u8]) -> Result<()> {
    wal_file
        .read_exact_at(page, frame + FRAME_HEADER_SIZE as u64)
        .map_err(Error::io("wal.read", state.backing.path(Side::Wal)))
}

/// Keeps clients of a dead mount from going on in a WAL that nobody will look at any more. Comes before everything else that is done with
/// it: a client that goes on writing could keep the capture busy for ever.
pub(super) fn seal_left(shared: &Shared, name: &DbName, wal: &File) -> Result<()> {
    if shared.options.seal && !seal(wal).map_err(Error::io("wal.seal", name.file(Side::Wal)))? {
        tracing::debug!(db = %name, "the WAL cannot be sealed: its file system or a missing CAP_LINUX_IMMUTABLE");
    }
    Ok(())
}

/// Which frames of a WAL that was found are not in the log.
enum Start {
    /// Those after so many.
    After(u32),
    /// Those of clients that no longer followed the log, which is ahead of the files.
    Behind,
}
