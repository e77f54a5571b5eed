//! Mounting beneath a dead mount, so that taking over a mount point never uncovers the directory below it.
//!
//! A program that opens a database again while its daemon restarts would otherwise create an empty one in that directory,
//! and might then find the real `-wal` beside it. These are the mount calls of Linux 5.2; mounting beneath came with 6.5.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use super::mount::FSNAME;
use super::mount_tree::attach_beneath;
use crate::sys::owned;

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const MOUNT_ATTR_NOSUID: libc::c_uint = 2;
const MOUNT_ATTR_NODEV: libc::c_uint = 4;

/// Mounts a new connection beneath what is mounted on `path`. Unmounting that uncovers it.
pub(super) fn mount_beneath(path: &Path, allow_other: bool, device: &File) -> io::Result<()> {
    let context = fsopen()?;
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let fd = device.as_raw_fd().to_string();
    let settings = [
        ("source", FSNAME),
        ("subtype", FSNAME),
        ("fd", &fd),
        ("rootmode", "40000"),
        ("user_id", &uid.to_string()),
        ("group_id", &gid.to_string()),
    ];
    for (key, value) in settings {
        fsconfig(&context, FSCONFIG_SET_STRING, Some(key), Some(value))?;
    }
    fsconfig(&context, FSCONFIG_SET_FLAG, Some("default_permissions"), None)?;
    if allow_other {
        fsconfig(&context, FSCONFIG_SET_FLAG, Some("allow_other"), None)?;
    }
    fsconfig(&context, FSCONFIG_CMD_CREATE, None, None)?;
    let mount = fsmount(&context)?;
    attach_beneath(&mount, path)
}

fn fsopen() -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string that lives as long as the call.
    owned(unsafe { libc::syscall(libc::SYS_fsopen, c"fuse".as_ptr(), FSOPEN_CLOEXEC) })
}

fn fsconfig(
    context: &OwnedFd,
    command: libc::c_uint,
    key: Option<&str>,
    value: Option<&str>,
) -> io::Result<()> {
    let text = |text: Option<&str>| text.map(CString::new).transpose().map_err(io::Error::other);
    let (key, value) = (text(key)?, text(value)?);
    let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
    // SAFETY: the descriptor is open and both strings, where given, live as long as the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            pointer(&key),
            pointer(&value),
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn fsmount(context: &OwnedFd) -> io::Result<OwnedFd> {
    let attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    // SAFETY: plain numbers; the descriptor is open.
    owned(unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            FSMOUNT_CLOEXEC,
            attributes,
        )
    })
}
