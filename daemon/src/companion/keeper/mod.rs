//! The keeper: a process that holds the mount while its daemon is replaced.
//!
//! A FUSE connection ends when the last descriptor of its /dev/fuse is closed. As long as another process holds one, the mount, its inodes,
//! its clients' handles, locks and mappings stay; requests wait. So the keeper holds one, together with what the next daemon has to know
//! ([`crate::ledger`]) and cannot get otherwise: inodes without a name, and the mounted tree, by which a detached mount is attached again.
//!
//! [`Keeper`] is the daemon's side; `process` the keeper's own; `data_dir` how they find each other; `protocol` what they say.

mod client;
mod data_dir;
pub(super) mod process;
pub(super) mod protocol;

pub use client::{Inheritance, Keeper, KeeperError, KeeperOptions};
pub use data_dir::Inhabitants;
