//! What the kernel edge reports, in the order in which a transaction meets it. Each function performs the operation on
//! the backing file itself, at the one moment that keeps the log complete.
//!
//! * `journal`: the begin and the end of a rollback-mode transaction
//! * `main_file`: its pages, and those of checkpoints
//! * `wal`: the commits of WAL mode
//! * `side_files`: who may take WAL and wal-index away

mod journal;
mod main_file;
mod side_files;
mod wal;

use std::fs::File;
use std::io;

use super::Database;
use crate::error::{Error, Result};

/// An operation of the file system that the engine runs at the right moment.
pub type FileOp<'a> = &'a mut dyn FnMut() -> io::Result<()>;

impl Database {
    fn sync(&self, file: &File, datasync: bool, op: &'static str) -> Result<()> {
        let outcome = if datasync {
            file.sync_data()
        } else {
            file.sync_all()
        };
        outcome.map_err(|e| {
            let error = Error::io(op, self.name.as_str())(e);
            self.health.sync_failed(&error);
            error
        })
    }
}
