//! A mounted tree as a descriptor: it can be attached again after it was detached. These are the mount calls of Linux 5.2.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::sys::owned;

const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOVE_MOUNT_BENEATH: libc::c_uint = 0x200;

/// A copy, attached nowhere, of what is mounted on `path`. Asks nothing of the file system.
pub(super) fn copy(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
    // SAFETY: the path is a C string that lives as long as the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// Attaches a tree that is attached nowhere to `path`, above what is mounted there.
pub(super) fn attach(tree: &OwnedFd, path: &Path) -> io::Result<()> {
    move_to(tree, path, MOVE_MOUNT_F_EMPTY_PATH)
}

/// Attaches it below what is mounted there.
pub(super) fn attach_beneath(tree: &OwnedFd, path: &Path) -> io::Result<()> {
    move_to(tree, path, MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_BENEATH)
}

fn move_to(tree: &OwnedFd, path: &Path, flags: libc::c_uint) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the descriptor is open and both strings live as long as the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
