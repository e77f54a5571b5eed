//! The locks without which SQLite commits nothing, taken on a mount that nobody serves.
//!
//! Passthrough handles of clients go on working when their daemon is dead. For as long as it is known that another daemon will count what
//! they commit, they may; when that ends (the lease runs out, nobody comes), the opener takes, on the descriptors that it keeps, WAL_WRITE of
//! each wal-index and RESERVED of each main file. A lock that the dead daemon held there is the opener's too.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use super::ofd::try_lock;
use super::protocol::Fence;

/// WAL_WRITE of SQLite's wal-index.
const WAL_WRITE_BYTE: u64 = 120;
/// RESERVED of a main file.
const RESERVED_BYTE: u64 = 0x4000_0001;

/// A file of the mount, open.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) file: File,
    pub(super) fence: Fence,
    pub(super) path: PathBuf,
}

impl Kept {
    /// Takes the lock that stops its writers; `false`: a client holds it.
    pub(super) fn try_fence(&self) -> bool {
        try_lock(self.file.as_fd(), byte(self.fence), 1, true).unwrap_or_else(|error| {
            eprintln!("litefs opener: fence {}: {error}", self.path.display());
            false
        })
    }
}

fn byte(fence: Fence) -> u64 {
    match fence {
        Fence::Shm => WAL_WRITE_BYTE,
        Fence::Database => RESERVED_BYTE,
    }
}

pub(crate) type Device = (u32, u32);

pub(super) fn device_of_descriptor(file: &File) -> Option<Device> {
    device_of(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))
}

/// Processes, other than this one, that have a file of this device open, as far as we may look into them.
pub(crate) fn users(device: Device) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| Some((process.file_name().to_str()?.parse().ok()?, process.path())))
        // Not /proc/self either, which is a name for ourselves.
        .filter(|(pid, _): &(u32, PathBuf)| *pid != std::process::id())
        .filter(|(_, process)| uses(process, device).unwrap_or(false))
        .map(|(pid, _)| pid)
        .collect()
}

/// Whether a process is one of those beside a daemon.
pub(crate) fn is_companion(process: u32) -> bool {
    let words = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    words.starts_with(b"litefs\0companion\0")
}

fn uses(process: &Path, device: Device) -> io::Result<bool> {
    for descriptor in fs::read_dir(process.join("fd"))? {
        if device_of(&descriptor?.path()) == Some(device) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The device behind a link in `/proc`, from what the kernel has cached: nobody may be there to be asked.
fn device_of(path: &Path) -> Option<Device> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: statx is a plain structure for which all zeroes are valid.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is NUL-terminated and `stat` lives as long as the call.
    let done = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_STATX_DONT_SYNC,
            libc::STATX_TYPE,
            &mut stat,
        )
    };
    (done == 0).then_some((stat.stx_dev_major, stat.stx_dev_minor))
}

#[cfg(test)]
mod tests {
    use super::super::ofd::unlock;
    use super::*;

    #[test]
    fn a_file_is_fenced_when_its_writer_has_let_go_and_readers_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db-shm");
        File::create(&path).unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let client = open();
        let kept = Kept {
            file: open(),
            fence: Fence::Shm,
            path: path.clone(),
        };
        assert!(try_lock(client.as_fd(), WAL_WRITE_BYTE, 1, true).unwrap());
        assert!(!kept.try_fence());
        unlock(client.as_fd(), WAL_WRITE_BYTE, 1).unwrap();
        assert!(kept.try_fence() && kept.try_fence());
        assert!(!try_lock(client.as_fd(), WAL_WRITE_BYTE, 1, true).unwrap());
        assert!(
            try_lock(client.as_fd(), WAL_WRITE_BYTE + 3, 1, false).unwrap(),
            "readers go on"
        );
    }

    #[test]
    fn open_files_of_other_processes_are_seen() {
        let device = device_of(Path::new("/dev/null")).unwrap();
        assert!(device_of(Path::new("/nonexistent")).is_none());
        assert!(!users(device).is_empty(), "no process has a file of /dev open");
    }
}
