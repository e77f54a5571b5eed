//! Opening a database whose clients go on: the process that served the mount died, and the mount did not.
//!
//! Nothing is moved, copied or taken back here, and no file of SQLite's changes. The state is made what the dead process knew: where the
//! files are (`scratch`), table and log at that position, how far the WAL is captured (`resume_wal`). Records that were captured and
//! not noted any more are in the files: they were made from them. Received ones that are not noted are applied by the worker, once more
//! from the begin, under the method and the locks that the dead process had chosen.
//!
//! What cannot be made sure of is closed for writing until a start that nobody is in the way of (a primary), or comes anew from the
//! primary (a replica).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ltx::{Pos, Txid};

use super::Database;
use super::backing::{Backing, Content};
use super::repair::Touched;
use super::scratch::{Clients, Left};
use super::state::State;
use crate::capture::wal::read_header;
use crate::error::{Error, Result};
use crate::log::{Origin, RecordInfo};
use crate::name::{DbName, Side};
use crate::options::Durability;
use crate::shared::Shared;
use crate::writers::access::Input;
use crate::writers::seal::Seal;

/// Where the files are.
pub(super) enum FilesAt {
    /// What this record left.
    Record(RecordInfo),
    /// Before a snapshot that begins the log and is yet to be applied.
    BeforeSnapshot,
    /// Nobody knows.
    Unknown,
}

impl Database {
    /// Opens the database that is kept in `home` while clients use its files.
    pub(crate) fn open_in_use(shared: Arc<Shared>, name: DbName, home: PathBuf) -> Result<Arc<Database>> {
        let backing = Backing::new(&shared.files, &name);
        let (db, left) = Database::load(shared, name, home, backing)?;
        db.take_up(&left)?;
        // What is in doubt stays so for whoever comes next.
        if !db.is_closed() && (left.same_boot || db.log.tail().is_none()) {
            db.state.lock().scratch.confirm();
        }
        Ok(db)
    }

    fn take_up(&self, left: &Left) -> Result<()> {
        let mut state = self.state.lock();
        let state = &mut *state;
        self.take_up_hints(state, left)?;
        let Some(tail) = self.log.tail() else {
            self.take_up_unlogged(state)?;
            self.settle_clients(state);
            return Ok(());
        };
        if !left.same_boot {
            // Whether clients are fenced is not known either; who is not has nothing to lose.
            self.close_unverified(
                state,
                &tail,
                "a sync failed, or what was noted of its files is lost",
            );
            self.publish(state);
            return Ok(());
        }
        match self.files_at(left, &tail)? {
            FilesAt::Record(at) if self.replay_to(state, &at)? => {
                self.take_up_wal(state, left, &at)?;
                self.take_up_drop(state, left, &at);
                if at.pos() != tail.pos() {
                    self.take_up_pending(state, &at)?;
                }
            }
            FilesAt::BeforeSnapshot if !self.shared.is_primary() => {
                self.take_up_before_snapshot(state, left)?
            }
            FilesAt::Record(at) => self.doubt_files(state, &at, "its page checksums are lost")?,
            FilesAt::BeforeSnapshot | FilesAt::Unknown => {
                self.doubt_files(state, &tail, "nobody knows which transaction its files are at")?;
            }
        }
        if let Some(wal) = state.backing.get(Side::Wal)? {
            // The header of a commit frame may be written, and its page be the next that comes.
            state.wal.commit_written = state.wal.may_end(&wal);
        }
        if let Some(reason) = &left.quarantine {
            self.health.was_diverged(reason);
        }
        if !self.is_closed() {
            state.set_cursor_unless_lost();
        }
        self.settle_clients(state);
        self.publish(state);
        Ok(())
    }

    /// What the dead process knew and nobody noted gets the value that can do no harm.
    fn take_up_hints(&self, state: &mut State, left: &Left) -> Result<()> {
        // The log may lack a sync that a client waits for.
        state.synced_writes = self.shared.is_primary();
        if self.shared.options.durability == Durability::Commit
            && let Err(error) = self.log.sync()
        {
            // That closes the database.
            tracing::error!(db = %self.name, %error, "cannot make the log durable");
        }
        // Whoever was writing is given the time that he had.
        state.last_write = (!left.dirty.is_clean()).then(Instant::now);
        if let Some(wal) = state.backing.get(Side::Wal)? {
            state.wal.present = true;
            let path = state.backing.path(Side::Wal);
            state.seal = Seal::found(&wal, path).map_err(Error::io("wal.seal", path))?;
        }
        Ok(())
    }

    /// Records behind that one were received, and maybe one of them is half applied.
    fn take_up_pending(&self, state: &mut State, at: &RecordInfo) -> Result<()> {
        if self.shared.is_primary() {
            return self.doubt_files(state, at, "records from the primary before are not applied");
        }
        let next = self.log.find(at.max.next().unwrap_or(Txid::MAX))?;
        state.incoming = next.map_or(0, |record| record.info.commit);
        Ok(())
    }

    /// A database of which no transaction is known: all that its file holds is the first one.
    fn take_up_unlogged(&self, state: &mut State) -> Result<()> {
        self.forget_table(state)?;
        if state.backing.get(Side::Database)?.is_some() && self.shared.is_primary() {
            state.scratch.mark_all();
            state.last_write = Some(Instant::now());
        }
        Ok(())
    }

    /// Where the files were when the process died.
    fn files_at(&self, left: &Left, tail: &RecordInfo) -> Result<FilesAt> {
        let Some(noted) = left.files_at else {
            // The first record of all may be there without a note.
            return Ok(match self.captured_after(Txid::ZERO)? {
                Some(last) => FilesAt::Record(last),
                None => self.before_snapshot()?,
            });
        };
        let found = self.log.find(noted.txid)?.map(|record| record.info);
        let Some(at) = found.filter(|info| info.pos() == noted) else {
            return match tail.pos() == noted {
                true => Ok(FilesAt::Record(*tail)),
                false => self.before_snapshot(),
            };
        };
        // They were made from the files, and the process died before that was noted.
        Ok(FilesAt::Record(self.captured_after(at.max)?.unwrap_or(at)))
    }

    /// The last of the records behind `txid` that were captured, up to the first that was not.
    fn captured_after(&self, txid: Txid) -> Result<Option<RecordInfo>> {
        let mut last = None;
        let mut next = txid.next().unwrap_or(Txid::MAX);
        while let Some(record) = self.log.find(next)? {
            if record.info.meta.origin != Origin::Captured {
                break;
            }
            last = Some(record.info);
            next = record.info.max.next().unwrap_or(Txid::MAX);
        }
        Ok(last)
    }

    /// The log may have begun anew with a snapshot that is yet to be applied.
    fn before_snapshot(&self) -> Result<FilesAt> {
        let Some(first) = self.log.first_txid() else {
            return Ok(FilesAt::Unknown);
        };
        let record = self.log.find(first)?;
        // What was captured is in the files; it is no snapshot to be applied.
        let begins = |info: &RecordInfo| info.is_snapshot() && info.meta.origin != Origin::Captured;
        Ok(match record.is_some_and(|record| begins(&record.info)) {
            true => FilesAt::BeforeSnapshot,
            false => FilesAt::Unknown,
        })
    }

    /// Brings the table to that record. `false` if neither what was flushed nor the log can.
    fn replay_to(&self, state: &mut State, at: &RecordInfo) -> Result<bool> {
        let synced = state.table.synced();
        state.pos = at.pos();
        state.commit = at.commit;
        state.timestamp_ms = at.timestamp_ms;
        if synced != at.pos() || !state.table.is_intact() {
            let from = match synced.txid > at.max {
                true => Txid::FIRST,
                false => synced.txid.next().unwrap_or(Txid::MAX),
            };
            let first = self.log.first_txid();
            if !first.is_some_and(|first| first <= from || first == Txid::FIRST) {
                return Ok(false);
            }
            let mut touched = Touched::All;
            self.replay_records(state, from, at.max, &mut touched)?;
        }
        Ok(state.table.rolling() == at.post)
    }

    /// A process that died in the middle of dropping the database has the record, and maybe not what follows from it. What was written
    /// before is of no interest any more.
    fn take_up_drop(&self, state: &mut State, left: &Left, at: &RecordInfo) {
        if at.commit > 0 {
            return;
        }
        if at.meta.origin == Origin::Captured && left.files_at != Some(at.pos()) {
            state.scratch.settle();
            state.wal.reset();
        }
        // Its frames belong to what is dropped, until somebody opens it for a new database.
        state.wal.present &= !state.scratch.dirty().is_clean();
    }

    /// The files hold some transaction of another history, and the snapshot that replaces them is in the log. Until it is applied, readers
    /// go on with what they have.
    fn take_up_before_snapshot(&self, state: &mut State, left: &Left) -> Result<()> {
        state.pos = Pos::ZERO;
        self.blank_table(state)?;
        let Some(file) = state.backing.get(Side::Wal)? else {
            return Ok(());
        };
        let cursor = left.cursor;
        match read_header(&file)? {
            Some(header) if cursor.is_some_and(|cursor| cursor.salt == header.salt) => {
                self.map_wal(state, &file, cursor.map(|cursor| cursor.at.frames))?;
            }
            Some(header) => state.wal.begin(header),
            None => {}
        }
        state.commit = state.commit.max(state.wal.commit);
        Ok(())
    }

    /// A table for the page size of the files that knows none of their pages.
    fn blank_table(&self, state: &mut State) -> Result<()> {
        match state.backing.content()? {
            Content::Database { header, pages } => {
                state.table.reset(header.page_size);
                state.commit = pages;
            }
            Content::Empty | Content::Foreign(_) => {
                state.table.truncate(0);
                state.commit = 0;
            }
        }
        Ok(())
    }

    /// The files may be anything. A primary serves them to readers alone, and a replica gets the database anew.
    pub(super) fn doubt_files(&self, state: &mut State, at: &RecordInfo, why: &str) -> Result<()> {
        state.pos = at.pos();
        state.timestamp_ms = at.timestamp_ms;
        if self.shared.is_primary() || state.scratch.clients() == Clients::Write {
            self.close_unverified(state, at, why);
            return Ok(());
        }
        self.blank_table(state)?;
        state.diverge(format!("{why}: only a snapshot from the primary can repair it"));
        Ok(())
    }

    /// The database is read and nothing else, and takes no records either: what clients committed may be in its files alone.
    fn close_unverified(&self, state: &mut State, at: &RecordInfo, why: &str) {
        state.pos = at.pos();
        state.commit = at.commit;
        self.health
            .unverified(&format!("{why}: a start without clients has to verify it"));
    }

    /// On the primary clients write, whatever the process before died in the middle of.
    fn settle_clients(&self, state: &mut State) {
        let primary = self.shared.is_primary();
        let wrote = state.scratch.clients() == Clients::Write;
        self.enter_noting(state, Input::Opened { primary, wrote });
        self.unfinished_primary
            .store(wrote && !primary, Ordering::Release);
    }
}

impl State {
    /// Notes where the files are, unless that is what nobody knows.
    fn set_cursor_unless_lost(&mut self) {
        if !self.pos.is_zero() && !self.health.is_diverged() {
            self.set_cursor();
        }
    }
}
