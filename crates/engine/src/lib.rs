//! The engine: what a transaction is, from capture to apply. No FUSE, no sockets, no async.
//!
//! A newcomer reads [`capture`] (a commit of SQLite is noticed), [`commit`] (it becomes a record), [`log`] (where records
//! are kept), [`apply`] (a record of another node becomes what clients read here) and [`snapshot`] (the whole database at
//! one position). [`Database`] joins them; [`Store`] holds all databases of a data directory.

mod apply;
#[cfg(feature = "canary")]
pub mod canary;
mod capture;
pub mod checksums;
mod commit;
mod damaged;
mod database;
pub mod disk;
mod error;
mod event;
mod health;
mod import;
pub mod inspect;
pub mod kernel;
mod layout;
mod local;
pub mod log;
pub mod metrics_names;
mod name;
mod options;
mod originals;
mod owners;
mod repeats;
mod shared;
mod snapshot;
mod store;
mod tree;
mod writers;

pub use database::{Database, DatabaseStatus, edge::FileOp};
pub use error::{Error, Result};
pub use event::Event;
pub use import::IMPORT_RECEIVE;
pub use kernel::{CheckpointMode, CheckpointResult, Coherence, Direct, Kernel, LockFiles, OfdLocks};
pub use log::{Record, RecordInfo};
pub use name::{DbName, NameError, Side};
pub use options::{Durability, Role, StoreOptions};
pub use owners::{Owner, OwnerDefaults};
pub use repeats::Repeats;
pub use snapshot::{DatabaseReader, Snapshot, SnapshotReader};
pub use store::{Retention, Store, Watcher};
