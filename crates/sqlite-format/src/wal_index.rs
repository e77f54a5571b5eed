//! The wal-index (`-shm`): which frames of the WAL are committed, and in which frame a page is found.
//!
//! The file is a sequence of blocks of 32768 bytes, shared as memory between all connections. Block 0 begins
//! with two copies of [`IndexHeader`] and one [`CkptInfo`] (136 bytes together); every block holds an array of
//! page numbers, one per frame, and a hash table over them ([`hash`]). All integers have the byte order of the machine.
//!
//! Capture reads the header to learn how far the WAL is committed; apply publishes frames as a SQLite writer
//! does. Nothing here stores into shared memory: functions say which bytes to store, and the caller does it with the
//! ordering SQLite needs: hash entries first, then header copy 1, a barrier, then copy 0.

mod hash;
mod header;

pub use hash::{
    CorruptBlock, FrameSlot, HashBlock, IndexStore, IndexWords, append, block_count, block_of, clean_up,
    find_frame, hash, slot_of,
};
pub use header::{
    CkptInfo, INDEX_HEADER_SIZE, IndexHeader, IndexHeaderError, READ_MARK_UNUSED, read_headers,
};

/// Length of a block.
pub const BLOCK_SIZE: usize = 32768;
/// Where the second copy of the header is.
pub const SECOND_HEADER: usize = 48;
/// Where the checkpoint information is.
pub const CKPT_INFO: usize = 96;
/// Where the page numbers of block 0 begin.
pub const FIRST_ENTRIES: usize = 136;
/// `iVersion` of a wal-index.
pub const INDEX_VERSION: u32 = 3_007_000;

/// Bytes of the file that connections lock.
pub mod lock {
    /// Held by the writer.
    pub const WRITE: u64 = 120;
    /// Held during a checkpoint.
    pub const CHECKPOINT: u64 = 121;
    /// Held while the index is rebuilt.
    pub const RECOVER: u64 = 122;
    /// First of the read locks.
    pub const READ_FIRST: u64 = 123;
    /// Number of read locks.
    pub const READ_COUNT: usize = 5;
    /// Held shared by every connection; who gets it exclusively is alone ("dead man's switch").
    pub const DMS: u64 = 128;

    /// Read lock `index`.
    pub const fn read(index: usize) -> u64 {
        assert!(index < READ_COUNT, "there are five read locks");
        READ_FIRST + index as u64
    }

    /// SQLite's name of a lock byte.
    pub const fn name(byte: u64) -> Option<&'static str> {
        Some(match byte {
            WRITE => "WRITE",
            CHECKPOINT => "CKPT",
            RECOVER => "RECOVER",
            123 => "READ0",
            124 => "READ1",
            125 => "READ2",
            126 => "READ3",
            127 => "READ4",
            DMS => "DMS",
            _ => return None,
        })
    }
}
