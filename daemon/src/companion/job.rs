//! What the worker does with SQLite, through the mount, like any client.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Row};

use super::protocol::{Checkpoint, Outcome};

/// Copies WAL frames to the database as far as the mode goes.
pub(super) fn checkpoint(path: &Path, mode: Checkpoint, busy: Duration) -> Outcome {
    let pragma = match mode {
        Checkpoint::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
        Checkpoint::Truncate => "PRAGMA wal_checkpoint(TRUNCATE)",
    };
    let read = |row: &Row<'_>| {
        Ok(Outcome::Checkpointed {
            busy: row.get(0)?,
            log: row.get(1)?,
            checkpointed: row.get(2)?,
        })
    };
    run(path, busy, |connection| connection.query_row(pragma, [], read))
}

/// Opens and reads the database, whereupon SQLite rolls back a hot journal and recovers the WAL.
pub(super) fn recover(path: &Path, busy: Duration) -> Outcome {
    run(path, busy, |connection| {
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| {
            Ok(Outcome::Recovered)
        })
    })
}

fn run(path: &Path, busy: Duration, work: impl Fn(&Connection) -> rusqlite::Result<Outcome>) -> Outcome {
    let attempt = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(busy)?;
        // The last client to close deletes the WAL; this one is not to.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        work(&connection)
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
