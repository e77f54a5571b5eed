//! What the daemon asks of its companions.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine::{CheckpointMode, CheckpointResult};

use super::keeper::Keeper;
use super::opener_link::OpenerLink;
use super::protocol::{Checkpoint, Fence, Outcome, Task};
use super::wire::no_room;
use super::worker::Worker;

/// An open on the mount is answered by our own serving threads; longer means that something is badly stuck.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);
/// How long SQLite waits for locks in a checkpoint that wants everything.
const BUSY: Duration = Duration::from_secs(2);
/// A checkpoint or rollback of a large database takes its time.
const JOB_PATIENCE: Duration = Duration::from_secs(600);
/// What needs no request to the mount is answered at once.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Opener and worker.
pub struct Companion {
    opener: Arc<OpenerLink>,
    worker: Worker,
    next_id: AtomicU64,
}

impl Companion {
    /// Reaches the opener through the keeper, and starts a worker; before the mount is served. `program`: the `litefs` binary.
    pub fn start(keeper: &Arc<Keeper>, program: &Path) -> io::Result<Arc<Companion>> {
        Ok(Arc::new(Companion {
            opener: OpenerLink::connect(keeper.clone())?,
            worker: Worker::start(program)?,
            next_id: AtomicU64::new(1),
        }))
    }

    /// Whether a request comes from the opener, on the daemon's behalf.
    pub(crate) fn is_opener(&self, thread: u32) -> bool {
        self.opener.is_thread(thread)
    }

    /// Files of the mount that the opener kept for an earlier daemon, by path. Asks nothing of the mount.
    pub(crate) fn inherit(&self) -> io::Result<Vec<(PathBuf, OpenedFile)>> {
        let (mut inherited, mut after) = (Vec::new(), 0);
        loop {
            let id = self.id();
            let answer = self.opener.ask(id, &Task::Inherit { after }, ANSWER_PATIENCE)?;
            let (path, inode, fence, descriptor) = match answer {
                (Outcome::Kept { path, inode, fence }, Some(descriptor)) => (path, inode, fence, descriptor),
                // To go on without it would be to go on without its locks.
                (Outcome::Kept { .. }, None) => return Err(no_room()),
                (_, _) => return Ok(inherited),
            };
            after = inode;
            let opened = self.opened(id, descriptor, inode, fence, &path);
            inherited.push((path, opened));
        }
    }

    /// What the opener kept for an earlier daemon, and this one did not ask for again, can go.
    pub fn settled(&self) {
        self.opener.tell(&Task::Settled);
    }

    /// Ends the worker, which has files of the mount open now and then.
    pub fn stop_worker(&self) {
        self.worker.stop(STOP_PATIENCE);
    }

    pub(crate) fn open_database(&self, path: &Path) -> io::Result<OpenedFile> {
        self.open(path, false, Fence::Database)
    }

    /// Opens the wal-index, creating an empty one if there is none.
    pub(crate) fn open_shm(&self, path: &Path) -> io::Result<OpenedFile> {
        self.open(path, true, Fence::Shm)
    }

    /// Opens the wal-index of a client, so that it can be fenced when nobody serves the mount.
    pub(crate) fn open_existing_shm(&self, path: &Path) -> io::Result<OpenedFile> {
        self.open(path, false, Fence::Shm)
    }

    fn open(&self, path: &Path, create: bool, fence: Fence) -> io::Result<OpenedFile> {
        let id = self.id();
        let task = Task::Open {
            path: path.to_owned(),
            create,
            fence,
        };
        let answer = self.opener.ask(id, &task, OPEN_PATIENCE).inspect_err(|_| {
            // Should it still be opened, it must not be kept.
            self.opener.close(id);
        });
        match answer? {
            (Outcome::Opened { inode }, Some(descriptor)) => {
                Ok(self.opened(id, descriptor, inode, fence, path))
            }
            (Outcome::Opened { .. }, None) => {
                self.opener.close(id);
                Err(no_room())
            }
            (outcome, _) => Err(unexpected(outcome, path)),
        }
    }

    fn opened(&self, id: u64, descriptor: OwnedFd, inode: u64, fence: Fence, path: &Path) -> OpenedFile {
        let file = Arc::new(File::from(descriptor));
        self.opener.keep(id, &file, inode, fence, path.to_owned());
        OpenedFile {
            file,
            inode,
            id,
            opener: self.opener.clone(),
        }
    }

    pub(crate) fn checkpoint(&self, path: &Path, mode: CheckpointMode) -> io::Result<CheckpointResult> {
        let (mode, busy) = match mode {
            CheckpointMode::Passive => (Checkpoint::Passive, Duration::ZERO),
            CheckpointMode::Truncate => (Checkpoint::Truncate, BUSY),
        };
        let task = Task::Checkpoint {
            path: path.to_owned(),
            mode,
            busy_ms: busy.as_millis() as u64,
        };
        match self.worker.ask(self.id(), &task, JOB_PATIENCE)? {
            (
                Outcome::Checkpointed {
                    busy,
                    log,
                    checkpointed,
                },
                _,
            ) => Ok(CheckpointResult {
                busy,
                log,
                checkpointed,
            }),
            (outcome, _) => Err(unexpected(outcome, path)),
        }
    }

    fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        self.stop_worker();
    }
}

/// A file of the mount that the opener opened for us. Used for locking only: any read or write would be a request to ourselves.
pub(crate) struct OpenedFile {
    pub(crate) file: Arc<File>,
    pub(crate) inode: u64,
    id: u64,
    opener: Arc<OpenerLink>,
}

impl Drop for OpenedFile {
    fn drop(&mut self) {
        self.opener.close(self.id);
    }
}

fn unexpected(outcome: Outcome, path: &Path) -> io::Error {
    match outcome {
        Outcome::Failed {
            errno: Some(errno), ..
        } => io::Error::from_raw_os_error(errno),
        Outcome::Failed { errno: None, message } => {
            io::Error::other(format!("{}: {message}", path.display()))
        }
        other => io::Error::other(format!("{}: unexpected answer {other:?}", path.display())),
    }
}
