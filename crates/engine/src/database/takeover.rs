//! Locks of the process before this one: they belong to open file descriptions that the opener holds, so they outlived it. Fences stay
//! without a gap, and what the process died with in the middle of something goes when that is done.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sqlite_format::locks::PENDING_BYTE;
use sqlite_format::locks::{SHARED_FIRST, SHARED_SIZE};
use sqlite_format::wal_index::lock;

use super::Database;
use super::scratch::{Applying, Clients, Method};
use crate::error::{Error, Result};
use crate::kernel::LockFiles;
use crate::name::Side;
use crate::writers::access::Input;
use crate::writers::enforce::Probe;

/// How long the end of a time as primary waits for clients in the middle of something.
const PATIENCE: Duration = Duration::from_secs(5);

/// Descriptors through which the process before may hold locks that nobody took over.
pub(super) struct Inherited(Arc<dyn LockFiles>);

impl Inherited {
    /// Releases them, all but a fence.
    fn release(self, fenced: bool) -> io::Result<()> {
        let unlock = |side, start, len| self.0.unlock(side, start, len);
        let all = SHARED_FIRST + SHARED_SIZE - PENDING_BYTE;
        unlock(Side::Database, PENDING_BYTE, all)?;
        unlock(Side::Shm, lock::CHECKPOINT, lock::DMS - lock::CHECKPOINT)?;
        if !fenced {
            unlock(Side::Shm, lock::WRITE, 1)?;
            unlock(Side::Shm, lock::DMS, 1)?;
        }
        Ok(())
    }
}

impl Database {
    /// Takes the locks over. Waits for nothing, and comes before the first request is answered.
    pub(crate) fn adopt_locks(&self) -> Result<()> {
        let kept = self.shared.kernel().kept_locks(&self.name);
        let kept = kept.map_err(Error::io("locks.keep", self.name.as_str()))?;
        let (clients, applying) = {
            let state = self.state.lock();
            (state.scratch.clients(), state.scratch.applying())
        };
        let has_shm = kept.as_ref().is_some_and(|locks| locks.has_shm());
        if clients == Clients::Fenced && !has_shm && !self.shared.is_primary() {
            // The fence ended with the opener.
            self.unfinished_primary.store(true, Ordering::Release);
        }
        let Some(locks) = kept else {
            return self.hold_off_awaited();
        };
        *self.locks.lock() = Some(locks.clone());
        let fenced = match clients {
            Clients::Refused => false,
            Clients::Write | Clients::Fenced => !self.shared.is_primary(),
        };
        if has_shm && (fenced || self.is_closed()) {
            // Who holds out is fenced by the settler, when he has let go.
            match self.try_fence(&locks)? {
                Probe::Nobody | Probe::Taken => {}
                Probe::Busy => self.enter(Input::HeldOut),
            }
        }
        self.hold_off_awaited()?;
        *self.inherited.lock() = Some(Inherited(locks.clone()));
        match applying {
            None => self.release_inherited(),
            Some(applying) => self.keep_readers_out(locks, applying),
        }
    }

    /// A client that opened the WAL and was waiting for the wal-index when the process before died is answered next. There is nothing yet
    /// to fence it with, so the WAL is sealed until there is.
    fn hold_off_awaited(&self) -> Result<()> {
        if self.shared.is_primary() || self.writers.is_fenced() || !self.writes_pass_by() {
            return Ok(());
        }
        self.cut_off()?;
        self.enter(Input::HeldOut);
        Ok(())
    }

    /// A record is half written to the main file: nobody reads it before it is written as a whole.
    fn keep_readers_out(&self, locks: Arc<dyn LockFiles>, applying: Applying) -> Result<()> {
        match applying.method {
            Method::Exclusive => self.backlog.keep(locks, &self.name),
            Method::Wal | Method::Remove => Ok(()),
        }
    }

    /// Does what the process before left undone. May wait for the mount.
    pub(crate) fn finish_takeover(self: &Arc<Self>) -> Result<()> {
        self.finish_primary()?;
        self.finish_record()?;
        if !self.shared.is_primary() && !self.is_caught_up() {
            self.start_worker();
        }
        if self.shared.is_primary() {
            self.wal_changed()?;
        }
        Ok(())
    }

    /// What the kernel was not told of a record that is in the files, or in a part of them.
    fn finish_record(&self) -> Result<()> {
        let _turn = self.backlog.applying.lock();
        let (applying, at) = {
            let state = self.state.lock();
            (state.scratch.applying(), state.pos.txid)
        };
        let Some(applying) = applying else { return Ok(()) };
        let kernel = self.shared.kernel();
        kernel.invalidate(&self.name, Side::Database, None);
        match applying.method {
            Method::Exclusive => {}
            Method::Remove => {
                for side in Side::ALL {
                    kernel.invalidate_entry(&self.name, side);
                }
            }
            Method::Wal => kernel.store(&self.name, Side::Shm, 0, &[]),
        }
        if applying.txid > at {
            // It is applied once more, under the locks that are held. On a primary it never is, and nobody reads what is half written.
            return Ok(());
        }
        let published = match applying.method {
            Method::Wal => self.publish_again(),
            Method::Exclusive | Method::Remove => Ok(()),
        };
        self.applied_as_a_whole().and(published)
    }

    /// What is pending cannot be applied before a snapshot comes. Readers go on with what they have, unless that is half written.
    pub(crate) fn give_up_record(&self) -> Result<()> {
        match self.backlog.keeps_readers_out() {
            true => Ok(()),
            false => self.release_inherited(),
        }
    }

    /// Nothing is half applied any more.
    pub(crate) fn applied_as_a_whole(&self) -> Result<()> {
        self.state.lock().scratch.set_applying(None);
        self.release_inherited()
    }

    /// Releases what the process before held and nobody needs: all but the fence.
    pub(crate) fn release_inherited(&self) -> Result<()> {
        let Some(inherited) = self.inherited.lock().take() else {
            return Ok(());
        };
        self.backlog.let_go();
        inherited
            .release(self.writers.is_fenced())
            .map_err(Error::io("locks.release", self.name.as_str()))
    }

    /// The process before died when its time as primary had ended and not everybody was fenced, or its fences ended with the opener: what
    /// was committed until now is captured,
    /// and nobody commits any more. Comes before any record of another primary.
    pub(crate) fn finish_primary(&self) -> Result<()> {
        if self.unfinished_primary.load(Ordering::Acquire) && !self.shared.is_primary() {
            self.fence(Instant::now() + PATIENCE)?;
        }
        self.unfinished_primary.store(false, Ordering::Release);
        Ok(())
    }
}
