//! What the engine asks of the mount: locks, the page cache, and work that needs SQLite.
//!
//! Notifications to the kernel wait for page locks, which a client holds while its request is being served. A thread that serves requests
//! must therefore not send one; it leaves it to the thread `notify`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use engine::{CheckpointMode, CheckpointResult, Coherence, DbName, Kernel, LockFiles, Side, Store};
use fuser::{INodeNo, Notifier};
use parking_lot::Mutex;

use super::edge::Edge;
use super::node::ROOT;
use crate::companion::{self, Companion, OpenedFile};

/// The kernel copies a stored range page by page and refuses more than it asked to be told at once.
const STORE_CHUNK: usize = 1 << 20;
/// Pause between two attempts to tell of an inode whose LOOKUP is being answered.
const ANSWER: Duration = Duration::from_micros(50);
/// How long such an answer may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) struct MountKernel {
    edge: Arc<Edge>,
    companion: Arc<Companion>,
    path: PathBuf,
    notices: Notices,
    /// Lock files that the engine still holds, to be handed out again while the files are the same.
    locks: Mutex<HashMap<DbName, Weak<MountLocks>>>,
    /// Lock files of an earlier daemon, which the engine has not asked for yet.
    inherited: Mutex<HashMap<DbName, Arc<MountLocks>>>,
}

impl MountKernel {
    pub(crate) fn new(
        edge: Arc<Edge>,
        notifier: Notifier,
        companion: Arc<Companion>,
        path: PathBuf,
    ) -> MountKernel {
        MountKernel {
            notices: Notices::new(notifier, edge.clone()),
            edge,
            companion,
            path,
            locks: Mutex::default(),
            inherited: Mutex::default(),
        }
    }

    /// Takes over what the opener kept for an earlier daemon.
    pub(crate) fn inherit_locks(&self) -> io::Result<()> {
        let mut inherited = self.inherited.lock();
        for (path, opened) in self.companion.inherit()? {
            let relative = path.strip_prefix(&self.path).ok();
            let part = relative.and_then(|path| self.edge.classify(path.as_os_str().as_bytes()));
            let Some((db, side)) = part else { continue };
            let current = inode_at(&db.file_in(&self.edge.files_dir, side));
            if current != Some(opened.inode) {
                continue;
            }
            let locks = inherited
                .entry(db.clone())
                .or_insert_with(|| Arc::new(self.new_locks(&db)));
            let place = match side {
                Side::Database => &locks.database,
                Side::Shm => &locks.shm,
                Side::Journal | Side::Wal => continue,
            };
            // One description an inode, and the inode is the current one.
            let _ = place.set(opened);
        }
        Ok(())
    }

    fn new_locks(&self, db: &DbName) -> MountLocks {
        MountLocks {
            companion: self.companion.clone(),
            store: self.edge.store.clone(),
            db: db.clone(),
            path: db.file_in(&self.path, Side::Database),
            backing: db.file_in(&self.edge.files_dir, Side::Database),
            database: OnceLock::new(),
            shm_path: db.file_in(&self.path, Side::Shm),
            shm_backing: db.file_in(&self.edge.files_dir, Side::Shm),
            shm: OnceLock::new(),
        }
    }

    /// The node of a file if the kernel knows it, and whether clients reach the backing file's own pages.
    fn known(&self, db: &DbName, side: Side) -> Option<(u64, bool)> {
        let inode = std::fs::symlink_metadata(db.file_in(&self.edge.files_dir, side))
            .ok()?
            .ino();
        let node = self.edge.table.by_inode(inode)?;
        Some((inode, node.is_passthrough()))
    }

    fn dir_id(&self, path: &Path) -> Option<u64> {
        match path.parent() {
            None => Some(ROOT),
            Some(dir) if dir.as_os_str().is_empty() => Some(ROOT),
            Some(dir) => {
                let inode = std::fs::symlink_metadata(self.edge.files_dir.join(dir))
                    .ok()?
                    .ino();
                self.edge.table.by_inode(inode).map(|node| node.id())
            }
        }
    }
}

impl Kernel for MountKernel {
    fn coherence(&self) -> Coherence {
        self.edge.coherence()
    }

    fn open_locks(&self, db: &DbName) -> io::Result<Arc<dyn LockFiles>> {
        let known = self.locks.lock().get(db).and_then(Weak::upgrade);
        if let Some(locks) = known.filter(|locks| locks.are_current()) {
            locks.file(Side::Database)?;
            return Ok(locks);
        }
        refuse_on_serving_thread("open_locks")?;
        let locks = Arc::new(self.new_locks(db));
        locks.file(Side::Database)?;
        self.locks.lock().insert(db.clone(), Arc::downgrade(&locks));
        Ok(locks)
    }

    fn kept_locks(&self, db: &DbName) -> io::Result<Option<Arc<dyn LockFiles>>> {
        let Some(locks) = self.inherited.lock().remove(db) else {
            return Ok(None);
        };
        self.locks.lock().insert(db.clone(), Arc::downgrade(&locks));
        Ok(Some(locks))
    }

    fn writes_pass_by(&self, db: &DbName) -> bool {
        let wal = inode_at(&db.file_in(&self.edge.files_dir, Side::Wal));
        wal.and_then(|inode| self.edge.table.by_inode(inode))
            .is_some_and(|node| node.is_written_past())
    }

    fn store(&self, db: &DbName, side: Side, offset: u64, data: &[u8]) {
        let Some((id, passthrough)) = self.known(db, side) else {
            return;
        };
        if passthrough {
            return self.notices.send(Notice::Attributes { id });
        }
        if self.edge.is_unreadable(id) {
            return self.notices.send(Notice::Pages {
                id,
                offset: offset as i64,
                length: data.len() as i64,
            });
        }
        for (index, chunk) in data.chunks(STORE_CHUNK).enumerate() {
            let offset = offset + (index * STORE_CHUNK) as u64;
            self.notices.store(id, offset, chunk);
        }
    }

    fn invalidate(&self, db: &DbName, side: Side, range: Option<(u64, u64)>) {
        let Some((id, passthrough)) = self.known(db, side) else {
            return;
        };
        self.notices.send(match range {
            _ if passthrough => Notice::Attributes { id },
            None => Notice::Pages {
                id,
                offset: 0,
                length: 0,
            },
            Some((offset, length)) => Notice::Pages {
                id,
                offset: offset as i64,
                length: length as i64,
            },
        });
    }

    fn invalidate_entry(&self, db: &DbName, side: Side) {
        for node in self.edge.table.by_part(db, side) {
            if node.lost_its_name() {
                // The engine removed it, without a request.
                self.edge.loses_name(&node);
                node.detach_name();
            }
        }
        let path = db.file(side);
        let (Some(parent), Some(name)) = (self.dir_id(&path), path.file_name()) else {
            return;
        };
        self.notices.send(Notice::Name {
            parent,
            name: name.as_bytes().to_vec(),
        });
    }

    fn invalidate_attributes(&self, relative: &Path) {
        let inode = inode_at(&self.edge.files_dir.join(relative));
        if let Some(node) = inode.and_then(|inode| self.edge.table.by_inode(inode)) {
            self.notices.send(Notice::Attributes { id: node.id() });
        }
    }

    fn invalidate_position(&self, _db: &DbName) {
        // Reads of NAME-pos bypass the page cache and its attributes are never remembered.
    }

    fn checkpoint(&self, db: &DbName, mode: CheckpointMode) -> io::Result<CheckpointResult> {
        refuse_on_serving_thread("checkpoint")?;
        self.companion
            .checkpoint(&db.file_in(&self.path, Side::Database), mode)
    }
}

/// Locks of the daemon on files of the mount, through descriptors that the opener opened.
///
/// The wal-index is opened, and created if need be, when it is first locked: a database in a rollback mode has none and must not get one.
struct MountLocks {
    companion: Arc<Companion>,
    store: Arc<Store>,
    db: DbName,
    path: PathBuf,
    backing: PathBuf,
    database: OnceLock<OpenedFile>,
    shm_path: PathBuf,
    shm_backing: PathBuf,
    shm: OnceLock<OpenedFile>,
}

impl MountLocks {
    fn file(&self, side: Side) -> io::Result<&File> {
        let (place, operation) = match side {
            Side::Database | Side::Journal | Side::Wal => (&self.database, "open the main file"),
            Side::Shm => (&self.shm, "open the wal-index"),
        };
        if let Some(opened) = place.get() {
            return Ok(&opened.file);
        }
        refuse_on_serving_thread(operation)?;
        let opened = match side {
            Side::Database | Side::Journal | Side::Wal => self.companion.open_database(&self.path)?,
            Side::Shm => self.open_shm()?,
        };
        Ok(&place.get_or_init(|| opened).file)
    }

    /// The file, to ask about it and not to lock it; `None`: there is no wal-index, and asking must not leave one behind the last client,
    /// who has just removed it. A thread that serves the mount can ask only what is open already.
    fn file_to_ask(&self, side: Side) -> io::Result<Option<&File>> {
        if let Some(file) = self.open_file(side) {
            return Ok(Some(file));
        }
        if is_serving_thread() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if side != Side::Shm {
            return self.file(side).map(Some);
        }
        match self.companion.open_existing_shm(&self.shm_path) {
            Ok(opened) => Ok(Some(&self.shm.get_or_init(|| opened).file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether somebody has a lock of any kind there, or an exclusive one only.
    fn is_locked(&self, side: Side, start: u64, len: u64, exclusive_only: bool) -> io::Result<bool> {
        if side == Side::Shm && self.shm.get().is_none() && !self.shm_backing.exists() {
            return Ok(false);
        }
        match self.file_to_ask(side)? {
            Some(file) => companion::is_locked(file.as_fd(), start, len, exclusive_only),
            None => Ok(false),
        }
    }

    /// The file if it is open: without having opened it nobody holds a lock of ours.
    fn open_file(&self, side: Side) -> Option<&File> {
        let place = match side {
            Side::Database | Side::Journal | Side::Wal => &self.database,
            Side::Shm => &self.shm,
        };
        place.get().map(|opened| &*opened.file)
    }

    /// A wal-index that the opener, who is root, made would keep other users out: one with the database's owner is made first. A
    /// database that is gone gets none.
    fn open_shm(&self) -> io::Result<OpenedFile> {
        self.store.create_side_file(&self.db, Side::Shm)?;
        if inode_at(&self.shm_backing).is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.companion.open_shm(&self.shm_path)
    }

    /// Whether the files are still those that were opened.
    fn are_current(&self) -> bool {
        let current = |place: &OnceLock<OpenedFile>, backing: &Path| {
            place
                .get()
                .is_none_or(|opened| Some(opened.inode) == inode_at(backing))
        };
        current(&self.database, &self.backing) && current(&self.shm, &self.shm_backing)
    }
}

/// Inode number of a backing file, if there is one.
pub(crate) fn inode_at(path: &Path) -> Option<u64> {
    std::fs::symlink_metadata(path).ok().map(|stat| stat.ino())
}

impl LockFiles for MountLocks {
    fn database_write_locked(&self) -> io::Result<bool> {
        self.is_locked(Side::Database, 0, 0, true)
    }

    fn database_locked(&self) -> io::Result<bool> {
        self.is_locked(Side::Database, 0, 0, false)
    }

    fn locked(&self, side: Side, start: u64) -> io::Result<bool> {
        self.is_locked(side, start, 1, false)
    }

    fn write_locked(&self, side: Side, start: u64) -> io::Result<bool> {
        self.is_locked(side, start, 1, true)
    }

    fn try_lock(&self, side: Side, start: u64, len: u64, exclusive: bool) -> io::Result<bool> {
        companion::try_lock(self.file(side)?.as_fd(), start, len, exclusive)
    }

    fn unlock(&self, side: Side, start: u64, len: u64) -> io::Result<()> {
        match self.open_file(side) {
            Some(file) => companion::unlock(file.as_fd(), start, len),
            None => Ok(()),
        }
    }

    fn read_shm(&self, buf: &mut [u8]) -> io::Result<usize> {
        refuse_on_serving_thread("read the wal-index")?;
        match self.file_to_ask(Side::Shm)? {
            Some(file) => file.read_at(buf, 0),
            None => Ok(0),
        }
    }

    fn has_shm(&self) -> bool {
        self.open_file(Side::Shm).is_some()
    }

    fn shm_inode(&self) -> u64 {
        match self.shm.get() {
            Some(shm) => shm.inode,
            // Not opened yet: whatever is there will be the one.
            None => inode_at(&self.shm_backing).unwrap_or(0),
        }
    }
}

/// A message to the kernel about something the daemon changed behind its back.
enum Notice {
    Attributes {
        id: u64,
    },
    /// Length 0: to the end.
    Pages {
        id: u64,
        offset: i64,
        length: i64,
    },
    Store {
        id: u64,
        offset: u64,
        data: Vec<u8>,
    },
    Name {
        parent: u64,
        name: Vec<u8>,
    },
}

impl Notice {
    fn deliver(&self, addressee: &Addressee) -> io::Result<()> {
        match self {
            Notice::Attributes { id } => addressee.invalidate(*id, -1, 0),
            Notice::Pages { id, offset, length } => addressee.invalidate(*id, *offset, *length),
            Notice::Store { id, offset, data } => addressee.store(*id, *offset, data),
            Notice::Name { parent, name } => addressee
                .notifier
                .inval_entry(INodeNo(*parent), OsStr::from_bytes(name)),
        }
    }
}

/// The kernel, as the one who is told.
#[derive(Clone)]
struct Addressee {
    notifier: Notifier,
    edge: Arc<Edge>,
}

impl Addressee {
    fn store(&self, id: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        self.once_known(id, || self.notifier.store(INodeNo(id), offset, data))
    }

    fn invalidate(&self, id: u64, offset: i64, length: i64) -> io::Result<()> {
        self.once_known(id, || self.notifier.inval_inode(INodeNo(id), offset, length))
    }

    /// Tells the kernel about an inode. One that it does not know although a LOOKUP was answered with it is about to be known, with
    /// attributes from before the change, and would keep them: it is told again until it knows the inode, or has forgotten it.
    fn once_known(&self, id: u64, tell: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let started = Instant::now();
        loop {
            match tell() {
                Err(error)
                    if error.raw_os_error() == Some(libc::ENOENT)
                        && self.edge.table.by_inode(id).is_some()
                        && started.elapsed() < PATIENCE =>
                {
                    thread::sleep(ANSWER);
                }
                told => return told,
            }
        }
    }
}

struct Notices {
    addressee: Addressee,
    /// For threads that may not wait.
    later: Sender<Notice>,
}

impl Notices {
    fn new(notifier: Notifier, edge: Arc<Edge>) -> Notices {
        let addressee = Addressee { notifier, edge };
        let (later, queue) = channel::<Notice>();
        let deliverer = addressee.clone();
        let spawned = thread::Builder::new().name("notify".into()).spawn(move || {
            for notice in queue {
                log_failure(notice.deliver(&deliverer));
            }
        });
        if let Err(error) = spawned {
            tracing::error!(%error, "start the thread `notify`: clients may see outdated pages");
        }
        Notices { addressee, later }
    }

    fn send(&self, notice: Notice) {
        if is_serving_thread() {
            // The receiver lives as long as the mount.
            let _ = self.later.send(notice);
        } else {
            log_failure(notice.deliver(&self.addressee));
        }
    }

    /// Stores bytes in the page cache, without copying them where that is possible.
    fn store(&self, id: u64, offset: u64, data: &[u8]) {
        if is_serving_thread() {
            let _ = self.later.send(Notice::Store {
                id,
                offset,
                data: data.to_vec(),
            });
        } else {
            log_failure(self.addressee.store(id, offset, data));
        }
    }
}

fn log_failure(result: io::Result<()>) {
    match result {
        Ok(()) => {}
        // The mount is being detached, and its page cache goes with it.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENODEV | libc::ENOTCONN | libc::ENOENT)
            ) => {}
        Err(error) => {
            tracing::warn!(%error, "tell the kernel about a change; clients may see outdated pages")
        }
    }
}

/// Threads of the session carry names that start so.
fn is_serving_thread() -> bool {
    thread_local! {
        static SERVING: bool = thread::current().name().is_some_and(|name| name.starts_with("fuser-"));
    }
    SERVING.with(|serving| *serving)
}

/// The daemon never waits for itself.
fn refuse_on_serving_thread(operation: &'static str) -> io::Result<()> {
    if !is_serving_thread() {
        return Ok(());
    }
    tracing::error!(
        operation,
        "refused: a thread that serves the mount must not wait for it"
    );
    Err(io::Error::from_raw_os_error(libc::EDEADLK))
}
