//! System calls that no library has.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// The descriptor that a system call returned.
pub(crate) fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(result) {
        // SAFETY: the call returned a new descriptor that nobody else owns.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}
