//! Errors of the engine, kept apart by what the caller can do about them.

use std::io;
use std::path::PathBuf;

use ltx::Pos;
use thiserror::Error;

use crate::checksums::ChecksumsError;
use crate::disk::DiskError;
use crate::log::LogError;
use crate::name::{DbName, NameError};

/// Result of an engine operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the engine.
#[derive(Debug, Error)]
pub enum Error {
    /// A system call failed on a file of the backing tree.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// Name of the call, such as `wal.read`.
        op: &'static str,
        /// The file it was for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A call on the daemon's own files failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The checksum table of a database failed.
    #[error(transparent)]
    Checksums(#[from] ChecksumsError),
    /// The log of a database failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Bytes that should be an LTX record are none.
    #[error("invalid LTX record: {0}")]
    Ltx(#[from] ltx::Error),
    /// A name that no database can have.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The node is a replica: writes belong to the primary.
    #[error("{0} is read-only here: this node is a replica, write on the primary")]
    ReadOnly(DbName),
    /// The record does not follow the database's position.
    #[error("{db}: record follows {wanted}, but the position is {have}")]
    PositionMismatch {
        /// The database.
        db: DbName,
        /// Position of the last received record.
        have: Pos,
        /// Position that the record requires.
        wanted: Pos,
    },
    /// A client holds locks that the operation needs; try again.
    #[error("{db} is busy: a client holds {lock}")]
    Busy {
        /// The database.
        db: DbName,
        /// Which lock.
        lock: &'static str,
    },
    /// Replication of this database is suspended.
    #[error("{db} is not replicated: {reason}")]
    Quarantined {
        /// The database.
        db: DbName,
        /// Why.
        reason: String,
    },
    /// The bytes on disk contradict the log.
    #[error("{db} is corrupt: {reason}")]
    Corrupt {
        /// The database.
        db: DbName,
        /// What contradicts what.
        reason: String,
    },
    /// No database of that name is known.
    #[error("database not found: {0:?}")]
    NotFound(String),
    /// What was asked does not fit the state or the arguments.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// A failed system call on a backing file.
    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { op, path, source }
    }

    /// Whether something was lacking that may be there later: room on the disk or in the quota, memory, descriptors.
    pub(crate) fn is_no_room(&self) -> bool {
        matches!(
            self.os_error(),
            Some(libc::ENOSPC | libc::EDQUOT | libc::EMFILE | libc::ENFILE | libc::ENOMEM)
        )
    }

    /// What the system said, if a call failed.
    pub fn os_error(&self) -> Option<i32> {
        match self {
            Error::Io { source, .. } => os_error(source),
            Error::Disk(error) | Error::Checksums(ChecksumsError::Disk(error)) => error.errno(),
            Error::Log(LogError::Disk(error)) => error.errno(),
            Error::Log(LogError::Source(source)) => os_error(source),
            Error::Checksums(ChecksumsError::Poisoned)
            | Error::Log(
                LogError::Corrupt { .. }
                | LogError::Invalid(_)
                | LogError::Incomplete { .. }
                | LogError::NotContiguous { .. }
                | LogError::SnapshotInHistory
                | LogError::ResetNeedsSnapshot(_)
                | LogError::NoBoundary(_)
                | LogError::Poisoned(_),
            )
            | Error::Ltx(_)
            | Error::Name(_)
            | Error::ReadOnly(_)
            | Error::PositionMismatch { .. }
            | Error::Busy { .. }
            | Error::Quarantined { .. }
            | Error::Corrupt { .. }
            | Error::NotFound(_)
            | Error::Invalid(_) => None,
        }
    }

    /// This process or the machine has as many files open as it may. It says nothing of the file, and passes.
    pub fn is_out_of_descriptors(&self) -> bool {
        matches!(self.os_error(), Some(libc::EMFILE | libc::ENFILE))
    }

    /// The errno to answer a file system request with.
    pub fn errno(&self) -> i32 {
        match self {
            Error::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Error::Disk(e) => e.source.raw_os_error().unwrap_or(libc::EIO),
            Error::ReadOnly(_) => libc::EROFS,
            Error::Busy { .. } => libc::EBUSY,
            Error::NotFound(_) => libc::ENOENT,
            Error::Name(_) | Error::Invalid(_) => libc::EINVAL,
            Error::Checksums(_)
            | Error::Log(_)
            | Error::Ltx(_)
            | Error::PositionMismatch { .. }
            | Error::Quarantined { .. }
            | Error::Corrupt { .. } => libc::EIO,
        }
    }
}

/// The errno of an error, which may wrap the disk's.
fn os_error(error: &io::Error) -> Option<i32> {
    let wrapped = || error.get_ref()?.downcast_ref::<DiskError>()?.errno();
    error.raw_os_error().or_else(wrapped)
}
