//! SQLite's bytes: what the files of a SQLite database look like on disk and in shared memory.
//!
//! Everything here is pure: functions take and return bytes, nothing opens a file, takes a lock or reads a
//! clock. Capture, commit and apply of the engine, the kernel edge and the tools read SQLite's files through
//! this crate only, so that a layout fact is written down once.
//!
//! * [`header`]: the 100-byte database header on page 1
//! * [`freelist`]: the pages that hold nothing
//! * [`journal`]: the rollback journal
//! * [`wal`]: the write-ahead log
//! * [`wal_index`]: the wal-index (`-shm`): headers, checkpoint information, hash tables
//! * [`locks`]: the bytes SQLite locks in the database file
//!
//! Invariant of the crate: bytes are untrusted. Truncated, flipped or oversized input gives a typed error,
//! never a panic, and no allocation depends on a number read from the input.

pub mod freelist;
pub mod header;
pub mod journal;
pub mod locks;
mod page;
pub mod wal;
pub mod wal_index;

mod bytes;

pub use header::DatabaseHeader;
pub use page::{InvalidPageSize, PageSize, Pgno};
