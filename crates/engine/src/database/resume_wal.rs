//! The WAL of a database whose clients go on: which of its frames are in the log.
//!
//! Frames that clients know of stay as they are until all are in the main file, which no client writes without a request. So up to
//! what was noted as published the file is right. Frames behind that were captured when they were durable or, in mode D, when they were
//! written; if their writer died too, another one may have overwritten them while nobody looked. Then the database goes back to what
//! clients know, before anything else is captured.

use std::fs::File;

use ltx::{Decoder, Txid, WalRange};
use sqlite_format::wal::{WalHeader, frame_offset, frame_size};
use sqlite_format::{PageSize, Pgno};

use super::Database;
use super::archive::is_of;
use super::scratch::{Clients, Left};
use super::state::State;
use crate::capture::wal::read_header;
use crate::error::Result;
use crate::log::{Record, RecordInfo};
use crate::name::Side;

/// How far a generation of the WAL is in the log.
#[derive(Debug, Clone, Copy)]
struct Captured {
    salt: [u32; 2],
    frames: u32,
    /// Of these, those that clients were known to know of.
    published: u32,
}

impl Database {
    /// Enters what is in the log of the WAL that is there; on a former or present primary, also finds what is lost of it.
    pub(super) fn take_up_wal(&self, state: &mut State, left: &Left, at: &RecordInfo) -> Result<()> {
        let Some(captured) = self.captured_frames(left, at)? else {
            return Ok(());
        };
        let writes = state.scratch.clients() == Clients::Write;
        let file = state.backing.get(Side::Wal)?;
        let Some((file, header)) = with_header(file)? else {
            // SQLite has moved everything to the main file before it let the WAL go. If somebody else has, that shows when it is compared.
            if writes {
                self.mark_captured(state, &captured, 0)?;
            }
            return Ok(());
        };
        if header.salt == captured.salt && self.enter_captured(state, &file, &header, &captured)? {
            return Ok(());
        }
        let Some((file, header)) = with_header(Some(file))? else {
            return Ok(());
        };
        let restarted = header.salt != captured.salt;
        state.wal.begin(header);
        match (writes, restarted) {
            // All frames of the old generation that clients knew of are in the main file.
            (true, true) if captured.published < captured.frames => {
                self.mark_captured(state, &captured, captured.published)?;
                self.compare_pages(state, 0)
            }
            (_, true) => Ok(()),
            (true, false) => {
                state.wal.map(&file, Some(captured.published))?;
                if state.wal.frames() != captured.published {
                    state.wal.unknown = true;
                    return Ok(());
                }
                self.enter_what_is_left(state, &file, &captured)?;
                let left = state.wal.frames();
                tracing::warn!(
                    db = %self.name, left, captured = captured.frames, "captured frames were lost with their writer"
                );
                self.mark_captured(state, &captured, left)?;
                self.compare_pages(state, 0)
            }
            // What apply wrote; the next record finds out.
            (false, false) => {
                state.wal.reset();
                Ok(())
            }
        }
    }

    /// Enters the captured frames. `false` if the file does not have them (any more).
    fn enter_captured(
        &self,
        state: &mut State,
        file: &File,
        header: &WalHeader,
        captured: &Captured,
    ) -> Result<bool> {
        state.wal.begin(header.clone());
        state.wal.map(file, Some(captured.published))?;
        if state.wal.frames() != captured.published {
            return Ok(false);
        }
        let whole = state.wal.map_unpublished(file, captured.frames)?;
        Ok(whole && self.are_current(state, captured.published)?)
    }

    /// Enters the captured frames behind those that clients were known to know of, up to the first transaction that is not as it was
    /// captured.
    fn enter_what_is_left(&self, state: &mut State, file: &File, captured: &Captured) -> Result<()> {
        let mut records = Vec::new();
        for record in self.log.records_back() {
            let record = record?;
            let range = range_of(&record)?.filter(|range| range.salt == captured.salt);
            match range.map(|range| last_frame(&range, record.info.page_size)) {
                Some(last) if last > captured.published => records.push((last, record)),
                Some(_) | None => break,
            }
        }
        while let (Some((last, record)), Some(group)) = (records.pop(), state.wal.next_group(file, None)?) {
            if group.end.frames != last || !is_of(&group, &record, file)? {
                break;
            }
            state.wal.enter_unpublished(group);
        }
        Ok(())
    }

    /// Whether the frames behind `published` hold what the last transaction left of their pages.
    fn are_current(&self, state: &mut State, published: u32) -> Result<bool> {
        let Some(page_size) = state.page_size() else {
            return Ok(true);
        };
        let behind = frame_offset(published + 1, page_size);
        let held: Vec<Pgno> = state.wal.held_pages().filter_map(Pgno::new).collect();
        let mut page = vec![0; page_size.bytes()];
        for pgno in held {
            let counts = pgno.get() <= state.commit && pgno != page_size.lock_page();
            if !counts || state.wal.frame_of(pgno).is_none_or(|frame| frame < behind) {
                continue;
            }
            state.read_page(pgno, page_size, &mut page)?;
            if !state.is_current(pgno, &page) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What was noted, and what the process captured after its last note.
    fn captured_frames(&self, left: &Left, at: &RecordInfo) -> Result<Option<Captured>> {
        let mut captured = left.cursor.map(|cursor| Captured {
            salt: cursor.salt,
            frames: cursor.at.frames,
            published: cursor.published,
        });
        let mut next = left
            .files_at
            .map_or(Txid::FIRST, |pos| pos.txid.next().unwrap_or(Txid::MAX));
        while next <= at.max {
            let Some(record) = self.log.find(next)? else {
                break;
            };
            if let Some(range) = range_of(&record)? {
                let known = captured.filter(|known| known.salt == range.salt);
                captured = Some(Captured {
                    salt: range.salt,
                    frames: last_frame(&range, record.info.page_size),
                    published: known.map_or(0, |known| known.published),
                });
            }
            next = record.info.max.next().unwrap_or(Txid::MAX);
        }
        Ok(captured)
    }

    /// The pages of this generation's transactions that end behind frame `after` may not be what the log says.
    fn mark_captured(&self, state: &mut State, captured: &Captured, after: u32) -> Result<()> {
        for record in self.log.records_back() {
            let record = record?;
            let range = range_of(&record)?.filter(|range| range.salt == captured.salt);
            let Some(range) = range else {
                // Of another generation, or from a rollback journal, with nothing of this one before it.
                break;
            };
            if last_frame(&range, record.info.page_size) <= after {
                break;
            }
            super::repair::for_each_page(&record, |pgno, _| {
                state.scratch.mark(pgno.get());
                Ok(())
            })?;
        }
        Ok(())
    }
}

fn with_header<F: std::ops::Deref<Target = File>>(file: Option<F>) -> Result<Option<(F, WalHeader)>> {
    let Some(file) = file else { return Ok(None) };
    Ok(read_header(&file)?.map(|header| (file, header)))
}

fn range_of(record: &Record) -> Result<Option<WalRange>> {
    Ok(Decoder::new(record.reader())?.header().wal)
}

/// The last frame of a range of a WAL.
pub(super) fn last_frame(range: &WalRange, page_size: PageSize) -> u32 {
    let end = range.offset + range.size;
    let frames = end.saturating_sub(frame_offset(1, page_size)) / frame_size(page_size) as u64;
    u32::try_from(frames).unwrap_or(u32::MAX)
}
