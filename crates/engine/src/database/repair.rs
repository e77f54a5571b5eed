//! Making the main file what the log says: after a kill it may lack pages of the last transactions, or have some of one that nobody
//! can finish.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use ltx::{Decoder, Txid, ZeroPages};
use sqlite_format::journal::{HEADER_SIZE as JOURNAL_HEADER_SIZE, JournalHeader};
use sqlite_format::{PageSize, Pgno};

use super::Database;
use super::scan::Holes;
use super::scratch::Dirty;
use super::state::State;
use crate::error::{Error, Result};
use crate::log::{Origin, Record, RecordInfo};
use crate::name::Side;
use crate::originals;

/// Pages that the replayed records touched.
pub(super) enum Touched {
    Pages(BTreeSet<u32>),
    All,
}

impl Touched {
    pub(super) fn none() -> Touched {
        Touched::Pages(BTreeSet::new())
    }

    pub(super) fn extend(&mut self, dirty: &Dirty) {
        match (self, dirty) {
            (Touched::Pages(pages), Dirty::Pages(dirty)) => pages.extend(dirty),
            (touched, Dirty::All) => *touched = Touched::All,
            (Touched::All, Dirty::Pages(_)) => {}
        }
    }

    /// The pages to compare: all, if there is no file to compare them in.
    fn candidates(&self, state: &mut State) -> Result<Vec<u32>> {
        let missing = state.backing.get(Side::Database)?.is_none();
        Ok(match self {
            Touched::Pages(pages) if !missing => pages.iter().copied().collect(),
            Touched::Pages(_) | Touched::All => (1..=state.commit).collect(),
        })
    }
}

/// Where the log holds pages.
pub(super) struct Sources {
    /// The last one first.
    pub(super) records: Vec<Record>,
    /// Pages that no record holds any more.
    pub(super) missing: BTreeSet<u32>,
}

impl Database {
    /// A journal whose commit is in the log is not hot, whatever it looks like.
    pub(super) fn resolve_journal(&self, state: &mut State, tail: &RecordInfo) -> Result<()> {
        if !state.backing.journal_is_hot()? {
            return Ok(());
        }
        let mut head = [0; JOURNAL_HEADER_SIZE];
        let read = state.backing.read_padded(Side::Journal, &mut head, 0)?;
        let nonce = JournalHeader::parse(&head[..read]).map_or(0, |header| header.nonce);
        if nonce != 0 && nonce == tail.meta.journal_nonce && tail.meta.origin == Origin::Captured {
            tracing::info!(db = %self.name, txid = %tail.max, "finishing a commit that the log holds");
            // The pages must be what the commit made them before nothing can bring the old ones back.
            self.repair_record(state, tail.max)?;
            self.sync_files(state)?;
            state.backing.remove(Side::Journal)?;
        }
        Ok(())
    }

    /// The log has records from a primary that the files lack. What clients of this node wrote before and could not commit gives way to
    /// them: pages without a journal are no transaction on top of these records, and a hot journal would take some of their pages back.
    /// What the log does not reach back for, the journal may have; where neither has a page, nothing is written.
    pub(super) fn give_way(&self, state: &mut State, touched: &mut Touched) -> Result<()> {
        let Some(page_size) = state.page_size().filter(|_| !state.health.is_diverged()) else {
            return Ok(());
        };
        let hot = state.backing.journal_is_hot()?;
        let journal = state.backing.get(Side::Journal)?.filter(|_| hot);
        touched.extend(state.scratch.dirty());
        let originals = match &journal {
            Some(journal) => journaled_pages(state, journal, touched)?,
            None => BTreeSet::new(),
        };
        let candidates = touched.candidates(state)?;
        let wrong = differing(state, page_size, candidates)?;
        let Sources { records, missing } = self.sources(state, &(&wrong - &originals))?;
        if let Some(page) = missing.first() {
            self.quarantine_lost(state, *page);
            return Ok(());
        }
        tracing::info!(db = %self.name, pages = wrong.len(), hot, "what clients did not commit gives way to the log");
        if let Some(journal) = journal {
            // Without the journal nothing but the log can tell what these pages were.
            self.log.sync()?;
            write_originals(state, page_size, &journal, &wrong)?;
            self.write_from_log(state, page_size, &records, &wrong)?;
            self.sync_files(state)?;
            state.backing.remove(Side::Journal)?;
        } else {
            self.write_from_log(state, page_size, &records, &wrong)?;
        }
        state.scratch.settle();
        Ok(())
    }

    /// Writes pages from the log where the files differ from it. Pages that clients wrote last are newer than the log:
    /// they stay, and are captured when this node may write.
    pub(super) fn repair(&self, state: &mut State, touched: Touched, tail: &RecordInfo) -> Result<()> {
        if state.health.is_diverged() || tail.commit == 0 || state.backing.journal_is_hot()? {
            return Ok(());
        }
        let Some(page_size) = state.page_size() else {
            return Ok(());
        };
        let newer = state.scratch.dirty().clone();
        let candidates = touched.candidates(state)?.into_iter();
        let candidates = candidates.filter(|page| !newer.may_hold(*page));
        let wrong = differing(state, page_size, candidates)?;
        if newer.is_clean() {
            self.fit_size(state, page_size)?;
        }
        if wrong.is_empty() {
            return Ok(());
        }
        tracing::info!(db = %self.name, pages = wrong.len(), "writing pages from the log");
        let Sources { records, missing } = self.sources(state, &wrong)?;
        self.write_from_log(state, page_size, &records, &wrong)?;
        if let Some(page) = missing.first() {
            self.quarantine_lost(state, *page);
        }
        Ok(())
    }

    pub(super) fn quarantine_lost(&self, state: &mut State, page: u32) {
        let reason = format!("page {page} is not what the log says, which does not have it any more");
        state.diverge(reason);
    }

    /// A client that keeps no journal on disk was in the middle of a transaction, which nobody can finish or roll back any more: the log
    /// has what was there before, if it reaches back that far. If not, the pages count as they are.
    pub(super) fn take_back_unfinished(&self, state: &mut State) -> Result<()> {
        let (Some(page_size), Dirty::Pages(pages)) = (state.page_size(), state.scratch.dirty().clone())
        else {
            return Ok(());
        };
        if state.health.is_diverged() || state.backing.journal_is_hot()? {
            return Ok(());
        }
        let wrong = differing(state, page_size, pages)?;
        let Sources { records, missing } = self.sources(state, &wrong)?;
        if !missing.is_empty() {
            tracing::warn!(
                db = %self.name, pages = missing.len(),
                "a client without a journal was in the middle of a transaction, and the log has no older version of some pages: \
                 they stay as they are"
            );
            return Ok(());
        }
        self.write_from_log(state, page_size, &records, &wrong)?;
        tracing::info!(db = %self.name, pages = wrong.len(), "took back a transaction that its client could not finish");
        state.scratch.settle();
        Ok(())
    }

    /// Where the log has what the last transaction left of these pages. Goes back from its end, and not further than it must: most
    /// pages that are written were written not long ago.
    pub(super) fn sources(&self, state: &State, pages: &BTreeSet<u32>) -> Result<Sources> {
        let mut sources = Sources {
            records: Vec::new(),
            missing: pages.clone(),
        };
        for record in self.log.records_back() {
            if sources.missing.is_empty() {
                break;
            }
            let record = record?;
            let before = sources.missing.len();
            for_each_page(&record, |pgno, page| {
                if sources.missing.contains(&pgno.get()) && state.is_current(pgno, page) {
                    sources.missing.remove(&pgno.get());
                }
                Ok(())
            })?;
            if sources.missing.len() < before {
                sources.records.push(record);
            }
        }
        Ok(sources)
    }

    /// Makes these pages what the last transaction left, and the file as long.
    pub(super) fn write_from_log(
        &self,
        state: &mut State,
        page_size: PageSize,
        records: &[Record],
        pages: &BTreeSet<u32>,
    ) -> Result<()> {
        for record in records {
            write_record(state, record, |pgno| pages.contains(&pgno.get()))?;
        }
        self.fit_size(state, page_size)
    }

    fn repair_record(&self, state: &mut State, txid: Txid) -> Result<()> {
        if let Some(record) = self.log.find(txid)? {
            write_record(state, &record, |_| true)?;
        }
        match state.page_size() {
            Some(page_size) => self.fit_size(state, page_size),
            None => Ok(()),
        }
    }

    fn fit_size(&self, state: &mut State, page_size: PageSize) -> Result<()> {
        let size = page_size.file_size(state.commit);
        if state.backing.len(Side::Database)? != size && state.backing.get(Side::Database)?.is_some() {
            let file = state.backing.get_or_create(Side::Database)?;
            file.set_len(size)
                .map_err(Error::io("database.truncate", state.backing.path(Side::Database)))?;
        }
        Ok(())
    }
}

/// The pages that clients have written which are not what the last transaction left.
pub(crate) fn uncommitted(state: &mut State) -> Result<BTreeSet<u32>> {
    let Some(page_size) = state.page_size() else {
        return Ok(BTreeSet::new());
    };
    let written: Vec<u32> = match state.scratch.dirty() {
        Dirty::Pages(pages) => pages.iter().copied().collect(),
        Dirty::All => (1..=state.commit).collect(),
    };
    differing(state, page_size, written)
}

/// The pages of the database that are not what the last transaction left. Pages beyond its end are passed over.
fn differing(
    state: &mut State,
    page_size: PageSize,
    candidates: impl IntoIterator<Item = u32>,
) -> Result<BTreeSet<u32>> {
    let mut wrong = BTreeSet::new();
    let mut page = vec![0; page_size.bytes()];
    let mut holes = Holes::of(state.backing.get(Side::Database)?);
    let zeros = ZeroPages::new(page_size);
    for pgno in candidates.into_iter().filter_map(Pgno::new) {
        if pgno.get() > state.commit || pgno == page_size.lock_page() {
            continue;
        }
        let current = if holes.contain(pgno, page_size) {
            state.table.get(pgno) == Some(zeros.checksum(pgno))
        } else {
            state
                .backing
                .read_padded(Side::Database, &mut page, pgno.offset(page_size))?;
            state.is_current(pgno, &page)
        };
        if !current {
            wrong.insert(pgno.get());
        }
    }
    Ok(wrong)
}

/// Adds the pages that a journal would bring back, and tells which of them are what the last transaction left.
fn journaled_pages(state: &State, journal: &File, touched: &mut Touched) -> Result<BTreeSet<u32>> {
    let mut originals = BTreeSet::new();
    let mut journaled = BTreeSet::new();
    originals::for_each(journal, |pgno, page| {
        journaled.insert(pgno.get());
        if state.is_current(pgno, page) {
            originals.insert(pgno.get());
        }
        Ok(())
    })?;
    touched.extend(&Dirty::Pages(journaled));
    Ok(originals)
}

/// Writes those of the pages to the main file of which the journal holds what the last transaction left.
fn write_originals(
    state: &mut State,
    page_size: PageSize,
    journal: &File,
    pages: &BTreeSet<u32>,
) -> Result<()> {
    let file = state.backing.get_or_create(Side::Database)?;
    originals::for_each(journal, |pgno, page| {
        if !pages.contains(&pgno.get()) || !state.is_current(pgno, page) {
            return Ok(());
        }
        file.write_all_at(page, pgno.offset(page_size))
            .map_err(Error::io("database.write", state.backing.path(Side::Database)))
    })
}

/// Writes those of the wanted pages to the main file of which the record holds what the last transaction left.
fn write_record(state: &mut State, record: &Record, wanted: impl Fn(Pgno) -> bool) -> Result<()> {
    let file = state.backing.get_or_create(Side::Database)?;
    for_each_page(record, |pgno, page| {
        if !wanted(pgno) || !state.is_current(pgno, page) {
            return Ok(());
        }
        file.write_all_at(page, pgno.offset(record.info.page_size))
            .map_err(Error::io("database.write", state.backing.path(Side::Database)))
    })
}

pub(super) fn for_each_page(record: &Record, mut visit: impl FnMut(Pgno, &[u8]) -> Result<()>) -> Result<()> {
    let mut decoder = Decoder::new(record.reader())?;
    let mut page = vec![0; record.info.page_size.bytes()];
    while let Some(pgno) = decoder.next_page(&mut page)? {
        visit(pgno, &page)?;
    }
    Ok(())
}
