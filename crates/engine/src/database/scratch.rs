//! What a database knows beyond its log and that survives the death of the process, though not a power loss.
//!
//! One small file per database, mapped into memory, so that noting something costs no system call. It holds the capture
//! cursor (how far the WAL is in the log) and the pages that were written to the main file since they were last compared
//! with the checksum table. After a power loss its content means nothing, which the boot ID tells.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ltx::Txid;
use memmap2::MmapMut;
use sqlite_format::wal::{WalChecksum, WalPosition};

use crate::error::{Error, Result};

const SIZE: usize = 64 * 1024;
const MAGIC: u64 = 0x4c46_5343_5241_5432;

// Layout in 8-byte words.
const BOOT: usize = 1; // two words
const CLEAN: usize = 3;
const CURSOR_TXID: usize = 4;
const CURSOR_SALT: usize = 5;
const CURSOR_FRAMES: usize = 6;
const CURSOR_CHECKSUM: usize = 7;
const COUNT: usize = 8;
const WRITING: usize = 9;
const ENTRIES: usize = 10 * 8;
/// In place of a number of frames: there is no WAL.
const NO_WAL: u64 = u64::MAX;
const CAPACITY: u64 = ((SIZE - ENTRIES) / 4) as u64;

/// How far a WAL is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Position of the log when the cursor was set.
    pub(crate) txid: Txid,
    /// Generation of the WAL.
    pub(crate) salt: [u32; 2],
    /// Captured or applied frames of that generation.
    pub(crate) at: WalPosition,
}

/// Pages of the main file that may differ from the checksum table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dirty {
    /// These pages.
    Pages(BTreeSet<u32>),
    /// Any page.
    All,
}

impl Dirty {
    pub(crate) fn is_clean(&self) -> bool {
        matches!(self, Dirty::Pages(pages) if pages.is_empty())
    }

    pub(crate) fn may_hold(&self, pgno: u32) -> bool {
        match self {
            Dirty::Pages(pages) => pages.contains(&pgno),
            Dirty::All => true,
        }
    }
}

/// What an earlier process left behind.
#[derive(Debug)]
pub(crate) struct Left {
    /// The process closed the database in order, and the machine has not restarted since.
    pub(crate) clean: bool,
    /// The machine has not restarted since, so what follows is meaningful.
    pub(crate) same_boot: bool,
    /// Transaction that the files were at: captured from them, or applied to them.
    pub(crate) files_at: Option<Txid>,
    pub(crate) cursor: Option<Cursor>,
    pub(crate) dirty: Dirty,
    pub(crate) writing: Writing,
}

/// What is known of the pages that clients without a journal have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Writing {
    /// They may be a whole transaction.
    #[default]
    Unknown = 0,
    /// They are one: its client has synced them, as it does at the end of each, or has closed the file.
    Whole = 1,
    /// The client has yet to sync them.
    Unfinished = 2,
}

/// The mapped file.
#[derive(Debug)]
pub(crate) struct Scratch {
    map: MmapMut,
    dirty: Dirty,
}

impl Scratch {
    /// Opens or creates the file and tells what it held; from here on the database counts as not closed in order. What is from before
    /// the last restart of the machine goes, and what is noted from here on does not count before [`Scratch::confirm`].
    pub(crate) fn open(path: &Path) -> Result<(Scratch, Left)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::io("scratch.open", path))?;
        allocate(&file).map_err(Error::io("scratch.allocate", path))?;
        // SAFETY: the file is private to this process (the data directory is locked), has its full size and no holes,
        // and is never truncated, so the mapping stays valid.
        let map = unsafe { MmapMut::map_mut(&file) }.map_err(Error::io("scratch.map", path))?;
        let mut scratch = Scratch {
            map,
            dirty: Dirty::Pages(BTreeSet::new()),
        };
        let left = scratch.left();
        scratch.dirty = left.dirty.clone();
        scratch.put(CLEAN, 0);
        if !left.same_boot {
            for (word, value) in [(BOOT, 0), (BOOT + 1, 0), (0, MAGIC), (CURSOR_TXID, 0), (COUNT, 0)] {
                scratch.put(word, value);
            }
            scratch.set_writing(Writing::Unknown);
        }
        Ok((scratch, left))
    }

    /// Files and log are as the process expects them after a restart of the machine: from here on what is noted tells the next one
    /// what it need not look for.
    pub(crate) fn confirm(&mut self) {
        let boot = boot_id();
        self.put(BOOT, boot[0]);
        self.put(BOOT + 1, boot[1]);
    }

    fn left(&self) -> Left {
        let known = self.get(0) == MAGIC;
        let boot = boot_id();
        let same_boot = known && boot != [0, 0] && [self.get(BOOT), self.get(BOOT + 1)] == boot;
        let cursor = self.cursor().filter(|_| same_boot);
        let files_at = Some(self.files_at()).filter(|txid| same_boot && *txid != Txid::ZERO);
        let count = self.get(COUNT);
        let dirty = if !same_boot {
            Dirty::Pages(BTreeSet::new())
        } else if count > CAPACITY {
            Dirty::All
        } else {
            Dirty::Pages(
                (0..count as usize)
                    .map(|i| self.entry(i))
                    .filter(|page| *page != 0)
                    .collect(),
            )
        };
        let writing = match self.get(WRITING) {
            1 if same_boot => Writing::Whole,
            2 if same_boot => Writing::Unfinished,
            _ => Writing::Unknown,
        };
        Left {
            clean: same_boot && self.get(CLEAN) == 1,
            same_boot,
            files_at,
            cursor,
            dirty,
            writing,
        }
    }

    /// Notes how far a client without a journal has come.
    pub(crate) fn set_writing(&mut self, writing: Writing) {
        self.put(WRITING, writing as u64);
    }

    /// Transaction that the files are at.
    pub(crate) fn files_at(&self) -> Txid {
        Txid(self.get(CURSOR_TXID))
    }

    /// The cursor, if there is a WAL.
    pub(crate) fn cursor(&self) -> Option<Cursor> {
        let txid = Txid(self.get(CURSOR_TXID));
        let salt = self.get(CURSOR_SALT);
        let checksum = self.get(CURSOR_CHECKSUM);
        let frames = self.get(CURSOR_FRAMES);
        (txid != Txid::ZERO && frames != NO_WAL).then(|| Cursor {
            txid,
            salt: [(salt >> 32) as u32, salt as u32],
            at: WalPosition {
                frames: frames as u32,
                checksum: WalChecksum::new((checksum >> 32) as u32, checksum as u32),
            },
        })
    }

    /// Pages that may differ.
    pub(crate) fn dirty(&self) -> &Dirty {
        &self.dirty
    }

    /// The page was written.
    pub(crate) fn mark(&mut self, pgno: u32) {
        let Dirty::Pages(pages) = &mut self.dirty else {
            return;
        };
        if !pages.insert(pgno) {
            return;
        }
        let count = self.get(COUNT);
        if count < CAPACITY {
            let at = ENTRIES + 4 * count as usize;
            self.map[at..at + 4].copy_from_slice(&pgno.to_ne_bytes());
        }
        self.put(COUNT, count.saturating_add(1));
    }

    /// Every page may have been written.
    pub(crate) fn mark_all(&mut self) {
        self.dirty = Dirty::All;
        self.put(COUNT, u64::MAX);
    }

    /// All pages were compared.
    pub(crate) fn settle(&mut self) {
        if !self.dirty.is_clean() {
            self.dirty = Dirty::Pages(BTreeSet::new());
            self.put(COUNT, 0);
        }
    }

    /// The files are at `txid`, with a WAL that is in the log up to `cursor`, or without.
    pub(crate) fn set_cursor(&mut self, txid: Txid, cursor: Option<Cursor>) {
        self.put(CURSOR_TXID, 0);
        let Some(cursor) = cursor else {
            self.put(CURSOR_FRAMES, NO_WAL);
            self.put(CURSOR_TXID, txid.get());
            return;
        };
        self.put(
            CURSOR_SALT,
            u64::from(cursor.salt[0]) << 32 | u64::from(cursor.salt[1]),
        );
        self.put(CURSOR_FRAMES, u64::from(cursor.at.frames));
        self.put(
            CURSOR_CHECKSUM,
            u64::from(cursor.at.checksum.s0) << 32 | u64::from(cursor.at.checksum.s1),
        );
        self.put(CURSOR_TXID, cursor.txid.get());
    }

    /// The log begins anew: what the files are at is no transaction of it, though one may have the same number.
    pub(crate) fn forget_cursor(&mut self) {
        self.put(CURSOR_TXID, 0);
    }

    /// The database is closed in order.
    pub(crate) fn close(&mut self) {
        self.put(CLEAN, 1);
    }

    fn get(&self, word: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.map[word * 8..word * 8 + 8]);
        u64::from_ne_bytes(bytes)
    }

    fn put(&mut self, word: usize, value: u64) {
        self.map[word * 8..word * 8 + 8].copy_from_slice(&value.to_ne_bytes());
    }

    fn entry(&self, index: usize) -> u32 {
        let at = ENTRIES + 4 * index;
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.map[at..at + 4]);
        u32::from_ne_bytes(bytes)
    }
}

/// Makes the next process verify what it finds, as after a restart of the machine. Needs no lock: the mapping shows it too.
pub(crate) fn distrust(home: &Path) {
    let path = home.join("scratch");
    let file = OpenOptions::new().write(true).open(&path);
    if let Err(error) = file.and_then(|file| file.write_all_at(&[0; 16], BOOT as u64 * 8)) {
        tracing::error!(path = %path.display(), %error, "the next start will not verify the log");
    }
}

/// Gives the file its full size with real blocks: a hole that cannot be filled on a full disk would be a SIGBUS.
fn allocate(file: &File) -> std::io::Result<()> {
    if file.metadata()?.len() >= SIZE as u64 {
        return Ok(());
    }
    file.write_all_at(&[0; SIZE], 0)
}

/// Identifies the time since the machine last started; zero where the kernel does not tell.
fn boot_id() -> [u64; 2] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let value = u128::from_str_radix(&digits, 16).unwrap_or(0);
    [(value >> 64) as u64, value as u64]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_found_by_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scratch");
        let cursor = Cursor {
            txid: Txid(7),
            salt: [1, 2],
            at: WalPosition {
                frames: 3,
                checksum: WalChecksum::new(4, 5),
            },
        };
        {
            let (mut scratch, left) = Scratch::open(&path).unwrap();
            assert!(!left.clean && left.dirty.is_clean() && left.cursor.is_none());
            scratch.confirm();
            scratch.mark(9);
            scratch.mark(4);
            scratch.set_cursor(cursor.txid, Some(cursor));
        }
        let (mut scratch, left) = Scratch::open(&path).unwrap();
        assert!(!left.clean && left.same_boot);
        assert_eq!(left.cursor, Some(cursor));
        assert_eq!(left.dirty, Dirty::Pages(BTreeSet::from([4, 9])));
        scratch.settle();
        scratch.set_cursor(Txid(8), None);
        scratch.close();
        drop(scratch);
        let (_, left) = Scratch::open(&path).unwrap();
        assert!(left.clean && left.dirty.is_clean());
        assert_eq!((left.files_at, left.cursor), (Some(Txid(8)), None));
    }

    /// The process may be killed before it has seen to what a power loss left.
    #[test]
    fn nothing_counts_before_it_is_confirmed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scratch");
        for confirmed in [false, true] {
            let (mut scratch, left) = Scratch::open(&path).unwrap();
            assert!(!left.same_boot);
            scratch.set_cursor(Txid(8), None);
            scratch.mark(4);
            scratch.set_writing(Writing::Unfinished);
            if confirmed {
                scratch.confirm();
            }
        }
        let (_, left) = Scratch::open(&path).unwrap();
        assert!(left.same_boot && !left.clean);
        assert_eq!(left.files_at, Some(Txid(8)));
        assert_eq!(left.dirty, Dirty::Pages(BTreeSet::from([4])));
        assert_eq!(left.writing, Writing::Unfinished);
    }

    #[test]
    fn a_distrusted_file_is_as_from_before_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scratch");
        let (mut scratch, _) = Scratch::open(&path).unwrap();
        scratch.confirm();
        scratch.set_cursor(Txid(8), None);
        distrust(dir.path());
        scratch.mark(4);
        drop(scratch);
        assert!(!Scratch::open(&path).unwrap().1.same_boot);
    }

    #[test]
    fn more_dirty_pages_than_fit_mean_all_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scratch");
        let (mut scratch, _) = Scratch::open(&path).unwrap();
        scratch.confirm();
        for page in 1..=CAPACITY as u32 + 1 {
            scratch.mark(page);
        }
        drop(scratch);
        assert_eq!(Scratch::open(&path).unwrap().1.dirty, Dirty::All);
    }
}
