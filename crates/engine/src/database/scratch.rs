//! What a database knows beyond its log and that survives the death of the process, though not a power loss.
//!
//! One small file per database, mapped into memory, so that noting something costs no system call. It holds the capture
//! cursor (how far the WAL is in the log), the pages that were written to the main file since they were last compared
//! with the checksum table, and what a process that takes over from a dead one cannot find out otherwise. After a power loss its
//! content means nothing, which the boot ID tells.
//!
//! The process may be killed between any two stores. So each word is stored at once and in order, and what takes several words has
//! two places: a last store tells which of them counts.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use ltx::{Checksum, Pos, Txid};
use memmap2::MmapMut;
use sqlite_format::wal::{WalChecksum, WalPosition};

use crate::error::{Error, Result};

const SIZE: usize = 64 * 1024;
const MAGIC: u64 = 0x4c46_5343_5241_5433;

// Layout in 8-byte words.
const BOOT: usize = 1; // two words
const CLEAN: usize = 3;
/// Which of the two notes of where the files are counts.
const PLACE: usize = 4;
const COUNT: usize = 5;
const WRITING: usize = 6;
const CLIENTS: usize = 7;
const EXCLUSIVE: usize = 8;
const INDEX_IS_DEAD: usize = 9;
const UNVERIFIED: usize = 10;
const APPLYING: usize = 11;
const APPLYING_TXID: usize = 12;
/// Length of the reason of the quarantine; 0 = there is none.
const QUARANTINE: usize = 13;
/// The two notes of where the files are.
const PLACES: [usize; 2] = [16, 24];
// Within such a note.
const TXID: usize = 0;
const POST: usize = 1;
const SALT: usize = 2;
const FRAMES: usize = 3;
const CHECKSUM: usize = 4;
const PUBLISHED: usize = 5;
/// Text of the reason of the quarantine.
const REASON: std::ops::Range<usize> = 32 * 8..64 * 8;
const ENTRIES: usize = 64 * 8;
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
    /// How many of them clients were known to know of.
    pub(crate) published: u32,
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
    /// Position that the files were at: captured from them, or applied to them.
    pub(crate) files_at: Option<Pos>,
    pub(crate) cursor: Option<Cursor>,
    pub(crate) dirty: Dirty,
    pub(crate) writing: Writing,
    /// The first page that was yet to be compared after a power loss.
    pub(crate) unverified: Option<u32>,
    /// Why replication was suspended.
    pub(crate) quarantine: Option<String>,
}

/// What clients may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Clients {
    /// What they write is refused, and none has a handle that passes the daemon by.
    #[default]
    Refused = 0,
    /// They write: this node is the primary, or its time as primary has not come to its end everywhere.
    Write = 1,
    /// Those from the time as primary are kept from writing by locks.
    Fenced = 2,
}

/// How a record is brought into the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// Appended to the WAL and published in the wal-index.
    Wal = 1,
    /// Written to the main file under SQLite's exclusive lock.
    Exclusive = 2,
    /// The files are removed.
    Remove = 3,
}

/// A record that is on its way into the files, from before the first change until the kernel knows of the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Applying {
    pub(crate) method: Method,
    /// The record's last transaction.
    pub(crate) txid: Txid,
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
            for word in (BOOT..=PLACES[1] + PUBLISHED).rev() {
                scratch.put(word, 0);
            }
            scratch.put(0, MAGIC);
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
        let files_at = Some(self.files_at()).filter(|pos| same_boot && !pos.is_zero());
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
            unverified: self.unverified().filter(|_| same_boot),
            quarantine: self.quarantine().filter(|_| same_boot),
        }
    }

    /// Notes how far a client without a journal has come.
    pub(crate) fn set_writing(&mut self, writing: Writing) {
        self.put(WRITING, writing as u64);
    }

    /// What clients may do.
    pub(crate) fn clients(&self) -> Clients {
        match self.get(CLIENTS) {
            1 => Clients::Write,
            2 => Clients::Fenced,
            _ => Clients::Refused,
        }
    }

    pub(crate) fn set_clients(&mut self, clients: Clients) {
        self.put(CLIENTS, clients as u64);
    }

    /// The last capture found the writer's lock held: it is of a client that never gives it up.
    pub(crate) fn exclusive(&self) -> bool {
        self.get(EXCLUSIVE) != 0
    }

    pub(crate) fn set_exclusive(&mut self, exclusive: bool) {
        self.put(EXCLUSIVE, u64::from(exclusive));
    }

    /// Nobody is connected to the wal-index: it may be left over from a crash, while a connection in EXCLUSIVE mode keeps
    /// its index in its own memory.
    pub(crate) fn index_is_dead(&self) -> bool {
        self.get(INDEX_IS_DEAD) != 0
    }

    pub(crate) fn set_index_is_dead(&mut self, dead: bool) {
        self.put(INDEX_IS_DEAD, u64::from(dead));
    }

    /// The first page that was not compared with the table since a power loss.
    pub(crate) fn unverified(&self) -> Option<u32> {
        Some(self.get(UNVERIFIED) as u32).filter(|page| *page != 0)
    }

    pub(crate) fn set_unverified(&mut self, first: Option<u32>) {
        self.put(UNVERIFIED, u64::from(first.unwrap_or(0)));
    }

    /// The record that was on its way into the files.
    pub(crate) fn applying(&self) -> Option<Applying> {
        let method = match self.get(APPLYING) {
            1 => Method::Wal,
            2 => Method::Exclusive,
            3 => Method::Remove,
            _ => return None,
        };
        let txid = Txid(self.get(APPLYING_TXID));
        Some(Applying { method, txid })
    }

    pub(crate) fn set_applying(&mut self, applying: Option<Applying>) {
        let Some(Applying { method, txid }) = applying else {
            return self.put(APPLYING, 0);
        };
        // With the number of another record the method means nothing.
        self.put(APPLYING, 0);
        self.put(APPLYING_TXID, txid.get());
        self.put(APPLYING, method as u64);
    }

    /// Why replication is suspended.
    pub(crate) fn quarantine(&self) -> Option<String> {
        let len = (self.get(QUARANTINE) as usize).min(REASON.len());
        let text = &self.map[REASON.start..REASON.start + len];
        (len > 0).then(|| String::from_utf8_lossy(text).into_owned())
    }

    pub(crate) fn set_quarantine(&mut self, reason: Option<&str>) {
        let Some(reason) = reason else {
            return self.put(QUARANTINE, 0);
        };
        let text = &reason.as_bytes()[..reason.len().min(REASON.len())];
        self.map[REASON.start..REASON.start + text.len()].copy_from_slice(text);
        self.put(QUARANTINE, text.len() as u64);
    }

    /// Nobody uses the files any more, and no process is to be succeeded.
    pub(crate) fn forget_clients(&mut self) {
        self.set_clients(Clients::Refused);
        self.set_exclusive(false);
        self.set_index_is_dead(false);
        self.set_applying(None);
        self.set_quarantine(None);
    }

    fn place(&self) -> usize {
        PLACES[(self.get(PLACE) & 1) as usize]
    }

    /// Position that the files are at.
    pub(crate) fn files_at(&self) -> Pos {
        let place = self.place();
        Pos::new(Txid(self.get(place + TXID)), Checksum(self.get(place + POST)))
    }

    /// The cursor, if there is a WAL.
    pub(crate) fn cursor(&self) -> Option<Cursor> {
        let place = self.place();
        let get = |word| self.get(place + word);
        let (salt, checksum) = (get(SALT), get(CHECKSUM));
        (get(TXID) != 0 && get(FRAMES) != NO_WAL).then(|| Cursor {
            txid: Txid(get(TXID)),
            salt: [(salt >> 32) as u32, salt as u32],
            at: WalPosition {
                frames: get(FRAMES) as u32,
                checksum: WalChecksum::new((checksum >> 32) as u32, checksum as u32),
            },
            published: get(PUBLISHED) as u32,
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

    /// The files are at `pos`, with a WAL that is in the log up to `cursor`, or without.
    pub(crate) fn set_cursor(&mut self, pos: Pos, cursor: Option<Cursor>) {
        let next = 1 - (self.get(PLACE) & 1);
        let place = PLACES[next as usize];
        let two = |[high, low]: [u32; 2]| u64::from(high) << 32 | u64::from(low);
        self.put(place + TXID, pos.txid.get());
        self.put(place + POST, pos.post_apply.get());
        match cursor {
            None => self.put(place + FRAMES, NO_WAL),
            Some(Cursor {
                salt, at, published, ..
            }) => {
                self.put(place + SALT, two(salt));
                self.put(place + FRAMES, u64::from(at.frames));
                self.put(place + CHECKSUM, two([at.checksum.s0, at.checksum.s1]));
                self.put(place + PUBLISHED, u64::from(published));
            }
        }
        self.put(PLACE, next);
    }

    /// The database is closed in order.
    pub(crate) fn close(&mut self) {
        self.put(CLEAN, 1);
    }

    /// Loads a word.
    fn get(&self, word: usize) -> u64 {
        self.word(word).load(Ordering::Acquire)
    }

    /// Stores a word, after everything that was stored before: the process may be killed in between.
    fn put(&mut self, word: usize, value: u64) {
        self.word(word).store(value, Ordering::Release);
    }

    fn word(&self, word: usize) -> &AtomicU64 {
        assert!(word < SIZE / 8, "the words of the file");
        // SAFETY: the mapping begins at a page and has SIZE bytes, so the word is within it and aligned; it lives as long as `self`.
        unsafe { &*self.map.as_ptr().cast::<AtomicU64>().add(word) }
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

    const POS: Pos = Pos {
        txid: Txid(8),
        post_apply: Checksum(1 << 63 | 8),
    };

    /// A process that takes over needs more than one that starts.
    #[test]
    fn what_a_successor_needs_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scratch");
        let applying = Applying {
            method: Method::Exclusive,
            txid: Txid(9),
        };
        {
            let (mut scratch, _) = Scratch::open(&path).unwrap();
            scratch.confirm();
            scratch.set_clients(Clients::Fenced);
            scratch.set_exclusive(true);
            scratch.set_index_is_dead(true);
            scratch.set_unverified(Some(3));
            scratch.set_applying(Some(applying));
            scratch.set_quarantine(Some("why"));
        }
        let (mut scratch, left) = Scratch::open(&path).unwrap();
        assert_eq!((scratch.clients(), left.unverified), (Clients::Fenced, Some(3)));
        assert_eq!(
            (scratch.applying(), left.quarantine.as_deref()),
            (Some(applying), Some("why"))
        );
        assert!(scratch.exclusive() && scratch.index_is_dead());
        scratch.set_applying(None);
        scratch.set_quarantine(None);
        drop(scratch);
        let (scratch, left) = Scratch::open(&path).unwrap();
        assert_eq!((scratch.applying(), left.quarantine), (None, None));
    }

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
            published: 2,
        };
        let at = |txid| Pos::new(Txid(txid), Checksum(1 << 63 | txid));
        {
            let (mut scratch, left) = Scratch::open(&path).unwrap();
            assert!(!left.clean && left.dirty.is_clean() && left.cursor.is_none());
            scratch.confirm();
            scratch.mark(9);
            scratch.mark(4);
            scratch.set_cursor(at(7), Some(cursor));
        }
        let (mut scratch, left) = Scratch::open(&path).unwrap();
        assert!(!left.clean && left.same_boot);
        assert_eq!(left.cursor, Some(cursor));
        assert_eq!(left.dirty, Dirty::Pages(BTreeSet::from([4, 9])));
        scratch.settle();
        scratch.set_cursor(at(8), None);
        scratch.close();
        drop(scratch);
        let (_, left) = Scratch::open(&path).unwrap();
        assert!(left.clean && left.dirty.is_clean());
        assert_eq!((left.files_at, left.cursor), (Some(at(8)), None));
    }

    /// The process may be killed before it has seen to what a power loss left.
    #[test]
    fn nothing_counts_before_it_is_confirmed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scratch");
        for confirmed in [false, true] {
            let (mut scratch, left) = Scratch::open(&path).unwrap();
            assert!(!left.same_boot);
            scratch.set_cursor(POS, None);
            scratch.mark(4);
            scratch.set_writing(Writing::Unfinished);
            if confirmed {
                scratch.confirm();
            }
        }
        let (_, left) = Scratch::open(&path).unwrap();
        assert!(left.same_boot && !left.clean);
        assert_eq!(left.files_at, Some(POS));
        assert_eq!(left.dirty, Dirty::Pages(BTreeSet::from([4])));
        assert_eq!(left.writing, Writing::Unfinished);
    }

    #[test]
    fn a_distrusted_file_is_as_from_before_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scratch");
        let (mut scratch, _) = Scratch::open(&path).unwrap();
        scratch.confirm();
        scratch.set_cursor(POS, None);
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
