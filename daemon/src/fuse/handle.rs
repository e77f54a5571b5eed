//! Open files: what the kernel's file handle numbers stand for.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use nix::fcntl::OFlag;
use parking_lot::{Mutex, RwLock};

use super::backing;
use super::node::Node;
use super::virtual_files::Virtual;
use crate::ledger::{HandleEntry, HandleSlot, Ledger};

pub(crate) enum Handle {
    File(OpenFile),
    Virtual(OpenVirtual),
}

/// A handle of a file of the backing tree.
pub(crate) struct OpenFile {
    pub(crate) node: Arc<Node>,
    file: File,
    /// The same file, if it could only be read when this daemon took the handle over: a WAL that is immutable so that nobody commits.
    writing: OnceLock<File>,
    access: Access,
    pub(crate) writable: bool,
    /// A client writes through it, and no request says so.
    pub(crate) writes_past: bool,
    wrote: Wrote,
}

/// How the daemon's own descriptor of a handle is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// As the client's handle, at least.
    AsAsked,
    /// For reading, although the client may write, for as long as the file is immutable.
    ReadOnly,
}

/// A handle of `.primary`, `.lag`, `NAME-pos` or `NAME-lock`. The text is taken when reading starts, so that a reader never sees two halves.
pub(crate) struct OpenVirtual {
    pub(crate) file: Virtual,
    pub(crate) text: Mutex<Vec<u8>>,
}

/// WRITE requests came that no transaction may account for; looked at when the handle closes.
struct Wrote {
    flag: AtomicBool,
    ledger: Arc<Ledger>,
    slot: Option<HandleSlot>,
}

/// Who opens a file, and how.
pub(crate) struct Opening {
    pub(crate) process: u32,
    /// On behalf of the daemon.
    pub(crate) ours: bool,
}

pub(crate) struct Handles {
    ledger: Arc<Ledger>,
    open: RwLock<HashMap<u64, Known>>,
}

/// A handle, and where the ledger has it.
type Known = (Arc<Handle>, Option<HandleSlot>);

impl OpenFile {
    /// Open for writing whenever the client's handle is and the file can be written.
    pub(crate) fn file(&self) -> &File {
        match (self.access, self.writing.get()) {
            (Access::AsAsked, _) => &self.file,
            (Access::ReadOnly, Some(file)) => file,
            (Access::ReadOnly, None) => match backing::reopen(self.node.fd(), OFlag::O_RDWR) {
                Ok(file) => self.writing.get_or_init(|| file),
                Err(_) => &self.file,
            },
        }
    }

    /// Before a write that may be a part of no transaction.
    pub(crate) fn note_write(&self) {
        if !self.wrote.flag.swap(true, Ordering::Relaxed) {
            self.wrote.tell(true);
        }
    }

    /// Whether there was one since the last call.
    pub(crate) fn take_wrote(&self) -> bool {
        let wrote = self.wrote.flag.swap(false, Ordering::Relaxed);
        if wrote {
            self.wrote.tell(false);
        }
        wrote
    }
}

impl Wrote {
    fn tell(&self, wrote: bool) {
        if let Some(slot) = self.slot {
            self.ledger.set_wrote(slot, wrote);
        }
    }
}

impl Handles {
    pub(crate) fn new(ledger: Arc<Ledger>) -> Handles {
        Handles {
            ledger,
            open: RwLock::default(),
        }
    }

    pub(crate) fn insert_file(
        &self,
        node: Arc<Node>,
        file: File,
        (writable, writes_past): (bool, bool),
        opening: &Opening,
    ) -> u64 {
        let (number, slot) = self.note(node.id(), writable, opening);
        let wrote = Wrote {
            flag: AtomicBool::new(false),
            ledger: self.ledger.clone(),
            slot,
        };
        let open = OpenFile {
            node,
            file,
            writing: OnceLock::new(),
            access: Access::AsAsked,
            writable,
            writes_past,
            wrote,
        };
        self.open
            .write()
            .insert(number, (Arc::new(Handle::File(open)), slot));
        number
    }

    pub(crate) fn insert_virtual(&self, file: Virtual, node: u64, opening: &Opening) -> u64 {
        let (number, slot) = self.note(node, false, opening);
        let open = OpenVirtual {
            file,
            text: Default::default(),
        };
        self.open
            .write()
            .insert(number, (Arc::new(Handle::Virtual(open)), slot));
        number
    }

    fn note(&self, node: u64, writable: bool, opening: &Opening) -> (u64, Option<HandleSlot>) {
        let number = self.ledger.next_handle();
        // First: a handle of a request that is not answered must be found when the request comes again.
        self.ledger.note_handle(number);
        let slot = self.ledger.add_handle(&HandleEntry {
            number,
            node,
            writable,
            wrote: false,
            ours: opening.ours,
            process: opening.process,
        });
        (number, slot)
    }

    /// A handle that the kernel has from an earlier process. `file`: none for a virtual file.
    pub(crate) fn restore(&self, slot: HandleSlot, entry: &HandleEntry, handle: Restored) {
        let handle = match handle {
            Restored::File {
                node,
                file,
                access,
                writes_past,
            } => Handle::File(OpenFile {
                node,
                file,
                writing: OnceLock::new(),
                access,
                writable: entry.writable,
                writes_past,
                wrote: Wrote {
                    flag: AtomicBool::new(entry.wrote),
                    ledger: self.ledger.clone(),
                    slot: Some(slot),
                },
            }),
            Restored::Virtual(file) => Handle::Virtual(OpenVirtual {
                file,
                text: Default::default(),
            }),
        };
        self.open
            .write()
            .insert(entry.number, (Arc::new(handle), Some(slot)));
    }

    pub(crate) fn get(&self, number: u64) -> Option<Arc<Handle>> {
        self.open.read().get(&number).map(|(handle, _)| handle.clone())
    }

    pub(crate) fn len(&self) -> usize {
        self.open.read().len()
    }

    pub(crate) fn remove(&self, number: u64) -> Option<Arc<Handle>> {
        let (handle, slot) = self.open.write().remove(&number)?;
        if let Some(slot) = slot {
            self.ledger.remove_handle(slot);
        }
        Some(handle)
    }
}

/// What a handle of an earlier process stands for.
pub(crate) enum Restored {
    File {
        node: Arc<Node>,
        file: File,
        access: Access,
        writes_past: bool,
    },
    Virtual(Virtual),
}
