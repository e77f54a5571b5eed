//! Open-file-description locks: how the daemon and its guardian take part in SQLite's locking.
//!
//! They conflict with the clients' POSIX locks in both directions, belong to the descriptor and not to the process, and are kept by the
//! kernel without a request to the daemon.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Tries to take a lock; false: somebody holds a conflicting one.
pub(crate) fn try_lock(fd: BorrowedFd<'_>, start: u64, len: u64, exclusive: bool) -> io::Result<bool> {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    let mut lock = region(kind, start, len);
    match fcntl(fd, libc::F_OFD_SETLK, &mut lock) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) fn unlock(fd: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<()> {
    fcntl(fd, libc::F_OFD_SETLK, &mut region(libc::F_UNLCK, start, len))
}

/// Whether somebody else holds a lock of any kind, or an exclusive one only, in a part of the file. `len` 0: to its end and beyond.
pub(crate) fn is_locked(fd: BorrowedFd<'_>, start: u64, len: u64, exclusive_only: bool) -> io::Result<bool> {
    let kind = if exclusive_only {
        libc::F_RDLCK
    } else {
        libc::F_WRLCK
    };
    let mut lock = region(kind, start, len);
    fcntl(fd, libc::F_OFD_GETLK, &mut lock)?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

/// `len` 0: to the end of the file and beyond.
fn region(kind: i32, start: u64, len: u64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start as libc::off_t,
        l_len: len as libc::off_t,
        // Has to be 0 for locks of open file descriptions.
        l_pid: 0,
    }
}

fn fcntl(fd: BorrowedFd<'_>, command: i32, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call and `lock` is a valid structure that the kernel may write to.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), command, std::ptr::from_mut(lock)) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn two_descriptions_of_one_file_conflict_even_in_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let (one, other) = (
            File::create(&path).unwrap(),
            File::options().read(true).write(true).open(&path).unwrap(),
        );
        assert!(try_lock(one.as_fd(), 120, 1, true).unwrap());
        assert!(!try_lock(other.as_fd(), 120, 1, false).unwrap());
        assert!(try_lock(other.as_fd(), 121, 1, true).unwrap());
        let write_locked = |file: &File| is_locked(file.as_fd(), 0, 0, true).unwrap();
        assert!(write_locked(&one));
        unlock(other.as_fd(), 121, 1).unwrap();
        assert!(!write_locked(&one), "one's own lock does not count");
        assert!(write_locked(&other));
        assert!(
            is_locked(other.as_fd(), 120, 1, false).unwrap()
                && !is_locked(other.as_fd(), 121, 1, false).unwrap()
        );
    }
}
