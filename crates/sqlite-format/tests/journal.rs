//! Rollback journals as SQLite writes them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use sqlite_format::journal::{JournalHeader, RecordCount, has_magic, records};
use sqlite_format::{DatabaseHeader, PageSize, Pgno};

fn journal_of(path: &Path) -> PathBuf {
    path.with_extension("db-journal")
}

fn open(path: &Path, synchronous: &str) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.pragma_update(None, "page_size", 1024).unwrap();
    connection
        .pragma_update(None, "synchronous", synchronous)
        .unwrap();
    connection
        .execute_batch(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, x);
             WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
             INSERT INTO t SELECT i, hex(zeroblob(100)) FROM n;",
        )
        .unwrap();
    connection
}

/// Writes more than the cache holds, so that the journal is synced and the database written before the commit.
fn spill(connection: &Connection) {
    connection.pragma_update(None, "cache_size", 10).unwrap();
    connection
        .execute_batch("BEGIN; UPDATE t SET x = 'changed' || x; DELETE FROM t WHERE id > 1500;")
        .unwrap();
}

/// What the database is after our own rollback.
fn roll_back(path: &Path) -> Vec<u8> {
    let journal = fs::read(journal_of(path)).unwrap();
    let mut originals = BTreeMap::new();
    let mut records = records(&journal).unwrap();
    let (pages, size) = (records.header().initial_pages, records.header().page_size);
    for record in records.by_ref().filter(|record| record.pgno.get() <= pages) {
        originals.entry(record.pgno).or_insert(record.page);
    }
    let mut database = fs::read(path).unwrap();
    database.resize(size.file_size(pages) as usize, 0);
    for (pgno, page) in originals {
        let start = pgno.offset(size) as usize;
        database[start..start + size.bytes()].copy_from_slice(page);
    }
    database
}

#[test]
fn a_journal_rolls_back_what_was_spilled() {
    for synchronous in ["full", "normal", "off"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let connection = open(&path, synchronous);
        let before = fs::read(&path).unwrap();
        spill(&connection);
        assert_ne!(fs::read(&path).unwrap(), before, "nothing was spilled");
        assert!(roll_back(&path) == before, "synchronous={synchronous}");
    }
}

#[test]
fn the_header_describes_the_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let connection = open(&path, "full");
    let database = DatabaseHeader::parse(&fs::read(&path).unwrap()).unwrap();
    spill(&connection);
    let journal = fs::read(journal_of(&path)).unwrap();
    let header = JournalHeader::parse(&journal).unwrap();
    assert_eq!(header.page_size, PageSize::new(1024).unwrap());
    assert_eq!(Some(header.initial_pages), database.valid_page_count());
    assert!(matches!(header.records, RecordCount::Exactly(1..)));
    assert_eq!(journal[..28], header.encode());
    let count = records(&journal).unwrap().count();
    let RecordCount::Exactly(first_segment) = header.records else {
        unreachable!()
    };
    assert!(
        count > first_segment as usize,
        "the test wants more than one segment"
    );
}

/// SQLite writes the magic when it syncs the journal; until then nothing of the transaction is in the database.
#[test]
fn a_transaction_in_the_cache_has_a_journal_without_magic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let connection = open(&path, "full");
    connection
        .execute_batch("BEGIN; UPDATE t SET x = 1 WHERE id = 1;")
        .unwrap();
    let journal = fs::read(journal_of(&path)).unwrap();
    assert!(!has_magic(&journal));
    assert!(records(&journal).is_err());
}

#[test]
fn every_cut_and_every_flip_of_a_journal_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let connection = open(&path, "full");
    spill(&connection);
    let whole = fs::read(journal_of(&path)).unwrap();
    let pages = |journal: &[u8]| -> Vec<Pgno> {
        records(journal)
            .map(|records| records.map(|record| record.pgno).collect())
            .unwrap_or_default()
    };
    let all = pages(&whole);
    for length in (0..whole.len()).step_by(1037) {
        assert!(all.starts_with(&pages(&whole[..length])), "cut at {length}");
    }
    let mut flipped = whole.clone();
    for at in (0..600).chain((600..whole.len()).step_by(1041)) {
        flipped[at] ^= 0x20;
        pages(&flipped);
        flipped[at] = whole[at];
    }
}
