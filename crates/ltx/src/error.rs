//! What can go wrong, by kind: the input is not LTX, the disk or network failed, or the caller erred.

use std::io;

use sqlite_format::{InvalidPageSize, PageSize, Pgno};

use crate::checksum::Checksum;
use crate::txid::Txid;

/// An error of encoding, decoding or compaction.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The underlying reader or writer failed.
    #[error("LTX: {operation}: {source}")]
    Io {
        operation: &'static str,
        source: io::Error,
    },
    /// The input ends too early.
    #[error("LTX: truncated in {0}")]
    Truncated(&'static str),
    #[error("LTX header: {0}")]
    Header(#[from] HeaderError),
    #[error("LTX page: {0}")]
    Page(#[from] PageError),
    #[error("LTX body: {0}")]
    Lz4(#[from] Lz4Error),
    #[error("LTX trailer: {0}")]
    Trailer(#[from] TrailerError),
    #[error("LTX compaction: {0}")]
    Compact(#[from] CompactError),
    /// Only a snapshot can be made into a database.
    #[error("LTX file {min}-{max} is not a snapshot")]
    NotSnapshot { min: Txid, max: Txid },
    /// [`crate::verify`]: the input has more bytes than the file.
    #[error("LTX: bytes after the trailer")]
    TrailingBytes,
    /// An earlier call on this encoder or decoder failed; nothing can follow.
    #[error("LTX: used after an error")]
    Failed,
}

impl Error {
    /// Whether the bytes are at fault, rather than the reader, the writer or the caller.
    pub fn is_corruption(&self) -> bool {
        match self {
            Error::Truncated(_)
            | Error::Header(_)
            | Error::Lz4(_)
            | Error::Trailer(_)
            | Error::TrailingBytes => true,
            Error::Page(error) => !matches!(error, PageError::Length { .. }),
            Error::Io { .. } | Error::Compact(_) | Error::NotSnapshot { .. } | Error::Failed => false,
        }
    }

    /// Turns an early end of input into [`Error::Truncated`].
    pub(crate) fn reading(operation: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated(operation),
            _ => Error::Io { operation, source },
        }
    }

    pub(crate) fn writing(operation: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { operation, source }
    }
}

/// Why a header is refused, when reading and when writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("wrong magic")]
    Magic,
    #[error("unknown flags {0:#010x}")]
    Flags(u32),
    #[error("{0}")]
    PageSize(#[from] InvalidPageSize),
    #[error("invalid transactions {min}-{max}")]
    Txids { min: Txid, max: Txid },
    #[error("invalid WAL range: offset {offset}, size {size}")]
    WalRange { offset: i64, size: i64 },
    #[error("WAL salts without a WAL range")]
    WalSalt,
    #[error("snapshot with pre-apply checksum {0}")]
    SnapshotPreApply(Checksum),
    #[error("pre-apply checksum {0} is not a checksum")]
    PreApply(Checksum),
}

/// Why a page, or the end of the pages, is refused, when reading and when writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    #[error("page 0")]
    Zero,
    #[error("page {pgno} is beyond the size of {commit} pages")]
    OutOfBounds { pgno: Pgno, commit: u32 },
    #[error("page {0} is the lock page")]
    LockPage(Pgno),
    #[error("page {pgno} does not come after page {last}")]
    Order { pgno: Pgno, last: Pgno },
    #[error("snapshot lacks page {0}")]
    Missing(Pgno),
    #[error("buffer of {actual} bytes for a page of {expected}")]
    Length { expected: PageSize, actual: usize },
}

/// Why the LZ4 frame is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lz4Error {
    #[error("not an LZ4 frame: magic {0:#010x}")]
    Magic(u32),
    #[error("LZ4 frame descriptor {flags:#04x} {block:#04x} is invalid")]
    Descriptor { flags: u8, block: u8 },
    #[error("LZ4 frame needs a dictionary")]
    Dictionary,
    #[error("LZ4 frame descriptor: wrong checksum")]
    DescriptorChecksum,
    #[error("LZ4 block of {size} bytes is larger than {max}")]
    BlockSize { size: usize, max: usize },
    #[error("LZ4 block cannot be decompressed")]
    Block,
    #[error("LZ4 block: wrong checksum")]
    BlockChecksum,
    #[error("LZ4 frame ends within a page")]
    EndsEarly,
    #[error("LZ4 frame goes on after the last page")]
    EndsLate,
    #[error("LZ4 frame: wrong content size")]
    ContentSize,
    #[error("LZ4 frame: wrong content checksum")]
    ContentChecksum,
}

/// Why a trailer is refused, when reading and when writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrailerError {
    #[error("post-apply checksum {0} is not a checksum")]
    PostApply(Checksum),
    #[error("post-apply checksum {0} of a database without pages")]
    NotEmpty(Checksum),
    #[error("post-apply checksum {stored} of a snapshot whose pages have {actual}")]
    Snapshot { stored: Checksum, actual: Checksum },
    #[error("file checksum {stored}, but the content has {actual}")]
    File { stored: Checksum, actual: Checksum },
}

/// Why files cannot be compacted into one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompactError {
    #[error("no input")]
    NoInput,
    #[error("input {index} has page size {actual}, not {expected}")]
    PageSize {
        index: usize,
        expected: PageSize,
        actual: PageSize,
    },
    #[error("input {index} begins at {actual}, but the one before ends at {previous}")]
    NotContiguous {
        index: usize,
        previous: Txid,
        actual: Txid,
    },
    #[error(
        "input {index} expects a database with checksum {pre_apply}, but the one before leaves {post_apply}"
    )]
    Diverged {
        index: usize,
        post_apply: Checksum,
        pre_apply: Checksum,
    },
    #[error("page {0} was cut off and came back without content")]
    Resurrected(Pgno),
}

/// Text that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("{0:?} is not a TXID (16 hexadecimal digits)")]
    Txid(String),
    #[error("{0:?} is not a checksum (16 hexadecimal digits)")]
    Checksum(String),
    #[error("{0:?} is not a position (TXID/checksum)")]
    Pos(String),
}
