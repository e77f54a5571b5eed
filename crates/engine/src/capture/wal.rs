//! Capture of WAL commits: frames that became committed since the last time are turned into transactions.
//!
//! Committed is what the wal-index publishes (`mxFrame`), or, where there is no coherent wal-index, what the chain of
//! salts and checksums proves. A WAL starts over only after all its pages were written to the main file, and every such
//! write captures first, so no frame is overwritten before it was captured.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::time::Instant;

use sqlite_format::wal::{
    FRAME_HEADER_SIZE, FrameHeader, WAL_HEADER_SIZE, WalHeader, WalPosition, frame_offset, frame_size,
};
use sqlite_format::{PageSize, Pgno};

use super::group::{Followed, Group, newest};
use super::index::read_index;
use super::window::Window;
use ltx::WalRange;

use crate::apply::IndexImage;
use crate::commit::{Draft, Source};
use crate::database::backing::read_full;
use crate::database::scan::Scan;
use crate::database::scratch::Cursor;
use crate::database::{Database, state::State};
use crate::error::{Error, Result};
use crate::kernel::Coherence;
use crate::log::Appender;
use crate::name::Side;

/// What is known of the WAL of a database.
#[derive(Debug, Default)]
pub(crate) struct Wal {
    /// The file may exist.
    pub(crate) present: bool,
    /// Header of the current generation, once a frame of it was seen.
    pub(crate) header: Option<WalHeader>,
    /// Frames of this generation that are in the log.
    pub(crate) at: Option<WalPosition>,
    /// The header of a commit frame was written since the last capture; seen only where writes are intercepted.
    pub(crate) commit_written: bool,
    /// Size of the database in pages at the last of them.
    pub(crate) commit: u32,
    /// Which frames are in the log is not known: what the WAL holds is compared as a whole.
    pub(crate) unknown: bool,
    /// Up to here clients know of them, with the size of the database there.
    pub(super) published: Option<(WalPosition, u32)>,
    /// Ends of transactions behind that, which were captured when they were durable. Their writer may die before it
    /// publishes them; the next writer then overwrites their frames.
    pub(super) unpublished: Vec<(WalPosition, u32)>,
    /// Newest of those frames for each page.
    pages: HashMap<u32, u32>,
    /// Pages that had frames and lay behind the end of the database when it shrank.
    outdated: HashSet<u32>,
    /// Page of every frame, in order.
    pub(super) order: Vec<u32>,
    /// The wal-index that clients of mode D should see.
    pub(crate) image: IndexImage,
    /// Counts what was published in the wal-index.
    change: u32,
    pub(super) window: Window,
    /// How far the frames behind the captured ones were followed in vain.
    pub(super) followed: Option<Followed>,
}

/// Which frames count as committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Those that the wal-index publishes; the chain where there is no index.
    Index,
    /// All up to the last commit frame of the chain: they are durable, or their writer is gone.
    Chain,
}

impl Wal {
    /// Where the frame with the newest captured version of a page is in the WAL file.
    pub(crate) fn frame_of(&self, pgno: Pgno) -> Option<u64> {
        let frame = *self.pages.get(&pgno.get())?;
        let page_size = self.header.as_ref()?.page_size;
        Some(frame_offset(frame, page_size))
    }

    /// Whether these bytes begin a frame of this generation with that page.
    pub(crate) fn is_frame_of(&self, pgno: Pgno, head: &[u8]) -> bool {
        let salt = self.header.as_ref().map(|header| header.salt);
        FrameHeader::parse(head).is_ok_and(|frame| frame.pgno == pgno && Some(frame.salt) == salt)
    }

    /// The page has a captured version in the WAL, which hides the one in the main file.
    pub(crate) fn holds(&self, pgno: Pgno) -> bool {
        self.pages.contains_key(&pgno.get())
    }

    /// The page has frames from before the database shrank. A reader would find them if the database grew without a new one, and a checkpoint
    /// that began before still writes them.
    pub(crate) fn has_outdated(&self, pgno: Pgno) -> bool {
        self.outdated.contains(&pgno.get())
    }

    /// Captured frames of the current generation.
    pub(crate) fn frames(&self) -> u32 {
        self.at.map_or(0, |at| at.frames)
    }

    /// Whether frames were captured that no client knows yet.
    pub(crate) fn has_unpublished(&self) -> bool {
        !self.unpublished.is_empty()
    }

    /// Where the next frame goes.
    pub(crate) fn end_offset(&self) -> Option<u64> {
        Some(frame_offset(self.at?.frames + 1, self.header.as_ref()?.page_size))
    }

    /// Pages with a captured version in the WAL.
    pub(crate) fn held_pages(&self) -> impl Iterator<Item = u32> + '_ {
        self.pages.keys().copied()
    }

    /// Nothing of the WAL counts any more: it was truncated, removed or started over.
    pub(crate) fn reset(&mut self) {
        self.header = None;
        self.at = None;
        self.commit = 0;
        self.published = None;
        self.unpublished.clear();
        self.pages.clear();
        self.outdated.clear();
        self.order.clear();
        self.image = IndexImage::default();
        self.followed = None;
    }

    /// A new generation begins.
    pub(crate) fn begin(&mut self, header: WalHeader) {
        self.reset();
        let start = WalPosition {
            frames: 0,
            checksum: header.checksum,
        };
        self.at = Some(start);
        self.published = Some((start, 0));
        self.header = Some(header);
    }

    /// Page of every frame, in order.
    pub(crate) fn order(&self) -> &[u32] {
        &self.order
    }

    /// Notes the pages of frames that follow the ones before, in the order of the file.
    pub(crate) fn note_order(&mut self, frames: &[(Pgno, u32)]) {
        self.order.extend(frames.iter().map(|(pgno, _)| pgno.get()));
    }

    /// Change counter for the next header of the wal-index; it differs from that of the last one, and from the one that
    /// clients see if it is known.
    pub(crate) fn next_change(&mut self, seen: Option<u32>) -> u32 {
        self.change = seen.unwrap_or(self.change).wrapping_add(1);
        self.change
    }

    /// Frames were captured or applied.
    pub(crate) fn advance(
        &mut self,
        frames: impl IntoIterator<Item = (Pgno, u32)>,
        end: WalPosition,
        commit: u32,
    ) {
        self.pages
            .extend(frames.into_iter().map(|(pgno, frame)| (pgno.get(), frame)));
        if commit < self.commit {
            // When the database grows again, these frames count for readers only if no checkpoint came in between.
            // Nobody cares what such a page holds; what a checkpoint makes of it is captured then.
            let gone = self.pages.extract_if(|page, _| *page > commit);
            self.outdated.extend(gone.map(|(page, _)| page));
        }
        self.at = Some(end);
        self.commit = commit;
        self.published = Some((end, commit));
        self.unpublished.clear();
    }

    /// Enters committed frames without capturing them: all up to frame `limit`, or as far as the chain goes.
    pub(crate) fn map(&mut self, file: &File, limit: Option<u32>) -> Result<()> {
        self.window.clear();
        while let Some(group) = self.next_group(file, limit)? {
            self.enter(group);
        }
        Ok(())
    }

    /// As [`Wal::map_chain`], for frames that clients may not know yet.
    pub(crate) fn map_unpublished(&mut self, file: &File, last: u32) -> Result<bool> {
        self.window.clear();
        while self.frames() < last {
            match self.next_group(file, None)? {
                Some(group) if group.end.frames <= last => self.enter_unpublished(group),
                Some(_) | None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// As [`Wal::enter`], for a transaction that clients may not know yet.
    pub(crate) fn enter_unpublished(&mut self, mut group: Group) {
        self.note_order(&group.frames);
        let frames = newest(&mut group.frames);
        self.advance_unpublished(frames, group.end, group.commit);
    }

    /// As [`Wal::map`] up to a frame, but following the chain. `false` if it breaks before.
    pub(crate) fn map_chain(&mut self, file: &File, last: u32) -> Result<bool> {
        self.window.clear();
        while self.frames() < last {
            match self.next_group(file, None)? {
                Some(group) if group.end.frames <= last => self.enter(group),
                Some(_) | None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Notes the pages of the transaction that follows.
    pub(crate) fn enter(&mut self, mut group: Group) {
        self.note_order(&group.frames);
        let frames = newest(&mut group.frames);
        self.advance(frames, group.end, group.commit);
    }

    /// Whether the file holds a frame of this generation after the captured ones: its transaction is not finished, or
    /// not published yet.
    fn more_follows(&self, file: &File) -> bool {
        self.headers_behind(file).next().is_some()
    }

    /// Whether one of the frames after the captured ones may end a transaction; its page may be yet to be written.
    pub(crate) fn may_end(&self, file: &File) -> bool {
        self.header.is_none() || self.headers_behind(file).any(|frame| frame.commit > 0)
    }

    /// Headers of this generation after the captured frames.
    fn headers_behind<'a>(&'a self, file: &'a File) -> impl Iterator<Item = FrameHeader> + 'a {
        let known = self.header.as_ref().zip(self.at);
        known.into_iter().flat_map(move |(header, at)| {
            (at.frames + 1..).map_while(move |number| {
                let mut bytes = [0; FRAME_HEADER_SIZE];
                let read = read_full(file, &mut bytes, frame_offset(number, header.page_size)).ok()?;
                let frame = FrameHeader::parse(&bytes[..read]).ok()?;
                (frame.salt == header.salt).then_some(frame)
            })
        })
    }
}

/// Header of a WAL file; `None` if SQLite would take the file for empty.
pub(crate) fn read_header(file: &File) -> Result<Option<WalHeader>> {
    let mut bytes = [0; WAL_HEADER_SIZE];
    let read = read_full(file, &mut bytes, 0).map_err(Error::io("wal.read", "-wal"))?;
    Ok(WalHeader::parse(&bytes[..read]).ok())
}

impl Database {
    /// Turns committed frames into transactions. Returns whether the WAL holds frames that may become committed soon
    /// without any further sign.
    pub(crate) fn capture_wal(&self, state: &mut State, until: Until) -> Result<bool> {
        if !state.wal.present {
            return Ok(false);
        }
        self.health.check_usable()?;
        if state.commit == 0 && state.backing.len(Side::Database)? == 0 {
            // SQLite removes a WAL beside an empty main file unread; beside one that is yet to come it counts.
            state.wal.unknown = true;
            return Ok(false);
        }
        if state.pos.is_zero() || state.wal.unknown {
            self.adopt_wal(state)?;
            if state.backing.get(Side::Wal)?.is_none() {
                // A rollback-mode transaction may be under way: what it has written so far is not committed.
                state.wal.present = false;
                self.shared.settler.watch(&self.name);
                return Ok(false);
            }
            self.compare_pages(state, 0)?;
            return Ok(false);
        }
        let Some(file) = state.backing.get(Side::Wal)? else {
            state.wal.reset();
            state.wal.present = false;
            return Ok(false);
        };
        let (started, before) = (Instant::now(), state.pos);
        let limit = match self.committed_frames(state, &file, until)? {
            Committed::Nothing => return Ok(false),
            Committed::UpTo(limit) => Some(limit),
            Committed::Chain => None,
        };
        state.wal.window.clear();
        if self.shared.kernel().coherence() != Coherence::Intercepted {
            // Frames change without a request.
            state.wal.followed = None;
        }
        if let Some(group) = state.wal.next_group(&file, limit)? {
            let mut appender = self.log.appender()?;
            state.wal.commit_written = false;
            let captured = self.capture_groups(state, &mut appender, &file, group, limit);
            // What was captured before a failure counts.
            self.flush(state, appender)?;
            self.time_capture(state, before, started);
            captured?;
        }
        Ok(limit.is_some() && state.wal.more_follows(&file))
    }

    /// Takes the committed frames for a part of the database's content, none of which is in the log.
    pub(crate) fn adopt_wal(&self, state: &mut State) -> Result<()> {
        state.wal.reset();
        state.scratch.mark_all();
        if let Some(file) = state.backing.get(Side::Wal)? {
            match self.committed_frames(state, &file, Until::Index)? {
                Committed::Nothing => {}
                Committed::UpTo(limit) => state.wal.map(&file, Some(limit))?,
                Committed::Chain => state.wal.map(&file, None)?,
            }
        }
        state.wal.unknown = false;
        Ok(())
    }

    /// Finds out how far the WAL is committed, and notices a new generation.
    fn committed_frames(&self, state: &mut State, file: &File, until: Until) -> Result<Committed> {
        if until == Until::Index
            && !state.scratch.index_is_dead()
            && self.shared.kernel().coherence() == Coherence::Passthrough
            && let Some(shm) = state.backing.get(Side::Shm)?
            && let Some(index) =
                read_index(&shm).map_err(Error::io("shm.read", state.backing.path(Side::Shm)))?
        {
            if index.max_frame == 0 {
                return Ok(Committed::Nothing);
            }
            self.check_published(state, file, Some(&index))?;
            if state
                .wal
                .header
                .as_ref()
                .is_none_or(|header| header.salt != index.salt)
            {
                match read_header(file)? {
                    Some(header) if header.salt == index.salt => state.wal.begin(header),
                    Some(_) | None => return Ok(Committed::Nothing),
                }
            }
            return Ok(Committed::UpTo(index.max_frame));
        }
        let Some(header) = read_header(file)? else {
            return Ok(Committed::Nothing);
        };
        if state
            .wal
            .header
            .as_ref()
            .is_none_or(|known| known.salt != header.salt)
        {
            self.wal_goes(state)?;
            state.wal.begin(header);
        }
        self.check_published(state, file, None)?;
        Ok(Committed::Chain)
    }

    fn capture_groups(
        &self,
        state: &mut State,
        appender: &mut Appender<'_>,
        file: &File,
        first: Group,
        limit: Option<u32>,
    ) -> Result<()> {
        let mut next = Some(first);
        while let Some(group) = next {
            self.capture_group(state, appender, file, group, limit.is_some())?;
            next = state.wal.next_group(file, limit)?;
        }
        Ok(())
    }

    /// Turns one committed transaction into a record.
    fn capture_group(
        &self,
        state: &mut State,
        appender: &mut Appender<'_>,
        file: &File,
        mut group: Group,
        published: bool,
    ) -> Result<()> {
        let page_size = match &state.wal.header {
            Some(header) => header.page_size,
            None => return Ok(()),
        };
        let source = Source::Wal(WalRange {
            offset: frame_offset(group.first, page_size),
            size: u64::from(group.end.frames + 1 - group.first) * frame_size(page_size) as u64,
            salt: state.wal.header.as_ref().map_or([0; 2], |header| header.salt),
        });
        let order: Vec<u32> = group.frames.iter().map(|(pgno, _)| pgno.get()).collect();
        let written = newest(&mut group.frames);
        let mut draft = Draft::new(self, appender, state, page_size, group.commit, source)?;
        let window = std::mem::take(&mut state.wal.window);
        let mut spare = std::mem::take(&mut state.spare);
        spare.resize(page_size.bytes(), 0);
        let outcome = draft_group(state, file, &window, &written, &mut draft, &mut spare);
        state.wal.window = window;
        state.spare = spare;
        outcome?;
        draft.finish(state)?;
        state.wal.order.extend(order);
        match published {
            true => state.wal.advance(written, group.end, group.commit),
            false => state.wal.advance_unpublished(written, group.end, group.commit),
        }
        Ok(())
    }
}

/// Takes in the written pages and, in between, those that the transaction added without writing them.
fn draft_group(
    state: &mut State,
    file: &File,
    window: &Window,
    written: &[(Pgno, u32)],
    draft: &mut Draft<'_, '_>,
    spare: &mut [u8],
) -> Result<()> {
    let page_size = draft.page_size();
    let count = draft.grown_count();
    let mut grown = draft.grown().peekable();
    // Usually the transaction wrote all pages that it added.
    let mut scan = None;
    let mut unwritten = |state: &mut State, draft: &mut Draft<'_, '_>, pgno| {
        let scan = match &mut scan {
            Some(scan) => scan,
            None => scan.insert(Scan::new(state, page_size, count)?),
        };
        let page = scan.page(state, pgno)?;
        draft.known_page(state, pgno, page.data, page.checksum)
    };
    for (pgno, frame) in written {
        while let Some(hole) = grown.next_if(|hole| hole < pgno) {
            unwritten(state, draft, hole)?;
        }
        grown.next_if(|hole| hole == pgno);
        if draft.wants(*pgno) {
            let page = window
                .page(file, page_size, *frame, spare)
                .map_err(Error::io("wal.read", "-wal"))?;
            draft.page(state, *pgno, page)?;
        }
    }
    grown.try_for_each(|hole| unwritten(state, draft, hole))
}

enum Committed {
    Nothing,
    UpTo(u32),
    Chain,
}

impl State {
    /// Notes in memory that survives the process how far the WAL is in the log.
    pub(crate) fn set_cursor(&mut self) {
        let cursor = match (&self.wal.header, self.wal.at) {
            (Some(header), Some(at)) => Some(Cursor {
                txid: self.pos.txid,
                salt: header.salt,
                at,
                published: self.wal.known_to_clients(),
            }),
            (Some(_) | None, _) => None,
        };
        self.scratch.set_cursor(self.pos, cursor);
    }

    /// The page size that the WAL is written with, if it holds captured frames.
    pub(crate) fn wal_page_size(&self) -> Option<PageSize> {
        self.wal
            .header
            .as_ref()
            .filter(|_| self.wal.frames() > 0)
            .map(|header| header.page_size)
    }
}
