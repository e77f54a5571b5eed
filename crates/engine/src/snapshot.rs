//! Snapshot: the whole database at one position, made without blocking anybody.
//!
//! The files are copied while clients go on writing. Every page that was committed meanwhile is in the log, so the copy
//! is then rolled forward from it; a page that was caught in the middle of a transaction is found by its checksum and
//! taken from that transaction's rollback journal or from the log, or read again. What results is checked page by page against the table of the position it claims.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ltx::{Checksum, Decoder, Encoder, Header, Pos, Txid, ZeroPages};
use parking_lot::Mutex;
use sqlite_format::{PageSize, Pgno};

use crate::database::Database;
use crate::database::backing::read_full;
use crate::database::scan::{Scan, Scanned};
use crate::error::{Error, Result};
use crate::name::Side;
use crate::originals;
use crate::shared::Shared;

/// Pages copied in one turn of the mutex, and pages found to be holes.
const TURN: u32 = 64;
const TURN_HOLES: u32 = 1 << 16;
/// How long pages may stay in the middle of transactions.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long they may before the table is doubted.
const DOUBT: Duration = Duration::from_secs(1);
/// First and longest pause between two looks at such pages.
const LOOK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// A consistent copy of a database.
#[derive(Debug)]
pub struct Snapshot {
    /// The position that the copy is of.
    pub pos: Pos,
    /// `None` for a database that was dropped.
    page_size: Option<PageSize>,
    commit: u32,
    timestamp_ms: i64,
    compress: bool,
    spool: File,
}

/// A copy in the making.
struct Copy<'a> {
    db: &'a Database,
    spool: File,
    page_size: PageSize,
    /// Checksum of every page as it was copied.
    sums: Vec<u64>,
    zeros: ZeroPages,
    /// Everything committed up to here is in the copy.
    pos: Pos,
}

/// What a copy is held against.
struct Target {
    pos: Pos,
    commit: u32,
    timestamp_ms: i64,
    sums: Vec<u64>,
}

impl Database {
    /// Copies the database as it is at some position not before the call.
    pub fn snapshot(&self) -> Result<Snapshot> {
        self.drain()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let spool = spool_file(&self.shared)?;
            let (page_size, commit, pos, timestamp_ms) = {
                let state = self.state.lock();
                (state.page_size(), state.commit, state.pos, state.timestamp_ms)
            };
            let compress = self.shared.options.compress;
            if pos.is_zero() {
                return Err(Error::NotFound(self.name.to_string()));
            }
            let Some(page_size) = page_size.filter(|_| commit > 0) else {
                return Ok(Snapshot {
                    pos,
                    page_size,
                    commit: 0,
                    timestamp_ms,
                    compress,
                    spool,
                });
            };
            let mut copy = Copy {
                db: self,
                spool,
                page_size,
                sums: Vec::new(),
                zeros: ZeroPages::new(page_size),
                pos,
            };
            copy.copy_all(commit)?;
            if let Some(target) = copy.settle(deadline)? {
                return Ok(Snapshot {
                    pos: target.pos,
                    page_size: Some(page_size),
                    commit: target.commit,
                    timestamp_ms: target.timestamp_ms,
                    compress,
                    spool: copy.spool,
                });
            }
            if Instant::now() >= deadline {
                return Err(Error::Busy {
                    db: self.name.clone(),
                    lock: "pages in the middle of transactions",
                });
            }
        }
    }
}

impl Copy<'_> {
    fn copy_all(&mut self, commit: u32) -> Result<()> {
        self.sums.resize(commit as usize, 0);
        self.copy_pages(Pgno::up_to(commit))
    }

    fn copy_pages(&mut self, pages: impl Iterator<Item = Pgno>) -> Result<()> {
        let mut pages = pages.peekable();
        let mut scan = Scan::new(&mut self.db.state.lock(), self.page_size, self.sums.len() as u32)?;
        while pages.peek().is_some() && self.copy_turn(&mut scan, &mut pages)? {}
        Ok(())
    }

    /// Copies the next pages in one turn of the mutex: a number of them, and as many as cost nothing because they are holes.
    /// `false` if the database has another page size: the caller starts over.
    fn copy_turn(&mut self, scan: &mut Scan, pages: &mut impl Iterator<Item = Pgno>) -> Result<bool> {
        let mut state = self.db.state.lock();
        if state.page_size() != Some(self.page_size) {
            return Ok(false);
        }
        scan.begin_turn(&mut state)?;
        let (mut copied, mut holes) = (0, 0);
        while copied < TURN && holes < TURN_HOLES {
            let Some(pgno) = pages.next() else { break };
            let page = scan.page(&mut state, pgno)?;
            match page.is_zero && self.is_blank(pgno) {
                true => holes += 1,
                false => copied += 1,
            }
            self.put(pgno, page)?;
        }
        Ok(true)
    }

    /// Nothing was written to the copy there: it reads as zeros.
    fn is_blank(&self, pgno: Pgno) -> bool {
        let sum = self.sums.get(pgno.get() as usize - 1).copied().unwrap_or(0);
        sum == 0 || sum == self.zeros.checksum(pgno).get()
    }

    fn put(&mut self, pgno: Pgno, page: Scanned<'_>) -> Result<()> {
        let at = pgno.get() as usize - 1;
        if self.sums.len() <= at {
            self.sums.resize(at + 1, 0);
        }
        let blank = page.is_zero && self.is_blank(pgno);
        self.sums[at] = if pgno == self.page_size.lock_page() {
            0
        } else {
            page.checksum.get()
        };
        if blank {
            return Ok(());
        }
        let page = page.data;
        let offset = pgno.offset(self.page_size);
        self.spool
            .write_all_at(page, offset)
            .map_err(Error::io("snapshot.write", "snapshot"))
    }

    /// Rolls the copy forward until it is the database at one position; `None` if it has to be made anew.
    fn settle(&mut self, deadline: Instant) -> Result<Option<Target>> {
        let mut wrong = BTreeSet::new();
        let mut doubtful = Some(Instant::now() + DOUBT);
        let mut look = LOOK.0;
        loop {
            self.copy_pages(std::mem::take(&mut wrong).into_iter())?;
            let Some(target) = self.target() else {
                return Ok(None);
            };
            if !self.roll_forward(&target)? {
                return Ok(None);
            }
            wrong = self.differences(&target);
            if !wrong.is_empty() {
                self.take_originals(&mut wrong, &target)?;
            }
            if wrong.is_empty() {
                let size = self.page_size.file_size(target.commit);
                self.spool
                    .set_len(size)
                    .map_err(Error::io("snapshot.truncate", "snapshot"))?;
                return Ok(Some(target));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            if doubtful.take_if(|at| Instant::now() >= *at).is_some() {
                // A transaction without a journal, or the table itself is wrong.
                self.take_logged(&mut wrong, &target)?;
                self.db.doubt(wrong.iter().copied());
            }
            std::thread::sleep(look);
            look = (look * 2).min(LOOK.1);
        }
    }

    /// Pages in the middle of a transaction are in its journal as they were before, however long it takes, and if its
    /// client died.
    fn take_originals(&mut self, wrong: &mut BTreeSet<Pgno>, target: &Target) -> Result<()> {
        let journal = {
            let backing = &mut self.db.state.lock().backing;
            match backing.journal_is_hot()? {
                true => backing.get(Side::Journal)?,
                false => None,
            }
        };
        let Some(journal) = journal else { return Ok(()) };
        originals::for_each(&journal, |pgno, page| self.take(wrong, target, pgno, page))
    }

    /// The same from the log, as far as it goes back.
    fn take_logged(&mut self, wrong: &mut BTreeSet<Pgno>, target: &Target) -> Result<()> {
        let mut page = vec![0; self.page_size.bytes()];
        for record in self.db.log.records(Txid::FIRST) {
            let record = record?;
            if record.info.page_size != self.page_size {
                continue;
            }
            let mut decoder = Decoder::new(record.reader())?;
            while let Some(pgno) = decoder.next_page(&mut page)? {
                self.take(wrong, target, pgno, &page)?;
            }
        }
        Ok(())
    }

    /// Takes a page that is wanted, if it is what the target says.
    fn take(&mut self, wrong: &mut BTreeSet<Pgno>, target: &Target, pgno: Pgno, page: &[u8]) -> Result<()> {
        if !wrong.contains(&pgno) || page.len() != self.page_size.bytes() {
            return Ok(());
        }
        let page = Scanned::of(pgno, page);
        if target.sums.get(pgno.get() as usize - 1) == Some(&page.checksum.get()) {
            self.put(pgno, page)?;
            wrong.remove(&pgno);
        }
        Ok(())
    }

    fn target(&self) -> Option<Target> {
        let state = self.db.state.lock();
        if state.page_size() != Some(self.page_size) || state.commit == 0 {
            return None;
        }
        let sum = |pgno| state.table.get(pgno).map_or(0, Checksum::get);
        Some(Target {
            pos: state.pos,
            commit: state.commit,
            timestamp_ms: state.timestamp_ms,
            sums: Pgno::up_to(state.commit).map(sum).collect(),
        })
    }

    /// Takes over every page that was committed since the copy began; `false` if the log does not have them any more.
    fn roll_forward(&mut self, target: &Target) -> Result<bool> {
        if self.pos == target.pos {
            return Ok(true);
        }
        let mut page = vec![0; self.page_size.bytes()];
        let mut next = self.pos.txid.next().unwrap_or(Txid::MAX);
        while next <= target.pos.txid {
            let Some(record) = self.db.log.find(next)? else {
                return Ok(false);
            };
            if record.info.min != next || record.info.page_size != self.page_size {
                return Ok(false);
            }
            let mut decoder = Decoder::new(record.reader())?;
            while let Some(pgno) = decoder.next_page(&mut page)? {
                self.put(pgno, Scanned::of(pgno, &page))?;
            }
            next = record.info.max.next().unwrap_or(Txid::MAX);
        }
        self.pos = target.pos;
        Ok(true)
    }

    fn differences(&self, target: &Target) -> BTreeSet<Pgno> {
        let have = |at: usize| self.sums.get(at).copied().unwrap_or(0);
        let differs = target
            .sums
            .iter()
            .enumerate()
            .filter(|(at, sum)| have(*at) != **sum);
        differs
            .filter_map(|(at, _)| Pgno::new(at as u32 + 1))
            .filter(|pgno| *pgno != self.page_size.lock_page())
            .collect()
    }
}

impl Snapshot {
    /// The snapshot as an LTX file that begins a history, stamped with `node_id`.
    pub fn ltx(&self, node_id: u64) -> Result<SnapshotReader> {
        let page_size = self.page_size.unwrap_or(PageSize::DEFAULT);
        let header = Header {
            compressed: self.compress,
            page_size,
            commit: self.commit,
            min_txid: Txid::FIRST,
            max_txid: self.pos.txid,
            timestamp: self.timestamp_ms,
            pre_apply: Checksum::NONE,
            wal: None,
            node_id,
        };
        let out = Out::default();
        let encoder = Encoder::new(out.clone(), header)?;
        Ok(SnapshotReader {
            spool: self
                .spool
                .try_clone()
                .map_err(Error::io("snapshot.open", "snapshot"))?,
            encoder: Some(encoder),
            out,
            next: 1,
            commit: self.commit,
            page_size,
            post: self.pos.post_apply,
            pending: Vec::new(),
            taken: 0,
        })
    }

    /// The snapshot as a SQLite database file.
    pub fn database(&self) -> Result<DatabaseReader> {
        let spool = self
            .spool
            .try_clone()
            .map_err(Error::io("snapshot.open", "snapshot"))?;
        let len = self
            .page_size
            .map_or(0, |page_size| page_size.file_size(self.commit));
        Ok(DatabaseReader {
            spool,
            offset: 0,
            len,
        })
    }

    /// Size of the database file in bytes.
    pub fn database_len(&self) -> u64 {
        self.page_size
            .map_or(0, |page_size| page_size.file_size(self.commit))
    }
}

/// Reads a snapshot as an LTX file.
pub struct SnapshotReader {
    spool: File,
    encoder: Option<Encoder<Out>>,
    out: Out,
    next: u32,
    commit: u32,
    page_size: PageSize,
    post: Checksum,
    pending: Vec<u8>,
    taken: usize,
}

/// Where the encoder writes, shared with the reader that empties it.
#[derive(Debug, Clone, Default)]
struct Out(Arc<Mutex<Vec<u8>>>);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SnapshotReader {
    fn fill(&mut self) -> io::Result<()> {
        let mut page = vec![0; self.page_size.bytes()];
        while self.out.0.lock().is_empty() {
            let Some(encoder) = &mut self.encoder else { break };
            match Pgno::new(self.next).filter(|pgno| pgno.get() <= self.commit) {
                Some(pgno) => {
                    self.next += 1;
                    if pgno != self.page_size.lock_page() {
                        read_full(&self.spool, &mut page, pgno.offset(self.page_size))?;
                        encoder.encode_page(pgno, &page).map_err(io::Error::other)?;
                    }
                }
                None => {
                    if let Some(encoder) = self.encoder.take() {
                        encoder.finish(self.post).map_err(io::Error::other)?;
                    }
                }
            }
        }
        self.pending = std::mem::take(&mut self.out.0.lock());
        self.taken = 0;
        Ok(())
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.pending.len() {
            self.fill()?;
        }
        let count = buf.len().min(self.pending.len() - self.taken);
        buf[..count].copy_from_slice(&self.pending[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

/// Reads a snapshot as a database file.
#[derive(Debug)]
pub struct DatabaseReader {
    spool: File,
    offset: u64,
    len: u64,
}

impl Read for DatabaseReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len - self.offset).unwrap_or(usize::MAX);
        let count = buf.len().min(left);
        let read = read_full(&self.spool, &mut buf[..count], self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// A file without a name in the data directory: it is gone when it is closed, whatever happens.
pub(crate) fn spool_file(shared: &Shared) -> Result<File> {
    spool_in(&shared.dir)
}

pub(crate) fn spool_in(dir: &std::path::Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let anonymous = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(dir);
    match anonymous {
        Ok(file) => Ok(file),
        Err(_) => {
            // Not every file system knows O_TMPFILE.
            let path = dir.join(format!("spool-{:016x}", rand::random::<u64>()));
            let mut file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .map_err(Error::io("spool.create", &path))?;
            std::fs::remove_file(&path).map_err(Error::io("spool.unlink", &path))?;
            file.rewind().map_err(Error::io("spool.rewind", &path))?;
            Ok(file)
        }
    }
}
