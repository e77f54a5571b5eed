//! Clients that no lock can fence when the time as primary ends: those with `locking_mode=EXCLUSIVE` ask for none any more, and those in
//! the middle of a transaction hold it themselves. In mode K nothing that they write to the WAL passes the daemon. So the WAL is
//! sealed: such a client goes on reading, and its next commit fails. The seal is broken before anybody else writes the WAL: apply, a
//! client's close, a promotion; and when a lock keeps the client out after all.

use sqlite_format::locks::{SHARED_FIRST, SHARED_SIZE};

use super::seal::Seal;
use crate::database::Database;
use crate::database::state::State;
use crate::error::{Error, Result};
use crate::kernel::{Coherence, LockFiles};
use crate::name::Side;

impl Database {
    /// Whether a client holds the database for itself.
    pub(crate) fn is_held_exclusively(&self, locks: &dyn LockFiles) -> Result<bool> {
        if self.backlog.keeps_readers_out() {
            // It is this node that does. To try the lock would give it away.
            return Ok(false);
        }
        let path = self.name.file(Side::Database);
        let others_may_read = locks
            .try_lock(Side::Database, SHARED_FIRST, SHARED_SIZE, false)
            .map_err(Error::io("database.fence", &path))?;
        if others_may_read {
            locks
                .unlock(Side::Database, SHARED_FIRST, SHARED_SIZE)
                .map_err(Error::io("database.fence", path))?;
        }
        Ok(!others_may_read)
    }

    /// Whether a client is there that nothing but the seal keeps from committing.
    pub(crate) fn is_held_off(&self) -> Result<bool> {
        if self.state.lock().seal.is_none() {
            return Ok(false);
        }
        Ok(self.writers.is_held_off() || self.is_held_exclusively(&*self.locks()?)?)
    }

    /// Keeps clients from committing. What they committed before is in the WAL.
    pub(crate) fn cut_off(&self) -> Result<()> {
        if self.shared.kernel().coherence() == Coherence::Intercepted || !self.shared.options.seal {
            return Ok(());
        }
        let mut state = self.state.lock();
        state.seal_wal()?;
        match state.seal.is_some() {
            true => {
                tracing::info!(db = %self.name, "a client that holds on to the database cannot commit any more")
            }
            false => tracing::warn!(
                db = %self.name,
                "a client holds on to the database and can go on committing here, unseen by the new primary: \
                 the WAL cannot be sealed (its file system, or a missing CAP_LINUX_IMMUTABLE)"
            ),
        }
        Ok(())
    }
}

impl State {
    /// Keeps the WAL, if there is one, from being written. Whether that worked is in the self.
    pub(crate) fn seal_wal(&mut self) -> Result<()> {
        if let Some(wal) = self.backing.get(Side::Wal)? {
            let path = self.backing.path(Side::Wal);
            let seal = Seal::put(&wal, path).map_err(Error::io("wal.seal", path))?;
            if let Some(before) = std::mem::replace(&mut self.seal, seal) {
                before.leave();
            }
        }
        Ok(())
    }

    /// Lets the WAL be written and removed again.
    pub(crate) fn break_seal(&mut self) -> Result<()> {
        if let Some(seal) = self.seal.take() {
            if let Err((seal, error)) = seal.lift() {
                self.seal = Some(seal);
                return Err(Error::io("wal.unseal", self.backing.path(Side::Wal))(error));
            }
            // It may be open for reading only, from when it was sealed.
            self.backing.forget(Side::Wal);
        }
        Ok(())
    }
}
