//! The disk: every call the engine makes to a file system goes through [`Disk`] and [`DiskFile`].
//!
//! Invariants:
//! * each call carries the name of the operation it is part of (`"log.append.sync"`); error messages, metrics and
//!   fault injection use the same name;
//! * a call that returns an error has no defined effect on what it was about to write: callers cut off or rewrite;
//! * a failed sync is never repeated here. What it failed to write is lost, and who asked for it must stop writing.
//!
//! Two implementations: [`OsDisk`], and [`sim::SimDisk`], which loses, tears and reorders what was not synced.
//! Below every step of the path that touches a disk (log, checksums, and the rest of this crate); no other crate
//! needs it except tests.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[doc(hidden)]
pub mod failing;
mod os;
pub(crate) mod probe;
pub mod sim;

pub use os::OsDisk;

/// Name of an operation: `area.what.how`, lower case.
pub type Op = &'static str;

pub type Result<T> = std::result::Result<T, DiskError>;

/// Errors of disk calls by operation.
pub const ERRORS_METRIC: &str = "litefs_disk_errors_total";
/// Seconds a sync of a file or directory took, by operation.
pub const SYNC_SECONDS_METRIC: &str = "litefs_disk_sync_seconds";

/// A call to the disk failed.
#[derive(Debug)]
pub struct DiskError {
    pub op: Op,
    pub path: PathBuf,
    pub source: io::Error,
}

impl DiskError {
    /// Wraps and counts `source`: every error that leaves a disk passes here.
    pub fn new(op: Op, path: impl Into<PathBuf>, source: io::Error) -> DiskError {
        metrics::counter!(ERRORS_METRIC, "op" => op).increment(1);
        DiskError {
            op,
            path: path.into(),
            source,
        }
    }

    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// Too many files are open. No file was touched: of a sync, that the directory was not even opened.
    pub fn is_out_of_descriptors(&self) -> bool {
        matches!(self.errno(), Some(libc::EMFILE | libc::ENFILE))
    }

    /// The disk or the quota is full: the only class of write errors that goes away by itself.
    pub fn is_no_space(&self) -> bool {
        matches!(self.errno(), Some(libc::ENOSPC | libc::EDQUOT))
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.op, self.path.display())?;
        match self.errno() {
            Some(errno) => f.write_str(&errno_text(errno)),
            None => self.source.fmt(f),
        }
    }
}

impl std::error::Error for DiskError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<DiskError> for io::Error {
    /// Keeps the kind, and the errno as the source of the wrapped error.
    fn from(error: DiskError) -> io::Error {
        io::Error::new(error.source.kind(), error)
    }
}

/// `std` appends " (os error 28)", which says nothing that the text before it does not.
fn errno_text(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    match text.rfind(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    Write,
    /// Reading and writing; made where missing.
    Create,
    /// Reading and writing; must not exist.
    CreateNew,
    /// Reading and writing; made where missing, emptied where not.
    Truncate,
}

/// A file system. A new, renamed or removed name is durable only after [`Disk::sync_dir`] of its directory.
pub trait Disk: Send + Sync + fmt::Debug {
    fn open(&self, op: Op, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>>;
    /// Atomic; replaces `to`.
    fn rename(&self, op: Op, from: &Path, to: &Path) -> Result<()>;
    fn remove_file(&self, op: Op, path: &Path) -> Result<()>;
    fn create_dir_all(&self, op: Op, path: &Path) -> Result<()>;
    fn remove_dir_all(&self, op: Op, path: &Path) -> Result<()>;
    /// Names in a directory, sorted.
    fn list(&self, op: Op, path: &Path) -> Result<Vec<OsString>>;
    fn exists(&self, op: Op, path: &Path) -> Result<bool>;
    fn sync_dir(&self, op: Op, path: &Path) -> Result<()>;
}

/// An open file. Positioned calls only: there is no cursor to share.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, op: Op, buf: &mut [u8], offset: u64) -> Result<usize>;
    fn write_all_at(&self, op: Op, data: &[u8], offset: u64) -> Result<()>;
    fn set_len(&self, op: Op, len: u64) -> Result<()>;
    fn len(&self, op: Op) -> Result<u64>;
    /// Content and length are durable (fdatasync).
    fn sync_data(&self, op: Op) -> Result<()>;
    /// As [`DiskFile::sync_data`], with times and attributes (fsync).
    fn sync_all(&self, op: Op) -> Result<()>;
    fn path(&self) -> &Path;

    fn read_exact_at(&self, op: Op, buf: &mut [u8], offset: u64) -> Result<()> {
        let count = self.read_at(op, buf, offset)?;
        if count == buf.len() {
            return Ok(());
        }
        let short = io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("file ends {} bytes short at offset {offset}", buf.len() - count),
        );
        Err(DiskError::new(op, self.path(), short))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_operation_path_and_cause() {
        let error = DiskError::new(
            "log.append.sync",
            "/path",
            io::Error::from_raw_os_error(libc::ENOSPC),
        );
        assert_eq!(
            error.to_string(),
            "log.append.sync /path: No space left on device"
        );
        assert!(error.is_no_space());
        assert!(!error.is_not_found());
    }
}
