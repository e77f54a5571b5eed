//! The real disk. Retries what the kernel interrupts or shortens, times syncs, adds nothing else.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::{Disk, DiskError, DiskFile, Op, OpenMode, Result, SYNC_SECONDS_METRIC};

/// The file system of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsDisk;

impl OsDisk {
    pub fn shared() -> Arc<dyn Disk> {
        Arc::new(OsDisk)
    }
}

#[derive(Debug)]
struct OsFile {
    file: File,
    path: PathBuf,
}

impl Disk for OsDisk {
    fn open(&self, op: Op, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => {}
            OpenMode::Write => {
                options.write(true);
            }
            OpenMode::Create => {
                options.write(true).create(true).truncate(false);
            }
            OpenMode::CreateNew => {
                options.write(true).create_new(true);
            }
            OpenMode::Truncate => {
                options.write(true).create(true).truncate(true);
            }
        }
        let file = options
            .open(path)
            .map_err(|source| DiskError::new(op, path, source))?;
        Ok(Arc::new(OsFile {
            file,
            path: path.to_owned(),
        }))
    }

    fn rename(&self, op: Op, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(|source| DiskError::new(op, from, source))
    }

    fn remove_file(&self, op: Op, path: &Path) -> Result<()> {
        fs::remove_file(path).map_err(|source| DiskError::new(op, path, source))
    }

    fn create_dir_all(&self, op: Op, path: &Path) -> Result<()> {
        fs::create_dir_all(path).map_err(|source| DiskError::new(op, path, source))
    }

    fn remove_dir_all(&self, op: Op, path: &Path) -> Result<()> {
        fs::remove_dir_all(path).map_err(|source| DiskError::new(op, path, source))
    }

    fn list(&self, op: Op, path: &Path) -> Result<Vec<OsString>> {
        let read = || {
            fs::read_dir(path)?
                .map(|entry| Ok(entry?.file_name()))
                .collect::<io::Result<Vec<_>>>()
        };
        let mut names = read().map_err(|source| DiskError::new(op, path, source))?;
        names.sort_unstable();
        Ok(names)
    }

    fn exists(&self, op: Op, path: &Path) -> Result<bool> {
        path.try_exists()
            .map_err(|source| DiskError::new(op, path, source))
    }

    fn sync_dir(&self, op: Op, path: &Path) -> Result<()> {
        timed_sync(op, || File::open(path)?.sync_all()).map_err(|source| DiskError::new(op, path, source))
    }
}

impl OsFile {
    fn error(&self, op: Op, source: io::Error) -> DiskError {
        DiskError::new(op, &self.path, source)
    }
}

impl DiskFile for OsFile {
    fn read_at(&self, op: Op, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(source) if source.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(self.error(op, source)),
            }
        }
        Ok(done)
    }

    fn write_all_at(&self, op: Op, data: &[u8], offset: u64) -> Result<()> {
        // `FileExt::write_all_at` continues short writes and repeats interrupted ones.
        self.file
            .write_all_at(data, offset)
            .map_err(|source| self.error(op, source))
    }

    fn set_len(&self, op: Op, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(|source| self.error(op, source))
    }

    fn len(&self, op: Op) -> Result<u64> {
        self.file
            .metadata()
            .map(|metadata| metadata.len())
            .map_err(|source| self.error(op, source))
    }

    fn sync_data(&self, op: Op) -> Result<()> {
        timed_sync(op, || self.file.sync_data()).map_err(|source| self.error(op, source))
    }

    fn sync_all(&self, op: Op) -> Result<()> {
        timed_sync(op, || self.file.sync_all()).map_err(|source| self.error(op, source))
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

fn timed_sync(op: Op, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let start = Instant::now();
    let result = sync();
    metrics::histogram!(SYNC_SECONDS_METRIC, "op" => op).record(start.elapsed().as_secs_f64());
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_read_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let disk = OsDisk::shared();
        let path = dir.path().join("a/b/file");
        disk.create_dir_all("test", path.parent().unwrap()).unwrap();
        let file = disk.open("test", &path, OpenMode::CreateNew).unwrap();
        file.write_all_at("test", b"hello", 3).unwrap();
        file.sync_data("test").unwrap();
        assert_eq!(file.len("test").unwrap(), 8);
        let mut buf = [1; 8];
        file.read_exact_at("test", &mut buf, 0).unwrap();
        assert_eq!(&buf, b"\0\0\0hello");
        assert_eq!(file.read_at("test", &mut buf, 6).unwrap(), 2);
        let error = file.read_exact_at("test.read", &mut buf, 6).unwrap_err();
        assert!(error.to_string().starts_with("test.read "), "{error}");
        disk.rename("test", &path, &dir.path().join("a/b/other")).unwrap();
        disk.sync_dir("test", &dir.path().join("a/b")).unwrap();
        assert_eq!(disk.list("test", &dir.path().join("a/b")).unwrap(), ["other"]);
        assert!(!disk.exists("test", &path).unwrap());
        assert!(
            disk.open("test", &path, OpenMode::Read)
                .unwrap_err()
                .is_not_found()
        );
    }
}
