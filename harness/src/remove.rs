//! Removing a cluster's state. A node that was killed just after a start has left the WAL that it took over immutable, so
//! that clients of its dead mount could not go on in it; nobody removes such a file before that is undone.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::libc::c_int;

/// `FS_IMMUTABLE_FL` of the kernel's `linux/fs.h`.
const IMMUTABLE: c_int = 0x10;

mod request {
    use nix::libc::{c_int, c_long};
    // Declared with a long in the kernel's headers; what is passed is an int.
    nix::ioctl_read_bad!(
        flags,
        nix::request_code_read!(b'f', 1, size_of::<c_long>()),
        c_int
    );
    nix::ioctl_write_ptr_bad!(
        set_flags,
        nix::request_code_write!(b'f', 2, size_of::<c_long>()),
        c_int
    );
}

/// Removes the directory with all that is in it.
pub(crate) fn remove_tree(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            make_mutable(directory)?;
            fs::remove_dir_all(directory)
        }
        done => done,
    }
}

fn make_mutable(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            make_mutable(&entry.path())?;
        } else if kind.is_file() {
            clear_flag(&File::open(entry.path())?);
        }
    }
    Ok(())
}

/// What goes wrong here, the removal that follows says better.
fn clear_flag(file: &File) {
    use std::os::fd::AsRawFd;
    let mut flags = 0;
    // SAFETY: the request writes an int to the place given.
    let read = unsafe { request::flags(file.as_raw_fd(), &mut flags) };
    if read.is_ok() && flags & IMMUTABLE != 0 {
        flags &= !IMMUTABLE;
        // SAFETY: the request reads an int from the place given.
        let _ = unsafe { request::set_flags(file.as_raw_fd(), &flags) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_immutable_file_is_removed_with_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        fs::create_dir(path.parent().unwrap()).unwrap();
        let file = File::create(&path).unwrap();
        let flags = IMMUTABLE;
        use std::os::fd::AsRawFd;
        // SAFETY: the request reads an int from the place given.
        if unsafe { request::set_flags(file.as_raw_fd(), &flags) }.is_err() {
            eprintln!("not tested: this file system or user has no immutable files");
            return;
        }
        assert!(fs::remove_file(&path).is_err());
        remove_tree(directory.path()).unwrap();
        assert!(!directory.path().exists());
    }
}
