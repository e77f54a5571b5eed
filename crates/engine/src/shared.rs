//! What all databases of a store have in common.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};

use crate::apply::checkpoint::Checkpointer;
use crate::database::settle::Settler;
use crate::event::Events;
use crate::kernel::Kernel;
use crate::name::DbName;
use crate::options::{Role, StoreOptions};
use crate::repeats::Repeats;
use crate::tree::Tree;

pub(crate) struct Shared {
    /// The data directory.
    pub(crate) dir: PathBuf,
    /// The backing tree.
    pub(crate) files: Tree,
    pub(crate) options: StoreOptions,
    pub(crate) events: Events,
    pub(crate) changes: Changes,
    /// Databases that a failure of the disk closed for writing.
    pub(crate) failures: Changes,
    pub(crate) settler: Settler,
    pub(crate) repeats: Repeats,
    pub(crate) checkpointer: Checkpointer,
    pub(crate) role: RwLock<Role>,
    /// Whether `role` is the primary's, for those who ask on every request.
    pub(crate) primary: AtomicBool,
    pub(crate) kernel: RwLock<Arc<dyn Kernel>>,
    pub(crate) closed: Mutex<bool>,
    pub(crate) closing: Condvar,
}

impl Shared {
    pub(crate) fn is_primary(&self) -> bool {
        self.primary.load(Ordering::Acquire)
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.lock()
    }

    /// Ends the threads.
    pub(crate) fn close(&self) {
        *self.closed.lock() = true;
        self.closing.notify_all();
    }

    /// Waits; `false` if the store was closed meanwhile.
    pub(crate) fn wait_closed(&self, pause: Duration) -> bool {
        let mut closed = self.closed.lock();
        if !*closed {
            self.closing.wait_for(&mut closed, pause);
        }
        !*closed
    }

    pub(crate) fn kernel(&self) -> Arc<dyn Kernel> {
        self.kernel.read().clone()
    }
}

/// Who is told that a database has a new position, or a new record in its log.
pub type Watcher = Arc<dyn Fn(&DbName) + Send + Sync>;

type WeakWatcher = Weak<dyn Fn(&DbName) + Send + Sync>;

/// The watchers of a store.
#[derive(Default)]
pub(crate) struct Changes {
    watchers: Mutex<Vec<WeakWatcher>>,
}

impl Changes {
    pub(crate) fn watch(&self, watcher: &Watcher) {
        self.watchers.lock().push(Arc::downgrade(watcher));
    }

    /// Tells everybody; who was dropped is forgotten.
    pub(crate) fn notify(&self, name: &DbName) {
        self.watchers.lock().retain(|watcher| match watcher.upgrade() {
            Some(watcher) => {
                watcher(name);
                true
            }
            None => false,
        });
    }
}
