//! What the engine asks of the kernel edge.
//!
//! On a mount, SQLite's locks live in the kernel and file contents in its page cache. The engine takes part as one more
//! SQLite client ([`LockFiles`]) and tells the kernel what it changed behind its back ([`Kernel`]). Two implementations
//! exist: the FUSE mount of the daemon, and [`Direct`] for a plain directory, where the page cache is shared anyway.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::database::backing::read_full;
use crate::name::{DbName, Side};

/// Whether the daemon's mapping of the backing `-shm` is the memory that SQLite's clients map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coherence {
    /// `-wal`, `-shm` and `-journal` are passed through (mode K): one page cache for all.
    Passthrough,
    /// Every write is intercepted (mode D): clients map the FUSE file's own page cache.
    Intercepted,
}

/// How far a checkpoint goes; SQLite's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointMode {
    /// As much as readers allow, without waiting.
    Passive,
    /// Everything, and the WAL is truncated to zero bytes; waits briefly for readers.
    Truncate,
}

/// What `sqlite3_wal_checkpoint_v2` reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointResult {
    /// A lock was in the way and not everything was done.
    pub busy: bool,
    /// Frames in the WAL, or -1.
    pub log: i64,
    /// Frames copied to the database, or -1.
    pub checkpointed: i64,
}

/// The kernel edge as the engine sees it. No method is called with a database's mutex held, except [`Kernel::coherence`].
pub trait Kernel: Send + Sync {
    /// See [`Coherence`].
    fn coherence(&self) -> Coherence;
    /// Descriptors of the database's files on the mount, to lock through. Creates an empty `-shm` if there is none.
    ///
    /// Until the files of that name are replaced, every call hands out the same open file descriptions, also to a process that takes over
    /// from a dead one: what that held is held, and locking it again succeeds.
    fn open_locks(&self, db: &DbName) -> io::Result<Arc<dyn LockFiles>>;
    /// Descriptors that were opened for the process that this one takes over from, which may hold locks through them. Opens nothing and
    /// asks nothing of the mount: it is called before the first request is answered.
    fn kept_locks(&self, db: &DbName) -> io::Result<Option<Arc<dyn LockFiles>>>;
    /// Whether a client has the WAL open in such a way that what it writes there passes the daemon by, connected or about to be. Waits for
    /// nothing.
    fn writes_pass_by(&self, db: &DbName) -> bool;
    /// Puts bytes into the kernel's page cache and extends the cached size; where the kernel reads the backing file itself it forgets the
    /// size that it remembers. Nothing happens for files it does not know.
    fn store(&self, db: &DbName, side: Side, offset: u64, data: &[u8]);
    /// Drops cached pages (`None`: all of them) and attributes.
    fn invalidate(&self, db: &DbName, side: Side, range: Option<(u64, u64)>);
    /// The file appeared, disappeared or was replaced.
    fn invalidate_entry(&self, db: &DbName, side: Side);
    /// Owner or permissions of a file or directory changed, given by its path below the root.
    fn invalidate_attributes(&self, relative: &Path);
    /// The content of `NAME-pos` changed.
    fn invalidate_position(&self, db: &DbName);
    /// Runs a checkpoint with SQLite, through the mount, in a process of its own.
    fn checkpoint(&self, db: &DbName, mode: CheckpointMode) -> io::Result<CheckpointResult>;
}

/// Open-file-description locks on the files of one database. They conflict with SQLite's POSIX locks both ways and cause
/// no request to the daemon.
pub trait LockFiles: Send + Sync {
    /// A client holds a write lock somewhere on the main file: a rollback-mode transaction is under way. Where SQLite's
    /// lock bytes are does not matter.
    fn database_write_locked(&self) -> io::Result<bool>;
    /// A client holds a lock of any kind somewhere on the main file.
    fn database_locked(&self) -> io::Result<bool>;
    /// A client holds a lock (of any kind) on byte `start` of the file.
    fn locked(&self, side: Side, start: u64) -> io::Result<bool>;
    /// A client holds a write lock on byte `start` of the file.
    fn write_locked(&self, side: Side, start: u64) -> io::Result<bool>;
    /// Tries to lock `len` bytes at `start`; `Ok(false)` if a client is in the way.
    fn try_lock(&self, side: Side, start: u64, len: u64, exclusive: bool) -> io::Result<bool>;
    /// Releases what [`LockFiles::try_lock`] took.
    fn unlock(&self, side: Side, start: u64, len: u64) -> io::Result<()>;
    /// Whether the `-shm` is open, so that to lock it asks nothing of the mount.
    fn has_shm(&self) -> bool;
    /// Inode number of the `-shm` that is locked, to notice that clients replaced it.
    fn shm_inode(&self) -> u64;
    /// Reads the beginning of the `-shm` as clients see it; fewer bytes if it is shorter. Through the mount this may take a
    /// request: not to be called under a lock that requests wait for.
    fn read_shm(&self, buf: &mut [u8]) -> io::Result<usize>;
}

/// Lock files over two open descriptors, wherever they were opened.
#[derive(Debug)]
pub struct OfdLocks {
    database: File,
    shm: File,
    shm_inode: u64,
}

impl OfdLocks {
    /// Takes part in locking through these descriptors of the main file and of the `-shm`.
    pub fn new(database: File, shm: File) -> io::Result<OfdLocks> {
        use std::os::unix::fs::MetadataExt;
        let shm_inode = shm.metadata()?.ino();
        Ok(OfdLocks {
            database,
            shm,
            shm_inode,
        })
    }

    /// Whether somebody else holds what that lock would conflict with.
    fn conflicts(&self, side: Side, mut lock: libc::flock) -> io::Result<bool> {
        fcntl_lock(self.file(side), libc::F_OFD_GETLK, &mut lock)?;
        Ok(i32::from(lock.l_type) != libc::F_UNLCK)
    }

    fn file(&self, side: Side) -> &File {
        match side {
            Side::Shm => &self.shm,
            Side::Database | Side::Journal | Side::Wal => &self.database,
        }
    }
}

fn flock(kind: i32, start: u64, len: u64) -> libc::flock {
    // SAFETY: flock is a plain C structure for which all zero bytes are a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = start as libc::off_t;
    lock.l_len = len as libc::off_t;
    lock
}

fn fcntl_lock(file: &File, command: i32, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is open for the duration of the call and the pointer refers to a live flock.
    if unsafe { libc::fcntl(file.as_raw_fd(), command, lock as *mut libc::flock) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

impl LockFiles for OfdLocks {
    fn database_write_locked(&self) -> io::Result<bool> {
        // A read lock over the whole file conflicts with write locks only.
        self.conflicts(Side::Database, flock(libc::F_RDLCK, 0, 0))
    }

    fn database_locked(&self) -> io::Result<bool> {
        self.conflicts(Side::Database, flock(libc::F_WRLCK, 0, 0))
    }

    fn locked(&self, side: Side, start: u64) -> io::Result<bool> {
        self.conflicts(side, flock(libc::F_WRLCK, start, 1))
    }

    fn write_locked(&self, side: Side, start: u64) -> io::Result<bool> {
        self.conflicts(side, flock(libc::F_RDLCK, start, 1))
    }

    fn try_lock(&self, side: Side, start: u64, len: u64, exclusive: bool) -> io::Result<bool> {
        let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
        match fcntl_lock(self.file(side), libc::F_OFD_SETLK, &mut flock(kind, start, len)) {
            Ok(()) => Ok(true),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn unlock(&self, side: Side, start: u64, len: u64) -> io::Result<()> {
        fcntl_lock(
            self.file(side),
            libc::F_OFD_SETLK,
            &mut flock(libc::F_UNLCK, start, len),
        )
    }

    fn has_shm(&self) -> bool {
        true
    }

    fn shm_inode(&self) -> u64 {
        self.shm_inode
    }

    fn read_shm(&self, buf: &mut [u8]) -> io::Result<usize> {
        read_full(&self.shm, buf, 0)
    }
}

/// A plain directory: clients open the backing files themselves, and one page cache serves everybody.
#[derive(Debug)]
pub struct Direct {
    files: PathBuf,
}

impl Direct {
    /// `files` is the backing tree, [`crate::Store::files_dir`].
    pub fn new(files: &Path) -> Direct {
        Direct {
            files: files.to_owned(),
        }
    }
}

impl Kernel for Direct {
    fn coherence(&self) -> Coherence {
        Coherence::Passthrough
    }

    fn open_locks(&self, db: &DbName) -> io::Result<Arc<dyn LockFiles>> {
        let database = OpenOptions::new()
            .read(true)
            .write(true)
            .open(db.file_in(&self.files, Side::Database))?;
        let shm = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(db.file_in(&self.files, Side::Shm))?;
        Ok(Arc::new(OfdLocks::new(database, shm)?))
    }

    /// Descriptors of a plain directory end with the process that opened them, and their locks with it.
    fn kept_locks(&self, _: &DbName) -> io::Result<Option<Arc<dyn LockFiles>>> {
        Ok(None)
    }

    /// Whoever has files open here is known by its locks alone.
    fn writes_pass_by(&self, _: &DbName) -> bool {
        false
    }

    fn store(&self, _: &DbName, _: Side, _: u64, _: &[u8]) {}
    fn invalidate(&self, _: &DbName, _: Side, _: Option<(u64, u64)>) {}
    fn invalidate_entry(&self, _: &DbName, _: Side) {}
    fn invalidate_attributes(&self, _: &Path) {}
    fn invalidate_position(&self, _: &DbName) {}

    fn checkpoint(&self, _: &DbName, _: CheckpointMode) -> io::Result<CheckpointResult> {
        // No SQLite is linked here; the WAL simply grows until a client checkpoints it.
        Ok(CheckpointResult {
            busy: true,
            log: -1,
            checkpointed: -1,
        })
    }
}
