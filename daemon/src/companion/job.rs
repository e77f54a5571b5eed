//! What the worker does with SQLite, through the mount, like any client.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::protocol::{Checkpoint, Outcome};

/// Copies WAL frames to the database as far as the mode goes.
pub(super) fn checkpoint(path: &Path, mode: Checkpoint, busy: Duration) -> Outcome {
    let pragma = match mode {
        Checkpoint::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
        Checkpoint::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
    };
    let attempt = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(busy)?;
        // The last client to close deletes the WAL; this one is not to.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.query_row(pragma, [], |row| {
            Ok(Outcome::Checkpointed {
                busy: row.get(0)?,
                log: row.get(1)?,
                checkpointed: row.get(2)?,
            })
        })
    };
    attempt().unwrap_or_else(|error: rusqlite::Error| Outcome::Failed {
        errno: match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                Some(libc::EAGAIN)
            }
            _ => None,
        },
        message: error.to_string(),
    })
}
