//! The two headers and the checkpoint information at the start of the wal-index.

use super::{BLOCK_SIZE, CKPT_INFO, INDEX_VERSION, SECOND_HEADER};
use crate::bytes::{be_u32, ne_u16, ne_u32, put_be_u32, put_ne_u16, put_ne_u32};
use crate::page::{InvalidPageSize, PageSize};
use crate::wal::WalChecksum;

/// Length of a header copy.
pub const INDEX_HEADER_SIZE: usize = 48;
/// The bytes its checksum covers.
const CHECKSUMMED: usize = 40;
/// A read mark that no reader uses.
pub const READ_MARK_UNUSED: u32 = u32::MAX;

/// One copy of the header (`WalIndexHdr`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexHeader {
    /// Counts transactions, so that a reader sees that something changed.
    pub change: u32,
    /// Byte order of the checksums in the WAL.
    pub big_endian: bool,
    /// `None` while the WAL is empty and no page size is known: SQLite stores 0 then.
    pub page_size: Option<PageSize>,
    /// Last committed frame; 0 when the WAL holds nothing.
    pub max_frame: u32,
    /// Size of the database in pages.
    pub page_count: u32,
    /// Checksum chain of the WAL at `max_frame`.
    pub frame_checksum: WalChecksum,
    /// As in [`crate::wal::WalHeader::salt`].
    pub salt: [u32; 2],
}

/// Why the header of a wal-index cannot be used. SQLite rebuilds the index from the WAL then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexHeaderError {
    #[error("wal-index needs {expected} bytes, got {actual}")]
    Short { expected: usize, actual: usize },
    #[error("wal-index header: not initialised")]
    Uninitialised,
    #[error("wal-index header: the two copies differ")]
    Torn,
    #[error("wal-index header: wrong checksum")]
    Checksum,
    #[error("wal-index header: unknown version {0}")]
    Version(u32),
    #[error("wal-index header: {0}")]
    PageSize(#[from] InvalidPageSize),
}

impl IndexHeader {
    /// Parses one copy.
    pub fn parse(bytes: &[u8]) -> Result<IndexHeader, IndexHeaderError> {
        if bytes.len() < INDEX_HEADER_SIZE {
            return Err(IndexHeaderError::Short {
                expected: INDEX_HEADER_SIZE,
                actual: bytes.len(),
            });
        }
        if bytes[12] == 0 {
            return Err(IndexHeaderError::Uninitialised);
        }
        if header_checksum(bytes) != native_checksum(bytes, CHECKSUMMED) {
            return Err(IndexHeaderError::Checksum);
        }
        let version = ne_u32(bytes, 0);
        if version != INDEX_VERSION {
            return Err(IndexHeaderError::Version(version));
        }
        Ok(IndexHeader {
            change: ne_u32(bytes, 8),
            big_endian: bytes[13] != 0,
            page_size: parse_page_size(ne_u16(bytes, 14))?,
            max_frame: ne_u32(bytes, 16),
            page_count: ne_u32(bytes, 20),
            frame_checksum: native_checksum(bytes, 24),
            // SQLite copies the salts out of the WAL as bytes, so they keep the order of the file.
            salt: [be_u32(bytes, 32), be_u32(bytes, 36)],
        })
    }

    /// One copy, with its checksum.
    pub fn encode(&self) -> [u8; INDEX_HEADER_SIZE] {
        let mut bytes = [0; INDEX_HEADER_SIZE];
        put_ne_u32(&mut bytes, 0, INDEX_VERSION);
        put_ne_u32(&mut bytes, 8, self.change);
        bytes[12] = 1;
        bytes[13] = u8::from(self.big_endian);
        put_ne_u16(&mut bytes, 14, self.page_size.map_or(0, PageSize::to_u16));
        put_ne_u32(&mut bytes, 16, self.max_frame);
        put_ne_u32(&mut bytes, 20, self.page_count);
        put_ne_u32(&mut bytes, 24, self.frame_checksum.s0);
        put_ne_u32(&mut bytes, 28, self.frame_checksum.s1);
        put_be_u32(&mut bytes, 32, self.salt[0]);
        put_be_u32(&mut bytes, 36, self.salt[1]);
        let checksum = header_checksum(&bytes);
        put_ne_u32(&mut bytes, 40, checksum.s0);
        put_ne_u32(&mut bytes, 44, checksum.s1);
        bytes
    }
}

/// Reads both copies from the first 96 bytes of the file, as SQLite's readers do: they must be equal, else a
/// writer is between its two stores (try again) or died there (recovery is due).
pub fn read_headers(bytes: &[u8]) -> Result<IndexHeader, IndexHeaderError> {
    if bytes.len() < CKPT_INFO {
        return Err(IndexHeaderError::Short {
            expected: CKPT_INFO,
            actual: bytes.len(),
        });
    }
    let (first, second) = (&bytes[..SECOND_HEADER], &bytes[SECOND_HEADER..CKPT_INFO]);
    if first != second {
        return Err(IndexHeaderError::Torn);
    }
    IndexHeader::parse(first)
}

fn parse_page_size(size: u16) -> Result<Option<PageSize>, InvalidPageSize> {
    match size {
        0 => Ok(None),
        1 => Ok(Some(PageSize::MAX)),
        size => PageSize::new(u32::from(size)).map(Some),
    }
}

fn header_checksum(bytes: &[u8]) -> WalChecksum {
    let mut checksum = WalChecksum::default();
    checksum.update(cfg!(target_endian = "big"), &bytes[..CHECKSUMMED]);
    checksum
}

fn native_checksum(bytes: &[u8], offset: usize) -> WalChecksum {
    WalChecksum::new(ne_u32(bytes, offset), ne_u32(bytes, offset + 4))
}

/// How far the WAL was copied into the database, and what readers still need (`WalCkptInfo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CkptInfo {
    /// Frames that are in the database.
    pub backfill: u32,
    /// Read lock `i` protects readers that use frames up to `read_marks[i]`; mark 0 is always 0.
    pub read_marks: [u32; 5],
    /// Frames a checkpoint began to copy, whether or not it finished.
    pub backfill_attempted: u32,
}

impl CkptInfo {
    /// Length, including the lock bytes in the middle.
    pub const SIZE: usize = 40;
    /// Absolute offsets in the file.
    pub const BACKFILL: usize = CKPT_INFO;
    pub const READ_MARKS: usize = CKPT_INFO + 4;
    pub const BACKFILL_ATTEMPTED: usize = CKPT_INFO + 32;

    /// What SQLite stores when it rebuilds the index of a WAL of `max_frame` frames.
    pub fn recovered(max_frame: u32) -> CkptInfo {
        let first = if max_frame == 0 {
            READ_MARK_UNUSED
        } else {
            max_frame
        };
        CkptInfo {
            backfill: 0,
            read_marks: [0, first, READ_MARK_UNUSED, READ_MARK_UNUSED, READ_MARK_UNUSED],
            backfill_attempted: max_frame,
        }
    }

    /// Where read mark `index` is in the file.
    pub const fn read_mark_offset(index: usize) -> usize {
        Self::READ_MARKS + 4 * index
    }

    /// Parses the information out of a block 0 (or its first 136 bytes).
    pub fn parse(block: &[u8]) -> Result<CkptInfo, IndexHeaderError> {
        let expected = CKPT_INFO + Self::SIZE;
        if block.len() < expected {
            return Err(IndexHeaderError::Short {
                expected,
                actual: block.len(),
            });
        }
        Ok(CkptInfo {
            backfill: ne_u32(block, Self::BACKFILL),
            read_marks: std::array::from_fn(|i| ne_u32(block, Self::read_mark_offset(i))),
            backfill_attempted: ne_u32(block, Self::BACKFILL_ATTEMPTED),
        })
    }

    /// The bytes from offset 96 to 136. The lock bytes in the middle are never written.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        put_ne_u32(&mut bytes, 0, self.backfill);
        for (i, mark) in self.read_marks.iter().enumerate() {
            put_ne_u32(&mut bytes, 4 + 4 * i, *mark);
        }
        put_ne_u32(&mut bytes, 32, self.backfill_attempted);
        bytes
    }
}

const _: () = assert!(BLOCK_SIZE > CKPT_INFO + CkptInfo::SIZE);
