//! The mutable state of one database, behind its mutex.

use std::sync::Arc;
use std::time::Instant;

use ltx::Pos;
use sqlite_format::wal::FRAME_HEADER_SIZE;
use sqlite_format::{PageSize, Pgno};

use super::aside::Aside;
use super::backing::Backing;
use super::scratch::Scratch;
use crate::capture::wal::Wal;
use crate::checksums::ChecksumTable;
use crate::error::Result;
use crate::health::Vitals;
use crate::name::Side;
use crate::writers::seal::Seal;

/// State of a database. Invariant outside of the functions that change it: `table` and `pos` describe the same
/// transaction, and the rolling checksum of the table is the checksum of `pos`.
#[derive(Debug)]
pub(crate) struct State {
    /// Position of what clients can read.
    pub(crate) pos: Pos,
    /// Checksum of every page at `pos`.
    pub(crate) table: ChecksumTable,
    /// Size of the database in pages at `pos`.
    pub(crate) commit: u32,
    /// Time of the last transaction.
    pub(crate) timestamp_ms: i64,
    /// Survives the process.
    pub(crate) scratch: Scratch,
    /// SQLite's files.
    pub(crate) backing: Backing,
    /// WALs whose content the main file has, but maybe not on disk.
    pub(crate) aside: Aside,
    /// What is known of the WAL.
    pub(crate) wal: Wal,
    /// Whether the files follow the log.
    pub(crate) health: Arc<Vitals>,
    /// SQLite synced the main file in the transaction that is under way, so its commit must be durable too.
    pub(crate) synced_writes: bool,
    /// When the main file was last written, to tell a pause from a stream of raw writes.
    pub(crate) last_write: Option<Instant>,
    /// All that was written to the main file since the last transaction is synced.
    pub(crate) all_synced: bool,
    /// Clients sync the main file at the end of a transaction without a journal.
    pub(crate) clients_sync: bool,
    /// Size of the database in pages after the record that is being applied: what the main file holds up to there may be
    /// a part of it already.
    pub(crate) incoming: u32,
    /// A client that no lock can fence must not write the WAL.
    pub(crate) seal: Option<Seal>,
    /// The asynchronous trigger captures nothing before: it failed last time.
    pub(crate) retry_at: Option<Instant>,
    /// Room for one page.
    pub(crate) spare: Vec<u8>,
}

impl State {
    pub(crate) fn page_size(&self) -> Option<PageSize> {
        self.table.page_size()
    }

    /// Reads a page as a SQLite client would see it: from the newest committed frame, else from the main file; zeros
    /// beyond its end.
    pub(crate) fn read_page(&mut self, pgno: Pgno, page_size: PageSize, buf: &mut [u8]) -> Result<()> {
        debug_assert_eq!(buf.len(), page_size.bytes());
        if let Some(frame) = self.wal.frame_of(pgno) {
            let mut head = [0; FRAME_HEADER_SIZE];
            let page = frame + FRAME_HEADER_SIZE as u64;
            let read = self.backing.read_padded(Side::Wal, buf, page)?;
            self.backing.read_padded(Side::Wal, &mut head, frame)?;
            // A frame's header is written before its page. Is it still the old one, so was the page; if not, the WAL
            // has started over, and all that it held is in the main file.
            if read == buf.len() && self.wal.is_frame_of(pgno, &head) {
                return Ok(());
            }
        }
        self.backing
            .read_padded(Side::Database, buf, pgno.offset(page_size))?;
        Ok(())
    }

    /// Whether the page's content is what the last transaction left.
    pub(crate) fn is_current(&self, pgno: Pgno, data: &[u8]) -> bool {
        self.table.get(pgno) == Some(ltx::page_checksum(pgno, data))
    }
}
