//! WALs that starts took out of the mount. A start copies what a WAL holds to the main file, and it must not wait until
//! that is on disk; so it moves the WAL into the database's own directory, and the next flush of the table, which syncs
//! the main file, removes it. A start that finds such a WAL copies once more what the main file lacks.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::writers::seal::{seal_again, unseal};

const PREFIX: &str = "wal-";

/// The WALs that are kept, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    files: Vec<(u64, PathBuf)>,
}

impl Aside {
    /// What earlier processes left in `home`.
    pub(crate) fn open(home: &Path) -> Result<Aside> {
        let entries = std::fs::read_dir(home).map_err(Error::io("aside.list", home))?;
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::io("aside.list", home))?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            if let Some(number) = number.and_then(|number| number.parse().ok()) {
                files.push((number, entry.path()));
            }
        }
        files.sort_unstable();
        Ok(Aside { files })
    }

    /// Moves a WAL into `home`. Whoever still has it open, on the mount of a dead daemon, writes to a file that nobody reads,
    /// if it is not sealed. A sealed file cannot be moved, so its seal is broken for a moment; returns whether it was.
    pub(crate) fn take(&mut self, file: &File, wal: &Path, home: &Path) -> Result<bool> {
        let number = self.files.last().map_or(1, |(last, _)| last + 1);
        let path = home.join(format!("{PREFIX}{number}"));
        let sealed = unsealed(file, || std::fs::rename(wal, &path)).map_err(Error::io("aside.take", wal))?;
        self.files.push((number, path));
        Ok(sealed)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Opens them, oldest first.
    pub(crate) fn files(&self) -> Result<Vec<File>> {
        let open = |(_, path): &(u64, PathBuf)| File::open(path).map_err(Error::io("aside.open", path));
        self.files.iter().map(open).collect()
    }

    /// The main file is durable with all that they held.
    pub(crate) fn remove(&mut self) -> Result<()> {
        while let Some((_, path)) = self.files.last() {
            File::open(path)
                .and_then(|file| remove(&file, path))
                .map_err(Error::io("aside.remove", path))?;
            self.files.pop();
        }
        Ok(())
    }
}

/// Removes a file that may be sealed. Whoever still has it open finds it sealed afterwards too.
pub(super) fn remove(file: &File, path: &Path) -> io::Result<()> {
    unsealed(file, || std::fs::remove_file(path)).map(drop)
}

/// Does something that a seal forbids. Returns whether there was one.
fn unsealed(file: &File, act: impl FnOnce() -> io::Result<()>) -> io::Result<bool> {
    let sealed = unseal(file)?;
    act()?;
    if sealed {
        seal_again(file)?;
    }
    Ok(sealed)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::writers::seal::seal;

    /// A client of a dead mount that still has the WAL open would commit into a file that nobody reads. Needs CAP_LINUX_IMMUTABLE and a
    /// file system that knows it.
    #[test]
    fn whoever_has_a_removed_wal_open_finds_it_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path().join("db-wal");
        let mut client = File::create(&wal).unwrap();
        if !seal(&client).unwrap() {
            return;
        }
        let mut aside = Aside::default();
        assert!(aside.take(&client, &wal, dir.path()).unwrap());
        assert!(client.write(b"commit").is_err(), "it is aside");
        aside.remove().unwrap();
        assert!(aside.is_empty());
        assert!(client.write(b"commit").is_err(), "it is gone");
    }
}
