//! Checkpoints of WALs that apply fills: SQLite itself runs them, in a process of its own, whenever readers allow.

use std::collections::BTreeSet;

use parking_lot::{Condvar, Mutex};

use crate::kernel::{CheckpointMode, Coherence, Kernel};
use crate::name::DbName;

/// Databases whose WAL is long.
#[derive(Debug, Default)]
pub(crate) struct Checkpointer {
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Wanted {
    names: BTreeSet<DbName>,
    closed: bool,
}

impl Checkpointer {
    /// Asks for a checkpoint, without waiting for it.
    pub(crate) fn request(&self, name: &DbName) {
        if self.wanted.lock().names.insert(name.clone()) {
            self.changed.notify_one();
        }
    }

    /// Ends [`Checkpointer::run`].
    pub(crate) fn close(&self) {
        self.wanted.lock().closed = true;
        self.changed.notify_one();
    }

    /// Runs checkpoints until closed, on a thread of its own.
    pub(crate) fn run(&self, kernel: impl Fn() -> std::sync::Arc<dyn Kernel>) {
        loop {
            let name = {
                let mut wanted = self.wanted.lock();
                while wanted.names.is_empty() && !wanted.closed {
                    self.changed.wait(&mut wanted);
                }
                if wanted.closed {
                    return;
                }
                let Some(name) = wanted.names.pop_first() else {
                    continue;
                };
                name
            };
            let kernel = kernel();
            // Where the wal-index cannot be seen, only a truncated WAL tells that it may start over.
            let mode = match kernel.coherence() {
                Coherence::Passthrough => CheckpointMode::Passive,
                Coherence::Intercepted => CheckpointMode::Truncate,
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
