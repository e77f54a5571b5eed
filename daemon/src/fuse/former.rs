//! Clients of a former mount: everything that served it was killed, and a start made a new one in its place.
//!
//! Connections that such clients keep have the main file of the dead mount open, with locks that nobody here sees and pages that nobody
//! renews. Side files, though, SQLite opens and removes by their paths, which lead here: such a connection would leave a journal with old
//! pages that the next client takes for hot and rolls back, or take a journal away that another client needs. Two things prevent that:
//! * What the kernel remembers of the dead mount's files is dropped. A transaction begins with a read of the main file, which fails then.
//! * Whoever has files of a dead mount open gets to a side file only while it has the lock, on the main file of this mount, under which
//!   SQLite uses it. A connection of the dead mount has its locks there.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::processes::{self, Device, Locks};

/// In the data directory: the mounts of this boot whose files may still be open.
const FILE: &str = "mounts";
/// How long a process that had nothing open is believed to have nothing open: descriptors are inherited, and numbers used again.
const BELIEF: Duration = Duration::from_secs(1);

/// The mounts before this one, by the devices that their files are on.
pub(crate) struct FormerMounts {
    devices: Vec<Device>,
    /// Of the mount that is there now.
    own: Device,
    known: Mutex<Known>,
}

/// Processes that were looked into.
struct Known {
    since: Instant,
    innocent: BTreeSet<u32>,
}

impl FormerMounts {
    /// Of a mount that is new at its place; from here on it is one that the next one finds.
    pub(crate) fn begin(dir: &Path, own: Device) -> FormerMounts {
        let mut former = FormerMounts::of(dir, own);
        former.devices.retain(|device| disarm(*device));
        if let Err(error) = former.note(dir) {
            // A full disk is no reason not to serve.
            tracing::warn!(%error, "were everything killed that serves this mount, the next one would not know its clients");
        }
        former
    }

    fn note(&self, dir: &Path) -> io::Result<()> {
        let mut text = boot_id();
        for (major, minor) in self.devices.iter().chain([&self.own]) {
            text.push_str(&format!("{major}:{minor}\n"));
        }
        let draft = dir.join(format!("{FILE}.new"));
        fs::write(&draft, text)?;
        fs::rename(draft, list(dir))
    }

    /// Of a mount that another process had begun.
    pub(crate) fn of(dir: &Path, own: Device) -> FormerMounts {
        let text = fs::read_to_string(list(dir)).unwrap_or_default();
        let devices = text.strip_prefix(&boot_id()).unwrap_or_default();
        let device = |line: &str| {
            let (major, minor) = line.split_once(':')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        };
        FormerMounts {
            // A device whose last file was closed gives its number to the next mount.
            devices: devices
                .lines()
                .filter_map(device)
                .filter(|device| *device != own)
                .collect(),
            own,
            known: Mutex::new(Known {
                since: Instant::now(),
                innocent: BTreeSet::new(),
            }),
        }
    }

    /// Whether somebody may still have files of a former mount open.
    pub(crate) fn has_clients(&self) -> bool {
        !self.devices.is_empty()
    }

    /// Whether a process may use a side file of the main file `main`, an inode of this mount if the kernel knows it. 0 is a process
    /// that cannot be seen from here.
    pub(crate) fn admit(&self, process: u32, main: impl FnOnce() -> Option<u64>, locks: Locks) -> bool {
        if !self.has_clients() || process == 0 || !self.has_client(process) {
            return true;
        }
        let has_lock = |main| processes::has_lock(process, self.own, main, locks);
        match main().map(has_lock).transpose() {
            Ok(has_lock) => has_lock == Some(true),
            Err(error) => {
                tracing::warn!(process, %error, "the locks of a client of a dead mount are not known");
                false
            }
        }
    }

    /// Whether a process has files of a former mount open.
    fn has_client(&self, process: u32) -> bool {
        let mut known = self.known.lock();
        if known.since.elapsed() > BELIEF {
            known.innocent.clear();
            known.since = Instant::now();
        }
        if known.innocent.contains(&process) {
            return false;
        }
        if !processes::is_user(process, &self.devices) {
            known.innocent.insert(process);
            return false;
        }
        true
    }
}

/// Drops what the kernel remembers of the files that clients have open of a dead mount; whether there are clients.
fn disarm(device: Device) -> bool {
    let mut clients = processes::users(device);
    clients.retain(|process| !processes::is_companion(*process));
    for client in &clients {
        tracing::warn!(
            process = client,
            "a client has connections to a mount whose daemon and keeper were killed: they get errors until it closes them"
        );
        if let Err(error) = processes::drop_pages(*client, &[device]) {
            tracing::debug!(%error, client, "what it reads of a dead mount may be old");
        }
    }
    !clients.is_empty()
}

/// The mount that began last on a data directory in this boot.
pub(crate) fn current_mount(dir: &Path) -> Option<Device> {
    let text = fs::read_to_string(list(dir)).ok()?;
    let (major, minor) = text.strip_prefix(&boot_id())?.lines().last()?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn list(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// Numbers of devices mean nothing after a boot. With a line's end.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that this process certainly has a file of.
    fn device_in_use(dir: &Path) -> (fs::File, Device) {
        use std::os::unix::fs::MetadataExt;
        let file = fs::File::create(dir.join("open")).unwrap();
        let device = processes::device(file.metadata().unwrap().dev());
        (file, device)
    }

    #[test]
    fn a_mount_knows_those_before_it_in_whose_files_processes_are() {
        let dir = tempfile::tempdir().unwrap();
        let (_file, used) = device_in_use(dir.path());
        assert_eq!(FormerMounts::begin(dir.path(), (0, 0xf_ffff)).devices, []);
        assert_eq!(
            FormerMounts::begin(dir.path(), used).devices,
            [],
            "nobody uses the first"
        );
        fs::write(list(dir.path()), format!("{}0:1048575\n0:2\n", boot_id())).unwrap();
        assert_eq!(FormerMounts::of(dir.path(), (0, 2)).devices, [(0, 0xf_ffff)]);
        fs::write(list(dir.path()), "another boot\n0:1048575\n").unwrap();
        assert_eq!(FormerMounts::of(dir.path(), (0, 2)).devices, []);
    }

    #[test]
    fn a_client_of_a_former_mount_needs_a_lock_of_this_one() {
        let dir = tempfile::tempdir().unwrap();
        let (file, device) = device_in_use(dir.path());
        let (major, minor) = device;
        fs::write(list(dir.path()), format!("{}{major}:{minor}\n", boot_id())).unwrap();
        let mut former = FormerMounts::of(dir.path(), (0, 0xf_ffff));
        // The test's files are on one device, the dead mount's and this one's.
        former.own = device;
        let process = std::process::id();
        let main = std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
        assert!(!former.admit(process, || None, Locks::Any));
        assert!(!former.admit(process, || Some(main), Locks::Any));
        assert!(former.admit(0, || Some(main), Locks::Any), "cannot be seen");
        // SAFETY: flock is a plain structure for which all zeroes are valid, and a read lock of everything.
        let lock: libc::flock = unsafe { std::mem::zeroed() };
        let reader = fs::File::open(dir.path().join("open")).unwrap();
        // SAFETY: the descriptor is open and the pointer refers to a live flock.
        let locked = unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&reader), libc::F_SETLK, &lock) };
        assert_eq!(locked, 0);
        assert!(former.admit(process, || Some(main), Locks::Any));
        assert!(!former.admit(process, || Some(main), Locks::ToWrite));
        let none = FormerMounts::of(dir.path(), device);
        assert!(
            none.admit(process, || None, Locks::ToWrite),
            "there is no former mount"
        );
    }
}
