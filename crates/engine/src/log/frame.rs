//! The fixed header before each record in a segment. Big-endian, like the LTX bytes that follow it.
//!
//! | offset | size | field |
//! |---:|---:|---|
//! | 0 | 4 | magic `LFR1` |
//! | 4 | 1 | origin: 1 captured, 2 applied, 3 snapshot |
//! | 5 | 1 | 1 = the WAL position is set |
//! | 8 | 8 | CRC-64 of the header, computed with this field zero |
//! | 16 | 8 | payload length |
//! | 24 | 16 | min and max TXID |
//! | 40 | 16 | pre-apply and post-apply checksum |
//! | 56 | 8 | timestamp, ms |
//! | 64 | 8 | page size, commit |
//! | 72 | 4 | journal nonce |
//! | 76 | 16 | WAL salts and end offset |
//! | 92 | 8 | bytes of the segment known to be durable when the record was written |
//! | 100 | 28 | zero |
//!
//! The durable length bounds what a start must verify after a restart of the machine: everything behind the largest one
//! found, nothing before it.

use crc_fast::{CrcAlgorithm, checksum};
use ltx::{Checksum, PageSize, Txid};

use super::record::{Origin, RecordInfo, RecordMeta, WalPosition};

pub(super) const HEADER_LEN: usize = 128;
const MAGIC: [u8; 4] = *b"LFR1";
pub(super) const ALIGNMENT: u64 = 8;

/// Bytes a record with a payload of `len` bytes takes in a segment.
pub(super) fn frame_len(len: u64) -> u64 {
    HEADER_LEN as u64 + len.next_multiple_of(ALIGNMENT)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) info: RecordInfo,
    pub(super) durable: u64,
}

impl FrameHeader {
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let info = &self.info;
        let wal = info.meta.wal.unwrap_or(WalPosition { salt: [0, 0], end: 0 });
        let mut out = [0; HEADER_LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = origin_byte(info.meta.origin);
        out[5] = u8::from(info.meta.wal.is_some());
        put_u64(&mut out, 16, info.len);
        put_u64(&mut out, 24, info.min.0);
        put_u64(&mut out, 32, info.max.0);
        put_u64(&mut out, 40, info.pre.0);
        put_u64(&mut out, 48, info.post.0);
        put_u64(&mut out, 56, info.timestamp_ms as u64);
        put_u32(&mut out, 64, info.page_size.get());
        put_u32(&mut out, 68, info.commit);
        put_u32(&mut out, 72, info.meta.journal_nonce);
        put_u32(&mut out, 76, wal.salt[0]);
        put_u32(&mut out, 80, wal.salt[1]);
        put_u64(&mut out, 84, wal.end);
        put_u64(&mut out, 92, self.durable);
        let crc = checksum(CrcAlgorithm::Crc64GoIso, &out);
        put_u64(&mut out, 8, crc);
        out
    }

    /// None: these bytes are not a frame header.
    pub(super) fn decode(bytes: &[u8; HEADER_LEN]) -> Option<FrameHeader> {
        if bytes[..4] != MAGIC {
            return None;
        }
        let mut unsigned = *bytes;
        unsigned[8..16].fill(0);
        if checksum(CrcAlgorithm::Crc64GoIso, &unsigned) != get_u64(bytes, 8) {
            return None;
        }
        let salt = [get_u32(bytes, 76), get_u32(bytes, 80)];
        let wal = (bytes[5] == 1).then(|| WalPosition {
            salt,
            end: get_u64(bytes, 84),
        });
        let meta = RecordMeta {
            origin: origin(bytes[4])?,
            journal_nonce: get_u32(bytes, 72),
            wal,
        };
        let info = RecordInfo {
            min: Txid(get_u64(bytes, 24)),
            max: Txid(get_u64(bytes, 32)),
            pre: Checksum(get_u64(bytes, 40)),
            post: Checksum(get_u64(bytes, 48)),
            timestamp_ms: get_u64(bytes, 56) as i64,
            page_size: PageSize::new(get_u32(bytes, 64)).ok()?,
            commit: get_u32(bytes, 68),
            meta,
            len: get_u64(bytes, 16),
        };
        // A record of 2^63 bytes would overflow the arithmetic of offsets.
        let plausible = info.min.0 > 0 && info.min <= info.max && info.len < 1 << 62;
        plausible.then_some(FrameHeader {
            info,
            durable: get_u64(bytes, 92),
        })
    }
}

fn origin_byte(origin: Origin) -> u8 {
    match origin {
        Origin::Captured => 1,
        Origin::Applied => 2,
        Origin::Snapshot => 3,
    }
}

fn origin(byte: u8) -> Option<Origin> {
    match byte {
        1 => Some(Origin::Captured),
        2 => Some(Origin::Applied),
        3 => Some(Origin::Snapshot),
        _ => None,
    }
}

fn put_u64(out: &mut [u8], at: usize, value: u64) {
    out[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn put_u32(out: &mut [u8], at: usize, value: u32) {
    out[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> FrameHeader {
        let wal = Some(WalPosition {
            salt: [7, 8],
            end: 1 << 40,
        });
        let info = RecordInfo {
            min: Txid(3),
            max: Txid(5),
            pre: Checksum(1 << 63 | 1),
            post: Checksum(1 << 63 | 2),
            timestamp_ms: 1234,
            page_size: PageSize::DEFAULT,
            commit: 77,
            meta: RecordMeta {
                origin: Origin::Applied,
                journal_nonce: 9,
                wal,
            },
            len: 4321,
        };
        FrameHeader { info, durable: 4096 }
    }

    #[test]
    fn a_header_reads_back() {
        assert_eq!(FrameHeader::decode(&header().encode()), Some(header()));
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let bytes = header().encode();
        for bit in 0..HEADER_LEN * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::decode(&damaged), None, "bit {bit}");
        }
        assert_eq!(FrameHeader::decode(&[0; HEADER_LEN]), None);
    }

    #[test]
    fn frames_are_aligned() {
        assert_eq!(frame_len(1), 136);
        assert_eq!(frame_len(8), 136);
    }
}
