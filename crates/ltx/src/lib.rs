//! LTX: the file that holds one transaction, or a snapshot, of a SQLite database.
//!
//! ```text
//! header (100 bytes) | pages in ascending order, end marker | trailer (16 bytes)
//! ```
//!
//! Commit encodes a transaction with [`Encoder`]; the log stores and the wire carries the same bytes; apply reads them with
//! [`Decoder`]. This is version 1 of the format, which LiteFS 0.5 reads and writes. The middle part is one LZ4 frame when
//! [`Header::compressed`] is set.
//!
//! Invariants: encoder and decoder enforce the same rules (order, bounds, completeness of snapshots, checksums), so what
//! is written can be read; the decoder never reads past the trailer, so records can follow each other in a stream; no
//! input makes it panic or allocate more than a few LZ4 blocks. Only `Read` and `Write` are used, no files.

mod checksum;
mod compact;
mod database;
mod decode;
mod encode;
mod error;
mod header;
mod lz4;
mod name;
mod pos;
mod sequence;
mod txid;
mod verify;
mod zeros;

pub use checksum::{Checksum, page_checksum};
pub use compact::{CompactOptions, compact};
pub use database::decode_database;
pub use decode::{Decoder, DecoderBuffers};
pub use encode::{Encoder, EncoderBuffers};
pub use error::{CompactError, Error, HeaderError, Lz4Error, PageError, ParseError, TrailerError};
pub use header::{HEADER_SIZE, Header, TRAILER_SIZE, Trailer, WalRange};
pub use name::{file_name, parse_file_name};
pub use pos::Pos;
pub use txid::Txid;
pub use verify::{Summary, verify};
pub use zeros::ZeroPages;

pub use sqlite_format::{PageSize, Pgno};
