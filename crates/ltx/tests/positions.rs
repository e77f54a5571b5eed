//! The positions that LiteFS's own tests expect of two small databases, reproduced from the files SQLite writes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ltx::{Checksum, PageSize, Pgno, page_checksum};
use rusqlite::Connection;
use sqlite_format::wal::{FrameScanner, WAL_HEADER_SIZE, WalHeader, frame_size};

/// The SQLite those positions were made with: 3.39.2. The version is part of page 1.
const SQLITE_VERSION: [u8; 4] = 3_039_002u32.to_be_bytes();

/// The rolling checksum of a database of two pages with its WAL, as that SQLite would have written it.
fn rolling_checksum(path: &Path) -> String {
    let size = PageSize::DEFAULT;
    let mut pages = BTreeMap::new();
    for (index, page) in fs::read(path).unwrap().chunks(size.bytes()).enumerate() {
        pages.insert(Pgno::new(index as u32 + 1).unwrap(), page.to_vec());
    }
    let wal = fs::read(path.with_extension("db-wal")).unwrap_or_default();
    if let Ok(header) = WalHeader::parse(&wal) {
        let mut scanner = FrameScanner::new(header);
        for frame in wal[WAL_HEADER_SIZE..].chunks(frame_size(size)) {
            let Ok(frame) = scanner.next(frame) else { break };
            pages.insert(frame.pgno, frame.page.to_vec());
        }
    }
    assert_eq!(pages.len(), 2);
    let first = pages.get_mut(&Pgno::FIRST).unwrap();
    first[96..100].copy_from_slice(&SQLITE_VERSION);
    let sum = |sum: Checksum, (pgno, page): (&Pgno, &Vec<u8>)| sum.xor(page_checksum(*pgno, page));
    pages.iter().fold(Checksum::EMPTY_DATABASE, sum).to_string()
}

fn positions(journal_mode: &str) -> [String; 2] {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db.db");
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "page_size", 4096).unwrap();
    connection
        .pragma_update(None, "journal_mode", journal_mode)
        .unwrap();
    ["CREATE TABLE t (x)", "INSERT INTO t VALUES (100)"].map(|sql| {
        connection.execute(sql, []).unwrap();
        rolling_checksum(&path)
    })
}

#[test]
fn rollback_journal() {
    assert_eq!(positions("delete"), ["f630f5ae3060002c", "b765dce8249e9b4b"]);
}

#[test]
fn write_ahead_log() {
    assert_eq!(positions("wal"), ["95af056ca07d8ad1", "f0f79787d8602c29"]);
}
