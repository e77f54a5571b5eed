//! Connections that are kept, as applications keep them: taken in turn, never closed because of an error.
//!
//! Only where a connection goes on failing at what a new one can do is it put away: it would be of use to nobody. It is closed late, when
//! others have long been at work, as garbage collectors do.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use super::super::clock::now;
use super::super::journal::Note;
use super::super::profile::{Behaviour, Locking, Profile};

/// How long SQLite waits for locks of others.
const BUSY: Duration = Duration::from_secs(10);
/// How long a connection must have failed before a new one is tried in its place.
const SUSPICIOUS: Duration = Duration::from_secs(1);
/// How many connections that were put away stay open.
const OLD: usize = 2;

struct Slot {
    number: u64,
    /// When it was opened; nanoseconds of CLOCK_MONOTONIC.
    since: u64,
    connection: Option<Connection>,
    failing_since: Option<Instant>,
}

pub(super) struct Pool {
    path: PathBuf,
    setup: String,
    slots: Vec<Slot>,
    turn: usize,
    opened: u64,
    old: VecDeque<Connection>,
}

/// What became of a connection that failed.
pub(super) enum Verdict {
    /// It may be the database's fault, or pass.
    Kept,
    /// A new one is in its place and works; to be noted of the one that was put away.
    Replaced(Note),
}

impl Pool {
    pub(super) fn new(path: PathBuf, profile: &Profile) -> Self {
        let slots = (0..profile.pool)
            .map(|_| Slot {
                number: 0,
                since: 0,
                connection: None,
                failing_since: None,
            })
            .collect();
        Self {
            path,
            setup: setup(profile),
            slots,
            turn: 0,
            opened: 0,
            old: VecDeque::new(),
        }
    }

    /// Gives the turn to the next connection.
    pub(super) fn advance(&mut self) {
        self.turn = (self.turn + 1) % self.slots.len();
    }

    /// The connection whose turn it is, opened if it never was.
    pub(super) fn current(&mut self) -> rusqlite::Result<&Connection> {
        if self.slots[self.turn].connection.is_none() {
            let since = now();
            let connection = self.connect()?;
            self.opened += 1;
            self.slots[self.turn] = Slot {
                number: self.opened,
                since,
                connection: Some(connection),
                failing_since: None,
            };
        }
        Ok(self.slots[self.turn].connection.as_ref().expect("it was opened"))
    }

    /// A connection that is not of the pool.
    pub(super) fn connect(&self) -> rusqlite::Result<Connection> {
        // Without CREATE: where no mount is, the path leads into the directory below it.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(BUSY)?;
        connection.execute_batch(&self.setup)?;
        Ok(connection)
    }

    /// The connection whose turn it is did what it was asked.
    pub(super) fn worked(&mut self) {
        self.slots[self.turn].failing_since = None;
    }

    /// It did not; `works` tries the same on another one, and then once more on it: what kept both from working may just have passed.
    pub(super) fn failed(&mut self, mut works: impl FnMut(&Connection) -> rusqlite::Result<()>) -> Verdict {
        let slot = &mut self.slots[self.turn];
        let since = *slot.failing_since.get_or_insert_with(Instant::now);
        if slot.connection.is_none() || since.elapsed() < SUSPICIOUS {
            return Verdict::Kept;
        }
        let opened = now();
        let Ok(fresh) = self.connect() else {
            return Verdict::Kept;
        };
        if works(&fresh).is_err() {
            return Verdict::Kept;
        }
        let again = self.slots[self.turn].connection.as_ref().map(&mut works);
        if again.is_some_and(|again| again.is_ok()) {
            self.worked();
            return Verdict::Kept;
        }
        self.opened += 1;
        let slot = Slot {
            number: self.opened,
            since: opened,
            connection: Some(fresh),
            failing_since: None,
        };
        let broken = std::mem::replace(&mut self.slots[self.turn], slot);
        self.old.extend(broken.connection);
        if self.old.len() > OLD {
            self.old.pop_front();
        }
        Verdict::Replaced(Note::Broken {
            connection: broken.number,
            since: broken.since,
        })
    }

    pub(super) fn kept(&self) -> impl Iterator<Item = (u64, &Connection)> {
        self.slots
            .iter()
            .filter_map(|slot| Some((slot.number, slot.connection.as_ref()?)))
    }
}

fn setup(profile: &Profile) -> String {
    let locking = match profile.locking {
        Locking::Normal => "",
        Locking::Exclusive => "PRAGMA locking_mode=EXCLUSIVE;",
    };
    let (journal, synchronous) = (profile.journal.name(), profile.synchronous.name());
    match profile.behaviour {
        // They take the database as it is.
        Behaviour::Read | Behaviour::Maintain => format!("PRAGMA synchronous={synchronous}"),
        Behaviour::Spill => {
            format!("PRAGMA journal_mode={journal}; PRAGMA synchronous={synchronous}; PRAGMA cache_size=10")
        }
        Behaviour::Metronome | Behaviour::Commit | Behaviour::Linger | Behaviour::Reconnect => {
            format!("{locking} PRAGMA journal_mode={journal}; PRAGMA synchronous={synchronous}")
        }
    }
}
