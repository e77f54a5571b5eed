//! The data directory as keeper and daemons meet in it: one keeper a directory, and one daemon at a time.
//!
//! The lock is a `flock` on `<data>/lock`, whose open file keeper and daemon share; the file says who they are. Daemons reach the keeper
//! through the socket `<data>/keeper`. Its path may be longer than an address of a socket can be, so it is named by a descriptor.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};

/// The file that is locked.
pub(super) const LOCK: &str = "lock";
const SOCKET: &str = "keeper";
/// What keeper and opener have to say when nobody is there to hear it.
pub(super) const LOG: &str = "keeper.log";

/// A data directory whose lock this process has.
pub(super) struct DataDir {
    path: PathBuf,
    dir: File,
    lock: File,
}

impl DataDir {
    /// The directory of a lock file that was opened there.
    pub(super) fn of_lock(lock: File) -> io::Result<DataDir> {
        let path = std::fs::read_link(format!("/proc/self/fd/{}", lock.as_raw_fd()))?;
        let dir = path.parent().ok_or(io::ErrorKind::NotFound)?;
        Ok(DataDir {
            path: dir.to_owned(),
            dir: open_dir(dir)?,
            lock,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Makes the socket that daemons knock at. One that is there already is a dead keeper's: the lock is ours.
    pub(super) fn listen(&self) -> io::Result<OwnedFd> {
        let path = socket_path(&self.dir);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let socket = new_socket()?;
        bind(socket.as_raw_fd(), &UnixAddr::new(&path)?)?;
        listen(&socket, Backlog::new(16)?)?;
        Ok(socket)
    }

    /// Notes who has the directory, for people and for the next daemon's message.
    pub(super) fn note(&mut self, daemon: Option<u32>, launcher: Option<u32>) {
        let mut text = format!("keeper, process {}\n", std::process::id());
        for (part, process) in [("daemon", daemon), ("launcher", launcher)] {
            if let Some(process) = process {
                text.push_str(&format!("{part}, process {process}\n"));
            }
        }
        let written = self
            .lock
            .rewind()
            .and_then(|()| self.lock.write_all(text.as_bytes()))
            .and_then(|()| self.lock.set_len(text.len() as u64));
        if let Err(error) = written {
            complain!("litefs keeper: note in the lock file: {error}");
        }
    }
}

/// Knocks at the keeper of a data directory; `None`: there is none.
pub(super) fn knock(dir: &Path) -> io::Result<Option<OwnedFd>> {
    let socket = new_socket()?;
    let dir = open_dir(dir)?;
    match connect(socket.as_raw_fd(), &UnixAddr::new(&socket_path(&dir))?) {
        Ok(()) => Ok(Some(socket)),
        Err(Errno::ENOENT | Errno::ECONNREFUSED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Takes the lock of a data directory; `None`: somebody has it.
pub(super) fn try_lock(dir: &Path) -> io::Result<Option<File>> {
    use std::fs::TryLockError;
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_NOFOLLOW)
        .open(dir.join(LOCK))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

fn open_dir(dir: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(dir)
}

fn socket_path(dir: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
}

/// Who has a data directory, by what the keeper noted there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inhabitants {
    pub keeper: Option<u32>,
    pub daemon: Option<u32>,
    pub launcher: Option<u32>,
}

impl Inhabitants {
    /// Nobody if no living keeper has the directory's lock.
    pub fn of(dir: &Path) -> Inhabitants {
        let locked = File::open(dir.join(LOCK))
            .is_ok_and(|file| matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock)));
        match std::fs::read_to_string(dir.join(LOCK)) {
            Ok(text) if locked => Inhabitants::parse(&text),
            Ok(_) | Err(_) => Inhabitants::default(),
        }
    }

    fn parse(text: &str) -> Inhabitants {
        let number = |part: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(part)?.strip_prefix(", process ")?.parse().ok())
        };
        Inhabitants {
            keeper: number("keeper"),
            daemon: number("daemon"),
            launcher: number("launcher"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_says_who_has_the_directory_while_it_is_locked() {
        let dir = tempfile::tempdir().unwrap();
        let lock = try_lock(dir.path()).unwrap().unwrap();
        assert!(try_lock(dir.path()).unwrap().is_none());
        let mut data_dir = DataDir::of_lock(lock).unwrap();
        data_dir.note(Some(7), Some(8));
        let found = Inhabitants::of(dir.path());
        let expected = Inhabitants {
            keeper: Some(std::process::id()),
            daemon: Some(7),
            launcher: Some(8),
        };
        assert_eq!(found, expected);
        data_dir.note(None, None);
        assert_eq!(
            Inhabitants::of(dir.path()),
            Inhabitants {
                daemon: None,
                launcher: None,
                ..expected
            }
        );
        drop(data_dir);
        assert_eq!(Inhabitants::of(dir.path()), Inhabitants::default());
    }

    #[test]
    fn a_keeper_is_knocked_at_however_long_the_path_is() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(100)).join("y".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        assert!(knock(&deep).unwrap().is_none());
        let data_dir = DataDir::of_lock(try_lock(&deep).unwrap().unwrap()).unwrap();
        let listener = data_dir.listen().unwrap();
        assert!(knock(&deep).unwrap().is_some());
        drop(listener);
        assert!(
            knock(&deep).unwrap().is_none(),
            "a dead keeper's socket is no keeper"
        );
    }
}
