//! What a change of the node's role, housekeeping and the end of the process mean for one database.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ltx::Txid;
use sqlite_format::wal_index::lock;

use super::Database;
use crate::capture::wal::Until;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::layout;
use crate::name::Side;
use crate::store::{Retention, retain_policy};

/// Pause between two looks at a client's lock.
const LOOK: Duration = Duration::from_millis(2);

impl Database {
    /// Whether WAL_WRITE is held to keep clients from writing through handles from when this node was the primary.
    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    /// Ends the time as primary: no commit can return any more that is not in the log. Requests that would change
    /// something are refused already; what passes the daemon by is fenced with WAL_WRITE. A client that keeps it beyond
    /// the deadline is in the middle of a transaction that it cannot commit unseen: its frames are captured below or
    /// archived later.
    pub(crate) fn fence(&self, deadline: Instant) -> Result<()> {
        let wal_in_use = {
            let mut state = self.state.lock();
            state.backing.get(Side::Wal)?.is_some() && state.backing.get(Side::Shm)?.is_some()
        };
        if wal_in_use && let Ok(locks) = self.locks() {
            let path = self.name.file(Side::Shm);
            loop {
                if locks
                    .try_lock(Side::Shm, lock::WRITE, 1, true)
                    .map_err(Error::io("wal.fence", &path))?
                {
                    self.fenced.store(true, Ordering::Release);
                    break;
                }
                if Instant::now() >= deadline {
                    tracing::warn!(db = %self.name, "a client holds WAL_WRITE across the change of the primary");
                    break;
                }
                std::thread::sleep(LOOK);
            }
        }
        let mut state = self.state.lock();
        self.capture_wal(&mut state, Until::Index)?;
        Ok(())
    }

    /// Clients may write again.
    pub(crate) fn unfence(&self) {
        if self.fenced.swap(false, Ordering::AcqRel)
            && let Some(locks) = self.cached_locks()
            && let Err(error) = locks.unlock(Side::Shm, lock::WRITE, 1)
        {
            tracing::error!(db = %self.name, %error, "cannot release WAL_WRITE");
        }
    }

    /// The file has content that no transaction describes yet.
    pub(crate) fn expect_content(&self) {
        let mut state = self.state.lock();
        state.backing.forget(Side::Database);
        state.scratch.mark_all();
        state.wal.present = true;
        state.last_write = Some(Instant::now());
        drop(state);
        self.shared.settler.watch(&self.name);
    }

    /// Compares every page with the table and captures what differs: after edits that nobody reported, and as repair.
    pub fn reconcile(&self) -> Result<ltx::Pos> {
        if self.shared.is_primary() {
            self.expect_content();
            let mut state = self.state.lock();
            self.capture_pages(&mut state, 0)?;
        }
        Ok(self.position())
    }

    /// The file has another name now.
    pub(crate) fn moved_away(&self) -> Result<()> {
        self.forget_locks();
        let mut state = self.state.lock();
        state.backing.forget(Side::Database);
        self.drop_content(&mut state)
    }

    /// Copies the records behind `after` into the archive, as ordinary LTX files.
    pub(crate) fn archive_tail(&self, after: Txid) -> Result<Option<PathBuf>> {
        let first = after.next().unwrap_or(Txid::MAX);
        let dir = layout::archive(&self.shared.dir, &self.name);
        let mut range: Option<(Txid, Txid)> = None;
        for record in self.log.records(first) {
            let record = record?;
            let info = record.info;
            if info.min <= after {
                continue;
            }
            std::fs::create_dir_all(&dir).map_err(Error::io("archive.mkdir", &dir))?;
            let path = dir.join(ltx::file_name(info.min, info.max));
            let path = free_path(path);
            let mut file = std::fs::File::create_new(&path).map_err(Error::io("archive.create", &path))?;
            let mut reader = record.reader();
            copy(&mut reader, &mut file).map_err(Error::io("archive.write", &path))?;
            file.sync_all().map_err(Error::io("archive.sync", &path))?;
            range = Some((range.map_or(info.min, |(first, _)| first), info.max));
        }
        let Some((first, last)) = range else {
            return Ok(None);
        };
        sync_dir(&dir)?;
        tracing::warn!(
            db = %self.name, %first, %last, archive = %dir.display(),
            "transactions that the primary does not have are set aside"
        );
        let event = Event::Diverged {
            db: self.name.clone(),
            first,
            last,
            archive: dir.clone(),
        };
        self.shared.events.publish(&event);
        Ok(Some(dir))
    }

    /// Flushes the table if `lag` transactions happened since the last time, so that a start has little to replay.
    pub(crate) fn flush_if_behind(&self, lag: u64) -> Result<()> {
        let behind = {
            let state = self.state.lock();
            state
                .pos
                .txid
                .get()
                .saturating_sub(state.table.synced().txid.get())
        };
        if behind > lag { self.flush_table() } else { Ok(()) }
    }

    /// Lets go of old records.
    pub(crate) fn maintain(&self, retention: &Retention) -> Result<()> {
        self.flush_if_behind(0)?;
        let synced = self.state.lock().table.synced().txid;
        let now = (self.shared.options.clock)();
        self.log
            .retain(&retain_policy(retention, &self.name, synced), now)?;
        Ok(())
    }

    /// Makes the table durable at the current position; only the copy of what changed is made under the mutex.
    fn flush_table(&self) -> Result<()> {
        let flush = {
            let mut state = self.state.lock();
            let txid = state.pos.txid;
            if self.log.tail().is_none_or(|tail| tail.max < txid) {
                return Ok(());
            }
            state.table.prepare_flush(txid)?
        };
        self.log.sync()?;
        flush.write()?;
        self.state.lock().table.confirm(flush);
        Ok(())
    }

    /// A clean stop.
    pub(crate) fn close(&self) -> Result<()> {
        if self.shared.is_primary() {
            self.settle_now()?;
        }
        self.unfence();
        self.forget_locks();
        self.log.sync()?;
        let mut state = self.state.lock();
        let txid = state.pos.txid;
        if state.table.synced() != state.pos && txid != Txid::ZERO {
            state.table.flush(txid)?;
        }
        // Received records that clients kept from being applied are applied by the next start.
        if state.scratch.dirty().is_clean() && self.log.tail().is_none_or(|tail| tail.pos() == state.pos) {
            state.scratch.close();
        }
        Ok(())
    }
}

/// The path, or the path with a number behind it if it is taken: an archive is never overwritten.
fn free_path(path: PathBuf) -> PathBuf {
    if !path.exists() {
        return path;
    }
    let base = path.to_string_lossy().into_owned();
    (1u32..)
        .map(|n| PathBuf::from(format!("{base}.{n}")))
        .find(|path| !path.exists())
        .unwrap_or(path)
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<()> {
    std::io::copy(from, to).map(|_| ())
}

fn sync_dir(dir: &std::path::Path) -> Result<()> {
    std::fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io("archive.sync", dir))
}
