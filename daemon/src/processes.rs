//! Other processes, as `/proc` tells of them: who has files of a mount open, and which locks.
//!
//! Nothing here asks a file system, whose daemon may be dead.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::sys::owned;

/// Major and minor number.
pub(crate) type Device = (u32, u32);

pub(crate) fn device(number: libc::dev_t) -> Device {
    (libc::major(number), libc::minor(number))
}

pub(crate) fn device_of_descriptor(file: &File) -> Option<Device> {
    device_of(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))
}

/// Processes, other than this one, that have a file of this device open, as far as we may look into them.
pub(crate) fn users(device: Device) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| Some((process.file_name().to_str()?.parse().ok()?, process.path())))
        // Not /proc/self either, which is a name for ourselves.
        .filter(|(pid, _): &(u32, PathBuf)| *pid != std::process::id())
        .filter(|(pid, _)| is_user(*pid, &[device]))
        .map(|(pid, _)| pid)
        .collect()
}

/// Whether another process may have a file of this device open.
pub(crate) fn has_users(device: Device) -> bool {
    fs::read_dir("/proc").is_err_and(|error| is_short_of_files(&error)) || !users(device).is_empty()
}

/// Whether a process, or the one that a thread belongs to, has a file of one of these devices open, as far as we may look into it. Who
/// cannot be looked at for want of files may have one.
pub(crate) fn is_user(process: u32, devices: &[Device]) -> bool {
    uses(Path::new(&format!("/proc/{process}")), devices).unwrap_or_else(|error| is_short_of_files(&error))
}

/// Whether a process was killed. Its files stay open for as long as one of its threads waits for a daemon.
pub(crate) fn is_dying(process: u32) -> bool {
    match fs::read_to_string(format!("/proc/{process}/stat")) {
        // `519 (litefs) S 1 …`; the name may be anything.
        Ok(stat) => stat
            .rsplit_once(") ")
            .is_none_or(|(_, state)| state.starts_with(['Z', 'X'])),
        // A process that cannot be looked at is not a dead one.
        Err(error) => !is_short_of_files(&error),
    }
}

/// This process or the machine has as many files open as it may, so that it is not known what was asked.
pub(crate) fn is_short_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Whether a process is one of those beside a daemon.
pub(crate) fn is_companion(process: u32) -> bool {
    let words = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    words.starts_with(b"litefs\0companion\0")
}

fn uses(process: &Path, devices: &[Device]) -> io::Result<bool> {
    for descriptor in fs::read_dir(process.join("fd"))? {
        if device_of(&descriptor?.path()).is_some_and(|device| devices.contains(&device)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Which locks of a file count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Locks {
    Any,
    ToWrite,
}

/// Whether a process, or the one that a thread belongs to, has a lock of the kind that ends with the process on the file.
///
/// From what the kernel says of its open files: `/proc/locks` is read in pieces, and passes over entries while other processes lock.
pub(crate) fn has_lock(process: u32, device: Device, inode: u64, locks: Locks) -> io::Result<bool> {
    let (major, minor) = device;
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    let counts = |line: &str| {
        // `lock:	1: POSIX  ADVISORY  WRITE 3568 00:2f:47651 1073741826 1073742335`
        let mut words = line.split_whitespace();
        words.next() == Some("lock:")
            && words.nth(1) == Some("POSIX")
            && words
                .nth(1)
                .is_some_and(|kind| locks == Locks::Any || kind == "WRITE")
            && words.nth(1) == Some(&file)
    };
    let process = PathBuf::from(format!("/proc/{process}"));
    for descriptor in fs::read_dir(process.join("fd"))? {
        let descriptor = descriptor?;
        if device_of(&descriptor.path()) != Some(device) {
            continue;
        }
        // One that was closed meanwhile holds nothing.
        let told =
            fs::read_to_string(process.join("fdinfo").join(descriptor.file_name())).unwrap_or_default();
        if told.lines().any(counts) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Has the kernel drop what it keeps in memory of the files of these devices that a process has open: whoever reads them has to ask for
/// them, and is told that nobody answers. Pages that are mapped stay. Returns of how many open files.
pub(crate) fn drop_pages(process: u32, devices: &[Device]) -> io::Result<usize> {
    let pidfd = pidfd_open(process)?;
    let mut files = 0;
    for descriptor in fs::read_dir(format!("/proc/{process}/fd"))? {
        let descriptor = descriptor?;
        let number = descriptor.file_name().to_str().and_then(|name| name.parse().ok());
        let (Some(number), true) = (
            number,
            device_of(&descriptor.path()).is_some_and(|device| devices.contains(&device)),
        ) else {
            continue;
        };
        // One that was closed meanwhile keeps nothing.
        if let Ok(file) = descriptor_of(&pidfd, number) {
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
            files += 1;
        }
    }
    Ok(files)
}

fn pidfd_open(process: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })
}

/// The open file behind a descriptor of another process.
fn descriptor_of(pidfd: &OwnedFd, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only; the first is open for the duration of the call.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })
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
    use super::*;

    #[test]
    fn open_files_of_other_processes_are_seen() {
        let device = device_of(Path::new("/dev/null")).unwrap();
        assert!(device_of(Path::new("/nonexistent")).is_none());
        let users = users(device);
        assert!(!users.is_empty(), "no process has a file of /dev open");
        assert!(is_user(users[0], &[device]));
        assert!(!is_user(users[0], &[(0, 0)]));
    }

    #[test]
    fn a_process_that_was_killed_is_dying() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(!is_dying(child.id()));
        child.kill().unwrap();
        while !is_dying(child.id()) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(is_dying(child.id()));
    }

    #[test]
    fn a_lock_is_found_by_its_owner_its_file_and_its_kind() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("locked")).unwrap();
        let metadata = file.metadata().unwrap();
        let has = |inode, locks| has_lock(std::process::id(), device(metadata.dev()), inode, locks).unwrap();
        assert!(!has(metadata.ino(), Locks::Any));
        for (kind, writes) in [(libc::F_RDLCK, false), (libc::F_WRLCK, true)] {
            // SAFETY: flock is a plain structure for which all zeroes are valid.
            let mut lock: libc::flock = unsafe { std::mem::zeroed() };
            lock.l_type = kind as libc::c_short;
            lock.l_len = 1;
            let file = File::options()
                .read(true)
                .write(true)
                .open(dir.path().join("locked"))
                .unwrap();
            // SAFETY: the descriptor is open and the pointer refers to a live flock.
            assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &lock) }, 0);
            assert!(has(metadata.ino(), Locks::Any));
            assert_eq!(has(metadata.ino(), Locks::ToWrite), writes);
            assert!(!has(metadata.ino() + 1, Locks::Any));
        }
    }

    #[test]
    fn a_lock_is_found_while_others_lock_and_unlock() {
        use std::os::unix::fs::MetadataExt;
        use std::sync::atomic::{AtomicBool, Ordering};
        let set = |file: &File, command: i32, kind: i32| {
            // SAFETY: flock is a plain structure for which all zeroes are valid: a lock of everything.
            let mut lock: libc::flock = unsafe { std::mem::zeroed() };
            lock.l_type = kind as libc::c_short;
            // SAFETY: the descriptor is open and the pointer refers to a live flock.
            assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), command, &lock) }, 0);
        };
        let others: Vec<File> = (0..400).map(|_| tempfile::tempfile().unwrap()).collect();
        let over = AtomicBool::new(false);
        let file = tempfile::tempfile().unwrap();
        set(&file, libc::F_SETLK, libc::F_WRLCK);
        let metadata = file.metadata().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for kind in [libc::F_WRLCK, libc::F_UNLCK] {
                        for other in &others {
                            set(other, libc::F_OFD_SETLK, kind);
                        }
                    }
                }
            });
            let found = (0..50).all(|_| {
                has_lock(
                    std::process::id(),
                    device(metadata.dev()),
                    metadata.ino(),
                    Locks::ToWrite,
                )
                .unwrap()
            });
            over.store(true, Ordering::Relaxed);
            assert!(found);
        });
    }

    #[test]
    fn pages_of_files_that_another_process_has_open_can_be_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("open");
        fs::write(&path, [0; 4096]).unwrap();
        let device = device_of(&path).unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .stdin(File::open(&path).unwrap())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let dropped = drop_pages(child.id(), &[device]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(dropped.unwrap(), 1);
        assert_eq!(drop_pages(std::process::id(), &[(0, 0)]).unwrap(), 0);
    }
}
