//! Writes frames as LiteFS does: independent blocks of 64 KiB and a content checksum.

use std::hash::Hasher;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use twox_hash::XxHash32;

use super::{STORED, content_hasher};

/// Magic, version 1 with independent blocks and content checksum, blocks of 64 KiB, checksum of these two bytes.
const DESCRIPTOR: [u8; 7] = [0x04, 0x22, 0x4d, 0x18, 0x64, 0x40, 0xa7];
const BLOCK: usize = 64 * 1024;
/// Inputs below this length compress with the small table, which is quicker to clear.
const SMALL_INPUT: usize = u16::MAX as usize;

/// What compression needs, kept between frames.
pub(crate) struct WriteBuffers {
    small: CompressTable,
    large: Option<CompressTable>,
    /// Content of the block that is not full yet.
    plain: Vec<u8>,
}

impl Default for WriteBuffers {
    fn default() -> WriteBuffers {
        WriteBuffers {
            small: CompressTable::small(),
            large: None,
            plain: Vec::new(),
        }
    }
}

/// Appends one frame to a vector. Begin, write, end.
pub(crate) struct FrameWriter {
    hasher: XxHash32,
}

impl FrameWriter {
    pub(crate) fn begin(buffers: &mut WriteBuffers, out: &mut Vec<u8>) -> FrameWriter {
        buffers.plain.clear();
        out.extend_from_slice(&DESCRIPTOR);
        FrameWriter {
            hasher: content_hasher(),
        }
    }

    pub(crate) fn write(&mut self, buffers: &mut WriteBuffers, mut content: &[u8], out: &mut Vec<u8>) {
        self.hasher.write(content);
        while !content.is_empty() {
            let room = BLOCK - buffers.plain.len();
            let (now, later) = content.split_at(room.min(content.len()));
            buffers.plain.extend_from_slice(now);
            content = later;
            if buffers.plain.len() == BLOCK {
                buffers.flush(out);
            }
        }
    }

    pub(crate) fn end(self, buffers: &mut WriteBuffers, out: &mut Vec<u8>) {
        if !buffers.plain.is_empty() {
            buffers.flush(out);
        }
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.hasher.finish_32().to_le_bytes());
    }
}

impl WriteBuffers {
    /// Appends the content collected so far as one block.
    fn flush(&mut self, out: &mut Vec<u8>) {
        let table = if self.plain.len() < SMALL_INPUT {
            &mut self.small
        } else {
            self.large.get_or_insert_with(CompressTable::large)
        };
        let head = out.len();
        let start = head + 4;
        out.resize(start + get_maximum_output_size(self.plain.len()), 0);
        let packed = compress_into_with_table(&self.plain, &mut out[start..], table)
            .expect("the output has the maximum size of compressed content");
        let length = if packed < self.plain.len() {
            out.truncate(start + packed);
            packed as u32
        } else {
            out.truncate(start);
            out.extend_from_slice(&self.plain);
            self.plain.len() as u32 | STORED
        };
        out[head..start].copy_from_slice(&length.to_le_bytes());
        self.plain.clear();
    }
}
