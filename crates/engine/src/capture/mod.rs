//! Capture: second link of a transaction's life. A commit that SQLite made in the kernel becomes a transaction here.
//!
//! One function per journal family drains what was committed since the last captured position: [`wal`] for the
//! write-ahead log, [`pages`] for rollback journals and everything else that writes the main file. Many triggers call
//! them (`database::edge`, `settle`); calling once more than needed changes nothing.

pub(crate) mod group;
mod index;
mod pages;
mod unpublished;
pub(crate) mod wal;
mod window;

pub(crate) use index::{read_index, read_index_with};
