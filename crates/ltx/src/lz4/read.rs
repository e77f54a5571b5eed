//! Reads frames of any legal descriptor, and not one byte more.

use std::hash::Hasher;
use std::io::Read;
use std::ops::Range;

use lz4_flex::block::{decompress_into, decompress_into_with_dict};
use twox_hash::XxHash32;

use super::{MAGIC, STORED, content_hasher};
use crate::error::{Error, Lz4Error};

const VERSION: u8 = 0b01;
/// How far a block may refer back into the blocks before it.
const WINDOW: usize = 64 * 1024;

/// Buffers of a frame reader, kept between frames. They grow to two blocks of the size that frames announce, which is
/// at most 4 MiB.
#[derive(Default)]
pub(crate) struct ReadBuffers {
    packed: Vec<u8>,
    plain: Vec<u8>,
    window: Vec<u8>,
}

/// Where the reader is in a frame.
pub(crate) struct FrameReader {
    max_block: usize,
    independent: bool,
    block_checksums: bool,
    content_checksum: bool,
    content_size: Option<u64>,
    produced: u64,
    hasher: XxHash32,
    /// Decompressed content that was not read yet, in `ReadBuffers::plain`.
    ready: Range<usize>,
}

impl FrameReader {
    /// Reads the descriptor.
    pub(crate) fn begin<R: Read>(reader: &mut R) -> Result<FrameReader, Error> {
        let magic = u32::from_le_bytes(read_array(reader)?);
        if magic != MAGIC {
            return Err(Lz4Error::Magic(magic).into());
        }
        // Flags, block size, and up to 8 bytes content size.
        let mut descriptor = [0; 10];
        let [flags, block] = read_array(reader)?;
        descriptor[..2].copy_from_slice(&[flags, block]);
        let invalid = Lz4Error::Descriptor { flags, block };
        if flags >> 6 != VERSION || flags & 0b10 != 0 || block & 0b1000_1111 != 0 {
            return Err(invalid.into());
        }
        if flags & 0b1 != 0 {
            return Err(Lz4Error::Dictionary.into());
        }
        let max_block = match block >> 4 {
            id @ 4..=7 => 1 << (8 + 2 * id),
            _ => return Err(invalid.into()),
        };
        let mut length = 2;
        let mut content_size = None;
        if flags & 0b1000 != 0 {
            let size: [u8; 8] = read_array(reader)?;
            descriptor[2..].copy_from_slice(&size);
            length = descriptor.len();
            content_size = Some(u64::from_le_bytes(size));
        }
        let [checksum] = read_array(reader)?;
        if checksum != (XxHash32::oneshot(0, &descriptor[..length]) >> 8) as u8 {
            return Err(Lz4Error::DescriptorChecksum.into());
        }
        Ok(FrameReader {
            max_block,
            independent: flags & 0b10_0000 != 0,
            block_checksums: flags & 0b1_0000 != 0,
            content_checksum: flags & 0b100 != 0,
            content_size,
            produced: 0,
            hasher: content_hasher(),
            ready: 0..0,
        })
    }

    /// Fills `out` with content.
    pub(crate) fn read<R: Read>(
        &mut self,
        reader: &mut R,
        buffers: &mut ReadBuffers,
        mut out: &mut [u8],
    ) -> Result<(), Error> {
        while !out.is_empty() {
            if self.ready.is_empty() && !self.next_block(reader, buffers)? {
                return Err(Lz4Error::EndsEarly.into());
            }
            let length = out.len().min(self.ready.len());
            let (now, later) = out.split_at_mut(length);
            now.copy_from_slice(&buffers.plain[self.ready.start..self.ready.start + length]);
            self.ready.start += length;
            out = later;
        }
        Ok(())
    }

    /// Reads the end of the frame, which must be here.
    pub(crate) fn end<R: Read>(mut self, reader: &mut R, buffers: &mut ReadBuffers) -> Result<(), Error> {
        if !self.ready.is_empty() {
            return Err(Lz4Error::EndsLate.into());
        }
        while self.next_block(reader, buffers)? {
            if !self.ready.is_empty() {
                return Err(Lz4Error::EndsLate.into());
            }
        }
        if self.content_size.is_some_and(|size| size != self.produced) {
            return Err(Lz4Error::ContentSize.into());
        }
        if self.content_checksum {
            let stored = u32::from_le_bytes(read_array(reader)?);
            if stored != self.hasher.finish_32() {
                return Err(Lz4Error::ContentChecksum.into());
            }
        }
        Ok(())
    }

    /// Decompresses the next block; false when the end mark comes instead.
    fn next_block<R: Read>(&mut self, reader: &mut R, buffers: &mut ReadBuffers) -> Result<bool, Error> {
        let length = u32::from_le_bytes(read_array(reader)?);
        if length == 0 {
            return Ok(false);
        }
        let (stored, size) = (length & STORED != 0, (length & !STORED) as usize);
        if size > self.max_block {
            return Err(Lz4Error::BlockSize {
                size,
                max: self.max_block,
            }
            .into());
        }
        buffers.packed.resize(size, 0);
        reader
            .read_exact(&mut buffers.packed)
            .map_err(Error::reading("LZ4 block"))?;
        if self.block_checksums {
            let checksum = u32::from_le_bytes(read_array(reader)?);
            if checksum != XxHash32::oneshot(0, &buffers.packed) {
                return Err(Lz4Error::BlockChecksum.into());
            }
        }
        let produced = if stored {
            std::mem::swap(&mut buffers.packed, &mut buffers.plain);
            size
        } else {
            self.decompress(buffers).ok_or(Lz4Error::Block)?
        };
        self.ready = 0..produced;
        self.produced += produced as u64;
        let plain = &buffers.plain[..produced];
        self.hasher.write(plain);
        if !self.independent {
            slide(&mut buffers.window, plain, self.produced);
        }
        Ok(true)
    }

    fn decompress(&self, buffers: &mut ReadBuffers) -> Option<usize> {
        if buffers.plain.len() < self.max_block {
            buffers.plain.resize(self.max_block, 0);
        }
        let out = &mut buffers.plain[..self.max_block];
        let result = if self.independent || self.produced == 0 {
            decompress_into(&buffers.packed, out)
        } else {
            decompress_into_with_dict(&buffers.packed, out, &buffers.window)
        };
        result.ok()
    }
}

/// Appends `plain` to the window of what blocks may refer to; `produced` is what the frame held up to here.
fn slide(window: &mut Vec<u8>, plain: &[u8], produced: u64) {
    if produced == plain.len() as u64 {
        window.clear();
    }
    let new = &plain[plain.len().saturating_sub(WINDOW)..];
    let excess = (window.len() + new.len()).saturating_sub(WINDOW);
    window.drain(..excess.min(window.len()));
    window.extend_from_slice(new);
}

fn read_array<const N: usize>(reader: &mut impl Read) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    reader
        .read_exact(&mut bytes)
        .map_err(Error::reading("LZ4 frame"))?;
    Ok(bytes)
}
