//! The header of the table's file, in two slots written in turn: one is always whole.
//!
//! Layout, big-endian: magic `LFCK`, page size u32 (0 = none), pages u32, zero u32, TXID, rolling checksum,
//! generation, CRC-64 of the bytes before it.

use crc_fast::{CrcAlgorithm, checksum};
use ltx::{Checksum, Pos, Txid};
use sqlite_format::PageSize;

use super::{BLOCK, Result};
use crate::disk::DiskFile;

const LEN: usize = 48;
const MAGIC: [u8; 4] = *b"LFCK";

#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) page_size: Option<PageSize>,
    pub(super) pages: u32,
    pub(super) pos: Pos,
    pub(super) generation: u64,
}

impl Slot {
    pub(super) fn read_newest(file: &dyn DiskFile) -> Result<Option<Slot>> {
        let mut newest: Option<Slot> = None;
        for number in 0..2 {
            let mut bytes = [0; LEN];
            let count = file.read_at("checksums.open.header", &mut bytes, offset(number))?;
            let slot = if count == LEN { Slot::decode(&bytes) } else { None };
            newest = newest.into_iter().chain(slot).max_by_key(|slot| slot.generation);
        }
        Ok(newest)
    }

    pub(super) fn write(&self, file: &dyn DiskFile) -> Result<()> {
        Ok(file.write_all_at("checksums.flush.header", &self.encode(), offset(self.generation))?)
    }

    fn encode(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&self.page_size.map_or(0, PageSize::get).to_be_bytes());
        out[8..12].copy_from_slice(&self.pages.to_be_bytes());
        out[16..24].copy_from_slice(&self.pos.txid.0.to_be_bytes());
        out[24..32].copy_from_slice(&self.pos.post_apply.0.to_be_bytes());
        out[32..40].copy_from_slice(&self.generation.to_be_bytes());
        let crc = checksum(CrcAlgorithm::Crc64GoIso, &out[..40]);
        out[40..].copy_from_slice(&crc.to_be_bytes());
        out
    }

    fn decode(bytes: &[u8; LEN]) -> Option<Slot> {
        let u32_at = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let valid = bytes[..4] == MAGIC && checksum(CrcAlgorithm::Crc64GoIso, &bytes[..40]) == u64_at(40);
        valid.then(|| Slot {
            page_size: PageSize::new(u32_at(4)).ok(),
            pages: u32_at(8),
            pos: Pos {
                txid: Txid(u64_at(16)),
                post_apply: Checksum(u64_at(24)),
            },
            generation: u64_at(32),
        })
    }
}

fn offset(generation: u64) -> u64 {
    (generation % 2) * BLOCK as u64
}
