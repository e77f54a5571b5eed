//! Housekeeping of one database, and the end of the process.

use std::time::Instant;

use ltx::Txid;
use sqlite_format::Pgno;

use super::Database;
use super::scratch::Writing;
use super::state::State;
use crate::error::Result;
use crate::name::Side;
use crate::store::{Retention, retain_policy};

/// Pages compared in one turn of the mutex.
const VERIFIED: u32 = 64;
impl Database {
    /// The file has content that no transaction describes yet.
    pub(crate) fn expect_content(&self) {
        let mut state = self.state.lock();
        state.backing.forget(Side::Database);
        state.scratch.mark_all();
        state.wal.present = true;
        state.last_write = Some(Instant::now());
        state.all_synced = false;
        state.scratch.set_writing(Writing::Unknown);
        drop(state);
        self.shared.settler.watch(&self.name);
    }

    /// These pages may not be what the table says: they are compared when no transaction is under way.
    pub(crate) fn doubt(&self, pages: impl Iterator<Item = Pgno>) {
        let mut state = self.state.lock();
        for pgno in pages {
            state.scratch.mark(pgno.get());
        }
        drop(state);
        self.shared.settler.watch(&self.name);
    }

    /// Compares every page with the table and captures what differs: after edits that nobody reported, and as repair.
    pub fn reconcile(&self) -> Result<ltx::Pos> {
        if self.shared.is_primary() {
            self.expect_content();
            let mut state = self.state.lock();
            self.capture_pages(&mut state, 0)?;
        }
        Ok(self.position())
    }

    /// The file has another name now.
    pub(crate) fn moved_away(&self) -> Result<()> {
        self.forget_locks();
        let mut state = self.state.lock();
        state.backing.forget(Side::Database);
        self.drop_content(&mut state)
    }

    /// Flushes the table if `lag` transactions happened since the last time, so that a start has little to replay.
    pub(crate) fn flush_if_behind(&self, lag: u64) -> Result<()> {
        let due = {
            let state = self.state.lock();
            let behind = state
                .pos
                .txid
                .get()
                .saturating_sub(state.table.synced().txid.get());
            behind > lag || !state.aside.is_empty()
        };
        if due { self.flush_table() } else { Ok(()) }
    }

    /// Compares a few more pages with the table after a power loss: without syncs, the main file may be ahead of what the
    /// log kept. What differs is captured, or heals with the next snapshot. Returns whether there are more.
    pub(crate) fn verify_turn(&self) -> Result<bool> {
        let mut state = self.state.lock();
        let (Some(first), Some(page_size)) = (state.scratch.unverified(), state.page_size()) else {
            return Ok(false);
        };
        let last = state.commit.min(first.saturating_add(VERIFIED - 1));
        let mut page = vec![0; page_size.bytes()];
        let mut differs = false;
        for pgno in (first..=last).filter_map(Pgno::new) {
            if pgno == page_size.lock_page() || state.scratch.dirty().may_hold(pgno.get()) {
                continue;
            }
            state.read_page(pgno, page_size, &mut page)?;
            if !state.is_current(pgno, &page) {
                tracing::warn!(db = %self.name, page = %pgno, "the page is not what the log says");
                state.scratch.mark(pgno.get());
                differs = true;
            }
        }
        if differs {
            self.shared.settler.watch(&self.name);
        }
        let next = last.checked_add(1).filter(|next| *next <= state.commit);
        state.scratch.set_unverified(next);
        Ok(next.is_some())
    }

    /// Lets go of old records.
    pub(crate) fn maintain(&self, retention: &Retention) -> Result<()> {
        self.flush_if_behind(0)?;
        let synced = self.state.lock().table.synced().txid;
        let now = (self.shared.options.clock)();
        self.log
            .retain(&retain_policy(retention, &self.name, synced), now)?;
        Ok(())
    }

    /// Makes the table durable at the current position; only the copy of what changed is made under the mutex.
    ///
    /// The files go first: a start writes from the log only what happened since, so up to there they must be right
    /// whatever `synchronous` clients chose, and whatever apply wrote.
    fn flush_table(&self) -> Result<()> {
        let (flush, files) = {
            let mut state = self.state.lock();
            let txid = state.pos.txid;
            if self.log.tail().is_none_or(|tail| tail.max < txid) {
                return Ok(());
            }
            let files = state.backing.durable()?;
            (state.table.prepare_flush(txid)?, files)
        };
        self.log.sync()?;
        files.sync().inspect_err(|error| self.health.sync_failed(error))?;
        flush.write()?;
        let mut state = self.state.lock();
        state.table.confirm(flush);
        state.aside.remove()
    }

    pub(crate) fn sync_files(&self, state: &mut State) -> Result<()> {
        let synced = state.backing.durable()?.sync();
        synced.inspect_err(|error| self.health.sync_failed(error))
    }

    /// A clean stop. Clients may still be there: whoever is fenced or sealed off stays so.
    pub(crate) fn stop(&self) -> Result<()> {
        if self.shared.is_primary() {
            self.settle_now()?;
        }
        self.log.sync()?;
        let mut state = self.state.lock();
        let txid = state.pos.txid;
        if (state.table.synced() != state.pos || !state.aside.is_empty()) && txid != Txid::ZERO {
            self.sync_files(&mut state)?;
            state.table.flush(txid)?;
            state.aside.remove()?;
        }
        // Received records that clients kept from being applied are applied by the next start, and what a client commits that nothing
        // keeps from it is found by it.
        let held_off = !self.writers.is_held_off() || state.seal.is_some();
        let caught_up = self.log.tail().is_none_or(|tail| tail.pos() == state.pos);
        if held_off && caught_up && state.scratch.dirty().is_clean() {
            state.scratch.close();
        }
        Ok(())
    }
}
