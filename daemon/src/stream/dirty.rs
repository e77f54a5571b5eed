//! Which databases have changed since somebody looked.
//!
//! Any number of changes of one database are one entry, so that a slow reader costs the writer nothing and reads each
//! database once.

use std::collections::BTreeSet;
use std::sync::Arc;

use engine::{DbName, Store};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Changed databases, for one reader.
pub(super) struct Dirty {
    inner: Arc<Inner>,
    /// The store forgets the watcher when this is dropped.
    _watcher: engine::Watcher,
}

#[derive(Default)]
struct Inner {
    names: Mutex<BTreeSet<DbName>>,
    changed: Notify,
}

impl Dirty {
    /// Changes of the store's databases from now on.
    pub(super) fn watch(store: &Store) -> Self {
        let inner = Arc::new(Inner::default());
        let noted = Arc::clone(&inner);
        let watcher: engine::Watcher = Arc::new(move |name: &DbName| {
            // The set is small and the name is usually in it already while a writer is ahead of the reader.
            let mut names = noted.names.lock();
            if !names.contains(name) {
                names.insert(name.clone());
            }
            drop(names);
            noted.changed.notify_one();
        });
        store.watch(&watcher);
        Dirty {
            inner,
            _watcher: watcher,
        }
    }

    /// Adds databases by hand.
    pub(super) fn insert(&self, names: impl IntoIterator<Item = DbName>) {
        self.inner.names.lock().extend(names);
        self.inner.changed.notify_one();
    }

    /// Takes all that changed.
    pub(super) fn take(&self) -> BTreeSet<DbName> {
        std::mem::take(&mut *self.inner.names.lock())
    }

    /// Returns when something may have changed since the last time.
    pub(super) async fn changed(&self) {
        self.inner.changed.notified().await;
    }
}
