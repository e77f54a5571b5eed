//! What the daemon asks of its companions.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine::{CheckpointMode, CheckpointResult};

use super::DataLock;
use super::helper::{Helper, Part};
use super::protocol::{Checkpoint, Fence, Outcome, Task};

/// An open on the mount is answered by our own serving threads; longer means that something is badly stuck.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);
/// How long SQLite waits for locks in a checkpoint that wants everything, and in a recovery.
const BUSY: Duration = Duration::from_secs(2);
/// A checkpoint or rollback of a large database takes its time.
const JOB_PATIENCE: Duration = Duration::from_secs(600);
const STOP_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct CompanionOptions {
    /// The `litefs` binary.
    pub program: PathBuf,
}

impl Default for CompanionOptions {
    fn default() -> Self {
        CompanionOptions {
            program: PathBuf::from("/proc/self/exe"),
        }
    }
}

/// The two companion processes.
pub struct Companion {
    opener: Arc<Helper>,
    worker: Helper,
    next_id: AtomicU64,
}

impl Companion {
    /// Starts both processes; to be called before the mount exists. The opener shares `lock` and keeps it beyond the daemon's sudden death
    /// until no client can commit on the dead mount any more.
    pub fn start(lock: &DataLock, options: &CompanionOptions) -> io::Result<Arc<Companion>> {
        let shared = lock.as_fd().try_clone_to_owned()?;
        Ok(Arc::new(Companion {
            opener: Arc::new(Helper::start(Part::Opener, &options.program, Some(shared))?),
            worker: Helper::start(Part::Worker, &options.program, None)?,
            next_id: AtomicU64::new(1),
        }))
    }

    /// Whether a request comes from the opener. It has one thread, so the kernel's process number is the process's.
    pub(crate) fn is_opener(&self, pid: u32) -> bool {
        self.opener.is_process(pid)
    }

    /// Ends both processes in good order; after the engine was closed, before the mount is detached.
    pub fn stop(&self) {
        self.worker.stop(STOP_PATIENCE);
        self.opener.stop(STOP_PATIENCE);
    }

    pub(crate) fn open_database(&self, path: &Path) -> io::Result<OpenedFile> {
        self.open(path, false, Fence::Database)
    }

    /// Opens the wal-index, creating an empty one if there is none.
    pub(crate) fn open_shm(&self, path: &Path) -> io::Result<OpenedFile> {
        self.open(path, true, Fence::Shm)
    }

    /// Opens the wal-index of a client, for the guardian's sake.
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
            // Should it still be opened, the guardian must not keep it.
            close_in_opener(&self.opener, id);
        });
        match answer? {
            (Outcome::Opened { inode }, Some(descriptor)) => Ok(OpenedFile {
                file: File::from(descriptor),
                inode,
                id,
                opener: self.opener.clone(),
            }),
            (outcome, _) => Err(unexpected(outcome, path)),
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

    pub(crate) fn recover(&self, path: &Path) -> io::Result<()> {
        let task = Task::Recover {
            path: path.to_owned(),
            busy_ms: BUSY.as_millis() as u64,
        };
        match self.worker.ask(self.id(), &task, JOB_PATIENCE)? {
            (Outcome::Recovered, _) => Ok(()),
            (outcome, _) => Err(unexpected(outcome, path)),
        }
    }

    fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A file of the mount that the opener opened for us. Used for locking only: any read or write would be a request to ourselves.
pub(crate) struct OpenedFile {
    pub(crate) file: File,
    pub(crate) inode: u64,
    id: u64,
    opener: Arc<Helper>,
}

impl Drop for OpenedFile {
    fn drop(&mut self) {
        close_in_opener(&self.opener, self.id);
    }
}

/// The opener's duplicate would keep our locks alive.
fn close_in_opener(opener: &Helper, id: u64) {
    if let Err(error) = opener.tell(0, Task::Close { ids: vec![id] }) {
        tracing::debug!(%error, "close a file in the opener");
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
