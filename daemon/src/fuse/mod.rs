//! The kernel edge: the mount, and what the kernel asks of it.
//!
//! First link of a transaction's life. The mount mirrors the backing tree `<data>/files`; locks stay in the kernel, and a request comes only
//! for what the kernel cannot decide alone. In mode K the kernel reads and writes `-wal`, `-shm` and `-journal` itself (`FOPEN_PASSTHROUGH`);
//! in mode D, the automatic fallback, every file goes through the page cache and every write is intercepted. On a replica, where the
//! daemon appends to the WAL, each read of it is a request in either mode; a journal goes through the page cache.
//!
//! * [`Mount`]: attaching, serving, detaching; `mount`, `mount_tree`, `fusermount`: ways to a connection; `connection`: its first exchange;
//!   `takeover`: going on with the connection of an earlier daemon
//! * `serve`: decodes requests and replies; `tree` (names), `data` (files), `readdir`: carry them out; `edge`: the state and the rules
//! * `node`: the inodes the kernel knows; `handle`: open files; `backing`: system calls on the backing tree
//! * `virtual_files`, [`Presence`]: `.primary`, `.lag`, `NAME-pos`, `NAME-lock`
//! * `kernel`: what the engine asks of the mount; `wal_watch`: the asynchronous trigger of capture;
//!   `shm_keeper`: what the opener needs to fence clients
//! * `former`: clients of a mount that was killed, whom this one keeps from its side files
//! * `descriptors`: keeps clients with many open files from starving the engine
//! * `newborn`: databases that a replica does not let come into being; `refusals`: tells of writes that a replica refuses
//! * [`Requests`]: how often the kernel asked for what
//!
//! Invariants: no thread that serves requests sends one to its own mount; no lock of the edge is held while the engine is called; an errno
//! is chosen in `errno` only.

mod attr;
mod backing;
mod connection;
mod data;
mod descriptors;
mod edge;
mod errno;
mod foreign;
mod former;
mod fusermount;
mod handle;
mod kernel;
mod mount;
mod mount_beneath;
mod mount_root;
mod mount_tree;
mod newborn;
mod node;
mod presence;
mod readdir;
mod refusals;
mod requests;
mod serve;
mod session;
mod shm_keeper;
mod takeover;
mod tree;
mod virtual_files;
mod wal_watch;

pub(crate) use descriptors::raise as raise_descriptor_limit;
pub(crate) use former::current_mount;
pub use mount::{FSNAME, MountError, detach_stale};
pub use presence::{Lag, Presence};
pub use requests::{FileKind, Op, Requests, Snapshot};
pub(crate) use takeover::{Pinned, pin};

pub use session::{Beside, Holder, Mount, MountOptions, Passthrough};
