//! Who may write a database, and what keeps other clients from it.
//!
//! * [`access`]: the rules, a table of states and transitions; `enforce`: what brings them about, on behalf of a change of the role and
//!   of the settler;
//! * [`fence`]: locks against clients that pass the daemon by, as a value that moves between the database and an apply;
//!   [`seal`]: the WAL made immutable, against clients that hold these locks themselves.

pub(crate) mod access;
pub(crate) mod enforce;
pub(crate) mod fence;
mod held_off;
pub(crate) mod seal;

use std::sync::Arc;

use parking_lot::Mutex;

use crate::kernel::LockFiles;
use access::{Access, Barrier, Effects, Guard, Input};
use fence::Fence;

/// The access of a database's clients, and the guard that belongs to it. Its mutex is the innermost: nothing is waited for under it.
pub(crate) struct Writers {
    held: Mutex<Held>,
}

struct Held {
    access: Access,
    /// There while the barrier is [`Barrier::Fenced`].
    fence: Option<Fence>,
}

impl Writers {
    pub(crate) fn new() -> Writers {
        Writers {
            held: Mutex::new(Held {
                access: Access::Following(Barrier::Open),
                fence: None,
            }),
        }
    }

    pub(crate) fn access(&self) -> Access {
        self.held.lock().access
    }

    /// Whether WAL_WRITE is held to keep clients from writing through handles from when this node was the primary.
    pub(crate) fn is_fenced(&self) -> bool {
        match self.access().barrier() {
            Barrier::Fenced | Barrier::Lent => true,
            Barrier::Open | Barrier::HeldOff => false,
        }
    }

    /// Whether nothing but a seal keeps a client from writing, which is fenced when it lets go.
    pub(crate) fn is_held_off(&self) -> bool {
        match self.access().barrier() {
            Barrier::HeldOff => true,
            Barrier::Open | Barrier::Fenced | Barrier::Lent => false,
        }
    }

    /// Makes the transition. What is left to do is in the effects.
    pub(crate) fn enter(&self, input: Input) -> Effects {
        self.step(input, None).0
    }

    /// Clients are fenced by these locks, if the database has a use for them.
    pub(crate) fn take(&self, fence: Fence) -> Effects {
        self.step(Input::Taken, Some(fence)).0
    }

    /// The fence goes on as the lock of an apply. `None`: there is none on these files.
    pub(crate) fn lend(&self, locks: &Arc<dyn LockFiles>) -> Option<Fence> {
        let lent = self.step(Input::Borrowed, None).1?;
        if lent.is_on(locks) {
            return Some(lent);
        }
        lent.leave();
        let _ = self.step(Input::FilesReplaced, None);
        None
    }

    /// An apply is done: its lock is the fence again, or is released.
    pub(crate) fn give_back(&self, fence: Fence) {
        let _ = self.step(Input::GivenBack, Some(fence));
    }

    /// Returns what the effects lend. What is released or forgotten goes without the mutex: that may be a request to the mount.
    fn step(&self, input: Input, came: Option<Fence>) -> (Effects, Option<Fence>) {
        let mut held = self.held.lock();
        let (access, effects) = held.access.next(input);
        let before = std::mem::replace(&mut held.access, access);
        let (own, other) = match effects.guard {
            Guard::Stay => (None, came),
            Guard::Keep => match held.fence {
                None => {
                    held.fence = came;
                    (None, None)
                }
                Some(_) => (None, came),
            },
            Guard::Release | Guard::Lend | Guard::Leave => (held.fence.take(), came),
        };
        drop(held);
        if access != before {
            tracing::debug!(?before, after = ?access, ?input, "access of clients");
        }
        match effects.guard {
            Guard::Stay => drop(other),
            // Locked twice through the same descriptors, it is one lock.
            Guard::Keep => forget(other),
            Guard::Release if own.is_some() => forget(other),
            Guard::Release => drop(other),
            Guard::Lend => return (effects, own),
            Guard::Leave => forget(own),
        }
        (effects, None)
    }
}

fn forget(fence: Option<Fence>) {
    if let Some(fence) = fence {
        fence.leave();
    }
}

#[cfg(test)]
mod tests;
