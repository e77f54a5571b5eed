//! A database in WAL mode with an open connection, so that WAL and wal-index are there to be read.

use std::fs;
use std::path::PathBuf;

use rusqlite::Connection;
use sqlite_format::Pgno;
use sqlite_format::wal::{FrameHeader, FrameScanner, WAL_HEADER_SIZE, WalHeader, frame_size};
use sqlite_format::wal_index::IndexHeader;

pub(crate) struct Live {
    dir: tempfile::TempDir,
    pub(crate) connection: Connection,
}

impl Live {
    pub(crate) fn new(page_size: u32) -> Live {
        let dir = tempfile::tempdir().unwrap();
        let connection = Connection::open(dir.path().join("a.db")).unwrap();
        connection.pragma_update(None, "page_size", page_size).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        connection.pragma_update(None, "synchronous", "off").unwrap();
        connection
            .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, x); CREATE INDEX i ON t (x)")
            .unwrap();
        Live { dir, connection }
    }

    /// A copy of database and WAL, opened by a new connection.
    pub(crate) fn copy_without_index(&self) -> Live {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.db", "a.db-wal"] {
            fs::copy(self.dir.path().join(name), dir.path().join(name)).unwrap();
        }
        let connection = Connection::open(dir.path().join("a.db")).unwrap();
        Live { dir, connection }
    }

    /// Inserts rows, some per transaction.
    pub(crate) fn fill(&self, rows: u32) {
        for row in 0..rows {
            if row % 7 == 0 {
                self.connection.execute_batch("BEGIN").unwrap();
            }
            let x = format!("{:08x}", row.wrapping_mul(2_654_435_761)).repeat(8);
            self.connection
                .execute("INSERT INTO t (x) VALUES (?)", [x])
                .unwrap();
            if row % 7 == 6 || row == rows - 1 {
                self.connection.execute_batch("COMMIT").unwrap();
            }
        }
    }

    fn read(&self, name: &str) -> Vec<u8> {
        let path: PathBuf = self.dir.path().join(name);
        fs::read(path).unwrap()
    }

    pub(crate) fn wal(&self) -> Vec<u8> {
        self.read("a.db-wal")
    }

    pub(crate) fn index(&self) -> Vec<u8> {
        self.read("a.db-shm")
    }

    /// All committed frames.
    pub(crate) fn scan(&self) -> (FrameScanner, Vec<Pgno>) {
        let wal = self.wal();
        let header = WalHeader::parse(&wal).unwrap();
        let size = frame_size(header.page_size);
        let mut scanner = FrameScanner::new(header);
        let mut frames = Vec::new();
        while let Some(bytes) = wal.get(scanner.offset() as usize..scanner.offset() as usize + size) {
            let Ok(frame) = scanner.next(bytes) else { break };
            frames.push(frame.pgno);
        }
        frames.truncate(scanner.committed().frames as usize);
        scanner.rewind();
        (scanner, frames)
    }

    /// All frames in the file of a WAL that was never restarted. While a transaction is open its frames may have neither salts nor
    /// checksum: SQLite fills them in before the commit when it had to rewrite a frame.
    pub(crate) fn scan_all(&self) -> Vec<Pgno> {
        let wal = self.wal();
        let header = WalHeader::parse(&wal).unwrap();
        let frames = wal[WAL_HEADER_SIZE..].chunks_exact(frame_size(header.page_size));
        frames
            .map(|frame| FrameHeader::parse(&frame[..24]).unwrap().pgno)
            .collect()
    }
}

/// The header of an index up to the last commit of a scan.
pub(crate) fn index_header(scanner: &FrameScanner, change: u32) -> IndexHeader {
    IndexHeader {
        change,
        big_endian: scanner.header().big_endian,
        page_size: Some(scanner.header().page_size),
        max_frame: scanner.committed().frames,
        page_count: scanner.committed_pages(),
        frame_checksum: scanner.committed().checksum,
        salt: scanner.header().salt,
    }
}
