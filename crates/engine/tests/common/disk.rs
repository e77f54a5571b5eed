//! The operating system's disk, with a test looking on at what happens to its files.

use std::ffi::OsString;
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use engine::disk::{Disk, DiskFile, Op, OpenMode, OsDisk, Result};

/// What a test does beside the calls; clones share what they know.
pub trait Watch: Debug + Clone + Send + Sync + 'static {
    /// Before a write. An error is the call's.
    fn writing(&self, _op: Op, _path: &Path) -> Result<()> {
        Ok(())
    }

    /// Before a sync. An error is the call's.
    fn syncing(&self, _op: Op, _path: &Path) -> Result<()> {
        Ok(())
    }

    /// After a sync that succeeded.
    fn synced(&self, _op: Op, _file: &dyn DiskFile) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
pub struct Watched<W>(pub W);

#[derive(Debug)]
struct WatchedFile<W>(Arc<dyn DiskFile>, W);

impl<W: Watch> Disk for Watched<W> {
    fn open(&self, op: Op, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(WatchedFile(
            OsDisk.open(op, path, mode)?,
            self.0.clone(),
        )))
    }
    fn rename(&self, op: Op, from: &Path, to: &Path) -> Result<()> {
        OsDisk.rename(op, from, to)
    }
    fn remove_file(&self, op: Op, path: &Path) -> Result<()> {
        OsDisk.remove_file(op, path)
    }
    fn create_dir_all(&self, op: Op, path: &Path) -> Result<()> {
        OsDisk.create_dir_all(op, path)
    }
    fn remove_dir_all(&self, op: Op, path: &Path) -> Result<()> {
        OsDisk.remove_dir_all(op, path)
    }
    fn list(&self, op: Op, path: &Path) -> Result<Vec<OsString>> {
        OsDisk.list(op, path)
    }
    fn exists(&self, op: Op, path: &Path) -> Result<bool> {
        OsDisk.exists(op, path)
    }
    fn sync_dir(&self, op: Op, path: &Path) -> Result<()> {
        OsDisk.sync_dir(op, path)
    }
}

impl<W: Watch> DiskFile for WatchedFile<W> {
    fn read_at(&self, op: Op, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.0.read_at(op, buf, offset)
    }
    fn write_all_at(&self, op: Op, data: &[u8], offset: u64) -> Result<()> {
        self.1.writing(op, self.path())?;
        self.0.write_all_at(op, data, offset)
    }
    fn set_len(&self, op: Op, len: u64) -> Result<()> {
        self.0.set_len(op, len)
    }
    fn len(&self, op: Op) -> Result<u64> {
        self.0.len(op)
    }
    fn sync_data(&self, op: Op) -> Result<()> {
        self.1.syncing(op, self.path())?;
        self.0.sync_data(op)?;
        self.1.synced(op, &*self.0)
    }
    fn sync_all(&self, op: Op) -> Result<()> {
        self.1.syncing(op, self.path())?;
        self.0.sync_all(op)?;
        self.1.synced(op, &*self.0)
    }
    fn path(&self) -> &Path {
        self.0.path()
    }
}
