//! What makes [`Access`] true: takes and releases locks, seals, captures what was committed before, and notes for the next process what
//! clients may do. Called by changes of the role, by the settler and by an apply.
//!
//! A fence is tried for, and lifted, without a lock of the engine, because the files of the locks may have to be opened. Two threads
//! that try at once share one lock; [`Access::next`] says which of them keeps it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlite_format::wal_index::lock;

use super::access::{Access, Barrier, Effects, Input};
use super::fence::{Attempt, Fence};
use crate::capture::read_index;
use crate::capture::wal::Until;
use crate::database::Database;
use crate::database::settle::{Found, LONG_PAUSE};
use crate::database::state::State;
use crate::error::{Error, Result};
use crate::kernel::{Coherence, LockFiles};
use crate::name::Side;

/// Pause between two looks at a client's lock.
const LOOK: Duration = Duration::from_millis(2);

/// What came of an attempt to fence writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    /// No client is connected in WAL mode.
    Nobody,
    Taken,
    /// A client holds the lock.
    Busy,
}

impl Database {
    /// Something happened to the locks that clients' access depends on. With or without the mutex.
    pub(crate) fn enter(&self, input: Input) {
        self.deliver(self.writers.enter(input));
    }

    /// Something happened to the right of clients to write. It is noted for a process that takes over, under the mutex: the last note is
    /// that of the last transition.
    pub(crate) fn enter_noting(&self, state: &mut State, input: Input) {
        let effects = self.writers.enter(input);
        if let Some(note) = effects.note {
            state.scratch.set_clients(note);
        }
        self.deliver(effects);
    }

    fn deliver(&self, effects: Effects) {
        if effects.watch {
            self.shared.settler.watch(&self.name);
        }
    }

    /// Ends the time as primary: no commit can return any more that is not in the log. Requests that would change
    /// something are refused already; what passes the daemon by is fenced with WAL_WRITE. A client that keeps a lock
    /// beyond the deadline is in the middle of a transaction that it cannot commit: its WAL is sealed, and the end of its journal
    /// is refused. When it has let go it is fenced too.
    pub(crate) fn fence(&self, deadline: Instant) -> Result<()> {
        self.enter(Input::Demoted);
        self.end_writing(deadline)?;
        let mut state = self.state.lock();
        let sealed = state.seal.is_some();
        self.enter_noting(&mut state, Input::Ended { sealed });
        Ok(())
    }

    fn end_writing(&self, deadline: Instant) -> Result<()> {
        if self.is_closed() {
            return self.fence_to_demote(deadline);
        }
        // Before the mutex: the kernel's side looks at its own tables.
        let pass_by = self.writes_pass_by();
        let (has_wal, written) = {
            let mut state = self.state.lock();
            let has_wal = state.backing.get(Side::Wal)?.is_some();
            let connected = has_wal && (state.backing.get(Side::Shm)?.is_some() || pass_by);
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

    /// Nothing is captured any more: what clients committed last stays in the WAL for the next start.
    fn fence_to_demote(&self, deadline: Instant) -> Result<()> {
        let shm = self.state.lock().backing.get(Side::Shm)?.is_some();
        if shm && !self.fence_wal(&self.locks()?, deadline)? {
            self.cut_off()?;
        }
        Ok(())
    }

    /// Fences connections that can write past the daemon; `false` if one of them holds out. Then the settler goes on trying.
    fn fence_wal(&self, locks: &Arc<dyn LockFiles>, deadline: Instant) -> Result<bool> {
        loop {
            match self.try_fence(locks)? {
                Probe::Nobody | Probe::Taken => return Ok(true),
                Probe::Busy if Instant::now() >= deadline => {
                    tracing::warn!(db = %self.name, "a client holds WAL_WRITE across the change of the primary");
                    self.enter(Input::HeldOut);
                    return Ok(false);
                }
                Probe::Busy => std::thread::sleep(LOOK),
            }
        }
    }

    /// One attempt to fence.
    pub(crate) fn try_fence(&self, locks: &Arc<dyn LockFiles>) -> Result<Probe> {
        let attempt = Fence::attempt(locks, self.writes_pass_by())
            .map_err(Error::io("wal.fence", self.name.file(Side::Shm)))?;
        Ok(match attempt {
            Attempt::Unconnected => {
                self.enter(Input::Unconnected);
                Probe::Nobody
            }
            Attempt::Busy => Probe::Busy,
            Attempt::Taken(fence) => {
                tracing::info!(
                    db = %self.name,
                    "connections from the time as primary find the database locked until they are closed or this node is primary again"
                );
                self.deliver(self.writers.take(fence));
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
        let locks = match self.cached_locks() {
            Some(locks) => locks,
            None if self.writers.is_held_off() => self.locks()?,
            None => return Ok(false),
        };
        if self.writers.is_held_off() && !self.fence_late(&locks)? {
            return Ok(true);
        }
        match self.writers.access().barrier() {
            Barrier::Open | Barrier::HeldOff => {
                self.enter_noting(&mut self.state.lock(), Input::Looked);
                Ok(false)
            }
            Barrier::Lent => Ok(true),
            Barrier::Fenced => self.lift_needless_fence(&*locks),
        }
    }

    /// Fences a client that held out. `false` if it still does.
    fn fence_late(&self, locks: &Arc<dyn LockFiles>) -> Result<bool> {
        let connected = locks.locked(Side::Shm, lock::DMS);
        let connected = connected.map_err(Error::io("wal.fence", self.name.file(Side::Shm)))?;
        if (connected || self.writes_pass_by()) && !self.index_is_valid()? {
            return Ok(false);
        }
        if self.try_fence(locks)? == Probe::Busy {
            return Ok(false);
        }
        if !self.is_held_exclusively(&**locks)? {
            // Where it is sealed, SQLite opens a database for reading only, for as long as the connection lives.
            self.state.lock().break_seal()?;
        }
        Ok(true)
    }

    /// Whether the fence stays.
    fn lift_needless_fence(&self, locks: &dyn LockFiles) -> Result<bool> {
        // Who has the WAL open has yet to connect, and needs DMS for that.
        if !self.writes_pass_by() {
            let alone = locks.try_lock(Side::Shm, lock::DMS, 1, true);
            if alone.map_err(Error::io("wal.unfence", self.name.file(Side::Shm)))? {
                self.enter(Input::Alone);
                return Ok(false);
            }
        }
        if !self.index_is_valid()? {
            // Clients need WAL_WRITE to build it anew. Meanwhile nothing but the seal keeps them from committing.
            self.cut_off()?;
            self.enter(Input::IndexInvalid);
        }
        Ok(true)
    }

    /// One attempt to fence the writers whom no request can be refused, on behalf of the settler.
    pub(crate) fn fence_closed(&self) -> Result<Found> {
        if self.shared.kernel().coherence() == Coherence::Intercepted {
            return Ok(Found::Settled);
        }
        if self.writers.is_fenced() {
            // Lifted where nobody is left or the wal-index has to be built anew; the next look decides what follows.
            self.keep_fence()?;
            return Ok(Found::Later);
        }
        if self.state.lock().backing.get(Side::Shm)?.is_none() {
            return Ok(Found::Settled);
        }
        let locks = self.locks()?;
        Ok(match self.try_fence(&locks)? {
            Probe::Nobody => Found::Settled,
            Probe::Taken => Found::Later,
            Probe::Busy => Found::Pending,
        })
    }

    /// Whether a client from the time as primary has the WAL open and may write there, also if it holds no lock yet.
    pub(crate) fn writes_pass_by(&self) -> bool {
        self.shared.kernel().writes_pass_by(&self.name)
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

    /// Clients may write again, unless the disk failed.
    pub(crate) fn let_write(&self) {
        // A look of the settler that began before the promotion may be about to fence.
        let _turn = (!self.is_closed()).then(|| self.backlog.applying.lock());
        let mut state = self.state.lock();
        self.enter_noting(&mut state, Input::Promoted);
        if self.writers.access() == Access::Writing
            && let Err(error) = state.break_seal()
        {
            tracing::error!(db = %self.name, %error, "clients cannot write the WAL");
        }
    }

    /// No client is left who could write.
    pub(crate) fn release(&self) -> Result<()> {
        self.enter(Input::Alone);
        self.forget_locks();
        self.state.lock().break_seal()
    }
}
