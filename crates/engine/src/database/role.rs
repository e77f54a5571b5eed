//! What a change of the node's role, housekeeping and the end of the process mean for one database.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ltx::Txid;
use sqlite_format::Pgno;
use sqlite_format::wal_index::lock;

use super::Database;
use super::scratch::{Clients, Writing};
use super::settle::LONG_PAUSE;
use super::state::State;
use crate::capture::read_index;
use crate::capture::wal::Until;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::kernel::{Coherence, LockFiles};
use crate::layout;
use crate::name::Side;
use crate::store::{Retention, retain_policy};
use crate::writers::fence::{Attempt, Fence};

/// Pages compared in one turn of the mutex.
const VERIFIED: u32 = 64;
/// Pause between two looks at a client's lock.
const LOOK: Duration = Duration::from_millis(2);

/// What came of an attempt to fence writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    /// No client is connected in WAL mode.
    Nobody,
    Taken,
    /// A client holds the lock.
    Busy,
}

impl Database {
    /// Ends the time as primary: no commit can return any more that is not in the log. Requests that would change
    /// something are refused already; what passes the daemon by is fenced with WAL_WRITE. A client that keeps a lock
    /// beyond the deadline is in the middle of a transaction that it cannot commit: its WAL is sealed, and the end of its journal
    /// is refused. When it has let go it is fenced too.
    pub(crate) fn fence(&self, deadline: Instant) -> Result<()> {
        self.end_writing(deadline)?;
        // Not before: a process that takes over in the middle has to begin anew.
        let mut state = self.state.lock();
        let fenced =
            self.writers.is_fenced() || self.held_out.load(Ordering::Acquire) || state.seal.is_some();
        state.scratch.set_clients(match fenced {
            true => Clients::Fenced,
            false => Clients::Refused,
        });
        Ok(())
    }

    fn end_writing(&self, deadline: Instant) -> Result<()> {
        if self.is_closed() {
            return self.fence_to_demote(deadline);
        }
        let (has_wal, written) = {
            let mut state = self.state.lock();
            let has_wal = state.backing.get(Side::Wal)?.is_some();
            let connected = has_wal && state.backing.get(Side::Shm)?.is_some();
            let written = connected || !state.scratch.dirty().is_clean();
            if !(written || has_wal) || state.backing.get(Side::Database)?.is_none() {
                self.capture_wal(&mut state, Until::Index)?;
                return Ok(());
            }
            (has_wal, written)
        };
        let locks = self.locks()?;
        let (mut fenced, mut finished) = (true, true);
        if written {
            fenced = self.fence_wal(&locks, deadline)?;
            finished = self.await_writer(&*locks, deadline)?;
        }
        let holds_on = has_wal && (!fenced || self.is_held_exclusively(&*locks)?);
        let cut_off = if holds_on { self.cut_off() } else { Ok(()) };
        let mut state = self.state.lock();
        // Who holds on may be about to publish what it has written.
        let until = if state.seal.is_some() {
            Until::Chain
        } else {
            Until::Index
        };
        self.capture_wal(&mut state, until)?;
        if !finished {
            // Its lock says nothing if it never gives it up: then what it has left alone for long enough is a commit.
            self.settle_pages(&mut state, true, LONG_PAUSE)?;
        } else if !state.backing.journal_is_hot()? {
            self.capture_pages(&mut state, 0)?;
        }
        cut_off
    }

    /// Fences connections that can write past the daemon; `false` if one of them holds out. Then the settler goes on trying.
    pub(super) fn fence_wal(&self, locks: &Arc<dyn LockFiles>, deadline: Instant) -> Result<bool> {
        loop {
            let probe = self.try_fence(locks)?;
            let held_out = probe == Probe::Busy && Instant::now() >= deadline;
            self.held_out.store(held_out, Ordering::Release);
            match probe {
                Probe::Nobody => return Ok(true),
                Probe::Taken => {
                    self.shared.settler.watch(&self.name);
                    return Ok(true);
                }
                Probe::Busy if held_out => {
                    tracing::warn!(db = %self.name, "a client holds WAL_WRITE across the change of the primary");
                    self.shared.settler.watch(&self.name);
                    return Ok(false);
                }
                Probe::Busy => std::thread::sleep(LOOK),
            }
        }
    }

    /// One attempt to fence.
    pub(super) fn try_fence(&self, locks: &Arc<dyn LockFiles>) -> Result<Probe> {
        let attempt = Fence::attempt(locks).map_err(Error::io("wal.fence", self.name.file(Side::Shm)))?;
        Ok(match attempt {
            Attempt::Nobody => Probe::Nobody,
            Attempt::Busy => Probe::Busy,
            Attempt::Taken(fence) => {
                tracing::info!(
                    db = %self.name,
                    "connections from the time as primary find the database locked until they are closed or this node is primary again"
                );
                self.writers.keep(fence);
                Probe::Taken
            }
        })
    }

    /// Waits for the end of a rollback-mode transaction; `false` if it does not come in time.
    fn await_writer(&self, locks: &dyn LockFiles, deadline: Instant) -> Result<bool> {
        let path = self.name.file(Side::Database);
        while !self.state.lock().scratch.dirty().is_clean()
            && locks
                .database_write_locked()
                .map_err(Error::io("database.fence", &path))?
        {
            if Instant::now() >= deadline {
                tracing::warn!(db = %self.name, "a client is in a transaction across the change of the primary");
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
        Ok(true)
    }

    /// Fences a client that held out as soon as it has let go, and lifts the fence once nobody is left whom it could keep from writing.
    /// Returns whether there is one, or has to be.
    pub(crate) fn keep_fence(&self) -> Result<bool> {
        // Apply holds the same locks and must not find them gone in the middle.
        let Some(_turn) = self.backlog.applying.try_lock() else {
            return Ok(true);
        };
        self.renew_fence()
    }

    /// As [`Database::keep_fence`], by who has the turn to apply.
    pub(crate) fn renew_fence(&self) -> Result<bool> {
        let Some(locks) = self.cached_locks() else {
            return Ok(false);
        };
        let connected = || {
            let locked = locks.locked(Side::Shm, lock::DMS);
            locked.map_err(Error::io("wal.fence", self.name.file(Side::Shm)))
        };
        if self.held_out.load(Ordering::Acquire) {
            if connected()? && !self.index_is_valid()? {
                return Ok(true);
            }
            if self.try_fence(&locks)? == Probe::Busy {
                return Ok(true);
            }
            self.held_out.store(false, Ordering::Release);
            if !self.is_held_exclusively(&*locks)? {
                // Where it is sealed, SQLite opens a database for reading only, for as long as the connection lives.
                self.break_seal(&mut self.state.lock())?;
            }
        }
        if !self.writers.is_fenced() {
            if !self.shared.is_primary() {
                self.note_clients(Clients::Refused);
            }
            return Ok(false);
        }
        let alone = locks.try_lock(Side::Shm, lock::DMS, 1, true);
        if alone.map_err(Error::io("wal.unfence", self.name.file(Side::Shm)))? {
            self.writers.release();
        } else if !self.index_is_valid()? {
            // Clients need WAL_WRITE to build it anew. Meanwhile nothing but the seal keeps them from committing.
            self.cut_off()?;
            self.held_out.store(true, Ordering::Release);
            self.writers.release();
            return Ok(true);
        }
        Ok(self.writers.is_fenced())
    }

    /// Whether clients that connect can use the wal-index as it is: if its writer died in the middle, they need WAL_WRITE.
    fn index_is_valid(&self) -> Result<bool> {
        if self.shared.kernel().coherence() == Coherence::Intercepted {
            return Ok(true);
        }
        let mut state = self.state.lock();
        let Some(shm) = state.backing.get(Side::Shm)? else {
            return Ok(true);
        };
        let index = read_index(&shm).map_err(Error::io("shm.read", state.backing.path(Side::Shm)))?;
        Ok(index.is_some())
    }

    /// A client that held out has let go of WAL_WRITE, and an apply has it now: it becomes the fence.
    pub(crate) fn fence_late(&self, alone: bool) {
        if self.held_out.swap(false, Ordering::AcqRel) && !alone {
            self.writers.expect();
            self.shared.settler.watch(&self.name);
        }
    }

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

    /// Copies the records behind `after` into the archive, as ordinary LTX files.
    pub(crate) fn archive_tail(&self, after: Txid) -> Result<Option<PathBuf>> {
        let first = after.next().unwrap_or(Txid::MAX);
        let dir = layout::archive(&self.shared.dir, &self.name);
        let mut range: Option<(Txid, Txid)> = None;
        for record in self.log.records(first) {
            let record = record?;
            let info = record.info;
            if info.min <= after {
                continue;
            }
            std::fs::create_dir_all(&dir).map_err(Error::io("archive.mkdir", &dir))?;
            let path = dir.join(ltx::file_name(info.min, info.max));
            let path = free_path(path);
            let mut file = std::fs::File::create_new(&path).map_err(Error::io("archive.create", &path))?;
            let mut reader = record.reader();
            copy(&mut reader, &mut file).map_err(Error::io("archive.write", &path))?;
            file.sync_all().map_err(Error::io("archive.sync", &path))?;
            range = Some((range.map_or(info.min, |(first, _)| first), info.max));
        }
        let Some((first, last)) = range else {
            return Ok(None);
        };
        sync_dir(&dir)?;
        tracing::warn!(
            db = %self.name, %first, %last, archive = %dir.display(),
            "transactions that the primary does not have are set aside"
        );
        let event = Event::Diverged {
            db: self.name.clone(),
            first,
            last,
            archive: dir.clone(),
        };
        self.shared.events.publish(&event);
        Ok(Some(dir))
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
        if let Err(error) = files.sync() {
            self.closed.close(&error.to_string());
            return Err(error);
        }
        flush.write()?;
        let mut state = self.state.lock();
        state.table.confirm(flush);
        state.aside.remove()
    }

    pub(crate) fn sync_files(&self, state: &mut State) -> Result<()> {
        let synced = state.backing.durable()?.sync();
        synced.inspect_err(|error| self.closed.close(&error.to_string()))
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
        let held_off = !self.held_out.load(Ordering::Acquire) || state.seal.is_some();
        let caught_up = self.log.tail().is_none_or(|tail| tail.pos() == state.pos);
        if held_off && caught_up && state.scratch.dirty().is_clean() {
            state.scratch.close();
        }
        Ok(())
    }

    /// No client is left who could write.
    pub(crate) fn release(&self) -> Result<()> {
        self.writers.release();
        self.forget_locks();
        self.break_seal(&mut self.state.lock())
    }

    /// Notes what clients may do, for a process that takes over from this one.
    pub(crate) fn note_clients(&self, clients: Clients) {
        self.state.lock().scratch.set_clients(clients);
    }
}

/// The path, or the path with a number behind it if it is taken: an archive is never overwritten.
fn free_path(path: PathBuf) -> PathBuf {
    if !path.exists() {
        return path;
    }
    let base = path.to_string_lossy().into_owned();
    (1u32..)
        .map(|n| PathBuf::from(format!("{base}.{n}")))
        .find(|path| !path.exists())
        .unwrap_or(path)
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<()> {
    std::io::copy(from, to).map(|_| ())
}

fn sync_dir(dir: &std::path::Path) -> Result<()> {
    std::fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io("archive.sync", dir))
}
