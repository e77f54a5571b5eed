//! Processes that stand between the daemon and its own mount.
//!
//! The daemon never waits for itself: no thread of the process that serves /dev/fuse may send a request to its own mount, because a thread
//! killed while it waits there cannot die and would take the process and the mount with it. And the mount outlives the daemon: what the
//! kernel believes of it must not die with one process. So three small processes, started before the mount is served:
//!
//! * the **keeper** ([`keeper`]) holds /dev/fuse and what the next daemon has to know; it has no file of the mount open;
//! * the **opener** ([`opener`]) opens files on the mount and passes the descriptors over; nothing but locking is done with them. It keeps
//!   them for the next daemon, and fences clients when nobody may write any more ([`fences`]);
//! * the **worker** runs SQLite on the mount: checkpoints, and the rollback of hot journals. It is a process apart from the opener because
//!   closing any descriptor of a file drops the locks that SQLite's connections of the same process hold on it.
//!
//! The worker is the daemon's child and ends with it; keeper and opener stay. All are this same binary, run with the hidden subcommand
//! `companion` ([`process::run`]).

mod client;
mod conversation;
mod fences;
mod job;
mod keeper;
mod ofd;
mod opener;
mod opener_link;
mod process;
mod protocol;
mod wire;
mod worker;

pub use client::Companion;
pub use keeper::{Inhabitants, Inheritance, Keeper, KeeperError, KeeperOptions};
pub use process::{SUBCOMMAND, run};

pub(crate) use client::OpenedFile;
pub(crate) use ofd::{is_locked, try_lock, unlock};
pub(crate) use wire::pair;
