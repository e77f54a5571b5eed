//! Apply in WAL mode: the record's pages are appended to the WAL and published in the wal-index, under the lock that
//! SQLite's writers take. Open read transactions neither see it nor delay it.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ltx::{Checksum, Decoder};
use parking_lot::MutexGuard;
use sqlite_format::locks::{PENDING_BYTE, SHARED_FIRST, SHARED_SIZE};
use sqlite_format::wal::{FrameHeader, WalHeader, WalPosition, frame_offset};
use sqlite_format::wal_index::{CkptInfo, IndexHeader, READ_MARK_UNUSED, SECOND_HEADER, lock};
use sqlite_format::{PageSize, Pgno};

use super::pages::{ChangedPage, ChangedPages};
use crate::capture::read_index_with;
use crate::capture::wal::read_header;
use crate::database::Database;
use crate::database::backing::read_full;
use crate::database::scratch::Method;
use crate::database::state::State;
use crate::error::{Error, Result};
use crate::kernel::{Coherence, Kernel, LockFiles};
use crate::log::Record;
use crate::name::Side;
use crate::writers::Writers;
use crate::writers::access::Input;
use crate::writers::fence::Fence;

/// Bytes gathered before they are written.
const GATHER: usize = 1 << 20;
/// Frames after which the WAL is checkpointed, as SQLite's default.
const CHECKPOINT_FRAMES: u32 = 1000;

/// The locks of a connection that writes: SHARED on the main file, which keeps a closing client from removing the WAL,
/// DMS, which keeps the first client to connect from emptying the wal-index under it, and WAL_WRITE.
pub(crate) struct Writer {
    locks: Arc<dyn LockFiles>,
    /// WAL_WRITE and DMS; goes to `writers`, to be the fence again or to be released.
    fence: Option<Fence>,
    writers: Arc<Writers>,
    /// The wal-index header that clients use. `None`: they have none yet, and build the wal-index from the WAL as soon as they
    /// get the lock.
    pub(super) index: Option<IndexHeader>,
}

impl Writer {
    pub(crate) fn take(db: &Database) -> Result<Writer> {
        let locks = db.locks()?;
        let path = db.name.file(Side::Shm);
        let try_lock = |side, start, len, exclusive| {
            locks
                .try_lock(side, start, len, exclusive)
                .map_err(Error::io("wal.lock", &path))
        };
        if !try_lock(Side::Database, PENDING_BYTE, 1, false)? {
            return Err(db.busy("PENDING"));
        }
        let shared = try_lock(Side::Database, SHARED_FIRST, SHARED_SIZE, false);
        locks
            .unlock(Side::Database, PENDING_BYTE, 1)
            .map_err(Error::io("wal.unlock", &path))?;
        if !shared? {
            return Err(db.busy("EXCLUSIVE"));
        }
        let fence = db.writers.lend(&locks);
        let mut writer = Writer {
            fence: Some(fence.unwrap_or_else(|| Fence::over(locks.clone()))),
            writers: db.writers.clone(),
            locks: locks.clone(),
            index: None,
        };
        // Until SHARED was taken the last client may have removed what was opened before.
        if !Arc::ptr_eq(&db.locks()?, &locks) {
            return Err(db.busy("a wal-index that is being replaced"));
        }
        // Who connects next builds the wal-index from the WAL, under the fence if it may write past the daemon.
        let alone = !db.writes_pass_by() && try_lock(Side::Shm, lock::DMS, 1, true)?;
        if alone {
            // Nobody is left whom the fence could keep from writing.
            db.enter(Input::Alone);
        } else if !try_lock(Side::Shm, lock::DMS, 1, false)? {
            return Err(db.busy("DMS"));
        }
        if !try_lock(Side::Shm, lock::WRITE, 1, true)? {
            return Err(db.busy("WAL_WRITE"));
        }
        if !alone {
            db.enter(Input::Acquired);
        }
        // Nobody is left whom the seal could keep from writing.
        db.state.lock().break_seal()?;
        // What the last client left behind is of no interest to the next.
        if !alone {
            writer.index =
                read_index_with(|bytes| locks.read_shm(bytes)).map_err(Error::io("shm.read", &path))?;
        }
        Ok(writer)
    }

    /// Whether no reader uses the WAL: with all its frames in the main file, it can start over.
    fn lock_out_readers(&self) -> io::Result<bool> {
        self.locks
            .try_lock(Side::Shm, lock::read(1), (lock::READ_COUNT - 1) as u64, true)
    }

    fn let_readers_in(&self) -> io::Result<()> {
        self.locks
            .unlock(Side::Shm, lock::read(1), (lock::READ_COUNT - 1) as u64)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(fence) = self.fence.take() {
            self.writers.give_back(fence);
        }
        if let Err(error) = self.locks.unlock(Side::Database, SHARED_FIRST, SHARED_SIZE) {
            tracing::error!(%error, "cannot release a lock on the mount");
        }
    }
}

/// Frames that were appended and wait to be published.
pub(super) struct Appended {
    pub(super) first: u32,
    pub(super) pages: Vec<(Pgno, Checksum)>,
    pub(super) end: WalPosition,
    /// Pages that the database grew by and that need no frame: readers find their zeros in the main file.
    unwritten: Vec<(Pgno, Checksum)>,
}

impl Appended {
    /// Frames that count already.
    pub(super) fn known(first: u32, end: WalPosition) -> Appended {
        Appended {
            first,
            pages: Vec::new(),
            end,
            unwritten: Vec::new(),
        }
    }

    fn changes(&self) -> impl Iterator<Item = &(Pgno, Checksum)> {
        self.pages.iter().chain(&self.unwritten)
    }
}

impl Database {
    pub(super) fn apply_wal(&self, record: &Record) -> Result<()> {
        let writer = Writer::take(self)?;
        let kernel = self.shared.kernel();
        self.begin_to_apply(&mut self.state.lock(), record, Method::Wal);
        self.find_end(&writer, &*kernel, record)?;
        let appended = self.append_frames(record, &*kernel)?;
        if writer.index.is_some() {
            self.lengthen_index(&*kernel, appended.end.frames)?;
        }
        let mut state = self.state.lock();
        let rolling = state.rolling_after(appended.changes(), record.info.commit);
        if rolling != record.info.post {
            // Readers go on with what they have.
            return Err(self.mismatch(&mut state, record, rolling));
        }
        let frames = (appended.first..)
            .zip(&appended.pages)
            .map(|(frame, (pgno, _))| (*pgno, frame));
        let frames: Vec<_> = frames.collect();
        state.wal.note_order(&frames);
        state.wal.advance(frames, appended.end, record.info.commit);
        let stores = match &writer.index {
            Some(index) => self.publish_frames(&mut state, &*kernel, index, &appended, record.info.commit)?,
            None => Vec::new(),
        };
        state.table.truncate(record.info.commit);
        for (pgno, checksum) in appended.changes() {
            state.table.set(*pgno, *checksum);
        }
        state.applied(record);
        self.check_rolling(&mut state, record)?;
        let long = state.wal.frames() >= CHECKPOINT_FRAMES;
        let alone = writer.index.is_none();
        self.shared.checkpointer.request(&self.name, long, alone);
        drop(state);
        for (offset, bytes) in stores {
            kernel.store(&self.name, Side::Shm, offset, &bytes);
        }
        drop(writer);
        Ok(())
    }

    /// Makes sure that the state knows where the WAL ends, and starts it over where that is possible.
    fn find_end(&self, writer: &Writer, kernel: &dyn Kernel, record: &Record) -> Result<()> {
        let mut state = self.state.lock();
        let wal = state.backing.get_or_create(Side::Wal)?;
        state.wal.present = true;
        // Where clients map a cache of the kernel's, they are told what changes in the wal-index, whatever it is.
        let index = writer
            .index
            .as_ref()
            .filter(|_| kernel.coherence() == Coherence::Passthrough);
        match index {
            Some(header) if header.max_frame > 0 => {
                let same = |wal: &WalHeader| wal.salt == header.salt;
                let frames = state
                    .wal
                    .header
                    .as_ref()
                    .filter(|wal| same(wal))
                    .map(|_| state.wal.frames());
                // A client that built the wal-index may have found fewer frames than were applied; they count.
                let fewer =
                    frames.is_some_and(|frames| frames > header.max_frame) && !state.wal.has_unpublished();
                if frames != Some(header.max_frame) && !fewer {
                    self.map_wal(&mut state, &wal, Some(header.max_frame))?;
                    if let Some(known) = frames {
                        self.check_foreign(&mut state, known, record)?;
                    }
                }
                self.start_over(&mut state, writer, header, &wal)?;
            }
            // The process before died while it started the WAL over, with the readers locked out: they are told again.
            Some(header) if header.max_frame == 0 && self.backfilled(&mut state)? > 0 => {
                self.start_over_again(&mut state, writer, header, &wal)?;
            }
            // A client built the wal-index when it took the WAL for empty. The frames are in it nevertheless, and no checkpoint
            // has copied them; only one that starts the WAL over leaves salts that follow the last ones.
            Some(header) if state.wal.frames() > 0 && !starts_over(&state, header) => {}
            Some(header) => {
                let sequence = read_header(&wal)?.map_or(0, |wal| wal.checkpoint_seq.wrapping_add(1));
                // Without a WAL before, the salts are zero, as those of any other first generation.
                let salt = match header.salt {
                    [0, 0] => rand::random(),
                    salt => salt,
                };
                self.begin_generation(&mut state, &wal, sequence, salt)?;
            }
            None if state.wal.header.is_none() => self.map_wal(&mut state, &wal, None)?,
            None => {}
        }
        let page_size = state.page_size();
        if state
            .wal
            .header
            .as_ref()
            .is_none_or(|header| Some(header.page_size) != page_size)
        {
            self.begin_generation(&mut state, &wal, 0, rand::random())?;
        }
        Ok(())
    }

    /// Nobody else appends to the WAL of a replica, except a client from its time as primary that could not be cut off, and a process that
    /// died when it had published the record. What such a client committed after frame `known` no other node has.
    fn check_foreign(&self, state: &mut State, known: u32, record: &Record) -> Result<()> {
        let Some(page_size) = state.wal.header.as_ref().map(|header| header.page_size) else {
            return Ok(());
        };
        let behind = frame_offset(known + 1, page_size);
        let held = state.wal.held_pages().filter_map(Pgno::new);
        let new: Vec<Pgno> = held
            .filter(|pgno| state.wal.frame_of(*pgno).is_some_and(|frame| frame >= behind))
            .collect();
        let mut page = vec![0; page_size.bytes()];
        let mut wrong = Vec::new();
        for pgno in new {
            state.read_page(pgno, page_size, &mut page)?;
            if !state.is_current(pgno, &page) {
                wrong.push((pgno, ltx::page_checksum(pgno, &page)));
            }
        }
        if !wrong.is_empty() && holds_all(record, &wrong)? {
            // The same frames are appended again, at the same place.
            let wal = state.backing.get_or_create(Side::Wal)?;
            return self.map_wal(state, &wal, Some(known));
        }
        if record.info.is_snapshot() {
            // It replaces everything, also what is hidden by such frames.
            for (pgno, _) in wrong {
                state.scratch.mark(pgno.get());
            }
            return Ok(());
        }
        let Some((pgno, _)) = wrong.first() else {
            return Ok(());
        };
        let reason = format!("a client committed page {pgno} while this node was no primary any more");
        state.diverge(reason.clone());
        Err(Error::Quarantined {
            db: self.name.clone(),
            reason,
        })
    }

    /// If all frames are in the main file and no reader needs them, the next frame is the first again. The wal-index says
    /// so before a frame is overwritten: a reader that comes in between finds an empty WAL.
    fn start_over(&self, state: &mut State, writer: &Writer, index: &IndexHeader, wal: &File) -> Result<()> {
        let path = state.backing.path(Side::Shm).to_owned();
        let (Some(shm), Some(header)) = (state.backing.get(Side::Shm)?, state.wal.header.clone()) else {
            return Ok(());
        };
        let mut block = [0; CkptInfo::BACKFILL + CkptInfo::SIZE];
        read_full(&shm, &mut block, 0).map_err(Error::io("shm.read", &path))?;
        let Ok(info) = CkptInfo::parse(&block) else {
            return Ok(());
        };
        if info.backfill < state.wal.frames()
            || !writer.lock_out_readers().map_err(Error::io("shm.lock", &path))?
        {
            return Ok(());
        }
        let restarted = header.restarted(rand::random());
        let emptied = IndexHeader {
            max_frame: 0,
            salt: restarted.salt,
            ..index.clone()
        };
        let outcome = restart_index(&shm, &emptied).map_err(Error::io("shm.write", &path));
        writer.let_readers_in().map_err(Error::io("shm.unlock", &path))?;
        outcome?;
        self.begin_generation(state, wal, restarted.checkpoint_seq, restarted.salt)
    }

    /// How many frames the wal-index says are in the main file.
    fn backfilled(&self, state: &mut State) -> Result<u32> {
        let path = state.backing.path(Side::Shm).to_owned();
        let Some(shm) = state.backing.get(Side::Shm)? else {
            return Ok(0);
        };
        let mut block = [0; CkptInfo::BACKFILL + CkptInfo::SIZE];
        read_full(&shm, &mut block, 0).map_err(Error::io("shm.read", &path))?;
        Ok(CkptInfo::parse(&block).map_or(0, |info| info.backfill))
    }

    /// As [`Database::start_over`], when the wal-index has the header of the next generation already.
    fn start_over_again(
        &self,
        state: &mut State,
        writer: &Writer,
        index: &IndexHeader,
        wal: &File,
    ) -> Result<()> {
        let path = state.backing.path(Side::Shm).to_owned();
        let Some(shm) = state.backing.get(Side::Shm)? else {
            return Ok(());
        };
        if !writer.lock_out_readers().map_err(Error::io("shm.lock", &path))? {
            return Err(self.busy("a read mark"));
        }
        let outcome = restart_index(&shm, index).map_err(Error::io("shm.write", &path));
        writer.let_readers_in().map_err(Error::io("shm.unlock", &path))?;
        outcome?;
        let sequence = read_header(wal)?.map_or(0, |wal| wal.checkpoint_seq.wrapping_add(1));
        self.begin_generation(state, wal, sequence, index.salt)
    }

    fn begin_generation(&self, state: &mut State, wal: &File, sequence: u32, salt: [u32; 2]) -> Result<()> {
        let page_size = state
            .page_size()
            .ok_or_else(|| self.corrupt("no page size is known"))?;
        let header = WalHeader::new(page_size, sequence, salt);
        wal.write_all_at(&header.encode(), 0)
            .map_err(Error::io("wal.write", state.backing.path(Side::Wal)))?;
        state.wal.begin(header);
        Ok(())
    }

    /// Appends the record's pages behind the last frame. Nobody sees them before they are published.
    fn append_frames(&self, record: &Record, kernel: &dyn Kernel) -> Result<Appended> {
        let mut state = self.state.lock();
        state.incoming = record.info.commit;
        let (Some(header), Some(at)) = (state.wal.header.clone(), state.wal.at) else {
            return Err(self.corrupt("the WAL has no header"));
        };
        let wal = state.backing.get_or_create(Side::Wal)?;
        let path = state.backing.path(Side::Wal).to_owned();
        let mut pages = ChangedPages::new(record)?;
        let mut unwritten = Vec::new();
        let mut next = next_frame(&mut pages, &mut state, &mut unwritten)?;
        if next.is_none() {
            // Only the size changes, or nothing that is not there already: a frame must carry it, page 1 as it is.
            next = Some(first_page(&mut state, header.page_size)?);
        }
        let mut appended = Appended {
            first: at.frames + 1,
            pages: Vec::new(),
            end: at,
            unwritten: Vec::new(),
        };
        let mut gathered = Gathered::new(frame_offset(at.frames + 1, header.page_size));
        if at.frames == 0 {
            // A new generation's header is new to the kernel's cache as well.
            gathered.written.push((0, header.encode().to_vec()));
        }
        let mut chain = at.checksum;
        while let Some(page) = next {
            next = next_frame(&mut pages, &mut state, &mut unwritten)?;
            let commit = if next.is_none() { record.info.commit } else { 0 };
            let frame = FrameHeader::seal(&header, &mut chain, page.pgno, commit, &page.data);
            gathered.bytes.extend_from_slice(&frame.encode());
            gathered.bytes.extend_from_slice(&page.data);
            appended.pages.push((page.pgno, page.checksum));
            appended.end = WalPosition {
                frames: appended.end.frames + 1,
                checksum: chain,
            };
            if gathered.bytes.len() >= GATHER || next.is_none() {
                gathered.write(&wal).map_err(Error::io("wal.write", &path))?;
                // The applying thread alone goes on from here, so nothing that it knows changes meanwhile.
                MutexGuard::unlocked(&mut state, || {
                    for (offset, bytes) in gathered.written.drain(..) {
                        kernel.store(&self.name, Side::Wal, offset, &bytes);
                    }
                });
            }
        }
        if let Some((last, _)) = unwritten.last() {
            self.lengthen(&mut state, kernel, header.page_size, *last)?;
        }
        appended.unwritten = unwritten;
        Ok(appended)
    }

    /// Makes the main file reach to a page that no frame holds: a checkpoint takes a database for damaged that is longer than
    /// file and WAL together. To readers it makes no difference.
    fn lengthen(
        &self,
        state: &mut MutexGuard<'_, State>,
        kernel: &dyn Kernel,
        page_size: PageSize,
        last: Pgno,
    ) -> Result<()> {
        let (old, new) = (
            state.backing.len(Side::Database)?,
            page_size.file_size(last.get()),
        );
        if old >= new {
            return Ok(());
        }
        let file = state.backing.get_or_create(Side::Database)?;
        file.set_len(new)
            .map_err(Error::io("database.truncate", state.backing.path(Side::Database)))?;
        MutexGuard::unlocked(state, || {
            kernel.invalidate(&self.name, Side::Database, Some((old, new - old)));
        });
        Ok(())
    }
}

/// Whether the record brings all these pages to that content.
fn holds_all(record: &Record, pages: &[(Pgno, Checksum)]) -> Result<bool> {
    let wanted: HashSet<&(Pgno, Checksum)> = pages.iter().collect();
    let mut found = 0;
    let mut decoder = Decoder::new(record.reader())?;
    let mut page = vec![0; record.info.page_size.bytes()];
    while let Some(pgno) = decoder.next_page(&mut page)? {
        found += usize::from(wanted.contains(&(pgno, ltx::page_checksum(pgno, &page))));
    }
    Ok(found == wanted.len())
}

/// Whether a checkpoint has copied all frames and announced the next generation of the WAL.
fn starts_over(state: &State, index: &IndexHeader) -> bool {
    let known = state.wal.header.as_ref();
    known.is_some_and(|known| index.salt[0] == known.salt[0].wrapping_add(1))
}

/// The next page that needs a frame. Pages that the database grows by, that never had a frame in this WAL and where the main file has
/// what is wanted, a hole say, need none, and there may be gigabytes of them.
fn next_frame(
    pages: &mut ChangedPages,
    state: &mut State,
    unwritten: &mut Vec<(Pgno, Checksum)>,
) -> Result<Option<ChangedPage>> {
    while let Some(page) = pages.next(state)? {
        let has_frame = state.wal.holds(page.pgno) || state.wal.has_outdated(page.pgno);
        if !page.is_there || page.pgno.get() <= state.commit || has_frame {
            return Ok(Some(page));
        }
        unwritten.push((page.pgno, page.checksum));
    }
    Ok(None)
}

fn first_page(state: &mut State, page_size: PageSize) -> Result<ChangedPage> {
    let mut data = vec![0; page_size.bytes()];
    state.read_page(Pgno::FIRST, page_size, &mut data)?;
    let checksum = ltx::page_checksum(Pgno::FIRST, &data);
    Ok(ChangedPage {
        pgno: Pgno::FIRST,
        checksum,
        data,
        is_there: false,
    })
}

/// What SQLite stores when a WAL starts over: an empty header, then marks that say that no reader uses a frame.
fn restart_index(shm: &File, emptied: &IndexHeader) -> io::Result<()> {
    let bytes = emptied.encode();
    shm.write_all_at(&bytes, SECOND_HEADER as u64)?;
    shm.write_all_at(&bytes, 0)?;
    shm.write_all_at(&0u32.to_ne_bytes(), CkptInfo::BACKFILL as u64)?;
    shm.write_all_at(&0u32.to_ne_bytes(), CkptInfo::BACKFILL_ATTEMPTED as u64)?;
    for mark in 1..lock::READ_COUNT {
        let value = if mark == 1 { 0 } else { READ_MARK_UNUSED };
        shm.write_all_at(&value.to_ne_bytes(), CkptInfo::read_mark_offset(mark) as u64)?;
    }
    Ok(())
}

/// Bytes on their way into the WAL file, and from there into the kernel's cache.
struct Gathered {
    offset: u64,
    bytes: Vec<u8>,
    written: Vec<(u64, Vec<u8>)>,
}

impl Gathered {
    fn new(offset: u64) -> Gathered {
        Gathered {
            offset,
            bytes: Vec::new(),
            written: Vec::new(),
        }
    }

    fn write(&mut self, wal: &File) -> io::Result<()> {
        if !self.bytes.is_empty() {
            wal.write_all_at(&self.bytes, self.offset)?;
            let bytes = std::mem::take(&mut self.bytes);
            let end = self.offset + bytes.len() as u64;
            self.written
                .push((std::mem::replace(&mut self.offset, end), bytes));
        }
        Ok(())
    }
}
