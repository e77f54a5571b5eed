//! One replicated database: its log, its position and its files.
//!
//! Everything that happens to a database happens under one mutex ([`state::State`]): writes that come from the kernel,
//! capture, and the changes that apply makes. READ requests never take it. [`crate::Kernel`] is never called with it
//! held, because the kernel may wait for a request that waits for the mutex.
//!
//! * [`crate::writers`]: who may write; [`crate::health`]: whether files, log and disk can be trusted;
//! * [`edge`]: what the kernel reports; * `open`: how a start finds its way back; * `settle`: capture of commits that
//!   nobody reports; * [`crate::capture`], [`crate::commit`], [`crate::apply`], [`crate::snapshot`]: the links of a
//!   transaction's life.

mod archive;
mod aside;
pub(crate) mod backing;
pub(crate) mod edge;
mod housekeeping;
mod open;
mod open_wal;
pub(crate) mod repair;
mod resume;
mod resume_wal;
mod rollback;
pub(crate) mod scan;
pub(crate) mod scratch;
pub(crate) mod settle;
pub(crate) mod state;
mod takeover;

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ltx::{Pos, Txid};
use metrics::{Counter, Gauge, Histogram};
use parking_lot::Mutex;
use sqlite_format::PageSize;
use sqlite_format::header::JournalMode;

use crate::apply::Backlog;
use crate::error::{Error, Result};
use crate::health::Vitals;
use crate::kernel::LockFiles;
use crate::log::{Log, Record};
use crate::name::{DbName, Side};
use crate::shared::Shared;
use crate::writers::Writers;
use crate::writers::access::Input;
use state::State;
use takeover::Inherited;

/// A replicated database.
pub struct Database {
    pub(crate) name: DbName,
    /// `databases/<id>` of the data directory.
    pub(crate) home: PathBuf,
    pub(crate) shared: Arc<Shared>,
    pub(crate) log: Log,
    pub(crate) state: Mutex<State>,
    pub(crate) backlog: Backlog,
    pub(crate) metrics: DatabaseMetrics,
    published: Mutex<Published>,
    pub(in crate::database) locks: Mutex<Option<Arc<dyn LockFiles>>>,
    /// The right of clients to write, and the locks that keep them from it.
    pub(crate) writers: Arc<Writers>,
    /// Whether files, log and disk can be trusted.
    pub(crate) health: Arc<Vitals>,
    /// The process before died before it had fenced everybody who wrote here: that comes before any record from elsewhere.
    pub(crate) unfinished_primary: AtomicBool,
    /// Locks that the process before held are yet to be released.
    inherited: Mutex<Option<Inherited>>,
}

/// Handles of the metrics with the database as label.
pub(crate) struct DatabaseMetrics {
    pub(crate) commits: Counter,
    pub(crate) txid: Gauge,
    pub(crate) capture_seconds: Histogram,
}

/// What of the state is told without waiting for whoever works on it.
#[derive(Debug, Clone, Default)]
struct Published {
    pos: Pos,
    page_size: Option<PageSize>,
    pages: u32,
    timestamp_ms: i64,
}

/// What is known about a database, for people and tools.
#[derive(Debug, Clone)]
pub struct DatabaseStatus {
    /// Position of what clients read.
    pub position: Pos,
    /// Position of the last record in the log; ahead of `position` while records wait to be applied.
    pub received: Pos,
    /// Page size in bytes; 0 before the first transaction.
    pub page_size: u32,
    /// Size in pages; 0 = dropped.
    pub pages: u32,
    /// Journal mode that the main file's header names.
    pub journal_mode: Option<JournalMode>,
    /// First transaction that the log can serve.
    pub first_txid: Option<Txid>,
    /// Size of the log in bytes.
    pub log_bytes: u64,
    /// Time of the last transaction in milliseconds since the epoch; 0 if there was none.
    pub timestamp_ms: i64,
    /// Why replication is suspended.
    pub quarantine: Option<String>,
}

impl Database {
    /// The database's name.
    pub fn name(&self) -> &DbName {
        &self.name
    }

    /// Position of what clients read, as far as it was captured.
    pub fn position(&self) -> Pos {
        self.published.lock().pos
    }

    /// Position of the last record in the log. Zero on a replica whose files do not follow the log any more: only a
    /// snapshot helps.
    pub fn received(&self) -> Pos {
        if self.health.is_suspended() && !self.shared.is_primary() {
            return Pos::ZERO;
        }
        self.log.tail().map_or_else(|| self.position(), |tail| tail.pos())
    }

    /// Whether a failure of the disk has closed the database for writing. Waits for nothing.
    pub fn is_closed(&self) -> bool {
        self.health.is_closed()
    }

    /// Everything in the log is applied.
    pub(crate) fn is_caught_up(&self) -> bool {
        self.log
            .tail()
            .is_none_or(|tail| tail.pos() == self.state.lock().pos)
    }

    /// Whether the node cannot be the primary before records that it has received are applied.
    pub(crate) fn hinders_promotion(&self) -> bool {
        !self.is_caught_up() && !self.health.is_suspended() && !self.is_closed()
    }

    /// Captures all that clients have committed, then tells the position: it is never behind a commit that returned
    /// before the call.
    pub fn drain(&self) -> Result<Pos> {
        if self.shared.is_primary() {
            self.settle_soon()?;
        }
        Ok(self.position())
    }

    /// A summary. Waits for nothing: whoever asks wants to know why a database is slow.
    pub fn status(&self) -> DatabaseStatus {
        let mut head = [0; sqlite_format::header::HEADER_SIZE];
        let main = self.name.file(Side::Database);
        let opened = self.shared.files.open_file(&main, OpenOptions::new().read(true));
        let read = opened
            .and_then(|file| backing::read_full(&file, &mut head, 0))
            .unwrap_or(0);
        let header = sqlite_format::header::DatabaseHeader::parse(&head[..read]).ok();
        let published = self.published.lock().clone();
        DatabaseStatus {
            position: published.pos,
            received: self.log.tail().map_or(published.pos, |tail| tail.pos()),
            page_size: published.page_size.map_or(0, PageSize::get),
            pages: published.pages,
            journal_mode: header.map(|header| header.journal_mode()),
            first_txid: self.log.first_txid(),
            log_bytes: self.log.bytes(),
            timestamp_ms: published.timestamp_ms,
            quarantine: self.health.summary().reason().map(str::to_owned),
        }
    }

    /// Whether the main file may hold a part of a transaction that is not committed.
    pub fn is_unfinished(&self) -> Result<bool> {
        let mut state = self.state.lock();
        Ok(!state.scratch.dirty().is_clean() || state.backing.journal_is_hot()?)
    }

    /// The record that leads to `txid`, if the log still has it.
    pub fn record(&self, txid: Txid) -> Result<Option<Record>> {
        Ok(self.log.find(txid)?)
    }

    /// The records of the log from `from` on.
    pub fn records(&self, from: Txid) -> impl Iterator<Item = Result<Record>> + '_ {
        self.log.records(from).map(|record| record.map_err(Error::from))
    }

    /// Makes the captured position visible and tells who waits for it.
    pub(crate) fn publish(&self, state: &State) {
        {
            let mut published = self.published.lock();
            published.pos = state.pos;
            published.page_size = state.page_size();
            published.pages = state.commit;
            published.timestamp_ms = state.timestamp_ms;
        }
        self.metrics.txid.set(state.pos.txid.get() as f64);
        self.shared.changes.notify(&self.name);
    }

    /// Lock files if they are open. Safe to call anywhere.
    pub(crate) fn cached_locks(&self) -> Option<Arc<dyn LockFiles>> {
        self.locks.lock().clone()
    }

    /// Lock files, opened through the mount if need be: never call this from a thread that serves the mount.
    pub(crate) fn locks(&self) -> Result<Arc<dyn LockFiles>> {
        use std::os::unix::fs::MetadataExt;
        let shm = self.name.file(Side::Shm);
        if let Some(locks) = self.cached_locks()
            && self
                .shared
                .files
                .metadata(&shm)
                .is_ok_and(|meta| meta.ino() == locks.shm_inode())
        {
            return Ok(locks);
        }
        let opened = self
            .shared
            .kernel()
            .open_locks(&self.name)
            .map_err(Error::io("locks.open", self.shared.files.path().join(shm)))?;
        let mut cached = self.locks.lock();
        // Another thread may have opened them meanwhile, and holds what it locked there.
        if let Some(locks) = cached
            .as_ref()
            .filter(|locks| locks.shm_inode() == opened.shm_inode())
        {
            return Ok(locks.clone());
        }
        self.enter(Input::FilesReplaced);
        *cached = Some(opened.clone());
        Ok(opened)
    }

    /// The files that the locks were taken on are replaced: what was locked there protects nothing any more, and whoever held out there
    /// is none of those who connect to the new ones.
    pub(crate) fn forget_locks(&self) {
        *self.locks.lock() = None;
        self.enter(Input::FilesReplaced);
    }
}

/// Fences and seals outlive the process: a client that was kept from writing is kept from it without a gap.
impl Drop for Database {
    fn drop(&mut self) {
        self.enter(Input::FilesReplaced);
        if let Some(seal) = self.state.get_mut().seal.take() {
            seal.leave();
        }
    }
}

impl DatabaseMetrics {
    pub(crate) fn new(name: &DbName) -> DatabaseMetrics {
        use crate::metrics_names as names;
        let db = name.to_string();
        DatabaseMetrics {
            commits: metrics::counter!(names::COMMIT_TOTAL, "db" => db.clone()),
            txid: metrics::gauge!(names::DB_TXID, "db" => db),
            capture_seconds: metrics::histogram!(names::CAPTURE_SECONDS),
        }
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database")
            .field("name", &self.name)
            .field("position", &self.position())
            .finish()
    }
}
