//! The engine: what a transaction is, from capture to apply. No FUSE, no sockets, no async.

pub mod checksums;
pub mod disk;
pub mod log;
