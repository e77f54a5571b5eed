//! Whether clients may write a database, as a state machine. It decides and does nothing: [`Access::next`] is a table from what happened
//! to the next state and its effects, which `enforce` brings about.
//!
//! Requests that would write are refused wherever the state is not [`Access::Writing`]. What passes the daemon by (WAL mode, mode K) can
//! only be kept out by locks: the [`Barrier`].
//!
//! * [`Access::Writing`] from a promotion to the next demotion, and no lock is held;
//! * [`Access::Draining`] from a demotion until every earlier commit is captured and no client can commit any more;
//! * [`Access::Following`] then, and on a node that never was the primary;
//! * [`Access::Failed`] from a failure of the disk to the end of the process, whatever the node's role.

use crate::database::scratch::Clients;

/// The right of clients to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    /// This node is the primary.
    Writing,
    /// It is the primary no more; clients from that time are being fenced, and what they committed is being captured. A process that
    /// takes over begins with that anew.
    Draining(Barrier),
    /// The database follows a primary elsewhere.
    Following(Barrier),
    /// The disk failed: no client writes before a start has compared the files.
    Failed(Barrier),
}

/// What keeps clients from writing that pass the daemon by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Barrier {
    /// Nothing: no such client is known.
    Open,
    /// The database has the fence.
    Fenced,
    /// An apply has the fence, writes under it, and gives it back.
    Lent,
    /// A client has the lock itself. The seal keeps it from committing where there is one, and the settler fences it when it lets go.
    HeldOff,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// The files were opened: while clients use them, or for a new database. `wrote`: clients wrote when the process before died.
    Opened { primary: bool, wrote: bool },
    /// The node is about to become the primary.
    Promoting,
    /// It is the primary.
    Promoted,
    /// It is about to be the primary no more.
    Demoted,
    /// What was committed before a demotion is captured, and no client can commit any more. `sealed`: the WAL is.
    Ended { sealed: bool },
    /// A failure of the disk.
    DiskFailed,
    /// An attempt to fence found no client connected.
    Unconnected,
    /// An attempt to fence succeeded; its guard comes along.
    Taken,
    /// Attempts failed for as long as there was time.
    HeldOut,
    /// The settler has looked, and there was nothing to do.
    Looked,
    /// No client is connected that the fence could keep from writing.
    Alone,
    /// Clients need WAL_WRITE to build the wal-index anew; the WAL is sealed before.
    IndexInvalid,
    /// An apply begins.
    Borrowed,
    /// It has WAL_WRITE, and is not alone.
    Acquired,
    /// It ends; its guard comes along.
    GivenBack,
    /// The files that are locked are no longer those of the database.
    FilesReplaced,
}

/// What a transition brings about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) struct Effects {
    pub(crate) guard: Guard,
    /// What a process that takes over is told of the clients.
    pub(crate) note: Option<Clients>,
    /// The settler looks after the database.
    pub(crate) watch: bool,
}

/// What becomes of the fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guard {
    /// It stays where it is.
    Stay,
    /// The one that comes along is the database's. If it has one already, both are one lock.
    Keep,
    /// It is released, and so is the one that comes along.
    Release,
    /// It goes to an apply.
    Lend,
    /// It is forgotten: its locks protect nothing.
    Leave,
}

impl Effects {
    const NONE: Effects = Effects {
        guard: Guard::Stay,
        note: None,
        watch: false,
    };

    const fn guard(guard: Guard) -> Effects {
        Effects {
            guard,
            ..Effects::NONE
        }
    }

    const fn note(note: Clients) -> Effects {
        Effects {
            note: Some(note),
            ..Effects::NONE
        }
    }

    const fn watch(self) -> Effects {
        Effects { watch: true, ..self }
    }
}

impl Access {
    /// The locks that are held.
    pub(crate) fn barrier(self) -> Barrier {
        match self {
            Access::Writing => Barrier::Open,
            Access::Draining(barrier) | Access::Following(barrier) | Access::Failed(barrier) => barrier,
        }
    }

    /// The same right behind another barrier. Nothing is held while clients may write.
    fn behind(self, barrier: Barrier) -> Access {
        match self {
            Access::Writing => Access::Writing,
            Access::Draining(_) => Access::Draining(barrier),
            Access::Following(_) => Access::Following(barrier),
            Access::Failed(_) => Access::Failed(barrier),
        }
    }

    /// What follows from `input`.
    pub(crate) fn next(self, input: Input) -> (Access, Effects) {
        match input {
            Input::Opened { primary, wrote } => self.opened(primary, wrote),
            Input::Promoting => (self, self.promoting()),
            Input::Promoted => self.promoted(),
            Input::Demoted => self.demoted(),
            Input::Ended { sealed } => self.ended(sealed),
            Input::DiskFailed => self.failed(),
            Input::Looked => (self, self.looked()),
            Input::Unconnected
            | Input::Taken
            | Input::HeldOut
            | Input::Alone
            | Input::IndexInvalid
            | Input::Borrowed
            | Input::Acquired
            | Input::GivenBack
            | Input::FilesReplaced => self.locked(input),
        }
    }

    /// A database begins as one that follows.
    fn opened(self, primary: bool, wrote: bool) -> (Access, Effects) {
        match (self, primary, wrote) {
            (Access::Following(Barrier::Open), true, _) => (Access::Writing, Effects::note(Clients::Write)),
            (Access::Following(Barrier::Open), false, true) => {
                (Access::Draining(Barrier::Open), Effects::NONE)
            }
            (Access::Following(_) | Access::Writing | Access::Draining(_) | Access::Failed(_), _, _) => {
                (self, Effects::NONE)
            }
        }
    }

    /// Noted before a client can write.
    fn promoting(self) -> Effects {
        match self {
            Access::Writing | Access::Draining(_) | Access::Following(_) => Effects::note(Clients::Write),
            Access::Failed(_) => Effects::NONE,
        }
    }

    fn promoted(self) -> (Access, Effects) {
        let released = Effects {
            guard: Guard::Release,
            note: Some(Clients::Write),
            watch: true,
        };
        match self {
            Access::Writing | Access::Draining(_) | Access::Following(_) => (Access::Writing, released),
            Access::Failed(_) => (self, Effects::NONE.watch()),
        }
    }

    fn demoted(self) -> (Access, Effects) {
        match self {
            Access::Writing => (Access::Draining(Barrier::Open), Effects::NONE),
            Access::Draining(_) | Access::Following(_) | Access::Failed(_) => (self, Effects::NONE),
        }
    }

    /// Not noted before: a process that takes over in the middle has to begin anew.
    fn ended(self, sealed: bool) -> (Access, Effects) {
        match self {
            Access::Draining(barrier) | Access::Following(barrier) => {
                let kept = sealed || barrier != Barrier::Open;
                let note = if kept { Clients::Fenced } else { Clients::Refused };
                (Access::Following(barrier), Effects::note(note))
            }
            Access::Writing | Access::Failed(_) => (self, Effects::NONE),
        }
    }

    /// For good, as far as this process goes. It is noted elsewhere that the next one trusts nothing.
    fn failed(self) -> (Access, Effects) {
        match self {
            Access::Writing | Access::Draining(_) | Access::Following(_) => {
                (Access::Failed(self.barrier()), Effects::NONE.watch())
            }
            Access::Failed(_) => (self, Effects::NONE),
        }
    }

    fn looked(self) -> Effects {
        match self {
            Access::Following(Barrier::Open) => Effects::note(Clients::Refused),
            Access::Following(_) | Access::Writing | Access::Draining(_) | Access::Failed(_) => Effects::NONE,
        }
    }

    /// While clients may write, a fence comes too late and is released; the lock of an apply (an import) is its own.
    fn locked(self, input: Input) -> (Access, Effects) {
        let (barrier, effects) = self.barrier().next(input);
        match (self, effects.guard) {
            (Access::Writing, Guard::Keep) => (self, Effects::guard(Guard::Release)),
            (Access::Writing, Guard::Stay | Guard::Release | Guard::Lend | Guard::Leave) => {
                (self, Effects::guard(effects.guard))
            }
            (Access::Draining(_) | Access::Following(_) | Access::Failed(_), _) => {
                (self.behind(barrier), effects)
            }
        }
    }
}

impl Barrier {
    fn next(self, input: Input) -> (Barrier, Effects) {
        use Barrier::{Fenced, HeldOff, Lent, Open};
        let stays = (self, Effects::NONE);
        match (self, input) {
            // The client that held out is gone. Lifting a fence takes DMS held exclusively.
            (HeldOff, Input::Unconnected) => (Open, Effects::NONE),
            (Open | Fenced | Lent, Input::Unconnected) => stays,

            (Open | Fenced | Lent | HeldOff, Input::Taken) => (Fenced, Effects::guard(Guard::Keep).watch()),

            (Open | HeldOff, Input::HeldOut) => (HeldOff, Effects::NONE.watch()),
            (Fenced | Lent, Input::HeldOut) => stays,

            (Fenced, Input::Alone) => (Open, Effects::guard(Guard::Release)),
            // Its lock is released when the apply is done.
            (Lent | HeldOff, Input::Alone) => (Open, Effects::NONE),
            (Open, Input::Alone) => stays,

            (Fenced, Input::IndexInvalid) => (HeldOff, Effects::guard(Guard::Release)),
            (Open | Lent | HeldOff, Input::IndexInvalid) => stays,

            (Fenced, Input::Borrowed) => (Lent, Effects::guard(Guard::Lend)),
            (Open | Lent | HeldOff, Input::Borrowed) => stays,

            // The client has let go, and the apply has its lock now: it becomes the fence.
            (HeldOff, Input::Acquired) => (Lent, Effects::NONE.watch()),
            (Open | Fenced | Lent, Input::Acquired) => stays,

            (Lent | Fenced, Input::GivenBack) => (Fenced, Effects::guard(Guard::Keep)),
            (Open | HeldOff, Input::GivenBack) => (self, Effects::guard(Guard::Release)),

            (Open | Fenced | Lent | HeldOff, Input::FilesReplaced) => (Open, Effects::guard(Guard::Leave)),

            (
                Open | Fenced | Lent | HeldOff,
                Input::Opened { .. }
                | Input::Promoting
                | Input::Promoted
                | Input::Demoted
                | Input::Ended { .. }
                | Input::DiskFailed
                | Input::Looked,
            ) => stays,
        }
    }
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
