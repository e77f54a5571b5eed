//! Databases whose home cannot be opened. Their names stay taken. A new log under the same name would begin with transaction 1, which
//! other nodes know as something else.
//!
//! * Their log is **damaged**, or the disk does not give it: on the primary such a database is read-only until somebody has looked at it;
//!   a replica gets it anew from its primary, and sets aside what it had.
//! * There was no **room** to open it, on the disk, in memory or among the descriptors: nothing is wrong with it, and it is tried again.
//!   Nobody reads its files meanwhile, because what its WAL holds may be missing in them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::health::Health;
use crate::layout;
use crate::name::{DbName, Side};
use crate::shared::Shared;

/// Homes that could not be opened, by the name of their database.
#[derive(Debug, Default)]
pub(crate) struct Damaged {
    homes: Mutex<BTreeMap<DbName, Home>>,
    /// Whether one of them waits for room: asked by every READ.
    some_wait: AtomicBool,
}

#[derive(Debug, Clone)]
struct Home {
    dir: PathBuf,
    health: Health,
    cause: Cause,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Damage,
    /// Opened again from then on.
    NoRoom {
        again: Instant,
    },
}

/// First pause before a database is opened again, and how many times longer than the attempt it is.
const AGAIN: (Duration, u32) = (Duration::from_secs(1), 10);

impl Damaged {
    /// Notes what opening a home that took so long came to.
    pub(crate) fn add(&self, name: DbName, dir: PathBuf, error: &Error, took: Duration) {
        let no_room = error.is_no_room();
        let (then, cause) = match no_room {
            true => {
                let again = Instant::now() + AGAIN.0.max(took * AGAIN.1);
                let then = "nobody can use the database until there is room; it is tried again by itself";
                (then, Cause::NoRoom { again })
            }
            false => {
                let then = "the database is read-only here until this node follows a primary that has it";
                (then, Cause::Damage)
            }
        };
        let reason = format!("{} cannot be opened, so {then} ({error})", dir.display());
        let health = Health::Unreadable {
            reason: reason.clone(),
        };
        let before = {
            let mut homes = self.homes.lock();
            let before = homes.insert(name.clone(), Home { dir, health, cause });
            self.note_waiting(&homes);
            before
        };
        if before.is_none_or(|before| no_room != before.waits()) {
            tracing::error!(db = %name, %reason, "going on without the database");
        }
    }

    pub(crate) fn contains(&self, name: &DbName) -> bool {
        self.homes.lock().contains_key(name)
    }

    /// Whether the database waits for room.
    pub(crate) fn waits(&self, name: &DbName) -> bool {
        self.some_wait.load(Ordering::Acquire) && self.homes.lock().get(name).is_some_and(Home::waits)
    }

    /// The homes that are to be opened again now.
    pub(crate) fn due(&self) -> Vec<(DbName, PathBuf)> {
        let (homes, now) = (self.homes.lock(), Instant::now());
        let due = homes
            .iter()
            .filter(|(_, home)| matches!(home.cause, Cause::NoRoom { again } if again <= now));
        due.map(|(name, home)| (name.clone(), home.dir.clone())).collect()
    }

    /// The database was opened after all.
    pub(crate) fn remove(&self, name: &DbName) {
        let mut homes = self.homes.lock();
        homes.remove(name);
        self.note_waiting(&homes);
    }

    fn note_waiting(&self, homes: &BTreeMap<DbName, Home>) {
        self.some_wait
            .store(homes.values().any(Home::waits), Ordering::Release);
    }

    /// Names and reasons.
    pub(crate) fn list(&self) -> Vec<(DbName, String)> {
        let homes = self.homes.lock();
        homes
            .iter()
            .filter_map(|(name, home)| Some((name.clone(), home.health.reason()?.to_owned())))
            .collect()
    }

    /// Makes the name free for a database that comes from the primary: what was there goes to the archive, home and files.
    pub(crate) fn make_room(&self, shared: &Shared, name: &DbName) -> Result<()> {
        let Some(home) = self.homes.lock().get(name).cloned() else {
            return Ok(());
        };
        if shared.is_primary() || home.waits() {
            return home.health.check(name);
        }
        let moved = set_aside(shared, name, &home)?;
        self.homes.lock().remove(name);
        // Without a lock: the kernel waits for requests in the same directory, and they may wait for it.
        for side in moved {
            shared.kernel().invalidate_entry(name, side);
        }
        Ok(())
    }
}

impl Home {
    fn waits(&self) -> bool {
        match self.cause {
            Cause::NoRoom { .. } => true,
            Cause::Damage => false,
        }
    }
}

/// Returns which files there were.
fn set_aside(shared: &Shared, name: &DbName, home: &Home) -> Result<Vec<Side>> {
    // The home goes last: as long as it is in its place, a start finds the database damaged and goes on from there.
    let moved = layout::move_database(&shared.files, name, &home.dir)?;
    let archive = layout::set_aside(&*shared.options.disk, &shared.dir, name, &home.dir)?;
    tracing::warn!(db = %name, archive = %archive.display(), "what this node had of the database is set aside");
    Ok(moved)
}
