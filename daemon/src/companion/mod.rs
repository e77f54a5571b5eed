//! Processes that stand between the daemon and its own mount.
//!
//! The daemon never waits for itself: no thread of the process that serves /dev/fuse may send a request to its own mount, because a thread
//! killed while it waits there cannot die and would take the process and the mount with it. Two small processes, started before the mount
//! exists, wait instead:
//!
//! * the **opener** opens files on the mount and passes the descriptors over; nothing but locking is done with them. When the daemon dies it
//!   becomes the **guardian**: it stops clients from committing on the dead mount ([`guardian`]);
//! * the **worker** runs SQLite on the mount: checkpoints, and the rollback of hot journals. It is a process apart from the opener because
//!   closing any descriptor of a file drops the locks that SQLite's connections of the same process hold on it.
//!
//! Both are this same binary, run with the hidden subcommand `companion` ([`process::run`]).

mod client;
mod data_lock;
mod guardian;
mod helper;
mod job;
mod ofd;
mod process;
mod protocol;

pub use client::{Companion, CompanionOptions};
pub use data_lock::{DataLock, DataLockError};
pub use process::{SUBCOMMAND, run};

pub(crate) use client::OpenedFile;
pub(crate) use ofd::{is_locked, is_write_locked, try_lock, unlock};
