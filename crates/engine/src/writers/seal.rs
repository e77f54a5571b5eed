//! Sealing: after it nobody writes to a file any more, not even through descriptors that were open before.
//!
//! Clients of a killed daemon keep passthrough handles that no lock stops if they hold it themselves
//! (`locking_mode=EXCLUSIVE`), and that nobody fences if the companion was killed too. ext4 and f2fs refuse each write to an immutable
//! file; others refuse only to open it, so it is tried out.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::tree::Tree;

/// `FS_IMMUTABLE_FL` of the kernel's `linux/fs.h`.
const IMMUTABLE: libc::c_int = 0x10;

/// The seal of a WAL, which can be neither written nor removed: there as long as the value lives, and beyond if it is left.
#[derive(Debug)]
pub(crate) struct Seal {
    /// `None` once it is broken or left.
    wal: Option<File>,
    /// To be shown.
    path: PathBuf,
}

impl Seal {
    /// Seals the WAL, which is open for writing; `None` where that is not possible.
    pub(crate) fn put(wal: &File, path: &Path) -> io::Result<Option<Seal>> {
        // Before it is sealed: what cannot be had then leaves nothing sealed.
        let value = Seal::of(wal, path)?;
        match seal(wal)? {
            true => Ok(Some(value)),
            false => {
                value.leave();
                Ok(None)
            }
        }
    }

    /// The seal that an earlier process left.
    pub(crate) fn found(wal: &File, path: &Path) -> io::Result<Option<Seal>> {
        match is_sealed(wal)? {
            true => Seal::of(wal, path).map(Some),
            false => Ok(None),
        }
    }

    fn of(wal: &File, path: &Path) -> io::Result<Seal> {
        Ok(Seal {
            wal: Some(wal.try_clone()?),
            path: path.to_owned(),
        })
    }

    /// Lets the WAL be written and removed again. If that fails it is sealed still.
    pub(crate) fn lift(mut self) -> Result<(), (Seal, io::Error)> {
        let Some(wal) = &self.wal else { return Ok(()) };
        match unseal(wal) {
            Ok(_) => {
                self.wal = None;
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }

    /// The WAL stays sealed: the process ends, or another value stands for the same seal.
    pub(crate) fn leave(mut self) {
        self.wal = None;
    }
}

impl Drop for Seal {
    fn drop(&mut self) {
        if let Some(wal) = &self.wal
            && let Err(error) = unseal(wal)
        {
            tracing::error!(%error, path = %self.path.display(), "the WAL stays sealed");
        }
    }
}

/// Breaks the seal of a file, if there are a file and a seal.
pub(crate) fn unseal_at(tree: &Tree, relative: &Path) -> io::Result<()> {
    let opened = tree.open_file(relative, OpenOptions::new().read(true));
    // What it is may be anything yet.
    let found = |file: &File| file.metadata().is_ok_and(|metadata| metadata.is_file());
    match opened {
        Ok(file) if found(&file) => unseal(&file).map(drop),
        // Whatever is wrong with it shows where it is needed.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Seals the file, which is open for writing; `false` if its file system cannot, or if this process may not (`CAP_LINUX_IMMUTABLE`).
pub(crate) fn seal(file: &File) -> io::Result<bool> {
    let Some(flags) = flags(file)? else {
        return Ok(false);
    };
    if flags & IMMUTABLE != 0 {
        // It was tried out by whoever sealed it; this descriptor may be open for reading only.
        return Ok(true);
    }
    if !set_flags(file, flags | IMMUTABLE)? {
        return Ok(false);
    }
    // Changes nothing where it is let through.
    let holds = file
        .write_at(&[], 0)
        .is_err_and(|error| error.raw_os_error() == Some(libc::EPERM));
    if !holds {
        set_flags(file, flags & !IMMUTABLE)?;
    }
    Ok(holds)
}

/// Whether the file is sealed.
fn is_sealed(file: &File) -> io::Result<bool> {
    Ok(flags(file)?.is_some_and(|flags| flags & IMMUTABLE != 0))
}

/// Seals a file again that was sealed before: that it holds was tried out then, and the descriptor may be open for reading only.
pub(crate) fn seal_again(file: &File) -> io::Result<()> {
    if let Some(flags) = flags(file)? {
        set_flags(file, flags | IMMUTABLE)?;
    }
    Ok(())
}

/// Breaks the seal, so that the file can be removed. Returns whether there was one.
pub(crate) fn unseal(file: &File) -> io::Result<bool> {
    match flags(file)? {
        Some(flags) if flags & IMMUTABLE != 0 => set_flags(file, flags & !IMMUTABLE),
        Some(_) | None => Ok(false),
    }
}

fn flags(file: &File) -> io::Result<Option<libc::c_int>> {
    let mut flags: libc::c_int = 0;
    // SAFETY: whatever its number says, this request writes an int to the place given.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &mut flags) };
    Ok((done == 0 || possible()?).then_some(flags))
}

fn set_flags(file: &File, flags: libc::c_int) -> io::Result<bool> {
    // SAFETY: whatever its number says, this request reads an int from the place given.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_SETFLAGS, &flags) };
    Ok(done == 0 || possible()?)
}

/// After a refusal: `false` if this file or this process cannot, an error if something is wrong.
fn possible() -> io::Result<bool> {
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EINVAL) => {
            Ok(false)
        }
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Needs CAP_LINUX_IMMUTABLE and a file system that knows it.
    #[test]
    fn a_seal_is_broken_with_its_value_unless_it_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db-wal");
        let mut client = File::create(&path).unwrap();
        let Some(seal) = Seal::put(&client, &path).unwrap() else {
            return;
        };
        assert!(client.write(b"commit").is_err());
        drop(seal);
        assert!(client.write(b"commit").is_ok());
        assert!(Seal::found(&client, &path).unwrap().is_none());
        Seal::put(&client, &path).unwrap().unwrap().leave();
        assert!(client.write(b"commit").is_err());
        let found = Seal::found(&client, &path).unwrap();
        assert!(found.unwrap().lift().is_ok());
        assert!(client.write(b"commit").is_ok());
    }
}
