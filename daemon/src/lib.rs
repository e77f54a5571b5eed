//! The LiteFS daemon: SQLite replication as a file system.
//!
//! # The life of a transaction, in eight links
//!
//! 1. **Kernel operation** ([`fuse`]). An application commits with SQLite on the mount. Locks and cached pages stay in
//!    the kernel; what reaches the daemon (an fsync of the WAL, the unlink of a journal, a page written to the database)
//!    is decoded, handed to the engine in one call, and answered.
//! 2. **Capture** (`engine::capture`). The engine finds out what has been committed since the last time: WAL frames up to
//!    the wal-index's `mxFrame`, or the pages written since the journal was begun.
//! 3. **Transaction** (`engine::commit`, the draft). Pages whose checksum did not change are left out. If none is left,
//!    there is no transaction.
//! 4. **Commit** (`engine::commit`). What is left gets the next TXID and becomes an LTX record.
//! 5. **Log** (`engine::log`). The record is appended to the database's log, durable when the configuration or SQLite
//!    asks for it.
//! 6. **Serve** ([`stream::serve`]). A stream per replica sends what the replica's position lacks, read from the log.
//! 7. **Follow** ([`stream::follow`]). A replica receives the record, verified as a whole, into a log of its own, and
//!    acknowledges it.
//! 8. **Apply** (`engine::apply`). The record becomes visible to the replica's applications, under SQLite's own locks.
//!
//! # What decides where a transaction may begin
//!
//! [`lease`] makes one node primary at a time and tells everybody who it is ([`leadership`]). [`http`] is the API on the
//! same port as the streams, [`services`] ties these together, [`node`] adds the mount and the signals, [`cli`] and
//! [`config`] are what people touch.
//!
//! # What outlives the daemon
//!
//! The mount does. [`launcher`] is the process that the user starts; it starts the daemon, and again when it dies.
//! [`companion`] are processes beside the daemon: one holds the mount meanwhile, one opens files on it, so that the daemon
//! never waits for itself. What the next daemon has to know stands in the [`ledger`].
//!
//! `docs/architecture.md` has the same in a picture, with threads and on-disk layout.

// A process that serves does not end because nobody hears it.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
mod output;

pub mod cli;
mod cluster_id;
pub mod companion;
pub mod config;
pub mod events;
pub mod fuse;
pub mod http;
pub mod lag;
pub mod launcher;
pub mod leadership;
pub mod lease;
pub mod ledger;
pub mod logging;
pub mod metrics;
pub mod node;
mod processes;
pub mod services;
pub mod stream;
mod sys;
