//! A disk in memory that fails on request and forgets, tears and reorders at a crash. For tests, deterministic from
//! its seed.
//!
//! What it promises is what POSIX promises and no more: bytes are durable after a sync of their file, names after a
//! sync of their directory, a rename is seen whole or not at all. What was not synced survives a crash in any
//! combination, writes torn at sectors of 512 bytes. A failed sync loses some of what it should have written for
//! good, even if the next one succeeds, as Linux does.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, DiskError, DiskFile, Op, OpenMode, Result};

mod fault;
mod state;

pub use fault::Fault;
use state::State;

/// Handle to a simulated disk; clones share it.
#[derive(Debug, Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// What a crash does to that which was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process dies, the machine lives: nothing is lost.
    Process,
    /// Everything that was not synced is lost.
    LoseAll,
    /// Any part of it survives, as the seed says.
    Random,
}

impl SimDisk {
    pub fn new(seed: u64) -> SimDisk {
        SimDisk {
            state: Arc::new(Mutex::new(State::new(seed))),
        }
    }

    pub fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    /// Adds a fault; faults stay until they are used up or [`SimDisk::heal`].
    pub fn inject(&self, fault: Fault) {
        self.state.lock().faults.push(fault);
    }

    /// Room for `bytes` more bytes of file content; then ENOSPC.
    pub fn limit_space(&self, bytes: u64) {
        self.state.lock().space = Some(bytes);
    }

    /// The power fails in the middle of the `n`-th call from now (0 = the next) that changes something: that call may
    /// have taken effect or not, and every call after it fails until [`SimDisk::crash`].
    pub fn power_off_after(&self, n: u64) {
        let mut state = self.state.lock();
        state.power_off_at = Some(state.changes + n);
    }

    pub fn is_off(&self) -> bool {
        self.state.lock().off
    }

    /// Removes faults and limits and switches the power on; content stays.
    pub fn heal(&self) {
        self.state.lock().heal();
    }

    /// Crash and restart. Handles opened before are dead; faults and limits are gone.
    pub fn crash(&self, how: Crash) {
        self.state.lock().crash(how);
    }

    /// Calls so far that changed something: the steps at which a test can cut the power.
    pub fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// Calls so far by operations whose name starts with `prefix`.
    pub fn calls(&self, prefix: &str) -> u64 {
        self.state
            .lock()
            .calls
            .iter()
            .filter(|(op, _)| op.starts_with(prefix))
            .map(|(_, count)| count)
            .sum()
    }

    /// Content of a file as a reader sees it now; for assertions and for damage done by tests.
    pub fn content(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        self.state.lock().content(path.as_ref())
    }

    /// Replaces the content of a file durably: bit rot.
    pub fn corrupt(&self, path: impl AsRef<Path>, change: impl FnOnce(&mut Vec<u8>)) {
        self.state.lock().corrupt(path.as_ref(), change);
    }
}

impl Disk for SimDisk {
    fn open(&self, op: Op, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        let inode = state
            .open(op, path, mode)
            .map_err(|source| DiskError::new(op, path, source))?;
        let boot = state.boot;
        Ok(Arc::new(SimFile {
            state: self.state.clone(),
            inode,
            boot,
            writable: mode != OpenMode::Read,
            path: path.to_owned(),
        }))
    }

    fn rename(&self, op: Op, from: &Path, to: &Path) -> Result<()> {
        self.state
            .lock()
            .rename(op, from, to)
            .map_err(|source| DiskError::new(op, from, source))
    }

    fn remove_file(&self, op: Op, path: &Path) -> Result<()> {
        self.state
            .lock()
            .remove_file(op, path)
            .map_err(|source| DiskError::new(op, path, source))
    }

    fn create_dir_all(&self, op: Op, path: &Path) -> Result<()> {
        self.state
            .lock()
            .create_dir_all(op, path)
            .map_err(|source| DiskError::new(op, path, source))
    }

    fn remove_dir_all(&self, op: Op, path: &Path) -> Result<()> {
        self.state
            .lock()
            .remove_dir_all(op, path)
            .map_err(|source| DiskError::new(op, path, source))
    }

    fn list(&self, op: Op, path: &Path) -> Result<Vec<OsString>> {
        self.state
            .lock()
            .list(op, path)
            .map_err(|source| DiskError::new(op, path, source))
    }

    fn exists(&self, op: Op, path: &Path) -> Result<bool> {
        self.state
            .lock()
            .exists(op, path)
            .map_err(|source| DiskError::new(op, path, source))
    }

    fn sync_dir(&self, op: Op, path: &Path) -> Result<()> {
        self.state
            .lock()
            .sync_dir(op, path)
            .map_err(|source| DiskError::new(op, path, source))
    }
}

#[derive(Debug)]
struct SimFile {
    state: Arc<Mutex<State>>,
    inode: u64,
    /// The boot in which it was opened: a handle does not live through a crash.
    boot: u64,
    writable: bool,
    path: PathBuf,
}

impl SimFile {
    fn call<T>(&self, op: Op, call: impl FnOnce(&mut State) -> io::Result<T>) -> Result<T> {
        let mut state = self.state.lock();
        let result = if state.boot == self.boot {
            call(&mut state)
        } else {
            Err(io::Error::from_raw_os_error(libc::EBADF))
        };
        drop(state);
        result.map_err(|source| DiskError::new(op, &self.path, source))
    }
}

impl SimFile {
    /// A call that needs a file open for writing.
    fn change<T>(&self, op: Op, call: impl FnOnce(&mut State) -> io::Result<T>) -> Result<T> {
        let refuse = |_: &mut State| Err(io::Error::from_raw_os_error(libc::EBADF));
        if self.writable {
            self.call(op, call)
        } else {
            self.call(op, refuse)
        }
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, op: Op, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.call(op, |state| state.read_at(op, self.inode, buf, offset))
    }

    fn write_all_at(&self, op: Op, data: &[u8], offset: u64) -> Result<()> {
        self.change(op, |state| state.write_at(op, self.inode, data, offset))
    }

    fn set_len(&self, op: Op, len: u64) -> Result<()> {
        self.change(op, |state| state.set_len(op, self.inode, len))
    }

    fn len(&self, op: Op) -> Result<u64> {
        self.call(op, |state| state.len(op, self.inode))
    }

    fn sync_data(&self, op: Op) -> Result<()> {
        self.call(op, |state| state.sync(op, self.inode))
    }

    fn sync_all(&self, op: Op) -> Result<()> {
        self.call(op, |state| state.sync(op, self.inode))
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: &str = "/d";
    const FILE: &str = "/d/f";

    /// A disk with a durable, empty file.
    fn disk(seed: u64) -> (SimDisk, Arc<dyn DiskFile>) {
        let disk = SimDisk::new(seed);
        disk.create_dir_all("t", Path::new(DIR)).unwrap();
        disk.sync_dir("t", Path::new("/")).unwrap();
        let file = disk.open("t", Path::new(FILE), OpenMode::Create).unwrap();
        disk.sync_dir("t", Path::new(DIR)).unwrap();
        (disk, file)
    }

    #[test]
    fn what_is_synced_survives_and_the_rest_may_be_lost() {
        let (disk, file) = disk(1);
        file.write_all_at("t", b"kept", 0).unwrap();
        file.sync_data("t").unwrap();
        file.write_all_at("t", b"lost", 4).unwrap();
        disk.crash(Crash::LoseAll);
        assert_eq!(disk.content(FILE).unwrap(), b"kept");
        assert_eq!(file.sync_data("t").unwrap_err().errno(), Some(libc::EBADF));
    }

    #[test]
    fn a_random_crash_tears_at_sectors_and_reorders() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let (disk, file) = disk(seed);
            file.write_all_at("t", &[1; 512], 0).unwrap();
            file.write_all_at("t", &[2; 1024], 512).unwrap();
            disk.crash(Crash::Random);
            let content = disk.content(FILE).unwrap();
            let sectors: Vec<u8> = content.chunks(512).map(|sector| sector[0]).collect();
            assert!(
                content
                    .chunks(512)
                    .all(|sector| sector.iter().all(|byte| *byte == sector[0]))
            );
            seen.insert(sectors);
        }
        assert!(seen.contains(&vec![]), "lost whole");
        assert!(seen.contains(&vec![1, 2, 2]), "kept whole");
        assert!(
            seen.iter().any(|sectors| sectors.first() == Some(&0)),
            "reordered"
        );
        assert!(seen.iter().any(|sectors| sectors.len() == 2), "torn");
    }

    #[test]
    fn names_need_a_sync_of_the_directory() {
        let (disk, file) = disk(1);
        file.write_all_at("t", b"x", 0).unwrap();
        file.sync_data("t").unwrap();
        disk.rename("t", Path::new(FILE), Path::new("/d/g")).unwrap();
        disk.crash(Crash::LoseAll);
        assert_eq!(disk.list("t", Path::new(DIR)).unwrap(), ["f"]);
        disk.rename("t", Path::new(FILE), Path::new("/d/g")).unwrap();
        disk.sync_dir("t", Path::new(DIR)).unwrap();
        disk.crash(Crash::LoseAll);
        assert_eq!(disk.list("t", Path::new(DIR)).unwrap(), ["g"]);
    }

    #[test]
    fn a_failed_sync_loses_for_good() {
        let lost = (0..32).any(|seed| {
            let (disk, file) = disk(seed);
            file.write_all_at("t", b"data", 0).unwrap();
            disk.inject(Fault::on("t.sync", libc::EIO));
            assert_eq!(file.sync_data("t.sync").unwrap_err().errno(), Some(libc::EIO));
            file.sync_data("t.sync").unwrap();
            assert_eq!(
                disk.content(FILE).unwrap(),
                b"data",
                "the page cache still shows it"
            );
            disk.crash(Crash::LoseAll);
            disk.content(FILE).unwrap() != b"data"
        });
        assert!(lost);
    }

    #[test]
    fn faults_hit_the_named_operation_and_space_runs_out() {
        let (disk, file) = disk(1);
        disk.inject(Fault::on("t.write", libc::EIO).after(1).times(1));
        file.write_all_at("t.write", b"1", 0).unwrap();
        file.write_all_at("other", b"1", 0).unwrap();
        assert_eq!(
            file.write_all_at("t.write", b"1", 0).unwrap_err().errno(),
            Some(libc::EIO)
        );
        file.write_all_at("t.write", b"1", 0).unwrap();
        disk.limit_space(10);
        assert!(file.write_all_at("t", &[0; 20], 0).unwrap_err().is_no_space());
        disk.heal();
        file.write_all_at("t", &[0; 20], 0).unwrap();
    }

    #[test]
    fn the_power_fails_at_the_asked_step() {
        let (disk, file) = disk(1);
        disk.power_off_after(1);
        file.write_all_at("t", b"1", 0).unwrap();
        assert!(file.write_all_at("t", b"2", 1).is_err());
        assert!(disk.is_off());
        assert!(file.read_at("t", &mut [0], 0).is_err());
        disk.crash(Crash::Random);
        disk.open("t", Path::new(FILE), OpenMode::Read).unwrap();
    }
}
