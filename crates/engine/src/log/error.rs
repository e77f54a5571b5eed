//! What can go wrong with a log, kept apart: the disk, damage, bytes from elsewhere that are not a record, and
//! records that do not belong here.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ltx::{Checksum, Txid};

use crate::disk::DiskError;

pub type Result<T> = std::result::Result<T, LogError>;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(transparent)]
    Disk(#[from] DiskError),

    /// Bytes of the log itself are damaged.
    #[error("log {} is damaged at offset {offset}: {reason}", path.display())]
    Corrupt {
        path: PathBuf,
        offset: u64,
        reason: String,
    },

    /// What was to be appended is not a valid LTX record: wrong pages from the caller, or damaged bytes received.
    #[error("record is not valid: {0}")]
    Invalid(#[source] ltx::Error),

    /// A database cannot grow like that.
    #[error("record makes the database {commit} pages long and lacks {unnamed} of the new ones")]
    Incomplete { commit: u32, unnamed: u32 },

    /// The source of a received record failed before its end.
    #[error("record could not be received: {0}")]
    Source(#[source] io::Error),

    /// The record does not follow the last one.
    #[error(
        "record {min} with pre-apply checksum {pre} does not follow {}",
        position(tail)
    )]
    NotContiguous {
        tail: Option<(Txid, Checksum)>,
        min: Txid,
        pre: Checksum,
    },

    /// A snapshot begins a history: it can only be appended to an empty log, or by a reset.
    #[error("a snapshot starts a new history and needs a reset")]
    SnapshotInHistory,

    /// A reset was asked for with a record that is not a snapshot.
    #[error("a reset needs a snapshot, not a record that starts at {0}")]
    ResetNeedsSnapshot(Txid),

    #[error("no record of the log ends at {0}")]
    NoBoundary(Txid),

    /// A sync failed earlier: what it was to make durable may be lost, so nothing may follow it.
    #[error("log is closed for writing since {0}")]
    Poisoned(Arc<str>),
}

impl LogError {
    /// An error of a writer that only the disk can cause.
    pub(super) fn writing(source: io::Error) -> LogError {
        match source.downcast::<DiskError>() {
            Ok(error) => LogError::Disk(error),
            Err(source) => LogError::Source(source),
        }
    }

    /// An error of encoding or decoding a record: the disk's, the source's, or the record's own.
    pub(super) fn record(error: ltx::Error) -> LogError {
        match error {
            ltx::Error::Io { source, .. } => LogError::writing(source),
            error => LogError::Invalid(error),
        }
    }

    /// The disk error below, if that is what it is.
    pub fn disk(&self) -> Option<&DiskError> {
        match self {
            LogError::Disk(error) => Some(error),
            LogError::Corrupt { .. }
            | LogError::Invalid(_)
            | LogError::Incomplete { .. }
            | LogError::Source(_)
            | LogError::NotContiguous { .. }
            | LogError::SnapshotInHistory
            | LogError::ResetNeedsSnapshot(_)
            | LogError::NoBoundary(_)
            | LogError::Poisoned(_) => None,
        }
    }
}

fn position(tail: &Option<(Txid, Checksum)>) -> String {
    match tail {
        Some((txid, checksum)) => format!("{txid}/{checksum}"),
        None => "an empty log".to_owned(),
    }
}
