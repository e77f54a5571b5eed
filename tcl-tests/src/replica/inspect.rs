//! Takes copies of the files below a directory of a mount, and lets SQLite make plain files of the databases among them: a hot
//! journal is rolled back and a WAL checkpointed, in the copies.
//!
//! Runs in a process of its own (`litefs-tcl inspect`), because it touches the mount and because it moves SQLite's lock bytes, which is a
//! setting of the whole process: the suite moves them, so that the journals name other pages than usual. Only reads there.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};

/// A file that is no journal, WAL or shared memory of another.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Found {
    /// Relative to the inspected directory.
    pub name: String,
    pub begins_like_one: bool,
    /// What its database holds; `None` where nobody can tell without the node.
    pub copy: Option<PathBuf>,
    /// Why it is not one after all, or cannot be replicated.
    pub not_a_database: Option<String>,
    /// A hot journal lies beside it: until somebody rolls it back, the file is in the middle of a transaction.
    pub unfinished: bool,
    /// SQLite finds nothing wrong with it.
    pub healthy: bool,
}

/// Where test/tester.tcl puts the lock bytes.
const PENDING_BYTE: i32 = 0x0001_0000;
/// A copy of more than this tells little and takes long: the exports are compared in any case.
const LARGEST_COPY: u64 = 256 << 20;
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const SIDES: [&str; 2] = ["-journal", "-wal"];

/// Writes the list of what was found to `list`; copies go below `copies`. A directory that is not there holds nothing.
pub fn inspect(directory: &Path, copies: &Path, list: &Path) -> Result<()> {
    // SAFETY: the control takes one int, and no connection is open yet.
    unsafe { rusqlite::ffi::sqlite3_test_control(rusqlite::ffi::SQLITE_TESTCTRL_PENDING_BYTE, PENDING_BYTE) };
    let mut found = Vec::new();
    if directory.exists() {
        walk(directory, directory, copies, &mut found)?;
    }
    let text = serde_json::to_vec(&found).context("encode the list")?;
    std::fs::write(list, text).with_context(|| format!("write {}", list.display()))
}

fn walk(root: &Path, directory: &Path, copies: &Path, found: &mut Vec<Found>) -> Result<()> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", directory.display()))?;
        let path = entry.path();
        let kind = entry
            .file_type()
            .with_context(|| format!("stat {}", path.display()))?;
        if kind.is_dir() {
            walk(root, &path, copies, found)?;
        } else if kind.is_file() && (begins_like_a_database(&path)? || !is_a_side(&path)) {
            let copy = copies.join(found.len().to_string());
            found.push(take(root, &path, &copy)?);
        }
    }
    Ok(())
}

fn is_a_side(path: &Path) -> bool {
    reserved_ending(&path.to_string_lossy()).is_some()
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
    let journal = with_suffix(path, "-journal");
    let mut found = Found {
        name: relative.to_string_lossy().into_owned(),
        begins_like_one: begins_like_a_database(path)?,
        copy: None,
        not_a_database: cannot_be_replicated(relative),
        unfinished: is_hot(&journal),
        healthy: false,
    };
    if found.not_a_database.is_none() && !found.begins_like_one {
        found.not_a_database = Some("it does not begin like one".to_string());
    }
    if length(path)? > LARGEST_COPY {
        return Ok(found);
    }
    std::fs::create_dir_all(copy).with_context(|| format!("create {}", copy.display()))?;
    let main = copy.join("db");
    if found.not_a_database.is_none() {
        copy_with_sides(path, &main)?;
        match settle(&main) {
            Ok(healthy) => {
                found.healthy = healthy;
                found.copy = Some(main);
                return Ok(found);
            }
            // The suite corrupts databases on purpose. What the node thinks of this one is in its status.
            Err(error) => found.not_a_database = Some(terminal::explain(&error)),
        }
    }
    let has_wal = std::fs::metadata(with_suffix(path, "-wal")).is_ok_and(|wal| wal.len() > 0);
    if !found.unfinished && !has_wal {
        // Nothing but the file says what the database is. What SQLite tried may have changed the first copy.
        let raw = copy.join("raw");
        std::fs::copy(path, &raw).with_context(|| format!("copy {}", path.display()))?;
        found.copy = Some(raw);
    }
    Ok(found)
}

fn copy_with_sides(path: &Path, main: &Path) -> Result<()> {
    std::fs::copy(path, main).with_context(|| format!("copy {}", path.display()))?;
    writable(main)?;
    for side in SIDES {
        let from = with_suffix(path, side);
        if std::fs::symlink_metadata(&from).is_ok_and(|metadata| metadata.is_file()) {
            let to = with_suffix(main, side);
            std::fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
            writable(&to)?;
        }
    }
    Ok(())
}

/// A copy has the permissions of the file, which a test may have made read-only, and the copy is to be rolled back.
fn writable(copy: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(copy, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("chmod {}", copy.display()))
}

fn length(path: &Path) -> Result<u64> {
    let metadata = std::fs::metadata(path).with_context(|| format!("stat {}", path.display()))?;
    Ok(metadata.len())
}

/// SQLite's own test: a journal that is kept has zeros where the header was.
fn is_hot(journal: &Path) -> bool {
    let mut first = [0];
    File::open(journal).is_ok_and(|file| matches!(file.read_at(&mut first, 0), Ok(1)) && first != [0])
}

/// Names that the suite uses for databases and that belong to other files by their ending.
fn cannot_be_replicated(relative: &Path) -> Option<String> {
    let Some(name) = relative.to_str() else {
        return Some("its name is not UTF-8".to_string());
    };
    reserved_ending(name).map(|end| format!("its name ends in {end}"))
}

fn reserved_ending(name: &str) -> Option<&'static str> {
    let reserved = ["-journal", "-wal", "-shm", "-pos", "-lock"];
    reserved.into_iter().find(|end| name.ends_with(end))
}

/// Lets SQLite roll back and checkpoint. Tells whether it finds nothing wrong.
fn settle(main: &Path) -> Result<bool> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(main, flags).context("open")?;
    connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
        .context("read")?;
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .context("checkpoint")?;
    // A schema with functions or collations of the test alone is an error here, and so is what a test corrupted.
    let told = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    connection.close().map_err(|(_, error)| error).context("close")?;
    Ok(told.is_ok_and(|told| told == "ok"))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found_below(root: &Path, copies: &Path) -> Vec<Found> {
        std::fs::create_dir(copies).unwrap();
        let mut found = Vec::new();
        walk(root, root, copies, &mut found).unwrap();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

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
        let found = found_below(&root, &directory.path().join("copies"));
        let names: Vec<_> = found.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["broken.db", "deep/wal.db", "text.db"]);
        assert!(found[0].not_a_database.is_some() && !found[0].healthy);
        // The WAL of the open connection was checkpointed in the copy.
        assert!(found[1].healthy);
        let copy = found[1].copy.as_ref().unwrap();
        assert_eq!(std::fs::metadata(copy).unwrap().len(), 2 * 4096);
        assert!(std::fs::metadata(root.join("deep/wal.db-wal")).unwrap().len() > 0);
    }

    #[test]
    fn a_file_that_is_no_database_is_copied_as_it_is_unless_a_journal_is_hot() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        for name in ["cold.db", "hot.db"] {
            std::fs::write(root.join(name), [&MAGIC[..], &[0; 500]].concat()).unwrap();
        }
        std::fs::write(root.join("cold.db-journal"), [0; 512]).unwrap();
        std::fs::write(root.join("hot.db-journal"), [0xd9; 512]).unwrap();
        let found = found_below(&root, &directory.path().join("copies"));
        let copy = found[0].copy.as_ref().unwrap();
        assert_eq!(std::fs::read(copy).unwrap().len(), 516);
        assert!(found[1].unfinished && found[1].copy.is_none());
    }

    #[test]
    fn names_with_reserved_endings_are_not_expected_to_replicate() {
        assert!(cannot_be_replicated(Path::new("a/test.db-wal")).is_some());
        assert!(cannot_be_replicated(Path::new("a/test.db-bu")).is_none());
    }
}
