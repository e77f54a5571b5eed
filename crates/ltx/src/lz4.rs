//! The LZ4 frame around the pages.
//!
//! Written by hand around LZ4 blocks, because a file is often one page: the state of a frame encoder would cost more
//! than the page. And because the reader must stop exactly at the end of the frame, where the trailer begins.

mod read;
mod write;

pub(crate) use read::{FrameReader, ReadBuffers};
pub(crate) use write::{FrameWriter, WriteBuffers};

use twox_hash::XxHash32;

const MAGIC: u32 = 0x184d_2204;
/// Set in a block's length when the block is stored as it is.
const STORED: u32 = 1 << 31;

/// xxHash32 of the content, seed 0.
fn content_hasher() -> XxHash32 {
    XxHash32::with_seed(0)
}
