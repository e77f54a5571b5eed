//! The write-ahead log: a 32-byte header, then frames of a 24-byte header and a page.
//!
//! A frame is valid when its salts are those of the WAL header and its checksum continues the chain of all
//! frames before it; a frame whose `commit` is not zero ends a transaction. Capture scans frames with
//! [`FrameScanner`]; apply makes frames with [`FrameHeader::seal`].

use crate::bytes::{be_u32, put_be_u32};
use crate::page::{InvalidPageSize, PageSize, Pgno};

mod scan;

pub use scan::{Frame, FrameError, FrameScanner, WalPosition};

/// Magic of a WAL whose checksums read the content as little-endian words; the next number means big-endian.
pub const WAL_MAGIC: u32 = 0x377f_0682;
/// The only file format version there is.
pub const WAL_FORMAT: u32 = 3_007_000;
/// Length of the header of the file.
pub const WAL_HEADER_SIZE: usize = 32;
/// Length of the header of a frame.
pub const FRAME_HEADER_SIZE: usize = 24;

/// Length of a frame.
pub const fn frame_size(page_size: PageSize) -> usize {
    FRAME_HEADER_SIZE + page_size.bytes()
}

/// Where frame `frame` begins; the first frame is 1, as everywhere in SQLite.
///
/// # Panics
/// Frame 0 does not exist.
pub const fn frame_offset(frame: u32, page_size: PageSize) -> u64 {
    assert!(frame > 0, "frames are numbered from 1");
    WAL_HEADER_SIZE as u64 + (frame as u64 - 1) * frame_size(page_size) as u64
}

/// How many complete frames a WAL of `len` bytes can hold.
pub const fn frame_capacity(len: u64, page_size: PageSize) -> u64 {
    len.saturating_sub(WAL_HEADER_SIZE as u64) / frame_size(page_size) as u64
}

/// The running checksum. It covers everything from the start of the WAL, so two WALs that agree on it at one
/// frame agree on all frames before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct WalChecksum {
    pub s0: u32,
    pub s1: u32,
}

impl WalChecksum {
    pub const fn new(s0: u32, s1: u32) -> WalChecksum {
        WalChecksum { s0, s1 }
    }

    /// Continues the checksum over `bytes`.
    ///
    /// # Panics
    /// When the length is not a multiple of 8; headers and pages are.
    pub fn update(&mut self, big_endian: bool, bytes: &[u8]) {
        let (chunks, rest) = bytes.as_chunks::<8>();
        assert!(rest.is_empty(), "WAL checksums cover multiples of 8 bytes");
        if big_endian {
            self.add(chunks, u32::from_be_bytes);
        } else {
            self.add(chunks, u32::from_le_bytes);
        }
    }

    #[inline(always)]
    fn add(&mut self, chunks: &[[u8; 8]], word: impl Fn([u8; 4]) -> u32) {
        let WalChecksum { mut s0, mut s1 } = *self;
        for &[a, b, c, d, e, f, g, h] in chunks {
            s0 = s0.wrapping_add(word([a, b, c, d])).wrapping_add(s1);
            s1 = s1.wrapping_add(word([e, f, g, h])).wrapping_add(s0);
        }
        *self = WalChecksum { s0, s1 };
    }

    fn parse(bytes: &[u8], offset: usize) -> WalChecksum {
        WalChecksum {
            s0: be_u32(bytes, offset),
            s1: be_u32(bytes, offset + 4),
        }
    }

    fn put(self, bytes: &mut [u8], offset: usize) {
        put_be_u32(bytes, offset, self.s0);
        put_be_u32(bytes, offset + 4, self.s1);
    }
}

/// The header of a WAL file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalHeader {
    pub page_size: PageSize,
    /// Byte order in which checksums read the content.
    pub big_endian: bool,
    pub checkpoint_seq: u32,
    /// Frames of an earlier generation of the file have other salts.
    pub salt: [u32; 2],
    /// Checksum of the header itself, and where the chain of the frames begins.
    pub checksum: WalChecksum,
}

/// Why bytes are not the header of a WAL. SQLite treats such a WAL as empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalHeaderError {
    #[error("WAL header needs {WAL_HEADER_SIZE} bytes, got {0}")]
    Short(usize),
    #[error("WAL header: wrong magic {0:#010x}")]
    Magic(u32),
    #[error("WAL header: unknown format version {0}")]
    Format(u32),
    #[error("WAL header: {0}")]
    PageSize(#[from] InvalidPageSize),
    #[error("WAL header: wrong checksum")]
    Checksum,
}

impl WalHeader {
    /// A header with its checksum, in this machine's byte order as SQLite makes them.
    pub fn new(page_size: PageSize, checkpoint_seq: u32, salt: [u32; 2]) -> WalHeader {
        let mut header = WalHeader {
            page_size,
            big_endian: cfg!(target_endian = "big"),
            checkpoint_seq,
            salt,
            checksum: WalChecksum::default(),
        };
        let bytes = header.encode();
        header.checksum.update(header.big_endian, &bytes[..24]);
        header
    }

    /// The header SQLite writes when it starts over at the beginning of the file; `random` is the new salt-2.
    pub fn restarted(&self, random: u32) -> WalHeader {
        let salt = [self.salt[0].wrapping_add(1), random];
        WalHeader::new(self.page_size, self.checkpoint_seq.wrapping_add(1), salt)
    }

    pub fn parse(bytes: &[u8]) -> Result<WalHeader, WalHeaderError> {
        if bytes.len() < WAL_HEADER_SIZE {
            return Err(WalHeaderError::Short(bytes.len()));
        }
        let magic = be_u32(bytes, 0);
        if magic & !1 != WAL_MAGIC {
            return Err(WalHeaderError::Magic(magic));
        }
        let format = be_u32(bytes, 4);
        if format != WAL_FORMAT {
            return Err(WalHeaderError::Format(format));
        }
        let header = WalHeader {
            page_size: PageSize::new(be_u32(bytes, 8))?,
            big_endian: magic & 1 == 1,
            checkpoint_seq: be_u32(bytes, 12),
            salt: [be_u32(bytes, 16), be_u32(bytes, 20)],
            checksum: WalChecksum::parse(bytes, 24),
        };
        let mut checksum = WalChecksum::default();
        checksum.update(header.big_endian, &bytes[..24]);
        if checksum != header.checksum {
            return Err(WalHeaderError::Checksum);
        }
        Ok(header)
    }

    pub fn encode(&self) -> [u8; WAL_HEADER_SIZE] {
        let mut bytes = [0; WAL_HEADER_SIZE];
        put_be_u32(&mut bytes, 0, WAL_MAGIC | u32::from(self.big_endian));
        put_be_u32(&mut bytes, 4, WAL_FORMAT);
        put_be_u32(&mut bytes, 8, self.page_size.get());
        put_be_u32(&mut bytes, 12, self.checkpoint_seq);
        put_be_u32(&mut bytes, 16, self.salt[0]);
        put_be_u32(&mut bytes, 20, self.salt[1]);
        self.checksum.put(&mut bytes, 24);
        bytes
    }
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    pub pgno: Pgno,
    /// Size of the database in pages after the transaction that this frame ends; 0 in all its other frames.
    pub commit: u32,
    pub salt: [u32; 2],
    pub checksum: WalChecksum,
}

impl FrameHeader {
    /// The header of the frame that holds `page` and follows the one `chain` stands at; moves `chain` on.
    pub fn seal(
        wal: &WalHeader,
        chain: &mut WalChecksum,
        pgno: Pgno,
        commit: u32,
        page: &[u8],
    ) -> FrameHeader {
        let mut header = FrameHeader {
            pgno,
            commit,
            salt: wal.salt,
            checksum: WalChecksum::default(),
        };
        chain.update(wal.big_endian, &header.encode()[..8]);
        chain.update(wal.big_endian, page);
        header.checksum = *chain;
        header
    }

    /// Takes the fields apart without judging salts or checksum; [`FrameScanner`] does that.
    pub fn parse(bytes: &[u8]) -> Result<FrameHeader, FrameError> {
        if bytes.len() < FRAME_HEADER_SIZE {
            return Err(FrameError::Length {
                expected: FRAME_HEADER_SIZE,
                actual: bytes.len(),
            });
        }
        Ok(FrameHeader {
            pgno: Pgno::new(be_u32(bytes, 0)).ok_or(FrameError::Page)?,
            commit: be_u32(bytes, 4),
            salt: [be_u32(bytes, 8), be_u32(bytes, 12)],
            checksum: WalChecksum::parse(bytes, 16),
        })
    }

    pub fn encode(&self) -> [u8; FRAME_HEADER_SIZE] {
        let mut bytes = [0; FRAME_HEADER_SIZE];
        put_be_u32(&mut bytes, 0, self.pgno.get());
        put_be_u32(&mut bytes, 4, self.commit);
        put_be_u32(&mut bytes, 8, self.salt[0]);
        put_be_u32(&mut bytes, 12, self.salt[1]);
        self.checksum.put(&mut bytes, 16);
        bytes
    }
}
