//! Page numbers and hash tables of the wal-index.
//!
//! Frame `f` has entry `f - zero` (counted from 1) in its block, where `zero` is the last frame of the block
//! before. The entry's page number stands in an array of `u32` at the start of the block; the hash table of 8192
//! `u16` behind it leads from a page number to entries. Slot values are entry numbers, 0 is free, collisions go to
//! the next slot.
//!
//! The functions load and store through [`IndexWords`] and [`IndexStore`]. Two callers implement them: a mapping of
//! the shared memory, which must use atomic words, and a copy in a byte slice.

use std::ops::{Range, RangeInclusive};

use super::{BLOCK_SIZE, FIRST_ENTRIES};
use crate::bytes::{ne_u16, ne_u32, put_ne_u16, put_ne_u32};
use crate::page::Pgno;

/// Entries of a block after the first.
const ENTRIES: u32 = 4096;
/// Entries of block 0, which begins with the headers.
const FIRST_BLOCK_ENTRIES: u32 = ENTRIES - (FIRST_ENTRIES / 4) as u32;
const SLOTS: u32 = 8192;
/// Where the hash table begins in a block.
const TABLE: usize = 4 * ENTRIES as usize;
const MULTIPLIER: u32 = 383;

/// The hash table has no free slot where it must have one, or names an entry that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("wal-index block {0}: corrupt hash table")]
pub struct CorruptBlock(pub usize);

/// Words of a wal-index by byte offset in the file. Shared memory changes under the reader, so whoever maps it
/// loads word by word (atomically, relaxed); a copy in memory is a plain slice.
pub trait IndexWords {
    fn load_u32(&self, offset: usize) -> u32;
    fn load_u16(&self, offset: usize) -> u16;
}

/// Stores into a wal-index, by byte offset in the file, in the order given. The caller of [`append`] and
/// [`clean_up`] holds the WRITE (or RECOVER) lock; readers look at entries only once a header names them.
pub trait IndexStore: IndexWords {
    fn store_u32(&mut self, offset: usize, value: u32);
    fn store_u16(&mut self, offset: usize, value: u16);

    /// Zeroes a range whose ends are multiples of 4.
    fn zero(&mut self, range: Range<usize>) {
        for offset in range.step_by(4) {
            self.store_u32(offset, 0);
        }
    }
}

impl IndexWords for [u8] {
    /// Bytes beyond the end of the slice read as zero: blocks nobody has made yet.
    fn load_u32(&self, offset: usize) -> u32 {
        if offset + 4 <= self.len() {
            ne_u32(self, offset)
        } else {
            0
        }
    }

    fn load_u16(&self, offset: usize) -> u16 {
        if offset + 2 <= self.len() {
            ne_u16(self, offset)
        } else {
            0
        }
    }
}

/// Panics when the slice is too short: make it [`block_count`] blocks long first.
impl IndexStore for [u8] {
    fn store_u32(&mut self, offset: usize, value: u32) {
        put_ne_u32(self, offset, value);
    }

    fn store_u16(&mut self, offset: usize, value: u16) {
        put_ne_u16(self, offset, value);
    }
}

/// The hash of a page number: its preferred slot.
pub const fn hash(pgno: Pgno) -> u32 {
    pgno.get().wrapping_mul(MULTIPLIER) & (SLOTS - 1)
}

/// The block with the entry of `frame` (1-based).
pub const fn block_of(frame: u32) -> usize {
    // Block 0 lacks the entries whose room the headers take.
    ((frame as u64 + (ENTRIES - FIRST_BLOCK_ENTRIES) as u64 - 1) / ENTRIES as u64) as usize
}

/// How many blocks a wal-index of `max_frame` frames has; at least one.
pub const fn block_count(max_frame: u32) -> usize {
    block_of(if max_frame == 0 { 1 } else { max_frame }) + 1
}

/// Where the entry of a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameSlot {
    pub block: HashBlock,
    /// Number within the block, from 1: the value hash slots hold.
    pub entry: u16,
}

/// Where the entry of `frame` (1-based) is.
pub const fn slot_of(frame: u32) -> FrameSlot {
    let block = HashBlock::new(block_of(frame));
    FrameSlot {
        block,
        entry: (frame - block.zero()) as u16,
    }
}

impl FrameSlot {
    /// Offset in the file of the frame's page number (`u32`).
    pub const fn page_offset(self) -> usize {
        self.block.entry_offset(self.entry)
    }
}

/// One block: number and layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashBlock {
    number: usize,
}

impl HashBlock {
    pub const fn new(number: usize) -> HashBlock {
        HashBlock { number }
    }

    pub const fn number(self) -> usize {
        self.number
    }

    /// Where the block begins in the file.
    pub const fn offset(self) -> usize {
        self.number * BLOCK_SIZE
    }

    /// The last frame of the block before.
    pub const fn zero(self) -> u32 {
        if self.number == 0 {
            0
        } else {
            FIRST_BLOCK_ENTRIES + (self.number as u32 - 1) * ENTRIES
        }
    }

    /// How many entries the block has: 4062 or 4096.
    pub const fn entries(self) -> u32 {
        if self.number == 0 {
            FIRST_BLOCK_ENTRIES
        } else {
            ENTRIES
        }
    }

    /// Where the page numbers begin in the file.
    pub const fn entries_offset(self) -> usize {
        self.offset() + if self.number == 0 { FIRST_ENTRIES } else { 0 }
    }

    /// Where the page number of an entry (from 1) is in the file.
    pub const fn entry_offset(self, entry: u16) -> usize {
        self.entries_offset() + 4 * (entry as usize - 1)
    }

    /// Where a slot is in the file.
    pub const fn slot_offset(self, slot: u32) -> usize {
        self.offset() + TABLE + 2 * slot as usize
    }

    /// Where the block ends in the file.
    pub const fn end(self) -> usize {
        self.offset() + BLOCK_SIZE
    }

    /// The newest frame of the block in `frames` that holds `pgno`.
    fn find<W: IndexWords + ?Sized>(
        self,
        words: &W,
        pgno: Pgno,
        frames: &RangeInclusive<u32>,
    ) -> Result<Option<u32>, CorruptBlock> {
        let mut found = None;
        for slot in probe(pgno) {
            let entry = words.load_u16(self.slot_offset(slot));
            if entry == 0 {
                return Ok(found);
            }
            if u32::from(entry) > self.entries() {
                return Err(CorruptBlock(self.number));
            }
            let frame = self.zero() + u32::from(entry);
            if frames.contains(&frame) && words.load_u32(self.entry_offset(entry)) == pgno.get() {
                // A later slot of the chain is a later frame.
                found = Some(frame);
            }
        }
        Err(CorruptBlock(self.number))
    }
}

/// All slots in the order in which a page number tries them.
fn probe(pgno: Pgno) -> impl Iterator<Item = u32> {
    let first = hash(pgno);
    (0..SLOTS).map(move |step| (first + step) & (SLOTS - 1))
}

/// The newest frame in `frames` that holds `pgno`, as a reader whose snapshot begins at `frames.start()` (the first
/// frame that is not certainly in the database) and ends at `frames.end()` finds it.
pub fn find_frame<W: IndexWords + ?Sized>(
    words: &W,
    pgno: Pgno,
    frames: RangeInclusive<u32>,
) -> Result<Option<u32>, CorruptBlock> {
    let first = (*frames.start()).max(1);
    if *frames.end() < first {
        return Ok(None);
    }
    let frames = first..=*frames.end();
    for number in (block_of(first)..=block_of(*frames.end())).rev() {
        if let Some(frame) = HashBlock::new(number).find(words, pgno, &frames)? {
            return Ok(Some(frame));
        }
    }
    Ok(None)
}

/// Enters `frame`, which follows the last one entered. The first entry of a block clears the block; what a transaction
/// that was rolled back left behind is removed first.
pub fn append<S: IndexStore + ?Sized>(store: &mut S, frame: u32, pgno: Pgno) -> Result<(), CorruptBlock> {
    let FrameSlot { block, entry } = slot_of(frame);
    let page_offset = block.entry_offset(entry);
    if entry == 1 {
        store.zero(block.entries_offset()..block.end());
    } else if store.load_u32(page_offset) != 0 {
        clean_up(store, frame - 1);
    }
    // No more entries than came before can stand in the way.
    let mut free = probe(pgno)
        .take(usize::from(entry))
        .map(|slot| block.slot_offset(slot));
    let free = free
        .find(|offset| store.load_u16(*offset) == 0)
        .ok_or(CorruptBlock(block.number))?;
    store.store_u32(page_offset, pgno.get());
    store.store_u16(free, entry);
    Ok(())
}

/// Removes all entries after `max_frame` from the block that holds it, as SQLite does after a rollback. Later blocks need
/// nothing: their first entry clears them.
pub fn clean_up<S: IndexStore + ?Sized>(store: &mut S, max_frame: u32) {
    if max_frame == 0 {
        return;
    }
    let FrameSlot { block, entry } = slot_of(max_frame);
    for slot in 0..SLOTS {
        let offset = block.slot_offset(slot);
        if store.load_u16(offset) > entry {
            store.store_u16(offset, 0);
        }
    }
    store.zero(block.entry_offset(entry) + 4..block.offset() + TABLE);
}
