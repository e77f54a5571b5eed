//! A kernel edge for plain directories: checkpoints are real SQLite's, and a test may look at what
//! happens in the middle of an apply.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use engine::{CheckpointMode, CheckpointResult, Coherence, DbName, Direct, Kernel, LockFiles, Side};

use super::Client;

type OnStore = Box<dyn FnMut(Side) + Send>;

/// Descriptors that outlive the daemon, as the opener of the real one holds them: by database, with the inode of the main file.
#[derive(Clone, Default)]
pub struct Opener(Arc<Mutex<Open>>);

type Open = BTreeMap<DbName, (u64, Arc<dyn LockFiles>)>;

impl Opener {
    fn open(&self, direct: &Direct, files: &Path, db: &DbName) -> io::Result<Arc<dyn LockFiles>> {
        let inode = |side| std::fs::metadata(db.file_in(files, side)).map(|meta| meta.ino());
        let mut open = self.0.lock().unwrap();
        if let (Some((main, locks)), Ok(database), Ok(shm)) =
            (open.get(db), inode(Side::Database), inode(Side::Shm))
            && (*main, locks.shm_inode()) == (database, shm)
        {
            return Ok(locks.clone());
        }
        let locks = direct.open_locks(db)?;
        open.insert(db.clone(), (inode(Side::Database)?, locks.clone()));
        Ok(locks)
    }

    pub fn kept(&self, files: &Path, db: &DbName) -> Option<Arc<dyn LockFiles>> {
        let inode = |side| std::fs::metadata(db.file_in(files, side)).map(|meta| meta.ino());
        let open = self.0.lock().unwrap();
        let (main, locks) = open.get(db)?;
        let same = inode(Side::Database).is_ok_and(|inode| inode == *main)
            && inode(Side::Shm).is_ok_and(|inode| inode == locks.shm_inode());
        same.then(|| locks.clone())
    }
}

/// A daemon's descriptors: what it locked stays locked when it dies, whatever its threads do while they end.
struct Mortal {
    locks: Arc<dyn LockFiles>,
    dead: Arc<AtomicBool>,
}

impl LockFiles for Mortal {
    fn database_write_locked(&self) -> io::Result<bool> {
        self.locks.database_write_locked()
    }

    fn database_locked(&self) -> io::Result<bool> {
        self.locks.database_locked()
    }

    fn locked(&self, side: Side, start: u64) -> io::Result<bool> {
        self.locks.locked(side, start)
    }

    fn write_locked(&self, side: Side, start: u64) -> io::Result<bool> {
        self.locks.write_locked(side, start)
    }

    fn try_lock(&self, side: Side, start: u64, len: u64, exclusive: bool) -> io::Result<bool> {
        match self.dead.load(Ordering::SeqCst) {
            true => Ok(false),
            false => self.locks.try_lock(side, start, len, exclusive),
        }
    }

    fn unlock(&self, side: Side, start: u64, len: u64) -> io::Result<()> {
        match self.dead.load(Ordering::SeqCst) {
            true => Ok(()),
            false => self.locks.unlock(side, start, len),
        }
    }

    fn has_shm(&self) -> bool {
        self.locks.has_shm()
    }

    fn shm_inode(&self) -> u64 {
        self.locks.shm_inode()
    }

    fn read_shm(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.locks.read_shm(buf)
    }
}

pub struct TestKernel {
    dead: Arc<AtomicBool>,
    direct: Direct,
    files: PathBuf,
    pub opener: Opener,
    pub coherence: Coherence,
    on_store: Mutex<Option<OnStore>>,
    on_invalidate: Mutex<Option<OnStore>>,
    /// Where SQLite's requests go, as on a mount.
    socket: PathBuf,
}

impl TestKernel {
    pub fn new(files: &Path, coherence: Coherence, socket: PathBuf, opener: Opener) -> TestKernel {
        TestKernel {
            direct: Direct::new(files),
            files: files.to_owned(),
            dead: Arc::default(),
            opener,
            coherence,
            on_store: Mutex::new(None),
            on_invalidate: Mutex::new(None),
            socket,
        }
    }

    /// Called whenever the engine puts bytes into the kernel's cache: for the WAL that is after frames were appended and
    /// before they are published.
    pub fn on_store(&self, run: impl FnMut(Side) + Send + 'static) {
        *self.on_store.lock().unwrap() = Some(Box::new(run));
    }

    /// Called whenever the engine has the kernel forget content: for the main file that is after a transaction was written in place and
    /// before readers are let in again.
    pub fn on_invalidate(&self, run: impl FnMut(Side) + Send + 'static) {
        *self.on_invalidate.lock().unwrap() = Some(Box::new(run));
    }

    /// The daemon is dead: its locks stay as they are.
    pub fn die(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    fn mortal(&self, locks: Arc<dyn LockFiles>) -> Arc<dyn LockFiles> {
        let dead = self.dead.clone();
        Arc::new(Mortal { locks, dead })
    }

    fn sqlite(&self, db: &DbName, sql: &str) -> io::Result<String> {
        let intercepted = self.coherence == Coherence::Intercepted;
        let path = db.file_in(&self.files, Side::Database);
        let client = Client::start(&path, Some((&self.socket, intercepted)));
        client.try_exec(sql).map_err(io::Error::other)
    }
}

impl Kernel for TestKernel {
    fn coherence(&self) -> Coherence {
        self.coherence
    }

    fn open_locks(&self, db: &DbName) -> io::Result<Arc<dyn LockFiles>> {
        let locks = self.opener.open(&self.direct, &self.files, db)?;
        Ok(self.mortal(locks))
    }

    fn kept_locks(&self, db: &DbName) -> io::Result<Option<Arc<dyn LockFiles>>> {
        Ok(self.opener.kept(&self.files, db).map(|locks| self.mortal(locks)))
    }

    /// Clients are known by their locks.
    fn writes_pass_by(&self, _: &DbName) -> bool {
        false
    }

    fn store(&self, _: &DbName, side: Side, _: u64, _: &[u8]) {
        if let Some(run) = &mut *self.on_store.lock().unwrap() {
            run(side);
        }
    }

    fn invalidate(&self, _: &DbName, side: Side, _: Option<(u64, u64)>) {
        if let Some(run) = &mut *self.on_invalidate.lock().unwrap() {
            run(side);
        }
    }

    fn invalidate_entry(&self, _: &DbName, _: Side) {}
    fn invalidate_attributes(&self, _: &Path) {}
    fn invalidate_position(&self, _: &DbName) {}

    fn checkpoint(&self, db: &DbName, mode: CheckpointMode) -> io::Result<CheckpointResult> {
        let mode = match mode {
            CheckpointMode::Passive => "PASSIVE",
            CheckpointMode::Truncate => "TRUNCATE",
        };
        let busy = self.sqlite(
            db,
            &format!("PRAGMA busy_timeout=50; PRAGMA wal_checkpoint({mode})"),
        )?;
        Ok(CheckpointResult {
            busy: busy != "0",
            log: -1,
            checkpointed: -1,
        })
    }
}
