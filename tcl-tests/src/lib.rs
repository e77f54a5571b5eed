//! SQLite's own test suite on a litefs mount, compared with a plain directory.
//!
//! The path of a run, in order:
//!
//! 1. [`source`] obtains SQLite's source tree with its tests, checksum-pinned.
//! 2. [`fixture`] builds `testfixture` from it, in the [`cache`].
//! 3. [`suite`] lists the test files of a permutation.
//! 4. [`run`] takes the files from a queue; each slot has its own [`mount`].
//! 5. [`execution`] runs one file in one directory, as an ordinary user, through [`child`].
//! 6. [`transcript`] reads what it printed.
//! 7. [`verdict`] compares the mount with native: the same set of passed case names.
//! 8. With a replica, [`replica`] compares every database that a file left behind.
//! 9. [`expectations`] is the ratchet, and [`report`] tells the result.
//!
//! The runner knows the daemon as a process, `litefs.yml` and the HTTP API, nothing else.

pub mod baseline;
pub mod cache;
pub mod child;
pub mod cli;
pub mod execution;
pub mod expectations;
pub mod fixture;
pub mod mount;
pub mod replica;
pub mod report;
pub mod run;
pub mod source;
pub mod suite;
pub mod text;
pub mod transcript;
pub mod verdict;
pub mod work;
