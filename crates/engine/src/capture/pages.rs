//! Capture of rollback-mode commits: the pages that were written to the main file are compared with the table.
//!
//! When to look is decided by the callers: at the end of a journal, or when no transaction is under way. What is found
//! then is a consistent database, because every write of the main file comes through the daemon and waits for the mutex
//! that is held here.

use std::time::Instant;

use sqlite_format::Pgno;
use sqlite_format::header::DatabaseHeader;

use super::wal::Until;
use crate::commit::{Draft, Source};
use crate::database::Database;
use crate::database::backing::Content;
use crate::database::scan::Scan;
use crate::database::scratch::Dirty;
use crate::database::state::State;
use crate::error::Result;
use crate::log::Appender;

impl Database {
    /// Turns what was written to the main file since the last time into a transaction.
    pub(crate) fn capture_pages(&self, state: &mut State, journal_nonce: u32) -> Result<()> {
        if state.scratch.dirty().is_clean() {
            return Ok(());
        }
        self.capture_wal(state, Until::Index)?;
        self.compare_pages(state, journal_nonce)
    }

    /// As [`Database::capture_pages`], with the WAL as far as it is known.
    pub(crate) fn compare_pages(&self, state: &mut State, journal_nonce: u32) -> Result<()> {
        if state.scratch.dirty().is_clean() {
            return Ok(());
        }
        let (started, before) = (Instant::now(), state.pos);
        let mut appender = self.log.appender()?;
        if self.draft_pages(state, &mut appender, journal_nonce)? {
            self.flush(state, appender)?;
            self.time_capture(state, before, started);
            // Only now: what is not in the log must be compared again by whoever comes after a crash.
            state.scratch.settle();
            state.heal();
        }
        Ok(())
    }

    /// Returns whether the main file could be compared.
    fn draft_pages(
        &self,
        state: &mut State,
        appender: &mut Appender<'_>,
        journal_nonce: u32,
    ) -> Result<bool> {
        let source = Source::Pages { journal_nonce };
        match state.backing.content()? {
            Content::Empty => {
                if let Some(page_size) = state.page_size() {
                    Draft::new(self, appender, state, page_size, 0, source)?.finish(state)?;
                }
            }
            Content::Foreign(reason) => {
                if state.pos.is_zero() {
                    state.scratch.settle();
                } else {
                    state.diverge(format!("the file is no SQLite database any more: {reason}"));
                    state.scratch.mark_all();
                }
                return Ok(false);
            }
            #[cfg(feature = "canary")]
            Content::Database { .. } if crate::canary::lasts(crate::canary::Fault::Quarantine) => {
                state.diverge("canary".to_owned());
                return Ok(false);
            }
            Content::Database { header, pages } => {
                self.draft_dirty(state, appender, &header, pages, source)?;
            }
        }
        Ok(true)
    }

    fn draft_dirty(
        &self,
        state: &mut State,
        appender: &mut Appender<'_>,
        header: &DatabaseHeader,
        file_pages: u32,
        source: Source,
    ) -> Result<()> {
        let page_size = header.page_size;
        // With frames in the WAL, they say how large the database is; the file follows at the next checkpoint.
        let commit = if state.wal_page_size() == Some(page_size) {
            state.wal.commit
        } else {
            // SQLite cuts the file off only after the commit.
            let counted = header.valid_page_count().filter(|pages| *pages <= file_pages);
            counted.unwrap_or(file_pages)
        };
        let mut draft = Draft::new(self, appender, state, page_size, commit, source)?;
        let everything = state.page_size() != Some(page_size) || *state.scratch.dirty() == Dirty::All;
        let candidates: Vec<Pgno> = match state.scratch.dirty() {
            Dirty::Pages(pages) if !everything => {
                let mut candidates: Vec<Pgno> = pages.iter().filter_map(|page| Pgno::new(*page)).collect();
                candidates.extend(draft.grown());
                candidates.sort_unstable();
                candidates.dedup();
                candidates
            }
            Dirty::Pages(_) | Dirty::All => Pgno::up_to(commit).collect(),
        };
        let mut scan = Scan::new(state, page_size, candidates.len() as u32)?;
        for pgno in candidates {
            if !draft.wants(pgno) {
                continue;
            }
            let page = scan.page(state, pgno)?;
            draft.known_page(state, pgno, page.data, page.checksum)?;
        }
        draft.finish(state)?;
        Ok(())
    }
}
