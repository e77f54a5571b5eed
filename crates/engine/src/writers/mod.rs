//! Who may write a database, and what keeps the others from it.
//!
//! * [`fence`]: locks against clients that pass the daemon by, as a value that moves between the database and an apply;
//!   [`seal`]: the WAL made immutable, against clients that hold these locks themselves.

pub(crate) mod fence;
pub(crate) mod seal;

use std::sync::Arc;

use parking_lot::Mutex;

use crate::kernel::LockFiles;
use fence::Fence;

/// The fence of a database.
#[derive(Default)]
pub(crate) struct Writers {
    held: Mutex<Held>,
}

#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    /// WAL_WRITE is held on behalf of a primary elsewhere.
    Fence(Fence),
    /// An apply has it, and brings it back.
    Lent,
}

impl Writers {
    /// Whether WAL_WRITE is held to keep clients from writing through handles from when this node was the primary.
    pub(crate) fn is_fenced(&self) -> bool {
        match &*self.held.lock() {
            Held::Nothing => false,
            Held::Fence(_) | Held::Lent => true,
        }
    }

    /// The locks are the database's fence from here on.
    pub(crate) fn keep(&self, fence: Fence) {
        let before = std::mem::replace(&mut *self.held.lock(), Held::Fence(fence));
        // Taken once more through the same descriptors, they are one lock.
        leave(before);
    }

    /// Clients may write again.
    pub(crate) fn release(&self) {
        let before = std::mem::take(&mut *self.held.lock());
        drop(before);
    }

    /// What was locked protects nothing any more, or goes on when the process has ended.
    pub(crate) fn leave(&self) {
        leave(std::mem::take(&mut *self.held.lock()));
    }

    /// The fence goes on as the lock of an apply. `None`: there is none on these files.
    pub(crate) fn lend(&self, locks: &Arc<dyn LockFiles>) -> Option<Fence> {
        let mut held = self.held.lock();
        match std::mem::take(&mut *held) {
            Held::Fence(fence) if fence.is_on(locks) => {
                *held = Held::Lent;
                Some(fence)
            }
            before @ (Held::Nothing | Held::Fence(_) | Held::Lent) => {
                *held = before;
                None
            }
        }
    }

    /// The lock of an apply is to be the fence when the apply is done.
    pub(crate) fn expect(&self) {
        let mut held = self.held.lock();
        if let Held::Nothing = *held {
            *held = Held::Lent;
        }
    }

    /// An apply is done: its lock is the fence again, or is released.
    pub(crate) fn give_back(&self, fence: Fence) {
        let mut held = self.held.lock();
        match &*held {
            Held::Nothing => {
                drop(held);
                drop(fence);
            }
            Held::Lent => *held = Held::Fence(fence),
            // Somebody fenced meanwhile, through the same descriptors.
            Held::Fence(_) => fence.leave(),
        }
    }
}

fn leave(held: Held) {
    match held {
        Held::Nothing | Held::Lent => {}
        Held::Fence(fence) => fence.leave(),
    }
}
