//! What the kernel edge reports, in the order in which a transaction meets it. Each function performs the operation on
//! the backing file itself, at the one moment that keeps the log complete.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use ltx::ZeroPages;
use sqlite_format::journal::{HEADER_SIZE as JOURNAL_HEADER_SIZE, JournalHeader};
use sqlite_format::wal::{FRAME_HEADER_SIZE, FrameHeader, WAL_HEADER_SIZE, WalHeader, frame_size};
use sqlite_format::{PageSize, Pgno};

use super::Database;
use super::backing::read_full;
use super::state::State;
use crate::capture::wal::{Until, read_header};
use crate::commit::{Draft, Source};
use crate::error::{Error, Result};
use crate::kernel::Coherence;
use crate::name::Side;
use crate::options::Durability;

/// How long the asynchronous trigger leaves a database alone that could not be captured.
const RETRY: Duration = Duration::from_millis(500);

/// An operation of the file system that the engine runs at the right moment.
pub type FileOp<'a> = &'a mut dyn FnMut() -> io::Result<()>;

impl Database {
    /// A write to the main file: a page of a rollback-mode transaction, of a checkpoint, or raw bytes.
    ///
    /// Committed WAL frames are captured first, because a checkpoint that wrote them all may let the WAL start over. On
    /// a replica only writes that change nothing for readers are let through: checkpoints and rollbacks.
    pub fn write_database(&self, file: &File, offset: u64, data: &[u8]) -> Result<()> {
        let mut state = self.state.lock();
        if self.is_closed() {
            self.check_restores(&mut state, |state| is_restored(state, offset, data))?;
        } else if self.shared.is_primary() {
            self.capture_wal(&mut state, Until::Index)?;
        } else if !preserves_content(&state, offset, data) {
            return Err(Error::ReadOnly(self.name.clone()));
        }
        file.write_all_at(data, offset)
            .map_err(Error::io("database.write", state.backing.path(Side::Database)))?;
        if self.shared.is_primary() {
            self.mark_written(&mut state, offset, data);
        }
        Ok(())
    }

    /// The main file gets another size.
    pub fn truncate_database(&self, file: &File, size: u64) -> Result<()> {
        let mut state = self.state.lock();
        if self.is_closed() {
            let size_of = |page_size: PageSize, state: &State| page_size.file_size(state.commit);
            self.check_restores(&mut state, |state| {
                state
                    .page_size()
                    .is_some_and(|page_size| size_of(page_size, state) == size)
            })?;
        } else if self.shared.is_primary() {
            self.capture_wal(&mut state, Until::Index)?;
        } else if !keeps_pages(&state, size) {
            return Err(Error::ReadOnly(self.name.clone()));
        }
        file.set_len(size)
            .map_err(Error::io("database.truncate", state.backing.path(Side::Database)))?;
        if self.shared.is_primary() {
            let last = state
                .page_size()
                .and_then(|page_size| Pgno::containing(size, page_size))
                .map_or(1, Pgno::get);
            state.scratch.mark(last);
            // Pages behind the new end change without a write: they may come back as zeros before anybody looks, and a
            // checkpoint may cut off one that was added since and never written.
            for page in last.saturating_add(1)..=state.commit.max(state.wal.commit) {
                if Pgno::new(page).is_some_and(|page| !state.wal.holds(page)) {
                    state.scratch.mark(page);
                }
            }
            self.written(&mut state);
        }
        Ok(())
    }

    /// SQLite makes the main file durable. The log goes first: once a checkpoint's pages are durable the WAL may start
    /// over, and what the log misses then could not be captured again after a power loss.
    pub fn sync_database(&self, file: &File, datasync: bool) -> Result<()> {
        let last_write = {
            let mut state = self.state.lock();
            if self.is_closed() {
                self.check_restores(&mut state, |_| true)?;
                drop(state);
                return self.sync(file, datasync, "database.sync");
            }
            state.synced_writes |= !state.scratch.dirty().is_clean();
            state.last_write
        };
        self.log.sync()?;
        self.sync(file, datasync, "database.sync")?;
        let mut state = self.state.lock();
        // SQLite syncs here when all pages of a transaction are written, never when it only makes room in its cache.
        state.all_synced = state.last_write == last_write;
        if state.all_synced && !state.scratch.dirty().is_clean() && !state.backing.journal_is_hot()? {
            state.clients_sync = true;
            self.shared.settler.watch(&self.name);
        }
        Ok(())
    }

    /// A handle that could write the main file was closed: raw writes may be complete.
    pub fn close_database(&self) {
        if !self.state.lock().scratch.dirty().is_clean() {
            self.shared.settler.watch(&self.name);
        }
    }

    /// The main file is removed: a transaction that drops the database.
    pub fn unlink_database(&self, op: FileOp<'_>) -> Result<()> {
        let mut state = self.state.lock();
        if !self.shared.is_primary() && !state.pos.is_zero() && state.commit > 0 {
            return Err(Error::ReadOnly(self.name.clone()));
        }
        self.check_usable()?;
        self.capture_wal(&mut state, Until::Index)?;
        // The record comes first: a file that is gone before it is logged could not be told from one that was lost.
        self.drop_content(&mut state)?;
        state.backing.forget(Side::Database);
        self.forget_locks();
        op().map_err(|error| {
            // It is still there, and is captured as a new database.
            state.scratch.mark_all();
            state.wal.unknown = true;
            self.written(&mut state);
            Error::io("database.unlink", state.backing.path(Side::Database))(error)
        })
    }

    /// The database is gone from the name space; its transactions go on when the name is used again.
    pub(crate) fn drop_content(&self, state: &mut State) -> Result<()> {
        state.wal.reset();
        // Its frames belong to what is dropped, also while the file is still there.
        state.wal.present = false;
        if self.shared.is_primary()
            && let Some(page_size) = state.page_size()
        {
            let mut appender = self.log.appender()?;
            Draft::new(
                self,
                &mut appender,
                state,
                page_size,
                0,
                Source::Pages { journal_nonce: 0 },
            )?
            .finish(state)?;
            self.flush(state, appender)?;
        }
        state.scratch.settle();
        state.set_cursor();
        self.resume(state);
        Ok(())
    }

    /// A rollback journal is created: the start of a write transaction.
    pub fn create_journal(&self, op: FileOp<'_>) -> Result<()> {
        if !self.shared.is_primary() {
            return Err(Error::ReadOnly(self.name.clone()));
        }
        // Without a journal there is nothing to roll back, and readers go on.
        self.check_usable()?;
        op().map_err(Error::io("journal.create", self.name.file(Side::Journal)))
    }

    /// A write to a journal handle that is intercepted.
    pub fn write_journal(&self, file: &File, offset: u64, data: &[u8]) -> Result<()> {
        // On a replica nothing may make a journal hot; finishing one off, as a rollback does, is let through.
        if !self.shared.is_primary() && data.iter().any(|byte| *byte != 0) {
            return Err(Error::ReadOnly(self.name.clone()));
        }
        file.write_all_at(data, offset)
            .map_err(Error::io("journal.write", self.name.file(Side::Journal)))?;
        if offset == 0 && data.iter().all(|byte| *byte == 0) {
            self.end_of_journal(file)?;
        }
        Ok(())
    }

    /// SQLite makes the journal durable. In PERSIST mode the last sync is that of the zeroed header: the commit.
    pub fn sync_journal(&self, file: &File, datasync: bool) -> Result<()> {
        self.sync(file, datasync, "journal.sync")?;
        self.end_of_journal(file)
    }

    /// Captures if the journal's header says that no transaction is under way.
    fn end_of_journal(&self, journal: &File) -> Result<()> {
        let mut state = self.state.lock();
        if state.scratch.dirty().is_clean() {
            // The settler may have been faster, and have found that the disk fails.
            return self.check_usable();
        }
        let mut head = [0; JOURNAL_HEADER_SIZE];
        let read = read_full(journal, &mut head, 0)
            .map_err(Error::io("journal.read", state.backing.path(Side::Journal)))?;
        if head[..read].iter().any(|byte| *byte != 0) {
            return Ok(());
        }
        if !self.shared.is_primary() || self.is_closed() {
            return self.check_rolled_back(&mut state);
        }
        self.capture_pages(&mut state, 0)?;
        self.sync_commit(&mut state)
    }

    /// A transaction that began while this node was the primary, or before its disk failed, may be rolled back here, but
    /// not committed.
    fn check_rolled_back(&self, state: &mut State) -> Result<()> {
        match self.first_difference(state)? {
            None => {
                state.scratch.settle();
                Ok(())
            }
            Some(_) => {
                self.check_usable()?;
                Err(Error::ReadOnly(self.name.clone()))
            }
        }
    }

    /// The journal is truncated; to nothing, it is the commit (or the end of a rollback, which changes nothing).
    pub fn truncate_journal(&self, file: &File, size: u64) -> Result<()> {
        let mut op = || file.set_len(size);
        if size == 0 {
            self.finish_journal(&mut op)
        } else {
            op().map_err(Error::io("journal.truncate", "-journal"))
        }
    }

    /// The journal is removed: the commit, or the end of a rollback.
    pub fn unlink_journal(&self, op: FileOp<'_>) -> Result<()> {
        self.finish_journal(op)?;
        self.state.lock().backing.forget(Side::Journal);
        Ok(())
    }

    /// Captures, then lets the journal go. The record comes first: with the journal's nonce in it, a start after a
    /// crash in between can tell that this journal is committed and must not be rolled back.
    fn finish_journal(&self, op: FileOp<'_>) -> Result<()> {
        let mut state = self.state.lock();
        let mut synced = Ok(());
        if self.shared.is_primary() && !self.is_closed() && !state.scratch.dirty().is_clean() {
            let nonce = journal_nonce(&mut state)?;
            self.capture_pages(&mut state, nonce)?;
            // The transaction is in the log, durable or not: a journal that stayed would bring back what was before, and
            // keep readers out for as long as it cannot.
            synced = self.sync_commit(&mut state);
        } else if !state.scratch.dirty().is_clean() {
            self.check_rolled_back(&mut state)?;
        }
        op().map_err(Error::io("journal.finish", state.backing.path(Side::Journal)))?;
        synced
    }

    /// Makes the record durable if SQLite made the transaction durable.
    pub(super) fn sync_commit(&self, state: &mut State) -> Result<()> {
        if std::mem::take(&mut state.synced_writes) {
            self.log.sync()?;
        }
        Ok(())
    }

    /// A write to a WAL handle that is intercepted. At the end of a frame its transaction may be complete.
    pub fn write_wal(&self, file: &File, offset: u64, data: &[u8]) -> Result<()> {
        if !self.shared.is_primary() {
            return Err(Error::ReadOnly(self.name.clone()));
        }
        let mut state = self.state.lock();
        self.check_usable()?;
        if let Some(intact) = intact_frames(&state, offset) {
            self.frames_go(&mut state, file, intact)?;
        }
        file.write_all_at(data, offset)
            .map_err(Error::io("wal.write", state.backing.path(Side::Wal)))?;
        state.wal.present = true;
        if offset == 0 {
            self.begin_wal(&mut state, data)?;
        }
        if completes_commit(&mut state, file, offset, data)? {
            if self.captures_at_frame_end() {
                self.capture_wal(&mut state, Until::Chain)?;
            } else {
                // A handle from before a promotion: the commit is published after this request, and nothing tells of it.
                self.shared.settler.watch(&self.name);
            }
        }
        Ok(())
    }

    /// A WAL starts over with another header: all its frames are in the main file.
    fn begin_wal(&self, state: &mut State, data: &[u8]) -> Result<()> {
        match WalHeader::parse(data) {
            Ok(header)
                if state
                    .wal
                    .header
                    .as_ref()
                    .is_some_and(|known| known.salt != header.salt) =>
            {
                self.wal_goes(state)?;
                state.wal.begin(header);
                Ok(())
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Whether nothing but the write of a commit frame tells of the commit, or the commit must not return before it is
    /// captured.
    fn captures_at_frame_end(&self) -> bool {
        self.shared.kernel().coherence() == Coherence::Intercepted
            || self.shared.options.durability == Durability::Commit
    }

    /// SQLite makes the WAL durable: the commit of `synchronous=FULL`. A failure is the client's failed COMMIT.
    pub fn sync_wal(&self, file: &File, datasync: bool) -> Result<()> {
        self.sync(file, datasync, "wal.sync")?;
        let mut state = self.state.lock();
        if self.shared.is_primary() {
            self.check_usable()?;
            state.wal.present = true;
            self.capture_wal(&mut state, Until::Chain)?;
        }
        Ok(())
    }

    /// The WAL gets another size; its frames are captured before they go.
    pub fn truncate_wal(&self, file: &File, size: u64) -> Result<()> {
        let mut state = self.state.lock();
        self.capture_before_wal_goes(&mut state)?;
        file.set_len(size)
            .map_err(Error::io("wal.truncate", state.backing.path(Side::Wal)))?;
        if size == 0 {
            self.wal_is_gone(&mut state)?;
        }
        Ok(())
    }

    /// The WAL is removed: the last connection is closed, or the journal mode changes.
    pub fn unlink_wal(&self, op: FileOp<'_>) -> Result<()> {
        let mut state = self.state.lock();
        self.capture_before_wal_goes(&mut state)?;
        op().map_err(Error::io("wal.unlink", state.backing.path(Side::Wal)))?;
        state.backing.forget(Side::Wal);
        state.wal.present = false;
        self.wal_is_gone(&mut state)
    }

    /// SQLite has moved what the WAL held to the main file, unless somebody removed or damaged it: then the database is
    /// what the main file says.
    fn wal_is_gone(&self, state: &mut State) -> Result<()> {
        let commit = state.commit;
        let held: Vec<u32> = state.wal.held_pages().filter(|page| *page <= commit).collect();
        state.wal.reset();
        state.set_cursor();
        let Some(page_size) = state.page_size().filter(|_| self.shared.is_primary()) else {
            return Ok(());
        };
        let mut page = vec![0; page_size.bytes()];
        let mut lost = false;
        for pgno in held.into_iter().filter_map(Pgno::new) {
            state.read_page(pgno, page_size, &mut page)?;
            if pgno != page_size.lock_page() && !state.is_current(pgno, &page) {
                state.scratch.mark(pgno.get());
                lost = true;
            }
        }
        if lost {
            tracing::warn!(db = %self.name, "the WAL is gone, and the main file lacks pages that it held");
            self.compare_pages(state, 0)?;
        }
        Ok(())
    }

    fn capture_before_wal_goes(&self, state: &mut State) -> Result<()> {
        if self.shared.is_primary() {
            self.capture_wal(state, Until::Index)?;
            self.wal_goes(state)?;
        }
        Ok(())
    }

    /// A WAL file was created or opened.
    pub fn wal_opened(&self) {
        let mut state = self.state.lock();
        state.wal.present = true;
        state.wal.index_is_dead = false;
    }

    /// The wal-index was removed or created: locks taken on the old file mean nothing.
    pub fn shm_replaced(&self) {
        self.state.lock().backing.forget(Side::Shm);
        self.forget_locks();
    }

    /// Somebody wrote the WAL without asking: the asynchronous trigger.
    pub fn wal_changed(&self) -> Result<()> {
        if !self.shared.is_primary() || self.is_closed() {
            return Ok(());
        }
        let started = Instant::now();
        let mut state = self.state.lock();
        if state.retry_at.is_some_and(|at| started < at) {
            return Ok(());
        }
        let captured = self.capture_wal(&mut state, Until::Index);
        // What cannot be captured, on a full disk say, is tried again by the settler. To try with each commit would cost
        // every client a look at all that waits.
        state.retry_at = captured.is_err().then(|| Instant::now() + RETRY);
        drop(state);
        let more = captured.inspect_err(|_| self.shared.settler.watch(&self.name))?;
        self.metrics
            .capture_seconds
            .record(started.elapsed().as_secs_f64());
        if more {
            self.shared.settler.watch(&self.name);
        }
        Ok(())
    }

    fn mark_written(&self, state: &mut State, offset: u64, data: &[u8]) {
        let Some(page_size) = state.page_size() else {
            state.scratch.mark_all();
            return self.written(state);
        };
        let size = page_size.bytes();
        let end = offset + data.len() as u64;
        let mut at = offset - offset % size as u64;
        let mut changed = false;
        while at < end {
            let Some(pgno) = Pgno::containing(at, page_size) else {
                break;
            };
            let whole = at >= offset && at + size as u64 <= end;
            let current = whole && {
                let from = (at - offset) as usize;
                state.is_current(pgno, &data[from..from + size])
            };
            // A page that is written back to what it was stays marked: the file is read once more, nothing else.
            if !current {
                state.scratch.mark(pgno.get());
                changed = true;
            }
            at += size as u64;
        }
        if changed {
            self.written(state);
        }
    }

    fn written(&self, state: &mut State) {
        state.last_write = Some(Instant::now());
        state.all_synced = false;
        self.shared.settler.watch(&self.name);
    }

    fn sync(&self, file: &File, datasync: bool, op: &'static str) -> Result<()> {
        let outcome = if datasync {
            file.sync_data()
        } else {
            file.sync_all()
        };
        outcome.map_err(|e| {
            let error = Error::io(op, self.name.as_str())(e);
            self.closed.close(&error.to_string());
            error
        })
    }
}

/// The write leaves every reader with the content of the last transaction: it brings pages to the state they have in the
/// table, or writes under the WAL. Or behind the end: a checkpoint may have begun before the database shrank.
fn preserves_content(state: &State, offset: u64, data: &[u8]) -> bool {
    let Some(page_size) = state.page_size() else {
        return false;
    };
    let size = page_size.bytes();
    if !offset.is_multiple_of(size as u64) || !data.len().is_multiple_of(size) {
        return false;
    }
    data.chunks_exact(size).enumerate().all(|(i, page)| {
        Pgno::containing(offset + (i * size) as u64, page_size).is_some_and(|pgno| {
            // What a transaction that is being applied grows by it does not write, unless there is a frame already.
            let behind = pgno.get() > state.commit.max(state.incoming) && state.wal.frames() > 0
                || pgno.get() > state.commit && state.wal.has_outdated(pgno);
            behind || state.wal.holds(pgno) || state.is_current(pgno, page)
        })
    })
}

/// The write brings whole pages back to what the last transaction left.
fn is_restored(state: &State, offset: u64, data: &[u8]) -> bool {
    let Some(page_size) = state.page_size() else {
        return false;
    };
    let size = page_size.bytes();
    let whole = offset.is_multiple_of(size as u64) && data.len().is_multiple_of(size);
    whole
        && data.chunks_exact(size).enumerate().all(|(i, page)| {
            Pgno::containing(offset + (i * size) as u64, page_size)
                .is_some_and(|pgno| state.is_current(pgno, page))
        })
}

/// A file of that size has every page that readers may look for in it. The end of a checkpoint may come late: by then
/// the database has another size, and the pages it grew by are in the WAL or hold zeros.
fn keeps_pages(state: &State, size: u64) -> bool {
    let Some(page_size) = state.page_size() else {
        return false;
    };
    let bytes = u64::from(page_size.get());
    let pages = u32::try_from(size / bytes).unwrap_or(u32::MAX);
    let mut missing = (pages.saturating_add(1)..=state.commit)
        .filter_map(Pgno::new)
        .filter(|pgno| *pgno != page_size.lock_page() && !state.wal.holds(*pgno))
        .peekable();
    // Behind the end of the file readers find zeros.
    let zeros = missing.peek().map(|_| ZeroPages::new(page_size));
    let is_zero = |pgno| state.table.get(pgno) == zeros.as_ref().map(|zeros| zeros.checksum(pgno));
    size.is_multiple_of(bytes) && missing.all(is_zero)
}

/// Nonce of the rollback journal, 0 if there is none that counts.
fn journal_nonce(state: &mut State) -> Result<u32> {
    let mut head = [0; JOURNAL_HEADER_SIZE];
    let read = state.backing.read_padded(Side::Journal, &mut head, 0)?;
    Ok(JournalHeader::parse(&head[..read]).map_or(0, |header| header.nonce))
}

/// How many captured frames a write to the WAL leaves as they are, if it overwrites any.
fn intact_frames(state: &State, offset: u64) -> Option<u32> {
    let size = frame_size(state.wal.header.as_ref()?.page_size) as u64;
    let intact = offset.checked_sub(WAL_HEADER_SIZE as u64)? / size;
    u32::try_from(intact)
        .ok()
        .filter(|intact| *intact < state.wal.frames())
}

/// Whether the write may be the last one of a transaction: it reaches the end of a frame, or writes a frame's header once
/// more (a transaction that overwrote frames of its own gets its checksums last), after the header of a commit frame.
fn completes_commit(state: &mut State, file: &File, offset: u64, data: &[u8]) -> Result<bool> {
    let end = offset + data.len() as u64;
    let Some(from) = offset
        .checked_sub(WAL_HEADER_SIZE as u64)
        .filter(|_| !data.is_empty())
    else {
        return Ok(false);
    };
    let page_size = match &state.wal.header {
        Some(header) => header.page_size,
        None => match read_header(file)? {
            Some(header) => header.page_size,
            None => return Ok(false),
        },
    };
    let size = frame_size(page_size) as u64;
    let into = from % size;
    let in_header = into < FRAME_HEADER_SIZE as u64;
    if in_header {
        // The kernel may have cut the header in two, so it is read back as a whole.
        let mut head = [0; FRAME_HEADER_SIZE];
        let read = read_full(file, &mut head, offset - into)
            .map_err(Error::io("wal.read", state.backing.path(Side::Wal)))?;
        state.wal.commit_written |= FrameHeader::parse(&head[..read]).is_ok_and(|frame| frame.commit > 0);
    }
    let header_only = in_header && into + data.len() as u64 <= FRAME_HEADER_SIZE as u64;
    Ok(state.wal.commit_written && (header_only || (end - WAL_HEADER_SIZE as u64).is_multiple_of(size)))
}
