//! Capture of commits that no request announces: journal modes MEMORY and OFF, PERSIST without syncs, raw writes, WAL
//! frames whose wal-index header was stored just after the last sign of them.
//!
//! A database that may hold such a commit is watched: its locks tell when no transaction is under way. The engine never
//! takes a lock for it, so no client ever finds the database busy because of this.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Database;
use super::scratch::Writing;
use super::state::State;
use sqlite_format::Pgno;
use sqlite_format::wal_index::lock as wal_lock;

use crate::capture::wal::Until;
use crate::error::{Error, Result};
use crate::log::LogError;
use crate::name::{DbName, Side};

/// Raw writes count as finished when none came for this long.
const PAUSE: Duration = Duration::from_millis(5);
/// A client that holds its write lock for ever (EXCLUSIVE mode), uses no journal and does not sync, has finished when it pauses this
/// long. It is a guess: a transaction that outgrows the cache is written in parts.
pub(crate) const LONG_PAUSE: Duration = Duration::from_secs(1);
/// Where clients were seen to sync, one that pauses this long without a sync does not.
const NO_SYNC: Duration = Duration::from_secs(10);
/// How long a drain waits for lock files to be opened.
const OPENING: Duration = Duration::from_millis(500);
/// First and longest wait between two looks.
const WAIT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// Wait between two looks where nothing waits for what they find, and first wait where the last one failed.
const SLOW: Duration = Duration::from_millis(200);
/// Longest wait where every look fails.
const FAILED: Duration = Duration::from_secs(1);

/// Databases that are watched.
#[derive(Debug, Default)]
pub(crate) struct Settler {
    watched: Mutex<Watched>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Watched {
    names: BTreeSet<DbName>,
    /// Nobody looks for some time, unless something happens.
    idle: bool,
    closed: bool,
}

/// What a look at a watched database found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing is left to capture, or the next step of a client will be seen.
    Settled,
    /// A transaction may be under way.
    Pending,
    /// Look again some time.
    Later,
    /// The look failed: look again, less and less often.
    Failed,
}

impl Settler {
    /// Looks after the database until nothing is left to capture.
    pub(crate) fn watch(&self, name: &DbName) {
        let mut watched = self.watched.lock();
        if watched.idle || !watched.names.contains(name) {
            watched.names.insert(name.clone());
            watched.idle = false;
            self.changed.notify_one();
        }
    }

    /// Ends [`Settler::run`].
    pub(crate) fn close(&self) {
        self.watched.lock().closed = true;
        self.changed.notify_one();
    }

    /// Looks at watched databases until closed. Runs on a thread of its own, which does not serve the mount.
    pub(crate) fn run(&self, find: impl Fn(&DbName) -> Option<Arc<Database>>) {
        let mut wait = WAIT.0;
        loop {
            let names = {
                let mut watched = self.watched.lock();
                while watched.names.is_empty() && !watched.closed {
                    self.changed.wait(&mut watched);
                    wait = WAIT.0;
                }
                if watched.closed {
                    return;
                }
                std::mem::take(&mut watched.names)
            };
            let found: Vec<(DbName, Found)> = names
                .into_iter()
                .map(|name| (look(find(&name)), name))
                .filter(|(found, _)| *found != Found::Settled)
                .map(|(found, name)| (name, found))
                .collect();
            let mut watched = self.watched.lock();
            if found.is_empty() || watched.closed {
                continue;
            }
            let any = |wanted| found.iter().any(|(_, found)| *found == wanted);
            wait = match (watched.names.is_empty(), any(Found::Pending), any(Found::Later)) {
                (false, _, _) => WAIT.0,
                (true, true, _) => (wait * 2).min(WAIT.1),
                (true, false, true) => SLOW,
                (true, false, false) => (wait * 2).clamp(SLOW, FAILED),
            };
            watched.idle = wait >= SLOW;
            watched.names.extend(found.into_iter().map(|(name, _)| name));
            self.changed.wait_for(&mut watched, wait);
            if std::mem::take(&mut watched.idle) {
                wait = WAIT.0;
            }
        }
    }
}

/// Whether what a client wrote under a lock that it still holds is a commit, and not a part of a transaction: SQLite writes
/// the first page when it commits, and not before; only with `locking_mode=EXCLUSIVE` it leaves it alone from the second
/// transaction on.
fn commits_under_lock(state: &mut State) -> Result<bool> {
    if state.scratch.exclusive() {
        return Ok(true);
    }
    let Some(page_size) = state.page_size() else {
        return Ok(true);
    };
    let mut page = vec![0; page_size.bytes()];
    state.backing.read_padded(Side::Database, &mut page, 0)?;
    Ok(!state.is_current(Pgno::FIRST, &page))
}

fn look(db: Option<Arc<Database>>) -> Found {
    let Some(db) = db else { return Found::Settled };
    match db.settle() {
        Ok(found) => found,
        // Looks again, to fence.
        Err(Error::Log(LogError::Poisoned(_))) => Found::Later,
        Err(error) => {
            if let Some(unlogged) = db.shared.repeats.note("capture", &db.name, &error) {
                tracing::warn!(db = %db.name, %error, unlogged, "cannot capture, trying again");
            }
            Found::Failed
        }
    }
}

impl Database {
    /// One look at the database.
    fn settle(&self) -> Result<Found> {
        if !self.shared.is_primary() {
            return Ok(if self.keep_fence()? {
                Found::Later
            } else {
                Found::Settled
            });
        }
        if self.state.lock().backing.get(Side::Database)?.is_none() {
            return Ok(Found::Settled);
        }
        if self.is_closed() {
            return self.fence_closed();
        }
        let locks = self.locks()?;
        let connected = locks.locked(Side::Shm, wal_lock::DMS).unwrap_or(true);
        let mut state = self.state.lock();
        state.scratch.set_index_is_dead(!connected);
        let more = self.capture_wal(&mut state, Until::Index)?;
        let locked = locks.database_write_locked().unwrap_or(false);
        let pause = match (locked, state.all_synced, state.clients_sync) {
            (false, _, _) => PAUSE,
            (true, true, _) => Duration::ZERO,
            (true, false, true) => NO_SYNC,
            (true, false, false) => LONG_PAUSE,
        };
        let found = self.settle_pages(&mut state, locked, pause)?;
        Ok(if more { Found::Pending } else { found })
    }

    pub(crate) fn settle_pages(&self, state: &mut State, locked: bool, pause: Duration) -> Result<Found> {
        if state.scratch.dirty().is_clean() {
            return Ok(Found::Settled);
        }
        if state.backing.journal_is_hot()? {
            // Its end will be seen; if its owner is gone, SQLite rolls it back when somebody opens the database.
            return Ok(if locked { Found::Pending } else { Found::Settled });
        }
        if state.last_write.is_some_and(|at| at.elapsed() < pause) {
            return Ok(Found::Pending);
        }
        // What is synced is complete, and says nothing of whether its writer is about to give up the lock.
        let guessed = locked && !state.all_synced;
        if guessed && !commits_under_lock(state)? {
            return Ok(Found::Later);
        }
        state.scratch.set_exclusive(guessed);
        if !locked && !state.all_synced {
            // Whoever gave up the lock without a sync is none of those who sync.
            state.clients_sync = false;
            state.scratch.set_writing(Writing::Unknown);
        }
        self.capture_pages(state, 0)?;
        self.sync_commit(state)?;
        Ok(Found::Settled)
    }

    /// Captures what is committed at this moment, as far as it can be told without opening files on the mount. `false` if
    /// a commit may be among what was written since, because nobody knows yet whether its writer is still at it.
    pub(crate) fn settle_now(&self) -> Result<bool> {
        let mut state = self.state.lock();
        self.capture_wal(&mut state, Until::Index)?;
        if state.scratch.dirty().is_clean() {
            return Ok(true);
        }
        let Some(locks) = self.cached_locks() else {
            return Ok(false);
        };
        if !locks.database_write_locked().unwrap_or(true) {
            self.settle_pages(&mut state, false, Duration::ZERO)?;
        }
        Ok(true)
    }

    /// As [`Database::settle_now`]; waits a moment for the settler to open the lock files if that is what is missing.
    pub(crate) fn settle_soon(&self) -> Result<()> {
        let deadline = Instant::now() + OPENING;
        while !self.settle_now()? && Instant::now() < deadline {
            self.shared.settler.watch(&self.name);
            std::thread::sleep(WAIT.0);
        }
        Ok(())
    }
}
