//! Files made without the encoder: with an independent CRC, an independent LZ4 frame, and no rules.
#![allow(dead_code, reason = "each test uses a part")]

use std::io::Write;

use ltx::{Checksum, Header, PageSize, Txid};
use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

const CRC: crc::Crc<u64> = crc::Crc::<u64>::new(&crc::CRC_64_GO_ISO);

pub(crate) fn header(min: u64, max: u64, commit: u32) -> Header {
    Header {
        compressed: false,
        page_size: PageSize::MIN,
        commit,
        min_txid: Txid(min),
        max_txid: Txid(max),
        timestamp: 1_700_000_000_000,
        pre_apply: if min == 1 {
            Checksum::NONE
        } else {
            Checksum(Checksum::FLAG | 0x1234)
        },
        wal: None,
        node_id: 7,
    }
}

pub(crate) fn page_checksum(pgno: u32, page: &[u8]) -> u64 {
    Checksum::FLAG | CRC.checksum(&[&pgno.to_be_bytes()[..], page].concat())
}

pub(crate) fn rolling_checksum<'a>(pages: impl IntoIterator<Item = (u32, &'a [u8])>) -> u64 {
    pages
        .into_iter()
        .fold(0, |sum, (pgno, page)| sum ^ page_checksum(pgno, page))
        | Checksum::FLAG
}

/// A file whose file checksum is right, whatever else is wrong.
pub(crate) fn file(
    header: &[u8],
    pages: &[(u32, Vec<u8>)],
    post_apply: u64,
    frame: Option<FrameInfo>,
) -> Vec<u8> {
    let mut body = Vec::new();
    for (pgno, page) in pages {
        body.extend(pgno.to_be_bytes());
        body.extend(page);
    }
    body.extend([0; 4]);
    let checksum = CRC.checksum(&[header, &body, &post_apply.to_be_bytes()].concat()) | Checksum::FLAG;
    let mut file = header.to_vec();
    file.extend(match frame {
        Some(frame) => lz4(frame, &body),
        None => body,
    });
    file.extend(post_apply.to_be_bytes());
    file.extend(checksum.to_be_bytes());
    file
}

/// Like [`file`], from a header that is right, without compression.
pub(crate) fn raw(header: &Header, pages: &[(u32, Vec<u8>)], post_apply: u64) -> Vec<u8> {
    file(&header.encode(), pages, post_apply, None)
}

pub(crate) fn lz4(frame: FrameInfo, content: &[u8]) -> Vec<u8> {
    let mut encoder = FrameEncoder::with_frame_info(frame, Vec::new());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn all_frames() -> Vec<FrameInfo> {
    let mut frames = Vec::new();
    for size in [
        BlockSize::Max64KB,
        BlockSize::Max256KB,
        BlockSize::Max1MB,
        BlockSize::Max4MB,
    ] {
        for mode in [BlockMode::Independent, BlockMode::Linked] {
            for checksums in [false, true] {
                let frame = FrameInfo::new().block_size(size).block_mode(mode);
                frames.push(frame.block_checksums(checksums).content_checksum(!checksums));
            }
        }
    }
    frames
}

/// Content that compresses, but not to nothing.
pub(crate) fn page(seed: u32, size: usize) -> Vec<u8> {
    let word = |i: u32| {
        (seed.wrapping_add(i / 3))
            .wrapping_mul(2_654_435_761)
            .to_be_bytes()
    };
    (0..size as u32 / 4).flat_map(word).collect()
}
