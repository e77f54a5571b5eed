//! Commit: pages that changed become a record with the next transaction ID.
//!
//! What changed is decided by content. A page whose checksum is the one in the table is left out; a transaction without
//! pages that leaves the size alone is none, and takes no ID. So rollbacks never do, and capturing the same state twice
//! changes nothing.

use std::time::Instant;

use ltx::{Checksum, Header, Pos, Txid, WalRange};
use sqlite_format::{PageSize, Pgno};

use crate::database::Database;
use crate::database::state::State;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::log::{Append, Appender, Origin, RecordMeta};
use crate::options::Durability;

/// Where a transaction was captured.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source {
    /// These frames of the WAL.
    Wal(WalRange),
    /// The main file; the nonce identifies the rollback journal that the commit ends, 0 = none.
    Pages { journal_nonce: u32 },
}

/// A transaction in the making. Nothing of the database's state changes before [`Draft::finish`].
pub(crate) struct Draft<'a, 'log> {
    db: &'a Database,
    header: Header,
    meta: RecordMeta,
    stage: Stage<'a, 'log>,
    /// Size before the transaction; 0 if it replaces the whole database.
    old_commit: u32,
    replaces: bool,
    changes: Vec<(Pgno, Checksum)>,
    rolling: Checksum,
}

/// No record is begun before something changed.
enum Stage<'a, 'log> {
    Empty(&'a mut Appender<'log>),
    Begun(Box<Append<'a>>),
    Failed,
}

impl<'a, 'log> Draft<'a, 'log> {
    /// A transaction that leaves the database with `commit` pages of `page_size`. With another page size than before,
    /// it replaces the database.
    pub(crate) fn new(
        db: &'a Database,
        appender: &'a mut Appender<'log>,
        state: &State,
        page_size: PageSize,
        commit: u32,
        source: Source,
    ) -> Result<Draft<'a, 'log>> {
        let txid = state
            .pos
            .txid
            .next()
            .ok_or_else(|| Error::Invalid("out of transaction IDs".to_owned()))?;
        let replaces = state.table.page_size() != Some(page_size);
        let first = txid == Txid::FIRST;
        let (wal, journal_nonce) = match source {
            Source::Wal(range) => (Some(range), 0),
            Source::Pages { journal_nonce } => (None, journal_nonce),
        };
        let header = Header {
            compressed: db.shared.options.compress,
            page_size,
            commit,
            min_txid: txid,
            max_txid: txid,
            timestamp: (db.shared.options.clock)(),
            pre_apply: if first {
                Checksum::NONE
            } else {
                state.pos.post_apply
            },
            wal,
            node_id: db.shared.options.node_id,
        };
        Ok(Draft {
            db,
            header,
            meta: RecordMeta {
                journal_nonce,
                ..RecordMeta::new(Origin::Captured)
            },
            stage: Stage::Empty(appender),
            old_commit: if replaces { 0 } else { state.commit },
            replaces,
            changes: Vec::new(),
            rolling: if replaces {
                Checksum::EMPTY_DATABASE
            } else {
                state.table.rolling()
            },
        })
    }

    pub(crate) fn page_size(&self) -> PageSize {
        self.header.page_size
    }

    /// Pages that the database did not have before, in order. They belong to the transaction even if nobody wrote them:
    /// SQLite does not write a page that was allocated and freed again.
    pub(crate) fn grown(&self) -> impl Iterator<Item = Pgno> + use<> {
        let lock_page = self.header.page_size.lock_page();
        (self.old_commit + 1..=self.header.commit)
            .filter_map(Pgno::new)
            .filter(move |pgno| *pgno != lock_page)
    }

    /// About how many they are.
    pub(crate) fn grown_count(&self) -> u32 {
        self.header.commit.saturating_sub(self.old_commit)
    }

    /// Whether the page can be part of the transaction.
    pub(crate) fn wants(&self, pgno: Pgno) -> bool {
        pgno.get() <= self.header.commit && pgno != self.header.page_size.lock_page()
    }

    /// Takes the page in if it changed. Pages come in ascending order.
    pub(crate) fn page(&mut self, state: &State, pgno: Pgno, data: &[u8]) -> Result<()> {
        self.known_page(state, pgno, data, ltx::page_checksum(pgno, data))
    }

    /// As [`Draft::page`], for a page whose checksum is known.
    pub(crate) fn known_page(&mut self, state: &State, pgno: Pgno, data: &[u8], new: Checksum) -> Result<()> {
        let old = if self.replaces {
            None
        } else {
            state.table.get(pgno)
        };
        if old == Some(new) {
            return Ok(());
        }
        #[cfg(feature = "canary")]
        if crate::canary::strikes(crate::canary::Fault::LosePage) {
            return Ok(());
        }
        self.begin()?.page(pgno, data)?;
        self.rolling = match old {
            Some(old) => self.rolling.replace(old, new),
            None => self.rolling.xor(new),
        };
        self.changes.push((pgno, new));
        Ok(())
    }

    fn begin(&mut self) -> Result<&mut Append<'a>> {
        if let Stage::Empty(_) = self.stage
            && let Stage::Empty(appender) = std::mem::replace(&mut self.stage, Stage::Failed)
        {
            self.stage = Stage::Begun(Box::new(appender.begin(self.header.clone(), self.meta)?));
        }
        match &mut self.stage {
            Stage::Begun(append) => Ok(append),
            Stage::Empty(_) | Stage::Failed => Err(Error::Invalid("the record was given up".to_owned())),
        }
    }

    /// Appends the record and moves the database to the new position, unless nothing changed.
    pub(crate) fn finish(mut self, state: &mut State) -> Result<Option<Pos>> {
        let commit = self.header.commit;
        if matches!(self.stage, Stage::Empty(_)) && commit == state.commit {
            return Ok(None);
        }
        self.begin()?;
        if !self.replaces {
            for pgno in (commit + 1..=state.commit).filter_map(Pgno::new) {
                if let Some(old) = state.table.get(pgno) {
                    self.rolling = self.rolling.xor(old);
                }
            }
        }
        let Stage::Begun(append) = self.stage else {
            return Ok(None);
        };
        append.finish(self.rolling)?;
        if self.replaces {
            state.table.reset(self.header.page_size);
        }
        state.table.truncate(commit);
        for (pgno, checksum) in self.changes.drain(..) {
            state.table.set(pgno, checksum);
        }
        debug_assert_eq!(state.table.rolling(), self.rolling, "table and record disagree");
        state.commit = commit;
        state.timestamp_ms = self.header.timestamp;
        state.pos = Pos::new(self.header.max_txid, self.rolling);
        self.db.committed(state);
        Ok(Some(state.pos))
    }
}

impl Database {
    /// A transaction is in the log's buffer.
    fn committed(&self, state: &State) {
        self.metrics.commits.increment(1);
        self.tell(state);
    }

    /// The time of a capture counts if it moved the position: looks that find nothing are many and quick, and would hide
    /// what a commit costs.
    pub(crate) fn time_capture(&self, state: &State, before: Pos, started: Instant) {
        if state.pos != before {
            self.metrics
                .capture_seconds
                .record(started.elapsed().as_secs_f64());
        }
    }

    /// Tells subscribers of single transactions; everybody else learns of it when the position is published.
    pub(crate) fn tell(&self, state: &State) {
        if self.shared.events.is_observed() {
            self.shared.events.publish(&Event::Transaction {
                db: self.name.clone(),
                txid: state.pos.txid,
                post_apply: state.pos.post_apply,
                page_size: state.page_size().map_or(0, PageSize::get),
                commit: state.commit,
                timestamp_ms: state.timestamp_ms,
            });
        }
    }

    /// Hands the records captured so far to the log file, makes them durable where the options ask for it, and publishes
    /// the position. If that fails, the database goes back to what the log holds.
    pub(crate) fn flush(&self, state: &mut State, mut appender: Appender<'_>) -> Result<()> {
        let flushed = appender.flush();
        drop(appender);
        if let Err(error) = flushed {
            self.reload(state)?;
            return Err(error.into());
        }
        if self.log.tail().map_or(Txid::ZERO, |tail| tail.max) < state.pos.txid {
            // A record that could not be written took those with it that waited to be written before it. Its own error
            // is with whoever made it.
            self.reload(state)?;
        }
        if self.shared.options.durability == Durability::Commit {
            self.log.sync()?;
        }
        state.set_cursor();
        self.publish(state);
        Ok(())
    }
}
