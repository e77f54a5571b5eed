//! The log: LTX records of one database, one after the other, in a few append-only files.
//!
//! This is step 5 of a transaction's path: commit appends what it captured, apply appends what was received, and
//! serving, resuming and recovery read. The engine uses it from the database that owns it; no other crate appends.
//!
//! Invariants:
//! * records follow each other without a gap: each begins at the TXID after the last one's, with the checksum that one
//!   left. Only a snapshot begins a history, and it is the first record of the log;
//! * a record is seen whole or not at all, by readers and after a crash. After a restart of the machine a start verifies in full what
//!   may not have been durable; where only the process ended, the length of the file tells (`recover`);
//! * what [`Log::sync`] returned for is never lost. After a failed sync nothing can be appended;
//! * readers take no lock while they read, and keep what they read although retention removes it.
//!
//! On disk: `<history>-<first TXID>.log`, holding records behind frame headers. Before a segment is begun the one
//! before is durable, so that a start looks at the last one only.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use ltx::Txid;
use parking_lot::{Mutex, RwLock};

use crate::disk::{self, Disk, DiskError, DiskFile, Op};

mod append;
mod error;
mod frame;
mod read;
mod record;
mod recover;
mod retain;
mod segment;
mod sink;
mod writer;

pub use append::{Append, Appender};
pub use error::{LogError, Result};
pub use read::{Record, RecordReader, Records};
pub use record::{Origin, RecordInfo, RecordMeta, WalPosition};
pub use recover::Repair;
pub use retain::{Removed, RetainPolicy};

pub(crate) use recover::sync_last;
use recover::{Found, Purpose};
use segment::Segment;
use writer::Writer;

/// Syncs of logs, each of which made durable all that was appended before it.
pub const SYNC_METRIC: &str = "litefs_log_sync_total";

#[derive(Debug, Clone, Copy)]
pub struct LogOptions {
    /// A segment that has grown to this size is followed by another one.
    pub segment_bytes: u64,
    /// Whether captured records are compressed. Received ones stay as they are.
    pub compress: bool,
    /// The machine has not restarted since the log was written: what was written is there, up to where its process ended.
    pub same_boot: bool,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions {
            segment_bytes: 64 << 20,
            compress: true,
            same_boot: false,
        }
    }
}

/// The log of a database.
pub struct Log {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: LogOptions,
    /// The append lock. Taken before `syncing`, that before `shared`.
    writer: Mutex<Writer>,
    /// Held by whoever syncs: those who wait for it are mostly done when they get it.
    syncing: Mutex<()>,
    shared: RwLock<Shared>,
    poison: OnceLock<Arc<str>>,
    on_poison: OnceLock<OnPoison>,
    /// What was found at the start is durable.
    settled: AtomicBool,
    /// The next record begins a segment.
    rotate: AtomicBool,
    repair: Option<Repair>,
}

type OnPoison = Box<dyn Fn(&str) + Send + Sync>;

/// What readers see.
struct Shared {
    history: u32,
    /// Ascending; only the last one grows.
    segments: Vec<Arc<Segment>>,
    tail: Option<RecordInfo>,
    synced: Txid,
}

impl Log {
    /// Opens the log in `dir`, which is made if missing. Reads the last segment; a torn end is cut off, see
    /// [`Log::repair`].
    pub fn open(disk: Arc<dyn Disk>, dir: PathBuf, options: LogOptions) -> Result<Log> {
        let found = recover::recover(&disk, &dir, Purpose::Append, options.same_boot)?;
        let mut writer = Writer::default();
        writer
            .state
            .resume(&writer.sink, found.segments.last().cloned(), found.tail)?;
        Ok(Log::new(disk, dir, options, found, writer))
    }

    /// Opens the log in `dir` for reading only: changes nothing, so that another process may be appending. A torn end
    /// is passed over.
    pub fn inspect(disk: Arc<dyn Disk>, dir: PathBuf) -> Result<Log> {
        let found = recover::recover(&disk, &dir, Purpose::Inspect, false)?;
        let log = Log::new(disk, dir, LogOptions::default(), found, Writer::default());
        log.poison
            .get_or_init(|| Arc::from("it was opened for inspection"));
        Ok(log)
    }

    fn new(disk: Arc<dyn Disk>, dir: PathBuf, options: LogOptions, found: Found, writer: Writer) -> Log {
        let shared = Shared {
            history: found.history,
            segments: found.segments,
            tail: found.tail,
            synced: Txid::ZERO,
        };
        Log {
            disk,
            dir,
            options,
            writer: Mutex::new(writer),
            syncing: Mutex::new(()),
            shared: RwLock::new(shared),
            poison: OnceLock::new(),
            on_poison: OnceLock::new(),
            settled: AtomicBool::new(false),
            rotate: AtomicBool::new(false),
            repair: found.repair,
        }
    }

    /// Calls `tell`, under locks of the log, when a failure closes the log for writing. The first one to ask is told.
    pub fn on_poison(&self, tell: impl Fn(&str) + Send + Sync + 'static) {
        let _ = self.on_poison.set(Box::new(tell));
    }

    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// What had to be cut off when the log was opened, or would have to be.
    pub fn repair(&self) -> Option<&Repair> {
        self.repair.as_ref()
    }

    /// The last record.
    pub fn tail(&self) -> Option<RecordInfo> {
        self.shared.read().tail
    }

    /// The first TXID that [`Log::find`] finds.
    pub fn first_txid(&self) -> Option<Txid> {
        self.shared.read().segments.first().map(|segment| segment.first)
    }

    /// Size of the log on disk.
    pub fn bytes(&self) -> u64 {
        self.shared
            .read()
            .segments
            .iter()
            .map(|segment| segment.end())
            .sum()
    }

    /// Up to here the log is known to be durable; zero after a start, until something is appended or synced.
    pub fn synced_txid(&self) -> Txid {
        self.shared.read().synced
    }

    /// Takes the append lock.
    pub fn appender(&self) -> Result<Appender<'_>> {
        let writer = self.writer.lock();
        self.check_poison()?;
        Ok(Appender::new(self, writer))
    }

    /// The record that holds `txid`.
    pub fn find(&self, txid: Txid) -> Result<Option<Record>> {
        Ok(self.locate(txid)?.filter(|record| record.info.contains(txid)))
    }

    /// Records from the one that holds `from`, or the first one behind it.
    pub fn records(&self, from: Txid) -> Records<'_> {
        Records::new(self, from)
    }

    /// Records from the last to the first.
    pub(crate) fn records_back(&self) -> impl Iterator<Item = Result<Record>> + '_ {
        let mut next = self.tail().map(|tail| tail.max);
        std::iter::from_fn(move || {
            let found = self.find(next.take()?).transpose()?;
            if let Ok(record) = &found {
                next = record.info.min.0.checked_sub(1).map(Txid);
            }
            Some(found)
        })
    }

    /// Makes every record that is visible durable. Who waits while another thread syncs shares the next sync.
    pub fn sync(&self) -> Result<()> {
        self.check_poison()?;
        let Some(wanted) = self.tail() else { return Ok(()) };
        self.settle()?;
        let _turn = self.syncing.lock();
        self.check_poison()?;
        let (segment, end, tail) = {
            let shared = self.shared.read();
            let Some((segment, tail)) = shared.segments.last().zip(shared.tail) else {
                return Ok(());
            };
            if shared.synced >= wanted.max.min(tail.max) {
                return Ok(());
            }
            (segment.clone(), segment.end(), tail)
        };
        let file = segment.file()?;
        self.must_sync(file.sync_data("log.append.sync"))?;
        segment.set_durable(end);
        self.shared.write().synced = tail.max;
        metrics::counter!(SYNC_METRIC).increment(1);
        Ok(())
    }

    /// Makes durable what was found when the log was opened, before anything is built on it: a process may have died
    /// between a change and its sync, and what it removed must not come back behind what is appended from now on. A
    /// start does it only for a database with a WAL: for every one, used or not, it would be a cost.
    pub(crate) fn settle(&self) -> Result<()> {
        if self.settled.load(Ordering::Acquire) {
            return Ok(());
        }
        let _turn = self.syncing.lock();
        if self.settled.load(Ordering::Acquire) {
            return Ok(());
        }
        self.check_poison()?;
        let (last, tail) = {
            let shared = self.shared.read();
            (shared.segments.last().cloned(), shared.tail)
        };
        self.must_sync(self.disk.sync_dir("log.settle.sync_dir", &self.dir))?;
        if let Some((last, tail)) = last.zip(tail) {
            self.must_sync(last.file()?.sync_data("log.settle.sync"))?;
            last.set_durable(last.end());
            self.shared.write().synced = tail.max;
        } else if let Some(parent) = self.dir.parent() {
            // Perhaps this is the first time that the directory is used.
            self.must_sync(self.disk.sync_dir("log.settle.sync_dir", parent))?;
        }
        self.settled.store(true, Ordering::Release);
        Ok(())
    }

    /// The last segment that can hold `txid`; the first one if all begin behind it.
    fn segment_for(&self, txid: Txid) -> Option<Arc<Segment>> {
        let shared = self.shared.read();
        let behind = shared.segments.partition_point(|segment| segment.first <= txid);
        shared.segments.get(behind.saturating_sub(1)).cloned()
    }

    fn lists(&self, segment: &Arc<Segment>) -> bool {
        self.shared
            .read()
            .segments
            .iter()
            .any(|listed| Arc::ptr_eq(listed, segment))
    }

    fn history(&self) -> u32 {
        self.shared.read().history
    }

    fn next_history(&self) -> Result<u32> {
        let next = self.history().checked_add(1);
        next.ok_or_else(|| LogError::Poisoned(Arc::from("the last possible reset")))
    }

    /// Lets readers see records that were published in `segment`.
    fn show(&self, segment: &Arc<Segment>, tail: Option<RecordInfo>) {
        let mut shared = self.shared.write();
        if !shared
            .segments
            .last()
            .is_some_and(|last| Arc::ptr_eq(last, segment))
        {
            shared.segments.push(segment.clone());
        }
        shared.tail = tail;
    }

    /// The durable snapshot in `segment` is the log from now on; removes what was there before.
    fn replace_all(&self, segment: Arc<Segment>, info: RecordInfo) {
        let old = {
            let _turn = self.syncing.lock();
            let mut shared = self.shared.write();
            shared.history += 1;
            shared.tail = Some(info);
            shared.synced = info.max;
            std::mem::replace(&mut shared.segments, vec![segment])
        };
        for segment in old {
            if let Err(error) = self.disk.remove_file("log.reset.remove", &segment.path) {
                tracing::warn!(%error, "segment of an older history stays until the next start");
            }
        }
    }

    /// Syncs a segment that will not grow any more.
    fn sync_segment(&self, segment: &Segment, file: &dyn DiskFile, op: Op) -> Result<()> {
        let _turn = self.syncing.lock();
        self.check_poison()?;
        if segment.durable() == segment.end() {
            return Ok(());
        }
        self.must_sync(file.sync_data(op))?;
        segment.set_durable(segment.end());
        let mut shared = self.shared.write();
        shared.synced = shared.tail.map_or(shared.synced, |tail| tail.max);
        metrics::counter!(SYNC_METRIC).increment(1);
        Ok(())
    }

    /// A sync that fails closes the log for writing; one that was not begun for want of descriptors can be done again.
    fn must_sync(&self, result: disk::Result<()>) -> Result<()> {
        result
            .inspect_err(|error| {
                if !error.is_out_of_descriptors() {
                    self.poison(error);
                }
            })
            .map_err(LogError::from)
    }

    fn poison(&self, error: &DiskError) {
        if self.poison.set(Arc::from(error.to_string())).is_ok() {
            match self.on_poison.get() {
                Some(tell) => tell(&error.to_string()),
                None => tracing::error!(%error, "log is closed for writing"),
            }
        }
    }

    fn check_poison(&self) -> Result<()> {
        match self.poison.get() {
            Some(reason) => Err(LogError::Poisoned(reason.clone())),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("dir", &self.dir)
            .field("tail", &self.tail())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
