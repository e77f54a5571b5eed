//! The one place where an error becomes what a client sees in `errno`.
//!
//! Errors of the backing file system pass unchanged. The engine's errors are translated so that SQLite draws the right conclusion: a
//! journal that cannot be created for lack of permission means a read-only database, anything else would be a broken disk.

use std::fmt;
use std::io;

/// An error number on its way to the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(i32);

/// What a request is answered with.
pub(crate) type Answer<T> = Result<T, Errno>;

impl Errno {
    pub(crate) const EACCES: Errno = Errno(libc::EACCES);
    pub(crate) const EBADF: Errno = Errno(libc::EBADF);
    pub(crate) const EEXIST: Errno = Errno(libc::EEXIST);
    pub(crate) const ENOSPC: Errno = Errno(libc::ENOSPC);
    pub(crate) const EINVAL: Errno = Errno(libc::EINVAL);
    pub(crate) const EIO: Errno = Errno(libc::EIO);
    pub(crate) const EISDIR: Errno = Errno(libc::EISDIR);
    pub(crate) const ENFILE: Errno = Errno(libc::ENFILE);
    pub(crate) const ENOENT: Errno = Errno(libc::ENOENT);
    pub(crate) const EOPNOTSUPP: Errno = Errno(libc::EOPNOTSUPP);
    pub(crate) const ESTALE: Errno = Errno(libc::ESTALE);
    pub(crate) const EXDEV: Errno = Errno(libc::EXDEV);

    /// Translates an error of the engine.
    pub(crate) fn of(error: &engine::Error) -> Errno {
        match error {
            // SQLite takes EACCES for "this database is read-only" and EROFS for a disk error.
            engine::Error::ReadOnly(_) => Errno::EACCES,
            other => Errno(other.errno()),
        }
    }
}

impl From<engine::Error> for Errno {
    fn from(error: engine::Error) -> Errno {
        let errno = Errno::of(&error);
        tracing::debug!(%error, %errno, "refused");
        errno
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Errno {
        Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<nix::errno::Errno> for Errno {
    fn from(error: nix::errno::Errno) -> Errno {
        Errno(error as i32)
    }
}

impl From<Errno> for fuser::Errno {
    fn from(error: Errno) -> fuser::Errno {
        fuser::Errno::from_i32(error.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
