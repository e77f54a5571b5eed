//! Checkpoints of WALs that apply fills: SQLite itself runs them, in a process of its own, whenever readers allow.
//!
//! What rests in a WAL costs readers: the kernel asks for each of its pages. So what was applied moves to the main file soon, and a long WAL
//! at once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::kernel::{CheckpointMode, Coherence, Kernel};
use crate::name::DbName;

/// How long a transaction rests in the WAL. Longer costs readers more, shorter costs the node more checkpoints, each with its syncs.
const REST: Duration = Duration::from_secs(1);

/// Databases whose WAL is to be checkpointed.
#[derive(Debug, Default)]
pub(crate) struct Checkpointer {
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Wanted {
    names: BTreeMap<DbName, Job>,
    closed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Job {
    at: Instant,
    /// The WAL is long: it should start over.
    long: bool,
    /// Nobody was connected. What a checkpoint announces in the wal-index is gone with the connection that made it.
    alone: bool,
}

impl Wanted {
    /// The job that is due, or when to look again. Without a job: when told.
    fn next(&mut self, now: Instant) -> Result<(DbName, Job), Option<Instant>> {
        let first = self.names.iter().min_by_key(|(_, job)| job.at);
        let Some((name, job)) = first.map(|(name, job)| (name.clone(), *job)) else {
            return Err(None);
        };
        if job.at > now {
            return Err(Some(job.at));
        }
        self.names.remove(&name);
        Ok((name, job))
    }
}

impl Checkpointer {
    /// Transactions were applied: asks for a checkpoint, at once if the WAL is `long`, without waiting for it.
    pub(crate) fn request(&self, name: &DbName, long: bool, alone: bool) {
        let now = Instant::now();
        let job = Job {
            at: if long { now } else { now + REST },
            long,
            alone,
        };
        let mut wanted = self.wanted.lock();
        match wanted.names.get_mut(name) {
            Some(known) if known.long || !long => return,
            Some(known) => *known = job,
            None => {
                wanted.names.insert(name.clone(), job);
            }
        }
        self.changed.notify_one();
    }

    /// The database is gone.
    pub(crate) fn forget(&self, name: &DbName) {
        self.wanted.lock().names.remove(name);
    }

    /// Ends [`Checkpointer::run`].
    pub(crate) fn close(&self) {
        self.wanted.lock().closed = true;
        self.changed.notify_one();
    }

    /// The next database that is due; `None` once closed.
    fn next(&self) -> Option<(DbName, Job)> {
        let mut wanted = self.wanted.lock();
        while !wanted.closed {
            match wanted.next(Instant::now()) {
                Ok(due) => return Some(due),
                Err(Some(at)) => {
                    self.changed.wait_until(&mut wanted, at);
                }
                Err(None) => self.changed.wait(&mut wanted),
            }
        }
        None
    }

    /// Runs checkpoints until closed, on a thread of its own.
    pub(crate) fn run(&self, kernel: impl Fn() -> std::sync::Arc<dyn Kernel>) {
        while let Some((name, job)) = self.next() {
            let kernel = kernel();
            // Where the wal-index cannot be seen, or does not stay, only a truncated WAL tells that it may start over.
            let unseen = job.alone || kernel.coherence() == Coherence::Intercepted;
            let mode = match job.long && unseen {
                true => CheckpointMode::Truncate,
                false => CheckpointMode::Passive,
            };
            match kernel.checkpoint(&name, mode) {
                Ok(result) => tracing::debug!(db = %name, ?result, "checkpoint"),
                // A client that opens or closes the database holds the locks for a moment; the next transaction asks again.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    tracing::debug!(db = %name, %error, "checkpoint put off");
                }
                Err(error) => tracing::warn!(db = %name, %error, "checkpoint failed"),
            }
        }
    }
}
