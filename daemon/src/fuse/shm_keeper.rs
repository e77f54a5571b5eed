//! Makes sure that the opener can fence every database that is written through passthrough.
//!
//! Commits to a passthrough WAL go on when the daemon dies. The opener stops them, when it must, with the lock WAL_WRITE, for which it needs
//! the wal-index open beforehand: nothing can be opened while nobody serves the mount. So whenever a client opens a wal-index, the opener opens it too, and lets go of it
//! when its name goes. A thread of its own asks the opener, because the opener waits for our serving threads.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::backing;
use super::node::Node;
use crate::companion::{Companion, OpenedFile};

/// A second in all.
const ATTEMPTS: u32 = 1000;
const PAUSE: Duration = Duration::from_millis(1);

pub(crate) struct ShmKeeper {
    shared: Arc<Shared>,
    /// Paths relative to the mount.
    queue: Mutex<Queue>,
}

enum Queue {
    /// The thread has yet to be started; what is asked for waits.
    Waiting(Sender<PathBuf>, Receiver<PathBuf>),
    Served(Sender<PathBuf>),
    /// The mount ends.
    Closed,
}

struct Shared {
    files_dir: PathBuf,
    kept: Mutex<HashMap<u64, OpenedFile>>,
}

impl ShmKeeper {
    pub(crate) fn new(files_dir: PathBuf) -> ShmKeeper {
        let shared = Arc::new(Shared {
            files_dir,
            kept: Mutex::default(),
        });
        let (queue, paths) = channel();
        ShmKeeper {
            shared,
            queue: Mutex::new(Queue::Waiting(queue, paths)),
        }
    }

    /// Starts the thread that asks the opener.
    pub(crate) fn spawn(&self, companion: Arc<Companion>, mount: PathBuf) -> io::Result<()> {
        let mut state = self.queue.lock();
        if let Queue::Waiting(queue, paths) = std::mem::replace(&mut *state, Queue::Closed) {
            let shared = self.shared.clone();
            thread::Builder::new()
                .name("shm-keeper".into())
                .spawn(move || shared.run(&companion, &mount, paths))?;
            *state = Queue::Served(queue);
        }
        Ok(())
    }

    /// A client opens a wal-index.
    pub(crate) fn opened(&self, node: &Node) {
        if self.shared.kept.lock().contains_key(&node.id()) {
            return;
        }
        match &*self.queue.lock() {
            Queue::Waiting(queue, _) | Queue::Served(queue) => {
                // The thread lives as long as the queue.
                let _ = queue.send(backing::to_path(&node.path()));
            }
            Queue::Closed => {}
        }
    }

    /// The name of an inode is gone. Closing the descriptor sends the daemon a request for which nobody waits.
    pub(crate) fn lost_name(&self, inode: u64) {
        let gone = self.shared.kept.lock().remove(&inode);
        drop(gone);
    }

    /// Ends the thread and closes what is kept: the session ends only when nobody has files of the mount open.
    pub(crate) fn stop(&self) {
        *self.queue.lock() = Queue::Closed;
        let kept = std::mem::take(&mut *self.shared.kept.lock());
        drop(kept);
    }
}

impl Shared {
    fn run(&self, companion: &Companion, mount: &Path, paths: Receiver<PathBuf>) {
        for path in paths {
            match self.open(companion, mount, &path) {
                Ok(Some(opened)) => self.keep(&path, opened),
                // Gone again: short connections create and remove it.
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "this database could not be fenced if the daemon died");
                }
            }
        }
    }

    /// The request that creates a wal-index is answered after we hear of it, and until then the kernel remembers that there is none.
    fn open(&self, companion: &Companion, mount: &Path, path: &Path) -> io::Result<Option<OpenedFile>> {
        for _ in 0..ATTEMPTS {
            match companion.open_existing_shm(&mount.join(path)) {
                Ok(opened) => return Ok(Some(opened)),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Err(_) if !self.files_dir.join(path).exists() => return Ok(None),
                Err(_) => thread::sleep(PAUSE),
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    fn keep(&self, path: &Path, opened: OpenedFile) {
        use std::os::unix::fs::MetadataExt;
        let inode = opened.inode;
        let doubled = self.kept.lock().insert(inode, opened);
        drop(doubled);
        // Its name may have gone before it was kept; then nobody else will let go of it.
        let current = std::fs::symlink_metadata(self.files_dir.join(path)).map_or(0, |stat| stat.ino());
        if current != inode {
            let gone = self.kept.lock().remove(&inode);
            drop(gone);
        }
    }
}
