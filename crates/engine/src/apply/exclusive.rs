//! Apply under SQLite's exclusive lock: the main file is written in place, and nobody reads it meanwhile.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ltx::{Checksum, Decoder};
use sqlite_format::locks::{PENDING_BYTE, RESERVED_BYTE, SHARED_FIRST, SHARED_SIZE};
use sqlite_format::{PageSize, Pgno};

use super::pages::ChangedPages;
use crate::database::Database;
use crate::database::scratch::Method;
use crate::error::{Error, Result};
use crate::kernel::{CheckpointMode, LockFiles};
use crate::log::Record;
use crate::name::Side;

/// Pages beyond which the whole file is dropped from the kernel's cache rather than range by range.
const MANY_PAGES: usize = 64;

/// SQLite's EXCLUSIVE lock, taken in SQLite's order and released together.
pub(crate) struct Exclusive(Arc<dyn LockFiles>);

impl Exclusive {
    const BYTES: [(u64, u64, &'static str); 3] = [
        (RESERVED_BYTE, 1, "RESERVED"),
        (PENDING_BYTE, 1, "PENDING"),
        (SHARED_FIRST, SHARED_SIZE, "SHARED"),
    ];

    /// Takes the lock, or tells which part a client holds.
    pub(crate) fn take(locks: Arc<dyn LockFiles>) -> std::io::Result<Result<Exclusive, &'static str>> {
        let guard = Exclusive(locks);
        for (start, len, name) in Self::BYTES {
            if !guard.0.try_lock(Side::Database, start, len, true)? {
                return Ok(Err(name));
            }
        }
        Ok(Ok(guard))
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        for (start, len, _) in Self::BYTES {
            if let Err(error) = self.0.unlock(Side::Database, start, len) {
                tracing::error!(%error, "cannot release a lock on the mount");
            }
        }
    }
}

impl Database {
    pub(super) fn apply_exclusive(&self, record: &Record) -> Result<()> {
        // What is in the main file must be in the log, whatever reaches the disk first.
        self.log.sync()?;
        self.empty_wal(record.info.page_size)?;
        self.create_file()?;
        let path = self.name.file(Side::Database);
        let kept = self.backlog.kept.lock().take();
        let guard = match kept {
            Some(guard) => guard,
            None => {
                let guard = Exclusive::take(self.locks()?)
                    .map_err(Error::io("database.lock", &path))?
                    .map_err(|lock| self.busy(lock))?;
                // With the lock, so that an attempt that finds a reader in the way costs nothing.
                self.check_outcome(record)?;
                guard
            }
        };
        let hot = self.state.lock().backing.journal_is_hot()?;
        if hot {
            self.roll_back_abandoned(record.info.is_snapshot())?;
        }
        // Nobody may read a file in which only some of the pages are written.
        let written = match self.write_main_file(record) {
            Ok(written) => written,
            Err(error) => {
                *self.backlog.kept.lock() = Some(guard);
                return Err(error);
            }
        };
        self.drop_cached(record, &written);
        Ok(())
    }

    /// Whether the record leads where it says, found out before anything is written: readers of the main file would be kept out of what it
    /// leads to instead. A snapshot was verified by itself when it was received.
    fn check_outcome(&self, record: &Record) -> Result<()> {
        if record.info.is_snapshot() {
            return Ok(());
        }
        let mut decoder = Decoder::new(record.reader())?;
        let mut data = vec![0; record.info.page_size.bytes()];
        let mut changes = Vec::new();
        while let Some(pgno) = decoder.next_page(&mut data)? {
            changes.push((pgno, ltx::page_checksum(pgno, &data)));
        }
        let mut state = self.state.lock();
        if state.table.page_size() != Some(record.info.page_size) || state.health.is_diverged() {
            return Ok(());
        }
        let rolling = state.rolling_after(changes.iter(), record.info.commit);
        match rolling == record.info.post {
            true => Ok(()),
            false => Err(self.mismatch(&mut state, record, rolling)),
        }
    }

    /// Another page size cannot be reached through the WAL: it is emptied first.
    pub(crate) fn empty_wal(&self, wanted: PageSize) -> Result<()> {
        let in_the_way = self
            .state
            .lock()
            .wal_page_size()
            .is_some_and(|page_size| page_size != wanted);
        if in_the_way {
            // The settler may not come to see that a client has let go.
            self.renew_fence()?;
            if self.is_held_off()? {
                return Err(self.busy("a client that holds on to the WAL"));
            }
            self.state.lock().break_seal()?;
            let path = self.name.file(Side::Wal);
            let kernel = self.shared.kernel();
            kernel
                .checkpoint(&self.name, CheckpointMode::Truncate)
                .map_err(Error::io("wal.checkpoint", path))?;
            if self.state.lock().wal.frames() > 0 {
                return Err(self.busy("the WAL"));
            }
        }
        Ok(())
    }

    /// The main file must exist before it can be locked.
    fn create_file(&self) -> Result<()> {
        let created = {
            let mut state = self.state.lock();
            let missing = state.backing.get(Side::Database)?.is_none();
            state.backing.get_or_create(Side::Database)?;
            missing
        };
        if created {
            self.shared.kernel().invalidate_entry(&self.name, Side::Database);
        }
        Ok(())
    }

    fn write_main_file(&self, record: &Record) -> Result<Vec<Pgno>> {
        let mut state = self.state.lock();
        let mut pages = ChangedPages::new(record)?;
        let page_size = pages.page_size();
        self.begin_to_apply(&mut state, record, Method::Exclusive);
        let file = state.backing.get_or_create(Side::Database)?;
        let path = state.backing.path(Side::Database).to_owned();
        let mut changes: Vec<(Pgno, Checksum)> = Vec::new();
        while let Some(page) = pages.next(&mut state)? {
            if page.is_there {
                changes.push((page.pgno, page.checksum));
                continue;
            }
            #[cfg(feature = "canary")]
            if crate::canary::has_struck(crate::canary::Fault::LoseAppliedPage) {
                changes.push((page.pgno, page.checksum));
                continue;
            }
            file.write_all_at(&page.data, page.pgno.offset(page_size))
                .map_err(Error::io("database.write", &path))?;
            changes.push((page.pgno, page.checksum));
        }
        file.set_len(page_size.file_size(record.info.commit))
            .map_err(Error::io("database.truncate", &path))?;
        if state.table.page_size() != Some(page_size) {
            state.table.reset(page_size);
        }
        state.table.truncate(record.info.commit);
        for (pgno, checksum) in &changes {
            state.table.set(*pgno, *checksum);
        }
        state.applied(record);
        self.check_rolling(&mut state, record)?;
        Ok(changes.into_iter().map(|(pgno, _)| pgno).collect())
    }

    fn drop_cached(&self, record: &Record, written: &[Pgno]) {
        let kernel = self.shared.kernel();
        if written.is_empty() || written.len() > MANY_PAGES {
            return kernel.invalidate(&self.name, Side::Database, None);
        }
        self.forget_cached(record.info.page_size, written.iter().map(|pgno| pgno.get()));
    }
}
