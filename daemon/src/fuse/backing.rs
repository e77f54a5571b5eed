//! System calls on the backing tree `<data>/files`, which the mount mirrors.
//!
//! Every inode is addressed by an `O_PATH` descriptor and every name by (descriptor of its directory, name), so a name is resolved exactly
//! one component at a time, never through a symlink: nothing a client does can leave the tree, and a rename of a parent directory changes
//! nothing for the descriptors below it. Errors are the kernel's own. Used only by the kernel edge.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{self, AT_FDCWD, AtFlags, OFlag, RenameFlags};
use nix::sys::stat::{self, FileStat, Mode, SFlag};
use nix::unistd::{self, Gid, Uid, UnlinkatFlags};

/// A moment for `utimensat`: what the client asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Moment {
    /// Leave the time stamp alone.
    Keep,
    /// The backing file system's present time.
    Now,
    /// Seconds and nanoseconds since the epoch; seconds may be negative.
    At(i64, i64),
}

/// Who owns a file that is being created, and with which permission bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ownership {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) permissions: u32,
}

/// Opens the root of the tree.
pub(crate) fn open_root(dir: &Path) -> nix::Result<OwnedFd> {
    fcntl::open(
        dir,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

/// An `O_PATH` descriptor of one name; a symlink is opened itself.
pub(crate) fn find(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    fcntl::openat(
        parent,
        name,
        OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

pub(crate) fn stat_fd(fd: impl AsFd) -> nix::Result<FileStat> {
    stat::fstat(fd)
}

pub(crate) fn stat_name(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<FileStat> {
    stat::fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// Opens what an `O_PATH` descriptor stands for. The magic link is the only way that works whatever became of the name.
pub(crate) fn reopen(fd: BorrowedFd<'_>, flags: OFlag) -> nix::Result<File> {
    let opened = fcntl::open(magic_link(fd).as_c_str(), flags | OFlag::O_CLOEXEC, Mode::empty())?;
    Ok(File::from(opened))
}

/// Creates a regular file that did not exist and hands it to its owner.
pub(crate) fn create(parent: BorrowedFd<'_>, name: &OsStr, owner: Ownership) -> nix::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = File::from(fcntl::openat(
        parent,
        name,
        flags,
        permission_bits(owner.permissions),
    )?);
    give_away(parent, file.as_fd(), owner, Chmod::Follow)?;
    Ok(file)
}

/// As [`create`], but nobody sees the file before it is its owner's: the engine gives a new wal-index the owner of the main file that it
/// finds.
pub(crate) fn create_whole(parent: BorrowedFd<'_>, name: &OsStr, owner: Ownership) -> nix::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
    let file = match fcntl::openat(parent, c".", flags, permission_bits(owner.permissions)) {
        Ok(file) => File::from(file),
        // Not every file system knows files without a name.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR) => return create(parent, name, owner),
        Err(error) => return Err(error),
    };
    give_away(parent, file.as_fd(), owner, Chmod::Follow)?;
    let link = magic_link(file.as_fd());
    unistd::linkat(
        AT_FDCWD,
        link.as_c_str(),
        parent,
        name,
        AtFlags::AT_SYMLINK_FOLLOW,
    )?;
    Ok(file)
}

pub(crate) fn make_dir(parent: BorrowedFd<'_>, name: &OsStr, owner: Ownership) -> nix::Result<()> {
    stat::mkdirat(parent, name, permission_bits(owner.permissions))?;
    give_away(parent, find(parent, name)?.as_fd(), owner, Chmod::Follow)
}

/// A regular file, fifo or socket. Device nodes are refused: the mount is `nodev`, and nobody should find one in the data directory.
pub(crate) fn make_node(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    kind: SFlag,
    owner: Ownership,
) -> nix::Result<()> {
    if !matches!(kind, SFlag::S_IFREG | SFlag::S_IFIFO | SFlag::S_IFSOCK) {
        return Err(Errno::EPERM);
    }
    stat::mknodat(parent, name, kind, permission_bits(owner.permissions), 0)?;
    give_away(parent, find(parent, name)?.as_fd(), owner, Chmod::Follow)
}

pub(crate) fn make_symlink(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    target: &Path,
    owner: Ownership,
) -> nix::Result<()> {
    unistd::symlinkat(target, parent, name)?;
    give_away(parent, find(parent, name)?.as_fd(), owner, Chmod::Never)
}

pub(crate) fn make_link(inode: BorrowedFd<'_>, parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
    unistd::linkat(
        AT_FDCWD,
        magic_link(inode).as_c_str(),
        parent,
        name,
        AtFlags::AT_SYMLINK_FOLLOW,
    )
}

pub(crate) fn read_link(symlink: BorrowedFd<'_>) -> nix::Result<OsString> {
    fcntl::readlinkat(symlink, "")
}

pub(crate) fn unlink(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
    unistd::unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)
}

pub(crate) fn remove_dir(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
    unistd::unlinkat(parent, name, UnlinkatFlags::RemoveDir)
}

pub(crate) fn rename(
    from: (BorrowedFd<'_>, &OsStr),
    to: (BorrowedFd<'_>, &OsStr),
    flags: RenameFlags,
) -> nix::Result<()> {
    fcntl::renameat2(from.0, from.1, to.0, to.1, flags)
}

pub(crate) fn change_mode(inode: BorrowedFd<'_>, permissions: u32) -> nix::Result<()> {
    let link = magic_link(inode);
    stat::fchmodat(
        AT_FDCWD,
        link.as_c_str(),
        permission_bits(permissions),
        stat::FchmodatFlags::FollowSymlink,
    )
}

/// Clears the bits that would let a file act with its owner's rights, as every write by an unprivileged process does.
pub(crate) fn drop_privileges(inode: BorrowedFd<'_>) -> nix::Result<()> {
    let mode = stat::fstat(inode)?.st_mode & 0o7777;
    let group_executes = mode & libc::S_IXGRP != 0;
    let kept = mode & !libc::S_ISUID & !if group_executes { libc::S_ISGID } else { 0 };
    if kept == mode {
        Ok(())
    } else {
        change_mode(inode, kept)
    }
}

pub(crate) fn change_owner(inode: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> nix::Result<()> {
    unistd::fchownat(
        inode,
        "",
        uid.map(Uid::from_raw),
        gid.map(Gid::from_raw),
        AtFlags::AT_EMPTY_PATH,
    )
}

pub(crate) fn change_times(inode: BorrowedFd<'_>, access: Moment, modification: Moment) -> nix::Result<()> {
    let times = [access.timespec(), modification.timespec()];
    // SAFETY: the path is a NUL-terminated literal, `times` is an array of two, and the descriptor is borrowed for the call.
    let done = unsafe {
        libc::utimensat(
            inode.as_raw_fd(),
            c"".as_ptr(),
            times.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::result(done).map(drop)
}

/// Reads until the buffer is full or the file ends; a page cache must never take a short read for the end of a file.
pub(crate) fn read_full(file: &File, mut offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    use std::os::unix::fs::FileExt;
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset) {
            Ok(0) => break,
            Ok(n) => {
                done += n;
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// The name in `/proc` that leads to the inode of a descriptor.
pub(crate) fn magic_link(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("digits hold no NUL")
}

/// `parent` (relative to the root; empty for the root itself) and a name, joined.
pub(crate) fn join(parent: &[u8], name: &OsStr) -> Vec<u8> {
    let mut path = Vec::with_capacity(parent.len() + 1 + name.len());
    path.extend_from_slice(parent);
    if !parent.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.as_bytes());
    path
}

/// A path in bytes as the standard library wants it.
pub(crate) fn to_path(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path))
}

impl Moment {
    fn timespec(self) -> libc::timespec {
        let (tv_sec, tv_nsec) = match self {
            Moment::Keep => (0, libc::UTIME_OMIT),
            Moment::Now => (0, libc::UTIME_NOW),
            Moment::At(seconds, nanoseconds) => (seconds, nanoseconds),
        };
        libc::timespec { tv_sec, tv_nsec }
    }
}

#[derive(PartialEq)]
enum Chmod {
    Follow,
    Never,
}

/// Makes a new inode the caller's. The daemon's own umask and uid must not show through; the group of a set-group-id directory stays.
fn give_away(
    parent: BorrowedFd<'_>,
    inode: BorrowedFd<'_>,
    owner: Ownership,
    chmod: Chmod,
) -> nix::Result<()> {
    let now = stat::fstat(inode)?;
    let inherits_group = stat::fstat(parent)?.st_mode & libc::S_ISGID != 0;
    let gid = (!inherits_group && now.st_gid != owner.gid).then_some(owner.gid);
    let uid = (now.st_uid != owner.uid).then_some(owner.uid);
    if uid.is_some() || gid.is_some() {
        match change_owner(inode, uid, gid) {
            // An unprivileged daemon serves its own user; there is nobody else to give the file to.
            Ok(()) | Err(Errno::EPERM) => {}
            Err(error) => return Err(error),
        }
    }
    let is_dir_in_setgid = inherits_group && now.st_mode & libc::S_IFMT == libc::S_IFDIR;
    let wanted = owner.permissions & 0o7777 | if is_dir_in_setgid { libc::S_ISGID } else { 0 };
    if chmod == Chmod::Follow && stat::fstat(inode)?.st_mode & 0o7777 != wanted {
        change_mode(inode, wanted)?;
    }
    Ok(())
}

fn permission_bits(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode & 0o7777)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn nobody_sees_a_file_before_it_is_its_owners() {
        if !unistd::geteuid().is_root() {
            return;
        }
        const NOBODY: u32 = 65534;
        let owner = Ownership {
            uid: NOBODY,
            gid: NOBODY,
            permissions: 0o640,
        };
        let dir = tempfile::tempdir().unwrap();
        let root = open_root(dir.path()).unwrap();
        let (name, over) = (OsStr::new("app.db"), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if let Ok(seen) = stat_name(root.as_fd(), name) {
                        assert_eq!((seen.st_uid, seen.st_mode & 0o7777), (NOBODY, 0o640));
                    }
                }
            });
            for _ in 0..2000 {
                let file = create_whole(root.as_fd(), name, owner).unwrap();
                assert_eq!(
                    create_whole(root.as_fd(), name, owner).unwrap_err(),
                    Errno::EEXIST
                );
                assert_eq!(stat_fd(&file).unwrap().st_nlink, 1);
                unlink(root.as_fd(), name).unwrap();
            }
            over.store(true, Ordering::Relaxed);
        });
    }
}
