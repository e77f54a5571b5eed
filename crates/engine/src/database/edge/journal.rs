//! The rollback journal: its creation begins a transaction, and its end, whatever the journal mode calls an end, commits it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use sqlite_format::journal::{HEADER_SIZE as JOURNAL_HEADER_SIZE, JournalHeader};

use super::FileOp;
use crate::database::Database;
use crate::database::backing::read_full;
use crate::database::state::State;
use crate::error::{Error, Result};
use crate::name::Side;

impl Database {
    /// A rollback journal is created: the start of a write transaction.
    pub fn create_journal(&self, op: FileOp<'_>) -> Result<()> {
        if !self.shared.is_primary() {
            return Err(Error::ReadOnly(self.name.clone()));
        }
        // Without a journal there is nothing to roll back, and readers go on.
        self.health.check_usable()?;
        op().map_err(Error::io("journal.create", self.name.file(Side::Journal)))
    }

    /// A write to a journal handle that is intercepted.
    pub fn write_journal(&self, file: &File, offset: u64, data: &[u8]) -> Result<()> {
        let zeros = data.iter().all(|byte| *byte == 0);
        if !self.shared.is_primary() {
            // Nothing may make a journal hot; finishing one off, as a rollback does, is let through.
            if !zeros {
                return Err(Error::ReadOnly(self.name.clone()));
            }
            if offset == 0 {
                // Before the header goes, which the client needs if this is no rollback.
                self.finish_rollback()?;
            }
        }
        file.write_all_at(data, offset)
            .map_err(Error::io("journal.write", self.name.file(Side::Journal)))?;
        if offset == 0 && zeros {
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
            // The settler may have been faster, and have found that the disk fails; or the process that was asked before has captured.
            self.health.check_usable()?;
            return self.sync_commit(&mut state);
        }
        let mut head = [0; JOURNAL_HEADER_SIZE];
        let read = read_full(journal, &mut head, 0)
            .map_err(Error::io("journal.read", state.backing.path(Side::Journal)))?;
        if head[..read].iter().any(|byte| *byte != 0) {
            return Ok(());
        }
        if !self.shared.is_primary() || self.is_closed() {
            drop(state);
            return self.finish_rollback();
        }
        self.capture_pages(&mut state, 0)?;
        self.sync_commit(&mut state)
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
            drop(state);
            self.finish_rollback()?;
            state = self.state.lock();
        } else if self.shared.is_primary() && !self.is_closed() {
            // The process that was asked before has captured it, and maybe not made it durable.
            synced = self.sync_commit(&mut state);
        }
        op().map_err(Error::io("journal.finish", state.backing.path(Side::Journal)))?;
        synced
    }

    /// Makes the record durable if SQLite made the transaction durable.
    pub(in crate::database) fn sync_commit(&self, state: &mut State) -> Result<()> {
        if std::mem::take(&mut state.synced_writes) {
            self.log.sync()?;
        }
        Ok(())
    }
}

/// Nonce of the rollback journal, 0 if there is none that counts.
fn journal_nonce(state: &mut State) -> Result<u32> {
    let mut head = [0; JOURNAL_HEADER_SIZE];
    let read = state.backing.read_padded(Side::Journal, &mut head, 0)?;
    Ok(JournalHeader::parse(&head[..read]).map_or(0, |header| header.nonce))
}
