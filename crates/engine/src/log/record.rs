//! What is known about a record without reading its pages.

use ltx::{Checksum, Header, PageSize, Pos, Txid};

/// Where a record comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Made here from what a client of this node committed.
    Captured,
    /// Made elsewhere, received, and applied here.
    Applied,
    /// The whole database at its TXID: begins a history.
    Snapshot,
}

/// End of a record in the local WAL: what apply wrote, so that a start can tell how far it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalPosition {
    pub salt: [u32; 2],
    /// Offset behind the record's last frame.
    pub end: u64,
}

/// What the appender tells about a record besides its LTX header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordMeta {
    pub origin: Origin,
    /// Nonce of the rollback journal whose commit this is; 0 = none.
    pub journal_nonce: u32,
    pub wal: Option<WalPosition>,
}

impl RecordMeta {
    pub fn new(origin: Origin) -> RecordMeta {
        RecordMeta {
            origin,
            journal_nonce: 0,
            wal: None,
        }
    }
}

/// A record's frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordInfo {
    pub min: Txid,
    pub max: Txid,
    pub pre: Checksum,
    pub post: Checksum,
    pub timestamp_ms: i64,
    pub page_size: PageSize,
    /// Size of the database in pages after the record.
    pub commit: u32,
    pub meta: RecordMeta,
    /// Bytes of the LTX file.
    pub len: u64,
}

impl RecordInfo {
    /// Of an LTX file with this header; checksum and length are known when it is finished.
    pub(super) fn new(header: &Header, meta: RecordMeta, post: Checksum, len: u64) -> RecordInfo {
        RecordInfo {
            min: header.min_txid,
            max: header.max_txid,
            pre: header.pre_apply,
            post,
            timestamp_ms: header.timestamp,
            page_size: header.page_size,
            commit: header.commit,
            meta,
            len,
        }
    }

    /// The position after the record.
    pub fn pos(&self) -> Pos {
        Pos {
            txid: self.max,
            post_apply: self.post,
        }
    }

    pub fn contains(&self, txid: Txid) -> bool {
        self.min <= txid && txid <= self.max
    }

    pub fn is_snapshot(&self) -> bool {
        self.min == Txid::FIRST
    }

    /// Whether `next` is the record that comes after this one.
    pub fn is_followed_by(&self, next: &RecordInfo) -> bool {
        Some(next.min) == self.max.next() && next.pre == self.post
    }
}
