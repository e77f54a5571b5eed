//! The main file. On the primary a write marks pages that changed; on a replica it must change nothing for readers.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use ltx::ZeroPages;
use sqlite_format::{PageSize, Pgno};

use super::FileOp;
use crate::capture::wal::Until;
use crate::commit::{Draft, Source};
use crate::database::Database;
use crate::database::scratch::Writing;
use crate::database::state::State;
use crate::error::{Error, Result};
use crate::name::Side;

impl Database {
    /// A write to the main file: a page of a rollback-mode transaction, of a checkpoint, or raw bytes.
    ///
    /// Committed WAL frames are captured first, because a checkpoint that wrote them all may let the WAL start over. On
    /// a replica only writes that change nothing for readers are let through: checkpoints and rollbacks.
    pub fn write_database(&self, file: &File, offset: u64, data: &[u8]) -> Result<()> {
        let mut state = self.state.lock();
        if self.is_closed() {
            state.check_restores(|state| is_restored(state, offset, data))?;
        } else if self.shared.is_primary() {
            self.capture_wal(&mut state, Until::Index)?;
        } else if !preserves_content(&state, offset, data) {
            return Err(Error::ReadOnly(self.name.clone()));
        }
        // Noted first: the process may die in between.
        if self.shared.is_primary() {
            self.mark_written(&mut state, offset, data);
        }
        file.write_all_at(data, offset)
            .map_err(Error::io("database.write", state.backing.path(Side::Database)))
    }

    /// The main file gets another size.
    pub fn truncate_database(&self, file: &File, size: u64) -> Result<()> {
        let mut state = self.state.lock();
        if self.is_closed() {
            let size_of = |page_size: PageSize, state: &State| page_size.file_size(state.commit);
            state.check_restores(|state| {
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
    /// over, and what the log misses then could not be captured again after a power loss. Nor could what the disk has a part of, of a
    /// transaction without a journal.
    pub fn sync_database(&self, file: &File, datasync: bool) -> Result<()> {
        let last_write = {
            let mut state = self.state.lock();
            if self.is_closed() {
                state.check_restores(|_| true)?;
                drop(state);
                return self.sync(file, datasync, "database.sync");
            }
            self.capture_whole(&mut state)?;
            state.synced_writes |= !state.scratch.dirty().is_clean();
            state.last_write
        };
        self.log.sync()?;
        self.sync(file, datasync, "database.sync")?;
        let mut state = self.state.lock();
        state.all_synced = state.last_write == last_write;
        Ok(())
    }

    /// Without a journal a sync ends the transaction: SQLite syncs here when all its pages are written, never when it only makes room in
    /// its cache. After a power loss the log has to bring back what the main file lost of it, so the record is there first.
    fn capture_whole(&self, state: &mut State) -> Result<()> {
        let written = self.shared.is_primary() && !state.scratch.dirty().is_clean();
        if !written || state.backing.journal_is_hot()? {
            return Ok(());
        }
        state.clients_sync = true;
        state.scratch.set_exclusive(false);
        state.scratch.set_writing(Writing::Whole);
        self.capture_pages(state, 0)
    }

    /// A handle that could write the main file was closed: raw writes may be complete. Not those of a client that holds its lock: the
    /// handle is that of another one.
    pub fn close_database(&self) {
        let mut state = self.state.lock();
        if state.scratch.dirty().is_clean() {
            return;
        }
        // Whatever nobody knows of locks, the settler finds out.
        let locks = self.cached_locks();
        if locks.is_some_and(|locks| !locks.database_write_locked().unwrap_or(true)) {
            state.scratch.set_writing(Writing::Whole);
        }
        self.shared.settler.watch(&self.name);
    }

    /// The main file is removed: a transaction that drops the database.
    pub fn unlink_database(&self, op: FileOp<'_>) -> Result<()> {
        let mut state = self.state.lock();
        if !self.shared.is_primary() && !state.pos.is_zero() && state.commit > 0 {
            return Err(Error::ReadOnly(self.name.clone()));
        }
        self.health.check_usable()?;
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
        state.heal();
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
        if state.clients_sync {
            state.scratch.set_writing(Writing::Unfinished);
        }
        self.shared.settler.watch(&self.name);
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
