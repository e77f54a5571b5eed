//! The lock that keeps every other writer away, whatever the journal mode.

use super::exclusive::Exclusive;
use super::wal::Writer;
use crate::database::Database;
use crate::error::{Error, Result};
use crate::name::Side;
use sqlite_format::header::JournalMode;

/// Held while the content of a database is replaced.
pub(crate) enum WriterLock {
    /// WAL mode: readers go on.
    Wal { _writer: Writer },
    /// Rollback mode: nobody reads.
    Exclusive { _guard: Exclusive },
    /// There is no file that a client could have open.
    Nobody,
}

impl WriterLock {
    /// Takes it, or tells who is in the way.
    pub(crate) fn take(db: &Database) -> Result<WriterLock> {
        let (exists, wal) = {
            let mut state = db.state.lock();
            let wal = state.wal.frames() > 0 || db.file_journal_mode(&mut state)? == Some(JournalMode::Wal);
            (state.backing.get(Side::Database)?.is_some(), wal)
        };
        if !exists {
            return Ok(WriterLock::Nobody);
        }
        if wal {
            return Ok(WriterLock::Wal {
                _writer: Writer::take(db)?,
            });
        }
        WriterLock::take_exclusive(db)
    }

    /// Takes the lock that leaves nobody connected, whatever the journal mode.
    pub(crate) fn take_exclusive(db: &Database) -> Result<WriterLock> {
        if db.state.lock().backing.get(Side::Database)?.is_none() {
            return Ok(WriterLock::Nobody);
        }
        let path = db.name.file(Side::Database);
        let taken = Exclusive::take(db.locks()?).map_err(Error::io("database.lock", path))?;
        let guard = taken.map_err(|lock| Error::Busy {
            db: db.name.clone(),
            lock,
        })?;
        Ok(WriterLock::Exclusive { _guard: guard })
    }
}
