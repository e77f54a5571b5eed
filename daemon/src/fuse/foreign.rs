//! Files that are used as databases and are not in SQLite's format: encrypted ones (SQLCipher, SEE). Nobody here can tell what a page of theirs is,
//! so they are ordinary files, and stay on this node. Who wonders why is told, when a journal or a WAL appears beside one.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use engine::{DbName, Side};
use parking_lot::Mutex;

use super::data::MAGIC;

/// Clients choose the names.
const MOST: usize = 1000;

/// Names that were told of.
#[derive(Debug, Default)]
pub(crate) struct Foreign {
    told: Mutex<HashSet<DbName>>,
}

impl Foreign {
    /// A journal or a WAL was made for a file of that name, which is no database. `files`: the backing tree.
    pub(crate) fn tell(&self, name: &DbName, files: &Path) {
        if !is_foreign(&name.file_in(files, Side::Database)) {
            return;
        }
        let mut told = self.told.lock();
        if told.len() < MOST && told.insert(name.clone()) {
            tracing::warn!(
                file = %name,
                "not replicated: a program uses this file as a database, and it does not begin as one of SQLite's (is it encrypted?)"
            );
        }
    }
}

/// Whether something else than a database is in the file. An empty one may become one.
fn is_foreign(main: &Path) -> bool {
    let mut head = Vec::new();
    File::open(main)
        .and_then(|file| file.take(MAGIC.len() as u64).read_to_end(&mut head))
        .is_ok_and(|length| length > 0)
        && !MAGIC.starts_with(&head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_empty_nor_a_database_is_told_of_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        assert!(!is_foreign(&path), "nothing is there");
        for (content, foreign) in [
            (&b""[..], false),
            (MAGIC, false),
            (b"SQLite", false),
            (b"\x9c\x01", true),
        ] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(is_foreign(&path), foreign, "{content:?}");
        }
        let (known, name) = (Foreign::default(), "a.db".parse().unwrap());
        for _ in 0..2 {
            known.tell(&name, dir.path());
        }
        assert_eq!(known.told.lock().len(), 1);
    }
}
