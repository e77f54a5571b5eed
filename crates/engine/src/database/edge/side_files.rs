//! WAL and wal-index belong to all clients of a database together. SQLite takes them away, or makes them shorter, under locks that say
//! that nobody needs them; anything else, an `rm` say, is refused while somebody does.
//!
//! Asked by threads that serve the mount, so nothing is opened: where no lock file is open yet, nothing is known and nothing refused.

use std::fs::File;

use sqlite_format::wal_index::lock;

use crate::database::Database;
use crate::error::{Error, Result};
use crate::kernel::LockFiles;
use crate::name::Side;

impl Database {
    /// Whether WAL and wal-index may go. The last client to close the database, and one that changes the journal mode, have it for
    /// themselves. Beside an empty main file whoever connects removes a WAL that is left.
    pub(super) fn check_goes(&self) -> Result<()> {
        let Some(locks) = self.cached_locks() else {
            return Ok(());
        };
        let main = self.name.file(Side::Database);
        if self
            .shared
            .files
            .metadata(&main)
            .is_ok_and(|main| main.len() == 0)
        {
            return Ok(());
        }
        let in_use = || Ok(locks.database_locked()? && !locks.database_write_locked()?);
        self.refuse_if(in_use(), "SHARED")
    }

    /// Whether the file may be made that short. Whoever does holds WAL_WRITE or the database for itself; the first client to connect
    /// empties the wal-index.
    pub(super) fn check_shortens(&self, side: Side, file: &File, size: u64) -> Result<()> {
        let Some(locks) = self.cached_locks() else {
            return Ok(());
        };
        let len = file
            .metadata()
            .map_err(Error::io("side_file.stat", self.name.file(side)))?
            .len();
        if size >= len {
            return Ok(());
        }
        self.refuse_if(is_connected(&*locks), "DMS")
    }

    fn refuse_if(&self, in_use: std::io::Result<bool>, lock: &'static str) -> Result<()> {
        match in_use {
            Ok(true) => Err(Error::Busy {
                db: self.name.clone(),
                lock,
            }),
            Ok(false) => Ok(()),
            // A file that is not open yet cannot be asked on this thread.
            Err(error) => {
                tracing::debug!(db = %self.name, %error, lock, "not known whether the file is in use");
                Ok(())
            }
        }
    }
}

/// Clients use the wal-index, and none of them is at it for all of them: as the first to connect, as the one that writes, or as one that
/// keeps all others out, which recovery does too.
fn is_connected(locks: &dyn LockFiles) -> std::io::Result<bool> {
    Ok(locks.locked(Side::Shm, lock::DMS)?
        && !locks.write_locked(Side::Shm, lock::DMS)?
        && !locks.write_locked(Side::Shm, lock::WRITE)?
        && !locks.write_locked(Side::Shm, lock::RECOVER)?
        && !locks.database_write_locked()?)
}
