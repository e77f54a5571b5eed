//! Header and trailer.

use sqlite_format::PageSize;

use crate::checksum::Checksum;
use crate::error::{HeaderError, TrailerError};
use crate::pos::Pos;
use crate::txid::Txid;

/// Length of the header.
pub const HEADER_SIZE: usize = 100;
/// Length of the trailer.
pub const TRAILER_SIZE: usize = 16;

const MAGIC: &[u8; 4] = b"LTX1";
const FLAG_LZ4: u32 = 1;

/// What a file says about itself before its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether the pages are wrapped in an LZ4 frame.
    pub compressed: bool,
    pub page_size: PageSize,
    /// Size of the database in pages after this file; 0 means it is deleted.
    pub commit: u32,
    pub min_txid: Txid,
    pub max_txid: Txid,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// Checksum of the database before this file; [`Checksum::NONE`] in a snapshot.
    pub pre_apply: Checksum,
    /// The frames the transaction was captured from; `None` when it did not come from a WAL.
    pub wal: Option<WalRange>,
    /// The node that made the file; 0 when unset.
    pub node_id: u64,
}

/// Frames of a WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// Where the first frame begins in the WAL, from 32.
    pub offset: u64,
    /// How many bytes the frames have.
    pub size: u64,
    pub salt: [u32; 2],
}

impl Header {
    /// Whether the file holds the whole database, so that it can be applied to anything.
    pub fn is_snapshot(&self) -> bool {
        self.min_txid == Txid::FIRST
    }

    /// Whether the file deletes the database.
    pub fn is_deletion(&self) -> bool {
        self.commit == 0
    }

    /// The position the file must be applied at, unless it is a snapshot.
    pub fn pre_apply_pos(&self) -> Pos {
        Pos::new(self.min_txid.previous().unwrap_or_default(), self.pre_apply)
    }

    /// Whether the file can be applied to a database at `pos`.
    pub fn follows(&self, pos: Pos) -> bool {
        self.is_snapshot() || self.pre_apply_pos() == pos
    }

    /// The rules that both encoder and decoder enforce.
    pub fn validate(&self) -> Result<(), HeaderError> {
        let (min, max) = (self.min_txid, self.max_txid);
        if min == Txid::ZERO || min > max {
            return Err(HeaderError::Txids { min, max });
        }
        if let Some(wal) = self.wal {
            let range = |value| i64::try_from(value).ok().filter(|value| *value > 0);
            if range(wal.offset).is_none() || range(wal.size).is_none() {
                return Err(HeaderError::WalRange {
                    offset: wal.offset as i64,
                    size: wal.size as i64,
                });
            }
        }
        match self.pre_apply {
            Checksum::NONE if self.is_snapshot() => Ok(()),
            pre_apply if self.is_snapshot() => Err(HeaderError::SnapshotPreApply(pre_apply)),
            pre_apply if pre_apply.is_present() => Ok(()),
            pre_apply => Err(HeaderError::PreApply(pre_apply)),
        }
    }

    /// Parses and validates a header.
    pub fn parse(bytes: &[u8; HEADER_SIZE]) -> Result<Header, HeaderError> {
        if !bytes.starts_with(MAGIC) {
            return Err(HeaderError::Magic);
        }
        let flags = u32_at(bytes, 4);
        if flags & !FLAG_LZ4 != 0 {
            return Err(HeaderError::Flags(flags));
        }
        let header = Header {
            compressed: flags & FLAG_LZ4 != 0,
            page_size: PageSize::new(u32_at(bytes, 8))?,
            commit: u32_at(bytes, 12),
            min_txid: Txid(u64_at(bytes, 16)),
            max_txid: Txid(u64_at(bytes, 24)),
            timestamp: u64_at(bytes, 32) as i64,
            pre_apply: Checksum(u64_at(bytes, 40)),
            wal: parse_wal_range(bytes)?,
            node_id: u64_at(bytes, 72),
        };
        header.validate()?;
        Ok(header)
    }

    /// The header as it is stored. Not validated.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let mut put =
            |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
        put(0, MAGIC);
        put(4, &(if self.compressed { FLAG_LZ4 } else { 0 }).to_be_bytes());
        put(8, &self.page_size.get().to_be_bytes());
        put(12, &self.commit.to_be_bytes());
        put(16, &self.min_txid.0.to_be_bytes());
        put(24, &self.max_txid.0.to_be_bytes());
        put(32, &self.timestamp.to_be_bytes());
        put(40, &self.pre_apply.0.to_be_bytes());
        if let Some(wal) = self.wal {
            put(48, &wal.offset.to_be_bytes());
            put(56, &wal.size.to_be_bytes());
            put(64, &wal.salt[0].to_be_bytes());
            put(68, &wal.salt[1].to_be_bytes());
        }
        put(72, &self.node_id.to_be_bytes());
        bytes
    }
}

/// All fields 0 is "no range"; one of offset and size without the other, or salts without both, is an error.
fn parse_wal_range(bytes: &[u8; HEADER_SIZE]) -> Result<Option<WalRange>, HeaderError> {
    let (offset, size) = (u64_at(bytes, 48), u64_at(bytes, 56));
    let salt = [u32_at(bytes, 64), u32_at(bytes, 68)];
    match (offset, size) {
        (0, 0) if salt == [0, 0] => Ok(None),
        (0, 0) => Err(HeaderError::WalSalt),
        _ => Ok(Some(WalRange { offset, size, salt })),
    }
}

/// What a file says about itself after its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Checksum of the database after this file.
    pub post_apply: Checksum,
    /// Checksum of the file itself, without compression.
    pub file: Checksum,
}

impl Trailer {
    pub(crate) fn parse(bytes: &[u8; TRAILER_SIZE]) -> Trailer {
        Trailer {
            post_apply: Checksum(u64_at(bytes, 0)),
            file: Checksum(u64_at(bytes, 8)),
        }
    }

    pub(crate) fn encode(self) -> [u8; TRAILER_SIZE] {
        let mut bytes = [0; TRAILER_SIZE];
        bytes[..8].copy_from_slice(&self.post_apply.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.file.0.to_be_bytes());
        bytes
    }
}

/// The rules for the checksum of the database after a file with `header`.
pub(crate) fn validate_post_apply(header: &Header, post_apply: Checksum) -> Result<(), TrailerError> {
    if !post_apply.is_present() {
        return Err(TrailerError::PostApply(post_apply));
    }
    if header.is_deletion() && post_apply != Checksum::EMPTY_DATABASE {
        return Err(TrailerError::NotEmpty(post_apply));
    }
    Ok(())
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(
        bytes[offset..offset + 4]
            .try_into()
            .expect("the slice is 4 bytes long"),
    )
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_be_bytes(
        bytes[offset..offset + 8]
            .try_into()
            .expect("the slice is 8 bytes long"),
    )
}
