//! Open files: what the kernel's file handle numbers stand for.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::node::Node;
use super::virtual_files::Virtual;

pub(crate) enum Handle {
    File(OpenFile),
    Virtual(OpenVirtual),
}

/// A handle of a file of the backing tree.
pub(crate) struct OpenFile {
    pub(crate) node: Arc<Node>,
    /// Open for writing whenever the client's handle is.
    pub(crate) file: File,
    pub(crate) writable: bool,
    /// WRITE requests came that no transaction may account for; looked at when the handle closes.
    pub(crate) wrote: AtomicBool,
}

/// A handle of `.primary`, `.lag`, `NAME-pos` or `NAME-lock`. The text is taken when reading starts, so that a reader never sees two halves.
pub(crate) struct OpenVirtual {
    pub(crate) file: Virtual,
    pub(crate) text: Mutex<Vec<u8>>,
}

#[derive(Default)]
pub(crate) struct Handles {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<Handle>>>,
}

impl Handles {
    pub(crate) fn insert(&self, handle: Handle) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.write().insert(number, Arc::new(handle));
        number
    }

    pub(crate) fn get(&self, number: u64) -> Option<Arc<Handle>> {
        self.open.read().get(&number).cloned()
    }

    pub(crate) fn len(&self) -> usize {
        self.open.read().len()
    }

    pub(crate) fn remove(&self, number: u64) -> Option<Arc<Handle>> {
        self.open.write().remove(&number)
    }
}
