//! The WAL and its index. In mode K most writes pass the daemon by; what comes here is the rest: syncs, the end of a WAL, and writes
//! through handles that are intercepted.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use sqlite_format::Pgno;
use sqlite_format::wal::{FRAME_HEADER_SIZE, FrameHeader, WAL_HEADER_SIZE, WalHeader, frame_size};

use super::FileOp;
use crate::capture::wal::{Until, read_header};
use crate::database::Database;
use crate::database::backing::read_full;
use crate::database::state::State;
use crate::error::{Error, Result};
use crate::kernel::Coherence;
use crate::name::Side;
use crate::options::Durability;

/// How long the asynchronous trigger leaves a database alone that could not be captured.
const RETRY: Duration = Duration::from_millis(500);

impl Database {
    /// A write to a WAL handle that is intercepted. At the end of a frame its transaction may be complete.
    pub fn write_wal(&self, file: &File, offset: u64, data: &[u8]) -> Result<()> {
        if !self.shared.is_primary() {
            return Err(Error::ReadOnly(self.name.clone()));
        }
        let mut state = self.state.lock();
        self.health.check_usable()?;
        if let Some(intact) = intact_frames(&state, offset)
            // A request that the process before has done comes once more, and takes nothing away.
            && !is_there(file, offset, data)?
        {
            self.frames_go(&mut state, file, intact)?;
        }
        state.wal.changes_from(offset);
        file.write_all_at(data, offset)
            .map_err(Error::io("wal.write", state.backing.path(Side::Wal)))?;
        state.wal.present = true;
        if offset == 0 {
            self.begin_wal(&mut state, data)?;
        }
        if completes_commit(&mut state, file, offset, data)? {
            if self.captures_at_frame_end() {
                self.capture_wal(&mut state, Until::Chain)?;
            } else {
                // A handle from before a promotion: the commit is published after this request, and nothing tells of it.
                self.shared.settler.watch(&self.name);
            }
        }
        Ok(())
    }

    /// A WAL starts over with another header: all its frames are in the main file.
    fn begin_wal(&self, state: &mut State, data: &[u8]) -> Result<()> {
        match WalHeader::parse(data) {
            Ok(header)
                if state
                    .wal
                    .header
                    .as_ref()
                    .is_some_and(|known| known.salt != header.salt) =>
            {
                self.wal_goes(state)?;
                state.wal.begin(header);
                Ok(())
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Whether nothing but the write of a commit frame tells of the commit, or the commit must not return before it is
    /// captured.
    fn captures_at_frame_end(&self) -> bool {
        self.shared.kernel().coherence() == Coherence::Intercepted
            || self.shared.options.durability == Durability::Commit
    }

    /// SQLite makes the WAL durable: the commit of `synchronous=FULL`. A failure is the client's failed COMMIT.
    pub fn sync_wal(&self, file: &File, datasync: bool) -> Result<()> {
        self.sync(file, datasync, "wal.sync")?;
        let mut state = self.state.lock();
        if self.shared.is_primary() {
            self.health.check_usable()?;
            state.wal.present = true;
            self.capture_wal(&mut state, Until::Chain)?;
        }
        Ok(())
    }

    /// The WAL gets another size; its frames are captured before they go.
    pub fn truncate_wal(&self, file: &File, size: u64) -> Result<()> {
        self.check_shortens(Side::Wal, file, size)?;
        let mut state = self.state.lock();
        self.capture_before_wal_goes(&mut state)?;
        let sealed = state.seal.is_some();
        state.break_seal()?;
        state.wal.changes_from(size);
        let cut = file
            .set_len(size)
            .map_err(Error::io("wal.truncate", state.backing.path(Side::Wal)));
        if sealed {
            // It may be the very client that is not to write.
            state.seal_wal()?;
        }
        cut?;
        if size == 0 {
            self.wal_is_gone(&mut state)?;
        }
        Ok(())
    }

    /// The WAL is removed: the last connection is closed, or the journal mode changes.
    pub fn unlink_wal(&self, op: FileOp<'_>) -> Result<()> {
        self.check_goes()?;
        let mut state = self.state.lock();
        self.capture_before_wal_goes(&mut state)?;
        state.break_seal()?;
        op().map_err(Error::io("wal.unlink", state.backing.path(Side::Wal)))?;
        state.backing.forget(Side::Wal);
        state.wal.present = false;
        self.wal_is_gone(&mut state)
    }

    /// SQLite has moved what the WAL held to the main file, unless somebody removed or damaged it: then the database is
    /// what the main file says.
    fn wal_is_gone(&self, state: &mut State) -> Result<()> {
        let commit = state.commit;
        let held: Vec<u32> = state.wal.held_pages().filter(|page| *page <= commit).collect();
        state.wal.reset();
        state.set_cursor();
        let Some(page_size) = state.page_size().filter(|_| self.shared.is_primary()) else {
            return Ok(());
        };
        let mut page = vec![0; page_size.bytes()];
        let mut lost = false;
        for pgno in held.into_iter().filter_map(Pgno::new) {
            state.read_page(pgno, page_size, &mut page)?;
            if pgno != page_size.lock_page() && !state.is_current(pgno, &page) {
                state.scratch.mark(pgno.get());
                lost = true;
            }
        }
        if lost {
            tracing::warn!(db = %self.name, "the WAL is gone, and the main file lacks pages that it held");
            self.compare_pages(state, 0)?;
        }
        Ok(())
    }

    fn capture_before_wal_goes(&self, state: &mut State) -> Result<()> {
        if self.shared.is_primary() {
            self.capture_wal(state, Until::Index)?;
            self.wal_goes(state)?;
        }
        Ok(())
    }

    /// A WAL file was created or opened.
    pub fn wal_opened(&self) {
        let mut state = self.state.lock();
        state.wal.present = true;
        state.scratch.set_index_is_dead(false);
    }

    /// The wal-index is removed, or gets another name.
    pub fn unlink_shm(&self, op: FileOp<'_>) -> Result<()> {
        self.check_goes()?;
        op().map_err(Error::io("shm.unlink", self.name.file(Side::Shm)))?;
        self.shm_replaced();
        Ok(())
    }

    /// The wal-index gets another size.
    pub fn truncate_shm(&self, file: &File, size: u64) -> Result<()> {
        self.check_shortens(Side::Shm, file, size)?;
        file.set_len(size)
            .map_err(Error::io("shm.truncate", self.name.file(Side::Shm)))
    }

    /// The wal-index was removed or created: locks taken on the old file mean nothing.
    pub fn shm_replaced(&self) {
        self.state.lock().backing.forget(Side::Shm);
        self.forget_locks();
    }

    /// Somebody wrote the WAL without asking: the asynchronous trigger.
    pub fn wal_changed(&self) -> Result<()> {
        if !self.shared.is_primary() || self.is_closed() {
            return Ok(());
        }
        let mut state = self.state.lock();
        if state.retry_at.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        let captured = self.capture_wal(&mut state, Until::Index);
        // What cannot be captured, on a full disk say, is tried again by the settler. To try with each commit would cost
        // every client a look at all that waits.
        state.retry_at = captured.is_err().then(|| Instant::now() + RETRY);
        drop(state);
        let more = captured.inspect_err(|_| self.shared.settler.watch(&self.name))?;
        if more {
            self.shared.settler.watch(&self.name);
        }
        Ok(())
    }
}

/// Whether the file holds these bytes there.
fn is_there(file: &File, offset: u64, data: &[u8]) -> Result<bool> {
    let mut bytes = vec![0; data.len()];
    let read = read_full(file, &mut bytes, offset).map_err(Error::io("wal.read", "-wal"))?;
    Ok(read == data.len() && bytes == data)
}

/// How many captured frames a write to the WAL leaves as they are, if it overwrites any.
fn intact_frames(state: &State, offset: u64) -> Option<u32> {
    let size = frame_size(state.wal.header.as_ref()?.page_size) as u64;
    let intact = offset.checked_sub(WAL_HEADER_SIZE as u64)? / size;
    u32::try_from(intact)
        .ok()
        .filter(|intact| *intact < state.wal.frames())
}

/// Whether the write may be the last one of a transaction: it reaches the end of a frame, or writes a frame's header once
/// more (a transaction that overwrote frames of its own gets its checksums last), after the header of a commit frame.
fn completes_commit(state: &mut State, file: &File, offset: u64, data: &[u8]) -> Result<bool> {
    let end = offset + data.len() as u64;
    let Some(from) = offset
        .checked_sub(WAL_HEADER_SIZE as u64)
        .filter(|_| !data.is_empty())
    else {
        return Ok(false);
    };
    let page_size = match &state.wal.header {
        Some(header) => header.page_size,
        None => match read_header(file)? {
            Some(header) => header.page_size,
            None => return Ok(false),
        },
    };
    let size = frame_size(page_size) as u64;
    let into = from % size;
    let in_header = into < FRAME_HEADER_SIZE as u64;
    if in_header {
        // The kernel may have cut the header in two, so it is read back as a whole.
        let mut head = [0; FRAME_HEADER_SIZE];
        let read = read_full(file, &mut head, offset - into)
            .map_err(Error::io("wal.read", state.backing.path(Side::Wal)))?;
        state.wal.commit_written |= FrameHeader::parse(&head[..read]).is_ok_and(|frame| frame.commit > 0);
    }
    let header_only = in_header && into + data.len() as u64 <= FRAME_HEADER_SIZE as u64;
    Ok(state.wal.commit_written && (header_only || (end - WAL_HEADER_SIZE as u64).is_multiple_of(size)))
}
