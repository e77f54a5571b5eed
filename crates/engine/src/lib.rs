//! The engine: what a transaction is, from capture to apply. No FUSE, no sockets, no async.

pub mod disk;

mod event;
pub mod kernel;
pub mod name;
pub mod options;

pub use event::Event;
pub use kernel::{CheckpointMode, CheckpointResult, Coherence, Direct, Kernel, LockFiles, OfdLocks};
pub use name::{DbName, NameError, Side};
pub use options::{Durability, Role, StoreOptions};
