//! The end of a transaction that this node may not commit any more: it was under way when the node ceased to be the primary, or when
//! its disk failed. Its client rolls it back; where the client died, the next record does.

use std::collections::BTreeSet;

use sqlite_format::{PageSize, Pgno, freelist};

use super::Database;
use super::repair::{Sources, Touched, uncommitted};
use super::state::State;
use crate::error::{Error, Result};
use crate::name::Side;

impl Database {
    /// Lets the end of a rollback pass, and nothing else: a journal that goes while pages are not what the last transaction left would be
    /// a commit.
    ///
    /// Leaves of the free list that the transaction took into use are not in its journal, so the rollback left them as they were written.
    /// They mean nothing to SQLite, but are the same on all nodes: they come from the log.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] if this is no rollback, or what is wrong with the database.
    pub(super) fn finish_rollback(&self) -> Result<()> {
        let mut state = self.state.lock();
        let Some(page_size) = state.page_size() else {
            return Ok(());
        };
        let wrong = uncommitted(&mut state)?;
        if !wrong.is_empty() {
            if !are_free(&mut state, page_size, &wrong)? {
                self.health.check_usable()?;
                return Err(Error::ReadOnly(self.name.clone()));
            }
            self.restore_free(&mut state, page_size, &wrong)?;
        }
        state.scratch.settle();
        drop(state);
        self.forget_cached(page_size, wrong);
        Ok(())
    }

    fn restore_free(&self, state: &mut State, page_size: PageSize, pages: &BTreeSet<u32>) -> Result<()> {
        let Sources { records, missing } = self.sources(state, pages)?;
        self.write_from_log(state, page_size, &records, pages)?;
        // Without the journal nothing tells the next start to compare these pages.
        self.sync_files(state)?;
        if let Some(page) = missing.first() {
            self.quarantine_lost(state, *page);
        }
        tracing::info!(db = %self.name, pages = pages.len(), "free pages of a transaction that was rolled back are as before it");
        Ok(())
    }

    /// Rolls back what a client left behind that died, or whose rollback was refused. Nobody is at it any more: the caller holds
    /// SQLite's exclusive lock. What counts is the log; what follows may be a snapshot, which brings all pages itself.
    ///
    /// # Errors
    /// That the database is diverged, if neither log nor journal has a page.
    pub(crate) fn roll_back_abandoned(&self, before_snapshot: bool) -> Result<()> {
        {
            let mut state = self.state.lock();
            if before_snapshot {
                state.backing.remove(Side::Journal)?;
            } else {
                self.give_way(&mut state, &mut Touched::none())?;
                self.health.divergence().check(&self.name)?;
            }
        }
        let kernel = self.shared.kernel();
        kernel.invalidate(&self.name, Side::Database, None);
        kernel.invalidate_entry(&self.name, Side::Journal);
        Ok(())
    }

    /// Has the kernel read these pages of the main file again.
    pub(crate) fn forget_cached(&self, page_size: PageSize, pages: impl IntoIterator<Item = u32>) {
        for pgno in pages.into_iter().filter_map(Pgno::new) {
            let range = (pgno.offset(page_size), u64::from(page_size.get()));
            self.shared
                .kernel()
                .invalidate(&self.name, Side::Database, Some(range));
        }
    }
}

/// Whether all of these pages are leaves of the free list of the last transaction. The list is read from the main file, where page 1 and
/// all trunk pages have to be what that transaction left.
fn are_free(state: &mut State, page_size: PageSize, pages: &BTreeSet<u32>) -> Result<bool> {
    let mut page = vec![0; page_size.bytes()];
    let mut rest = pages.clone();
    let mut trunks = BTreeSet::new();
    let mut next = Some(Pgno::FIRST);
    while let Some(pgno) = next {
        state
            .backing
            .read_padded(Side::Database, &mut page, pgno.offset(page_size))?;
        if !state.is_current(pgno, &page) || !trunks.insert(pgno) {
            return Ok(false);
        }
        next = if pgno == Pgno::FIRST {
            freelist::first_trunk(&page)
        } else {
            for leaf in freelist::leaves(&page) {
                rest.remove(&leaf.get());
            }
            freelist::next_trunk(&page)
        };
    }
    Ok(rest.is_empty())
}
