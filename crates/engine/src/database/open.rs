//! Opening a database: from what a clean stop, a killed daemon or a power loss left behind to a state in which table,
//! position, log and files agree. The cost grows with what was not flushed, not with the size of the database.
//!
//! Order: the log's tail is the position; records behind the table's last flush are replayed into the table; what is left
//! of WALs that earlier starts set aside (`aside`) and then the WAL that is there (`open_wal`) are folded in; pages of the
//! replayed records that differ from the log are written from it (`repair`), as up to the flush the files were made durable; what
//! clients wrote without a journal is captured. A hot journal is left for SQLite to roll back, unless the log shows that
//! its transaction committed. Where the log has records from a primary that the files lack, both give way to it. After a power loss
//! all other pages are compared in the background.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{Builder, Scope, ScopedJoinHandle};

use ltx::{Pos, Txid};
use parking_lot::Mutex;
use sqlite_format::Pgno;

use super::aside::Aside;
use super::backing::Backing;
use super::open_wal::seal_left;
use super::repair::{Touched, for_each_page};
use super::scan::Scan;
use super::scratch::{Left, Scratch, Writing, distrust};
use super::state::State;
use super::{Database, DatabaseMetrics};
use crate::apply::Backlog;
use crate::capture::wal::{Wal, read_header};
use crate::checksums::ChecksumTable;
use crate::error::{Error, Result};
use crate::health::Vitals;
use crate::log::{Log, LogOptions, Origin, RecordInfo, sync_last};
use crate::name::{DbName, Side};
use crate::shared::Shared;
use crate::writers::Writers;
use crate::writers::access::Input;
use crate::writers::seal::unseal_at;

/// Work that goes on beside the thread that opens the database.
pub(super) fn aside_of<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> Result<T> + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, Result<T>>> {
    Builder::new()
        .name("litefs-open".to_owned())
        .spawn_scoped(scope, work)
        .map_err(Error::io("thread.spawn", "litefs-open"))
}

pub(super) fn joined<T>(work: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    work.join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl Database {
    /// Opens the database that is kept in `home`, before anybody can use its files.
    ///
    /// What takes time and depends on nothing else runs side by side: the WAL, if there is one, is sealed and the log synced while log and
    /// table are read.
    pub(crate) fn open(shared: Arc<Shared>, name: DbName, home: PathBuf) -> Result<Arc<Database>> {
        let mut backing = Backing::new(&shared.files, &name);
        // A daemon that was killed may have left it sealed.
        let (files, relative) = (shared.files.clone(), name.file(Side::Wal));
        let path = backing.path(Side::Wal).to_owned();
        unseal_at(&files, &relative).map_err(Error::io("wal.unseal", &path))?;
        let wal = backing.get(Side::Wal)?;
        let opened = Database::open_beside(shared, name, home, backing, wal.as_ref());
        // Nobody takes it out of the mount if that failed, or if it is not the WAL of a database that the log knows: clients may use it.
        if let Err(error) = unseal_at(&files, &relative) {
            tracing::warn!(path = %path.display(), %error, "the WAL stays immutable: `chattr -i` frees it");
        }
        opened
    }

    fn open_beside(
        shared: Arc<Shared>,
        name: DbName,
        home: PathBuf,
        backing: Backing,
        wal: Option<&Arc<File>>,
    ) -> Result<Arc<Database>> {
        std::thread::scope(|scope| {
            // What is copied from a WAL must be in a durable log first.
            let syncing = wal.is_some().then(|| {
                let (disk, log) = (shared.options.disk.clone(), home.join("log"));
                aside_of(scope, move || Ok(sync_last(&disk, &log)?))
            });
            let sealing = wal.cloned().map(|wal| {
                let (shared, name) = (shared.clone(), name.clone());
                aside_of(scope, move || seal_left(&shared, &name, &wal))
            });
            let loaded = Database::load(shared.clone(), name, home, backing);
            let sealed = sealing.map_or(Ok(()), |sealing| joined(sealing?));
            let (db, left) = loaded?;
            sealed?;
            let recovered = db.recover(&left);
            syncing
                .map_or(Ok(()), |syncing| joined(syncing?))
                .inspect_err(|_| distrust(&db.home))?;
            recovered?;
            db.state.lock().scratch.confirm();
            Ok(db)
        })
    }

    /// A database of which nothing is known yet. Clients may have its files open.
    pub(crate) fn create(shared: Arc<Shared>, name: DbName, home: PathBuf) -> Result<Arc<Database>> {
        let backing = Backing::new(&shared.files, &name);
        let (db, _) = Database::load(shared, name, home, backing)?;
        let mut state = db.state.lock();
        let (primary, wrote) = (db.shared.is_primary(), false);
        db.enter_noting(&mut state, Input::Opened { primary, wrote });
        state.scratch.confirm();
        drop(state);
        Ok(db)
    }

    pub(super) fn load(
        shared: Arc<Shared>,
        name: DbName,
        home: PathBuf,
        backing: Backing,
    ) -> Result<(Arc<Database>, Left)> {
        let disk = &shared.options.disk;
        disk.create_dir_all("database.mkdir", &home)?;
        let (scratch, mut left) = Scratch::open(&home.join("scratch"))?;
        let options = LogOptions {
            segment_bytes: shared.options.segment_bytes,
            compress: shared.options.compress,
            same_boot: left.same_boot,
        };
        let writers = Arc::new(Writers::new());
        let health = Arc::new(Vitals::new(name.clone(), &home, shared.clone(), writers.clone()));
        let (log, table) = std::thread::scope(|scope| {
            let table = aside_of(scope, || {
                Ok(ChecksumTable::open(&**disk, &home.join("checksums"))?)
            });
            let log = Log::open(disk.clone(), home.join("log"), options);
            (log, table.and_then(joined))
        });
        let (log, table) = (log?, table?);
        if let Some(at) = left.files_at {
            // A log that began anew may have another transaction of that number.
            let record = log.find(at.txid)?;
            left.files_at = Some(at).filter(|at| record.is_some_and(|record| record.info.pos() == *at));
        }
        let failing = health.clone();
        log.on_poison(move |reason| failing.disk_failed(reason));
        if let Some(repair) = log.repair() {
            tracing::info!(db = %name, ?repair, "log ended in an unfinished record");
        }
        let state = State {
            pos: Pos::ZERO,
            table,
            commit: 0,
            timestamp_ms: 0,
            scratch,
            backing,
            aside: Aside::open(&home)?,
            wal: Wal::default(),
            health: health.clone(),
            synced_writes: false,
            last_write: None,
            all_synced: false,
            clients_sync: left.writing != Writing::Unknown,
            incoming: 0,
            seal: None,
            retry_at: None,
            spare: Vec::new(),
        };
        let db = Arc::new(Database {
            metrics: DatabaseMetrics::new(&name),
            name,
            home,
            shared,
            log,
            state: Mutex::new(state),
            backlog: Backlog::default(),
            published: Mutex::default(),
            locks: Mutex::new(None),
            writers,
            health,
            unfinished_primary: AtomicBool::new(false),
            inherited: Mutex::new(None),
        });
        Ok((db, left))
    }

    fn recover(&self, left: &Left) -> Result<()> {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.scratch.forget_clients();
        state.backing.remove(Side::Shm)?;
        state.wal.present = state.backing.get(Side::Wal)?.is_some();
        let Some(tail) = self.log.tail() else {
            return self.forget_table(state);
        };
        let mut touched = self.replay(state, &tail)?;
        if tail.commit == 0 {
            self.finish_removal(state, left, &tail)?;
        } else {
            if !left.clean {
                self.copy_aside(state, &mut touched)?;
            }
            let had_wal = state.wal.present;
            self.recover_wal(state, left, &tail, &mut touched)?;
            if !left.clean {
                if tail.meta.origin != Origin::Captured && left.files_at != Some(tail.pos()) {
                    self.give_way(state, &mut touched)?;
                }
                self.resolve_journal(state, &tail)?;
                self.repair(state, touched, &tail)?;
                if !had_wal && left.writing == Writing::Unfinished {
                    self.take_back_unfinished(state)?;
                }
            }
            self.capture_leftovers(state)?;
            state
                .scratch
                .set_unverified(if left.same_boot { left.unverified } else { Some(1) });
        }
        // After a kill nothing is lost that a later flush could not make durable, and a start need not wait for a disk.
        if !left.same_boot && state.table.synced() != state.pos {
            self.log.sync()?;
            self.sync_files(state)?;
            state.table.flush(state.pos.txid)?;
            state.aside.remove()?;
        }
        if !state.health.is_diverged() {
            // Files and log agree. Not before: a start that is killed leaves the next one what it has to look for.
            state.set_cursor();
        }
        self.publish(state);
        Ok(())
    }

    /// The log ends with a removal. If it was to be applied here, the files go, with or without the main file. If clients made it, or it
    /// was applied, a main file that is there was not removed in time or is a new database: it stays, to be captured when this node may
    /// write.
    fn finish_removal(&self, state: &mut State, left: &Left, tail: &RecordInfo) -> Result<()> {
        let captured = tail.meta.origin == Origin::Captured;
        match state.backing.get(Side::Database)? {
            Some(_) if captured || left.files_at == Some(tail.pos()) => {
                state.scratch.mark_all();
                state.wal.unknown = true;
                return Ok(());
            }
            None if captured => return Ok(()),
            Some(_) | None => {}
        }
        for side in Side::ALL.into_iter().rev() {
            state.backing.remove(side)?;
        }
        state.scratch.settle();
        state.wal = Wal::default();
        Ok(())
    }

    /// What clients wrote without a journal, and nobody could tell when they were done: nobody is at it any more.
    fn capture_leftovers(&self, state: &mut State) -> Result<()> {
        if state.health.is_diverged() || state.backing.journal_is_hot()? {
            return Ok(());
        }
        self.capture_pages(state, 0)
    }

    /// Without a log the table means nothing; the database begins anew when its file is attached.
    pub(super) fn forget_table(&self, state: &mut State) -> Result<()> {
        if state.table.pages() > 0 {
            state.table.truncate(0);
            state.table.invalidate()?;
        }
        Ok(())
    }

    /// Brings table and position to the end of the log.
    fn replay(&self, state: &mut State, tail: &RecordInfo) -> Result<Touched> {
        let synced = state.table.synced();
        let mut touched = Touched::Pages(BTreeSet::new());
        if synced != tail.pos() || !state.table.is_intact() {
            let from = synced.txid.next().unwrap_or(Txid::MAX);
            let covered = self
                .log
                .first_txid()
                .is_some_and(|first| first <= from || first == Txid::FIRST);
            if !covered {
                self.rebuild_table(state, tail)?;
                touched = Touched::All;
            } else {
                let first = if synced.txid == Txid::ZERO || synced.txid > tail.max {
                    Txid::FIRST
                } else {
                    from
                };
                self.replay_records(state, first, Txid::MAX, &mut touched)?;
            }
        }
        state.pos = tail.pos();
        state.commit = tail.commit;
        state.timestamp_ms = tail.timestamp_ms;
        if state.table.rolling() != tail.post {
            tracing::warn!(db = %self.name, "checksum table does not match the log: reading the whole database");
            self.rebuild_table(state, tail)?;
            touched = Touched::All;
        }
        Ok(touched)
    }

    pub(super) fn replay_records(
        &self,
        state: &mut State,
        first: Txid,
        last: Txid,
        touched: &mut Touched,
    ) -> Result<()> {
        for record in self.log.records(first) {
            let record = record?;
            let info = record.info;
            if info.min > last {
                break;
            }
            let page_size = info.page_size;
            if state.table.page_size() != Some(page_size) || info.is_snapshot() {
                state.table.reset(page_size);
                *touched = Touched::All;
            }
            state.table.truncate(info.commit);
            for_each_page(&record, |pgno, page| {
                state.table.set(pgno, ltx::page_checksum(pgno, page));
                if let Touched::Pages(pages) = touched {
                    pages.insert(pgno.get());
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Computes the table from the files: the last resort, when neither table nor log can tell.
    fn rebuild_table(&self, state: &mut State, tail: &RecordInfo) -> Result<()> {
        let page_size = tail.page_size;
        state.table.reset(page_size);
        state.commit = tail.commit;
        if let Some(file) = state.backing.get(Side::Wal)? {
            self.map_wal(state, &file, None)?;
        }
        let mut scan = Scan::new(state, page_size, tail.commit)?;
        for pgno in Pgno::up_to(tail.commit).filter(|pgno| *pgno != page_size.lock_page()) {
            let checksum = scan.page(state, pgno)?.checksum;
            state.table.set(pgno, checksum);
        }
        if state.table.rolling() != tail.post {
            let reason = format!(
                "its files have checksum {}, the log ends with {}: only a snapshot from another node can repair it",
                state.table.rolling(),
                tail.post
            );
            state.diverge(reason);
        }
        state.wal.reset();
        Ok(())
    }

    /// Goes back to what the log holds, after records could not be written to it.
    pub(crate) fn reload(&self, state: &mut State) -> Result<()> {
        let disk = &self.shared.options.disk;
        state.table = ChecksumTable::open(&**disk, &self.home.join("checksums"))?;
        let cursor = state.scratch.cursor();
        match self.log.tail() {
            Some(tail) => {
                self.replay(state, &tail)?;
            }
            None => {
                state.table.truncate(0);
                state.pos = Pos::ZERO;
                state.commit = 0;
            }
        }
        state.wal.reset();
        if state.scratch.files_at() != state.pos {
            // Some of the records became visible before the others could not be written.
            state.scratch.mark_all();
            state.wal.unknown = true;
        } else if let (Some(file), Some(cursor)) = (state.backing.get(Side::Wal)?, cursor)
            && let Some(header) = read_header(&file)?.filter(|header| header.salt == cursor.salt)
        {
            state.wal.begin(header);
            state.wal.map(&file, Some(cursor.at.frames))?;
        }
        self.publish(state);
        Ok(())
    }

    pub(crate) fn corrupt(&self, reason: impl std::fmt::Display) -> Error {
        Error::Corrupt {
            db: self.name.clone(),
            reason: reason.to_string(),
        }
    }
}
