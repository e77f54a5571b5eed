//! Page checksums of one database, in memory and in a file: which page changed, and what the rolling checksum is,
//! without reading the database.
//!
//! Invariants:
//! * [`ChecksumTable::rolling`] is always the XOR of the entries; the lock page never has one;
//! * the file is a cache of the log: [`ChecksumTable::synced`] names the position at which it was last durable as a
//!   whole. After a crash the file may also hold any of the changes of later records. The caller replays the records
//!   behind that position (setting and truncating is idempotent), then compares the rolling checksum with the last
//!   record's; if they differ, the table is rebuilt from the database;
//! * therefore a flush at a position needs the log to be durable up to it.
//!
//! Used by capture, apply and the opening of a database, under the database's lock: methods take `&mut self`. Only
//! [`Flush::write`] waits for the disk, and it runs without that lock.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ltx::{Checksum, Pos, Txid};
use sqlite_format::{PageSize, Pgno};

use crate::disk::{Disk, DiskError, DiskFile, OpenMode};

mod bitmap;
mod slot;

use bitmap::Bitmap;
use slot::Slot;

const ENTRY: usize = 8;
/// What is written at once.
const BLOCK: usize = 4096;
/// What is read at once: little enough to stay in the processor's cache.
const READ: usize = 64 << 10;
const BLOCK_ENTRIES: usize = BLOCK / ENTRY;
/// Entries start behind two header slots, each a block of its own so that a torn write harms one only.
const ENTRIES_OFFSET: u64 = 2 * BLOCK as u64;
const FLAG: u64 = 1 << 63;

pub type Result<T> = std::result::Result<T, ChecksumsError>;

#[derive(Debug, thiserror::Error)]
pub enum ChecksumsError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A sync failed earlier: what the file holds is unknown until it is opened again.
    #[error("checksum table is closed for writing: a sync failed")]
    Poisoned,
}

/// Checksums of the pages of a database.
#[derive(Debug)]
pub struct ChecksumTable {
    file: Arc<dyn DiskFile>,
    page_size: Option<PageSize>,
    /// By page number - 1; 0 = none.
    entries: Vec<u64>,
    rolling: u64,
    /// Blocks changed since the last prepared flush, and those that flush has yet to confirm.
    dirty: Bitmap,
    in_flight: Bitmap,
    /// Of the newest header, written or prepared.
    generation: u64,
    synced: Pos,
    intact: bool,
    poisoned: Arc<AtomicBool>,
}

impl ChecksumTable {
    /// Opens or makes the file, and reads it: 8 bytes per page of the database.
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<ChecksumTable> {
        let file = disk.open("checksums.open", path, OpenMode::Create)?;
        let len = file.len("checksums.open.length")?;
        if let (0, Some(dir)) = (len, path.parent()) {
            disk.sync_dir("checksums.open.sync", dir)?;
        }
        let slot = Slot::read_newest(&*file)?;
        let entries = match &slot {
            Some(slot) => read_entries(&*file, slot.pages, len)?,
            None => Vec::new(),
        };
        let rolling = entries.iter().fold(0, |sum, entry| sum ^ entry);
        let slot = slot.unwrap_or_default();
        Ok(ChecksumTable {
            file,
            page_size: slot.page_size,
            entries,
            rolling,
            dirty: Bitmap::default(),
            in_flight: Bitmap::default(),
            generation: slot.generation,
            synced: slot.pos,
            intact: slot.pos.txid == Txid(0) || rolling | FLAG == slot.pos.post_apply.0,
            poisoned: Arc::new(AtomicBool::new(false)),
        })
    }

    /// None until [`ChecksumTable::reset`] was called once.
    pub fn page_size(&self) -> Option<PageSize> {
        self.page_size
    }

    /// Pages the table has entries for.
    pub fn pages(&self) -> u32 {
        self.entries.len() as u32
    }

    /// The rolling checksum of the database.
    pub fn rolling(&self) -> Checksum {
        Checksum(self.rolling | FLAG)
    }

    /// The position of the last flush: records behind it are to be replayed after a start. Zero if there was none.
    pub fn synced(&self) -> Pos {
        self.synced
    }

    /// Whether the file, as it was opened, is exactly the table at [`ChecksumTable::synced`]. If not, a crash left
    /// parts of a later flush in it, and a replay repairs it.
    pub fn is_intact(&self) -> bool {
        self.intact
    }

    /// None: the page is not known, or is the lock page.
    pub fn get(&self, pgno: Pgno) -> Option<Checksum> {
        let entry = *self.entries.get(index(pgno))?;
        (entry != 0).then_some(Checksum(entry))
    }

    /// Sets the checksum of a page, growing the table where needed; returns the one it had. The lock page is passed
    /// over.
    pub fn set(&mut self, pgno: Pgno, checksum: Checksum) -> Option<Checksum> {
        if self
            .page_size
            .is_some_and(|page_size| page_size.lock_page() == pgno)
        {
            return None;
        }
        let index = index(pgno);
        if index >= self.entries.len() {
            self.grow(index + 1);
        }
        let old = std::mem::replace(&mut self.entries[index], checksum.0 | FLAG);
        self.rolling ^= old ^ (checksum.0 | FLAG);
        self.dirty.set(index / BLOCK_ENTRIES);
        (old != 0).then_some(Checksum(old))
    }

    /// The database has `pages` pages: forgets those beyond.
    pub fn truncate(&mut self, pages: u32) {
        let pages = pages as usize;
        if pages >= self.entries.len() {
            return;
        }
        self.rolling = self
            .entries
            .drain(pages..)
            .fold(self.rolling, |sum, entry| sum ^ entry);
    }

    /// Forgets everything: the database begins anew, with any page size. The file follows at the next flush.
    pub fn reset(&mut self, page_size: PageSize) {
        self.entries.clear();
        self.rolling = 0;
        self.page_size = Some(page_size);
    }

    /// Makes the file say that it knows nothing, durably. To be called before the log begins a new history: a
    /// position of the old one must not be mistaken for one of the new.
    pub fn invalidate(&mut self) -> Result<()> {
        self.check_poison()?;
        self.generation += 1;
        let slot = Slot {
            generation: self.generation,
            ..Slot::default()
        };
        slot.write(&*self.file)?;
        self.sync("checksums.invalidate.sync")?;
        self.synced = Pos::default();
        // What the header no longer covers must be written again.
        self.dirty
            .set_range(0, self.entries.len().div_ceil(BLOCK_ENTRIES));
        Ok(())
    }

    /// Writes what changed and makes it durable as the table at `txid`. The log must be durable up to there.
    pub fn flush(&mut self, txid: Txid) -> Result<()> {
        let flush = self.prepare_flush(txid)?;
        flush.write()?;
        self.confirm(flush);
        Ok(())
    }

    /// First half of [`ChecksumTable::flush`]: copies what changed. Then [`Flush::write`], without the database's
    /// lock, and [`ChecksumTable::confirm`]. A flush that fails or is dropped is made up for by the next.
    pub fn prepare_flush(&mut self, txid: Txid) -> Result<Flush> {
        self.check_poison()?;
        self.in_flight.take(&mut self.dirty);
        self.generation += 1;
        let slot = Slot {
            page_size: self.page_size,
            pages: self.pages(),
            pos: Pos {
                txid,
                post_apply: self.rolling(),
            },
            generation: self.generation,
        };
        let blocks = self.entries.len().div_ceil(BLOCK_ENTRIES);
        let runs = self
            .in_flight
            .runs(blocks)
            .map(|run| self.copy_run(run))
            .collect();
        Ok(Flush {
            file: self.file.clone(),
            runs,
            slot,
            poisoned: self.poisoned.clone(),
        })
    }

    /// A flush that was written is what the file holds.
    pub fn confirm(&mut self, flush: Flush) {
        if flush.slot.generation == self.generation {
            self.in_flight.clear();
            self.synced = flush.slot.pos;
            self.intact = true;
        }
    }

    fn copy_run(&self, blocks: Range<usize>) -> (u64, Vec<u8>) {
        let start = blocks.start * BLOCK_ENTRIES;
        let end = (blocks.end * BLOCK_ENTRIES).min(self.entries.len());
        let bytes = self.entries[start..end]
            .iter()
            .flat_map(|entry| entry.to_be_bytes())
            .collect();
        (ENTRIES_OFFSET + (start * ENTRY) as u64, bytes)
    }

    fn grow(&mut self, len: usize) {
        let first = self.entries.len() / BLOCK_ENTRIES;
        self.entries.resize(len, 0);
        // What the file holds there is from before a truncation.
        self.dirty.set_range(first, len.div_ceil(BLOCK_ENTRIES));
    }

    fn check_poison(&self) -> Result<()> {
        if self.poisoned.load(Ordering::Acquire) {
            Err(ChecksumsError::Poisoned)
        } else {
            Ok(())
        }
    }

    fn sync(&self, op: crate::disk::Op) -> Result<()> {
        sync(&*self.file, op, &self.poisoned)
    }
}

/// A flush on its way to the disk.
#[derive(Debug)]
pub struct Flush {
    file: Arc<dyn DiskFile>,
    runs: Vec<(u64, Vec<u8>)>,
    slot: Slot,
    poisoned: Arc<AtomicBool>,
}

impl Flush {
    pub fn write(&self) -> Result<()> {
        for (offset, bytes) in &self.runs {
            self.file.write_all_at("checksums.flush.write", bytes, *offset)?;
        }
        if !self.runs.is_empty() {
            sync(&*self.file, "checksums.flush.sync", &self.poisoned)?;
        }
        self.slot.write(&*self.file)?;
        sync(&*self.file, "checksums.flush.sync_header", &self.poisoned)
    }
}

fn sync(file: &dyn DiskFile, op: crate::disk::Op, poisoned: &AtomicBool) -> Result<()> {
    file.sync_data(op).map_err(|error| {
        poisoned.store(true, Ordering::Release);
        ChecksumsError::Disk(error)
    })
}

fn index(pgno: Pgno) -> usize {
    pgno.get() as usize - 1
}

/// Entries the file does not reach were never written: their pages are unknown.
fn read_entries(file: &dyn DiskFile, pages: u32, file_len: u64) -> Result<Vec<u64>> {
    let present = (file_len.saturating_sub(ENTRIES_OFFSET) / ENTRY as u64).min(u64::from(pages)) as usize;
    let mut entries = Vec::with_capacity(pages as usize);
    populate(entries.spare_capacity_mut());
    let mut bytes = vec![0; READ.min(present * ENTRY)];
    let entry = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("chunks of eight"));
    while entries.len() < present {
        let count = READ.min((present - entries.len()) * ENTRY);
        let offset = ENTRIES_OFFSET + (entries.len() * ENTRY) as u64;
        file.read_exact_at("checksums.open.read", &mut bytes[..count], offset)?;
        entries.extend(bytes[..count].chunks_exact(ENTRY).map(entry));
    }
    entries.resize(pages as usize, 0);
    Ok(entries)
}

/// Has the kernel map the memory at once: one fault for each page of it takes longer than to read what goes there.
fn populate(memory: &mut [MaybeUninit<u64>]) {
    let Range { start, end } = memory.as_mut_ptr_range();
    let (start, end) = (
        (start as usize).next_multiple_of(BLOCK),
        end as usize / BLOCK * BLOCK,
    );
    if start < end {
        // SAFETY: the pages lie within memory that is borrowed here alone, and keep their content. If the kernel does not know how, they
        // are mapped when they are touched.
        unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_POPULATE_WRITE) };
    }
}

#[cfg(test)]
mod tests;
