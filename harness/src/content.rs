//! What a client of a mount reads of a database, as one number. SQLite copies the pages out of the mount, so nothing that the daemon
//! knows helps: a page that is wrong on the disk below is wrong here, although an export may have it from the log.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};

/// Fields of the header that SQLite sets in a copy: journal mode, change counter, schema cookie, version valid for and library version.
const COPIED_OTHERWISE: [Range<usize>; 4] = [18..20, 24..28, 40..44, 92..100];

/// The pages of a database, without these fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// CRC-64/XZ.
    pub digest: u64,
    pub bytes: u64,
}

impl Content {
    /// Of a database in one file, without a WAL or a journal.
    pub fn of_file(file: &Path) -> std::io::Result<Self> {
        let mut file = File::open(file)?;
        let mut part = vec![0; 1 << 20];
        let (mut digest, mut bytes) = (crc64fast::Digest::new(), 0);
        loop {
            let length = file.read(&mut part)?;
            if length == 0 {
                let digest = digest.sum64();
                return Ok(Self { digest, bytes });
            }
            if bytes == 0 {
                for field in COPIED_OTHERWISE {
                    part[field].fill(0);
                }
            }
            digest.write(&part[..length]);
            bytes += length as u64;
        }
    }
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}, {} bytes", self.digest, self.bytes)
    }
}

/// The child's side: what a client reads of `database`.
pub fn read(database: &Path, busy_timeout: Duration) -> rusqlite::Result<Content> {
    let source = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    source.busy_timeout(busy_timeout)?;
    let directory = tempfile::tempdir().map_err(system)?;
    let file = directory.path().join("copy");
    let mut copy = Connection::open(&file)?;
    copy.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")?;
    // All pages at once, so that they are of one transaction.
    match Backup::new(&source, &mut copy)?.step(-1)? {
        StepResult::Done => {}
        _ => {
            return Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
                None,
            ));
        }
    }
    drop(copy);
    Content::of_file(&file).map_err(system)
}

fn system(error: std::io::Error) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_content_of_its_source_and_a_changed_byte_another() {
        let directory = tempfile::tempdir().unwrap();
        for mode in ["DELETE", "WAL"] {
            let file = directory.path().join(mode);
            let connection = Connection::open(&file).unwrap();
            let sql = "CREATE TABLE t (a); INSERT INTO t VALUES (randomblob(20000)); PRAGMA user_version = 7";
            connection
                .execute_batch(&format!(
                    "PRAGMA page_size = 1024; PRAGMA journal_mode = {mode}; {sql}"
                ))
                .unwrap();
            drop(connection);
            let content = |file: &Path| read(file, Duration::ZERO).unwrap();
            let expected = Content::of_file(&file).unwrap();
            assert_eq!(content(&file), expected, "{mode}");
            let mut bytes = std::fs::read(&file).unwrap();
            bytes[8000] ^= 1;
            std::fs::write(&file, bytes).unwrap();
            assert_ne!(content(&file), expected, "{mode}");
        }
    }
}
