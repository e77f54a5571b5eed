//! One daemon per data directory.
//!
//! The lock is a `flock` on `<data>/lock`. The opener process shares the open file, so after a daemon's death the directory stays locked until
//! the guardian has made sure that nobody commits on the dead mount any more.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use thiserror::Error;

const FILE: &str = "lock";
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, Error)]
pub enum DataLockError {
    #[error("{} is in use by {holder}: stop it, or wait until it has finished", path.display())]
    InUse { path: PathBuf, holder: String },
    #[error("lock {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// The exclusive right to a data directory, held until dropped (and, shared with the opener, beyond a sudden death).
#[derive(Debug)]
pub struct DataLock {
    file: File,
}

impl DataLock {
    /// Takes the lock, waiting at most `patience` for the guardian of a daemon that died.
    pub fn acquire(dir: &Path, patience: Duration) -> Result<DataLock, DataLockError> {
        let path = dir.join(FILE);
        let failed = |source| DataLockError::Io {
            path: path.clone(),
            source,
        };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        let deadline = Instant::now() + patience;
        while !try_flock(&file).map_err(failed)? {
            if Instant::now() >= deadline {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                return Err(DataLockError::InUse {
                    path: dir.to_owned(),
                    holder: holder.trim().to_owned(),
                });
            }
            thread::sleep(POLL);
        }
        write_holder(&mut file, &format!("litefs, process {}", std::process::id())).map_err(failed)?;
        Ok(DataLock { file })
    }
}

impl AsFd for DataLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Notes in the lock file who holds it, for the message that the next daemon prints.
pub(super) fn write_holder(file: &mut File, holder: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{holder}")
}

fn try_flock(file: &File) -> io::Result<bool> {
    use std::fs::TryLockError;
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) if error.raw_os_error() == Some(Errno::EINTR as i32) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_holds_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DataLock::acquire(dir.path(), Duration::ZERO).unwrap();
        let error = DataLock::acquire(dir.path(), Duration::from_millis(30)).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(lock);
        DataLock::acquire(dir.path(), Duration::ZERO).unwrap();
    }
}
