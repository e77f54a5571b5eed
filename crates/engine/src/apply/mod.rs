//! Apply: the last link of a transaction's life. A record from the primary becomes what clients of this node read.
//!
//! A record is received first: verified as a whole and appended to the log. Then it is applied, at once if no client's
//! lock is in the way, else by a worker of the database, so that one busy database delays no other and not even its own
//! reception. Applying can be repeated and may be interrupted anywhere: a start compares the files with the log.
//!
//! * [`wal`]: appends frames and publishes them in the wal-index, as a SQLite writer would. Readers are not disturbed.
//! * [`exclusive`]: writes the main file under SQLite's exclusive lock: rollback mode, other page sizes.

mod arrivals;
pub(crate) mod checkpoint;
mod exclusive;
mod index;
mod lock;
mod pages;
mod wal;

pub(crate) use index::IndexImage;
pub(crate) use lock::WriterLock;

use arrivals::Arrivals;
use exclusive::Exclusive;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ltx::{Checksum, Pos, Txid};
use parking_lot::Mutex;
use sqlite_format::Pgno;
use sqlite_format::header::JournalMode;
use sqlite_format::wal_index::lock as wal_lock;

use crate::database::Database;
use crate::database::backing::Content;
use crate::database::repair::uncommitted;
use crate::database::scratch::{Applying, Method};
use crate::database::state::State;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::kernel::LockFiles;
use crate::log::{Origin, Record, RecordInfo, RecordMeta};
use crate::name::{DbName, Side};

/// How long a receiver waits for locks before it leaves the record to the worker.
const INLINE: Duration = Duration::from_millis(2);
/// First and longest pause between two attempts.
const RETRY: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(20));
/// Records that clients' locks keep from being seen for so long are worth a line in the log.
const LONG: Duration = Duration::from_secs(10);
/// First and longest pause of a worker after an error.
const FAILED: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How long the worker tries before it looks whether the store is closed.
const PATIENCE: Duration = Duration::from_millis(200);

/// Records that are received and not applied yet.
#[derive(Default)]
pub(crate) struct Backlog {
    /// One thread applies at a time.
    pub(crate) applying: Mutex<()>,
    /// Records are received one after the other.
    pub(crate) receiving: Mutex<()>,
    worker: AtomicBool,
    arrivals: Arrivals,
    /// The lock of an attempt that failed in the middle.
    kept: Mutex<Option<Exclusive>>,
}

impl Backlog {
    /// The process before died with this lock, in the middle of a record.
    pub(crate) fn keep(&self, locks: Arc<dyn LockFiles>, name: &DbName) -> Result<()> {
        let path = name.file(Side::Database);
        let taken = Exclusive::take(locks).map_err(Error::io("database.lock", path))?;
        match taken {
            Ok(guard) => *self.kept.lock() = Some(guard),
            // Nobody held it any more.
            Err(lock) => {
                tracing::warn!(db = %name, lock, "a record was half applied, and readers were not kept out")
            }
        }
        Ok(())
    }

    /// Whether readers are kept out.
    pub(crate) fn keeps_readers_out(&self) -> bool {
        self.kept.lock().is_some()
    }

    /// The record is in the files as a whole.
    pub(crate) fn let_go(&self) {
        drop(self.kept.lock().take());
    }
}

impl Database {
    /// Verifies and appends a record from the primary, and applies it if nobody is in the way.
    ///
    /// # Errors
    /// [`Error::PositionMismatch`] if the record does not follow the log and is no snapshot, [`Error::Ltx`] and
    /// [`Error::Log`] for damaged records; nothing is changed then.
    pub(crate) fn receive(self: &Arc<Self>, source: &mut dyn Read) -> Result<Pos> {
        let _turn = self.backlog.receiving.lock();
        self.health.check_verified()?;
        self.finish_primary()?;
        let mut head = [0; ltx::HEADER_SIZE];
        source
            .read_exact(&mut head)
            .map_err(Error::io("stream.read", "record header"))?;
        let header = ltx::Header::parse(&head).map_err(|e| Error::Ltx(e.into()))?;
        let have = self.received();
        if self.shared.is_primary() {
            return Err(Error::Invalid(format!(
                "{}: a primary does not take records",
                self.name
            )));
        }
        if !header.follows(have) {
            return Err(Error::PositionMismatch {
                db: self.name.clone(),
                have,
                wanted: header.pre_apply_pos(),
            });
        }
        let resets = header.is_snapshot() && self.log.tail().is_some();
        let meta = RecordMeta::new(if header.is_snapshot() {
            Origin::Snapshot
        } else {
            Origin::Applied
        });
        if resets {
            // The table is of the old history; a start must not take it for the new one. Where the files are, the checksum tells.
            self.state.lock().table.invalidate()?;
        }
        let mut whole = (&head[..]).chain(source);
        let mut appender = self.log.appender()?;
        let info = match resets {
            true => appender.receive_reset(meta, &mut whole)?,
            false => appender.receive(meta, &mut whole)?,
        };
        appender.flush()?;
        drop(appender);
        if resets {
            self.backlog.arrivals.clear();
        }
        self.backlog.arrivals.note(info.max, Instant::now());
        if resets && self.health.is_suspended() {
            // The files are at no position at all: even a snapshot of the one they claim is applied.
            self.state.lock().pos = Pos::ZERO;
            self.health.expect_to_heal();
        }
        self.shared.events.publish(&Event::Received {
            db: self.name.clone(),
            txid: info.max,
        });
        self.apply_soon();
        Ok(info.pos())
    }

    /// Applies at once, or has the worker do it.
    fn apply_soon(self: &Arc<Self>) {
        if self.backlog.worker.load(Ordering::Acquire) {
            return;
        }
        match self.apply_pending(Instant::now() + INLINE) {
            Ok(()) | Err(Error::Quarantined { .. }) => return,
            Err(Error::Busy { .. }) => {}
            Err(error) => self.cannot_apply(&error),
        }
        self.start_worker();
    }

    /// Applies what was received, until done or the deadline.
    pub(crate) fn apply_pending(&self, deadline: Instant) -> Result<()> {
        let _turn = self.backlog.applying.lock();
        while let Some(record) = self.next_record()? {
            let mut pause = RETRY.0;
            loop {
                match self.apply(&record) {
                    Ok(()) => break,
                    Err(Error::Busy { .. }) if Instant::now() < deadline => {
                        std::thread::sleep(pause.min(deadline.saturating_duration_since(Instant::now())));
                        pause = (pause * 2).min(RETRY.1);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// The record that follows what clients read, or the snapshot that replaces it.
    fn next_record(&self) -> Result<Option<Record>> {
        let pos = self.state.lock().pos;
        let Some(tail) = self.log.tail() else {
            return Ok(None);
        };
        if tail.pos() == pos {
            return Ok(None);
        }
        let next = pos.txid.next().unwrap_or(Txid::MAX);
        if let Some(record) = self.log.find(next)?
            && record.info.min == next
            && (record.info.pre == pos.post_apply || pos.is_zero())
        {
            return Ok(Some(record));
        }
        let Some(first) = self.log.first_txid() else {
            return Ok(None);
        };
        match self.log.find(first)? {
            Some(record) if record.info.is_snapshot() => Ok(Some(record)),
            Some(_) | None => Err(self.corrupt(format!("the log has no way from {pos} to {}", tail.pos()))),
        }
    }

    /// Applies on a thread of its own until nothing is left.
    pub(crate) fn start_worker(self: &Arc<Self>) {
        if self.backlog.worker.swap(true, Ordering::AcqRel) {
            return;
        }
        let db = self.clone();
        let spawned = std::thread::Builder::new()
            .name("litefs-apply".to_owned())
            .spawn(move || db.work());
        if let Err(error) = spawned {
            tracing::error!(db = %self.name, %error, "cannot start a thread to apply records");
            self.backlog.worker.store(false, Ordering::Release);
        }
    }

    /// Since when the oldest record is here that clients cannot see yet; `None`: they see all of them.
    pub fn held_since(&self) -> Option<Instant> {
        let arrivals = &self.backlog.arrivals;
        if arrivals.is_empty() {
            return None;
        }
        arrivals.oldest(self.position().txid)
    }

    /// Says once of clients that they hold on to an older state for long, and when they do not any more. `told`: it was said; returns whether
    /// it is from now on.
    fn tell_held(&self, outcome: &Result<()>, told: bool) -> bool {
        let held = self.held_since().map_or(Duration::ZERO, |since| since.elapsed());
        match outcome {
            Err(Error::Busy { lock, .. }) if held > LONG && !told => {
                tracing::warn!(
                    db = %self.name,
                    lock,
                    held = ?held,
                    "clients hold on to an older state of the database, and those that come see it too"
                );
                true
            }
            Ok(()) if told => {
                tracing::info!(db = %self.name, "clients see what was held up");
                false
            }
            Ok(()) | Err(_) => told,
        }
    }

    fn cannot_apply(&self, error: &Error) {
        if let Some(unlogged) = self.shared.repeats.note("apply", &self.name, error) {
            tracing::error!(db = %self.name, %error, unlogged, "cannot apply, trying again");
        }
    }

    fn work(&self) {
        if self.backlog.arrivals.is_empty()
            && let Some(tail) = self.log.tail()
        {
            // It arrived for the process before.
            self.backlog.arrivals.note(tail.max, Instant::now());
        }
        let (mut pause, mut told) = (FAILED.0, false);
        while !self.shared.is_closed() {
            let outcome = self.apply_pending(Instant::now() + PATIENCE);
            told = self.tell_held(&outcome, told);
            match outcome {
                Ok(()) => {
                    self.backlog.worker.store(false, Ordering::Release);
                    // A record received just before the flag fell is nobody else's.
                    if self.log.tail().is_none_or(|tail| tail.pos() == self.position())
                        || self.backlog.worker.swap(true, Ordering::AcqRel)
                    {
                        return;
                    }
                }
                Err(Error::Busy { .. }) => pause = FAILED.0,
                // A snapshot is needed; it will begin a new attempt.
                Err(Error::Quarantined { .. }) => {
                    if let Err(error) = self.give_up_record() {
                        tracing::error!(db = %self.name, %error, "locks of the process before stay");
                    }
                    break;
                }
                Err(error) => {
                    self.cannot_apply(&error);
                    self.shared.wait_closed(pause);
                    pause = (pause * 2).min(FAILED.1);
                    continue;
                }
            }
        }
        self.backlog.worker.store(false, Ordering::Release);
    }

    fn apply(&self, record: &Record) -> Result<()> {
        self.check_base(record)?;
        match self.method(record)? {
            Method::Wal => self.apply_wal(record)?,
            Method::Exclusive => self.apply_exclusive(record)?,
            Method::Remove => self.apply_removal(record)?,
        }
        self.applied_as_a_whole()?;
        let state = self.state.lock();
        self.publish(&state);
        self.tell(&state);
        Ok(())
    }

    /// From here on the files are at no position, until the record is applied as a whole and the kernel knows.
    fn begin_to_apply(&self, state: &mut State, record: &Record, method: Method) {
        let txid = record.info.max;
        state.scratch.set_applying(Some(Applying { method, txid }));
    }

    /// Where the local clients look: in the WAL if there is one in use, else in the main file. Who began with a record goes on in the same
    /// way: what is half written must not decide.
    fn method(&self, record: &Record) -> Result<Method> {
        if record.info.commit == 0 {
            return Ok(Method::Remove);
        }
        let mut state = self.state.lock();
        let begun = state
            .scratch
            .applying()
            .filter(|begun| begun.txid == record.info.max);
        if let Some(Applying { method, .. }) = begun
            && method != Method::Remove
        {
            return Ok(method);
        }
        state.notice_shorter_wal()?;
        if state
            .page_size()
            .is_none_or(|page_size| page_size != record.info.page_size)
        {
            return Ok(Method::Exclusive);
        }
        if state.wal.frames() > 0 {
            return Ok(Method::Wal);
        }
        let in_wal_mode = match state.backing.content()? {
            Content::Database { header, .. } => header.journal_mode() == JournalMode::Wal,
            Content::Empty | Content::Foreign(_) => return Ok(Method::Exclusive),
        };
        if in_wal_mode {
            return Ok(Method::Wal);
        }
        // Connections that opened the database in WAL mode stay in it, whatever the header says by now.
        let wal_exists = state.backing.get(Side::Wal)?.is_some();
        drop(state);
        let connected = wal_exists && self.locks()?.locked(Side::Shm, wal_lock::DMS).unwrap_or(false);
        Ok(if connected { Method::Wal } else { Method::Exclusive })
    }

    /// The database was dropped on the primary.
    fn apply_removal(&self, record: &Record) -> Result<()> {
        self.shared.checkpointer.forget(&self.name);
        {
            let mut state = self.state.lock();
            self.begin_to_apply(&mut state, record, Method::Remove);
            state.break_seal()?;
            for side in Side::ALL {
                #[cfg(feature = "canary")]
                if crate::canary::lasts(crate::canary::Fault::KeepRemoved) {
                    continue;
                }
                state.backing.remove(side)?;
            }
            state.wal.reset();
            state.wal.present = false;
            state.table.truncate(0);
            state.scratch.settle();
            state.applied(record);
            state.heal();
        }
        self.forget_locks();
        let kernel = self.shared.kernel();
        for side in Side::ALL {
            kernel.invalidate_entry(&self.name, side);
        }
        Ok(())
    }

    pub(crate) fn busy(&self, lock: &'static str) -> Error {
        Error::Busy {
            db: self.name.clone(),
            lock,
        }
    }

    /// The table must say what the record promises; if it does not, this node has something else than the primary.
    /// A snapshot that does puts an end to all doubts.
    fn check_rolling(&self, state: &mut State, record: &Record) -> Result<()> {
        let rolling = state.table.rolling();
        if rolling != state.pos.post_apply {
            return Err(self.mismatch(state, record, rolling));
        }
        if record.info.is_snapshot() {
            state.scratch.settle();
            state.heal();
        }
        Ok(())
    }

    fn mismatch(&self, state: &mut State, record: &Record, have: Checksum) -> Error {
        let RecordInfo { max, post, .. } = record.info;
        let reason = format!("after transaction {max} the checksum is {have} instead of {post}");
        state.diverge(reason.clone());
        self.corrupt(reason)
    }

    /// Records apply to what the last one left, and to nothing else.
    fn check_base(&self, record: &Record) -> Result<()> {
        let mut state = self.state.lock();
        if record.info.is_snapshot() {
            return Ok(());
        }
        if !state.health.is_diverged()
            && !state.scratch.dirty().is_clean()
            && !state.backing.journal_is_hot()?
        {
            match uncommitted(&mut state)?.first() {
                None => state.scratch.settle(),
                Some(pgno) => {
                    let reason = format!("page {pgno} was written while this node was no primary any more");
                    state.diverge(reason);
                }
            }
        }
        self.health.divergence().check(&self.name)
    }
}

impl State {
    /// Clients may have emptied or removed the WAL after a checkpoint.
    fn notice_shorter_wal(&mut self) -> Result<()> {
        if let Some(end) = self.wal.end_offset()
            && self.backing.len(Side::Wal)? < end
        {
            self.wal.reset();
        }
        Ok(())
    }

    /// The rolling checksum once these pages are written and the database has `commit` pages.
    fn rolling_after<'a>(&self, pages: impl Iterator<Item = &'a (Pgno, Checksum)>, commit: u32) -> Checksum {
        let mut rolling = self.table.rolling();
        for (pgno, new) in pages.filter(|(pgno, _)| pgno.get() <= commit) {
            rolling = match self.table.get(*pgno) {
                Some(old) => rolling.replace(old, *new),
                None => rolling.xor(*new),
            };
        }
        let gone = (commit.saturating_add(1)..=self.table.pages()).filter_map(Pgno::new);
        gone.filter_map(|pgno| self.table.get(pgno))
            .fold(rolling, Checksum::xor)
    }

    /// The files hold what the record says.
    fn applied(&mut self, record: &Record) {
        self.pos = record.info.pos();
        self.commit = record.info.commit;
        self.incoming = 0;
        self.timestamp_ms = record.info.timestamp_ms;
        self.set_cursor();
    }
}
