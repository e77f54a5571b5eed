//! What the opener does when the daemon dies without a word.
//!
//! Passthrough handles of clients go on working on a dead mount: commits would be acknowledged that the next daemon might never see. So the
//! guardian takes, on the descriptors it kept, the locks without which SQLite commits nothing: WAL_WRITE of each wal-index, RESERVED of each
//! main file. Only then it releases the data directory to the next daemon, and it keeps the locks until nobody has files of the dead mount
//! open any more.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::data_lock::write_holder;
use super::ofd::try_lock;
use super::protocol::Fence;

/// How long a transaction that is under way may take to finish before the data directory is released without it.
const FENCE_PATIENCE: Duration = Duration::from_secs(10);
/// Short, because a busy writer leaves only small gaps between its transactions.
const RETRY: Duration = Duration::from_micros(50);
/// How often to look whether clients have gone.
const LOOK: Duration = Duration::from_secs(2);

/// WAL_WRITE of SQLite's wal-index.
const WAL_WRITE_BYTE: u64 = 120;
/// RESERVED of a main file.
const RESERVED_BYTE: u64 = 0x4000_0001;

/// A file of the mount, open.
pub(super) struct Kept {
    pub(super) file: File,
    pub(super) inode: u64,
    pub(super) fence: Fence,
    pub(super) path: PathBuf,
}

/// Fences, releases the data directory, and stays as long as it is needed.
pub(super) fn guard(kept: Vec<Kept>, mut lock: File) {
    let note = format!(
        "the guardian of a litefs that died, process {}",
        std::process::id()
    );
    if let Err(error) = write_holder(&mut lock, &note) {
        eprintln!("litefs companion: note in the lock file: {error}");
    }
    let mut open = fence(by_inode(&kept), FENCE_PATIENCE);
    for file in open.iter().filter_map(|descriptors| descriptors.first()) {
        eprintln!(
            "litefs companion: a client still writes {} on the dead mount; the next start takes over what it commits until then",
            file.path.display()
        );
    }
    drop(lock);
    let_go_of_output();
    let Some(device) = kept.iter().find_map(|kept| device_of_descriptor(&kept.file)) else {
        return;
    };
    while is_used(device) {
        thread::sleep(LOOK);
        open = fence(open, Duration::ZERO);
    }
}

/// Whoever collects the dead daemon's output must not wait for the guardian's end.
fn let_go_of_output() {
    let Ok(nowhere) = File::options().write(true).open("/dev/null") else {
        return;
    };
    for outcome in [
        nix::unistd::dup2_stdout(&nowhere),
        nix::unistd::dup2_stderr(&nowhere),
    ] {
        if let Err(error) = outcome {
            eprintln!("litefs companion: let go of the output: {error}");
        }
    }
}

/// The descriptors of each inode. The daemon may have held the lock through any of them, and a lock through one keeps the others out.
fn by_inode(kept: &[Kept]) -> Vec<Vec<&Kept>> {
    let mut inodes: BTreeMap<u64, Vec<&Kept>> = BTreeMap::new();
    for file in kept {
        inodes.entry(file.inode).or_default().push(file);
    }
    inodes.into_values().collect()
}

/// Takes the locks; returns what could not be fenced in time.
fn fence(mut open: Vec<Vec<&Kept>>, patience: Duration) -> Vec<Vec<&Kept>> {
    let deadline = Instant::now() + patience;
    loop {
        open.retain(|descriptors| !descriptors.iter().any(|kept| is_fenced(kept)));
        if open.is_empty() || Instant::now() >= deadline {
            return open;
        }
        thread::sleep(RETRY);
    }
}

fn is_fenced(kept: &Kept) -> bool {
    try_lock(kept.file.as_fd(), byte(kept.fence), 1, true).unwrap_or_else(|error| {
        eprintln!("litefs companion: fence {}: {error}", kept.path.display());
        false
    })
}

fn byte(fence: Fence) -> u64 {
    match fence {
        Fence::Shm => WAL_WRITE_BYTE,
        Fence::Database => RESERVED_BYTE,
    }
}

/// Whether any other process we may look into has a file of this device open.
fn is_used(device: Device) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    // Not /proc/self either, which is a name for ourselves.
    let is_other = |name: &str| name.parse().is_ok_and(|pid: u32| pid != std::process::id());
    processes
        .filter(|process| process.file_name().to_str().is_some_and(is_other))
        .any(|process| uses(&process.path(), device).unwrap_or(false))
}

fn uses(process: &Path, device: Device) -> io::Result<bool> {
    for descriptor in fs::read_dir(process.join("fd"))? {
        if device_of(&descriptor?.path()) == Some(device) {
            return Ok(true);
        }
    }
    Ok(false)
}

type Device = (u32, u32);

fn device_of_descriptor(file: &File) -> Option<Device> {
    device_of(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))
}

/// The device behind a link in `/proc`, from what the kernel has cached: the mount is dead and cannot be asked.
fn device_of(path: &Path) -> Option<Device> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: statx is a plain structure for which all zeroes are valid.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is NUL-terminated and `stat` is a valid place for the result.
    let done = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_STATX_DONT_SYNC,
            libc::STATX_INO,
            &mut stat,
        )
    };
    (done == 0).then_some((stat.stx_dev_major, stat.stx_dev_minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_waits_for_the_writer_and_then_keeps_writers_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db-shm");
        let file = File::create(&path).unwrap();
        let client = File::options().read(true).write(true).open(&path).unwrap();
        let again = File::options().write(true).open(&path).unwrap();
        let keep = |file| Kept {
            file,
            inode: 1,
            fence: Fence::Shm,
            path: path.clone(),
        };
        let kept = [keep(file), keep(again)];
        assert!(try_lock(client.as_fd(), WAL_WRITE_BYTE, 1, true).unwrap());
        assert_eq!(fence(by_inode(&kept), Duration::from_millis(20)).len(), 1);
        thread::scope(|scope| {
            let fencing = scope.spawn(|| fence(by_inode(&kept), Duration::from_secs(10)).len());
            super::super::ofd::unlock(client.as_fd(), WAL_WRITE_BYTE, 1).unwrap();
            assert_eq!(fencing.join().unwrap(), 0);
        });
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
        assert!(is_used(device), "no process has a file of /dev open");
    }
}
