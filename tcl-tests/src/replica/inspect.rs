//! Finds the databases below a directory of a mount and lets SQLite make plain files of them: a hot journal is rolled
//! back and a WAL checkpointed, in copies.
//!
//! Runs in a process of its own (`litefs-tcl inspect`), because it touches the mount and because it moves SQLite's lock bytes, which is a
//! setting of the whole process: the suite moves them, so that the journals name other pages than usual.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};

/// A file that begins like a database.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Found {
    /// Relative to the inspected directory.
    pub name: String,
    /// What SQLite made of it; `None` where it could not.
    pub copy: Option<PathBuf>,
    /// Why it is not one after all, or cannot be replicated.
    pub not_a_database: Option<String>,
    /// A journal lies beside it: until somebody rolls it back, the file is in the middle of a transaction.
    pub unfinished: bool,
}

/// Where test/tester.tcl puts the lock bytes.
const PENDING_BYTE: i32 = 0x0001_0000;
/// A copy of more than this tells little and takes long: the exports are compared in any case.
const LARGEST_COPY: u64 = 256 << 20;
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const SIDES: [&str; 2] = ["-journal", "-wal"];

/// Writes the list of what was found to `list`; copies go below `copies`.
pub fn inspect(directory: &Path, copies: &Path, list: &Path) -> Result<()> {
    // SAFETY: the control takes one int, and no connection is open yet.
    unsafe { rusqlite::ffi::sqlite3_test_control(rusqlite::ffi::SQLITE_TESTCTRL_PENDING_BYTE, PENDING_BYTE) };
    let mut found = Vec::new();
    walk(directory, directory, copies, &mut found)?;
    let text = serde_json::to_vec(&found).context("encode the list")?;
    std::fs::write(list, text).with_context(|| format!("write {}", list.display()))
}

fn walk(root: &Path, directory: &Path, copies: &Path, found: &mut Vec<Found>) -> Result<()> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", directory.display()))?;
        let kind = entry
            .file_type()
            .with_context(|| format!("stat {}", entry.path().display()))?;
        if kind.is_dir() {
            walk(root, &entry.path(), copies, found)?;
        } else if kind.is_file() && begins_like_a_database(&entry.path())? {
            let copy = copies.join(found.len().to_string());
            found.push(take(root, &entry.path(), &copy)?);
        }
    }
    Ok(())
}

fn begins_like_a_database(path: &Path) -> Result<bool> {
    let mut magic = [0; 16];
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    match file.read_exact(&mut magic) {
        Ok(()) => Ok(&magic == MAGIC),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn take(root: &Path, path: &Path, copy: &Path) -> Result<Found> {
    let relative = path.strip_prefix(root).expect("the walk begins at the root");
    let mut found = Found {
        name: relative.to_string_lossy().into_owned(),
        copy: None,
        not_a_database: None,
        unfinished: std::fs::metadata(with_suffix(path, "-journal")).is_ok_and(|journal| journal.len() > 0),
    };
    if let Some(reason) = cannot_be_replicated(relative) {
        found.not_a_database = Some(reason);
        return Ok(found);
    }
    let length = std::fs::metadata(path)
        .with_context(|| format!("stat {}", path.display()))?
        .len();
    if length > LARGEST_COPY {
        return Ok(found);
    }
    std::fs::create_dir_all(copy).with_context(|| format!("create {}", copy.display()))?;
    let main = copy.join("db");
    std::fs::copy(path, &main).with_context(|| format!("copy {}", path.display()))?;
    for side in SIDES {
        let from = with_suffix(path, side);
        if std::fs::symlink_metadata(&from).is_ok_and(|metadata| metadata.is_file()) {
            let to = with_suffix(&main, side);
            std::fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
    }
    match settle(&main) {
        Ok(()) => found.copy = Some(main),
        // The suite corrupts databases on purpose. What the node thinks of this one is in its status.
        Err(error) => found.not_a_database = Some(format!("{error:#}")),
    }
    Ok(found)
}

/// Names that the suite uses for databases and that belong to other files by their ending.
fn cannot_be_replicated(relative: &Path) -> Option<String> {
    let Some(name) = relative.to_str() else {
        return Some("its name is not UTF-8".to_string());
    };
    let reserved = ["-journal", "-wal", "-shm", "-pos", "-lock"];
    reserved
        .iter()
        .find(|end| name.ends_with(**end))
        .map(|end| format!("its name ends in {end}"))
}

/// Lets SQLite roll back and checkpoint.
fn settle(main: &Path) -> Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(main, flags).context("open")?;
    connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
        .context("read")?;
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .context("checkpoint")?;
    connection.close().map_err(|(_, error)| error).context("close")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_are_found_settled_and_told_from_other_files() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("deep")).unwrap();
        std::fs::write(root.join("text.db"), "no database").unwrap();
        std::fs::write(root.join("broken.db"), [&MAGIC[..], &[0; 500]].concat()).unwrap();
        let connection = Connection::open(root.join("deep/wal.db")).unwrap();
        connection
            .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1)")
            .unwrap();
        let copies = directory.path().join("copies");
        std::fs::create_dir(&copies).unwrap();
        let mut found = Vec::new();
        walk(&root, &root, &copies, &mut found).unwrap();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<_> = found.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["broken.db", "deep/wal.db"]);
        assert!(found[0].not_a_database.is_some());
        // The WAL of the open connection was checkpointed in the copy.
        let copy = found[1].copy.as_ref().unwrap();
        assert_eq!(std::fs::metadata(copy).unwrap().len(), 2 * 4096);
        assert!(std::fs::metadata(root.join("deep/wal.db-wal")).unwrap().len() > 0);
    }

    #[test]
    fn names_with_reserved_endings_are_not_expected_to_replicate() {
        assert!(cannot_be_replicated(Path::new("a/test.db-wal")).is_some());
        assert!(cannot_be_replicated(Path::new("a/test.db-bu")).is_none());
    }
}
