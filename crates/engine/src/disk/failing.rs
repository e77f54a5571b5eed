//! The operating system's disk with faults that a test plants, for tests of whole nodes: [`super::sim`] keeps its files in memory, where
//! SQLite cannot find them.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::sim::Fault;
use super::{Disk, DiskError, DiskFile, Op, OpenMode, OsDisk, Result};

/// Handle to the faults; clones share them.
#[derive(Debug, Clone, Default)]
pub struct FailingDisk {
    faults: Arc<Mutex<Vec<Fault>>>,
    /// How many more files can be opened, if that is limited.
    openable: Arc<Mutex<Option<u64>>>,
}

impl FailingDisk {
    /// Adds a fault; faults stay until they are used up or [`FailingDisk::heal`].
    pub fn inject(&self, fault: Fault) {
        self.faults.lock().push(fault);
    }

    /// After `opens` more of them no file or directory can be opened (`EMFILE`); what is open goes on.
    pub fn exhaust(&self, opens: u64) {
        *self.openable.lock() = Some(opens);
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.faults.lock().clear();
        *self.openable.lock() = None;
    }

    /// As `check`, for calls that open something.
    fn check_open(&self, op: Op, path: &Path) -> Result<()> {
        match &mut *self.openable.lock() {
            None => {}
            Some(0) => {
                return Err(DiskError::new(
                    op,
                    path,
                    io::Error::from_raw_os_error(libc::EMFILE),
                ));
            }
            Some(left) => *left -= 1,
        }
        self.check(op, path)
    }

    fn check(&self, op: Op, path: &Path) -> Result<()> {
        let mut faults = self.faults.lock();
        faults
            .iter_mut()
            .try_for_each(|fault| fault.check(op))
            .map_err(|source| DiskError::new(op, path, source))
    }
}

impl Disk for FailingDisk {
    fn open(&self, op: Op, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>> {
        self.check_open(op, path)?;
        Ok(Arc::new(FailingFile {
            file: OsDisk.open(op, path, mode)?,
            disk: self.clone(),
        }))
    }

    fn rename(&self, op: Op, from: &Path, to: &Path) -> Result<()> {
        self.check(op, from)?;
        OsDisk.rename(op, from, to)
    }

    fn remove_file(&self, op: Op, path: &Path) -> Result<()> {
        self.check(op, path)?;
        OsDisk.remove_file(op, path)
    }

    fn create_dir_all(&self, op: Op, path: &Path) -> Result<()> {
        self.check(op, path)?;
        OsDisk.create_dir_all(op, path)
    }

    fn remove_dir_all(&self, op: Op, path: &Path) -> Result<()> {
        self.check_open(op, path)?;
        OsDisk.remove_dir_all(op, path)
    }

    fn list(&self, op: Op, path: &Path) -> Result<Vec<OsString>> {
        self.check_open(op, path)?;
        OsDisk.list(op, path)
    }

    fn exists(&self, op: Op, path: &Path) -> Result<bool> {
        self.check(op, path)?;
        OsDisk.exists(op, path)
    }

    fn sync_dir(&self, op: Op, path: &Path) -> Result<()> {
        self.check_open(op, path)?;
        OsDisk.sync_dir(op, path)
    }
}

#[derive(Debug)]
struct FailingFile {
    file: Arc<dyn DiskFile>,
    disk: FailingDisk,
}

impl DiskFile for FailingFile {
    fn read_at(&self, op: Op, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.disk.check(op, self.path())?;
        self.file.read_at(op, buf, offset)
    }

    fn write_all_at(&self, op: Op, data: &[u8], offset: u64) -> Result<()> {
        self.disk.check(op, self.path())?;
        self.file.write_all_at(op, data, offset)
    }

    fn set_len(&self, op: Op, len: u64) -> Result<()> {
        self.disk.check(op, self.path())?;
        self.file.set_len(op, len)
    }

    fn len(&self, op: Op) -> Result<u64> {
        self.disk.check(op, self.path())?;
        self.file.len(op)
    }

    fn sync_data(&self, op: Op) -> Result<()> {
        self.disk.check(op, self.path())?;
        self.file.sync_data(op)
    }

    fn sync_all(&self, op: Op) -> Result<()> {
        self.disk.check(op, self.path())?;
        self.file.sync_all(op)
    }

    fn path(&self) -> &Path {
        self.file.path()
    }
}
